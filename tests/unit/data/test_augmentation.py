"""Augmentation by its invariants and by its distribution; sampling order by arithmetic that fits on paper."""

import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from qlseg_hf import QLSegImageProcessor
from qlseg_hf.data import augmentation as module
from qlseg_hf.data.augmentation import (
    BatchPositions,
    StreamingTrainingDataset,
    TrainingDataset,
    TrainingSampler,
    TrainingTransform,
    resize_sample,
    sample_order,
)
from qlseg_hf.data.datasets import Sample, SampleError, StreamedSamples, open_dataset
from qlseg_hf.data.distortion import COLOR_OPERATIONS, MOVES, distort, distort_bands, move, recolor, rotation_matrix
from qlseg_hf.model.image_io import resize_picture

NUM_LABELS = 20
PLAIN = QLSegImageProcessor(do_rescale=False, do_normalize=False)  # pixel_values are the grey levels


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


@pytest.fixture
def folder(tmp_path):
    """Seven pictures of different sizes in the ADE20K layout."""
    for i in range(7):
        picture, labels = scene(20 + 4 * i, 32, seed=i)
        for part, array in (("images", picture), ("annotations", labels.astype(np.uint8))):
            path = tmp_path / part / "training" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    return tmp_path


@pytest.mark.parametrize("ignored", [0, 19, None])
def test_what_is_ignored_is_no_label(ignored):
    """Padding, and what was ignored in label maps, were learnt as that label; for None as label 0."""
    processor = QLSegImageProcessor(ignore_index=ignored)
    with pytest.raises(ValueError, match=f"ignore_index of the processor is {ignored}; crops are padded with it"):
        transform(processor)
    assert transform(QLSegImageProcessor(ignore_index=20)) and transform(QLSegImageProcessor(ignore_index=-100))


def test_labels_follow_the_picture():
    """At ratio 1 nothing is interpolated, so crop, flip and padding show exactly."""
    picture, labels = scene()
    steps = transform(resize_box=(32, 24), scale_range=(1, 1), crop_size=28, cat_max_ratio=1)
    found = [steps.augment(picture, labels, np.random.default_rng(seed)) for seed in range(20)]
    for sample in found:
        pixels, target = sample["pixel_values"], sample["labels"]
        assert (pixels.shape, target.shape, pixels.dtype, target.dtype) == ((3, 28, 28), (28, 28), *TYPES)
        assert (target[24:] == 255).all() and (pixels[:, 24:] == 0).all()
        red = torch.where(target[:24] == 255, 255, target[:24] * 10)
        assert torch.equal(pixels[0, :24], red.float())
        crops = [
            crop for left in range(5) for crop in (labels[:, left : left + 28], labels[:, left : left + 28][:, ::-1])
        ]
        assert any(np.array_equal(target[:24].numpy(), crop) for crop in crops)
    assert len({sample["labels"].numpy().tobytes() for sample in found}) > 5


TYPES = (torch.float32, torch.int64)


def test_normalised_then_padded():
    processor = QLSegImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.25, 0.125], ignore_index=77)
    picture, labels = np.full((8, 8, 3), 51, np.uint8), np.tile([0, 1], (8, 4))
    sample = transform(processor, resize_box=(8, 8), scale_range=(1, 1)).augment(picture, labels, rng(0))
    for channel, value in enumerate([0.2, 0.0, -0.8]):
        torch.testing.assert_close(
            sample["pixel_values"][channel, :8, :8], torch.full((8, 8), value), atol=1e-6, rtol=0
        )
    assert (sample["pixel_values"][:, 8:] == 0).all() and (sample["pixel_values"][:, :, 8:] == 0).all()
    assert (sample["labels"][8:] == 77).all() and (sample["labels"][:, 8:] == 77).all()


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    "size, box, ratio, expected",
    [
        ((512, 683), (2048, 640), 1.0, (640, 854)),  # short side binds: 683 * 1.25 = 853.75
        ((100, 1000), (2048, 640), 1.0, (205, 2048)),  # long side binds
        ((1000, 100), (2048, 640), 0.5, (1024, 102)),
        ((375, 500), (520, 520), 1.0, (390, 520)),  # PASCAL-Context: both sides within 520
        ((375, 500), (520, 520), 0.999, (389, 519)),  # int(519.48) = 519
        ((3, 4000), (64, 16), 0.5, (1, 32)),  # never less than a pixel
    ],
)
def test_resized_size(size, box, ratio, expected):
    assert transform(resize_box=box).resized_size(*size, ratio) == expected


