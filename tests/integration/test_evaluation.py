"""Evaluation on one process and several, stopped and resumed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from evaluations import SIZES, evaluate_first, pretend_rank, strict, without_time
from PIL import Image
from programs import environment, read_pairs
from training_runs import is_running, wait_until

from qlseg_hf import load_label_map, load_picture, segment
from qlseg_hf.data.datasets import open_dataset
from qlseg_hf.evaluation import evaluator as evaluation_module
from qlseg_hf.evaluation.evaluator import evaluate_samples
from qlseg_hf.evaluation.metrics import confusion_counts, scores
from qlseg_hf.evaluation.state import remove_state, state_path

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.parametrize("stored", ["a"], indirect=True)]


def slow_scores(stored, references, **settings) -> dict:
    """The same by a plain loop."""
    counts, model = 0, stored.model()
    for path in sorted((references / "images/validation").iterdir()):
        labels = load_label_map(references / "annotations/validation" / path.name)
        labels = np.where(labels == 0, 255, labels - 1)
        counts = counts + confusion_counts(
            segment(model, stored.processor, path, **settings)[0], labels, num_labels=20
        )
    return scores(counts)


@pytest.mark.parametrize("others", [(2,), pytest.param((3,), marks=pytest.mark.slow)])
def test_any_number_of_processes_gives_one_result(server, stored, references, tmp_path, others):
    found = {}
    for n in (1, *others):
        arguments = [stored.folder, "--data", references, "--split", "val"]
        arguments += ["--output", tmp_path / f"{n}.json", "--report", tmp_path / f"report{n}"]
        done = server.complete("evaluate", *arguments, processes=n, expect=0)
        assert done.stdout.count("mIoU ") == 1 and done.stdout.count("\n") > 30  # of one process, all rows
        assert f"1 of {n} processes" in done.stderr or n == 1
        found[n] = strict(tmp_path / f"{n}.json")
        assert found[n]["num_pictures"] == 5 and found[n]["protocol"]["processes"] == n
        assert not list(tmp_path.glob("*.state*"))
    for n in others:
        assert without_time(found[n]) == without_time(found[1])
    expected = slow_scores(stored, references)
    assert 0.1 < expected["miou"] < 0.9
    for name in ("miou", "macc", "aacc"):
        assert found[1][name] == pytest.approx(expected[name], rel=1e-12)
    assert [row["pixels"] for row in found[1]["per_label"]] == expected["reference_pixels"]
    for row, iou in zip(found[1]["per_label"], expected["iou"]):
        assert row["iou"] == (None if np.isnan(iou) else pytest.approx(iou, rel=1e-12))
    low, high = found[1]["miou_interval"]
    assert low < high
    protocol = found[1]["protocol"]
    assert protocol["split"] == "validation" and protocol["size"] == {"shortest_edge": 96}
    assert protocol["window_size"] == 96 and protocol["window_stride"] == 64 and protocol["do_reduce_labels"] is True
    assert list(protocol["weights_sha256"]) == ["model.safetensors"] and protocol["versions"]["qlseg_hf"] == "0.1.0"
    check_ranking(stored, references, found[others[0]])
    pages = [(tmp_path / f"report{n}" / "report.html").read_text() for n in (1, *others)]
    images = [re.findall('data:image/jpeg[^"]*', page) for page in pages]
    assert len(images[0]) == 10 and all(shown == images[0] for shown in images)  # 5 predictions, 5 references
    tables = [(tmp_path / f"report{n}" / "per_label.csv").read_text() for n in (1, *others)]
    assert tables[0].count("\n") == 21 and all(table == tables[0] for table in tables)


def check_ranking(stored, references, result):
    model, worst = stored.model(), result["worst"]
    assert len(worst) == 5 and [entry["miou"] for entry in worst] == sorted(entry["miou"] for entry in worst)
    assert result["best"] == worst[::-1]
    for entry in worst:
        picture = load_picture(references / entry["name"])
        labels = load_label_map(references / entry["name"].replace("images", "annotations"))
        reference = np.where(labels == 0, 255, labels - 1)
        predicted = segment(model, stored.processor, picture)[0]
        assert entry["miou"] == pytest.approx(scores(confusion_counts(predicted, reference, 20))["miou"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [["torch.distributed.run", "--nproc-per-node", "3"], ["accelerate.commands.launch", "--cpu"]]
)
def test_launchers(stored, references, tmp_path, launcher):
    command = [sys.executable, "-m", *launcher, "-m", "qlseg_hf.cli.evaluate", stored.folder, "--data", references]
    command += ["--split", "val", "--scales", "0.5,1", "--flip", "--output", tmp_path / "out.json"]
    subprocess.run([*map(str, command)], env=environment(), check=True, timeout=900, capture_output=True)
    found = strict(tmp_path / "out.json")
    assert found["miou"] == pytest.approx(
        slow_scores(stored, references, scales=(0.5, 1), flip=True)["miou"], rel=1e-12
    )
    assert found["protocol"]["processes"] == (3 if "3" in launcher else 1)


def test_killed_and_resumed(server, stored, references, tmp_path):
    output, state = tmp_path / "out.json", tmp_path / "out.json.state.1-of-1"
    arguments = [stored.folder, "--data", references, "--split", "validation", "--output", output]
    # the real command, with a state after every picture and a pause that leaves time for the kill
    (tmp_path / "paused.py").write_text("""
