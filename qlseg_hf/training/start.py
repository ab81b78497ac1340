# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""How a run begins: its parts are built, its folder is taken, and an earlier run is taken up where it stopped."""

import copy
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed

from ..data.check import Survey
from ..data.check.suggestions import MOST_CROP
from ..hub.saving import QLSegForSemanticSegmentation
from ..hub.source import last_part
from ..hub.upload import prepare_repo
from ..model.configuration_qlseg import QLSegConfig
from ..utils.distributed import StopSignals, fail_together, gather_objects, join_processes
from ..utils.files import lock_folder, recover_folder, remove_leftovers, write_atomically
from ..utils.hashing import json_sha256
from .auto import DataFacts, DeviceFacts, complete_recipe, take_decisions
from .average import MovingAverage, average_warning
from .build import build_model, build_processor, check_config, order_label_weights, read_label_names, scale_warning
from .checkpoints import checkpoints, identity, load_checkpoint, read_recipe, read_state, step_of
from .data import look_at_data, open_split
from .distributed import SHARDED, check_batch, check_trackers, launched_precision, start_accelerator
from .extra import count_extra, look_at_extra, open_extra
from .facts import data_facts, device_facts
from .models import find_due_models, hub_place
from .optimization import parameter_groups, warmup_warning
from .recipe import Recipe
from .run_state import Run
from .sharding import compute_in, prepare_sharded


def settle_recipe(recipe: Recipe) -> tuple[Recipe, list]:
    """Decide what the recipe leaves open: as the run that goes on has it, else by a look at the data.

    Returns:
        the complete recipe, the same in every process, and [number, what is wrong] of each training image that is
        left out because it cannot be read; a validation image never is, as mIoU over fewer is another measure.

    Raises:
        ValueError: the data would spoil the training, or something cannot be decided; in all but the first process
            OtherProcessError.
    """
    state = join_processes()
    if recipe.output_dir is None:
        name = Path(last_part(recipe.data))
        is_file = Path(recipe.data).is_file()
        recipe = replace(recipe, output_dir=str(Path("runs", name.stem if is_file else name)))
    unreadable = []
    with fail_together(state.num_processes):
        if state.is_main_process:
            device, checkpoint = device_facts(state.device, state.num_processes), find_checkpoint(recipe)
            if checkpoint is not None:
                recipe, told = _complete_from(checkpoint, recipe, device)
            else:
                _check_settings(recipe, state.num_processes)
                num_extra_images = count_extra(recipe)
                survey = look_at_data(recipe)
                unreadable = survey.reports["training"].unreadable
                facts = replace(data_facts(survey), num_extra_images=num_extra_images)
                recipe, told = complete_recipe(recipe, facts, device)
                unreadable += _look_at_extra(recipe, survey)
            tell_decisions(told)
    return gather_objects((recipe, unreadable), state.num_processes)[0]


def _check_settings(recipe: Recipe, num_processes: int) -> None:
    """ValueError for what can be told to be wrong before every image is read, which may take an hour."""
    folder = Path(recipe.output_dir).absolute()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ValueError(f"output_dir {folder} cannot be made, as {place} is no folder that may be written into")
    check_trackers(recipe.report_to)
    if recipe.total_batch_size and recipe.per_device_batch_size:
        recipe.accumulation_steps(num_processes)
    build_processor(recipe if recipe.crop_size or recipe.model else replace(recipe, crop_size=MOST_CROP))
    check_config(recipe.config)
    names = read_label_names(recipe.label_names)[0]
    if recipe.model:
        names = names or QLSegConfig.from_pretrained(recipe.model, **recipe.config).id2label
    elif recipe.config.get("backbone_config"):  # else what is not said of the head is decided by the encoder
        with torch.device("meta"):
            QLSegForSemanticSegmentation(QLSegConfig(**{"semantic_loss_ignore_index": -100} | recipe.config))
    if names and recipe.label_weights not in (None, "auto"):
        order_label_weights(recipe.label_weights, QLSegConfig(id2label=names, semantic_loss_ignore_index=-100))


