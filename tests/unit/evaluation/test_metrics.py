"""Confusion counts and what is made of them: the stored numbers, cases worked by hand, and a slow implementation."""

import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import FIXTURES
from safetensors.torch import load_file
from slow import slow_scores

from qlseg_hf import evaluation
from qlseg_hf.evaluation.metrics import StreamingScores, confusion_counts, joint_counts, scores

NAN = float("nan")
# 2 x 3 pixels, 4 labels; label 3 occurs nowhere. IoU 1/2, 2/3, 0/1.
REFERENCE = [[0, 0, 1], [1, 1, 255]]
PREDICTED = [[0, 2, 1], [1, 1, 3]]


@pytest.fixture(params=["a", "b"])
def fixture(request):
    """Four predictions, four references and the scores of the published implementation, as `scores` names them."""
    folder = FIXTURES / request.param
    tensors, numbers = load_file(folder / "expected.safetensors"), json.loads((folder / "expected.json").read_text())
    metric = {name: np.array(value, dtype=float) for name, value in numbers["metric"].items()}
    names = {"miou": "mIoU", "macc": "mAcc", "aacc": "aAcc", "iou": "IoU", "accuracy": "Acc"}
    expected = {ours: metric[theirs] for ours, theirs in names.items()}
    return tensors["metric_predictions"], tensors["metric_references"], numbers["num_labels"], expected


def make_mean_iou(**kwargs):
    pytest.importorskip("datasets")
    return evaluation.MeanIoU(**kwargs)


@pytest.fixture
def mean_iou(tmp_path):
    return make_mean_iou(cache_dir=str(tmp_path))


def random_maps(count: int, num_labels: int, seed: int = 0):
    """Pictures of various sizes; predictions are right for about half of the pixels; an eighth is ignored."""
    rng = np.random.default_rng(seed)
    pairs = []
    for i in range(count):
        size = (5 + i % 4, 9 - i % 3)
        reference = rng.integers(0, num_labels, size)
        predicted = np.where(rng.random(size) < 0.5, reference, rng.integers(0, num_labels, size))
        pairs.append((predicted, np.where(rng.random(size) < 0.125, 255, reference)))
    return pairs


def assert_scores(found: dict, expected: dict) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-12, err_msg=name)


# ----------------------------------------------------------------------------------------------- counts and scores


@pytest.mark.parity
def test_stored_scores(fixture):
    predictions, references, num_labels, expected = fixture
    streaming = StreamingScores(num_labels)
    for i, (prediction, reference) in enumerate(zip(predictions, references)):
        streaming.update(prediction, reference, i)
    found = streaming.compute()
    assert found["num_pictures"] == 4
    assert_scores(found, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64])
