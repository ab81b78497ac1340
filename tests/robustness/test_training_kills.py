"""Training and evaluation whose processes are killed, and runs that meet in one folder."""

import json
import os
import random
import signal
import time

import pytest
from programs import make_data, write_recipe
from training_runs import (
    FAULTS,
    SAYS,
    SEED,
    assert_same_run,
    children,
    half_written,
    is_running,
    last_step,
    launch_two,
    ranks_of,
    refused,
    wait_until,
)

from qlseg_hf.training.checkpoints import checkpoints, read_state
from qlseg_hf.utils.files import lock_folder

pytestmark = FAULTS
NUM_KILLS = 50


@pytest.mark.slow
def test_fifty_kills(server, data, tmp_path):
    """SIGKILL to the whole process group, the same command again: the run ends as one that nobody disturbed.

    Every step is saved, every fifth evaluated, old checkpoints are pruned; two workers, augmentation, accumulation,
    dropout, moving average. A kill strikes at any moment from the start to some steps later, or while files of a
    checkpoint or of a model lie half written beside their place, or soon after.
    """
    changes, log, seconds = {"max_steps": 150, "save_steps": 1, "eval_steps": 5}, tmp_path / "log", []
    recipe, whole = write_recipe(tmp_path / "whole", data, **changes), tmp_path / "whole" / "run"
    for _ in range(2):  # the second time there is nothing left to do
        start = time.monotonic()
        printed = server.succeed(log, "train", recipe)
        seconds.append(time.monotonic() - start)
    seconds_to_start, seconds_per_step = seconds[1], (seconds[0] - seconds[1]) / 150

    recipe, run, draw = write_recipe(tmp_path, data, **changes), tmp_path / "run", random.Random(SEED)
    num_killed = num_resumed = num_in_checkpoint = num_in_model = 0
    while num_killed < NUM_KILLS:
        before, old = last_step(run), half_written(run)
        way = draw.choice(["any moment", "step", "best"] if before <= 2 * num_killed else ["any moment", "step"])
        start, pid = time.monotonic(), server.start(log, "train", recipe)
        if way == "any moment":
            time.sleep(draw.uniform(0, seconds_to_start + 4 * seconds_per_step))
        else:
            give_up = start + seconds_to_start + 8 * seconds_per_step
            while is_running(pid) and time.monotonic() < give_up:
                if way in {what for what, *_ in half_written(run) - old}:
                    break
                time.sleep(0.001)
            time.sleep(draw.uniform(0, seconds_per_step))
        assert is_running(pid), log.read_text()  # else it failed, or max_steps is too small
        os.killpg(pid, signal.SIGKILL)
        assert server.exit_code() == -signal.SIGKILL
        num_killed += 1
        left = {what for what, *_ in half_written(run) - old}
        num_in_checkpoint, num_in_model = num_in_checkpoint + ("step" in left), num_in_model + ("best" in left)
        for checkpoint in checkpoints(run):
            read_state(checkpoint)
        # a process that was killed before it came so far says nothing, and has changed nothing either
        num_resumed += before in (0, last_step(run)) or f"resuming at step {before} from" in log.read_text()
    assert num_resumed == NUM_KILLS
    printed = server.succeed(log, "train", recipe)
    assert "resuming at step" in printed, printed
    count = assert_same_run(run, whole)
    print(
        f"{num_killed} killed, {num_resumed} resumed, identical ({count} files; seed {SEED}; {num_in_checkpoint} "
        f"kills while a checkpoint was written or deleted, {num_in_model} while a model was)"
    )


