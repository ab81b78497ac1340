"""From pictures to label maps: windows, scales and flips. The one way that pipeline and examples go.

What is kept of a window are the network's class and mask logits, 1/200 of its scores; a label map is then made block
by block (see `scores`), so its memory does not depend on labels times pixels.
"""

import difflib
import math
import reprlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from numbers import Integral, Real
from operator import index

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel
from transformers.pipelines.image_segmentation import ImageSegmentationPipeline

from .configuration_qlseg import QLSegConfig
from .image_io import Picture, as_list, each_picture, load_picture, resize_picture, turn_upright
from .image_processing_qlseg import QLSegImageProcessor
from .memory import RESIZED_PIXELS, MemoryPlan
from .processor_settings import Settings
from .runtime import eval_mode, execution_device
from .scores import (
    Span,
    best_labels,
    block_pixels,
    blocks,
    first_maximum,
    mask_block,
    overlap,
    resized_part,
    sources,
)

LARGEST_SCALE = 1000
WINDOWS_PER_RUN = 128  # a strip of about 85 : 1 where window and stride are 512 and 341 pixels
PIXELS_PER_WINDOW = 1024  # of the picture: without resizing, windows of 96 pixels with stride 64 are one per 4096
LARGE_WINDOW, COUNTED_PIXELS = 1024 * 1024, 512 * 512
STOCK_KEYWORDS = {"subtask", "threshold", "mask_threshold", "overlap_mask_area_threshold", "timeout"}


@dataclass
class Window:
    """A window of a resized picture: its rows and columns there, and what the network says of it."""

    rows: Span
    columns: Span
    is_flipped: bool
    labels: list[int] | None = None  # the C labels that scores are wanted of; all K if not given
    class_probs: torch.Tensor | None = None  # (C, K) fp32, probability of label c by query k
    mask_logits: torch.Tensor | None = None  # (K, h, w) fp32, not mirrored
    any_probs: torch.Tensor | None = None  # (1, K) fp32, probability of any label by query k

    def scores(self, rows: Span, columns: Span, summed: bool = False) -> torch.Tensor:
        """(C, rows, columns) of a part of the window, or the (1, ...) sum over all K; in the resized picture."""
        size = (self.rows[1] - self.rows[0], self.columns[1] - self.columns[0])
        masks = mask_block(self.mask_logits, size, shifted(rows, self.rows[0]), shifted(columns, self.columns[0]))
        return ((self.any_probs if summed else self.class_probs) @ masks).view(
            -1, rows[1] - rows[0], columns[1] - columns[0]
        )


def shifted(span: Span, start: int) -> Span:
    return span[0] - start, span[1] - start


@dataclass
class Run:
    """One pass over a picture: one scale, mirrored or not."""

    size: tuple[int, int]  # of the resized picture
    share: float  # of the average over runs
    windows: list[Window]

    def scores(self, rows: Span, columns: Span, summed: bool = False) -> torch.Tensor:
        """(C, rows, columns) of the resized picture, averaged over the windows that cover a pixel; see `Window`."""
        total = count = None
        for window in self.windows:
            part_rows, part_columns = overlap(rows, window.rows), overlap(columns, window.columns)
            if part_rows is None or part_columns is None:
                continue
            part = window.scores(part_rows, part_columns, summed)
            if total is None and (part_rows, part_columns) == (rows, columns):
                total, count = part, torch.ones(part.shape[1:])
                continue
            if total is None:
                total = part.new_zeros(len(part), rows[1] - rows[0], columns[1] - columns[0])
                count = torch.zeros(total.shape[1:])
            place = slice(*shifted(part_rows, rows[0])), slice(*shifted(part_columns, columns[0]))
            total[(slice(None), *place)] += part
            count[place] += 1
        if total is None or count.min() < 1:
            raise ValueError(f"no window covers some of the pixels in rows {rows} and columns {columns}")
        return total.div_(count.to(total.device))


@dataclass
class Target:
    """What becomes of one picture."""

    size: tuple[int, int]
    label_map: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    confidence: torch.Tensor | None = None


