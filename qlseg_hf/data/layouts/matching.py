# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Which label map is an image's, by what their paths tell."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import reduce
from itertools import product
from operator import and_
from unicodedata import normalize

from ...utils.picture_files import stem_of
from .splits import find_kind
from .words import IMAGE_AFFIX, MASK_AFFIX, strip_affix

TOKEN = re.compile(r"[^-_. /]+")
LEADING_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")
# folders of images that show no defect and have no label maps; those of other folders are numbered from 0 too
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

    def name_any_split(self, way: str) -> str:
        """A way to name images or label maps for all splits: {split}_masks for train_masks."""
        if way == self.split or (self.split and self.split in self.role_folder):
            return way.replace(self.split, "{split}", 1)
        return way

    def name_parts(self, left_out: frozenset[str], is_folded: bool) -> tuple[tuple[str, ...], str]:
        """`rest` without some folders, and `stem`; if folded in small letters, and numbers without leading 0."""
        rest, stem = tuple(name for name in self.rest if name not in left_out), self.stem
        return (tuple(map(str.lower, rest)), LEADING_ZEROS.sub("", stem.lower())) if is_folded else (rest, stem)


NONE: frozenset[str] = frozenset()  # of the folders of images, and of those of label maps, that do not count


def look_up(pictures: list[Entry], masks: list[Entry]) -> tuple[dict[Entry, list[Entry]], list[str]]:
    """{image: label maps of its name}, and sentences on how they were found, where their paths are not the same.

    If no image has a label map in the same folders, those that all images lie in do not count, nor those that all
    label maps lie in: images/10k/a.jpg, labels/sem_seg/a.png. If that finds none either, capitals and leading zeros
    do not count, and then words that all names share. Images without defects have none.
    """
    own: dict[Entry, list[Entry]] = {picture: [] for picture in pictures}
    bare = without_defect(pictures, masks)
    pictures = [picture for picture in pictures if picture not in bare]
    if not pictures or not masks:
        return own, []
    shared = tuple(frozenset.intersection(*(frozenset(entry.rest) for entry in of)) for of in (pictures, masks))
    skips = dict.fromkeys([(NONE, NONE), shared])
    for is_folded, skip in product((False, True), skips):
        by_key, by_core = defaultdict(list), defaultdict(list)
        for mask in masks:
            rest, stem = mask.name_parts(skip[1], is_folded)
            by_key[rest, stem].append(mask)
            by_core[rest, strip_affix(stem, MASK_AFFIX)].append(mask)
        for picture in pictures:
            rest, stem = picture.name_parts(skip[0], is_folded)
            own[picture] = by_key.get((rest, stem)) or by_core.get((rest, strip_affix(stem, IMAGE_AFFIX))) or []
        if not any(own.values()):
            own |= match_by_folder(pictures, masks, skip) or {}
        if first := next((picture for picture, maps in own.items() if maps), None):
            return own, [_tell_names(first, own[first][0])] if skip != (NONE, NONE) else []
    if found := match_by_number(pictures, masks):
        return own | found, []
    found = match_by_words(pictures, masks) or match_by_stem(pictures, masks)
    return (own | found, [_tell_names(pictures[0], found[pictures[0]][0])]) if found else (own, [])


def without_defect(pictures: list[Entry], masks: list[Entry]) -> set[Entry]:
    """Images in folders called `good` and the like beside others, if label maps are in those of the others alone."""
    bare = {entry for entry in pictures if any(map(WITHOUT_DEFECT.fullmatch, entry.rest))}
    folders = {entry.rest[-1:] for entry in pictures if entry not in bare}
    places = {mask.rest[-1:] for mask in masks}
    is_beside = () not in places and not any(WITHOUT_DEFECT.fullmatch(place[-1]) for place in places)
    return bare if is_beside and (not folders or places <= folders) else set()


def _tell_names(picture: Entry, mask: Entry) -> str:
    return f"label maps have other folders or names than images, as {mask.path} of {picture.path}"


def match_by_words(pictures: list[Entry], masks: list[Entry]) -> dict[Entry, list[Entry]] | None:
    """Label maps by their image, where paths differ in words that all of one side share and the other lacks.

    As top_1_RGB and top_1_label_noBoundary, 0807/camera_01 and 0807/label_01, Sea Bass/1 and Sea Bass GT/1. If there
    are several label maps for an image, as um_road_01 and um_lane_01, those of one word in their names count if they
    are the only ones that are there for each image. None unless every image then has exactly one label map.
    """
    own = _pair_by_words(pictures, masks)
    counts = Counter(word for mask in masks for word in set(whole_words(mask.stem))) if own is None else {}
    kinds = {}
    for word in [word for word, count in counts.items() if len(pictures) <= count < len(masks)]:
        found = _pair_by_words(pictures, [mask for mask in masks if word in whole_words(mask.stem)])
        if found is not None:
            kinds[tuple(mask for maps in found.values() for mask in maps)] = found
    return next(iter(kinds.values())) if len(kinds) == 1 else own


