"""Killed writers, and several writers in one place: the old or the new, whole, and nothing left."""

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
import tqdm
from conftest import FIXTURES, ROOT
from full_disk import tree
from writers import FORKS, RACES, WRITERS, sentences_of, start, tell

from qlseg_hf import QLSegForSemanticSegmentation
from qlseg_hf.cli.main import run
from qlseg_hf.utils.files import partial_folder, remove_partial, write_atomically, write_into

pytestmark = pytest.mark.faults
one_network = pytest.mark.parametrize("stored", ["b"], indirect=True)
CHECKPOINT = FIXTURES / "b" / "checkpoint.pth"
tqdm.tqdm.monitor_interval = 0  # its thread may hold a lock while this is forked


@one_network
@pytest.mark.parametrize("kind", ["convert", "save", "export"])
@pytest.mark.parametrize("kills", [pytest.param(50, marks=pytest.mark.slow)])
def test_killed_writers(stored, tmp_path, kind, kills):
    """SIGKILL at random moments: the old is whole or the new is, and the next run removes what was left."""
    place = tmp_path / "place" / ("net.onnx" if kind == "export" else "net")
    place.parent.mkdir()
    writer = start(WRITERS[kind] + FORKS, stored.checkpoint if kind == "convert" else stored.folder)
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
    with write_into(tmp_path / "a" / "b") as beside:
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
            lines = sentences_of(Path(f"{place}.{i}").read_text())
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
