# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Sampling of the pixel encoder: weighted sums of bilinear samples, and the grids and position codes it works on.

Source: Zhu et al. 2021, multi-scale deformable attention, for levels of equal size.
"""

import math

import torch
from torch.nn import functional as F

from .deformable_attention_triton import fused_sample_levels, supports
from .runtime import keep_tensors

Grid = tuple[int, int]  # (h, w) in patches
SIDES = (1, 2)  # cells of padding before and after: a sample at the far border of the first one has a corner beyond it
PADDING = sum(SIDES)


@keep_tensors
def position_code(grid: Grid, width: int, temperature: float, device: torch.device) -> torch.Tensor:
    """(N, width) fp32 sine code: first half of the channels from y, second from x, both in (0, 2 pi]."""
    half = width // 2
    index = torch.arange(half, device=device)
    frequency = temperature ** (2 * (index // 2).float() / half)
    codes = []
    for side in grid:
        place = torch.arange(1, side + 1, device=device).float()
        angle = 2 * math.pi * place / (place.amax(0) + 1e-6)
        angle = angle[:, None] / frequency  # (side, half)
        codes.append(torch.where(index % 2 == 0, angle.sin(), angle.cos()))
    y, x = codes
    code = torch.cat([y[:, None].expand(-1, grid[1], -1), x[None].expand(grid[0], -1, -1)], dim=-1)  # (h, w, width)
    return code.flatten(0, 1)


@keep_tensors
def cells(grid: Grid, levels: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Column and row of every token's own cell in a padded map, (L * N, 1, 1, 1) fp32 each."""
    row, column = (torch.arange(1, side + 1, device=device).float() for side in grid)
    row = row[:, None].expand(-1, grid[1]).flatten()
    return column.repeat(levels * grid[0])[:, None, None, None], row.repeat(levels)[:, None, None, None]


@keep_tensors
def first_rows(
    grid: Grid, batch: int, heads: int, levels: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row of `pad_levels` that holds cell (0, 0) of a level, and what the corners of a sample add to its first one.

    (B, 1, heads, L, 1) and (4, 1, 1) int32; the corners are before, right, below, below and right.
    """

    def multiples(n: int, step: int) -> torch.Tensor:
        return torch.arange(n, device=device, dtype=torch.int32) * step

    height, width = (side + PADDING for side in grid)
    length = height * width * heads
    start = multiples(batch, levels * length).view(-1, 1, 1, 1, 1) + multiples(heads, 1)[:, None, None]
    steps = multiples(2, width * heads)[:, None] + multiples(2, heads)
    return start + multiples(levels, length)[:, None], steps.view(4, 1, 1)


def sample_levels(value: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Weighted sum of bilinear samples around every token's own cell, in each of L maps of one grid; zero outside.

    Args:
        value: (B, L * N, heads, c), the maps to sample.
        offsets: (B, L * N, heads, L, points, 2), (x, y) in cells, added to the token's own cell.
        weights: (B, L * N, heads, L, points).
        grid: (h, w), N = h * w.

    Returns:
        (B, L * N, heads * c). Every value is read once: a bag of the 4 corners of all points is summed in one pass,
        instead of writing each sample out as `grid_sample` does. With `QLSEG_SAMPLER=triton` GPUs get the kernel of
        `deformable_attention_triton`, unless the model is exported or deterministic algorithms are asked for.
    """
    if supports(value):
        return fused_sample_levels(value, offsets, weights, grid)
    batch, length, heads, _ = value.shape
    padded = pad_levels(value, grid)
    rows, shares = corners(offsets, weights, grid, batch)
    if torch.compiler.is_exporting():
        return sum_gathered(padded, rows, shares.to(value.dtype))
    bags = (batch * length * heads, -1)
    shares = shares.to(value.dtype).view(bags)
    out = F.embedding_bag(rows.view(bags), padded, mode="sum", per_sample_weights=shares)
    return out.view(batch, length, -1)


def softmax_of_few(scores: torch.Tensor) -> torch.Tensor:
    """Softmax over the last axis in fp32. Over a dozen numbers PyTorch's own takes a CPU five times as long."""
    if scores.device.type != "cpu" or torch.compiler.is_exporting():
        return F.softmax(scores, dim=-1, dtype=torch.float32)
    scores = scores.float()
    powers = (scores - scores.detach().amax(dim=-1, keepdim=True)).exp()
    return powers / powers.sum(dim=-1, keepdim=True)


def pad_levels(value: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(B, L * N, heads, c) values with zeros around each map, as rows (B * L * (h + 3) * (w + 3) * heads, c).

    A sample outside a map then reads zeros like any other, which costs less than to look for such samples.
    """
    maps = value.flatten(2).unflatten(1, (-1, *grid))  # (B, L, h, w, heads * c)
    return F.pad(maps, (0, 0, *SIDES, *SIDES)).view(-1, value.shape[-1])


def sum_gathered(padded: torch.Tensor, rows: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """`sample_levels` for exported graphs, whose formats have no `embedding_bag`: rows are gathered, then summed.

    One level at a time: what is gathered at once is 4 * points times as large as the values. As a product of matrices
    the sum takes onnxruntime half as long as multiplied and added.
    """
    out = None
    for level in range(rows.shape[4]):
        bags = rows[..., level, :].flatten(3)  # (B, L * N, heads, 4 * points)
        taken = padded.index_select(0, bags.flatten()).unflatten(0, bags.shape)
        part = shares[..., level, :].flatten(3)[..., None, :] @ taken  # (B, L * N, heads, 1, c)
        out = part if out is None else out + part
    return out.flatten(2)


def corners(offsets: torch.Tensor, weights: torch.Tensor, grid: Grid, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The four cells a sample lies between, as rows of `pad_levels`, and their weights.

    Both (B, L * N, heads, 4, L, points), int32 and fp32. Samples further outside are moved into the padding.
    """
    heads, levels = offsets.shape[2:4]
    x, y = cells(grid, levels, offsets.device)
    # fp32: a coordinate of 40 has steps of 1/4 in bf16. NaN reads padding
    x = (offsets[..., 0].float() + x).nan_to_num(0.0).clamp(0, grid[1] + 1)
    y = (offsets[..., 1].float() + y).nan_to_num(0.0).clamp(0, grid[0] + 1)
    left, top = x.floor(), y.floor()
    start, steps = first_rows(grid, batch, heads, levels, offsets.device)
    first = (left + top * (grid[1] + PADDING)).to(torch.int32) * heads + start
    right, below = x - left, y - top  # shares
    lower = weights * below
    upper = weights - lower
    upper_right, lower_right = upper * right, lower * right
    # the corners stand before levels and points: runs of L * points numbers are written faster than fours
    shares = torch.stack([upper - upper_right, upper_right, lower - lower_right, lower_right], dim=3)
    return first[:, :, :, None] + steps, shares


__all__ = [
    "Grid",
    "cells",
    "corners",
    "first_rows",
    "pad_levels",
    "position_code",
    "sample_levels",
    "softmax_of_few",
    "sum_gathered",
]
