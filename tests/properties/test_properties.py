"""Properties of what needs no network: windows, pictures, labels, scores in blocks, losses, metrics, augmentation."""

import io
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import assume, example
from hypothesis import strategies as st
from networks import tiny_config
from PIL import Image
from properties import holds
from slow import slow_loss, slow_scores
from torch.nn import functional as F

from qlseg_hf import (
    QLSegConfig,
    QLSegImageProcessor,
    QLSegViTConfig,
    load_label_map,
    load_picture,
)
from qlseg_hf.data import augmentation as augmentation_module
from qlseg_hf.data.augmentation import BatchPositions, TrainingSampler, TrainingTransform, resized
from qlseg_hf.evaluation.metrics import StreamingScores, confusion_counts, joint_counts
from qlseg_hf.model import deformable_attention, loss_qlseg, scores
from qlseg_hf.model.image_io import resize_picture
from qlseg_hf.model.memory import MemoryPlan
from qlseg_hf.model.windows import window_layout, window_starts
from qlseg_hf.training.optimization import learning_rate_factor

SEEDS = st.integers(0, 2**32 - 1)
SIDES = st.one_of(st.integers(1, 60), st.sampled_from([1, 2, 15, 16, 17, 64, 300]))
SIZES = st.tuples(SIDES, SIDES)


def random_picture(size, seed, high=256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, (*size, 3), dtype=np.uint8)


# --------------------------------------------------------------------------------------------------------- windows


@st.composite
def windows(draw, most=80):
    """Window and stride that a processor takes."""
    window = draw(st.integers(1, most))
    return window, draw(st.integers(1, window))


@holds(200, length=st.integers(1, 3000), window=windows(700))
def test_window_starts(length, window):
    window, stride = window
    starts = window_starts(length, window, stride)
    count = np.zeros(length + window, dtype=int)
    for start in starts:
        count[start : start + window] += 1
    assert starts == sorted(set(starts)) and starts[0] == 0
    assert count[:length].min() >= 1
    assert starts == [0] or count[length:].max() == 0  # no window reaches beyond, unless there is one and it is larger


@holds(
    60,
    size=SIZES,
    window=windows(),
    resize=st.one_of(st.none(), st.integers(1, 80), SIZES),
    scales=st.lists(st.floats(0.01, 3), min_size=1, max_size=3),
    flip=st.booleans(),
    slides=st.booleans(),
    length=st.integers(1, 400),
)
@example(
    size=(20, 30), window=(8, 8), resize=(32, 48), scales=[0.01], flip=False, slides=True, length=64
)  # was a resized size of 0
def test_windows_cover_every_pixel_of_every_run(size, window, resize, scales, flip, slides, length):
    processor = QLSegImageProcessor(
        do_resize=resize is not None,
        size={"height": resize[0], "width": resize[1]} if isinstance(resize, tuple) else resize,
        do_sliding_window=slides,
        window_size=window[0],
        window_stride=window[1],
    )
    # a side of 300 pixels whose other side is 1 is resized to 300 times the short side: not too many of those
    assume(max(math.prod(processor.resized_size(*size, scale=scale)) for scale in scales) < 2e5)
    layout = window_layout(processor.settings(), size, scales, flip)
    assert sum(share for _, share, _, _ in layout) == pytest.approx(1)
    assert len({(run_size, flipped) for run_size, _, flipped, _ in layout}) == len(layout)
    for run_size, _, _, places in layout:
        count = np.zeros(run_size, dtype=int)
        for (top, bottom), (left, right) in places:
            assert 0 <= top < bottom <= run_size[0] and 0 <= left < right <= run_size[1]
            count[top:bottom, left:right] += 1
        assert count.min() >= 1 and len(set(places)) == len(places)
    seen = np.zeros(size, dtype=int)
    plan = MemoryPlan(tiny_config(2), 1, None)
    plan.longest_strip, plan.max_memory_mb = lambda *_: (length, 1), 1
    for rows, columns in plan.strips(size, layout):
        seen[slice(*rows), slice(*columns)] += 1
    assert (seen == 1).all()


