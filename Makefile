# Everything a new user needs: `make demo` and `make test`. Each makes .venv on its first run and reuses it afterwards.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all lint format clean

demo: $(VENV)/installed
	$(BIN)/python examples/demo.py

test: $(VENV)/installed
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-all: $(VENV)/installed
	$(BIN)/python -m pytest

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torchvision (with timm, which needs it) and torchao are optional and tested in processes of their own, so they lie
# apart from the rest; torchao would also write to stderr at every import of transformers.
$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/apart torchvision==0.28.0 timm==1.0.31
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/torchao torchao==0.18.0
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
