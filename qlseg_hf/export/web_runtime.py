# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The files of onnxruntime-web that a page needs: from the npm registry, checked and kept, or from a folder.

onnxruntime-web is Microsoft's, under the MIT licence. The version and its SHA-512 are fixed here, so a registry or a
mirror cannot give another one; the hash is the `dist.integrity` that the npm registry states for that version.
"""

import base64
import hashlib
import io
import os
import shutil
import tarfile
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import get_session
from tqdm import tqdm

from ..utils.files import write_atomically
from ..utils.text import first_line

VERSION = "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
REGISTRY = "https://registry.npmjs.org"
# one build for processors alone, one with WebGPU; a browser loads one of them
FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
LICENSE = Path(__file__).parent / "templates" / "onnxruntime-web-LICENSE.txt"


def copy_runtime(place: Path, source: Path | None = None) -> None:
    """Write the FILES of onnxruntime-web and their licence into the new folder `place`.

    Args:
        place: the folder.
        source: a folder that has them, or has them in `dist` (`node_modules/onnxruntime-web`); not checked against a
            hash. Without it they come from the package of the npm registry, or `npm_config_registry` if that is set,
            which is kept below HF_HOME.

    Raises:
        ValueError: `source` lacks files, the registry cannot be reached, or what it gave has another hash.
    """
    place.mkdir()
    if source is not None:
        folder = source / "dist" if (source / "dist").is_dir() else source
        if missing := [name for name in FILES if not (folder / name).is_file()]:
            raise ValueError(
                f"{folder} has no {missing[0]}; give the folder `dist` of onnxruntime-web {VERSION}, with "
                f"{', '.join(FILES)}"
            )
        found = {name: (folder / name).read_bytes() for name in FILES}
    else:
        with tarfile.open(fileobj=io.BytesIO(_package()), mode="r:gz") as package:
            found = {name: package.extractfile(f"package/dist/{name}").read() for name in FILES}
    for name, content in found.items():
        (place / name).write_bytes(content)
    shutil.copyfile(LICENSE, place / "LICENSE.txt")


def _package() -> bytes:
    """The package of npm, 33 MB: the one that is kept, or fetched and kept now."""
    name = f"onnxruntime-web-{VERSION}.tgz"
    kept = Path(constants.HF_HOME) / "qlseg" / name
    if kept.is_file() and _integrity(content := kept.read_bytes()) == INTEGRITY:
        return content
    registry = os.environ.get("npm_config_registry", REGISTRY).rstrip("/")
    content = _fetch(f"{registry}/onnxruntime-web/-/{name}")
    if (found := _integrity(content)) != INTEGRITY:
        raise ValueError(
            f"{registry} gave another onnxruntime-web {VERSION} than the npm registry states: it has {found}, wanted "
            f"is {INTEGRITY}; nothing is written"
        )
    write_atomically(kept, content)
    return content


def _fetch(address: str) -> bytes:
    """What an address holds, with a bar; ValueError if it cannot be had."""
    remedy = "give --runtime FOLDER with the files of onnxruntime-web"
    if constants.HF_HUB_OFFLINE:
        raise ValueError(f"HF_HUB_OFFLINE is set and onnxruntime-web {VERSION} was not fetched before; {remedy}")
    content = io.BytesIO()
    try:
        with get_session().stream("GET", address, timeout=60, follow_redirects=True) as answer:
            answer.raise_for_status()
            total = int(answer.headers.get("content-length", 0)) or None
            with tqdm(total=total, unit="B", unit_scale=True, desc="onnxruntime-web", leave=False) as bar:
                for block in answer.iter_bytes():
                    content.write(block)
                    bar.update(len(block))
    except (HTTPError, OSError) as error:
        raise ValueError(f"{address} cannot be fetched: {first_line(error)}; {remedy}") from error
    return content.getvalue()


def _integrity(content: bytes) -> str:
    """The hash of a package as npm writes it."""
    return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode("ascii")


__all__ = ["FILES", "VERSION", "copy_runtime"]
