"""Storage that fails: full and read-only disks, damaged files, killed writers, two writers in one place.

`make faults` runs all of it and prints what was tried and what survived. Survived: one sentence that names the place
or the file, exit status 1, what was there before whole bit for bit, nothing half-written, nothing left; or success.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import tqdm
from conftest import FIXTURES, ROOT
from full_disk import tree

from qlseg_hf import QLSegForSemanticSegmentation, QLSegImageProcessor
from qlseg_hf.cli.errors import exit_status
from qlseg_hf.cli.main import run
from qlseg_hf.data.labels import read_label_file
from qlseg_hf.evaluation.evaluator import Progress
from qlseg_hf.evaluation.metrics import StreamingScores
from qlseg_hf.hub.loading import load_network
from qlseg_hf.training.recipe import load_recipe
from qlseg_hf.utils.files import partial_folder, remove_partial, write_atomically, written_into

pytestmark = pytest.mark.faults
one_network = pytest.mark.parametrize("stored", ["b"], indirect=True)
CHECKPOINT = FIXTURES / "b" / "checkpoint.pth"
# the thread that watches progress bars may hold their lock while a process is forked, which then waits for ever
NO_MONITOR = "import tqdm; tqdm.tqdm.monitor_interval = 0"
tqdm.tqdm.monitor_interval = 0
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def tell(what: str, tried: int, survived: int) -> None:
    """The counts of the README's table; shown by `make faults` (-rA)."""
    print(f"{what}: {tried} tried, {survived} survived")
    assert tried and survived == tried


# ------------------------------------------------------------------------------------- full disks, read-only folders

NAMESPACE = ["unshare", "--mount", "--map-root-user"]


def may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0


@one_network
@pytest.mark.parametrize(
    "command, points",
    [
        ("scenes", 8),
        *(
            pytest.param(command, 40, marks=pytest.mark.slow, id=f"{command}-many")
            for command in ("convert", "save", "predict", "evaluate", "export", "quantize", "scenes")
        ),
    ],
)
def test_full_disk(stored, tmp_path, command, points):
    """A tmpfs of many sizes, one with too few inodes, and one that is read-only."""
    if not may_mount():
        pytest.skip("a tmpfs needs mount namespaces (unshare --mount --map-root-user), which are not allowed here")
    extra = ROOT / ".venv" / "torchao"
    if command == "quantize" and not extra.is_dir():
        pytest.skip("quantize.py needs torchao, which is not installed")
    (tmp_path / "place").mkdir()
    arguments = [command, stored.folder, stored.checkpoint, stored.picture("wide"), tmp_path / "place"]
    done = subprocess.run(
        [*NAMESPACE, sys.executable, ROOT / "tests" / "helpers" / "full_disk.py", *arguments]
        + [tmp_path / "result.json", "--points", str(points)],
        env=ENVIRONMENT | ({"EXTRA_PATH": str(extra)} if command == "quantize" else {}),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert not result["failed"], json.dumps(result["failed"][:3], indent=1)
    assert result["tried"] >= points // 2
    tell(f"full or read-only disk, {command}", result["tried"], result["survived"])


def test_failed_save_leaves_the_folder(tiny_model, tmp_path, monkeypatch):
    """Without any mount: the last thing that is written cannot be."""
    tiny_model.save_pretrained(tmp_path / "net")
    before = tree(tmp_path)
    for folder in ("net", "new/deep"):
        for name in ("qlseg_hf.hub.saving.plain_model_card", "transformers.modeling_utils.safe_save_file"):

            def no_space(*args, **kwargs):
                raise OSError(28, "No space left on device")

            with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
                patch.setattr(name, no_space)
                (tmp_path / "net" / "README.md").unlink(missing_ok=True)
                before.pop("net/README.md", None)
                tiny_model.save_pretrained(tmp_path / folder)
            assert tree(tmp_path) == before


def test_saved_again_in_another_number_of_shards(tiny_model, tmp_path):
    """Of two generations side by side the old one would be loaded."""
    tiny_model.save_pretrained(tmp_path)
    (tmp_path / "mine.txt").write_text("keep")
    with torch.no_grad():
        tiny_model.class_head.bias += 1
    tiny_model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert not (tmp_path / "model.safetensors").exists() and (tmp_path / "mine.txt").exists()
    again = QLSegForSemanticSegmentation.from_pretrained(tmp_path)
    assert torch.equal(again.class_head.bias, tiny_model.class_head.bias)
    tiny_model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]


def test_saved_files_have_the_usual_permissions(tiny_model, tmp_path):
    """safetensors 0.8 writes files that only their owner may read; a folder is shared."""
    before = os.umask(0o022)
    try:
        tiny_model.save_pretrained(tmp_path / "net")
        QLSegImageProcessor().save_pretrained(tmp_path / "net")
        write_atomically(tmp_path / "net" / "scores.json", b"{}")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "net").iterdir()} == {0o644}


