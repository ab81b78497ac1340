"""Broken data stops a run before its first step, with a sentence."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from programs import make_data, write_recipe


def break_data(folder: Path, how: str) -> None:
    """Spoil the training label maps in `folder` in one way."""
    for path in sorted(folder.iterdir()) if how in ("from one", "void", "one label") else [folder / "4.png"]:
        labels = np.asarray(Image.open(path))
        spoilt = {
            "out of range": np.full_like(labels, 77),
            "from one": labels + 1,
            "colours": np.stack([labels, labels, 255 - labels], axis=-1),
            "size": labels[:-3],
            "void": np.full_like(labels, 255),
            "one label": np.full_like(labels, 1),
        }
        if how == "unreadable":
            path.write_bytes(path.read_bytes()[:60])
        else:
            Image.fromarray(spoilt[how]).save(path)


@pytest.mark.parametrize(
    "how, sentence",
    [
        (
            "out of range",
            r"77 in 1620 pixels of 1 label maps; in images/training/4.png. "
            "Translate them, as in label_mapping: {77: 255}",
        ),
        (
            "from one",
            r"set do_reduce_labels: true if 0 is void, .*; set do_reduce_labels: false and ignore_index: 3 if 3",
        ),
        ("one label", r"only one label occurs, 'green', so every answer is right"),
        ("colours", r"1 of 9 label maps are colour pictures; set label_colors"),
        ("size", r"1 of 9 label maps differ in size from their pictures"),
        ("void", r"9 of 9 label maps are ignored throughout"),
        ("unreadable", r"1 of 9 label maps cannot be read; copy them again"),
    ],
)
def test_broken_data_gets_its_sentence(server, tmp_path, how, sentence):
    make_data(tmp_path / "data")
    break_data(tmp_path / "data" / "annotations" / "training", how)
    done = server.complete("check", write_recipe(tmp_path, tmp_path / "data"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(f"the data set cannot be trained on: .*{sentence}", done.stderr), done.stderr
    assert not (tmp_path / "run").exists()


def test_training_refuses_broken_data(server, tmp_path):
    make_data(tmp_path / "data")
    break_data(tmp_path / "data" / "annotations" / "training", "out of range")
    done = server.complete("train", write_recipe(tmp_path, tmp_path / "data"))
    assert done.returncode == 1 and "the data set cannot be trained on" in done.stderr
    assert not (tmp_path / "run").exists()


def test_check_data_alone(server, data, tmp_path):
    done = server.complete("check", write_recipe(tmp_path, data), expect=0)
    assert "checked 9 pictures: 3 of 3 labels occur" in done.stdout
    assert not (tmp_path / "run").exists()
