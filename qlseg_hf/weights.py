# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Start an encoder from pretrained weights: timm's or transformers' naming, from a folder, a file or the Hub."""

import copy
import json
import math
import os
import re
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig
from transformers.utils import cached_file, logging

from .hub.source import read_source
from .model.backbones import unused_weights
from .model.modeling_qlseg import QLSegViTBackbone, resize_positions
from .utils.text import describe_problems

logger = logging.get_logger(__name__)

# Key in timm's naming, in transformers' (one or several) or in both -> key of QLSegViTBackbone; {qkv} stands for three
# keys, the rows of timm's being q, k and v stacked
VIT_KEYS = {
    r"(?:patch_embed\.proj|embeddings\.patch_embeddings\.projection)\.(weight|bias)": "embeddings.projection.{0}",
    r"pos_embed|embeddings\.position_embeddings": "embeddings.position_embeddings",
    r"cls_token|embeddings\.cls_token": "embeddings.class_token",
    r"blocks\.(\d+)\.norm1\.(weight|bias)": "layers.{0}.layernorm_before.{1}",
    r"blocks\.(\d+)\.norm2\.(weight|bias)": "layers.{0}.layernorm_after.{1}",
    r"(?:encoder\.layer|layers)\.(\d+)\.(layernorm_before|layernorm_after)\.(weight|bias)": "layers.{0}.{1}.{2}",
    r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)": "layers.{0}.attention.{qkv}_proj.{1}",
    r"encoder\.layer\.(\d+)\.attention\.attention\.([qkv])(?:uery|ey|alue)\.(weight|bias)": (
        "layers.{0}.attention.{1}_proj.{2}"
    ),
    r"layers\.(\d+)\.attention\.([qkvo])_proj\.(weight|bias)": "layers.{0}.attention.{1}_proj.{2}",
    r"(?:blocks\.(\d+)\.attn\.proj|encoder\.layer\.(\d+)\.attention\.output\.dense)\.(weight|bias)": (
        "layers.{0}.attention.o_proj.{1}"
    ),
    r"(?:blocks|layers)\.(\d+)\.mlp\.(fc1|fc2)\.(weight|bias)": "layers.{0}.mlp.{1}.{2}",
    r"encoder\.layer\.(\d+)\.intermediate\.dense\.(weight|bias)": "layers.{0}.mlp.fc1.{1}",
    r"encoder\.layer\.(\d+)\.output\.dense\.(weight|bias)": "layers.{0}.mlp.fc2.{1}",
}
# Not part of the encoder: final norm (none), pooler and classifier
UNUSED_KEYS = r"(embeddings\.)?mask_token|(norm|fc_norm|layernorm|head|pooler|classifier)\..*"
# The same of other backbones: heads for other tasks, and the norms of those
OTHER_UNUSED_KEYS = r"(\w+\.)?(norm|fc_norm|layernorm|head|pooler|classifier|lm_head)\..*"
# Fields of a configuration that change what a network computes, but no weight's name or shape
SILENT_FIELDS = ("num_attention_heads", "hidden_act", "layer_norm_eps", "rope_theta")


@torch.no_grad()
def load_vit_weights(
    backbone: nn.Module, source: str | Path, *, revision: str | None = None, token: str | bool | None = None
) -> nn.Module:
    """Load a pretrained ViT into an encoder, in place.

    Args:
        backbone: `model.backbone` of a QLSeg, or a bare backbone, of the same width, depth and patch size.
        source: what to load. For `QLSegViTBackbone` an ImageNet ViT: folder, `.safetensors` or `.bin` / `.pth` file,
            or Hub id (`timm/vit_large_patch16_384.augreg_in21k_ft_in1k`, `google/vit-large-patch16-384`), in timm's or
            transformers' ViT naming; position embeddings are resized to the encoder's grid. For another backbone of
            transformers a folder or Hub id of its own kind (`facebook/dinov3-vitl16-pretrain-lvd1689m`), with or
            without a head; for timm's a folder, file or Hub id of the same timm network.
        revision, token: of the Hub repository.

    Returns:
        `backbone`.

    Raises:
        ValueError: the naming is another, a weight is missing, unexpected or of another shape (all are named), or the
            source was trained with other heads, activation, epsilon or rotary base.

    An encoder of n bands takes weights that were trained on RGB: see `extend_projection`.

    Source: position embeddings `1:` as a 2-D map, bicubic, `align_corners=False`, no antialias; the class token and
    its position are added up for an encoder with `use_class_token`, else dropped, as in the released networks. Other
    backbones keep theirs, and resize at every call.
    """
    is_ours = isinstance(backbone, QLSegViTBackbone)
    load = load_our_weights if is_ours else load_transformers_weights
    if hasattr(backbone, "_backbone"):
        load = load_timm_weights
    load(backbone, source, revision, token)
    backbone.source = read_source(source, revision=revision, token=token)
    return backbone


