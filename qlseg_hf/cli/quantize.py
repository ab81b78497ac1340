# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`qlseg quantize MODEL FOLDER [PICTURE...]`"""

from pathlib import Path

import click

from .options import PATH, subcommand


@subcommand("quantize")
@click.argument("model")
@click.argument("folder", type=PATH)
@click.argument("pictures", nargs=-1, metavar="[PICTURE...]")
def command(model: str, folder: Path, pictures: tuple[str, ...]) -> None:
    """Write a model with int8 weights that from_pretrained reads, and compare it with the one it came from.

    MODEL is a folder or a Hub id, FOLDER a new folder with a third of the bytes. Linear layers compute in int8, with
    weights scaled per channel and activations per token; kept in fp32 are the classifier and what makes the mask
    logits. With PICTUREs both networks segment them: time and agreement. Needs the extra `quantize`.
    """
    from ..export.quantize import quantize

    quantize(model, folder, list(pictures))
