# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Pictures of any number of bands: reading TIFFs that Pillow has no mode for, and mean and deviation per band.

The order of bands is that of the file. Where a network begins with the weights of an RGB one, the first three bands
are taken for red, green and blue.
"""

import math
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..utils.optional import import_package
from .datasets import SampleError

SMALLER_OR_MASK = 0b101  # bits of NewSubfileType: pages that are not pictures of their own
MANY_BANDS = 16  # pictures of more may have fewer pixels
ALPHA = (1, 2)  # of ExtraSamples
GREY_AND_RGB = ("MINISWHITE", "MINISBLACK", "RGB")  # values as they are
# of the orientation tag: is the picture transposed, then its rows, then its columns reversed
ORIENTATIONS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def read_tiff(file: BinaryIO, name: str) -> tuple[np.ndarray, int, bool]:
    """Read the bands of a TIFF as they are stored, turned upright.

    Args:
        file: open for reading, at its start.
        name: of the file, for messages.

    Returns:
        (H, W, bands) of the stored type; how many of the bands, the last ones, are alpha; whether the bands are pages.

    Raises:
        ImportError: tifffile is missing.
        ValueError: no TIFF, damaged or truncated, too large, or of pages that differ, colours that are not stored as
            such (palette, YCbCr, CMYK), or complex values.
    """
    tifffile = import_package("tifffile", "TiffFile", f"{name}: a TIFF of such bands or values", "'qlseg-hf[bands]'")
    size = file.seek(0, 2)
    file.seek(0)
    try:
        with tifffile.TiffFile(file) as tiff:
            check_end(tiff, file)
            pages = [page for page in tiff.pages if not int(page.subfiletype) & SMALLER_OR_MASK]
            check_pages(pages, size)
            array = np.stack([page.asarray() for page in pages], axis=-1) if len(pages) > 1 else read_page(pages[0])
            page = pages[0]
            if page.photometric.name == "MINISWHITE" and array.dtype.kind == "u":
                array = np.iinfo(array.dtype).max - array
            num_alpha = sum(kind in ALPHA for kind in page.extrasamples) if len(pages) == 1 else 0
            orientation = int(page.tags.valueof("Orientation", 1))
    except Exception as error:  # tifffile's readers raise many kinds, and a stranger's file any of them
        raise ValueError(f"{name} cannot be read as a picture: {error}") from error
    return turn(array, orientation), num_alpha, len(pages) > 1


def check_end(tiff, file: BinaryIO) -> None:
    """ValueError if the last page that is there says that there is another one."""
    form, page = tiff.tiff, tiff.pages[len(tiff.pages) - 1]
    file.seek(page.offset)
    (num_tags,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
    file.seek(page.offset + form.tagnosize + num_tags * form.tagsize)
    if file.read(form.offsetsize) != bytes(form.offsetsize):
        raise ValueError("it is truncated: pages are missing")


def check_pages(pages: list, size: int) -> None:
    """ValueError if the pages of a TIFF of `size` bytes are not the bands of one picture, or something is missing."""
    if not pages:
        raise ValueError("it is a TIFF without a picture")
    first = pages[0]
    for page in pages:
        if page.dtype is None or page.dtype.kind not in "iuf":
            raise ValueError(f"it holds values of {page.bitspersample} bits ({page.dtype}), which are not read")
        if page.photometric.name not in GREY_AND_RGB:
            raise ValueError(f"its colours are stored as {page.photometric.name}; save them as grey, RGB or bands")
        if (page.shape, page.dtype) != (first.shape, first.dtype):
            raise ValueError(f"its pages differ: {first.shape} {first.dtype} and {page.shape} {page.dtype}")
        if max((at + count for at, count in zip(page.dataoffsets, page.databytecounts)), default=0) > size:
            raise ValueError("it is truncated")
        if len(page.dataoffsets) != math.prod(page.chunked):  # the rest would be black
            raise ValueError(f"it has {len(page.dataoffsets)} of its {math.prod(page.chunked)} strips or tiles")
    most = 2 * (Image.MAX_IMAGE_PIXELS or np.inf)
    bands = first.samplesperpixel * len(pages)
    if first.imagewidth * first.imagelength * max(1, bands / MANY_BANDS) > most:
        raise ValueError(
            f"{first.imagelength} x {first.imagewidth} pixels of {bands} bands could be a decompression bomb; if it "
            "is meant to be that large, raise PIL.Image.MAX_IMAGE_PIXELS"
        )
    if len(pages) > 1 and (first.ndim != 2 or first.samplesperpixel != 1):
        raise ValueError(f"it has {len(pages)} pages of several bands each; save one picture per file")


def read_page(page) -> np.ndarray:
    """(H, W, bands) of a page, which stores its bands together or one after the other."""
    array = page.asarray()
    if array.ndim == 2:
        return array[..., None]
    if array.ndim != 3 or page.axes not in ("YXS", "SYX"):
        raise ValueError(f"it has the axes {page.axes}; rows, columns and bands are wanted")
    return np.moveaxis(array, 0, -1) if page.axes == "SYX" else array


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, bands) as the orientation tag says it is to be seen."""
    is_transposed, flips_rows, flips_columns = ORIENTATIONS.get(orientation, (False, False, False))
    array = array.swapaxes(0, 1) if is_transposed else array
    return array[:: -1 if flips_rows else 1, :: -1 if flips_columns else 1]


