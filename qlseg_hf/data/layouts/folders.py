# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Folders of images beside folders of label maps, in every arrangement of splits; also suffixes within one folder.

The path of each file is read word by word: one folder's name says what it holds (`images`, `masks`, ...), one which
split it is of (`train`, `val`, ...), or one name says both (`trainannot`, `train_masks`). What is left of the
path, with the file's name without its ending, is the same for an image and its label map.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath

from ..samples import FolderSamples
from .files import (
    LOSSY_SUFFIXES,
    MASK_SUFFIXES,
    PICTURE_SUFFIXES,
    Locator,
    base_of,
    is_picture,
    listed,
    stem_of,
    suffix_of,
)
from .layout import Family, Found, Source
from .splits import ALL, read_split_lists
from .words import IMAGE, IMAGE_AFFIX, MASK, MASK_AFFIX, read_folder_name, strip_affix

TRAIN_IDS = "_labelTrainIds"
TEXT_SUFFIXES = (".json", ".xml", ".txt", ".csv", ".yaml", ".yml", ".md")  # which lie beside images of one name
NESTED = "\0"  # in place of "/" in a folder of several names that counts as one

TREES = {
    "ade20k": "images/{training,validation}/a.jpg  annotations/{training,validation}/a.png",
    "coco-stuff": "images/train2014/a.jpg  annotations/train2014/a_labelTrainIds.png",
    "camvid": "train/a.png  trainannot/a.png  val/b.png  valannot/b.png  (also train_labels, train_masks)",
    "folders": "images/a.jpg  masks/a.png  (or labels, annotations, gt; with {train,val}/ above or below, "
    "train.txt, or "
    "no split)",
}


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
    def key(self) -> tuple:
        return self.rest, self.stem


def read_paths(source: Source) -> list[Entry]:
    """An `Entry` for each file of a data set."""
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
    places = [next((i for i, name in enumerate(folders) if words[name][0]), None) for folders in split_paths]
    is_below = any(  # whether the folders in one of images are splits, whatever their names
        at is not None and len(folders) > at + 1 and words[folders[at + 1]][1]
        for folders, at in zip(split_paths, places)
    )
    entries = []
    for path, folders, at in zip(source.files, split_paths, places):
        role, split = words[folders[at]] if at is not None else (None, None)
        split_at = at if split else _place_of_split([words[name][1] for name in folders], at, is_below)
        split = split or (folders[split_at] if split_at is not None else None)
        used = {at, split_at}
        last = max((place for place in used if place is not None), default=-1)
        rest = tuple(name for place, name in enumerate(folders) if place not in used)
        place = "/".join(folders[: last + 1]).replace(NESTED, "/") or "."
        folder = folders[at].replace(NESTED, "/") if at is not None else ""
        entries.append(Entry(path, role, folder, split, place, rest, stem_of(base_of(path))))
    return entries


def _place_of_split(splits: list[str | None], at: int | None, is_below: bool) -> int | None:
    """Which folder on a path names the split: beside that of images at place `at`, else farther above or below."""
    count = len(splits)
    if at is None:
        return next((place for place in range(count) if splits[place]), None)
    if at > 0 and splits[at - 1]:
        return at - 1
    if is_below and count > at + 1:
        return at + 1
    return next((place for place in (*range(at - 1, -1, -1), *range(at + 1, count)) if splits[place]), None)


