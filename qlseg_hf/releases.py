# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The five released networks as data: network, processing, labels and published scores, each stated here alone.

Source: Xie et al., "Multi-query and multi-level enhanced network for semantic segmentation", Pattern Recognition 2024.
"""

import json
from pathlib import Path

from .model.configuration_qlseg import QLSegConfig, QLSegViTConfig
from .model.image_processing_qlseg import MEAN_STD_HALF, MEAN_STD_IMAGENET, QLSegImageProcessor


def _processing(short_side: int, window: int, stride: int, mean_std: tuple, *, reduce_labels: bool) -> dict:
    """Settings of the processor that a network was measured with; sides in pixels, mean and deviation of 1."""
    return {
        "size": {"shortest_edge": short_side},
        "window_size": window,
        "window_stride": stride,
        "image_mean": mean_std[0],
        "image_std": mean_std[1],
        "do_reduce_labels": reduce_labels,
    }


VIT_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
VIT_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
DECODER_BASE = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
DECODER_LARGE = {"hidden_size": 512, "num_attention_heads": 16, "intermediate_size": 2048}

# Published mIoU in %, single scale / multi-scale with flip, is the paper's, not ours.
RELEASES = {
    "vit-b-ade20k": {
        "backbone": VIT_BASE | {"image_size": 512, "out_indices": [6, 8, 12], "drop_path_rate": 0.1},
        "decoder": DECODER_BASE,
        "labels": "ade20k",
        "processor": _processing(512, 512, 341, MEAN_STD_IMAGENET, reduce_labels=True),
        "miou": (52.9, 53.6),
    },
    "vit-l-ade20k": {
        "backbone": VIT_LARGE | {"image_size": 640, "out_indices": [8, 16, 24], "drop_path_rate": 0.3},
        "decoder": DECODER_LARGE,
        "labels": "ade20k",
        "processor": _processing(640, 640, 608, MEAN_STD_HALF, reduce_labels=True),
        "miou": (55.3, 56.2),
    },
    "vit-l-cocostuff10k": {
        "backbone": VIT_LARGE | {"image_size": 512, "out_indices": [8, 16, 24], "drop_path_rate": 0.3},
        "decoder": DECODER_LARGE,
        "labels": "coco-stuff-171",
        "processor": _processing(512, 512, 341, MEAN_STD_HALF, reduce_labels=True),
        "miou": (50.5, 51.0),
    },
    "vit-l-pascal-context-59": {
        "backbone": VIT_LARGE | {"image_size": 480, "out_indices": [8, 16, 24], "drop_path_rate": 0.3},
        "decoder": DECODER_LARGE,
        "labels": "pascal-context-59",
        "processor": _processing(520, 480, 320, MEAN_STD_HALF, reduce_labels=True),
        "miou": (65.5, 66.4),
    },
    "vit-l-pascal-context-60": {
        "backbone": VIT_LARGE | {"image_size": 480, "out_indices": [8, 16, 24], "drop_path_rate": 0.3},
        "decoder": DECODER_LARGE,
        "labels": "pascal-context-60",
        "processor": _processing(520, 480, 320, MEAN_STD_HALF, reduce_labels=False),
        "miou": (59.3, 60.2),
    },
}


def release(name: str) -> dict:
    """The entry of `RELEASES` called `name`; ValueError naming the five if there is none."""
    if name not in RELEASES:
        raise ValueError(f"unknown release {name!r}; choose one of {', '.join(RELEASES)}")
    return RELEASES[name]


def label_set(name: str) -> tuple[list[str], list[list[int]]]:
    """Names and palette (RGB, 0..255) of a label set: ade20k, coco-stuff-171, pascal-context-59, pascal-context-60."""
    sets = json.loads((Path(__file__).parent / "label_sets.json").read_text(encoding="utf-8"))
    if name not in sets:
        raise ValueError(f"unknown label set {name!r}; choose one of {', '.join(sets)}")
    return sets[name]["labels"], sets[name]["palette"]


def config_for_release(cls: type[QLSegConfig], name: str, **overrides) -> QLSegConfig:
    """Configuration of a released network, with its label names and palette.

    Args:
        name: one of `RELEASES`.
        overrides: fields to change; `num_labels` or `id2label` replaces the label names and drops the palette.

    Raises:
        ValueError: there is no such release.
    """
    entry = release(name)
    values = entry["decoder"] | {"backbone_config": QLSegViTConfig(**entry["backbone"])}
    if not {"num_labels", "id2label"} & set(overrides):
        labels, palette = label_set(entry["labels"])
        values |= {"id2label": dict(enumerate(labels)), "palette": palette}
    return cls(**(values | overrides))


def processor_for_release(cls: type[QLSegImageProcessor], name: str, **overrides) -> QLSegImageProcessor:
    """Settings that a released network was measured with; ValueError if there is no such release."""
    return cls(**(release(name)["processor"] | overrides))


# Given to the classes here, because the code that is copied beside weights carries no table of releases.
QLSegConfig.for_release = classmethod(config_for_release)
QLSegImageProcessor.for_release = classmethod(processor_for_release)

__all__ = ["RELEASES", "config_for_release", "label_set", "processor_for_release", "release"]
