"""Look before you train: what a data set holds, what would spoil training, and what to set."""

from .counting import add_to_tallies, count_values, is_no_label
from .labels import LabelReport, check_labels_of_dataset
from .sentences import ignored_label_error, range_error, score_warnings

__all__ = [
    "LabelReport",
    "add_to_tallies",
    "check_labels_of_dataset",
    "count_values",
    "ignored_label_error",
    "is_no_label",
    "range_error",
    "score_warnings",
]
