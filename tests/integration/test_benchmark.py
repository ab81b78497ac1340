"""The benchmark: its modes run, what it compares computes the same, and its measures measure."""

import copy
import json
import os
import statistics
import sys
import time

import pytest
import torch
from networks import tiny_config

from qlseg_hf import QLSegConfig
from qlseg_hf.benchmark import limit, measure
from qlseg_hf.benchmark import speed as benchmark
from qlseg_hf.benchmark.peers import peers
from qlseg_hf.benchmark.settings import Settings, build, make_settings
from qlseg_hf.benchmark.training import loss_by_autograd
from qlseg_hf.cli import main as command
from qlseg_hf.model.deformable_attention import sample_levels
from qlseg_hf.model.loss_qlseg import MaskLosses
from qlseg_hf.model.scores import combine, label_map_from_scores
from qlseg_hf.utils.devices import has_bf16


def settings(device=torch.device("cpu")) -> Settings:  # noqa: B008
    return Settings("vit-b-ade20k", 32, device, batch_sizes=(1, 2), repeats=2)


@pytest.fixture
def arguments(monkeypatch):
    """Of the benchmark, with a tiny network in the place of every release."""
    monkeypatch.setattr(QLSegConfig, "for_release", classmethod(lambda cls, name, **overrides: tiny_config()))
    threads = torch.get_num_threads()
    yield settings()
    assert torch.get_num_threads() == threads


# runtimes: four graphs are written, which takes a minute
SLOW = pytest.param("runtimes", marks=pytest.mark.slow)


# limits have a test of their own
@pytest.mark.parametrize("mode", ["forward", "loading", "picture", "training", "tricks", SLOW])
def test_modes(mode, arguments, monkeypatch):
    if mode == "loading":
        pytest.importorskip("cv2")
    if mode == "runtimes":
        monkeypatch.syspath_prepend(os.path.join(sys.prefix, "openvino"))  # where `make test` puts it
        for package in ("onnxscript", "onnxruntime", "openvino"):
            pytest.importorskip(package)
    rows = dict(benchmark.MODES[mode](arguments))
    assert len(rows) >= 1 and all(name.startswith(mode) for name in rows)
    timed = [row for row in rows.values() if "seconds" in row]
    assert timed and all(0 < row["range"][0] <= row["seconds"] <= row["range"][1] for row in timed)
    table = measure.table(rows.items())
    assert all(f"| {name} | {row.get('seconds', ''):.4} | " in table for name, row in rows.items() if "seconds" in row)
    if mode == "loading":
        assert [f"loading, {n} workers" in rows for n in (1, 2, 8)] == [True] * 3 and len(rows) == 4
        assert all(row["pictures_per_s"] > 0 for row in rows.values())
    if mode == "forward":
        assert rows["forward floor"]["ratio"] > 1
        assert {name for name in rows if "b2" in name} == {
            f"forward b2 {kind} {name}" for kind in ("fp32", "bf16") for name in ("encoder", "whole")
        }


def test_share_outside_of_the_network(arguments, monkeypatch):
    """Of the time from file to label map: what comes on top of the forward passes of the same windows."""
    ratios = {"forward passes": 1.0, "file to label map": 1.25, "file to label map, 512 MiB": 1.5}

    def take_turns(variants, baseline, *_):
        assert baseline == "forward passes" and ratios.keys() <= variants.keys()
        return {name: {"ratio": ratios.get(name, 0.1)} for name in variants}

    monkeypatch.setattr(benchmark, "take_turns", take_turns)
    rows = dict(benchmark.run_picture(arguments))
    found = {name: row["outside_network"] for name, row in rows.items() if "outside_network" in row}
    assert found == {"picture file to label map": 0.25, "picture file to label map, 512 MiB": 0.5}


