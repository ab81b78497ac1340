# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`qlseg export MODEL FILE.onnx`"""

from pathlib import Path

import click

from .options import PATH, subcommand


@subcommand("export")
@click.argument("model")
@click.argument("output", type=PATH, metavar="FILE.onnx")
@click.option("--without_logits", is_flag=True, help="Leave out the output `logits`, which `segment` does not need.")
def command(model: str, output: Path, without_logits: bool) -> None:
    """Write a network as an ONNX file, and compare onnxruntime with PyTorch before it is put in place.

    MODEL is a folder or a Hub id. The file takes any batch, height and width, and holds the settings of the processor
    too: `qlseg_hf.export.OnnxQLSeg.from_pretrained` takes the model's place in `qlseg_hf.segment`. The report is
    printed and written to FILE_report.json.
    """
    from ..export.compare import export

    export(model, output, with_logits=not without_logits)
