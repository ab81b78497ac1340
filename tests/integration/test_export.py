"""The ONNX file from the real script: standard operators, any size, and the same label maps as PyTorch."""

import importlib
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from networks import tiny_config, varied_model
from programs import run
from torch.nn import functional as F
from transformers import Dinov2Config, pipeline

from qlseg_hf import (
    QLSegForSemanticSegmentation,
    QLSegImageProcessor,
    QLSegImageSegmentationPipeline,
    load_label_map,
    segment,
)
from qlseg_hf.cli.main import run as run_command
from qlseg_hf.export import onnx as onnx_model
from qlseg_hf.export.onnx import OUTPUTS, OnnxQLSeg, label_dtype, write_onnx
from qlseg_hf.model.deformable_attention import sample_levels, sum_gathered
from qlseg_hf.model.modeling_qlseg import QLSegOutput
from qlseg_hf.utils.hashing import file_sha256

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SIZES = [(1, 96, 48), (3, 49, 70), (2, 64, 127), (1, 16, 5), (1, 200, 33)]
# exporting takes half a minute: `make test-all` does it with the second network too
networks = pytest.mark.parametrize("stored", [pytest.param("a", marks=pytest.mark.slow), "b"], indirect=True)
FILES = {}  # name of a stored network: its file, so that the script runs once for each


def smooth(batch: int, height: int, width: int) -> torch.Tensor:
    noise = torch.randn(batch, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    return F.interpolate(noise, size=(height, width), mode="bicubic")


@pytest.fixture
def exported(stored, tmp_path_factory):
    """The file of a stored network, and what the script printed."""
    if stored.name not in FILES:
        path = tmp_path_factory.mktemp("exported") / "new" / "net.onnx"
        FILES[stored.name] = path, run("export", stored.folder, path).stdout
    return FILES[stored.name]


@networks
def test_report(exported):
    path, printed = exported
    assert sorted(file.name for file in path.parent.iterdir()) == ["net.onnx", "net_report.json"]
    report = json.loads(path.with_name("net_report.json").read_text())
    assert json.loads(printed[: printed.rindex("}") + 1]) == report
    assert report["bytes"] == path.stat().st_size and report["outputs"] == list(OUTPUTS)
    sides = [row["shape"][2:] for row in report["inputs"]]
    assert len(sides) == 3 and all(height != width for height, width in sides)
    assert any(side % 16 for size in sides for side in size)
    for row in report["inputs"]:
        assert row["label_agreement"] >= 0.999 and row["labels_seen"] > 3
        assert set(row["largest_difference"]) == set(OUTPUTS) and max(row["largest_difference"].values()) < 1e-4
        assert row["seconds_pytorch"] > 0 and row["seconds_exported"] > 0


@networks
def test_file_is_standard_onnx(exported):
    graph = onnx.load(exported[0])
    onnx.checker.check_model(graph, full_check=True)
    assert len(graph.graph.node) > 100 and {node.domain for node in graph.graph.node} == {""}
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 20)] and not graph.functions
    assert not {"GridSample", "If", "Loop", "SequenceAt"} & {node.op_type for node in graph.graph.node}
    shape = [dim.dim_param or dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["batch", 3, "height", "width"]
    assert str(ROOT).encode() not in exported[0].read_bytes()  # the exporter's stack traces
    assert {entry.key for entry in graph.metadata_props} == {"qlseg_config", "qlseg_image_processor"}


@networks
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_plain_onnxruntime_at_any_size(stored, exported, size):
    session = onnxruntime.InferenceSession(exported[0], providers=["CPUExecutionProvider"])
    expected = stored.model().eval()(pixel_values=smooth(*size))
    found = dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"pixel_values": smooth(*size).numpy()})))
    for name in OUTPUTS:
        torch.testing.assert_close(torch.from_numpy(found[name]), expected[name], atol=5e-5, rtol=1e-4)
    agreement = (found["logits"].argmax(axis=1) == expected.logits.argmax(dim=1).numpy()).mean()
    assert agreement >= 0.999
    assert size == (1, 16, 5) or len(expected.logits.argmax(dim=1).unique()) > 1  # a single patch has one label


