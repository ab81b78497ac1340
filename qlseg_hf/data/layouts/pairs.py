# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Images and label maps in one folder, told apart by what their names end or begin with; and Roboflow's export."""

import csv
import io
import re
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from unicodedata import normalize

from ...utils.picture_files import base_of, is_picture, listed, stem_of, suffix_of
from ...utils.text import read_text
from ..label_names import names_in_order
from .files import LOSSY_SUFFIXES, MASK_SUFFIXES
from .folders import divide
from .layout import Family, Found, Source, Unclear
from .matching import Entry, name_and_ending
from .words import IMAGE, IMAGE_AFFIX, MASK, MASK_AFFIX, read_folder_name, split_folders, strip_affix

CLASSES_FILE, NAMES_FILE = "_classes.csv", "label_names.txt"
TREES = {
    "pairs": "a.jpg  a_mask.png  (or a_label, a_gt, mask_a; a_image.jpg; also a.jpg  a.png; or a/image.png  "
    "a/label.png)",
    "roboflow": "{train,valid,test}/_classes.csv  a.jpg  a_mask.png",
}


def find_masks_beside(files: list[str]) -> set[str]:
    """Those of a folder's files, by their paths in it, that are label maps of images beside them, as `a_mask.png`."""
    source = Source("", None)
    source.files = files
    masks = [mask.path for mask in read_pairs(source, by_any_ending=False)[1]]
    called = {path: stem_of(base_of(path)) for path in masks}  # a.png beside a.jpg may be an image too
    return {
        path for path, stem in called.items() if read_folder_name(stem)[0] or strip_affix(stem, MASK_AFFIX) != stem
    }


def read_pairs(source: Source, by_any_ending: bool = True) -> tuple[list[Entry], list[Entry], list[Entry]]:
    """Images, label maps and other pictures of folders that hold all; nothing if their names do not tell.

    Other pictures lie beside `image.png` and `label.png` under names that tell nothing. `by_any_ending`: whether label
    maps may have any ending that all of them share.
    """
    entries = []
    files = [path for path in source.files if is_picture(path) or suffix_of(path) in MASK_SUFFIXES]
    splits = split_folders(files)
    for path in files:
        folders = tuple(path.split("/")[:-1])
        at = next((i for i, name in enumerate(folders) if name in splits), None)
        split = splits[folders[at]] if at is not None else None
        rest = tuple(name for i, name in enumerate(folders) if i != at)
        place = "/".join(folders[: at + 1]) if at is not None else "."
        entries.append(Entry(path, None, "", split, place, rest, normalize("NFC", stem_of(base_of(path)))))
    masks = [entry for entry in entries if strip_affix(entry.stem, MASK_AFFIX) != entry.stem]
    cores = {(entry.split, entry.rest, strip_affix(entry.stem, IMAGE_AFFIX)) for entry in entries}
    masks = [e for e in masks if (e.split, e.rest, strip_affix(e.stem, MASK_AFFIX)) in cores]
    if not masks:  # a_image.png and a.png, or a.jpg and a.png
        images = {e for e in entries if strip_affix(e.stem, IMAGE_AFFIX) != e.stem}
        images = images or {e for e in entries if suffix_of(e.path) in LOSSY_SUFFIXES and is_picture(e.path)}
        cores = {(e.split, e.rest, strip_affix(e.stem, IMAGE_AFFIX)) for e in images}
        masks = [
            e
            for e in entries
            if e not in images and suffix_of(e.path) in MASK_SUFFIXES and (e.split, e.rest, e.stem) in cores
        ]
    masks = masks or (beside_images(source, entries) if by_any_ending else [])
    if not masks:  # a folder for each image, as scenes/1/rgb.png and scenes/1/label.png
        roles = {e: read_folder_name(e.stem)[0] for e in entries}
        masks = [replace(e, stem="") for e in entries if roles[e] == MASK]
        pictures = [replace(e, stem="") for e in entries if roles[e] == IMAGE and is_picture(e.path)]
        places = {(e.split, e.rest) for e in masks}
        if masks and all((e.split, e.rest) in places for e in pictures):
            return pictures, masks, [e for e in entries if roles[e] is None]
        return [], [], []
    own = set(masks)
    pictures = [entry for entry in entries if entry not in own and is_picture(entry.path)]
    return pictures, masks, []


