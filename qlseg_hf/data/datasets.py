"""Opening data sets: from the Hub, saved, parquet, streamed or in mmsegmentation's folders, all become `Sample`s.

Nothing is decoded before it is asked for, and then by `load_picture` and `load_label_map`: a palette mask keeps its
indices. The package `datasets` is imported only where it is needed; the folder layouts do without.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import get_worker_info

from ..model.image_io import NamedBytes, load_label_map, load_picture, open_picture, turn_upright
from ..utils.optional import import_package
from .labels import read_text

TRAIN_SPLITS = ("train", "training", "train2014", "train2017")
VALIDATION_SPLITS = ("validation", "val", "valid", "dev", "val2014", "val2017")
TEST_SPLITS = ("test", "testing", "test2014")
IMAGE_COLUMNS = ("image", "img", "picture", "photo", "pixel_values", "jpg", "jpeg")
LABEL_COLUMNS = (
    *("label", "labels", "annotation", "annotations", "mask", "masks", "label_map", "segmentation"),
    *("segmentation_mask", "segmentation_map", "semantic_mask", "semantic_segmentation", "seg_mask", "seg", "png"),
)
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".npy")
NUM_NAMED = 5  # files and labels that a sentence names


class SampleError(ValueError):
    """A sample that cannot be used.

    `kind`: "picture", "label map", "lossy label map", "colour mask", "unknown colour", "size".
    """

    def __init__(self, message: str, kind: str = "label map"):
        super().__init__(message)
        self.kind = kind


@contextmanager
def naming(name: str, kind: str) -> Iterator[None]:
    """Turn whatever a loader says into a `SampleError` that names the sample."""
    try:
        yield
    except SampleError as error:
        raise SampleError(f"{name}: {error}", error.kind) from error
    except (OSError, TypeError, ValueError) as error:
        raise SampleError(f"{name}: {kind}: {error}", kind) from error


@dataclass(frozen=True)
class Sample:
    """One picture and its label map, still encoded.

    `picture`, `label_map`: path, bytes of a file, {"bytes", "path"}, PIL picture, or array (nested lists count as
    one). `name`: what error messages call it. `label_colors`: (r, g, b) -> label, where masks are stored as colours.
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
        """(H, W) int64, values as stored, or labels if `label_colors` is given. Raises `SampleError`."""
        with naming(self.name, "label map"):
            source = opened(self.label_map, self.name)
            if getattr(source, "format", None) in ("JPEG", "MPO"):
                raise SampleError("the label map is a JPEG file, which does not keep its values", "lossy label map")
            if self.label_colors is not None:
                return labels_from_colors(source, self.label_colors)
            if isinstance(source, Image.Image) and source.mode in ("RGB", "RGBA"):
                raise SampleError(
                    f"the label map is a colour picture (mode {source.mode}); give label_colors, "
                    "{label: [red, green, blue]}, or store one label per pixel",
                    "colour mask",
                )
            return load_label_map(source)

    def read(self, **reading) -> tuple[np.ndarray, np.ndarray]:
        """Picture and stored label map (H, W) int64; see `read_picture`. `SampleError` also if their sizes differ."""
        picture, label_map = self.read_picture(**reading), self.read_label_map()
        (height, width), stored = picture.shape[:2], label_map.shape
        if stored != (height, width):
            turned = "; the picture's EXIF orientation turns it" if stored == (width, height) else ""
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
        picture = opened(source, name)
        return turn_upright(picture) if isinstance(picture, Image.Image) else picture
    return source


def opened(source: Any, name: str) -> Image.Image | np.ndarray:
    """What `load_picture` and `load_label_map` take, from anything a column or folder holds. ValueError if nothing."""
    if isinstance(source, dict):
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    if source is None:
        raise ValueError("missing")
    if isinstance(source, bytes):
        return open_picture(NamedBytes(source, name))
    if isinstance(source, str) and "://" in source:  # streamed from an archive or an address
        return import_datasets(source).Image().decode_example({"path": source, "bytes": None})
    if isinstance(source, (str, Path)):
        return open_picture(source)
    return np.asarray(source) if isinstance(source, list) else source


