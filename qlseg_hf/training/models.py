# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The models of a run, `best` and `last`: ordinary folders with a card, and the upload of the best one."""

import json
from pathlib import Path

from ..hub.card import trained_model_card
from ..hub.loading import hide_bars
from ..hub.results import inference_protocol
from ..hub.saving import RESULTS, TRAINING, QLSegForSemanticSegmentation
from ..hub.upload import upload_folder
from ..utils.distributed import gather_objects
from ..utils.files import write_atomically, write_beside
from .build import plain_model
from .distributed import launch_facts
from .recipe import Recipe
from .run_state import Run


def save_models(run: Run, names: list[str]) -> None:
    """Save the weights of this step (their moving average, if there is one) under each of `names`."""
    if not names:
        return
    with run.measured_network() as network:
        for name in names if run.is_main else ():
            _save_model(run, run.output_dir / name, network)


def _save_model(run: Run, place: Path, network: QLSegForSemanticSegmentation) -> None:
    recipe, facts = run.recipe, launch_facts(run.accelerator)
    with hide_bars():
        plain = plain_model(network, network.state_dict())
    measured = {"dataset": recipe.data, "dataset_config": recipe.dataset_config, "split": recipe.eval_split}
    card = trained_model_card(
        plain,
        run.processor,
        name=place.name,
        recipe=recipe,
        step=run.step,
        launch=facts,
        result=run.state["result"] | {"protocol": measured | inference_protocol(run.processor)},
    )
    with hide_bars(), write_beside(place) as folder:
        plain.save_pretrained(folder)
        run.processor.save_pretrained(folder)
        (folder / "recipe.yaml").write_text(recipe.to_public().to_yaml(), encoding="utf-8")
        (folder / TRAINING).write_text(json.dumps({"step": run.step} | facts), encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")
        add_results(run.output_dir, folder)


def add_results(output_dir: Path, folder: Path) -> None:
    """Copy what the run has logged so far beside a model."""
    for name in RESULTS:
        write_atomically(folder / name, (output_dir / name).read_bytes())


def new_models(run: Run) -> list[str]:
    """Which of `best` and `last` the present step is to be saved as."""
    names = ["best"] if run.state["best_step"] == run.step else []
    return names + (["last"] if run.is_over else [])


def find_due_models(run: Run) -> list[str]:
    """Which of `new_models` are not there, because a run was stopped before; the same in every process."""
    names = []
    if "result" not in run.state:  # of a version that saved the models first
        return names
    for name in new_models(run):
        path = run.output_dir / name / TRAINING
        if not path.is_file() or json.loads(path.read_text(encoding="utf-8"))["step"] != run.step:
            names.append(name)
    return gather_objects(names, run.num_processes)[0]


def upload_best(run: Run) -> None:
    """`best`, with all that the run has logged, as one commit."""
    recipe, best = run.recipe, run.output_dir / "best"
    add_results(best.parent, best)
    print(f"uploading {best}; should that fail, the same command tries again")
    message = f"Train {run.step} steps"
    print(upload_folder(best, recipe.hub_model_id, commit_message=message, **hub_place(recipe)))


def hub_place(recipe: Recipe) -> dict:
    """Where on the Hub the recipe uploads to, as keyword arguments."""
    return {"private": recipe.hub_private or None, "revision": recipe.hub_revision}


__all__ = ["add_results", "find_due_models", "hub_place", "new_models", "save_models", "upload_best"]
