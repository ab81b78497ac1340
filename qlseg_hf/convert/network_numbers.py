# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A network's numbers from three sources, which must agree: shapes, configuration text, released variant.

They are called as the fields of `QLSegConfig` and of the processor, those of the encoder with `backbone.` before it.
"""

import math
import re

import torch

from ..hub.saving import QLSegImageProcessor
from ..model.configuration_qlseg import QLSegConfig
from ..releases import RELEASES
from .errors import ConversionError

BACKBONE_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size")
BACKBONE_FIELDS += ("patch_size", "num_channels", "layer_norm_eps", "drop_path_rate", "out_indices")
FIELDS = ("hidden_size", "num_attention_heads", "intermediate_size", "num_pixel_encoder_layers")
FIELDS += ("pixel_encoder_intermediate_size", "num_decoder_blocks", "num_decoder_layers", "num_query_fusion_groups")
FIELDS += ("mask_threshold",)
# what sources other than shapes have to state
NEEDED = ("backbone.num_attention_heads", "backbone.out_indices", "num_attention_heads", "mask_threshold")
NEEDED += ("num_query_fusion_groups", "mean", "std", "short_side")


def numbers_from_shapes(state_dict: dict[str, torch.Tensor]) -> dict:
    """What the shapes give. Raises ConversionError if the keys that say it are missing."""

    def shape(key: str) -> torch.Size:
        if key not in state_dict:
            raise ConversionError(f"the checkpoint has no key {key}, so it is no QLSeg network (or a stripped one)")
        return state_dict[key].shape

    def count(pattern: str, start: int = 0) -> int:
        """How many indices follow each other from `start`; a stray one is named later, as an unexpected key."""
        indices = {int(match[1]) for key in state_dict if (match := re.match(pattern, key))}
        return next(n for n in range(len(indices) + 1) if start + n not in indices)

    patch = shape("backbone.patch_embed.projection.weight")
    tokens = shape("backbone.pos_embed")[1] - 1
    queries = shape("decode_head.query_1.weight")
    if len(patch) != 4 or len(queries) != 2:
        raise ConversionError("backbone.patch_embed.projection.weight or decode_head.query_1.weight is misshapen")
    levels = count(r"decode_head\.(?:query|input_proj|proj_norm|atm_0_decoder)_(\d+)\.", start=1)
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ConversionError(
            f"backbone.pos_embed has {tokens} positions beside the class token, which is no square grid"
        )
    return {
        "backbone.hidden_size": patch[0],
        "backbone.num_channels": patch[1],
        "backbone.patch_size": patch[2],
        "backbone.num_hidden_layers": count(r"backbone\.layers\.(\d+)\."),
        "backbone.intermediate_size": shape("backbone.layers.0.ffn.layers.0.0.weight")[0],
        "backbone.image_size": side * patch[2],
        "num_labels": queries[0],
        "hidden_size": queries[1],
        "num_levels": levels,
        "num_decoder_blocks": count(r"decode_head\.atm_(\d+)_decoder_"),
        "num_decoder_layers": count(r"decode_head\.atm_0_decoder_1\.layers\.(\d+)\."),
        "intermediate_size": shape("decode_head.atm_0_decoder_1.layers.0.linear1.weight")[0],
        "num_pixel_encoder_layers": count(r"decode_head\.transformer\.encoder\.layers\.(\d+)\."),
        "pixel_encoder_intermediate_size": shape("decode_head.transformer.encoder.layers.0.linear1.weight")[0],
        "num_samples": shape("decode_head.transformer.encoder.layers.0.self_attn.attention_weights.weight")[0],
        "num_runs": shape("decode_head.QFM_1.weights.weight")[1] // max(levels, 1),
    }


def numbers_from_variant(name: str) -> dict:
    """What a released variant gives."""
    if name not in RELEASES:
        raise ConversionError(f"unknown variant {name!r}; choose one of {', '.join(RELEASES)}")
    config, processing = QLSegConfig.for_release(name), QLSegImageProcessor.for_release(name)
    found = {f"backbone.{field}": getattr(config.backbone_config, field) for field in BACKBONE_FIELDS}
    found |= {field: getattr(config, field) for field in FIELDS}
    found |= {field: getattr(processing, field) for field in ("do_reduce_labels", "window_size", "window_stride")}
    return found | {
        "num_labels": config.num_labels,
        "num_levels": len(config.backbone_config.out_indices),
        "mean": [255 * m for m in processing.image_mean],
        "std": [255 * s for s in processing.image_std],
        "do_sliding_window": True,
        "short_side": processing.size.shortest_edge,
    }


def agree_on_numbers(shapes: dict, text: dict | None, variant: str | None) -> dict:
    """One value per number. The file's text comes before the variant; whatever two sources state must agree."""
    if text is None and variant is None:
        raise ConversionError(
            "the checkpoint holds no configuration text of mmsegmentation (meta.config or meta.cfg), and shapes do "
            f"not give heads, levels and threshold; say --variant with one of {', '.join(RELEASES)}"
        )
    sources = {
        "shapes": shapes,
        "text": text or {},
        f"variant {variant}": numbers_from_variant(variant) if variant else {},
    }
    numbers, origin = {}, {}
    for source, values in sources.items():
        for key, value in values.items():
            if key in numbers and not is_same(numbers[key], value):
                raise ConversionError(f"{key} is {numbers[key]} by the {origin[key]} but {value} by the {source}")
            numbers.setdefault(key, value)
            origin.setdefault(key, source)
    if unknown := [key for key in NEEDED if key not in numbers]:
        raise ConversionError(
            f"the configuration text does not state {', '.join(unknown)}; say --variant to fill them in"
        )
    run = -(-numbers["num_labels"] // numbers["num_query_fusion_groups"])
    if -(-numbers["num_labels"] // run) != numbers["num_runs"]:
        raise ConversionError(
            f"query fusion has {numbers['num_runs']} runs of labels by the shapes, which {numbers['num_labels']} "
            f"labels in {numbers['num_query_fusion_groups']} groups do not give"
        )
    layers, levels = numbers["backbone.out_indices"], numbers["num_levels"]
    if len(layers) != levels:
        raise ConversionError(f"layers {layers} are returned, but the shapes have {levels} levels")
    return numbers


def is_same(a, b) -> bool:
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(is_same(x, y) for x, y in zip(a, b))
    return math.isclose(a, b, rel_tol=1e-6)


__all__ = ["FIELDS", "agree_on_numbers", "numbers_from_shapes", "numbers_from_variant"]
