"""Every stage of the stored networks against the numbers of the published implementation.

The stored tensors come from mmsegmentation 0.30 on PyTorch 2.13, CPU, fp32; see `expected.json` for their settings.
The tolerance of a stage, 1e-4 absolute, is ten times what reordered fp32 sums were seen to give.
"""

import pytest
import torch
from conftest import FIXTURES
from safetensors.torch import load_file
from torch.nn import functional as F

from qlseg_hf import QLSegViTBackbone, QLSegViTConfig, load_picture, load_vit_weights, segment
from qlseg_hf.convert.key_table import new_names
from qlseg_hf.model.image_io import resize_picture
from qlseg_hf.model.loss_qlseg import segmentation_loss
from qlseg_hf.model.scores import combine

pytestmark = pytest.mark.parity


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert found.shape == expected.shape
    torch.testing.assert_close(found.float(), expected.float(), atol=tolerance, rtol=0)


def agreement(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return (found.long() == expected.long()).float().mean().item()


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_stages(stored, attn_implementation):
    model, expected = stored.model(attn_implementation=attn_implementation).eval(), stored.tensors
    maps = model.backbone(expected["pixel_values"]).feature_maps
    assert len(maps) == len(stored.numbers["config"]["out_indices"])
    for i, feature_map in enumerate(maps):
        close(feature_map, expected[f"encoder_level_{i}"])
    grid = tuple(maps[0].shape[-2:])
    levels = model.pixel_encoder(maps, grid)
    close(torch.cat(levels, dim=1), expected["pixel_encoder_output"])
    queries, mask_logits = model.decoder(levels, grid)
    close(queries, expected["fused_queries_all_blocks"])
    class_logits = model.class_head(queries)
    close(class_logits, expected["class_logits_all_blocks"])
    close(mask_logits[:-1], expected["aux_mask_logits"])
    size = expected["pixel_values"].shape[-2:]
    upsampled = F.interpolate(mask_logits[-1], size=size, mode="bilinear", align_corners=False)
    close(upsampled[..., ::4, ::4], expected["mask_logits_at_input_size_every_4"])
    scores = combine(class_logits[-1], mask_logits[-1], size)
    close(scores[..., ::4, ::4], expected["semantic_scores_every_4"])
    output = model(expected["pixel_values"])
    close(output.logits, scores, 0)
    close(output.class_queries_logits, class_logits[-1], 0)
    close(output.masks_queries_logits, mask_logits[-1], 0)


def without_dropout(model):
    """Training mode as the stored losses were computed: dropout and drop path off."""
    return model.eval()


def test_losses(stored):
    model, expected = without_dropout(stored.model()), stored.tensors
    with torch.no_grad():
        maps = model.backbone(expected["pixel_values"]).feature_maps
        grid = tuple(maps[0].shape[-2:])
        queries, mask_logits = model.decoder(model.pixel_encoder(maps, grid), grid)
        terms = segmentation_loss(model.class_head(queries), mask_logits, expected["labels"], model.config)
    wanted = {key: value for key, value in stored.numbers["losses"].items() if key != "acc_seg"}
    assert set(terms) == set(wanted)
    for name, value in wanted.items():
        assert terms[name].item() == pytest.approx(value, rel=1e-5), name
    for labels, total in (("labels", "loss_total"), ("labels_one_empty", "loss_total_one_empty")):
        loss = model(expected["pixel_values"], labels=expected[labels]).loss
        assert loss.item() == pytest.approx(expected[total].item(), rel=1e-5)


def test_pixel_accuracy(stored):
    expected = stored.tensors
    with torch.no_grad():
        found = stored.model()(expected["pixel_values"]).logits.argmax(dim=1)
    counts = expected["labels"] != 255
    accuracy = (found == expected["labels"])[counts].float().mean().item()
    assert 100 * accuracy == pytest.approx(stored.numbers["losses"]["acc_seg"], abs=0.02)


def test_gradient_norms(stored):
    """The gradient of every key of the checkpoint; parts of a packed or stacked tensor are joined again."""
    model, expected = without_dropout(stored.model()), stored.tensors
    model(expected["pixel_values"], labels=expected["labels"]).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    for i, gradient in enumerate(gradients.pop("decoder.queries")):
        gradients[f"decoder.queries[{i}]"] = gradient
    norms = stored.numbers["gradient_norms"]
    assert len(norms) > 200
    checked = 0
    for key, norm in norms.items():
        names = new_names(key)
        if not names:
            assert key == "backbone.cls_token" and norm == 0.0
            continue
        found = torch.cat([gradients[name].flatten() for name in names]).norm().item()
        # a key bias shifts all scores of a query alike, so its exact gradient is 0 and what is stored is rounding
        assert found == pytest.approx(norm, rel=1e-4, abs=1e-7), key
        checked += len(names)
    assert checked == len(gradients)


@pytest.mark.parametrize("name", ["wide", "tall", "large"])
def test_resized_picture(stored, name):
    expected = stored.tensors[f"{name}_resized_normalised_every_2"]
    picture = load_picture(stored.picture(name))
    size = stored.processor.resized_size(*picture.shape[:2])
    found = stored.processor.normalized(resize_picture(picture, size))[:, ::2, ::2]
    std = torch.tensor(stored.numbers["std"]).view(-1, 1, 1)
    grey_levels = ((found - expected) * std).abs()
    assert grey_levels.shape == expected.shape
    assert grey_levels.max() < 1e-3  # not even one grey level: resizing repeats OpenCV's arithmetic


@pytest.mark.parametrize("name", ["wide", "tall", "large"])
def test_windows(stored, name):
    label_maps, scores = segment(stored.model(), stored.processor, stored.picture(name), return_scores=True)
    assert agreement(label_maps[0], stored.tensors[f"{name}_label_map"]) >= 0.9999
    close(scores[0][:, ::4, ::4], stored.tensors[f"{name}_scores_every_4"])


def test_scales_and_flip(stored):
    scales = (0.5, 0.75, 1, 1.25, 1.5, 1.75)
    height, width = load_picture(stored.picture("wide")).shape[:2]
    sizes = [list(stored.processor.resized_size(height, width, scale=scale)) for scale in scales for _ in range(2)]
    assert sizes == stored.numbers["tta_sizes"]["wide"]
    label_maps, probs = segment(
        stored.model(), stored.processor, stored.picture("wide"), scales=scales, flip=True, return_scores=True
    )
    assert agreement(label_maps[0], stored.tensors["wide_tta_label_map"]) >= 0.9999
    close(probs[0][:, ::4, ::4], stored.tensors["wide_tta_probabilities_every_4"], 1e-5)


@pytest.mark.parametrize("wide", ["", "_wide"])
@torch.no_grad()
def test_imagenet_vit(wide):
    """A timm ViT with a 4 x 4 position grid in an encoder of 6 x 6, on 6 x 6 and on 4 x 10."""
    config = QLSegViTConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        image_size=96,
        out_indices=[2, 3, 4],
    )
    backbone = load_vit_weights(QLSegViTBackbone(config), FIXTURES / "imagenet_vit" / "timm_vit.safetensors").eval()
    expected = load_file(FIXTURES / "imagenet_vit" / "expected.safetensors")
    maps = backbone(expected[f"pixel_values{wide}"]).feature_maps
    assert len(maps) == 3
    for i, feature_map in enumerate(maps):
        close(feature_map, expected[f"encoder_level_{i}{wide}"])
