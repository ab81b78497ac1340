# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Look at a whole data set before training on it: every image is read once, and all is said that follows."""

from collections.abc import Sequence

from ..bands import BandSums
from ..datasets import Samples, open_dataset
from ..layouts import Layout, find_layout
from ..layouts.splits import NOT_DIVIDED, NOTHING_TO_LEARN, UNION_SPLITS, find_split
from .counting import Finding
from .labels import read_findings, report_on_labels
from .rules import Rules, decide_rules, name_by_hints
from .survey import DataRequest, Survey
from .warnings import add_sentences


def survey_data(request: DataRequest, show_progress: bool = True) -> Survey:
    """Read every image and label map of a data set once and say what follows.

    Raises:
        ValueError, FileNotFoundError: the data set cannot be opened; see `open_dataset`.
    """
    opened, layout = open_splits(request)
    uses = {use: samples.split for use, samples in opened.items()}
    splits = {samples.split: samples for samples in opened.values()}
    others, broken = open_others(layout if request.reads_all_splits else None, splits)
    splits |= others
    processor = request.processor
    reading = request.picture_reading
    findings, sums = {}, {}
    for name, samples in splits.items():
        findings[name] = read_findings(samples, None, request.num_threads, reading, f"reading {name}", show_progress)
        sums[name] = take_bands(findings[name])
    used = [found for split in dict.fromkeys(uses.values()) for found in findings[split]]
    rules = rules_of(request, layout, used, opened["training"].class_names)
    processor = processor or rules.make_processor()
    reports = {
        use: report_on_labels(
            findings[split],
            processor,
            rules.names,
            strict=request.strict or use == "validation",
            doubts_are_errors=request.doubts_are_errors,
        )
        for use, split in uses.items()
    }
    for use, samples in opened.items():
        if request.processor is None and rules.settings.get("label_mapping") != request.rules.get("label_mapping"):
            reports[use].warnings = [t for t in reports[use].warnings if not t.startswith("label_mapping translates")]
        reports[use].warnings += getattr(samples, "notes", [])
    counts = ", ".join(f"{name} {len(found)}" for name, found in findings.items())
    survey = Survey(
        request,
        getattr(layout, "name", "unknown"),
        getattr(layout, "description", f"{request.data}: {counts}"),
        splits,
        uses,
        findings,
        rules,
        processor,
        reports,
        sums[uses["training"]],
    )
    add_sentences(survey, [*getattr(layout, "notes", []), *broken])
    survey.warnings += order_warnings(request, getattr(layout, "label_names", None))
    return survey


def order_warnings(request: DataRequest, theirs: Sequence[str] | None) -> list[str]:
    """The sentence on names that are given in another order than the data have them in; nothing if values are mapped.

    `theirs`: names of the layout, or of a file beside the data.
    """
    given = request.label_names
    plain, wanted = ([name.strip().casefold() for name in names or ()] for names in (theirs, given))
    if plain == wanted or sorted(plain) != sorted(wanted) or request.rules.get("label_mapping") is not None:
        return []
    number = next(i for i, (one, other) in enumerate(zip(plain, wanted)) if one != other)
    return [
        f"label {number} is called {given[number]!r}, and by the data {theirs[number]!r}: the names stand in another "
        "order; leave label_names out if the data are right, or correct the names beside them"
    ]


def rules_of(
    request: DataRequest, layout, used: list[Finding], class_names: Sequence[tuple[str, list[str]]] = ()
) -> Rules:
    """Names and settings: those that are given, then those of the layout, then what the values say.

    `class_names`: (where, names) of other columns, which may be of whole images and are told alone.
    """
    names, given = request.label_names, dict(request.rules)
    if request.processor is not None:
        return Rules(list(names or []), given)
    if layout is not None:
        names = list(layout.label_names) if names is None and layout.label_names else names
        for key in ("ignore_index", "label_mapping"):
            if getattr(layout, key) is not None:
                given.setdefault(key, getattr(layout, key))
    if names is not None or layout is None:
        return decide_rules(used, names, given)
    return name_by_hints(used, given, layout.hints, [*class_names, *layout.class_names])


def open_splits(request: DataRequest) -> tuple[dict[str, Samples], Layout | None]:
    """{"training" or "validation": samples} and their layout; None of a part of a table, as in "train[:10%]"."""
    wanted = {"training": request.train_split, "validation": request.eval_split}
    if any("[" in split for split in wanted.values()):
        return {use: open_dataset(request.data, split, **request.reading) for use, split in wanted.items()}, None
    layout = find_layout(request.data, **request.reading)
    hint = "".join(f"; {note}" for note in layout.notes if NOT_DIVIDED in note or NOTHING_TO_LEARN in note)
    names = {use: find_split(split, list(layout.splits), request.data, hint) for use, split in wanted.items()}
    opened = {use: layout.splits[name] for use, name in names.items()}
    for samples in opened.values():
        samples.layout = layout
    return opened, layout


def open_others(layout: Layout | None, known: dict[str, Samples]) -> tuple[dict[str, Samples], list[str]]:
    """{name: samples} of the other splits of a folder, which may repeat images; and notes on those that are broken."""
    found: dict[str, Samples] = {}
    broken: list[str] = []
    if layout is None or layout.name == "hub":
        return found, broken
    for name in layout.splits:
        if name not in known and name.lower() not in UNION_SPLITS:
            try:
                found[name] = layout.splits[name]
            except ValueError as error:  # such as a test split without label maps, which is not used here
                broken.append(f"split {name} cannot be used: {error}")
    return found, broken


def take_bands(findings: list[Finding]) -> dict[tuple[int, str], BandSums]:
    """Sums over the images of each number and type of bands; those of the single images are dropped."""
    sums: dict[tuple[int, str], BandSums] = {}
    for found in findings:
        if found.bands is not None and found.kind is not None:
            sums.setdefault(found.kind, BandSums()).merge(found.bands)
            found.bands = None
    return sums


__all__ = ["survey_data"]
