# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Parameter groups from names and the learning rate from the step, as the released networks were trained.

Learning rates are per optimiser step.
"""

import re

from torch import nn

# Any class of torch, timm or transformers that normalises: LayerNorm2d, RmsNorm, Dinov2RMSNorm, ...
NORM_CLASS = re.compile(r"(Layer|Group|Batch|Instance|RMS|Rms)Norm")
# What transformers and timm call the list of a ViT's layers
LAYER_NUMBER = re.compile(r"\b(?:layers?|blocks)\.(\d+)\.")


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    head_lr_multiplier: float = 10.0,
    layer_decay: float = 1.0,
) -> list[dict]:
    """Groups for `torch.optim.AdamW`.

    Parameters of the encoder, those with `backbone` in their path, have `learning_rate`; norms there are not decayed,
    all else is, biases and embeddings included. Parameters outside have `head_lr_multiplier` times that rate and
    all are decayed. Frozen parameters are left out.

    Args:
        model: with an encoder at `backbone`, bare or wrapped (peft, DDP, torch.compile).
        learning_rate: of the encoder.
        weight_decay: of all groups but the encoder's norms.
        head_lr_multiplier: 10 in the paper.
        layer_decay: in (0, 1], 1 in the paper. Layer i = 0..L-1 of the encoder has `layer_decay ** (L - i)` times its
            rate, what comes before the layers (embeddings) `layer_decay ** (L + 1)`, what comes after them 1, as BEiT
            has it.

    Returns:
        groups with `name`, `params`, `lr` and `weight_decay`, in the order in which the model names its
        parameters. Parts with equal settings share a group; its `name` joins theirs by commas.

    Raises:
        ValueError: no parameter belongs to a `backbone`, none is trainable, `layer_decay` is outside (0, 1], or is
            below 1 for an encoder without numbered layers.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay is {layer_decay}; a factor above 0 and at most 1 is wanted, 1 for no decay")
    named = list(model.named_parameters())
    encoder_names = [name for name, _ in named if "backbone" in name.split(".")]
    if not encoder_names:
        raise ValueError(
            f"{type(model).__name__} has no parameter below `backbone`; give a QLSeg model, so that encoder and head "
            "can be told apart"
        )
    if not any(parameter.requires_grad for _, parameter in named):
        raise ValueError("every parameter is frozen; leave some trainable")
    factors = layer_factors(encoder_names, layer_decay) if layer_decay < 1 else {}

    groups = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        rate, decay, part = learning_rate * head_lr_multiplier, weight_decay, "head"
        if "backbone" in name.split("."):
            factor, part = factors.get(name, (1.0, "backbone"))
            rate = learning_rate * factor
            kinds = type(model.get_submodule(name.rpartition(".")[0])).__mro__
            if any(NORM_CLASS.search(kind.__name__) for kind in kinds):
                decay, part = 0.0, part + " norms"
        group = groups.setdefault((rate, decay), {"name": [], "params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
        if part not in group["name"]:
            group["name"].append(part)
    return [group | {"name": ", ".join(group["name"])} for group in groups.values()]


def layer_factors(names: list[str], layer_decay: float) -> dict[str, tuple[float, str]]:
    """Learning rate factor and part of every encoder parameter; `names` in the order of the forward pass."""
    layers = [None if (match := LAYER_NUMBER.search(name)) is None else int(match[1]) for name in names]
    numbers = [layer for layer in layers if layer is not None]
    if not numbers:
        raise ValueError(
            "layer_decay below 1 needs an encoder with numbered layers (layers.0, layer.0 or blocks.0 in its "
            f"parameters' names), which {names[0]} ... {names[-1]} lack; set it to 1"
        )
    num_layers, first = max(numbers) + 1, layers.index(numbers[0])
    factors = {}
    for i, (name, layer) in enumerate(zip(names, layers)):
        if layer is not None:
            factors[name] = layer_decay ** (num_layers - layer), f"backbone layer {layer}"
        elif i < first:
            factors[name] = layer_decay ** (num_layers + 1), "backbone embeddings"
        else:
            factors[name] = 1.0, "backbone"
    return factors


def learning_rate_factor(step: int, max_steps: int, warmup_steps: int, power: float = 1.0) -> float:
    """Factor on every group's learning rate at a step: polynomial decay with linear warm-up.

    Args:
        step: optimiser steps already done, so 0 for the first.
        max_steps: at which the factor reaches 0; it stays there.
        warmup_steps: during which the factor is multiplied by `1 - (1 - step / warmup_steps) * (1 - 1e-6)`, which
            starts at 1e-6; 0 for no warm-up. May exceed `max_steps`.
        power: of the decay `(1 - step / max_steps) ** power`.

    Raises:
        ValueError: `max_steps` is not positive, or `step` or `warmup_steps` is negative.
    """
    if max_steps < 1 or step < 0 or warmup_steps < 0:
        raise ValueError(
            f"step {step} of {max_steps} with {warmup_steps} warm-up steps; counts from 0, and at least 1 step in "
            "all, are wanted"
        )
    if step >= max_steps:
        return 0.0
    factor = (1 - step / max_steps) ** power
    if step < warmup_steps:
        factor *= 1 - (1 - step / warmup_steps) * (1 - 1e-6)
    return factor


def warmup_warning(max_steps: int, warmup_steps: int, power: float) -> str | None:
    """The sentence on a run that ends before its learning rate has risen to half of what was asked for; or None."""
    steps = range(min(max_steps, warmup_steps + 1))
    highest = max(learning_rate_factor(step, max_steps, warmup_steps, power) for step in steps)
    if highest >= 0.5:
        return None
    return (
        f"with warmup_steps {warmup_steps} and max_steps {max_steps} the learning rate never exceeds {highest:.2g} "
        "of learning_rate; lower warmup_steps, or give more steps"
    )


__all__ = ["learning_rate_factor", "parameter_groups", "warmup_warning"]
