# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The configuration text of mmsegmentation inside a checkpoint: parsed, never run."""

import ast

from ..model.configuration_qlseg import as_pair
from .errors import ConversionError

# data sets of mmsegmentation 1 whose label 0 is void unless the text says otherwise
VOID_IS_ZERO = ("ADE20KDataset", "ISPRSDataset", "LoveDADataset", "PascalContextDataset59", "PotsdamDataset")
MOST_TEXT = 1 << 20  # letters of a configuration text; the released ones have some ten thousand


def parse_configuration(text: str) -> dict:
    """Assignments of literals and `dict(...)` calls as a dict. Parsed with `ast`; nothing is run."""

    def value(node: ast.AST):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
            if not node.args and all(keyword.arg for keyword in node.keywords):
                return {keyword.arg: value(keyword.value) for keyword in node.keywords}
        elif isinstance(node, ast.Dict) and None not in node.keys:
            return {value(k): value(v) for k, v in zip(node.keys, node.values)}
        elif isinstance(node, (ast.List, ast.Tuple)):
            return [value(element) for element in node.elts]
        elif isinstance(node, (ast.Constant, ast.UnaryOp)):
            return ast.literal_eval(node)
        raise ConversionError(
            f"the configuration text holds `{ast.unparse(node)[:60]}`, which is neither literal nor dict(...)"
        )

    if len(text) > MOST_TEXT:
        raise ConversionError(
            f"the configuration text inside the checkpoint has {len(text)} letters; at most {MOST_TEXT}"
        )
    try:
        tree = ast.parse(text)
        for node in tree.body:
            if not isinstance(node, ast.Assign) or len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
                raise ConversionError(
                    f"the configuration text holds `{ast.unparse(node)[:60]}`, which is no plain assignment"
                )
        return {node.targets[0].id: value(node.value) for node in tree.body}
    except ConversionError:
        raise
    except (MemoryError, RecursionError) as error:
        raise ConversionError("the configuration text inside the checkpoint is nested too deeply") from error
    except (SyntaxError, TypeError, ValueError) as error:
        raise ConversionError(f"the configuration text inside the checkpoint cannot be parsed: {error}") from error


def find_transform(steps, kind: str) -> dict:
    """First transform called `kind` in a pipeline of mmsegmentation, also inside `transforms`; {} if there is none."""
    for step in steps or []:
        if str(step.get("type")).rpartition(".")[2] == kind:  # mmengine may write `mmseg.Resize`
            return step
        if found := find_transform(step.get("transforms"), kind):
            return found
    return {}


def numbers_from_text(text: str) -> dict:
    """What the configuration text gives; entries it does not state are left out."""
    settings = parse_configuration(text)
    model = settings.get("model") or {}
    if "backbone" not in model or "decode_head" not in model:
        raise ConversionError(
            "the configuration text has no model with backbone and decode_head, so it is not QLSeg's"
        )
    backbone, head = model["backbone"], model["decode_head"]
    if backbone.get("final_norm") or backbone.get("with_cls_token"):
        raise ConversionError("the text asks for a final norm or for the class token in the output; QLSeg has neither")
    test_cfg = model.get("test_cfg") or settings.get("test_cfg") or {}
    data = {split: find_dataset(settings, split) for split in ("test", "train")}
    test, train = (settings.get(f"{split}_pipeline") or data[split].get("pipeline") for split in data)
    preprocessor = model.get("data_preprocessor") or settings.get("data_preprocessor") or {}  # of mmengine
    normalize = find_transform(test, "Normalize") or settings.get("img_norm_cfg") or preprocessor
    is_rgb = normalize.get("bgr_to_rgb", False) if normalize is preprocessor else normalize.get("to_rgb", True)
    if "mean" in normalize and not is_rgb:
        raise ConversionError("the text's network takes BGR pictures (to_rgb or bgr_to_rgb is not true); QLSeg's RGB")
    reduce_labels = find_transform(train, "LoadAnnotations").get("reduce_zero_label")
    if reduce_labels is None and "train_dataloader" in settings:  # mmsegmentation 1: the data set's, if not said here
        kind = str(data["train"].get("type")).rpartition(".")[2]
        reduce_labels = data["train"].get("reduce_zero_label", kind in VOID_IS_ZERO)
    slides = test_cfg.get("mode") == "slide"
    side = backbone.get("img_size")
    depth = backbone.get("num_layers")
    found = {
        "backbone.hidden_size": backbone.get("embed_dims"),
        "backbone.num_channels": backbone.get("in_channels"),
        "backbone.patch_size": backbone.get("patch_size"),
        "backbone.num_hidden_layers": depth,
        "backbone.num_attention_heads": backbone.get("num_heads"),
        "backbone.image_size": side_of_square(side, "img_size") if side is not None else None,
        "backbone.drop_path_rate": backbone.get("drop_path_rate"),
        "backbone.layer_norm_eps": (backbone.get("norm_cfg") or {}).get("eps"),
        "backbone.out_indices": [i % depth + 1 for i in backbone["out_indices"]]
        if "out_indices" in backbone
        else None,
        "num_labels": head.get("num_classes"),
        "num_decoder_layers": head.get("num_layers"),
        "num_attention_heads": head.get("num_heads"),
        "num_levels": head.get("use_stages"),
        "hidden_size": head.get("embed_dims"),
        "num_decoder_blocks": head.get("num_atm_layers"),
        "mask_threshold": head.get("attn_mask_thre"),
        "num_pixel_encoder_layers": head.get("num_ps_layers"),
        "num_query_fusion_groups": head.get("compress_c"),
        "mean": normalize.get("mean"),
        "std": normalize.get("std"),
        "do_reduce_labels": reduce_labels,
        "do_sliding_window": slides if test_cfg.get("mode") else None,
        "window_size": side_of_square(test_cfg["crop_size"], "test_cfg.crop_size") if slides else None,
        "window_stride": side_of_square(test_cfg["stride"], "test_cfg.stride") if slides else None,
        "short_side": find_short_side(test),
    }
    return {key: value for key, value in found.items() if value is not None}


def find_short_side(pipeline) -> int | None:
    """What a pipeline resizes the short side of pictures to; None if it does not say."""
    resize = find_transform(pipeline, "Resize")
    scale = find_transform(pipeline, "MultiScaleFlipAug").get("img_scale")
    if scale is None and resize.get("keep_ratio"):
        scale = resize.get("scale")
    edge = find_transform(pipeline, "ResizeShortestEdge").get("scale")
    least = resize.get("min_size") or (min(edge) if isinstance(edge, list) else edge)
    return max(min(scale), least or 0) if scale else least


def find_dataset(settings: dict, split: str) -> dict:
    """The data set of a split in a configuration of mmengine, out of what repeats it; {} if there is none."""
    dataset = (settings.get(f"{split}_dataloader") or {}).get("dataset") or {}
    while isinstance(dataset.get("dataset"), dict):
        dataset = dataset["dataset"]
    return dataset


def side_of_square(size, name: str) -> int:
    """The side of a square given as a number or an equal pair."""
    height, width = as_pair(tuple(size) if isinstance(size, list) else size)
    if height != width:
        raise ConversionError(f"the text's {name} {size} is not square")
    return height


__all__ = ["numbers_from_text", "parse_configuration"]
