# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The rivals: SegFormer and EoMT of transformers, DPT of segmentation_models_pytorch.

Unet, FPN and UPerNet of segmentation_models_pytorch 0.6.0 take no plain ViT ("Unsupported model downsampling
pattern"), so they cannot stand on the same encoder. Weights are mapped from timm's naming alone.
"""

import re
from functools import partial

import torch
from contestants import Contestant, Study, usual_rate
from torch import nn
from torch.nn import functional as F
from transformers import EomtConfig, EomtForUniversalSegmentation, SegformerConfig, SegformerForSemanticSegmentation

from qlseg_hf.weights import read_weights

DPT_MULTIPLE = 32  # of which the sides of its input have to be multiples, with patches of 16 pixels
TIMM_NAMES = {192: "tiny", 384: "small", 768: "base", 1024: "large"}
EOMT_LAYER_DECAY = 0.8


def read_timm_weights(study: Study) -> dict[str, torch.Tensor]:
    """Weights of the study's encoder; ValueError if they are not in timm's naming."""
    weights = read_weights(study.encoder.source, None, None)[0]
    if "patch_embed.proj.weight" not in weights:
        raise ValueError(
            f"{study.encoder.source} is not in timm's naming, from which the rivals' are mapped; give one"
        )
    return {key: value for key, value in weights.items() if not key.startswith("head.")}


class Segformer(nn.Module):
    def __init__(self, num_labels: int):
        super().__init__()
        self.network = SegformerForSemanticSegmentation(SegformerConfig(num_labels=num_labels))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.network(pixel_values).logits  # (B, K, H/4, W/4)


def build_segformer(study: Study) -> Contestant:
    """SegFormer-B0 with the rates of its paper; no pretrained encoder can be read from the study's weights."""
    network = Segformer(study.num_labels)
    groups = [
        {"params": list(network.network.segformer.parameters()), "lr": 6e-5, "weight_decay": 0.01},
        {"params": list(network.network.decode_head.parameters()), "lr": 6e-4, "weight_decay": 0.01},
    ]
    rates = "encoder 6e-05, head 0.0006, decay 0.01"
    return Contestant("segformer-b0", study, network, groups, "RANDOM weights", rates, power=1.0)


class DPT(nn.Module):
    """DPT with the widths of Depth Anything's small network; images are padded to whole strides."""

    def __init__(self, study: Study):
        super().__init__()
        import segmentation_models_pytorch as smp

        name = f"tu-vit_{TIMM_NAMES[study.encoder.width]}_patch{study.encoder.patch_size}_224"
        self.network = smp.DPT(
            name,
            encoder_weights=None,
            classes=study.num_labels,
            decoder_intermediate_channels=(48, 96, 192, 384),
            decoder_fusion_channels=64,
            dynamic_img_size=True,
        )
        self.network.encoder.model.load_state_dict(read_timm_weights(study) | self.head_weights())

    def head_weights(self) -> dict[str, torch.Tensor]:
        state = self.network.encoder.model.state_dict()
        return {key: value for key, value in state.items() if key.startswith("head.")}

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        height, width = pixel_values.shape[-2:]
        padded = F.pad(pixel_values, (0, -width % DPT_MULTIPLE, 0, -height % DPT_MULTIPLE))
        return self.network(padded)[..., :height, :width]


def build_dpt(study: Study) -> Contestant:
    network, rate = DPT(study), usual_rate(study.encoder.width)
    encoder = list(network.network.encoder.parameters())
    head = [*network.network.decoder.parameters(), *network.network.segmentation_head.parameters()]
    groups = [{"params": encoder, "lr": rate}, {"params": head, "lr": 10 * rate}]
    groups = [group | {"weight_decay": 0.01} for group in groups]
    rates = f"encoder {rate:g}, head {10 * rate:g}, decay 0.01"
    return Contestant("dpt", study, network, groups, "the same weights", rates)


class EomtContestant(Contestant):
    """EoMT with the encoder's weights, its class token, positions and final norm among them.

    The last quarter of the layers has queries. Masked attention is turned off one layer after the other in the course
    of training, as its paper has it; the schedule (equal spans, power 0.9) is ours. `is_fast`: the rates of the linear
    head in place of the paper's 1e-4 with a layer decay of 0.8, which is for tens of thousands of steps.
    """

    def __init__(self, study: Study, is_fast: bool):
        encoder, crop = study.encoder, study.recipe.crop_size
        config = EomtConfig(
            hidden_size=encoder.width,
            num_hidden_layers=encoder.depth,
            num_attention_heads=encoder.config["num_attention_heads"],
            image_size=crop,
            patch_size=encoder.patch_size,
            num_blocks=max(1, encoder.depth // 4),
            num_queries=100,
            num_register_tokens=0,
            num_labels=study.num_labels,
        )
        network = EomtForUniversalSegmentation(config)
        weights = eomt_weights(read_timm_weights(study), (crop // encoder.patch_size,) * 2)
        # not strict: the head is new; whatever else is missing or left over fails below
        missing, unexpected = network.load_state_dict(weights, strict=False)
        new = ("query.", "upscale_block.", "mask_head.", "class_predictor.", "criterion.", "attn_mask_probs")
        new += ("embeddings.register_tokens",)  # there are none
        wrong = [key for key in missing if not key.startswith(new) and "layer_scale" not in key]
        assert not wrong and not unexpected, (wrong, unexpected)
        rate = usual_rate(encoder.width) if is_fast else 1e-4
        groups = eomt_groups(network, set(weights), rate, is_fast)
        rates = f"encoder {rate:g}, head {10 * rate:g}, decay 0.01" if is_fast else "1e-4, layer decay 0.8, decay 0.05"
        name = "eomt-fast" if is_fast else "eomt"
        super().__init__(
            name, study, network, groups, "the same weights", rates, setup={"config": config.to_diff_dict()}
        )

    def loss(self, pixel_values: torch.Tensor, labels: torch.Tensor, done: float) -> torch.Tensor:
        count = self.network.config.num_blocks
        for block in range(count):
            share = min(max(done * (count + 2) - (block + 1), 0), 1)  # of the span in which this block's mask vanishes
            self.network.attn_mask_probs[block] = (1 - share) ** 0.9
        present = [[label for label in one.unique().tolist() if label != self.study.ignore_index] for one in labels]
        masks = [torch.stack([one == label for label in found]).float() for one, found in zip(labels, present)]
        classes = [torch.tensor(found, device=labels.device) for found in present]
        return self.network(pixel_values, mask_labels=masks, class_labels=classes).loss

    def scores(self, pixel_values: torch.Tensor) -> torch.Tensor:
        found = self.network(pixel_values)
        probabilities = found.class_queries_logits.float().softmax(dim=-1)[..., :-1]  # (1, Q, K)
        return torch.einsum("bqk, bqhw -> bkhw", probabilities, found.masks_queries_logits.float().sigmoid())


def resize_positions(positions: torch.Tensor, old, new) -> torch.Tensor:
    """(N, D) position embeddings of a grid of patches to those of another, bicubic."""
    maps = positions.T.reshape(1, -1, *old).float()
    return F.interpolate(maps, size=tuple(new), mode="bicubic").flatten(2)[0].T.contiguous()


def eomt_weights(weights: dict[str, torch.Tensor], grid: tuple[int, int]) -> dict[str, torch.Tensor]:
    """timm's ViT in EoMT's names. Layer scales stay 1, and the class token takes its position."""
    positions, side = weights["pos_embed"][0], round((len(weights["pos_embed"][0]) - 1) ** 0.5)
    named = {
        "embeddings.cls_token": weights["cls_token"] + positions[:1],
        "embeddings.position_embeddings.weight": resize_positions(positions[1:], (side, side), grid),
    }
    for key, value in weights.items():
        key = re.sub(r"^blocks\.", "layers.", key)
        key = key.replace("patch_embed.proj.", "embeddings.patch_embeddings.projection.")
        key = re.sub(r"^norm\.", "layernorm.", key).replace(".attn.proj.", ".attention.out_proj.")
        if ".attn.qkv." in key:
            for letter, part in zip("qkv", value.chunk(3)):
                named[key.replace(".attn.qkv.", f".attention.{letter}_proj.")] = part
        elif key not in ("pos_embed", "cls_token"):
            named[key] = value
    return named


def eomt_groups(network: nn.Module, pretrained: set[str], rate: float, is_fast: bool) -> list[dict]:
    """Groups of AdamW; a parameter is the encoder's if its weights were pretrained, or scales one of its layers."""
    depth, groups = network.config.num_hidden_layers, []
    for key, parameter in network.named_parameters():
        is_encoder = key in pretrained or "layer_scale" in key
        layer = re.match(r"layers\.(\d+)\.", key)
        if is_fast:
            factor = 1 if is_encoder else 10
        else:
            number = int(layer[1]) if layer else -1 if key.startswith("embeddings.") else depth - 1
            factor = EOMT_LAYER_DECAY ** (depth - 1 - number) if is_encoder else 1
        groups.append({"params": [parameter], "lr": rate * factor, "weight_decay": 0.01 if is_fast else 0.05})
    return groups


PEERS = {
    "segformer-b0": build_segformer,
    "dpt": build_dpt,
    "eomt": partial(EomtContestant, is_fast=False),
    "eomt-fast": partial(EomtContestant, is_fast=True),
}

__all__ = ["PEERS"]