@dataclass
class Strip:
    """Rows x columns of a picture's label map, and the windows that they are made of."""

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
    """Label maps of pictures, each at its own size, by the published protocol.

    Every picture is resized, cut into windows, and the windows of all pictures, scales and flips share forward passes.
    Window scores are averaged where they overlap. With one run the scores are resized to the picture and the best
    label taken; with several, each run's resized scores pass a softmax over the labels and are averaged first.

    Args:
        model: on any device, in any floating dtype, with adapters or without, in peft's wrapper or out of it. Dropout
            is off during the call.
        processor: gives sizes, window, stride and normalisation. Without `do_sliding_window` a run is one window.
        images: one picture or several of mixed sizes, in a list or as a generator, which is read one by one: path, PIL
            picture, integer array or tensor. What bands and values it must have, the processor says.
        scales: factor on the short side, or several; it never falls below the window, and coinciding scales are
            computed once.
        flip: add a left-right mirrored run per scale.
        labels: names or numbers of the labels to choose from; all if not given. The scores of a label do not change,
            the others are just not candidates (the softmax of several runs is still over all).
        window_batch_size: windows per forward pass; 8 on an accelerator and 2 on a CPU if not given.
        max_memory_mb: MiB that the call may take for one picture, beside the model, pictures in memory already and the
            scores returned: pixels, label map, windows and forward passes, on host and device together. The picture is
            then cut into strips, with as many windows at a time as fit.
        max_windows: most windows of one picture, all scales and flips together, where one of more than 1024 x 1024
            pixels counts once per 512 x 512 of them; None for no limit. "auto" allows 128 per scale and flip, and one
            more per 1024 of the picture's own pixels: so a strip of pixels, which resizing makes thousands of windows
            of, is refused, and a photograph or a panorama never.
        return_scores: also return the scores.
        return_confidence: also return the confidence.

    Returns:
        list of (H, W) int64 label maps on the CPU, one per picture; with `return_scores` also a list of (K, H, W) fp32
        tensors on the model's device: averaged semantic scores of a single run, probabilities of several; with
        `labels`, of those, in their order. With `return_confidence` also, and last, a list of (H, W) fp32 tensors in
        [0, 1] on the CPU: the share that the chosen label has of the sum of the scores of all the model's labels,
        averaged over the runs. It means the same for any scales, flips and `labels`; it is 0 where every score is 0.
        It is no calibrated probability.

    Raises:
        ValueError, TypeError: something in `images` is no picture, `scales` is empty or not positive, `labels` are
            none of the model's, the processor's settings do not go together, another argument is of a wrong type,
            `max_memory_mb` is too little for a picture, or a picture has more windows than `max_windows`.
    """
    settings, scales = processor_settings(processor), scale_factors(scales)
    settings.check_network(model.config)
    check_switch("flip", flip)
    check_switch("return_scores", return_scores)
    check_switch("return_confidence", return_confidence)
    device = execution_device(model)
    if window_batch_size is None:
        window_batch_size = 2 if device.type == "cpu" else 8
    window_batch_size = whole_number("window_batch_size", window_batch_size)
    if max_windows is not None and not (isinstance(max_windows, str) and max_windows == "auto"):
        max_windows = whole_number("max_windows", max_windows)
    if max_memory_mb is not None and not (is_real(max_memory_mb) and max_memory_mb > 0):
        raise ValueError(f"max_memory_mb is {reprlib.repr(max_memory_mb)}; a number of MiB above 0 is wanted, or None")
    wanted = None if labels is None else label_numbers(labels, model.config.id2label)
    memory = MemoryPlan(model.config, window_batch_size, max_memory_mb, getattr(model, "patch_size", None))
    targets: list[Target] = []
    strips: deque[Strip] = deque()
    batch: list[tuple[Window, torch.Tensor]] = []

    def forward_batch() -> None:
        if batch:
            forward_windows(model, batch)
            batch.clear()
        with torch.autocast(device.type, enabled=False):  # scores are made in fp32 whatever the network runs in
            while strips and strips[0].is_complete():
                finish_strip(strips.popleft(), wanted, return_scores, return_confidence)

    with eval_mode(model):
        for image in each_picture(images):
            cut = cut_picture(settings, image, scales, flip, wanted, memory, max_windows, targets)
            for strip, pixels_of_windows in cut:
                strips.append(strip)
                for window, pixels in pixels_of_windows:
                    if batch and batch[0][1].shape != pixels.shape:
                        forward_batch()
                    batch.append((window, pixels))
                    if len(batch) >= memory.window_batch_size:
                        forward_batch()
                if max_memory_mb is not None:
                    forward_batch()  # the memory was planned for one strip at a time
        forward_batch()
    results = ([target.label_map for target in targets],)
    results += ([target.scores for target in targets],) if return_scores else ()
    results += ([target.confidence for target in targets],) if return_confidence else ()
    return results if len(results) > 1 else results[0]


