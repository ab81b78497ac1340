# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Files of a data set: which may be label maps, what lies in a folder in words, and which file an annotation means."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from ...utils.picture_files import base_of, is_picture, listed, stem_of, suffix_of

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".npy")
LOSSY_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".webp")  # JPEG changes labels at every edge, and WebP may
MASK_FOLDER = re.compile(
    r"(^|/)([^/]*[-_ ])?(masks?|labels?|gt|seg|segmentation(class)?|annotations?)/", re.IGNORECASE
)
MAX_FOLDERS, MAX_NAMES = 12, 3  # of what was seen


def delimiter_of(line: str) -> str:
    """What parts the cells of a table's first line: a tab, a semicolon or a comma, whichever is most frequent."""
    return max(",;\t", key=line.count)


def describe_files(root: Path, files: list[str], folders: list[str]) -> str:
    """What lies in a folder, a line per folder: counts by ending and a few names."""
    if not files:
        return f"{root} holds no files" + (f", only the folders {listed(folders)}" if folders else "")
    by_folder = defaultdict(list)
    for name in files:
        by_folder[PurePosixPath(name).parent.as_posix()].append(PurePosixPath(name).name)
    lines = []
    for folder, names in sorted(by_folder.items())[:MAX_FOLDERS]:
        counts = Counter(suffix_of(name) or "no ending" for name in names).most_common(4)
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts)
        more = ", ..." if len(names) > MAX_NAMES else ""
        lines.append(f"  {folder}/: {kinds} ({', '.join(names[:MAX_NAMES])}{more})")
    if len(by_folder) > MAX_FOLDERS:
        lines.append(f"  and {len(by_folder) - MAX_FOLDERS} more folders")
    return "\n".join([f"{root} holds", *lines])


class Locator:
    """Finds the file of a data set that a list or an annotation means; it never leaves the data set."""

    def __init__(self, files: Iterable[str]):
        self.by_ending = defaultdict(list)  # by file name, with and without ending
        for path in files:
            name = base_of(path)
            for key in dict.fromkeys(normalize("NFC", key) for key in (name, stem_of(name))):
                self.by_ending[key].append(path)

    def may_find(self, name: str) -> bool:
        """Whether a file has this name, with or without its ending or with another, wherever it lies."""
        own = normalize("NFC", base_of(name.strip().replace("\\", "/")))
        return own in self.by_ending or (is_picture(own) and stem_of(own) in self.by_ending)

    def find(self, name: str, near: str = "") -> str | None:
        """The file whose path ends as `name` does, with or without its ending; None if there is none.

        Args:
            name: file name or path; of an absolute one, and of one that climbs, as much as fits counts.
            near: the folder that is looked in first.

        Raises:
            ValueError: several files fit equally well.
        """
        name = normalize("NFC", name)
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        found = self.by_ending.get(parts[-1], []) if parts else []
        exact = [path for path in found if normalize("NFC", base_of(path)) == parts[-1]]
        found = exact or found
        for count in range(2, len(parts) + 1):  # the more of the path fits the better
            tail = "/".join(parts[-count:-1])
            longer = [path for path in found if f"/{normalize('NFC', path.rpartition('/')[0])}".endswith(f"/{tail}")]
            if not longer:
                break
            found = longer
        if len(found) > 1:
            found = [path for path in found if PurePosixPath(path).is_relative_to(near)] or found
        if len(found) > 1:
            found = [path for path in found if not MASK_FOLDER.search(path)] or found
        if len(found) > 1:
            raise ValueError(f"{name!r} could mean {listed(found)}; write more of its path, or rename them")
        return found[0] if found else None


__all__ = ["LOSSY_SUFFIXES", "MASK_SUFFIXES", "Locator", "delimiter_of", "describe_files"]
