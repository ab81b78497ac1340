"""Label names as people store them: lines with numbers, byte-order marks, columns; what is unclear is refused."""

import json

import pytest

from qlseg_hf.data.label_names import find_label_file, names_in_order, read_label_file
from qlseg_hf.training.build import read_label_names

NAMES = ["sky", "tree", "traffic light"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(
    "text",
    [
        "sky\ntree\ntraffic light\n",
        "sky\r\n\r\n tree \r\ntraffic light",
        "0 sky\n1 tree\n2 traffic light\n",
        "0,sky\n1,tree\n2, traffic light\n\n",
        "0: sky\n1: tree\n2: traffic light",
        "2\ttraffic light\n0\tsky\n1\ttree\n",
        "0. sky\n1. tree\n2. traffic light",
        '0;"sky"\n1;"tree"\n2;"traffic light"',
        '"sky",\n"tree",\n"traffic light",',
    ],
)
def test_lines(tmp_path, text, encoding):
    path = tmp_path / "names.txt"
    path.write_bytes(text.encode(encoding))
    assert read_label_file(path) == (NAMES, None)


@pytest.mark.parametrize(
    "names",
    [
        ["2 wheeler", "sky", "3d printer"],
        ["1 euro", "5 euro", "sky", "tree"],
        ["0.5 mm", "1.5 mm"],
        ["0", "1", "2"],
        ["class 0", "class 1"],
        ["sky, blue", "tree: oak"],
    ],
)
def test_names_with_digits_stay(tmp_path, names):
    (tmp_path / "names.txt").write_text("\n".join(names))
    assert read_label_file(tmp_path / "names.txt")[0] == names


@pytest.mark.parametrize(
    "content",
    [
        NAMES,
        {"0": "sky", "2": "traffic light", "1": "tree"},
        {"sky": 0, "traffic light": 2, "tree": 1},
        {"labels": NAMES},
    ],
)
def test_json(tmp_path, content):
    (tmp_path / "names.JSON").write_bytes(json.dumps(content).encode("utf-8-sig"))
    assert read_label_file(tmp_path / "names.JSON")[0] == NAMES
    if "labels" not in content:
        assert read_label_names(content) == (dict(enumerate(NAMES)), None)


@pytest.mark.parametrize(
    "text, message",
    [
        ("0 sky\n2 tree", r"numbers \(0, 2, ...\) are not 0..1, each once; for names that are written so, use a JSON"),
        (
            "1 sky\n2 tree",
            r"are not 0..1, each once; if 0 is void, leave the numbers out and set do_",
        ),
        ("0 sky\n0 tree", "are not 0..1, each once"),
        ("id name\n0 sky\n1 tree", "2 of 3 lines begin with a number, but 'id name' does not"),
        ("name,r,g,b\nsky,1,2,3\ntree,4,5,6", "'sky,1,2,3' is a name and numbers; give the names alone"),
        ("0 128 64 0 sky\n1 0 0 1 tree", "'128 64 0 sky' is a name and numbers"),
        ("Class name:\nsky\ntree", "the first line is 'Class name:', which seems to be a heading; take it out"),
        (
            "__ignore__\nsky\ntree",
            "'__ignore__', to which LabelMe's scripts give -1 .*; take it out if label 0 is 'sky'",
        ),
        ("sky 1\ntree 0", "'sky 1' is a name and a number; give the names alone, in order"),
        ("(1) sky\n(0) tree", "the lines have the numbers 0..1 in another order"),
        ("class 1\nclass 0", "the lines have the numbers 0..1 in another order"),
        ("sky\t0\t10%\ntree\t1\t9%", "is a line of a table; give the names alone"),
        ("a.png 0\nb.png 2", "the line 'a.png 0' is the name of a file"),
        ("a.png\nb.PNG", "the line 'a.png' is the name of a file; the names of labels are wanted"),
        ("# mine\nsky\ntree", "the line '# mine' is no plain name; take it out"),
        ("- sky\n- tree", "the line '- sky' is no plain name"),
        ('["sky", "tree"]', "it looks like JSON; give it the ending .json"),
        ("sky\ntree\nsky", r"labels \[0, 2\] are all called 'sky'; give each label a name of its own"),
        ("\n \n", "it holds no names"),
        ("s\u00e4ge".encode("latin-1"), "it is not UTF-8 text .*; save it as UTF-8"),
        ("sky\ntree".encode("utf-16"), "it is not UTF-8 text .*; save it as UTF-8"),
        ("sky\ntree".encode("utf-16-le"), "it holds zero bytes, as UTF-16 does; save it as UTF-8"),
    ],
)
def test_lines_that_are_unclear(tmp_path, text, message):
    path = tmp_path / "names.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"label file .*names.txt.*{message}"):
        read_label_file(path)


@pytest.mark.parametrize(
    "text",
    [
        "name\nsky\ntree\ntraffic light\n",
        "Class Name,color\nsky,#ff\ntree,\ntraffic light,#0f\n",
        "id,name\n0,sky\n1,tree\n2,traffic light\n",
        "name,id\ntree,1\ntraffic light,2\nsky,0\n",
        "label,name\n2,traffic light\n0,sky\n1,tree\n",
        "\ufeffPixel Value, Class\n0, sky\n1, tree\n2, traffic light\n",
        "0,sky\n1,tree\n2,traffic light\n",
        '"sky"\n"tree"\n"traffic light"\n',
        "class,Pixel\ntree,1\ntraffic light,2\nsky,0\n",
        ",name\n1,tree\n2,traffic light\n0,sky\n",  # of pandas
        "name,key,count\ntree,1,9\ntraffic light,2,7\nsky,0,1\n",
        "name,is_thing\nsky,0\ntree,1\ntraffic light,0\n",
    ],
)
def test_tables_of_names(tmp_path, text):
    """The line of headings is no label, and numbers count more than the order of the lines."""
    (tmp_path / "classes.csv").write_text(text)
    assert read_label_file(tmp_path / "classes.csv") == (NAMES, None)


def test_columns_that_number_labels_in_different_orders(tmp_path):
    (tmp_path / "classes.csv").write_text("name,one,other\nsky,0,1\ntree,1,0\ncar,2,2\n")
    with pytest.raises(ValueError, match="its columns one, other number the labels in different orders; keep one"):
        read_label_file(tmp_path / "classes.csv")


def test_tables_of_colours(tmp_path):
    path, colors = tmp_path / "class_dict.csv", [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    path.write_text("name,r,g,b\n" + "".join(f"{name},{r},{g},{b}\n" for name, (r, g, b) in zip(NAMES, colors)))
    assert read_label_file(path) == (NAMES, colors)
    path.write_text("id,name,red,green,blue\n2,traffic light,7,8,9\n0,sky,1,2,3\n1,tree,4,5,6\n")
    assert read_label_file(path) == (NAMES, colors)
    path.write_text("id,name,r,g,b\n7,sky,1,2,3\n8,tree,4,5,6\n")
    with pytest.raises(ValueError, match=r"its numbers 7, 8, \.\.\. are not 0..1, each once"):
        read_label_file(path)
    path.write_text("name,r,g,b\nsky,1,2\n")
    with pytest.raises(ValueError, match="the line 'sky, 1, 2' has 3 cells; 4 are wanted"):
        read_label_file(path)


@pytest.mark.parametrize(
    "text",
    [
        "1 2 3\tsky\n4 5 6\ttree\n\n7 8 9\t\ttraffic light\n",  # CamVid
        "1,2,3, sky\n4,5,6, tree\n7,8,9, traffic light\n",
        "0 sky 1 2 3\n2 traffic light 7 8 9\n1 tree 4 5 6\n",  # RUGD
    ],
)
def test_lines_of_colours(tmp_path, text):
    path = tmp_path / "label_colors.txt"
    path.write_text(text)
    assert read_label_file(path) == (NAMES, [[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    found = find_label_file(tmp_path, ["label_colors.txt"], [])
    assert found is not None and found[1] == NAMES
    for wrong, message in (
        (text.replace("8", "300"), "red, green, blue of 0..255 are wanted"),
        (text.replace("2 traffic", "1 traffic").replace("tree", "sky"), "same number|all called 'sky'"),
    ):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=message):
            read_label_file(path)


def test_names_lie_deeper_if_they_are_the_only_ones(tmp_path):
    deep, above = "set/gt/semantic/class_dict.csv", "set/classes.txt"
    for name, text in ((deep, "name,r,g,b\nsky,1,2,3\n"), (above, "road\n")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert find_label_file(tmp_path, [deep], []) == (tmp_path / deep, ["sky"], [[1, 2, 3]])
    assert find_label_file(tmp_path, [deep, above], []) == (tmp_path / above, ["road"], None)


@pytest.mark.parametrize(
    "name", ["class_dict_seg.csv", "label_class_dict.csv", "RUGD_annotation-colormap.txt", "class_colours.txt"]
)
def test_names_of_files_of_colours(tmp_path, name):
    (tmp_path / name).write_text("name,r,g,b\nsky,1,2,3\n" if name.endswith("csv") else "1 2 3 sky\n")
    notes = []
    assert find_label_file(tmp_path, [name], notes) == (tmp_path / name, ["sky"], [[1, 2, 3]]) and notes == []


@pytest.mark.parametrize(
    "names, message",
    [
        ({0: "sky", 1: False}, r"label 1 is False; put it in quotes \(yes, no, on and off are none without quotes\)"),
        ({0: "sky", 1: 7}, "label 1 is 7; put it in quotes"),
        ({0: "sky", "0": "tree"}, "the keys must be 0..1, each once"),
        ({"sky": 0, "tree": 0}, "two names have the same label number"),
        ({"sky": "0"}, "the keys must be label numbers, or the values; got 'sky'"),
        (["sky", " "], "label 1 has an empty name"),
        (["sky", "\ufeffsky "], r"labels \[0, 1\] are all called 'sky'"),
    ],
)
def test_names_that_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        names_in_order(names)
    with pytest.raises(ValueError, match=f"label_names: .*{message}"):
        read_label_names(names)


@pytest.mark.parametrize(
    "content",
    [
        [{"id": 7, "name": "car", "color": "#0f4890"}, {"id": 9, "name": "road", "color": "#F11000"}],  # SuperAnnotate
        {"classes": [{"title": "car", "color": "#0F4890"}, {"title": "road", "color": "#f11000"}]},
        {"#0f4890": "car", "#f11000": "road"},  # A2D2
    ],
)
def test_json_of_colours(tmp_path, content):
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes/classes.json").write_text(json.dumps(content))
    _, names, colors = find_label_file(tmp_path, ["classes/classes.json"], [])
    assert (names, colors) == (["car", "road"], [[15, 72, 144], [241, 16, 0]])


@pytest.mark.parametrize("color", ["red", None])
def test_json_of_objects_without_colours(tmp_path, color):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps([{"name": "car", "color": color}, {"name": "road"}]))
    assert read_label_file(path) == (["car", "road"], None)
    objects = [{"Class ID": "1", "name": "road"}, {"Class ID": "0", "name": "car"}]
    path.write_text(json.dumps({"labels": objects}))  # before, their order counted
    assert read_label_file(path) == (["car", "road"], None)
    path.write_text(json.dumps([{"label": 1, "name": "road"}, {"label": 0, "name": "car"}]))
    assert read_label_file(path) == (["car", "road"], None)
    path.write_text(json.dumps([*objects, {"Class ID": 3, "name": "sky"}]))
    with pytest.raises(ValueError, match="its numbers 1, 0, 3, ... are not 0..2, each once"):
        read_label_file(path)
    path.write_text(json.dumps([{"name": "car"}, {"shape": "road"}]))
    with pytest.raises(ValueError, match="the objects must have a name each"):
        read_label_file(path)
