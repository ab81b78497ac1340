"""What the command-line tools share: a wrong input is one sentence on stderr and exit status 1, no traceback."""

import sys
from collections.abc import Callable


def first_line(error: BaseException) -> str:
    """First line of an error's text; its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def exit_status(program: str, function: Callable, *arguments) -> int:
    """Run `function`; 0, or 1 after printing the sentence of an ImportError, OSError, TypeError or ValueError."""
    try:
        function(*arguments)
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"{program}: {first_line(error)}", file=sys.stderr)
        return 1
    return 0


__all__ = ["exit_status", "first_line"]
