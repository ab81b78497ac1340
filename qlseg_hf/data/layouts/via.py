# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""VGG Image Annotator: a JSON or CSV file with the regions of all images, of which one attribute is the label.

Files of version 3 number shapes, attributes and the options of attributes; they are brought to the form of version 2.
"""

import json
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from ...utils.picture_files import is_picture, listed, suffix_of
from .coco import candidates, read_json, split_of
from .files import Locator, delimiter_of
from .layout import Family, Found, Source
from .polygons import ReadMap, Shape, ellipse_points, find_drawn, order_names, picture_size, read_points, tell_left_out
from .run_lengths import read_cells
from .splits import ALL

DRAWN = ("polygon", "rect", "circle", "ellipse")
# Of version 3, by the number that a shape begins with; a polygon has as many x, y as it likes
KINDS = (
    "",
    "point",
    "rect",
    "circle",
    "ellipse",
    "line",
    "polyline",
    "polygon",
    "extreme_rectangle",
    "extreme_circle",
)
KEYS = {"rect": "x y width height".split(), "circle": "cx cy r".split(), "ellipse": "cx cy rx ry".split()}
SHAPE_COLUMN = "region_shape_attributes"  # of a CSV file
NO_LABEL, ONLY_LABEL = "__ignore__", "foreground"
TREES = {
    "via": "via_project.json  a.jpg  (VGG Image Annotator 1, 2 and 3, its CSV too; also "
    "{train,val}/via_region_data.json)"
}


def read_entries(source: Source, name: str) -> tuple[list[dict], dict] | None:
    """Images of VIA's file with their regions, and what it says of their attributes; None of another file."""
    if suffix_of(name) == ".csv":
        return read_csv(source.root / name)
    content = read_json(source, name, ("regions", "_via_img_metadata", "vid_list"))
    if isinstance(content, dict) and content.keys() >= {"project", "attribute", "file", "view", "metadata"}:
        try:
            return read_version_3(content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{source.root / name} is a project of VIA 3, and damaged: {error!r}") from error
    images = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
    if not isinstance(images, dict) or not images:
        return None
    entries = [entry for entry in images.values() if isinstance(entry, dict) and "regions" in entry]
    if len(entries) < len(images) or not all(isinstance(entry.get("filename"), str) for entry in entries):
        return None
    attributes = (content.get("_via_attributes") or {}).get("region") or {}
    return entries, attributes


def read_csv(path: Path) -> tuple[list[dict], dict] | None:
    """As `read_entries`, of VIA's CSV: a line for each region, and one for an image without any."""
    with path.open("rb") as file:
        line = file.readline(1 << 12).decode("utf-8-sig", errors="replace")
    if SHAPE_COLUMN not in line:
        return None
    (heads, *rows), images = read_cells(path, delimiter_of(line)), {}
    heads = [head.strip().lstrip("#") for head in heads]
    for number, row in enumerate(rows, 2):
        try:
            cells = dict(zip(heads, row, strict=True))
            shape, attributes = json.loads(cells[SHAPE_COLUMN]), json.loads(cells["region_attributes"])
            entry = images.setdefault(cells["filename"], {"filename": cells["filename"], "regions": []})
        except (KeyError, ValueError) as error:
            raise ValueError(f"line {number} of {path} is none of VIA's: {error!r}") from error
        entry["regions"] += [{"shape_attributes": shape, "region_attributes": attributes}] if shape else []
    return list(images.values()), {}


def read_version_3(content: dict) -> tuple[list[dict], dict]:
    """As `read_entries`, of a project of VIA 3; an error of any kind if it is damaged."""
    files = {str(key): str(file["fname"]) for key, file in content["file"].items()}
    images = {str(key): [files[str(fid)] for fid in view["fid_list"]] for key, view in content["view"].items()}
    if pair := next((names for names in images.values() if len(names) > 1), None):
        raise ValueError(f"a view shows {len(pair)} images, {listed(pair)}; one is wanted")
    entries = {view: {"filename": name, "regions": []} for view, (name,) in images.items()}
    attributes = {str(key): attribute for key, attribute in content["attribute"].items()}
    for region in content["metadata"].values():
        if not region["xy"]:
            continue  # of the whole image
        values = {attributes[key]["aname"]: value for key, value in region["av"].items()}
        for key, value in region["av"].items():
            if attributes[key]["type"] == 2 and value:  # a checkbox, "0,2"
                values[attributes[key]["aname"]] = dict.fromkeys(value.split(","), True)
        entries[str(region["vid"])]["regions"].append(
            {"shape_attributes": to_version_2(region["xy"]), "region_attributes": values}
        )
    return list(entries.values()), {attribute["aname"]: attribute for attribute in attributes.values()}


def to_version_2(shape: list[float]) -> dict:
    """The shape of version 3, [number of its kind, numbers ...], by names."""
    kind, numbers = KINDS[shape[0]], shape[1:]
    return {"name": kind, "all_points_x": numbers[0::2], "all_points_y": numbers[1::2]} | dict(
        zip(KEYS.get(kind, ()), numbers)
    )


def regions_of(entry: dict) -> list[dict]:
    """The regions of an image, which VIA 1 numbers; ValueError if one has no shape."""
    regions = entry["regions"]
    regions = list(regions.values()) if isinstance(regions, dict) else regions
    for region in regions:
        if not isinstance(region, dict) or not isinstance(region.get("shape_attributes"), dict):
            raise ValueError(f"{entry['filename']}: the region {str(region)[:60]} has no shape_attributes")
    return regions


def tables(source: Source) -> Iterable[str]:
    """CSV files that may be VIA's: the one that was given, or all."""
    names = source.files if source.file is None else [source.file.name]
    return (name for name in names if suffix_of(name) == ".csv")


def find_via(source: Source) -> Found | None:
    """Images of all of VIA's files. Labels are those that occur, by the alphabet."""
    names = [*candidates(source), *tables(source)]
    files = {name: found for name in names if (found := read_entries(source, name)) is not None}
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
    keys = KEYS[kind]
    x, y, across, down = (float(attributes.get(key, "nan")) for key in (*keys, keys[-1])[:4])
    if kind == "rect":
        return read_points([(x, y), (x + across, y), (x + across, y + down), (x, y + down)])
    return read_points(ellipse_points(x, y, across, down, float(attributes.get("theta", 0))))


VIA = Family(TREES, find_via)

__all__ = ["VIA"]
