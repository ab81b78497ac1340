# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`qlseg convert CHECKPOINT FOLDER`"""

from pathlib import Path

import click

from .options import PATH, subcommand


@subcommand("convert")
@click.argument("checkpoint", type=PATH)
@click.argument("folder", type=PATH)
@click.option("--variant", metavar="NAME", help="Released network, if the file does not say.")
@click.option("--labels", type=PATH, metavar="FILE", help="Label names instead of the file's: JSON, or one per line.")
@click.option("--ema", is_flag=True, help="Take the moving average of the weights instead of them.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Of the weights; as stored if not given."
)
@click.option("--push_to_hub", metavar="ID", help="Also upload the folder as this model repository.")
@click.option("--private", is_flag=True, help="Make that repository private.")
@click.option("--revision", metavar="BRANCH", help="Branch to upload to, made if need be; main if not given.")
def command(checkpoint: Path, folder: Path, **settings) -> None:
    """Port a released (or fine-tuned) .pth checkpoint to a folder for from_pretrained.

    Neither mmcv nor mmsegmentation is needed, and nothing in the file is executed. Every key of the file is used or
    dropped with a reason; anything missing, unexpected, misshapen or not finite is named, and then nothing is written.
    """
    from ..convert import convert_file

    convert_file(checkpoint, folder, **settings)
