# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a recipe leaves open, decided from data, encoder and machine. One table of rules; nothing is drawn or timed.

Every key that is None is decided here once, at the first start of a run; the decisions are written to `recipe.yaml` in
the folder of the run and beside each checkpoint, and a run that goes on takes them from there, whatever the machine.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..data.augmentation import LONG_SIDE
from ..data.check.suggestions import MOST_CROP, suggest_crop_size
from ..model.configuration_qlseg import QLSegViTConfig
from ..model.processor_settings import as_size
from ..utils.text import printable
from ..utils.yaml_text import write_on_one_line
from .encoder_choice import SIZES, Encoder, find_encoder, find_normalization
from .recipe import Recipe

MEASURED_SPREAD = 0.41  # deviation of the first mask logits of the head that was tuned by hand; see `head_config`
CPU_STEPS = 800  # nine minutes of CamVid with a ViT-Tiny on two cores, see docs/comparison.md
GPU_EPOCHS, LEAST_STEPS, MOST_STEPS = 50, 2000, 20_000
CPU_CROP = 320  # pixels that the side of a crop has at most; elsewhere it is what `qlseg check` suggests
FEW_EPOCHS = 25  # fewer show each image too seldom for strong augmentation to pay
ENLARGEMENT = 1.5  # short side of images over that of crops, of a fresh head: masks begin on patches
CPU_BATCH, GPU_BATCH = 4, 16
# bytes of a training step in bf16 per pixel of its images, by encoder width; estimates
GPU_BYTES_PER_PIXEL = {384: 12_000, 768: 30_000, 1024: 55_000}
GPU_SHARE = 0.8  # of its memory that a step may take
MOST_EXTRA = 0.5  # of a batch
RULES = ("do_reduce_labels", "ignore_index", "label_mapping")
AS_TRAINED = "that the encoder was trained with"

Decision = tuple[str, tuple[Any, str]]  # key, (value, why)


@dataclass(frozen=True)
class DataFacts:
    """What the decisions depend on.

    `num_images`: of the training split that can be read; None if nobody has counted them. `short_side`: median of the
    short sides of its images, pixels. `label_names`: of the layout or found by value, or None. `num_channels`: bands
    of an image. `band_settings`: of a processor for these bands; {} for 8-bit RGB. `rules`: how stored values become
    labels. `label_weights`: suggested, by name. `num_eval_images`: of the split to evaluate on. `window_size`: of the
    model that training starts from, if it does, and `processor_side` the short side that images are resized to for it.
    `num_extra_images`: of the sets of `extra_data`.
    """

    num_images: int | None
    short_side: int
    label_names: list[str] | None = None
    num_channels: int = 3
    band_settings: dict[str, Any] = field(default_factory=dict)
    rules: dict[str, Any] = field(default_factory=dict)
    label_weights: dict[str, float] | None = None
    window_size: int | None = None
    processor_side: int | None = None
    num_eval_images: int = 0
    num_extra_images: int = 0


@dataclass(frozen=True)
class DeviceFacts:
    """`kind`: "cpu", "cuda", ... `memory`: bytes of one device, or None where it does not matter. `num_cores`: for
    each process. `precision`: what the launcher was told, else the best that the device has."""

    kind: str
    memory: int | None = None
    num_processes: int = 1
    num_cores: int = 2
    precision: str = "fp32"

    @property
    def is_cpu(self) -> bool:
        return self.kind == "cpu"


def complete_recipe(recipe: Recipe, data: DataFacts, device: DeviceFacts) -> tuple[Recipe, list[tuple[str, str]]]:
    """Decide every key that is None.

    Returns:
        the recipe, complete, and (key, "value: why") of what was decided, in order, for people.

    Raises:
        ValueError: there are no label names, or the encoder cannot be found; see `find_encoder`.
    """
    told = []
    for decide in (_labels, _mixture, _network, _batch, _schedule, _augmentation, _machine):
        decided = dict(decide(recipe, data, device))
        recipe = replace(recipe, **{key: value for key, (value, _) in decided.items()})
        told += [(key, f"{_short(value)}{f': {why}' if why else ''}") for key, (value, why) in decided.items()]
    return recipe, told


def _short(value: Any) -> str:
    text = write_on_one_line(value)
    return printable(text if len(text) <= 100 else f"{text[:97]}...")


