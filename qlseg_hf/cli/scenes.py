# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`qlseg scenes FOLDER`"""

from pathlib import Path

import click

from .options import PATH, subcommand


@subcommand("scenes")
@click.argument("folder", type=PATH)
@click.option("--train", type=click.IntRange(1), default=200, help="Number of training scenes.")
@click.option("--validation", type=click.IntRange(1), default=50, help="Number of validation scenes.")
@click.option("--size", type=click.IntRange(16), default=96, help="Sides are 0.85 to 1.4 times this, pixels.")
@click.option(
    "--labels", type=click.IntRange(3, 60), default=7, help="3, or 7 to 60: those above 7 are kinds of balls."
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Of all draws.")
def command(folder: Path, train: int, validation: int, size: int, labels: int, seed: int) -> None:
    """Draw a small data set of scenes with labels, to try things on: images/, annotations/ and labels.json.

    FOLDER is made if it is not there; it must be empty.
    """
    from ..data.scenes import make_scenes

    make_scenes(folder, {"training": train, "validation": validation}, size, seed, labels)
