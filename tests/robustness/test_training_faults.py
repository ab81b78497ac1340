"""Training and evaluation under kills, broken pictures, losses that are no numbers, dying processes, full disks."""

import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT
from networks import tiny_config
from PIL import Image
from programs import environment, make_data, stats_of, write_recipe
from safetensors.torch import load_file

from qlseg_hf import QLSegForSemanticSegmentation
from qlseg_hf.data.augmentation import BatchPositions, TrainingSampler
from qlseg_hf.data.datasets import Sample, SampleError, open_dataset
from qlseg_hf.training.checkpoints import checkpoints, contents, read_state, save_checkpoint, step_of
from qlseg_hf.training.recipe import Recipe
from qlseg_hf.training.step import NotFiniteError, check_finite, training_step

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc"),
]
SEED = int(os.environ.get("QLSEG_KILL_SEED", 6))
NUM_KILLS = 50

SAYS = ("qlseg train: ", "qlseg check: ", "qlseg evaluate: ")  # how a sentence for the user begins


class ForkServer:
    """See fork_server.py."""

    def __init__(self):
        command = [sys.executable, str(ROOT / "tests" / "helpers" / "fork_server.py")]
        env = environment() | {"ACCELERATE_USE_CPU": "true", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = None

    def start(self, log: Path, *arguments) -> int:
        """The id of a new process, and of its group."""
        if self.pid is not None:  # a test that failed has left it
            os.killpg(self.pid, signal.SIGKILL)
            self.exit_code()
        self.process.stdin.write(json.dumps([str(log), *map(str, arguments)]) + "\n")
        self.process.stdin.flush()
        self.pid = int(self.process.stdout.readline())
        return self.pid

    def exit_code(self) -> int:
        self.pid = None
        return int(self.process.stdout.readline())

    def run(self, log: Path, *arguments) -> tuple[int, str]:
        """Exit code, and what was printed."""
        self.start(log, *arguments)
        return self.exit_code(), log.read_text()


@pytest.fixture(scope="module")
def server():
    server = ForkServer()
    yield server
    if server.pid is not None:
        os.killpg(server.pid, signal.SIGKILL)
    server.process.stdin.close()
    server.process.wait(timeout=60)


def status_of(pid: int) -> list[str]:
    """State, parent, ... of a process as /proc has them; of one that is gone, a zombie's."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["Z", "0"]


def is_running(pid: int) -> bool:
    """A process that has ended is a zombie until the server reads its exit code."""
    return status_of(pid)[0] != "Z"


def children(pid: int) -> list[int]:
    return [int(p.name) for p in Path("/proc").glob("[0-9]*") if status_of(int(p.name))[1] == str(pid)]


def wait_until(is_true, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def last_step(run: Path) -> int:
    found = checkpoints(run)
    return step_of(found[-1]) if found else 0


def refused(code: int, printed: str, *sentences: str) -> None:
    """It ended with one sentence, no traceback."""
    lines = [line for line in printed.replace("\r", "\n").splitlines() if line.startswith(SAYS)]
    assert code == 1 and len(lines) == 1 and "Traceback" not in printed, printed
    for sentence in sentences:
        assert re.search(sentence, lines[0]), lines[0]


def files_of(run: Path) -> dict[str, bytes]:
    """Every file of a run, without the run's own folder, which recipes and cards name."""
    found = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file() and path.name != "contents.json"):
        found[path.relative_to(run).as_posix()] = path.read_bytes().replace(str(run).encode(), b"RUN")
    return found


def assert_same_run(run: Path, whole: Path) -> int:
    """Number of files, all of which are equal: weights, average, optimiser, random states, logs, models, cards."""
    found, expected = files_of(run), files_of(whole)
    assert found.keys() == expected.keys() and "last/model.safetensors" in found
    assert [name for name in found if found[name] != expected[name]] == []
    return len(found)


# --------------------------------------------------------------------------------------------------------------- kills


def half_written(run: Path) -> set[tuple[str, str, int]]:
    """(what of, name, inode) of all that lies beside its place."""
    beside = {path for pattern in ("checkpoints/.step-*", ".best.*", ".last.*") for path in run.glob(pattern)}
    found = set()
    for path in beside:
        try:
            found.add((path.name.split(".")[1].split("-")[0], path.name, path.stat().st_ino))
        except FileNotFoundError:  # it has just been moved
            pass
    return found


