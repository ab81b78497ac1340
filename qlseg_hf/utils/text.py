# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Text of others, read, and shown so that it can do no harm: on one line, escaped for Markdown, or as code."""

import html
import re
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError


def read_text(path: Path) -> str:
    """Text of a UTF-8 file without byte-order mark; ValueError if it is none, OSError if it cannot be read."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    if "\0" in text:
        raise ValueError("it holds zero bytes, as UTF-16 does; save it as UTF-8")
    return text


def printable(text: str) -> str:
    """Any text on one line, with what would move a cursor, change colours or turn the direction written out."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in " ".join(str(text).split()))


def escape_markdown(text: str) -> str:
    """Any text as one line of Markdown that shows it and nothing else, in a table too."""
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(printable(text), quote=False))


def as_code(text: str) -> str:
    """Any text as a code span on one line. Not for tables."""
    text = printable(text)
    ticks = "`" * (longest_run(text) + 1)
    return f"{ticks} {text} {ticks}" if len(ticks) > 1 else f"`{text}`"


def fence_code(text: str, language: str) -> list[str]:
    """Any text as a code block."""
    ticks = "`" * max(3, longest_run(text) + 1)
    return [f"{ticks}{language}", text.rstrip("\n"), ticks]


def longest_run(text: str) -> int:
    """Backticks in a row."""
    return max(map(len, re.findall("`+", text)), default=0)


def describe_problems(problems: dict[str, list[str]], num_named: int = 3) -> str:
    """Names by what is wrong with them, as in `2 missing (a, b); 1 unexpected (c)`; "" if nothing is."""
    return "; ".join(
        f"{len(names)} {kind} ({', '.join(names[:num_named])})" for kind, names in problems.items() if names
    )


def first_line(error: BaseException) -> str:
    """First line of an error's text; its type if it has none. Of a configuration's error, of what caused it."""
    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


__all__ = ["as_code", "describe_problems", "escape_markdown", "fence_code", "first_line", "printable", "read_text"]
