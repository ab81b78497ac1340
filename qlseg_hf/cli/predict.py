"""`qlseg predict MODEL PICTURE... --output DIR`"""

from pathlib import Path

import click

from .options import PATH, dtype, scales, subcommand


@subcommand("predict")
@click.argument("model")
@click.argument("pictures", nargs=-1, required=True, type=PATH, metavar="PICTURE...")
@click.option("--output", required=True, type=PATH, metavar="DIR", help="Folder for the results.")
@scales
@click.option("--confidence", is_flag=True, help="Also write PICTURE_confidence.png: 8 bits, 255 for 1.")
@click.option("--max_windows", type=int, help="Windows a picture may be cut into; a limit by its size if not given.")
@dtype
@click.option("--device", help="Such as cuda or cpu; a GPU if there is one.")
def command(model: str, pictures: tuple[Path, ...], output: Path, **settings) -> None:
    """Segment pictures: an overlay with a legend, and the label map, for each.

    MODEL is a folder or a Hub id. PICTURE.jpg gives DIR/PICTURE_overlay.png and DIR/PICTURE_labels.png, whose pixel
    values are the labels (palette mode, so that viewers show the colours).
    """
    from ..predict.images import predict

    predict(model, list(pictures), output, **settings)
