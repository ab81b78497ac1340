# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What names of folders and files tell: whether they hold images or label maps, and of which split."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache

from ...utils.picture_files import listed
from .splits import ALL, SPLIT_WORDS, TRAIN_SPLITS, find_kind

IMAGE, MASK = "image", "mask"
IMAGE_WORDS = (
    *("image", "images", "img", "imgs", "imgdir", "imagedir", "picture", "pictures", "photo", "photos", "rgb"),
    *("jpegimages", "input", "inputs", "original", "originals", "originalimages"),
)
MASK_WORDS = (
    *("mask", "masks", "maskdir", "label", "labels", "labeldir", "annotation", "annotations", "ann", "anns", "anndir"),
    *("annot", "annots", "gt", "gts", "groundtruth", "groundtruths", "seg", "segs", "segmentation", "segmentations"),
    *("segmentationclass", "segmentationmask", "segmentationmasks", "segmask", "segmasks", "target", "targets"),
    *("labelmap", "labelmaps", "stuffthingmaps", "stuffpixelmaps", "semanticmasks", "annotationimages", "gtmaps"),
    *("labelids", "labelsids", "categoryids", "classids", "defaultannot"),
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
# Words of what is no label map of classes; where another folder may hold these, they are asked about
OTHER_KINDS = {
    *("instance", "instances", "inst", "object", "panoptic", "color", "colors", "colour", "colored"),
    *("coloured", "rgb", "vis", "visual", "visualization", "visualizations", "overlay", "overlays", "preview"),
    *("depth", "depths", "disparity", "edge", "edges", "boundary", "boundaries", "contour", "contours", "distance"),
    *("normal", "normals", "thermal", "nir", "ir", "confidence", "weight", "weights", "pred", "preds", "predictions"),
}
ROLE_IN_SPLIT = ROLE_OF | {"x": IMAGE, "y": MASK}  # train_x and train_y
SHORT_SPLITS = {"tr": "train", "va": "validation", "vd": "validation", "te": "test", "ts": "test"}  # DUTS-TR, imagesTs
LONGEST_FIRST = sorted(SPLIT_WORDS, key=len, reverse=True)


def strip_affix(stem: str, affix: str) -> str:
    """A stem without what says that it is an image or a label map: `a_mask`, `a.mask`, `mask_a`, `mask1`.

    Another is as it is. One of several masks of an image may have a number, as `a_mask_1`. Neither does the ending of
    the image count in the name of its label map, as in `a.jpg.png`.
    """
    stem = re.sub(r"\.(png|jpe?g|tiff?|bmp)$", "", stem, flags=re.IGNORECASE)
    number = r"(?:[-_. ]?\d+)?" if affix == MASK_AFFIX else ""
    found = re.fullmatch(rf"(.+?)[-_. ](?:{affix}){number}|(?:{affix})(?:[-_. ]|(?=\d))(.+)", stem, re.IGNORECASE)
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


def tells_other_kind(folder: str) -> bool:
    """Whether a word in a folder's name says that it holds something else than label maps of classes."""
    return not OTHER_KINDS.isdisjoint(word.lower() for word in words_in(folder))


def guess_splits(names: Collection[str]) -> dict[str, str]:
    """Splits by words in folders' names, where names that are else the same tell several: `uavid_train`, `uavid_val`.

    Other folders may be called `train_station`; but if all names tell a split, it is enough that they share a word:
    `SBU-Test`, `SBUTrain4K`.
    """
    told = {name: found for name in names if (found := _split_in(name))}
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    for name, (split, others) in told.items():
        groups.setdefault(others, {})[name] = split
    if len(told) == len(names) > 1 and set.intersection(*(set(others) for _, others in told.values())):
        groups = {(): {name: split for name, (split, _) in told.items()}}
    several = [group for group in groups.values() if len(set(map(find_kind, group.values()))) > 1]
    return {name: split for group in several for name, split in group.items()}


def _split_in(name: str) -> tuple[str, tuple[str, ...]] | None:
    """The split that a folder's name tells, and its other words. What numbers it is none: `a. Training`."""
    words = [word for place, word in enumerate(words_in(name)) if place or not re.fullmatch(r"[a-zA-Z]|\d+", word)]
    if split := next((word for word in words if word.lower() in (*SPLIT_WORDS, *SHORT_SPLITS)), None):
        return SHORT_SPLITS.get(split.lower(), split), tuple(word.lower() for word in words if word != split)
    for split in LONGEST_FIRST:  # traincrop, dutstrain
        for rest in (name.lower().removeprefix(split), name.lower().removesuffix(split)):
            if len(rest) < len(name):
                return split, (rest,)
    return None


def guess_split_folders(paths: Collection[Sequence[str]]) -> dict[str, str]:
    """What `guess_splits` says of those folders on paths that are nearest to the top."""
    for depth in range(max(map(len, paths), default=0)):
        if found := guess_splits({folders[depth] for folders in paths if len(folders) > depth}):
            return found
    return {}


def drop_shared(told: Mapping[str, str], paths: Collection[Sequence[str]]) -> dict[str, str]:
    """Folders that tell a split without those on every path, if others tell one too: train/images/validation."""
    inside = {name: split for name, split in told.items() if any(name in folders for folders in paths)}
    shared = inside.keys() - set().union(*(inside.keys() - set(folders) for folders in paths))
    return {name: split for name, split in told.items() if name not in shared} if shared < inside.keys() else {**told}


def split_folders(files: Iterable[str]) -> dict[str, str]:
    """{folder: split} of those on the paths of files that tell one, by their whole names, else by words in them."""
    paths = [file.split("/")[:-1] for file in files]
    told = {name: name for folders in paths for name in folders if name.lower() in SPLIT_WORDS}
    return drop_shared(told, paths) if told else guess_split_folders(paths)


def split_by_folders(pictures: Iterable[str], notes: list[str]) -> dict[str, list[str]]:
    """Images by the first folder on their path that tells a split; one part, `ALL`, if there is none.

    Images in no such folder, where others are in one, are left out, which is added to `notes`.
    """
    pictures, found = list(pictures), {}
    told = split_folders(pictures)
    for picture in pictures:
        split = next((told[part] for part in picture.split("/")[:-1] if part in told), ALL)
        found.setdefault(split, []).append(picture)
    if len(found) > 1 and (left := found.pop(ALL, [])):
        notes.append(f"{len(left)} images lie in no folder of a split, and are left out: {listed(left)}")
    return found


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
    "drop_shared",
    "guess_split_folders",
    "guess_splits",
    "mask_word",
    "named_folder",
    "read_folder_name",
    "split_by_folders",
    "split_folders",
    "split_of_name",
    "strip_affix",
    "tells_other_kind",
]
