#!/usr/bin/env python3
"""Time and memory of QLSeg as ratios against baselines of the same run: encoder alone, eager, fp32, peers.

    python examples/benchmark.py [MODE ...] [--release vit-b-ade20k] [--size 512] [--batch_sizes 1] [--output FILE]

MODE is one or several of
    forward   encoder and whole network by batch size, in fp32 and bf16 (and compiled, with --compile)
    tricks    the network with one trick of ours taken back at a time
    picture   JPEG file to label map, and what of it the network takes
    training  forward, loss and backward of encoder and whole network, and the whole step with AdamW
    loading   augmented training pictures per second and worker
    peers     EoMT-L, Mask2Former Swin-L (these need scipy), UperNet-BEiT-L, SegFormer-B5 of transformers, same size
Without a mode: forward, picture, training. Weights are random; results do not depend on them.

Everything that is compared takes turns, so that a slow minute of the machine meets all alike; a ratio is the median
over the turns. On a GPU times are those of CUDA events after warm-up, memory that of the allocator; on a CPU memory is
the peak of resident memory above what the process held before (Linux).
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from qlseg_hf import QLSegConfig, QLSegForSemanticSegmentation, QLSegImageProcessor, segment
from qlseg_hf.cli.common import exit_status
from qlseg_hf.model.image_io import load_picture, resize_picture
from qlseg_hf.utils.files import write_atomically

MIB = 2**20

# ---------------------------------------------------------------------------------------------------------- measuring


class Peak:
    """What `peak_memory` found, in bytes."""

    peak_bytes = 0


@contextmanager
def peak_memory(device: torch.device | None = None) -> Iterator[Peak]:
    """Peak of memory inside the block above what was held before, on a GPU or (Linux) of the process."""
    found = Peak()
    gc.collect()
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found.peak_bytes = torch.cuda.max_memory_allocated(device) - before
        return
    ctypes.CDLL(None).malloc_trim(0)  # memory that was freed, but that the C library keeps
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    yield found
    found.peak_bytes = resident("VmHWM") - before


def resident(key: str) -> int:
    """Bytes of resident memory of this process: "VmRSS" now, "VmHWM" at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def keep_freed_memory(keep: bool) -> None:
    """Tell glibc whether to hand freed memory out again, or to return it to the kernel at once.

    Kept while times are taken, as in a long-running server (MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ in the
    environment do the same): otherwise large tensors are faulted in anew for every layer, and what is timed is the
    kernel. Returned while memory is measured, so that resident memory is what tensors and libraries hold.
    """
    if sys.platform == "linux":
        m_trim_threshold, m_mmap_threshold = -1, -3
        for option in (m_trim_threshold, m_mmap_threshold):
            ctypes.CDLL(None).mallopt(option, 2**31 - 1 if keep else 1 << 17)


def seconds(function: Callable, device: torch.device) -> float:
    if device.type != "cuda":
        started = time.perf_counter()
        function()
        return time.perf_counter() - started
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1000


def take_turns(variants: dict[str, Callable], baseline: str, repeats: int, device: torch.device) -> dict[str, dict]:
    """Time the variants in turns; per variant the median and range in seconds, peak MiB, and ratio to the baseline."""
    memory = {}
    keep_freed_memory(False)
    for name, function in tqdm(variants.items(), desc="warm-up", leave=False):
        function()
        with peak_memory(device) as peak:
            function()
        memory[name] = peak.peak_bytes / MIB
    keep_freed_memory(True)
    times = {name: [] for name in variants}
    for _ in tqdm(range(repeats), desc="turns", leave=False):
        for name, function in variants.items():
            times[name].append(seconds(function, device))
    return {
        name: {
            "seconds": statistics.median(found),
            "range": [min(found), max(found)],
            "ratio": statistics.median(a / b for a, b in zip(found, times[baseline])),
            "peak_mib": memory[name],
        }
        for name, found in times.items()
    }


