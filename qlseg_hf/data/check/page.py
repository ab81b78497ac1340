# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The report of `qlseg check`: one HTML page that opens without a server, and the same in one PNG."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...utils.files import write_atomically
from ...utils.html import Gallery, Legend, Picture, Section, Table, write_report
from ...utils.text import printable
from ..datasets import SampleError
from .counting import labels_of, tally_values
from .outputs import data_keys, to_yaml
from .readings import readings_of
from .rules import settings_text
from .sheet import choose_samples, colors_of_labels, draw_facts, read_tile
from .survey import Survey

MOST_ROWS = 50  # of a table


def write_page(survey: Survey, output: Path) -> list[Path]:
    """Write `report.html` and `report.png` into `output`; atomic."""
    tiles = contact_sheet(survey)
    facts = key_facts(survey)
    verdict = "; ".join(survey.problems[:1]) or "Nothing found that would stop training."
    write_report(
        output / "report.html", f"Data check: {printable(survey.request.data)}", facts, sections(survey, tiles)
    )
    picture, stream = draw_facts(survey, [tile for tile, _, _ in tiles], facts, verdict), io.BytesIO()
    picture.save(stream, "PNG")
    write_atomically(output / "report.png", stream.getvalue())
    return [output / "report.html", output / "report.png"]


def key_facts(survey: Survey) -> list[tuple[str, str]]:
    """What stands first: (what, value)."""
    num_pixels = int(survey.label_counts.sum()) + survey.num_ignored if survey.rules.names else 0
    counts = survey.label_counts if survey.rules.names else np.zeros(0)
    images = ", ".join(f"{split} {len(found)}" for split, found in survey.findings.items())
    facts = [
        ("can be trained on", "yes" if survey.can_train else "no"),
        ("layout", survey.layout),
        ("images", images),
        ("labels that occur", f"{(counts > 0).sum()} of {len(counts)}"),
        ("ignored pixels", f"{survey.num_ignored / num_pixels:.1%}" if num_pixels else "-"),
        ("bands", str(survey.bands.num_channels if survey.bands else "-")),
    ]
    if sizes := survey.sizes.most_common(1):
        (height, width), _ = sizes[0]
        more = f" and {len(survey.sizes) - 1} other sizes" if len(survey.sizes) > 1 else ""
        facts.append(("height x width", f"{height} x {width}{more}"))
    return facts


def contact_sheet(survey: Survey) -> list[tuple[Image.Image, list[int], str]]:
    """(tile, its labels, its name) of the images that are shown; those whose masks hold odd colours are left out."""
    tiles = []
    for split, found in choose_samples(survey):
        try:
            tiles.append((*read_tile(survey, split, found), f"{split}: {found.name}"))
        except SampleError:  # it is among the problems
            continue
    return tiles


def sections(survey: Survey, tiles: list) -> list[Section]:
    """The page from top to bottom."""
    return [
        Section("What stops training", list(survey.problems)),
        Section("Read this", list(survey.warnings)),
        Section("Found and decided", [survey.description, *survey.notes]),
        sheet_section(survey, tiles),
        labels_section(survey),
        Section("Readings of the stored values", readings_blocks(survey)),
        colors_section(survey),
        sizes_section(survey),
        Section("Samples that cannot be used", unreadable_blocks(survey)),
        Section("Images of equal content", duplicates_blocks(survey)),
        suggestions_section(survey),
    ]


def sheet_section(survey: Survey, tiles: list) -> Section:
    """Overlays with the names of their labels."""
    names = survey.rules.names
    colors = colors_of_labels(len(names))
    pictures = []
    for tile, labels, name in tiles:
        listed = ", ".join(names[label] for label in labels if label < len(names))
        pictures.append(Picture(tile, printable(f"{name}: {listed}" if listed else name), is_photo=True))
    legend = [(printable(name), "#{:02x}{:02x}{:02x}".format(*map(int, color))) for name, color in zip(names, colors)]
    return Section("Contact sheet", [Legend(legend), Gallery(pictures)] if pictures else [])


def labels_section(survey: Survey) -> Section:
    """Pixels and images of every label."""
    if not survey.rules.names:
        return Section("Labels")
    counts, weights = survey.label_counts, survey.label_weights
    total, num_images = max(int(counts.sum()), 1), max(len(survey.used), 1)
    columns = ["label", "name", "stored as", "pixels", "share of pixels", "images", "share of images", "weight", ""]
    rows: list[list[Any]] = []
    for label, (name, values, images) in enumerate(
        zip(survey.rules.names, survey.stored_values, survey.images_of_labels)
    ):
        count = int(counts[label])
        remark = "never occurs" if not count else f"rare: {survey.rare[name]}" if name in survey.rare else ""
        stored = ", ".join(map(str, values)) or "-"
        rows.append(
            [
                label,
                printable(name),
                stored,
                f"{count:,}",
                count / total,
                images,
                images / num_images,
                weights[name],
                remark,
            ]
        )
    ignored = survey.num_ignored
    text = (
        f"{ignored:,} pixels ({ignored / (total + ignored):.2%}) are ignored." if ignored else "No pixel is ignored."
    )
    return Section("Labels", [Table(columns, rows, bar=("share of pixels", "share of images")), text])


