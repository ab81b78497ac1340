"""Files of ONNX and OpenVINO from the real command: any size, and the same label maps as PyTorch wherever they run."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from exports import SIZES, has_bf16, smooth
from transformers import pipeline

from qlseg_hf import QLSegImageSegmentationPipeline, load_label_map, segment
from qlseg_hf.cli.main import run as run_command
from qlseg_hf.export import OpenVINOQLSeg
from qlseg_hf.export.runtime import OUTPUTS
from qlseg_hf.model.modeling_qlseg import QLSegOutput
from qlseg_hf.utils.hashing import file_sha256

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
# exporting takes half a minute: `make test-all` does it with the second network too
networks = pytest.mark.parametrize("stored", [pytest.param("a", marks=pytest.mark.slow), "b"], indirect=True)


def only(name: str):
    return pytest.mark.parametrize("form", [name], indirect=True)


@pytest.fixture(scope="module")
def exported(stored, form, traced_once, tmp_path_factory) -> SimpleNamespace:
    """The `path` of a stored network's file, what the command `printed`, and the file loaded as `model`."""
    path, printed = tmp_path_factory.mktemp("exported") / "new" / f"net{form.suffixes[0]}", StringIO()
    with redirect_stdout(printed):
        assert run_command(["export", stored.folder, path, "--format", form.name]) == 0
    return SimpleNamespace(path=path, printed=printed.getvalue(), model=form.runner.from_pretrained(path))


@networks
def test_report(exported, form):
    path, printed = exported.path, exported.printed
    files = [path.with_suffix(suffix) for suffix in form.suffixes]
    assert set(path.parent.iterdir()) == {*files, path.with_name("net_report.json")}
    report = json.loads(path.with_name("net_report.json").read_text())
    assert json.loads(printed[: printed.rindex("}") + 1]) == report
    assert report["bytes"] == sum(file.stat().st_size for file in files) and report["outputs"] == list(OUTPUTS)
    assert report["runtime"] == form.runtime
    assert set(report["versions"]) == {"torch", "onnx", "onnxscript", form.runtime.lower()}
    sides = [row["shape"][2:] for row in report["inputs"]]
    assert len(sides) == 3 and all(height != width for height, width in sides)
    assert any(side % 16 for size in sides for side in size)
    for row in report["inputs"]:
        assert row["label_agreement"] >= 0.999 and row["labels_seen"] > 3
        assert set(row["largest_difference"]) == set(OUTPUTS) and max(row["largest_difference"].values()) < 1e-4
        assert row["seconds_pytorch"] > 0 and row["seconds_exported"] > 0
    for file in files:  # nothing of the machine that wrote it, such as the exporter's stack traces
        assert not any(str(place).encode() in file.read_bytes() for place in (ROOT, path.parent))


@networks
@only("onnx")
def test_file_is_standard_onnx(exported):
    graph = onnx.load(exported.path)
    onnx.checker.check_model(graph, full_check=True)
    assert len(graph.graph.node) > 100 and {node.domain for node in graph.graph.node} == {""}
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 20)] and not graph.functions
    assert not {"GridSample", "If", "Loop", "SequenceAt"} & {node.op_type for node in graph.graph.node}
    shape = [dim.dim_param or dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["batch", 3, "height", "width"]
    assert {entry.key for entry in graph.metadata_props} == {"qlseg_config", "qlseg_image_processor"}
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])  # without our class
    found, expected = session.run(list(OUTPUTS), {"pixel_values": smooth(*SIZES[1]).numpy()}), smooth(*SIZES[1])
    for value, name in zip(found, OUTPUTS):
        torch.testing.assert_close(torch.from_numpy(value), exported.model(expected)[name], atol=1e-6, rtol=1e-6)


@networks
@only("openvino")
def test_weights_of_openvino_stay_in_fp32(stored, exported):
    graph = import_module("openvino").Core().read_model(exported.path)
    assert str(graph.input(0).partial_shape) == "[?,3,?,?]"
    kinds = {node.get_element_type().get_type_name() for node in graph.get_ops() if node.get_type_name() == "Constant"}
    assert "f32" in kinds and "f16" not in kinds  # OpenVINO halves weights if it is not told otherwise
    weights = sum(tensor.nbytes for tensor in stored.model().state_dict().values())
    assert exported.path.with_suffix(".bin").stat().st_size > 0.9 * weights


