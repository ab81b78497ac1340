# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Rasters larger than memory: windows are read, and rows of the label map written, block by block.

For a TIFF that is segmented at its own resolution in a single run, when nothing but `geotiff` and `csv` is asked for.
Windows are forwarded in the order and the batches of `segment`, and scores are made in its blocks, so the label map
equals that of the whole raster, pixel by pixel. What is held does not grow with the raster's height, and with its
width by 0.7 MB per window of 150 labels.

Colours that are stored as YCbCr, as GDAL's JPEG compression does if asked, are made RGB in another way by GDAL than by
Pillow, which reads whole images; so those that Pillow can read are read whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel

from ..model.image_files import TIFF_COLOURS, check_brightness, tiff_directory
from ..model.processor_settings import Settings
from ..model.request import Request
from ..model.runtime import eval_mode, execution_device
from ..model.scores import Span, block_pixels, blocks, overlap
from ..model.segmentation import Strip, Target, finish_strip
from ..model.windows import Run, Window, forward_windows, window_layout
from ..utils.files import write_into
from .geo import Georeference, geotiff_profile, import_rasterio, write_palette
from .items import Item, LocalFile, RemoteFile
from .sinks import SUFFIXES, Output

BLOCKWISE = {"geotiff", "csv"}  # formats that are written row by row
TIFF_SUFFIXES = (".tif", ".tiff")
TIFF_WIDTH, TIFF_HEIGHT, YCBCR = 256, 257, 6
ROWS_AT_A_TIME = 512  # at least; the height of the tiles that are written
CACHE_MB = 256  # of blocks that GDAL keeps


def is_blockwise(item: Item, settings: Settings, scales: list[float], flip: bool, formats: tuple[str, ...]) -> bool:
    """Whether an image is segmented block by block."""
    if not set(formats) <= BLOCKWISE or "geotiff" not in formats:
        return False
    is_single = not settings.do_resize and settings.do_sliding_window and list(scales) == [1.0] and not flip
    is_file = isinstance(item.reader, LocalFile | RemoteFile)
    return is_single and is_file and item.source.lower().endswith(TIFF_SUFFIXES) and not _is_read_whole(item.reader)


def _is_read_whole(reader: LocalFile | RemoteFile) -> bool:
    """Whether a TIFF is stored as YCbCr and small enough for Pillow; of one that cannot be opened others tell that."""
    try:
        with open(reader.path, "rb") if isinstance(reader, LocalFile) else fsspec.open(reader.address).open() as file:
            tags = tiff_directory(file) or {}
    except OSError:
        return False
    pixels = tags.get(TIFF_WIDTH, 0) * tags.get(TIFF_HEIGHT, 0)
    return tags.get(TIFF_COLOURS) == YCBCR and pixels <= 2 * (Image.MAX_IMAGE_PIXELS or np.inf)


@dataclass
class _Raster:
    """An open raster and the bands of it that the network takes."""

    file: Any
    bands: list[int]
    settings: Settings
    brightest: int = 0  # of 16 bits, so far

    def __post_init__(self):
        self.is_inverted = self.file.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"  # as GDAL leaves it
        self.num_bits = int(self.file.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 16))  # of 16

    def read(self, rows: Span, columns: Span) -> torch.Tensor:
        """(n, height, width) fp32 pixels of a window, as `load_picture` and the processor give them.

        Raises:
            ValueError: there are NaN or infinite values.
        """
        values = self.file.read(self.bands, window=((rows[0], rows[1]), (columns[0], columns[1])))
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError("the picture holds NaN or infinite values")
        if self.is_inverted and values.dtype.kind == "u":
            values = np.iinfo(values.dtype).max - values
        if values.dtype == np.uint16 and not self.settings.reading["keep_values"]:
            if self.num_bits == 16:
                self.brightest = max(self.brightest, int(values.max(initial=0)))
            values = (values >> (self.num_bits - 8)).astype(np.uint8)
        return self.settings.normalized(torch.from_numpy(values))


def open_raster(file: Any, settings: Settings) -> _Raster:
    """The bands of an open raster that a processor takes; ValueError if it is none that `load_picture` would read."""
    wanted, kinds = settings.num_channels, set(file.dtypes)
    names = [band.name for band in file.colorinterp]
    bands = [number for number, name in enumerate(names, 1) if name != "alpha"]
    if "palette" in names:
        raise ValueError("it is a raster with a colour table; save it as RGB")
    if len(bands) == 1 and wanted == 3:
        bands = bands * 3
    if len(bands) != wanted:
        raise ValueError(f"it has {len(bands)} bands; the processor takes {wanted}, as many as image_mean has entries")
    keep_values, keep_float = settings.reading["keep_values"], settings.reading["keep_float"]
    allowed = {"uint16"} if keep_values else {"uint8", "uint16"} | ({"float32"} if keep_float else set())
    if len(kinds) > 1 or not kinds <= allowed:
        raise ValueError(f"it holds {', '.join(sorted(kinds))} values; {' or '.join(sorted(allowed))} is wanted")
    return _Raster(file, bands, settings)


