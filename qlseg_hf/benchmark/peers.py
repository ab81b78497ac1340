# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Other networks for the same task, with random weights, timed beside QLSeg."""

import itertools
from collections.abc import Callable

from .measure import Rows, compile_checked, take_turns
from .settings import DTYPES, TINY, build, draw_pixels, inference


def peers(size: int, release: str = "") -> dict[str, Callable]:
    """Constructors of the usual large networks for ADE20K, random weights; of a tiny one beside the tiny network."""
    from transformers import (
        BeitConfig,
        EomtConfig,
        EomtForUniversalSegmentation,
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        SegformerConfig,
        SegformerForSemanticSegmentation,
        SwinConfig,
        UperNetConfig,
        UperNetForSemanticSegmentation,
    )

    def mask2former():
        swin = SwinConfig(
            image_size=384,
            embed_dim=192,
            depths=[2, 2, 18, 2],
            num_heads=[6, 12, 24, 48],
            window_size=12,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
        return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=swin, num_labels=150))

    def upernet():
        beit = BeitConfig(
            image_size=size,
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
            use_relative_position_bias=True,
            layer_scale_init_value=0.1,
            out_features=["stage7", "stage11", "stage15", "stage23"],
            add_fpn=True,
            reshape_hidden_states=True,
        )
        return UperNetForSemanticSegmentation(UperNetConfig(backbone_config=beit, num_labels=150))

    if release == TINY:
        b0 = {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2]}
        return {"SegFormer tiny": lambda: SegformerForSemanticSegmentation(SegformerConfig(**b0))}
    b5 = {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 6, 40, 3], "decoder_hidden_size": 768, "num_labels": 150}
    return {
        "EoMT-L": lambda: EomtForUniversalSegmentation(
            EomtConfig(image_size=size, num_labels=150)  # type: ignore[call-arg]  # a property of the base class
        ),
        "Mask2Former Swin-L": mask2former,
        "UperNet-BEiT-L": upernet,
        "SegFormer-B5": lambda: SegformerForSemanticSegmentation(SegformerConfig(**b5)),
    }


def run_peers(settings, names: tuple[str, ...] = ()) -> Rows:
    """Forward passes only; QLSeg's includes scores at input size, the peers' end with their own small outputs.

    `names` of peers, all if empty.
    """
    kinds = settings.dtypes or ("bf16" if settings.device.type == "cuda" else "fp32",)
    baseline = f"QLSeg {settings.release}"
    for kind, batch in itertools.product(kinds, settings.batch_sizes):
        dtype = DTYPES[kind]
        pixels, makers = draw_pixels(settings, batch, dtype), peers(settings.size, settings.release)
        models = {name: makers[name]().to(settings.device, dtype).eval() for name in names or makers}
        models = {baseline: build(settings, dtype)} | models
        if settings.compile:
            models = compile_checked(settings, models, pixels)
        variants = {
            name: inference(lambda model=model, x=pixels: model(pixel_values=x)) for name, model in models.items()
        }
        suffix = f" {kind}" if settings.dtypes else ""
        for name, row in take_turns(variants, baseline, settings.repeats, settings.device).items():
            yield f"peers b{batch}{suffix} {name}", row | {"pictures_per_s": batch / row["seconds"]}


__all__ = ["peers", "run_peers"]
