# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""All that wants measuring on a GPU, in one command: `qlseg benchmark gpu`. `make gpu` runs the tests for GPUs too.

The most important parts come first, those that compile last: the clock may run out. With `tiny` the same parts run on
tiny networks, on a CPU too, where everything but the kernels is run.
"""

import dataclasses
import json
import math
import os
import statistics
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from ..utils.files import write_atomically
from .limit import run_limit
from .measure import Rows, machine, seconds, take_turns
from .parts import Outcome, Part, run_parts, write_report
from .peers import peers, run_peers
from .sampler import run_sampler, run_sampler_in_network
from .settings import TINY, Settings, build, make_settings
from .speed import run_forward
from .training import made_batch, run_training

BASE, LARGE = "vit-b-ade20k", "vit-l-ade20k"


def train_in_fp16(settings: Settings, steps: int = 40) -> Rows:
    """fp16 with a `GradScaler`: steps on one batch, in which the loss has to fall.

    Raises:
        ArithmeticError: a loss or a weight is not finite, or the loss has not fallen.
    """
    model = build(settings).train()
    batch = made_batch(settings, settings.training_batch_sizes[0], model.config.num_labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler(settings.device.type)
    losses, scales, times = [], [], []

    def step():
        optimizer.zero_grad()
        with torch.autocast(settings.device.type, torch.float16):
            loss = model(**batch).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), 35.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))

    for _ in range(steps):
        times.append(seconds(step, settings.device))
        scales.append(scaler.get_scale())
    first, last = (statistics.mean(part) for part in (losses[:5], losses[-5:]))
    skipped = sum(after < before for before, after in zip([65536.0, *scales], scales))
    yield (
        f"fp16 with a scaler, {steps} steps of batch {len(batch['labels'])}: {settings.release}",
        {
            "seconds": statistics.median(times),
            "first_loss": first,
            "last_loss": last,
            "lowest_scale": min(scales),
            "skipped_steps": skipped,
        },
    )
    if not all(map(math.isfinite, losses)) or not all(p.isfinite().all() for p in model.parameters()):
        raise ArithmeticError(f"a loss or a weight is not finite; the last losses are {losses[-3:]}")
    if not last < first:
        raise ArithmeticError(f"the loss has not fallen: {first:.4g} at first, {last:.4g} at last")


def sharded_losses(model: nn.Module, batch: dict[str, torch.Tensor], steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses = []
    for number in range(steps):
        torch.manual_seed(number)  # the same dropout
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def train_sharded(settings: Settings, steps: int = 5) -> Rows:
    """PyTorch's `fully_shard` (FSDP2, which accelerate uses) on one device, in fp32, against the plain network.

    Raises:
        ArithmeticError: a loss differs by more than 1e-3 of it.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    on_gpu = settings.device.type == "cuda"
    model = build(settings).train()
    batch = made_batch(settings, settings.training_batch_sizes[0], model.config.num_labels)
    plain = sharded_losses(model, batch, steps)
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        torch.distributed.init_process_group("nccl" if on_gpu else "gloo", init_method=store, rank=0, world_size=1)
        try:
            sharded, mesh = build(settings).train(), init_device_mesh(settings.device.type, (1,))
            for module in [m for m in sharded.modules() if type(m).__name__ in sharded._no_split_modules]:
                fully_shard(module, mesh=mesh)
            fully_shard(sharded, mesh=mesh)
            losses = sharded_losses(sharded, batch, steps)
            variants = {
                "plain": lambda: sharded_losses(model, batch, 1),
                "sharded": lambda: sharded_losses(sharded, batch, 1),
            }
            rows = take_turns(variants, "plain", settings.repeats, settings.device)
        finally:
            torch.distributed.destroy_process_group()
    difference = max(abs(a - b) / abs(a) for a, b in zip(plain, losses))
    for name, row in rows.items():
        yield f"FSDP2 step with AdamW: {name}", row | {"largest_difference": difference, "losses": losses}
    if not difference <= 1e-3:
        raise ArithmeticError(f"losses differ by {difference:.2g} of them: plain {plain}, sharded {losses}")


def project_recipe(settings: Settings, name: str, precision: str, at_once: int, steps: int) -> Rows:
    """Seconds per optimiser step of a recipe on made images in memory, and the hours of all its steps.

    Without loading, evaluations and checkpoints. `at_once` images per forward pass, the rest accumulated.
    """
    os.environ["ACCELERATE_USE_CPU"] = str(settings.device.type == "cpu").lower()
    from ..training.build import prepare_for_training
    from ..training.distributed import start_accelerator
    from ..training.optimization import parameter_groups
    from ..training.recipe import load_recipe
    from ..training.step import training_step

    recipe = dataclasses.replace(load_recipe(name), precision=precision, per_device_batch_size=at_once)
    accelerator = start_accelerator(recipe)
    model = build(settings).train()
    prepare_for_training(model, recipe)
    groups = parameter_groups(model, recipe.learning_rate, recipe.weight_decay, recipe.head_lr_multiplier)
    optimizer = torch.optim.AdamW([group | {"initial_lr": group["lr"]} for group in groups])
    batches = [made_batch(settings, at_once, model.config.num_labels)] * recipe.accumulation_steps(1)
    model, optimizer = accelerator.prepare(model, optimizer)
    times = []
    for step in range(steps):
        results = []
        taken = seconds(
            lambda s=step, r=results: r.append(training_step(accelerator, model, optimizer, batches, recipe, s)),
            settings.device,
        )
        times.append(taken)
    median = statistics.median(times[min(3, steps - 1) :])
    yield (
        f"recipe {name} {precision}, batch {recipe.total_batch_size}, {at_once} at once: {settings.release}",
        {
            "seconds": median,
            "range": [min(times), max(times)],
            "peak_mib": torch.cuda.max_memory_allocated() / 2**20 if settings.device.type == "cuda" else 0.0,
            "steps": recipe.max_steps,
            "projected_hours": median * recipe.max_steps / 3600,
            "last_loss": float(results[0].loss),
        },
    )


