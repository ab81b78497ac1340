"""YOLO's text files: what is drawn, and what is refused."""

import numpy as np
import pytest
from made_data import put_image, write
from PIL import Image

from qlseg_hf.data.datasets import open_dataset
from qlseg_hf.data.layouts import find_layout


def put_yolo(root, lines, split="train", image="images/{split}/{name}.jpg"):
    """An image for each name in `lines`, with a text file of these lines unless they are None."""
    for name, text in lines.items():
        path = root / image.format(split=split, name=name)
        put_image(path)
        target = root / image.replace("images", "labels").format(split=split, name=name)
        if text is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.with_suffix(".txt").write_text(text)


@pytest.mark.parametrize("image", ["images/{split}/{name}.jpg", "{split}/images/{name}.jpg"])
def test_yolo(tmp_path, image):
    """Shares of the sides; smaller polygons on larger ones, in any order; classes from 0 become labels from 1."""
    small, large = "1 .25 .34 .26 .34 .26 .36\n", "0 0 0 .5 0 .5 .5 0 .5\n"
    put_yolo(tmp_path, {"a": small + large, "b": "", "c": None, "d": "0 .5 .5 .2 .2\n"}, "train", image)
    put_yolo(tmp_path, {"e": large}, "valid", image)
    put_yolo(tmp_path, {"f": None}, "test", image)
    with pytest.raises(ValueError, match="names no classes; a data.yaml with names"):
        find_layout(tmp_path)
    (tmp_path / "data.yaml").write_text("train: ../train/images\nnc: 2\nnames: {0: cat, 1: dog}\n")
    layout = find_layout(tmp_path)
    assert (layout.name, layout.label_names, layout.ignore_index) == ("yolo", ["background", "cat", "dog"], 255)
    assert list(layout.splits) == ["train", "valid"]
    assert [note.split(",")[0] for note in layout.notes] == [
        "1 lines of text files are boxes",
        "1 images of test have no text files at all",
        "1 images have no text file",
    ]
    expected = np.zeros((6, 8), dtype=np.int64)
    expected[:4, :5], expected[2, 2] = 1, 2
    train = open_dataset(tmp_path, "train")
    np.testing.assert_array_equal(train[0].read()[1], expected)
    assert [train[i].read()[1].any() for i in range(4)] == [True, False, False, False]
    (tmp_path / "data.yaml").write_text("names: [cat]\n")
    with pytest.raises(ValueError, match="polygons of class 1, and data.yaml names 1 classes"):
        find_layout(tmp_path)


def test_yolo_of_an_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    put_yolo(tmp_path, {"a": "0 0 0 1 0 1 .4 0 .4\n"})
    Image.new("RGB", (8, 6)).save(tmp_path / "images/train/a.jpg", exif=exif)
    (tmp_path / "data.yaml").write_text("names: [cat]\n")
    picture, label_map = open_dataset(tmp_path, "train", val_fraction=0)[0].read()
    assert label_map.shape == picture.shape[:2] == (8, 6)
    assert label_map[:4].all() and not label_map[4:].any()


@pytest.mark.parametrize("line", ["0 0 0 1 0 1 1 0", "-1 0 0 1 0 1 1", "0 0 0 5 0 5 5", "cat 0 0 1 0 1 1", "0 0 0"])
def test_damaged_lines_of_yolo(tmp_path, line):
    put_yolo(tmp_path, {"a": "0 0 0 1 0 1 1\n", "b": f"\n{line}\n"})
    (tmp_path / "data.yaml").write_text("names: [cat]\n")
    with pytest.raises(ValueError, match=r"line 2 of .*b.txt is .*; a class and shares x y x y x y \.\.\. are wanted"):
        find_layout(tmp_path)


def test_text_files_that_are_not_yolos(tmp_path):
    """Boxes alone, or anything else, beside label maps are in nobody's way."""
    put_yolo(tmp_path, {"a": "0 .5 .5 .2 .2\n", "b": "0 .5 .5 .2 .2\n"})
    for name in "ab":
        write(tmp_path / f"masks/train/{name}.png", np.zeros((6, 8), dtype=np.uint8))
    assert find_layout(tmp_path).name == "folders"
    (tmp_path / "labels/train/a.txt").write_text("a photo of a cat")
    assert find_layout(tmp_path).name == "folders"
