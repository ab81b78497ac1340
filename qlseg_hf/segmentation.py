"""From pictures to label maps: windows, scales and flips. The one way that pipeline and examples go."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers.pipelines.image_segmentation import ImageSegmentationPipeline

from .image_processing_qlseg import (
    Picture,
    QLSegImageProcessor,
    WindowSum,
    as_list,
    label_map_from_scores,
    load_picture,
    resize_picture,
    upsampled_rows,
    window_starts,
)
from .modeling_qlseg import QLSegForSemanticSegmentation


@dataclass
class Run:
    """One pass over a picture: one scale, mirrored or not."""

    target: "Target"
    share: float  # of the average over runs
    is_flipped: bool
    windows: WindowSum
    num_missing: int = 0


@dataclass
class Target:
    """What becomes of one picture."""

    size: tuple[int, int]
    num_missing: int  # runs
    probs: torch.Tensor | None = None  # (K, H, W), average over runs
    scores: torch.Tensor | None = None
    label_map: torch.Tensor | None = None


@torch.inference_mode()
def segment(
    model: QLSegForSemanticSegmentation,
    processor: QLSegImageProcessor,
    images: Picture | list[Picture],
    *,
    scales: Iterable[float] = (1.0,),
    flip: bool = False,
    window_batch_size: int | None = None,
    return_scores: bool = False,
) -> list[torch.Tensor] | tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Label maps of pictures, each at its own size, by the published protocol.

    Every picture is resized, cut into windows, and the windows of all pictures, scales and flips share forward passes.
    Window scores are averaged where they overlap. With one run the scores are resized to the picture and the best
    label taken; with several, each run's resized scores pass a softmax over the labels and are averaged first.

    Args:
        model: on any device, in any floating dtype, with adapters or without, in peft's wrapper or out of it. Dropout
            is off during the call.
        processor: gives sizes, window, stride and normalisation. Without `do_sliding_window` a run is one window.
        images: one picture or a list of mixed sizes: path, PIL picture, integer array or tensor.
        scales: factors on the short side; it never falls below the window, and coinciding scales are computed once.
        flip: add a left-right mirrored run per scale.
        window_batch_size: windows per forward pass; 8 on an accelerator and 2 on a CPU if not given.
        return_scores: also return the scores.

    Returns:
        list of (H, W) int64 label maps on the CPU, one per picture; with `return_scores` also a list of (K, H, W) fp32
        tensors on the model's device: averaged semantic scores of a single run, probabilities of several.

    Raises:
        ValueError, TypeError: something in `images` is no picture, or `scales` is empty or not positive.
    """
    scales = list(scales)
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales must be positive numbers, at least one; got {scales}")
    if window_batch_size is None:
        window_batch_size = 2 if model.device.type == "cpu" else 8
    if window_batch_size < 1:
        raise ValueError(f"window_batch_size is {window_batch_size}; it must be at least 1")
    targets: list[Target] = []
    was_training = model.training
    model.eval()
    try:
        batch: list[tuple[Run, int, int, torch.Tensor]] = []
        for item in cut_windows(processor, as_list(images), scales, flip, targets):
            if batch and batch[0][3].shape != item[3].shape:
                forward_windows(model, batch, return_scores)
                batch = []
            batch.append(item)
            if len(batch) == window_batch_size:
                forward_windows(model, batch, return_scores)
                batch = []
        if batch:
            forward_windows(model, batch, return_scores)
    finally:
        model.train(was_training)
    label_maps = [target.label_map for target in targets]
    return (label_maps, [target.scores for target in targets]) if return_scores else label_maps


def cut_windows(
    processor: QLSegImageProcessor, images: list[Picture], scales: list[float], flip: bool, targets: list[Target]
) -> Iterator[tuple[Run, int, int, torch.Tensor]]:
    """Yield (run, top, left, (3, height, width) window) of every picture; append its target to `targets`."""
    for image in images:
        picture = load_picture(image)
        size = picture.shape[:2]
        sizes = Counter(processor.resized_size(*size, scale=scale) for scale in scales)
        flips = (False, True) if flip else (False,)
        target = Target(size, num_missing=len(sizes) * len(flips))
        targets.append(target)
        for run_size, count in sizes.items():
            pixels = processor.normalized(resize_picture(picture, run_size))  # (3, h, w)
            window = processor.window_size if processor.do_sliding_window else max(run_size)
            stride = processor.window_stride if processor.do_sliding_window else window
            corners = [
                (top, left)
                for top in window_starts(run_size[0], window, stride)
                for left in window_starts(run_size[1], window, stride)
            ]
            for is_flipped in flips:
                share = count / (len(scales) * len(flips))
                run = Run(target, share, is_flipped, WindowSum(run_size), num_missing=len(corners))
                source = pixels.flip(-1) if is_flipped else pixels
                for top, left in corners:
                    yield run, top, left, source[:, top : top + window, left : left + window]


