# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What every layout is: splits of samples, and what it says about their labels."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ...utils.picture_files import walk

Opener = Callable[[], Any]  # opens the samples of one split


class Unclear(ValueError):
    """A data set of which images or label maps are not told by its names. `options`: (images, label maps) that may be
    meant, folders or patterns of names; those by which at least `least` images can be opened are added to the
    sentence, see `offering`, else `advice`."""

    def __init__(
        self,
        sentence: str,
        options: Iterable[tuple[str, str]],
        notes: Iterable[str] = (),
        advice: str = "; name both folders, as in layout: IMAGES:MASKS, or write a table of columns image and mask",
        least: int = 1,
    ):
        super().__init__(". ".join([sentence + advice, *notes]))
        self.sentence, self.options, self.notes, self.advice = sentence, list(options), list(notes), advice
        self.least = least


class Splits(Mapping):
    """Samples by the name of their split, each opened when it is first asked for."""

    def __init__(self, openers: Mapping[str, Opener]):
        self._openers, self._opened = dict(openers), {}

    def __getitem__(self, name: str):
        if name not in self._opened:
            self._opened[name] = self._openers[name]()
        return self._opened[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._openers)

    def __len__(self) -> int:
        return len(self._openers)

    def __contains__(self, name: object) -> bool:
        return name in self._openers

    def count(self, name: str) -> str:
        """How many samples a split has, in words."""
        try:
            samples = self[name]
        except ValueError:  # its own sentence comes when it is opened
            return f"{name} (broken)"
        return f"{name} {len(samples)}" if hasattr(samples, "__len__") else name


@dataclass(frozen=True)
class Layout:
    """How a data set is laid out, and what it says about its labels.

    name: a stable id, one of `LAYOUTS`.
    summary: where pictures and label maps were found.
    splits: samples by the name of the split; opened when asked for, which may raise ValueError.
    label_names: of labels 0..K-1, where the layout carries names or a names file lies beside the data.
    label_colors: {label: [red, green, blue]}, where a table of colours lies beside masks that are colour pictures.
    ignore_index: the label that the layout says does not count.
    label_mapping: {stored value: label}, where the layout stores other values than labels.
    notes: sentences on what was decided and left out. Each split has its own too.
    hints: (where, names) of names that may be those of the labels, if these turn out to be as many.
    class_names: (where, names) of columns that `datasets` describes beside the files, which are told alone.
    """

    name: str
    summary: str
    splits: Splits
    label_names: list[str] | None = None
    label_colors: dict[int, list[int]] | None = None
    ignore_index: int | None = None
    label_mapping: dict[int, int] | None = None
    notes: list[str] = field(default_factory=list)
    hints: list[tuple[str, list[str]]] = field(default_factory=list)
    class_names: list[tuple[str, list[str]]] = field(default_factory=list)

    @cached_property
    def description(self) -> str:
        """One line: what was found, and the splits with their counts. Opens the splits."""
        if self.name == "hub":  # opening would download all
            return f"{self.name}: {self.summary}; splits: {', '.join(self.splits) or 'none'}"
        return f"{self.name}: {self.summary}; images: {', '.join(map(self.splits.count, self.splits)) or 'none'}"


@dataclass
class Source:
    """A folder (or a file, or a Hub id) that is to be opened, and what the person said about it."""

    data: str
    root: Path | None  # the folder; None for a Hub id
    file: Path | None = None  # one file, if that was given; `root` is its folder
    config: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    streaming: bool = False
    colors: dict[tuple[int, int, int], int] | None = None  # of label_colors
    roles: tuple[str, str] | None = None  # folders of pictures and of label maps, as the person named them
    patterns: tuple[str, str] = ("", "")  # of names of files in these folders, as in *_mask.png

    @cached_property
    def _walked(self) -> tuple[list[str], list[str]]:
        return walk(self.root) if self.root else ([], [])

    @cached_property
    def files(self) -> list[str]:
        """Paths of all files at any depth, relative to `root`."""
        return self._walked[0]

    @property
    def folders(self) -> list[str]:
        return self._walked[1]


@dataclass(frozen=True)
class Found:
    """What a family of layouts makes of a `Source`; a split called "all" is one that nobody has divided."""

    name: str
    summary: str
    openers: dict[str, Opener]
    label_names: list[str] | None = None
    names_from: str = ""  # where `label_names` come from
    ignore_index: int | None = None
    label_mapping: dict[int, int] | None = None
    notes: list[str] = field(default_factory=list)
    first_mask: Path | None = None  # one of the label maps, if they are pictures


@dataclass(frozen=True, eq=False)
class Family:
    """One family of layouts: `names` it may give, a small `tree` of each, and the function that looks for it."""

    trees: dict[str, str]
    find: Callable[[Source], Found | None]


__all__ = ["Family", "Found", "Layout", "Opener", "Source", "Splits", "Unclear"]
