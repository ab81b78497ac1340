"""`qlseg train --data FOLDER` without a recipe: what is decided, kept, and taken up again; early stopping."""

import json
from pathlib import Path

import pytest
import torch
from networks import timm_weights
from programs import read_lines, stats_of, write_recipe
from recipes import small_recipe
from safetensors.torch import save_file

from qlseg_hf import QLSegForSemanticSegmentation, QLSegImageProcessor
from qlseg_hf.training.checkpoints import checkpoints
from qlseg_hf.training.distributed import start_accelerator
from qlseg_hf.training.recipe import load_recipe


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A ViT in timm's naming: 64 wide, 2 layers, patches of 8, stored for 32 pixels."""
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    torch.manual_seed(0)
    save_file(timm_weights(depth=2), path)
    return path


@pytest.fixture
def run(server, tmp_path):
    """Run `qlseg train ...` in `tmp_path`."""
    return lambda *words, **settings: server.complete("train", *words, folder=tmp_path, **settings)


def test_a_folder_is_enough(run, data, weights, tmp_path):
    """Decided, told and kept; the same command finds it finished, a longer one goes on by the same decisions."""
    own = make_own(tmp_path / "shapes", data)
    words = ["--data", own, "--backbone", weights, "--label_weights", "auto", "--num_workers", "1"]
    done = run(*words, "--max_steps", "3", expect=0)
    place = tmp_path / "runs" / "shapes"
    assert "decided, because the recipe leaves it open:" in done.stderr
    assert "crop_size              32: the images' short side is 36, patches are 8 pixels wide" in done.stderr
    recipe = load_recipe(place / "recipe.yaml")
    assert recipe.label_names == ["label_0", "label_1", "label_2"] and recipe.max_steps == 3
    assert set(recipe.label_weights) == set(recipe.label_names)
    assert recipe.precision == ("bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32")
    open_keys = [key for key, value in vars(recipe).items() if value is None]
    assert not {"crop_size", "total_batch_size", "learning_rate", "eval_steps", "ignore_index"} & set(open_keys)
    best = QLSegForSemanticSegmentation.from_pretrained(place / "best")
    assert best.config.backbone_config.hidden_size == 64 and best.config.num_labels == 3
    assert list(QLSegImageProcessor.from_pretrained(place / "best").image_mean) == [0.5] * 3
    assert (place / "report.html").is_file() and (place / "last" / "model.safetensors").is_file()
    for entry in read_lines(place / "losses.jsonl"):
        assert entry["loss_class"] + entry["loss_mask"] + entry["loss_dice"] == pytest.approx(entry["loss"], rel=1e-4)
        assert entry["head_learning_rate"] == pytest.approx(10 * entry["learning_rate"])
    evaluation = read_lines(place / "evaluations.jsonl")[-1]
    assert [row["label"] for row in evaluation["per_label"]] == recipe.label_names

    before = stats_of(place / "checkpoints")
    again = run(*words, expect=0)
    assert "is finished: 3 of 3 steps are made" in again.stdout
    assert "decided" not in again.stderr and stats_of(place / "checkpoints") == before
    words[3] = "small"  # a size means what it was decided to be
    assert recipe.resize_box == [2048, 48] and "resize_box             [2048, 48]: " in done.stderr
    longer = run(*words, "--max_steps", "4", expect=0)
    assert "the recipe has changed since step-00000003: max_steps: 3 -> 4\n" in longer.stderr
    assert vars(load_recipe(place / "recipe.yaml")) == vars(recipe) | {"max_steps": 4}
    further = ["--data", own, "--model", place / "best", "--max_steps", "1", "--output_dir", tmp_path / "further"]
    onward = run(*further, "--num_workers", "0", expect=0)
    assert "[2048, 48]: long and short side of the images, as the model's processor has it" in onward.stderr
    assert "warning: images are trained on" not in onward.stderr
    other = run("--data", own, "--backbone", tmp_path / "x.safetensors", "--max_steps", "6")
    assert other.returncode == 1 and "give that one or none, or choose another output_dir" in other.stderr


def make_own(root: Path, data: Path) -> Path:
    """The data under a name of their own, in another layout."""
    for split, name in (("training", "train"), ("validation", "val")):
        for kind, folder in (("images", "images"), ("annotations", "masks")):
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / name).symlink_to(data / kind / split)
    return root


def test_a_run_without_gain_ends(server, data, tmp_path):
    """Nothing is learnt at a rate of nearly 0, so no evaluation is better than the first."""
    changes = {"learning_rate": 1e-30, "ema_decay": None, "eval_steps": 1, "save_steps": 10, "patience": 2}
    recipe = write_recipe(tmp_path, data, num_workers=0, vertical_flip=True, rotation=20, **changes)
    done = server.complete("train", recipe, expect=0)
    said = "stopped after step 3 of 24: 2 evaluations in a row were not better than that of step 1 (patience)"
    assert said in done.stdout
    place = tmp_path / "run"
    assert json.loads((place / "last" / "training.json").read_text())["step"] == 3
    assert [path.name for path in checkpoints(place)][-1] == "step-00000003"
    again = server.complete("train", recipe, expect=0)
    assert "is finished: 3 of 24 steps are made" in again.stdout and said in again.stdout
    done = server.complete("train", recipe, "--patience", "3", expect=0)
    assert "stopped after step 4 of 24: 3 evaluations" in done.stdout


def test_precision_that_contradicts_the_launcher(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match="precision is fp32, but accelerate was told bf16 .*; make them the same"):
        start_accelerator(small_recipe(precision="fp32"))


def test_a_tracker_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("qlseg_hf.training.distributed.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ImportError, match="report_to: wandb needs a package that is not installed; pip install wandb"):
        start_accelerator(small_recipe(report_to=["tensorboard", "wandb"]))


def test_a_model_whose_labels_are_not_those_of_the_data(run, data, tiny_model, tmp_path):
    own = make_own(tmp_path / "own", data)
    (own / "classes.txt").write_text("red\ngreen\nblue\n")
    tiny_model.save_pretrained(tmp_path / "model")
    QLSegImageProcessor(window_size=32, window_stride=32, size={"shortest_edge": 32}).save_pretrained(
        tmp_path / "model"
    )
    done = run("--data", own, "--model", tmp_path / "model", "--max_steps", "1")
    assert done.returncode == 1 and not (tmp_path / "runs").exists()
    assert "the data call their labels red, green, blue, and " in done.stderr
    assert "set label_names to say which the label maps hold" in done.stderr.splitlines()[-1]
