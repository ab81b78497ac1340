#!/usr/bin/env python3
"""Port a released (or fine-tuned) QLSeg `.pth` checkpoint to a folder for `from_pretrained`.

    python convert_checkpoints.py CHECKPOINT OUTPUT_DIR [--variant NAME] [--labels FILE] [--ema]
    [--dtype float32] [--push-to-hub ID [--private] [--revision BRANCH]]

Neither mmcv nor mmsegmentation is needed. Nothing in the file is executed: tensors are read with `weights_only=True`
and the configuration text inside is parsed, never run. Every key of the file is used or dropped with a reason;
anything missing, unexpected, misshapen or not finite is named, and then nothing is written.
"""

import argparse
import ast
import math
import os
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from qlseg_hf import RELEASES, QLSegConfig, QLSegForSemanticSegmentation, QLSegImageProcessor, QLSegViTConfig
from qlseg_hf.command_line import exit_status, first_line
from qlseg_hf.configuration_qlseg import as_pair, read_label_file
from qlseg_hf.files import file_sha256, partial_folder
from qlseg_hf.hub import prepare_repo, upload_folder
from qlseg_hf.image_processing_qlseg import RELEASE_PROCESSING
from qlseg_hf.model_card import converted_model_card

# The key table. Named groups are indices; those in ONE_BASED count from 1 in the checkpoint. `{qkv}` stands for three
# keys: the rows of a packed projection are q, k and v, stacked.
ONE_BASED = ("branch", "fusion_block")
LAYER = r"decode_head\.atm_(?P<block>\d+)_decoder_(?P<branch>\d+)\.layers\.(?P<layer>\d+)"
NEW_LAYER = "decoder.blocks.{block}.branches.{branch}.{layer}"
PIXEL_LAYER = r"decode_head\.transformer\.encoder\.layers\.(?P<layer>\d+)"
KEY_TABLE = {
    r"backbone\.patch_embed\.projection\.(?P<p>weight|bias)": "backbone.embeddings.projection.{p}",
    r"backbone\.pos_embed": "backbone.embeddings.position_embeddings",
    r"backbone\.layers\.(?P<layer>\d+)\.ln1\.(?P<p>weight|bias)": "backbone.layers.{layer}.layernorm_before.{p}",
    r"backbone\.layers\.(?P<layer>\d+)\.ln2\.(?P<p>weight|bias)": "backbone.layers.{layer}.layernorm_after.{p}",
    r"backbone\.layers\.(?P<layer>\d+)\.attn\.attn\.in_proj_(?P<p>weight|bias)": (
        "backbone.layers.{layer}.attention.{qkv}_proj.{p}"
    ),
    r"backbone\.layers\.(?P<layer>\d+)\.attn\.attn\.out_proj\.(?P<p>weight|bias)": (
        "backbone.layers.{layer}.attention.o_proj.{p}"
    ),
    r"backbone\.layers\.(?P<layer>\d+)\.ffn\.layers\.0\.0\.(?P<p>weight|bias)": "backbone.layers.{layer}.mlp.fc1.{p}",
    r"backbone\.layers\.(?P<layer>\d+)\.ffn\.layers\.1\.(?P<p>weight|bias)": "backbone.layers.{layer}.mlp.fc2.{p}",
    r"decode_head\.pd_input_proj\.(?P<level>\d+)\.0\.(?P<p>weight|bias)": "pixel_encoder.projections.{level}.{p}",
    r"decode_head\.pd_input_proj\.(?P<level>\d+)\.1\.(?P<p>weight|bias)": "pixel_encoder.norms.{level}.{p}",
    r"decode_head\.transformer\.level_embed": "pixel_encoder.level_embeddings",
    PIXEL_LAYER
    + r"\.self_attn\.(?P<part>sampling_offsets|attention_weights|value_proj|output_proj)\.(?P<p>weight|bias)": (
        "pixel_encoder.layers.{layer}.self_attn.{part}.{p}"
    ),
    PIXEL_LAYER + r"\.linear(?P<n>[12])\.(?P<p>weight|bias)": "pixel_encoder.layers.{layer}.fc{n}.{p}",
    PIXEL_LAYER + r"\.norm(?P<n>[12])\.(?P<p>weight|bias)": "pixel_encoder.layers.{layer}.norm{n}.{p}",
    r"decode_head\.input_proj_(?P<branch>\d+)\.(?P<p>weight|bias)": "decoder.projections.{branch}.{p}",
    r"decode_head\.proj_norm_(?P<branch>\d+)\.(?P<p>weight|bias)": "decoder.norms.{branch}.{p}",
    r"decode_head\.query_(?P<branch>\d+)\.weight": "decoder.queries[{branch}]",
    LAYER + r"\.self_attn\.in_proj_(?P<p>weight|bias)": NEW_LAYER + ".self_attn.{qkv}_proj.{p}",
    LAYER + r"\.self_attn\.out_proj\.(?P<p>weight|bias)": NEW_LAYER + ".self_attn.o_proj.{p}",
    LAYER + r"\.multihead_attn\.(?P<part>[qkv])\.(?P<p>weight|bias)": NEW_LAYER + ".cross_attn.{part}_proj.{p}",
    LAYER + r"\.multihead_attn\.proj\.(?P<p>weight|bias)": NEW_LAYER + ".cross_attn.o_proj.{p}",
    LAYER + r"\.linear(?P<n>[12])\.(?P<p>weight|bias)": NEW_LAYER + ".fc{n}.{p}",
    LAYER + r"\.norm(?P<n>[123])\.(?P<p>weight|bias)": NEW_LAYER + ".norm{n}.{p}",
    r"decode_head\.QFM_(?P<fusion_block>\d+)\.weights\.(?P<p>weight|bias)": (
        "decoder.blocks.{fusion_block}.query_fusion.weights.{p}"
    ),
    r"decode_head\.class_embed\.(?P<p>weight|bias)": "class_head.{p}",
}
DROPPED_KEYS = {
    r"backbone\.cls_token": "the network drops the class token before its first layer",
    r"decode_head\.loss_decode\.criterion\.empty_weight": "a constant of the loss, not a weight",
}
# Names as a file may have them: behind a prefix, or as a buffer of mmcv's EMAHook (`ema_` and underscores for dots)
_NAMES = "|".join(re.sub(r"\?P<\w+>", "?:", pattern) for pattern in (*KEY_TABLE, *DROPPED_KEYS))
_PREFIX = r"(?P<prefix>(?:[\w-]{1,40}\.){0,6})"  # stands in the card, so it is a path of modules and nothing else
KNOWN = re.compile(_PREFIX + rf"(?:(?P<name>{_NAMES})|ema_(?P<buffer>{_NAMES.replace(chr(92) + '.', '_')}))", re.A)
WRAPPERS = r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
AVERAGE_NAME = r"(?i)(?<![a-z])ema(?![a-z])|averaged?(?![a-z])"  # in the name of a dict or a prefix
AVERAGE_COUNTERS = r"(?:[\w.]+\.)?(?:n_averaged|steps?|num_updates|decay|initted)"
AVERAGE = "a moving average of the weights; --ema takes it instead of them"
PLAIN = "the weights without the moving average, which was taken instead of them"
# What training frameworks store beside weights; it is passed over, and no code of it runs
BESIDE_WEIGHTS = (
    r"(?:addict|deepspeed|lightning|lightning_fabric|mmcv|mmengine|mmseg|omegaconf|pytorch_lightning|yacs)\..+"
    r"|numpy\.(?:_?core\.(?:multiarray\._reconstruct|numeric\._frombuffer)|ndarray|dtypes\.\w+)"
    r"|argparse\.Namespace|collections\.(?:defaultdict|deque)|datetime\.\w+|pathlib\.[\w.]+|typing\.Any"
    r"|builtins\.(?:bool|dict|float|int|list|object|str|tuple)|copyreg\._reconstructor"
)
# data sets of mmsegmentation 1 whose label 0 is void unless the text says otherwise
VOID_IS_ZERO = ("ADE20KDataset", "ISPRSDataset", "LoveDADataset", "PascalContextDataset59", "PotsdamDataset")
STRIP = (
    "python -c \"import torch; c = torch.load('%s', weights_only=False); m = c.get('meta', {}); torch.save({'meta': "
    "{k: m[k] for k in ('config', 'cfg', 'CLASSES', 'PALETTE', 'dataset_meta') if k in m}, 'state_dict': "
    "c['state_dict']}, 'stripped.pth')\""
)

