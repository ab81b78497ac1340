# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Data sets: layouts and tables as samples, label names, checks before training, augmentation, drawn scenes."""

from .datasets import Sample, open_dataset
from .label_names import read_label_file

__all__ = ["Sample", "open_dataset", "read_label_file"]
