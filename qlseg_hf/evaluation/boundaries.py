# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""How well predicted boundaries lie: counts for boundary IoU (Cheng et al. 2021) and boundary F1 (Csurka et al. 2013).

Letters: K labels, H x W pixels. Pixels that the reference ignores are evidence of nothing, in either map: they are in
no band and on no contour, and the change of label at their edge is not a boundary.
"""

import math

import numpy as np
import torch

BAND = 0.02  # of the diagonal: width of the band of boundary IoU, as published
TOLERANCE = 0.0075  # of the diagonal: how far a boundary may be off for boundary F1, as published


def count_boundaries(
    label_map: np.ndarray, reference: np.ndarray, num_labels: int, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Count the pixels of a picture that lie at boundaries.

    Args:
        label_map: (H, W) int64 predicted labels, 0..K-1 where the reference is not ignored.
        reference: (H, W) int64, 0..K-1 or `ignore_index`.
        num_labels: K.
        ignore_index: of pixels that do not count.

    Returns:
        band: (3, K) int64, pixels in the bands of both maps (and of one label in both), of the reference, of the
            prediction. IoU of these sums is boundary IoU.
        contour: (4, K) int64, pixels on the reference's contours, those of them that the prediction finds, pixels on
            the prediction's contours, those of them that the reference confirms.
    """
    counted = reference != ignore_index
    kind = np.min_scalar_type(-num_labels - 1)  # small integers are quicker
    reference, label_map = (np.where(counted, labels, -1).astype(kind) for labels in (reference, label_map))
    diagonal = math.hypot(*reference.shape)
    width = max(1, round(BAND * diagonal))
    bands = [find_band(labels, num_labels, width) for labels in (reference, label_map)]
    both = bands[0] & bands[1] & (reference == label_map)
    chosen = ((reference, both), (reference, bands[0]), (label_map, bands[1]))
    band = np.stack([np.bincount(labels[where], minlength=num_labels) for labels, where in chosen])
    contours = [np.where(find_contours(labels), labels, kind.type(-1)) for labels in (reference, label_map)]
    offsets = offsets_within(max(1.0, TOLERANCE * diagonal))
    rows = []
    for own, other in (contours, contours[::-1]):
        rows += count_found(own, other, num_labels, offsets)
    return torch.from_numpy(band), torch.from_numpy(np.stack(rows))


def find_band(labels: np.ndarray, num_labels: int, width: int) -> np.ndarray:
    """(H, W) bool: counted pixels with a counted pixel of another label, or the picture's edge, within `width` pixels.

    Within: in the square of 2 * width + 1 around it, which is what `width` erosions by 3 x 3 look at. As published,
    the picture's edge bounds the labels that it cuts.

    Args:
        labels: (H, W) integers, -1 where a pixel does not count.
    """
    kind = np.min_scalar_type(num_labels)
    highest = (labels + 1).astype(kind)  # 0: not counted, never the largest
    lowest = np.where(labels < 0, 0, num_labels - labels).astype(kind)
    is_band = (max_filter(highest, width) != highest) | (max_filter(lowest, width) != lowest)
    is_band[:width], is_band[-width:], is_band[:, :width], is_band[:, -width:] = True, True, True, True
    return is_band & (labels >= 0)


def max_filter(values: np.ndarray, radius: int) -> np.ndarray:
    """(H, W) largest value in the square of 2 * radius + 1 around each pixel, in time that grows with its logarithm.

    Values are not negative; outside of the picture they are 0.
    """
    size = 2 * radius + 1
    for axis in (0, 1):
        values = np.pad(np.moveaxis(values, axis, 0), ((radius, radius), (0, 0)))
        span = 1  # values[i] is the largest of so many from i on
        while 2 * span <= size:
            values = np.maximum(values[:-span], values[span:])
            span *= 2
        if size > span:
            values = np.maximum(values[: -(size - span)], values[size - span :])
        values = np.moveaxis(values, 0, axis)
    return values


def find_contours(labels: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels beside (left, right, above, below) one of another label, both counted.

    Args:
        labels: (H, W) integers, -1 where a pixel does not count.
    """
    is_contour = np.zeros(labels.shape, dtype=bool)
    counted = labels >= 0
    for first, second in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        differs = (labels[first] != labels[second]) & counted[first] & counted[second]
        is_contour[first] |= differs
        is_contour[second] |= differs
    return is_contour


def offsets_within(distance: float) -> list[tuple[int, int]]:
    """(rows, columns) to the pixels whose centres lie within `distance` pixels, nearest first."""
    reach = range(-int(distance), int(distance) + 1)
    inside = [(y * y + x * x, y, x) for y in reach for x in reach if y * y + x * x <= distance * distance]
    return [(y, x) for _, y, x in sorted(inside)]


def count_found(
    own: np.ndarray, other: np.ndarray, num_labels: int, offsets: list[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """(K,) contour pixels of `own`, and those with a contour pixel of the same label at one of `offsets` in `other`.

    Args:
        own, other: (H, W) integers, label of the contour pixels, -1 elsewhere.
    """
    reach = max(abs(y) for y, _ in offsets)
    padded = np.pad(other, reach, constant_values=-1)
    places = np.flatnonzero(np.pad(own >= 0, reach))  # of contour pixels, in the padded picture
    labels = own[own >= 0]
    total = np.bincount(labels, minlength=num_labels)
    occurs = np.zeros(num_labels, dtype=bool)
    occurs[other[other >= 0]] = True
    missing = total * ~occurs
    places, labels = places[occurs[labels]], labels[occurs[labels]]
    flat = padded.ravel()
    for y, x in offsets:
        is_open = flat[places + (y * padded.shape[1] + x)] != labels
        places, labels = places[is_open], labels[is_open]
    return total, total - missing - np.bincount(labels, minlength=num_labels)


def boundary_f1(contour: torch.Tensor) -> torch.Tensor:
    """(4, K) sums over a data set to (K,) boundary F1, fp64.

    Harmonic mean of the share of reference contours that is found and the share of predicted contours that is
    confirmed; 0 if only one map has contours of the label, NaN if neither has.
    """
    reference, found, predicted, confirmed = contour.double()
    recall, precision = found / reference.clamp(min=1), confirmed / predicted.clamp(min=1)
    f1 = 2 * precision * recall / (precision + recall)
    return torch.where(reference + predicted > 0, f1.nan_to_num(nan=0.0), torch.nan)


__all__ = ["boundary_f1", "count_boundaries"]
