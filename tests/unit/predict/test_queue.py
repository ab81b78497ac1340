"""The queue gives what `segment` gives for each image alone, bit by bit, whatever waits beside it."""

import numpy as np
import pytest
import torch
from networks import tiny_config, tiny_model_and_processor, varied_model

from qlseg_hf import QLSegImageProcessor, segment
from qlseg_hf.model.image_io import resize_picture
from qlseg_hf.model.request import Request
from qlseg_hf.model.windows import window_layout
from qlseg_hf.predict import queue
from qlseg_hf.predict.queue import Resized, WindowQueue, rounds_alike

RNG = np.random.default_rng(0)
SIZES = [(32, 32), (33, 47), (90, 40), (40, 91), (32, 150), (64, 64), (5, 7), (200, 33)] * 2
PICTURES = [RNG.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def resized(processor, picture, scales, flip) -> Resized:
    settings = processor.settings()
    layout = window_layout(settings, picture.shape[:2], list(scales), flip)
    versions = {size: resize_picture(picture, size).permute(1, 2, 0).numpy().copy() for size, *_ in layout}
    return Resized(picture.shape[:2], versions)


def maps_of(model, processor, batching, batch_size, scales=(1.0,), flip=False, confidence=False) -> dict:
    request = Request(processor.settings(), list(scales), flip, None, "auto", False, confidence)
    waiting = WindowQueue(model, request, batch_size, batching)
    found = []
    for key, picture in enumerate(PICTURES):
        found += waiting.add(key, resized(processor, picture, scales, flip))
    found += waiting.flush()
    assert sorted(result.key for result in found) == list(range(len(PICTURES)))  # each once
    return {result.key: result for result in found}


@pytest.mark.parametrize("four_runs, batch_size", [(False, 1), (False, 5), (True, 5)])
@pytest.mark.parametrize("sliding", [True, False], ids=["windows", "whole"])
def test_equals_segment_bit_by_bit(four_runs, batch_size, sliding):
    options = {"scales": (1.0, 1.5), "flip": True} if four_runs else {}
    model, processor = tiny_model_and_processor(do_sliding_window=sliding)
    found = maps_of(model, processor, "exact", batch_size, confidence=True, **options)
    for key, picture in enumerate(PICTURES):
        (expected,), (share,) = segment(
            model, processor, picture, window_batch_size=batch_size, return_confidence=True, **options
        )
        assert torch.equal(found[key].label_map, expected)
        assert torch.equal(found[key].confidence, share)


def forwards(monkeypatch) -> list[int]:
    """Sizes of the batches that are forwarded from now on."""
    sizes, real = [], queue.forward_windows

    def counted(model, batch):
        sizes.append(len(batch))
        real(model, batch)

    monkeypatch.setattr(queue, "forward_windows", counted)
    return sizes


def test_batches_are_filled_up_where_rounding_is_alike(monkeypatch):
    """With fp64 sums cast to fp32 nothing depends on the batch; here the trial's answer stands for such a machine."""
    model, processor = tiny_model_and_processor()
    monkeypatch.setattr(queue, "IMAGES_BEFORE_TRIAL", 1)
    alone = forwards(monkeypatch)
    monkeypatch.setattr(queue, "rounds_alike", lambda *_: False)
    maps_of(model, processor, "exact", 4)
    num_alone = len(alone)
    alone.clear()
    monkeypatch.setattr(queue, "rounds_alike", lambda *_: True)
    found = maps_of(model, processor, "exact", 4)
    assert len(alone) < num_alone and alone.count(4) > len(alone) - 3
    differing = [
        (found[key].label_map != segment(model, processor, picture, window_batch_size=4)[0]).float().mean()
        for key, picture in enumerate(PICTURES)
    ]
    assert max(differing) < 0.01  # windows went back to their own images


def test_shared_batches_hold_windows_of_several_images(monkeypatch):
    model, processor = tiny_model_and_processor()
    sizes = forwards(monkeypatch)
    maps_of(model, processor, "shared", 8)
    assert sizes.count(8) == len(sizes) - 1


def test_few_windows_wait(monkeypatch):
    """Of images of many sizes, each of one window of its own, none waits for ever."""
    model, processor = tiny_model_and_processor(do_sliding_window=False)
    request = Request(processor.settings(), [1.0], False, None, "auto", False, False)
    waiting = WindowQueue(model, request, 2, "shared")
    found = 0
    for width in range(40, 100):
        picture = np.zeros((32, width, 3), np.uint8)
        found += len(list(waiting.add(width, resized(processor, picture, (1.0,), False))))
        in_queue = width - 39 - found
        assert in_queue <= queue.BATCHES_WAITING * 2
    assert found > 50


class OfBatch(torch.nn.Module):
    """A network whose numbers depend on its batch in the last bit, or do not."""

    def __init__(self, model, depends: bool):
        super().__init__()
        self.model, self.depends, self.config, self.dtype = model, depends, model.config, model.dtype
        self.device = model.device

    def forward(self, pixel_values, **kwargs):
        outputs = [self.model(pixel_values=one[None], **kwargs) for one in pixel_values]
        whole = outputs[0]
        for name in ("class_queries_logits", "masks_queries_logits"):
            joined = torch.cat([output[name] for output in outputs])
            if self.depends and len(joined) == 3:
                joined[2].view(-1)[0] = torch.nextafter(joined[2].view(-1)[0], torch.tensor(9e9))
            whole[name] = joined
        return whole


def test_the_trial_sees_one_bit():
    model = varied_model(tiny_config())
    assert rounds_alike(OfBatch(model, False), (3, 32, 32), 4)
    assert not rounds_alike(OfBatch(model, True), (3, 32, 32), 4)
    assert rounds_alike(OfBatch(model, True), (3, 32, 32), 2)  # which has no batch of three


def test_sharing_is_exact_on_a_machine_that_rounds_alike(monkeypatch):
    model = OfBatch(varied_model(tiny_config()), False)
    processor = QLSegImageProcessor(size={"shortest_edge": 32}, window_size=32, window_stride=20)
    monkeypatch.setattr(queue, "IMAGES_BEFORE_TRIAL", 2)
    sizes = forwards(monkeypatch)
    found = maps_of(model, processor, "exact", 4)
    assert sizes.count(4) > len(sizes) / 2
    for key, picture in enumerate(PICTURES):
        assert torch.equal(found[key].label_map, segment(model, processor, picture, window_batch_size=4)[0])
