#!/usr/bin/env python3
"""Properties for hypothesis, and the command that tries many examples of them and counts: `make properties`.

`make test` tries few examples of each, the same ones in every run. Here they are `FACTOR` times as many and drawn
afresh; then a table says of every property how many examples were tried and how many failed. Arguments go to pytest.
"""

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import UnsatisfiedAssumption

FACTOR = 20
COUNTS: dict[str, list[int]] = {}  # property -> examples tried up to its first failure, failures
COMMON = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}

settings.register_profile("small", derandomize=True, phases=[Phase.explicit, Phase.generate], **COMMON)
settings.register_profile("thorough", phases=[Phase.explicit, Phase.generate, Phase.shrink], **COMMON)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "small")
settings.load_profile(PROFILE)

SEEDS = st.integers(0, 2**32 - 1)
SIDES = st.one_of(st.integers(1, 60), st.sampled_from([1, 2, 15, 16, 17, 64, 300]))
SIZES = st.tuples(SIDES, SIDES)


@st.composite
def windows(draw, most=80):
    """Window and stride that a processor takes."""
    window = draw(st.integers(1, most))
    return window, draw(st.integers(1, window))


def holds(examples: int, **strategies) -> Callable:
    """Decorator: the test holds for all that `strategies` draw; `make test` tries `examples` of them."""

    def decorate(test: Callable) -> Callable:
        counts = COUNTS.setdefault(test.__name__, [0, 0])

        @wraps(test)
        def counted(*args, **kwargs):
            if counts[1]:  # what follows makes the failing example smaller
                return test(*args, **kwargs)
            try:
                test(*args, **kwargs)
            except UnsatisfiedAssumption:  # no example
                raise
            except (Exception, pytest.fail.Exception):
                counts[:] = counts[0] + 1, 1
                raise
            counts[0] += 1

        return settings(max_examples=examples * (FACTOR if PROFILE == "thorough" else 1))(given(**strategies)(counted))

    return decorate


def main(arguments: list[str]) -> int:
    os.environ["HYPOTHESIS_PROFILE"] = "thorough"
    sys.path.insert(0, str(Path(__file__).parent))
    import properties  # the module that the tests import, not this one

    files = sorted((Path(__file__).parents[1] / "properties").glob("test_*.py"))
    status = pytest.main([*map(str, files), "-q", "-p", "no:cacheprovider", *arguments])
    tried = {name: counts for name, counts in properties.COUNTS.items() if counts[0]}
    print("\n| property | examples tried | failed |\n| --- | ---: | ---: |")
    for name, (number, failed) in tried.items():
        print(f"| {name.removeprefix('test_').replace('_', ' ')} | {number} | {failed} |")
    print(f"| {len(tried)} properties | {sum(n for n, _ in tried.values())} | {sum(f for _, f in tried.values())} |")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
