# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Memory that a process has freed: handed out again, or returned to the kernel."""

import ctypes
import os
import sys

SWITCH = "QLSEG_KEEP_FREED_MEMORY"  # "0" in the environment turns `keep_freed_memory_by_default` off


def keep_freed_memory(keep: bool) -> None:
    """Tell glibc whether to hand freed memory out again, or to return it to the kernel at once; nothing elsewhere.

    PyTorch's tensors on CPUs come from there. Large ones are otherwise returned when they are freed, and the kernel
    clears every page anew for the next layer.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        m_trim_threshold, m_mmap_threshold = -1, -3
        for option in (m_trim_threshold, m_mmap_threshold):
            mallopt(option, 2**31 - 1 if keep else 1 << 17)


def keep_freed_memory_by_default() -> None:
    """`keep_freed_memory(True)`, for a command that runs a network; unless the environment says otherwise.

    That is `QLSEG_KEEP_FREED_MEMORY=0`, or a setting of glibc's own: `MALLOC_MMAP_THRESHOLD_`,
    `MALLOC_TRIM_THRESHOLD_`, or `glibc.malloc` in `GLIBC_TUNABLES`.
    """
    own = any(f"MALLOC_{name}_THRESHOLD_" in os.environ for name in ("MMAP", "TRIM"))
    own = own or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if not own and os.environ.get(SWITCH) != "0":
        keep_freed_memory(True)


__all__ = ["SWITCH", "keep_freed_memory", "keep_freed_memory_by_default"]
