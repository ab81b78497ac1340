# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What an evaluation shows: the scores as a page that opens without a server, and as a table of labels."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..utils.html import Picture, Section, Table, write_report
from ..utils.text import printable
from ..utils.visualization import legend_name
from .examples import Examples
from .metrics import LABEL_SCORES

NUM_CONFUSED = 20  # pairs of labels in the table
DOTS_PER_INCH = 150  # of a chart, which is shown at 96
MOST_NUMBERED = 16  # labels up to which the cells of the confusion matrix hold numbers
MOST_NAMED = 60  # labels up to which its rows and columns are named


def write_evaluation_report(
    path: str | Path,
    result: Mapping[str, Any],
    *,
    examples: Examples | None = None,
    protocol: Mapping[str, Any] | None = None,
    title: str = "Evaluation",
) -> None:
    """Write an evaluation as one HTML file; atomic.

    Args:
        path: of the file.
        result: `Evaluation.result`.
        examples: from `draw_examples`; left out if not given.
        protocol: what someone needs to repeat the measurement, shown as a table.
        title: of the page.
    """
    sections = evaluation_sections(result, examples)
    if protocol:
        sections.append(Section("Protocol", [settings_table(protocol)]))
    write_report(Path(path), printable(title), headline(result), sections)


def headline(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, value) of the numbers that stand for the whole data set."""
    low, high = result["miou_interval"]
    return [
        ("mIoU", percent(result["miou"])),
        ("95 % interval", f"{percent(low)} to {percent(high)}"),
        ("mean accuracy", percent(result["macc"])),
        ("pixel accuracy", percent(result["aacc"])),
        ("boundary IoU", percent(result["boundary_iou"])),
        ("boundary F1", percent(result["boundary_f1"])),
        ("images", str(result["num_pictures"])),
    ]


def percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f} %"


def evaluation_sections(result: Mapping[str, Any], examples: Examples | None) -> list[Section]:
    """Sections on warnings, labels, confusions and pictures."""
    names = [legend_name(row["label"]) for row in result["per_label"]]
    warnings = [printable(text) for text in result["warnings"]]
    if result["unreadable"]:
        listed = ", ".join(map(printable, result["unreadable"]))
        warnings.append(f"not counted, because they cannot be read: {len(result['unreadable'])} images, {listed}")
    counts = np.array(result["confusion"], dtype=np.int64)
    sections = [Section("Warnings", warnings), Section("Labels", [label_table(result)])]
    confusions = Section("Confusion", [])
    if counts.any():
        confusions.blocks.append("Of the pixels of a label (row), the share that is predicted as each label (column).")
        confusions.blocks.append(show_chart(draw_confusion(counts, names)))
        if pairs := most_confused(counts, names):
            columns = ("reference", "predicted as", "pixels", "share of the reference's pixels")
            confusions.blocks.append(f"The {len(pairs)} pairs of labels that take the most pixels:")
            confusions.blocks.append(Table(columns, pairs, columns[-1]))
    sections.append(confusions)
    for kind, shown in (("Worst", examples.worst), ("Best", examples.best)) if examples is not None else ():
        blocks = [example.to_block(place) for place, example in enumerate(shown, start=1)]
        sections.append(Section(f"{kind} images, by their own mIoU", blocks))
    return sections


def label_table(result: Mapping[str, Any]) -> Table:
    """A row per label; the share is that of the reference's pixels."""
    total = sum(row["pixels"] for row in result["per_label"]) or 1
    titles = tuple(title for title, _ in LABEL_SCORES.values())
    rows = [
        (legend_name(row["label"]), *(row[name] for name in LABEL_SCORES), f"{100 * row['pixels'] / total:.2f}\u00a0%")
        for row in result["per_label"]
    ]
    return Table(("label", *titles, "share of pixels"), rows, titles)


