# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Images in tables and archives: parquet files, tar files of webdataset, data sets of `datasets`, saved or on the Hub.

What is listed are places: row numbers, and where a member of a tar file begins. The image is read when it is its turn,
in whichever process; a table is sent there as the names of its files.
"""

import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec

from ..data.layouts.columns import IMAGE_COLUMNS
from ..data.samples import import_datasets, picture_source
from ..utils.optional import import_package
from ..utils.picture_files import is_picture, listed, stem_of, suffix_of
from .items import OPEN_TABLES, Item, SourceOptions, TarMember, safe_name

KINDS_OF_PICTURES = ("string", "large_string", "binary", "large_binary", "struct")  # of a column of a parquet file


def items_of_file(address: str, name: str, options: SourceOptions) -> Iterator[Item]:
    """The images in a .parquet or .tar file; their names begin with the file's, `name`."""
    if suffix_of(address) == ".tar":
        return _tar_items(address, name, options)
    return _parquet_items(address, name, options)


def _stamp(address: str) -> tuple:
    """Size and time of a file, as far as its file system tells them."""
    filesystem, path = fsspec.core.url_to_fs(address)
    info = filesystem.info(path)
    return info.get("size"), str(info.get("mtime") or info.get("LastModified") or info.get("ETag") or "")


def _find_column(given: str | None, columns: dict[str, bool], where: str) -> str:
    """`given`, or the only column with a usual name that may hold pictures. `columns`: name -> whether it may."""
    if given is not None:
        if given not in columns:
            raise ValueError(f"{where} has no column {given!r}; it has {', '.join(columns)}")
        return given
    found = [name for name, may_hold in columns.items() if may_hold and name.lower() in IMAGE_COLUMNS]
    if len(found) != 1:
        reason = f"{', '.join(found)} could all be it" if found else "no column looks like it"
        raise ValueError(f"give --image_column: {reason}; {where} has {', '.join(columns)}")
    return found[0]


# --------------------------------------------------------------------------------------------------------- tar files


def _tar_items(address: str, name: str, options: SourceOptions) -> Iterator[Item]:
    """The pictures in an uncompressed tar file; of several with one key, those of `image_column`'s ending."""
    try:
        with fsspec.open(address, "rb").open() as file, tarfile.open(fileobj=file, mode="r:") as archive:
            members = [(m.name, m.offset_data, m.size) for m in archive if m.isfile() and is_picture(m.name)]
    except tarfile.TarError as error:
        raise ValueError(
            f"{address} cannot be read as a tar file: {error}; a compressed one has to be unpacked first"
        ) from error
    if options.image_column is not None:
        members = [member for member in members if member[0].lower().endswith(f".{options.image_column.lower()}")]
    counts = Counter(stem_of(member) for member, *_ in members)
    if twice := [member for member, *_ in members if counts[stem_of(member)] > 1]:
        raise ValueError(
            f"{address} holds several pictures of one name: {listed(twice)}; give --image_column jpg, or whatever "
            "ending the pictures to segment have"
        )
    stamp = _stamp(address)
    for member, start, size in members:
        source = f"{address}:{member}"
        reader = TarMember(address, start, size, source)
        yield Item(safe_name(f"{name}/{stem_of(member)}"), source, (*stamp, start, size), reader)


# ----------------------------------------------------------------------------------------------------------- parquet


@dataclass(frozen=True)
class _ParquetRow:
    """A cell of a parquet file: bytes, or a path, which is relative to the file's folder."""

    options = ("image_column",)
    address: str
    group: int
    row: int  # in the group
    column: str
    source: str

    def read(self) -> Any:
        cell = _row_group(self.address, self.group, self.column)[self.row].as_py()
        if isinstance(cell, dict) and cell.get("bytes") is None:
            cell = cell.get("path")
        if isinstance(cell, str) and "://" not in cell:
            cell = os.path.join(os.path.dirname(self.address), cell)
        return picture_source(cell, self.source)


def _parquet():
    return import_package("pyarrow.parquet", "ParquetFile", "a parquet file", "'qlseg-hf[train]'")


@lru_cache(maxsize=2)
def _row_group(address: str, group: int, column: str):
    """One column of a row group; rows are asked for in their order."""
    with fsspec.open(address, "rb").open() as file:
        return _parquet().ParquetFile(file).read_row_group(group, columns=[column]).column(0)


def _parquet_items(address: str, name: str, options: SourceOptions) -> Iterator[Item]:
    """The rows of a parquet file, called by their numbers."""
    import pyarrow

    try:
        with fsspec.open(address, "rb").open() as file:
            table = _parquet().ParquetFile(file)
            schema, metadata = table.schema_arrow, table.metadata
            counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{address} cannot be read as a parquet file: {error}") from error
    is_kind = [getattr(pyarrow.types, f"is_{kind}") for kind in KINDS_OF_PICTURES]
    may_hold = {field.name: any(fits(field.type) for fits in is_kind) for field in schema}
    column, stamp, number = _find_column(options.image_column, may_hold, address), _stamp(address), 0
    for group, count in enumerate(counts):
        for row in range(count):
            source = f"{address}:{number}"
            reader = _ParquetRow(address, group, row, column, source)
            yield Item(safe_name(f"{name}/{number:08d}"), source, (*stamp, number), reader)
            number += 1


# ---------------------------------------------------------------------------------------------------------- datasets


@dataclass(frozen=True)
class _TableRow:
    options = ("image_column", "split", "dataset_config")
    table: str  # of OPEN_TABLES
    row: int
    column: str

    def read(self) -> Any:
        return picture_source(OPEN_TABLES[self.table][self.row][self.column], f"{self.table}:{self.row}")


def saved_items(folder: Path, options: SourceOptions) -> Iterator[Item]:
    """The rows of what `save_to_disk` wrote."""
    datasets = import_datasets(f"data set {folder}")
    table = datasets.load_from_disk(str(folder))
    splits = dict(table) if isinstance(table, dict) else {str(table.split or "train"): table}
    yield from _table_items(splits, str(folder), options)


def hub_items(source: str, options: SourceOptions) -> Iterator[Item]:
    """The rows of a data set on the Hub, which is downloaded."""
    datasets = import_datasets(f"data set {source}")
    splits = datasets.load_dataset(source, options.dataset_config)
    yield from _table_items(dict(splits), source, options)


def _table_items(splits: dict[str, Any], source: str, options: SourceOptions) -> Iterator[Item]:
    """The rows of one split, or of all, called by split and number."""
    datasets = import_datasets(source)
    if options.split is not None and options.split not in splits:
        raise ValueError(f"{source} has no split {options.split!r}; it has {', '.join(splits)}")
    for split in [options.split] if options.split is not None else splits:
        table, name = splits[split], f"{source}:{split}"
        may_hold = {
            column: isinstance(feature, datasets.Image) or getattr(feature, "dtype", "") in ("binary", "string")
            for column, feature in table.features.items()
        }
        column = _find_column(options.image_column, may_hold, source)
        table = table.select_columns([column])
        if isinstance(table.features[column], datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
        OPEN_TABLES[name] = table
        for row in range(len(table)):
            reader = _TableRow(name, row, column)
            yield Item(safe_name(f"{split}/{row:08d}"), f"{name}:{row}", (table._fingerprint, row), reader)


__all__ = ["hub_items", "items_of_file", "saved_items"]