def load_our_weights(
    backbone: QLSegViTBackbone, source: str | Path, revision: str | None, token: str | bool | None
) -> None:
    """`load_vit_weights` for a `QLSegViTBackbone`."""
    weights, source_config = read_weights(source, revision, token)
    heads = source_config.get("num_attention_heads", backbone.config.num_attention_heads)
    if heads != backbone.config.num_attention_heads:
        raise ValueError(f"{source} has {heads} attention heads, the encoder {backbone.config.num_attention_heads}")

    if (activation := source_config.get("hidden_act", "gelu")) not in ("gelu", "gelu_python"):
        raise ValueError(f"{source} has hidden_act {activation}, the encoder gelu; take a ViT with that")
    target, (renamed, unexpected) = backbone.state_dict(), rename_weights(weights)
    name, class_token = "embeddings.position_embeddings", renamed.pop("embeddings.class_token", None)
    if name in renamed:
        if "embeddings.class_token" in target and class_token is not None:
            renamed["embeddings.class_token"] = class_token + renamed[name][:, :1]
        renamed[name] = fit_positions(renamed[name], backbone.embeddings.grid, source)
    fit_bands(renamed, target)
    check_weights(source, renamed, target, unexpected)
    for key, parameter in backbone.named_parameters():
        parameter.copy_(renamed[key])
    logger.info(f"loaded {len(renamed)} weights of {source} into the encoder")


def extend_projection(weight: torch.Tensor, num_channels: int) -> torch.Tensor:
    """A patch projection for `num_channels` bands from one for RGB: (D, 3, p, p) -> (D, num_channels, p, p).

    The first three bands are taken for red, green and blue and keep their weights, so that bands which are 0 (after
    normalisation) change nothing. Every other band, and each band of one or two, gets the mean over RGB times
    3 / num_channels: a grey picture of one band, or twice the same, gives what it gives as RGB.

    Source: the rule of timm (Wightman 2019, `adapt_input_conv`), which repeats RGB and scales all bands by 3 / n. Here
    the weights of RGB are not scaled.
    """
    if num_channels == 3:
        return weight
    mean = weight.float().mean(dim=1, keepdim=True).to(weight.dtype) * (3 / num_channels)
    extended = mean.repeat(1, num_channels, 1, 1)
    if num_channels > 3:
        extended[:, :3] = weight
    return extended


