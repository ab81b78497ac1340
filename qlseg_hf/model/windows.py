# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Windows of an image: where they lie, how many there may be, and the average of their scores.

`segment` and the processor cut images with the same functions and average with the same one. To change how windows
overlap, or how much each counts, change `window_starts` or `average_windows`.

Letters: K labels (= queries), C of them wanted, H x W an image's own size, h x w its resized size, in pixels.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from transformers import PreTrainedModel

from .image_io import resize_picture
from .memory import RESIZED_PIXELS
from .processor_settings import Settings
from .runtime import execution_device, is_finite
from .scores import Span, mask_block, overlap

WINDOWS_PER_RUN = 128  # a strip of about 85 : 1 where window and stride are 512 and 341 pixels
PIXELS_PER_WINDOW = 1024  # of the image: without resizing, windows of 96 pixels with stride 64 are one per 4096
LARGE_WINDOW, COUNTED_PIXELS = 1024 * 1024, 512 * 512
INCOMPLETE = "leave pixels without scores; give the output for all windows of a picture at once"
ONE_CALL_AT_A_TIME = (
    "each call of the processor counts its pictures from 0, so post-process each call's windows by themselves"
)

# ------------------------------------------------------------------------------------------------------ where they lie


def _count_starts(length: int, window: int, stride: int) -> int:
    """How many windows there are along a side of `length` pixels."""
    return max(length - window + stride - 1, 0) // stride + 1


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along a side of `length` pixels; the last window ends at the border."""
    last = max(length - window, 0)
    return [min(i * stride, last) for i in range(_count_starts(length, window, stride))]


def place_windows(size: tuple[int, int], window: int, stride: int) -> list[tuple[Span, Span]]:
    """(rows, columns) of the windows of a resized image of `size`, row by row; none reaches over the border."""
    rows, columns = (
        [(start, min(start + window, side)) for start in window_starts(side, window, stride)] for side in size
    )
    return [(row, column) for row in rows for column in columns]


def _shift(span: Span, start: int) -> Span:
    """A span as seen from `start`."""
    return span[0] - start, span[1] - start


def window_layout(
    settings: Settings, size: tuple[int, int], scales: list[float], flip: bool, max_windows: int | str | None = None
) -> list:
    """(resized size, share, is_flipped, [(rows, columns), ...]) of each run over an image of `size`.

    ValueError if there are more windows than `max_windows`, which is told before they are listed; see `segment`.
    """
    layout = []
    sizes = Counter(settings.resized_size(*size, scale=scale) for scale in scales)
    flips = (False, True) if flip else (False,)
    _check_num_windows(settings, size, sizes, len(flips), max_windows)
    for resized, count in sizes.items():
        places = place_windows(resized, *settings.window_sides(resized))
        for is_flipped in flips:
            if is_flipped:  # windows of the mirrored image, where they lie in the image
                places = [(rows, (resized[1] - right, resized[1] - left)) for rows, (left, right) in places]
            layout.append((resized, count / (len(scales) * len(flips)), is_flipped, places))
    return layout


def _check_num_windows(
    settings: Settings, size: tuple[int, int], sizes: Iterable[tuple[int, int]], num_flips: int, max_windows
) -> None:
    """ValueError if an image of `size`, resized to each of `sizes`, has more windows than `max_windows`."""
    counts, verb = {}, "has"
    for resized in sizes:
        window, stride = settings.window_sides(resized)
        pixels = min(window, resized[0]) * min(window, resized[1])
        counts[resized] = math.prod(_count_starts(side, window, stride) for side in resized) * num_flips
        if pixels > LARGE_WINDOW:
            counts[resized] *= math.ceil(pixels / COUNTED_PIXELS)
            verb = "counts as"
    most, total = max_windows, sum(counts.values())
    if most == "auto":
        most = num_flips * len(counts) * (WINDOWS_PER_RUN + size[0] * size[1] // PIXELS_PER_WINDOW)
    if most is not None and total > most:
        height, width = max(counts, key=lambda resized: counts[resized])
        allowed = f"max_windows={max_windows}" + (f" allows {most}" if most != max_windows else "")
        raise ValueError(
            f"a picture of {size[0]} x {size[1]} pixels, resized to {height} x {width}, "
            f"{verb} {total} windows, and {allowed}; crop the picture, give fewer scales, or raise max_windows (None: "
            "no limit)"
        )


# ------------------------------------------------------------------------------ pixels in, what the network says out


@dataclass
class Window:
    """A window of a resized image: its rows and columns there, and what the network says of it."""

    rows: Span
    columns: Span
    is_flipped: bool
    labels: list[int] | None = None  # the C labels that scores are wanted of; all K if not given
    class_probs: torch.Tensor | None = None  # (C, K) fp32, probability of label c by query k
    mask_logits: torch.Tensor | None = None  # (K, h, w) fp32, not mirrored
    any_probs: torch.Tensor | None = None  # (1, K) fp32, probability of any label by query k

    def scores(self, rows: Span, columns: Span, summed: bool = False) -> torch.Tensor:
        """(C, rows, columns) of a part of the window, or the (1, ...) sum over all K; in the resized image."""
        size = (self.rows[1] - self.rows[0], self.columns[1] - self.columns[0])
        masks = mask_block(self.mask_logits, size, _shift(rows, self.rows[0]), _shift(columns, self.columns[0]))
        return ((self.any_probs if summed else self.class_probs) @ masks).view(
            -1, rows[1] - rows[0], columns[1] - columns[0]
        )


@dataclass
class Run:
    """One pass over an image: one scale, mirrored or not."""

    size: tuple[int, int]  # of the resized image
    share: float  # of the average over runs
    windows: list[Window]

    def scores(self, rows: Span, columns: Span, summed: bool = False) -> torch.Tensor:
        """(C, rows, columns) of the resized image; see `average_windows`."""
        return average_windows(self.windows, rows, columns, summed=summed)


def window_pixels(settings: Settings, picture: np.ndarray, runs: list[Run]) -> Iterator[tuple[Window, torch.Tensor]]:
    """Yield the windows that have not been forwarded, and their (3, height, width) fp32 pixels."""
    for size, group in groupby(runs, key=lambda run: run.size):
        windows = [window for run in group for window in run.windows if window.mask_logits is None]
        for rows, columns, together in _group_windows(windows, RESIZED_PIXELS):
            resized = resize_picture(picture, size, slice(*rows), slice(*columns))  # (3, h, w) uint8
            for window in together:
                place = slice(*_shift(window.rows, rows[0])), slice(*_shift(window.columns, columns[0]))
                pixels = settings.normalized(resized[(slice(None), *place)])
                yield window, pixels.flip(-1) if window.is_flipped else pixels


def _group_windows(windows: Iterable[Window], max_pixels: int) -> Iterator[tuple[Span, Span, list[Window]]]:
    """Groups of windows in a box of `max_pixels` at most, or of one window: rows and columns of the box, windows."""
    box, group = None, []
    for window in windows:
        place = [window.rows, window.columns]
        joined = [(min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(box or place, place)]
        if box and math.prod(end - start for start, end in joined) > max_pixels:
            yield box[0], box[1], group
            group, joined = [], place
        group.append(window)
        box = joined
    if box:
        yield box[0], box[1], group


def forward_windows(model: PreTrainedModel, batch: list[tuple[Window, torch.Tensor]]) -> None:
    """One forward pass; what the network says goes into the windows, in fp32, mirrored back.

    Raises:
        ValueError: that is not finite; the labels would all be 0.
    """
    pixel_values = torch.stack([pixels for _, pixels in batch]).to(execution_device(model), model.dtype)
    outputs = model(pixel_values=pixel_values, output_logits=False)
    mask_logits = outputs.masks_queries_logits.float()
    class_probs = outputs.class_queries_logits.float().softmax(dim=-1)[..., :-1].transpose(1, 2)  # (B, K, K)
    if not (is_finite(class_probs) and is_finite(mask_logits)):
        raise ValueError(
            f"the network gives NaN or infinite numbers in {str(model.dtype).removeprefix('torch.')}; float16 holds "
            "nothing above 65504, so load it with dtype=torch.bfloat16 or float32; if it was, its weights are damaged"
        )
    for (window, _), probs, masks in zip(batch, class_probs, mask_logits):
        # copies, so that a window does not hold on to the whole batch
        window.class_probs = probs.clone(memory_format=torch.contiguous_format)
        window.any_probs = probs.sum(dim=0, keepdim=True)
        if window.labels is not None:
            window.class_probs = window.class_probs[window.labels]
        window.mask_logits = masks.flip(-1) if window.is_flipped else masks.clone()


# --------------------------------------------------------------------------------------------------------- the average


@dataclass
class _ScoredWindow:
    """A window whose scores are there already: (K, rows, columns) of any floating dtype."""

    rows: Span
    columns: Span
    plane: torch.Tensor

    def scores(self, rows: Span, columns: Span) -> torch.Tensor:
        """(K, rows, columns) fp32 of a part of the window; in the resized image."""
        return self.plane[:, slice(*_shift(rows, self.rows[0])), slice(*_shift(columns, self.columns[0]))].float()


def average_windows(
    windows: Sequence[Window | _ScoredWindow], rows: Span, columns: Span, **options: bool
) -> torch.Tensor:
    """Scores of a part of the resized image, averaged over the windows that cover a pixel.

    Args:
        windows: of one run.
        rows, columns: the part, in pixels of the resized image.
        options: for `scores` of the windows.

    Returns:
        (C, rows, columns) fp32; where a single window covers all of it, that window's scores as they are.

    Raises:
        ValueError: no window covers some of the pixels.
    """
    covered = [(overlap(rows, window.rows), overlap(columns, window.columns), window) for window in windows]
    parts = [
        (part_rows, part_columns, window) for part_rows, part_columns, window in covered if part_rows and part_columns
    ]
    if len(parts) == 1 and parts[0][:2] == (rows, columns):
        return parts[0][2].scores(rows, columns, **options)
    total, count = None, torch.zeros(rows[1] - rows[0], columns[1] - columns[0])
    for part_rows, part_columns, window in parts:
        part = window.scores(part_rows, part_columns, **options)
        if total is None:
            total = part.new_zeros(len(part), *count.shape)
        place = slice(*_shift(part_rows, rows[0])), slice(*_shift(part_columns, columns[0]))
        total[(slice(None), *place)] += part
        count[place] += 1
    if total is None or count.min() < 1:
        raise ValueError(f"the {len(windows)} windows given for rows {rows} and columns {columns} {INCOMPLETE}")
    return total.div_(count.to(total.device))


def average_logits(logits: Sequence[torch.Tensor], offsets: torch.Tensor) -> list[torch.Tensor]:
    """(K, h, w) fp32 scores of each image, of the scores of its windows.

    Args:
        logits: (windows, K, height, width), or a list of (K, height, width).
        offsets: (windows, 5) the processor's `window_offsets`: image, top, left, h, w.

    Raises:
        ValueError: there are not as many offsets as windows, a window lies outside of its image, or windows of an
            image are missing or given twice.
    """
    offsets = torch.as_tensor(offsets)
    if offsets.shape != (len(logits), 5):
        raise ValueError(
            f"window_offsets of shape {tuple(offsets.shape)} for {len(logits)} windows; ({len(logits)}, 5) is wanted, "
            "as the processor gives them"
        )
    sizes: dict[int, tuple[int, int]] = {}
    windows: dict[int, dict[tuple[int, int], _ScoredWindow]] = {}
    for plane, (index, top, left, *sides) in zip(logits, offsets.tolist()):
        size = sizes.setdefault(index, tuple(sides))
        if size != tuple(sides):
            raise ValueError(
                f"window_offsets give picture {index} two sizes, {size} and {tuple(sides)}; {ONE_CALL_AT_A_TIME}"
            )
        _add_window(windows.setdefault(index, {}), plane, top, left, size)
    if missing := sorted(set(range(min(sizes, default=0), max(sizes, default=0))) - set(sizes)):
        raise ValueError(f"window_offsets name no window of picture {missing[0]}; give the output for all windows")
    for index, (h, w) in sizes.items():  # windows lie on a grid
        tops, lefts = ({place[axis] for place in windows[index]} for axis in (0, 1))
        if len(windows[index]) < len(tops) * len(lefts):
            raise ValueError(f"the {len(windows[index])} windows given of a resized picture of {h} x {w} {INCOMPLETE}")
    return [average_windows(list(windows[i].values()), (0, sizes[i][0]), (0, sizes[i][1])) for i in sorted(sizes)]


def _add_window(
    windows: dict[tuple[int, int], _ScoredWindow], plane: torch.Tensor, top: int, left: int, size: tuple[int, int]
) -> None:
    """Add the window at (top, left) to those of an image; ValueError if it reaches out of it or is there already."""
    height, width = plane.shape[1:]
    if not (0 <= top <= size[0] - height and 0 <= left <= size[1] - width):
        raise ValueError(
            f"a window of {height} x {width} pixels at row {top}, column {left} lies outside its resized picture "
            f"of {size[0]} x {size[1]}; give logits and window_offsets of the same call of the processor"
        )
    if (top, left) in windows:
        raise ValueError(
            f"window_offsets name the window at row {top}, column {left} of one picture twice; {ONE_CALL_AT_A_TIME}"
        )
    windows[top, left] = _ScoredWindow((top, top + height), (left, left + width), plane)


__all__ = [
    "Run",
    "Window",
    "average_logits",
    "average_windows",
    "forward_windows",
    "place_windows",
    "window_layout",
    "window_pixels",
    "window_starts",
]
