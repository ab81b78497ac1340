# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What each image and its label map hold, counted while they are read once: values, size, content, bands, faults."""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch

from ...model.image_processing_qlseg import QLSegImageProcessor
from ..bands import BandSums
from ..samples import Sample, SampleError, Samples, open_source

CHUNK = 64  # samples handed to the threads at a time
DARK, CONSTANT = "nearly black", "of one colour"
DARK_VALUE = 16  # of 255, which 99 % of the values of a nearly black picture stay below
MOST_COLORS = 256  # that are kept of one colour mask, the most frequent ones


@dataclass
class Counts:
    """What an (H, W) map of integers holds.

    `values`, `counts`: (n,) int64, each value and its pixels. `inner`: (n,) int64, those of them with four equal
    neighbours; see `is_smoothed`.
    """

    values: np.ndarray
    counts: np.ndarray
    inner: np.ndarray


@dataclass
class Finding:
    """What one sample holds, or why it cannot be used.

    `stored`: of the label map; None if there is an `error`. `colors`: of a colour mask without `label_colors`, each
    color as 65536 r + 256 g + b. `size`: (height, width) of the picture. `picture_digest`, `label_digest`: of their
    values, equal for equal content in whatever file. `kind`: number of the picture's bands and type of their values.
    `bands`: their sums. `fault`: of the picture's own values, `DARK` or `CONSTANT`. `palette`: {value: color as above}
    of a label map with a palette. `is_turned`, `bits`: see `Sample.is_turned` and `read_bits`.
    """

    name: str
    index: int
    stored: Counts | None = None
    error: SampleError | None = None
    colors: Counts | None = None
    size: tuple[int, int] | None = None
    picture_digest: bytes | None = None
    label_digest: bytes | None = None
    kind: tuple[int, str] | None = None
    bands: BandSums | None = None
    fault: str | None = None
    palette: dict[int, int] = field(default_factory=dict)
    is_turned: bool = False
    bits: int = 8


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


def findings_of(samples: Iterable[Sample], num_threads: int, reading: dict[str, Any]) -> Iterator[Finding]:
    """Findings in the order of `samples`, some of them decoded at a time. `reading`: see `Sample.read_picture`."""
    numbered_samples = enumerate(samples)
    with ThreadPoolExecutor(num_threads) as pool:
        while chunk := list(islice(numbered_samples, CHUNK)):
            yield from pool.map(lambda one: finding_of(one[0], one[1], reading), chunk)


def iterate(samples: Samples, max_samples: int | None = None) -> Iterator:
    """The first `max_samples` of what `open_dataset` gives, or all."""
    if hasattr(samples, "__iter__"):  # StreamedSamples
        return islice(iter(samples), max_samples)
    # sequences by index, because iterating past an error would stop them
    return (samples[index] for index in range(len(samples))[:max_samples])


def finding_of(index: int, sample: Sample, reading: dict[str, Any]) -> Finding:
    """Read one sample and count what it holds."""
    try:
        picture, label_map = sample.read(**reading)
    except SampleError as error:
        found = Finding(sample.name, index, error=error)
        if error.kind == "colour mask":
            add_picture(found, sample.read_picture(**reading))
            found.colors = colors_of(sample)
        return found
    found = Finding(sample.name, index, count_values(label_map), label_digest=digest_of(label_map))
    add_picture(found, picture)
    colors = sample.read_palette()
    occurring = {v: colors[v] for v in found.stored.values.tolist() if v in colors}
    found.palette = {v: (r << 16) + (g << 8) + b for v, (r, g, b) in occurring.items()}
    found.is_turned, found.bits = sample.is_turned(), sample.read_bits()
    return found


def add_picture(found: Finding, picture: np.ndarray) -> None:
    """Count the values of an (H, W, C) picture."""
    found.size, found.kind = picture.shape[:2], (picture.shape[2], picture.dtype.name)
    found.picture_digest, found.fault = digest_of(picture), fault_of(picture)
    found.bands = BandSums()
    found.bands.add(picture, found.name)


