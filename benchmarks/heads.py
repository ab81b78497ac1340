# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a fresh head is by default, and what it costs, for encoders of the usual sizes.

    python benchmarks/heads.py [--labels 20]

Operations of a forward pass up to class and mask logits and scores, two per multiplication, attention included,
counted without computing anything; the crop is 512 pixels, and 320 as on CPUs in brackets.
"""

import argparse

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from qlseg_hf import QLSegConfig, QLSegForSemanticSegmentation
from qlseg_hf.training.auto import encoder_rate, head_config
from qlseg_hf.training.encoder_choice import Encoder

SIZES = {"ViT-Ti": (192, 12, 3), "ViT-S": (384, 12, 6), "ViT-B": (768, 12, 12), "ViT-L": (1024, 24, 16)}
CROPS = (512, 320)


def build(width: int, depth: int, heads: int, crop: int, num_labels: int) -> QLSegForSemanticSegmentation:
    """The network that `qlseg train` builds on such an encoder, without values."""
    described = {"model_type": "qlseg_vit", "hidden_size": width, "num_hidden_layers": depth}
    described |= {"num_attention_heads": heads, "intermediate_size": 4 * width, "use_class_token": True}
    encoder = Encoder("", described, width, depth, 16, [0.5] * 3, [0.5] * 3, is_own_kind=True)
    with torch.device("meta"):
        model = QLSegForSemanticSegmentation(QLSegConfig(num_labels=num_labels, **head_config(encoder, crop)))
    return model.eval().requires_grad_(False)


def count(model: nn.Module, pixels: torch.Tensor) -> int:
    """Operations of a forward pass."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(pixels)
    return counter.get_total_flops()


def size(module: nn.Module) -> float:
    """Millions of parameters."""
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=20)
    args = parser.parse_args()
    print(
        "| encoder | head's width | levels | pixel encoder layers | decoder blocks x layers "
        "| parameters of encoder, head | GFLOP of encoder, whole | head's share | learning rates of encoder, head |\n"
        "| --- | ---: | --- | ---: | --- | --- | --- | --- | --- |"
    )
    for name, (width, depth, heads) in SIZES.items():
        encoders, wholes = [], []
        for crop in CROPS:
            model = build(width, depth, heads, crop, args.labels)
            pixels = torch.zeros(1, 3, crop, crop, device="meta")
            encoders.append(count(model.backbone, pixels) / 1e9)
            wholes.append(count(model, pixels) / 1e9)
        config, shares = model.config, [100 * (1 - a / b) for a, b in zip(encoders, wholes)]
        rate, encoder = encoder_rate(width), size(model.backbone)
        cells = [
            name,
            config.hidden_size,
            ", ".join(map(str, config.backbone_config.out_indices)),
            config.num_pixel_encoder_layers,
            f"{config.num_decoder_blocks} x {config.num_decoder_layers}",
            f"{encoder:.1f} M, {size(model) - encoder:.1f} M",
            f"{encoders[0]:.0f}, {wholes[0]:.0f} ({encoders[1]:.0f}, {wholes[1]:.0f})",
            f"{shares[0]:.0f} % ({shares[1]:.0f} %)",
            f"{rate:g}, {10 * rate:g}",
        ]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
