# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What is said of a data set as a whole: problems that stop training, warnings, and notes on what was decided."""

from collections import Counter

import numpy as np

from ..datasets import listed
from .counting import MOST_COLORS, Counts, Finding, is_region, is_smoothed, tally_colors
from .duplicates import duplicate_warnings, find_duplicates
from .suggestions import rare_labels
from .survey import Survey, count_images

USES = {"training": "trained on", "validation": "validated on"}


def add_sentences(survey: Survey, notes: list[str]) -> None:
    """Problems, warnings and notes, each said once and the gravest first."""
    palettes = palette_problems(survey)
    survey.colors = colors_in(survey)
    survey.duplicates = find_duplicates(survey.findings)
    training = survey.reports["training"]
    images = count_images(survey.training, survey.processor, len(survey.rules.names))
    survey.rare = rare_labels(survey.rules.names, training.label_counts, images, len(survey.training))
    problems = [f"the data set cannot be trained on: {text}" for text in [*palettes, *survey.rules.problems]]
    for use, report in survey.reports.items():
        problems += [f"the data set cannot be {USES[use]}: {text}" for text in report.errors]
    survey.problems = list(dict.fromkeys([*problems, *band_problems(survey)]))
    survey.warnings = [f"{use}: {text}" for use, report in survey.reports.items() for text in report.warnings]
    survey.warnings += duplicate_warnings(survey.duplicates, sum(map(len, survey.findings.values())))
    if survey.rare:
        texts = listed([f"{name!r} ({how})" for name, how in survey.rare.items()])
        survey.warnings.append(f"too rare to learn: {texts}; add images that show them, or take these labels out")
    if turned := [found.name for found in survey.used if found.is_turned]:
        survey.warnings.append(
            f"{len(turned)} of {len(survey.used)} images are turned by their EXIF orientation, and their sizes do not "
            f"tell whether their label maps are turned too, as they are taken to be: {listed(turned)}; look at some "
            "of them, or store the images upright without orientation"
        )
    survey.notes = list(dict.fromkeys([*notes, *survey.rules.notes, *color_notes(survey)]))
    if not survey.rules.are_named:  # a table of names that are values says nothing
        for report in survey.reports.values():
            report.readings = ""


def color_notes(survey: Survey) -> list[str]:
    """The sentence on colours of masks."""
    total = sum(pixels for pixels, _ in survey.colors.values())
    colors = [f"[{r}, {g}, {b}] {pixels / total:.1%}" for (r, g, b), (pixels, _) in survey.colors.items()]
    if not colors:
        return []
    many = "; so many come of photographs, smoothing, or numbers of objects" if len(colors) >= MOST_COLORS else ""
    return [
        f"label maps hold {len(colors)} colours: {listed(colors)}{many}; --output DIR writes DIR/label_colors.yaml, "
        "where each gets the name of its label"
    ]


def palette_problems(survey: Survey) -> list[str]:
    """The sentence on label maps whose palettes contradict their values; they become colour masks.

    A program that saves a picture of few colours chooses the palette's order: another one for each file, or greys in
    another order than their own. Who sets `label_mapping` says by it that the values count.
    """
    if survey.request.rules.get("label_mapping") is not None:
        return []
    places: dict[int, tuple[int, str]] = {}
    with_palette = [found for found in survey.used if found.palette]
    for found in with_palette:
        times = Counter(found.palette.values())
        once = {value: color for value, color in sorted(found.palette.items()) if times[color] == 1}
        before = {value: places.setdefault(color, (value, found.name)) for value, color in once.items()}
        moved = next((value for value, (other, _) in before.items() if other != value), None)
        greys = [color & 255 for color in once.values() if color % 0x010101 == 0]
        if moved is not None:
            color, (value, name) = list(once[moved].to_bytes(3, "big")), before[moved]
            text = (
                f"are in different orders: the colour {color} is value {value} in {name}, and {moved} in {found.name}"
            )
        elif len(greys) == len(once) and greys != sorted(greys):
            shown = listed([f"value {value} is grey {color & 255}" for value, color in once.items()])
            text = f"hold greys in another order than that of the values: {shown} in {found.name}"
        else:
            continue
        for one in with_palette:
            one.colors = by_color(one)
        return [
            f"the palettes of label maps {text}; set label_colors: {{label: [red, green, blue]}} if the colours tell "
            "the label, or label_mapping: {value: label} if the values do"
        ]
    return []


def by_color(found: Finding) -> Counts:
    """What a label map with a palette holds, by colour in place of value."""
    known = [found.palette.get(value, -1) for value in found.stored.values.tolist()]
    values = np.unique([color for color in known if color >= 0])
    places = np.searchsorted(values, known)
    is_known = np.array(known) >= 0
    sums = [
        np.bincount(places[is_known], counts[is_known], len(values))
        for counts in (found.stored.counts, found.stored.inner)
    ]
    return Counts(values, *(total.astype(np.int64) for total in sums))


def band_problems(survey: Survey) -> list[str]:
    """The sentence on images of different bands."""
    kinds: dict[tuple[int, str], list[str]] = {}
    for found in survey.used:
        if found.kind is not None:
            kinds.setdefault(found.kind, []).append(found.name)
    if len(kinds) < 2:
        return []
    texts = [f"{len(names)} of {count} bands, {kind} ({names[0]})" for (count, kind), names in kinds.items()]
    return [f"the data set cannot be trained on: images differ in their bands: {'; '.join(texts)}; store all alike"]


def colors_in(survey: Survey) -> dict[tuple[int, int, int], tuple[int, int]]:
    """{(r, g, b): (pixels, label maps)} of colour masks, most frequent first, without those along edges alone."""
    tallies = tally_colors(survey.used)
    regions = [color for color, tally in tallies.items() if is_region(tally)]
    if is_smoothed(tallies, tallies, len(regions)):
        tallies = {color: tallies[color] for color in regions}
    order = sorted(tallies, key=lambda color: -tallies[color].num_pixels)
    return {
        (color >> 16, color >> 8 & 255, color & 255): (tallies[color].num_pixels, len(tallies[color].names))
        for color in order
    }


__all__ = ["add_sentences"]
