# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The network in a stranger's file, wherever it lies."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .errors import ConversionError
from .key_table import DROPPED_KEYS, KEY_TABLE, restore_dots
from .loading import read_pickle, read_safetensors

# Names as a file may have them: behind a prefix, or as a buffer of mmcv's EMAHook (`ema_` and underscores for dots)
_NAMES = "|".join(re.sub(r"\?P<\w+>", "?:", pattern) for pattern in (*KEY_TABLE, *DROPPED_KEYS))
_PREFIX = r"(?P<prefix>(?:[\w-]{1,40}\.){0,6})"  # stands in the card, so it is a path of modules and nothing else
KNOWN = re.compile(_PREFIX + rf"(?:(?P<name>{_NAMES})|ema_(?P<buffer>{_NAMES.replace(chr(92) + '.', '_')}))", re.A)
WRAPPERS = r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
AVERAGE_NAME = r"(?i)(?<![a-z])ema(?![a-z])|averaged?(?![a-z])"  # in the name of a dict or a prefix
AVERAGE_COUNTERS = r"(?:[\w.]+\.)?(?:n_averaged|steps?|num_updates|decay|initted)"
AVERAGE = "a moving average of the weights; --ema takes it instead of them"
PLAIN = "the weights without the moving average, which was taken instead of them"


@dataclass
class Checkpoint:
    """One network of a file, and what was done to get it."""

    state_dict: dict[str, torch.Tensor]  # named as the published implementation names it
    meta: dict  # of mmcv or mmengine; empty if stripped
    keys: dict[str, str]  # name -> key in the file
    dropped: dict[str, str]  # key in the file -> reason
    notes: list[str]


@dataclass
class Network:
    """Weights in a file that belong together: of one dict (`place`), with one prefix."""

    place: str
    prefix: str
    is_average: bool
    has_buffers: bool = False  # mmcv's, whose names have lost their dots
    weights: dict[str, torch.Tensor] = field(default_factory=dict)  # by name
    keys: dict[str, str] = field(default_factory=dict)  # name -> key in the dict

    def add(self, name: str, key: str, value) -> None:
        if name in self.weights:
            raise ConversionError(f"{self.keys[name]} and {key} are both {name} without prefix and wrappers; keep one")
        self.weights[name], self.keys[name] = value, key


def read_checkpoint(path: Path, ema: bool = False) -> Checkpoint:
    """A network of a `.pth` or `.safetensors` file, executing nothing.

    Wherever the weights lie (`state_dict`, `model`, `module`, the file itself), they are found by their names; the
    prefix that all of them have is taken off.

    Args:
        path: of the file.
        ema: take the moving average of the weights instead of them.

    Raises:
        ConversionError: no checkpoint, truncated, holding objects that only code could rebuild, no network or several,
            keys that are not of the network's prefix, or no moving average.
    """
    if not path.is_file():
        raise ConversionError(f"{path} does not exist or is not a file")
    content = read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    places = dict(find_state_dicts(content))
    if not places:  # no name is known: what it is instead
        inner = content.get("state_dict", content) if isinstance(content, dict) else None
        if not isinstance(inner, dict) or not inner or not all(isinstance(key, str) for key in inner):
            raise ConversionError(
                f"{path} holds no state dict; a checkpoint of mmsegmentation or a bare state dict is wanted"
            )
        places = {"state_dict" if inner is not content else "": inner}
    metas = (part.get("meta") for part in dicts_on_the_way(content, [*places][0]))
    meta = next((meta for meta in metas if isinstance(meta, dict)), {})
    try:
        networks, dropped = [], {}
        for place, state_dict in places.items():
            found, counters = split_networks(place, state_dict)
            networks += found
            dropped |= counters
        taken, notes = choose_network(networks, meta, ema)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error
    for other in networks:
        reason = AVERAGE if other.is_average else PLAIN
        where = f"{other.place}." if other.place != taken.place else ""
        dropped |= {where + key: reason for key in other.keys.values() if other is not taken}
    others = [taken.keys[name] for name, value in taken.weights.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ConversionError(
            f"{path}: {', '.join(others[:4])} are not tensors, so this is no state dict of a network"
        )
    strange = [taken.keys[name] for name, value in taken.weights.items() if not is_plain(value)]
    if strange:
        raise ConversionError(
            f"{path}: {', '.join(strange[:4])} are empty, or no dense tensors of numbers; if DeepSpeed ZeRO-3 has cut "
            "them up, join them with its zero_to_fp32.py"
        )
    check_claimed_size(path, taken.weights)
    return Checkpoint(taken.weights, meta, taken.keys, dropped, notes)


def find_state_dicts(content, place: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, dict]]:
    """(`model.state_dict`, dict) for every dict in a file that holds a weight of the network; each dict once."""
    seen = set() if seen is None else seen
    if not isinstance(content, dict) or id(content) in seen:
        return
    seen.add(id(content))
    texts = {key: value for key, value in content.items() if isinstance(key, str)}
    if any(isinstance(value, torch.Tensor) and KNOWN.fullmatch(strip_wrappers(key)) for key, value in texts.items()):
        yield place, content
    elif place.count(".") < 3:
        for key, value in texts.items():
            if re.fullmatch(r"(?ai)(?!.*(?:optim|sched))[\w-]{1,40}", key):  # it may stand in the card
                yield from find_state_dicts(value, f"{place}.{key}".lstrip("."), seen)


