"""ImageNet ViTs in timm's and transformers' naming, old and new; what does not fit is named."""

import json
import re

import pytest
import torch
from conftest import FIXTURES
from networks import BACKBONES, network
from safetensors.torch import load_file, save_file
from transformers import AutoBackbone, ViTConfig, ViTForImageClassification, ViTModel

from qlseg_hf import QLSegConfig, QLSegForSemanticSegmentation, QLSegViTBackbone, QLSegViTConfig, load_vit_weights
from qlseg_hf.weights import extend_projection, set_num_channels

TIMM = FIXTURES / "imagenet_vit" / "timm_vit.safetensors"


def encoder(**overrides) -> QLSegViTBackbone:
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
    return QLSegViTBackbone(
        QLSegViTConfig(**(sizes | {"image_size": 96, "out_indices": [2, 3, 4]} | overrides))
    ).eval()


NEW_NAMES = {
    **{"blocks.": "layers.", "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj"},
    **{"patch_embed.proj": "embeddings.patch_embeddings.projection", "cls_token": "embeddings.cls_token"},
    **{"pos_embed": "embeddings.position_embeddings", "^norm": "layernorm", "head": "classifier"},
}
# those that google/vit-* repositories hold
OLD_NAMES = {name: f"vit.{new}" if name != "head" else new for name, new in NEW_NAMES.items()}
OLD_NAMES |= {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense"}
OLD_NAMES |= {"blocks.": "vit.encoder.layer.", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}


def rename_weights(names: dict[str, str], attention: str, parts: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The stored weights by other names than timm's; `attention`: of query, key and value, which are `parts`."""
    renamed = {}
    for key, value in load_file(TIMM).items():
        for pattern, name in names.items():
            key = re.sub(pattern, name, key)
        if "attn.qkv" in key:
            for name, part in zip(parts, value.chunk(3)):
                renamed[key.replace("attn.qkv", attention.format(name))] = part.contiguous()
        else:
            renamed[key] = value
    return renamed


def vit_with_timm_weights(model):
    """Put the stored weights into transformers' own ViT, by its current names."""
    renamed = rename_weights(NEW_NAMES, "attention.{}_proj", ("q", "k", "v"))
    renamed = {key: value for key, value in renamed.items() if not key.startswith("classifier.")}
    # not strict: the file holds no pooler; whatever else is missing fails in the next line
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert not unexpected and all(key.startswith("pooler") for key in missing)


def vit_config(**overrides) -> ViTConfig:
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
    return ViTConfig(**sizes, image_size=64, patch_size=16, **overrides)


@torch.no_grad()
def test_our_encoder_computes_a_vit(tmp_path):
    """Against transformers' ViT with its class token cut off before the first layer: every hidden state."""
    vit = ViTModel(vit_config()).eval()
    vit_with_timm_weights(vit)
    vit.save_pretrained(tmp_path)
    backbone = load_vit_weights(encoder(image_size=64, layer_norm_eps=1e-12, out_indices=[0, 1, 4]), tmp_path)
    pixel_values = torch.randn(1, 3, 64, 64)
    tokens = vit.embeddings(pixel_values)[:, 1:]
    states = [tokens]
    for layer in vit.layers:
        states.append(layer(states[-1]))
    for found, expected in zip(backbone(pixel_values).feature_maps, (states[0], states[1], states[4])):
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model_class", [ViTModel, ViTForImageClassification])
def test_transformers_naming(tmp_path, model_class):
    model = model_class(vit_config())
    vit_with_timm_weights(model if model_class is ViTModel else model.vit)
    model.save_pretrained(tmp_path)
    same_weights(load_vit_weights(encoder(), tmp_path), load_vit_weights(encoder(), TIMM))


def test_hub_naming(tmp_path):
    """The names that google/vit-* repositories hold, sharded."""
    expected = load_vit_weights(encoder(), TIMM)
    old = rename_weights(OLD_NAMES, "attention.attention.{}", ("query", "key", "value"))
    torch.save(old, tmp_path / "vit.bin")
    same_weights(load_vit_weights(encoder(), tmp_path / "vit.bin"), expected)
    names = sorted(old)
    shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, keys in shards.items():
        save_file({key: old[key] for key in keys}, tmp_path / file)
    index = {"weight_map": {key: file for file, keys in shards.items() for key in keys}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    same_weights(load_vit_weights(encoder(), tmp_path), expected)


def same_weights(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_into_a_whole_network():
    config = QLSegConfig(
        backbone_config=encoder().config, num_labels=3, hidden_size=32, num_attention_heads=4, intermediate_size=64
    )
    model = QLSegForSemanticSegmentation(config)
    load_vit_weights(model.backbone, TIMM)
    assert torch.equal(model.backbone.layers[0].mlp.fc1.weight, load_file(TIMM)["blocks.0.mlp.fc1.weight"])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_half_precision_target():
    backbone = load_vit_weights(encoder().to(torch.bfloat16), TIMM)
    assert backbone.dtype == torch.bfloat16 and all(p.isfinite().all() for p in backbone.parameters())


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"num_hidden_layers": 5}, "missing .layers.4"),
        ({"num_hidden_layers": 3, "out_indices": [3]}, "unexpected .layers.3"),
        ({"intermediate_size": 128}, r"misshapen .layers.0.mlp.fc1.weight \(256, 64\) instead of \(128, 64\)"),
        ({"patch_size": 8}, "misshapen .embeddings.projection.weight"),
    ],
)
def test_what_does_not_fit_is_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_vit_weights(encoder(**overrides), TIMM)


