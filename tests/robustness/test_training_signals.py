"""Ctrl-C and SIGTERM during training: the step is saved, and nothing differs in the end."""

import os
import re
import signal
import time

import pytest
from programs import make_data, write_recipe
from training_runs import (
    FAULTS,
    SAYS,
    assert_same_run,
    is_running,
    last_step,
    launch_two,
    num_lines,
    ranks_of,
    stopped,
    wait_until,
)

from qlseg_hf.training.checkpoints import checkpoints, read_state

pytestmark = FAULTS


def test_signals_save_the_step(server, data, tmp_path):
    """SIGTERM to the process or to its group, Ctrl-C: the step is ended and saved, nothing differs in the end."""
    changes = {"max_steps": 60, "save_steps": 1000, "eval_steps": 30, "keep_checkpoints": 1}
    log, run = tmp_path / "log", tmp_path / "run"
    server.succeed(log, "train", write_recipe(tmp_path / "whole", data, **changes))
    recipe, steps = write_recipe(tmp_path, data, **changes), [0]
    ways = ((os.kill, signal.SIGTERM), (os.killpg, signal.SIGINT), (os.killpg, signal.SIGTERM))
    for kill, number in ways:
        pid = server.start(log, "train", recipe)
        wait_until(lambda: num_lines(run / "losses.jsonl") > steps[-1] or not is_running(pid))  # noqa: B023
        kill(pid, number)
        steps.append(stopped(server.exit_code(), log.read_text(), number, run))
    assert 0 < steps[1] < steps[2] < steps[3] < 60
    printed = server.succeed(log, "train", recipe)
    assert f"resuming at step {steps[-1]}" in printed, printed
    assert_same_run(run, tmp_path / "whole" / "run")


def test_signal_during_an_evaluation(server, tmp_path):
    """The checkpoint is of the step, and the evaluation is made, with its `best`, when the run goes on."""
    make_data(tmp_path / "data", num_validation=100)
    changes = {"max_steps": 4, "save_steps": 1000, "eval_steps": 2, "keep_checkpoints": 1}
    log, run = tmp_path / "log", tmp_path / "run"
    server.succeed(log, "train", write_recipe(tmp_path / "whole", tmp_path / "data", **changes))
    recipe = write_recipe(tmp_path, tmp_path / "data", **changes)
    for step, is_made_up_for in ((2, False), (2, True), (4, False)):
        pid = server.start(log, "train", recipe)
        wait_until(
            lambda p=pid, n=step, again=is_made_up_for: (
                not is_running(p)
                or (
                    re.search("evaluating: +[1-9]", log.read_text()) if again else num_lines(run / "losses.jsonl") == n
                )
            )
        )
        os.kill(pid, signal.SIGTERM)
        assert stopped(server.exit_code(), log.read_text(), signal.SIGTERM, run) == step
        assert num_lines(run / "evaluations.jsonl") == step // 2 - 1
    server.succeed(log, "train", recipe)
    assert_same_run(run, tmp_path / "whole" / "run")
    assert "is finished" in server.run(log, "train", recipe)[1]


def test_second_signal_leaves_at_once(server, tmp_path):
    """While the first one waits for the end of a step that takes long."""
    make_data(tmp_path / "data")
    changes = {"max_steps": 9, "total_batch_size": 4000, "num_workers": 0, "warmup_steps": 0}
    recipe, log = write_recipe(tmp_path, tmp_path / "data", **changes), tmp_path / "log"
    pid = server.start(log, "train", recipe)
    wait_until(lambda: (log.exists() and "?step/s" in log.read_text()) or not is_running(pid))
    time.sleep(0.5)
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.5)
    assert is_running(pid), log.read_text()
    os.kill(pid, signal.SIGTERM)
    start = time.monotonic()
    assert server.exit_code() == -signal.SIGTERM and time.monotonic() - start < 5
    assert checkpoints(tmp_path / "run") == []


@pytest.mark.parametrize("to", ["one", "launcher"])
def test_signal_to_two_processes(data, tmp_path, to):
    """One of them gets it, or both from the launcher: they stop after the same step, saved once."""
    recipe = write_recipe(tmp_path, data, max_steps=10**6, save_steps=10**6, eval_steps=10**6, num_workers=1)
    run, log = tmp_path / "run", tmp_path / "log"
    launcher = launch_two(recipe, log)
    wait_until(lambda: num_lines(run / "losses.jsonl") > 0 or launcher.poll() is not None, 120)
    ranks = ranks_of(launcher)
    os.kill(ranks[1] if to == "one" else launcher.pid, signal.SIGTERM)
    assert launcher.wait(timeout=300) != 0
    lines = [line for line in log.read_text().replace("\r", "\n").splitlines() if line.startswith(SAYS)]
    step = last_step(run)
    assert len(lines) == 1 and f"stopped by SIGTERM after step {step} of" in lines[0], lines
    assert read_state(checkpoints(run)[-1])["num_processes"] == 2 and num_lines(run / "losses.jsonl") == step >= 10
