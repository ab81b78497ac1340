"""Evaluation of a model on a data set, by the published protocol: every picture once, on any number of processes.

Confusion counts are summed picture by picture, so memory does not grow with the data set, and their sums are integers,
so the result does not depend on how pictures are split over processes.
"""

import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm import tqdm

from ..data.check import add_to_tallies, count_values, is_no_label, range_error, score_warnings
from ..data.datasets import FolderSamples, Sample, SampleError, StreamedSamples, TableSamples
from ..model.image_processing_qlseg import QLSegImageProcessor
from ..model.modeling_qlseg import QLSegForSemanticSegmentation
from ..model.segmentation import scale_factors, segment
from ..utils.distributed import StopRequestedError, exchanged, failing_together
from ..utils.files import write_atomically
from .metrics import StreamingScores

Samples = FolderSamples | TableSamples | StreamedSamples

ROUND_SECONDS = 10.0  # how often state is written and processes hear of each other's errors
NUM_READ_AHEAD = 3  # pictures decoded while the model is busy


@dataclass
class Evaluation:
    """Result of `evaluate_samples`, the same in every process.

    `result`: `miou`, `macc`, `aacc`: fractions; `miou_interval`: [low, high], 95 %; `per_label`: [{"label": name,
    "iou", "accuracy", "pixels": of the reference}]; `num_pictures`, `seconds`, `pictures_per_second`; `unreadable`:
    names of the pictures that were not counted because they cannot be read; `warnings`: sentences on scores that do
    not mean what they seem to (see `score_warnings`). Ready for strict JSON: what is not defined
    (see `metrics.scores`) is None.
    `worst`: (mIoU, index, name) of the pictures with the lowest mIoU of their own, worst first.
    """

    result: dict[str, Any]
    worst: list[tuple[float, int, str]]


