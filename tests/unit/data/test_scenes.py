"""Scenes drawn by `qlseg scenes`, and what the recipes say."""

import io
import json
import sys
from contextlib import redirect_stderr

import numpy as np
import pytest
import yaml
from conftest import ROOT
from PIL import Image
from transformers import AutoConfig

from qlseg_hf import RELEASES, QLSegConfig, QLSegImageProcessor
from qlseg_hf.cli.main import run
from qlseg_hf.data import scenes as make_scenes
from qlseg_hf.data.augmentation import TrainingTransform
from qlseg_hf.data.datasets import open_dataset
from qlseg_hf.releases import label_set
from qlseg_hf.training.recipe import load_recipe

RECIPES = sorted((ROOT / "qlseg_hf" / "recipes").glob("*.yaml"))
# spec of the published training: total, per GPU, steps, weight decay, power, box at ratio 1
PUBLISHED = {
    "vit-b-ade20k": (8, 2, 160_000, 0.01, 1, [2048, 512]),
    "vit-l-ade20k": (8, 2, 160_000, 0.01, 1, [2048, 640]),
    "vit-l-cocostuff10k": (8, 2, 80_000, 0.02, 2, [2048, 512]),
    "vit-l-pascal-context-59": (16, 4, 80_000, 0.03, 1, [520, 520]),
    "vit-l-pascal-context-60": (16, 4, 80_000, 0.03, 1, [520, 520]),
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "new" / "drawn"
    with redirect_stderr(io.StringIO()) as said:
        assert run(["scenes", str(folder), "--train", "12", "--validation", "3", "--size", "48"]) == 0
    assert "15/15" in said.getvalue()  # progress bar
    assert [path.name for path in folder.parent.iterdir()] == ["drawn"]  # nothing is left beside it
    return folder


@pytest.mark.parametrize("num_labels", [3, 30])
def test_number_of_labels(tmp_path, num_labels, capsys):
    folder = tmp_path / "drawn"
    sizes = "--train 250 --validation 1 --size 48".split()
    assert run(["scenes", str(folder), "--labels", str(num_labels), *sizes]) == 0
    names = json.loads((folder / "labels.json").read_text())
    assert len(set(names.values())) == len(names) == num_labels
    samples = open_dataset(folder, "train")
    found = [samples[index].read()[1] for index in range(len(samples))]
    assert set(np.unique(np.concatenate([one.ravel() for one in found]))) == set(range(num_labels))
    drawn = [make_scenes.draw_scene(0, "training", index, 48)[1] for index in range(len(found))]
    if num_labels == 3:  # the usual scenes with other names: sky; grass, road, water; building, tree, ball
        assert all((np.array([0, 1, 1, 1, 2, 2, 2])[a] == b).all() for a, b in zip(drawn, found))


def test_wrong_number_of_labels(tmp_path, capsys):
    for wrong, status, sentence in (
        ("2", 2, "3<=x<=60"),
        ("5", 1, "3, or 7 to 60, can be drawn"),
        ("61", 2, "3<=x<=60"),
    ):
        assert run(["scenes", str(tmp_path / "drawn"), "--labels", wrong]) == status
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "drawn").exists()


def test_scenes_are_a_data_set(scenes):
    names = json.loads((scenes / "labels.json").read_text())
    assert list(names) == [str(label) for label in range(7)] and tuple(names.values()) == make_scenes.LABELS
    sizes = set()
    for split, number in (("train", 12), ("validation", 3)):
        samples = open_dataset(scenes, split)
        assert len(samples) == number
        for index in range(number):
            picture, labels = samples[index].read()
            drawn, expected = make_scenes.draw_scene(0, make_scenes.SPLITS[split != "train"], index, 48)
            assert np.array_equal(labels, expected)
            assert np.abs(picture.astype(int) - drawn).mean() < 12  # JPEG
            assert min(picture.shape[:2]) >= 40 and max(picture.shape[:2]) <= 68
            sizes.add(picture.shape[:2])
    assert len(sizes) > 5
    mask = Image.open(next((scenes / "annotations" / "training").iterdir()))
    assert mask.mode == "P" and mask.getpalette()[:3] == make_scenes.COLORS[0].tolist()
    transform = TrainingTransform(QLSegImageProcessor(), len(names), crop_size=32, photometric=False)
    labels = transform(open_dataset(scenes, "train")[0], epoch=0, index=0)["labels"]
    assert labels.shape == (32, 32) and set(labels.unique().tolist()) <= {*range(len(names)), 255}  # 255: padding


def test_a_scene_depends_on_seed_split_and_index_only():
    first = make_scenes.draw_scene(1, "training", 5, 64)
    for index in (7, 2):
        make_scenes.draw_scene(1, "training", index, 64)
    again = make_scenes.draw_scene(1, "training", 5, 64)
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    for other in ((2, "training", 5, 64), (1, "validation", 5, 64), (1, "training", 6, 64)):
        picture, _ = make_scenes.draw_scene(*other)
        assert picture.shape != first[0].shape or not np.array_equal(picture, first[0])


