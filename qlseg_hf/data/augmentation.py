# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Training samples: augmentation as the released networks were trained with, and the order samples come in.

Everything random follows from (seed, epoch, sample index), never from a worker, a process or what was drawn before:
any number of processes and workers sees the same pictures, and position p of a run is reached without the p before it.

Source: the training pipeline of mmsegmentation 0.30 that Xie et al. 2024 used, in its order and with its rounding,
but for labels: OpenCV's INTER_NEAREST, which it takes, copies the pixel at the first corner of a new one, which shifts
labels against their picture by half a pixel of the crop.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from itertools import count

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ..model.image_io import resize_picture
from ..model.image_processing_qlseg import QLSegImageProcessor
from .datasets import FolderSamples, Sample, SampleError, StreamedSamples, TableSamples
from .distortion import COLOR_OPERATIONS, MOVES, distort, distort_bands, import_opencv, move, recolor, rotation_matrix

# first word of every seed: the order of samples, that of extra ones, and their augmentation are unrelated
ORDER, AUGMENTATION, EXTRA_ORDER = 1, 2, 3
LONG_SIDE = 2048  # pixels, of the box that images are fitted into where the recipe gives none
CROP_DRAWS = 10
MOST_CHANNELS = 64  # that OpenCV is given at a time; it takes 512, since 5.0 it takes 128


