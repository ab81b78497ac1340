"""Which label map is an image's, by their paths and names; and which are too many."""

import numpy as np
import pytest
from made_data import put, put_pairs, read_all, write

from qlseg_hf.data.datasets import open_dataset


@pytest.mark.parametrize(
    "image, mask",
    [
        ("train/{name}.png", "train_labels/{name}_L.png"),
        ("images/ISIC_00{name}.jpg", "masks/ISIC_00{name}_lesion.png"),
        ("images/top_{name}_RGBIR.png", "labels/top_{name}_noBoundary.png"),
        ("images/{name}_training.png", "masks/{name}_manual1.png"),
        ("images/{name}.png", "masks/class-{name}.png"),
        ("images/img0{name}.png", "masks/mask0{name}.png"),
        ("images/{name}.jpg", "masks/{name}.jpg___fuse.png"),  # SuperAnnotate's
        ("images/{name}.jpg", "masks/{name}m.png"),  # MaSTr1325's
    ],
)
def test_what_all_names_of_label_maps_share(tmp_path, image, mask):
    """Affixes that no list of ours knows, as of CamVid (`_L`), DRIVE (`_manual1`) and Potsdam."""
    names = ["a_1", "b_2", "ab_2"]
    for label, name in enumerate(names):
        put(tmp_path / image.format(name=name), label)
        write(tmp_path / mask.format(name=name), np.full((2, 4), label, dtype=np.uint8))
    samples = open_dataset(tmp_path, "train", val_fraction=0)
    found = {samples[i].name: samples[i].read() for i in range(3)}
    assert set(found) == {image.format(name=name) for name in names}
    assert all((label_map == picture[0, 0, 0]).all() for picture, label_map in found.values())
    assert any("with the NAME of their image" in note for note in samples.notes)
    put(tmp_path / image.format(name="c_3"), 0)  # has no label map, so nothing is guessed
    with pytest.raises(ValueError, match="4 of 4 label maps are missing"):
        open_dataset(tmp_path, "train", val_fraction=0)


@pytest.mark.parametrize(
    "image, mask",
    [
        ("{split}/images/{name}.jpg", "{split}/v2.0/labels/{name}.png"),
        ("images/10k/{split}/{name}.jpg", "labels/sem_seg/{split}/{name}.png"),
        ("images/{split}/{name}.jpg", "annotations/trimaps/{split}/{name}.png"),
        ("{split}/data/{name}.jpg", "{split}/sem_seg/{name}.png"),
    ],
)
def test_label_maps_of_another_place(tmp_path, image, mask):
    """If all images lie in one folder and all label maps in another, nothing is left to be guessed; it is told."""
    put_pairs(tmp_path, image, mask, split="train")
    put_pairs(tmp_path, image, mask, "c", split="val")
    samples = open_dataset(tmp_path, "train")
    assert len(read_all(samples)) == 2 and len(read_all(open_dataset(tmp_path, "val"))) == 1
    told = f"as {mask.format(name='a', split='train')} of {image.format(name='a', split='train')}"
    assert samples.notes == [f"label maps lie in other folders than images, {told}"]


def test_label_maps_of_several_other_places_are_not_guessed(tmp_path):
    put_pairs(tmp_path, "{name}/images/{name}.png", "{name}/masks/first.png")
    with pytest.raises(
        ValueError, match="2 of 2 label maps are missing .* or name both folders, as in layout: photos:"
    ):
        open_dataset(tmp_path, "train")
    for kind in ("v1.2", "v2.0"):
        put_pairs(tmp_path / "two", "train/pictures/{name}.jpg", f"train/{kind}/labels/{{name}}.png")
    with pytest.raises(ValueError, match="as in layout: pictures:v1.2/labels or layout: pictures:v2.0/labels"):
        open_dataset(tmp_path / "two", "train", val_fraction=0)
    assert len(read_all(open_dataset(tmp_path / "two", "train", layout="pictures:v2.0/labels", val_fraction=0))) == 2


def test_endings_of_images_in_names_of_label_maps(tmp_path):
    for shade, ending in enumerate(("jpg", "png")):
        put(tmp_path / f"images/{shade}.{ending}", 1)
        put(tmp_path / f"masks/{shade}.{ending}.png")
    assert read_all(open_dataset(tmp_path, "train", val_fraction=0)) == ["images/0.jpg", "images/1.png"]


def test_names_in_other_unicode_forms(tmp_path):
    """macOS writes an accent as a sign of its own."""
    put(tmp_path / "images/a\u0308.jpg", 1)
    put(tmp_path / "masks/\u00e4.png")
    (tmp_path / "train.txt").write_text("\u00e4\n", encoding="utf-8")
    assert read_all(open_dataset(tmp_path, "train", val_fraction=0)) == ["images/a\u0308.jpg"]


def test_names_that_differ_in_capitals(tmp_path):
    for image, mask in (("Left.JPG", "left.png"), ("RIGHT.jpg", "right_Mask.png")):
        put(tmp_path / "images" / image, 1)
        put(tmp_path / "masks" / mask)
    assert len(read_all(open_dataset(tmp_path, "train", val_fraction=0))) == 2
    put(tmp_path / "masks/LEFT.png")
    with pytest.raises(ValueError, match="images/Left.JPG in .* has 2 label maps: masks/LEFT.png, masks/left.png"):
        open_dataset(tmp_path, "train", val_fraction=0)


def test_two_label_maps_of_one_picture(tmp_path):
    put_pairs(tmp_path, "images/{name}.jpg", "masks/{name}_mask.png", "abcde")
    put(tmp_path / "masks/a_gt.png")
    with pytest.raises(
        ValueError, match="a.jpg in .* has 2 label maps: masks/a_gt.png, masks/a_mask.png; keep the one"
    ):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize("good", ["ok", "Good", "no_defect"])
def test_images_without_defects_get_no_masks_of_defects(tmp_path, good):
    """Both are numbered from 0 (BTAD)."""
    for number in range(3):
        put(tmp_path / "train" / good / f"000{number}.png", 0)
        put(tmp_path / "test" / good / f"000{number}.png", 0)
        put(tmp_path / "test" / "ko" / f"000{number}.png", 1)
        write(tmp_path / "ground_truth" / "ko" / f"000{number}.png", np.full((2, 4), 255, dtype=np.uint8))
    with pytest.raises(ValueError, match="has no split 'train'"):
        open_dataset(tmp_path, "train", val_fraction=0)
    with pytest.raises(ValueError, match="3 of 6 label maps are missing"):
        open_dataset(tmp_path, "test", val_fraction=0)
