# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""One optimiser step: the same update however its images are cut over processes and accumulation steps."""

import math
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor

from ..model.loss_qlseg import loss_normalizers
from .optimization import learning_rate_factor
from .recipe import Recipe


class NotFiniteError(ArithmeticError):
    """Loss or gradient of a step is infinite or not a number. The update was not made."""


class StepResult(NamedTuple):
    """What one step gives, over all processes, on the device.

    `loss`: of the whole step; `norm`: of the gradient before clipping; scalars. `terms`: (3,) what classification,
    mask and dice add to the loss.
    """

    loss: torch.Tensor
    norm: torch.Tensor
    terms: torch.Tensor


def training_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list[dict[str, torch.Tensor]],
    recipe: Recipe,
    step: int,
) -> StepResult:
    """One update from the batches of one step (one per accumulation step).

    Args:
        accelerator: with `gradient_accumulation_steps` equal to the number of batches.
        model, optimizer: prepared by it; groups of the optimiser have `initial_lr`.
        batches: `pixel_values` (B, 3, H, W) and `labels` (B, H, W) on its device.
        recipe: learning rate, clipping.
        step: number of updates before this one.

    Raises:
        NotFiniteError: one of them is not finite, in every process; weights and optimiser are those of before. With
            fp16 an infinite gradient is normal, its step skipped and the next one scaled down; it is an error once the
            scale is below 1. Looking costs one synchronisation with the device per step.

    The loss is normalised over the whole step, so it does not depend on how the images are cut over processes and
    accumulation steps. The published implementation normalises its classification term per process.
    """
    factor = learning_rate_factor(step, recipe.max_steps, recipe.warmup_steps, recipe.poly_power)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    config = accelerator.unwrap_model(model).config
    totals = torch.stack([loss_normalizers(batch["labels"], config) for batch in batches]).sum(dim=0)
    totals = accelerator.reduce(totals, "sum") / (len(batches) * accelerator.num_processes)
    # with at least one mask per image on average the floor never bites; it is there for batches without any label
    normalizers = totals.clone()
    normalizers[1] = totals[1].clamp(min=1 / (len(batches) * accelerator.num_processes))
    losses, terms, result = [], [], None
    for batch in batches:
        with accelerator.accumulate(model):
            outputs = model(batch["pixel_values"], labels=batch["labels"], loss_normalizers=normalizers)
            accelerator.backward(outputs.loss)
            losses.append(outputs.loss.detach())
            terms.append(outputs.loss_terms)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
                if isinstance(norm, DTensor):  # of which the first process alone could not log the value
                    norm = norm.full_tensor()
                total = accelerator.reduce(torch.stack(losses).mean(), "mean")
                check_finite(accelerator, float(total), float(norm))
                parts = accelerator.reduce(torch.stack(terms).mean(dim=0), "mean")
                result = StepResult(total, norm, parts)
            optimizer.step()
            optimizer.zero_grad()
    return result


def check_finite(accelerator: Accelerator, loss: float, norm: float) -> None:
    """See `training_step`. Loss and norm are over all processes, so either all of them stop or none."""
    if not math.isfinite(loss):
        raise NotFiniteError(f"the loss is {loss}")
    if not math.isfinite(norm) and (accelerator.scaler is None or accelerator.scaler.get_scale() < 1):
        raise NotFiniteError(f"the gradient's norm is {norm}, with a loss of {loss:.4g},")


__all__ = ["NotFiniteError", "StepResult", "check_finite", "training_step"]
