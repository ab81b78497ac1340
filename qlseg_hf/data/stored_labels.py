# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What pixels of a stored label map mean: numbers, palettes, grey or colours; what would be read wrong is refused."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from ..model.image_files import is_deep_colour, raw_modes
from ..utils.picture_files import NUM_NAMED

MOST_OTHER = 0.005  # share of a JPEG mask of two colours that may lie in regions of others


class SampleError(ValueError):
    """A sample that cannot be used.

    `kind`: "picture", "label map", "lossy label map", "colour mask", "unknown colour", "size".
    """

    def __init__(self, message: str, kind: str = "label map"):
        super().__init__(message)
        self.kind = kind


@contextmanager
def naming(name: str, kind: str) -> Iterator[None]:
    """Turn whatever a loader says into a `SampleError` that names the sample."""
    try:
        yield
    except SampleError as error:
        raise SampleError(f"{name}: {error}", error.kind) from error
    except (OSError, TypeError, ValueError) as error:
        raise SampleError(f"{name}: {kind}: {error}", kind) from error


def check_depth(head: Image.Image | None) -> None:
    """ValueError for a label map that Pillow would not read as stored, but scaled to 8 bits or inverted."""
    if head is not None and is_deep_colour(head):
        raise ValueError(
            "it holds colours of 16 bits, of which the upper 8 alone would be read; store the band that has the "
            "labels, as red in SYNTHIA, as a grey PNG"
        )
    if head is not None and any(re.match(r"L;\d?I", mode) for mode in raw_modes(head)):
        raise ValueError(
            "0 is white in it (MinIsWhite), so its numbers would be read as 255 less them; store it as PNG"
        )
    for tile in head.tile if head is not None else ():
        if head.format == "PPM" and isinstance(tile[3], tuple) and tile[3][1] not in (255, 65535):
            raise ValueError(f"its numbers up to {tile[3][1]} would be scaled to 0..255; store it as PNG")


def grey_bits(head: Image.Image | None) -> int:
    """Bits of each pixel of a grey picture file, 1, 2 or 4; 8 of any other, and of more."""
    modes = raw_modes(head) if head else []
    found = re.match(r"L;([24])", modes[0]) if modes else None
    return 1 if head is not None and head.mode == "1" else int(found[1]) if found else 8


def whole_numbers(source: Image.Image | np.ndarray) -> Image.Image | np.ndarray:
    """Integers of a label map that is stored as floating-point numbers, as by GIS programs; any other as it is.

    Raises:
        ValueError: some are no whole numbers, or NaN.
    """
    if isinstance(source, Image.Image) and source.mode == "F":
        source = np.asarray(source)
    if not isinstance(source, np.ndarray) or source.dtype.kind != "f":
        return source
    is_odd = ~np.isfinite(source) | (source != np.round(source)) | (np.abs(source) > 1 << 24)
    if is_odd.any():
        raise ValueError(
            f"it holds floating-point numbers, of which {source[is_odd].flat[0]:.6g} is no label; store one whole "
            "number per pixel, and of nodata a number of its own"
        )
    return source.astype(np.int64)


def as_grey(picture: Image.Image) -> np.ndarray | None:
    """(H, W) int64 of a picture of equal bands and no transparency, of mode LA, RGB or RGBA; None of any other."""
    bands = np.asarray(picture.convert("RGBA") if picture.mode == "LA" else picture)
    if (bands[..., 3:] != 255).any() or (bands[..., :1] != bands[..., 1:3]).any():
        return None
    return bands[..., 0].astype(np.int64)


