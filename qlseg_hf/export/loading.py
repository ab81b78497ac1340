# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Loading what a command is given: a folder or Hub id for PyTorch, or a file that `qlseg export` has written."""

import os
from pathlib import Path

import torch

from ..hub.loading import load_network
from ..hub.saving import QLSegForSemanticSegmentation, QLSegImageProcessor
from .onnx import OnnxQLSeg
from .openvino import PRECISION, OpenVINOQLSeg
from .runtime import ExportedQLSeg

PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}  # OpenVINO's names


def is_file(source: str | os.PathLike) -> bool:
    """Whether this names a file of `qlseg export`, there or not."""
    return Path(source).suffix in (".onnx", ".xml") and not Path(source).is_dir()


def load_network_or_file(
    source: str | os.PathLike, settings: dict | None = None, *, dtype: torch.dtype = torch.float32
) -> tuple[QLSegForSemanticSegmentation | ExportedQLSeg, QLSegImageProcessor]:
    """As `load_network`, and for a file FILE.onnx or FILE.xml the exported network in its runtime.

    Args:
        source: folder, Hub id or file.
        settings: of the processor, instead of the stored ones.
        dtype: of the weights; of a file, what OpenVINO computes in.

    Raises:
        ImportError: the runtime is missing.
        OSError, ValueError: as of `load_network`; a file is none of these, or onnxruntime is to compute in another
            dtype than fp32.
    """
    path = Path(source)
    if not is_file(source):
        return load_network(source, settings, dtype=dtype)
    exported: ExportedQLSeg
    if path.suffix == ".xml":
        exported = OpenVINOQLSeg.from_pretrained(path, {PRECISION: PRECISIONS[dtype]})
    elif dtype == torch.float32:
        exported = OnnxQLSeg.from_pretrained(path)
    else:
        raise ValueError(
            f"{source} computes in float32, not in {str(dtype).removeprefix('torch.')}; leave --dtype out"
        )
    return exported, QLSegImageProcessor.from_dict(exported.processor.to_dict() | (settings or {}))


__all__ = ["is_file", "load_network_or_file"]
