"""Polygons, run lengths and panoptic segments of COCO: what is drawn, and what is refused."""

import json

import numpy as np
import pytest
from made_data import put_image, read_first, write
from PIL import Image

from qlseg_hf.data.datasets import SampleError, open_dataset
from qlseg_hf.data.layouts import find_layout

pytest.importorskip("pycocotools")
SQUARE = [0, 0, 4, 0, 4, 4, 0, 4]


def coco(annotations, names=("a.jpg",), categories=None, **more):
    categories = categories or [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    images = [{"id": i, "file_name": name, "width": 8, "height": 6} for i, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories, **more}


def region(category, segmentation, image=0, **more):
    return {"id": 1, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": 0, **more}


def put_coco(root, annotations, place="annotations/instances_train2017.json", folder="train2017", **more):
    put_image(root / folder / "a.jpg")
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(coco(annotations, **more)))
    return path


def test_coco_polygons(tmp_path):
    small = [1, 1, 3, 1, 3, 3, 1, 3]
    put_coco(tmp_path, [region(7, [small]), region(3, [SQUARE, [6, 4, 8, 4, 8, 6, 6, 6]])])
    layout = find_layout(tmp_path)
    assert (
        layout.name == "coco-json"
        and layout.label_names == ["background", "dog", "cat"]
        and layout.ignore_index == 255
    )
    assert list(layout.splits) == ["train2017"]
    expected = np.zeros((6, 8), dtype=np.int64)
    expected[:4, :4], expected[1:3, 1:3], expected[4:, 6:] = 1, 2, 1  # the smaller over the larger, in any order
    np.testing.assert_array_equal(read_first(tmp_path), expected)


def test_coco_run_lengths_crowds_and_ignored(tmp_path):
    from pycocotools import mask

    area = np.zeros((6, 8), dtype=bool)
    area[2:5, 3:7] = True
    packed = mask.encode(np.asfortranarray(area.astype(np.uint8)))
    runs, value, count = [], False, 0
    for pixel in area.T.ravel():
        if pixel != value:
            runs, value, count = [*runs, count], pixel, 0
        count += 1
    crowd = region(7, {"size": [6, 8], "counts": [*runs, count]}, iscrowd=1)
    text = region(3, {"size": [6, 8], "counts": packed["counts"].decode()})
    for annotation, label in ((crowd, 2), (text, 1), (text | {"ignore": 1}, 255)):
        put_coco(tmp_path, [annotation])
        np.testing.assert_array_equal(read_first(tmp_path), area * label)
    whole = region(7, {"size": [6, 8], "counts": [0, 48]}, iscrowd=1)
    put_coco(tmp_path, [text, whole])  # crowds lie below all else
    np.testing.assert_array_equal(read_first(tmp_path), np.where(area, 1, 2))
    put_coco(tmp_path, [region(3, [[0, 0, 8, 0, 8, 6, 0, 6]]), crowd])  # small ones too
    assert (read_first(tmp_path) == 1).all()


def test_large_files_are_not_parsed_by_every_family(tmp_path, monkeypatch):
    """COCO's may take 10 seconds; it is read for polygons and for panoptic segments."""
    put_coco(tmp_path, [region(7, [SQUARE])])
    parsed = []
    monkeypatch.setattr(json, "loads", lambda text, load=json.loads: parsed.append(text) or load(text))
    find_layout(tmp_path)
    assert len(parsed) == 2


@pytest.mark.parametrize(
    "segmentation, message",
    [
        ([[0, 0, 1]], "are no points"),
        ({"size": [6, 8], "counts": [0, 47]}, "do not add up"),
        ({"size": [6, 8], "counts": [60, -12]}, "must be a list"),
        ({"size": [8, 6], "counts": [0, 48]}, "run lengths of size"),
        ({"size": [6, 8], "counts": "1000000"}, "do not add up"),
        ({"size": [6, 8], "counts": "\x7f\x01"}, "damaged"),
        ("abc", "polygons or run lengths are wanted"),
        ({"size": [6, 8], "counts": 5}, "must be a list"),
    ],
)
def test_damaged_coco_regions(tmp_path, segmentation, message):
    put_coco(tmp_path, [region(7, segmentation)])
    with pytest.raises(SampleError, match=f"train2017/a.jpg: label map: .*{message}"):
        read_first(tmp_path)


def test_polygons_without_an_inside(tmp_path):
    """As wrong clicks leave them; they are no reason to refuse the image."""
    put_coco(tmp_path, [region(7, [SQUARE, [0, 0, 1, 1]]), region(3, [[]]), region(3, [[5, 5]])])
    samples = open_dataset(tmp_path, "train")
    assert "3 polygons of annotations/instances_train2017.json have fewer than 3 points" in samples.notes[0]
    expected = np.zeros((6, 8), dtype=np.int64)
    expected[:4, :4] = 2
    np.testing.assert_array_equal(samples[0].read()[1], expected)


def test_boxes_written_as_polygons_are_told(tmp_path):
    put_coco(tmp_path, [region(7, [SQUARE]), region(3, [[5, 1, 5, 4, 7, 4, 7, 1, 5, 1]])])
    told = "are upright rectangles, as of boxes that nobody outlined"
    assert told in " ".join(open_dataset(tmp_path, "train").notes)
    put_coco(tmp_path, [region(7, [SQUARE]), region(3, [[5, 1, 5, 4, 7, 4]])])
    assert told not in " ".join(open_dataset(tmp_path, "train").notes)


def test_broken_coco(tmp_path):
    def refused(message, annotations, **more):
        put_coco(tmp_path, annotations, **more)
        with pytest.raises(ValueError, match=message):
            open_dataset(tmp_path, "train")

    refused("1 of 2 pictures of .* are missing in .*: b.jpg", [region(7, [SQUARE])], names=("a.jpg", "b.jpg"))
    refused("has category 9, which is not listed", [region(9, [SQUARE])])
    refused("an annotation is of image 5, which is not listed", [region(7, [SQUARE], image=5)])
    refused("has boxes alone and no segmentation", [region(7, [])])
    refused("must have a number as id, and a name", [region(7, [SQUARE])], categories=[{"id": "7", "name": "x"}])
    refused("1 of 1 pictures .* are missing .*: ../../../etc/passwd", [], names=("../../../etc/passwd",))
    put_image(tmp_path / "train2017/b.jpg")
    put_coco(tmp_path, [region(7, [SQUARE[:6]])])
    assert open_dataset(tmp_path, "train").notes == [
        "1 pictures are not in annotations/instances_train2017.json and are left out: train2017/b.jpg"
    ]
    put_coco(tmp_path, [], place="annotations/other_train2017.json")
    with pytest.raises(ValueError, match="annotate the same split; keep the one that counts"):
        open_dataset(tmp_path, "train")


def test_coco_of_one_file_and_of_roboflow(tmp_path):
    names = [f"n{i}.jpg" for i in range(12)]
    for name in names:
        put_image(tmp_path / "one/images" / name)
    annotations = [region(7, [SQUARE], image=i) for i in range(12)]
    (tmp_path / "one/result.json").write_text(json.dumps(coco(annotations, names)))
    layout = find_layout(tmp_path / "one")
    assert {name: len(layout.splits[name]) for name in layout.splits}.keys() == {"train", "validation"}
    assert len(open_dataset(tmp_path / "one/result.json", "train", val_fraction=0)) == 12
    groups = [{"id": 0, "name": "pets", "supercategory": "none"}, {"id": 7, "name": "cat", "supercategory": "pets"}]
    for split in ("train", "valid"):
        put_coco(tmp_path / "two", [region(7, [SQUARE])], f"{split}/_annotations.coco.json", split, categories=groups)
    layout = find_layout(tmp_path / "two")
    assert list(layout.splits) == ["train", "valid"] and layout.label_names == ["background", "cat"]
    other = [{"id": 7, "name": "cow"}]
    put_coco(tmp_path / "two", [region(7, [SQUARE])], "valid/_annotations.coco.json", "valid", categories=other)
    with pytest.raises(
        ValueError, match="category 7 is 'cat' in .* and 'cow' in .*; annotations of one data set must"
    ):
        find_layout(tmp_path / "two")


def test_masks_of_the_same_names_beside_the_images_of_coco(tmp_path):
    put_coco(tmp_path, [region(7, [SQUARE])], "annotations.json", "images")
    put_image(tmp_path / "masks/a.jpg")
    put_image(tmp_path / "train_labels/a.jpg")
    (sample,) = open_dataset(tmp_path, "train", layout="coco-json", val_fraction=0)
    assert sample.name == "images/a.jpg"
    put_image(tmp_path / "others/a.jpg")
    with pytest.raises(ValueError, match="'a.jpg' could mean images/a.jpg, others/a.jpg; write more of its path"):
        open_dataset(tmp_path, "train", layout="coco-json", val_fraction=0)


def test_years_in_names_of_splits(tmp_path):
    for split in ("train", "val"):  # as of Fashionpedia
        put_coco(tmp_path, [region(7, [SQUARE])], f"instances_attributes_{split}2020.json", split)
    assert list(find_layout(tmp_path).splits) == ["train2020", "val2020"]
    assert open_dataset(tmp_path, "train")[0].name == "train/a.jpg"


def test_splits_by_words_in_names(tmp_path):
    for split in ("Train", "Validation"):  # before, they were said to be of one split
        put_coco(tmp_path, [region(7, [SQUARE])], f"{split}Set.json", split)
    splits = find_layout(tmp_path).splits
    assert {split: splits[split][0].name for split in splits} == {
        "train": "Train/a.jpg",
        "validation": "Validation/a.jpg",
    }


def test_coco_panoptic(tmp_path):
    put_image(tmp_path / "val2017/a.jpg")
    numbers = np.zeros((6, 8, 3), dtype=np.uint8)
    numbers[:3], numbers[3:5] = (1, 2, 3), (4, 0, 0)
    write(tmp_path / "annotations/panoptic_val2017/a.png", numbers)
    segments = [{"id": 1 + 2 * 256 + 3 * 65536, "category_id": 7}, {"id": 4, "category_id": 3}]
    content = coco([{"image_id": 0, "file_name": "a.png", "segments_info": segments}])
    (tmp_path / "annotations/panoptic_val2017.json").write_text(json.dumps(content))
    layout = find_layout(tmp_path)
    assert layout.name == "coco-panoptic" and layout.label_names == ["dog", "cat"] and layout.ignore_index == 255
    expected = np.array([1, 1, 1, 0, 0, 255])[:, None].repeat(8, axis=1)
    np.testing.assert_array_equal(read_first(tmp_path, "val"), expected)
    content["annotations"][0]["segments_info"].pop()
    (tmp_path / "annotations/panoptic_val2017.json").write_text(json.dumps(content))
    with pytest.raises(SampleError, match="segment 4 of the PNG file is not in segments_info"):
        read_first(tmp_path, "val")
    (tmp_path / "annotations/instances_val2017.json").write_text(json.dumps(coco([region(7, [SQUARE])])))
    with pytest.raises(
        ValueError, match="2 ways: coco-panoptic .*; coco-json .*Say which counts: layout: coco-panoptic or"
    ):
        open_dataset(tmp_path, "val")
    assert read_first(tmp_path, "val", layout="coco-json")[0, 0] == 2


def test_coco_without_sizes(tmp_path):
    path = put_coco(tmp_path, [region(7, [SQUARE])])
    content = json.loads(path.read_text())
    for image in content["images"]:
        del image["height"], image["width"]
    path.write_text(json.dumps(content))
    found = read_first(tmp_path)
    assert found.shape == (6, 8) and found[:4, :4].all() and found.sum() == 2 * 16
    exif = Image.Exif()
    exif[0x112] = 3
    Image.new("RGB", (8, 6)).save(tmp_path / "train2017/a.jpg", exif=exif)
    with pytest.raises(ValueError, match="a.jpg: the JSON tells no size, and its EXIF orientation turns it"):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize("folders", [("images", "images"), ("images/train", "images/val")])
def test_one_file_whose_images_lists_or_folders_divide(tmp_path, folders):
    """Before, images came into any part."""
    names = [f"{folders[k > 2]}/{k}.jpg" for k in range(6)]
    for name in names:
        put_image(tmp_path / name)
    content = coco([region(7, [SQUARE], image) for image in range(5)], names)
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    if folders[0] == folders[1]:
        (tmp_path / "train.txt").write_text("\n".join(names[:3]))
        (tmp_path / "val.txt").write_text("\n".join(names[3:]))
    layout = find_layout(tmp_path)
    assert {split: [sample.name for sample in own] for split, own in layout.splits.items()} == {
        "train": names[:3],
        "val": names[3:],
    }
    assert [int(sample.read_label_map()[0, 0]) for sample in layout.splits["val"]] == [2, 2, 0]
