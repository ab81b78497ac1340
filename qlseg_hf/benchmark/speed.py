# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What is timed against what: encoder and whole network, tricks taken back, a picture, a training step, peers."""

import json
import statistics
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm

from ..hub.saving import QLSegForSemanticSegmentation, QLSegImageProcessor
from ..model.configuration_qlseg import QLSegConfig
from ..model.image_io import load_picture, resize_picture
from ..model.segmentation import segment
from ..utils.files import write_atomically
from .measure import machine, multiplications, seconds, table, take_turns


@dataclass
class Settings:
    """What all modes share; `size` is the side of the square input in pixels."""

    release: str
    size: int
    batch_sizes: tuple[int, ...]
    training_batch_sizes: tuple[int, ...]
    repeats: int
    compile: bool
    device: torch.device


def build(settings, dtype=torch.float32, device=None) -> QLSegForSemanticSegmentation:
    torch.manual_seed(0)
    with torch.device(device or settings.device):
        model = QLSegForSemanticSegmentation(QLSegConfig.for_release(settings.release))
    return model.to(dtype).eval()


def floor(settings, mode: str) -> dict:
    """Multiplications of encoder and whole network, and the ratio of times if nothing else took time."""
    model = build(settings, device="meta").requires_grad_(False)
    pixels = torch.empty(1, 3, settings.size, settings.size, device="meta")
    with torch.no_grad():
        encoder, whole = multiplications(lambda: model.backbone(pixels)), multiplications(lambda: model(pixels))
    return {f"{mode} floor": {"encoder_multiplications": encoder, "multiplications": whole, "ratio": whole / encoder}}


def inference(function: Callable) -> Callable:
    return torch.inference_mode()(function)


def run_forward(settings) -> dict:
    """Encoder and whole network take turns; fp32 and bf16 one after the other, as nobody mixes them."""
    rows = floor(settings, "forward")
    for dtype in (torch.float32, torch.bfloat16):
        model, kind = build(settings, dtype), {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
        for batch in settings.batch_sizes:
            pixels = torch.randn(batch, 3, settings.size, settings.size, device=settings.device, dtype=dtype)
            networks = {"encoder": model.backbone, "whole": model}
            if settings.compile:
                networks |= {f"{name} compiled": torch.compile(network) for name, network in networks.items()}
            variants = {name: inference(lambda n=network, x=pixels: n(x)) for name, network in networks.items()}
            found = take_turns(variants, "encoder", settings.repeats, settings.device)
            for name, row in found.items():
                eager = rows.get(f"forward b{batch} fp32 {name}", row)
                row["to_fp32"] = row["seconds"] / eager["seconds"]
                row["pictures_per_s"] = batch / row["seconds"]
                rows[f"forward b{batch} {kind} {name}"] = row
            if settings.compile:
                row = found["whole compiled"]
                row["to_encoder_compiled"] = row["seconds"] / found["encoder compiled"]["seconds"]
    return rows


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
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, length, -1)
    total = (torch.cat(samples, dim=-1) * weights).sum(-1)  # (B * heads, c, L * N)
    return total.view(batch, heads * width, length).transpose(1, 2)


def combine_at_once(class_logits, mask_logits, size):
    masks = F.interpolate(mask_logits, size=size, mode="bilinear", align_corners=False).sigmoid()
    return torch.einsum("bkc,bkyx->bcyx", class_logits.softmax(dim=-1)[..., :-1], masks)


def label_map_at_once(scores, size):
    return F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0].argmax(dim=0)


def run_tricks(settings) -> dict:
    """Each trick taken back alone, in inference; the loss's is part of `training`."""
    from ..model import deformable_attention as sampling
    from ..model import modeling_qlseg
    from ..model.scores import label_map_from_scores

    model = build(settings)
    pixels = torch.randn(1, 3, settings.size, settings.size, device=settings.device)

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
        "scores at once instead of in blocks": without("combine", combine_at_once),
        "position codes and grids made anew": inference(without_cache),
    }
    rows = take_turns(variants, "as it is", settings.repeats, settings.device)
    with torch.inference_mode():
        scores = model(pixels).logits[0].float()
    size = (3 * settings.size, 4 * settings.size)
    variants = {
        "label map in blocks": inference(lambda: label_map_from_scores(scores, size)),
        "label map at once": inference(lambda: label_map_at_once(scores, size).cpu()),
    }
    rows |= take_turns(variants, "label map in blocks", settings.repeats, settings.device)
    return {f"tricks {name}": row for name, row in rows.items()}


