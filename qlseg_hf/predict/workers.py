# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What runs beside the network, in processes of their own: images are read and resized, and results are written."""

import errno
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import connection, forkserver, get_all_start_methods, get_context, parent_process
from typing import Any

import numpy as np
import torch

from ..model.image_io import load_picture, resize_picture
from ..model.processor_settings import Settings
from ..model.windows import window_layout
from ..utils.text import first_line
from .items import OPEN_TABLES, Item
from .queue import Resized
from .sinks import Output


@dataclass(frozen=True)
class Plan:
    """What each process needs to know.

    `is_resized`: whether images are resized here, or left to `segment`, which takes them within `max_memory_mb`.
    """

    settings: Settings
    scales: list[float]
    flip: bool
    max_windows: int | str | None
    is_resized: bool
    output: Output


@dataclass
class Prepared:
    """An image that was read. `picture`: (H, W, n), if it is still needed."""

    resized: Resized | None
    picture: np.ndarray | None

    @property
    def num_bytes(self) -> int:
        arrays = [*(self.resized.versions.values() if self.resized else ()), self.picture]
        return sum(array.nbytes for array in arrays if array is not None)


_plan: Plan | None = None


def prepare(item: Item) -> Prepared | str:
    """Read an image and resize it as the network needs it; or why that cannot be."""
    plan = _plan
    try:
        picture = load_picture(item.reader.read(), **plan.settings.reading)
        window_layout(plan.settings, picture.shape[:2], plan.scales, plan.flip, plan.max_windows)
        resized = resize_for_runs(picture, plan) if plan.is_resized else None
    except (EOFError, MemoryError, OSError, TypeError, ValueError) as error:
        return first_line(error)
    is_kept = resized is None or "overlay" in plan.output.formats
    return Prepared(resized, picture if is_kept else None)


def resize_for_runs(picture: np.ndarray, plan: Any) -> Resized:
    """An image as `WindowQueue.add` takes it. `plan`: has settings, scales, flip and max_windows."""
    size = picture.shape[:2]
    layout = window_layout(plan.settings, size, plan.scales, plan.flip, plan.max_windows)
    versions = {size: picture}
    for resized in {resized for resized, *_ in layout} - {size}:  # of the values of the parts that `segment` resizes
        versions[resized] = np.ascontiguousarray(resize_picture(picture, resized).permute(1, 2, 0).numpy())
    return Resized(size, {resized: versions[resized] for resized, *_ in layout})


def write(item: Item, picture: np.ndarray | None, labels: np.ndarray, confidence: np.ndarray | None) -> str | None:
    """Write the results of an image; or why that cannot be, if its name is too long for the file system.

    Raises:
        OSError: the results cannot be written, which is not the image's fault.
    """
    try:
        _plan.output.write(item, picture, labels, confidence)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return first_line(error)
    return None


def start(plan: Plan, tables: dict[str, Any] | None = None) -> None:
    """Make this process ready for `prepare` and `write`. `tables`: for OPEN_TABLES."""
    global _plan
    _plan = plan
    OPEN_TABLES.update(tables or {})


def _start_beside(plan: Plan, tables: dict[str, Any]) -> None:
    """As `start`, in a process that ends with the one that has begun it, and leaves Ctrl-C to that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start(plan, tables)


def _end_with_parent() -> None:
    connection.wait([parent_process().sentinel])
    os._exit(1)


class _Here:
    """An executor that does at once what it is given."""

    def submit(self, function: Callable, *arguments) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:  # raised where the result is asked for, as of an executor
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None:
        """Nothing runs."""


def _context():
    """How processes are begun: as forks of one that has imported this module, where there is such a thing."""
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload([__name__])  # imports torch once, not once per process
    return context


def begin_imports(num_workers: int) -> None:
    """Have another process import what workers need, while this one loads the network."""
    if num_workers > 0 and _context().get_start_method() == "forkserver":
        forkserver.ensure_running()


def make_executor(num_workers: int, plan: Plan) -> ProcessPoolExecutor | _Here:
    """`num_workers` processes ready for `prepare` and `write`; with 0, this one."""
    if num_workers == 0:
        start(plan)
        return _Here()
    return ProcessPoolExecutor(num_workers, _context(), _start_beside, (plan, dict(OPEN_TABLES)))


__all__ = [
    "Plan",
    "Prepared",
    "begin_imports",
    "make_executor",
    "prepare",
    "resize_for_runs",
    "start",
    "write",
]
