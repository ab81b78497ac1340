# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Picture and label files to arrays, and the resize that the published numbers were measured with.

A file may be a stranger's: nothing in it is run, its size is looked at before it is read, and a damaged one is named.
What is no 8-bit or 16-bit picture of grey or RGB is refused with what it is: read anyway, it would be black, or other
colours. EXIF orientation belongs to opening: it is applied to files, addresses and bytes that are opened here, and not
to PIL pictures, which are taken as they are, as transformers' processors do.
Resampling is written out in torch, so results do not depend on whether torchvision or OpenCV is installed. Letters:
H x W a picture's own size, h x w its resized size, both in pixels.
"""

import base64
import errno
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import get_session
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])", re.DOTALL)

LONGEST_QUOTE = 80  # letters of an input that a message repeats
NEARLY_BLACK = 16  # of 255; 12 bits in a 16-bit picture stay below
COLOUR_MODES = (
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "RGBX",
    "LA",
    "PA",
    "YCbCr",
    "HSV",
)  # Pillow converts them to RGB exactly
WHOLE_ALPHA = {"La": "LA", "RGBa": "RGBA"}  # colours that are multiplied by their alpha, and what undoes that
TIFF_BITS, TIFF_BANDS, TIFF_KIND, TIFF_EXTRA, TIFF_COLOURS, TIFF_SIGN = 258, 277, 254, 338, 262, 339

Picture = Image.Image | np.ndarray | torch.Tensor | str | Path


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
            grey, RGB or alpha. EPS is no picture here: it is a program, which Pillow would have Ghostscript run.
    """
    Image.init()
    name = shorten(source)
    try:
        picture = Image.open(source, formats=[name for name in Image.ID if name != "EPS"])
        deep_colour = picture.mode in ("RGB", "RGBA") and any("16" in str(tile[3]) for tile in picture.tile)
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


def check_bands(picture: Image.Image) -> None:
    """ValueError for bands that would be lost, signed values and pages, unless these are smaller copies or masks.

    Of animations (GIF, APNG, WebP) and of phones' MPO the first picture is read.
    """
    if picture.mode == "RGBX" and 0 not in picture.size and len(set(picture.getchannel("X").getextrema())) > 1:
        raise ValueError("it has mode RGBX with values in the fourth band, which would be lost; save the three as RGB")
    if picture.format != "TIFF":
        return
    if picture.mode == "L" and picture.tag_v2.get(TIFF_SIGN, (1,))[0] == 2:
        raise ValueError("it is a TIFF of signed values, which have no agreed range; save it as unsigned 8 or 16 bits")
    place, pages = picture.tell(), 1
    try:
        for page in range(1, picture.n_frames):
            picture.seek(page)
            pages += not picture.tag_v2.get(TIFF_KIND, 0) & 0b101
        picture.seek(place)
    except (AttributeError, ValueError):  # more pages than one, and the file is closed
        pages = "several"
    if pages != 1 and place == 0:
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


def tiff_kind(source: str | Path | io.BytesIO) -> str | None:
    """What a TIFF that Pillow has no mode for holds; None if it is no TIFF."""
    try:
        with nullcontext(source) if isinstance(source, io.BytesIO) else open(source, "rb") as file:
            file.seek(0)
            directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
            file.seek(directory.next)
            directory.load(file)
            bits = directory.get(TIFF_BITS, (1,))
            kinds = {1: "unsigned", 2: "signed", 3: "floating-point"}
            kind = kinds.get(directory.get(339, (1,))[0], "unknown")
    except Exception:  # whatever is wrong with it, it is no TIFF whose tags could be told
        return None
    bands = directory.get(TIFF_BANDS, len(bits))
    return (
        f"it is a TIFF of {bands} bands of {bits[0]} bits ({kind}); 8 or 16 bits of grey or RGB are read, so save the "
        "bands that the network was trained on as such"
    )


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


