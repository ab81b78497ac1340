"""What inference leaves behind: modes of modules, caches, devices, and results that are ordinary tensors."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from networks import tiny_config, tiny_model_and_processor, varied_model
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, pipeline

from qlseg_hf import QLSegForSemanticSegmentation, segment
from qlseg_hf.model import runtime
from qlseg_hf.model.deformable_attention import position_code
from qlseg_hf.model.runtime import eval_mode, keep_tensors
from qlseg_hf.model.scores import bilinear

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
PICTURE_AS_PIL = Image.fromarray(PICTURE)


def modes(model) -> list[bool]:
    return [module.training for module in model.modules()]


def test_every_module_comes_back_in_its_own_mode():
    model, processor = tiny_model_and_processor()
    expected = segment(model, processor, PICTURE)[0]
    model.train()
    model.backbone.eval()
    before = modes(model)
    assert torch.equal(segment(model, processor, PICTURE)[0], expected) and modes(model) == before
    model.eval()
    for module in model.modules():  # Monte Carlo dropout
        module.training = isinstance(module, torch.nn.Linear)
    before = modes(model)
    assert sum(before) > 10 and torch.equal(segment(model, processor, PICTURE)[0], expected)
    assert modes(model) == before
    with pytest.raises(ValueError, match="mode F"):
        segment(model, processor, [PICTURE, Image.new("F", (9, 9))])
    assert modes(model) == before and not runtime._modes


def test_nothing_is_set_where_all_are_in_eval_mode(monkeypatch):
    model, processor = tiny_model_and_processor()
    monkeypatch.setattr(torch.nn.Module, "train", lambda *_: pytest.fail("a mode was set"))
    segment(model, processor, PICTURE)


def test_threads_on_a_network_in_training_mode():
    model, processor = tiny_model_and_processor()
    pictures = [np.ascontiguousarray(np.roll(PICTURE, 5 * i, axis=1)) for i in range(4)]
    expected = [segment(model, processor, picture)[0] for picture in pictures]
    model.train()
    before, wrong = modes(model), []

    def run():
        for _ in range(3):
            for picture, label_map in zip(pictures, expected):
                if not torch.equal(segment(model, processor, picture)[0], label_map):
                    wrong.append(1)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and modes(model) == before and not runtime._modes


def test_results_are_ordinary_tensors():
    model, processor = tiny_model_and_processor()
    label_maps, scores, confidence = segment(
        model, processor, PICTURE, return_scores=True, return_confidence=True, scales=(1, 1.5)
    )
    label_maps[0][label_maps[0] == 3] = 255
    weight = torch.ones((), requires_grad=True)
    (weight * scores[0].mean() + weight * confidence[0].mean()).backward()
    assert weight.grad > 0
    segment(model, processor, PICTURE)  # has filled caches; gradients are on in what follows
    outputs = model(**processor(PICTURE, return_tensors="pt"))
    assert outputs.logits.requires_grad
    maps = processor.post_process_semantic_segmentation(outputs, target_sizes=[PICTURE.shape[:2]])
    assert torch.equal(maps[0], segment(model, processor, PICTURE)[0])


@pytest.mark.parametrize("function, arguments", [(bilinear, (30, 47, (3, 9))), (position_code, ((3, 5), 8, 1e4))])
def test_caches_serve_every_mode(function, arguments):
    device = torch.device("cpu")
    for first in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        function.cache_clear()
        with first():
            kept = function(*arguments, device)
        assert not kept.is_inference() and function(*arguments, device) is kept
        (kept * torch.ones((), requires_grad=True)).sum().backward()


def test_caches_are_bounded_by_bytes(monkeypatch):
    monkeypatch.setattr(runtime, "MOST_CACHED_BYTES", 4000)
    made = []

    @keep_tensors
    def numbers(count: int) -> torch.Tensor:
        made.append(count)
        return torch.zeros(count)

    for count in (100, 200, 300, 400, 400, 2000, 100):
        numbers(count)
    assert made == [100, 200, 300, 400, 2000, 100]
    assert numbers.kept.num_bytes == sum(x.nbytes for x in numbers.kept.results.values()) == 400
    for size in range(500, 560):  # many sizes of pictures
        bilinear(32, size, (0, size), torch.device("cpu"))
    assert bilinear.kept.num_bytes <= 4000


def compile_whole(model) -> torch.nn.Module:
    return torch.compile(model, backend="eager")


def compile_forward(model) -> torch.nn.Module:
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def compile_part(model) -> torch.nn.Module:
    model.pixel_encoder.compile(backend="eager")
    return model


@torch.compiler.set_stance("force_eager")  # compiled code is run in test_compile_without_graph_breaks
@pytest.mark.parametrize("compile_it", [compile_whole, compile_forward, compile_part])
def test_compiled_networks_of_16_bits_are_warned_of_on_a_cpu(compile_it, recwarn):
    """GCC 12.2 makes kernels for them that give wrong numbers, and no errors."""
    model, processor = tiny_model_and_processor()
    expected = segment(copy.deepcopy(model).bfloat16(), processor, PICTURE)[0]
    compiled = compile_it(model)
    segment(compiled, processor, PICTURE)
    assert not [warning for warning in recwarn if "compiled" in str(warning.message)]
    with torch.autocast("cpu", torch.bfloat16), pytest.warns(UserWarning, match="compiled and computes in bfloat16"):
        segment(compiled, processor, PICTURE)
    with pytest.warns(UserWarning, match="compiled and computes in bfloat16 on a CPU") as told:
        assert torch.equal(segment(compiled.bfloat16(), processor, PICTURE)[0], expected)
    assert all(warning.filename == __file__ for warning in told if "compiled" in str(warning.message))


def test_offloaded_to_disk(tmp_path):
    pytest.importorskip("accelerate")
    model, processor = tiny_model_and_processor()
    model.save_pretrained(tmp_path / "net")
    offloaded = AutoModelForSemanticSegmentation.from_pretrained(
        tmp_path / "net", device_map={"": "disk"}, offload_folder=tmp_path / "offload"
    )
    assert offloaded.device.type == "meta"
    assert torch.equal(segment(offloaded, processor, PICTURE)[0], segment(model, processor, PICTURE)[0])
    with pytest.raises(ValueError, match="on the meta device and has no weights"):
        segment(model.to("meta"), processor, PICTURE)


def test_copies_of_a_pipeline():
    model, processor = tiny_model_and_processor()
    segmenter = pipeline("image-segmentation", model=model, image_processor=processor)
    expected = [(part["label"], np.asarray(part["mask"]).tobytes()) for part in segmenter(PICTURE_AS_PIL)]
    for other in (copy.deepcopy(segmenter), pickle.loads(pickle.dumps(segmenter)), copy.copy(segmenter)):
        assert type(other) is type(segmenter)
        assert [(part["label"], np.asarray(part["mask"]).tobytes()) for part in other(PICTURE_AS_PIL)] == expected


def test_label_numbers_as_json_has_them(tmp_path):
    model = varied_model(tiny_config(num_labels=3))
    model.save_pretrained(tmp_path)
    names = {"0": "sky", "1": "road", "2": "tree"}
    for settings in ({"id2label": names}, {"id2label": names, "label2id": {"sky": "0"}, "num_labels": 3}):
        for kind in (AutoModelForSemanticSegmentation, QLSegForSemanticSegmentation):
            loaded = kind.from_pretrained(tmp_path, **settings)
            assert loaded.config.id2label == {0: "sky", 1: "road", 2: "tree"}
            assert loaded.config.label2id == {"sky": 0, "road": 1, "tree": 2}
    _, processor = tiny_model_and_processor()
    assert segment(loaded, processor, PICTURE, labels=[0, 1])[0].max() <= 1
    parts = pipeline("image-segmentation", model=loaded, image_processor=processor)(PICTURE_AS_PIL)
    assert {part["label"] for part in parts} <= set(names.values())
    for wrong in ({"a": "sky"}, {"0": "sky", "2": "road"}, {"0": "sky", 0: "road"}, {0.5: "sky", 1.2: "road"}):
        with pytest.raises(ValueError, match="id2label"):
            AutoModelForSemanticSegmentation.from_pretrained(tmp_path, id2label=wrong, ignore_mismatched_sizes=True)


# --------------------------------------------------------------------------------------------------------- confidence


@pytest.mark.parametrize(
    "settings", [{}, {"scales": (1, 1.5)}, {"flip": True}, {"labels": [2, 5, 7]}, {"labels": [4], "flip": True}]
)
def test_confidence(settings):
    model, processor = tiny_model_and_processor()
    maps, confidence = segment(model, processor, [PICTURE, PICTURE[:33]], return_confidence=True, **settings)
    expected = segment(model, processor, [PICTURE, PICTURE[:33]], **settings)
    for label_map, values, plain in zip(maps, confidence, expected):
        assert torch.equal(label_map, plain)
        assert values.shape == label_map.shape and values.dtype == torch.float32 and values.device.type == "cpu"
        assert 0 <= values.min() and values.max() <= 1
        if len(settings) == 0:
            assert values.min() >= 1 / 20 - 1e-6  # the best of a single run
    limited = segment(model, processor, PICTURE, return_confidence=True, max_memory_mb=80, **settings)
    assert torch.allclose(limited[1][0], confidence[0], atol=1e-6) and torch.equal(limited[0][0], maps[0])


def test_confidence_is_the_share_of_the_scores():
    model, processor = tiny_model_and_processor()
    maps, scores, confidence = segment(model, processor, PICTURE, return_scores=True, return_confidence=True)
    expected = scores[0].gather(0, maps[0][None])[0] / scores[0].sum(0)
    assert torch.allclose(confidence[0], expected, atol=1e-6) and len(confidence[0].unique()) > 20


@pytest.mark.parametrize("runs", [{}, {"scales": (1, 1.5), "flip": True}])
def test_confidence_of_one_label_is_among_all(runs):
    """Else a pixel of another label would have confidence 1 wherever a single label is asked for."""
    model, processor = tiny_model_and_processor()
    maps, every = segment(model, processor, PICTURE, return_confidence=True, **runs)
    label = int(maps[0].mode().values.mode().values)
    _, one = segment(model, processor, PICTURE, return_confidence=True, labels=[label], **runs)
    chosen = maps[0] == label
    assert torch.allclose(one[0][chosen], every[0][chosen], atol=1e-6) and one[0].max() < 1
    several = [segment(model, processor, PICTURE, return_confidence=True, labels=[k], **runs)[1][0] for k in range(20)]
    assert torch.allclose(sum(several), torch.ones(()), atol=1e-5)


def test_confidence_means_the_same_with_any_runs():
    """A picture of one colour looks the same mirrored and at any scale; the scores of several runs do not."""
    model, processor = tiny_model_and_processor(size={"height": 32, "width": 32}, window_stride=32)
    plain = np.full((32, 32, 3), 90, dtype=np.uint8)
    single = segment(model, processor, plain, return_confidence=True, return_scores=True)
    both = segment(model, processor, plain, return_confidence=True, return_scores=True, scales=(1, 1.0), flip=False)
    assert torch.equal(single[2][0], both[2][0])
    flipped = segment(model, processor, plain, return_confidence=True, return_scores=True, flip=True)
    same = flipped[0][0] == single[0][0]
    assert (flipped[2][0] - single[2][0])[same].abs().mean() < 0.1 < (flipped[1][0] - single[1][0]).abs().max()


def test_confidence_of_the_pipeline():
    model, processor = tiny_model_and_processor()
    segmenter = pipeline("image-segmentation", model=model, image_processor=processor)
    maps, confidence = segment(model, processor, PICTURE, return_confidence=True)
    parts = segmenter(PICTURE_AS_PIL, return_confidence=True)
    assert len(parts) == len(maps[0].unique())
    for part in parts:
        mask = maps[0].numpy() == model.config.label2id[part["label"]]
        assert part["score"] == pytest.approx(float(confidence[0].numpy()[mask].mean()), abs=1e-6)
        shown = np.where(mask, 255 * confidence[0].numpy(), 0).round()
        assert np.array_equal(np.asarray(part["confidence"]), shown)
    assert segmenter(PICTURE_AS_PIL)[0]["score"] is None
    batched = segmenter([PICTURE_AS_PIL] * 2, return_confidence=True, batch_size=2)
    assert [part["score"] for part in batched[1]] == pytest.approx([part["score"] for part in parts], abs=1e-6)


def test_a_writer_of_files_restores_modes():
    model = varied_model(tiny_config()).train()
    model.backbone.eval()
    before = modes(model)
    with eval_mode(model):
        with eval_mode(model):
            assert not any(modes(model))
        assert not any(modes(model))
    assert modes(model) == before
