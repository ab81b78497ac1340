# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Draw scenes with known labels: a data set to try training with, in ADE20K's folder layout.

`make_scenes` writes images/{training,validation}/*.jpg, annotations/{training,validation}/*.png (palette pictures
whose values are the labels, none reduced, none ignored) and labels.json ({label: name}). The seven labels differ in
texture, shape and place: balls and buildings have any colour, trees that of grass, water that of the sky. With more
than seven labels there are several kinds of balls, which differ in hue and pattern. A scene depends on seed, split,
number and the number of labels only, so more of them repeat the first ones. About 100 scenes of 96 px a second.
"""

import colorsys
import json
import math
import os
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..utils.files import partial_folder
from ..utils.visualization import label_map_picture

LABELS = ("sky", "grass", "road", "water", "building", "tree", "ball")
COLORS = np.array([0x87CEFA, 0x7CC83C, 0x6E6E6E, 0x1E50C8, 0xC8783C, 0x14641E, 0xE6283C])[:, None] >> [16, 8, 0] & 255
SKY, GRASS, ROAD, WATER, BUILDING, TREE, BALL = range(len(LABELS))
SPLITS = ("training", "validation")
FEW = {"sky": [SKY], "land": [GRASS, ROAD, WATER], "thing": [BUILDING, TREE, BALL]}  # where 3 labels are asked for
MOST_LABELS = 60  # beyond that, hues of balls are too near one another to be told apart


class Canvas:
    """A picture and its labels, painted from back to front. `light`: 1 if it comes from the right, else -1."""

    def __init__(self, rng: np.random.Generator, size: int):
        self.rng = rng
        self.height, self.width = (round(size * rng.uniform(0.85, 1.4)) for _ in range(2))
        self.y, self.x = np.mgrid[: self.height, : self.width].astype(float)
        self.picture = np.zeros((self.height, self.width, 3))  # 0..1
        self.labels = np.zeros((self.height, self.width), dtype=np.uint8)
        self.light = rng.choice([-1, 1])

    def noise(self, down: float, across: float) -> np.ndarray:
        """(H, W) smooth noise in 0..1 with grains of the given size, pixels."""
        shape = [math.ceil(n / grain) + 1 for n, grain in ((self.height, down), (self.width, across))]
        grains = Image.fromarray(self.rng.random(shape, dtype=np.float32))
        return np.asarray(grains.resize((self.width, self.height), Image.Resampling.BICUBIC))

    def paint(self, mask: np.ndarray, label: int, color: np.ndarray, shade: np.ndarray | float = 1.0) -> None:
        """Where `mask` (H, W) is set: `label`, and `color`, (3,) or (H, W, 3), times `shade`, a number or (H, W)."""
        painted = np.broadcast_to(color * np.asarray(shade)[..., None], self.picture.shape)
        self.picture[mask], self.labels[mask] = painted[mask], label

    def color(self, hues: tuple[float, float], saturation=(0.3, 0.9), value=(0.45, 0.95)) -> np.ndarray:
        """(3,) RGB in 0..1, drawn uniformly in HSV; a hue of 1 is 0 again."""
        hue, saturation, value = (self.rng.uniform(*bounds) for bounds in (hues, saturation, value))
        return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))

    def air_color(self) -> np.ndarray:
        """Of the sky or of water: blue, the orange of an evening, or grey."""
        choices = [((0.5, 0.66), (0.2, 0.8)), ((0.02, 0.12), (0.2, 0.7)), ((0, 1), (0, 0.12))]
        hues, saturation = choices[self.rng.choice(3, p=[0.55, 0.2, 0.25])]
        return self.color(hues, saturation, (0.5, 1))


def paint_land(canvas: Canvas) -> np.ndarray:
    """Sky, grass, and now and then water and a road. Returns the (W,) row where the sky ends."""
    rng, height, width, y, x = canvas.rng, canvas.height, canvas.width, canvas.y, canvas.x
    across = x[0] / width
    horizon = height * (rng.uniform(0.3, 0.6) + rng.uniform(-0.12, 0.12) * across)  # (W,)
    fade = (y / height)[..., None]
    clouds = 0.85 + 0.3 * canvas.noise(height / 4, width / 3)
    canvas.paint(y >= 0, SKY, canvas.air_color() * (1 - fade) + canvas.air_color() * fade, clouds)
    blades = 0.45 + 0.7 * canvas.noise(4, 1.5)
    canvas.paint(y >= horizon, GRASS, canvas.color((0.13, 0.4)), blades)
    shore = horizon
    if rng.random() < 0.55:
        bend = 0.03 * np.sin(across * rng.uniform(4, 12) + rng.uniform(0, 6))
        shore = horizon + height * (rng.uniform(0.12, 0.3) + bend)
        waves = 0.65 + 0.5 * canvas.noise(2, 14)
        canvas.paint((y >= horizon) & (y < shore), WATER, canvas.air_color(), waves)
    if rng.random() < 0.7:
        depth = np.clip((y - shore) / (height - shore), 0, 1)  # 0 at the far end, 1 at the lower border
        far, near = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9)
        offset = (x / width - far - (near - far) * depth) / (0.04 + rng.uniform(0.15, 0.3) * depth)
        line = (np.abs(offset) < 0.07) & (np.sin(9 / (depth + 0.15)) > 0)
        surface = np.where(line, 1.6, 0.85 + 0.25 * canvas.noise(1.2, 1.2))
        canvas.paint((y >= shore) & (np.abs(offset) < 1), ROAD, canvas.color((0, 0.7), (0, 0.3), (0.25, 0.7)), surface)
    return horizon


def paint_building(canvas: Canvas, base: float, scale: float) -> None:
    """A block with rows of windows and a side in shadow, standing on row `base`."""
    rng, y = canvas.rng, canvas.y
    high, wide = scale * rng.uniform(0.35, 0.75), scale * rng.uniform(0.25, 0.6)
    left = rng.uniform(-wide / 2, canvas.width - wide / 2)
    inside = (y <= base) & (y > base - high) & (canvas.x >= left) & (canvas.x < left + wide)
    pitch = scale * rng.uniform(0.07, 0.13)
    across, down = (canvas.x - left) / pitch % 1, (base - y) / pitch % 1
    is_window = (abs(across - 0.5) < rng.uniform(0.15, 0.3)) & (abs(down - 0.55) < rng.uniform(0.2, 0.35))
    edge = left + wide * rng.uniform(0.55, 0.8) if canvas.light < 0 else left + wide * rng.uniform(0.2, 0.45)
    shade = np.where((canvas.x - edge) * canvas.light > 0, 1.0, 0.65) + 0.1 * canvas.noise(2, 2)
    canvas.paint(inside, BUILDING, canvas.color((0, 1), (0, 0.7), (0.35, 1)), shade)
    canvas.paint(inside & is_window, BUILDING, canvas.color((0, 1), (0, 0.6), (0.05, 0.9)), shade)


def paint_tree(canvas: Canvas, base: float, scale: float) -> None:
    """A trunk and a ragged crown of coarse leaves, standing on row `base`."""
    rng, x, y = canvas.rng, canvas.x, canvas.y
    crown, high = scale * rng.uniform(0.13, 0.24), scale * rng.uniform(0.35, 0.6)
    middle, stretch = rng.uniform(0, canvas.width), rng.uniform(0.8, 1.6)
    trunk = (abs(x - middle) < max(1.5, crown * 0.18)) & (y <= base) & (y > base - high)
    canvas.paint(trunk, TREE, canvas.color((0.04, 0.1), (0.3, 0.7), (0.2, 0.45)), 0.7 + 0.4 * canvas.noise(3, 1.2))
    ragged = 0.8 * (canvas.noise(crown / 2, crown / 2) - 0.5)
    radius = np.hypot(x - middle, (y - base + high) / stretch) / crown + ragged
    side = 0.25 * canvas.light * (x - middle) / crown
    leaves = np.clip(0.25 + 1.0 * canvas.noise(3, 3) + side, 0.15, None)
    canvas.paint(radius < 1, TREE, canvas.color((0.05, 0.42)), leaves)


def ball_color(kind: int, kinds: int) -> np.ndarray:
    """(3,) RGB in 0..1: three kinds have one hue, and differ in pattern and a little in brightness."""
    return np.array(colorsys.hsv_to_rgb(kind // 3 / math.ceil(kinds / 3), 0.85, (1.0, 0.8, 0.6)[kind % 3]))


def paint_ball(canvas: Canvas, base: float, scale: float, kinds: int = 1) -> None:
    """A shaded ball with a highlight, lying on row `base` or in the air; the only kind has any colour."""
    rng, light = canvas.rng, canvas.light
    kind = int(rng.integers(kinds)) if kinds > 1 else 0
    radius, middle = scale * rng.uniform(0.07, 0.17), rng.uniform(0, canvas.width)
    base = base if rng.random() < 0.6 else rng.uniform(0.2, 1) * canvas.height
    across, down = (canvas.x - middle) / radius, (canvas.y - base + radius) / radius
    upward = np.sqrt(np.clip(1 - across**2 - down**2, 0, None))  # towards the viewer
    bright = np.clip(0.5 * light * across - 0.5 * down + 0.7 * upward, 0, 1)[..., None]
    if kinds == 1:
        color = canvas.color((0, 1), (0.1, 1), (0.4, 1))
    else:
        bands = (across * 0 + 1, np.sin(9 * down), np.sin(6 * across) * np.sin(6 * down))[kind % 3]
        color = np.where((bands > 0)[..., None], ball_color(kind, kinds), 1.0)  # plain, stripes, checks
    canvas.paint(across**2 + down**2 < 1, BALL + kind, color * (0.25 + 0.75 * bright) + 0.6 * bright**16)


def draw_scene(
    seed: int, split: str, index: int, size: int, num_labels: int = len(LABELS)
) -> tuple[np.ndarray, np.ndarray]:
    """Picture (H, W, 3) and labels (H, W), both uint8, sides 0.85 to 1.4 times `size`."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    canvas = Canvas(rng, size)
    horizon = paint_land(canvas)
    side, top = min(canvas.height, canvas.width), horizon.mean()
    painters = [paint_building] * rng.integers(0, 3) + [paint_tree] * rng.integers(0, 4)
    things = [(painter, rng.uniform(0.03, 0.4)) for painter in painters]
    ball = partial(paint_ball, kinds=max(1, num_labels - BALL))
    things += [(ball, rng.uniform(0.2, 1)) for _ in range(rng.integers(0, 4))]
    for painter, depth in sorted(things, key=lambda thing: thing[1]):  # far ones first, and smaller
        painter(canvas, top + depth * (canvas.height - top), side * (0.75 + 0.7 * depth))
    weather = rng.uniform(0.55, 1.15) * rng.uniform(0.85, 1.1, 3)
    lit = 1 + 0.2 * canvas.light * (canvas.x / canvas.width)[..., None]
    picture = canvas.picture * weather * lit + rng.normal(0, 0.02, canvas.picture.shape)
    labels = canvas.labels
    if num_labels == len(FEW):
        labels = np.select([np.isin(labels, merged) for merged in FEW.values()], range(len(FEW))).astype(np.uint8)
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8), labels


def label_names_and_colors(num_labels: int) -> tuple[list[str], np.ndarray]:
    """Names, and (num_labels, 3) uint8 colours of the label maps."""
    if num_labels == len(FEW):
        return list(FEW), COLORS[[merged[0] for merged in FEW.values()]]
    kinds = num_labels - BALL
    balls = [255 * ball_color(kind, kinds) for kind in range(1, kinds)]
    return [*LABELS, *(f"ball {kind + 1}" for kind in range(1, kinds))], np.array([*COLORS, *balls], dtype=np.uint8)


def make_scenes(output: Path, numbers: dict[str, int], size: int, seed: int, num_labels: int = len(LABELS)) -> None:
    """Draw a data set.

    Args:
        output: folder to make; it must not be there, or be empty.
        numbers: scenes of each of `SPLITS`.
        size: sides are 0.85 to 1.4 times this, pixels.
        seed: of all draws.
        num_labels: 3 (sky, land, thing) or 7 to `MOST_LABELS`; those above 7 are further kinds of balls.

    Raises:
        ValueError: a number is too small, or `output` is not empty.
    """
    if size < 16 or seed < 0 or min(numbers.values()) < 1:
        raise ValueError(
            f"size {size}, seed {seed} and {list(numbers.values())} scenes are given; at least 16 px, seed 0 and "
            "1 scene of each split are wanted"
        )
    if num_labels != len(FEW) and not len(LABELS) <= num_labels <= MOST_LABELS:
        raise ValueError(f"{num_labels} labels are given; {len(FEW)}, or {len(LABELS)} to {MOST_LABELS}, can be drawn")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"{output} exists and is not an empty folder; name another, or remove it first")
    with partial_folder(output.name, output.parent) as root:
        for part in ("images", "annotations"):
            for split in SPLITS:
                (root / part / split).mkdir(parents=True)
        names, colors = label_names_and_colors(num_labels)
        scenes = [(split, index) for split in SPLITS for index in range(numbers[split])]
        for split, index in tqdm(scenes, unit=" scenes"):
            picture, labels = draw_scene(seed, split, index, size, num_labels)
            name = f"scene_{split}_{index:06d}"
            Image.fromarray(picture).save(root / "images" / split / f"{name}.jpg", quality=92)
            label_map_picture(labels, colors).save(root / "annotations" / split / f"{name}.png")
        (root / "labels.json").write_text(json.dumps(dict(enumerate(names)), indent=1) + "\n", encoding="utf-8")
        os.replace(root, output)  # so that a folder that exists is whole


__all__ = ["COLORS", "LABELS", "SPLITS", "draw_scene", "make_scenes"]
