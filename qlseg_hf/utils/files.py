# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are written beside their place and moved there, so that nothing is ever half-written.

One protocol for all: what is being written, and a folder that is being replaced or removed, is called
`.NAME.partial-XXXXXXXX`. Its writer holds a lock on it, which the system drops when the process dies, so
`remove_partial` tells what a kill has left from what somebody is writing just now. A folder that was being replaced
lies in there whole, as `.replaced`, and is put back.

What is moved was given to the disk before (fsync), so a power cut leaves the old or the new one as well.

The run folder's lock is of the package filelock. The lock of a writer is `flock` itself, because filelock locks
files that it makes: beside each output such a file would stay for ever, and inside a folder it would be moved with it.
"""

import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # not on Windows, where writers lock nothing and what a kill leaves has to be removed by hand
    fcntl = None

_LOCKS: dict[Path, FileLock] = {}  # see `lock_folder`
_NO_LOCKS = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems that know none
_REPLACED = ".replaced"


def _lock(path: Path) -> int | None:
    """A descriptor that locks `path` while it is open; None if `remove_partial` of another process came first."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # a file system without locks: see `remove_partial`
        pass
    return descriptor


def _partial_paths(folder: Path, name: str | None) -> list[tuple[Path, Path]]:
    """(what is being written, its place) for all of `name`, or of anything, in `folder`."""
    pattern = re.compile(rf"\.({'.*' if name is None else re.escape(name)})\.partial-[a-z0-9_]{{8}}")
    paths = list(folder.iterdir()) if folder.is_dir() else []
    return [(path, folder / match[1]) for path in paths if (match := pattern.fullmatch(path.name))]


def remove_partial(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes have left in `folder` of writing `name`, or anything.

    A folder that was being replaced is put back. Where there are no locks nothing is removed: somebody might be
    writing it.
    """
    for path, place in _partial_paths(folder, name) if fcntl is not None else []:
        with suppress(OSError):  # it is locked, another process was quicker, or it may not be removed
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _put_back(path, place)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                os.close(descriptor)


def _put_back(partial: Path, place: Path) -> None:
    """Move a folder that was being replaced to its place again, if nothing is there."""
    if (partial / _REPLACED).exists() and not place.exists():
        os.replace(partial / _REPLACED, place)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file beside `path` and move it into place, so that a kill or a full disk leaves the old one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written, name = tempfile.mkstemp(prefix=f".{path.name}.partial-", dir=path.parent)
    held = _lock(Path(name))
    try:
        with open(written, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~current_umask())
        os.replace(name, path)
        sync(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    finally:
        if held is not None:
            os.close(held)


@contextmanager
def partial_folder(name: str, parent: Path) -> Iterator[Path]:
    """A new folder in `parent` to write into before it, or what is in it, is moved; removed at the end if still there.

    Its parents are made. What killed processes have left of writing `name` is removed first.
    """
    beside = held = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        remove_partial(parent, name)
        while held is None:  # at once but for a coincidence
            beside = Path(tempfile.mkdtemp(prefix=f".{name}.partial-", dir=parent))
            held = _lock(beside)
        beside.chmod(0o777 & ~current_umask())
        yield beside
    finally:
        if beside is not None:
            _put_back(beside, parent / name)
            shutil.rmtree(beside, ignore_errors=True)
        if held is not None:
            os.close(held)


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def write_beside(place: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `place` when the block ends and vanishes if it raises."""
    with partial_folder(place.name, place.parent) as beside:
        yield beside
        replace_folder(beside, place)


@contextmanager
def write_into(folder: Path) -> Iterator[Path]:
    """A folder to write files into, which take their places in `folder` when the block ends; if it raises, none does.

    For a folder that holds more than what is written.
    """
    with partial_folder("saved", folder) as beside:
        yield beside
        for path in sorted(beside.iterdir()):
            path.chmod(0o666 & ~current_umask())  # safetensors 0.8 writes files that their owner alone may read
            sync(path)
            os.replace(path, folder / path.name)
        sync(folder)


def replace_folder(new: Path, place: Path) -> None:
    """Move folder `new` to `place`. A kill in between leaves the old one whole, which `recover_folder` puts back."""
    for path in (*new.rglob("*"), new):
        sync(path)
    if not place.exists():
        os.replace(new, place)
        sync(place.parent)
        return
    with partial_folder(place.name, place.parent) as beside:
        os.replace(place, beside / _REPLACED)
        os.replace(new, place)
        sync(place.parent)
        os.replace(beside / _REPLACED, beside / "removed")  # from here on nobody puts it back


def recover_folder(place: Path) -> None:
    """Undo a `replace_folder` that was killed half-way, on file systems without locks too.

    For a folder that no other process writes. `.NAME.old` is what version 0.1 left.
    """
    for partial, _ in _partial_paths(place.parent, place.name):
        _put_back(partial, place)
    old = place.with_name(f".{place.name}.old")
    if old.exists() and not place.exists():
        os.replace(old, place)


def remove_folder(place: Path) -> None:
    """Delete a folder, which is whole under its name or gone, never half there."""
    beside = place.with_name(f".{place.name}.partial-{secrets.token_hex(4)}")  # no new folder: the disk may be full
    os.replace(place, beside)
    shutil.rmtree(beside)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left beside their places in `folder`; `.NAME.new` and `.NAME.old` are version 0.1's.

    For a folder that no other process writes.
    """
    remove_partial(folder)
    for path in folder.iterdir() if folder.is_dir() else ():
        if re.fullmatch(r"\..+\.(new|old)", path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk and not only in memory."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some file systems do not know it for folders
            raise
    finally:
        os.close(descriptor)


def lock_folder(folder: Path) -> None:
    """Make `folder` and keep it from other processes until this one ends, however it ends.

    Processes that this one forks (DataLoader's workers) do not inherit the lock. On a file system without locks runs
    are not kept apart: filelock's own way out there, a file that says who has the lock, would outlive a kill.

    Raises:
        ValueError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / ".lock"
    lock = _LOCKS.setdefault(path, FileLock(path, thread_local=False, fallback_to_soft=False))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"another run is writing into {folder}; wait until it has ended, or choose another folder"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


__all__ = [
    "lock_folder",
    "partial_folder",
    "recover_folder",
    "remove_folder",
    "remove_leftovers",
    "remove_partial",
    "replace_folder",
    "sync",
    "write_atomically",
    "write_beside",
    "write_into",
]
