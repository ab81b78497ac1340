"""Label Studio's exports: percent, brushes, which annotation counts, and names of images."""

import json

import numpy as np
import pytest
from made_data import put_image, read_first

from qlseg_hf.data.datasets import SampleError, open_dataset
from qlseg_hf.data.layouts import find_layout

LEFT_TOP = [[0, 0], [37.5, 0], [37.5, 50], [0, 50]]  # columns 0..3 and rows 0..3 of 8 x 6
SIDES = {"original_width": 8, "original_height": 6, "image_rotation": 0}


def polygon(label, points=LEFT_TOP, number="p", **more):
    value = {"points": points, "closed": True, "polygonlabels": [label] if isinstance(label, str) else label}
    return SIDES | {"id": number, "type": "polygonlabels", "value": value} | more


def pack(values, word=8, sizes=(3, 4, 8, 16), split_at=None):
    """Bytes of the run lengths of a flat list of words: runs of one word, and in front of `split_at` single words."""
    bits = f"{len(values):032b}{word - 1:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    at = 0
    while at < len(values):
        if split_at is not None and at < split_at:  # as many different words as fit
            count = min(split_at - at, 1 << sizes[1])
            bits += f"001{count - 1:0{sizes[1]}b}" + "".join(f"{v:0{word}b}" for v in values[at : at + count])
        else:
            count = next((i for i, v in enumerate(values[at:]) if v != values[at]), len(values) - at)
            count = min(count, 1 << sizes[0])
            bits += f"100{count - 1:0{sizes[0]}b}{values[at]:0{word}b}"
        at += count
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def rgba(mask, color=(200, 10, 0)):
    """RGBA words of a mask: opaque where it is set; transparent pixels keep a colour, which does not count."""
    return [v for pixel in np.asarray(mask).ravel() for v in (*color, 255 if pixel else 0)]


def brush(label, data, number="b"):
    value = {"format": "rle", "rle": data, "brushlabels": [label]}
    return SIDES | {"id": number, "type": "brushlabels", "value": value}


def task(results, image="/data/upload/1/0a1b2c3d-a.jpg", **more):
    annotation = {
        "id": 1,
        "was_cancelled": False,
        "ground_truth": False,
        "result": results,
        "updated_at": "2024-01-02",
    }
    return {
        "id": 5,
        "annotations": [annotation | more],
        "predictions": [{"result": [polygon("no")]}],
        "data": {"image": image},
    }


def put(root, tasks, names=("images/a.jpg",), file="project-1.json"):
    for name in names:
        put_image(root / name)
    (root / file).write_text(json.dumps(tasks))


def test_polygons_brushes_and_what_is_left_out(tmp_path):
    area = np.zeros((6, 8), dtype=bool)
    area[3:5, 2:7] = True
    box = SIDES | {"id": "r", "type": "rectanglelabels"}
    box |= {"value": {"x": 0, "y": 0, "width": 9, "height": 9, "rectanglelabels": ["box"]}}
    choice = {"id": "c", "type": "choices", "value": {"choices": ["good"]}}
    bare = polygon([], [[75, 0], [100, 0], [100, 17], [75, 17]], "n")
    put(tmp_path, [task([polygon("dog"), brush("Ant", pack(rgba(area))), box, choice, bare])])
    layout = find_layout(tmp_path)
    assert (layout.name, layout.label_names, layout.ignore_index) == (
        "label-studio",
        ["background", "Ant", "dog"],
        255,
    )
    assert layout.notes[:2] == [
        "1 regions of kind rectangle are left out; polygons, brush strokes and ellipses are read",
        "1 regions have no label, so their pixels do not count",
    ]
    expected = np.zeros((6, 8), dtype=np.int64)
    expected[:4, :4], expected[3:5, 2:7], expected[0:2, 6:] = 2, 1, 255  # the later over the earlier
    np.testing.assert_array_equal(read_first(tmp_path), expected)


