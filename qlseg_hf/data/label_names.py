# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Label names as people store them: files of lines or JSON, lists and mappings; what is unclear is refused."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.text import read_text

# Lines of a names file: "0 sky", "0,sky", "0: sky", "0. sky"; and "sky,0", "sky: 0"
NUMBERED_NAME = re.compile(r"(\d+)(?:\s*[,:;=|_-]\s*|\s*[.)]?\s+)(\S.*)")
LABEL_FILES = re.compile(  # names of files beside the data that hold names of labels
    r"(labels?|classes|class_names|label_names|names|label_map|id2label|label2id|metainfo|class_list)\.(json|txt)|.+\.names"
    r"|([\w-]*class_dict[\w-]*|classes|labels|label_colou?rs|class_colou?rs)\.csv|labelmap\.txt"
    r"|((label|class)_?colou?rs?|.*colou?r_?map)\.txt",
    re.IGNORECASE,
)
# Headings of tables, without blanks and signs
NAME_HEADS = ("name", "classname", "labelname", "class", "label", "category", "names", "classes", "labels")
NUMBER_HEADS = (
    *("id", "classid", "labelid", "categoryid", "catid", "trainid", "index", "classindex", "labelindex", "idx"),
    *("number", "value", "pixelvalue", "labelvalue", "classvalue", "pixel", "code"),
)
HEX_COLOR = re.compile(r"#[0-9a-fA-F]{6}")
COLORS = ("red", "green", "blue")
COLOR_HEADS = (*COLORS, "r", "g", "b")
COLOR_AND_NAME = re.compile(r"(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,:]+([^\s\d].*)")
NUMBER_NAME_AND_COLOR = re.compile(r"(\d+)[\s,:]+([^\s\d].*?)[\s,:]+(\d+)[\s,]+(\d+)[\s,]+(\d+)")
NAME_AND_NUMBER = re.compile(r"(\S.*?)\s*[,:;=|\t]\s*(\d+)")


def read_label_file(path: Path) -> tuple[list[str], list | None]:
    """Names and palette (or None) from JSON (see `names_in_order`; or {"labels", "palette"}), text or a table.

    Lines hold one name each, or all of them a number 0..K-1 and a name ("0 sky", "0,sky", "0: sky"), in any order.
    Blank lines, white space around names and a byte-order mark do not count. In JSON "classes" and "names" count as
    "labels", as mmsegmentation writes them. A table is a CSV file with the column name, and maybe r, g, b
    (`class_dict.csv`) and id, see `read_table`; or CVAT's `labelmap.txt`.

    Raises:
        ValueError: the file cannot be read or holds something else.
    """
    is_json = path.suffix.lower() == ".json"
    try:
        text = read_text(path)
        table = read_table(text) if path.suffix.lower() == ".csv" else read_color_map(text)
        if table is not None:
            return names_in_order(table[0]), table[1]
        content = json.loads(text) if is_json else [line.strip() for line in text.splitlines() if line.strip()]
    except (OSError, RecursionError, ValueError) as error:
        raise ValueError(f"label file {path} cannot be read: {error}") from error
    try:
        if not is_json:
            return names_in_order(names_of_lines(content)), None
        palette = None
        for key in ("labels", "classes", "names"):
            if isinstance(content, dict) and isinstance(content.get(key), (list, dict)):
                content, palette = content[key], content.get("palette")
        names, colors = read_classes_with_colors(content)
        return names_in_order(names), palette if colors is None else colors
    except ValueError as error:
        raise ValueError(f"label file {path}: {error}") from error


