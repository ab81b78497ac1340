"""Images per second of `qlseg predict` beside a plain loop over `segment` that writes the same files.

    python benchmarks/predict.py [--images 200] [--turns 3] [--workers 2] [--output FILE.json]

Made images of mixed sizes and a tiny network with fresh weights, so that reading and writing count as they do beside a
network on a GPU. The variants take turns, each in this process after one warm-up, and write into fresh folders; label
maps of both are compared, pixel by pixel. `torchrun` is measured with its start, which is told apart.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from qlseg_hf import (
    QLSegConfig,
    QLSegForSemanticSegmentation,
    QLSegImageProcessor,
    QLSegViTConfig,
    load_picture,
    segment,
)
from qlseg_hf.hub.loading import load_network
from qlseg_hf.predict.request import Request
from qlseg_hf.predict.run import predict
from qlseg_hf.utils.visualization import draw_overlay, label_colors, label_map_picture, save_picture


def make_images(folder: Path, count: int) -> None:
    """JPEG files of 200 to 800 pixels a side, as noisy as photographs."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        height, width = rng.integers(200, 800, 2)
        coarse = rng.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), dtype=np.uint8)
        picture = np.asarray(Image.fromarray(coarse).resize((int(width), int(height)), Image.BICUBIC), dtype=np.int16)
        picture = (picture + rng.integers(-9, 10, picture.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{number:05d}.jpg", quality=90)


def save_network(folder: Path) -> None:
    """32 wide, 2 layers, windows of 128 pixels."""
    torch.manual_seed(0)
    backbone = QLSegViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=128,
        out_indices=[1, 2],
    )
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 32, "num_pixel_encoder_layers": 1}
    sizes |= {"pixel_encoder_intermediate_size": 32, "num_decoder_blocks": 2, "num_decoder_layers": 2}
    model = QLSegForSemanticSegmentation(QLSegConfig(num_labels=20, backbone_config=backbone, **sizes))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    QLSegImageProcessor(size={"shortest_edge": 128}, window_size=128, window_stride=85).save_pretrained(folder)


def run_plain(model: Path, images: Path, output: Path) -> None:
    """What somebody writes who has `segment`."""
    network, processor = load_network(model)
    colors = label_colors(network.config)
    for path in sorted(images.glob("*.jpg")):
        picture = load_picture(path)
        (label_map,) = segment(network, processor, picture)
        save_picture(label_map_picture(label_map, colors), output / "labels" / f"{path.stem}.png")
        save_picture(
            draw_overlay(picture, label_map, network.config.id2label, colors), output / "overlay" / f"{path.stem}.png"
        )


def run_launched(model: Path, images: Path, output: Path, processes: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    command += ["-m", "qlseg_hf.cli.predict", model, images, "--output", output, "--workers", "0"]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run(
        [*map(str, command)], check=True, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def label_maps(output: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in sorted((output / "labels").glob("*.png"))}


def timed(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--launched", action="store_true", help="Also one and two processes of torchrun.")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        model, images, outputs = Path(place) / "model", Path(place) / "images", Path(place) / "outputs"
        save_network(model)
        make_images(images, args.images)
        make_images(Path(place) / "few", 8)

        def run_queue(source: Path, output: Path, workers: int) -> None:
            predict(Request(str(model), (str(source),), output, workers=workers))

        variants = {
            "plain": lambda output, source: run_plain(model, source, output),
            "predict": lambda output, source: run_queue(source, output, args.workers),
            "predict without workers": lambda output, source: run_queue(source, output, 0),
        }
        if args.launched:
            for count in (1, 2):
                variants[f"torchrun {count}"] = lambda output, source, n=count: run_launched(model, source, output, n)
        start = {name: timed(run, outputs / f"few {name}", Path(place) / "few") for name, run in variants.items()}
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for turn in range(args.turns):
            for name, run in variants.items():
                seconds[name].append(timed(run, outputs / f"{turn} {name}", images))
        maps = {name: label_maps(outputs / f"0 {name}") for name in variants}
        first = maps["plain"]
        differing = {name: sum(int((found[key] != first[key]).sum()) for key in first) for name, found in maps.items()}
    result = {
        "images": args.images,
        "workers": args.workers,
        "images_per_second": {name: args.images / statistics.median(values) for name, values in seconds.items()},
        "ratio_to_plain": {
            name: statistics.median(a / b for a, b in zip(seconds["plain"], values))
            for name, values in seconds.items()
        },
        "seconds_of_8_images": start,
        "differing_pixels": differing,
        "seconds": seconds,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
