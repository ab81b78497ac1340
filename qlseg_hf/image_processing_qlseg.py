"""Pictures to windows, label files to labels, window scores to label maps, as the published numbers were measured.

Resampling is written out in torch, so results do not depend on whether torchvision or OpenCV is installed. Letters: K
labels, H x W a picture's own size, h x w its resized size, both in pixels.
"""

import base64
import io
import math
import operator
import os
import re
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError
from PIL import ExifTags, Image, ImageOps
from torch.nn import functional as F
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import SizeDict

from .configuration_qlseg import release
from .files import written_into
from .hub import PushToHubMixin
from .scores import label_map_from_scores

try:
    from huggingface_hub.utils import httpx  # which of its two packages there is
except ImportError:  # huggingface_hub 1
    import httpx

MEAN_STD_HALF = ([0.5] * 3, [0.5] * 3)
MEAN_STD_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

# How each released network was measured: short side, window, stride (pixels), mean and std (of 1), is label 0 void?
RELEASE_PROCESSING = {
    "vit-b-ade20k": (512, 512, 341, MEAN_STD_IMAGENET, True),
    "vit-l-ade20k": (640, 640, 608, MEAN_STD_HALF, True),
    "vit-l-cocostuff10k": (512, 512, 341, MEAN_STD_HALF, True),
    "vit-l-pascal-context-59": (520, 480, 320, MEAN_STD_HALF, True),
    "vit-l-pascal-context-60": (520, 480, 320, MEAN_STD_HALF, False),
}

NEEDED_BY = {
    "do_resize": ("size",),
    "do_sliding_window": ("window_size", "window_stride"),
    "do_rescale": ("rescale_factor",),
    "do_normalize": ("image_mean", "image_std"),
    "do_reduce_labels": ("ignore_index",),
}
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


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along a side of `length` pixels; the last window ends at the border."""
    count = max(length - window + stride - 1, 0) // stride + 1
    return [min(i * stride, max(length - window, 0)) for i in range(count)]


def short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) after scaling the shorter side to `short_side`, rounded half up; no cap on the longer side."""
    factor = short_side / min(height, width)
    return int(height * factor + 0.5), int(width * factor + 0.5)


def at_least_a_pixel(*sides: float) -> tuple[int, ...]:
    """Whole pixels of sides in pixels, cut off, 1 at least."""
    return tuple(max(1, int(side)) for side in sides)


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
        tuple(values[part] for values in neighbours(old, new))
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