def most_confused(
    counts: np.ndarray, names: list[str], number: int = NUM_CONFUSED
) -> list[tuple[str, str, int, float]]:
    """(reference, prediction, pixels, share of the reference's pixels) of the pairs that take the most pixels.

    Args:
        counts: (K, K) pixels, rows reference, columns prediction.
        names: of the K labels.
        number: of pairs; fewer if fewer occur.
    """
    wrong = counts - np.diag(counts.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:number]
    pairs = [divmod(int(place), len(names)) for place in order if wrong.flat[place]]
    totals = counts.sum(axis=1)
    return [(names[i], names[j], int(counts[i, j]), float(counts[i, j] / totals[i])) for i, j in pairs]


def draw_confusion(counts: np.ndarray, names: list[str]) -> Image.Image:
    """Confusion matrix as an image, each row as shares of its sum.

    Args:
        counts: (K, K) pixels, rows reference, columns prediction.
        names: of the K labels. Shown up to 60 labels; more are numbered.
    """
    num_labels = len(names)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(3.5, 0.45 * num_labels), 10)
    figure, canvas = make_figure(side + 1.5, side + 1)
    axes = figure.add_subplot()
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    axes.set(xlabel="prediction", ylabel="reference")
    if num_labels <= MOST_NAMED:
        font = {"fontsize": 9 if num_labels <= 24 else 6, "parse_math": False}
        shown = [name if len(name) <= 24 else f"{name[:21]}..." for name in names]
        axes.set_xticks(range(num_labels), shown, rotation=90, **font)
        axes.set_yticks(range(num_labels), shown, **font)
    if num_labels <= MOST_NUMBERED:
        for (i, j), share in np.ndenumerate(shares):
            if round(100 * share):
                color = "white" if share > 0.5 else "black"
                axes.text(j, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=color)
    return read_canvas(canvas)


def make_figure(width: float, height: float, dots_per_inch: int = DOTS_PER_INCH) -> tuple[Any, Any]:
    """matplotlib's figure of so many inches and the canvas that it is drawn on."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dots_per_inch, layout="constrained")
    return figure, FigureCanvasAgg(figure)


def read_canvas(canvas: Any) -> Image.Image:
    """Draw; the result as RGB."""
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def show_chart(image: Image.Image, caption: str = "") -> Picture:
    """An image from `read_canvas` at the size that its text is meant for, sharper on screens with small pixels."""
    return Picture(image, caption, width=round(image.width / DOTS_PER_INCH * 96))


def settings_table(settings: Mapping[str, Any]) -> Table:
    """Names and values; what is not a text as JSON."""
    rows = [
        (name, printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)))
        for name, value in settings.items()
    ]
    return Table(("setting", "value"), rows)


def label_csv(results: list[tuple[int | None, Mapping[str, Any]]]) -> bytes:
    """CSV with a line per label of each (step, result); the step's column is left out where it is None.

    Fractions in full; an empty cell is a score that is not defined. `result`: anything with `per_label`.
    """
    has_steps = any(step is not None for step, _ in results)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    columns = (*LABEL_SCORES, "pixels", "predicted_pixels")
    writer.writerow((*(["step"] if has_steps else []), "label", *columns))
    for step, result in results:
        for row in result["per_label"]:
            values = [row["label"], *(row[column] for column in columns)]
            writer.writerow([step, *values] if has_steps else values)
    return stream.getvalue().encode(errors="backslashreplace")


def to_json(result: Mapping[str, Any]) -> bytes:
    """Strict JSON for people, with one line per row of the confusion matrix."""
    text = json.dumps({**result, "confusion": []}, indent=2, allow_nan=False, ensure_ascii=False)
    rows = ",\n    ".join(json.dumps(row) for row in result["confusion"])
    head, key, tail = text.rpartition('\n  "confusion": []')  # of this depth there is one
    text = f"{head}{key[:-1]}\n    {rows}\n  ]{tail}\n"
    return text.encode(errors="backslashreplace")  # names of files that are no UTF-8; JSON writes them the same way


__all__ = [
    "draw_confusion",
    "evaluation_sections",
    "label_csv",
    "make_figure",
    "most_confused",
    "percent",
    "read_canvas",
    "settings_table",
    "show_chart",
    "to_json",
    "write_evaluation_report",
]
