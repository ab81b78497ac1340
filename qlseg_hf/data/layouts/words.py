# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What names of folders and files tell: whether they hold images or label maps, and of which split."""

import re

from .splits import SPLIT_WORDS

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
)
MASK_AFFIX = (
    "labelTrainIds|labelIds|masks?|labels?|lbl|gt|ground[-_]?truth|seg(?:mentation)?s?|annot(?:ation)?s?|targets?"
)
IMAGE_AFFIX = "leftImg8bit|images?|img|rgb|photos?|pictures?|sat|inputs?|orig(?:inal)?"


def strip_affix(stem: str, affix: str) -> str:
    """A stem without what says that it is an image or a label map: `a_mask`, `a.mask`, `mask_a`; else as it is."""
    found = re.fullmatch(rf"(.+?)[-_. ](?:{affix})|(?:{affix})[-_. ](.+)", stem, re.IGNORECASE)
    return (found[1] or found[2]) if found else stem


def read_folder_name(name: str, roles: tuple[str, str] | None = None) -> tuple[str | None, str | None]:
    """(role, split) that a folder's name tells; either may be None."""
    if roles is not None:
        return {roles[0]: IMAGE, roles[1]: MASK}.get(name), name if name.lower() in SPLIT_WORDS else None
    plain = re.sub(r"[^a-z0-9]", "", re.sub(r"[-_. ](png|jpe?g|tiff?|bmp)s?$", "", name.lower()))
    role_of = dict.fromkeys(IMAGE_WORDS, IMAGE) | dict.fromkeys(MASK_WORDS, MASK)
    if plain in role_of:
        return role_of[plain], None
    if name.lower() in SPLIT_WORDS:
        return None, name
    for split in sorted(SPLIT_WORDS, key=len, reverse=True):
        if split in plain and (role := role_of.get(plain.replace(split, "", 1))):
            start = name.lower().find(split)
            return role, name[start : start + len(split)] if start >= 0 else split
    return None, None


__all__ = ["IMAGE", "IMAGE_AFFIX", "MASK", "MASK_AFFIX", "read_folder_name", "strip_affix"]
