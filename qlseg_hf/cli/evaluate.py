# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`qlseg evaluate MODEL --data DATA --split SPLIT`, also `accelerate launch -m qlseg_hf.cli.evaluate` and torchrun."""

from pathlib import Path

import click

from .options import PATH, Number, dtype, scales, subcommand


@subcommand("evaluate", runs_network=True)
@click.argument("model")
@click.option("--data", "--dataset", "data", required=True, help="Folder, Hub id or data.yaml of `qlseg check`.")
@click.option("--split", help="Of the data; validation, if the data.yaml does not name another.")
@click.option("--dataset_config", help="Configuration of a Hub data set.")
@click.option("--image_column", help="Guessed if not given, as is --label_column.")
@click.option("--label_column")
@click.option("--layout", help="What the folder is, where it cannot be told: voc, pairs, IMAGES:MASKS, ...")
@click.option(
    "--val_fraction",
    type=Number(0, 1, max_open=True),
    help="Of the training images, where there is no other split; by default what the model's recipe says, else 0.2.",
)
@click.option("--label_colors", type=PATH, metavar="FILE.yaml", help="{label: [red, green, blue]} of colour masks.")
@click.option("--streaming", is_flag=True, help="Read the data set without downloading it.")
@scales
@click.option("--do_reduce_labels", type=bool, help="Label 0 is void and the others are lowered by one.")
@click.option("--ignore_index", type=int, help="Label of pixels that do not count.")
@click.option(
    "--label_mapping", "--label_map", "label_mapping", type=PATH, metavar="FILE.json", help='{"stored value": label}'
)
@click.option("--skip_unreadable", is_flag=True, help="Name pictures that cannot be read instead of refusing them.")
@click.option("--output", type=PATH, metavar="FILE.json", help="Scores and protocol.")
@click.option("--card", is_flag=True, help="Also write them into README.md in the model's folder.")
@click.option("--report", type=PATH, metavar="FILE.html|DIR", help="Page of scores, confusions, pictures.")
@click.option("--window_batch_size", type=click.IntRange(1), help="Windows per forward pass.")
@dtype("float32")
def command(**settings) -> None:
    """Measure mIoU, mAcc, aAcc, boundary IoU and boundary F1 of a model on a data set, by the paper's protocol.

    MODEL is a folder, a Hub id, or a file of `qlseg export`. Label rules are the processor's unless given. Every
    picture is counted once, and the result is the same for any number of processes with as many threads each. With
    --output FILE.json, what was counted is kept in FILE.json.state.* until all is done; the same command continues
    from there, and starts over if these are deleted.
    """
    from ..evaluation.run import Request, measure

    measure(Request(**with_data_file(settings)))


# what a data.yaml says that an evaluation asks for
DATA_KEYS = (
    *("data", "dataset_config", "image_column", "label_column", "layout", "label_colors"),
    *("do_reduce_labels", "ignore_index", "label_mapping"),
)


def with_data_file(settings: dict) -> dict:
    """Settings of the command line, and below them what a data.yaml says.

    Its `val_fraction` becomes `data_val_fraction`, because what the model's own recipe says stands between the two.

    Raises:
        ValueError: the file is not one that `qlseg check` writes, or the colours are not colours.
    """
    from ..training.build import read_label_names
    from ..training.recipe import check_values, is_data_file, read_data_file

    given = {key: value for key, value in settings.items() if value is not None}
    values = read_data_file(Path(given["data"])) if is_data_file(given["data"]) else {"data": given["data"]}
    if colors := given.pop("label_colors", None):
        values["label_colors"] = str(colors)
    recipe = check_values(values)
    of_data = {key: getattr(recipe, key) for key in DATA_KEYS if getattr(recipe, key) is not None}
    names, _ = read_label_names(recipe.label_names)
    return {
        "split": recipe.eval_split,
        "label_names": names and list(names.values()),
        "data_val_fraction": recipe.val_fraction,
        **of_data,
        **{key: value for key, value in given.items() if key != "data"},
    }


if __name__ == "__main__":
    command()