# ----------------------------------------------------------------------------------------------- picture and training


def drawn_picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Something smooth with noise, so that a JPEG of it has the size of a photograph's."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray((pixels + rng.integers(-12, 13, pixels.shape)).clip(0, 255).astype(np.uint8))


def run_picture(settings) -> dict:
    """A 2048 x 1536 JPEG to its label map, against the forward passes of the same windows."""
    model, processor = build(settings), QLSegImageProcessor.for_release(settings.release)
    rows = {}
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
        rows[f"picture {name}"] = row | ({"outside_network": row["ratio"] - 1} if "label map" in name else {})
    return rows


def training_labels(batch: int, size: int, num_labels: int, device: torch.device) -> torch.Tensor:
    """(B, size, size) with ten labels in each picture, in blocks, about as many as a picture of ADE20K has."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.stack([torch.randperm(num_labels, generator=generator)[:10] for _ in range(batch)])  # (B, 10)
    blocks = torch.randint(0, 10, (batch, 64), generator=generator)
    blocks = labels.gather(1, blocks).view(batch, 1, 8, 8).float()
    return F.interpolate(blocks, size=(size, size), mode="nearest")[:, 0].long().to(device)


def loss_by_autograd(logits, labels, picture, label, alpha, gamma):
    """The mask losses with every mask upsampled at once and the gradient left to autograd."""
    from ..model.loss_qlseg import mask_losses

    maps = F.interpolate(logits[:, None], size=labels.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    return mask_losses(maps, labels[picture] == label[:, None, None], alpha, gamma)[:2]


def run_training(settings) -> dict:
    """Encoder: forward and backward from the sum of its maps. Whole network: forward, loss, backward."""
    from ..model.loss_qlseg import MaskLosses

    rows = {}
    model = build(settings).train()
    half = torch.autocast(settings.device.type, torch.bfloat16) if settings.device.type == "cuda" else nullcontext()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, fused=True)
    for batch in settings.training_batch_sizes:
        pixels = torch.randn(batch, 3, settings.size, settings.size, device=settings.device)
        labels = training_labels(batch, settings.size, model.config.num_labels, settings.device)

        def encoder(pixels=pixels):
            model.zero_grad()
            with half:
                loss = sum(maps.float().mean() for maps in model.backbone(pixels).feature_maps)
            loss.backward()

        def whole(pixels=pixels, labels=labels):
            model.zero_grad()
            with half:
                loss = model(pixels, labels=labels).loss
            loss.backward()

        def plain_loss(whole=whole):
            with mock.patch.object(MaskLosses, "apply", loss_by_autograd):
                whole()

        def with_optimizer(whole=whole):
            whole()
            optimizer.step()

        variants = {
            "encoder": encoder,
            "whole": whole,
            "whole, gradient of the mask losses by autograd": plain_loss,
            "whole and AdamW": with_optimizer,
        }
        kind = "bf16 autocast" if settings.device.type == "cuda" else "fp32"
        found = take_turns(variants, "encoder", settings.repeats, settings.device)
        rows |= {f"training b{batch} {kind} {name}": row for name, row in found.items()}
    return rows


def run_loading(settings) -> dict:
    """One core's augmented training samples of an ADE20K-like picture; a step of 8 in 0.15 s wants 53 per second."""
    from ..data.augmentation import TrainingTransform
    from ..data.datasets import open_dataset

    processor = QLSegImageProcessor.for_release(settings.release)
    rows, threads = {}, torch.get_num_threads()
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
    median = statistics.median(found)
    wanted = 8 / 0.15
    rows["loading one worker"] = {
        "seconds": statistics.mean(found),
        "median_seconds": median,
        "range": [min(found), max(found)],
        "pictures_per_s": 1 / statistics.mean(found),
        "workers_for_53_per_s": wanted * statistics.mean(found),
    }
    return rows


# --------------------------------------------------------------------------------------------------------------- peers


