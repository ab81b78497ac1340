"""Files and folders that are written beside their place and moved there, so that nothing is ever half-written.

What is moved was given to the disk before (fsync), so a power cut leaves the old or the new one as well.
"""

import errno
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows, where runs are not kept apart
    fcntl = None

LOCKS = []  # open files, see `lock_folder`


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file beside `path` and move it into place, so that a kill or a full disk leaves the old one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        beside.write_bytes(data)
        sync(beside)
        os.replace(beside, path)
        sync(path.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextmanager
def written_beside(place: Path):
    """A folder to write into, which takes the place of `place` when the block ends and vanishes if it raises."""
    beside = place.with_name(f".{place.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        replace_folder(beside, place)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def replace_folder(new: Path, place: Path) -> None:
    """Move folder `new` to `place`. A kill in between leaves the old one under `.NAME.old`; `recover_folder` knows."""
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    for path in (*new.rglob("*"), new):
        sync(path)
    if place.exists():
        os.replace(place, old)
    os.replace(new, place)
    sync(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(place: Path) -> None:
    """Undo a `replace_folder` that was killed half-way."""
    old = place.with_name(f".{place.name}.old")
    if old.exists() and not place.exists():
        os.replace(old, place)


def remove_folder(place: Path) -> None:
    """Delete a folder, which is whole under its name or gone, never half there."""
    old = place.with_name(f".{place.name}.old")
    os.replace(place, old)
    shutil.rmtree(old)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left beside their places in `folder`: `.NAME.new`, `.NAME.old`, `.NAME-PID`."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if re.fullmatch(r"\..+(\.new|\.old|-\d+)", path.name):
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

    Raises:
        ValueError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / ".lock").open("a")
    try:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not inherited by DataLoader's workers
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise ValueError(
            f"another run is writing into {folder}; wait until it has ended, or choose another folder"
        ) from error
    LOCKS.append(file)


__all__ = [
    "lock_folder",
    "recover_folder",
    "remove_folder",
    "remove_leftovers",
    "replace_folder",
    "write_atomically",
    "written_beside",
]
