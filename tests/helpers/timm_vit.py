"""timm's ViTs under the decoder: run by tests/unit/model/test_backbones.py.

A process of its own, because timm brings torchvision, which the other tests go without.
"""

import copy
import sys

import pytest
import torch
from safetensors.torch import save_file

if __name__ == "__main__":
    import matching_torchvision  # noqa: F401

    sys.exit(pytest.main(["-q", __file__]))

import timm  # noqa: E402
from backbone_checks import check_backbone, frozen  # noqa: E402
from networks import network  # noqa: E402
from transformers import TimmBackboneConfig  # noqa: E402

from qlseg_hf import load_vit_weights  # noqa: E402
from qlseg_hf.training.build import add_lora  # noqa: E402
from qlseg_hf.weights import set_num_channels  # noqa: E402


@pytest.mark.parametrize("name", ["test_vit", "test_vit3", "vit_small_patch16_dinov3"])
def test_timm_backbone(name, tmp_path, one_process):
    model = network(TimmBackboneConfig(backbone=name, out_indices=[0, 2]))
    assert model.patch_size == (16, 16) and not frozen(model)  # timm cuts off what is not used
    check_backbone(model, tmp_path, num_projections=2 * 3)


@pytest.fixture
def source(tmp_path):
    """A network of timm with a head, whose weights are saved in `tmp_path`."""
    source = timm.create_model("test_vit", num_classes=7).eval()
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    return source


@torch.no_grad()
def test_weights(source, tmp_path):
    model = network(TimmBackboneConfig(backbone="test_vit", out_indices=[0, 2]))
    before = copy.deepcopy(model.backbone.state_dict())
    for place in (tmp_path, tmp_path / "model.safetensors"):
        load_vit_weights(model.backbone, place)
    assert any(not torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    size = source.patch_embed.img_size
    pixel_values = torch.randn(1, 3, *size)
    expected = source.forward_intermediates(pixel_values, indices=[0, 2], intermediates_only=True)
    for found, wanted in zip(model.backbone(pixel_values).feature_maps, expected):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    other = network(TimmBackboneConfig(backbone="test_vit2", out_indices=[0, 2])).backbone
    with pytest.raises(ValueError, match="does not fit this encoder: .*missing"):
        load_vit_weights(other, tmp_path)


def test_one_size_only():
    with pytest.raises(ValueError, match="timm's beit_base_patch16_224 takes pictures of one size"):
        network(TimmBackboneConfig(backbone="beit_base_patch16_224", out_indices=[0, 2]))


def test_lora_would_do_nothing():
    pytest.importorskip("peft")
    model = network(TimmBackboneConfig(backbone="vit_small_patch16_dinov3_qkvb", out_indices=[0, 2]))
    with pytest.raises(ValueError, match="no attention of vit_small_patch16_dinov3_qkvb that takes adapters"):
        add_lora(model, rank=2)


@torch.no_grad()
def test_other_bands(source, tmp_path):
    rgb = network(TimmBackboneConfig(backbone="test_vit", out_indices=[0, 2]))
    five = network(TimmBackboneConfig(backbone="test_vit", out_indices=[0, 2], num_channels=5))
    for model in (rgb, five):
        load_vit_weights(model.backbone, tmp_path)
    pixel_values = torch.randn(1, 3, 64, 96)
    wide = torch.cat([pixel_values, torch.zeros(1, 2, 64, 96)], dim=1)
    expected = rgb.backbone(pixel_values).feature_maps
    for found, wanted in zip(five.backbone(wide).feature_maps, expected):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    logits = rgb(pixel_values).logits
    set_num_channels(rgb, 5)
    torch.testing.assert_close(rgb(wide).logits, logits, atol=1e-4, rtol=1e-4)
