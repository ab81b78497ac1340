# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a run has done: a line per image in `manifest.jsonl`, so that the next run does only what is missing.

The first line holds the settings that decide what the results are. A line is written after the files that it speaks
of. Each process of a run appends to a file of its own; the main process joins them, before and after the work.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..utils.files import remove_partial, write_atomically
from ..utils.text import printable
from .items import Item

FAILURES, MANIFEST = "failures.jsonl", "manifest.jsonl"


def _to_line(value: dict) -> bytes:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "surrogatepass")  # names of files may hold bytes that are no text


def _read_lines(path: Path, only_first: bool = False) -> list[dict]:
    """The lines of a file, or the first, without a last one that was not written to its end; [] if there is none."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        content = file.readline() if only_first else file.read()
    whole, _, _ = content.decode("utf-8", errors="surrogatepass").rpartition("\n")
    try:
        return [json.loads(line) for line in whole.split("\n") if line]
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, and all images are segmented again") from error


def read_entries(folder: Path) -> tuple[dict[str, Any], dict[str, dict]]:
    """Settings and, by name, the entries of a run that has ended. ValueError if there is none, or it is damaged."""
    first, *lines = _read_lines(folder / MANIFEST)
    return first["settings"], {line["name"]: line for line in lines}


def stored_dtype(folder: Path) -> str | None:
    """Of the network whose results a folder holds; None if it holds none. ValueError if damaged."""
    lines = _read_lines(folder / MANIFEST, only_first=True)
    return lines[0].get("settings", {}).get("dtype") if lines else None


class Manifest:
    """The lines of a folder of results. `entries`: by name, what the newest line of each image says."""

    def __init__(self, folder: Path, rank: int = 0):
        self.folder = folder
        self.path = folder / MANIFEST
        self.own_path = self.path if rank == 0 else folder / f"manifest.{rank}.jsonl"
        self.settings: dict[str, Any] = {}
        self.entries: dict[str, dict] = {}
        self._file = self._failures = None

    def open(self, settings: dict[str, Any]) -> None:
        """Read what is there, and join it into one file. For the main process, before others append.

        Raises:
            ValueError: the results were made with other settings, or a file is damaged.
        """
        settings = as_stored(settings)
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_partial(self.folder)
        lines = _read_lines(self.path)
        stored = lines[0].get("settings", {}) if lines else settings
        if others := [key for key in {**stored, **settings} if stored.get(key) != settings.get(key)]:
            shown = "; ".join(
                f"{key}: {_shorten(stored.get(key))} there, {_shorten(settings.get(key))} here" for key in others
            )
            raise ValueError(
                f"{self.folder} holds results of other settings ({shown}); give another --output, or remove it"
            )
        self.settings = settings
        self.join(lines[1:])

    def join(self, lines: Iterable[dict] = ()) -> None:
        """Take up what all processes have appended, and write it as one file, sorted by name."""
        self.close()
        parts = sorted(self.folder.glob("manifest.*.jsonl"))
        for line in [*lines, *(line for part in parts for line in _read_lines(part))]:
            self._take_up(line)
        ordered = [self.entries[name] for name in sorted(self.entries)]
        write_atomically(self.path, b"".join(map(_to_line, [{"settings": self.settings}, *ordered])))
        for part in parts:
            part.unlink()

    def write_failures(self, skipped: Iterable[str] = ()) -> int:
        """Write the images that failed, but for `skipped`, into `failures.jsonl`; returns their number."""
        skipped = set(skipped)
        failed = [e for _, e in sorted(self.entries.items()) if "failed" in e and e["name"] not in skipped]
        lines = [_to_line(_failure(line)) for line in failed]
        if lines or (self.folder / FAILURES).exists():
            write_atomically(self.folder / FAILURES, b"".join(lines))
        return len(failed)

    def is_done(self, item: Item, formats: Iterable[str], paths: Iterable[Path]) -> bool:
        """Whether an image was segmented as it is now, and its results are there.

        Raises:
            ValueError: results of this name come of another image.
        """
        entry = self.entries.get(item.name)
        if entry is None:
            return False
        if entry["source"] != item.source:
            raise ValueError(
                f"{self.folder} holds results of {printable(entry['source'])} called {printable(item.name)}, which "
                f"{printable(item.source)} would overwrite; give another --output"
            )
        if "failed" in entry or entry["stamp"] != as_stored(item.stamp):
            return False
        return set(formats) <= set(entry["formats"]) and all(path.exists() for path in paths)

    def take_up(self, line: dict) -> None:
        """Note what another process says of an image."""
        if "failed" in line:
            if self._failures is None:
                self._failures = (self.folder / FAILURES).open("ab", buffering=0)
            self._failures.write(_to_line(_failure(line)))
        if self._file is None:
            self._file = self.own_path.open("ab", buffering=0)
        self._file.write(_to_line(line))
        self._take_up(line)

    def add(self, item: Item, formats: Iterable[str], height: int, width: int) -> None:
        """Say that an image's results are written."""
        self.take_up(_line(item) | {"height": height, "width": width, "formats": sorted(set(formats))})

    def add_failure(self, item: Item, reason: str) -> None:
        """Say why an image has no results, here and in `failures.jsonl`."""
        self.take_up(_line(item) | {"failed": reason})

    def _take_up(self, line: dict) -> None:
        """Let a line stand for its image; formats of before are there still, if the image is the same."""
        before = self.entries.get(line["name"], {})
        if "formats" in line and before.get("stamp") == line["stamp"]:
            line = line | {"formats": sorted({*line["formats"], *before.get("formats", ())})}
        self.entries[line["name"]] = line

    def close(self) -> None:
        for file in (self._file, self._failures):
            if file is not None:
                file.close()
        self._file = self._failures = None


def _line(item: Item) -> dict:
    return {"name": item.name, "source": item.source, "stamp": as_stored(item.stamp)}


def _failure(line: dict) -> dict:
    """What `failures.jsonl` says of an image."""
    return {"image": line["source"], "name": line["name"], "reason": line["failed"]}


def as_stored(value: Any) -> Any:
    """A value as it comes back from a file: tuples are lists."""
    return json.loads(json.dumps(value))


def _shorten(value: Any) -> str:
    text = printable(json.dumps(value))
    return text if len(text) <= 40 else f"{text[:37]}..."


class Notes(Manifest):
    """What a process notes that has no file for it: `lines`, for `Manifest.take_up` in the process that has."""

    def __init__(self):
        super().__init__(Path())
        self.lines: list[dict] = []

    def take_up(self, line: dict) -> None:
        self.lines.append(line)


__all__ = ["FAILURES", "MANIFEST", "Manifest", "Notes", "as_stored", "read_entries", "stored_dtype"]
