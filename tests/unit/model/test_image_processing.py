"""Resizing, windows, label rules, post-processing."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT
from digests import digest
from packaging.version import Version
from transformers import AutoImageProcessor
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import is_torchvision_available

from qlseg_hf import QLSegImageProcessor, load_picture
from qlseg_hf.model.image_io import resize_picture
from qlseg_hf.model.modeling_qlseg import QLSegOutput
from qlseg_hf.model.processor_settings import short_side_size
from qlseg_hf.model.windows import average_logits, window_starts

RAMP = np.arange(24 * 30 * 3, dtype=np.uint8).reshape(24, 30, 3)


# ------------------------------------------------------------------------------------------------- sizes and windows


@pytest.mark.parametrize(
    "length, window, stride, starts",
    [
        (640, 640, 608, [0]),
        (641, 640, 608, [0, 1]),
        (1248, 640, 608, [0, 608]),
        (1249, 640, 608, [0, 608, 609]),
        (853, 512, 341, [0, 341]),
        (854, 512, 341, [0, 341, 342]),
        (30, 640, 608, [0]),
    ],
)
def test_window_starts(length, window, stride, starts):
    assert window_starts(length, window, stride) == starts


def test_average_divides_by_coverage():
    torch.manual_seed(0)
    plane = torch.randn(3, 40, 23)
    places = [(top, left) for top in window_starts(40, 16, 11) for left in window_starts(23, 16, 11)]
    logits = torch.stack([plane[:, top : top + 16, left : left + 16] for top, left in places])
    kept = logits.clone()
    (found,) = average_logits(logits, torch.tensor([[0, *place, 40, 23] for place in places]))
    torch.testing.assert_close(found, plane)
    assert torch.equal(logits, kept)


def test_short_side_size():
    assert short_side_size(480, 640, 512) == (512, 683)  # 682.67, half up
    assert short_side_size(1, 1, 640) == (640, 640)
    assert short_side_size(3000, 4000, 640) == (640, 853)


def test_scales_never_fall_below_the_window():
    processor = QLSegImageProcessor.for_release("vit-l-pascal-context-59")
    short = [min(processor.resized_size(500, 700, scale=scale)) for scale in (0.5, 0.75, 1, 1.25, 1.5, 1.75)]
    assert short == [480, 480, 520, 650, 780, 910]


@pytest.mark.parametrize(
    "old, new", [((7, 9), (20, 33)), ((64, 48), (20, 15)), ((1, 50), (16, 800)), ((32, 32), (16, 16))]
)
def test_resize_near_exact_arithmetic(old, new):
    """Integer arithmetic stays within one grey level of exact bilinear interpolation."""
    picture = np.random.default_rng(0).integers(0, 256, (*old, 3), dtype=np.uint8)
    exact = torch.nn.functional.interpolate(
        torch.from_numpy(picture).permute(2, 0, 1)[None].double(), size=new, mode="bilinear"
    )[0]
    assert (resize_picture(picture, new).double() - exact).abs().max() <= 1


# --------------------------------------------------------------------------------------------------------- processor


def test_processor_windows(stored):
    picture = load_picture(stored.picture("large"))
    processor = stored.processor
    features = processor(picture, return_tensors="pt")
    height, width = processor.resized_size(*picture.shape[:2])
    window, stride = processor.window_size, processor.window_stride
    starts = [
        (t, left) for t in window_starts(height, window, stride) for left in window_starts(width, window, stride)
    ]
    assert features["pixel_values"].shape == (len(starts), 3, window, window)
    assert features["window_offsets"].tolist() == [[0, t, left, height, width] for t, left in starts]
    whole = processor.normalized(resize_picture(picture, (height, width)))
    for pixels, (top, left) in zip(features["pixel_values"], starts):
        assert torch.equal(pixels, whole[:, top : top + window, left : left + window])


def test_processor_post_process(stored):
    """The line of the design: processor, model, post-processing."""
    from qlseg_hf import segment

    model, processor = stored.model().eval(), stored.processor
    pictures = [stored.picture("wide"), stored.picture("large")]
    sizes = [load_picture(picture).shape[:2] for picture in pictures]
    with torch.no_grad():
        outputs = model(**processor(pictures, return_tensors="pt"))
    maps = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
    for found, expected in zip(maps, segment(model, processor, pictures)):
        assert found.dtype == torch.int64 and torch.equal(found, expected)
    resized = processor.post_process_semantic_segmentation(outputs)
    assert tuple(resized[0].shape) == processor.resized_size(*sizes[0])
    with pytest.raises(ValueError, match="1 target sizes for 2 pictures"):
        processor.post_process_semantic_segmentation(outputs, target_sizes=sizes[:1])
    with pytest.raises(ValueError, match="use model.eval"):
        outputs["logits"] = None
        processor.post_process_semantic_segmentation(type(outputs)(class_queries_logits=torch.zeros(1)))


@pytest.mark.parametrize("stored", ["a"], indirect=True)
def test_processor_gives_scores(stored):
    """As the processors of transformers: with `return_segmentation_scores` what the labels are the best of."""
    model, processor, pictures = stored.model().eval(), stored.processor, [stored.picture("wide")]
    with torch.no_grad():
        outputs = model(**processor(pictures, return_tensors="pt"))
    for target_sizes in (None, [(31, 47)]):
        (expected,) = processor.post_process_semantic_segmentation(outputs, target_sizes)
        (found,) = processor.post_process_semantic_segmentation(outputs, target_sizes, return_segmentation_scores=True)
        assert torch.equal(found.segmentation, expected)
        assert found.segmentation_scores.shape == (model.config.num_labels, *expected.shape)
        best = found.segmentation_scores.amax(dim=0)
        chosen = found.segmentation_scores.gather(0, expected[None])[0]
        torch.testing.assert_close(chosen, best, atol=1e-6, rtol=0)


def test_processor_takes_outputs_of_other_classes():
    """Whole pictures need `logits` alone, so an output that knows no windows will do."""
    logits = torch.randn(2, 5, 8, 12)
    maps = QLSegImageProcessor().post_process_semantic_segmentation(SemanticSegmenterOutput(logits=logits))
    assert torch.equal(torch.stack(maps), logits.argmax(dim=1))


def windows_of(*sizes: tuple[int, int]) -> tuple[QLSegImageProcessor, torch.Tensor, torch.Tensor]:
    """A processor, scores (windows, 3, 16, 16) and the window_offsets of pictures of these sizes."""
    processor = QLSegImageProcessor(do_resize=False, window_size=16, window_stride=11)
    features = processor([np.zeros((*size, 3), np.uint8) for size in sizes], return_tensors="pt")
    torch.manual_seed(0)
    return processor, torch.randn(len(features["window_offsets"]), 3, 16, 16), features["window_offsets"]


def test_missing_window_offsets_are_named():
    """It said "1 target sizes for 2 pictures" to someone with one picture."""
    processor, logits, offsets = windows_of((16, 27))
    post_process = processor.post_process_semantic_segmentation
    with pytest.raises(ValueError, match="1 target sizes for 2 pictures; the output has no window_offsets"):
        post_process(QLSegOutput(logits=logits), target_sizes=[(16, 27)])
    processor.do_sliding_window = False
    with pytest.raises(ValueError, match="1 target sizes for 2 pictures; give one per picture"):
        post_process(QLSegOutput(logits=logits), target_sizes=[(16, 27)])
    assert post_process(QLSegOutput(logits=logits, window_offsets=offsets), [(16, 27)])[0].shape == (16, 27)


def test_windows_that_are_missing_or_given_twice_are_refused():
    """Pixels without a window were 0/0, or counted as seen; windows of two calls were averaged into one picture."""
    processor, logits, offsets = windows_of((27, 27), (16, 27), (16, 16))

    def post_process(rows: list[int], logits=logits, offsets=offsets):
        output = QLSegOutput(logits=logits[rows], window_offsets=offsets[rows])
        return processor.post_process_semantic_segmentation(output)

    assert [tuple(m.shape) for m in post_process(list(range(7)))] == [(27, 27), (16, 27), (16, 16)]
    assert torch.equal(post_process([5, 4, 6])[0], post_process(list(range(7)))[1])  # whole pictures, in any order
    for rows in ([0, 1, 2], [0, 1], [0, 3], [4], [0, 1, 2, 3, 5]):
        with pytest.raises(ValueError, match="leave pixels without scores; give the output for all windows"):
            post_process(rows)
    with pytest.raises(ValueError, match="name the window at row 0, column 0 of one picture twice"):
        post_process([4, 5, 4])
    with pytest.raises(ValueError, match="window_offsets name no window of picture 1"):
        post_process([0, 1, 2, 3, 6])
    with pytest.raises(ValueError, match=r"of shape \(7, 5\) for 6 windows; \(6, 5\) is wanted"):
        processor.post_process_semantic_segmentation(QLSegOutput(logits=logits[:6], window_offsets=offsets))
    _, _, others = windows_of((16, 38))
    with pytest.raises(ValueError, match="give picture 0 two sizes"):
        post_process(list(range(10)), torch.cat([logits, logits[:3]]), torch.cat([offsets, others]))
    with pytest.raises(ValueError, match="lies outside its resized picture"):
        post_process([0], logits[..., :12].repeat(1, 1, 2, 2))


def test_target_sizes_of_every_kind():
    processor, logits, offsets = windows_of((16, 27), (16, 16))
    output = QLSegOutput(logits=logits, window_offsets=offsets)
    expected = processor.post_process_semantic_segmentation(output, [(31, 47), (5, 9)])
    pairs = [[31, 47], [5, 9]]
    for sizes in (pairs, torch.tensor(pairs), np.array(pairs), torch.tensor(pairs).float(), iter(pairs)):
        found = processor.post_process_semantic_segmentation(output, sizes)
        assert all(map(torch.equal, found, expected))
    for wrong in ([(31.5, 47), (5, 9)], [(0, 4), (5, 9)], [(-1, 4), (5, 9)], [(3, 4, 5), (5, 9)], [31, 47], 31, "ab"):
        with pytest.raises(ValueError, match="target_sizes must be .height, width. per picture, in whole pixels"):
            processor.post_process_semantic_segmentation(output, wrong)
    with pytest.raises(ValueError, match="0 target sizes for 2 pictures"):
        processor.post_process_semantic_segmentation(output, [])


def test_whole_pictures(stored):
    processor = QLSegImageProcessor(size={"height": 32, "width": 48}, do_sliding_window=False)
    features = processor(
        [RAMP, RAMP[:10]], segmentation_maps=[RAMP[..., 0] % 5, RAMP[:10, :, 0] % 5], return_tensors="pt"
    )
    assert features["pixel_values"].shape == (2, 3, 32, 48) and features["labels"].shape == (2, 32, 48)
    assert features["labels"].dtype == torch.int64 and "window_offsets" not in features
    lists = processor([RAMP, RAMP])
    assert isinstance(lists["pixel_values"], list) and lists["pixel_values"][0].shape == (3, 32, 48)


def test_mixed_sizes_are_refused_in_one_sentence():
    processor = QLSegImageProcessor(do_resize=False, do_sliding_window=False)
    with pytest.raises(ValueError, match="use qlseg_hf.segment"):
        processor([RAMP, RAMP[:10]], return_tensors="pt")
    with pytest.raises(ValueError, match="one map of its own size"):
        processor(RAMP, segmentation_maps=RAMP[:5, :, 0])


def test_normalisation_as_set():
    plain = QLSegImageProcessor(do_resize=False, do_sliding_window=False, do_rescale=False, do_normalize=False)
    assert torch.equal(
        plain(RAMP, return_tensors="pt")["pixel_values"][0], torch.from_numpy(RAMP).permute(2, 0, 1).float()
    )
    scaled = plain(RAMP, return_tensors="pt", do_rescale=True)["pixel_values"]
    assert scaled.max() == 1.0
    normalised = plain(
        RAMP, return_tensors="pt", do_rescale=True, do_normalize=True, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    torch.testing.assert_close(normalised["pixel_values"], (scaled - 0.5) / 0.25)


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, [0, 1, 2, 255]),
        ({"ignore_index": 7}, [0, 1, 2, 255]),
        ({"do_reduce_labels": True}, [255, 0, 1, 255]),
        ({"do_reduce_labels": True, "ignore_index": -100}, [-100, 0, 1, 254]),
        ({"label_mapping": {1: 2, 2: 1}}, [0, 2, 1, 255]),
        ({"label_mapping": {0: 255}}, [255, 1, 2, 255]),
        ({"label_mapping": {1: 2, 2: 0}, "do_reduce_labels": True}, [255, 1, 255, 255]),
    ],
)
def test_label_rules_are_independent(settings, expected, tmp_path):
    QLSegImageProcessor(do_resize=False, do_sliding_window=False, **settings).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    stored_labels = np.array([[0, 1, 2, 255]], dtype=np.uint8)
    features = processor(np.zeros((1, 4, 3), np.uint8), segmentation_maps=stored_labels, return_tensors="pt")
    assert features["labels"].tolist() == [[expected]]


def test_a_label_that_becomes_the_ignored_one_is_told():
    """From 256 labels on, 255 is one: a network learnt void as that label, or that label as void."""
    stored = torch.tensor([0, 1, 256, 257])
    with pytest.warns(UserWarning, match="makes label 255 of 256, and ignore_index, .* is 255 too; set it outside"):
        assert QLSegImageProcessor(do_reduce_labels=True).reduce_labels(stored).tolist() == [255, 0, 255, 256]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ignored, expected in ((-100, [-100, 0, 255, 256]), (-1, [-1, 0, 255, 256]), (254, [254, 0, 255, 256])):
            processor = QLSegImageProcessor(do_reduce_labels=True, ignore_index=ignored)
            assert processor.reduce_labels(stored).tolist() == expected


def test_labels_are_resized_nearest_only():
    labels = np.array([[0, 200]], dtype=np.uint8).repeat(4, axis=0)
    processor = QLSegImageProcessor(size={"height": 9, "width": 31}, do_sliding_window=False)
    found = processor(np.zeros((4, 2, 3), np.uint8), segmentation_maps=labels, return_tensors="pt")["labels"]
    assert found.unique().tolist() == [0, 200]


@pytest.mark.parametrize("size", [(30, 41), (17, 90), (40, 31)])
def test_labels_stay_on_their_pixels_when_resized(size):
    """The picture holds the place of each pixel, and the label map its number; half a pixel, and 8 bit rounds."""
    y, x = np.indices((25, 37))
    picture = np.stack([x, y, y], axis=-1).astype(np.uint8)
    settings = {"size": {"height": size[0], "width": size[1]}, "do_rescale": False, "do_normalize": False}
    processor = QLSegImageProcessor(do_sliding_window=False, ignore_index=-1, **settings)
    found = processor(picture, segmentation_maps=y * 37 + x, return_tensors="pt")
    labels, (across, down, _) = found["labels"][0], found["pixel_values"][0]
    for error in (across - labels % 37, down - labels // 37):
        assert error.abs().max() <= 1.01 and error.mean().abs() < 0.2


def test_no_picture_at_all():
    """`need at least one array to stack`."""
    for images in ([], (), iter([]), np.zeros((0, 4, 4, 3), np.uint8)):
        for return_tensors in (None, "pt"):
            with pytest.raises(ValueError, match="there is no picture in `images`"):
                QLSegImageProcessor()(images, return_tensors=return_tensors)


def test_generators_of_pictures_and_maps():
    processor = QLSegImageProcessor(size=32, window_size=32, window_stride=20)
    maps = [RAMP[..., 0]] * 2
    expected = processor([RAMP, RAMP], segmentation_maps=maps, return_tensors="pt")
    found = processor((RAMP for _ in range(2)), segmentation_maps=iter(maps), return_tensors="pt")
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_for_release_unknown():
    with pytest.raises(ValueError, match="unknown release"):
        QLSegImageProcessor.for_release("vit-x")


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"), reason="AutoImageProcessor asks for torchvision below 5.18"
)
@pytest.mark.integration
@pytest.mark.parametrize("stored", ["a"], indirect=True)
def test_same_with_and_without_torchvision(stored):
    """In this process and in one of its own, because torchvision is looked for once. `make` installs it apart."""
    apart, given = Path(sys.prefix) / "apart", (str(stored.folder), str(stored.picture("wide")))
    here = digest(*given)
    how = "without" if is_torchvision_available() else "with"
    if how == "with" and not (apart / "torchvision").is_dir():
        pytest.skip("torchvision is not installed: nothing to compare with outside make's environment")
    command = [sys.executable, ROOT / "tests" / "helpers" / "digests.py", how, *given]
    environment = os.environ | {"PYTHONPATH": str(apart)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == here
