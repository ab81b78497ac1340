# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`qlseg export MODEL FILE.onnx`, `... FILE.xml --format openvino` and `... FOLDER --format web`"""

from pathlib import Path

import click

from .options import PATH, subcommand


@subcommand("export")
@click.argument("model")
@click.argument("place", type=PATH, required=False, metavar="FILE|FOLDER")
@click.option("--output", type=PATH, help="The file or folder, if it is not the second argument.")
@click.option(
    "--format",
    type=click.Choice(["onnx", "openvino", "web"]),
    default="onnx",
    help="A file for onnxruntime or OpenVINO, or a page for a browser.",
)
@click.option(
    "--outputs",
    type=click.Choice(["scores", "labels"]),
    default="scores",
    help="What the graph of a file ends in; `labels` is one label per pixel.",
)
@click.option("--without_logits", is_flag=True, help="Leave out the output `logits`, which `segment` does not need.")
@click.option(
    "--weights", type=click.Choice(["fp32", "fp16", "int8"]), help="How a page stores the weights.  [default: fp16]"
)
@click.option("--runtime", type=PATH, help="Folder with the files of onnxruntime-web for a page, instead of npm's.")
def command(
    model: str,
    place: Path | None,
    output: Path | None,
    format: str,
    outputs: str,
    without_logits: bool,
    weights: str | None,
    runtime: Path | None,
) -> None:
    """Write a network for onnxruntime (FILE.onnx), for OpenVINO (FILE.xml, and FILE.bin beside it) or as a page that
    runs in a browser, compared with PyTorch before it is put in place.

    MODEL is a folder or a Hub id. A file takes any batch, height and width, and holds the settings of the processor
    too: `OnnxQLSeg` and `OpenVINOQLSeg` of `qlseg_hf.export` take the model's place in `qlseg_hf.segment` and in
    `pipeline`, and the file its place in `qlseg predict` and `qlseg evaluate`. The report is printed and written to
    FILE_report.json.

    With `--format web` a new FOLDER holds everything a static host needs: the page segments images in the browser and
    asks nothing of another host. onnxruntime-web is fetched from the npm registry once, and kept.
    """
    if (place is None) == (output is None):
        raise click.UsageError("give one place to write to: FILE, FOLDER or --output")
    path = place or output
    given = {"--weights": weights, "--runtime": runtime}
    if format != "web":
        if unused := [name for name, value in given.items() if value is not None]:
            raise click.UsageError(f"{unused[0]} is for --format web")
        if outputs == "labels" and without_logits:
            raise click.UsageError("--without_logits is for --outputs scores; a graph of labels has no logits")
        from ..export.compare import export

        export(model, path, format=format, with_logits=not without_logits, labels_only=outputs == "labels")
    else:
        if outputs == "labels" or without_logits:
            raise click.UsageError("--outputs labels and --without_logits are for files; a page needs scores")
        from ..export.web import export_page

        export_page(model, path, weights=weights or "fp16", runtime=runtime)
