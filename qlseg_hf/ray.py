# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Clusters: `qlseg predict --ray ADDRESS`, and `Segmenter`, a step for people's own Ray Data and Spark pipelines.

Ray Data does what a cluster needs: a pool of actors that grows with the work, back pressure, and retries when an actor
or a node dies. Results are written by the actors, each file in one step under the image's name, so what is done twice
after a death is written once. The driver notes in the manifest what is done.
"""

import json
import socket
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .hub.loading import load_network
from .model.segmentation import segment
from .predict.items import OPEN_TABLES, Item
from .predict.manifest import Manifest, Notes, stored_dtype
from .predict.request import Request, Summary
from .predict.run import finish_run, list_items, load, open_run
from .predict.work import Work
from .utils.devices import place_for_inference
from .utils.optional import import_package
from .utils.text import first_line

ITEMS_PER_BATCH = 8  # that an actor takes at a time, and does again if it dies
BATCHES_PER_BLOCK = 4
SECONDS_TO_ANSWER = 10


class Segmenter:
    """Segments batches of images: a callable class for `ray.data.Dataset.map_batches`, `mapInPandas` and the like.

    Args:
        model: folder or Hub id, which every node can read.
        column: of the images: paths, addresses, bytes of files, or (H, W, c) arrays.
        dtype, device: of the network; a GPU if there is one.
        options: `scales`, `flip`, `labels`, `max_memory_mb`, ... of `segment`.
    """

    def __init__(
        self, model: str, column: str = "image", dtype: str = "float32", device: str | None = None, **options: Any
    ):
        network, self.processor = load_network(model, dtype=getattr(torch, dtype))
        self.model = place_for_inference(network, device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.column, self.options = column, options

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add to a batch what was found.

        Args:
            batch: sequences of equal length by column.

        Returns:
            the batch without its image column, with `label_map`, bytes of row after row of uint8 labels (uint16 for
            more than 256, uint32 for more than 65,536), empty if the image failed; `height` and `width`; `error`,
            empty if it did not.
        """
        rows = [self._segment(image) for image in batch[self.column]]
        found = {name: [row[name] for row in rows] for name in ("label_map", "height", "width", "error")}
        return {name: values for name, values in batch.items() if name != self.column} | found

    def _segment(self, image: Any) -> dict[str, Any]:
        try:
            (label_map,) = segment(self.model, self.processor, image, **self.options)
        except (OSError, TypeError, ValueError) as error:
            return {"label_map": b"", "height": 0, "width": 0, "error": first_line(error)}
        kind = np.min_scalar_type(self.model.config.num_labels - 1)
        height, width = label_map.shape
        return {"label_map": label_map.numpy().astype(kind).tobytes(), "height": height, "width": width, "error": ""}


class _Predictor:
    """An actor of `predict_on_cluster`: segments items and writes their results; rows tell what was done."""

    def __init__(self, request: Request, tables: dict[str, Any], device: str):
        OPEN_TABLES.update(tables)
        model, processor, plan, _ = load(request, device)
        self.notes = Notes()
        self.work = Work(request, (model, processor), plan, self.notes)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        items: list[Item] = list(batch["item"])
        self.notes.lines.clear()
        with self.work.executor_running():
            for _ in self.work.steps(items):
                pass
        return {"line": [json.dumps(line) for line in self.notes.lines]}


def predict_on_cluster(request: Request, address: str, cores: int = 1) -> Summary:
    """Segment as `predict` does, on the nodes of a Ray cluster, all of which see sources, model and output.

    Args:
        request: what to segment; `workers` are those of each actor, none if not given.
        address: of the cluster; "auto" takes the one that this machine belongs to, or starts one here.
        cores: of each actor; where the cluster has GPUs, an actor has one besides.

    Raises:
        ValueError, OSError: as `predict`.
    """
    data = import_package("ray.data", "from_items", "--ray", "'qlseg-hf[ray]'")
    ray = import_package("ray", "init", "--ray", "'qlseg-hf[ray]'")
    if not ray.is_initialized():
        _connect(ray, address)
    has_gpus = request.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
    if request.dtype == "auto":  # the same for all actors, and for the driver, which has no GPU perhaps
        fastest = "bfloat16" if has_gpus else "float32"  # what processors the nodes have is not known here
        request = replace(request, dtype=stored_dtype(request.output) or fastest)
    *_, plan, settings = load(request, "cpu")
    items, notes = list_items(request, plan.output)
    manifest = Manifest(request.output)
    missing = open_run(manifest, settings, items, notes, plan.output)
    summary = Summary(0, len(items) - len(missing), 0)
    if missing:
        table = data.from_items(
            [{"item": items[number]} for number in missing],
            override_num_blocks=max(1, len(missing) // (ITEMS_PER_BATCH * BATCHES_PER_BLOCK)),
        )
        own = replace(request, workers=request.workers or 0, strict=False)  # the driver stops, not an actor
        done = table.map_batches(
            _Predictor,
            fn_constructor_args=(own, dict(OPEN_TABLES), "cuda" if has_gpus else "cpu"),
            batch_size=ITEMS_PER_BATCH,
            compute=data.ActorPoolStrategy(min_size=1),
            num_cpus=cores,
            num_gpus=1 if has_gpus else None,
        )
        try:
            _take_up(done, manifest, request, summary, len(items))
        except ray.exceptions.RayError as error:
            reason = first_line(getattr(error, "cause", None) or error)
            raise OSError(f"an actor failed: {reason}") from error
        finally:
            manifest.close()
    finish_run(manifest, plan.output)
    return summary


def _connect(ray: Any, address: str) -> None:
    """Join a cluster; OSError if nobody answers there, which Ray itself waits minutes for."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        if port.isdecimal():
            socket.create_connection((host, int(port)), timeout=SECONDS_TO_ANSWER).close()
        ray.init(None if address == "auto" else address, log_to_driver=False)
    except (OSError, RuntimeError) as error:
        raise OSError(f"there is no Ray cluster at {address}: {first_line(error)}") from error


def _take_up(done, manifest: Manifest, request: Request, summary: Summary, total: int) -> None:
    """Note what actors have done, as they say it."""
    bar = tqdm(total=total, initial=summary.num_before, unit="image")
    with bar:
        for row in done.iter_rows():
            line = json.loads(row["line"])
            manifest.take_up(line)
            if "failed" in line:
                summary.num_failed += 1
                bar.set_postfix({"failed": summary.num_failed}, refresh=False)
                if request.strict:
                    raise ValueError(f"{line['source']}: {line['failed']}")
            else:
                summary.num_done += 1
            bar.update()


__all__ = ["Segmenter", "predict_on_cluster"]
