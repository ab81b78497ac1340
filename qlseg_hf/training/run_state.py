# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A run under way: what the named steps of the loop hand to each other."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..data.datasets import Samples
from ..data.mixture import ExtraSet
from ..hub.saving import QLSegForSemanticSegmentation, QLSegImageProcessor
from ..utils.distributed import StopSignals
from .average import MovingAverage
from .checkpoints import save_checkpoint
from .log import StepLog
from .recipe import Recipe
from .sharding import gather_weights, held_weights


@dataclass
class Run:
    """Everything that a training run works with, the same in every process but for its share of the images.

    `extra`: sets beside the training samples. `model`: prepared by accelerate, as is `optimizer`. `whole`: where
    weights are cut up over processes, an ordinary network on the CPU beside it, which is given whole weights to
    evaluate and to save them; else None.

    `state`: what a checkpoint holds beside weights: `step`, `result` of the evaluation after that step (None if it was
    not measured), `best` mIoU and its `best_step`, `num_without_gain`: evaluations since the best one, `unreadable`
    images, `data` and `label_names` that it was trained on. `is_measured`: whether the step that the run starts from
    needs no evaluation any more. `log`: None until the first step is due.
    """

    recipe: Recipe
    accelerator: Accelerator
    signals: StopSignals
    processor: QLSegImageProcessor
    model: torch.nn.Module
    training_samples: Samples
    extra: list[ExtraSet]
    validation_samples: Samples
    state: dict[str, Any]
    optimizer: torch.optim.Optimizer | None = None
    average: MovingAverage | None = None
    whole: QLSegForSemanticSegmentation | None = None
    is_measured: bool = False
    log: StepLog | None = field(default=None, repr=False)

    @property
    def output_dir(self) -> Path:
        return Path(self.recipe.output_dir)

    @property
    def step(self) -> int:
        """Optimiser steps made."""
        return self.state["step"]

    @property
    def network(self) -> QLSegForSemanticSegmentation:
        """The model without what accelerate has wrapped it in."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def num_processes(self) -> int:
        return self.accelerator.num_processes

    @property
    def unreadable(self) -> list[str]:
        """What is wrong with each training image that is left out."""
        return [text for _, text in self.state["unreadable"]]

    @property
    def checkpoint(self) -> Path:
        """Where the checkpoint of the present step lies, or would lie."""
        return self.output_dir / "checkpoints" / f"step-{self.step:08d}"

    @property
    def is_over(self) -> bool:
        """Whether no step is left to make: all are made, or `patience` is at its end."""
        patience = self.recipe.patience
        return self.step == self.recipe.max_steps or (
            patience is not None and self.state["num_without_gain"] >= patience
        )

    def is_due(self, interval: int) -> bool:
        """Whether something that is done every `interval` steps, and after the last, is done after this one."""
        return self.is_over or self.step % interval == 0

    @contextmanager
    def measured_network(self) -> Iterator[QLSegForSemanticSegmentation]:
        """An ordinary network with the weights that are evaluated and saved, those of this step or their average.

        Every process has to come here, and has it for itself inside the `with` block: no call of it is collective.
        """
        if self.whole is None:
            with self.average.swap_in(self.network) if self.average is not None else nullcontext():
                yield self.network
            return
        held = held_weights(self.network) if self.average is None else self.average.weights
        places = self.whole.state_dict()
        for name, value in gather_weights(self.network, held):
            places[name].copy_(value.detach())
        try:
            yield self.whole.to(self.accelerator.device)
        finally:
            self.whole.cpu()

    def save_checkpoint(self) -> None:
        save_checkpoint(self.accelerator, self.output_dir, self.step, self.state, self.average, self.recipe)


__all__ = ["Run"]
