# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a run shows of itself: curves, scores of every label, worst and best images, and a page of all of it."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..evaluation.examples import Example, Examples
from ..evaluation.report import (
    evaluation_sections,
    label_csv,
    make_figure,
    percent,
    read_canvas,
    settings_table,
    show_chart,
)
from ..utils.files import write_atomically
from ..utils.html import Gallery, Picture, Section, Table, write_report
from ..utils.text import printable
from ..utils.visualization import legend_name

SMOOTHING = 10  # steps that a point of the loss is the mean of
LATEST = "last_evaluation.json"  # in the folder of a run: what its report shows of the last evaluation
KEPT = ("miou", "macc", "aacc", "boundary_iou", "boundary_f1", "miou_interval", "never_predicted", "per_label")
MOST_LINES = 10  # labels up to which their IoU is drawn as lines
MOST_ROWS = 180  # labels up to which the rows of their IoU are named

Entries = list[dict[str, Any]]


def evaluation_entry(result: Mapping[str, Any]) -> dict[str, Any]:
    """What `evaluations.jsonl` keeps of `Evaluation.result`, but for the step: all scores, without the confusions."""
    return {name: result[name] for name in KEPT}


def tracker_values(result: Mapping[str, Any]) -> dict[str, float]:
    """Scalars for trackers: `eval/miou` and the other means, `eval/iou/<label>`; what is not defined is left out."""
    values = {f"eval/{name}": result[name] for name in KEPT[:5]}
    times = Counter(row["label"] for row in result["per_label"])
    for i, row in enumerate(result["per_label"]):
        name = row["label"] if times[row["label"]] == 1 else f"{row['label']} ({i})"
        values[f"eval/iou/{name}"] = row["iou"]
    return {name: value for name, value in values.items() if value is not None}


def write_training_report(
    output_dir: str | Path,
    *,
    step: int | None = None,
    result: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    examples: Examples | None = None,
) -> None:
    """Write `report.html` and `per_label.csv` of a run from what is in its folder; each atomic.

    Call it in one process, after `losses.jsonl` and `evaluations.jsonl` are written. With a step and a result these
    are kept in `last_evaluation.json`, so that the page can be made again from the folder alone.

    Args:
        output_dir: of the run, with `losses.jsonl` and `evaluations.jsonl` (lines of `step` and `evaluation_entry`).
        step: of the newest evaluation.
        result: `Evaluation.result` of that step.
        recipe: names and values, shown as a table.
        examples: from `draw_examples`.
    """
    folder = Path(output_dir)
    if step is not None and result is not None:
        shown = examples or Examples([], [])
        latest = {"step": step, "result": dict(result), "recipe": dict(recipe or {})}
        latest |= {kind: [example.to_json() for example in getattr(shown, kind)] for kind in ("worst", "best")}
        write_atomically(folder / LATEST, json.dumps(latest, allow_nan=False, default=str).encode())
    losses, evaluations = (read_lines(folder / name) for name in ("losses.jsonl", "evaluations.jsonl"))
    latest = json.loads((folder / LATEST).read_bytes()) if (folder / LATEST).is_file() else {}
    charts = draw_run(losses, evaluations)
    sections = [Section("Curves", [Gallery(charts)] if charts else []), label_section(evaluations)]
    if evaluations and latest.get("step") == evaluations[-1]["step"]:  # else of steps that a resumed run makes again
        shown = Examples(*([Example.from_json(entry) for entry in latest[kind]] for kind in ("worst", "best")))
        warnings, *others = evaluation_sections(latest["result"], shown)
        titled = [Section(f"{section.title}, step {latest['step']}", section.blocks) for section in others]
        sections = [warnings, *sections, *titled]
    if latest.get("recipe"):
        sections.append(Section("Recipe", [settings_table(latest["recipe"])]))
    title = f"Training {printable(folder.resolve().name)}"
    write_report(folder / "report.html", title, headline(losses, evaluations), sections)
    with_labels = [(entry["step"], entry) for entry in evaluations if "per_label" in entry]
    write_atomically(folder / "per_label.csv", label_csv(with_labels))


