# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a device computes fastest in."""

import torch

from .distributed import gather_objects


def has_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bf16: GPUs from Ampere on, CPUs with AVX512-BF16 (all with AMX have both).

    Where there are none bf16 is emulated, and slower than fp32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def fastest_dtype(device: torch.device, world_size: int = 1) -> str:
    """ "bfloat16" if the devices of all processes have instructions for it, else "float32". Each has to come here."""
    return "bfloat16" if all(gather_objects(has_bf16(device), world_size)) else "float32"


__all__ = ["fastest_dtype", "has_bf16"]