def labels_from_colors(source: Image.Image | np.ndarray, label_colors: dict[tuple, int]) -> np.ndarray:
    """(H, W) int64 labels of a colour mask; palette masks are read by their colours too.

    Raises:
        SampleError: the picture has no 8-bit colours, or some that the table lacks (named with their pixel counts).
    """
    if isinstance(source, Image.Image):
        if source.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
            raise SampleError(f"label_colors is given, but a mask of mode {source.mode} has no 8-bit colours")
        source = np.asarray(source.convert("RGB"))
    if source.ndim != 3 or source.shape[-1] != 3:
        raise SampleError(f"label_colors is given, but the mask is no (H, W, 3) array; got shape {source.shape}")
    colors = source.astype(np.int64) @ [1 << 16, 1 << 8, 1]  # (H, W)
    known, labels = zip(*sorted(((r << 16) + (g << 8) + b, label) for (r, g, b), label in label_colors.items()))
    place = np.searchsorted(known, colors).clip(max=len(known) - 1)
    is_unknown = np.asarray(known)[place] != colors
    if is_unknown.any():
        values, counts = np.unique(colors[is_unknown], return_counts=True)
        worst = np.argsort(-counts, kind="stable")[:NUM_NAMED]
        worst_colors = [
            f"({v >> 16}, {v >> 8 & 255}, {v & 255}) in {c} pixels" for v, c in zip(values[worst], counts[worst])
        ]
        remedy = "add them or correct the mask"
        if len(values) > max(2 * len(known), 8):
            remedy = "so many come of JPEG or smoothed edges: store the mask as PNG, made without smoothing"
        raise SampleError(
            f"{len(values)} colours are not in label_colors: {', '.join(worst_colors)}; {remedy}", "unknown colour"
        )
    return np.asarray(labels, dtype=np.int64)[place]


def checked_colors(label_colors: dict) -> dict[tuple[int, int, int], int]:
    """{label: [r, g, b]} -> {(r, g, b): label}; ValueError for a colour that is none or stands for two labels."""
    colors = {}
    for label, color in label_colors.items():
        color = tuple(color)
        if len(color) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in color):
            raise ValueError(f"label_colors[{label}] is {list(color)}; [red, green, blue] of 0..255 is wanted")
        if color in colors:
            raise ValueError(f"label_colors gives {list(color)} to labels {colors[color]} and {label}; one is wanted")
        colors[color] = int(label)
    if not colors:
        raise ValueError("label_colors is empty; give {label: [red, green, blue]} or leave it out")
    return colors


class FolderSamples:
    """A sequence of `Sample`s in a folder layout.

    `split`: the name that was found. `notes`: sentences on files of the split that belong to no sample.
    """

    def __init__(
        self,
        root: Path,
        pairs: list[tuple[str, str]],
        split: str,
        label_colors: dict | None,
        notes: Iterable[str] = (),
    ):
        self.root, self.pairs, self.split, self.label_colors = root, pairs, split, label_colors
        self.notes = list(notes)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        picture, label_map = self.pairs[index]
        return Sample(self.root / picture, self.root / label_map, picture, self.label_colors)


class TableRows:
    """Rows of a table of `datasets` as `Sample`s. `columns`: picture and label map, not decoded."""

    def __init__(self, table, columns: tuple[str, str], split: str, label_colors: dict | None):
        self.table, self.columns, self.split, self.label_colors = table, columns, split, label_colors

    def sample(self, index: int, row: dict) -> Sample:
        """Named after the picture's file if the row tells it, else by its number."""
        picture, label_map = (row[column] for column in self.columns)
        path = picture.get("path") if isinstance(picture, dict) else picture if isinstance(picture, str) else None
        return Sample(picture, label_map, Path(path).name if path else f"sample {index}", self.label_colors)


class TableSamples(TableRows):
    """A sequence of `Sample`s over a `datasets.Dataset`."""

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self.table):
            raise IndexError(f"sample {index} of {len(self.table)}")
        return self.sample(index, self.table[index])


