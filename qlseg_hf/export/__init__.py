# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Other runtimes: ONNX files and their runner, int8 weights."""

from .onnx import OnnxQLSeg, write_onnx

__all__ = ["OnnxQLSeg", "write_onnx"]
