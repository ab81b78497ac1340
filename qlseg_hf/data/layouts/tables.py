# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Tables: CSV, JSON lines, parquet, what `datasets` saved or reads, tar files of webdataset, and ids on the Hub."""

import csv
import glob
import io
import json
import re
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ...utils.picture_files import PICTURE_SUFFIXES, listed, suffix_of
from ...utils.text import first_line, read_text
from ..label_names import find_label_file, read_label_file
from ..samples import StreamedSamples, TableSamples, import_datasets
from .columns import MOST_ROWS, drop_decoding, find_columns
from .files import MASK_SUFFIXES, Locator, delimiter_of
from .layout import Family, Found, Opener, Source
from .splits import ALL, SPLIT_COLUMNS, SPLIT_WORDS, UNION_SPLITS, find_split, split_in_cell

UNUSED_COLUMNS = re.compile(r"k?_?folds?(_?id)?|is_?(train|val|valid|test)(ing|ation)?", re.IGNORECASE)
READERS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".ndjson": "json"}
SAVED = "saved by datasets"
NAMES_FILE = "id2label.json"
INFO_FILES = ("dataset_info.json", "dataset_infos.json")
BY_COLUMN = "splits by its column"
DATASETS_SUFFIXES = (".parquet", ".arrow")
METADATA = ("metadata.csv", "metadata.jsonl", "train.json", "train.zip")  # which `datasets` reads too
TREES = {
    "table": "train.csv  val.csv  (or .tsv, .jsonl, .parquet; columns image and mask: paths, or files as "
    "bytes); or what "
    "save_to_disk wrote",
    "webdataset": "train-0000.tar  val-0000.tar  (members a.jpg  a.png, or a.jpg  a.mask.png)",
    "hub": "OWNER/NAME, the id of a data set on the Hub",
}


def find_table(source: Source) -> Found | None:
    """A table in files, or what `datasets` saved."""
    if source.root is None:
        return find_on_hub(source)
    root = source.root
    if source.file is None and ((root / "dataset_dict.json").is_file() or (root / "state.json").is_file()):
        return find_saved(source)
    if text_files := text_tables(source):
        reader = READERS[suffix_of(text_files[0])]
        signs = {delimiter_of(read_head(source.root / name)[0]) for name in text_files if reader == "csv"}
        if len(signs) > 1:
            raise ValueError(f"{listed(text_files)} in {source.root} part their cells by different signs; use one")
        settings = {"delimiter": signs.pop(), "skipinitialspace": True} if signs else {}
        found = find_files(source, "table", f"table {listed(text_files)}", reader, text_files, settings)
        if source.file is None and not source.streaming and find_label_file(root, source.files, []):
            first = next(iter(next(iter(found.openers.values()))()), None)
            is_file = first is not None and isinstance(first.label_map, str)
            found = replace(found, first_mask=Path(first.label_map) if is_file else None)
        return found
    if source.file is not None and suffix_of(source.file.name) == ".parquet":
        return find_files(source, "table", f"table {source.file.name}", "parquet", [source.file.name], {})
    return None


def find_by_datasets(source: Source) -> Found | None:
    """A folder that `datasets` reads by its own rules, such as one that was copied from the Hub."""
    is_one = source.root is not None and source.file is None
    is_one = is_one and any(
        suffix_of(name) in DATASETS_SUFFIXES
        or (PurePosixPath(name).name in METADATA and "file_name" in read_head(source.root / name)[0])
        or PurePosixPath(name).name in METADATA[2:]
        for name in source.files
    )
    with naming_damage(source.data):
        return find_on_hub(source) if is_one else None


@contextmanager
def naming_damage(where: str) -> Iterator[None]:
    """Name the files in what readers say of damaged ones, as a ValueError."""
    try:
        yield
    except (
        ValueError,
        tarfile.TarError,
        zipfile.BadZipFile,
        import_datasets(where).exceptions.DatasetsError,
    ) as error:
        reason = str(error.__cause__ or error)
        raise ValueError(reason if where in reason else f"{where} cannot be read: {reason}") from error