@networks
def test_loaded_model_is_called_like_the_network(stored, exported):
    model, network = OnnxQLSeg.from_pretrained(exported[0]), stored.model().eval()
    config, expected = ({**one.config.to_dict(), "_name_or_path": ""} for one in (model, network))
    assert config == expected
    assert model.processor.to_dict() == stored.processor.to_dict()
    inputs = stored.processor(str(stored.picture("large")), return_tensors="pt")
    found = model(**inputs)
    assert isinstance(found, QLSegOutput) and torch.equal(found.window_offsets, inputs["window_offsets"])
    assert model(**inputs, output_logits=False).logits is None
    with torch.no_grad():
        expected = network(**inputs)
    maps = [stored.processor.post_process_semantic_segmentation(outputs) for outputs in (found, expected)]
    assert (maps[0][0] == maps[1][0]).float().mean() >= 0.999
    with pytest.raises(ValueError, match=r"shape \(1, 4, 32, 32\); \(B, 3, H, W\) is wanted"):
        model(torch.zeros(1, 4, 32, 32))
    assert model.eval() is model.train(False) is model
    with pytest.raises(ValueError, match="cannot be trained"):
        model.train()


@networks
@pytest.mark.parametrize(
    "options", [{}, {"scales": (0.5, 1, 1.3), "flip": True}, {"window_batch_size": 3, "labels": [5, 2, 3]}]
)
def test_segment_takes_it(stored, exported, options):
    pictures = [stored.picture(name) for name in ("wide", "tall", "large")]
    found = segment(OnnxQLSeg.from_pretrained(exported[0]), stored.processor, pictures, **options)
    expected = segment(stored.model(), stored.processor, pictures, **options)
    for a, b in zip(found, expected, strict=True):
        assert (a == b).float().mean() >= 0.999 and len(b.unique()) > 1


@networks
def test_pipeline_takes_it(stored, exported, monkeypatch):
    """On its own device, the CPU, even where transformers sees a GPU and would move the model there."""
    model = OnnxQLSeg.from_pretrained(exported[0])
    picture = str(stored.picture("large"))
    expected = pipeline("image-segmentation", model=stored.model(), image_processor=stored.processor)(picture)
    monkeypatch.setattr("transformers.pipelines.base.is_torch_cuda_available", lambda: True)
    pipe = pipeline("image-segmentation", model=model, image_processor=model.processor)
    assert type(pipe) is QLSegImageSegmentationPipeline and pipe.device.type == "cpu"
    assert repr(pipe).startswith("QLSegImageSegmentationPipeline: {'model': 'OnnxQLSeg', 'dtype': 'float32'")
    found = pipe(picture)
    assert [part["label"] for part in found] == [part["label"] for part in expected] and len(found) > 1
    for one, other in zip(found, expected):
        assert (np.asarray(one["mask"]) == np.asarray(other["mask"])).mean() >= 0.999
    with pytest.raises(ValueError, match="an exported network runs on the CPU, not on cuda:0; say device='cpu'"):
        pipeline("image-segmentation", model=model, image_processor=model.processor, device="cuda:0")


@networks
def test_commands_take_it(stored, exported, data, tmp_path, capsys):
    """`evaluate` and `predict`: the settings of the file, rules of the command line above them."""
    images = [stored.picture(name) for name in ("wide", "tall")]
    for model, name in ((stored.folder, "torch"), (exported[0], "file")):
        assert run_command(["predict", model, *images, "--output", tmp_path / name, "--workers", "0"]) == 0
        rules = ["--do_reduce_labels", "false", "--output", tmp_path / f"{name}.json"]
        assert run_command(["evaluate", model, "--data", data, "--split", "validation", *rules]) == 0
    scores, expected = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("file", "torch"))
    assert scores["miou"] == pytest.approx(expected["miou"], abs=1e-3)
    assert scores["protocol"]["do_reduce_labels"] is expected["protocol"]["do_reduce_labels"] is False
    assert scores["protocol"]["weights_sha256"] == {"net.onnx": file_sha256(exported[0])}
    for image in images:
        maps = [load_label_map(tmp_path / name / "labels" / f"{image.stem}.png") for name in ("file", "torch")]
        assert (maps[0] == maps[1]).mean() >= 0.999 and len(np.unique(maps[1])) > 1
    settings = ["--output", tmp_path / "pseudo", "--confidence", "0.01", "--workers", "0"]
    assert run_command(["autolabel", "--model", exported[0], "--data", images[0], *settings]) == 0
    assert len(list((tmp_path / "pseudo" / "masks").iterdir())) == 1
    # the folder of results knows the file by its content
    assert run_command(["predict", stored.folder, *images, "--output", tmp_path / "file", "--workers", "0"]) == 1
    assert "other settings (weights_sha256" in capsys.readouterr().err
    half = ["evaluate", exported[0], "--data", data, "--split", "validation", "--dtype", "bfloat16"]
    assert run_command(half) == 1 and "computes in float32, not in bfloat16" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ other networks


