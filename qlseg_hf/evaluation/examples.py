# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The worst and the best pictures of an evaluation, prediction beside reference."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.datasets import Sample, Samples, StreamedSamples
from ..model.image_processing_qlseg import QLSegImageProcessor
from ..model.modeling_qlseg import QLSegForSemanticSegmentation
from ..model.segmentation import segment
from ..utils.distributed import fail_together, gather_objects
from ..utils.html import Comparison, Picture, data_uri
from ..utils.visualization import label_colors, label_shares, legend_name, tint_picture
from .evaluator import Evaluation
from .state import Ranked, process_place

LONGEST_SIDE = 800  # pixels of an example in a report


@dataclass(frozen=True)
class Example:
    """A picture of the data set tinted by predicted and by reference labels, both of one size.

    `legend`: (name, "#rrggbb") of the labels in either, largest first.
    """

    miou: float
    index: int
    name: str
    prediction: Image.Image
    reference: Image.Image
    legend: list[tuple[str, str]]

    def to_json(self) -> dict[str, Any]:
        """For `json.dump`; the images as JPEG in base64."""
        images = {key: data_uri(getattr(self, key), "JPEG", quality=85) for key in ("prediction", "reference")}
        images = {key: address.partition(",")[2] for key, address in images.items()}
        return {"miou": self.miou, "index": self.index, "name": self.name, "legend": self.legend} | images

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "Example":
        """From what `to_json` gave; the images have lost what JPEG loses."""
        images = {key: Image.open(io.BytesIO(base64.b64decode(entry[key]))) for key in ("prediction", "reference")}
        return cls(**entry | images | {"legend": [tuple(line) for line in entry["legend"]]})

    def to_block(self, place: int) -> Comparison:
        """Part of a report; `place`: in its list, from 1."""
        pictures = [Picture(self.prediction, "prediction", True), Picture(self.reference, "reference", True)]
        return Comparison(f"{place}. {legend_name(self.name)}: mIoU {100 * self.miou:.1f} %", pictures, self.legend)


@dataclass(frozen=True)
class Examples:
    """The worst pictures, worst first, and the best, best first. No picture is in both."""

    worst: list[Example]
    best: list[Example]


def draw_examples(
    model: QLSegForSemanticSegmentation,
    processor: QLSegImageProcessor,
    samples: Samples,
    evaluation: Evaluation,
    *,
    longest_side: int | None = LONGEST_SIDE,
) -> Examples:
    """Predict the pictures of `evaluation.worst` and `.best` again, as it did, and draw them.

    Every process has to call this; each draws its share, and all of them get the same.

    Args:
        model, processor, samples: with which `evaluation` was made.
        longest_side: pixels; a larger picture is made smaller after it is drawn. None: as it is.
    """
    rank, world_size = process_place()
    worst = evaluation.worst[: -(-len(set(evaluation.worst + evaluation.best)) // 2)]
    best = [entry for entry in evaluation.best if entry not in worst]
    ranked, drawn = worst + best, {}
    with fail_together(world_size):
        for entry, sample in find_samples(samples, ranked[rank::world_size]):
            picture, stored = sample.read(**processor.settings().reading)
            predicted = segment(model, processor, picture, **evaluation.settings, max_windows=None)[0].numpy()
            reference = processor.reduce_labels(torch.from_numpy(stored)).numpy()
            drawn[entry] = draw_example(entry, picture, predicted, reference, model.config, longest_side)
    for part in gather_objects(drawn, world_size):
        drawn |= part
    return Examples([drawn[entry] for entry in worst], [drawn[entry] for entry in best])


def find_samples(samples: Samples, wanted: list[Ranked]) -> Iterator[tuple[Ranked, Sample]]:
    """The samples of these entries; a stream is read up to the last of them, without decoding the others."""
    if not isinstance(samples, StreamedSamples):
        yield from ((entry, samples[entry[1]]) for entry in wanted)
        return
    entries = {entry[1]: entry for entry in wanted}
    for index, sample in enumerate(samples) if entries else ():
        if index in entries:
            yield entries[index], sample
        if index >= max(entries):
            return


def draw_example(
    entry: Ranked, picture: np.ndarray, predicted: np.ndarray, reference: np.ndarray, config, longest_side: int | None
) -> Example:
    """Tint an (H, W, 3) picture by two (H, W) label maps; see `draw_examples`."""
    colors = label_colors(config)
    images = [tint_picture(picture, labels, colors) for labels in (predicted, reference)]
    for image in images:
        if longest_side is not None:
            image.thumbnail((longest_side, longest_side))
    occurring = label_shares(np.stack([reference, predicted]), colors)
    legend = [(legend_name(config.id2label[label]), "#" + bytes(colors[label]).hex()) for label, _ in occurring]
    return Example(*entry, prediction=images[0], reference=images[1], legend=legend)


__all__ = ["Example", "Examples", "draw_examples"]
