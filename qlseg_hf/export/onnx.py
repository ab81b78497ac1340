# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""QLSeg as an ONNX file: writing it, and running it with onnxruntime in place of the PyTorch network.

The file holds one graph for any batch, height and width, in fp32 and operators of the ONNX standard, and as metadata
the configurations of network and image processor, so that nothing else is needed to segment pictures.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..hub.saving import QLSegForSemanticSegmentation, QLSegImageProcessor
from ..model.configuration_qlseg import QLSegConfig, as_pair
from ..model.runtime import eval_mode
from ..utils.files import partial_folder
from ..utils.optional import import_package
from .runtime import LABELS, OUTPUTS, ExportedQLSeg, check_is_file, read_settings, settings_as_text

if TYPE_CHECKING:
    import onnx_ir

AXES = {0: "batch", 2: "height", 3: "width"}
OPSET = 20  # the first with Gelu
MOST_BYTES = 2**31 - 2**24  # of weights in one file: protobuf's limit, less what the graph takes


def optional(name: str) -> ModuleType:
    """Import a package of the extra `export`; ImportError says what is wrong with it."""
    return import_package(name, "__version__", "ONNX", "'qlseg-hf[export]'")


def label_dtype(num_labels: int) -> torch.dtype:
    """The smallest of uint8, uint16 and int32 that holds every label."""
    return torch.uint8 if num_labels <= 2**8 else torch.uint16 if num_labels <= 2**16 else torch.int32


class GraphOutputs(nn.Module):
    """A network whose forward returns a tuple of outputs; `labels` is the best label of each pixel, the first of equal
    ones, in `label_dtype`."""

    def __init__(self, model: QLSegForSemanticSegmentation, names: tuple[str, ...]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with_logits = self.names != OUTPUTS[:2]
        outputs = self.model(pixel_values=pixel_values, output_logits=with_logits, return_dict=True)
        if self.names == (LABELS,):
            return (outputs.logits.argmax(dim=1).to(label_dtype(self.model.config.num_labels)),)  # (B, H, W)
        return tuple(outputs[name] for name in self.names)


def onnx_program(model: QLSegForSemanticSegmentation, outputs: tuple[str, ...]) -> torch.onnx.ONNXProgram:
    """The graph of a network in inference mode, for any batch, height and width; see `write_onnx`."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which is not used
    backbone = model.config.backbone_config
    height, width = as_pair(backbone.patch_size)
    # sides that no number of patches fills: what happens to whole ones must not become the rule
    pixel_values = torch.zeros(2, backbone.num_channels, 5 * height + 3, 7 * width + 1)
    own, its = model.config._attn_implementation, backbone._attn_implementation
    model.set_attn_implementation("eager")  # the others guard against rows without any key, which do not exist here
    try:
        with eval_mode(model):
            return torch.onnx.export(
                GraphOutputs(model, outputs).eval(),
                (pixel_values,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["pixel_values"],
                output_names=outputs,
                dynamic_shapes=({axis: torch.export.Dim(name) for axis, name in AXES.items()},),
                verbose=False,
            )
    finally:
        model.set_attn_implementation({"": own, "backbone_config": its})


def write_onnx(
    model: QLSegForSemanticSegmentation,
    processor: QLSegImageProcessor,
    path: str | Path,
    with_logits: bool = True,
    check: Callable[[Path], None] = lambda path: None,
    labels_only: bool = False,
) -> None:
    """Write a network as an ONNX file. It is written beside `path` and moved there, so `path` is never half a model.

    Args:
        model: in fp32 on a CPU, in any mode; the graph is that of inference.
        processor: how its pictures are made, for `OnnxQLSeg`.
        path: a name that ends in .onnx. Weights beyond 2 GiB, the most that an ONNX file can hold, go into PATH.data
            beside it.
        with_logits: has the graph the output `logits` too? onnxruntime computes it whether asked for or not, and
            `segment` has no use for it.
        check: called with the finished file before it is moved; if it raises, nothing is moved.
        labels_only: the graph has one output instead, `labels`: (B, H, W) in `label_dtype`. See `OnnxQLSeg` for what
            cannot be done with it.

    Raises:
        ImportError: an optional package is missing.
        ValueError: `path` ends otherwise, the network is not in fp32 on a CPU, or the processor's settings do not go
            together.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"{path} must end in .onnx, by which a model's file is known; other formats need --format")
    program = make_program(model, processor, graph_outputs(with_logits, labels_only))
    with partial_folder(path.name, path.parent) as folder:
        beside = folder / path.name
        data = save_program(program, beside)
        check(beside)
        place_files(beside, path, data)


