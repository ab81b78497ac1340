# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""How much of an image `segment` takes at once, so that it stays within a number of MiB.

What grows with an image are its pixels and its label map (11 bytes per pixel of RGB) and its windows: 0.7 MB each
with 150 labels. The windows of a strip of the label map are held at a time, and as many are forwarded together as fit.
"""

from collections.abc import Iterator
from math import ceil

from .configuration_qlseg import QLSegConfig, as_pair
from .scores import Span, overlap, sources

LABEL_BYTES = 8  # int64 of a pixel's label; a decoder holds 4 + 3 per pixel of RGB before there are labels
BYTES_PER_RESIZED_BAND = 25  # a pixel of a band in int32 or fp32, five times while they are computed
RESIZED_PIXELS = 4 << 20  # of windows that are resized together; a single one may have more
BLOCKS_BYTES = 64 << 20  # of scores in the making, all copies of a block together
SHORTEST_STRIP = 64  # pixels


class MemoryPlan:
    """Strips and forward batches within `max_memory_mb` MiB; one strip and full batches if that is None.

    After `strips` has begun on an image, `window_batch_size` is the number of windows per forward pass.
    """

    def __init__(
        self, config: QLSegConfig, window_batch_size: int, max_memory_mb: float | None, patch_size: tuple | None = None
    ):
        self.config, self.most_windows, self.max_memory_mb = config, window_batch_size, max_memory_mb
        # timm's configurations do not say; the network does
        self.patch_size = patch_size or as_pair(config.backbone_config.patch_size)
        self.window_batch_size = window_batch_size
        self.num_channels = getattr(config.backbone_config, "num_channels", 3)
        self.pixel_bytes = self.num_channels  # of the picture that is cut; 8 bits per band unless somebody says other

    def strips(self, size: tuple[int, int], layout: list) -> Iterator[tuple[Span, Span]]:
        """Rows and columns of each strip of an image, cut across its longer side.

        Args:
            size: (height, width) of the image in pixels.
            layout: of its runs: (resized size, share, is_flipped, [(rows, columns), ...]).

        Raises:
            ValueError: not even the smallest strip fits.
        """
        length = max(size)
        if self.max_memory_mb is not None:
            length, self.window_batch_size = self.longest_strip(size, layout)
        for start in range(0, max(size), length):
            yield _strip_at(size, start, length)

    def longest_strip(self, size: tuple[int, int], layout: list) -> tuple[int, int]:
        """Length of a strip in pixels and number of windows per forward pass: the largest that fit, length first."""
        length = max(size)
        most_windows = min(self.most_windows, sum(len(places) for *_, places in layout))
        while True:
            for num_windows in range(most_windows, 0, -1):
                needed = self.needed(size, layout, length, num_windows)
                if needed <= self.max_memory_mb * 2**20:
                    return length, num_windows
            if length <= SHORTEST_STRIP:
                own = ceil(size[0] * size[1] * (self.pixel_bytes + LABEL_BYTES) / 2**20)
                raise ValueError(
                    f"max_memory_mb={self.max_memory_mb} is too little for a picture of {size[0]} x {size[1]} pixels: "
                    f"{ceil(needed / 2**20)} MiB are needed, {own} of "
                    "them for its pixels and its label map"
                )
            length = max(ceil(length / 2), SHORTEST_STRIP)

    def needed(self, size: tuple[int, int], layout: list, length: int, num_windows: int) -> int:
        """Bytes that strips of `length` pixels with forward passes of `num_windows` windows take."""
        most_windows = most_resized = largest_window = 0
        for start in range(0, max(size), length):
            inside = resized = 0
            for run_size, _, _, places in layout:
                reach = sources(run_size, size, *_strip_at(size, start, length))
                windows = [place for place in places if overlap(place[0], reach[0]) and overlap(place[1], reach[1])]
                inside += len(windows)
                area = [max(span[1] for span in spans) - min(span[0] for span in spans) for spans in zip(*windows)]
                resized = max(resized, area[0] * area[1])
                largest_window = max(largest_window, *((r[1] - r[0]) * (c[1] - c[0]) for r, c in windows))
            most_windows, most_resized = max(most_windows, inside), max(most_resized, resized)
        most_resized = min(most_resized, max(RESIZED_PIXELS, largest_window))
        return (
            size[0] * size[1] * (self.pixel_bytes + LABEL_BYTES)
            + most_resized * BYTES_PER_RESIZED_BAND * self.num_channels
            + most_windows * self.window_bytes(largest_window)
            + num_windows * self.forward_bytes(largest_window)
            + BLOCKS_BYTES
        )

    def num_tokens(self, window_pixels: int) -> int:
        return ceil(window_pixels / (self.patch_size[0] * self.patch_size[1]))

    def window_bytes(self, window_pixels: int) -> int:
        """What is kept of a window: class probabilities and mask logits, fp32."""
        num_masked = ceil(window_pixels / 16) if self.config.num_detail_channels else self.num_tokens(window_pixels)
        return 4 * self.config.num_labels * (self.config.num_labels + num_masked)

    def forward_bytes(self, window_pixels: int) -> int:
        """What a window adds to a forward pass, in fp32; what was measured lies below it."""
        backbone = self.config.backbone_config
        width = getattr(backbone, "hidden_size", None) or 1024
        levels = len(backbone.out_indices)
        hidden = max(4 * width + 8 * width, levels * (8 * width + self.config.pixel_encoder_intermediate_size))
        heads = getattr(backbone, "num_attention_heads", None) or 16
        attention = _count_attention_matrices(backbone) * heads * self.num_tokens(window_pixels)
        channels, details = self.config.num_detail_channels, 0
        if channels:  # at half the sides two maps of half the width; at a quarter four, and the masks five times
            details = ceil(window_pixels / 4) * channels
            details += ceil(window_pixels / 16) * (4 * channels + 5 * self.config.num_labels)
        tokens = self.num_tokens(window_pixels) * (hidden + levels * width + attention)
        return 4 * (tokens + self.num_channels * window_pixels + details)


def _count_attention_matrices(backbone) -> int:
    """How many (heads, N, N) tensors the attention of one layer holds at a time; the fused ones hold none."""
    if backbone._attn_implementation == "eager":
        return 3
    has_bias = any(getattr(backbone, f"use_{kind}relative_position_bias", False) for kind in ("", "shared_"))  # BEiT's
    return 2 if has_bias else 0


def _strip_at(size: tuple[int, int], start: int, length: int) -> tuple[Span, Span]:
    """Rows and columns of the strip that begins at `start` along the longer side."""
    span = (start, min(start + length, max(size)))
    return (span, (0, size[1])) if size[0] >= size[1] else ((0, size[0]), span)


__all__ = ["RESIZED_PIXELS", "MemoryPlan"]
