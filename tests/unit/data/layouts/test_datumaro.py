"""Datumaro's files: polygons and masks, and what is refused."""

import json

import numpy as np
import pytest
from made_data import put_image, read_first

from qlseg_hf.data.datasets import SampleError
from qlseg_hf.data.layouts import find_layout

SQUARE = [0, 0, 3, 0, 3, 3, 0, 3]


def annotation(kind, label, **more):
    return {"id": 0, "type": kind, "label_id": label, "z_order": 0, "attributes": {}, **more}


def put(root, items, split="train", labels=("road", "car")):
    for name in items:
        put_image(root / "images" / split / f"{name}.jpg")
    entries = [
        {"id": name, "annotations": own, "image": {"path": f"{name}.jpg", "size": [6, 8]}}
        for name, own in items.items()
    ]
    names = [{"name": name, "parent": "", "attributes": []} for name in labels]
    (root / "annotations").mkdir(exist_ok=True)
    content = {"info": {}, "categories": {"label": {"labels": names}}, "items": entries}
    (root / f"annotations/{split}.json").write_text(json.dumps(content))


def test_datumaro(tmp_path):
    area = np.zeros((6, 8), dtype=bool)
    area[2:5, 2:7] = True
    runs = np.flatnonzero(np.diff(np.concatenate([[0], area.T.ravel(), [0]])))
    counts = np.diff([0, *runs, 48]).tolist()
    high = annotation("polygon", 1, points=SQUARE, z_order=1)
    low = annotation("mask", 0, rle={"counts": counts, "size": [6, 8]})
    put(tmp_path, {"a": [high, low, annotation("bbox", 1, bbox=[0, 0, 9, 9])], "b": []})
    put(tmp_path, {"c": [low]}, "val")
    layout = find_layout(tmp_path)
    assert (layout.name, layout.label_names, layout.ignore_index) == ("datumaro", ["background", "road", "car"], 255)
    assert layout.notes == [
        "1 annotations of kind bbox are left out; polygons and masks are read",
        "1 images have no shape, so all of each is background: images/train/b.jpg",
    ]
    expected = area.astype(np.int64)
    expected[:4, :4] = 2
    np.testing.assert_array_equal(read_first(tmp_path), expected)
    np.testing.assert_array_equal(read_first(tmp_path, "val"), area)


def test_cvats_default_is_divided(tmp_path):
    put(tmp_path, {f"n{i}": [annotation("polygon", 0, points=SQUARE)] for i in range(12)}, "default")
    assert list(find_layout(tmp_path).splits) == ["train", "validation"]


def test_what_is_refused(tmp_path):
    put(tmp_path, {"a": [annotation("polygon", 2, points=SQUARE)]})
    with pytest.raises(ValueError, match="an annotation of a has label_id 2 of 2 labels"):
        find_layout(tmp_path)
    put(tmp_path, {"a": [annotation("mask", 0, rle={"counts": [0, 48], "size": [8, 6]})]})
    with pytest.raises(SampleError, match=r"a mask of 'road' has size \[8, 6\], and the image \[6, 8\]"):
        read_first(tmp_path)
    put(tmp_path, {"a": [annotation("mask", 0, rle={"counts": [0, 47], "size": [6, 8]})]})
    with pytest.raises(SampleError, match="do not add up"):
        read_first(tmp_path)
    put(tmp_path, {"b": [annotation("polygon", 0, points=SQUARE)]}, "val", labels=("car", "road"))
    with pytest.raises(ValueError, match="have different labels; they must agree, in order too"):
        find_layout(tmp_path)
    (tmp_path / "annotations/val.json").unlink()
    (tmp_path / "images/train/a.jpg").unlink()
    with pytest.raises(ValueError, match="1 of 1 images of annotations/train.json are missing in .*: a.jpg"):
        find_layout(tmp_path)
