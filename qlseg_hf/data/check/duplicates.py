# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Images of equal content: within a split they count twice, across splits they make scores too good."""

from dataclasses import dataclass

from .counting import Finding

NUM_GROUPS = 3  # that a sentence names


@dataclass
class Group:
    """Images of equal content. `places`: (split, name) of each. `differs`: whether their label maps differ."""

    places: list[tuple[str, str]]
    differs: bool

    @property
    def splits(self) -> list[str]:
        return sorted({split for split, _ in self.places})


def find_duplicates(findings: dict[str, list[Finding]]) -> list[Group]:
    """Groups of images of equal content, those across splits first, the largest first."""
    places: dict[bytes, list[tuple[str, Finding]]] = {}
    for split, found_in_split in findings.items():
        for found in found_in_split:
            if found.picture_digest is not None:
                places.setdefault(found.picture_digest, []).append((split, found))
    groups = [
        Group(
            [(split, found.name) for split, found in equal],
            len({found.label_digest for _, found in equal if found.label_digest}) > 1,
        )
        for equal in places.values()
        if len(equal) > 1
    ]
    return sorted(groups, key=lambda group: (-len(group.splits), -len(group.places)))


def duplicate_warnings(groups: list[Group], total: int) -> list[str]:
    """Sentences on images that are there twice, of `total`."""

    def named(some: list[Group], with_split: bool) -> str:
        texts = [
            " = ".join(f"{split}: {name}" if with_split else name for split, name in group.places[:3])
            for group in some[:NUM_GROUPS]
        ]
        return "; ".join(texts) + (f"; and {len(some) - NUM_GROUPS} more" if len(some) > NUM_GROUPS else "")

    leaks = [group for group in groups if len(group.splits) > 1]
    inside = [group for group in groups if len(group.splits) == 1]
    torn = [group for group in groups if group.differs]
    sentences = []
    if leaks:
        sentences.append(
            f"{len(leaks)} of {total} images are in more than one split, so scores will be too good: "
            f"{named(leaks, True)}; keep each in one split"
        )
    if inside:
        more = sum(len(group.places) - 1 for group in inside)
        sentences.append(f"{more} of {total} images repeat others of their split: {named(inside, False)}")
    if torn:
        sentences.append(
            f"{len(torn)} of {total} images are there several times with different label maps: {named(torn, True)}; "
            "keep the right one"
        )
    return sentences


__all__ = ["Group", "duplicate_warnings", "find_duplicates"]