def find_folders(source: Source) -> Found | None:
    """Images in one folder and label maps in another."""
    entries = read_paths(source)
    masks = [
        entry for entry in entries if entry.role == MASK and suffix_of(entry.path) in (*MASK_SUFFIXES, *LOSSY_SUFFIXES)
    ]
    if not masks:
        return None
    pictures = [entry for entry in entries if entry.role == IMAGE]
    loose = [entry for entry in entries if entry.role is None and is_picture(entry.path)]
    notes = []
    is_camvid = not any(is_picture(entry.path) for entry in pictures)
    if is_camvid:  # train/ beside trainannot/, or images above the folder of label maps
        pictures, loose = loose, []
        if not pictures:
            return None
    if loose:
        paths = listed(entry.path for entry in loose)
        notes.append(f"{len(loose)} images lie in no folder of images, and are left out: {paths}")
    if any(entry.stem.endswith(TRAIN_IDS) for entry in masks):  # COCO-Stuff's other maps hold other values
        masks = [entry for entry in masks if entry.stem.endswith(TRAIN_IDS)]
    image_folders = sorted({entry.role_folder or entry.place for entry in pictures})
    mask_folders = sorted({entry.role_folder for entry in masks})
    summary = f"images in {listed(image_folders)}, label maps in {listed(mask_folders)}"
    if is_camvid and any(entry.split for entry in pictures):
        name = "camvid"
    elif any(entry.stem.endswith(TRAIN_IDS) for entry in masks):
        name = "coco-stuff"
    else:
        is_ade20k = image_folders == ["images"] and mask_folders == ["annotations"]
        is_ade20k &= any(entry.split and entry.place.endswith(f"images/{entry.split}") for entry in pictures)
        name = "ade20k" if is_ade20k else "folders"
    found = divide(source, name, summary, pictures, masks, _empty_splits(source, pictures))
    return replace(found, notes=[*found.notes, *notes])


def _empty_splits(source: Source, pictures: list[Entry]) -> list[str]:
    """Folders beside those of splits that hold nothing."""
    places = {e.place for e in pictures if e.split and e.place.endswith(f"/{e.split}")}
    above = {place.rpartition("/")[0] for place in places}
    inside = [PurePosixPath(folder) for folder in source.folders]
    holding = {path.rpartition("/")[0] for path in source.files}
    with_files = {
        parent.as_posix() for folder in holding for parent in (PurePosixPath(folder), *PurePosixPath(folder).parents)
    }
    return [
        folder.name for folder in inside if folder.parent.as_posix() in above and folder.as_posix() not in with_files
    ]


def divide(
    source: Source,
    name: str,
    summary: str,
    pictures: list[Entry],
    masks: list[Entry],
    empty: Iterable[str] = (),
) -> Found:
    """Put images and label maps into splits: those of folders, else those of lists, else one part."""
    notes: list[str] = []
    first = source.root / masks[0].path
    in_split = {split: [e for e in pictures if e.split == split] for split in dict.fromkeys(e.split for e in pictures)}
    if set(in_split) == {None}:
        listed_pictures = read_split_lists(source, [entry.path for entry in pictures if is_picture(entry.path)])
        if listed_pictures:
            wanted = {path for paths in listed_pictures.values() for path in paths}
            if left := [e.path for e in pictures if is_picture(e.path) and e.path not in wanted]:
                notes.append(f"{len(left)} images are in no list of a split: {listed(left)}")
            by_path = {entry.path: entry for entry in pictures}
            in_split = {split: [by_path[path] for path in paths] for split, paths in listed_pictures.items()}
            summary += f", splits by lists ({', '.join(in_split)})"
            openers = {
                split: partial(open_part, source, split, own, masks, notes, listed_pictures[split])
                for split, own in in_split.items()
            }
            return Found(name, summary, openers, notes=notes, first_mask=first)
        return Found(
            name,
            summary,
            {ALL: partial(open_part, source, ALL, pictures, masks, notes)},
            notes=notes,
            first_mask=first,
        )
    beside = [entry for entry in in_split.pop(None, []) if is_picture(entry.path)]
    with_splits = {entry.role_folder for own in in_split.values() for entry in own}
    elsewhere = [entry.path for entry in beside if entry.role_folder not in with_splits]
    if beside := [entry for entry in beside if entry.role_folder in with_splits]:
        places = listed(sorted({str(source.root / entry.place) for entry in beside}))
        notes.append(f"{len(beside)} pictures in {places} belong to no split: {listed(e.name for e in beside)}")
    others = [f"{len(elsewhere)} images lie in no folder of a split: {listed(elsewhere)}"] if elsewhere else []
    openers = {}
    for split, own in in_split.items():
        own_masks = [entry for entry in masks if (entry.split or "").lower() == split.lower()]
        openers[split] = partial(open_part, source, split, own, own_masks, notes)
        if not own_masks and len(in_split) > 1:
            del openers[split]
            notes.append(f"{len(own)} images of {split} have no label maps at all, so this is no split here")
    if not openers:
        openers = {split: partial(open_part, source, split, own, [], notes) for split, own in in_split.items()}
    for split in empty:
        openers.setdefault(split, partial(open_part, source, split, [], [], notes))
    return Found(name, summary, dict(sorted(openers.items())), notes=[*notes, *others], first_mask=first)


