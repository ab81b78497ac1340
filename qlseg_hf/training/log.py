# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a run writes line by line, whatever stops it: losses of the steps, mIoU of the evaluations."""

import json
import math
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from ..utils.files import sync, write_atomically
from .recipe import Recipe
from .step import StepResult

TERMS = ("class", "mask", "dice")  # of the loss


class LineLog:
    """A file of one JSON object per line, without what a stopped run wrote after its last checkpoint."""

    def __init__(self, path: Path, start_step: int):
        self.path = path
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        try:
            kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= start_step]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds a line that this run has not written; remove it ({error})") from error
        write_atomically(path, b"".join(kept))

    def append(self, entries: list[dict]) -> None:
        with self.path.open("a") as file:
            file.writelines(json.dumps(entry, allow_nan=False) + "\n" for entry in entries)
        sync(self.path)  # before the checkpoint that counts on it

    def pairs(self, key: str) -> list[tuple[int, float]]:
        entries = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [(entry["step"], entry[key]) for entry in entries]


class LossLog(LineLog):
    """`losses.jsonl`, written every few steps. The gradient of a step that fp16 could not hold is null."""

    def __init__(self, path: Path, start_step: int):
        super().__init__(path, start_step)
        self.waiting = []

    def add(self, step: int, result: StepResult, rates: dict[str, float]) -> None:
        norm = float(result.norm)
        entry = {"step": step, "loss": float(result.loss), "grad_norm": norm if math.isfinite(norm) else None}
        terms = {f"loss_{name}": value for name, value in zip(TERMS, result.terms.tolist())}
        self.waiting.append(entry | terms | rates)

    def write(self) -> dict | None:
        """Write what waits; returns the newest entry."""
        entries, self.waiting = self.waiting, []
        self.append(entries)
        return entries[-1] if entries else None


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """`learning_rate` of the encoder's last layers (of the head, if those are frozen), and that of the head."""
    groups = optimizer.param_groups
    encoder = [group["lr"] for group in groups if "backbone" in group.get("name", "")]
    head = [group["lr"] for group in groups if "head" in group.get("name", "")]
    rates = {"learning_rate": max(encoder) if encoder else groups[0]["lr"]}
    return rates | ({"head_learning_rate": max(head)} if head else {})


class StepLog:
    """What is said of the steps: `losses.jsonl`, the trackers, and a bar with loss, rate and images per second.

    `losses`, `evaluations`: the files; in all processes but the first there are none.
    """

    EVERY = 10  # steps that are written together

    def __init__(self, accelerator: Accelerator, recipe: Recipe, start_step: int, last_evaluated: int):
        self.accelerator, self.recipe = accelerator, recipe
        if accelerator.is_main_process:
            output_dir = Path(recipe.output_dir)
            self.losses = LossLog(output_dir / "losses.jsonl", start_step)
            self.evaluations = LineLog(output_dir / "evaluations.jsonl", last_evaluated)
        if recipe.report_to:
            settings = vars(recipe.to_public()).items()
            flat = {key: value for key, value in settings if isinstance(value, (int, float, str, bool))}
            accelerator.init_trackers("qlseg", config=flat)
        disable = not accelerator.is_main_process
        self.bar = tqdm(initial=start_step, total=recipe.max_steps, unit="step", disable=disable)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Measure images per second from here on; as after an evaluation."""
        self._started, self._num_images = time.perf_counter(), 0

    def add(self, step: int, result: StepResult, optimizer: torch.optim.Optimizer, write: bool) -> None:
        """Note a step, the `step`-th; every tenth time and with `write` all that was noted is written."""
        self._num_images += self.recipe.total_batch_size
        if self.accelerator.is_main_process:
            self.losses.add(step, result, learning_rates(optimizer))
            self.bar.update()
        if not write and step % self.EVERY:
            return
        values = self.losses.write() if self.accelerator.is_main_process else {}
        speed = self._num_images / (time.perf_counter() - self._started)
        if self.accelerator.is_main_process:
            rate = f"{values['learning_rate']:.1e}"
            self.bar.set_postfix(loss=f"{values['loss']:.3f}", lr=rate, pictures_per_s=f"{speed:.1f}")
        self.accelerator.log({"train/" + key: v for key, v in values.items() if key != "step"}, step=step)


__all__ = ["LineLog", "LossLog", "StepLog"]