@holds(
    60, size=SIZES, window=windows(40), target=st.one_of(st.none(), SIZES), num_labels=st.integers(1, 5), seed=SEEDS
)
def test_windows_put_together_are_the_plane(size, window, target, num_labels, seed):
    """Post-processing of windows cut out of a plane gives the best labels of the plane."""
    torch.manual_seed(seed)
    plane = torch.randn(num_labels, *size)
    tops, lefts = (window_starts(side, *window) for side in size)
    places = [(top, left) for top in tops for left in lefts]
    outputs = SimpleNamespace(
        logits=[plane[:, top : top + window[0], left : left + window[0]] for top, left in places],
        window_offsets=torch.tensor([[0, *place, *size] for place in places]),
    )
    found = QLSegImageProcessor().post_process_semantic_segmentation(outputs, target and [target])[0]
    expected = F.interpolate(plane[None], size=target or size, mode="bilinear", align_corners=False)[0]
    assert found.shape == expected.shape[1:]
    best = expected.gather(0, found[None])[0]
    torch.testing.assert_close(best, expected.amax(dim=0), atol=1e-5, rtol=0)


@holds(40, sizes=st.lists(SIZES, min_size=1, max_size=3), window=windows(40), seed=SEEDS)
def test_processor_cuts_pictures_and_labels_alike(sizes, window, seed):
    """Windows of a picture and of its labels show the same place, are of the picture, and cover all of it."""
    processor = QLSegImageProcessor(
        do_resize=False, window_size=window[0], window_stride=window[1], do_rescale=False, do_normalize=False
    )
    pictures = [random_picture(size, seed + i) for i, size in enumerate(sizes)]
    features = processor(pictures, segmentation_maps=[picture[..., 1] for picture in pictures])
    count = [np.zeros(size, dtype=int) for size in sizes]
    for pixels, labels, (index, top, left, height, width) in zip(
        features["pixel_values"], features["labels"], np.stack(features["window_offsets"]).tolist(), strict=True
    ):
        assert (height, width) == sizes[index]
        place = slice(top, top + window[0]), slice(left, left + window[0])
        assert np.array_equal(pixels, np.moveaxis(pictures[index][place], -1, 0))
        assert np.array_equal(labels, pictures[index][place][..., 1])
        count[index][place] += 1
    assert all(c.min() >= 1 for c in count)


# -------------------------------------------------------------------------------------------------------- pictures


@holds(100, old=SIZES, new=SIZES, part=st.tuples(*[st.floats(0, 1)] * 4), seed=SEEDS)
def test_resizing_is_opencv_s(old, new, part, seed):
    cv2 = pytest.importorskip("cv2")
    picture = random_picture(old, seed)
    expected = cv2.resize(picture, new[::-1], interpolation=cv2.INTER_LINEAR)
    found = resize_picture(picture, new)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)
    assert np.array_equal(resized(picture, new), expected)
    (top, bottom), (left, right) = (
        sorted(int(p * side) for p in pair) for pair, side in zip((part[:2], part[2:]), new)
    )
    rows, columns = slice(top, bottom + 1), slice(left, right + 1)
    assert torch.equal(resize_picture(picture, new, rows, columns), found[:, rows, columns])


MODES = "1 L LA La P PA RGB RGBA RGBX RGBa CMYK YCbCr HSV LAB I F I;16 I;16L I;16B I;16N".split()
# EXIF orientation -> is it mirrored left to right, and then by how many quarters is it turned left?
ORIENTATIONS = {2: (True, 0), 3: (False, 2), 4: (True, 2), 5: (True, 1), 6: (False, 3), 7: (True, 3), 8: (False, 1)}
FORMATS = {"png": "1 L LA P RGB RGBA I;16".split(), "tiff": "1 L P RGB RGBA CMYK I F I;16 I;16B".split()}
FORMATS |= {"jpeg": "L RGB CMYK".split(), "gif": "L P".split(), "webp": "RGB RGBA".split(), "bmp": "1 L P RGB".split()}


