# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Time against the machine's limit: how long the network's operations would take at the rate of a matrix product.

The rate is measured by dtype beside every timed pass, because that of a machine shared with others changes within
seconds, by as much as three times. What is above the limit is no matrix product, or one that is slower than the
fastest: rows say by stage of the network how much, and by kind of operation.
"""

import copy
import itertools
import re
import resource
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ..utils.devices import PackedLinear, place_for_inference
from .measure import Rows, clock, compile_checked, seconds, take_turns
from .settings import DTYPES, TINY, Settings, build, draw_pixels, inference
from .training import StepInParts, half_precision, made_batch

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


def count_operations(settings: Settings, batch: int) -> dict[str, int]:
    """Floating-point operations of a forward pass by stage, two per multiplication, attention as matrix products.

    Nothing is computed, and scores are their formula.
    """
    model = build(settings, device="meta").requires_grad_(False)
    pixels = torch.empty(batch, 3, settings.size, settings.size, device="meta")
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


def count_step(settings: Settings, batch: int) -> dict[str, int]:
    """As `count_operations`, of a training step by the stages of `STEP`."""
    model = build(settings, device="meta").train()
    pixels = torch.empty(batch, 3, settings.size, settings.size, device="meta")
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


def run_limit(settings: Settings) -> Rows:
    """Of forward passes, by batch size and dtype: see `_compare`.

    "whole" is the network as the commands run it. Where its layers are packed for that, as built it is a variant.
    """
    for batch, kind in itertools.product(settings.batch_sizes, _kinds(settings)):
        built, pixels = build(settings, DTYPES[kind]).requires_grad_(False), draw_pixels(settings, batch, DTYPES[kind])
        model = place_for_inference(copy.deepcopy(built), settings.device)
        networks: dict[str, Callable] = {"whole": model}
        if any(isinstance(module, PackedLinear) for module in model.modules()):
            networks["whole as built"] = built
        if settings.compile:
            networks["whole compiled"] = compile_checked(settings, {"whole": built}, pixels)["whole"]
        variants = {name: inference(partial(network, pixels)) for name, network in networks.items()}

        def stages(model=model, run=variants["whole"]) -> dict[str, float]:
            with timed_stages(model, settings.device) as collect:
                run()
                return collect()

        counts = count_operations(settings, batch)
        yield from _compare(f"limit b{batch} {kind}", variants, stages, counts, DTYPES[kind], settings)


def run_step_limit(settings: Settings) -> Rows:
    """As `run_limit`, of training steps: forward, loss, backward and AdamW. bf16, fp16: autocast over fp32."""
    device = settings.device
    for count, kind in itertools.product(settings.training_batch_sizes, _kinds(settings)):
        model = build(settings).train()
        step = StepInParts(model, made_batch(settings, count, model.config.num_labels), half_precision(device, kind))

        def stages(step=step) -> dict[str, float]:
            return {stage: seconds(part, device) for stage, part in zip(STEP, step.parts, strict=True)}

        counts = count_step(settings, count)
        name = f"limit training b{count} {kind}"
        yield from _compare(name, {"whole": step}, stages, counts, DTYPES[kind], settings)


def _kinds(settings: Settings) -> tuple[str, ...]:
    return settings.dtypes or ("fp32", "bf16") + ("fp16",) * (settings.device.type == "cuda")


def _compare(
    name: str,
    variants: dict[str, Callable],
    stages: Callable[[], dict[str, float]],
    operations: dict[str, int],
    dtype: torch.dtype,
    settings: Settings,
) -> Rows:
    """Times of wholes and of the stages of one pass; `ratio` is to what their operations take at that turn's rate.

    Then seconds of one profiled pass by kind of operation.
    """
    device, total = settings.device, sum(operations.values())
    sides = (4096, 8192) if device.type == "cuda" else (1024, 2048, 4096)
    products = square_products(dtype, device, (256,) if settings.release == TINY else sides)
    timed = variants | {f"{count}": product for count, product in products.items()}
    whole = take_turns(timed, "whole", settings.repeats, device)
    each = {count: whole.pop(f"{count}")["each"] for count in products}
    rates = [max(count / taken[turn] for count, taken in each.items()) for turn in range(settings.repeats)]
    rate = statistics.median(rates)
    for variant, row in whole.items():
        ratios = [taken * rate / total for taken, rate in zip(row["each"], rates, strict=True)]
        row |= {"ratio": statistics.median(ratios), "lowest_ratio": min(ratios), "operations": total}
        yield f"{name} {variant}", row | {"limit_seconds": total / rate, "products_per_s": rate, "each_rate": rates}
    turns = [
        (stages(), product_rate(products, device)) for _ in tqdm(range(settings.repeats + 1), "stages", leave=False)
    ][1:]
    rate = statistics.median(rate for _, rate in turns)
    for stage, count in operations.items():
        row = {"seconds": statistics.median(taken[stage] for taken, _ in turns), "operations": count}
        if count:
            row["ratio"] = statistics.median(taken[stage] * rate / count for taken, rate in turns)
        yield f"{name} {stage}", row | {"limit_seconds": count / rate}
    kinds = kinds_of_operation(variants["whole"], device)
    yield f"{name} kinds of operation", kinds | {"page_faults": page_faults(variants["whole"])}


__all__ = ["count_operations", "count_step", "run_limit", "run_step_limit", "stage_of"]