def processor_settings(processor: QLSegImageProcessor) -> Settings:
    """The checked settings of a processor; TypeError if it is none of QLSeg."""
    if not hasattr(processor, "settings"):
        raise TypeError(f"the processor must be a QLSegImageProcessor; got {type(processor).__name__}")
    return processor.settings()


def is_real(value) -> bool:
    """Whether this is a number, also one of NumPy, and not True or False."""
    return isinstance(value, Real) and not isinstance(value, bool)


def scale_factors(scales: float | Iterable[float]) -> list[float]:
    """A list of `scales`, which may be a single number; ValueError if one is no number above 0."""
    if isinstance(scales, np.ndarray | torch.Tensor):
        scales = scales.tolist()
    found = [scales] if isinstance(scales, Real | str | bytes) or not isinstance(scales, Iterable) else list(scales)
    if not found or not all(is_real(scale) and 0 < scale <= LARGEST_SCALE for scale in found):
        raise ValueError(
            f"scales must be positive numbers up to {LARGEST_SCALE}, at least one; got {reprlib.repr(found)}"
        )
    return [float(scale) for scale in found]


def check_switch(name: str, value: bool) -> None:
    """ValueError for what is neither True nor False: the text "no" would count as True."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False; got {reprlib.repr(value)}")


def whole_number(name: str, value: int) -> int:
    """An integer of any kind, at least 1; ValueError otherwise."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {reprlib.repr(value)}; it must be at least 1, a whole number")
    return int(value)


def label_numbers(labels: Iterable[str | int], id2label: dict[int, str]) -> list[int]:
    """Label numbers from names or numbers; ValueError if one is unknown, ambiguous or given twice, or none is."""
    is_single = isinstance(labels, str | bytes) or not isinstance(labels, Iterable)
    labels, names = [labels] if is_single else list(labels), list(id2label.values())
    if shared := [label for label in labels if isinstance(label, str) and names.count(label) > 1]:
        raise ValueError(f"several labels of the model are called {shared}; give their numbers instead")
    label2id = {name: number for number, name in id2label.items()}
    try:
        numbers = [label2id.get(label, -1) if isinstance(label, str) else index(label) for label in labels]
    except TypeError as error:
        raise TypeError(f"labels must be names or whole numbers; got {reprlib.repr(labels)}") from error
    if any(isinstance(label, bool) for label in labels):
        raise TypeError(f"labels must be names or whole numbers; got {reprlib.repr(labels)}")
    if unknown := [label for label, number in zip(labels, numbers) if number not in id2label]:
        near = [name for label in unknown for name in difflib.get_close_matches(str(label), label2id, n=1)]
        raise ValueError(f"the model has no labels {unknown}" + (f"; did you mean {near}?" if near else ""))
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"labels must name at least one label, and each once; got {labels}")
    return numbers


def cut_picture(
    settings: Settings,
    image: Picture,
    scales: list[float],
    flip: bool,
    wanted: list[int] | None,
    memory: MemoryPlan,
    max_windows: int | str | None,
    targets: list[Target],
) -> Iterator[tuple[Strip, Iterator[tuple[Window, torch.Tensor]]]]:
    """Yield the strips of a picture, each with its windows and their pixels; append the target to `targets`.

    A window that reaches into two strips is in both, and has pixels in the first.
    """
    picture = load_picture(image, **settings.reading)
    target = Target(picture.shape[:2])
    targets.append(target)
    memory.pixel_bytes = picture.shape[-1] * picture.itemsize
    layout = window_layout(settings, target.size, scales, flip, max_windows)
    # the softmax of several runs goes over all labels, so there the choice comes last
    labels = wanted if len(layout) == 1 else None
    made: dict[tuple, Window] = {}
    for rows, columns in memory.strips(target.size, layout):
        before, made, runs = made, {}, []
        for size, share, is_flipped, places in layout:
            reach = sources(size, target.size, rows, columns)
            inside = [place for place in places if overlap(place[0], reach[0]) and overlap(place[1], reach[1])]
            keys = [(size, is_flipped, *place) for place in inside]
            made |= {key: before.get(key) or Window(key[2], key[3], is_flipped, labels) for key in keys}
            runs.append(Run(size, share, [made[key] for key in keys]))
        yield Strip(target, rows, columns, runs), window_pixels(settings, picture, runs)


