"""What the processes of one run say to each other, so that all stop when one fails or dies, with one sentence."""

import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist


class OtherProcessError(RuntimeError):
    """Another process failed; that one raises, and says, why."""


def exchanged(value: Any, world_size: int) -> list[Any]:
    """`value` of every process, in order of rank."""
    if world_size == 1 or not dist.is_initialized():
        return [value]
    values = [None] * world_size
    dist.all_gather_object(values, value)
    return values


@contextmanager
def failing_together(world_size: int) -> Iterator[None]:
    """If the body raises in any process, all raise: the first of them its own error, the others `OtherProcessError`.

    So none waits for one that is gone, and one sentence is printed. Every process has to come here.
    """
    error = None
    try:
        yield
    except Exception as caught:  # raised again below, in every process
        error = caught
    failed = [rank for rank, has_failed in enumerate(exchanged(error is not None, world_size)) if has_failed]
    if not failed:
        return
    if error is not None and (world_size == 1 or not dist.is_initialized() or dist.get_rank() == failed[0]):
        raise error
    raise OtherProcessError(f"process {failed[0]} failed")


class LoaderDiedError(RuntimeError):
    """A process that loads data is not there to hand over its batch."""


def batches_of(loader: Iterable) -> Iterator:
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
def deaths_reported() -> Iterator[None]:
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


__all__ = ["OtherProcessError", "batches_of", "deaths_reported", "exchanged", "failing_together"]
