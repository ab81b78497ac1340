"""A part that is held out: stable, with rare labels in both parts; and images that two splits share."""

import numpy as np
import pytest
from PIL import Image

from qlseg_hf.data.datasets import open_dataset
from qlseg_hf.data.layouts import find_layout
from qlseg_hf.data.layouts.splits import place_of


def put(root, name, value=0, shade=0):
    for folder, array in (("images", np.full((2, 2, 3), shade)), ("masks", np.full((2, 2), value))):
        path = root / folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array.astype(np.uint8)).save(path)


def names_of(root, split, **settings):
    samples = open_dataset(root, split, **settings)
    return {samples[index].name for index in range(len(samples))}


def test_parts_stay_when_images_are_added(tmp_path):
    for i in range(60):
        put(tmp_path, f"sub{i % 3}/n{i}")
    before = names_of(tmp_path, "validation")
    assert 3 < len(before) < 25 and not before & names_of(tmp_path, "train")
    for i in range(60, 120):
        put(tmp_path, f"sub{i % 3}/n{i}")
    after = names_of(tmp_path, "validation")
    assert {name for name in after if int(name.split("/n")[1][:-4]) < 60} == before
    assert after == {name for name in after | names_of(tmp_path, "train") if place_of(name) < 0.2}


@pytest.mark.parametrize("rare", [("n0", "n1"), ("n3", "n17"), ("n5", "n6", "n7")])
def test_rare_labels_are_in_both_parts(tmp_path, rare):
    for i in range(40):
        put(tmp_path, f"n{i}", value=9 if f"n{i}" in rare else i % 2)
    for split in ("train", "validation"):
        samples = open_dataset(tmp_path, split)
        assert 9 in {int(samples[i].read()[1].max()) for i in range(len(samples))}


@pytest.mark.parametrize("number", [5, 6, 9])
@pytest.mark.parametrize("prefix", "abcdef")
def test_each_part_has_an_image(tmp_path, number, prefix):
    for i in range(number):
        put(tmp_path, f"{prefix}{i}", value=i)  # no label that two images have moves any
    assert names_of(tmp_path, "train") and names_of(tmp_path, "val")


def test_too_few_and_wrong_fractions(tmp_path):
    for i in range(4):
        put(tmp_path, f"n{i}")
    assert len(names_of(tmp_path, "train")) == 4
    with pytest.raises(
        ValueError, match="has no split 'val'; it has train; 4 images are too few for val_fraction 0.2"
    ):
        open_dataset(tmp_path, "val")
    assert len(names_of(tmp_path, "val", val_fraction=0.5)) in (1, 2, 3)
    for fraction in (1, -0.1, 20):
        with pytest.raises(ValueError, match="must be at least 0 and less than 1"):
            open_dataset(tmp_path, "train", val_fraction=fraction)


def test_a_training_split_alone_is_divided_and_a_test_split_alone_is_not(tmp_path):
    for i in range(30):
        put(tmp_path / "one", f"train/n{i}")
        put(tmp_path / "two", f"test/n{i}")
        put(tmp_path / "three", f"train/n{i}")
    put(tmp_path / "three", "test/x")
    layout = find_layout(tmp_path / "one")
    assert (
        list(layout.splits) == ["train", "validation"]
        and "there is no validation split beside train" in layout.description
    )
    with pytest.raises(ValueError, match="no split 'train'; it has test"):
        open_dataset(tmp_path / "two", "train")
    layout = find_layout(tmp_path / "three")
    assert len(layout.splits["train"]) == 30 and layout.notes == [
        "there is no validation split, so test stands in for it"
    ]


def test_copies_of_one_roboflow_image_stay_together():
    assert (
        place_of("train/a_jpg.rf.0011aabb.jpg")
        == place_of("train/a_jpg.rf.ffee0011.jpg")
        != place_of("train/b_jpg.rf.1.jpg")
    )
    assert place_of("images/a.jpg") == place_of("images/a.PNG") != place_of("images/b.jpg")
