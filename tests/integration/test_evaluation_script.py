"""`qlseg evaluate` as a user runs it: rules of labels, warnings, refusals, pictures that cannot be read."""

import shutil

import numpy as np
import pytest
from evaluations import evaluate_first, pretend_rank, strict
from PIL import Image

from qlseg_hf import segment
from qlseg_hf.cli.main import run
from qlseg_hf.data.datasets import open_dataset
from qlseg_hf.evaluation.evaluator import evaluate_samples
from qlseg_hf.hub.results import measured_line

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.parametrize("stored", ["a"], indirect=True)]


@pytest.fixture
def script(capsys):
    """Run `qlseg evaluate` in this process: (exit status, stdout, stderr)."""

    def run_here(*arguments):
        return run(["evaluate", *arguments]), *capsys.readouterr()

    return run_here


def test_label_rules_from_the_command_line(stored, references, tmp_path, script):
    basic = [stored.folder, "--data", references, "--split", "val", "--output", tmp_path / "out.json"]
    assert script(*basic)[0] == 0
    expected = strict(tmp_path / "out.json")
    for path in (references / "annotations/validation").iterdir():  # 0..19, void 200, and 100 for label 0
        labels = np.asarray(Image.open(path)).astype(np.int64)
        Image.fromarray(np.select([labels == 0, labels == 1], [200, 100], labels - 1).astype(np.uint8)).save(path)
    (tmp_path / "map.json").write_text('{"100": 0}')
    rules = ["--do_reduce_labels", "false", "--ignore_index", "200", "--label_mapping", tmp_path / "map.json"]
    status, stdout, _ = script(*basic, *rules, "--dtype", "float32", "--window_batch_size", "2")
    found = strict(tmp_path / "out.json")
    assert status == 0 and found["miou"] == expected["miou"] and found["per_label"] == expected["per_label"]
    assert f"mIoU {100 * expected['miou']:6.2f} %" in stdout
    protocol = found["protocol"]
    assert protocol["do_reduce_labels"] is False and protocol["ignore_index"] == 200
    assert protocol["label_mapping"] == {"100": 0}
    status, _, stderr = script(*basic, *rules[:4])
    assert status == 1 and "100 in " in stderr and "label_mapping: {100: 200}" in stderr


def test_dtype(stored, references, tmp_path, script, monkeypatch):
    """A measurement is in fp32 unless it is asked for; the protocol says what was used, not what was asked for."""
    monkeypatch.setattr("qlseg_hf.evaluation.run.fastest_dtype", lambda device, world_size: "bfloat16")
    basic = [stored.folder, "--data", references, "--split", "val", "--output", tmp_path / "out.json"]
    for given, dtype in (((), "float32"), (("--dtype", "auto"), "bfloat16")):
        assert script(*basic, *given)[0] == 0
        assert strict(tmp_path / "out.json")["protocol"]["dtype"] == dtype


def test_scores_that_mean_nothing_are_told(stored, references, tmp_path, script):
    """Labels from 0 on a model that reduces labels; one label; and files that belong to no picture."""
    basic = [stored.folder, "--data", references, "--split", "val", "--output", tmp_path / "out.json"]
    status, stdout, stderr = script(*basic)
    found = strict(tmp_path / "out.json")
    assert status == 0 and "warning" not in stderr and stdout.count("warning") == len(found["warnings"]) == 1
    assert "12 labels of the references are never predicted: 'class 3', 'class 4', " in stdout
    rows = {row["label"]: row for row in found["per_label"]}
    assert len(found["never_predicted"]) == 12 and rows["class 3"]["pixels"] > rows["class 3"]["predicted_pixels"] == 0
    assert np.array(found["confusion"]).sum(axis=0).tolist() == [row["predicted_pixels"] for row in rows.values()]
    (references / "images/validation/about.gif").write_bytes(b"")
    model = stored.model()
    for path in sorted((references / "images/validation").glob("*.png")):
        label_map = segment(model, stored.processor, path)[0].numpy().astype(np.uint8)
        Image.fromarray(label_map).save(references / "annotations/validation" / path.name)
    status, stdout, stderr = script(*basic)
    warning = "the label after that of the reference, so references seem to be shifted by one; do_reduce_labels: false"
    assert status == 0 and warning in stdout and warning in strict(tmp_path / "out.json")["warnings"][0]
    assert "warning: 1 files in " in stderr and "not of a kind that is read" in stderr and ": about.gif\n" in stderr
    assert "shifted" not in script(*basic, "--do_reduce_labels", "false")[1]
    for path in (references / "annotations/validation").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 3)).save(path)
    model = shutil.copytree(stored.folder, tmp_path / "model")
    before = (model / "README.md").read_text()
    status, stdout, _ = script(model, *basic[1:], "--card")
    assert status == 0 and "warning: only one label occurs, 'class 2', so every answer is right" in stdout
    assert (
        "\nthe card is left as it was, because of the warnings\n" in stdout
        and (model / "README.md").read_text() == before
    )


