# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Picture and label files to arrays, and the resize that the published numbers were measured with.

What is no 8-bit or 16-bit picture of grey or RGB is refused with what it is: read anyway, it would be black, or other
colours. A processor may ask for other bands, or for values of more than 8 bits: see `load_picture`.
Resampling is written out in torch, so results do not depend on whether torchvision or OpenCV is installed. Letters:
H x W a picture's own size, h x w its resized size, both in pixels.
"""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .image_files import (
    TIFF_BITS,
    TIFF_COLOURS,
    NamedBytes,
    channels_last,
    check_bands,
    check_brightness,
    download,
    find_file,
    open_file,
    open_picture,
    shorten,
    turn_upright,
)

# Pillow converts them to RGB exactly
COLOUR_MODES = ("1", "L", "P", "RGB", "RGBA", "RGBX", "LA", "PA", "YCbCr", "HSV")
BAND_MODES = ("L", "LA", "RGB", "RGBA", "RGBX")  # whose bands are what is stored
WHOLE_ALPHA = {"La": "LA", "RGBa": "RGBA"}  # colours that are multiplied by their alpha, and what undoes that
EXACT_INTEGERS = 2**24  # fp32 holds every integer up to it

Picture = Image.Image | np.ndarray | torch.Tensor | str | Path


def load_picture(
    image: Picture, keep_float: bool = False, num_channels: int | None = 3, keep_values: bool = False
) -> np.ndarray:
    """Read a picture as 8-bit RGB, or with the bands and values that a processor takes (`Settings.reading`).

    Args:
        image: path, http(s) or data: address, base64 text or bytes of a file, of which EXIF orientation is applied;
            PIL picture, which is taken as it is; or array / tensor of integers: (H, W), (H, W, c) or (c, H, W) with c
            in 1, 3, 4 (also 2 if last; of an array that could be both, channels are last, of a tensor first). 16-bit
            values are divided by 256 (OpenCV's rule); alpha is dropped. A `.npy` file is read as its array.
        keep_float: also take finite floating-point arrays, tensors and TIFFs, as they are.
        num_channels: bands of the result. For 3, grey is repeated. For 1, grey alone is taken, also grey that is
            stored as three equal bands. For others, arrays, `.npy` files, TIFFs (by tifffile) and PIL pictures
            (RGBA, LA) must have as many. None takes what is found: unsigned grey and RGB as for 3, all other bands as
            they are stored.
        keep_values: integers keep their values, which must be of more than 8 bits, instead of being brought to 8.

    Returns:
        (H, W, num_channels), contiguous: uint8; fp32 of floating-point values; the integers as stored with
        `keep_values`, and of other bands for None. What is returned gives the same if it is read again.

    Raises:
        ValueError: not a picture, truncated, empty, a wrong shape or number of bands; a mode or values that are no 8
            or 16 bits of grey or RGB; 16-bit values that would all be black; 16-bit values without `keep_values` in
            pictures of other bands; 8-bit values with it; floating-point values without `keep_float`.
        TypeError: another type.

    Warns of an array of integers that are 0 and 1 alone.
    """
    file, name = None, "the picture"
    if isinstance(image, str) and image.startswith(("http://", "https://", "data:image/")):
        file = download(image)
    elif isinstance(image, (str, os.PathLike)):
        file = find_file(image)
    elif isinstance(image, (bytes, bytearray)):
        file = NamedBytes(bytes(image), f"a file of {len(image)} bytes")
    elif isinstance(image, NamedBytes):
        file = image
    if file is not None:
        image, name = open_file(file, num_channels, keep_float, keep_values), shorten(file)
    if isinstance(image, Image.Image):
        array = _picture_values(image, num_channels, keep_values)
    elif isinstance(image, (np.ndarray, torch.Tensor)):
        array = _array_values(image, num_channels, keep_float, keep_values, is_ordered=file is not None)
    else:
        raise TypeError(f"a picture must be a path, a PIL picture, an array or a tensor; got {type(image).__name__}")
    return _with_bands(array, num_channels, name)


def _with_bands(array: np.ndarray, num_channels: int | None, name: str) -> np.ndarray:
    """A copy of (H, W) or (H, W, c) with the bands wanted: writable, contiguous, and not the caller's."""
    if array.ndim == 2:
        array = array[..., None]
    if array.size == 0:
        raise ValueError(f"the picture is empty: shape {array.shape}")
    found = array.shape[-1]
    if num_channels is None:
        num_channels = 3 if found == 1 else found
    if num_channels == 3:
        array = array[..., :1] if found < 3 else array[..., :3]
        return np.array(np.broadcast_to(array, (*array.shape[:2], 3)))
    if num_channels == 1 and found == 3 and (array == array[..., :1]).all():
        array, found = array[..., :1], 1
    if found != num_channels:
        has = "colours" if (num_channels, found) == (1, 3) else f"{found} band{'s' * (found > 1)}"
        raise ValueError(f"{name} has {has}; the processor takes {num_channels}, as many as image_mean has entries")
    return np.array(array, order="C")


def _picture_values(image: Image.Image, num_channels: int | None, keep_values: bool) -> np.ndarray:
    """(H, W) or (H, W, c) of a PIL picture: uint8, or with `keep_values` its integers."""
    check_bands(image, takes_four=num_channels == 4)
    if keep_values:
        is_inverted = image.format == "TIFF" and image.tag_v2.get(TIFF_COLOURS) == 0
        if is_inverted or not (image.mode == "I" or image.mode.startswith("I;16")):
            raise ValueError(
                f"the picture has mode {image.mode}, of which Pillow reads 8 bits; the processor's rescale_factor is "
                "for more: give the file of a TIFF, a .npy file or an array of 16 bits"
            )
        return np.asarray(image)
    if image.mode in WHOLE_ALPHA:
        image = image.convert(WHOLE_ALPHA[image.mode])
    if num_channels not in (None, 1, 3):
        if image.mode not in BAND_MODES:
            raise ValueError(
                f"the picture has mode {image.mode}; {num_channels} bands are wanted: give them as an array"
            )
        return np.asarray(image)
    if image.mode in COLOUR_MODES or (image.mode == "CMYK" and image.format in (None, "JPEG", "MPO")):
        return _rgb_to_array(image if image.mode == "RGB" else image.convert("RGB"))
    return _gray_to_8_bit(image)


def _gray_to_8_bit(image: Image.Image) -> np.ndarray:
    """(H, W) uint8 of a PIL picture with more than 8 bits; ValueError for modes that are not grey."""
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


def _array_values(
    image: np.ndarray | torch.Tensor,
    num_channels: int | None,
    keep_float: bool,
    keep_values: bool,
    is_ordered: bool,
) -> np.ndarray:
    """(H, W, c) or (H, W) of an array or tensor; see `load_picture` for its type. `is_ordered`: channels are last."""
    is_tensor = isinstance(image, torch.Tensor)
    array = to_numpy(image) if is_tensor else image
    _check_not_masked(array, "picture", "0")
    keep_float = keep_float or num_channels is None
    if array.dtype.kind not in "iub" and not (keep_float and array.dtype.kind == "f"):
        kind = "floating-point" if array.dtype.kind == "f" else array.dtype
        raise ValueError(
            f"the picture holds {kind} values; give integers 0..255, e.g. (x * 255).astype('uint8'), or a processor "
            "with do_rescale=False, which takes floats as they are"
        )
    if array.ndim == 3:
        array = array if is_ordered else channels_last(array, num_channels, is_tensor)
    elif array.ndim != 2:
        raise ValueError(f"a picture must have 2 or 3 dimensions; got shape {array.shape}")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ValueError("the picture holds NaN or infinite values")
        return array.astype(np.float32)
    if keep_values:
        return _as_stored(array)
    if num_channels is None:
        is_small = array.dtype.kind in "ub" and array.dtype.itemsize <= 2
        # int64 is what NumPy makes of lists, and says nothing of the bits
        is_small = is_small or (array.dtype == np.int64 and 0 <= array.min(initial=0) <= array.max(initial=0) <= 255)
        if not is_small or (array.ndim == 3 and array.shape[-1] not in (1, 3)):
            return array.astype(array.dtype.newbyteorder("="))
    return _to_8_bit(array, num_channels in (None, 1, 3))


def _check_not_masked(array: Any, what: str, value: str) -> None:
    """ValueError for a masked array, whose hidden values would be read as if they were not."""
    if isinstance(array, np.ma.MaskedArray):
        raise ValueError(f"the {what} is a masked array; give plain values, as of .filled({value})")


def _as_stored(array: np.ndarray) -> np.ndarray:
    """Integers of more than 8 bits; ValueError for others, which a factor for these would make black."""
    most = max(abs(int(array.max(initial=0))), abs(int(array.min(initial=0))))
    # of more than 16 bits NumPy makes what has no type, so there small values say nothing of the bits
    if array.dtype.itemsize == 1 or (array.dtype.itemsize > 2 and 0 < most <= 255):
        raise ValueError(
            f"the picture holds {array.dtype} values of 8 bits; the processor's rescale_factor is for more: give 16 "
            "bits (uint16), of the same range as in training"
        )
    if most > EXACT_INTEGERS:
        raise ValueError(f"the picture holds {array.dtype} values up to {most}; {EXACT_INTEGERS} at most are read")
    return array.astype(array.dtype.newbyteorder("="))


def _to_8_bit(array: np.ndarray, is_shifted: bool) -> np.ndarray:
    """uint8 of integers; values of 16 bits are divided by 256 if `is_shifted`, else refused."""
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # of either byte order
        if not is_shifted:
            raise ValueError(
                "the picture holds 16-bit values, and the processor takes 8 bits: set rescale_factor to 1 / 65535 (or "
                "what its values are divided by), and image_mean and image_std to what was measured"
            )
        check_brightness(int(array.max(initial=0)), 65535)
        return (array >> 8).astype(np.uint8)
    if array.dtype != np.uint8 and array.size and (array.min() < 0 or array.max() > 255):
        raise ValueError(f"the picture holds {array.dtype} values outside 0..255; use uint8, or uint16 for 16 bit")
    if array.max(initial=0) == 1:
        warnings.warn(
            "a picture holds 0 and 1 alone, which is nearly black; if these are floats of 0..1 made integers, "
            "multiply them by 255 before, and if it is a mask, give the picture instead",
            stacklevel=2,
        )
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
    _check_not_masked(label_map, "label map", "ignore_index")
    array = to_numpy(label_map) if isinstance(label_map, torch.Tensor) else np.asarray(label_map)
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array.squeeze(0 if array.shape[0] == 1 else -1)
    if array.ndim != 2 or array.dtype.kind not in "iub":
        raise ValueError(f"a label map must be an (H, W) array of integers; got shape {array.shape}, {array.dtype}")
    return array.astype(np.int64)


def resize_picture(
    picture: np.ndarray, size: tuple[int, int], rows: slice = slice(None), columns: slice = slice(None)
) -> torch.Tensor:
    """(H, W, n) uint8 -> (n, h, w) uint8: bilinear, half-pixel centres, no antialiasing, rounded as OpenCV rounds.

    With `rows` and `columns` only that part of the result is made. Other types give fp32, not rounded. OpenCV's reader
    and resizer are part of how the published numbers were measured. It works in integers: weights in units of 1/2048,
    one rounding between the two directions and one at the end.
    """
    if tuple(picture.shape[:2]) == tuple(size):
        return _as_tensor(picture[rows, columns])
    (top, bottom, lower), (left, right, share) = (
        tuple(values[part] for values in fixed_point_neighbours(old, new))
        for old, new, part in zip(picture.shape[:2], size, (rows, columns))
    )
    # at the left and right border OpenCV takes one pixel whole, at the top and bottom it rounds two halves of one
    share = torch.where(left == right, 0, share)[None, None]
    first, last = (int(top[0]), int(bottom[-1])) if len(top) else (0, 0)
    tensor = _as_tensor(picture[first : last + 1])  # no more of it in fp32 than is needed
    top, bottom = top - first, bottom - first

    if tensor.is_floating_point():
        down, right_share = (lower / 2048)[None, :, None], share / 2048
        taken = tensor[:, top] * (1 - down) + tensor[:, bottom] * down  # (n, h, W)
        return taken[:, :, left] * (1 - right_share) + taken[:, :, right] * right_share

    def across(rows: torch.Tensor) -> torch.Tensor:
        taken = tensor[:, rows]  # (n, h, W)
        return (taken[:, :, left].int() * (2048 - share) + taken[:, :, right].int() * share) >> 4  # (n, h, w)

    upper_part = (across(top) * (2048 - lower)[None, :, None]) >> 16
    lower_part = (across(bottom) * lower[None, :, None]) >> 16
    return ((upper_part + lower_part + 2) >> 2).to(torch.uint8)


def _as_tensor(picture: np.ndarray) -> torch.Tensor:
    """(H, W, n) -> (n, H, W): uint8 as it is, fp32 of other types."""
    picture = picture if picture.dtype == np.uint8 else picture.astype(np.float32, copy=False)
    return torch.from_numpy(picture).permute(2, 0, 1)


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
    else:  # a mapping, bytes or an open file is not a list of pictures, whatever iterating it gives
        is_one = isinstance(pictures, (str, bytes, bytearray, memoryview, Mapping)) or hasattr(pictures, "read")
        is_one = is_one or not isinstance(pictures, Iterable)
    yield from [pictures] if is_one else pictures


def as_list(pictures) -> list:
    """A list of what `each_picture` yields."""
    return list(each_picture(pictures))


__all__ = ["load_label_map", "load_picture", "open_picture", "resize_picture", "shorten", "turn_upright"]
