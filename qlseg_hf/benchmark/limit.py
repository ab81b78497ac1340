# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Time against the machine's limit: how long the network's operations would take at the rate of a matrix product.

The rate is measured by dtype beside every timed pass, because that of a machine shared with others changes within
seconds, by as much as three times. What is above the limit is no matrix product, or one that is slower than the
fastest: a table says by stage of the network how much, and another one by kind of operation.
"""

import json
import re
import resource
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ..utils.files import write_atomically
from .measure import check_compiled, clock, machine, markdown, seconds, take_turns
from .settings import DTYPES, TINY, Settings, build, inference, make_settings
from .training import StepInParts, half_precision, training_labels

# First match of a module's name in the network; what a module does outside of its own modules counts for its stage.
STAGES = (
    ("patches and positions", r"backbone\.embeddings(\..+)?"),
    ("encoder: norms", r"backbone\.layers\.\d+\.layernorm_\w+"),
    ("encoder: queries, keys, values", r"backbone\.layers\.\d+\.attention\.[qkv]_proj"),
    ("encoder: attention", r"backbone\.layers\.\d+\.attention"),
    ("encoder: output of attention", r"backbone\.layers\.\d+\.attention\.o_proj"),
    ("encoder: first product of the MLP", r"backbone\.layers\.\d+\.mlp\.fc1"),
    ("encoder: GELU", r"backbone\.layers\.\d+\.mlp"),
    ("encoder: second product of the MLP", r"backbone\.layers\.\d+\.mlp\.fc2"),
    ("encoder: residuals, and the rest", r"backbone(\..+)?"),
    ("pixel encoder: products", r"pixel_encoder\.(projections\.\d+|layers\.\d+\.(self_attn\.\w+|fc[12]))"),
    ("pixel encoder: sampling", r"pixel_encoder\.layers\.\d+\.self_attn"),
    ("pixel encoder: norms", r"pixel_encoder\.(norms\.\d+|layers\.\d+\.norm\d)"),
    ("pixel encoder: ReLU, residuals, copies", r"pixel_encoder(\..+)?"),
    ("decoder: products", r"decoder\.(projections\.\d+|.+\.(\w_proj|fc[12]|weights))|class_head"),
    ("decoder: norms", r"decoder\.(norms\.\d+|.+\.norm\d)"),
    ("decoder: attention, masks, query fusion", r"decoder(\..+)?"),
    ("scores", r""),
)
# Kinds of operation by their name in the profiler, first match. A copy below a cast is a cast.
KINDS = (
    ("attention", r"scaled_dot_product|flash|efficient_attention"),
    ("matrix products", r"(addmm|mm|bmm|linear|convolution|conv2d)(_|$)|^_?mkldnn|mkldnn_convolution|cudnn_conv"),
    ("GELU", r"gelu"),
    ("norms", r"_norm"),
    ("softmax", r"softmax"),
    ("sampling", r"embedding_bag"),
    ("casts", r"^(cast|_to_copy|to)$"),
    ("copies", r"copy|clone|cat$|stack|index|gather|contiguous"),
    ("memory", r"empty|resize|zeros|ones|fill|zero_"),
    (
        "additions and other arithmetic",
        r"add|sub|mul|div|relu|sigmoid|floor|clamp|where|eq|ge|lt|any|amax|sum",
    ),
    ("the rest", r""),
)
# Stages of a training step; what the loss multiplies is not counted.
STEP = ("forward and loss", "backward", "AdamW")


def stage_of(name: str) -> str:
    """Stage of a module, by its name in the network ("" for the network itself)."""
    return next(stage for stage, pattern in STAGES if re.fullmatch(pattern, name))


def count_operations(model: nn.Module, pixels: torch.Tensor) -> dict[str, int]:
    """Floating-point operations of a forward pass by stage, two per multiplication, attention as matrix products.

    Args:
        model: with frozen weights, on any device; on "meta" nothing is computed, and scores are their formula.
        pixels: (B, 3, H, W) on its device.
    """
    # mkldnn's and the CPU's fused attention are unknown to the counter
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(pixels)
    counts = {
        name.partition(".")[2]: sum(found.values())
        for name, found in counter.get_flop_counts().items()
        if name != "Global"
    }
    operations = dict.fromkeys((stage for stage, _ in STAGES), 0)
    for name, count in counts.items():
        operations[stage_of(name)] += count
        parent = name
        while parent:  # the nearest module around it that was called
            parent = parent.rpartition(".")[0]
            if parent in counts:
                operations[stage_of(parent)] -= count
                break
    assert sum(operations.values()) == counter.get_total_flops(), "a part of the network belongs to no stage"
    return operations


def count_step(model: nn.Module, pixels: torch.Tensor) -> dict[str, int]:
    """As `count_operations`, of a training step by the stages of `STEP`; `model` in training mode on "meta"."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        found = model(pixels, output_logits=False)
        forward = counter.get_total_flops()
        (found.class_queries_logits.sum() + found.masks_queries_logits.sum()).backward()
    return dict(zip(STEP, (forward, counter.get_total_flops() - forward, 0)))


