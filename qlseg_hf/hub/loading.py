# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Loading a folder or Hub id whole and undamaged, or saying in a sentence what is wrong with it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, PreTrainedConfig
from transformers.utils import cached_file, logging

from ..model.runtime import is_finite
from ..utils.text import describe_problems, first_line
from ..utils.yaml_text import read_mapping
from .saving import QLSegForSemanticSegmentation, QLSegImageProcessor
from .source import hub_id


@contextmanager
def hide_bars() -> Iterator[None]:
    """Hide the progress bars of transformers, which would break into the caller's."""
    were_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_on:
            logging.enable_progress_bar()


def check_source(source: str | os.PathLike) -> None:
    """ValueError for a file in the place of a folder or Hub id, FileNotFoundError for a folder that is not there."""
    if not os.path.exists(source) and hub_id(str(source)) is None:
        raise FileNotFoundError(f"there is no folder {source}, and it is no id on the Hub")
    if os.path.isfile(source):
        raise ValueError(
            f"{source} is a file; a model is a folder or a Hub id, and `qlseg convert` makes a folder of a checkpoint"
        )


def load_network(
    source: str | os.PathLike, settings: dict | None = None, *, dtype: torch.dtype | None = None
) -> tuple[QLSegForSemanticSegmentation, QLSegImageProcessor]:
    """Network, in inference mode, and processor of a folder or Hub id, checked to be whole and undamaged.

    `from_pretrained` draws weights that a folder lacks, and only warns.

    Args:
        source: folder or Hub id. Its code is never run.
        settings: of the processor, instead of the stored ones.
        dtype: of the weights; as stored if not given.

    Raises:
        OSError, ValueError: something is missing, damaged or of another network; names `source`.
    """
    check_source(source)
    where = {"trust_remote_code": False}
    with name_in_errors(f"config.json of {source}"):
        config = AutoConfig.from_pretrained(source, **where)
    with name_in_errors(f"preprocessor_config.json of {source}"):
        processor = AutoImageProcessor.from_pretrained(source, **where, **(settings or {}))
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what the report on weights says is said below, in a sentence
    try:
        with name_in_errors(f"weights of {source}"):
            model, report = AutoModelForSemanticSegmentation.from_pretrained(
                source, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **where
            )
    finally:
        logging.set_verbosity(verbosity)
    if not isinstance(model, QLSegForSemanticSegmentation) or not isinstance(processor, QLSegImageProcessor):
        raise ValueError(f"{source} is a {type(model).__name__}; a QLSeg model with its processor is wanted")
    plain = {name: x for name, x in model.state_dict().items() if type(x) is torch.Tensor}  # int8 ones are not
    check_loaded(source, report | {"not finite_keys": [name for name, x in plain.items() if not is_finite(x)]})
    return model.eval(), processor


def check_loaded(source: str | os.PathLike, report: dict) -> None:
    """ValueError if weights do not fit: `from_pretrained` draws what a folder lacks, and warns.

    Args:
        source: what was loaded.
        report: of `from_pretrained(..., output_loading_info=True)`.
    """
    kinds = ("missing", "unexpected", "mismatched", "not finite")
    if found := describe_problems({kind: sorted(map(str, report.get(f"{kind}_keys", ()))) for kind in kinds}):
        raise ValueError(f"weights of {source} do not fit its config.json: {found}; copy the folder again")


@contextmanager
def name_in_errors(what: str) -> Iterator[None]:
    """Whatever is raised because of damaged or wrong files says which; OSError of transformers does already."""
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, SafetensorError, TypeError) as error:
        raise ValueError(f"{what} cannot be read: {' '.join(str(error).split())}") from error
    except (ImportError, StrictDataclassError, ValueError) as error:
        raise ValueError(f"{what} cannot be read: {first_line(error)}") from error


def read_val_fraction(source: str | os.PathLike, config: PreTrainedConfig) -> float | None:
    """The share of the training images that was held out when a model was trained; None if nobody says it.

    Args:
        source: folder or Hub id, whose recipe says it; or a file.
        config: of the model, which says it where there is no recipe: see `keep_val_fraction`.

    Raises:
        ValueError: the recipe cannot be read, or it is not a number.
    """
    path: str | Path | None = Path(source) / "recipe.yaml"
    if not Path(source).exists():
        lenient = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
        path = None
        with suppress(OSError):  # there is no such model: loading it says so
            path = cached_file(os.fspath(source), "recipe.yaml", **lenient)
    found = read_mapping(Path(path)).get("val_fraction") if path and Path(path).is_file() else None
    found = getattr(config, "val_fraction", None) if found is None else found
    if not isinstance(found, int | float | None):
        raise ValueError(f"val_fraction of {source} is {found!r:.80}; a number is wanted")
    return found


def keep_val_fraction(source: str | os.PathLike, config: PreTrainedConfig) -> None:
    """Have the configuration of a model say it, for what is written of it without a recipe: a file, int8 weights."""
    if (found := read_val_fraction(source, config)) is not None:
        config.val_fraction = found


__all__ = ["check_loaded", "check_source", "hide_bars", "keep_val_fraction", "load_network", "read_val_fraction"]
