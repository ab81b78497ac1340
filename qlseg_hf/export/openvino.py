# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""QLSeg as a model of OpenVINO: writing it, and running it on a CPU in place of the PyTorch network.

The graph is that of the ONNX file, for any batch, height and width, with fp32 weights; the .xml holds it and the
configurations of network and processor, the .bin beside it the weights.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ..hub.saving import QLSegForSemanticSegmentation, QLSegImageProcessor
from ..model.configuration_qlseg import QLSegConfig
from ..utils.files import partial_folder
from ..utils.optional import import_package
from .onnx import graph_outputs, make_program, place_files, save_program
from .runtime import ExportedQLSeg, check_is_file, read_settings, settings_as_text

TELEMETRY = "openvino_telemetry"
PRECISION = "INFERENCE_PRECISION_HINT"


def import_openvino() -> ModuleType:
    """OpenVINO, without its telemetry if this imports it first: its import alone reports to Google Analytics.

    Raises:
        ImportError: it is missing; says what to install.
    """
    silenced = TELEMETRY not in sys.modules
    if silenced:
        sys.modules[TELEMETRY] = None  # as if it were not installed, which OpenVINO is ready for
    try:
        return import_package("openvino", "Core", "OpenVINO", "'qlseg-hf[openvino]'")
    finally:
        if silenced:
            del sys.modules[TELEMETRY]


def write_openvino(
    model: QLSegForSemanticSegmentation,
    processor: QLSegImageProcessor,
    path: str | Path,
    with_logits: bool = True,
    check: Callable[[Path], None] = lambda path: None,
    labels_only: bool = False,
) -> None:
    """Write a network as a model of OpenVINO: `path` and, with the weights, the file of the same name in .bin.

    Args:
        path: a name that ends in .xml. Both files are written beside it and moved there.
        model, processor, with_logits, check, labels_only: as of `write_onnx`.

    Raises:
        ImportError: an optional package is missing.
        ValueError: `path` ends otherwise, the network is not in fp32 on a CPU, or the processor's settings do not go
            together.
    """
    path = Path(path)
    if path.suffix != ".xml":
        raise ValueError(f"{path} must end in .xml, by which OpenVINO knows its models")
    openvino = import_openvino()
    program = make_program(model, processor, graph_outputs(with_logits, labels_only))
    with partial_folder(path.name, path.parent) as folder, partial_folder(f"{path.stem}.onnx", path.parent) as other:
        save_program(program, other / "graph.onnx")
        graph = openvino.Core().read_model(other / "graph.onnx")
        for key, text in settings_as_text(model, processor).items():
            graph.set_rt_info(text, key)
        beside = folder / path.name
        openvino.save_model(graph, beside, compress_to_fp16=False)
        check(beside)
        place_files(beside, path, path.with_suffix(".bin").name)


class OpenVINOQLSeg(ExportedQLSeg):
    """A file of `write_openvino` in OpenVINO, on a CPU; see `ExportedQLSeg`."""

    def __init__(self, path: Path, compiled, config: QLSegConfig, processor: QLSegImageProcessor):
        outputs = [output.any_name for output in compiled.outputs]
        super().__init__([path, path.with_suffix(".bin")], outputs, config, processor)
        self.compiled, self.precision = compiled, compiled.get_property(PRECISION).get_type_name()

    @classmethod
    def from_pretrained(cls, path: str | Path, ov_config: dict[str, Any] | None = None) -> "OpenVINOQLSeg":
        """Load a file that `write_openvino` has written.

        Args:
            path: the .xml, with the .bin beside it.
            ov_config: properties of OpenVINO's CPU device. `{"INFERENCE_PRECISION_HINT": "bf16"}` computes in bf16;
                without it "f32" is taken, and not OpenVINO's own default, which is bf16 where the processor has it.
                `INFERENCE_NUM_THREADS` is as many as torch's if not given.

        Raises:
            ImportError: OpenVINO is missing.
            FileNotFoundError, ValueError: there is no such file, it is no model of OpenVINO, or not of a QLSeg
                network, a property is unknown, or the processor does not compute in the precision asked for.
        """
        openvino = import_openvino()
        path = check_is_file(path)
        check_is_file(path.with_suffix(".bin"))
        wanted = {PRECISION: "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()} | (ov_config or {})
        core = openvino.Core()
        try:
            graph = core.read_model(path)
        except RuntimeError as error:
            raise ValueError(f"OpenVINO cannot read {path}: {error}") from error
        metadata = {key: value.astype(str) for key, value in graph.get_rt_info().items() if key.startswith("qlseg_")}
        config, processor = read_settings(path, metadata)
        try:
            compiled = core.compile_model(graph, "CPU", wanted)
        except RuntimeError as error:
            raise ValueError(f"OpenVINO cannot run {path} with {wanted}: {error}") from error
        loaded = cls(path, compiled, config, processor)
        asked, taken = wanted[PRECISION], loaded.precision
        if isinstance(asked, str) and asked not in (taken, "undefined"):
            raise ValueError(f"this processor has no {asked}: OpenVINO would compute in {taken}; ask for that")
        return loaded

    def _infer(self, pixel_values: np.ndarray) -> list[np.ndarray]:
        found = self.compiled.create_infer_request().infer({"pixel_values": pixel_values}, share_inputs=True)
        return [found[name] for name in self.outputs]


__all__ = ["OpenVINOQLSeg", "write_openvino"]
