# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the published implementation: reading a stranger's file, its configuration text, the key table."""

from .convert import convert_file
from .errors import ConversionError

__all__ = ["ConversionError", "convert_file"]