def neighbours(old: int, new: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each of `new` pixels along a side of `old`: the two it lies between, and 2048 times the second's weight."""
    centre = ((torch.arange(new, dtype=torch.float64) + 0.5) * (1 / (new / old)) - 0.5).float()
    first = centre.floor()
    share = ((centre - first) * 2048).round().int()
    first = first.long()
    return first.clamp(0, old - 1), (first + 1).clamp(0, old - 1), share


class WindowSum:
    """Sum of window scores of one resized picture; `mean` divides by how many windows cover each pixel."""

    def __init__(self, size: tuple[int, int]):
        self.size = size
        self.plane = None  # (K, h, w) fp32, made with the first window, on its device
        self.rows, self.columns = torch.zeros(size[0]), torch.zeros(size[1])
        self.tops, self.lefts = set(), set()

    def add(self, scores: torch.Tensor, top: int, left: int) -> None:
        """Add (K, window height, window width) scores of the window at (top, left)."""
        height, width = scores.shape[1:]
        if self.plane is None:
            self.plane = scores.new_zeros(scores.shape[0], *self.size, dtype=torch.float32)
        self.plane[:, top : top + height, left : left + width] += scores
        # windows lie on a grid, so coverage is the product of a row count and a column count
        if top not in self.tops:
            self.tops.add(top)
            self.rows[top : top + height] += 1
        if left not in self.lefts:
            self.lefts.add(left)
            self.columns[left : left + width] += 1

    def mean(self) -> torch.Tensor:
        """(K, h, w) fp32 average. Ends the sum: the plane is divided in place."""
        return self.plane.div_((self.rows[:, None] * self.columns).to(self.plane.device))


class QLSegImageProcessorKwargs(TypedDict, total=False):
    do_resize: bool | None
    size: dict[str, int] | SizeDict | int | None
    default_to_square: bool | None
    do_sliding_window: bool | None
    window_size: int | None
    window_stride: int | None
    do_rescale: bool | None
    rescale_factor: float | int | None
    do_normalize: bool | None
    image_mean: float | int | list[float | int] | tuple[float | int, ...] | None
    image_std: float | int | list[float | int] | tuple[float | int, ...] | None
    do_reduce_labels: bool | None
    ignore_index: int | None
    label_map: dict | None
    return_tensors: Any


def check_types(settings: dict) -> None:
    """ValueError if one of the processor's `settings` is of a wrong type."""
    try:
        validate_typed_dict(QLSegImageProcessorKwargs, settings)
    except StrictDataclassError as error:
        raise ValueError(f"QLSegImageProcessor: {error.__cause__ or error}") from error


class QLSegImageProcessor(PushToHubMixin, BaseImageProcessor):
    r"""Picture to windows, label file to labels, model output to label map. Defaults are vit-l-ade20k.

    Args:
        do_resize: scale the picture to `size`: bilinear without antialiasing, rounded to 8 bit.
        size: {"shortest_edge": s} keeps the aspect ratio without a cap on the longer side; {"height": h, "width": w}
            does not keep it. Pixels.
        do_sliding_window: cut the resized picture into windows.
        window_size, window_stride: side of the square window and distance between windows, pixels.
        do_rescale, rescale_factor: multiply by 1 / 255.
        do_normalize, image_mean, image_std: subtract and divide, per channel, on rescaled values.
        do_reduce_labels: label 0 becomes `ignore_index` and every other label is lowered by one; `ignore_index` stays.
        ignore_index: label of pixels that do not count.
        label_map: {stored value: label}, applied first and at once; other values stay. Independent of the two above.
    """

    model_input_names = ["pixel_values"]
    valid_kwargs = QLSegImageProcessorKwargs

    do_resize = True
    size = {"shortest_edge": 640}
    default_to_square = False
    do_sliding_window = True
    window_size = 640
    window_stride = 608
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean, image_std = MEAN_STD_HALF
    do_reduce_labels = False
    ignore_index = 255
    label_map = None

    def __init__(self, **kwargs):
        service = {"image_processor_type", "processor_class", "feature_extractor_type", "auto_map"}
        if unknown := set(kwargs) - service - set(self.valid_kwargs.__annotations__):
            known = sorted(self.valid_kwargs.__annotations__)
            raise TypeError(f"QLSegImageProcessor has no setting {sorted(unknown)}; it has {known}")
        own = {key: value for key, value in kwargs.items() if key not in service}
        check_types(own)
        super().__init__(**kwargs)  # keeps a setting that is None, which `_set_attributes` takes for one not given
        self._set_attributes(**own)
        self._validate_preprocess_kwargs(**{key: getattr(self, key) for key in self._valid_kwargs_names})

    @classmethod
    def for_release(cls, name: str, **overrides) -> "QLSegImageProcessor":
        """Settings that a released network was measured with; ValueError if there is no such release."""
        release(name)
        short_side, window, stride, (mean, std), reduce_labels = RELEASE_PROCESSING[name]
        values = {
            "size": {"shortest_edge": short_side},
            "window_size": window,
            "window_stride": stride,
            "image_mean": mean,
            "image_std": std,
            "do_reduce_labels": reduce_labels,
        }
        return cls(**(values | overrides))

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> list[str]:
        """As that of transformers, but a full disk or a kill leaves what was in the folder before."""
        folder = Path(save_directory)
        with written_into(folder) as beside:
            written = super().save_pretrained(beside)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.resolve().name), **kwargs)
        return [str(folder / Path(path).name) for path in written]

    def _standardize_kwargs(self, label_map=None, **kwargs) -> dict:
        kwargs = super()._standardize_kwargs(**kwargs)
        kwargs = {key: value for key, value in kwargs.items() if key in self.valid_kwargs.__annotations__}
        # JSON has no integer keys
        try:
            integers = label_map and {
                int(key) if isinstance(key, str) else operator.index(key): operator.index(label)
                for key, label in label_map.items()
            }
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"label_map must be {{stored value: label}} of integers; got {label_map}") from error
        return kwargs | {"label_map": integers}

    def _validate_preprocess_kwargs(self, **kwargs):
        for switch, names in NEEDED_BY.items():
            if kwargs[switch] and (missing := [name for name in names if kwargs[name] is None]):
                raise ValueError(f"{switch} needs {' and '.join(missing)}, which is None; give it or {switch}=False")
        size = dict(kwargs["size"] or {})
        is_known = set(size) in ({"shortest_edge"}, {"height", "width"})
        if kwargs["do_resize"] and not (is_known and min(size.values()) >= 1):
            raise ValueError(f"size must be {{'shortest_edge': s}} or {{'height': h, 'width': w}}; got {size}")
        if kwargs["window_size"] is not None and kwargs["window_size"] < 1:
            raise ValueError(f"window_size is {kwargs['window_size']}; it must be at least 1 pixel")
        if kwargs["do_sliding_window"] and not 0 < kwargs["window_stride"] <= kwargs["window_size"]:
            raise ValueError(
                f"window_stride {kwargs['window_stride']} must be 1..window_size ({kwargs['window_size']}), or pixels "
                "between windows would never be seen"
            )
        for name, most in (("rescale_factor", 1), ("image_mean", 3), ("image_std", 3)):
            values = kwargs[name] if isinstance(kwargs[name], tuple) else (kwargs[name],)
            if values == (None,):
                continue
            if len(values) not in (1, most) or not all(map(math.isfinite, values)):
                raise ValueError(f"{name} is {kwargs[name]}; {most} finite numbers or a single one are wanted")
            if name == "image_std" and min(values) <= 0:
                raise ValueError(f"image_std is {kwargs[name]}; pixels are divided by it, so it must be above 0")
        if kwargs["do_reduce_labels"] and kwargs["ignore_index"] == 0:
            raise ValueError("with do_reduce_labels label 1 becomes 0, so ignore_index cannot be 0; use 255")

    def preprocess(self, images: Picture | list[Picture], segmentation_maps=None, **kwargs) -> BatchFeature:
        """
        Args:
            images: one picture or a list of them; see `load_picture`.
            segmentation_maps: one label map per picture, of its size; see `load_label_map`.
            kwargs: any setting of the class, for this call; `return_tensors`: "pt", "np" or None.

        Returns:
            `pixel_values`: (windows of all pictures, 3, height, width), or (pictures, 3, h, w) without
            `do_sliding_window`; `window_offsets` (with `do_sliding_window`): (windows, 5) integers, the picture's
            index, top, left, h and w; `labels`, if maps were given: cut like the pictures, int64.

        Raises:
            ValueError: a map and its picture differ in size, or windows differ in size and cannot be stacked.
        """
        check_types(kwargs)
        return super().preprocess(images, segmentation_maps, **kwargs)

    def _preprocess_image_like_inputs(
        self, images, segmentation_maps, return_tensors=None, **settings
    ) -> BatchFeature:
        pictures = [load_picture(image) for image in as_list(images)]
        maps = None if segmentation_maps is None else [load_label_map(m) for m in as_list(segmentation_maps)]
        if maps is not None and [m.shape for m in maps] != [p.shape[:2] for p in pictures]:
            raise ValueError(
                f"label maps of sizes {[m.shape for m in maps]} for pictures of sizes "
                f"{[p.shape[:2] for p in pictures]}; each picture wants one map of its own size"
            )
        pixel_values, offsets, labels = [], [], []
        for index, picture in enumerate(pictures):
            size = self.resized_size(*picture.shape[:2], **settings)
            planes = [self.normalized(resize_picture(picture, size), **settings)]
            if maps is not None:
                reduced = self.reduce_labels(torch.from_numpy(maps[index]), **settings)
                planes.append(F.interpolate(reduced[None, None].double(), size=size, mode="nearest")[0, 0].long())
            if not settings["do_sliding_window"]:
                pixel_values.append(planes[0])
                labels.extend(planes[1:])
                continue
            window = settings["window_size"]
            for top in window_starts(size[0], window, settings["window_stride"]):
                for left in window_starts(size[1], window, settings["window_stride"]):
                    cut = [plane[..., top : top + window, left : left + window] for plane in planes]
                    pixel_values.append(cut[0])
                    labels.extend(cut[1:])
                    offsets.append([index, top, left, *size])
        if return_tensors is not None and len({x.shape for x in pixel_values}) > 1:
            raise ValueError(
                f"pictures of {len({x.shape for x in pixel_values})} different sizes cannot be stacked; process them "
                "one by one, or use qlseg_hf.segment, which takes mixed sizes"
            )
        data = {"pixel_values": [x.numpy() for x in pixel_values]}
        if maps is not None:
            data["labels"] = [x.numpy() for x in labels]
        if settings["do_sliding_window"]:
            data["window_offsets"] = [np.array(row) for row in offsets]
        if return_tensors is not None:
            data = {key: np.stack(values) for key, values in data.items()}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def resized_size(self, height: int, width: int, scale: float = 1.0, **settings) -> tuple[int, int]:
        """(height, width) in pixels that a picture is resized to.

        `scale` multiplies the short side, which never falls below the window (the published rule, so that small scales
        coincide with 1).
        """
        settings = {key: settings.get(key, getattr(self, key)) for key in ("do_resize", "size", "window_size")}
        size = settings["size"]
        if not settings["do_resize"]:
            return at_least_a_pixel(height * scale, width * scale)
        if size.shortest_edge:
            (short_side,) = at_least_a_pixel(size.shortest_edge * scale)
            if scale != 1:
                short_side = max(short_side, settings["window_size"])
            return short_side_size(height, width, short_side)
        return at_least_a_pixel(size.height * scale, size.width * scale)

    def normalized(self, picture: torch.Tensor, **settings) -> torch.Tensor:
        """(3, h, w) uint8 -> (3, h, w) fp32, rescaled and normalised as set."""
        names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        settings = {key: settings.get(key, getattr(self, key)) for key in names}
        picture = picture.float()
        if settings["do_rescale"]:
            picture = picture * settings["rescale_factor"]
        if settings["do_normalize"]:
            mean = torch.tensor(settings["image_mean"], dtype=torch.float32).view(-1, 1, 1)
            std = torch.tensor(settings["image_std"], dtype=torch.float32).view(-1, 1, 1)
            picture = (picture - mean) / std
        return picture

    def reduce_labels(self, labels: torch.Tensor, **settings) -> torch.Tensor:
        """Apply `label_map`, then `do_reduce_labels`, to integer labels of any shape. Returns int64."""
        names = ("label_map", "do_reduce_labels", "ignore_index")
        settings = {key: settings.get(key, getattr(self, key)) for key in names}
        labels = stored = labels.long()
        if settings["label_map"]:
            labels = stored.clone()
            for value, label in settings["label_map"].items():
                labels[stored == value] = label
        if settings["do_reduce_labels"]:
            void = (labels == 0) | (labels == settings["ignore_index"])
            labels = torch.where(void, settings["ignore_index"], labels - 1)
        return labels

    def post_process_semantic_segmentation(
        self,
        outputs,
        target_sizes: list[tuple[int, int]] | torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[BatchFeature]:
        """Put windows together and take the best label at each picture's size.

        Args:
            outputs: `QLSegOutput` of windows (with `window_offsets`) or any output with `logits` of whole pictures.
            target_sizes: (height, width) per picture, pixels; the resized size if not given.
            return_segmentation_scores: also return the scores that the labels are the best of, (K, height, width).

        Returns:
            one (height, width) int64 label map per picture, on the CPU; with scores, `segmentation` (that map) and
            `segmentation_scores` (fp32, on the CPU) per picture.

        Raises:
            ValueError: there are no logits (training mode), or not one target size per picture.
        """
        if outputs.logits is None:
            raise ValueError(
                "the output has no logits: in training mode with labels they are left out; use model.eval()"
            )
        offsets = getattr(outputs, "window_offsets", None)
        if offsets is None:
            planes = list(outputs.logits.float())
        else:
            sums = {}
            for scores, (index, top, left, height, width) in zip(outputs.logits, offsets.tolist()):
                sums.setdefault(index, WindowSum((height, width))).add(scores, top, left)
            planes = [sums[index].mean() for index in sorted(sums)]
        if target_sizes is None:
            target_sizes = [plane.shape[1:] for plane in planes]
        if len(target_sizes) != len(planes):
            raise ValueError(f"{len(target_sizes)} target sizes for {len(planes)} pictures; give one per picture")
        results = []
        for plane, (height, width) in zip(planes, target_sizes):
            size = (int(height), int(width))
            result = label_map_from_scores(plane, size)
            if return_segmentation_scores:
                scores = F.interpolate(plane[None], size=size, mode="bilinear", align_corners=False)[0]
                result = BatchFeature({"segmentation": result, "segmentation_scores": scores.cpu()})
            results.append(result)
        return results


def as_list(pictures) -> list:
    """A list of pictures from one picture, a sequence of them, or a (B, ...) array or tensor."""
    if isinstance(pictures, (list, tuple)):
        return list(pictures)
    if isinstance(pictures, (np.ndarray, torch.Tensor)) and pictures.ndim == 4:
        return list(pictures)
    return [pictures]


QLSegImageProcessor.register_for_auto_class()  # see configuration_qlseg.py

__all__ = ["QLSegImageProcessor", "load_label_map", "load_picture"]