def test_wrong_input_is_one_sentence(stored, references, tmp_path, script):
    (tmp_path / "map.json").write_text("[1]")
    basic = {"--data": references, "--split": "val", "--output": tmp_path / "out" / "o.json"}
    (tmp_path / "out").mkdir()
    for change, sentence in (
        ({"model": tmp_path / "none"}, "none"),
        ({"--data": tmp_path / "none"}, "is no folder"),
        ({"--split": "secret"}, "has no split 'secret'; it has validation"),
        ({"--label_map": tmp_path / "map.json"}, 'must be JSON like {"255": 1}'),
        ({"--label_mapping": tmp_path / "none.json"}, "No such file"),
        ({"--output": tmp_path}, "must be a file in a folder that exists"),
        ({"--output": tmp_path / "none" / "o.json"}, "must be a file in a folder that exists"),
        ({"--report": tmp_path / "map.json"}, "is a file; give a folder, or a file that ends with .html"),
        ({"--report": tmp_path / "none" / "r.html"}, "must be a file in a folder that exists, or a folder"),
        ({"--image_column": "image"}, "columns do not apply"),
        ({"--do_reduce_labels": "false"}, "set do_reduce_labels: true"),
        ({"--ignore_index": 0}, "ignore_index cannot be 0"),
    ):
        model = change.pop("model", stored.folder)
        arguments = [model, *(text for pair in (basic | change).items() for text in pair)]
        status, stdout, stderr = script(*arguments)
        lines = [line for line in stderr.splitlines() if line.startswith("qlseg evaluate: ")]
        assert status == 1 and len(lines) == 1 and sentence in lines[0], (change, stderr)
        assert "Traceback" not in stderr and not stdout and not list((tmp_path / "out").glob("*.json"))


def test_state_on_the_command_line(stored, references, tmp_path, script):
    basic = [stored.folder, "--data", references, "--split", "val", "--output", tmp_path / "out.json"]
    (references / "images/validation/4.png").rename(tmp_path / "kept.png")
    (references / "images/validation/4.png").write_text("no picture")
    assert script(*basic)[0] == 1
    (tmp_path / "kept.png").rename(references / "images/validation/4.png")
    status, _, stderr = script(*basic, "--flip")
    assert status == 1 and "unfinished evaluation with another flip" in stderr
    assert (tmp_path / "out.json.state.1-of-1").exists()
    assert script(*basic)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out.json"]


def test_unreadable_picture_is_refused_or_told(stored, references, tmp_path, script, monkeypatch):
    """Never dropped without a word: an error that names it, or its name beside the scores of the others."""
    basic = [stored.folder, "--data", references, "--split", "val", "--output", tmp_path / "out.json"]
    picture, label_map = references / "images/validation/2.png", references / "annotations/validation/2.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[: len(whole) // 2])
    status, _, stderr = script(*basic)
    assert status == 1 and "images/validation/2.png: picture: " in stderr and not (tmp_path / "out.json").exists()
    status, stdout, _ = script(*basic, "--skip_unreadable")  # goes on from what the refused one has counted
    told = strict(tmp_path / "out.json")
    assert status == 0 and "not counted, because they cannot be read: 1 pictures, images/validation/2.png" in stdout
    assert told["unreadable"] == ["images/validation/2.png"] and told["num_pictures"] == 4
    assert "1 more that cannot be read not counted" in measured_line(told)
    samples, model = open_dataset(references, "val"), stored.model()
    settings = {"skip_unreadable": True, "progress": False}
    parts = []
    for rank in range(2):
        with monkeypatch.context() as patch:
            pretend_rank(patch, rank, 2)
            parts.append(evaluate_samples(model, stored.processor, samples, **settings).result)
    assert [(part["num_pictures"], part["unreadable"]) for part in parts] == [(2, told["unreadable"]), (2, [])]

    settings["state_file"] = tmp_path / "state"
    evaluate_first(3, model, stored.processor, samples, **settings)
    with pytest.raises(ValueError, match="has passed by images/validation/2.png, which cannot be read"):
        evaluate_samples(model, stored.processor, samples, **(settings | {"skip_unreadable": False}))
    assert evaluate_samples(model, stored.processor, samples, **settings).result["unreadable"] == told["unreadable"]

    for path in (picture, label_map):
        path.unlink()
    assert script(*basic)[0] == 0
    expected = strict(tmp_path / "out.json")
    assert expected.pop("unreadable") == [] and "cannot be read" not in measured_line(expected)
    assert [told[key] for key in ("miou", "macc", "per_label")] == [
        expected[key] for key in ("miou", "macc", "per_label")
    ]
    for path in (references / "images/validation").iterdir():
        path.write_bytes(b"")
    status, _, stderr = script(*basic, "--skip_unreadable")
    assert status == 1 and "there is no picture to evaluate: none of 4 can be read" in stderr
