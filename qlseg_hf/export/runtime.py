# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A network in another runtime in place of the PyTorch one: what such networks share, whatever runs them."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ..hub.saving import QLSegForSemanticSegmentation, QLSegImageProcessor
from ..model.backbones import check_pixel_values
from ..model.configuration_qlseg import QLSegConfig
from ..model.image_io import resize_picture
from ..model.modeling_qlseg import QLSegOutput
from ..model.request import Request
from ..model.scores import combine, first_maximum
from ..model.windows import window_layout

OUTPUTS = ("class_queries_logits", "masks_queries_logits", "logits")
LABELS = "labels"  # the one output of a graph that ends in labels
CONFIG, PROCESSOR = "qlseg_config", "qlseg_image_processor"  # keys of a file's metadata


def settings_as_text(model: QLSegForSemanticSegmentation, processor: QLSegImageProcessor) -> dict[str, str]:
    """The configurations of network and processor as JSON, which a file keeps as metadata."""
    return {CONFIG: model.config.to_json_string(use_diff=False), PROCESSOR: processor.to_json_string()}


def read_settings(path: str | Path, metadata: Mapping[str, str]) -> tuple[QLSegConfig, QLSegImageProcessor]:
    """What `settings_as_text` has kept; ValueError if the file at `path` says nothing of a QLSeg network."""
    if not {CONFIG, PROCESSOR} <= set(metadata):
        raise ValueError(f"{path} says nothing of a QLSeg network; write it with qlseg export")
    config, processor = (json.loads(metadata[key]) for key in (CONFIG, PROCESSOR))
    return QLSegConfig.from_dict(config), QLSegImageProcessor.from_dict(processor)


def check_is_file(path: str | Path) -> Path:
    """`path`; FileNotFoundError if there is no such file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}; qlseg export writes one")
    return Path(path)


class ExportedQLSeg(ABC):
    """An exported network in place of the PyTorch one: for `segment` and `pipeline`, and called like it. On a CPU.

    `config` and `processor` come out of the file. It uses as many threads as torch did when it was loaded, and
    computes in `precision`, by OpenVINO's name for it.

    A file of `labels_only` has no scores: `label_maps` gives its labels, and `segment` takes it for images that are
    one window at their own size, in one run, without `labels`, scores or confidence. All else is refused, because
    scores are what is averaged over windows and runs and resized.
    """

    device, dtype, training = torch.device("cpu"), torch.float32, False
    input_modalities = ("image",)
    precision = "f32"

    def __init__(
        self, files: Sequence[Path], outputs: Sequence[str], config: QLSegConfig, processor: QLSegImageProcessor
    ):
        self.files = [file for file in files if file.is_file()]  # all that the network consists of
        self.outputs, self.config, self.processor = list(outputs), config, processor
        self.gives_labels = self.outputs == [LABELS]

    @abstractmethod
    def _infer(self, pixel_values: np.ndarray) -> Sequence[np.ndarray]:
        """All `outputs` of (B, channels, H, W) fp32; may be called by several threads at a time."""

    def eval(self) -> "ExportedQLSeg":
        return self

    def train(self, mode: bool = True) -> "ExportedQLSeg":
        """Does nothing if `mode` is False; ValueError otherwise."""
        if mode:
            raise ValueError("an exported network cannot be trained; train the PyTorch one and export it again")
        return self

    def to(self, device: torch.device | str | int) -> "ExportedQLSeg":
        """Does nothing if `device` is a CPU; ValueError otherwise."""
        if torch.device(device).type != "cpu":
            raise ValueError(f"an exported network runs on the CPU, not on {torch.device(device)}; say device='cpu'")
        return self

    def can_generate(self) -> bool:
        return False

    def __call__(
        self,
        pixel_values: torch.Tensor,
        window_offsets: torch.Tensor | None = None,
        output_logits: bool | None = None,
    ) -> QLSegOutput:
        """As `QLSegForSemanticSegmentation.forward`.

        Raises:
            ValueError: `pixel_values` has the wrong shape or type, or the file gives labels and no scores.
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
            ValueError: `pixel_values` has the wrong shape or type.
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
        """The outputs of the graph by name; ValueError if `pixel_values` has the wrong shape or type."""
        check_pixel_values(pixel_values, self.config.backbone_config.num_channels)
        found = self._infer(pixel_values.detach().float().numpy())  # what comes in other types, as into PyTorch's
        return {name: torch.from_numpy(array) for name, array in zip(self.outputs, found)}


__all__ = [
    "ExportedQLSeg",
    "LABELS",
    "OUTPUTS",
    "check_is_file",
    "read_settings",
    "settings_as_text",
]
