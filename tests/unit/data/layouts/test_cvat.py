"""CVAT's XML files: what is drawn, and what is refused."""

import numpy as np
import pytest
from made_data import put_image, read_first

from qlseg_hf.data.datasets import SampleError, open_dataset
from qlseg_hf.data.layouts import find_layout

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels><label><name>road</name></label>
<label><name>car</name></label></labels></task></meta>
<image id="0" name="a.jpg" {subset} width="8" height="6">
<polygon label="car" points="1,1;2,1;2,2;1,2" z_order="1"/><polygon label="road" points="0,0;3,0;3,3;0,3" z_order="0"/>
<mask label="car" rle="{rle}" left="5" top="4" width="2" height="2"/><points label="car" points="1,1"/>
</image></annotations>"""


def put_cvat(root, text=CVAT, subset="", rle="0, 4"):
    put_image(root / "images/a.jpg")
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


def test_a_file_for_each_split(tmp_path):
    """Before, the images of all files were one part, of which some were held out."""
    for split, name in (("train", "a"), ("val", "b"), ("test", "c")):
        put_image(tmp_path / f"images/{name}.jpg")
        (tmp_path / f"{split}.xml").write_text(CVAT.format(subset="", rle="0, 4").replace("a.jpg", f"{name}.jpg"))
    layout = find_layout(tmp_path)
    found = {split: [picture for picture, _ in samples.pairs] for split, samples in layout.splits.items()}
    assert found == {"train": ["images/a.jpg"], "validation": ["images/b.jpg"], "test": ["images/c.jpg"]}
