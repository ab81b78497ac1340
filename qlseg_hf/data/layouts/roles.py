# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Whether each file of a data set is an image or a label map, and of which split, read word by word from its path."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from itertools import combinations
from unicodedata import normalize

from ...utils.picture_files import NUM_NAMED, PICTURE_SUFFIXES, base_of, is_picture, stem_of, suffix_of
from .files import LOSSY_SUFFIXES, MASK_SUFFIXES
from .layout import Source
from .matching import Entry, look_up, masks_of_split
from .splits import UNION_SPLITS
from .words import IMAGE, MASK, guess_roles, guess_splits, read_folder_name

TRAIN_IDS = "_labelTrainIds"
SUFFIXES = {*PICTURE_SUFFIXES, *MASK_SUFFIXES}
MOST_PLACES = 200  # folders that are compared to suggest two
TOP = "."  # what the folder of all is called
NESTED = "\0"  # in place of "/" in a folder of several names that counts as one


def read_paths(source: Source, guessed: Iterable[str] = (), has_splits: bool = True) -> list[Entry]:
    """An `Entry` for each file of a data set; of the roles `guessed` also by other words of the folders' names.

    Without `has_splits` folders called `train` are like others.
    """
    roles = None
    if source.roles is not None:  # folders with several names on their path become one
        roles = (source.roles[0].replace("/", NESTED), source.roles[1].replace("/", NESTED))
    split_paths = []
    for path in source.files:
        folder = path.rpartition("/")[0]
        for role in source.roles or ():
            folder = f"/{folder}/".replace(f"/{role}/", f"/{role.replace('/', NESTED)}/", 1).strip("/")
        split_paths.append(folder.split("/") if folder else [])
    words = {name: read_folder_name(name, roles) for folders in split_paths for name in folders}
    for role in guessed:
        names = [name for name, (own, split) in words.items() if not own and not split]
        words |= {name: (role, None) for name in guess_roles(names, role)}
    if not has_splits:
        words = {name: (role, None) for name, (role, _) in words.items()}
    elif not any(split for _, split in words.values()):
        for depth in range(max(map(len, split_paths), default=0)):  # those that are nearest to the top
            names = {folders[depth] for folders in split_paths if len(folders) > depth}
            if found := guess_splits(names):
                words |= {name: (words[name][0], split) for name, split in found.items()}
                break
    # the last such name counts, as in Images/ann_dir, and others say nothing; but label maps that a person has named
    places = [
        max(
            (i for i, name in enumerate(folders) if words[name][0]),
            key=lambda i: (roles is not None and words[folders[i]][0] == MASK, i),
            default=None,
        )
        for folders in split_paths
    ]
    is_below = any(  # whether the folders in one of images are splits, whatever their names
        at is not None and words[folders[at]][0] == IMAGE and len(folders) > at + 1 and words[folders[at + 1]][1]
        for folders, at in zip(split_paths, places)
    )
    entries = []
    for path, folders, at in zip(source.files, split_paths, places):
        role, split = words[folders[at]] if at is not None else (None, None)
        splits = [words[name][1] for name in folders]
        if split and split.lower() in UNION_SPLITS and any(own for own in splits if own != split):
            split = None  # stuffthingmaps_trainval2017/train2017
        split_at = at if split else _place_of_split(splits, at, is_below)
        split = split or (splits[split_at] or folders[split_at] if split_at is not None else None)
        used = {split_at, *(i for i, name in enumerate(folders) if words[name][0])}
        last = max((place for place in (at, split_at) if place is not None), default=-1)
        rest = tuple(normalize("NFC", name) for place, name in enumerate(folders) if place not in used)
        place = "/".join(folders[: last + 1]).replace(NESTED, "/") or "."
        folder = folders[at].replace(NESTED, "/") if at is not None else ""
        if any(source.patterns) or TOP in (source.roles or ()):
            role = _role_of_pattern(source, role, path)
        entries.append(Entry(path, role, folder, split, place, rest, normalize("NFC", stem_of(base_of(path)))))
    return entries


