# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""LabelMe: a JSON beside each image, with the outlines that a person drew."""

import base64
import json
import math
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from ...model.image_io import NamedBytes, open_picture
from ...utils.picture_files import base_of, is_picture, listed, stem_of, suffix_of
from ...utils.text import read_text
from ..samples import DrawnLabelMap, FolderSamples
from .files import Locator
from .layout import Family, Found, Source
from .polygons import (
    Shape,
    check_size,
    draw_shapes,
    ellipse_points,
    ignored_label,
    order_names,
    picture_size,
    read_points,
)
from .splits import read_split_lists
from .words import split_by_folders

REGIONS = ("polygon", "rectangle", "rotation", "circle", "mask")  # kinds of shapes that have an inside
TREES = {"labelme": 'a.jpg  a.json  (with "shapes"; any sub-folders, {train,val}/ or no split)'}


def read_labelme(path: Path) -> dict | None:
    """What a JSON file of LabelMe holds; None if it is another; ValueError if it is damaged."""
    try:
        text = read_text(path)
        if '"shapes"' not in text:
            return None
        content = json.loads(text)
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            return None
        for shape in content["shapes"]:
            if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
                raise ValueError(f"the shape {str(shape)[:60]} has no label")
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return content


def kind_of(shape: dict) -> str:
    return shape.get("shape_type") or "polygon"


def find_labelme(source: Source) -> Found | None:
    """Images with a JSON of their own. Labels are those that occur, by the alphabet, or those of a names file."""
    if not any(suffix_of(name) == ".json" for name in source.files):
        return None
    pictures = [name for name in source.files if is_picture(name)]
    locator, stems = Locator(pictures), {stem_of(name): name for name in reversed(pictures)}
    pairs, labels, lines = {}, set(), Counter()
    basenames = {stem_of(base_of(name)) for name in pictures}
    for name in source.files:
        if suffix_of(name) != ".json" or stem_of(base_of(name)) not in basenames:
            continue
        content = read_labelme(source.root / name)
        if content is None:
            continue
        told = str(content.get("imagePath") or "").replace("\\", "/")
        near = PurePosixPath(name).parent
        picture = stems.get(stem_of(name)) or find_alike(locator, stem_of(name))
        picture = picture or (locator.find(told, near.as_posix()) if told else None)
        picture = picture or locator.find(stem_of(base_of(name)))
        if picture is None:
            raise ValueError(f"{source.root / name} annotates {told!r}, which is missing in {source.root}")
        if picture in pairs:
            raise ValueError(f"{picture} in {source.root} has two annotations: {pairs[picture]} and {name}; keep one")
        pairs[picture] = name
        lines.update(kind_of(shape) for shape in content["shapes"] if kind_of(shape) not in REGIONS)
        labels |= {shape["label"] for shape in content["shapes"] if kind_of(shape) in REGIONS}
    if not pairs:
        return None
    notes = [f"{count} shapes of kind {kind} have no inside and are left out" for kind, count in lines.items()]
    if left := [name for name in pictures if name not in pairs]:
        notes.append(f"{len(left)} images have no annotation and are left out: {listed(left)}")
    names = order_names(sorted(labels))
    in_split = read_split_lists(source, list(pairs), notes) or split_by_folders(pairs, notes)
    openers = {
        split: partial(open_labelme, source, split, [(p, pairs[p]) for p in own if p in pairs], names, notes)
        for split, own in in_split.items()
    }
    where = "the labels that occur, by the alphabet"
    return Found("labelme", "LabelMe's JSON beside images", openers, names, where, ignored_label(names), notes=notes)


def find_alike(locator: Locator, path: str) -> str | None:
    """The image whose path ends as a JSON's does, if it is one: files may have been renamed since `imagePath`."""
    try:
        return locator.find(path)
    except ValueError:
        return None


def open_labelme(source: Source, split: str, pairs: list[tuple[str, str]], names: list[str], notes: list[str]):
    items = [(picture, LabelmeMap(name, source.root / name, source.root / picture, names)) for picture, name in pairs]
    return FolderSamples(source.root, items, split, None, notes)


@dataclass(frozen=True)
class LabelmeMap(DrawnLabelMap):
    """The label map of one JSON file, which is read when it is drawn."""

    name: str
    path: Path
    picture: Path  # which tells the size where the file does not, as of versions before 4
    names: list[str]

    def labels(self) -> set[str]:
        content = read_labelme(self.path) or {"shapes": []}
        return {shape["label"] for shape in content["shapes"] if kind_of(shape) in REGIONS}

    def draw(self) -> np.ndarray:
        content = read_labelme(self.path)
        if content is None:
            raise ValueError(f"{self.path} holds no shapes any more")
        height, width = content.get("imageHeight"), content.get("imageWidth")
        size = picture_size(self.picture) if height is None is width else check_size(height, width)
        shapes = [to_region(shape) for shape in content["shapes"] if kind_of(shape) in REGIONS]
        return draw_shapes(size, shapes, self.names)


def to_region(shape: dict) -> Shape:
    """The region that a shape means: rectangles by two corners, circles by centre and a point on the rim.

    X-AnyLabeling writes four corners of a rectangle, and of one that is turned, a "rotation".
    """
    kind, points = kind_of(shape), read_points(shape.get("points"))
    if kind in ("rectangle", "rotation") and len(points) == 4:
        return Shape(shape["label"], points)
    if kind != "polygon" and len(points) != 2:
        raise ValueError(f"a {kind} of {shape['label']!r} has {len(points)} points; 2 are wanted")
    if kind == "rectangle":
        (left, top), (right, bottom) = points
        points = ((left, top), (right, top), (right, bottom), (left, bottom))
    elif kind == "circle":
        (x, y), rim = points
        radius = math.dist((x, y), rim)
        points = tuple(ellipse_points(x, y, radius, radius))
    elif kind == "mask":
        picture = open_picture(
            NamedBytes(base64.b64decode(shape.get("mask") or ""), f"the mask of {shape['label']!r}")
        )
        (left, top), _ = points
        return Shape(shape["label"], mask=np.asarray(picture.convert("L")) > 0, offset=(round(left), round(top)))
    return Shape(shape["label"], points)


LABELME = Family(TREES, find_labelme)

__all__ = ["LABELME"]
