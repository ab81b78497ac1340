# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Networks whose weights are cut up over processes (FSDP2, DeepSpeed ZeRO-3): their parts, and whole weights of them.

Each process holds a part of every weight. What works element by element (the moving average) works on these parts;
what needs whole weights (evaluation, saving, checkpoints) gathers them, weight by weight, in every process at once.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, convert_outputs_to_fp32
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def held_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """{name in the state dict: the part that this process holds}; the whole weight where nothing is cut up."""
    held = {name: part_of(value) for name, value in network.state_dict().items()}
    return held | {name: value.ds_tensor for name, value in network.named_parameters() if hasattr(value, "ds_tensor")}


def part_of(value: torch.Tensor) -> torch.Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def gather_weights(network: nn.Module, held: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, whole tensor) of each of `held`, which are parts of weights as `held_weights` gives them.

    Every process has to go through all of them.
    """
    state, parameters = network.state_dict(), dict(network.named_parameters())
    for name, part in held.items():
        like, parameter = state[name], parameters.get(name)
        if isinstance(like, DTensor):
            place = {"shape": like.shape, "stride": like.stride(), "run_check": False}
            yield name, DTensor.from_local(part, like.device_mesh, like.placements, **place).full_tensor()
        elif hasattr(parameter, "ds_tensor"):
            parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, part)
            yield name, torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape)
        else:
            yield name, part


def cut_weights(network: nn.Module, whole: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `gather_weights`: what this process holds of whole weights; nothing is sent.

    Raises:
        ValueError: names or shapes are not those of the network.
    """
    state, parameters = network.state_dict(), dict(network.named_parameters())
    if differing := sorted(state.keys() ^ whole.keys()):
        raise ValueError(f"the weights differ in {', '.join(differing[:5])}")
    held = {}
    for name, value in whole.items():
        like, parameter = state[name], parameters.get(name)
        shape = getattr(parameter, "ds_shape", like.shape)
        if value.shape != shape:
            raise ValueError(f"{name} is of shape {tuple(value.shape)}, and {tuple(shape)} is wanted")
        if hasattr(parameter, "ds_tensor"):
            size, rank = parameter.ds_tensor.numel(), dist.get_rank()
            held[name] = nn.functional.pad(value.flatten(), (0, size * dist.get_world_size() - value.numel()))
            held[name] = held[name][rank * size : (rank + 1) * size]
        else:
            held[name] = part_of(cut_like(value, like))
    return held


def cut_like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor, cut up as `like` is; every process gives the same one, so nothing is sent."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def compute_in(network: nn.Module, accelerator: Accelerator) -> None:
    """Run a network's forward pass in the precision of the run, in place; weights and outputs stay fp32.

    accelerate does this for a network that is not cut up. For one that is, it would cast weights, gradients and
    the loss's inputs as well, which gives other losses than one process has.
    """
    if accelerator.mixed_precision in PRECISIONS:
        autocast = torch.autocast(accelerator.device.type, PRECISIONS[accelerator.mixed_precision])
        network.forward = convert_outputs_to_fp32(autocast(network.forward))


def prepare_sharded(accelerator: Accelerator, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple:
    """`Accelerator.prepare` for a network that it cuts up, with weights, gradients and their sums in fp32."""
    compute_in(network, accelerator)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        asked = {key: config[key] for key in PRECISIONS if key in config}  # where accelerate reads its precision
        config |= {key: {"enabled": False} for key in PRECISIONS}
        prepared = accelerator.prepare(network, optimizer)
        config |= asked
        return prepared
    plugin = accelerator.state.fsdp_plugin
    plugin.mixed_precision_policy = None  # see `compute_in`
    if plugin.transformer_cls_names_to_wrap is None:  # else accelerate wants classes of backbones that are not there
        names = {type(module).__name__ for module in network.modules()}
        plugin.transformer_cls_names_to_wrap = sorted(names.intersection(network._no_split_modules))
    # accelerate would cut up the patch projection once more, inside of the embeddings
    network.get_input_embeddings = lambda: None
    try:
        return accelerator.prepare(network, optimizer)
    finally:
        del network.get_input_embeddings


def save_whole_state(accelerator: Accelerator, folder: Path) -> None:
    """What `Accelerator.save_state` writes of a network that is not cut up, of one that is: any layout can go on."""
    network, optimizer = accelerator.unwrap_model(accelerator._models[0]), accelerator._optimizers[0]
    weights = {}
    for name, value in gather_weights(network, held_weights(network)):
        if accelerator.is_main_process:
            weights[name] = value.detach().cpu().contiguous()
    state = optimizer.state_dict()
    states = {number: {} for number in state["state"]}  # those of the optimiser are not to be changed
    for number, values in state["state"].items():
        for key, value in values.items():
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            states[number][key] = whole.cpu() if accelerator.is_main_process else None
    if accelerator.is_main_process:
        save_file(weights, folder / "model.safetensors")
        torch.save(state | {"state": states}, folder / "optimizer.bin")
        if accelerator.scaler is not None:
            torch.save(accelerator.scaler.state_dict(), folder / "scaler.pt")


def load_whole_state(accelerator: Accelerator, folder: Path) -> None:
    """Restore network, optimiser and loss scale from what `save_whole_state` or `Accelerator.save_state` wrote.

    Raises:
        ValueError: weights or groups of the optimiser are not those of the network.
    """
    network, optimizer = accelerator.unwrap_model(accelerator._models[0]), accelerator._optimizers[0]
    weights = load_file(folder / "model.safetensors")
    held = held_weights(network)
    for name, value in cut_weights(network, {key.removeprefix("module."): v for key, v in weights.items()}).items():
        held[name].copy_(value)
    state = torch.load(folder / "optimizer.bin", map_location="cpu", weights_only=True)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, values in state["state"].items():
        like = parameters[number]
        cut = {key: cut_like(value, like) for key, value in values.items() if value.shape == like.shape}
        state["state"][number] = values | cut
    optimizer.load_state_dict(state)
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(torch.load(folder / "scaler.pt", weights_only=True))


__all__ = [
    "compute_in",
    "cut_weights",
    "gather_weights",
    "held_weights",
    "load_whole_state",
    "prepare_sharded",
    "save_whole_state",
]
