# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The queue before the network: windows of several images share forward passes, with results as if none did.

`segment` forwards the windows of an image in batches of `batch_size` and a rest. How a matrix product rounds depends
on the machine, the precision and the size of the batch: on many CPUs, fp32 rounds another way for two windows than for
one, bf16 does not. So whether windows of different images may share a pass is tried, once for each size of windows:
random windows are forwarded in batches of every size, and only if each gives the same bits in all of them are batches
filled up across images ("exact"). Else each image is forwarded in the batches in which `segment` forwards it. Either
way label maps equal `segment`'s. "shared" always fills up batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..model.memory import MemoryPlan
from ..model.request import Request
from ..model.runtime import eval_mode, execution_device
from ..model.segmentation import Strip, Target, cut_strips, finish_strip
from ..model.windows import Window, forward_windows, window_pixels

IMAGES_BEFORE_TRIAL = 16  # of one size of windows, whose last batch was not full: fewer do not pay for the trial
BATCHES_WAITING = 4  # at most, of all sizes of windows together


@dataclass
class Resized:
    """An image as the network needs it: its size, and itself resized to the size of each run, (h, w, n)."""

    size: tuple[int, int]
    versions: dict[tuple[int, int], np.ndarray]


@dataclass
class Result:
    """(H, W) int64 label map, and (H, W) fp32 confidence in [0, 1] if asked for. `key`: what `add` was given."""

    key: Any
    label_map: torch.Tensor
    confidence: torch.Tensor | None


@dataclass
class _Job:
    """An image in the queue."""

    key: Any
    strip: Strip
    num_missing: int  # windows that are not forwarded


_Entry = tuple[_Job, tuple[Window, torch.Tensor]]


class WindowQueue:
    """Takes images in, gives label maps out, in any order.

    Args:
        model: in eval mode or not; dropout is off.
        request: settings, scales, flip, and whether confidence is wanted, as `segment` has them.
        batch_size: windows per forward pass.
        batching: "exact" or "shared"; see above.
    """

    def __init__(self, model: PreTrainedModel, request: Request, batch_size: int, batching: str = "exact"):
        self.model, self.request, self.batch_size, self.batching = model, request, batch_size, batching
        self.device = execution_device(model)
        self.memory = MemoryPlan(model.config, batch_size, None, getattr(model, "patch_size", None))
        self.waiting: dict[tuple, list[_Entry]] = {}  # for a full batch, by size of windows
        self.rests: dict[tuple, int] = {}  # images whose last batch was not full, by size of windows
        self.may_share: dict[tuple, bool] = {}
        self.finished: list[Result] = []

    @torch.no_grad()
    def add(self, key: Any, image: Resized) -> Iterator[Result]:
        """Take an image in; yields what is finished with it."""
        target = Target(image.size)
        (strip,) = cut_strips(self.request, target, self.memory)
        pixels = [
            entry
            for run in strip.runs
            for entry in window_pixels(self.request.settings, image.versions[run.size], [run])
        ]
        job = _Job(key, strip, len(pixels))
        with eval_mode(self.model):
            for start, stop in _batches(pixels, self.batch_size):
                self._take([(job, window) for window in pixels[start:stop]])
        yield from self._pop_finished()

    @torch.no_grad()
    def flush(self) -> Iterator[Result]:
        """Forward all that waits; yields what is finished with it."""
        with eval_mode(self.model):
            while self.waiting:
                self._forward(self.waiting.pop(next(iter(self.waiting))))
        yield from self._pop_finished()

    def _take(self, batch: list[_Entry]) -> None:
        """Forward a batch of one image, or let it wait for windows of others."""
        shape = tuple(batch[0][1][1].shape)
        if len(batch) == self.batch_size or not self._may_share(shape):
            self._forward(batch)
            return
        for entry in batch:
            self.waiting.setdefault(shape, []).append(entry)
            if len(self.waiting[shape]) == self.batch_size:
                self._forward(self.waiting.pop(shape))
        if sum(map(len, self.waiting.values())) > BATCHES_WAITING * self.batch_size:
            self._forward(self.waiting.pop(next(iter(self.waiting))))

    def _may_share(self, shape: tuple) -> bool:
        """Whether windows of this shape may be forwarded together with those of other images."""
        if self.batching == "shared" or self.batch_size == 1:
            return self.batching == "shared"
        self.rests[shape] = self.rests.get(shape, 0) + 1
        if self.rests[shape] < IMAGES_BEFORE_TRIAL:
            return False
        if shape not in self.may_share:
            self.may_share[shape] = rounds_alike(self.model, shape, self.batch_size)
        return self.may_share[shape]

    def _forward(self, batch: list[_Entry]) -> None:
        """One forward pass; images that have all of their windows become label maps."""
        forward_windows(self.model, [window for _, window in batch])
        for job, _ in batch:
            job.num_missing -= 1
            if job.num_missing == 0:
                with torch.autocast(self.device.type, enabled=False):  # scores are made in fp32, as `segment` does
                    finish_strip(job.strip, self.request)
                target = job.strip.target
                self.finished.append(Result(job.key, target.label_map, target.confidence))

    def _pop_finished(self) -> list[Result]:
        finished, self.finished = self.finished, []
        return finished


def _batches(pixels: list[tuple[Window, torch.Tensor]], batch_size: int) -> Iterator[tuple[int, int]]:
    """The batches in which `segment` forwards the windows of an image: of one shape, and full but for the last."""
    start = 0
    for index in range(1, len(pixels) + 1):
        is_full = index - start == batch_size
        if index == len(pixels) or is_full or pixels[index][1].shape != pixels[start][1].shape:
            yield start, index
            start = index


@torch.no_grad()
def rounds_alike(model: PreTrainedModel, shape: tuple, batch_size: int) -> bool:
    """Whether a window gives the same bits in batches of 1 to `batch_size`, at every place of each.

    Args:
        model: in eval mode.
        shape: (n, height, width) of the windows.
        batch_size: of the largest batch, at least 2.
    """
    draw = torch.Generator().manual_seed(0)
    windows = torch.randn(batch_size, *shape, generator=draw).to(execution_device(model), model.dtype)

    def outputs(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = model(pixel_values=batch, output_logits=False)
        return found.class_queries_logits, found.masks_queries_logits

    alone = [outputs(window[None]) for window in windows]
    return all(
        torch.equal(together[place], one[0])
        for count in range(2, batch_size + 1)
        for kind, whole in enumerate(outputs(windows[:count]))
        for place, (together, one) in enumerate((whole, pair[kind]) for pair in alone[:count])
    )


__all__ = ["Resized", "Result", "WindowQueue", "rounds_alike"]
