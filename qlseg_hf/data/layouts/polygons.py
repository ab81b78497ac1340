# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Label maps drawn from polygons and masks of annotation tools, by one rule.

Label 0 is "background": every pixel that no shape covers, and shapes of that name, which so cut holes. Shapes are
drawn in the order given, later ones over earlier ones. Shapes named "ignore", "void", "unlabeled" or the like become
the label that does not count, 255 (-100 where there are more than 255 labels).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ...model.image_io import turn_upright
from ...utils.picture_files import is_picture, listed
from ..samples import DrawnLabelMap, FolderSamples
from .layout import Found, Opener, Source
from .splits import read_split_lists
from .words import split_by_folders

BACKGROUND = "background"
BACKGROUND_NAMES = ("background", "_background_", "__background__")
ELLIPSE_POINTS = 72
IGNORED_NAMES = ("ignore", "ignored", "__ignore__", "_ignore_", "void", "unlabeled", "unlabelled")


@dataclass(frozen=True)
class Shape:
    """One annotated region: an outline [(x, y), ...] in pixels, or a boolean `mask` whose corner lies at `offset`.

    What lies in `holes` does not belong to it, outlines of the holes included, so what is drawn before shows there.
    """

    label: str
    points: tuple[tuple[float, float], ...] = ()
    mask: Any = None  # (h, w) bool
    offset: tuple[int, int] = (0, 0)  # (x, y)
    holes: tuple[tuple[tuple[float, float], ...], ...] = ()


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
            if (fewest := min(map(len, (shape.points, *shape.holes)))) < 3:
                raise ValueError(f"a polygon of {shape.label!r} has {fewest} points; at least 3 are wanted")
            region = Image.new("L", canvas.size) if shape.holes else canvas
            for points, value in ((shape.points, 255 if shape.holes else label), *((h, 0) for h in shape.holes)):
                ImageDraw.Draw(region).polygon([tuple(map(float, point)) for point in points], fill=value)
            if shape.holes:
                canvas.paste(label, (0, 0), region)
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


def ellipse_points(x: float, y: float, across: float, down: float, turn: float = 0) -> list[tuple[float, float]]:
    """Points on an ellipse of centre (x, y) and the two radii, turned clockwise by `turn` radians; all in pixels."""
    cos, sin = math.cos(turn), math.sin(turn)
    turns = [2 * math.pi * i / ELLIPSE_POINTS for i in range(ELLIPSE_POINTS)]
    arms = [(across * math.cos(angle), down * math.sin(angle)) for angle in turns]
    return [(round(x + u * cos - v * sin, 6), round(y + u * sin + v * cos, 6)) for u, v in arms]


def tell_left_out(what: str, kinds: Mapping[str, int], read: str) -> list[str]:
    """A sentence for each kind of shape, of `kinds` with their numbers, that is not among those that are `read`."""
    return [f"{count} {what} of kind {kind} are left out; {read} are read" for kind, count in kinds.items()]


def check_size(height: Any, width: Any) -> tuple[int, int]:
    """A picture's (height, width); ValueError if they are not sane numbers of pixels."""
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 2**31)
    if type(height) is not int or type(width) is not int or not (0 < height and 0 < width and height * width <= limit):
        raise ValueError(f"its size is {height!r:.20} x {width!r:.20}; (height, width) in pixels are wanted")
    return height, width


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture, EXIF orientation applied; ValueError or OSError if it is none."""
    with Image.open(path) as picture:
        width, height = turn_upright(picture).size
    return check_size(height, width)


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


@dataclass(frozen=True)
class ReadMap(DrawnLabelMap):
    """A label map whose shapes are made when it is drawn: `read` gives (height, width) and the shapes in their order.

    `occurring`: names of the labels that occur.
    """

    name: str
    occurring: frozenset[str]
    names: list[str]
    read: Callable[[], tuple[tuple[int, int], Iterable[Shape]]]

    def labels(self) -> frozenset[str]:
        return self.occurring

    def draw(self) -> np.ndarray:
        size, shapes = self.read()
        return draw_shapes(size, shapes, self.names)


def find_drawn(
    source: Source,
    name: str,
    summary: str,
    maps: dict[str, ReadMap],
    names: list[str],
    names_from: str,
    notes: list[str],
    in_split: dict[str, list[str]] | None = None,
) -> Found:
    """What images with a `ReadMap` each are: their splits are those of lists, else `in_split`, else by folders.

    A split without any shape is left out. `notes` are told this, images without one, and those without a `ReadMap`.
    """
    lists = read_split_lists(source, list(maps), notes, with_tables=name not in ("rle-csv", "via"))
    in_split = {split: list(own) for split, own in lists.items()} or in_split or split_by_folders(maps, notes)
    if bare := [split for split, own in in_split.items() if not any(maps[path].occurring for path in own)]:
        for split in bare if len(bare) < len(in_split) else ():
            count = len(in_split.pop(split))
            notes.append(f"{count} images of {split} have no annotation at all, so this is no split here")
    if empty := [path for own in in_split.values() for path in own if not maps[path].occurring]:
        notes.append(f"{len(empty)} images have no shape, so all of each is background: {listed(empty)}")
    if left := [path for path in source.files if is_picture(path) and path not in maps]:
        notes.append(f"{len(left)} images have no annotation and are left out: {listed(left)}")
    openers = {
        split: partial(FolderSamples, source.root, [(path, maps[path]) for path in own], split, None, notes)
        for split, own in in_split.items()
    }
    return Found(name, summary, openers, names, names_from, ignored_label(names), notes=notes)


def divide_by_images(source: Source, images: list[str], opener: Opener, notes: list[str]) -> dict[str, Opener] | None:
    """Openers of the splits that lists or folders tell of the images of one file; None if they tell none."""
    lists = {split: list(own) for split, own in read_split_lists(source, images, notes).items()}
    in_split, whole = lists or split_by_folders(images, notes), cache(opener)
    openers: dict[str, Opener] = {
        split: partial(_open_some, whole, split, frozenset(own)) for split, own in in_split.items()
    }
    return openers if len(openers) > 1 else None


def _open_some(opener: Opener, split: str, images: frozenset[str]) -> FolderSamples:
    whole = opener()
    return FolderSamples(whole.root, [item for item in whole.items if item[0] in images], split, None, whole.notes)


__all__ = [
    "ReadMap",
    "Shape",
    "ShapesMap",
    "check_size",
    "divide_by_images",
    "draw_shapes",
    "ellipse_points",
    "find_drawn",
    "ignored_label",
    "label_of",
    "order_names",
    "picture_size",
    "read_points",
    "tell_left_out",
]
