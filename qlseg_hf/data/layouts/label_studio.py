# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Label Studio's JSON exports: a list of tasks, with polygons in percent, and brush strokes in run lengths."""

import json
import re
from collections import Counter
from functools import partial
from math import radians
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from ...utils.picture_files import base_of, is_picture, listed
from .coco import candidates, read_json, split_of
from .files import Locator
from .layout import Family, Found, Source
from .polygons import (
    ReadMap,
    Shape,
    check_size,
    ellipse_points,
    find_drawn,
    order_names,
    picture_size,
    read_points,
    tell_left_out,
)
from .splits import ALL

DRAWN = ("polygon", "brush", "ellipse")
NO_LABEL = "__ignore__"  # of regions that nobody has given a label
TREES = {"label-studio": "project-1.json  images/a.jpg  (Label Studio's export as JSON or JSON-MIN)"}


def read_tasks(source: Source, name: str) -> list[dict] | None:
    """The tasks of an export; None of another file."""
    content = read_json(source, name, ("annotations", "completions", "original_width"), "[")
    if not isinstance(content, list) or not content or not all(isinstance(task, dict) for task in content):
        return None
    if all(isinstance(task.get("data"), dict) and isinstance(annotations_of(task), list) for task in content):
        return content
    is_brief = any("original_width" in cell for row in content for cell in cells_of(row))
    return tasks_of_rows(content) if is_brief and all("annotator" in row for row in content) else None


def cells_of(row: dict) -> list[dict]:
    """The regions in a row of JSON-MIN."""
    cells = [cell for value in row.values() if isinstance(value, list) for cell in value]
    return [cell for cell in cells if isinstance(cell, dict)]


def tasks_of_rows(rows: list[dict]) -> list[dict]:
    """Tasks of JSON-MIN, where an annotation is a row and a region has no number: equal shapes count as one region."""
    tasks: dict[str, dict] = {}
    for row in rows:
        task = tasks.setdefault(str(row.get("id")), {"id": row.get("id"), "data": row, "annotations": []})
        result = []
        for cell in cells_of(row):
            shape = {key: value for key, value in cell.items() if not key.endswith("labels")}
            result.append(cell | {"id": json.dumps(shape), "value": cell})
        task["annotations"].append({"result": result, "updated_at": row.get("updated_at")})
    return list(tasks.values())


def annotations_of(task: dict) -> Any:
    return task.get("annotations", task.get("completions"))


def find_label_studio(source: Source) -> Found | None:
    """Images of all exports. Labels are those that occur, by the alphabet."""
    files = {name: tasks for name in candidates(source) if (tasks := read_tasks(source, name)) is not None}
    if not files:
        return None
    locator = Locator(name for name in source.files if is_picture(name))
    chosen: dict[str, tuple[str, list[dict]]] = {}
    kinds, missing, several, skipped = Counter(), [], [], []
    for file, tasks in files.items():
        for task in tasks:
            annotations = [a for a in annotations_of(task) if not a.get("was_cancelled")]
            if not annotations:
                skipped.append(image_of(task))
                continue
            if (path := locate(locator, image_of(task))) is None:
                missing.append(image_of(task))
                continue
            if path in chosen:
                raise ValueError(f"{path} is the image of two tasks, in {chosen[path][0]} and in {file}; keep one")
            truths = [a for a in annotations if a.get("ground_truth")] or annotations
            last = max(truths, key=lambda a: str(a.get("updated_at") or a.get("created_at") or ""))
            several += [path] if len(annotations) > 1 else []
            chosen[path] = (file, regions_of(last.get("result") or []))
            kinds.update(region["kind"] for region in chosen[path][1])
    if missing:
        raise ValueError(
            f"{len(missing)} of {sum(map(len, files.values()))} images of {listed(files)} are missing in "
            f"{source.root}: {listed(missing)}; put them there under these names"
        )
    left_out = {kind: count for kind, count in kinds.items() if kind not in DRAWN}
    notes = tell_left_out("regions", left_out, "polygons, brush strokes and ellipses")
    if several:
        notes.append(
            f"{len(several)} images have several annotations; of each the one that is the ground truth counts, else "
            f"the one that was changed last: {listed(several)}"
        )
    if skipped:
        notes.append(
            f"{len(skipped)} tasks have no annotation that was submitted, and are left out: {listed(skipped)}"
        )
    drawn = {path: [r for r in regions if r["kind"] in DRAWN] for path, (_, regions) in chosen.items()}
    if bare := sum(region["label"] == NO_LABEL for regions in drawn.values() for region in regions):
        notes.append(f"{bare} regions have no label, so their pixels do not count")
    labels = {path: frozenset(region["label"] for region in regions) for path, regions in drawn.items()}
    names = order_names(sorted(set().union(*labels.values())))
    maps = {
        path: ReadMap(f"{chosen[path][0]}#{path}", labels[path], names, partial(read_shapes, source.root / path, own))
        for path, own in drawn.items()
    }
    by_file: dict[str, list[str]] = {}
    for path, (file, _) in chosen.items():
        by_file.setdefault(split_of(file), []).append(path)
    in_split = by_file if len(by_file) == len(files) > 1 and ALL not in by_file else None
    where = "the labels that occur, by the alphabet"
    summary = f"Label Studio's {listed(files)}"
    return find_drawn(source, "label-studio", summary, maps, names, where, notes, in_split)


