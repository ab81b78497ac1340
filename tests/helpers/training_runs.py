"""What the tests of failing training runs share: commands in forked processes, and what a run left behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from accelerate import Accelerator
from programs import ROOT, environment, launcher, ranks, write_recipe

from qlseg_hf.data.augmentation import BatchPositions, TrainingSampler
from qlseg_hf.data.datasets import open_dataset
from qlseg_hf.training.checkpoints import checkpoints, read_state, step_of

SEED = int(os.environ.get("QLSEG_KILL_SEED", 6))
FAULTS = [
    pytest.mark.faults,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc"),
]
SAYS = ("qlseg train: ", "qlseg check: ", "qlseg evaluate: ")  # how a sentence for the user begins


class ForkServer:
    """See fork_server.py. A command has the environment of `programs.environment`, on CPUs, and `variables`.

    What modules read when they are imported is that of the server's own start.
    """

    def __init__(self):
        command = [sys.executable, str(ROOT / "tests" / "helpers" / "fork_server.py")]
        self.process = subprocess.Popen(
            command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = None

    def start(
        self,
        log: Path,
        *arguments,
        errors: Path | None = None,
        folder: Path = ROOT,
        processes: int = 1,
        **variables: str,
    ) -> int:
        """The id of a new process, and of its group; stderr goes into `log` as well if there is no file for it."""
        self.kill_left()
        shared = environment(**{"ACCELERATE_USE_CPU": "true", "PYTHONUNBUFFERED": "1"} | variables)
        own = [{}] if processes == 1 else ranks(processes)
        line = [*map(str, (folder, log, errors or log)), [shared | one for one in own], [*map(str, arguments)]]
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        self.pid = int(self.process.stdout.readline())
        return self.pid

    def kill_left(self) -> None:
        """End what a test that failed has left."""
        if self.pid is not None:
            with suppress(ProcessLookupError):  # it has ended, but its exit code was not asked for
                os.killpg(self.pid, signal.SIGKILL)
            self.exit_code()

    def exit_code(self) -> int:
        self.pid = None
        return int(self.process.stdout.readline())

    def run(self, log: Path, *arguments) -> tuple[int, str]:
        """Exit code, and what was printed."""
        self.start(log, *arguments)
        return self.exit_code(), log.read_text()

    def succeed(self, log: Path, *arguments) -> str:
        """What was printed; the exit code must be 0."""
        code, printed = self.run(log, *arguments)
        assert code == 0, printed
        return printed

    def complete(self, *arguments, expect: int | None = None, **settings) -> subprocess.CompletedProcess:
        """What `subprocess.run` gives of the command `qlseg ARGUMENTS`; its exit status must be `expect` if given."""
        with TemporaryDirectory() as place:
            files = Path(place, "stdout"), Path(place, "stderr")
            self.start(files[0], *arguments, errors=files[1], **settings)
            done = subprocess.CompletedProcess(arguments, self.exit_code(), *(file.read_text() for file in files))
        assert expect in (None, done.returncode), done.stderr[-4000:]
        return done

    def close(self) -> None:
        self.kill_left()
        with self.process:  # waits, and closes the pipes
            self.process.kill()


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


def wait_until(is_true, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def prepare_for_steps(model: torch.nn.Module, num_parts: int = 1) -> tuple:
    """Accelerator, model and a plain SGD of rate 1, for `training_step` with so many batches per step."""
    accelerator = Accelerator(cpu=True)
    accelerator.gradient_accumulation_steps = num_parts
    groups = [{"params": list(model.parameters()), "initial_lr": 1.0}]
    return accelerator, *accelerator.prepare(model, torch.optim.SGD(groups, lr=1.0))


def last_step(run: Path) -> int:
    found = checkpoints(run)
    return step_of(found[-1]) if found else 0


def start_long_run(server: ForkServer, data: Path, folder: Path) -> tuple[int, Path, Path]:
    """A run that would go on for long, after its first new checkpoint: id, folder, log."""
    recipe = write_recipe(folder, data, max_steps=10**6, save_steps=1, eval_steps=10**6)
    run, log = folder / "run", folder / "log"
    before, pid = last_step(run), server.start(log, "train", recipe)
    wait_until(lambda: last_step(run) > before or not is_running(pid))
    assert before == 0 or f"resuming at step {before}" in log.read_text(), log.read_text()
    return pid, run, log


def refused(code: int, printed: str, *sentences: str) -> None:
    """It ended with one sentence, no traceback."""
    lines = [line for line in printed.replace("\r", "\n").splitlines() if line.startswith(SAYS)]
    assert code == 1 and len(lines) == 1 and "Traceback" not in printed, printed
    for sentence in sentences:
        assert re.search(sentence, lines[0]), lines[0]


def files_of(run: Path, copied_from: Path | None = None) -> dict[str, bytes]:
    """Every file of a run, without the run's own folder, which recipes and cards name, or that of what it was."""
    found = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file() and path.name != "contents.json"):
        content = path.read_bytes().replace(str(run).encode(), b"RUN")
        found[path.relative_to(run).as_posix()] = content.replace(str(copied_from or run).encode(), b"RUN")
    return found


def assert_same_run(run: Path, whole: Path) -> int:
    """Number of files, all of which are equal: weights, average, optimiser, random states, logs, models, cards."""
    found, expected = files_of(run, copied_from=whole), files_of(whole)
    assert found.keys() == expected.keys() and "last/model.safetensors" in found
    assert [name for name in found if found[name] != expected[name]] == []


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


def launch_two(recipe: Path, log: Path, *arguments) -> subprocess.Popen:
    command = [*launcher(2), "-m", "qlseg_hf.cli.train", str(recipe), *arguments]
    env = environment() | {"ACCELERATE_USE_CPU": "true", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, env=env, stdout=log.open("w"), stderr=subprocess.STDOUT, start_new_session=True)


def ranks_of(launcher: subprocess.Popen) -> list[int]:
    """The two processes that `launch_two` has started."""
    found = [p for p in children(launcher.pid) if "qlseg_hf.cli.train" in Path(f"/proc/{p}/cmdline").read_text()]
    assert len(found) == 2, found
    return found


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


def names_of_step(folder: Path, step: int, rank: int = 0, world_size: int = 1) -> list[str]:
    """Pictures of a step, counted from 1, in the order that they are loaded."""
    samples = open_dataset(folder, "train")
    positions = BatchPositions(2, step, step - 1, 2 // world_size, rank, world_size)
    return [samples[index].name for batch in TrainingSampler(positions, len(samples), 0) for _, index in batch]
