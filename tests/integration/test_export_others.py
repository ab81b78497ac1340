"""Exports of other networks and outputs than those of test_export.py, and what of them fails."""

import json
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from exports import SIZES, SMALL, dinov2_network, small_network, smooth
from networks import tiny_config, varied_model

from qlseg_hf import QLSegForSemanticSegmentation, QLSegImageProcessor, segment
from qlseg_hf.cli.main import run as run_command
from qlseg_hf.export import onnx as onnx_model
from qlseg_hf.export.compare import RUNTIMES, report
from qlseg_hf.export.onnx import OUTPUTS, OnnxQLSeg, label_dtype, write_onnx
from qlseg_hf.model.deformable_attention import corners, pad_levels, sample_levels, sum_gathered

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("traced_once")
BIAS = "model.class_head.bias"  # in a graph


@pytest.mark.parametrize("kind", ["DINOv2", "fresh head"])
@torch.no_grad()
def test_other_networks(tmp_path, kind):
    """DINOv2, with patches of 14, its own resizing of position embeddings and a class token, without `logits`; and
    competing masks, label classifier, details and class token, on five bands of 16 bits."""
    processor, num_channels = QLSegImageProcessor(), 3
    if kind == "DINOv2":
        dinov2_network().save_pretrained(tmp_path / "model")
        network = QLSegForSemanticSegmentation.from_pretrained(tmp_path / "model")  # as test_example_of_export has it
        sizes, tolerance = ((2, 70, 45), (1, 56, 57), (3, 29, 126)), 1e-4
    else:
        added = {"mask_activation": "softmax", "use_label_classifier": True, "num_detail_channels": 8}
        config = tiny_config(num_labels=5, **added, **SMALL)
        config.backbone_config.use_class_token, config.backbone_config.num_channels = True, 5
        bands = {"image_mean": [0.1, 0.2, 0.3, 0.4, 0.5], "image_std": 0.25, "rescale_factor": 1 / 65535}
        processor, num_channels = QLSegImageProcessor(size=32, window_size=32, window_stride=20, **bands), 5
        network = varied_model(config)
        sizes, tolerance = ((1, 32, 48), (2, 70, 45), (3, 29, 126)), 1e-3
    network.train()
    implementation = network.backbone.config._attn_implementation
    write_onnx(network, processor, tmp_path / "net.onnx", with_logits=kind != "DINOv2")
    assert network.training and network.backbone.config._attn_implementation == implementation == "sdpa"
    model = OnnxQLSeg.from_pretrained(tmp_path / "net.onnx")
    assert model.outputs == list(OUTPUTS[: 2 if kind == "DINOv2" else 3])
    network.eval()
    for size in sizes:
        pixels = smooth(*size, num_channels)
        expected, found = network(pixel_values=pixels), model(pixels)
        for name in OUTPUTS:
            torch.testing.assert_close(found[name], expected[name], atol=tolerance, rtol=tolerance)
    report(network, tmp_path / "net.onnx", RUNTIMES["onnx"])  # raises if labels differ
    with pytest.raises(ValueError, match=rf"\(B, {num_channels}, H, W\) is wanted"):
        model(smooth(1, 32, 32, 4))
    if kind == "fresh head":
        picture = np.random.default_rng(0).integers(0, 2**16, (45, 60, 5), dtype=np.uint16)
        expected, found = segment(network, processor, picture)[0], segment(model, model.processor, picture)[0]
        assert (found == expected).float().mean() > 0.999