# ------------------------------------------------------------------------------------------------------ damaged files


class Damage:
    """Copies of a file, cut or with a flipped bit, each at a random place of its first `length` bytes."""

    def __init__(self, path: Path, length: int | None = None):
        self.path, self.content = path, path.read_bytes()
        self.length = length or len(self.content)

    def __call__(self, number: int):
        generator = random.Random(0)
        for i in range(number):
            place = generator.randrange(self.length)
            data = bytearray(self.content)
            data[place] ^= 1 << generator.randrange(8)
            self.path.write_bytes(self.content[:place] if i % 4 == 0 else bytes(data))
            yield f"{'cut' if i % 4 == 0 else 'flipped'} at {place}"
        self.path.write_bytes(self.content)


def header_length(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def sentences(capsys, name: str, function) -> str | None:
    """The sentence of a function that failed as our commands fail; None if it did not."""
    status = exit_status("tool", function)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "%|" not in line]
    if status == 0:
        return None
    assert len(lines) == 1 and lines[0].startswith("tool: ") and name in lines[0], lines
    return lines[0]


@pytest.mark.parametrize("number", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_damaged_checkpoint(tmp_path, capsys, number):
    """Refused, or converted to exactly the same weights (what was hit has no meaning)."""
    path, folder = tmp_path / "x.pth", tmp_path / "out"
    shutil.copy(CHECKPOINT, path)
    assert run(["convert", path, folder]) == 0
    weights = (folder / "model.safetensors").read_bytes()
    tried = refused = 0
    damage = Damage(path)
    tail = len(damage.content) - 30000  # half of the places in the archive's directory, which has no checksum
    for i, what in enumerate(damage(number)):
        if i % 2:
            data = bytearray(damage.content)
            data[tail + random.Random(i).randrange(30000)] ^= 1 << i % 8
            path.write_bytes(data)
        shutil.rmtree(folder, ignore_errors=True)
        capsys.readouterr()
        status = run(["convert", path, folder])
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "%|" not in line]
        tried += 1
        if status == 0:
            assert (folder / "model.safetensors").read_bytes() == weights, what
            continue
        assert status == 1 and len(lines) == 1 and "x.pth" in lines[0] and not folder.exists(), (what, lines)
        refused += 1
    assert refused > number * 0.6
    tell(f"damaged checkpoint ({refused} refused, the others gave the same weights)", tried, tried)


