# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""QLSeg as an ONNX file: writing it, and running it with onnxruntime in place of the PyTorch network.

The file holds one graph for any batch, height and width, in fp32 and operators of the ONNX standard, and as metadata
the configurations of network and image processor, so that nothing else is needed to segment pictures.
"""

import json
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
from ..model.image_io import resize_picture
from ..model.modeling_qlseg import QLSegOutput
from ..model.runtime import eval_mode
from ..model.scores import combine, first_maximum
from ..model.segmentation import Request
from ..model.windows import window_layout
from ..utils.files import partial_folder
from ..utils.optional import import_package

if TYPE_CHECKING:
    import onnx_ir

OUTPUTS = ("class_queries_logits", "masks_queries_logits", "logits")
LABELS = "labels"  # the one output of a graph that ends in labels
AXES = {0: "batch", 2: "height", 3: "width"}
CONFIG, PROCESSOR = "qlseg_config", "qlseg_image_processor"  # keys of the file's metadata
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
    backbone = model.config.backbone_config
    height, width = as_pair(backbone.patch_size)
    # sides that no number of patches fills: what happens to whole ones must not become the rule
    pixel_values = torch.zeros(2, backbone.num_channels, 5 * height + 3, 7 * width + 1)
    own, its = model.config._attn_implementation, backbone._attn_implementation
    model.set_attn_implementation("eager")  # the others guard against rows without any key, which do not exist here
    try:
        with eval_mode(model):
            return torch.onnx.export(
                GraphOutputs(model, outputs),
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
        path: of the file. Weights beyond 2 GiB, the most that an ONNX file can hold, go into PATH.data beside it.
        with_logits: has the graph the output `logits` too? onnxruntime computes it whether asked for or not, and
            `segment` has no use for it.
        check: called with the finished file before it is moved; if it raises, nothing is moved.
        labels_only: the graph has one output instead, `labels`: (B, H, W) in `label_dtype`. See `OnnxQLSeg` for what
            cannot be done with it.

    Raises:
        ImportError: an optional package is missing.
        ValueError: the network is not in fp32 on a CPU, or the processor's settings do not go together.
    """
    path = Path(path)
    program = make_program(model, processor, (LABELS,) if labels_only else OUTPUTS if with_logits else OUTPUTS[:2])
    data = f"{path.name}.data" if sum(weights.nbytes for weights in model.parameters()) > MOST_BYTES else None
    with partial_folder(path.name, path.parent) as folder:
        beside = folder / path.name
        optional("onnx_ir").save(program, beside, external_data=data)
        check(beside)
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
    program.metadata_props[CONFIG] = model.config.to_json_string(use_diff=False)
    program.metadata_props[PROCESSOR] = processor.to_json_string()
    return program


class OnnxQLSeg:
    """An exported network in place of the PyTorch one: for `segment`, and called like it. On a CPU, in fp32.

    `config` and `processor` come out of the file. It uses as many threads as torch did when it was loaded.

    A file of `labels_only` has no scores: `label_maps` gives its labels, and `segment` takes it for images that are
    one window at their own size, in one run, without `labels`, scores or confidence. All else is refused, because
    scores are what is averaged over windows and runs and resized.
    """

    device, dtype, training = torch.device("cpu"), torch.float32, False

    def __init__(self, session, config: QLSegConfig, processor: QLSegImageProcessor):
        self.session, self.config, self.processor = session, config, processor
        self.outputs = [output.name for output in session.get_outputs()]
        self.gives_labels = self.outputs == [LABELS]

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "OnnxQLSeg":
        """Load a file that `write_onnx` has written.

        Raises:
            ImportError: onnxruntime is missing.
            FileNotFoundError, ValueError: there is no such file, it is no ONNX file, or not of a QLSeg network.
        """
        onnxruntime = optional("onnxruntime")
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path}; qlseg export writes one")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no other base
            raise ValueError(f"onnxruntime cannot read {path}: {error}") from error
        metadata = session.get_modelmeta().custom_metadata_map
        if not {CONFIG, PROCESSOR} <= set(metadata):
            raise ValueError(f"{path} says nothing of a QLSeg network; write it with qlseg export")
        config = QLSegConfig.from_dict(json.loads(metadata[CONFIG]))
        return cls(session, config, QLSegImageProcessor.from_dict(json.loads(metadata[PROCESSOR])))

    def eval(self) -> "OnnxQLSeg":
        return self

    def train(self, mode: bool = True) -> "OnnxQLSeg":
        """Does nothing if `mode` is False; ValueError otherwise."""
        if mode:
            raise ValueError("an exported network cannot be trained; train the PyTorch one and export it again")
        return self

    def __call__(
        self,
        pixel_values: torch.Tensor,
        window_offsets: torch.Tensor | None = None,
        output_logits: bool | None = None,
    ) -> QLSegOutput:
        """As `QLSegForSemanticSegmentation.forward`.

        Raises:
            ValueError: `pixel_values` has the wrong shape, or the file gives labels and no scores.
        """
        if self.gives_labels:
            raise ValueError(
                "this file gives labels and no scores: call model.label_maps(pixel_values), or export it with "
                "--outputs scores"
            )
        outputs = self._run(pixel_values)
        logits = outputs.pop("logits", None)
        if output_logits is False:
            logits = None
        elif logits is None:
            size = tuple(pixel_values.shape[-2:])
            logits = combine(outputs["class_queries_logits"], outputs["masks_queries_logits"], size)
        return QLSegOutput(logits=logits, window_offsets=window_offsets, **outputs)

    def label_maps(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, H, W) int64: the best label of every pixel of each window, by itself.

        Args:
            pixel_values: (B, channels, H, W) fp32, normalised as the processor does.

        Raises:
            ValueError: `pixel_values` has the wrong shape.
        """
        if self.gives_labels:
            return self._run(pixel_values)[LABELS].long()
        return torch.stack([first_maximum(scores) for scores in self(pixel_values).logits])

    def label_map(self, picture: np.ndarray, request: Request) -> torch.Tensor:
        """The (H, W) int64 label map of an (H, W, channels) image, for `segment` and a file that gives labels.

        Raises:
            ValueError: scores would be needed: the image is not one window at its own size, or `request` asks for more
                than labels.
        """
        size = tuple(picture.shape[:2])
        layout = window_layout(request.settings, size, request.scales, request.flip, request.max_windows)
        resized, num_windows = layout[0][0], sum(len(places) for *_, places in layout)
        reasons = {
            f"the average of {num_windows} windows": num_windows > 1,
            f"the resize from {resized[0]} x {resized[1]} to the image's {size[0]} x {size[1]}": resized != size,
            "a choice of labels": request.wanted is not None,
            "return_scores": request.return_scores,
            "return_confidence": request.return_confidence,
        }
        if needing := [what for what, needs_scores in reasons.items() if needs_scores]:
            raise ValueError(
                f"the network gives labels and no scores, which {needing[0]} needs; export it with --outputs scores"
            )
        return self.label_maps(request.settings.normalized(resize_picture(picture, size))[None])[0]

    def _run(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """The outputs of the graph by name; ValueError if `pixel_values` has the wrong shape."""
        channels = self.config.backbone_config.num_channels
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise ValueError(f"pixel_values has shape {tuple(pixel_values.shape)}; (B, {channels}, H, W) is wanted")
        found = self.session.run(self.outputs, {"pixel_values": pixel_values.numpy()})
        return {name: torch.from_numpy(array) for name, array in zip(self.outputs, found)}


__all__ = ["OnnxQLSeg", "write_onnx"]
