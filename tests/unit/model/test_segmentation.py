"""`segment` and the pipeline: one inference path for single pictures, lists, scales and flips."""

import os

import numpy as np
import pytest
import torch
from networks import tiny_model_and_processor
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, pipeline
from transformers.pipelines import ImageSegmentationPipeline

from qlseg_hf import RELEASES, QLSegImageProcessor, QLSegImageSegmentationPipeline, load_picture, segment
from qlseg_hf.hub.card import processor_sentence
from qlseg_hf.hub.results import inference_protocol
from qlseg_hf.model import windows
from qlseg_hf.model.image_io import resize_picture
from qlseg_hf.model.windows import Run, Window, window_layout, window_starts


def label_map_of(segments: list[dict], label2id: dict[str, int]) -> np.ndarray:
    """Join the masks of a pipeline's answer; every pixel must have exactly one label."""
    label_map = np.full(segments[0]["mask"].size[::-1], -1)
    for part in segments:
        mask = np.asarray(part["mask"])
        assert part["mask"].mode == "L" and set(np.unique(mask)) <= {0, 255}
        assert (label_map[mask > 0] == -1).all()
        label_map[mask > 0] = label2id[part["label"]]
    assert (label_map >= 0).all()
    return label_map


def slow_segment(model, processor, path, scales, flip):
    """The text of the specification, one window at a time, without any sharing."""
    picture = load_picture(path)
    total = 0
    for scale in scales:
        for is_flipped in (False, True) if flip else (False,):
            short = max(int(processor.size.shortest_edge * scale), processor.window_size)
            factor = short / min(picture.shape[:2])
            size = tuple(int(side * factor + 0.5) for side in picture.shape[:2])
            pixels = processor.normalized(resize_picture(picture, size))[None]
            pixels = pixels.flip(-1) if is_flipped else pixels
            plane, count = torch.zeros(model.config.num_labels, *size), torch.zeros(size)
            window = processor.window_size
            for top in window_starts(size[0], window, processor.window_stride):
                for left in window_starts(size[1], window, processor.window_stride):
                    place = (slice(top, top + window), slice(left, left + window))
                    plane[(slice(None), *place)] += model(pixels[(..., *place)]).logits[0]
                    count[place] += 1
            plane = (plane / count).flip(-1) if is_flipped else plane / count
            plane = torch.nn.functional.interpolate(plane[None], size=picture.shape[:2], mode="bilinear")[0]
            total = total + (plane.softmax(dim=0) if len(scales) > 1 or flip else plane)
    return total / (len(scales) * (2 if flip else 1))


@pytest.mark.parametrize(
    "scales, flip", [((1.0,), False), ((1.0,), True), ((0.5, 1, 1.3), False), ((1.75, 0.5), True)]
)
@torch.no_grad()
def test_against_slow_implementation(stored, scales, flip):
    model = stored.model().eval()
    expected = slow_segment(model, stored.processor, stored.picture("tall"), scales, flip)
    maps, scores = segment(
        model,
        stored.processor,
        stored.picture("tall"),
        scales=scales,
        flip=flip,
        window_batch_size=3,
        return_scores=True,
    )
    torch.testing.assert_close(scores[0], expected, atol=1e-5, rtol=0)
    assert (maps[0] == expected.argmax(dim=0)).float().mean() > 0.999


