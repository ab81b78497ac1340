"""Supervisely's projects, as Dataset Ninja gives them: polygons with holes, bitmaps, and what is refused."""

import base64
import io
import json
import zlib

import numpy as np
import pytest
from made_data import put_image, read_first
from PIL import Image

from qlseg_hf.data.datasets import SampleError
from qlseg_hf.data.layouts import find_layout

SQUARE = [[0, 0], [4, 0], [4, 4], [0, 4]]
CLASSES = [("dog", "polygon"), ("box", "rectangle"), ("Cat", "any"), ("cow", "bitmap")]


def polygon(label, exterior, *interior):
    return {"classTitle": label, "geometryType": "polygon", "points": {"exterior": exterior, "interior": interior}}


def bitmap(label, mask, origin, **saving):
    """As Supervisely packs it: a PNG of two colours, the first of them transparent."""
    picture = Image.fromarray(np.asarray(mask, dtype=np.uint8))
    if not saving:
        picture.putpalette([0, 0, 0, 255, 255, 255])
        saving = {"transparency": 0}
    buffer = io.BytesIO()
    picture.save(buffer, format="png", **saving)
    data = base64.b64encode(zlib.compress(buffer.getvalue())).decode()
    return {"classTitle": label, "geometryType": "bitmap", "bitmap": {"data": data, "origin": origin}}


def put(root, objects, folder="train", name="a.jpg", ann="a.jpg.json", size=(8, 6)):
    (root / folder / "ann").mkdir(parents=True, exist_ok=True)
    put_image(root / folder / "img" / name, size)
    content = {"size": {"height": 6, "width": 8}, "objects": objects, "tags": [], "description": ""}
    (root / folder / "ann" / ann).write_text(json.dumps(content))
    classes = [{"title": title, "shape": shape, "id": 7, "color": "#FF0000"} for title, shape in CLASSES]
    (root / "meta.json").write_text(json.dumps({"classes": classes, "tags": []}))


def test_supervisely(tmp_path):
    """Labels in the order of meta.json, later objects on top, and through a hole what lies below is seen."""
    hole = polygon("Cat", SQUARE, [[1, 1], [3, 1], [3, 3], [1, 3]])
    box = {"classTitle": "box", "geometryType": "rectangle", "points": {"exterior": [[0, 0], [9, 9]], "interior": []}}
    low = polygon("dog", [[2, 0], [5, 0], [5, 5], [2, 5]])
    put(tmp_path, [low, hole, box, bitmap("cow", [[1, 0], [1, 1]], [6, 3])])
    put(tmp_path, [low], "val")
    put(tmp_path, [], "val", "b.jpg", "b.jpg.json")
    put(tmp_path, [], "test")
    put_image(tmp_path / "train/img/c.jpg")
    layout = find_layout(tmp_path)
    assert (layout.name, layout.ignore_index) == ("supervisely", 255)
    assert layout.label_names == ["background", "dog", "Cat", "cow"]
    assert "images: train 1, val 2" in layout.description and list(layout.splits) == ["train", "val"]
    assert layout.notes == [
        "1 objects of kind rectangle are left out; polygons and bitmaps are read",
        "1 images of test have no annotation at all, so this is no split here",
        "1 images have no shape, so all of each is background: val/img/b.jpg",
        "1 images have no annotation and are left out: train/img/c.jpg",
    ]
    expected = np.array(
        [
            [2, 2, 2, 2, 2, 1, 0, 0],
            [2, 0, 1, 1, 2, 1, 0, 0],
            [2, 0, 1, 1, 2, 1, 0, 0],
            [2, 0, 1, 1, 2, 1, 3, 0],
            [2, 2, 2, 2, 2, 1, 3, 3],
            [0, 0, 1, 1, 1, 1, 0, 0],
        ]
    )
    np.testing.assert_array_equal(read_first(tmp_path), expected)


