"""`qlseg check SOURCE [--output DIR] [--json] [--key value ...]`"""

import sys
from pathlib import Path
from typing import Any

import click

from .options import PATH, SETTINGS

# keys of a recipe that describe data, in the order of the help; others are taken, and say nothing here
DATA_KEYS = (
    *("layout", "train_split", "eval_split", "val_fraction", "label_names", "label_colors", "label_map"),
    *("ignore_index", "do_reduce_labels", "num_channels", "image_column", "label_column", "dataset_config"),
    *("streaming", "strict", "class_weights", "model"),
)
UNREAD = {"layout": str | None, "val_fraction": float | None, "num_channels": int | None}  # until recipes have them


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


def split_words(words: tuple[str, ...]) -> tuple[str | None, list[tuple[str, str]]]:
    """The source and the (key, value) pairs among the words of the command line; ValueError if they are no pairs."""
    sources: list[str] = []
    pairs: list[tuple[str, str]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            sources.append(word)
        elif "=" in word:
            key, _, text = word[2:].partition("=")
            pairs.append((key, text))
        elif rest:
            pairs.append((word[2:], rest.pop(0)))
        else:
            raise ValueError(f"{word} has no value; keys are written --key value")
    if len(sources) > 1:
        raise ValueError(f"one source is wanted, got {', '.join(sources)}; keys are written --key value")
    return (sources[0] if sources else None), pairs


def read_source(source: str | None, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Values of the keys: of a recipe or data.yaml, if `source` is one, and of the command line.

    Raises:
        ValueError: an unknown key, a value of a wrong type, or no data.
    """
    from ..training.recipe import RECIPES, Recipe, hint_for, read_yaml, renamed

    values: dict[str, Any] = {}
    if source is not None:
        path = Path(source)
        shipped = RECIPES / f"{source}.yaml"
        if path.is_file() and path.suffix.lower() in (".yaml", ".yml"):
            values = read_file(path)
        elif path.name == source and shipped.is_file() and not path.exists():
            values = read_file(shipped)
        elif path.suffix.lower() in (".yaml", ".yml") and not path.is_dir():
            raise ValueError(f"there is no recipe {source[:80]}; give a YAML file, a folder or the id of a data set")
        else:
            values = {"data": source}
    values = renamed(values)
    known = [*Recipe.__dataclass_fields__, *UNREAD]
    for key, text in pairs:
        name = key.replace("-", "_")
        values = (
            renamed(values | {name: parsed(name, text, read_yaml)})
            if name == "dataset"
            else values | {name: parsed(name, text, read_yaml)}
        )
    for key in values:
        if key not in known:
            raise ValueError(f"unknown key {str(key)[:80]}; {hint_for(str(key), known)}")
    if not values.get("data"):
        raise ValueError("there is no data; give a folder, the id of a data set, a data.yaml or a recipe")
    return values


def parsed(key: str, text: str, read_yaml) -> Any:
    """A value of the command line, which is YAML."""
    import yaml

    try:
        return read_yaml(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"--{key} {text} is not YAML: {' '.join(str(error).split())}") from error


def read_file(path: Path) -> dict[str, Any]:
    """A recipe or data.yaml. `data` of a file that is no whole recipe may be relative to the file."""
    import yaml

    from ..training.recipe import MOST_BYTES, read_yaml

    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES} bytes")
        values = read_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `key: value` lines, not {type(values).__name__}")
    beside = path.parent / str(values.get("data"))
    if "output_dir" not in values and values.get("data") and beside.exists():
        values["data"] = str(beside)
    return values


def make_request(values: dict[str, Any]):
    """`DataRequest` of the values of a recipe's keys.

    Raises:
        ValueError: a value of a wrong type, names or colours that are none, or a model whose rules contradict them.
    """
    from dataclasses import MISSING, fields
    from typing import get_type_hints

    from ..data.check.survey import DataRequest
    from ..model.configuration_qlseg import QLSegConfig
    from ..training.build import build_processor, read_label_names, sets_reduction
    from ..training.recipe import Recipe, typed

    values = dict(values)
    hints = get_type_hints(Recipe)
    num_channels = typed("num_channels", values.pop("num_channels", None), int | None)
    reading = {key: typed(key, values.pop(key), kind) for key, kind in UNREAD.items() if key in values}
    values["label_colors"], names = read_label_colors(values.get("label_colors"))
    weighs_labels = values.get("class_weights") == "auto"
    values |= {"class_weights": None} if weighs_labels else {}
    values |= {"label_names": names} if names and not values.get("label_names") else {}
    entries = [entry for entry in fields(Recipe) if entry.default is MISSING and entry.default_factory is MISSING]
    values = {entry.name: {int: 512, str: "-"}[hints[entry.name]] for entry in entries} | values
    recipe = Recipe(**{key: typed(key, value, hints[key]) for key, value in values.items()})
    named, _ = read_label_names(recipe.label_names)
    processor = None
    if recipe.model:
        processor = build_processor(recipe)
        named = named or QLSegConfig.from_pretrained(recipe.model).id2label
    reading |= {"config": recipe.dataset_config, "streaming": recipe.streaming}
    reading |= {key: getattr(recipe, key) for key in ("image_column", "label_column", "label_colors")}
    rules = {key: getattr(recipe, key) for key in ("do_reduce_labels", "ignore_index", "label_map")}
    rules |= {key: recipe.processor[key] for key in rules if key in recipe.processor}
    return DataRequest(
        recipe.data,
        recipe.train_split,
        recipe.eval_split,
        reading={key: value for key, value in reading.items() if value is not None},
        label_names=[named[label] for label in sorted(named)] if named else None,
        rules={key: value for key, value in rules.items() if value is not None},
        processor=processor,
        doubts_are_errors=not sets_reduction(recipe),
        strict=recipe.strict,
        weighs_labels=weighs_labels,
        num_channels=num_channels,
    )


def read_label_colors(given: dict | str | None) -> tuple[dict | None, list[str] | None]:
    """{label: [r, g, b]} from a mapping or a file of one, and the names, if these stand in place of the labels.

    ValueError if names and numbers of labels are mixed; the number of void, such as 255, may stand beside names.
    """
    values = read_file(Path(given)) if isinstance(given, str) else given
    names = [label for label in values or () if isinstance(label, str)]
    if not values or not names:
        return values, None
    if mixed := [label for label in values if not isinstance(label, str) and 0 <= label < len(names)]:
        raise ValueError(
            f"label_colors names {names[0]!r} and others, and numbers {mixed[0]}; give names to all labels"
        )
    return {names.index(label) if isinstance(label, str) else label: color for label, color in values.items()}, names


def refuse_output(output: Path, data: str) -> None:
    """ValueError for an output inside the data, where its pictures would be taken for some of the data."""
    place = Path(data).expanduser()
    if place.is_dir() and output.resolve().is_relative_to(place.resolve()):
        raise ValueError(f"{output} lies inside the data {data}, and would be read as a part of it; choose another")


def check(words: tuple[str, ...], output: Path | None, as_object: bool) -> None:
    """Look at the data, report in the forms that are wanted, and raise ValueError if they cannot be trained on."""
    from ..data.check.outputs import as_json, failure_as_json, json_text, write_files
    from ..data.check.page import write_page
    from ..data.check.run import survey_data
    from .errors import sentence

    source = None
    try:
        source, pairs = split_words(words)
        values = read_source(source, pairs)
        if output is not None:
            refuse_output(output, values["data"])
        survey = survey_data(make_request(values))
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
