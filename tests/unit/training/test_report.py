"""The picture of a run's curves."""

import numpy as np

from qlseg_hf.training.report import draw_curves


def blue(chart: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels in the colour of mIoU."""
    return np.nonzero((np.abs(chart.astype(int) - [0x1F, 0x5F, 0xBF]) < 8).all(axis=2))


def test_curves():
    losses = [(step, 10 / step) for step in range(1, 101)]
    chart = np.asarray(draw_curves(losses, [(50, 0.25), (100, 0.75)]))
    assert chart.shape == (400, 720, 3)
    rows, columns = blue(chart[:, :660])  # without the label of the axis
    low, high = np.asarray(draw_curves(losses, [(50, 0.0)])), np.asarray(draw_curves(losses, [(50, 1.0)]))
    bottom, top = blue(low[:, :660])[0].mean(), blue(high[:, :660])[0].mean()
    at_half = rows[np.abs(columns - columns.min()) < 6].mean()
    assert abs((bottom - at_half) / (bottom - top) - 0.25) < 0.02


def test_loss_is_smoothed_over_what_there_is():
    constant = np.asarray(draw_curves([(step, 2.0) for step in range(1, 31)], []))
    grey = (np.abs(constant.astype(int) - 140) < 6).all(axis=2)[:330, 100:600]  # without the labels of the axes
    rows = np.nonzero(grey)[0]
    assert len(rows) and np.ptp(rows) < 4  # a level line from the first step
