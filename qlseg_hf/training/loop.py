# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A training run from the first step to the last: data, model, steps, evaluations, what is saved and when.

Precision, devices, FSDP2 and DeepSpeed come from `accelerate launch`; several CPU processes from torchrun. What the
launcher was told and would not do, or the recipe says otherwise, is refused. A run goes on from its newest checkpoint,
also on another number of processes, and from one process, DDP or FSDP2 to any of them. After SIGTERM or Ctrl-C the
step is ended and saved; a second signal ends the run at once.

`output_dir` holds `best` (by mIoU on the validation split) and `last`, ordinary folders for `from_pretrained`, with
`training.json`: step, processes, distribution and precision; `checkpoints/step-N` for resuming; `losses.jsonl` and
`evaluations.jsonl`, one line per step or evaluation; `curves.png`; `overlays` of validation images. With
`push_to_hub: true` the Hub is asked for its repository before the first step, and gets `best` with the logs and curves
of the whole run after the last, in one commit. Images that cannot be read are left out and listed in
`unreadable.txt` (with `strict: true` they stop the run).
"""

import sys
from collections.abc import Iterator

from ..data.datasets import exclude
from ..data.mixture import exclude_extra
from ..utils.distributed import StopRequestedError, StopSignals, fail_together, gather_objects, iterate_batches
from .checkpoints import random_state, set_random_state
from .data import describe_unreadable, training_batches, write_unreadable
from .log import StepLog
from .models import find_due_models, new_models, save_models, upload_best
from .recipe import Recipe
from .run_state import Run
from .start import (
    build_run,
    check_no_newer,
    find_checkpoint,
    prepare_run,
    resume_run,
    settle_recipe,
    take_folder,
    write_recipe,
)
from .step import NotFiniteError, StepResult, training_step
from .validation import evaluate_run


def train(recipe: Recipe, signals: StopSignals) -> None:
    """Train by a recipe, from the start or from where an earlier run stopped."""
    recipe, unreadable = settle_recipe(recipe)
    run, checkpoint = build_run(recipe, signals, unreadable), find_checkpoint(recipe)
    take_folder(run)
    prepare_run(run)
    if checkpoint is not None and not resume_run(run, checkpoint):
        end_run(run)
        return
    check_no_newer(run)
    write_recipe(run)
    batches = open_batches(run)
    run.log = StepLog(run.accelerator, recipe, run.step, last_evaluated=run.step - (not run.is_measured))
    run.model.train()
    with signals.waiting(), run.log.bar:
        finish_last_step(run)
        while not run.is_over:
            result = make_step(run, batches)
            number = signals.agree(run.num_processes, run.accelerator.device)
            evaluates, saves = run.is_due(recipe.eval_steps), run.is_due(recipe.save_steps)
            run.log.add(run.step, result, run.optimizer, write=evaluates or saves or number is not None)
            if evaluates and number is None:
                number = evaluate_between_steps(run)
            # before the models, which can be saved from it should that fail now
            if saves or number is not None or run.is_over or run.state["best_step"] == run.step:
                run.save_checkpoint()
            if number is not None:
                stop_run(run, number)
            save_models(run, new_models(run))
    end_run(run)


def open_batches(run: Run) -> Iterator[dict]:
    """The batches of this process from the present step on, without the images that cannot be read."""
    left_out = [index for index, _ in run.state["unreadable"]]
    samples = exclude(run.training_samples, left_out)
    extra = exclude_extra(run.extra, len(run.training_samples), left_out) if run.extra else ()
    if run.is_main:
        write_unreadable(run.output_dir, run.unreadable)
    num_labels = run.network.config.num_labels
    return iterate_batches(
        training_batches(run.recipe, run.accelerator, samples, run.processor, num_labels, run.step, extra)
    )


def finish_last_step(run: Run) -> None:
    """Do what the run before could not end: evaluate its last step, and save the models of it."""
    if run.step == 0:
        return
    try:
        if not run.is_measured:
            evaluate_run(run)
            run.save_checkpoint()
        save_models(run, find_due_models(run))
    except StopRequestedError as stop:
        stop_run(run, stop.number)


def make_step(run: Run, batches: Iterator[dict]) -> StepResult:
    """The next update of weights and moving average.

    Raises:
        ValueError: loss or gradient is not finite; the run before the step is saved.
    """
    before, device = random_state(), run.accelerator.device
    own = [next(batches) for _ in range(run.accelerator.gradient_accumulation_steps)]
    names = [name for batch in own for name in batch.pop("name")]
    own = [{key: value.to(device, non_blocking=True) for key, value in batch.items()} for batch in own]
    try:
        result = training_step(run.accelerator, run.model, run.optimizer, own, run.recipe, run.step)
    except NotFiniteError as error:
        set_random_state(before)
        stop_at_step(run, error, names)
    if run.average is not None:
        run.average.update(run.network)
    run.state |= {"step": run.step + 1, "result": None}
    return result


def evaluate_between_steps(run: Run) -> int | None:
    """Evaluate; the number of the signal that ended the evaluation, if one did."""
    number = None
    run.log.bar.clear()  # the evaluation's bar takes its line
    try:
        evaluate_run(run)
    except StopRequestedError as stop:
        number = stop.number
    run.log.restart_clock()
    return number


def stop_at_step(run: Run, error: NotFiniteError, names: list[str]) -> None:
    """Save the run as it was before a step that cannot be made, and say which one, on which images.

    Raises:
        ValueError: always; OtherProcessError in the other processes.
    """
    if run.is_main:
        run.log.losses.write()
    if not run.checkpoint.is_dir():
        run.save_checkpoint()
    lists = gather_objects(names, run.num_processes)
    files = ", ".join(lists[0])
    if len(lists) > 1:
        files = "; ".join(f"{', '.join(part)} in process {rank}" for rank, part in enumerate(lists))
    with fail_together(run.num_processes):
        raise ValueError(
            f"{error} at step {run.step + 1} on {files}; the update was not made and {run.checkpoint} holds the run "
            "before it: look at these pictures, lower learning_rate, or use bf16, and the same command goes on from "
            "there"
        ) from error


def stop_run(run: Run, number: int) -> None:
    """Save the run where it is, say so, and leave together: a launcher stops the others when the first one is gone.

    Raises:
        StopRequestedError: always.
    """
    run.log.bar.close()
    if not gather_objects(run.checkpoint.is_dir(), run.num_processes)[0]:
        run.save_checkpoint()
    stop = StopRequestedError(number)
    run.accelerator.print(
        f"qlseg train: {stop} after step {run.step} of {run.recipe.max_steps}; {run.checkpoint} holds the run, and "
        "the same command goes on from there",
        file=sys.stderr,
        flush=True,
    )
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()
    raise stop


def end_run(run: Run) -> None:
    """What follows the last step: the images that were left out are named, and the best model is uploaded."""
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()
    if run.is_over and run.step < run.recipe.max_steps:
        run.accelerator.print(
            f"stopped after step {run.step} of {run.recipe.max_steps}: {run.state['num_without_gain']} evaluations in "
            f"a row were not better than that of step {run.state['best_step']} (patience)"
        )
    if run.unreadable:
        place = run.output_dir / "unreadable.txt"
        run.accelerator.print(f"{describe_unreadable(run.unreadable)}; all of them in {place}")
    if run.is_main and run.recipe.push_to_hub:
        upload_best(run)


__all__ = ["train"]
