# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Folders of images beside folders of label maps, in every arrangement of splits; also suffixes within one folder.

The path of each file is read word by word: one folder's name says what it holds (`images`, `masks`, ...), one which
split it is of (`train`, `val`, ...), or one name says both (`trainannot`, `train_masks`). What is left of the
path, with the file's name without its ending, is the same for an image and its label map.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import PurePosixPath

from ...utils.picture_files import is_picture, listed, suffix_of
from .files import MASK_SUFFIXES
from .layout import Family, Found, Opener, Source, Unclear
from .matching import Entry, by_split_of_masks, look_up, masks_of_split, without_defect
from .opening import open_part
from .roles import TRAIN_IDS, find_roles, name_roles, pairs_up
from .separate_masks import find_parts, labels_of_folders, labels_of_names
from .splits import ALL, NOTHING_TO_LEARN, TRAIN_SPLITS, UNION_SPLITS, find_kind, read_split_lists
from .words import MASK, are_splits, guess_roles, mask_word, read_folder_name, split_of_name, tells_other_kind

FORMATS = ("png", "jpg", "jpeg", "tif", "tiff", "bmp")  # as names of folders
SIZES = re.compile(r"\d+(x\d+|p|px)", re.IGNORECASE)  # 256x256, 480p
NO_SPLIT = "have no label maps at all, so this is no split here"
TREES = {
    "ade20k": "images/{training,validation}/a.jpg  annotations/{training,validation}/a.png",
    "coco-stuff": "images/train2014/a.jpg  annotations/train2014/a_labelTrainIds.png",
    "camvid": "train/a.png  trainannot/a.png  val/b.png  valannot/b.png  (also train_labels, train_masks)",
    "folders": "images/a.jpg  masks/a.png  (or labels, annotations, gt; with {train,val}/ above or below, "
    "train.txt, or no split; also masks/{car,road}/a.png)",
}


def find_folders(source: Source) -> Found | None:
    """Images in one folder and label maps in another; by whole names of folders, else by words in them."""
    parts = find_roles(source)
    if parts is None:
        return None
    pictures, masks, loose, is_camvid = parts
    if source.roles is None:
        check_kind(source, pictures, masks, loose)
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


def find_label_maps(files: list[str]) -> set[str]:
    """Those of a folder's files, by their paths in it, that are label maps of other files; by the paths alone.

    JPEG files count only where a folder is called as one of label maps, and not where words of its name tell it.
    """
    source = Source("", None)
    source.files = files
    parts = find_roles(source)
    if parts is None:
        return set()
    images = [entry for entry in parts[0] if is_picture(entry.path)]
    if not any(pairs_up(parts)) and not labels_of_folders(images, parts[1]) and not labels_of_names(images, parts[1]):
        return set()
    loose = [e.path for e in parts[2] if not guess_roles(e.path.split("/")[:-1], MASK)]  # no SegmentationObject
    others = {*files}.difference(loose, (entry.path for entry in images))
    return {
        path
        for path in others
        if suffix_of(path) in MASK_SUFFIXES
        or (is_picture(path) and any(read_folder_name(name)[0] == MASK for name in path.split("/")[:-1]))
    }


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
        listed_pictures = read_split_lists(source, [e.path for e in pictures if is_picture(e.path)], notes)
        if listed_pictures:
            by_path = {entry.path: entry for entry in pictures}
            openers = {}
            for split, told in listed_pictures.items():
                own = [by_path[path] for path in told]
                others = [entry for entry in pictures if entry.path not in told and is_picture(entry.path)]
                theirs = look_up(others, masks)[0]
                taken = {mask for maps in theirs.values() for mask in maps}
                free = [mask for mask in masks if mask not in taken]
                if any(told.values()) or any(look_up(own, free)[0].values()) or len(listed_pictures) == 1:
                    own_masks = masks if any(told.values()) else free
                    openers[split] = partial(open_part, source, split, own, own_masks, notes, told)
                else:
                    notes.append(f"{len(own)} images of {split} {NO_SPLIT}")
            summary += f", splits by lists ({', '.join(openers)})"
            if openers:
                return Found(name, summary, openers, notes=notes, first_mask=first)
        check_copies(source, pictures)
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
    check_copies(source, pictures)
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
            notes.append(f"{len(own)} images of {split} {NO_SPLIT}")
    notes += drop_other_kinds(source, openers, masks)
    notes += tell_how_to_divide(source, in_split, openers, masks)
    if not in_split:
        openers = {ALL: partial(open_part, source, ALL, loose, masks, notes)}
    elif not openers:
        openers = {split: partial(open_part, source, split, own, [], notes) for split, own in in_split.items()}
    for split in empty:
        openers.setdefault(split, partial(open_part, source, split, [], [], notes))
    return Found(name, summary, dict(sorted(openers.items())), notes=[*notes, *others], first_mask=first)


