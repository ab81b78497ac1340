# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Recipes: one flat YAML file says what a training run does; unknown keys and values of a wrong type are refused."""

import types
import typing
import warnings
from dataclasses import fields
from pathlib import Path

from ..model.processor_settings import rename_label_map
from ..utils.yaml_text import read_mapping, read_value
from .keys import Recipe
from .synonyms import hint_for

RECIPES = Path(__file__).parents[1] / "recipes"
OLD_NAMES = {"dataset": "data", "label_map": "label_mapping", "class_weights": "label_weights"}  # still read
OTHER_NAMES = {"batch_size": "total_batch_size", "lr": "learning_rate"}  # that stand for a key


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: a path, or the name of one that comes with the package.

    Raises:
        ValueError: there is none.
    """
    if Path(name).is_file():
        return Path(name)
    if str(name) in shipped_recipes():
        return RECIPES / f"{name}.yaml"
    raise ValueError(
        f"there is no recipe {str(name)[:80]}; give a YAML file, or one of {', '.join(shipped_recipes())}"
    )


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(path: str | Path | None, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        path: see `find_recipe`; a YAML file with one mapping, in which only `config`, `processor`, `label_names`,
            `label_colors`, `label_mapping`, `label_weights` and `extra_data` may hold mappings. None if overrides say
            it all.
        overrides: `--key value` pairs (or `--key=value`), values in YAML.

    Where `data` is a YAML file as `qlseg check` writes it, its keys count more than the recipe's, and the overrides
    more than both. `epochs` among the overrides takes the place of the recipe's `max_steps`.

    Raises:
        ValueError: not YAML or not flat, an unknown key (the nearest valid one is named), a value of a wrong type, or
            a key without a value.
    """
    source = "the command line" if path is None else find_recipe(path)
    values = {} if path is None else read_mapping(Path(source))
    try:
        return check_values(merge_values(values, overrides))
    except ValueError as error:
        raise ValueError(f"{source}{' with these overrides' if overrides and path else ''}: {error}") from error


def merge_values(values: dict, overrides: list[str] | tuple[str, ...]) -> dict:
    """Values of a file with overrides and a `data.yaml`, by the present names of the keys; see `load_recipe`."""
    values, given = rename_old_keys(values), read_overrides(overrides)
    if "epochs" in given and "max_steps" not in given:
        values.pop("max_steps", None)
    merged = values | given
    if not is_data_file(merged.get("data")):
        return merged
    data = read_data_file(Path(merged["data"]))
    merged = values | data | {key: value for key, value in given.items() if key != "data"}
    parts = [part.get("processor") or {} for part in (values, data, given)]
    if all(isinstance(part, dict) for part in parts) and any(parts):
        merged["processor"] = parts[0] | parts[1] | parts[2]
    return merged


def read_overrides(overrides: list[str] | tuple[str, ...]) -> dict:
    """{key: value} of `--key value` pairs, by the present names of the keys."""
    parts = [part for text in overrides for part in (text.split("=", 1) if text.startswith("--") else [text])]
    if len(parts) % 2:
        raise ValueError(f"{parts[-1]} has no value; overrides are written --key value")
    values: dict = {}
    for key, text in zip(parts[::2], parts[1::2]):
        if not key.startswith("--"):
            raise ValueError(f"{key} is not an override; write --key value")
        plain = key[2:].replace("-", "_")  # an unknown name stays as it was written
        is_known = plain in Recipe.__dataclass_fields__ or plain in OTHER_NAMES or plain in OLD_NAMES
        values[plain if is_known else key[2:]] = read_value(key, text)
    return rename_old_keys(values)


def is_data_file(data) -> bool:
    """Whether `data` names a `data.yaml`."""
    return isinstance(data, str) and data.lower().endswith((".yaml", ".yml")) and Path(data).expanduser().is_file()


def read_data_file(path: Path) -> dict:
    """Keys that describe data, as `qlseg check --output DIR` writes them to DIR/data.yaml.

    A path to the data may be relative to the file. ValueError if it names no data.
    """
    values = rename_old_keys(read_mapping(path.expanduser()))
    data = values.get("data")
    if not isinstance(data, str):
        raise ValueError(f"{path} names no data; write data: FOLDER into it")
    beside = path.expanduser().parent / Path(data).expanduser()
    return values | {"data": str(beside) if beside.exists() else data}


def check_values(values: dict) -> Recipe:
    """A recipe from what its file and the overrides hold; ValueError for an unknown key or a value of a wrong type."""
    known = {entry.name: entry for entry in fields(Recipe)}
    values = rename_old_keys(values)
    for key in values:
        if key not in known:
            raise ValueError(f"unknown key {str(key)[:80]}; {hint_for(str(key), list(known))}")
    if values.get("data") is None:
        raise ValueError("the recipe lacks data")
    values, hints = number_label_colors(values), typing.get_type_hints(Recipe)
    return Recipe(**{key: convert_value(key, value, hints[key]) for key, value in values.items()})


def number_label_colors(values: dict) -> dict:
    """Values in which `label_colors`, a mapping or a file of one, is by label; names in place of labels name them.

    ValueError if names and numbers of labels are mixed; the number of void, such as 255, may stand beside names.
    """
    colors = values.get("label_colors")
    if isinstance(colors, str):
        colors = read_mapping(Path(colors).expanduser())
    if names := [label for label in colors if isinstance(label, str)] if isinstance(colors, dict) else []:
        if mixed := [label for label in colors if label in range(len(names))]:
            raise ValueError(
                f"label_colors names {names[0]!r} and others, and numbers {mixed[0]}; give names to all labels"
            )
        colors = {names.index(label) if label in names else label: color for label, color in colors.items()}
        values = values | {"label_names": values.get("label_names") or names}
    return values if colors is None else values | {"label_colors": colors}


def rename_old_keys(values: dict, warn: bool = True) -> dict:
    """Values by the full and present names of their keys; ValueError if one is given by two names.

    FutureWarning for an old name, unless `warn` is false, as for what an older version has written.
    """
    for other, name in (OLD_NAMES | OTHER_NAMES).items():
        if other in values:
            if name in values:
                raise ValueError(f"{other} is another name of {name}; give {name} alone")
            if warn and other in OLD_NAMES:
                warnings.warn(
                    f"the key {other} is now called {name}; the next version drops the old name",
                    FutureWarning,
                    stacklevel=2,
                )
            values = {name if key == other else key: value for key, value in values.items()}
    if isinstance(values.get("processor"), dict):
        values = values | {"processor": rename_label_map(values["processor"])}
    return values


def convert_value(key: str, value, wanted):
    """`value` as the type `wanted`, or ValueError. An integer passes as a float, and so does 1e-5, a text to YAML."""
    options = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    for option in options:
        origin = typing.get_origin(option)
        if option is type(None) and value is None:
            return None
        if option is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                return float(value)
            except ValueError:
                continue
        if origin is list and isinstance(value, list):
            return [convert_value(key, entry, typing.get_args(option)[0]) for entry in value]
        if origin is None and option in (int, bool, str, dict) and type(value) is option:
            return value
    names = " or ".join("null" if o is type(None) else getattr(o, "__name__", str(o)) for o in options)
    raise ValueError(f"{key} wants {names}, got {value!r}")


__all__ = ["Recipe", "load_recipe"]
