"""Polygons, run lengths and segments of COCO, LabelMe, CVAT and YOLO: what is drawn, and what is refused."""

import base64
import io
import json

import numpy as np
import pytest
from made_data import read_first
from PIL import Image

from qlseg_hf.data.datasets import SampleError, open_dataset
from qlseg_hf.data.layouts import find_layout

pytest.importorskip("pycocotools")
SQUARE = [0, 0, 4, 0, 4, 4, 0, 4]


def put(path, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (9, 9, 9)).save(path)


def coco(annotations, names=("a.jpg",), categories=None, **more):
    categories = categories or [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    images = [{"id": i, "file_name": name, "width": 8, "height": 6} for i, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories, **more}


def region(category, segmentation, image=0, **more):
    return {"id": 1, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": 0, **more}


def put_coco(root, annotations, place="annotations/instances_train2017.json", folder="train2017", **more):
    put(root / folder / "a.jpg")
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
    put(tmp_path / "train2017/b.jpg")
    put_coco(tmp_path, [region(7, [SQUARE])])
    assert open_dataset(tmp_path, "train").notes == [
        "1 pictures are not in annotations/instances_train2017.json and are left out: train2017/b.jpg"
    ]
    put_coco(tmp_path, [], place="annotations/other_train2017.json")
    with pytest.raises(ValueError, match="annotate the same split; keep the one that counts"):
        open_dataset(tmp_path, "train")


def test_coco_of_one_file_and_of_roboflow(tmp_path):
    names = [f"n{i}.jpg" for i in range(12)]
    for name in names:
        put(tmp_path / "one/images" / name)
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
    put(tmp_path / "masks/a.jpg")
    put(tmp_path / "train_labels/a.jpg")
    (sample,) = open_dataset(tmp_path, "train", layout="coco-json", val_fraction=0)
    assert sample.name == "images/a.jpg"
    put(tmp_path / "others/a.jpg")
    with pytest.raises(ValueError, match="'a.jpg' could mean images/a.jpg, others/a.jpg; write more of its path"):
        open_dataset(tmp_path, "train", layout="coco-json", val_fraction=0)


def test_years_in_names_of_splits(tmp_path):
    for split in ("train", "val"):  # as of Fashionpedia
        put_coco(tmp_path, [region(7, [SQUARE])], f"instances_attributes_{split}2020.json", split)
    assert list(find_layout(tmp_path).splits) == ["train2020", "val2020"]
    assert open_dataset(tmp_path, "train")[0].name == "train/a.jpg"


def test_coco_panoptic(tmp_path):
    put(tmp_path / "val2017/a.jpg")
    numbers = np.zeros((6, 8, 3), dtype=np.uint8)
    numbers[:3], numbers[3:5] = (1, 2, 3), (4, 0, 0)
    folder = tmp_path / "annotations/panoptic_val2017"
    folder.mkdir(parents=True)
    Image.fromarray(numbers).save(folder / "a.png")
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


def shape(label, points, kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, **more}


def put_labelme(root, name, shapes, folder=""):
    put(root / folder / f"{name}.jpg")
    content = {"version": "5.4", "shapes": shapes, "imagePath": f"{name}.jpg", "imageData": None}
    (root / folder / f"{name}.json").write_text(json.dumps(content | {"imageHeight": 6, "imageWidth": 8}))


CORNERS = [[0, 0], [3, 0], [3, 3], [0, 3]]


def test_labelme(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 2), 255, dtype=np.uint8)).save(buffer, format="png")
    drawn = shape("cow", [[6, 4], [7, 5]], "mask", mask=base64.b64encode(buffer.getvalue()).decode())
    hole = shape("_background_", [[1, 1], [2, 2]], "rectangle")
    shapes = [shape("dog", CORNERS), hole, drawn, shape("__ignore__", [[6, 0], [7, 1]], "rectangle")]
    put_labelme(tmp_path, "a", [*shapes, shape("cat", [[0, 0], [1, 1]], "line")], "train")
    put_labelme(tmp_path, "b", [shape("ant", CORNERS), shape("dog", CORNERS)], "val")
    put(tmp_path / "train/c.jpg")
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


