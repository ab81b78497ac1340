"""The trainer: its step against stored numbers, and exact resume after kills."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from networks import tiny_config
from PIL import Image
from programs import STILL, read_lines, stats_of, write_recipe
from recipes import small_recipe
from training_runs import assert_same_run, is_running, prepare_for_steps, wait_until

from qlseg_hf import QLSegForSemanticSegmentation
from qlseg_hf.training.average import MovingAverage
from qlseg_hf.training.checkpoints import checkpoints, read_state, save_checkpoint
from qlseg_hf.training.step import training_step


def test_accumulation_does_not_change_the_step():
    """One batch of four or four of one: same loss and gradient, though pictures have different numbers of labels."""
    torch.manual_seed(0)
    pixel_values = torch.randn(4, 3, 32, 48)
    labels = torch.randint(0, 20, (4, 32, 48))
    labels[0], labels[1, :16] = 3, 255
    found = []
    for parts in (1, 4):
        torch.manual_seed(1)
        model = QLSegForSemanticSegmentation(tiny_config(dropout=0.0)).eval()
        accelerator, model, optimizer = prepare_for_steps(model, parts)
        recipe = small_recipe(per_device_batch_size=4 // parts, warmup_steps=0)
        batches = [{"pixel_values": p, "labels": t} for p, t in zip(pixel_values.chunk(parts), labels.chunk(parts))]
        result = training_step(accelerator, model, optimizer, batches, recipe, 0)
        found.append([float(result.loss), float(result.norm), *result.terms.tolist()])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_step_without_any_label_is_finite():
    accelerator, model, optimizer = prepare_for_steps(QLSegForSemanticSegmentation(tiny_config()))
    batch = {"pixel_values": torch.randn(2, 3, 32, 48), "labels": torch.full((2, 32, 48), 255)}
    recipe = small_recipe(total_batch_size=2, warmup_steps=0, learning_rate=1e-5)
    loss, norm, _ = training_step(accelerator, model, optimizer, [batch], recipe, 0)
    assert torch.isfinite(loss) and torch.isfinite(norm) and loss > 0
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_it_learns(whole_run):
    """Pictures whose colour tells the label; how well a longer run knows them is in test_five_bands.py."""
    losses = [line["loss"] for line in read_lines(whole_run / "losses.jsonl")]
    assert len(losses) == 24 and np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_moving_average():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.0)
    average = MovingAverage(model, decay=0.75)
    torch.nn.init.constant_(model.weight, 1.0)
    average.update(model)
    average.update(model)
    assert average.weights["weight"].item() == pytest.approx(1 - 0.75**2)
    with average.swap_in(model):
        assert model.weight.item() == pytest.approx(1 - 0.75**2)
    assert model.weight.item() == 1.0


def test_resume_is_exact_after_kills(whole_run, server, data, tmp_path):
    """SIGKILL to the whole process group at three random moments; the same command each time."""
    recipe, draw, run = write_recipe(tmp_path, data), random.Random(7), tmp_path / "run"
    for _ in range(3):
        before, pid = checkpoints(run), server.start(tmp_path / "log", "train", recipe)
        # let it get past what the last kill left, then strike at any moment, saving included
        wait_until(lambda: checkpoints(run) != before or not is_running(pid))  # noqa: B023 (called at once)
        time.sleep(draw.uniform(0, 0.3))
        os.killpg(pid, signal.SIGKILL)
        assert server.exit_code() == -signal.SIGKILL  # it had not ended by itself
    server.complete("train", recipe, expect=0)
    assert_same_run(run, whole_run)


def test_resume_in_the_middle_of_saving(whole_run, server, data, tmp_path):
    """What a kill during a save leaves behind: half a checkpoint beside, a model moved away, a torn last line."""
    shutil.copytree(whole_run, tmp_path / "run")
    newest = checkpoints(tmp_path / "run")[-1]
    os.rename(newest, newest.with_name(f".{newest.name}.new"))
    os.rename(tmp_path / "run" / "best", tmp_path / "run" / ".best.old")
    with (tmp_path / "run" / "losses.jsonl").open("a") as file:
        file.write('{"step": 25, "lo')
    recipe = write_recipe(tmp_path, data)
    done = server.complete("train", recipe, expect=0)
    assert "resuming at step 22" in done.stdout
    assert_same_run(tmp_path / "run", whole_run)
    before = stats_of(tmp_path / "run")
    again = server.complete("train", recipe, expect=0)
    assert "is finished: 24 of 24 steps are made" in again.stdout
    assert stats_of(tmp_path / "run") == before


def test_starting_over_does_not_mix_runs(whole_run, server, data, tmp_path):
    """Pruning keeps the highest steps, so an older run's checkpoints would outlive those of a new one."""
    shutil.copytree(whole_run, tmp_path / "run")
    done = server.complete("train", write_recipe(tmp_path, data), "--resume", "none")
    assert done.returncode == 1 and "holds step-00000024 of an earlier run" in done.stderr, done.stderr[-2000:]
    assert_same_run(tmp_path / "run", whole_run)


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="is no checkpoint of a run; give a folder"):
        read_state(tmp_path)


