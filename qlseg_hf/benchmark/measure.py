# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Measuring time and memory: variants take turns, and a ratio is the median over the turns."""

import copy
import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from ..utils.memory import keep_freed_memory
from .settings import Settings

Rows = Iterator[tuple[str, dict]]  # what a mode yields while it measures: names, and the numbers of each
COLUMNS = ("seconds", "range", "ratio", "peak_mib")  # of a table; other numbers of a row stand in the last one
MIB = 2**20


class Peak:
    """What `peak_memory` found, in bytes."""

    peak_bytes = 0


@contextmanager
def peak_memory(device: torch.device | None = None) -> Iterator[Peak]:
    """Peak of memory inside the block above what was held before, on a GPU or (Linux) of the process."""
    found = Peak()
    gc.collect()
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found.peak_bytes = torch.cuda.max_memory_allocated(device) - before
        return
    ctypes.CDLL(None).malloc_trim(0)  # memory that was freed, but that the C library keeps
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    yield found
    found.peak_bytes = resident("VmHWM") - before


def resident(key: str) -> int:
    """Bytes of resident memory of this process: "VmRSS" now, "VmHWM" at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def clock() -> Callable[[], float]:
    """Of CPUs: CPU seconds of this process where it computes in one thread, whatever else runs there; else seconds."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def seconds(function: Callable, device: torch.device) -> float:
    """Of one call; see `clock`."""
    if device.type != "cuda":
        now = clock()
        started = now()
        function()
        return now() - started
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1000


def take_turns(variants: dict[str, Callable], baseline: str, repeats: int, device: torch.device) -> dict[str, dict]:
    """Time the variants in turns; per variant seconds (median, range, each), peak MiB, ratio to the baseline.

    Freed memory is kept while times are taken, as commands do, or what is timed is the kernel; it is returned while
    memory is measured, so that resident memory is what tensors and libraries hold.
    """
    memory = {}
    keep_freed_memory(False)
    for name, function in tqdm(variants.items(), desc="warm-up", leave=False):
        function()
        with peak_memory(device) as peak:
            function()
        memory[name] = peak.peak_bytes / MIB
    keep_freed_memory(True)
    times = {name: [] for name in variants}
    for _ in tqdm(range(repeats), desc="turns", leave=False):
        for name, function in variants.items():
            times[name].append(seconds(function, device))
    return {
        name: {
            "seconds": statistics.median(found),
            "range": [min(found), max(found)],
            "each": found,
            "ratio": statistics.median(a / b for a, b in zip(found, times[baseline])),
            "peak_mib": memory[name],
        }
        for name, found in times.items()
    }


def compile_checked(
    settings: Settings, networks: dict[str, torch.nn.Module], pixels: torch.Tensor
) -> dict[str, Callable]:
    """Networks by name, compiled; ValueError if one gives other numbers than as it is."""
    torch._dynamo.reset()  # beyond 8 compiled variants of a function PyTorch runs it as it is
    compiled = {name: torch.compile(network, backend=settings.backend) for name, network in networks.items()}
    for name, network in networks.items():
        check_compiled(f"{name} in {pixels.dtype}", network, compiled[name], pixels)
    return compiled


@torch.inference_mode()
def check_compiled(name: str, network: torch.nn.Module, compiled: Callable, pixels: torch.Tensor) -> None:
    """ValueError if a network gives other numbers compiled than as it is: its time would say nothing.

    How far each is off is told by the same weights in fp32, as a share of the deviation of each output. A compiled
    network may be off by twice as much as the network as it is, which rounds elsewhere, and by 1 % more.
    """
    wanted = list(_tensors(copy.deepcopy(network).float()(pixel_values=pixels.float())))

    def largest_error(outputs) -> float:
        errors = [
            (found.float() - exact).square().mean().sqrt() / exact.std().clamp(min=1e-12)
            for found, exact in zip(_tensors(outputs), wanted, strict=True)
        ]
        return float(torch.stack(errors).max())  # NaN if one is

    plain, own = largest_error(network(pixel_values=pixels)), largest_error(compiled(pixel_values=pixels))
    if not own <= 2 * plain + 0.01:
        raise ValueError(
            f"{name} gives other numbers compiled than as it is: off by {own:.2g} of their deviation from fp32, and "
            f"as it is by {plain:.2g}; leave --compile out, or try --dtype fp32 or another C++ compiler (GCC 12.2 "
            "breaks kernels of 16 bits)"
        )


def _tensors(outputs) -> Iterator[torch.Tensor]:
    """The floating-point tensors in what a network returns."""
    if isinstance(outputs, torch.Tensor):
        yield from [outputs] if outputs.is_floating_point() else []
    elif outputs is not None:
        for part in outputs.values() if isinstance(outputs, dict) else outputs:
            yield from _tensors(part)


def return_freed_memory(function: Callable) -> Callable:
    """`function` with its freed memory returned to the kernel, as a variant of `take_turns`, which keeps it."""

    def run():
        keep_freed_memory(False)
        function()
        keep_freed_memory(True)

    return run


def machine(device: torch.device) -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": "CUDA events" if device.type == "cuda" else clock().__name__,
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def table(rows: Iterable[tuple[str, dict]]) -> str:
    """Markdown of what modes yield; lists are left to the JSON file."""
    lines = []
    for name, row in rows:
        cells = {key: f"{row[key]:.4g}" if key in row else "" for key in COLUMNS if key != "range"}
        cells["range"] = " .. ".join(f"{value:.4g}" for value in row.get("range", ()))
        more = {key: value for key, value in row.items() if key not in COLUMNS and not isinstance(value, list)}
        texts = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in more.items()]
        lines.append([name, *(cells[key] for key in COLUMNS), ", ".join(texts)])
    return markdown(["what", "seconds", "range", "ratio", "peak MiB", "more"], lines)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)] + [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


__all__ = [
    "Rows",
    "check_compiled",
    "clock",
    "compile_checked",
    "machine",
    "markdown",
    "peak_memory",
    "return_freed_memory",
    "seconds",
    "table",
    "take_turns",
]