@one_network
@pytest.mark.parametrize("number", [6, pytest.param(120, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_damaged_model_folder(stored, tmp_path, capsys, name, number):
    """Cuts and flips in the head of the weights, and anywhere in the JSON files."""
    folder = shutil.copytree(stored.folder, tmp_path / "net")
    path = folder / name
    is_json = name.endswith("json")
    tried = refused = 0
    expected = {key: tuple(x.shape) for key, x in stored.model().state_dict().items()}
    for what in Damage(path, None if is_json else header_length(path))(number):
        tried += 1
        try:
            found = load_network(folder)[0]
        except (OSError, ValueError) as error:
            assert str(folder) in str(error) and name.split(".")[-1] in str(error) or "weights of" in str(error), error
            refused += 1
            continue
        # what loads is valid: a value of the right kind, every weight from the file
        shapes = {key: tuple(x.shape) for key, x in found.state_dict().items()}
        assert shapes == expected and (is_json or what.startswith("flipped")), what
        if not is_json:
            assert all(torch.equal(x, y) for x, y in zip(found.parameters(), stored.model().parameters())), what
    assert refused >= number * 0.4
    tell(f"damaged {name} ({refused} refused, the others are valid)", tried, tried)


@one_network
def test_weights_that_are_missing_or_not_finite(stored, tmp_path):
    """`from_pretrained` draws what is missing at random, and warns; our commands refuse."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(stored.folder, tmp_path / "net")
    weights = load_file(folder / "model.safetensors")
    bias = weights["class_head.bias"]
    for change, sentence in (
        ({"class_head.bias": None}, r"1 missing \(class_head.bias\)"),
        ({"extra": bias.clone()}, r"1 unexpected \(extra\)"),
        ({"class_head.bias": bias[1:]}, "1 mismatched"),
        ({"class_head.bias": bias * float("nan")}, r"1 not finite \(class_head.bias\)"),
    ):
        changed = {key: x for key, x in (weights | change).items() if x is not None}
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"weights of .*net do not fit its config.json: {sentence}"):
            load_network(folder)


def write_state(path: Path) -> dict[str, str]:
    counted, protocol = Progress(StreamingScores(7, 255), 3), {"model": "x", "flip": "False"}
    counted.add(torch.arange(400).view(20, 20) % 7, torch.arange(400).view(20, 20) % 5, 0, "a.png")
    counted.write(path, protocol)
    return protocol


@pytest.mark.parametrize("kind", ["state", "recipe", "labels"])
def test_damaged_small_files(tmp_path, capsys, kind):
    path = tmp_path / {"state": "x.state", "recipe": "x.yaml", "labels": "x.json"}[kind]
    if kind == "state":
        protocol = write_state(path)
        whole = Progress(StreamingScores(7, 255), 3)
        whole.read(path, protocol)
    elif kind == "recipe":
        shutil.copy(next((ROOT / "qlseg_hf" / "recipes").glob("*.yaml")), path)
    else:
        path.write_text(json.dumps([f"n{i}" for i in range(7)]))

    def read():
        if kind == "state":
            found = Progress(StreamingScores(7, 255), 3)
            found.read(path, protocol)
            # equal to what was written, or it should have been refused: a wrong bit here is a wrong score
            assert found.next_index == whole.next_index and found.worst == whole.worst
            assert all(torch.equal(x, whole.scores.totals[key]) for key, x in found.scores.totals.items())
        else:
            load_recipe(path) if kind == "recipe" else read_label_file(path)

    outcomes = [sentences(capsys, path.name, read) for _ in Damage(path)(400)]
    refused = sum(outcome is not None for outcome in outcomes)
    assert refused > {"state": 390, "recipe": 100, "labels": 200}[kind]
    tell(f"damaged {kind} ({refused} refused, the others are valid)", len(outcomes), len(outcomes))


# ----------------------------------------------------------------------------------- killed writers, several writers


def start(code: str, *arguments) -> subprocess.Popen:
    """A process that prints "ready" when everything is imported, and waits for a line before it goes on."""
    code = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{NO_MONITOR}\n{code}"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=ENVIRONMENT, **pipes)


# everything is imported once, and forked: N children race for one folder
RACES = """
import json, os
from qlseg_hf.cli.main import run
print("ready", flush=True)
for line in sys.stdin:
    number, place = line.split()
    children = []
    for i in range(int(number)):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(f"{place}.{i}", os.O_WRONLY | os.O_CREAT), 2)
            os._exit(run(["convert", sys.argv[1], f"{place}/net"]))
        children.append(child)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""
# each line is a folder to convert to
CONVERTS = """
import os
from qlseg_hf.cli.main import run
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        os._exit(run(["convert", sys.argv[1], line.strip()]))
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""
SAVES = """
import os, torch
from qlseg_hf import QLSegForSemanticSegmentation
model = QLSegForSemanticSegmentation.from_pretrained(sys.argv[1])
with torch.no_grad():
    model.class_head.bias += 1
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        model.save_pretrained(line.strip())
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""
EXPORTS = """
import os, functools, torch
from qlseg_hf.export import onnx as onnx_model
from qlseg_hf.hub.loading import load_network
model, processor = load_network(sys.argv[1])
program = onnx_model.onnx_program(model, onnx_model.OUTPUTS)
onnx_model.onnx_program = lambda *_: program
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        onnx_model.write_onnx(model, processor, line.strip())
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@one_network
@pytest.mark.parametrize("kind", ["convert", "save", "export"])
@pytest.mark.parametrize("kills", [pytest.param(50, marks=pytest.mark.slow)])
def test_killed_writers(stored, tmp_path, kind, kills):
    """SIGKILL at random moments: the old is whole or the new is, and the next run removes what was left."""
    code, source = {
        "convert": (CONVERTS, stored.checkpoint),
        "save": (SAVES, stored.folder),
        "export": (EXPORTS, stored.folder),
    }[kind]
    place = tmp_path / "place" / ("net.onnx" if kind == "export" else "net")
    place.parent.mkdir()
    writer = start(code, source)
    assert writer.stdout.readline() == "ready\n", writer.stderr.read()

    def prepare() -> None:
        if place.is_dir():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        if kind == "save":
            shutil.copytree(stored.folder, place)
        elif kind == "export":
            place.write_text("old")

    def write(after: float | None) -> tuple[float, int]:
        begin = time.perf_counter()
        print(place, file=writer.stdin, flush=True)
        child = int(writer.stdout.readline())
        if after is not None:
            while killed % 4 and time.perf_counter() - begin < took and not any(place.parent.glob("**/.*.partial-*")):
                pass  # three of four are killed after the writing has begun, which is late in a conversion
            time.sleep(after / 5 if killed % 4 else after)
            with suppress(ProcessLookupError):  # it has ended
                os.kill(child, signal.SIGKILL)
        status = int(writer.stdout.readline())
        return time.perf_counter() - begin, status

    def seen() -> dict[str, str]:
        """What is there, but for what a killed writer may leave."""
        return {name: x for name, x in tree(place.parent).items() if ".partial-" not in name}

    generator = random.Random(0)
    killed = 0
    prepare()
    old = seen()
    took, status = write(None)
    assert status == 0
    took = max(took, 0.02)
    new = seen()
    tried = left = 0
    try:
        while killed < kills and tried < 4 * kills:
            prepare()
            status = write(generator.uniform(0, took))[1]
            tried += 1
            if status != signal.SIGKILL:  # it was quicker
                continue
            killed += 1
            found = seen()
            left += found != tree(place.parent)
            if kind == "save":  # file by file, each of them whole
                assert all(found[name] in (old.get(name), new.get(name)) for name in found), killed
                QLSegForSemanticSegmentation.from_pretrained(place)
            else:
                assert found in (old, new), killed
        prepare()
        assert write(None)[1] == 0 and tree(place.parent) == new  # nothing is left
    finally:
        writer.stdin.close()
        writer.wait()
        writer.stdout.close()
        writer.stderr.close()
    assert left > 0  # some were hit while they wrote
    tell(f"SIGKILL of {kind} ({left} left something, which the next run removed)", killed, killed)


def test_what_others_write_is_left_alone(tmp_path):
    """A partial folder belongs to a living process until that has ended, whoever looks."""
    with partial_folder("net", tmp_path) as mine:
        (mine / "x").write_text("x")
        files = ROOT / "qlseg_hf" / "utils" / "files.py"  # alone, without importing the package
        code = (
            f"import pathlib, runpy; runpy.run_path({str(files)!r})['remove_partial'](pathlib.Path({str(tmp_path)!r}))"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
        assert (mine / "x").exists()
        with partial_folder("net", tmp_path) as other:
            assert (mine / "x").exists() and other != mine
    (tmp_path / ".net.partial-abcd1234").mkdir()
    (tmp_path / ".other.partial-abcd1234").write_text("x")
    (tmp_path / ".net.partial-mine").mkdir()  # not of our making
    remove_partial(tmp_path, "net")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".net.partial-mine", ".other.partial-abcd1234"]
    remove_partial(tmp_path)
    remove_partial(tmp_path / "none")
    assert [path.name for path in tmp_path.iterdir()] == [".net.partial-mine"]
    with written_into(tmp_path / "a" / "b") as beside:
        (beside / "y").write_text("y")
    assert tree(tmp_path / "a").keys() == {"b", "b/y"}


@pytest.mark.parametrize("writers, rounds", [pytest.param(n, 15, marks=pytest.mark.slow) for n in (2, 4)])
def test_many_converters_one_folder(tmp_path, writers, rounds):
    """One whole folder, equal to that of a single conversion; the others succeed or say a sentence."""
    assert run(["convert", CHECKPOINT, tmp_path / "alone" / "net"]) == 0
    expected = tree(tmp_path / "alone")
    parent = start(RACES, CHECKPOINT)
    assert parent.stdout.readline() == "ready\n"
    tried = refused = 0
    for number in range(rounds):
        place = tmp_path / f"round-{number}"
        place.mkdir()
        print(writers, place, file=parent.stdin, flush=True)
        while not (line := parent.stdout.readline()).startswith("["):  # what the children print
            assert line, parent.stderr.read()
        statuses = json.loads(line)
        for i, status in enumerate(statuses):
            lines = Path(f"{place}.{i}").read_text().replace("\r", "\n").splitlines()
            lines = [line for line in lines if line.strip() and "%|" not in line]
            assert status == 0 or (status == 1 and len(lines) == 1 and str(place) in lines[0]), (status, lines)
        assert 0 in statuses and tree(place) == expected, statuses
        tried, refused = tried + writers, refused + sum(statuses)
        shutil.rmtree(place)
    parent.communicate()
    tell(f"{writers} converters, one folder ({refused} refused in a sentence)", tried, tried)


def test_many_writers_of_one_file(tmp_path):
    """As two evaluations with one --output: the file is always one of theirs, whole."""
    path, children = tmp_path / "scores.json", []
    for letter in b"abcd":
        child = os.fork()
        if child == 0:
            for _ in range(200):
                write_atomically(path, bytes([letter]) * 20000)
            os._exit(0)
        children.append(child)
    looked = 0
    while children:
        if path.exists():
            content = path.read_bytes()
            assert len(content) == 20000 and len(set(content)) == 1
            looked += 1
        for child in children[:]:
            if os.waitpid(child, os.WNOHANG) != (0, 0):
                children.remove(child)
    assert [file.name for file in tmp_path.iterdir()] == ["scores.json"] and looked > 20
    tell("4 writers of one file", 800, 800)
