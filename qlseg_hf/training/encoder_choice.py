# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Which encoder a run starts from: its configuration, read from pretrained weights, and `small`, `base`, `large`."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError
from transformers import AutoConfig

from ..utils.text import first_line
from ..weights import read_beside, read_weights, rename_weights

# The first that can be read is taken: DINOv3 is gated, and asks everybody to accept its licence on its page.
SIZES = {
    "small": ("facebook/dinov3-vits16-pretrain-lvd1689m", "timm/vit_small_patch16_384.augreg_in21k_ft_in1k"),
    "base": ("facebook/dinov3-vitb16-pretrain-lvd1689m", "timm/vit_base_patch16_384.augreg_in21k_ft_in1k"),
    "large": ("facebook/dinov3-vitl16-pretrain-lvd1689m", "timm/vit_large_patch16_384.augreg_in21k_ft_in1k"),
}
HEADS = {1280: 16, 1408: 16, 1664: 16}  # ViT-H, g and G; heads of the others are 64 wide
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5] * 3, [0.5] * 3)
HALF_FAMILIES = ("vit", "beit")  # the others of transformers were trained with ImageNet's mean and deviation


@dataclass(frozen=True)
class Encoder:
    """A pretrained encoder that a fresh head can be put on.

    Args:
        source: what `load_vit_weights` takes.
        config: for `QLSegConfig(backbone_config=...)`, without `out_indices` and `image_size`.
        width, depth, patch_size: of the encoder; `patch_size` is the longer side in pixels.
        image_mean, image_std: that it was trained with, three numbers each.
        is_own_kind: whether it becomes a `QLSegViTBackbone`, whose positions are stored for an image size.
        note: a sentence on what the weights do not say, or "".
    """

    source: str
    config: dict
    width: int
    depth: int
    patch_size: int
    image_mean: list[float]
    image_std: list[float]
    is_own_kind: bool
    note: str = field(default="")


def find_encoder(name: str) -> Encoder:
    """The encoder that `backbone` means.

    Args:
        name: `small`, `base` or `large`, or a folder, file or Hub id; see `load_vit_weights`.

    Raises:
        ValueError: none of the public weights of a size can be reached (says which file to fetch), or the weights are
            of no plain ViT.
    """
    if name not in SIZES:
        return describe_encoder(name)
    reason, is_offline = None, False
    for source in SIZES[name]:
        try:
            hf_hub_download(source, "config.json", local_files_only=is_offline)
        except (HfHubHTTPError, HTTPError, LocalEntryNotFoundError) as error:  # gated, gone, or no network
            reason = reason or error
            is_offline = is_offline or isinstance(error, LocalEntryNotFoundError)
            continue
        return describe_encoder(source)
    public = SIZES[name][-1]
    raise ValueError(
        f"the weights of backbone {name} cannot be reached ({first_line(reason)[:120]}); where there is a network, "
        f"fetch https://huggingface.co/{public}/resolve/main/model.safetensors, and give that file: --backbone "
        "model.safetensors"
    )


def describe_encoder(source: str | Path) -> Encoder:
    """Read the configuration of a pretrained ViT from its `config.json`, or from the shapes of its weights.

    Args:
        source: folder, `.safetensors`, `.bin` or `.pth` file, or Hub id.

    Raises:
        ValueError: the weights are of no plain ViT, or do not say what is needed.
    """
    weights, stored = read_weights(source, None, None)
    if stored.get("model_type", "vit") != "vit":
        if Path(source).is_file():
            raise ValueError(f"{source} lies beside the config.json of a {stored['model_type']}; give their folder")
        return _encoder_of_transformers(source)
    renamed, _ = rename_weights(weights)
    projection, fc1 = renamed.get("embeddings.projection.weight"), renamed.get("layers.0.mlp.fc1.weight")
    if projection is None or fc1 is None or "embeddings.position_embeddings" not in renamed:
        raise ValueError(
            f"{source} holds no plain ViT in timm's or transformers' naming ({len(weights)} weights, the first is "
            f"{next(iter(weights), 'none')}); give such weights, or write config.backbone_config in a recipe"
        )
    width, channels, *patch = projection.shape
    heads = stored.get("num_attention_heads") or HEADS.get(width, width // 64)
    if heads * 64 != width and width not in HEADS and "num_attention_heads" not in stored:
        raise ValueError(
            f"{source} is {width} wide and does not say how many attention heads it has; put a config.json with "
            'model_type "vit" and num_attention_heads beside the weights'
        )
    config = {
        "hidden_size": width,
        "num_hidden_layers": 1 + max(int(found[1]) for key in renamed if (found := re.match(r"layers\.(\d+)\.", key))),
        "num_attention_heads": heads,
        "intermediate_size": fc1.shape[0],
        "patch_size": list(patch) if patch[0] != patch[1] else patch[0],
        "num_channels": channels,
        "use_class_token": "embeddings.class_token" in renamed,
    }
    mean, std, note = find_normalization(source)
    return Encoder(
        str(source), config, width, config["num_hidden_layers"], max(patch), mean, std, is_own_kind=True, note=note
    )


def find_normalization(source: str | Path) -> tuple[list[float], list[float], str]:
    """Mean and deviation per band that an encoder was trained with, by the files beside its weights.

    Args:
        source: see `describe_encoder`.

    Returns:
        three numbers each; and "", or a sentence where the files do not say and those of most of its kind are taken.
    """
    stored = read_beside(source, "config.json")
    timm = stored.get("pretrained_cfg", stored)
    theirs = read_beside(source, "preprocessor_config.json", _raise_exceptions_for_connection_errors=False)
    for values, mean, std in ((timm, "mean", "std"), (theirs, "image_mean", "image_std")):
        if isinstance(values.get(mean), list) and isinstance(values.get(std), list):
            return list(values[mean]), list(values[std]), ""
    is_half = stored.get("model_type", "vit") in HALF_FAMILIES
    mean_of_kind, std_of_kind = HALF if is_half else IMAGENET
    taken = "0.5 and 0.5 are taken, those of AugReg's ViTs" if is_half else "ImageNet's are taken"
    note = f"{source} does not say how its images were normalised; {taken}"
    return list(mean_of_kind), list(std_of_kind), note


def _encoder_of_transformers(source: str | Path) -> Encoder:
    """DINOv2, DINOv3, BEiT and others: their own backbone class, by their own configuration."""
    config = AutoConfig.from_pretrained(source)
    missing = [name for name in ("hidden_size", "num_hidden_layers", "patch_size") if not hasattr(config, name)]
    if missing:
        raise ValueError(f"{source} is a {config.model_type} without {', '.join(missing)}; a plain ViT is wanted")
    patch = config.patch_size
    mean, std, note = find_normalization(source)
    described = {
        key: value
        for key, value in config.to_diff_dict().items()
        if key not in ("architectures", "transformers_version", "dtype", "torch_dtype", "out_features", "out_indices")
    }
    return Encoder(
        str(source),
        described | {"model_type": config.model_type},
        config.hidden_size,
        config.num_hidden_layers,
        patch if isinstance(patch, int) else max(patch),
        mean,
        std,
        is_own_kind=False,
        note=note,
    )


__all__ = ["SIZES", "Encoder", "describe_encoder", "find_encoder", "find_normalization"]