def test_lists_of_mixed_sizes(stored):
    """Windows of several pictures share forwards, whatever the batch size."""
    model, calls = stored.model(), []
    model.register_forward_hook(
        lambda module, args, kwargs, output: calls.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    names = ["wide", "tall", "large", "wide"]
    alone = [segment(model, stored.processor, stored.picture(name), window_batch_size=1)[0] for name in names]
    assert set(calls) == {1}
    num_windows, calls[:] = len(calls), []
    together = segment(model, stored.processor, [stored.picture(name) for name in names], window_batch_size=5)
    assert calls[:-1] == [5] * (-(-num_windows // 5) - 1) and sum(calls) == num_windows
    for found, expected in zip(together, alone):
        assert torch.equal(found, expected)


def test_inputs_of_every_kind(stored):
    model, path = stored.model(), stored.picture("wide")
    expected = segment(model, stored.processor, path)[0]
    picture = Image.open(path)
    array = np.asarray(picture)
    for given in (str(path), picture, array, torch.from_numpy(array.copy()), [path], array[None]):
        assert torch.equal(segment(model, stored.processor, given)[0], expected)


def test_twelve_megapixels(stored):
    label_map = segment(stored.model(), stored.processor, Image.new("RGB", (4000, 3000), "green"))[0]
    assert label_map.shape == (3000, 4000)


def test_without_windows_and_without_resizing(stored):
    model = stored.model()
    whole = QLSegImageProcessor(**stored.processor.to_dict() | {"do_sliding_window": False})
    small = QLSegImageProcessor(**stored.processor.to_dict() | {"do_resize": False})
    picture = np.random.default_rng(0).integers(0, 256, (50, 41, 3), dtype=np.uint8)
    assert segment(model, whole, stored.picture("large"))[0].shape == load_picture(stored.picture("large")).shape[:2]
    assert segment(model, small, picture)[0].shape == (50, 41)  # smaller than a window


def test_model_mode_is_kept(stored):
    model = stored.model().train()
    first = segment(model, stored.processor, stored.picture("wide"))[0]
    assert model.training
    assert torch.equal(first, segment(model, stored.processor, stored.picture("wide"))[0])  # no dropout


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["class_head.bias", "decoder.blocks.1.branches.0.1.cross_attn.q_proj.bias"])
def test_a_network_that_gives_no_numbers_is_told(wrong, part):
    """Of damaged weights, or of float16 that overflows: every label was 0."""
    model, processor = tiny_model_and_processor()
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    model.get_parameter(part).data[3] = wrong
    with pytest.raises(ValueError, match="the network gives NaN or infinite numbers in float32"):
        segment(model, processor, picture)
    with torch.no_grad():
        outputs = model(**processor(picture, return_tensors="pt"))
    with pytest.raises(ValueError, match="the logits hold NaN"):
        processor.post_process_semantic_segmentation(outputs)


# ------------------------------------------------------------------------------------- settings, limits and arguments

STRIP = np.random.default_rng(0).integers(0, 256, (32, 170, 3), dtype=np.uint8)


def small_processor(**settings) -> QLSegImageProcessor:
    return QLSegImageProcessor(**({"size": {"shortest_edge": 32}, "window_size": 32, "window_stride": 20} | settings))


PATHS = {
    "processor": lambda model, processor: processor(STRIP),
    "segment": lambda model, processor: segment(model, processor, STRIP),
    "pipeline": lambda model, processor: QLSegImageSegmentationPipeline(model, image_processor=processor)(STRIP),
    "saving": lambda model, processor: processor.save_pretrained(os.devnull),
    "size": lambda model, processor: processor.resized_size(32, 170),
    "pixels": lambda model, processor: processor.normalized(torch.zeros(3, 2, 2)),
    "labels": lambda model, processor: processor.reduce_labels(torch.zeros(2, 2)),
    "card": lambda model, processor: processor_sentence(processor),
    "protocol": lambda model, processor: inference_protocol(processor),
}


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("window_size", 16, r"window_stride 20 must be 1..window_size \(16\)"),
        ("window_stride", 200, r"window_stride 200 must be 1..window_size \(32\)"),
        ("window_stride", 0, "window_stride 0 must be"),
        ("window_stride", -3, "window_stride -3 must be"),
        ("window_stride", None, "do_sliding_window needs window_stride, which is None"),
        ("window_size", -1, "window_size is -1; it must be at least 1 pixel"),
        ("window_size", 48.0, "Field 'window_size' is 48.0; int . None is wanted"),
        ("window_size", True, "Field 'window_size' is True"),
        ("window_size", 10**400, "window_size is 10*[.]{3}0*; it must be at least 1 pixel, at most"),
        ("size", {"shortest_edge": 0}, "size must be whole pixels"),
        ("size", {"shortest_edge": float("nan")}, "Field 'size' is {'shortest_edge': nan}"),
        ("size", {"shortest_edge": True}, "Field 'size'"),
        ("size", {"height": 32}, "size must be {'shortest_edge': s} or"),
        ("size", {"longest_edge": 32}, "size must be {'shortest_edge': s} or"),
        ("size", {}, "size must be {'shortest_edge': s} or"),
        ("do_sliding_window", "no", "Field 'do_sliding_window' is 'no'"),
        ("image_mean", [0.5, 0.5], "both must have one entry per band"),
        ("image_mean", [0.5, 0.5, float("nan")], "image_mean is .0.5, 0.5, nan.; one finite number per band"),
        ("image_std", 1e-300, "image_std is 1e-300; pixels are divided by it"),
        ("rescale_factor", 0, "rescale_factor is 0; pixels are multiplied by it"),
        ("ignore_index", "255", "Field 'ignore_index' is '255'"),
        ("label_mapping", {True: 1}, "label_mapping must be .stored value: label. of integers"),
        ("label_mapping", {"1": 2, 1: 3}, "label_mapping names a stored value twice"),
    ],
)
def test_settings_set_afterwards_are_checked(tiny_model, name, value, message):
    """By every path. Pixels between windows were 0/0: NaN scores and label 0, without a word."""
    processor = small_processor()
    setattr(processor, name, value)
    for path, call in PATHS.items():
        with pytest.raises(ValueError, match=message):
            pytest.fail(f"{path} gave {call(tiny_model, processor)}")


