# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Pictures of a data set for people: a contact sheet on which every label is seen, and the facts beside it as PNG."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...utils.text import printable
from ...utils.visualization import draw_overlay, label_colors, to_visible_rgb
from ..datasets import Sample
from .counting import Finding, labels_of
from .survey import Survey

NUM_IMAGES = 12  # of a contact sheet
SIDE = 360  # pixels, longest side of its images
SEEN = 0.003  # share of an image's pixels from which a label is seen in it
NAMED = 0.01  # share from which its name is written on it
MOST_BARS = 40  # labels with a bar in the PNG


def colors_of_labels(num_labels: int) -> np.ndarray:
    """(K, 3) uint8, distinct."""
    return label_colors(SimpleNamespace(palette=None, num_labels=max(num_labels, 1)))


def choose_samples(survey: Survey, most: int = NUM_IMAGES) -> list[tuple[str, Finding]]:
    """(split, finding) of the images that show the labels: first the rarest label not yet seen, then evenly spread."""
    usable = [
        (split, found)
        for split in dict.fromkeys(survey.uses.values())
        for found in survey.findings[split]
        if found.size is not None
    ]
    shown = [find_visible_labels(found, survey) for _, found in usable]
    images = np.array(survey.images_of_labels)
    wanted = [label for label in np.argsort(images, kind="stable").tolist() if images[label]]
    chosen: list[int] = []
    seen: set[int] = set()
    for label in wanted:
        holding = [place for place, labels in enumerate(shown) if label in labels and place not in chosen]
        if label not in seen and holding and len(chosen) < most:
            best = max(holding, key=lambda place: (len(set(shown[place]) - seen), shown[place][label]))
            chosen.append(best)
            seen |= set(shown[best])
    rest = [place for place in range(len(usable)) if place not in chosen]
    missing = min(most - len(chosen), len(rest))
    chosen += [rest[place] for place in np.linspace(0, len(rest) - 1, missing).astype(int)] if missing > 0 else []
    return [usable[place] for place in sorted(chosen)]


def find_visible_labels(found: Finding, survey: Survey) -> dict[int, float]:
    """{label: share of the image} of those that are large enough to be seen, or else of all."""
    if found.stored is None:
        return {}
    labels = labels_of(found.stored.values, survey.processor).tolist()
    total, shares = int(found.stored.counts.sum()), {}
    for label, count in zip(labels, found.stored.counts.tolist()):
        if 0 <= label < len(survey.rules.names) and label != survey.processor.ignore_index:
            shares[label] = shares.get(label, 0.0) + count / total
    return {label: share for label, share in shares.items() if share >= SEEN} or shares


def read_tile(survey: Survey, split: str, found: Finding) -> tuple[Image.Image, list[int]]:
    """One image, small, tinted by its labels with their names on it; and its labels, the largest first."""
    sample: Sample = survey.splits[split][found.index]
    reading = survey.request.picture_reading
    if found.colors is not None:  # a colour mask whose colours nobody has named yet
        numbered = {color: number for number, color in enumerate(survey.colors)}
        colors, names = np.array(list(numbered), dtype=np.uint8), [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in numbered]
        return draw_tile(*replace(sample, label_colors=numbered).read(**reading), names, colors)
    picture, stored = sample.read(**reading)
    labels = labels_of(stored, survey.processor)
    labels[labels == survey.processor.ignore_index] = -1
    names = list(map(printable, survey.rules.names))
    return draw_tile(picture, labels, names, colors_of_labels(len(names)))


def draw_tile(
    picture: np.ndarray, labels: np.ndarray, names: list[str], colors: np.ndarray
) -> tuple[Image.Image, list[int]]:
    """See `read_tile`. `labels`: (H, W), values outside 0..K-1 stay untinted."""
    height, width = labels.shape
    scale = min(SIDE / max(height, width), 4.0)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    rows, columns = (((np.arange(n) + 0.5) * full / n).astype(int) for n, full in zip(size[::-1], labels.shape))
    small = labels[rows[:, None], columns]
    way = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    photo = np.asarray(Image.fromarray(to_visible_rgb(picture)).resize(size, way))
    tile = draw_overlay(photo, small, dict(enumerate(names)), colors, opacity=0.45).crop((0, 0, *size))
    values, counts = np.unique(small[(small >= 0) & (small < len(names))], return_counts=True)
    order = values[np.argsort(-counts, kind="stable")].tolist()
    for label in [label for label in order if (small == label).mean() >= NAMED]:
        write_name(tile, small == label, names[label], colors[label])
    return tile, order


