"""`qlseg predict`: many images, in one process or several, that goes on where it was stopped."""

import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from ..hub.loading import load_network
from ..model.image_processing_qlseg import QLSegImageProcessor
from ..model.segmentation import Request as SegmentRequest
from ..model.segmentation import label_numbers, scale_factors, segment
from ..utils.distributed import deaths_reported, exchanged, failing_together, joined_processes
from ..utils.files import lock_folder, remove_partial
from ..utils.hashing import json_sha256, weights_sha256
from ..utils.text import first_line, printable
from ..utils.visualization import label_colors
from .items import Item, SourceOptions
from .manifest import FAILURES, Manifest
from .queue import Result, WindowQueue
from .raster import is_blockwise, segment_raster
from .sinks import Output, check_formats, write_tables
from .sources import find_items
from .workers import Failure, Plan, Prepared, begin_imports, make_executor, prepare, write

SECONDS_OF_A_ROUND = 10.0  # after which processes tell each other how far they are
BYTES_AHEAD = 1 << 30  # of images that were read and wait for the network
MOST_WORKERS = 8
# of the processor; the others are for label maps that are read
PIXEL_SETTINGS = ("do_resize", "size", "default_to_square", "do_sliding_window", "window_size", "window_stride")
PIXEL_SETTINGS += ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


@dataclass(frozen=True)
class Request:
    """What to segment, how, and what to write.

    Args:
        model: folder or Hub id.
        sources: see `find_items`.
        output: folder for results.
        formats: see `sinks`.
        labels: names or numbers; pixels of all other labels become void: 255, or 65535 if there are more than 255
            labels. They are not tinted, outlined or counted. All labels if not given.
        scales, flip, max_windows, max_memory_mb: see `segment`. With `max_memory_mb` an image is forwarded alone.
        do_resize: instead of the processor's: False segments images at their own resolution.
        dtype: of the network; "auto" takes bfloat16 on GPUs that have it, else float32.
        batch_size: windows per forward pass; `segment`'s default if not given.
        batching: "exact" or "shared"; see `queue`.
        device: a GPU if there is one, else the CPU, if not given.
        workers: processes that read, resize and write; 0 for none beside this one; by the number of cores if not
            given.
        strict: stop at the first image that fails.
        image_column, split, dataset_config: see `find_items`.
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


@dataclass
class Summary:
    """Images that were segmented now, were done before, and failed."""

    num_done: int
    num_before: int
    num_failed: int


@dataclass(frozen=True)
class _Place:
    """This process among those of the run."""

    rank: int = 0
    world_size: int = 1
    device: str | None = None


def predict(request: Request) -> Summary:
    """Segment all images of the sources, and write what is asked for; images that fail are listed and passed over.

    In the processes that a launcher has started each image is segmented once, by one of them. The same call goes on
    where a run was stopped, by whatever.

    Raises:
        ValueError: a source, an option or the model does not fit, or the folder holds results of other settings;
            nothing is written then. With `strict`, an image failed.
        OSError: results cannot be written, or a worker died.
        OtherProcessError: another process failed; that one raises, and says, why.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return _predict(request, _Place(device=request.device))
    state = joined_processes()
    try:
        with deaths_reported():
            device = request.device or str(state.device)
            return _predict(request, _Place(state.process_index, state.num_processes, device))
    finally:
        state.destroy_process_group()


def _predict(request: Request, place: _Place) -> Summary:
    begin_imports(_num_workers(request))
    with failing_together(place.world_size):
        model, processor, plan, settings = _load(request, place)
        options = SourceOptions(request.image_column, request.split, request.dataset_config, request.output)
        items, notes = find_items(list(request.sources), options)
    with failing_together(place.world_size):
        known = exchanged(json_sha256([item.name for item in items]), place.world_size)
        if len(set(known)) > 1:
            raise ValueError("the processes see different images; wait until the sources no longer change")
    manifest, missing = Manifest(request.output, place.rank), None
    with failing_together(place.world_size):
        if place.rank == 0:
            for note in notes:
                print(f"note: {printable(note)}", file=sys.stderr)
            lock_folder(request.output)
            manifest.open(settings)
            missing = [i for i, item in enumerate(items) if not _is_done(item, manifest, plan.output)]
            manifest.write_failures(items[i].name for i in missing)
    missing = exchanged(missing, place.world_size)[0]
    mine = [items[i] for i in missing[place.rank :: place.world_size]]
    work = _Work(request, (model, processor), plan, manifest)
    _work_in_rounds(work, mine, place, len(items), len(items) - len(missing))
    with failing_together(place.world_size):
        if place.rank == 0:
            manifest.join()
            manifest.write_failures()
            write_tables(plan.output, [entry for _, entry in sorted(manifest.entries.items())])
    totals = [sum(counts) for counts in zip(*exchanged((work.num_done, work.num_failed), place.world_size))]
    return Summary(totals[0], len(items) - len(missing), totals[1])


def _is_done(item: Item, manifest: Manifest, output: Output) -> bool:
    return manifest.is_done(item, output.formats, output.paths(item.name))


