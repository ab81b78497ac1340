"""Model cards: what a folder on the Hub says about itself."""

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData

from .image_processing_qlseg import QLSegImageProcessor
from .modeling_qlseg import QLSegForSemanticSegmentation

if TYPE_CHECKING:
    from .recipe import Recipe

LICENSE_NOTE = (
    "These weights were converted from a checkpoint of the original QLSeg, which is released for academic, "
    "non-commercial use; the conversion does not change that. The code of `qlseg_hf` is Apache-2.0."
)
SNIPPET = """\
import qlseg_hf  # registers QLSeg with transformers
from transformers import pipeline

segmenter = pipeline("image-segmentation", model="{model}")
for segment in segmenter("picture.jpg"):
    print(segment["label"], segment["mask"].size)
"""


def converted_model_card(
    model: QLSegForSemanticSegmentation,
    processor: QLSegImageProcessor,
    *,
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
        source_name, source_sha256: of the checkpoint file.
        key_families: (count, pattern in the checkpoint, pattern here).
        used: every source key and the keys it became.
        dropped: every other source key and why.
        notes: sentences for the reader.
    """
    config, backbone = model.config, model.config.backbone_config
    data = ModelCardData(
        license="other",
        license_name="academic-non-commercial",
        license_link="https://github.com/xb534/QLSeg",
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["qlseg", "semantic-segmentation", "vision"],
    )
    window = f"{processor.window_size} px windows, stride {processor.window_stride} px"
    lines = [
        "# QLSeg, converted",
        "",
        f"Plain ViT ({backbone.hidden_size} wide, {backbone.num_hidden_layers} layers, patches of "
        f"{backbone.patch_size} px, trained at {backbone.image_size} px), {config.num_labels} labels, "
        f"{model.num_parameters() / 1e6:.1f} M parameters in {str(model.dtype).removeprefix('torch.')}.",
        "",
        f"Pictures are scaled to a short side of {processor.size.shortest_edge} px and segmented in "
        f"{window if processor.do_sliding_window else 'one piece'}.",
        "",
        "## Licence",
        "",
        LICENSE_NOTE,
        "",
        "## Use",
        "",
        "```python",
        SNIPPET.format(model="THIS_FOLDER_OR_ID") + "```",
        "",
        "## Source",
        "",
        f"- file: `{source_name}`",
        f"- sha256: `{source_sha256}`",
        f"- keys: {len(used) + len(dropped)}, of which {len(used)} used and {len(dropped)} dropped",
        "",
        "No accuracy was measured for this card.",
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
        "## Citation",
        "",
        'Xie et al., "Multi-query and multi-level enhanced network for semantic segmentation",',
        "Pattern Recognition, 2024.",
        "",
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n" + "\n".join(lines)))


def percent(fraction: float | None) -> str:
    return "does not occur" if fraction is None else f"{100 * fraction:.2f}"


def trained_model_card(
    model: QLSegForSemanticSegmentation,
    processor: QLSegImageProcessor,
    *,
    recipe: "Recipe",
    step: int,
    num_processes: int,
    result: dict | None,
    model_id: str,
) -> str:
    """Card of a model that `examples/train.py` trained, as markdown with metadata (`model-index` if it was evaluated).

    Args:
        model, processor: as they are saved beside the card.
        recipe: what was trained.
        step: optimiser steps that these weights have seen.
        num_processes: that trained together.
        result: `Evaluation.result` on `recipe.eval_split`, fractions.
        model_id: Hub id, or the folder's name.
    """
    dataset = Path(recipe.dataset).name if Path(recipe.dataset).exists() else recipe.dataset
    evaluated = []
    if result is not None:
        evaluated.append(
            EvalResult(
                task_type="image-segmentation",
                dataset_type=dataset,
                dataset_name=dataset,
                dataset_config=recipe.dataset_config,
                dataset_split=recipe.eval_split,
                metric_type="mean_iou",
                metric_name="mIoU",
                metric_value=round(result["miou"], 6),
            )
        )
    started_from = recipe.model or recipe.backbone
    on_hub = started_from is not None and not Path(started_from).exists()
    data = ModelCardData(
        license="other" if recipe.model else "apache-2.0",
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["qlseg", "semantic-segmentation", "vision"],
        base_model=started_from if on_hub else None,
        datasets=recipe.dataset if re.fullmatch(r"[\w.-]+/[\w.-]+", recipe.dataset) else None,
        model_name=model_id if evaluated else None,
        eval_results=evaluated or None,
    )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "accelerate"))
    lines = [
        f"# {model_id}",
        "",
        f"QLSeg with {model.config.num_labels} labels, trained for {step} of {recipe.max_steps} steps of "
        f"{recipe.total_batch_size} pictures from {started_from or 'random weights'} on `{dataset}`, split "
        f"`{recipe.train_split}`.",
        "",
        "```python",
        SNIPPET.format(model=model_id) + "```",
        "",
        "## Measured",
        "",
    ]
    if result is None:
        lines.append("No accuracy was measured for this card.")
    else:
        low, high = result["miou_interval"]
        lines += [
            f"On `{recipe.eval_split}`, {result['num_pictures']} pictures, at the labels' own size, single scale, "
            f"short side {processor.size.shortest_edge} px, windows of {processor.window_size} px with stride "
            f"{processor.window_stride} px, label {processor.ignore_index} ignored:",
            "",
            f"mIoU {100 * result['miou']:.2f} % (95 % interval over pictures {100 * low:.2f} to {100 * high:.2f}), "
            f"mAcc {100 * result['macc']:.2f} %, aAcc {100 * result['aacc']:.2f} %",
            "",
            "| label | IoU in % |",
            "| --- | ---: |",
            *(f"| {entry['label']} | {percent(entry['iou'])} |" for entry in result["per_label"]),
        ]
    lines += [
        "",
        "## Training",
        "",
        f"- hardware: {num_processes} x {device}",
        f"- versions: {versions}",
        "",
        "```yaml",
        recipe.to_yaml() + "```",
        "",
    ]
    if recipe.model:
        lines += ["## Licence", "", f"The licence of `{recipe.model}`, which training started from, applies.", ""]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n" + "\n".join(lines)))


def upload_folder(folder: str | os.PathLike, repo_id: str, message: str = "Upload converted QLSeg") -> str:
    """Create the model repository if need be and upload `folder` to it; returns the commit's address."""
    api = HfApi()
    repo_id = api.create_repo(repo_id, exist_ok=True).repo_id
    return api.upload_folder(repo_id=repo_id, folder_path=Path(folder), commit_message=message)


__all__ = ["converted_model_card", "trained_model_card", "upload_folder"]
