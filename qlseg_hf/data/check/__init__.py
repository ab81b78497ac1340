# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Look before you train: what a data set holds, what would spoil training, and what to set."""

from .counting import add_to_tallies, count_values, is_no_label
from .labels import LabelReport, check_labels_of_dataset
from .run import survey_data
from .sentences import ignored_label_error, range_error, score_warnings
from .suggestions import suggest_crop_size, suggest_label_weights
from .survey import DataRequest, Survey

__all__ = [
    "DataRequest",
    "LabelReport",
    "Survey",
    "add_to_tallies",
    "check_labels_of_dataset",
    "count_values",
    "ignored_label_error",
    "is_no_label",
    "range_error",
    "score_warnings",
    "suggest_label_weights",
    "suggest_crop_size",
    "survey_data",
]
