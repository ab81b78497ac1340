"""LabelMe's files, and those of X-AnyLabeling: what is drawn, and what is refused."""

import base64
import io
import json

import numpy as np
import pytest
from made_data import put_image, read_first
from PIL import Image

from qlseg_hf.data.datasets import SampleError, open_dataset
from qlseg_hf.data.layouts import find_layout

CORNERS = [[0, 0], [3, 0], [3, 3], [0, 3]]


def shape(label, points, kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, **more}


def put_labelme(root, name, shapes, folder=""):
    put_image(root / folder / f"{name}.jpg")
    content = {"version": "5.4", "shapes": shapes, "imagePath": f"{name}.jpg", "imageData": None}
    (root / folder / f"{name}.json").write_text(json.dumps(content | {"imageHeight": 6, "imageWidth": 8}))


def test_labelme(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 2), 255, dtype=np.uint8)).save(buffer, format="png")
    drawn = shape("cow", [[6, 4], [7, 5]], "mask", mask=base64.b64encode(buffer.getvalue()).decode())
    hole = shape("_background_", [[1, 1], [2, 2]], "rectangle")
    shapes = [shape("dog", CORNERS), hole, drawn, shape("__ignore__", [[6, 0], [7, 1]], "rectangle")]
    put_labelme(tmp_path, "a", [*shapes, shape("cat", [[0, 0], [1, 1]], "line")], "train")
    put_labelme(tmp_path, "b", [shape("ant", CORNERS), shape("dog", CORNERS)], "val")
    put_image(tmp_path / "train/c.jpg")
    layout = find_layout(tmp_path)
    assert layout.name == "labelme" and layout.label_names == ["background", "ant", "cow", "dog"]
    assert layout.notes == [
        "1 shapes of kind line have no inside and are left out",
        "1 images have no annotation and are left out: train/c.jpg",
    ]
    expected = np.zeros((6, 8), dtype=np.int64)
    expected[:4, :4], expected[1:3, 1:3], expected[4:, 6:], expected[:2, 6:] = 3, 0, 2, 255
    np.testing.assert_array_equal(read_first(tmp_path), expected)
    assert read_first(tmp_path, "val")[0, 0] == 3  # the later over the earlier
    assert len(open_dataset(tmp_path, "train")) == 1


def test_splits_by_words_in_folders(tmp_path):
    for folder, names in (("train_data", "ab"), ("val_data", "c")):
        for name in names:
            put_labelme(tmp_path, name, [shape("dog", CORNERS)], folder)
    assert {split: len(own) for split, own in find_layout(tmp_path).splits.items()} == {"train": 2, "val": 1}


def test_rectangles_of_x_anylabeling_and_files_without_size(tmp_path):
    """It writes four corners; LabelMe did not write the image's size before version 4."""
    turned = shape("dog", [[6, 0], [7, 0], [7, 1], [6, 1]], "rotation")
    put_labelme(tmp_path, "a", [shape("cat", CORNERS, "rectangle"), turned], "train")
    (path,) = (tmp_path / "train").glob("*.json")
    content = json.loads(path.read_text())
    for size in ({"imageHeight": 6, "imageWidth": 8}, {"imageHeight": None, "imageWidth": None}):
        path.write_text(json.dumps(content | size))
        expected = np.zeros((6, 8), dtype=np.int64)
        expected[:4, :4], expected[:2, 6:] = 1, 2
        np.testing.assert_array_equal(read_first(tmp_path, val_fraction=0), expected)


def test_labelme_of_renamed_files(tmp_path):
    """Their JSON may still tell the name that another image has now."""
    for number, name in enumerate("ab"):
        put_image(tmp_path / f"images/{name}.jpg")
        shape = {"label": name, "points": [[0, 0], [4, 0], [4, 4]], "shape_type": "polygon"}
        content = {"shapes": [shape], "imagePath": f"{'ba'[number]}.jpg", "imageHeight": 6, "imageWidth": 8}
        (tmp_path / "json").mkdir(exist_ok=True)
        (tmp_path / f"json/{name}.json").write_text(json.dumps(content))
    samples = open_dataset(tmp_path, "train", val_fraction=0)
    assert {samples[i].name: set(samples[i].label_map.labels()) for i in range(2)} == {
        "images/a.jpg": {"a"},
        "images/b.jpg": {"b"},
    }


def test_images_in_no_folder_of_a_split_are_told(tmp_path):
    """They were taken for "train" before, and the images of the folder of that name were lost."""
    for name, folder in (("a", "train"), ("b", "other"), ("c", "other")):
        put_labelme(tmp_path, name, [shape("dog", CORNERS)], folder)
    layout = find_layout(tmp_path)
    assert "images: train 1" in layout.description
    assert "2 images lie in no folder of a split, and are left out: other/b.jpg, other/c.jpg" in layout.notes


@pytest.mark.parametrize(
    "shapes, message",
    [
        ([shape("x", [[0, 0], [1, 1]])], "has 2 points; at least 3"),
        ([shape("x", [[0, 0]], "rectangle")], "has 1 points; 2 are wanted"),
        ([shape("x", "abc")], "are no points"),
        ([shape("x", [[0, 0], [1, float("inf")], [1, 1]])], "are no points"),
        ([shape("x", [[0, 0], [1, 1]], "mask", mask="????")], "cannot be read as a picture"),
    ],
)
def test_damaged_shapes(tmp_path, shapes, message):
    put_labelme(tmp_path, "a", shapes)
    with pytest.raises(SampleError, match=f"a.jpg: label map: .*{message}"):
        read_first(tmp_path)


def test_labelme_and_masks_made_of_it(tmp_path):
    put_labelme(tmp_path, "a", [shape("x", CORNERS)], "images")
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.zeros((6, 8), dtype=np.uint8)).save(tmp_path / "masks/a.png")
    with pytest.raises(
        ValueError, match="can be read in 2 ways: labelme .*folders .*layout: labelme or layout: folders"
    ):
        open_dataset(tmp_path, "train")
    assert read_first(tmp_path, layout="labelme")[0, 0] == 1
    assert read_first(tmp_path, layout="folders")[0, 0] == 0
    (tmp_path / "images/a.json").write_text('{"shapes": [{"points": []}]}')
    with pytest.raises(ValueError, match="a.json cannot be read: the shape .* has no label"):
        open_dataset(tmp_path, "train", layout="labelme")


def test_lists_of_labelme(tmp_path):
    """Before, images of no list were left out without a word, and CSV files were not seen."""
    for name in "abcd":
        put_labelme(tmp_path, name, [shape("dog", CORNERS)])
    for split, name in (("train", "a"), ("val", "b"), ("test", "c")):
        (tmp_path / f"{split}.csv").write_text(f"image,age\n{name}.jpg,3\n")
    layout = find_layout(tmp_path)
    assert {split: samples.pairs for split, samples in layout.splits.items()} == {
        split: [(f"{name}.jpg", f"{name}.json")] for split, name in (("test", "c"), ("train", "a"), ("val", "b"))
    }
    assert "1 images are in no list of a split: d.jpg" in layout.notes