@dataclass(frozen=True)
class BandStatistics:
    """What the bands of a data set's pictures are. Numbers per band are in units of the stored values.

    `num_channels`: bands that a network for them takes; 3 of grey, which is repeated. `dtype`: NumPy's name of the
    stored type; "uint8" also of grey and RGB of 16 bits, which are brought to 8. `mean`, `deviation`, `least`, `most`:
    per band, over all values that count. `num_pictures`, `num_pixels`: what was measured. `notes`: sentences for the
    person whose data it is.
    """

    num_channels: int
    dtype: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    least: tuple[float, ...]
    most: tuple[float, ...]
    num_pictures: int
    num_pixels: int
    notes: tuple[str, ...] = ()

    @property
    def rescale_factor(self) -> float | None:
        """What integers are multiplied by: 1 / 255 of 8 bits, 1 / 65535 of 16, else 1 / the largest value.

        None for floats, which are taken as they are (`do_rescale=False`).
        """
        if self.dtype.startswith("float"):
            return None
        if self.dtype == "uint8":
            return 1 / 255
        return 1 / max(65535.0, *(abs(value) for value in (*self.least, *self.most)))

    @property
    def processor_settings(self) -> dict[str, Any]:
        """Settings of `QLSegImageProcessor` that these pictures need; {} for 8-bit RGB, which needs no other.

        A band that is the same everywhere gets the deviation 1: it says nothing, and becomes 0.
        """
        if self.num_channels == 3 and self.dtype == "uint8":
            return {}
        factor = self.rescale_factor
        settings = {"do_rescale": False} if factor is None else {"rescale_factor": factor}
        scale = 1.0 if factor is None else factor
        return settings | {
            "image_mean": [value * scale for value in self.mean],
            "image_std": [value * scale if value * scale > 1e-12 else 1.0 for value in self.deviation],
        }


