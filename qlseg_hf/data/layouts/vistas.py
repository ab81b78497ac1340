# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Mapillary Vistas: images and numbered label maps of one or two versions, whose names a JSON file gives."""

import json
import re
from functools import partial

from ...utils.picture_files import is_picture, listed, stem_of
from ...utils.text import read_text
from ..samples import FolderSamples
from .layout import Family, Found, Source

VOID, UNLABELED = 255, "void--unlabeled"
TREES = {
    "mapillary-vistas": "config_v2.0.json  {training,validation}/images/a.jpg  "
    "{training,validation}/v2.0/labels/a.png  (or config.json and training/labels)"
}


def read_labels(source: Source, name: str) -> list[dict] | None:
    """The labels of a version's JSON file, in the order of their numbers; None of another file."""
    try:
        content = json.loads(read_text(source.root / name))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{source.root / name} cannot be read: {error}") from error
    labels = content.get("labels") if isinstance(content, dict) else None
    is_one = isinstance(labels, list) and all(
        isinstance(label, dict) and isinstance(label.get("name"), str) and isinstance(label.get("readable"), str)
        for label in labels
    )
    return labels if is_one and labels else None


def find_vistas(source: Source) -> Found | None:
    """Splits of the newest version that has label maps. "Unlabeled" does not count; other kinds of void are labels."""
    if source.file is not None:
        return None
    versions = {}
    for name in source.files:
        found = re.fullmatch(r"config(?:_(v\d+(?:\.\d+)*))?\.json", name)
        if found and (labels := read_labels(source, name)):
            place = f"{found[1]}/labels" if found[1] else "labels"
            masks = [path for path in source.files if re.fullmatch(rf"[^/]+/{re.escape(place)}/[^/]+\.png", path)]
            if masks:
                versions[tuple(map(int, re.findall(r"\d+", found[1] or "")))] = name, place, labels, masks
    if not versions:
        return None
    config, place, labels, masks = versions.pop(max(versions))
    notes = [
        f"{other} is left out; layout: images:{folder} reads it, without names"
        for other, folder, _, _ in versions.values()
    ]
    openers = {}
    for split in sorted({path.split("/")[0] for path in source.files if re.match("[^/]+/images/", path)}):
        pictures = [path for path in source.files if path.startswith(f"{split}/images/") and is_picture(path)]
        if not any(path.startswith(f"{split}/") for path in masks):
            notes.append(f"{len(pictures)} images of {split} have no label maps at all, so this is no split here")
            continue
        pairs = [(path, f"{split}/{place}/{stem_of(path.split('/', 2)[2])}.png") for path in pictures]
        openers[split] = partial(open_pairs, source, split, pairs, set(masks), notes)
    kept = [label for label in labels if label["name"] != UNLABELED]
    names = [label["readable"].strip() for label in kept]
    names = names if len(set(names)) == len(names) else [label["name"] for label in kept]
    numbers = {label["name"]: number for number, label in enumerate(kept)}
    mapping = {value: numbers.get(label["name"], VOID) for value, label in enumerate(labels)}
    summary = f"Mapillary Vistas, images and {place}, names of {config}"
    first = source.root / masks[0]
    return Found("mapillary-vistas", summary, openers, names, config, VOID, mapping, notes, first)


def open_pairs(
    source: Source, split: str, pairs: list[tuple[str, str]], masks: set[str], notes: list[str]
) -> FolderSamples:
    """The samples of one split; ValueError if label maps are missing."""
    if missing := [mask for _, mask in pairs if mask not in masks]:
        raise ValueError(
            f"{len(missing)} of {len(pairs)} label maps are missing in {source.root}: {listed(missing)}; add them, or "
            "take their images out"
        )
    return FolderSamples(source.root, pairs, split, source.colors, notes)


VISTAS = Family(TREES, find_vistas)

__all__ = ["VISTAS"]
