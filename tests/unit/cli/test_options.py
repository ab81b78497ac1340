"""Options of all commands: numbers are refused before anything is loaded, as wrong options are, by exit status 2."""

import importlib

import click
import pytest

from qlseg_hf.cli.main import COMMANDS, run
from qlseg_hf.cli.options import SCALES, Several
from qlseg_hf.model.request import LARGEST_SCALE


def numeric_options() -> list[tuple[str, click.Option, click.ParamType]]:
    """Every option of every command that takes numbers, and what one number is."""
    found = []
    for name in COMMANDS:
        for option in importlib.import_module(f"qlseg_hf.cli.{name}").command.params:
            kind = option.type.kind if isinstance(option.type, Several) else option.type
            is_number = isinstance(kind, click.types.IntParamType | click.types.FloatParamType)
            if is_number and option.name != "ignore_index":  # which may be any
                found.append((name, option, kind))
    return found


def test_every_number_has_a_range():
    options = numeric_options()
    assert len(options) > 25
    assert [option.name for _, option, kind in options if getattr(kind, "min", None) is None] == []
    assert SCALES.max == LARGEST_SCALE


@pytest.mark.parametrize(("command", "option", "kind"), numeric_options())
def test_numbers_out_of_range(command, option, kind, capsys):
    """0, negative and huge numbers, NaN and infinity; some began hours of work, or ended in a traceback after it."""
    words = {"evaluate": ["m", "--data", "d"], "autolabel": ["--model", "m", "--data", "d", "--output", "o"]}
    words |= {"predict": ["m", "s", "--output", "o"], "scenes": ["s"]}
    wrong = ["", "x", "nan", "inf", "-inf", "1.5.5"]
    wrong += [str(kind.min - 1), *([str(kind.min)] if kind.min_open else [])]
    if kind.max is not None:
        wrong += [str(kind.max + 1), *([str(kind.max)] if kind.max_open else [])]
    for value in wrong:
        assert run([command, *words.get(command, []), option.opts[0], value]) == 2, value
        assert f"Invalid value for '{option.opts[0]}'" in capsys.readouterr().err
