"""Training and evaluation under kills, broken pictures, losses that are no numbers, dying processes, full disks."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from test_training import NETWORK, data, environment, train, write_recipe  # noqa: F401 (data is a fixture)

from qlseg_hf.training import checkpoints, read_state, step_of

pytestmark = pytest.mark.faults
SEED = int(os.environ.get("QLSEG_KILL_SEED", 6))
NUM_KILLS = 50


class ForkServer:
    """See fork_server.py."""

    def __init__(self):
        command = [sys.executable, str(ROOT / "tests" / "fork_server.py")]
        env = environment() | {"ACCELERATE_USE_CPU": "true", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, log: Path, *arguments) -> int:
        """The id of a new process, and of its group."""
        self.process.stdin.write(json.dumps([str(log), *map(str, arguments)]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def exit_code(self) -> int:
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server():
    server = ForkServer()
    yield server
    server.process.stdin.close()
    server.process.wait(timeout=60)


def is_running(pid: int) -> bool:
    """Not even a zombie, which a process that has ended stays until the server reads its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def files_of(run: Path) -> dict[str, bytes]:
    """Every file of a run. Times and the run's own folder, which a recipe holds, are taken out."""
    found = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        content = path.read_bytes().replace(str(run).encode(), b"RUN")
        if path.name == "contents.json":
            content = b" ".join(sorted(name.encode() for name in json.loads(content)))
        found[path.relative_to(run).as_posix()] = content
    return found


def assert_same_run(run: Path, whole: Path) -> int:
    """Number of files, all of which are equal: weights, average, optimiser, random states, logs, models, cards."""
    found, expected = files_of(run), files_of(whole)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    return len(found)


def last_step(found: list[Path]) -> int:
    return step_of(found[-1]) if found else 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_fifty_kills(server, data, tmp_path):  # noqa: F811
    """SIGKILL to the whole process group, the same command again: the run ends as one that nobody disturbed.

    Every step is saved, every fifth evaluated, old checkpoints are pruned; two workers, augmentation, accumulation,
    dropout, moving average. A kill strikes at any moment from the start to some steps later, or while files of a
    checkpoint or of a model lie half written beside their place, or soon after.
    """
    changes = {"max_steps": 220, "save_steps": 1, "eval_steps": 5}
    assert NETWORK.get("dropout") is None and Path(data).is_dir()
    draw, log = random.Random(SEED), tmp_path / "log"
    (tmp_path / "whole").mkdir()
    recipe = write_recipe(tmp_path / "whole", data, **changes)
    whole, seconds = tmp_path / "whole" / "run", []
    for _ in range(2):  # the second time there is nothing left to do
        start = time.monotonic()
        server.start(log, "train", recipe)
        assert server.exit_code() == 0, log.read_text()
        seconds.append(time.monotonic() - start)
    seconds_to_start, seconds_per_step = seconds[1], (seconds[0] - seconds[1]) / 220

    recipe, run = write_recipe(tmp_path, data, **changes), tmp_path / "run"
    assert recipe.read_text() == (tmp_path / "whole" / "recipe.yaml").read_text().replace(str(whole), str(run))
    num_killed = num_resumed = num_in_checkpoint = num_in_model = 0
    print(f"seed {SEED}; {seconds_to_start:.2f} s to start, {seconds_per_step:.3f} s per step")
    while num_killed < NUM_KILLS:
        before = checkpoints(run)
        start, pid = time.monotonic(), server.start(log, "train", recipe)
        is_ahead = last_step(before) > 200 * num_killed / NUM_KILLS
        way = draw.choice(["any moment", "checkpoint"] if is_ahead else ["any moment", "checkpoint", "model"])
        if way == "any moment":
            time.sleep(draw.uniform(0, seconds_to_start + 4 * seconds_per_step))
        else:
            pattern = ".best.new" if way == "model" else "checkpoints/.step-*.new"
            give_up = start + seconds_to_start + 8 * seconds_per_step
            while is_running(pid) and not any(run.glob(pattern)) and time.monotonic() < give_up:
                time.sleep(0.001)
            time.sleep(draw.uniform(0, seconds_per_step))
        assert is_running(pid), log.read_text()  # else it failed, or max_steps is too small
        os.killpg(pid, signal.SIGKILL)
        print(num_killed, way, f"{time.monotonic() - start:.2f}", last_step(before), last_step(checkpoints(run)))
        assert server.exit_code() == -signal.SIGKILL
        num_killed += 1
        num_in_checkpoint += any(run.glob("checkpoints/.step-*"))
        num_in_model += any(run.glob(".best.*"))
        for checkpoint in checkpoints(run):
            read_state(checkpoint)
        # one that was killed before it came so far says nothing, but changes nothing either
        num_resumed += (
            checkpoints(run) == before or not before or f"resuming at step {last_step(before)}" in log.read_text()
        )
    assert num_resumed == NUM_KILLS
    server.start(log, "train", recipe)
    assert server.exit_code() == 0 and "resuming at step" in log.read_text(), log.read_text()
    count = assert_same_run(run, whole)
    print(
        f"{num_killed} killed ({num_in_checkpoint} while a checkpoint was written or deleted, {num_in_model} while a "
        f"model was), {num_resumed} resumed, identical: {count} files"
    )