def read_classes_with_colors(content: Any) -> tuple[Any, list[list[int]] | None]:
    """Names and colours of a list of objects, as SuperAnnotate writes them, or of {colour: name}, as A2D2 does.

    Objects may have a number each, as `id`, which is the label then. Anything else is returned as it is, without
    colours.

    Raises:
        ValueError: some objects have no name; or there are neither colours nor numbers 0..K-1, but others.
    """
    if isinstance(content, dict) and content and all(HEX_COLOR.fullmatch(str(key)) for key in content):
        return list(content.values()), [to_hex_color(key) for key in content]
    if not isinstance(content, list) or not content or not all(isinstance(row, dict) for row in content):
        return content, None
    head = next((head for head in ("name", "title", "label") if all(head in row for row in content)), None)
    if head is None:
        raise ValueError(f"the objects must have a name each; got {content[0]!r:.80}")
    colors = [str(row.get("color")) for row in content]
    is_hex = all(HEX_COLOR.fullmatch(color) for color in colors)
    rows = [{_plain_head(key): value for key, value in row.items()} for row in content]
    columns = {key: [row.get(key) for row in rows] for key in rows[0]}
    order = _order_by_numbers(columns, is_strict=not is_hex) or list(range(len(rows)))
    names = [content[place][head] for place in order]
    return names, [to_hex_color(colors[place]) for place in order] if is_hex else None


def _order_by_numbers(columns: Mapping[str, Sequence], is_strict: bool = True) -> list[int] | None:
    """Places of the rows of a table by the numbers of their labels; None if no column has these.

    It is called so, or without heading, or holds 0..K-1 each once, of three labels or more: of two it may be a mark.

    Raises:
        ValueError: a column that is called so has other numbers, if `is_strict`; or two columns number differently.
    """
    numbers = {head: list(map(int, cells)) for head, cells in columns.items() if all(map(_is_number, cells))}
    labels = list(range(max(map(len, columns.values()), default=0)))
    whole = {head: own for head, own in numbers.items() if sorted(own) == labels and head not in COLOR_HEADS}
    if known := next((head for head in (*NUMBER_HEADS, *NAME_HEADS) if head in numbers), None):
        if known not in whole and is_strict:
            text = ", ".join(map(str, numbers[known][:4]))
            raise ValueError(f"its numbers {text:.40}, ... are not 0..{labels[-1]}, each once")
        whole = {known: whole[known]} if known in whole else {}
    whole = {head: own for head, own in whole.items() if head in ("", known) or len(labels) > 2}
    if len(set(map(tuple, whole.values()))) > 1:
        raise ValueError(f"its columns {', '.join(whole):.60} number the labels in different orders; keep one")
    return next((sorted(labels, key=own.__getitem__) for own in whole.values()), None)


def _plain_head(head: Any) -> str:
    """A heading without blanks and signs, in small letters."""
    return re.sub(r"[^a-z0-9]", "", str(head).lower())


def to_hex_color(text: str) -> list[int]:
    """[red, green, blue] of "#ff8000"."""
    return list(bytes.fromhex(text[1:7]))