class StreamedSamples(TableRows):
    """`Sample`s over a `datasets.IterableDataset`: to be iterated, any number of times, not indexed.

    In a DataLoader at most one worker may read it (else ValueError): `datasets` would give each of several workers
    other shards, and what a training step sees would depend on their number.
    """

    left_out = frozenset()  # numbers of rows that are passed by; see `without`

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError(f"a stream is read by one worker, not {worker.num_workers}; set num_workers to 0 or 1")
        return (self.sample(index, row) for index, row in enumerate(self.table) if index not in self.left_out)


class ChosenSamples:
    """Some `Sample`s of a sequence, in its order, under their own names. `chosen`: their numbers there."""

    def __init__(self, samples: FolderSamples | TableSamples, chosen: list[int]):
        self.samples, self.chosen = samples, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[self.chosen[index]]


def without(samples: FolderSamples | TableSamples | StreamedSamples, left_out: Iterable[int]):
    """`samples` as if those of the given numbers were not in the data set."""
    left_out = frozenset(left_out)
    if not left_out:
        return samples
    if isinstance(samples, StreamedSamples):
        samples = StreamedSamples(samples.table, samples.columns, samples.split, samples.label_colors)
        samples.left_out = left_out
        return samples
    return ChosenSamples(samples, [index for index in range(len(samples)) if index not in left_out])


def open_dataset(
    dataset: str | Path,
    split: str,
    *,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
    label_colors: dict[int, list[int]] | None = None,
) -> FolderSamples | TableSamples | StreamedSamples:
    """Open one split of a data set.

    Args:
        dataset: a folder (ADE20K, COCO-Stuff-10K or PASCAL-Context as mmsegmentation lays them out; written by
            `save_to_disk`; of parquet or other files that `datasets` reads) or the id of a data set on the Hub. In
            ADE20K's and COCO-Stuff's layout a split may have sub-folders, the same for pictures and label maps.
        split: its name, or what a person calls it: see `find_split`. `datasets`' slices ("train[:10%]") work where
            `load_dataset` is used without streaming.
        config: configuration of a Hub data set.
        image_column, label_column: guessed from the names if not given.
        streaming: read from front to back, without download. Not for the mmsegmentation layouts.
        label_colors: {label: [red, green, blue]} for masks stored as colours; then every mask is read by colour.

    Returns:
        `Sample`s: a sequence, or with `streaming` an iterable.

    Raises:
        ValueError: no such split, columns that cannot be guessed, a picture without label map, two pictures with one,
            a file with a label map that is no picture by its ending, a list of pictures that leaves the folder, or a
            folder without pictures. Other files that belong to no sample are told in `FolderSamples.notes`.
        FileNotFoundError: no such folder, or `datasets` finds nothing.
        ImportError: `datasets` is needed and missing.
    """
    colors = None if label_colors is None else checked_colors(label_colors)
    root = Path(dataset).expanduser()
    if not root.is_dir() and (root.is_absolute() or str(dataset).startswith((".", "~")) or root.exists()):
        raise FileNotFoundError(f"data set {dataset} is no folder; give a folder or the id of a data set on the Hub")
    found = folder_pairs(root, split) if root.is_dir() else None
    if found is not None:
        if streaming or config or image_column or label_column:
            raise ValueError(
                f"{dataset} is a folder of pictures and label maps: streaming, config and columns do not apply to it"
            )
        return FolderSamples(root, found[1], found[0], colors, found[2])
    table, split = open_table(str(root if root.is_dir() else dataset), split, config, streaming)
    table, columns = undecoded(table, image_column, label_column)
    return (StreamedSamples if streaming else TableSamples)(table, columns, split, colors)


def find_split(wanted: str, available: list[str], where: str | Path) -> str:
    """The name in `available` that a person means by `wanted`; ValueError naming them if there is none.

    The exact name wins, then other spellings of it ("training", "train2014"; "val"); then validation and test stand
    in for one another, because many data sets hold out only one part.
    """
    candidates = (wanted,)
    for own, substitutes in ((TRAIN_SPLITS, ()), (VALIDATION_SPLITS, TEST_SPLITS), (TEST_SPLITS, VALIDATION_SPLITS)):
        if wanted in own:
            candidates = (wanted, *own, *substitutes)
    for name in candidates:
        if name in available:
            return name
    raise ValueError(f"{where} has no split {wanted!r}; it has {', '.join(available) or 'none'}")