def palette_of(picture: Image.Image) -> dict[int, tuple[int, int, int]] | None:
    """{index: (r, g, b)} of a palette; None without one."""
    if picture.mode != "P":
        return None
    values = picture.getpalette() or []
    return {index: tuple(values[3 * index : 3 * index + 3]) for index in range(len(values) // 3)}


def labels_from_colors(source: Image.Image | np.ndarray, label_colors: dict[tuple, int]) -> np.ndarray:
    """(H, W) int64 labels of a colour mask; palette masks are read by their colours too.

    Raises:
        SampleError: the picture has no 8-bit colours, or some that the table lacks (named with their pixel counts).
    """
    if isinstance(source, Image.Image):
        if source.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
            raise SampleError(f"label_colors is given, but a mask of mode {source.mode} has no 8-bit colours")
        check_transparency(source)
        source = np.asarray(source.convert("RGB"))
    if source.ndim != 3 or source.shape[-1] != 3:
        raise SampleError(f"label_colors is given, but the mask is no (H, W, 3) array; got shape {source.shape}")
    colors = source.astype(np.int64) @ [1 << 16, 1 << 8, 1]  # (H, W)
    known, labels = zip(*sorted(((r << 16) + (g << 8) + b, label) for (r, g, b), label in label_colors.items()))
    place = np.searchsorted(known, colors).clip(max=len(known) - 1)
    is_unknown = np.asarray(known)[place] != colors
    if is_unknown.any():
        values, counts = np.unique(colors[is_unknown], return_counts=True)
        worst = np.argsort(-counts, kind="stable")[:NUM_NAMED]
        worst_colors = [
            f"({v >> 16}, {v >> 8 & 255}, {v & 255}) in {c} pixels" for v, c in zip(values[worst], counts[worst])
        ]
        remedy = "add them or correct the mask"
        if len(values) > max(2 * len(known), 8):
            remedy = "so many come of JPEG or smoothed edges: store the mask as PNG, made without smoothing"
        raise SampleError(
            f"{len(values)} colours are not in label_colors: {', '.join(worst_colors)}; {remedy}", "unknown colour"
        )
    return np.asarray(labels, dtype=np.int64)[place]


def check_transparency(picture: Image.Image) -> None:
    """`SampleError` if pixels of one colour are seen here and transparent there, so alpha tells the label."""
    if picture.mode not in ("LA", "RGBA"):
        return
    bands = np.asarray(picture.convert("RGBA")).astype(np.int64)
    colors, is_seen = bands[..., :3] @ [1 << 16, 1 << 8, 1], bands[..., 3] > 0
    if (both := np.intersect1d(colors[is_seen], colors[~is_seen])).size:
        raise SampleError(
            f"pixels of colour {list(int(both[0]).to_bytes(3, 'big'))} are seen in one place and transparent in "
            "another, so colours do not tell the label; store one label per pixel"
        )


def nearer_labels(source: Image.Image, label_colors: dict[tuple, int]) -> np.ndarray:
    """(H, W) int64: of two labels that whose colour is nearer to the pixel's, as JPEG leaves it along edges.

    Raises:
        SampleError: there are regions of other colours.
    """
    values = np.asarray(source.convert("RGB"), dtype=np.float64)
    (first, last), labels = np.array(list(label_colors), dtype=np.float64), list(label_colors.values())
    step, length = last - first, np.linalg.norm(last - first)
    share = (values - first) @ step / length**2  # 0 at the first colour, 1 at the last
    aside = np.linalg.norm(values - first - share[..., None] * step, axis=-1)
    is_other = (np.abs(share - 0.5) < 0.25) | (aside > 0.25 * length)
    inner = is_other[1:-1, 1:-1] & is_other[:-2, 1:-1] & is_other[2:, 1:-1] & is_other[1:-1, :-2] & is_other[1:-1, 2:]
    if inner.sum() > MOST_OTHER * inner.size:
        raise SampleError(
            f"{inner.sum()} pixels lie in regions of other colours than the two of label_colors; store the mask as "
            "PNG",
            "unknown colour",
        )
    return np.where(share > 0.5, labels[1], labels[0]).astype(np.int64)


def check_colors(label_colors: dict) -> dict[tuple[int, int, int], int]:
    """{label: [r, g, b]} -> {(r, g, b): label}; ValueError for a colour that is none or stands for two labels."""
    colors = {}
    for label, color in label_colors.items():
        if not str(label).isdecimal():
            raise ValueError(f"label_colors has {label!r}; the number of a label is wanted, of 0 or more")
        color = tuple(color) if isinstance(color, (list, tuple)) else (color,)
        if len(color) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in color):
            raise ValueError(f"label_colors[{label}] is {list(color)}; [red, green, blue] of 0..255 is wanted")
        if color in colors:
            raise ValueError(f"label_colors gives {list(color)} to labels {colors[color]} and {label}; one is wanted")
        colors[color] = int(label)
    if not colors:
        raise ValueError("label_colors is empty; give {label: [red, green, blue]} or leave it out")
    return colors


__all__ = [
    "SampleError",
    "as_grey",
    "check_colors",
    "check_depth",
    "check_transparency",
    "grey_bits",
    "labels_from_colors",
    "naming",
    "nearer_labels",
    "palette_of",
    "whole_numbers",
]