MOST_TEXT = 1 << 20  # letters of a configuration text; the released ones have some ten thousand


class ConversionError(ValueError):
    """A sentence for the user: what is wrong with the checkpoint or the arguments."""


@dataclass
class Conversion:
    """A converted checkpoint, before it is written."""

    config: QLSegConfig
    processor: QLSegImageProcessor
    state_dict: dict[str, torch.Tensor]
    used: dict[str, list[str]]  # source key -> our keys
    dropped: dict[str, str]  # source key -> reason
    notes: list[str] = field(default_factory=list)


# ------------------------------------------------------------------------------------------------ reading the file


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
    places = dict(state_dicts(content))
    if not places:  # no name is known: what it is instead
        inner = content.get("state_dict", content) if isinstance(content, dict) else None
        if not isinstance(inner, dict) or not inner or not all(isinstance(key, str) for key in inner):
            raise ConversionError(
                f"{path} holds no state dict; a checkpoint of mmsegmentation or a bare state dict is wanted"
            )
        places = {"state_dict" if inner is not content else "": inner}
    meta = next((part["meta"] for part in along(content, [*places][0]) if isinstance(part.get("meta"), dict)), {})
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
    refuse_claims(path, taken.weights)
    return Checkpoint(taken.weights, meta, taken.keys, dropped, notes)


def read_safetensors(path: Path) -> dict:
    """Tensors by name, and as meta a configuration text if the file's own metadata has one."""
    try:
        with safe_open(path, framework="pt") as file:
            texts = {key: text for key, text in (file.metadata() or {}).items() if key in ("config", "cfg")}
            return {"state_dict": {key: file.get_tensor(key) for key in file.keys()}, "meta": texts}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConversionError(f"{path} is no safetensors file, or is truncated: {first_line(error)}") from error


