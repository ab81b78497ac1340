"""Mapillary Vistas, of one version or two, found by its JSON file of names."""

import json

import numpy as np
import pytest
from made_data import put_image
from PIL import Image

from qlseg_hf.data.datasets import open_dataset
from qlseg_hf.data.layouts import find_layout

STORED = np.array([[0, 1, 2, 2]] * 3, dtype=np.uint8)


def put(root, version="v2.0", names=("animal--bird", "object--pole", "void--unlabeled"), readable=None):
    """Two images for training, one for validation, one without label maps; labels in a palette."""
    readable = readable or [name.partition("--")[2].title() for name in names]
    labels = [{"name": name, "readable": text, "evaluate": True} for name, text in zip(names, readable)]
    (root / (f"config_{version}.json" if version else "config.json")).write_text(json.dumps({"labels": labels}))
    for split, own in (("training", "ab"), ("validation", "c"), ("testing", "d")):
        for name in own:
            put_image(root / split / "images" / f"{name}.jpg", (4, 3))
            for kind in ("labels", "instances", "panoptic") if split != "testing" else ():
                path = root / split / version / kind / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture = Image.fromarray(STORED if kind == "labels" else STORED * 9)
                picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
                picture.save(path)


@pytest.mark.parametrize("version", ["v2.0", "v1.2", ""])
def test_one_version(tmp_path, version):
    put(tmp_path, version)
    layout = find_layout(tmp_path)
    assert (layout.name, layout.label_names, layout.ignore_index) == ("mapillary-vistas", ["Bird", "Pole"], 255)
    assert layout.label_mapping == {0: 0, 1: 1, 2: 255}
    assert "images: training 2, validation 1" in layout.description
    assert layout.notes == ["1 images of testing have no label maps at all, so this is no split here"]
    np.testing.assert_array_equal(open_dataset(tmp_path, "train")[1].read()[1], STORED)


def test_the_newest_version_counts(tmp_path):
    put(tmp_path, "v1.2")
    put(tmp_path, "v2.0", ("void--unlabeled", "a--x", "b--x"))  # as numbered by the file, wherever void stands
    layout = find_layout(tmp_path)
    assert layout.label_names == ["a--x", "b--x"] and layout.label_mapping == {0: 255, 1: 0, 2: 1}
    assert layout.notes[0] == "config_v1.2.json is left out; layout: images:v1.2/labels reads it, without names"
    assert len(open_dataset(tmp_path, "train", layout="images:v1.2/labels")) == 2


def test_what_is_missing_is_told(tmp_path):
    put(tmp_path)
    (tmp_path / "training/v2.0/labels/a.png").unlink()
    with pytest.raises(ValueError, match="1 of 2 label maps are missing in .*: training/v2.0/labels/a.png"):
        open_dataset(tmp_path, "train")
    (tmp_path / "config_v2.0.json").write_text("{")
    with pytest.raises(ValueError, match="config_v2.0.json cannot be read"):
        find_layout(tmp_path)
