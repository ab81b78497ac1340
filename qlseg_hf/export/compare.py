# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Exporting a network, and comparing the file with PyTorch before it is put in place."""

import json
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional as F

from ..hub.loading import keep_val_fraction, load_network
from ..hub.saving import QLSegForSemanticSegmentation
from ..model.configuration_qlseg import as_pair
from ..model.scores import first_maximum
from ..utils.files import write_atomically
from .onnx import OnnxQLSeg, write_onnx
from .openvino import OpenVINOQLSeg, write_openvino
from .runtime import OUTPUTS, ExportedQLSeg

LEAST_AGREEMENT = 0.999  # share of pixels with the same label
NUM_RUNS = 3  # the shortest of as many counts


class Runtime(NamedTuple):
    """What a format is written and run by. `name`: of the package, as people write it."""

    name: str
    write: Callable[..., None]
    runner: type[OnnxQLSeg] | type[OpenVINOQLSeg]


RUNTIMES = {
    "onnx": Runtime("onnxruntime", write_onnx, OnnxQLSeg),
    "openvino": Runtime("OpenVINO", write_openvino, OpenVINOQLSeg),
}


def smooth_noise(model: ExportedQLSeg) -> list[torch.Tensor]:
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


def label_maps(model: QLSegForSemanticSegmentation, pixel_values: torch.Tensor) -> torch.Tensor:
    """(B, H, W) the best label of each pixel."""
    return torch.stack([first_maximum(scores) for scores in model(pixel_values=pixel_values).logits])


@torch.inference_mode()
def compare(model: QLSegForSemanticSegmentation, exported: ExportedQLSeg, pixel_values: torch.Tensor) -> dict:
    """Differences of all outputs, agreement of the labels and times of one input."""
    labels, expected = label_maps(model, pixel_values), model(pixel_values=pixel_values)
    times: list[Callable]
    found: dict = {"shape": list(pixel_values.shape)}
    if exported.gives_labels:
        num_equal = int((exported.label_maps(pixel_values) == labels).sum())
        times = [lambda: label_maps(model, pixel_values), lambda: exported.label_maps(pixel_values)]
    else:
        outputs, with_logits = exported(pixel_values), "logits" in exported.outputs
        found["largest_difference"] = {name: float((expected[name] - outputs[name]).abs().max()) for name in OUTPUTS}
        num_equal = sum(int((first_maximum(scores) == own).sum()) for scores, own in zip(outputs.logits, labels))
        times = [
            lambda: model(pixel_values=pixel_values, output_logits=with_logits),
            lambda: exported(pixel_values, output_logits=with_logits),
        ]
    found |= {"label_agreement": num_equal / labels.numel(), "labels_seen": len(labels.unique())}
    return found | dict(zip(("seconds_pytorch", "seconds_exported"), map(seconds, times)))


def report(model: QLSegForSemanticSegmentation, path: Path, runtime: Runtime) -> dict:
    """What an exported file is and does; ValueError if it gives other labels than the network."""
    exported = runtime.runner.from_pretrained(path)
    packages = map(import_module, ("torch", "onnx", "onnxscript", runtime.name.lower()))  # all are there by now
    found = {
        "runtime": runtime.name,
        "bytes": sum(file.stat().st_size for file in exported.files),
        "outputs": exported.outputs,
        "threads": torch.get_num_threads(),
        "versions": {package.__name__: package.__version__ for package in packages},
        "inputs": [compare(model, exported, pixel_values) for pixel_values in smooth_noise(exported)],
    }
    print(json.dumps(found, indent=2))
    # written so that NaN is refused too
    if not all(row["label_agreement"] >= LEAST_AGREEMENT for row in found["inputs"]):
        shares = ", ".join(f"{row['label_agreement']:.2%}" for row in found["inputs"])
        raise ValueError(
            f"{runtime.name} and PyTorch agree on {shares} of the pixels; {LEAST_AGREEMENT:.1%} are wanted"
        )
    return found


def export(
    source: str, output: Path, *, format: str = "onnx", with_logits: bool = True, labels_only: bool = False
) -> None:
    """Write `output` and the report `OUTPUT_report.json` beside it.

    Args:
        source: folder or Hub id of the model.
        output: the file, in .xml for OpenVINO; a ViT-B takes a minute or two and 690 MB of disk.
        format: "onnx" or "openvino".
        with_logits: whether the graph gives `logits` too, which `segment` does not need.
        labels_only: whether it gives labels, and nothing else; see `ExportedQLSeg`.

    Raises:
        ImportError: an optional package is missing.
        ValueError: the runtime and PyTorch disagree; nothing is written then.
    """
    model, processor = load_network(source, dtype=torch.float32)
    keep_val_fraction(source, model.config)
    found, runtime = {}, RUNTIMES[format]

    def check(path: Path) -> None:
        found.update(report(model, path, runtime))

    runtime.write(model, processor, output, with_logits, check, labels_only)
    place = output.with_name(f"{output.stem}_report.json")
    write_atomically(place, json.dumps(found, indent=2).encode() + b"\n")
    print(f"wrote {output} and {place}")


__all__ = ["export"]
