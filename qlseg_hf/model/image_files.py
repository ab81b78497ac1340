# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Picture files: opened without running what is in them, and refused where Pillow would read them wrongly.

A file may be a stranger's: its size is looked at before it is read, and a damaged one is named. EXIF orientation
belongs to opening: it is applied to files, addresses and bytes that are opened here, and not to PIL pictures, which
are taken as they are, as transformers' processors do.

Bands that Pillow has no mode for come from `.npy` files, which NumPy reads, and from TIFFs, for which the package sets
`tiff_reader`: this folder, which travels with the weights, imports nothing that reads them.
"""

import base64
import errno
import io
import math
import os
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import get_session
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])", re.DOTALL)
TIFF_STARTS, NPY_START = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), b"\x93NUMPY"

LONGEST_QUOTE = 80  # letters of an input that a message repeats
NEARLY_BLACK = 16  # of 255; 12 bits in a 16-bit picture stay below
TIFF_BITS, TIFF_BANDS, TIFF_KIND, TIFF_EXTRA, TIFF_COLOURS, TIFF_SIGN = 258, 277, 254, 338, 262, 339

# Of an open TIFF file: (H, W, bands) as stored; how many of the bands, the last ones, are alpha; and whether they are
# pages, of which it is not said what they are
tiff_reader: Callable[[BinaryIO, str], tuple[np.ndarray, int, bool]] | None = None


def shorten(text: object) -> str:
    """The start of a text that may be very long, for messages; of a path its end, which has the file's name."""
    text = str(text)
    if len(text) <= LONGEST_QUOTE:
        return text
    is_path = os.sep in text and not text.startswith(("data:", "http"))
    return f"...{text[3 - LONGEST_QUOTE :]}" if is_path else f"{text[: LONGEST_QUOTE - 3]}..."


def open_picture(source: str | Path | io.BytesIO) -> Image.Image:
    """Open and fully read a picture file; FileNotFoundError if absent. EXIF orientation is not applied.

    Raises:
        ValueError: no picture, truncated, or of more pixels than twice `PIL.Image.MAX_IMAGE_PIXELS` (179 million, if
            nobody changes it), which is told from the file's head; a TIFF of several pages, or of bands that are no
            grey, RGB or alpha. EPS is not a picture here: it is a program, which Pillow would have Ghostscript run.
    """
    Image.init()
    name = shorten(source)
    try:
        picture = Image.open(source, formats=[name for name in Image.ID if name != "EPS"])
        deep_colour = is_deep_colour(picture)
        picture.load()
        picture.getexif()  # read when it is asked for, and then a damaged one is an error
        if picture.format in ("JPEG", "MPO") and not has_jpeg_end(source):
            raise OSError("the JPEG is truncated: it has no end marker")
        check_bands(picture)
        if deep_colour:  # Pillow has kept the upper 8 of 16 bits
            check_brightness(max(most for _, most in picture.convert("RGB").getextrema()), 255)
    except FileNotFoundError:
        raise
    except Image.DecompressionBombError as error:
        remedy = "if it is meant to be that large, raise PIL.Image.MAX_IMAGE_PIXELS"
        raise ValueError(f"{name} cannot be read as a picture: {error}; {remedy}") from error
    except UnidentifiedImageError as error:
        reason = tiff_kind(source) or "cannot identify image file"
        raise ValueError(f"{name} cannot be read as a picture: {reason}") from error
    except Exception as error:  # Pillow's readers raise many kinds, and a stranger's file any of them
        raise ValueError(f"{name} cannot be read as a picture: {error}") from error
    return picture


def raw_modes(picture: Image.Image) -> list[str]:
    """How the parts of a picture file are stored, as Pillow calls it: "RGB;16B", "L;2"."""
    return [str(tile[3] if isinstance(tile[3], str) else (tile[3] or ("",))[0]) for tile in picture.tile]


def is_deep_colour(picture: Image.Image) -> bool:
    """Whether a picture file that is not read yet has colours of 16 bits, of which Pillow keeps the upper 8."""
    return picture.mode in ("RGB", "RGBA") and any("16" in mode for mode in raw_modes(picture))


