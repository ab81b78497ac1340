# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Which folders or files may be meant, where names do not tell images from label maps."""

import glob
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations, product

from ...utils.picture_files import NUM_NAMED, base_of, stem_of, suffix_of
from .files import LOSSY_SUFFIXES
from .matching import Entry, name_and_ending, whole_words
from .roles import SUFFIXES
from .splits import SPLIT_WORDS
from .words import IMAGE, MASK, guess_roles, guess_splits, mask_word, read_folder_name

MOST_WAYS, LEAST_SHARE = 10, 1 / 8  # ways to name images, or label maps, that are tried; and how many each must name
MOST_PLACES = 200  # folders that are compared to suggest two


def propose(pictures: list[Entry], masks: list[Entry], wanted: set[Entry] | None = None) -> list[tuple[str, str]]:
    """(images, label maps) that may be meant, each a folder, a pattern or folder/pattern; likely ones first.

    At most `MOST_WAYS` by `MOST_WAYS`, which the caller tries. `wanted`: the images, if no others are to be named.
    """
    images, maps = _ways_to_name(pictures, len(pictures)), _ways_to_name(masks, len(pictures))
    images = {way: chosen for way, chosen in images.items() if wanted is None or wanted.issuperset(chosen)}
    maps = {way: own for way, own in maps.items() if not any(f"/{way}/" in f"/{e.path}" for e in pictures)}
    is_photo = {way: suffix_of(chosen[0].path) in LOSSY_SUFFIXES for way, chosen in images.items()}
    is_label = {way: bool(mask_word(way.rpartition("*")[2])) for way in maps}
    ways = product(sorted(images, key=is_photo.get, reverse=True), sorted(maps, key=is_label.get, reverse=True))
    return [(image, mask) for image, mask in ways if len(images[image]) <= len(maps[mask])]


def _ways_to_name(entries: list[Entry], count: int) -> dict[str, list[Entry]]:
    """{folder or pattern: entries that it names}, no two that name the same; those of about `count` first."""
    by_way: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        for way in {entry.folder, *_folders_above(entry), *_patterns_of(entry)}:
            by_way[entry.name_any_split(way)].append(entry)
    chosen: dict[frozenset[str], str] = {}
    for way, found in by_way.items():
        if len(found) >= LEAST_SHARE * len(entries):
            own = frozenset(entry.path for entry in found)
            chosen[own] = min(chosen.get(own, way), way, key=lambda way: _rank(way, found[0]))
    ways = sorted(chosen.values(), key=lambda way: (abs(len(by_way[way]) - count), way))[:MOST_WAYS]
    return {way: by_way[way] for way in ways}


def _rank(way: str, entry: Entry) -> tuple[bool, bool, bool, int]:
    """What is preferred of ways to name the same: folders, one that tells a role, short ones."""
    return "*" in way, "*." in way, not way.endswith(entry.name_any_split(entry.role_folder)), len(way)


def _folders_above(entry: Entry) -> Iterator[str]:
    """Folders on a path, and several in a row, between those that tell a split."""
    folders = entry.path.split("/")[:-1]
    for start in range(len(folders)):
        for end in range(start + 1, len(folders) + 1):
            if folders[end - 1].lower() in SPLIT_WORDS:
                break
            yield "/".join(folders[start:end])


def _patterns_of(entry: Entry) -> Iterator[str]:
    """Patterns of what a name ends with, and of words in it."""
    place, ending = ("" if entry.folder == "." else f"{entry.folder}/"), base_of(entry.path)[len(entry.stem) :]
    for name, last in name_and_ending(entry.stem):
        if last.isdecimal():  # of objects, or of images
            continue
        yield f"{place}*{glob.escape(entry.stem[len(name) : -len(last) or None] + last)}{ending}"
    for word in whole_words(entry.stem):
        before, _, behind = entry.stem.partition(word)
        if behind:
            yield f"{place}{'*' + before[-1:] if before else ''}{word}{behind[0]}*{ending}"


def suggest_folders(files: Iterable[str]) -> list[tuple[str, str]]:
    """(folder of images, folder of label maps) below which pictures have the same names; [] if none is likely.

    Images are photographs, or in a folder that is called as one of images, or beside one of label maps.
    """
    below: dict[str, Counter] = defaultdict(Counter)  # names of pictures, and how many have each
    photographs, total = Counter(), 0
    nested = set()  # (a folder, one below it)
    for path in files:
        if suffix_of(path) in (*SUFFIXES, *LOSSY_SUFFIXES):
            folders = [name for name in path.split("/")[:-1] if not read_folder_name(name)[1]]
            total += 1
            nested.add((*folders[:1], *folders[-1:]))
            for place in {*folders[:1], *folders[-1:]}:
                below[place][stem_of(base_of(path))] += 1
                photographs[place] += suffix_of(path) in LOSSY_SUFFIXES
    places = [place for place in sorted(below) if not any(guess_splits([place, other]) for other in below)]
    called = {place for place in places if guess_roles([place], MASK)}
    of_images = {place for place in places if read_folder_name(place)[0] == IMAGE}
    counts: dict[tuple[str, str], int] = {}
    for pair in combinations(places[:MOST_PLACES], 2):
        one, other = sorted(pair, key=lambda place: (place in called, place not in of_images, -photographs[place]))
        if nested & {(one, other), (other, one)}:
            continue
        shared = below[one].keys() & below[other].keys()
        count = sum(below[one][stem] + below[other][stem] for stem in shared)
        is_told = photographs[one] == below[one].total() or (other in called and one not in called)
        is_told |= one in of_images and other not in of_images
        if is_told and not photographs[other] and len(shared) * 4 > len(below[one]) and count * 8 > total:
            counts[one, other] = count
    counts = {pair: count for pair, count in counts.items() if pair[1] in called} or counts
    return [pair for pair, count in counts.items() if count == max(counts.values())][:NUM_NAMED]


__all__ = ["propose", "suggest_folders"]