def _labels(recipe: Recipe, data: DataFacts, device: DeviceFacts) -> Iterator[Decision]:
    """What the labels are called and how they are stored. A model has its own names, rules and bands."""
    if recipe.label_weights == "auto":
        if data.label_weights is None:
            raise ValueError(
                "label_weights: auto looks at the data when a run starts, and this one goes on; give the factors"
            )
        yield "label_weights", (data.label_weights, "more for rare labels")
    if recipe.model:
        return
    if recipe.label_names is None:
        if not data.label_names:
            raise ValueError("label_names is needed: neither the recipe nor the data say what the labels are called")
        yield "label_names", (data.label_names, "of the data")
    for key in RULES:
        if getattr(recipe, key) is None and key not in recipe.processor and key in data.rules:
            yield key, (data.rules[key], "as the label maps are stored")
    if recipe.num_channels is None:
        yield "num_channels", (data.num_channels, "bands of the images")


def _mixture(recipe: Recipe, data: DataFacts, device: DeviceFacts) -> Iterator[Decision]:
    """How much of a batch is of `extra_data`."""
    if recipe.extra_data and recipe.extra_data_share is None:
        extra, own = data.num_extra_images, data.num_images
        share = MOST_EXTRA if own is None else max(0.001, round(min(MOST_EXTRA, extra / (extra + own)), 3))
        yield "extra_data_share", (share, f"of each batch, of {extra} extra images beside {own}")


def _network(recipe: Recipe, data: DataFacts, device: DeviceFacts) -> Iterator[Decision]:
    """Encoder, head, normalisation, and the side of the images that they see."""
    described, encoder, patch = recipe.config.get("backbone_config"), None, 16
    if not recipe.model and described is None:
        encoder = find_encoder(recipe.backbone or ("small" if device.is_cpu else "base"))
        patch = encoder.patch_size
        if encoder.source != recipe.backbone:
            yield "backbone", (encoder.source, f"{encoder.width} wide, {encoder.depth} layers")
    elif isinstance(described, dict) and isinstance(described.get("patch_size"), int):
        patch = described["patch_size"]
    crop = recipe.crop_size
    if crop is None and data.window_size is not None:
        crop = data.window_size
        yield "crop_size", (crop, "as the model's windows")
    elif crop is None:
        crop = suggest_crop_size([(data.short_side,) * 2], patch, CPU_CROP if device.is_cpu else MOST_CROP)
        yield "crop_size", (crop, f"the images' short side is {data.short_side}, patches are {patch} pixels wide")
    if recipe.resize_box is None and (side := _short_side(recipe, data, crop, patch, encoder is not None)):
        yield "resize_box", ([LONG_SIDE, side[0]], f"long and short side of the images, {side[1]}")
    if encoder is None:
        settings, why = data.band_settings, "of the bands"
        if isinstance(described, dict) and "num_channels" not in described and recipe.num_channels not in (None, 3):
            backbone = described | {"num_channels": recipe.num_channels}
            yield "config", (recipe.config | {"backbone_config": backbone}, "bands of the images")
        if recipe.backbone and not settings and not {"image_mean", "image_std"} & set(recipe.processor):
            mean, std, note = find_normalization(recipe.backbone)
            settings, why = {"image_mean": mean, "image_std": std}, note or AS_TRAINED
    else:
        head = head_config(encoder, crop, recipe.num_channels or data.num_channels)
        yield "config", (head | recipe.config, "a head that fits the encoder")
        settings = data.band_settings or {"image_mean": encoder.image_mean, "image_std": encoder.image_std}
        why = "of the bands" if data.band_settings else encoder.note or AS_TRAINED
    if not recipe.model and settings and not {"image_mean", "image_std"} & set(recipe.processor):
        yield "processor", (settings | recipe.processor, why)


def _short_side(
    recipe: Recipe, data: DataFacts, crop: int, patch: int, has_fresh_head: bool
) -> tuple[int, str] | None:
    """Of the images that crops are cut from, and why; None for that of the crops."""
    if not has_fresh_head:
        return (data.processor_side, "as the model's processor has it") if data.processor_side else None
    if not recipe.processor.get("do_resize", True):
        return None
    if size := recipe.processor.get("size"):
        return min(dict(as_size(size, recipe.processor.get("default_to_square"))).values()), "as processor has it"
    return round(ENLARGEMENT * crop / patch) * patch, f"{ENLARGEMENT} times the crops"