def forward_windows(
    model: QLSegForSemanticSegmentation, batch: list[tuple[Run, int, int, torch.Tensor]], return_scores: bool
) -> None:
    """One forward pass; adds the scores to their runs and finishes the runs that are complete."""
    pixel_values = torch.stack([pixels for *_, pixels in batch])
    logits = model(pixel_values=pixel_values.to(model.device, model.dtype)).logits  # (windows, K, height, width)
    for (run, top, left, _), scores in zip(batch, logits):
        run.windows.add(scores, top, left)
        run.num_missing -= 1
        if run.num_missing == 0:
            finish_run(run, return_scores)


def finish_run(run: Run, return_scores: bool) -> None:
    """Average the windows of a run, add it to its picture and, if it was the last one, take the best labels."""
    target, plane = run.target, run.windows.mean()
    run.windows = None  # the plane is the largest thing here; it goes with this call
    if run.is_flipped:
        plane = plane.flip(-1)
    target.num_missing -= 1
    is_only_run = target.probs is None and target.num_missing == 0
    if is_only_run:
        if return_scores:
            target.scores = torch.cat([rows.clone() for _, rows in upsampled_rows(plane, target.size)], dim=1)
        target.label_map = label_map_from_scores(plane, target.size)
        return
    if target.probs is None:
        target.probs = plane.new_zeros(plane.shape[0], *target.size)
    for start, rows in upsampled_rows(plane, target.size):
        target.probs[:, start : start + rows.shape[1]].add_(rows.softmax(dim=0), alpha=run.share)
    if target.num_missing == 0:
        target.label_map = label_map_from_scores(target.probs, target.size)
        target.scores = target.probs if return_scores else None
        target.probs = None


class QLSegImageSegmentationPipeline(ImageSegmentationPipeline):
    """`pipeline("image-segmentation")` by way of `segment`; models other than QLSeg get the stock pipeline.

    Calls take `scales`, `flip` and `window_batch_size` of `segment`. Lists of pictures of mixed sizes may be batched.
    Each picture gives [{"label": name, "mask": PIL picture of mode L, 0 or 255, "score": None}, ...], one entry per
    label that occurs, at the picture's own size.
    """

    def __new__(cls, model=None, *args, **kwargs):
        # out of peft's wrapper, if it is in one
        network = model.get_base_model() if hasattr(model, "get_base_model") else model
        if isinstance(network, QLSegForSemanticSegmentation):
            return super().__new__(cls)
        return ImageSegmentationPipeline(model, *args, **kwargs)

    def check_model_type(self, supported_models) -> None:
        """`__new__` has checked it."""

    def _sanitize_parameters(self, scales=None, flip=None, window_batch_size=None, **kwargs):
        preprocess, _, postprocess = super()._sanitize_parameters(**kwargs)
        given = {"scales": scales, "flip": flip, "window_batch_size": window_batch_size}
        return preprocess, {key: value for key, value in given.items() if value is not None}, postprocess

    def preprocess(self, image: Picture, subtask: str | None = None, timeout: float | None = None) -> dict:
        return {"picture": load_picture(image)}

    def _forward(self, model_inputs: dict, **segment_kwargs) -> dict:
        pictures = as_list(model_inputs["picture"])
        return {"label_map": segment(self.model, self.image_processor, pictures, **segment_kwargs)}

    def postprocess(self, model_outputs: dict, subtask: str | None = None, **thresholds) -> list[dict]:
        if subtask not in (None, "semantic"):
            raise ValueError(f"QLSeg does semantic segmentation; subtask {subtask!r} is not available")
        label_map = model_outputs["label_map"][0].numpy()  # (H, W), out of a list or a batch of one
        return [
            {
                "score": None,
                "label": self.model.config.id2label[int(label)],
                "mask": Image.fromarray(np.where(label_map == label, np.uint8(255), np.uint8(0))),
            }
            for label in np.unique(label_map)
        ]


__all__ = ["QLSegImageSegmentationPipeline", "segment"]