def test_labels_alone(form, tmp_path):
    """One output, the best label of each pixel in the smallest integers; what scores are needed for is refused."""
    model = small_network()
    processor = QLSegImageProcessor(size={"shortest_edge": 48}, window_size=96, window_stride=60)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    path = tmp_path / f"labels{form.suffixes[0]}"
    command = ["export", tmp_path / "model", path, "--format", form.name, "--outputs", "labels"]
    assert run_command(command) == 0
    report = json.loads(path.with_name("labels_report.json").read_text())
    assert report["outputs"] == ["labels"] and any(row["labels_seen"] > 1 for row in report["inputs"])
    assert all(row["label_agreement"] >= 0.999 for row in report["inputs"])
    exported = form.runner.from_pretrained(path)
    for size in SIZES:
        (found,) = exported._infer(smooth(*size).numpy())
        with torch.no_grad():
            expected = model(pixel_values=smooth(*size)).logits.argmax(dim=1).numpy()
        assert found.dtype == np.uint8 and found.shape == expected.shape
        assert (found == expected).mean() >= 0.999 and (size in SIZES[3:] or len(np.unique(expected)) > 1)
        assert torch.equal(exported.label_maps(smooth(*size)), torch.from_numpy(found).long())

    values = (128 + 127 * smooth(2, 96, 48)).clamp(0, 255)
    pictures = list(values.permute(0, 2, 3, 1).numpy().astype(np.uint8))
    expected = segment(model, processor, pictures)
    for found, labels in zip(segment(exported, exported.processor, pictures), expected, strict=True):
        assert found.dtype == torch.int64 and (found == labels).float().mean() >= 0.999
    assert len(torch.stack(expected).unique()) > 1
    for options, what in (
        ({"flip": True}, "the average of 2 windows"),
        ({"scales": (1, 2)}, "the average of 4 windows"),
        ({"labels": [3, 4]}, "a choice of labels"),
        ({"return_scores": True}, "return_scores"),
        ({"return_confidence": True}, "return_confidence"),
    ):
        with pytest.raises(ValueError, match=f"no scores, which {what} needs; export it with --outputs scores"):
            segment(exported, processor, pictures, **options)
    for size, what in (((48, 100), "average of 2 windows"), ((40, 40), "resize from 48 x 48 to the image's 40 x 40")):
        with pytest.raises(ValueError, match=what):
            segment(exported, processor, np.zeros((*size, 3), np.uint8))
    with pytest.raises(ValueError, match="gives labels and no scores: call model.label_maps"):
        exported(smooth(1, 32, 32))
    with pytest.raises(ValueError, match=r"shape \(1, 4, 32, 32\)"):
        exported.label_maps(torch.zeros(1, 4, 32, 32))


def test_label_types():
    assert [label_dtype(n) for n in (2, 256, 257, 65536, 65537)] == [
        torch.uint8, torch.uint8, torch.uint16, torch.uint16, torch.int32
    ]  # fmt: skip


def test_gathered_sum_equals_the_bags():
    batch, heads, levels, points, grid = 2, 4, 3, 2, (3, 5)
    length = levels * grid[0] * grid[1]
    value = torch.randn(batch, length, heads, 6)
    offsets = 3 * torch.randn(batch, length, heads, levels, points, 2)
    weights = torch.rand(batch, length, heads, levels, points)
    expected = sample_levels(value, offsets, weights, grid)
    found = sum_gathered(pad_levels(value, grid), *corners(offsets, weights, grid, batch))
    torch.testing.assert_close(found, expected)


def test_nothing_is_reported_to_others(tmp_path):
    """OpenVINO's import reports itself to others through the package openvino_telemetry, where that is installed."""
    pytest.importorskip("openvino")
    asked = tmp_path / "asked"
    (tmp_path / "openvino_telemetry.py").write_text(f"open({str(asked)!r}, 'w')\nraise ImportError\n")
    start = f"import sys; sys.path = {[str(tmp_path), str(ROOT), *sys.path]!r}\n"
    ours = "from qlseg_hf.export.openvino import import_openvino\nassert import_openvino().Core\n"
    subprocess.run([sys.executable, "-c", f"{start}{ours}import openvino.tools.ovc"], check=True)
    assert not asked.exists()
    subprocess.run([sys.executable, "-c", f"{start}import openvino"], check=True)
    assert asked.exists()  # so the test can tell


# --------------------------------------------------------------------------------------------------------- what fails


def test_what_the_graph_is_asked_for(form, tiny_model, tmp_path, monkeypatch):
    """An export takes half a minute, so that the outputs reach it is checked without one."""

    class Asked(Exception):
        pass

    def ask(model, outputs):
        raise Asked(outputs)

    monkeypatch.setattr(onnx_model, "onnx_program", ask)
    for options, outputs in (
        ({}, OUTPUTS),
        ({"with_logits": False}, OUTPUTS[:2]),
        ({"labels_only": True}, ("labels",)),
    ):
        with pytest.raises(Asked) as found:
            form.write(tiny_model, QLSegImageProcessor(), tmp_path / f"net{form.suffixes[0]}", **options)
        assert found.value.args == (outputs,)
    assert not list(tmp_path.iterdir())


