# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`qlseg train [RECIPE] [--key value ...]`, on several devices `accelerate launch -m qlseg_hf.cli.train ...`."""

import dataclasses
import inspect
import re
import sys
import typing

import click

from .options import SETTINGS


def describe_keys(recipe: str | None) -> list[tuple[str, str]]:
    """("--key TYPE", "what it is  [default: ...]") of every key; with a recipe, its values instead of the defaults.

    The default of a key that is decided at the start is `auto`.
    """
    from ..training.recipe import OTHER_NAMES, Recipe, find_recipe
    from ..utils.yaml_text import read_mapping

    values = {} if recipe is None else read_mapping(find_recipe(recipe))
    arguments = inspect.cleandoc(Recipe.__doc__).partition("Args:\n")[2]  # Python 3.13 takes indentation away itself
    texts = {}
    for name, text in re.findall(r"^ {4}(\w+): (.*?)(?=\n {4}\w|\Z)", arguments, re.DOTALL | re.MULTILINE):
        texts[name] = " ".join(text.split()).rstrip(".")
    others = {name: other for other, name in OTHER_NAMES.items()}
    rows, hints = [], typing.get_type_hints(Recipe)
    for entry in dataclasses.fields(Recipe):
        default = values.get(entry.name, entry.default)
        if default is dataclasses.MISSING:
            default = entry.default_factory() if entry.default_factory is not dataclasses.MISSING else "required"
        default = "auto" if default in (None, {}) and "auto: " in texts[entry.name] else default
        kind = getattr(hints[entry.name], "__name__", str(hints[entry.name])).replace("None", "null")
        names = f"--{entry.name}" + (f", --{others[entry.name]}" if entry.name in others else "")
        rows.append((f"{names} {kind.upper()}", f"{texts[entry.name]}  [default: {default}]"))
    return rows


def split_words(words: tuple[str, ...]) -> tuple[str | None, list[str]]:
    """The recipe or data among the words of the command line, if there is one, and the other words.

    Raises:
        ValueError: there are two.
    """
    sources, others, rest = [], [], list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            sources.append(word)
            continue
        others.append(word)
        if "=" not in word and rest:
            others.append(rest.pop(0))
    if len(sources) > 1:
        raise ValueError(f"one of {', '.join(sources)} is wanted; keys are written --key value")
    return (sources[0] if sources else None), others


class RecipeCommand(click.Command):
    """A command whose options are the keys of a recipe. `--help` after a recipe shows that recipe's values.

    Options are not parsed here: `load_recipe` reads them as YAML and answers a misspelt one with the nearest key.
    """

    def collect_usage_pieces(self, context: click.Context) -> list[str]:
        return ["[RECIPE]", "[--key value ...]"]

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        context.obj = args[0] if args and not args[0].startswith("-") else None
        return super().parse_args(context, args)

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Keys of a recipe, all of them options; values are YAML"):
            formatter.write_dl(describe_keys(context.obj))
        with formatter.section("Options"):
            formatter.write_dl([("-h, --help", "Show this message; after RECIPE, with its values as defaults.")])


@click.command("train", cls=RecipeCommand, context_settings=SETTINGS | {"ignore_unknown_options": True})
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def command(words: tuple[str, ...]) -> None:
    """Train or fine-tune, on one device; on several with `accelerate launch -m qlseg_hf.cli.train`.

    `qlseg train --data FOLDER` is enough: what is not said is decided from data, encoder and machine, told, and
    written to `recipe.yaml` in the folder of the run. RECIPE is a YAML file with any of the keys below, or the name of
    one that comes with the package; keys given beside it count more. The same command resumes a run that was stopped.

    `output_dir` holds `best` (by mIoU on the validation split) and `last`, ordinary folders for from_pretrained;
    `report.html`; `checkpoints/step-N` for resuming; `losses.jsonl` and `evaluations.jsonl`; `curves.png`; `overlays`
    of validation images; `unreadable.txt` if images had to be left out.
    """
    from ..training.loop import train
    from ..training.recipe import load_recipe
    from ..utils.distributed import StopRequestedError, StopSignals, report_deaths
    from ..utils.memory import keep_freed_memory_by_default
    from .errors import exit_status

    keep_freed_memory_by_default()
    signals = StopSignals()
    signals.listen()

    def run() -> None:
        with report_deaths():
            train(load_recipe(*split_words(words)), signals)

    try:
        status = exit_status("qlseg train", run)
    except StopRequestedError as stop:  # which has been said
        sys.exit(128 + stop.number)
    if status:
        sys.exit(128 + signals.number if status == 130 and signals.number else status)


if __name__ == "__main__":
    command()