@networks
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_any_size(stored, form, exported, size):
    expected, found = stored.model().eval()(pixel_values=smooth(*size)), exported.model(smooth(*size))
    for name in OUTPUTS:
        torch.testing.assert_close(found[name], expected[name], atol=form.tolerance, rtol=1e-4)
    labels = expected.logits.argmax(dim=1)
    assert (found.logits.argmax(dim=1) == labels).float().mean() >= 0.999
    assert size == (1, 16, 5) or len(labels.unique()) > 1  # a single patch has one label


@networks
def test_loaded_model_is_called_like_the_network(stored, exported):
    model, network = exported.model, stored.model().eval()
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
    with pytest.raises(ValueError, match=r"shape \(0, 3, 32, 32\); .* none of them 0"):
        model(torch.zeros(0, 3, 32, 32))
    with pytest.raises(ValueError, match="pixel_values are torch.uint8, so they have not been normalised"):
        model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    for pixel_values in (smooth(2, 33, 40).double(), smooth(2, 33, 40).bfloat16(), smooth(2, 33, 40).requires_grad_()):
        with torch.no_grad():
            expected = network(pixel_values).logits
        torch.testing.assert_close(model(pixel_values).logits, expected, atol=1e-4, rtol=1e-4)
    assert model.eval() is model.train(False) is model.to("cpu") is model
    with pytest.raises(ValueError, match="cannot be trained"):
        model.train()
    with pytest.raises(ValueError, match="runs on the CPU, not on cuda"):
        model.to("cuda")


@networks
@pytest.mark.parametrize(
    "options", [{}, {"scales": (0.5, 1, 1.3), "flip": True}, {"window_batch_size": 3, "labels": [5, 2, 3]}]
)
def test_segment_takes_it(stored, exported, options):
    pictures = [stored.picture(name) for name in ("wide", "tall", "large")]
    found, expected = (
        segment(model, stored.processor, pictures, **options) for model in (exported.model, stored.model())
    )
    for a, b in zip(found, expected, strict=True):
        assert (a == b).float().mean() >= 0.999 and len(b.unique()) > 1


@networks
def test_pipeline_takes_it(stored, exported, monkeypatch):
    """On its own device, the CPU, even where transformers sees a GPU and would move the model there."""
    model, picture = exported.model, str(stored.picture("large"))
    expected = pipeline("image-segmentation", model=stored.model(), image_processor=stored.processor)(picture)
    monkeypatch.setattr("transformers.pipelines.base.is_torch_cuda_available", lambda: True)
    pipe = pipeline("image-segmentation", model=model, image_processor=model.processor)
    assert type(pipe) is QLSegImageSegmentationPipeline and pipe.device.type == "cpu"
    name = type(model).__name__
    assert repr(pipe).startswith(f"QLSegImageSegmentationPipeline: {{'model': '{name}', 'dtype': 'float32'")
    found = pipe(picture)
    assert [part["label"] for part in found] == [part["label"] for part in expected] and len(found) > 1
    for one, other in zip(found, expected):
        assert (np.asarray(one["mask"]) == np.asarray(other["mask"])).mean() >= 0.999
    with pytest.raises(ValueError, match="an exported network runs on the CPU, not on cuda:0; say device='cpu'"):
        pipeline("image-segmentation", model=model, image_processor=model.processor, device="cuda:0")


