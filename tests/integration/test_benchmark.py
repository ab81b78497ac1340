"""The benchmark: its modes run, what it compares computes the same, and its measures measure."""

import json
import sys

import pytest
import torch
from networks import tiny_config
from programs import run

from qlseg_hf import QLSegConfig, QLSegForSemanticSegmentation
from qlseg_hf.benchmark import measure
from qlseg_hf.benchmark import speed as benchmark
from qlseg_hf.model.deformable_attention import sample_levels
from qlseg_hf.model.loss_qlseg import MaskLosses
from qlseg_hf.model.scores import combine, label_map_from_scores


def settings(device=torch.device("cpu")) -> benchmark.Settings:  # noqa: B008
    return benchmark.Settings(
        release="vit-b-ade20k",
        size=32,
        batch_sizes=(1, 2),
        training_batch_sizes=(2,),
        repeats=2,
        compile=False,
        device=device,
    )


@pytest.fixture
def arguments(monkeypatch):
    """Of the benchmark, with a tiny network in the place of every release."""
    monkeypatch.setattr(QLSegConfig, "for_release", classmethod(lambda cls, name, **overrides: tiny_config()))
    threads = torch.get_num_threads()
    yield settings()
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("mode", sorted(set(benchmark.MODES) - {"peers"}))
def test_modes(mode, arguments):
    if mode == "loading":
        pytest.importorskip("cv2")
    rows = benchmark.MODES[mode](arguments)
    assert len(rows) >= 1 and all(name.startswith(mode) for name in rows)
    timed = [row for row in rows.values() if "seconds" in row]
    assert timed and all(0 < row["range"][0] <= row["seconds"] <= row["range"][1] for row in timed)
    assert all(name[:62] in measure.table(rows) for name in rows)
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
    rows = benchmark.run_picture(arguments)
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
    for mine, expected in zip(MaskLosses.apply(*masks), benchmark.loss_by_autograd(*masks)):
        torch.testing.assert_close(mine, expected)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
def test_peak_memory_sees_what_is_freed_again():
    with measure.peak_memory() as peak:
        torch.ones(8 << 20)  # 32 MiB
    assert 30 <= peak.peak_bytes / 2**20 < 40


def test_multiplications():
    assert measure.multiplications(lambda: torch.zeros(3, 5) @ torch.zeros(5, 7)) == 3 * 5 * 7


@pytest.mark.slow
def test_peers():
    """Built on the meta device: the right networks, by their number of parameters in millions."""
    pytest.importorskip("scipy", reason="EoMT and Mask2Former ask for scipy")
    with torch.device("meta"):
        found = {name: make().num_parameters() / 1e6 for name, make in benchmark.peers(640).items()}
    expected = {"EoMT-L": 317, "Mask2Former Swin-L": 216, "UperNet-BEiT-L": 355, "SegFormer-B5": 85}
    assert found == pytest.approx(expected, rel=0.05)


@pytest.mark.gpu
def test_modes_on_a_gpu(arguments):
    arguments.device = torch.device("cuda")
    rows = benchmark.MODES["forward"](arguments) | benchmark.MODES["training"](arguments)
    timed = {name: row for name, row in rows.items() if "range" in row}
    assert {name.split()[0] for name in timed} == {"forward", "training"} and len(timed) >= 4
    assert all(0 < row["range"][0] <= row["seconds"] <= row["range"][1] < 60 for row in timed.values())
    assert all(0 < row["peak_mib"] < 1024 for row in timed.values())  # of a tiny network


def test_command_line(tmp_path):
    assert "qlseg benchmark: no mode speed; there are forward" in run("benchmark", "speed", expect=1).stderr
    pytest.importorskip("cv2")
    output = tmp_path / "loading.json"
    run("benchmark", "loading", "--repeats", 1, "--output", output)
    assert json.loads(output.read_text())["results"]["loading one worker"]["pictures_per_s"] > 0


def test_model_is_of_the_release_and_size():
    model = benchmark.build(settings(device=torch.device("meta")))
    assert isinstance(model, QLSegForSemanticSegmentation) and not model.training
    assert round(model.num_parameters() / 1e6, 1) == 171.1