def graph_outputs(with_logits: bool, labels_only: bool) -> tuple[str, ...]:
    """What a graph is to give, see `write_onnx`."""
    return (LABELS,) if labels_only else OUTPUTS if with_logits else OUTPUTS[:2]


def save_program(program: "onnx_ir.Model", path: Path) -> str | None:
    """Write a graph; the name of the file beside `path` that has its weights, if one file cannot hold them."""
    num_bytes = sum(value.const_value.nbytes for value in program.graph.initializers.values())
    data = f"{path.name}.data" if num_bytes > MOST_BYTES else None
    optional("onnx_ir").save(program, path, external_data=data)
    return data


def place_files(beside: Path, path: Path, data: str | None) -> None:
    """Move a finished graph to `path`, after the file of its weights, `data`, if there is one."""
    if data is not None:
        path.unlink(missing_ok=True)  # a kill between the two moves must not leave a graph with other weights
        os.replace(beside.with_name(data), path.with_name(data))
    os.replace(beside, path)


def make_program(
    model: QLSegForSemanticSegmentation, processor: QLSegImageProcessor, outputs: tuple[str, ...]
) -> "onnx_ir.Model":
    """The graph that `write_onnx` stores, with the configurations as metadata; raises as that does."""
    for name in ("onnx", "onnxscript"):
        optional(name)
    processor.settings().check_network(model.config)  # before minutes are spent
    if (model.dtype, model.device.type) != (torch.float32, "cpu"):
        raise ValueError(f"the model is {model.dtype} on {model.device}; call model.float().cpu() before the export")
    program = onnx_program(model, outputs).model
    for part in (program.graph, *program.graph, *program.graph.inputs, *program.graph.outputs):
        part.metadata_props.clear()  # the exporter's notes: stack traces, with the paths of this machine
    for value in (value for node in program.graph for value in node.outputs):
        value.metadata_props.clear()
    for node in program.graph:
        if node.op_type == "Resize":  # torch 2.11 writes pytorch_half_pixel, which is not PyTorch's where a side is 1
            mode = optional("onnx_ir").AttrString("coordinate_transformation_mode", "half_pixel")
            node.attributes[mode.name] = mode
    program.metadata_props.clear()
    program.metadata_props.update(settings_as_text(model, processor))
    return program


class OnnxQLSeg(ExportedQLSeg):
    """A file of `write_onnx` in onnxruntime, in fp32; see `ExportedQLSeg`."""

    def __init__(self, path: Path, session, config: QLSegConfig, processor: QLSegImageProcessor):
        outputs = [output.name for output in session.get_outputs()]
        super().__init__([path, path.with_name(f"{path.name}.data")], outputs, config, processor)
        self.session = session

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "OnnxQLSeg":
        """Load a file that `write_onnx` has written.

        Raises:
            ImportError: onnxruntime is missing.
            FileNotFoundError, ValueError: there is no such file, it is no ONNX file, or not of a QLSeg network.
        """
        onnxruntime = optional("onnxruntime")
        path = check_is_file(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no other base
            raise ValueError(f"onnxruntime cannot read {path}: {error}") from error
        return cls(path, session, *read_settings(path, session.get_modelmeta().custom_metadata_map))

    def _infer(self, pixel_values: np.ndarray) -> list[np.ndarray]:
        return self.session.run(self.outputs, {"pixel_values": pixel_values})


__all__ = ["OnnxQLSeg", "make_program", "write_onnx"]