import sys, time
from qlseg_hf.cli.main import run
from qlseg_hf.evaluation import evaluator as evaluation
evaluation.ROUND_SECONDS = 0
count = evaluation.count_for_a_round
def paused(mine, counted, *others):
    if counted.next_index == 2:
        time.sleep(300)
    return count(mine, counted, *others)
evaluation.count_for_a_round = paused
sys.exit(run(["evaluate", *sys.argv[1:]]))
""")
    pid = server.start(tmp_path / "log", tmp_path / "paused.py", *arguments)
    wait_until(lambda: (state.exists() and next_index(state) == 2) or not is_running(pid))
    os.killpg(pid, signal.SIGKILL)
    assert server.exit_code() == -signal.SIGKILL and not output.exists()
    # what was counted is not looked at again: without these two the rest would not give the result of all five
    reference = evaluate_samples(stored.model(), stored.processor, open_dataset(references, "val"), progress=False)
    for name in ("0.png", "1.png"):
        (references / "images/validation" / name).write_text("no picture")
    server.complete("evaluate", *arguments, expect=0)
    found = strict(output)
    for key in ("protocol", "worst", "best"):
        found.pop(key)
    assert without_time(found) == without_time(reference.result)
    assert not state.exists()


def next_index(state) -> int:
    from safetensors import safe_open

    with safe_open(state, framework="pt") as file:
        return json.loads(file.metadata()["evaluation"])["next_index"]


def test_one_failing_process_stops_all_with_one_sentence(server, stored, references, tmp_path):
    (references / "images/validation/1.png").write_text("no picture")  # process 1's first
    output = tmp_path / "out.json"
    arguments = [stored.folder, "--data", references, "--split", "val", "--output", output]
    done = server.complete("evaluate", *arguments, processes=2, expect=1)
    sentences = [line for line in done.stderr.splitlines() if line.startswith("qlseg evaluate: ")]
    assert len(sentences) == 1 and "images/validation/1.png" in sentences[0]
    assert "Traceback" not in done.stderr and not done.stdout and not output.exists()


def test_shares_of_processes_add_up(stored, references, monkeypatch):
    """What a process counts of its own pictures; here their number is told and nothing joins them."""
    samples, model, parts = open_dataset(references, "val"), stored.model(), []
    for rank in range(3):
        with monkeypatch.context() as patch:
            pretend_rank(patch, rank, 3)
            parts.append(evaluate_samples(model, stored.processor, samples, num_examples=9, progress=False))
    assert [part.result["num_pictures"] for part in parts] == [2, 2, 1]
    assert [sorted(index for _, index, _ in part.worst) for part in parts] == [[0, 3], [1, 4], [2]]
    whole = evaluate_samples(model, stored.processor, samples, num_examples=2, progress=False)
    assert whole.worst == sorted(entry for part in parts for entry in part.worst)[:2]


def test_resumed_after_an_error_and_from_a_part(stored, references, tmp_path, monkeypatch):
    samples, model, state = open_dataset(references, "val"), stored.model(), tmp_path / "state"
    settings = {"flip": True, "num_examples": 3, "progress": False}
    whole = evaluate_samples(model, stored.processor, samples, **settings)
    settings["state_file"] = state
    kept = shutil.copy(references / "annotations/validation/3.png", tmp_path / "kept.png")
    Image.fromarray(np.full(SIZES[3], 77, dtype=np.uint8)).save(references / "annotations/validation/3.png")
    evaluate_first(2, model, stored.processor, samples, **settings)
    assert next_index(state_path(state)) == 2
    with pytest.raises(ValueError, match=r"77 in 4096 pixels of 1 label maps; in images/validation/3\.png"):
        evaluate_samples(model, stored.processor, samples, **settings)
    assert next_index(state_path(state)) == 3  # picture 2 was counted before the error
    shutil.copy(kept, references / "annotations/validation/3.png")
    resumed = evaluate_samples(model, stored.processor, samples, **settings)
    assert without_time(resumed.result) == without_time(whole.result) and resumed.worst == whole.worst
    monkeypatch.setattr(evaluation_module, "segment", None)  # all is done: nothing is predicted again
    again = evaluate_samples(model, stored.processor, samples, **settings)
    assert again.result == resumed.result
    remove_state(state)
    assert not list(tmp_path.glob("state*"))


def test_state_of_another_protocol_is_refused(stored, references, tmp_path):
    samples, model, state = open_dataset(references, "val"), stored.model(), tmp_path / "state"
    settings = {"state_file": state, "progress": False}
    evaluate_first(1, model, stored.processor, samples, **settings)
    other = stored.model()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    threshold = stored.model()
    threshold.config.mask_threshold = 0.1
    stride = type(stored.processor).from_pretrained(stored.folder, window_stride=32)
    (references / "images/fewer").mkdir()
    (references / "annotations/fewer").mkdir()
    for part in ("images", "annotations"):
        shutil.copy(references / part / "validation/0.png", references / part / "fewer/0.png")
    changes = [
        ("model", {"model": other}),
        ("configuration of the model", {"model": threshold}),
        ("processor", {"processor": stride}),
        ("data set", {"samples": open_dataset(references, "fewer")}),
        ("scales", {"scales": (0.5, 1)}),
        ("flip", {"flip": True}),
        ("number of examples", {"num_examples": 1}),
    ]
    for name, change in changes:
        given = {"model": model, "processor": stored.processor, "samples": samples} | settings | change
        with pytest.raises(ValueError, match=f"unfinished evaluation with another {name}"):
            evaluate_samples(**given)
    state_path(state).write_bytes(b"half a file")
    with pytest.raises(ValueError, match="is no state of an evaluation"):
        evaluate_samples(model, stored.processor, samples, **settings)


def test_stream_equals_table(stored, references, tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()})
    table = datasets.Dataset.from_dict(read_pairs(references, "validation"), features)
    datasets.DatasetDict({"validation": table}).save_to_disk(tmp_path / "saved")
    model = stored.model()
    expected = evaluate_samples(model, stored.processor, open_dataset(references, "val"), progress=False).result
    for streaming in (False, True):
        samples = open_dataset(tmp_path / "saved", "val", streaming=streaming)
        given = {"progress": False, "state_file": tmp_path / f"state{streaming}"}
        evaluate_first(2, model, stored.processor, samples, **given)
        samples = open_dataset(tmp_path / "saved", "val", streaming=streaming)  # as another run opens it
        found = evaluate_samples(model, stored.processor, samples, **given).result
        assert without_time(found) == without_time(expected)


def test_undefined_scores_are_none(stored, references):
    for path in (references / "annotations/validation").iterdir():
        Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)
    samples = open_dataset(references, "val")
    found = evaluate_samples(stored.model(), stored.processor, samples, num_examples=3, progress=False)
    json.dumps(found.result, allow_nan=False)
    assert found.result["miou"] is None and found.result["miou_interval"] == [None, None] and found.worst == []
    assert found.result["per_label"][3] == {
        **{"label": "class 3", "iou": None, "accuracy": None, "boundary_iou": None, "boundary_f1": None},
        **{"pixels": 0, "predicted_pixels": 0},
    }


def test_arguments_and_empty_data_are_refused(stored, references, monkeypatch):
    model, samples = stored.model(), open_dataset(references, "val")
    for given, sentence in (
        ({"num_examples": -1}, "num_examples is -1"),
        ({"scales": ()}, "scales must be positive"),
    ):
        with pytest.raises(ValueError, match=sentence):
            evaluate_samples(model, stored.processor, samples, progress=False, **given)
    pretend_rank(monkeypatch, 5, 6)
    with pytest.raises(ValueError, match="there is no picture to evaluate"):
        evaluate_samples(model, stored.processor, samples, progress=False)
