# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Measuring: a whole data set in any number of processes, and the metrics themselves."""

from .evaluator import Evaluation, evaluate_samples
from .metrics import StreamingScores, confusion_counts, scores


def __getattr__(name: str):
    """`MeanIoU` needs optional packages, so it is imported when it is asked for."""
    if name == "MeanIoU":
        from .mean_iou import MeanIoU

        return MeanIoU
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# and MeanIoU, which `import *` would ask for
__all__ = ["Evaluation", "StreamingScores", "confusion_counts", "evaluate_samples", "scores"]
