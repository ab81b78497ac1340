# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What an evaluation has counted so far, and the file that lets an interrupted one go on from there."""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..data.datasets import Samples
from ..model.image_processing_qlseg import QLSegImageProcessor
from ..model.modeling_qlseg import QLSegForSemanticSegmentation
from ..utils.files import write_atomically
from ..utils.hashing import config_sha256, json_sha256, weights_sha256
from .metrics import StreamingScores

Ranked = tuple[float, int, str]  # mIoU, index and name of a picture

VERSION = 2  # of a state file; 1 counted no boundaries
NOTED = ("next_index", "seconds", "worst", "best", "unreadable")


@dataclass
class Progress:
    """What one process has counted; its state file holds all of this. `next_index`: every one before it is done."""

    scores: StreamingScores
    num_examples: int
    next_index: int = 0
    seconds: float = 0.0
    worst: list[Ranked] = field(default_factory=list)
    best: list[Ranked] = field(default_factory=list)
    unreadable: list[tuple[int, str]] = field(default_factory=list)

    def add(self, label_map: torch.Tensor, labels: torch.Tensor, index: int, name: str) -> None:
        """Count a picture: predicted and reference (H, W) labels."""
        miou = self.scores.update(label_map, labels, index)
        if not math.isnan(miou):
            self.worst, self.best = rank_pictures([*self.worst, *self.best, (miou, index, name)], self.num_examples)
        self.next_index = index + 1

    def write(self, path: Path, protocol: dict[str, str]) -> None:
        """Write a state file; atomic. It holds a checksum of itself, since a wrong bit would be a wrong score."""
        notes = {name: getattr(self, name) for name in NOTED} | {"protocol": protocol, "version": VERSION}
        state, text = self.scores.state_dict(), json.dumps(notes)
        write_atomically(path, save(state, metadata={"evaluation": text, "sha256": state_sha256(state, text)}))

    def read(self, path: Path, protocol: dict[str, str]) -> None:
        """Take over a state file. ValueError if it is not one, is damaged, or is of another protocol."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            if metadata["sha256"] != state_sha256(state, metadata["evaluation"]):
                raise ValueError("its checksum does not match")
            notes = json.loads(metadata["evaluation"])
            version = notes.get("version", 1)
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is no state of an evaluation ({error}); delete it to start over") from error
        if version != VERSION:
            raise ValueError(
                f"{path} is of another version of this package ({version}, {VERSION} is wanted), which counted other "
                "things; delete it to start over"
            )
        stored = notes["protocol"]
        if differing := sorted(key for key in stored | protocol if stored.get(key) != protocol.get(key)):
            raise ValueError(
                f"{path} holds an unfinished evaluation with another {', '.join(differing)}; finish that one, or "
                "delete the file to start over"
            )
        self.scores.load_state_dict(state)
        self.next_index, self.seconds = notes["next_index"], notes["seconds"]
        self.worst, self.best, self.unreadable = ([tuple(entry) for entry in notes[key]] for key in NOTED[2:])

    def resume(self, path: Path, protocol: dict[str, str], skip_unreadable: bool) -> None:
        """Take over a state file, if there is one. ValueError as in `read`, or if it passed by what must be read."""
        if not path.exists():
            return
        self.read(path, protocol)
        if self.unreadable and not skip_unreadable:
            raise ValueError(
                f"{path} has passed by {self.unreadable[0][1]}, which cannot be read; skip unreadable "
                "pictures again, or delete the file to start over"
            )


def rank_pictures(pictures: Iterable[Ranked], number: int) -> tuple[list[Ranked], list[Ranked]]:
    """The worst and the best `number` of (mIoU, index, name), each in order; of equals the first ones. None twice."""
    unique = sorted(set(pictures))
    best = sorted(unique, key=lambda entry: (-entry[0], entry[1]))
    return unique[:number], best[:number]


def process_place() -> tuple[int, int]:
    """(rank, number of processes) of the process group, or (0, 1)."""
    is_group = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if is_group else (0, 1)


def state_path(state_file: str | Path) -> Path:
    """The state file of this process: another number of processes starts over."""
    path, (rank, world_size) = Path(state_file), process_place()
    return path.with_name(f"{path.name}.{rank + 1}-of-{world_size}")


def remove_state(state_file: str | Path) -> None:
    """Delete the state file of this process, if there is one."""
    state_path(state_file).unlink(missing_ok=True)


def protocol_of_state(
    model: QLSegForSemanticSegmentation,
    processor: QLSegImageProcessor,
    samples: Samples,
    scales: list[float],
    flip: bool,
    num_examples: int,
) -> dict[str, str]:
    """What must not change between an interrupted evaluation and the one that continues it.

    Not in it: `window_batch_size`, which changes rounding only.
    """
    colors = samples.label_colors or {}
    return {
        "model": weights_sha256(model),
        "precision": getattr(model, "precision", str(model.dtype)),  # which files do not show, unlike weights
        "label names": json.dumps(model.config.id2label),
        "configuration of the model": config_sha256(model.config),
        "processor (picture sizes, windows or label rules)": json.dumps(processor.to_dict(), default=str),
        # what it is, without reading its pictures; of a stream also the first sample's name
        "data set": json_sha256([type(samples).__name__, samples.split, sorted(colors.items()), *samples.origin()]),
        "scales": str(scales),
        "flip": str(flip),
        "number of examples": str(num_examples),
    }


def state_sha256(state: dict[str, torch.Tensor], notes: str) -> str:
    """SHA-256 of all that a state file holds, as a hex string."""
    return hashlib.sha256(save(state) + notes.encode()).hexdigest()


__all__ = [
    "Progress",
    "Ranked",
    "process_place",
    "protocol_of_state",
    "rank_pictures",
    "remove_state",
    "state_path",
]
