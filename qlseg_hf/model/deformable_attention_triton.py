# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`sample_levels` of the pixel encoder as one Triton kernel for GPUs, and one for its gradients.

Cells, corners and weights are worked out in registers, so nothing but the result is written to memory; the plain
version in `deformable_attention` writes 4 indices and 4 weights per sample first. A program takes some (image, token,
head) rows with all their channels, walks over the samples of each and adds up in fp32.

The kernel has been run in Triton's interpreter alone, not on a GPU, so it is off: `QLSEG_SAMPLER=triton` in the
environment, set before the import, turns it on.
"""

from __future__ import annotations  # `tl.constexpr` stands in signatures, and `tl` may be missing

import os
import shutil
import sysconfig
from pathlib import Path

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

try:
    import triton
    import triton.language as tl
except ImportError as error:
    triton = None
    if error.name != "triton":  # PyTorch's builds for CPUs come without it; anything else is worth a word
        logger.warning(f"triton is there and cannot be imported, so GPUs sample without the faster kernel: {error}")

SAMPLER = os.environ.get("QLSEG_SAMPLER", "plain")
if SAMPLER not in ("plain", "triton"):
    raise ValueError(f"QLSEG_SAMPLER is {SAMPLER!r} in the environment; plain or triton is wanted")
WIDEST_HEAD = 256  # channels; a program holds a row of them in registers
kernel = triton.jit if triton is not None else lambda function: function


def _can_launch() -> bool:
    """Triton is asked for and there, and so are the C compiler and Python's headers, to build its launcher with."""
    if SAMPLER != "triton" or triton is None:
        return False
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_path("include", "posix_prefix"))
    return bool(compiler) and (headers / "Python.h").exists()


CAN_LAUNCH = _can_launch()  # looked up once: a traced function cannot search the disk


@kernel
def neighbour(place, size, step: tl.constexpr):
    """The cell before (step 0) or after (step 1) a coordinate: index, share of the sample, d share / d place, inside.

    A cell outside 0..size - 1 has index, share and slope 0. The test is made in floats: NaN and infinity fail it.
    """
    before = tl.floor(place)
    cell = before + step
    inside = (cell >= 0) & (cell < size)
    share = place - before if step else 1 - (place - before)
    index = tl.where(inside, cell, 0).to(tl.int32)
    return index, tl.where(inside, share, 0.0), tl.where(inside, 2.0 * step - 1.0, 0.0), inside


