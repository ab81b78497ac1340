"""Model cards: what a folder on the Hub says about itself. Names from data sets and checkpoints are escaped."""

import json
import os
import platform
import re
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import (
    EvalResult,
    ModelCard,
    ModelCardData,
    hf_hub_download,
    metadata_load,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from yaml import YAMLError

from ..utils.files import write_atomically
from ..utils.text import as_code, escaped, fenced
from .upload import CARD, model_argument

RELEASE_LICENSE = {
    "license": "other",
    "license_name": "academic-non-commercial",
    "license_link": "https://github.com/xb534/QLSeg",
}
LICENSE_NOTE = (
    "These weights were converted from a checkpoint of the original QLSeg, which is released for academic, "
    "non-commercial use; the conversion does not change that. The code of `qlseg_hf` is Apache-2.0."
)
UNKNOWN = {"license": "unknown"}
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


def hub_id(source: str | None) -> str | None:
    """`source` if it is the id of a repository on the Hub: no file or folder here, and a valid id."""
    if not source or os.path.exists(os.path.expanduser(source)):
        return None
    try:
        validate_repo_id(source)
    except HFValidationError:
        return None
    return source


def public_name(source: str) -> str:
    """Id on the Hub, or name of a file or folder without the way to it."""
    return hub_id(source) or last_part(source)


def last_part(path: str) -> str:
    """Name of a file or folder without the way to it, written in any system's manner."""
    return re.split(r"[/\\]", os.path.abspath(os.path.expanduser(path)).rstrip("\\"))[-1]


# ------------------------------------------------------------------------------------------------- parts of a card


@dataclass(frozen=True)
class Source:
    """Where weights came from and what its card said, as it was when they were loaded. Cards are written from this.

    Attributes:
        name: what may be published of it: Hub id (and folder in the repository), or name of a file or folder.
        repo_id: on the Hub.
        license: fields of a card; "unknown" if none was stated or could be read.
        unknown_because: sentence that says why it is unknown.
    """

    name: str
    repo_id: str | None = None
    license: dict[str, str | list[str]] = field(default_factory=UNKNOWN.copy)
    unknown_because: str = "Nobody has stated one for them."


def read_source(
    source: str | os.PathLike,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    **where,
) -> Source:
    """What the card says that lies beside the weights of `source`.

    Args:
        source: file, folder or Hub id, as given to `from_pretrained`, from which the weights were just loaded.
        subfolder, revision, cache_dir: as given there. A repository whose weights lie in a folder may hold several
            models: the card is that of the folder.
        where: `force_download`, `local_files_only` and `token`, if given there.

    A card that cannot be read, from the Hub or at all, is no error: the weights matter more, and what is written later
    says that the licence is unknown.
    """
    source, subfolder = str(source), subfolder or ""
    if (repo_id := hub_id(source)) is None:
        folder = Path(os.path.abspath(os.path.expanduser(source)), subfolder)
        found, name = read_license(folder / CARD) if (folder / CARD).is_file() else {}, folder.name
    else:
        name, file = "/".join(filter(None, (repo_id, subfolder))), "/".join(filter(None, (subfolder, CARD)))
        # the cache knows what belongs to the commit that was loaded; a second request might find another one
        path = try_to_load_from_cache(repo_id, file, cache_dir, revision)
        try:
            if path is None or where.get("force_download"):
                path = hf_hub_download(repo_id, file, revision=revision, cache_dir=cache_dir, **where)
            found = (
                read_license(Path(path)) if isinstance(path, str) else {}
            )  # else: the cache knows that there is none
        except LocalEntryNotFoundError:
            found = None
        except EntryNotFoundError:
            found = {}
        except (OSError, HTTPError):
            found = None
    if found is None:
        return Source(name, repo_id, unknown_because="Its card could not be read when they were loaded.")
    link = found.get("license_link")
    if link and "://" not in link:
        del found["license_link"]  # of a file that is not saved with the weights
        if repo_id:
            place = "/".join(filter(None, (subfolder, link)))
            found["license_link"] = f"https://huggingface.co/{repo_id}/blob/{revision or 'main'}/{place}"
    return Source(name, repo_id, found) if found.get("license") else Source(name, repo_id)


def read_license(path: Path) -> dict[str, str | list[str]] | None:
    """Licence fields of a card; none if its metadata state no licence, None if they cannot be read."""
    try:
        data = metadata_load(path) or {}
    except (OSError, ValueError, YAMLError):
        return None
    license = data.get("license")
    if not license or license == "unknown":
        return {}
    stated = {"license": [str(name) for name in license] if isinstance(license, list) else str(license)}
    return stated | {name: str(data[name]) for name in ("license_name", "license_link") if data.get(name)}


def source_of(model) -> Source | None:
    """Where the weights of a network came from; None if they were drawn at random.

    An encoder that was loaded into a network by `load_vit_weights` counts. Of several sources no licence is taken.
    """
    parts = [getattr(part, "source", None) for part in (model, model.backbone)]
    found = list(dict.fromkeys(part.name for part in parts if part))
    if len(found) < 2:
        return next(filter(None, parts), None)
    return Source(" and ".join(found), unknown_because="They have several sources.")


def origin(source: Source | None) -> str:
    """Where weights started, as Markdown."""
    return as_code(source.name) if source else "random weights"


def license_section(source: Source | None) -> list[str]:
    """What is known about the licence of weights that started from `source`."""
    source_license = source.license if source else UNKNOWN
    if source_license == UNKNOWN:
        why = source.unknown_because if source else "Nobody has stated one for them."
        text = f"The licence of these weights, which started from {origin(source)}, is unknown. {why}"
    else:
        stated = source_license.get("license_name") or source_license["license"]
        name = escaped(stated if isinstance(stated, str) else ", ".join(stated))
        link = f" ({as_code(source_license['license_link'])})" if source_license.get("license_link") else ""
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
    settings = processor.settings()
    window = f"windows of {settings.window_size} px with stride {settings.window_stride} px"
    sides = dict(settings.size or {})
    size = " x ".join(str(value) for value in sides.values())
    scaled = f"scaled to {'a short side of ' if 'shortest_edge' in sides else ''}{size} px and "
    return (
        f"Pictures are {scaled if settings.do_resize else ''}segmented in "
        f"{window if settings.do_sliding_window else 'one piece'}."
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
    settings = processor.settings()
    return {
        "scales": list(scales),
        "flip": flip,
        "size": dict(settings.size) if settings.do_resize else None,
        "window_size": settings.window_size if settings.do_sliding_window else None,
        "window_stride": settings.window_stride if settings.do_sliding_window else None,
        "do_reduce_labels": settings.do_reduce_labels,
        "ignore_index": settings.ignore_index,
        "label_map": settings.label_map,
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


# ------------------------------------------------------------------------------------------------------------- cards


def plain_model_card(model, name: str) -> str:
    """Card of a model that was saved by hand: what can be told from the model alone.

    Args:
        model: `QLSegForSemanticSegmentation`.
        name: of its folder.
    """
    source = source_of(model)
    lines = [
        "# QLSeg",
        "",
        network_sentence(model),
        f"Started from {origin(source)}; what was done since is not known here.",
        "",
        *license_section(source),
        *use_section(name),
        *labels_section(model.config.id2label),
        MEASURED,
        "",
        NOT_MEASURED,
        "",
        *CITATION,
    ]
    return card_text(card_data(source.license if source else UNKNOWN), lines)


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
    dropped_by_reason = {}
    for key, reason in dropped.items():
        dropped_by_reason.setdefault(reason, []).append(key)
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
        *(
            f"| {len(keys)} | `{keys[0]}`{', ...' if len(keys) > 1 else ''} | dropped: {reason} |"
            for reason, keys in dropped_by_reason.items()
        ),
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
    """Card of a model that `qlseg train` trained, as markdown with metadata.

    Args:
        model, processor: as they are saved beside the card, with losses.jsonl, evaluations.jsonl and curves.png.
        name: of their folder.
        recipe: `Recipe` of what was trained.
        step: optimiser steps that these weights have seen.
        launch: `launch_facts`: number of processes, distribution, precision.
        result: `Evaluation.result` on `recipe.eval_split`, fractions, with `protocol`.
    """
    source = source_of(model)
    data = card_data(
        source.license if source else UNKNOWN,
        base_model=source.repo_id if source else None,
        datasets=hub_id(recipe.data),
        model_name=recipe.hub_model_id or Path(recipe.output_dir).resolve().name,
        eval_results=eval_results(result),
    )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "accelerate"))
    lines = [
        f"# QLSeg, trained on {escaped(public_name(recipe.data))}",
        "",
        network_sentence(model),
        "",
        f"Trained for {step} of {recipe.max_steps} steps of {recipe.total_batch_size} pictures from "
        f"{origin(source)} on split {as_code(recipe.train_split)}.",
        processor_sentence(processor),
        "",
        *license_section(source),
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
        *fenced(recipe.published().to_yaml(), "yaml"),
        "",
        *CITATION,
    ]
    return card_text(data, lines)


__all__ = [
    "add_result_to_card",
    "converted_model_card",
    "inference_protocol",
    "last_part",
    "plain_model_card",
    "last_part",
    "public_name",
    "read_source",
    "source_of",
    "trained_model_card",
]
