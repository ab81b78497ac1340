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
    """x and y of every token's own cell, (L * N, 1, 1, 1) fp32 each."""
    y, x = (torch.arange(side, device=device).float() for side in grid)
    y = y[:, None].expand(-1, grid[1]).flatten()
    return x.repeat(levels * grid[0])[:, None, None, None], y.repeat(levels)[:, None, None, None]


@keep_tensors
def first_rows(grid: Grid, batch: int, heads: int, levels: int, device: torch.device) -> torch.Tensor:
    """Row of (B * L * N * heads, c) values that holds cell (0, 0) of a level; (B, 1, heads, 1, L, 1) int32."""

    def multiples(n: int, step: int) -> torch.Tensor:
        return torch.arange(n, device=device, dtype=torch.int32) * step

    length = grid[0] * grid[1] * heads
    start = multiples(batch, levels * length).view(-1, 1, 1, 1, 1, 1) + multiples(heads, 1)[:, None, None, None]
    return start + multiples(levels, length)[:, None]


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
    batch, length, heads, width = value.shape
    rows, shares = corners(offsets, weights, grid, batch)
    if torch.compiler.is_exporting():
        return sum_gathered(value, rows, shares.to(value.dtype))
    bags = (batch * length * heads, -1)
    shares = shares.to(value.dtype).view(bags)
    out = F.embedding_bag(rows.view(bags), value.reshape(-1, width), mode="sum", per_sample_weights=shares)
    return out.view(batch, length, heads * width)


def sum_gathered(value: torch.Tensor, rows: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """`sample_levels` for exported graphs, whose formats have no `embedding_bag`: rows are gathered, then summed.

    One level at a time: what is gathered at once is 4 * points times as large as `value`. As a product of matrices the
    sum takes onnxruntime half as long as multiplied and added.
    """
    flat, out = value.flatten(0, 2), None  # (B * L * N * heads, c)
    for level in range(rows.shape[5]):
        bags = rows[..., level, :].flatten(3)  # (B, L * N, heads, 4 * points)
        taken = flat.index_select(0, bags.flatten()).unflatten(0, bags.shape)
        part = shares[..., level, :].flatten(3)[..., None, :] @ taken  # (B, L * N, heads, 1, c)
        out = part if out is None else out + part
    return out.flatten(2)


def corners(offsets: torch.Tensor, weights: torch.Tensor, grid: Grid, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The four cells a sample lies between, as rows of (B * L * N * heads, c) values, and their weights.

    Both (B, L * N, heads, 2, 2, L, points), int32 and fp32; 2, 2 are the corner's row and column. A corner outside the
    map has weight 0, and the row of some cell inside.
    """
    heads, levels = offsets.shape[2:4]
    x, y = cells(grid, levels, offsets.device)
    # fp32: a coordinate of 40 has steps of 1/4 in bf16
    column, column_share = _find_nearest_two(offsets[..., 0].float() + x, grid[1])  # (B, L * N, heads, 2, L, points)
    row, row_share = _find_nearest_two(offsets[..., 1].float() + y, grid[0])
    row = row * (grid[1] * heads) + first_rows(grid, batch, heads, levels, offsets.device)
    column, row_share = column * heads, row_share * weights[:, :, :, None]
    # the corners stand before levels and points: runs of L * points numbers are added faster than pairs
    return row[:, :, :, :, None] + column[:, :, :, None], row_share[:, :, :, :, None] * column_share[:, :, :, None]


def _find_nearest_two(place: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The cells 0..size - 1 before and after (..., L, points) coordinates, and their weights; (..., 2, L, points)."""
    first = place.floor()
    share = place - first
    first = first.to(torch.int32)
    cell = torch.stack([first, first + 1], dim=-3)
    inside = cell.clamp(0, size - 1)
    return inside, torch.where(inside == cell, torch.stack([1 - share, share], dim=-3), 0.0)


__all__ = ["Grid", "cells", "corners", "first_rows", "position_code", "sample_levels", "sum_gathered"]
