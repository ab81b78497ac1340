# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Reports as one HTML file that opens without a server: no script, no request, images inside."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from .files import write_atomically


def data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    """An image as a data URI; `kind` and `options` are those of Pillow's `save`."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


@dataclass(frozen=True)
class Picture:
    """An image with a caption. `image` is stored as PNG, or as JPEG with `is_photo`.

    `width`: on the page, pixels of the browser; its own if not given, and never more than the page has.
    """

    image: Image.Image
    caption: str = ""
    is_photo: bool = False
    width: int | None = None

    @property
    def address(self) -> str:
        """The image as a data URI."""
        if self.is_photo:
            return data_uri(self.image.convert("RGB"), "JPEG", quality=85)
        return data_uri(self.image, "PNG", optimize=True)


@dataclass(frozen=True)
class Table:
    """Rows of texts and numbers under column titles; numbers are set to the right. `bar`: a column, or several, of
    fractions in [0, 1] that are shown as bars with their percentage; None there means "not defined"."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    bar: str | Sequence[str] | None = None

    @property
    def bars(self) -> Sequence[str]:
        """Titles of the columns of fractions."""
        return [self.bar] if isinstance(self.bar, str) else self.bar or []


@dataclass(frozen=True)
class Gallery:
    """Images side by side, as many in a line as fit."""

    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Comparison:
    """Images in one line, at any width of the page, under a title, and the colours in them: [(name, "#rrggbb")]."""

    title: str
    pictures: Sequence[Picture]
    legend: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Legend:
    """Colours and what they stand for: [(name, "#rrggbb")]."""

    entries: Sequence[tuple[str, str]]


@dataclass
class Section:
    """A title and what stands below it, in order: texts (paragraphs), `Table`, `Picture`, `Gallery`, `Comparison`,
    `Legend`."""

    title: str
    blocks: list[Any] = field(default_factory=list)


def render_report(title: str, summary: Iterable[tuple[str, Any]], sections: Iterable[Section]) -> str:
    """HTML of a report.

    Args:
        title: of the page.
        summary: (what, value) pairs shown first, as large figures.
        sections: of the page, in order; empty ones are left out.

    Every text is escaped, so names of files and labels may hold anything.
    """
    environment = Environment(
        loader=PackageLoader("qlseg_hf.utils"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    template = environment.get_template("report.html.jinja")
    shown = [
        (section.title, [(type(block).__name__, block) for block in section.blocks])
        for section in sections
        if section.blocks
    ]
    return template.render(title=title, summary=list(summary), sections=shown)


def write_report(path: Path, title: str, summary: Iterable[tuple[str, Any]], sections: Iterable[Section]) -> None:
    """Write `render_report` to a file; atomic."""
    write_atomically(path, render_report(title, summary, sections).encode(errors="backslashreplace"))


__all__ = ["Comparison", "Gallery", "Legend", "Picture", "Section", "Table"]
__all__ += ["data_uri", "render_report", "write_report"]