def read_lines(path: Path) -> Entries:
    """The objects of a JSONL file; none if it is not there."""
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.is_file() else []


def best_entry(evaluations: Entries) -> dict[str, Any] | None:
    """The evaluation with the highest mIoU, of equals the first; None if there is none."""
    return max((entry for entry in evaluations if entry["miou"] is not None), key=lambda e: e["miou"], default=None)


def headline(losses: Entries, evaluations: Entries) -> list[tuple[str, str]]:
    """(what, value) of where the run stands."""
    lines = [("step", str(max((entry["step"] for entry in losses + evaluations), default=0)))]
    if best := best_entry(evaluations):
        lines.append((f"best mIoU, step {best['step']}", percent(best["miou"])))
    if evaluations:
        last = evaluations[-1]
        lines.append((f"last mIoU, step {last['step']}", percent(last["miou"])))
        lines.append(("last boundary IoU", percent(last.get("boundary_iou"))))
    if losses:
        recent = [entry["loss"] for entry in losses[-SMOOTHING:]]
        lines.append(("loss", f"{np.mean(recent):.4g}"))
        lines.append(("learning rate", f"{losses[-1]['learning_rate']:.2e}"))
    return lines


def label_section(evaluations: Entries) -> Section:
    """IoU of every label over the run: a chart, and a table of the best and the last evaluation."""
    section, entries = Section("Labels over the run"), [entry for entry in evaluations if "per_label" in entry]
    if not entries:
        return section
    names = [legend_name(row["label"]) for row in entries[-1]["per_label"]]
    iou = np.array([[row["iou"] for row in entry["per_label"]] for entry in entries], dtype=float)  # NaN for None
    if len(entries) > 1:
        section.blocks.append(show_chart(draw_labels([entry["step"] for entry in entries], iou, names)))
    best = best_entry(entries) or entries[-1]
    titles = (f"IoU at the best step, {best['step']}", f"IoU at the last, {entries[-1]['step']}")
    rows = []
    for name, old, new in zip(names, best["per_label"], entries[-1]["per_label"]):
        is_known = old["iou"] is not None and new["iou"] is not None
        change = f"{100 * (new['iou'] - old['iou']):+.1f}" if is_known else "-"
        rows.append((name, old["iou"], new["iou"], change, new["pixels"]))
    section.blocks.append(Table(("label", *titles, "change in points", "reference pixels"), rows, titles))
    return section


def draw_run(losses: Entries, evaluations: Entries) -> list[Picture]:
    """Charts over steps: loss and its terms, scores, learning rate."""
    pictures = []
    if losses:
        steps = [entry["step"] for entry in losses]
        terms = sorted({name for entry in losses for name in entry if name.startswith("loss_")})
        lines = {name: [entry.get(name) for entry in losses] for name in ("loss", *terms)}
        lines = {name: smooth(np.array(values, dtype=float)) for name, values in lines.items()}
        pictures.append(show_chart(draw_lines(steps, lines, {}), f"loss (mean of {SMOOTHING} steps)"))
    if evaluations:
        keys = {"miou": "mIoU", "boundary_iou": "boundary IoU", "macc": "mean accuracy"}
        steps = [entry["step"] for entry in evaluations]
        found = np.array([[entry.get(key) for entry in evaluations] for key in keys], dtype=float)
        lines = dict(zip(keys.values(), 100 * found))
        pictures.append(show_chart(draw_lines(steps, lines, {"ylim": (0, 100)}, marker="o"), "scores in %"))
    if losses:
        rates = {"learning rate": np.array([entry["learning_rate"] for entry in losses], dtype=float)}
        pictures.append(show_chart(draw_lines([entry["step"] for entry in losses], rates, {}), "learning rate"))
    return pictures


def smooth(values: np.ndarray) -> np.ndarray:
    """(n,) mean of each value and those before it, `SMOOTHING` at most; NaN is left out."""
    known = ~np.isnan(values)
    sums, counts = (
        np.cumsum(np.concatenate([np.zeros(SMOOTHING), part])) for part in (np.where(known, values, 0), known)
    )
    means = (sums[SMOOTHING:] - sums[:-SMOOTHING]) / np.maximum(counts[SMOOTHING:] - counts[:-SMOOTHING], 1)
    return np.where(counts[SMOOTHING:] > counts[:-SMOOTHING], means, np.nan)