def read_pickle(path: Path):
    """What `torch.save` wrote, with nothing in the place of objects of training frameworks."""
    is_archive = zipfile.is_zipfile(path)
    if is_archive:
        refuse_damaged_archive(path)
    # mmcv stores the best score as a NumPy scalar; under NumPy 1 and 2 its constructor has two names
    allowed = [(stored_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    allowed.append((StoredDtype, "numpy.dtype"))
    while True:
        try:
            with torch.serialization.safe_globals(allowed):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
        except UnpicklingError as error:
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            name = found and (found[1] if "." in found[1] else f"builtins.{found[1]}")
            if name and re.fullmatch(BESIDE_WEIGHTS, name) and all(name != known for _, known in allowed):
                allowed.append((Nothing, name))
                continue
            what = f"the Python object {found[1]}, which is not run" if found else "no PyTorch checkpoint"
            remedy = f"; if you trust the file, strip it (this runs it): {STRIP % path.name}" if found else ""
            raise ConversionError(f"{path} holds {what}; only tensors and plain data are read{remedy}") from error
        except Exception as error:  # a stranger's file may provoke any
            raise ConversionError(f"{path} is no PyTorch checkpoint, or is truncated: {first_line(error)}") from error


class Nothing:
    """In the place of an object that weights do not need; takes everything and keeps nothing."""

    def __new__(cls, *_, **__):
        return object.__new__(cls)

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, state) -> None:
        pass


def state_dicts(content, place: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, dict]]:
    """(`model.state_dict`, dict) for every dict in a file that holds a weight of the network; each dict once."""
    seen = set() if seen is None else seen
    if not isinstance(content, dict) or id(content) in seen:
        return
    seen.add(id(content))
    texts = {key: value for key, value in content.items() if isinstance(key, str)}
    if any(isinstance(value, torch.Tensor) and KNOWN.fullmatch(unwrapped(key)) for key, value in texts.items()):
        yield place, content
    elif place.count(".") < 3:
        for key, value in texts.items():
            if re.fullmatch(r"(?ai)(?!.*(?:optim|sched))[\w-]{1,40}", key):  # it may stand in the card
                yield from state_dicts(value, f"{place}.{key}".lstrip("."), seen)


def along(content, place: str) -> Iterator[dict]:
    """The dicts on the way to a place."""
    for key in place.split("."):
        if isinstance(content, dict):
            yield content
            content = content.get(key)


def unwrapped(key: str) -> str:
    """A key without the names that compiling and distributing put between those of the network."""
    start = re.search(r"(?:^|\.)(?:backbone|decode_head)\.", key)
    return key[: start.end()] + re.sub(WRAPPERS, "", key[start.end() :]) if start else key


def split_networks(place: str, state_dict: dict) -> tuple[list[Network], dict[str, str]]:
    """The networks of a dict by their prefixes, and {key: reason} of counters beside a moving average."""
    networks, rest, dropped = {}, [], {}
    for key, value in state_dict.items():
        match = KNOWN.fullmatch(unwrapped(key)) if isinstance(key, str) else None
        if match is None:
            rest.append(key)
            continue
        is_buffer = match["buffer"] is not None
        prefix = match["prefix"]
        is_average = is_buffer or re.search(AVERAGE_NAME, f"{place}.{prefix}") is not None
        network = networks.setdefault((prefix, is_buffer), Network(place, prefix, is_average, is_buffer))
        network.add(restored(match["buffer"]) if is_buffer else match["name"], key, value)
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
        parts = [f"{len(n.weights)} keys {place_of(n)}" for n in wanted]
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
    if any(unwrapped(key) != key for key in taken.keys.values()):
        notes.append("Names of wrappers inside the keys (_orig_mod and the like) were taken off.")
    return taken, notes


def place_of(network: Network) -> str:
    prefix = f"with the prefix {network.prefix}" if network.prefix else "without a prefix"
    return f"{prefix} in {network.place}" if network.place else prefix


def restored(name: str) -> str:
    """A name with underscores for dots, as mmcv's EMAHook makes it, in the network's own spelling."""
    for pattern in (*KEY_TABLE, *DROPPED_KEYS):
        if match := re.fullmatch(pattern.replace(r"\.", "_"), name):
            return re.sub(r"\(\?P<(\w+)>[^)]*\)", lambda group: match[group[1]], pattern).replace(r"\.", ".")  # noqa: B023
    raise AssertionError(name)


def refuse_damaged_archive(path: Path) -> None:
    """ConversionError if a zip archive is not what `torch.save` writes, or a checksum in it does not match."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            is_compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if is_compressed or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise ConversionError(f"{path} is no PyTorch checkpoint: it unpacks to more than it holds")
            damaged = archive.testzip()
    except ConversionError:
        raise
    except Exception as error:  # zipfile raises half a dozen kinds
        raise ConversionError(f"{path} is no PyTorch checkpoint, or is damaged: {first_line(error)}") from error
    if damaged is not None:
        raise ConversionError(f"{path} is damaged: the checksum of {damaged} does not match; copy the file again")


def is_plain(value: torch.Tensor) -> bool:
    """Is this a dense tensor of numbers that lies in memory?"""
    return (
        type(value) in (torch.Tensor, torch.nn.Parameter)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and 0 not in value.shape
    )


def refuse_claims(path: Path, state_dict: dict[str, torch.Tensor]) -> None:
    """ConversionError if the weights would take more memory than the file, as repeated (expanded) tensors do."""
    claimed = sum(math.prod(value.shape) * value.element_size() for value in state_dict.values())
    if claimed > path.stat().st_size:
        raise ConversionError(
            f"{path} claims {claimed:.3g} bytes of weights and has {path.stat().st_size:.3g}; store every tensor whole"
        )


class StoredDtype:
    """In the place of `numpy.dtype`, which a stranger's file could make of any size."""

    def __init__(self, kind: str, *_):
        self.kind = kind

    def __setstate__(self, state) -> None:
        """Byte order and the like; the files are little-endian."""


