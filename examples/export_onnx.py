#!/usr/bin/env python3
"""Write a network as an ONNX file, and compare onnxruntime with PyTorch before it is put in place.

    python examples/export_onnx.py MODEL OUT.onnx [--without_logits]

MODEL is a folder or a Hub id. OUT.onnx takes any batch, height and width, and holds the settings of the processor too:
`OnnxQLSeg.from_pretrained("OUT.onnx")` of `qlseg_hf.onnx_model` takes the model's place in `qlseg_hf.segment`. The
report is printed and written to OUT_report.json. A ViT-B takes a minute or two and 690 MB of disk.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from qlseg_hf import QLSegForSemanticSegmentation
from qlseg_hf.command_line import exit_status, load_network
from qlseg_hf.configuration_qlseg import as_pair
from qlseg_hf.files import write_atomically
from qlseg_hf.onnx_model import OUTPUTS, OnnxQLSeg, optional, write_onnx
from qlseg_hf.scores import first_maximum

LEAST_AGREEMENT = 0.999  # share of pixels with the same label
NUM_RUNS = 3  # the shortest of as many counts


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder or Hub id of a QLSeg model")
    parser.add_argument("output", type=Path, metavar="OUT.onnx")
    parser.add_argument(
        "--without_logits", action="store_true", help="leave out the output `logits`, which `segment` does not need"
    )
    return parser.parse_args()


def smooth_noise(model: OnnxQLSeg) -> list[torch.Tensor]:
    """Smooth noise of three sizes, none square, two of them no multiple of the patch; about as large as windows."""
    (height, width), window = as_pair(model.config.backbone_config.patch_size), model.processor.window_size or 512
    rows, columns = max(2, window // height // 2), max(2, window // width // 2)
    sizes = [
        (1, 2 * rows * height, columns * width),
        (2, rows * height + 1, 2 * columns * width),
        (3, rows * height + height, 2 * columns * width - 1),
    ]
    generator = torch.Generator().manual_seed(0)
    channels = model.config.backbone_config.num_channels
    return [
        F.interpolate(torch.randn(batch, channels, 9, 7, generator=generator), size=size, mode="bicubic")
        for batch, *size in sizes
    ]


def seconds(function: Callable) -> float:
    """The shortest of `NUM_RUNS` runs."""
    times = []
    for _ in range(NUM_RUNS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


@torch.inference_mode()
def compare(model: QLSegForSemanticSegmentation, exported: OnnxQLSeg, pixel_values: torch.Tensor) -> dict:
    """Differences of all outputs, agreement of the labels and times of one input."""
    expected, found = model(pixel_values=pixel_values), exported(pixel_values)
    labels = [[first_maximum(scores) for scores in outputs.logits] for outputs in (expected, found)]
    num_equal = sum(int((a == b).sum()) for a, b in zip(*labels))
    with_logits = "logits" in exported.outputs
    return {
        "shape": list(pixel_values.shape),
        "largest_difference": {name: float((expected[name] - found[name]).abs().max()) for name in OUTPUTS},
        "label_agreement": num_equal / found.logits[:, 0].numel(),
        "labels_seen": len(torch.stack(labels[0]).unique()),
        "seconds_pytorch": seconds(lambda: model(pixel_values=pixel_values, output_logits=with_logits)),
        "seconds_onnxruntime": seconds(lambda: exported(pixel_values, output_logits=with_logits)),
    }


def report(model: QLSegForSemanticSegmentation, path: Path) -> dict:
    """What an exported file is and does; ValueError if it gives other labels than the network."""
    exported = OnnxQLSeg.from_pretrained(path)
    found = {
        "bytes": sum(file.stat().st_size for file in path.parent.iterdir()),
        "outputs": exported.outputs,
        "threads": torch.get_num_threads(),
        "versions": {name: optional(name).__version__ for name in ("torch", "onnx", "onnxruntime", "onnxscript")},
        "inputs": [compare(model, exported, pixel_values) for pixel_values in smooth_noise(exported)],
    }
    print(json.dumps(found, indent=2))
    # written so that NaN is refused too
    if not all(row["label_agreement"] >= LEAST_AGREEMENT for row in found["inputs"]):
        shares = ", ".join(f"{row['label_agreement']:.2%}" for row in found["inputs"])
        raise ValueError(f"onnxruntime and PyTorch agree on {shares} of the pixels; {LEAST_AGREEMENT:.1%} are wanted")
    return found


def export(args: argparse.Namespace) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which is not used
    model, processor = load_network(args.model, dtype=torch.float32)
    found = {}
    write_onnx(
        model, processor, args.output, not args.without_logits, check=lambda path: found.update(report(model, path))
    )
    place = args.output.with_name(f"{args.output.stem}_report.json")
    write_atomically(place, json.dumps(found, indent=2).encode() + b"\n")
    print(f"wrote {args.output} and {place}")


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(exit_status("export_onnx.py", export, arguments))