@networks
def test_commands_take_it(stored, form, exported, data, tmp_path, capsys):
    """`evaluate` and `predict`: the settings of the file, rules of the command line above them."""
    images = [stored.picture(name) for name in ("wide", "tall")]
    for model, name in ((stored.folder, "torch"), (exported.path, "file")):
        assert run_command(["predict", model, *images, "--output", tmp_path / name, "--workers", "0"]) == 0
        rules = ["--do_reduce_labels", "false", "--output", tmp_path / f"{name}.json"]
        assert run_command(["evaluate", model, "--data", data, "--split", "validation", *rules]) == 0
    scores, expected = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("file", "torch"))
    assert scores["miou"] == pytest.approx(expected["miou"], abs=1e-3)
    assert scores["protocol"]["do_reduce_labels"] is expected["protocol"]["do_reduce_labels"] is False
    hashes = {file.name: file_sha256(file) for file in map(exported.path.with_suffix, form.suffixes)}
    assert scores["protocol"]["weights_sha256"] == hashes
    for image in images:
        maps = [load_label_map(tmp_path / name / "labels" / f"{image.stem}.png") for name in ("file", "torch")]
        assert (maps[0] == maps[1]).mean() >= 0.999 and len(np.unique(maps[1])) > 1
        assert np.array_equal(maps[0], segment(exported.model, stored.processor, image)[0].numpy())
    settings = ["--output", tmp_path / "pseudo", "--confidence", "0.01", "--workers", "0"]
    assert run_command(["autolabel", "--model", exported.path, "--data", images[0], *settings]) == 0
    assert len(list((tmp_path / "pseudo" / "masks").iterdir())) == 1
    # the folder of results knows the file by its content
    assert run_command(["predict", stored.folder, *images, "--output", tmp_path / "file", "--workers", "0"]) == 1
    assert "other settings (weights_sha256" in capsys.readouterr().err
    half = ["evaluate", exported.path, "--data", data, "--split", "validation", "--dtype", "bfloat16"]
    half += ["--output", tmp_path / "half.json"]
    if form.name == "openvino" and has_bf16():
        assert run_command(half) == 0
        assert json.loads((tmp_path / "half.json").read_text())["protocol"]["dtype"] == "bfloat16"
    else:
        said = "computes in float32, not in bfloat16" if form.name == "onnx" else "this processor has no bf16"
        assert run_command(half) == 1 and said in capsys.readouterr().err


@networks
@torch.no_grad()
def test_torch_export(stored):
    """The snippet of the README."""
    model, pixel_values = stored.model().eval(), smooth(2, 70, 100)
    any_size = {axis: torch.export.Dim.DYNAMIC for axis in (0, 2, 3)}
    program = torch.export.export(model, (), {"pixel_values": pixel_values}, dynamic_shapes={"pixel_values": any_size})
    exported = program.module()
    for size in SIZES[:3]:
        expected, found = model(pixel_values=smooth(*size)), exported(pixel_values=smooth(*size))
        for name in OUTPUTS:
            torch.testing.assert_close(found[name], expected[name], atol=5e-5, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------ OpenVINO alone


@networks
@only("openvino")
def test_threads_at_a_time(exported):
    """Each call has a request of its own; one that is busy would refuse the second call."""
    model, inputs = exported.model, [smooth(1, 96, 48 + i) for i in range(8)]
    expected = [model(pixel_values).logits for pixel_values in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pixel_values: model(pixel_values).logits, inputs))
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


@networks
@only("openvino")
def test_what_it_computes_in(exported):
    """fp32 although OpenVINO itself takes bf16 where it can; bf16 by OpenVINO's own name for it."""
    openvino, exact = import_module("openvino"), exported.model
    assert exact.compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    assert exact.compiled.get_property("INFERENCE_NUM_THREADS") == torch.get_num_threads()
    hint = {"INFERENCE_PRECISION_HINT": "bf16"}
    if not has_bf16():
        with pytest.raises(ValueError, match="this processor has no bf16: OpenVINO would compute in f32"):
            OpenVINOQLSeg.from_pretrained(exported.path, hint)
        return
    rough = OpenVINOQLSeg.from_pretrained(exported.path, hint)
    assert rough.compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.bf16
    a, b = (model(smooth(2, 96, 80)).logits for model in (exact, rough))
    assert not torch.equal(a, b) and (a.argmax(1) == b.argmax(1)).float().mean() > 0.9


@pytest.mark.parametrize("stored", ["b"], indirect=True)
@only("openvino")
def test_unknown_properties_are_refused(exported):
    with pytest.raises(ValueError, match="OpenVINO cannot run .*NO_SUCH_PROPERTY"):
        OpenVINOQLSeg.from_pretrained(exported.path, {"NO_SUCH_PROPERTY": 1})