@pytest.mark.parametrize("packing", [{}, {"split_at": 100}, {"split_at": 192}, {"sizes": (1, 2, 3, 16)}, {"word": 11}])
def test_every_way_to_pack_a_brush(tmp_path, packing):
    area = np.random.default_rng(3).random((6, 8)) > 0.6
    put(tmp_path, [task([brush("x", pack(rgba(area), **packing))])])
    np.testing.assert_array_equal(read_first(tmp_path), area)


def test_a_brush_as_the_published_encoder_packs_it(tmp_path):
    """Written out by hand from the format: 4 x 48 words, all of them 255, in one run of length 192."""
    bits = f"{192:032b}" + "00111" + "0010001101111111" + f"110{191:08b}{255:08b}"
    bits += "0" * (-len(bits) % 8)
    put(tmp_path, [task([brush("x", [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)])])])
    assert (read_first(tmp_path) == 1).all()


@pytest.mark.parametrize(
    "data, message",
    [
        ([0, 0], "end too early"),
        (pack(rgba(np.ones((6, 8))))[:-9], "end too early"),
        (pack(rgba(np.ones((6, 8))), split_at=192)[:-9], "end too early"),
        (pack(rgba(np.ones((6, 7)))), "a brush holds 168 values; 4 x 6 x 8 are wanted"),
        ([300], "a list of bytes"),
        ("abc", "a list of bytes"),
    ],
)
def test_damaged_brushes(tmp_path, data, message):
    put(tmp_path, [task([brush("x", data)])])
    with pytest.raises(SampleError, match=f"images/a.jpg: label map: .*{message}"):
        read_first(tmp_path)


@pytest.mark.parametrize(
    "image",
    [
        "/data/upload/1/0a1b2c3d-a.jpg",
        "/data/local-files/?d=some/images/a.jpg",
        "s3://bucket/images/a.jpg",
        "https://host/x/a.jpg?token=1.png",
        "images/%61.jpg",
    ],
)
def test_names_of_images(tmp_path, image):
    put(tmp_path, [task([polygon("x")], image)])
    assert read_first(tmp_path)[0, 0] == 1


def test_which_annotation_counts(tmp_path):
    """Neither a cancelled one nor a prediction; the ground truth, else the last one, which is told."""
    annotations = [
        task([polygon(name)], **more)["annotations"][0]
        for name, more in [
            ("old", {"updated_at": "2024-01-01"}),
            ("new", {"updated_at": "2024-03-01"}),
            ("gone", {"updated_at": "2024-09-01", "was_cancelled": True}),
        ]
    ]
    both = task([]) | {"annotations": annotations}
    skipped = task([polygon("gone")], "b.jpg", was_cancelled=True)
    put(tmp_path, [both, skipped, task([], "c.jpg")], ["images/a.jpg", "images/b.jpg", "images/c.jpg"])
    layout = find_layout(tmp_path, val_fraction=0)
    assert layout.label_names == ["background", "new"] and "train 2" in layout.description
    assert layout.notes == [
        "1 images have several annotations; of each the one that is the ground truth counts, else the one that was "
        "changed last: images/a.jpg",
        "1 tasks have no annotation that was submitted, and are left out: b.jpg",
        "1 images have no shape, so all of each is background: images/c.jpg",
        "1 images have no annotation and are left out: images/b.jpg",
    ]
    annotations[0]["ground_truth"] = True
    put(tmp_path, [both])
    assert find_layout(tmp_path).label_names == ["background", "old"]


def test_separate_controls_for_shapes_and_labels(tmp_path):
    """One region is told twice, and drawn in the place of the first."""
    value = {"points": LEFT_TOP, "closed": True}
    shape = SIDES | {"id": "p", "type": "polygon", "value": value}
    label = SIDES | {"id": "p", "type": "labels", "value": value | {"labels": ["cat"]}}
    put(tmp_path, [task([shape, polygon("dog", number="q"), label])])
    layout = find_layout(tmp_path)
    assert layout.label_names == ["background", "cat", "dog"] and read_first(tmp_path)[0, 0] == 2