def test_resume_with_other_processes_and_accumulation(server, data, tmp_path):
    """2 steps on one process, 2 on two, 2 on one with batches of 1: the curve of one run, and each change is said.

    The two have what torchrun tells them, without a word of accelerate's, and they are one run, not several.
    """
    data = shutil.copytree(data, tmp_path / "data")
    for path in sorted((data / "annotations" / "training").iterdir())[::2]:
        Image.new("L", (45, 36), 2).save(path)  # of one label, so that processes and batches hold unlike numbers
    changes = {"config": STILL, "eval_steps": 6, "num_workers": 0, "warmup_steps": 0, "max_steps": 6}
    curves = []
    for name in ("whole", "cut"):
        recipe, run = write_recipe(tmp_path / name, data, **changes), tmp_path / name / "run"
        if name == "whole":
            server.complete("train", recipe, expect=0)
        else:
            steps = (([], 1), (["--per_device_batch_size=1"], 2), (["--per_device_batch_size=4"], 1))
            for number, (more, processes) in enumerate(steps):
                more = [*more, "--keep_checkpoints=9"]
                cpu = {"ACCELERATE_USE_CPU": str(processes == 1).lower()}
                done = server.complete("train", recipe, *more, processes=processes, expect=0, **cpu)
                if processes > 1:
                    card = (run / "last" / "README.md").read_text()
                    assert f"- hardware: {processes} x " in card and "fp32; distribution: MULTI_CPU" in card
                if number:
                    assert f"num_processes: {3 - processes} -> {processes}" in done.stderr, done.stderr
                    assert "dropout and drop path draw other numbers" in done.stderr
                for checkpoint in checkpoints(run)[number + 1 :] if number < 2 else []:
                    shutil.rmtree(checkpoint)
        curves.append([[line[key] for key in ("loss", "grad_norm")] for line in read_lines(run / "losses.jsonl")])
    assert len(curves[0]) == 6
    np.testing.assert_allclose(curves[0], curves[1], rtol=5e-4)
    for place, num_processes, distribution in ((-1, 1, "NO"), (1, 2, "MULTI_CPU")):
        state = read_state(checkpoints(run)[place])
        found = (state["num_processes"], state["distribution"], state["precision"])
        assert found == (num_processes, distribution, "fp32")

    done = server.complete("train", recipe, "--total_batch_size=8", "--max_steps=9", processes=2, expect=1)
    assert "this run has 2 (MULTI_CPU) and 8; resume as it was, or start a new" in done.stderr
    assert f"with model: {run}/last" in done.stderr


def test_keep_checkpoints(whole_run):
    assert [path.name for path in checkpoints(whole_run)] == ["step-00000022", "step-00000024"]


def test_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    model = torch.nn.Linear(2, 2)
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(model)
    recipe = small_recipe(output_dir=str(tmp_path))
    save_checkpoint(accelerator, tmp_path, 3, {}, None, recipe)

    def no_space(folder):
        (Path(folder) / "half").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(accelerator, "save_state", no_space)
    with pytest.raises(OSError, match="cannot be written: .*No space left.*step-00000003 is still valid"):
        save_checkpoint(accelerator, tmp_path, 6, {}, None, recipe)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
