"""Model cards: what a folder on the Hub says about itself."""

import os
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData

from .image_processing_qlseg import QLSegImageProcessor
from .modeling_qlseg import QLSegForSemanticSegmentation

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


def upload_folder(folder: str | os.PathLike, repo_id: str) -> str:
    """Create the model repository if need be and upload `folder` to it; returns the commit's address."""
    api = HfApi()
    repo_id = api.create_repo(repo_id, exist_ok=True).repo_id
    return api.upload_folder(repo_id=repo_id, folder_path=Path(folder), commit_message="Upload converted QLSeg")


__all__ = ["converted_model_card", "upload_folder"]