@pytest.mark.slow
def test_fifty_kills(server, data, tmp_path):  # noqa: F811
    """SIGKILL to the whole process group, the same command again: the run ends as one that nobody disturbed.

    Every step is saved, every fifth evaluated, old checkpoints are pruned; two workers, augmentation, accumulation,
    dropout, moving average. A kill strikes at any moment from the start to some steps later, or while files of a
    checkpoint or of a model lie half written beside their place, or soon after.
    """
    changes, log, seconds = {"max_steps": 150, "save_steps": 1, "eval_steps": 5}, tmp_path / "log", []
    (tmp_path / "whole").mkdir()
    recipe, whole = write_recipe(tmp_path / "whole", data, **changes), tmp_path / "whole" / "run"
    for _ in range(2):  # the second time there is nothing left to do
        start = time.monotonic()
        code, printed = server.run(log, "train", recipe)
        assert code == 0, printed
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
    code, printed = server.run(log, "train", recipe)
    assert code == 0 and "resuming at step" in printed, printed
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
    assert server.run(tmp_path / "log", "train", recipe)[0] == 0
    arguments = [tmp_path / "run" / "last", "--data", tmp_path / "data", "--split", "validation"]
    arguments += ["--scales", "0.5,1,1.5,2", "--flip", "--output"]
    start = time.monotonic()
    code, printed = server.run(tmp_path / "log", "evaluate", *arguments, tmp_path / "whole.json")
    assert code == 0, printed
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
    code, printed = server.run(tmp_path / "log", "evaluate", *arguments, output)
    assert code == 0 and num_left > 0, printed
    found, expected = (json.loads(path.read_text()) for path in (output, tmp_path / "whole.json"))
    for result in (found, expected):
        del result["seconds"], result["pictures_per_second"]
    assert found == expected and found["num_pictures"] == 150
    assert not [path.name for path in tmp_path.iterdir() if "state" in path.name or "partial" in path.name]
    print(f"{num_killed} killed ({num_left} after they had counted something more), continued, identical")


@pytest.fixture
def running(server, data, tmp_path):  # noqa: F811
    """Starts a run that would go on for long, and comes back after its first checkpoint: (id, folder, log)."""

    def start():
        recipe = write_recipe(tmp_path, data, max_steps=10**6, save_steps=1, eval_steps=10**6)
        run, log = tmp_path / "run", tmp_path / "log"
        before, pid = last_step(run), server.start(log, "train", recipe)
        wait_until(lambda: last_step(run) > before or not is_running(pid))
        assert before == 0 or f"resuming at step {before}" in log.read_text(), log.read_text()
        return pid, run, log

    return start


def test_signals_and_a_dead_worker(server, running):
    """Ctrl-C, SIGTERM and a loader that the system kills: a sentence within seconds, and the run goes on."""
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        pid, run, log = running()
        (os.killpg if signal_number == signal.SIGINT else os.kill)(pid, signal_number)  # a terminal signals the group
        stopped(server.exit_code(), log.read_text(), signal_number, run)
    for number in range(4):
        pid, run, log = running()
        workers = children(pid)
        assert len(workers) == 2
        os.kill(workers[number % 2], signal.SIGKILL)
        start = time.monotonic()
        refused(server.exit_code(), log.read_text(), r"a process that loads data has died \(.*\); .* goes on from")
        assert time.monotonic() - start < 10
        wait_until(lambda: not any(map(is_running, workers)))  # noqa: B023 (called at once)
    pid, run, log = running()
    os.killpg(pid, signal.SIGKILL)
    server.exit_code()
    assert [read_state(path)["step"] for path in checkpoints(run)][-1] == last_step(run)


LOCK = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
from pathlib import Path
try:
    files.lock_folder(Path(sys.argv[2]))
except ValueError as error:
    sys.exit(str(error))
