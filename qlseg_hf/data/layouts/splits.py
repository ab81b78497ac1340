# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Splits: what people call them, lists of their images, one that is held out, and images that are in two."""

import csv
import hashlib
import json
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
import yaml
from PIL import Image

from ...utils.picture_files import base_of, is_hidden, is_picture, listed, stem_of, suffix_of
from ...utils.text import read_text
from ..samples import ChosenSamples, FolderSamples, SampleError, Samples, TableSamples
from .files import MASK_SUFFIXES, Locator, delimiter_of
from .layout import Source, Splits

YEARS = range(2005, 2031)  # as in train2017
TRAIN_SPLITS = ("train", "training", "trn", *(f"train{year}" for year in YEARS))
VALIDATION_SPLITS = (
    *("validation", "val", "valid", "validate", "dev", "eval", "evaluation", "holdout"),
    *(f"val{year}" for year in YEARS),
)
TEST_SPLITS = ("test", "testing", "tst", *(f"test{year}" for year in YEARS))
UNION_SPLITS = ("trainval", "train_val", "all", "full")
SPLIT_WORDS = (*TRAIN_SPLITS, *VALIDATION_SPLITS, *TEST_SPLITS, "trainval", "train_val")
LIST_FOLDERS = ("", "splits", "split", "lists", "list", "imagesets")
# Besides that of the split, words in the name of a list: train_list.txt, val_id.txt
LIST_WORDS = re.compile(
    r"[-_. ]*(file|image|img|name|path|pair)?(list|id(?!at)|set|file|image|img|name|path)s?[-_. ]*"
)
SPLIT_COLUMNS = ("split", "subset", "set", "partition")
TABLE_WORDS = ("data", "dataset", "df", "index", "info", "meta", "metadata", "samples", "split", "splits", "table")
TABLE_OF_SPLITS = re.compile(r"data(set)?|(.*[-_. ])?splits?([-_. ].*)?", re.IGNORECASE)  # YAML, JSON
LIST_SUFFIXES = dict.fromkeys((".txt", ".lst", ".list"), "text") | dict.fromkeys((".csv", ".tsv"), "table")
LIST_SUFFIXES |= dict.fromkeys((".yaml", ".yml", ".json"), "tree")
MOST_LINES, MOST_SIGNS = 100, 4096  # of a file that only seems a list: lines that are looked at, and their length
NOT_DIVIDED, NOTHING_TO_LEARN = "there is no validation split", "there is nothing to learn from them alone"
ALL = "all"  # the name of a part that nobody has divided
MOST_HELD_OUT = 1.5  # times the wanted share, which hashes of a few names may exceed by much
CHANGED = re.compile(  # what ends the names of changed copies: a_flip, a_rot90, a_aug_1
    r"([-_. ]+(aug(mented|mentation)?|[hv]?flip(ped|lr|ud)?|rot(ate|ated|ation)?|mirror(ed)?)[-_]?([hv]|\d+)?)+$",
    re.IGNORECASE,
)
MAX_READ_MAPS, MAX_READ_PIXELS = 500, 2 * 10**8  # label maps that are read to find rare labels


def find_split(wanted: str, available: list[str], where: str | Path, hint: str = "") -> str:
    """The name in `available` that a person means by `wanted`; ValueError naming them if there is none.

    The exact name wins, then other spellings of it ("training", "train2014"; "val"); then validation and test stand
    in for one another, because many data sets hold out only one part, and "trainval" for train where there is no
    validation. `hint` ends the sentence.
    """
    candidates: tuple[str, ...] = (wanted,)
    has_validation = any(name.lower() in VALIDATION_SPLITS for name in available)
    for own, substitutes in ((TRAIN_SPLITS, ()), (VALIDATION_SPLITS, TEST_SPLITS), (TEST_SPLITS, VALIDATION_SPLITS)):
        if wanted in own:
            candidates = (wanted, *own, *substitutes)
    if wanted in TRAIN_SPLITS and not has_validation:
        candidates = (*candidates, *UNION_SPLITS[:2])
    by_lower = {name.lower(): name for name in reversed(available)}
    for name in candidates:
        if name in available:
            return name
        if name.lower() in by_lower:
            return by_lower[name.lower()]
    raise ValueError(f"{where} has no split {wanted!r}; it has {', '.join(available) or 'none'}{hint}")


def find_kind(split: str) -> str:
    """What a split is for, whatever it is called: "training" is "train"; an unknown name is for itself."""
    kinds = (TRAIN_SPLITS, VALIDATION_SPLITS, TEST_SPLITS)
    return next((words[0] for words in kinds if split.lower() in words), split.lower())


