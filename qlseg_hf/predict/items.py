# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What is known of an image before it is read: its name, and how to read it. Small, and sent between processes."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import fsspec

from ..model.image_io import NamedBytes

OPEN_TABLES: dict[str, Any] = {}  # tables of `datasets` by their name; what starts a process hands them over


class Reader(Protocol):
    """Says where an image lies; small, and sent to the process that reads it.

    `options`: the names of those `SourceOptions` that it depends on.
    """

    options: ClassVar[tuple[str, ...]]

    def read(self) -> Any:
        """What `load_picture` takes. Raises OSError or ValueError."""


@dataclass(frozen=True)
class Video:
    """A video file, or the number of a camera of this machine; the first `max_frames` frames are wanted, or all."""

    options = ("max_frames",)
    source: str | int
    max_frames: int | None = None


@dataclass(frozen=True)
class Item:
    """One image to segment.

    `name`: path of its results below each folder of the output, without ending. `source`: where it lies, for people
    and for the manifest. `stamp`: what is another one once the image has changed, such as size and time.
    """

    name: str
    source: str
    stamp: tuple
    reader: Reader | Video


@dataclass(frozen=True)
class LocalFile:
    """A file of this machine."""

    options = ()
    path: str

    def read(self) -> Path:
        return Path(self.path)


@dataclass(frozen=True)
class RemoteFile:
    """A file that fsspec opens."""

    options = ()
    address: str

    def read(self) -> NamedBytes:
        with fsspec.open(self.address, "rb").open() as file:
            return NamedBytes(file.read(), self.address)


@dataclass(frozen=True)
class TarMember:
    """`length` bytes from `start` on of a tar file that fsspec opens. `name`: for people."""

    options = ("image_column",)
    address: str
    start: int
    length: int
    name: str

    def read(self) -> NamedBytes:
        with fsspec.open(self.address, "rb").open() as file:
            file.seek(self.start)
            return NamedBytes(file.read(self.length), self.name)


@dataclass(frozen=True)
class WebPicture:
    """A picture on the web."""

    options = ()
    address: str

    def read(self) -> str:
        return self.address


@dataclass(frozen=True)
class SourceOptions:
    """What may be said about sources: see `find_items`."""

    image_column: str | None = None
    split: str | None = None
    dataset_config: str | None = None
    left_out: Path | None = None
    max_frames: int | None = None


def safe_name(name: str) -> str:
    """A path that stays below the folder it is joined to: no root, no drive, no way up. ValueError for no name."""
    parts = [part for part in name.replace(os.sep, "/").split("/") if part not in ("", ".", "..")]
    if not parts:
        raise ValueError(f"a source without a name ({name!r}); results are called after it, so rename it")
    return "/".join(part.removesuffix(":") if index == 0 else part for index, part in enumerate(parts))


__all__ = [
    "OPEN_TABLES",
    "Item",
    "LocalFile",
    "Reader",
    "RemoteFile",
    "SourceOptions",
    "TarMember",
    "Video",
    "WebPicture",
    "safe_name",
]
