# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Imported before all else: a torchvision on PYTHONPATH that does not fit torch is made to (see the tests' helper)."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("torchvision") is not None:
    sys.path.append(str(Path(__file__).parents[2] / "tests" / "helpers"))
    import matching_torchvision  # noqa: F401

__all__: list[str] = []