def read_split_lists(
    source: Source, pictures: list[str], notes: list[str], with_tables: bool = True
) -> dict[str, dict[str, str | None]]:
    """Pictures by split, where `train.txt`, `splits/val.txt`, `split.yaml` and the like name them; {} without lists.

    So do CSV files called so, and those with a column that tells the split of each image, `with_tables`, which are
    annotations in some layouts. A line holds a file name, with or without folder and ending, and may go
    on with that of the label map, which then is the value of the picture, else None; or it names a folder, as of the
    frames of a video. A YAML or JSON file maps splits to lists of names, to such a text file or to a folder;
    `train.json` is a list. A list outside `LIST_FOLDERS` counts less, and if it names a picture. Where no list is one
    to train on, pictures in none are; else these are told in `notes`.

    Raises:
        ValueError: a list names something that is no picture of the data set, or the same split twice.
    """
    locator, found = Locator(pictures), {}
    is_voc = any(name.lower().startswith("imagesets/segmentation/") for name in source.files)  # beside Main, Layout
    for name in source.files:
        kind, path = LIST_SUFFIXES.get(suffix_of(name)), PurePosixPath(name)
        if kind is None or (kind == "table" and not with_tables):
            continue
        folder, plain = path.parent.as_posix().removeprefix(".").lower(), LIST_WORDS.sub("", path.stem.lower())
        is_known = folder in LIST_FOLDERS or folder.startswith("imagesets/segmentation" if is_voc else "imagesets/")
        is_known |= kind == "text" and folder == "annotations"
        parts = re.split(r"[-_. ]+", plain)
        words = [word for word in (plain, *parts) if word in SPLIT_WORDS]
        own = words[0] if plain in words or len(set(map(find_kind, words))) == 1 else None  # not train_test_split
        # train.txt counts more than train_list.txt, that more than train_data.txt, and that more than train_aug.txt
        rank = 0 if path.stem.lower() in SPLIT_WORDS or not own else 1 if plain in SPLIT_WORDS else 2
        rank += rank == 2 and not {*parts} <= {*SPLIT_WORDS, *TABLE_WORDS}
        title = path.stem if own and rank == 0 else own
        if not (is_known or (own and rank < 3) or "split" in plain or "partition" in plain):
            continue
        if kind == "text" and title:
            own_lists = {title: _lines(source.root / name)}
        elif kind == "table":
            own_lists = _read_table_of_rows(source, name, locator, title if rank < 3 else None)
        elif kind == "text":
            is_table = "split" in plain or "partition" in plain
            own_lists = _read_table_of_rows(source, name, locator, None) if is_table else {}
            own_lists = own_lists or _read_numbered_images(source, name)
        elif own and rank < 3:
            own_lists = _read_list_of_names(source, name, own)
        else:
            own_lists = _read_table_of_splits(source, name) if TABLE_OF_SPLITS.fullmatch(path.stem) else {}
        for split, names in own_lists.items():
            if (is_known and rank == 0) or _names_any(locator, pictures, names):
                found.setdefault(split, {}).setdefault((not is_known, rank), {})[name] = names
    lists = {}
    for split, by_rank in found.items():
        told = {
            name: _located(locator, pictures, names, source, name) for name, names in by_rank[min(by_rank)].items()
        }
        is_of_parts = all(file.startswith(f"{name.rpartition('/')[0]}/") for name, own in told.items() for file in own)
        if len(set(map(tuple, told.values()))) > 1 and not is_of_parts:
            raise ValueError(
                f"{listed(told)} in {source.root} list images of {split}; keep one of them, or rename the right one "
                f"{split}.txt"
            )
        lists[split] = {file: label_map for own in told.values() for file, label_map in own.items()}
    kinds = set(map(find_kind, lists))
    rest = [picture for picture in pictures if not any(picture in own for own in lists.values())]
    if lists and rest and kinds.isdisjoint((TRAIN_SPLITS[0], *UNION_SPLITS)):
        lists[TRAIN_SPLITS[0]] = dict.fromkeys(rest)
    elif lists and rest:
        notes.append(f"{len(rest)} images are in no list of a split: {listed(rest)}")
    return lists


