# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Measurements in cards: as entries of `model-index`, and as lines below "Measured"."""

import json
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard

from ..utils.files import write_atomically
from ..utils.text import as_code
from .source import public_name

MEASURED, NOT_MEASURED = "## Measured", "No accuracy was measured for this card."
METRICS = {"miou": ("mean_iou", "mIoU"), "macc": ("mean_accuracy", "mAcc"), "aacc": ("overall_accuracy", "aAcc")}
PROTOCOL = ("scales", "flip", "size", "window_size", "window_stride", "do_reduce_labels", "ignore_index")


def inference_protocol(processor, scales=(1.0,), flip: bool = False) -> dict:
    """How pictures are cut and labels read, for results that someone wants to repeat; None where it does not apply."""
    settings = processor.settings()
    return {
        "scales": list(scales),
        "flip": flip,
        "size": dict(settings.size) if settings.do_resize else None,
        "window_size": settings.window_size if settings.do_sliding_window else None,
        "window_stride": settings.window_stride if settings.do_sliding_window else None,
        "do_reduce_labels": settings.do_reduce_labels,
        "ignore_index": settings.ignore_index,
        "label_mapping": settings.label_mapping,
    }


def eval_results(result: dict) -> list[EvalResult]:
    """Entries of `model-index`, fractions. `result`: see `add_result_to_card`."""
    protocol = result["protocol"]
    arguments = {name: protocol[name] for name in PROTOCOL} | {"num_pictures": result["num_pictures"]}
    if protocol["label_mapping"] is not None:  # by the name that the metric of `evaluate` has for it
        arguments["label_map"] = {str(value): label for value, label in protocol["label_mapping"].items()}
    return [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=public_name(protocol["dataset"]),
            dataset_name=public_name(protocol["dataset"]),
            dataset_config=protocol["dataset_config"],
            dataset_split=protocol["split"],
            metric_type=metric,
            metric_name=name,
            metric_value=round(result[key], 6),
            metric_args={key: value for key, value in arguments.items() if value is not None},
        )
        for key, (metric, name) in METRICS.items()
        if result[key] is not None
    ]


def measured_line(result: dict) -> str:
    """A measurement as an item of a list: protocol, colon, numbers."""
    protocol = result["protocol"]
    size = ", ".join(f"{key.replace('_', ' ')} {value} px" for key, value in (protocol["size"] or {}).items())
    window = f"windows of {protocol['window_size']} px with stride {protocol['window_stride']} px"
    parts = [
        as_code(public_name(protocol["dataset"])),
        f"configuration {as_code(protocol['dataset_config'])}" if protocol["dataset_config"] else "",
        f"split {as_code(protocol['split'])}",
        f"{result['num_pictures']} pictures at their labels' size",
        f"{len(result['unreadable'])} more that cannot be read not counted" if result.get("unreadable") else "",
        f"scales {', '.join(f'{scale:g}' for scale in protocol['scales'])}{' with flip' if protocol['flip'] else ''}",
        size or "not resized",
        window if protocol["window_size"] else "in one piece",
        f"label {protocol['ignore_index']} ignored",
        "first label is void" if protocol["do_reduce_labels"] else "",
        f"labels translated by {as_code(json.dumps(protocol['label_mapping']))}" if protocol["label_mapping"] else "",
    ]
    low, high = (percent(bound) for bound in result["miou_interval"])
    return (
        f"- {', '.join(filter(None, parts))}: mIoU {percent(result['miou'])} % (95 % interval over pictures {low} to "
        f"{high}), mAcc {percent(result['macc'])} %, aAcc {percent(result['aacc'])} %"
    )


def percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f}"


def add_result_to_card(path: str | Path, result: dict) -> None:
    """Write a measurement into a card: into `model-index` and below "Measured". One of the same protocol is replaced.

    Args:
        path: README.md of a model.
        result: what `qlseg evaluate --output` writes: `Evaluation.result` with `protocol`.

    Raises:
        ValueError: the card's metadata cannot be read.
    """
    path = Path(path)
    card = ModelCard.load(path)
    new = eval_results(result)
    kept = [old for old in card.data.eval_results or [] if not any(old.is_equal_except_value(entry) for entry in new)]
    card.data.eval_results = kept + new
    card.data.model_name = card.data.model_name or path.resolve().parent.name
    line = measured_line(result)
    same = line[: line.index(": mIoU ")]
    lines = [old for old in card.text.splitlines() if old != NOT_MEASURED and not old.startswith(same + ": mIoU ")]
    if MEASURED not in lines:
        lines += ["", MEASURED]
    place = lines.index(MEASURED) + 1
    if lines[place : place + 1] != [""]:
        lines.insert(place, "")
    lines.insert(place + 1, line)
    card.text = "\n".join(lines) + "\n"
    write_atomically(path, str(card).encode())


__all__ = [
    "MEASURED",
    "NOT_MEASURED",
    "add_result_to_card",
    "eval_results",
    "inference_protocol",
    "measured_line",
    "percent",
]