def test_default_box():
    assert transform(crop_size=480).box == (2048, 480)


def test_ratio_is_uniform(monkeypatch):
    ratios = []
    monkeypatch.setattr(
        TrainingTransform, "resized_size", lambda self, h, w, ratio: ratios.append(ratio) or (h, w), raising=True
    )
    for seed in range(400):
        transform(scale_range=(0.5, 2.0)).augment(*scene(8, 8), rng(seed))
    assert 0.5 <= min(ratios) < 0.52 and 1.98 < max(ratios) <= 2.0
    assert np.histogram(ratios, bins=3, range=(0.5, 2.0))[0] == pytest.approx(400 / 3, abs=4 * 9.4)  # 4 sigma


def test_cat_max_ratio():
    """A large void and a lone small block of label 1 on 0: most crops break the rule, so draws must be repeated."""
    labels = np.zeros((64, 64), dtype=np.int64)
    labels[:, :16], labels[40:52, 40:52] = 255, 1
    size = labels.shape

    def kept(ratio, seed):
        crop = transform(cat_max_ratio=ratio).draw_crop(labels, size, rng(seed))[2]
        counts = np.bincount(crop[crop != 255], minlength=2)
        return (counts > 0).sum() > 1 and counts.max() < 0.75 * counts.sum()

    once, repeated = (np.mean([kept(ratio, seed) for seed in range(400)]) for ratio in (1, 0.75))
    # ten draws fail together with probability (1 - p)^10; 0.09 is four standard errors
    assert 0.02 < once < 0.4
    assert repeated == pytest.approx(1 - (1 - once) ** 10, abs=0.09)
    all_void = np.full((64, 64), 255)
    assert (transform().draw_crop(all_void, size, rng(0))[2] == 255).all()


@pytest.mark.parametrize("num_ones, num_draws", [(16, 10), (17, 1), (48, 10), (47, 1), (64, 10)])
def test_number_of_draws(num_ones, num_draws):
    """64 labelled pixels: 48 of one label are 75 % and refused, 47 are not; void does not count."""
    labels = np.full((2, 64), 255)
    labels[0] = np.arange(64) < num_ones
    draws = []

    class Counter:
        def integers(self, high):
            draws.append(high)
            return 0

    transform(crop_size=64).draw_crop(labels, labels.shape, Counter())
    assert draws == [1, 1] * num_draws


def test_flip_is_fair():
    picture, labels = scene(16, 16)
    steps = transform(resize_box=(16, 16), scale_range=(1, 1), cat_max_ratio=1)
    flipped = [np.array_equal(steps.augment(picture, labels, rng(s))["labels"], labels[:, ::-1]) for s in range(200)]
    assert 70 < sum(flipped) < 130  # 4 sigma


@pytest.mark.parametrize("size", [(48, 61), (11, 17), (200, 201), (24, 32)])
def test_resampling_is_opencv(size, monkeypatch):
    pytest.importorskip("cv2")
    noise, labels = rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8), scene()[1]
    fast = resize_sample(noise, size)
    np.testing.assert_array_equal(fast, resize_picture(noise, size).permute(1, 2, 0).numpy())
    monkeypatch.setattr(module, "import_opencv", lambda: None)
    np.testing.assert_array_equal(fast, resize_sample(noise, size))
    crop = transform(crop_size=256).draw_crop(labels, size, rng(0))[2]
    # labels are those of the nearest pixels, as Pillow has it; of two that are as near either is right
    expected = np.asarray(Image.fromarray(labels.astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST))
    clear = np.ix_(*((2 * np.arange(new) + 1) * old % (2 * new) != 0 for old, new in zip(labels.shape, size)))
    np.testing.assert_array_equal(crop[clear], expected[clear])


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


def test_photometric_needs_opencv(monkeypatch):
    monkeypatch.setattr(module, "import_opencv", lambda: None)
    with pytest.raises(ImportError, match="photometric needs OpenCV: pip install"):
        transform(photometric=True)
    assert transform().augment(*scene(), rng(0))["labels"].shape == (16, 16)


