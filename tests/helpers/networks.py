"""Tiny networks with fresh weights, on encoders of several kinds."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import BeitConfig, Dinov2Config, Dinov2WithRegistersConfig, DINOv3ViTConfig

from qlseg_hf import QLSegConfig, QLSegForSemanticSegmentation, QLSegImageProcessor, QLSegViTConfig

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "drop_path_rate": 0.0}
MLP = {"intermediate_size": 64}
# configuration, and the weights (below `backbone.`) that no map depends on
BACKBONES = {
    "qlseg_vit": (QLSegViTConfig(**SIZES, **MLP, image_size=64, out_indices=[1, 2]), r"layers\.2\."),
    "dinov2": (Dinov2Config(**SIZES, image_size=56, patch_size=14, out_indices=[1, 3]), r"embeddings\.mask_token"),
    "dinov2-no-norm": (
        Dinov2Config(**SIZES, image_size=56, patch_size=14, out_indices=[1, 3], apply_layernorm=False),
        r"embeddings\.mask_token|layernorm\.",
    ),
    "dinov2-registers": (
        Dinov2WithRegistersConfig(
            **SIZES, image_size=56, patch_size=14, num_register_tokens=3, use_swiglu_ffn=True, out_indices=[0, 3]
        ),
        r"embeddings\.mask_token",
    ),
    "dinov3": (
        DINOv3ViTConfig(**SIZES, **MLP, image_size=64, num_register_tokens=3, out_indices=[1, 2], use_gated_mlp=True),
        r"embeddings\.mask_token|model\.layer\.2\.",
    ),
    "dinov3-last": (
        DINOv3ViTConfig(**SIZES, **MLP, image_size=64, num_register_tokens=2, out_indices=[2, 3], pos_embed_shift=0.1),
        r"embeddings\.mask_token",
    ),
    "beit": (BeitConfig(**SIZES, **MLP, image_size=64, use_relative_position_bias=True, out_indices=[1, 3]), "none"),
    "beit-pretraining": (
        BeitConfig(
            **SIZES,
            **MLP,
            image_size=64,
            use_absolute_position_embeddings=True,
            use_shared_relative_position_bias=True,
            use_mask_token=True,
            use_mean_pooling=False,
            out_indices=[1, 2, 3],
        ),
        r"beit\.embeddings\.mask_token|beit\.layernorm\.",
    ),
}


def network(backbone, **overrides) -> QLSegForSemanticSegmentation:
    """A tiny QLSeg on a backbone."""
    return varied_model(tiny_config(num_labels=5, backbone_config=copy.deepcopy(backbone), **overrides))


def tiny_config(num_labels: int = 20, levels: tuple[int, ...] = (1, 2), **overrides) -> QLSegConfig:
    """32 wide, as many layers as it has levels from, 2, for pictures around 32 x 48."""
    backbone = QLSegViTConfig(
        hidden_size=32,
        num_hidden_layers=max(levels),
        num_attention_heads=4,
        intermediate_size=64,
        image_size=[32, 48],
        out_indices=list(levels),
    )
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 32, "num_pixel_encoder_layers": 1}
    sizes |= {"pixel_encoder_intermediate_size": 32, "num_decoder_blocks": 2, "num_decoder_layers": 2}
    return QLSegConfig(num_labels=num_labels, **({"backbone_config": backbone} | sizes | overrides))


def varied_model(config: QLSegConfig, seed: int = 0) -> QLSegForSemanticSegmentation:
    """Fresh weights, drawn with wider deviations than the paper's, so that masks and labels are not degenerate."""
    torch.manual_seed(seed)
    model = QLSegForSemanticSegmentation(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def first_network(
    config: QLSegConfig, is_varied: Callable[[QLSegForSemanticSegmentation], bool]
) -> QLSegForSemanticSegmentation:
    """That of the first seed whose labels vary as a test wants, whatever a version of transformers draws before."""
    return next(model for seed in range(30) if is_varied(model := varied_model(config, seed)))


def labels_for(pixel_values: torch.Tensor, num_labels: int = 20) -> torch.Tensor:
    """(B, H, W) labels in vertical stripes, so that several labels occur."""
    columns = torch.arange(pixel_values.shape[-1]) * num_labels // pixel_values.shape[-1]
    return columns.expand(pixel_values.shape[0], *pixel_values.shape[-2:]).contiguous()


def tiny_model_and_processor(**settings) -> tuple[QLSegForSemanticSegmentation, QLSegImageProcessor]:
    """The tiny network and a processor with windows that overlap."""
    window = {"size": {"shortest_edge": 32}, "window_size": 32, "window_stride": 20}
    return varied_model(tiny_config()), QLSegImageProcessor(**(window | settings))


def rename_labels(folder: Path, names: dict[int, str]) -> dict[int, str]:
    """Give labels of a saved network other names; those of all of them."""
    config = json.loads((folder / "config.json").read_text())
    names = {int(label): name for label, name in config["id2label"].items()} | names
    config |= {"id2label": names, "label2id": {name: label for label, name in names.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    return names


def timm_weights(width: int = 64, depth: int = 3) -> dict[str, torch.Tensor]:
    """A ViT in timm's naming, with weights to begin with: patches of 8, stored for 32 pixels."""
    weights = {
        "patch_embed.proj.weight": torch.randn(width, 3, 8, 8) / 14,
        "pos_embed": torch.randn(1, 17, width) / 50,
    }
    weights |= {"patch_embed.proj.bias": torch.zeros(width), "cls_token": torch.zeros(1, 1, width)}
    shapes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    shapes |= {"mlp.fc1": (2 * width, width), "mlp.fc2": (width, 2 * width)}
    for i in range(depth):
        for name, shape in shapes.items():
            weights[f"blocks.{i}.{name}.weight"] = torch.randn(shape) / shape[1] ** 0.5
            weights[f"blocks.{i}.{name}.bias"] = torch.zeros(shape[0])
        for name in ("norm1", "norm2"):
            weights[f"blocks.{i}.{name}.weight"] = torch.ones(width)
            weights[f"blocks.{i}.{name}.bias"] = torch.zeros(width)
    return weights
