"""The picture of a run's curves, and its page."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from qlseg_hf.evaluation.evaluator import describe_scores
from qlseg_hf.evaluation.examples import Example, Examples
from qlseg_hf.evaluation.metrics import StreamingScores
from qlseg_hf.model.image_processing_qlseg import QLSegImageProcessor
from qlseg_hf.training import report
from qlseg_hf.training.report import draw_curves, draw_labels, evaluation_entry, tracker_values, write_training_report


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


NAMES = ["road", "sky", "sky"]


def make_result(share: float) -> dict:
    """`Evaluation.result` in which a share of the pixels is right."""
    scores = StreamingScores(3)
    reference = np.arange(300).reshape(3, 100) // 100
    predicted = np.where(np.arange(100) < 100 * share, reference, 0)
    scores.update(predicted, reference, 0)
    result = describe_scores(scores, NAMES, QLSegImageProcessor(do_reduce_labels=False))
    return result | {"unreadable": []}


def make_run(folder, shares=(0.2, 0.8, 0.5)) -> None:
    losses = [
        {"step": step, "loss": 9 / step, "loss_mask": 5 / step, "grad_norm": None, "learning_rate": 1e-3 / step}
        for step in range(1, 10 * len(shares) + 1)
    ]
    evaluations = [{"step": 10 * i} | evaluation_entry(make_result(share)) for i, share in enumerate(shares, start=1)]
    for name, entries in (("losses", losses), ("evaluations", evaluations)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def headings(folder) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", (folder / "report.html").read_text(encoding="utf-8"))


def test_report_of_a_run(tmp_path):
    make_run(tmp_path)
    image = Image.new("RGB", (8, 8), "red")
    examples = Examples([Example(0.1, 3, "<b>.png", image, image, [("road", "#000000")])], [])
    write_training_report(tmp_path, step=30, result=make_result(0.5), recipe={"lr": 0.1}, examples=examples)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert headings(tmp_path) == [
        *("Curves", "Labels over the run", "Labels, step 30", "Confusion, step 30"),
        *("Worst images, by their own mIoU, step 30", "Recipe"),
    ]
    assert "<dt>best mIoU, step 20</dt>" in text and "<dt>last mIoU, step 30</dt>" in text and "<b>" not in text
    assert text.count("data:image/png") == 5 and text.count("data:image/jpeg") == 2
    sky = make_result(0.5)["per_label"][1]["iou"] - make_result(0.8)["per_label"][1]["iou"]
    assert f"<td>{100 * sky:+.1f}</td>" in text
    rows = (tmp_path / "per_label.csv").read_text().splitlines()
    assert len(rows) == 10 and rows[0].startswith("step,label,iou") and rows[4].startswith("20,road,")
    (tmp_path / "report.html").unlink()
    write_training_report(tmp_path)  # from the folder alone
    again = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.sub('image/jpeg[^"]*', "", again) == re.sub('image/jpeg[^"]*', "", text)


def test_lines_of_the_charts(tmp_path, monkeypatch):
    make_run(tmp_path)
    drawn = []
    monkeypatch.setattr(report, "draw_lines", lambda *given, **marker: drawn.append(given) or Image.new("RGB", (8, 8)))
    write_training_report(tmp_path)
    (steps, losses, _), (when, scores, _), (_, rates, _) = drawn
    results = [make_result(share) for share in (0.2, 0.8, 0.5)]
    assert list(steps) == list(range(1, 31)) and when == [10, 20, 30] and list(losses) == ["loss", "loss_mask"]
    np.testing.assert_allclose(losses["loss"][[0, 29]], [9, np.mean([9 / step for step in range(21, 31)])])
    np.testing.assert_allclose(losses["loss_mask"], losses["loss"] * 5 / 9)
    np.testing.assert_allclose(rates["learning rate"], [1e-3 / step for step in range(1, 31)])
    for title, key in (("mIoU", "miou"), ("boundary IoU", "boundary_iou"), ("mean accuracy", "macc")):
        np.testing.assert_allclose(scores[title], [100 * result[key] for result in results])


def test_report_of_a_resumed_run_leaves_out_a_later_evaluation(tmp_path):
    make_run(tmp_path)
    write_training_report(tmp_path, step=30, result=make_result(0.5), recipe={"lr": 0.1})
    make_run(tmp_path, shares=(0.2, 0.8))  # the lines that a resumed run keeps
    write_training_report(tmp_path)
    assert headings(tmp_path) == ["Curves", "Labels over the run", "Recipe"]


def test_report_of_lines_of_an_older_version(tmp_path):
    """Those hold the three means only; nothing is known of labels."""
    (tmp_path / "losses.jsonl").write_text('{"step": 1, "loss": 2.0, "grad_norm": 1.0, "learning_rate": 0.1}\n')
    (tmp_path / "evaluations.jsonl").write_text('{"step": 1, "miou": 0.5, "macc": 0.6, "aacc": 0.7}\n')
    write_training_report(tmp_path)
    assert headings(tmp_path) == ["Curves"] and "50.00 %" in (tmp_path / "report.html").read_text()
    (tmp_path / "evaluations.jsonl").write_text("")
    (tmp_path / "losses.jsonl").write_text("")
    write_training_report(tmp_path)
    assert headings(tmp_path) == []


def test_report_where_no_score_is_defined(tmp_path):
    scores = StreamingScores(3)
    scores.update(np.zeros((2, 2), int), np.full((2, 2), 255), 0)
    result = describe_scores(scores, NAMES, QLSegImageProcessor(do_reduce_labels=False)) | {"unreadable": []}
    make_run(tmp_path, shares=())
    (tmp_path / "evaluations.jsonl").write_text(json.dumps({"step": 5} | evaluation_entry(result)) + "\n")
    write_training_report(tmp_path, step=5, result=result)
    assert "no pixel counts" in (tmp_path / "report.html").read_text()
    assert tracker_values(result) == {}


def test_values_for_trackers():
    result = make_result(0.8)
    values = tracker_values(result)
    assert values["eval/miou"] == result["miou"] and values["eval/boundary_f1"] == result["boundary_f1"]
    assert values["eval/iou/road"] == result["per_label"][0]["iou"]
    assert values["eval/iou/sky (1)"] == result["per_label"][1]["iou"] and "eval/iou/sky" not in values
    assert all(isinstance(value, float) for value in values.values())


@pytest.mark.parametrize("num_labels", [2, 10, 11, 150, 200])
def test_chart_of_labels(num_labels):
    """Every label leaves its colour; the first evaluation is worse than the second."""
    iou = np.stack([np.zeros(num_labels), np.ones(num_labels)])
    iou[:, 0] = np.nan
    image = np.asarray(draw_labels([10, 20], iou, [f"_{i}$x$" for i in range(num_labels)])).astype(int)
    assert image.shape[1] == 1080
    if num_labels > 10:
        yellow = (np.abs(image - [253, 231, 37]) < 4).all(axis=2)  # the upper end of viridis: the right half
        purple = (np.abs(image - [68, 1, 84]) < 4).all(axis=2)
        assert np.nonzero(yellow[:, :800])[1].min() > np.nonzero(purple[:, :800])[1].max() - 3
