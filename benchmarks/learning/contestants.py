# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Who takes part: heads on the product's own encoder, and QLSeg as `qlseg train` builds it. The rivals: `peers.py`."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from transformers import AutoBackbone

from qlseg_hf import segment
from qlseg_hf.hub.saving import QLSegImageProcessor
from qlseg_hf.model.configuration_qlseg import QLSegConfig
from qlseg_hf.model.image_io import resize_picture
from qlseg_hf.model.loss_qlseg import CompetingLosses
from qlseg_hf.model.modeling_qlseg import QLSegDetail, QLSegLabelClassifier
from qlseg_hf.model.windows import place_windows
from qlseg_hf.training.auto import DataFacts, DeviceFacts, complete_recipe
from qlseg_hf.training.build import build_processor, read_label_names
from qlseg_hf.training.encoder_choice import Encoder, find_encoder
from qlseg_hf.training.loop import make_step
from qlseg_hf.training.recipe import Recipe
from qlseg_hf.training.start import build_run, prepare_run
from qlseg_hf.utils.distributed import StopSignals
from qlseg_hf.weights import load_vit_weights, read_weights

WARMUP_STEPS = 20
# Fields of the head of the first release. What was added since, and is on by default, is not among them.
PUBLISHED = {
    "backbone_config",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "num_pixel_encoder_layers",
    "num_pixel_encoder_heads",
    "pixel_encoder_intermediate_size",
    "num_group_norm_groups",
    "num_decoder_blocks",
    "num_decoder_layers",
    "dropout",
    "initializer_range",
}


# What fresh heads have, left out one by one: fields of the configuration, or the learning rate
CHANGES = {
    "qlseg-each-mask": {"mask_activation": "sigmoid", "mask_weight": 20.0, "dice_weight": 1.0},
    "qlseg-no-classifier": {"use_label_classifier": False},
    "qlseg-no-detail": {"num_detail_channels": 0},
    "qlseg-no-class-token": {"use_class_token": False},
    "qlseg-half-rate": {"learning_rate": 1.5e-4},
}


@dataclass(frozen=True)
class Study:
    """What every contestant is given. `recipe`: of the product, complete once `complete` was called."""

    recipe: Recipe
    facts: DataFacts
    device: DeviceFacts
    accelerator: Accelerator

    def complete(self, steps: int) -> "Study":
        recipe = complete_recipe(replace(self.recipe, max_steps=steps), self.facts, self.device)[0]
        return replace(self, recipe=recipe)

    @cached_property
    def num_labels(self) -> int:
        names = read_label_names(self.recipe.label_names)[0] if self.recipe.label_names else self.facts.label_names
        return len(names)

    @cached_property
    def processor(self) -> QLSegImageProcessor:
        """Of the evaluation: windows as large as the crops of the training, and a third of one over the next."""
        return build_processor(self.recipe)

    @cached_property
    def encoder(self) -> Encoder:
        return find_encoder(self.recipe.backbone)

    @cached_property
    def ignore_index(self) -> int:
        return self.processor.ignore_index

    def autocast(self):
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")


