# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A folder of black and white masks for each label: masks/car/a.png, masks/road/a.png."""

import os
from collections import defaultdict
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np

from ..samples import FolderSamples, Sample, SampleError
from .files import is_picture, listed
from .layout import Found, Source
from .matching import Entry
from .polygons import ReadMap, Shape, ignored_label, order_names, picture_size
from .splits import ALL, read_split_lists
from .words import MASK_AFFIX, strip_affix

MOST_PICTURES, MOST_OVERLAP = 20, 0.5  # that are looked at, and the IoU that masks of two labels may have
KEEP = "say which folder counts, as in layout: images:masks/car"


def find_parts(source: Source, pictures: list[Entry], masks: list[Entry]) -> Found | None:
    """What images are whose label maps lie in folders of labels; None if they do not.

    Raises:
        ValueError: masks of two folders show the same, as those of two people do.
    """
    pictures = [entry for entry in pictures if is_picture(entry.path)]
    common = tuple(len(os.path.commonprefix([entry.rest for entry in of])) for of in (pictures, masks))
    if not all(len(mask.rest) > common[1] for mask in masks):
        return None
    by_name: dict[tuple, dict[str, str]] = defaultdict(dict)
    for mask in masks:
        label, *rest = mask.rest[common[1] :]
        for stem in (mask.stem, strip_affix(mask.stem, MASK_AFFIX)):
            by_name[mask.split, tuple(rest), stem][label] = mask.path
    own = {entry: by_name.get((entry.split, entry.rest[common[0] :], entry.stem), {}) for entry in pictures}
    several = [entry for entry, found in own.items() if len(found) > 1][:MOST_PICTURES]
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
    names = order_names(sorted({label for found in own.values() for label in found}))
    kept = {entry: found for entry, found in own.items() if found}
    maps = {
        entry.path: ReadMap(
            listed(found.values()), frozenset(found), names, partial(read_shapes, source.root, entry.path, found)
        )
        for entry, found in kept.items()
    }
    left = [entry.path for entry in pictures if entry not in kept]
    notes = [f"{len(left)} images have no mask at all, and are left out: {listed(left)}"] if left else []
    in_split: dict[str, list[str]] = {split: list(own) for split, own in read_split_lists(source, list(maps)).items()}
    for entry in () if in_split else kept:
        in_split.setdefault(entry.split or ALL, []).append(entry.path)
    openers = {
        split: partial(FolderSamples, source.root, [(path, maps[path]) for path in paths], split, None, notes)
        for split, paths in in_split.items()
    }
    summary = f"a folder of masks for each label ({listed(names[1:])}), later ones by the alphabet on top"
    return Found("folders", summary, openers, names, "the folders of masks", ignored_label(names), notes=notes)


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
            f"{path.name} lies in a folder of masks of one label, and holds {len(np.unique(values))} values; {KEEP}"
        )
    return values > 0


def read_shapes(root: Path, picture: str, found: dict[str, str]) -> tuple[tuple[int, int], list[Shape]]:
    """Size and masks of an image, labels by the alphabet; ValueError if a mask is of another size or none."""
    size, shapes = picture_size(root / picture), []
    for label, path in sorted(found.items()):
        mask = read_mask(root / path)
        if mask.shape != size:
            raise ValueError(f"{path} is {mask.shape[0]} x {mask.shape[1]}, and the image {size[0]} x {size[1]}")
        shapes.append(Shape(label, mask=mask))
    return size, shapes


__all__ = ["find_parts"]
