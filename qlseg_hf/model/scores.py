# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""From class and mask logits to scores and label maps, block by block: K planes of an image are never held at once.

A window of 512 x 512 with 150 labels has 157 MB of scores, and 0.7 MB of class and mask logits they are made from. So
what is kept is the logits, and scores exist for a block of pixels at a time: small enough for the cache of a CPU.

Source: Xie et al. 2024, semantic inference. Letters: K labels (= queries), C of them wanted, h x w patch grid of a
window, H x W pixels.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional as F

from .runtime import keep_tensors

CPU_BLOCK_BYTES = 4 << 20  # fp32 of all labels in a block of pixels: two such blocks fit the caches of a CPU core
ACCELERATOR_BLOCK_BYTES = 256 << 20

Span = tuple[int, int]  # first pixel, and the one after the last


def overlap(a: Span, b: Span) -> Span | None:
    """The pixels that two spans share, or None."""
    first, end = max(a[0], b[0]), min(a[1], b[1])
    return (first, end) if first < end else None


def combine(class_logits: torch.Tensor, mask_logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Semantic scores S: (B, K, K + 1) and (B, K, h, w) -> (B, K, H, W). Upsampling comes before the sigmoid.

    Without gradients the upsampled masks are made in blocks of rows, so that the result is the only large tensor.
    """
    class_probs = class_logits.softmax(dim=-1)[..., :-1]  # "no object" is left out of the sum, not of the softmax
    # a graph is written as the formula: blocks are for running it as it stands, on real tensors
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or type(mask_logits) is not torch.Tensor
    if is_traced or mask_logits.is_meta or mask_logits.requires_grad or class_logits.requires_grad:
        masks = F.interpolate(mask_logits, size=size, mode="bilinear", align_corners=False).sigmoid()  # (B, K, H, W)
        return (class_probs.transpose(1, 2) @ masks.flatten(2)).unflatten(2, size)  # einsum is slow in onnxruntime
    height, width = size
    scores = mask_logits.new_empty(*mask_logits.shape[:2], height, width)
    num_rows = max(1, block_pixels(mask_logits.shape[1], mask_logits.device) // width)
    class_probs = class_probs.transpose(1, 2).to(scores.dtype).contiguous()  # autocast makes a softmax fp32
    with torch.autocast(scores.device.type, enabled=False):  # upsampling is a product here, which it would round
        for plane, probs, maps in zip(scores, class_probs, mask_logits.float()):
            for start in range(0, height, num_rows):
                stop = min(start + num_rows, height)
                masks = mask_block(maps, size, (start, stop), (0, width)).to(probs.dtype)  # (K, rows * W)
                torch.mm(probs, masks, out=plane.flatten(1)[:, start * width : stop * width])
    return scores


def block_pixels(num_labels: int, device: torch.device) -> int:
    """Pixels of a block with `num_labels` fp32 numbers each."""
    block_bytes = CPU_BLOCK_BYTES if device.type == "cpu" else ACCELERATOR_BLOCK_BYTES
    return max(1, block_bytes // (4 * num_labels))


def blocks(rows: Span, columns: Span, num_pixels: int) -> Iterator[tuple[Span, Span]]:
    """Cut a rectangle into blocks of at most `num_pixels`, twice as wide as high where there is room."""
    height = max(1, math.isqrt(num_pixels // 2))
    width = min(max(1, num_pixels // height), columns[1] - columns[0])
    height = max(1, num_pixels // width)
    for top in range(*rows, height):
        for left in range(*columns, width):
            yield (top, min(top + height, rows[1])), (left, min(left + width, columns[1]))


def neighbours(old: int, new: int, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two old pixels that `pixels` of a side resized from `old` to `new` lie between, and the second's share."""
    # half-pixel centres, no antialiasing; in fp32 like PyTorch's own
    centre = ((pixels.astype(np.float32) + 0.5) * np.float32(old / new) - 0.5).clip(min=0)
    before = centre.astype(np.int64)
    return before, (before + 1).clip(max=old - 1), centre - before.astype(np.float32)


@keep_tensors
def bilinear(old: int, new: int, span: Span, device: torch.device) -> torch.Tensor:
    """(pixels, n) fp32 weights with which pixels `span` of a resized side are made of the n old ones they need."""
    before, after, share = neighbours(old, new, np.arange(*span))
    weights = np.zeros((len(share), after[-1] + 1 - before[0]), dtype=np.float32)
    place = np.arange(len(share))
    weights[place, before - before[0]] = 1 - share
    weights[place, after - before[0]] += share
    return torch.from_numpy(weights).to(device)


@lru_cache(maxsize=512)
def _source_span(old: int, new: int, span: Span) -> Span:
    """The old pixels that pixels `span` of a side are made of; the same ones if it keeps its length."""
    if old == new:
        return span
    before, after, _ = neighbours(old, new, np.array([span[0], span[1] - 1]))
    return int(before[0]), int(after[1]) + 1


def sources(old: tuple[int, int], new: tuple[int, int], rows: Span, columns: Span) -> tuple[Span, Span]:
    """Rows and columns of a map of size `old` that rows x columns of its resized version (size `new`) are made of."""
    return _source_span(old[0], new[0], rows), _source_span(old[1], new[1], columns)


def resized_part(
    part: torch.Tensor, old: tuple[int, int], new: tuple[int, int], rows: Span, columns: Span
) -> torch.Tensor:
    """Rows x columns of the bilinear resize of fp32 maps from size `old` to size `new`, out of just what it needs.

    `part` is (K, n, m): the `sources` of the block. Returns (K, rows, columns); two small matrix products.
    """
    if old[1] != new[1]:
        across = bilinear(old[1], new[1], columns, part.device)
        # one product over all labels; PyTorch makes a product per label of a part that is not contiguous
        part = (part.reshape(-1, part.shape[2]) @ across.t()).view(*part.shape[:2], -1)  # (K, n, columns)
    if old[0] != new[0]:
        down = bilinear(old[0], new[0], rows, part.device)
        part = torch.bmm(down.expand(len(part), -1, -1), part)  # (K, rows, columns)
    return part


def mask_block(mask_logits: torch.Tensor, size: tuple[int, int], rows: Span, columns: Span) -> torch.Tensor:
    """Mask probabilities in rows x columns of (K, h, w) fp32 logits resized to `size`; (K, rows * columns)."""
    old = tuple(mask_logits.shape[1:])
    (top, bottom), (left, right) = sources(old, size, rows, columns)
    part = mask_logits[:, top:bottom, left:right]
    resized = part.clone() if old == tuple(size) else resized_part(part, old, size, rows, columns)
    return resized.sigmoid_().flatten(1)  # in place: fresh memory costs more than the arithmetic


def best_labels(
    part: torch.Tensor, old: tuple[int, int], new: tuple[int, int], rows: Span, columns: Span
) -> torch.Tensor:
    """The best of C labels in rows x columns of the resize of fp32 scores from `old` to `new`; (rows, columns) int64.

    `part` is (C, n, m), the `sources` of the block. A resized score lies between the lowest and the highest it is made
    of, so a label whose highest is below another's lowest is best nowhere in the block and needs no resizing.
    """
    if part.device.type != "cpu" or old == new:  # looking at the scores would stop an accelerator
        return first_maximum(resized_part(part, old, new, rows, columns))
    flat = part.flatten(1)
    low, high = flat.amin(dim=1), flat.amax(dim=1)  # much faster than aminmax
    rounding = 1e-5 * torch.maximum(high.max(), -low.min())
    is_beaten = high < low.max() - rounding  # False for NaN
    labels = (~is_beaten).nonzero()[:, 0]
    return labels[first_maximum(resized_part(part[labels], old, new, rows, columns))]


def first_maximum(scores: torch.Tensor) -> torch.Tensor:
    """argmax over the first axis of (C, rows, columns) fp32; (rows, columns) int64.

    On a CPU, maximum, comparison and a product with the label numbers are 7 times as fast as argmax over a first axis.
    Pixels where several labels are best (or one is NaN) go the long way.
    """
    if scores.device.type != "cpu":
        return scores.argmax(dim=0)
    shape, scores = scores.shape[1:], scores.flatten(1)
    # two digits to the base of 256: bf16, in which fp32 is multiplied at "medium" precision, holds no larger numbers
    digits = np.divmod(np.arange(len(scores), dtype=np.float32), 256)
    numbers = torch.from_numpy(np.stack([*digits, np.ones_like(digits[0])]))  # (3, C)
    is_best = torch.empty_like(scores)
    torch.eq(scores, scores.amax(dim=0), out=is_best)
    upper, best, count = numbers @ is_best
    best = best.add_(upper, alpha=256).long()
    if (tied := count != 1).any():
        best[tied] = scores[:, tied].argmax(dim=0)
    return best.view(shape)


@torch.no_grad()
def label_map_from_scores(plane: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(K, h, w) scores -> (H, W) int64 labels on the CPU: the best label of the scores resized to `size`.

    Raises:
        ValueError: there is NaN among the scores.
    """
    if plane.amax().isnan():
        raise ValueError("the logits hold NaN: the network's weights, its input or a dtype of float16 made it")
    label_map = torch.empty(size, dtype=torch.int64)
    plane, old = plane.float(), tuple(plane.shape[1:])
    with torch.autocast(plane.device.type, enabled=False):  # bf16 cannot hold label numbers beyond 256
        for rows, columns in blocks((0, size[0]), (0, size[1]), block_pixels(len(plane), plane.device)):
            (top, bottom), (left, right) = sources(old, size, rows, columns)
            labels = best_labels(plane[:, top:bottom, left:right], old, size, rows, columns)
            label_map[slice(*rows), slice(*columns)] = labels.cpu()
    return label_map


__all__ = [
    "Span",
    "best_labels",
    "bilinear",
    "block_pixels",
    "blocks",
    "combine",
    "first_maximum",
    "label_map_from_scores",
    "mask_block",
    "overlap",
    "resized_part",
    "sources",
]