@holds(
    150,
    size=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    mode=st.sampled_from(MODES),
    orientation=st.one_of(st.none(), st.integers(0, 9)),
    transparency=st.booleans(),
    kind=st.one_of(st.none(), st.sampled_from(sorted(FORMATS))),
    seed=SEEDS,
)
def test_picture_modes(size, mode, orientation, transparency, kind, seed):
    """Every mode is read as 8-bit RGB, or refused in a sentence; a file is turned upright, a PIL picture is not."""
    width, height = size
    data = np.random.default_rng(seed).bytes(len(Image.new(mode, size).tobytes()))
    picture = Image.frombytes(mode, size, data) if data else Image.new(mode, size)
    if mode in ("P", "PA"):
        picture.putpalette(list(range(256)) * 3)
    if transparency and mode in ("P", "L", "RGB"):
        picture.info["transparency"] = (1, 2, 3) if mode == "RGB" else 1
    if orientation is not None:
        picture.getexif()[0x0112] = orientation
    sources, is_turned = [picture], orientation in (5, 6, 7, 8) and kind not in ("gif", "bmp")  # which have no EXIF
    if kind is not None:
        assume(mode in FORMATS[kind] and min(size) > 0)
        file = io.BytesIO()
        picture.save(file, kind, exif=picture.getexif())
        sources = [Image.open(file), file.getvalue()]
    for source in sources:
        is_file = isinstance(source, bytes)
        try:
            found = load_picture(source)
        except ValueError as error:
            is_refused = mode in ("F", "LAB", "RGBX") or (mode == "CMYK" and kind == "tiff") or mode.startswith("I")
            assert 0 in size or is_refused, error
            assert re.search("empty|not agreed|largest value|and values|fourth band", str(error)), error
            continue
        assert 0 not in size and mode not in ("F", "LAB")
        as_given = (height, width, 3) if is_file else (*source.size[::-1], 3)  # Pillow turns TIFF by itself
        assert found.shape == ((width, height, 3) if is_file and is_turned else as_given)
        assert found.dtype == np.uint8 and found.flags.c_contiguous and found.flags.writeable
        if mode == "RGB" and kind in (None, "png", "tiff"):
            is_upright = is_file or kind == "tiff"
            is_mirrored, turns = ORIENTATIONS.get(orientation, (False, 0)) if is_upright else (False, 0)
            expected = np.asarray(picture)[:, ::-1] if is_mirrored else np.asarray(picture)
            assert np.array_equal(found, np.rot90(expected, turns))


KINDS = ["uint8", ">u2", "<u2", "int8", "int16", ">i4", "int64", "uint32", "uint64", "bool", "float16", "float32"]
KINDS += ["float64", "complex64", "object", "U3", "datetime64[s]"]
TENSORS = [
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.complex64,
    torch.uint8,
    torch.int8,
    torch.int32,
    torch.bool,
]
TENSORS += [torch.uint16, torch.uint32, torch.float8_e4m3fn]


@holds(
    200,
    shape=st.lists(st.integers(0, 6), min_size=0, max_size=4).map(tuple),
    kind=st.sampled_from([*KINDS, *TENSORS]),
    high=st.sampled_from([1, 100, 255, 256, 60000]),
    low=st.sampled_from([0, -1]),
    seed=SEEDS,
)
@example(shape=(3, 4), kind=">u2", high=60000, low=0, seed=0)  # was "outside 0..255", and below 256 taken for 8 bit
@example(shape=(3, 4), kind="complex64", high=100, low=0, seed=0)  # was read as its real part
@example(shape=(3, 4), kind="object", high=100, low=0, seed=0)  # was read
@example(shape=(3, 4), kind="U3", high=100, low=0, seed=0)  # was a TypeError of NumPy
@example(shape=(3, 4), kind=torch.bfloat16, high=100, low=0, seed=0)  # was a TypeError of PyTorch
def test_arrays_are_read_or_refused(shape, kind, high, low, seed):
    """Integers with one reading are read, whatever their byte order and width; all else is a ValueError."""
    integers = np.random.default_rng(seed).integers(low, high + 1, shape)
    if isinstance(kind, str):
        with np.errstate(over="ignore"):
            given = integers.astype(kind)
        is_integer, wide = given.dtype.kind in "iub", given.dtype.kind == "u" and given.dtype.itemsize == 2
        values = given.astype(np.int64) if is_integer else None
        channels_first = given.ndim == 3 and shape[0] in (1, 3, 4) and shape[-1] not in (1, 2, 3, 4)
    else:
        given = torch.from_numpy(np.asarray(integers)).to(kind)
        is_integer, wide = not (kind.is_floating_point or kind.is_complex), kind == torch.uint16
        values = given.to(torch.int64).numpy() if is_integer else None
        channels_first = given.ndim == 3 and shape[0] in (1, 3, 4)
    channels_last = len(shape) == 3 and not channels_first and shape[-1] in (1, 2, 3, 4)
    is_map = is_integer and (len(shape) == 2 or len(shape) == 3 and 1 in (shape[0], shape[-1]))
    if not is_map:
        with pytest.raises(ValueError, match="label map must be"):
            load_label_map(given)
    elif not (kind in ("uint64",) and low < 0):
        flat = values.reshape(
            [side for i, side in enumerate(shape) if len(shape) == 2 or i != (0 if shape[0] == 1 else 2)]
        )
        assert np.array_equal(load_label_map(given), flat)
    is_bool = is_integer and kind in ("bool", torch.bool)
    in_range = is_integer and (is_bool or wide or values.size == 0 or 0 <= values.min() <= values.max() <= 255)
    if not (in_range and values.size and (len(shape) == 2 or channels_first or channels_last)):
        with pytest.raises(ValueError, match="picture"):
            load_picture(given)
        return
    expected = values * 255 if is_bool else values >> 8 if wide else values
    expected = expected[..., None] if len(shape) == 2 else np.moveaxis(expected, 0, -1) if channels_first else expected
    expected = expected[..., :1] if expected.shape[-1] < 3 else expected[..., :3]
    assert np.array_equal(load_picture(given), np.broadcast_to(expected, (*expected.shape[:2], 3)))


