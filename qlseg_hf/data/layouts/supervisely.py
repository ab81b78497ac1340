# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Supervisely, the format of Dataset Ninja: a JSON with polygons and bitmaps per image, and one with the classes."""

import base64
import json
import zlib
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...model.image_io import NamedBytes, open_picture
from ...utils.picture_files import base_of, is_picture, stem_of
from ...utils.text import read_text
from .layout import Family, Found, Source
from .polygons import ReadMap, Shape, check_size, find_drawn, order_names, read_points, tell_left_out
from .splits import SPLIT_WORDS, find_kind
from .words import are_splits

DRAWN = ("polygon", "bitmap")  # kinds of objects that have an inside; rectangles are boxes of detectors
MAX_BYTES = 1 << 28  # of an unpacked bitmap's PNG file
TREES = {"supervisely": "meta.json  ds/img/a.jpg  ds/ann/a.jpg.json  (Dataset Ninja; ds may be train, val, ...)"}


def read_json(path: Path, key: str) -> dict:
    """A JSON file's object, in which `key` holds a list of objects; ValueError for anything else."""
    try:
        content = json.loads(read_text(path))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path} must hold a list of {key}, as Supervisely writes it")
    return content


def kind_of(thing: dict) -> str:
    """The kind of an object; files of 2018 do not name it."""
    if thing.get("geometryType"):
        return str(thing["geometryType"])
    points = thing.get("points") or {}
    return "bitmap" if thing.get("bitmap") else "rectangle" if len(points.get("exterior", ())) < 3 else "polygon"


def find_supervisely(source: Source) -> Found | None:
    """Folders `img` beside `ann`, with a `meta.json` that gives the classes in their order."""
    metas = [name for name in source.files if base_of(name) == "meta.json" and name.count("/") < 2]
    if source.file is not None or not metas:
        return None
    metas = [name for name in metas if name.count("/") == min(other.count("/") for other in metas)]
    files, pairs = set(source.files), {}
    for name in source.files:
        folder, _, base = name.rpartition("/")
        if is_picture(name) and f"/{folder}".endswith("/img"):
            place = f"{folder[:-3]}ann/"
            found = [ann for ann in (f"{place}{base}.json", f"{place}{stem_of(base)}.json") if ann in files]
            pairs |= {name: found[0]} if found else {}
    if not pairs:
        return None
    if len(metas) > 1:
        raise ValueError(f"{source.root} holds {' and '.join(metas)}; give the folder of one project")
    maps, left_out, occurring = {}, Counter(), set()
    in_tags: dict[str, list[str]] = {}  # of images, where each has one that tells its split
    for picture, ann in pairs.items():
        content = read_json(source.root / ann, "objects")
        objects = content["objects"]
        tags = [str(tag.get("name")) for tag in content.get("tags") or ()]
        splits = [tag for tag in tags if tag.lower() in SPLIT_WORDS]
        in_tags.setdefault(splits[0] if len(splits) == 1 else "", []).append(picture)
        left_out.update(kind for thing in objects if (kind := kind_of(thing)) not in DRAWN)
        labels = frozenset(str(thing.get("classTitle")) for thing in objects if kind_of(thing) in DRAWN)
        maps[picture], occurring = (ann, labels), occurring | labels
    classes = read_json(source.root / metas[0], "classes")["classes"]
    titles = [str(entry.get("title")) for entry in classes]
    if unknown := sorted(occurring - set(titles)):
        raise ValueError(f"{source.root} has objects of class {unknown[0]!r}, which is not in {metas[0]}")
    kept = [entry for entry in classes if entry.get("shape") in (*DRAWN, "any") or entry.get("title") in occurring]
    names = order_names(str(entry.get("title")) for entry in kept)
    notes = tell_left_out("objects", left_out, "polygons and bitmaps")
    drawn = {
        picture: ReadMap(ann, labels, names, partial(read_shapes, source.root / ann))
        for picture, (ann, labels) in maps.items()
    }
    in_split = in_tags if are_splits([find_kind(split) or None for split in in_tags]) else None
    return find_drawn(source, "supervisely", "Supervisely's JSON in ann", drawn, names, metas[0], notes, in_split)


def read_shapes(path: Path) -> tuple[tuple[int, int], list[Shape]]:
    """Size and regions of an annotation file, in its order; ValueError for damage."""
    content = read_json(path, "objects")
    size = content.get("size") or {}
    return (
        check_size(size.get("height"), size.get("width")),
        [to_shape(thing) for thing in content["objects"] if kind_of(thing) in DRAWN],
    )


def to_shape(thing: dict) -> Shape:
    """The region of a polygon, with its holes, or of a bitmap; ValueError if it is damaged."""
    label = str(thing.get("classTitle"))
    if kind_of(thing) == "bitmap":
        bitmap = thing.get("bitmap") or {}
        (origin,) = read_points([bitmap.get("origin")])
        return Shape(label, mask=read_bitmap(bitmap.get("data"), label), offset=(round(origin[0]), round(origin[1])))
    points = thing.get("points") or {}
    holes = tuple(map(read_points, points.get("interior") or ()))
    return Shape(label, read_points(points.get("exterior")), holes=holes)


def read_bitmap(text: Any, label: str) -> np.ndarray:
    """(h, w) bool of a PNG file, by zlib, in base64: where it is not transparent, or without alpha not black."""
    try:
        unpacking = zlib.decompressobj()
        data = unpacking.decompress(base64.b64decode(text), MAX_BYTES)
    except (TypeError, ValueError, zlib.error) as error:
        raise ValueError(f"a bitmap of {label!r} cannot be unpacked: {error}") from error
    if not unpacking.eof:
        raise ValueError(f"a bitmap of {label!r} is cut off, or larger than {MAX_BYTES} bytes")
    picture: Image.Image = open_picture(NamedBytes(data, f"the bitmap of {label!r}"))
    if "A" in picture.getbands() or "transparency" in picture.info:
        return np.asarray(picture.convert("RGBA"))[..., 3] > 0
    return np.asarray(picture.convert("L")) > 0


SUPERVISELY = Family(TREES, find_supervisely)

__all__ = ["SUPERVISELY"]