def folder_pairs(root: Path, split: str) -> tuple[str, list[tuple[str, str]], list[str]] | None:
    """Split name, (picture, label map) paths relative to `root`, and sentences on files that belong to no pair.

    Returns None if this is none of mmsegmentation's layouts. Hidden files (see `is_hidden`) count nowhere.

    Raises:
        ValueError: see `open_dataset`.
    """
    notes = []
    if (root / "JPEGImages").is_dir() and (root / "SegmentationClassContext").is_dir():
        lists = root / "ImageSets" / "SegmentationContext"
        splits = sorted(path.stem for path in lists.glob("*.txt") if not is_hidden(path.name))
        split = find_split(split, splits, root)
        names = listed_names(lists / f"{split}.txt")
        pairs = [(f"JPEGImages/{name}.jpg", f"SegmentationClassContext/{name}.png") for name in names]
    elif (root / "images").is_dir() and (root / "annotations").is_dir():
        entries = [path for path in (root / "images").iterdir() if not is_hidden(path.name)]
        split = find_split(split, sorted(path.name for path in entries if path.is_dir()), root)
        pairs, notes = pairs_of_split(root, split)
        if beside := sorted(path.name for path in entries if path.suffix.lower() in PICTURE_SUFFIXES):
            notes.append(f"{len(beside)} pictures in {root / 'images'} belong to no split: {listed(beside)}")
    else:
        return None
    if not pairs:
        raise ValueError(". ".join([f"split {split} of {root} holds no pictures", *notes]))
    for part, what in ((0, "pictures are missing"), (1, "label maps are missing")):
        missing = [pair for pair in pairs if not (root / pair[part]).is_file()]
        if missing:
            text = f"{len(missing)} of {len(pairs)} {what} in {root}, the first is {missing[0][part]}"
            raise ValueError(". ".join([text + (f" of picture {missing[0][0]}" if part else ""), *notes]))
    return split, pairs, notes


def pairs_of_split(root: Path, split: str) -> tuple[list[tuple[str, str]], list[str]]:
    """(picture, label map) below images/split and annotations/split, which have the same path but for the ending.

    Returns:
        the pairs, of which the label maps may be missing, and sentences on files that belong to none.

    Raises:
        ValueError: a file that is no picture by its ending has a label map, or two pictures share one.
    """
    files = files_below(root / "images" / split)
    maps = files_below(root / "annotations" / split)
    is_coco_stuff = any(name.endswith("_labelTrainIds.png") for name in maps)
    ending = "_labelTrainIds.png" if is_coco_stuff else ".png"
    maps = {name for name in maps if name.endswith(ending) or not is_coco_stuff}
    map_of = {name: name.removesuffix(Path(name).suffix) + ending for name in files}
    names = [name for name in files if name.lower().endswith(PICTURE_SUFFIXES)]
    others = [name for name in files if not name.lower().endswith(PICTURE_SUFFIXES)]
    if unread := [name for name in others if map_of[name] in maps]:
        raise ValueError(
            f"{len(unread)} of {len(names) + len(unread)} pictures in {root / 'images' / split} are not of a kind "
            f"that is read ({', '.join(PICTURE_SUFFIXES)}): {listed(unread)}; convert them, or take them and their "
            "label maps out"
        )
    if shared := {name for name, count in Counter(map_of[name] for name in names).items() if count > 1}:
        owners = [name for name in names if map_of[name] in shared]
        raise ValueError(
            f"{len(owners)} pictures in {root / 'images' / split} share {len(shared)} label maps: {listed(owners)}; "
            f"keep one picture for each name, and label maps in {root / 'annotations' / split} alone"
        )
    notes = []
    if others:
        notes.append(
            f"{len(others)} files in {root / 'images' / split} are left out, because they are not of a kind "
            f"that is read ({', '.join(PICTURE_SUFFIXES)}): {listed(others)}"
        )
    if left := sorted(maps - {map_of[name] for name in names}):
        notes.append(
            f"{len(left)} files in {root / 'annotations' / split} are left out, because there is no picture of the "
            f"same path (label maps end with {ending}): {listed(left)}"
        )
    return [(f"images/{split}/{name}", f"annotations/{split}/{map_of[name]}") for name in names], notes


