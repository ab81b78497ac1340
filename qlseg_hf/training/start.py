"""How a run begins: its parts are built, its folder is taken, and an earlier run is taken up where it stopped."""

from pathlib import Path

import torch
from accelerate.utils import set_seed

from ..hub.upload import prepare_repo
from ..utils.distributed import StopSignals, failing_together
from ..utils.files import lock_folder, recover_folder, remove_leftovers
from .average import MovingAverage
from .build import build_model, build_processor
from .checkpoints import checkpoints, identity, load_checkpoint, step_of
from .data import open_split
from .distributed import check_batch, start_accelerator
from .models import find_due_models, hub_place
from .optimization import parameter_groups
from .recipe import Recipe
from .run import Run


def build_run(recipe: Recipe, signals: StopSignals) -> Run:
    """Data, processor and network of a recipe. Every process builds the same weights; nothing is written.

    Raises:
        ValueError: something of the recipe, the launch, the data or the weights does not fit; see the parts.
    """
    accelerator = start_accelerator(recipe)
    processor = build_processor(recipe)
    training_samples = open_split(recipe, recipe.train_split)
    set_seed(recipe.seed)
    model = build_model(recipe, processor.ignore_index)
    validation_samples = open_split(recipe, recipe.eval_split)
    state = {"step": 0, "best": None, "best_step": None, "result": None, "unreadable": []}
    state |= {"data": identity(training_samples), "label_names": list(model.config.id2label.values())}
    return Run(recipe, accelerator, signals, processor, model, training_samples, validation_samples, state)


def find_checkpoint(recipe: Recipe) -> Path | None:
    """The checkpoint that the recipe goes on from, if it does."""
    if recipe.resume not in ("auto", "none"):
        return Path(recipe.resume)
    found = checkpoints(Path(recipe.output_dir)) if recipe.resume == "auto" else []
    return found[-1] if found else None


def take_folder(run: Run) -> None:
    """Keep other runs out of the run's folder, undo or remove what a kill has left half-way, and ask the Hub."""
    with failing_together(run.num_processes):
        if not run.is_main:
            return
        if run.recipe.push_to_hub:
            prepare_repo(run.recipe.hub_model_id, **hub_place(run.recipe))  # hours before the upload, if it is refused
        lock_folder(run.output_dir)
        for place in (run.output_dir / "best", run.output_dir / "last"):
            recover_folder(place)
        for folder in (run.output_dir, *(path for path in run.output_dir.iterdir() if path.is_dir())):
            remove_leftovers(folder)


def prepare_run(run: Run) -> None:
    """Optimiser, moving average and accelerate's wrapping; each process draws its own dropout from here on."""
    recipe = run.recipe
    groups = parameter_groups(
        run.model, recipe.learning_rate, recipe.weight_decay, recipe.head_lr_multiplier, recipe.layer_decay
    )
    optimizer = torch.optim.AdamW([group | {"initial_lr": group["lr"]} for group in groups], betas=(0.9, 0.999))
    run.model, run.optimizer = run.accelerator.prepare(run.model, optimizer)
    check_batch(run.accelerator, recipe)
    run.average = MovingAverage(run.network, recipe.ema_decay) if recipe.ema_decay else None
    torch.manual_seed(recipe.seed + run.accelerator.process_index)


def resume_run(run: Run, checkpoint: Path) -> bool:
    """Take up an earlier run; whether anything is left to do.

    Raises:
        ValueError: data or labels are not those that the checkpoint was trained with, or it does not fit otherwise
            (see `load_checkpoint`).
    """
    stored = load_checkpoint(run.accelerator, checkpoint, run.average, run.recipe)
    with failing_together(run.num_processes):
        for key, what in (("data", "pictures of the training split"), ("label_names", "label names")):
            if stored[key] != run.state[key]:
                raise ValueError(
                    f"the {what} are not those that {checkpoint} was trained with; restore them, or start a new "
                    "run in another output_dir, with model: the folder best of this one"
                )
    run.state, max_steps = stored, run.recipe.max_steps
    run.is_measured = stored.get("result", ...) is not None or not run.is_due(run.recipe.eval_steps)
    if checkpoint.resolve().parents[1] != run.output_dir.resolve():  # of another run, whose best is not here
        if run.step == max_steps:
            raise ValueError(f"{checkpoint} has made {run.step} steps; set max_steps to more to go on from it")
        run.is_measured, run.state = True, stored | {"best": None, "best_step": None, "result": None}
    if run.is_measured and run.step == max_steps and not find_due_models(run):
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


__all__ = ["build_run", "check_no_newer", "find_checkpoint", "prepare_run", "resume_run", "take_folder"]
