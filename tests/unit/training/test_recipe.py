"""Where the keys of a recipe come from: its file, `data.yaml`, the command line, and names that stand for others."""

import math

import pytest
import yaml

from qlseg_hf import QLSegConfig
from qlseg_hf.cli.options import PATH
from qlseg_hf.cli.train import describe_keys, split_words
from qlseg_hf.training.build import order_label_weights
from qlseg_hf.training.recipe import Recipe, load_recipe


@pytest.fixture
def folder(tmp_path):
    """A recipe, and a data.yaml beside the data it names."""
    recipe = {"data": "elsewhere", "max_steps": 9, "label_names": ["x", "y"], "processor": {"window_size": 32}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "set").mkdir()
    processor = {"image_mean": [0.1, 0.2, 0.3], "window_size": 64}
    data = {"data": "set", "label_names": ["a", "b", "c"], "ignore_index": 11, "label_weights": {"a": 2}}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(data | {"processor": processor}))
    return tmp_path


def test_no_recipe_is_needed():
    recipe = load_recipe(None, ["--data", "me/set", "--lr=1e-3", "--batch-size", "8"])
    assert (recipe.data, recipe.learning_rate, recipe.total_batch_size) == ("me/set", 1e-3, 8)
    assert recipe.max_steps is None and recipe.output_dir is None
    with pytest.raises(ValueError, match="^the command line: the recipe lacks data$"):
        load_recipe(None, [])


def test_data_file_counts_more_than_the_recipe_and_less_than_the_command_line(folder):
    recipe = load_recipe(folder / "recipe.yaml", ["--data", str(folder / "data.yaml"), "--ignore_index", "7"])
    assert recipe.data == str(folder / "set") and recipe.label_names == ["a", "b", "c"]
    assert recipe.max_steps == 9 and recipe.ignore_index == 7 and recipe.label_weights == {"a": 2}
    assert recipe.processor == {"window_size": 64, "image_mean": [0.1, 0.2, 0.3]}
    more = ["--processor", "{window_size: 96}"]
    recipe = load_recipe(folder / "recipe.yaml", ["--data", str(folder / "data.yaml"), *more])
    assert recipe.processor == {"window_size": 96, "image_mean": [0.1, 0.2, 0.3]}


def test_data_files_that_are_none(folder):
    (folder / "other.yaml").write_text("label_names: [a]\n")
    with pytest.raises(ValueError, match="other.yaml names no data; write data: FOLDER into it"):
        load_recipe(None, ["--data", str(folder / "other.yaml")])
    (folder / "other.yaml").write_text("data: set\nlabel_nmes: [a]\n")
    with pytest.raises(ValueError, match="unknown key label_nmes; did you mean label_names?"):
        load_recipe(None, ["--data", str(folder / "other.yaml")])


def test_epochs_of_the_command_line_count_more_than_steps_of_the_file(folder):
    recipe = load_recipe(folder / "recipe.yaml", ["--epochs", "3"])
    assert (recipe.epochs, recipe.max_steps) == (3.0, None)
    recipe = load_recipe(folder / "recipe.yaml", ["--epochs", "3", "--max_steps", "5"])
    assert (recipe.epochs, recipe.max_steps) == (3.0, 5)


def test_old_names_of_keys(tmp_path):
    with pytest.warns(FutureWarning, match="the key label_map is now called label_mapping"):
        recipe = load_recipe(None, ["--data", "d", "--label-map", "{7: 1}"])
    assert recipe.label_mapping == {7: 1}
    (tmp_path / "old.yaml").write_text("dataset: d\nlabel_map: {7: 1}\nprocessor: {label_map: {7: 1}}\n")
    with pytest.warns(FutureWarning, match="the key dataset is now called data"):
        recipe = load_recipe(tmp_path / "old.yaml", ["--label_mapping", "{7: 2}"])
    assert (recipe.data, recipe.label_mapping, recipe.processor) == ("d", {7: 2}, {"label_mapping": {7: 1}})
    with pytest.raises(ValueError, match="label_map is another name of label_mapping; give label_mapping alone"):
        load_recipe(None, ["--data", "d", "--label_map", "{7: 1}", "--label_mapping", "{7: 1}"])


