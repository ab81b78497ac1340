# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Run lengths in a CSV file, as in Kaggle's competitions: a line for each mask, with pairs of start and length.

Pixels are counted from 1, in most competitions down the columns, in some along the rows. Read in the wrong order,
masks of images that are not square come apart, which tells the order.
"""

import csv
import io
import re
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from ...utils.picture_files import is_picture, listed, suffix_of
from ...utils.text import read_text
from .columns import ColumnsError
from .files import Locator, delimiter_of
from .layout import Family, Found, Source
from .polygons import ReadMap, Shape, find_drawn, order_names, picture_size
from .splits import ALL
from .tables import split_of_file

# Headings, without blanks and signs
IMAGE_HEADS = ("imageid", "image", "img", "id", "filename", "imagename", "imgid", "imagefilename")
RUN_HEADS = ("encodedpixels", "rlemask", "rle", "encoding", "segmentation", "annotation", "mask", "rleencoded")
CLASS_HEADS = ("classid", "class", "classname", "label", "category", "categoryid")
BOTH_HEADS = ("imageidclassid", "imagelabel", "imageclass")  # "a.jpg_1"
ALONG_ROWS = ("segmentation", "annotation")  # headings of UW-Madison's and Sartorius' tables, which count so
SLICE = re.compile(r"([^/]+)/scans/(slice_\d+)_[^/]*$")  # UW-Madison's images, which have no name of their own
ONLY_LABEL = "foreground"
MOST_MASKS, CLEARLY = 50, 1.5  # masks that are looked at to tell the order, and by how much their outlines must differ
TREES = {"rle-csv": "train.csv  train_images/a.jpg  (Kaggle: ImageId,EncodedPixels,ClassId and the like)"}


def read_cells(path: Path, sign: str) -> list[list[str]]:
    """Cells of the lines of a CSV file that are not empty, of any length; ValueError if it cannot be read."""
    limit = csv.field_size_limit(sys.maxsize)  # a mask may be longer than 131 072 letters
    try:
        return [row for row in csv.reader(io.StringIO(read_text(path)), delimiter=sign) if row]
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    finally:
        csv.field_size_limit(limit)


def read_rows(path: Path) -> tuple[list[tuple[str, str | None, str]], str] | None:
    """(image, class or None, run lengths) of the lines, and the heading of the run lengths; None of another table."""
    with path.open("rb") as file:
        line = file.readline(1 << 12).decode("utf-8-sig", errors="replace")
    sign = delimiter_of(line)
    heads = [re.sub(r"[^a-z0-9]", "", cell.lower()) for cell in line.split(sign)]
    image, runs, label = (
        next((heads.index(head) for head in known if head in heads), None)
        for known in ((*BOTH_HEADS, *IMAGE_HEADS), RUN_HEADS, CLASS_HEADS)
    )
    if image is None or runs is None:
        return None
    rows = read_cells(path, sign)[1:]
    if not any(
        re.fullmatch(r"\s*\d+ +\d+( +\d+ +\d+)*\s*", row[runs]) for row in rows[:1000] if len(row) == len(heads)
    ):
        return None
    if odd := [number for number, row in enumerate(rows, 2) if len(row) != len(heads)]:
        raise ValueError(f"line {odd[0]} of {path} has another number of cells than the {len(heads)} headings")
    found = []
    for number, row in enumerate(rows, 2):
        name, kind = row[image].strip(), None if label is None else row[label].strip()
        if heads[image] in BOTH_HEADS:
            name, _, kind = name.rpartition("_")
        if not name or kind == "" and row[runs].strip():
            raise ValueError(f"line {number} of {path} names no {'class' if name else 'image'}")
        found.append((name, kind, row[runs].strip()))
    return found, heads[runs]


def find_runs(source: Source) -> Found | None:
    """Tables at the top. An image without a line is left out; one whose cells are all empty is background."""
    tables = [source.file.name] if source.file is not None else [name for name in source.files if "/" not in name]
    tables = [name for name in tables if suffix_of(name) in (".csv", ".tsv")]
    notes = []
    if left := [name for name in tables if "submission" in name.lower() and source.file is None]:
        tables = [name for name in tables if name not in left]
    files = {name: found for name in tables if (found := read_rows(source.root / name)) is not None}
    if not files:
        return None
    notes += [f"{listed(left)} is taken for a sample of results and is left out"] if left else []
    by_file = {name: split_of_file(name) for name in files} if len(files) > 1 else {name: ALL for name in files}
    if len(set(by_file.values())) < len(files):
        raise ValueError(
            f"{listed(files)} in {source.root} hold run lengths of the same split; give the one that counts"
        )
    pictures = [name for name in source.files if is_picture(name)]
    locator, slices = Locator(pictures), {"_".join(m.groups()): m.string for m in map(SLICE.search, pictures) if m}
    masks: dict[str, list[tuple[str | None, str]]] = {}
    in_split: dict[str, list[str]] = {}
    missing: dict[str, None] = {}
    for file, (rows, _) in files.items():
        own: dict[str, list[tuple[str | None, str]]] = {}
        images, near = dict.fromkeys(name for name, _, _ in rows), split_of_file(file)
        paths = {name: slices.get(name) or locator.find(name, near) for name in images}
        for name, kind, text in rows:
            if (path := paths[name]) is None:
                missing[name] = None
                continue
            own.setdefault(path, []).extend([(kind, text)] if text else [])
        if twice := own.keys() & masks.keys():
            raise ValueError(f"{min(twice)} is in two of {listed(files)}; keep one")
        masks |= own
        in_split[by_file[file]] = list(own)
    if missing:  # there may be masks of other names, as in SenNet
        raise ColumnsError(
            f"{len(missing)} images of {listed(files)} are missing in {source.root}: {listed(missing)}; add them, or "
            "take their lines out"
        )
    kinds = {kind for rows, _ in files.values() for _, kind, _ in rows}
    named = {kind for kind in kinds if kind}
    is_number = all(map(str.isdecimal, named))
    label_of = {kind: f"class_{kind}" if is_number else kind for kind in sorted(named, key=int if is_number else str)}
    label_of |= {None: ONLY_LABEL} if None in kinds else {}
    names = order_names(label_of.values())
    by_columns, why = tell_order(source, masks, next(iter(files.values()))[1])
    order = "down the columns" if by_columns else "along the rows"
    maps = {
        path: ReadMap(
            f"run lengths of {path}",
            frozenset(label_of[kind] for kind, _ in own),
            names,
            partial(read_shapes, source.root / path, [(label_of[kind], text) for kind, text in own], by_columns),
        )
        for path, own in masks.items()
    }
    summary = f"run lengths of {listed(files)}, pairs of start and length, pixels counted from 1 {order} ({why})"
    return find_drawn(
        source, "rle-csv", summary, maps, names, listed(files), notes, in_split if len(files) > 1 else None
    )


def tell_order(source: Source, masks: dict[str, list[tuple[str | None, str]]], head: str) -> tuple[bool, str]:
    """Whether pixels are counted down the columns, and how that is known: by shorter outlines, else by the heading."""
    outlines, seen = Counter(), 0
    for path, own in masks.items():
        if not own or seen >= MOST_MASKS:
            continue
        try:
            height, width = picture_size(source.root / path)
            pairs = [[fill((height, width), text, by_columns) for by_columns in (True, False)] for _, text in own]
        except (OSError, ValueError):  # reading the sample says what is wrong
            continue
        for pair in pairs if height != width else ():
            for by_columns, mask in zip((True, False), pair):
                outlines[by_columns] += int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum())
            seen += 1
    shorter = outlines[True] <= outlines[False]
    if outlines[not shorter] > CLEARLY * outlines[shorter]:
        return shorter, f"in the other order {seen} masks of images that are not square come apart"
    return head not in ALONG_ROWS, f"by the heading {head}; the masks do not tell"


def fill(size: tuple[int, int], text: str, by_columns: bool) -> np.ndarray:
    """(H, W) bool of pairs of start and length; ValueError if they are damaged, overlap or are not in order."""
    words = text.split()
    if len(words) % 2 or not all(map(str.isdecimal, words)):
        raise ValueError(f"the run lengths {text[:40]!r} are no pairs of start and length")
    numbers = np.array(list(map(int, words)), dtype=np.int64).reshape(-1, 2)
    starts, ends = numbers[:, 0] - 1, numbers.sum(axis=1) - 1
    if (starts < 0).any():
        raise ValueError("a run starts at 0; pixels are counted from 1")
    if (starts[1:] < ends[:-1]).any():
        raise ValueError("runs overlap or are not in order; starts that count on from the run before are not read")
    if len(ends) and ends[-1] > size[0] * size[1]:
        raise ValueError(f"a run ends at pixel {ends[-1]}, and the image has {size[0]} x {size[1]}")
    steps = np.zeros(size[0] * size[1] + 1, dtype=np.int8)
    np.add.at(steps, starts, 1)
    np.add.at(steps, ends, -1)
    mask = np.cumsum(steps[:-1]) > 0
    return mask.reshape(size[1], size[0]).T if by_columns else mask.reshape(size)


def read_shapes(path: Path, own: list[tuple[str, str]], by_columns: bool) -> tuple[tuple[int, int], list[Shape]]:
    """Size of an image and its masks, later lines on top; ValueError if EXIF turns it, for lines do not tell how."""
    with Image.open(path) as picture:
        if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            raise ValueError("its EXIF orientation turns it, and run lengths do not tell whether of the turned image")
    size = picture_size(path)
    return size, [Shape(label, mask=fill(size, text, by_columns)) for label, text in own]


RUNS = Family(TREES, find_runs)

__all__ = ["RUNS", "read_cells"]