# ---------------------------------------------------------------------------------------------------------- labels


@holds(
    100,
    label_map=st.one_of(st.none(), st.dictionaries(st.integers(-2, 9), st.integers(-2, 9), max_size=5)),
    reduce=st.booleans(),
    ignore=st.sampled_from([255, -100, 9, 3, 0]),
    seed=SEEDS,
)
def test_label_rules_pixel_by_pixel(label_map, reduce, ignore, seed):
    assume(not (reduce and ignore == 0))
    processor = QLSegImageProcessor(label_map=label_map, do_reduce_labels=reduce, ignore_index=ignore)
    again = QLSegImageProcessor(**json.loads(processor.to_json_string()))
    stored = np.random.default_rng(seed).choice([-2, -1, *range(10), 255, -100], (5, 7))
    expected = []
    for value in stored.flat:
        label = (label_map or {}).get(value, value)
        if reduce:
            label = ignore if label in (0, ignore) else label - 1
        expected.append(label)
    for p in (processor, again):
        assert p.reduce_labels(torch.from_numpy(stored)).flatten().tolist() == expected


# ------------------------------------------------------------------------------------- scores and sampling in blocks


@holds(
    60,
    grid=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    size=SIZES,
    num_labels=st.integers(1, 9),
    batch=st.integers(1, 2),
    block=st.integers(1, 300),
    spread=st.sampled_from([0.0, 0.01, 1.0, 100.0]),
    seed=SEEDS,
)
def test_scores_in_blocks(grid, size, num_labels, batch, block, spread, seed):
    """Whatever the block, scores are the formula's, and a label map takes the best of them."""
    torch.manual_seed(seed)
    class_logits, mask_logits = (
        torch.randn(batch, num_labels, num_labels + 1),
        spread * torch.randn(batch, num_labels, *grid),
    )
    masks = F.interpolate(mask_logits, size=size, mode="bilinear", align_corners=False).sigmoid()
    expected = torch.einsum("bqk,bqhw->bkhw", class_logits.softmax(-1)[..., :-1], masks)
    resized = F.interpolate(mask_logits, size=size, mode="bilinear", align_corners=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "CPU_BLOCK_BYTES", 4 * num_labels * block)
        found = scores.combine(class_logits, mask_logits, size)
        label_map = scores.label_map_from_scores(mask_logits[0], size)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    assert label_map.shape == size and 0 <= label_map.min() and label_map.max() < num_labels
    best = resized[0].gather(0, label_map[None])[0]
    torch.testing.assert_close(best, resized[0].amax(dim=0), atol=1e-5 * max(spread, 1), rtol=0)