def find_webdataset(source: Source) -> Found | None:
    """Tar files of webdataset, read through `datasets`."""
    tars = [source.file.name] if source.file is not None else source.files if source.root else []
    tars = [name for name in tars if suffix_of(name) == ".tar"]
    return find_files(source, "webdataset", f"tar files, {listed(tars)}", "webdataset", tars, {}) if tars else None


def text_tables(source: Source) -> list[str]:
    """CSV files or JSON lines at the top, or `metadata.csv` below, of one ending, that name images and label maps."""
    names = [name for name in source.files if "/" not in name or PurePosixPath(name).name in METADATA[:2]]
    names = names if source.file is None else [source.file.name]
    found = defaultdict(list)
    for name in names:
        if suffix_of(name) in READERS and (source.file is not None or names_files(source.root / name)):
            found[suffix_of(name)].append(name)
    if len(found) > 1:
        raise ValueError(
            f"{source.root} holds tables of several kinds: {listed(sum(found.values(), []))}; keep one, or "
            "give that file"
        )
    return next(iter(found.values()), [])


def read_head(path: Path) -> list[str]:
    """The first lines of a text file, one at least."""
    with path.open("rb") as file:
        text = file.read(1 << 16).decode("utf-8-sig", errors="replace")
    return text.splitlines()[:MOST_ROWS] or [""]


def names_files(path: Path) -> bool:
    """Whether one of the first rows of a table names two files or more."""
    lines = read_head(path)
    try:
        if READERS[suffix_of(path.name)] == "csv":
            rows = list(csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter_of(lines[0])))
        else:
            row = json.loads(lines[0])
            rows = [[v for v in row.values() if isinstance(v, str)]] if isinstance(row, dict) else []
    except (csv.Error, RecursionError, ValueError):
        return False
    endings = [[suffix_of(cell.strip()) for cell in row] for row in rows]
    return any(sum(ending in (*PICTURE_SUFFIXES, *MASK_SUFFIXES) for ending in row) >= 2 for row in endings)


def split_of_file(name: str) -> str:
    """The split that a file's name or its folder tells: `train-00000-of-00002`, `val/0001`."""
    path = PurePosixPath(name)
    words = [*re.split(r"[^a-zA-Z0-9]+", path.stem), *path.parent.parts[::-1]]
    return next((word for word in words if word.lower() in SPLIT_WORDS), ALL)


def find_files(source: Source, name: str, summary: str, reader: str, files: list[str], settings: dict) -> Found:
    """One table for each split that the files' names tell; one in all if they tell none."""
    by_split = defaultdict(list)
    for file in files:
        by_split[split_of_file(file)].append(str(source.root / file))
    notes = []
    if len(by_split) > 1 and ALL in by_split:
        left = by_split.pop(ALL)
        notes.append(f"{len(left)} files name no split and are left out: {listed(left)}")
    openers: dict[str, Opener] = {}
    for split, own in by_split.items():
        told = rows_of_splits(source, reader, own, settings)
        if told is None or (len(told[1]) == 1 and split != ALL):
            parts = {split: None}
            notes += tell_unused_columns(source, reader, own, settings, SPLIT_COLUMNS if told is None else ())
        else:
            column, parts, bare = told
            notes += bare
            summary += f", {BY_COLUMN} {column}"
        if twice := openers.keys() & parts.keys():
            raise ValueError(
                f"{source.data} has two parts called {', '.join(sorted(twice))}; give one table, or rename one"
            )
        openers |= {
            name: partial(open_files, source, name, reader, own, settings, rows) for name, rows in parts.items()
        }
    return Found(name, summary, openers, notes=notes)


def load_files(reader: str, files: list[str], settings: dict, streaming: bool = False):
    """The table of some files, in one."""
    datasets = import_datasets(f"data set {files[0]}")
    patterns = [glob.escape(file) for file in files]  # else that of "set v" would be read for the folder "set [v1]"
    with naming_damage(listed(files)):
        return datasets.load_dataset(reader, data_files=patterns, split="train", streaming=streaming, **settings)