def check_bands(picture: Image.Image, takes_four: bool = False) -> None:
    """ValueError for bands that would be lost, signed values and pages, unless these are smaller copies or masks.

    Of animations (GIF, APNG, WebP) and of phones' MPO the first picture is read. With `takes_four` RGBX loses none.
    """
    has_fourth = picture.mode == "RGBX" and not takes_four and 0 not in picture.size
    if has_fourth and len(set(picture.getchannel("X").getextrema())) > 1:
        raise ValueError("it has mode RGBX with values in the fourth band, which would be lost; save the three as RGB")
    if picture.format != "TIFF":
        return
    if picture.mode == "L" and picture.tag_v2.get(TIFF_SIGN, (1,))[0] == 2:
        raise ValueError("it is a TIFF of signed values, which have no agreed range; save it as unsigned 8 or 16 bits")
    pages = count_pages(picture)
    if pages != 1 and picture.tell() == 0:
        raise ValueError(
            f"it is a TIFF of {pages} pages, of which the first alone would be read; save a picture per file, or its "
            "bands as one RGB picture"
        )
    num_bands, extra = picture.tag_v2.get(TIFF_BANDS, 1), picture.tag_v2.get(TIFF_EXTRA, ())
    num_colours = len(picture.getbands()) - (picture.mode in ("RGBA", "LA", "PA", "RGBa", "La"))
    if num_bands > num_colours + sum(kind in (1, 2) for kind in extra):
        raise ValueError(
            f"it is a TIFF of {num_bands} bands, of which some are neither grey, RGB nor alpha; save the three that "
            "the network was trained on as an RGB picture"
        )


def count_pages(picture: Image.Image) -> int | str:
    """Pages of an open TIFF that are no smaller copies or masks; "several" if the file is closed."""
    place, pages = picture.tell(), 1
    try:
        for page in range(1, picture.n_frames):
            picture.seek(page)
            pages += not picture.tag_v2.get(TIFF_KIND, 0) & 0b101
        picture.seek(place)
    except (AttributeError, ValueError):  # more pages than one, and the file is closed
        return "several"
    return pages


def tiff_directory(source: str | Path | BinaryIO) -> dict | None:
    """Tags of the first page of a TIFF; None if it is no TIFF, or damaged."""
    try:
        with open(source, "rb") if isinstance(source, (str, os.PathLike)) else nullcontext(source) as file:
            file.seek(0)
            start = file.read(8)
            directory = TiffImagePlugin.ImageFileDirectory_v2(start + file.read(8) if start[2:3] == b"+" else start)
            file.seek(directory.next)
            directory.load(file)
            return dict(directory)
    except Exception:  # whatever is wrong with it, it is no TIFF whose tags could be told
        return None


def tiff_kind(source: str | Path | io.BytesIO) -> str | None:
    """What a TIFF that Pillow has no mode for holds; None if it is no TIFF."""
    if (tags := tiff_directory(source)) is None:
        return None
    bits = tags.get(TIFF_BITS, (1,))
    kinds = {1: "unsigned", 2: "signed", 3: "floating-point"}
    kind = kinds.get(tags.get(TIFF_SIGN, (1,))[0], "unknown")
    bands = tags.get(TIFF_BANDS, len(bits))
    return (
        f"it is a TIFF of {bands} bands of {bits[0]} bits ({kind}); 8 or 16 bits of grey or RGB are read, so save the "
        "bands that the network was trained on as such, or give a processor whose image_mean has an entry per band"
    )


def is_plain_tiff(source: str | Path | io.BytesIO) -> bool:
    """Whether a TIFF holds unsigned grey or colours, with or without alpha, on one page: what Pillow reads."""
    if (tags := tiff_directory(source)) is None:
        return False
    alpha = sum(kind in (1, 2) for kind in tags.get(TIFF_EXTRA, ()))
    is_unsigned = set(tags.get(TIFF_SIGN, (1,))) == {1} and max(tags.get(TIFF_BITS, (1,))) <= 16
    if not is_unsigned or tags.get(TIFF_BANDS, 1) - alpha not in (1, 3):
        return False
    try:
        with Image.open(source, formats=["TIFF"]) as picture:
            return count_pages(picture) == 1
    except UnidentifiedImageError:
        return False
    except Image.DecompressionBombError:
        return True  # `open_picture` says what is wrong with it


