"""Scores and label maps in blocks against the whole planes, and the memory that `segment` may take."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from networks import tiny_config
from torch.nn import functional as F

from qlseg_hf import QLSegImageProcessor, segment
from qlseg_hf.model import scores
from qlseg_hf.model.image_io import resize_picture
from qlseg_hf.model.memory import MemoryPlan
from qlseg_hf.model.request import label_numbers
from qlseg_hf.model.scores import (
    best_labels,
    blocks,
    combine,
    first_maximum,
    label_map_from_scores,
    mask_block,
    resized_part,
    sources,
)
from qlseg_hf.model.windows import window_layout


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(scores, "CPU_BLOCK_BYTES", 4 * 7 * 50)  # 50 pixels with 7 labels


@pytest.mark.parametrize("size", [(13, 17), (64, 40), (20, 30), (20, 300), (200, 300), (1, 1)])
def test_blocks_equal_interpolation(size, small_blocks):
    plane = torch.randn(7, 20, 30)
    expected = F.interpolate(plane[None], size=size, mode="bilinear", align_corners=False)[0]
    seen = torch.zeros(size)
    for rows, columns in blocks((0, size[0]), (0, size[1]), 50):
        place = slice(*rows), slice(*columns)
        seen[place] += 1
        assert (rows[1] - rows[0]) * (columns[1] - columns[0]) <= 50
        (top, bottom), (left, right) = sources((20, 30), size, rows, columns)
        found = resized_part(plane[:, top:bottom, left:right], (20, 30), size, rows, columns)
        torch.testing.assert_close(found, expected[(slice(None), *place)], atol=1e-5, rtol=0)
        masks = mask_block(plane, size, rows, columns)
        torch.testing.assert_close(masks, expected[(slice(None), *place)].sigmoid().flatten(1), atol=1e-5, rtol=0)
    assert (seen == 1).all()
    assert (label_map_from_scores(plane, size) == expected.argmax(dim=0)).float().mean() > 0.999


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("size", [(32, 48), (30, 41), (1, 5)])
def test_combine_in_blocks_equals_the_formula(size, dtype, tolerance, small_blocks):
    class_logits, mask_logits = torch.randn(2, 7, 8), torch.randn(2, 7, 2, 3)
    expected = combine(class_logits.requires_grad_(), mask_logits, size)  # with gradients: the formula as it stands
    assert expected.requires_grad
    found = combine(class_logits.detach().to(dtype), mask_logits.to(dtype), size)
    assert found.dtype == dtype and not found.requires_grad
    torch.testing.assert_close(found.float(), expected.detach(), atol=tolerance, rtol=0)


def test_scores_and_labels_under_autocast(stored):
    """Upsampling and the choice of labels are matrix products, which autocast would round to bf16."""
    class_logits, mask_logits = torch.randn(2, 7, 8), 4 * torch.randn(2, 7, 2, 3)
    plane = torch.rand(400, 5, 6)
    expected, labels = combine(class_logits, mask_logits, (32, 48)), label_map_from_scores(plane, (20, 30))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(combine(class_logits, mask_logits, (32, 48)), expected)
        assert torch.equal(label_map_from_scores(plane, (20, 30)), labels) and labels.max() > 256
        half = combine(class_logits, mask_logits.bfloat16(), (32, 48))  # as a network under autocast gives them
        (label_map,) = segment(stored.model(), stored.processor, stored.picture("wide"))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0)
    (plain,) = segment(stored.model(), stored.processor, stored.picture("wide"))
    assert (label_map == plain).float().mean() >= 0.99


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_label_numbers_are_exact_at_any_precision(precision):
    """CPUs with instructions for it multiply fp32 in bf16 at "medium": labels beyond 256 became their neighbours."""
    torch.set_float32_matmul_precision(precision)
    try:
        for num_labels in (3, 256, 700, 2**16):
            scores = torch.rand(num_labels, 8, 8)
            scores[-1, :4] = 2
            assert torch.equal(first_maximum(scores), scores.argmax(dim=0))
    finally:
        torch.set_float32_matmul_precision("highest")


def test_best_labels_drops_only_what_cannot_win():
    """Ties and NaN included: the first maximum, as argmax gives it."""
    generator = torch.Generator().manual_seed(0)
    for spread in (0.0, 0.01, 1.0):
        part = torch.randn(9, 1, 1, generator=generator) + spread * torch.randn(9, 4, 6, generator=generator)
        part[4] = part[2]
        resized = F.interpolate(part[None], size=(12, 18), mode="bilinear", align_corners=False)[0]
        found = best_labels(part, (4, 6), (12, 18), (0, 12), (0, 18))
        assert torch.equal(resized.gather(0, found[None]), resized.amax(0, keepdim=True))
        assert not (found == 4).any()
    flat = torch.tensor([[[0.0, 1.0, float("nan")]], [[0.0, 2.0, 1.0]]])
    assert first_maximum(flat).tolist() == flat.argmax(dim=0).tolist() == [[0, 1, 0]]


# ------------------------------------------------------------------------------------------------------- label choice


@pytest.mark.parametrize("scales, flip", [((1.0,), False), ((0.5, 1), False), ((1.0, 1.5), True)])
def test_labels_restrict_the_choice(stored, scales, flip):
    model, picture = stored.model(), stored.picture("wide")
    chosen = [5, "class 2", 3]
    _, (all_scores,) = segment(model, stored.processor, picture, scales=scales, flip=flip, return_scores=True)
    options = {"scales": scales, "flip": flip, "labels": chosen}
    (label_map,), (found,) = segment(model, stored.processor, picture, return_scores=True, **options)
    torch.testing.assert_close(found, all_scores[[5, 2, 3]], atol=1e-6, rtol=0)
    assert torch.equal(label_map, torch.tensor([5, 2, 3])[found.argmax(dim=0)])
    assert len(label_map.unique()) > 1
    assert torch.equal(segment(model, stored.processor, picture, **options)[0], label_map)


def test_wrong_labels(stored):
    model = stored.model()
    for labels, sentence in (
        (["class 1", "clas 2"], r"no labels \['clas 2'\]; did you mean \['class 2'\]"),
        ([99], r"no labels \[99\]"),
        ([], "at least one label"),
        ([1, "class 1"], "each once"),
    ):
        with pytest.raises(ValueError, match=sentence):
            segment(model, stored.processor, stored.picture("wide"), labels=labels)


def test_labels_of_one_name():
    """Numbers tell them apart; the last number was "no label", and a name meant the last of its labels."""
    numbers = {0: "road", 1: "road", 2: "sky"}
    assert label_numbers([2, 0], numbers) == label_numbers(["sky", 0], numbers) == [2, 0]
    with pytest.raises(ValueError, match=r"several labels of the model are called \['road'\]; give their numbers"):
        label_numbers(["road"], numbers)
    with pytest.raises(TypeError, match="labels must be names or whole numbers; got .1.5."):  # was label 1
        label_numbers([1.5], numbers)


# -------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("size, scales, flip", [((90, 400), (1.0,), False), ((400, 90), (1.0, 1.3), True)])
def test_strips_change_nothing(stored, monkeypatch, size, scales, flip):
    """The smallest number of MiB that is taken gives several strips, and the same label map and scores."""
    model = stored.model()
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    picture = resize_picture(picture[::40, ::40].copy(), size).permute(1, 2, 0).numpy()  # something smooth
    options = {"scales": scales, "flip": flip, "return_scores": True, "window_batch_size": 3}
    (expected,), (expected_scores,) = segment(model, stored.processor, picture, **options)
    monkeypatch.setattr("qlseg_hf.model.memory.BLOCKS_BYTES", 0)
    monkeypatch.setattr(MemoryPlan, "forward_bytes", lambda *_: 0)
    strips = []
    cut = MemoryPlan.strips
    monkeypatch.setattr(MemoryPlan, "strips", lambda *args: [strips.append(s) or s for s in cut(*args)])
    plan = MemoryPlan(model.config, 1, None)
    layout = window_layout(stored.processor.settings(), size, list(scales), flip)
    enough = plan.needed(size, layout, 64, 1) / 2**20
    (found,), (found_scores,) = segment(model, stored.processor, picture, max_memory_mb=enough + 1e-3, **options)
    assert len(strips) >= 3
    torch.testing.assert_close(found_scores, expected_scores, atol=1e-6, rtol=0)
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match=rf"too little for a picture of {size[0]} x {size[1]}"):
        segment(model, stored.processor, picture, max_memory_mb=enough - 1e-3, **options)


def test_memory_plan_prefers_few_strips():
    config, size = tiny_config(), (100, 1000)
    processor = QLSegImageProcessor(size={"shortest_edge": 64}, window_size=64, window_stride=48)
    layout = window_layout(processor.settings(), size, [1.0], False)
    plan = MemoryPlan(config, 4, None)
    assert list(plan.strips(size, layout)) == [((0, 100), (0, 1000))] and plan.window_batch_size == 4
    largest, smallest = plan.needed(size, layout, 1000, 4), plan.needed(size, layout, 64, 1)
    assert largest > plan.needed(size, layout, 500, 4) > smallest
    for limit, fits in ((largest, True), (plan.needed(size, layout, 1000, 1), True), (smallest, False)):
        bounded = MemoryPlan(config, 4, limit / 2**20)
        strips = list(bounded.strips(size, layout))
        assert (len(strips) == 1) is fits and strips[-1][1][1] == 1000
        assert bounded.needed(size, layout, strips[0][1][1], bounded.window_batch_size) <= limit


MEASURE = """
import sys
import torch
from PIL import Image
from qlseg_hf import QLSegConfig, QLSegForSemanticSegmentation, QLSegImageProcessor, segment
from qlseg_hf.benchmark.measure import peak_memory