@dataclass
class Progress:
    """What one process has counted; its state file holds all of this. `next_index`: every one before it is done."""

    scores: StreamingScores
    num_worst: int
    next_index: int = 0
    seconds: float = 0.0
    worst: list[tuple[float, int, str]] = field(default_factory=list)
    unreadable: list[tuple[int, str]] = field(default_factory=list)

    def add(self, label_map: torch.Tensor, labels: torch.Tensor, index: int, name: str) -> None:
        """Count a picture: predicted and reference (H, W) labels."""
        miou = self.scores.update(label_map, labels, index)
        if not math.isnan(miou):
            self.worst = sorted([*self.worst, (miou, index, name)])[: self.num_worst]
        self.next_index = index + 1

    def write(self, path: Path, protocol: dict[str, str]) -> None:
        """Write a state file; atomic. It holds a checksum of itself, since a wrong bit would be a wrong score."""
        notes = {"next_index": self.next_index, "seconds": self.seconds, "worst": self.worst, "protocol": protocol}
        notes["unreadable"] = self.unreadable
        state, text = self.scores.state_dict(), json.dumps(notes)
        write_atomically(path, save(state, metadata={"evaluation": text, "sha256": state_sha256(state, text)}))

    def read(self, path: Path, protocol: dict[str, str]) -> None:
        """Take over a state file. ValueError if it is none, is damaged, or one of another protocol."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            if metadata["sha256"] != state_sha256(state, metadata["evaluation"]):
                raise ValueError("its checksum does not match")
            notes = json.loads(metadata["evaluation"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is no state of an evaluation ({error}); delete it to start over") from error
        stored = notes["protocol"]
        if differing := sorted(key for key in stored | protocol if stored.get(key) != protocol.get(key)):
            raise ValueError(
                f"{path} holds an unfinished evaluation with another {', '.join(differing)}; finish that one, or "
                "delete the file (or do not resume) to start over"
            )
        self.scores.load_state_dict(state)
        self.next_index, self.seconds = notes["next_index"], notes["seconds"]
        self.worst, self.unreadable = ([tuple(entry) for entry in notes[key]] for key in ("worst", "unreadable"))


def evaluate_samples(
    model: QLSegForSemanticSegmentation,
    processor: QLSegImageProcessor,
    samples: Samples,
    *,
    scales: Iterable[float] = (1.0,),
    flip: bool = False,
    window_batch_size: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    max_samples: int | None = None,
    state_file: str | Path | None = None,
    num_worst: int = 0,
    skip_unreadable: bool = False,
    progress: bool = True,
    stop_signal: Callable[[], int | None] = lambda: None,
) -> Evaluation:
    """Scores of a model on labelled pictures, predicted by `segment` at the size of their label maps.

    Process r of n takes pictures r, r + n, ..., without padding, one per call of `segment`, so that the windows of a
    forward pass are the same for any n. Every process of the group has to call this, with the same arguments
    but `rank`; with n = 1 the others need not.

    Args:
        model: on its device, not wrapped for training.
        processor: gives windows and the label rules `label_map`, `do_reduce_labels` and `ignore_index`.
        samples: what `open_dataset` gives. A stream is read in full by every process, but not decoded.
        scales, flip, window_batch_size: see `segment`.
        rank, world_size: of this process. If torch.distributed is not set up, the result is that of this rank alone.
        max_samples: the first so many only.
        state_file: write what was counted beside it every `ROUND_SECONDS` (see `state_path`, one file per process) and
            start from there if it exists. It stays when all is done; `remove_state` takes it away.
        num_worst: how many of the worst pictures to name.
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
    if not 0 <= rank < world_size or (
        world_size > 1 and dist.is_initialized() and dist.get_world_size() != world_size
    ):
        raise ValueError(f"rank {rank} of {world_size} processes is not what torch.distributed was set up with")
    counted = Progress(StreamingScores(model.config.num_labels, processor.ignore_index), num_worst)
    path = None if state_file is None else state_path(state_file, rank, world_size)
    protocol = {}
    with failing_together(world_size):
        if (max_samples is not None and max_samples < 1) or num_worst < 0:
            raise ValueError(f"max_samples is {max_samples}, num_worst {num_worst}; at least 1 and 0 are wanted")
        if path is not None:
            protocol = protocol_of_state(model, processor, samples, scales, flip, num_worst)
            if path.exists():
                counted.read(path, protocol)
                if counted.unreadable and not skip_unreadable:
                    raise ValueError(
                        f"{path} has passed by {counted.unreadable[0][1]}, which cannot be read; skip unreadable "
                        "pictures again, or delete the file (or do not resume) to start over"
                    )
                if max_samples is not None and counted.next_index > max_samples:
                    raise ValueError(
                        f"{path} has already counted picture {counted.next_index}, but max_samples is {max_samples}; "
                        "delete the file (or do not resume) to start over"
                    )
    total = None
    if hasattr(samples, "__len__"):
        total = len(range(rank, min(len(samples), max_samples or len(samples)), world_size))

    def predict(name: str, picture: np.ndarray, stored: np.ndarray) -> tuple:  # two (H, W) label maps
        labels = checked_labels(stored, name, processor, list(model.config.id2label.values()))
        given = {"scales": scales, "flip": flip, "window_batch_size": window_batch_size, "max_windows": None}
        return segment(model, processor, picture, **given)[0], labels

    own = own_samples(samples, rank, world_size, counted.next_index, max_samples)
    mine = read_ahead(own, skip_unreadable, processor.settings().reading)
    with tqdm(
        total=total,
        initial=counted.scores.totals["num_pictures"].item() + len(counted.unreadable),
        desc="evaluating" if world_size == 1 else f"evaluating, 1 of {world_size} processes",
        unit=" pictures",
        position=0,  # in the place of a bar that is there, as in training, not below it
        leave=False,
        disable=not progress or rank > 0,
    ) as bar:
        all_finished = False
        while not all_finished:
            with failing_together(world_size):
                num_before = counted.next_index
                error, is_finished = None, False
                try:
                    is_finished = count_for_a_round(mine, counted, predict, bar, stop_signal)
                except Exception as caught:  # raised below; pictures counted before it are kept
                    error = caught
                if path is not None and counted.next_index > num_before:
                    counted.write(path, protocol)
                if error is not None:
                    raise error
            heard = exchanged((is_finished, stop_signal()), world_size)
            all_finished = all(is_finished for is_finished, _ in heard)
            numbers = [number for _, number in heard if number is not None]
            if numbers and not all_finished:
                raise StopRequestedError(max(numbers))
    return summed(counted, model, processor, world_size)


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


