# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""YOLO's segmentation: a text file per image with a polygon a line, and a YAML file with the names of the classes."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from ...utils.picture_files import is_picture, listed, stem_of, suffix_of
from ...utils.text import read_text
from ..label_names import find_label_file, names_in_order
from ..samples import DrawnLabelMap, FolderSamples
from .layout import Family, Found, Source
from .polygons import Shape, draw_shapes, ignored_label, order_names, picture_size
from .splits import ALL, read_split_lists
from .words import split_by_folders

TREES = {
    "yolo": "images/{train,val}/a.jpg  labels/{train,val}/a.txt  data.yaml  (also train/images, train/labels; each "
    "line a class and x y x y x y ...)"
}
Line = tuple[int, tuple[tuple[float, float], ...]]  # class, and corners (x, y) as shares of width and height


def read_lines(path: Path) -> tuple[list[Line], int]:
    """Polygons of a text file, and how many of its lines are boxes; ValueError for any other line."""
    polygons, boxes = [], 0
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            label, *shares = int(words[0]), *map(float, words[1:])
        except ValueError:
            label, shares = -1, []
        if label < 0 or len(shares) % 2 or len(shares) < 4 or not all(-0.01 <= share <= 1.01 for share in shares):
            raise ValueError(
                f"line {number} of {path} is {line[:60]!r}; a class and shares x y x y x y ... are wanted"
            )
        if len(shares) == 4:
            boxes += 1
        else:
            polygons.append((label, tuple(zip(shares[::2], shares[1::2]))))
    return polygons, boxes


def text_of(picture: str) -> str | None:
    """The text file of an image: its path with "labels" in place of the last "images"."""
    parts = stem_of(picture).split("/")
    at = next((place for place in range(len(parts) - 2, -1, -1) if parts[place] == "images"), None)
    return None if at is None else "/".join([*parts[:at], "labels", *parts[at + 1 :]]) + ".txt"


def find_yolo(source: Source) -> Found | None:
    """Folders `images` beside `labels`, if any text file holds a polygon."""
    texts = {name for name in source.files if suffix_of(name) == ".txt"} if source.file is None else set()
    pairs = {name: text for name in source.files if is_picture(name) and (text := text_of(name))} if texts else {}
    if texts.isdisjoint(pairs.values()):
        return None
    counts, boxes = Counter(), 0
    try:
        for text in sorted(texts & set(pairs.values())):
            polygons, more = read_lines(source.root / text)
            counts.update(label for label, _ in polygons)
            boxes += more
    except ValueError:
        if counts:
            raise
        return None  # text files of another kind
    if not counts:
        return None
    classes, where = read_classes(source)
    if max(counts) >= len(classes):
        raise ValueError(
            f"{source.root} has polygons of class {max(counts)}, and {where} names {len(classes)} classes"
        )
    notes = [f"{boxes} lines of text files are boxes, which have no outline, and are left out"] if boxes else []
    in_split = split_by_folders(pairs, notes)
    if set(in_split) == {ALL}:
        lists = read_split_lists(source, list(pairs), notes)
        in_split = {split: list(own) for split, own in lists.items()} or in_split
    for split in [split for split, own in in_split.items() if texts.isdisjoint(pairs[name] for name in own)]:
        notes.append(
            f"{len(in_split.pop(split))} images of {split} have no text files at all, so this is no split here"
        )
    if bare := [name for own in in_split.values() for name in own if pairs[name] not in texts]:
        notes.append(f"{len(bare)} images have no text file, so all of each is background: {listed(bare)}")
    names = order_names(classes)
    openers = {
        split: partial(open_yolo, source, split, [(name, pairs[name]) for name in own], classes, names, texts, notes)
        for split, own in in_split.items()
    }
    return Found("yolo", "polygons in text files", openers, names, where, ignored_label(names), notes=notes)


def yaml_names(source: Source) -> tuple[list[str], str] | None:
    """Names of classes, and the YAML file at the top that has them; None without one, ValueError if it is damaged."""
    for name in source.files:
        if "/" in name or suffix_of(name) not in (".yaml", ".yml"):
            continue
        try:
            content = yaml.safe_load(read_text(source.root / name))
            if isinstance(content, dict) and "names" in content:
                return names_in_order(content["names"]), name
        except (RecursionError, ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{source.root / name} cannot be read: {error}") from error
    return None


def read_classes(source: Source) -> tuple[list[str], str]:
    """Names of the classes, and the file that has them; ValueError if there is none."""
    if found := yaml_names(source):
        return found
    if label_file := find_label_file(source.root, source.files, []):
        return label_file[1], label_file[0].name
    raise ValueError(f"{source.root} names no classes; a data.yaml with names: [...] is wanted, as YOLO has it")


def open_yolo(
    source: Source,
    split: str,
    pairs: list[tuple[str, str]],
    classes: list[str],
    names: list[str],
    texts: set[str],
    notes: list[str],
) -> FolderSamples:
    items = [
        (name, YoloMap(text, source.root / name, source.root / text if text in texts else None, classes, names))
        for name, text in pairs
    ]
    return FolderSamples(source.root, items, split, None, notes)


@dataclass(frozen=True)
class YoloMap(DrawnLabelMap):
    """The label map of a text file; smaller polygons lie on larger ones, as YOLO's own training has them."""

    name: str
    picture: Path
    text: Path | None
    classes: list[str]
    names: list[str]

    def lines(self) -> list[Line]:
        return [] if self.text is None else read_lines(self.text)[0]

    def labels(self) -> set[str]:
        return {self.classes[label] for label, _ in self.lines()}

    def draw(self) -> np.ndarray:
        height, width = picture_size(self.picture)
        lines = sorted(self.lines(), key=lambda line: -area_of(line[1]))
        shapes = [Shape(self.classes[k], tuple((x * width, y * height) for x, y in points)) for k, points in lines]
        return draw_shapes((height, width), shapes, self.names)


def area_of(points: tuple[tuple[float, float], ...]) -> float:
    """Of a polygon, as a share of the image."""
    return abs(sum(x * v - u * y for (x, y), (u, v) in zip(points, (*points[1:], points[0])))) / 2


YOLO = Family(TREES, find_yolo)

__all__ = ["YOLO", "yaml_names"]
