"""Augmentation by its invariants and by its distribution."""

import pickle
import sys

import numpy as np
import pytest
import torch
from made_data import put_scenes, scene, transform
from PIL import Image

from qlseg_hf import QLSegImageProcessor
from qlseg_hf.data import augmentation as module
from qlseg_hf.data.augmentation import TrainingTransform, resize_sample
from qlseg_hf.data.datasets import Sample, SampleError, open_dataset
from qlseg_hf.data.distortion import COLOR_OPERATIONS, MOVES
from qlseg_hf.model.image_io import resize_picture

rng = np.random.default_rng


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
        assert (pixels.shape, target.shape) == ((3, 28, 28), (28, 28))
        assert (pixels.dtype, target.dtype) == (torch.float32, torch.int64)
        assert (target[24:] == 255).all() and (pixels[:, 24:] == 0).all()
        red = torch.where(target[:24] == 255, 255, target[:24] * 10)
        assert torch.equal(pixels[0, :24], red.float())
        crops = [
            crop for left in range(5) for crop in (labels[:, left : left + 28], labels[:, left : left + 28][:, ::-1])
        ]
        assert any(np.array_equal(target[:24].numpy(), crop) for crop in crops)
    assert len({sample["labels"].numpy().tobytes() for sample in found}) > 5


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


def test_draws_depend_on_seed_epoch_and_index_only(tmp_path):
    samples = open_dataset(put_scenes(tmp_path), "train")
    steps = pickle.loads(pickle.dumps(transform(photometric=module.import_opencv() is not None, seed=3)))
    first = steps(samples[0], 2, 0)
    steps(samples[1], 0, 1)
    again = steps(samples[0], 2, 0)
    assert first.pop("name") == again.pop("name") == samples[0].name
    assert all(torch.equal(first[key], again[key]) for key in first)
    for epoch, index, seed in ((3, 0, 3), (2, 1, 3), (2, 0, 4)):
        other = transform(photometric=steps.photometric, seed=seed)(samples[0], epoch, index)
        assert not torch.equal(first["pixel_values"], other["pixel_values"])


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
