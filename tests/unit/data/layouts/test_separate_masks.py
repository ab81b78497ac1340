"""A folder of masks for each label."""

import numpy as np
import pytest
from made_data import put, put_image, write

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
    assert layout.description.startswith("folders: masks of each label (car, road), smaller ones on top")
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


@pytest.mark.parametrize(
    "image, mask",
    [
        ("images/{name}.jpg", "masks/0000{name}_{label}.png"),  # CelebAMask-HQ
        ("images/{name}.jpg", "masks/{name}/{label}.png"),
        ("images/{name}.jpg", "masks/{name}/{name}_{label}.png"),
        ("images/x_{name}.jpg", "masks/{label}/x_{name}_{label}.png"),  # IDRiD
    ],
)
def test_labels_in_names_of_masks(tmp_path, image, mask):
    """Not united as masks of single objects are; smaller ones lie on larger ones, whatever their names."""
    disc, cup = np.zeros((6, 8), dtype=int), np.zeros((6, 8), dtype=int)
    disc[1:5, 1:7], cup[2:4, 2:4] = 1, 1
    for name in range(1, 5):
        put_image(tmp_path / image.format(name=name))
        for label, own in (("l_cup", cup), ("disc", disc))[: 1 if name == 4 else 2]:
            write(tmp_path / mask.format(name=name, label=label), (own * 255).astype(np.uint8))
    samples = open_dataset(tmp_path, "train", val_fraction=0)
    assert samples.layout.label_names == ["background", "disc", "l_cup"]
    expected = [np.where(cup, 2, disc)] * 3 + [2 * cup]
    assert len(samples) == 4
    for index in range(4):
        np.testing.assert_array_equal(samples[index].read()[1], expected[int(samples[index].name[-5]) - 1])


def test_folders_of_labels_in_each_folder_of_images(tmp_path):
    """EndoVis 2017, of which the masks of the folder that all have counted alone; of two cameras it is asked."""
    for number in range(4):
        for place, names in (("set1", ("shaft", "other")), ("set2", ("tip", "other"))):
            write(tmp_path / f"{place}/left/{number}.png", np.full((4, 4, 3), number, dtype=np.uint8))
            for name in names:
                mask = np.zeros((4, 4), dtype=np.uint8)
                mask[("other", "tip", "shaft").index(name)] = 255
                write(tmp_path / f"{place}/truth/{name}/{number}.png", mask)
            put(tmp_path / f"{place}/right/{number}.png", 9)
    samples = open_dataset(tmp_path, "train", layout="left:truth", val_fraction=0)
    assert samples.layout.label_names == ["background", "other", "shaft", "tip"]
    labels = [samples[i].read()[1][:, 0].tolist() for i in range(8)]
    assert labels == [[1, 0, 2, 0]] * 4 + [[1, 3, 0, 0]] * 4
    (tmp_path / "set1/truth").rename(tmp_path / "set1/masks")
    (tmp_path / "set2/truth").rename(tmp_path / "set2/masks")
    with pytest.raises(ValueError, match="left:masks"):
        open_dataset(tmp_path, "train", val_fraction=0)


def test_folders_that_images_have_too_are_no_labels(tmp_path):
    for name in "ab":
        put(tmp_path / f"images/s1/{name}.jpg", 9)
        for folder in ("s1", "s2"):  # images of s2 are not here
            mask = np.roll(np.eye(2, 4, dtype=np.uint8), folder == "s2", axis=1)
            write(tmp_path / f"masks/{folder}/{name}.png", mask)
    samples = open_dataset(tmp_path, "train", val_fraction=0)
    np.testing.assert_array_equal(samples[0].read()[1], np.eye(2, 4))


def test_labels_in_names_that_cannot_be_told_from_objects(tmp_path):
    """Open Images: masks/IMAGE_m0cmf2_BOX.png, which were united to one object."""
    for name in range(4):
        put(tmp_path / f"images/{name}.jpg", 9)
        for label in ("m01", "m02"):
            write(tmp_path / f"masks/{name}/{name}_{label}_f{name}{label}.png", np.eye(2, 4, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"seem to tell labels \(m01, m02\), and not single objects; put them in a"):
        open_dataset(tmp_path, "train", val_fraction=0)


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
