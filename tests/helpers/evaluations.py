"""What the tests of evaluation share: a small data set with references, and results to compare."""

import itertools
import json
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qlseg_hf import load_picture, segment
from qlseg_hf.evaluation import evaluator as evaluation_module
from qlseg_hf.utils.distributed import StopRequestedError

SUM_COUNTS = evaluation_module.sum_counts
SIZES = [(70, 110), (80, 102), (97, 95), (64, 64), (110, 71)]  # of 5 pictures, which neither 2 nor 3 divide


def make_references(root: Path, stored) -> None:
    """Five pictures laid out like ADE20K; references are what the network sees, with a band that differs."""
    source, model = load_picture(stored.picture("large")), stored.model()
    for i, (height, width) in enumerate(SIZES):
        picture = np.ascontiguousarray(source[40 * i : 40 * i + height, 20 * i : 20 * i + width])
        labels = segment(model, stored.processor, picture)[0].numpy() + 1  # 0 is void
        labels[: 12 * (i + 1)] = np.arange(width) // 5 % 21
        for part, array in (("images", picture), ("annotations", labels.astype(np.uint8))):
            (root / part / "validation").mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / part / "validation" / f"{i}.png")


def strict(path) -> dict:
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def without_time(result: dict) -> dict:
    result = {k: v for k, v in result.items() if k not in ("seconds", "pictures_per_second")}
    if "protocol" in result:
        result["protocol"] = {k: v for k, v in result["protocol"].items() if k != "processes"}
    return result


def evaluate_first(number: int, *given, **settings) -> None:
    """Stop an evaluation after so many pictures; what it has counted is in its state file."""
    asked = itertools.count(1)  # once after each picture
    with pytest.raises(StopRequestedError):
        evaluation_module.evaluate_samples(
            *given, **settings, stop_signal=lambda: signal.SIGTERM if next(asked) >= number else None
        )


def pretend_rank(patch, rank: int, world_size: int) -> None:
    """One of several processes that share the pictures, without a group that would join what they counted."""
    patch.setattr(evaluation_module, "process_place", lambda: (rank, world_size))
    patch.setattr(evaluation_module, "sum_counts", lambda *given: SUM_COUNTS(*given[:3], 1))