def beside_images(source: Source, entries: list[Entry]) -> list[Entry]:
    """Label maps that are called as an image and an ending that all of them share: a.jpg, a_1stHO.png.

    Raises:
        Unclear: all images have label maps of several such endings.
    """
    names = {(e.split, e.rest, e.stem) for e in entries}
    by_ending: dict[str, list[Entry]] = defaultdict(list)
    for e in entries:
        ways = [(name, ending) for name, ending in name_and_ending(e.stem) if (e.split, e.rest, name) in names]
        if ways and suffix_of(e.path) in MASK_SUFFIXES and not ways[0][1].isdecimal():
            by_ending[base_of(e.path)[len(ways[0][0]) :]].append(e)
    others = {e for found in by_ending.values() for e in found}
    images = [e for e in entries if e not in others]
    kinds = [ending for ending, found in by_ending.items() if len(found) == len(images)]
    if len(kinds) > 1:
        suffix = suffix_of(images[0].path)
        digit = "[0-9]" if suffix in map(suffix_of, kinds) and all(e.stem[-1].isdigit() for e in images) else ""
        raise Unclear(
            f"{source.root} has {len(kinds)} files beside each image that may be its label map, called after it and "
            f"{listed(kinds)}",
            [(f"*{digit}{suffix}", f"*{ending}") for ending in kinds],
        )
    return by_ending[kinds[0]] if kinds else []


def find_pairs(source: Source) -> Found | None:
    """Pairs in one folder, with the names of `_classes.csv` if each folder has one."""
    pictures, masks, others = read_pairs(source)
    if not masks or not pictures:
        return None
    if re.fullmatch(r"ADE_(train|val)_\d+_seg", masks[0].stem):
        raise ValueError(
            f"{source.root} is the full release of ADE20K, whose {base_of(masks[0].path)} and the like have kinds and "
            "objects as colours; its 150 labels are in ADEChallengeData2016, which is read"
        )
    notes = [f"{len(others)} other pictures are left out: {listed(e.path for e in others)}"] if others else []
    tables = [name for name in source.files if base_of(name) == CLASSES_FILE]
    example = f"{base_of(pictures[0].path)} and {base_of(masks[0].path)}"
    if not tables:
        found = divide(source, "pairs", f"images and label maps in one folder, as {example}", pictures, masks)
        names, names_from = names_of_folders(source, masks)
        return replace(found, label_names=names, names_from=names_from, notes=[*found.notes, *notes])
    classes = {name: read_classes(source, name) for name in tables}
    if len({tuple(rows) for rows in classes.values()}) > 1:
        raise ValueError(f"{listed(classes)} in {source.root} name different classes; export the splits together")
    rows = next(iter(classes.values()))
    values = [value for value, _ in rows]
    numbers = list(range(len(values)))
    label_mapping = None if values == numbers else dict(zip(values, numbers))
    found = divide(source, "roboflow", f"Roboflow's masks, as {example}", pictures, masks)
    notes = [*found.notes, *notes]
    names = [name for _, name in rows]
    return replace(found, label_names=names, names_from=tables[0], label_mapping=label_mapping, notes=notes)


def names_of_folders(source: Source, masks: list[Entry]) -> tuple[list[str] | None, str]:
    """Names in `label_names.txt` beside each label map, as labelme_json_to_dataset writes it, and where they are from.

    Raises:
        ValueError: they differ, because each file was numbered by its own labels.
    """
    places = dict.fromkeys(f"{mask.path.rpartition('/')[0]}/{NAMES_FILE}" for mask in masks if not mask.stem)
    texts = {name: read_text(source.root / name).split("\n") for name in places if name in set(source.files)}
    if len(set(map(tuple, texts.values()))) > 1:
        first, other = next((one, two) for one, two in pairwise(texts) if texts[one] != texts[two])
        raise ValueError(
            f"{first} and {other} in {source.root} number labels in two ways, as labelme_json_to_dataset does; give "
            "the folder of LabelMe's JSON files and images instead"
        )
    if not texts or len(texts) < len(places):
        return None, ""
    name, lines = next(iter(texts.items()))
    return names_in_order([line for line in lines if line.strip()]), name


def read_classes(source: Source, name: str) -> list[tuple[int, str]]:
    """(stored value, name) of the lines of Roboflow's `_classes.csv`, by value; ValueError if it holds "
    "anything else."""
    path = source.root / name
    rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(read_text(path))) if any(row)]
    if not rows or [re.sub(r"\W", "", cell.lower()) for cell in rows[0]] != ["pixelvalue", "class"]:
        raise ValueError(
            f"{path} must begin with the line 'Pixel Value, Class', as Roboflow's semantic masks have it; "
            "export the data "
            "as Semantic Segmentation Masks"
        )
    if odd := [row for row in rows[1:] if len(row) != 2 or not row[0].isdecimal() or not row[1]]:
        raise ValueError(f"{path}: {', '.join(odd[0])!r} is no pixel value and class")
    by_value = defaultdict(list)
    for value, label in rows[1:]:
        by_value[int(value)].append(label)
    if not by_value or max(map(len, by_value.values())) > 1 or len({row[1] for row in rows[1:]}) < len(by_value):
        raise ValueError(f"{path} must give each pixel value one class of its own")
    return sorted((value, names[0]) for value, names in by_value.items())


PAIRS = Family(TREES, find_pairs)

__all__ = ["PAIRS", "find_masks_beside", "read_classes"]
