"""Fills pages from code when the site is built: {{ recipe_keys }} in training.md, {{ commands }} in commands.md."""

import re

import click

from qlseg_hf.cli.main import COMMANDS, group
from qlseg_hf.cli.train import describe_keys


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Called by MkDocs for every page."""
    for mark, text in (("{{ recipe_keys }}", recipe_keys), ("{{ commands }}", command_help)):
        if mark in markdown:
            markdown = markdown.replace(mark, text())
    return markdown


def recipe_keys() -> str:
    """A table of all keys of a recipe, from what `qlseg train --help` says."""
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for option, text in describe_keys(None):
        names, kind = re.fullmatch(r"((?:--\w+(?:, )?)+) (.*)", option).groups()
        meaning, default = text.removesuffix("]").rsplit("  [default: ", 1)
        keys = ", ".join(f"`{name.removeprefix('--')}`" for name in names.split(", "))
        cells = (keys, kind.lower(), f"`{default}`", meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def command_help() -> str:
    """`--help` of every sub-command."""
    parts = []
    for name in COMMANDS:
        command = group.get_command(None, name)
        context = click.Context(command, info_name=f"qlseg {name}", max_content_width=100, terminal_width=100)
        parts.append(f"## qlseg {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)