@dataclass(frozen=True)
class TrainingTransform:
    """Sample to augmented, normalised training sample. Can be pickled, so that DataLoader workers can have it.

    Args:
        processor: gives normalisation, `label_mapping`, `do_reduce_labels` and `ignore_index`.
        num_labels: labels must be 0..num_labels - 1 or `ignore_index`.
        crop_size: side of the square result, pixels.
        resize_box: (long side, short side) that the picture is fitted into at ratio 1, pixels; (2048, `crop_size`) if
            not given. PASCAL-Context was trained with (520, 520).
        scale_range: lowest and highest ratio; drawn uniformly.
        cat_max_ratio: a crop is drawn again while its most frequent label covers this share or more of its labelled
            pixels; 1 takes the first draw.
        photometric: distort brightness, contrast, saturation and hue of 8-bit RGB, which needs OpenCV; of other bands
            brightness and contrast, see `distort_bands`.
        vertical_flip: turn every second crop upside down.
        rotation: degrees; every crop is turned about its middle by an angle drawn from -rotation..rotation. What comes
            in from outside is 0 after normalising, and ignored.
        trivial_augment: change every crop by one operation drawn from TrivialAugment's, of a strength drawn too: its
            colours, or image and labels moved together. Of 8-bit RGB alone.
        seed: first part of what every draw depends on.

    Raises:
        ValueError: a setting is out of range.
        ImportError: `photometric` without OpenCV.
    """

    processor: QLSegImageProcessor
    num_labels: int
    crop_size: int
    resize_box: tuple[int, int] | None = None
    scale_range: tuple[float, float] = (0.5, 2.0)
    cat_max_ratio: float = 0.75
    photometric: bool = True
    seed: int = 0
    vertical_flip: bool = False
    rotation: float = 0.0
    trivial_augment: bool = False

    def __post_init__(self):
        low, high = self.scale_range
        if not 0 < low <= high < math.inf:
            raise ValueError(f"scale_range {list(self.scale_range)} must be [low, high] with 0 < low <= high")
        ignored = self.processor.ignore_index
        if ignored is None or 0 <= ignored < self.num_labels:
            raise ValueError(
                f"ignore_index of the processor is {ignored}; crops are padded with it, so it must lie outside of the "
                f"labels 0..{self.num_labels - 1}: set it to -100, for instance"
            )
        if self.crop_size < 1:
            raise ValueError(f"crop_size {self.crop_size} must be at least 1 pixel")
        if not 0 < self.cat_max_ratio <= 1:
            raise ValueError(f"cat_max_ratio {self.cat_max_ratio} must be above 0 and at most 1")
        if int(min(self.box) * low) < 1:
            raise ValueError(f"resize_box {self.box} times {low} is less than a pixel; raise one of them")
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation {self.rotation} must be 0..180 degrees")
        if self.trivial_augment and not self.is_rgb:
            raise ValueError("trivial_augment is for images of 8-bit RGB; leave it out for other bands")
        if self.photometric and self.is_rgb and import_opencv() is None:
            raise ImportError("photometric needs OpenCV: pip install 'qlseg-hf[train]', or set photometric: false")

    @property
    def is_rgb(self) -> bool:
        """Whether the processor takes 8-bit RGB, with floats or without."""
        reading = self.processor.settings().reading
        return reading["num_channels"] == 3 and not reading["keep_values"]

    @property
    def box(self) -> tuple[int, int]:
        long_side, short_side = self.resize_box or (LONG_SIDE, self.crop_size)
        return long_side, short_side

    def __call__(self, sample: Sample, epoch: int, index: int) -> dict[str, torch.Tensor | str]:
        """Read and augment `sample`, number `index` of its data set, for the given epoch.

        Returns:
            see `augment`; and `name` of the sample.

        Raises:
            SampleError: it cannot be read, or a label is out of range.
        """
        picture, label_map = sample.read(**self.processor.settings().reading)
        labels = self.processor.reduce_labels(torch.from_numpy(label_map)).numpy()
        wrong = ((labels < 0) | (labels >= self.num_labels)) & (labels != self.processor.ignore_index)
        if wrong.any():
            raise SampleError(
                f"{sample.name}: {np.unique(label_map[wrong])[:8].tolist()} in {wrong.sum()} pixels are no "
                f"labels 0..{self.num_labels - 1}; check do_reduce_labels, label_mapping and ignore_index"
            )
        augmented = self.augment(picture, labels, np.random.default_rng([AUGMENTATION, self.seed, epoch, index]))
        return augmented | {"name": sample.name}

    def augment(self, picture: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Resize, crop, flip, distort, normalise and pad.

        Args:
            picture: (H, W, 3) uint8, RGB, or of the bands and type that the processor takes.
            labels: (H, W) int64, 0..num_labels - 1 or the ignore index.
            rng: all draws come from it.

        Returns:
            `pixel_values`: (n, c, c) fp32, c = `crop_size`, padded at the bottom and right with 0 after normalising;
            `labels`: (c, c) int64, padded with the ignore index.
        """
        height, width = labels.shape
        size = self.resized_size(height, width, rng.uniform(*self.scale_range))
        rows, columns, crop = self.draw_crop(labels, size, rng)
        is_rgb = picture.dtype == np.uint8 and picture.shape[-1] == 3
        picture = resize_sample(picture, size)[rows, columns]  # (h, w, n), h and w at most c
        if rng.random() < 0.5:
            picture, crop = picture[:, ::-1], crop[:, ::-1]
        if self.vertical_flip and rng.random() < 0.5:
            picture, crop = picture[::-1], crop[::-1]
        # copies: to NumPy a mirrored column is contiguous, with a stride that torch refuses
        picture, crop = picture.copy(), torch.from_numpy(crop.copy())
        if self.photometric and is_rgb:
            picture = distort(picture, rng)
        operation, strength = None, 0.0
        if self.trivial_augment and is_rgb:
            operation, strength = str(rng.choice([*COLOR_OPERATIONS, *MOVES])), rng.uniform(-1, 1)
        if operation in COLOR_OPERATIONS:
            picture = recolor(picture, operation, strength)
        pixel_values = self.processor.normalized(torch.from_numpy(picture).permute(2, 0, 1))  # (n, h, w)
        if self.photometric and not is_rgb and self.processor.do_normalize:
            pixel_values = distort_bands(pixel_values, rng)
        moves = [MOVES[operation](strength)] if operation in MOVES else []
        if self.rotation:
            moves.append((rotation_matrix(rng.uniform(-self.rotation, self.rotation)), (0, 0)))
        for matrix, shift in moves:
            pixel_values, crop = move(pixel_values, crop, matrix, shift, self.processor.ignore_index)
        margin = (0, self.crop_size - crop.shape[1], 0, self.crop_size - crop.shape[0])
        return {
            "pixel_values": F.pad(pixel_values, margin).contiguous(),  # (n, c, c)
            "labels": F.pad(crop, margin, value=self.processor.ignore_index),  # (c, c)
        }

    def resized_size(self, height: int, width: int, ratio: float) -> tuple[int, int]:
        """(height, width) of a picture that just fits the box times `ratio`; sides are rounded half up, 1 at least."""
        long_side, short_side = (int(side * ratio) for side in self.box)
        long_side, short_side = max(long_side, short_side), min(long_side, short_side)
        factor = min(long_side / max(height, width), short_side / min(height, width))
        return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)

    def draw_crop(
        self, labels: np.ndarray, size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[slice, slice, np.ndarray]:
        """Rows and columns of the crop in the resized picture, and its labels (h, w), of the nearest pixels.

        A draw is accepted when more than one label occurs in it, ignored pixels aside, and the most frequent covers
        less than `cat_max_ratio` of them; after `CROP_DRAWS` the last stands. Only the crop is ever resized.
        """
        across, down = nearest(labels.shape[1], size[1]), nearest(labels.shape[0], size[0])
        for _ in range(CROP_DRAWS):
            top, left = (rng.integers(max(side - self.crop_size, 0) + 1) for side in size)
            rows, columns = slice(top, top + self.crop_size), slice(left, left + self.crop_size)
            crop = labels[down[rows, None], across[None, columns]]  # (h, w)
            if self.cat_max_ratio == 1:
                break
            counts = np.bincount(crop[crop != self.processor.ignore_index], minlength=1)
            if (counts > 0).sum() > 1 and counts.max() < self.cat_max_ratio * counts.sum():
                break
        return rows, columns, crop


def nearest(old: int, new: int) -> np.ndarray:
    """For each of `new` pixels along a side of `old`, the pixel that its middle lies in, the later one of two."""
    return (2 * np.arange(new) + 1) * old // (2 * new)


def resize_sample(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, n) -> (h, w, n) uint8, or fp32 of other types. OpenCV if it is there: 100 times as fast.

    Of uint8 it gives the same bits as `resize_picture`; in fp32 that rounds weights to 1/2048, and OpenCV does not.
    """
    cv2 = import_opencv()
    if cv2 is None:
        return resize_picture(picture, size).permute(1, 2, 0).numpy()
    if picture.dtype != np.uint8:
        picture = picture.astype(np.float32, copy=False)
    parts = [
        cv2.resize(picture[..., first : first + MOST_CHANNELS], size[::-1], interpolation=cv2.INTER_LINEAR)
        for first in range(0, picture.shape[-1], MOST_CHANNELS)
    ]
    parts = [part.reshape(*size, -1) for part in parts]  # it drops the axis of a single band
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def sample_order(num_samples: int, seed: int, epoch: int, word: int = ORDER) -> np.ndarray:
    """(num_samples,) permutation of 0..num_samples - 1 that an epoch goes through."""
    return np.random.default_rng([word, seed, epoch]).permutation(num_samples)


@dataclass(frozen=True)
class BatchPositions:
    """Which positions of the endless sequence of samples one process takes.

    With B = `batch_size` x `accumulation` x `world_size`, step i (counted from 0) takes positions i B..(i + 1) B - 1,
    of which process `rank` has its contiguous share, in `accumulation` batches. So B alone decides what a step sees.

    Iterating gives one `range` of `batch_size` positions per batch, for steps `start_step`..`max_steps` - 1.

    Raises:
        ValueError: a number is out of range.
    """

    batch_size: int
    max_steps: int
    start_step: int = 0
    accumulation: int = 1
    rank: int = 0
    world_size: int = 1

    def __post_init__(self):
        if min(self.batch_size, self.accumulation, self.world_size) < 1 or not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"batch_size, accumulation and world_size must be positive, 0 <= rank < world_size: {self}"
            )
        if not 0 <= self.start_step <= self.max_steps:
            raise ValueError(f"start_step {self.start_step} must be 0..max_steps ({self.max_steps})")

    def __len__(self) -> int:
        return (self.max_steps - self.start_step) * self.accumulation

    def __iter__(self) -> Iterator[range]:
        share = self.batch_size * self.accumulation
        for step in range(self.start_step, self.max_steps):
            first = (step * self.world_size + self.rank) * share
            for start in range(first, first + share, self.batch_size):
                yield range(start, start + self.batch_size)


