# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""VGG Image Annotator: a JSON file with the regions of all images, of which one attribute is the label."""

from collections import Counter
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from .coco import candidates, read_json, split_of
from .files import Locator, is_picture, listed
from .layout import Family, Found, Source
from .polygons import ReadMap, Shape, ellipse_points, find_drawn, order_names, picture_size, read_points, tell_left_out
from .splits import ALL

DRAWN = ("polygon", "rect", "circle", "ellipse")
NO_LABEL, ONLY_LABEL = "__ignore__", "foreground"
TREES = {"via": "via_project.json  a.jpg  (VGG Image Annotator 2; also {train,val}/via_region_data.json)"}


def read_entries(source: Source, name: str) -> tuple[list[dict], dict] | None:
    """Images of VIA's file with their regions, and what it says of their attributes; None of another file."""
    content = read_json(source, name, ("regions", "_via_img_metadata"))
    images = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
    if not isinstance(images, dict) or not images:
        return None
    entries = [entry for entry in images.values() if isinstance(entry, dict) and "regions" in entry]
    if len(entries) < len(images) or not all(isinstance(entry.get("filename"), str) for entry in entries):
        return None
    attributes = (content.get("_via_attributes") or {}).get("region") or {}
    return entries, attributes


def regions_of(entry: dict) -> list[dict]:
    """The regions of an image, which VIA 1 numbers; ValueError if one has no shape."""
    regions = entry["regions"]
    regions = list(regions.values()) if isinstance(regions, dict) else regions
    for region in regions:
        if not isinstance(region, dict) or not isinstance(region.get("shape_attributes"), dict):
            raise ValueError(f"{entry['filename']}: the region {str(region)[:60]} has no shape_attributes")
    return regions


def find_via(source: Source) -> Found | None:
    """Images of all of VIA's files. Labels are those that occur, by the alphabet."""
    files = {name: found for name in candidates(source) if (found := read_entries(source, name)) is not None}
    if not files:
        return None
    locator = Locator(name for name in source.files if is_picture(name))
    attribute = find_attribute(source, files)
    images: dict[str, tuple[str, list[tuple[str, dict]]]] = {}
    kinds, missing = Counter(), []
    for file, (entries, attributes) in files.items():
        options = (attributes.get(attribute) or {}).get("options")
        for entry in entries:
            path = locator.find(entry["filename"], PurePosixPath(file).parent.as_posix())
            if path is None:
                missing.append(entry["filename"])
                continue
            if path in images:
                raise ValueError(f"{path} is annotated twice, in {images[path][0]} and in {file}; keep one")
            regions = regions_of(entry)
            kinds.update(str(region["shape_attributes"].get("name")) for region in regions)
            drawn = [region for region in regions if region["shape_attributes"].get("name") in DRAWN]
            labelled = [(label_of(region, attribute, options, path), region["shape_attributes"]) for region in drawn]
            images[path] = (file, labelled)
    if missing:
        raise ValueError(
            f"{len(missing)} of {sum(len(e) for e, _ in files.values())} images of {listed(files)} are missing in "
            f"{source.root}: {listed(missing)}"
        )
    left_out = {kind: count for kind, count in kinds.items() if kind not in DRAWN}
    notes = tell_left_out("regions", left_out, ", ".join(DRAWN))
    if bare := sum(label == NO_LABEL for _, own in images.values() for label, _ in own):
        notes.append(f"{bare} regions have no {attribute}, so their pixels do not count")
    labels = {path: frozenset(label for label, _ in own) for path, (_, own) in images.items()}
    names = order_names(sorted(set().union(*labels.values())))
    maps = {
        path: ReadMap(f"{file}#{path}", labels[path], names, partial(read_shapes, source.root / path, own))
        for path, (file, own) in images.items()
    }
    by_file: dict[str, list[str]] = {}
    for path, (file, _) in images.items():
        by_file.setdefault(split_of(file), []).append(path)
    in_split = by_file if len(by_file) == len(files) > 1 and ALL not in by_file else None
    told = f"labels by the attribute {attribute}" if attribute else f"without attributes, so all is {ONLY_LABEL}"
    where = "the labels that occur, by the alphabet"
    return find_drawn(source, "via", f"VIA's {listed(files)}, {told}", maps, names, where, notes, in_split)


