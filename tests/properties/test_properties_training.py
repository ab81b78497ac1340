"""Properties of what a training run computes: losses, metrics, augmentation, order of samples, learning rate."""

import numpy as np
import pytest
import torch
from hypothesis import assume, example
from hypothesis import strategies as st
from networks import tiny_config
from properties import SEEDS, holds
from slow import slow_loss, slow_scores

from qlseg_hf import QLSegImageProcessor
from qlseg_hf.data import augmentation as augmentation_module
from qlseg_hf.data.augmentation import BatchPositions, TrainingSampler, TrainingTransform
from qlseg_hf.evaluation.metrics import StreamingScores, confusion_counts, joint_counts
from qlseg_hf.model import loss_qlseg
from qlseg_hf.training.optimization import learning_rate_factor

# ------------------------------------------------------------------------------------------------------------ losses

LABEL_DTYPES = [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64]
NUMBERS = st.floats(0, 5)


# all ignored without a weight for "no object" was 0 / 0; a label map coarser than the patches was a RuntimeError
@example(1, 1, 1, (2, 2), (3, 3), torch.uint8, 255, [], 0.0, 2.0, 0.25, False, 1, 1.0, 0)
@example(2, 1, 1, (7, 7), (1, 2), torch.int64, 255, [0, 1], 0.1, 2.0, 0.25, False, 1, 1.0, 0)
@example(200, 1, 1, (2, 2), (3, 3), torch.int8, 255, [3, 100], 0.1, 2.0, 0.25, False, 1, 1.0, 0)  # refused label 3
@holds(
    60,
    num_labels=st.sampled_from([1, 2, 5, 200]),
    batch=st.integers(1, 2),
    blocks=st.integers(1, 2),
    grid=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    dtype=st.sampled_from(LABEL_DTYPES),
    ignore=st.sampled_from([255, -100, 1000]),
    present=st.lists(st.integers(0, 199), max_size=4),
    no_object=st.sampled_from([0.0, 0.1, 1]),
    gamma=st.sampled_from([0, 0.5, 1, 2.0, 3]),
    alpha=st.floats(0, 1),
    weighted=st.booleans(),
    chunk=st.integers(1, 3),
    spread=st.sampled_from([0.0, 1.0, 3.0]),
    seed=SEEDS,
)
def test_losses_in_chunks_are_the_plain_loss(
    num_labels,
    batch,
    blocks,
    grid,
    size,
    dtype,
    ignore,
    present,
    no_object,
    gamma,
    alpha,
    weighted,
    chunk,
    spread,
    seed,
):
    """Any label dtype and mix of labels, from all ignored to one pixel: finite, terms and gradients of the text."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    weights = rng.random(num_labels).tolist() if weighted else None
    numbers = {"no_object_weight": no_object, "focal_gamma": gamma, "focal_alpha": alpha, "label_weights": weights}
    config = tiny_config(num_labels, semantic_loss_ignore_index=ignore, **numbers)
    limits = torch.iinfo(dtype)
    choice = [label for label in (*present, ignore) if label in (*range(num_labels), ignore)]
    choice = [label for label in choice if limits.min <= label <= limits.max] or [0]
    labels = torch.from_numpy(rng.choice(choice, (batch, *size))).to(dtype)
    class_logits = (spread * torch.randn(blocks, batch, num_labels, num_labels + 1)).requires_grad_()
    mask_logits = (spread * torch.randn(blocks, batch, num_labels, *grid)).requires_grad_()
    loss_qlseg.check_labels(labels, torch.zeros(batch, 3, *size), config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_qlseg, "CPU_CHUNK_BYTES", 4 * size[0] * size[1] * chunk)
        terms = loss_qlseg.segmentation_loss(class_logits, mask_logits, labels, config)
    assert len(terms) == 3 * blocks and all(term.isfinite() for term in terms.values())
    found = torch.autograd.grad(sum(terms.values()), (class_logits, mask_logits))
    assert all(gradient.isfinite().all() for gradient in found)
    if num_labels < 200:  # slow
        doubles = [logits.detach().double().requires_grad_() for logits in (class_logits, mask_logits)]
        expected = torch.zeros((), dtype=torch.float64)
        for t in range(blocks):
            suffix = "" if t == blocks - 1 else f"_{t}"
            plain = slow_loss(doubles[0][t], doubles[1][t], labels.long(), config)
            for name, value in zip(("loss_ce", "loss_mask", "loss_dice"), plain):
                value = torch.as_tensor(value).nan_to_num()  # classification without any weight is 0 / 0 there
                assert terms[name + suffix].item() == pytest.approx(value.item(), rel=2e-4, abs=1e-5)
                expected = expected + value
        if no_object and not weighted and len(choice) and expected.requires_grad:
            wanted = torch.autograd.grad(expected, doubles, allow_unused=True)
            for mine, theirs in zip(found, wanted):
                theirs = torch.zeros_like(mine) if theirs is None else theirs.float()
                torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)


@holds(
    60,
    value=st.floats(-(2.0**127), 2.0**127, width=32),
    other=st.floats(-(2.0**127), 2.0**127, width=32),
    gamma=st.sampled_from([0, 0.5, 2.0]),
    seed=SEEDS,
)
def test_losses_of_extreme_logits(value, other, gamma, seed):
    """No logit that fp32 holds makes a gradient NaN; a loss is infinite at most where fp32 has no number for it."""
    config = tiny_config(2, focal_gamma=gamma)
    labels = torch.from_numpy(np.random.default_rng(seed).choice([0, 1, 255], (1, 4, 4)))
    masks = torch.tensor([value, other, 0.0, value]).repeat(1, 1, 2, 1).unflatten(3, (2, 2)).requires_grad_()
    classes = torch.tensor([[value, other, 0.0], [other, 0.0, value]])[None, None].requires_grad_()
    assume(max(abs(value - other), abs(value), abs(other)) < 3e38)
    terms = loss_qlseg.segmentation_loss(classes, masks, labels, config)
    gradients = torch.autograd.grad(sum(terms.values()), (classes, masks))
    assert not any(term.isnan() for term in terms.values()) and all(x.isfinite().all() for x in gradients)


# ----------------------------------------------------------------------------------------------------------- metrics


def random_maps(size, num_labels, ignore, seed):
    rng = np.random.default_rng(seed)
    reference = rng.choice([*range(num_labels), ignore], size)
    predicted = np.where(rng.random(size) < 0.5, reference, rng.integers(0, num_labels, size))
    return np.where((predicted < 0) | (predicted >= num_labels), 0, predicted), reference


@holds(
    80,
    sizes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4),
    num_labels=st.integers(1, 7),
    ignore=st.sampled_from([255, -100, -1, 0, 2]),
    cut=st.floats(0, 1),
    split=st.integers(0, 4),
    seed=SEEDS,
)
def test_confusion_counts(sizes, num_labels, ignore, cut, split, seed):
    """Parts add up to the whole, permuted labels permute the scores, ignored pixels never count, no split matters."""
    maps = [random_maps(size, num_labels, ignore, seed + i) for i, size in enumerate(sizes)]
    order = np.random.default_rng(seed).permutation(num_labels)
    whole, parts, permuted = (StreamingScores(num_labels, ignore, 5, seed=seed % 100) for _ in range(3))
    second = StreamingScores(num_labels, ignore, 5, seed=seed % 100)
    for i, (predicted, reference) in enumerate(maps):
        counts = confusion_counts(predicted, reference, num_labels, ignore)
        row = int(cut * len(reference))
        halves = [
            confusion_counts(predicted[s], reference[s], num_labels, ignore) for s in (slice(row), slice(row, None))
        ]
        assert torch.equal(counts, halves[0] + halves[1])
        assert counts.sum() == (reference != ignore).sum()
        noise = np.where(reference == ignore, seed % 1000, predicted)  # whatever was predicted there
        assert torch.equal(confusion_counts(noise, reference, num_labels, ignore), counts)
        whole.update(predicted, reference, i)
        (parts if i < split else second).update(predicted, reference, i)
        if not 0 <= ignore < num_labels:
            permuted.update(order[predicted], np.where(reference == ignore, ignore, order[reference % num_labels]), i)
        labels, values, pixels = joint_counts(predicted, reference)
        pairs = list(zip(predicted.flat, reference.flat))
        assert {(p, r): n for p, r, n in zip(labels, values, pixels)} == {
            pair: pairs.count(pair) for pair in set(pairs)
        }
    assert all(torch.equal(total, parts.totals[name] + second.totals[name]) for name, total in whole.totals.items())
    found = whole.compute()
    counted = [(np.where(r == ignore, 0, p), np.where(r == ignore, 255, r)) for p, r in maps]
    for name, value in slow_scores(counted, num_labels).items():
        np.testing.assert_allclose(found[name], value, atol=1e-12)
    if not 0 <= ignore < num_labels:
        assert np.array_equal(np.array(permuted.compute()["iou"])[order], found["iou"], equal_nan=True)


# --------------------------------------------------------------------------------------------- augmentation and order


@holds(
    60,
    size=st.tuples(*[st.one_of(st.integers(1, 60), st.sampled_from([1, 2, 250]))] * 2),
    crop=st.integers(1, 40),
    box=st.one_of(st.none(), st.tuples(st.integers(2, 80), st.integers(2, 80))),
    low=st.floats(0.5, 1),
    high=st.floats(1, 3),
    cat_max=st.sampled_from([1, 0.75, 0.01]),
    ignore=st.sampled_from([-100, 10**6]),
    has_opencv=st.booleans(),
    photometric=st.booleans(),
    seed=SEEDS,
)
@example(
    (1, 1), 1, None, 1.0, 1.0, 1, -100, False, False, 0
)  # a mirrored column was "at least one stride is negative"
def test_augmentation_keeps_picture_and_labels_together(
    size, crop, box, low, high, cat_max, ignore, has_opencv, photometric, seed
):
    """Labels are the numbers of their pixels, colours their place: in the crop both are of one place."""
    assume(not photometric or has_opencv)
    assume(int(min(box or (crop,)) * low) >= 1)
    if has_opencv:
        pytest.importorskip("cv2")
    processor = QLSegImageProcessor(do_rescale=False, do_normalize=False, ignore_index=ignore)
    y, x = np.indices(size)
    labels = np.where(np.random.default_rng(seed).random(size) < 0.1, ignore, y * size[1] + x)
    picture = np.stack([x, y, np.full(size, 255)], axis=-1).astype(np.uint8)
    steps = TrainingTransform(processor, y.size, crop, box, (low, high), cat_max, photometric)
    with pytest.MonkeyPatch.context() as patch:
        if not has_opencv:
            patch.setattr(augmentation_module, "import_opencv", lambda: None)
        found, again = (steps.augment(picture, labels, np.random.default_rng(seed)) for _ in range(2))
    pixels, target = found["pixel_values"], found["labels"]
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert pixels.shape == (3, crop, crop) and target.shape == (crop, crop)
    assert (pixels.dtype, target.dtype) == (torch.float32, torch.int64)
    assert pixels.min() >= 0 and pixels.max() <= 255
    assert set(target.unique().tolist()) <= {ignore, *np.unique(labels).tolist()}  # no value is invented
    if not photometric:
        inside = pixels[2] == 255
        height, width = inside.any(dim=1).sum(), inside.any(dim=0).sum()
        assert height and width and inside[:height, :width].all() and inside.sum() == height * width
        assert (target[~inside] == ignore).all() and (pixels[:, ~inside] == 0).all()
        is_label = inside & (target != ignore)
        for channel, place in ((0, target % size[1]), (1, target // size[1])):  # half a pixel, and 8 bit round
            assert ((pixels[channel] - place).abs() <= 1.01)[is_label].all()


@holds(
    100,
    batch_size=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    world=st.integers(1, 3),
    steps=st.integers(0, 6),
    start=st.integers(0, 6),
    num_samples=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_every_position_once_whatever_the_split(batch_size, accumulation, world, steps, start, num_samples, seed):
    assume(start <= steps)
    total = batch_size * accumulation * world
    shares = [BatchPositions(batch_size, steps, start, accumulation, rank, world) for rank in range(world)]
    positions = [p for share in shares for batch in share for p in batch]
    assert sorted(positions) == list(range(start * total, steps * total))
    assert all(len(list(share)) == len(share) for share in shares)
    keys = [key for share in shares for batch in TrainingSampler(share, num_samples, seed) for key in batch]
    one = TrainingSampler(BatchPositions(total, steps, start), num_samples, seed)
    assert sorted(keys) == sorted(key for batch in one for key in batch)
    epochs = [key for batch in TrainingSampler(BatchPositions(1, 3 * num_samples), num_samples, seed) for key in batch]
    assert sorted(epochs) == [(epoch, index) for epoch in range(3) for index in range(num_samples)]


@holds(
    100,
    max_steps=st.integers(1, 10**6),
    warmup=st.integers(0, 10**6),
    power=st.floats(0, 5),
    step=st.integers(0, 10**6),
)
def test_learning_rate_rises_and_falls(max_steps, warmup, power, step):
    now, later = (learning_rate_factor(s, max_steps, warmup, power) for s in (step, step + 1))
    assert 0 <= now <= 1 and (now == 0) == (step >= max_steps)
    if step >= warmup:
        assert later <= now
    if step + 1 < warmup and step + 1 < max_steps and power == 0:
        assert later > now