def check_brightness(most: int, full: int) -> None:
    """ValueError if the largest value of a picture is so small a part of `full` that all of it would be black."""
    if 0 < most < NEARLY_BLACK * (full + 1) // 256:
        raise ValueError(
            f"its largest value is {most} of {full}, so it would be read as black; if it holds fewer bits than its "
            "type, as cameras write 12 bits, scale it to the full range (12 bits: times 16) or to 8 bits"
        )


def has_jpeg_end(source) -> bool:
    """Whether the scans of a JPEG file reach its end marker; Pillow fills what is missing, for instance with grey.

    Source: ITU-T T.81, annex B: in a scan 0xFF is followed by 0 (a stuffed byte) or a restart marker 0xD0..0xD7; a
    segment between scans states its length.
    """
    if isinstance(source, (str, os.PathLike)):
        data = Path(source).read_bytes()
    else:
        source.seek(0)
        data = source.read()
    position = data.find(b"\xff\xd8") + 2
    while found := JPEG_MARKER.search(data, position):
        if found[1] == b"\xd9":
            return True
        length = data[found.end() : found.end() + 2]
        position = found.end() + int.from_bytes(length, "big")
    return False


class NamedBytes(io.BytesIO):
    """Bytes of a picture file that call themselves by a name in error messages."""

    def __init__(self, data: bytes, name: str):
        super().__init__(data)
        self.name = name

    def __repr__(self) -> str:
        return repr(self.name)

    def __str__(self) -> str:
        return self.name


def download(address: str) -> NamedBytes:
    """What an http(s) or data: address holds; ValueError if it cannot be had."""
    name = shorten(address)
    try:
        if address.startswith("data:"):
            return NamedBytes(base64.b64decode(address.partition(",")[2]), name)
        answer = get_session().get(address, timeout=60, follow_redirects=True).raise_for_status()
    except (HTTPError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].replace(address, name)
        raise ValueError(f"{name} cannot be read as a picture: {reason}") from error
    return NamedBytes(answer.content, name)


def find_file(source: str | os.PathLike) -> str | os.PathLike | NamedBytes:
    """What `open_picture` opens: the file of that name, or the picture that a base64 text without one holds."""
    if not isinstance(source, str) or len(source) < 60 or (len(source) < 1000 and Path(source).exists()):
        return source
    try:
        return NamedBytes(base64.b64decode("".join(source.split()), validate=True), shorten(source))
    except ValueError:  # no base64
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), shorten(source)) from None


def turn_upright(picture: Image.Image) -> Image.Image:
    """The picture as its EXIF orientation says it is to be seen."""
    if picture.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return picture
    return ImageOps.exif_transpose(picture)


def open_file(
    source: str | os.PathLike | NamedBytes, num_channels: int | None, keep_float: bool, keep_values: bool
) -> Image.Image | np.ndarray:
    """Open a picture file for `load_picture`, which says what the arguments mean.

    Returns:
        (H, W, bands) as stored of a `.npy` file and of a TIFF that Pillow would not read in full; else a PIL picture,
        upright.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read, or its bands or values need tifffile, and nothing reads them.
    """
    start = first_bytes(source)
    if start.startswith(NPY_START):
        array = read_npy(source)
        return channels_last(array, num_channels, False, shorten(source)) if array.ndim == 3 else array
    if start.startswith(TIFF_STARTS):
        needs_reader = keep_values or num_channels not in (None, 1, 3)
        if not needs_reader and num_channels is None:
            needs_reader = not is_plain_tiff(source)
        elif not needs_reader and keep_float:
            needs_reader = set((tiff_directory(source) or {}).get(TIFF_SIGN, ())) == {3}
        if needs_reader:
            return read_tiff(source, num_channels)
    return turn_upright(open_picture(source))