def _look_at_extra(recipe: Recipe, survey: Survey) -> list[tuple[int, str]]:
    """See `look_at_extra`; for a complete recipe, with or without such data."""
    if not recipe.extra_data:
        return []
    names = read_label_names(recipe.label_names)[0] or QLSegConfig.from_pretrained(recipe.model).id2label
    extra = open_extra(recipe, build_processor(recipe), [names[label] for label in sorted(names)])
    return look_at_extra(extra, survey, len(survey.training), recipe.strict)


def _complete_from(checkpoint: Path, recipe: Recipe, device: DeviceFacts) -> tuple[Recipe, list[tuple[str, str]]]:
    """The recipe of a run that goes on from a checkpoint, and what was decided anew."""
    launched = recipe.precision or launched_precision()
    stored = read_recipe(checkpoint)
    if stored.get("precision") is None:  # of a version that had no such key
        stored["precision"] = read_state(checkpoint)["precision"]
    recipe = take_decisions(recipe, stored)
    recipe = replace(recipe, precision=launched or recipe.precision)
    is_counted = recipe.max_steps is None and recipe.epochs is not None and not recipe.streaming
    count = len(open_split(recipe, recipe.train_split)) if is_counted else None
    window = build_processor(recipe).window_size if recipe.model and recipe.crop_size is None else None
    return complete_recipe(recipe, DataFacts(count, 0, window_size=window), device)


def tell_decisions(told: list[tuple[str, str]]) -> None:
    """A table of what was decided, a key a line."""
    if told:
        width = max(len(key) for key, _ in told)
        lines = [f"  {key:{width}}  {text}" for key, text in told]
        print("decided, because the recipe leaves it open:", *lines, sep="\n", file=sys.stderr)


def build_run(recipe: Recipe, signals: StopSignals, unreadable: list) -> Run:
    """Data, processor and network of a complete recipe. Every process builds the same weights; nothing is written.

    Raises:
        ValueError: something of the recipe, the launch, the data or the weights does not fit; see the parts.
    """
    accelerator = start_accelerator(recipe)
    processor = build_processor(recipe)
    if accelerator.is_main_process:
        told = (
            scale_warning(recipe, processor),
            average_warning(recipe.ema_decay, recipe.max_steps),
            warmup_warning(recipe.max_steps, recipe.warmup_steps, recipe.poly_power),
        )
        print(*(f"warning: {text}\n" for text in told if text), sep="", end="", file=sys.stderr)
    training_samples = open_split(recipe, recipe.train_split)
    set_seed(recipe.seed)
    model = build_model(recipe, processor.ignore_index)
    validation_samples = open_split(recipe, recipe.eval_split)
    state: dict[str, Any] = {"step": 0, "best": None, "best_step": None, "result": None, "num_without_gain": 0}
    state["unreadable"] = unreadable
    names = list(model.config.id2label.values())
    extra = open_extra(recipe, processor, names)
    state |= {"data": identity(training_samples, *(one.samples for one in extra)), "label_names": names}
    state["measured_on"] = json_sha256([identity(validation_samples), repr(processor.settings())])
    return Run(recipe, accelerator, signals, processor, model, training_samples, extra, validation_samples, state)


def find_checkpoint(recipe: Recipe) -> Path | None:
    """The checkpoint that the recipe goes on from, if it does."""
    if recipe.resume not in ("auto", "none"):
        return Path(recipe.resume)
    found = checkpoints(Path(recipe.output_dir)) if recipe.resume == "auto" else []
    return found[-1] if found else None


def take_folder(run: Run) -> None:
    """Keep other runs out of the run's folder, undo or remove what a kill has left half-way, and ask the Hub."""
    with fail_together(run.num_processes):
        if not run.is_main:
            return
        if run.recipe.push_to_hub:
            prepare_repo(run.recipe.hub_model_id, **hub_place(run.recipe))  # hours before the upload, if it is refused
        lock_folder(run.output_dir)
        for place in (run.output_dir / "best", run.output_dir / "last"):
            recover_folder(place)
        for folder in (run.output_dir, *(path for path in run.output_dir.iterdir() if path.is_dir())):
            remove_leftovers(folder)