def _batch(recipe: Recipe, data: DataFacts, device: DeviceFacts) -> Iterator[Decision]:
    """Images per step, which decide what is learnt, and per forward pass, which the memory decides."""
    total, per_device, processes = recipe.total_batch_size, recipe.per_device_batch_size, device.num_processes
    if total is None:
        unit = (per_device or 1) * processes
        total = unit * max(1, (CPU_BATCH if device.is_cpu else GPU_BATCH) // unit)
        yield "total_batch_size", (total, "images per step")
    if per_device is None:
        width = (recipe.config.get("backbone_config") or {}).get("hidden_size")
        fit = _images_that_fit(recipe.crop_size, width, device)
        share = total // processes  # a total that does not divide is refused later, with its sentence
        sizes = [size for size in range(1, min(fit, max(share, 1)) + 1) if share % size == 0]
        yield "per_device_batch_size", (max(sizes, default=1), "that fit the memory; the rest is accumulated")


def _images_that_fit(crop: int, width: int | None, device: DeviceFacts) -> int:
    """How many images of a training step are estimated to fit the device's memory, at least one.

    On a CPU there is no estimate: a step is small, and memory is not what limits it. Nor is there for other devices
    whose memory is unknown, which take two.
    """
    if device.memory is None:
        return 1 << 16 if device.is_cpu else 2
    nearest = min(GPU_BYTES_PER_PIXEL, key=lambda known: abs(known - (width or 1024)))
    return max(1, int(GPU_SHARE * device.memory / (GPU_BYTES_PER_PIXEL[nearest] * crop * crop)))


def _schedule(recipe: Recipe, data: DataFacts, device: DeviceFacts) -> Iterator[Decision]:
    """Steps, learning rate and intervals."""
    steps = recipe.max_steps
    if steps is None:
        steps, why = _number_of_steps(recipe, data, device)
        yield "max_steps", (steps, why)
    if recipe.learning_rate is None:
        described = recipe.config.get("backbone_config") or {}
        width = None if recipe.model else described.get("hidden_size", QLSegViTConfig.hidden_size)
        yield "learning_rate", (encoder_rate(width), "by the encoder's width" if width else "the paper's")
    if recipe.warmup_steps is None:
        yield "warmup_steps", (min(1500, max(1, steps // 20), steps - 1), "")
    every = recipe.eval_steps
    if every is None:
        # steps that take as long as an evaluation: an image is about six windows, a window a third of a step's image
        cost = math.ceil(2 * data.num_eval_images / recipe.total_batch_size)
        every = min(4000, steps, max(1, steps // 8, min(steps // 4, 4 * cost), cost))
        yield "eval_steps", (every, f"an evaluation takes about as long as {cost} steps" if cost else "")
    if recipe.save_steps is None:
        yield "save_steps", (min(1000, every), "")


def _number_of_steps(recipe: Recipe, data: DataFacts, device: DeviceFacts) -> tuple[int, str]:
    """Optimiser steps, and why."""
    count, batch = data.num_images, recipe.total_batch_size * (1 - (recipe.extra_data_share or 0))
    if recipe.epochs is not None:
        if count is None:
            raise ValueError("epochs cannot be counted, because the number of images is unknown; set max_steps")
        steps = max(1, math.ceil(recipe.epochs * count / batch))
        return steps, f"{recipe.epochs:g} epochs of {count} images"
    steps = CPU_STEPS if device.is_cpu else LEAST_STEPS
    if count is None:
        return steps, ""
    if not device.is_cpu:
        steps = min(max(round(GPU_EPOCHS * count / batch), LEAST_STEPS), MOST_STEPS)
    return steps, f"{steps * batch / count:.1f} epochs of {count} images"


def _augmentation(recipe: Recipe, data: DataFacts, device: DeviceFacts) -> Iterator[Decision]:
    """How far samples may be from their images: less in a short run of a fresh head."""
    is_short, why = False, ""
    if data.num_images and not recipe.model:
        epochs = recipe.max_steps * recipe.total_batch_size * (1 - (recipe.extra_data_share or 0)) / data.num_images
        is_short = epochs < FEW_EPOCHS
        why = f"{'fewer' if is_short else 'no fewer'} than {FEW_EPOCHS} epochs"
    if recipe.scale_range is None:
        yield "scale_range", ([0.75, 1.5] if is_short else [0.5, 2.0], why)
    if recipe.photometric is None:
        yield "photometric", (not is_short, why)


def _machine(recipe: Recipe, data: DataFacts, device: DeviceFacts) -> Iterator[Decision]:
    if recipe.precision is None:
        yield "precision", (device.precision, "")
    if recipe.num_workers is None:
        yield "num_workers", (min(4, max(1, device.num_cores - device.is_cpu)), f"of {device.num_cores} cores")


def encoder_rate(width: int | None) -> float:
    """Learning rate of an encoder under a fresh head: 3e-4 at width 192, tuned by hand, and less the wider it is.

    Of a trained model (`width` None) 1e-5, the paper's.
    """
    return 1e-5 if width is None else float(f"{3e-4 * min(1, 192 / width):.2g}")


def head_config(encoder: Encoder, crop_size: int, num_channels: int = 3) -> dict:
    """Fields of `QLSegConfig` for a fresh head on an encoder.

    From width 768 on it is the released networks' head, below one layer of each part is enough; with masks that
    compete, a label classifier and details, which the released networks do not have: see `docs/comparison.md` for what
    each gains. Weights are drawn so that the first mask logits have the same deviation at any width; with the released
    networks' 0.02, which is for 160 000 steps, the head had learnt next to nothing after 100.
    """
    width, depth = encoder.width, encoder.depth
    is_small = width < 768
    hidden = max(128, (width // 2 + 63) // 64 * 64)
    heads = hidden // 32
    third, half = depth // 3, depth // 2
    levels = [half, depth] if is_small else [half, depth * 2 // 3, depth] if depth <= 12 else [third, 2 * third, depth]
    levels = [level for level in levels if level > 0]
    backbone = encoder.config | {"out_indices": levels, "num_channels": num_channels}
    if encoder.is_own_kind:
        backbone |= {"image_size": crop_size, "drop_path_rate": 0.0 if is_small else 0.1}
    head = {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": hidden * (2 if is_small else 4),
        "num_pixel_encoder_heads": _divisor(width, 4 if is_small else 8),
        "num_group_norm_groups": _divisor(width, 16 if is_small else 32),
        "initializer_range": round(math.sqrt(MEASURED_SPREAD * math.sqrt(heads) / hidden), 3),
        "mask_activation": "softmax",
        "mask_weight": 1.0,
        "dice_weight": 2.0,
        "use_label_classifier": True,
        "num_detail_channels": min(64, max(32, width // 6 // 8 * 8)),
        "backbone_config": backbone,
    }
    if is_small:
        head |= {
            "num_pixel_encoder_layers": 1,
            "pixel_encoder_intermediate_size": 256,
            "num_decoder_blocks": 1,
            "num_decoder_layers": 1,
            "dropout": 0.0,
        }
    return head


def _divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return max(size for size in range(1, most + 1) if number % size == 0)


def take_decisions(recipe: Recipe, stored: dict) -> Recipe:
    """The recipe of a run that goes on: what is open in it is as `stored` has it, the recipe of an earlier start.

    Other `epochs` are counted anew; network and normalisation are taken over only where the recipe leaves them open.

    Raises:
        ValueError: the recipe names another encoder than the run was started with.
    """
    given = {entry.name: getattr(recipe, entry.name) for entry in fields(recipe)}
    taken = {key: stored[key] for key, value in given.items() if value is None and stored.get(key) is not None}
    if recipe.epochs is not None and recipe.epochs != stored.get("epochs"):
        taken.pop("max_steps", None)
    is_open = not recipe.model and "backbone_config" not in recipe.config
    if recipe.backbone in SIZES and stored.get("backbone"):
        taken["backbone"] = stored["backbone"]
    elif is_open and recipe.backbone and recipe.backbone != stored.get("backbone"):
        raise ValueError(
            f"backbone is {recipe.backbone}, but the run that goes on was started from {stored.get('backbone')}; give "
            "that one or none, or choose another output_dir"
        )
    if recipe.model is None and stored.get("model"):  # a run that started from a model has no encoder of its own
        taken.pop("backbone", None)
    if is_open and isinstance(stored.get("config"), dict):
        taken["config"] = stored["config"] | recipe.config
    if isinstance(stored.get("processor"), dict):
        bands = ("image_mean", "image_std", "do_rescale", "rescale_factor")
        kept = {key: value for key, value in stored["processor"].items() if key in bands}
        taken["processor"] = kept | recipe.processor
    if recipe.label_weights == "auto" and stored.get("label_weights") is not None:
        taken["label_weights"] = stored["label_weights"]
    return replace(recipe, **taken)


__all__ = ["DataFacts", "DeviceFacts", "complete_recipe", "encoder_rate", "head_config", "take_decisions"]
