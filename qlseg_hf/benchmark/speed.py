# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What is timed against what: encoder and whole network, tricks taken back, a picture; and all modes by name."""

import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm

from ..hub.saving import QLSegImageProcessor
from ..model import deformable_attention as sampling
from ..model import modeling_qlseg
from ..model.image_io import load_picture, resize_picture
from ..model.scores import label_map_from_scores
from ..model.segmentation import segment
from ..utils.devices import place_for_inference
from ..utils.files import write_atomically
from .limit import count_operations, run_limit, run_step_limit
from .measure import Rows, compile_checked, machine, return_freed_memory, seconds, table, take_turns
from .peers import run_peers
from .runtimes import run_runtimes
from .settings import DTYPES, build, draw_pixels, inference, make_settings
from .training import run_training


def run_forward(settings) -> Rows:
    """Encoder and whole network take turns; dtypes one after the other, as nobody mixes them.

    First their multiplications, and the ratio of times if nothing else took time.
    """
    counts = count_operations(settings, batch=1)
    encoder = sum(count for stage, count in counts.items() if stage.startswith(("patches", "encoder"))) // 2
    whole, in_fp32 = sum(counts.values()) // 2, {}
    yield "forward floor", {"encoder_multiplications": encoder, "multiplications": whole, "ratio": whole / encoder}
    for kind in settings.dtypes or ("fp32", "bf16"):
        model = build(settings, DTYPES[kind])
        for batch in settings.batch_sizes:
            pixels, networks = draw_pixels(settings, batch, DTYPES[kind]), {"encoder": model.backbone, "whole": model}
            if settings.compile:
                compiled = compile_checked(settings, networks, pixels)
                networks |= {f"{name} compiled": network for name, network in compiled.items()}
            variants = {name: inference(lambda n=network, x=pixels: n(x)) for name, network in networks.items()}
            found = take_turns(variants, "encoder", settings.repeats, settings.device)
            for name, row in found.items():
                if kind == "fp32":
                    in_fp32[batch, name] = row["seconds"]
                if (batch, name) in in_fp32:
                    row["to_fp32"] = row["seconds"] / in_fp32[batch, name]
                if name == "whole compiled":
                    row["to_encoder_compiled"] = row["seconds"] / found["encoder compiled"]["seconds"]
                yield f"forward b{batch} {kind} {name}", row | {"pictures_per_s": batch / row["seconds"]}


# ------------------------------------------------------------------------------------------------------- tricks undone


def grid_sample_levels(value, offsets, weights, grid):
    """Sampling the common way: every sample is written out by `grid_sample`, then summed."""
    (batch, length, heads, width), levels, (h, w) = value.shape, offsets.shape[3], grid
    y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
    own = torch.stack([x, y], dim=-1).flatten(0, 1).repeat(levels, 1)[:, None, None, None].to(value)
    place = 2 * (own + offsets / torch.tensor([w, h]).to(value)) - 1  # (B, L * N, heads, L, points, 2)
    samples = []
    for level, maps in enumerate(value.unflatten(1, (levels, h * w)).unbind(1)):
        maps = maps.permute(0, 2, 3, 1).reshape(batch * heads, width, h, w)
        where = place[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B * heads, L * N, points, 2)
        samples.append(F.grid_sample(maps, where, align_corners=False))
    weights = weights.to(value.dtype).transpose(1, 2).reshape(batch * heads, 1, length, -1)
    total = (torch.cat(samples, dim=-1) * weights).sum(-1)  # (B * heads, c, L * N)
    return total.view(batch, heads * width, length).transpose(1, 2)


def sample_inside(value, offsets, weights, grid):
    """As `sample_levels` on maps without padding: corners outside are looked for and get the weight 0."""
    (batch, length, heads, width), (h, w) = value.shape, grid
    x, y = (sampling.cells(grid, offsets.shape[3], value.device)[i] - 1 + offsets[..., i].float() for i in (0, 1))
    cells, shares = [], []
    for place, size in ((x, w), (y, h)):
        first = place.floor()
        both, share = torch.stack([first, first + 1], dim=3).to(torch.int32), place - first
        inside = both.clamp(0, size - 1)
        cells.append(inside)
        shares.append(torch.where(inside == both, torch.stack([1 - share, share], dim=3), 0.0))
    (column, row), (across, down) = cells, shares
    image = torch.arange(batch, device=value.device)[:, None, None, None, None, None]
    level = torch.arange(offsets.shape[3], device=value.device)[:, None]
    head = torch.arange(heads, device=value.device)[:, None, None, None]
    row = ((image * offsets.shape[3] + level) * h + row) * (w * heads) + head
    rows = row[:, :, :, :, None] + column[:, :, :, None] * heads
    weights = (down * weights[:, :, :, None])[:, :, :, :, None] * across[:, :, :, None]
    bags, weights = rows.view(batch * length * heads, -1), weights.view(batch * length * heads, -1).to(value.dtype)
    out = F.embedding_bag(bags, value.reshape(-1, width), mode="sum", per_sample_weights=weights)
    return out.view(batch, length, -1)