def digest_of(values: np.ndarray) -> bytes:
    """16 bytes that differ for arrays of other values or another shape."""
    digest = hashlib.blake2b(str(values.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(values).data)
    return digest.digest()


def fault_of(picture: np.ndarray) -> str | None:
    """What makes an (H, W, C) picture useless whatever it shows: `CONSTANT`, `DARK` (of uint8 alone), or nothing."""
    if picture.size > picture.shape[2] and (picture == picture[0, 0]).all():
        return CONSTANT
    return DARK if picture.dtype == np.uint8 and (picture < DARK_VALUE).mean() > 0.99 else None


def count_values(label_map: np.ndarray) -> Counts:
    """What an (H, W) int64 label map holds."""
    middle = label_map[1:-1, 1:-1]
    is_inner = (middle == label_map[:-2, 1:-1]) & (middle == label_map[2:, 1:-1])
    is_inner &= (middle == label_map[1:-1, :-2]) & (middle == label_map[1:-1, 2:])
    if label_map.min() >= 0 and label_map.max() < 1 << 16:
        counts = np.bincount(label_map.ravel())
        values = counts.nonzero()[0]
        return Counts(values, counts[values], np.bincount(middle[is_inner], minlength=len(counts))[values])
    values, counts = np.unique(label_map, return_counts=True)
    inner = np.bincount(np.searchsorted(values, middle[is_inner]), minlength=len(values))
    return Counts(values, counts, inner)


def colors_of(sample: Sample) -> Counts:
    """The colours of a colour mask, of which the most frequent ones are kept."""
    mask = np.asarray(open_source(sample.label_map, sample.name).convert("RGB"), dtype=np.int64)
    found = count_values(mask @ [1 << 16, 1 << 8, 1])
    kept = np.sort(np.argsort(-found.counts, kind="stable")[:MOST_COLORS])
    return Counts(found.values[kept], found.counts[kept], found.inner[kept])


def tally_values(
    findings: Iterable[Finding], processor: QLSegImageProcessor | None, num_labels: int
) -> dict[int, Tally]:
    """Where each stored value was seen; without a `processor` no value is a label yet."""
    tallies = {}
    for finding in findings:
        if finding.stored is not None:
            labels = None if processor is None else labels_of(finding.stored.values, processor)
            has_wrong = labels is None or is_no_label(labels, processor, num_labels).any()
            add_to_tallies(tallies, finding.name, finding.stored, has_wrong)
    return tallies


def tally_colors(findings: Iterable[Finding]) -> dict[int, Tally]:
    """Where each colour of colour masks was seen."""
    tallies = {}
    for finding in findings:
        if finding.colors is not None:
            add_to_tallies(tallies, finding.name, finding.colors)
    return tallies


def add_to_tallies(tallies: dict[int, Tally], name: str, found: Counts, has_wrong: bool = True) -> None:
    """Add what a label map holds to what others do, by stored value. `has_wrong`: some of it are not labels."""
    for value, count, num_inner in zip(found.values.tolist(), found.counts.tolist(), found.inner.tolist()):
        tally = tallies.setdefault(value, Tally())
        tally.num_pixels += count
        tally.names.append(name)
        if has_wrong:
            tally.num_seen += count
            tally.num_inner += num_inner


def is_no_label(labels: np.ndarray, processor: QLSegImageProcessor, num_labels: int) -> np.ndarray:
    """Whether each of `labels` is neither one of 0..K-1 nor ignored."""
    return ((labels < 0) | (labels >= num_labels)) & (labels != processor.ignore_index)


def is_region(tally: Tally) -> bool:
    """Whether a value fills regions, not edges alone."""
    return tally.num_inner > 0.1 * tally.num_seen


def is_smoothed(wrong: Iterable[int], tallies: dict[int, Tally], num_labels: int) -> bool:
    """Whether values that are not labels lie along edges, as JPEG compression and antialiasing leave them.

    Regions have inner pixels, and edges have nearly none. Up to K of the wrong values may be regions, as 255 is in
    black and white label maps.
    """
    num_inner, num_pixels = (sum(getattr(t, key) for t in tallies.values()) for key in ("num_inner", "num_seen"))
    wrong = list(map(int, wrong))
    of_regions = [value for value in wrong if is_region(tallies[value])]
    largest = sorted(of_regions, key=lambda value: -tallies[value].num_inner)[:num_labels]
    rest = [tallies[value] for value in wrong if value not in largest]
    return (
        len(rest) >= 3
        and sum(tally.num_inner for tally in rest) <= 0.1 * sum(tally.num_seen for tally in rest)
        and num_inner >= 0.5 * num_pixels
    )


def labels_of(values: np.ndarray, processor: QLSegImageProcessor, **settings) -> np.ndarray:
    """Labels that stored values become by the processor's rules."""
    return processor.reduce_labels(torch.from_numpy(np.asarray(values, dtype=np.int64)), **settings).numpy()


__all__ = [
    "MOST_COLORS",
    "Counts",
    "Finding",
    "Tally",
    "add_to_tallies",
    "count_values",
    "findings_of",
    "is_no_label",
    "is_region",
    "is_smoothed",
    "iterate",
    "labels_of",
    "tally_colors",
    "tally_values",
]
