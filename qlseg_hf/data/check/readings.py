# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The ways to read stored values where more than one is likely: as they are, with void first, with void last."""

from typing import Any

import numpy as np

from ...model.image_processing_qlseg import QLSegImageProcessor
from .counting import labels_of

MAX_ROWS = 24  # of the table of readings


def value_outside(num_labels: int) -> int:
    """An `ignore_index` that is neither a label nor a stored value that could be one."""
    return 255 if num_labels < 255 else -100


def readings_of(
    stored: np.ndarray, names: list[str], processor: QLSegImageProcessor
) -> dict[str, tuple[str, dict[str, Any]]]:
    """The ways to read stored values: {title: (keys of a recipe, settings of the processor)}."""
    num_labels = len(names)
    mapped = labels_of(stored, processor, do_reduce_labels=False)
    ignore_index = processor.ignore_index
    outside = ignore_index if not 0 <= ignore_index <= num_labels else value_outside(num_labels)
    readings = {
        "as is": ("do_reduce_labels: false", {"do_reduce_labels": False, "ignore_index": outside}),
        "reduced": ("do_reduce_labels: true", {"do_reduce_labels": True, "ignore_index": outside}),
    }
    if outside != ignore_index:
        readings = {title: (f"{keys}, ignore_index: {outside}", given) for title, (keys, given) in readings.items()}
    if num_labels in mapped:
        given = {"do_reduce_labels": False, "ignore_index": num_labels}
        keys = f"do_reduce_labels: false, ignore_index: {num_labels}"
        if outside in mapped:  # two values are ignored
            given = {"do_reduce_labels": False, "ignore_index": outside}
            table = (processor.label_mapping or {}) | {
                int(value): outside for value, label in zip(stored, mapped) if label == num_labels
            }
            given["label_mapping"] = table
            keys = f"do_reduce_labels: false, label_mapping: {table}"
        readings["last is void"] = (keys, given)
    return readings


def table_of_readings(stored: np.ndarray, pixels: np.ndarray, names: list[str], processor: QLSegImageProcessor) -> str:
    """What each stored value becomes under every reading, with its share of the pixels; as lines of text."""

    def named(**settings) -> list[str]:
        labels, ignored = labels_of(stored, processor, **settings), settings["ignore_index"]
        return [
            "ignored" if label == ignored else repr(names[label])[:24] if 0 <= label < len(names) else "no label"
            for label in labels
        ]

    readings = readings_of(stored, names, processor)
    now = named(ignore_index=processor.ignore_index)
    columns = {title: named(**settings) for title, (_, settings) in readings.items()}
    lines = ["stored values, their share of the pixels, and what they become:"]
    for title, (keys, _) in readings.items():
        lines.append(f"  {title}: {keys}" + (" (as set)" if columns[title] == now else ""))
    widths = [max(map(len, [title, *column])) for title, column in columns.items()]
    rows = [["value", "share", *columns]]
    rows += [
        [str(value), f"{share:.2%}", *cells]
        for value, share, *cells in zip(stored.tolist(), pixels / pixels.sum(), *columns.values())
    ]
    if len(rows) > MAX_ROWS + 1:
        rows = [*rows[: MAX_ROWS - 3], ["...", "", *[""] * len(columns)], *rows[-3:]]
    for value, share, *cells in rows:
        text = "  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths))
        lines.append(f"  {value:>7}  {share:>7}  {text}".rstrip())
    return "\n".join(lines)


__all__ = ["readings_of", "table_of_readings", "value_outside"]
