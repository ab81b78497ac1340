"""`segment` and the pipeline: one inference path for single pictures, lists, scales and flips."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, pipeline
from transformers.pipelines import ImageSegmentationPipeline

from qlseg_hf import QLSegImageProcessor, QLSegImageSegmentationPipeline, load_picture, segment
from qlseg_hf.model.image_io import resize_picture
from qlseg_hf.model.image_processing_qlseg import window_starts


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


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (97, 3), (16, 200)])
def test_extreme_sizes(stored, size):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    label_map = segment(stored.model(), stored.processor, picture)[0]
    assert label_map.shape == size and label_map.dtype == torch.int64
    assert 0 <= label_map.min() and label_map.max() < stored.numbers["num_labels"]


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


def test_wrong_input(stored):
    model = stored.model().train()
    for wrong in ({"scales": ()}, {"scales": (0,)}, {"scales": (1, float("inf"))}, {"window_batch_size": 0}):
        with pytest.raises(ValueError, match="scales must be positive|must be at least 1"):
            segment(model, stored.processor, stored.picture("wide"), **wrong)
    with pytest.raises(TypeError, match="got NoneType"):
        segment(model, stored.processor, [None])
    assert model.training


# ----------------------------------------------------------------------------------------------------------- pipeline


def test_pipeline_equals_segment(stored):
    pipe = pipeline("image-segmentation", model=str(stored.folder))
    assert isinstance(pipe, QLSegImageSegmentationPipeline)
    for name in ("wide", "tall", "large"):
        segments = pipe(str(stored.picture(name)))
        assert {tuple(part) for part in map(sorted, segments)} == {("label", "mask", "score")}
        expected = segment(pipe.model, stored.processor, stored.picture(name))[0]
        assert np.array_equal(label_map_of(segments, pipe.model.config.label2id), expected.numpy())


def test_pipeline_batches_mixed_sizes(stored):
    """EoMT's pipeline in transformers 5.23 crashes here."""
    pipe = pipeline("image-segmentation", model=str(stored.folder))
    pictures = [str(stored.picture(name)) for name in ("wide", "tall", "large", "wide", "tall")]
    together = pipe(pictures, batch_size=4)
    assert len(together) == 5
    for found, picture in zip(together, pictures):
        alone = pipe(picture)
        assert [part["label"] for part in found] == [part["label"] for part in alone]
        assert all(np.array_equal(a["mask"], b["mask"]) for a, b in zip(found, alone))


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
