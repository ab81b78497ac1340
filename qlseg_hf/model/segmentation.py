# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""From images to label maps: windows, scales and flips. The one way that pipeline and examples go.

What is kept of a window are the network's class and mask logits, 1/200 of its scores; a label map is then made block
by block (see `scores`), so its memory does not depend on labels times pixels.

The pipeline stands here too, because saved configurations name it `segmentation.QLSeg...`.
"""

import difflib
import reprlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel
from transformers.pipelines.image_segmentation import ImageSegmentationPipeline

from .configuration_qlseg import QLSegConfig
from .image_io import Picture, as_list, each_picture, load_picture, turn_upright
from .image_processing_qlseg import QLSegImageProcessor
from .memory import MemoryPlan
from .request import Request, check_whole_number, is_real, make_request
from .runtime import eval_mode, execution_device, warn_if_compiled_wrongly
from .scores import Span, best_labels, block_pixels, blocks, first_maximum, overlap, resized_part, sources
from .windows import Run, Window, forward_windows, window_layout, window_pixels

STOCK_KEYWORDS = {"subtask", "threshold", "mask_threshold", "overlap_mask_area_threshold", "timeout"}


@dataclass
class Target:
    """The result for one image, filled strip by strip."""

    size: tuple[int, int]
    label_map: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    confidence: torch.Tensor | None = None


@dataclass
class Strip:
    """Rows x columns of an image's label map, and the windows that they are made of."""

    target: Target
    rows: Span
    columns: Span
    runs: list[Run]

    def is_complete(self) -> bool:
        return all(window.mask_logits is not None for run in self.runs for window in run.windows)


@torch.no_grad()
def segment(
    model: PreTrainedModel,
    processor: QLSegImageProcessor,
    images: Picture | Iterable[Picture],
    *,
    scales: float | Iterable[float] = (1.0,),
    flip: bool = False,
    labels: Iterable[str | int] | None = None,
    window_batch_size: int | None = None,
    max_memory_mb: float | None = None,
    max_windows: int | str | None = "auto",
    return_scores: bool = False,
    return_confidence: bool = False,
) -> list[torch.Tensor] | tuple[list[torch.Tensor], ...]:
    """Label maps of images, each at its own size, by the published protocol.

    Every image is resized, cut into windows, and the windows of all images, scales and flips share forward passes.
    Window scores are averaged where they overlap. With one run the scores are resized to the image and the best
    label taken; with several, each run's resized scores pass a softmax over the labels and are averaged first.

    Args:
        model: on any device, in any floating dtype, with adapters or without, in peft's wrapper or out of it; or a
            network that was exported, in its runtime. Dropout is off during the call.
        processor: gives sizes, window, stride and normalisation. Without `do_sliding_window` a run is one window.
        images: one image or several of mixed sizes, in a list or as a generator, which is read one by one: path, PIL
            image, integer array or tensor. What bands and values it must have, the processor says.
        scales: factor on the short side, or several; it never falls below the window, and coinciding scales are
            computed once.
        flip: add a left-right mirrored run per scale.
        labels: names or numbers of the labels to choose from; all if not given. The scores of a label do not change,
            the others are just not candidates (the softmax of several runs is still over all).
        window_batch_size: windows per forward pass; 8 on an accelerator and 2 on a CPU if not given.
        max_memory_mb: MiB that the call may take for one image, beside the model, images in memory already and the
            scores returned: pixels, label map, windows and forward passes, on host and device together. The image is
            then cut into strips, with as many windows at a time as fit.
        max_windows: most windows of one image, all scales and flips together, where one of more than 1024 x 1024
            pixels counts once per 512 x 512 of them; None for no limit. "auto" allows 128 per scale and flip, and one
            more per 1024 of the image's own pixels: so a strip of pixels, which resizing makes thousands of windows
            of, is refused, and a photograph or a panorama never.
        return_scores: also return the scores.
        return_confidence: also return the confidence.

    Returns:
        list of (H, W) int64 label maps on the CPU, one per image; with `return_scores` also a list of (K, H, W) fp32
        tensors on the model's device: averaged semantic scores of a single run, probabilities of several; with
        `labels`, of those, in their order. With `return_confidence` also, and last, a list of (H, W) fp32 tensors in
        [0, 1] on the CPU: the share that the chosen label has of the sum of the scores of all the model's labels,
        averaged over the runs. It means the same for any scales, flips and `labels`; it is 0 where every score is 0.
        It is not a calibrated probability.

    Raises:
        ValueError, TypeError: something in `images` is not an image, `scales` is empty or not positive, `labels` are
            none of the model's, the processor's settings do not go together, another argument is of a wrong type,
            `max_memory_mb` is too little for an image, an image has more windows than `max_windows`, or the network
            gives NaN or infinite numbers, as in float16 many do.

    Warns of a network that was compiled and computes in 16 bits on a CPU: see `warn_if_compiled_wrongly`.
    """
    request = make_request(
        model.config,
        processor,
        scales=scales,
        flip=flip,
        labels=labels,
        max_windows=max_windows,
        return_scores=return_scores,
        return_confidence=return_confidence,
    )
    device = execution_device(model)
    warn_if_compiled_wrongly(model)
    if window_batch_size is None:
        window_batch_size = 2 if device.type == "cpu" else 8
    window_batch_size = check_whole_number("window_batch_size", window_batch_size)
    if max_memory_mb is not None and not (is_real(max_memory_mb) and max_memory_mb > 0):
        raise ValueError(f"max_memory_mb is {reprlib.repr(max_memory_mb)}; a number of MiB above 0 is wanted, or None")
    memory = MemoryPlan(model.config, window_batch_size, max_memory_mb, getattr(model, "patch_size", None))
    work = _Work(model, request, memory, device)
    with eval_mode(model):
        for image in each_picture(images):
            work.add_image(image)
        work.forward_batch()
    results = ([target.label_map for target in work.targets],)
    results += ([target.scores for target in work.targets],) if return_scores else ()
    results += ([target.confidence for target in work.targets],) if return_confidence else ()
    return results if len(results) > 1 else results[0]


