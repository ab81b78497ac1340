# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Memory and time of `qlseg predict --format geotiff` on a raster that does not fit in memory.

    python benchmarks/raster.py [--side 40000] [--place DIR] [--output FILE.json]

Makes a GeoTIFF of 3 bands and SIDE x SIDE pixels (drawn country, in tiles that repeat with another brightness), and a
tiny network of 4 labels with fresh weights and windows of 512 pixels that overlap. The command runs on a raster of
600 x 600 first: what that process peaks at is the model, Python and the libraries. Peaks are the kernel's maximum
resident set. Checks: georeference and size are the source's; every region of 1024 pixels that is looked at (corners,
middle, and some in between) is what `segment` gives for the same pixels with a margin of two windows around,
so there is no seam and no shift.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from PIL import Image

from qlseg_hf import QLSegConfig, QLSegForSemanticSegmentation, QLSegImageProcessor, QLSegViTConfig, segment
from qlseg_hf.data.scenes import draw_scene
from qlseg_hf.hub.loading import load_network

WINDOW, STRIDE = 512, 384
TILE = 4096  # side of what repeats, pixels
LOOK = 1024  # side of the regions that are compared
MARGIN = 2 * WINDOW


def save_network(folder: Path) -> None:
    """32 wide, 2 layers, 4 labels, fresh weights that give varied labels."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    backbone = QLSegViTConfig(**sizes, image_size=WINDOW, out_indices=[1, 2])
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 32, "num_pixel_encoder_layers": 1}
    sizes |= {"pixel_encoder_intermediate_size": 32, "num_decoder_blocks": 2, "num_decoder_layers": 2}
    model = QLSegForSemanticSegmentation(QLSegConfig(num_labels=4, backbone_config=backbone, **sizes))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    QLSegImageProcessor(window_size=WINDOW, window_stride=STRIDE, do_resize=False).save_pretrained(folder)


def make_raster(path: Path, side: int) -> None:
    """Drawn scenes side by side, brighter and darker; deflated tiles, EPSG:32632, 0.2 m a pixel."""
    parts = [
        np.asarray(Image.fromarray(draw_scene(0, "training", index, 256)[0]).resize((512, 512))) for index in range(64)
    ]
    tile = np.concatenate([np.concatenate(parts[row : row + 8], axis=1) for row in range(0, 64, 8)])
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint8", "photometric": "rgb"}
    profile |= {
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "deflate",
        "zlevel": 1,
        "bigtiff": "yes",
    }
    profile |= {"crs": "EPSG:32632", "transform": rasterio.Affine(0.2, 0, 400_000, 0, -0.2, 5_500_000)}
    rng = np.random.default_rng(0)
    with rasterio.open(path, "w", **profile) as file:
        for top in range(0, side, TILE):
            for left in range(0, side, TILE):
                part = (tile[: side - top, : side - left] * rng.uniform(0.5, 1)).astype(np.uint8)
                file.write(part.transpose(2, 0, 1), window=((top, top + part.shape[0]), (left, left + part.shape[1])))


def run_predict(model: Path, raster: Path, output: Path) -> tuple[float, float]:
    """Seconds, and the peak of the process, MiB."""
    command = [sys.executable, "-m", "qlseg_hf", "predict", model, raster, "--output", output, "--format", "geotiff"]
    began = time.perf_counter()
    process = subprocess.Popen([*map(str, command), "--workers", "0"], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"`{' '.join(map(str, command))}` ended with {status}")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def count_differing(model: Path, source: Path, result: Path, side: int) -> dict:
    """Pixels of regions whose label is not that of `segment` on their surroundings."""
    network, processor = load_network(model)
    places = sorted({0, (side - LOOK) // 2, side // 3, side - LOOK})
    regions = [(top, left) for top in places for left in places if (top + left) % 2 == 0]
    looked, differing, labels = 0, 0, set()
    with rasterio.open(source) as pictures, rasterio.open(result) as maps:
        assert (maps.crs, maps.transform, maps.shape) == (pictures.crs, pictures.transform, pictures.shape)
        for top, left in regions:
            # windows of the surroundings lie where those of the whole lie: at multiples of the stride, or at the end
            bounds = [
                (max(0, first - MARGIN) // STRIDE * STRIDE, min(side, first + LOOK + MARGIN)) for first in (top, left)
            ]
            bounds = [
                (first, last if last == side else first + (last - first - WINDOW) // STRIDE * STRIDE + WINDOW)
                for first, last in bounds
            ]
            picture = pictures.read(window=tuple(bounds)).transpose(1, 2, 0)
            (expected,) = segment(network, processor, picture)
            down, across = top - bounds[0][0], left - bounds[1][0]
            expected = expected[down : down + LOOK, across : across + LOOK].numpy()
            found = maps.read(1, window=((top, top + LOOK), (left, left + LOOK)))
            looked, differing = looked + found.size, differing + int((found != expected).sum())
            labels |= set(np.unique(found).tolist())
    return {"regions": len(regions), "pixels": looked, "differing": differing, "labels": sorted(labels)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=40_000)
    parser.add_argument("--place", type=Path, help="A folder on a disk with 20 GB; a temporary one if not given.")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.place) as name:
        place = Path(name)
        save_network(place / "model")
        make_raster(place / "small.tif", 600)
        make_raster(place / "large.tif", args.side)
        _, least = run_predict(place / "model", place / "small.tif", place / "small")
        seconds, peak = run_predict(place / "model", place / "large.tif", place / "large")
        result = {
            "side": args.side,
            "raster_mib": round((place / "large.tif").stat().st_size / 2**20),
            "pixels_mib": round(3 * args.side**2 / 2**20),
            "peak_of_600_pixels_mib": round(least),
            "peak_mib": round(peak),
            "above_mib": round(peak - least),
            "seconds": round(seconds),
            "megapixels_per_second": round(args.side**2 / 1e6 / seconds, 2),
            "compared": count_differing(
                place / "model", place / "large.tif", place / "large" / "geotiff" / "large.tif", args.side
            ),
        }
    text = json.dumps(result, indent=1)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
