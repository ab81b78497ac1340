"""Layouts as public data sets have them: several masks for one image, persons' folders, names that differ in zeros."""

import json

import numpy as np
import pytest
from PIL import Image

from qlseg_hf.data.datasets import SampleError, open_dataset
from qlseg_hf.data.layouts import find_layout

SIZE = (12, 16)


def mask_of(number, offset=0):
    """(H, W) uint8 of 0 and 255: a square at a place that the number tells."""
    mask = np.zeros(SIZE, dtype=np.uint8)
    top, left = divmod(number, 4)
    mask[4 * top : 4 * top + 3, 4 * left + offset : 4 * left + 3 + offset] = 255
    return mask


def put(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def put_image(path, shade):
    put(path, np.full((*SIZE, 3), shade, dtype=np.uint8))


def label_maps(root, **settings):
    """{shade of the image: label map} of all images."""
    samples = open_dataset(root, "train", val_fraction=0, **settings)
    pairs = [samples[index].read() for index in range(len(samples))]
    return {int(picture[0, 0, 0]): label_map for picture, label_map in pairs}


@pytest.mark.parametrize(
    "image, mask",
    [
        ("{name}/images/{name}.png", "{name}/masks/f{key}.png"),  # Data Science Bowl 2018
        ("stage1_train/{name}/images/{name}.png", "stage1_train/{name}/masks/f{key}.png"),
        ("images/{name}.png", "masks/{name}/{key}.png"),
        ("images/{name}.png", "masks/{name}_mask_{key}.png"),
        ("good ({name}).png", "good ({name})_mask_{key}.png"),  # BUSI
    ],
)
def test_a_mask_for_each_object(tmp_path, image, mask):
    objects = {10: [0], 11: [1, 2], 12: [3, 5, 7]}
    for name, numbers in objects.items():
        put_image(tmp_path / image.format(name=name), name)
        for number in numbers:
            put(tmp_path / mask.format(name=name, key=100 * name + number), mask_of(number))
    found = label_maps(tmp_path)
    assert {name: (label_map == sum(map(mask_of, objects[name]))).all() for name, label_map in found.items()} == {
        name: True for name in objects
    }
    notes = open_dataset(tmp_path, "train", val_fraction=0).notes
    assert any(
        note.startswith("2 images have several masks, one for each object, which are put together") for note in notes
    )
    put(tmp_path / mask.format(name=11, key=1109), mask_of(1, offset=0))  # again, by another hand
    put(tmp_path / mask.format(name=11, key=1108), mask_of(2, offset=0))
    with pytest.raises(SampleError, match="show the same, as masks of two people do; keep one of them"):
        label_maps(tmp_path)


def test_numbered_masks_that_are_no_objects(tmp_path):
    for name in (1, 2):
        put_image(tmp_path / f"images/{name}.png", name)
        for number in (1, 2):  # of each image the same, as of labels
            put(tmp_path / f"masks/{name}_mask_{number}.png", mask_of(number))
    with pytest.raises(
        ValueError, match="images/1.png in .* has 2 label maps: masks/1_mask_1.png, masks/1_mask_2.png; keep"
    ):
        label_maps(tmp_path)
    put(tmp_path / "masks/2_mask_3.png", mask_of(3) // 2)
    with pytest.raises(SampleError, match="hold several labels, so they cannot be put together"):
        label_maps(tmp_path)


@pytest.mark.parametrize("person", ["annotator{}", "Expert_{}", "reader-{}"])
def test_folders_of_people_are_no_labels(tmp_path, person):
    """What two people see may differ so much that their masks hardly overlap."""
    for name in range(4):
        put_image(tmp_path / f"images/{name}.png", name)
        for number in (1, 2):
            put(tmp_path / f"masks/{person.format(number)}/{name}.png", mask_of(name + number))
    with pytest.raises(
        ValueError, match=f"{person.format(1)}, {person.format(2)} are called as people, and no labels; say"
    ):
        find_layout(tmp_path)
    assert (label_maps(tmp_path, layout=f"images:masks/{person.format(2)}")[3] == mask_of(5)).all()


@pytest.mark.parametrize(
    "image, mask",
    [
        ("{split}_x/{name}.png", "{split}_y/{name}.png"),
        ("X_{split}/{name}.png", "y_{split}/{name}.png"),
        ("images/{split}/{name}.png", "masks/{split}/0000{name}.png"),
        ("images/{split}/img_{name}.png", "masks/{split}/mask_00{name}.png"),
    ],
)
@pytest.mark.parametrize("held", ["val", "eval", "holdout"])
def test_names_of_folders_and_numbers(tmp_path, image, mask, held):
    for split, names in (("train", (1, 2, 3)), (held, (10, 11))):
        for name in names:
            put_image(tmp_path / image.format(split=split, name=name), name)
            put(tmp_path / mask.format(split=split, name=name), mask_of(name % 9))
    found = {}
    for split, count in (("train", 3), ("validation", 2)):
        samples = open_dataset(tmp_path, split)
        assert len(samples) == count
        for index in range(count):
            picture, label_map = samples[index].read()
            found[int(picture[0, 0, 0])] = label_map
    assert all((label_map == mask_of(name % 9)).all() for name, label_map in found.items())


@pytest.mark.parametrize("images, masks", [("1 2 3", "01 001 02 03"), ("One Two", "one ONE two")])
def test_masks_of_one_name_are_no_objects(tmp_path, images, masks):
    """Their names differ in capitals and zeros alone."""
    for name in images.split():
        put_image(tmp_path / f"images/{name}.png", 1)
    for place, name in enumerate(masks.split()):
        put(tmp_path / f"masks/{name}.png", mask_of(place))
    with pytest.raises(ValueError, match="has 2 label maps: masks/"):
        label_maps(tmp_path)


@pytest.mark.parametrize(
    "image, mask", [("{0}/camera/f{1}.png", "{0}/camera_label_id/f{1}.png"), ("images/{0}/{1}.png", "masks/{1}.png")]
)
def test_label_maps_in_fewer_folders_than_images(tmp_path, image, mask):
    """As RELLIS-3D's: what is left of the paths is the same but for a folder of images alone."""
    for name in range(6):
        put_image(tmp_path / image.format(name % 2, name), name)
        put(tmp_path / mask.format(name % 2, name), mask_of(name))
    found = label_maps(tmp_path)
    assert len(found) == 6 and all((label_map == mask_of(name)).all() for name, label_map in found.items())
    put_image(tmp_path / image.format(1, 0), 9)  # a name that is there twice
    put(tmp_path / mask.format(1, 8), mask_of(8))
    with pytest.raises(ValueError, match="[17] of 7 label maps are missing"):
        label_maps(tmp_path)


def test_label_maps_in_a_folder_of_their_label(tmp_path):
    """One for each image, so that the folder alone tells which label it is."""
    for name in range(4):
        put_image(tmp_path / f"images/{name}.jpg", name)
        put(tmp_path / f"masks/{'dog' if name % 2 else 'cat'}/{name}.png", mask_of(name))
    with pytest.raises(
        ValueError, match="4 of 4 label maps are missing .*, or lay out images and masks in the same sub-folders"
    ):
        label_maps(tmp_path)


@pytest.mark.parametrize(
    "image, mask",
    [("stare-images/{0}.png", "labels-{1}/{0}.{1}.png"), ("{2}/camera/{0}.png", "{2}/labels-{1}/{0}.png")],
)
def test_two_folders_of_other_names_are_proposed(tmp_path, image, mask):
    for name in range(4):
        put_image(tmp_path / image.format(name, "", name % 2), name)
        for person in ("ah", "vk"):
            put(tmp_path / mask.format(name, person, name % 2), mask_of(name))
    folder = image.split("/")[-2]
    with pytest.raises(ValueError, match=f"as in layout: {folder}:labels-ah or layout: {folder}:labels-vk"):
        label_maps(tmp_path)
    assert (label_maps(tmp_path, layout=f"{folder}:labels-vk")[3] == mask_of(3)).all()


def test_labels_that_are_numbers(tmp_path):
    put_image(tmp_path / "images/0.png", 0)
    masks = {1: mask_of(1) | mask_of(3), 2: mask_of(2), 10: mask_of(1) | mask_of(4)}
    for label, mask in masks.items():
        put(tmp_path / f"masks/{label}/0.png", mask)
    assert find_layout(tmp_path, val_fraction=0).label_names == ["background", "1", "2", "10"]
    expected = sum(label * (mask_of(place) > 0) for place, label in ((3, 1), (2, 2), (1, 3), (4, 3)))
    assert (label_maps(tmp_path)[0] == expected).all()  # 10 lies on 1


def test_the_field_of_view_is_no_label_map(tmp_path):
    """As in HRF, where the vessels are in `manual1`."""
    for folder in ("images", "manual1", "mask"):
        for name in range(3):
            put(tmp_path / f"{folder}/{name}.png", mask_of(name))
    with pytest.raises(
        ValueError, match="2 folders of label maps, manual1 and mask, .* images:manual1 or layout: images:mask"
    ):
        label_maps(tmp_path)


@pytest.mark.parametrize("ending", ["instanceIds.png", "color.png", "polygons.json"])
def test_cityscapes_without_labels(tmp_path, ending):
    for split in ("train", "val"):
        put_image(tmp_path / f"leftImg8bit/{split}/ulm/ulm_0_leftImg8bit.png", 1)
        put(tmp_path / f"gtFine/{split}/ulm/ulm_0_gtFine_color.png", mask_of(0))
        (tmp_path / f"gtFine/{split}/ulm/ulm_0_gtFine_color.png").rename(
            tmp_path / f"gtFine/{split}/ulm/ulm_0_gtFine_{ending}"
        )
    with pytest.raises(ValueError, match="has gtFine without labels: each image needs its _labelIds.png"):
        find_layout(tmp_path)


def test_the_full_release_of_ade20k(tmp_path):
    for name in ("ADE_train_1", "ADE_train_2"):
        put_image(tmp_path / f"images/ADE/training/street/{name}.jpg", 1)
        for mask in ("seg", "parts_1"):
            put_image(tmp_path / f"images/ADE/training/street/{name}_{mask}.png", 2)
        put(tmp_path / f"images/ADE/training/street/{name}/instance_000_{name}.png", mask_of(0))
    with pytest.raises(
        ValueError, match="is the full release of ADE20K, .* its 150 labels are in ADEChallengeData2016"
    ):
        find_layout(tmp_path)


def test_images_of_lvis(tmp_path):
    """Its JSON has addresses in place of names of files."""
    pytest.importorskip("pycocotools")
    put_image(tmp_path / "train2017/000000000009.png", 9)
    box = [4, 4, 8, 4, 8, 8, 4, 8]
    content = {
        "images": [
            {
                "id": 9,
                "coco_url": "http://images.cocodataset.org/train2017/000000000009.png",
                "height": 12,
                "width": 16,
            }
        ],
        "annotations": [{"id": 1, "image_id": 9, "category_id": 1, "segmentation": [box]}],
        "categories": [{"id": 1, "name": "cup"}],
    }
    (tmp_path / "lvis_v1_train.json").write_text(json.dumps(content))
    assert label_maps(tmp_path)[9].sum() == 16
