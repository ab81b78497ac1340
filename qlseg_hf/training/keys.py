# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The keys of a recipe, whose lines are the help of `qlseg train`, and what their values have to be."""

import os
import re
from dataclasses import asdict, dataclass, field

from ..hub.source import last_part, public_name
from ..utils.yaml_text import write_yaml

PRECISIONS = ("fp32", "bf16", "fp16")
# beyond which a number is a slip that would fill the machine before anything is said
MOST = {"crop_size": 1 << 14, "total_batch_size": 1 << 20, "per_device_batch_size": 1 << 20, "num_workers": 1 << 10}
SOURCES, PATHS = ("model", "backbone", "data"), ("label_names", "output_dir", "resume")  # Hub ids or paths; paths
ABSOLUTE = r"(~[^/\\]*|[A-Za-z]:|file:/*)?[/\\].*"


@dataclass(kw_only=True)
class Recipe:
    """What `qlseg train` does. Durations are in optimiser steps, sizes in pixels, learning rates per step.

    A key that is None, unless its line says what that means, is decided from data, encoder and machine at the first
    start (see `auto.py`), told, and written to `recipe.yaml` in the folder of the run.

    Args:
        data: folder, table, `data.yaml` of `qlseg check`, or Hub id of the data; see `open_dataset`.
        crop_size: side of the square training sample, pixels. auto: the short side of the images, at most 320 on a
            CPU and 512 on a GPU, in whole patches; of a model its windows.
        total_batch_size: images per optimiser step over all processes. auto: 4 on a CPU, 16 on a GPU.
        per_device_batch_size: images per forward pass; the accumulation steps follow. auto: what the memory holds.
        max_steps: optimiser steps; the learning rate reaches 0 there. auto: by epochs, else 800 on a CPU, and on a GPU
            50 epochs, 2000 at least and 20000 at most.
        output_dir: folder of the run: models, checkpoints, logs, report. auto: runs/NAME OF THE DATA.
        epochs: passes over the training images, from which max_steps follow where these are not given.
        patience: stop after so many evaluations in a row without a better mIoU; never if not given.
        model: QLSeg folder or Hub id to start from; excludes backbone. A fresh head if not given.
        backbone: pretrained encoder under a fresh head: small, base, large (public ViTs on the Hub), or a Hub id,
            folder or file in timm's or transformers' naming. auto: small on a CPU, base on a GPU; none where
            config.backbone_config describes an encoder, whose weights are then random.
        config: fields of `QLSegConfig` that differ from its defaults or from the model's. auto: a head that fits the
            encoder.
        processor: settings of `QLSegImageProcessor` that differ from its defaults or from the model's. auto: mean and
            deviation of the encoder's training, or of the bands.
        layout: what the folder is, where it cannot be told: a name such as voc or pairs, or IMAGES:MASKS; told by
            looking at it if not given.
        dataset_config: configuration of a Hub data set; its default if not given.
        train_split: name of the split to train on.
        eval_split: name of the split to evaluate on.
        val_fraction: share of the training images that is held out where there is no split to evaluate on.
        image_column: column of the images in a table; guessed if not given.
        label_column: column of the label maps in a table; guessed if not given.
        streaming: read a table from front to back, without download.
        extra_data: further labelled sets that are mixed into the training split, such as those of `qlseg autolabel`: a
            path or a list, each also a mapping of the keys that describe data, by names of the same labels; see
            `open_extra`. None if not given.
        extra_data_share: share of each batch that they make, above 0 and below 1. auto: their share of all images, at
            most a half.
        strict: refuse training images that cannot be read, instead of leaving them out and naming them.
        num_channels: bands of an image. auto: those that are found, of a model its own.
        label_names: file, list, {label: name}, or the name of a label set of the package (ade20k, coco-stuff-171,
            pascal-context-59, pascal-context-60). auto: the model's, else those that lie beside the data, else
            label_0, label_1, ... by the values that are found.
        label_colors: {label or its name: [red, green, blue]}, or a file of that, where label maps are stored as
            colours; those that lie beside such data if not given.
        do_reduce_labels: stored 0 is void and every other label is lowered by one. auto: the model's, else what the
            values leave no doubt of.
        ignore_index: label of pixels that do not count. auto: as do_reduce_labels.
        label_mapping: {stored value: label}, applied before the two above. auto: as do_reduce_labels.
        resize_box: [long side, short side] that an image is fitted into at ratio 1; a network that starts from no
            model is evaluated with that short side too. auto: [2048, side of its processor] for a model, [2048, 1.5 x
            crop_size] for a fresh head, [2048, crop_size] where config.backbone_config describes an encoder.
        scale_range: lowest and highest ratio of the random resize. auto: [0.75, 1.5] for a fresh head that sees each
            image fewer than 25 times, else [0.5, 2].
        cat_max_ratio: a crop is drawn again while its most frequent label covers this share or more; 1 takes any.
        photometric: distort brightness, contrast, saturation and hue; needs OpenCV. auto: false for such a head.
        vertical_flip: turn every second sample upside down, as aerial and microscope images allow.
        rotation: turn each sample by an angle drawn from -rotation..rotation degrees; 0 for none.
        trivial_augment: change each sample by one more operation, of colour or place, as TrivialAugment does.
        warmup_steps: linear warm-up of the learning rate. auto: a twentieth of max_steps, at most 1500.
        learning_rate: of the encoder. auto: 3e-4 x 192 / its width for a fresh head, 1e-5 for a model.
        head_lr_multiplier: times that rate for everything outside the encoder.
        layer_decay: factor on the rate from each encoder layer to the one before it; 1 in the paper.
        weight_decay: of all weights but the encoder's norms.
        poly_power: power of the learning rate's decay.
        max_grad_norm: L2 norm that gradients are clipped at; .inf for no clipping.
        ema_decay: of the exponential moving average of the weights that is evaluated and saved, which starts from the
            first weights and forgets them in some 1 / (1 - ema_decay) steps; none if not given.
        label_weights: factor of each label in the loss, {label: factor}, a list of all, or auto: more for rare labels
            (see `suggest_label_weights`); 1 if not given.
        freeze_backbone: train the head alone; the encoder computes as in evaluation, without drop path and dropout.
        lora: rank of LoRA adapters on the encoder's attention (needs peft); the head is trained whole. They are merged
            when the model is saved. None if not given.
        precision: fp32, bf16 or fp16, of the forward pass. auto: what accelerate's launcher was told, else bf16
            where the GPU or CPU has it, else fp32.
        gradient_checkpointing: less memory for more time.
        compile: torch.compile of encoder, pixel encoder and decoder; on a CPU in fp32 alone.
        eval_steps: interval of evaluations. auto: an eighth of max_steps, at most 4000; up to a quarter where
            evaluations would take more than a fifth of the time; never shorter than an evaluation takes.
        save_steps: interval of checkpoints. auto: that of evaluations, at most 1000.
        keep_checkpoints: newest ones kept for resuming.
        resume: auto (the newest checkpoint of output_dir, if any), none, or the path of a checkpoint.
        push_to_hub: upload the best model and the logs at the end.
        hub_model_id: repository to upload to, for push_to_hub; none if not given.
        hub_private: make that repository private.
        hub_revision: branch to upload to; main if not given.
        report_to: tracker of accelerate or a list of them: tensorboard, trackio, wandb, ...; none if not given.
        seed: of weights, samples and their order.
        num_workers: processes that load data, per training process; of a stream at most one. auto: 4, and fewer where
            there are not so many cores.
        log_pictures: validation overlays logged at every evaluation.
    """

    data: str
    crop_size: int | None = None
    total_batch_size: int | None = None
    per_device_batch_size: int | None = None
    max_steps: int | None = None
    output_dir: str | None = None
    epochs: float | None = None
    patience: int | None = None
    model: str | None = None
    backbone: str | None = None
    config: dict = field(default_factory=dict)
    processor: dict = field(default_factory=dict)
    layout: str | None = None
    dataset_config: str | None = None
    train_split: str = "train"
    eval_split: str = "validation"
    val_fraction: float = 0.2
    image_column: str | None = None
    label_column: str | None = None
    streaming: bool = False
    extra_data: str | dict | list[str | dict] | None = None
    extra_data_share: float | None = None
    strict: bool = False
    num_channels: int | None = None
    label_names: str | dict | list[str] | None = None
    label_colors: dict | None = None
    do_reduce_labels: bool | None = None
    ignore_index: int | None = None
    label_mapping: dict | None = None
    resize_box: list[int] | None = None
    scale_range: list[float] | None = None
    cat_max_ratio: float = 0.75
    photometric: bool | None = None
    vertical_flip: bool = False
    rotation: float = 0.0
    trivial_augment: bool = False
    warmup_steps: int | None = None
    learning_rate: float | None = None
    head_lr_multiplier: float = 10.0
    layer_decay: float = 1.0
    weight_decay: float = 0.01
    poly_power: float = 1.0
    max_grad_norm: float = 35.0
    ema_decay: float | None = None
    label_weights: list[float] | dict | str | None = None
    freeze_backbone: bool = False
    lora: int | None = None
    precision: str | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    eval_steps: int | None = None
    save_steps: int | None = None
    keep_checkpoints: int = 2
    resume: str = "auto"
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private: bool = False
    hub_revision: str | None = None
    report_to: str | list[str] | None = None
    seed: int = 0
    num_workers: int | None = None
    log_pictures: int = 4

    def __post_init__(self):
        if empty := [name for name, value in vars(self).items() if value == ""]:
            raise ValueError(f"{empty[0]} is an empty text; give a value, or leave it out")
        for name in (*SOURCES, *PATHS):
            if isinstance(value := getattr(self, name), str):
                setattr(self, name, os.path.expanduser(value))
        if self.model and self.backbone:
            raise ValueError("model and backbone exclude each other: a model has its backbone; give one of them")
        if self.freeze_backbone and self.lora:
            raise ValueError("freeze_backbone and lora exclude each other; lora alone freezes the encoder's weights")
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("push_to_hub wants hub_model_id, for instance hub_model_id: me/my-model")
        if not self.push_to_hub and (self.hub_private or self.hub_revision):
            raise ValueError("hub_private and hub_revision want push_to_hub: true")
        if self.extra_data and self.streaming:
            raise ValueError(
                "extra_data does not go with streaming: true, whose images are not numbered; leave one out"
            )
        if self.extra_data_share is not None and not self.extra_data:
            raise ValueError("extra_data_share wants extra_data, the sets that make this share of a batch")
        self._check_numbers()
        if isinstance(self.label_weights, str) and self.label_weights != "auto":
            raise ValueError(f"label_weights is {self.label_weights!r}; give {{label: factor}}, a list, or auto")
        if self.precision not in (None, *PRECISIONS):
            raise ValueError(f"precision is {self.precision!r}; give one of {', '.join(PRECISIONS)}")

    def _check_numbers(self) -> None:
        positive = ("crop_size", "total_batch_size", "per_device_batch_size", "max_steps", "eval_steps", "save_steps")
        for name in (*positive, "keep_checkpoints", "patience", "num_channels", "lora"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.epochs is not None and not 0 < self.epochs < float("inf"):
            raise ValueError(f"epochs is {self.epochs}; it must be more than 0")
        rates = ("learning_rate", "head_lr_multiplier", "weight_decay", "poly_power")
        for name in (*rates, "warmup_steps", "num_workers", "log_pictures"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        for name, most in MOST.items():
            if (getattr(self, name) or 0) > most:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at most {most}")
        if self.learning_rate == 0:
            raise ValueError(
                "learning_rate is 0, and that of the head is a multiple of it, so that nothing would be learnt; to "
                "train the head alone set freeze_backbone: true"
            )
        if not self.max_grad_norm > 0:
            raise ValueError(
                f"max_grad_norm is {self.max_grad_norm}, the norm that gradients are scaled down to, so that nothing "
                "would be learnt; it must be more than 0, and .inf clips nothing"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay {self.ema_decay} must be between 0 and 1")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction {self.val_fraction} must be at least 0 and below 1")
        if self.extra_data_share is not None and not 0 < self.extra_data_share < 1:
            raise ValueError(f"extra_data_share {self.extra_data_share} must be above 0 and below 1")
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation {self.rotation} must be 0..180 degrees")
        for name in ("layer_decay", "cat_max_ratio"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 and at most 1")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more and below 2 ** 32")
        for name in ("resize_box", "scale_range"):
            if getattr(self, name) is not None and len(getattr(self, name)) != 2:
                raise ValueError(f"{name} wants two numbers, got {getattr(self, name)}")
        if self.resize_box is not None and min(self.resize_box) < 1:
            raise ValueError(f"resize_box is {self.resize_box}; sides of at least 1 pixel are wanted")
        if self.scale_range is not None and not 0 < self.scale_range[0] <= self.scale_range[1] < float("inf"):
            raise ValueError(f"scale_range is {self.scale_range}; [low, high] with 0 < low <= high is wanted")

    def accumulation_steps(self, num_processes: int) -> int:
        """Forward passes per optimiser step on each process; ValueError if the total does not divide."""
        per_pass = self.per_device_batch_size * num_processes
        if self.total_batch_size % per_pass:
            raise ValueError(
                f"total_batch_size {self.total_batch_size} is not a multiple of per_device_batch_size "
                f"{self.per_device_batch_size} x {num_processes} processes; change one of them"
            )
        return self.total_batch_size // per_pass

    def to_public(self) -> "Recipe":
        """The recipe as it lies beside weights and in cards: of what lies on this machine the names, not the paths."""
        values = asdict(self)
        names = {"label_names": values.pop("label_names")} if isinstance(self.label_names, dict) else {}
        values = {key: drop_paths(value) for key, value in values.items()} | names
        for key in SOURCES:
            values[key] = values[key] and public_name(getattr(self, key))
        for key in PATHS:
            values[key] = last_part(values[key]) if isinstance(values[key], str) else values[key]
        return Recipe(**values)

    def to_yaml(self) -> str:
        """Every key, in the order of the class."""
        return write_yaml(asdict(self))


def drop_paths(value):
    """A value of a recipe, mappings and lists included, without the folders of this machine."""
    if isinstance(value, dict):
        return {key: drop_paths(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [drop_paths(entry) for entry in value]
    is_path = isinstance(value, str) and (
        re.fullmatch(ABSOLUTE, value) or (re.search(r"[/\\]", value) and os.path.exists(value))
    )
    return last_part(value) or value if is_path else value


__all__ = ["Recipe"]
