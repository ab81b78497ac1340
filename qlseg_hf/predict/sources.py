# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Where images come from: files, folders, globs, lists, addresses of fsspec; tables and tar files lie in `tables`.

An `Item` says how to read one image and what its results are called. Nothing is read here but folders and indices.
"""

import glob
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from types import ModuleType

import fsspec
from PIL import Image, UnidentifiedImageError

from ..utils.picture_files import PICTURE_SUFFIXES, is_hidden, is_picture, listed, stem_of, suffix_of, walk
from ..utils.text import read_text
from .items import Item, LocalFile, RemoteFile, SourceOptions, Video, WebPicture, safe_name

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
TABLE_SUFFIXES = (".parquet", ".tar")
STAMPS = ("mtime", "LastModified", "last_modified", "updated", "ETag", "etag", "md5Hash", "blob_id")
# what may be said of which sources
KINDS = {
    "image_column": "tables and tar files",
    "split": "data sets of `datasets` (of a folder give that of the split, or a .txt list of its images)",
    "dataset_config": "data sets on the Hub",
    "max_frames": "videos and cameras",
}
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def _tables() -> ModuleType:
    """Imported when a source is a table: all layouts of data sets come with it."""
    from . import tables

    return tables


def find_items(sources: list[str], options: SourceOptions | None = None) -> tuple[list[Item], list[str]]:
    """The images that sources mean, sorted by name.

    Args:
        sources: each a picture file, a folder (pictures at any depth, but no label maps of others; if it holds none,
            its .tar and .parquet files, else its videos; or what `datasets` saved), a pattern with *, ? and [ (** for
            any depth), a .txt file with a path or address per line, a .parquet or .tar file, `{000..012}` for a range
            of them, a video, the number of a camera, an address that fsspec opens (s3://, gs://, hf://, file://, ...)
            of any of these but videos, or the id of a data set on the Hub.
        options: `image_column` of tables, and ending of tar members; `split` and `dataset_config` of data sets (all
            splits if not given); `left_out`: a folder in which no sources are looked for, because results lie there.

    Returns:
        items, and sentences on files that were left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: nothing was found, two images would have results of one name, or a source is none.
    """
    options, notes = options or SourceOptions(), []
    found: dict[str, Item] = {}
    for source in sources:
        count = 0
        for item in _items_of(source, options, notes):
            count += 1
            other = found.setdefault(item.name, item)
            if other.source != item.source:
                raise ValueError(
                    f"{other.source} and {item.source} would both give {item.name}.png; rename one, or predict them "
                    "into different folders"
                )
        if not count:
            raise ValueError(f"{source} holds no pictures ({', '.join(PICTURE_SUFFIXES)})")
    _check_options(options, found.values(), sources)
    if bare := [item.source for item in found.values() if not item.stamp]:
        notes.append(
            f"{len(bare)} images are named by addresses of which size and time are not asked, so they are not redone "
            f"if they change; give another --output for that: {listed(bare)}"
        )
    return [found[name] for name in sorted(found)], notes


def _check_options(options: SourceOptions, items: Iterable[Item], sources: list[str]) -> None:
    """ValueError for what was said about sources of another kind, which would be passed over."""
    used = {name for item in items for name in item.reader.options}
    for name, kind in KINDS.items():
        if getattr(options, name) is not None and name not in used:
            raise ValueError(f"--{name} is of {kind}, and says nothing about {listed(sources)}; leave it out")


def _items_of(source: str, options: SourceOptions, notes: list[str]) -> Iterator[Item]:
    """The items of one source."""
    if match := re.search(r"\{(\d+)\.\.(\d+)\}", source):
        for number in range(int(match[1]), int(match[2]) + 1):
            yield from _items_of(
                f"{source[: match.start()]}{number:0{len(match[1])}d}{source[match.end() :]}", options, notes
            )
    elif source.startswith(("http://", "https://")):
        yield Item(safe_name(stem_of(PurePosixPath(source.partition("?")[0]).name)), source, (), WebPicture(source))
    elif "://" in source:
        yield from _remote_items(source, options, notes)
    elif os.path.isdir(source):
        yield from _folder_items(Path(source), options, notes)
    elif os.path.exists(source):
        _check_kind(Path(source))
        yield from _file_items(Path(source), Path(source).name, options)
    elif source.isdecimal():
        number = int(source)
        yield Item(f"camera-{number}", f"camera {number}", (time.time(),), Video(number, options.max_frames))
    elif glob.has_magic(source):
        yield from _glob_items(source, options, notes)
    elif (
        HUB_ID.fullmatch(source)
        and suffix_of(source) not in PICTURE_SUFFIXES
        and not os.path.isdir(os.path.dirname(source))
    ):
        yield from _tables().hub_items(source, options)
    else:
        os.stat(source)  # which says that it is not there


def _check_kind(path: Path) -> None:
    """ValueError for a file of another kind, such as a .csv or .zip, which would be tried as a picture and fail."""
    if suffix_of(path.name) in ("", ".txt", *PICTURE_SUFFIXES, *TABLE_SUFFIXES, *VIDEO_SUFFIXES):
        return
    try:
        Image.open(path).close()
    except UnidentifiedImageError as error:
        kinds = ", ".join((*PICTURE_SUFFIXES, ".txt", *TABLE_SUFFIXES, *VIDEO_SUFFIXES))
        raise ValueError(
            f"{path} is of no kind that is read here ({kinds}); list paths in a .txt file, one a line, and unpack "
            "archives"
        ) from error


def _file_items(path: Path, name: str, options: SourceOptions) -> Iterator[Item]:
    """The items of a file: a picture, or several in a list, table or tar file. `name`: its path in SOURCE."""
    suffix = suffix_of(name)
    if suffix == ".txt":
        yield from _list_items(path, options)
    elif suffix in TABLE_SUFFIXES:
        yield from _tables().items_of_file(path.as_posix(), stem_of(name), options)
    elif suffix in VIDEO_SUFFIXES:
        stat = path.stat()
        stamp = (stat.st_size, stat.st_mtime_ns, options.max_frames)
        yield Item(safe_name(stem_of(name)), str(path), stamp, Video(str(path), options.max_frames))
    else:
        yield from _picture_item(path, name)


def _folder_items(folder: Path, options: SourceOptions, notes: list[str]) -> Iterator[Item]:
    """Pictures below a folder; without any, its tables and tar files; or the rows of what `datasets` saved."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        yield from _tables().saved_items(folder, options)
        return
    names = [name for name in walk(folder)[0] if not _is_left_out(folder / name, options)]
    for name in _wanted(_drop_label_maps(names, folder, notes), folder, notes):
        yield from _file_items(folder / name, name, options)


def _drop_label_maps(names: list[str], where: str | Path, notes: list[str]) -> list[str]:
    """The files of a folder without those that are label maps of others, if it is a data set. These are noted."""
    from ..data.layouts.folders import find_label_maps  # all kinds of samples come with it
    from ..data.layouts.pairs import find_masks_beside

    label_maps = find_label_maps(names) or find_masks_beside(names)
    if label_maps:
        notes.append(
            f"{len(label_maps)} files in {where} are left out, because they are label maps of images there, by "
            f"their names or folders: {listed(sorted(label_maps))}; give them too if they are images"
        )
    return [name for name in names if name not in label_maps]


def _wanted(names: list[str], where: str | Path, notes: list[str]) -> list[str]:
    """The pictures among files; without any, tables and tar files, or else videos. What is left out is noted."""
    wanted = [name for name in names if is_picture(name)]
    for others in (TABLE_SUFFIXES, VIDEO_SUFFIXES):
        wanted = wanted or [name for name in names if suffix_of(name) in others]
    if others := sorted(set(names) - set(wanted)):
        notes.append(f"{len(others)} files in {where} are left out: {listed(others)}")
    return wanted


def _is_left_out(path: Path, options: SourceOptions) -> bool:
    return options.left_out is not None and path.resolve().is_relative_to(options.left_out.resolve())


def _glob_items(pattern: str, options: SourceOptions, notes: list[str]) -> Iterator[Item]:
    """What a pattern matches; names begin where the pattern does."""
    parts = PurePosixPath(Path(pattern).as_posix()).parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    base = Path(*parts[:fixed])
    matches = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if not is_hidden(path.name))
    files = {path.relative_to(base).as_posix() for path in matches if path.is_file()}
    for folder in matches:
        if folder.is_dir() and "**" not in parts:
            files |= {(folder / name).relative_to(base).as_posix() for name in walk(folder)[0]}
    names = sorted(name for name in files if not _is_left_out(base / name, options))
    if not names:
        raise FileNotFoundError(f"{pattern} matches no files")
    for name in _wanted(names, pattern, notes):
        yield from _file_items(base / name, name, options)


def _list_items(path: Path, options: SourceOptions) -> Iterator[Item]:
    """The pictures that a text file lists, a path or address per line; paths are relative to the list's folder."""
    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a list of pictures: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        if "://" in line:
            name = line.partition("://")[2]
            file = WebPicture(line) if line.startswith("http") else RemoteFile(line)
            yield Item(safe_name(stem_of(name)), line, (), file)
            continue
        picture = path.parent / line
        if not picture.is_file():
            raise FileNotFoundError(f"line {number} of {path}: there is no file {line}")
        name = os.path.relpath(picture, path.parent) if not os.path.isabs(line) else line
        yield from _picture_item(picture, Path(name).as_posix())


def _picture_item(path: Path, name: str) -> Iterator[Item]:
    stat = path.stat()
    yield Item(safe_name(stem_of(name)), str(path), (stat.st_size, stat.st_mtime_ns), LocalFile(str(path)))


def _remote_items(address: str, options: SourceOptions, notes: list[str]) -> Iterator[Item]:
    """The items at an address of fsspec: a file, a folder or a pattern."""
    filesystem, path = fsspec.core.url_to_fs(address)
    if glob.has_magic(address):
        fixed = path[: re.search(r"[*?\[]", path).start()].rpartition("/")[0]
        details = filesystem.glob(path, detail=True)
    elif filesystem.isfile(path):
        fixed, details = path.rpartition("/")[0], {path: filesystem.info(path)}
    else:
        fixed, details = path.rstrip("/"), filesystem.find(path, detail=True)
    files = {name[len(fixed) :].lstrip("/"): info for name, info in details.items() if info["type"] == "file"}
    files = {name: info for name, info in files.items() if not any(map(is_hidden, name.split("/")))}
    if not files:
        raise FileNotFoundError(f"there are no files at {address}")
    names = sorted(files) if glob.has_magic(address) else _drop_label_maps(sorted(files), address, notes)
    names = names if filesystem.isfile(path) else _wanted(names, address, notes)
    for name in names:
        info = files[name]
        whole = filesystem.unstrip_protocol(info["name"])
        if suffix_of(name) in TABLE_SUFFIXES:
            yield from _tables().items_of_file(whole, stem_of(name), options)
            continue
        stamp = (info.get("size"), *(str(info[key]) for key in STAMPS if info.get(key) is not None))
        yield Item(safe_name(stem_of(name)), whole, stamp, RemoteFile(whole))


__all__ = ["find_items"]
