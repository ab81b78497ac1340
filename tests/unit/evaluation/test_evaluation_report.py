"""The page of an evaluation, its table of labels and its JSON."""

import csv
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from networks import tiny_config
from PIL import Image

from qlseg_hf.data.datasets import FolderSamples
from qlseg_hf.evaluation.evaluator import describe_scores, never_predicted_warnings
from qlseg_hf.evaluation.examples import Example, Examples
from qlseg_hf.evaluation.metrics import StreamingScores
from qlseg_hf.evaluation.report import draw_confusion, label_csv, most_confused, to_json, write_evaluation_report
from qlseg_hf.evaluation.state import Progress, protocol_of_state, rank_pictures
from qlseg_hf.model.image_processing_qlseg import QLSegImageProcessor

NAMES = ["<b>road</b>", "sky, and\nclouds", "$x_1$ tree", "boat"]


def make_result(names=NAMES) -> dict:
    """`Evaluation.result`: sky is taken for tree and never predicted, boat occurs nowhere."""
    scores = StreamingScores(4)
    reference = np.repeat([[0, 1, 2]], 4, axis=0).repeat(4, axis=1)  # 4 x 12
    scores.update(np.where(reference == 1, 2, reference), reference, 0)
    result = describe_scores(scores, list(names), QLSegImageProcessor(do_reduce_labels=False))
    return result | {"unreadable": ["images/torn.png"], "seconds": 1.0, "pictures_per_second": 1.0}


def make_example(name="a/1.png", miou=0.25, index=1) -> Example:
    images = [Image.new("RGB", (12, 8), color) for color in ("red", "blue")]
    return Example(miou, index, name, images[0], images[1], [("<sky>", "#0102fe")])


def test_result():
    result = make_result()
    assert result["confusion"] == [[16, 0, 0, 0], [0, 0, 16, 0], [0, 0, 16, 0], [0, 0, 0, 0]]
    assert result["never_predicted"] == [NAMES[1]] and result["per_label"][3]["iou"] is None
    assert result["warnings"] == never_predicted_warnings([NAMES[1]]) and repr(NAMES[1]) in result["warnings"][0]
    assert [row["predicted_pixels"] for row in result["per_label"]] == [16, 0, 32, 0]
    assert result["boundary_iou"] == np.mean([row["boundary_iou"] for row in result["per_label"][:3]])
    assert never_predicted_warnings([]) == []
    ignoring = describe_scores(StreamingScores(4, 2), list(NAMES), QLSegImageProcessor(ignore_index=2))
    assert f"ignore_index 2 is also a label, {NAMES[2]!r}, whose pixels did not count" in ignoring["warnings"][-1]
    (text,) = never_predicted_warnings([f"n{i}" for i in range(7)])
    assert text.startswith("7 labels of the references are never predicted: 'n0', 'n1', 'n2', 'n3', 'n4' and 2 more;")


def test_page(tmp_path):
    examples = Examples([make_example("<i>bad</i>.png")], [make_example("good.png", 1.0, 2)])
    write_evaluation_report(
        tmp_path / "r.html", make_result(), examples=examples, protocol={"split": "<u>", "scales": [1]}, title="<s>"
    )
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert not re.search("<(b|i|u|s|sky)>", text) and "&lt;b&gt;road&lt;/b&gt;" in text and "sky, and clouds" in text
    assert not re.search(r"(src|href)=.(?!data:)", text) and "http" not in text and "url(" not in text
    assert re.findall("<h2>(.*?)</h2>", text) == [
        *("Warnings", "Labels", "Confusion"),
        *("Worst images, by their own mIoU", "Best images, by their own mIoU", "Protocol"),
    ]
    assert text.count("<figcaption>prediction</figcaption>") == text.count("<figcaption>reference</figcaption>") == 2
    assert "1. &lt;i&gt;bad&lt;/i&gt;.png: mIoU 25.0 %" in text and "background: #0102fe" in text
    assert "never predicted" in text and "images/torn.png" in text and "[1]" in text
    assert "<dt>mIoU</dt><dd>50.00 %</dd>" in text  # (1 + 0 + 1/2) / 3


def test_page_of_nothing(tmp_path):
    """All references are ignored: no score is defined and there is no confusion."""
    scores = StreamingScores(4)
    scores.update(np.zeros((3, 3), int), np.full((3, 3), 255), 0)
    result = describe_scores(scores, NAMES, QLSegImageProcessor(do_reduce_labels=False)) | {"unreadable": []}
    write_evaluation_report(tmp_path / "r.html", result, examples=Examples([], []))
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert re.findall("<h2>(.*?)</h2>", text) == ["Warnings", "Labels"] and "<dd>-</dd>" in text and "nan" not in text