def open_part(
    source: Source,
    split: str,
    pictures: list[Entry],
    masks: list[Entry],
    notes: list[str],
    in_list: dict[str, str | None] | None = None,
) -> FolderSamples:
    """The samples of one split. `in_list`: what `read_split_lists` says of it.

    Raises:
        ValueError: there is no image, one without label map, two for one label map or the other way round, a file of
            an unread kind that has a label map, or label maps that are JPEG files.
    """
    pairs, own_notes = match(source, pictures, masks, in_list)
    if not pairs:
        raise ValueError(". ".join([f"split {split} of {source.root} holds no pictures", *own_notes, *notes]))
    missing = [picture for picture, mask in pairs if mask is None]
    if missing:
        first = missing[0]
        place = masks[0].place if masks else "the folder of label maps"
        expected = f"{place}/{stem_of(first.name)}{suffix_of(masks[0].path) if masks else '.png'}"
        raise ValueError(
            ". ".join(
                [
                    f"{len(missing)} of {len(pairs)} label maps are missing in {source.root}, the first is "
                    f"{expected} of "
                    f"picture {first.path}; add them, or take the pictures out"
                    + (
                        "; or name both folders, as in layout: photos:ground_truth"
                        if len(missing) == len(pairs)
                        else ""
                    ),
                    *own_notes,
                    *notes,
                ]
            )
        )
    if lossy := [mask.path for _, mask in pairs if suffix_of(mask.path) in LOSSY_SUFFIXES]:
        raise ValueError(
            f"{len(lossy)} label maps in {source.root} are JPEG or WebP, which change labels at every "
            "edge, or GIF, which renumbers them: "
            f"{listed(lossy)}; store them as PNG, from what they were made of"
        )
    return FolderSamples(
        source.root, [(picture.path, mask.path) for picture, mask in pairs], split, source.colors, [*own_notes, *notes]
    )


def match(
    source: Source, pictures: list[Entry], masks: list[Entry], in_list: dict[str, str | None] | None
) -> tuple[list[tuple[Entry, Entry | None]], list[str]]:
    """(image, label map or None), and sentences on files that belong to none."""
    by_key, by_core = defaultdict(list), defaultdict(list)
    for mask in masks:
        by_key[mask.key].append(mask)
        by_core[mask.rest, strip_affix(mask.stem, MASK_AFFIX)].append(mask)

    told = told_masks(source, masks, in_list or {})

    def masks_of(picture: Entry) -> list[Entry]:
        if picture.path in told:
            return [told[picture.path]]
        return by_key.get(picture.key) or by_core.get((picture.rest, strip_affix(picture.stem, IMAGE_AFFIX)), [])

    names = [entry for entry in pictures if is_picture(entry.path)]
    notes: list[str] = []
    if names and masks and not any(map(masks_of, names)) and (found_by := match_by_common_affix(names, masks)):
        by_key, affix = found_by
        notes.append(f"label maps are called {affix}, with the NAME of their image")
    others = [entry for entry in pictures if not is_picture(entry.path)]
    kinds = ", ".join(PICTURE_SUFFIXES)
    places = listed(sorted({str(source.root / entry.place) for entry in pictures}))
    mask_places = listed(sorted({str(source.root / entry.place) for entry in masks}))
    if unread := [e for e in others if masks_of(e) and suffix_of(e.path) not in TEXT_SUFFIXES]:
        raise ValueError(
            f"{len(unread)} of {len(names) + len(unread)} pictures in {places} are not of a kind that is "
            f"read ({kinds}): "
            f"{listed(e.name for e in unread)}; convert them, or take them and their label maps out"
        )
    found = {entry: masks_of(entry) for entry in names}
    folders = sorted({mask.role_folder for own in found.values() for mask in own})
    if len(folders) > 1:
        of = next(entry for entry, own in found.items() if own)
        raise ValueError(
            f"{source.root} has {len(folders)} folders of label maps, {' and '.join(folders)}, that belong to its "
            f"pictures; say which counts, as in layout: {of.role_folder or of.place}:{folders[0]}"
        )
    for entry, own in found.items():
        if len(own) > 1:
            raise ValueError(
                f"{entry.path} in {source.root} has {len(own)} label maps: {listed(m.path for m in own)}; "
                "keep the one "
                "that holds the labels of all of its pixels"
            )
    counts = Counter(own[0] for own in found.values() if own)
    if shared := {mask for mask, count in counts.items() if count > 1}:
        owners = [entry.name for entry, own in found.items() if own and own[0] in shared]
        raise ValueError(
            f"{len(owners)} pictures in {places} share {len(shared)} label maps: {listed(owners)}; keep "
            "one picture for "
            f"each name, and label maps in {mask_places} alone"
        )
    if others:
        notes.append(
            f"{len(others)} files in {places} are left out, because they are not of a kind that is read ({kinds}): "
            f"{listed(entry.name for entry in others)}"
        )
    if (left := [mask.name for mask in masks if mask not in counts]) and in_list is None:
        notes.append(
            f"{len(left)} files in {mask_places} are left out, because there is no picture of the same path: "
            f"{listed(left)}"
        )
    return [(entry, own[0] if own else None) for entry, own in found.items()], notes


