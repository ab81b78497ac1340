# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What all modes of the benchmark share: settings, networks with random weights, and what is put into them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..hub.saving import QLSegForSemanticSegmentation
from ..model.configuration_qlseg import QLSegConfig, QLSegViTConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TINY = "tiny"  # in the place of a release: a network to try the programs with, not to measure


@dataclass
class Settings:
    """What all modes share; `size` is the side of the square input in pixels, `dtypes` names of `DTYPES`."""

    release: str
    size: int
    device: torch.device
    batch_sizes: tuple[int, ...] = (1,)
    training_batch_sizes: tuple[int, ...] = (2,)
    repeats: int = 7
    compile: bool = False
    dtypes: tuple[str, ...] | None = None

    @property
    def backend(self) -> str:
        """Of torch.compile; code for the tiny network is traced and not compiled, which takes minutes."""
        return "eager" if self.release == TINY else "inductor"

    def __post_init__(self):
        if unknown := set(self.dtypes or ()) - set(DTYPES):
            raise ValueError(f"no dtype {', '.join(sorted(unknown))}; there are {', '.join(DTYPES)}")


def configuration(release: str) -> QLSegConfig:
    """Of a release, or of the network called "tiny"."""
    if release != TINY:
        return QLSegConfig.for_release(release)
    widths = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    backbone = QLSegViTConfig(num_hidden_layers=2, image_size=32, out_indices=[1, 2], **widths)  # type: ignore[call-arg]
    return QLSegConfig(
        num_labels=20,  # type: ignore[call-arg]  # a property of the base class
        backbone_config=backbone,
        num_pixel_encoder_layers=1,
        pixel_encoder_intermediate_size=32,
        num_decoder_blocks=1,
        num_decoder_layers=1,
        **widths,
    )


def make_settings(
    *,
    release: str = "vit-b-ade20k",
    size: int | None = None,
    device: str | None = None,
    threads: int | None = None,
    **others: Any,
) -> Settings:
    """Settings from the command line's; sets the number of threads. ValueError for an unknown release or dtype."""
    if threads:
        torch.set_num_threads(threads)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Settings(release, size or configuration(release).backbone_config.image_size, place, **others)


def build(settings, dtype=torch.float32, device=None) -> QLSegForSemanticSegmentation:
    torch.manual_seed(0)
    with torch.device(device or settings.device):
        model = QLSegForSemanticSegmentation(configuration(settings.release))
    return model.to(dtype).eval()


def draw_pixels(settings: Settings, batch: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(B, 3, size, size) of noise on the device."""
    return torch.randn(batch, 3, settings.size, settings.size, device=settings.device, dtype=dtype)


def inference(function: Callable) -> Callable:
    return torch.inference_mode()(function)


__all__ = ["DTYPES", "Settings", "TINY", "build", "configuration", "draw_pixels", "inference", "make_settings"]