print("has it", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_two_runs_in_one_folder(server, running, data, tmp_path):  # noqa: F811
    command = [sys.executable, "-c", LOCK, str(ROOT / "qlseg_hf" / "utils" / "files.py"), str(tmp_path / "run")]
    pid, run, log = running()
    second = subprocess.run(command, capture_output=True, text=True, input="")
    assert second.returncode == 1 and f"another run is writing into {run}; wait" in second.stderr
    os.kill(pid, signal.SIGKILL)  # of the run alone: loaders that outlive it for seconds do not keep the folder
    server.exit_code()
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "has it\n"
    before = files_of(run)
    refused(*server.run(log, "train", tmp_path / "recipe.yaml"), f"another run is writing into {run}; wait until")
    assert files_of(run) == before
    other.communicate("")


def launch_two(recipe: Path, log: Path, *arguments) -> subprocess.Popen:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    command += ["-m", "qlseg_hf.cli.train", str(recipe), *arguments]
    env = environment() | {"ACCELERATE_USE_CPU": "true", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, env=env, stdout=log.open("w"), stderr=subprocess.STDOUT, start_new_session=True)


@pytest.mark.slow
def test_one_of_two_processes_dies(data, tmp_path):  # noqa: F811
    recipe = write_recipe(tmp_path, data, max_steps=10**6, save_steps=1, eval_steps=10**6, num_workers=1)
    run, log, before = tmp_path / "run", tmp_path / "log", 0
    for _ in range(2):
        launcher = launch_two(recipe, log)
        wait_until(lambda b=before, p=launcher: last_step(run) > b or p.poll() is not None, 120)
        assert launcher.poll() is None and (before == 0 or f"resuming at step {before}" in log.read_text())
        ranks = [p for p in children(launcher.pid) if "qlseg_hf.cli.train" in Path(f"/proc/{p}/cmdline").read_text()]
        assert len(ranks) == 2
        os.kill(ranks[before > 0], signal.SIGKILL)
        start = time.monotonic()
        assert launcher.wait(timeout=60) != 0
        assert time.monotonic() - start < 40
        own = [line for line in log.read_text().splitlines() if line.startswith(SAYS)]
        assert len(own) <= 1 and all("another process of this run has died" in line for line in own), own
        before = last_step(run)
        for checkpoint in checkpoints(run):
            read_state(checkpoint)


def test_resume_with_another_schedule(server, data, tmp_path):  # noqa: F811
    """What jumps is said, what the recipe changes is done, fewer steps than there are already are refused."""
    changes = {"max_steps": 4, "warmup_steps": 0, "eval_steps": 4, "save_steps": 2, "num_workers": 0}
    recipe, run, log = write_recipe(tmp_path, data, **changes), tmp_path / "run", tmp_path / "log"
    assert server.run(log, "train", recipe)[0] == 0
    sentence = f"max_steps is 3, but {checkpoints(run)[-1]} has made 4 steps already; set max_steps to at least 4"
    refused(*server.run(log, "train", recipe, "--max_steps", "3"), sentence)
    before = stats_of(run)
    code, printed = server.run(log, "train", recipe)
    assert code == 0 and "is finished: 4 of 4 steps are made" in printed and stats_of(run) == before
    _, printed = server.run(log, "train", recipe, "--max_steps", "6", "--weight_decay", "0.5")
    assert "the learning rate goes from 5.00e-04 at step 4 to 6.67e-04 at step 5" in printed, printed
    shutil.rmtree(checkpoints(run)[-1])
    more = ["--max_steps", "6", "--learning_rate", "0.02", "--weight_decay", "0.5"]
    _, printed = server.run(log, "train", recipe, *more)
    assert "the learning rate goes from 5.00e-04 at step 4 to 6.67e-03 at step 5" in printed, printed
    rates = [json.loads(line)["learning_rate"] for line in (run / "losses.jsonl").read_text().splitlines()]
    assert rates[4:] == pytest.approx([0.02 / 3, 0.02 / 6]) and len(rates) == 6
    groups = torch.load(checkpoints(run)[-1] / "optimizer.bin", weights_only=True)["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.5}
    assert json.loads((run / "last" / "training.json").read_text())["step"] == 6


def test_resume_from_another_folder(server, data, tmp_path):  # noqa: F811
    """The best of the other run does not count here, where it is not."""
    changes, log = {"eval_steps": 1, "save_steps": 1, "num_workers": 0}, tmp_path / "log"
    assert server.run(log, "train", write_recipe(tmp_path, data, max_steps=2, **changes))[0] == 0
    (tmp_path / "here").mkdir()
    recipe, place = write_recipe(tmp_path / "here", data, max_steps=3, **changes), checkpoints(tmp_path / "run")[-1]
    state = json.loads((place / "state.json").read_text()) | {"best": 1.0}
    (place / "state.json").write_text(json.dumps(state))
    (place / "contents.json").write_text(json.dumps(contents(place)))
    more = ["--resume", place, "--max_steps"]
    refused(*server.run(log, "train", recipe, *more, "2"), "has made 2 steps; set max_steps to more to go on from it")
    code, printed = server.run(log, "train", recipe, *more, "3")
    assert code == 0, printed
    assert (tmp_path / "here" / "run" / "best" / "model.safetensors").is_file()
    assert num_lines(tmp_path / "here" / "run" / "evaluations.jsonl") == 1


FAILS = """
import runpy, sys
from qlseg_hf import QLSegForSemanticSegmentation
def fail(*arguments, **options):
    raise OSError("the disk of the model is full")
QLSegForSemanticSegmentation.save_pretrained = fail
runpy.run_module("qlseg_hf.cli.train", run_name="__main__")
"""


def test_step_survives_a_failure_to_save_the_model(server, data, tmp_path):  # noqa: F811
    """The checkpoint is there before `best`; the same command writes `best` and `last` from it if they are due."""
    (tmp_path / "whole").mkdir()
    changes, log = {"max_steps": 3, "eval_steps": 3, "save_steps": 100, "num_workers": 0}, tmp_path / "log"
    assert server.run(log, "train", write_recipe(tmp_path / "whole", data, **changes))[0] == 0
    recipe, run = write_recipe(tmp_path, data, **changes), tmp_path / "run"
    command = [sys.executable, "-c", FAILS, str(recipe)]
    failed = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=600)
    assert failed.returncode == 1 and "the disk of the model is full" in failed.stderr
    assert [path.name for path in checkpoints(run)] == ["step-00000003"] and not (run / "best").exists()
    assert server.run(log, "train", recipe)[0] == 0
    assert_same_run(run, tmp_path / "whole" / "run")
    assert "is finished" in server.run(log, "train", recipe)[1]


def stopped(code: int, printed: str, number: int, run: Path) -> int:
    """The step that a run was saved at when a signal stopped it, as it says in one sentence."""
    name = signal.Signals(number).name
    lines = [line for line in printed.replace("\r", "\n").splitlines() if line.startswith(SAYS)]
    assert code == 128 + number and len(lines) == 1 and "Traceback" not in printed, (code, printed)
    match = re.match(rf"qlseg train: stopped by {name} after step (\d+) of \d+; (\S+) holds the run", lines[0])
    assert match and Path(match[2]) == checkpoints(run)[-1] and last_step(run) == int(match[1]), lines
    read_state(checkpoints(run)[-1])
    return int(match[1])


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_signals_save_the_step(server, data, tmp_path):  # noqa: F811
    """SIGTERM to the process or to its group, Ctrl-C: the step is ended and saved, nothing differs in the end."""
    changes = {"max_steps": 60, "save_steps": 1000, "eval_steps": 30, "keep_checkpoints": 1}
    (tmp_path / "whole").mkdir()
    log, run = tmp_path / "log", tmp_path / "run"
    assert server.run(log, "train", write_recipe(tmp_path / "whole", data, **changes))[0] == 0
    recipe, steps = write_recipe(tmp_path, data, **changes), [0]
    ways = ((os.kill, signal.SIGTERM), (os.killpg, signal.SIGINT), (os.killpg, signal.SIGTERM))
    for kill, number in ways:
        pid = server.start(log, "train", recipe)
        wait_until(lambda: num_lines(run / "losses.jsonl") > steps[-1] or not is_running(pid))  # noqa: B023
        kill(pid, number)
        steps.append(stopped(server.exit_code(), log.read_text(), number, run))
    assert 0 < steps[1] < steps[2] < steps[3] < 60
    code, printed = server.run(log, "train", recipe)
    assert code == 0 and f"resuming at step {steps[-1]}" in printed
    assert_same_run(run, tmp_path / "whole" / "run")


def test_signal_during_an_evaluation(server, tmp_path):
    """The checkpoint is of the step, and the evaluation is made, with its `best`, when the run goes on."""
    make_data(tmp_path / "data", num_validation=400)
    changes = {"max_steps": 4, "save_steps": 1000, "eval_steps": 2, "keep_checkpoints": 1}
    (tmp_path / "whole").mkdir()
    log, run = tmp_path / "log", tmp_path / "run"
    assert server.run(log, "train", write_recipe(tmp_path / "whole", tmp_path / "data", **changes))[0] == 0
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
    assert server.run(log, "train", recipe)[0] == 0
    assert_same_run(run, tmp_path / "whole" / "run")
    assert "is finished" in server.run(log, "train", recipe)[1]


def test_second_signal_leaves_at_once(server, tmp_path):
    """While the first one waits for the end of a step that takes long."""
    make_data(tmp_path / "data")
    changes = {"max_steps": 9, "total_batch_size": 4000, "num_workers": 0, "warmup_steps": 0}
    recipe, log = write_recipe(tmp_path, tmp_path / "data", **changes), tmp_path / "log"
    pid = server.start(log, "train", recipe)
    wait_until(lambda: (log.exists() and "0/9 [" in log.read_text()) or not is_running(pid))
    time.sleep(0.5)
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.5)
    assert is_running(pid), log.read_text()
    os.kill(pid, signal.SIGTERM)
    start = time.monotonic()
    assert server.exit_code() == -signal.SIGTERM and time.monotonic() - start < 5
    assert checkpoints(tmp_path / "run") == []


