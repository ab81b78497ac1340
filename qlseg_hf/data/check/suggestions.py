# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What to set by what was counted: weights of labels, side of the crop, and which labels are too rare to learn."""

from collections.abc import Iterable, Mapping

import numpy as np

MOST_WEIGHT = 10.0
MOST_CROP = 512  # pixels
FEW_IMAGES, FEW_OF_IMAGES = 5, 0.2  # a label in fewer training images, and in a smaller share of them, is rare
FEW_PIXELS = 2e-5  # share of the pixels below which a label is rare


def suggest_label_weights(counts: Mapping[str, int]) -> dict[str, float]:
    """Factors of the labels in the loss, by name: 1 for a label of median frequency, more for a rarer one.

    Args:
        counts: pixels of each label in the training images.

    Returns:
        sqrt(median count / count), at least 1/10 and at most 10, rounded to two digits; 1 for a label without pixels.

    The square root of median frequency balancing (Eigen and Fergus 2015): the full ratio gives a label with a
    thousandth of the pixels a thousand times the weight, and its few images are learnt by heart.
    """
    occurring = [count for count in counts.values() if count]
    median = float(np.median(occurring)) if occurring else 1.0
    return {
        name: float(np.round(np.clip((median / count) ** 0.5, 1 / MOST_WEIGHT, MOST_WEIGHT), 2)) if count else 1.0
        for name, count in counts.items()
    }


def suggest_crop_size(sizes: Iterable[tuple[int, int]], patch_size: int = 16, most: int = MOST_CROP) -> int:
    """Side of the square training crop, in pixels.

    Args:
        sizes: (height, width) of the training images.
        patch_size: of the encoder; the side is a multiple of it.
        most: pixels that the side has at most.

    Returns:
        the median short side rounded down to whole patches, one at least: a larger crop would be padding, and a larger
        one than `most` takes memory that is better spent on the batch.
    """
    sides = [min(size) for size in sizes]
    side = int(min(np.median(sides), most)) if sides else most
    return max(side // patch_size, 1) * patch_size


def rare_labels(names: list[str], pixels: np.ndarray, images: list[int], num_images: int) -> dict[str, str]:
    """{name: how rare it is} of the labels that occur in the training images, but too seldom to be learnt.

    Args:
        names: of the K labels.
        pixels: (K,) of each label.
        images: how many training images hold each label.
        num_images: how many there are.
    """
    total, found = max(int(pixels.sum()), 1), {}
    for name, count, held in zip(names, pixels.tolist(), images):
        if 0 < held < min(FEW_IMAGES, FEW_OF_IMAGES * num_images):
            found[name] = f"in {held} of {num_images} training images"
        elif 0 < count < FEW_PIXELS * total:
            found[name] = f"{100 * count / total:.2g} % of the pixels"
    return found


__all__ = ["rare_labels", "suggest_label_weights", "suggest_crop_size"]
