"""Is a data set fit for training? Counts what its label maps hold before the first step, and says what to set."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..model.image_processing_qlseg import QLSegImageProcessor
from ..utils.text import printable
from .datasets import NUM_NAMED, FolderSamples, Sample, SampleError, StreamedSamples, TableSamples, listed

MAX_ROWS = 24  # of the table of readings
CHUNK = 64  # samples in memory at once
DARK, CONSTANT = "nearly black", "of one colour"
DARK_VALUE = 16  # of 255, which 99 % of the values of a nearly black picture stay below
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
    inner: np.ndarray | None = None  # (n,) int64, see `inner_counts`; only where values are no labels
    fault: str | None = None  # of the picture's own values, one of `DARK` and `CONSTANT`


@dataclass
class Tally:
    """Where a stored value was seen.

    `num_pixels`, `names` of label maps; `num_seen`, `num_inner`: pixels in label maps that hold values that are no
    labels, and those of them with four equal neighbours.
    """

    num_pixels: int = 0
    names: list[str] = field(default_factory=list)
    num_seen: int = 0
    num_inner: int = 0

    def add(self, name: str, num_pixels: int, num_inner: int | None) -> None:
        """What one label map holds; `num_inner` is None if all of its values are labels."""
        self.num_pixels += num_pixels
        self.names.append(name)
        if num_inner is not None:
            self.num_seen += num_pixels
            self.num_inner += num_inner


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
    samples: FolderSamples | TableSamples | StreamedSamples,
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
        processor: gives `label_map`, `do_reduce_labels` and `ignore_index`.
        label_names: names of the K labels, in order or by label.
        max_samples: how many to look at.
        strict: whether pictures that cannot be read are an error; else a warning, up to one in ten.
        doubts_are_errors: whether it is an error that `do_reduce_labels` seems to be set by mistake; for settings that
            nobody has chosen for these label maps.
        num_threads: pictures decoded at a time.

    Returns:
        errors: pictures or label maps that cannot be read, colour masks, sizes that differ, values outside 0..K-1,
        label maps that are ignored throughout, if all are, an `ignore_index` that is a label, one label in all.
        warnings: some label maps that are ignored throughout, labels and keys of `label_map` that never occur, a label
        0 that `do_reduce_labels` seems to remove by mistake, files of a folder that belong to no sample.

    Raises:
        ValueError: there is no sample.
    """
    names = list(label_names) if isinstance(label_names, list) else [label_names[k] for k in sorted(label_names)]
    total = len(samples) if hasattr(samples, "__len__") else None
    if max_samples is not None:
        total = max_samples if total is None else min(total, max_samples)
    # StreamedSamples can only be iterated; sequences by index, because iterating past an error would stop them
    source = iter(samples) if hasattr(samples, "__iter__") else (samples[i] for i in range(total))
    findings = findings_of(islice(source, max_samples), processor, len(names), num_threads)
    values, problems, faults, ignored_names, num_samples = {}, {}, {}, [], 0
    for finding in tqdm(findings, total=total, desc="checking labels", unit=" pictures", disable=not show_progress):
        num_samples += 1
        if finding.error is not None:
            problems.setdefault(finding.error.kind, []).append(finding)
            continue
        add_to_tallies(values, finding)
        if finding.fault is not None:
            faults.setdefault(finding.fault, []).append(finding.name)
        if (labels_of(finding.values, processor) == processor.ignore_index).all():
            ignored_names.append(finding.name)
    if num_samples == 0:
        raise ValueError("the data set is empty")
    is_whole = max_samples is None or (hasattr(samples, "__len__") and num_samples == len(samples))
    result = report(num_samples, values, problems, ignored_names, names, processor, strict, is_whole)
    if doubts_are_errors:
        result.errors += result.doubts
    else:
        result.warnings += result.doubts
    for fault, found in faults.items():
        remedy = "; if they hold more bits than they use, scale them to the full range" if fault == DARK else ""
        result.warnings.append(f"{len(found)} of {num_samples} pictures are {fault}: {listed(found)}{remedy}")
    result.warnings += getattr(samples, "notes", [])
    return result