def _pair_by_words(pictures: list[Entry], masks: list[Entry]) -> dict[Entry, list[Entry]] | None:
    tokens = [[set(TOKEN.findall(entry.path)) for entry in of] for of in (pictures, masks)]
    common = [set.intersection(*sets) if len(sets) > 1 else set() for sets in tokens]
    dropped = [common[side].difference(*tokens[1 - side]) for side in (0, 1)]  # as leftImg8bit, whose 8 is no number
    words = [{e: _words_of_path(e.path, dropped[side]) for e in of} for side, of in enumerate((pictures, masks))]
    shared = [reduce(and_, map(Counter, own.values())) if len(own) > 1 else Counter() for own in words]
    most: tuple[Counter, Counter] = Counter(), Counter()
    for counts, of in zip(most, words):
        for own in of.values():
            for word, count in Counter(own).items():
                counts[word] = max(counts[word], count)
    for kept in (most, shared):  # words of the other side, or those alone that all of it share: 1 of 01_manual1
        by_words = defaultdict(list)
        others = [Counter({w: n - kept[1 - side][w] for w, n in shared[side].items()}) for side in (0, 1)]
        for mask, own in words[1].items():
            by_words[_without(own, others[1])].append(mask)
        keys = {entry: _without(own, others[0]) for entry, own in words[0].items()}
        if len(set(keys.values())) == len(keys) and all(len(by_words.get(key, ())) == 1 for key in keys.values()):
            return {picture: by_words[key] for picture, key in keys.items()}
    return None


def _words_of_path(path: str, dropped: set[str]) -> list[str]:
    """Words and numbers, the latter without leading zeros, in small letters; 7/img/7_a.png has one 7.

    Of what signs part, those `dropped` do not count.
    """
    path = TOKEN.sub(lambda token: "" if token[0] in dropped else token[0], stem_of(path))
    *folders, stem = (
        re.findall(r"[^\W\d_]+|\d+", LEADING_ZEROS.sub("", name.lower())) for name in normalize("NFC", path).split("/")
    )
    before = next((words for words in folders if words and words == stem[: len(words)]), [])
    return [*sum(folders, []), *stem[len(before) :]]


def _without(words: list[str], others: Counter) -> tuple[str, ...]:
    left = words[::-1]
    for word in others.elements():  # the last of several, because names stand behind their folders
        left.remove(word)
    return tuple(left[::-1])


def whole_words(stem: str) -> list[str]:
    """What signs part in a name, and holds a letter: um and road of um_road_01."""
    return re.findall(r"[^\W_]*[^\W\d_][^\W_]*", stem)


def match_by_folder(
    pictures: list[Entry], masks: list[Entry], skip: tuple[frozenset[str], frozenset[str]]
) -> dict[Entry, list[Entry]] | None:
    """Label maps by their image, where each image has a folder of them: a/images/b.png and a/masks/*, or masks/b/*.

    None unless every image has label maps, and one has several.
    """
    by_rest, alone = defaultdict(list), Counter(picture.rest for picture in pictures)
    for mask in masks:
        by_rest[mask.name_parts(skip[1], False)[0]].append(mask)
    own = {}
    for picture in pictures:
        rest = picture.name_parts(skip[0], False)[0]
        own[picture] = by_rest.get((*rest, picture.stem)) or (
            by_rest.get(rest) if rest and alone[picture.rest] == 1 else None
        )
    return own if all(own.values()) and any(len(maps) > 1 for maps in own.values()) else None


def match_by_number(pictures: list[Entry], masks: list[Entry]) -> dict[Entry, list[Entry]] | None:
    """Masks of single objects by their image, which all are called after with a number: a.jpg, a_0.png, a_1.png.

    None unless each image has some and each mask an image, and one has several; and the numbers of an image have no
    gaps, or no two masks have the same, because labels have numbers too.
    """
    by_name = {entry.name_parts(NONE, True): entry for entry in pictures}
    own: dict[Entry | None, list[Entry]] = defaultdict(list)
    for mask in masks:
        rest, stem = mask.name_parts(NONE, True)
        own[by_name.get((rest, re.sub(r"[-_. ]\d+$", "", stem)))].append(mask)
    numbers = [sorted(int(re.findall(r"\d+", f"0{mask.stem}")[-1]) for mask in maps) for maps in own.values()]
    is_counted = len({found[0] for found in numbers}) == 1 and all(
        found[-1] - found[0] < len(found) for found in numbers
    )
    is_counted |= len({number for found in numbers for number in found}) == len(masks)
    return {**own} if is_counted and None not in own and len(own) == len(pictures) < len(masks) else None


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
    stem, *stems = (entry.name_parts(NONE, True)[1] for entry in (picture, *masks))
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
    "NONE",
    "Entry",
    "are_pieces",
    "by_split_of_masks",
    "ending_after",
    "look_up",
    "masks_of_split",
    "name_and_ending",
    "shared_words",
    "without_defect",
    "whole_words",
]