def readings_blocks(survey: Survey) -> list:
    """What each stored value becomes as it is, with 0 as void, and with the last value as void."""
    names, tallies = survey.rules.names, tally_values(survey.used, None, 0)
    if not names or not tallies:
        return []
    stored = np.array(sorted(tallies), dtype=np.int64)
    total = sum(tally.num_pixels for tally in tallies.values())
    readings = readings_of(stored, names, survey.processor)
    columns = {}
    for title, (_, settings) in {"as set": ("", {}), **readings}.items():
        ignored = settings.get("ignore_index", survey.processor.ignore_index)
        columns[title] = [
            "ignored" if label == ignored else printable(names[label]) if 0 <= label < len(names) else "no label"
            for label in labels_of(stored, survey.processor, **settings).tolist()
        ]
    rows = [
        [value, tallies[value].num_pixels / total, *cells]
        for value, cells in zip(stored.tolist(), zip(*columns.values()))
    ]
    texts = [f"{title}: {keys}" for title, (keys, _) in readings.items()]
    table = Table(["stored value", "share of pixels", *columns], rows[:MOST_ROWS], bar="share of pixels")
    return ["\n".join(texts), table, *more_than(rows)]


def colors_section(survey: Survey) -> Section:
    """Colours of masks that nobody has given labels yet."""
    total = sum(pixels for pixels, _ in survey.colors.values())
    rows = [
        [f"[{r}, {g}, {b}]", f"#{r:02x}{g:02x}{b:02x}", pixels / total, images]
        for (r, g, b), (pixels, images) in survey.colors.items()
    ]
    legend = [(hexadecimal, hexadecimal) for _, hexadecimal, _, _ in rows[:MOST_ROWS]]
    text = (
        "The label maps are colour pictures. label_colors.yaml beside this report gives each colour a number: put the "
        "names of your labels there, and run qlseg check again with --label_colors FILE."
    )
    table = Table(["color", "as HTML", "share of pixels", "label maps"], rows[:MOST_ROWS], bar="share of pixels")
    return Section("Colours of the masks", [text, Legend(legend), table, *more_than(rows)] if rows else [])


def sizes_section(survey: Survey) -> Section:
    """How large the images are."""
    total = max(sum(survey.sizes.values()), 1)
    rows = [[f"{h} x {w}", count, count / total] for (h, w), count in survey.sizes.most_common()]
    table = Table(["height x width", "images", "share"], rows[:MOST_ROWS], bar="share")
    return Section("Sizes", [table, *more_than(rows)] if rows else [])


def unreadable_blocks(survey: Survey) -> list:
    """Colour masks are left out, which have a section of their own."""
    rows = [
        [split, printable(found.name), printable(str(found.error).removeprefix(f"{found.name}: "))]
        for split, findings in survey.findings.items()
        for found in findings
        if found.error is not None and found.colors is None
    ]
    return [Table(["split", "image", "reason"], rows[:MOST_ROWS]), *more_than(rows)] if rows else []


def duplicates_blocks(survey: Survey) -> list:
    rows = []
    for group in survey.duplicates:
        kind = "in several splits" if len(group.splits) > 1 else "in one split"
        names = "; ".join(printable(f"{split}: {name}") for split, name in group.places[:6])
        rows.append([len(group.places), kind, "label maps differ" if group.differs else "", names])
    return [Table(["images", "where", "", "names"], rows[:MOST_ROWS]), *more_than(rows)] if rows else []


def suggestions_section(survey: Survey) -> Section:
    """What to set, as it stands in data.yaml."""
    texts = [f"If {meaning}: {settings_text(settings)}" for meaning, settings in survey.rules.proposals]
    if survey.rules.names:
        weights = ", ".join(f"{printable(name)}: {weight}" for name, weight in survey.label_weights.items())
        texts.append(
            "label_weights, where rare labels matter as much as frequent ones (square root of median frequency over "
            f"frequency, 1/10 to 10): {{{weights}}}"
        )
    texts.append(f"crop_size: {survey.crop_size} (the median short side in whole patches, 512 at most)")
    if bands := survey.bands:
        mean, deviation = (", ".join(f"{x:.4g}" for x in values) for values in (bands.mean, bands.deviation))
        texts.append(f"Bands ({bands.dtype}): mean {mean}; deviation {deviation}")
    return Section("Suggestions, and what data.yaml holds", [*texts, printable_lines(to_yaml(data_keys(survey)))])


def printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.splitlines()))


def more_than(rows: list) -> list[str]:
    return [f"and {len(rows) - MOST_ROWS} more"] if len(rows) > MOST_ROWS else []


__all__ = ["write_page"]