def stored_scalar(dtype: StoredDtype, data: bytes) -> float | int:
    """In the place of NumPy's constructor of scalars."""
    if dtype.kind not in ("f4", "f8", "i4", "i8"):
        raise UnpicklingError(f"a NumPy scalar of type {dtype.kind!r:.40}")
    return np.frombuffer(data, dtype=f"<{dtype.kind}", count=1)[0].item()


def parse_configuration(text: str) -> dict:
    """Assignments of literals and `dict(...)` calls as a dict. Parsed with `ast`; nothing is run."""

    def value(node: ast.AST):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
            if not node.args and all(keyword.arg for keyword in node.keywords):
                return {keyword.arg: value(keyword.value) for keyword in node.keywords}
        elif isinstance(node, ast.Dict) and None not in node.keys:
            return {value(k): value(v) for k, v in zip(node.keys, node.values)}
        elif isinstance(node, (ast.List, ast.Tuple)):
            return [value(element) for element in node.elts]
        elif isinstance(node, (ast.Constant, ast.UnaryOp)):
            return ast.literal_eval(node)
        raise ConversionError(
            f"the configuration text holds `{ast.unparse(node)[:60]}`, which is neither literal nor dict(...)"
        )

    if len(text) > MOST_TEXT:
        raise ConversionError(
            f"the configuration text inside the checkpoint has {len(text)} letters; at most {MOST_TEXT}"
        )
    try:
        tree = ast.parse(text)
        for node in tree.body:
            if not isinstance(node, ast.Assign) or len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
                raise ConversionError(
                    f"the configuration text holds `{ast.unparse(node)[:60]}`, which is no plain assignment"
                )
        return {node.targets[0].id: value(node.value) for node in tree.body}
    except ConversionError:
        raise
    except (MemoryError, RecursionError) as error:
        raise ConversionError("the configuration text inside the checkpoint is nested too deeply") from error
    except (SyntaxError, TypeError, ValueError) as error:
        raise ConversionError(f"the configuration text inside the checkpoint cannot be parsed: {error}") from error


def find_transform(steps, kind: str) -> dict:
    """First transform called `kind` in a pipeline of mmsegmentation, also inside `transforms`; {} if there is none."""
    for step in steps or []:
        if str(step.get("type")).rpartition(".")[2] == kind:  # mmengine may write `mmseg.Resize`
            return step
        if found := find_transform(step.get("transforms"), kind):
            return found
    return {}


# ---------------------------------------------------------------------- three sources of numbers, which must agree


def numbers_from_shapes(state_dict: dict[str, torch.Tensor]) -> dict:
    """What the shapes give. Raises ConversionError if the keys that say it are missing."""

    def shape(key: str) -> torch.Size:
        if key not in state_dict:
            raise ConversionError(f"the checkpoint has no key {key}, so it is no QLSeg network (or a stripped one)")
        return state_dict[key].shape

    def count(pattern: str, start: int = 0) -> int:
        """How many indices follow each other from `start`; a stray one is named later, as an unexpected key."""
        indices = {int(match[1]) for key in state_dict if (match := re.match(pattern, key))}
        return next(n for n in range(len(indices) + 1) if start + n not in indices)

    patch = shape("backbone.patch_embed.projection.weight")
    tokens = shape("backbone.pos_embed")[1] - 1
    queries = shape("decode_head.query_1.weight")
    if len(patch) != 4 or len(queries) != 2:
        raise ConversionError("backbone.patch_embed.projection.weight or decode_head.query_1.weight is misshapen")
    levels = count(r"decode_head\.(?:query|input_proj|proj_norm|atm_0_decoder)_(\d+)\.", start=1)
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ConversionError(
            f"backbone.pos_embed has {tokens} positions beside the class token, which is no square grid"
        )
    return {
        "width": patch[0],
        "num_channels": patch[1],
        "patch_size": patch[2],
        "num_layers": count(r"backbone\.layers\.(\d+)\."),
        "mlp_width": shape("backbone.layers.0.ffn.layers.0.0.weight")[0],
        "image_size": side * patch[2],
        "num_labels": queries[0],
        "decoder_width": queries[1],
        "num_levels": levels,
        "num_blocks": count(r"decode_head\.atm_(\d+)_decoder_"),
        "num_decoder_layers": count(r"decode_head\.atm_0_decoder_1\.layers\.(\d+)\."),
        "decoder_mlp_width": shape("decode_head.atm_0_decoder_1.layers.0.linear1.weight")[0],
        "num_pixel_layers": count(r"decode_head\.transformer\.encoder\.layers\.(\d+)\."),
        "pixel_mlp_width": shape("decode_head.transformer.encoder.layers.0.linear1.weight")[0],
        "num_samples": shape("decode_head.transformer.encoder.layers.0.self_attn.attention_weights.weight")[0],
        "num_runs": shape("decode_head.QFM_1.weights.weight")[1] // max(levels, 1),
    }


