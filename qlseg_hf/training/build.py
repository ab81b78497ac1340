# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a recipe builds: processor and network, and the plain network that is saved of it."""

import copy
import difflib
import math
import re
from pathlib import Path

import torch

from ..data.augmentation import LONG_SIDE
from ..data.check import ignored_label_error
from ..data.label_names import names_in_order, read_label_file
from ..hub.loading import check_loaded, check_source
from ..hub.saving import QLSegForSemanticSegmentation, QLSegImageProcessor
from ..hub.source import source_of
from ..model.configuration_qlseg import QLSegConfig, QLSegViTConfig
from ..releases import RELEASES, label_set
from ..utils.optional import import_package
from ..weights import load_vit_weights, set_num_channels
from .recipe import Recipe, convert_value

# Projections of the encoder's attention: ours, DINOv3's and BEiT's; DINOv2's in transformers 5.17; timm's
ATTENTION_PROJECTIONS = (
    r"backbone\..*\.([qkvo]_proj|attention\.(query|key|value)|attention\.output\.dense|attn\.(qkv|proj))"
)


def read_label_names(label_names: str | dict | list | None) -> tuple[dict[int, str] | None, list | None]:
    """{label: name} and palette (or None) from a recipe's `label_names`; (None, None) if there are none."""
    if label_names is None:
        return None, None
    if isinstance(label_names, (dict, list)):
        try:
            return dict(enumerate(names_in_order(label_names))), None
        except ValueError as error:
            raise ValueError(f"label_names: {error}") from error
    released = {entry["labels"] for entry in RELEASES.values()}
    names, palette = label_set(label_names) if label_names in released else read_label_file(Path(label_names))
    return dict(enumerate(names)), palette


def sets_reduction(recipe: Recipe) -> bool:
    """Whether the recipe itself says `do_reduce_labels`, or begins a model that has none."""
    return not recipe.model or recipe.do_reduce_labels is not None or "do_reduce_labels" in recipe.processor


