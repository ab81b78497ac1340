# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What all modes of the benchmark share: settings, and networks with random weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..hub.saving import QLSegForSemanticSegmentation
from ..model.configuration_qlseg import QLSegConfig, QLSegViTConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TINY = "tiny"  # in the place of a release: a network to try the programs with, not to measure


@dataclass
class Settings:
    """What all modes share; `size` is the side of the square input in pixels, `dtypes` names of `DTYPES` or empty."""

    release: str
    size: int
    batch_sizes: tuple[int, ...]
    training_batch_sizes: tuple[int, ...]
    repeats: int
    compile: bool
    device: torch.device
    dtypes: tuple[str, ...] = ()

    @property
    def backend(self) -> str:
        """Of torch.compile; code for the tiny network is traced and not compiled, which takes minutes."""
        return "eager" if self.release == TINY else "inductor"

    def __post_init__(self):
        if unknown := set(self.dtypes) - set(DTYPES):
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
        num_decoder_blocks=2,
        num_decoder_layers=1,
        **widths,
    )


def make_settings(
    *,
    release: str = "vit-b-ade20k",
    size: int | None = None,
    batch_sizes: tuple[int, ...] = (1,),
    training_batch_sizes: tuple[int, ...] = (2,),
    repeats: int = 7,
    compile: bool = False,
    device: str | None = None,
    threads: int | None = None,
    dtypes: tuple[str, ...] | None = None,
) -> Settings:
    """Settings from the command line's; sets the number of threads. ValueError for an unknown release or dtype."""
    if threads:
        torch.set_num_threads(threads)
    return Settings(
        release=release,
        size=size or configuration(release).backbone_config.image_size,
        batch_sizes=batch_sizes,
        training_batch_sizes=training_batch_sizes,
        repeats=repeats,
        compile=compile,
        device=torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")),
        dtypes=dtypes or (),
    )


def build(settings, dtype=torch.float32, device=None) -> QLSegForSemanticSegmentation:
    torch.manual_seed(0)
    with torch.device(device or settings.device):
        model = QLSegForSemanticSegmentation(configuration(settings.release))
    return model.to(dtype).eval()


def inference(function: Callable) -> Callable:
    return torch.inference_mode()(function)


__all__ = ["DTYPES", "Settings", "TINY", "build", "configuration", "inference", "make_settings"]