def _role_of_pattern(source: Source, role: str | None, path: str) -> str | None:
    """The role of a file by its name where a person gave patterns, and by its folder if they gave one too."""
    for own, folder, pattern in zip((MASK, IMAGE), source.roles[::-1], source.patterns[::-1]):
        is_in = role == own or not folder or (folder == TOP and "/" not in path)
        if is_in and fnmatch(base_of(path).lower(), pattern.lower() or "*"):
            return own
    return None


def _place_of_split(splits: list[str | None], at: int | None, is_below: bool) -> int | None:
    """Which folder on a path names the split: beside that of images at place `at`, else farther above or below."""
    count = len(splits)
    if at is None:
        return next((place for place in range(count) if splits[place]), None)
    if at > 0 and splits[at - 1]:
        return at - 1
    if is_below and count > at + 1:
        return next((place for place in range(at + 1, count) if splits[place]), at + 1)
    return next((place for place in (*range(at - 1, -1, -1), *range(at + 1, count)) if splits[place]), None)


def find_roles(source: Source) -> tuple[list[Entry], list[Entry], list[Entry], bool] | None:
    """What `sort_roles` makes of a data set: by whole names of folders, else by words in them."""
    missing: list[str] = []
    entries = read_paths(source)
    parts = sort_roles(entries)
    if source.roles is None and not (parts and any(pairs_up(parts))):
        missing = [
            role
            for role in (IMAGE, MASK)
            if not any(e.role == role and suffix_of(e.path) in SUFFIXES for e in entries)
        ]
        parts = sort_roles(read_paths(source, missing)) or parts
    if parts is None:
        return None
    splits = {entry.split for entry in parts[1]}
    if splits != {None} and not any(e.split for e in parts[0]) and (None in splits or len(splits) < 2):
        parts = sort_roles(read_paths(source, missing, has_splits=False)) or parts  # a label is called "train"
    return parts


def sort_roles(entries: list[Entry]) -> tuple[list[Entry], list[Entry], list[Entry], bool] | None:
    """Images, label maps, images of no folder, and whether images are in folders of no role, as CamVid's `train`."""
    masks = [e for e in entries if e.role == MASK and suffix_of(e.path) in (*MASK_SUFFIXES, *LOSSY_SUFFIXES)]
    pictures = [entry for entry in entries if entry.role == IMAGE]
    loose = [entry for entry in entries if entry.role is None and is_picture(entry.path)]
    is_camvid = not any(is_picture(entry.path) for entry in pictures)
    if is_camvid:  # train/ beside trainannot/, or images above the folder of label maps
        pictures, loose = loose, []
    if not masks or not pictures:
        return None
    if any(entry.stem.endswith(TRAIN_IDS) for entry in masks):  # COCO-Stuff's other maps hold other values
        masks = [entry for entry in masks if entry.stem.endswith(TRAIN_IDS)]
    return pictures, masks, loose, is_camvid


def pairs_up(parts: tuple[list[Entry], list[Entry], list[Entry], bool]) -> Iterator[bool]:
    """Of each split that has images and label maps, whether some have one name."""
    pictures = [entry for entry in parts[0] if is_picture(entry.path)]
    for split in dict.fromkeys(entry.split for entry in pictures):
        own = [entry for entry in pictures if entry.split == split]
        if masks := masks_of_split(split, parts[1]):
            yield any(look_up(own, masks)[0].values())


def suggest_folders(files: Iterable[str]) -> list[tuple[str, str]]:
    """(folder of images, folder of label maps) below which pictures have the same names; [] if none is likely.

    Images are photographs, or beside a folder that is called as one of label maps.
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
    counts: dict[tuple[str, str], int] = {}
    for pair in combinations(places[:MOST_PLACES], 2):
        one, other = sorted(pair, key=lambda place: (place in called, -photographs[place]))
        if (one, other) in nested:
            continue
        shared = below[one].keys() & below[other].keys()
        count = sum(below[one][stem] + below[other][stem] for stem in shared)
        is_told = photographs[one] == below[one].total() or (other in called and one not in called)
        if is_told and not photographs[other] and len(shared) * 4 > len(below[one]) and count * 8 > total:
            counts[one, other] = count
    counts = {pair: count for pair, count in counts.items() if pair[1] in called} or counts
    return [pair for pair, count in counts.items() if count == max(counts.values())][:NUM_NAMED]


__all__ = ["TRAIN_IDS", "find_roles", "pairs_up", "suggest_folders"]
