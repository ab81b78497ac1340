"""Names that lie beside a data set and may be those of its labels: attached if they fit exactly, else told."""

import json

import numpy as np
import pytest
from made_data import make_folders, write
from PIL import Image

from qlseg_hf.data.check import survey_data
from qlseg_hf.data.check.survey import DataRequest
from qlseg_hf.data.layouts import find_layout

YAML = "train: ../train\nnc: 3\nnames: [road, car, sky]\n"


def survey(root, **request):
    return survey_data(DataRequest(str(root), **request), show_progress=False)


def put_masks(root, values):
    def save(label_map, path):
        write(root / "masks" / path.parent.name / path.name, label_map.astype(np.uint8))

    make_folders(root, values, save=save, counts=(3, 2))


@pytest.mark.parametrize("values", [[0, 1, 2], [0, 1, 2, 255]])
@pytest.mark.parametrize("file", ["data.yaml", "dataset.yml"])
def test_names_of_yaml_are_those_of_labels_that_all_occur(tmp_path, values, file):
    put_masks(tmp_path, values)
    (tmp_path / file).write_text(YAML.replace("train: ../train\n", ""))
    assert find_layout(tmp_path).label_names is None  # before the label maps are read
    found = survey(tmp_path)
    assert found.rules.names == ["road", "car", "sky"] and found.can_train
    assert f"the labels 0..2 all occur and are called as in {file}: road, car, sky" in found.notes


@pytest.mark.parametrize(
    "values, names, held",
    [
        ([0, 1], ["label_0", "label_1"], "0, 1"),  # the last never occurs, or 0 is background and names begin at 1
        ([0, 1, 2, 3], ["label_0", "label_1", "label_2", "label_3"], "0, 1, 2, 3"),
        ([1, 2, 3], ["label_1", "label_2", "label_3"], "1, 2, 3"),
        ([0, 1, 3], ["label_0", "label_1", "label_3"], "0, 1, 3"),
    ],
)
def test_names_that_may_be_others_are_told(tmp_path, values, names, held):
    put_masks(tmp_path, values)
    (tmp_path / "data.yaml").write_text("names: {0: road, 1: car, 2: sky}\n")
    found = survey(tmp_path)
    assert found.rules.names == names
    told = f"data.yaml gives 3 names (road, car, sky), and label maps hold {held}; set label_names if you know which"
    assert f"{told} is which" in found.notes
    found = survey(tmp_path, label_names=["a", "b", "c", "d"])
    assert not any("data.yaml" in note for note in found.notes)


def test_files_that_say_more_count_more(tmp_path):
    put_masks(tmp_path, [0, 1, 2])
    (tmp_path / "data.yaml").write_text(YAML.replace("train: ../train\n", ""))
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    assert survey(tmp_path).rules.names == ["a", "b", "c"]
    (tmp_path / "labels.txt").unlink()
    (tmp_path / "data.yaml").write_text("names: [road, road, sky]\n")
    found = survey(tmp_path)
    assert found.rules.names == ["label_0", "label_1", "label_2"]
    assert any(note.startswith("label names are not read: ") and "all called 'road'" in note for note in found.notes)


def test_names_of_other_columns_are_told_alone(tmp_path):
    """They may be of whole images, as a ClassLabel mostly is, or of boxes, which know no background."""
    datasets = pytest.importorskip("datasets")
    label_map = np.array([[0, 0, 1, 1]] * 4, dtype=np.uint8)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.Image(),
            "kind": datasets.ClassLabel(names=["cat", "dog"]),
            "objects": {"category": datasets.Sequence(datasets.ClassLabel(names=["ear", "tail"]))},
            "day": datasets.ClassLabel(names=["a", "b", "c"]),
        }
    )
    picture, mask = Image.new("RGB", (4, 4), (90, 9, 9)), Image.fromarray(label_map)
    row = {"image": picture, "label": mask, "kind": 0, "objects": {"category": [0, 1]}, "day": 2}
    table = datasets.Dataset.from_list([row] * 3, features=features)
    datasets.DatasetDict({"train": table, "validation": table}).save_to_disk(tmp_path / "saved")
    found = survey(tmp_path / "saved")
    assert found.rules.names == ["label_0", "label_1"]
    told = [note.split(" has as many")[0] for note in found.notes if "has as many names as there are labels" in note]
    assert told == ["column kind", "column objects.category"]


@pytest.mark.parametrize("file", ["dataset_info.json", "dataset_infos.json"])
def test_names_that_datasets_keeps_beside_files_are_told_alone(tmp_path, file):
    put_masks(tmp_path, [0, 1, 2])
    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["road", "car", "sky"], "_type": "ClassLabel"},
        "objects": {"feature": {"kind": {"names": ["a", "b"], "_type": "ClassLabel"}}, "_type": "Sequence"},
    }
    content = {"features": features} if file == "dataset_info.json" else {"default": {"features": features}}
    (tmp_path / file).write_text(json.dumps(content))
    where = f"{file}.label" if file == "dataset_info.json" else f"{file}.default.label"
    layout = find_layout(tmp_path)
    assert layout.label_names is None and [names for _, names in layout.class_names][1] == ["a", "b"]
    assert layout.class_names[0] == (where, ["road", "car", "sky"])
    found = survey(tmp_path)
    assert found.rules.names == ["label_0", "label_1", "label_2"]
    told = [note for note in found.notes if note.startswith(f"{where} has as many names as there are labels")]
    assert len(told) == 1 and "set label_names if the label maps hold them" in told[0]
    (tmp_path / file).write_text("{")
    assert any(note.startswith(f"{file} is not read: ") for note in find_layout(tmp_path).notes)
