# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What fresh heads add to the published network, where it is off: details, a label classifier, masks that compete.

Letters as in modeling_qlseg.py.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_qlseg import QLSegConfig


class QLSegGroupNorm(nn.GroupNorm):
    """A group of a single number (one channel of one patch) is its bias.

    PyTorch refuses such an image alone; in a batch it returns rounding errors times 300, which later norms amplify.
    """

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        if self.num_groups == self.num_channels and maps.shape[2:] == (1, 1):
            return (maps - maps) * self.weight[:, None, None] + self.bias[:, None, None]
        return super().forward(maps)


class QLSegLabelClassifier(nn.Module):
    """A linear layer on the deepest level, which learns from the first step on: (B, D, h, w) to (B, K, h, w)."""

    def __init__(self, config: QLSegConfig, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, config.num_labels)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.norm(maps.movedim(1, -1))).movedim(-1, 1)


class QLSegDetail(nn.Module):
    """Mask logits on a grid of 4 pixels: what the patches say, sharpened by convolutions over the image."""

    def __init__(self, config: QLSegConfig, width: int):
        super().__init__()
        channels, num_groups = config.num_detail_channels, 4
        self.stem = nn.Sequential(
            nn.Conv2d(config.backbone_config.num_channels, channels // 2, 3, stride=2, padding=1),
            QLSegGroupNorm(num_groups, channels // 2),
            nn.GELU(),
            nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1),
            QLSegGroupNorm(num_groups, channels),
            nn.GELU(),
        )
        self.projection = nn.Conv2d(width, channels, 1)
        self.mix = nn.Sequential(
            QLSegGroupNorm(num_groups, channels),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            nn.Conv2d(channels, channels, 1),
            QLSegGroupNorm(num_groups, channels),
            nn.GELU(),
        )
        self.classifier = nn.Conv2d(channels, config.num_labels, 1)
        self.classifier._starts_at_zero = True  # the masks begin as they are without

    def forward(self, pixel_values: torch.Tensor, maps: torch.Tensor, mask_logits: torch.Tensor) -> torch.Tensor:
        """(B, channels, H, W), (B, D, h, w) and (T, B, K, h, w) -> (T, B, K, ceil(H / 4), ceil(W / 4))."""
        details = self.stem(pixel_values)
        size = tuple(details.shape[-2:])
        coarse = F.interpolate(self.projection(maps), size=size, mode="bilinear", align_corners=False)
        logits = self.classifier(self.mix(details + coarse))  # (B, K, ...)
        # block by block: an exported graph would be bound to the number of images if they were joined
        finer = [F.interpolate(block, size=size, mode="bilinear", align_corners=False) for block in mask_logits]
        return torch.stack(finer) + logits


def without_padding(
    mask_logits: torch.Tensor, padded: tuple[int, int], size: tuple[int, int], finer: int = 1
) -> torch.Tensor:
    """(..., h, w) logits on a grid over `padded` pixels -> on one over the first `size` of them (heights, widths).

    Resized to `size` they then lie where they belong. Masks of the published networks are stretched by the padding,
    up to a patch at the far border; images of whole patches, as all windows of the paper's protocol, have none.
    `finer`: how many cells become of one along each side; a coarse grid that is resized as it is would be blurred.
    """
    is_traced = torch.compiler.is_compiling()  # where sizes are symbols, which are not compared
    for axis, full, side in ((-2, padded[0], size[0]), (-1, padded[1], size[1])):
        if not is_traced and full == side and finer == 1:
            continue
        cells = mask_logits.shape[axis]
        kept = (side * cells * finer + full - 1) // full
        middle = (2 * torch.arange(kept, device=mask_logits.device) + 1).float() * (side * cells)
        place = (middle / (2 * full * kept) - 0.5).clamp(min=0)  # of each new cell among the old ones
        before = place.long()
        share = (place - before).to(mask_logits.dtype)
        share = share if axis == -1 else share[:, None]
        first, second = (mask_logits.index_select(axis, i) for i in (before, (before + 1).clamp(max=cells - 1)))
        mask_logits = first + (second - first) * share
    return mask_logits


def compete(mask_logits: torch.Tensor) -> torch.Tensor:
    """(T, B, K, h, w) logits -> those whose sigmoid is the softmax over the K labels, at most 0.9999.

    So all that reads mask logits (windows, exported graphs, thresholds) reads probabilities that sum to 1.
    """
    log_probs = mask_logits.float().log_softmax(dim=-3).clamp(max=-1e-4)  # beyond, 1 - p is rounding
    return (log_probs - torch.log(-torch.expm1(log_probs))).to(mask_logits.dtype)


__all__ = ["QLSegDetail", "QLSegGroupNorm", "QLSegLabelClassifier", "compete", "without_padding"]
