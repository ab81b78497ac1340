# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""YAML of recipes and `data.yaml`: plain data, of a file that may be a stranger's."""

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 1 << 20  # of a file


class RecipeLoader(yaml.SafeLoader):
    """YAML without what a flat file does not need: code (as in SafeLoader), aliases, which can grow without bounds,
    and keys given twice, of which the first would vanish."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*) are not read; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [key for key, count in counts.items() if count > 1]:
            raise yaml.YAMLError(f"{twice[0]} is given twice")
        return super().construct_mapping(node, deep)


class RecipeDumper(yaml.SafeDumper):
    """Writes what `RecipeLoader` reads."""

    def ignore_aliases(self, data) -> bool:
        return True


def read_yaml(text: str) -> Any:
    """Plain data; yaml.YAMLError, RecursionError or ValueError if that is not what the text holds."""
    loader = RecipeLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read_mapping(path: Path) -> dict[str, Any]:
    """A file with one mapping. ValueError if it is not YAML, or holds something else."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES} bytes")
        values = read_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `key: value` lines, not {type(values).__name__}")
    return values


def read_value(key: str, text: str) -> Any:
    """A value that was written on the command line. ValueError if it is not YAML."""
    try:
        return read_yaml(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"{key} {text} is not YAML: {' '.join(str(error).split())}") from error


def write_yaml(values: dict[str, Any]) -> str:
    """What `read_yaml` reads, a key a line, in their order."""
    return yaml.dump(values, Dumper=RecipeDumper, sort_keys=False)


def write_on_one_line(value: Any) -> str:
    """A value as it would be written on the command line."""
    options = {"default_flow_style": True, "width": 1 << 30, "sort_keys": False, "allow_unicode": True}
    return yaml.dump(value, Dumper=RecipeDumper, **options).removesuffix("\n...\n").strip()


__all__ = ["read_mapping", "read_value", "read_yaml", "write_on_one_line", "write_yaml"]
