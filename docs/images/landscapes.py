"""Render landscapes with label maps: the scenes behind result.jpg, which README.md shows.

    python docs/images/landscapes.py build/landscapes
    qlseg train docs/images/landscapes.yaml

Writes the ADE20K layout: images/{training,validation}, annotations/{training,validation}, labels.json. Height maps of
fractal noise are lit by a sun with cast shadows and drawn front to back, column by column; water mirrors what stands
above it. A scene depends on its split and number alone. result.jpg is `good_scene("validation", 106, 400, 600)`, which
was chosen among numbers 100 to 111 for its variety, and the overlay of
`segment(model, processor, picture, scales=(1, 1.5, 2), flip=True)`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

LABELS = ["sky", "water", "sand", "grass", "forest", "rock", "snow"]
SKY, WATER, SAND, GRASS, FOREST, ROCK, SNOW = range(len(LABELS))
SIDE = 1024  # cells of a height map, which repeats
ALBEDO = np.array(
    [[0, 0, 0], [0.03, 0.09, 0.12], [0.62, 0.54, 0.40], [0.20, 0.27, 0.08], [0.045, 0.09, 0.035], [0.30, 0.27, 0.24]]
    + [[0.92, 0.94, 0.98]]
)


def fractal(rng: np.random.Generator, slope: float) -> np.ndarray:
    """(SIDE, SIDE) noise that repeats, with amplitudes of frequency ** -slope, scaled to 0..1."""
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)) * SIDE
    frequency[0, 0] = np.inf
    phase = np.exp(2j * np.pi * rng.random(frequency.shape))
    noise = np.fft.irfft2(phase * frequency**-slope, (SIDE, SIDE))
    return (noise - noise.min()) / (noise.max() - noise.min())


def sample(plane: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`plane` (SIDE, SIDE[, C]) at cell coordinates, bilinear, repeating."""
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    across, down = x - left, y - top
    if plane.ndim == 3:
        across, down = across[..., None], down[..., None]
    rows, columns = (top % SIDE, (top + 1) % SIDE), (left % SIDE, (left + 1) % SIDE)
    upper = plane[rows[0], columns[0]] * (1 - across) + plane[rows[0], columns[1]] * across
    lower = plane[rows[1], columns[0]] * (1 - across) + plane[rows[1], columns[1]] * across
    return upper * (1 - down) + lower * down


