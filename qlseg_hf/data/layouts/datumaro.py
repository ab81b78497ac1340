# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Datumaro, which CVAT exports too: a JSON file for each split, with polygons and masks."""

from collections import Counter
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from ...utils.picture_files import is_picture, listed, stem_of
from .coco import candidates, fill_runs, read_json
from .files import Locator
from .layout import Family, Found, Source
from .polygons import ReadMap, Shape, check_size, find_drawn, order_names, picture_size, read_points, tell_left_out
from .splits import ALL

DRAWN = ("polygon", "mask")
TREES = {"datumaro": "annotations/{train,val}.json  images/{train,val}/a.jpg  (Datumaro; one default.json of CVAT)"}


def read_items(source: Source, name: str) -> tuple[list[dict], list[str]] | None:
    """Items of Datumaro's file, and its labels in their order; None of another file, ValueError for damage."""
    content = read_json(source, name, ("items", "label_id"))
    if not isinstance(content, dict) or not isinstance(content.get("items"), list):
        return None
    categories = content.get("categories")
    if not isinstance(categories, dict) or "label" not in categories:
        return None
    try:
        labels = [str(label["name"]) for label in categories["label"]["labels"]]
        for item in content["items"]:
            for annotation in item["annotations"]:
                number = annotation.get("label_id")
                if annotation["type"] in DRAWN and not (type(number) is int and 0 <= number < len(labels)):
                    raise ValueError(f"an annotation of {item['id']} has label_id {number} of {len(labels)} labels")
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{source.root / name} is damaged: {error!r}") from error
    return content["items"], labels


def find_datumaro(source: Source) -> Found | None:
    """Images of all files, each of which is a split."""
    files = {name: found for name in candidates(source) if (found := read_items(source, name)) is not None}
    if not files:
        return None
    if len({tuple(labels) for _, labels in files.values()}) > 1:
        raise ValueError(f"{listed(files)} in {source.root} have different labels; they must agree, in order too")
    labels = next(iter(files.values()))[1]
    names, locator = order_names(labels), Locator(name for name in source.files if is_picture(name))
    maps: dict[str, ReadMap] = {}
    in_split: dict[str, list[str]] = {}
    kinds, missing = Counter(), []
    for file, (items, _) in files.items():
        split = PurePosixPath(stem_of(file)).name
        for item in items:
            name = (item.get("image") or item.get("media") or {}).get("path") or str(item["id"])
            path = locator.find(name, f"images/{split}") or locator.find(str(item["id"]), f"images/{split}")
            if path is None:
                missing.append(name)
                continue
            if path in maps:
                raise ValueError(f"{path} is annotated twice, in {maps[path].name} and in {file}; keep one")
            kinds.update(a["type"] for a in item["annotations"] if a["type"] not in (*DRAWN, "label", "caption"))
            drawn = [a for a in item["annotations"] if a["type"] in DRAWN]
            read = partial(read_shapes, source.root / path, item, drawn, labels)
            maps[path] = ReadMap(f"{file}#{path}", frozenset(labels[a["label_id"]] for a in drawn), names, read)
            in_split.setdefault(ALL if split == "default" else split, []).append(path)
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(missing) + len(maps)} images of {listed(files)} are missing in {source.root}: "
            f"{listed(missing)}"
        )
    notes = tell_left_out("annotations", kinds, "polygons and masks")
    summary = f"Datumaro's {listed(files)}"
    return find_drawn(source, "datumaro", summary, maps, names, next(iter(files)), notes, in_split)


def read_shapes(picture: Any, item: dict, drawn: list[dict], labels: list[str]) -> tuple[tuple[int, int], list[Shape]]:
    """Size of an item, or of the image if it tells none, and its shapes by `z_order`, then in the file's order."""
    size = (item.get("image") or item.get("media") or {}).get("size")
    size = check_size(*size) if isinstance(size, list) and len(size) == 2 else picture_size(picture)
    shapes = []
    for annotation in sorted(drawn, key=lambda a: a.get("z_order") or 0):
        label = labels[annotation["label_id"]]
        if annotation["type"] == "polygon":
            shapes.append(Shape(label, read_points(annotation.get("points"))))
            continue
        runs = annotation.get("rle") or {}
        if runs.get("size") != list(size):
            raise ValueError(f"a mask of {label!r} has size {runs.get('size')}, and the image {list(size)}")
        shapes.append(Shape(label, mask=fill_runs(runs.get("counts"), list(size))))
    return size, shapes


DATUMARO = Family(TREES, find_datumaro)

__all__ = ["DATUMARO"]
