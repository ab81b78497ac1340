"""Fills pages from code when the site is built: {{ recipe_keys }} in training.md, {{ commands }} in commands.md."""

import dataclasses
import inspect
import json
import re
import types
import typing

import click
from qlseg_hf.cli.main import COMMANDS, group
from qlseg_hf.training.recipe import Recipe


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Called by MkDocs for every page."""
    for mark, text in (("{{ recipe_keys }}", recipe_keys), ("{{ commands }}", command_help)):
        if mark in markdown:
            markdown = markdown.replace(mark, text())
    return markdown


def recipe_keys() -> str:
    """A table of all keys of a recipe: type, default, and the line of `Recipe`'s docstring."""
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    meanings, hints = docstring_arguments(Recipe), typing.get_type_hints(Recipe)
    for entry in dataclasses.fields(Recipe):
        default = entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
        shown = (
            "required"
            if default is dataclasses.MISSING
            else f"`{default if isinstance(default, str) else json.dumps(default)}`"
        )
        meaning = entry.metadata.get("help") or meanings.get(entry.name)
        if meaning is None:
            raise ValueError(f"the docstring of Recipe does not say what {entry.name} is; add it below Args")
        cells = (f"`{entry.name}`", type_name(hints[entry.name]), shown, " ".join(meaning.split()))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def docstring_arguments(cls: type) -> dict[str, str]:
    """{name: text} of the section "Args:"; names that share a line share its text."""
    section = re.split(r"^Args:\n", inspect.getdoc(cls), flags=re.MULTILINE)[1]
    found = {}
    for entry in re.split(r"\n(?=    \w)", section.split("\n\n")[0]):
        names, text = entry.strip().split(": ", 1) if ": " in entry else entry.strip().split(":\n", 1)
        found |= {name.strip(): text for name in names.split(",")}
    return found


def type_name(hint) -> str:
    """`str | None` as "str or null"."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    names = ["null" if option is type(None) else str(getattr(option, "__name__", option)) for option in options]
    return " or ".join(str(option) if typing.get_origin(option) else name for option, name in zip(options, names))


def command_help() -> str:
    """`--help` of every sub-command."""
    parts = []
    for name in COMMANDS:
        command = group.get_command(None, name)
        context = click.Context(command, info_name=f"qlseg {name}", max_content_width=100, terminal_width=100)
        parts.append(f"## qlseg {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)
