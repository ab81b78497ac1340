# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Cityscapes: leftImg8bit and gtFine, or gtCoarse, as training ids or as the 34 label ids."""

from collections import defaultdict
from functools import partial

from ...utils.picture_files import listed
from ..samples import FolderSamples
from .layout import Family, Found, Source

NAMES = [
    *(
        "road",
        "sidewalk",
        "building",
        "wall",
        "fence",
        "pole",
        "traffic light",
        "traffic sign",
        "vegetation",
        "terrain",
    ),
    *("sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
]
VOID = 255
# label ids of the 19 training ids, in their order; the other ids 0..33 do not count
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
LABEL_MAPPING = {value: LABEL_IDS.index(value) if value in LABEL_IDS else VOID for value in range(34)}
OTHER_ENDINGS = ("_instanceIds.png", "_instanceTrainIds.png", "_color.png", "_polygons.json")
IMAGE_ENDING = "_leftImg8bit.png"
TREES = {
    "cityscapes": "leftImg8bit/{train,val}/CITY/a_leftImg8bit.png  gtFine/{train,val}/CITY/a_gtFine_labelIds.png  "
    "(or _labelTrainIds.png, or gtCoarse)"
}


def find_cityscapes(source: Source) -> Found | None:
    """Splits of leftImg8bit. Training ids count where there are some, else label ids with their `label_mapping`."""
    images = files_below(source, "leftImg8bit")
    places = [(place, found) for place in ("gtFine", "gtCoarse") if (found := files_below(source, place))]
    place, maps = places[0] if places else ("", {})
    kinds = [kind for kind in ("labelTrainIds", "labelIds") if any(path.endswith(f"_{kind}.png") for path in maps)]
    pictures = defaultdict(list)
    for path in images:
        if "/" in path and path.endswith(IMAGE_ENDING):
            pictures[path.partition("/")[0]].append(path)
    if pictures and maps and all(path.endswith(OTHER_ENDINGS) for path in maps):
        raise ValueError(
            f"{source.root} has {place} without labels: each image needs its _labelIds.png, which is in the archive "
            f"of {place}, or its _labelTrainIds.png, which Cityscapes' scripts make of the polygons"
        )
    if not pictures or not kinds:
        return None
    kind, openers, notes = kinds[0], {}, []
    for split, own in sorted(pictures.items()):
        names = [f"{path.removesuffix(IMAGE_ENDING)}_{place}_{kind}.png" for path in own]
        if not any(name in maps for name in names):
            notes.append(f"{len(own)} images of {split} have no label maps at all, so this is no split here")
            continue
        pairs = [(images[path], maps.get(name, f"{place}/{name}")) for path, name in zip(own, names)]
        openers[split] = partial(open_pairs, source, split, pairs, kind, notes)
    strange = [path for path in images.values() if not path.endswith(IMAGE_ENDING)]
    if strange:
        notes.append(
            f"{len(strange)} files in leftImg8bit do not end with {IMAGE_ENDING} and are left out: {listed(strange)}"
        )
    first = next(source.root / path for path in maps.values() if path.endswith(f"_{kind}.png"))
    return Found(
        "cityscapes",
        f"leftImg8bit and {place} ({kind})",
        openers,
        label_names=NAMES,
        names_from="Cityscapes",
        ignore_index=VOID,
        label_mapping=LABEL_MAPPING if kind == "labelIds" else None,
        notes=notes,
        first_mask=first,
    )


def files_below(source: Source, folder: str) -> dict[str, str]:
    """{path below a folder of that name, wherever it lies: path} of the files in it."""
    parts = {path: f"/{path}".partition(f"/{folder}/")[2] for path in source.files}
    return {below: path for path, below in parts.items() if below}


def open_pairs(source: Source, split: str, pairs: list[tuple[str, str]], kind: str, notes: list[str]) -> FolderSamples:
    """The samples of one split; ValueError if label maps are missing."""
    files = set(source.files)
    if missing := [pair for pair in pairs if pair[1] not in files]:
        raise ValueError(
            f"{len(missing)} of {len(pairs)} label maps are missing in {source.root}, the first is {missing[0][1]} of "
            f"picture {missing[0][0]}; each image needs its _{kind}.png"
        )
    return FolderSamples(source.root, pairs, split, source.colors, notes)


CITYSCAPES = Family(TREES, find_cityscapes)

__all__ = ["CITYSCAPES"]