def small_graph() -> "onnx.ModelProto":
    """Adds 0, 1, ... 1999: no network's, so that writing takes no time."""
    values = [onnx.helper.make_tensor_value_info(name, 1, ["batch"]) for name in ("pixel_values", "logits")]
    weight = onnx.numpy_helper.from_array(np.arange(2000, dtype=np.float32), "weight")
    nodes = [onnx.helper.make_node("Add", ["pixel_values", "weight"], ["logits"])]
    graph = onnx.helper.make_graph(nodes, "graph", values[:1], values[1:], [weight])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def test_weights_that_one_file_cannot_hold(tiny_model, tmp_path, monkeypatch):
    program = SimpleNamespace(model=import_module("onnx_ir").from_proto(small_graph()))
    monkeypatch.setattr(onnx_model, "onnx_program", lambda *_: program)
    monkeypatch.setattr(onnx_model, "MOST_BYTES", 1000)
    path = tmp_path / "net.onnx"
    for _ in range(2):
        write_onnx(tiny_model, QLSegImageProcessor(), path)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
        assert path.with_name("net.onnx.data").stat().st_size == 8000
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        zeros = np.zeros(2000, dtype=np.float32)
        assert np.array_equal(session.run(None, {"pixel_values": zeros})[0], np.arange(2000))


@pytest.mark.parametrize("stored", ["b"], indirect=True)
def test_a_file_that_disagrees_is_not_left(stored, form, tmp_path, monkeypatch, capsys):
    """Broken on purpose: the graph has other biases of the classes."""
    program = onnx_model.onnx_program(stored.model(), OUTPUTS)
    bias = program.model.graph.initializers[BIAS]
    bias.const_value = import_module("onnx_ir").tensor(-8 * bias.const_value.numpy(), name=BIAS)
    monkeypatch.setattr(onnx_model, "onnx_program", lambda *_: program)
    place = tmp_path / f"net{form.suffixes[0]}"
    place.write_text("old")
    assert run_command(["export", stored.folder, place, "--format", form.name]) == 1
    printed = capsys.readouterr()
    assert f"{form.runtime} and PyTorch agree on" in printed.err and "99.9% are wanted" in printed.err
    assert "label_agreement" in printed.out
    assert list(tmp_path.iterdir()) == [place] and place.read_text() == "old"


def test_sentences(form, tiny_model, tmp_path, monkeypatch):
    """Files that are no networks, packages that are missing, and a name of another format."""
    none, text, other, path = (tmp_path / f"{name}{form.suffixes[0]}" for name in ("none", "text", "other", "net"))
    for suffix in form.suffixes:
        text.with_suffix(suffix).write_text("hello")
    onnx.save(small_graph(), other.with_suffix(".onnx"))
    packages = {"onnxscript": ("ONNX", "export"), "onnxruntime": ("ONNX", "export")}
    if form.name == "openvino":
        openvino, packages["openvino"] = import_module("openvino"), ("OpenVINO", "openvino")
        openvino.save_model(openvino.Core().read_model(other.with_suffix(".onnx")), other)
        (tmp_path / "alone.xml").write_text("hello")
        with pytest.raises(FileNotFoundError, match="there is no file .*alone.bin"):
            form.runner.from_pretrained(tmp_path / "alone.xml")
    for name in ("net.tflite", "net.bin", "net", f"net{form.suffixes[0].upper()}"):
        with pytest.raises(ValueError, match=f"{name} must end in {form.suffixes[0]}"):
            form.write(tiny_model, QLSegImageProcessor(), tmp_path / name)
    for file, error, sentence in (
        (none, FileNotFoundError, "there is no file .*none[.]..*; qlseg export writes one"),
        (text, ValueError, f"{form.runtime} cannot read .*text[.]"),
        (other, ValueError, "other[.].* says nothing of a QLSeg network"),
    ):
        with pytest.raises(error, match=sentence):
            form.runner.from_pretrained(file)
    before = set(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"torch.bfloat16 on cpu; call model.float\(\).cpu\(\)"):
        form.write(tiny_model.bfloat16(), QLSegImageProcessor(), path)
    for name, function in (
        ("onnxscript", lambda: form.write(tiny_model, QLSegImageProcessor(), path)),
        (form.runtime.lower(), lambda: form.runner.from_pretrained(other)),
    ):
        monkeypatch.setitem(sys.modules, name, None)
        what, extra = packages[name]
        with pytest.raises(ImportError, match=rf"{what} needs the package {name}: pip install 'qlseg-hf\[{extra}\]'"):
            function()
    assert set(tmp_path.iterdir()) == before