def make_world(rng: np.random.Generator) -> dict:
    """Height (cells), label and lit colour of every cell of a map, and what is seen above it."""
    ridges = 1 - np.abs(2 * fractal(rng, 2.1) - 1)
    height = 210 * (0.55 * ridges**2 + 0.45 * fractal(rng, 2.0)) ** 1.8
    level = np.quantile(height, rng.uniform(0.12, 0.4))
    height = height - level  # water lies at 0
    moist, rough = fractal(rng, 1.8), fractal(rng, 1.4)
    down, across = np.gradient(height)
    steep = np.hypot(down, across)
    top = np.quantile(height, 0.97)
    labels = np.full(height.shape, GRASS)
    labels[moist + 0.25 * rough > np.quantile(moist, rng.uniform(0.3, 0.7)) + 0.12] = FOREST
    labels[(steep + 0.6 * rough > rng.uniform(1.05, 1.3)) | (height > top * (0.5 + 0.3 * rough))] = ROCK
    labels[(height > top * (rng.uniform(0.35, 0.8) + 0.3 * rough)) & (steep < 1.5)] = SNOW
    labels[height < 2.2 * rough + 0.5] = SAND
    labels[height <= 0] = WATER
    trees = np.where(labels == FOREST, 3.2 * rng.random(height.shape), 0)
    height = np.maximum(height, 0) + trees
    sun = np.array([rng.uniform(-1, 1), rng.uniform(-0.4, 1), 0])
    sun = np.append(sun[:2] / np.hypot(*sun[:2]), rng.uniform(0.35, 1.0))
    sun /= np.linalg.norm(sun)
    down, across = np.gradient(height)
    normal = np.stack([-across, -down, np.ones_like(down)], -1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    light = np.clip(normal @ sun, 0, None)
    for step in range(1, 90, 2):  # towards the sun: what stands higher than the ray casts a shadow
        shift = (-round(step * sun[1] / np.hypot(*sun[:2])), -round(step * sun[0] / np.hypot(*sun[:2])))
        blocked = np.roll(height, shift, (0, 1)) - height - step * sun[2] / np.hypot(*sun[:2])
        light *= np.clip(1 - blocked / 2, 0.0, 1)
    warm = np.array([1.35, 1.2, 1.0]) - np.array([0, 0.18, 0.42]) * (1 - sun[2])
    grain = 0.75 + 0.5 * rng.random(height.shape)[..., None] * (0.6 + 0.8 * rough[..., None])
    ambient = np.array([0.30, 0.36, 0.46]) * (0.6 + 0.4 * normal[..., 2:])
    color = ALBEDO[labels] * grain * (ambient + 1.5 * warm * light[..., None])
    dry = (fractal(rng, 1.6)[..., None] - 0.4) * np.array([0.5, 0.15, 0.0])
    color = np.where(np.isin(labels, (GRASS, SAND))[..., None], color * (1 + dry), color)
    return {"height": height, "labels": labels, "color": color, "sun": sun, "clouds": fractal(rng, 1.9), "warm": warm}


def render(rng: np.random.Generator, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture (rows, columns, 3) and labels (rows, columns), both uint8; drawn twice as large and averaged."""
    world, height, width = make_world(rng), 2 * rows, 2 * columns
    x, y = rng.uniform(0, SIDE, 2)
    heading, field = rng.uniform(0, 2 * np.pi), rng.uniform(0.7, 1.0)
    eye = max(sample(world["height"], *np.array([[x], [y]]))[0], 0) + rng.uniform(6, 30)
    horizon, focal = height * rng.uniform(0.3, 0.5), width / (2 * field)
    ray = (np.arange(width) - width / 2) / focal
    picture, horizon_color = paint_sky(rng, world, heading, height, width, horizon, focal)
    labels, near = np.full((height, width), SKY), np.full(width, float(height))
    line = np.arange(height)[:, None]
    haze_length, depth, ground = rng.uniform(280, 700), 2.0, np.zeros((height, width), dtype=bool)
    while depth < 900:
        east = x + depth * (np.cos(heading) - np.sin(heading) * ray)
        south = y + depth * (np.sin(heading) + np.cos(heading) * ray)
        high = sample(world["height"], east, south)
        row = horizon + focal * (eye - high) / depth
        seen = (line >= row) & (line < near)
        if seen.any():
            cell = (np.round(south).astype(int) % SIDE, np.round(east).astype(int) % SIDE)
            haze = np.exp(-depth / haze_length)
            color = sample(world["color"], east, south) * haze + horizon_color * (1 - haze)
            at = np.nonzero(seen)
            picture[at], labels[at], ground[at] = color[at[1]], world["labels"][cell][at[1]], True
            near = np.minimum(near, row)
        depth *= 1 + 1.2 / focal if depth > 60 else 1 + 2.5 / focal
    mirror(rng, picture, labels, horizon, horizon_color)
    exposure = rng.uniform(0.85, 1.25)
    picture = 1 - np.exp(-1.7 * exposure * np.clip(picture, 0, None))
    picture = picture.reshape(rows, 2, columns, 2, 3).mean((1, 3)) ** (1 / 1.75)
    picture += rng.normal(0, 0.012, picture.shape)
    return (255 * np.clip(picture, 0, 1)).astype(np.uint8), labels[::2, ::2].astype(np.uint8)


def paint_sky(rng, world: dict, heading: float, height: int, width: int, horizon: float, focal: float):
    """Blue that pales towards the horizon, glow round the sun and clouds on a flat layer. Linear light, (H, W, 3)."""
    up = np.clip((horizon - np.arange(height)) / focal, 0.004, None)[:, None]
    ray = ((np.arange(width) - width / 2) / focal)[None]
    zenith, pale = np.array([0.10, 0.24, 0.55]), np.array([0.62, 0.72, 0.84]) * world["warm"] ** 0.7
    sky = pale + (zenith - pale) * (1 - np.exp(-4.0 * up))[..., None] * np.ones((height, width, 1))
    east, south = np.cos(heading) - np.sin(heading) * ray, np.sin(heading) + np.cos(heading) * ray
    look = np.stack(np.broadcast_arrays(east, south, up), -1)
    look /= np.linalg.norm(look, axis=-1, keepdims=True)
    near_sun = np.clip(look @ world["sun"], 0, 1)[..., None]
    sky += world["warm"] * (0.35 * near_sun**8 + 1.2 * near_sun**200)
    density = sample(world["clouds"], 90 * ray / up + 300 * heading, 90 / up + np.zeros_like(ray))
    cover = rng.uniform(0.45, 0.75)
    cloud = (np.clip((density - cover) / 0.18, 0, 1) * np.clip(up / 0.05, 0, 1))[..., None]
    shade = 0.95 - 0.45 * np.clip((density - cover) / 0.4, 0, 1)[..., None]
    return sky * (1 - cloud) + cloud * shade * world["warm"], pale * 0.9


def mirror(rng, picture: np.ndarray, labels: np.ndarray, horizon: float, horizon_color: np.ndarray) -> None:
    """Water shows what lies as far above the horizon as it below, through ripples that grow towards the viewer."""
    rows, columns = np.nonzero(labels == WATER)
    below = rows - horizon
    ripple = rng.normal(0, 1, labels.shape)
    ripple = (ripple + np.roll(ripple, 1, 1) + np.roll(ripple, 2, 1) + np.roll(ripple, 3, 1))[rows, columns]
    source = np.clip(horizon - below + ripple * (0.6 + 0.02 * below), 0, labels.shape[0] - 1).astype(int)
    seen = picture[source, columns]
    seen = np.where((labels[source, columns] == WATER)[:, None], horizon_color, seen)
    strength = np.clip(0.85 - 0.9 * below / labels.shape[0], 0.25, 1)[:, None]
    picture[rows, columns] = (1 - strength) * picture[rows, columns] + strength * seen * 0.85


def good_scene(split: str, number: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """The first try that shows at least four labels and is not all ground before one's feet."""
    for attempt in range(30):
        rng = np.random.default_rng([("training", "validation").index(split), number, attempt])
        picture, labels = render(rng, rows, columns)
        shares = np.bincount(labels.ravel(), minlength=len(LABELS)) / labels.size
        if (shares > 0.03).sum() >= 4 and 0.1 < shares[SKY] < 0.6 and shares.max() < 0.65:
            break
    return picture, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--train", type=int, default=226)
    parser.add_argument("--validation", type=int, default=24)
    parser.add_argument("--size", type=int, default=128, help="height in pixels; the width is 1.5 times that")
    args = parser.parse_args()
    for split, count in (("training", args.train), ("validation", args.validation)):
        for part in ("images", "annotations"):
            (args.output / part / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture, labels = good_scene(split, number, args.size, args.size * 3 // 2)
            Image.fromarray(picture).save(args.output / "images" / split / f"{number:04d}.jpg", quality=92)
            Image.fromarray(labels).save(args.output / "annotations" / split / f"{number:04d}.png")
    (args.output / "labels.json").write_text(json.dumps(LABELS) + "\n")


if __name__ == "__main__":
    main()
