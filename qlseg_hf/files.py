"""Files and folders that are written beside their place and moved there, so that nothing is ever half-written."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file beside `path` and move it into place, so that a kill or a full disk leaves the old one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        beside.write_bytes(data)
        os.replace(beside, path)
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
    if place.exists():
        os.replace(place, old)
    os.replace(new, place)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(place: Path) -> None:
    """Undo a `replace_folder` that was killed half-way."""
    old = place.with_name(f".{place.name}.old")
    if old.exists() and not place.exists():
        os.replace(old, place)


__all__ = ["recover_folder", "replace_folder", "write_atomically", "written_beside"]
