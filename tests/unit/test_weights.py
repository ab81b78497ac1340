"""ImageNet ViTs in timm's and transformers' naming, old and new; what does not fit is named."""

import json

import pytest
import torch
from conftest import FIXTURES
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from qlseg_hf import QLSegConfig, QLSegForSemanticSegmentation, QLSegViTBackbone, QLSegViTConfig, load_vit_weights

TIMM = FIXTURES / "imagenet_vit" / "timm_vit.safetensors"


def encoder(**overrides) -> QLSegViTBackbone:
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
    return QLSegViTBackbone(
        QLSegViTConfig(**(sizes | {"image_size": 96, "out_indices": [2, 3, 4]} | overrides))
    ).eval()


def vit_with_timm_weights(model):
    """Put the stored weights into transformers' own ViT, by its current names."""
    weights, renamed = load_file(TIMM), {}
    for key, value in weights.items():
        if key.startswith("head."):
            continue
        key = (
            key.replace("blocks.", "layers.").replace("norm1", "layernorm_before").replace("norm2", "layernorm_after")
        )
        key = key.replace("attn.proj", "attention.o_proj").replace(
            "patch_embed.proj", "embeddings.patch_embeddings.projection"
        )
        key = key.replace("pos_embed", "embeddings.position_embeddings").replace("cls_token", "embeddings.cls_token")
        key = key.replace("norm.", "layernorm.") if key.startswith("norm.") else key
        if "attn.qkv" in key:
            for name, part in zip("qkv", value.chunk(3)):
                renamed[key.replace("attn.qkv", f"attention.{name}_proj")] = part
        else:
            renamed[key] = value
    # not strict: the file holds no pooler; whatever else is missing fails in the next line
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert not unexpected and all(key.startswith("pooler") for key in missing)


def vit_config() -> ViTConfig:
    return ViTConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256, image_size=64, patch_size=16
    )


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
    old = {}
    for key, value in load_file(TIMM).items():
        key = key.replace("blocks.", "vit.encoder.layer.").replace("norm1", "layernorm_before")
        key = key.replace("norm2", "layernorm_after").replace("attn.proj", "attention.output.dense")
        key = key.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
        key = key.replace("patch_embed.proj", "vit.embeddings.patch_embeddings.projection")
        key = key.replace("pos_embed", "vit.embeddings.position_embeddings")
        key = key.replace("cls_token", "vit.embeddings.cls_token").replace("head.", "classifier.")
        key = key.replace("norm.", "vit.layernorm.") if key.startswith("norm.") else key
        if "attn.qkv" in key:
            for name, part in zip(("query", "key", "value"), value.chunk(3)):
                old[key.replace("attn.qkv", f"attention.attention.{name}")] = part.contiguous()
        else:
            old[key] = value
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