def _read_table_of_rows(source: Source, name: str, locator: Locator, own: str | None) -> dict[str, list[str]]:
    """{split: names} of a CSV file, one of whose columns tells splits, or whose name tells `own`; {} without images.

    Of several columns that do, the first counts; of one called `split` and the like some cells may tell none. Blanks
    may part the cells of a text file.
    """
    with (source.root / name).open(encoding="utf-8-sig", errors="replace", newline="") as file:
        lines = file.readlines(1 << 16)[:MOST_LINES]
        if max(map(len, lines), default=MOST_SIGNS + 1) > MOST_SIGNS:  # run lengths and outlines
            return {}
        file.seek(0)
        sign = delimiter_of(lines[0])
        table = csv.reader(file, delimiter=sign if sign in lines[0] or suffix_of(name) in (".csv", ".tsv") else " ")
        head, *first = islice(table, len(lines))
        first = [head, *first] if any(map(locator.may_find, head)) else first  # without headings
        columns = list(zip(*(row for row in first if len(row) == len(head))))
        is_found = [sum(map(locator.may_find, cells)) * 2 > len(cells) for cells in columns]
        is_split = [
            {cell.strip().lower() for cell in cells} <= {*SPLIT_WORDS}
            or (title.strip().lower() in SPLIT_COLUMNS and any(map(split_in_cell, cells)))
            for title, cells in zip(head, columns)
        ]
        if True not in is_found or (True not in is_split and not own):
            return {}
        of_image, of_split = is_found.index(True), is_split.index(True) if True in is_split else None
        rows = [row for row in (*first, *table) if len(row) == len(head)]
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if split := own if of_split is None else split_in_cell(row[of_split]):
            found[split].append(row[of_image].strip())
    return found


def split_in_cell(cell: str) -> str | None:
    """The word of a cell that tells a split, as that of "Train", "training set" and "test-public"."""
    words = (cell.strip(), *re.split(r"[-_. ]+", cell.strip()))
    return next((word for word in words if word.lower() in SPLIT_WORDS), None)


def _read_numbered_images(source: Source, name: str) -> dict[str, list[str]]:
    """{split: names} of CUB's list, of lines with the number of an image in `images.txt` and 1, to train on, or 0."""
    listing = PurePosixPath(name).with_name("images.txt").as_posix()
    if base_of(name) != "train_test_split.txt" or listing not in source.files:
        return {}
    rows = [[line.split(maxsplit=1) for line in _lines(source.root / file)] for file in (name, listing)]
    if any(len(row) != 2 for row in sum(rows, [])) or {part for _, part in rows[0]} != {"0", "1"}:
        return {}
    images = dict(rows[1])
    return {
        split: [images[number] for number, part in rows[0] if part == own and number in images]
        for split, own in (("train", "1"), ("test", "0"))
    }


def _names_any(locator: Locator, pictures: list[str], lines: list[str]) -> bool:
    """Whether one of the lines of a text file names a picture; `train_id.txt` may hold anything."""
    try:
        return any(next(_named(locator, pictures, line), None) for line in lines[:MOST_LINES])
    except ValueError:  # names that mean several pictures
        return True


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return [line for line in lines if not is_hidden(base_of(line.replace("\\", "/")))]  # "./a.jpg" is not


def _read_list_of_names(source: Source, name: str, split: str) -> dict[str, list[str]]:
    """{split: names} of a JSON file that is a list of names; {} of another, as of annotations."""
    with (source.root / name).open(encoding="utf-8-sig", errors="replace") as file:
        if suffix_of(name) != ".json" or not re.match(r'\s*\[\s*"', file.read(MOST_SIGNS)):
            return {}
    content = json.loads(read_text(source.root / name))
    return {split: content} if all(isinstance(entry, str) for entry in content) else {}


