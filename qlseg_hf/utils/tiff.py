# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Reading TIFFs of any number of bands and any numbers, which Pillow has no mode for."""

import math
import struct
from typing import BinaryIO

import numpy as np
from PIL import Image

from .optional import import_package

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


__all__ = ["read_tiff"]