@torch.no_grad()
def test_other_backbone(tmp_path):
    """DINOv2: patches of 14, its own resizing of position embeddings, a class token. And without `logits`."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2, "image_size": 56}
    small = {"num_group_norm_groups": 8, "num_decoder_blocks": 1, "num_decoder_layers": 1}
    backbone = Dinov2Config(**sizes, patch_size=14, out_indices=[1, 2], apply_layernorm=False)
    torch.manual_seed(0)
    network = QLSegForSemanticSegmentation(tiny_config(backbone_config=backbone, **small)).train()
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    implementation = network.backbone.config._attn_implementation
    write_onnx(network, QLSegImageProcessor(), tmp_path / "dino.onnx", with_logits=False)
    assert network.training and network.backbone.config._attn_implementation == implementation == "sdpa"
    model = OnnxQLSeg.from_pretrained(tmp_path / "dino.onnx")
    assert model.outputs == list(OUTPUTS[:2])
    network.eval()
    for size in ((2, 70, 45), (1, 56, 57), (3, 29, 126)):
        expected, found = network(pixel_values=smooth(*size)), model(smooth(*size))
        for name in OUTPUTS:
            torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_fresh_head(tmp_path):
    """Competing masks, label classifier, details and class token, for any number of images of any size."""
    added = {"mask_activation": "softmax", "use_label_classifier": True, "num_detail_channels": 8}
    config = tiny_config(num_labels=5, **added)
    config.backbone_config.use_class_token = True
    network = varied_model(config).eval()
    write_onnx(network, QLSegImageProcessor(), tmp_path / "fresh.onnx")
    model = OnnxQLSeg.from_pretrained(tmp_path / "fresh.onnx")
    for size in ((1, 32, 48), (2, 70, 45), (3, 29, 126)):
        expected, found = network(pixel_values=smooth(*size)), model(smooth(*size))
        for name in OUTPUTS:
            torch.testing.assert_close(found[name], expected[name], atol=1e-3, rtol=1e-3)


def test_labels_alone(tmp_path):
    """One output, the best label of each pixel in the smallest integers; what scores are needed for is refused."""
    model = varied_model(tiny_config())
    processor = QLSegImageProcessor(size={"shortest_edge": 48}, window_size=96, window_stride=60)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    path = tmp_path / "labels.onnx"
    assert run_command(["export", tmp_path / "model", path, "--outputs", "labels"]) == 0
    report = json.loads(path.with_name("labels_report.json").read_text())
    assert report["outputs"] == ["labels"] and any(row["labels_seen"] > 1 for row in report["inputs"])
    assert all(row["label_agreement"] >= 0.999 for row in report["inputs"])
    for size in SIZES:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"pixel_values": smooth(*size).numpy()})
        with torch.no_grad():
            expected = model(pixel_values=smooth(*size)).logits.argmax(dim=1).numpy()
        assert found.dtype == np.uint8 and found.shape == expected.shape
        assert (found == expected).mean() >= 0.999 and (size in SIZES[3:] or len(np.unique(expected)) > 1)

    exported = OnnxQLSeg.from_pretrained(path)
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
    with pytest.raises(ValueError, match="the average of 2 windows"):
        segment(exported, processor, np.zeros((48, 100, 3), np.uint8))
    with pytest.raises(ValueError, match="the resize from 48 x 48 to the image's 40 x 40"):
        segment(exported, processor, np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(ValueError, match="gives labels and no scores: call model.label_maps"):
        exported(smooth(1, 32, 32))
    with pytest.raises(ValueError, match=r"shape \(1, 4, 32, 32\)"):
        exported.label_maps(torch.zeros(1, 4, 32, 32))


def test_label_types():
    assert [label_dtype(n) for n in (2, 256, 257, 65536, 65537)] == [
        torch.uint8, torch.uint8, torch.uint16, torch.uint16, torch.int32
    ]  # fmt: skip


@networks
@torch.no_grad()
def test_torch_export(stored):
    """The snippet of the README."""
    model, pixel_values = stored.model().eval(), smooth(2, 70, 100)
    any_size = {axis: torch.export.Dim.DYNAMIC for axis in (0, 2, 3)}
    program = torch.export.export(model, (), {"pixel_values": pixel_values}, dynamic_shapes={"pixel_values": any_size})
    exported = program.module()
    for size in ((1, 96, 48), (3, 49, 70), (2, 64, 127)):
        expected, found = model(pixel_values=smooth(*size)), exported(pixel_values=smooth(*size))
        for name in OUTPUTS:
            torch.testing.assert_close(found[name], expected[name], atol=5e-5, rtol=1e-4)


def test_gathered_sum_equals_the_bags():
    from qlseg_hf.model.deformable_attention import corners

    batch, heads, levels, points, grid = 2, 4, 3, 2, (3, 5)
    length = levels * grid[0] * grid[1]
    value = torch.randn(batch, length, heads, 6)
    offsets = 3 * torch.randn(batch, length, heads, levels, points, 2)
    weights = torch.rand(batch, length, heads, levels, points)
    expected = sample_levels(value, offsets, weights, grid)
    torch.testing.assert_close(sum_gathered(value, *corners(offsets, weights, grid, batch)), expected)


# --------------------------------------------------------------------------------------------------------- what fails


@pytest.fixture
def tiny_program(monkeypatch, tiny_model):
    """A small ONNX graph in place of the network's, so that writing takes no time."""
    import onnx_ir

    def program(model, outputs):
        values = [onnx.helper.make_tensor_value_info(name, 1, ["batch"]) for name in ("pixel_values", "logits")]
        weight = onnx.numpy_helper.from_array(np.arange(2000, dtype=np.float32), "weight")
        nodes = [onnx.helper.make_node("Add", ["pixel_values", "weight"], ["logits"])]
        graph = onnx.helper.make_graph(nodes, "graph", values[:1], values[1:], [weight])
        made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        return SimpleNamespace(model=onnx_ir.from_proto(made))

    monkeypatch.setattr(onnx_model, "onnx_program", program)
    return tiny_model


