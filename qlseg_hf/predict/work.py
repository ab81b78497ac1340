# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The images of one process on their way: read beside, segmented here, written beside, noted in the manifest."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from ..model.image_processing_qlseg import QLSegImageProcessor
from ..model.request import Request as SegmentRequest
from ..model.segmentation import segment
from ..utils.files import remove_partial
from ..utils.text import first_line
from .items import Item
from .manifest import Manifest
from .queue import Result, WindowQueue
from .raster import is_blockwise, segment_raster
from .request import Request, num_workers
from .sinks import Output
from .video import is_video, segment_video, video_paths
from .workers import Plan, Prepared, make_executor, prepare, write

BYTES_AHEAD = 1 << 30  # of images that were read and wait for the network


class Work:
    """The images of this process on their way from reading to writing.

    Args:
        request, plan: what to do.
        network: model, on its device, and processor.
        manifest: where what was done is noted.
    """

    def __init__(
        self, request: Request, network: tuple[PreTrainedModel, QLSegImageProcessor], plan: Plan, manifest: Manifest
    ):
        (self.model, self.processor), self.request, self.plan, self.manifest = network, request, plan, manifest
        self.num_done = self.num_failed = 0
        self.now = ""  # the video or raster that is segmented, and how far it is
        self.num_workers = num_workers(request)
        self.batch_size = request.batch_size or (2 if self.model.device.type == "cpu" else 8)
        self.with_confidence = "confidence" in plan.output.formats
        self.queue = self._make_queue()
        self.pictures: dict[str, np.ndarray | None] = {}  # of images in the queue
        self.writing: deque[tuple[Item, tuple[int, int], Future]] = deque()
        self.largest = 1  # bytes of an image that was read

    def _make_queue(self) -> WindowQueue:
        plan = self.plan
        wanted = SegmentRequest(
            plan.settings, plan.scales, plan.flip, None, plan.max_windows, False, self.with_confidence
        )
        return WindowQueue(self.model, wanted, self.batch_size, self.request.batching)

    @contextmanager
    def executor_running(self) -> Iterator[None]:
        self.executor = make_executor(self.num_workers, self.plan)
        try:
            yield
        finally:
            self.executor.shutdown(wait=True, cancel_futures=True)
            self.manifest.close()

    def steps(self, items: list[Item]) -> Iterator[bool]:
        """Work; yields True after each image that was read, and while others are written."""
        for folder in {path.parent for item in items for path in result_paths(item, self.plan.output)}:
            remove_partial(folder)
        plan = self.plan
        how = (plan.settings, plan.scales, plan.flip, plan.output.formats)
        streamed = [item for item in items if is_video(item) or is_blockwise(item, *how)]
        yield from self._segment_streamed(streamed)
        self.now = ""
        left = {item.name for item in streamed}
        for item, prepared in self._read([item for item in items if item.name not in left]):
            if isinstance(prepared, str):
                self._fail(item, prepared)
            else:
                for result in self._segment(item, prepared):
                    self._write(result)
            self._take_written(2 * self.num_workers)
            yield True
        for result in self.queue.flush():
            self._write(result)
        while self.writing:
            self._take_written(len(self.writing) - 1)
            yield True

    def _segment_streamed(self, items: list[Item]) -> Iterator[bool]:
        """Segment videos frame by frame and rasters block by block, one after the other."""
        for item in items:
            try:
                if is_video(item):
                    steps = segment_video(item, self._make_queue(), self.plan.output)
                else:
                    steps = segment_raster(item, self.model, self.queue.request, self.batch_size, self.plan.output)
                while isinstance(size := next(steps), str):
                    self.now = f"{item.name} {size}"
                    yield True
            except ValueError as error:
                self._fail(item, first_line(error))
                continue
            self.manifest.add(item, self.plan.output.formats, *size)
            self.num_done += 1
            yield True

    def _read(self, items: list[Item]) -> Iterator[tuple[Item, Prepared | str]]:
        """Images in their order, some of them read ahead."""
        reading: deque[tuple[Item, Future]] = deque()
        left = iter(items)
        while True:
            while len(reading) < self._num_ahead() and (item := next(left, None)) is not None:
                reading.append((item, self.executor.submit(prepare, item)))
            if not reading:
                return
            item, future = reading.popleft()
            prepared = future.result()
            if isinstance(prepared, Prepared):
                self.largest = max(self.largest, prepared.num_bytes)
            yield item, prepared

    def _num_ahead(self) -> int:
        """How many images are read or wait, so that those of the largest size known so far take `BYTES_AHEAD`."""
        return max(1, min(2 * self.num_workers + 2 * (self.num_workers > 0), BYTES_AHEAD // self.largest))

    def _segment(self, item: Item, prepared: Prepared) -> Iterator[Result]:
        """Give an image to the queue; yields label maps that are finished, of this image or others."""
        self.pictures[item.name] = prepared.picture
        if prepared.resized is not None:
            yield from self.queue.add(item, prepared.resized)
            return
        try:
            found = segment(
                self.model,
                self.processor,
                prepared.picture,
                scales=self.plan.scales,
                flip=self.plan.flip,
                window_batch_size=self.batch_size,
                max_memory_mb=self.request.max_memory_mb,
                max_windows=self.plan.max_windows,
                return_confidence=self.with_confidence,
            )
        except ValueError as error:  # too little memory for this image
            self._fail(item, first_line(error))
            return
        maps, confidences = found if self.with_confidence else (found, [None])
        yield Result(item, maps[0], confidences[0])

    def _write(self, result: Result) -> None:
        """Hand a label map over to be written."""
        item = result.key
        picture, labels = self.pictures.pop(item.name), self.plan.output.select(result.label_map.numpy())
        confidence = None
        if result.confidence is not None:
            confidence = (255 * result.confidence).round().to(torch.uint8).numpy()
        self.writing.append((item, labels.shape, self.executor.submit(write, item, picture, labels, confidence)))

    def _take_written(self, most_left: int) -> None:
        """Note what has been written; waits until at most `most_left` images are being written."""
        while self.writing and (len(self.writing) > most_left or self.writing[0][2].done()):
            item, (height, width), future = self.writing.popleft()
            if reason := future.result():
                self._fail(item, reason)
                continue
            self.manifest.add(item, self.plan.output.formats, height, width)
            self.num_done += 1

    def _fail(self, item: Item, reason: str) -> None:
        self.pictures.pop(item.name, None)
        self.manifest.add_failure(item, reason)
        self.num_failed += 1
        if self.request.strict:
            raise ValueError(f"{item.source}: {reason}")


def result_paths(item: Item, output: Output) -> list[Path]:
    """The files that an image or video leaves."""
    return video_paths(output, item.name) if is_video(item) else output.paths(item.name)


__all__ = ["Work", "result_paths"]
