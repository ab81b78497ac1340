# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What is asked of `qlseg predict`, and what it did."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..utils.picture_files import is_picture
from .manifest import FAILURES

MOST_WORKERS = 8
MOST_READ_HERE = 4  # files, without a worker


@dataclass(frozen=True)
class Request:
    """What to segment, how, and what to write.

    Args:
        model: folder, Hub id, or a file of `qlseg export`.
        sources: see `find_items`.
        output: folder for results.
        formats: see `sinks`.
        labels: names or numbers; pixels of all other labels become void: 255, or 65535 if there are more than 255
            labels. They are not tinted, outlined or counted. All labels if not given.
        scales, flip, max_windows, max_memory_mb: see `segment`. With `max_memory_mb` an image is forwarded alone.
        do_resize: instead of the processor's: False segments images at their own resolution.
        dtype: of the network; "auto": as the results in `output` have it, else bfloat16 on devices that have
            instructions for it, else float32.
        batch_size: windows per forward pass; `segment`'s default if not given.
        batching: "exact" or "shared"; see `queue`.
        device: a GPU if there is one, else the CPU, if not given.
        workers: processes that read, resize and write; 0 for none beside this one; by the number of cores if not
            given.
        strict: stop at the first image that fails.
        image_column, split, dataset_config, max_frames: see `find_items`.
        left_out: folder in which no sources are looked for; `output` if not given.
    """

    model: str
    sources: tuple[str, ...]
    output: Path
    formats: tuple[str, ...] = ("labels", "overlay")
    labels: tuple[str, ...] | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    max_windows: int | None = None
    max_memory_mb: float | None = None
    do_resize: bool | None = None
    dtype: str = "float32"
    batch_size: int | None = None
    batching: str = "exact"
    device: str | None = None
    workers: int | None = None
    strict: bool = False
    image_column: str | None = None
    split: str | None = None
    dataset_config: str | None = None
    max_frames: int | None = None
    left_out: Path | None = None


@dataclass
class Summary:
    """Images that were segmented now, were done before, and failed."""

    num_done: int
    num_before: int
    num_failed: int


def num_workers(request: Request) -> int:
    """If not given, as many as cores that this process may use, shared by those of this machine; at most 8.

    None for a few files: a worker imports PyTorch first, which takes seconds, and reading an image a fraction of one.
    """
    if request.workers is not None:
        return request.workers
    if len(request.sources) <= MOST_READ_HERE and all(is_picture(s) and os.path.isfile(s) for s in request.sources):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def describe(summary: Summary, output: Path) -> str:
    """A line for people."""
    text = f"{summary.num_done} images segmented"
    if summary.num_before:
        text += f", {summary.num_before} were done before"
    if summary.num_failed:
        text += f", {summary.num_failed} failed: see {output / FAILURES}"
    return text


__all__ = ["Request", "Summary", "describe", "num_workers"]
