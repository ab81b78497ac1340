# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Hashes, each computed in one way: of files, of a network's weights, of what identifies a data set."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import torch

# of a configuration: where it came from, and what wrote it or runs it
NOT_OF_THE_NETWORK = {"_name_or_path", "architectures", "auto_map", "custom_pipelines", "dtype"}
NOT_OF_THE_NETWORK |= {"qlseg_hf_version", "transformers_version"}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file of any size, as a hex string."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def weights_sha256(model: Any) -> str:
    """SHA-256 of every name, dtype, shape and SHA-256 of the values, as a hex string; on all cores.

    Of an exported network, which is no module: of its files.
    """
    if not isinstance(model, torch.nn.Module):
        return hashlib.sha256("".join(map(file_sha256, model.files)).encode()).hexdigest()

    def describe(entries: list[tuple[str, torch.Tensor]]) -> list[str]:
        lines = []
        for name, tensor in entries:
            values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            lines.append(f"{name} {tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(values).hexdigest()}")
        return lines

    entries = sorted(model.state_dict().items(), key=lambda entry: entry[1].nbytes)
    num_threads = os.cpu_count() or 1
    with ThreadPoolExecutor(num_threads) as threads:  # a share each: a task for each tensor takes twice the time
        shares = threads.map(describe, (entries[k::num_threads] for k in range(num_threads)))
        lines = sorted(chain.from_iterable(shares))  # by name: a space comes before all that names consist of
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def config_sha256(config: Any) -> str:
    """SHA-256 of what a network's configuration says beside its weights: numbers, and names and colours of labels.

    The same for any dtype, attention code and place that the network was loaded in and from.
    """
    parts = (config.to_diff_dict(), config.backbone_config.to_diff_dict())
    whole, backbone = ({k: v for k, v in part.items() if k not in NOT_OF_THE_NETWORK} for part in parts)
    return json_sha256(whole | {"backbone_config": backbone})


def json_sha256(value: Any) -> str:
    """SHA-256 of a value as JSON, as a hex string; the same in every process and version."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


__all__ = ["config_sha256", "file_sha256", "json_sha256", "weights_sha256"]
