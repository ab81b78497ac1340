# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Which columns of a table hold images and label maps, by their names and by what stands in them."""

import re
from itertools import islice
from pathlib import PurePosixPath

from ...utils.picture_files import PICTURE_SUFFIXES, suffix_of
from ..samples import import_datasets, path_of
from .files import MASK_SUFFIXES

IMAGE_COLUMNS = (
    *("image", "sat_image", "img", "picture", "photo", "pixel_values", "jpg", "jpeg", "file", "filename"),
    *("file_name", "path", "input"),
)
LABEL_COLUMNS = (
    *("label", "labels", "annotation", "annotations", "mask", "masks", "label_map", "segmentation"),
    *("segmentation_mask", "segmentation_map", "semantic_mask", "semantic_segmentation", "seg_mask", "seg", "png"),
    *("gt", "ground_truth", "target", "labelmap", "semantic", "sem_seg", "seg_map", "gt_semantic_seg"),
    *("mask_image", "label_image", "semantic_class"),
)
MOST_ROWS = 100  # of a table that are looked at to tell its columns


class ColumnsError(ValueError):
    """A table whose columns of images and label maps cannot be told, or whose images are not there."""


def drop_decoding(table, image_column: str | None, label_column: str | None):
    """`table` cut down to its picture and label columns, which are not decoded, and the two names."""
    columns = find_columns(table, image_column, label_column)
    return _undecoded(table.select_columns(list(columns)), import_datasets("a table")), columns


def find_columns(table, image_column: str | None, label_column: str | None) -> tuple[str, str]:
    """The columns of pictures and of label maps.

    Raises:
        ValueError: a column does not exist, or none or several look like it; names the columns.
    """
    features = table.features
    if features is None:  # a stream may not know its types
        first = next(iter(table), {})
        features = dict.fromkeys(first)
    else:
        texts = [
            name for name, feature in features.items() if getattr(feature, "dtype", None) in ("string", "large_string")
        ]
        first = {}  # of each column what it holds first, because a row of a test part may have no label map
        for row in islice(table.select_columns(texts), MOST_ROWS) if texts else ():
            first = {name: value for name, value in row.items() if value is not None} | first
    columns = (
        find_column(image_column, "image_column", IMAGE_COLUMNS, features, first),
        find_column(label_column, "label_column", LABEL_COLUMNS, features, first),
    )
    if columns[0] == columns[1]:
        raise ValueError(
            f"column {columns[0]} cannot hold both pictures and label maps; set image_column and label_column"
        )
    return columns


def _undecoded(table, datasets):
    for column, feature in (table.features or {}).items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    return table


def find_column(given: str | None, setting: str, candidates: tuple[str, ...], features: dict, first: dict) -> str:
    """`given` if it exists, else the only column that has a known name and holds pictures, arrays or paths of them."""
    datasets = import_datasets("a table")
    if given is not None:
        if given not in features:
            raise ValueError(f"{setting} {given!r} does not exist; the columns are {', '.join(features)}")
        return given
    if sum(map(_is_file_name, features)) > 1 and not first.get("__key__"):
        raise ValueError(
            f"the first line of the table is {', '.join(features)}, which are files and no names of columns; put "
            "'image,mask' above it"
        )

    def may_hold_pictures(name: str) -> bool:
        feature = features[name]
        path = path_of(first.get(name))
        if isinstance(first.get(name), str):
            return suffix_of(path) in (*PICTURE_SUFFIXES, *MASK_SUFFIXES)
        if isinstance(feature, datasets.Value):
            return feature.dtype in ("binary", "large_binary")
        return not isinstance(feature, datasets.ClassLabel)

    found = [name for name in features if is_called(name, candidates) and may_hold_pictures(name)]
    if len(found) != 1:
        reason = f"{', '.join(found)} could all be it" if found else "no column looks like it"
        if "__key__" in features and not found:
            reason += " (names in tar files are parted at their first dot; rename files whose names have others)"
        raise ColumnsError(f"set {setting}: {reason}; the columns are {', '.join(features)}")
    return found[0]


def _is_file_name(name: str) -> bool:
    return len(PurePosixPath(name).stem) > 0 and suffix_of(name) in (*PICTURE_SUFFIXES, *MASK_SUFFIXES)


def is_called(name: str, candidates: tuple[str, ...]) -> bool:
    """Whether a column has one of the names, as it is, with "_path" or the like, or as webdataset's "mask.png"."""
    name = name.lower()
    plain = re.sub(r"[_ -]?(path|file|filename|file_name|name|url)$", "", name)
    return name in candidates or plain in candidates or name.partition(".")[0] in candidates


__all__ = ["IMAGE_COLUMNS", "MOST_ROWS", "ColumnsError", "drop_decoding", "find_columns"]