@holds(
    60,
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    batch=st.integers(1, 2),
    levels=st.integers(1, 3),
    heads=st.integers(1, 2),
    points=st.integers(1, 4),
    reach=st.sampled_from([0.0, 0.5, 3.0, 1e4]),
    seed=SEEDS,
)
def test_sampling_is_grid_sample(grid, batch, levels, heads, points, reach, seed):
    torch.manual_seed(seed)
    h, w = grid
    length = levels * h * w
    value = torch.randn(batch, length, heads, 3, requires_grad=True)
    offsets = (reach * torch.randn(batch, length, heads, levels, points, 2)).requires_grad_()
    weights = torch.rand(batch, length, heads, levels, points, requires_grad=True)
    found = deformable_attention.sample_levels(value, offsets, weights, grid)

    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    own = torch.stack([x, y], dim=-1).reshape(-1, 2).repeat(levels, 1)[:, None, None, None].float()
    places = (own + offsets + 0.5) * 2 / torch.tensor([w, h]) - 1  # half-pixel centres, -1..1
    expected = 0
    for level in range(levels):
        maps = (
            value.unflatten(1, (levels, h, w))[:, level].permute(0, 3, 4, 1, 2).flatten(0, 1)
        )  # (B * heads, c, h, w)
        at = places[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B * heads, L * N, points, 2)
        part = F.grid_sample(maps, at, align_corners=False)  # (B * heads, c, L * N, points)
        share = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
        expected = expected + (part * share).sum(dim=-1).unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)
    rounding = 1e-4 if reach < 100 else 0.1  # at 1e4 cells fp32 has steps of 1/1000, and grid_sample rounds twice
    torch.testing.assert_close(found, expected, atol=rounding, rtol=0)
    rows, shares = deformable_attention.corners(offsets, weights, grid, batch)
    torch.testing.assert_close(deformable_attention.sum_gathered(value, rows, shares), found, atol=1e-5, rtol=0)
    if reach < 100:
        both = (torch.autograd.grad(x.square().sum(), (value, weights)) for x in (found, expected))
        for mine, theirs in zip(*both):
            torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=1e-3)


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
            patch.setattr(augmentation_module, "opencv", lambda: None)
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
        # OpenCV's nearest takes the first of the pixels that become one, its bilinear the middle; and 8 bit round
        slack = [1.5 + old / new / 2 for old, new in zip(size, steps.resized_size(*size, low))]
        for channel, place, most in ((0, target % size[1], slack[1]), (1, target // size[1], slack[0])):
            assert ((pixels[channel] - place).abs() <= most)[is_label].all()


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


# ---------------------------------------------------------------------------------------------------- configurations

COUNT = st.integers(1, 40)
VALID_VIT = {
    "num_hidden_layers": st.integers(1, 6),
    "intermediate_size": COUNT,
    "num_channels": COUNT,
    "layer_norm_eps": st.floats(0, 1),
    "drop_path_rate": st.floats(0, 0.99),
    "initializer_range": st.one_of(st.floats(0, 1), st.just(0)),
}
VALID = {
    "intermediate_size": COUNT,
    "num_pixel_encoder_layers": st.integers(1, 6),
    "num_pixel_encoder_heads": COUNT,
    "num_pixel_encoder_points": COUNT,
    "pixel_encoder_intermediate_size": COUNT,
    "num_group_norm_groups": COUNT,
    "num_decoder_blocks": COUNT,
    "num_decoder_layers": COUNT,
    "num_query_fusion_groups": COUNT,
    "mask_threshold": st.one_of(st.just(0), st.floats(0, 0.99)),
    "position_temperature": st.floats(1e-3, 1e6),
    "dropout": st.floats(0, 0.99),
    "class_weight": st.floats(0, 1e6),
    "mask_weight": st.integers(0, 9),
    "no_object_weight": st.floats(0, 1),
    "focal_alpha": st.floats(0, 1),
    "focal_gamma": st.floats(0, 9),
    "semantic_loss_ignore_index": st.sampled_from([255, -100, -1, 1000]),
}
NO_NUMBER = st.sampled_from(["1", None, [1], {}, True, math.nan, math.inf, -math.inf])
NO_COUNT = st.one_of(NO_NUMBER, st.integers(max_value=0), st.floats())
NO_FACTOR = st.one_of(NO_NUMBER, st.floats(max_value=-1e-300), st.integers(max_value=-1))
NO_SHARE = st.one_of(NO_FACTOR, st.floats(min_value=1.0001), st.integers(min_value=2))
COUNT_FIELDS = ["hidden_size", "num_attention_heads", "intermediate_size"]
INVALID_VIT = [(name, NO_COUNT) for name in (*COUNT_FIELDS, "num_hidden_layers", "patch_size", "num_channels")]
INVALID_VIT += [(name, NO_FACTOR) for name in ("layer_norm_eps", "initializer_range")]
INVALID_VIT += [("drop_path_rate", NO_SHARE), ("drop_path_rate", st.just(1))]
NO_SIZE = [0, -16, 17, [], [16], [16] * 3, [16, 0], [16.0, 16], "16", None]
INVALID_VIT += [("image_size", st.sampled_from(NO_SIZE))]
INVALID_VIT += [("out_indices", st.sampled_from([[], [1, 1], [2, 1], [99], [-99], ["1"], 1, "stage1", [1.0]]))]
INVALID = [(name, NO_COUNT) for name in COUNT_FIELDS]
INVALID += [(name, NO_COUNT) for name in VALID if name.startswith(("num_pixel_encoder_", "num_d", "num_q", "num_g"))]
INVALID += [(name, NO_COUNT) for name in ("pixel_encoder_intermediate_size", "num_labels")]
FACTOR_FIELDS = "class_weight mask_weight dice_weight no_object_weight focal_gamma initializer_range".split()
INVALID += [(name, NO_FACTOR) for name in (*FACTOR_FIELDS, "position_temperature")]
INVALID += [(name, NO_SHARE) for name in ("mask_threshold", "dropout", "focal_alpha")]
INVALID += [("semantic_loss_ignore_index", st.one_of(NO_NUMBER, st.integers(0, 2), st.floats()))]
INVALID += [("label_weights", st.sampled_from([[1, 1, -1], [1, 1, math.nan], [1, 1, math.inf], ["1"] * 3, 1, "111"]))]
INVALID += [
    ("palette", st.sampled_from([[[0, 0, 256]] * 3, [[0, 0]] * 3, [[0, 0, -1]] * 3, [[0.5] * 3] * 3, [0] * 3, 1]))
]
INVALID += [("id2label", st.sampled_from([{}, {1: "a"}, {0: "a", 2: "b"}, {0: 1}, {"x": "a"}, ["a"], "a", {0: None}]))]
INVALID += [("backbone_config", st.sampled_from([1, "vit", {"model_type": "nothing"}, {"patch_size": 0}]))]


@holds(
    60,
    vit=st.fixed_dictionaries({}, optional=VALID_VIT),
    values=st.fixed_dictionaries({}, optional=VALID),
    heads=st.integers(1, 5),
    side=st.one_of(st.integers(1, 5), st.tuples(st.integers(1, 5), st.integers(1, 5))),
    names=st.one_of(
        st.lists(st.text(max_size=5), min_size=1, max_size=5),
        st.integers(1, 5).map(lambda n: [f"LABEL_{i}" for i in range(n)]),
    ),
    colours=st.booleans(),
    data=st.data(),
)
def test_configuration_round_trip(vit, values, heads, side, names, colours, data):
    """Every valid configuration is accepted and is the same after JSON."""
    depth = vit.get("num_hidden_layers", 24)
    vit |= {"out_indices": sorted(data.draw(st.sets(st.integers(0, depth), min_size=1)))}
    image_size = [16 * s for s in side] if isinstance(side, tuple) else 16 * side
    backbone = QLSegViTConfig(hidden_size=8 * heads, num_attention_heads=heads, image_size=image_size, **vit)
    values |= {"hidden_size": 4 * heads, "num_attention_heads": heads, "id2label": dict(enumerate(names))}
    if colours:
        values |= {
            "palette": [[i, 0, 255] for i in range(len(names))],
            "label_weights": [1, 0.5, 2, 0, 1.0][: len(names)],
        }
    config = QLSegConfig(backbone_config=backbone, **values)
    text = config.to_json_string(use_diff=False)
    for written in (text, config.to_json_string()):
        again = QLSegConfig.from_dict(json.loads(written))
        assert again.to_json_string(use_diff=False) == text
        assert again.to_dict() == QLSegConfig.from_dict(again.to_dict()).to_dict()
    assert again.backbone_config.out_indices == vit["out_indices"] and again.num_labels == len(names)
    assert all(getattr(again, name) == value for name, value in values.items())


@holds(
    250,
    wrong=st.sampled_from([(QLSegViTConfig, *x) for x in INVALID_VIT] + [(QLSegConfig, *x) for x in INVALID]),
    data=st.data(),
)
def test_invalid_configurations_are_refused(wrong, data):
    """A value of a wrong type or range is an error of a sentence, by keyword and from JSON."""
    cls, name, strategy = wrong
    value = data.draw(strategy)
    assume(not (value is None and name in ("num_labels", "backbone_config")))  # not given
    others = (
        {"id2label": {0: "a", 1: "b", 2: "c"}} if cls is QLSegConfig and name not in ("id2label", "num_labels") else {}
    )
    for build in (lambda: cls(**others, **{name: value}), lambda: cls.from_dict(others | {name: value})):
        with pytest.raises((ValueError, StrictDataclassError)) as refused:
            build()
        # without names there are no labels; what is wrong with an encoder is said by its own class
        named = "num_labels" if name == "id2label" and not value else name if name != "backbone_config" else ""
        assert len(str(refused.value)) > 20 and named in str(refused.value)


NO_SETTING = {
    "size": [
        0,
        -5,
        {"shortest_edge": -5},
        {"height": 0, "width": 3},
        {"shortest_edge": 4, "longest_edge": 8},
        "x",
        3.5,
    ]
    + [{"shortest_edge": 3.5}, {"height": 3}, {}, {"height": -1, "width": 2}, [1, 2, 3]],
    "window_size": [0, -1, "a", 3.5, True, [8]],
    "window_stride": [0, -1, "a", 3.5, 641, False],
    "rescale_factor": [math.nan, math.inf, "a", [1.0], True],
    "image_mean": [[0.5] * 2, [0.5] * 4, [], "a", [math.nan] * 3, math.inf, [None] * 3],
    "image_std": [0, 0.0, [0.5, 0.5, 0], -1, [0.5] * 2, math.nan, "a"],
    "ignore_index": [2.5, "a", True, [255]],
    "label_map": [{0: "a"}, {0: 1.5}, {"x": 1}, {0.5: 1}, {0: None}, {None: 0}, [1, 2], "a"],
    "do_resize": ["yes", 1, 0.5],
    "do_rescale": ["yes", 1],
    "do_normalize": ["yes", 1],
    "do_sliding_window": ["yes", 1],
    "do_reduce_labels": ["yes", 1],
}


@holds(80, wrong=st.sampled_from([(name, value) for name, values in NO_SETTING.items() for value in values]))
def test_invalid_processor_settings_are_refused(wrong):
    name, value = wrong
    picture = np.zeros((4, 4, 3), np.uint8)
    processor = QLSegImageProcessor()
    for build in (lambda: QLSegImageProcessor(**{name: value}), lambda: processor(picture, **{name: value})):
        with pytest.raises(ValueError, match=name.removeprefix("do_") if name != "size" else "size|height"):
            build()


@holds(
    60,
    size=st.one_of(st.integers(1, 999), st.tuples(st.integers(1, 999), st.integers(1, 999))),
    window=windows(999),
    numbers=st.lists(st.one_of(st.floats(0.01, 9), st.integers(1, 9)), min_size=3, max_size=3),
    switches=st.lists(st.booleans(), min_size=5, max_size=5),
    ignore=st.integers(-300, 300),
    label_map=st.one_of(st.none(), st.dictionaries(st.integers(-300, 300), st.integers(-300, 300), max_size=4)),
)
def test_processor_round_trip(size, window, numbers, switches, ignore, label_map):
    names = ("do_resize", "do_sliding_window", "do_rescale", "do_normalize", "do_reduce_labels")
    assume(not (switches[4] and ignore == 0))
    processor = QLSegImageProcessor(
        size={"height": size[0], "width": size[1]} if isinstance(size, tuple) else {"shortest_edge": size},
        window_size=window[0],
        window_stride=window[1],
        image_mean=numbers,
        image_std=numbers[0],
        rescale_factor=numbers[1],
        ignore_index=ignore,
        label_map=label_map,
        **dict(zip(names, switches)),
    )
    again = QLSegImageProcessor.from_dict(json.loads(processor.to_json_string()))
    assert again.to_json_string() == processor.to_json_string()
    for name in processor._valid_kwargs_names:
        assert getattr(again, name) == getattr(processor, name), name
