"""Files and folders that are written beside their place and moved there, so that nothing is ever half-written.

What is being written is called `.NAME.partial-*`. Whoever writes it holds a lock on it, which the system drops
when the process dies, so `remove_partial` tells what a kill has left from what somebody is writing just now.

What is moved was given to the disk before (fsync), so a power cut leaves the old or the new one as well.
"""

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked and what a kill leaves has to be removed by hand
    fcntl = None

LOCKS = []  # open files, see `lock_folder`


def hold(path: Path) -> int | None:
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


def remove_partial(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes have left in `folder` of writing `name`, or anything.

    Where there are no locks nothing is removed: somebody might be writing it.
    """
    pattern = re.compile(rf"\.{'.*' if name is None else re.escape(name)}\.partial-[a-z0-9_]{{8}}")
    found = [path for path in folder.iterdir() if pattern.fullmatch(path.name)] if folder.is_dir() else []
    for path in found if fcntl is not None else []:
        with suppress(OSError):  # it is locked, another process was quicker, or it may not be removed
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file beside `path` and move it into place, so that a kill or a full disk leaves the old one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written, name = tempfile.mkstemp(prefix=f".{path.name}.partial-", dir=path.parent)
    held = hold(Path(name))
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

    The parents are made, and removed again if the block raises. What killed processes have left of writing `name` is
    removed first.
    """
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    beside = held = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        remove_partial(parent, name)
        while held is None:  # at once but for a coincidence
            beside = Path(tempfile.mkdtemp(prefix=f".{name}.partial-", dir=parent))
            held = hold(beside)
        beside.chmod(0o777 & ~current_umask())
        yield beside
        made = []
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)
        for folder in made:
            with suppress(OSError):  # others have put something there
                folder.rmdir()
        if held is not None:
            os.close(held)


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def written_beside(place: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `place` when the block ends and vanishes if it raises."""
    with partial_folder(place.name, place.parent) as beside:
        yield beside
        replace_folder(beside, place)


@contextmanager
def written_into(folder: Path) -> Iterator[Path]:
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
    shutil.rmtree(old, ignore_errors=True)
    os.replace(place, old)
    shutil.rmtree(old)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left beside their places in `folder`: `.NAME.new`, `.NAME.old` and the others."""
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
    except OSError:  # a file system without locks, where runs are not kept apart
        pass
    LOCKS.append(file)


def file_sha256(path: Path) -> str:
    """Of a file of any size, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


__all__ = [
    "file_sha256",
    "lock_folder",
    "partial_folder",
    "recover_folder",
    "remove_folder",
    "remove_leftovers",
    "remove_partial",
    "replace_folder",
    "write_atomically",
    "written_beside",
    "written_into",
]
