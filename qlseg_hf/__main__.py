# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`python -m qlseg_hf` is `qlseg`."""

from .cli.main import main

main()
