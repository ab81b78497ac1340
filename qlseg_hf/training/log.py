"""What a run writes line by line, whatever stops it: losses of the steps, mIoU of the evaluations."""

import json
import math
from pathlib import Path

import torch

from ..utils.files import sync, write_atomically


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

    def add(self, step: int, loss: torch.Tensor, norm: torch.Tensor, learning_rate: float) -> None:
        loss, norm = float(loss), float(norm) if math.isfinite(norm) else None
        self.waiting.append({"step": step, "loss": loss, "grad_norm": norm, "learning_rate": learning_rate})

    def write(self) -> dict | None:
        """Write what waits; returns the newest entry."""
        entries, self.waiting = self.waiting, []
        self.append(entries)
        return entries[-1] if entries else None


__all__ = ["LineLog", "LossLog"]
