# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The processor's settings, checked together, and what they say of sizes, windows, pixels and labels.

Letters: H x W a picture's own size, h x w its resized size, both in pixels.
"""

import difflib
import operator
import reprlib
import warnings
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError
from transformers.image_utils import SizeDict

NEEDED_BY = {
    "do_resize": ("size",),
    "do_sliding_window": ("window_size", "window_stride"),
    "do_rescale": ("rescale_factor",),
    "do_normalize": ("image_mean", "image_std"),
    "do_reduce_labels": ("ignore_index",),
}
LONGEST_SIDE = 2**31 - 1  # pixels
LARGEST_NUMBER, SMALLEST_DIVISOR = 1e18, 1e-18  # of the normalisation, whose results are fp32
LEAST_8_BIT = 1 / 256.5  # rescale factors below it are for more than 8 bits
MOST_BANDS = 4096
FEW_STEPS = 16  # up to which values may be what they are, with a mean below 1


def short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) after scaling the shorter side to `short_side`, rounded half up; no cap on the longer side."""
    factor = short_side / min(height, width)
    return int(height * factor + 0.5), int(width * factor + 0.5)


def at_least_a_pixel(*sides: float) -> tuple:
    """Whole pixels of sides in pixels, cut off, 1 at least."""
    return tuple(max(1, int(side)) for side in sides)


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
    label_mapping: dict | None
    return_tensors: Any


SETTINGS = tuple(name for name in QLSegImageProcessorKwargs.__annotations__ if name != "return_tensors")


def check_names(names, known) -> None:
    """TypeError if one of `names` is not `known`, with the known one that is spelt most like it."""
    if unknown := sorted(set(names) - set(known)):
        near = [match for name in unknown for match in difflib.get_close_matches(name, SETTINGS, n=1, cutoff=0.8)]
        hint = f"did you mean {' and '.join(near)}?" if near else f"it has {', '.join(sorted(SETTINGS))}"
        raise TypeError(f"QLSegImageProcessor has no setting {unknown}; {hint}")


def rename_label_map(settings: dict) -> dict:
    """`settings` with `label_mapping` by this name; TypeError if it is also given by its old one, `label_map`."""
    if "label_map" not in settings:
        return settings
    if "label_mapping" in settings:
        raise TypeError("label_map is the old name of label_mapping; give label_mapping alone")
    return {"label_mapping" if name == "label_map" else name: value for name, value in settings.items()}


def warn_of_label_map(names) -> None:
    """FutureWarning if the old name of `label_mapping` is among `names`."""
    if "label_map" in names:
        warnings.warn(
            "label_map of QLSegImageProcessor is now called label_mapping; the next version drops the old name",
            FutureWarning,
            stacklevel=3,
        )


def check_types(settings: dict) -> None:
    """ValueError if one of the processor's `settings` is of a wrong type."""
    for name in ("size", "image_mean", "image_std"):  # whose numbers, and not fields, True may be
        value = settings.get(name)
        parts = dict(value).values() if isinstance(value, dict | SizeDict) else value
        if not isinstance(parts, int | float | str | None) and any(isinstance(part, bool) for part in parts):
            raise ValueError(f"QLSegImageProcessor: Field '{name}' is {reprlib.repr(value)}; True is not a number")
    try:
        validate_typed_dict(QLSegImageProcessorKwargs, settings)
    except StrictDataclassError as error:
        name = next(name for name in settings if is_wrong_type(name, settings[name]))
        wanted = str(QLSegImageProcessorKwargs.__annotations__[name]).replace("transformers.image_utils.", "")
        raise ValueError(
            f"QLSegImageProcessor: Field '{name}' is {reprlib.repr(settings[name])}; {wanted} is wanted"
        ) from error


def is_wrong_type(name: str, value) -> bool:
    try:
        validate_typed_dict(QLSegImageProcessorKwargs, {name: value})
    except StrictDataclassError:
        return True
    return False


def as_size(size: dict[str, int] | SizeDict | int | None, default_to_square: bool | None) -> SizeDict | None:
    """A `size` in the form that is computed with, always a new object; ValueError if its keys are others."""
    if isinstance(size, int):
        size = {"height": size, "width": size} if default_to_square else {"shortest_edge": size}
    sides = None if size is None else dict(size)
    if sides is not None and set(sides) not in ({"shortest_edge"}, {"height", "width"}):
        raise ValueError(
            f"size must be {{'shortest_edge': s}} or {{'height': h, 'width': w}}; got {reprlib.repr(sides)}"
        )
    return None if sides is None else SizeDict(**sides)


