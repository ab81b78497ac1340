# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a model on a data set, by the published protocol: every picture once, on any number of processes.

Confusion counts are summed picture by picture, so memory does not grow with the data set, and their sums are integers,
so the result does not depend on how pictures are split over processes.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from ..data.check import add_to_tallies, count_values, is_no_label, range_error, score_warnings
from ..data.datasets import Sample, SampleError, Samples
from ..model.image_processing_qlseg import QLSegImageProcessor
from ..model.modeling_qlseg import QLSegForSemanticSegmentation
from ..model.request import scale_factors
from ..model.segmentation import segment
from ..utils.distributed import StopRequestedError, fail_together, gather_objects
from ..utils.picture_files import listed
from .metrics import LABEL_SCORES, StreamingScores
from .state import Progress, Ranked, process_place, protocol_of_state, rank_pictures, state_path

ROUND_SECONDS = 10.0  # how often state is written and processes hear of each other's errors
NUM_READ_AHEAD = 3  # pictures decoded while the model is busy


@dataclass
class Evaluation:
    """Result of `evaluate_samples`, the same in every process.

    `result`: ready for strict JSON: what is not defined (see `metrics.scores`) is None. Scores are fractions.

    - `miou`, `macc`, `aacc`; `miou_interval`: [low, high], 95 %; `boundary_iou`, `boundary_f1`: means over labels.
    - `per_label`: [{"label": name, "iou", "accuracy", "boundary_iou", "boundary_f1", "pixels": of the reference,
      "predicted_pixels"}].
    - `confusion`: K x K pixels, rows reference, columns prediction. `never_predicted`: names of labels that the
      references hold and no prediction does.
    - `warnings`: sentences on scores that do not mean what they seem to (see `score_warnings`), on labels that are
      never predicted, and on one that is ignored. `unreadable`: names of the pictures that were not
      counted because they cannot be read.
    - `num_pictures`, `seconds`, `pictures_per_second`.

    `worst`, `best`: (mIoU, index, name) of the pictures with the lowest and the highest mIoU of their own, in order.
    `settings`: `scales`, `flip` and `window_batch_size` that it was made with.
    """

    result: dict[str, Any]
    worst: list[Ranked]
    best: list[Ranked]
    settings: dict[str, Any]


