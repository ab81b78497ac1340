# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Is a data set fit for training? What its label maps hold, against the names and rules that are set."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from ...model.image_processing_qlseg import QLSegImageProcessor
from ...utils.text import printable
from ..datasets import NUM_NAMED, Samples, listed
from .counting import DARK, Finding, Tally, findings_of, is_no_label, iterate, labels_of, tally_values
from .readings import table_of_readings
from .sentences import ONE_REASON, PROBLEMS, ignored_label_error, one_label_text, range_error

MAX_UNREADABLE = 0.1  # share of pictures that may be left out; if more cannot be read, something else is wrong


@dataclass
class LabelReport:
    """Result of `check_labels_of_dataset`.

    `num_samples`: how many were looked at. `label_counts`: (K,) int64, pixels of each label. `num_ignored`: ignored
    pixels. `errors`: sentences that should stop training. `warnings`: sentences that should be read. `unreadable`:
    (number, what is said of it) of every picture that cannot be read. `doubts`: sentences on label rules that may be
    set by mistake; they are also among the errors or the warnings. `readings`: a table of what stored values become by
    the rules and by others that are as likely, or "" where there is no doubt.
    """

    num_samples: int
    label_counts: np.ndarray
    num_ignored: int
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unreadable: list[tuple[int, str]] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    readings: str = ""

    def __str__(self) -> str:
        lines = [f"error: {text}" for text in self.errors] + [f"warning: {text}" for text in self.warnings]
        num_pixels = int(self.label_counts.sum()) + self.num_ignored
        share = f"{self.num_ignored / num_pixels:.1%}" if num_pixels else "none"
        occur = f"{(self.label_counts > 0).sum()} of {len(self.label_counts)} labels occur"
        lines = [printable(line) for line in lines]  # names of labels and files are the data set's
        lines += self.readings.splitlines()  # names in it are escaped
        return "\n".join([*lines, f"checked {self.num_samples} pictures: {occur}, {share} of the pixels ignored"])


def check_labels_of_dataset(
    samples: Samples,
    processor: QLSegImageProcessor,
    label_names: dict[int, str] | list[str],
    *,
    max_samples: int | None = None,
    strict: bool = True,
    doubts_are_errors: bool = False,
    num_threads: int = 4,
    show_progress: bool = True,
) -> LabelReport:
    """Read every picture and label map (or the first `max_samples`) and report what would spoil training.

    Args:
        samples: what `open_dataset` gives.
        processor: gives `label_mapping`, `do_reduce_labels` and `ignore_index`.
        label_names: names of the K labels, in order or by label.
        max_samples: how many to look at.
        strict, doubts_are_errors: see `report_on_labels`.
        num_threads: pictures decoded at a time.

    Returns:
        errors: pictures or label maps that cannot be read, colour masks, sizes that differ, values outside 0..K-1,
        label maps that are ignored throughout, if all are, an `ignore_index` that is a label, one label in all.
        warnings: some label maps that are ignored throughout, labels and keys of `label_mapping` that never occur, a
        label 0 that `do_reduce_labels` seems to remove by mistake, files of a folder that belong to no sample.

    Raises:
        ValueError: there is no sample.
    """
    reading = processor.settings().reading
    findings = read_findings(samples, max_samples, num_threads, reading, "checking labels", show_progress)
    is_whole = max_samples is None or (hasattr(samples, "__len__") and len(findings) == len(samples))
    names = list(label_names) if isinstance(label_names, list) else [label_names[k] for k in sorted(label_names)]
    result = report_on_labels(
        findings, processor, names, strict=strict, doubts_are_errors=doubts_are_errors, is_whole=is_whole
    )
    result.warnings += getattr(samples, "notes", [])
    return result


def read_findings(
    samples: Samples,
    max_samples: int | None,
    num_threads: int,
    reading: dict[str, Any],
    what: str,
    show_progress: bool,
) -> list[Finding]:
    """Read samples once, with a bar; a finding takes about 2 KB. ValueError if there is none."""
    total = len(samples) if hasattr(samples, "__len__") else None
    if max_samples is not None:
        total = max_samples if total is None else min(total, max_samples)
    found = findings_of(iterate(samples, max_samples), num_threads, reading)
    findings = list(tqdm(found, total=total, desc=what, unit=" pictures", disable=not show_progress))
    if not findings:
        raise ValueError("the data set is empty")
    return findings


def report_on_labels(
    findings: list[Finding],
    processor: QLSegImageProcessor,
    names: list[str],
    *,
    strict: bool = True,
    doubts_are_errors: bool = False,
    is_whole: bool = True,
) -> LabelReport:
    """Put what was counted into sentences.

    Args:
        findings: of the samples of a split.
        processor: gives `label_mapping`, `do_reduce_labels` and `ignore_index`.
        names: of the K labels.
        strict: whether pictures that cannot be read are an error; else a warning, up to one in ten.
        doubts_are_errors: whether it is an error that `do_reduce_labels` seems to be set by mistake; for settings that
            nobody has chosen for these label maps.
        is_whole: whether these are all samples of the split.
    """
    values = tally_values(findings, processor, len(names))
    stored = np.array(sorted(values), dtype=np.int64)
    labels, pixels = labels_of(stored, processor), np.array([values[v].num_pixels for v in stored], dtype=np.int64)
    is_ignored = labels == processor.ignore_index
    is_label = (labels >= 0) & (labels < len(names)) & ~is_ignored
    label_counts = np.zeros(len(names), dtype=np.int64)
    np.add.at(label_counts, labels[is_label], pixels[is_label])
    result = LabelReport(len(findings), label_counts, int(pixels[is_ignored].sum()))
    add_unusable(result, findings, strict)
    if values:
        add_value_errors(result, stored, values, names, processor)
        add_ignored_throughout(result, findings, processor)
        add_absent_labels(result, stored, values, names, processor, is_whole)
        doubts = reduction_doubts(stored, names, processor)
        mapped = labels_of(stored, processor, do_reduce_labels=False)
        if processor.do_reduce_labels or len(names) in mapped or (label_counts == 0).any() or result.errors:
            result.readings = table_of_readings(stored, pixels, names, processor)
        result.doubts = doubts
        (result.errors if doubts_are_errors else result.warnings).extend(doubts)
    for fault in sorted({finding.fault for finding in findings if finding.fault}, reverse=True):
        found = [finding.name for finding in findings if finding.fault == fault]
        remedy = "; if they hold more bits than they use, scale them to the full range" if fault == DARK else ""
        result.warnings.append(f"{len(found)} of {len(findings)} pictures are {fault}: {listed(found)}{remedy}")
    return result