class Contestant:
    """A network under training with a cross-entropy on its logits, and what has to be said about it.

    Args:
        name: in the table.
        study: complete.
        network: (B, 3, H, W) to (B, K, h, w) logits.
        groups: of AdamW, each with `lr`.
        encoder: where the encoder's weights come from.
        rates: a sentence on learning rates and weight decay.
        power: of the polynomial decay of the learning rate.
        warmup: steps of linear warm-up.
        setup: further settings, for JSON.
    """

    def __init__(self, name, study, network, groups, encoder, rates, *, power=0.9, warmup=WARMUP_STEPS, setup=None):
        self.name, self.study, self.network, self.encoder, self.rates = name, study, network, encoder, rates
        self.power, self.warmup, self.setup, self.num_steps = power, warmup, setup or {}, 0
        self.optimizer = torch.optim.AdamW([group | {"initial_lr": group["lr"]} for group in groups])

    def step(self, batch: dict, done: float) -> float:
        """One update; the loss. `done`: share of the training that is over, which decides the learning rate."""
        factor = min(1, (self.num_steps + 1) / max(1, self.warmup)) * (1 - done) ** self.power
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        device = self.study.accelerator.device
        with self.study.autocast():
            loss = self.loss(batch["pixel_values"].to(device), batch["labels"].to(device), done)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.num_steps += 1
        return loss.item()

    def loss(self, pixel_values: torch.Tensor, labels: torch.Tensor, done: float) -> torch.Tensor:
        logits = F.interpolate(self.network(pixel_values).float(), size=labels.shape[-2:], mode="bilinear")
        return F.cross_entropy(logits, labels, ignore_index=self.study.ignore_index)

    def scores(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(1, 3, H, W) to (1, K, h, w) probabilities."""
        return self.network(pixel_values).float().softmax(dim=1)

    def label_map(self, picture: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
        """(H, W) int64 on the CPU: the highest probability, averaged over the windows that `segment` takes as well."""
        processor, settings = self.study.processor, self.study.processor.settings()
        resized = settings.resized_size(*size)
        pixel_values = processor.normalized(resize_picture(picture, resized))[None].to(self.study.accelerator.device)
        total, count = pixel_values.new_zeros(1, self.study.num_labels, *resized), pixel_values.new_zeros(resized)
        for (top, bottom), (left, right) in place_windows(resized, *settings.window_sides(resized)):
            with self.study.autocast():
                found = self.scores(pixel_values[..., top:bottom, left:right]).float()
            found = F.interpolate(found, size=(bottom - top, right - left), mode="bilinear")
            total[..., top:bottom, left:right] += found
            count[top:bottom, left:right] += 1
        return F.interpolate(total / count, size=size, mode="bilinear").argmax(dim=1)[0].cpu()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        yield


class EncoderWithHead(nn.Module):
    """The product's encoder with its weights, the norm after its last layer, and a head on some of its levels."""

    def __init__(self, study: Study, levels: list[int], head: nn.Module):
        super().__init__()
        encoder = study.encoder
        config = encoder.config | {"out_indices": levels}
        if encoder.is_own_kind:
            config |= {"image_size": study.recipe.crop_size, "drop_path_rate": 0.0}
        built = QLSegConfig(backbone_config=config).backbone_config
        self.backbone = load_vit_weights(AutoBackbone.from_config(built), encoder.source)
        self.norm = nn.LayerNorm(encoder.width, eps=1e-6) if encoder.is_own_kind else None
        weights = read_weights(encoder.source, None, None)[0]
        if self.norm is not None and "norm.weight" in weights:
            self.norm.load_state_dict({key: weights[f"norm.{key}"] for key in ("weight", "bias")})
        self.head = head

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        *maps, last = self.backbone(pixel_values).feature_maps
        if self.norm is not None:
            last = self.norm(last.movedim(1, -1)).movedim(-1, 1)
        return self.head(torch.cat([*maps, last], dim=1))


def usual_rate(width: int) -> float:
    """Learning rate of an encoder under heads that train with a cross-entropy: tuned for `linear` at width 192."""
    return float(f"{1.5e-4 * min(1, 192 / width):.2g}")


def build_on_encoder(name: str, study: Study) -> Contestant:
    """`linear`: one layer on the last level. `mlp`: two on the middle and the last one."""
    width, depth = study.encoder.width, study.encoder.depth
    if name == "linear":
        network = EncoderWithHead(study, [depth], nn.Conv2d(width, study.num_labels, 1))
    else:
        layers = [nn.Conv2d(2 * width, width, 1), nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU()]
        layers.append(nn.Conv2d(width, study.num_labels, 1))
        network = EncoderWithHead(study, [depth // 2, depth], nn.Sequential(*layers))
    rate = usual_rate(width)
    head = list(network.head.parameters())
    rest = [parameter for key, parameter in network.named_parameters() if not key.startswith("head.")]
    groups = [{"params": rest, "lr": rate}, {"params": head, "lr": 10 * rate}]
    groups = [group | {"weight_decay": 0.01} for group in groups]
    rates = f"encoder {rate:g}, head {10 * rate:g}, decay 0.01"
    return Contestant(name, study, network, groups, "the same weights", rates)


class LinearDetail(nn.Module):
    """What fresh heads of QLSeg have beside its decoder: a linear layer on the last level, and details."""

    def __init__(self, study: Study):
        super().__init__()
        config = QLSegConfig(**study.recipe.config, num_labels=study.num_labels)
        self.backbone = load_vit_weights(AutoBackbone.from_config(config.backbone_config), study.encoder.source)
        self.classifier = QLSegLabelClassifier(config, study.encoder.width)
        self.detail = QLSegDetail(config, study.encoder.width)
        nn.init.zeros_(self.detail.classifier.weight)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        maps = self.backbone(pixel_values).feature_maps[-1]
        return self.detail(pixel_values, maps, self.classifier(maps)[None])[0]


class LinearDetailContestant(Contestant):
    """`LinearDetail` with the loss and the rates of fresh heads of QLSeg."""

    def __init__(self, study: Study):
        network, rate = LinearDetail(study), study.recipe.learning_rate
        head = [p for key, p in network.named_parameters() if not key.startswith("backbone.")]
        groups = [{"params": network.backbone.parameters(), "lr": rate}, {"params": head, "lr": 10 * rate}]
        rates = f"encoder {rate:g}, head {10 * rate:g}, decay 0.01"
        groups = [group | {"weight_decay": 0.01} for group in groups]
        super().__init__("linear-detail", study, network, groups, "the same weights", rates)

    def loss(self, pixel_values: torch.Tensor, labels: torch.Tensor, done: float) -> torch.Tensor:
        config = self.study.recipe.config
        logits, weights = self.network(pixel_values).float(), torch.ones(self.study.num_labels, device=labels.device)
        present = torch.stack([(labels == label).flatten(1).any(dim=1) for label in range(len(weights))], dim=1)
        pixel, dice = CompetingLosses.apply(logits, labels, present, weights)
        num_pixels = ((labels >= 0) & (labels < len(weights))).sum().clamp(min=1)
        return config["mask_weight"] * pixel / num_pixels + config["dice_weight"] * dice / present.sum().clamp(min=1)


class QLSegContestant(Contestant):
    """QLSeg with optimiser, schedule and step of `qlseg train`, but for the changes that `CHANGES` has."""

    def __init__(self, name: str, study: Study):
        recipe = study.recipe
        if name == "qlseg-published":
            config = {key: value for key, value in recipe.config.items() if key in PUBLISHED}
            if study.encoder.is_own_kind:
                config["backbone_config"] = config["backbone_config"] | {"use_class_token": False}
            recipe = replace(recipe, config=config, learning_rate=usual_rate(study.encoder.width))
        if name in CHANGES:
            changes = dict(CHANGES[name])
            rate = changes.pop("learning_rate", recipe.learning_rate)
            config = recipe.config | changes
            if "use_class_token" in changes:
                config["backbone_config"] = config["backbone_config"] | {
                    "use_class_token": config.pop("use_class_token")
                }
            recipe = replace(recipe, config=config, learning_rate=rate)
        self.name, self.study, self.encoder = name, replace(study, recipe=recipe), "the same weights"
        self.run = build_run(recipe, StopSignals(), [])
        prepare_run(self.run)
        self.network = self.run.network
        rate, head = recipe.learning_rate, recipe.learning_rate * recipe.head_lr_multiplier
        self.rates = f"encoder {rate:g}, head {head:g}, decay {recipe.weight_decay:g}"
        self.setup = {"recipe": {key: value for key, value in vars(recipe).items() if key not in ("data", "backbone")}}

    def step(self, batch: dict, done: float) -> float:
        steps = self.study.recipe.max_steps
        self.run.state["step"] = min(round(done * steps), steps - 1)
        return float(make_step(self.run, iter([batch])).loss)

    def label_map(self, picture: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
        with self.study.autocast():
            return segment(self.network, self.study.processor, picture)[0]

    def evaluating(self):
        return nullcontext() if self.run.average is None else self.run.average.swap_in(self.network)


OWN = {
    "linear": partial(build_on_encoder, "linear"),
    "mlp": partial(build_on_encoder, "mlp"),
    "linear-detail": LinearDetailContestant,
    "qlseg": partial(QLSegContestant, "qlseg"),
    "qlseg-published": partial(QLSegContestant, "qlseg-published"),
}
ABLATIONS = {name: partial(QLSegContestant, name) for name in CHANGES}

__all__ = ["ABLATIONS", "OWN", "Contestant", "Study", "usual_rate"]
