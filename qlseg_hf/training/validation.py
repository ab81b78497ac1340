# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a run does at every evaluation: mIoU on the validation split, overlays, curves, and which step is the best."""

import torch
from tqdm import tqdm

from ..evaluation.evaluator import evaluate_samples
from ..evaluation.examples import Examples, draw_examples
from ..hub.saving import QLSegForSemanticSegmentation
from ..model.segmentation import segment
from ..utils.text import printable
from ..utils.visualization import draw_overlay, label_colors, save_picture
from ..utils.yaml_text import read_yaml
from .report import draw_curves, evaluation_entry, tracker_values, write_training_report
from .run_state import Run

TIMES = ("seconds", "pictures_per_second")  # of a result, which differ from run to run
NUM_EXAMPLES = 4  # of the worst, and of the best images, in the report


def evaluate_run(run: Run) -> None:
    """Measure the weights of this step (their moving average), log the result and enter it into the run's state.

    Raises:
        StopRequestedError: a signal came meanwhile; nothing is entered.
    """
    with run.measured_network() as network:
        evaluation = evaluate_samples(
            network,
            run.processor,
            run.validation_samples,
            num_examples=NUM_EXAMPLES,
            progress=run.is_main,
            stop_signal=lambda: run.signals.number,
        )
        examples = draw_examples(network, run.processor, run.validation_samples, evaluation)
        if run.is_main:
            save_overlays(run, network)
    result = {key: value for key, value in evaluation.result.items() if key not in TIMES}
    run.accelerator.log(tracker_values(result), step=run.step)
    run.state["result"] = {key: value for key, value in result.items() if key != "confusion"}  # which is large
    if run.state["best"] is None or result["miou"] > run.state["best"]:
        run.state |= {"best": result["miou"], "best_step": run.step, "num_without_gain": 0}
    else:
        run.state["num_without_gain"] += 1
    if run.is_main:
        show_result(run, result, examples)


def show_result(run: Run, result: dict, examples: Examples) -> None:
    """Write the result of this step to `evaluations.jsonl`, curves and report, and its mIoU and warnings to stderr."""
    run.log.evaluations.append([{"step": run.step} | evaluation_entry(result)])
    curves = draw_curves(run.log.losses.pairs("loss"), run.log.evaluations.pairs("miou"))
    save_picture(curves, run.output_dir / "curves.png")
    settings = read_yaml(run.recipe.to_yaml())
    write_training_report(run.output_dir, step=run.step, result=result, recipe=settings, examples=examples)
    tqdm.write(f"step {run.step}: mIoU {100 * result['miou']:.2f} % on {run.recipe.eval_split}")
    for warning in result["warnings"]:
        tqdm.write(f"warning: {printable(warning)}")


def save_overlays(run: Run, network: QLSegForSemanticSegmentation) -> None:
    """The first validation images with their predictions, as files and to the trackers that take images."""
    colors, overlays = label_colors(network.config), []
    for number, sample in zip(range(run.recipe.log_pictures), run.validation_samples):
        picture = sample.read_picture(**run.processor.settings().reading)
        labels = segment(network, run.processor, picture, max_windows=None)[0]  # as `evaluate_samples` has read it
        overlay = draw_overlay(picture, labels, network.config.id2label, colors)
        save_picture(overlay, run.output_dir / "overlays" / f"step-{run.step:08d}-{number}.png")
        overlays.append(overlay)
    for tracker in run.accelerator.trackers:
        for number, overlay in enumerate(overlays if tracker.name == "tensorboard" else []):
            pixels = torch.frombuffer(bytearray(overlay.tobytes()), dtype=torch.uint8)
            pixels = pixels.view(1, overlay.height, overlay.width, 3)
            tracker.log_images({f"validation/{number}": pixels}, step=run.step, dataformats="NHWC")
        if tracker.name == "wandb":
            tracker.log_images({"validation": overlays}, step=run.step)


__all__ = ["evaluate_run", "save_overlays"]