def first_bytes(source: str | os.PathLike | NamedBytes) -> bytes:
    """The first bytes of a file, or none if `source` is not one; `open_picture` then says what is wrong."""
    if isinstance(source, io.BytesIO):
        return source.getvalue()[:8]
    if not os.path.isfile(source):
        return b""
    with open(source, "rb") as file:
        return file.read(8)


def channels_last(
    array: np.ndarray, num_channels: int | None, prefers_first: bool, name: str = "a picture"
) -> np.ndarray:
    """(H, W, c) of three axes, of which the first or the last has the channels; ValueError if none could be it."""
    sides = array.shape[0], array.shape[-1]
    if num_channels is None:
        is_first, is_last = (side == min(sides) for side in sides)
    if num_channels == 3 or (num_channels is None and (sides[0] in (1, 3, 4) or sides[1] in (1, 2, 3, 4))):
        is_first, is_last = sides[0] in (1, 3, 4), sides[1] in (1, 2, 3, 4)
    elif num_channels is not None:
        allowed = (1, 3) if num_channels == 1 else (num_channels,)
        is_first, is_last = (side in allowed for side in sides)
    if not is_first and not is_last:
        wanted = {3: "1, 3 or 4", 1: "1"}.get(num_channels, num_channels)
        raise ValueError(
            f"{name} of shape {array.shape} has no axis of {wanted} channels, first or last; the processor takes "
            f"{num_channels}, as many as image_mean has entries"
        )
    return np.moveaxis(array, 0, -1) if is_first and (prefers_first or not is_last) else array


def read_npy(source: str | os.PathLike | NamedBytes) -> np.ndarray:
    """The array of a `.npy` file, of which no object is made; ValueError if it holds another, or less than it says."""
    name = shorten(source)
    data = source.getvalue() if isinstance(source, io.BytesIO) else Path(source).read_bytes()
    file = io.BytesIO(data)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, is_fortran, dtype = readers[np.lib.format.read_magic(file)](file)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{name} cannot be read as a picture: its head is that of no array ({error})") from error
    if dtype.kind not in "biuf":
        raise ValueError(f"{name} cannot be read as a picture: it is an array of {dtype}; numbers are wanted")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(
            f"{name} cannot be read as a picture: it is truncated or too long for an array of shape {shape}, {dtype}"
        )
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if is_fortran else "C")


def read_tiff(source: str | os.PathLike | NamedBytes, num_channels: int | None) -> np.ndarray:
    """(H, W, bands) of a TIFF as stored, alpha left out unless it makes up `num_channels`; see `tiff_reader`."""
    name = shorten(source)
    if tiff_reader is None:
        raise ValueError(
            f"{name} is a TIFF of bands or values that Pillow does not read: import the package qlseg_hf, which reads "
            "it with tifffile, or give an array of shape (height, width, bands)"
        )
    with nullcontext(source) if isinstance(source, io.BytesIO) else open(source, "rb") as file:
        file.seek(0)
        array, num_alpha, is_stack = tiff_reader(file, name)
    if num_alpha and array.shape[-1] != num_channels:
        array = array[..., :-num_alpha]
    if is_stack:  # tifffile writes an array (height, width, bands) as so many pages as it is high, if not told other
        array = channels_last(np.moveaxis(array, -1, 0), num_channels, True, name)
    bands = array.shape[-1]
    if num_channels not in (None, bands) and (num_channels, bands) not in ((3, 1), (1, 3)):
        raise ValueError(
            f"{name} has {bands} band{'s' * (bands > 1)}; the processor takes {num_channels}, as many as image_mean "
            "has entries"
        )
    return array


__all__ = [
    "NEARLY_BLACK",
    "TIFF_BITS",
    "TIFF_COLOURS",
    "NamedBytes",
    "channels_last",
    "check_bands",
    "check_brightness",
    "download",
    "find_file",
    "is_deep_colour",
    "open_file",
    "open_picture",
    "raw_modes",
    "shorten",
    "tiff_directory",
    "turn_upright",
]
