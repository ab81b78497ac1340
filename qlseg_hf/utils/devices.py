# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a device computes fastest in, and how a network is put on it to infer alone."""

import torch
from torch import nn

from .distributed import gather_objects
from .text import first_line


def check_device(name: str) -> torch.device:
    """The device of this name; ValueError if this machine, or this build of PyTorch, has none."""
    try:
        device = torch.empty(0, device=name).device
    # PyTorch raises the first for CUDA that is not built in, the others for what it does not know or cannot reach
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"this machine has no device {name!r}: {first_line(error)}") from error
    if device.type == "meta":
        raise ValueError("nothing can be computed on the meta device; give cpu, or a GPU")
    return device


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


class PackedLinear(nn.Module):
    """A linear layer in bf16 on a CPU whose weight lies as oneDNN multiplies it, and not as it is stored.

    For inference alone. It gives the same numbers but for rounding. Its state holds the weight as it was.
    """

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
        self.bias = layer.bias

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out), bf16."""
        return torch.ops.mkldnn._linear_pointwise(hidden_states, self.packed, self.bias, "none", [], "")

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.packed.to_dense()


@torch.no_grad()
def place_for_inference(model: nn.Module, device: torch.device | str) -> nn.Module:
    """Move a network to a device where it is to infer alone.

    On a CPU with instructions for bf16 each linear layer in bf16 becomes one whose weight lies as oneDNN multiplies
    it, in as much memory; that one cannot be trained, moved or compiled. Else the network is moved, and no more.

    Args:
        model: changed in place. `state_dict` is as before.

    Returns:
        `model`.
    """
    model = model.to(device)
    if has_bf16(model.device) and model.device.type == "cpu" and torch.backends.mkldnn.is_available():
        for module in list(model.modules()):
            for name, layer in module.named_children():
                weight = layer.weight.data if type(layer) is nn.Linear else None
                if type(weight) is torch.Tensor and weight.dtype == torch.bfloat16:  # int8 ones are of another type
                    setattr(module, name, PackedLinear(layer))
    return model


__all__ = ["PackedLinear", "check_device", "fastest_dtype", "has_bf16", "place_for_inference"]
