# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The results of the study as a Markdown table, and as curves."""

from pathlib import Path
from statistics import mean, stdev

from qlseg_hf.utils.files import write_atomically


def by_contestant(result: dict) -> dict[str, list[dict]]:
    """Runs of each contestant, one per seed, the best contestant first."""
    groups: dict[str, list[dict]] = {}
    for run in result["runs"]:
        groups.setdefault(run["contestant"], []).append(run)
    return dict(sorted(groups.items(), key=lambda item: -mean(run["curve"][-1]["miou"] for run in item[1])))


def write_table(result: dict) -> str:
    """mIoU in %, mean and deviation over the seeds; seconds of one step are those of the first seed."""
    settings = result["settings"]
    budget = f"{settings['steps']} steps" if settings["steps"] else f"{settings['seconds']:g} s"
    lines = [
        f"{budget} of {settings['batch']} crops of {settings['crop']} pixels, short side {settings['short_side']}, "
        f"{settings['threads']} thread(s){', bf16' if settings['bf16'] else ''}, {settings['augmentation']} "
        "augmentation; mIoU in % on the validation split.",
        "",
        "| contestant | encoder | parameters | learning rates | s a step | steps | 1/4 | 1/2 | 3/4 | end |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, runs in by_contestant(result).items():
        last = runs[0]["curve"][-1]
        scores = [describe_scores([run["curve"][i]["miou"] for run in runs]) for i in range(4)]
        cells = [name, runs[0]["encoder"], f"{runs[0]['parameters'] / 1e6:.1f} M", runs[0]["rates"]]
        cells += [f"{last['seconds'] / last['step']:.2f}", str(round(mean(run["curve"][-1]["step"] for run in runs)))]
        lines.append(f"| {' | '.join(cells + scores)} |")
    return "\n".join(lines) + "\n"


def describe_scores(values: list[float]) -> str:
    """Mean of fractions in %, and their standard deviation where there are several."""
    text = f"{100 * mean(values):.1f}"
    return f"{text} ± {100 * stdev(values):.1f} ({len(values)})" if len(values) > 1 else text


def draw_figure(result: dict, place: Path) -> None:
    """mIoU over steps and over seconds, means over the seeds."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for name, runs in by_contestant(result).items():
        curves = list(zip(*(run["curve"] for run in runs)))  # of each quarter a row per seed
        scores = [100 * mean(row["miou"] for row in rows) for rows in curves]
        for axis, key in zip(axes, ("step", "seconds")):
            axis.plot([mean(row[key] for row in rows) for rows in curves], scores, marker="o", label=name)
    for axis, label in zip(axes, ("steps", "seconds of training")):
        axis.set(xlabel=label, xlim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="mIoU, %")
    axes[1].legend()
    picture = io.BytesIO()
    canvas.print_png(picture)
    write_atomically(place, picture.getvalue())


__all__ = ["draw_figure", "write_table"]