class BandSums:
    """Mean and deviation per band of pictures that come one by one, or in several processes; nothing is kept of them.

    Source: Chan, Golub and LeVeque 1979: mean and summed squares of two parts give those of both, without the
    cancellation that sums of squares suffer from.
    """

    def __init__(self, nodata: float | None = None):
        self.nodata, self.kind, self.name = nodata, None, None
        self.num_pictures = self.num_pixels = 0
        self.counts = self.mean = self.squares = self.least = self.most = None

    def add(self, picture: np.ndarray, name: str = "a picture") -> None:
        """Count an (H, W, bands) picture. ValueError if its bands or type differ from those of the first."""
        values = picture.reshape(-1, picture.shape[-1])
        other = BandSums(self.nodata)
        other.kind, other.name = (picture.shape[-1], picture.dtype.name), name
        other.num_pictures, other.num_pixels = 1, len(values)
        if self.nodata is None:
            columns = [values[:, band] for band in range(values.shape[1])]
        else:
            columns = [values[values[:, band] != self.nodata, band] for band in range(values.shape[1])]
        other.counts = np.array([len(column) for column in columns], dtype=np.float64)
        other.mean = np.array([column.mean(dtype=np.float64) if len(column) else 0.0 for column in columns])
        other.squares = np.array(
            [column.var(dtype=np.float64) * len(column) if len(column) else 0 for column in columns]
        )
        other.least = np.array([column.min() if len(column) else np.inf for column in columns], dtype=np.float64)
        other.most = np.array([column.max() if len(column) else -np.inf for column in columns], dtype=np.float64)
        self.merge(other)

    def merge(self, other: "BandSums") -> None:
        """Count what `other` has counted. ValueError if its bands or type differ."""
        if other.kind is None:
            return
        if self.kind is None:
            self.__dict__.update(other.__dict__)
            return
        if self.kind != other.kind:
            (own, own_type), (its, its_type) = self.kind, other.kind
            raise ValueError(
                f"{self.name} has {own} bands of {own_type} and {other.name} {its} of {its_type}; all pictures must "
                "have the same"
            )
        counts = self.counts + other.counts
        share = other.counts / np.maximum(counts, 1)
        step = other.mean - self.mean
        self.squares = self.squares + other.squares + step**2 * self.counts * share
        self.mean, self.counts = self.mean + step * share, counts
        self.least, self.most = np.minimum(self.least, other.least), np.maximum(self.most, other.most)
        self.num_pictures += other.num_pictures
        self.num_pixels += other.num_pixels

    def statistics(self) -> BandStatistics:
        """What was counted; ValueError if a band has no value that counts."""
        if self.kind is None or not (self.counts > 0).all():
            raise ValueError("there is no picture, or a band has no value that counts; see nodata")
        deviation = np.sqrt(self.squares / self.counts)
        numbers = (tuple(x.tolist()) for x in (self.mean, deviation, self.least, self.most))
        return BandStatistics(*self.kind, *numbers, self.num_pictures, self.num_pixels)


def measure_bands(
    samples: Iterable,
    *,
    num_channels: int | None = None,
    keep_values: bool = False,
    nodata: float | None = None,
    progress: bool = True,
) -> BandStatistics:
    """Measure the bands of a data set in one pass; memory does not grow with it.

    Args:
        samples: `Sample`s, of which the pictures are read.
        num_channels: bands that the pictures are to be read with; what is found if not given. Give 4 for RGB and near
            infrared in files that call the fourth band alpha.
        keep_values: measure grey and RGB of 16 bits as they are stored, and not as the 8 bits they are read as
            otherwise. Without it 16-bit pictures of grey or RGB need nothing that was measured.
        nodata: a value that stands for "not measured" and does not count. NaN and infinite values are refused, as in
            training.
        progress: show a bar.

    Raises:
        SampleError: a picture cannot be read.
        ValueError: pictures differ in the number or type of their bands, or there is none.
    """
    sums, notes = BandSums(nodata), ()
    for sample in tqdm(samples, "measuring bands", unit=" pictures", disable=not progress):
        picture = sample.read_picture(num_channels=num_channels, keep_values=keep_values)
        if sums.num_pictures == 0 and num_channels is None and picture.shape[-1] == 3:
            notes = notes_on_alpha(sample, keep_values)
        sums.add(picture, sample.name)
    return replace(sums.statistics(), notes=notes)


def notes_on_alpha(sample, keep_values: bool) -> tuple[str, ...]:
    """A sentence if the sample's picture has an alpha band that is left out and may be a band of its own."""
    fourth = ()
    for as_stored in {keep_values, True}:  # of 16 bits only the stored values are read as four bands
        with suppress(SampleError):  # there is no fourth band
            fourth = sample.read_picture(num_channels=4, keep_values=as_stored)[..., 3]
    if len(np.unique(fourth)) <= 2:
        return ()
    return (
        f"the fourth band of {sample.name} is called alpha (opacity) and left out, but varies as a picture does; if "
        "it is one, such as near infrared, set num_channels to 4",
    )


__all__ = ["BandStatistics", "BandSums", "measure_bands", "read_tiff"]
