"""Models of OpenVINO from the real command: any size, and the same label maps as PyTorch wherever they are run."""

import importlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from networks import tiny_config, varied_model
from PIL import Image
from torch.nn import functional as F
from transformers import pipeline

from qlseg_hf import QLSegForSemanticSegmentation, QLSegImageProcessor, load_label_map, segment
from qlseg_hf.cli.main import run
from qlseg_hf.export import OpenVINOQLSeg, write_openvino
from qlseg_hf.export import openvino as openvino_model
from qlseg_hf.export.runtime import OUTPUTS
from qlseg_hf.model.modeling_qlseg import QLSegOutput

if (Path(sys.prefix) / "openvino").is_dir():  # where `make test` puts it, without the package that reports its use
    sys.path.append(str(Path(sys.prefix) / "openvino"))
pytest.importorskip("onnx")
openvino = pytest.importorskip("openvino")
HAS_BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
SIZES = [(1, 96, 48), (3, 49, 70), (2, 64, 127), (1, 16, 5), (1, 200, 33)]


def smooth(batch: int, height: int, width: int) -> torch.Tensor:
    noise = torch.randn(batch, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    return F.interpolate(noise, size=(height, width), mode="bicubic")


def pictures(height: int = 48, width: int = 96) -> list[np.ndarray]:
    values = (128 + 100 * smooth(2, height, width)).clamp(0, 255)
    return list(values.permute(0, 2, 3, 1).numpy().astype(np.uint8))


@pytest.fixture(scope="module")
def loaded(network) -> QLSegForSemanticSegmentation:
    return QLSegForSemanticSegmentation.from_pretrained(network).eval()


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    """Its file by the command, and the graph that was made for it, which takes most of a minute."""
    path, programs = tmp_path_factory.mktemp("exported") / "new" / "net.xml", []
    with pytest.MonkeyPatch.context() as patch:
        make_program = openvino_model.make_program
        patch.setattr(
            openvino_model, "make_program", lambda *rest: programs.append(make_program(*rest)) or programs[0]
        )
        assert run(["export", network, path, "--format", "openvino"]) == 0
    return path, programs[0]


@pytest.fixture(scope="module")
def path(exported) -> Path:
    return exported[0]


def test_files_and_report(path):
    assert sorted(file.name for file in path.parent.iterdir()) == ["net.bin", "net.xml", "net_report.json"]
    report = json.loads(path.with_name("net_report.json").read_text())
    assert report["bytes"] == path.stat().st_size + path.with_suffix(".bin").stat().st_size
    assert report["runtime"] == "OpenVINO" and report["outputs"] == list(OUTPUTS)
    assert set(report["versions"]) == {"torch", "onnx", "onnxscript", "openvino"}
    assert len(report["inputs"]) == 3
    for row in report["inputs"]:
        assert row["label_agreement"] >= 0.999 and row["labels_seen"] > 1
        assert max(row["largest_difference"].values()) < 1e-4 and row["seconds_exported"] > 0
    text = path.read_text()
    assert str(ROOT) not in text and str(path.parent) not in text  # nothing of the machine that wrote it


def test_graph(path, loaded):
    graph = openvino.Core().read_model(path)
    assert str(graph.input(0).partial_shape) == "[?,3,?,?]"
    kinds = {node.get_element_type().get_type_name() for node in graph.get_ops() if node.get_type_name() == "Constant"}
    assert "f32" in kinds and "f16" not in kinds  # OpenVINO halves weights if it is not told otherwise
    weights = sum(tensor.nbytes for tensor in loaded.state_dict().values())
    assert path.with_suffix(".bin").stat().st_size > 0.9 * weights


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_any_size(path, loaded, size):
    expected, found = loaded(pixel_values=smooth(*size)), OpenVINOQLSeg.from_pretrained(path)(smooth(*size))
    for name in OUTPUTS:
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-4)
    assert size in SIZES[3:] or len(expected.logits.argmax(dim=1).unique()) > 1


def test_called_like_the_network(path, loaded, network):
    model = OpenVINOQLSeg.from_pretrained(path)
    config, expected = ({**one.config.to_dict(), "_name_or_path": ""} for one in (model, loaded))
    assert config == expected
    assert model.processor.to_dict() == QLSegImageProcessor.from_pretrained(network).to_dict()
    inputs = model.processor(pictures()[0], return_tensors="pt")
    found = model(**inputs)
    assert isinstance(found, QLSegOutput) and torch.equal(found.window_offsets, inputs["window_offsets"])
    assert model(**inputs, output_logits=False).logits is None
    with pytest.raises(ValueError, match=r"shape \(1, 4, 32, 32\); \(B, 3, H, W\) is wanted"):
        model(torch.zeros(1, 4, 32, 32))
    assert model.eval() is model.train(False) is model.to("cpu") is model
    with pytest.raises(ValueError, match="cannot be trained"):
        model.train()
    with pytest.raises(ValueError, match="runs on the CPU, not on cuda"):
        model.to("cuda")


