"""What a run shows of itself: the curves of loss and mIoU."""

import numpy as np
from PIL import Image

SMOOTHING = 10  # steps that a point of the loss is the mean of


def draw_curves(losses: list[tuple[int, float]], mious: list[tuple[int, float]]) -> Image.Image:
    """Chart of a training run: loss (grey, left axis from 0) and mIoU in % (blue, right axis 0..100) over steps.

    Args:
        losses: (step, value) in order of the steps, at least one.
        mious: (step, fraction) of the evaluations.

    Returns:
        RGB picture, 720 x 400 pixels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps, values = np.array(losses, dtype=float).T
    sums = np.cumsum(np.concatenate([np.zeros(SMOOTHING), values]))
    counts = np.minimum(np.arange(1, len(values) + 1), SMOOTHING)
    figure = Figure(figsize=(7.2, 4), dpi=100, layout="constrained")
    canvas, left = FigureCanvasAgg(figure), figure.add_subplot()
    left.plot(steps, (sums[SMOOTHING:] - sums[:-SMOOTHING]) / counts, color="0.55")
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
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


__all__ = ["draw_curves"]
