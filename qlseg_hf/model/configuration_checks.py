# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What every configuration is checked for: names, types, ranges, and attention code of strangers."""

import difflib
import json
import math
import re
from functools import wraps
from operator import index

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig


def raise_value_errors(cls: type) -> type:
    """A wrong name, number or type given to a `strict` class is a ValueError, not the Hub's error, nor passed over."""
    init = cls.__init__

    @wraps(init)
    def __init__(self, *args, **kwargs):
        check_spelling(cls, kwargs)
        try:
            init(self, *args, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(f"{cls.__name__}: {error.__cause__ or error}") from error

    cls.__init__ = __init__
    return cls


def check_spelling(cls: type, values: dict) -> None:
    """ValueError if a name that is no field nearly is one that is missing: transformers keeps any, to no effect."""
    known = {*cls.__dataclass_fields__, *cls.attribute_map, "num_labels"}
    missing = sorted(name for name in known - values.keys() if not name.startswith("_"))
    for name in sorted(values.keys() - known - set(dir(cls))):  # `out_indices` is a property
        if near := difflib.get_close_matches(name, missing, n=1, cutoff=0.85):
            raise ValueError(f"unknown key {name}; did you mean {near[0]}?")


def check_spelling_of(config: PreTrainedConfig) -> None:
    """`check_spelling` of a ready-made configuration: of what it has beside the defaults of its class."""
    fields = type(config).__dataclass_fields__
    given = {key: value for key, value in vars(config).items() if key not in fields or value != fields[key].default}
    check_spelling(type(config), {key: value for key, value in given.items() if not key.startswith("_")})


def structure_of(config: PreTrainedConfig) -> dict[str, str]:
    """{field: value as JSON} of what a model is built by: what is changed afterwards changes nothing of the model.

    All fields of its class but rates of dropout and deviations of fresh weights.
    """
    names = type(config).__dataclass_fields__.keys() - PreTrainedConfig.__dataclass_fields__.keys()
    names = sorted(name for name in names if not re.search("drop|initializer", name))
    return {name.lstrip("_"): json.dumps(getattr(config, name), default=str) for name in names}


def check_ranges(config: PreTrainedConfig, counts: tuple[str, ...], factors: tuple[str, ...]) -> None:
    """ValueError if one of the fields `counts` is below 1, or one of `factors` is negative or not finite."""
    for name in counts:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 1")
    for name in factors:
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name} is {getattr(config, name)}; a finite number, 0 or more, is wanted")


def check_no_kernels(values: dict) -> None:
    """ValueError if a stored configuration names attention code on the Hub: transformers would fetch and run it.

    Pass a kernel you trust to `from_pretrained` as `attn_implementation`.
    """
    for key, value in values.items():
        if key.endswith("attn_implementation") and "/" in str(value):
            raise ValueError(
                f"the configuration asks for the attention code {value!r}, which is not run; remove {key}"
            )
        if isinstance(value, dict):
            check_no_kernels({str(name): inner for name, inner in value.items()})


def number_keys(id2label: dict) -> dict[int, str]:
    """{number: name}, in the order of the numbers, whatever order they came in: JSON that was sorted as text has 10
    before 2. Keys are numbers, or texts of numbers as JSON has them; ValueError for others.
    """
    try:
        numbers = {
            int(number) if isinstance(number, str) else index(number): name for number, name in id2label.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"id2label must be {{number: name}}, got {id2label!r:.80}") from error
    if len(numbers) < len(id2label):
        raise ValueError(f"id2label names a number twice: {id2label!r:.80}")
    if not all(isinstance(name, str) for name in numbers.values()):
        raise ValueError(f"id2label must hold names, got {id2label!r:.80}")
    return dict(sorted(numbers.items()))


def check_number_of_names(names: dict, num_labels: int | None) -> None:
    """ValueError if they are not `num_labels`, of which transformers would make LABEL_0, LABEL_1, ..."""
    if num_labels not in (None, len(names)):
        raise ValueError(f"num_labels is {num_labels}, and id2label has {len(names)} names; leave num_labels out")


__all__ = [
    "check_no_kernels",
    "check_number_of_names",
    "check_ranges",
    "check_spelling",
    "check_spelling_of",
    "number_keys",
    "raise_value_errors",
    "structure_of",
]
