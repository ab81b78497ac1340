# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Which label map is an image's, by what their paths tell."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from .splits import find_kind
from .words import IMAGE_AFFIX, MASK_AFFIX, strip_affix

LEADING_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")
# folders of images that show no defect: label maps of other folders are not theirs, though numbered from 0 as they are
WITHOUT_DEFECT = re.compile(r"(?i)good|ok|normal|healthy|(no|non|without)[-_ ]?defect(s|ive)?|defect[-_ ]?free")


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

    @property
    def folder(self) -> str:
        """How a person can name the folder of an image: by its role, else as where it lies; "." is the top."""
        above = self.path.rpartition("/")[0].rpartition("/")[2] or "."
        return self.role_folder or (above if self.place == "." else self.place)

    def name_parts(self, skip: int, is_folded: bool) -> tuple[tuple[str, ...], str]:
        """`rest` without its first folders, and `stem`; if folded in small letters, and numbers without leading 0."""
        rest, stem = self.rest[skip:], self.stem
        return (tuple(map(str.lower, rest)), LEADING_ZEROS.sub("", stem.lower())) if is_folded else (rest, stem)


def look_up(pictures: list[Entry], masks: list[Entry]) -> tuple[dict[Entry, list[Entry]], list[str]]:
    """{image: label maps of its name}, and sentences on how they were found, where their paths are not the same.

    If no image has a label map in the same folders, those that all images lie in do not count, nor those that all
    label maps lie in: images/10k/a.jpg, labels/sem_seg/a.png; but for folders of images without defects. If that
    finds none either, capitals and leading zeros do not count.
    """
    own: dict[Entry, list[Entry]] = {picture: [] for picture in pictures}
    shared = [os.path.commonprefix([entry.rest for entry in of]) for of in (pictures, masks)]
    if any(WITHOUT_DEFECT.fullmatch(folder) for folder in shared[0]):
        shared[0] = ()
    common = tuple(map(len, shared))
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
        if pictures and masks and not any(own.values()):
            own = match_by_folder(pictures, masks, skip) or own
        if first := next((picture for picture, maps in own.items() if maps), None):
            if skip != (0, 0):
                notes.append(f"label maps lie in other folders than images, as {own[first][0].path} of {first.path}")
            return own, notes
    if pictures and masks and (found := match_by_stem(pictures, masks)):
        return found, [f"label maps lie in other folders than images, as {masks[0].path}"]
    return own, []


def match_by_common_affix(
    pictures: list[Entry], masks: list[Entry], skip: tuple[int, int]
) -> tuple[dict[Entry, list[Entry]], str] | None:
    """Label maps by their image, and what stands before or behind all of their names, as in `a_L`.

    What all names of images share may be left away too, as in `top_1_RGB` and `top_1_label_noBoundary`. None unless
    every image then has exactly one label map. `skip`: how many folders of images, and of label maps, do not count.
    """
    for of_masks in common_affixes(entry.stem for entry in masks):
        by_rest = defaultdict(list)
        for mask in masks:
            by_rest[mask.rest[skip[1] :], strip_ends(mask.stem, of_masks)].append(mask)
        for of_pictures in common_affixes(entry.stem for entry in pictures):
            keys = {picture: (picture.rest[skip[0] :], strip_ends(picture.stem, of_pictures)) for picture in pictures}
            if of_masks == of_pictures == ("", ""):
                continue
            if len(set(keys.values())) == len(keys) and all(len(by_rest.get(key, ())) == 1 for key in keys.values()):
                return {picture: by_rest[key] for picture, key in keys.items()}, "NAME".join(of_masks)
    return None


def match_by_folder(
    pictures: list[Entry], masks: list[Entry], skip: tuple[int, int]
) -> dict[Entry, list[Entry]] | None:
    """Label maps by their image, where each image has a folder of them: a/images/b.png and a/masks/*, or masks/b/*.

    None unless every image has label maps, and one has several.
    """
    by_rest, alone = defaultdict(list), Counter(picture.rest for picture in pictures)
    for mask in masks:
        by_rest[mask.rest[skip[1] :]].append(mask)
    own = {}
    for picture in pictures:
        rest = picture.rest[skip[0] :]
        own[picture] = by_rest.get((*rest, picture.stem)) or (
            by_rest.get(rest) if rest and alone[picture.rest] == 1 else None
        )
    return own if all(own.values()) and any(len(maps) > 1 for maps in own.values()) else None


def match_by_stem(pictures: list[Entry], masks: list[Entry]) -> dict[Entry, list[Entry]] | None:
    """Label maps by the names alone of images that lie in more folders than they: 1/camera/a.jpg, 1/labels/a.png.

    None unless no name is there twice, each image has a label map, and each label map an image.
    """
    own_pictures = {strip_affix(picture.stem, IMAGE_AFFIX): picture for picture in pictures}
    own_masks = {strip_affix(mask.stem, MASK_AFFIX): mask for mask in masks}
    if (
        not len(pictures) == len(masks) == len(own_pictures) == len(own_masks)
        or own_pictures.keys() != own_masks.keys()
    ):
        return None
    pairs = [(picture, own_masks[stem]) for stem, picture in own_pictures.items()]
    # a label map in a folder of its own may be of the label that this is called after
    return (
        {one: [mask] for one, mask in pairs} if all(set(mask.rest) <= set(one.rest) for one, mask in pairs) else None
    )


