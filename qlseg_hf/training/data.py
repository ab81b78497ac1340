# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The data of a run: its splits, the look at them before the first step, and the batches of the steps."""

import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..data.augmentation import (
    BatchPositions,
    StreamingTrainingDataset,
    TrainingDataset,
    TrainingSampler,
    TrainingTransform,
)
from ..data.check import Survey, survey_data
from ..data.datasets import Samples, listed, open_dataset
from ..data.mixture import ExtraSet, MixedDataset
from ..data.workers import start_worker
from ..utils.files import write_atomically
from .facts import data_request, reading_of
from .recipe import Recipe


def open_split(recipe: Recipe, split: str) -> Samples:
    """A split of the recipe's data set; see `open_dataset`."""
    return open_dataset(recipe.data, split, **reading_of(recipe))


def look_at_data(recipe: Recipe) -> Survey:
    """Read every image of both splits once, and tell what there is.

    Raises:
        ValueError: the data would spoil the training.
    """
    survey = survey_data(replace(data_request(recipe), reads_all_splits=False))
    print(survey.text(), file=sys.stderr)
    if survey.problems:
        raise ValueError(survey.problems[0])
    layout = getattr(survey.splits[survey.uses["training"]], "layout", None)
    theirs, names = getattr(layout, "label_names", None), survey.rules.names
    if recipe.model and not recipe.label_names and theirs and list(theirs) != list(names):
        raise ValueError(
            f"the data call their labels {listed(list(theirs))}, and {recipe.model} calls its own "
            f"{listed(list(names))}; set label_names to say which the label maps hold"
        )
    return survey


def training_batches(
    recipe: Recipe,
    accelerator: Accelerator,
    samples: Samples,
    processor,
    num_labels: int,
    start_step: int,
    extra: Sequence[ExtraSet] = (),
) -> DataLoader:
    """DataLoader of this process's batches from `start_step` on. Draws depend on (seed, epoch, sample) alone."""
    given = {"processor": processor, "num_labels": num_labels}
    keys = [entry.name for entry in fields(TrainingTransform) if entry.name not in given]
    transform = TrainingTransform(**given, **{key: getattr(recipe, key) for key in keys})
    positions = BatchPositions(
        batch_size=recipe.per_device_batch_size,
        max_steps=recipe.max_steps,
        start_step=start_step,
        accumulation=recipe.accumulation_steps(accelerator.num_processes),
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    # a generator of its own, because a DataLoader draws a seed and would move the one that dropout draws from
    options = {"num_workers": recipe.num_workers, "pin_memory": accelerator.device.type == "cuda"}
    options |= {"generator": torch.Generator().manual_seed(recipe.seed), "worker_init_fn": start_worker}
    if recipe.streaming:
        options["num_workers"] = min(recipe.num_workers, 1)
        dataset = StreamingTrainingDataset(samples, transform, positions)
        return DataLoader(dataset, batch_size=recipe.per_device_batch_size, **options)
    if extra:
        mixed = MixedDataset(samples, transform, extra)
        num_extra = len(mixed) - len(samples)
        sampler = TrainingSampler(positions, len(samples), recipe.seed, num_extra, recipe.extra_data_share)
        return DataLoader(mixed, batch_sampler=sampler, **options)
    sampler = TrainingSampler(positions, len(samples), recipe.seed)
    return DataLoader(TrainingDataset(samples, transform), batch_sampler=sampler, **options)


def write_unreadable(output_dir: Path, unreadable: list[str]) -> None:
    """`unreadable.txt`: the images that are left out and why, one a line; no file if there are none."""
    place = output_dir / "unreadable.txt"
    place.unlink(missing_ok=True)
    if unreadable:
        write_atomically(place, "".join(text + "\n" for text in unreadable).encode())


def describe_unreadable(unreadable: list[str]) -> str:
    """The sentence on training images that were left out, naming the first five."""
    more = f"; and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
    return f"{len(unreadable)} training pictures that cannot be read were left out: {'; '.join(unreadable[:5])}{more}"


__all__ = ["describe_unreadable", "look_at_data", "open_split", "training_batches", "write_unreadable"]