def load_picture(image: Picture, keep_float: bool = False) -> np.ndarray:
    """Read a picture as 8-bit RGB.

    Args:
        image: path, http(s) or data: address, base64 text or bytes of a file, of which EXIF orientation is applied;
            PIL picture, which is taken as it is; or array / tensor of integers: (H, W), (H, W, c) or (c, H, W) with c
            in 1, 3, 4 (also 2 if last; of an array that could be both, channels are last, of a tensor first). 16-bit
            values are divided by 256 (OpenCV's rule); alpha is dropped.
        keep_float: also take finite floating-point arrays and tensors, as they are.

    Returns:
        (H, W, 3) uint8, contiguous; fp32 of a floating-point array.

    Raises:
        ValueError: not a picture, truncated, empty, a wrong shape; a mode or values that are no 8 or 16 bits of grey
            or RGB; 16-bit values that would all be black; floating-point values without `keep_float`.
        TypeError: another type.
    """
    if isinstance(image, str) and image.startswith(("http://", "https://", "data:image/")):
        image = turn_upright(open_picture(download(image)))
    elif isinstance(image, (str, os.PathLike)):
        image = turn_upright(open_picture(find_file(image)))
    elif isinstance(image, (bytes, bytearray)):
        image = turn_upright(open_picture(NamedBytes(bytes(image), f"a file of {len(image)} bytes")))
    if isinstance(image, Image.Image):
        check_bands(image)
        if image.mode in WHOLE_ALPHA:
            image = image.convert(WHOLE_ALPHA[image.mode])
        if image.mode in COLOUR_MODES or (image.mode == "CMYK" and image.format in (None, "JPEG", "MPO")):
            return _rgb_to_array(image if image.mode == "RGB" else image.convert("RGB"))
        image = _gray_to_8_bit(image)
    elif isinstance(image, (np.ndarray, torch.Tensor)):
        image = _array_to_8_bit(image, keep_float)
    else:
        raise TypeError(f"a picture must be a path, a PIL picture, an array or a tensor; got {type(image).__name__}")
    if image.ndim == 2:
        image = image[..., None]
    if image.size == 0:
        raise ValueError(f"the picture is empty: shape {image.shape}")
    image = image[..., :1] if image.shape[-1] < 3 else image[..., :3]
    return np.array(np.broadcast_to(image, (*image.shape[:2], 3)))  # a copy: writable, and not the caller's


def _gray_to_8_bit(image: Image.Image) -> np.ndarray:
    """(H, W) uint8 of a PIL picture with more than 8 bits; ValueError for modes that are no grey picture."""
    name = getattr(image, "filename", "")
    what = f"{shorten(name)}: the picture has mode {image.mode}" if name else f"the picture has mode {image.mode}"
    if image.mode != "I" and not image.mode.startswith("I;16"):
        raise ValueError(f"{what}, whose colours or range are not agreed; convert it to 8-bit RGB or grey first")
    array = np.asarray(image)
    if array.size == 0:
        raise ValueError(f"the picture is empty: shape {array.shape}")
    least, most = int(array.min()), int(array.max())
    if image.mode == "I":  # 32 bits, in which people keep 8 or 16
        if not 0 <= least <= most <= 65535 or 255 < most < 4096:
            raise ValueError(
                f"{what} (32 bits) and values {least}..{most}; 0..255 or the full range of 16 bits is read: scale it"
            )
        if most <= 255 and image.format != "PPM":  # Pillow's reader of PPM scales more than 8 bits to 16
            return array.astype(np.uint8)
    tags = image.tag_v2 if image.format == "TIFF" else {}
    bits = tags.get(TIFF_BITS, (16,))[0]
    if not 8 <= bits < 16:
        bits = 16
        if tags.get(TIFF_COLOURS) == 0:  # white is zero, which Pillow heeds in 8 bits alone
            array, most = 65535 - array, 65535 - least
        check_brightness(most, 65535)
    return (array >> (bits - 8)).astype(np.uint8)