def numbers_from_text(text: str) -> dict:
    """What the configuration text gives; entries it does not state are left out."""
    settings = parse_configuration(text)
    model = settings.get("model") or {}
    if "backbone" not in model or "decode_head" not in model:
        raise ConversionError(
            "the configuration text has no model with backbone and decode_head, so it is not QLSeg's"
        )
    backbone, head = model["backbone"], model["decode_head"]
    if backbone.get("final_norm") or backbone.get("with_cls_token"):
        raise ConversionError("the text asks for a final norm or for the class token in the output; QLSeg has neither")
    test_cfg = model.get("test_cfg") or settings.get("test_cfg") or {}
    data = {split: dataset_of(settings, split) for split in ("test", "train")}
    test, train = (settings.get(f"{split}_pipeline") or data[split].get("pipeline") for split in data)
    preprocessor = model.get("data_preprocessor") or settings.get("data_preprocessor") or {}  # of mmengine
    normalize = find_transform(test, "Normalize") or settings.get("img_norm_cfg") or preprocessor
    is_rgb = normalize.get("bgr_to_rgb", False) if normalize is preprocessor else normalize.get("to_rgb", True)
    if "mean" in normalize and not is_rgb:
        raise ConversionError("the text's network takes BGR pictures (to_rgb or bgr_to_rgb is not true); QLSeg's RGB")
    resize = find_transform(test, "Resize")
    scale = find_transform(test, "MultiScaleFlipAug").get("img_scale")
    if scale is None and resize.get("keep_ratio"):
        scale = resize.get("scale")
    edge = find_transform(test, "ResizeShortestEdge").get("scale")
    min_size = resize.get("min_size") or (min(edge) if isinstance(edge, list) else edge)
    reduce_labels = find_transform(train, "LoadAnnotations").get("reduce_zero_label")
    if reduce_labels is None and "train_dataloader" in settings:  # mmsegmentation 1: the data set's, if not said here
        kind = str(data["train"].get("type")).rpartition(".")[2]
        reduce_labels = data["train"].get("reduce_zero_label", kind in VOID_IS_ZERO)
    slides = test_cfg.get("mode") == "slide"
    side = backbone.get("img_size")
    found = {
        "width": backbone.get("embed_dims"),
        "num_channels": backbone.get("in_channels"),
        "patch_size": backbone.get("patch_size"),
        "num_layers": backbone.get("num_layers"),
        "num_heads": backbone.get("num_heads"),
        "image_size": square(side, "img_size") if side is not None else None,
        "drop_path": backbone.get("drop_path_rate"),
        "norm_eps": (backbone.get("norm_cfg") or {}).get("eps"),
        "layers": [i % backbone["num_layers"] for i in backbone["out_indices"]] if "out_indices" in backbone else None,
        "num_labels": head.get("num_classes"),
        "num_decoder_layers": head.get("num_layers"),
        "decoder_heads": head.get("num_heads"),
        "num_levels": head.get("use_stages"),
        "decoder_width": head.get("embed_dims"),
        "num_blocks": head.get("num_atm_layers"),
        "threshold": head.get("attn_mask_thre"),
        "num_pixel_layers": head.get("num_ps_layers"),
        "num_groups": head.get("compress_c"),
        "mean": normalize.get("mean"),
        "std": normalize.get("std"),
        "reduce_labels": reduce_labels,
        "slides": slides if test_cfg.get("mode") else None,
        "window": square(test_cfg["crop_size"], "test_cfg.crop_size") if slides else None,
        "stride": square(test_cfg["stride"], "test_cfg.stride") if slides else None,
        "short_side": max(min(scale), min_size or 0) if scale else min_size,
    }
    return {key: value for key, value in found.items() if value is not None}


def dataset_of(settings: dict, split: str) -> dict:
    """The data set of a split in a configuration of mmengine, out of what repeats it; {} if there is none."""
    dataset = (settings.get(f"{split}_dataloader") or {}).get("dataset") or {}
    while isinstance(dataset.get("dataset"), dict):
        dataset = dataset["dataset"]
    return dataset


def square(size, name: str) -> int:
    """The side of a square given as a number or an equal pair."""
    height, width = as_pair(tuple(size) if isinstance(size, list) else size)
    if height != width:
        raise ConversionError(f"the text's {name} {size} is not square")
    return height


def numbers_from_variant(name: str) -> dict:
    """What a released variant gives."""
    if name not in RELEASES:
        raise ConversionError(f"unknown variant {name!r}; choose one of {', '.join(RELEASES)}")
    config = QLSegConfig.for_release(name)
    backbone = config.backbone_config
    short_side, window, stride, (mean, std), reduce_labels = RELEASE_PROCESSING[name]
    return {
        "width": backbone.hidden_size,
        "num_channels": backbone.num_channels,
        "patch_size": backbone.patch_size,
        "num_layers": backbone.num_hidden_layers,
        "num_heads": backbone.num_attention_heads,
        "image_size": backbone.image_size,
        "drop_path": backbone.drop_path_rate,
        "norm_eps": backbone.layer_norm_eps,
        "layers": [stage - 1 for stage in backbone.out_indices],
        "num_labels": config.num_labels,
        "num_levels": len(backbone.out_indices),
        "decoder_width": config.hidden_size,
        "decoder_heads": config.num_attention_heads,
        "num_blocks": config.num_decoder_blocks,
        "num_decoder_layers": config.num_decoder_layers,
        "num_pixel_layers": config.num_pixel_encoder_layers,
        "num_groups": config.num_query_fusion_groups,
        "threshold": config.mask_threshold,
        "mean": [255 * m for m in mean],
        "std": [255 * s for s in std],
        "reduce_labels": reduce_labels,
        "slides": True,
        "window": window,
        "stride": stride,
        "short_side": short_side,
    }


