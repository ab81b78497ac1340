# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Configuration, processor and weights of this package, out of the numbers and weights of a checkpoint."""

import re

import numpy as np
import torch
from tqdm import tqdm

from ..hub.saving import QLSegForSemanticSegmentation, QLSegImageProcessor
from ..model.configuration_qlseg import QLSegConfig, QLSegViTConfig
from .errors import ConversionError
from .key_table import DROPPED_KEYS, new_names, old_name
from .network_numbers import FIELDS


def find_labels(meta: dict) -> tuple:
    """Label names and palette as mmcv or mmengine store them, unchecked; None for what there is not."""
    dataset = meta.get("dataset_meta")
    for part in (meta, dataset if isinstance(dataset, dict) else {}):
        for classes, palette in (("CLASSES", "PALETTE"), ("classes", "palette")):
            if (names := part.get(classes)) is not None and names not in ((), []):
                return names, part.get(palette)
    return None, None


def make_config(numbers: dict, names: list[str], palette) -> QLSegConfig:
    heads = QLSegConfig().num_pixel_encoder_heads  # no source states it; 8 in every release
    points, rest = divmod(numbers["num_samples"], heads * numbers["num_levels"])
    if rest:
        raise ConversionError(f"{numbers['num_samples']} attention weights are not {heads} heads x levels x points")
    if palette is not None:
        try:
            palette = np.asarray(palette)
        except ValueError:  # rows of different lengths
            palette = np.zeros(0)
        is_whole = palette.dtype.kind in "iu" and palette.shape == (len(names), 3)
        if not is_whole or palette.min() < 0 or palette.max() > 255:
            raise ConversionError(f"the palette must hold {len(names)} RGB triples of 0..255")
        palette = palette.tolist()
    vit = {key.partition(".")[2]: value for key, value in numbers.items() if key.startswith("backbone.")}
    return QLSegConfig(
        backbone_config=QLSegViTConfig(**({"layer_norm_eps": 1e-6, "drop_path_rate": 0.0} | vit)),
        num_pixel_encoder_heads=heads,
        num_pixel_encoder_points=points,
        id2label=dict(enumerate(names)),
        palette=palette,
        **{field: numbers[field] for field in FIELDS},
    )


def make_processor(numbers: dict) -> QLSegImageProcessor:
    defaults = dict.fromkeys(("window_size", "window_stride"), numbers["backbone.image_size"])
    defaults |= {"do_sliding_window": True, "do_reduce_labels": False}
    return QLSegImageProcessor(
        size={"shortest_edge": numbers["short_side"]},
        image_mean=[round(m / 255, 12) for m in numbers["mean"]],
        image_std=[round(s / 255, 12) for s in numbers["std"]],
        **{name: numbers.get(name, value) for name, value in defaults.items()},
    )


def rename_weights(state_dict: dict[str, torch.Tensor], config: QLSegConfig):
    """Our weights, {source key: our keys}, {dropped key: reason}. Every key is accounted for, or this raises."""
    with torch.device("meta"):
        wanted = {key: value.shape for key, value in QLSegForSemanticSegmentation(config).state_dict().items()}
    parts, used, dropped, problems = {}, {}, {}, []
    for key, value in tqdm(state_dict.items(), desc="reading weights", unit="key", leave=False):
        reason = next((reason for pattern, reason in DROPPED_KEYS.items() if re.fullmatch(pattern, key)), None)
        if reason:
            dropped[key] = reason
            continue
        names = new_names(key)
        if not names:
            problems.append(f"unexpected key {key}")
            continue
        if not torch.isfinite(value).all():
            problems.append(f"{key} holds values that are not finite")
        if key == "backbone.pos_embed":
            value = value[:, 1:]
        if value.shape[0] % len(names):
            problems.append(f"{key} has shape {tuple(value.shape)}, whose rows are not q, k and v")
            continue
        used[key] = names
        for name, part in zip(names, value.chunk(len(names))):
            shape = wanted.get(name, wanted.get(name.split("[")[0], [None])[1:])
            if not shape:
                problems.append(f"unexpected key {key}: this network has no {name}")
            elif tuple(part.shape) != tuple(shape):
                problems.append(f"{key} has shape {tuple(part.shape)} instead of {tuple(shape)}")
            else:
                parts[name] = part
    stacked = {name for name in wanted if f"{name}[0]" in parts}
    for name in wanted:
        members = [f"{name}[{i}]" for i in range(wanted[name][0])] if name in stacked else [name]
        problems += [f"missing key {old_name(member)}" for member in members if member not in parts]
    if problems:
        more = f" (and {len(problems) - 6} more)" if len(problems) > 6 else ""
        raise ConversionError(f"the checkpoint does not fit: {'; '.join(problems[:6])}{more}")
    weights = {
        name: torch.stack([parts[f"{name}[{i}]"] for i in range(wanted[name][0])])
        if name in stacked
        else parts[name].clone(memory_format=torch.contiguous_format)
        for name in wanted
    }
    return weights, used, dropped


__all__ = ["find_labels", "make_config", "make_processor", "rename_weights"]