def square_products(dtype: torch.dtype, device: torch.device, sides: tuple[int, ...]) -> dict[int, Callable]:
    """A product of two square matrices by its number of floating-point operations."""
    products = {}
    for side in sides:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        products[2 * side**3] = inference(partial(torch.mm, a, b))
    return products


def product_rate(products: dict[int, Callable], device: torch.device) -> float:
    """Floating-point operations per second of the fastest of `square_products`, each timed once."""
    return max(count / seconds(product, device) for count, product in products.items())


@contextmanager
def timed_stages(model: nn.Module, device: torch.device) -> Iterator[Callable[[], dict[str, float]]]:
    """Inside the block every forward pass is timed; call the result after each for its seconds by stage."""
    spans, stack, cpu_now = [], [], clock()  # (stage, stage around it, start, stop)

    def now():
        if device.type != "cuda":
            return cpu_now()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def enter(stage, *_):
        stack.append((stage, now()))

    def leave(*_):
        stage, start = stack.pop()
        spans.append((stage, stack[-1][0] if stack else None, start, now()))

    def collect() -> dict[str, float]:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times = dict.fromkeys((stage for stage, _ in STAGES), 0.0)
        for stage, around, start, stop in spans:
            taken = start.elapsed_time(stop) / 1000 if device.type == "cuda" else stop - start
            times[stage] += taken
            if around is not None:
                times[around] -= taken
        spans.clear()
        return times

    hooks = []
    for name, module in model.named_modules():
        hooks += [
            module.register_forward_pre_hook(partial(enter, stage_of(name))),
            module.register_forward_hook(leave),
        ]
    try:
        yield collect
    finally:
        for hook in hooks:
            hook.remove()


def kinds_of_operation(function: Callable, device: torch.device) -> dict[str, float]:
    """Seconds of one call by kind of operation, on a GPU those of its kernels, the longest first."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiler:
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    found = {}
    for event in profiler.events():
        if event.device_type != DeviceType.CPU or not event.name.startswith(("aten::", "mkldnn::", "qlseg::")):
            continue
        taken = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        name, parent = event.name.partition("::")[2], event.cpu_parent
        if name == "copy_" and parent is not None and parent.name == "aten::_to_copy":
            name = "cast"
        kind = next(kind for kind, pattern in KINDS if re.search(pattern, name))
        found[kind] = found.get(kind, 0.0) + taken / 1e6
    return dict(sorted(found.items(), key=lambda entry: -entry[1]))


def page_faults(function: Callable) -> int:
    """Pages of memory that the kernel hands out (or back again) during one call."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    function()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def measure_limit(settings: Settings, kind: str, batch: int) -> dict:
    """One dtype and batch size: rate, operations, time and their ratio, whole and by stage; the kinds of operation."""
    device, dtype = settings.device, DTYPES[kind]
    model = build(settings, dtype).requires_grad_(False)
    shape = (batch, 3, settings.size, settings.size)
    counted = build(settings, device="meta").requires_grad_(False)
    operations = count_operations(counted, torch.empty(shape, device="meta"))
    pixels = torch.randn(shape, device=device, dtype=dtype)
    variants = {"whole": inference(lambda: model(pixels))}
    if settings.compile:
        torch._dynamo.reset()  # beyond 8 compiled variants of a function PyTorch runs it as it is
        compiled = torch.compile(model, backend=settings.backend)
        check_compiled(f"whole in {kind}", model, compiled, pixels)
        variants["whole compiled"] = inference(lambda: compiled(pixels))

    def stages() -> dict[str, float]:
        with timed_stages(model, device) as collect:
            variants["whole"]()
            return collect()

    return _compare(variants, stages, operations, dtype, settings) | _profile(variants["whole"], device)


def measure_step_limit(settings: Settings, kind: str, batch: int) -> dict:
    """As `measure_limit`, of a training step: forward, loss, backward and AdamW. bf16, fp16: autocast over fp32."""
    device = settings.device
    shape = (batch, 3, settings.size, settings.size)
    operations = count_step(build(settings, device="meta").train(), torch.empty(shape, device="meta"))
    model = build(settings).train()
    labels = training_labels(batch, settings.size, model.config.num_labels, device)
    step = StepInParts(model, torch.randn(shape, device=device), labels, half_precision(device, kind))

    def stages() -> dict[str, float]:
        return {stage: seconds(part, device) for stage, part in zip(STEP, step.parts, strict=True)}

    return _compare({"whole": step}, stages, operations, DTYPES[kind], settings) | _profile(step, device)


