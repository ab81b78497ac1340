"""Counts at boundaries: cases worked out on paper, the published code label by label, and the definition in loops."""

import math

import numpy as np
import pytest
import torch

from qlseg_hf.evaluation.boundaries import boundary_f1, count_boundaries
from qlseg_hf.evaluation.metrics import StreamingScores

NAN = float("nan")


def halves(column: int, height: int = 6, width: int = 6) -> np.ndarray:
    """Label 0 to the left of `column`, label 1 from it on."""
    return np.repeat((np.arange(width) >= column)[None].astype(np.int64), height, axis=0)


def random_blobs(height: int, width: int, num_labels: int, seed: int, ignored: float = 0.0):
    """A reference of blocks, some ignored, and a prediction that is shifted and noisy."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, num_labels, (-(-height // 5), -(-width // 7)))
    reference = np.kron(blocks, np.ones((5, 7), dtype=np.int64))[:height, :width]
    predicted = np.roll(reference, (1, -2), axis=(0, 1))
    predicted = np.where(rng.random(reference.shape) < 0.03, rng.integers(0, num_labels, reference.shape), predicted)
    voids = np.kron(rng.random(blocks.shape) < ignored, np.ones((5, 7), dtype=bool))[:height, :width]
    return predicted, np.where(voids, 255, reference)


# -------------------------------------------------------------------------------------------------------- on paper


def test_band_by_hand():
    """Bands of 1 pixel: columns 2 and 3 of the reference, 1 and 2 of the prediction, and the edge of the picture."""
    band, _ = count_boundaries(halves(2), halves(3), 2, 255)
    assert band.dtype == torch.int64
    assert band.tolist() == [[8, 10], [14, 14], [12, 16]]  # both, reference, prediction
    scores = StreamingScores(2)
    scores.update(halves(2), halves(3), 0)
    found = scores.compute()
    assert found["boundary_iou"] == pytest.approx([8 / 18, 10 / 20])
    assert found["mean_boundary_iou"] == pytest.approx((8 / 18 + 10 / 20) / 2)


@pytest.mark.parametrize("shift, share", [(0, 1), (1, 1), (2, 0)])
def test_contours_by_hand(shift, share):
    """Small pictures have a tolerance of 1 pixel; each label has a column of 6 pixels at the change."""
    _, contour = count_boundaries(halves(3 - shift), halves(3), 2, 255)
    assert contour.tolist() == [[6, 6], [6 * share] * 2, [6, 6], [6 * share] * 2]
    assert boundary_f1(contour).tolist() == [share, share]


def test_widths_grow_with_the_diagonal():
    """300 x 400 pixels, diagonal 500: bands of 10 pixels, a tolerance of 3.75."""
    reference = halves(200, 300, 400)
    band, contour = count_boundaries(halves(203, 300, 400), reference, 2, 255)
    inside = 280 * 180  # of 300 x 200 pixels, without 10 at each of the four sides
    assert band[1].tolist() == [300 * 200 - inside] * 2
    assert contour[1].tolist() == contour[3].tolist() == [300, 300]
    assert not count_boundaries(halves(204, 300, 400), reference, 2, 255)[1][1].any()


def test_one_label_has_no_contour_but_the_edge_of_the_picture():
    band, contour = count_boundaries(np.zeros((5, 5), int), np.zeros((5, 5), int), 2, 255)
    assert band.tolist() == [[16, 0]] * 3 and not contour.any()
    assert boundary_f1(contour).isnan().all()


def test_f1_from_counts():
    """Columns: both, only the reference, only the prediction, neither, none found."""
    contour = torch.tensor([[10, 5, 0, 0, 4], [5, 0, 0, 0, 0], [20, 0, 7, 0, 4], [5, 0, 0, 0, 0]])
    recall, precision = 5 / 10, 5 / 20
    expected = [2 * recall * precision / (recall + precision), 0, 0, NAN, 0]
    np.testing.assert_allclose(boundary_f1(contour), expected)


# -------------------------------------------------------------------------------------------------- ignored pixels


def test_an_ignored_area_has_no_boundary():
    reference = np.zeros((12, 12), dtype=np.int64)
    reference[5:7, 5:7] = 255
    predicted = np.zeros_like(reference)
    predicted[5:7, 5:7] = 1  # what is predicted there is never looked at
    band, contour = count_boundaries(predicted, reference, 2, 255)
    assert band.tolist() == [[44, 0]] * 3 and not contour.any()


def test_a_band_reaches_across_an_ignored_line():
    """As PASCAL VOC draws one round every object: 300 x 400 pixels, bands of 10, a line of 5."""
    whole, reference = halves(200, 300, 400), halves(200, 300, 400)
    reference[:, 198:203] = 255
    band, contour = count_boundaries(whole, reference, 2, 255)
    narrow = 5  # columns 193 to 197 are within 10 pixels of column 203
    assert band[1, 0] == 300 * 198 - 280 * (198 - 10 - narrow)
    assert torch.equal(band[0], band[1]) and torch.equal(band[1], band[2])
    assert not contour.any()  # where the boundary lies nobody knows


@pytest.mark.parametrize("ignore_index", [255, -1, 0])
def test_predictions_on_ignored_pixels_change_nothing(ignore_index):
    predicted, reference = random_blobs(40, 50, 4, 0, 0.3)
    reference = np.where(reference == 255, ignore_index, reference)
    assert (reference == ignore_index).any()
    found = count_boundaries(predicted, reference, 4, ignore_index)
    noise = np.where(reference == ignore_index, 1000, predicted)
    for one, other in zip(found, count_boundaries(noise, reference, 4, ignore_index)):
        assert torch.equal(one, other) and one.any()


def test_everything_ignored():
    band, contour = count_boundaries(np.zeros((4, 5), int), np.full((4, 5), 255), 3, 255)
    assert not band.any() and not contour.any() and band.shape == (3, 3) and contour.shape == (4, 3)


# ------------------------------------------------------------------------------------------- other implementations


def published_boundary(mask: np.ndarray) -> np.ndarray:
    """`mask_to_boundary` as Cheng et al. give it."""
    cv2 = pytest.importorskip("cv2")
    height, width = mask.shape
    dilation = max(1, round(0.02 * math.sqrt(height**2 + width**2)))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), dtype=np.uint8), iterations=dilation)
    return mask & (eroded[1:-1, 1:-1] == 0)


@pytest.mark.parametrize("height, width, num_labels", [(7, 9, 2), (90, 130, 5), (211, 160, 30), (64, 300, 300)])
def test_bands_are_the_published_ones(height, width, num_labels):
    predicted, reference = random_blobs(height, width, num_labels, 1)
    band, _ = count_boundaries(predicted, reference, num_labels, 255 if num_labels < 255 else -1)
    for label in range(num_labels):
        found, true = published_boundary(predicted == label), published_boundary(reference == label)
        assert band[:, label].tolist() == [(found & true).sum(), true.sum(), found.sum()]
    assert band.all(dim=1).any() or num_labels > 100


def slow_counts(predicted, reference, num_labels):
    """Both counts from the definitions, pixel by pixel."""
    height, width = reference.shape
    diagonal = math.hypot(height, width)
    reach, tolerance = max(1, round(0.02 * diagonal)), max(1, 0.0075 * diagonal)
    pixels = [(y, x) for y in range(height) for x in range(width) if reference[y, x] != 255]

    def in_band(labels, y, x):
        if min(y, x, height - 1 - y, width - 1 - x) < reach:
            return True
        square = np.s_[y - reach : y + reach + 1, x - reach : x + reach + 1]
        return ((labels[square] != labels[y, x]) & (reference[square] != 255)).any()

    def on_contour(labels, y, x):
        sides = [(y, x - 1), (y, x + 1), (y - 1, x), (y + 1, x)]
        return any(side in inside and labels[side] != labels[y, x] for side in sides)

    inside = set(pixels)
    bands = [{p for p in pixels if in_band(labels, *p)} for labels in (reference, predicted)]
    contours = [{p for p in pixels if on_contour(labels, *p)} for labels in (reference, predicted)]
    band, contour = np.zeros((3, num_labels), int), np.zeros((4, num_labels), int)
    for p in bands[0] & bands[1]:
        band[0, reference[p]] += reference[p] == predicted[p]
    for row, (labels, where) in enumerate(zip((reference, predicted), bands), start=1):
        for p in where:
            band[row, labels[p]] += 1
    maps = (reference, predicted)
    for row, (own, other) in enumerate([(0, 1), (1, 0)]):
        for p in contours[own]:
            label = maps[own][p]
            contour[2 * row, label] += 1
            near = any(maps[other][q] == label and math.dist(p, q) <= tolerance for q in contours[other])
            contour[2 * row + 1, label] += near
    return band, contour


@pytest.mark.parametrize(
    "height, width, seed, ignored", [(23, 31, 0, 0.2), (40, 12, 1, 0.5), (20, 124, 2, 0.1), (1, 9, 3, 0)]
)
def test_against_slow_implementation(height, width, seed, ignored):
    predicted, reference = random_blobs(height, width, 4, seed, ignored)
    found = count_boundaries(predicted, reference, 4, 255)
    for one, other in zip(found, slow_counts(predicted, reference, 4)):
        np.testing.assert_array_equal(one, other)
    assert found[1].any()


def test_sums_over_pictures_and_states():
    """Of two pictures: counts are added, not scores; and a state holds them."""
    maps = [random_blobs(30, 40, 3, seed, 0.1) for seed in range(2)]
    scores, parts = StreamingScores(3), []
    for i, (predicted, reference) in enumerate(maps):
        scores.update(predicted, reference, i)
        parts.append(count_boundaries(predicted, reference, 3, 255))
    again = StreamingScores(3)
    again.load_state_dict(scores.state_dict())
    hit, true, found = parts[0][0] + parts[1][0]
    np.testing.assert_allclose(again.compute()["boundary_iou"], hit / (true + found - hit))
    np.testing.assert_allclose(again.compute()["boundary_f1"], boundary_f1(parts[0][1] + parts[1][1]))
    old = {name: total for name, total in scores.state_dict().items() if not name.startswith("boundary")}
    with pytest.raises(ValueError, match="the state holds"):
        again.load_state_dict(old)
