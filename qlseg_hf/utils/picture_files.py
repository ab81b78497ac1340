# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Files of images in folders: which count, what their names tell, and how sentences list them."""

import os
import posixpath
from collections.abc import Iterable
from pathlib import Path

NUM_NAMED = 5  # files and labels that a sentence names
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".npy")


def is_hidden(name: str) -> bool:
    """Whether a file or folder is what systems and tools leave behind, such as `._x.jpg` of macOS."""
    return name.startswith((".", "__MACOSX", "@eaDir")) or name.lower() in ("thumbs.db", "desktop.ini")


def walk(folder: Path) -> tuple[list[str], list[str]]:
    """Paths of the files and of the folders at any depth, relative to `folder`, sorted, without hidden ones.

    Raises:
        ValueError: a link leads back to a folder above it.
    """
    files, folders = [], []
    for place, below, names in os.walk(folder, followlinks=True):
        below[:] = [name for name in below if not is_hidden(name)]
        real = os.path.realpath(place)
        for name in below:
            path = os.path.join(place, name)
            if f"{real}{os.sep}".startswith(f"{os.path.realpath(path)}{os.sep}"):
                raise ValueError(f"{path} is a link to a folder above it; remove it")
        inside = "" if Path(place) == folder else f"{Path(os.path.relpath(place, folder)).as_posix()}/"
        folders += [f"{inside}{name}" for name in below]
        files += [f"{inside}{name}" for name in names if not is_hidden(name)]
    return sorted(files), sorted(folders)


def base_of(name: str) -> str:
    """A path's last name. Here and below texts are cut, because `pathlib` takes seconds for 20 000 files."""
    return name.rpartition("/")[2]


def suffix_of(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def is_picture(name: str) -> bool:
    return suffix_of(name) in PICTURE_SUFFIXES


def stem_of(name: str) -> str:
    """A path without the ending of its file."""
    return posixpath.splitext(name)[0]


def listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more


__all__ = [
    "NUM_NAMED",
    "PICTURE_SUFFIXES",
    "base_of",
    "is_hidden",
    "is_picture",
    "listed",
    "stem_of",
    "suffix_of",
    "walk",
]