@pytest.mark.parametrize(
    "settings",
    [
        {"window_size": 48, "window_stride": 9},
        {"window_size": 20},
        {"window_size": 70},
        {"size": {"shortest_edge": 24}},  # ended in AttributeError
        {"size": 24},
        {"size": {"height": 40, "width": 17}},
        {"image_mean": [0.4, 0.5, 0.6], "image_std": 0.3},
        {"do_sliding_window": None, "window_size": None, "window_stride": None},
        {"label_mapping": {"0": 3}},
    ],
)
def test_settings_set_afterwards_work(tiny_model, settings, tmp_path):
    """As if they had been given to the constructor, and saved the same."""
    changed, expected = small_processor(), small_processor(**settings)
    for name, value in settings.items():
        setattr(changed, name, value)
    assert changed.settings() == expected.settings()
    found = segment(tiny_model, changed, STRIP, scales=(1, 0.5), return_scores=True)
    for a, b in zip(found, segment(tiny_model, expected, STRIP, scales=(1, 0.5), return_scores=True)):
        assert torch.equal(a[0], b[0]) and a[0].isfinite().all()
    assert np.array_equal(changed(STRIP)["pixel_values"], expected(STRIP)["pixel_values"])
    changed.save_pretrained(tmp_path)
    assert QLSegImageProcessor.from_pretrained(tmp_path).settings() == expected.settings()


def test_settings_are_a_snapshot():
    processor = small_processor(label_mapping={1: 2})
    settings = processor.settings()
    processor.size.shortest_edge, processor.label_mapping[1], processor.window_size = 7, 7, 7
    assert settings == small_processor(label_mapping={1: 2}).settings()
    with pytest.raises(AttributeError):
        settings.window_size = 7


def test_a_pixel_without_a_window_is_an_error():
    """Whatever the windows come from, nothing divides by zero."""
    window = Window((0, 4), (0, 4), False, None, torch.rand(2, 2), torch.rand(2, 2, 2))
    for columns in ((0, 6), (5, 6)):
        with pytest.raises(ValueError, match="leave pixels without scores"):
            Run((4, 6), 1.0, [window]).scores((0, 4), columns)


@pytest.mark.parametrize("size", [(5000, 1), (1, 200), (3, 4000)])
@pytest.mark.parametrize("settings", [{}, {"do_sliding_window": False}, {"window_size": 10**9}])
def test_strips_of_pixels_are_refused(tiny_model, size, settings):
    """1 x 200 pixels become 512 x 102400; with 5000 x 1 the tiny network took 80 s."""
    processor = QLSegImageProcessor(**({"size": 512, "window_size": 512, "window_stride": 341} | settings))
    pipe = QLSegImageSegmentationPipeline(tiny_model, image_processor=processor)
    tiny_model.forward = None  # nothing is forwarded
    sentence = (
        rf"^a picture of {size[0]} x {size[1]} pixels, resized to .* windows, and max_windows=auto allows 1[23]."
    )
    sentence += r"; crop the picture, .* or raise max_windows \(None: no limit\)"
    for call in (pipe, lambda strip: segment(tiny_model, processor, strip)):
        with pytest.raises(ValueError, match=sentence):
            call(np.zeros((*size, 3), np.uint8))


def test_limit_of_windows(tiny_model):
    pipe = QLSegImageSegmentationPipeline(tiny_model, image_processor=small_processor())
    strip = np.zeros((1, 90, 3), np.uint8)  # 144 windows, 128 are allowed
    with pytest.raises(ValueError, match="144 windows, and max_windows=auto allows 128"):
        pipe(strip)
    assert pipe(strip, max_windows=None)[0]["mask"].size == pipe(strip, max_windows=144)[0]["mask"].size == (90, 1)
    with pytest.raises(ValueError, match="has 144 windows, and max_windows=143; crop"):
        segment(tiny_model, small_processor(), strip, max_windows=143)
    with pytest.raises(ValueError, match="max_windows=auto allows 512"):  # 128 per scale and flip
        segment(tiny_model, small_processor(), np.zeros((1, 120, 3), np.uint8), scales=(1, 1.75), flip=True)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("size", [(3000, 4000), (500, 10000), (100, 2000), (1, 1), (16, 200), (12000, 9000)])
