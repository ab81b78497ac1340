# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Folders of images beside folders of label maps, in every arrangement of splits; also suffixes within one folder.

The path of each file is read word by word: one folder's name says what it holds (`images`, `masks`, ...), one which
split it is of (`train`, `val`, ...), or one name says both (`trainannot`, `train_masks`). What is left of the
path, with the file's name without its ending, is the same for an image and its label map.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from itertools import combinations
from pathlib import Path, PurePosixPath
from unicodedata import normalize

import numpy as np

from ...utils.picture_files import NUM_NAMED, PICTURE_SUFFIXES, base_of, is_picture, listed, stem_of, suffix_of
from ..samples import DrawnLabelMap, FolderSamples
from .files import LOSSY_SUFFIXES, MASK_SUFFIXES, Locator
from .layout import Family, Found, Source
from .matching import (
    Entry,
    are_pieces,
    by_split_of_masks,
    ending_after,
    look_up,
    masks_of_split,
    propose_masks,
    shared_words,
)
from .parts import UnitedMap, find_parts
from .splits import ALL, UNION_SPLITS, read_split_lists
from .words import IMAGE, MASK, are_splits, guess_roles, guess_splits, read_folder_name, split_of_name

TRAIN_IDS = "_labelTrainIds"
TEXT_SUFFIXES = (".json", ".xml", ".txt", ".csv", ".yaml", ".yml", ".md")  # which lie beside images of one name
BLACK_AND_WHITE = "{0: [0, 0, 0], 1: [255, 255, 255]}"
SUFFIXES = {*PICTURE_SUFFIXES, *MASK_SUFFIXES}
MOST_PLACES = 200  # folders that are compared to suggest two
TOP = "."  # what the folder of all is called
NESTED = "\0"  # in place of "/" in a folder of several names that counts as one

TREES = {
    "ade20k": "images/{training,validation}/a.jpg  annotations/{training,validation}/a.png",
    "coco-stuff": "images/train2014/a.jpg  annotations/train2014/a_labelTrainIds.png",
    "camvid": "train/a.png  trainannot/a.png  val/b.png  valannot/b.png  (also train_labels, train_masks)",
    "folders": "images/a.jpg  masks/a.png  (or labels, annotations, gt; with {train,val}/ above or below, "
    "train.txt, or no split; also masks/{car,road}/a.png)",
}


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