def dicts_on_the_way(content, place: str) -> Iterator[dict]:
    """The dicts on the way to a place."""
    for key in place.split("."):
        if isinstance(content, dict):
            yield content
            content = content.get(key)


def strip_wrappers(key: str) -> str:
    """A key without the names that compiling and distributing put between those of the network."""
    start = re.search(r"(?:^|\.)(?:backbone|decode_head)\.", key)
    return key[: start.end()] + re.sub(WRAPPERS, "", key[start.end() :]) if start else key


def split_networks(place: str, state_dict: dict) -> tuple[list[Network], dict[str, str]]:
    """The networks of a dict by their prefixes, and {key: reason} of counters beside a moving average."""
    networks, rest, dropped = {}, [], {}
    for key, value in state_dict.items():
        match = KNOWN.fullmatch(strip_wrappers(key)) if isinstance(key, str) else None
        if match is None:
            rest.append(key)
            continue
        is_buffer = match["buffer"] is not None
        prefix = match["prefix"]
        is_average = is_buffer or re.search(AVERAGE_NAME, f"{place}.{prefix}") is not None
        network = networks.setdefault((prefix, is_buffer), Network(place, prefix, is_average, is_buffer))
        network.add(restore_dots(match["buffer"]) if is_buffer else match["name"], key, value)
    whole = [network for network in networks.values() if not network.has_buffers] or [*networks.values()]
    whole = sorted(whole, key=lambda network: len(network.prefix), reverse=True) or [Network(place, "", False)]
    for key in rest:
        owner = next((network for network in whole if isinstance(key, str) and key.startswith(network.prefix)), None)
        if isinstance(key, str) and re.fullmatch(AVERAGE_COUNTERS, key):
            dropped[key] = "a counter of the moving average"
        elif owner is None:
            raise ConversionError(
                f"{key} lacks the prefix {whole[0].prefix!r} that others have; keep the keys of one network"
            )
        else:  # refused later, by name
            owner.add(key[len(owner.prefix) :], key, state_dict[key])
    return [*networks.values()] or whole, dropped


def choose_network(networks: list[Network], meta: dict, ema: bool) -> tuple[Network, list[str]]:
    """The network to convert, and sentences on what was done to find it."""
    notes = []
    by_place = {network.place: network for network in networks}
    if {"state_dict", "ema_state_dict"} <= set(by_place) and ("mmengine_version" in meta or "cfg" in meta):
        by_place["state_dict"].is_average, by_place["ema_state_dict"].is_average = True, False
        networks = [network for network in networks if network.place != "ema_state_dict"]
        notes.append(
            "mmengine's EMAHook exchanges both when it saves: state_dict is the moving average and was taken, "
            "ema_state_dict the weights without it."
        )
    averages = [network for network in networks if network.is_average]
    plain = [network for network in networks if not network.is_average]
    if ema and not averages:
        raise ConversionError("there is no moving average of the weights; leave --ema out")
    wanted = averages if ema or not plain else plain
    if len(wanted) > 1:
        parts = [f"{len(n.weights)} keys {describe_place(n)}" for n in wanted]
        raise ConversionError(f"the keys are not those of one network: {', '.join(parts)}; keep one of them")
    (taken,) = wanted
    if not plain and not notes:
        notes.append("The file holds a moving average of the weights only, which was taken.")
    if len(averages) == 1 and averages[0].has_buffers and "EpochBasedRunner" in str(meta.get("config")):
        notes.append(
            "mmcv's EMAHook exchanges both at the end of an epoch, and this file is of its EpochBasedRunner: what was "
            f"taken as the {'moving average' if ema else 'weights'} may be the other."
        )
    if taken.place not in ("", "state_dict"):
        notes.append(f"The weights are those of {taken.place}.")
    if taken.prefix:
        notes.append(f"Every key has the prefix {taken.prefix}, which was taken off.")
    if any(strip_wrappers(key) != key for key in taken.keys.values()):
        notes.append("Names of wrappers inside the keys (_orig_mod and the like) were taken off.")
    return taken, notes


def describe_place(network: Network) -> str:
    prefix = f"with the prefix {network.prefix}" if network.prefix else "without a prefix"
    return f"{prefix} in {network.place}" if network.place else prefix


def is_plain(value: torch.Tensor) -> bool:
    """Is this a dense tensor of numbers that lies in memory?"""
    return (
        type(value) in (torch.Tensor, torch.nn.Parameter)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and 0 not in value.shape
    )


def check_claimed_size(path: Path, state_dict: dict[str, torch.Tensor]) -> None:
    """ConversionError if the weights would take more memory than the file, as repeated (expanded) tensors do."""
    claimed = sum(math.prod(value.shape) * value.element_size() for value in state_dict.values())
    if claimed > path.stat().st_size:
        raise ConversionError(
            f"{path} claims {claimed:.3g} bytes of weights and has {path.stat().st_size:.3g}; store every tensor whole"
        )


__all__ = ["Checkpoint", "ConversionError", "read_checkpoint"]
