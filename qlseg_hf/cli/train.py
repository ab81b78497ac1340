"""`qlseg train RECIPE [--key value ...]`, on several devices `accelerate launch -m qlseg_hf.cli.train RECIPE ...`."""

import dataclasses
import re
import sys
import typing

import click

from .options import SETTINGS


def describe_keys(recipe: str | None) -> list[tuple[str, str]]:
    """("--key TYPE", "what it is  [default: ...]") of every key; with a recipe, its values instead of the defaults."""
    from ..training.recipe import Recipe, find_recipe, read_yaml

    values = {}
    if recipe is not None:
        values = read_yaml(find_recipe(recipe).read_text(encoding="utf-8"))
    arguments = Recipe.__doc__.partition("Args:\n")[2]
    texts = {}
    for names, text in re.findall(r"^ {8}([\w, \n]+?): (.*?)(?=\n {8}\w|\Z)", arguments, re.DOTALL | re.MULTILINE):
        for name in re.findall(r"\w+", names):
            texts[name] = " ".join(text.split()).rstrip(".")
    rows, hints = [], typing.get_type_hints(Recipe)
    for entry in dataclasses.fields(Recipe):
        default = values.get(entry.name, entry.default)
        if default is dataclasses.MISSING:
            default = entry.default_factory() if entry.default_factory is not dataclasses.MISSING else "required"
        kind = getattr(hints[entry.name], "__name__", str(hints[entry.name])).replace("None", "null")
        rows.append((f"--{entry.name} {kind.upper()}", f"{texts[entry.name]}  [default: {default}]"))
    return rows


class RecipeCommand(click.Command):
    """A command whose options are the keys of a recipe. `--help` after a recipe shows that recipe's values.

    Options are not parsed here: `load_recipe` reads them as YAML and answers a misspelt one with the nearest key.
    """

    def __init__(self, name: str, only_check: bool, help: str):
        super().__init__(
            name,
            help=help,
            params=[click.Argument(["recipe"]), click.Argument(["overrides"], nargs=-1, type=click.UNPROCESSED)],
            callback=self._run,
            context_settings=SETTINGS | {"ignore_unknown_options": True},
        )
        self.only_check = only_check

    def collect_usage_pieces(self, context: click.Context) -> list[str]:
        return ["RECIPE", "[--key value ...]"]

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        context.obj = next((arg for arg in args if not arg.startswith("-")), None)
        return super().parse_args(context, args)

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Keys of a recipe, all of them options; values are YAML"):
            formatter.write_dl(describe_keys(context.obj))
        with formatter.section("Options"):
            formatter.write_dl([("-h, --help", "Show this message; after RECIPE, with its values as defaults.")])

    def _run(self, recipe: str, overrides: tuple[str, ...]) -> None:
        from ..training.loop import train
        from ..training.recipe import load_recipe
        from ..utils.distributed import StopRequestedError, StopSignals, deaths_reported
        from .errors import exit_status

        signals = StopSignals()
        signals.listen()

        def run() -> None:
            with deaths_reported():
                train(load_recipe(recipe, overrides), self.only_check, signals)

        try:
            status = exit_status(f"qlseg {self.name}", run)
        except StopRequestedError as stop:  # which has been said
            sys.exit(128 + stop.number)
        if status:
            sys.exit(128 + signals.number if status == 130 and signals.number else status)


command = RecipeCommand(
    "train",
    only_check=False,
    help="""Train or fine-tune by a recipe, on one device; on several with `accelerate launch -m qlseg_hf.cli.train`.

RECIPE is a YAML file or the name of one that comes with the package. Any key can be overridden. The same command
resumes a run that was stopped.

`output_dir` holds `best` (by mIoU on the validation split) and `last`, ordinary folders for from_pretrained;
`checkpoints/step-N` for resuming; `losses.jsonl` and `evaluations.jsonl`; `curves.png`; `overlays` of validation
pictures; `unreadable.txt` if pictures had to be left out.""",
)

if __name__ == "__main__":
    command()
