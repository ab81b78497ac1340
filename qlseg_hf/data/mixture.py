# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Training samples of several data sets, each with its own label rules, in one numbering of images and of labels."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch.utils.data import Dataset

from ..model.image_processing_qlseg import QLSegImageProcessor
from .augmentation import TrainingTransform
from .datasets import Samples, exclude, listed


@dataclass(frozen=True)
class ExtraSet:
    """A labelled data set beside the one that is trained on.

    `data`: what it is called. `processor`: that of the run but for the set's own label rules. `names`: of the set's
    labels. `labels`: of each of them the label of the run.
    """

    data: str
    samples: Samples
    processor: QLSegImageProcessor
    names: list[str]
    labels: tuple[int, ...]


class MixedDataset(Dataset):
    """Training samples by the key (epoch, index) of `TrainingSampler`: first the run's own, then those of extra sets.

    Args:
        samples, transform: of the run.
        extra: sets whose samples follow, in their order. Their labels come out as those of the run.
    """

    def __init__(self, samples: Samples, transform: TrainingTransform, extra: Sequence[ExtraSet]):
        self.samples, self.transform, self.extra = samples, transform, extra
        self.ends = list(accumulate([len(samples), *(len(one.samples) for one in extra)]))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor | str]:
        epoch, index = key
        part = bisect_right(self.ends, index)
        if part == 0:
            return self.transform(self.samples[index], epoch, index)
        one = self.extra[part - 1]
        transform = replace(self.transform, processor=one.processor, num_labels=len(one.names))
        found = transform(one.samples[index - self.ends[part - 1]], epoch, index)
        void = found["labels"] == one.processor.ignore_index
        labels = torch.tensor(one.labels)[found["labels"].masked_fill(void, 0)]
        return found | {"labels": labels.masked_fill(void, self.transform.processor.ignore_index)}


def match_names(theirs: list[str], names: list[str], data: str) -> tuple[int, ...]:
    """The run's label of each label of a set, by name; labels that share one are taken in their order.

    Raises:
        ValueError: the run has no label of some name; says which.
    """
    if lacking := [name for name in theirs if name not in names]:
        unused = [name for name in names if name not in theirs]
        others = f"; labels of the run that the set lacks are {listed(unused)}" if unused else ""
        raise ValueError(
            f"extra_data {data} has labels that the run lacks: {listed(lacking)}{others}; call the set's labels in "
            "their order by its label_names, or give it a label_mapping {stored value: label of the run}"
        )
    places = {name: [label for label, other in enumerate(names) if other == name] for name in theirs}
    return tuple(places[name].pop(0) if len(places[name]) > 1 else places[name][0] for name in theirs)


def exclude_extra(extra: Sequence[ExtraSet], first: int, left_out: Sequence[int]) -> list[ExtraSet]:
    """The sets as if samples of the given numbers were not in them. `first`: number of the first extra sample."""
    kept = []
    for one in extra:
        own = [index - first for index in left_out if first <= index < first + len(one.samples)]
        first += len(one.samples)
        kept.append(replace(one, samples=exclude(one.samples, own)))
    return kept


__all__ = ["ExtraSet", "MixedDataset", "exclude_extra", "match_names"]