def findings_of(
    samples: Iterable[Sample], processor: QLSegImageProcessor, num_labels: int, num_threads: int
) -> Iterator[Finding]:
    """Findings in the order of `samples`, some of which are decoded at a time."""
    numbered_samples = enumerate(samples)
    with ThreadPoolExecutor(num_threads) as pool:
        while chunk := list(islice(numbered_samples, CHUNK)):
            yield from pool.map(lambda one: finding_of(one[0], one[1], processor, num_labels), chunk)


def finding_of(index: int, sample: Sample, processor: QLSegImageProcessor, num_labels: int) -> Finding:
    """Read one sample and count its stored values."""
    try:
        picture, label_map = sample.read(**processor.settings().reading)
        found = count_values(label_map, sample.name, index, processor, num_labels)
        found.fault = fault_of(picture)
        return found
    except SampleError as error:
        return Finding(sample.name, index, error=error)


def fault_of(picture: np.ndarray) -> str | None:
    """What makes an (H, W, n) picture useless whatever it shows: `CONSTANT`, `DARK` (of uint8 alone), or nothing."""
    if picture.size > picture.shape[-1] and (picture == picture[0, 0]).all():
        return CONSTANT
    return DARK if picture.dtype == np.uint8 and (picture < DARK_VALUE).mean() > 0.99 else None


def count_values(
    label_map: np.ndarray, name: str, index: int, processor: QLSegImageProcessor, num_labels: int
) -> Finding:
    """The finding of an (H, W) int64 label map."""
    if label_map.min() >= 0 and label_map.max() < 1 << 16:
        counts = np.bincount(label_map.ravel())
        found = Finding(name, index, counts.nonzero()[0], counts[counts > 0])
    else:
        found = Finding(name, index, *np.unique(label_map, return_counts=True))
    if is_no_label(labels_of(found.values, processor), processor, num_labels).any():
        found.inner = inner_counts(label_map, found.values)
    return found


def add_to_tallies(tallies: dict[int, Tally], finding: Finding) -> None:
    """Add what a label map holds to what others do, by stored value."""
    inner = [None] * len(finding.values) if finding.inner is None else finding.inner.tolist()
    for value, count, num_inner in zip(finding.values.tolist(), finding.counts.tolist(), inner):
        tallies.setdefault(value, Tally()).add(finding.name, count, num_inner)


def is_no_label(labels: np.ndarray, processor: QLSegImageProcessor, num_labels: int) -> np.ndarray:
    """Whether each of `labels` is neither one of 0..K-1 nor ignored."""
    return ((labels < 0) | (labels >= num_labels)) & (labels != processor.ignore_index)


