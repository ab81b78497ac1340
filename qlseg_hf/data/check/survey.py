# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a look at a data set is asked for, and what it has found."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...model.image_processing_qlseg import QLSegImageProcessor
from ...utils.text import printable
from ..bands import BandStatistics, BandSums
from ..datasets import Sample
from .counting import Finding, labels_of, tally_values
from .duplicates import Group
from .labels import LabelReport
from .rules import Rules
from .suggestions import suggest_crop_size, suggest_label_weights


@dataclass
class DataRequest:
    """What to look at, and what is known of it.

    `data`: folder or Hub id. `reading`: keywords of `open_dataset`. `label_names`: of the labels, in order; None where
    nobody has named them. `rules`: those of `do_reduce_labels`, `ignore_index` and `label_mapping` that someone has
    set. `processor`: of a model that goes on from here, whose rules hold; nothing is decided then.
    `doubts_are_errors`, `strict`: see `report_on_labels`. `weighs_labels`: whether `label_weights` was set to "auto".
    `patch_size`: of the encoder, pixels. `num_channels`: bands to read the images with; what is found if not given.
    `reads_all_splits`: whether splits that are neither trained nor validated on are read too.
    """

    data: str
    train_split: str = "train"
    eval_split: str = "validation"
    reading: dict[str, Any] = field(default_factory=dict)
    label_names: list[str] | None = None
    rules: dict[str, Any] = field(default_factory=dict)
    processor: QLSegImageProcessor | None = None
    doubts_are_errors: bool = False
    strict: bool = False
    weighs_labels: bool = False
    patch_size: int = 16
    num_channels: int | None = None
    num_threads: int = 4
    reads_all_splits: bool = True

    @property
    def picture_reading(self) -> dict[str, Any]:
        """See `Sample.read_picture`."""
        if self.processor is not None:
            return self.processor.settings().reading
        return {"num_channels": self.num_channels, "keep_values": self.num_channels not in (None, 1, 3)}


@dataclass
class Survey:
    """What is in a data set and what follows from it.

    `splits`: {name: samples}; `uses`: {"training" or "validation": name of its split}; `findings`: {name of the split:
    of each sample}; `rules`: names and settings, given and decided; `reports`: {use: of its labels}. `band_sums`:
    {(number of bands, type): of the training images}. `colors`: {(r, g, b): (pixels, label maps)} of colour masks
    without `label_colors`, the most frequent first. `problems` stop training, `warnings` should be read, `notes` say
    what was found and decided; sentences.
    """

    request: DataRequest
    layout: str
    description: str
    splits: dict[str, Sequence[Sample]]
    uses: dict[str, str]
    findings: dict[str, list[Finding]]
    rules: Rules
    processor: QLSegImageProcessor
    reports: dict[str, LabelReport]
    band_sums: dict[tuple[int, str], BandSums]
    duplicates: list[Group] = field(default_factory=list)
    colors: dict[tuple[int, int, int], tuple[int, int]] = field(default_factory=dict)
    rare: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def used(self) -> list[Finding]:
        """Of the samples that are trained or validated on."""
        return [finding for split in dict.fromkeys(self.uses.values()) for finding in self.findings[split]]

    @property
    def training(self) -> list[Finding]:
        return self.findings[self.uses["training"]]

    @property
    def sizes(self) -> Counter:
        """(height, width): number of images, of all splits."""
        return Counter(found.size for findings in self.findings.values() for found in findings if found.size)

    @property
    def label_counts(self) -> np.ndarray:
        """(K,) pixels of each label, of the samples that are trained or validated on."""
        return sum_over(self, lambda report: report.label_counts)

    @property
    def num_ignored(self) -> int:
        return int(sum_over(self, lambda report: report.num_ignored))

    @property
    def images_of_labels(self) -> list[int]:
        """How many images hold each label."""
        return count_images(self.used, self.processor, len(self.rules.names))

    @property
    def stored_values(self) -> list[list[int]]:
        """Of each label the stored values that become it."""
        stored = np.array(sorted(tally_values(self.used, None, 0)), dtype=np.int64)
        found: list[list[int]] = [[] for _ in self.rules.names]
        for value, label in zip(stored.tolist(), labels_of(stored, self.processor).tolist()):
            if 0 <= label < len(found) and label != self.processor.ignore_index:
                found[label].append(value)
        return found

    @property
    def label_weights(self) -> dict[str, float]:
        """Suggested, by name."""
        counts = self.reports["training"].label_counts.tolist()
        return suggest_label_weights(dict(zip(self.rules.names, counts)))

    @property
    def crop_size(self) -> int:
        """Suggested, pixels."""
        return suggest_crop_size([found.size for found in self.training if found.size], self.request.patch_size)

    @property
    def unreadable(self) -> list[tuple[str, str, str]]:
        """(split, name, reason) of each sample that cannot be used."""
        return [
            (split, found.name, str(found.error).removeprefix(f"{found.name}: "))
            for split, findings in self.findings.items()
            for found in findings
            if found.error is not None
        ]

    @property
    def settings(self) -> dict[str, Any]:
        """The label rules as keys of a recipe, the plain ones too: a model that training starts from has its own."""
        if self.rules.is_open:
            return {}
        names = ("do_reduce_labels", "ignore_index", "label_mapping")
        values = {key: getattr(self.processor, key) for key in names}
        return {key: value for key, value in values.items() if value is not None}

    @property
    def bands(self) -> BandStatistics | None:
        """Of the training images; None if none can be read or they differ in their bands."""
        return next(iter(self.band_sums.values())).statistics() if len(self.band_sums) == 1 else None

    def text(self) -> str:
        """The report for a terminal."""
        lines = [printable(self.description), *(f"note: {printable(text)}" for text in self.notes)]
        lines += [f"error: {printable(text)}" for text in self.problems if not self.is_in_a_report(text)]
        lines += [f"{use} data:\n{report}" for use, report in self.reports.items()]
        lines += [f"warning: {printable(text)}" for text in self.warnings if not self.is_in_a_report(text)]
        return "\n".join(lines)

    def is_in_a_report(self, text: str) -> bool:
        """Whether a sentence is shown with the labels of a split."""
        return any(text.endswith(said) for report in self.reports.values() for said in report.errors + report.warnings)

    @property
    def can_train(self) -> bool:
        return not self.problems


def sum_over(survey: Survey, what):
    """Sum over the splits in use, each counted once."""
    reports = {survey.uses[use]: report for use, report in survey.reports.items()}
    return sum(what(report) for report in reports.values())


def count_images(findings: list[Finding], processor: QLSegImageProcessor, num_labels: int) -> list[int]:
    """How many of the label maps hold each label."""
    images = [0] * num_labels
    for found in findings:
        if found.stored is not None:
            for label in set(labels_of(found.stored.values, processor).tolist()) - {processor.ignore_index}:
                if 0 <= label < num_labels:
                    images[label] += 1
    return images


__all__ = ["DataRequest", "Survey", "count_images"]