def test_normal_pictures_are_within_the_limit(release, size):
    settings = QLSegImageProcessor.for_release(release).settings()
    assert window_layout(settings, size, [0.5, 0.75, 1.0, 1.25, 1.5, 1.75], True, "auto")
    if size[0] > 1000:
        settings = QLSegImageProcessor.for_release(release, do_resize=False).settings()
        assert window_layout(settings, size, [0.5, 0.75, 1.0, 1.25, 1.5, 1.75], True, "auto")


def test_pixels_resized_together_are_bounded(tiny_model, monkeypatch):
    """Memory of the resized picture: not all of it at once, and the result is the same."""
    picture = np.random.default_rng(0).integers(0, 256, (40, 200, 3), dtype=np.uint8)
    processor, sizes = small_processor(do_resize=False), []

    def resize(picture, size, rows, columns):
        sizes.append((rows.stop - rows.start) * (columns.stop - columns.start))
        return resize_picture(picture, size, rows, columns)

    monkeypatch.setattr(windows, "resize_picture", resize)
    expected = segment(tiny_model, processor, picture, scales=(1.3, 1), flip=True, return_scores=True)
    assert len(sizes) == 2
    monkeypatch.setattr(windows, "RESIZED_PIXELS", 2500)
    sizes.clear()
    found = segment(tiny_model, processor, picture, scales=(1.3, 1), flip=True, return_scores=True)
    assert len(sizes) > 10 and max(sizes) <= 2500
    assert torch.equal(found[0][0], expected[0][0]) and torch.equal(found[1][0], expected[1][0])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"scales": "1"}, "scales must be positive numbers.* got .'1'."),
        ({"scales": b"1"}, "scales must be positive numbers"),
        ({"scales": [1, "1"]}, "scales must be positive numbers"),
        ({"scales": True}, "scales must be positive numbers"),
        ({"scales": None}, "scales must be positive numbers"),
        ({"scales": 0}, "scales must be positive numbers"),
        ({"scales": 1e308}, "scales must be positive numbers up to 1000"),
        ({"scales": (1, float("inf"))}, "scales must be positive numbers"),
        ({"scales": ()}, "scales must be positive numbers"),
        ({"flip": "no"}, "flip must be True or False; got 'no'"),
        ({"flip": None}, "flip must be True or False; got None"),
        ({"return_scores": "no"}, "return_scores must be True or False; got 'no'"),
        ({"window_batch_size": True}, "window_batch_size is True; it must be at least 1, a whole number"),
        ({"window_batch_size": 2.5}, "window_batch_size is 2.5; it must"),
        ({"window_batch_size": 0}, "window_batch_size is 0; it must"),
        ({"window_batch_size": "2"}, "window_batch_size is '2'; it must"),
        ({"max_memory_mb": "2"}, "max_memory_mb is '2'; a number of MiB above 0 is wanted"),
        ({"max_memory_mb": True}, "max_memory_mb is True"),
        ({"max_memory_mb": float("nan")}, "max_memory_mb is nan"),
        ({"max_memory_mb": 0}, "max_memory_mb is 0"),
        ({"max_windows": 0}, "max_windows is 0; it must be at least 1, a whole number"),
        ({"max_windows": "many"}, "max_windows is 'many'; it must"),
        ({"labels": 1.0}, "labels must be names or whole numbers; got .1.0."),
        ({"labels": [True]}, "labels must be names or whole numbers; got .True."),
        ({"labels": b"sky"}, "labels must be names or whole numbers; got .b'sky'."),
        ({"images": [None]}, "got NoneType"),
        ({"images": b"abc"}, "a file of 3 bytes cannot be read as a picture"),
        ({"images": {"image": STRIP}}, "a picture must be .* got dict"),
        ({"processor": object()}, "processor must be a QLSegImageProcessor; got object"),
    ],
)
def test_wrong_arguments(tiny_model, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        segment(**({"model": tiny_model, "processor": small_processor(), "images": STRIP} | arguments))


def test_arguments_of_every_kind(tiny_model):
    processor = small_processor()
    expected = segment(tiny_model, processor, STRIP, scales=(1.5,))
    for scales in (1.5, np.float32(1.5), np.array([1.5]), torch.tensor(1.5), (scale for scale in [1.5])):
        assert torch.equal(segment(tiny_model, processor, STRIP, scales=scales)[0], expected[0])
    seen = []

    def pictures():
        for width in (170, 90):
            seen.append(width)
            yield STRIP[:, :width]

    for images in (pictures(), {1: STRIP, 2: STRIP[:, :90]}.values(), map(load_picture, [STRIP, STRIP[:, :90]])):
        assert [m.shape[1] for m in segment(tiny_model, processor, images, window_batch_size=np.int64(3))] == [170, 90]
    assert seen == [170, 90]
    assert segment(tiny_model, processor, []) == segment(tiny_model, processor, iter([])) == []
    assert segment(tiny_model, processor, STRIP, labels=np.int64(3), flip=np.bool_(True))[0].unique().tolist() == [3]


def test_misspelt_keywords_of_the_pipeline(tiny_model):
    """The stock pipeline drops what it does not know."""
    pipe = QLSegImageSegmentationPipeline(tiny_model, image_processor=small_processor())
    for keywords, message in (({"flips": True}, "did you mean flip"), ({"foo": 1}, "it has scales, flip")):
        with pytest.raises(TypeError, match=f"the pipeline has no keyword .*; {message}"):
            pipe(STRIP, **keywords)
        with pytest.raises(TypeError, match="the pipeline has no keyword"):
            QLSegImageSegmentationPipeline(tiny_model, image_processor=small_processor(), **keywords)
    assert pipe(Image.fromarray(STRIP), threshold=0.5, timeout=3, batch_size=1) and pipe([]) == []


# ----------------------------------------------------------------------------------------------------------- pipeline


def test_pipeline_equals_segment(stored):
    pipe = pipeline("image-segmentation", model=str(stored.folder))
    assert isinstance(pipe, QLSegImageSegmentationPipeline)
    for name in ("wide", "tall", "large"):
        segments = pipe(str(stored.picture(name)))
        assert {tuple(part) for part in map(sorted, segments)} == {("label", "mask", "score")}
        expected = segment(pipe.model, stored.processor, stored.picture(name))[0]
        assert np.array_equal(label_map_of(segments, pipe.model.config.label2id), expected.numpy())


def test_pipeline_inputs(stored):
    pipe = pipeline("image-segmentation", model=str(stored.folder))
    deep = Image.fromarray((np.arange(60 * 50, dtype=np.uint16) * 20).reshape(60, 50))  # stock pipelines see white
    expected = label_map_of(pipe(load_picture(deep)), pipe.model.config.label2id)
    assert np.array_equal(label_map_of(pipe(deep), pipe.model.config.label2id), expected)
    assert pipe(Image.new("L", (1, 1)))[0]["mask"].size == (1, 1)
    assert [part[0]["mask"].size for part in pipe([Image.new("P", (7, 5))] * 2, batch_size=2)] == [(7, 5)] * 2
    with pytest.raises(ValueError, match="subtask 'panoptic' is not available"):
        pipe(Image.new("L", (4, 4)), subtask="panoptic")


def test_pipeline_takes_scales_and_flip(stored):
    pipe = pipeline("image-segmentation", model=str(stored.folder), scales=(1, 1.5), flip=True)
    expected = segment(pipe.model, stored.processor, stored.picture("wide"), scales=(1, 1.5), flip=True)[0]
    found = label_map_of(pipe(str(stored.picture("wide"))), pipe.model.config.label2id)
    assert np.array_equal(found, expected.numpy())


def test_stock_pipeline_class_agrees(stored):
    """Where our class is not used, windows travel through processor, model and post-processing."""
    stock = ImageSegmentationPipeline(stored.model().eval(), image_processor=stored.processor)
    ours = pipeline("image-segmentation", model=str(stored.folder))
    label2id = ours.model.config.label2id
    path = str(stored.picture("large"))
    assert np.array_equal(label_map_of(stock(path), label2id), label_map_of(ours(path), label2id))


def test_other_models_keep_the_stock_pipeline():
    from transformers import SegformerImageProcessorPil

    tiny = SegformerConfig(num_labels=3, depths=[1] * 4, hidden_sizes=[8] * 4, decoder_hidden_size=8)
    processor = SegformerImageProcessorPil(size={"height": 64, "width": 64})
    pipe = pipeline("image-segmentation", model=SegformerForSemanticSegmentation(tiny), image_processor=processor)
    assert type(pipe) is ImageSegmentationPipeline
    assert pipe(Image.new("RGB", (20, 30)))[0]["mask"].size == (20, 30)