def find_attribute(source: Source, files: dict[str, tuple[list[dict], dict]]) -> str | None:
    """The attribute of regions that is the label: the given one or the only one; None where no region has any.

    Raises:
        ValueError: regions have several, or not the given one; names them.
    """
    regions = [region for entries, _ in files.values() for entry in entries for region in regions_of(entry)]
    counts = Counter(key for r in regions for key, value in (r.get("region_attributes") or {}).items() if value)
    if source.label_column is not None:
        if source.label_column not in counts:
            known = ", ".join(counts) or "none"
            raise ValueError(f"label_column {source.label_column!r} is no attribute of regions; they are {known}")
        return source.label_column
    if len(counts) > 1:
        texts = [f"{key} (in {count} of {len(regions)} regions)" for key, count in counts.items()]
        raise ValueError(
            f"{source.data} has regions with the attributes {listed(texts)}; say which is the label, as in "
            f"label_column: {next(iter(counts))}"
        )
    return next(iter(counts), None)


def label_of(region: dict, attribute: str | None, options: Any, path: str) -> str:
    """The label of a region; of a choice the text that stands for it. ValueError if several are chosen."""
    if attribute is None:
        return ONLY_LABEL
    value = (region.get("region_attributes") or {}).get(attribute)
    chosen = [key for key, is_chosen in value.items() if is_chosen] if isinstance(value, dict) else [value]
    if len(chosen) > 1:
        raise ValueError(f"{path}: a region has {len(chosen)} values of {attribute}, {listed(chosen)}; one is wanted")
    key = str(chosen[0]).strip() if chosen and chosen[0] is not None else ""
    text = options.get(key) if isinstance(options, dict) else None
    return str(text).strip() if text else key or NO_LABEL


def read_shapes(picture: Path, regions: list[tuple[str, dict]]) -> tuple[tuple[int, int], list[Shape]]:
    """Size and shapes of an image; ValueError for damage, and for shapes that lie outside of it."""
    size = picture_size(picture)
    shapes = [Shape(label, outline_of(attributes)) for label, attributes in regions]
    for shape in shapes:
        xs, ys = zip(*shape.points) if shape.points else ((0,), (0,))
        if min(*xs, *ys) < -0.05 * max(size) or max(xs) > 1.05 * size[1] or max(ys) > 1.05 * size[0]:
            raise ValueError(
                f"a region of {shape.label!r} reaches to ({max(xs):.0f}, {max(ys):.0f}), outside of the image of "
                f"{size[1]} x {size[0]}; give the image at the size that it was annotated at"
            )
    return size, shapes


def outline_of(attributes: dict) -> tuple[tuple[float, float], ...]:
    """Points of a shape, in pixels; ValueError if something is missing."""
    kind = attributes["name"]
    if kind == "polygon":
        xs, ys = attributes.get("all_points_x") or [], attributes.get("all_points_y") or []
        if len(xs) != len(ys):
            raise ValueError(f"a polygon has {len(xs)} x and {len(ys)} y")
        return read_points(list(zip(xs, ys)))
    keys = {"rect": "x y width height", "circle": "cx cy r r", "ellipse": "cx cy rx ry"}[kind].split()
    x, y, across, down = (float(attributes.get(key, "nan")) for key in keys)
    if kind == "rect":
        return read_points([(x, y), (x + across, y), (x + across, y + down), (x, y + down)])
    return read_points(ellipse_points(x, y, across, down, float(attributes.get("theta", 0))))


VIA = Family(TREES, find_via)

__all__ = ["VIA"]
