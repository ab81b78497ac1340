"""What fresh heads add to the published network: competing masks, a label classifier, details, a class token."""

import copy

import numpy as np
import pytest
import torch
from networks import BACKBONES, first_network, tiny_config, varied_model
from PIL import Image
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from qlseg_hf import QLSegConfig, QLSegForSemanticSegmentation, QLSegImageProcessor, QLSegViTConfig, segment
from qlseg_hf.model.fresh_heads import compete, without_padding
from qlseg_hf.model.loss_qlseg import CompetingLosses, loss_normalizers, segmentation_loss
from qlseg_hf.model.modeling_qlseg import QLSegViTBackbone
from qlseg_hf.model.scores import combine
from qlseg_hf.weights import load_vit_weights, set_num_channels

FRESH = {"mask_activation": "softmax", "use_label_classifier": True, "num_detail_channels": 8}


def fresh_config(num_labels: int = 5, **changes) -> QLSegConfig:
    config = tiny_config(num_labels, **(FRESH | {"dropout": 0.0} | changes))
    config.backbone_config.use_class_token = True
    return config


def fresh_model(num_labels: int = 5, **changes) -> QLSegForSemanticSegmentation:
    return varied_model(fresh_config(num_labels, **changes))


def made_labels(num_labels: int = 5) -> torch.Tensor:
    """(3, 11, 13): some ignored, an image without any label, and one that lacks a label."""
    torch.manual_seed(1)
    labels = torch.randint(0, num_labels, (3, 11, 13))
    labels[:, :3], labels[1] = 255, 255
    labels[2][labels[2] == 3] = 1
    return labels


def plain_losses(logits, labels, weights):
    """Sums of cross-entropy and dice losses as the docstring of `CompetingLosses` has them, by autograd."""
    maps = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    pixel = F.cross_entropy(maps, labels, weights, ignore_index=255, reduction="sum")
    is_labelled = (labels != 255)[:, None]
    truth = F.one_hot(labels.where(labels != 255, 0), logits.shape[1]).movedim(-1, 1) * is_labelled
    probs = maps.softmax(dim=1) * is_labelled
    above, below = 2 * (probs * truth).sum((2, 3)) + 1, probs.sum((2, 3)) + truth.sum((2, 3)) + 1
    return pixel, ((1 - above / below) * weights)[truth.sum((2, 3)) > 0].sum()


def test_competing_losses_against_autograd():
    labels, weights = made_labels(), torch.tensor([1.0, 2.0, 0.5, 0.0, 3.0])
    logits = (2 * torch.randn(3, 5, 3, 4)).requires_grad_()
    present = torch.stack([(labels == k).flatten(1).any(1) for k in range(5)], dim=1)
    found = CompetingLosses.apply(logits, labels, present, weights)
    for loss, expected in zip(found, plain_losses(logits, labels, weights)):
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        pair = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (loss, expected)]
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-5)


def test_terms_of_competing_masks():
    """Weights, shares of earlier blocks, and the same loss however a batch is cut."""
    weights = [1.0, 2.0, 0.5, 0.0, 3.0]
    config = tiny_config(5, **FRESH, mask_weight=3.0, dice_weight=0.7, label_weights=weights)
    labels, class_logits, mask_logits = made_labels(), torch.randn(2, 3, 5, 6), torch.randn(2, 3, 5, 3, 4)
    terms = segmentation_loss(class_logits, mask_logits, labels, config)
    factors, num_pixels = torch.tensor(weights), torch.tensor(weights)[labels[labels != 255]].sum()
    num_masks = sum(len(x[x != 255].unique()) for x in labels)
    for t, (suffix, share) in enumerate((("_0", 0.5), ("", 1.0))):
        pixel, dice = plain_losses(mask_logits[t], labels, factors)
        assert terms["loss_mask" + suffix].item() == pytest.approx(share * 3.0 * float(pixel / num_pixels), rel=1e-5)
        assert terms["loss_dice" + suffix].item() == pytest.approx(share * 0.7 * float(dice / num_masks), rel=1e-5)
    whole, share = sum(terms.values()), loss_normalizers(labels, config) / 3
    parts = [
        sum(segmentation_loss(class_logits[:, i : i + 1], mask_logits[:, i : i + 1], x[None], config, share).values())
        for i, x in enumerate(labels)
    ]
    torch.testing.assert_close(sum(parts) / 3, whole)
    labels[:] = 255
    assert segmentation_loss(class_logits, mask_logits, labels, config)["loss_mask"] == 0


