# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""mIoU as a metric of the package `evaluate`; reached as `qlseg_hf.evaluation.MeanIoU`."""

import numpy as np
import torch

from ..utils.optional import import_package
from .metrics import joint_counts, load_pair, pair_codes, scores

datasets = import_package("datasets", "Features", "MeanIoU", "'qlseg-hf[train]'")
evaluate = import_package("evaluate", "Metric", "MeanIoU", "'qlseg-hf[train]'")


class MeanIoU(evaluate.Metric):  # type: ignore[name-defined]  # a module found when this one is imported
    """The Hub's `mean_iou` metric, from this file's counts: same arguments, same result, offline.

    Needs the package `evaluate`. Of a picture only the number of
    pixels per pair of (prediction, reference) is kept, not the maps, so sizes may differ and a picture takes 24 bytes
    per pair that occurs in it; `evaluate` holds them on disk and joins processes (`num_process`, `process_id`).

    Deviations from the Hub's: a value outside the labels is refused, where the Hub's leaves it out of some
    sums; with `reduce_labels` label 0 becomes `ignore_index`, where the Hub's writes 255 whatever is ignored.
    """

    def _info(self):
        pairs = {  # of one picture, n pairs
            "predictions": datasets.Sequence(datasets.Value("int64")),  # (n,) label
            "references": datasets.Sequence(datasets.Sequence(datasets.Value("int64"))),  # (n, 2) label, pixels
        }
        return evaluate.MetricInfo(
            description="Mean IoU, mean and overall accuracy of label maps.",
            citation="",
            inputs_description="",
            features=datasets.Features(pairs),
        )

    def add_batch(self, *, predictions=None, references=None):
        """Add pictures.

        Args:
            predictions: sequence of label maps, each (H, W) of its own size: what `load_label_map` reads, or nested
                lists.
            references: as many, each of its prediction's size.

        Raises:
            ValueError: one is missing, their numbers differ, or the sizes of a pair differ.
        """
        given = [None if maps is None else len(maps) for maps in (predictions, references)]
        if None in given or given[0] != given[1]:
            raise ValueError(f"there are {given[0]} predictions and {given[1]} references; one each is wanted")
        pairs = [joint_counts(*load_pair(*maps)) for maps in zip(predictions, references)]
        super().add_batch(
            predictions=[labels.tolist() for labels, _, _ in pairs],
            references=[np.stack([values, pixels], axis=1).tolist() for _, values, pixels in pairs],
        )

    def add(self, *, prediction=None, reference=None):
        """Add one picture; see `add_batch`."""
        self.add_batch(predictions=[prediction], references=[reference])

    def compute(
        self,
        *,
        num_labels: int,
        ignore_index: int,
        predictions=None,
        references=None,
        nan_to_num: float | None = None,
        label_map: dict[int, int] | None = None,
        reduce_labels: bool = False,
    ) -> dict[str, np.float64 | np.ndarray] | None:
        """Scores of all pictures added since the last call, and of those given here.

        Args:
            num_labels: K.
            ignore_index: label of pixels of the reference that do not count.
            predictions: of further pictures; see `add_batch`.
            references: of further pictures.
            nan_to_num: takes the place of NaN in the result; the means are taken before.
            label_map: {stored reference: label}, applied first and at once; other values stay. The name is
                that of `evaluate`'s `mean_iou`; the processor calls it `label_mapping`.
            reduce_labels: in the references, 0 becomes `ignore_index` and the others are lowered by one.

        Returns:
            `mean_iou`, `mean_accuracy`, `overall_accuracy`: fp64 in [0, 1]. `per_category_iou`,
            `per_category_accuracy`: (K,) fp64. What is NaN and when: see `scores`. None if `process_id` is not 0.

        Raises:
            ValueError: a pixel that counts has a value outside 0..K-1, nothing was added, or `reduce_labels` goes with
                ignore index 0.
        """
        if reduce_labels and ignore_index == 0:
            raise ValueError("with reduce_labels label 1 becomes 0, so ignore_index cannot be 0; use 255")
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        return super().compute(
            num_labels=num_labels,
            ignore_index=ignore_index,
            nan_to_num=nan_to_num,
            label_map=label_map,
            reduce_labels=reduce_labels,
        )

    def _compute(self, predictions, references, num_labels, ignore_index, nan_to_num, label_map, reduce_labels):
        labels = np.concatenate([np.asarray(row, dtype=np.int64) for row in predictions])  # (n,)
        pairs = np.concatenate([np.asarray(row, dtype=np.int64).reshape(-1, 2) for row in references])  # (n, 2)
        stored, pixels = pairs.T
        values = stored.copy()
        for old, new in (label_map or {}).items():
            values[stored == int(old)] = int(new)
        if reduce_labels:
            values = np.where((values == 0) | (values == ignore_index), ignore_index, values - 1)
        counted = values != ignore_index
        codes = pair_codes(labels[counted], values[counted], num_labels, ignore_index)
        # the fp64 sums of bincount are exact up to 2^53 pixels
        counts = np.bincount(codes, weights=pixels[counted], minlength=num_labels**2).astype(np.int64)
        found = scores(torch.from_numpy(counts).view(num_labels, num_labels))
        result = {
            "mean_iou": np.float64(found["miou"]),
            "mean_accuracy": np.float64(found["macc"]),
            "overall_accuracy": np.float64(found["aacc"]),
            "per_category_iou": np.array(found["iou"]),
            "per_category_accuracy": np.array(found["accuracy"]),
        }
        if nan_to_num is not None:
            result = {name: np.nan_to_num(value, nan=nan_to_num) for name, value in result.items()}
        return result


__all__ = ["MeanIoU"]
