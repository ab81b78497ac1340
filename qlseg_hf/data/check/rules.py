# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""How stored values become labels where nobody has said it: what is plain is decided and told, the rest is asked."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...model.image_processing_qlseg import QLSegImageProcessor
from ..datasets import NUM_NAMED, listed
from .counting import Finding, Tally, is_region, is_smoothed, labels_of, tally_values
from .readings import readings_of

ONLY_VOID = (65535, (1 << 31) - 1, (1 << 32) - 1)  # -1 where numbers have no sign, and the largest one
MOST_LABELS = 256  # that are taken for labels without names
FEWEST_SHADES, MOST_INNER_SHADES = 32, 0.1  # values without names, and the share of pixels amid their own value
LARGE_SHARE = 0.5  # of the pixels, which 255 may have without a question
VOID_NAMES = ("void", "unlabeled", "unlabelled", "unlabel", "ignore", "ignored", "unknown", "undefined", "dontcare")


@dataclass
class Rules:
    """How stored values become labels.

    `names`: of the labels. `settings`: of the processor, given or decided. `notes`: what was decided, in sentences.
    `problems`: what has to be decided by a person. `proposals`: (when it is right, settings) of each way to do it.
    `are_named`: whether a person has named the labels. `is_open`: `settings` are one way to show the label maps, and
    not decided.
    """

    names: list[str]
    settings: dict[str, Any]
    are_named: bool = True
    is_open: bool = False
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    proposals: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def make_processor(self) -> QLSegImageProcessor:
        """A processor with these settings."""
        return QLSegImageProcessor(**self.settings)


def decide_rules(findings: list[Finding], names: list[str] | None, given: dict[str, Any]) -> Rules:
    """Names and settings for stored values.

    Args:
        findings: of all samples that labels are learnt or measured on.
        names: of the labels, if they are known; else labels are called by their stored values, "label_7".
        given: those of `do_reduce_labels`, `ignore_index` and `label_mapping` that someone has set.

    What names and values leave open is left to `report_on_labels`, which refuses it.
    """
    rules = Rules(list(names or []), dict(given), are_named=names is not None)
    tallies = tally_values(findings, None, 0)
    if not tallies:
        return rules
    is_settled = given.keys() & {"ignore_index", "label_mapping"} or len(names or ()) > 2
    mixture = None if is_settled else mixed_text(findings)
    if "ignore_index" not in given:
        set_plain_void(rules, sorted(tallies))
    by_bits = {found.bits: found.name for found in findings if found.stored is not None}
    if by_bits.keys() & {2, 4} and len(by_bits) > 1 and "label_mapping" not in given:
        texts = [f"{bits} ({name})" for bits, name in sorted(by_bits.items())]
        rules.problems.append(
            f"label maps are grey of different numbers of bits: {listed(texts)}; read are the numbers, of which 1 is "
            "another grey in each. Save all with 8 bits, or set label_mapping if the numbers tell the label"
        )
    if mixture:
        rules.proposals += [
            ("1 and 255 are one label", {"label_mapping": {255: 1}}),
            ("255 is void", {"ignore_index": 255}),
        ]
        rules.problems.append(mixture)
    if names is None:
        if mixture:
            show_values(rules, tallies)
        elif given.keys() & {"label_mapping", "do_reduce_labels"}:
            rules.names = names_by_value(sorted(tallies), rules)
        else:
            find_labels(rules, findings, tallies)
    else:
        propose_for_names(rules, tallies)
        note_void_names(rules, tallies)
    return rules


def name_by_hints(
    findings: list[Finding],
    given: dict[str, Any],
    hints: Sequence[tuple[str, list[str]]],
    class_names: Sequence[tuple[str, list[str]]],
) -> Rules:
    """As `decide_rules` without names, but by those of a hint if it has K and the labels are 0..K-1 as stored.

    Hints that do not fit, and as many `class_names` as labels, are told. Names that may be others are worse than none.
    """
    rules = decide_rules(findings, None, given)
    count, values = len(rules.names), listed([name.removeprefix("label_") for name in rules.names])
    is_plain = not rules.is_open and not {"label_mapping", "do_reduce_labels"} & rules.settings.keys()
    is_plain = is_plain and rules.names == [f"label_{label}" for label in range(count)]
    for where, names in hints:
        if is_plain and len(names) == count:
            rules = decide_rules(findings, names, given)
            rules.notes.append(f"the labels 0..{count - 1} all occur and are called as in {where}: {listed(names)}")
            return rules
        rules.notes.append(
            f"{where} gives {len(names)} names ({listed(names)}), and label maps hold {values}; set label_names if "
            "you know which is which"
        )
    for where, names in class_names:
        if len(names) == count:
            rules.notes.append(
                f"{where} has as many names as there are labels ({listed(names)}); set label_names if the label maps "
                "hold them, in this order"
            )
    return rules


