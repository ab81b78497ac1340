"""Overlays and label-map pictures."""

import numpy as np
import pytest
import torch
from networks import tiny_config
from PIL import Image

from qlseg_hf.utils.visualization import draw_overlay, label_colors, label_map_picture, save_picture

NAMES = {0: "sky", 1: "a rather long label name", 2: "road"}


def test_overlay_tints_by_label_and_keeps_the_void():
    picture = np.full((40, 60, 3), 100, dtype=np.uint8)
    labels = np.zeros((40, 60), dtype=np.int64)
    labels[:, 20:40] = 1
    labels[:, 40:] = 255
    colors = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]], dtype=np.uint8)
    overlay = np.asarray(draw_overlay(picture, torch.from_numpy(labels), NAMES, colors, opacity=0.5))
    assert overlay.shape[0] >= 40 and overlay.shape[1] > 60 + 100  # the longest name has room
    assert overlay[10, 5].tolist() == [150, 50, 50] and overlay[10, 30].tolist() == [50, 150, 50]
    assert overlay[10, 50].tolist() == [100, 100, 100]
    assert overlay[10, 20].tolist() == [255, 255, 255]  # border
    legend = overlay[:, 60:].reshape(-1, 3)
    in_legend = [(legend == color).all(axis=1).sum() > 50 for color in colors]
    assert in_legend == [True, True, False]  # road does not occur


@pytest.mark.parametrize("num_labels", [1, 3, 171])
def test_legend_has_room_for_every_label(num_labels):
    labels = np.arange(171 * 4).reshape(18, 38) % num_labels
    colors = label_colors(tiny_config(num_labels=num_labels))
    assert len({tuple(color) for color in colors.tolist()}) == num_labels
    overlay = draw_overlay(
        np.zeros((18, 38, 3), np.uint8), labels, {i: f"label {i}" for i in range(num_labels)}, colors
    )
    codes = np.array([65536, 256, 1])  # of a colour one number
    found, counts = np.unique(np.asarray(overlay).reshape(-1, 3) @ codes, return_counts=True)
    assert set(colors @ codes) <= set(found[counts > 50])


def test_palette_of_the_configuration():
    palette = [[1, 2, 3], [4, 5, 6]]
    assert label_colors(tiny_config(num_labels=2, palette=palette)).tolist() == palette


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="its picture"):
        draw_overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), int), NAMES, np.zeros((3, 3), np.uint8))


def test_label_map_picture_holds_the_labels(tmp_path):
    labels = torch.tensor([[0, 1], [2, 255]])
    save_picture(label_map_picture(labels, np.full((3, 3), 9, dtype=np.uint8)), tmp_path / "new" / "x.png")
    found = Image.open(tmp_path / "new" / "x.png")
    assert found.mode == "P" and np.array_equal(np.asarray(found), labels)
    assert found.convert("RGB").getpixel((0, 0)) == (9, 9, 9)
    many = label_map_picture(torch.tensor([[0, 299]]), np.zeros((300, 3), np.uint8))
    assert np.array_equal(np.asarray(many), [[0, 299]])


def test_save_is_atomic(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_text("old")

    def no_space(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="disk full"):
        save_picture(Image.new("L", (2, 2)), tmp_path / "x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"] and (tmp_path / "x.png").read_text() == "old"


def test_more_labels_than_16_bits_hold_are_refused():
    """They would come back as others: 65,536 as 0."""
    colors = np.zeros((65537, 3), np.uint8)
    assert np.asarray(label_map_picture(np.array([[65535]]), colors[1:])).max() == 65535
    with pytest.raises(ValueError, match="65537 labels do not fit into the 16 bits of a PNG file; 65,536 at most do"):
        label_map_picture(np.array([[65536]]), colors)
