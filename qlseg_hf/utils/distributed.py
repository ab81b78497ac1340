# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What the processes of one run say to each other, so that all stop when one fails or dies, with one sentence."""

import os
import re
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

SECONDS_OF_ONE_SIGNAL = 2.0  # a terminal and a launcher may both pass on what was one Ctrl-C


class OtherProcessError(RuntimeError):
    """Another process failed; that one raises, and says, why."""


def gather_objects(value: Any, world_size: int) -> list[Any]:
    """`value` of every process, in order of rank."""
    if world_size == 1 or not dist.is_initialized():
        return [value]
    values = [None] * world_size
    dist.all_gather_object(values, value)
    return values


@contextmanager
def fail_together(world_size: int) -> Iterator[None]:
    """If the body raises in any process, all raise: the first of them its own error, the others `OtherProcessError`.

    So none waits for one that is gone, and one sentence is printed. Every process has to come here.
    """
    error = None
    try:
        yield
    except Exception as caught:  # raised again below, in every process
        error = caught
    failed = [rank for rank, has_failed in enumerate(gather_objects(error is not None, world_size)) if has_failed]
    if not failed:
        return
    if error is not None and (world_size == 1 or not dist.is_initialized() or dist.get_rank() == failed[0]):
        raise error
    raise OtherProcessError(f"process {failed[0]} failed")


class StopRequestedError(Exception):
    """A signal asks for the end of the run, which has been left in order. `number` is the signal's."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class StopSignals:
    """SIGTERM and Ctrl-C: inside `waiting` the first is only noted in `number`, the second ends the process at once.

    Outside `waiting` the first one raises KeyboardInterrupt, where it is noted too.
    """

    def __init__(self):
        self.number, self.is_waiting, self.noted_at = None, False, 0.0

    def listen(self) -> None:
        """From now on. In one of several processes SIGTERM goes on to end it at once until `waiting` begins."""
        signal.signal(signal.SIGINT, self.note)
        if os.environ.get("WORLD_SIZE", "1") == "1":
            signal.signal(signal.SIGTERM, self.note)

    def note(self, number: int, frame) -> None:
        is_first, seconds = self.number is None, time.monotonic() - self.noted_at
        if is_first:
            self.number, self.noted_at = number, time.monotonic()
        if not self.is_waiting:
            raise KeyboardInterrupt
        if not is_first and ("LOCAL_RANK" not in os.environ or seconds > SECONDS_OF_ONE_SIGNAL):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        signal.signal(signal.SIGTERM, self.note)
        self.is_waiting = True
        try:
            yield
        finally:
            self.is_waiting = False

    def agree(self, world_size: int, device: torch.device) -> int | None:
        """The signal that any of the processes has got, the same in all of them. Every process has to come here."""
        if world_size == 1 or not dist.is_initialized():
            return self.number
        number = torch.tensor(self.number or 0, device=device)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number) or None


class LoaderDiedError(RuntimeError):
    """A process that loads data is not there to hand over its batch."""


def iterate_batches(loader: Iterable) -> Iterator:
    """What a DataLoader gives. LoaderDiedError if one of its workers is gone, as far as that is noticed here."""
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (BrokenPipeError, ConnectionRefusedError, ConnectionResetError, EOFError) as error:
            raise LoaderDiedError(str(error) or type(error).__name__) from error
        yield batch


@contextmanager
def report_deaths() -> Iterator[None]:
    """One sentence, as OSError, for what PyTorch reports when a process that this one needs has died.

    DataLoader reports a dead worker from a signal handler, so in the middle of anything, or it was about to receive
    from it; an error inside a worker comes with its traceback as text, the last line of which says what it was.
    """
    try:
        yield
    except Exception as error:  # raised again below, or in other words
        text = str(error).strip()
        goes_on = "the same command goes on from what was saved"
        died = re.search(r"DataLoader worker \(pid.*", text)
        if died or isinstance(error, LoaderDiedError):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else it is reported again while the others are ended
            reason = died[0].rstrip(". ") if died else text
            raise OSError(
                f"a process that loads data has died ({reason}); if memory ran out, lower num_workers; {goes_on}"
            ) from error
        if re.match("Caught .* in DataLoader worker process", text):
            raise OSError(re.sub(r"^[\w.]+: ", "", text.splitlines()[-1]) + f"; {goes_on}") from error
        if isinstance(error, RuntimeError) and re.search("gloo|Connection (closed|reset)|NCCL", text):
            reason = text.splitlines()[0]
            raise OSError(f"another process of this run has died ({reason}); {goes_on}") from error
        raise


def is_switched_on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("1", "true", "yes")


def join_processes() -> Any:
    """`accelerate.PartialState`: rank, device and process group, as the launcher says; gloo where there is no GPU.

    Raises:
        ValueError: fewer processes have joined than were launched; in all but the first of them OtherProcessError.
    """
    is_without_gpu = not torch.accelerator.is_available() and not is_switched_on("ACCELERATE_USE_DEEPSPEED")
    from accelerate import PartialState  # an optional package

    state = PartialState(cpu=is_switched_on("ACCELERATE_USE_CPU") or is_without_gpu)
    if state.num_processes != (launched := int(os.environ.get("WORLD_SIZE", 1))):
        if os.environ.get("RANK", "0") != "0":
            raise OtherProcessError("process 0 says why")
        raise ValueError(f"{launched} processes were launched, but {state.num_processes} joined; use one per device")
    return state


__all__ = [
    "OtherProcessError",
    "StopRequestedError",
    "StopSignals",
    "is_switched_on",
    "iterate_batches",
    "report_deaths",
    "gather_objects",
    "fail_together",
    "join_processes",
]
