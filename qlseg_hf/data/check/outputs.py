# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What `qlseg check` found and decided, for programs: one JSON object, `data.yaml`, `label_colors.yaml`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...utils.files import write_atomically
from ...utils.optional import import_package
from ...utils.text import printable
from .survey import Survey

MOST_LISTED = 1000  # duplicates and unreadable images in the JSON object


def as_json(survey: Survey) -> dict[str, Any]:
    """Plain data for scripts.

    `layout`: its name. `images`: {split: count}. `labels`: of each label `name`, `label` (its number), `value`
    (stored; null if it never occurs), `values` (all), `pixels` and `images` (of the splits that are trained and
    validated on). `ignored`: share of their pixels, 0..1; null if there is none. `channels`: bands of an image.
    `problems`: sentences that stop training; `warnings`, `notes`: others. `sizes`: [{height, width, images}].
    `duplicates`: [[{split, name}]] of images of equal content, `overlap`: those across splits. `unreadable`:
    [{split, name, reason}].
    """
    counts, num_ignored, bands = survey.label_counts, survey.num_ignored, survey.bands
    num_pixels = int(counts.sum()) + num_ignored
    labels = zip(survey.rules.names, survey.stored_values, counts.tolist(), survey.images_of_labels)
    groups = [[{"split": s, "name": n} for s, n in group.places] for group in survey.duplicates]
    num_overlaps = sum(len(group.splits) > 1 for group in survey.duplicates)
    return {
        "data": survey.request.data,
        "layout": survey.layout,
        "description": survey.description,
        "images": {split: len(found) for split, found in survey.findings.items()},
        "splits": survey.uses,
        "labels": [
            {
                "name": name,
                "label": label,
                "value": values[0] if values else None,
                "values": values,
                "pixels": pixels,
                "images": images,
            }
            for label, (name, values, pixels, images) in enumerate(labels)
        ],
        "ignored": num_ignored / num_pixels if num_pixels else None,
        "channels": bands.num_channels if bands else None,
        "bands": asdict(bands) if bands else None,
        "sizes": [{"height": h, "width": w, "images": count} for (h, w), count in survey.sizes.most_common()],
        "unreadable": [{"split": s, "name": n, "reason": r} for s, n, r in survey.unreadable[:MOST_LISTED]],
        "duplicates": groups[:MOST_LISTED],
        "overlap": groups[: min(num_overlaps, MOST_LISTED)],
        "colors": [{"color": list(c), "pixels": p, "images": n} for c, (p, n) in survey.colors.items()],
        "label_weights": survey.label_weights,
        "crop_size": survey.crop_size,
        "rare": survey.rare,
        "settings": survey.settings,
        "proposals": [{"if": meaning, "settings": settings} for meaning, settings in survey.rules.proposals],
        "can_train": survey.can_train,
        "problems": survey.problems,
        "warnings": survey.warnings,
        "notes": survey.notes,
    }


def failure_as_json(data: str, sentence: str) -> dict[str, Any]:
    """The object for data that cannot be opened: the same keys that scripts need, without findings."""
    facts = {"data": data, "layout": None, "images": {}, "labels": [], "ignored": None, "channels": None}
    return facts | {"can_train": False, "problems": [sentence], "warnings": [], "notes": []}


def data_keys(survey: Survey) -> dict[str, Any]:
    """The keys of a recipe that describe the data, without those that are not needed."""
    request, place = survey.request, Path(survey.request.data).expanduser()
    keys: dict[str, Any] = {"data": str(place.resolve()) if place.exists() else request.data}
    keys |= {key: request.reading[key] for key in ("layout", "val_fraction") if key in request.reading}
    keys |= {"train_split": survey.uses["training"], "eval_split": survey.uses["validation"]}
    keys |= {"dataset_config": request.reading.get("config")}
    keys |= {key: request.reading.get(key) for key in ("image_column", "label_column", "label_colors")}
    keys |= {"streaming": request.reading.get("streaming") or None}
    asked = {key for _, proposed in survey.rules.proposals for key in proposed}
    settings = {key: value for key, value in survey.settings.items() if key not in asked}
    keys |= {"label_names": (not survey.rules.is_open and survey.rules.names) or None} | settings
    if bands := survey.bands:
        keys |= {"num_channels": bands.num_channels if bands.num_channels != 3 else None}
        keys |= {"processor": bands.processor_settings or None}
    keys |= {"label_weights": survey.label_weights if request.weighs_labels else None}
    return {key: value for key, value in keys.items() if value is not None}


def data_yaml(survey: Survey) -> str:
    """`data.yaml`: what was decided as keys, and as comments what is suggested or left to a person."""
    lines = [f"# {survey.description}", "# Read by qlseg train --data FILE. Edit what you know better."]
    lines += [f"# Problem: {text}" for text in survey.problems]
    if survey.rules.proposals:
        lines.append("# Decide how label values are read; take the sign # away before the keys of one of:")
        for meaning, settings in survey.rules.proposals:
            lines += [f"# if {meaning}:", *(f"#{line}" for line in to_yaml(settings).splitlines())]
    keys = data_keys(survey)
    text = "\n".join(map(printable, lines)) + "\n\n" + to_yaml(keys)
    suggested = {key: getattr(survey, key) for key in ("crop_size", "label_weights") if key not in keys}
    if not survey.rules.names or survey.rules.is_open:
        suggested.pop("label_weights", None)
    hints = ["", "# Suggested for a network that starts from scratch or from an encoder alone:"]
    return text + "\n".join([*hints, *(f"#{line}" for line in to_yaml(suggested).splitlines())]) + "\n"


def label_colors_yaml(survey: Survey) -> str:
    """A table of the colours that were found in masks, to be edited."""
    total = sum(pixels for pixels, _ in survey.colors.values())
    lines = [
        "# Colours of the label maps, the most frequent first. Put the name of each label in place of its number, and",
        "# 255 where a colour shall not count; leave no colour out. Then: qlseg check DATA --label_colors THIS_FILE",
    ]
    for label, (color, (pixels, images)) in enumerate(survey.colors.items()):
        lines.append(f"{label}: {list(color)}  # {pixels / total:.2%} of the pixels, in {images} label maps")
    return "\n".join(lines) + "\n"


def to_yaml(values: dict[str, Any]) -> str:
    """YAML, one key a line, in which lists and mappings stand on the line of their key."""
    yaml = import_package("yaml", "safe_dump", "data.yaml", "pyyaml")
    lines = []
    for key, value in values.items():
        options = {"default_flow_style": True, "width": 1 << 30, "allow_unicode": True, "sort_keys": False}
        lines.append(yaml.safe_dump({key: value}, **options).strip()[1:-1])
    return "\n".join(lines) + "\n"


def write_files(survey: Survey, output: Path) -> list[Path]:
    """Write `data.yaml`, and `label_colors.yaml` if colours were found."""
    files = {"data.yaml": data_yaml(survey)}
    if survey.colors:
        files["label_colors.yaml"] = label_colors_yaml(survey)
    for name, text in files.items():
        write_atomically(output / name, text.encode())
    return [output / name for name in files]


def json_text(values: dict[str, Any]) -> str:
    """Strict JSON on one line."""
    return json.dumps(values, allow_nan=False)


__all__ = [
    "as_json",
    "data_keys",
    "data_yaml",
    "failure_as_json",
    "json_text",
    "label_colors_yaml",
    "to_yaml",
    "write_files",
]