def test_competing_masks_are_a_softmax():
    logits = 4 * torch.randn(2, 3, 7, 5, 6)
    probs = compete(logits).sigmoid()
    torch.testing.assert_close(probs, logits.softmax(dim=2), atol=1.1e-4, rtol=0)
    for extreme in (torch.tensor([200.0, -200.0, 0.0]), torch.tensor([0.0])):
        found = compete(extreme[None, None, :, None, None])
        assert torch.isfinite(found).all() and found.sigmoid().max() == pytest.approx(0.9999, abs=1e-5)
    assert compete(logits.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "padded, size, grid",
    [((48, 64), (44, 50), (3, 4)), ((48, 64), (36, 64), (12, 16)), ((28, 42), (23, 42), (7, 11))],
    ids=["patches", "cells", "odd patches"],
)
def test_grid_without_padding(padded, size, grid):
    """Values that are their place in the image are so still after the grid was cut to the image and resized to it."""
    finer = 4 if grid == (3, 4) else 1
    places = [(torch.arange(cells, dtype=torch.float32) + 0.5) * full / cells for cells, full in zip(grid, padded)]
    maps = without_padding(torch.stack(torch.meshgrid(*places, indexing="ij"))[None], padded, size, finer)
    found = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)[0]
    expected = torch.stack(torch.meshgrid(*(torch.arange(side) + 0.5 for side in size), indexing="ij"))
    # beyond the centres of the old cells values are repeated, which the new ones beside them still show
    border = 1 + max(int(full / old + side / new) for full, old, side, new in zip(padded, grid, size, maps.shape[-2:]))
    inner = (slice(None), *(slice(border, side - border) for side in size))
    assert found[inner].numel() > 0
    torch.testing.assert_close(found[inner], expected[inner], atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [(37, 50), (36, 52), (33, 49)], ids=str)
@pytest.mark.parametrize("changes", [{}, {"num_detail_channels": 0}], ids=["details", "patches"])
def test_padding_does_not_stretch_the_masks(changes, size):
    """Scores of an image of any size are those of the image padded to whole patches, without what was added."""
    model, pixel_values = fresh_model(**changes), torch.zeros(1, 3, 48, 64)
    pixel_values[:, :, : size[0], : size[1]] = torch.randn(1, 3, *size)
    with torch.inference_mode():
        found = model(pixel_values[:, :, : size[0], : size[1]]).logits
        padded = model(pixel_values)
    expected = padded.logits[:, :, : size[0], : size[1]]
    stretched = combine(padded.class_queries_logits, padded.masks_queries_logits, size)
    distances = [(scores - expected).abs().mean() for scores in (found, stretched)]
    assert distances[0] < 0.2 * distances[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@torch.no_grad()
def test_torchs_default_dtype_changes_nothing(dtype):
    """Programs set it for other networks; places on a grid that is not of whole patches are no numbers for 8 bits."""
    model = fresh_model(num_detail_channels=0, label_weights=[1.1, 0.3, 2.0, 1.0, 0.7])
    pixel_values, labels = torch.randn(3, 3, 37, 150), made_labels()
    expected = model(pixel_values=pixel_values, labels=labels)
    torch.set_default_dtype(dtype)
    try:
        found = model(pixel_values=pixel_values, labels=labels)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found.masks_queries_logits, expected.masks_queries_logits)
    assert torch.equal(found.loss, expected.loss)


def test_details_begin_as_the_masks_are():
    """The last layer begins at zero, so that the masks are those of the patch grid, resized."""
    torch.manual_seed(0)
    config = tiny_config(5, num_detail_channels=8)
    model = QLSegForSemanticSegmentation(config).eval()
    pixel_values = torch.randn(2, 3, 37, 50)
    with torch.inference_mode():
        fine = model(pixel_values).masks_queries_logits
        detail, model.detail = model.detail, None
        coarse = model(pixel_values).masks_queries_logits
    assert fine.shape == (2, 5, 12, 16)  # of 48 x 64, whole patches
    torch.testing.assert_close(fine, F.interpolate(coarse, size=(12, 16), mode="bilinear", align_corners=False))
    assert all(part.weight.detach().std() > 0.01 for part in (detail.stem[0], detail.stem[3], detail.mix[2]))


