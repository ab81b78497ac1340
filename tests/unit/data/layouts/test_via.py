"""VGG Image Annotator: shapes, which attribute is the label, and what is asked or refused."""

import json

import numpy as np
import pytest
from made_data import put_image, read_first
from PIL import Image

from qlseg_hf.data.datasets import SampleError, open_dataset
from qlseg_hf.data.layouts import find_layout

POLYGON = {"name": "polygon", "all_points_x": [0, 3, 3, 0], "all_points_y": [0, 0, 3, 3]}
RECT = {"name": "rect", "x": 5, "y": 4, "width": 2, "height": 1}


def region(shape, **attributes):
    return {"shape_attributes": shape, "region_attributes": attributes}


def put(root, images, file="via_project.json", options=None, is_project=True, folder=""):
    """`images`: {name: regions}."""
    entries = {}
    for name, regions in images.items():
        put_image((root / file).parent / name)
        entries[f"{name}99"] = {"filename": name, "size": 99, "regions": regions, "file_attributes": {}}
    region_options = {"kind": {"type": "dropdown", "options": options}} if options else {}
    project = {"_via_settings": {}, "_via_img_metadata": entries, "_via_attributes": {"region": region_options}}
    (root / file).write_text(json.dumps(project if is_project else entries))


@pytest.mark.parametrize("is_project", [True, False])
def test_shapes_and_labels(tmp_path, is_project):
    line = {"name": "polyline", "all_points_x": [0, 1], "all_points_y": [0, 1]}
    circle = {"name": "circle", "cx": 6, "cy": 1, "r": 1}
    shapes = [region(POLYGON, kind="dog "), region(RECT, kind="cat"), region(line, kind="dog"), region(circle)]
    put(tmp_path, {"a.jpg": shapes, "b.jpg": []}, is_project=is_project)
    layout = find_layout(tmp_path, val_fraction=0)
    assert (layout.name, layout.label_names, layout.ignore_index) == ("via", ["background", "cat", "dog"], 255)
    assert "VIA's via_project.json, labels by the attribute kind" in layout.description
    assert layout.notes[:3] == [
        "1 regions of kind polyline are left out; polygon, rect, circle, ellipse are read",
        "1 regions have no kind, so their pixels do not count",
        "1 images have no shape, so all of each is background: b.jpg",
    ]
    expected = np.zeros((6, 8), dtype=np.int64)
    expected[:4, :4], expected[4:6, 5:8], expected[0:3, 6], expected[1, 5:8] = 2, 1, 255, 255
    found = read_first(tmp_path, val_fraction=0)
    is_corner = np.zeros_like(found, dtype=bool)
    is_corner[[0, 0, 2, 2], [5, 7, 5, 7]] = True  # of a circle of radius 1, which may be drawn either way
    np.testing.assert_array_equal(found[~is_corner], expected[~is_corner])


def test_an_ellipse_is_turned_by_radians(tmp_path):
    shape = {"name": "ellipse", "cx": 50, "cy": 40, "rx": 30, "ry": 10, "theta": np.pi / 4}
    put(tmp_path, {"a.jpg": [region(shape, kind="x")]})
    put_image(tmp_path / "a.jpg", (100, 80))
    y, x = np.mgrid[:80, :100]
    along, across = ((x - 50) + (y - 40)) / 2**0.5, ((y - 40) - (x - 50)) / 2**0.5  # to the right and down: clockwise
    inside = (along / 30) ** 2 + (across / 10) ** 2
    found = read_first(tmp_path)
    assert (found[inside < 0.8] == 1).all() and (found[inside > 1.3] == 0).all()


def test_regions_without_attributes_are_one_label(tmp_path):
    """As in the balloons of Mask R-CNN, whose regions VIA 1 numbers."""
    for split in ("train", "val"):
        put(tmp_path, {"a.jpg": {"0": region(POLYGON)}}, f"{split}/via_region_data.json", is_project=False)
    layout = find_layout(tmp_path)
    assert layout.label_names == ["background", "foreground"] and list(layout.splits) == ["train", "val"]
    assert "without attributes, so all is foreground" in layout.description
    assert read_first(tmp_path, "val")[0, 0] == 1


