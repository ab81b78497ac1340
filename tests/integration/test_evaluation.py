"""Evaluation on one process and several, stopped and resumed, and its script as a user runs it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from qlseg_hf import load_label_map, load_picture, segment
from qlseg_hf.cli.main import run
from qlseg_hf.data.datasets import open_dataset
from qlseg_hf.evaluation import evaluator as evaluation_module
from qlseg_hf.evaluation.evaluator import evaluate_samples
from qlseg_hf.evaluation.metrics import confusion_counts, scores
from qlseg_hf.evaluation.state import remove_state, state_path
from qlseg_hf.hub.card import measured_line

SUM_COUNTS = evaluation_module.sum_counts
SCRIPT = ["-m", "qlseg_hf.cli.evaluate"]
SIZES = [(70, 110), (80, 102), (97, 95), (64, 64), (110, 71)]  # of 5 pictures, which neither 2 nor 3 divide
one_network = pytest.mark.parametrize("stored", ["a"], indirect=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the script's processes: the number of threads changes rounding. Busy cores are quicker with it, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made_folder(one_thread, stored, tmp_path_factory):
    """Five pictures laid out like ADE20K; references are what the network sees, with a band that differs."""
    root = tmp_path_factory.mktemp("ade20k")
    source, model = load_picture(stored.picture("large")), stored.model()
    for i, (height, width) in enumerate(SIZES):
        picture = np.ascontiguousarray(source[40 * i : 40 * i + height, 20 * i : 20 * i + width])
        labels = segment(model, stored.processor, picture)[0].numpy() + 1  # 0 is void
        labels[: 12 * (i + 1)] = np.arange(width) // 5 % 21
        for part, array in (("images", picture), ("annotations", labels.astype(np.uint8))):
            (root / part / "validation").mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / part / "validation" / f"{i}.png")
    return root


@pytest.fixture
def folder(made_folder, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(made_folder, tmp_path / "data")


def slow_scores(stored, folder, **settings) -> dict:
    """The same by a plain loop."""
    counts, model = 0, stored.model()
    for path in sorted((folder / "images/validation").iterdir()):
        labels = load_label_map(folder / "annotations/validation" / path.name)
        labels = np.where(labels == 0, 255, labels - 1)
        counts = counts + confusion_counts(
            segment(model, stored.processor, path, **settings)[0], labels, num_labels=20
        )
    return scores(counts)


def launch(num_processes: int, *arguments, code: str | None = None) -> list[subprocess.Popen]:
    """Start the script once per process, with the environment that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if num_processes > 1:
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
        shared |= {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes)}
    processes = []
    for rank in range(num_processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if num_processes > 1 else {}
        start = [sys.executable, *SCRIPT] if code is None else [sys.executable, "-c", code]
        processes.append(
            subprocess.Popen(
                [*start, *map(str, arguments)],
                env=os.environ | shared | own,
                cwd=ROOT,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    return processes


def finish(processes: list[subprocess.Popen], expect: int = 0) -> list[tuple[str, str]]:
    """(stdout, stderr) of each process; none may hang."""
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [expect] * len(processes), outputs
    return outputs


def strict(path) -> dict:
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def without_time(result: dict) -> dict:
    result = {k: v for k, v in result.items() if k not in ("seconds", "pictures_per_second")}
    if "protocol" in result:
        result["protocol"] = {k: v for k, v in result["protocol"].items() if k != "processes"}
    return result


@one_network
@pytest.mark.parametrize("others", [(2,), pytest.param((3,), marks=pytest.mark.slow)])
def test_any_number_of_processes_gives_one_result(stored, folder, tmp_path, others):
    found = {}
    for n in (1, *others):
        arguments = [stored.folder, "--data", folder, "--split", "val"]
        arguments += ["--output", tmp_path / f"{n}.json", "--report", tmp_path / f"report{n}"]
        outputs = finish(launch(n, *arguments))
        assert "mIoU" in outputs[0][0] and all(not stdout for stdout, _ in outputs[1:])
        assert f"1 of {n} processes" in outputs[0][1] or n == 1
        found[n] = strict(tmp_path / f"{n}.json")
        assert found[n]["num_pictures"] == 5 and found[n]["protocol"]["processes"] == n
        assert not list(tmp_path.glob("*.state*"))
    for n in others:
        assert without_time(found[n]) == without_time(found[1])
    expected = slow_scores(stored, folder)
    assert 0.1 < expected["miou"] < 0.9
    for name in ("miou", "macc", "aacc"):
        assert found[1][name] == pytest.approx(expected[name], rel=1e-12)
    assert [row["pixels"] for row in found[1]["per_label"]] == expected["reference_pixels"]
    for row, iou in zip(found[1]["per_label"], expected["iou"]):
        assert row["iou"] == (None if np.isnan(iou) else pytest.approx(iou, rel=1e-12))
    low, high = found[1]["miou_interval"]
    assert low < high and outputs[0][0].count("\n") > 30  # a row per label, and the protocol
    protocol = found[1]["protocol"]
    assert protocol["split"] == "validation" and protocol["size"] == {"shortest_edge": 96}
    assert protocol["window_size"] == 96 and protocol["window_stride"] == 64 and protocol["do_reduce_labels"] is True
    assert list(protocol["weights_sha256"]) == ["model.safetensors"] and protocol["versions"]["qlseg_hf"] == "0.1.0"
    check_ranking(stored, folder, found[others[0]])
    pages = [(tmp_path / f"report{n}" / "report.html").read_text() for n in (1, *others)]
    images = [re.findall('data:image/jpeg[^"]*', page) for page in pages]
    assert len(images[0]) == 10 and all(shown == images[0] for shown in images)  # 5 predictions, 5 references
    tables = [(tmp_path / f"report{n}" / "per_label.csv").read_text() for n in (1, *others)]
    assert tables[0].count("\n") == 21 and all(table == tables[0] for table in tables)


def check_ranking(stored, folder, result):
    model, worst = stored.model(), result["worst"]
    assert len(worst) == 5 and [entry["miou"] for entry in worst] == sorted(entry["miou"] for entry in worst)
    assert result["best"] == worst[::-1]
    for entry in worst:
        picture = load_picture(folder / entry["name"])
        labels = load_label_map(folder / entry["name"].replace("images", "annotations"))
        reference = np.where(labels == 0, 255, labels - 1)
        predicted = segment(model, stored.processor, picture)[0]
        assert entry["miou"] == pytest.approx(scores(confusion_counts(predicted, reference, 20))["miou"])


@one_network
@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [["torch.distributed.run", "--nproc-per-node", "3"], ["accelerate.commands.launch", "--cpu"]]
)
def test_launchers(stored, folder, tmp_path, launcher):
    command = [sys.executable, "-m", *launcher, *SCRIPT, stored.folder, "--data", folder]
    command += ["--split", "val", "--scales", "0.5,1", "--flip", "--output", tmp_path / "out.json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*map(str, command)], env=environment, check=True, timeout=300, capture_output=True)
    found = strict(tmp_path / "out.json")
    assert found["miou"] == pytest.approx(slow_scores(stored, folder, scales=(0.5, 1), flip=True)["miou"], rel=1e-12)
    assert found["protocol"]["processes"] == (3 if "3" in launcher else 1)


@one_network
def test_killed_and_resumed(stored, folder, tmp_path):
    output = tmp_path / "out.json"
    arguments = [stored.folder, "--data", folder, "--split", "validation", "--output", output]
    # the real script, with a state after every picture and a pause that leaves time for the kill
    code = """
import runpy, sys, time
from qlseg_hf.evaluation import evaluator as evaluation
evaluation.ROUND_SECONDS = 0
count = evaluation.count_for_a_round
def paused(mine, counted, *others):
    if counted.next_index == 2:
        time.sleep(300)
    return count(mine, counted, *others)
evaluation.count_for_a_round = paused
runpy.run_module("qlseg_hf.cli.evaluate", run_name="__main__")
"""
    process = launch(1, *arguments, code=code)[0]
    state = tmp_path / "out.json.state.1-of-1"
    try:
        deadline = time.monotonic() + 100
        while not (state.exists() and next_index(state) == 2):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not output.exists()
    # what was counted is not looked at again: without these two the rest would not give the result of all five
    reference = evaluate_samples(stored.model(), stored.processor, open_dataset(folder, "val"), progress=False)
    for name in ("0.png", "1.png"):
        (folder / "images/validation" / name).write_text("no picture")
    finish(launch(1, *arguments))
    found = strict(output)
    for key in ("protocol", "worst", "best"):
        found.pop(key)
    assert without_time(found) == without_time(reference.result)
    assert not state.exists()


def next_index(state) -> int:
    from safetensors import safe_open

    with safe_open(state, framework="pt") as file:
        return json.loads(file.metadata()["evaluation"])["next_index"]


@one_network
def test_one_failing_process_stops_all_with_one_sentence(stored, folder, tmp_path):
    (folder / "images/validation/1.png").write_text("no picture")  # process 1's first
    output = tmp_path / "out.json"
    arguments = [stored.folder, "--data", folder, "--split", "val", "--output", output]
    outputs = finish(launch(2, *arguments), expect=1)
    sentences = [line for _, stderr in outputs for line in stderr.splitlines() if line.startswith("qlseg evaluate: ")]
    assert len(sentences) == 1 and "images/validation/1.png" in sentences[0]
    assert not any("Traceback" in stderr or stdout for stdout, stderr in outputs) and not output.exists()


def pretend_rank(patch, rank: int, world_size: int) -> None:
    """One of several processes that share the pictures, without a group that would join what they counted."""
    patch.setattr(evaluation_module, "process_place", lambda: (rank, world_size))
    patch.setattr(evaluation_module, "sum_counts", lambda *given: SUM_COUNTS(*given[:3], 1))


@one_network
def test_shares_of_processes_add_up(stored, folder, monkeypatch):
    """What a process counts of its own pictures; here their number is told and nothing joins them."""
    samples, model, parts = open_dataset(folder, "val"), stored.model(), []
    for rank in range(3):
        with monkeypatch.context() as patch:
            pretend_rank(patch, rank, 3)
            parts.append(evaluate_samples(model, stored.processor, samples, num_examples=9, progress=False))
    assert [part.result["num_pictures"] for part in parts] == [2, 2, 1]
    assert [sorted(index for _, index, _ in part.worst) for part in parts] == [[0, 3], [1, 4], [2]]
    whole = evaluate_samples(model, stored.processor, samples, num_examples=2, progress=False)
    assert whole.worst == sorted(entry for part in parts for entry in part.worst)[:2]
    first = evaluate_samples(model, stored.processor, samples, max_samples=1, num_examples=1, progress=False)
    assert first.result["num_pictures"] == 1 and first.result["miou"] == first.worst[0][0]


@one_network
def test_resumed_after_an_error_and_from_a_part(stored, folder, tmp_path, monkeypatch):
    samples, model, state = open_dataset(folder, "val"), stored.model(), tmp_path / "state"
    settings = {"flip": True, "num_examples": 3, "progress": False}
    whole = evaluate_samples(model, stored.processor, samples, **settings)
    settings["state_file"] = state
    kept = shutil.copy(folder / "annotations/validation/3.png", tmp_path / "kept.png")
    Image.fromarray(np.full(SIZES[3], 77, dtype=np.uint8)).save(folder / "annotations/validation/3.png")
    evaluate_samples(model, stored.processor, samples, **settings, max_samples=2)
    assert next_index(state_path(state)) == 2
    with pytest.raises(ValueError, match="already counted picture 2, but max_samples is 1"):
        evaluate_samples(model, stored.processor, samples, **settings, max_samples=1)
    with pytest.raises(ValueError, match=r"77 in 4096 pixels of 1 label maps; in images/validation/3\.png"):
        evaluate_samples(model, stored.processor, samples, **settings)
    assert next_index(state_path(state)) == 3  # picture 2 was counted before the error
    shutil.copy(kept, folder / "annotations/validation/3.png")
    resumed = evaluate_samples(model, stored.processor, samples, **settings)
    assert without_time(resumed.result) == without_time(whole.result) and resumed.worst == whole.worst
    monkeypatch.setattr(evaluation_module, "segment", None)  # all is done: nothing is predicted again
    again = evaluate_samples(model, stored.processor, samples, **settings)
    assert again.result == resumed.result
    remove_state(state)
    assert not list(tmp_path.glob("state*"))


@one_network
def test_state_of_another_protocol_is_refused(stored, folder, tmp_path):
    samples, model, state = open_dataset(folder, "val"), stored.model(), tmp_path / "state"
    settings = {"state_file": state, "progress": False, "max_samples": 1}
    evaluate_samples(model, stored.processor, samples, **settings)
    other = stored.model()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    stride = type(stored.processor).from_pretrained(stored.folder, window_stride=32)
    (folder / "images/fewer").mkdir()
    (folder / "annotations/fewer").mkdir()
    for part in ("images", "annotations"):
        shutil.copy(folder / part / "validation/0.png", folder / part / "fewer/0.png")
    changes = [
        ("model", {"model": other}),
        ("processor", {"processor": stride}),
        ("data set", {"samples": open_dataset(folder, "fewer")}),
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


@one_network
def test_stream_equals_table(stored, folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = [sorted((folder / part / "validation").iterdir()) for part in ("images", "annotations")]
    table = datasets.Dataset.from_dict({"image": [*map(str, rows[0])], "label": [*map(str, rows[1])]})
    table = table.cast_column("image", datasets.Image()).cast_column("label", datasets.Image())
    datasets.DatasetDict({"validation": table}).save_to_disk(tmp_path / "saved")
    model = stored.model()
    expected = evaluate_samples(model, stored.processor, open_dataset(folder, "val"), progress=False).result
    for streaming in (False, True):
        samples = open_dataset(tmp_path / "saved", "val", streaming=streaming)
        given = {"progress": False, "state_file": tmp_path / f"state{streaming}"}
        evaluate_samples(model, stored.processor, samples, max_samples=2, **given)
        samples = open_dataset(tmp_path / "saved", "val", streaming=streaming)  # as another run opens it
        found = evaluate_samples(model, stored.processor, samples, **given).result
        assert without_time(found) == without_time(expected)


@one_network
def test_undefined_scores_are_none(stored, folder):
    for path in (folder / "annotations/validation").iterdir():
        Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)
    samples = open_dataset(folder, "val")
    found = evaluate_samples(stored.model(), stored.processor, samples, num_examples=3, progress=False)
    json.dumps(found.result, allow_nan=False)
    assert found.result["miou"] is None and found.result["miou_interval"] == [None, None] and found.worst == []
    assert found.result["per_label"][3] == {
        **{"label": "class 3", "iou": None, "accuracy": None, "boundary_iou": None, "boundary_f1": None},
        **{"pixels": 0, "predicted_pixels": 0},
    }


@one_network
def test_arguments_and_empty_data_are_refused(stored, folder, monkeypatch):
    model, samples = stored.model(), open_dataset(folder, "val")
    for given, sentence in (
        ({"max_samples": 0}, "max_samples is 0"),
        ({"num_examples": -1}, "num_examples -1"),
        ({"scales": ()}, "scales must be positive"),
    ):
        with pytest.raises(ValueError, match=sentence):
            evaluate_samples(model, stored.processor, samples, progress=False, **given)
    pretend_rank(monkeypatch, 5, 6)
    with pytest.raises(ValueError, match="there is no picture to evaluate"):
        evaluate_samples(model, stored.processor, samples, progress=False)


@pytest.fixture
def script(capsys):
    """Run `qlseg evaluate` in this process: (exit status, stdout, stderr)."""

    def run_here(*arguments):
        return run(["evaluate", *arguments]), *capsys.readouterr()

    return run_here


@one_network
def test_label_rules_from_the_command_line(stored, folder, tmp_path, script):
    basic = [stored.folder, "--data", folder, "--split", "val", "--output", tmp_path / "out.json"]
    assert script(*basic)[0] == 0
    expected = strict(tmp_path / "out.json")
    for path in (folder / "annotations/validation").iterdir():  # 0..19, void 200, and 100 for label 0
        labels = np.asarray(Image.open(path)).astype(np.int64)
        Image.fromarray(np.select([labels == 0, labels == 1], [200, 100], labels - 1).astype(np.uint8)).save(path)
    (tmp_path / "map.json").write_text('{"100": 0}')
    rules = ["--do_reduce_labels", "false", "--ignore_index", "200", "--label_map", tmp_path / "map.json"]
    status, stdout, _ = script(*basic, *rules, "--dtype", "float32", "--window_batch_size", "2")
    found = strict(tmp_path / "out.json")
    assert status == 0 and found["miou"] == expected["miou"] and found["per_label"] == expected["per_label"]
    assert f"mIoU {100 * expected['miou']:6.2f} %" in stdout
    protocol = found["protocol"]
    assert protocol["do_reduce_labels"] is False and protocol["ignore_index"] == 200
    assert protocol["label_map"] == {"100": 0}
    status, _, stderr = script(*basic, *rules[:4])
    assert status == 1 and "100 in " in stderr and "label_map: {100: 200}" in stderr


@one_network
def test_scores_that_mean_nothing_are_told(stored, folder, tmp_path, script):
    """Labels from 0 on a model that reduces labels; one label; and files that belong to no picture."""
    basic = [stored.folder, "--data", folder, "--split", "val", "--output", tmp_path / "out.json"]
    status, stdout, stderr = script(*basic)
    found = strict(tmp_path / "out.json")
    assert status == 0 and "warning" not in stderr and stdout.count("warning") == len(found["warnings"]) == 1
    assert "12 labels of the references are never predicted: 'class 3', 'class 4', " in stdout
    rows = {row["label"]: row for row in found["per_label"]}
    assert len(found["never_predicted"]) == 12 and rows["class 3"]["pixels"] > rows["class 3"]["predicted_pixels"] == 0
    assert np.array(found["confusion"]).sum(axis=0).tolist() == [row["predicted_pixels"] for row in rows.values()]
    (folder / "images/validation/about.gif").write_bytes(b"")
    model = stored.model()
    for path in sorted((folder / "images/validation").glob("*.png")):
        label_map = segment(model, stored.processor, path)[0].numpy().astype(np.uint8)
        Image.fromarray(label_map).save(folder / "annotations/validation" / path.name)
    status, stdout, stderr = script(*basic)
    warning = "the label after that of the reference, so references seem to be shifted by one; do_reduce_labels: false"
    assert status == 0 and warning in stdout and warning in strict(tmp_path / "out.json")["warnings"][0]
    assert "warning: 1 files in " in stderr and "not of a kind that is read" in stderr and ": about.gif\n" in stderr
    assert "shifted" not in script(*basic, "--do_reduce_labels", "false")[1]
    for path in (folder / "annotations/validation").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 3)).save(path)
    model = shutil.copytree(stored.folder, tmp_path / "model")
    before = (model / "README.md").read_text()
    status, stdout, _ = script(model, *basic[1:], "--card")
    assert status == 0 and "warning: only one label occurs, 'class 2', so every answer is right" in stdout
    assert (
        "\nthe card is left as it was, because of the warnings\n" in stdout
        and (model / "README.md").read_text() == before
    )


@one_network
def test_smoothed_references(stored, folder, tmp_path, script):
    for path in (folder / "annotations/validation").iterdir():
        blocks = np.kron(np.array([[0, 255], [255, 0]]), np.ones(np.array(Image.open(path).size)[::-1] // 2 + 1))
        size = Image.open(path).size
        picture = Image.fromarray(blocks.astype(np.uint8)).resize((size[0] // 2, size[1] // 2))
        picture.resize(size, Image.Resampling.BILINEAR).save(path)
    status, _, stderr = script(stored.folder, "--data", folder, "--split", "val")
    assert status == 1 and "They lie along edges, as JPEG compression or smoothing" in stderr


@one_network
def test_wrong_input_is_one_sentence(stored, folder, tmp_path, script):
    (tmp_path / "map.json").write_text("[1]")
    basic = {"--data": folder, "--split": "val", "--output": tmp_path / "out" / "o.json"}
    (tmp_path / "out").mkdir()
    for change, sentence in (
        ({"model": tmp_path / "none"}, "none"),
        ({"--data": tmp_path / "none"}, "is no folder"),
        ({"--split": "holdout"}, "has no split 'holdout'; it has validation"),
        ({"--label_map": tmp_path / "map.json"}, 'must be JSON like {"255": 1}'),
        ({"--label_map": tmp_path / "none.json"}, "No such file"),
        ({"--output": tmp_path}, "must be a file in a folder that exists"),
        ({"--output": tmp_path / "none" / "o.json"}, "must be a file in a folder that exists"),
        ({"--report": tmp_path / "map.json"}, "is a file; give a folder, or a file that ends with .html"),
        ({"--report": tmp_path / "none" / "r.html"}, "must be a file in a folder that exists, or a folder"),
        ({"--image_column": "image"}, "columns do not apply"),
        ({"--max_samples": 0}, "max_samples is 0"),
        ({"--do_reduce_labels": "false"}, "set do_reduce_labels: true"),
        ({"--ignore_index": 0}, "ignore_index cannot be 0"),
        ({"--scales": "-1"}, "scales must be positive"),
    ):
        model = change.pop("model", stored.folder)
        arguments = [model, *(text for pair in (basic | change).items() for text in pair)]
        status, stdout, stderr = script(*arguments)
        lines = [line for line in stderr.splitlines() if line.startswith("qlseg evaluate: ")]
        assert status == 1 and len(lines) == 1 and sentence in lines[0], (change, stderr)
        assert "Traceback" not in stderr and not stdout and not list((tmp_path / "out").glob("*.json"))


@one_network
def test_state_on_the_command_line(stored, folder, tmp_path, script):
    basic = [stored.folder, "--data", folder, "--split", "val", "--output", tmp_path / "out.json"]
    (folder / "images/validation/4.png").rename(tmp_path / "kept.png")
    (folder / "images/validation/4.png").write_text("no picture")
    assert script(*basic)[0] == 1
    (tmp_path / "kept.png").rename(folder / "images/validation/4.png")
    status, _, stderr = script(*basic, "--flip")
    assert status == 1 and "unfinished evaluation with another flip" in stderr
    assert (tmp_path / "out.json.state.1-of-1").exists()
    assert script(*basic, "--flip", "--resume", "false")[0] == 0
    assert strict(tmp_path / "out.json")["protocol"]["flip"] is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out.json"]


@one_network
def test_unreadable_picture_is_refused_or_told(stored, folder, tmp_path, script, monkeypatch):
    """Never dropped without a word: an error that names it, or its name beside the scores of the others."""
    basic = [stored.folder, "--data", folder, "--split", "val", "--output", tmp_path / "out.json"]
    picture, label_map = folder / "images/validation/2.png", folder / "annotations/validation/2.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[: len(whole) // 2])
    status, _, stderr = script(*basic)
    assert status == 1 and "images/validation/2.png: picture: " in stderr and not (tmp_path / "out.json").exists()
    status, stdout, _ = script(*basic, "--skip_unreadable")  # goes on from what the refused one has counted
    told = strict(tmp_path / "out.json")
    assert status == 0 and "not counted, because they cannot be read: 1 pictures, images/validation/2.png" in stdout
    assert told["unreadable"] == ["images/validation/2.png"] and told["num_pictures"] == 4
    assert "1 more that cannot be read not counted" in measured_line(told)
    samples, model = open_dataset(folder, "val"), stored.model()
    settings = {"skip_unreadable": True, "progress": False}
    parts = []
    for rank in range(2):
        with monkeypatch.context() as patch:
            pretend_rank(patch, rank, 2)
            parts.append(evaluate_samples(model, stored.processor, samples, **settings).result)
    assert [(part["num_pictures"], part["unreadable"]) for part in parts] == [(2, told["unreadable"]), (2, [])]

    settings |= {"state_file": tmp_path / "state", "max_samples": 3}
    evaluate_samples(model, stored.processor, samples, **settings)
    with pytest.raises(ValueError, match="has passed by images/validation/2.png, which cannot be read"):
        evaluate_samples(model, stored.processor, samples, **(settings | {"skip_unreadable": False}))
    settings["max_samples"] = None
    assert evaluate_samples(model, stored.processor, samples, **settings).result["unreadable"] == told["unreadable"]

    for path in (picture, label_map):
        path.unlink()
    assert script(*basic)[0] == 0
    expected = strict(tmp_path / "out.json")
    assert expected.pop("unreadable") == [] and "cannot be read" not in measured_line(expected)
    assert [told[key] for key in ("miou", "macc", "per_label")] == [
        expected[key] for key in ("miou", "macc", "per_label")
    ]
    for path in (folder / "images/validation").iterdir():
        path.write_bytes(b"")
    status, _, stderr = script(*basic, "--skip_unreadable")
    assert status == 1 and "there is no picture to evaluate: none of 4 can be read" in stderr
