# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Which label map is an image's, by what their paths tell."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from .splits import find_kind
from .words import IMAGE_AFFIX, MASK_AFFIX, strip_affix


@dataclass(frozen=True)
class Entry:
    """A file and what its path says. `place`: the folder that `rest` of the folders and `stem` are relative to."""

    path: str
    role: str | None
    role_folder: str
    split: str | None
    place: str
    rest: tuple[str, ...]
    stem: str

    @property
    def name(self) -> str:
        """The path below `place`."""
        return self.path if self.place == "." else self.path[len(self.place) + 1 :]

    def name_parts(self, skip: int, is_folded: bool) -> tuple[tuple[str, ...], str]:
        """`rest` without its first folders, and `stem`; in small letters if folded."""
        rest = self.rest[skip:]
        return (tuple(map(str.lower, rest)), self.stem.lower()) if is_folded else (rest, self.stem)


def look_up(pictures: list[Entry], masks: list[Entry]) -> tuple[dict[Entry, list[Entry]], list[str]]:
    """{image: label maps of its name}, and sentences on how they were found, where their paths are not the same.

    If no image has a label map in the same folders, those that all images lie in do not count, nor those that all
    label maps lie in: images/10k/a.jpg, labels/sem_seg/a.png. If that finds none either, capitals do not count.
    """
    own: dict[Entry, list[Entry]] = {picture: [] for picture in pictures}
    common = tuple(len(os.path.commonprefix([entry.rest for entry in of])) for of in (pictures, masks))
    for is_folded, skip in product((False, True), dict.fromkeys([(0, 0), common])):
        by_key, by_core = defaultdict(list), defaultdict(list)
        for mask in masks:
            rest, stem = mask.name_parts(skip[1], is_folded)
            by_key[rest, stem].append(mask)
            by_core[rest, strip_affix(stem, MASK_AFFIX)].append(mask)
        for picture in pictures:
            rest, stem = picture.name_parts(skip[0], is_folded)
            own[picture] = by_key.get((rest, stem)) or by_core.get((rest, strip_affix(stem, IMAGE_AFFIX))) or []
        notes = []
        if pictures and masks and not any(own.values()) and (found := match_by_common_affix(pictures, masks, skip)):
            own, affix = found
            notes.append(f"label maps are called {affix}, with the NAME of their image")
        if first := next((picture for picture, maps in own.items() if maps), None):
            if skip != (0, 0):
                notes.append(f"label maps lie in other folders than images, as {own[first][0].path} of {first.path}")
            return own, notes
    return own, []


def match_by_common_affix(
    pictures: list[Entry], masks: list[Entry], skip: tuple[int, int]
) -> tuple[dict[Entry, list[Entry]], str] | None:
    """Label maps by their image, and what stands before or behind all of their names, as in `a_L`.

    What all names of images share may be left away too, as in `top_1_RGB` and `top_1_label_noBoundary`. None unless
    every image then has exactly one label map. `skip`: how many folders of images, and of label maps, do not count.
    """
    for of_masks in common_affixes(entry.stem for entry in masks)[1:]:
        by_rest = defaultdict(list)
        for mask in masks:
            by_rest[mask.rest[skip[1] :], strip_ends(mask.stem, of_masks)].append(mask)
        for of_pictures in common_affixes(entry.stem for entry in pictures):
            keys = {picture: (picture.rest[skip[0] :], strip_ends(picture.stem, of_pictures)) for picture in pictures}
            if len(set(keys.values())) == len(keys) and all(len(by_rest.get(key, ())) == 1 for key in keys.values()):
                return {picture: by_rest[key] for picture, key in keys.items()}, "NAME".join(of_masks)
    return None


def common_affixes(stems: Iterable[str]) -> list[tuple[str, str]]:
    """(before, behind) that all stems share up to a sign that parts words, or a digit: none, one, the other, both."""
    stems = list(stems)
    if len(stems) < 2:
        return [("", "")]
    before = re.match(r"(.*[-_. ])?", os.path.commonprefix(stems))[0]
    letters = {re.match(r"[^\W\d_]*(?=\d)|", stem[len(before) :])[0] for stem in stems}
    before += letters.pop() if len(letters) == 1 else ""  # image001, mask001
    behind = os.path.commonprefix([stem[len(before) :][::-1] for stem in stems])[::-1]
    behind = re.search(r"([-_. ].*)?$", behind)[0]
    return list(dict.fromkeys([("", ""), ("", behind), (before, ""), (before, behind)]))


def strip_ends(stem: str, affix: tuple[str, str]) -> str:
    return stem.removeprefix(affix[0]).removesuffix(affix[1])


def several_places(picture: Entry, masks: list[Entry]) -> list[tuple[str, str]]:
    """(folder of images, folder of label maps) of each label map of an image's name, if these lie in several."""
    found = {}
    for mask in masks:
        if picture.stem in (mask.stem, strip_affix(mask.stem, MASK_AFFIX)) and mask.role_folder:
            folders = mask.path.split("/")[:-1]
            if mask.split in folders:  # of what lies above and below it that which tells the role
                above, below = folders[: folders.index(mask.split)], folders[folders.index(mask.split) + 1 :]
                folders = above if mask.role_folder in above else below
            found["/".join(folders)] = None
    return [(picture.role_folder or picture.place, folder) for folder in found] if len(found) > 1 else []


def masks_of_split(split: str | None, masks: list[Entry]) -> list[Entry]:
    """Label maps of a split of images: in a folder of its name, else of a name that means the same, else in none."""
    if split is None:
        return masks
    for is_own in (lambda own: own.lower() == split.lower(), lambda own: find_kind(own) == find_kind(split)):
        if found := [mask for mask in masks if mask.split and is_own(mask.split)]:
            return found
    return [] if any(mask.split for mask in masks) else masks


def by_split_of_masks(pictures: list[Entry], masks: list[Entry]) -> dict[str | None, list[Entry]]:
    """Images, which tell no split, by that of their label map; None for those without one."""
    own: dict[Entry, str | None] = dict.fromkeys(pictures)
    for split in dict.fromkeys(mask.split for mask in masks):
        found, _ = look_up(pictures, [mask for mask in masks if mask.split == split])
        own |= {picture: split for picture, maps in found.items() if maps}
    return {split: [p for p in pictures if own[p] == split] for split in dict.fromkeys(own.values())}


__all__ = ["Entry", "by_split_of_masks", "look_up", "masks_of_split", "several_places"]