def ending_after(picture: Entry, mask: Entry) -> str:
    """What the name of a mask has behind that of its image; all of it, if it is called otherwise."""
    found = re.fullmatch(rf"{re.escape(picture.stem)}([-_. ].*)", mask.stem)
    return found[1] if found else mask.stem


def are_pieces(picture: Entry, masks: list[Entry]) -> bool:
    """Whether several masks of an image are numbered, or none is called after it, as those of single objects are."""
    stem, *stems = (entry.name_parts(0, True)[1] for entry in (picture, *masks))
    names = (stem, strip_affix(stem, IMAGE_AFFIX))
    bare = {re.sub(r"[-_. ]?\d+$", "", own) for own in stems}
    is_numbered = len(bare) == 1 and strip_affix(min(bare), MASK_AFFIX) in names and min(bare) not in names
    is_other = all(strip_affix(own, MASK_AFFIX) not in names for own in stems)
    return len(set(stems)) == len(stems) and (is_numbered or is_other)


def shared_words(own: dict[Entry, list[Entry]]) -> list[str]:
    """Words that names of masks of several images share, and not those of all masks, as of labels in a_m01_f3.png."""
    images, times = Counter(), Counter()
    for picture, masks in own.items():
        words = [set(re.findall(r"[^-_. ]*[^\W\d_][^-_. ]*", ending_after(picture, mask).lower())) for mask in masks]
        images.update(set().union(*words))
        times.update(word for found in words for word in found)
    total = sum(map(len, own.values()))
    return sorted(word for word, count in images.items() if count > 1 and times[word] < total)


def name_and_ending(stem: str) -> list[tuple[str, str]]:
    """The ways to part a name at a sign, the longest first: a_l_eye is a_l and eye, or a and l_eye."""
    return [(stem[: sign.start()], stem[sign.end() :]) for sign in reversed(list(re.finditer(r"[-_. ]+", stem)))]


def common_affixes(stems: Iterable[str]) -> list[tuple[str, str]]:
    """(before, behind) that all stems share up to a sign that parts words, or a digit: none, one, the other, both."""
    stems = list(stems)
    if len(stems) < 2:
        return [("", "")]
    before = re.match(r"(.*[-_. ])?", os.path.commonprefix(stems))[0]
    letters = {re.match(r"[^\W\d_]*(?=\d)|", stem[len(before) :])[0] for stem in stems}
    before += letters.pop() if len(letters) == 1 else ""  # image001, mask001
    behind = os.path.commonprefix([stem[len(before) :][::-1] for stem in stems])[::-1]
    is_letters = behind.isalpha() and all(stem[: -len(behind)][-1:].isdigit() for stem in stems)  # 0001m
    behind = behind if is_letters else re.search(r"([-_. ].*)?$", behind)[0]
    return list(dict.fromkeys([("", ""), ("", behind), (before, ""), (before, behind)]))


def strip_ends(stem: str, affix: tuple[str, str]) -> str:
    return stem.removeprefix(affix[0]).removesuffix(affix[1])


def propose_masks(picture: Entry, masks: list[Entry]) -> list[tuple[str, str]]:
    """(folder of images, folder of label maps) of each label map of an image's name, if these lie in several.

    Of several kinds in one folder, as a_bin.png and a_ids.png, the second is a pattern of their names.
    """
    own = {
        mask: ending_after(picture, mask)
        for mask in masks
        if picture.stem in (mask.stem, strip_affix(mask.stem, MASK_AFFIX)) or ending_after(picture, mask) != mask.stem
    }
    places = dict.fromkeys(mask.role_folder for mask in own if mask.role_folder)
    endings = {ending: mask for mask, ending in own.items() if ending != mask.stem}
    if len(places) == 1 and len(endings) > 1:
        kinds = [f"*{ending}.{mask.path.rpartition('.')[2]}" for ending, mask in endings.items()]
        places = dict.fromkeys(f"{place}/{kind}" for place in places for kind in kinds)
    elif len(places) == 1:
        places = dict.fromkeys(_place_of_role(mask) for mask in own if mask.role_folder)
    is_each = any(set(place.split("/")) & set(picture.path.split("/")[:-1]) for place in places)  # a/image, a/label
    return [(picture.folder, place) for place in places] if len(places) > 1 and not is_each else []


def _place_of_role(mask: Entry) -> str:
    """The folder of a label map; of what lies above and below that of its split, that which tells the role."""
    folders = mask.path.split("/")[:-1]
    if mask.split in folders:
        above, below = folders[: folders.index(mask.split)], folders[folders.index(mask.split) + 1 :]
        folders = above if mask.role_folder in above else below
    return "/".join(folders)


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


__all__ = [
    "LEADING_ZEROS",
    "Entry",
    "are_pieces",
    "by_split_of_masks",
    "ending_after",
    "look_up",
    "masks_of_split",
    "name_and_ending",
    "propose_masks",
    "shared_words",
]