def _load(request: Request, place: _Place) -> tuple[PreTrainedModel, QLSegImageProcessor, Plan, dict[str, Any]]:
    """Network and processor, what workers need to know, and the settings that decide what the results are."""
    formats = check_formats(request.formats)
    device = torch.device(place.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = request.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    rules = {} if request.do_resize is None else {"do_resize": request.do_resize}
    model, processor = load_network(request.model, rules, dtype=getattr(torch, dtype))
    processor_settings, config = processor.settings(), model.config
    processor_settings.check_network(config)
    names = tuple(config.id2label[label] for label in range(config.num_labels))
    wanted = None
    if request.labels is not None:
        given = [int(label) if label.isdecimal() and label not in names else label for label in request.labels]
        wanted = sorted(label_numbers(given, config.id2label))
    output = Output(request.output, formats, names, label_colors(config), wanted)
    max_windows = "auto" if request.max_windows is None else request.max_windows
    scales = scale_factors(request.scales)
    plan = Plan(processor_settings, scales, request.flip, max_windows, request.max_memory_mb is None, output)
    settings = {
        "weights_sha256": weights_sha256(model),
        "processor": {key: value for key, value in processor.to_dict().items() if key in PIXEL_SETTINGS},
        "labels": wanted,
        "scales": scales,
        "flip": request.flip,
        "dtype": dtype,
    }
    return model.to(device), processor, plan, settings


def _work_in_rounds(work: "_Work", mine: list[Item], place: _Place, total: int, num_before: int) -> None:
    """Segment what is this process's, and show how far all of them are; all stop when one fails."""
    seconds = SECONDS_OF_A_ROUND if place.world_size > 1 else 0.0
    steps, is_finished = work.steps(mine), False
    bar = tqdm(total=total, initial=num_before, unit="image", disable=place.rank > 0)
    with bar, work.executor_running():
        while True:
            with failing_together(place.world_size), _memory_explained():
                end = time.monotonic() + seconds
                while not is_finished:
                    is_finished = next(steps, None) is None
                    if time.monotonic() >= end:
                        break
            states = exchanged((is_finished, work.num_done, work.num_failed), place.world_size)
            num_failed = sum(failed for *_, failed in states)
            bar.set_postfix({"failed": num_failed} if num_failed else {}, refresh=False)
            bar.update(num_before + num_failed + sum(done for _, done, _ in states) - bar.n)
            if all(finished for finished, *_ in states):
                return


@contextmanager
def _memory_explained() -> Iterator[None]:
    """What to do when memory ran out, or a worker died of it, in a sentence."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OSError(f"{first_line(error)}; lower --batch_size, or give --max_memory_mb") from error
    except BrokenProcessPool as error:
        raise OSError(
            "a process that reads or writes images has died; if memory ran out, lower --workers; the same command "
            "goes on from what was written"
        ) from error


class _Work:
    """The images of this process on their way from reading to writing."""

    def __init__(
        self, request: Request, network: tuple[PreTrainedModel, QLSegImageProcessor], plan: Plan, manifest: Manifest
    ):
        (self.model, self.processor), self.request, self.plan, self.manifest = network, request, plan, manifest
        self.num_done = self.num_failed = 0
        self.num_workers = _num_workers(request)
        self.batch_size = request.batch_size or (2 if self.model.device.type == "cpu" else 8)
        self.with_confidence = "confidence" in plan.output.formats
        wanted = SegmentRequest(
            plan.settings, plan.scales, plan.flip, None, plan.max_windows, False, self.with_confidence
        )
        self.queue = WindowQueue(self.model, wanted, self.batch_size, request.batching)
        self.pictures: dict[str, np.ndarray | None] = {}  # of images in the queue
        self.writing: deque[tuple[Item, tuple[int, int], Future]] = deque()
        self.largest = 1  # bytes of an image that was read

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
        for folder in {path.parent for item in items for path in self.plan.output.paths(item.name)}:
            remove_partial(folder)
        rasters = [item for item in items if self._is_blockwise(item)]
        yield from self._segment_rasters(rasters)
        left = set(rasters)
        for item, prepared in self._read([item for item in items if item not in left] if left else items):
            if isinstance(prepared, Failure):
                self._fail(item, prepared.reason)
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

    def _is_blockwise(self, item: Item) -> bool:
        plan = self.plan
        return is_blockwise(item, plan.settings, plan.scales, plan.flip, plan.output.formats)

    def _segment_rasters(self, rasters: list[Item]) -> Iterator[bool]:
        """Segment rasters block by block, one after the other."""
        for item in rasters:
            try:
                steps = segment_raster(item, self.model, self.queue.request, self.batch_size, self.plan.output)
                while (size := next(steps)) is None:
                    yield True
            except ValueError as error:
                self._fail(item, first_line(error))
                continue
            self.manifest.add(item, self.plan.output.formats, *size)
            self.num_done += 1
            yield True

    def _read(self, items: list[Item]) -> Iterator[tuple[Item, Prepared | Failure]]:
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
            if failure := future.result():
                self._fail(item, failure.reason)
                continue
            self.manifest.add(item, self.plan.output.formats, height, width)
            self.num_done += 1

    def _fail(self, item: Item, reason: str) -> None:
        self.pictures.pop(item.name, None)
        self.manifest.add_failure(item, reason)
        self.num_failed += 1
        if self.request.strict:
            raise ValueError(f"{item.source}: {reason}")


def _num_workers(request: Request) -> int:
    """If not given, as many as cores that this process may use, shared by those of this machine; at most 8."""
    if request.workers is not None:
        return request.workers
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


__all__ = ["Request", "Summary", "describe", "predict"]