def image_of(task: dict) -> str:
    """The name of a task's image: the one value of its data that looks like one."""
    texts = {key: plain_path(value) for key, value in task["data"].items() if isinstance(value, str)}
    found = {key: text for key, text in texts.items() if is_picture(text)}
    if len(found) > 1 and "image" in found:
        return found["image"]
    if len(found) != 1:
        raise ValueError(
            f"task {task.get('id')} of Label Studio has {len(found)} images in its data ({', '.join(task['data'])}); "
            "one is wanted"
        )
    return next(iter(found.values()))


def plain_path(address: str) -> str:
    """The path that an address means: without server and query, or what `/data/local-files/?d=` names."""
    parts = urlsplit(address)
    return (
        parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
        if "local-files" in parts.path
        else unquote(parts.path)
    )


def locate(locator: Locator, name: str) -> str | None:
    """The image of that name, or of the name that it had before Label Studio put eight letters in front of it."""
    return locator.find(name) or locator.find(re.sub(r"^[0-9a-f]{8}-", "", base_of(name)))


def regions_of(results: list[dict]) -> list[dict]:
    """[{"kind", "label", "result"}] of the regions of an annotation, in their order; ValueError for two labels of one.

    Where shapes and labels are separate controls, one region is told by several results of the same id.
    """
    labels, regions = {}, {}
    for number, result in enumerate(results):
        value, key = result.get("value") or {}, result.get("id", number)
        own = [label for name, found in value.items() if name.endswith("labels") and found for label in found]
        if own and labels.setdefault(key, own) != own or len(own) > 1:
            raise ValueError(f"region {key} of Label Studio has the labels {', '.join(labels[key])}; one is wanted")
        if (kind := kind_of(value)) is not None:
            regions.setdefault(key, {"kind": kind, "result": result})
    return [region | {"label": str(labels.get(key, [NO_LABEL])[0])} for key, region in regions.items()]


def kind_of(value: dict) -> str | None:
    """What a value is by its keys; None for what is no region, as a choice for the whole image."""
    if "points" in value:
        return "open polygon" if value.get("closed") is False else "polygon"
    kinds = {"rle": "brush", "radiusX": "ellipse", "height": "rectangle", "vertices": "vector", "x": "keypoint"}
    return next((kind for key, kind in kinds.items() if key in value), None)


def read_shapes(picture: Path, regions: list[dict]) -> tuple[tuple[int, int], list[Shape]]:
    """Size and shapes of an image's regions; ValueError for damage, and for an image that was turned in the editor."""
    results = [region["result"] for region in regions]
    if not results:
        return picture_size(picture), []
    if turned := [r["image_rotation"] for r in results if r.get("image_rotation")]:
        raise ValueError(
            f"it was turned by {turned[0]} degrees in Label Studio, which is not read; annotate it upright"
        )
    sizes = {(str(r.get("original_height")), str(r.get("original_width"))) for r in results}
    if len(sizes) > 1:
        raise ValueError(f"its regions are of images of {len(sizes)} sizes; one is wanted")
    size = check_size(results[0].get("original_height"), results[0].get("original_width"))
    return size, [to_shape(region["kind"], region["label"], region["result"]["value"], size) for region in regions]


def to_shape(kind: str, label: str, value: dict, size: tuple[int, int]) -> Shape:
    """The region of a polygon or ellipse, in percent of the image's sides, or of a brush."""
    (height, width) = size
    if kind == "brush":
        return Shape(label, mask=decode_brush(value["rle"], size))
    if kind == "ellipse":
        x, y, across, down, turn = (float(value.get(key, 0)) for key in ("x", "y", "radiusX", "radiusY", "rotation"))
        x, y, across, down = x * width / 100, y * height / 100, across * width / 100, down * height / 100
        return Shape(label, read_points(ellipse_points(x, y, across, down, radians(turn))))
    return Shape(label, tuple((x * width / 100, y * height / 100) for x, y in read_points(value["points"])))


def decode_brush(data: Any, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool of a brush: where the alpha of the RGBA picture that is packed in `data` is not 0.

    Source: the format of thi.ng's rle-pack. Bits from the highest on: 32 for the count of words, 5 for the bits of a
    word less 1, four times 4 for the bits of a length less 1. Then runs: a bit, whether one word is repeated; 2 bits,
    which of the four sizes the length has; the length less 1; one word, or as many as the length.

    Raises:
        ValueError: `data` is no list of bytes, ends too early, or is of another size.
    """
    if not isinstance(data, list) or not all(type(byte) is int and 0 <= byte < 256 for byte in data):
        raise ValueError("a brush must hold a list of bytes")
    bits = np.unpackbits(np.array(data, dtype=np.uint8))
    text, at = "".join(map("{:08b}".format, data)), 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        if at > len(text):
            raise ValueError("the run lengths of a brush end too early")
        return int(text[at - count : at], 2)

    total, word = take(32), take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    if total != 4 * size[0] * size[1]:
        raise ValueError(f"a brush holds {total} values; 4 x {size[0]} x {size[1]} are wanted")
    words, done = np.zeros(total, dtype=np.int64), 0
    while done < total:
        is_run = take(1)
        end = done + take(lengths[take(2)]) + 1
        if end > total:
            raise ValueError(f"the run lengths of a brush go on behind its {total} values")
        if is_run:
            words[done:end] = take(word)
        else:
            own, at = bits[at : at + word * (end - done)], at + word * (end - done)
            if at > len(text):
                raise ValueError("the run lengths of a brush end too early")
            words[done:end] = own.reshape(-1, word) @ (1 << np.arange(word)[::-1])
        done = end
    return words.reshape(*size, 4)[..., 3] > 0


LABEL_STUDIO = Family(TREES, find_label_studio)

__all__ = ["LABEL_STUDIO"]
