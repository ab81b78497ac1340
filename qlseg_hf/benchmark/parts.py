# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Measurements one after the other under one clock, each in a process of its own, and their report.

A crash, a hang or an illegal access to a GPU's memory ends one part and none of the others. What a part has measured
before is kept.
"""

import importlib.util
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from ..utils.text import first_line
from .measure import Rows, markdown, table


@dataclass(frozen=True)
class Part:
    """A function of a module that yields (name, numbers) while it measures, its arguments, and its limit in seconds.

    `needs`: packages without which it is left out.
    """

    name: str
    function: Callable[..., Rows]
    arguments: dict
    limit_s: float
    needs: tuple[str, ...] = ()


@dataclass
class Outcome:
    """`status` is done, failed or skipped; `reason` says why it is not done."""

    part: str
    status: str = "done"
    reason: str = ""
    seconds: float = 0.0
    rows: dict[str, dict] = field(default_factory=dict)


def run_parts(parts: list[Part], seconds: float, start_method: str, save: Callable[[list[Outcome]], None]) -> None:
    """Run parts while the clock has not run out, and `save` all outcomes after each; one line is printed for each.

    Args:
        seconds: for all of them. Parts that would start later are skipped; one that runs then is stopped, and failed.
        start_method: of multiprocessing: forkserver, or spawn where a process that is forked could not use the GPU.
    """
    end, outcomes = time.monotonic() + seconds, []
    context = multiprocessing.get_context(start_method)
    if start_method == "forkserver":
        context.set_forkserver_preload(sorted({part.function.__module__ for part in parts}))
    for number, part in enumerate(parts, 1):
        left = end - time.monotonic()
        missing = [name for name in part.needs if importlib.util.find_spec(name) is None]
        if left <= 0:
            outcome = Outcome(part.name, "skipped", f"the clock of {seconds / 60:.3g} minutes had run out")
        elif missing:
            outcome = Outcome(part.name, "skipped", f"{', '.join(missing)} is not installed")
        else:
            outcome = run_part(part, min(part.limit_s, left), context)
        outcomes.append(outcome)
        print(f"[{number}/{len(parts)}] {describe(outcome)}", flush=True)
        save(outcomes)


def describe(outcome: Outcome) -> str:
    reason = f": {outcome.reason}" if outcome.reason else ""
    return f"{outcome.part}: {outcome.status} after {outcome.seconds:.0f} s{reason}"


def run_part(part: Part, limit_s: float, context) -> Outcome:
    """Run a part in a process of its own for at most `limit_s`."""
    outcome, started = Outcome(part.name), time.monotonic()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_rows, args=(part, sender))
    process.start()
    sender.close()  # so that the end of the process is the end of the pipe
    while True:
        if not receiver.poll(max(0.0, started + limit_s - time.monotonic())):
            outcome.status, outcome.reason = "failed", f"TimeoutError: stopped after {limit_s:.0f} s"
            process.kill()
            break
        try:
            name, row = receiver.recv()
        except EOFError:
            break
        if name is None:
            outcome.status, outcome.reason = "failed", row["error"]
        else:
            outcome.rows[name] = row
    process.join()
    receiver.close()
    if process.exitcode and outcome.status == "done":
        outcome.status, outcome.reason = "failed", f"ChildProcessError: ended with status {process.exitcode}"
    outcome.seconds = time.monotonic() - started
    return outcome


def _send_rows(part: Part, sender: Connection) -> None:
    """In the part's process: its rows, and the class and sentence of an error, which is raised all the same."""
    try:
        for name, row in part.function(**part.arguments):
            sender.send((name, row))
    except Exception as error:  # any: what fails is what the report is for
        sender.send((None, {"error": f"{type(error).__name__}: {first_line(error)}"}))
        raise


def write_report(title: str, machine: dict, outcomes: list[Outcome]) -> str:
    """Markdown: what became of each part, and then all numbers."""
    parts = [[o.part, f"{o.seconds:.0f}", o.status, o.reason] for o in outcomes]
    text = [f"# {title}", ", ".join(f"{key} {value}" for key, value in machine.items())]
    text.append(markdown(["part", "seconds", "status", "reason"], parts))
    rows = ((f"{outcome.part}: {name}", row) for outcome in outcomes for name, row in outcome.rows.items())
    return "\n\n".join([*text, table(rows)]) + "\n"


__all__ = ["Outcome", "Part", "describe", "run_part", "run_parts", "write_report"]