@torch.no_grad()
def segment_raster(
    item: Item, model: PreTrainedModel, request: Request, batch_size: int, output: Output
) -> Iterator[tuple[int, int] | str]:
    """Segment a raster and write its GeoTIFF, and its record for `areas.csv`.

    Yields how far it is after each forward pass, as a text, and at the end the raster's (height, width).

    Raises:
        ValueError: it is no raster that can be read.
        OSError: the result cannot be written.
    """
    rasterio = import_rasterio()
    path = output.root / "geotiff" / f"{item.name}{SUFFIXES['geotiff']}"
    source = item.source if isinstance(item.reader, RemoteFile) else item.reader.path
    try:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_MB), rasterio.open(source) as file:
            raster, shape = open_raster(file, request.settings), (file.height, file.width)
            place = None if file.crs is None and file.transform.is_identity else Georeference(file.crs, file.transform)
            profile = geotiff_profile(shape, len(output.names), output.void, place)
            counts = np.zeros(len(output.names), dtype=np.int64)
            with write_into(path.parent) as beside:
                with rasterio.open(beside / path.name, "w", **profile) as written:
                    write_palette(written, output.colors)
                    rows = _Rows(written, profile["dtype"])
                    for found in _label_rows(raster, shape, model, request, batch_size):
                        if isinstance(found, str):
                            yield found
                        else:
                            found = output.select(found)
                            counts += np.bincount(found.ravel(), minlength=len(counts))[: len(counts)]
                            rows.add(found)
                    rows.flush()
                if raster.brightest:
                    check_brightness(raster.brightest, 65535)
                _check_written(beside / path.name, counts)
    except rasterio.errors.RasterioError as error:
        raise ValueError(f"{item.source} cannot be read as a raster: {error}") from error
    output.write_records(item.name, counts)
    yield shape


def _check_written(path: Path, counts: np.ndarray) -> None:
    """OSError if a GeoTIFF does not hold so many pixels of each label: GDAL says nothing of a disk that was full."""
    rasterio, found = import_rasterio(), np.zeros_like(counts)
    try:
        with rasterio.open(path) as file:
            for row in range(0, file.height, ROWS_AT_A_TIME):
                part = file.read(1, window=((row, min(row + ROWS_AT_A_TIME, file.height)), (0, file.width)))
                found += np.bincount(part.ravel(), minlength=len(found))[: len(found)]
    except rasterio.errors.RasterioError as error:
        raise OSError(f"{path} cannot be written: {error}; is the disk full?") from error
    if not np.array_equal(found, counts):
        raise OSError(f"{path} was not written whole; is the disk full?")


def _label_rows(
    raster: _Raster, size: tuple[int, int], model: PreTrainedModel, request: Request, batch_size: int
) -> Iterator[np.ndarray | str]:
    """Rows of the label map from top to bottom, as many at a time as are ready; a text after each forward pass."""
    ((_, share, _, places),) = window_layout(request.settings, size, [1.0], False, request.max_windows)
    device = execution_device(model)
    num_pixels = block_pixels(len(model.config.id2label), device)
    (top, bottom), _ = next(blocks((0, size[0]), (0, size[1]), num_pixels))
    block = bottom - top
    length = -(-ROWS_AT_A_TIME // block) * block  # strips of whole blocks: scores are made in the blocks of `segment`
    windows: list[Window] = []  # that rows to come are made of, from top to bottom
    batch: list[tuple[Window, torch.Tensor]] = []
    start = 0

    def finish_rows(below: int) -> Iterator[np.ndarray]:
        """Label rows that no window below row `below` covers."""
        nonlocal start, windows
        while start < size[0] and min(start + length, size[0]) <= below:
            rows = (start, min(start + length, size[0]))
            inside = [window for window in windows if overlap(rows, window.rows)]
            target = Target(size, _StripMap(rows, size[1]))
            with torch.autocast(device.type, enabled=False):
                finish_strip(Strip(target, rows, (0, size[1]), [Run(size, share, inside)]), request)
            start = rows[1]
            windows = [window for window in windows if window.rows[1] > start]
            yield target.label_map.labels

    for number, (rows, columns) in enumerate(places, 1):
        window = Window(rows, columns, False)
        windows.append(window)
        batch.append((window, raster.read(rows, columns)))
        if len(batch) == batch_size or number == len(places):
            with eval_mode(model):
                forward_windows(model, batch)
            batch = []
            yield f"{number / len(places):.0%}"
            is_last = number == len(places)
            yield from finish_rows(size[0] if is_last else places[number][0][0])


class _StripMap:
    """The label map of a few rows, which is written as if it were the whole."""

    def __init__(self, rows: Span, width: int):
        self.first, self.labels = rows[0], np.empty((rows[1] - rows[0], width), dtype=np.int64)

    def __setitem__(self, place: tuple[slice, slice], labels: torch.Tensor) -> None:
        rows, columns = place
        self.labels[rows.start - self.first : rows.stop - self.first, columns] = labels.numpy()


class _Rows:
    """Writes rows into an open GeoTIFF, whole tiles at a time, because a tile is compressed when it is written."""

    def __init__(self, file: Any, dtype: str):
        self.file, self.dtype, self.row, self.waiting = file, dtype, 0, []

    def add(self, rows: np.ndarray) -> None:
        self.waiting.append(rows.astype(self.dtype))
        count = sum(map(len, self.waiting))
        self._write(count - count % ROWS_AT_A_TIME)

    def flush(self) -> None:
        self._write(sum(map(len, self.waiting)))

    def _write(self, count: int) -> None:
        if count:
            rows = np.concatenate(self.waiting)
            try:
                self.file.write(rows[:count], 1, window=((self.row, self.row + count), (0, rows.shape[1])))
            except import_rasterio().errors.RasterioError as error:
                raise OSError(f"{self.file.name} cannot be written: {error}") from error
            self.row, self.waiting = self.row + count, [rows[count:]]


__all__ = ["is_blockwise", "open_raster", "segment_raster"]
