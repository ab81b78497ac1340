# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What is asked of `segment`: its arguments, checked."""

import difflib
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from operator import index

import numpy as np
import torch

from .configuration_qlseg import QLSegConfig
from .image_processing_qlseg import QLSegImageProcessor
from .processor_settings import Settings

LARGEST_SCALE = 1000


@dataclass(frozen=True)
class Request:
    """The arguments of `segment`, checked."""

    settings: Settings
    scales: list[float]
    flip: bool
    wanted: list[int] | None  # numbers of the labels to choose from; all if not given
    max_windows: int | str | None
    return_scores: bool
    return_confidence: bool


def make_request(
    config: QLSegConfig,
    processor: QLSegImageProcessor,
    *,
    scales: float | Iterable[float],
    flip: bool,
    labels: Iterable[str | int] | None,
    max_windows: int | str | None,
    return_scores: bool,
    return_confidence: bool,
) -> Request:
    """The request of a call of `segment`; TypeError or ValueError for an argument that is none."""
    if not hasattr(processor, "settings"):
        raise TypeError(f"the processor must be a QLSegImageProcessor; got {type(processor).__name__}")
    settings = processor.settings()
    settings.check_network(config)
    for name, value in (("flip", flip), ("return_scores", return_scores), ("return_confidence", return_confidence)):
        if not isinstance(value, bool | np.bool_):  # the text "no" would count as True
            raise ValueError(f"{name} must be True or False; got {reprlib.repr(value)}")
    if max_windows is not None and not (isinstance(max_windows, str) and max_windows == "auto"):
        max_windows = check_whole_number("max_windows", max_windows)
    wanted = None if labels is None else label_numbers(labels, config.id2label)
    return Request(settings, scale_factors(scales), flip, wanted, max_windows, return_scores, return_confidence)


def is_real(value) -> bool:
    """Whether this is a number, also one of NumPy, and not True or False."""
    return isinstance(value, Real) and not isinstance(value, bool)


def scale_factors(scales: float | Iterable[float]) -> list[float]:
    """A list of `scales`, which may be a single number; ValueError if one is not a number above 0."""
    if isinstance(scales, np.ndarray | torch.Tensor):
        scales = scales.tolist()
    found = [scales] if isinstance(scales, Real | str | bytes) or not isinstance(scales, Iterable) else list(scales)
    if not found or not all(is_real(scale) and 0 < scale <= LARGEST_SCALE for scale in found):
        raise ValueError(
            f"scales must be positive numbers up to {LARGEST_SCALE}, at least one; got {reprlib.repr(found)}"
        )
    return [float(scale) for scale in found]


def check_whole_number(name: str, value: int) -> int:
    """An integer of any kind, at least 1; ValueError otherwise."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {reprlib.repr(value)}; it must be at least 1, a whole number")
    return int(value)


def label_numbers(labels: Iterable[str | int], id2label: dict[int, str]) -> list[int]:
    """Label numbers from names or numbers; ValueError if one is unknown, ambiguous or given twice, or none is."""
    is_single = isinstance(labels, str | bytes) or not isinstance(labels, Iterable)
    labels, names = [labels] if is_single else list(labels), list(id2label.values())
    if shared := [label for label in labels if isinstance(label, str) and names.count(label) > 1]:
        raise ValueError(f"several labels of the model are called {shared}; give their numbers instead")
    label2id = {name: number for number, name in id2label.items()}
    try:
        numbers = [label2id.get(label, -1) if isinstance(label, str) else index(label) for label in labels]
    except TypeError as error:
        raise TypeError(f"labels must be names or whole numbers; got {reprlib.repr(labels)}") from error
    if any(isinstance(label, bool) for label in labels):
        raise TypeError(f"labels must be names or whole numbers; got {reprlib.repr(labels)}")
    if unknown := [label for label, number in zip(labels, numbers) if number not in id2label]:
        near = [name for label in unknown for name in difflib.get_close_matches(str(label), label2id, n=1)]
        raise ValueError(f"the model has no labels {unknown}" + (f"; did you mean {near}?" if near else ""))
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"labels must name at least one label, and each once; got {labels}")
    return numbers


__all__ = ["Request", "check_whole_number", "is_real", "label_numbers", "make_request", "scale_factors"]
