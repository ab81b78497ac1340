"""Picture and label files to arrays, and the resize that the published numbers were measured with.

A file may be a stranger's: nothing in it is run, its size is looked at before it is read, and a damaged one is named.
Resampling is written out in torch, so results do not depend on whether torchvision or OpenCV is installed. Letters:
H x W a picture's own size, h x w its resized size, both in pixels.
"""

import base64
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

try:
    from huggingface_hub.utils import httpx  # which of its two packages there is
except ImportError:  # huggingface_hub 1
    import httpx

JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])", re.DOTALL)

Picture = Image.Image | np.ndarray | torch.Tensor | str | Path


def open_picture(source: str | Path) -> Image.Image:
    """Open and fully read a picture file; FileNotFoundError if absent.

    Raises:
        ValueError: no picture, truncated, or of more pixels than twice `PIL.Image.MAX_IMAGE_PIXELS` (179 million, if
            nobody changes it), which is told from the file's head. EPS is no picture here: it is a program, which
            Pillow would have Ghostscript run.
    """
    Image.init()
    try:
        picture = Image.open(source, formats=[name for name in Image.ID if name != "EPS"])
        picture.load()
        picture.getexif()  # read when it is asked for, and then a damaged one is an error
        if picture.format in ("JPEG", "MPO") and not has_jpeg_end(source):
            raise OSError("the JPEG is truncated: it has no end marker")
    except FileNotFoundError:
        raise
    except Image.DecompressionBombError as error:
        remedy = "if it is meant to be that large, raise PIL.Image.MAX_IMAGE_PIXELS"
        raise ValueError(f"{source} cannot be read as a picture: {error}; {remedy}") from error
    except Exception as error:  # Pillow's readers raise many kinds, and a stranger's file any of them
        raise ValueError(f"{source} cannot be read as a picture: {error}") from error
    return picture


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


def downloaded(address: str) -> NamedBytes:
    """What an http(s) or data: address holds; ValueError if it cannot be had."""
    name = address if len(address) <= 80 else f"{address[:80]}..."
    try:
        if address.startswith("data:"):
            return NamedBytes(base64.b64decode(address.partition(",")[2]), name)
        answer = httpx.get(address, timeout=60, follow_redirects=True).raise_for_status()
    except (httpx.HTTPError, ValueError) as error:
        raise ValueError(f"{name} cannot be read as a picture: {error}") from error
    return NamedBytes(answer.content, name)


def load_picture(image: Picture) -> np.ndarray:
    """Read any picture as 8-bit RGB with its EXIF orientation applied.

    Args:
        image: path, http(s) address, PIL picture of any mode, or array / tensor of integers: (H, W), (H, W, c) or
            (c, H, W) with c in 1, 3, 4 (also 2 if last). 16-bit values are divided by 256 (OpenCV's rule); alpha is
            dropped.

    Returns:
        (H, W, 3) uint8, contiguous.

    Raises:
        ValueError: not a picture, truncated, empty, a wrong shape, or floating-point values (whose range is a guess).
        TypeError: another type.
    """
    if isinstance(image, str) and image.startswith(("http://", "https://", "data:image/")):
        image = open_picture(downloaded(image))
    elif isinstance(image, (str, os.PathLike)):
        image = open_picture(image)
    if isinstance(image, Image.Image):
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            array = np.asarray(image)
            if image.mode == "F":
                raise ValueError("a floating-point picture has no agreed range; convert it to 8 bit first")
            image = (np.clip(array, 0, 65535) >> 8).astype(np.uint8)
        else:
            return _rgb_to_array(image if image.mode == "RGB" else image.convert("RGB"))
    elif isinstance(image, (np.ndarray, torch.Tensor)):
        image = _array_to_8_bit(image)
    else:
        raise TypeError(f"a picture must be a path, a PIL picture, an array or a tensor; got {type(image).__name__}")
    if image.ndim == 2:
        image = image[..., None]
    if image.size == 0:
        raise ValueError(f"the picture is empty: shape {image.shape}")
    image = image[..., :1] if image.shape[-1] < 3 else image[..., :3]
    return np.array(np.broadcast_to(image, (*image.shape[:2], 3)))  # a copy: writable, and not the caller's


def _rgb_to_array(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of an RGB picture, some rows at a time: NumPy's own way holds the picture three times."""
    array = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for top in range(0, image.height, 256):
        bottom = min(top + 256, image.height)
        array[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    if array.size == 0:
        raise ValueError(f"the picture is empty: shape {array.shape}")
    return array


def _array_to_8_bit(image: np.ndarray | torch.Tensor) -> np.ndarray:
    """(H, W, c) or (H, W) uint8 from an integer array or tensor with its channels first or last."""
    channels_first = isinstance(image, torch.Tensor)
    array = to_numpy(image) if channels_first else image
    if array.dtype.kind not in "iub":
        kind = "floating-point" if array.dtype.kind == "f" else array.dtype
        raise ValueError(f"the picture holds {kind} values; give integers 0..255, e.g. (x * 255).astype('uint8')")
    if array.ndim == 3:
        first, last = array.shape[0] in (1, 3, 4), array.shape[-1] in (1, 2, 3, 4)
        if not first and not last:
            raise ValueError(f"a picture of shape {array.shape} has no axis of 1, 3 or 4 channels, first or last")
        if first and (channels_first or not last):
            array = np.moveaxis(array, 0, -1)
    elif array.ndim != 2:
        raise ValueError(f"a picture must have 2 or 3 dimensions; got shape {array.shape}")
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # of either byte order
        return (array >> 8).astype(np.uint8)
    if array.dtype != np.uint8 and array.size and (array.min() < 0 or array.max() > 255):
        raise ValueError(f"the picture holds {array.dtype} values outside 0..255; use uint8, or uint16 for 16 bit")
    return array.astype(np.uint8, copy=False)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Array of a tensor on any device; NumPy has fewer floating dtypes, which all become fp32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def load_label_map(label_map: Picture) -> np.ndarray:
    """Read a label map as stored: palette *index*, not colour; no EXIF, no scaling.

    Args:
        label_map: path, PIL picture of mode 1, L, P, I or I;16, or an (H, W) integer array or tensor.

    Returns:
        (H, W) int64.

    Raises:
        ValueError: a colour picture, floating-point values or a wrong shape.
    """
    if isinstance(label_map, (str, os.PathLike)):
        label_map = open_picture(label_map)
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

    With `rows` and `columns` only that part of the result is made. OpenCV's reader and resizer are part of how the
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


__all__ = ["load_label_map", "load_picture", "resize_picture"]