def draw_lines(steps: list[int], lines: Mapping[str, np.ndarray], settings: dict, marker: str = "") -> Image.Image:
    """Chart of values over steps, from 0; a legend if there are several. `settings`: of matplotlib's axes."""
    figure, canvas = make_figure(4.4, 2.8)
    axes = figure.add_subplot()
    for name, values in lines.items():
        if not np.isnan(values).all():
            axes.plot(steps, values, label=name, marker=marker, markersize=3, linewidth=1.3)
    axes.set(**{"xlabel": "step", "xlim": (0, max(steps)), "ylim": (0, None)} | settings)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(color="0.9")
    if len(axes.lines) > 1:
        axes.legend(fontsize=8, framealpha=0.7)
    return read_canvas(canvas)


def draw_labels(steps: list[int], iou: np.ndarray, names: list[str]) -> Image.Image:
    """Chart of the labels' IoU over the evaluations: lines if there are few labels, else a row of colours for each.

    Args:
        steps: of the E evaluations.
        iou: (E, K) fractions, NaN where not defined.
        names: of the K labels.
    """
    short = [name if len(name) <= 24 else f"{name[:21]}..." for name in names]
    if len(names) <= MOST_LINES:
        figure, canvas = make_figure(7.2, 3.6)
        axes = figure.add_subplot()
        for values in 100 * iou.T:
            axes.plot(steps, values, marker="o", markersize=3, linewidth=1.3)
        axes.set(xlabel="step", ylabel="IoU in %", ylim=(0, 100), xlim=(0, steps[-1]))
        axes.grid(color="0.9")
        legend = figure.legend(axes.lines, short, loc="outside right upper", fontsize=8)
        for text in legend.get_texts():
            text.set_parse_math(False)
        return read_canvas(canvas)
    figure, canvas = make_figure(7.2, 1.2 + 0.17 * min(len(names), MOST_ROWS))
    axes = figure.add_subplot()
    image = axes.imshow(100 * iou.T, vmin=0, vmax=100, aspect="auto", cmap="viridis", interpolation="nearest")
    if len(names) <= MOST_ROWS:
        axes.set_yticks(range(len(names)), short, fontsize=7, parse_math=False)
    shown = np.unique(np.linspace(0, len(steps) - 1, 8).round().astype(int))
    axes.set_xticks(shown, [str(steps[i]) for i in shown], fontsize=8)
    axes.set(xlabel="step")
    figure.colorbar(image, label="IoU in %", fraction=0.03)
    return read_canvas(canvas)


def draw_curves(losses: list[tuple[int, float]], mious: list[tuple[int, float]]) -> Image.Image:
    """Chart of a training run: loss (grey, left axis from 0) and mIoU in % (blue, right axis 0..100) over steps.

    Args:
        losses: (step, value) in order of the steps, at least one.
        mious: (step, fraction) of the evaluations.

    Returns:
        RGB picture, 720 x 400 pixels.
    """
    steps, values = np.array(losses, dtype=float).T
    figure, canvas = make_figure(7.2, 4, dots_per_inch=100)
    left = figure.add_subplot()
    left.plot(steps, smooth(values), color="0.55")
    left.set(xlabel="step", xlim=(0, steps[-1]), ylim=(0, None))
    left.set_ylabel(f"loss (mean of {SMOOTHING} steps)", color="0.4")
    right = left.twinx()
    right.plot(
        *np.array([(step, 100 * value) for step, value in mious]).reshape(-1, 2).T,
        color="#1f5fbf",
        marker="o",
        clip_on=False,
    )
    right.set(ylim=(0, 100))
    right.set_ylabel("mIoU in %", color="#1f5fbf")
    left.grid(axis="y", color="0.9")
    return read_canvas(canvas)


__all__ = ["draw_curves", "evaluation_entry", "tracker_values", "write_training_report"]
