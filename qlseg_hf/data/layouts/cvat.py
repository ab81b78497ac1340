# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""CVAT for images: one XML file with the polygons, boxes, ellipses and masks of all images."""

import math
import re
from collections import Counter
from functools import partial
from pathlib import PurePosixPath
from xml.etree import ElementTree

import numpy as np

from ...utils.picture_files import base_of, is_picture, listed, stem_of, suffix_of
from ...utils.text import read_text
from ..samples import FolderSamples
from .files import Locator
from .layout import Family, Found, Source
from .polygons import (
    Shape,
    ShapesMap,
    check_size,
    ellipse_points,
    ignored_label,
    order_names,
    read_points,
    tell_left_out,
)
from .splits import ALL, read_split_lists
from .words import are_splits, split_by_folders, split_of_name

TREES = {"cvat": "annotations.xml  images/a.jpg  (CVAT for images 1.1)"}
DRAWN = ("polygon", "box", "ellipse", "mask")


def read_xml(path) -> ElementTree.Element | None:
    """The root of CVAT's XML; None for another one. ValueError for damage and document types, which are not read.

    Without a document type there are no entities, so that nothing can be fetched or blown up.
    """
    text = read_text(path)
    if "<annotations" not in text:
        return None
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError(f"{path} declares a document type or entities, which CVAT does not write; they are not read")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return root if root.tag == "annotations" and root.find("image") is not None else None


def find_cvat(source: Source) -> Found | None:
    """Images of all XML files; splits by CVAT's subsets, by folders or by lists."""
    if source.file is not None:
        files = [source.file.name] if suffix_of(source.file.name) == ".xml" else []
    else:
        files = [name for name in source.files if suffix_of(name) == ".xml"]
        stems = {stem_of(base_of(name)) for name in source.files if is_picture(name)} if files else set()
        files = [name for name in files if stem_of(base_of(name)) not in stems]  # VOC's XML files hold boxes
    roots = {name: root for name in files if (root := read_xml(source.root / name)) is not None}
    if not roots:
        return None
    pictures = [name for name in source.files if is_picture(name)]
    locator = Locator(pictures)
    images: dict[str, tuple[str, ElementTree.Element]] = {}
    for file, root in roots.items():
        for image in root.iter("image"):
            path = locator.find(image.get("name", ""), PurePosixPath(file).parent.as_posix())
            if path is None:
                raise ValueError(
                    f"{source.root / file} annotates {image.get('name')!r}, which is missing in {source.root}"
                )
            if path in images:
                raise ValueError(f"{path} is annotated twice, in {images[path][0]} and in {file}; keep one")
            images[path] = (file, image)
    left_out = Counter(e.tag for _, image in images.values() for e in image if e.tag not in (*DRAWN, "tag"))
    notes = tell_left_out("shapes", left_out, "polygons, boxes, ellipses and masks")
    if left := [name for name in pictures if name not in images]:
        notes.append(f"{len(left)} images are not in {listed(roots)} and are left out: {listed(left)}")
    listed_labels = [
        label.findtext("name", "") for root in roots.values() for label in root.iterfind(".//labels/label")
    ]
    occurring = {e.get("label", "") for _, image in images.values() for e in image if e.tag in DRAWN}
    names = order_names(listed_labels or sorted(occurring))
    subsets = {path: image.get("subset") for path, (_, image) in images.items()}
    by_file = {file: split_of_name(stem_of(base_of(file))) for file in roots}  # train.xml, val.xml
    if are_splits(by_file.values()) and not any(subsets.values()):
        subsets = {path: by_file[file] for path, (file, _) in images.items()}
    in_split = read_split_lists(source, list(images), notes)
    if not in_split and any(subsets.values()):
        for path, subset in subsets.items():
            in_split.setdefault(subset or "default", []).append(path)
    in_split = in_split or split_by_folders(images, notes)
    if len(in_split) == 1 and next(iter(in_split)).lower() == "default":
        in_split = {ALL: next(iter(in_split.values()))}
    openers = {
        split: partial(open_cvat, source, split, {path: images[path] for path in own if path in images}, names, notes)
        for split, own in in_split.items()
    }
    return Found("cvat", f"CVAT's {listed(roots)}", openers, names, listed(roots), ignored_label(names), notes=notes)


def open_cvat(source: Source, split: str, images: dict, names: list[str], notes: list[str]) -> FolderSamples:
    """The samples of one split; ValueError for damaged shapes."""
    items = []
    for path, (file, image) in images.items():
        try:
            height, width = (image.get(key, "") for key in ("height", "width"))
            size = check_size(*(int(v) if v.isdecimal() else v for v in (height, width)))
            shapes = [element for element in image if element.tag in DRAWN]
            shapes.sort(key=lambda element: int(element.get("z_order", "0")))
            items.append((path, ShapesMap(f"{file}#{path}", size, tuple(map(to_shape, shapes)), names)))
        except ValueError as error:
            raise ValueError(f"{source.root / file}: image {image.get('name')}: {error}") from error
    return FolderSamples(source.root, items, split, None, notes)


def to_shape(element: ElementTree.Element) -> Shape:
    """The region of a polygon ("x,y;x,y"), a box or ellipse (turned by `rotation` degrees, clockwise), or of a mask
    (lengths of runs within its box, the first of nothing)."""
    label = element.get("label", "")
    if element.tag in ("box", "ellipse"):
        return Shape(label, outline_of(element))
    if element.tag == "polygon":
        points = [[float(v) for v in pair.split(",")] for pair in element.get("points", "").split(";") if pair]
        return Shape(label, read_points(points))
    width, height, left, top = (int(element.get(key, "-1")) for key in ("width", "height", "left", "top"))
    runs = [int(run) for run in re.split(r"[,\s]+", element.get("rle", "").strip()) if run]
    check_size(height, width)
    if min(runs, default=-1) < 0 or sum(runs) != height * width:
        raise ValueError(f"a mask of {label!r} has run lengths that do not add up to {height} x {width} pixels")
    mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    return Shape(label, mask=mask, offset=(left, top))


def outline_of(element: ElementTree.Element) -> tuple[tuple[float, float], ...]:
    """Corners of a box, or points on an ellipse, in pixels."""
    angle = math.radians(float(element.get("rotation", "0")))
    if element.tag == "ellipse":
        x, y, across, down = (float(element.get(key, "nan")) for key in ("cx", "cy", "rx", "ry"))
        return read_points(ellipse_points(x, y, across, down, angle))
    left, top, right, bottom = (float(element.get(key, "nan")) for key in ("xtl", "ytl", "xbr", "ybr"))
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    x, y, cos, sin = (left + right) / 2, (top + bottom) / 2, math.cos(angle), math.sin(angle)
    turned = [(x + (u - x) * cos - (v - y) * sin, y + (u - x) * sin + (v - y) * cos) for u, v in corners]
    return read_points([(round(u, 6), round(v, 6)) for u, v in turned])  # a right angle stays one


CVAT = Family(TREES, find_cvat)

__all__ = ["CVAT"]