def fit_bands(weights: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> None:
    """Extend the patch projection among `weights`, in place, if it is one for RGB and `target` has other bands."""
    for key, value in target.items():
        found = weights.get(key)
        if found is None or found.ndim != 4 or value.ndim != 4 or found.shape[1] != 3 or value.shape[1] == 3:
            continue
        if found.shape[0] == value.shape[0] and found.shape[2:] == value.shape[2:]:
            weights[key] = extend_projection(found, value.shape[1])
            logger.info(f"{key}: weights for RGB extended to {value.shape[1]} bands")


@torch.no_grad()
def set_num_channels(model: nn.Module, num_channels: int) -> nn.Module:
    """Give a network that was trained on RGB another number of bands, in place; see `extend_projection`.

    Args:
        model: a QLSeg network of 3 bands, on any backbone. Its processor wants `image_mean` and `image_std` of as many
            entries, in which those of RGB are the first.
        num_channels: bands of `pixel_values` from now on.

    Returns:
        `model`.

    Raises:
        ValueError: it takes other pictures than RGB already, or its patch projection is not found.
    """
    backbone, config = model.backbone, model.config.backbone_config
    was = config.num_channels
    if num_channels == was:
        return model
    found = [part for part in backbone.modules() if isinstance(part, nn.Conv2d) and part.in_channels == was]
    found = [part for part in found if part.kernel_size == tuple(model.patch_size)]
    if was != 3 or num_channels < 1 or len(found) != 1:
        raise ValueError(
            f"a network of {was} bands cannot be given {num_channels}: only the patch projection of an RGB network "
            "can be extended, to one band or more"
        )
    if getattr(model, "detail", None) is not None:
        found.append(model.detail.stem[0])
    for part in found:
        part.weight = nn.Parameter(extend_projection(part.weight, num_channels), part.weight.requires_grad)
        part.in_channels = num_channels
    for part in backbone.modules():
        if getattr(part, "num_channels", None) == was:
            part.num_channels = num_channels
    for settings in (config, backbone.config):
        settings.num_channels = num_channels
    for part in (model, backbone):
        if hasattr(part, "structure"):  # a backbone of transformers has none
            part.structure = part.config.structure()
    return model


def check_weights(
    source: str | Path, weights: dict[str, torch.Tensor], target: dict[str, torch.Tensor], unexpected: list[str] = ()
) -> None:
    """ValueError if `weights` are not those of `target` by name and shape. `unexpected`: others that were found."""
    check_keys(
        source,
        missing=[key for key in target if key not in weights],
        unexpected=[*unexpected, *(key for key in weights if key not in target)],
        misshapen=[
            f"{key} {tuple(weights[key].shape)} instead of {tuple(value.shape)}"
            for key, value in target.items()
            if key in weights and weights[key].shape != value.shape
        ],
    )


def check_keys(source: str | Path, missing: list[str], unexpected: list[str], misshapen: list[str]) -> None:
    """ValueError that names what does not fit, if anything does not."""
    if text := describe_problems({"missing": missing, "unexpected": unexpected, "misshapen": misshapen}, num_named=4):
        raise ValueError(f"{source} does not fit this encoder: {text}; compare width, depth and patch size")


def load_transformers_weights(
    backbone: nn.Module, source: str | Path, revision: str | None, token: str | bool | None
) -> None:
    """`load_vit_weights` for a backbone of transformers, by way of its own class, which knows old names of weights.

    Not by `AutoBackbone.from_pretrained`, which asks the Hub (transformers 5.23) even for a folder.
    """
    where = {"revision": revision, "token": token}
    config, theirs = backbone.config, AutoConfig.from_pretrained(source, **where)
    if theirs.model_type != config.model_type:
        raise ValueError(f"{source} is a {theirs.model_type}, the encoder a {config.model_type}; make them one kind")
    for name in SILENT_FIELDS:
        if (was := getattr(theirs, name, None)) != (wanted := getattr(config, name, None)):
            raise ValueError(f"{source} has {name} {was}, the encoder {wanted}; set backbone_config.{name} to {was}")
    own = copy.deepcopy(config)
    own.num_channels = getattr(theirs, "num_channels", config.num_channels)
    loaded, report = type(backbone).from_pretrained(
        source,
        config=own,
        dtype=backbone.dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are named and refused here
        **where,
    )
    weights, target = loaded.state_dict(), backbone.state_dict()
    fit_bands(weights, target)
    misshapen = sorted(report["mismatched_keys"])
    misshapen += [(k, value.shape, target[k].shape) for k, value in weights.items() if value.shape != target[k].shape]
    check_keys(
        source,
        missing=sorted(set(report["missing_keys"]) - set(unused_weights(backbone))),
        unexpected=sorted(key for key in report["unexpected_keys"] if not re.fullmatch(OTHER_UNUSED_KEYS, key)),
        misshapen=[f"{key} {tuple(was)} instead of {tuple(new)}" for key, was, new in misshapen],
    )
    backbone.load_state_dict(weights)


def load_timm_weights(backbone: nn.Module, source: str | Path, revision: str | None, token: str | bool | None) -> None:
    """`load_vit_weights` for timm's network inside transformers' wrapper; timm has cut off what no map needs."""
    weights, _ = read_weights(source, revision, token)
    network = backbone._backbone.model
    target, depth = network.state_dict(), len(network.blocks)
    weights = {
        key: value
        for key, value in weights.items()
        if key in target
        or not (
            re.fullmatch(OTHER_UNUSED_KEYS, key) or (key.startswith("blocks.") and int(key.split(".")[1]) >= depth)
        )
    }
    fit_bands(weights, target)
    check_weights(source, weights, target)
    network.load_state_dict(weights)


def rename_weights(weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Weights of a plain ViT, in timm's or transformers' naming, by the names of `QLSegViTBackbone`.

    Returns:
        the weights, position embeddings and class token as they are stored; and the keys that are of no such ViT.
    """
    renamed, unexpected = {}, []
    for key, value in weights.items():
        names = new_names(key.removeprefix("vit."))
        if names and not renamed.keys() & names:
            renamed.update(zip(names, value.chunk(len(names))))
        elif names or not re.fullmatch(UNUSED_KEYS, key.removeprefix("vit.")):
            unexpected.append(key)
    return renamed, unexpected


def new_names(key: str) -> list[str]:
    """Names of `QLSegViTBackbone` that a key of `VIT_KEYS` stands for: none, one, or three for stacked q, k, v."""
    for pattern, template in VIT_KEYS.items():
        if match := re.fullmatch(pattern, key):
            groups = [group for group in match.groups() if group is not None]
            return [template.format(*groups, qkv=part) for part in ("qkv" if "{qkv}" in template else ("",))]
    return []


def fit_positions(positions: torch.Tensor, grid: tuple[int, int], source: str | Path) -> torch.Tensor:
    """(1, 1 + n * n, D) with the class token first -> (1, h * w, D) on `grid`."""
    side = math.isqrt(positions.shape[1] - 1)
    if side * side != positions.shape[1] - 1:
        raise ValueError(
            f"{source} has {positions.shape[1]} position embeddings; a class token and a square grid are wanted"
        )
    return resize_positions(positions[:, 1:], (side, side), grid)


def read_weights(source: str | Path, revision: str | None, token: str | bool | None) -> tuple[dict, dict]:
    """State dict and `config.json` (empty if there is none) of a file, a folder or a Hub repository."""
    path, config = Path(source), read_beside(source, "config.json", revision, token)
    if path.is_file():
        return read_file(path), config
    options = {"revision": revision, "token": token, "_raise_exceptions_for_missing_entries": False}
    for name in ("model.safetensors", "pytorch_model.bin"):
        if found := cached_file(os.fspath(source), name, **options):
            return read_file(Path(found)), config
        if index := cached_file(os.fspath(source), f"{name}.index.json", **options):
            shards = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
            files = [Path(cached_file(os.fspath(source), shard, revision=revision, token=token)) for shard in shards]
            return {key: value for file in files for key, value in read_file(file).items()}, config
    raise ValueError(f"{source} holds neither model.safetensors nor pytorch_model.bin")


def read_beside(
    source: str | Path, name: str, revision: str | None = None, token: str | bool | None = None, **options: bool
) -> dict:
    """The JSON file `name` beside weights, which are a file, a folder or a Hub repository; {} if there is none."""
    path = Path(source)
    found: str | Path | None = path.with_name(name) if path.is_file() else None
    if not path.is_file():
        options = {"_raise_exceptions_for_missing_entries": False} | options
        found = cached_file(os.fspath(source), name, revision=revision, token=token, **options)
    return json.loads(Path(found).read_text(encoding="utf-8")) if found and Path(found).is_file() else {}


def read_file(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a `.safetensors` file or, never running what it holds, of a pickle. ValueError if it is neither."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, RuntimeError, SafetensorError, UnpicklingError) as error:
        reason = type(error).__name__
        raise ValueError(f"{path} holds no weights that can be read without running code ({reason})") from error


__all__ = ["extend_projection", "load_vit_weights", "set_num_channels"]
