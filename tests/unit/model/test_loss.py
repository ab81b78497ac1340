"""Loss terms worked out on paper, and against a slow implementation that follows the text."""

import json
import math

import pytest
import torch
from networks import tiny_config
from torch.nn import functional as F

from qlseg_hf.model.loss_qlseg import MaskLosses, check_labels, mask_losses, segmentation_loss


def test_mask_losses_on_paper():
    """Two pixels at probability 1/2, one foreground: focal = mean(0.25, 0.75) * 0.25 * ln 2, dice = 1 - 2/3."""
    focal, dice, _ = mask_losses(torch.zeros(1, 1, 2), torch.tensor([[[True, False]]]), alpha=0.25, gamma=2.0)
    assert focal.item() == pytest.approx(0.5 * 0.25 * math.log(2))
    assert dice.item() == pytest.approx(1 - 2 / 3)


def test_classification_on_paper():
    """K = 2, label 0 occurs: uniform logits cost ln 3 whatever the weights."""
    config = tiny_config(num_labels=2)
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    terms = segmentation_loss(torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 2, 2, 2), labels, config)
    assert terms["loss_ce"].item() == pytest.approx(math.log(3))
    assert set(terms) == {"loss_ce", "loss_mask", "loss_dice"}


@pytest.mark.parametrize("gamma", [2.0, 1.0, 2.5])
def test_gradients_of_masks_against_autograd(gamma, monkeypatch):
    """The gradient that is worked out on the way, over several chunks, for any weights of the masks."""
    monkeypatch.setattr("qlseg_hf.model.loss_qlseg.CPU_CHUNK_BYTES", 2 * 4 * 11 * 13)
    torch.manual_seed(0)
    logits = (3 * torch.randn(5, 3, 4)).requires_grad_()
    labels = torch.randint(0, 3, (2, 11, 13))
    picture, label = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 0, 2])
    weights = torch.rand(2, 5)
    focal, dice = MaskLosses.apply(logits, labels, picture, label, 0.25, gamma)
    (found,) = torch.autograd.grad((weights[0] * focal + weights[1] * dice).sum(), logits)

    maps = F.interpolate(logits[:, None], size=(11, 13), mode="bilinear", align_corners=False)[:, 0]
    p, t = maps.sigmoid(), (labels[picture] == label[:, None, None]).float()
    ce = F.binary_cross_entropy_with_logits(maps, t, reduction="none")
    expected_focal = ((0.25 * t + 0.75 * (1 - t)) * ((1 - p) * t + p * (1 - t)) ** gamma * ce).mean(dim=(1, 2))
    area = p.sum(dim=(1, 2)) + t.sum(dim=(1, 2)) + 1
    expected_dice = 1 - (2 * (p * t).sum(dim=(1, 2)) + 1) / area
    (expected,) = torch.autograd.grad((weights[0] * expected_focal + weights[1] * expected_dice).sum(), logits)
    torch.testing.assert_close(focal, expected_focal, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(dice, expected_dice, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_what_is_kept_for_the_gradient_is_on_the_patch_grid():
    logits = torch.randn(6, 3, 4, requires_grad=True)
    labels = torch.randint(0, 3, (2, 64, 64))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        MaskLosses.apply(logits, labels, torch.arange(6) % 2, torch.arange(6) % 3, 0.25, 2.0)
    assert kept == [logits.numel()] * 2


def test_loss_under_autocast_is_in_fp32():
    """Upsampling is a matrix product, which autocast would round to bf16."""
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, requires_grad=True), torch.randint(0, 2, (1, 32, 32))
    arguments = (logits, labels, torch.tensor([0, 0]), torch.tensor([0, 1]), 0.25, 2.0)
    plain = MaskLosses.apply(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        found = MaskLosses.apply(*arguments)
    for mine, expected in zip(found, plain):
        assert mine.dtype == torch.float32 and torch.equal(mine, expected)
    assert torch.equal(*(torch.autograd.grad(sum(x.sum() for x in both), logits)[0] for both in (found, plain)))


LOSSES = """
import json, sys, torch
from qlseg_hf import QLSegConfig
from qlseg_hf.model.loss_qlseg import segmentation_loss
torch.manual_seed(0)
classes, masks, labels = torch.randn(1, 2, 5, 6), torch.randn(1, 2, 5, 2, 2), torch.randint(0, 5, (2, 8, 8))
labels[1] = 255  # of the second image nearly all is void
labels[1, 0, :2] = 3
def losses(images):
    return {
        f"{activation} {name}": term.item()
        for activation in ("sigmoid", "softmax")
        for name, term in segmentation_loss(
            classes[:, images], masks[:, images], labels[images], QLSegConfig(num_labels=5, mask_activation=activation)
        ).items()
    }
both = losses(slice(0, 2))
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
print(json.dumps([losses(slice(rank, rank + 1)), both]))
torch.distributed.destroy_process_group()
"""


@pytest.mark.integration
def test_images_count_alike_in_all_processes(server, tmp_path):
    """The mean over two processes is the loss of both images in one, however their labels and void are shared out."""
    (tmp_path / "losses.py").write_text(LOSSES)
    done = server.complete(tmp_path / "losses.py", processes=2, expect=0)
    (first, both), (second, _) = map(json.loads, done.stdout.splitlines())
    assert {name: (first[name] + second[name]) / 2 for name in both} == pytest.approx(both, rel=1e-5)
    assert first != pytest.approx(second, rel=0.1)


def test_check_labels():
    config = tiny_config(num_labels=5)
    pixel_values = torch.zeros(2, 3, 8, 8)
    check_labels(torch.full((2, 8, 8), 255, dtype=torch.uint8), pixel_values, config)
    check_labels(torch.full((2, 4, 4), 4), pixel_values, config)
    for dtype in (torch.int8, torch.uint16):  # 8 bits took 255 for -1, and unsigned dtypes cannot be compared
        check_labels(torch.full((2, 8, 8), 4, dtype=dtype), pixel_values, config)
        check_labels(torch.full((2, 8, 8), 4, dtype=dtype), pixel_values, tiny_config(num_labels=200))
    with pytest.raises(ValueError, match="labels must be 0..4 or 255"):
        check_labels(torch.full((2, 8, 8), 5), pixel_values, config)
    with pytest.raises(ValueError, match="found .156"):  # what -100 is in 8 bits
        labels = torch.full((2, 8, 8), 156, dtype=torch.uint8)
        check_labels(labels, pixel_values, tiny_config(num_labels=5, semantic_loss_ignore_index=-100))
    with pytest.raises(ValueError, match=r"labels have shape \(2, 0, 8\)"):
        check_labels(torch.zeros(2, 0, 8, dtype=torch.long), pixel_values, config)
    with pytest.raises(ValueError, match="integers are wanted"):
        check_labels(torch.zeros(2, 8, 8, dtype=torch.bool), pixel_values, config)


@pytest.mark.gpu
def test_check_labels_does_not_synchronise_on_a_gpu():
    labels = torch.zeros(2, 8, 8, dtype=torch.long, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        check_labels(labels, torch.zeros(2, 3, 8, 8, device="cuda"), tiny_config(num_labels=5))
    finally:
        torch.cuda.set_sync_debug_mode("default")