def test_an_ellipse(tmp_path):
    value = {"x": 50, "y": 50, "radiusX": 37.5, "radiusY": 12.5, "rotation": 90, "ellipselabels": ["x"]}
    sides = {"original_width": 80, "original_height": 60}
    put(tmp_path, [task([sides | {"id": "e", "type": "ellipselabels", "value": value}])])
    put_image(tmp_path / "images/a.jpg", (80, 60))
    y, x = np.mgrid[:60, :80]
    inside = ((x - 40) / 7.5) ** 2 + ((y - 30) / 30) ** 2
    found = read_first(tmp_path)
    assert (found[inside < 0.8] == 1).all() and (found[inside > 1.3] == 0).all()


def test_what_is_refused(tmp_path):
    def refused(message, tasks):
        put(tmp_path, tasks)
        with pytest.raises(ValueError, match=message):
            read_first(tmp_path)

    refused(
        "1 of 1 images of project-1.json are missing in .*: /data/upload/1/b.jpg", [task([], "/data/upload/1/b.jpg")]
    )
    refused("images/a.jpg is the image of two tasks", [task([]), task([])])
    refused("region p of Label Studio has the labels a, b; one is wanted", [task([polygon(["a", "b"])])])
    refused("it was turned by 90 degrees in Label Studio", [task([polygon("a", image_rotation=90)])])
    refused("regions are of images of 2 sizes", [task([polygon("a"), polygon("a", original_width=9, number="q")])])
    refused("picture 6 x 8, label map 6 x 9", [task([polygon("a", original_width=9)])])
    refused("is no layout that is known", [{"image": "a.jpg", "label": [SIDES]}])
    refused("has 0 images in its data", [task([], "a.wav")])


def test_two_exports_are_splits_by_their_names(tmp_path):
    put(tmp_path, [task([polygon("x")])], file="train.json")
    put(tmp_path, [task([polygon("y")], "b.jpg")], ["images/b.jpg"], file="val.json")
    layout = find_layout(tmp_path)
    assert list(layout.splits) == ["train", "val"] and read_first(tmp_path, "val")[0, 0] == 2


def test_the_brief_export(tmp_path):
    """JSON-MIN: a row for each annotation, labels and shapes of separate controls without a number that joins them."""
    area = np.zeros((6, 8), dtype=bool)
    area[4:, 5:] = True
    size = {key: SIDES[key] for key in ("original_width", "original_height")}
    shape = {"points": LEFT_TOP, "closed": True} | size
    stroke = {"format": "rle", "rle": pack(rgba(area))} | size
    old = {"id": 1, "annotator": 1, "updated_at": "2024-01-01", "image": "/data/upload/1/0a1b2c3d-a.jpg"}
    new = old | {"updated_at": "2024-01-02", "good": "yes"}
    rows = [
        new | {"tag": [shape | {"labels": ["dog"]}], "poly": [shape], "brush": [stroke | {"brushlabels": ["Ant"]}]},
        old | {"tag": [shape | {"labels": ["wrong"]}]},
        old | {"id": 2, "image": "b.jpg"},
    ]
    put(tmp_path, rows, ["images/a.jpg", "images/b.jpg"])
    layout = find_layout(tmp_path, val_fraction=0)
    assert (layout.name, layout.label_names) == ("label-studio", ["background", "Ant", "dog"])
    assert "1 images have several annotations" in layout.notes[0] and "b.jpg" in layout.notes[1]
    expected = np.zeros((6, 8), dtype=np.int64)
    expected[:4, :4], expected[area] = 2, 1
    samples = open_dataset(tmp_path, "train", val_fraction=0)
    np.testing.assert_array_equal(samples[0].read()[1], expected)
    assert not samples[1].read()[1].any()