@pytest.mark.parametrize("kind", ["qlseg_vit", "dinov2", "dinov3", "beit"])
def test_every_parameter_learns(kind):
    """With a class token, on other encoders, and at sizes that are no whole patches."""
    backbone = copy.deepcopy(BACKBONES[kind][0])
    if kind == "qlseg_vit":
        backbone.use_class_token = True
    model = varied_model(
        tiny_config(5, backbone_config=backbone, dropout=0.0, num_group_norm_groups=8, **FRESH)
    ).train()
    labels = torch.randint(0, 5, (2, 61, 47))
    model(torch.randn(2, 3, 61, 47), labels=labels).loss.backward()
    without = [
        name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert without == []


def test_class_token_computes_a_vit(tmp_path):
    """Against transformers' ViT: every hidden state of the patches, on another grid too."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    vit = ViTModel(ViTConfig(**sizes, image_size=64, layer_norm_eps=1e-6)).eval()
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    vit.save_pretrained(tmp_path)
    config = QLSegViTConfig(**sizes, image_size=64, use_class_token=True, out_indices=[1, 3])
    backbone = load_vit_weights(QLSegViTBackbone(config).eval(), tmp_path)
    pixel_values = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        found = backbone(pixel_values, output_hidden_states=True)
    for stage, maps in zip((1, 3), found.feature_maps):
        torch.testing.assert_close(maps.flatten(2).transpose(1, 2), found.hidden_states[stage][:, 1:])
        tokens = vit.embeddings(pixel_values)
    for layer, state in zip(vit.layers, found.hidden_states[1:]):
        with torch.inference_mode():
            tokens = layer(tokens)
        torch.testing.assert_close(state, tokens, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(70, 101), (33, 200)])
def test_segmenting(tmp_path, size):
    """Saved, loaded, whole and by windows within a budget: the same label map, with confidences of a softmax."""
    processor = QLSegImageProcessor(size={"shortest_edge": 32}, window_size=32, window_stride=20)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8))
    model = first_network(fresh_config(), lambda model: len(segment(model, processor, picture)[0].unique()) > 1)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = QLSegForSemanticSegmentation.from_pretrained(tmp_path).eval()
    whole = segment(model, processor, picture)
    for found in (segment(loaded, processor, picture), segment(model, processor, picture, max_memory_mb=80)):
        np.testing.assert_array_equal(found, whole)
    with torch.inference_mode():
        masks = loaded(torch.randn(1, 3, 40, 50)).masks_queries_logits.sigmoid().sum(dim=1)
    torch.testing.assert_close(masks, torch.ones_like(masks), atol=1e-3, rtol=0)


def test_reusing_labels(tmp_path):
    """Rows of the labels that stay are kept in both added classifiers; those of new ones are zero."""
    model = fresh_model(3)
    model.config.id2label = {0: "sky", 1: "road", 2: "car"}
    model.save_pretrained(tmp_path)
    new = QLSegForSemanticSegmentation.from_pretrained(
        tmp_path, id2label={0: "car", 1: "tree", 2: "sky", 3: "bus"}, reuse_labels=True
    )
    for part in ("label_classifier", "detail"):
        old, found = (getattr(m, part).classifier for m in (model, new))
        for row, was in ((0, 2), (2, 0)):
            torch.testing.assert_close(found.weight[row], old.weight[was])
            torch.testing.assert_close(found.bias[row], old.bias[was])
        assert not found.weight[[1, 3]].any() and found.weight.shape[0] == 4
    assert new(torch.randn(1, 3, 32, 48), labels=torch.randint(0, 4, (1, 32, 48))).loss.isfinite()


def test_more_bands():
    """A network for RGB that is given five bands computes the same where the new ones are zero."""
    model = fresh_model()
    rgb, others = torch.randn(2, 3, 32, 48), torch.randn(2, 2, 32, 48)
    with torch.inference_mode():
        expected = model(rgb).logits
        five = set_num_channels(copy.deepcopy(model), 5)
        torch.testing.assert_close(five(torch.cat([rgb, 0 * others], dim=1)).logits, expected)
        assert not torch.allclose(five(torch.cat([rgb, others], dim=1)).logits, expected)


@pytest.mark.integration
def test_compile_without_graph_breaks():
    model = fresh_model(num_decoder_layers=1)
    pixel_values = torch.randn(2, 3, 45, 60)
    torch._dynamo.reset()  # what earlier tests compiled counts towards the limit of recompilations
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(pixel_values).logits, model(pixel_values).logits)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mask_activation": "tanh"}, "mask_activation is 'tanh'; sigmoid or softmax"),
        ({"num_detail_channels": 12}, "num_detail_channels is 12; a multiple of 8"),
        ({"num_detail_channels": -8}, "num_detail_channels is -8"),
    ],
)
def test_wrong_settings(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        QLSegConfig(**changes)
