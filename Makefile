# Everything a new user needs: `make demo` and `make test`. Each makes .venv on its first run and reuses it afterwards.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-integration test-all gpu conformance properties faults versions docs lint format clean

demo: $(VENV)/installed
	$(BIN)/python examples/demo.py

# one thread per process: more would wait for one another
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not gpu and not integration and not faults"

# By file, so that what many tests of a file need is made by one process of two (xdist 3.8's groups do nothing in
# pytest 9.2), in the order of tests/conftest.py: by itself xdist ends with the files of few tests, which are the longest.
test-integration: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
		-m "integration and not slow and not gpu"

test-all: $(VENV)/app-installed
	$(BIN)/python -m pytest

# On a machine with a GPU, within 25 minutes: its tests, and all measurements into build/gpu.json and build/gpu.md.
# PYTHON needs a PyTorch for that GPU and pytest; nothing is installed. The first line is for machines without one.
gpu:
	@$(PYTHON) -m qlseg_hf benchmark gpu --minutes 0 --output build/gpu.json > /dev/null
	status=0; \
	QLSEG_SAMPLER=triton timeout --kill-after=10 270 \
		$(PYTHON) -m pytest -m gpu $$(grep -rl "mark\.gpu" tests --include="test_*.py") || status=1; \
	$(PYTHON) -m qlseg_hf benchmark gpu --minutes 19 --output build/gpu.json || status=1; \
	exit $$status

# transformers' own common tests, fetched from PyPI into build/conformance, without and with torchvision
conformance: $(VENV)/installed
	$(BIN)/python tests/conformance/run.py
	PYTHONPATH=$(VENV)/apart $(BIN)/python tests/conformance/run.py

# 20 times as many examples of every property as `make test` tries, drawn afresh, and a table of counts
properties: $(VENV)/installed
	$(BIN)/python tests/helpers/properties.py

# kills, full disks, damaged files, rivalling writers; the lines with counts are in the captured output
faults: $(VENV)/installed
	$(BIN)/python -m pytest -m faults -rA

# oldest and newest that setup.cfg allows, and without the optional packages: see the file
versions:
	$(PYTHON) tests/helpers/versions.py

# the site in build/site; every warning is an error. mkdocs-material's own notice about MkDocs 2 is none of ours.
docs: $(VENV)/docs-installed
	NO_MKDOCS_2_WARNING=true $(BIN)/python -m mkdocs build --strict

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torchvision (with timm, which needs it) and torchao are optional and tested in processes of their own, so they lie
# apart from the rest; torchao would also write to stderr at every import of transformers. OpenVINO (59 MB) lies apart
# to come without openvino-telemetry, which reports every import to others.
$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt --target $(VENV)/apart torchvision timm
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt --target $(VENV)/torchao torchao
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt --target $(VENV)/openvino openvino
	touch $@

# gradio 6.31 wants Pillow below 13, so it lies apart with what it needs (340 MB); playwright drives the browser.
# DeepSpeed (23 MB) lies apart, because accelerate and transformers behave otherwise where it is installed.
$(VENV)/app-installed: $(VENV)/installed
	sed 's/^pillow==[^;]*/pillow==12.3.0/' constraints.txt > $(VENV)/constraints-app.txt
	$(BIN)/python -m pip install --quiet --upgrade --constraint $(VENV)/constraints-app.txt --target $(VENV)/app gradio
	$(BIN)/python -m pip install --quiet --constraint constraints.txt playwright
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --upgrade \
		--constraint constraints.txt --target $(VENV)/deepspeed deepspeed einops hjson ninja py-cpuinfo
	touch $@

$(VENV)/docs-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,docs]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