def set_plain_void(rules: Rules, values: list[int]) -> None:
    """Negative numbers and the largest ones of a type can be nothing but void."""
    table = rules.settings.get("label_mapping") or {}
    void = [value for value in values if (value < 0 or value in ONLY_VOID) and value not in table]
    others = [value for value in values if value not in void and value != 255]
    is_white = void == [65535] and others == [0]  # masks of 16 bits
    if not void or not others or is_white or (rules.names and max(others) > len(rules.names)):
        return
    if 255 in values or len(void) > 1:
        rules.settings |= {"label_mapping": table | {value: 255 for value in void}, "ignore_index": 255}
    else:
        rules.settings["ignore_index"] = void[0]
    rules.notes.append(
        f"{' and '.join(map(str, void))} can be no label, and is ignored: {settings_text(rules.settings)}"
    )


def find_labels(rules: Rules, findings: list[Finding], tallies: dict[int, Tally]) -> None:
    """Labels from values alone."""
    processor = rules.make_processor()
    ignored = {v for v, label in zip(tallies, labels_of(list(tallies), processor)) if label == processor.ignore_index}
    if "ignore_index" not in rules.settings:
        ignored.discard(255)
    values = sorted(set(tallies) - ignored)
    if problem := (smoothed_text(tallies) or shades_text(tallies) or objects_text(findings, values)):
        rules.problems.append(problem)
        show_values(rules, tallies)
        return
    if 255 in values and "ignore_index" not in rules.settings and len(values) > 1:
        others = [value for value in values if value != 255]
        if (is_label := is_255_a_label(others)) is None or (
            not is_label and tallies[255].num_pixels > LARGE_SHARE * sum(t.num_pixels for t in tallies.values())
        ):
            ask_about_255(rules, others, tallies)
            show_values(rules, tallies)
            return
        values = values if is_label else others
    number_values(rules, values)


def show_values(rules: Rules, tallies: dict[int, Tally]) -> None:
    """Give each value that fills regions a label, so that the maps can be shown; nothing is decided by that."""
    shown = sorted(value for value in tallies if is_region(tallies[value]))[:MOST_LABELS] or sorted(tallies)[:1]
    table = number_in_order(shown) | {value: -100 for value in tallies if value not in shown}
    rules.names, rules.is_open = [f"label_{value}" for value in shown], True
    rules.settings |= {"label_mapping": table, "ignore_index": -100, "do_reduce_labels": False}


def mixed_text(findings: list[Finding]) -> str | None:
    """The sentence on masks of 0 and 1 among masks of 0 and 255, of which 255 would be taken for void."""
    maps = [set(finding.stored.values.tolist()) for finding in findings if finding.stored is not None]
    with_1, with_255 = ([own for own in maps if value in own] for value in (1, 255))
    if not with_1 or not with_255 or set().union(*maps) - {0, 1, 255} or any(1 in own for own in with_255):
        return None
    return (
        f"1 is in {len(with_1)} label maps and 255 in {len(with_255)} others, never in the same, so masks of 0 and 1 "
        "seem to be mixed with masks of 0 and 255: set label_mapping: {255: 1} if both are one label, or "
        "ignore_index: 255 if 255 is void"
    )


def is_255_a_label(others: list[int]) -> bool | None:
    """Whether 255 is one, by the other values; None if they do not tell."""
    if others == [0] or others[-1] == 254:
        return True
    if others[0] >= 0 and others[-1] < max(3 * len(others), 8):  # numbers of labels, some missing; no grey levels
        return False
    steps = np.diff([*others, 255])
    return True if steps.max() - steps.min() <= 2 else None


