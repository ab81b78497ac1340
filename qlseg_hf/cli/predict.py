# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`qlseg predict MODEL SOURCE... --output DIR`, also `accelerate launch -m qlseg_hf.cli.predict ...` and torchrun."""

import os
import sys

import click

from .options import PATH, POSITIVE, Device, Several, dtype, scales, subcommand

FAILED = 3  # exit status if some images failed


@subcommand("predict", runs_network=True)
@click.argument("model")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("--output", required=True, type=PATH, metavar="DIR", help="Folder for the results.")
@click.option(
    "--format",
    "formats",
    type=Several(click.STRING),
    default="labels,overlay",
    help="Of labels, overlay, confidence, geojson, geotiff (a file per image), coco, csv, parquet (one for all).",
)
@click.option(
    "--labels", type=Several(click.STRING), help="Write these alone, names or numbers; other pixels become void (255)."
)
@scales
@click.option(
    "--do_resize", type=bool, help="false: segment at the image's own resolution. The processor's if not given."
)
@click.option("--batch_size", type=click.IntRange(1), help="Windows per forward pass; 8 on a GPU and 2 on a CPU.")
@click.option(
    "--batching",
    type=click.Choice(["exact", "shared"]),
    default="exact",
    help="shared: fill up batches across images even if label maps then differ in rounding.",
)
@click.option(
    "--max_windows", type=click.IntRange(1), help="Windows an image may be cut into; a limit by its size if not given."
)
@click.option(
    "--max_memory_mb", type=POSITIVE, help="MiB that an image may take beside the model; it is cut into strips."
)
@dtype("float32")
@click.option("--device", type=Device(), help="Such as cuda or cpu; a GPU if there is one.")
@click.option(
    "--workers",
    type=click.IntRange(0, 1024),
    help="Processes that read and write; by the number of cores, none for 1 to 4 files.",
)
@click.option("--strict", is_flag=True, help="Stop at the first image that fails.")
@click.option(
    "--ray", "address", metavar="ADDRESS", help="Of a Ray cluster to work on; auto: this machine's, or a new one."
)
@click.option(
    "--ray_cores",
    type=click.IntRange(1),
    default=1,
    help="Of each actor on the cluster; one GPU besides if it has any.",
)
@click.option("--image_column", help="Of a table; of a tar file, the ending of its images. Guessed if not given.")
@click.option("--split", help="Of a data set; all if not given.")
@click.option("--max_frames", type=click.IntRange(1), help="Of a video or camera; all if not given.")
@click.option("--dataset_config", help="Configuration of a Hub data set.")
def command(address: str | None, ray_cores: int, **settings) -> None:
    """Segment images: label maps, overlays and other formats for each.

    MODEL is a folder, a Hub id, or a file of `qlseg export`. SOURCE is a file, a folder (any depth), a pattern, a .txt
    list, a .parquet or .tar file, an address such as s3://..., a data set, a video, or the number of a camera.
    SOURCE/a/b.jpg gives DIR/labels/a/b.png, whose pixel values are the labels (palette mode, so that viewers show the
    colours), and DIR/overlay/a/b.png.

    The same command goes on where it was stopped. Images that fail are listed in DIR/failures.jsonl; then the exit
    status is 3.
    """
    from ..predict.request import Request, describe

    request = Request(**settings)
    if address is None:
        from ..predict.run import predict

        summary = predict(request)
    else:
        from ..ray import predict_on_cluster

        summary = predict_on_cluster(request, address, ray_cores)
    if os.environ.get("RANK", "0") == "0":
        print(describe(summary, settings["output"]))
    if summary.num_failed:
        sys.exit(FAILED)


if __name__ == "__main__":
    command()