def test_nothing_is_left_by_a_failed_check(tiny_program, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_text("old")

    def fail(beside):
        assert beside.stat().st_size > 2000 and beside.name == "net.onnx"
        raise ValueError("no agreement")

    with pytest.raises(ValueError, match="no agreement"):
        write_onnx(tiny_program, QLSegImageProcessor(), path, check=fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_weights_that_one_file_cannot_hold(tiny_program, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_model, "MOST_BYTES", 1000)
    path = tmp_path / "net.onnx"
    for _ in range(2):
        write_onnx(tiny_program, QLSegImageProcessor(), path)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
        assert path.with_name("net.onnx.data").stat().st_size == 8000
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        zeros = np.zeros(2000, dtype=np.float32)
        assert np.array_equal(session.run(None, {"pixel_values": zeros})[0], np.arange(2000))


@pytest.mark.parametrize("stored", ["b"], indirect=True)
def test_script_refuses_a_file_that_disagrees(stored, exported, tmp_path, monkeypatch, capsys):
    """Broken on purpose: the file has other biases of the classes."""
    program = importlib.import_module("onnx_ir").load(exported[0])
    bias = program.graph.initializers["model.class_head.bias"]
    bias.const_value = importlib.import_module("onnx_ir").tensor(-8 * bias.const_value.numpy(), name=bias.name)
    monkeypatch.setattr(onnx_model, "onnx_program", lambda *_: SimpleNamespace(model=program))
    assert run_command(["export", stored.folder, tmp_path / "net.onnx"]) == 1
    printed = capsys.readouterr()
    assert "label_agreement" in printed.out and "% of the pixels; 99.9% are wanted" in printed.err
    assert not list(tmp_path.iterdir())


def test_sentences(tiny_model, tmp_path, monkeypatch):
    text, other = tmp_path / "text.onnx", tmp_path / "other.onnx"
    text.write_text("hello")
    value = [onnx.helper.make_tensor_value_info(name, 1, ["n"]) for name in "ab"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["a"], ["b"])], "g", value[:1], value[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), other)
    for path, error, sentence in (
        (tmp_path / "none.onnx", FileNotFoundError, "there is no file .*none.onnx"),
        (text, ValueError, "onnxruntime cannot read .*text.onnx"),
        (other, ValueError, "other.onnx says nothing of a QLSeg network"),
    ):
        with pytest.raises(error, match=sentence):
            OnnxQLSeg.from_pretrained(path)
    with pytest.raises(ValueError, match=r"torch.bfloat16 on cpu; call model.float\(\).cpu\(\)"):
        write_onnx(tiny_model.bfloat16(), QLSegImageProcessor(), tmp_path / "half.onnx")
    for name, function in (
        ("onnxruntime", lambda: OnnxQLSeg.from_pretrained(other)),
        ("onnxscript", lambda: write_onnx(tiny_model, QLSegImageProcessor(), tmp_path / "net.onnx")),
    ):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=rf"ONNX needs the package {name}: pip install 'qlseg-hf\[export\]'"):
            function()
    assert sorted(tmp_path.iterdir()) == [other, text]