def build_processor(recipe: Recipe) -> QLSegImageProcessor:
    """The model's processor, or the default one for windows of `crop_size`, with the recipe's settings on top.

    Raises:
        ValueError: the recipe brings labels of its own, and leaves it to the model whether stored 0 is one of them or
            what `label_mapping` makes of the values; `processor` contradicts another key; or the model is a file.
        FileNotFoundError: there is no such folder.
    """
    rules = {key: getattr(recipe, key) for key in ("do_reduce_labels", "ignore_index", "label_mapping")}
    rules = {key: value for key, value in rules.items() if value is not None}
    for key, value in rules.items():
        if recipe.processor.get(key, value) != value:
            raise ValueError(f"{key} is {value}, but {recipe.processor[key]} in processor; give it once")
    given = rules | recipe.processor
    if recipe.model:
        check_source(recipe.model)
        processor = QLSegImageProcessor.from_pretrained(recipe.model, **given)
        check_inherited_rules(recipe, processor, given)
        bands = processor.settings().reading["num_channels"]
        if recipe.num_channels not in (None, bands):
            raise ValueError(
                f"num_channels is {recipe.num_channels}, but mean and deviation are those of {bands} bands; set "
                "processor: {image_mean: [...], image_std: [...]}, which qlseg check --output DIR measures and writes "
                "to DIR/data.yaml"
            )
        return processor
    side = min(recipe.resize_box or [recipe.crop_size])
    size = {"size": {"shortest_edge": side}, "window_size": recipe.crop_size}
    return QLSegImageProcessor(**(size | {"window_stride": max(1, recipe.crop_size * 2 // 3)} | given))


def scale_warning(recipe: Recipe, processor: QLSegImageProcessor) -> str | None:
    """The sentence on a run that trains on images of another size than its model is evaluated at; or None."""
    settings, trained = processor.settings(), min(recipe.resize_box or (recipe.crop_size,))
    if not settings.do_resize:
        measured, is_same = "as large as they are (do_resize: false)", recipe.resize_box is not None
        remedy = "set resize_box: [long side, short side] to the sides of the images"
    else:
        side = min(dict(settings.size).values())
        measured, is_same = f"with one of {side}, as the processor has it", side == trained
        remedy = f"set resize_box: [{LONG_SIDE}, {side}], or size and window_size of processor to those of the crops"
    if is_same:
        return None
    return (
        f"images are trained on with a short side of {trained} pixels times scale_range, and evaluated {measured}, so "
        f"what they show has another size; {remedy}"
    )


def check_inherited_rules(recipe: Recipe, processor: QLSegImageProcessor, given: dict) -> None:
    """See `build_processor`. `given`: the processor's settings that the recipe states."""
    own = [key for key in ("label_names", "label_colors", "label_mapping") if getattr(recipe, key)]
    if own and processor.do_reduce_labels and not sets_reduction(recipe):
        names = list((read_label_names(recipe.label_names)[0] or {}).values())
        first, last = (f"{names[0]!r} is stored as", f"{names[-1]!r} as") if names else ("label 0 is", "the last as")
        zero, one = (f"{first} {i}, {last} {i + len(names) - 1}" if names else f"{first} {i}" for i in (0, 1))
        raise ValueError(
            f"the recipe brings {own[0]}, and {recipe.model} reduces labels, which may be wrong for them: set "
            f"do_reduce_labels: false if {zero}, or do_reduce_labels: true if 0 is void and {one}"
        )
    if recipe.label_names and processor.label_mapping and "label_mapping" not in given:
        raise ValueError(
            f"the recipe brings label_names, and {recipe.model} translates stored values by label_mapping "
            f"{processor.label_mapping}, which may be wrong for them: set label_mapping: {{}} if they are stored as "
            "they are, or write the label_mapping that holds for them"
        )


def build_model(recipe: Recipe, ignore_index: int) -> QLSegForSemanticSegmentation:
    """The network of a recipe: a model with its labels reused by name, a fresh head on a ViT, or random weights.

    Raises:
        ValueError: `label_names` are missing for a fresh head, `ignore_index` is one of the labels, `config` has an
            unknown name, `model` lacks weights (and `config` changes nothing of it), or something else does not fit.
    """
    check_config(recipe.config)
    id2label, palette = read_label_names(recipe.label_names)
    if id2label or recipe.model:
        names = list((id2label or QLSegConfig.from_pretrained(recipe.model).id2label).values())
        if 0 <= ignore_index < len(names):
            raise ValueError(ignored_label_error(ignore_index, names))
    if recipe.config.get("semantic_loss_ignore_index", ignore_index) != ignore_index:
        raise ValueError("config sets semantic_loss_ignore_index, which follows ignore_index; set ignore_index alone")
    if id2label and recipe.config.get("num_labels", len(id2label)) != len(id2label):
        raise ValueError(
            f"config sets num_labels {recipe.config['num_labels']}, and label_names are {len(id2label)}; leave it out"
        )
    config = dict(recipe.config) | {"semantic_loss_ignore_index": ignore_index}
    if recipe.model:
        labels = {"id2label": id2label, "reuse_labels": True} if id2label else {}
        model, report = QLSegForSemanticSegmentation.from_pretrained(
            recipe.model, dtype=torch.float32, output_loading_info=True, **config, **labels
        )
        if not recipe.config:  # which may ask for another network, of which the warning of transformers tells
            check_loaded(recipe.model, report)
        if recipe.num_channels:
            set_num_channels(model, recipe.num_channels)
    elif id2label is None:
        raise ValueError("label_names is needed: a fresh network does not know its labels")
    else:
        model = QLSegForSemanticSegmentation(QLSegConfig(**config, id2label=id2label))
        if recipe.backbone:
            load_vit_weights(model.backbone, recipe.backbone)
    if palette is not None:
        model.config.palette = palette
    if recipe.label_weights is not None:
        model.config.label_weights = order_label_weights(recipe.label_weights, model.config)
    elif "label_weights" not in recipe.config:
        model.config.label_weights = None  # those of a model that training starts from are its own run's
    prepare_for_training(model, recipe)
    return model


def check_config(config: dict) -> None:
    """ValueError for a name in a recipe's `config` that is no field: transformers would keep it, to no effect."""
    backbone = config.get("backbone_config")
    is_own = isinstance(backbone, dict) and backbone.get("model_type") in (None, QLSegViTConfig.model_type)
    for kind, values in ((QLSegConfig, config), (QLSegViTConfig, backbone if is_own else {})):
        known = [*kind().to_dict(), "num_labels", "attn_implementation"]
        if unknown := sorted(set(map(str, values)) - set(known)):
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(known))}"
            raise ValueError(f"config sets {unknown[0]}, which {kind.__name__} does not have; {hint}")


def order_label_weights(label_weights: list[float] | dict, config: QLSegConfig) -> list[float]:
    """Factor of every label, in their order, from a recipe's `label_weights`; ValueError if they do not fit."""
    if isinstance(label_weights, dict):
        if unknown := set(label_weights) - set(config.label2id):
            raise ValueError(f"label_weights names {sorted(unknown, key=str)}, which are no labels")
        label_weights = [label_weights.get(name, 1.0) for name in config.id2label.values()]
    if len(label_weights) != config.num_labels:
        raise ValueError(f"{len(label_weights)} label_weights for {config.num_labels} labels")
    weights = [convert_value("label_weights", weight, float) for weight in label_weights]
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise ValueError(f"label_weights are {weights[:8]}; finite numbers, 0 or more and not all 0, are wanted")
    return weights


def prepare_for_training(model: QLSegForSemanticSegmentation, recipe: Recipe) -> None:
    """Freeze, adapt, save memory and compile as the recipe says, in place."""
    model.freeze_unused_weights()  # before there are groups of an optimiser
    if recipe.freeze_backbone:
        model.backbone.requires_grad_(False)
    if recipe.lora:
        add_lora(model, recipe.lora)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if recipe.compile:
        for part in (model.backbone, model.pixel_encoder, model.decoder):
            part.compile()


def add_lora(model: QLSegForSemanticSegmentation, rank: int) -> None:
    """LoRA adapters on the encoder's attention, in place; the encoder's own weights are frozen, the head is not.

    Raises:
        ImportError: peft is missing.
        ValueError: no projection of the encoder's attention is known by its name.
    """
    peft = import_package("peft", "inject_adapter_in_model", "lora", "'qlseg-hf[train]'")
    unused = {f"backbone.{name}" for name in model.unused_weights}  # adapters there would never have a gradient
    names = [
        name
        for name, _ in model.named_modules()
        if re.fullmatch(ATTENTION_PROJECTIONS, name) and f"{name}.weight" not in unused
    ]
    # timm's EVA, where q and v alone have biases, reads the weights of `qkv` past any adapter
    is_passed_by = any(
        getattr(model.get_submodule(name.rpartition(".")[0]), "q_bias", None) is not None for name in names
    )
    if not names or is_passed_by:
        kind = getattr(model.config.backbone_config, "backbone", type(model.backbone).__name__)
        raise ValueError(f"lora knows no attention of {kind} that takes adapters; leave lora out")
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or not name.startswith("backbone."))


def plain_model(model: QLSegForSemanticSegmentation, weights: dict[str, torch.Tensor]) -> QLSegForSemanticSegmentation:
    """An ordinary network on the CPU with `weights` (named as in `model`), LoRA adapters merged."""
    merged = {}
    for name, value in weights.items():
        if ".lora_" in name:
            continue
        value = value.detach().cpu()
        module = name.removesuffix(".base_layer.weight")
        if module != name:
            down, up = (weights[f"{module}.lora_{side}.default.weight"].detach().cpu() for side in "AB")
            value = value + model.get_submodule(module).scaling["default"] * (up @ down)
        merged[name.replace(".base_layer.", ".")] = value.clone()
    # a loader, because buffers that no folder holds (rotary frequencies of DINOv3) must be made anew as well
    plain, report = QLSegForSemanticSegmentation.from_pretrained(
        None,
        config=copy.deepcopy(model.config),
        state_dict=merged,
        dtype=next(iter(merged.values())).dtype,
        output_loading_info=True,
    )
    plain.source = source_of(model)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return plain


__all__ = [
    "add_lora",
    "build_model",
    "build_processor",
    "plain_model",
    "read_label_names",
    "scale_warning",
    "sets_reduction",
]
