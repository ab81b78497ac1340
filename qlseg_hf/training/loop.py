"""A training run from the first step to the last: data, model, steps, evaluations, what is saved and when.

Precision, devices, FSDP and DeepSpeed come from `accelerate launch`; several CPU processes from torchrun. What the
launcher was told and would not do, or the recipe says otherwise, is refused. A run goes on from its newest checkpoint,
also on another number of processes. After SIGTERM or Ctrl-C the step is ended and saved; a second signal ends the run
at once.

`output_dir` holds `best` (by mIoU on the validation split) and `last`, ordinary folders for `from_pretrained`, with
`training.json`: step, processes, distribution and precision; `checkpoints/step-N` for resuming; `losses.jsonl` and
`evaluations.jsonl`, one line per step or evaluation; `curves.png`; `overlays` of validation pictures. With
`push_to_hub: true` the Hub is asked for its repository before the first step, and gets `best` with the logs and curves
of the whole run after the last, in one commit. Pictures that cannot be read are left out and listed in
`unreadable.txt` (with `strict: true` they stop the run).
"""

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data.augmentation import (
    BatchPositions,
    StreamingTrainingDataset,
    TrainingDataset,
    TrainingSampler,
    TrainingTransform,
)
from ..data.check import check_labels_of_dataset
from ..data.datasets import open_dataset, without
from ..data.workers import start_worker
from ..evaluation.evaluator import evaluate_samples
from ..hub.card import inference_protocol, trained_model_card
from ..hub.loading import without_bars
from ..hub.upload import prepare_repo, upload_folder
from ..model.segmentation import segment
from ..utils.distributed import (
    StopRequestedError,
    StopSignals,
    batches_of,
    exchanged,
    failing_together,
)
from ..utils.files import lock_folder, recover_folder, remove_leftovers, write_atomically, written_beside
from ..utils.text import printable
from ..utils.visualization import draw_overlay, label_colors, save_picture
from .build import (
    MovingAverage,
    NotFiniteError,
    build_model,
    build_processor,
    plain_model,
    sets_reduction,
    training_step,
)
from .checkpoints import (
    checkpoints,
    identity,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
    step_of,
)
from .distributed import launch_facts, refuse_other_batch, start_accelerator
from .log import LineLog, LossLog
from .optimization import parameter_groups
from .recipe import Recipe
from .report import draw_curves

RESULTS = ("losses.jsonl", "evaluations.jsonl", "curves.png")
TRAINING = "training.json"  # beside a model: its step, and how it was computed
TIMES = ("seconds", "pictures_per_second")  # of a result, which differ from run to run


def open_split(recipe: Recipe, split: str):
    return open_dataset(
        recipe.data,
        split,
        config=recipe.dataset_config,
        image_column=recipe.image_column,
        label_column=recipe.label_column,
        streaming=recipe.streaming,
        label_colors=recipe.label_colors,
    )


def refuse_broken_data(accelerator: Accelerator, splits: dict, processor, config, recipe, only_check: bool) -> list:
    """Read both splits once, on one process; every process stops if that finds an error.

    Returns:
        [number, what is wrong] of the training pictures to leave out because they cannot be read. A validation picture
        is never left out: mIoU over fewer pictures is another measure.
    """
    unreadable = []
    with failing_together(accelerator.num_processes):
        for split, samples in splits.items() if accelerator.is_main_process else ():
            is_training = split == "training"
            strict = recipe.strict or not is_training
            report = check_labels_of_dataset(
                samples,
                processor,
                config.id2label,
                strict=strict,
                doubts_are_errors=not sets_reduction(recipe),
            )
            print(f"{split} data:\n{report}", file=sys.stdout if only_check else sys.stderr)
            if report.errors:
                use = "trained on" if is_training else "validated on"
                raise ValueError(f"the data set cannot be {use}: {report.errors[0]}")
            unreadable += report.unreadable
    return exchanged(unreadable, accelerator.num_processes)[0]


