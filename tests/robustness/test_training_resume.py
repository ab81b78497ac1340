"""Runs that go on: with another schedule, from another folder, after damage and full disks."""

import json
import re
import shutil
import subprocess

import pytest
import torch
from accelerate import Accelerator
from programs import read_lines, stats_of, write_recipe
from recipes import small_recipe
from training_runs import FAULTS, assert_same_run, files_of, last_step, num_lines, refused

from qlseg_hf.training.checkpoints import checkpoints, contents, read_state, save_checkpoint

pytestmark = FAULTS


def test_resume_with_another_schedule(server, data, tmp_path):
    """What jumps is said, what the recipe changes is done, fewer steps than there are already are refused."""
    changes = {"max_steps": 4, "warmup_steps": 0, "eval_steps": 4, "save_steps": 2, "num_workers": 0}
    recipe, run, log = write_recipe(tmp_path, data, **changes), tmp_path / "run", tmp_path / "log"
    server.succeed(log, "train", recipe)
    sentence = f"max_steps is 3, but {checkpoints(run)[-1]} has made 4 steps already; set max_steps to at least 4"
    refused(*server.run(log, "train", recipe, "--max_steps", "3"), sentence)
    before = stats_of(run)
    printed = server.succeed(log, "train", recipe)
    assert "is finished: 4 of 4 steps are made" in printed and stats_of(run) == before, printed
    _, printed = server.run(log, "train", recipe, "--max_steps", "6", "--weight_decay", "0.5")
    assert "the learning rate goes from 5.00e-04 at step 4 to 6.67e-04 at step 5" in printed, printed
    shutil.rmtree(checkpoints(run)[-1])
    more = ["--max_steps", "6", "--learning_rate", "0.02", "--weight_decay", "0.5"]
    _, printed = server.run(log, "train", recipe, *more)
    assert "the learning rate goes from 5.00e-04 at step 4 to 6.67e-03 at step 5" in printed, printed
    rates = [line["learning_rate"] for line in read_lines(run / "losses.jsonl")]
    assert rates[4:] == pytest.approx([0.02 / 3, 0.02 / 6]) and len(rates) == 6
    groups = torch.load(checkpoints(run)[-1] / "optimizer.bin", weights_only=True)["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.5}
    assert json.loads((run / "last" / "training.json").read_text())["step"] == 6


def test_resume_from_another_folder(server, data, tmp_path):
    """The best of the other run does not count here, where it is not."""
    changes, log = {"eval_steps": 1, "save_steps": 1, "num_workers": 0}, tmp_path / "log"
    server.succeed(log, "train", write_recipe(tmp_path, data, max_steps=2, **changes))
    recipe, place = write_recipe(tmp_path / "here", data, max_steps=3, **changes), checkpoints(tmp_path / "run")[-1]
    state = json.loads((place / "state.json").read_text()) | {"best": 1.0}
    (place / "state.json").write_text(json.dumps(state))
    (place / "contents.json").write_text(json.dumps(contents(place)))
    more = ["--resume", place, "--max_steps"]
    refused(*server.run(log, "train", recipe, *more, "2"), "has made 2 steps; set max_steps to more to go on from it")
    server.succeed(log, "train", recipe, *more, "3", "--eval_split", "training")
    printed = server.succeed(log, "train", recipe, "--max_steps", "4", "--eval_split", "training")
    assert "resuming at step 3" in printed, printed
    assert (tmp_path / "here" / "run" / "best" / "model.safetensors").is_file()
    assert num_lines(tmp_path / "here" / "run" / "evaluations.jsonl") == 2


FAILS = """
import runpy, sys
from qlseg_hf import QLSegForSemanticSegmentation
def fail(*arguments, **options):
    raise OSError("the disk of the model is full")
QLSegForSemanticSegmentation.save_pretrained = fail
runpy.run_module("qlseg_hf.cli.train", run_name="__main__")
"""


def test_step_survives_a_failure_to_save_the_model(server, data, tmp_path):
    """The checkpoint is there before `best`; the same command writes `best` and `last` from it if they are due."""
    changes, log = {"max_steps": 3, "eval_steps": 3, "save_steps": 100, "num_workers": 0}, tmp_path / "log"
    server.succeed(log, "train", write_recipe(tmp_path / "whole", data, **changes))
    recipe, run = write_recipe(tmp_path, data, **changes), tmp_path / "run"
    (tmp_path / "fails.py").write_text(FAILS)
    code, printed = server.run(log, tmp_path / "fails.py", recipe)
    assert code == 1 and "the disk of the model is full" in printed
    assert [path.name for path in checkpoints(run)] == ["step-00000003"] and not (run / "best").exists()
    server.succeed(log, "train", recipe)
    assert_same_run(run, tmp_path / "whole" / "run")
    assert "is finished" in server.run(log, "train", recipe)[1]


def test_every_damage_to_a_checkpoint_is_seen(tmp_path):
    """Each file of a checkpoint missing, cut by a byte, longer by one, or with one bit turned."""
    model = torch.nn.Linear(2, 2)
    accelerator = Accelerator(cpu=True)
    model, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    for step in (3, 6):
        save_checkpoint(accelerator, tmp_path, step, {}, None, small_recipe(output_dir=str(tmp_path)))
    older, newest = checkpoints(tmp_path)
    paths, tried = sorted(path for path in newest.rglob("*") if path.is_file()), 0
    assert len(paths) >= 6
    for path in paths:
        whole = path.read_bytes()
        turned = bytearray(whole)
        turned[len(whole) // 2] ^= 16
        for content in (None, whole[:-1], whole + b" " * (path.suffix != ".json"), bytes(turned)):
            if content == whole:
                continue
            path.unlink() if content is None else path.write_bytes(content)
            with pytest.raises(ValueError, match=f"{newest} is damaged: .*; remove it, .* starts from {older}"):
                read_state(newest)
            path.write_bytes(whole)
            tried += 1
    assert read_state(newest)["step"] == 6
    for text in ("[]", "{}", "null"):
        (newest / "contents.json").write_text(text)
        with pytest.raises(ValueError, match="contents.json cannot be read .it does not list state.json"):
            read_state(newest)
    print(f"{tried} damages to {len(paths)} files of a checkpoint tried, {tried} seen and named")


@pytest.mark.slow
def test_changes_between_resumes(server, data, tmp_path):
    """Said or refused, never passed over."""
    shutil.copytree(data, tmp_path / "data")
    recipe, log = write_recipe(tmp_path, tmp_path / "data", max_steps=2, save_steps=1, eval_steps=2), tmp_path / "log"
    server.succeed(log, "train", recipe)
    newest = checkpoints(tmp_path / "run")[-1]
    before = files_of(tmp_path / "run")

    names = "{0: red, 1: blue, 2: green}"
    refused(*server.run(log, "train", recipe, "--label_names", names), f"the label names are not those that {newest}")
    network = "{hidden_size: 32, num_attention_heads: 2, num_decoder_blocks: 2}"
    refused(*server.run(log, "train", recipe, "--config", network), f"{newest} does not fit the recipe's network")
    for kind in ("images", "annotations"):
        shutil.copy(tmp_path / "data" / kind / "training" / "1.png", tmp_path / "data" / kind / "training" / "1b.png")
    refused(*server.run(log, "train", recipe), f"the pictures of the training split are not those that {newest}")
    for kind in ("images", "annotations"):
        (tmp_path / "data" / kind / "training" / "1b.png").unlink()
    best_of = f"the best of {tmp_path / 'run'} was found with"
    other_measure = f"the pictures to evaluate on, .* {best_of}; .* resume: {newest}"
    for key, value in (("eval_split", "training"), ("label_mapping", "{0: 1, 1: 0}"), ("ignore_index", "-100")):
        refused(*server.run(log, "train", recipe, f"--{key}", value), other_measure)
    refused(*server.run(log, "train", recipe, "--processor", "{size: {shortest_edge: 40}}"), other_measure)
    (newest / "optimizer.bin").unlink()
    refused(*server.run(log, "train", recipe), f"{newest} is damaged: optimizer.bin is missing; remove it")
    shutil.rmtree(newest)  # one step is left to make: a finished run reads no losses
    losses = tmp_path / "run" / "losses.jsonl"
    losses.write_bytes(b"\xff\n" + losses.read_bytes())
    refused(*server.run(log, "train", recipe), f"{losses} holds a line that this run has not written; remove it")
    losses.write_bytes(before["losses.jsonl"])
    printed = server.succeed(log, "train", recipe)
    assert "resuming at step 1" in printed and "has changed" not in printed, printed
    assert files_of(tmp_path / "run") == before
    printed = server.succeed(log, "train", recipe, "--seed", "3", "--max_steps", "3")
    assert "the recipe has changed since step-00000002: max_steps: 2 -> 3, seed: 0 -> 3" in printed, printed


@pytest.mark.slow
def test_full_disk(server, data, tmp_path):
    """A disk that is full at 12 different points; with room again the run goes on to the same end, bit for bit."""
    disk, log = tmp_path / "disk", tmp_path / "log"
    disk.mkdir()
    changes = {"max_steps": 6, "save_steps": 1, "eval_steps": 2, "num_workers": 0}
    server.succeed(log, "train", write_recipe(tmp_path / "whole", data, **changes))
    recipe = write_recipe(tmp_path, data, **changes, output_dir=str(disk / "run"))
    num_full, said = 0, set()
    for size_kib in range(16, 3600, 300):
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(disk)], capture_output=True, text=True
        )
        if mounted.returncode:
            pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
        try:
            code, printed = server.run(log, "train", recipe)
            assert code == 1, f"{size_kib} KiB are enough, give less"
            refused(code, printed, "No space left on device|the disk is full")
            said.add(re.search("qlseg train: .*", printed)[0])
            for checkpoint in checkpoints(disk / "run"):
                read_state(checkpoint)
            before = last_step(disk / "run")
            num_full += 1
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            printed = server.succeed(log, "train", recipe)
            assert before == 0 or f"resuming at step {before}" in printed, printed
            assert_same_run(disk / "run", tmp_path / "whole" / "run")
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    print(*sorted(said), sep="\n")
    print(f"{num_full} full disks, {num_full} sentences, {num_full} runs went on to the same end")