def test_what_the_graph_is_asked_for(tmp_path, monkeypatch):
    """An export takes a minute, so that the outputs reach it is checked without one."""

    class Asked(Exception):
        pass

    def ask(model, processor, outputs):
        raise Asked(outputs)

    monkeypatch.setattr(openvino_model, "make_program", ask)
    for options, outputs in (
        ({}, OUTPUTS),
        ({"with_logits": False}, OUTPUTS[:2]),
        ({"labels_only": True}, ("labels",)),
    ):
        with pytest.raises(Asked) as found:
            write_openvino(varied_model(tiny_config()), QLSegImageProcessor(), tmp_path / "net.xml", **options)
        assert found.value.args == (outputs,)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{}, {"scales": (1, 1.3), "flip": True}, {"labels": [7, 19, 0]}])
def test_segment(path, loaded, options):
    model = OpenVINOQLSeg.from_pretrained(path)
    for a, b in zip(*(segment(one, model.processor, pictures(), **options) for one in (model, loaded)), strict=True):
        assert (a == b).float().mean() >= 0.999 and len(b.unique()) > 1


def test_pipeline(path, loaded):
    model = OpenVINOQLSeg.from_pretrained(path)
    found, expected = (
        pipeline("image-segmentation", model=one, image_processor=model.processor)(Image.fromarray(pictures()[0]))
        for one in (model, loaded)
    )
    assert [part["label"] for part in found] == [part["label"] for part in expected] and len(found) > 1
    for a, b in zip(found, expected):
        assert (np.asarray(a["mask"]) == np.asarray(b["mask"])).mean() > 0.999


def test_threads_at_a_time(path):
    """Each call has a request of its own; one that is busy would refuse the second call."""
    model, inputs = OpenVINOQLSeg.from_pretrained(path), [smooth(1, 96, 48 + i) for i in range(8)]
    expected = [model(pixel_values).logits for pixel_values in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pixel_values: model(pixel_values).logits, inputs))
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_what_it_computes_in(path):
    """fp32 although OpenVINO itself takes bf16 where it can; bf16 by OpenVINO's own name for it."""
    exact = OpenVINOQLSeg.from_pretrained(path)
    assert exact.compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    assert exact.compiled.get_property("INFERENCE_NUM_THREADS") == torch.get_num_threads()
    hint = {"INFERENCE_PRECISION_HINT": "bf16"}
    if not HAS_BF16:
        with pytest.raises(ValueError, match="this processor has no bf16: OpenVINO would compute in f32"):
            OpenVINOQLSeg.from_pretrained(path, hint)
        return
    rough = OpenVINOQLSeg.from_pretrained(path, hint)
    assert rough.compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.bf16
    a, b = (model(smooth(2, 96, 80)).logits for model in (exact, rough))
    assert not torch.equal(a, b) and (a.argmax(1) == b.argmax(1)).float().mean() > 0.9


def test_labels_alone(tmp_path):
    model, processor = (
        varied_model(tiny_config()),
        QLSegImageProcessor(size={"shortest_edge": 48}, window_size=96, window_stride=60),
    )
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    path = tmp_path / "labels.xml"
    assert run(["export", tmp_path / "model", path, "--format", "openvino", "--outputs", "labels"]) == 0
    report = json.loads(path.with_name("labels_report.json").read_text())
    assert report["outputs"] == ["labels"] and all(row["label_agreement"] >= 0.999 for row in report["inputs"])
    exported = OpenVINOQLSeg.from_pretrained(path)
    assert exported._infer(smooth(1, 32, 48).numpy())[0].dtype == np.uint8
    for size in SIZES:
        with torch.no_grad():
            expected = model(pixel_values=smooth(*size)).logits.argmax(dim=1)
        found = exported.label_maps(smooth(*size))
        assert found.dtype == torch.int64 and (found == expected).float().mean() >= 0.999
    for found, expected in zip(*(segment(one, processor, pictures()) for one in (exported, model)), strict=True):
        assert (found == expected).float().mean() >= 0.999 and len(expected.unique()) > 1
    with pytest.raises(ValueError, match="no scores, which the average of 2 windows needs"):
        segment(exported, processor, pictures(), flip=True)


# ------------------------------------------------------------------------------------------------------- the commands


