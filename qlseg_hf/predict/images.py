#!/usr/bin/env python3
"""Segment pictures: an overlay with a legend, and the label map, for each.

    python examples/predict.py MODEL PICTURE... --output DIR [--scales 0.5 0.75 1 1.25 1.5 1.75 --flip]

MODEL is a folder or a Hub id. PICTURE.jpg gives DIR/PICTURE_overlay.png and DIR/PICTURE_labels.png, whose pixel values
are the labels (palette mode, so that viewers show the colours). A ViT-B of 512 px takes seconds per picture on a CPU.
"""

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from qlseg_hf import load_picture, segment
from qlseg_hf.cli.common import exit_status, load_network
from qlseg_hf.utils.files import remove_partial
from qlseg_hf.utils.visualization import draw_overlay, label_colors, label_map_picture, save_picture


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder or Hub id of a QLSeg model")
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--scales", type=float, nargs="+", default=[1.0], help="factors on the short side (default: 1)"
    )
    parser.add_argument("--flip", action="store_true", help="also average over the mirrored picture")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def predict(args: argparse.Namespace) -> None:
    stems = [picture.stem for picture in args.pictures]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise ValueError(f"several pictures are called {', '.join(twice)}; their results would overwrite each other")
    model, processor = load_network(args.model, dtype=getattr(torch, args.dtype))
    model = model.to(args.device)
    remove_partial(args.output)
    colors = label_colors(model.config)
    for path in tqdm(args.pictures, unit="picture"):
        picture = load_picture(path)
        label_map = segment(model, processor, picture, scales=args.scales, flip=args.flip)[0]
        overlay = draw_overlay(picture, label_map, model.config.id2label, colors)
        save_picture(overlay, args.output / f"{path.stem}_overlay.png")
        save_picture(label_map_picture(label_map, colors), args.output / f"{path.stem}_labels.png")


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(exit_status("predict.py", predict, arguments))