def find_folders(source: Source) -> Found | None:
    """Images in one folder and label maps in another; by whole names of folders, else by words in them."""
    missing: list[str] = []
    entries = read_paths(source)
    parts = sort_roles(entries)
    if source.roles is None and not (parts and any(pairs_up(parts))):
        missing = [
            role
            for role in (IMAGE, MASK)
            if not any(e.role == role and suffix_of(e.path) in SUFFIXES for e in entries)
        ]
        guessed = sort_roles(read_paths(source, missing))
        parts = guessed or parts
    if parts is None:
        return None
    splits = {entry.split for entry in parts[1]}
    if splits != {None} and not any(e.split for e in parts[0]) and (None in splits or len(splits) < 2):
        parts = sort_roles(read_paths(source, missing, has_splits=False)) or parts  # a label is called "train"
    pictures, masks, loose, is_camvid = parts
    is_paired = all(pairs_up(parts))
    if (len(masks) > len(pictures) or not is_paired) and (found := find_parts(source, pictures, masks, is_paired)):
        return found
    notes = []
    if loose:
        paths = listed(entry.path for entry in loose)
        why = "fit neither pattern" if any(source.patterns) else "lie in no folder of images"
        notes.append(f"{len(loose)} images {why}, and are left out: {paths}")
    image_folders = sorted({entry.role_folder or entry.place for entry in pictures})
    mask_folders = sorted({entry.role_folder or entry.place for entry in masks})
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
    """Put images and label maps into splits: of folders, of lists or of the names of all images, else one part."""
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
        if not any(entry.split for entry in masks):
            own = [replace(e, split=split_of_name(e.stem)) for e in pictures if is_picture(e.path)]
            if are_splits([e.split for e in own]):  # train_1.bmp beside testA_1.bmp
                theirs = [replace(e, split=split_of_name(e.stem)) for e in masks]
                theirs = theirs if are_splits([e.split for e in theirs]) else masks
                return divide(source, name, f"{summary}, splits by the names of images", own, theirs)
        if not all(entry.split for entry in masks) or len({entry.split for entry in masks}) < 2:
            openers = {ALL: partial(open_part, source, ALL, pictures, masks, notes)}
            return Found(name, summary, openers, notes=notes, first_mask=first)
        in_split = by_split_of_masks(pictures, masks)  # which alone are in folders of splits
    loose = in_split.pop(None, [])
    paired = {split: any(look_up(own, masks_of_split(split, masks))[0].values()) for split, own in in_split.items()}
    if not any(paired.values()):
        if any(look_up(loose, masks)[0].values()):  # images/, masks/ and test_images/
            found = divide(source, name, summary, loose, masks)
            told = [f"{len(own)} images of {s} have no label maps, and are left out" for s, own in in_split.items()]
            return replace(found, notes=[*found.notes, *told])
    beside = [entry for entry in loose if is_picture(entry.path)]
    with_splits = {entry.role_folder for own in in_split.values() for entry in own}
    elsewhere = [entry.path for entry in beside if entry.role_folder not in with_splits]
    if beside := [entry for entry in beside if entry.role_folder in with_splits]:
        places = listed(sorted({str(source.root / entry.place) for entry in beside}))
        notes.append(f"{len(beside)} pictures in {places} belong to no split: {listed(e.name for e in beside)}")
    others = [f"{len(elsewhere)} images lie in no folder of a split: {listed(elsewhere)}"] if elsewhere else []
    openers = {}
    for split, own in in_split.items():
        own_masks = masks_of_split(split, masks)
        in_list = None if any(entry.split for entry in own_masks) else {}  # of all splits, so some belong to others
        openers[split] = partial(open_part, source, split, own, own_masks, notes, in_list)
        if len(in_split) > 1 and (not own_masks or (in_list is not None and not paired[split])):
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
    missing = [picture for picture, own in pairs if not own]
    if missing:
        first = missing[0]
        place = masks[0].place if masks else "the folder of label maps"
        expected = f"{place}/{stem_of(first.name)}{suffix_of(masks[0].path) if masks else '.png'}"
        remedy = ""
        if len(missing) == len(pairs):
            check_single(source.root / first.path)
            suggested = suggest_folders(source.files)
            folders = sorted({mask.role_folder for mask in masks if mask.role_folder})
            others = [(first.folder, folder) for folder in folders if len(folders) > 1]
            options = propose_masks(first, masks) or suggested or others
            named = " or ".join(f"layout: {image}:{mask}" for image, mask in options or [("photos", "ground_truth")])
            remedy = f"; or name both folders, as in {named}"
            if options == suggested == [(first.role_folder, next((mask.role_folder for mask in masks), ""))]:
                remedy = f"; or lay out {options[0][0]} and {options[0][1]} in the same sub-folders"
        text = (
            f"{len(missing)} of {len(pairs)} label maps are missing in {source.root}, the first is {expected} of "
            f"picture {first.path}; add them, or take the pictures out{remedy}"
        )
        raise ValueError(". ".join([text, *own_notes, *notes]))
    lossy = [mask.path for _, own in pairs for mask in own if suffix_of(mask.path) in LOSSY_SUFFIXES]
    if lossy and len(source.colors or ()) != 2:
        raise ValueError(
            f"{len(lossy)} label maps in {source.root} are JPEG or WebP, which change labels at every edge: "
            f"{listed(lossy)}; store them as PNG, from what they were made of, or say which two colours they have, as "
            f"in label_colors: {BLACK_AND_WHITE}, and each pixel gets the nearer"
        )
    items: list[tuple[str, str | DrawnLabelMap]] = []
    for picture, own in pairs:
        paths = tuple(source.root / mask.path for mask in own)
        united = UnitedMap(listed(mask.path for mask in own), paths, source.colors)
        items.append((picture.path, own[0].path if len(own) == 1 else united))
    return FolderSamples(source.root, items, split, source.colors, [*own_notes, *notes])


