# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Whether each file of a data set is an image or a label map, and of which split, read word by word from its path."""

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from unicodedata import normalize

from ...utils.picture_files import PICTURE_SUFFIXES, base_of, is_picture, stem_of, suffix_of
from .files import LOSSY_SUFFIXES, MASK_SUFFIXES
from .layout import Source
from .matching import Entry, look_up, masks_of_split
from .splits import SPLIT_WORDS, UNION_SPLITS
from .words import (
    IMAGE,
    MASK,
    drop_shared,
    guess_roles,
    guess_split_folders,
    guess_splits,
    named_folder,
    read_folder_name,
)

TRAIN_IDS = "_labelTrainIds"
SUFFIXES = {*PICTURE_SUFFIXES, *MASK_SUFFIXES}
TOP = "."  # what the folder of all is called
NESTED = "\0"  # in place of "/" in a folder of several names that counts as one


def read_paths(source: Source, guessed: Sequence[str] = (), has_splits: bool = True) -> list[Entry]:
    """An `Entry` for each file of a data set; of the roles `guessed` also by other words of the folders' names.

    Without `has_splits` folders called `train` are like others.
    """
    roles = None
    if source.roles is not None:  # folders with several names on their path become one
        roles = tuple(role.replace("/", NESTED) for role in source.roles)
    split_paths = []
    for path in source.files:
        folder = f"/{path.rpartition('/')[0]}/"
        for role in source.roles or ():
            if found := re.search(f"(?<=/){named_folder(role).pattern}(?=/)", folder, re.IGNORECASE):
                folder = folder[: found.start()] + found[0].replace("/", NESTED) + folder[found.end() :]
        split_paths.append(folder.strip("/").split("/") if folder.strip("/") else [])
    words = {name: read_folder_name(name, roles) for folders in split_paths for name in folders}
    own_masks = [name for name, (own, _) in words.items() if roles is not None and own == MASK]
    for role in guessed:
        names = [name for name, (own, split) in words.items() if not own and not split]
        found = guess_roles(names, role)
        words |= {name: (role, None) for name in found}
        own_masks = [name for name, (own, _) in words.items() if own == MASK] if role == MASK else own_masks
    with_images = [folders for folders in split_paths if any(words[name][0] == IMAGE for name in folders)]
    if roles is None and all(any(name in own_masks for name in folders) for folders in with_images):
        own_masks = []  # semantic_drone_dataset/original_images
    told = {name: split for name, (_, split) in words.items() if split and has_splits}
    if has_splits:
        in_pictures = [folders for path, folders in zip(source.files, split_paths) if suffix_of(path) in SUFFIXES]
        told = drop_shared(told, in_pictures) or guess_split_folders(in_pictures)
    words = {name: (role, told.get(name)) for name, (role, _) in words.items()}
    if told:
        bare = [name for name, (own, split) in words.items() if own in guessed and not split]
        words |= {name: (words[name][0], split) for name, split in guess_splits(bare).items()}
    # the last such name counts, as in Images/ann_dir, and others say nothing; but label maps that a person has named,
    # or that are guessed, as Semantic_masks/images
    places = [
        max(
            (i for i, name in enumerate(folders) if words[name][0]),
            key=lambda i: (folders[i] in own_masks, i),
            default=None,
        )
        for folders in split_paths
    ]
    is_below = any(  # whether the folders in one of images are splits, whatever their names
        at is not None and words[folders[at]][0] == IMAGE and len(folders) > at + 1 and words[folders[at + 1]][1]
        for folders, at in zip(split_paths, places)
    )
    entries, in_masks = [], []  # Instance_masks/images beside images and Semantic_masks, which a person named
    above = {name for folders in split_paths for name in folders if any(own in folders for own in own_masks)}
    names = words.keys() - above if roles is not None else ()
    other_masks = {name for name in names if read_folder_name(name)[0] == MASK or guess_roles([name], MASK)}
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
        if role == IMAGE and any(name in other_masks for name in folders):
            in_masks.append(len(entries))
        entries.append(Entry(path, role, folder, split, place, rest, normalize("NFC", stem_of(base_of(path)))))
    if any(e.role == IMAGE and number not in in_masks for number, e in enumerate(entries)):
        entries = [replace(e, role=None) if number in in_masks else e for number, e in enumerate(entries)]
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


def name_roles(source: Source, images: str, masks: str) -> Source:
    """The same data set, of which a person named images and label maps: each a folder, a pattern or folder/pattern."""
    named, parted = copy.copy(source), []
    for part in (images, masks):
        folder, _, last = part.rpartition("/")
        parted.append((folder, last) if "*" in last else (part, ""))
    named.roles, named.patterns = zip(*parted)
    return named


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
    if {entry.split for entry in parts[0]} > {"valid"} == {e.split for e in parts[0] if e.split in SPLIT_WORDS}:
        return sort_roles(read_paths(source, missing, has_splits=False))  # valid/ beside empty/
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
        photos = [entry for entry in pictures if suffix_of(entry.path) in LOSSY_SUFFIXES]
        stems = {(entry.split, entry.stem) for entry in photos}
        if len(masks) < len(pictures) and all((entry.split, entry.stem) in stems for entry in pictures):
            pictures, loose = photos, [entry for entry in pictures if suffix_of(entry.path) not in LOSSY_SUFFIXES]
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


__all__ = ["TRAIN_IDS", "find_roles", "name_roles", "pairs_up"]
