"""What a recipe leaves open, decided from data, encoder and machine. One table of rules; nothing is drawn or timed.

Every key that is None is decided here once, at the start of a run; the decisions are written to `recipe.yaml` in the
folder of the run, and a run that goes on reads them from there.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from .encoder import Encoder, find_encoder
from .recipe import Recipe, read_yaml

MEASURED_SPREAD = 0.41  # deviation of the first mask logits of the head that was tuned by hand; see `head_config`
CPU_STEPS = 800  # about ten minutes with a ViT-Tiny on two cores
GPU_EPOCHS, LEAST_STEPS, MOST_STEPS = 50, 2000, 20_000
# image side that a crop has at most, by the device
CPU_CROP, GPU_CROP = 224, 512
GPU_BYTES_PER_PIXEL = {
    384: 12_000,
    768: 30_000,
    1024: 55_000,
}  # of a training step in bf16, by encoder width; estimates


@dataclass(frozen=True)
class DataFacts:
    """What the decisions depend on.

    `num_images`: of the training split. `short_side`: median of the short sides of its images, pixels. `label_names`:
    of the layout or found by value, or None. `num_channels`: bands of an image.
    """

    num_images: int | None
    short_side: int
    label_names: list[str] | None = None
    num_channels: int = 3


@dataclass(frozen=True)
class DeviceFacts:
    """`kind`: "cpu", "cuda", ... `memory`: bytes of one device, or None where it does not matter."""

    kind: str
    memory: int | None = None
    num_processes: int = 1


def complete_recipe(recipe: Recipe, data: DataFacts, device: DeviceFacts) -> tuple[Recipe, list[tuple[str, str]]]:
    """Decide every key that is None.

    Returns:
        the recipe, complete, and (key, "value: why") of what was decided, in order, for people.

    Raises:
        ValueError: there are no label names, or the encoder cannot be found; see `find_encoder`.
    """
    decided = dict(_decisions(recipe, data, device))
    values = {key: value for key, (value, _) in decided.items()}
    return dataclasses.replace(recipe, **values), [
        (key, f"{_short(value)}: {why}" if why else _short(value)) for key, (value, why) in decided.items()
    ]


def _short(value) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).strip().removesuffix("...").strip()
    return text if len(text) <= 100 else text[:97] + "..."


def _decisions(recipe: Recipe, data: DataFacts, device: DeviceFacts) -> Iterator[tuple[str, tuple]]:
    """(key, (value, reason)) of every key that is left open."""
    is_cpu = device.kind == "cpu"
    patch, width = 16, None
    if recipe.label_names is None and not recipe.model:
        if not data.label_names:
            raise ValueError("label_names is needed: neither the recipe nor the data say what the labels are called")
        yield "label_names", (data.label_names, "of the data")
    if not recipe.model and "backbone_config" not in recipe.config:
        encoder = find_encoder(recipe.backbone or ("small" if is_cpu else "base"))
        patch, width = encoder.patch_size, encoder.width
        yield "backbone", (encoder.source, f"{encoder.width} wide, {encoder.depth} layers")
    crop = recipe.crop_size
    if crop is None:
        limit = CPU_CROP if is_cpu else GPU_CROP
        crop = max(patch, min(limit, data.short_side) // patch * patch)
        yield "crop_size", (crop, f"images have a short side of {data.short_side}, patches of {patch} pixels")
    if width is not None:
        head = head_config(encoder, crop, data.num_channels) | recipe.config
        yield "config", (head, "a head that fits the encoder")
        normalization = {"image_mean": encoder.image_mean, "image_std": encoder.image_std}
        if data.num_channels == 3 and not {"image_mean", "image_std"} & set(recipe.processor):
            yield "processor", (recipe.processor | normalization, encoder.note or "that the encoder was trained with")
    total, per_device = recipe.total_batch_size, recipe.per_device_batch_size
    if total is None:
        total = 4 if is_cpu else 16
        total = (
            per_device * device.num_processes * max(1, total // (per_device * device.num_processes))
            if (per_device)
            else max(total // device.num_processes, 1) * device.num_processes
        )
        yield "total_batch_size", (total, "")
    if per_device is None:
        per_device = _images_that_fit(total // device.num_processes, crop, width, device)
        yield "per_device_batch_size", (per_device, "that fits the memory; the rest is accumulated")
    max_steps = recipe.max_steps
    if max_steps is None:
        max_steps, why = _number_of_steps(recipe, data, total, is_cpu)
        yield "max_steps", (max_steps, why)
    yield from _rates_and_intervals(recipe, width, max_steps)


def _number_of_steps(recipe: Recipe, data: DataFacts, batch: int, is_cpu: bool) -> tuple[int, str]:
    """Optimiser steps, and why."""
    if recipe.epochs is not None:
        if data.num_images is None:
            raise ValueError("epochs cannot be counted in a stream, whose length is unknown; set max_steps")
        return max(
            1, math.ceil(recipe.epochs * data.num_images / batch)
        ), f"{recipe.epochs:g} epochs of {data.num_images} images"
    if is_cpu or data.num_images is None:
        steps = CPU_STEPS if is_cpu else LEAST_STEPS
    else:
        steps = min(max(round(GPU_EPOCHS * data.num_images / batch), LEAST_STEPS), MOST_STEPS)
    if data.num_images is None:
        return steps, ""
    return steps, f"{steps * batch / data.num_images:.1f} epochs of {data.num_images} images"


def _rates_and_intervals(recipe: Recipe, width: int | None, max_steps: int) -> Iterator[tuple[str, tuple]]:
    if recipe.learning_rate is None:
        yield "learning_rate", (encoder_rate(width), "by the width of the encoder" if width else "of a trained model")
    if recipe.warmup_steps is None:
        yield "warmup_steps", (min(1500, max(1, max_steps // 20)), "")
    if recipe.eval_steps is None:
        yield "eval_steps", (min(4000, max(1, max_steps // 8)), "")
    if recipe.save_steps is None:
        yield "save_steps", (min(1000, recipe.eval_steps or max(1, max_steps // 8)), "")


def _images_that_fit(batch: int, crop: int, width: int | None, device: DeviceFacts) -> int:
    """The largest divisor of `batch` whose training step is estimated to fit the device's memory."""
    if device.kind == "cpu" or device.memory is None:
        return batch
    nearest = min(GPU_BYTES_PER_PIXEL, key=lambda known: abs(known - (width or 1024)))
    fit = max(1, int(0.8 * device.memory / (GPU_BYTES_PER_PIXEL[nearest] * crop * crop)))
    return max(size for size in range(1, batch + 1) if batch % size == 0 and size <= max(fit, 1))


