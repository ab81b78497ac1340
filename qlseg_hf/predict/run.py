# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`qlseg predict`: many images, in one process or several, that goes on where it was stopped."""

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from ..export.loading import is_file, load_network_or_file
from ..export.runtime import ExportedQLSeg
from ..model.image_processing_qlseg import QLSegImageProcessor
from ..model.request import label_numbers, scale_factors
from ..utils.devices import fastest_dtype, place_for_inference
from ..utils.distributed import fail_together, gather_objects, join_processes, report_deaths
from ..utils.files import lock_folder
from ..utils.hashing import config_sha256, json_sha256, weights_sha256
from ..utils.text import first_line, printable
from ..utils.visualization import label_colors
from .items import Item, SourceOptions
from .manifest import Manifest, stored_dtype
from .request import Request, Summary, num_workers
from .sinks import Output, check_formats, write_tables
from .sources import find_items
from .video import check_videos, is_video
from .work import Work, result_paths
from .workers import Plan, begin_imports

SECONDS_OF_A_ROUND = 10.0  # after which processes tell each other how far they are
# of the processor; the others are for label maps that are read
PIXEL_SETTINGS = ("do_resize", "size", "default_to_square", "do_sliding_window", "window_size", "window_stride")
PIXEL_SETTINGS += ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


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
    state = join_processes()
    try:
        with report_deaths():
            device = request.device or str(state.device)
            return _predict(request, _Place(state.process_index, state.num_processes, device))
    finally:
        state.destroy_process_group()


def _predict(request: Request, place: _Place) -> Summary:
    begin_imports(num_workers(request))
    request = _settle_dtype(request, place)
    with fail_together(place.world_size):
        model, processor, plan, settings = load(request, place.device)
        items, notes = list_items(request, plan.output)
    with fail_together(place.world_size):
        known = gather_objects(json_sha256([item.name for item in items]), place.world_size)
        if len(set(known)) > 1:
            raise ValueError("the processes see different images; wait until the sources no longer change")
    manifest, missing = Manifest(request.output, place.rank), None
    with fail_together(place.world_size):
        if place.rank == 0:
            missing = open_run(manifest, settings, items, notes, plan.output)
    missing = gather_objects(missing, place.world_size)[0]
    mine = [items[i] for i in missing[place.rank :: place.world_size]]
    work = Work(request, (model, processor), plan, manifest)
    _work_in_rounds(work, mine, place, len(items), len(items) - len(missing))
    with fail_together(place.world_size):
        if place.rank == 0:
            finish_run(manifest, plan.output)
    totals = [sum(counts) for counts in zip(*gather_objects((work.num_done, work.num_failed), place.world_size))]
    return Summary(totals[0], len(items) - len(missing), totals[1])


def _settle_dtype(request: Request, place: _Place) -> Request:
    """Instead of "auto" the dtype of the results that are there; if there are none, that all devices are fastest in.

    So a run goes on as it was begun, on any machine.
    """
    if request.dtype != "auto":
        return request
    with fail_together(place.world_size):
        stored = stored_dtype(request.output)
    fastest = fastest_dtype(_find_device(request, place.device), place.world_size)
    if is_file(request.model):
        fastest = "float32"  # in which its labels were compared when it was exported
    # all have read before the main process writes, and go by what that has read
    return replace(request, dtype=gather_objects(stored, place.world_size)[0] or fastest)


def _find_device(request: Request, name: str | None) -> torch.device:
    on_gpu = torch.cuda.is_available() and not is_file(request.model)
    return torch.device(name or ("cuda" if on_gpu else "cpu"))


def source_options(request: Request) -> SourceOptions:
    """What a request says about its sources."""
    left_out = request.left_out or request.output
    return SourceOptions(request.image_column, request.split, request.dataset_config, left_out, request.max_frames)


def list_items(request: Request, output: Output) -> tuple[list[Item], list[str]]:
    """The images of a request, and sentences on files that were left out."""
    items, notes = find_items(list(request.sources), source_options(request))
    if any(map(is_video, items)):
        check_videos(output.formats)
    return items, notes


def open_run(manifest: Manifest, settings: dict, items: list[Item], notes: list[str], output: Output) -> list[int]:
    """Keep other runs from the folder, read what is done, and return the numbers of the items that are missing."""
    for note in notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    lock_folder(output.root)
    manifest.open(settings)
    missing = [
        number
        for number, item in enumerate(items)
        if not manifest.is_done(item, output.formats, result_paths(item, output))
    ]
    manifest.write_failures(items[number].name for number in missing)
    return missing


def finish_run(manifest: Manifest, output: Output) -> None:
    """Join what all processes have noted, and write what is one file for all images."""
    manifest.join()
    manifest.write_failures()
    write_tables(output, [entry for _, entry in sorted(manifest.entries.items())])


def load(
    request: Request, device_name: str | None = None
) -> tuple[PreTrainedModel | ExportedQLSeg, QLSegImageProcessor, Plan, dict[str, Any]]:
    """Network and processor, what workers need to know, and the settings that decide what the results are.

    The request's dtype is not "auto" any more.
    """
    formats = check_formats(request.formats)
    rules = {} if request.do_resize is None else {"do_resize": request.do_resize}
    model, processor = load_network_or_file(request.model, rules, dtype=getattr(torch, request.dtype))
    if getattr(model, "gives_labels", False):
        raise ValueError(f"{request.model} gives labels, and scores are needed; export it with --outputs scores")
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
        "config_sha256": config_sha256(config),
        "processor": {key: value for key, value in processor.to_dict().items() if key in PIXEL_SETTINGS},
        "labels": wanted,
        "scales": scales,
        "flip": request.flip,
        "dtype": request.dtype,
    }
    device = _find_device(request, device_name)
    model = model.to(device) if isinstance(model, ExportedQLSeg) else place_for_inference(model, device)
    return model, processor, plan, settings


def _work_in_rounds(work: Work, mine: list[Item], place: _Place, total: int, num_before: int) -> None:
    """Segment what is this process's, and show how far all of them are; all stop when one fails."""
    seconds = SECONDS_OF_A_ROUND if place.world_size > 1 else 0.0
    steps, is_finished = work.steps(mine), False
    bar = tqdm(total=total, initial=num_before, unit="image", disable=place.rank > 0)
    with bar, work.executor_running():
        while True:
            with fail_together(place.world_size), _memory_explained():
                end = time.monotonic() + seconds
                while not is_finished:
                    is_finished = next(steps, None) is None
                    if time.monotonic() >= end:
                        break
            states = gather_objects((is_finished, work.num_done, work.num_failed), place.world_size)
            num_failed = sum(failed for *_, failed in states)
            failed = f"failed={num_failed}" if num_failed else ""
            bar.set_postfix_str(", ".join(filter(None, (failed, printable(work.now)))), refresh=False)
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


__all__ = ["finish_run", "list_items", "load", "open_run", "predict", "source_options"]