def write_name(tile: Image.Image, mask: np.ndarray, name: str, color: np.ndarray) -> None:
    """A label's name in the middle of its pixels, or at that one of them which is nearest to it."""
    y, x = mask.nonzero()
    nearest = np.argmin((y - np.median(y)) ** 2 + (x - np.median(x)) ** 2)
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(12)
    text = name if len(name) <= 18 else f"{name[:16]}..."
    half = int(font.getlength(text)) // 2 + 3
    place = (
        int(np.clip(x[nearest], half, max(tile.width - half, half))),
        int(np.clip(y[nearest], 8, tile.height - 8)),
    )
    dark = tuple(int(part) // 3 for part in color)  # on which white letters can be read
    draw.text(place, text, fill="white", font=font, anchor="mm", stroke_width=2, stroke_fill=dark)


def draw_facts(survey: Survey, tiles: list[Image.Image], facts: list[tuple[str, str]], verdict: str) -> Image.Image:
    """The report as one picture: facts, contact sheet, a bar per label."""
    width, pad, per_row = 1240, 20, 4
    cell = (width - pad) // per_row
    font, small, title = (ImageFont.load_default(size) for size in (16, 14, 22))
    lines = [f"{what}: {value}" for what, value in facts] + wrap_text(verdict, font, width - 2 * pad)
    tiles = [tile.resize(fit_size(tile.size, cell - pad)) for tile in tiles]
    rows = [tiles[start : start + per_row] for start in range(0, len(tiles), per_row)]
    names, counts = survey.rules.names, survey.label_counts if survey.rules.names else np.zeros(0)
    num_bars = min(len(names), MOST_BARS)
    heights = [max(tile.height for tile in row) + pad for row in rows]
    bars = -(-num_bars // 2) * 24 + (30 if num_bars else 0) + (24 if len(names) > num_bars else 0)
    canvas = Image.new("RGB", (width, 60 + 24 * len(lines) + pad + sum(heights) + bars + pad), "white")
    draw, y = ImageDraw.Draw(canvas), 60
    draw.text((pad, 18), printable(f"qlseg check: {survey.request.data}")[:100], fill="black", font=title)
    for line in lines:
        draw.text((pad, y), printable(line)[:170], fill="black", font=font)
        y += 24
    y += pad
    for row, height in zip(rows, heights):
        for place, tile in enumerate(row):
            canvas.paste(tile, (pad + place * cell, y))
        y += height
    if num_bars:
        draw_bars(draw, y, names[:num_bars], counts, small, (pad, (width - pad) // 2))
        if len(names) > num_bars:
            draw.text((pad, y + bars - 24), f"and {len(names) - num_bars} more labels", fill="black", font=small)
    return canvas


def draw_bars(draw: ImageDraw.ImageDraw, top: int, names: list[str], counts: np.ndarray, font, column) -> None:
    """A bar per label in two columns, the largest share as long as there is room. `column`: margin and width."""
    pad, width = column
    colors, total = colors_of_labels(len(counts)), max(int(counts.sum()), 1)
    per_column = -(-len(names) // 2)
    for number, name in enumerate(names):
        x, y = pad + number // per_column * width, top + 6 + number % per_column * 24
        text = printable(name)
        length = int((width - 330) * counts[number] / max(int(counts.max()), 1))
        draw.rectangle([x, y + 3, x + 14, y + 17], fill=tuple(map(int, colors[number])), outline="black")
        draw.text((x + 22, y + 2), text if len(text) <= 24 else f"{text[:22]}...", fill="black", font=font)
        draw.rectangle([x + 210, y + 4, x + 210 + length, y + 16], fill=tuple(map(int, colors[number])))
        draw.text((x + 218 + length, y + 2), f"{counts[number] / total:.2%}", fill="black", font=font)


def fit_size(size: tuple[int, int], width: int) -> tuple[int, int]:
    """(width, height) of an image brought into a square of that width."""
    scale = width / max(size)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def wrap_text(text: str, font, width: int) -> list[str]:
    """Lines of a text that fit into a width, pixels; four at most."""
    lines, line = [], ""
    for word in text.split():
        if font.getlength(f"{line} {word}") > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    lines.append(line)
    return lines if len(lines) <= 4 else [*lines[:3], f"{lines[3][:80]} ..."]


__all__ = ["choose_samples", "colors_of_labels", "draw_facts", "read_tile"]