def multiplications(function: Callable) -> int:
    """Multiplications of matrix products and convolutions (half of PyTorch's count of floating-point operations)."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() // 2


# --------------------------------------------------------------------------------------------------------- the subject


def build(args, dtype=torch.float32, device=None) -> QLSegForSemanticSegmentation:
    torch.manual_seed(0)
    with torch.device(device or args.device):
        model = QLSegForSemanticSegmentation(QLSegConfig.for_release(args.release))
    return model.to(dtype).eval()


def floor(args, mode: str) -> dict:
    """Multiplications of encoder and whole network, and the ratio of times if nothing else took time."""
    model = build(args, device="meta").requires_grad_(False)
    pixels = torch.empty(1, 3, args.size, args.size, device="meta")
    with torch.no_grad():
        encoder, whole = multiplications(lambda: model.backbone(pixels)), multiplications(lambda: model(pixels))
    return {f"{mode} floor": {"encoder_multiplications": encoder, "multiplications": whole, "ratio": whole / encoder}}


def inference(function: Callable) -> Callable:
    return torch.inference_mode()(function)


def run_forward(args) -> dict:
    """Encoder and whole network take turns; fp32 and bf16 one after the other, as nobody mixes them."""
    rows = floor(args, "forward")
    for dtype in (torch.float32, torch.bfloat16):
        model, kind = build(args, dtype), {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
        for batch in args.batch_sizes:
            pixels = torch.randn(batch, 3, args.size, args.size, device=args.device, dtype=dtype)
            networks = {"encoder": model.backbone, "whole": model}
            if args.compile:
                networks |= {f"{name} compiled": torch.compile(network) for name, network in networks.items()}
            variants = {name: inference(lambda n=network, x=pixels: n(x)) for name, network in networks.items()}
            found = take_turns(variants, "encoder", args.repeats, args.device)
            for name, row in found.items():
                eager = rows.get(f"forward b{batch} fp32 {name}", row)
                row["to_fp32"] = row["seconds"] / eager["seconds"]
                row["pictures_per_s"] = batch / row["seconds"]
                rows[f"forward b{batch} {kind} {name}"] = row
            if args.compile:
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


def run_tricks(args) -> dict:
    """Each trick taken back alone, in inference; the loss's is part of `training`."""
    from qlseg_hf.model import deformable_attention as sampling
    from qlseg_hf.model import modeling_qlseg
    from qlseg_hf.model.scores import label_map_from_scores

    model = build(args)
    pixels = torch.randn(1, 3, args.size, args.size, device=args.device)

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
    rows = take_turns(variants, "as it is", args.repeats, args.device)
    with torch.inference_mode():
        scores = model(pixels).logits[0].float()
    size = (3 * args.size, 4 * args.size)
    variants = {
        "label map in blocks": inference(lambda: label_map_from_scores(scores, size)),
        "label map at once": inference(lambda: label_map_at_once(scores, size).cpu()),
    }
    rows |= take_turns(variants, "label map in blocks", args.repeats, args.device)
    return {f"tricks {name}": row for name, row in rows.items()}


# ----------------------------------------------------------------------------------------------- picture and training


def drawn_picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Something smooth with noise, so that a JPEG of it has the size of a photograph's."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray((pixels + rng.integers(-12, 13, pixels.shape)).clip(0, 255).astype(np.uint8))


def run_picture(args) -> dict:
    """A 2048 x 1536 JPEG to its label map, against the forward passes of the same windows."""
    model, processor = build(args), QLSegImageProcessor.for_release(args.release)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.jpg"
        drawn_picture(1536, 2048).save(path, quality=92)
        windows = processor([path], return_tensors="pt")["pixel_values"].to(args.device)
        batch = 2 if args.device.type == "cpu" else 8
        picture = load_picture(path)
        size = processor.resized_size(*picture.shape[:2])
        variants = {
            "forward passes": inference(lambda: [model(x) for x in windows.split(batch)]),
            "file to label map": lambda: segment(model, processor, path),
            "file to label map, 512 MiB": lambda: segment(model, processor, path, max_memory_mb=512),
            "decoding": lambda: load_picture(path),
            "resizing": lambda: resize_picture(picture, size),
        }
        found = take_turns(variants, "forward passes", args.repeats, args.device)
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
    from qlseg_hf.model.loss_qlseg import mask_losses

    maps = F.interpolate(logits[:, None], size=labels.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    return mask_losses(maps, labels[picture] == label[:, None, None], alpha, gamma)[:2]


def run_training(args) -> dict:
    """Encoder: forward and backward from the sum of its maps. Whole network: forward, loss, backward."""
    from qlseg_hf.model.loss_qlseg import MaskLosses

    rows = {}
    model = build(args).train()
    half = torch.autocast(args.device.type, torch.bfloat16) if args.device.type == "cuda" else nullcontext()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, fused=True)
    for batch in args.training_batch_sizes:
        pixels = torch.randn(batch, 3, args.size, args.size, device=args.device)
        labels = training_labels(batch, args.size, model.config.num_labels, args.device)

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
        kind = "bf16 autocast" if args.device.type == "cuda" else "fp32"
        found = take_turns(variants, "encoder", args.repeats, args.device)
        rows |= {f"training b{batch} {kind} {name}": row for name, row in found.items()}
    return rows