@pytest.mark.parametrize("to", ["one", "launcher"])
def test_signal_to_two_processes(data, tmp_path, to):  # noqa: F811
    """One of them gets it, or both from the launcher: they stop after the same step, saved once."""
    recipe = write_recipe(tmp_path, data, max_steps=10**6, save_steps=10**6, eval_steps=10**6, num_workers=1)
    run, log = tmp_path / "run", tmp_path / "log"
    launcher = launch_two(recipe, log)
    wait_until(lambda: num_lines(run / "losses.jsonl") > 0 or launcher.poll() is not None, 120)
    ranks = [p for p in children(launcher.pid) if "qlseg_hf.cli.train" in Path(f"/proc/{p}/cmdline").read_text()]
    assert len(ranks) == 2, log.read_text()
    os.kill(ranks[1] if to == "one" else launcher.pid, signal.SIGTERM)
    assert launcher.wait(timeout=60) != 0
    lines = [line for line in log.read_text().replace("\r", "\n").splitlines() if line.startswith(SAYS)]
    step = last_step(run)
    assert len(lines) == 1 and f"stopped by SIGTERM after step {step} of" in lines[0], lines
    assert read_state(checkpoints(run)[-1])["num_processes"] == 2 and num_lines(run / "losses.jsonl") == step >= 10


