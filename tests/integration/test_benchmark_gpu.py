"""`qlseg benchmark gpu`: its parts fail for themselves, and the program as far as a CPU runs it."""

import json
import os
import time

import pytest

from qlseg_hf.benchmark import gpu, sampler
from qlseg_hf.benchmark.parts import Part, run_parts
from qlseg_hf.benchmark.settings import build, make_settings


def measure_one():
    yield "one", {"seconds": 0.5, "range": [0.25, 1.0], "ratio": 1.0, "peak_mib": 3.0, "loss": 0.125}


def measure_and_fail():
    yield from measure_one()
    raise ArithmeticError("the loss | has not fallen")


def measure_and_die():
    yield from measure_one()
    os._exit(11)


def measure_for_ever():
    yield from measure_one()
    while True:
        time.sleep(1)


def test_parts_fail_for_themselves(tmp_path, monkeypatch):
    """An error, a death and a hang end one part each, what it has measured before is kept, and the command fails."""
    functions = (measure_and_fail, measure_and_die, measure_for_ever, measure_one)
    parts = [Part(function.__name__, function, {}, 2) for function in functions]
    parts.append(Part("absent", measure_one, {}, 2, ("no_such_package",)))
    monkeypatch.setattr(gpu, "plan_parts", lambda device, tiny: parts)
    monkeypatch.setattr(gpu, "run_parts", lambda parts, seconds, method, save: run_parts(parts, seconds, "fork", save))
    output = tmp_path / "new" / "gpu.json"
    with pytest.raises(ChildProcessError, match="3 of 5 parts failed: measure_and_fail, measure_and_die, measure_for"):
        gpu.report_gpu(device="cpu", output=output)
    found, text = json.loads(output.read_text())["parts"], output.with_suffix(".md").read_text()
    assert {part["part"]: (part["status"], part["reason"]) for part in found} == {
        "measure_and_fail": ("failed", "ArithmeticError: the loss | has not fallen"),
        "measure_and_die": ("failed", "ChildProcessError: ended with status 11"),
        "measure_for_ever": ("failed", "TimeoutError: stopped after 2 s"),
        "measure_one": ("done", ""),
        "absent": ("skipped", "no_such_package is not installed"),
    }
    assert [len(part["rows"]) for part in found] == [1, 1, 1, 1, 0]
    assert r"| failed | ArithmeticError: the loss \| has not fallen |" in text and "| skipped |" in text
    assert text.count(": one | 0.5 | 0.25 .. 1 | 1 | 3 | loss 0.125 |") == 4
    del parts[:3]
    gpu.report_gpu(device="cpu", output=output)  # what is left out is no failure
    assert [part["status"] for part in json.loads(output.read_text())["parts"]] == ["done", "skipped"]


def test_parts_after_the_clock_has_run_out(capsys):
    outcomes = []
    parts = [Part("long", measure_for_ever, {}, 600), Part("late", measure_one, {}, 600)]
    run_parts(parts, 2, "fork", lambda found: outcomes.extend(found[len(outcomes) :]))
    assert [outcome.status for outcome in outcomes] == ["failed", "skipped"]
    assert "[2/2] late: skipped after 0 s: the clock of 0.0333 minutes had run out" in capsys.readouterr().out


def test_gpu_program_on_a_cpu(server, tmp_path):
    """All parts but the kernels, on tiny networks."""
    pytest.importorskip("accelerate")
    output = tmp_path / "gpu.json"
    server.complete("benchmark", "gpu", "--device", "cpu", "--tiny", "--output", output, expect=0)
    result, text = json.loads(output.read_text()), output.with_suffix(".md").read_text()
    assert result["tiny"] and result["machine"]["device"] == "cpu" and "no measurement" in text
    rows = {}
    for part in result["parts"]:
        assert part["status"] == "done" and part["rows"], part
        rows |= part["rows"]
    assert all(f": {name} |" in text for name in rows)
    for name in (
        "sampler b2 fp32 forward and backward: transformers' layer",
        "limit b2 bf16 encoder: GELU",
        "forward b2 bf16 whole",
        "forward b2 bf16 whole compiled",
        "training b2 fp32 whole and AdamW",
        "training b2 bf16 autocast whole compiled",
        "network b2 bf16 training step: plain again",
        "peers b2 bf16 SegFormer tiny",
        "FSDP2 step with AdamW: sharded",
    ):
        assert rows[name]["seconds"] > 0
    assert rows["FSDP2 step with AdamW: sharded"]["largest_difference"] < 1e-5
    fp16 = rows["fp16 with a scaler, 40 steps of batch 2: tiny"]
    assert fp16["last_loss"] < fp16["first_loss"]
    recipe = rows["recipe vit-b-ade20k fp32, batch 8, 2 at once: tiny"]
    assert recipe["projected_hours"] == pytest.approx(recipe["seconds"] * 160000 / 3600)


def test_gpu_without_a_gpu(server):
    done = server.complete("benchmark", "gpu", expect=1)
    assert done.stderr.startswith("qlseg benchmark: gpu measures on a CUDA GPU, and PyTorch sees none here: run it on")
    assert done.stderr.count("\n") == 1 and not done.stdout


def test_sampler_that_is_wrong(monkeypatch):
    """What differs by more than rounding, or is not a number, fails the part after its rows."""
    tiny = make_settings(release="tiny", device="cpu", repeats=1)
    assert len(list(sampler.run_sampler(tiny, "fp32"))) == 2 + 4
    for change in (lambda out: out * 1.001, lambda out: out * float("nan")):
        broken = {"plain": sampler.sample_plain, "broken": lambda *i, c=change: c(sampler.sample_plain(*i))}
        monkeypatch.setattr(sampler, "contestants", lambda device, broken=broken: broken)
        with pytest.raises(ArithmeticError, match="larger errors than rounding: broken at batch 1"):
            list(sampler.run_sampler(tiny, "fp32"))


@pytest.mark.parametrize(
    "scale, reason", [(float("nan"), "a loss or a weight is not finite"), (0.0, "the loss has not fallen")]
)
def test_fp16_that_does_not_learn(scale, reason, monkeypatch):
    def broken(settings):
        model = build(settings)
        model.register_forward_hook(lambda module, inputs, out: setattr(out, "loss", out.loss * scale))
        return model

    monkeypatch.setattr(gpu, "build", broken)
    with pytest.raises(ArithmeticError, match=reason):
        list(gpu.train_in_fp16(make_settings(release="tiny", device="cpu"), steps=5))
