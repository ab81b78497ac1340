"""Small data sets of rectangles, whose label maps hold the values that a test asks for; and what is read of one."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from qlseg_hf import QLSegImageProcessor
from qlseg_hf.data.augmentation import TrainingTransform
from qlseg_hf.data.datasets import open_dataset
from qlseg_hf.data.layouts import LAYOUTS, find_layout

SIZE = (48, 64)
NUM_LABELS = 20
PLAIN = QLSegImageProcessor(do_rescale=False, do_normalize=False)  # pixel_values are the grey levels
LABELS = np.array([[0, 1, 2, 255], [3, 1, 0, 2]], dtype=np.uint8)


def draw_label_map(rng: np.random.Generator, values: list[int], size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W) int64: a ground of the first value, and two rectangles of each other one, all of which are to be seen."""
    height, width = size
    label_map = np.full(size, values[0], dtype=np.int64)
    for place, value in enumerate(values[1:]):
        y, x = rng.integers(0, height - 10), rng.integers(0, width - 10)
        label_map[y : y + 10, x : x + 10] = value
        label_map[:6, 8 * place : 8 * place + 8] = value
    return label_map


def draw_picture(rng: np.random.Generator, label_map: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: a colour per value, and noise."""
    colors = np.random.default_rng(0).integers(40, 216, (1000, 3))
    noise = rng.integers(-30, 30, (*label_map.shape, 3))
    return (colors[label_map % 1000] + noise).clip(0, 255).astype(np.uint8)


def make_folders(
    root: Path,
    values: list[int] | Callable[[int], list[int]],
    *,
    counts: tuple[int, int] = (8, 4),
    save: Callable[[np.ndarray, Path], None] | None = None,
    size: tuple[int, int] = SIZE,
) -> Path:
    """Write images/{training,validation} and annotations/{training,validation}.

    `values`: of every label map, or of the map of a number. `save`: writes a label map; as 8 or 16 bits if not given.
    """
    rng = np.random.default_rng(1)
    for split, count in zip(("training", "validation"), counts):
        for part in ("images", "annotations"):
            (root / part / split).mkdir(parents=True)
        for number in range(count):
            label_map = draw_label_map(rng, values(number) if callable(values) else values, size)
            Image.fromarray(draw_picture(rng, label_map)).save(root / "images" / split / f"{number}.png")
            path = root / "annotations" / split / f"{number}.png"
            if save is not None:
                save(label_map, path)
            else:
                Image.fromarray(label_map.astype(np.uint8 if label_map.max() < 256 else np.uint16)).save(path)
    return root


def read_first(root: Path, split: str = "train", **settings) -> np.ndarray:
    """The label map of the first sample."""
    return open_dataset(root, split, **settings)[0].read()[1]


def picture_of(array: np.ndarray, mode: str | None = None) -> Image.Image:
    """With mode "P" and a palette that is not grey if asked for."""
    if mode != "P":
        return Image.fromarray(array)
    picture = Image.fromarray(array, mode="L").convert("P")
    picture.putpalette([(7 * i) % 256 for i in range(768)])
    return picture


def encoded(array: np.ndarray, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    picture_of(array, mode).save(buffer, format="png")
    return buffer.getvalue()


def write(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    """Save an array as a picture file, or as it is in .npy, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array) if path.suffix == ".npy" else picture_of(array, mode).save(path)
    return path


def colors(shade: int) -> np.ndarray:
    """A picture of one shade, of the size of `LABELS`."""
    return np.full((*LABELS.shape, 3), shade, dtype=np.uint8)


def put(path: Path, shade: int | None = None) -> None:
    """A picture of one shade, or a label map; with the folders above it."""
    write(path, LABELS if shade is None else colors(shade))


def put_image(path: Path, size: tuple[int, int] = (8, 6)) -> None:
    """A grey image of a size (width, height), and the folders above it."""
    write(path, np.full((*size[::-1], 3), 9, dtype=np.uint8))


def put_pairs(root, image, mask, names=("a", "b"), **words):
    for shade, name in enumerate(names):
        put(root / image.format(name=name, **words), 10 * shade)
        put(root / mask.format(name=name, **words))


def put_ade20k(root, names=("b", "a"), splits=("training", "validation"), ending=".png"):
    for split in splits:
        put_pairs(root, "images/{split}/{name}.jpg", "annotations/{split}/{name}" + ending, names, split=split)


def read_all(samples):
    assert len(samples) > 0
    for index in range(len(samples)):
        _, label_map = samples[index].read()
        np.testing.assert_array_equal(label_map, LABELS)
    return [samples[index].name for index in range(len(samples))]


def check_two_splits(root, name, image, mask):
    """That two images in training and one in validation are found as the layout `name`."""
    put_pairs(root, image, mask, split="train")
    put_pairs(root, image, mask, names=["c"], split="val")
    found = find_layout(root)
    assert found.name == name and name in LAYOUTS
    train = open_dataset(root, "train")
    assert [n.rpartition("/")[2][-5:] for n in read_all(train)] == [
        n.rpartition("/")[2][-5:] for n in sorted(read_all(train))
    ]
    assert len(train) == 2 and len(read_all(open_dataset(root, "validation"))) == 1
    assert train.notes == found.notes == []
    assert train.layout.name == name and train.split in ("train", "train2017")
    assert found.description.startswith(f"{name}: ") and "\n" not in found.description
    assert f"{train.split} 2, val" in found.description


def transform(
    processor=PLAIN, num_labels=NUM_LABELS, crop_size=16, photometric=False, **settings
) -> TrainingTransform:
    return TrainingTransform(processor, num_labels, crop_size, photometric=photometric, **settings)


def scene(height=24, width=32, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of 4 pixels; the picture's red is 10 times the label (void has label 255 and red 255)."""
    labels = np.random.default_rng(seed).integers(0, NUM_LABELS, (height // 4, width // 4))
    labels = np.where(labels == 7, 255, labels).repeat(4, axis=0).repeat(4, axis=1)
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    picture[..., 0] = np.where(labels == 255, 255, labels * 10)
    return picture, labels


def put_scenes(root: Path) -> Path:
    """Seven scenes of different sizes in the ADE20K layout."""
    for i in range(7):
        picture, labels = scene(20 + 4 * i, 32, seed=i)
        for part, array in (("images", picture), ("annotations", labels.astype(np.uint8))):
            write(root / part / "training" / f"{i}.png", array)
    return root
