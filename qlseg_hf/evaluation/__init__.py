"""Measuring: a whole data set in any number of processes, and the metrics themselves."""

from .evaluator import Evaluation, evaluate_samples
from .metrics import MeanIoU, StreamingScores, confusion_counts, scores

__all__ = ["Evaluation", "MeanIoU", "StreamingScores", "confusion_counts", "evaluate_samples", "scores"]
