"""`qlseg check RECIPE [--key value ...]`"""

from .train import RecipeCommand

command = RecipeCommand(
    "check",
    only_check=True,
    help="""Look at the data of a recipe before training on it: read both splits and report what would spoil training.

RECIPE is a YAML file or the name of one that comes with the package; `--data`, `--label_names` and any other key can
be given beside it. Nothing is written.""",
)

if __name__ == "__main__":
    command()