def test_most_confused():
    counts = np.array([[5, 3, 0], [9, 1, 0], [0, 2, 8]])
    assert most_confused(counts, ["a", "b", "c"]) == [("b", "a", 9, 0.9), ("a", "b", 3, 3 / 8), ("c", "b", 2, 0.2)]
    assert most_confused(counts, ["a", "b", "c"], 1) == [("b", "a", 9, 0.9)]
    assert most_confused(np.eye(3, dtype=int), ["a", "b", "c"]) == []


@pytest.mark.parametrize("num_labels", [2, 20, 61, 150])
def test_confusion_is_drawn_row_by_row(num_labels):
    """Two references of one prediction: shares of a row are those of its reference, so both are 1 and dark."""
    counts = np.zeros((num_labels, num_labels), dtype=int)
    counts[0, -1], counts[1, -1] = 7, 21
    image = np.asarray(draw_confusion(counts, [f"$n_{i}" for i in range(num_labels)])).astype(int)
    rows, columns = np.nonzero((image[..., 2] > 90) & (image[..., 0] < 30))  # the dark blue of a share of 1
    assert columns.min() > image.shape[1] / 2 and (rows.max() < image.shape[0] / 2 or num_labels == 2)
    height = np.ptp(rows) + 1
    dark = np.bincount(rows - rows.min())
    assert dark[: height // 2].sum() == pytest.approx(dark[height // 2 :].sum(), rel=0.35)  # numbers are in them


def test_table_of_labels():
    rows = list(csv.reader(io.StringIO(label_csv([(None, make_result())]).decode())))
    assert rows[0] == ["label", "iou", "accuracy", "boundary_iou", "boundary_f1", "pixels", "predicted_pixels"]
    assert [row[0] for row in rows[1:]] == NAMES and rows[1][1] == "1.0" and rows[4] == [NAMES[3], *[""] * 4, "0", "0"]
    rows = list(csv.reader(io.StringIO(label_csv([(5, make_result()), (9, make_result())]).decode())))
    assert rows[0][:2] == ["step", "label"] and [row[0] for row in rows[1:]] == ["5"] * 4 + ["9"] * 4


def test_json_has_a_line_per_row_of_the_confusions():
    result = make_result(['"confusion": []', *NAMES[1:]]) | {"protocol": {"confusion": []}, "é": "not UTF-8: \udc80"}
    text = to_json(result)
    assert json.loads(text) == result and b"\n    [0, 0, 16, 0],\n" in text


def test_examples_survive_json():
    example = make_example()
    again = Example.from_json(json.loads(json.dumps(example.to_json())))
    assert (again.miou, again.index, again.name, again.legend) == (0.25, 1, "a/1.png", [("<sky>", "#0102fe")])
    for kind in ("prediction", "reference"):
        found, expected = (np.asarray(getattr(e, kind)).astype(int) for e in (again, example))
        assert np.abs(found - expected).max() < 6


def test_ranking():
    pictures = [(0.5, 0, "a"), (0.1, 1, "b"), (0.5, 2, "c"), (0.9, 3, "d"), (0.1, 4, "e")]
    worst, best = rank_pictures([*pictures, *pictures], 3)
    assert [index for _, index, _ in worst] == [1, 4, 0] and [index for _, index, _ in best] == [3, 0, 2]
    counted = Progress(StreamingScores(2), 1)
    for index, share in enumerate((2, 4, 1, 3)):
        predicted = torch.tensor([[0] * share + [1] * (4 - share)])
        counted.add(predicted, torch.zeros(1, 4, dtype=torch.long), index, f"{index}.png")
    assert counted.worst == [(1 / 8, 2, "2.png")] and counted.best == [(1.0, 1, "1.png")]


def test_state_of_another_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("qlseg_hf.evaluation.state.VERSION", 1)
    Progress(StreamingScores(2), 1).write(tmp_path / "x.state", {})
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"x\.state is of another version .*\(1, 2 is wanted\).*delete it"):
        Progress(StreamingScores(2), 1).read(tmp_path / "x.state", {})


def test_state_of_a_file_is_of_the_precision_that_it_is_computed_in():
    """OpenVINO computes one file in fp32 or bf16, and neither the file nor its weights tell which."""
    files = {"files": [], "config": tiny_config(), "dtype": torch.float32}
    samples = FolderSamples(Path("nowhere"), [], "validation", None)
    kinds = [
        protocol_of_state(SimpleNamespace(**files, precision=kind), QLSegImageProcessor(), samples, [1.0], False, 1)
        for kind in ("f32", "bf16")
    ]
    assert {key for key in kinds[0] if kinds[0][key] != kinds[1][key]} == {"precision"}
