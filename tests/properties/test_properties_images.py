"""Properties of images before and after the network: windows, files, arrays, label rules."""

import io
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, example
from hypothesis import strategies as st
from networks import tiny_config
from PIL import Image
from properties import SEEDS, SIZES, holds, windows
from torch.nn import functional as F

from qlseg_hf import QLSegImageProcessor, load_label_map, load_picture
from qlseg_hf.data.augmentation import resize_sample
from qlseg_hf.model.image_files import NEARLY_BLACK
from qlseg_hf.model.image_io import resize_picture
from qlseg_hf.model.memory import MemoryPlan
from qlseg_hf.model.windows import window_layout, window_starts


def random_picture(size, seed, high=256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, (*size, 3), dtype=np.uint8)


# --------------------------------------------------------------------------------------------------------- windows


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
    assert np.array_equal(resize_sample(picture, new), expected)
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
@example(shape=(4, 4), kind="<u2", high=255, low=0, seed=0)  # refused, as it would be black
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
    is_dark = in_range and wide and values.size > 0 and 0 < values.max() < 256 * NEARLY_BLACK  # in place of 8 bits
    if is_dark or not (in_range and values.size and (len(shape) == 2 or channels_first or channels_last)):
        with pytest.raises(ValueError, match="picture|read as black"):
            load_picture(given)
        return
    expected = values * 255 if is_bool else values >> 8 if wide else values
    expected = expected[..., None] if len(shape) == 2 else np.moveaxis(expected, 0, -1) if channels_first else expected
    expected = expected[..., :1] if expected.shape[-1] < 3 else expected[..., :3]
    assert np.array_equal(load_picture(given), np.broadcast_to(expected, (*expected.shape[:2], 3)))


# ---------------------------------------------------------------------------------------------------------- labels


@holds(
    100,
    label_mapping=st.one_of(st.none(), st.dictionaries(st.integers(-2, 9), st.integers(-2, 9), max_size=5)),
    reduce=st.booleans(),
    ignore=st.sampled_from([255, -100, 9, 3, 0]),
    seed=SEEDS,
)
def test_label_rules_pixel_by_pixel(label_mapping, reduce, ignore, seed):
    assume(not (reduce and ignore == 0))
    processor = QLSegImageProcessor(label_mapping=label_mapping, do_reduce_labels=reduce, ignore_index=ignore)
    again = QLSegImageProcessor(**json.loads(processor.to_json_string()))
    stored = np.random.default_rng(seed).choice([-2, -1, *range(10), 255, -100], (5, 7))
    expected = []
    for value in stored.flat:
        label = (label_mapping or {}).get(value, value)
        if reduce:
            label = ignore if label in (0, ignore) else label - 1
        expected.append(label)
    for p in (processor, again):
        assert p.reduce_labels(torch.from_numpy(stored)).flatten().tolist() == expected