def inner_counts(label_map: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(n,) int64: how many pixels of each of the (n,) sorted values of `label_map` have four equal neighbours."""
    middle = label_map[1:-1, 1:-1]
    is_inner = (middle == label_map[:-2, 1:-1]) & (middle == label_map[2:, 1:-1])
    is_inner &= (middle == label_map[1:-1, :-2]) & (middle == label_map[1:-1, 2:])
    return np.bincount(np.searchsorted(values, middle[is_inner]), minlength=len(values))


def is_smoothed(wrong: np.ndarray, tallies: dict[int, Tally], num_labels: int) -> bool:
    """Whether values that are no labels lie along edges, as JPEG compression and antialiasing leave them.

    Regions have inner pixels, and edges have nearly none. Up to K of the wrong values may be regions, as 255 is in
    black and white label maps.
    """
    num_inner, num_pixels = (sum(getattr(t, key) for t in tallies.values()) for key in ("num_inner", "num_seen"))
    of_regions = [v for v in wrong.tolist() if tallies[v].num_inner > 0.1 * tallies[v].num_seen]
    largest = sorted(of_regions, key=lambda v: -tallies[v].num_inner)[:num_labels]
    rest = [tallies[v] for v in wrong.tolist() if v not in largest]
    return (
        len(rest) >= 3
        and sum(tally.num_inner for tally in rest) <= 0.1 * sum(tally.num_seen for tally in rest)
        and num_inner >= 0.5 * num_pixels
    )


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
    is_whole: bool,
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
    wrong = stored[is_no_label(labels, processor, len(names))]
    if len(names) == 1:
        result.errors.append(one_label_text(names, names, set(values)))
    if wrong.size:
        result.errors.append(range_error(wrong, stored, values, names, processor))
    if 0 <= processor.ignore_index < len(names):
        result.errors.append(ignored_label_error(processor.ignore_index, names))
    num_read = num_samples - sum(map(len, problems.values()))
    if ignored_names:
        text = f"{len(ignored_names)} of {num_read} label maps are ignored throughout: {listed(ignored_names)}"
        is_all = len(ignored_names) == num_read
        remedy = "check do_reduce_labels, label_map and ignore_index" if is_all else "they teach nothing"
        (result.errors if is_all else result.warnings).append(f"{text}; {remedy}")
    occurring = [name for name, count in zip(names, label_counts) if count]
    if len(occurring) == 1 < len(names) and not wrong.size:
        (result.errors if is_whole else result.warnings).append(one_label_text(occurring, names, set(values)))
    absent = [name for name, count in zip(names, label_counts) if count == 0]
    if absent:
        result.warnings.append(f"{len(absent)} of {len(names)} labels never occur: {listed(absent)}")
    if is_whole and (unused := sorted(set(processor.label_map or {}) - set(values))):
        result.warnings.append(f"label_map translates {listed(list(map(str, unused)))}, which never occur")
    mapped = labels_of(stored, processor, do_reduce_labels=False)
    before = mapped[mapped != processor.ignore_index]
    if (
        processor.do_reduce_labels
        and not wrong.size
        and before.size
        and before.min() == 0
        and len(names) not in before
    ):
        last = len(names) - 1
        result.doubts.append(
            f"with do_reduce_labels: true the stored value 0 is ignored, and {last + 1} is {names[last]!r}, but never "
            f"occurs; set do_reduce_labels: false if 0 is {names[0]!r} and {last} is {names[last]!r}, or "
            f"do_reduce_labels: true if 0 is void and 1 is {names[0]!r}"
        )
    if processor.do_reduce_labels or len(names) in mapped or absent or result.errors:
        result.readings = table_of_readings(stored, pixels, names, processor)
    return result


def one_label_text(occurring: list[str], names: list[str], values: set[int]) -> str:
    """The sentence on data that measure nothing, because there is one label in all."""
    what = f"there is one label, {names[0]!r}" if len(names) == 1 else f"only one label occurs, {occurring[0]!r}"
    remedy = "give what is around it a label and a name too, and check do_reduce_labels, label_map and ignore_index"
    if 255 in values and values <= {0, 255}:
        pair = " and ".join(map(repr, names)) if len(names) == 2 else "background and object"
        more = "" if len(names) == 2 else ", and give these two label_names"
        remedy = f"if 0 and 255 are {pair}, set label_map: {{0: 0, 255: 1}} and do_reduce_labels: false{more}"
    return f"{what}, so every answer is right and a score of 100 % means nothing; {remedy}"


def ignored_label_error(ignore_index: int, names: list[str]) -> str:
    """The sentence on an `ignore_index` that is also one of the labels."""
    outside = value_outside(len(names))
    remedies = [f"set label_map: {{{ignore_index}: {outside}}} and ignore_index: {outside} if it shall not count"]
    if ignore_index == 0:
        remedies.insert(
            0, f"set do_reduce_labels: true and ignore_index: {outside} if 0 is void and {names[0]!r} is stored as 1"
        )
    if ignore_index == len(names) - 1 > 0:
        remedies.insert(0, f"take {names[-1]!r}, the last of label_names, out if it is no label")
    return (
        f"ignore_index: {ignore_index} is also label {ignore_index}, {names[ignore_index]!r}, of {len(names)}; "
        + ", or ".join(remedies)
    )


def value_outside(num_labels: int) -> int:
    """An `ignore_index` that is no label and no stored value that could be one."""
    return 255 if num_labels < 255 else -100


def readings_of(
    stored: np.ndarray, names: list[str], processor: QLSegImageProcessor
) -> dict[str, tuple[str, dict[str, Any]]]:
    """The ways to read stored values: {title: (keys of a recipe, settings of the processor)}."""
    num_labels = len(names)
    mapped = labels_of(stored, processor, do_reduce_labels=False)
    ignore_index = processor.ignore_index
    outside = ignore_index if not 0 <= ignore_index <= num_labels else value_outside(num_labels)
    readings = {
        "as is": ("do_reduce_labels: false", {"do_reduce_labels": False, "ignore_index": outside}),
        "reduced": ("do_reduce_labels: true", {"do_reduce_labels": True, "ignore_index": outside}),
    }
    if outside != ignore_index:
        readings = {title: (f"{keys}, ignore_index: {outside}", given) for title, (keys, given) in readings.items()}
    if num_labels in mapped:
        given = {"do_reduce_labels": False, "ignore_index": num_labels}
        keys = f"do_reduce_labels: false, ignore_index: {num_labels}"
        if outside in mapped:  # two values are ignored
            given = {"do_reduce_labels": False, "ignore_index": outside}
            table = (processor.label_map or {}) | {
                int(value): outside for value, label in zip(stored, mapped) if label == num_labels
            }
            given["label_map"] = table
            keys = f"do_reduce_labels: false, label_map: {table}"
        readings["last is void"] = (keys, given)
    return readings


def table_of_readings(stored: np.ndarray, pixels: np.ndarray, names: list[str], processor: QLSegImageProcessor) -> str:
    """What each stored value becomes under every reading, with its share of the pixels; as lines of text."""

    def named(**settings) -> list[str]:
        labels, ignored = labels_of(stored, processor, **settings), settings["ignore_index"]
        return [
            "ignored" if label == ignored else repr(names[label])[:24] if 0 <= label < len(names) else "no label"
            for label in labels
        ]

    readings = readings_of(stored, names, processor)
    now = named(ignore_index=processor.ignore_index)
    columns = {title: named(**settings) for title, (_, settings) in readings.items()}
    lines = ["stored values, their share of the pixels, and what they become:"]
    for title, (keys, _) in readings.items():
        lines.append(f"  {title}: {keys}" + (" (as set)" if columns[title] == now else ""))
    widths = [max(map(len, [title, *column])) for title, column in columns.items()]
    rows = [["value", "share", *columns]]
    rows += [
        [str(value), f"{share:.2%}", *cells]
        for value, share, *cells in zip(stored.tolist(), pixels / pixels.sum(), *columns.values())
    ]
    if len(rows) > MAX_ROWS + 1:
        rows = [*rows[: MAX_ROWS - 3], ["...", "", *[""] * len(columns)], *rows[-3:]]
    for value, share, *cells in rows:
        text = "  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths))
        lines.append(f"  {value:>7}  {share:>7}  {text}".rstrip())
    return "\n".join(lines)


def range_error(
    wrong: np.ndarray,
    stored: np.ndarray,
    values: dict[int, Tally],
    names: list[str],
    processor: QLSegImageProcessor,
) -> str:
    """The sentence on stored values `wrong`, which become no label, with the settings that would make them one."""
    num_labels = len(names)
    counted = [f"{v} in {values[v].num_pixels} pixels of {len(values[v].names)} label maps" for v in wrong[:NUM_NAMED]]
    more = f" and {len(wrong) - NUM_NAMED} more values" if len(wrong) > NUM_NAMED else ""
    offending = list(dict.fromkeys(name for v in wrong for name in values[v].names))
    text = f"values that are no labels 0..{num_labels - 1}: {', '.join(counted)}{more}; in {listed(offending)}"
    is_black_and_white = {0, 255} <= set(stored.tolist()) and num_labels == 2
    if is_smoothed(wrong, values, num_labels):
        afterwards = " and set label_map: {255: 1}" if is_black_and_white else ""
        return (
            f"{text}. They lie along edges, as JPEG compression or smoothing (antialiasing) leaves them: store the "
            "label maps as PNG, made without smoothing and resized with nearest neighbour, or round each value to its "
            f"nearest label{afterwards}"
        )
    before = labels_of(stored, processor, do_reduce_labels=False)
    before = before[before != processor.ignore_index]
    if not processor.do_reduce_labels and before.min() >= 0 and before.max() == num_labels:
        readings = readings_of(stored, names, processor)
        reduced, void = (readings[title][0].replace(", ", " and ", 1) for title in ("reduced", "last is void"))
        first, last, before_last = repr(names[0]), repr(names[-1]), num_labels - 1
        return (
            f"{text}. The values reach {num_labels}, one beyond the last of {num_labels} names, and cannot tell "
            f"whether 0 or {num_labels} is void: set {reduced} if 0 is void, 1 is {first} and {num_labels} is {last}; "
            f"set {void} if {num_labels} is void, 0 is {first} and {before_last} is {last}; "
            f"or give {num_labels + 1} label names if none is void"
        )
    if translated := [v for v in wrong.tolist() if v in (processor.label_map or {})]:
        return f"{text}. label_map makes {translated[0]} to {processor.label_map[translated[0]]}; correct it"
    if stored.tolist() == [0, 255] and is_black_and_white:
        return (
            f"{text}. If 0 is {names[0]!r} and 255 is {names[1]!r}, set label_map: {{255: 1}}; if it is the other way "
            "round, label_map: {0: 1, 255: 0}"
        )
    if wrong.tolist() == [255]:
        return f"{text}. If 255 means unlabelled, set ignore_index: 255"
    translation = f"{{{wrong[0]}: {processor.ignore_index}}}"
    return f"{text}. Translate them, as in label_map: {translation} to ignore {wrong[0]}, or give more label names"


def score_warnings(counts: torch.Tensor, names: list[str], processor: QLSegImageProcessor) -> list[str]:
    """Sentences on scores that do not mean what they seem to.

    Args:
        counts: (K, K) pixels by label of the reference (row) and predicted label (column).
        names: of the K labels.
        processor: that the references were read with.
    """
    total = int(counts.sum())
    occurring = [name for name, count in zip(names, counts.sum(dim=1).tolist()) if count]
    if total == 0:
        return ["no pixel counts: all references are ignored; check do_reduce_labels, label_map and ignore_index"]
    if len(occurring) == 1:
        return [one_label_text(occurring, names, set())]
    for offset, is_mended in ((1, processor.do_reduce_labels), (-1, not processor.do_reduce_labels)):
        shifted = int(counts.diagonal(offset).sum())
        if len(names) > 2 and 2 * shifted > total and shifted > int(counts.diagonal().sum()):
            remedy = (
                f"do_reduce_labels: {str(not processor.do_reduce_labels).lower()} probably reads them rightly"
                if is_mended
                else "compare the order of the label names with the stored values"
            )
            where = "after" if offset == 1 else "before"
            return [
                f"{shifted / total:.0%} of the pixels are predicted as the label {where} that of the reference, so "
                f"references seem to be shifted by one; {remedy}"
            ]
    return []


__all__ = ["LabelReport", "check_labels_of_dataset", "ignored_label_error", "score_warnings"]
