"""Is a data set fit for training? Counts what its label maps hold before the first step, and says what to set."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from tqdm import tqdm

from .data import NUM_NAMED, FolderSamples, Sample, SampleError, StreamedSamples, TableSamples, listed
from .image_processing_qlseg import QLSegImageProcessor
from .model_card import printable

CHUNK = 64  # samples in memory at once
MAX_UNREADABLE = 0.1  # share of pictures that may be left out; if more cannot be read, something else is wrong

# What is said of samples that cannot be used, and the remedy, by `SampleError.kind`
PROBLEMS = {
    "picture": ("pictures cannot be read", "copy them again or take them out"),
    "label map": ("label maps cannot be read", "copy them again or take their pictures out"),
    "lossy label map": (
        "label maps are JPEG files, which change labels at every edge",
        "store them as PNG, from what they were made of, or with each value rounded to its nearest label",
    ),
    "colour mask": (
        "label maps are colour pictures",
        "set label_colors: {label: [red, green, blue]}, or store one label per pixel",
    ),
    "unknown colour": ("label maps hold colours that label_colors lacks", "add these colours, or correct the masks"),
    "size": ("label maps differ in size from their pictures", "store each label map at its picture's size"),
}


@dataclass
class Finding:
    """What one sample holds: stored values and their pixel counts, or why it cannot be used."""

    name: str
    index: int
    values: np.ndarray | None = None  # (n,) int64
    counts: np.ndarray | None = None  # (n,) int64
    error: SampleError | None = None


@dataclass
class Tally:
    """Where something was seen."""

    num_pixels: int = 0
    names: list[str] = field(default_factory=list)


@dataclass
class LabelReport:
    """Result of `check_labels_of_dataset`.

    `num_samples`: how many were looked at. `label_counts`: (K,) int64, pixels of each label. `num_ignored`: ignored
    pixels. `errors`: sentences that should stop training. `warnings`: sentences that should be read. `unreadable`:
    (number, what is said of it) of every picture that cannot be read.
    """

    num_samples: int
    label_counts: np.ndarray
    num_ignored: int
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unreadable: list[tuple[int, str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"error: {text}" for text in self.errors] + [f"warning: {text}" for text in self.warnings]
        num_pixels = int(self.label_counts.sum()) + self.num_ignored
        share = f"{self.num_ignored / num_pixels:.1%}" if num_pixels else "none"
        occur = f"{(self.label_counts > 0).sum()} of {len(self.label_counts)} labels occur"
        lines = [printable(line) for line in lines]  # names of labels and files are the data set's
        return "\n".join([*lines, f"checked {self.num_samples} pictures: {occur}, {share} of the pixels ignored"])


def check_labels_of_dataset(
    samples: FolderSamples | TableSamples | StreamedSamples,
    processor: QLSegImageProcessor,
    label_names: dict[int, str] | list[str],
    *,
    max_samples: int | None = None,
    strict: bool = True,
    num_threads: int = 4,
    show_progress: bool = True,
) -> LabelReport:
    """Read every picture and label map (or the first `max_samples`) and report what would spoil training.

    Args:
        samples: what `open_dataset` gives.
        processor: gives `label_map`, `do_reduce_labels` and `ignore_index`.
        label_names: names of the K labels, in order or by label.
        max_samples: how many to look at.
        strict: whether pictures that cannot be read are an error; else a warning, up to one in ten.
        num_threads: pictures decoded at a time.

    Returns:
        errors: pictures or label maps that cannot be read, colour masks, sizes that differ, values outside 0..K-1,
        label maps that are ignored throughout, if all are. warnings: some of those, labels that never occur, a
        label 0 that `do_reduce_labels` seems to remove by mistake, files of a folder that belong to no sample.

    Raises:
        ValueError: there is no sample.
    """
    names = list(label_names) if isinstance(label_names, list) else [label_names[k] for k in sorted(label_names)]
    total = len(samples) if hasattr(samples, "__len__") else None
    if max_samples is not None:
        total = max_samples if total is None else min(total, max_samples)
    # StreamedSamples can only be iterated; sequences by index, because iterating past an error would stop them
    source = iter(samples) if hasattr(samples, "__iter__") else (samples[i] for i in range(total))
    findings = findings_of(islice(source, max_samples), num_threads)
    values, problems, ignored_names, num_samples = {}, {}, [], 0
    for finding in tqdm(findings, total=total, desc="checking labels", unit=" pictures", disable=not show_progress):
        num_samples += 1
        if finding.error is not None:
            problems.setdefault(finding.error.kind, []).append(finding)
            continue
        for value, count in zip(finding.values.tolist(), finding.counts.tolist()):
            tally = values.setdefault(value, Tally())
            tally.num_pixels += count
            tally.names.append(finding.name)
        if (labels_of(finding.values, processor) == processor.ignore_index).all():
            ignored_names.append(finding.name)
    if num_samples == 0:
        raise ValueError("the data set is empty")
    result = report(num_samples, values, problems, ignored_names, names, processor, strict)
    result.warnings += getattr(samples, "notes", [])
    return result


def findings_of(samples: Iterable[Sample], num_threads: int) -> Iterator[Finding]:
    """Findings in the order of `samples`, some of which are decoded at a time."""
    samples = enumerate(samples)
    with ThreadPoolExecutor(num_threads) as pool:
        while chunk := list(islice(samples, CHUNK)):
            yield from pool.map(finding_of, chunk)


def finding_of(numbered: tuple[int, Sample]) -> Finding:
    """Read one sample and count its stored values."""
    index, sample = numbered
    try:
        label_map = sample.read()[1]
    except SampleError as error:
        return Finding(sample.name, index, error=error)
    if label_map.min() >= 0 and label_map.max() < 1 << 16:
        counts = np.bincount(label_map.ravel())
        return Finding(sample.name, index, counts.nonzero()[0], counts[counts > 0])
    return Finding(sample.name, index, *np.unique(label_map, return_counts=True))


def labels_of(values: np.ndarray, processor: QLSegImageProcessor, **settings) -> np.ndarray:
    """Labels that stored values become by the processor's rules."""
    return processor.reduce_labels(torch.from_numpy(np.asarray(values, dtype=np.int64)), **settings).numpy()


