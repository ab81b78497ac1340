# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`qlseg check SOURCE [--output DIR] [--json] [--key value ...]`"""

import sys
from pathlib import Path
from typing import Any

import click

from .options import PATH, SETTINGS

# keys of a recipe that describe data, in the order of the help; others are taken, and say nothing here
DATA_KEYS = (
    *("layout", "train_split", "eval_split", "val_fraction", "label_names", "label_colors", "label_mapping"),
    *("ignore_index", "do_reduce_labels", "num_channels", "image_column", "label_column", "dataset_config"),
    *("streaming", "strict", "label_weights", "model", "extra_data"),
)


class CheckCommand(click.Command):
    """A command that also takes the keys of a recipe; see `RecipeCommand`."""

    def collect_usage_pieces(self, context: click.Context) -> list[str]:
        return ["SOURCE", "[--output DIR]", "[--json]", "[--key value ...]"]

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        from .train import describe_keys

        super().format_options(context, formatter)
        rows = [row for row in describe_keys(None) if row[0].split()[0].removeprefix("--") in DATA_KEYS]
        with formatter.section("Keys that describe data, all of them options; values are YAML"):
            formatter.write_dl(rows)


def read_source(source: str | None, overrides: list[str]) -> dict[str, Any]:
    """Values of the keys: of a recipe or data.yaml, if `source` is one, and of the command line; see `load_recipe`.

    Raises:
        ValueError: a file that is no YAML, or no data.
    """
    from ..training.recipe import find_recipe, merge_values, read_data_file, shipped_recipes
    from ..utils.yaml_text import read_mapping

    values: dict[str, Any] = {}
    if source is not None:
        path, values = Path(source), {"data": source}
        is_yaml = path.suffix.lower() in (".yaml", ".yml") and not path.is_dir()
        if is_yaml or (not path.exists() and source in shipped_recipes()):
            path = find_recipe(source)
            values = read_mapping(path)
            values = values if "output_dir" in values else read_data_file(path)
    values = merge_values(values, overrides)
    if not values.get("data"):
        raise ValueError("there is no data; give a folder, the id of a data set, a data.yaml or a recipe")
    return values


def look_at_extra_data(values: dict[str, Any], survey) -> None:
    """Read the sets of `extra_data` and tell what there is; ValueError if they cannot be trained on with the data."""
    from ..training.extra import look_at_extra, open_extra
    from ..training.recipe import check_values

    recipe = check_values({key: values[key] for key in ("data", "extra_data")})
    extra = open_extra(recipe, survey.processor, list(survey.rules.names))
    look_at_extra(extra, survey, len(survey.training), bool(values.get("strict")))


def check_output(output: Path, data: str) -> None:
    """ValueError for an output inside the data, where its pictures would be taken for some of the data."""
    place = Path(data).expanduser()
    if place.is_dir() and output.resolve().is_relative_to(place.resolve()):
        raise ValueError(f"{output} lies inside the data {data}, and would be read as a part of it; choose another")


def check(words: tuple[str, ...], output: Path | None, as_object: bool) -> None:
    """Look at the data, report in the forms that are wanted, and raise ValueError if they cannot be trained on."""
    from ..data.check import survey_data
    from ..data.check.outputs import as_json, failure_as_json, json_text, write_files
    from ..data.check.page import write_page
    from ..training.facts import data_request
    from ..training.recipe import check_values
    from .errors import sentence
    from .train import split_words

    source = None
    try:
        source, overrides = split_words(words)
        values = read_source(source, overrides)
        if output is not None:
            check_output(output, values["data"])
        survey = survey_data(data_request(check_values(values)))
        if values.get("extra_data"):
            look_at_extra_data(values, survey)
    except (ImportError, OSError, TypeError, ValueError) as error:
        if as_object:
            click.echo(json_text(failure_as_json(str(source), sentence(error))))
        raise
    written = [*write_page(survey, output), *write_files(survey, output)] if output is not None else []
    click.echo(json_text(as_json(survey)) if as_object else survey.text())
    for path in written:
        click.echo(f"wrote {path}", err=as_object)
    if survey.problems:
        raise ValueError(survey.problems[0])


@click.command("check", cls=CheckCommand, context_settings=SETTINGS | {"ignore_unknown_options": True})
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.option("--output", type=PATH, metavar="DIR", help="Write report.html, report.png and data.yaml there.")
@click.option("--json", "as_object", is_flag=True, help="Print one JSON object for scripts.")
def command(words: tuple[str, ...], output: Path | None, as_object: bool) -> None:
    """Look at data before training on it: read every image once and report what would spoil training.

    SOURCE is a folder, the id of a data set on the Hub, a data.yaml that this command wrote, a recipe or the name of
    one that comes with the package. Exit status 0 means that the data can be trained on, 1 that they cannot, with one
    sentence why. Without --output nothing is written. `qlseg train --data DIR/data.yaml` takes what was decided.
    """
    from .errors import exit_status

    if status := exit_status("qlseg check", check, words, output, as_object):
        sys.exit(status)


if __name__ == "__main__":
    command()
