"""Other runtimes: ONNX files and their runner, int8 weights."""

from .onnx import OnnxQLSeg, write_onnx

__all__ = ["OnnxQLSeg", "write_onnx"]
