"""Recipes from files and the command line, names of other trainers, and data in every layout."""

import json
import re

import pytest
from programs import NETWORK, write_recipe, write_tables
from recipes import small_recipe

from qlseg_hf.training.recipe import Recipe, load_recipe
from qlseg_hf.training.start import settle_recipe
from qlseg_hf.training.synonyms import ADVICE, SYNONYMS


@pytest.mark.parametrize(
    "layout", ["streaming", *(pytest.param(name, marks=pytest.mark.slow) for name in ("save_to_disk", "parquet"))]
)
def test_tables_are_trained_on(server, data, tmp_path, layout):
    """Folders are opened alike in every layout: see unit/data/layouts."""
    pytest.importorskip("datasets")
    changes = write_tables(data, tmp_path / "set", layout) | {"max_steps": 2, "eval_steps": 2, "save_steps": 2}
    done = server.complete("train", write_recipe(tmp_path, data, **changes), expect=0)
    assert "checked 9 pictures: 3 of 3 labels occur" in done.stderr
    assert (tmp_path / "run" / "last" / "model.safetensors").is_file()
    evaluation = json.loads((tmp_path / "run" / "evaluations.jsonl").read_text())
    assert evaluation["step"] == 2 and 0 <= evaluation["miou"] <= 1


def test_recipe_from_file_and_overrides(data, tmp_path):
    path = write_recipe(tmp_path, data)
    recipe = load_recipe(path, ["--learning_rate", "1e-4", "--max_steps=7", "--resume", "none"])
    assert (recipe.learning_rate, recipe.max_steps, recipe.resume) == (1e-4, 7, "none")
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["--lerning_rate", "1"], "unknown key lerning_rate; did you mean learning_rate?"),
        (["--max_steps", "many"], "max_steps wants int or null, got 'many'"),
        (["--photometric", "1"], "photometric wants bool or null, got 1"),
        (["--scale_range", "[1]"], "scale_range wants two numbers"),
        (["--ema_decay", "1.5"], "ema_decay 1.5 must be between"),
        (["--save_steps", "0"], "save_steps is 0"),
        (["--max_steps"], "--max_steps has no value"),
        (["max_steps", "3"], "max_steps is not an override"),
        (["--config", "{"], "is not YAML"),
        (["--dataset", "null"], "the recipe lacks data"),
        (["--push_to_hub", "true"], "push_to_hub wants hub_model_id"),
        (["--hub_private", "true"], "hub_private and hub_revision want push_to_hub"),
        (["--model", "a", "--backbone", "b"], "exclude each other"),
        (["--lora", "4", "--freeze_backbone", "true"], "exclude each other"),
        (["--lr", "1e-4", "--learning_rate", "1e-3"], "lr is another name of learning_rate; give learning_rate alone"),
        (["--epochs", "0"], "epochs is 0.0; it must be more than 0"),
        (["--patience", "0"], "patience is 0; it must be at least 1"),
        (["--lora", "0"], "lora is 0; it must be at least 1"),
        (
            ["--max_grad_norm", "0"],
            "max_grad_norm is 0.0, the norm that gradients are scaled down to, so that nothing",
        ),
        (["--learning_rate", "0"], "learning_rate is 0, .* nothing would be learnt; .* set freeze_backbone: true"),
        (["--max_grad_norm", "-1"], "max_grad_norm is -1.0"),
        (["--max_grad_norm", ".nan"], "max_grad_norm is nan"),
        (["--learning_rate", "-1e-4"], "learning_rate is -0.0001; it must be 0 or more"),
        (["--head_lr_multiplier", "-10"], "head_lr_multiplier is -10.0; it must be 0 or more"),
        (["--weight_decay", "-0.01"], "weight_decay is -0.01; it must be 0 or more"),
        (["--poly_power", "-1"], "poly_power is -1.0; it must be 0 or more"),
        (["--warmup_steps", "-5"], "warmup_steps is -5; it must be 0 or more"),
        (["--rotation", "200"], "rotation 200.0 must be 0..180 degrees"),
        (["--val_fraction", "1"], "val_fraction 1.0 must be at least 0 and below 1"),
        (["--label_weights", "some"], "label_weights is 'some'; give .* or auto"),
        (["--precision", "fp8"], "precision is 'fp8'; give one of fp32, bf16, fp16"),
        (["--layer_decay", "1.5"], "layer_decay is 1.5; it must be above 0 and at most 1"),
        (["--cat_max_ratio", ".nan"], "cat_max_ratio is nan; it must be above 0"),
        (["--num_workers", "1000000"], "num_workers is 1000000; it must be at most 1024"),
        (["--crop_size", "1000000000"], "crop_size is 1000000000; it must be at most 16384"),
        (["--total_batch_size", "1000000000000"], "total_batch_size is 1000000000000; it must be at most 1048576"),
        (["--seed", "-1"], "seed is -1; it must be 0 or more and below"),
        (["--seed", "4294967296"], "seed is 4294967296"),
        (["--resize_box", "[512, 0]"], r"resize_box is \[512, 0\]; sides of at least 1 pixel"),
        (["--scale_range", "[2, 1]"], r"scale_range is \[2.0, 1.0\]; \[low, high\] with"),
        (["--scale_range", "[.nan, 1]"], "scale_range is"),
        (["--output_dir", "''"], "output_dir is an empty text; give a value, or leave it out"),
        (["--model", "''"], "model is an empty text"),
    ],
)
def test_wrong_recipes(data, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(write_recipe(tmp_path, data), overrides)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"config": NETWORK | {"mask_wieght": 1}}, "config sets mask_wieght, .*; did you mean mask_weight"),
        ({"config": NETWORK | {"mask_weight": -1.0}}, "mask_weight is -1.0"),
        ({"config": NETWORK | {"num_group_norm_groups": 5}}, "backbone width 32 must be a multiple of 4"),
        ({"config": {"backbone_config": {"model_type": "vit"}}}, "vit is no backbone of transformers; dinov2, "),
        ({"processor": {"windw_size": 3}}, "no setting .'windw_size'.; did you mean window_size"),
        ({"processor": {"windw_size": 3}, "crop_size": None}, "no setting .'windw_size'."),
        ({"label_weights": [-1.0, 1, 1]}, "label_weights are .-1.0, 1.0, 1.0.; finite numbers"),
        ({"label_weights": {"blau": 2}}, "label_weights names .'blau'., which are no labels"),
        ({"per_device_batch_size": 3}, "total_batch_size 4 is not a multiple of per_device_batch_size 3 x 1 proc"),
        ({"extra_data": "/nowhere/at/all"}, "data set /nowhere/at/all is no folder"),
        ({"report_to": "tensorbord"}, "report_to: tensorbord is no tracker of accelerate; choose of .*tensorboard"),
        ({"output_dir": __file__}, "output_dir .* cannot be made, as .* is no folder that may be written into"),
        ({"output_dir": f"{__file__}/run"}, "output_dir .*run cannot be made, as .*recipes.py is no folder"),
    ],
)
def test_what_needs_no_data_is_refused_before_they_are_read(data, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr("qlseg_hf.training.start.look_at_data", lambda recipe: pytest.fail("every image was read"))
    with pytest.raises((OSError, TypeError, ValueError), match=message):
        settle_recipe(load_recipe(write_recipe(tmp_path, data, **changes), []))


@pytest.mark.parametrize("text", ["- a\n", "a: [\n"])  # others: robustness/test_security_text.py
def test_recipes_that_are_no_recipes(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match="must hold `key: value` lines|is not a YAML file"):
        load_recipe(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    "key, hint",
    [
        ("lr0", "learning_rate"),
        ("numTrainEpochs", "epochs"),
        ("train_batch_size", "total_batch_size"),
        ("imgsz", "crop_size"),
        ("image-size", "crop_size"),
        ("mixed_precision", "precision"),
        ("fp16", "precision"),
        ("early_stopping_patience", "patience"),
        ("degrees", "rotation"),
        ("workers", "num_workers"),
        ("pretrained", "model"),
        ("data_dir", "data"),
        ("classes", "label_names"),
        ("gpus", "devices belong to the launcher"),
        ("save_dir", "output_dir"),
        ("optimizer", "AdamW"),
        ("lr_scheduler_type", "polynomial"),
        ("warmup", "warmup_steps"),
        ("gradient_accumulation_steps", "accumulation follows"),
        ("dice_weight", "config: {"),
        ("window_size", "processor: {"),
        ("check-data", "qlseg check RECIPE looks at the data alone"),
        ("num_worker", "num_workers"),
        ("maxsteps", "max_steps"),
        ("lod", "keys are data, "),  # spelt somewhat like lora
        ("banana", "keys are data, "),
    ],
)
def test_names_of_other_trainers(data, tmp_path, key, hint):
    hint = f"did you mean {hint}?" if hint in Recipe.__dataclass_fields__ else hint
    with pytest.raises(ValueError, match=re.escape(f"unknown key {key}; ") + ".*" + re.escape(hint)):
        load_recipe(write_recipe(tmp_path, data), [f"--{key}", "1"])


def test_synonyms_are_of_keys():
    assert SYNONYMS.keys() <= Recipe.__dataclass_fields__.keys()
    words = " ".join([*SYNONYMS.values(), *ADVICE.values()]).split()
    assert len(words) == len(set(words)) and all(re.fullmatch("[a-z0-9]+", word) for word in words)
    assert not set(words) & Recipe.__dataclass_fields__.keys()


def test_batch_that_does_not_divide():
    with pytest.raises(
        ValueError, match="total_batch_size 6 is not a multiple of per_device_batch_size 2 x 2 processes"
    ):
        small_recipe(total_batch_size=6).accumulation_steps(2)
    assert small_recipe(total_batch_size=8).accumulation_steps(2) == 2