# ------------------------------------------------------------------------------------------ losses that are no numbers


def names_of_step(folder: Path, step: int, rank: int = 0, world_size: int = 1) -> list[str]:
    """Pictures of a step, counted from 1, in the order that they are loaded."""
    samples = open_dataset(folder, "train")
    positions = BatchPositions(2, step, step - 1, 2 // world_size, rank, world_size)
    return [samples[index].name for batch in TrainingSampler(positions, len(samples), 0) for _, index in batch]


def test_loss_that_is_no_number(server, data, tmp_path):  # noqa: F811
    """The run stops before the update, names the pictures, and leaves the checkpoint that saving here would have."""
    ends = []
    for save_steps in (1, 100):
        folder = tmp_path / str(save_steps)
        folder.mkdir()
        recipe = write_recipe(folder, data, max_steps=4, warmup_steps=0, save_steps=save_steps, eval_steps=100)
        run, log = folder / "run", folder / "log"
        names = ", ".join(names_of_step(data, 2))
        place = run / "checkpoints" / "step-00000001"
        refused(
            *server.run(log, "train", recipe, "--learning_rate", "1e30"),
            f"the loss is nan at step 2 on {names}; the update was not made and {place} holds the run before it",
        )
        assert len((run / "losses.jsonl").read_text().splitlines()) == 1
        ends.append(load_file(place / "model.safetensors") | load_file(place / "average.safetensors"))
        ends[-1]["random"] = torch.load(place / "random-0.pt", weights_only=True)["cpu"]
        states = torch.load(place / "optimizer.bin", weights_only=True)["state"]
        ends[-1] |= {f"{i}.{key}": value for i, state in states.items() for key, value in state.items()}
        code, printed = server.run(log, "train", recipe, "--learning_rate", "1e-40")
        assert code == 1 and "resuming at step 1" in printed, printed  # weights of 1e30 are no start to go on from
        assert "the recipe has changed since step-00000001: learning_rate: 1e+30 -> 1e-40" in printed
    assert ends[0].keys() == ends[1].keys() and len(ends[0]) > 100
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


@pytest.mark.slow
def test_loss_that_is_no_number_on_two_processes(data, tmp_path):  # noqa: F811
    recipe, log = write_recipe(tmp_path, data, max_steps=4, warmup_steps=0, eval_steps=100), tmp_path / "log"
    launcher = launch_two(recipe, log, "--learning_rate", "1e30")
    assert launcher.wait(timeout=180) != 0
    names = "; ".join(f"{', '.join(names_of_step(data, 2, rank, 2))} in process {rank}" for rank in range(2))
    own = [line for line in log.read_text().splitlines() if line.startswith("qlseg train: ")]
    assert len(own) == 1 and f"the loss is nan at step 2 on {names}; the update was not made" in own[0], own
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000001"]


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_no_update_from_what_is_not_finite(broken):
    torch.manual_seed(0)
    model = QLSegForSemanticSegmentation(tiny_config())
    accelerator = Accelerator(cpu=True)
    accelerator.gradient_accumulation_steps = 2
    groups = [{"params": list(model.parameters()), "initial_lr": 1.0}]
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(groups, lr=1.0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [
        {"pixel_values": torch.randn(2, 3, 32, 48), "labels": torch.randint(0, 20, (2, 32, 48))} for _ in range(2)
    ]
    recipe = Recipe("-", 32, 4, 2, 10, "-", warmup_steps=0)
    if broken == "loss":
        batches[0]["pixel_values"][1, 0, 3, 3] = torch.inf  # in the batch that is not the last
    else:
        model.decoder.queries.register_hook(lambda gradient: gradient / 0)
    with pytest.raises(NotFiniteError, match="the loss is nan" if broken == "loss" else "the gradient's norm is"):
        training_step(accelerator, model, optimizer, batches, recipe, 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_steps_that_fp16_skips_are_no_error():
    scaled = [SimpleNamespace(scaler=SimpleNamespace(get_scale=lambda scale=scale: scale)) for scale in (65536, 0.5)]
    check_finite(scaled[0], 1.0, torch.inf)
    for accelerator, loss in ((scaled[1], 1.0), (scaled[0], torch.nan), (SimpleNamespace(scaler=None), 1.0)):
        with pytest.raises(NotFiniteError):
            check_finite(accelerator, loss, torch.inf)


# ----------------------------------------------------------------------------------------------------- broken pictures


def jpeg(**settings) -> bytes:
    rng = np.random.default_rng(3)
    picture = np.kron(rng.integers(0, 255, (9, 11, 3)), np.ones((5, 5, 1))).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", **settings)
    return file.getvalue()


BREAKS = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "zeros": lambda whole: bytes(len(whole)),
    "zeros after the middle": lambda whole: whole[: len(whole) // 2] + bytes(4 * len(whole)),
    "another file": lambda whole: b"<html><body>404 Not Found</body></html>",
    "no end": lambda whole: whole[:-2],
}


@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}])
def test_broken_jpegs(tmp_path, settings, monkeypatch):
    """None passes as good, from a file or from bytes, even where Pillow was told to fill what is missing with grey."""
    thumbnail = jpeg()  # an end marker of its own, before the picture's data
    whole = jpeg(comment=thumbnail, **settings)
    from PIL import ImageFile

    for fills in (False, True):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", fills)
        for name, breaks in BREAKS.items():
            (tmp_path / "a.jpg").write_bytes(breaks(whole))
            for source in (tmp_path / "a.jpg", breaks(whole)):
                with pytest.raises(SampleError, match="x: picture: .*cannot be read as a picture") as caught:
                    Sample(source, None, "x").read_picture()
                assert caught.value.kind == "picture", name
        expected = Sample(jpeg(**settings), None, "x").read_picture()
        for good in (whole, whole + b"what some cameras append", whole + b"\xff\xda\0\0"):
            np.testing.assert_array_equal(Sample(good, None, "x").read_picture(), expected)


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "JPEG"])
def test_damaged_exif_is_no_syntax_error(kind):
    exif = b"Exif\0\0MM\0e\0\0\0\x08"
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(file, kind, exif=exif)
    assert exif[6:] in file.getvalue()
    try:
        assert Sample(file.getvalue(), None, "x").read_picture().shape == (4, 6, 3)
    except SampleError as error:
        assert "x: picture:" in str(error)  # noqa: PT017 (either may be)