@pytest.mark.parametrize("ann", ["a.jpg.json", "a.json"])
def test_one_folder_and_grey_bitmaps(tmp_path, ann):
    """`ds0` is no split; a bitmap without alpha is where it is not black, and may reach beyond the image."""
    put(tmp_path, [bitmap("cow", np.full((3, 3), 255), [-1, 4], optimize=True)], "ds0", ann=ann)
    expected = np.zeros((6, 8), dtype=np.int64)
    expected[4:, :2] = 2
    layout = find_layout(tmp_path)
    assert layout.label_names == ["background", "dog", "Cat", "cow"] and list(layout.splits) == ["train"]
    expected[expected == 2] = 3
    np.testing.assert_array_equal(read_first(tmp_path), expected)


@pytest.mark.parametrize(
    "thing, message",
    [
        (polygon("dog", SQUARE[:2]), "has 2 points; at least 3"),
        (polygon("dog", SQUARE, [[1, 1]]), "has 1 points; at least 3"),
        (polygon("dog", "abc"), "are no points"),
        (bitmap("cow", [[1]], [0]), "are no points"),
        (bitmap("cow", [[1]], [0, 0]) | {"bitmap": {"data": "eJ", "origin": [0, 0]}}, "cannot be unpacked"),
        (bitmap("cow", [[1]], [0, 0]) | {"bitmap": {"data": "eJw=", "origin": [0, 0]}}, "is cut off"),
    ],
)
def test_damaged_objects(tmp_path, thing, message):
    put(tmp_path, [thing])
    with pytest.raises(SampleError, match=f"train/img/a.jpg: label map: .*{message}"):
        read_first(tmp_path)


def test_what_contradicts_is_refused(tmp_path):
    put(tmp_path, [polygon("dog", SQUARE)], size=(6, 8))
    with pytest.raises(SampleError, match="picture 8 x 6, label map 6 x 8"):
        read_first(tmp_path)
    put(tmp_path, [polygon("horse", SQUARE)])
    with pytest.raises(ValueError, match="objects of class 'horse', which is not in meta.json"):
        find_layout(tmp_path)
    (tmp_path / "train/ann/a.jpg.json").write_text('{"size": {}}')
    with pytest.raises(ValueError, match="a.jpg.json must hold a list of objects"):
        find_layout(tmp_path)


def test_the_project_is_that_of_the_upper_file_of_classes(tmp_path):
    put(tmp_path / "two", [polygon("dog", SQUARE)])
    put(tmp_path / "one", [polygon("dog", SQUARE)])
    with pytest.raises(ValueError, match="one/meta.json and two/meta.json; give the folder of one project"):
        find_layout(tmp_path)
    assert find_layout(tmp_path / "two").name == "supervisely"
    (tmp_path / "meta.json").write_text('{"classes": [{"title": "dog", "shape": "polygon"}]}')
    assert find_layout(tmp_path, val_fraction=0).label_names == ["background", "dog"]


def test_names_that_differ_in_case_alone_are_told(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "CLASSES", [*CLASSES, ("DOG", "polygon")])
    put(tmp_path, [polygon("dog", SQUARE), polygon("DOG", SQUARE)])
    assert find_layout(tmp_path).notes[-1] == (
        "'dog' and 'DOG' are different labels, and their names differ in case or white space alone"
    )


def test_images_beside_folders_of_splits_are_told(tmp_path):
    put(tmp_path, [polygon("dog", SQUARE)])
    put(tmp_path, [polygon("dog", SQUARE)], "other")
    layout = find_layout(tmp_path)
    assert list(layout.splits) == ["train"]
    assert "1 images lie in no folder of a split, and are left out: other/img/a.jpg" in layout.notes


def test_tags_of_splits(tmp_path):
    """Before, they were not seen, so images came into any part."""
    tags = {"a": ["train", "sunny"], "b": ["val"], "c": ["train"]}
    for name, own in tags.items():
        put(tmp_path, [polygon("dog", SQUARE)], "ds", f"{name}.jpg", f"{name}.jpg.json")
        path = tmp_path / f"ds/ann/{name}.jpg.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tags": [{"name": tag} for tag in own]}))
    splits = find_layout(tmp_path).splits
    assert {split: [picture for picture, _ in splits[split].pairs] for split in splits} == {
        "train": ["ds/img/a.jpg", "ds/img/c.jpg"],
        "val": ["ds/img/b.jpg"],
    }
