"""A folder of masks for each label."""

import numpy as np
import pytest
from made_data import put, write

from qlseg_hf.data.datasets import open_dataset
from qlseg_hf.data.layouts import find_layout


def test_a_folder_of_masks_for_each_label(tmp_path):
    labels = np.array([[0, 1, 1, 2], [2, 2, 0, 0]])
    for split, names in (("train", "ab"), ("val", "c")):
        for name in names:
            put(tmp_path / f"images/{split}/{name}.jpg", 9)
            for label, folder in ((1, "car"), (2, "road")):
                write(tmp_path / f"masks/{folder}/{split}/{name}.png", ((labels == label) * 255).astype(np.uint8))
    put(tmp_path / "images/train/z.jpg", 9)
    (tmp_path / "images/train/a.txt").write_text("a photograph")
    (tmp_path / "masks/car/train/b.png").unlink()
    layout = find_layout(tmp_path)
    assert layout.label_names == ["background", "car", "road"] and layout.ignore_index == 255
    assert layout.description.startswith("folders: a folder of masks for each label (car, road)")
    assert layout.notes == ["1 images have no mask at all, and are left out: images/train/z.jpg"]
    train = open_dataset(tmp_path, "train")
    assert len(train) == 2
    np.testing.assert_array_equal(train[0].read()[1], labels)
    np.testing.assert_array_equal(train[1].read()[1], np.where(labels == 1, 0, labels))
    np.testing.assert_array_equal(open_dataset(tmp_path, "val")[0].read()[1], labels)
    write(tmp_path / "masks/car/val/c.png", labels.astype(np.uint8))  # more than a mask
    with pytest.raises(ValueError, match="label maps are missing"):
        open_dataset(tmp_path, "val")
    for name in ("a", "b"):  # masks of the same
        write(tmp_path / f"masks/car/train/{name}.png", (labels == 2).astype(np.uint8))
    (tmp_path / "masks/car/val/c.png").unlink()
    with pytest.raises(ValueError, match="car and road show the same, as masks of two people do"):
        find_layout(tmp_path)


def test_a_label_that_is_called_as_a_split(tmp_path):
    """Its masks alone were read as label maps."""
    labels = np.array([[0, 1, 1, 2], [2, 2, 0, 0]])
    for name in "ab":
        put(tmp_path / f"images/{name}.jpg", 9)
        for label, folder in ((1, "bus"), (2, "train")):
            write(tmp_path / f"masks/{folder}/{name}.png", ((labels == label) * 255).astype(np.uint8))
    samples = open_dataset(tmp_path, "train", val_fraction=0)
    assert samples.layout.label_names == ["background", "bus", "train"]
    np.testing.assert_array_equal(samples[0].read()[1], labels)
    for path in (tmp_path / "masks/bus").iterdir():
        path.unlink()
    assert [name for name, _ in open_dataset(tmp_path, "train", val_fraction=0).pairs] == [
        "images/a.jpg",
        "images/b.jpg",
    ]