def test_counts_by_hand(dtype):
    counts = confusion_counts(torch.tensor(PREDICTED, dtype=dtype), torch.tensor(REFERENCE, dtype=dtype), 4)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [[1, 0, 1, 0], [0, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_scores_by_hand():
    found = scores(confusion_counts(np.array(PREDICTED), np.array(REFERENCE, dtype=np.uint8), 4))
    assert_scores(found, {"iou": [1 / 2, 1, 0, NAN], "accuracy": [1 / 2, 1, NAN, NAN]})
    assert_scores(found, {"miou": 1 / 2, "macc": 3 / 4, "aacc": 4 / 5})
    assert found["reference_pixels"] == [2, 3, 0, 0]
    assert found["predicted_pixels"] == [1, 3, 1, 0]
    assert found["num_pixels"] == 5


def test_everything_ignored():
    found = scores(confusion_counts(np.zeros((2, 3), int), np.full((2, 3), 255), 2))
    assert_scores(found, {"miou": NAN, "macc": NAN, "aacc": NAN, "iou": [NAN, NAN], "accuracy": [NAN, NAN]})
    assert found["num_pixels"] == 0


@pytest.mark.parametrize(
    "predicted, reference, message",
    [
        ([[0, 1]], [[0], [1]], r"label map is \(1, 2\) and the reference \(2, 1\); they must have one size"),
        ([[0, 1]], [[0, 3]], r"reference holds \[3\]; 0..2 or 255 \(ignored\) is wanted"),
        ([[0, 1]], [[0, -1]], r"reference holds \[-1\]; 0..2 or 255"),
        ([[3, -2]], [[0, 1]], r"label map holds \[-2, 3\]; 0..2 is wanted"),
        ([[0.0, 1.0]], [[0, 1]], r"must be an \(H, W\) array of integers; got shape \(1, 2\), float64"),
    ],
)
def test_wrong_maps(predicted, reference, message):
    with pytest.raises(ValueError, match=message):
        confusion_counts(np.array(predicted), np.array(reference), 3)


def test_wrong_counts():
    with pytest.raises(ValueError, match=r"counts have shape \(2, 3\); \(K, K\) is wanted"):
        scores(torch.zeros(2, 3))


# -------------------------------------------------------------------------------------------------------- streaming


def test_streaming_against_slow_implementation():
    pairs = random_maps(9, 7)
    streaming = StreamingScores(7)
    for i, pair in enumerate(pairs):
        assert streaming.update(*pair, i) == pytest.approx(slow_scores([pair], 7)["miou"], abs=1e-12)
    assert_scores(streaming.compute(), slow_scores(pairs, 7))


def test_bootstrap_against_slow_implementation():
    """A replicate is the slow mIoU of the set in which each picture occurs as often as its Poisson draw says."""
    pairs = random_maps(9, 3)
    streaming = StreamingScores(3, num_replicates=20, seed=5)
    for i, pair in enumerate(pairs):
        streaming.update(*pair, i)
    draws = [np.random.default_rng((5, i)).poisson(size=20) for i in range(len(pairs))]
    replicates = []
    for r in range(20):
        resampled = [pair for pair, draw in zip(pairs, draws) for _ in range(draw[r])]
        replicates.append(slow_scores(resampled, 3)["miou"])
    expected = np.nanpercentile(replicates, [2.5, 97.5])
    np.testing.assert_allclose(streaming.compute()["miou_interval"], expected, rtol=0, atol=1e-12)


def test_interval_covers_the_truth(monkeypatch):
    """Pictures of one wrong or right label each: over 100 data sets, the interval holds the true mIoU in most."""
    none = torch.zeros(3, 2, dtype=torch.int64), torch.zeros(4, 2, dtype=torch.int64)
    monkeypatch.setattr("qlseg_hf.evaluation.metrics.count_boundaries", lambda *_: none)  # 3/4 of the time
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        streaming = StreamingScores(2, seed=trial)
        for i in range(60):
            reference = rng.integers(0, 2, (1, 1))
            right = rng.random() < 0.8
            streaming.update(reference if right else 1 - reference, reference, i)
        low, high = streaming.compute()["miou_interval"]
        covered += low <= 0.8 / 1.2 <= high  # 0.8 right, 0.2 missed and 0.2 wrongly found of either label
    assert 88 <= covered <= 99  # 95 expected, standard deviation 2.2


def test_resumed_counting():
    pairs = random_maps(6, 7)
    streaming = StreamingScores(7)
    for i, pair in enumerate(pairs[:3]):
        streaming.update(*pair, i)
    state = streaming.state_dict()
    for i, pair in enumerate(pairs[3:], start=3):
        streaming.update(*pair, i)
    resumed = StreamingScores(7)
    resumed.load_state_dict(state)
    assert resumed.compute()["num_pictures"] == 3  # the state is a copy
    for i, pair in enumerate(pairs[3:], start=3):
        resumed.update(*pair, i)
    assert resumed.compute() == streaming.compute()
    assert vars(streaming).keys() == {"settings", "totals"}  # which have fixed shapes: memory does not grow


def test_empty_and_ignored_pictures():
    streaming = StreamingScores(2)
    assert math.isnan(streaming.compute()["miou"])
    assert all(map(math.isnan, streaming.compute()["miou_interval"]))
    assert math.isnan(streaming.update(np.zeros((2, 2), int), np.full((2, 2), 255), 0))
    assert math.isnan(streaming.compute()["miou"])
    assert streaming.update(np.array([[0, 1]]), np.array([[0, 0]]), 1) == 0.25
    found = streaming.compute()
    assert found["miou"] == 0.25
    assert found["miou_interval"] == [0.25, 0.25]
    assert found["num_pictures"] == 2


def test_wrong_use_of_streaming_scores():
    streaming = StreamingScores(3)
    with pytest.raises(ValueError, match="picture index is -1; give its position"):
        streaming.update(np.array(PREDICTED), np.array(REFERENCE), -1)
    with pytest.raises(ValueError, match=r"label map holds \[3\]"):
        streaming.update(np.array([[3]]), np.array([[0]]), 0)
    assert not any(total.any() for total in streaming.state_dict().values())
    with pytest.raises(ValueError, match=r"the state holds .*\(4, 4\).* instead of .*\(3, 3\)"):
        streaming.load_state_dict(StreamingScores(4).state_dict())
    with pytest.raises(ValueError, match="3 labels and 0 replicates; at least 1"):
        StreamingScores(3, num_replicates=0)


# --------------------------------------------------------------------------------------------- the Hub's `mean_iou`

HUB_KEYS = {
    "mean_iou": "miou",
    "mean_accuracy": "macc",
    "overall_accuracy": "aacc",
    "per_category_iou": "iou",
    "per_category_accuracy": "accuracy",
}


@pytest.mark.parity
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_metric_gives_stored_scores(fixture, mean_iou, dtype):
    predictions, references, num_labels, expected = fixture
    found = mean_iou.compute(
        predictions=predictions.to(dtype), references=references.to(dtype), num_labels=num_labels, ignore_index=255
    )
    assert set(found) == set(HUB_KEYS)
    assert_scores({HUB_KEYS[name]: value for name, value in found.items()}, expected)


def test_metric_gives_the_hubs_example(mean_iou):
    """The example in the documentation of the Hub's metric (evaluate 0.4.6), with its result."""
    predictions = [[[1, 2], [3, 4], [5, 255]], [[2, 7], [9, 2], [3, 6]], [[2, 2, 3], [8, 2, 4], [3, 255, 2]]]
    references = [[[0, 3], [5, 4], [6, 255]], [[1, 7], [9, 2], [3, 6]], [[1, 2, 2], [8, 2, 1], [3, 255, 1]]]
    found = mean_iou.compute(predictions=predictions, references=references, num_labels=10, ignore_index=255)
    assert found["mean_iou"] == pytest.approx(0.4775)
    assert found["mean_accuracy"] == pytest.approx(0.5916666666666666)
    assert found["overall_accuracy"] == pytest.approx(0.5263157894736842)
    np.testing.assert_allclose(found["per_category_iou"], [0, 0, 0.375, 0.4, 0.5, 0, 0.5, 1, 1, 1])
    np.testing.assert_allclose(found["per_category_accuracy"], [0, 0, 0.75, 2 / 3, 1, 0, 0.5, 1, 1, 1])


@pytest.mark.parametrize("keep_in_memory", [False, True])
def test_metric_over_batches_of_mixed_sizes(tmp_path, keep_in_memory):
    metric = make_mean_iou(cache_dir=str(tmp_path), keep_in_memory=keep_in_memory)
    pairs = random_maps(7, 5)
    assert len({pair[0].shape for pair in pairs}) > 3
    metric.add_batch(predictions=[p.astype(np.uint8) for p, _ in pairs[:4]], references=[r for _, r in pairs[:4]])
    metric.add(prediction=pairs[4][0], reference=torch.from_numpy(pairs[4][1]))
    assert len(metric) == 5
    last = {"predictions": [p for p, _ in pairs[5:]], "references": [r for _, r in pairs[5:]]}
    found = metric.compute(num_labels=5, ignore_index=255, **last)
    assert_scores({HUB_KEYS[name]: value for name, value in found.items()}, slow_scores(pairs, 5))
    # and again from nothing
    found = metric.compute(num_labels=5, ignore_index=255, **last)
    assert_scores({HUB_KEYS[name]: value for name, value in found.items()}, slow_scores(pairs[5:], 5))


def test_metric_over_processes(tmp_path):
    """Two instances that meet in a cache folder, as those of two processes do; only the first gives a result."""
    pairs = random_maps(5, 3)

    def run(process: int):
        options = {"num_process": 2, "process_id": process, "experiment_id": "x", "timeout": 20}
        metric = make_mean_iou(cache_dir=str(tmp_path), **options)
        predictions, references = zip(*pairs[process::2])
        return metric.compute(predictions=predictions, references=references, num_labels=3, ignore_index=255)

    with ThreadPoolExecutor(2) as pool:
        found, nothing = pool.map(run, range(2))
    assert nothing is None
    assert_scores({HUB_KEYS[name]: value for name, value in found.items()}, slow_scores(pairs, 3))


def test_metric_reduces_and_maps_labels(mean_iou):
    """Stored 0, 1, 2, 3, 7 become void, 0, 1, 1, void; the map is applied at once, so 3 -> 2 does not go on to 1."""
    references = np.array([[0, 1, 2, 3, 7, 255]])
    given = {"predictions": [np.array([[9, 0, 1, 0, 9, 9]])], "references": [references]}
    found = mean_iou.compute(**given, num_labels=2, ignore_index=255, label_map={3: 2, 7: 0}, reduce_labels=True)
    np.testing.assert_allclose(found["per_category_iou"], [1 / 2, 1 / 2])
    assert references.tolist() == [[0, 1, 2, 3, 7, 255]]
    swapped = {"predictions": [np.array([[1, 1, 0]])], "references": [np.array([[0, 0, 1]])]}
    found = mean_iou.compute(**swapped, num_labels=2, ignore_index=255, label_map={0: 1, 1: 0})
    assert found["mean_iou"] == 1


def test_metric_replaces_nan(mean_iou):
    given = {"predictions": [PREDICTED], "references": [REFERENCE], "num_labels": 4, "ignore_index": 255}
    found = mean_iou.compute(**given)
    np.testing.assert_allclose(found["per_category_iou"], [1 / 2, 1, 0, NAN])
    found = mean_iou.compute(**given, nan_to_num=-1)
    np.testing.assert_allclose(found["per_category_iou"], [1 / 2, 1, 0, -1])
    np.testing.assert_allclose(found["per_category_accuracy"], [1 / 2, 1, -1, -1])
    assert found["mean_iou"] == 1 / 2


def test_metric_with_everything_ignored(mean_iou):
    given = {"predictions": [[[0, 1]]], "references": [[[255, 255]]]}
    found = mean_iou.compute(**given, num_labels=2, ignore_index=255)
    assert all(np.isnan(value).all() for value in found.values())
    found = mean_iou.compute(**given, num_labels=2, ignore_index=255, nan_to_num=0)
    assert found["mean_iou"] == 0


def test_metric_stores_pairs_of_labels_not_pixels(mean_iou):
    """A thousand pixels or a million take the same room."""
    predicted, values, pixels = joint_counts(np.tile([[0, 1], [1, -7]], (500, 500)), np.tile([[0, 255]], (1000, 500)))
    pairs = sorted(zip(values.tolist(), predicted.tolist(), pixels.tolist()))
    assert pairs == [(0, 0, 250_000), (0, 1, 250_000), (255, -7, 250_000), (255, 1, 250_000)]
    mean_iou.add(prediction=np.zeros((1000, 1000), int), reference=np.zeros((1000, 1000), int))
    mean_iou.writer.finalize()
    with open(mean_iou.cache_file_name, "rb") as file:
        assert 0 < len(file.read()) < 5000


def test_wrong_use_of_metric(mean_iou):
    labels = {"num_labels": 2, "ignore_index": 255}
    with pytest.raises(ValueError, match="with reduce_labels label 1 becomes 0, so ignore_index cannot be 0"):
        mean_iou.compute(num_labels=2, ignore_index=0, reduce_labels=True)
    with pytest.raises(ValueError, match="there are 2 predictions and 1 references; one each is wanted"):
        mean_iou.compute(predictions=[PREDICTED, PREDICTED], references=[REFERENCE], **labels)
    with pytest.raises(ValueError, match="there are None predictions and 1 references"):
        mean_iou.compute(references=[REFERENCE], **labels)
    with pytest.raises(ValueError, match="they must have one size"):
        mean_iou.add(prediction=[[0, 1]], reference=[[0], [1]])
    with pytest.raises(ValueError, match="call `add` or `add_batch`"):
        mean_iou.compute(**labels)
    with pytest.raises(ValueError, match=r"reference holds \[2\]; 0..1 or 255"):
        mean_iou.compute(predictions=[[[0, 1]]], references=[[[0, 2]]], **labels)
    found = mean_iou.compute(predictions=[[[0, 1]]], references=[[[0, 1]]], **labels)
    assert found["mean_iou"] == 1  # nothing is left of the calls that failed