def count_images(source: Source, images: str, masks: str) -> int:
    """How many images, of those of all splits, have label maps if they are named so; 0 if some cannot be opened."""
    try:
        found = find_folders(name_roles(source, images, masks))
        return sum(len(opener()) for opener in found.openers.values()) if found else 0
    except ValueError:
        return 0


def check_copies(source: Source, pictures: list[Entry]) -> None:
    """ValueError for images that are there in two formats, or sizes, in folders called after these: png/a.png."""
    by_format: dict[str, set[tuple]] = {}
    for entry in pictures:
        for place, name in enumerate(folders := entry.path.split("/")[:-1]):
            is_format = name.lower() in FORMATS and suffix_of(entry.path)[1:4] == name.lower()[:3]
            if is_format or SIZES.fullmatch(name):
                key = (*folders[:place], *folders[place + 1 :], entry.stem)
                by_format.setdefault("/".join(folders[: place + 1]), set()).add(key)
    for (one, first), (other, second) in combinations(by_format.items(), 2):
        if first & second:
            raise ValueError(
                f"{source.root} has {len(first & second)} images of one name in both {one} and {other}, which seem to "
                f"be copies; give one of them, as {source.root / one}"
            )


def check_kind(source: Source, pictures: list[Entry], masks: list[Entry], loose: list[Entry]) -> None:
    """`Unclear` where label maps lie in folders called as of another kind, and what may be them in one of no role."""
    folders = sorted({mask.role_folder for mask in masks})
    names = {entry.stem for entry in pictures}
    counts = Counter(e.folder for e in loose if e.stem in names and suffix_of(e.path) in MASK_SUFFIXES)
    others = [
        f for f, count in counts.items() if 2 * count > len(names) and not any(map(tells_other_kind, f.split("/")))
    ]
    if others and all(map(tells_other_kind, folders)):
        ways = [(pictures[0].folder, folder) for folder in (*others, *folders)]
        text = f"{source.root} has files of the names of its images in {listed([*others, *folders])}, and by its name "
        raise Unclear(f"{text}{listed(folders)} seems to hold another kind than labels of classes", ways)


def drop_other_kinds(source: Source, openers: dict[str, Opener], masks: list[Entry]) -> list[str]:
    """Take out splits whose label maps lie in folders called otherwise than those to train on; sentences on these.

    In DRIVE's training part the vessels are in 1st_manual, and in its test part there is the field of view in mask.
    """
    folders = {split: {mask.role_folder for mask in masks_of_split(split, masks)} for split in openers}
    base = next((split for split in openers if find_kind(split) in (TRAIN_SPLITS[0], *UNION_SPLITS)), None)
    if source.roles is not None or base is None:
        return []
    kinds = {split: {mask_word(folder) for folder in own} for split, own in folders.items()}
    others = [s for s in openers if kinds[s].isdisjoint(kinds[base]) and "" not in kinds[s] | kinds[base]]
    for split in others:
        del openers[split]
    return [
        f"label maps of {split} lie in {listed(sorted(folders[split]))}, and those of {base} in "
        f"{listed(sorted(folders[base]))}, so they seem to be of another kind, and this is no split here; call the "
        "folders alike if they are of the same"
        for split in others
    ]


def tell_how_to_divide(
    source: Source, in_split: dict[str, list[Entry]], openers: dict[str, Opener], masks: list[Entry]
) -> list[str]:
    """The sentence on a part to train on without label maps, as of images without defects, and what divides others."""
    lost = [split for split in in_split if find_kind(split) == TRAIN_SPLITS[0] and split not in openers]
    if not lost or len(openers) != 1:
        return []
    split, folder = *openers, masks[0].role_folder
    why = "show no defect, and" if without_defect(in_split[lost[0]], masks) else "have no label maps, and"
    way = f"; layout: {split}:{folder} divides those of {split}" if count_images(source, split, folder) else ""
    return [f"images of {lost[0]} {why} {NOTHING_TO_LEARN}{way}"]


FOLDERS = Family(TREES, find_folders)

__all__ = ["FOLDERS", "count_images", "divide", "find_label_maps"]