def make_jpegs(root: Path, num_training: int) -> list[Path]:
    """As `make_data`, in JPEG; returns the training pictures."""
    make_data(root, num_training)
    for path in root.glob("images/*/*.png"):
        Image.open(path).save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    return sorted((root / "images" / "training").iterdir())


def broken_and_clean(tmp_path: Path, num_training: int = 300) -> tuple[Path, Path, list[Path]]:
    """A data set with 1 % broken training pictures, the same without them, and these pictures."""
    pictures = make_jpegs(tmp_path / "broken", num_training)
    shutil.copytree(tmp_path / "broken", tmp_path / "clean")
    chosen = [pictures[i] for i in np.random.default_rng(5).choice(num_training, num_training // 100, replace=False)]
    for path, how in zip(chosen, ("cut", "zeros", "another file")):
        path.write_bytes(BREAKS[how](path.read_bytes()))
        (tmp_path / "clean" / path.relative_to(tmp_path / "broken")).unlink()
    for path in (tmp_path / "clean" / "annotations" / "training").iterdir():
        if not (tmp_path / "clean" / "images" / "training" / f"{path.stem}.jpg").exists():
            path.unlink()
    return tmp_path / "broken", tmp_path / "clean", chosen


def as_table(root: Path, place: Path, streaming: bool) -> dict:
    """The pictures of a folder as a table on the disk or a stream, broken bytes and all; what a recipe says of it."""
    import datasets

    for split, name in (("training", "train"), ("validation", "validation")):
        paths = sorted((root / "images" / split).iterdir())
        maps = [root / "annotations" / split / f"{path.stem}.png" for path in paths]
        columns = {
            kind: [{"bytes": path.read_bytes(), "path": path.name} for path in part]
            for kind, part in (("image", paths), ("annotation", maps))
        }
        features = datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()})
        place.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(columns, features).to_parquet(place / f"{name}-00000-of-00001.parquet")
    return {"data": str(place), "streaming": streaming}


