"""What the tests of the converter share: running it, and checkpoints in the forms that people store."""

from pathlib import Path

import torch

from qlseg_hf.cli.main import run as run_command
from qlseg_hf.convert.reader import read_checkpoint


def whole_and_meta(path: Path, **options) -> tuple[dict, dict]:
    source = read_checkpoint(path, **options)
    return source.state_dict, source.meta


def run(capsys, *arguments) -> tuple[int, str]:
    """Exit status of `qlseg convert`, and its sentence, or what it printed if there is none."""
    status = run_command(["convert", *arguments])
    captured = capsys.readouterr()
    return status, captured.err.strip().splitlines()[-1] if captured.err.strip() else captured.out


def prefixed(prefix: str, weights: dict) -> dict:
    return {prefix + key: value for key, value in weights.items()}


def inside(weights: dict, wrapper: str) -> dict:
    """A wrapper around a part of the network, as compiling or distributing it leaves it."""
    return {key.replace("backbone.", f"backbone.{wrapper}."): value for key, value in weights.items()}


def negative(weights: dict) -> dict:
    return {key: -value for key, value in weights.items()}


def buffers(weights: dict) -> dict:
    """As mmcv's EMAHook registers them."""
    return {f"ema_{key.replace('.', '_')}": value for key, value in weights.items() if "empty_weight" not in key}


def same_weights(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
