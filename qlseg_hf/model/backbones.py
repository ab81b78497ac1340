"""Any plain ViT as the encoder: how it is built, the patches it cuts, and which of its weights its maps never meet.

DINOv2 (with and without registers), DINOv3 and BEiT come from transformers, `TimmBackboneConfig` brings timm's ViTs.
What is asked of a backbone: feature maps (B, D, h, w) of one width on the grid of its patches, class and register
tokens cut off. Stages count as everywhere in transformers (0 is the embedding, i the output of the i-th layer); timm's
start at the output of the first layer, so timm's 7, 15, 23 are transformers' 8, 16, 24.
"""

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import AutoBackbone, PreTrainedConfig

from .configuration_qlseg import as_pair


def build_backbone(config: PreTrainedConfig) -> nn.Module:
    """A backbone with fresh weights; timm's are told to take any size.

    Raises:
        ValueError: the widths of its maps differ, it is a timm network of one fixed size, or to be fetched.
    """
    if config.model_type == "timm_backbone" and set("/:") & set(str(config.backbone)):
        raise ValueError(
            f"timm's {config.backbone} would be fetched; give the name of an architecture, without / and :"
        )
    try:
        any_size = {"dynamic_img_size": True} if config.model_type == "timm_backbone" else {}
        backbone = AutoBackbone.from_config(config, **any_size)
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


def patch_size_of(backbone: nn.Module) -> tuple[int, int]:
    """(height, width) in pixels of the patches that a backbone cuts pictures into.

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


def whole_patches(pixel_values: torch.Tensor, patch_size: tuple[int, int], num_channels: int) -> torch.Tensor:
    """(B, channels, H, W) padded with zeros at the bottom and right to whole patches.

    Raises:
        ValueError: `pixel_values` has another number of dimensions or channels, or no pixel.
    """
    if pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels or 0 in pixel_values.shape:
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}; (B, {num_channels}, H, W) is wanted, none of them 0"
        )
    # floor division of positive numbers: torch 2.13 compiles no remainder and exports no negative of a symbolic size
    missing = [(side + patch - 1) // patch * patch - side for side, patch in zip(pixel_values.shape[-2:], patch_size)]
    return F.pad(pixel_values, (0, missing[1], 0, missing[0]))


def unused_weights(backbone: nn.Module) -> list[str]:
    """Names of parameters that no feature map depends on: mask tokens, layers behind the last stage, some norms.

    They can never have a gradient, which DistributedDataParallel takes for an error, so they are to be frozen. Found
    with a picture of 2 x 3 patches on the meta device: shapes and dependencies, no numbers and no memory.

    Raises:
        ValueError: a map is not (B, D, h, w) on the grid of patches.
    """
    tensors = {
        name: torch.empty_like(tensor, device="meta").requires_grad_(isinstance(tensor, nn.Parameter))
        for name, tensor in (*backbone.named_parameters(), *backbone.named_buffers())
    }
    parameters = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    patch = patch_size_of(backbone)
    attention = backbone.config._attn_implementation
    try:
        if attention != "eager":
            backbone.config._attn_implementation = "sdpa"  # flash and flex attention have no meta kernels
        # on the CPU what backbones cache between calls, were it made under the meta device of `from_pretrained`
        with torch.device("cpu"), torch.inference_mode(False), torch.enable_grad():
            pixel_values = next(iter(parameters.values())).new_zeros(
                1, backbone.config.num_channels, 2 * patch[0], 3 * patch[1]
            )
            maps = functional_call(backbone, tensors, (pixel_values,), {"return_dict": True}).feature_maps
            wanted = [(1, width, 2, 3) for width in backbone.channels]
            if [tuple(x.shape) for x in maps] != wanted:
                raise ValueError(
                    f"{type(backbone).__name__} gives maps {[tuple(x.shape) for x in maps]} for 2 x 3 patches, "
                    f"{wanted} are wanted; choose a plain ViT, with reshape_hidden_states and without add_fpn"
                )
            gradients = torch.autograd.grad([x.sum() for x in maps], list(parameters.values()), allow_unused=True)
    finally:
        backbone.config._attn_implementation = attention
    return [name for name, gradient in zip(parameters, gradients) if gradient is None]


__all__ = ["build_backbone", "patch_size_of", "unused_weights", "whole_patches"]