def encoder_rate(width: int | None) -> float:
    """Learning rate of an encoder under a fresh head: 1.5e-4 at width 192, tuned by hand, and less the wider it is.

    Of a trained model (`width` None) 1e-5, the paper's.
    """
    return 1e-5 if width is None else float(f"{1.5e-4 * min(1, 192 / width):.2g}")


def head_config(encoder: Encoder, crop_size: int, num_channels: int = 3) -> dict:
    """Fields of `QLSegConfig` for a fresh head on an encoder.

    From width 768 on it is the released networks' head. Below, one layer of each part is enough: at width 192 with
    400 steps this head reached 53.9 mIoU on CamVid. Its weights are drawn so that the first mask logits have the same
    deviation at any width; with the released networks' 0.02, which is for 160 000 steps, the head had learnt next to
    nothing after 100.
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
        "backbone_config": backbone,
    }
    if is_small:
        head |= {
            "num_pixel_encoder_layers": 1,
            "pixel_encoder_intermediate_size": 256,
            "num_decoder_blocks": 2,
            "num_decoder_layers": 1,
            "dropout": 0.0,
        }
    return head


def _divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return max(size for size in range(1, most + 1) if number % size == 0)


def read_decisions(output_dir: Path) -> dict:
    """What an earlier start of the run decided, by key; {} if there was none."""
    path = output_dir / "recipe.yaml"
    return read_yaml(path.read_text(encoding="utf-8")) if path.is_file() else {}


def take_decisions(recipe: Recipe, stored: dict) -> Recipe:
    """The recipe of a run that goes on: what is open in it is as at the first start, fields of the network too."""
    given = {entry.name: getattr(recipe, entry.name) for entry in dataclasses.fields(recipe)}
    taken = {key: stored[key] for key, value in given.items() if value is None and stored.get(key) is not None}
    taken |= {key: stored[key] | given[key] for key in ("config", "processor") if key in stored}
    return dataclasses.replace(recipe, **taken)


__all__ = [
    "DataFacts",
    "DeviceFacts",
    "complete_recipe",
    "encoder_rate",
    "head_config",
    "read_decisions",
    "take_decisions",
]