def own_samples(
    samples: Samples, rank: int, world_size: int, next_index: int, max_samples: int | None
) -> Iterator[tuple[int, Sample]]:
    """(index, sample) of the pictures from `next_index` on that process `rank` counts."""
    first = rank + -(-max(next_index - rank, 0) // world_size) * world_size
    if hasattr(samples, "__iter__"):  # a stream; sequences are taken by index
        yield from islice(enumerate(samples), first, max_samples, world_size)
        return
    for index in range(first, min(len(samples), max_samples or len(samples)), world_size):
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


def checked_labels(stored: np.ndarray, name: str, processor: QLSegImageProcessor, names: list[str]) -> torch.Tensor:
    """(H, W) labels by the processor's rules; ValueError naming file, values and setting if some are no labels."""
    labels = processor.reduce_labels(torch.from_numpy(stored))
    is_wrong = is_no_label(labels.numpy(), processor, len(names))
    if is_wrong.any():
        tallies = {}
        add_to_tallies(tallies, finding := count_values(stored, name, 0, processor, len(names)))
        raise ValueError(range_error(np.unique(stored[is_wrong]), finding.values, tallies, names, processor))
    return labels


def summed(
    counted: Progress, model: QLSegForSemanticSegmentation, processor: QLSegImageProcessor, world_size: int
) -> Evaluation:
    """Add up what the processes counted. ValueError if that is nothing."""
    state, worst, seconds, unreadable = counted.scores.state_dict(), counted.worst, counted.seconds, counted.unreadable
    if world_size > 1 and dist.is_initialized():
        device = "cpu" if dist.get_backend() == "gloo" else model.device
        for name, total in state.items():
            total = total.to(device)
            dist.all_reduce(total)
            state[name] = total.cpu()
        lists, times, skipped = zip(*exchanged((worst, seconds, unreadable), world_size))
        worst, seconds = sorted(entry for part in lists for entry in part)[: counted.num_worst], max(times)
        unreadable = sorted(entry for part in skipped for entry in part)
    scores = StreamingScores(**counted.scores.settings)
    scores.load_state_dict(state)
    found = scores.compute()
    with failing_together(world_size):
        if found["num_pictures"] == 0:
            reason = f"none of {len(unreadable)} can be read" if unreadable else "the data set is empty"
            raise ValueError(f"there is no picture to evaluate: {reason}")
    columns = (found["iou"], found["accuracy"], found["reference_pixels"])
    result = {name: or_none(found[name]) for name in ("miou", "macc", "aacc")}
    result["miou_interval"] = [or_none(bound) for bound in found["miou_interval"]]
    result["per_label"] = [
        {"label": model.config.id2label[i], "iou": or_none(iou), "accuracy": or_none(accuracy), "pixels": pixels}
        for i, (iou, accuracy, pixels) in enumerate(zip(*columns))
    ]
    result["num_pictures"] = found["num_pictures"]
    result["unreadable"] = [name for _, name in unreadable]
    result["warnings"] = score_warnings(scores.totals["counts"], list(model.config.id2label.values()), processor)
    result["seconds"] = seconds
    result["pictures_per_second"] = found["num_pictures"] / seconds
    return Evaluation(result, worst)


def or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def state_path(state_file: str | Path, rank: int, world_size: int) -> Path:
    """The state file of one process: another number of processes starts over."""
    path = Path(state_file)
    return path.with_name(f"{path.name}.{rank + 1}-of-{world_size}")


def remove_state(state_file: str | Path, rank: int, world_size: int) -> None:
    """Delete the state file of this process, if there is one."""
    state_path(state_file, rank, world_size).unlink(missing_ok=True)


def protocol_of_state(
    model: QLSegForSemanticSegmentation,
    processor: QLSegImageProcessor,
    samples: Samples,
    scales: list[float],
    flip: bool,
    num_worst: int,
) -> dict[str, str]:
    """What must not change between an interrupted evaluation and the one that continues it.

    Not in it: `max_samples`, which may grow, and `window_batch_size`, which changes rounding only.
    """
    return {
        "model": weights_sha256(model),
        "label names": json.dumps(model.config.id2label),
        "processor (picture sizes, windows or label rules)": json.dumps(processor.to_dict(), default=str),
        "data set": fingerprint_of_samples(samples),
        "scales": str(scales),
        "flip": str(flip),
        "number of worst pictures": str(num_worst),
    }


def state_sha256(state: dict[str, torch.Tensor], notes: str) -> str:
    """Of all that a state file holds."""
    return hashlib.sha256(save(state) + notes.encode()).hexdigest()


def weights_sha256(model: torch.nn.Module) -> str:
    """Of every name, dtype, shape and value. Seconds for a ViT-L."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def fingerprint_of_samples(samples: Samples) -> str:
    """Hash of what the data set is, without reading its pictures; of a stream also the first sample's name."""
    known = [type(samples).__name__, samples.split, sorted((samples.label_colors or {}).items())]
    if isinstance(samples, FolderSamples):
        known += [str(samples.root.resolve()), samples.pairs]
    else:
        info = samples.table.info
        known += [samples.columns, info.dataset_name, info.config_name, str(info.splits)]
        if isinstance(samples, StreamedSamples):
            known.append(next((sample.name for sample in samples), None))
        else:
            known += [len(samples), samples.table._fingerprint]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


__all__ = ["Evaluation", "evaluate_samples", "remove_state", "state_path"]
