# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The Hub: classes that save whole folders with cards, uploads as one commit, and the cards' texts."""

from .saving import QLSegForSemanticSegmentation, QLSegImageProcessor, QLSegViTBackbone
from .upload import prepare_repo, upload_folder

__all__ = ["QLSegForSemanticSegmentation", "QLSegImageProcessor", "QLSegViTBackbone", "prepare_repo", "upload_folder"]
