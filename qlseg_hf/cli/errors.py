# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A wrong input is one sentence on stderr and exit status 1, without a traceback."""

import sys
from collections.abc import Callable

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError, StrictDataclassError

from ..utils.distributed import OtherProcessError
from ..utils.text import first_line, printable


def sentence(error: BaseException) -> str:
    """What went wrong, on one line; of the Hub, with what to do about it."""
    if isinstance(error, HfHubHTTPError):
        status, said = error.response.status_code, " ".join((error.server_message or "").split())
        remedies = {
            401: "log in with `hf auth login` or set HF_TOKEN",
            403: "use a token that may write there",
            404: "check the id and the revision, and that the token may see it",
        }
        reason = f": {said}" if said else ""
        remedy = f"; {remedies[status]}" if status in remedies else ""
        return f"the Hub answered {status}{reason}{remedy}"
    if isinstance(error, HTTPError):
        return f"the Hub cannot be reached at {constants.ENDPOINT}: {first_line(error)}"
    return first_line(error)


def exit_status(program: str, function: Callable, *arguments) -> int:
    """Run `function`; 0, or 1 after the sentence of an error of input, package, system or Hub, or 130 after Ctrl-C."""
    try:
        function(*arguments)
    except (ImportError, OSError, TypeError, ValueError, HTTPError, StrictDataclassError) as error:
        if details := getattr(error, "details", None):  # lines to look through, before the sentence
            print(details, file=sys.stderr)
        print(f"{program}: {printable(sentence(error))}", file=sys.stderr)
        return 1
    except OtherProcessError:  # that process prints the sentence
        return 1
    except KeyboardInterrupt:
        print(f"{program}: stopped by a signal", file=sys.stderr)
        return 130
    return 0


__all__ = ["exit_status", "sentence"]