def as_label_mapping(label_mapping: dict | None) -> dict[int, int] | None:
    """A `label_mapping` of integers, of which JSON makes the keys strings; always a new object."""
    if label_mapping is None:
        return None
    wanted = f"label_mapping must be {{stored value: label}} of integers; got {reprlib.repr(label_mapping)}"
    try:
        values = [value for pair in label_mapping.items() for value in pair]
        if any(isinstance(value, bool) for value in values):
            raise ValueError(wanted)
        integers = [int(value) if isinstance(value, str) else operator.index(value) for value in values[::2]]
        found = dict(zip(integers, map(operator.index, values[1::2])))
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(wanted) from error
    if len(found) < len(label_mapping):
        raise ValueError(
            f"label_mapping names a stored value twice, as a number and as text: {reprlib.repr(label_mapping)}"
        )
    return found


@dataclass(frozen=True)
class Settings:
    """The processor's settings at one moment, in one form and checked together; what every path computes with.

    Raises:
        ValueError: a number is out of range, or one that is needed is None.
    """

    do_resize: bool | None
    size: SizeDict | None
    do_sliding_window: bool | None
    window_size: int | None
    window_stride: int | None
    do_rescale: bool | None
    rescale_factor: float | None
    do_normalize: bool | None
    image_mean: float | tuple[float, ...] | None
    image_std: float | tuple[float, ...] | None
    do_reduce_labels: bool | None
    ignore_index: int | None
    label_mapping: dict[int, int] | None

    def __post_init__(self):
        for switch, names in NEEDED_BY.items():
            if getattr(self, switch) and (missing := [name for name in names if getattr(self, name) is None]):
                raise ValueError(f"{switch} needs {' and '.join(missing)}, which is None; give it or {switch}=False")
        size = dict(self.size or {})
        if self.do_resize and not all(isinstance(s, int) and 1 <= s <= LONGEST_SIDE for s in size.values()):
            raise ValueError(f"size must be whole pixels, 1..{LONGEST_SIDE}; got {reprlib.repr(size)}")
        if self.window_size is not None and not 1 <= self.window_size <= LONGEST_SIDE:
            raise ValueError(
                f"window_size is {reprlib.repr(self.window_size)}; it must be at least 1 pixel, at most {LONGEST_SIDE}"
            )
        if self.do_sliding_window and not 0 < self.window_stride <= self.window_size:
            raise ValueError(
                f"window_stride {reprlib.repr(self.window_stride)} must be 1..window_size ({self.window_size}), or "
                "pixels between windows would never be seen"
            )
        self._check_numbers()
        labels = (self.ignore_index or 0, *(self.label_mapping or {}).values())
        if not -(2**31) <= min(labels) <= max(labels) < 2**31:
            raise ValueError(
                f"ignore_index and the labels of label_mapping must fit 32 bits; got {reprlib.repr(labels)}"
            )
        if self.do_reduce_labels and self.ignore_index == 0:
            raise ValueError("with do_reduce_labels label 1 becomes 0, so ignore_index cannot be 0; use 255")

    def _check_numbers(self) -> None:
        """ValueError for a factor, mean or deviation that is out of range, or of more bands than the other one."""
        for name in ("rescale_factor", "image_mean", "image_std"):
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value,)
            if values == (None,):
                continue
            if not values or not all(abs(number) <= LARGEST_NUMBER for number in values):
                wanted = (
                    "a finite number is"
                    if name == "rescale_factor"
                    else "one finite number per band, or a single one, is"
                )
                raise ValueError(f"{name} is {reprlib.repr(value)}; {wanted} wanted")
            if name == "image_std" and min(values) < SMALLEST_DIVISOR:
                raise ValueError(
                    f"image_std is {reprlib.repr(value)}; pixels are divided by it, so it must be above 0"
                )
            if name == "rescale_factor" and self.do_rescale and value <= 0:
                raise ValueError(f"rescale_factor is {value}; pixels are multiplied by it, so it must be above 0")
        if len(counts := self._numbers_of_bands()) > 1:
            raise ValueError(
                f"image_mean is {reprlib.repr(self.image_mean)} and image_std {reprlib.repr(self.image_std)}; both "
                "must have one entry per band, or be a single number"
            )
        if min(counts, default=1) > MOST_BANDS:
            raise ValueError(f"image_mean is for {max(counts)} bands; {MOST_BANDS} at most are taken")

    def _numbers_of_bands(self) -> set[int]:
        return {len(numbers) for numbers in (self.image_mean, self.image_std) if isinstance(numbers, tuple)}

    @property
    def num_channels(self) -> int:
        """Bands of the pictures: the entries of `image_mean` and `image_std`; 3 if these are single numbers."""
        return max(self._numbers_of_bands(), default=3)

    @property
    def reading(self) -> dict[str, int | bool]:
        """Keywords for `load_picture`; what integers stand for, `rescale_factor` says: see `QLSegImageProcessor`."""
        return {
            "num_channels": self.num_channels,
            "keep_float": not self.do_rescale,
            "keep_values": bool(self.do_rescale) and self.rescale_factor < LEAST_8_BIT,
        }

    def check_network(self, config) -> None:
        """ValueError if the network of this `QLSegConfig` takes pictures of another number of bands."""
        bands = getattr(config.backbone_config, "num_channels", 3)
        if bands != self.num_channels:
            raise ValueError(
                f"the processor takes pictures of {self.num_channels} bands, the network of {bands}: give the "
                f"processor image_mean and image_std of {bands} entries, or another network"
            )

    def resized_size(self, height: int, width: int, scale: float = 1.0) -> tuple[int, int]:
        """See `QLSegImageProcessor.resized_size`."""
        if not self.do_resize:
            return at_least_a_pixel(height * scale, width * scale)
        if self.size.shortest_edge is None:
            return at_least_a_pixel(self.size.height * scale, self.size.width * scale)
        (short_side,) = at_least_a_pixel(self.size.shortest_edge * scale)
        if scale != 1 and self.window_size is not None:
            short_side = max(short_side, self.window_size)
        return short_side_size(height, width, short_side)

    def window_sides(self, size: tuple[int, int]) -> tuple[int, int]:
        """(window, stride) in pixels on a resized picture of `size`; the whole of it without `do_sliding_window`."""
        return (self.window_size, self.window_stride) if self.do_sliding_window else (max(size), max(size))

    def normalized(self, picture: torch.Tensor) -> torch.Tensor:
        """(n, h, w) uint8 or fp32 -> (n, h, w) fp32, rescaled and normalised as set.

        Warns of values far above 1 that are not rescaled where the mean is one of values in 0..1.
        """
        if not self.do_rescale and self.do_normalize:
            means = torch.tensor(self.image_mean)
            # floats may have outliers
            high = picture.max() if picture.dtype == torch.uint8 and picture.numel() else picture.float().mean()
            if means.min() > 0 and means.max() <= 1 and high > FEW_STEPS:
                warnings.warn(
                    f"a picture holds values up to {picture.max():.0f}, do_rescale is False, and image_mean is "
                    f"{reprlib.repr(self.image_mean)}, as of values in 0..1; set do_rescale to True for integers, or "
                    "give floats in 0..1",
                    stacklevel=2,
                )
        picture = picture.float()
        if self.do_rescale:
            picture = picture * self.rescale_factor
        if self.do_normalize:
            mean = torch.tensor(self.image_mean, dtype=torch.float32).view(-1, 1, 1)
            std = torch.tensor(self.image_std, dtype=torch.float32).view(-1, 1, 1)
            picture = (picture - mean) / std
        return picture

    def reduce_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Apply `label_mapping`, then `do_reduce_labels`, to integer labels of any shape. Returns int64.

        Warns where a label is lowered to `ignore_index`, which void pixels become too.
        """
        labels = stored = labels.long()
        if self.label_mapping:
            labels = stored.clone()
            for value, label in self.label_mapping.items():
                labels[stored == value] = label
        if self.do_reduce_labels:
            void = (labels == 0) | (labels == self.ignore_index)
            # 255 that becomes 254 is the void of 8 bits
            if self.ignore_index not in (-1, 254) and (labels == self.ignore_index + 1).any():
                warnings.warn(
                    f"do_reduce_labels makes label {self.ignore_index} of {self.ignore_index + 1}, and ignore_index, "
                    f"which void pixels become, is {self.ignore_index} too; set it outside of the labels, to -100 for "
                    "instance, and semantic_loss_ignore_index of the model to the same",
                    stacklevel=2,
                )
            labels = torch.where(void, self.ignore_index, labels - 1)
        return labels


__all__ = ["QLSegImageProcessorKwargs", "Settings"]