def test_opencv_that_is_broken(monkeypatch, tmp_path):
    """Not taken for absent, which would be slow and say that OpenCV is to be installed."""
    (tmp_path / "cv2").mkdir()
    (tmp_path / "cv2" / "__init__.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    module.import_opencv.cache_clear()
    for photometric in (True, False):
        with pytest.raises(ImportError, match=r"the package cv2, whose import from .*tmp.*fails: libGL.so.1"):
            transform(photometric=photometric).augment(*scene(), rng(0))
    module.import_opencv.cache_clear()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"scale_range": (2, 1)}, "scale_range"),
        ({"crop_size": 0}, "crop_size 0"),
        ({"cat_max_ratio": 0}, "cat_max_ratio 0"),
        ({"resize_box": (64, 1)}, "less than a pixel"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        transform(**settings)


def test_label_rules_and_range():
    processor = QLSegImageProcessor(do_reduce_labels=True, label_mapping={9: 0})
    sample = Sample(np.zeros((4, 4, 3), np.uint8), np.array([[1, 2, 9, 255]] * 4), "a.png")
    steps = transform(processor, num_labels=2, crop_size=4, resize_box=(4, 4), scale_range=(1, 1))
    assert sorted(steps(sample, 0, 0)["labels"][0].tolist()) == [0, 1, 255, 255]
    with pytest.raises(SampleError, match=r"a.png: \[2\] in 4 pixels are no labels 0..0; check"):
        transform(processor, num_labels=1)(sample, 0, 0)


def test_draws_depend_on_seed_epoch_and_index_only(folder):
    samples = open_dataset(folder, "train")
    steps = pickle.loads(pickle.dumps(transform(photometric=module.import_opencv() is not None, seed=3)))
    first = steps(samples[0], 2, 0)
    steps(samples[1], 0, 1)
    again = steps(samples[0], 2, 0)
    assert first.pop("name") == again.pop("name") == samples[0].name
    assert all(torch.equal(first[key], again[key]) for key in first)
    for epoch, index, seed in ((3, 0, 3), (2, 1, 3), (2, 0, 4)):
        other = transform(photometric=steps.photometric, seed=seed)(samples[0], epoch, index)
        assert not torch.equal(first["pixel_values"], other["pixel_values"])


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


def test_workers_change_nothing(folder):
    dataset = TrainingDataset(
        open_dataset(folder, "train", val_fraction=0), transform(photometric=module.import_opencv() is not None)
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


# ------------------------------------------------------------------------------------------------------- other bands


def deep_processor(bands: int, **settings) -> QLSegImageProcessor:
    numbers = {"image_mean": [0.1 * (i % 7) for i in range(bands)], "image_std": [0.3] * bands}
    return QLSegImageProcessor(rescale_factor=1 / 65535, **(numbers | settings))


@pytest.mark.parametrize("bands", [1, 2, 4, 5, 13, 70, 130])
def test_any_number_of_bands_keeps_its_16_bits(bands):
    """At ratio 1 nothing is interpolated: bands, order and values are those of the picture, normalised."""
    picture = rng(0).integers(0, 65536, (24, 32, bands), dtype=np.uint16)
    labels = scene()[1]
    steps = transform(deep_processor(bands), resize_box=(32, 24), scale_range=(1, 1), crop_size=24, cat_max_ratio=1)
    sample = steps(Sample(picture, labels, "x"), 0, 0)
    assert sample["pixel_values"].shape == (bands, 24, 24) and sample["pixel_values"].dtype == torch.float32
    whole = (picture / 65535 - steps.processor.image_mean) / 0.3
    crops = [whole[:, left : left + 24] for left in range(9)]
    found = sample["pixel_values"].permute(1, 2, 0).numpy()
    assert any(np.allclose(found, crop, atol=1e-5) for crop in crops + [crop[:, ::-1] for crop in crops])


@pytest.mark.parametrize("bands", [1, 2, 4, 5, 70, 130])
@pytest.mark.parametrize("size", [(37, 20), (9, 61)])
def test_resizing_other_bands(bands, size):
    small = rng(0).integers(0, 256, (23, 31, bands), dtype=np.uint8)
    expected = resize_picture(small, size).permute(1, 2, 0).numpy()
    assert np.array_equal(resize_sample(small, size), expected) and expected.dtype == np.uint8
    deep = rng(0).integers(0, 65536, (23, 31, bands), dtype=np.uint16)
    found, expected = resize_sample(deep, size), resize_picture(deep, size).permute(1, 2, 0).numpy()
    assert found.shape == (*size, bands) and found.dtype == expected.dtype == np.float32
    assert np.abs(found - expected).max() < 65535 / 2048
    whole = torch.from_numpy(deep.astype(np.float32)).permute(2, 0, 1)[None]
    bilinear = torch.nn.functional.interpolate(whole, size=size, mode="bilinear")[0].permute(1, 2, 0)
    assert np.abs(expected - bilinear.numpy()).max() < 65535 / 2048


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


def test_distortion_of_other_bands_needs_no_opencv(monkeypatch):
    monkeypatch.setattr(module, "import_opencv", lambda: None)
    picture, labels = rng(0).integers(0, 65536, (24, 32, 5), dtype=np.uint16), scene()[1]
    steps = transform(deep_processor(5), photometric=True)
    found = [steps.augment(picture, labels, rng(seed))["pixel_values"] for seed in range(8)]
    plain = [transform(deep_processor(5)).augment(picture, labels, rng(seed))["pixel_values"] for seed in range(8)]
    assert 0 < sum(torch.equal(a, b) for a, b in zip(found, plain)) < 8
    with pytest.raises(ImportError, match="photometric needs OpenCV"):
        transform(QLSegImageProcessor(), photometric=True)


def test_other_bands_than_the_processor_takes_are_named():
    sample = Sample(np.zeros((24, 32, 4), np.uint16), scene()[1], "x.tif")
    with pytest.raises(SampleError, match="x.tif: picture: a picture of shape .* has no axis of 5 channels"):
        transform(deep_processor(5))(sample, 0, 0)


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


def test_vertical_flip_and_rotation_only_where_they_are_asked_for():
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    labels = np.random.default_rng(1).integers(0, 2, (20, 30))

    def sample(**settings):
        made = transform(photometric=False, cat_max_ratio=1.0, scale_range=(1.0, 2.0), **settings)
        return [made.augment(picture, labels, np.random.default_rng(seed)) for seed in range(20)]

    plain, flipped, turned = sample(), sample(vertical_flip=True), sample(rotation=30.0)
    same = [torch.equal(a["labels"], b["labels"]) for a, b in zip(plain, flipped)]
    upside_down = [torch.equal(a["labels"].flip(0), b["labels"]) for a, b in zip(plain, flipped)]
    assert all(a or b for a, b in zip(same, upside_down)) and 3 < sum(same) < 17 and any(upside_down)
    assert not any(torch.equal(a["labels"], b["labels"]) for a, b in zip(plain, turned))
    with pytest.raises(ValueError, match="rotation 200 must be 0..180 degrees"):
        transform(rotation=200)


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


def test_trivial_augment_draws_all_of_its_operations_and_only_when_asked_for():
    picture, labels = scene(32, 32)
    noisy = np.random.default_rng(0).integers(0, 200, (32, 32, 3), dtype=np.uint8)

    def samples(**settings):
        made = transform(crop_size=32, cat_max_ratio=1.0, scale_range=(1.0, 1.0), **settings)
        return [made.augment(noisy, labels, np.random.default_rng(seed)) for seed in range(60)]

    plain, changed = samples(), samples(trivial_augment=True)
    moved = [not torch.equal(a["labels"], b["labels"]) for a, b in zip(plain, changed)]
    recolored = [
        torch.equal(a["labels"], b["labels"]) and not torch.equal(a["pixel_values"], b["pixel_values"])
        for a, b in zip(plain, changed)
    ]
    shares = len(MOVES) / (len(MOVES) + len(COLOR_OPERATIONS))
    assert abs(sum(moved) / 60 - shares) < 0.2 and sum(recolored) > 15
    assert all(torch.equal(a["labels"], b["labels"]) for a, b in zip(samples(trivial_augment=True), changed))
    with pytest.raises(ValueError, match="trivial_augment is for images of 8-bit RGB"):
        transform(deep_processor(5), trivial_augment=True)