def agreed_numbers(shapes: dict, text: dict | None, variant: str | None) -> dict:
    """One value per number. The file's text comes before the variant; whatever two sources state must agree."""
    if text is None and variant is None:
        raise ConversionError(
            "the checkpoint holds no configuration text of mmsegmentation (meta.config or meta.cfg), and shapes do "
            f"not give heads, levels and threshold; say --variant with one of {', '.join(RELEASES)}"
        )
    sources = {
        "shapes": shapes,
        "text": text or {},
        f"variant {variant}": numbers_from_variant(variant) if variant else {},
    }
    numbers, origin = {}, {}
    for source, values in sources.items():
        for key, value in values.items():
            if key in numbers and not same(numbers[key], value):
                raise ConversionError(
                    f"{key.replace('_', ' ')} is {numbers[key]} by the {origin[key]} but {value} by the {source}"
                )
            numbers.setdefault(key, value)
            origin.setdefault(key, source)
    needed = ("num_heads", "layers", "decoder_heads", "threshold", "num_groups", "mean", "std", "short_side")
    if unknown := [key.replace("_", " ") for key in needed if key not in numbers]:
        raise ConversionError(
            f"the configuration text does not state {', '.join(unknown)}; say --variant to fill them in"
        )
    run = -(-numbers["num_labels"] // numbers["num_groups"])
    if -(-numbers["num_labels"] // run) != numbers["num_runs"]:
        raise ConversionError(
            f"query fusion has {numbers['num_runs']} runs of labels by the shapes, which {numbers['num_labels']} "
            f"labels in {numbers['num_groups']} groups do not give"
        )
    if len(numbers["layers"]) != numbers["num_levels"]:
        raise ConversionError(
            f"layers {numbers['layers']} are returned, but the shapes have {numbers['num_levels']} levels"
        )
    return numbers


def same(a, b) -> bool:
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return math.isclose(a, b, rel_tol=1e-6)


# ------------------------------------------------------------------------------------------------------ conversion


def convert(
    state_dict: dict[str, torch.Tensor], meta: dict, variant: str | None = None, labels_file: Path | None = None
) -> Conversion:
    """Configuration, processor and renamed weights of a checkpoint.

    Args:
        state_dict: of the published implementation, without a prefix.
        meta: of mmcv (`config`, `CLASSES`, `PALETTE`), of mmengine (`cfg`, `dataset_meta`), or empty.
        variant: one of the released names, needed if there is no configuration text.
        labels_file: label names that take the place of those in the file.

    Raises:
        ConversionError: sources contradict each other, or keys are missing, unexpected, misshapen or not finite.
    """
    text = next((meta[key] for key in ("config", "cfg") if isinstance(meta.get(key), str)), None)
    try:
        shapes = numbers_from_shapes(state_dict)
        numbers = agreed_numbers(shapes, numbers_from_text(text) if text is not None else None, variant)
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ConversionError(f"shapes or configuration text are not QLSeg's: {first_line(error)}") from error
    notes = []
    names, palette = stored_labels(meta)
    if labels_file is not None:
        names, palette = read_label_file(labels_file)
    elif names is not None:
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise ConversionError("the classes in the checkpoint are no label names; give them with --labels")
        names = list(names)
    elif variant is not None:
        config = QLSegConfig.for_release(variant)
        names, palette = list(config.id2label.values()), config.palette
    else:
        names, palette = [f"LABEL_{i}" for i in range(numbers["num_labels"])], None
        notes.append("The file names no labels and --labels was not given: they are called LABEL_0, LABEL_1, ...")
    if len(names) != numbers["num_labels"]:
        raise ConversionError(f"{len(names)} label names for a network of {numbers['num_labels']} labels")
    try:
        config, processor = make_config(numbers, names, palette), make_processor(numbers)
    except (ArithmeticError, LookupError, StrictDataclassError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConversionError(f"the numbers of the configuration text make no network: {reason}") from error
    weights, used, dropped = rename(state_dict, config)
    if "short_side" in numbers and "window" in numbers and numbers["short_side"] < numbers["window"]:
        notes.append("The short side is below the window, so windows are smaller than the network was trained for.")
    return Conversion(config, processor, weights, used, dropped, notes)


def stored_labels(meta: dict) -> tuple:
    """Label names and palette as mmcv or mmengine store them, unchecked; None for what there is not."""
    dataset = meta.get("dataset_meta")
    for part in (meta, dataset if isinstance(dataset, dict) else {}):
        for classes, palette in (("CLASSES", "PALETTE"), ("classes", "palette")):
            if (names := part.get(classes)) is not None and names not in ((), []):
                return names, part.get(palette)
    return None, None


def make_config(numbers: dict, names: list[str], palette) -> QLSegConfig:
    heads = QLSegConfig().num_pixel_encoder_heads  # no source states it; 8 in every release
    points, rest = divmod(numbers["num_samples"], heads * numbers["num_levels"])
    if rest:
        raise ConversionError(f"{numbers['num_samples']} attention weights are not {heads} heads x levels x points")
    if palette is not None:
        try:
            palette = np.asarray(palette)
        except ValueError:  # rows of different lengths
            palette = np.zeros(0)
        is_whole = palette.dtype.kind in "iu" and palette.shape == (len(names), 3)
        if not is_whole or palette.min() < 0 or palette.max() > 255:
            raise ConversionError(f"the palette must hold {len(names)} RGB triples of 0..255")
        palette = palette.tolist()
    backbone = QLSegViTConfig(
        hidden_size=numbers["width"],
        num_hidden_layers=numbers["num_layers"],
        num_attention_heads=numbers["num_heads"],
        intermediate_size=numbers["mlp_width"],
        image_size=numbers["image_size"],
        patch_size=numbers["patch_size"],
        num_channels=numbers["num_channels"],
        layer_norm_eps=numbers.get("norm_eps", 1e-6),
        drop_path_rate=numbers.get("drop_path", 0.0),
        out_indices=[layer + 1 for layer in numbers["layers"]],
    )
    return QLSegConfig(
        backbone_config=backbone,
        hidden_size=numbers["decoder_width"],
        num_attention_heads=numbers["decoder_heads"],
        intermediate_size=numbers["decoder_mlp_width"],
        num_pixel_encoder_layers=numbers["num_pixel_layers"],
        num_pixel_encoder_heads=heads,
        num_pixel_encoder_points=points,
        pixel_encoder_intermediate_size=numbers["pixel_mlp_width"],
        num_decoder_blocks=numbers["num_blocks"],
        num_decoder_layers=numbers["num_decoder_layers"],
        num_query_fusion_groups=numbers["num_groups"],
        mask_threshold=numbers["threshold"],
        id2label=dict(enumerate(names)),
        palette=palette,
    )


def make_processor(numbers: dict) -> QLSegImageProcessor:
    return QLSegImageProcessor(
        size={"shortest_edge": numbers["short_side"]},
        do_sliding_window=numbers.get("slides", True),
        window_size=numbers.get("window", numbers["image_size"]),
        window_stride=numbers.get("stride", numbers["image_size"]),
        image_mean=[round(m / 255, 12) for m in numbers["mean"]],
        image_std=[round(s / 255, 12) for s in numbers["std"]],
        do_reduce_labels=numbers.get("reduce_labels", False),
    )


def rename(state_dict: dict[str, torch.Tensor], config: QLSegConfig):
    """Our weights, {source key: our keys}, {dropped key: reason}. Every key is accounted for, or this raises."""
    with torch.device("meta"):
        wanted = {key: value.shape for key, value in QLSegForSemanticSegmentation(config).state_dict().items()}
    parts, used, dropped, problems = {}, {}, {}, []
    for key, value in tqdm(state_dict.items(), desc="reading weights", unit="key", leave=False):
        reason = next((reason for pattern, reason in DROPPED_KEYS.items() if re.fullmatch(pattern, key)), None)
        if reason:
            dropped[key] = reason
            continue
        names = new_names(key)
        if not names:
            problems.append(f"unexpected key {key}")
            continue
        if not torch.isfinite(value).all():
            problems.append(f"{key} holds values that are not finite")
        if key == "backbone.pos_embed":
            value = value[:, 1:]
        if value.shape[0] % len(names):
            problems.append(f"{key} has shape {tuple(value.shape)}, whose rows are not q, k and v")
            continue
        used[key] = names
        for name, part in zip(names, value.chunk(len(names))):
            shape = wanted.get(name, wanted.get(name.split("[")[0], [None])[1:])
            if not shape:
                problems.append(f"unexpected key {key}: this network has no {name}")
            elif tuple(part.shape) != tuple(shape):
                problems.append(f"{key} has shape {tuple(part.shape)} instead of {tuple(shape)}")
            else:
                parts[name] = part
    stacked = {name for name in wanted if f"{name}[0]" in parts}
    for name in wanted:
        members = [f"{name}[{i}]" for i in range(wanted[name][0])] if name in stacked else [name]
        problems += [f"missing key {old_name(member)}" for member in members if member not in parts]
    if problems:
        more = f" (and {len(problems) - 6} more)" if len(problems) > 6 else ""
        raise ConversionError(f"the checkpoint does not fit: {'; '.join(problems[:6])}{more}")
    weights = {
        name: torch.stack([parts[f"{name}[{i}]"] for i in range(wanted[name][0])])
        if name in stacked
        else parts[name].clone(memory_format=torch.contiguous_format)
        for name in wanted
    }
    return weights, used, dropped


def new_names(key: str) -> list[str]:
    """Our keys for a key of the checkpoint: none, one, or three for a packed projection."""
    for pattern, template in KEY_TABLE.items():
        if match := re.fullmatch(pattern, key):
            groups = {
                k: int(v) - (k in ONE_BASED) if v.isdigit() and k != "n" else v for k, v in match.groupdict().items()
            }
            return [template.format(**groups, qkv=part) for part in ("qkv" if "{qkv}" in template else ("",))]
    return []


def old_name(name: str) -> str:
    """The checkpoint's key for one of ours: `new_names` backwards, for telling what is missing."""
    kinds = {"p": "weight|bias", "qkv": "[qkv]", "part": r"\w+"}
    for pattern, template in KEY_TABLE.items():
        texts = re.split(r"\{(\w+)\}", template)
        texts[1::2] = [f"(?P<{group}>{kinds.get(group, '[0-9]+')})" for group in texts[1::2]]
        texts[::2] = map(re.escape, texts[::2])
        if match := re.fullmatch("".join(texts), name):
            key = pattern.replace("\\.", ".")
            for group, value in match.groupdict().items():
                value = str(int(value) + 1) if group in ONE_BASED else value
                key = re.sub(rf"\(\?P<{group}>[^)]*\)", value, key)
            if name in new_names(key):
                return key
    return name


def key_family(key: str) -> str:
    """A key with its indices replaced by a star, for the summary."""
    return re.sub(r"(?<=[._])\d+(?=[._]|$)", "*", key)


# ---------------------------------------------------------------------------------------------- writing the folder


def save(conversion: Conversion, folder: Path, source: Path, dtype: torch.dtype | None) -> None:
    """Write model, processor and card beside `folder`, then move them into place in one step."""
    with torch.device("meta"):
        model = QLSegForSemanticSegmentation(conversion.config)
    model.load_state_dict(conversion.state_dict, assign=True)
    if dtype is not None:
        model.to(dtype)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConversionError(f"{folder} exists and is not an empty folder; choose another or remove it")
        with partial_folder(folder.name, folder.parent) as beside:
            model.save_pretrained(beside)
            conversion.processor.save_pretrained(beside)
            families = Counter(
                (key_family(old), ", ".join(map(key_family, new))) for old, new in conversion.used.items()
            )
            card = converted_model_card(
                model,
                conversion.processor,
                name=folder.resolve().name,
                source_name=source.name,
                source_sha256=file_sha256(source),
                key_families=[(count, old, new) for (old, new), count in families.items()],
                used=conversion.used,
                dropped=conversion.dropped,
                notes=conversion.notes,
            )
            (beside / "README.md").write_text(card, encoding="utf-8")
            os.replace(beside, folder)
    except OSError as error:
        raise ConversionError(f"{folder} cannot be written: {first_line(error)}") from error


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help=".pth or .safetensors file of the published implementation")
    parser.add_argument("output_dir", type=Path, help="folder to make; must not exist or be empty")
    parser.add_argument("--variant", help=f"released network, if the file does not say: {', '.join(RELEASES)}")
    parser.add_argument("--labels", type=Path, help="label names instead of the file's: JSON, or one per line")
    parser.add_argument("--ema", action="store_true", help="take the moving average of the weights instead of them")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="of the weights; as stored by default"
    )
    parser.add_argument("--push-to-hub", metavar="ID", help="also upload the folder as this model repository")
    parser.add_argument("--private", action="store_true", default=None, help="make that repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to upload to, made if need be (default: main)")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    checkpoint = read_checkpoint(args.checkpoint, args.ema)
    try:
        conversion = convert(checkpoint.state_dict, checkpoint.meta, args.variant, args.labels)
    except ValueError as error:
        raise ConversionError(f"{args.checkpoint}: {error}") from error
    # the file's own keys
    conversion.used = {checkpoint.keys[name]: ours for name, ours in conversion.used.items()}
    conversion.dropped = {checkpoint.keys[name]: why for name, why in conversion.dropped.items()} | checkpoint.dropped
    conversion.notes = checkpoint.notes + conversion.notes
    place = {"private": args.private, "revision": args.revision}
    if args.push_to_hub:
        args.push_to_hub = prepare_repo(args.push_to_hub, **place)  # before there is a folder, if it is refused
    elif any(place.values()):
        raise ConversionError("--private and --revision belong to --push-to-hub ID; give that too")
    save(conversion, args.output_dir, args.checkpoint, getattr(torch, args.dtype) if args.dtype else None)
    parameters = sum(value.numel() for value in conversion.state_dict.values())
    print(f"{args.output_dir}: {parameters / 1e6:.1f} M parameters, {len(conversion.used)} keys used")
    for reason in dict.fromkeys(conversion.dropped.values()):
        keys = [key for key, why in conversion.dropped.items() if why == reason]
        print(f"dropped {', '.join(keys) if len(keys) < 4 else f'{len(keys)} keys ({keys[0]}, ...)'}: {reason}")
    for note in conversion.notes:
        print(note)
    if args.push_to_hub:
        branch = f" --revision {args.revision}" if args.revision else ""
        print(f"uploading; to repeat that alone: hf upload {args.push_to_hub} {args.output_dir}{branch}")
        print(upload_folder(args.output_dir, args.push_to_hub, commit_message="Upload converted QLSeg", **place))


def main(arguments: list[str] | None = None) -> int:
    return exit_status("convert_checkpoints.py", run, parse_arguments(arguments))


if __name__ == "__main__":
    sys.exit(main())