def report(
    num_samples: int,
    values: dict[int, Tally],
    problems: dict[str, list[Finding]],
    ignored_names: list[str],
    names: list[str],
    processor: QLSegImageProcessor,
    strict: bool,
) -> LabelReport:
    """Put what was counted into sentences. `values`: by stored value; `names`: of the labels."""
    stored = np.array(sorted(values), dtype=np.int64)
    labels, pixels = labels_of(stored, processor), np.array([values[v].num_pixels for v in stored], dtype=np.int64)
    is_ignored = labels == processor.ignore_index
    is_label = (labels >= 0) & (labels < len(names)) & ~is_ignored
    label_counts = np.zeros(len(names), dtype=np.int64)
    np.add.at(label_counts, labels[is_label], pixels[is_label])
    result = LabelReport(num_samples, label_counts, int(pixels[is_ignored].sum()))
    for kind, (what, remedy) in PROBLEMS.items():
        if found := problems.get(kind):
            reasons = "; ".join(str(finding.error) for finding in found[:NUM_NAMED])
            more = f"; and {len(found) - NUM_NAMED} more" if len(found) > NUM_NAMED else ""
            is_left_out = kind == "picture" and not strict and len(found) <= max(MAX_UNREADABLE * num_samples, 1)
            remedy = "they are left out" if is_left_out else remedy
            text = f"{len(found)} of {num_samples} {what}; {remedy}. {reasons}{more}"
            (result.warnings if is_left_out else result.errors).append(text)
    result.unreadable = [(finding.index, str(finding.error)) for finding in problems.get("picture", [])]
    if not values:
        return result
    wrong = stored[~is_label & ~is_ignored]
    if wrong.size:
        result.errors.append(range_error(wrong, stored, values, len(names), processor))
    num_read = num_samples - sum(map(len, problems.values()))
    if ignored_names:
        text = f"{len(ignored_names)} of {num_read} label maps are ignored throughout: {listed(ignored_names)}"
        is_all = len(ignored_names) == num_read
        remedy = "check do_reduce_labels, label_map and ignore_index" if is_all else "they teach nothing"
        (result.errors if is_all else result.warnings).append(f"{text}; {remedy}")
    if set(values) == {0, 255} and len(names) == 2 and is_ignored.any():
        result.errors.append(
            f"the label maps hold only 0 and 255, and {processor.ignore_index} is ignored; if 255 is label "
            f"{names[1]!r}, set label_map: {{255: 1}} and do_reduce_labels: false"
        )
    absent = [name for name, count in zip(names, label_counts) if count == 0]
    if absent:
        result.warnings.append(f"{len(absent)} of {len(names)} labels never occur: {listed(absent)}")
    if processor.do_reduce_labels:
        before = labels_of(stored, processor, do_reduce_labels=False)
        before = before[before != processor.ignore_index]
        if before.size and before.min() == 0 and before.max() == len(names) - 1:
            result.warnings.append(
                f"with do_reduce_labels the values 1..{len(names)} become labels and 0 is ignored, but "
                f"{len(names)} never occurs and 0 does; if 0 is label {names[0]!r}, set do_reduce_labels: false"
            )
    return result


def range_error(
    wrong: np.ndarray, stored: np.ndarray, values: dict[int, Tally], num_labels: int, processor: QLSegImageProcessor
) -> str:
    """The sentence on stored values `wrong`, which become no label, with the setting that would make them one."""
    counted = [f"{v} in {values[v].num_pixels} pixels of {len(values[v].names)} label maps" for v in wrong[:NUM_NAMED]]
    more = f" and {len(wrong) - NUM_NAMED} more values" if len(wrong) > NUM_NAMED else ""
    offending = list(dict.fromkeys(name for v in wrong for name in values[v].names))
    text = f"values that are no labels 0..{num_labels - 1}: {', '.join(counted)}{more}; in {listed(offending)}"
    before = labels_of(stored, processor, do_reduce_labels=False)
    before = before[before != processor.ignore_index]
    if not processor.do_reduce_labels and before.min() >= 0 and before.max() == num_labels:
        start = "0 probably means unlabelled" if before.min() == 0 else "labels start at 1"
        return (
            f"{text}. The values end at {num_labels}, the number of labels, so {start}: set do_reduce_labels: true "
            f"(or give {num_labels + 1} label names)"
        )
    if stored.tolist() == [0, 255] and num_labels == 2:
        return f"{text}. If 255 is label 1, set label_map: {{255: 1}}"
    if wrong.tolist() == [255]:
        return f"{text}. If 255 means unlabelled, set ignore_index: 255"
    translation = f"{{{wrong[0]}: {processor.ignore_index}}}"
    return f"{text}. Translate them, as in label_map: {translation} to ignore {wrong[0]}, or give more label names"


__all__ = ["LabelReport", "check_labels_of_dataset"]