def check_single(path: Path) -> None:
    """ValueError for an array of many images, as PanNuke's images.npy."""
    is_array = suffix_of(path.name) == ".npy" and path.stat().st_size > 0
    if is_array and len(shape := np.load(path, mmap_mode="r").shape) > 3:
        raise ValueError(
            f"{path} holds {shape[0]} images in one array; save each as a file of its own, and its label map in "
            "another folder under the same name"
        )


def match(
    source: Source, pictures: list[Entry], masks: list[Entry], in_list: dict[str, str | None] | None
) -> tuple[list[tuple[Entry, list[Entry]]], list[str]]:
    """(image, its label map, or its masks of single objects), and sentences on files that belong to none."""
    told = told_masks(source, masks, in_list or {})
    names = [entry for entry in pictures if is_picture(entry.path)]
    by_picture, notes = look_up(names, masks)

    def masks_of(picture: Entry) -> list[Entry]:
        return [told[picture.path]] if picture.path in told else by_picture[picture]

    others = [entry for entry in pictures if not is_picture(entry.path)]
    kinds = ", ".join(PICTURE_SUFFIXES)
    places = listed(sorted({str(source.root / entry.place) for entry in pictures}))
    mask_places = listed(sorted({str(source.root / entry.place) for entry in masks}))
    unread = [entry for entry in others if suffix_of(entry.path) not in TEXT_SUFFIXES]
    if unread := [entry for entry, own in look_up(unread, masks)[0].items() if own]:
        raise ValueError(
            f"{len(unread)} of {len(names) + len(unread)} pictures in {places} are not of a kind that is "
            f"read ({kinds}): "
            f"{listed(e.name for e in unread)}; convert them, or take them and their label maps out"
        )
    found = {entry: masks_of(entry) for entry in names}
    used = {(entry.role_folder, mask.role_folder) for entry, own in found.items() for mask in own}
    sizes = Counter(mask.role_folder for mask in masks)  # a folder of so many files is none of strays
    is_each = all(len(set(own)) == len(used) for own in zip(*used))  # each folder of images has one of label maps
    folders = {folder for _, folder in used} if not is_each else {folder for _, folder in list(used)[:1]}
    if used and in_list is None:
        folders |= {f for f, size in sizes.items() if size >= len(names) and f not in {own for _, own in used}}
    folders = sorted(folders)
    if len(folders) > 1:
        of = next(entry for entry, own in found.items() if own)
        options = [f"layout: {of.folder}:{folder}" for folder in folders]
        raise ValueError(
            f"{source.root} has {len(folders)} folders of label maps, {' and '.join(folders)}, that belong to its "
            f"pictures; say which counts, as in {' or '.join(options)}"
        )
    several = [entry for entry, own in found.items() if len(own) > 1]
    endings = {frozenset(ending_after(entry, mask) for mask in own) for entry, own in found.items()}
    for entry in several:  # as many of all images, called alike, are of labels or of people
        if len(endings) == 1 or not are_pieces(entry, found[entry]):
            raise ValueError(
                f"{entry.path} in {source.root} has {len(found[entry])} label maps: "
                f"{listed(mask.path for mask in found[entry])}; keep the one that holds the labels of all its pixels"
            )
    if labels := shared_words({entry: found[entry] for entry in several}):
        raise ValueError(
            f"names of masks in {source.root} seem to tell labels ({listed(labels)}), and not single objects; put "
            f"them in a folder for each label, as {mask_places}/{labels[0]}/{several[0].stem}.png"
        )
    if several:
        notes.append(
            f"{len(several)} images have several masks, one for each object, which are put together: "
            f"{listed(entry.path for entry in several)}"
        )
    counts = Counter(mask for own in found.values() for mask in own)
    if shared := {mask for mask, count in counts.items() if count > 1}:
        owners = [entry.name for entry, own in found.items() if shared.intersection(own)]
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
    return list(found.items()), notes


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


FOLDERS = Family(TREES, find_folders)

__all__ = ["FOLDERS", "divide", "suggest_folders"]
