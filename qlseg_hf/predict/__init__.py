# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Segmenting many images: where they come from (`sources`, `tables`), how they share the network (`queue`), what is
written of them (`sinks`), what is done already (`manifest`), and the run that ties these together (`run`)."""