class TrainingSampler:
    """Batches of (epoch, index) for `DataLoader(batch_sampler=...)`.

    Position p is entry p % n of the order of epoch p // n, n = `num_samples`. Epochs follow one another without a
    gap, so a batch may hold samples of two. ValueError if there is no sample.

    With `num_extra` samples beside them, numbers n to n + `num_extra` - 1, a `share` of the positions takes those:
    position p does where floor((p + 1) * share) is more than floor(p * share). So they are spread evenly, any batch
    holds as many of them as the share says but for one, and both kinds go through epochs of their own.
    """

    def __init__(self, batches: BatchPositions, num_samples: int, seed: int, num_extra: int = 0, share: float = 0.0):
        if num_samples < 1:
            raise ValueError("the data set is empty")
        if not 0 <= share < 1 or (share > 0) != (num_extra > 0):
            raise ValueError(f"a share of {share} for {num_extra} extra samples; more than 0 of both, or neither")
        self.batches, self.num_samples, self.seed = batches, num_samples, seed
        self.num_extra, self.share = num_extra, Fraction(share).limit_denominator(10**6)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = lru_cache(maxsize=2)(partial(sample_order, self.num_samples, self.seed))
        extra_order = lru_cache(maxsize=2)(partial(sample_order, self.num_extra, self.seed, word=EXTRA_ORDER))

        def key(position: int) -> tuple[int, int]:
            num_before = int(position * self.share)  # extra ones, exactly
            if int((position + 1) * self.share) > num_before:
                epoch, place = divmod(num_before, self.num_extra)
                return epoch, self.num_samples + int(extra_order(epoch)[place])
            epoch, place = divmod(position - num_before, self.num_samples)
            return epoch, int(order(epoch)[place])

        for positions in self.batches:
            yield [key(position) for position in positions]