# ---------------------------------------------------------------------------------------------- one call of `segment`


class _Work:
    """Images on their way to label maps: strips in their order, and windows that wait for a forward pass."""

    def __init__(self, model: PreTrainedModel, request: Request, memory: MemoryPlan, device: torch.device):
        self.model, self.request, self.memory, self.device = model, request, memory, device
        self.targets: list[Target] = []
        self.strips: deque[Strip] = deque()
        self.batch: list[tuple[Window, torch.Tensor]] = []

    def add_image(self, image: Picture) -> None:
        """Cut an image into strips and windows; forward and finish what is full or complete."""
        picture = load_picture(image, **self.request.settings.reading)
        target = Target(picture.shape[:2])
        self.targets.append(target)
        if getattr(self.model, "gives_labels", False):  # see `ExportedQLSeg`: there are no scores to average
            target.label_map = self.model.label_map(picture, self.request)
            return
        self.memory.pixel_bytes = picture.shape[-1] * picture.itemsize
        for strip in cut_strips(self.request, target, self.memory):
            self.strips.append(strip)
            for window, pixels in window_pixels(self.request.settings, picture, strip.runs):
                if self.batch and self.batch[0][1].shape != pixels.shape:
                    self.forward_batch()
                self.batch.append((window, pixels))
                if len(self.batch) >= self.memory.window_batch_size:
                    self.forward_batch()
            if self.memory.max_memory_mb is not None:
                self.forward_batch()  # the memory was planned for one strip at a time

    def forward_batch(self) -> None:
        """Forward the windows that wait, and finish the strips that have all of theirs."""
        if self.batch:
            forward_windows(self.model, self.batch)
            self.batch.clear()
        with torch.autocast(self.device.type, enabled=False):  # scores are made in fp32 whatever the network runs in
            while self.strips and self.strips[0].is_complete():
                finish_strip(self.strips.popleft(), self.request)


