# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What names of folders and files tell: whether they hold images or label maps, and of which split."""

import re
from collections.abc import Collection, Iterable
from functools import cache

from .splits import SPLIT_WORDS, TRAIN_SPLITS, find_kind

IMAGE, MASK = "image", "mask"
IMAGE_WORDS = (
    *("image", "images", "img", "imgs", "imgdir", "imagedir", "picture", "pictures", "photo", "photos", "rgb"),
    *("jpegimages", "input", "inputs", "original", "originals", "originalimages"),
)
MASK_WORDS = (
    *("mask", "masks", "maskdir", "label", "labels", "labeldir", "annotation", "annotations", "ann", "anns", "anndir"),
    *("annot", "annots", "gt", "gts", "groundtruth", "groundtruths", "seg", "segs", "segmentation", "segmentations"),
    *("segmentationclass", "segmentationmask", "segmentationmasks", "segmask", "segmasks", "target", "targets"),
    *("labelmap", "labelmaps", "stuffthingmaps", "stuffpixelmaps", "semanticmasks", "annotationimages"),
    *("labelids", "labelsids", "categoryids", "classids"),
    *("1stmanual", "2ndmanual", "manual", "manual1", "manual2"),
)
MASK_AFFIX = (
    "labelTrainIds|labelIds|masks?|labels?|lbl|lab|gt|ground[-_]?truth|seg(?:mentation)?s?|anno(?:t(?:ation)?)?s?"
    "|targets?"
)
IMAGE_AFFIX = "leftImg8bit|images?|img|rgb|photos?|pictures?|sat|inputs?|orig(?:inal)?"
ROLE_OF = dict.fromkeys(IMAGE_WORDS, IMAGE) | dict.fromkeys(MASK_WORDS, MASK)
# Words that count where no folder is called by one of the others
GUESSED_MASK_WORDS = (
    *("semantic", "semantics", "semseg", "lbl", "lbls", "lab", "labs", "labeled", "labelled", "annotated", "anno"),
    *("annos", "parsing", "segmentationclassaug"),
)
GUESSED_ROLE_OF = ROLE_OF | {"frame": IMAGE, "frames": IMAGE} | dict.fromkeys(GUESSED_MASK_WORDS, MASK)
ROLE_IN_SPLIT = ROLE_OF | {"x": IMAGE, "y": MASK}  # train_x and train_y
SHORT_SPLITS = {"tr": "train", "vd": "validation", "te": "test", "ts": "test"}  # DUTS-TR, imagesTs
LONGEST_FIRST = sorted(SPLIT_WORDS, key=len, reverse=True)


def strip_affix(stem: str, affix: str) -> str:
    """A stem without what says that it is an image or a label map: `a_mask`, `a.mask`, `mask_a`; else as it is.

    One of several masks of an image may have a number, as `a_mask_1`. Neither does the ending of the image count in
    the name of its label map, as in `a.jpg.png`.
    """
    stem = re.sub(r"\.(png|jpe?g|tiff?|bmp)$", "", stem, flags=re.IGNORECASE)
    number = r"(?:[-_. ]?\d+)?" if affix == MASK_AFFIX else ""
    found = re.fullmatch(rf"(.+?)[-_. ](?:{affix}){number}|(?:{affix})[-_. ](.+)", stem, re.IGNORECASE)
    return (found[1] or found[2]) if found else stem


def read_folder_name(name: str, roles: tuple[str, str] | None = None) -> tuple[str | None, str | None]:
    """(role, split) that a folder's name tells; either may be None."""
    if roles is not None:
        for role, own in ((MASK, roles[1]), (IMAGE, roles[0])):
            if found := named_folder(own).fullmatch(name):
                return role, found["split"]
        return None, name if name.lower() in SPLIT_WORDS else None
    plain = re.sub(r"[^a-z0-9]", "", re.sub(r"[-_. ](png|jpe?g|tiff?|bmp)s?$", "", name.lower()))
    if plain in ROLE_OF:
        return ROLE_OF[plain], None
    if name.lower() in SPLIT_WORDS:
        return None, name
    for split in LONGEST_FIRST:
        if split in plain and (role := ROLE_IN_SPLIT.get(plain.replace(split, "", 1))):
            start = name.lower().find(split)
            return role, name[start : start + len(split)] if start >= 0 else split
    return None, None