class TrainingDataset(Dataset):
    """Training samples by the key (epoch, index) that `TrainingSampler` gives."""

    def __init__(self, samples: FolderSamples | TableSamples, transform: TrainingTransform):
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor | str]:
        epoch, index = key
        return self.transform(self.samples[index], epoch, index)


class StreamingTrainingDataset(IterableDataset):
    """Training samples of a stream, for `DataLoader(batch_size=batches.batch_size)`.

    Epoch after epoch the stream passes through a shuffle buffer; the place where a sample comes out is its position.
    Every process and worker reads the whole stream and decodes only its own samples: exact on any number of them, at
    the price of reading. Resuming at step i reads past everything before it, undecoded.

    Args:
        samples: what `open_dataset(..., streaming=True)` gives.
        transform: also gives the seed.
        batches: the share of this process; `batch_size` must be the DataLoader's.
        buffer_size: samples held back; 1 keeps the stream's order.

    Raises:
        ValueError: `buffer_size` is not positive; while iterating, the stream is empty.
    """

    def __init__(
        self,
        samples: StreamedSamples,
        transform: TrainingTransform,
        batches: BatchPositions,
        buffer_size: int = 256,
    ):
        if buffer_size < 1:
            raise ValueError(f"buffer_size {buffer_size} must be at least 1")
        self.samples, self.transform, self.batches, self.buffer_size = samples, transform, batches, buffer_size

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        # the DataLoader takes whole batches from its workers in turn
        own = (p for number, positions in enumerate(self.batches) if number % step == first for p in positions)
        stream = enumerate(self.read_shuffled())
        for wanted in own:
            sample, epoch, index = next(entry for position, entry in stream if position == wanted)
            yield self.transform(sample, epoch, index)

    def read_shuffled(self) -> Iterator[tuple[Sample, int, int]]:
        """Endless (sample, epoch, index in the stream), from position 0."""
        for epoch in count():
            rng, buffer, is_empty = np.random.default_rng([ORDER, self.transform.seed, epoch]), [], True
            for index, sample in enumerate(self.samples):
                is_empty = False
                buffer.append((sample, epoch, index))
                if len(buffer) == self.buffer_size:
                    yield pop_at_random(buffer, rng)
            if is_empty:
                raise ValueError("the data set is empty")
            while buffer:
                yield pop_at_random(buffer, rng)


def pop_at_random(buffer: list, rng: np.random.Generator):
    """A random entry of `buffer`, which loses it."""
    place = rng.integers(len(buffer))
    buffer[place], buffer[-1] = buffer[-1], buffer[place]
    return buffer.pop()


__all__ = [
    "LONG_SIDE",
    "BatchPositions",
    "StreamingTrainingDataset",
    "TrainingDataset",
    "TrainingSampler",
    "TrainingTransform",
    "sample_order",
]