def evaluate_samples(
    model: QLSegForSemanticSegmentation,
    processor: QLSegImageProcessor,
    samples: Samples,
    *,
    scales: Iterable[float] = (1.0,),
    flip: bool = False,
    window_batch_size: int | None = None,
    state_file: str | Path | None = None,
    num_examples: int = 0,
    skip_unreadable: bool = False,
    progress: bool = True,
    stop_signal: Callable[[], int | None] = lambda: None,
) -> Evaluation:
    """Scores of a model on labelled pictures, predicted by `segment` at the size of their label maps.

    Process r of the n of torch.distributed's group takes pictures r, r + n, ..., without padding, one per call of
    `segment`, so that the windows of a forward pass are the same for any n. Every process of the group has to call
    this, with the same arguments.

    Args:
        model: on its device, not wrapped for training.
        processor: gives windows and the label rules `label_mapping`, `do_reduce_labels` and `ignore_index`.
        samples: what `open_dataset` gives. A stream is read in full by every process, but not decoded.
        scales, flip, window_batch_size: see `segment`.
        state_file: write what was counted beside it every `ROUND_SECONDS` (see `state_path`, one file per process) and
            start from there if it exists. It stays when all is done; `remove_state` takes it away.
        num_examples: how many of the worst, and how many of the best pictures to name.
        skip_unreadable: name pictures that cannot be read in the result, instead of refusing them. mIoU over fewer
            pictures is another measure. Label maps that cannot be read are always refused.
        progress: show a bar in process 0.
        stop_signal: asked before every picture; the number of a signal ends the evaluation in all processes, which
            hear of it after at most `ROUND_SECONDS`.

    Raises:
        StopRequestedError: `stop_signal` gave one in any process; in every process.
        ValueError: a label map holds other labels than the model's (names the file and the setting), a sample cannot
            be read, the state is of another protocol, there is no picture, or an argument is out of range. What was
            counted before is in the state file.
        OtherProcessError: one of these in another process.
    """
    scales = scale_factors(scales)
    rank, world_size = process_place()
    counted = Progress(StreamingScores(model.config.num_labels, processor.ignore_index), num_examples)
    save_state = None
    with fail_together(world_size):
        if num_examples < 0:
            raise ValueError(f"num_examples is {num_examples}; it must be 0 or more")
        if state_file is not None:
            path = state_path(state_file)
            protocol = protocol_of_state(model, processor, samples, scales, flip, num_examples)
            counted.resume(path, protocol, skip_unreadable)
            save_state = partial(counted.write, path, protocol)
    mine = own_samples(samples, rank, world_size, counted.next_index)
    mine = read_ahead(mine, skip_unreadable, processor.settings().reading)
    settings = {"scales": scales, "flip": flip, "window_batch_size": window_batch_size}

    def predict(name: str, picture: np.ndarray, stored: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """(H, W) predicted labels and (H, W) labels of the reference of one picture."""
        labels = apply_label_rules(stored, name, processor, list(model.config.id2label.values()))
        return segment(model, processor, picture, **settings, max_windows=None)[0], labels  # type: ignore[return-value]  # one per picture

    with show_bar(samples, counted, rank, world_size, progress) as bar:
        while not count_together(mine, counted, predict, bar, stop_signal, save_state, world_size):
            pass
    return Evaluation(*sum_counts(counted, model, processor, world_size), settings)


def show_bar(samples: Samples, counted: Progress, rank: int, world_size: int, is_wanted: bool) -> tqdm:
    """Progress bar over the pictures of this process, shown in the first one."""
    return tqdm(
        total=len(range(rank, len(samples), world_size)) if hasattr(samples, "__len__") else None,
        initial=counted.scores.totals["num_pictures"].item() + len(counted.unreadable),
        desc="evaluating" if world_size == 1 else f"evaluating, 1 of {world_size} processes",
        unit=" pictures",
        position=0,  # in the place of a bar that is there, as in training, not below it
        leave=False,
        disable=not is_wanted or rank > 0,
    )


def count_together(
    mine: Iterator,
    counted: Progress,
    predict: Callable,
    bar: tqdm,
    stop_signal: Callable[[], int | None],
    save_state: Callable[[], None] | None,
    world_size: int,
) -> bool:
    """Count for a round, keep it, and hear of the other processes; whether all of them are finished.

    Raises:
        StopRequestedError: a signal has come to any of them before all were finished.
        Exception: of this round; the pictures counted before it are kept. OtherProcessError in the others.
    """
    with fail_together(world_size):
        num_before = counted.next_index
        error, is_finished = None, False
        try:
            is_finished = count_for_a_round(mine, counted, predict, bar, stop_signal)
        except Exception as caught:  # raised below, when the state is written
            error = caught
        if save_state is not None and counted.next_index > num_before:
            save_state()
        if error is not None:
            raise error
    heard = gather_objects((is_finished, stop_signal()), world_size)
    all_finished = all(is_finished for is_finished, _ in heard)
    numbers = [number for _, number in heard if number is not None]
    if numbers and not all_finished:
        raise StopRequestedError(max(numbers))
    return all_finished


def count_for_a_round(
    mine: Iterator, counted: Progress, predict: Callable, bar: tqdm, stop_signal: Callable[[], int | None]
) -> bool:
    """Count pictures until there is none left (True), or the time of a round is over or a signal has come (False)."""
    start, seconds_before = time.perf_counter(), counted.seconds
    for index, name, picture, stored in mine:
        if picture is None:
            counted.unreadable.append((index, name))
            counted.next_index = index + 1
        else:
            label_map, labels = predict(name, picture, stored)
            counted.add(label_map, labels, index, name)
        bar.update()
        counted.seconds = seconds_before + time.perf_counter() - start
        if time.perf_counter() - start >= ROUND_SECONDS or stop_signal() is not None:
            return False
    return True


def own_samples(samples: Samples, rank: int, world_size: int, next_index: int) -> Iterator[tuple[int, Sample]]:
    """(index, sample) of the pictures from `next_index` on that process `rank` counts."""
    first = rank + -(-max(next_index - rank, 0) // world_size) * world_size
    if hasattr(samples, "__iter__"):  # a stream; sequences are taken by index
        yield from islice(enumerate(samples), first, None, world_size)
        return
    for index in range(first, len(samples), world_size):
        yield index, samples[index]


def read_ahead(
    items: Iterator[tuple[int, Sample]], skip_unreadable: bool, reading: dict
) -> Iterator[tuple[int, str, np.ndarray | None, np.ndarray | None]]:
    """(index, name, picture, stored label map) of `items`, in their order, some decoded before they are asked for.

    With `skip_unreadable` picture and label map are None if the picture cannot be read; else that is raised.
    `reading`: keywords for `load_picture`.
    """

    def read(sample: Sample) -> tuple[np.ndarray | None, np.ndarray | None]:
        try:
            return sample.read(**reading)
        except SampleError as error:
            if error.kind == "picture" and skip_unreadable:
                return None, None
            raise

    with ThreadPoolExecutor(NUM_READ_AHEAD) as pool:
        waiting = deque()
        for index, sample in items:
            waiting.append((index, sample.name, pool.submit(read, sample)))
            if len(waiting) > NUM_READ_AHEAD:
                index, name, future = waiting.popleft()
                yield index, name, *future.result()
        while waiting:
            index, name, future = waiting.popleft()
            yield index, name, *future.result()


def apply_label_rules(stored: np.ndarray, name: str, processor: QLSegImageProcessor, names: list[str]) -> torch.Tensor:
    """(H, W) labels by the processor's rules; ValueError naming file, values and setting if some are not labels."""
    labels = processor.reduce_labels(torch.from_numpy(stored))
    is_wrong = is_no_label(labels.numpy(), processor, len(names))
    if is_wrong.any():
        tallies = {}
        add_to_tallies(tallies, name, found := count_values(stored))
        raise ValueError(range_error(np.unique(stored[is_wrong]), found.values, tallies, names, processor))
    return labels


def sum_counts(
    counted: Progress, model: QLSegForSemanticSegmentation, processor: QLSegImageProcessor, world_size: int
) -> tuple[dict[str, Any], list[Ranked], list[Ranked]]:
    """Add up what the processes counted: `result`, `worst` and `best` of it. ValueError if that is nothing."""
    state = counted.scores.state_dict()
    if world_size > 1:
        device = "cpu" if dist.get_backend() == "gloo" else model.device
        for name, total in state.items():
            total = total.to(device)
            dist.all_reduce(total)
            state[name] = total.cpu()
    own = ([*counted.worst, *counted.best], counted.seconds, counted.unreadable)
    lists, times, skipped = zip(*gather_objects(own, world_size))
    ranked = rank_pictures(chain(*lists), counted.num_examples)
    seconds, unreadable = max(times), sorted(chain(*skipped))
    scores = StreamingScores(**counted.scores.settings)
    scores.load_state_dict(state)
    with fail_together(world_size):
        if state["num_pictures"] == 0:
            reason = f"none of {len(unreadable)} can be read" if unreadable else "the data set is empty"
            raise ValueError(f"there is no picture to evaluate: {reason}")
    result = describe_scores(scores, list(model.config.id2label.values()), processor)
    result["unreadable"] = [name for _, name in unreadable]
    result["seconds"] = seconds
    result["pictures_per_second"] = result["num_pictures"] / seconds
    return result, *ranked


def describe_scores(scores: StreamingScores, names: list[str], processor: QLSegImageProcessor) -> dict[str, Any]:
    """`Evaluation.result` of the scores of K labels with these names, but for what only the evaluation knows."""
    found, counts = scores.compute(), scores.totals["counts"]
    result = {name: or_none(found[name]) for name in ("miou", "macc", "aacc")}
    result["miou_interval"] = [or_none(bound) for bound in found["miou_interval"]]
    result |= {name: or_none(found[f"mean_{name}"]) for name in ("boundary_iou", "boundary_f1")}
    result["per_label"] = [
        {"label": name}
        | {column: or_none(found[column][i]) for column in LABEL_SCORES}
        | {"pixels": found["reference_pixels"][i], "predicted_pixels": found["predicted_pixels"][i]}
        for i, name in enumerate(names)
    ]
    result["never_predicted"] = [
        row["label"] for row in result["per_label"] if row["pixels"] and not row["predicted_pixels"]
    ]
    result["confusion"] = counts.tolist()
    result["num_pictures"] = found["num_pictures"]
    result["warnings"] = score_warnings(counts, names, processor) + never_predicted_warnings(result["never_predicted"])
    result["warnings"] += ignored_label_warnings(names, processor.ignore_index)
    return result


def ignored_label_warnings(names: list[str], ignore_index: int | None) -> list[str]:
    """A sentence on the label whose pixels did not count, if one of K is ignored."""
    if ignore_index is None or not 0 <= ignore_index < len(names):
        return []
    return [
        f"ignore_index {ignore_index} is also a label, {names[ignore_index]!r}, whose pixels did not count; set it "
        f"outside of 0..{len(names) - 1} if they should"
    ]


def never_predicted_warnings(names: list[str]) -> list[str]:
    """A sentence on the labels that are in the references and in no prediction, if there are any."""
    if not names:
        return []
    return [
        f"{len(names)} labels of the references are never predicted: {listed(map(repr, names))}; train longer, give "
        "them a larger factor in label_weights, or add pictures that show them"
    ]


def or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


__all__ = ["Evaluation", "evaluate_samples", "ignored_label_warnings", "never_predicted_warnings"]
