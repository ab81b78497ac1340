# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The error of the converter."""


class ConversionError(ValueError):
    """A sentence for the user: what is wrong with the checkpoint or the arguments."""


__all__ = ["ConversionError"]