@kernel
def rows_of_program(rows, h, w, heads: tl.constexpr, levels: tl.constexpr, block: tl.constexpr):
    """(block,) rows of (B * L * N * heads, c); which exist; their x and y; row of cell (0, 0) in the first level."""
    row = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)  # int64: large batches pass 2**31 numbers
    cell = row // heads % (h * w)
    start = row // (heads * levels * h * w) * (heads * levels * h * w) + row % heads
    return row, row < rows, (cell % w).to(tl.float32), (cell // w).to(tl.float32), start


@kernel
def load_sample(offsets, weights, index, x, y, exists):
    place_x = x + tl.load(offsets + 2 * index, exists, 0.0).to(tl.float32)
    place_y = y + tl.load(offsets + 2 * index + 1, exists, 0.0).to(tl.float32)
    return place_x, place_y, tl.load(weights + index, exists, 0.0).to(tl.float32)


@kernel
def forward_kernel(
    value,
    offsets,
    weights,
    out,
    rows,
    h,
    w,
    heads: tl.constexpr,
    levels: tl.constexpr,
    points: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    block_width: tl.constexpr,
):
    row, exists, x, y, start = rows_of_program(rows, h, w, heads, levels, block)
    channel = tl.arange(0, block_width)[None]
    total = tl.zeros((block, block_width), tl.float32)
    for sample in range(levels * points):
        index = row * (levels * points) + sample
        place_x, place_y, weight = load_sample(offsets, weights, index, x, y, exists)
        first = start + sample // points * (h * w * heads)
        for i in tl.static_range(2):
            cell_y, share_y, _, inside_y = neighbour(place_y, h, i)
            for j in tl.static_range(2):
                cell_x, share_x, _, inside_x = neighbour(place_x, w, j)
                at = (first + (cell_y * w + cell_x) * heads)[:, None] * width + channel
                mask = (exists & inside_y & inside_x)[:, None] & (channel < width)
                total += (weight * share_y * share_x)[:, None] * tl.load(value + at, mask, 0.0).to(tl.float32)
    tl.store(out + row[:, None] * width + channel, total, exists[:, None] & (channel < width))


@kernel
def backward_kernel(
    value,
    offsets,
    weights,
    grad_out,
    grad_value,
    grad_offsets,
    grad_weights,
    rows,
    h,
    w,
    heads: tl.constexpr,
    levels: tl.constexpr,
    points: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    block_width: tl.constexpr,
):
    row, exists, x, y, start = rows_of_program(rows, h, w, heads, levels, block)
    channel = tl.arange(0, block_width)[None]
    own = exists[:, None] & (channel < width)
    grad = tl.load(grad_out + row[:, None] * width + channel, own, 0.0).to(tl.float32)
    for sample in range(levels * points):
        index = row * (levels * points) + sample
        place_x, place_y, weight = load_sample(offsets, weights, index, x, y, exists)
        first = start + sample // points * (h * w * heads)
        grad_x = tl.zeros((block,), tl.float32)
        grad_y = tl.zeros((block,), tl.float32)
        grad_weight = tl.zeros((block,), tl.float32)
        for i in tl.static_range(2):
            cell_y, share_y, slope_y, inside_y = neighbour(place_y, h, i)
            for j in tl.static_range(2):
                cell_x, share_x, slope_x, inside_x = neighbour(place_x, w, j)
                at = (first + (cell_y * w + cell_x) * heads)[:, None] * width + channel
                mask = (exists & inside_y & inside_x)[:, None] & (channel < width)
                tl.atomic_add(grad_value + at, (weight * share_y * share_x)[:, None] * grad, mask, sem="relaxed")
                product = tl.sum(grad * tl.load(value + at, mask, 0.0).to(tl.float32), axis=1)
                grad_x += share_y * slope_x * product
                grad_y += slope_y * share_x * product
                grad_weight += share_y * share_x * product
        tl.store(grad_offsets + 2 * index, weight * grad_x, exists)
        tl.store(grad_offsets + 2 * index + 1, weight * grad_y, exists)
        tl.store(grad_weights + index, grad_weight, exists)


def _constants(value: torch.Tensor, offsets: torch.Tensor) -> dict[str, int]:
    """What the kernels are compiled for; a program of 4 warps gets about 8 numbers per thread."""
    heads, levels, points = offsets.shape[2:5]
    width = value.shape[3]
    block_width = 1 << (width - 1).bit_length()
    sizes = {"heads": heads, "levels": levels, "points": points, "width": width}
    return sizes | {"block": max(1024 // block_width, 1), "block_width": block_width}


def _launch(function, tensors: tuple[torch.Tensor, ...], value: torch.Tensor, offsets: torch.Tensor, h: int, w: int):
    sizes = _constants(value, offsets)
    rows = value.shape[:3].numel()
    with torch.cuda.device_of(value):  # Triton launches on the current device
        function[(-(-rows // sizes["block"]),)](*tensors, rows, h, w, **sizes)


def _forward(value: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor, h: int, w: int) -> torch.Tensor:
    value, offsets, weights = value.contiguous(), offsets.contiguous(), weights.contiguous()
    out = value.new_empty(*value.shape[:2], value.shape[2] * value.shape[3])
    _launch(forward_kernel, (value, offsets, weights, out), value, offsets, h, w)
    return out


def _backward(
    grad: torch.Tensor, value: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor, h: int, w: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    value, offsets, weights, grad = value.contiguous(), offsets.contiguous(), weights.contiguous(), grad.contiguous()
    # fp32: many samples meet in one cell, and atomic adds in bf16 would lose the small ones
    grad_value = torch.zeros_like(value, dtype=torch.float32)
    grad_offsets, grad_weights = torch.empty_like(offsets), torch.empty_like(weights)
    tensors = (value, offsets, weights, grad, grad_value, grad_offsets, grad_weights)
    _launch(backward_kernel, tensors, value, offsets, h, w)
    return grad_value.to(value.dtype), grad_offsets, grad_weights


def _setup_context(ctx, inputs, output):
    *tensors, ctx.h, ctx.w = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, grad: torch.Tensor):
    return *torch.ops.qlseg.sample_levels_backward(grad, *ctx.saved_tensors, ctx.h, ctx.w), None, None


def _raise_second_derivative(ctx, *grads):
    raise RuntimeError("the sampling kernel has no second derivative; keep create_graph=False on GPUs")


def _register():
    """Register the two operators once: a copy of this module that came with remote code finds them there."""
    if hasattr(torch.ops.qlseg, "sample_levels"):
        return
    # opaque to torch.compile: it must not trace a launch, neither in the forward nor in the backward pass
    sample = torch.library.custom_op("qlseg::sample_levels", _forward, mutates_args=())
    sample.register_fake(lambda value, offsets, weights, h, w: value.new_empty(value.flatten(2).shape))
    sample.register_autograd(_differentiate, setup_context=_setup_context)
    gradients = torch.library.custom_op("qlseg::sample_levels_backward", _backward, mutates_args=())
    gradients.register_fake(lambda grad, *inputs: tuple(torch.empty_like(x).contiguous() for x in inputs[:3]))
    gradients.register_autograd(_raise_second_derivative)


_register()


def supports(value: torch.Tensor) -> bool:
    """Whether `fused_sample_levels` should be used: its atomic adds make gradients depend on their order."""
    on_gpu = value.is_cuda and CAN_LAUNCH and value.shape[3] <= WIDEST_HEAD and value.dtype != torch.float64
    is_traced = torch.compiler.is_exporting() or torch.jit.is_tracing()
    return on_gpu and not is_traced and not torch.are_deterministic_algorithms_enabled()


def fused_sample_levels(
    value: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor, grid: tuple[int, int]
) -> torch.Tensor:
    """What `deformable_attention.sample_levels` computes, with its arguments, once differentiable."""
    return torch.ops.qlseg.sample_levels(value, offsets, weights, *grid)


__all__ = ["backward_kernel", "forward_kernel", "fused_sample_levels", "supports"]
