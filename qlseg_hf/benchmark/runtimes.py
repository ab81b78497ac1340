# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The same network in PyTorch, ONNX Runtime and OpenVINO on a CPU, in turns."""

from pathlib import Path
from tempfile import TemporaryDirectory

from ..export.onnx import OnnxQLSeg, write_onnx
from ..export.openvino import PRECISION, OpenVINOQLSeg, write_openvino
from ..hub.saving import QLSegImageProcessor
from ..utils.devices import has_bf16
from .measure import Rows, take_turns
from .settings import DTYPES, Settings, build, draw_pixels, inference

ONNX_FILES = {  # what a file's graph ends in, as of `write_onnx`
    "class and mask logits": {"with_logits": False},
    "scores": {"with_logits": True},
    "labels": {"labels_only": True},
}


def run_runtimes(settings: Settings) -> Rows:
    """Forward passes up to class and mask logits; of ONNX Runtime also up to scores, and up to labels in the graph.

    bf16 in PyTorch and OpenVINO where the processor has instructions for it.

    Raises:
        ImportError: ONNX Runtime or OpenVINO is missing.
        ValueError: another device than a CPU.
    """
    if settings.device.type != "cpu":
        raise ValueError("runtimes compares runtimes on a CPU; say --device cpu")
    kinds = settings.dtypes or ("fp32",) + ("bf16",) * has_bf16(settings.device)
    model = build(settings)
    processor = QLSegImageProcessor(window_size=settings.size, window_stride=settings.size)
    with TemporaryDirectory() as folder:
        for name, wanted in ONNX_FILES.items():
            write_onnx(model, processor, Path(folder, f"{name}.onnx"), **wanted)
        write_openvino(model, processor, Path(folder, "graph.xml"), with_logits=False)
        exported = {
            f"ONNX Runtime fp32, {name}": OnnxQLSeg.from_pretrained(f"{folder}/{name}.onnx") for name in ONNX_FILES
        }
        networks = {f"PyTorch {kind}": build(settings, DTYPES[kind]) for kind in kinds}
        for kind in kinds:
            hint = {"fp32": "f32", "bf16": "bf16"}[kind]
            exported[f"OpenVINO {kind}"] = OpenVINOQLSeg.from_pretrained(f"{folder}/graph.xml", {PRECISION: hint})
        for batch in settings.batch_sizes:
            pixels = draw_pixels(settings, batch)
            variants = {
                name: inference(lambda n=network, x=pixels: n(x.to(n.dtype), output_logits=False))
                for name, network in networks.items()
            }
            variants |= {name: lambda n=network, x=pixels: n._run(x) for name, network in exported.items()}
            found = take_turns(variants, f"PyTorch {kinds[0]}", settings.repeats, settings.device)
            for name, row in found.items():
                if name in exported:
                    row["megabytes"] = sum(file.stat().st_size for file in exported[name].files) / 1e6
                yield f"runtimes b{batch} {name}", row


__all__ = ["run_runtimes"]
