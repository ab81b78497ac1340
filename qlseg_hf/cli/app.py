# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`qlseg app MODEL`"""

from pathlib import Path

import click

from .options import PATH, dtype, subcommand


@subcommand("app", runs_network=True)
@click.argument("model", envvar="QLSEG_MODEL")
@click.option(
    "--pictures", type=PATH, metavar="DIR", envvar="QLSEG_PICTURES", help="Example pictures; drawn ones if not given."
)
@dtype("auto")
def command(model: str, pictures: Path | None, dtype: str) -> None:
    """A page that segments pictures: hover for label names, set the opacity, choose labels, download the label map.

    MODEL is a folder or a Hub id; QLSEG_MODEL and QLSEG_PICTURES in the environment do as well. Gradio (extra `app`)
    reads GRADIO_SERVER_NAME and GRADIO_SERVER_PORT.
    """
    from ..app.page import serve

    serve(model, pictures, dtype)
