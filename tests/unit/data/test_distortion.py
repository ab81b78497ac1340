"""Distortion of colours and bands, and the operations of TrivialAugment, on values worked out by hand."""

import numpy as np
import pytest
import torch
from made_data import scene

from qlseg_hf.data.distortion import MOVES, distort, distort_bands, move, recolor, rotation_matrix

rng = np.random.default_rng


class Draws:
    """Stands in for a generator: `random` and `uniform` and `integers` return what is written down."""

    def __init__(self, coins, values):
        self.coins, self.values = list(coins), list(values)

    def random(self):
        return self.coins.pop(0)

    def uniform(self, low, high):
        value = self.values.pop(0)
        assert low <= value <= high
        return value

    def integers(self, low, high):
        assert (low, high) == (-18, 18)  # -18..17
        return self.values.pop(0)


YES, NO = 0.4, 0.6


@pytest.mark.parametrize(
    "coins, values, color, expected",
    [
        ((NO, NO, NO, NO, NO), (), (10, 20, 30), (10, 20, 30)),
        ((YES, NO, NO, NO, NO), (30.7,), (10, 240, 30), (40, 255, 60)),  # brightness, clipped, cut
        ((YES, NO, NO, NO, NO), (-20,), (10, 240, 30), (0, 220, 10)),
        ((NO, YES, YES, NO, NO), (1.5,), (11, 200, 30), (16, 255, 45)),  # contrast
        ((NO, NO, NO, YES, NO), (0.5,), (200, 100, 100), (200, 150, 150)),  # saturation 127 -> 63
        ((NO, NO, NO, NO, YES), (10,), (200, 0, 0), (200, 67, 0)),  # hue 0 -> 20 degrees
        ((NO, NO, NO, NO, YES), (-10,), (200, 0, 0), (200, 0, 67)),  # hue 0 -> 340 degrees
        ((YES, YES, YES, NO, NO), (30, 1.5), (100, 100, 100), (195, 195, 195)),  # brightness before contrast
        # saturation 255 -> 127 of value 200, then halved; or halved first
        ((NO, NO, YES, YES, NO), (0.5, 0.5), (201, 0, 0), (100, 50, 50)),
        ((NO, YES, YES, YES, NO), (0.5, 0.5), (201, 0, 0), (100, 50, 50)),
    ],
)
def test_distortion(coins, values, color, expected):
    pytest.importorskip("cv2")
    draws = Draws(coins, values)
    found = distort(np.full((2, 3, 3), color, dtype=np.uint8), draws)
    assert found.shape == (2, 3, 3) and found.dtype == np.uint8
    assert abs(found.astype(int) - expected).max() <= 1  # OpenCV's HSV has 8 bits
    assert not draws.coins and not draws.values


def test_contrast_before_or_after():
    """Clipping tells the order: 200 x 1.5 clips to 255 before a colour is turned grey-wards, or after."""
    pytest.importorskip("cv2")
    picture = np.full((1, 1, 3), (200, 180, 20), dtype=np.uint8)
    before = distort(picture, Draws((NO, YES, YES, YES, NO), (1.5, 0.5)))
    after = distort(picture, Draws((NO, NO, YES, YES, NO), (1.5, 0.5)))
    assert abs(before[0, 0].astype(int) - [255, 255, 142]).max() <= 2
    assert abs(after[0, 0].astype(int) - [255, 255, 165]).max() <= 2


def test_distortion_of_bands():
    """Half of the pictures each; about the mean, which is 0, and the same in all bands."""
    pixels = torch.randn(5, 8, 8, generator=torch.Generator().manual_seed(0))
    factors, offsets = [], []
    for seed in range(400):
        found = distort_bands(pixels, rng(seed))
        factor = (found[0, 0, 0] - found[1, 2, 3]) / (pixels[0, 0, 0] - pixels[1, 2, 3])
        factors.append(float(factor))
        offsets.append(float((found - factor * pixels).mean()))
        torch.testing.assert_close(found, factor * pixels + offsets[-1], atol=1e-4, rtol=1e-4)
    factors, offsets = np.array(factors), np.array(offsets)
    for values, middle, reach in ((factors, 1, 0.5), (offsets, 0, 0.25)):
        unchanged = np.abs(values - middle) < 1e-4
        assert 0.4 < unchanged.mean() < 0.6 and np.abs(values - middle).max() <= reach + 1e-4
        assert np.abs(values - middle)[~unchanged].mean() == pytest.approx(reach / 2, rel=0.15)


@pytest.mark.parametrize("turns", [0, 1, 2, -1])
def test_quarter_turns(turns):
    """By whole right angles a square is exactly what NumPy turns it into."""
    pixels, labels = torch.rand(2, 6, 6), torch.randint(0, 300, (6, 6))
    turned, kept = move(pixels, labels, rotation_matrix(90.0 * turns), (0, 0), ignore_index=-100)
    assert torch.equal(kept, torch.rot90(labels, turns))
    torch.testing.assert_close(turned, torch.rot90(pixels, turns, (1, 2)), atol=1e-5, rtol=0)


def test_what_comes_in_from_outside_is_ignored():
    pixels, labels = torch.ones(1, 9, 12), torch.full((9, 12), 3)
    turned, kept = move(pixels, labels, rotation_matrix(45.0), (0, 0), ignore_index=255)
    assert kept[0, 0] == 255 and turned[0, 0, 0] == 0 and set(kept.unique().tolist()) == {3, 255}
    assert kept[4, 6] == 3 and turned[0, 4, 6] == pytest.approx(1)
    inside = turned[0] == 1
    assert (kept[inside] == 3).all() and inside.sum() > 50  # image and labels are turned alike


def test_every_operation_of_trivial_augment_keeps_image_and_labels_together():
    """The red of the scene tells the label, so what is moved is checked against it."""
    picture, labels = scene(64, 64)
    pixels = torch.from_numpy(picture).permute(2, 0, 1).float()
    for name, place in MOVES.items():
        for strength in (-1.0, 0.4):
            moved, kept = move(pixels, torch.from_numpy(labels), *place(strength), ignore_index=255)
            inside = (kept != 255) & (moved[0] % 10 == 0) & (moved[0] < 200)  # between two blocks it is neither
            assert inside.sum() > 100, name
            assert (moved[0][inside] / 10 == kept[inside]).float().mean() > 0.95, name
            assert not torch.equal(kept, torch.from_numpy(labels)), name
    shifted, kept = move(pixels, torch.from_numpy(labels), *MOVES["translate_x"](0.25), ignore_index=255)
    np.testing.assert_array_equal(kept[:, :56], labels[:, 8:])  # 32 px times 0.25, from the right
    assert (kept[:, 56:] == 255).all() and torch.allclose(shifted[:, :, :56], pixels[:, :, 8:], atol=1e-3)


@pytest.mark.parametrize(
    "name, strength, before, after",
    [
        ("identity", 1.0, 100, 100),
        ("brightness", 0.5, 100, 149),
        ("brightness", -1.0, 100, 1),
        ("solarize", 1.0, 100, 155),  # all is inverted
        ("solarize", 0.0, 100, 100),
        ("posterize", 1.0, 100, 64),  # two bits
        ("posterize", 0.0, 101, 101),
    ],
)
def test_colours_of_trivial_augment(name, strength, before, after):
    found = recolor(np.full((3, 4, 3), before, dtype=np.uint8), name, strength)
    assert found.shape == (3, 4, 3) and found.dtype == np.uint8 and (abs(found.astype(int) - after) <= 1).all()
