# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Overlays for people: the picture tinted by label, with a legend of names, colours and shares; label maps as PNG."""

import colorsys
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..utils.text import printable
from .files import write_atomically

LINE_HEIGHT = 22  # pixels of a legend line
FONT_SIZE = 14
LONGEST_NAME = 60  # letters of a label in a legend


def label_colors(config) -> np.ndarray:
    """(K, 3) uint8 colours of the labels: the configuration's palette, or distinct hues if it has none."""
    if config.palette is not None:
        return np.array(config.palette, dtype=np.uint8)
    golden = 0.618034  # successive hues by the golden ratio stay far apart for any number of labels
    hues = [
        colorsys.hsv_to_rgb(i * golden % 1, 0.55 + 0.4 * (i % 2), 0.95 - 0.3 * (i % 3) / 2)
        for i in range(config.num_labels)
    ]
    return (255 * np.array(hues)).astype(np.uint8)


def draw_overlay(
    picture: np.ndarray,
    label_map: torch.Tensor | np.ndarray,
    id2label: dict[int, str],
    colors: np.ndarray,
    opacity: float = 0.55,
) -> Image.Image:
    """Picture tinted by label with white borders, and a legend beside it, largest label first.

    Args:
        picture: (H, W, n), uint8 or another type; shown as `to_visible_rgb` makes it.
        label_map: (H, W) integers; values without a name (an ignore index) stay untinted and are left out of the
            legend.
        id2label: names.
        colors: (K, 3) uint8.
        opacity: of the tint, 0..1.

    Returns:
        RGB picture, H or more pixels high.

    Raises:
        ValueError: picture and label map differ in size.
    """
    tinted = tint_picture(picture, label_map, colors, opacity)
    lines = [(label, f"{legend_name(id2label[label])} ({text})") for label, text in label_shares(label_map, colors)]
    return add_legend(tinted, lines, colors)


def tint_picture(
    picture: np.ndarray, label_map: torch.Tensor | np.ndarray, colors: np.ndarray, opacity: float = 0.55
) -> Image.Image:
    """`draw_overlay` without the legend: RGB, (H, W) pixels."""
    labels = np.asarray(label_map)
    if labels.shape != picture.shape[:2]:
        raise ValueError(f"the label map has size {labels.shape}, its picture {picture.shape[:2]}")
    picture = to_visible_rgb(picture)
    named = (labels >= 0) & (labels < len(colors))
    tint = colors[np.where(named, labels, 0)]
    blend = np.where(named[..., None], (1 - opacity) * picture + opacity * tint, picture)
    border = np.zeros(labels.shape, dtype=bool)
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    border[1:] |= labels[1:] != labels[:-1]
    blend[border] = 255
    return Image.fromarray(blend.round().astype(np.uint8))


def label_shares(label_map: torch.Tensor | np.ndarray, colors: np.ndarray) -> list[tuple[int, str]]:
    """(label, share of the picture as text) of the labels in an (H, W) map that have a colour, largest first."""
    labels = np.asarray(label_map)
    values, counts = np.unique(labels[(labels >= 0) & (labels < len(colors))], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(int(values[i]), share(counts[i] / labels.size)) for i in order]


def to_visible_rgb(picture: np.ndarray) -> np.ndarray:
    """(H, W, n) of any type -> (H, W, 3) uint8 for people: the first three bands, or the first one as grey.

    8-bit values stay. Others are stretched band by band, from their 2nd percentile (black) to their 98th (white).
    """
    bands = picture[..., :3] if picture.shape[-1] >= 3 else picture[..., :1]
    if bands.dtype != np.uint8:
        bands = bands.astype(np.float32)
        low, high = np.percentile(bands, (2, 98), axis=(0, 1))
        bands = (255 * ((bands - low) / np.maximum(high - low, 1e-12)).clip(0, 1)).round().astype(np.uint8)
    return np.broadcast_to(bands, (*bands.shape[:2], 3))


def legend_name(name: str) -> str:
    """A label's name on one line of bearable length."""
    name = printable(name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."


def share(fraction: float) -> str:
    return f"{100 * fraction:.0f} %" if fraction >= 0.01 else "< 1 %"


def add_legend(picture: Image.Image, lines: list[tuple[int, str]], colors: np.ndarray) -> Image.Image:
    """The picture on white with one legend line per (label, text), in as many columns as its height asks for."""
    font = ImageFont.load_default(FONT_SIZE)
    height = max(picture.height, 12 * LINE_HEIGHT)
    per_column = height // LINE_HEIGHT
    column_width = LINE_HEIGHT + 20 + int(max((font.getlength(text) for _, text in lines), default=0))
    num_columns = -(-len(lines) // per_column)
    canvas = Image.new("RGB", (picture.width + 10 + num_columns * column_width, height), "white")
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for i, (label, text) in enumerate(lines):
        x = picture.width + 10 + i // per_column * column_width
        y = i % per_column * LINE_HEIGHT
        color = tuple(int(channel) for channel in colors[label])
        draw.rectangle([x, y + 3, x + LINE_HEIGHT - 6, y + LINE_HEIGHT - 4], fill=color, outline="black")
        draw.text((x + LINE_HEIGHT, y + LINE_HEIGHT // 2), text, fill="black", font=font, anchor="lm")
    return canvas


def label_map_picture(
    label_map: torch.Tensor | np.ndarray, colors: np.ndarray, void: int | None = None
) -> Image.Image:
    """A picture whose pixel values are the labels: palette mode if they and `void` fit into 8 bits, else 16 bit.

    Raises:
        ValueError: there are more than 65,536 labels, which 16 bits do not hold.
    """
    labels = np.asarray(label_map)
    if len(colors) > 1 << 16:
        raise ValueError(f"{len(colors)} labels do not fit into the 16 bits of a PNG file; 65,536 at most do")
    if len(colors) > 256 or (void or 0) > 255:
        return Image.fromarray(labels.astype(np.uint16))
    picture = Image.fromarray(labels.astype(np.uint8), mode="P")
    # all 256 entries, or PNG would store only the bits that K entries need and an ignore index would change
    picture.putpalette(np.pad(colors, ((0, 256 - len(colors)), (0, 0))).flatten().tolist())
    return picture


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG in one step; see `write_atomically`."""
    encoded = io.BytesIO()
    picture.save(encoded, format="PNG")
    write_atomically(path, encoded.getvalue())


__all__ = [
    "draw_overlay",
    "label_colors",
    "label_map_picture",
    "label_shares",
    "legend_name",
    "save_picture",
    "tint_picture",
    "to_visible_rgb",
]