@pytest.mark.slow
def test_kills_of_an_evaluation(server, tmp_path):
    """Twelve kills at any moment; the same command ends with the result of one that nobody disturbed."""
    make_data(tmp_path / "data", num_validation=150)
    recipe = write_recipe(tmp_path, tmp_path / "data", max_steps=2, eval_steps=2, save_steps=2)
    server.succeed(tmp_path / "log", "train", recipe)
    arguments = [tmp_path / "run" / "last", "--data", tmp_path / "data", "--split", "validation"]
    arguments += ["--scales", "0.5,1,1.5,2", "--flip", "--output"]
    start = time.monotonic()
    printed = server.succeed(tmp_path / "log", "evaluate", *arguments, tmp_path / "whole.json")
    seconds = time.monotonic() - start
    output, draw, num_left, num_killed = tmp_path / "killed.json", random.Random(SEED), 0, 12
    state = tmp_path / "killed.json.state.1-of-1"
    for i in range(num_killed):
        before = state.stat().st_ino if state.exists() else None
        pid = server.start(tmp_path / "log", "evaluate", *arguments, output)
        if i % 3:  # soon after it has counted something more
            while is_running(pid) and (not state.exists() or state.stat().st_ino == before):
                time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.1 if i % 3 else 0.2 * seconds))
        assert is_running(pid) and not output.exists(), (i, (tmp_path / "log").read_text())
        os.killpg(pid, signal.SIGKILL)
        assert server.exit_code() == -signal.SIGKILL
        num_left += state.exists() and state.stat().st_ino != before
    printed = server.succeed(tmp_path / "log", "evaluate", *arguments, output)
    assert num_left > 0, printed
    found, expected = (json.loads(path.read_text()) for path in (output, tmp_path / "whole.json"))
    for result in (found, expected):
        del result["seconds"], result["pictures_per_second"]
    assert found == expected and found["num_pictures"] == 150
    assert not [path.name for path in tmp_path.iterdir() if "state" in path.name or "partial" in path.name]
    print(f"{num_killed} killed ({num_left} after they had counted something more), continued, identical")


def test_a_dead_worker(server, running):
    """A loader that the system kills: a sentence within seconds, and the run goes on."""
    for number in range(2):
        pid, run, log = running()
        workers = children(pid)
        assert len(workers) == 2
        os.kill(workers[number], signal.SIGKILL)
        start = time.monotonic()
        refused(server.exit_code(), log.read_text(), r"a process that loads data has died \(.*\); .* goes on from")
        assert time.monotonic() - start < 10
        wait_until(lambda: not any(map(is_running, workers)))  # noqa: B023 (called at once)
    pid, run, log = running()
    os.killpg(pid, signal.SIGKILL)
    server.exit_code()
    assert [read_state(path)["step"] for path in checkpoints(run)][-1] == last_step(run)


def test_two_runs_in_one_folder(server, data, tmp_path):
    """Whoever has the lock; how it ends with its process is in unit/utils/test_files.py."""
    recipe, run = write_recipe(tmp_path, data), tmp_path / "run"
    lock_folder(run)
    refused(*server.run(tmp_path / "log", "train", recipe), f"another run is writing into {run}; wait until")
    assert [path.name for path in run.iterdir()] == [".lock"]


@pytest.mark.slow
def test_one_of_two_processes_dies(data, tmp_path):
    recipe = write_recipe(tmp_path, data, max_steps=10**6, save_steps=1, eval_steps=10**6, num_workers=1)
    run, log, before = tmp_path / "run", tmp_path / "log", 0
    for _ in range(2):
        launcher = launch_two(recipe, log)
        wait_until(lambda b=before, p=launcher: last_step(run) > b or p.poll() is not None, 120)
        assert launcher.poll() is None and (before == 0 or f"resuming at step {before}" in log.read_text())
        os.kill(ranks_of(launcher)[before > 0], signal.SIGKILL)
        start = time.monotonic()
        assert launcher.wait(timeout=300) != 0
        assert time.monotonic() - start < 40
        own = [line for line in log.read_text().splitlines() if line.startswith(SAYS)]
        assert len(own) <= 1 and all("another process of this run has died" in line for line in own), own
        before = last_step(run)
        for checkpoint in checkpoints(run):
            read_state(checkpoint)