def rows_of_splits(
    source: Source, reader: str, files: list[str], settings: dict
) -> tuple[str, dict[str, list[int]], list[str]] | None:
    """The column that says of which split each row is, {split: numbers of its rows}, and notes; None without one.

    Raises:
        ValueError: some rows of such a column name no split; or rows are streamed, which cannot be divided.
    """
    columns = {name.lower(): name for name in columns_of(reader, files, settings)}
    column = next((columns[name] for name in SPLIT_COLUMNS if name in columns), None)
    if column is None:
        return None
    table = load_files(reader, files, settings)
    rows: dict[str, list[int]] = defaultdict(list)
    for number, value in enumerate(table.select_columns([column])[column]):
        rows[split_in_cell(str(value)) or str(value).strip()].append(number)
    named = [value for value in rows if value.lower() in (*SPLIT_WORDS, *UNION_SPLITS)]
    if not named:
        return None
    if others := [value for value in rows if value not in named]:
        raise ValueError(
            f"column {column} of {source.data} is {listed(named)} in some rows, and {listed(others)} in others; write "
            "train, validation or test in each row, or rename the column if it tells no splits"
        )
    if source.streaming:
        raise ValueError(
            f"column {column} of {source.data} tells of which split each row is, and a stream is not divided; leave "
            "streaming out, or write a table for each split"
        )
    label = find_columns(table, source.image_column, source.label_column)[1]
    is_missing = table.select_columns([label]).with_format("arrow")[:][label].is_null().to_pylist()
    bare = [split for split, own in rows.items() if all(is_missing[number] for number in own)]
    kept = {split: own for split, own in rows.items() if split not in bare}
    notes = [
        f"{len(rows[split])} images of {split} have no label maps at all, so this is no split here" for split in bare
    ]
    return column, kept or rows, notes if kept else []


def columns_of(reader: str, files: list[str], settings: dict) -> list[str]:
    """Names of the columns; none of tar files, whose rows would have to be read."""
    if reader == "webdataset":
        return []
    stream = load_files(reader, files, settings, streaming=True)
    with naming_damage(listed(files)):
        return list(stream.features or next(iter(stream), {}))


def tell_unused_columns(
    source: Source, reader: str, files: list[str], settings: dict, others: Collection[str] = ()
) -> list[str]:
    """The sentence on columns that divide images in ways that are not read, such as `fold`, and on `others`."""
    columns = columns_of(reader, files, settings)
    found = [name for name in columns if UNUSED_COLUMNS.fullmatch(name) or name.lower() in others]
    text = f"column {listed(found)} of {source.data} is not used; write train or validation in a column split instead"
    return [text] if found else []


def open_files(
    source: Source, split: str, reader: str, files: list[str], settings: dict, rows: list[int] | None = None
):
    """The samples of a table, or those of some of its rows."""
    table = load_files(reader, files, settings, source.streaming)
    places = {Path(file).parent for file in files}
    root = places.pop() if reader in READERS.values() and len(places) == 1 else source.root
    return to_samples(source, table if rows is None else table.select(rows), split, root)


def find_saved(source: Source) -> Found:
    """What `save_to_disk` wrote."""
    datasets = import_datasets(f"data set {source.data}")
    root = source.root
    if (root / "dataset_dict.json").is_file():
        folders = {path.name: path for path in sorted(root.iterdir()) if (path / "state.json").is_file()}
    else:
        folders = {str(datasets.load_from_disk(str(root)).split or "train"): root}
    openers = {split: partial(open_saved, source, split, folder) for split, folder in folders.items()}
    return Found("table", SAVED, openers)


def open_saved(source: Source, split: str, folder: Path):
    table = import_datasets(f"data set {source.data}").load_from_disk(str(folder))
    return to_samples(source, table.to_iterable_dataset() if source.streaming else table, split)


def find_on_hub(source: Source) -> Found:
    """What `load_dataset` finds by an id or in a folder."""
    datasets = import_datasets(f"data set {source.data}")
    where = str(source.root or source.data)
    if glob.has_magic(where):
        raise ValueError(f"datasets takes [, ? and * in {where} for a pattern of other names; rename the folder")
    try:
        names = datasets.get_dataset_split_names(where, source.config)
    except OSError as error:
        if source.root:
            raise
        said = first_line(error)
        raise OSError(f"there is no file or folder {where}, and as a data set on the Hub: {said}") from error
    openers = {split: partial(open_loaded, source, split) for split in names}
    if source.root:
        return Found("table", "read by datasets", openers)
    notes: list[str] = []
    label_names = names_on_hub(source.data, notes)
    return Found("hub", f"{source.data} on the Hub", openers, label_names, NAMES_FILE, notes=notes)


