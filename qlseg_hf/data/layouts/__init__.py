# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Layouts of data sets: what a folder, a file or a Hub id is, found by looking at it. One file per family."""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...utils.picture_files import is_hidden, listed, suffix_of
from ...utils.text import printable
from ..label_names import find_label_file
from ..samples import TableSamples
from ..stored_labels import as_grey, check_colors, palette_of
from .cityscapes import CITYSCAPES
from .coco import COCO, PANOPTIC
from .columns import ColumnsError
from .cvat import CVAT
from .datumaro import DATUMARO
from .files import describe_files
from .folders import FOLDERS, count_images
from .label_studio import LABEL_STUDIO
from .labelme import LABELME
from .layout import Found, Layout, Opener, Source, Splits
from .offering import offering
from .pairs import PAIRS
from .proposals import suggest_folders
from .roles import name_roles
from .run_lengths import RUNS
from .separate_masks import EmptyMap
from .splits import find_split, hold_out
from .supervisely import SUPERVISELY
from .tables import BY_COLUMN, SAVED, TABLES, WEBDATASET, find_by_datasets, names_of_info
from .via import VIA
from .vistas import VISTAS
from .voc import VOC
from .words import read_folder_name
from .yolo import YOLO, yaml_names

# Layouts with marks of their own; of these one may fit, and of the others one that fits is only looked for after them.
MARKED = (
    *(VOC, CITYSCAPES, VISTAS, PANOPTIC, COCO, LABELME, CVAT, YOLO, SUPERVISELY, LABEL_STUDIO, VIA, DATUMARO, RUNS),
    *(WEBDATASET, TABLES),
)
PLAIN = (FOLDERS, PAIRS)
LAYOUTS = {name: (family, tree) for family in (*PLAIN, *MARKED) for name, tree in family.trees.items()}
FILE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".tar", ".json", ".xml")
ALONE = (VOC, CITYSCAPES, VISTAS)  # whose folders no other layout has
READ_ME = re.compile(r"(read_?me|licen[sc]e|citation|copying|changelog)|.*\.(md|pdf|html?|url)$", re.IGNORECASE)
UNREAD = {  # endings of files that nothing here reads, and what to do
    (".zip", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz"): "unpack archives",
    (".mat", ".h5", ".hdf5", ".npz", ".nii", ".dcm", ".mha", ".tfrecord", ".pkl", ".geojson", ".shp"): (
        "not read; write label maps as PNG, of the size of their images"
    ),
    (".json", ".ndjson", ".xml"): "if these are annotations, export them as COCO, as most tools can",
}
IS_MADE_OF_PAIRS = (PANOPTIC, WEBDATASET)  # whose label maps a plain layout might take for its own


def find_layout(
    data: str | Path,
    *,
    layout: str | None = None,
    val_fraction: float | None = 0.2,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
    label_colors: dict[int, list[int]] | None = None,
) -> Layout:
    """Find out how a data set is laid out.

    Args:
        data: a folder, a table or annotation file, or the id of a data set on the Hub.
        layout: one of `LAYOUTS`, where it cannot be told or is told wrongly; or "IMAGES:MASKS", the folders of images
            and of label maps, relative to `data` or to each split's folder.
        val_fraction: share of the images that is held out for validation where there is no split for it; 0 or None for
            none. See `hold_out`.
        config, image_column, label_column, streaming, label_colors: see `open_dataset`.

    Raises:
        ValueError: nothing fits, which names what was seen and the layouts; two layouts fit; or files contradict.
        FileNotFoundError: no such folder, or `datasets` finds nothing.
        ImportError: a package is needed and missing.
    """
    root, file = find_root(data)
    if root is not None and file is None and not (layout and ":" in layout):
        root = enter_only_folder(root)
    source = Source(str(data), root, file, config, image_column, label_column, streaming)
    source.colors = None if label_colors is None else check_colors(label_colors)
    with offering(source):
        found = find_family(source, layout)
    columns = (image_column, label_column if found.name != "via" else None)
    if found.name not in ("table", "webdataset", "hub") and (streaming or config or any(columns)):
        raise ValueError(
            f"{data} is a folder of pictures and label maps: streaming, config and columns do not apply to it"
        )
    notes = list(found.notes)
    names, colors = find_names(source, found, notes)
    if label_colors is None and colors and found.first_mask is not None and is_color_picture(found.first_mask, colors):
        source.colors = check_colors(colors)
    elif label_colors is None:
        colors = None
    else:
        colors = {int(label): list(color) for label, color in label_colors.items()}
    openers = {split: partial(open_split, source, opener) for split, opener in found.openers.items()}
    splits, decided = hold_out(Splits(openers), val_fraction, streaming)
    notes += decided
    is_bare = not names and source.root is not None and source.file is None
    hints = find_hints(source, notes) if is_bare else []
    class_names = names_of_info(source, notes) if is_bare and found.summary != SAVED else []
    if alike := names_alike(names or []):
        notes.append(f"{alike} are different labels, and their names differ in case or white space alone")
    return Layout(
        found.name,
        "; ".join([found.summary, *decided]),
        splits,
        names,
        colors,
        found.ignore_index,
        found.label_mapping,
        notes,
        hints,
        class_names,
    )


def open_split(source: Source, opener: Opener):
    """The samples of a split; of names that are not clear with what can be written."""
    with offering(source):
        return opener()


def find_root(data: str | Path) -> tuple[Path | None, Path | None]:
    """(folder, file in it that was given); (None, None) for a Hub id. FileNotFoundError if there is neither."""
    path = Path(data).expanduser()
    if path.is_dir():
        return path, None
    if path.is_file() and suffix_of(path.name) in FILE_SUFFIXES:
        return path.parent, path
    if (
        path.is_absolute()
        or str(data).startswith((".", "~"))
        or path.exists()
        or suffix_of(path.name) in FILE_SUFFIXES
    ):
        raise FileNotFoundError(
            f"data set {data} is no folder; give a folder, a table or an annotation file "
            f"({', '.join(FILE_SUFFIXES)}), or "
            "the id of a data set on the Hub; archives are to be unpacked"
        )
    return None, None


def enter_only_folder(root: Path) -> Path:
    """The folder that a folder holds alone, as unpacked archives have it, unless its name tells a role or a split."""
    inside = [path for path in root.iterdir() if not is_hidden(path.name) and not READ_ME.match(path.name)]
    if len(inside) != 1 or not inside[0].is_dir() or read_folder_name(inside[0].name) != (None, None):
        return root
    is_loop = root.resolve().is_relative_to(inside[0].resolve())  # which is told where the files are listed
    return root if is_loop or not any(inside[0].iterdir()) else enter_only_folder(inside[0])


def find_family(source: Source, layout: str | None) -> Found:
    """What the one family that fits makes of it; ValueError if none or several do."""
    if layout is not None and ":" in layout:
        images, masks = (part.strip().strip("/") for part in layout.split(":", 1))
        found = FOLDERS.find(name_roles(source, images, masks)) if images and masks and source.root else None
        return found or fail(source, layout, f"layout: {layout} fits no pair of folders of images and label maps")
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(
            f"layout {layout!r} is unknown; give one of {', '.join(LAYOUTS)}, or two folders, IMAGES:MASKS"
        )
    if layout is not None:
        found = LAYOUTS[layout][0].find(source) if source.root or layout == "hub" else None
        if found is None and layout == "table":
            found = find_by_datasets(source)
        return found or fail(source, layout, f"layout: {layout} does not fit")
    if source.root is None:
        return TABLES.find(source)
    if source.file is None and not source.files and source.folders == []:
        raise ValueError(f"data set {source.root} is an empty folder")
    fits, unread = {}, None
    for family in MARKED:
        try:
            found = family.find(source)
        except ColumnsError as error:  # a table of other things may lie beside images and label maps
            unread, found = error, None
        if found:
            if family in ALONE or found.summary == SAVED:
                return found
            fits[family] = found
    if source.file is not None and len(fits) > 1:
        fits.pop(TABLES, None)  # which takes any table that is given
    # a table that says of which split each line is says more than the names of its files
    is_plain = TABLES not in fits or BY_COLUMN not in fits[TABLES].summary
    if source.file is None and is_plain and not any(family in fits for family in IS_MADE_OF_PAIRS):
        if found := FOLDERS.find(source) or PAIRS.find(source):
            fits[FOLDERS] = found
    told: list[str] = []
    if fits.keys() == {TABLES, FOLDERS}:
        try:
            same = names_same_pairs(source, fits[TABLES], fits[FOLDERS])
            if same is None or (same and len(fits[TABLES].openers) > 1):
                fits.pop(FOLDERS)
            elif same:
                told = fits.pop(TABLES).notes
        except ColumnsError as error:
            unread = error
            fits.pop(TABLES)
    if unread is not None:
        if not fits:
            raise unread
        told = [f"a table is not read: {unread}"]
    if not fits:
        return find_by_datasets(source) or fail(source, None, f"{source.data} is no layout that is known")
    fits = {family: replace(found, notes=[*found.notes, *told]) for family, found in fits.items()}
    if fits.keys() == {RUNS, FOLDERS} and len(fits[RUNS].label_names or ()) == 2:  # the same masks, drawn
        note = f"{fits.pop(RUNS).summary.split(',')[0]} are not read, because there are masks too"
        fits = {FOLDERS: replace(fits[FOLDERS], notes=[*fits[FOLDERS].notes, note])}
    if len(fits) > 1:
        texts = [f"{found.name} ({found.summary})" for found in fits.values()]
        names = " or ".join(f"layout: {found.name}" for found in fits.values())
        raise ValueError(
            f"{source.data} can be read in {len(fits)} ways: {'; '.join(texts)}. Say which counts: {names}"
        )
    return next(iter(fits.values()))


def names_same_pairs(source: Source, table: Found, folders: Found) -> bool | None:
    """Whether a table names those images and label maps, all of them and no other, that folders pair too.

    None if the names in folders do not pair, and the table's files are there. ColumnsError if its columns of images
    and label maps cannot be told.
    """
    if source.streaming:
        return False
    try:
        rows = [sample for opener in table.openers.values() for sample in iterate_rows(opener())]
    except ColumnsError:
        raise
    except ValueError:  # which of the two is meant has to be asked
        return False
    try:
        items = [item for opener in folders.openers.values() for item in opener().items]
    except ValueError:
        return None if all(path and Path(path).exists() for row in rows for path in row) else False
    told = {(os.path.relpath(image, source.root), mask and os.path.relpath(mask, source.root)) for image, mask in rows}
    pairs = {(image, None if isinstance(mask, EmptyMap) else getattr(mask, "name", mask)) for image, mask in items}
    return told == {(os.path.normpath(image), mask and os.path.normpath(mask)) for image, mask in pairs}


def iterate_rows(samples: TableSamples) -> Iterator[tuple[str, str | None]]:
    """Paths of images and label maps, or None, of a table; ValueError if it holds something else."""
    for row in samples.table:
        image, mask = (samples.place(row[column]) for column in samples.columns)
        if not isinstance(image, str) or not isinstance(mask, str | None):
            raise ValueError(f"row {row} holds no paths")
        yield image, mask


class UnknownLayoutError(ValueError):
    """A data set that is laid out in no known way, in a sentence. `details`: what was seen and is known, in lines."""

    def __init__(self, sentence: str, details: str):
        super().__init__(f"{sentence}\n{details}")
        self.details = details


def fail(source: Source, layout: str | None, text: str) -> Any:
    """Raise `UnknownLayoutError` with what was seen, the layouts that are known, and the options that help."""
    seen = describe_files(source.root, source.files, source.folders) if source.root else f"{source.data} is no folder"
    known = LAYOUTS if layout not in LAYOUTS else {layout: LAYOUTS[layout]}
    endings = {suffix_of(name.lower().removesuffix(".gz" * name.lower().endswith(".nii.gz"))) for name in source.files}
    for kinds, what in UNREAD.items():
        if found := [ending for ending in kinds if ending in endings]:
            text += f". {listed(found)}: {what}"
    if pairs := [pair for pair in suggest_folders(source.files) if count_images(source, *pair)]:
        text += f". Files of the same names lie in {pairs[0][0]} and in {listed(mask for _, mask in pairs)}"
        text += f": if these are it, layout: {' or layout: '.join(map(':'.join, pairs))}"
    width = max(map(len, known))
    trees = "\n".join(f"  {name:{width}}  {tree}" for name, (_, tree) in known.items())
    raise UnknownLayoutError(
        f"{text}; name the folders of images and of label maps, as in layout: photos:ground_truth, or their files, as "
        "in layout: *_rgb.png:*_label.png, or one of the layouts, as in layout: pairs, or write a table with the "
        "columns image and mask",
        f"{printable_lines(seen)}\nKnown layout{'s' if len(known) > 1 else ''}:\n{trees}",
    )


def printable_lines(text: str) -> str:
    """Names of files come from the data."""
    return "\n".join(line[: len(line) - len(line.lstrip())] + printable(line) for line in text.splitlines())


def find_names(source: Source, found: Found, notes: list[str]) -> tuple[list[str] | None, dict[int, list[int]] | None]:
    """Label names and colours of a names file beside the data, or of the layout; what disagrees is told in `notes`.

    Polygons cannot be read by other names than those they are annotated with, so the layout's order wins there;
    elsewhere names that two sources give differently are left for the person to choose.
    """
    if source.root is None or source.file is not None:
        return found.label_names, None
    label_file = find_label_file(source.root, source.files, notes)
    if label_file is None:
        return found.label_names, None
    path, names, colors = label_file
    table = None if colors is None else dict(enumerate(colors))
    if found.label_names is None or names == found.label_names:
        return names, table
    what = f"{path.relative_to(source.root)} gives {len(names)} label names, and {found.names_from} "
    what += f"{len(found.label_names)}"
    if found.first_mask is None:
        notes.append(f"{what} in another order or spelling; the labels are those of {found.names_from}")
        return found.label_names, None
    notes.append(f"{what} others; set label_names to say which count")
    return None, table


def find_hints(source: Source, notes: list[str]) -> list[tuple[str, list[str]]]:
    """(file, names) of a `data.yaml` as YOLO has it, which may leave background out; told if it cannot be read."""
    try:
        found = yaml_names(source)
    except ValueError as error:
        notes.append(f"label names are not read: {error}")
        return []
    return [] if found is None else [(found[1], found[0])]


def names_alike(names: list[str]) -> str:
    """Names that differ in case and white space alone, in words; empty if there are none."""
    by_plain: dict[str, list[str]] = {}
    for name in names:
        by_plain.setdefault(" ".join(name.lower().split()), []).append(repr(name))
    return "; ".join(" and ".join(own) for own in by_plain.values() if len(own) > 1)


def is_color_picture(path: Path, colors: dict[int, list[int]]) -> bool:
    """Whether a label map is stored as colours, not as a label or an index per pixel.

    A palette, and grey, are read by their colours if most of those that occur are in the table `colors` and stand at
    other places there: programs that save a colour picture with few colours put these in any order.
    """
    if suffix_of(path.name) == ".npy":
        return False
    try:
        with Image.open(path) as picture:
            palette = palette_of(picture)
            if palette is None and picture.mode in ("1", "L"):
                palette, picture = {value: (value,) * 3 for value in range(256)}, picture.convert("L")
            if palette is None:
                return picture.mode in ("RGB", "RGBA")
            if picture.format == "GIF":
                return as_grey(picture.convert("RGB")) is None
            labels = {tuple(color): label for label, color in colors.items()}
            used = {index: palette[index] for index in np.unique(picture).tolist() if index in palette}
    except (OSError, ValueError, Image.DecompressionBombError):  # reading the sample says what is wrong
        return False
    known = {index: labels[color] for index, color in used.items() if color in labels}
    return len(known) > max(1, len(used) // 2) and any(index != label for index, label in known.items())


__all__ = ["LAYOUTS", "Layout", "UnknownLayoutError", "find_layout", "find_split"]
