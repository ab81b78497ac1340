"""Little data: a model labels images, the check and the training take them, and a stopped run goes on exactly."""

import json
from pathlib import Path

import numpy as np
import pytest
from networks import tiny_config, varied_model
from PIL import Image
from programs import make_data, read_lines, write_recipe

from qlseg_hf import QLSegImageProcessor
from qlseg_hf.cli.main import run
from qlseg_hf.training.recipe import load_recipe

NAMES = [f"label {number}" for number in range(20)]


@pytest.fixture
def pseudo(tmp_path) -> Path:
    """What a model of other label numbers, with random weights, makes of five images and one that is broken."""
    varied_model(tiny_config(id2label=dict(enumerate(NAMES[::-1])))).save_pretrained(tmp_path / "teacher")
    window = {"size": {"shortest_edge": 32}, "window_size": 32, "window_stride": 20}
    QLSegImageProcessor(**window).save_pretrained(tmp_path / "teacher")
    rng = np.random.default_rng(1)
    (tmp_path / "photos" / "train").mkdir(parents=True)
    for number in range(5):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize((45, 36), Image.BICUBIC).save(tmp_path / "photos" / "train" / f"{number}.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no picture")
    words = ["--model", tmp_path / "teacher", "--data", tmp_path / "photos", "--output", tmp_path / "pseudo"]
    assert run(["autolabel", *words, "--confidence", 0.066, "--least_share", 0, "--workers", 0, "--flip"]) == 3
    return tmp_path / "pseudo"


def test_from_images_to_a_resumed_run(pseudo, server, tmp_path, capsys):
    report = json.loads((pseudo / "autolabel.json").read_text())
    assert report["num_images"] == 5 and report["num_failed"] == 1 and 0.1 < report["share_kept"] < 1
    capsys.readouterr()
    for source in (pseudo, pseudo / "data.yaml"):
        run(["check", source, "--json"])
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert sum(found["images"].values()) == 5 and [row["name"] for row in found["labels"]] == NAMES[::-1]
        assert [row["pixels"] for row in found["labels"]] == [row["kept"] for row in report["labels"]]

    make_data(tmp_path / "data", 4, 2)
    settings = {"extra_data": str(pseudo), "num_workers": 0, "eval_steps": 4, "ema_decay": None, "max_steps": 4}
    settings |= {"label_names": dict(enumerate(NAMES))}
    recipe = write_recipe(tmp_path, tmp_path / "data", **settings)
    printed = server.succeed(tmp_path / "log", "train", recipe)
    whole = tmp_path / "run"
    assert "extra_data_share  0.5: of each batch, of 5 extra images beside 4" in printed
    assert f"extra data {pseudo}, 5 images:" in printed
    assert load_recipe(whole / "recipe.yaml").extra_data_share == 0.5
    middle = whole / "checkpoints" / "step-00000002"
    words = ["train", recipe, "--resume", middle, "--output_dir"]
    printed = server.succeed(tmp_path / "log", *words, tmp_path / "again")
    again = read_lines(tmp_path / "again" / "losses.jsonl")
    assert again == read_lines(whole / "losses.jsonl")[2:] and len(again) == 2
    # with one extra image less the checkpoint is of other data
    for kind in ("images", "masks"):
        (pseudo / kind / "train__0.png").unlink()
    code, printed = server.run(tmp_path / "log", *words, tmp_path / "third")
    assert code == 1 and "the pictures of the training split are not those that" in printed