def plan_parts(device: torch.device, tiny: bool) -> list[Part]:
    """All parts in their order, with their limits in seconds."""

    def settings(release: str, **more) -> dict:
        found = {"batch_sizes": (1, 8, 32 if release == BASE else 16), "training_batch_sizes": (2, 8), "repeats": 7}
        found |= more
        if tiny:
            release = TINY
            found |= {"batch_sizes": (2,), "training_batch_sizes": (2,), "repeats": 1}
        return {"settings": make_settings(release=release, device=str(device), **found)}

    parts = [
        Part(f"sampler {kind}", run_sampler, settings(BASE, batch_sizes=(2, 8)) | {"kind": kind}, 90)
        for kind in ("fp32", "bf16", "fp16")
    ]
    parts.append(Part("limit", run_limit, settings(BASE, dtypes=("fp32", "bf16"), batch_sizes=(1, 8)), 60))
    releases = (BASE,) if tiny else (BASE, LARGE)
    for release in releases:
        for kind in ("fp32", "bf16"):
            one = settings(release, dtypes=(kind,))
            parts.append(Part(f"forward {release} {kind}", run_forward, one, 75))
            parts.append(Part(f"training {release} {kind}", run_training, one, 90))
        kernel = settings(release) | {"kind": "bf16"}
        parts.append(Part(f"sampler in {release}", run_sampler_in_network, kernel, 90))
    parts.append(Part("fp16 with a scaler", train_in_fp16, settings(BASE), 60))
    parts.append(Part("FSDP2", train_sharded, settings(BASE), 60))
    for release in releases:
        for precision, at_once in (("fp32", 2), ("bf16", 8)):
            arguments = {"name": release, "precision": precision, "at_once": at_once, "steps": 2 if tiny else 20}
            arguments |= settings(release)
            needs = ("accelerate", "yaml")
            parts.append(Part(f"recipe {release} {precision}", project_recipe, arguments, 90, needs))
    for name in peers(512, TINY if tiny else LARGE):
        needs = ("scipy",) if name in ("EoMT-L", "Mask2Former Swin-L") else ()
        beside = settings(LARGE, batch_sizes=(1, 8), dtypes=("bf16",)) | {"names": (name,)}
        parts.append(Part(f"peer {name}", run_peers, beside, 75, needs))
    for release in releases:
        compiled = {"compile": True, "batch_sizes": (8,), "training_batch_sizes": (8,), "dtypes": ("bf16",)}
        parts.append(Part(f"forward {release} bf16 compiled", run_forward, settings(release, **compiled), 150))
        parts.append(Part(f"training {release} bf16 compiled", run_training, settings(release, **compiled), 180))
    for release in () if tiny else releases:
        compiled = {"compile": True, "batch_sizes": (8,), "dtypes": ("fp32",)}
        parts.append(Part(f"forward {release} fp32 compiled", run_forward, settings(release, **compiled), 150))
    return [dataclasses.replace(part, limit_s=600) for part in parts] if tiny else parts


def report_gpu(*, device: str | None = None, tiny: bool = False, minutes: float = 20.0, output: Path | None = None):
    """Run all parts and write `output` (gpu.json if not given) and a Markdown table beside it, after each part anew.

    Raises:
        ValueError: there is no GPU, and no other device is asked for.
        ChildProcessError: parts have failed; files and output say why.
    """
    place = torch.device(device or "cuda")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "gpu measures on a CUDA GPU, and PyTorch sees none here: run it on a machine with one, or try the program "
            "with --device cpu --tiny"
        )
    output, about, outcomes = output or Path("gpu.json"), machine(place), []

    def save(found: list[Outcome]) -> None:
        outcomes[:] = found
        result = {"machine": about, "tiny": tiny, "parts": [dataclasses.asdict(outcome) for outcome in found]}
        write_atomically(output, (json.dumps(result, indent=1) + "\n").encode())
        title = "Tiny networks: a trial of the program, no measurement" if tiny else "Measured on a GPU"
        write_atomically(output.with_suffix(".md"), write_report(title, about, found).encode())

    # a process that is forked from one in which a library has looked for GPUs could not use them
    start_method = "spawn" if place.type == "cuda" else "forkserver"
    run_parts(plan_parts(place, tiny), minutes * 60, start_method, save)
    print(f"written to {output} and {output.with_suffix('.md')}")
    if failed := [outcome.part for outcome in outcomes if outcome.status == "failed"]:
        raise ChildProcessError(f"{len(failed)} of {len(outcomes)} parts failed: {', '.join(failed)}")


__all__ = ["plan_parts", "report_gpu"]
