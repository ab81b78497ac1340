# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Label maps drawn from polygons and masks of annotation tools, by one rule.

Label 0 is "background": every pixel that no shape covers, and shapes of that name, which so cut holes. Shapes are
drawn in the order given, later ones over earlier ones. Shapes named "ignore", "void", "unlabeled" or the like become
the label that does not count, 255 (-100 where there are more than 255 labels).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..samples import DrawnLabelMap

BACKGROUND = "background"
BACKGROUND_NAMES = ("background", "_background_", "__background__")
IGNORED_NAMES = ("ignore", "ignored", "__ignore__", "_ignore_", "void", "unlabeled", "unlabelled")


@dataclass(frozen=True)
class Shape:
    """One annotated region: an outline [(x, y), ...] in pixels, or a boolean `mask` whose corner lies at `offset`."""

    label: str
    points: tuple[tuple[float, float], ...] = ()
    mask: Any = None  # (h, w) bool
    offset: tuple[int, int] = (0, 0)  # (x, y)


def order_names(names: Iterable[str]) -> list[str]:
    """Label names: "background", then the others in their order, without those that are ignored."""
    kept = [name for name in names if name.lower() not in (*BACKGROUND_NAMES, *IGNORED_NAMES)]
    return [BACKGROUND, *dict.fromkeys(kept)]


def ignored_label(names: list[str]) -> int:
    """The label of pixels that do not count."""
    return 255 if len(names) <= 255 else -100


def label_of(name: str, names: list[str]) -> int:
    """Label of a shape's name; ValueError if it is none of them."""
    if name.lower() in BACKGROUND_NAMES:
        return 0
    if name.lower() in IGNORED_NAMES:
        return ignored_label(names)
    if name not in names:
        raise ValueError(
            f"a shape is labelled {name!r}, which is none of the labels {', '.join(names)}; add or rename it"
        )
    return names.index(name)


def draw_shapes(size: tuple[int, int], shapes: Iterable[Shape], names: list[str]) -> np.ndarray:
    """(H, W) int64 of a picture of `size` (height, width); pixels on an outline belong to it."""
    canvas = Image.new("I", (size[1], size[0]), 0)
    for shape in shapes:
        label = label_of(shape.label, names)
        if shape.mask is None:
            if len(shape.points) < 3:
                raise ValueError(f"a polygon of {shape.label!r} has {len(shape.points)} points; at least 3 are wanted")
            ImageDraw.Draw(canvas).polygon([tuple(map(float, point)) for point in shape.points], fill=label)
        else:
            canvas.paste(label, shape.offset, Image.fromarray(np.asarray(shape.mask, dtype=np.uint8) * 255))
    return np.asarray(canvas).astype(np.int64)


def read_points(points: Any) -> tuple[tuple[float, float], ...]:
    """((x, y), ...) of a list of pairs, or of x, y, x, y, ...; ValueError for anything else."""
    if isinstance(points, (list, tuple)) and points and all(isinstance(v, (int, float)) for v in points):
        points = list(zip(points[::2], points[1::2])) if len(points) % 2 == 0 else None
    is_valid = isinstance(points, (list, tuple)) and all(
        isinstance(p, (list, tuple)) and len(p) == 2 and all(type(v) in (int, float) and abs(v) < 1e6 for v in p)
        for p in points
    )
    if not is_valid:
        raise ValueError(f"{str(points)[:60]} are no points [[x, y], ...] in pixels")
    return tuple((float(x), float(y)) for x, y in points)


def check_size(height: Any, width: Any) -> tuple[int, int]:
    """A picture's (height, width); ValueError if they are not sane numbers of pixels."""
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 2**31)
    if type(height) is not int or type(width) is not int or not (0 < height and 0 < width and height * width <= limit):
        raise ValueError(f"its size is {height!r:.20} x {width!r:.20}; (height, width) in pixels are wanted")
    return height, width


@dataclass(frozen=True)
class ShapesMap(DrawnLabelMap):
    """A label map of shapes that are in memory."""

    name: str
    size: tuple[int, int]
    shapes: tuple[Shape, ...]
    names: list[str]

    def labels(self) -> set[str]:
        """Names of the labels that occur."""
        return {shape.label for shape in self.shapes}

    def draw(self) -> np.ndarray:
        return draw_shapes(self.size, self.shapes, self.names)


__all__ = [
    "Shape",
    "ShapesMap",
    "check_size",
    "draw_shapes",
    "ignored_label",
    "label_of",
    "order_names",
    "read_points",
]
