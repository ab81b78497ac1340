# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What the sub-commands share: how options are written, what several of them take, and one sentence for a wrong input.

No import of torch here, so that `--help` answers at once.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)
SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("-", "_"),  # --max-steps is --max_steps
    "show_default": True,
}


class Several(click.ParamType):
    """Values separated by commas, as one: 0.5,1,1.5. Numbers may be separated by spaces, which names may hold."""

    def __init__(self, kind: type):
        self.kind, self.name = kind, "names" if kind is str else "numbers"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple:
        if isinstance(value, (tuple, list)):
            return tuple(value)
        try:
            parts = (value if self.kind is str else value.replace(" ", ",")).split(",")
            return tuple(self.kind(part.strip()) for part in parts if part.strip())
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 0.5,1,1.5", param, context)


class Device(click.ParamType):
    """A device of this machine that PyTorch computes on, by its name."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> str:
        import torch

        try:
            torch.zeros(1, device=value).item()
        except (AssertionError, NotImplementedError, RuntimeError) as error:  # built without it, it is not there, ...
            self.fail(f"this machine has no {value!r} to compute on: {str(error).splitlines()[0]}", param, context)
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
        "--scales", type=Several(float), default="1", help="Factors on the short side, separated by commas."
    )(function)


def dtype(default: str) -> Callable[[Callable], Callable]:
    """Decorator: `--dtype`."""
    return click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default=default,
        help="Of the network; auto: bfloat16 on GPUs and CPUs that have instructions for it, else float32.",
    )


__all__ = ["PATH", "SETTINGS", "Device", "Several", "dtype", "scales", "subcommand"]