def run_loading(args) -> dict:
    """One core's augmented training samples of an ADE20K-like picture; a step of 8 in 0.15 s wants 53 per second."""
    from qlseg_hf.data.augmentation import TrainingTransform
    from qlseg_hf.data.datasets import open_dataset

    processor = QLSegImageProcessor.for_release(args.release)
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
        samples = open_dataset(folder, "training")
        transform = TrainingTransform(
            processor=processor,
            num_labels=150,
            crop_size=args.size,
            resize_box=(2048, args.size),
            scale_range=(0.5, 2.0),
            cat_max_ratio=0.75,
            photometric=True,
            seed=0,
        )
        torch.set_num_threads(1)  # as in a worker
        found = [
            seconds(lambda i=i: transform(samples[i % 16], i // 16, i % 16), torch.device("cpu"))
            for i in tqdm(range(16 * args.repeats), desc="loading", leave=False)
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
        "EoMT-L": lambda: EomtForUniversalSegmentation(EomtConfig(image_size=size, num_labels=150)),
        "Mask2Former Swin-L": mask2former,
        "UperNet-BEiT-L": upernet,
        "SegFormer-B5": lambda: SegformerForSemanticSegmentation(SegformerConfig(**b5)),
    }


def run_peers(args) -> dict:
    """Forward passes only; QLSeg's includes scores at input size, the peers' end with their own small outputs."""
    dtype = torch.bfloat16 if args.device.type == "cuda" else torch.float32
    rows = {}
    for batch in args.batch_sizes:
        pixels = torch.randn(batch, 3, args.size, args.size, device=args.device, dtype=dtype)
        makers = {f"QLSeg {args.release}": lambda: build(args, dtype)} | peers(args.size)
        models = {name: make().to(args.device, dtype).eval() for name, make in makers.items()}
        if args.compile:
            models = {name: torch.compile(model) for name, model in models.items()}
        variants = {
            name: inference(lambda model=model, x=pixels: model(pixel_values=x)) for name, model in models.items()
        }
        found = take_turns(variants, f"QLSeg {args.release}", args.repeats, args.device)
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


def machine(device: torch.device) -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def table(rows: dict[str, dict]) -> str:
    lines = [f"{'':62} {'median s':>9} {'range s':>17} {'ratio':>6} {'peak MiB':>9}"]
    for name, row in rows.items():
        time_, low_high = f"{row['seconds']:.3f}" if "seconds" in row else "", ""
        if "range" in row:
            low_high = f"{row['range'][0]:.3f} .. {row['range'][1]:.3f}"
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        memory = f"{row['peak_mib']:.0f}" if "peak_mib" in row else ""
        more = ", ".join(
            f"{key} {row[key]:.3g}"
            for key in (
                "to_fp32",
                "to_encoder_compiled",
                "outside_network",
                "pictures_per_s",
                "workers_for_53_per_s",
                "multiplications",
            )
            if key in row
        )
        lines.append(f"{name:62} {time_:>9} {low_high:>17} {ratio:>6} {memory:>9}  {more}".rstrip())
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modes", nargs="*", metavar="MODE", help=", ".join(MODES))
    parser.add_argument("--release", default="vit-b-ade20k", help="which network (default: vit-b-ade20k)")
    parser.add_argument("--size", type=int, help="side of the square input in pixels (default: the network's)")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1])
    parser.add_argument("--training_batch_sizes", type=int, nargs="+", default=[2])
    parser.add_argument("--repeats", type=int, default=7, help="turns (default: 7)")
    parser.add_argument("--compile", action="store_true", help="also torch.compile, in forward and peers")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument("--output", type=Path, help="also write the results to this JSON file")
    return parser.parse_args()


def benchmark(args: argparse.Namespace) -> None:
    if unknown := set(args.modes) - set(MODES):
        raise ValueError(f"no mode {', '.join(sorted(unknown))}; there are {', '.join(MODES)}")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.size is None:
        args.size = QLSegConfig.for_release(args.release).backbone_config.image_size
    rows = {}
    for mode in args.modes or ["forward", "picture", "training"]:
        rows |= MODES[mode](args)
    result = {"machine": machine(args.device), "release": args.release, "size": args.size, "results": rows}
    print(json.dumps(result["machine"]))
    print(f"{args.release}, {args.size} x {args.size}, {args.repeats} turns")
    print(table(rows))
    if args.output:
        write_atomically(args.output, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    sys.exit(exit_status("benchmark.py", benchmark, parse_arguments()))