def test_choices_are_called_by_their_texts(tmp_path):
    """Of a list VIA stores the keys; texts may be empty."""
    put(
        tmp_path,
        {"a.jpg": [region(POLYGON, kind="1"), region(RECT, kind={"b": True, "1": False})]},
        options={"1": "car", "b": ""},
    )
    layout = find_layout(tmp_path)
    assert layout.label_names == ["background", "b", "car"] and read_first(tmp_path)[0, 0] == 2
    put(tmp_path, {"a.jpg": [region(POLYGON, kind={"b": True, "1": True})]})
    with pytest.raises(ValueError, match="a.jpg: a region has 2 values of kind, b, 1; one is wanted"):
        find_layout(tmp_path)


def test_one_of_several_attributes_is_asked_for(tmp_path):
    put(tmp_path, {"a.jpg": [region(POLYGON, kind="cat", color="red"), region(RECT, kind="dog", note="")]})
    with pytest.raises(
        ValueError, match=r"attributes kind \(in 2 of 2 regions\), color \(in 1 .*; say .* label_column: kind"
    ):
        find_layout(tmp_path)
    assert find_layout(tmp_path, label_column="kind").label_names == ["background", "cat", "dog"]
    assert find_layout(tmp_path, label_column="color").label_names == ["background", "red"]
    with pytest.raises(ValueError, match="label_column 'x' is no attribute of regions; they are kind, color"):
        find_layout(tmp_path, label_column="x")


@pytest.mark.parametrize(
    "shape, message",
    [
        (POLYGON | {"all_points_x": [0, 9, 9, 0]}, r"reaches to \(9, 3\), outside of the image of 8 x 6"),
        (POLYGON | {"all_points_x": [0, 1]}, "a polygon has 2 x and 4 y"),
        (POLYGON | {"all_points_x": [0, 1], "all_points_y": [0, 1]}, "has 2 points; at least 3"),
        ({"name": "rect", "x": 1}, "are no points"),
    ],
)
def test_damaged_regions(tmp_path, shape, message):
    put(tmp_path, {"a.jpg": [region(shape, kind="x")]})
    with pytest.raises(SampleError, match=f"a.jpg: label map: .*{message}"):
        read_first(tmp_path)


def test_images_of_an_upright_size(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    put(tmp_path, {"a.jpg": [region({"name": "rect", "x": 0, "y": 5, "width": 5, "height": 2}, kind="x")]})
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=exif)
    found = read_first(tmp_path)
    assert found.shape == (8, 6) and found[5:].all() and not found[:5].any()
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(ValueError, match="1 of 1 images of via_project.json are missing .*: a.jpg"):
        find_layout(tmp_path)


def put_3(root, regions, names=("a.jpg",), attributes=None, views=None):
    """A project of VIA 3. `regions`: [(view, [number of the kind, numbers ...], {attribute: value})]."""
    for name in names:
        put_image(root / name)
    kind = {"aname": "kind", "anchor_id": "FILE1_Z0_XY1", "type": 4, "options": {"0": "dog", "1": "cat"}}
    files = {str(i): {"fid": i, "fname": name, "type": 2, "loc": 1, "src": ""} for i, name in enumerate(names, 1)}
    metadata = {
        f"1_{i}": {"vid": view, "flg": 0, "z": [], "xy": xy, "av": av} for i, (view, xy, av) in enumerate(regions)
    }
    content = {
        "project": {"pid": "x", "data_format_version": "3.1.1", "vid_list": list(files)},
        "config": {"file": {}, "ui": {}},
        "attribute": {"1": kind} if attributes is None else attributes,
        "file": files,
        "view": views or {key: {"fid_list": [int(key)]} for key in files},
        "metadata": metadata,
    }
    (root / "via_project_1Jan.json").write_text(json.dumps(content))