def _rgb_to_array(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of an RGB picture, some rows at a time: NumPy's own way holds the picture three times."""
    array = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for top in range(0, image.height, 256):
        bottom = min(top + 256, image.height)
        array[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    if array.size == 0:
        raise ValueError(f"the picture is empty: shape {array.shape}")
    return array


def _array_to_8_bit(image: np.ndarray | torch.Tensor, keep_float: bool) -> np.ndarray:
    """(H, W, c) or (H, W) uint8 (fp32 of floats) of an array or tensor with its channels first or last."""
    channels_first = isinstance(image, torch.Tensor)
    array = to_numpy(image) if channels_first else image
    if array.dtype.kind not in "iub" and not (keep_float and array.dtype.kind == "f"):
        kind = "floating-point" if array.dtype.kind == "f" else array.dtype
        raise ValueError(
            f"the picture holds {kind} values; give integers 0..255, e.g. (x * 255).astype('uint8'), or a processor "
            "with do_rescale=False, which takes floats as they are"
        )
    if array.ndim == 3:
        first, last = array.shape[0] in (1, 3, 4), array.shape[-1] in (1, 2, 3, 4)
        if not first and not last:
            raise ValueError(f"a picture of shape {array.shape} has no axis of 1, 3 or 4 channels, first or last")
        if first and (channels_first or not last):
            array = np.moveaxis(array, 0, -1)
    elif array.ndim != 2:
        raise ValueError(f"a picture must have 2 or 3 dimensions; got shape {array.shape}")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ValueError("the picture holds NaN or infinite values")
        return array.astype(np.float32)
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # of either byte order
        check_brightness(int(array.max(initial=0)), 65535)
        return (array >> 8).astype(np.uint8)
    if array.dtype != np.uint8 and array.size and (array.min() < 0 or array.max() > 255):
        raise ValueError(f"the picture holds {array.dtype} values outside 0..255; use uint8, or uint16 for 16 bit")
    return array.astype(np.uint8, copy=False)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Array of a tensor on any device; NumPy has fewer floating dtypes, which all become fp32."""
    if tensor.device.type == "meta":
        raise ValueError("the tensor is on the meta device and holds no values")
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise ValueError("the tensor is sparse or quantized; give a dense one, as of tensor.to_dense()")
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def load_label_map(label_map: Picture) -> np.ndarray:
    """Read a label map as stored: palette *index*, not colour; no EXIF, no scaling.

    Args:
        label_map: path, PIL picture of mode 1, L, P, I or I;16, or an (H, W) integer array or tensor.

    Returns:
        (H, W) int64.

    Raises:
        ValueError: a colour picture, a JPEG (which changes values), floating-point values or a wrong shape.
    """
    if isinstance(label_map, (str, os.PathLike)):
        label_map = open_picture(label_map)
    if isinstance(label_map, Image.Image):
        check_bands(label_map)
    if getattr(label_map, "format", None) in ("JPEG", "MPO"):
        raise ValueError("the label map is a JPEG, which changes labels at every edge; store it as PNG")
    if (
        isinstance(label_map, Image.Image)
        and label_map.mode not in ("1", "L", "P", "I")
        and label_map.mode[:4] != "I;16"
    ):
        raise ValueError(
            f"a label map holds one label per pixel (modes L, P, I;16); this picture has mode {label_map.mode}, "
            "so translate its colours to labels first"
        )
    array = to_numpy(label_map) if isinstance(label_map, torch.Tensor) else np.asarray(label_map)
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array.squeeze(0 if array.shape[0] == 1 else -1)
    if array.ndim != 2 or array.dtype.kind not in "iub":
        raise ValueError(f"a label map must be an (H, W) array of integers; got shape {array.shape}, {array.dtype}")
    return array.astype(np.int64)


def resize_picture(
    picture: np.ndarray, size: tuple[int, int], rows: slice = slice(None), columns: slice = slice(None)
) -> torch.Tensor:
    """(H, W, 3) uint8 -> (3, h, w) uint8: bilinear, half-pixel centres, no antialiasing, rounded as OpenCV rounds.

    With `rows` and `columns` only that part of the result is made. fp32 gives fp32, not rounded. OpenCV's reader
    and resizer are part of how the
    published numbers were measured. It works in integers: weights in units of 1/2048, one rounding between the two
    directions and one at the end.
    """
    tensor = torch.from_numpy(picture).permute(2, 0, 1)
    if tuple(tensor.shape[1:]) == tuple(size):
        return tensor[:, rows, columns]
    (top, bottom, lower), (left, right, share) = (
        tuple(values[part] for values in fixed_point_neighbours(old, new))
        for old, new, part in zip(tensor.shape[1:], size, (rows, columns))
    )
    # at the left and right border OpenCV takes one pixel whole, at the top and bottom it rounds two halves of one
    share = torch.where(left == right, 0, share)[None, None]

    if tensor.is_floating_point():
        down, right_share = (lower / 2048)[None, :, None], share / 2048
        taken = tensor[:, top] * (1 - down) + tensor[:, bottom] * down  # (3, h, W)
        return taken[:, :, left] * (1 - right_share) + taken[:, :, right] * right_share

    def across(rows: torch.Tensor) -> torch.Tensor:
        taken = tensor[:, rows]  # (3, h, W)
        return (taken[:, :, left].int() * (2048 - share) + taken[:, :, right].int() * share) >> 4  # (3, h, w)

    upper_part = (across(top) * (2048 - lower)[None, :, None]) >> 16
    lower_part = (across(bottom) * lower[None, :, None]) >> 16
    return ((upper_part + lower_part + 2) >> 2).to(torch.uint8)


def fixed_point_neighbours(old: int, new: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each of `new` pixels along a side of `old`: the two it lies between, and 2048 times the second's weight."""
    centre = ((torch.arange(new, dtype=torch.float64) + 0.5) * (1 / (new / old)) - 0.5).float()
    first = centre.floor()
    share = ((centre - first) * 2048).round().int()
    first = first.long()
    return first.clamp(0, old - 1), (first + 1).clamp(0, old - 1), share


def each_picture(pictures) -> Iterator:
    """Yield one picture, or each of a list, a generator, another iterable of them, or a (B, ...) array or tensor."""
    if isinstance(pictures, (np.ndarray, torch.Tensor)):
        is_one = pictures.ndim != 4
    else:  # a mapping, bytes or an open file is no list of pictures, whatever iterating it gives
        is_one = isinstance(pictures, (str, bytes, bytearray, memoryview, Mapping)) or hasattr(pictures, "read")
        is_one = is_one or not isinstance(pictures, Iterable)
    yield from [pictures] if is_one else pictures


def as_list(pictures) -> list:
    """A list of what `each_picture` yields."""
    return list(each_picture(pictures))


__all__ = ["load_label_map", "load_picture", "open_picture", "resize_picture", "shorten", "turn_upright"]
