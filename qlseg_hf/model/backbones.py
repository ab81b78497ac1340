# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Any plain ViT as the encoder: how it is built, the patches it cuts, and which of its weights its maps never meet.

DINOv2 (with and without registers), DINOv3 and BEiT come from transformers, `TimmBackboneConfig` brings timm's ViTs.
What is asked of a backbone: feature maps (B, D, h, w) of one width on the grid of its patches, class and register
tokens cut off. Stages count as everywhere in transformers (0 is the embedding, i the output of the i-th layer); timm's
start at the output of the first layer, so timm's 7, 15, 23 are transformers' 8, 16, 24.
"""

import copy
import re

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoBackbone, PreTrainedConfig
from transformers.backbone_utils import BackboneMixin

from .configuration_qlseg import KNOWN_BACKBONES, QLSegViTConfig, as_pair


def build_backbone(config: PreTrainedConfig) -> nn.Module:
    """A backbone with fresh weights; timm's are told to take any size.

    Raises:
        ValueError: the widths of its maps differ, they are not maps or on several grids, it is a timm network of one
            fixed size, or to be fetched, or transformers has no backbone for it.
    """
    if config.model_type == "timm_backbone" and set("/:") & set(str(config.backbone)):
        raise ValueError(
            f"timm's {config.backbone} would be fetched; give the name of an architecture, without / and :"
        )
    if getattr(config, "add_fpn", False) or not getattr(config, "reshape_hidden_states", True):
        raise ValueError(
            f"a {config.model_type} gives maps on several grids with add_fpn, and none without reshape_hidden_states; "
            "choose a plain ViT, with reshape_hidden_states and without add_fpn"
        )
    try:
        backbone = AutoBackbone.from_config(config, **_backbone_options(config))
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise ValueError(f"{config.model_type} is no backbone of transformers; {KNOWN_BACKBONES}") from error
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        raise ValueError(
            f"timm's {config.backbone} takes pictures of one size, or is no plain ViT; choose a ViT, DeiT or EVA"
        ) from error
    if len(set(backbone.channels)) != 1:
        raise ValueError(
            f"feature maps of width {backbone.channels}; a plain ViT backbone with maps of one width is wanted"
        )
    return backbone


def _backbone_options(config: PreTrainedConfig) -> dict[str, bool]:
    """What a backbone is built with beside its configuration: timm's take any size."""
    return {"dynamic_img_size": True} if config.model_type == "timm_backbone" else {}


def patch_size_of(backbone: nn.Module) -> tuple[int, int]:
    """(height, width) in pixels of the patches that a backbone cuts images into.

    Raises:
        ValueError: the backbone does not say, or its maps lie on several grids.
    """
    if hasattr(backbone, "_backbone"):  # timm's network inside transformers' wrapper
        reductions = set(backbone._backbone.feature_info.reduction())
        patch = reductions.pop() if len(reductions) == 1 else None
    else:
        patch = getattr(backbone.config, "patch_size", None)
    if patch is None:
        raise ValueError(f"{type(backbone).__name__} has no patch size; a plain ViT with maps of one grid is wanted")
    return as_pair(patch)


def check_pixel_values(pixel_values: torch.Tensor, num_channels: int) -> None:
    """ValueError if they have another number of dimensions or channels, no pixel, or are whole numbers.

    TypeError for what is no tensor.
    """
    if not isinstance(pixel_values, torch.Tensor):
        raise TypeError(
            f"pixel_values is a {type(pixel_values).__name__}; a tensor is wanted, as of processor(image, "
            "return_tensors='pt')"
        )
    if pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels or 0 in pixel_values.shape:
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}; (B, {num_channels}, H, W) is wanted, none of them 0"
        )
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values are {pixel_values.dtype}, so they have not been normalised; give what the image processor "
            "makes of an image"
        )


def pad_to_patches(pixel_values: torch.Tensor, patch_size: tuple[int, int], num_channels: int) -> torch.Tensor:
    """(B, channels, H, W) padded with zeros at the bottom and right to whole patches.

    Raises:
        ValueError: see `check_pixel_values`.
    """
    check_pixel_values(pixel_values, num_channels)
    # floor division of positive numbers: torch 2.13 compiles no remainder and exports no negative of a symbolic size
    missing = [(side + patch - 1) // patch * patch - side for side, patch in zip(pixel_values.shape[-2:], patch_size)]
    return F.pad(pixel_values, (0, missing[1], 0, missing[0]))


def check_maps(backbone: nn.Module, maps: tuple[torch.Tensor, ...], grid: tuple[int, int]) -> None:
    """ValueError if the feature maps are not (B, D, h, w) on the grid of patches."""
    found = [tuple(x.shape[1:]) for x in maps]
    wanted = [(width, *grid) for width in backbone.channels]
    if found != wanted:
        raise ValueError(
            f"{type(backbone).__name__} gives maps {found} for {grid[0]} x {grid[1]} patches, {wanted} are wanted; "
            "choose a plain ViT, with reshape_hidden_states and without add_fpn"
        )


def unused_weights(backbone: nn.Module) -> list[str]:
    """Names of parameters that no feature map depends on: mask tokens, layers behind the last stage, some norms.

    They can never have a gradient, which DistributedDataParallel takes for an error, so they are to be frozen. Of our
    own ViT they are the layers behind the last stage. Of another they are found with an image of 2 x 3 patches and a
    twin on the meta device: shapes and dependencies, no numbers and no memory. Weights are never looked at, so they
    may be cut up over processes (FSDP, DeepSpeed ZeRO-3).

    Raises:
        ValueError: a map is not (B, D, h, w) on the grid of patches.
    """
    if backbone.config.model_type == QLSegViTConfig.model_type:
        depth = max(list(backbone.stage_names).index(stage) for stage in backbone.out_features)
        names = [name for name, _ in backbone.named_parameters()]
        return [name for name in names if (match := re.match(r"layers\.(\d+)\.", name)) and int(match[1]) >= depth]
    config = copy.deepcopy(backbone.config)
    if config._attn_implementation != "eager":
        config._attn_implementation = "sdpa"  # flash and flex attention have no meta kernels
    # not by `from_config`, which cuts weights up if DeepSpeed is set up; FSDP may have wrapped the backbone
    kind = next(type(module) for module in backbone.modules() if isinstance(module, BackboneMixin))
    # gradients also where someone loads or trains without; on the CPU what backbones compute aside
    with torch.inference_mode(False), torch.enable_grad():
        with torch.device("meta"):
            twin = kind(config, **_backbone_options(config)).eval()
        patch, parameters = patch_size_of(twin), dict(twin.named_parameters())
        with torch.device("cpu"):
            pixel_values = torch.zeros(1, config.num_channels, 2 * patch[0], 3 * patch[1], device="meta")
            maps = twin(pixel_values.to(twin.dtype), return_dict=True).feature_maps
        check_maps(twin, maps, (2, 3))
        gradients = torch.autograd.grad([x.sum() for x in maps], list(parameters.values()), allow_unused=True)
    return [name for name, gradient in zip(parameters, gradients) if gradient is None]


__all__ = ["build_backbone", "check_maps", "check_pixel_values", "patch_size_of", "unused_weights", "pad_to_patches"]
