# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Pictures of any number of bands: mean and deviation per band.

The order of bands is that of the file. Where a network begins with the weights of an RGB one, the first three bands
are taken for red, green and blue.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from .datasets import SampleError


@dataclass(frozen=True)
class BandStatistics:
    """What the bands of a data set's pictures are. Numbers per band are in units of the stored values.

    `num_channels`: bands that a network for them takes; 3 of grey, which is repeated. `dtype`: NumPy's name of the
    stored type; "uint8" also of grey and RGB of 16 bits, which are brought to 8. `mean`, `deviation`, `least`, `most`:
    per band, over all values that count. `num_pictures`, `num_pixels`: what was measured. `notes`: sentences for the
    person whose data it is.
    """

    num_channels: int
    dtype: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    least: tuple[float, ...]
    most: tuple[float, ...]
    num_pictures: int
    num_pixels: int
    notes: tuple[str, ...] = ()

    @property
    def rescale_factor(self) -> float | None:
        """What integers are multiplied by: 1 / 255 of 8 bits, 1 / 65535 of 16, else 1 / the largest value.

        None for floats, which are taken as they are (`do_rescale=False`).
        """
        if self.dtype.startswith("float"):
            return None
        if self.dtype == "uint8":
            return 1 / 255
        return 1 / max(65535.0, *(abs(value) for value in (*self.least, *self.most)))

    @property
    def processor_settings(self) -> dict[str, Any]:
        """Settings of `QLSegImageProcessor` that these pictures need; {} for 8-bit RGB, which needs no other.

        A band that is the same everywhere gets the deviation 1: it says nothing, and becomes 0.
        """
        if self.num_channels == 3 and self.dtype == "uint8":
            return {}
        factor = self.rescale_factor
        settings = {"do_rescale": False} if factor is None else {"rescale_factor": factor}
        scale = 1.0 if factor is None else factor
        return settings | {
            "image_mean": [value * scale for value in self.mean],
            "image_std": [value * scale if value * scale > 1e-12 else 1.0 for value in self.deviation],
        }


class BandSums:
    """Mean and deviation per band of pictures that come one by one, or in several processes; nothing is kept of them.

    Source: Chan, Golub and LeVeque 1979: mean and summed squares of two parts give those of both, without the
    cancellation that sums of squares suffer from.
    """

    def __init__(self, nodata: float | None = None):
        self.nodata, self.kind, self.name = nodata, None, None
        self.num_pictures = self.num_pixels = 0
        self.counts = self.mean = self.squares = self.least = self.most = None

    def add(self, picture: np.ndarray, name: str = "a picture") -> None:
        """Count an (H, W, bands) picture. ValueError if its bands or type differ from those of the first."""
        values = picture.reshape(-1, picture.shape[-1])
        other = BandSums(self.nodata)
        other.kind, other.name = (picture.shape[-1], picture.dtype.name), name
        other.num_pictures, other.num_pixels = 1, len(values)
        if self.nodata is None:
            columns = [values[:, band] for band in range(values.shape[1])]
        else:
            columns = [values[values[:, band] != self.nodata, band] for band in range(values.shape[1])]
        other.counts = np.array([len(column) for column in columns], dtype=np.float64)
        other.mean = np.array([column.mean(dtype=np.float64) if len(column) else 0.0 for column in columns])
        other.squares = np.array(
            [column.var(dtype=np.float64) * len(column) if len(column) else 0 for column in columns]
        )
        other.least = np.array([column.min() if len(column) else np.inf for column in columns], dtype=np.float64)
        other.most = np.array([column.max() if len(column) else -np.inf for column in columns], dtype=np.float64)
        self.merge(other)

    def merge(self, other: "BandSums") -> None:
        """Count what `other` has counted. ValueError if its bands or type differ."""
        if other.kind is None:
            return
        if self.kind is None:
            self.__dict__.update(other.__dict__)
            return
        if self.kind != other.kind:
            (own, own_type), (its, its_type) = self.kind, other.kind
            raise ValueError(
                f"{self.name} has {own} bands of {own_type} and {other.name} {its} of {its_type}; all pictures must "
                "have the same"
            )
        counts = self.counts + other.counts
        share = other.counts / np.maximum(counts, 1)
        step = other.mean - self.mean
        self.squares = self.squares + other.squares + step**2 * self.counts * share
        self.mean, self.counts = self.mean + step * share, counts
        self.least, self.most = np.minimum(self.least, other.least), np.maximum(self.most, other.most)
        self.num_pictures += other.num_pictures
        self.num_pixels += other.num_pixels

    def statistics(self) -> BandStatistics:
        """What was counted; ValueError if a band has no value that counts."""
        if self.kind is None or not (self.counts > 0).all():
            raise ValueError("there is no picture, or a band has no value that counts; see nodata")
        deviation = np.sqrt(self.squares / self.counts)
        numbers = (tuple(x.tolist()) for x in (self.mean, deviation, self.least, self.most))
        return BandStatistics(*self.kind, *numbers, self.num_pictures, self.num_pixels)


def measure_bands(
    samples: Iterable,
    *,
    num_channels: int | None = None,
    keep_values: bool = False,
    nodata: float | None = None,
    progress: bool = True,
) -> BandStatistics:
    """Measure the bands of a data set in one pass; memory does not grow with it.

    Args:
        samples: `Sample`s, of which the pictures are read.
        num_channels: bands that the pictures are to be read with; what is found if not given. Give 4 for RGB and near
            infrared in files that call the fourth band alpha.
        keep_values: measure grey and RGB of 16 bits as they are stored, and not as the 8 bits they are read as
            otherwise. Without it 16-bit pictures of grey or RGB need nothing that was measured.
        nodata: a value that stands for "not measured" and does not count. NaN and infinite values are refused, as in
            training.
        progress: show a bar.

    Raises:
        SampleError: a picture cannot be read.
        ValueError: pictures differ in the number or type of their bands, or there is none.
    """
    sums, notes = BandSums(nodata), ()
    for sample in tqdm(samples, "measuring bands", unit=" pictures", disable=not progress):
        picture = sample.read_picture(num_channels=num_channels, keep_values=keep_values)
        if sums.num_pictures == 0 and num_channels is None and picture.shape[-1] == 3:
            notes = notes_on_alpha(sample, keep_values)
        sums.add(picture, sample.name)
    return replace(sums.statistics(), notes=notes)


def notes_on_alpha(sample, keep_values: bool) -> tuple[str, ...]:
    """A sentence if the sample's picture has an alpha band that is left out and may be a band of its own."""
    fourth = ()
    for as_stored in {keep_values, True}:  # of 16 bits only the stored values are read as four bands
        with suppress(SampleError):  # there is no fourth band
            fourth = sample.read_picture(num_channels=4, keep_values=as_stored)[..., 3]
    if len(np.unique(fourth)) <= 2:
        return ()
    return (
        f"the fourth band of {sample.name} is called alpha (opacity) and left out, but varies as a picture does; if "
        "it is one, such as near infrared, set num_channels to 4",
    )


__all__ = ["BandStatistics", "BandSums", "measure_bands"]
