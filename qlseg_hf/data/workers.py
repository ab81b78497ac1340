# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Processes that read training samples, and how they end."""

import os
import signal
import sys
import threading


def start_worker(number: int) -> None:
    """For `DataLoader(worker_init_fn=...)`: no traceback from a worker whose training process was stopped.

    What it was handing over, in a thread of multiprocessing, then has no receiver. Errors in samples go another way.
    Ctrl-C, and a SIGTERM that does not come from the training process, are that one's affair: it may need batches to
    end a step. (Where nothing tells who sends a signal, as on macOS, SIGTERM to a whole group ends the worker.)
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=leave_with_parent, daemon=True).start()

    def show(kind, error, trace):
        if not issubclass(kind, (ConnectionError, EOFError)):
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = show


def leave_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


__all__ = ["start_worker"]