def write_recipe(run: Run) -> None:
    """`recipe.yaml` in the run's folder: what was given and decided."""
    if run.is_main:
        write_atomically(run.output_dir / "recipe.yaml", run.recipe.to_yaml().encode())


def prepare_run(run: Run) -> None:
    """Optimiser, moving average and accelerate's wrapping; each process draws its own dropout from here on."""
    recipe = run.recipe
    groups = parameter_groups(
        run.model, recipe.learning_rate, recipe.weight_decay, recipe.head_lr_multiplier, recipe.layer_decay
    )
    optimizer = torch.optim.AdamW([group | {"initial_lr": group["lr"]} for group in groups], betas=(0.9, 0.999))
    if run.accelerator.distributed_type in SHARDED:
        run.whole = copy.deepcopy(run.model).requires_grad_(False)
        compute_in(run.whole, run.accelerator)
        run.model, run.optimizer = prepare_sharded(run.accelerator, run.model, optimizer)
    else:
        run.model, run.optimizer = run.accelerator.prepare(run.model, optimizer)
    check_batch(run.accelerator, recipe)
    run.average = MovingAverage(run.network, recipe.ema_decay) if recipe.ema_decay else None
    torch.manual_seed(recipe.seed + run.accelerator.process_index)


def resume_run(run: Run, checkpoint: Path) -> bool:
    """Take up an earlier run; whether anything is left to do.

    Raises:
        ValueError: data or labels are not those that the checkpoint was trained with, in its own folder also mIoU not
            what it was, or it does not fit otherwise (see `load_checkpoint`).
    """
    stored = load_checkpoint(run.accelerator, checkpoint, run.average, run.recipe)
    is_elsewhere = checkpoint.resolve().parents[1] != run.output_dir.resolve()  # so its best is not here
    with fail_together(run.num_processes):
        for key, what in (("data", "pictures of the training split"), ("label_names", "label names")):
            if stored[key] != run.state[key]:
                raise ValueError(
                    f"the {what} are not those that {checkpoint} was trained with; restore them, or start a new "
                    "run in another output_dir, with model: the folder best of this one"
                )
        measured_on = run.state["measured_on"]  # which runs of old do not have, nor num_without_gain
        if not is_elsewhere and stored.get("measured_on", measured_on) != measured_on:
            raise ValueError(
                f"the pictures to evaluate on, or the processor's settings, are not those that the best of "
                f"{run.output_dir} was found with; restore them, or go on in another output_dir with resume: "
                f"{checkpoint}"
            )
    run.state = stored | {"num_without_gain": stored.get("num_without_gain", 0), "measured_on": measured_on}
    max_steps = run.recipe.max_steps
    run.is_measured = stored.get("result", ...) is not None or not run.is_due(run.recipe.eval_steps)
    if is_elsewhere:
        if run.step == max_steps:  # nothing would be left to do
            raise ValueError(f"{checkpoint} has made {run.step} steps; set max_steps to more to go on from it")
        run.is_measured, run.state = True, run.state | {"best": None, "best_step": None, "result": None}
        run.state["num_without_gain"] = 0
    if run.is_measured and run.is_over and not find_due_models(run):
        run.accelerator.print(f"{run.output_dir} is finished: {run.step} of {max_steps} steps are made")
        return False
    run.accelerator.print(f"resuming at step {run.step} from {checkpoint}")
    return True


def check_no_newer(run: Run) -> None:
    """ValueError if the folder holds checkpoints of later steps than the run starts from."""
    if newer := [path for path in checkpoints(run.output_dir) if step_of(path) > run.step]:
        raise ValueError(
            f"{run.output_dir} holds {newer[-1].name} of an earlier run, which this one, from step {run.step}, would "
            "mix with its own checkpoints; remove it, choose another output_dir, or set resume: auto"
        )


__all__ = [
    "build_run",
    "check_no_newer",
    "find_checkpoint",
    "prepare_run",
    "resume_run",
    "settle_recipe",
    "take_folder",
    "write_recipe",
]