def boolean_mask(mask_logits, threshold):
    visible = mask_logits.float().sigmoid() >= threshold
    return (visible | ~visible.any(dim=-1, keepdim=True))[:, None]


def combine_at_once(class_logits, mask_logits, size):
    masks = F.interpolate(mask_logits, size=size, mode="bilinear", align_corners=False).sigmoid()
    return torch.einsum("bkc,bkyx->bcyx", class_logits.softmax(dim=-1)[..., :-1], masks)


def label_map_at_once(scores, size):
    return F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0].argmax(dim=0)


def run_tricks(settings) -> Rows:
    """Each trick taken back alone, in inference in the first of the dtypes; the loss's is part of `training`."""
    dtype = DTYPES[(settings.dtypes or ("fp32",))[0]]
    model = place_for_inference(build(settings, dtype), settings.device)
    pixels = draw_pixels(settings, 1, dtype)

    def without(name: str, plain: Callable) -> Callable:
        def run():
            with mock.patch.object(modeling_qlseg, name, plain):
                model(pixels)

        return inference(run)

    def without_cache():
        for function in (sampling.position_code, sampling.cells, sampling.first_rows):
            function.cache_clear()
        model(pixels)

    variants = {
        "as it is": inference(lambda: model(pixels)),
        "grid_sample instead of bags of corners": without("sample_levels", grid_sample_levels),
        "samples outside looked for instead of padding": without("sample_levels", sample_inside),
        "PyTorch's softmax of a dozen weights": without(
            "softmax_of_few", partial(F.softmax, dim=-1, dtype=torch.float32)
        ),
        "boolean masks, made additive in every layer": without("token_mask", boolean_mask),
        "scores at once instead of in blocks": without("combine", combine_at_once),
        "position codes and grids made anew": inference(without_cache),
    }
    if settings.device.type == "cpu":
        variants["freed memory returned to the kernel"] = return_freed_memory(variants["as it is"])
        variants["after it"] = variants["as it is"]  # which gets the memory back, and is not shown
    rows = take_turns(variants, "as it is", settings.repeats, settings.device)
    rows.pop("after it", None)
    with torch.inference_mode():
        scores = model(pixels).logits[0].float()
    size = (3 * settings.size, 4 * settings.size)
    variants = {
        "label map in blocks": inference(lambda: label_map_from_scores(scores, size)),
        "label map at once": inference(lambda: label_map_at_once(scores, size).cpu()),
    }
    rows |= take_turns(variants, "label map in blocks", settings.repeats, settings.device)
    yield from ((f"tricks {name}", row) for name, row in rows.items())


# ------------------------------------------------------------------------------------------------ picture and loading


def drawn_picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Something smooth with noise, so that a JPEG of it has the size of a photograph's."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray((pixels + rng.integers(-12, 13, pixels.shape)).clip(0, 255).astype(np.uint8))


def run_picture(settings) -> Rows:
    """A 2048 x 1536 JPEG to its label map, against the forward passes of the same windows."""
    model, processor = build(settings), QLSegImageProcessor.for_release(settings.release)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.jpg"
        drawn_picture(1536, 2048).save(path, quality=92)
        windows = processor([path], return_tensors="pt")["pixel_values"].to(settings.device)
        batch = 2 if settings.device.type == "cpu" else 8
        picture = load_picture(path)
        size = processor.resized_size(*picture.shape[:2])
        variants = {
            "forward passes": inference(lambda: [model(x) for x in windows.split(batch)]),
            "file to label map": lambda: segment(model, processor, path),
            "file to label map, 512 MiB": lambda: segment(model, processor, path, max_memory_mb=512),
            "decoding": lambda: load_picture(path),
            "resizing": lambda: resize_picture(picture, size),
        }
        found = take_turns(variants, "forward passes", settings.repeats, settings.device)
    for name, row in found.items():
        yield f"picture {name}", row | ({"outside_network": row["ratio"] - 1} if "label map" in name else {})


