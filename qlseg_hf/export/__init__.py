# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Other runtimes: files for onnxruntime and OpenVINO and what runs them, a page for the browser, int8 weights."""

from .onnx import OnnxQLSeg, write_onnx
from .openvino import OpenVINOQLSeg, write_openvino

__all__ = ["OnnxQLSeg", "OpenVINOQLSeg", "write_onnx", "write_openvino"]
