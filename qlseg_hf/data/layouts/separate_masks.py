# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Several black and white masks of an image: of labels that folders or names tell, or of objects."""

import os
import re
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np

from ...utils.picture_files import is_picture, listed
from ..samples import DrawnLabelMap, FolderSamples, Sample, SampleError
from .layout import Found, Source
from .matching import LEADING_ZEROS, NONE, Entry, name_and_ending
from .polygons import ReadMap, Shape, ignored_label, order_names, picture_size
from .splits import ALL, read_split_lists
from .words import MASK_AFFIX, strip_affix

MOST_PICTURES, MOST_OVERLAP = 20, 0.5  # that are looked at, and the IoU that masks of two labels may have
PERSON = re.compile(
    r"(annotat(or|ion)|expert|rater|observer|reader|grader|doctor|radiologist|person|user)[-_. ]?(\d+|[a-z])"
)
KEEP = "say which count, as in layout: images:masks/car or layout: images:masks/*_car.png"


def find_parts(source: Source, pictures: list[Entry], masks: list[Entry], is_paired: bool) -> Found | None:
    """What images are that have masks of several labels, by folders or names of the masks; None if they have not.

    `is_paired`: whether images have label maps in folders of the same names, so that these are of no labels.

    Raises:
        ValueError: masks of two labels show the same, or the labels are called as several people are.
    """
    pictures = [entry for entry in pictures if is_picture(entry.path)]
    own = (None if is_paired else labels_of_folders(pictures, masks)) or labels_of_names(pictures, masks)
    if own is None:
        return None
    several = [entry for entry, found in own.items() if len(found) > 1][:MOST_PICTURES]
    people = sorted({label for entry in several for label in own[entry]})
    if people and all(PERSON.fullmatch(label.lower()) for label in people):
        raise ValueError(f"{source.root}: {listed(people)} are called as people, and no labels; {KEEP}")
    try:
        overlaps = [pair for entry in several if (pair := find_overlap(source, own[entry]))]
    except SampleError:  # label maps of their own, or damaged
        return None
    if not several:
        return None
    if len(overlaps) > len(several) / 2:
        raise ValueError(
            f"{source.root}: {' and '.join(overlaps[0])} show the same, as masks of two people do, and no two labels; "
            f"{KEEP}"
        )
    names = order_names(sorted({label for found in own.values() for label in found}, key=by_number))
    kept = {entry: found for entry, found in own.items() if found}
    maps = {
        entry.path: ReadMap(
            listed(found.values()), frozenset(found), names, partial(read_shapes, source.root, entry.path, found)
        )
        for entry, found in kept.items()
    }
    left = [entry.path for entry in pictures if entry not in kept]
    notes = [f"{len(left)} images have no mask at all, and are left out: {listed(left)}"] if left else []
    in_split: dict[str, list[str]] = {
        split: list(own) for split, own in read_split_lists(source, list(maps), notes).items()
    }
    for entry in () if in_split else kept:
        in_split.setdefault(entry.split or ALL, []).append(entry.path)
    openers = {
        split: partial(FolderSamples, source.root, [(path, maps[path]) for path in paths], split, None, notes)
        for split, paths in in_split.items()
    }
    summary = f"masks of each label ({listed(names[1:])}), smaller ones on top"
    return Found("folders", summary, openers, names, "the masks", ignored_label(names), notes=notes)


def labels_of_folders(pictures: list[Entry], masks: list[Entry]) -> dict[Entry, dict[str, str]] | None:
    """{image: {label: mask}} where masks lie in a folder for each label, as masks/car/a.png or 1/masks/car/a.png."""
    common = tuple(len(os.path.commonprefix([entry.rest for entry in of])) for of in (pictures, masks))
    own: dict[Entry, dict[str, str]] = {picture: {} for picture in pictures}
    by_name = {(picture.split, picture.rest[common[0] :], picture.stem): picture for picture in pictures}
    if len(by_name) < len(pictures) or not all(len(mask.rest) > common[1] for mask in masks):
        return None  # left_frames/a.png beside right_frames/a.png
    for mask in masks:
        stems = (mask.stem, strip_affix(mask.stem, MASK_AFFIX), *(stem for stem, _ in name_and_ending(mask.stem)))
        first, *rest = mask.rest[common[1] :]
        ways = [
            (first, (*rest,)),
            ((first, *rest)[-1], (first, *rest)[:-1]),
        ]  # the label, and the folders of the image
        places = ((label, by_name.get((mask.split, own, stem))) for label, own in ways for stem in stems)
        label, picture = next((found for found in places if found[1]), ("", None))
        if picture is not None and own[picture].setdefault(label, mask.path) != mask.path:
            return None
    return own if any(len(found) > 1 for found in own.values()) else None


