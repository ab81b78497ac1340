# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a training crop is changed by beside resizing and flipping: colours, and moves of image and labels together.

Source: photometric distortion as in mmsegmentation 0.30, which Xie et al. 2024 used; one random operation as in
TrivialAugment (Müller and Hutter 2021).
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch.nn import functional as F

from ..utils.optional import import_package


@cache
def import_opencv():
    """The module cv2, or None if it is not installed. ImportError if it is, but another module or broken."""
    try:
        cv2 = import_package("cv2", "setNumThreads", "augmentation", "'qlseg-hf[train]'")
    except ModuleNotFoundError:
        return None
    cv2.setNumThreads(1)  # the workers are the parallelism, and a thread pool does not survive a fork
    return cv2


def scale_values(values: np.ndarray, factor: float = 1.0, offset: float = 0.0) -> np.ndarray:
    """`values * factor + offset` of uint8, clipped to 0..255 and cut to uint8."""
    return np.clip(np.arange(256) * factor + offset, 0, 255).astype(np.uint8)[values]


def distort(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Photometric distortion of (h, w, 3) uint8 RGB, each of the four with p = 0.5, every step rounded to 8 bit.

    Brightness + U(-32, 32); contrast x U(0.5, 1.5), by a coin before or after the next two; saturation x U(0.5, 1.5);
    hue + an integer in -18..17 of 180.
    """
    cv2 = import_opencv()

    def translate_channel(channel: int, table: np.ndarray) -> np.ndarray:
        hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)
        hsv[..., channel] = table[hsv[..., channel]]
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)

    levels = np.arange(256)
    if rng.random() < 0.5:
        picture = scale_values(picture, offset=rng.uniform(-32, 32))
    contrast_first = rng.random() < 0.5
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else None
    if contrast is not None and contrast_first:
        picture = scale_values(picture, contrast)
    if rng.random() < 0.5:
        picture = translate_channel(1, scale_values(levels, rng.uniform(0.5, 1.5)))
    if rng.random() < 0.5:
        picture = translate_channel(0, ((levels + rng.integers(-18, 18)) % 180).astype(np.uint8))
    if contrast is not None and not contrast_first:
        picture = scale_values(picture, contrast)
    return picture


def distort_bands(pixel_values: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Brightness and contrast of (n, h, w) normalised bands, which have no hue, each with p = 0.5; nothing is cut off.

    Contrast x U(0.5, 1.5) about the mean of the data set, which is 0 here; then U(-0.25, 0.25) deviations on top, the
    same for all bands. 0.25 is what 32 of 255 is for the default processor.
    """
    if rng.random() < 0.5:
        pixel_values = pixel_values * rng.uniform(0.5, 1.5)
    if rng.random() < 0.5:
        pixel_values = pixel_values + rng.uniform(-0.25, 0.25)
    return pixel_values


# of TrivialAugment: what each does to an 8-bit RGB image, by a strength of -1..1
COLOR_OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, strength: image,
    "autocontrast": lambda image, strength: ImageOps.autocontrast(image),
    "equalize": lambda image, strength: ImageOps.equalize(image),
    "brightness": lambda image, strength: ImageEnhance.Brightness(image).enhance(1 + 0.99 * strength),
    "saturation": lambda image, strength: ImageEnhance.Color(image).enhance(1 + 0.99 * strength),
    "contrast": lambda image, strength: ImageEnhance.Contrast(image).enhance(1 + 0.99 * strength),
    "sharpness": lambda image, strength: ImageEnhance.Sharpness(image).enhance(1 + 0.99 * strength),
    "posterize": lambda image, strength: ImageOps.posterize(image, 8 - round(6 * abs(strength))),
    "solarize": lambda image, strength: ImageOps.solarize(image, round(255 * (1 - abs(strength)))),
}
# and where each pixel (x, y) of the result comes from: matrix and shift in pixels, about the middle
MOVES: dict[str, Callable[[float], tuple[np.ndarray, tuple[float, float]]]] = {
    "shear_x": lambda strength: (np.array([[1, 0.99 * strength], [0, 1]]), (0, 0)),
    "shear_y": lambda strength: (np.array([[1, 0], [0.99 * strength, 1]]), (0, 0)),
    "translate_x": lambda strength: (np.eye(2), (32 * strength, 0)),
    "translate_y": lambda strength: (np.eye(2), (0, 32 * strength)),
    "rotate": lambda strength: (rotation_matrix(135 * strength), (0, 0)),
}


def recolor(picture: np.ndarray, operation: str, strength: float) -> np.ndarray:
    """(h, w, 3) uint8 after one of `COLOR_OPERATIONS`."""
    return np.asarray(COLOR_OPERATIONS[operation](Image.fromarray(picture), strength)).copy()


def rotation_matrix(angle: float) -> np.ndarray:
    """(2, 2) of (x, y), which turns an image counter-clockwise by `angle` degrees when it is sampled by it."""
    turn = np.deg2rad(angle)
    return np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])


def move(
    pixel_values: torch.Tensor,
    labels: torch.Tensor,
    matrix: np.ndarray,
    shift: tuple[float, float],
    ignore_index: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Move a crop and its labels about its middle.

    Args:
        pixel_values: (n, h, w) fp32, read between pixels by bilinear interpolation.
        labels: (h, w) int64, of which the nearest is taken.
        matrix, shift: a pixel comes from `matrix` (2, 2) times its (x, y) from the middle, plus `shift`, in pixels.
        ignore_index: label of what comes in from outside, where pixels are 0.

    Returns:
        tensors of the same shapes and dtypes.
    """
    height, width = labels.shape
    rows = torch.arange(height, dtype=torch.float32)[:, None] - (height - 1) / 2  # (h, 1)
    columns = torch.arange(width, dtype=torch.float32)[None] - (width - 1) / 2  # (1, w)
    x, y = (float(a) * columns + float(b) * rows + float(c) for (a, b), c in zip(matrix, shift))
    grid = torch.stack([2 * x / width, 2 * y / height], dim=-1)[None]  # (1, h, w, 2), -1..1 are the outer edges
    given = {"padding_mode": "zeros", "align_corners": False}
    moved = F.grid_sample(pixel_values[None], grid, mode="bilinear", **given)[0]
    shifted = (labels - ignore_index).double()[None, None]  # so that 0 is ignored
    kept = F.grid_sample(shifted, grid.double(), mode="nearest", **given)[0, 0]
    return moved, kept.round().long() + ignore_index


__all__ = [
    "COLOR_OPERATIONS",
    "MOVES",
    "distort",
    "distort_bands",
    "move",
    "import_opencv",
    "recolor",
    "rotation_matrix",
]