def mask_word(folder: str) -> str:
    """The word that tells that a folder holds label maps, without number; "" if none does."""
    plain = re.sub(r"[^a-z0-9]", "", folder.lower())
    found = [word for word in (*MASK_WORDS, *GUESSED_MASK_WORDS) if word in plain]
    return max(found, key=len, default="").rstrip("s0123456789")


@cache
def named_folder(name: str) -> re.Pattern:
    """What a folder that a person named is called, where "{split}" in it stands for that of any split."""
    before, _, behind = name.partition("{split}")
    split = f"(?P<split>{'|'.join(map(re.escape, LONGEST_FIRST))})" if "{split}" in name else "(?P<split>(?!))?"
    return re.compile(f"{re.escape(before)}{split}{re.escape(behind)}", re.IGNORECASE if "{split}" in name else 0)


@cache
def words_in(name: str) -> tuple[str, ...]:
    """The words of a name, parted by signs, digits and capitals: "gtFine_2" is gt, Fine, 2."""
    return tuple(re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", re.sub(r"[-_ ](with[-_ ].*|v\d+)", "", name)))


def guess_roles(names: Iterable[str], role: str) -> list[str]:
    """Those of the folders' names that tell a role as a whole by further words; without any, by words in them.

    Up to three words count as one, and label maps win: `GTs_for_participants`, `label_images_semantic`.
    """
    by_name = {name: [word.lower() for word in words_in(name)] for name in names}
    whole = [name for name, words in by_name.items() if GUESSED_ROLE_OF.get("".join(words)) == role]
    parts = {
        name: {
            GUESSED_ROLE_OF.get("".join(words[i:j])) for j in range(len(words) + 1) for i in range(max(j - 3, 0), j)
        }
        for name, words in by_name.items()
    }
    return whole or [name for name, found in parts.items() if role in found and (role == MASK or MASK not in found)]


def guess_splits(names: Iterable[str]) -> dict[str, str]:
    """Splits by words in folders' names, where names that are else the same tell several: `uavid_train`, `uavid_val`.

    Other folders may be called `train_station`. What numbers the folders does not count: `a. Training`, `b. Testing`.
    """
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    for name in names:
        words = [word for place, word in enumerate(words_in(name)) if place or not re.fullmatch(r"[a-zA-Z]|\d+", word)]
        if split := next((word for word in words if word.lower() in (*SPLIT_WORDS, *SHORT_SPLITS)), None):
            others = tuple(word.lower() for word in words if word != split)
            groups.setdefault(others, {})[name] = SHORT_SPLITS.get(split.lower(), split)
    several = [group for group in groups.values() if len(set(map(find_kind, group.values()))) > 1]
    return {name: split for group in several for name, split in group.items()}


def split_of_name(stem: str) -> str | None:
    """What a word in a file's name says that its split is for; None without one."""
    return next((find_kind(word) for word in words_in(stem) if word.lower() in SPLIT_WORDS), None)


def are_splits(kinds: Collection[str | None]) -> bool:
    """Whether all files tell a split, and some are of another one than those to train on."""
    return None not in kinds and TRAIN_SPLITS[0] in kinds and len(set(kinds)) > 1


__all__ = [
    "IMAGE",
    "IMAGE_AFFIX",
    "MASK",
    "MASK_AFFIX",
    "are_splits",
    "guess_roles",
    "guess_splits",
    "mask_word",
    "named_folder",
    "read_folder_name",
    "split_of_name",
    "strip_affix",
]
