# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A training step of encoder and whole network, on made labels."""

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from unittest import mock

import torch
from torch.nn import functional as F

from .measure import Rows, return_freed_memory, take_turns
from .settings import DTYPES, Settings, build, draw_pixels


def training_labels(batch: int, size: int, num_labels: int, device: torch.device) -> torch.Tensor:
    """(B, size, size) with ten labels in each picture, in blocks, about as many as a picture of ADE20K has."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.stack([torch.randperm(num_labels, generator=generator)[:10] for _ in range(batch)])  # (B, 10)
    blocks = torch.randint(0, 10, (batch, 64), generator=generator)
    blocks = labels.gather(1, blocks).view(batch, 1, 8, 8).float()
    return F.interpolate(blocks, size=(size, size), mode="nearest")[:, 0].long().to(device)


def made_batch(settings: Settings, batch: int, num_labels: int) -> dict[str, torch.Tensor]:
    """`pixel_values` (B, 3, size, size) and `labels` of `training_labels`; always the same."""
    torch.manual_seed(0)
    labels = training_labels(batch, settings.size, num_labels, settings.device)
    return {"pixel_values": draw_pixels(settings, batch), "labels": labels}


def loss_by_autograd(logits, labels, picture, label, alpha, gamma):
    """The mask losses with every mask upsampled at once and the gradient left to autograd."""
    from ..model.loss_qlseg import mask_losses

    maps = F.interpolate(logits[:, None], size=labels.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    return mask_losses(maps, labels[picture] == label[:, None, None], alpha, gamma)[:2]


def half_precision(device: torch.device, kind: str):
    """Autocast to a dtype of `DTYPES`; for fp32 nothing."""
    return nullcontext() if kind == "fp32" else torch.autocast(device.type, DTYPES[kind])


class StepInParts:
    """A training step of a network on one batch, whole when called, or part by part in their order."""

    def __init__(self, model, batch: dict[str, torch.Tensor], half):
        self.model, self.batch, self.half = model, batch, half
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, fused=True)
        self.parts = (self.forward, lambda: self.loss.backward(), self.optimizer.step)

    def __call__(self) -> None:
        for part in self.parts:
            part()

    def forward(self) -> None:
        """The loss; gradients of the step before are dropped."""
        self.model.zero_grad()
        with self.half:
            self.loss = self.model(**self.batch).loss


def run_training(settings: Settings) -> Rows:
    """Encoder: forward and backward from the sum of its maps. Whole network: forward, loss, backward.

    bf16 and fp16 are autocast over fp32 weights, without a scaler; compiled parts are those of a recipe's `compile`.

    Raises:
        ValueError: compiled in 16 bits on a CPU, as for `qlseg train`. Other compiled steps are not compared with
            those that are not, as dropout draws other numbers in them.
    """
    kinds = settings.dtypes or ("bf16" if settings.device.type == "cuda" else "fp32",)
    if settings.compile and settings.backend == "inductor" and settings.device.type == "cpu" and {*kinds} != {"fp32"}:
        raise ValueError(
            "a training step that is compiled in 16 bits gives wrong numbers on CPUs with some C++ compilers; take "
            "--dtype fp32, or leave --compile out"
        )
    model = build(settings).train()
    networks = {"": model}
    if settings.compile:
        networks[" compiled"] = build(settings).train()
        for part in ("backbone", "pixel_encoder", "decoder"):
            getattr(networks[" compiled"], part).compile(backend=settings.backend)
    for kind, count in itertools.product(kinds, settings.training_batch_sizes):
        half, batch = half_precision(settings.device, kind), made_batch(settings, count, model.config.num_labels)

        def encoder(pixels=batch["pixel_values"], half=half):
            model.zero_grad()
            with half:
                loss = sum(maps.float().mean() for maps in model.backbone(pixels).feature_maps)
            loss.backward()

        variants = {"encoder": encoder}
        for suffix, network in networks.items():
            variants |= {f"{name}{suffix}": step for name, step in whole_steps(network, batch, half).items()}
        name = kind if kind == "fp32" else f"{kind} autocast"
        for variant, row in take_turns(variants, "encoder", settings.repeats, settings.device).items():
            yield f"training b{count} {name} {variant}", row


def whole_steps(model, batch: dict[str, torch.Tensor], half) -> dict[str, Callable]:
    """Forward, loss and backward; the same with autograd's gradient of the mask losses; with an optimiser's update."""
    from ..model.loss_qlseg import MaskLosses

    step = StepInParts(model, batch, half)

    def whole():
        for part in step.parts[:2]:
            part()

    def plain_loss():
        with mock.patch.object(MaskLosses, "apply", loss_by_autograd):
            whole()

    steps: dict[str, Callable] = {
        "whole": whole,
        "whole, gradient of the mask losses by autograd": plain_loss,
        "whole and AdamW": step,
    }
    if model.device.type == "cpu":
        steps["whole and AdamW, freed memory returned to the kernel"] = return_freed_memory(step)
    return steps


__all__ = ["StepInParts", "half_precision", "loss_by_autograd", "made_batch", "run_training"]
