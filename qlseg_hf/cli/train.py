"""`qlseg train RECIPE [--key value ...]`, on several devices `accelerate launch -m qlseg_hf.cli.train RECIPE ...`."""

import sys

import click

from .options import SETTINGS


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
        from ..training.recipe import describe_keys

        rows = [(f"--{key} {kind}", f"{line}  [{default}]") for key, kind, default, line in describe_keys(context.obj)]
        with formatter.section("Keys of a recipe, all of them options"):
            formatter.write_dl([*rows, ("-h, --help", "Show this message; after RECIPE, with its values.")])

    def _run(self, recipe: str, overrides: tuple[str, ...]) -> None:
        from ..training.loop import run_recipe

        if status := run_recipe(f"qlseg {self.name}", recipe, overrides, only_check=self.only_check):
            sys.exit(status)


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
