"""What a run does at every evaluation: mIoU on the validation split, overlays, curves, and which step is the best."""

from contextlib import nullcontext

import torch
from tqdm import tqdm

from ..evaluation.evaluator import evaluate_samples
from ..model.segmentation import segment
from ..utils.text import printable
from ..utils.visualization import draw_overlay, label_colors, save_picture
from .report import draw_curves
from .run import Run

TIMES = ("seconds", "pictures_per_second")  # of a result, which differ from run to run
SCORES = ("miou", "macc", "aacc")


def evaluate_run(run: Run) -> None:
    """Measure the weights of this step (their moving average), log the result and enter it into the run's state.

    Raises:
        StopRequestedError: a signal came meanwhile; nothing is entered.
    """
    with run.average.swap_in(run.network) if run.average is not None else nullcontext():
        evaluation = evaluate_samples(
            run.network,
            run.processor,
            run.validation_samples,
            progress=run.is_main,
            stop_signal=lambda: run.signals.number,
        )
        if run.is_main:
            save_overlays(run)
    result = {key: value for key, value in evaluation.result.items() if key not in TIMES}
    scores = {key: result[key] for key in SCORES}
    run.accelerator.log({f"eval/{key}": value for key, value in scores.items()}, step=run.step)
    if run.is_main:
        run.log.evaluations.append([{"step": run.step} | scores])
        save_picture(
            draw_curves(run.log.losses.pairs("loss"), run.log.evaluations.pairs("miou")),
            run.output_dir / "curves.png",
        )
        tqdm.write(f"step {run.step}: mIoU {100 * result['miou']:.2f} % on {run.recipe.eval_split}")
        for warning in result["warnings"]:
            tqdm.write(f"warning: {printable(warning)}")
    run.state["result"] = result
    if run.state["best"] is None or result["miou"] > run.state["best"]:
        run.state |= {"best": result["miou"], "best_step": run.step}


def save_overlays(run: Run) -> None:
    """The first validation images with their predictions, as files and to the trackers that take images."""
    network, colors, overlays = run.network, label_colors(run.network.config), []
    for number, sample in zip(range(run.recipe.log_pictures), run.validation_samples):
        picture = sample.read_picture(**run.processor.settings().reading)
        overlay = draw_overlay(picture, segment(network, run.processor, picture)[0], network.config.id2label, colors)
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
