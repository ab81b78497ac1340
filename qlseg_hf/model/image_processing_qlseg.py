"""The processor: pictures to windows, label files to labels, window scores to label maps, as the paper measured.

Letters: K labels, H x W a picture's own size, h x w its resized size, both in pixels.
"""

import math
import operator
import os
from typing import Any, TypedDict

import numpy as np
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError
from torch.nn import functional as F
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import SizeDict

from .configuration_qlseg import copy_code, refuse_booleans
from .image_io import Picture, as_list, load_label_map, load_picture, resize_picture
from .scores import label_map_from_scores
from .windows import window_starts

MEAN_STD_HALF = ([0.5] * 3, [0.5] * 3)
MEAN_STD_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

NEEDED_BY = {
    "do_resize": ("size",),
    "do_sliding_window": ("window_size", "window_stride"),
    "do_rescale": ("rescale_factor",),
    "do_normalize": ("image_mean", "image_std"),
    "do_reduce_labels": ("ignore_index",),
}


def short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) after scaling the shorter side to `short_side`, rounded half up; no cap on the longer side."""
    factor = short_side / min(height, width)
    return int(height * factor + 0.5), int(width * factor + 0.5)


def at_least_a_pixel(*sides: float) -> tuple[int, ...]:
    """Whole pixels of sides in pixels, cut off, 1 at least."""
    return tuple(max(1, int(side)) for side in sides)


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
    refuse_booleans("QLSegImageProcessor", settings, QLSegImageProcessorKwargs.__annotations__)
    try:
        validate_typed_dict(QLSegImageProcessorKwargs, settings)
    except StrictDataclassError as error:
        raise ValueError(f"QLSegImageProcessor: {error.__cause__ or error}") from error


class QLSegImageProcessor(BaseImageProcessor):
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

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> list[str]:
        """As `BaseImageProcessor.save_pretrained`, and with the code."""
        os.makedirs(save_directory, exist_ok=True)
        copy_code(save_directory)
        self.auto_map = {"AutoImageProcessor": "image_processing_qlseg.QLSegImageProcessor"}
        return super().save_pretrained(save_directory, *args, **kwargs)

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
        pictures = [load_picture(image, keep_float=not settings["do_rescale"]) for image in as_list(images)]
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


__all__ = ["QLSegImageProcessor"]