def _compare(
    variants: dict[str, Callable],
    stages: Callable[[], dict[str, float]],
    operations: dict[str, int],
    dtype: torch.dtype,
    settings: Settings,
) -> dict:
    """Times of the wholes, and of the stages of one pass, beside what the operations take at the rate of that turn."""
    device, total = settings.device, sum(operations.values())
    sides = (4096, 8192) if device.type == "cuda" else (1024, 2048, 4096)
    products = square_products(dtype, device, (256,) if settings.release == TINY else sides)
    whole = take_turns(
        variants | {f"{n}": product for n, product in products.items()}, "whole", settings.repeats, device
    )
    timed = {count: whole.pop(f"{count}")["each"] for count in products}
    rates = [max(count / each[turn] for count, each in timed.items()) for turn in range(settings.repeats)]
    for row in whole.values():
        ratios = [taken * rate / total for taken, rate in zip(row["each"], rates, strict=True)]
        row |= {"to_limit": statistics.median(ratios), "lowest_to_limit": min(ratios)}
    turns = [
        (stages(), product_rate(products, device)) for _ in tqdm(range(settings.repeats + 1), "stages", leave=False)
    ][1:]
    by_stage = {}
    for stage, count in operations.items():
        by_stage[stage] = {
            "seconds": statistics.median(taken[stage] for taken, _ in turns),
            "operations": count,
            "limit_seconds": count / statistics.median(rate for _, rate in turns),
        }
        if count:
            by_stage[stage]["to_limit"] = statistics.median(taken[stage] * rate / count for taken, rate in turns)
    rate = statistics.median(rates)
    return {
        "operations": total,
        "products_per_s": {"median": rate, "each": rates, "beside_stages": [rate for _, rate in turns]},
        "limit_seconds": total / rate,
        "whole": whole,
        "stages": by_stage,
    }


def _profile(function: Callable, device: torch.device) -> dict:
    return {"kinds": kinds_of_operation(function, device), "page_faults": page_faults(function)}


def tables(name: str, found: dict) -> str:
    """Markdown of what `measure_limit` returns."""
    rate, limit = found["products_per_s"]["median"], found["limit_seconds"]
    head = f"{found['operations'] / 1e9:.0f} GFLOP at {rate / 1e9:.0f} GFLOP/s: limit {limit * 1e3:.4g} ms"
    rows = [
        [f"**{variant}**", row["seconds"], 1, found["operations"], limit, row["to_limit"]]
        for variant, row in found["whole"].items()
    ]
    sum_of_stages = sum(row["seconds"] for row in found["stages"].values())
    for stage, row in found["stages"].items():
        share = row["seconds"] / sum_of_stages
        rows.append([stage, row["seconds"], share, row["operations"], row["limit_seconds"], row.get("to_limit")])
    cells = [
        [text, f"{taken * 1e3:.4g}", f"{share:.1%}", f"{count / 1e9:.4g}", f"{floor * 1e3:.4g}"]
        + ["" if ratio is None else f"{ratio:.2f}"]
        for text, taken, share, count, floor, ratio in rows
    ]
    stages = markdown(["stage", "ms", "share", "GFLOP", "limit ms", "time / limit"], cells)
    total = sum(found["kinds"].values())
    kinds = [[kind, f"{taken * 1e3:.4g}", f"{taken / total:.1%}"] for kind, taken in found["kinds"].items()]
    where = markdown(["operations of one profiled pass", "ms", "share"], kinds)
    return f"## {name}\n\n{head}\n\n{stages}\n\n{where}\n\npage faults: {found['page_faults']}\n"


def report_limit(*, training: bool = False, output: Path | None = None, **given) -> None:
    """Print Markdown tables for every dtype and batch size; see `qlseg benchmark --help` and `make_settings`.

    `training`: of a training step instead of a forward pass.
    """
    settings = make_settings(**given)
    name_of = "limit training" if training else "limit"
    measure, batch_sizes = measure_limit, settings.batch_sizes
    if training:
        measure, batch_sizes = measure_step_limit, settings.training_batch_sizes
    kinds = settings.dtypes or ("fp32", "bf16") + ("fp16",) * (settings.device.type == "cuda")
    result = {"machine": machine(settings.device), "release": settings.release, "size": settings.size, "results": {}}
    print(f"# {settings.release}, {settings.size} x {settings.size}\n\n{json.dumps(result['machine'])}\n")
    for batch in batch_sizes:
        for kind in kinds:
            name = f"{name_of} b{batch} {kind}"
            result["results"][name] = measure(settings, kind, batch)
            print(tables(name, result["results"][name]))
    if output:
        write_atomically(output, (json.dumps(result, indent=1) + "\n").encode())


__all__ = [
    "count_operations",
    "count_step",
    "measure_limit",
    "measure_step_limit",
    "page_faults",
    "product_rate",
    "report_limit",
    "square_products",
    "stage_of",
    "tables",
]
