# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The same network in PyTorch, ONNX Runtime and OpenVINO on a CPU, in turns."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ..export.onnx import OnnxQLSeg, write_onnx
from ..export.openvino import PRECISION, OpenVINOQLSeg, write_openvino
from ..hub.saving import QLSegImageProcessor
from ..utils.devices import has_bf16
from .measure import take_turns
from .settings import DTYPES, Settings, build, inference

ONNX_FILES = {  # what a file's graph ends in, as of `write_onnx`
    "class and mask logits": {"with_logits": False},
    "scores": {"with_logits": True},
    "labels": {"labels_only": True},
}


def run_runtimes(settings: Settings) -> dict:
    """Forward passes up to class and mask logits; of ONNX Runtime also up to scores, and up to labels in the graph.

    bf16 in PyTorch and OpenVINO where the processor has instructions for it.

    Raises:
        ImportError: ONNX Runtime or OpenVINO is missing.
        ValueError: another device than a CPU.
    """
    if settings.device.type != "cpu":
        raise ValueError("runtimes compares runtimes on a CPU; say --device cpu")
    kinds = settings.dtypes or ("fp32",) + ("bf16",) * has_bf16(settings.device)
    model, rows = build(settings), {}
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
            pixels = torch.randn(batch, 3, settings.size, settings.size)
            variants = {
                name: inference(lambda n=network, x=pixels: n(x.to(n.dtype), output_logits=False))
                for name, network in networks.items()
            }
            variants |= {name: lambda n=network, x=pixels: n._run(x) for name, network in exported.items()}
            found = take_turns(variants, f"PyTorch {kinds[0]}", settings.repeats, settings.device)
            for name, row in found.items():
                size = sum(file.stat().st_size for file in exported[name].files) / 1e6 if name in exported else None
                rows[f"runtimes b{batch} {name}"] = row | ({} if size is None else {"megabytes": size})
    return rows


__all__ = ["run_runtimes"]