def is_hidden(name: str) -> bool:
    """Whether a file or folder is what systems and tools leave behind, such as `._x.jpg` of macOS."""
    return name.startswith((".", "__MACOSX", "@eaDir")) or name.lower() in ("thumbs.db", "desktop.ini")


def files_below(folder: Path) -> list[str]:
    """Paths of the files at any depth, relative to `folder`, sorted, without hidden ones; [] if there is no folder.

    Raises:
        ValueError: a link leads back to a folder above it.
    """
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not is_hidden(name)]
        real = os.path.realpath(place)
        for name in folders:
            target = os.path.realpath(os.path.join(place, name))
            if f"{real}{os.sep}".startswith(f"{target}{os.sep}"):
                raise ValueError(f"{os.path.join(place, name)} is a link to a folder above it; remove it")
        found += [os.path.relpath(os.path.join(place, name), folder) for name in files if not is_hidden(name)]
    return sorted(Path(name).as_posix() for name in found)


def listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more


def listed_names(path: Path) -> list[str]:
    """Names in a split list, one a line, blank lines and hidden files left out; ValueError for one that is a path."""
    names = []
    try:
        lines = read_text(path).splitlines()
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if name in (".", "..") or "/" in name or "\\" in name:
            raise ValueError(f"line {number} of {path} is {name!r}; a plain picture name without a folder is wanted")
        if name and not is_hidden(name):
            names.append(name)
    return names


def import_datasets(what: str):
    """The package `datasets`; ImportError that says what for."""
    return import_package("datasets", "load_dataset", what, "'qlseg-hf[train]'")


def open_table(dataset: str, split: str, config: str | None, streaming: bool):
    """`datasets.Dataset` (or `IterableDataset`) of a split, and the split's own name."""
    datasets = import_datasets(f"data set {dataset}")
    folder = Path(dataset)
    if (folder / "dataset_dict.json").is_file():
        available = sorted(path.name for path in folder.iterdir() if (path / "state.json").is_file())
        split = find_split(split, available, dataset)
        table = datasets.load_from_disk(str(folder / split))
    elif (folder / "state.json").is_file():
        table = datasets.load_from_disk(dataset)
        split = find_split(split, [str(table.split or "train")], dataset)
    else:
        name, bracket, part = split.partition("[")
        split = find_split(name, datasets.get_dataset_split_names(dataset, config), dataset) + bracket + part
        return datasets.load_dataset(dataset, config, split=split, streaming=streaming), split
    return (table.to_iterable_dataset() if streaming else table), split


def undecoded(table, image_column: str | None, label_column: str | None):
    """`table` cut down to its picture and label columns, which are not decoded, and the two names.

    Raises:
        ValueError: a column does not exist, or none or several look like it; names the columns.
    """
    datasets = import_datasets("a table")
    features = table.features or dict.fromkeys(next(iter(table), {}))  # a stream may not know its types
    columns = (
        find_column(image_column, "image_column", IMAGE_COLUMNS, features),
        find_column(label_column, "label_column", LABEL_COLUMNS, features),
    )
    table = table.select_columns(list(columns))
    for column in columns:
        if isinstance(features[column], datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    return table, columns


def find_column(given: str | None, setting: str, candidates: tuple[str, ...], features: dict) -> str:
    """`given` if it exists, else the only column that has a known name and is no plain number or text."""
    datasets = import_datasets("a table")
    if given is not None:
        if given not in features:
            raise ValueError(f"{setting} {given!r} does not exist; the columns are {', '.join(features)}")
        return given

    def may_hold_pictures(feature) -> bool:
        if isinstance(feature, datasets.Value):
            return feature.dtype in ("binary", "large_binary")
        return not isinstance(feature, datasets.ClassLabel)

    found = [name for name in features if name.lower() in candidates and may_hold_pictures(features[name])]
    if len(found) != 1:
        reason = f"{', '.join(found)} could all be it" if found else "no column looks like it"
        raise ValueError(f"set {setting}: {reason}; the columns are {', '.join(features)}")
    return found[0]


__all__ = [
    "FolderSamples",
    "Sample",
    "SampleError",
    "StreamedSamples",
    "TableSamples",
    "find_split",
    "open_dataset",
    "without",
]
