# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The pixel encoder's sampling by itself: the Triton kernel and transformers' layer against the plain version."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from huggingface_hub import constants

from ..model import deformable_attention as sampling
from ..model import deformable_attention_triton as sampling_triton
from .measure import Rows, take_turns
from .settings import DTYPES, Settings, build
from .training import half_precision, made_batch

# Of the largest number: a unit in the last place, and what sums in another order differ by.
ROUNDING = {"fp32": 1e-5, "bf16": 2**-7, "fp16": 2**-10}
HUB_KERNEL = "models--kernels-community--deformable-detr"  # its folder in the Hub's cache


def draw_inputs(settings: Settings, batch: int, dtype: torch.dtype) -> tuple[list[torch.Tensor], sampling.Grid]:
    """Value (B, L * N, heads, c), offsets and fp32 weights as a release's pixel encoder has them; its grid.

    Some offsets lead far outside of the map.
    """
    with torch.device("meta"):
        attention = build(settings, device="meta").pixel_encoder.layers[0].self_attn
    heads, levels, points = attention.shape
    side = settings.size // 16
    tokens, width = levels * side * side, attention.value_proj.out_features // heads
    generator = torch.Generator(settings.device).manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=settings.device)

    value, offsets = draw(batch, tokens, heads, width), 3 * draw(batch, tokens, heads, levels, points, 2)
    weights = draw(batch, tokens, heads, levels * points).softmax(-1).unflatten(-1, (levels, points))
    inputs = [value.to(dtype), offsets.to(dtype), weights]
    return [tensor.requires_grad_() for tensor in inputs], (side, side)


def sample_plain(*inputs) -> torch.Tensor:
    with mock.patch.object(sampling_triton, "CAN_LAUNCH", False):
        return sampling.sample_levels(*inputs)


def transformers_layer(device: torch.device, is_kernel: bool) -> Callable:
    """transformers' `MultiScaleDeformableAttention` with the arguments of `sample_levels`, as it is or the Hub's."""
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    layer = MultiScaleDeformableAttention()
    if is_kernel:
        from kernels import Mode, kernelize

        layer = kernelize(layer, mode=Mode.TRAINING, device=device.type)
        if "forward" not in vars(layer):
            raise RuntimeError("kernels left transformers' layer as it was; see its warnings above")

    def sample(value, offsets, weights, grid):
        levels, (h, w) = offsets.shape[3], grid
        x, y = (numbers.flatten() for numbers in sampling.cells(grid, levels, value.device))
        own = torch.stack([x, y], dim=-1)[:, None, None, None] - 0.5  # of padded maps
        places = (own + offsets.float()) / torch.tensor([w, h], device=value.device)
        shapes = torch.tensor([grid] * levels, device=value.device)
        starts = torch.arange(levels, device=value.device) * h * w
        return layer(value, shapes, [grid] * levels, starts, places.to(value), weights.to(value), 64)

    return sample


def contestants(device: torch.device) -> dict[str, Callable]:
    """What samples: kernels where there is a GPU, and transformers' from the Hub where it is installed and fetched."""
    found = {"plain": sample_plain, "transformers' layer": transformers_layer(device, False)}
    if device.type == "cuda":
        found["Triton kernel"] = sampling_triton.fused_sample_levels
        if importlib.util.find_spec("kernels") and (Path(constants.HF_HUB_CACHE) / HUB_KERNEL).is_dir():
            found["transformers' kernel of the Hub"] = transformers_layer(device, True)
    return found


def gradients(function: Callable, inputs: list[torch.Tensor], grid: sampling.Grid, seed: torch.Tensor | None = None):
    """The result and its gradients by value, offsets and weights."""
    out = function(*inputs, grid)
    return [
        out.detach(),
        *torch.autograd.grad(out, inputs, torch.ones_like(out) if seed is None else seed.to(out.dtype)),
    ]


def run_sampler(settings: Settings, kind: str) -> Rows:
    """Errors of values and gradients against the plain version in fp32; then time and peak memory, in turns.

    Raises:
        ArithmeticError: at the end, if an error is larger than rounding, or not a number: of the Triton kernel, and
            in fp32 of the others too.
    """
    wrong = []
    for batch in settings.batch_sizes:
        inputs, grid = draw_inputs(settings, batch, DTYPES[kind])
        exact = [tensor.detach().float().requires_grad_() for tensor in inputs]
        seed = torch.randn(sample_plain(*exact, grid).shape, device=settings.device)
        expected = gradients(sample_plain, exact, grid, seed.to(DTYPES[kind]).float())
        variants = {"forward": {}, "forward and backward": {}}
        for name, function in contestants(settings.device).items():
            found = gradients(function, inputs, grid, seed)
            errors = {
                f"{what}_error": float((mine.float() - theirs).abs().max() / theirs.abs().max().clamp(min=1))
                for what, mine, theirs in zip(("value", "by_value", "by_offsets", "by_weights"), found, expected)
            }
            yield f"sampler b{batch} {kind} {name}", errors | {"tolerance": ROUNDING[kind]}
            is_checked = kind == "fp32" or name == "Triton kernel"  # the others add up in half precision
            if is_checked and not all(error <= ROUNDING[kind] for error in errors.values()):
                wrong.append(f"{name} at batch {batch}")
            variants["forward"][name] = torch.no_grad()(lambda f=function, i=inputs, g=grid: f(*i, g))
            variants["forward and backward"][name] = lambda f=function, i=inputs, g=grid: gradients(f, i, g)
        for what, functions in variants.items():
            rows = take_turns(functions, "plain", settings.repeats, settings.device)
            yield from ((f"sampler b{batch} {kind} {what}: {name}", row) for name, row in rows.items())
    if wrong:
        raise ArithmeticError(f"larger errors than rounding: {', '.join(wrong)}; see the rows")


def run_sampler_in_network(settings: Settings, kind: str) -> Rows:
    """Forward pass and training step of the whole network with and without the kernel; both plain on a CPU."""
    other = "Triton kernel" if settings.device.type == "cuda" else "plain again"
    for count in settings.training_batch_sizes:
        model = build(settings)
        batch = made_batch(settings, count, model.config.num_labels)

        def forward(can_launch, model=model, pixels=batch["pixel_values"]):
            with mock.patch.object(sampling_triton, "CAN_LAUNCH", can_launch), torch.no_grad():
                with half_precision(settings.device, kind):
                    model.eval()(pixels)

        def step(can_launch, model=model, batch=batch):
            model.zero_grad()
            with mock.patch.object(sampling_triton, "CAN_LAUNCH", can_launch):
                with half_precision(settings.device, kind):
                    loss = model.train()(**batch).loss
                loss.backward()

        for what, function in (("forward", forward), ("training step", step)):
            variants = {"plain": lambda f=function: f(False), other: lambda f=function: f(True)}
            rows = take_turns(variants, "plain", settings.repeats, settings.device)
            yield from ((f"network b{count} {kind} {what}: {name}", row) for name, row in rows.items())


__all__ = ["ROUNDING", "run_sampler", "run_sampler_in_network"]
