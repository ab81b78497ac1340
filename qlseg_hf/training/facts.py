# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What the decisions of a run depend on: its data, every image of which is read once, and the machine."""

import os

import numpy as np
import torch

from ..data.check.survey import DataRequest, Survey
from ..model.configuration_qlseg import QLSegConfig
from ..utils.devices import has_bf16
from .auto import RULES, DataFacts, DeviceFacts
from .build import build_processor, read_label_names, sets_reduction
from .distributed import launched_precision
from .recipe import Recipe


def data_request(recipe: Recipe) -> DataRequest:
    """What `survey_data` is to look at, by a recipe.

    Raises:
        ValueError: label names that cannot be read, or a model whose rules contradict the recipe's labels.
    """
    named, _ = read_label_names(recipe.label_names)
    processor = None
    if recipe.model:
        processor = build_processor(recipe)
        named = named or QLSegConfig.from_pretrained(recipe.model).id2label
    rules = {key: recipe.processor.get(key, getattr(recipe, key)) for key in RULES}
    return DataRequest(
        recipe.data,
        recipe.train_split,
        recipe.eval_split,
        reading=reading_of(recipe),
        label_names=[named[label] for label in sorted(named)] if named else None,
        rules={key: value for key, value in rules.items() if value is not None},
        processor=processor,
        doubts_are_errors=not sets_reduction(recipe),
        strict=recipe.strict,
        weighs_labels=recipe.label_weights == "auto",
        num_channels=recipe.num_channels,
    )


def reading_of(recipe: Recipe) -> dict:
    """Keywords of `open_dataset` that the recipe gives."""
    reading = {
        "config": recipe.dataset_config,
        "image_column": recipe.image_column,
        "label_column": recipe.label_column,
        "streaming": recipe.streaming or None,
        "label_colors": recipe.label_colors,
        "layout": recipe.layout,
        "val_fraction": recipe.val_fraction,
    }
    return {key: value for key, value in reading.items() if value is not None}


def data_facts(survey: Survey) -> DataFacts:
    """What a look at the data found."""
    sides = [min(found.size) for found in survey.training if found.size]
    bands, processor = survey.bands, survey.request.processor
    settings = processor.settings() if processor else None
    return DataFacts(
        num_images=len(sides),
        short_side=int(np.median(sides)) if sides else 0,
        label_names=list(survey.rules.names) or None,
        num_channels=bands.num_channels if bands else 3,
        band_settings=bands.processor_settings if bands else {},
        rules=survey.settings,
        label_weights=survey.label_weights,
        num_eval_images=len(survey.findings[survey.uses["validation"]]),
        window_size=processor.window_size if processor else None,
        processor_side=min(dict(settings.size).values()) if settings and settings.do_resize else None,
    )


def device_facts(device: torch.device, num_processes: int) -> DeviceFacts:
    """The machine, as far as a run depends on it.

    Raises:
        ValueError: accelerate's launcher was told a precision that does not exist.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    precision, memory = launched_precision(), None
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    precision = precision or ("bf16" if has_bf16(device) else "fp32")
    return DeviceFacts(device.type, memory, num_processes, max(1, cores // num_processes), precision)


__all__ = ["data_facts", "data_request", "device_facts", "reading_of"]
