# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A stranger's file into tensors and plain data; nothing in it is executed."""

import re
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ..utils.text import first_line
from .errors import ConversionError

# What training frameworks store beside weights; it is passed over, and no code of it runs
BESIDE_WEIGHTS = (
    r"(?:addict|deepspeed|lightning|lightning_fabric|mmcv|mmengine|mmseg|omegaconf|pytorch_lightning|yacs)\..+"
    r"|numpy\.(?:_?core\.(?:multiarray\._reconstruct|numeric\._frombuffer)|ndarray|dtypes\.\w+)"
    r"|argparse\.Namespace|collections\.(?:defaultdict|deque)|datetime\.\w+|pathlib\.[\w.]+|typing\.Any"
    r"|builtins\.(?:bool|dict|float|int|list|object|str|tuple)|copyreg\._reconstructor"
)
# printed, never run here: for a file of one's own, which this loads as Python does, code and all
STRIP = (
    "python -c \"import torch; c = torch.load('%s', weights_only=False); m = c.get('meta', {}); torch.save({'meta': "
    "{k: m[k] for k in ('config', 'cfg', 'CLASSES', 'PALETTE', 'dataset_meta') if k in m}, 'state_dict': "
    "c['state_dict']}, 'stripped.pth')\""
)


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
        check_archive(path)
    # mmcv stores the best score as a NumPy scalar; under NumPy 1 and 2 its constructor has two names
    allowed = [(make_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
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


def check_archive(path: Path) -> None:
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


class StoredDtype:
    """In the place of `numpy.dtype`, which a stranger's file could make of any size."""

    def __init__(self, kind: str, *_):
        self.kind = kind

    def __setstate__(self, state) -> None:
        """Byte order and the like; the files are little-endian."""


def make_scalar(dtype: StoredDtype, data: bytes) -> float | int:
    """In the place of NumPy's constructor of scalars."""
    if dtype.kind not in ("f4", "f8", "i4", "i8"):
        raise UnpicklingError(f"a NumPy scalar of type {dtype.kind!r:.40}")
    return np.frombuffer(data, dtype=f"<{dtype.kind}", count=1)[0].item()


__all__ = ["read_pickle", "read_safetensors"]
