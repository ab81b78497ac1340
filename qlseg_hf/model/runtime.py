# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What inference needs of PyTorch: modules in eval mode while it runs, the device it runs on, tensors made once."""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

import torch
from torch import nn

MOST_CACHED_BYTES = 64 << 20  # of each function whose tensors are kept

_mode_lock = threading.Lock()
_modes: dict[int, "_Modes"] = {}  # by id of the network, while somebody uses it


class _Modes:
    """A network in use, by how many calls, and its modules that were training when the first of them came."""

    def __init__(self, model: nn.Module):
        self.model, self.num_calls = model, 0
        self.training = [module for module in model.modules() if module.training]


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """All modules of a network in eval mode inside; afterwards each has the mode it had.

    Of several threads the first call sets the modes and the last one restores them. Where every module is in eval mode
    already, nothing is changed. Anything that is not a module (an exported network) has no modes.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    with _mode_lock:
        modes = _modes.setdefault(id(model), _Modes(model))
        modes.num_calls += 1
        for module in modes.training if modes.num_calls == 1 else ():
            module.training = False
    try:
        yield
    finally:
        with _mode_lock:
            modes.num_calls -= 1
            if modes.num_calls == 0:
                del _modes[id(model)]
                for module in modes.training:
                    module.training = True


def execution_device(model) -> torch.device:
    """Where a network computes; its weights may be on disk (then on the meta device) if accelerate offloads them."""
    if model.device.type != "meta":
        return model.device
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for one in (hook, *getattr(hook, "hooks", ())):
            if getattr(one, "execution_device", None) is not None:
                return torch.device(one.execution_device)
    raise ValueError("the model is on the meta device and has no weights; load them with from_pretrained")


def warn_if_compiled_wrongly(model) -> None:
    """UserWarning of a compiled network that computes in 16 bits on a CPU, where some C++ compilers break its kernels.

    GCC 12.2 with -O3 was seen to, where there is AVX-512: most numbers of the pixel encoder were others, some NaN.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else model.dtype
    if not isinstance(model, nn.Module) or model.device.type != "cpu" or dtype.itemsize != 2:
        return
    # what `torch.compile` gives, a `forward` that was compiled, and what `compile()` of a module leaves
    is_compiled = hasattr(model, "_orig_mod") or hasattr(model.forward, "_torchdynamo_orig_callable")
    is_compiled = is_compiled or any(getattr(module, "_compiled_call_impl", None) for module in model.modules())
    if is_compiled:
        warnings.warn(
            f"the network is compiled and computes in {str(dtype).removeprefix('torch.')} on a CPU, where some C++ "
            "compilers (GCC 12.2) make kernels that give wrong numbers; compare its label maps with those of the "
            "network as it is, or compile it in float32",
            stacklevel=4,  # who calls `segment`, which `no_grad` wraps
        )


def is_finite(x: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity: both show in its extremes, in 1/8 of the time of `isfinite`."""
    return x.numel() == 0 or bool(torch.stack(torch.aminmax(x)).isfinite().all())


class _Kept:
    """The newest results of a function, as many as fit into `MOST_CACHED_BYTES`; for any thread."""

    def __init__(self):
        self.lock, self.results, self.num_bytes = threading.Lock(), OrderedDict(), 0

    def get(self, key: tuple):
        with self.lock:
            if key in self.results:
                self.results.move_to_end(key)
            return self.results.get(key)

    def add(self, key: tuple, result) -> None:
        with self.lock:
            if key not in self.results:
                self.results[key] = result
                self.num_bytes += _num_bytes(result)
            while self.num_bytes > MOST_CACHED_BYTES:
                self.num_bytes -= _num_bytes(self.results.popitem(last=False)[1])

    def clear(self) -> None:
        with self.lock:
            self.results.clear()
            self.num_bytes = 0


def _num_bytes(result: torch.Tensor | tuple[torch.Tensor, ...]) -> int:
    return sum(part.nbytes for part in (result if isinstance(result, tuple) else (result,)))


def keep_tensors(function: Callable) -> Callable:
    """Decorator: keep the newest results, up to `MOST_CACHED_BYTES`, of a function of hashable arguments alone.

    The tensors may be used by any thread, with gradients or without, whatever mode they were made in. While a graph is
    traced the function runs as it stands, because a traced tensor must not outlive its graph.
    """
    kept = _Kept()

    @wraps(function)
    def lookup(*arguments):
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack():
            return function(*arguments)
        result = kept.get(arguments)
        if result is None:
            with torch.inference_mode(False), torch.no_grad():  # an inference tensor would not do for training
                result = function(*arguments)
            kept.add(arguments, result)
        return result

    lookup.cache_clear, lookup.kept = kept.clear, kept
    return lookup


__all__ = ["eval_mode", "execution_device", "is_finite", "keep_tensors", "warn_if_compiled_wrongly"]
