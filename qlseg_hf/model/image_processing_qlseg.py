# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The processor: pictures to windows, label files to labels, window scores to label maps, as the paper measured.

Letters: K labels, H x W a picture's own size, h x w its resized size, both in pixels.
"""

import math
import os
import reprlib
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BaseImageProcessor

from .configuration_qlseg import copy_code
from .image_io import Picture, as_list, load_label_map, load_picture, resize_picture
from .processor_settings import (
    LONGEST_SIDE,
    SETTINGS,
    QLSegImageProcessorKwargs,
    Settings,
    as_label_mapping,
    as_size,
    check_names,
    check_types,
    rename_label_map,
    warn_of_label_map,
)
from .scores import label_map_from_scores
from .windows import average_logits, place_windows

MEAN_STD_HALF = ([0.5] * 3, [0.5] * 3)
MEAN_STD_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

SERVICE_KEYS = {"image_processor_type", "processor_class", "feature_extractor_type", "auto_map"}  # of stored files
# What transformers' `from_pretrained` takes besides settings; names that begin with an underscore are its own, too
LOADING_KEYWORDS = {"cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies"}
LOADING_KEYWORDS |= {"config", "use_fast", "backend", "trust_remote_code", "code_revision", "image_processor_filename"}
LOADING_KEYWORDS |= {"return_unused_kwargs", "user_agent", "use_auth_token", "resume_download", "repo_type"}


class QLSegImageProcessor(BaseImageProcessor):
    r"""Picture to windows, label file to labels, model output to label map. Defaults are vit-l-ade20k.

    Args:
        do_resize: scale the picture to `size`: bilinear without antialiasing, rounded to 8 bit.
        size: {"shortest_edge": s} keeps the aspect ratio without a cap on the longer side; {"height": h, "width": w}
            does not keep it. Pixels.
        do_sliding_window: cut the resized picture into windows.
        window_size, window_stride: side of the square window and distance between windows, pixels.
        do_rescale, rescale_factor: multiply by 1 / 255. The factor says what integers stand for: from 1 / 256 on
            pictures are brought to 8 bits (16 bits of grey and RGB divided by 256); with a smaller one, such as
            1 / 65535 or 1 / 10000, they keep their values, and those of 8 bits are refused. Without `do_rescale`
            floats are taken as they are.
        do_normalize, image_mean, image_std: subtract and divide, per band, on rescaled values. Their number of entries
            is that of the bands that pictures must have, 3 (RGB) by default; a single number is for all of 3.
        do_reduce_labels: label 0 becomes `ignore_index` and every other label is lowered by one; `ignore_index` stays.
        ignore_index: label of pixels that do not count.
        label_mapping: {stored value: label}, applied first and at once; other values stay. Independent of the two
            above.
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
    label_mapping = None

    def __init__(self, **kwargs):
        warn_of_label_map(kwargs)
        kwargs = rename_label_map(kwargs)
        check_names(kwargs, {*SERVICE_KEYS, *self.valid_kwargs.__annotations__})
        own = {key: value for key, value in kwargs.items() if key not in SERVICE_KEYS}
        check_types(own)
        super().__init__(**kwargs)  # keeps a setting that is None, which `_set_attributes` takes for one not given
        self._set_attributes(**own)
        self.settings()

    def __setattr__(self, name: str, value) -> None:
        """AttributeError for a name that is not a setting: it would change nothing. Values are checked when used."""
        if not (name.startswith("_") or name in SERVICE_KEYS or hasattr(type(self), name)):
            try:
                check_names([name], self.valid_kwargs.__annotations__)
            except TypeError as error:
                raise AttributeError(str(error)) from error
        super().__setattr__(name, value)

    @property
    def label_map(self) -> dict[int, int] | None:
        """The old name of `label_mapping`."""
        warn_of_label_map(["label_map"])
        return self.label_mapping

    @label_map.setter
    def label_map(self, value: dict[int, int] | None) -> None:
        warn_of_label_map(["label_map"])
        self.label_mapping = value

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs):
        """As that of transformers, but TypeError for a keyword that is neither a setting nor its own.

        With `return_unused_kwargs` the unknown ones are returned, as transformers promises.
        """
        warn_of_label_map(kwargs)  # and not of what an older version has saved
        image_processor_dict, kwargs = rename_label_map(image_processor_dict), rename_label_map(kwargs)
        if not kwargs.get("return_unused_kwargs"):
            check_names(
                [name for name in kwargs if name[0] != "_"], {*cls.valid_kwargs.__annotations__, *LOADING_KEYWORDS}
            )
        return super().from_dict(image_processor_dict, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args, **kwargs):
        """As that of transformers, but TypeError for a keyword that is neither a setting nor its own."""
        if "_from_pipeline" in kwargs:  # brings the model's keywords along, which the model has checked
            known = {*cls.valid_kwargs.__annotations__, *LOADING_KEYWORDS}
            kwargs = {name: value for name, value in kwargs.items() if name in known or name[0] == "_"}
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def settings(self, **changes) -> Settings:
        """The settings as they are now, with `changes` for this once, checked whatever was set since the beginning.

        Raises:
            TypeError: one of `changes` is not a setting.
            ValueError: a setting has a wrong type or value, or does not go with another.
        """
        warn_of_label_map(changes)
        changes = rename_label_map(changes)
        check_names(changes, SETTINGS)
        values = {name: getattr(self, name) for name in SETTINGS} | changes
        check_types(values)
        return Settings(**self._standardize_kwargs(**values))

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> list[str]:
        """As `BaseImageProcessor.save_pretrained`, and with the code.

        Raises:
            ValueError: the settings do not go together, so that the file could not be loaded.
        """
        self.settings()
        os.makedirs(save_directory, exist_ok=True)
        copy_code(save_directory)
        self.auto_map = {"AutoImageProcessor": "image_processing_qlseg.QLSegImageProcessor"}
        return super().save_pretrained(save_directory, *args, **kwargs)

    def _standardize_kwargs(self, size=None, default_to_square=None, label_mapping=None, **kwargs) -> dict:
        kwargs = {key: value for key, value in kwargs.items() if key in self.valid_kwargs.__annotations__}
        for name in ("image_mean", "image_std"):
            if isinstance(kwargs.get(name), list):
                kwargs[name] = tuple(kwargs[name])
        return kwargs | {"size": as_size(size, default_to_square), "label_mapping": as_label_mapping(label_mapping)}

    def preprocess(self, images: Picture | list[Picture], segmentation_maps=None, **kwargs) -> BatchFeature:
        """
        Args:
            images: one picture or a list of them; see `load_picture`. Without RGB: arrays (H, W, n) or (n, H, W),
                `.npy` files and, in the package, TIFFs of n bands.
            segmentation_maps: one label map per picture, of its size; see `load_label_map`.
            kwargs: any setting of the class, for this call; `return_tensors`: "pt", "np" or None.

        Returns:
            `pixel_values`: (windows of all pictures, n, height, width), or (pictures, n, h, w) without
            `do_sliding_window`; `window_offsets` (with `do_sliding_window`): (windows, 5) integers, the picture's
            index, top, left, h and w; `labels`, if maps were given: cut like the pictures, int64.

        Raises:
            ValueError: there is no picture, a map and its picture differ in size, windows differ in size and cannot
                be stacked, or settings do not go together.
            TypeError: a keyword is not a setting.
        """
        return_tensors = kwargs.pop("return_tensors", getattr(self, "return_tensors", None))
        settings = self.settings(**kwargs)
        pictures = [load_picture(image, **settings.reading) for image in as_list(images)]
        if not pictures:
            raise ValueError("there is no picture in `images`; give at least one")
        maps = None if segmentation_maps is None else [load_label_map(m) for m in as_list(segmentation_maps)]
        if maps is not None and [m.shape for m in maps] != [p.shape[:2] for p in pictures]:
            raise ValueError(
                f"label maps of sizes {[m.shape for m in maps]} for pictures of sizes "
                f"{[p.shape[:2] for p in pictures]}; each picture wants one map of its own size"
            )
        pixel_values, offsets, labels = [], [], []
        for index, picture in enumerate(pictures):
            size = settings.resized_size(*picture.shape[:2])
            planes = [settings.normalized(resize_picture(picture, size))]
            if maps is not None:
                reduced = settings.reduce_labels(torch.from_numpy(maps[index]))
                planes.append(
                    F.interpolate(reduced[None, None].double(), size=size, mode="nearest-exact")[0, 0].long()
                )
            if not settings.do_sliding_window:
                pixel_values.append(planes[0])
                labels.extend(planes[1:])
                continue
            for rows, columns in place_windows(size, *settings.window_sides(size)):
                cut = [plane[..., slice(*rows), slice(*columns)] for plane in planes]
                pixel_values.append(cut[0])
                labels.extend(cut[1:])
                offsets.append([index, rows[0], columns[0], *size])
        if return_tensors is not None and len({x.shape for x in pixel_values}) > 1:
            raise ValueError(
                f"pictures of {len({x.shape for x in pixel_values})} different sizes cannot be stacked; process them "
                "one by one, or use qlseg_hf.segment, which takes mixed sizes"
            )
        data = {"pixel_values": [x.numpy() for x in pixel_values]}
        if maps is not None:
            data["labels"] = [x.numpy() for x in labels]
        if settings.do_sliding_window:
            data["window_offsets"] = [np.array(row) for row in offsets]
        if return_tensors is not None:
            data = {key: np.stack(values) for key, values in data.items()}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def load_picture(self, image: Picture) -> np.ndarray:
        """Read a picture with the bands and values that the settings ask for, (H, W, n); see `load_picture` there."""
        return load_picture(image, **self.settings().reading)

    def resized_size(self, height: int, width: int, scale: float = 1.0) -> tuple[int, int]:
        """(height, width) in pixels that a picture is resized to.

        `scale` multiplies the short side, which never falls below the window (the published rule, so that small scales
        coincide with 1).
        """
        return self.settings().resized_size(height, width, scale)

    def normalized(self, picture: torch.Tensor) -> torch.Tensor:
        """(n, h, w) uint8 or fp32 -> (n, h, w) fp32, rescaled and normalised as set."""
        return self.settings().normalized(picture)

    def reduce_labels(self, labels: torch.Tensor, **changes) -> torch.Tensor:
        """Apply `label_mapping`, then `do_reduce_labels`, to integer labels of any shape. Returns int64.

        `changes` are settings for this call.
        """
        return self.settings(**changes).reduce_labels(labels)

    def post_process_semantic_segmentation(
        self,
        outputs,
        target_sizes: list[tuple[int, int]] | torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Put windows together and take the best label at each picture's size.

        Args:
            outputs: `QLSegOutput` of windows (with `window_offsets`) or any output with `logits` of whole pictures.
            target_sizes: (height, width) per picture, pixels; the resized size if not given.
            return_segmentation_scores: also return the scores that the labels are the best of, (K, height, width).

        Returns:
            one (height, width) int64 label map per picture, on the CPU; with scores, `segmentation` (that map) and
            `segmentation_scores` (fp32, on the CPU) per picture.

        Raises:
            ValueError: there are no logits (training mode), windows are missing or given twice, the logits hold
                NaN, or there is not one target size, of two whole numbers above 0, per picture.
        """
        if outputs.logits is None:
            raise ValueError(
                "the output has no logits: in training mode with labels they are left out; use model.eval()"
            )
        offsets = getattr(outputs, "window_offsets", None)
        planes = list(outputs.logits.float()) if offsets is None else average_logits(outputs.logits, offsets)
        sizes = [tuple(plane.shape[1:]) for plane in planes]
        if target_sizes is not None:
            sizes = as_target_sizes(target_sizes)
        if len(sizes) != len(planes):
            remedy = "give one per picture"
            if offsets is None and self.settings().do_sliding_window:
                remedy = (
                    "the output has no window_offsets, without which each window counts as a picture: "
                    "call the model with all that the processor gave, model(**processor(...))"
                )
            raise ValueError(f"{len(sizes)} target sizes for {len(planes)} pictures; {remedy}")
        results = []
        for plane, size in zip(planes, sizes):
            result = label_map_from_scores(plane, size)
            if return_segmentation_scores:
                scores = F.interpolate(plane[None], size=size, mode="bilinear", align_corners=False)[0]
                result = SemanticSegmentationPostProcessorOutput(
                    {"segmentation": result, "segmentation_scores": scores.cpu()}
                )
            results.append(result)
        return results


def as_target_sizes(target_sizes) -> list[tuple[int, int]]:
    """(height, width) per picture; ValueError if one is not two whole numbers above 0."""
    try:
        sizes = [(float(height), float(width)) for height, width in target_sizes]
    except (TypeError, ValueError):
        sizes = [(math.nan, math.nan)]
    if not all(1 <= side <= LONGEST_SIDE and side == int(side) for size in sizes for side in size):
        raise ValueError(
            f"target_sizes must be (height, width) per picture, in whole pixels; got {reprlib.repr(target_sizes)}"
        )
    return [(int(height), int(width)) for height, width in sizes]


__all__ = ["QLSegImageProcessor"]