def labels_of_names(pictures: list[Entry], masks: list[Entry]) -> dict[Entry, dict[str, str]] | None:
    """{image: {label: mask}} where names tell it, as masks/a_hair.png or masks/a/hair.png; None if they do not.

    Labels are words that several images have; else masks are of single objects. Several folders are several people's.
    """
    by_stem = {(picture.split, picture.name_parts(NONE, True)[1]): picture for picture in pictures}
    own: dict[Entry, dict[str, str]] = {picture: {} for picture in pictures}
    for mask in masks:
        ways = [*name_and_ending(mask.stem), *((name, mask.stem) for name in mask.rest[-1:])]
        found = [(by_stem.get((mask.split, LEADING_ZEROS.sub("", name.lower()))), label) for name, label in ways]
        picture, label = next(((picture, label) for picture, label in found if picture), (None, ""))
        if picture is None or not label[-1:].isalpha() or re.fullmatch(MASK_AFFIX, label, re.IGNORECASE):
            return None
        if own[picture].setdefault(label, mask.path) != mask.path:
            return None
    counts = Counter(label for found in own.values() for label in found)
    folders = {(mask.split, mask.role_folder) for mask in masks}
    if len(by_stem) < len(pictures) or len(folders) > len({split for split, _ in folders}):
        return None
    is_told = sum(count > 1 for count in counts.values()) * 2 >= len(counts) > 1
    return own if is_told else None


@dataclass(frozen=True)
class UnitedMap(DrawnLabelMap):
    """Black and white masks of one image, one for each object: what one of them covers has their value."""

    name: str
    paths: tuple[Path, ...]
    label_colors: dict[tuple[int, int, int], int] | None

    def draw(self) -> np.ndarray:
        maps = [Sample(None, path, path.name, self.label_colors).read_label_map() for path in self.paths]
        if len({one.shape for one in maps}) > 1:
            raise ValueError(f"{self.name} differ in size")
        united, times = np.maximum.reduce(maps), sum((one > 0).astype(int) for one in maps)
        if len(np.unique([united, *maps])) > 2:
            raise ValueError(f"{self.name} hold several labels, so they cannot be put together; keep one of them")
        if (times > 1).sum() > MOST_OVERLAP * (times > 0).sum():
            raise ValueError(f"{self.name} show the same, as masks of two people do; keep one of them")
        return united


@dataclass(frozen=True)
class EmptyMap(DrawnLabelMap):
    """The label map of an image that shows nothing but background, of the label `value`."""

    name: str
    path: Path
    value: int

    def draw(self) -> np.ndarray:
        return np.full(picture_size(self.path), self.value, dtype=np.int64)


def find_overlap(source: Source, found: dict[str, str]) -> tuple[str, str] | None:
    """Two labels of an image whose masks cover mostly the same; `SampleError` if one is no mask."""
    masks = {label: read_mask(source.root / path) for label, path in found.items()}
    for (one, first), (other, second) in combinations(masks.items(), 2):
        if first.shape == second.shape and (first & second).sum() > MOST_OVERLAP * max((first | second).sum(), 1):
            return one, other
    return None


def read_mask(path: Path) -> np.ndarray:
    """(H, W) bool of a black and white picture; `SampleError` if it holds more values than 0 and another one."""
    values = Sample(None, path, path.name).read_label_map()
    if len(set(np.unique(values).tolist()) - {0}) > 1:
        raise SampleError(
            f"{path.name} is beside masks of one label each, and holds {len(np.unique(values))} values; {KEEP}"
        )
    return values > 0


def by_number(label: str) -> tuple[bool, int, str]:
    """What folders of labels are sorted by: numbers first, 2 before 10, then words."""
    return not label.isdecimal(), int(label) if label.isdecimal() else 0, label


def read_shapes(root: Path, picture: str, found: dict[str, str]) -> tuple[tuple[int, int], list[Shape]]:
    """Size and masks of an image, smaller ones later, else in the order of the labels.

    Raises:
        ValueError: a mask is of another size or none.
    """
    size, shapes = picture_size(root / picture), []
    for label in sorted(found, key=by_number):
        path = found[label]
        mask = read_mask(root / path)
        if mask.shape != size:
            raise ValueError(f"{path} is {mask.shape[0]} x {mask.shape[1]}, and the image {size[0]} x {size[1]}")
        shapes.append(Shape(label, mask=mask))
    return size, sorted(shapes, key=lambda shape: -shape.mask.sum())  # a cup lies on its disc


__all__ = ["EmptyMap", "UnitedMap", "find_parts", "labels_of_folders", "labels_of_names"]
