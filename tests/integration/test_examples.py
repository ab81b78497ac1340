"""The example scripts as a user runs them, in processes of their own but for the export."""

import json
import re
import runpy

import numpy as np
import pytest
import torch
from conftest import FIXTURES, ROOT
from exports import dinov2_network
from PIL import Image

from qlseg_hf import QLSegForSemanticSegmentation, QLSegImageProcessor, segment
from qlseg_hf.data.scenes import LABELS, make_scenes


@pytest.fixture
def example(server):
    """Run a script of examples/, and return what it prints."""
    return lambda name, *arguments: server.complete(ROOT / "examples" / name, *arguments, expect=0).stdout


@pytest.mark.parametrize("stored", ["b"], indirect=True)
def test_example_of_prediction(example, stored, tmp_path):
    printed = example("predict.py", stored.folder, stored.picture("wide"), tmp_path / "overlay.png")
    shares = [float(line.rpartition(": ")[2].removesuffix(" %")) for line in printed.splitlines()]
    assert len(shares) > 1 and abs(sum(shares) - 100) < 0.1 * len(shares)
    assert Image.open(tmp_path / "overlay.png").width > Image.open(stored.picture("wide")).width


@pytest.mark.parametrize("stored", ["b"], indirect=True)
@pytest.mark.parametrize("script, word", [("finetune_pytorch.py", "mIoU"), ("finetune_trainer.py", "eval_loss")])
def test_examples_of_training(example, script, word, stored, tmp_path):
    """The result loads, knows the new labels, and is not what it began with."""
    make_scenes(tmp_path / "scenes", {"training": 9, "validation": 2}, size=48, seed=0)
    printed = example(script, stored.folder, tmp_path / "scenes", tmp_path / "model", 2)
    assert word in printed
    model = QLSegForSemanticSegmentation.from_pretrained(tmp_path / "model")
    assert tuple(model.config.id2label.values()) == LABELS
    assert not torch.equal(model.pixel_encoder.level_embeddings, stored.model().pixel_encoder.level_embeddings)
    processor = QLSegImageProcessor.from_pretrained(tmp_path / "model")
    assert set(dict(processor.settings().size).values()) == {96}  # as in training, whatever that of the source was
    assert segment(model, processor, stored.picture("wide"))[0].max() < len(LABELS)


def test_example_of_export(traced_once, tmp_path, monkeypatch, capsys):
    """In this process, where the graph of this network is made once, see test_other_networks."""
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    for part in (dinov2_network(), QLSegImageProcessor(size=64, window_size=64, window_stride=48)):
        part.save_pretrained(tmp_path / "model")
    words = ("export.py", tmp_path / "model", tmp_path / "model.onnx", FIXTURES / "b" / "wide.png")
    monkeypatch.setattr("sys.argv", [*map(str, words)])
    runpy.run_path(str(ROOT / "examples" / "export.py"), run_name="__main__")
    assert float(capsys.readouterr().out.split(" %")[0]) > 99.9


def test_examples_are_short():
    """A user reads them; the demo is a program."""
    paths = set((ROOT / "examples").glob("*.py")) - {ROOT / "examples" / "demo.py"}
    assert len(paths) > 3
    for path in paths:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 60, path


def test_demo(server, tmp_path):
    pytest.importorskip("cv2")
    done = server.complete(ROOT / "examples" / "demo.py", "--output", tmp_path, "--max_steps", "12", expect=0)
    found = re.search(r"6. mIoU on held-out scenes: (\d+\.\d) % before, (\d+\.\d) % after", done.stdout)
    evaluations = (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()
    assert found[2] == f"{100 * json.loads(evaluations[-1])['miou']:.1f}" != found[1]
    assert 0 < float(found[1]) < 10 and float(found[2]) > 0  # new labels start from drawn queries
    printed = re.split(r"[\r\n]+", done.stdout + done.stderr)  # bars count as a line whenever they are drawn
    assert len(printed) <= 40 and not re.search("Warning|Loading weights|Writing model", done.stderr), printed
    assert [line[:2] for line in done.stdout.splitlines() if line[0].isdigit()] == [f"{n}." for n in range(1, 7)]
    assert "class 7" in done.stdout and (tmp_path / "overlay.png").stat().st_size > 2000
    assert torch.tensor(np.asarray(Image.open(tmp_path / "overlay.png"))).float().std() > 10
