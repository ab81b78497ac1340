# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The network and its inference: exactly what is copied beside saved weights, so it imports nothing of the package."""
