# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What accelerate and its launchers were told, held against the recipe: nothing of it changes a run without a word."""

import os
import sys

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DeepSpeedPlugin, DistributedType, DynamoBackend, LoggerType
from transformers.integrations import unset_hf_deepspeed_config

from ..utils.distributed import fail_together, is_switched_on, join_processes
from .recipe import Recipe

# Accelerators with their networks, kept to the end of the process: DistributedDataParallel's destructor waits for
# threads that may just be waiting for Python's lock, which it holds, to let go of the last tensors they exchanged.
KEPT = []
MIXED = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}  # what accelerate calls the precisions
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)  # their checkpoints are in parts, one per process
ALL_PARALLEL = ("tp_size", "cp_size", "sp_size")  # processes that would see the same pictures
# parts of DeepSpeed's configuration that would train something else than the recipe says
FOREIGN = (
    "optimizer",
    "scheduler",
    "amp",
    "compression_training",
    "curriculum_learning",
    "data_efficiency",
    "progressive_layer_drop",
    "tensor_parallel",
)


def launched_precision() -> str | None:
    """fp32, bf16 or fp16, as accelerate's launcher was told; None if it was told nothing.

    Raises:
        ValueError: it was told another one.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if asked not in (None, *MIXED):
        raise ValueError(
            f"mixed_precision is {asked[:40]!r}; give accelerate no, bf16 or fp16"
            + (", fp8 has not been tried with this network" if asked.lower() == "fp8" else "")
        )
    return None if asked is None else MIXED[asked]


def start_accelerator(recipe: Recipe) -> Accelerator:
    """accelerate as its launcher was told, with batch and precision of the recipe; nothing is written.

    Raises:
        ValueError: it was told something that it would not do here, or that contradicts the recipe.
    """
    with fail_together(join_processes().num_processes):
        if is_switched_on("ACCELERATE_USE_MEGATRON_LM"):
            raise ValueError("Megatron-LM does not know this network; leave it out of accelerate's settings")
        check_trackers(recipe.report_to)
        launched = launched_precision()
        if recipe.precision and launched and recipe.precision != launched:
            raise ValueError(
                f"precision is {recipe.precision}, but accelerate was told {launched} (its launcher says no, which is "
                "fp32, where --mixed_precision is not given); make them the same"
            )
        wanted = {name: key for key, name in MIXED.items()}[recipe.precision or launched or "fp32"]
        accelerator = Accelerator(log_with=recipe.report_to, project_dir=recipe.output_dir, mixed_precision=wanted)
        KEPT.append(accelerator)
        check_launch(accelerator, wanted)
        check_compilation(accelerator, recipe)
        build_whole_networks(accelerator)
        fit_to_recipe(accelerator, recipe)
    return accelerator


def check_trackers(report_to: str | list[str] | None) -> None:
    """ImportError if a tracker's package is missing: accelerate would leave it out without a word.

    ValueError for a tracker that accelerate does not know.
    """
    available = [str(name) for name in get_available_trackers()]
    for name in [report_to] if isinstance(report_to, str) else report_to or []:
        if name not in LoggerType.list():
            raise ValueError(
                f"report_to: {name} is no tracker of accelerate; choose of {', '.join(LoggerType.list())}"
            )
        if name not in (*available, "all"):
            raise ImportError(
                f"report_to: {name} needs a package that is not installed; pip install {name}, or leave it out"
            )


def check_launch(accelerator: Accelerator, asked: str) -> None:
    """ValueError if precision, distribution or compilation are not those that were asked for."""
    device, kind = accelerator.device.type, accelerator.distributed_type
    used = accelerator.mixed_precision
    if used != asked:
        raise ValueError(f"mixed_precision {asked} was asked for, but {used} would be used; make them the same")
    if used != "no" and not accelerator.native_amp and kind != DistributedType.DEEPSPEED:
        raise ValueError(
            f"mixed_precision {used} does nothing on a {device.upper()}, where fp32 would be used; choose bf16 or no"
        )
    for variable, wanted in (
        ("ACCELERATE_USE_DEEPSPEED", DistributedType.DEEPSPEED),
        ("ACCELERATE_USE_FSDP", DistributedType.FSDP),
    ):
        if is_switched_on(variable) and kind != wanted:
            raise ValueError(
                f"{wanted.value} was asked for, but accelerate would run {kind.value} on {accelerator.num_processes} "
                f"{device.upper()} process(es); start it on GPUs with accelerate launch, or leave it out"
            )
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ValueError(
            "FSDP of version 1 flattens weights, which are then not those of the recipe's groups; set fsdp_version: 2 "
            "in accelerate's configuration, or --fsdp_version 2"
        )
    if kind == DistributedType.DEEPSPEED:
        check_deepspeed(accelerator.state.deepspeed_plugin, used)
    layout = getattr(accelerator, "parallelism_config", None)
    if too_many := [f"{name} {getattr(layout, name)}" for name in ALL_PARALLEL if getattr(layout, name, 1) > 1]:
        raise ValueError(
            f"accelerate's {', '.join(too_many)} would give several processes the same pictures; set it to 1"
        )
    if (backend := accelerator.state.dynamo_plugin.backend) != DynamoBackend.NO:
        raise ValueError(
            f"accelerate's dynamo_backend {backend.value.lower()} wraps the whole network, which could not be saved; "
            "leave it out (--dynamo_backend no) and set compile: true in the recipe"
        )


def check_compilation(accelerator: Accelerator, recipe: Recipe) -> None:
    """ValueError for what was seen to give wrong numbers.

    GCC 12.2 with -O3 breaks kernels of inductor (PyTorch 2.13) that transpose 16-bit maps on CPUs with AVX-512:
    most of what the pixel encoder gives is then another number, and some is NaN. With -O1 the kernels are right.
    """
    if recipe.compile and accelerator.device.type == "cpu" and accelerator.mixed_precision != "no":
        raise ValueError(
            f"compile: true in {accelerator.mixed_precision} gives wrong numbers on CPUs with some C++ compilers; set "
            "precision: fp32, or leave compile out, which gains little on a CPU"
        )


def check_deepspeed(plugin: DeepSpeedPlugin, precision: str) -> None:
    """ValueError if DeepSpeed was asked for something that it would do otherwise than the recipe says."""
    if plugin.offload_param_device not in (None, "none"):
        raise ValueError(
            f"DeepSpeed was told offload_param_device {plugin.offload_param_device}, and weights that no GPU holds "
            "cannot be gathered to evaluate them; set it to none"
        )
    if plugin.zero_stage == 0:
        raise ValueError("DeepSpeed with ZeRO stage 0 cuts nothing up; take stage 2 or 3, or leave DeepSpeed out")
    if precision == "fp16":
        raise ValueError(
            "fp16 with DeepSpeed would keep weights in fp16, and here they are fp32; choose bf16 or no, or leave "
            "DeepSpeed out"
        )


def build_whole_networks(accelerator: Accelerator) -> None:
    """Let every process build the whole network, which is cut up afterwards.

    transformers would cut it up layer by layer while it is built (ZeRO-3), or leave it empty in all processes but the
    first (FSDP, as its launcher has it by default), and either way weights could not be read, extended or copied.
    """
    unset_hf_deepspeed_config()
    if accelerator.distributed_type == DistributedType.FSDP:
        accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = False
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"


def fit_to_recipe(accelerator: Accelerator, recipe: Recipe) -> None:
    """Write batch, accumulation and clipping of the recipe into accelerate and DeepSpeed; says what gave way.

    Raises:
        ValueError: the total batch does not divide, or DeepSpeed's configuration holds what only the recipe decides.
    """
    steps = recipe.accumulation_steps(accelerator.num_processes)
    wanted: dict[str, float] = {"gradient_accumulation_steps": steps}
    found = {"gradient_accumulation_steps": accelerator.gradient_accumulation_steps}
    accelerator.gradient_accumulation_steps = steps
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        plugin = accelerator.state.deepspeed_plugin
        found = plugin.deepspeed_config
        if foreign := [key for key in FOREIGN if found.get(key)]:
            raise ValueError(
                f"DeepSpeed's configuration holds {', '.join(foreign)}, which the recipe decides; take it out there"
            )
        wanted |= {
            "train_micro_batch_size_per_gpu": recipe.per_device_batch_size,
            "train_batch_size": recipe.total_batch_size,
            "gradient_clipping": recipe.max_grad_norm,
        }
        plugin.gradient_accumulation_steps, plugin.gradient_clipping = steps, recipe.max_grad_norm
    # accelerate's launcher fills in an accumulation of 1 by itself
    given_way = [
        f"{key} {found[key]} -> {value}"
        for key, value in wanted.items()
        if found.get(key) not in (None, "auto", value) and (key, found[key]) != ("gradient_accumulation_steps", 1)
    ]
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        found |= wanted
    if given_way:
        accelerator.print(f"the recipe replaces settings of accelerate: {', '.join(given_way)}", file=sys.stderr)


def check_batch(accelerator: Accelerator, recipe: Recipe) -> None:
    """ValueError if a step would take other pictures than the recipe says, or clip elsewhere, once all is prepared."""
    passes, processes = accelerator.gradient_accumulation_steps, accelerator.num_processes
    found = {"total_batch_size": recipe.per_device_batch_size * passes * processes}
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        product = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * processes
        found["per_device_batch_size"] = config["train_micro_batch_size_per_gpu"]
        found["total_batch_size"] = product if product != recipe.total_batch_size else found["total_batch_size"]
        found["max_grad_norm"] = config["gradient_clipping"]
    if differing := [
        f"{key} is {value} and not {getattr(recipe, key)}"
        for key, value in found.items()
        if value != getattr(recipe, key)
    ]:
        raise ValueError(
            f"accelerate has changed the recipe: {', '.join(differing)}; take these settings out of its configuration"
        )


def launch_facts(accelerator: Accelerator) -> dict[str, int | str]:
    """How a run is computed, as checkpoints and cards state it.

    Returns:
        `num_processes`; `distribution`: accelerate's name (NO, MULTI_CPU, MULTI_GPU, FSDP, ...), with ZeRO's stage
        (DEEPSPEED ZeRO-3);
        `precision` of the forward pass: fp32, bf16 or fp16. Weights are updated and saved in fp32.
    """
    precision, distribution = accelerator.mixed_precision, accelerator.distributed_type.value
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        distribution += f" ZeRO-{accelerator.state.deepspeed_plugin.zero_stage}"
    return {
        "num_processes": accelerator.num_processes,
        "distribution": distribution,
        "precision": "fp32" if precision == "no" else precision,
    }


__all__ = ["SHARDED", "launch_facts", "check_batch", "start_accelerator"]