def told_masks(source: Source, masks: list[Entry], in_list: dict[str, str | None]) -> dict[str, Entry]:
    """{picture: label map} where a list names both; ValueError for one that is no label map of the data set."""
    by_path = {mask.path: mask for mask in masks}
    locator, found = Locator(by_path), {}
    for picture, name in in_list.items():
        if name is None:
            continue
        path = locator.find(name)
        if path is None:
            raise ValueError(
                f"a list of {source.root} gives {picture} the label map {name!r}, which lies in no folder of label "
                "maps; correct the list"
            )
        found[picture] = by_path[path]
    return found


def match_by_common_affix(pictures: list[Entry], masks: list[Entry]) -> tuple[dict, str] | None:
    """Label maps by the key of their image, and what stands before or behind all of their names, as in `a_L`.

    What all names of images share may be left away too, as in `top_1_RGB` and `top_1_label_noBoundary`. None unless
    every image then has exactly one label map.
    """
    for of_masks in common_affixes(entry.stem for entry in masks)[1:]:
        by_rest = defaultdict(list)
        for mask in masks:
            by_rest[mask.rest, strip_ends(mask.stem, of_masks)].append(mask)
        for of_pictures in common_affixes(entry.stem for entry in pictures):
            keys = {picture: (picture.rest, strip_ends(picture.stem, of_pictures)) for picture in pictures}
            if len(set(keys.values())) == len(keys) and all(len(by_rest.get(key, ())) == 1 for key in keys.values()):
                return {picture.key: by_rest[key] for picture, key in keys.items()}, "NAME".join(of_masks)
    return None


def common_affixes(stems: Iterable[str]) -> list[tuple[str, str]]:
    """(before, behind) that all stems share up to a sign that parts words: none, the one, the other, both."""
    stems = list(stems)
    if len(stems) < 2:
        return [("", "")]
    before = re.match(r"(.*[-_. ])?", os.path.commonprefix(stems))[0]
    behind = os.path.commonprefix([stem[len(before) :][::-1] for stem in stems])[::-1]
    behind = re.search(r"([-_. ].*)?$", behind)[0]
    return list(dict.fromkeys([("", ""), ("", behind), (before, ""), (before, behind)]))


def strip_ends(stem: str, affix: tuple[str, str]) -> str:
    return stem.removeprefix(affix[0]).removesuffix(affix[1])


FOLDERS = Family(TREES, find_folders)

__all__ = ["FOLDERS", "Entry", "divide", "read_paths"]
