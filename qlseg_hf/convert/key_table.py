# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The key table: what the published implementation calls each weight, and what it is called here."""

import re

# Named groups are indices; those in ONE_BASED count from 1 in the checkpoint. `{qkv}` stands for three keys: the rows
# of a packed projection are q, k and v, stacked.
ONE_BASED = ("branch", "fusion_block")
VIT_LAYER, NEW_VIT_LAYER = r"backbone\.layers\.(?P<layer>\d+)", "backbone.layers.{layer}"
PIXEL_LAYER = r"decode_head\.transformer\.encoder\.layers\.(?P<layer>\d+)"
LAYER = r"decode_head\.atm_(?P<block>\d+)_decoder_(?P<branch>\d+)\.layers\.(?P<layer>\d+)"
NEW_LAYER = "decoder.blocks.{block}.branches.{branch}.{layer}"
OFFSETS = "(?P<part>sampling_offsets|attention_weights|value_proj|output_proj)"
# modules with weight and bias
_MODULES = {
    r"backbone\.patch_embed\.projection": "backbone.embeddings.projection",
    VIT_LAYER + r"\.ln1": NEW_VIT_LAYER + ".layernorm_before",
    VIT_LAYER + r"\.ln2": NEW_VIT_LAYER + ".layernorm_after",
    VIT_LAYER + r"\.attn\.attn\.out_proj": NEW_VIT_LAYER + ".attention.o_proj",
    VIT_LAYER + r"\.ffn\.layers\.0\.0": NEW_VIT_LAYER + ".mlp.fc1",
    VIT_LAYER + r"\.ffn\.layers\.1": NEW_VIT_LAYER + ".mlp.fc2",
    r"decode_head\.pd_input_proj\.(?P<level>\d+)\.0": "pixel_encoder.projections.{level}",
    r"decode_head\.pd_input_proj\.(?P<level>\d+)\.1": "pixel_encoder.norms.{level}",
    PIXEL_LAYER + rf"\.self_attn\.{OFFSETS}": "pixel_encoder.layers.{layer}.self_attn.{part}",
    PIXEL_LAYER + r"\.linear(?P<n>[12])": "pixel_encoder.layers.{layer}.fc{n}",
    PIXEL_LAYER + r"\.norm(?P<n>[12])": "pixel_encoder.layers.{layer}.norm{n}",
    r"decode_head\.input_proj_(?P<branch>\d+)": "decoder.projections.{branch}",
    r"decode_head\.proj_norm_(?P<branch>\d+)": "decoder.norms.{branch}",
    LAYER + r"\.self_attn\.out_proj": NEW_LAYER + ".self_attn.o_proj",
    LAYER + r"\.multihead_attn\.(?P<part>[qkv])": NEW_LAYER + ".cross_attn.{part}_proj",
    LAYER + r"\.multihead_attn\.proj": NEW_LAYER + ".cross_attn.o_proj",
    LAYER + r"\.linear(?P<n>[12])": NEW_LAYER + ".fc{n}",
    LAYER + r"\.norm(?P<n>[123])": NEW_LAYER + ".norm{n}",
    r"decode_head\.QFM_(?P<fusion_block>\d+)\.weights": "decoder.blocks.{fusion_block}.query_fusion.weights",
    r"decode_head\.class_embed": "class_head",
}
KEY_TABLE = {rf"{old}\.(?P<p>weight|bias)": f"{new}.{{p}}" for old, new in _MODULES.items()} | {
    r"backbone\.pos_embed": "backbone.embeddings.position_embeddings",
    VIT_LAYER + r"\.attn\.attn\.in_proj_(?P<p>weight|bias)": NEW_VIT_LAYER + ".attention.{qkv}_proj.{p}",
    r"decode_head\.transformer\.level_embed": "pixel_encoder.level_embeddings",
    r"decode_head\.query_(?P<branch>\d+)\.weight": "decoder.queries[{branch}]",
    LAYER + r"\.self_attn\.in_proj_(?P<p>weight|bias)": NEW_LAYER + ".self_attn.{qkv}_proj.{p}",
}
DROPPED_KEYS = {
    r"backbone\.cls_token": "the network drops the class token before its first layer",
    r"decode_head\.loss_decode\.criterion\.empty_weight": "a constant of the loss, not a weight",
}


def new_names(key: str) -> list[str]:
    """Our keys for a key of the checkpoint: none, one, or three for a packed projection."""
    for pattern, template in KEY_TABLE.items():
        if match := re.fullmatch(pattern, key):
            groups = {
                k: int(v) - (k in ONE_BASED) if v.isdigit() and k != "n" else v for k, v in match.groupdict().items()
            }
            return [template.format(**groups, qkv=part) for part in ("qkv" if "{qkv}" in template else ("",))]
    return []


def old_name(name: str) -> str:
    """The checkpoint's key for one of ours: `new_names` backwards, for telling what is missing."""
    kinds = {"p": "weight|bias", "qkv": "[qkv]", "part": r"\w+"}
    for pattern, template in KEY_TABLE.items():
        texts = re.split(r"\{(\w+)\}", template)
        texts[1::2] = [f"(?P<{group}>{kinds.get(group, '[0-9]+')})" for group in texts[1::2]]
        texts[::2] = map(re.escape, texts[::2])
        if match := re.fullmatch("".join(texts), name):
            key = pattern.replace("\\.", ".")
            for group, value in match.groupdict().items():
                value = str(int(value) + 1) if group in ONE_BASED else value
                key = re.sub(rf"\(\?P<{group}>[^)]*\)", value, key)
            if name in new_names(key):
                return key
    return name


def key_family(key: str) -> str:
    """A key with its indices replaced by a star, for the summary."""
    return re.sub(r"(?<=[._])\d+(?=[._]|$)", "*", key)


def restore_dots(name: str) -> str:
    """A name with underscores for dots, as mmcv's EMAHook makes it, in the network's own spelling."""
    for pattern in (*KEY_TABLE, *DROPPED_KEYS):
        if match := re.fullmatch(pattern.replace(r"\.", "_"), name):
            return re.sub(r"\(\?P<(\w+)>[^)]*\)", lambda group: match[group[1]], pattern).replace(r"\.", ".")  # noqa: B023
    raise AssertionError(name)


__all__ = ["DROPPED_KEYS", "KEY_TABLE", "key_family", "new_names", "old_name", "restore_dots"]