@pytest.mark.parametrize("as_file", [False, True])
def test_colors_by_name(tmp_path, as_file):
    colors = "{road: [1, 2, 3], sky: [4, 5, 6]}"
    if as_file:
        (tmp_path / "colors.yaml").write_text(colors)
        colors = str(tmp_path / "colors.yaml")
    recipe = load_recipe(None, ["--data", "d", "--label_colors", colors])
    assert recipe.label_colors == {0: [1, 2, 3], 1: [4, 5, 6]} and recipe.label_names == ["road", "sky"]
    recipe = load_recipe(None, ["--data", "d", "--label_colors", "{3: [1, 2, 3]}"])
    assert recipe.label_colors == {3: [1, 2, 3]} and recipe.label_names is None


def test_colors_by_name_and_number():
    """The number of void may stand beside names, as `qlseg check` writes and takes it; that of a label may not."""
    recipe = load_recipe(None, ["--data", "d", "--label_colors", "{road: [1, 2, 3], 255: [0, 0, 0], sky: [4, 5, 6]}"])
    assert recipe.label_colors == {0: [1, 2, 3], 255: [0, 0, 0], 1: [4, 5, 6]}
    assert recipe.label_names == ["road", "sky"]
    with pytest.raises(ValueError, match="label_colors names 'road' and others, and numbers 0; give names to all"):
        load_recipe(None, ["--data", "d", "--label_colors", "{road: [1, 2, 3], 0: [0, 0, 0]}"])


def test_home(monkeypatch, tmp_path):
    """YAML and --key=~/x know no shell that puts the home folder in; a folder called ~ was made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = load_recipe(None, ["--data", "~/d", "--output_dir=~/run", "--backbone", "me/vit~2"])
    assert (recipe.data, recipe.output_dir) == (str(tmp_path / "d"), str(tmp_path / "run"))
    assert recipe.backbone == "me/vit~2"
    assert PATH.convert("~/out", None, None) == tmp_path / "out"


def test_trackers_may_be_several():
    assert load_recipe(None, ["--data", "d", "--report_to", "[tensorboard, trackio]"]).report_to == [
        "tensorboard",
        "trackio",
    ]


def test_every_key_is_described():
    rows = dict(describe_keys(None))
    assert len(rows) == len(Recipe.__dataclass_fields__)
    assert rows["--crop_size INT | NULL"].endswith("[default: auto]")
    assert rows["--patience INT | NULL"].endswith("never if not given  [default: None]")
    assert "--learning_rate, --lr FLOAT | NULL" in rows and "--total_batch_size, --batch_size INT | NULL" in rows
    # None is explained: it is decided, or the line says what it means
    unexplained = [key for key, text in rows.items() if text.endswith("None]") and "not given" not in text]
    assert not unexplained


@pytest.mark.parametrize(
    "words, recipe, others",
    [
        (("tiny", "--max_steps", "3"), "tiny", ["--max_steps", "3"]),
        (("--data", "folder", "--push_to_hub=true"), None, ["--data", "folder", "--push_to_hub=true"]),
        (("--data=folder", "tiny"), "tiny", ["--data=folder"]),
        (("tiny", "--max_steps"), "tiny", ["--max_steps"]),
    ],
)
def test_the_recipe_among_the_words(words, recipe, others):
    assert split_words(words) == (recipe, others)


def test_two_recipes():
    with pytest.raises(ValueError, match="one of tiny, max_steps is wanted; keys are written --key value"):
        split_words(("tiny", "max_steps"))


def test_label_weights_where_two_labels_have_one_name():
    config = QLSegConfig(id2label={0: "road", 1: "car", 2: "car"})
    assert order_label_weights({"car": 3}, config) == [1.0, 3.0, 3.0]
    with pytest.raises(ValueError, match="label_weights names .'bus'., which are no labels"):
        order_label_weights({"bus": 3}, config)


@pytest.mark.parametrize(
    "weights, sentence",
    [
        ([1, -1.0, 1], r"label_weights are \[1.0, -1.0, 1.0\]; finite numbers, 0 or more and not all 0, are wanted"),
        ([1, math.inf, 1], "finite numbers"),
        ({"car": ".nan"}, "label_weights wants float, got '.nan'"),
        ({"car": math.nan}, "finite numbers"),
        ({"road": 0, "car": 0}, "not all 0"),
        ({"car": None}, "label_weights wants float, got None"),
        ({"car": True}, "label_weights wants float, got True"),
        ([1.0, 2.0], "2 label_weights for 3 labels"),
        ({"bus": 1, 3: 1}, r"label_weights names \[3, 'bus'\], which are no labels"),
    ],
)
def test_label_weights_that_nothing_could_be_learnt_with_are_refused_before_the_first_step(weights, sentence):
    with pytest.raises(ValueError, match=sentence):
        order_label_weights(weights, QLSegConfig(id2label={0: "road", 1: "car", 2: "car"}))