def add_unusable(result: LabelReport, findings: list[Finding], strict: bool) -> None:
    """Sentences on samples that cannot be used."""
    for kind, (what, remedy) in PROBLEMS.items():
        found = [finding for finding in findings if finding.error is not None and finding.error.kind == kind]
        if not found:
            continue
        reasons = "; ".join(str(finding.error) for finding in found[:NUM_NAMED])
        reasons += f"; and {len(found) - NUM_NAMED} more" if len(found) > NUM_NAMED else ""
        if kind in ONE_REASON:
            reasons = listed([finding.name for finding in found])
        is_left_out = kind == "picture" and not strict and len(found) <= max(MAX_UNREADABLE * len(findings), 1)
        remedy = "they are left out" if is_left_out else remedy
        text = f"{len(found)} of {len(findings)} {what}; {remedy}. {reasons}"
        (result.warnings if is_left_out else result.errors).append(text)
        if kind == "picture":
            result.unreadable = [(finding.index, str(finding.error)) for finding in found]


def add_value_errors(
    result: LabelReport, stored: np.ndarray, values: dict[int, Tally], names: list[str], processor: QLSegImageProcessor
) -> None:
    """Errors: a single label, values that are not labels, an ignored value that is a label."""
    if len(names) == 1:
        result.errors.append(one_label_text(names, names, set(values)))
    if (wrong := wrong_values(stored, names, processor)).size:
        result.errors.append(range_error(wrong, stored, values, names, processor))
    if 0 <= processor.ignore_index < len(names):
        result.errors.append(ignored_label_error(processor.ignore_index, names))


def wrong_values(stored: np.ndarray, names: list[str], processor: QLSegImageProcessor) -> np.ndarray:
    """Those of the values that become no label."""
    return stored[is_no_label(labels_of(stored, processor), processor, len(names))]


def add_ignored_throughout(result: LabelReport, findings: list[Finding], processor: QLSegImageProcessor) -> None:
    """Label maps that teach nothing: a warning, or an error if all are such."""
    read = [finding for finding in findings if finding.stored is not None]
    ignored = [
        finding.name
        for finding in read
        if (labels_of(finding.stored.values, processor) == processor.ignore_index).all()
    ]
    if ignored:
        is_all = len(ignored) == len(read)
        remedy = "check do_reduce_labels, label_mapping and ignore_index" if is_all else "they teach nothing"
        text = f"{len(ignored)} of {len(read)} label maps are ignored throughout: {listed(ignored)}; {remedy}"
        (result.errors if is_all else result.warnings).append(text)


def add_absent_labels(
    result: LabelReport,
    stored: np.ndarray,
    values: dict[int, Tally],
    names: list[str],
    processor: QLSegImageProcessor,
    is_whole: bool,
) -> None:
    """Labels and keys of `label_mapping` that never occur."""
    occurring = [name for name, count in zip(names, result.label_counts) if count]
    if len(occurring) == 1 < len(names) and not wrong_values(stored, names, processor).size:
        (result.errors if is_whole else result.warnings).append(one_label_text(occurring, names, set(values)))
    absent = [name for name, count in zip(names, result.label_counts) if count == 0]
    if absent:
        result.warnings.append(f"{len(absent)} of {len(names)} labels never occur: {listed(absent)}")
    if is_whole and (unused := sorted(set(processor.label_mapping or {}) - set(values))):
        result.warnings.append(f"label_mapping translates {listed(list(map(str, unused)))}, which never occur")


def reduction_doubts(stored: np.ndarray, names: list[str], processor: QLSegImageProcessor) -> list[str]:
    """The sentence on a `do_reduce_labels` that seems to be set by mistake."""
    mapped = labels_of(stored, processor, do_reduce_labels=False)
    before = mapped[mapped != processor.ignore_index]
    is_doubtful = processor.do_reduce_labels and before.size and before.min() == 0 and len(names) not in before
    if not is_doubtful or wrong_values(stored, names, processor).size:
        return []
    last = len(names) - 1
    return [
        f"with do_reduce_labels: true the stored value 0 is ignored, and {last + 1} is {names[last]!r}, but never "
        f"occurs; set do_reduce_labels: false if 0 is {names[0]!r} and {last} is {names[last]!r}, or "
        f"do_reduce_labels: true if 0 is void and 1 is {names[0]!r}"
    ]


__all__ = ["LabelReport", "check_labels_of_dataset", "read_findings", "report_on_labels"]