def test_what_is_compared_computes_the_same():
    torch.manual_seed(0)
    value, offsets = torch.randn(2, 2 * 6, 3, 5), 2 * torch.randn(2, 2 * 6, 3, 2, 4, 2)
    weights = torch.rand(2, 2 * 6, 3, 2, 4)
    plain = benchmark.grid_sample_levels(value, offsets, weights, (2, 3))
    torch.testing.assert_close(sample_levels(value, offsets, weights, (2, 3)), plain, atol=1e-5, rtol=0)
    class_logits, mask_logits = torch.randn(2, 7, 8), torch.randn(2, 7, 2, 3)
    scores = benchmark.combine_at_once(class_logits, mask_logits, (33, 47))
    torch.testing.assert_close(combine(class_logits, mask_logits, (33, 47)), scores, atol=1e-6, rtol=0)
    found = label_map_from_scores(scores[0], (70, 100))
    assert (found == benchmark.label_map_at_once(scores[0], (70, 100))).float().mean() > 0.999
    labels = torch.randint(0, 3, (2, 16, 24))
    masks = (torch.randn(4, 2, 3), labels, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 2]), 0.25, 2.0)
    for mine, expected in zip(MaskLosses.apply(*masks), loss_by_autograd(*masks)):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_networks_are_compared(dtype, tiny_model):
    """Their times were taken whatever they computed."""
    model, pixels = tiny_model.to(dtype), torch.randn(2, 3, 32, 48, dtype=dtype)
    wrong = copy.deepcopy(model)
    wrong.pixel_encoder.norms[0].weight.data.neg_()
    broken = copy.deepcopy(model)
    broken.class_head.bias.data[3] = torch.nan
    # whole networks are compiled, and compared by this check, in test_limit and the program for GPUs
    measure.check_compiled("it", model.backbone, torch.compile(model.backbone, backend="eager"), pixels)
    measure.check_compiled("it", model, copy.deepcopy(model), pixels)
    for compiled in (wrong, broken):
        with pytest.raises(ValueError, match="^it gives other numbers compiled than as it is: off by"):
            measure.check_compiled("it", model, compiled, pixels)


def test_compiled_training_steps_of_16_bits_are_refused_on_a_cpu(arguments):
    arguments.compile, arguments.dtypes = True, ("fp32", "bf16")
    with pytest.raises(ValueError, match="compiled in 16 bits gives wrong numbers on CPUs"):
        list(benchmark.MODES["training"](arguments))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
def test_peak_memory_sees_what_is_freed_again():
    with measure.peak_memory() as peak:
        torch.ones(8 << 20)  # 32 MiB
    assert 30 <= peak.peak_bytes / 2**20 < 40