def test_labelme_of_renamed_files(tmp_path):
    """Their JSON may still tell the name that another image has now."""
    for number, name in enumerate("ab"):
        put(tmp_path / f"images/{name}.jpg")
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


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels><label><name>road</name></label>
<label><name>car</name></label></labels></task></meta>
<image id="0" name="a.jpg" {subset} width="8" height="6">
<polygon label="car" points="1,1;2,1;2,2;1,2" z_order="1"/><polygon label="road" points="0,0;3,0;3,3;0,3" z_order="0"/>
<mask label="car" rle="{rle}" left="5" top="4" width="2" height="2"/><points label="car" points="1,1"/>
</image></annotations>"""


def put_cvat(root, text=CVAT, subset="", rle="0, 4"):
    put(root / "images/a.jpg")
    (root / "annotations.xml").write_text(text.replace("{subset}", subset).replace("{rle}", rle))


def test_cvat(tmp_path):
    put_cvat(tmp_path)
    layout = find_layout(tmp_path)
    assert layout.name == "cvat" and layout.label_names == ["background", "road", "car"]
    assert layout.notes[0] == "1 shapes of kind points are left out; polygons, boxes, ellipses and masks are read"
    expected = np.zeros((6, 8), dtype=np.int64)
    expected[:4, :4], expected[1:3, 1:3], expected[4:, 5:7] = 1, 2, 2  # by z_order
    np.testing.assert_array_equal(read_first(tmp_path), expected)
    put_cvat(tmp_path, subset='subset="Validation"')
    assert list(find_layout(tmp_path).splits) == ["Validation"] and len(open_dataset(tmp_path, "val")) == 1


@pytest.mark.parametrize(
    "shape, rows, columns",
    [
        ('<box label="car" xtl="1" ytl="2" xbr="6" ybr="3"/>', slice(2, 4), slice(1, 7)),
        ('<box label="car" xtl="1" ytl="2" xbr="5" ybr="4" rotation="90.0"/>', slice(1, 6), slice(2, 5)),
    ],
)
def test_boxes_of_cvat(tmp_path, shape, rows, columns):
    text = CVAT[: CVAT.index("<polygon")] + shape + CVAT[CVAT.index("</image>") - 1 :]
    put_cvat(tmp_path, text)
    expected = np.zeros((6, 8), dtype=np.int64)
    expected[rows, columns] = 2
    np.testing.assert_array_equal(read_first(tmp_path), expected)


def test_an_ellipse_of_cvat_is_round(tmp_path):
    shape = '<ellipse label="car" cx="50" cy="40" rx="30" ry="10" rotation="90"/>'
    text = CVAT[: CVAT.index("<polygon")].replace('width="8" height="6"', 'width="100" height="80"') + shape
    put_cvat(tmp_path, text + CVAT[CVAT.index("</image>") - 1 :])
    found = open_dataset(tmp_path, "train", val_fraction=0)[0].read_label_map()
    y, x = np.mgrid[:80, :100]
    inside = ((x - 50) / 10) ** 2 + ((y - 40) / 30) ** 2
    assert (found[inside < 0.85] == 2).all() and (found[inside > 1.2] == 0).all()
    put_cvat(tmp_path, text.replace('rx="30"', "") + CVAT[CVAT.index("</image>") - 1 :])
    with pytest.raises(ValueError, match="image a.jpg: .* are no points"):
        open_dataset(tmp_path, "train")


def test_broken_cvat(tmp_path):
    put_cvat(tmp_path, rle="0,3")
    with pytest.raises(ValueError, match="image a.jpg: a mask of 'car' has run lengths that do not add up"):
        open_dataset(tmp_path, "train")
    put_cvat(tmp_path, CVAT.replace("2,1;2,2", "2,1;x,2"))
    with pytest.raises(ValueError, match="annotations.xml: image a.jpg: "):
        open_dataset(tmp_path, "train")
    put_cvat(tmp_path, CVAT.replace('label="road"', 'label="street"'))
    with pytest.raises(
        SampleError, match="a shape is labelled 'street', which is none of the labels background, road, car"
    ):
        read_first(tmp_path)
    put_cvat(
        tmp_path, CVAT.replace("<annotations>", '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotations>')
    )
    with pytest.raises(ValueError, match="declares a document type or entities"):
        open_dataset(tmp_path, "train")
    put_cvat(tmp_path, CVAT[:-30])
    with pytest.raises(ValueError, match="annotations.xml cannot be read"):
        open_dataset(tmp_path, "train")
    put_cvat(tmp_path, CVAT.replace("a.jpg", "b.jpg"))
    with pytest.raises(ValueError, match="annotates 'b.jpg', which is missing"):
        open_dataset(tmp_path, "train")


def test_names_that_disagree_with_polygons(tmp_path):
    put_cvat(tmp_path)
    (tmp_path / "labels.txt").write_text("car\nroad\n")
    layout = find_layout(tmp_path)
    assert layout.label_names == ["background", "road", "car"]
    assert (
        "labels.txt gives 2 label names" in layout.notes[1]
        and "the labels are those of annotations.xml" in layout.notes[1]
    )


def put_yolo(root, lines, split="train", image="images/{split}/{name}.jpg"):
    """An image for each name in `lines`, with a text file of these lines unless they are None."""
    for name, text in lines.items():
        path = root / image.format(split=split, name=name)
        put(path)
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
        path = tmp_path / f"masks/train/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 6)).save(path)
    assert find_layout(tmp_path).name == "folders"
    (tmp_path / "labels/train/a.txt").write_text("a photo of a cat")
    assert find_layout(tmp_path).name == "folders"
