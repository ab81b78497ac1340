"""Model cards: what a folder on the Hub says about itself. Names from data sets and checkpoints are escaped."""

import html
import json
import platform
import re
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import cached_file
from yaml import YAMLError

from .files import write_atomically
from .hub import CARD, model_argument

RELEASE_LICENSE = {
    "license": "other",
    "license_name": "academic-non-commercial",
    "license_link": "https://github.com/xb534/QLSeg",
}
LICENSE_NOTE = (
    "These weights were converted from a checkpoint of the original QLSeg, which is released for academic, "
    "non-commercial use; the conversion does not change that. The code of `qlseg_hf` is Apache-2.0."
)
MEASURED, NOT_MEASURED = "## Measured", "No accuracy was measured for this card."
METRICS = {"miou": ("mean_iou", "mIoU"), "macc": ("mean_accuracy", "mAcc"), "aacc": ("overall_accuracy", "aAcc")}
PROTOCOL = ("scales", "flip", "size", "window_size", "window_stride", "do_reduce_labels", "ignore_index")
CITATION = [
    "## Citation",
    "",
    'Xie et al., "Multi-query and multi-level enhanced network for semantic segmentation",',
    "Pattern Recognition, 2024.",
    "",
]

# ---------------------------------------------------------------------------------------------------- text of others


def printable(text: str) -> str:
    """Any text on one line, with what would move a cursor, change colours or turn the direction written out."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in " ".join(str(text).split()))


def escaped(text: str) -> str:
    """Any text as one line of Markdown that shows it and nothing else, in a table too."""
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(printable(text), quote=False))


def as_code(text: str) -> str:
    """Any text as a code span on one line. Not for tables."""
    text = printable(text)
    ticks = "`" * (longest_run(text) + 1)
    return f"{ticks} {text} {ticks}" if len(ticks) > 1 else f"`{text}`"


def fenced(text: str, language: str) -> list[str]:
    """Any text as a code block."""
    ticks = "`" * max(3, longest_run(text) + 1)
    return [f"{ticks}{language}", text.rstrip("\n"), ticks]


def longest_run(text: str) -> int:
    """Backticks in a row."""
    return max(map(len, re.findall("`+", text)), default=0)


def hub_id(source: str | None) -> str | None:
    """`source` if it is the id of a repository on the Hub: no folder here, and a valid id."""
    if not source or Path(source).expanduser().exists():
        return None
    try:
        validate_repo_id(source)
    except HFValidationError:
        return None
    return source


def public_name(source: str) -> str:
    """Id on the Hub, or name of a folder without the way to it."""
    return hub_id(source) or Path(source).expanduser().resolve().name


def origin(source: str | None) -> str:
    """Where weights started, as Markdown."""
    return as_code(public_name(source)) if source else "random weights"


# ------------------------------------------------------------------------------------------------- parts of a card


def inherited_license(source: str | None) -> dict[str, str]:
    """Licence fields of the card in a folder or on the Hub; `unknown` if there is none or it cannot be read."""
    path = Path(source) / CARD if source and Path(source).is_dir() else None
    if path is None and hub_id(source):
        try:
            path = cached_file(source, CARD)
        except OSError:  # none, or not to be had now; the weights matter more, and the card says that it is unknown
            path = None
    if path is None or not Path(path).is_file():
        return {"license": "unknown"}
    try:
        data = metadata_load(path) or {}
    except (ValueError, YAMLError):
        data = {}
    names = ("license", "license_name", "license_link")
    found = {"license": "unknown"} | {name: str(data[name]) for name in names if data.get(name)}
    link = found.get("license_link")
    if link and "://" not in link and hub_id(source):
        found["license_link"] = f"https://huggingface.co/{source}/blob/main/{link}"
    return found


def license_section(fields: dict[str, str], source: str | None) -> list[str]:
    """What is known about the licence of weights that started from `source`."""
    if fields["license"] == "unknown":
        text = f"Nobody has stated one for these weights, which started from {origin(source)}."
    else:
        name = escaped(fields.get("license_name") or fields["license"])
        link = f" ({as_code(fields['license_link'])})" if fields.get("license_link") else ""
        text = f"These weights started from {origin(source)}, whose licence applies: {name}{link}."
    return ["## Licence", "", f"{text} The code of `qlseg_hf` is Apache-2.0.", ""]


def card_data(license_fields: dict[str, str], **fields) -> ModelCardData:
    """Metadata that all cards share, and further fields."""
    shared = {"library_name": "transformers", "pipeline_tag": "image-segmentation"}
    tags = ["qlseg", "semantic-segmentation", "vision"]
    return ModelCardData(**license_fields, **shared, tags=tags, **fields)


def card_text(data: ModelCardData, lines: list[str]) -> str:
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n" + "\n".join(lines)))


def network_sentence(model) -> str:
    config, backbone = model.config, model.config.backbone_config
    quantised = f", quantised by {model.quantization_method.value}" if getattr(model, "is_quantized", False) else ""
    encoder = f"Backbone `{backbone.model_type}`"
    if backbone.model_type == "qlseg_vit":
        encoder = (
            f"Plain ViT ({backbone.hidden_size} wide, {backbone.num_hidden_layers} layers, patches of "
            f"{backbone.patch_size} px, stored for {backbone.image_size} px)"
        )
    return (
        f"{encoder} with QLSeg's head for {config.num_labels} labels, {model.num_parameters() / 1e6:.1f} M parameters "
        f"in {str(model.dtype).removeprefix('torch.')}{quantised}."
    )


def processor_sentence(processor) -> str:
    window = f"windows of {processor.window_size} px with stride {processor.window_stride} px"
    size = " x ".join(str(value) for value in dict(processor.size).values() if value)
    scaled = f"scaled to {'a short side of ' if processor.size.shortest_edge else ''}{size} px and "
    return (
        f"Pictures are {scaled if processor.do_resize else ''}segmented in "
        f"{window if processor.do_sliding_window else 'one piece'}."
    )


def use_section(name: str) -> list[str]:
    """Snippet that segments picture.jpg; `name` is a folder or a Hub id (`upload_folder` replaces the folder)."""
    snippet = f"""\
