# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`qlseg`: one command, a sub-command per job. Each lies in the file of its name and is imported when asked for."""

import importlib
import sys
from collections.abc import Iterable

import click

# in the order in which people meet them
COMMANDS = {
    "convert": "Port a released .pth checkpoint to a folder for from_pretrained.",
    "check": "Look at data before training on it.",
    "train": "Train or fine-tune by a recipe.",
    "evaluate": "Measure mIoU, mAcc and aAcc on a data set, by the paper's protocol.",
    "predict": "Segment pictures: label maps and overlays.",
    "autolabel": "Label images by a model, where it is sure, to train on.",
    "export": "Write an ONNX file, and compare it with PyTorch.",
    "quantize": "Write a model with int8 weights.",
    "app": "A page that segments pictures in the browser.",
    "scenes": "Draw a small data set of scenes.",
    "benchmark": "Time and memory as ratios against baselines of the same run.",
}


class _LazyGroup(click.Group):
    """A group that imports a sub-command only to run it or to show its help; `--help` itself imports none."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return importlib.import_module(f".{name}", __package__).command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qlseg-hf", prog_name="qlseg")
def group() -> None:
    """QLSeg for transformers: semantic segmentation with plain vision transformers."""


def run(arguments: Iterable[object]) -> int:
    """Run `qlseg ARGUMENTS` in this process; returns its exit status.

    A wrong input is one sentence on stderr and status 1, a wrong option status 2.
    """
    try:
        group.main([str(argument) for argument in arguments], prog_name="qlseg")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