LAYOUTS = ["folder", *(pytest.param(name, marks=pytest.mark.slow) for name in ("parquet", "streaming"))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_broken_pictures_are_left_out(server, tmp_path, layout, monkeypatch):
    """The run is bit for bit that on a data set without them, with any number of workers, and when it is resumed."""
    broken, clean, chosen = broken_and_clean(tmp_path)
    changes = {"max_steps": 8, "save_steps": 2, "eval_steps": 8, "keep_checkpoints": 9}
    runs = []
    for name, root, num_workers in (("broken", broken, 2), ("clean", clean, 0)):
        if layout != "folder":
            changes |= as_table(root, tmp_path / f"{name}-table", layout == "streaming")
        (tmp_path / f"{name}-run").mkdir()
        recipe = write_recipe(tmp_path / f"{name}-run", root, num_workers=num_workers, **changes)
        code, printed = server.run(tmp_path / "log", "train", recipe)
        assert code == 0, printed
        runs.append(tmp_path / f"{name}-run" / "run")
        if name == "broken":
            assert "3 of 300 pictures cannot be read; they are left out" in printed
            last = printed[printed.index("3 training pictures that cannot be read were left out") :]
            lines = (runs[0] / "unreadable.txt").read_text().splitlines()
            assert len(lines) == 3
            for path, line in zip(sorted(chosen), lines):
                assert path.name in last and re.match(rf"\S*{path.name}: picture: .*cannot be read", line)
            for checkpoint in checkpoints(runs[0])[2:]:  # as if it had been killed after step 4
                shutil.rmtree(checkpoint)
            code, printed = server.run(tmp_path / "log", "train", recipe, "--num_workers", "1")
            assert code == 0 and "resuming at step 4" in printed
            assert "3 training pictures that cannot be read were left out" in printed
    assert not (runs[1] / "unreadable.txt").exists()
    for part in ("losses.jsonl", "evaluations.jsonl", "last/model.safetensors"):
        assert (runs[0] / part).read_bytes() == (runs[1] / part).read_bytes(), part
    print(f"{layout}: 3 of 300 pictures broken, 3 left out and named, run identical with one without them")


def test_what_is_refused(server, tmp_path):
    """`strict`, many broken pictures, a broken validation picture, a label map of a wrong size or that is missing."""
    pictures = make_jpegs(tmp_path / "data", 20)
    recipe, log = write_recipe(tmp_path, tmp_path / "data", max_steps=2), tmp_path / "log"
    whole = pictures[3].read_bytes()
    pictures[3].write_bytes(whole[: len(whole) // 2])
    name = f"images/training/{pictures[3].name}"
    unreadable = f"1 of 20 pictures cannot be read; copy them again or take them out. {name}: picture"
    refused(*server.run(log, "train", recipe, "--strict", "true"), f"cannot be trained on: {unreadable}")
    code, printed = server.run(log, "check", recipe)
    assert code == 0 and f"warning: 1 of 20 pictures cannot be read; they are left out. {name}" in printed

    for path in pictures[4:7]:
        path.write_bytes(b"")
    refused(
        *server.run(log, "train", recipe), "cannot be trained on: 4 of 20 pictures cannot be read; copy them again"
    )
    for path in pictures[3:7]:
        path.write_bytes(whole)

    validation = tmp_path / "data" / "images" / "validation" / "1.jpg"
    validation.write_bytes(b"<html>")
    refused(*server.run(log, "train", recipe), "cannot be validated on: 1 of 3 pictures .* images/validation/1.jpg")
    validation.write_bytes(whole)

    for name, breaks, sentence in (
        ("5.png", lambda path: Image.open(path).crop((0, 0, 9, 9)).save(path), "differ in size from their pictures"),
        ("6.png", lambda path: path.write_bytes(path.read_bytes()[:50]), "label maps cannot be read"),
        ("7.png", lambda path: path.unlink(), "1 of 20 label maps are missing in"),
    ):
        path = tmp_path / "data" / "annotations" / "training" / name
        kept = path.read_bytes()
        breaks(path)
        refused(*server.run(log, "train", recipe), sentence, path.stem + r"\.(jpg|png)")
        path.write_bytes(kept)
    assert not (tmp_path / "run").exists()
    assert server.run(log, "train", recipe)[0] == 0


def test_picture_that_breaks_during_the_run(server, running, data, tmp_path):  # noqa: F811
    """The workers' error is the sentence, and the run goes on when the picture is whole again."""
    shutil.copytree(data, tmp_path / "data")
    recipe = write_recipe(tmp_path, tmp_path / "data", max_steps=6, save_steps=1, eval_steps=6)
    assert server.run(tmp_path / "log", "train", recipe)[0] == 0
    for checkpoint in checkpoints(tmp_path / "run")[-1:]:
        shutil.rmtree(checkpoint)
    path = tmp_path / "data" / names_of_step(tmp_path / "data", 6)[1]
    whole = path.read_bytes()
    path.write_bytes(whole[:90])
    name = path.relative_to(tmp_path / "data")
    refused(*server.run(tmp_path / "log", "train", recipe), f"{name}: picture: .* goes on from what was saved")
    path.write_bytes(whole)
    assert server.run(tmp_path / "log", "train", recipe)[0] == 0


# ----------------------------------------------------------------------------------------------- checkpoints and disks


def test_every_damage_to_a_checkpoint_is_seen(tmp_path):
    """Each file of a checkpoint missing, cut by a byte, longer by one, or with one bit turned."""
    model = torch.nn.Linear(2, 2)
    accelerator = Accelerator(cpu=True)
    model, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    for step in (3, 6):
        save_checkpoint(accelerator, tmp_path, step, {}, None, Recipe("-", 32, 2, 2, 10, str(tmp_path)))
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
    with pytest.raises(ValueError, match="is no checkpoint of a run"):
        read_state(tmp_path)
    print(f"{tried} damages to {len(paths)} files of a checkpoint tried, {tried} seen and named")


@pytest.mark.slow
def test_changes_between_resumes(server, data, tmp_path):  # noqa: F811
    """Said or refused, never passed over."""
    shutil.copytree(data, tmp_path / "data")
    recipe, log = write_recipe(tmp_path, tmp_path / "data", max_steps=2, save_steps=1, eval_steps=2), tmp_path / "log"
    assert server.run(log, "train", recipe)[0] == 0
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
    (newest / "optimizer.bin").unlink()
    refused(*server.run(log, "train", recipe), f"{newest} is damaged: optimizer.bin is missing; remove it")
    shutil.rmtree(newest)  # one step is left to make: a finished run reads no losses
    losses = tmp_path / "run" / "losses.jsonl"
    losses.write_bytes(b"\xff\n" + losses.read_bytes())
    refused(*server.run(log, "train", recipe), f"{losses} holds a line that this run has not written; remove it")
    losses.write_bytes(before["losses.jsonl"])
    code, printed = server.run(log, "train", recipe)
    assert code == 0 and "resuming at step 1" in printed and "has changed" not in printed
    assert files_of(tmp_path / "run") == before
    code, printed = server.run(log, "train", recipe, "--seed", "3", "--max_steps", "3")
    assert code == 0 and "the recipe has changed since step-00000002: max_steps: 2 -> 3, seed: 0 -> 3" in printed


@pytest.mark.slow
def test_full_disk(server, data, tmp_path):  # noqa: F811
    """A disk that is full at 12 different points; with room again the run goes on to the same end, bit for bit."""
    disk, log = tmp_path / "disk", tmp_path / "log"
    disk.mkdir()
    changes = {"max_steps": 6, "save_steps": 1, "eval_steps": 2, "num_workers": 0}
    (tmp_path / "whole").mkdir()
    assert server.run(log, "train", write_recipe(tmp_path / "whole", data, **changes))[0] == 0
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
            code, printed = server.run(log, "train", recipe)
            assert code == 0 and (before == 0 or f"resuming at step {before}" in printed), printed
            assert_same_run(disk / "run", tmp_path / "whole" / "run")
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    print(*sorted(said), sep="\n")
    print(f"{num_full} full disks, {num_full} sentences, {num_full} runs went on to the same end")