width, height, limit = map(int, sys.argv[2:])
Image.effect_noise((width // 100, height // 100), 80).convert("RGB").resize((width, height)).save(sys.argv[1])
model = QLSegForSemanticSegmentation(QLSegConfig.for_release("vit-b-ade20k")).eval()
processor = QLSegImageProcessor.for_release("vit-b-ade20k")
Image.MAX_IMAGE_PIXELS = None
torch.set_num_threads(2)
with peak_memory() as memory:
    (label_map,) = segment(model, processor, sys.argv[1], max_memory_mb=limit)
print(*label_map.shape, memory.peak_bytes / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
@pytest.mark.parametrize("width, height, limit, most", [(12000, 6000, 1024, 1536), (3000, 2000, 512, 512)])
def test_peak_memory(tmp_path, width, height, limit, most):
    arguments = [str(tmp_path / "picture.jpg"), str(width), str(height), str(limit)]
    done = subprocess.run([sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    *shape, peak = done.stdout.split()
    assert shape == [str(height), str(width)]
    assert float(peak) <= most


MEASURE_FORWARD = """
import sys
import torch
from transformers import BeitConfig, Dinov2Config, DINOv3ViTConfig
from qlseg_hf import QLSegConfig, QLSegForSemanticSegmentation, QLSegViTConfig
from qlseg_hf.model.memory import MemoryPlan
from qlseg_hf.benchmark.measure import peak_memory
from qlseg_hf.utils.memory import keep_freed_memory

kinds = {"qlseg": QLSegViTConfig, "dinov2": Dinov2Config, "dinov3": DINOv3ViTConfig, "beit": BeitConfig}
sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 4}
sizes |= {"image_size": 512, "patch_size": 16, "out_indices": [2, 3, 4]}
if sys.argv[1] == "beit":
    sizes |= {"use_relative_position_bias": True, "reshape_hidden_states": True}
config = QLSegConfig(backbone_config=kinds[sys.argv[1]](**sizes), num_labels=150)
model = QLSegForSemanticSegmentation._from_config(config, attn_implementation=sys.argv[2]).eval()
keep_freed_memory(False)
pixel_values = torch.randn(1, 3, 512, 512)
with torch.inference_mode():
    model(pixel_values, output_logits=False)
    with peak_memory() as memory:
        model(pixel_values, output_logits=False)
print(memory.peak_bytes / MemoryPlan(model.config, 1, None, model.patch_size).forward_bytes(512 * 512))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("encoder", ["qlseg", "dinov2", "dinov3", "beit"])
def test_forward_stays_below_the_plan(encoder, attention):
    arguments = [sys.executable, "-c", MEASURE_FORWARD, encoder, attention]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert 0.3 < float(done.stdout) <= 1
