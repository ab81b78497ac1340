# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Opening data sets: whatever their layout, on disk or on the Hub, all become `Sample`s.

The package `datasets` is imported only where it is needed; layouts of files do without.
"""

from pathlib import Path

from ..utils.picture_files import NUM_NAMED, is_hidden, listed
from .layouts import find_layout
from .layouts.layout import Source
from .layouts.splits import NOT_DIVIDED, NOTHING_TO_LEARN, find_split
from .layouts.tables import open_slice
from .samples import (
    FolderSamples,
    Sample,
    SampleError,
    Samples,
    StreamedSamples,
    TableSamples,
    exclude,
)
from .stored_labels import check_colors


def open_dataset(
    dataset: str | Path,
    split: str,
    *,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
    label_colors: dict[int, list[int]] | None = None,
    layout: str | None = None,
    val_fraction: float | None = 0.2,
) -> Samples:
    """Open one split of a data set.

    Args:
        dataset: a folder or file in any layout that `find_layout` knows, or the id of a data set on the Hub.
        split: its name, or what a person calls it: see `find_split`. `datasets`' slices ("train[:10%]") work where
            `load_dataset` is used without streaming.
        config: configuration of a Hub data set.
        image_column, label_column: guessed from the names if not given.
        streaming: read from front to back, without download. For tables alone.
        label_colors: {label: [red, green, blue]} for masks stored as colours; then every mask is read by colour.
        layout: what `dataset` is, where it cannot be told: see `find_layout`.
        val_fraction: share of the training images that is held out as "validation" where nothing is: see `hold_out`.

    Returns:
        `Sample`s: a sequence, or with `streaming` an iterable. `.layout` is the `Layout` that was found, `.split` the
        name of the split, `.notes` sentences on what was left out.

    Raises:
        ValueError: no known layout, or two; no such split; columns that cannot be guessed; a picture without label
            map, two pictures with one, a file with a label map that is not a picture by its ending, a list of pictures
            that leaves the folder, or a folder without pictures.
        FileNotFoundError: no such folder, or `datasets` finds nothing.
        ImportError: `datasets` or `pycocotools` is needed and missing.
    """
    if "[" in split:
        root = Path(dataset).expanduser()
        colors = None if label_colors is None else check_colors(label_colors)
        folder = root if root.is_dir() else None
        source = Source(str(dataset), folder, None, config, image_column, label_column, streaming, colors)
        return open_slice(source, split)
    found = find_layout(
        dataset,
        layout=layout,
        val_fraction=val_fraction,
        config=config,
        image_column=image_column,
        label_column=label_column,
        streaming=streaming,
        label_colors=label_colors,
    )
    hint = "".join(f"; {note}" for note in found.notes if NOT_DIVIDED in note or NOTHING_TO_LEARN in note)
    samples = found.splits[find_split(split, list(found.splits), dataset, hint)]
    samples.layout = found
    return samples


__all__ = [
    "NUM_NAMED",
    "FolderSamples",
    "Sample",
    "SampleError",
    "Samples",
    "StreamedSamples",
    "TableSamples",
    "find_split",
    "is_hidden",
    "listed",
    "open_dataset",
    "exclude",
]