def ask_about_255(rules: Rules, others: list[int], tallies: dict[int, Tally]) -> None:
    """The problem of a 255 that may be void or a label."""
    share = tallies[255].num_pixels / sum(tally.num_pixels for tally in tallies.values())
    as_void: dict[str, Any] = {"ignore_index": 255}
    if others != list(range(len(others))):
        as_void["label_mapping"] = number_in_order(others)
    as_label = {"label_mapping": number_in_order([*others, 255])}
    rules.proposals += [("255 is void", as_void), ("255 is a label", as_label)]
    rules.problems.append(
        f"255, {share:.1%} of the pixels beside {listed(list(map(str, others)))}, may be void or a label: set "
        f"{settings_text(as_void)} if it is void, or {settings_text(as_label)} if it is a label"
    )


def number_values(rules: Rules, values: list[int]) -> None:
    """Make the values 0..K-1, and call each label by its value."""
    rules.names = [f"label_{value}" for value in values]
    last, text = values[-1], listed(list(map(str, values)))
    if values == list(range(len(values))):
        if len(values) > 2:
            rules.notes.append(f"labels 0..{last} are as stored; set do_reduce_labels: true if 0 is void")
    elif values == list(range(1, last + 1)) and "label_mapping" not in rules.settings:
        rules.settings["do_reduce_labels"] = True
        rules.notes.append("values begin at 1 and 0 never occurs, so 1 is the first label: do_reduce_labels: true")
    else:
        rules.settings["label_mapping"] = (rules.settings.get("label_mapping") or {}) | number_in_order(values)
        rules.notes.append(f"the values {text} are numbered: label_mapping: {rules.settings['label_mapping']}")


def number_in_order(values: list[int]) -> dict[int, int]:
    """{stored value: label} that makes `values` 0..K-1."""
    return {value: label for label, value in enumerate(values)}


def names_by_value(values: list[int], rules: Rules) -> list[str]:
    """Names of the labels that values become by the settings, each after its stored value."""
    processor = rules.make_processor()
    labels = labels_of(np.array(values), processor).tolist()
    labels = {label: value for value, label in zip(values, labels) if 0 <= label != processor.ignore_index}
    return [
        f"label_{labels.get(label, f'{label}_absent')}" for label in range(min(max(labels, default=-1) + 1, 65536))
    ]


def smoothed_text(tallies: dict[int, Tally]) -> str | None:
    """The sentence on values that lie along edges."""
    regions = [value for value in tallies if is_region(tallies[value])]
    if not is_smoothed(tallies, tallies, len(regions)):
        return None
    kept = sorted(regions)
    return (
        f"{len(tallies) - len(kept)} of {len(tallies)} stored values lie along edges, as JPEG compression or "
        f"smoothing leaves them, and {listed(list(map(str, kept)))} fill regions: store label maps as PNG, made "
        "without smoothing and resized with nearest neighbour, or round each value to its nearest label"
    )


def shades_text(tallies: dict[int, Tally]) -> str | None:
    """The sentence on values of which hardly any fills a region, as of photographs and depths."""
    num_inner, num_pixels = (
        sum(getattr(tally, key) for tally in tallies.values()) for key in ("num_inner", "num_seen")
    )
    if len(tallies) < FEWEST_SHADES or num_inner > MOST_INNER_SHADES * num_pixels:
        return None
    return (
        f"there are {len(tallies)} stored values, and {1 - num_inner / num_pixels:.0%} of the pixels have a neighbour "
        "of another value, as in photographs and depths; give the folder of the label maps, as in layout: "
        "images:masks, or label_names if these are labels"
    )