def run_loading(settings) -> Rows:
    """One core's augmented training samples of an ADE20K-like picture; a step of 8 in 0.15 s wants 53 per second.

    Then what a loader of `qlseg train` gives with 1, 2 and 8 workers, in batches of 8; on fewer cores than workers the
    share of what all cores alone would give tells what the workers cost one another.
    """
    from torch.utils.data import DataLoader

    from ..data.augmentation import BatchPositions, TrainingDataset, TrainingSampler, TrainingTransform
    from ..data.datasets import open_dataset
    from ..data.workers import start_worker

    processor = QLSegImageProcessor.for_release(settings.release)
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for kind in ("images", "annotations"):
            (root / kind / "training").mkdir(parents=True)
        rng = np.random.default_rng(0)
        for number in range(16):
            drawn_picture(512, 683, number).save(root / "images" / "training" / f"{number}.jpg", quality=92)
            blocks = Image.fromarray(rng.integers(1, 151, (8, 11), dtype=np.uint8))
            blocks.resize((683, 512), Image.Resampling.NEAREST).save(
                root / "annotations" / "training" / f"{number}.png"
            )
        samples = open_dataset(folder, "training", val_fraction=0)
        transform = TrainingTransform(
            processor=processor,
            num_labels=150,
            crop_size=settings.size,
            resize_box=(2048, settings.size),
            scale_range=(0.5, 2.0),
            cat_max_ratio=0.75,
            photometric=True,
            seed=0,
        )
        torch.set_num_threads(1)  # as in a worker
        found = [
            seconds(lambda i=i: transform(samples[i % 16], i // 16, i % 16), torch.device("cpu"))
            for i in tqdm(range(16 * settings.repeats), desc="loading", leave=False)
        ]
        torch.set_num_threads(threads)
        mean, rates = statistics.mean(found), {}
        for workers in (1, 2, 8):
            positions = BatchPositions(8, max_steps=2**30)
            sampler = TrainingSampler(positions, len(samples), seed=0)
            options = {"num_workers": workers, "worker_init_fn": start_worker}
            batches = iter(DataLoader(TrainingDataset(samples, transform), batch_sampler=sampler, **options))
            for _ in range(2 * workers):  # begun while the workers started
                next(batches)
            start = time.perf_counter()
            for _ in tqdm(range(8 * settings.repeats), desc=f"{workers} workers", leave=False):
                next(batches)
            rates[workers] = 64 * settings.repeats / (time.perf_counter() - start)
            del batches  # ends the workers
    yield (
        "loading one worker",
        {
            "seconds": mean,
            "median_seconds": statistics.median(found),
            "range": [min(found), max(found)],
            "pictures_per_s": 1 / mean,
            "workers_for_53_per_s": 8 / 0.15 * mean,
        },
    )
    for workers, rate in rates.items():
        busy = min(workers, os.cpu_count() or 1)
        yield f"loading, {workers} workers", {"pictures_per_s": rate, "share_of_cores": rate * mean / busy}


# -------------------------------------------------------------------------------------------------------------- report

MODES = {
    "forward": run_forward,
    "tricks": run_tricks,
    "picture": run_picture,
    "training": run_training,
    "loading": run_loading,
    "peers": run_peers,
    "runtimes": run_runtimes,
    "limit": run_limit,
    "limit training": run_step_limit,
}


def benchmark(modes: tuple[str, ...] = (), *, output: Path | None = None, **given) -> None:
    """Run modes and print a table; `given` as in `make_settings`. ValueError for an unknown mode."""
    if unknown := set(modes) - set(MODES):
        raise ValueError(f"no mode {', '.join(sorted(unknown))}; there are {', '.join(MODES)}; gpu runs alone")
    settings = make_settings(**given)
    about = {"release": settings.release, "size": settings.size, "machine": machine(settings.device)}
    print(json.dumps(about))
    rows = dict(itertools.chain(*(MODES[mode](settings) for mode in modes or ("forward", "picture", "training"))))
    print(table(rows.items()))
    if output:
        write_atomically(output, (json.dumps(about | {"results": rows}, indent=1) + "\n").encode())


__all__ = ["MODES", "benchmark"]
