# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The samples of one split: its images with their label maps, and what does not fit, in sentences."""

import re
from collections import Counter
from pathlib import Path

import numpy as np

from ...utils.picture_files import PICTURE_SUFFIXES, is_picture, listed, stem_of, suffix_of
from ..samples import DrawnLabelMap, FolderSamples, Sample, SampleError
from .files import LOSSY_SUFFIXES, Locator
from .layout import Source, Unclear
from .matching import Entry, are_pieces, ending_after, look_up, name_and_ending, shared_words, without_defect
from .proposals import propose, suggest_folders
from .separate_masks import EmptyMap, UnitedMap
from .splits import ALL
from .words import IMAGE_AFFIX, strip_affix

TEXT_SUFFIXES = (".json", ".xml", ".txt", ".csv", ".yaml", ".yml", ".md")  # which lie beside images of one name
MOST_MAPS = 20  # that are looked at for their background
BLACK_AND_WHITE = "{0: [0, 0, 0], 1: [255, 255, 255]}"


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
    bare = without_defect([picture for picture, _ in pairs], masks)
    bare = {picture for picture, own in pairs if not own and picture in bare}
    bare = bare if bare and is_background(source, masks) else set()
    if bare:
        own_notes.append(
            f"{len(bare)} images without label maps lie in folders of images without defects, and are background "
            f"throughout: {listed(sorted(entry.path for entry in bare))}"
        )
    if missing := [picture for picture, own in pairs if not own and picture not in bare]:
        first = missing[0]
        place = masks[0].place if masks else "the folder of label maps"
        expected = f"{place}/{stem_of(first.name)}{suffix_of(masks[0].path) if masks else '.png'}"
        text = (
            f"{len(missing)} of {len(pairs)} label maps are missing in {source.root}, the first is {expected} of "
            f"picture {first.path}; add them, or take the pictures out"
        )
        notes = [*own_notes, *notes]
        with_maps = {picture for picture, own in pairs if own} or None
        options = propose([picture for picture, _ in pairs], masks, with_maps)
        if len(missing) < len(pairs):
            names = "" if split != ALL else ", or write the names of the others into train.txt"
            raise Unclear(text + names, options, notes, advice="", least=len(pairs) - len(missing))
        check_single(source.root / first.path)
        suggested = suggest_folders(source.files)
        if suggested == [(first.role_folder, next((mask.role_folder for mask in masks), ""))]:
            text += f", or lay out {' and '.join(suggested[0])} in the same sub-folders"
        own = [pair for pair in suggested if f"/{pair[0]}/" in f"/{first.path}"]
        raise Unclear(text, [*own, *options], notes)
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
        drawn: DrawnLabelMap = UnitedMap(listed(mask.path for mask in own), paths, source.colors)
        if not own:
            drawn = EmptyMap(picture.path, source.root / picture.path, (source.colors or {}).get((0, 0, 0), 0))
        items.append((picture.path, own[0].path if len(own) == 1 else drawn))
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
    beside_them = {(entry.place, entry.rest, entry.stem) for entry in names}  # as a.tfw of a.tif
    unread = [
        entry
        for entry in others
        if suffix_of(entry.path) not in TEXT_SUFFIXES and (entry.place, entry.rest, entry.stem) not in beside_them
    ]
    if unread := [entry for entry, own in look_up(unread, masks)[0].items() if own]:
        raise ValueError(
            f"{len(unread)} of {len(names) + len(unread)} pictures in {places} are not of a kind that is "
            f"read ({kinds}): "
            f"{listed(e.name for e in unread)}; convert them, or take them and their label maps out"
        )
    found = {entry: masks_of(entry) for entry in names}
    if beside := called_after_others(found):
        notes.append(
            f"{len(beside)} pictures are left out, because they are called after others and have no "
            f"label maps: {listed(entry.path for entry in beside)}"
        )
        found = {entry: own for entry, own in found.items() if own}
    used = {(entry.path.rpartition("/")[0], mask.role_folder) for entry, own in found.items() for mask in own}
    sizes = Counter(mask.role_folder for mask in masks)  # a folder of so many files is none of strays
    is_each = all(len(set(own)) == len(used) for own in zip(*used))  # each folder of images has one of label maps
    folders = {folder for _, folder in used} if not is_each else {folder for _, folder in list(used)[:1]}
    if used and in_list is None:
        folders |= {f for f, size in sizes.items() if size >= len(names) and f not in {own for _, own in used}}
    folders = sorted(folders)
    if len(folders) > 1:
        text = f"{source.root} has {len(folders)} folders of label maps, {' and '.join(folders)}, for its pictures"
        raise Unclear(text, propose(names, masks))
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
        raise Unclear(
            f"{len(owners)} pictures in {places} share {len(shared)} label maps: {listed(owners)}",
            propose(names, masks),
            advice=f"; keep one picture for each name, and label maps in {mask_places} alone",
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


def called_after_others(found: dict[Entry, list[Entry]]) -> list[Entry]:
    """The images without label maps, if each lies beside another and is called after it: a_depth.png of a.jpg."""
    missing = [entry for entry, own in found.items() if not own]
    names = {
        (e.place, e.rest, name)
        for e, own in found.items()
        if own
        for name in (e.stem, strip_affix(e.stem, IMAGE_AFFIX))
    }

    def is_after(entry: Entry) -> bool:
        ways = name_and_ending(entry.stem)
        return any((entry.place, entry.rest, name) in names and re.search(r"[^\W\d_]", last) for name, last in ways)

    return missing if all(map(is_after, missing)) else []


def is_background(source: Source, masks: list[Entry]) -> bool:
    """Whether the first label maps are of the background in most pixels, as masks of defects are."""
    value = 0 if source.colors is None else source.colors.get((0, 0, 0))
    try:
        maps = [
            Sample(None, source.root / mask.path, "", source.colors).read_label_map() for mask in masks[:MOST_MAPS]
        ]
    except SampleError:
        return False
    return bool(maps) and all((one == value).mean() > 0.5 for one in maps)


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


__all__ = ["open_part"]
