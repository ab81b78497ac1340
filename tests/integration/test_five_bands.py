"""A network of five bands from TIFFs of 16 bits: measured, trained, loaded, evaluated, segmented, exported."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from programs import NETWORK, make_data, write_recipe
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

from qlseg_hf import QLSegForSemanticSegmentation, QLSegImageProcessor, load_label_map, segment
from qlseg_hf.data import open_dataset
from qlseg_hf.data.bands import measure_bands

tifffile = pytest.importorskip("tifffile")


@pytest.fixture(scope="module")
def trained(server, tmp_path_factory) -> tuple[Path, Path]:
    """Data and the run that was trained on it."""
    folder = tmp_path_factory.mktemp("five")
    make_data(folder / "data", num_bands=5)
    found = measure_bands(open_dataset(folder / "data", "train"), progress=False)
    assert (found.num_channels, found.dtype, found.num_pictures) == (5, "uint16", 9)
    network = copy.deepcopy(NETWORK)
    network["backbone_config"]["num_channels"] = found.num_channels
    changes = {"config": network, "processor": found.processor_settings, "photometric": True, "max_steps": 60}
    changes |= {"eval_steps": 60, "save_steps": 60, "learning_rate": 4e-3, "log_pictures": 2}
    server.complete("train", write_recipe(folder, folder / "data", **changes), expect=0)
    return folder / "data", folder / "run" / "best"


def test_run_learns_from_the_fifth_band(trained):
    data, folder = trained
    model = QLSegForSemanticSegmentation.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    assert model.config.backbone_config.num_channels == 5 == processor.settings().num_channels
    assert processor.rescale_factor == 1 / 65535
    (step,) = {path.name.split("-")[1] for path in (folder.parent / "overlays").iterdir()}
    overlay = np.asarray(Image.open(folder.parent / "overlays" / f"step-{step}-0.png"))
    assert len(np.unique(overlay[:36, :45].reshape(-1, 3), axis=0)) > 50  # not cut to black, not grey
    right = []
    for sample in open_dataset(data, "validation"):
        (found,) = segment(model, processor, str(sample.picture))
        right.append((found.numpy() == sample.read_label_map()).mean())
    assert np.mean(right) > 0.6, right  # chance is a third


def test_commands(server, trained, tmp_path):
    data, folder = trained
    picture = data / "images" / "validation" / "0.tif"
    server.complete("predict", folder, picture, "--output", tmp_path / "out", expect=0)
    stored = load_label_map(tmp_path / "out" / "labels" / "0.png")
    model, processor = (
        AutoModelForSemanticSegmentation.from_pretrained(folder),
        QLSegImageProcessor.from_pretrained(folder),
    )
    expected = segment(model, processor, picture)[0]
    assert np.array_equal(stored, expected)
    server.complete("evaluate", folder, "--data", data, "--output", tmp_path / "result.json", expect=0)
    assert json.loads((tmp_path / "result.json").read_text())["num_pictures"] == 3
    for part in pipeline("image-segmentation", model=str(folder))(tifffile.imread(picture)):
        label = model.config.label2id[part["label"]]
        assert np.array_equal(np.asarray(part["mask"]) > 0, expected.numpy() == label)
    tifffile.imwrite(tmp_path / "four.tif", np.zeros((36, 45, 4), np.uint16), photometric="minisblack")
    done = server.complete("predict", folder, tmp_path / "four.tif", "--output", tmp_path / "four", expect=3)
    failures = (tmp_path / "four" / "failures.jsonl").read_text()
    assert "four.tif of shape (36, 45, 4) has no axis of 5 channels" in failures and "Traceback" not in done.stderr
