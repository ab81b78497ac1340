# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Confusion counts first, then mIoU, mAcc and aAcc, as the paper reports them: one count over the whole data set.

Letters: K labels, R bootstrap replicates, H x W pixels. Scores are fractions in [0, 1]; a mean leaves out labels that
are NaN.
"""

import numpy as np
import torch

from ..model.image_io import Picture, load_label_map
from .boundaries import boundary_f1, count_boundaries

# Of each label: {name: its title on pages, and that of a narrow column}
LABEL_SCORES = {
    "iou": ("IoU", "IoU"),
    "accuracy": ("accuracy", "Acc"),
    "boundary_iou": ("boundary IoU", "bIoU"),
    "boundary_f1": ("boundary F1", "bF1"),
}


def confusion_counts(label_map: Picture, reference: Picture, num_labels: int, ignore_index: int = 255) -> torch.Tensor:
    """Count the pixels of a picture by label of the reference (row) and predicted label (column).

    Args:
        label_map: (H, W) predicted labels, anything that `load_label_map` reads: integer tensor, array, PIL, path.
        reference: (H, W), likewise. Pixels of `ignore_index` do not count, whatever was predicted there.
        num_labels: K.
        ignore_index: may lie outside 0..K-1 or inside, negative included.

    Returns:
        (K, K) int64 on the CPU; all 0 if every pixel is ignored.

    Raises:
        ValueError: sizes differ, or a pixel that counts has a reference or a prediction outside 0..K-1.
    """
    label_map, reference = load_pair(label_map, reference)
    counted = reference != ignore_index
    codes = pair_codes(label_map[counted], reference[counted], num_labels, ignore_index)
    return torch.from_numpy(np.bincount(codes, minlength=num_labels**2)).view(num_labels, num_labels)


def load_pair(label_map: Picture, reference: Picture) -> tuple[np.ndarray, np.ndarray]:
    """Both as (H, W) int64. ValueError if their sizes differ."""
    label_map, reference = load_label_map(label_map), load_label_map(reference)
    if label_map.shape != reference.shape:
        raise ValueError(
            f"the label map is {label_map.shape} and the reference {reference.shape}; they must have one size, so "
            "predict at the reference's own size"
        )
    return label_map, reference


def pair_codes(labels: np.ndarray, references: np.ndarray, num_labels: int, ignore_index: int) -> np.ndarray:
    """`references * K + labels` of (n,) pixels, none of them ignored. ValueError for a value outside 0..K-1."""
    if (wrong := (references < 0) | (references >= num_labels)).any():
        raise ValueError(
            f"the reference holds {np.unique(references[wrong])[:8].tolist()}; 0..{num_labels - 1} or {ignore_index} "
            "(ignored) is wanted, so check do_reduce_labels, label_mapping and num_labels"
        )
    if (wrong := (labels < 0) | (labels >= num_labels)).any():
        raise ValueError(
            f"the label map holds {np.unique(labels[wrong])[:8].tolist()}; 0..{num_labels - 1} is wanted, so check "
            "that the model has the labels of the references"
        )
    return references * num_labels + labels


def label_areas(counts: torch.Tensor) -> torch.Tensor:
    """(K, K) counts to (3, K) int64 pixels per label: true positives, reference, prediction."""
    return torch.stack([counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)])


def label_iou(areas: torch.Tensor) -> torch.Tensor:
    """(..., 3, K) areas to (..., K) IoU, fp64; NaN for a label in neither reference nor prediction."""
    hit, reference, predicted = areas.double().unbind(-2)
    return hit / (reference + predicted - hit)


def scores(counts: torch.Tensor) -> dict[str, float | int | list]:
    """Scores of confusion counts.

    Args:
        counts: (K, K) integers, rows reference, columns prediction.

    Returns:
        `miou`, `macc`, `aacc`: mean IoU, mean accuracy of a label, share of right pixels; NaN if no pixel counts.
        `iou`, `accuracy`: K floats. IoU is NaN for a label in neither reference nor prediction, accuracy
        for a label not in the reference; the means leave these out. A label predicted but never right has IoU 0.
        `reference_pixels`, `predicted_pixels`: K integers. `num_pixels`: all that count.

    Raises:
        ValueError: `counts` is not square.
    """
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"counts have shape {tuple(counts.shape)}; (K, K) is wanted, see confusion_counts")
    areas = label_areas(counts)
    hit, reference, predicted = areas
    iou, accuracy = label_iou(areas), hit.double() / reference
    return {
        "miou": iou.nanmean().item(),
        "macc": accuracy.nanmean().item(),
        "aacc": (hit.sum().double() / reference.sum()).item(),
        "iou": iou.tolist(),
        "accuracy": accuracy.tolist(),
        "reference_pixels": reference.tolist(),
        "predicted_pixels": predicted.tolist(),
        "num_pixels": reference.sum().item(),
    }


class StreamingScores:
    """Scores of a data set that is seen once, picture by picture, with a 95 % interval of mIoU over pictures.

    Memory is K x K counts, 7 x K at boundaries (see `boundaries`) and R x 3 x K of a Poisson bootstrap, whatever the
    number of pictures. A replicate counts a picture as often as a Poisson(1) draw says; the draws depend on `seed` and
    the picture's index only, and all sums are integers, so any split over processes gives the same result, bit for bit
    (with one version of NumPy).

    Args:
        num_labels: K.
        ignore_index: label of pixels of the reference that do not count.
        num_replicates: R.
        seed: of the bootstrap, not negative.

    Raises:
        ValueError: `num_labels` or `num_replicates` is not positive.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, num_replicates: int = 200, seed: int = 0):
        if num_labels < 1 or num_replicates < 1:
            raise ValueError(f"{num_labels} labels and {num_replicates} replicates; at least 1 of each is wanted")
        self.settings = {
            "num_labels": num_labels,
            "ignore_index": ignore_index,
            "num_replicates": num_replicates,
            "seed": seed,
        }
        self.totals = {
            "counts": torch.zeros(num_labels, num_labels, dtype=torch.int64),
            "replicates": torch.zeros(num_replicates, 3, num_labels, dtype=torch.int64),
            "boundary_band": torch.zeros(3, num_labels, dtype=torch.int64),
            "boundary_contour": torch.zeros(4, num_labels, dtype=torch.int64),
            "num_pictures": torch.zeros((), dtype=torch.int64),
        }

    def update(self, label_map: Picture, reference: Picture, index: int) -> float:
        """Add a picture; see `confusion_counts` for maps and errors.

        Args:
            label_map: (H, W) predicted labels.
            reference: (H, W) labels.
            index: of the picture in the data set. Give every index once; this is not checked.

        Returns:
            mIoU of this picture alone; NaN if all of it is ignored.

        Raises:
            ValueError: `index` is negative. Nothing is added after any error.
        """
        if index < 0:
            raise ValueError(f"picture index is {index}; give its position in the data set, 0 or more")
        label_map, reference = load_pair(label_map, reference)
        rules = (self.settings["num_labels"], self.settings["ignore_index"])
        counts = confusion_counts(label_map, reference, *rules)
        band, contour = count_boundaries(label_map, reference, *rules)
        areas = label_areas(counts)  # (3, K)
        draws = np.random.default_rng((self.settings["seed"], index)).poisson(size=self.settings["num_replicates"])
        self.totals["counts"] += counts
        self.totals["replicates"] += torch.from_numpy(draws)[:, None, None] * areas  # (R, 3, K)
        self.totals["boundary_band"] += band
        self.totals["boundary_contour"] += contour
        self.totals["num_pictures"] += 1
        return label_iou(areas).nanmean().item()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of all sums, int64 on the CPU. The sum over processes of each is the state of all pictures."""
        return {name: total.clone() for name, total in self.totals.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take over a state, which must come from the same settings; ignore index and seed do not show in it.

        Raises:
            ValueError: other names or shapes.
        """
        found = {name: tuple(value.shape) for name, value in state.items()}
        wanted = {name: tuple(total.shape) for name, total in self.totals.items()}
        if found != wanted:
            raise ValueError(f"the state holds {found} instead of {wanted}; use its num_labels and num_replicates")
        for name, total in self.totals.items():
            total.copy_(state[name])

    def compute(self) -> dict[str, float | int | list]:
        """`scores` of all pictures, scores at boundaries, `num_pictures`, and `miou_interval`: [low, high].

        `boundary_iou`, `boundary_f1`: K floats, NaN for a label without boundaries in either map;
        `mean_boundary_iou`, `mean_boundary_f1`: over the other labels.
        The interval spans the 2.5th to the 97.5th percentile of mIoU over the replicates; those that drew nothing are
        left out, and without any it is [NaN, NaN]. With few pictures it is too narrow; of one it has no width.
        """
        replicates = label_iou(self.totals["replicates"]).nanmean(dim=-1)  # (R,)
        interval = replicates.nanquantile(replicates.new_tensor([0.025, 0.975]))
        band_iou, contour_f1 = label_iou(self.totals["boundary_band"]), boundary_f1(self.totals["boundary_contour"])
        return scores(self.totals["counts"]) | {
            "boundary_iou": band_iou.tolist(),
            "boundary_f1": contour_f1.tolist(),
            "mean_boundary_iou": band_iou.nanmean().item(),
            "mean_boundary_f1": contour_f1.nanmean().item(),
            "miou_interval": interval.tolist(),
            "num_pictures": self.totals["num_pictures"].item(),
        }


def joint_counts(label_map: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n,) prediction, reference and number of pixels of every pair of values that occurs in two int64 maps."""
    if label_map.size == 0:
        return (np.zeros(0, dtype=np.int64),) * 3
    low, span = label_map.min(), np.ptp(label_map) + 1
    codes, pixels = np.unique(reference * span + (label_map - low), return_counts=True)
    return codes % span + low, codes // span, pixels


__all__ = ["LABEL_SCORES", "StreamingScores", "confusion_counts", "scores"]