def test_every_label_occurs_and_none_by_colour_alone():
    drawn = [make_scenes.draw_scene(0, "training", index, 64) for index in range(40)]
    occurs = np.array([np.bincount(labels.ravel(), minlength=7) > 0 for _, labels in drawn])
    assert occurs.shape == (40, 7) and (occurs.mean(axis=0) > 0.3).all()
    assert [labels.dtype for _, labels in drawn[:1]] == [np.uint8]
    # the best label for each of 512 colours is right in 53 % of the pixels of other scenes
    colors = [(picture // 32).astype(int) @ [64, 8, 1] for picture, _ in drawn]
    counts = np.zeros((512, 7))
    for color, (_, labels) in zip(colors[:30], drawn[:30]):
        np.add.at(counts, (color.ravel(), labels.ravel()), 1)
    right = [(counts.argmax(axis=1)[c] == labels).mean() for c, (_, labels) in zip(colors[30:], drawn[30:])]
    assert np.mean(right) < 0.6


def test_make_scenes_refuses_in_one_sentence(tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    assert run(["scenes", str(tmp_path / "full")]) == 1
    stdout, stderr = capsys.readouterr()
    assert "full exists and is not an empty folder; name another, or remove it first" in stderr
    assert len(stderr.strip().splitlines()) == 1 and not stdout
    for name, train, size, seed, sentence in (
        ("file", 1, 96, 0, "file exists and is not an empty folder"),
        ("new", 0, 96, 0, r"seed 0 and \[0, 1\] scenes are given; at least 16 px, seed 0 and 1 scene of each split"),
        ("new", 1, 8, 0, "size 8"),
        ("new", 1, 96, -1, "seed -1"),
    ):
        with pytest.raises(ValueError, match=sentence):
            make_scenes.make_scenes(tmp_path / name, {"training": train, "validation": 1}, size, seed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="moving onto an empty folder is POSIX")
def test_an_empty_folder_may_be_there(tmp_path):
    make_scenes.make_scenes(tmp_path, {"training": 1, "validation": 1}, size=16, seed=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations", "images", "labels.json"]


def test_there_is_a_recipe_per_release_and_four_more():
    assert {path.stem for path in RECIPES} == {*RELEASES, "dinov3-vit-l-ade20k", "finetune", "tiny", "demo"}
    assert set(PUBLISHED) == set(RELEASES)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_holds_known_keys(path):
    text = path.read_text(encoding="utf-8")
    recipe = yaml.safe_load(text)
    assert load_recipe(path).max_steps == recipe["max_steps"]  # refuses unknown keys and wrong types
    nested = {key for key, value in recipe.items() if isinstance(value, dict)}
    assert nested <= {"config", "processor"} and "<<" not in text and "&" not in text  # flat, nothing inherited
    assert isinstance(recipe["learning_rate"], float)  # YAML reads 1e-5 as text
    assert recipe["total_batch_size"] % recipe["per_device_batch_size"] == 0
    head = text[: text.index("\n\n")]
    assert f"qlseg train {path.stem}\n" in head or f"accelerate launch -m qlseg_hf.cli.train {path.stem}\n" in head
    assert "Hardware:" in head and "Expected mIoU:" in head
    config = recipe.get("config", {})
    assert set(config) <= {*QLSegConfig().to_dict(), "num_labels"}
    backbone = config.get("backbone_config", {})
    known = AutoConfig.for_model(backbone.get("model_type", "qlseg_vit")).to_dict()
    assert set(backbone) <= {*known, "out_indices"}
    QLSegImageProcessor(**recipe.get("processor", {}))  # an unknown setting would be a TypeError


@pytest.mark.parametrize("name", RELEASES)
def test_recipe_has_the_numbers_of_its_release(name):
    text = (ROOT / "qlseg_hf" / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    recipe = yaml.safe_load(text)
    labels, palette = label_set(recipe["label_names"])
    config = QLSegConfig(id2label=dict(enumerate(labels)), palette=palette, **recipe["config"])
    assert config.to_dict() == QLSegConfig.for_release(name).to_dict()

    processor = QLSegImageProcessor(
        do_reduce_labels=recipe["do_reduce_labels"], ignore_index=recipe["ignore_index"], **recipe["processor"]
    )
    assert processor.to_dict() == QLSegImageProcessor.for_release(name).to_dict()
    assert recipe["crop_size"] == config.backbone_config.image_size == processor.window_size

    keys = ("total_batch_size", "per_device_batch_size", "max_steps", "weight_decay", "poly_power", "resize_box")
    assert tuple(recipe[key] for key in keys) == PUBLISHED[name]
    assert (recipe["learning_rate"], recipe["head_lr_multiplier"], recipe["warmup_steps"]) == (1e-5, 10, 1500)
    assert (recipe["scale_range"], recipe["cat_max_ratio"], recipe["max_grad_norm"]) == ([0.5, 2.0], 0.75, 35)
    size = "large" if name.startswith("vit-l") else "base"
    assert recipe["backbone"] == f"timm/vit_{size}_patch16_384.augreg_in21k_ft_in1k"
    single, multi = RELEASES[name]["miou"]
    assert f"{single} single scale, {multi} with six scales and flip" in text and "not measured them" in text