import qlseg_hf  # registers QLSeg with transformers
from transformers import pipeline

segmenter = pipeline("image-segmentation", {model_argument(name)})
for segment in segmenter("picture.jpg"):
    print(segment["label"], segment["mask"].size)"""
    without = (
        "Without `qlseg_hf`: leave the first line out and give `pipeline` `trust_remote_code=True`; "
        "the code lies beside the weights."
    )
    return ["## Use", "", *fenced(snippet, "python"), "", without, ""]


def labels_section(id2label: dict[int, str]) -> list[str]:
    rows = [f"| {index} | {escaped(name)} |" for index, name in sorted(id2label.items())]
    return [
        "<details><summary>Labels</summary>",
        "",
        "| value | label |",
        "| ---: | --- |",
        *rows,
        "",
        "</details>",
        "",
    ]


# ------------------------------------------------------------------------------------------------------ measurements


def inference_protocol(processor, scales=(1.0,), flip: bool = False) -> dict:
    """How pictures are cut and labels read, for results that someone wants to repeat; None where it does not apply."""
    return {
        "scales": list(scales),
        "flip": flip,
        "size": {key: value for key, value in dict(processor.size).items() if value} if processor.do_resize else None,
        "window_size": processor.window_size if processor.do_sliding_window else None,
        "window_stride": processor.window_stride if processor.do_sliding_window else None,
        "do_reduce_labels": processor.do_reduce_labels,
        "ignore_index": processor.ignore_index,
        "label_map": processor.label_map,
    }


def eval_results(result: dict) -> list[EvalResult]:
    """Entries of `model-index`, fractions. `result`: see `add_result_to_card`."""
    protocol = result["protocol"]
    arguments = {name: protocol[name] for name in PROTOCOL} | {"num_pictures": result["num_pictures"]}
    if protocol["label_map"] is not None:
        arguments["label_map"] = {str(value): label for value, label in protocol["label_map"].items()}
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
        f"labels translated by {as_code(json.dumps(protocol['label_map']))}" if protocol["label_map"] else "",
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
        result: what `examples/evaluate.py --output` writes: `Evaluation.result` with `protocol`.

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


# ------------------------------------------------------------------------------------------------------------- cards


def plain_model_card(model, name: str) -> str:
    """Card of a model that was saved by hand: what can be told from the model alone.

    Args:
        model: `QLSegForSemanticSegmentation`.
        name: of its folder.
    """
    source = model.config.name_or_path or None
    fields = inherited_license(source)
    lines = [
        "# QLSeg",
        "",
        network_sentence(model),
        f"Started from {origin(source)}; what was done since is not known here.",
        "",
        *license_section(fields, source),
        *use_section(name),
        *labels_section(model.config.id2label),
        MEASURED,
        "",
        NOT_MEASURED,
        "",
        *CITATION,
    ]
    return card_text(card_data(fields), lines)


def converted_model_card(
    model,
    processor,
    *,
    name: str,
    source_name: str,
    source_sha256: str,
    key_families: list[tuple[int, str, str]],
    used: dict[str, list[str]],
    dropped: dict[str, str],
    notes: list[str],
) -> str:
    """Card of converted weights, as markdown with metadata.

    Args:
        model, processor: as they are saved beside the card.
        name: of their folder.
        source_name, source_sha256: of the checkpoint file.
        key_families: (count, pattern in the checkpoint, pattern here).
        used: every source key and the keys it became.
        dropped: every other source key and why.
        notes: sentences for the reader.
    """
    lines = [
        "# QLSeg, converted",
        "",
        network_sentence(model),
        "",
        processor_sentence(processor),
        "",
        "## Licence",
        "",
        LICENSE_NOTE,
        "",
        *use_section(name),
        *labels_section(model.config.id2label),
        MEASURED,
        "",
        NOT_MEASURED,
        "",
        "## Source",
        "",
        f"- file: {as_code(source_name)}",
        f"- sha256: `{source_sha256}`",
        f"- keys: {len(used) + len(dropped)}, of which {len(used)} used and {len(dropped)} dropped",
        "",
        *notes,
        "",
        "| keys | in the checkpoint | here |",
        "| ---: | --- | --- |",
        *(f"| {count} | `{old}` | `{new}` |" for count, old, new in key_families),
        *(f"| 1 | `{key}` | dropped: {reason} |" for key, reason in dropped.items()),
        "",
        "<details><summary>Every key</summary>",
        "",
        "| in the checkpoint | here |",
        "| --- | --- |",
        *(f"| `{old}` | {', '.join(f'`{name}`' for name in new)} |" for old, new in used.items()),
        *(f"| `{key}` | dropped |" for key in dropped),
        "",
        "</details>",
        "",
        *CITATION,
    ]
    return card_text(card_data(RELEASE_LICENSE), lines)


def trained_model_card(model, processor, *, name: str, recipe, step: int, launch: dict, result: dict) -> str:
    """Card of a model that `examples/train.py` trained, as markdown with metadata.

    Args:
        model, processor: as they are saved beside the card, with losses.jsonl, evaluations.jsonl and curves.png.
        name: of their folder.
        recipe: `Recipe` of what was trained.
        step: optimiser steps that these weights have seen.
        launch: `launch_facts`: number of processes, distribution, precision.
        result: `Evaluation.result` on `recipe.eval_split`, fractions, with `protocol`.
    """
    started_from = recipe.model or recipe.backbone
    fields = inherited_license(started_from)
    data = card_data(
        fields,
        base_model=hub_id(started_from),
        datasets=hub_id(recipe.dataset),
        model_name=recipe.hub_model_id or Path(recipe.output_dir).resolve().name,
        eval_results=eval_results(result),
    )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "accelerate"))
    lines = [
        f"# QLSeg, trained on {escaped(public_name(recipe.dataset))}",
        "",
        network_sentence(model),
        "",
        f"Trained for {step} of {recipe.max_steps} steps of {recipe.total_batch_size} pictures from "
        f"{origin(started_from)} on split {as_code(recipe.train_split)}.",
        processor_sentence(processor),
        "",
        *license_section(fields, started_from),
        *use_section(name),
        MEASURED,
        "",
        measured_line(result),
        "",
        "| value | label | IoU in % |",
        "| ---: | --- | ---: |",
        *(f"| {i} | {escaped(row['label'])} | {percent(row['iou'])} |" for i, row in enumerate(result["per_label"])),
        "",
        "## Training",
        "",
        f"- hardware: {launch['num_processes']} x {device}",
        f"- precision of the forward pass: {launch['precision']}; distribution: {launch['distribution']}",
        f"- versions: {versions}",
        "- every step and evaluation: `losses.jsonl`, `evaluations.jsonl`",
        "",
        "![loss and mIoU over the steps](curves.png)",
        "",
        *fenced(recipe.to_yaml(), "yaml"),
        "",
        *CITATION,
    ]
    return card_text(data, lines)


__all__ = [
    "add_result_to_card",
    "converted_model_card",
    "inference_protocol",
    "plain_model_card",
    "printable",
    "trained_model_card",
]