def test_wrong_sources(tmp_path):
    ViTModel(vit_config()).save_pretrained(tmp_path / "vit")
    ViTModel(vit_config(hidden_act="quick_gelu")).save_pretrained(tmp_path / "quick")
    with pytest.raises(ValueError, match="has hidden_act quick_gelu, the encoder gelu"):
        load_vit_weights(encoder(), tmp_path / "quick")
    with pytest.raises(ValueError, match="has 4 attention heads, the encoder 8"):
        load_vit_weights(encoder(num_attention_heads=8), tmp_path / "vit")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds neither model.safetensors nor pytorch_model.bin"):
        load_vit_weights(encoder(), tmp_path / "empty")
    weights = load_file(TIMM)
    weights["pos_embed"] = weights["pos_embed"][:, :-2].contiguous()
    save_file(weights, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match="a class token and a square grid are wanted"):
        load_vit_weights(encoder(), tmp_path / "odd.safetensors")


# -------------------------------------------------------------------------------------------------------------- bands


def with_bands(rgb: torch.Tensor, num_channels: int) -> torch.Tensor:
    """RGB and bands of zeros."""
    return torch.cat([rgb, rgb.new_zeros(len(rgb), num_channels - 3, *rgb.shape[2:])], dim=1)


def test_projection_by_hand():
    weight = torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1)
    assert extend_projection(weight, 3) is weight
    assert extend_projection(weight, 1).flatten().tolist() == [9]
    assert extend_projection(weight, 2).flatten().tolist() == [4.5, 4.5]
    torch.testing.assert_close(extend_projection(weight, 5).flatten(), torch.tensor([1, 2, 6, 1.8, 1.8]))


@torch.no_grad()
def test_imagenet_weights_for_other_bands():
    expected, rgb = load_vit_weights(encoder(), TIMM), torch.randn(2, 3, 64, 96)
    five = load_vit_weights(encoder(num_channels=5), TIMM)
    for one, other in zip(five(with_bands(rgb, 5)).feature_maps, expected(rgb).feature_maps):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    noise = torch.cat([rgb, torch.randn(2, 2, 64, 96)], dim=1)
    assert (five(noise).feature_maps[0] - expected(rgb).feature_maps[0]).abs().max() > 0.01
    gray = rgb[:, :1]
    for bands in (1, 2):
        few = load_vit_weights(encoder(num_channels=bands), TIMM)
        for one, other in zip(
            few(gray.repeat(1, bands, 1, 1)).feature_maps, expected(gray.repeat(1, 3, 1, 1)).feature_maps
        ):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_only_rgb_is_extended(tmp_path):
    weights = load_file(TIMM)
    weights["patch_embed.proj.weight"] = weights["patch_embed.proj.weight"][:, :2].contiguous()
    save_file(weights, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"misshapen .embeddings.projection.weight \(64, 2, 16, 16\) instead"):
        load_vit_weights(encoder(num_channels=5), tmp_path / "two.safetensors")


@pytest.mark.parametrize("name", ["dinov2", "dinov3", "beit"])
@torch.no_grad()
def test_weights_of_transformers_for_other_bands(tmp_path, name):
    """Loaded into an encoder of five bands, and a whole network that is given them."""
    rgb = network(BACKBONES[name][0])
    rgb.backbone.save_pretrained(tmp_path)
    config = AutoBackbone.from_config(rgb.config.backbone_config).config
    config.num_channels = 5
    five = load_vit_weights(AutoBackbone.from_config(config).eval(), tmp_path)
    pixel_values = torch.randn(1, 3, 56, 84)
    for one, other in zip(five(with_bands(pixel_values, 5)).feature_maps, rgb.backbone(pixel_values).feature_maps):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["qlseg_vit", "dinov2", "dinov3", "beit"])
@torch.no_grad()
def test_a_trained_network_is_given_bands(tmp_path, name):
    model, pixel_values = network(BACKBONES[name][0]), torch.randn(1, 3, 40, 75)
    expected = model(pixel_values).logits
    assert set_num_channels(model, 3) is model
    set_num_channels(model, 5)
    assert model.config.backbone_config.num_channels == 5
    torch.testing.assert_close(model(with_bands(pixel_values, 5)).logits, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"pixel_values has shape \(1, 3, 40, 75\); \(B, 5, H, W\) is wanted"):
        model(pixel_values)
    model.save_pretrained(tmp_path)
    again = QLSegForSemanticSegmentation.from_pretrained(tmp_path)
    noise = torch.randn(1, 5, 40, 75)
    assert torch.equal(again(noise).logits, model(noise).logits)
    with pytest.raises(ValueError, match="a network of 5 bands cannot be given 4"):
        set_num_channels(model, 4)
