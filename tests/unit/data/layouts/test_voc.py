"""Pascal VOC's folders, and CVAT's masks in them."""

import numpy as np
from made_data import LABELS, put_pairs, read_all
from PIL import Image

from qlseg_hf.data.datasets import open_dataset
from qlseg_hf.data.layouts import find_layout


def test_voc(tmp_path):
    put_pairs(tmp_path, "JPEGImages/{name}.jpg", "SegmentationClass/{name}.png", ["2007_000001", "2007_000002"])
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000002\n")
    (lists / "val.txt").write_text("2007_000001\n")
    layout = find_layout(tmp_path)
    assert layout.name == "voc" and len(layout.label_names) == 21 and layout.ignore_index == 255
    assert read_all(open_dataset(tmp_path, "train")) == ["JPEGImages/2007_000002.jpg"]
    put_pairs(tmp_path, "JPEGImages/{name}.jpg", "SegmentationClass/{name}.png", ["mine"])
    assert find_layout(tmp_path).label_names is None  # somebody's own pictures in VOC's layout
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:9,9,9::\n")
    assert find_layout(tmp_path).label_names == ["background", "cat"]


def test_endings_in_lists_and_label_maps_in_none(tmp_path):
    """Before, endings were refused, and who listed a part of the images was not told."""
    put_pairs(tmp_path, "JPEGImages/{name}.jpg", "SegmentationClass/{name}.png", ["a", "b c", "d"])
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("a.jpg\nb c\n")
    assert read_all(open_dataset(tmp_path, "train", val_fraction=0)) == ["JPEGImages/a.jpg", "JPEGImages/b c.jpg"]
    assert find_layout(tmp_path).notes[0] == "1 label maps are in no list of a split: SegmentationClass/d.png"


def test_what_cvat_exports_as_masks(tmp_path):
    """One list, "default", of what nobody has divided; colours of labelmap.txt, in whose order the labels stand."""
    put_pairs(tmp_path, "JPEGImages/{name}.jpg", "SegmentationClass/{name}.png", "abcdef")
    colors = [(0, 0, 0), (5, 5, 5), (0, 7, 0), (9, 0, 0)]
    rows = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in zip(("background", "car", "road", "tree"), colors)]
    (tmp_path / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *rows]))
    labels = np.where(LABELS == 255, 3, LABELS)
    for path in (tmp_path / "SegmentationClass").iterdir():
        Image.fromarray(np.array(colors, dtype=np.uint8)[labels]).save(path)
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/default.txt").write_text("\n".join("abcdef"))
    train, validation = (open_dataset(tmp_path, split) for split in ("train", "validation"))
    assert len(train) + len(validation) == 6 and train.layout.label_names == ["background", "car", "road", "tree"]
    np.testing.assert_array_equal(train[0].read()[1], labels)
