# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The sentences on label maps that would spoil training, each with the settings that mend it."""

import numpy as np
import torch

from ...model.image_processing_qlseg import QLSegImageProcessor
from ..datasets import NUM_NAMED, listed
from .counting import Tally, is_smoothed, labels_of
from .readings import readings_of, value_outside

# What is said of samples that cannot be used, and the remedy, by `SampleError.kind`
PROBLEMS = {
    "picture": ("pictures cannot be read", "copy them again or take them out"),
    "label map": ("label maps cannot be read", "copy them again or take their pictures out"),
    "lossy label map": (
        "label maps are JPEG files, which change labels at every edge",
        "store them as PNG, from what they were made of, or with each value rounded to its nearest label; if they "
        "have two colours alone, set label_colors: {label: [red, green, blue]}, and each pixel gets the nearer",
    ),
    "colour mask": (
        "label maps are colour pictures",
        "set label_colors: {label: [red, green, blue]}, or store one label per pixel",
    ),
    "unknown colour": ("label maps hold colours that label_colors lacks", "add these colours, or correct the masks"),
    "size": ("label maps differ in size from their pictures", "store each label map at its picture's size"),
}
ONE_REASON = ("colour mask", "lossy label map")  # of which the files alone are named


def one_label_text(occurring: list[str], names: list[str], values: set[int]) -> str:
    """The sentence on data that measure nothing, because there is one label in all."""
    what = f"there is one label, {names[0]!r}" if len(names) == 1 else f"only one label occurs, {occurring[0]!r}"
    remedy = "give what is around it a label and a name, and check do_reduce_labels, label_mapping and ignore_index"
    if 255 in values and values <= {0, 255}:
        pair = " and ".join(map(repr, names)) if len(names) == 2 else "background and object"
        more = "" if len(names) == 2 else ", and give these two label_names"
        remedy = f"if 0 and 255 are {pair}, set label_mapping: {{0: 0, 255: 1}} and do_reduce_labels: false{more}"
    return f"{what}, so every answer is right and a score of 100 % means nothing; {remedy}"


def ignored_label_error(ignore_index: int, names: list[str]) -> str:
    """The sentence on an `ignore_index` that is also one of the labels."""
    outside = value_outside(len(names))
    remedies = [f"set label_mapping: {{{ignore_index}: {outside}}} and ignore_index: {outside} if it shall not count"]
    if ignore_index == 0:
        remedies.insert(
            0, f"set do_reduce_labels: true and ignore_index: {outside} if 0 is void and {names[0]!r} is stored as 1"
        )
    if ignore_index == len(names) - 1 > 0:
        remedies.insert(0, f"take {names[-1]!r}, the last of label_names, out if it is no label")
    return (
        f"ignore_index: {ignore_index} is also label {ignore_index}, {names[ignore_index]!r}, of {len(names)}; "
        + ", or ".join(remedies)
    )


def range_error(
    wrong: np.ndarray,
    stored: np.ndarray,
    values: dict[int, Tally],
    names: list[str],
    processor: QLSegImageProcessor,
) -> str:
    """The sentence on stored values `wrong`, which become no label, with the settings that would make them one."""
    num_labels = len(names)
    counted = [f"{v} in {values[v].num_pixels} pixels of {len(values[v].names)} label maps" for v in wrong[:NUM_NAMED]]
    more = f" and {len(wrong) - NUM_NAMED} more values" if len(wrong) > NUM_NAMED else ""
    offending = list(dict.fromkeys(name for v in wrong for name in values[v].names))
    text = f"values that are no labels 0..{num_labels - 1}: {', '.join(counted)}{more}; in {listed(offending)}"
    is_black_and_white = {0, 255} <= set(stored.tolist()) and num_labels == 2
    if is_smoothed(wrong, values, num_labels):
        afterwards = " and set label_mapping: {255: 1}" if is_black_and_white else ""
        return (
            f"{text}. They lie along edges, as JPEG compression or smoothing (antialiasing) leaves them: store the "
            "label maps as PNG, made without smoothing and resized with nearest neighbour, or round each value to its "
            f"nearest label{afterwards}"
        )
    before = labels_of(stored, processor, do_reduce_labels=False)
    before = before[before != processor.ignore_index]
    if not processor.do_reduce_labels and before.min() >= 0 and before.max() == num_labels:
        readings = readings_of(stored, names, processor)
        reduced, void = (readings[title][0].replace(", ", " and ", 1) for title in ("reduced", "last is void"))
        first, last, before_last = repr(names[0]), repr(names[-1]), num_labels - 1
        return (
            f"{text}. The values reach {num_labels}, one beyond the last of {num_labels} names, and cannot tell "
            f"whether 0 or {num_labels} is void: set {reduced} if 0 is void, 1 is {first} and {num_labels} is {last}; "
            f"set {void} if {num_labels} is void, 0 is {first} and {before_last} is {last}; "
            f"or give {num_labels + 1} label names if none is void"
        )
    if translated := [v for v in wrong.tolist() if v in (processor.label_mapping or {})]:
        return f"{text}. label_mapping makes {translated[0]} to {processor.label_mapping[translated[0]]}; correct it"
    if stored.tolist() == [0, 255] and is_black_and_white:
        return (
            f"{text}. If 0 is {names[0]!r} and 255 is {names[1]!r}, set label_mapping: {{255: 1}}; if it is the other "
            "way round, label_mapping: {0: 1, 255: 0}"
        )
    if wrong.tolist() == [255]:
        return f"{text}. If 255 means unlabelled, set ignore_index: 255"
    translation = f"{{{wrong[0]}: {processor.ignore_index}}}"
    return f"{text}. Translate them, as in label_mapping: {translation} to ignore {wrong[0]}, or give more label names"


def score_warnings(counts: torch.Tensor, names: list[str], processor: QLSegImageProcessor) -> list[str]:
    """Sentences on scores that do not mean what they seem to.

    Args:
        counts: (K, K) pixels by label of the reference (row) and predicted label (column).
        names: of the K labels.
        processor: that the references were read with.
    """
    total = int(counts.sum())
    occurring = [name for name, count in zip(names, counts.sum(dim=1).tolist()) if count]
    if total == 0:
        return ["no pixel counts: all references are ignored; check do_reduce_labels, label_mapping and ignore_index"]
    if len(occurring) == 1:
        return [one_label_text(occurring, names, set())]
    for offset, is_mended in ((1, processor.do_reduce_labels), (-1, not processor.do_reduce_labels)):
        shifted = int(counts.diagonal(offset).sum())
        if len(names) > 2 and 2 * shifted > total and shifted > int(counts.diagonal().sum()):
            remedy = (
                f"do_reduce_labels: {str(not processor.do_reduce_labels).lower()} probably reads them rightly"
                if is_mended
                else "compare the order of the label names with the stored values"
            )
            where = "after" if offset == 1 else "before"
            return [
                f"{shifted / total:.0%} of the pixels are predicted as the label {where} that of the reference, so "
                f"references seem to be shifted by one; {remedy}"
            ]
    return []


__all__ = ["ONE_REASON", "PROBLEMS", "ignored_label_error", "one_label_text", "range_error", "score_warnings"]
