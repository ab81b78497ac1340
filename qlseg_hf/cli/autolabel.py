# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`qlseg autolabel --model TEACHER --data SOURCE --output DIR`, on several devices by torchrun as `predict`."""

import os
import sys
from collections.abc import Callable

import click

from . import predict
from .options import PATH, SHARE, Number, dtype, subcommand

CONFIDENCE, LEAST_SHARE = 0.7, 0.2  # chosen by the table in docs/training.md
AS_PREDICT = (
    *("scales", "flip", "do_resize", "batch_size", "batching", "max_windows", "max_memory_mb", "device"),
    *("workers", "strict", "image_column", "split", "dataset_config"),
)


def options_of_predict(function: Callable) -> Callable:
    """Decorator: options that mean what they mean for `qlseg predict`."""
    options = {option.name: option for option in predict.command.params}
    function.__click_params__ = [options[name] for name in reversed(AS_PREDICT)]
    return function


@subcommand("autolabel", runs_network=True)
@click.option("--model", required=True, metavar="TEACHER", help="Folder or Hub id of the model that labels.")
@click.option(
    "--data", "sources", required=True, multiple=True, metavar="SOURCE", help="As of predict; may be given repeatedly."
)
@click.option("--output", required=True, type=PATH, metavar="DIR", help="Folder for the data set.")
@click.option(
    "--confidence", type=Number(0, 1, min_open=True), default=CONFIDENCE, help="Pixels below it do not count."
)
@click.option(
    "--least_share",
    type=SHARE,
    default=LEAST_SHARE,
    help="Of each label's pixels, the surest that count even below it, or rare labels would vanish.",
)
@dtype("float32")
@options_of_predict
def command(confidence: float, least_share: float, **settings) -> None:
    """Label images by a model: a data set of the pixels that it is sure of, to train on.

    SOURCE is what `qlseg predict` takes, but videos. DIR/images holds the images (hard links where possible),
    DIR/masks a label per pixel, 255 (65535 beyond 255 labels) where the model is less sure, DIR/data.yaml names and
    rules: `qlseg check DIR/data.yaml`, `qlseg train --extra_data DIR`. DIR/autolabel.json counts what was kept.

    The same command goes on where it was stopped. Another --confidence does not run the network again. Images that
    fail are listed in DIR/.predictions/failures.jsonl; then the exit status is 3.
    """
    from ..predict.autolabel import PREDICTIONS, autolabel, describe_report
    from ..predict.request import Request, describe

    summary, report = autolabel(Request(**settings), confidence, least_share)
    if os.environ.get("RANK", "0") == "0":
        print(describe(summary, settings["output"] / PREDICTIONS))
        print(describe_report(report, settings["output"]))
    if summary.num_failed:
        sys.exit(predict.FAILED)


if __name__ == "__main__":
    command()
