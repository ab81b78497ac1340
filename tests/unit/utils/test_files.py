"""What is written takes its place whole, whatever fails half-way; a folder belongs to one run."""

import errno
import fcntl
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from qlseg_hf.utils import files
from qlseg_hf.utils.files import (
    lock_folder,
    partial_folder,
    recover_folder,
    remove_folder,
    remove_leftovers,
    remove_partial,
    replace_folder,
    write_beside,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make_folder(place: Path, text: str) -> Path:
    place.mkdir()
    (place / "x").write_text(text)
    return place


def die_at(number: int, *wanted: Path) -> int:
    """Fork a process that replaces a folder and is killed just before its `number`-th rename; how it ended."""
    child = os.fork()
    if child == 0:
        renames, replace = [], os.replace

        def count(*arguments):
            renames.append(arguments)
            if len(renames) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*arguments)

        files.os.replace = count
        replace_folder(*wanted)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("recover", [remove_partial, remove_leftovers, recover_folder])
def test_a_kill_while_a_folder_is_replaced(tmp_path, number, recover):
    """The old one or the new one is there afterwards, whole, and nothing of the other."""
    place, new = make_folder(tmp_path / "best", "old"), make_folder(tmp_path / "new", "new")
    assert die_at(number, new, place) == (0 if number == 4 else -signal.SIGKILL)
    assert place.exists() == (number != 2)
    recover(place if recover is recover_folder else tmp_path)
    assert (place / "x").read_text() == ("old" if number < 3 else "new")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == (["best", "new"] if number < 3 else ["best"])


def test_a_folder_is_put_back_where_there_are_no_locks(tmp_path, monkeypatch):
    place = make_folder(tmp_path / "best", "old")
    assert die_at(2, make_folder(tmp_path / "new", "new"), place) == -signal.SIGKILL

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    remove_partial(tmp_path)
    assert not place.exists()  # somebody might be replacing it just now
    recover_folder(place)
    assert (place / "x").read_text() == "old"
    remove_partial(tmp_path)
    assert len(names(tmp_path)) == 3  # what is left of it stays


def test_a_rename_that_fails_leaves_the_old_folder(tmp_path, monkeypatch):
    place, replace = make_folder(tmp_path / "best", "old"), os.replace

    def fail_to_move_the_new(source, target):
        if target == place and source.name == "new":
            raise OSError(errno.EIO, "the disk is gone")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", fail_to_move_the_new)
    with pytest.raises(OSError, match="the disk is gone"):
        replace_folder(make_folder(tmp_path / "new", "new"), place)
    assert (place / "x").read_text() == "old" and names(tmp_path) == ["best", "new"]


def test_a_new_folder_takes_the_place_left_by_a_kill(tmp_path):
    """The writer of a folder puts the old one back first, so that its own failure does not lose both."""
    place = make_folder(tmp_path / "best", "old")
    assert die_at(2, make_folder(tmp_path / "new", "new"), place) == -signal.SIGKILL
    with pytest.raises(RuntimeError), write_beside(place):
        raise RuntimeError
    assert (place / "x").read_text() == "old"
    with write_beside(place) as folder:
        (folder / "x").write_text("newest")
    assert (place / "x").read_text() == "newest" and names(tmp_path) == ["best", "new"]


def test_what_the_version_before_left(tmp_path):
    """`.NAME.old` is put back if its place is empty; else it goes, as `.NAME.new` does."""
    make_folder(tmp_path / ".best.old", "old")
    make_folder(tmp_path / ".step-1.new", "half")
    recover_folder(tmp_path / "best")
    assert (tmp_path / "best" / "x").read_text() == "old"
    make_folder(tmp_path / ".best.old", "older")
    recover_folder(tmp_path / "best")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["best"] and (tmp_path / "best" / "x").read_text() == "old"


def test_a_folder_is_removed_whole(tmp_path, monkeypatch):
    place = make_folder(tmp_path / "step-1", "x")

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files.shutil, "rmtree", die)
        remove_folder(place)
    assert not place.exists()
    recover_folder(place)
    assert not place.exists()  # it was to go
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_a_folder_that_was_replaced_does_not_come_back(tmp_path):
    """It may be half gone when a kill strikes, and somebody may remove the new one before the next run."""
    place, new = make_folder(tmp_path / "best", "old"), make_folder(tmp_path / "new", "new")
    child = os.fork()
    if child == 0:
        files.shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        replace_folder(new, place)
    os.waitpid(child, 0)
    assert (place / "x").read_text() == "new" and len(names(tmp_path)) == 2
    files.shutil.rmtree(place)
    recover_folder(place)
    remove_partial(tmp_path)
    assert names(tmp_path) == []


def test_a_folder_of_the_user_is_no_replaced_one(tmp_path):
    """A half-written folder is not taken for the one that it was to replace."""
    child = os.fork()
    if child == 0:
        with partial_folder("net", tmp_path) as folder:
            make_folder(folder / "old", "x")
            make_folder(folder / "removed", "x")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    remove_partial(tmp_path)
    assert names(tmp_path) == []


# ----------------------------------------------------------------------------------------------------- run folders


def try_to_lock(folder: Path, answer) -> None:
    try:
        lock_folder(folder)
        answer.send("has it")
    except ValueError as error:
        answer.send(str(error))


def ask_another_process(folder: Path) -> str:
    """What a process that has nothing to do with this one is told when it wants the folder."""
    context = multiprocessing.get_context("fork")  # this process has no lock that could be inherited
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=try_to_lock, args=(folder, sender))
    process.start()
    answer = receiver.recv()
    process.join()
    return answer


def test_a_run_folder_has_one_owner(tmp_path):
    """Until it ends: the same process may ask again, and what it forks does not keep the folder."""
    reader, writer = os.pipe()
    owner = os.fork()
    if owner == 0:
        lock_folder(tmp_path / "run")
        lock_folder(tmp_path / "run")
        worker = os.fork()
        if worker == 0:
            signal.pause()
        os.write(writer, str(worker).encode())
        signal.pause()
    worker = int(os.read(reader, 20))
    try:
        assert "another run is writing into" in ask_another_process(tmp_path / "run")
    finally:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
    try:
        assert ask_another_process(tmp_path / "run") == "has it"
    finally:
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("code", ["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def test_runs_on_file_systems_without_locks(tmp_path, monkeypatch, code):
    def no_locks(*_):
        raise OSError(getattr(errno, code), "no locks")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    lock_folder(tmp_path / "run")
    assert (tmp_path / "run").is_dir()


def test_a_lock_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        lock_folder(tmp_path / "run")
