# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Model cards: what a folder on the Hub says about itself.

The text is `templates/card.md.jinja`; here is what is put into it. Names from data sets and checkpoints are escaped.
"""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData

from ..utils.text import as_code, escape_markdown, fence_code
from .results import MEASURED, NOT_MEASURED, eval_results, measured_line, percent
from .source import UNKNOWN, Source, hub_id, public_name, source_of
from .upload import model_argument

TEMPLATE = Path(__file__).parent / "templates" / "card.md.jinja"
RELEASE_LICENSE = {
    "license": "other",
    "license_name": "academic-non-commercial",
    "license_link": "https://github.com/xb534/QLSeg",
}
LICENSE_NOTE = (
    "These weights were converted from a checkpoint of the original QLSeg, which is released for academic, "
    "non-commercial use; the conversion does not change that."
)


def _render(
    kind: str, model, name: str, license_fields: dict[str, Any], facts: dict[str, Any], **metadata: Any
) -> str:
    """The card as markdown with metadata. `facts` and `metadata` are of one kind of card each; others are shared."""
    tags = ["qlseg", "semantic-segmentation", "vision"]
    shared = {"library_name": "transformers", "pipeline_tag": "image-segmentation", "tags": tags}
    data = ModelCardData(**license_fields, **shared, **metadata)
    tools = {"text": escape_markdown, "code": as_code, "percent": percent, "measured_title": MEASURED}
    tools["fence"] = lambda text, language: "\n".join(fence_code(text, language))
    tools |= {"kind": kind, "network": network_sentence(model), "model_argument": model_argument(name)}
    tools |= {"id2label": model.config.id2label, "measured": NOT_MEASURED}
    return str(ModelCard.from_template(data, template_path=str(TEMPLATE), **tools | facts))


def _origin(source: Source | None) -> str:
    """Where weights started, as Markdown."""
    return as_code(source.name) if source else "random weights"


def _licence_sentence(source: Source | None) -> str:
    """What is known about the licence of weights that started from `source`, as Markdown."""
    stated = source.license if source else UNKNOWN
    if stated == UNKNOWN:
        why = source.unknown_because if source else "Nobody has stated one for them."
        return f"The licence of these weights, which started from {_origin(source)}, is unknown. {why}"
    name = stated.get("license_name") or stated["license"]
    link = f" ({as_code(stated['license_link'])})" if stated.get("license_link") else ""
    shown = escape_markdown(name if isinstance(name, str) else ", ".join(name))
    return f"These weights started from {_origin(source)}, whose licence applies: {shown}{link}."


def network_sentence(model) -> str:
    """What the network is and how large, as Markdown."""
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
    """How pictures are scaled and cut, as Markdown."""
    settings = processor.settings()
    window = f"windows of {settings.window_size} px with stride {settings.window_stride} px"
    sides = dict(settings.size or {})
    size = " x ".join(str(value) for value in sides.values())
    scaled = f"scaled to {'a short side of ' if 'shortest_edge' in sides else ''}{size} px and "
    return (
        f"Pictures are {scaled if settings.do_resize else ''}segmented in "
        f"{window if settings.do_sliding_window else 'one piece'}."
    )


def plain_model_card(model, name: str) -> str:
    """Card of a model that was saved by hand: what can be told from the model alone.

    Args:
        model: `QLSegForSemanticSegmentation`.
        name: of its folder.
    """
    source = source_of(model)
    facts = {
        "title": "QLSeg",
        "origin": _origin(source),
        "licence": _licence_sentence(source),
    }
    return _render("plain", model, name, source.license if source else UNKNOWN, facts)


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
    dropped_by_reason: dict[str, list[str]] = {}
    for key, reason in dropped.items():
        dropped_by_reason.setdefault(reason, []).append(key)
    facts = {
        "title": "QLSeg, converted",
        "processing": processor_sentence(processor),
        "licence": LICENSE_NOTE,
        "source_name": source_name,
        "source_sha256": source_sha256,
        "key_families": key_families,
        "used": used,
        "dropped": dropped,
        "dropped_by_reason": dropped_by_reason,
        "notes": notes,
    }
    return _render("converted", model, name, RELEASE_LICENSE, facts)


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
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    facts = {
        "title": f"QLSeg, trained on {escape_markdown(public_name(recipe.data))}",
        "processing": processor_sentence(processor),
        "origin": _origin(source),
        "licence": _licence_sentence(source),
        "step": step,
        "recipe": recipe,
        "recipe_yaml": recipe.to_public().to_yaml(),
        "measured": measured_line(result),
        "per_label": result["per_label"],
        "launch": launch,
        "device": device,
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "accelerate")),
    }
    return _render(
        "trained",
        model,
        name,
        source.license if source else UNKNOWN,
        facts,
        base_model=source.repo_id if source else None,
        datasets=hub_id(recipe.data),
        model_name=recipe.hub_model_id or Path(recipe.output_dir).resolve().name,
        eval_results=eval_results(result),
    )


__all__ = ["converted_model_card", "plain_model_card", "trained_model_card"]
