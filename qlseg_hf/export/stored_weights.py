# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Weights of an ONNX graph in fewer bytes, computed with in fp32.

The graph turns them into fp32 when it is loaded (onnxruntime folds what depends on weights alone), so files get
smaller and every runtime and processor computes the same. Time and memory stay those of fp32.
"""

import numpy as np

from .onnx import optional

LEAST_VALUES = 256  # smaller tensors (biases, norms) stay in fp32


def shrink_weights(program, kind: str) -> None:
    """Store the weights of a graph as fp16 or int8, in place.

    Args:
        program: `onnx_ir.Model`, whose weights are fp32 initializers.
        kind: "fp32" changes nothing; "fp16" halves; "int8" quarters: weights of convolutions and of products are
            integers in -127..127, with a scale per output channel, all others fp16.
    """
    if kind == "fp32":
        return
    ir = optional("onnx_ir")
    for name, value in list(program.graph.initializers.items()):
        weights = value.const_value.numpy()
        if weights.dtype != np.float32 or weights.size < LEAST_VALUES or value.is_graph_output():
            continue
        if kind == "int8" and (axis := _output_axis(value)) is not None:
            others = tuple(i for i in range(weights.ndim) if i != axis)
            scale = np.maximum(np.abs(weights).max(axis=others, keepdims=True), 1e-12) / np.float32(127)
            parts = {"int8": np.rint(weights / scale).astype(np.int8), "scale": scale.astype(np.float32)}
        elif np.abs(weights).max() < np.finfo(np.float16).max:
            parts = {"fp16": weights.astype(np.float16)}
        else:
            continue  # fp16 would make it infinite
        stored = []
        for kind_of_part, array in parts.items():
            part = ir.Value(name=f"{name}_{kind_of_part}", const_value=ir.tensor(array))
            part.dtype, part.shape = part.const_value.dtype, part.const_value.shape
            program.graph.register_initializer(part)
            stored.append(part)
        nodes = [ir.node("Cast", stored[:1], attributes={"to": ir.DataType.FLOAT})]
        if len(stored) > 1:
            nodes.append(ir.node("Mul", [nodes[0].outputs[0], stored[1]]))
        program.graph.insert_before(program.graph[0], nodes)
        ir.convenience.replace_all_uses_with(value, nodes[-1].outputs[0])
        del program.graph.initializers[name]


def _output_axis(value) -> int | None:
    """The axis of output channels of a weight, if all its uses are as weight of a convolution or a product."""
    uses = {(use.node.op_type, use.idx) for use in value.uses()}
    num_axes = len(value.const_value.shape)
    if uses == {("Conv", 1)}:
        return 0
    return 1 if uses == {("MatMul", 1)} and num_axes == 2 else None


__all__ = ["shrink_weights"]
