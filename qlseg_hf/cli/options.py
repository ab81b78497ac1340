# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What the sub-commands share: how options are written, what several of them take, and one sentence for a wrong input.

No import of torch here, so that `--help` answers at once.
"""

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


class _Path(click.Path):
    """A path. A shell leaves the `~` of `--output=~/out` as it is, of which a folder called ~ would be made."""

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        return super().convert(os.path.expanduser(value), param, context)


PATH = _Path(path_type=Path)
SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("-", "_"),  # --max-steps is --max_steps
    "show_default": True,
}


class Number(click.FloatRange):
    """A finite number in a range. NaN, which is in any range, is refused."""

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        number = super().convert(value, param, context)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, context)
        return number


POSITIVE = Number(min=0, min_open=True)
SHARE = Number(0, 1)
SCALES = Number(0, 1000, min_open=True)  # as `segment` takes them


class Several(click.ParamType):
    """Values separated by commas, as one: 0.5,1,1.5. Numbers may be separated by spaces, which names may hold."""

    def __init__(self, kind: click.ParamType):
        self.kind, self.name = kind, "names" if kind is click.STRING else "numbers"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple:
        if isinstance(value, (tuple, list)):
            return tuple(value)
        parts = (value if self.kind is click.STRING else value.replace(" ", ",")).split(",")
        if found := tuple(self.kind.convert(part.strip(), param, context) for part in parts if part.strip()):
            return found
        self.fail(f"{value!r} holds none; separate {self.name} by commas.", param, context)


class Device(click.ParamType):
    """A device of this machine that PyTorch computes on, by its name."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> str:
        from ..utils.devices import check_device

        try:
            check_device(value)
        except ValueError as error:
            self.fail(str(error), param, context)
        return value


def subcommand(name: str, *, runs_network: bool = False) -> Callable[[Callable], click.Command]:
    """Decorator: a sub-command in which an error of input, package, system or Hub is one sentence and status 1.

    One that runs a network keeps the memory that it frees, unless the environment says otherwise.
    """

    def decorate(function: Callable) -> click.Command:
        def run(**kwargs) -> None:
            from ..utils.memory import keep_freed_memory_by_default
            from .errors import exit_status

            if runs_network:
                keep_freed_memory_by_default()
            if status := exit_status(f"qlseg {name}", lambda: function(**kwargs)):
                sys.exit(status)

        run.__doc__ = function.__doc__
        run.__click_params__ = getattr(function, "__click_params__", [])
        return click.command(name, context_settings=SETTINGS)(run)

    return decorate


def scales(function: Callable) -> Callable:
    """`--scales` and `--flip` of the multi-scale protocol."""
    function = click.option("--flip", is_flag=True, help="Also average over the mirrored picture.")(function)
    return click.option(
        "--scales", type=Several(SCALES), default="1", help="Factors on the short side, separated by commas."
    )(function)


def dtype(default: str) -> Callable[[Callable], Callable]:
    """Decorator: `--dtype`."""
    return click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default=default,
        help="Of the network; auto: bfloat16 on GPUs and CPUs that have instructions for it, else float32.",
    )


__all__ = ["PATH", "POSITIVE", "SETTINGS", "SHARE", "Device", "Number", "Several", "dtype", "scales", "subcommand"]