def _read_table_of_splits(source: Source, name: str) -> dict[str, list[str]]:
    """{split: names} of a YAML or JSON file; {} if it has no such keys."""
    try:
        content = yaml.safe_load(read_text(source.root / name))
    except (RecursionError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{source.root / name} cannot be read: {error}") from error
    found = {}
    for split, value in content.items() if isinstance(content, dict) else ():
        if str(split).lower() not in SPLIT_WORDS or value is None:
            continue
        if isinstance(value, str) and LIST_SUFFIXES.get(suffix_of(value)) == "text":
            listing = Locator(source.files).find(value)
            if listing is None:
                raise ValueError(f"{source.root / name}: {value}, the list of split {split}, does not exist")
            value = _lines(source.root / listing)
        elif isinstance(value, str):
            tail = value.strip("./").lower()
            value = [file for file in source.files if f"/{file.lower()}".find(f"/{tail}/") >= 0 and is_picture(file)]
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise ValueError(f"{source.root / name}: split {split} must be a list of names, a text file or a folder")
        found[str(split)] = value
    return found


def _named(locator: Locator, pictures: list[str], line: str, near: str = "") -> Iterator[tuple[str, str | None]]:
    """(picture, label map or None) that a line means; all of a folder that it names. Names may hold blanks.

    Of several those in the folder `near` count, where the list lies. Where no picture has the ending that is
    written, one of another counts: a.jpg of a.png.
    """
    ends = [(sign.start(), sign.end()) for sign in re.finditer(r"[\s,;]+", line)]
    names = [(line[:start], line[end:]) for start, end in ends]
    stems = [(stem_of(name), rest) for name, rest in (*names, (line, "")) if is_picture(name)]
    for name, rest in ((line, ""), *names, *stems):
        if picture := locator.find(name, near):
            others = [rest, *re.split(r"[\s,;]+", rest)]
            yield picture, next((other for other in others if suffix_of(other) in MASK_SUFFIXES), None)
            return
    folder = line.replace("\\", "/").strip("./").lower()
    yield from ((picture, None) for picture in pictures if f"/{folder}/" in f"/{picture.lower()}")


def _located(
    locator: Locator, pictures: list[str], names: list[str], source: Source, listing: str
) -> dict[str, str | None]:
    """The pictures that a list means, each once, and the label map that it names behind each."""
    found: dict[str, str | None] = {}
    path, near = source.root / listing, listing.rpartition("/")[0]
    for name in names:
        try:
            meant = list(_named(locator, pictures, name, near))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if not meant:
            raise ValueError(f"{path} lists {name!r}, and there is no image of this name; correct the list")
        for picture, label_map in meant:
            if found.setdefault(picture, label_map) != label_map:
                raise ValueError(
                    f"{path} gives {picture} two label maps, {found[picture]} and {label_map}; correct the list"
                )
    return found


def hold_out(splits: Splits, fraction: float | None, streaming: bool = False) -> tuple[Splits, list[str]]:
    """`splits` with a validation part, if they have neither that nor a test part; and sentences on what was done.

    Which part an image goes to is decided by a hash of its name (path without ending), so it stays there when others
    are added or removed. Corrections depend on the others: each part has one image at least; validation has at most
    half as many again as its share, which hashes of a few names may exceed by more; and a label that occurs in two
    images or more occurs in both parts, unless moving an image would take another label's last one away.
    Labels are known for polygons, and for up to 500 label maps of together 200 million pixels, which are read.

    Raises:
        ValueError: `fraction` is not between 0 and 1.
    """
    if fraction is not None and not 0 <= fraction < 1:
        raise ValueError(f"val_fraction {fraction} must be at least 0 and less than 1")
    train = [name for name in splits if name == ALL or name.lower() in TRAIN_SPLITS]
    held = [name for name in splits if name.lower() in (*VALIDATION_SPLITS, *TEST_SPLITS)]
    plain = Splits({"train" if name == ALL else name: partial(splits.__getitem__, name) for name in splits})
    if len(train) != 1 or not fraction:
        return plain, []
    if held:
        is_test = not any(name.lower() in VALIDATION_SPLITS for name in held)
        text = f"there is no validation split, so {held[0]} stands in for it"
        return plain, [text] if is_test else []
    name = "train" if train[0] == ALL else train[0]
    others = {other: partial(splits.__getitem__, other) for other in splits if other != train[0]}
    if streaming:
        return plain, [f"a stream cannot be divided, so {NOT_DIVIDED}"]
    samples = splits[train[0]]
    if len(samples) * fraction < 1:
        remedy = f"; set val_fraction to {1 / len(samples):.2g} or more" if len(samples) > 1 else ""
        return plain, [f"{len(samples)} images are too few for val_fraction {fraction}, so {NOT_DIVIDED}{remedy}"]
    validation = choose_validation(samples, fraction)
    training = sorted(set(range(len(samples))) - set(validation))
    text = (
        f"{'no split was found' if train[0] == ALL else f'there is no validation split beside {name}'}, so "
        f"{len(validation)} of {len(samples)} images are held out for validation (val_fraction {fraction}, by a hash "
        "of their names)"
    )
    opened = {
        name: lambda: ChosenSamples(samples, training, name),
        "validation": lambda: ChosenSamples(samples, validation, "validation", []),
    }
    return Splits(opened | others), [text]


def place_of(name: str) -> float:
    """A number in [0, 1) that depends on an image's name alone: not on its ending, nor on Roboflow's `.rf.HASH`.

    Roboflow stores several changed copies of one image so; they belong into one part.
    """
    stem = re.sub(r"[._]rf\.[0-9a-zA-Z]+$", "", stem_of(unicodedata.normalize("NFC", name)))
    return int.from_bytes(hashlib.sha256(stem.encode()).digest()[:8], "big") / 2**64


def choose_validation(samples: Samples, fraction: float) -> list[int]:
    """Numbers of the samples that are held out; see `hold_out`. Copies of one image are in one part."""
    names = _names(samples)
    stems, copies = set(map(stem_of, names)), defaultdict(list)  # numbers of the copies of one image, by its place
    for index, name in enumerate(names):
        origin = CHANGED.sub("", stem_of(name))
        copies[place_of(f"{origin}.jpg" if origin in stems else name)].append(index)
    order = sorted(place for place, own in copies.items() for _ in own)
    most = min(math.ceil(MOST_HELD_OUT * fraction * len(order)), len(order) - 1)
    if len(copies) == 1:
        return list(range(most))
    highest = max(order[0], min(order[most - 1], fraction))
    chosen = {place for place in copies if place <= highest}
    if len(chosen) == len(copies):
        chosen.remove(order[-1])
    known = _labels_of(samples)
    labels = {place: set().union(*(known.get(index, ()) for index in own)) for place, own in copies.items()}
    holders = defaultdict(list)
    for place in sorted(copies):
        for label in labels[place]:
            holders[label].append(place)
    in_validation = Counter(label for place in chosen for label in labels[place])

    def may_move(place: float, is_chosen: bool, size: int) -> bool:
        """Whether the part that an image leaves keeps an image, and each label that it can keep."""
        left = {
            label: in_validation[label] if is_chosen else len(holders[label]) - in_validation[label]
            for label in labels[place]
        }
        return size > 1 and all(
            left[label] > 1 for label in labels[place] if 0 < in_validation[label] < len(holders[label])
        )

    for label in sorted(holders, key=lambda label: (len(holders[label]), str(label))):
        own = holders[label]
        if len(own) < 2 or 0 < in_validation[label] < len(own):
            continue
        is_chosen = in_validation[label] > 0  # all of its images are held out, or none is
        size = len(chosen) if is_chosen else len(copies) - len(chosen)
        nearest = reversed(own) if is_chosen else own  # the image whose hash is nearest to the border
        moved = next((place for place in nearest if may_move(place, is_chosen, size)), None)
        if moved is not None:
            chosen ^= {moved}
            in_validation.update({label: -1 if is_chosen else 1 for label in labels[moved]})
    return sorted(index for place in chosen for index in copies[place])


def _names(samples: Samples) -> list[str]:
    """Names of all samples, without reading pictures; of rows of a table that tell none, their numbers."""
    if isinstance(samples, FolderSamples):
        return [picture for picture, _ in samples.items]
    if isinstance(samples, TableSamples):
        column = samples.table.select_columns([samples.columns[0]]).with_format("arrow")[:][samples.columns[0]]
        if str(column.type).startswith("struct"):
            paths = [path for chunk in column.chunks for path in chunk.field("path").to_pylist()]
        else:
            paths = column.to_pylist() if str(column.type) in ("string", "large_string") else [None] * len(samples)
        return [Path(path).name if path else f"sample {index}" for index, path in enumerate(paths)]
    return [samples[index].name for index in range(len(samples))]


def _labels_of(samples: Samples) -> dict[int, set]:
    """Labels by the number of the sample, as far as they are cheap to know; see `hold_out`."""
    if not isinstance(samples, FolderSamples):
        return {}
    known = {
        i: set(label_map.labels()) for i, (_, label_map) in enumerate(samples.items) if hasattr(label_map, "labels")
    }
    if known or len(samples) > MAX_READ_MAPS:
        return known
    pixels = 0
    for _, label_map in samples.items:
        if isinstance(label_map, str) and suffix_of(label_map) != ".npy":
            try:
                with Image.open(samples.root / label_map) as picture:
                    pixels += picture.width * picture.height
            except (OSError, ValueError, Image.DecompressionBombError):  # told by name when it is read
                continue
    if pixels > MAX_READ_PIXELS:
        return {}
    for index in range(len(samples)):
        try:
            known[index] = set(np.unique(samples[index].read_label_map()).tolist())
        except SampleError:  # it stays where it is, and reading it says what is wrong
            known[index] = set()
    return known


__all__ = [
    "choose_validation",
    "find_kind",
    "find_split",
    "hold_out",
    "place_of",
    "read_split_lists",
    "split_in_cell",
]
