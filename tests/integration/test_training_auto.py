"""`qlseg train --data FOLDER` without a recipe: what is decided, kept, and taken up again; early stopping."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from networks import timm_weights
from PIL import Image
from programs import stats_of, write_recipe
from recipes import small_recipe
from safetensors.torch import load_file, save_file

from qlseg_hf import QLSegForSemanticSegmentation, QLSegImageProcessor, segment
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
    losses = [json.loads(line) for line in (place / "losses.jsonl").read_text().splitlines()]
    for entry in losses:
        assert entry["loss_class"] + entry["loss_mask"] + entry["loss_dice"] == pytest.approx(entry["loss"], rel=1e-4)
        assert entry["head_learning_rate"] == pytest.approx(10 * entry["learning_rate"])
    evaluation = json.loads((place / "evaluations.jsonl").read_text().splitlines()[-1])
    assert [row["label"] for row in evaluation["per_label"]] == recipe.label_names

    before = stats_of(place / "checkpoints")
    again = run(*words, expect=0)
    assert "is finished: 3 of 3 steps are made" in again.stdout
    assert "decided" not in again.stderr and stats_of(place / "checkpoints") == before
    words[3] = "small"  # a size means what it was decided to be
    longer = run(*words, "--max_steps", "4", expect=0)
    assert "the recipe has changed since step-00000003: max_steps: 3 -> 4\n" in longer.stderr
    assert vars(load_recipe(place / "recipe.yaml")) == vars(recipe) | {"max_steps": 4}
    other = run("--data", own, "--backbone", tmp_path / "x.safetensors", "--max_steps", "6")
    assert other.returncode == 1 and "give that one or none, or choose another output_dir" in other.stderr


def make_own(root: Path, data: Path) -> Path:
    """The data under a name of their own, in another layout."""
    for split, name in (("training", "train"), ("validation", "val")):
        for kind, folder in (("images", "images"), ("annotations", "masks")):
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / name).symlink_to(data / kind / split)
    return root


@pytest.mark.slow
def test_a_resumed_run_equals_one_that_was_not_stopped(run, data, weights, tmp_path):
    words = ["--data", data, "--backbone", weights, "--num_workers", "1", "--max_steps", "6", "--save_steps", "2"]
    for name in ("whole", "cut"):
        done = run(*words, "--output_dir", tmp_path / name, "--keep_checkpoints", "9", expect=0)
    for path in checkpoints(tmp_path / "cut")[1:]:
        for file in sorted(path.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        path.rmdir()
    done = run("--data", data, "--output_dir", tmp_path / "cut")  # nothing else is said again
    assert done.returncode == 0 and "resuming at step 1 " in done.stdout, done.stderr[-2000:]
    one, other = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("whole", "cut"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert (tmp_path / "whole" / "losses.jsonl").read_text() == (tmp_path / "cut" / "losses.jsonl").read_text()


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


def test_data_yaml_in_place_of_the_folder(run, data, weights, tmp_path):
    settings = {"data": str(data), "label_names": ["red", "green", "blue"], "do_reduce_labels": False}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(settings))
    words = ["--data", tmp_path / "data.yaml", "--backbone", weights, "--max_steps", "1", "--num_workers", "1"]
    run(*words, "--epochs", "100", "--output_dir", tmp_path / "run", expect=0)
    recipe = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert (recipe.data, recipe.max_steps, recipe.label_names) == (str(data), 1, ["red", "green", "blue"])


def test_precision_that_contradicts_the_launcher(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match="precision is fp32, but accelerate was told bf16 .*; make them the same"):
        start_accelerator(small_recipe(precision="fp32"))


def test_a_tracker_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("qlseg_hf.training.distributed.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ImportError, match="report_to: wandb needs a package that is not installed; pip install wandb"):
        start_accelerator(small_recipe(report_to=["tensorboard", "wandb"]))


def write_bands(root: Path, count: int) -> Path:
    """Images of five bands of 16 bits, of which the last tells the label."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True)
        for i in range(count):
            labels = np.kron(rng.integers(0, 2, (4, 4)), np.ones((8, 8), dtype=int)).astype(np.uint8)
            picture = rng.integers(0, 4000, (32, 32, 5)).astype(np.uint16)
            picture[..., 4] += 20_000 * labels.astype(np.uint16)
            np.save(root / "images" / split / f"{i}.npy", picture)
            Image.fromarray(labels).save(root / "masks" / split / f"{i}.png")
    return root


@pytest.mark.slow
def test_five_bands_need_no_word(run, weights, tmp_path):
    root = write_bands(tmp_path / "bands", 4)
    done = run("--data", root, "--backbone", weights, "--max_steps", "2", "--num_workers", "0", expect=0)
    best = tmp_path / "runs" / "bands" / "best"
    model = QLSegForSemanticSegmentation.from_pretrained(best)
    processor = QLSegImageProcessor.from_pretrained(best)
    assert model.config.backbone_config.num_channels == 5 == len(processor.image_mean)
    assert segment(model, processor, np.load(root / "images" / "val" / "0.npy"))[0].shape == (32, 32)
    # the bands of a model are not changed without mean and deviation of the others
    words = ["--data", root, "--model", best, "--num_channels", "4", "--output_dir", tmp_path / "four"]
    done = run(*words)
    assert done.returncode == 1 and "num_channels is 4, but mean and deviation are those of 5 bands" in done.stderr


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