def peers(size: int) -> dict[str, Callable]:
    """Constructors of the usual large networks for ADE20K, random weights."""
    from transformers import (
        BeitConfig,
        EomtConfig,
        EomtForUniversalSegmentation,
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        SegformerConfig,
        SegformerForSemanticSegmentation,
        SwinConfig,
        UperNetConfig,
        UperNetForSemanticSegmentation,
    )

    def mask2former():
        swin = SwinConfig(
            image_size=384,
            embed_dim=192,
            depths=[2, 2, 18, 2],
            num_heads=[6, 12, 24, 48],
            window_size=12,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
        return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=swin, num_labels=150))

    def upernet():
        beit = BeitConfig(
            image_size=size,
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
            use_relative_position_bias=True,
            layer_scale_init_value=0.1,
            out_features=["stage7", "stage11", "stage15", "stage23"],
            add_fpn=True,
            reshape_hidden_states=True,
        )
        return UperNetForSemanticSegmentation(UperNetConfig(backbone_config=beit, num_labels=150))

    b5 = {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 6, 40, 3], "decoder_hidden_size": 768, "num_labels": 150}
    return {
        "EoMT-L": lambda: EomtForUniversalSegmentation(
            EomtConfig(image_size=size, num_labels=150)  # type: ignore[call-arg]  # a property of the base class
        ),
        "Mask2Former Swin-L": mask2former,
        "UperNet-BEiT-L": upernet,
        "SegFormer-B5": lambda: SegformerForSemanticSegmentation(SegformerConfig(**b5)),
    }


def run_peers(settings) -> dict:
    """Forward passes only; QLSeg's includes scores at input size, the peers' end with their own small outputs."""
    dtype = torch.bfloat16 if settings.device.type == "cuda" else torch.float32
    rows = {}
    for batch in settings.batch_sizes:
        pixels = torch.randn(batch, 3, settings.size, settings.size, device=settings.device, dtype=dtype)
        makers = {f"QLSeg {settings.release}": lambda: build(settings, dtype)} | peers(settings.size)
        models = {name: make().to(settings.device, dtype).eval() for name, make in makers.items()}
        if settings.compile:
            models = {name: torch.compile(model) for name, model in models.items()}
        variants = {
            name: inference(lambda model=model, x=pixels: model(pixel_values=x)) for name, model in models.items()
        }
        found = take_turns(variants, f"QLSeg {settings.release}", settings.repeats, settings.device)
        for name, row in found.items():
            rows[f"peers b{batch} {name}"] = row | {"pictures_per_s": batch / row["seconds"]}
    return rows


# -------------------------------------------------------------------------------------------------------------- report

MODES = {
    "forward": run_forward,
    "tricks": run_tricks,
    "picture": run_picture,
    "training": run_training,
    "loading": run_loading,
    "peers": run_peers,
}


def benchmark(
    modes: tuple[str, ...] = (),
    *,
    release: str = "vit-b-ade20k",
    size: int | None = None,
    batch_sizes: tuple[int, ...] = (1,),
    training_batch_sizes: tuple[int, ...] = (2,),
    repeats: int = 7,
    compile: bool = False,
    device: str | None = None,
    threads: int | None = None,
    output: Path | None = None,
) -> None:
    """Run modes and print a table; see `qlseg benchmark --help`. ValueError for an unknown mode or release."""
    if unknown := set(modes) - set(MODES):
        raise ValueError(f"no mode {', '.join(sorted(unknown))}; there are {', '.join(MODES)}")
    if threads:
        torch.set_num_threads(threads)
    settings = Settings(
        release=release,
        size=size or QLSegConfig.for_release(release).backbone_config.image_size,
        batch_sizes=batch_sizes,
        training_batch_sizes=training_batch_sizes,
        repeats=repeats,
        compile=compile,
        device=torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")),
    )
    rows = {}
    for mode in modes or ("forward", "picture", "training"):
        rows |= MODES[mode](settings)
    result = {"machine": machine(settings.device), "release": release, "size": settings.size, "results": rows}
    print(json.dumps(result["machine"]))
    print(f"{release}, {settings.size} x {settings.size}, {repeats} turns")
    print(table(rows))
    if output:
        write_atomically(output, (json.dumps(result, indent=1) + "\n").encode())


__all__ = ["MODES", "Settings", "benchmark"]
