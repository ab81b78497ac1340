# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""PASCAL VOC and PASCAL-Context: images, label maps and lists of each split by name."""

import re
from functools import partial
from pathlib import Path

from ...utils.picture_files import base_of, is_hidden, is_picture, listed, stem_of
from ...utils.text import read_text
from ..samples import FolderSamples
from .files import Locator
from .layout import Family, Found, Source
from .splits import ALL

VOC_NAMES = [
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
VOID = 255
TREES = {
    "voc": "JPEGImages/a.jpg  SegmentationClass/a.png  ImageSets/Segmentation/{train,val}.txt",
    "pascal-context": "JPEGImages/a.jpg  SegmentationClassContext/a.png  "
    "ImageSets/SegmentationContext/{train,val}.txt",
}


def find_voc(source: Source) -> Found | None:
    """Layouts with lists of names; VOC's own names where the images are VOC's ("2007_000032")."""
    root = source.root
    for name, masks, lists in (
        ("pascal-context", "SegmentationClassContext", "SegmentationContext"),
        ("voc", "SegmentationClass", "Segmentation"),
    ):
        folder = root / "ImageSets" / lists
        splits = sorted(path.stem for path in folder.glob("*.txt") if not is_hidden(path.name))
        if not ((root / "JPEGImages").is_dir() and (root / masks).is_dir() and (splits or name == "pascal-context")):
            continue
        openers = {
            ALL if splits == ["default"] else split: partial(open_list, source, split, folder / f"{split}.txt", masks)
            for split in splits  # "default" is what CVAT calls what nobody has divided
        }
        summary = f"images in JPEGImages, label maps in {masks}, splits by ImageSets/{lists}"
        own = [path for path in source.files if path.startswith(f"{masks}/")]
        first = root / own[0] if own else None
        texts = [(folder / f"{split}.txt").read_text(encoding="utf-8", errors="replace") for split in splits]
        lines = [line.strip() for text in texts for line in text.splitlines()]
        names = {base_of(part) for line in lines for part in (line, *line.split())}
        names |= {stem_of(name) for name in names if is_picture(name)}
        left = [path for path in own if splits and stem_of(base_of(path)) not in names]
        notes = [f"{len(left)} label maps are in no list of a split: {listed(left)}"] if left else []
        is_voc = name == "voc" and own and all(re.fullmatch(rf"{masks}/\d{{4}}_\d{{6}}\.png", path) for path in own)
        if not is_voc:
            return Found(name, summary, openers, notes=notes, first_mask=first)
        return Found(name, summary, openers, VOC_NAMES, "PASCAL VOC", VOID, notes=notes, first_mask=first)
    return None


def read_list(path: Path) -> list[str]:
    """Names in a split list without endings, one a line, blank lines and hidden files left out.

    Raises:
        ValueError: one is a path.
    """
    names = []
    try:
        lines = read_text(path).splitlines()
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if name in (".", "..") or "/" in name or "\\" in name:
            raise ValueError(f"line {number} of {path} is {name!r}; a plain picture name without a folder is wanted")
        if name and not is_hidden(name):
            names.append(stem_of(name) if is_picture(name) else name)
    return names


def open_list(source: Source, split: str, path: Path, masks: str) -> FolderSamples:
    """The samples that a list names; ValueError for missing files."""
    names = read_list(path)
    if not names:
        raise ValueError(f"split {split} of {source.root} holds no pictures")
    pairs = []
    for folder, ending, what in (("JPEGImages", ".jpg", "pictures"), (masks, ".png", "label maps")):
        locator = Locator(file for file in source.files if file.startswith(f"{folder}/"))
        found = {name: locator.find(name) for name in names}
        if missing := [name for name in names if found[name] is None]:
            of = f" of picture JPEGImages/{missing[0]}" if what == "label maps" else ""
            raise ValueError(
                f"{len(missing)} of {len(names)} {what} are missing in {source.root}, the first is "
                f"{folder}/{missing[0]}{ending}{of}"
            )
        pairs.append([found[name] for name in names])
    return FolderSamples(source.root, list(zip(*pairs)), split, source.colors)


VOC = Family(TREES, find_voc)

__all__ = ["VOC", "VOC_NAMES"]