def test_one_thread_is_timed_by_its_own_work(monkeypatch):
    """What else the machine does meanwhile does not count, as waiting does not."""
    nap, cpu = lambda: time.sleep(0.2), torch.device("cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert measure.seconds(nap, cpu) < 0.1 and measure.machine(cpu)["clock"] == "process_time"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert measure.seconds(nap, cpu) >= 0.2 and measure.machine(cpu)["clock"] == "perf_counter"


def test_dtypes(arguments):
    """Only the dtypes that are asked for; a ratio to fp32 only where fp32 was timed."""
    arguments.dtypes = ("bf16",)
    rows = dict([*benchmark.run_forward(arguments), *benchmark.MODES["training"](arguments)])
    timed = {name: row for name, row in rows.items() if "range" in row}
    assert timed and all(" bf16 " in name for name in timed) and not any("to_fp32" in row for row in timed.values())
    with pytest.raises(ValueError, match="no dtype float32; there are fp32, bf16, fp16"):
        make_settings(dtypes=("float32",))
    with pytest.raises(ValueError, match="no mode gpu; there are forward, .*; gpu runs alone"):
        benchmark.benchmark(("gpu", "forward"))


# --------------------------------------------------------------------------------------------------------------- limit


def test_operations_by_stage():
    """Against formulas, for ViT-B at 512 px: N tokens of width C, 12 layers; two operations per multiplication."""
    found = limit.count_operations(Settings("vit-b-ade20k", 512, torch.device("cpu")), batch=2)
    tokens, width, layers, batch = 32 * 32, 768, 12, 2
    square = 2 * batch * layers * tokens * width**2
    assert found["patches and positions"] == 2 * batch * tokens * width * 3 * 16**2
    assert found["encoder: queries, keys, values"] == 3 * square and found["encoder: output of attention"] == square
    assert found["encoder: attention"] == 2 * batch * layers * 2 * tokens**2 * width
    assert found["encoder: first product of the MLP"] == found["encoder: second product of the MLP"] == 4 * square
    assert found["scores"] == 2 * batch * 150 * 150 * 512**2
    nothing = [stage for stage, count in found.items() if not count]
    assert len(nothing) == 7 and all(any(k in s for k in ("norms", "GELU", "residuals", "sampling")) for s in nothing)
    assert 381 < sum(found.values()) / batch / 1e9 < 383


def test_stages_of_every_module():
    """Every stage but the last of its part is met by name, so no pattern is stale."""
    model = build(settings(device=torch.device("meta")))
    met = {limit.stage_of(name) for name, _ in model.named_modules()}
    assert met == {stage for stage, _ in limit.STAGES}


@pytest.mark.parametrize(
    "mode, compile, variants, stages",
    [
        (["limit"], ["--compile"], {"whole", "whole compiled"}, {stage for stage, _ in limit.STAGES}),
        (["limit", "training"], [], {"whole"}, set(limit.STEP)),
    ],
)
def test_limit(tmp_path, capsys, mode, compile, variants, stages):
    output = tmp_path / "limit.json"
    words = ["--release", "tiny", "--dtype", "fp32,bf16", "--repeats", "2", "--batch_sizes", "2", "--device", "cpu"]
    assert command.run(["benchmark", *mode, *words, *compile, "--output", output]) == 0
    text, rows = capsys.readouterr().out, json.loads(output.read_text())["results"]
    assert all(f"| {name} | " in text for name in rows)
    packs = mode == ["limit"] and has_bf16(torch.device("cpu"))
    for kind in ("fp32", "bf16"):
        start = f"{' '.join(mode)} b2 {kind} "
        found = {name.removeprefix(start): row for name, row in rows.items() if name.startswith(start)}
        kinds = found.pop("kinds of operation")
        assert {"matrix products", "GELU", "norms", "softmax", "sampling", "copies"} <= set(kinds)
        whole = variants | ({"whole as built"} if packs and kind == "bf16" else set())
        assert found.keys() == whole | stages
        for name in whole:
            row = found[name]
            # each pass beside the products of its own turn
            ratios = [a * b / row["operations"] for a, b in zip(row["each"], row["each_rate"], strict=True)]
            assert row["ratio"] == pytest.approx(statistics.median(ratios))
            assert row["lowest_ratio"] == pytest.approx(min(ratios)) and min(ratios) > 0
            assert row["limit_seconds"] == pytest.approx(row["operations"] / statistics.median(row["each_rate"]))
        assert sum(found[stage]["operations"] for stage in stages) == found["whole"]["operations"]
        assert all(found[stage]["seconds"] > 0 for stage in stages)
        assert {stage for stage in stages if "ratio" in found[stage]} == {s for s in stages if found[s]["operations"]}
        if mode != ["limit"]:  # the parts are the whole: forward, backward and update
            total = sum(found[stage]["seconds"] for stage in stages)
            assert total == pytest.approx(found["whole"]["seconds"], rel=0.9)


def test_operations_of_a_training_step():
    """Backward is twice forward, but that pixels need no gradient; scores are not made."""
    of_512 = Settings("vit-b-ade20k", 512, torch.device("cpu"))
    forward, found = limit.count_operations(of_512, batch=2), limit.count_step(of_512, batch=2)
    total = sum(forward.values()) - forward["scores"]
    patches = forward["patches and positions"]
    assert found == {"forward and loss": total, "backward": 2 * total - patches, "AdamW": 0}


def test_kinds_of_operation():
    x = torch.randn(200, 200)
    found = limit.kinds_of_operation(lambda: torch.nn.functional.gelu(x.to(torch.bfloat16)), torch.device("cpu"))
    assert {"casts", "GELU"} <= set(found) and "copies" not in found and "matrix products" not in found
    assert "copies" in limit.kinds_of_operation(lambda: x.t().contiguous(), torch.device("cpu"))


@pytest.mark.slow
def test_peers():
    """Built on the meta device: the right networks, by their number of parameters in millions."""
    pytest.importorskip("scipy", reason="EoMT and Mask2Former ask for scipy")
    with torch.device("meta"):
        found = {name: make().num_parameters() / 1e6 for name, make in peers(640).items()}
    expected = {"EoMT-L": 317, "Mask2Former Swin-L": 216, "UperNet-BEiT-L": 355, "SegFormer-B5": 85}
    assert found == pytest.approx(expected, rel=0.05)
