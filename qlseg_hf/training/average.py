# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The moving average of a run's weights, which is what is evaluated and saved if there is one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """Exponential moving average of a model's weights, updated once per optimiser step.

    `weights`: {name in the model's state dict: fp32 tensor}, fp32 also where the model is bf16: steps of
    `1 - decay` would be rounded away there. `AveragedModel` keeps the model's precision, so only its update is used.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.weights = {name: value.detach().float().clone() for name, value in model.state_dict().items()}
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights of `model` by `1 - decay`."""
        current = [value.detach().float() for value in model.state_dict().values()]
        self._average(list(self.weights.values()), current, None)

    @contextmanager
    def swap_in(self, model: nn.Module) -> Iterator[None]:
        """Put the averaged weights into the model inside the `with` block."""
        trained = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.weights)
        try:
            yield
        finally:
            model.load_state_dict(trained)


__all__ = ["MovingAverage"]
