# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Time and memory of `qlseg check` on made images: `python -m qlseg_hf.benchmark.checking --images 10000`."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from PIL import Image
from tqdm import tqdm

SIDE, NUM_LABELS, NUM_MAPS = 256, 8, 100


def make_images(root: Path, num_images: int) -> None:
    """Write images as JPEG and label maps as PNG, one in ten for validation; each image differs from the others."""
    generator = np.random.default_rng(0)
    colors = generator.integers(30, 226, (NUM_LABELS, 3))
    coarse = generator.integers(0, NUM_LABELS, (NUM_MAPS, 8, 8), dtype=np.uint8)
    for number in tqdm(range(num_images), "drawing", unit=" images"):
        split = "validation" if number % 10 == 9 else "training"
        labels = np.kron(coarse[number % NUM_MAPS], np.ones((SIDE // 8, SIDE // 8), np.uint8))
        labels = np.roll(labels, number // NUM_MAPS, axis=1)
        noise = generator.integers(-25, 26, (SIDE // 4, SIDE // 4, 3)).repeat(4, 0).repeat(4, 1)
        picture = Image.fromarray((colors[labels] + noise).clip(0, 255).astype(np.uint8))
        for part, image, ending in (("images", picture, "jpg"), ("annotations", Image.fromarray(labels), "png")):
            place = root / part / split / f"{number:06}.{ending}"
            place.parent.mkdir(parents=True, exist_ok=True)
            image.save(place)


def measure(root: Path) -> dict:
    """Run `qlseg check ROOT --json` in a process of its own: seconds, and its peak of memory in MiB."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "qlseg_hf", "check", str(root), "--json"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    found = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    if status or not found["can_train"]:
        raise RuntimeError(f"the made images are refused: {found['problems']}")
    seconds = time.perf_counter() - started
    return {"images": sum(found["images"].values()), "seconds": round(seconds, 1), "peak_mib": usage.ru_maxrss // 1024}


@click.command()
@click.option("--images", default=10_000, show_default=True, help="How many to make; a tenth is measured too.")
def main(images: int) -> None:
    """Print one line of JSON for a tenth of the images and one for all."""
    for count in (images // 10, images):
        with tempfile.TemporaryDirectory() as folder:
            make_images(Path(folder), count)
            click.echo(json.dumps(measure(Path(folder))))


if __name__ == "__main__":
    main()
