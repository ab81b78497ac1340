"""What `qlseg evaluate` takes from a data.yaml and from the layout of the data."""

import json
from dataclasses import replace

import numpy as np
import pytest
from huggingface_hub import HfApi
from made_data import write
from networks import tiny_config

from qlseg_hf import QLSegForSemanticSegmentation, QLSegImageProcessor
from qlseg_hf.cli.evaluate import with_data_file
from qlseg_hf.data.datasets import open_dataset
from qlseg_hf.evaluation.run import Request, apply_layout, held_out_share
from qlseg_hf.hub.loading import keep_val_fraction

SETTINGS = {"model": "m", "data": "d", "split": None, "scales": (1.0,), "label_colors": None, "ignore_index": None}


def share(config=None, **given) -> float:
    """What is held out by settings of the command line, of a model of this configuration."""
    return held_out_share(Request(**with_data_file(SETTINGS | given)), config or tiny_config())


def test_the_part_that_a_model_on_the_hub_was_not_trained_on_is_held_out(hub, tmp_path):
    for name, text in (("me/tenth", "val_fraction: 0.1\n"), ("me/plain", None)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        if text is not None:
            (tmp_path / name / "recipe.yaml").write_text(text)
        HfApi().create_repo(name)
        HfApi().upload_folder(repo_id=name, folder_path=tmp_path / name)
    found = [share(model=name) for name in ("me/tenth", "me/plain", "me/none", "m.onnx")]
    assert found == [0.1, 0.2, 0.2, 0.2]


def put_cityscapes(root):
    for split in ("train", "val"):
        folder = f"{split}/aachen"
        for part, ending in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
            array = np.full((4, 6) if part == "gtFine" else (4, 6, 3), 8, dtype=np.uint8)
            write(root / part / folder / f"aachen_000000_000019_{ending}.png", array)
    return root


def test_data_file_stands_below_the_command_line(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "data.yaml").write_text(
        "data: photos\neval_split: held\nlayout: pairs\nval_fraction: 0.4\nignore_index: 11\nlabel_names: [a, b]\n"
        "label_mapping: {0: 1}\nlabel_weights: {a: 2.0}\n"
    )
    found = with_data_file(SETTINGS | {"data": str(tmp_path / "data.yaml")})
    assert found["data"] == str(tmp_path / "photos") and found["split"] == "held" and found["layout"] == "pairs"
    assert (found["data_val_fraction"], found["ignore_index"], found["label_mapping"]) == (0.4, 11, {0: 1})
    assert found["label_names"] == ["a", "b"] and "label_weights" not in found
    given = {"data": str(tmp_path / "data.yaml"), "split": "test", "ignore_index": 7}
    found = with_data_file(SETTINGS | given)
    assert (found["split"], found["ignore_index"], found["layout"]) == ("test", 7, "pairs")
    Request(**found)


def test_without_a_file_nothing_is_added(tmp_path):
    found = with_data_file(SETTINGS)
    assert found["split"] == "validation" and found["data"] == "d" and found["label_names"] is None
    colors = tmp_path / "colors.yaml"
    colors.write_text("sky: [0, 0, 0]\nroad: [9, 9, 9]\n")
    found = with_data_file(SETTINGS | {"label_colors": colors})
    assert found["label_colors"] == {0: [0, 0, 0], 1: [9, 9, 9]} and found["label_names"] == ["sky", "road"]


def test_layout_says_how_values_become_labels(tmp_path):
    samples = open_dataset(put_cityscapes(tmp_path), "val")
    names = samples.layout.label_names
    model = QLSegForSemanticSegmentation(tiny_config(len(names), id2label=dict(enumerate(names))))
    processor = QLSegImageProcessor(do_reduce_labels=False)
    request = Request("m", str(tmp_path))
    applied, notes = apply_layout(request, model, processor, samples)
    assert applied.label_mapping == samples.layout.label_mapping and "as cityscapes has them" in notes[0]
    # somebody has said other rules, or that values are the labels
    for own in (QLSegImageProcessor(label_mapping={8: 3}), QLSegImageProcessor(label_mapping={}), processor):
        stated = replace(request, label_mapping={8: 3}) if own is processor else request
        assert apply_layout(stated, model, own, samples) == (own, [])
    model.config.id2label = dict(enumerate([*names[1:], names[0]]))
    with pytest.raises(ValueError, match="the data call label 0 'road', and the model 'sidewalk'"):
        apply_layout(request, model, processor, samples)
    model.config.id2label = dict(enumerate(f"x{name}" for name in names))
    _, notes = apply_layout(request, model, processor, samples)
    assert "the scores mean something only if these are the same" in notes[0]


def test_the_part_that_a_model_was_not_trained_on_is_held_out(tmp_path):
    """A fifth in place of its tenth would be trained on by half."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "recipe.yaml").write_text("val_fraction: 0.1\ndata: photos\n")
    (tmp_path / "data.yaml").write_text("data: photos\nval_fraction: 0.25\n")
    recipe, data_file = tmp_path / "model" / "recipe.yaml", str(tmp_path / "data.yaml")
    model = {"model": str(recipe.parent)}
    assert [share(**model, data=data) for data in ("photos", data_file)] == [0.1, 0.1]
    assert share(**model, val_fraction=0.3) == 0.3 and share() == 0.2
    recipe.write_text("val_fraction: 0\ndata: photos\n")
    assert share(**model) == 0 and share(**model, val_fraction=0.2) == 0.2  # every image was trained on
    recipe.write_text("data: photos\n")
    assert share(**model) == 0.2 and share(**model, data=data_file) == 0.25
    recipe.write_text("val_fraction: [0.2]\n")
    with pytest.raises(ValueError, match=r"val_fraction of .*model is \[0.2\]; a number is wanted"):
        share(**model)


def test_what_is_written_without_a_recipe_keeps_what_was_held_out(tmp_path):
    """An exported file, or int8 weights, whose folder is another one."""
    (tmp_path / "recipe.yaml").write_text("val_fraction: 0.1\n")
    config = tiny_config()
    keep_val_fraction(tmp_path / "none", config)
    assert "val_fraction" not in config.to_dict()
    keep_val_fraction(tmp_path, config)
    config = type(config).from_dict(json.loads(config.to_json_string()))
    keep_val_fraction(tmp_path / "none", config)  # written once more, of what has no recipe
    assert share(config) == 0.1 and share(config, val_fraction=0.5) == 0.5
    (tmp_path / "recipe.yaml").write_text("val_fraction: 0.3\n")
    assert share(config, model=str(tmp_path)) == 0.3  # of a later training