def test_a_project_of_version_3(tmp_path):
    polygon, rect = [7, 0, 0, 3, 0, 3, 3, 0, 3], [2, 5, 4, 2, 1]
    regions = [
        ("1", polygon, {"1": "0"}),
        ("1", rect, {"1": "1"}),
        ("2", [3, 4, 3, 2], {"1": "1"}),
        ("2", [1, 4, 3], {"1": "1"}),
        ("1", [], {"1": "0"}),  # of the whole image
        ("1", [2, 0, 5, 1, 0], {}),
    ]
    put_3(tmp_path, regions, ["a.jpg", "b.jpg"])
    layout = find_layout(tmp_path, val_fraction=0)
    assert (layout.name, layout.label_names) == ("via", ["background", "cat", "dog"])
    assert layout.notes[:2] == [
        "1 regions of kind point are left out; polygon, rect, circle, ellipse are read",
        "1 regions have no kind, so their pixels do not count",
    ]
    expected = np.zeros((6, 8), dtype=np.int64)
    expected[:4, :4], expected[4:6, 5:8], expected[5, 0:2] = 2, 1, 255
    samples = open_dataset(tmp_path, "train", val_fraction=0)
    np.testing.assert_array_equal(samples[0].read()[1], expected)
    circle = samples[1].read()[1]
    assert circle[3, 2:7].all() and circle[1:6, 4].all() and not circle[:, [0, 1, 7]].any()


def test_what_is_refused_of_version_3(tmp_path):
    several = {"1": {"aname": "kind", "type": 2, "options": {"0": "dog", "1": "cat"}}}
    put_3(tmp_path, [("1", [2, 0, 0, 1, 1], {"1": "0,1"})], attributes=several)
    with pytest.raises(ValueError, match="a region has 2 values of kind, 0, 1; one is wanted"):
        find_layout(tmp_path)
    put_3(tmp_path, [("1", [2, 0, 0, 1, 1], {"1": "1"})], attributes=several)
    assert find_layout(tmp_path).label_names == ["background", "cat"]
    put_3(tmp_path, [("1", [2, 0, 0, 1, 1], {"4": "1"})])
    with pytest.raises(ValueError, match="via_project_1Jan.json is a project of VIA 3, and damaged: KeyError"):
        find_layout(tmp_path)
    put_3(tmp_path, [], ["a.jpg", "b.jpg"], views={"1": {"fid_list": [1, 2]}})
    with pytest.raises(ValueError, match="a view shows 2 images, a.jpg, b.jpg; one is wanted"):
        find_layout(tmp_path)


@pytest.mark.parametrize("sign", ["", "#"])
@pytest.mark.parametrize("is_given", [False, True])
def test_a_csv_file(tmp_path, sign, is_given):
    heads = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    xs, ys = ([v for v in corners for _ in range(20000)] for corners in ([0, 3, 3, 0], [0, 0, 3, 3]))
    many = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}  # a cell longer than the csv module reads
    rows = [("a.jpg", 0, many, {"kind": "dog"}), ("a.jpg", 1, RECT, {"kind": "cat"}), ("b.jpg", 0, {}, {})]
    lines = [sign + heads]
    for name, number, shape, attributes in rows:
        cells = [json.dumps(cell).replace('"', '""') for cell in (shape, attributes)]
        lines.append(f'{name},99,"{{}}",2,{number},"{cells[0]}","{cells[1]}"')
        put_image(tmp_path / name)
    file = tmp_path / "via_project_csv.csv"
    file.write_text("\n".join(lines))
    place = file if is_given else tmp_path
    layout = find_layout(place, val_fraction=0)
    assert (layout.name, layout.label_names) == ("via", ["background", "cat", "dog"])
    expected = np.zeros((6, 8), dtype=np.int64)
    expected[:4, :4], expected[4:6, 5:8] = 2, 1
    samples = open_dataset(place, "train", val_fraction=0)
    np.testing.assert_array_equal(samples[0].read()[1], expected)
    assert len(samples) == 2 and not samples[1].read()[1].any()
    file.write_text("\n".join([*lines, "c.jpg,9"]))
    with pytest.raises(ValueError, match="line 5 of .*via_project_csv.csv is none of VIA's"):
        find_layout(place)