def names_on_hub(repo: str, notes: list[str]) -> list[str] | None:
    """Names of the labels of a data set on the Hub, by its `id2label.json`; None without one.

    That it is damaged, or that nobody could look, is told in `notes`.
    """
    try:
        return read_label_file(Path(hf_hub_download(repo, NAMES_FILE, repo_type="dataset")))[0]
    except LocalEntryNotFoundError:
        notes.append(f"the Hub could not be asked for {NAMES_FILE} of {repo}, which may name the labels")
    except EntryNotFoundError:
        pass
    except ValueError as error:
        notes.append(f"{NAMES_FILE} of {repo} is not read: {error}")
    return None


def open_loaded(source: Source, split: str):
    datasets = import_datasets(f"data set {source.data}")
    where = str(source.root or source.data)
    table = datasets.load_dataset(where, source.config, split=split, streaming=source.streaming)
    return to_samples(source, table, split)


def open_slice(source: Source, split: str):
    """`datasets`' slices, as "train[:10%]"; the name before the bracket is what a person calls it."""
    name, bracket, part = split.partition("[")
    where = str(source.root or source.data)
    available = import_datasets(f"data set {source.data}").get_dataset_split_names(where, source.config)
    return open_loaded(source, find_split(name, available, source.data) + bracket + part)


def to_samples(source: Source, table, split: str, root: Path | None = None):
    """Samples of a table whose paths are relative to `root`; ValueError for columns that cannot be guessed."""
    root = root or source.root
    class_names = list(names_of_features(table.features or {}))
    table, columns = drop_decoding(table, source.image_column, source.label_column)
    kind = StreamedSamples if source.streaming else TableSamples
    samples = kind(table, columns, split, source.colors, root)
    samples.class_names = class_names
    first = next(iter(samples), None) if root is not None else None
    if first is not None and isinstance(first.picture, str) and not Path(first.picture).exists():
        above = "" if root == source.root else f"{root.relative_to(source.root).as_posix()}/"
        files = [name.removeprefix(above) for name in source.files if name.startswith(above)]
        samples.locate = Locator(files).find  # paths of another machine, or bare names
    return samples


def names_of_features(feature: Any, where: str = "column") -> Iterator[tuple[str, list[str]]]:
    """(where, names) of each `ClassLabel` in the features of a table, also of those in lists and structs."""
    if isinstance(feature, dict):
        for name, own in feature.items():
            yield from names_of_features(own, f"{where} {name}" if where == "column" else f"{where}.{name}")
    elif hasattr(feature, "feature"):
        yield from names_of_features(feature.feature, where)
    elif isinstance(getattr(feature, "names", None), list):
        yield where, list(feature.names)


def names_of_info(source: Source, notes: list[str]) -> list[tuple[str, list[str]]]:
    """(where, names) of each `ClassLabel` in what `datasets` writes of the columns, beside a folder of files.

    A file that cannot be read is told in `notes`.
    """

    def names_below(content: Any, where: str) -> Iterator[tuple[str, list[str]]]:
        if (
            isinstance(content, dict)
            and content.get("_type") == "ClassLabel"
            and isinstance(content.get("names"), list)
        ):
            yield where, [str(name) for name in content["names"]]
        for key, own in content.items() if isinstance(content, dict) else ():
            yield from names_below(own, where if key in ("features", "feature") else f"{where}.{key}")

    found = []
    for name in INFO_FILES:
        try:
            content = json.loads(read_text(source.root / name)) if name in source.files else {}
        except (RecursionError, ValueError) as error:
            notes.append(f"{name} is not read: {error}")
            continue
        found += names_below(content, name)
    return found


TABLES = Family({key: TREES[key] for key in ("table", "hub")}, find_table)
WEBDATASET = Family({"webdataset": TREES["webdataset"]}, find_webdataset)

__all__ = ["SAVED", "TABLES", "WEBDATASET", "find_by_datasets", "names_of_info", "open_slice"]
