"""`qlseg evaluate MODEL --data DATA --split SPLIT`, also `accelerate launch -m qlseg_hf.cli.evaluate` and torchrun."""

import click

from .options import PATH, dtype, scales, subcommand


@subcommand("evaluate")
@click.argument("model")
@click.option("--data", "--dataset", "data", required=True, help="Folder or Hub id of a data set.")
@click.option("--split", default="validation")
@click.option("--dataset_config", help="Configuration of a Hub data set.")
@click.option("--image_column", help="Guessed if not given, as is --label_column.")
@click.option("--label_column")
@click.option("--streaming", is_flag=True, help="Read the data set without downloading it.")
@scales
@click.option("--do_reduce_labels", type=bool, help="Label 0 is void and the others are lowered by one.")
@click.option("--ignore_index", type=int, help="Label of pixels that do not count.")
@click.option("--label_map", type=PATH, metavar="FILE.json", help='{"stored value": label}')
@click.option("--max_samples", type=int, help="The first so many pictures only.")
@click.option("--skip_unreadable", is_flag=True, help="Name pictures that cannot be read instead of refusing them.")
@click.option("--output", type=PATH, metavar="FILE.json", help="Scores and protocol.")
@click.option("--card", is_flag=True, help="Also write them into README.md in the model's folder.")
@click.option("--report", type=PATH, metavar="FILE.html|DIR", help="Page of scores, confusions, pictures.")
@click.option("--window_batch_size", type=int, help="Windows per forward pass.")
@dtype
@click.option("--resume", type=bool, default=True, help="Continue an interrupted run.")
def command(**settings) -> None:
    """Measure mIoU, mAcc, aAcc, boundary IoU and boundary F1 of a model on a data set, by the paper's protocol.

    MODEL is a folder or a Hub id. Label rules are the processor's unless given. Every picture is counted once, and the
    result is the same for any number of processes with as many threads each. With --output FILE.json, what was
    counted is kept in FILE.json.state.* until all is done; the same command continues from there.
    """
    from ..evaluation.run import Request, measure

    measure(Request(**settings))


if __name__ == "__main__":
    command()