def test_evaluate_and_predict(path, network, data, tmp_path):
    """Scores and label maps are those of the folder; the file stands in the protocol; bf16 by --dtype."""
    processor = QLSegImageProcessor.from_pretrained(network)
    images = data / "images" / "validation"
    for model, name in ((network, "torch"), (path, "file")):
        output = tmp_path / f"{name}.json"
        assert run(["evaluate", model, "--data", data, "--split", "validation", "--output", output]) == 0
        assert run(["predict", model, images, "--output", tmp_path / name, "--workers", "0"]) == 0
    scores, expected = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("file", "torch"))
    assert scores["miou"] == pytest.approx(expected["miou"], abs=1e-3) and expected["miou"] > 0
    assert set(scores["protocol"]["weights_sha256"]) == {"net.xml", "net.bin"}
    image = sorted(images.iterdir())[0]
    found, expected = (load_label_map(tmp_path / name / "labels" / image.name) for name in ("file", "torch"))
    assert (found == expected).mean() >= 0.999 and len(np.unique(expected)) > 1
    direct = segment(OpenVINOQLSeg.from_pretrained(path), processor, str(image))[0].numpy()
    assert np.array_equal(found, direct)
    half = ["evaluate", path, "--data", data, "--split", "validation", "--dtype", "bfloat16"]
    assert run([*half, "--output", tmp_path / "half.json"]) == (0 if HAS_BF16 else 1)
    if HAS_BF16:
        assert json.loads((tmp_path / "half.json").read_text())["protocol"]["dtype"] == "bfloat16"


# --------------------------------------------------------------------------------------------------------- what fails


def test_a_file_that_disagrees_is_not_left(exported, network, tmp_path, monkeypatch, capsys):
    """Broken on purpose: the graph has other biases of the classes."""
    onnx_ir, program = importlib.import_module("onnx_ir"), exported[1]
    bias = program.graph.initializers["model.class_head.bias"]
    bias.const_value = onnx_ir.tensor(np.linspace(9, -9, bias.const_value.size, dtype=np.float32), name=bias.name)
    monkeypatch.setattr(openvino_model, "make_program", lambda *_: program)
    place = tmp_path / "net.xml"
    place.write_text("old")
    assert run(["export", network, place, "--format", "openvino"]) == 1
    assert "OpenVINO and PyTorch agree on" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [place] and place.read_text() == "old"


def test_sentences(path, tmp_path, monkeypatch, capsys):
    for name in ("text.xml", "text.bin", "alone.xml"):
        (tmp_path / name).write_text("hello")
    other = openvino.opset8.parameter([-1], np.float32)
    openvino.save_model(openvino.Model([openvino.opset8.relu(other)], [other]), tmp_path / "other.xml")
    for name, error, sentence in (
        ("none.xml", FileNotFoundError, "there is no file .*none.xml; qlseg export writes one"),
        ("alone.xml", FileNotFoundError, "there is no file .*alone.bin"),
        ("text.xml", ValueError, "OpenVINO cannot read .*text.xml"),
        ("other.xml", ValueError, "other.xml says nothing of a QLSeg network"),
    ):
        with pytest.raises(error, match=sentence):
            OpenVINOQLSeg.from_pretrained(tmp_path / name)
    with pytest.raises(ValueError, match="OpenVINO cannot run .*NO_SUCH_PROPERTY"):
        OpenVINOQLSeg.from_pretrained(path, {"NO_SUCH_PROPERTY": 1})
    with pytest.raises(ValueError, match="net.onnx must end in .xml"):
        write_openvino(varied_model(tiny_config()), QLSegImageProcessor(), tmp_path / "net.onnx")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"OpenVINO needs the package openvino: pip install 'qlseg-hf\[openvino\]'"):
        OpenVINOQLSeg.from_pretrained(path)
    assert run(["export", "nowhere", "--format", "openvino", "--weights", "int8", "--output", "net.xml"]) == 2
    assert "--weights is for --format web" in capsys.readouterr().err


def test_nothing_is_reported_to_others(tmp_path):
    """OpenVINO's import reports itself to others through the package openvino_telemetry, where that is installed."""
    asked = tmp_path / "asked"
    (tmp_path / "openvino_telemetry.py").write_text(f"open({str(asked)!r}, 'w')\nraise ImportError\n")
    start = f"import sys; sys.path = {[str(tmp_path), str(ROOT), *sys.path]!r}\n"
    ours = "from qlseg_hf.export.openvino import import_openvino\nassert import_openvino().Core\n"
    subprocess.run([sys.executable, "-c", f"{start}{ours}import openvino.tools.ovc"], check=True)
    assert not asked.exists()
    subprocess.run([sys.executable, "-c", f"{start}import openvino"], check=True)
    assert asked.exists()  # so the test can tell
