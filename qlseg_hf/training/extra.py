# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`extra_data` of a recipe: it is opened, its label rules and names are settled, and its images are looked at."""

import copy
import sys
import typing
from pathlib import Path
from typing import Any

from ..data.check.counting import Finding
from ..data.check.labels import read_findings, report_on_labels
from ..data.check.survey import Survey
from ..data.datasets import Samples, listed, open_dataset
from ..data.mixture import ExtraSet, match_names
from ..model.image_processing_qlseg import QLSegImageProcessor
from ..utils.text import printable
from ..utils.yaml_text import read_mapping
from .auto import RULES
from .build import read_label_names
from .recipe import Recipe, convert_value, is_data_file, read_data_file, rename_old_keys
from .synonyms import hint_for

READING = ("layout", "dataset_config", "val_fraction", "image_column", "label_column", "label_colors")
KEYS = ("data", "train_split", "label_names", *READING, *RULES)
# of a data.yaml, which are settled by the run
OF_THE_RUN = ("eval_split", "num_channels", "processor", "label_weights", "streaming")


def read_entries(recipe: Recipe) -> list[dict[str, Any]]:
    """The keys of each extra set. A folder that holds a `data.yaml` is described by it, as one that is given itself.

    Raises:
        ValueError: an unknown key, a value of a wrong type, a set without `data`, or a stream.
    """
    given = recipe.extra_data
    hints, entries = typing.get_type_hints(Recipe), []
    for entry in given if isinstance(given, list) else [given] if given else []:
        values = rename_old_keys({"data": entry} if isinstance(entry, str) else entry)
        place = values.get("data")
        if isinstance(place, str) and is_described(Path(place).expanduser() / "data.yaml"):
            place = str(Path(place) / "data.yaml")
        if is_data_file(place):
            described = read_data_file(Path(place))
            if described.get("streaming"):
                raise ValueError(f"extra_data {place} is a stream, whose images are not numbered; download it")
            described = {key: value for key, value in described.items() if key not in OF_THE_RUN}
            values = described | {key: value for key, value in values.items() if key != "data"}
        for key in values:
            if key not in KEYS:
                raise ValueError(f"unknown key {str(key)[:80]} in extra_data; {hint_for(str(key), list(KEYS))}")
        if not values.get("data"):
            raise ValueError("a set of extra_data lacks data")
        entries.append({key: convert_value(f"extra_data: {key}", value, hints[key]) for key, value in values.items()})
    return entries


def is_described(path: Path) -> bool:
    """Whether a file is a `data.yaml` of ours; others write files of this name too, with the folders of splits."""
    return path.is_file() and "data" in rename_old_keys(read_mapping(path))


def open_samples(entry: dict[str, Any]) -> Samples:
    """All training images of an extra set; nothing is held out unless it says `val_fraction`."""
    reading = {key: entry[key] for key in READING if entry.get(key) is not None}
    reading = {"val_fraction": 0.0} | reading
    if "dataset_config" in reading:
        reading["config"] = reading.pop("dataset_config")
    return open_dataset(entry["data"], entry.get("train_split") or "train", **reading)


def count_extra(recipe: Recipe) -> int:
    """Images of all extra sets."""
    return sum(len(open_samples(entry)) for entry in read_entries(recipe))


def open_extra(recipe: Recipe, processor: QLSegImageProcessor, names: list[str]) -> list[ExtraSet]:
    """The extra sets of a recipe.

    A set's label rules are those that it says, or its layout; if neither says any, the run's. Its labels are called as
    it says; else, without a `label_mapping` of its own, as its layout says; else they are the run's. They are matched
    by name.

    Args:
        recipe: with or without `extra_data`.
        processor, names: of the run.

    Raises:
        ValueError: a set cannot be opened, or has labels that the run lacks.
    """
    sets = []
    for entry in read_entries(recipe):
        samples = open_samples(entry)
        layout = getattr(samples, "layout", None)
        theirs = list((read_label_names(entry.get("label_names"))[0] or {}).values())
        if not theirs and not entry.get("label_mapping"):
            theirs = list(getattr(layout, "label_names", None) or [])
        rules = {key: getattr(layout, key, None) for key in ("ignore_index", "label_mapping")}
        rules = {key: value for key, value in (rules | entry).items() if key in RULES and value is not None}
        own = copy.deepcopy(processor)
        for key, value in ({"do_reduce_labels": False, "ignore_index": 255, "label_mapping": None} | rules).items():
            if rules:
                setattr(own, key, value)
        own.settings()
        theirs = theirs or names
        sets.append(ExtraSet(entry["data"], samples, own, theirs, match_names(theirs, names, entry["data"])))
    return sets


def look_at_extra(
    extra: list[ExtraSet], survey: Survey, num_samples: int, strict: bool = False
) -> list[tuple[int, str]]:
    """Read every image of the extra sets once, and tell what there is.

    Args:
        extra: the sets.
        survey: of the data of the run, whose validation images must not be among them.
        num_samples: of the training split, whose numbers come before those of the extra sets.
        strict: refuse images that cannot be read.

    Returns:
        (number, what is said of it) of every image that cannot be read.

    Raises:
        ValueError: the data would spoil the training.
    """
    unreadable, first = [], num_samples
    for one in extra:
        reading = one.processor.settings().reading
        findings = read_findings(one.samples, None, survey.request.num_threads, reading, "reading extra data", True)
        # not the whole: a set may hold a single one of the run's labels
        report = report_on_labels(findings, one.processor, one.names, strict=strict, is_whole=False)
        report.warnings += getattr(one.samples, "notes", [])
        report.warnings += repeated_images(findings, survey)
        print(f"extra data {printable(one.data)}, {len(findings)} images:\n{report}", file=sys.stderr)
        if report.errors:
            raise ValueError(f"extra_data {one.data}: {report.errors[0]}")
        unreadable += [(first + index, text) for index, text in report.unreadable]
        first += len(findings)
    return unreadable


def repeated_images(findings: list[Finding], survey: Survey) -> list[str]:
    """Sentences on images of an extra set that are in a split of the data too."""
    sentences = []
    remedies = {
        "validation": ", so scores will be too good",
        "training": ", so they are trained on by two label maps",
    }
    for use, text in remedies.items():
        known = {found.picture_digest for found in survey.findings[survey.uses[use]]} - {None}
        if again := [found.name for found in findings if found.picture_digest in known]:
            sentences.append(
                f"{len(again)} of {len(findings)} images are in the {use} split of the data too{text}: {listed(again)}"
            )
    return sentences


__all__ = ["count_extra", "look_at_extra", "open_extra", "read_entries"]
