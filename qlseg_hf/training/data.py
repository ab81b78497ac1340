"""The data of a run: its splits, the look at them before the first step, and the batches of the steps."""

import sys
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
    start_worker,
)
from ..data.check import check_labels_of_dataset
from ..data.datasets import Samples, open_dataset
from ..utils.distributed import exchanged, failing_together
from ..utils.files import write_atomically
from .build import sets_reduction
from .recipe import Recipe
from .run import Run


def open_split(recipe: Recipe, split: str) -> Samples:
    """A split of the recipe's data set; see `open_dataset`."""
    return open_dataset(
        recipe.data,
        split,
        config=recipe.dataset_config,
        image_column=recipe.image_column,
        label_column=recipe.label_column,
        streaming=recipe.streaming,
        label_colors=recipe.label_colors,
    )


def check_data(run: Run, only_check: bool) -> None:
    """Read both splits once, on one process, and note the training images that cannot be read in the run's state.

    A validation image is never left out: mIoU over fewer images is another measure.

    Raises:
        ValueError: the data would spoil the training; in all other processes OtherProcessError.
    """
    recipe, unreadable = run.recipe, []
    with failing_together(run.num_processes):
        splits = {"training": run.training_samples, "validation": run.validation_samples}
        for split, samples in splits.items() if run.is_main else ():
            is_training = split == "training"
            report = check_labels_of_dataset(
                samples,
                run.processor,
                run.network.config.id2label,
                strict=recipe.strict or not is_training,
                doubts_are_errors=not sets_reduction(recipe),
            )
            print(f"{split} data:\n{report}", file=sys.stdout if only_check else sys.stderr)
            if report.errors:
                use = "trained on" if is_training else "validated on"
                raise ValueError(f"the data set cannot be {use}: {report.errors[0]}")
            unreadable += report.unreadable
    run.state["unreadable"] = exchanged(unreadable, run.num_processes)[0]


def training_batches(
    recipe: Recipe, accelerator: Accelerator, samples: Samples, processor, num_labels: int, start_step: int
) -> DataLoader:
    """DataLoader of this process's batches from `start_step` on. Draws depend on (seed, epoch, sample) alone."""
    transform = TrainingTransform(
        processor=processor,
        num_labels=num_labels,
        crop_size=recipe.crop_size,
        resize_box=recipe.resize_box,
        scale_range=recipe.scale_range,
        cat_max_ratio=recipe.cat_max_ratio,
        photometric=recipe.photometric,
        seed=recipe.seed,
    )
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


__all__ = ["check_data", "describe_unreadable", "open_split", "training_batches", "write_unreadable"]