def read_color_map(text: str) -> tuple[list[str] | dict[str, str], list[list[int]]] | None:
    """Names and colours of CVAT's `labelmap.txt`, "name:r,g,b:parts:actions", or of lines; None of another text.

    Lines are all "r g b name", as of CamVid, labels in their order, or all "number name r g b", from 0 on.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if rows := match_all(COLOR_AND_NAME, lines):
        return [row[4] for row in rows], [_to_color(row[4], row.group(1, 2, 3)) for row in rows]
    if rows := match_all(NUMBER_NAME_AND_COLOR, lines):
        names = {row[1]: row[2] for row in rows}
        if len(names) < len(rows):
            raise ValueError("two of its lines begin with the same number; give each its own")
        rows.sort(key=lambda row: int(row[1]))
        return names, [_to_color(row[2], row.group(3, 4, 5)) for row in rows]
    if not lines or not re.match(r"#\s*label\s*:\s*color_rgb", lines[0]):
        return None
    cells = [line.split(":") for line in lines[1:] if ":" in line]
    return [name.strip() for name, *_ in cells], [_to_color(name, color.split(",")) for name, color, *_ in cells]


def match_all(pattern: re.Pattern, lines: list[str]) -> list[re.Match]:
    """What each line matches; [] if one does not."""
    found = [match for match in map(pattern.fullmatch, lines) if match]
    return found if len(found) == len(lines) else []


def _to_color(name: str, cells: list[str]) -> list[int]:
    if len(cells) != 3 or not all(v.strip().isdecimal() and int(v) <= 255 for v in cells):
        raise ValueError(
            f"the colour of {name!r:.40} is {', '.join(cells)!r:.40}; red, green, blue of 0..255 are wanted"
        )
    return [int(v) for v in cells]


def read_table(text: str) -> tuple[list[str], list[list[int]] | None] | None:
    """Names, and colours or None, of a CSV file whose first line says which column has them; None of another text.

    If a column has numbers, they are the labels; else the lines are in their order.

    Raises:
        ValueError: a line is damaged, or the numbers are not 0..K-1.
    """
    rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text)) if any(map(str.strip, row))]
    heads = [_plain_head(cell) for cell in rows[0]] if rows else []
    named = [head for head in NAME_HEADS if head in heads]
    if not named or len(rows) < 2:
        return None
    if odd := [row for row in rows[1:] if len(row) < len(heads)]:
        raise ValueError(f"the line {', '.join(odd[0])!r:.60} has {len(odd[0])} cells; {len(heads)} are wanted")
    columns = dict(zip(heads, zip(*rows[1:])))
    is_number = {head: all(map(str.isdecimal, cells)) for head, cells in columns.items()}
    names = list(columns[next((head for head in named if not is_number[head]), named[0])])
    bands = [next((columns[head] for head in (color[0], color) if head in columns), None) for color in COLORS]
    colors = None if None in bands else [_to_color(name, list(cells)) for name, *cells in zip(names, *bands)]
    order = _order_by_numbers(columns) or list(range(len(names)))
    return [names[row] for row in order], colors and [colors[row] for row in order]


def find_label_file(
    root: Path, files: list[str], notes: list[str]
) -> tuple[Path, list[str], list[list[int]] | None] | None:
    """The file of label names beside a data set: path, names, colours or None. None if there is none that can be used.

    Looked for at the top and one folder below, and deeper if it is the only one: several would be those of parts.
    Files that cannot be read, or disagree, are told in `notes`.
    """
    found: list[tuple[Path, list[str], Any]] = []
    named = [name for name in files if LABEL_FILES.fullmatch(name.rpartition("/")[2])]
    for name in named if len(named) == 1 else (name for name in named if name.count("/") < 2):
        try:
            names, colors = read_label_file(root / name)
        except ValueError as error:
            notes.append(f"{name} is not read as label names: {error}")
            continue
        found.append((root / name, names, colors))
    if len({tuple(names) for _, names, _ in found}) > 1:
        texts = [f"{path.relative_to(root)} ({len(names)} names)" for path, names, _ in found]
        notes.append(f"{' and '.join(texts)} give different label names; set label_names to say which count")
        return None
    with_colors = [entry for entry in found if entry[2] is not None]
    return next(iter(with_colors + found), None)


def names_of_lines(lines: list[str]) -> list[str] | dict[str, str]:
    """Names, or {number: name} if every line begins with a number; ValueError if the lines may mean something else."""
    advice = "; for names that are written so, use a JSON list"
    lines = [line.rstrip(",; ") for line in lines]
    if lines and lines[0][:1] in ("[", "{"):
        raise ValueError("it looks like JSON; give it the ending .json")
    if len(lines) > 1 and _plain_head(lines[0]) in NAME_HEADS:
        raise ValueError(f"the first line is {lines[0][:40]!r}, which seems to be a heading; take it out{advice}")
    if lines[:1] == ["__ignore__"] and len(lines) > 1:
        raise ValueError(
            f"the first line is '__ignore__', to which LabelMe's scripts give -1 and no label; take it out if label 0 "
            f"is {lines[1][:40]!r}, or rename it if it is label 0"
        )
    if odd := [
        line for line in lines if re.search(r"\.(png|jpe?g|tiff?|bmp|webp|npy)(?=[\s,;]|$)", line, re.IGNORECASE)
    ]:
        raise ValueError(f"the line {odd[0][:40]!r} is the name of a file; the names of labels are wanted{advice}")
    if odd := [line for line in lines if re.match(r"#|//|- |[{}]|$", line)]:
        raise ValueError(f"the line {odd[0][:40]!r} is no plain name; take it out{advice}")
    found = [match for match in map(NUMBERED_NAME.fullmatch, lines) if match]
    numbers = sorted(int(match[1]) for match in found)
    if found and len(found) == len(lines) and numbers != list(range(len(lines))):
        start = "; if 0 is void, leave the numbers out and set do_reduce_labels: true" if numbers[0] == 1 else ""
        raise ValueError(
            f"every line begins with a number, but these numbers ({', '.join(map(str, numbers[:3]))}, ...) are not "
            f"0..{len(lines) - 1}, each once{start}{advice}"
        )
    names = [match[2] for match in found] if len(found) == len(lines) else lines
    # a heading or a forgotten number
    if len(found) < len(lines) < 2 * len(found) and numbers == list(range(numbers[0], numbers[-1] + 1)):
        odd = next(line for line in lines if not NUMBERED_NAME.fullmatch(line))
        raise ValueError(f"{len(found)} of {len(lines)} lines begin with a number, but {odd[:40]!r} does not{advice}")
    behind = [re.fullmatch(r"(.*\S)\s+(\d+)", name) for name in names]  # "class 0" is a name, "sky 0" and "car 1" not
    if None not in behind and len({match[1] for match in behind if match}) == len(names) > 1:
        raise ValueError(f"{names[0][:40]!r} is a name and a number; give the names alone, in order{advice}")
    if odd := [name for name in names if "\t" in name]:
        raise ValueError(f"{odd[0][:40]!r} is a line of a table; give the names alone, in order{advice}")
    inside = [re.findall(r"\d+", name) for name in names]
    if len(found) < len(lines) and all(len(own) == 1 for own in inside):
        order = [int(number) for (number,) in inside]
        if order != sorted(order) == list(range(len(names))):
            raise ValueError(f"the lines have the numbers 0..{len(names) - 1} in another order{advice}")
    columns = [name for name in names if NAME_AND_NUMBER.fullmatch(name) or NUMBERED_NAME.fullmatch(name)]
    if len(columns) * 2 > len(names) and (len(found) == len(lines) or NAME_AND_NUMBER.fullmatch(columns[0])):
        raise ValueError(f"{columns[0][:40]!r} is a name and numbers; give the names alone, in order{advice}")
    names = [re.sub(r'"(.*)"', r"\1", name) for name in names]
    return {match[1]: name for match, name in zip(found, names)} if len(found) == len(lines) else names


def names_in_order(names: list | dict) -> list[str]:
    """Names of labels 0..K-1, without white space or byte-order marks around them.

    Args:
        names: a list of names, {label: name} or {name: label}, labels 0..K-1 as numbers or their digits.

    Raises:
        ValueError: something else, a name that is empty or no text, or one that two labels have.
    """
    if isinstance(names, dict):
        if all(type(label) is int for label in names.values()) and not all(map(_is_number, names)):
            if len(set(names.values())) < len(names):
                raise ValueError("two names have the same label number; give each its own")
            names = {label: name for name, label in names.items()}
        if odd := [label for label in names if not _is_number(label)]:
            raise ValueError(f"the keys must be label numbers, or the values; got {odd[0]!r:.80}")
        if sorted(map(int, names)) != list(range(len(names))):
            raise ValueError(f"the keys must be 0..{len(names) - 1}, each once")
        names = [name for _, name in sorted(names.items(), key=lambda item: int(item[0]))]
    if not isinstance(names, list):
        raise ValueError("it must hold names: a list, {id: name}, or one per line")
    for label, name in enumerate(names):
        if not isinstance(name, str):
            hint = " (yes, no, on and off are none without quotes)" if isinstance(name, bool) else ""
            raise ValueError(f"it must hold names, but that of label {label} is {name!r:.40}; put it in quotes{hint}")
    names = [name.replace("\ufeff", "").strip() for name in names]
    if not names or not all(names):
        raise ValueError(f"label {names.index('')} has an empty name" if names else "it holds no names")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        places = [label for label, name in enumerate(names) if name == twice[0]]
        raise ValueError(f"labels {places} are all called {twice[0][:40]!r}; give each label a name of its own")
    return names


def _is_number(label) -> bool:
    return type(label) is int or (isinstance(label, str) and label.strip().isdecimal())


__all__ = ["find_label_file", "names_in_order", "read_label_file"]