def window_layout(
    settings: Settings, size: tuple[int, int], scales: list[float], flip: bool, max_windows: int | str | None = None
) -> list:
    """(resized size, share, is_flipped, [(rows, columns), ...]) of each run over a picture of `size`.

    ValueError if there are more windows than `max_windows`, which is told before they are listed; see `segment`.
    """
    layout = []
    sizes = Counter(settings.resized_size(*size, scale=scale) for scale in scales)
    flips = (False, True) if flip else (False,)
    check_num_windows(settings, size, sizes, len(flips), max_windows)
    for (height, width), count in sizes.items():
        window = settings.window_sides((height, width))[0]
        tops, lefts = settings.window_starts((height, width))
        rows = [(top, min(top + window, height)) for top in tops]
        columns = [(left, min(left + window, width)) for left in lefts]
        for is_flipped in flips:
            if is_flipped:  # windows of the mirrored picture, where they lie in the picture
                columns = [(width - right, width - left) for left, right in columns]
            places = [(row, column) for row in rows for column in columns]
            layout.append(((height, width), count / (len(scales) * len(flips)), is_flipped, places))
    return layout


def check_num_windows(
    settings: Settings, size: tuple[int, int], sizes: Iterable[tuple[int, int]], num_flips: int, max_windows
) -> None:
    """ValueError if a picture of `size`, resized to each of `sizes`, has more windows than `max_windows`."""
    counts, verb = {}, "has"
    for resized in sizes:
        window = settings.window_sides(resized)[0]
        pixels = min(window, resized[0]) * min(window, resized[1])
        counts[resized] = settings.num_windows(resized) * num_flips
        if pixels > LARGE_WINDOW:
            counts[resized] *= math.ceil(pixels / COUNTED_PIXELS)
            verb = "counts as"
    most, total = max_windows, sum(counts.values())
    if most == "auto":
        most = num_flips * len(counts) * (WINDOWS_PER_RUN + size[0] * size[1] // PIXELS_PER_WINDOW)
    if most is not None and total > most:
        height, width = max(counts, key=counts.get)
        allowed = f"max_windows={max_windows}" + (f" allows {most}" if most != max_windows else "")
        raise ValueError(
            f"a picture of {size[0]} x {size[1]} pixels, resized to {height} x {width}, "
            f"{verb} {total} windows, and {allowed}; crop the picture, give fewer scales, or raise max_windows (None: "
            "no limit)"
        )


def window_pixels(settings: Settings, picture: np.ndarray, runs: list[Run]) -> Iterator[tuple[Window, torch.Tensor]]:
    """Yield the windows that have not been forwarded, and their (n, height, width) fp32 pixels."""
    for size, group in groupby(runs, key=lambda run: run.size):
        windows = [window for run in group for window in run.windows if window.mask_logits is None]
        for rows, columns, together in resized_together(windows):
            resized = resize_picture(picture, size, slice(*rows), slice(*columns))  # (n, h, w)
            for window in together:
                place = slice(*shifted(window.rows, rows[0])), slice(*shifted(window.columns, columns[0]))
                pixels = settings.normalized(resized[(slice(None), *place)])
                yield window, pixels.flip(-1) if window.is_flipped else pixels


def resized_together(windows: list[Window]) -> Iterator[tuple[Span, Span, list[Window]]]:
    """Groups of windows within a box of RESIZED_PIXELS, or of one window: the box's rows and columns, its windows."""
    box, together = None, []
    for window in windows:
        place = (window.rows, window.columns)
        joined = [(min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(box or place, place)]
        if together and math.prod(end - start for start, end in joined) > RESIZED_PIXELS:
            yield *box, together
            together, joined = [], place
        together.append(window)
        box = joined
    if together:
        yield *box, together


def forward_windows(model: PreTrainedModel, batch: list[tuple[Window, torch.Tensor]]) -> None:
    """One forward pass; what the network says goes into the windows, in fp32, mirrored back."""
    pixel_values = torch.stack([pixels for _, pixels in batch]).to(execution_device(model), model.dtype)
    outputs = model(pixel_values=pixel_values, output_logits=False)
    class_probs = outputs.class_queries_logits.float().softmax(dim=-1)[..., :-1].transpose(1, 2)  # (B, K, K)
    for (window, _), probs, masks in zip(batch, class_probs, outputs.masks_queries_logits.float()):
        # copies, so that a window does not hold on to the whole batch
        window.class_probs = probs.clone(memory_format=torch.contiguous_format)
        window.any_probs = probs.sum(dim=0, keepdim=True)
        if window.labels is not None:
            window.class_probs = window.class_probs[window.labels]
        window.mask_logits = masks.flip(-1) if window.is_flipped else masks.clone()


def finish_strip(strip: Strip, wanted: list[int] | None, return_scores: bool, return_confidence: bool) -> None:
    """Scores, labels and confidence of a strip, block by block."""
    target, size = strip.target, strip.target.size
    first = strip.runs[0].windows[0].class_probs  # (C, K)
    num_scores = len(first) if wanted is None else len(wanted)
    if target.label_map is None:
        target.label_map = torch.empty(size, dtype=torch.int64)
        target.scores = first.new_empty(num_scores, *size) if return_scores else None
        target.confidence = torch.empty(size, dtype=torch.float32) if return_confidence else None
    numbers = None if wanted is None else torch.tensor(wanted)
    # pixels of the resized picture count where there are more of them
    shrinking = max(1, *(run.size[0] * run.size[1] / (size[0] * size[1]) for run in strip.runs))
    num_pixels = int(block_pixels(first.shape[1], first.device) / shrinking)
    for rows, columns in blocks(strip.rows, strip.columns, num_pixels):
        place = slice(*rows), slice(*columns)
        if len(strip.runs) == 1 and not (return_scores or return_confidence):
            run = strip.runs[0]
            part = run.scores(*sources(run.size, size, rows, columns))
            labels = best_labels(part, run.size, size, rows, columns)
        else:
            scores, shares = strip_scores(strip, rows, columns, wanted, return_confidence)
            labels = first_maximum(scores)
            if return_confidence:
                target.confidence[place] = shares.gather(0, labels[None])[0].clamp(0, 1).cpu()
            if return_scores:
                target.scores[(slice(None), *place)] = scores
        labels = labels.cpu()
        target.label_map[place] = labels if numbers is None else numbers[labels]


def strip_scores(
    strip: Strip, rows: Span, columns: Span, wanted: list[int] | None, with_shares: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scores and, if asked for, shares of the candidates in a block of the picture; (C, rows, columns) each.

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


class QLSegImageSegmentationPipeline(ImageSegmentationPipeline):
    """`pipeline("image-segmentation")` by way of `segment`; models other than QLSeg get the stock pipeline.

    Calls take `scales`, `flip`, `labels`, `window_batch_size`, `max_memory_mb`, `max_windows` and `return_confidence`
    of `segment`; other keywords than these and the stock pipeline's are refused. Lists of pictures of mixed sizes may
    be batched.
    Each picture gives [{"label": name, "mask": PIL picture of mode L, 0 or 255, "score": None}, ...], one entry per
    label that occurs, at the picture's own size. With `return_confidence=True`, "score" is the mean confidence of the
    label's pixels, and "confidence" a PIL picture of mode L with the confidence of each of them, 255 for 1, else 0.
    """

    # if not given, transformers takes the saved image processor for a sign of a video processor, and asks for trust
    _load_video_processor = False

    def __new__(cls, model=None, *args, **kwargs):
        # peft's wrapper has the configuration of what it wraps
        # without a model somebody copies or unpickles: the attributes follow
        if model is None or getattr(getattr(model, "config", None), "model_type", None) == QLSegConfig.model_type:
            return super().__new__(cls)
        return ImageSegmentationPipeline(model, *args, **kwargs)

    def check_model_type(self, supported_models) -> None:
        """`__new__` has checked it."""

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


__all__ = ["QLSegImageSegmentationPipeline", "segment"]