def training_batches(recipe: Recipe, accelerator: Accelerator, samples, processor, num_labels: int, start_step: int):
    """DataLoader of this process's batches from `start_step` on. Draws depend on (seed, epoch, sample) alone."""
    transform = TrainingTransform(
        processor=processor,
        num_labels=num_labels,
        crop_size=recipe.crop_size,
        resize_box=recipe.resize_box,
        scale_range=recipe.scale_range,
        cat_max_ratio=recipe.cat_max_ratio,
        photometric=recipe.photometric,
        seed=recipe.seed,
    )
    positions = BatchPositions(
        batch_size=recipe.per_device_batch_size,
        max_steps=recipe.max_steps,
        start_step=start_step,
        accumulation=recipe.accumulation_steps(accelerator.num_processes),
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    # a generator of its own, because a DataLoader draws a seed and would move the one that dropout draws from
    options = {"num_workers": recipe.num_workers, "pin_memory": accelerator.device.type == "cuda"}
    options |= {"generator": torch.Generator().manual_seed(recipe.seed), "worker_init_fn": start_worker}
    if recipe.streaming:
        options["num_workers"] = min(recipe.num_workers, 1)
        dataset = StreamingTrainingDataset(samples, transform, positions)
        return DataLoader(dataset, batch_size=recipe.per_device_batch_size, **options)
    sampler = TrainingSampler(positions, len(samples), recipe.seed)
    return DataLoader(TrainingDataset(samples, transform), batch_sampler=sampler, **options)


def save_overlays(accelerator: Accelerator, model, processor, samples, recipe: Recipe, step: int) -> None:
    """The first validation pictures with their predictions, as files and to the trackers that take pictures."""
    colors, overlays = label_colors(model.config), []
    for number, sample in zip(range(recipe.log_pictures), samples):
        picture = sample.read_picture(**processor.settings().reading)
        overlay = draw_overlay(picture, segment(model, processor, picture)[0], model.config.id2label, colors)
        save_picture(overlay, Path(recipe.output_dir) / "overlays" / f"step-{step:08d}-{number}.png")
        overlays.append(overlay)
    for tracker in accelerator.trackers:
        for number, overlay in enumerate(overlays if tracker.name == "tensorboard" else []):
            pixels = torch.frombuffer(bytearray(overlay.tobytes()), dtype=torch.uint8)
            pixels = pixels.view(1, overlay.height, overlay.width, 3)
            tracker.log_images({f"validation/{number}": pixels}, step=step, dataformats="NHWC")
        if tracker.name == "wandb":
            tracker.log_images({"validation": overlays}, step=step)


def save_model(accelerator, model, average, processor, recipe: Recipe, place: Path, step: int, result) -> None:
    """The model (its moving average, if there is one) as an ordinary folder with a card."""
    weights = accelerator.get_state_dict(model)
    if not accelerator.is_main_process:
        return
    weights = average.weights if average is not None else weights
    with without_bars():
        plain = plain_model(accelerator.unwrap_model(model), weights)
    measured = {"dataset": recipe.data, "dataset_config": recipe.dataset_config, "split": recipe.eval_split}
    card = trained_model_card(
        plain,
        processor,
        name=place.name,
        recipe=recipe,
        step=step,
        launch=launch_facts(accelerator),
        result=result | {"protocol": measured | inference_protocol(processor)},
    )
    with without_bars(), written_beside(place) as folder:
        plain.save_pretrained(folder)
        processor.save_pretrained(folder)
        (folder / "recipe.yaml").write_text(recipe.published().to_yaml(), encoding="utf-8")
        (folder / TRAINING).write_text(json.dumps({"step": step} | launch_facts(accelerator)), encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")
        add_results(Path(recipe.output_dir), folder)


def add_results(output_dir: Path, folder: Path) -> None:
    """Copy what the run has logged so far beside a model."""
    for name in RESULTS:
        write_atomically(folder / name, (output_dir / name).read_bytes())


def models_due(accelerator: Accelerator, output_dir: Path, state: dict, recipe: Recipe) -> list[str]:
    """Which of `best` and `last` ought to be of the step of `state` but are not, the same in every process."""
    names = []
    if "result" not in state:  # of a version that saved the models first
        return names
    for name in ("best",) * (state["best_step"] == state["step"]) + ("last",) * (state["step"] == recipe.max_steps):
        path = output_dir / name / TRAINING
        if not path.is_file() or json.loads(path.read_text(encoding="utf-8"))["step"] != state["step"]:
            names.append(name)
    return exchanged(names, accelerator.num_processes)[0]


def take_folder(output_dir: Path) -> None:
    """Keep other runs out of a run's folder, and undo or remove what a kill has left half-way in it."""
    lock_folder(output_dir)
    for place in (output_dir / "best", output_dir / "last"):
        recover_folder(place)
    for folder in (output_dir, *(path for path in output_dir.iterdir() if path.is_dir())):
        remove_leftovers(folder)


def resumed(accelerator, checkpoint: Path, fresh: dict, average: MovingAverage | None, recipe: Recipe) -> dict:
    """Load a checkpoint; its state. ValueError if data or labels are not those of `fresh`, the state of a new run."""
    stored = load_checkpoint(accelerator, checkpoint, average, recipe)
    with failing_together(accelerator.num_processes):
        for key, what in (("data", "pictures of the training split"), ("label_names", "label names")):
            if stored[key] != fresh[key]:
                raise ValueError(
                    f"the {what} are not those that {checkpoint} was trained with; restore them, or start a new "
                    "run in another output_dir, with model: the folder best of this one"
                )
    return stored


def refuse_newer(output_dir: Path, start_step: int) -> None:
    """ValueError if the folder holds checkpoints of later steps than the run starts from."""
    if newer := [path for path in checkpoints(output_dir) if step_of(path) > start_step]:
        raise ValueError(
            f"{output_dir} holds {newer[-1].name} of an earlier run, which this one, from step {start_step}, would "
            "mix with its own checkpoints; remove it, choose another output_dir, or set resume: auto"
        )


def write_unreadable(output_dir: Path, unreadable: list[str]) -> None:
    """`unreadable.txt`: the pictures that are left out and why, one a line; no file if there are none."""
    place = output_dir / "unreadable.txt"
    place.unlink(missing_ok=True)
    if unreadable:
        write_atomically(place, "".join(text + "\n" for text in unreadable).encode())


def listed_unreadable(unreadable: list[str]) -> str:
    more = f"; and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
    return f"{len(unreadable)} training pictures that cannot be read were left out: {'; '.join(unreadable[:5])}{more}"


def stop_at(accelerator, error, output_dir: Path, step: int, names: list[str], state, average, recipe: Recipe) -> None:
    """Save the run as it was before a step that cannot be made, and say which one, on which pictures.

    Raises:
        ValueError: always; OtherProcessError in the other processes.
    """
    place = output_dir / "checkpoints" / f"step-{step:08d}"
    if not place.is_dir():
        save_checkpoint(accelerator, output_dir, step, state, average, recipe)
    lists = exchanged(names, accelerator.num_processes)
    files = ", ".join(lists[0])
    if len(lists) > 1:
        files = "; ".join(f"{', '.join(part)} in process {rank}" for rank, part in enumerate(lists))
    with failing_together(accelerator.num_processes):
        raise ValueError(
            f"{error} at step {step + 1} on {files}; the update was not made and {place} holds the run before it: "
            "look at these pictures, lower learning_rate, or use bf16, and the same command goes on from there"
        ) from error


def upload_best(recipe: Recipe) -> None:
    """`best`, with all that the run has logged, as one commit."""
    best = Path(recipe.output_dir) / "best"
    add_results(best.parent, best)
    print(f"uploading {best}; should that fail, the same command tries again")
    message = f"Train {recipe.max_steps} steps"
    print(upload_folder(best, recipe.hub_model_id, commit_message=message, **hub_place(recipe)))


def hub_place(recipe: Recipe) -> dict:
    return {"private": recipe.hub_private or None, "revision": recipe.hub_revision}


def stop_for(accelerator, number: int, output_dir: Path, state: dict, average, recipe: Recipe) -> None:
    """Save the run where it is, say so, and leave together: a launcher stops the others when the first one is gone.

    Raises:
        StopRequestedError: always.
    """
    place = output_dir / "checkpoints" / f"step-{state['step']:08d}"
    if not exchanged(place.is_dir(), accelerator.num_processes)[0]:
        save_checkpoint(accelerator, output_dir, state["step"], state, average, recipe)
    stop = StopRequestedError(number)
    accelerator.print(
        f"qlseg train: {stop} after step {state['step']} of {recipe.max_steps}; {place} holds the run, and the same "
        "command goes on from there",
        file=sys.stderr,
        flush=True,
    )
    accelerator.wait_for_everyone()
    accelerator.end_training()
    raise stop


def train(recipe: Recipe, only_check: bool, signals: StopSignals) -> None:
    output_dir = Path(recipe.output_dir)
    accelerator = start_accelerator(recipe)

    # data and model; every process builds the same weights, and draws its own dropout
    processor = build_processor(recipe)
    training_samples = open_split(recipe, recipe.train_split)
    set_seed(recipe.seed)
    model = build_model(recipe, processor.ignore_index)
    resume_from = Path(recipe.resume) if recipe.resume not in ("auto", "none") else None
    if recipe.resume == "auto" and checkpoints(output_dir):
        resume_from = checkpoints(output_dir)[-1]
    validation_samples = open_split(recipe, recipe.eval_split)
    state = {"step": 0, "best": None, "best_step": None, "result": None, "unreadable": []}
    state |= {"data": identity(training_samples), "label_names": list(model.config.id2label.values())}
    if resume_from is None or only_check:
        splits = {"training": training_samples, "validation": validation_samples}
        state["unreadable"] = refuse_broken_data(accelerator, splits, processor, model.config, recipe, only_check)
    if only_check:
        return
    with failing_together(accelerator.num_processes):
        if accelerator.is_main_process:
            if recipe.push_to_hub:
                prepare_repo(recipe.hub_model_id, **hub_place(recipe))  # hours before the upload, if it is refused
            take_folder(output_dir)

    # optimiser, and where an earlier run stopped
    groups = parameter_groups(
        model, recipe.learning_rate, recipe.weight_decay, recipe.head_lr_multiplier, recipe.layer_decay
    )
    optimizer = torch.optim.AdamW([group | {"initial_lr": group["lr"]} for group in groups], betas=(0.9, 0.999))
    model, optimizer = accelerator.prepare(model, optimizer)
    refuse_other_batch(accelerator, recipe)
    average = MovingAverage(accelerator.unwrap_model(model), recipe.ema_decay) if recipe.ema_decay else None
    torch.manual_seed(recipe.seed + accelerator.process_index)
    is_measured = False  # the step that an earlier run stopped at
    if resume_from is not None:
        state = resumed(accelerator, resume_from, state, average, recipe)
        is_measured = state.get("result", ...) is not None or not is_due(recipe.eval_steps, state["step"], recipe)
        if resume_from.resolve().parents[1] != output_dir.resolve():  # of another run, whose best is not here
            if state["step"] == recipe.max_steps:
                raise ValueError(
                    f"{resume_from} has made {state['step']} steps; set max_steps to more to go on from it"
                )
            is_measured, state = True, state | {"best": None, "best_step": None, "result": None}
        is_over = is_measured and state["step"] == recipe.max_steps
        if is_over and not models_due(accelerator, output_dir, state, recipe):
            accelerator.print(f"{output_dir} is finished: {state['step']} of {recipe.max_steps} steps are made")
            end(accelerator, [text for _, text in state["unreadable"]], recipe)
            return
        accelerator.print(f"resuming at step {state['step']} from {resume_from}")
    refuse_newer(output_dir, state["step"])
    training_samples = without(training_samples, [index for index, _ in state["unreadable"]])
    unreadable = [text for _, text in state["unreadable"]]
    num_labels = accelerator.unwrap_model(model).config.num_labels
    loader = batches_of(training_batches(recipe, accelerator, training_samples, processor, num_labels, state["step"]))
    if accelerator.is_main_process:
        write_unreadable(output_dir, unreadable)
        log = LossLog(output_dir / "losses.jsonl", state["step"])
        evaluations = LineLog(output_dir / "evaluations.jsonl", state["step"] - (not is_measured))
    if recipe.report_to:
        flat = {
            key: value for key, value in vars(recipe.published()).items() if isinstance(value, (int, float, str, bool))
        }
        accelerator.init_trackers("qlseg", config=flat)

    def evaluate() -> None:
        """Measure the weights of the step of `state`, log the result and enter it into `state`."""
        plain, step = accelerator.unwrap_model(model), state["step"]
        with average.swapped_in(plain) if average is not None else nullcontext():
            evaluation = evaluate_samples(
                plain,
                processor,
                validation_samples,
                rank=accelerator.process_index,
                world_size=accelerator.num_processes,
                progress=accelerator.is_main_process,
                stop_signal=lambda: signals.number,
            )
            if accelerator.is_main_process:
                save_overlays(accelerator, plain, processor, validation_samples, recipe, step)
        result = {key: value for key, value in evaluation.result.items() if key not in TIMES}
        accelerator.log({f"eval/{key}": result[key] for key in ("miou", "macc", "aacc")}, step=step)
        if accelerator.is_main_process:
            evaluations.append([{"step": step} | {key: result[key] for key in ("miou", "macc", "aacc")}])
            curves = draw_curves(log.pairs("loss"), evaluations.pairs("miou"))
            save_picture(curves, output_dir / "curves.png")
            tqdm.write(f"step {step}: mIoU {100 * result['miou']:.2f} % on {recipe.eval_split}")
            for warning in result["warnings"]:
                tqdm.write(f"warning: {printable(warning)}")
        state["result"] = result
        if state["best"] is None or result["miou"] > state["best"]:
            state.update({"best": result["miou"], "best_step": step})

    def save_models(names: list[str]) -> None:
        for name in names:
            place = output_dir / name
            save_model(accelerator, model, average, processor, recipe, place, state["step"], state["result"])

    # the loop
    started, pictures = time.perf_counter(), 0
    model.train()
    with (
        signals.waiting(),
        tqdm(
            initial=state["step"], total=recipe.max_steps, unit="step", disable=not accelerator.is_main_process
        ) as bar,
    ):
        try:
            if state["step"] > 0:  # what the run before could not end
                if not is_measured:
                    evaluate()
                    save_checkpoint(accelerator, output_dir, state["step"], state, average, recipe)
                save_models(models_due(accelerator, output_dir, state, recipe))
        except StopRequestedError as stop:
            bar.close()
            stop_for(accelerator, stop.number, output_dir, state, average, recipe)
        while state["step"] < recipe.max_steps:
            before, step = random_state(), state["step"]
            batches = [next(loader) for _ in range(accelerator.gradient_accumulation_steps)]
            names = [name for batch in batches for name in batch.pop("name")]
            batches = [
                {key: value.to(accelerator.device, non_blocking=True) for key, value in b.items()} for b in batches
            ]
            try:
                loss, norm = training_step(accelerator, model, optimizer, batches, recipe, step)
            except NotFiniteError as error:
                if accelerator.is_main_process:
                    log.write()
                set_random_state(before)
                stop_at(accelerator, error, output_dir, step, names, state, average, recipe)
            if average is not None:
                average.update(accelerator.unwrap_model(model))
            done, pictures = step + 1, pictures + recipe.total_batch_size
            state |= {"step": done, "result": None}
            evaluates, saves = (is_due(n, done, recipe) for n in (recipe.eval_steps, recipe.save_steps))
            number = signals.agreed(accelerator.num_processes, accelerator.device)
            if accelerator.is_main_process:
                log.add(done, loss, norm, optimizer.param_groups[0]["lr"])
                bar.update()
            if done % 10 == 0 or evaluates or saves or number is not None:
                values = log.write() if accelerator.is_main_process else {}
                speed = pictures / (time.perf_counter() - started)
                if accelerator.is_main_process:
                    rate = f"{values['learning_rate']:.1e}"
                    bar.set_postfix(loss=f"{values['loss']:.3f}", lr=rate, pictures_per_s=f"{speed:.1f}")
                accelerator.log({"train/" + key: v for key, v in values.items() if key != "step"}, step=done)
            if evaluates and number is None:
                bar.clear()  # the evaluation's bar takes its line
                try:
                    evaluate()
                except StopRequestedError as stop:
                    number = stop.number
                started, pictures = time.perf_counter(), 0
            # before the models, which can be saved from it should that fail now
            if saves or number is not None or state["best_step"] == done:
                save_checkpoint(accelerator, output_dir, done, state, average, recipe)
            if number is not None:
                bar.close()
                stop_for(accelerator, number, output_dir, state, average, recipe)
            save_models(["best"] * (state["best_step"] == done) + ["last"] * (done == recipe.max_steps))
    end(accelerator, unreadable, recipe)


def is_due(interval: int, step: int, recipe: Recipe) -> bool:
    """Whether something that is done every `interval` steps, and after the last, is done after `step`."""
    return step == recipe.max_steps or step % interval == 0


def end(accelerator: Accelerator, unreadable: list[str], recipe: Recipe) -> None:
    """What follows the last step: the pictures that were left out, and the upload."""
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if unreadable:
        place = Path(recipe.output_dir) / "unreadable.txt"
        accelerator.print(f"{listed_unreadable(unreadable)}; all of them in {place}")
    if accelerator.is_main_process and recipe.push_to_hub:
        upload_best(recipe)


__all__ = ["train"]
