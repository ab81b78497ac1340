# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of the published implementation to a folder for `from_pretrained`.

Every key of the file is used or dropped with a reason; anything missing, unexpected, misshapen or not finite is named,
and then nothing is written.
"""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError

from ..data.label_names import read_label_file
from ..hub.card import converted_model_card
from ..hub.saving import QLSegForSemanticSegmentation, QLSegImageProcessor
from ..hub.upload import prepare_repo, upload_folder
from ..model.configuration_qlseg import QLSegConfig
from ..utils.files import partial_folder
from ..utils.hashing import file_sha256
from ..utils.text import first_line
from .build import find_labels, make_config, make_processor, rename_weights
from .config_text import numbers_from_text
from .errors import ConversionError
from .key_table import key_family
from .network_numbers import agree_on_numbers, numbers_from_shapes
from .reader import read_checkpoint


@dataclass
class Conversion:
    """A converted checkpoint, before it is written."""

    config: QLSegConfig
    processor: QLSegImageProcessor
    state_dict: dict[str, torch.Tensor]
    used: dict[str, list[str]]  # source key -> our keys
    dropped: dict[str, str]  # source key -> reason
    notes: list[str] = field(default_factory=list)


def convert(
    state_dict: dict[str, torch.Tensor], meta: dict, variant: str | None = None, labels_file: Path | None = None
) -> Conversion:
    """Configuration, processor and renamed weights of a checkpoint.

    Args:
        state_dict: of the published implementation, without a prefix.
        meta: of mmcv (`config`, `CLASSES`, `PALETTE`), of mmengine (`cfg`, `dataset_meta`), or empty.
        variant: one of the released names, needed if there is no configuration text.
        labels_file: label names that take the place of those in the file.

    Raises:
        ConversionError: sources contradict each other, or keys are missing, unexpected, misshapen or not finite.
    """
    text = next((meta[key] for key in ("config", "cfg") if isinstance(meta.get(key), str)), None)
    try:
        shapes = numbers_from_shapes(state_dict)
        numbers = agree_on_numbers(shapes, numbers_from_text(text) if text is not None else None, variant)
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ConversionError(f"shapes or configuration text are not QLSeg's: {first_line(error)}") from error
    notes = []
    names, palette = find_labels(meta)
    if labels_file is not None:
        names, palette = read_label_file(labels_file)
    elif names is not None:
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise ConversionError("the classes in the checkpoint are no label names; give them with --labels")
        names = list(names)
    elif variant is not None:
        config = QLSegConfig.for_release(variant)
        names, palette = list(config.id2label.values()), config.palette
    else:
        names, palette = [f"LABEL_{i}" for i in range(numbers["num_labels"])], None
        notes.append("The file names no labels and --labels was not given: they are called LABEL_0, LABEL_1, ...")
    if len(names) != numbers["num_labels"]:
        raise ConversionError(f"{len(names)} label names for a network of {numbers['num_labels']} labels")
    try:
        config, processor = make_config(numbers, names, palette), make_processor(numbers)
    except (ArithmeticError, LookupError, StrictDataclassError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConversionError(f"the numbers of the configuration text make no network: {reason}") from error
    weights, used, dropped = rename_weights(state_dict, config)
    if numbers["short_side"] < numbers.get("window_size", 0):
        notes.append("The short side is below the window, so windows are smaller than the network was trained for.")
    return Conversion(config, processor, weights, used, dropped, notes)


def save(conversion: Conversion, folder: Path, source: Path, dtype: torch.dtype | None) -> None:
    """Write model, processor and card beside `folder`, then move them into place in one step."""
    with torch.device("meta"):
        model = QLSegForSemanticSegmentation(conversion.config)
    model.load_state_dict(conversion.state_dict, assign=True)
    if dtype is not None:
        model.to(dtype)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConversionError(f"{folder} exists and is not an empty folder; choose another or remove it")
        with partial_folder(folder.name, folder.parent) as beside:
            model.save_pretrained(beside)
            conversion.processor.save_pretrained(beside)
            families = Counter(
                (key_family(old), ", ".join(map(key_family, new))) for old, new in conversion.used.items()
            )
            card = converted_model_card(
                model,
                conversion.processor,
                name=folder.resolve().name,
                source_name=source.name,
                source_sha256=file_sha256(source),
                key_families=[(count, old, new) for (old, new), count in families.items()],
                used=conversion.used,
                dropped=conversion.dropped,
                notes=conversion.notes,
            )
            (beside / "README.md").write_text(card, encoding="utf-8")
            os.replace(beside, folder)
    except OSError as error:
        raise ConversionError(f"{folder} cannot be written: {first_line(error)}") from error


def convert_file(
    path: Path,
    folder: Path,
    *,
    variant: str | None = None,
    labels: Path | None = None,
    ema: bool = False,
    dtype: str | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
    revision: str | None = None,
) -> None:
    """Convert a file, write the folder, say what was done, and upload it if that is asked for.

    Args:
        path: `.pth` or `.safetensors` file of the published implementation.
        folder: to make; it must not exist, or be empty.
        variant: released network, if the file does not say.
        labels: file of label names, instead of the checkpoint's.
        ema: take the moving average of the weights instead of them.
        dtype: of the weights, a name such as "bfloat16"; as stored if not given.
        push_to_hub: id of the model repository to upload to.
        private: make that repository private.
        revision: branch to upload to.

    Raises:
        ConversionError: a sentence on what is wrong with the checkpoint or the arguments; nothing is written then.
    """
    checkpoint = read_checkpoint(path, ema)
    try:
        conversion = convert(checkpoint.state_dict, checkpoint.meta, variant, labels)
    except ValueError as error:
        raise ConversionError(f"{path}: {error}") from error
    # the file's own keys
    conversion.used = {checkpoint.keys[name]: ours for name, ours in conversion.used.items()}
    conversion.dropped = {checkpoint.keys[name]: why for name, why in conversion.dropped.items()} | checkpoint.dropped
    conversion.notes = checkpoint.notes + conversion.notes
    place = {"private": private or None, "revision": revision}
    if push_to_hub:
        push_to_hub = prepare_repo(push_to_hub, **place)  # before there is a folder, if it is refused
    elif any(place.values()):
        raise ConversionError("--private and --revision belong to --push_to_hub ID; give that too")
    save(conversion, folder, path, getattr(torch, dtype) if dtype else None)
    parameters = sum(value.numel() for value in conversion.state_dict.values())
    print(f"{folder}: {parameters / 1e6:.1f} M parameters, {len(conversion.used)} keys used")
    for reason in dict.fromkeys(conversion.dropped.values()):
        keys = [key for key, why in conversion.dropped.items() if why == reason]
        print(f"dropped {', '.join(keys) if len(keys) < 4 else f'{len(keys)} keys ({keys[0]}, ...)'}: {reason}")
    for note in conversion.notes:
        print(note)
    if push_to_hub:
        branch = f" --revision {revision}" if revision else ""
        print(f"uploading; to repeat that alone: hf upload {push_to_hub} {folder}{branch}")
        print(upload_folder(folder, push_to_hub, commit_message="Upload converted QLSeg", **place))


__all__ = ["Conversion", "convert", "convert_file", "save"]