def cut_strips(request: Request, target: Target, memory: MemoryPlan) -> Iterator[Strip]:
    """The strips of an image, each with its windows; a window that reaches into two strips is in both."""
    layout = window_layout(request.settings, target.size, request.scales, request.flip, request.max_windows)
    # the softmax of several runs goes over all labels, so there the choice comes last
    labels = request.wanted if len(layout) == 1 else None
    made: dict[tuple, Window] = {}
    for rows, columns in memory.strips(target.size, layout):
        before, made, runs = made, {}, []
        for size, share, is_flipped, places in layout:
            reach = sources(size, target.size, rows, columns)
            inside = [place for place in places if overlap(place[0], reach[0]) and overlap(place[1], reach[1])]
            keys = [(size, is_flipped, *place) for place in inside]
            made |= {key: before.get(key) or Window(key[2], key[3], is_flipped, labels) for key in keys}
            runs.append(Run(size, share, [made[key] for key in keys]))
        yield Strip(target, rows, columns, runs)


def finish_strip(strip: Strip, request: Request) -> None:
    """Scores, labels and confidence of a strip, block by block."""
    target, size, wanted = strip.target, strip.target.size, request.wanted
    first = strip.runs[0].windows[0].class_probs  # (C, K)
    num_scores = len(first) if wanted is None else len(wanted)
    if target.label_map is None:
        target.label_map = torch.empty(size, dtype=torch.int64)
        target.scores = first.new_empty(num_scores, *size) if request.return_scores else None
        target.confidence = torch.empty(size, dtype=torch.float32) if request.return_confidence else None
    numbers = None if wanted is None else torch.tensor(wanted)
    # pixels of the resized image count where there are more of them
    shrinking = max(1, *(run.size[0] * run.size[1] / (size[0] * size[1]) for run in strip.runs))
    num_pixels = int(block_pixels(first.shape[1], first.device) / shrinking)
    for rows, columns in blocks(strip.rows, strip.columns, num_pixels):
        place = slice(*rows), slice(*columns)
        if len(strip.runs) == 1 and not (request.return_scores or request.return_confidence):
            run = strip.runs[0]
            part = run.scores(*sources(run.size, size, rows, columns))
            labels = best_labels(part, run.size, size, rows, columns)
        else:
            scores, shares = _average_runs(strip, rows, columns, wanted, request.return_confidence)
            labels = first_maximum(scores)
            if request.return_confidence:
                target.confidence[place] = shares.gather(0, labels[None])[0].clamp(0, 1).cpu()
            if request.return_scores:
                target.scores[(slice(None), *place)] = scores
        labels = labels.cpu()
        target.label_map[place] = labels if numbers is None else numbers[labels]


