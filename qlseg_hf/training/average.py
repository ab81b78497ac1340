# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The moving average of a run's weights, which is what is evaluated and saved if there is one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .sharding import held_weights

MOST_OF_THE_FIRST = 0.1  # share of the first weights in the last average


class MovingAverage:
    """Exponential moving average of a model's weights, updated once per optimiser step.

    `weights`: {name in the model's state dict: fp32 tensor}, fp32 also where the model is bf16: steps of
    `1 - decay` would be rounded away there. `AveragedModel` keeps the model's precision, so only its update is used.
    Of a model that is cut up over processes, they are the parts that this process holds (see `held_weights`).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.weights = {name: value.detach().float().clone() for name, value in held_weights(model).items()}
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights of `model` by `1 - decay`."""
        current = [value.detach().float() for value in held_weights(model).values()]
        self._average(list(self.weights.values()), current, None)

    @contextmanager
    def swap_in(self, model: nn.Module) -> Iterator[None]:
        """Put the averaged weights into the model, which is not cut up, inside the `with` block."""
        trained = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.weights)
        try:
            yield
        finally:
            model.load_state_dict(trained)


def average_warning(decay: float | None, max_steps: int) -> str | None:
    """The sentence on an average that still holds much of the first weights after `max_steps` updates; or None."""
    if decay is None or (share := decay**max_steps) <= MOST_OF_THE_FIRST:
        return None
    return (
        f"ema_decay {decay:g} leaves {share:.0%} of the weights that training starts from in the average that is "
        f"evaluated and saved after {max_steps} steps; {MOST_OF_THE_FIRST ** (1 / max_steps):.4g} leaves "
        f"{MOST_OF_THE_FIRST:.0%}"
    )


__all__ = ["MovingAverage", "average_warning"]
