# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a person can write where names do not tell images from label maps: nothing that cannot be opened."""

from collections.abc import Iterator
from contextlib import contextmanager

from ...utils.picture_files import NUM_NAMED
from .folders import count_images
from .layout import Source, Unclear


@contextmanager
def offering(source: Source) -> Iterator[None]:
    """Add to the sentence of an `Unclear` those of its options that open most images, as a ValueError."""
    try:
        yield
    except Unclear as error:
        counts = {option: count_images(source, *option) for option in dict.fromkeys(error.options)}
        best = [":".join(option) for option, count in counts.items() if count == max(counts.values()) >= error.least]
        ways = error.advice
        if best:
            more = f" (or {len(best) - NUM_NAMED} more)" if len(best) > NUM_NAMED else ""
            ways = f"; name images and label maps, as in layout: {' or layout: '.join(best[:NUM_NAMED])}{more}"
        raise ValueError(". ".join([f"{error.sentence}{ways}", *error.notes])) from error


__all__ = ["offering"]