def _average_runs(
    strip: Strip, rows: Span, columns: Span, wanted: list[int] | None, with_shares: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scores and, if asked for, shares of the candidates in a block of the image; (C, rows, columns) each.

    Scores: those of a single run, the average of the probabilities of several. Shares: each label's part of the sum
    over all labels, averaged over the runs.
    """
    total = shares = None
    for run in strip.runs:
        reach = sources(run.size, strip.target.size, rows, columns)
        scores = resized_part(run.scores(*reach), run.size, strip.target.size, rows, columns)
        if with_shares:
            candidates = scores if len(strip.runs) == 1 or wanted is None else scores[wanted]
            whole = resized_part(run.scores(*reach, summed=True), run.size, strip.target.size, rows, columns)
            own = candidates / whole.clamp(min=torch.finfo(whole.dtype).tiny) * run.share
            shares = own if shares is None else shares.add_(own)
        if len(strip.runs) > 1:
            scores = scores.softmax(dim=0).mul_(run.share)
        total = scores if total is None else total.add_(scores)
    return total if len(strip.runs) == 1 or wanted is None else total[wanted], shares


# ------------------------------------------------------------------------------------------------------- the pipeline


class QLSegImageSegmentationPipeline(ImageSegmentationPipeline):
    """`pipeline("image-segmentation")` by way of `segment`; models other than QLSeg get the stock pipeline.

    Calls take `scales`, `flip`, `labels`, `window_batch_size`, `max_memory_mb`, `max_windows` and `return_confidence`
    of `segment`; other keywords than these and the stock pipeline's are refused. Lists of images of mixed sizes may
    be batched.
    Each image gives [{"label": name, "mask": PIL image of mode L, 0 or 255, "score": None}, ...], one entry per
    label that occurs, at the image's own size. With `return_confidence=True`, "score" is the mean confidence of the
    label's pixels, and "confidence" a PIL image of mode L with the confidence of each of them, 255 for 1, else 0.
    """

    # if not given, transformers takes the saved image processor for a sign of a video processor, and asks for trust
    _load_video_processor = False

    def __new__(cls, model=None, *args, **kwargs):
        # peft's wrapper has the configuration of what it wraps
        # without a model somebody copies or unpickles: the attributes follow
        if model is None or getattr(getattr(model, "config", None), "model_type", None) == QLSegConfig.model_type:
            return super().__new__(cls)
        return ImageSegmentationPipeline(model, *args, **kwargs)

    def __init__(self, model=None, *args, device=None, **kwargs):
        if device is None and not isinstance(model, torch.nn.Module):
            device = model.device  # an exported network stays there, and transformers would move it to a GPU
        super().__init__(model, *args, device=device, **kwargs)

    def check_model_type(self, supported_models) -> None:
        """Nothing: `__new__` has checked it."""

    def _sanitize_parameters(self, **kwargs):
        names = ("scales", "flip", "labels", "window_batch_size", "max_memory_mb", "max_windows", "return_confidence")
        given = {name: kwargs.pop(name) for name in names if name in kwargs}
        if unknown := sorted(set(kwargs) - STOCK_KEYWORDS):  # which the stock pipeline drops without a word
            near = [match for name in unknown for match in difflib.get_close_matches(name, names, n=1)]
            hint = f"did you mean {' and '.join(near)}?" if near else f"it has {', '.join(names)}"
            raise TypeError(f"the pipeline has no keyword {unknown}; {hint}")
        preprocess, _, postprocess = super()._sanitize_parameters(**kwargs)
        return preprocess, given, postprocess

    def __call__(self, inputs, **kwargs):
        return [] if isinstance(inputs, list | tuple) and not inputs else super().__call__(inputs, **kwargs)

    def preprocess(self, image: Picture, subtask: str | None = None, timeout: float | None = None) -> dict:
        if isinstance(image, Image.Image):  # as the stock pipeline, which turns what it is given
            image = turn_upright(image)
        return {"picture": load_picture(image, **self.image_processor.settings().reading)}

    def _forward(self, model_inputs: dict, **segment_kwargs) -> dict:
        pictures = as_list(model_inputs["picture"])
        found = segment(self.model, self.image_processor, pictures, **segment_kwargs)
        return dict(zip(("label_map", "confidence"), found if isinstance(found, tuple) else (found,)))

    def postprocess(self, model_outputs: dict, subtask: str | None = None, **thresholds) -> list[dict]:
        if subtask not in (None, "semantic"):
            raise ValueError(f"QLSeg does semantic segmentation; subtask {subtask!r} is not available")
        label_map = model_outputs["label_map"][0].numpy()  # (H, W), out of a list or a batch of one
        confidence = model_outputs["confidence"][0].numpy() if "confidence" in model_outputs else None
        segments = []
        for label in np.unique(label_map):
            mask = label_map == label
            segments.append(
                {
                    "score": None if confidence is None else float(confidence[mask].mean()),
                    "label": self.model.config.id2label[int(label)],
                    "mask": Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))),
                }
            )
            if confidence is not None:
                shown = np.where(mask, 255 * confidence, 0).round().astype(np.uint8)
                segments[-1]["confidence"] = Image.fromarray(shown)
        return segments


__all__ = [
    "QLSegImageSegmentationPipeline",
    "Strip",
    "Target",
    "cut_strips",
    "finish_strip",
    "segment",
]
