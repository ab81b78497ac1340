# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Samples: one picture with its label map, still encoded, and sequences of them.

Nothing is decoded before it is asked for, and then by `load_picture` and `load_label_map`: a palette mask keeps its
indices.
"""

import copy
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from torch.utils.data import get_worker_info

from ..model.image_io import NamedBytes, load_label_map, load_picture, open_picture, turn_upright
from ..utils.optional import import_package
from .stored_labels import (
    SampleError,
    as_grey,
    check_depth,
    check_transparency,
    grey_bits,
    labels_from_colors,
    naming,
    nearer_labels,
    palette_of,
    whole_numbers,
)

HEADS = ("PNG", "TIFF", "BMP", "JPEG", "WEBP", "PPM")  # whose palette, orientation or depth counts
MAYBE_LOSSY = {"WEBP": "WebP", "AVIF": "AVIF", "JPEG2000": "JPEG 2000"}
LOSSY = {  # by format, and by the compression of a TIFF
    **dict.fromkeys(("JPEG", "MPO"), "JPEG file"),
    **dict.fromkeys(("jpeg", "tiff_jpeg"), "TIFF file that JPEG compresses"),
    **{kind: f"{name} file (if it is a lossless one, store it as PNG)" for kind, name in MAYBE_LOSSY.items()},
}


class DrawnLabelMap(ABC):
    """A label map that is drawn when it is asked for, as from polygons. `name`: what it is drawn from."""

    name: str

    @abstractmethod
    def draw(self) -> np.ndarray:
        """(H, W) int64; ValueError or OSError if it cannot be drawn."""


@dataclass(frozen=True)
class Sample:
    """One picture and its label map, still encoded.

    `picture`, `label_map`: path (also of an `.npy` array), bytes of a file, {"bytes", "path"}, PIL picture, or array
    (nested lists count as one); as label map also what draws one, see `DrawnLabelMap`.
    `name`: what error messages call it. `label_colors`: (r, g, b) -> label, where masks are stored as colours.
    """

    picture: Any
    label_map: Any
    name: str
    label_colors: dict[tuple[int, int, int], int] | None = None

    def read_picture(self, **reading) -> np.ndarray:
        """Read the picture, EXIF orientation applied.

        Args:
            reading: keywords for `load_picture`, as `Settings.reading` has them for what a processor takes; without
                them what is found.

        Returns:
            (H, W, 3) uint8, RGB, of grey and colours; (H, W, n) of other bands, as stored.

        Raises:
            SampleError: of kind "picture".
        """
        reading = {"num_channels": None} | reading
        with naming(self.name, "picture"):
            return load_picture(picture_source(self.picture, self.name), **reading)

    def read_label_map(self) -> np.ndarray:
        """(H, W) int64, values as stored, or labels if `label_colors` is given. Raises `SampleError`.

        RGB of three equal bands is a way to store grey, and read as such. Of grey of 2 and 4 bits the number counts.
        """
        with naming(self.name, "label map"):
            with open_head(self.label_map) as head:
                check_depth(head)
                step = {2: 85, 4: 17}.get(grey_bits(head), 1)  # that Pillow multiplies grey of few bits by
            source = open_source(self.label_map, self.name)
            if isinstance(source, DrawnLabelMap):
                return source.draw()
            kinds = getattr(source, "info", {}).get("compression"), getattr(source, "format", None)
            if kind := next((LOSSY[kind] for kind in kinds if kind in LOSSY), None):
                if len(self.label_colors or ()) == 2:
                    return nearer_labels(source, self.label_colors)
                raise SampleError(f"the label map is a {kind}, which does not keep its values", "lossy label map")
            if kinds[1] in ("GIF", "PNG", "WEBP") and (count := getattr(source, "n_frames", 1)) > 1:
                raise ValueError(f"it is an animation of {count} pictures, of which the first alone would be read")
            if self.label_colors is not None:
                return labels_from_colors(source, self.label_colors)
            if getattr(source, "format", None) == "GIF":  # programs put its palette in any order
                source = source.convert("RGB")
            if isinstance(source, Image.Image) and source.mode in ("LA", "RGB", "RGBA"):
                if (grey := as_grey(source)) is not None:
                    return grey
                check_transparency(source)
                raise SampleError(
                    f"the label map is a colour picture (mode {source.mode}); give label_colors, "
                    "{label: [red, green, blue]}, or store one label per pixel",
                    "colour mask",
                )
            return load_label_map(whole_numbers(source)) // step

    def read_bits(self) -> int:
        """Bits of each pixel of a grey label map, 1, 2 or 4; 8 of any other, and of more."""
        with open_head(self.label_map) as head:
            return grey_bits(head)

    def read_palette(self) -> dict[int, tuple[int, int, int]]:
        """{index: (r, g, b)} of a label map that has a palette of which the indices count; {} of any other."""
        if self.label_colors is not None:
            return {}
        with open_head(self.label_map) as picture:
            return (None if picture is None else palette_of(picture)) or {}

    def is_turned(self) -> bool:
        """Whether EXIF orientation turns the picture, and its size would be the same if it did not."""
        with open_head(self.picture) as picture:
            turn = 1 if picture is None else picture.getexif().get(ExifTags.Base.Orientation, 1)
            return turn in (2, 3, 4) or (turn in (5, 6, 7, 8) and picture.width == picture.height)

    def read(self, **reading) -> tuple[np.ndarray, np.ndarray]:
        """Picture and stored label map (H, W) int64; see `read_picture`. `SampleError` also if their sizes differ."""
        picture, label_map = self.read_picture(**reading), self.read_label_map()
        (height, width), stored = picture.shape[:2], label_map.shape
        if stored != (height, width):
            turned = "; one is turned (EXIF orientation, or swapped axes)" if stored == (width, height) else ""
            raise SampleError(
                f"{self.name}: picture {height} x {width}, label map {stored[0]} x {stored[1]}{turned}; labels are "
                "never resized to fit, so store each at its picture's size",
                "size",
            )
        return picture, label_map


def picture_source(source: Any, name: str) -> Any:
    """What `load_picture` takes, from anything a column or folder holds. ValueError if nothing."""
    if isinstance(source, dict):
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    if isinstance(source, bytes):
        return NamedBytes(source, name)
    if isinstance(source, str) and "://" not in source:
        return Path(source)  # also if it looks like base64
    if source is None or isinstance(source, str | list):
        picture = open_source(source, name)
        return turn_upright(picture) if isinstance(picture, Image.Image) else picture
    return source


def open_source(source: Any, name: str) -> Image.Image | np.ndarray:
    """What `load_picture` and `load_label_map` take, from anything a column or folder holds. ValueError if nothing."""
    if isinstance(source, dict):
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    if source is None:
        raise ValueError("missing")
    if isinstance(source, list) and source and isinstance(source[0], (str, bytes, dict)):
        raise ValueError(f"a list of {len(source)} files; one that says of each pixel what it is is wanted")
    if isinstance(source, bytes):
        return open_picture(NamedBytes(source, name))
    if isinstance(source, str) and "://" in source:  # streamed from an archive or an address
        return import_datasets(source).Image().decode_example({"path": source, "bytes": None})
    if isinstance(source, (str, Path)) and str(source).lower().endswith(".npy"):
        return np.load(source, allow_pickle=False)
    if isinstance(source, (str, Path)):
        return open_picture(source)
    return np.asarray(source) if isinstance(source, list) else source


@contextmanager
def open_head(source: Any) -> Iterator[Image.Image | None]:
    """The picture that a column or folder holds a file of, of which the head is read; None for anything else."""
    if isinstance(source, dict):
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    source = io.BytesIO(source) if isinstance(source, bytes) else source
    is_file = isinstance(source, io.BytesIO | Path) or (isinstance(source, str) and "://" not in source)
    try:
        picture = Image.open(source, formats=HEADS) if is_file else None
    except (OSError, ValueError, Image.DecompressionBombError):  # reading it says what is wrong, or it is an array
        picture = None
    with picture or nullcontext() as opened:
        yield opened


class Samples(ABC):
    """What every kind of data set has.

    `split`: the name that was found. `notes`: sentences on files of the split that belong to no sample. `layout`: the
    `Layout` that it was found by, where `open_dataset` opened it. `class_names`: (where, names) of other columns.
    """

    layout = None
    class_names: Sequence[tuple[str, list[str]]] = ()

    def __init__(self, split: str, label_colors: dict | None, notes: Iterable[str] = ()):
        self.split, self.label_colors, self.notes = split, label_colors, list(notes)

    @abstractmethod
    def contents(self) -> list:
        """What the samples are, wherever they lie, as JSON can hold it; of a table and a stream, of some of them."""

    @abstractmethod
    def origin(self) -> list:
        """Where the samples come from and what they are, as JSON can hold it."""

    def __getstate__(self) -> dict:
        """Without the layout, which worker processes do not need."""
        return {key: value for key, value in vars(self).items() if key != "layout"}


class FolderSamples(Samples):
    """A sequence of `Sample`s of files. `items`: (picture, label map), paths below `root` or a `DrawnLabelMap`."""

    def __init__(
        self,
        root: Path,
        items: list[tuple[str, str | DrawnLabelMap]],
        split: str,
        label_colors: dict | None,
        notes: Iterable[str] = (),
    ):
        super().__init__(split, label_colors, notes)
        self.root, self.items = root, items

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(picture, label map), as paths relative to `root`."""
        return [(picture, getattr(label_map, "name", label_map)) for picture, label_map in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        picture, label_map = self.items[index]
        if isinstance(label_map, str):
            label_map = self.root / label_map
        return Sample(self.root / picture, label_map, picture, self.label_colors)

    def contents(self) -> list:
        return self.pairs

    def origin(self) -> list:
        return [str(self.root.resolve()), self.pairs]


class TableRows(Samples):
    """Rows of a table of `datasets` as `Sample`s.

    `columns`: picture and label map, not decoded. `root`: the folder that paths in them are relative to. `locate`:
    finds the file below `root` that a path of another place means, as far as it fits; None if it is not needed.
    """

    locate: Callable[[str], str | None] | None = None

    def __init__(
        self, table, columns: tuple[str, str], split: str, label_colors: dict | None, root: Path | None = None
    ):
        super().__init__(split, label_colors)
        self.table, self.columns, self.root = table, columns, root

    def sample(self, index: int, row: dict) -> Sample:
        """Named after the picture's file if the row tells it, else by its number."""
        picture, label_map = (self.place(row[column]) for column in self.columns)
        if isinstance(picture, str) and picture == label_map:  # a bare name, which means two files
            label_map = row[self.columns[1]]
        path = path_of(picture)
        return Sample(picture, label_map, Path(path).name if path else f"sample {index}", self.label_colors)

    def place(self, source):
        """A relative path below `root`, if there is one, also as Windows writes it; anything else as it is."""
        if self.root is None or not isinstance(source, str) or "://" in source:
            return source
        path = self.root / source
        if "\\" in source and not path.exists():
            path = self.root / source.replace("\\", "/")
        if self.locate is not None and not path.exists():
            try:
                path = self.root / (self.locate(source) or source)
            except ValueError:  # several files fit, so it is missing
                pass
        return str(path)

    def origin(self) -> list:
        info = self.table.info
        return [self.columns, info.dataset_name, info.config_name, str(info.splits)]


class TableSamples(TableRows):
    """A sequence of `Sample`s over a `datasets.Dataset`."""

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self.table):
            raise IndexError(f"sample {index} of {len(self.table)}")
        return self.sample(index, self.table[index])

    def contents(self) -> list:
        count = len(self)
        return [count, *(self[i].name for i in range(0, count, max(count // 16, 1)))]

    def origin(self) -> list:
        return [*super().origin(), len(self), self.table._fingerprint]


class StreamedSamples(TableRows):
    """`Sample`s over a `datasets.IterableDataset`: to be iterated, any number of times, not indexed.

    In a DataLoader at most one worker may read it (else ValueError): `datasets` would give each of several workers
    other shards, and what a training step sees would depend on their number.
    """

    left_out = frozenset()  # numbers of rows that are passed by; see `exclude`

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError(f"a stream is read by one worker, not {worker.num_workers}; set num_workers to 0 or 1")
        return (self.sample(index, row) for index, row in enumerate(self.table) if index not in self.left_out)

    def contents(self) -> list:
        return [str(self.table.info.splits), next((sample.name for sample in self), None)]

    def origin(self) -> list:
        return [*super().origin(), next((sample.name for sample in self), None)]


class ChosenSamples(Samples):
    """Some `Sample`s of a sequence, in its order, under their own names. `chosen`: their numbers there."""

    def __init__(self, samples, chosen: list[int], split: str | None = None, notes: Iterable[str] | None = None):
        super().__init__(split or samples.split, samples.label_colors, samples.notes if notes is None else notes)
        self.samples, self.chosen, self.layout = samples, chosen, samples.layout
        self.class_names = samples.class_names

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[self.chosen[index]]

    def contents(self) -> list:
        return [self.samples.contents(), self.chosen]

    def origin(self) -> list:
        return [self.samples.origin(), self.chosen]


def path_of(source) -> str | None:
    """The path that a cell of a table tells, as text or beside the bytes of a file."""
    return source.get("path") if isinstance(source, dict) else source if isinstance(source, str) else None


def exclude(samples: Samples, left_out: Iterable[int]):
    """`samples` as if those of the given numbers were not in the data set."""
    left_out = frozenset(left_out)
    if not left_out:
        return samples
    if isinstance(samples, StreamedSamples):
        chosen = copy.copy(samples)
        chosen.left_out, chosen.layout = left_out, samples.layout
        return chosen
    return ChosenSamples(samples, [index for index in range(len(samples)) if index not in left_out])


def import_datasets(what: str):
    """The package `datasets`; ImportError that says what for."""
    return import_package("datasets", "load_dataset", what, "'qlseg-hf[train]'")


__all__ = [
    "ChosenSamples",
    "DrawnLabelMap",
    "FolderSamples",
    "Sample",
    "SampleError",
    "Samples",
    "StreamedSamples",
    "TableSamples",
    "exclude",
]