def objects_text(findings: list[Finding], values: list[int]) -> str | None:
    """The sentence on values that number objects instead of naming kinds of things."""
    maps = [finding.stored.values for finding in findings if finding.stored is not None]
    maps = [found[np.isin(found, values)] for found in maps]
    tops = [int(found[-1]) for found in maps if len(found)]
    lengths = [len(found) for found in maps if len(found)]
    # gaps are of objects that lie behind others; where there are none, numbers that differ less tell it too
    is_full, is_gapless = (np.mean(np.array(lengths) >= np.multiply(share, tops)) > 0.9 for share in (0.7, 1))
    is_spread = max(tops, default=0) >= 12 and len(set(tops)) >= min(10, len(tops) / 2)
    remedy = "store for each pixel what it is (a semantic label map), or give label_names if these are labels"
    is_various = len(set(tops)) >= 4 and max(tops) >= max(6, 2 * min(tops))
    by_folder: dict[str, set[int]] = defaultdict(set)  # of a video each frame has as many as there are objects
    for finding in findings:
        if finding.stored is not None:
            by_folder[finding.name.rpartition("/")[0]].update(finding.stored.values[-1:].tolist())
    is_video = len(lengths) > len(by_folder) >= 4 and all(len(own) == 1 for own in by_folder.values())
    is_video &= len(set(tops)) >= 3
    if (is_full and is_various) or (is_gapless and (is_video or (is_spread and len(set(tops)) >= 4))):
        return (
            f"in each of {len(maps)} label maps values run from {values[0]} nearly gapless, to {min(tops)} in one"
            f" and to {max(tops)} in another, so they seem to count objects (instance ids); {remedy}"
        )
    large = [value for value in values if value >= 1000]
    if len(large) > len({value // 1000 for value in large}):
        return (
            f"values such as {listed(list(map(str, large[:NUM_NAMED])))} seem to be 1000 x label + number of an "
            f"object (instance ids); {remedy}"
        )
    if len(values) > MOST_LABELS:
        return f"there are {len(values)} stored values, {values[0]}..{values[-1]}, and no label_names; {remedy}"
    return None


def propose_for_names(rules: Rules, tallies: dict[int, Tally]) -> None:
    """Settings under which values fit the names, where they do not as they are."""
    processor, names = rules.make_processor(), rules.names
    stored = np.array(sorted(tallies))
    labels = labels_of(stored, processor)
    kept = stored[labels != processor.ignore_index].tolist()
    if not kept or "label_mapping" in rules.settings or rules.settings.get("do_reduce_labels"):
        return
    if kept[0] >= 0 and kept[-1] == len(names):
        readings = readings_of(stored, names, processor)
        rules.proposals += [
            (f"0 is void, 1 is {names[0]!r} and {len(names)} is {names[-1]!r}", readings["reduced"][1]),
            (f"{len(names)} is void and 0 is {names[0]!r}", readings["last is void"][1]),
        ]
    elif len(names) == 2 and stored.tolist() == [0, 255]:
        rules.proposals += [
            (f"0 is {names[a]!r} and 255 is {names[1 - a]!r}", {"label_mapping": {0: a, 255: 1 - a}}) for a in (0, 1)
        ]
    elif len(kept) == len(names) and kept[-1] > len(names) and not smoothed_text(tallies):
        table = number_in_order(kept)
        pairs = [f"{value} is {name!r}" for value, name in zip(kept, names)]
        rules.proposals.append((listed(pairs), {"label_mapping": table}))
        rules.problems.append(
            f"{len(kept)} values, {listed(list(map(str, kept)))}, stand beside {len(names)} names and are no labels "
            f"0..{len(names) - 1}: set label_mapping: {table} if they are in the order of the names "
            f"({listed(pairs)}), or write the label_mapping that is right"
        )


def note_void_names(rules: Rules, tallies: dict[int, Tally]) -> None:
    """A label that is called void would be learnt as one, and if void is stored too, names may stand one too far.

    So it is with COCO-Stuff: its list of names begins with "unlabeled", which no number stands for in its label maps.
    """
    processor, names = rules.make_processor(), rules.names
    is_void = ["".join(sign for sign in name.lower() if sign.isalpha()) in VOID_NAMES for name in names]
    labels = set(labels_of(list(tallies), processor).tolist())
    is_shifted = any(is_void[:1]) and {0, processor.ignore_index} <= labels and len(names) - 1 not in labels
    if is_shifted and len(names) > 2 and "label_mapping" not in rules.settings:
        rules.proposals.append((f"0 is {names[0]!r}", {"label_mapping": {0: processor.ignore_index}}))
        rules.problems.append(
            f"label 0 is called {names[0]!r} although {processor.ignore_index} is void, and {names[-1]!r}, the last "
            f"label, never occurs, so the names may stand one too far: take {names[0]!r} out of label_names if 0 is "
            f"{names[1]!r}, or set label_mapping: {{0: {processor.ignore_index}}} if 0 is void too"
        )
        return
    for label, name in enumerate(names):
        if is_void[label] and label != processor.ignore_index:
            rules.notes.append(
                f"label {label} is called {name!r} and is learnt as a label; if its pixels shall not count, set "
                f"label_mapping: {{{label}: {processor.ignore_index}}}"
            )


def settings_text(settings: dict[str, Any]) -> str:
    """Settings as keys of a recipe."""
    return " and ".join(
        f"{key}: {str(value).lower() if isinstance(value, bool) else value}" for key, value in settings.items()
    )


__all__ = ["Rules", "decide_rules", "name_by_hints", "settings_text"]
