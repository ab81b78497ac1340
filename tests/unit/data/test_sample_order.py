"""The order samples come in, by arithmetic that fits on paper; any number of processes and workers sees the same."""

import numpy as np
import pytest
import torch
from made_data import put_scenes, transform
from torch.utils.data import DataLoader

from qlseg_hf.data.augmentation import (
    BatchPositions,
    StreamingTrainingDataset,
    TrainingDataset,
    TrainingSampler,
    sample_order,
)
from qlseg_hf.data.datasets import Sample, StreamedSamples, open_dataset
from qlseg_hf.data.distortion import import_opencv


def test_sample_order():
    orders = [sample_order(50, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == sample_order(50, 0, 0).tolist()


def test_positions():
    assert list(BatchPositions(2, 2)) == [range(0, 2), range(2, 4)]
    # 3 processes x 2 batches x 2 samples: step 1 is positions 12..23, of which process 2 has the last four
    second = BatchPositions(2, 2, start_step=1, accumulation=2, rank=2, world_size=3)
    assert list(second) == [range(20, 22), range(22, 24)] and len(second) == 2
    for wrong in ({"batch_size": 0}, {"rank": 1}, {"accumulation": 0}, {"rank": -1}):
        with pytest.raises(ValueError, match="must be positive"):
            BatchPositions(**({"batch_size": 1, "max_steps": 1} | wrong))
    with pytest.raises(ValueError, match="start_step 2 must be"):
        BatchPositions(1, 1, start_step=2)


def keys_of_steps(world_size, batch_size, accumulation, start=0, num_steps=6) -> list[list[tuple[int, int]]]:
    """What each optimiser step sees, over all processes in order of their rank."""
    steps = [[] for _ in range(num_steps - start)]
    for rank in range(world_size):
        batches = BatchPositions(batch_size, num_steps, start, accumulation, rank, world_size)
        sampler = TrainingSampler(batches, num_samples=7, seed=5)
        assert len(list(sampler)) == len(sampler) == len(steps) * accumulation
        for number, batch in enumerate(sampler):
            assert len(batch) == batch_size
            steps[number // accumulation] += batch
    return steps


def test_any_number_of_processes_takes_the_same_steps():
    expected = keys_of_steps(1, 4, 1)
    for world_size, batch_size, accumulation in ((1, 2, 2), (2, 2, 1), (2, 1, 2), (4, 1, 1)):
        assert keys_of_steps(world_size, batch_size, accumulation) == expected
        assert keys_of_steps(world_size, batch_size, accumulation, start=4) == expected[4:]
    flat = [key for step in expected for key in step]
    assert [epoch for epoch, _ in flat] == [0] * 7 + [1] * 7 + [2] * 7 + [3] * 3
    assert [index for _, index in flat[7:14]] == sample_order(7, 5, 1).tolist()


def test_batch_larger_than_the_data_set():
    (batch,) = TrainingSampler(BatchPositions(8, 1), num_samples=2, seed=0)
    assert sorted(batch) == [(epoch, index) for epoch in range(4) for index in range(2)]
    with pytest.raises(ValueError, match="the data set is empty"):
        TrainingSampler(BatchPositions(1, 1), 0, 0)


def equal_batches(first: list[dict], second: list[dict]) -> bool:
    assert len(first) == len(second) > 0
    return all(torch.equal(a[key], b[key]) for a, b in zip(first, second) for key in ("pixel_values", "labels"))


def test_workers_change_nothing(tmp_path):
    dataset = TrainingDataset(
        open_dataset(put_scenes(tmp_path), "train", val_fraction=0), transform(photometric=import_opencv() is not None)
    )
    assert len(dataset) == 7

    def batches(num_workers, start=0):
        sampler = TrainingSampler(BatchPositions(2, 5, start), len(dataset), seed=0)
        return list(DataLoader(dataset, batch_sampler=sampler, num_workers=num_workers))

    alone = batches(0)
    assert alone[0]["pixel_values"].shape == (2, 3, 16, 16)
    assert not torch.equal(alone[0]["pixel_values"], alone[1]["pixel_values"])
    assert equal_batches(alone, batches(2))
    assert equal_batches(alone[3:], batches(2, start=3))


class Stream(StreamedSamples):
    """Stands in for a stream: 5 pictures, the i-th of shade i."""

    def __init__(self, num_samples=5):
        self.num_samples = num_samples

    def __iter__(self):
        for i in range(self.num_samples):
            yield Sample(np.full((8, 8, 3), i, np.uint8), np.tile([0, 1], (8, 4)), f"{i}")


def streamed(num_workers=0, rank=0, world_size=1, batch_size=2, start=0, buffer_size=3, num_steps=9, num_samples=5):
    batches = BatchPositions(batch_size, num_steps, start, rank=rank, world_size=world_size)
    dataset = StreamingTrainingDataset(Stream(num_samples), transform(), batches, buffer_size)
    return list(DataLoader(dataset, batch_size=batch_size, num_workers=num_workers))


def shades(batches) -> list[int]:
    return [int(sample[0, 0, 0]) for batch in batches for sample in batch["pixel_values"]]


def test_stream():
    found = streamed()
    order = shades(found)
    epochs = [order[i : i + 5] for i in (0, 5, 10)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    # sample i cannot come out before it went in, together with the buffer's other two
    assert all(epoch.index(i) >= i - 2 for epoch in epochs for i in range(5))
    assert shades(streamed(buffer_size=1)) == (list(range(5)) * 4)[:18]
    assert equal_batches(found, streamed(num_workers=2))
    assert equal_batches(found[4:], streamed(start=4))
    assert equal_batches(found[4:], streamed(num_workers=2, start=4))
    halves = [streamed(rank=rank, world_size=2, batch_size=1) for rank in range(2)]
    joined = [{key: torch.cat([a[key], b[key]]) for key in ("pixel_values", "labels")} for a, b in zip(*halves)]
    assert equal_batches(found, joined)


def test_broken_streams():
    with pytest.raises(ValueError, match="the data set is empty"):
        streamed(num_samples=0)
    with pytest.raises(ValueError, match="buffer_size 0 must be at least 1"):
        streamed(buffer_size=0)
