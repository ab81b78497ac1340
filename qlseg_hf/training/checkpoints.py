# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training run: written beside and moved, checked before they are read, oldest ones removed.

Whatever kills a run leaves the checkpoint before, and a run goes on from it bit for bit.
"""

import json
import math
import re
import sys
import zlib
from contextlib import nullcontext
from dataclasses import MISSING, fields
from pathlib import Path
from pickle import UnpicklingError

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..data.datasets import Samples
from ..utils.distributed import fail_together, gather_objects
from ..utils.files import partial_folder, remove_folder, replace_folder
from ..utils.hashing import json_sha256
from ..utils.yaml_text import read_mapping, read_yaml
from .average import MovingAverage
from .distributed import SHARDED, launch_facts
from .optimization import learning_rate_factor
from .recipe import Recipe, rename_old_keys
from .sharding import cut_weights, gather_weights, load_whole_state, save_whole_state


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [path for path in (output_dir / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=step_of)


def save_checkpoint(
    accelerator: Accelerator, output_dir: Path, step: int, state: dict, average: MovingAverage | None, recipe: Recipe
) -> None:
    """Everything that resuming needs, under `checkpoints/step-N`; older ones beyond `keep_checkpoints` are removed.

    Raises:
        OSError: for instance a full disk; the checkpoints before stay valid.
    """
    place = output_dir / "checkpoints" / f"step-{step:08d}"
    made = partial_folder(place.name, place.parent) if accelerator.is_main_process else nullcontext(place)
    with made as folder:
        beside = Path(gather_objects(str(folder), accelerator.num_processes)[0])
        try:
            if accelerator.distributed_type == DistributedType.FSDP:
                save_whole_state(accelerator, beside)
            else:
                accelerator.save_state(str(beside))
            torch.save(random_state(), beside / f"random-{accelerator.process_index}.pt")
            accelerator.wait_for_everyone()
            if average is not None:
                save_average(accelerator, average, beside)
            if accelerator.is_main_process:
                (beside / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
                state = state | {"step": step} | launch_facts(accelerator)
                (beside / "state.json").write_text(json.dumps(state), encoding="utf-8")
                (beside / "contents.json").write_text(json.dumps(contents(beside)), encoding="utf-8")
                replace_folder(beside, place)
                for old in checkpoints(output_dir)[: -recipe.keep_checkpoints]:
                    remove_folder(old)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch.save reports a full disk as a RuntimeError
            if re.search(r"DataLoader worker|gloo|Connection (closed|reset)|NCCL", str(error)):  # a process died
                raise
            reason = str(error).splitlines()[0]
            if "inline_container" in reason:  # all that torch.save says
                reason = "a file could not be written to its end, probably because the disk is full"
            kept = checkpoints(output_dir)
            before = f"; {kept[-1]} is still valid" if kept else ""
            raise OSError(f"checkpoint {place} cannot be written: {reason}{before}") from error
    accelerator.wait_for_everyone()


def save_average(accelerator: Accelerator, average: MovingAverage, folder: Path) -> None:
    """The whole moving average, as the first process writes it."""
    network, weights = accelerator.unwrap_model(accelerator._models[0]), {}
    for name, value in gather_weights(network, average.weights):
        if accelerator.is_main_process:
            weights[name] = value.cpu().contiguous()
    if accelerator.is_main_process:
        save_file(weights, folder / "average.safetensors")


def contents(checkpoint: Path) -> dict[str, list[int]]:
    """{file: [size, CRC-32]} of a checkpoint, but for contents.json, which holds this."""
    found = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != "contents.json"):
        size = checksum = 0
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                size, checksum = size + len(block), zlib.crc32(block, checksum)
        found[path.relative_to(checkpoint).as_posix()] = [size, checksum]
    return found


def read_state(checkpoint: Path) -> dict:
    """`state` of a checkpoint, every file of which is as it was written. ValueError if one is not."""
    if not re.fullmatch(r"step-\d+", checkpoint.name) or not checkpoint.is_dir():
        raise ValueError(f"{checkpoint} is no checkpoint of a run; give a folder checkpoints/step-N")
    try:
        written, found = json.loads((checkpoint / "contents.json").read_text(encoding="utf-8")), contents(checkpoint)
        if not isinstance(written, dict) or "state.json" not in written:
            raise ValueError("it does not list state.json")
        damaged = [name for name in written if found.get(name) != written[name]]
        if not damaged:
            return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        reason = ", ".join(f"{name} is {'changed' if name in found else 'missing'}" for name in damaged[:5])
    except (OSError, ValueError) as error:
        reason = f"contents.json cannot be read ({error})"
    before = [path for path in checkpoints(checkpoint.parent.parent) if step_of(path) < step_of(checkpoint)]
    remedy = f"from {before[-1]}" if before else "over"
    raise ValueError(f"{checkpoint} is damaged: {reason}; remove it, and the same command starts {remedy}")


def identity(samples: Samples, *extra: Samples) -> str:
    """Hash of a data set's pictures by number and name, wherever it lies; of a table and a stream, of some of them.

    `extra`: sets that are mixed into it.
    """
    found = [one.contents() for one in (samples, *extra)]
    return json_sha256(found if extra else found[0])


def read_recipe(checkpoint: Path) -> dict:
    """The keys of the recipe beside a checkpoint. ValueError if the checkpoint is damaged or none."""
    try:
        return rename_old_keys(read_mapping(checkpoint / "recipe.yaml"), warn=False)
    except (OSError, ValueError):
        read_state(checkpoint)  # says what is wrong with it
        raise


def changes_since(checkpoint: Path, recipe: Recipe) -> list[str]:
    """What the recipe says otherwise than the one beside a checkpoint: "key: old -> new"."""
    old = read_recipe(checkpoint)
    new = read_yaml(recipe.to_yaml())
    defaults = {entry.name: entry.default for entry in fields(Recipe) if entry.default is not None}
    old = {key: value for key, value in defaults.items() if key in new and value is not MISSING} | old
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in new | old  # in the order of the class; `old` of a version before may have fewer keys
        if key != "resume" and key in old and old[key] != new.get(key)
    ]


def rate_change(checkpoint: Path, step: int, recipe: Recipe) -> str | None:
    """How the learning rate changes where a run goes on, if the recipe beside its checkpoint gave another; or None."""
    old = vars(recipe) | read_recipe(checkpoint)
    last, expected, now = (
        recipe_["learning_rate"]
        * learning_rate_factor(number, recipe_["max_steps"], recipe_["warmup_steps"], recipe_["poly_power"])
        for recipe_, number in ((old, max(step - 1, 0)), (old, step), (vars(recipe), step))
    )
    if math.isclose(expected, now, rel_tol=1e-6) or step >= recipe.max_steps:
        return None
    return (
        f"the learning rate goes from {last:.2e} at step {step} to {now:.2e} at step {step + 1}, because the recipe's "
        "schedule has changed; to keep to a schedule, start a new run in another output_dir with model: the folder "
        "last or best of this one"
    )


def check_processes(accelerator: Accelerator, checkpoint: Path, state: dict, recipe: Recipe) -> None:
    """ValueError if a checkpoint of another number of processes, or kind of them, cannot go on in these."""
    facts, old_recipe = launch_facts(accelerator), read_recipe(checkpoint)
    is_whole = (checkpoint / "optimizer.bin").is_file()  # all but DeepSpeed's are, which has files per process
    is_sharded = accelerator.distributed_type == DistributedType.DEEPSPEED
    is_other_batch = old_recipe.get("total_batch_size", recipe.total_batch_size) != recipe.total_batch_size
    is_other_number = state["num_processes"] != facts["num_processes"]
    if is_whole and not is_sharded and not (is_other_number and is_other_batch):
        return
    is_other_layout = state.get("distribution") != facts["distribution"]
    if not is_whole and is_sharded and not is_other_number and not is_other_layout:
        return
    was = f"{state['num_processes']} processes ({state.get('distribution', 'of unknown distribution')})"
    models = [name for name in ("last", "best") if (checkpoint.parent.parent / name).is_dir()]
    way_out = f", or start a new run in another output_dir with model: {checkpoint.parent.parent / models[0]}"
    batch = f" with total_batch_size {old_recipe.get('total_batch_size')}" if is_other_batch else ""
    raise ValueError(
        f"{checkpoint} was written by {was}{batch}, this run has {facts['num_processes']} ({facts['distribution']})"
        f"{f' and {recipe.total_batch_size}' if is_other_batch else ''}; resume as it was{way_out if models else ''}"
    )


def changes_of_launch(facts: dict, state: dict) -> list[str]:
    """What differs in how the run is computed, in sentences."""
    changes = [f"{key}: {state[key]} -> {facts[key]}" for key in facts if key in state and state[key] != facts[key]]
    sentences = [f"the launch has changed since step {state['step']}: {', '.join(changes)}"] if changes else []
    if state["num_processes"] != facts["num_processes"]:
        sentences.append("the steps take the same pictures; dropout and drop path draw other numbers from here on")
    return sentences


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, average: MovingAverage | None, recipe: Recipe) -> dict:
    """Restore a run from a checkpoint; returns its `state`. Says what has changed in the recipe and the launch.

    Learning rates and weight decay are those of the optimiser's groups before, so of the recipe.

    Raises:
        ValueError: it is not a checkpoint, a file of it is missing or changed, it has more steps than the recipe, it
            was written by another number of processes and cannot go on in these (see `check_processes`), with
            another `ema_decay`, or for another network.
    """
    state = None
    with fail_together(accelerator.num_processes):
        if accelerator.is_main_process:
            state = read_state(checkpoint)
            if state["step"] > recipe.max_steps:
                raise ValueError(
                    f"max_steps is {recipe.max_steps}, but {checkpoint} has made {state['step']} steps already; set "
                    f"max_steps to at least {state['step']}, or choose another output_dir"
                )
            check_processes(accelerator, checkpoint, state, recipe)
            said = changes_of_launch(launch_facts(accelerator), state)
            if changed := changes_since(checkpoint, recipe):
                said.append(f"the recipe has changed since {checkpoint.name}: {', '.join(changed)}")
            said.append(rate_change(checkpoint, state["step"], recipe))
            print(*filter(None, said), sep="\n", end="\n" if any(said) else "", file=sys.stderr)
    state = gather_objects(state, accelerator.num_processes)[0]
    try:
        load_state(accelerator, checkpoint, state["step"])
        if state["num_processes"] == accelerator.num_processes:
            set_random_state(torch.load(checkpoint / f"random-{accelerator.process_index}.pt", weights_only=True))
        else:
            torch.manual_seed(recipe.seed + 7919 * state["step"] + accelerator.process_index)
    except UnpicklingError as error:
        raise ValueError(
            f"{checkpoint} holds more than tensors and plain data, which is not run; take one that training wrote"
        ) from error
    except (KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{checkpoint} does not fit the recipe's network and optimiser; resume with the recipe beside it, or "
            f"choose another output_dir ({reason})"
        ) from error
    if (average is not None) != (checkpoint / "average.safetensors").is_file():
        raise ValueError(f"{checkpoint} and the recipe disagree about ema_decay; resume with the recipe beside it")
    if average is not None:
        network = accelerator.unwrap_model(accelerator._models[0])
        for name, value in cut_weights(network, load_file(checkpoint / "average.safetensors")).items():
            average.weights[name].copy_(value)
    return state


def load_state(accelerator: Accelerator, checkpoint: Path, step: int) -> None:
    """accelerate's `load_state`, whether or not the network was wrapped (DistributedDataParallel) when it was saved.

    What only counts from the recipe is not taken over: rates of the optimiser's groups, and accelerate's count of
    forward passes, which says where a step ends only while the accumulation stays the same.
    """

    def load_plain(models: list, folder: str) -> None:
        if not (Path(folder) / "model.safetensors").is_file():
            return
        weights = load_file(Path(folder) / "model.safetensors")
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
        accelerator.unwrap_model(models.pop()).load_state_dict(weights)

    groups = [group for optimizer in accelerator._optimizers for group in optimizer.param_groups]
    given = [{key: group[key] for key in ("name", "initial_lr", "weight_decay") if key in group} for group in groups]
    # a run that had no loss scale before starts with a fresh one
    scaler, has_scale = accelerator.scaler, (checkpoint / "scaler.pt").is_file()
    hook = None
    if accelerator.distributed_type not in SHARDED:
        hook = accelerator.register_load_state_pre_hook(load_plain)
    try:
        accelerator.scaler = scaler if has_scale else None
        if accelerator.distributed_type == DistributedType.FSDP:
            load_whole_state(accelerator, checkpoint)
        else:
            accelerator.load_state(str(checkpoint))
    finally:
        accelerator.scaler = scaler
        if hook is not None:
            hook.remove()
    accelerator.step = step * accelerator.gradient_accumulation_steps
    groups = [group for optimizer in accelerator._optimizers for group in optimizer.param_groups]
    for group, values in zip(groups, given, strict=True):
        if group.get("name") != values.get("name"):
            raise ValueError(f"weights are in other groups: {group.get('name')}, and not {values.get('name')}")
        group.update(values)


def random_state() -> dict[str, torch.Tensor]:
    """States of the generators that dropout and drop path draw from; augmentation draws by (seed, epoch, sample)."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


__all__ = [
    "checkpoints",
    "identity",
    "load_checkpoint",
    "random_state",
    "read_recipe",
    "read_state",
    "save_checkpoint",
    "set_random_state",
    "step_of",
]
