"""What the weights of a pretrained ViT say about themselves."""

import json

import pytest
import torch
from huggingface_hub import HfApi
from networks import timm_weights
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model, DINOv3ViTConfig, ViTConfig, ViTModel

from qlseg_hf import QLSegConfig, QLSegForSemanticSegmentation
from qlseg_hf.training import encoder_choice
from qlseg_hf.training.auto import head_config
from qlseg_hf.training.encoder_choice import describe_encoder, find_encoder
from qlseg_hf.weights import load_vit_weights


def network(encoder):
    config = head_config(encoder, 32)
    return QLSegForSemanticSegmentation(QLSegConfig(**config, num_labels=3))


@pytest.mark.parametrize("place", ["file", "folder"])
def test_timm_weights_say_their_sizes(tmp_path, place):
    weights = timm_weights()
    save_file(weights, tmp_path / "model.safetensors")
    found = describe_encoder(tmp_path / "model.safetensors" if place == "file" else tmp_path)
    assert (found.width, found.depth, found.patch_size, found.is_own_kind) == (64, 3, 8, True)
    assert found.config["intermediate_size"] == 128 and found.config["num_attention_heads"] == 1
    assert found.image_mean == [0.5] * 3 and "does not say" in found.note
    model = network(found)
    load_vit_weights(model.backbone, found.source)
    torch.testing.assert_close(model.backbone.layers[2].mlp.fc1.weight, weights["blocks.2.mlp.fc1.weight"])


def test_timm_config_gives_mean_and_deviation(tmp_path):
    save_file(timm_weights(), tmp_path / "model.safetensors")
    stored = {"architecture": "vit_x", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    found = describe_encoder(tmp_path)
    assert (found.image_mean, found.image_std, found.note) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6], "")


def test_vit_of_transformers(tmp_path):
    save_vit(tmp_path)
    found = describe_encoder(tmp_path)
    assert found.config["num_attention_heads"] == 4 and found.depth == 2 and found.is_own_kind
    load_vit_weights(network(found).backbone, found.source)


def test_dinov2_keeps_its_own_class(tmp_path):
    config = Dinov2Config(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=28, mlp_ratio=2)
    theirs = Dinov2Model(config)
    theirs.save_pretrained(tmp_path)
    found = describe_encoder(tmp_path)
    assert (found.width, found.depth, found.patch_size, found.is_own_kind) == (32, 3, 14, False)
    assert found.image_mean == [0.485, 0.456, 0.406]
    model = network(found)
    assert model.config.backbone_config.mlp_ratio == 2 and model.patch_size == (14, 14)
    load_vit_weights(model.backbone, found.source)
    weight = model.backbone.state_dict()["embeddings.patch_embeddings.projection.weight"]
    torch.testing.assert_close(weight, theirs.state_dict()["embeddings.patch_embeddings.projection.weight"])


def test_dinov3_configuration_comes_along(tmp_path):
    config = DINOv3ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_register_tokens=3)
    config.save_pretrained(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    found = describe_encoder(tmp_path)
    assert found.config["model_type"] == "dinov3_vit" and found.config["num_register_tokens"] == 3
    assert network(found).backbone.config.num_register_tokens == 3


@pytest.mark.parametrize(
    "weights, sentence",
    [
        ({"conv1.weight": torch.zeros(8, 3, 7, 7)}, "holds no plain ViT"),
        (timm_weights(width=72), "does not say how many attention heads"),
    ],
)
def test_what_is_no_plain_vit_is_refused(tmp_path, weights, sentence):
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=sentence):
        describe_encoder(tmp_path)


def test_without_a_network_the_file_to_fetch_is_named(monkeypatch):
    def unreachable(repo_id, *_, **__):
        asked.append(repo_id)
        raise encoder_choice.LocalEntryNotFoundError("no network here")

    asked = []
    monkeypatch.setattr(encoder_choice, "hf_hub_download", unreachable)
    with pytest.raises(
        ValueError, match=r"no network here.*https://huggingface.co/timm/\S+/model.safetensors.*--backbone"
    ):
        find_encoder("base")
    assert asked == list(encoder_choice.SIZES["base"])


def test_gated_weights_leave_the_next(monkeypatch):
    def gated(repo_id, *_, **__):
        if "dinov3" in repo_id:
            raise encoder_choice.LocalEntryNotFoundError("gated")
        return "config.json"

    monkeypatch.setattr(encoder_choice, "hf_hub_download", gated)
    monkeypatch.setattr(encoder_choice, "describe_encoder", lambda source: source)
    assert find_encoder("small") == "timm/vit_small_patch16_384.augreg_in21k_ft_in1k"


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
# as facebook/dino-vitb16 and facebook/dinov3-vitl16-pretrain-sat493m have it: not what most of their kind were given
OWN = {"image_mean": [0.430, 0.411, 0.296], "image_std": [0.213, 0.156, 0.143]}


def save_encoder(model, folder, settings):
    model.save_pretrained(folder)
    if settings:
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def save_vit(folder, **settings):
    save_encoder(ViTModel(ViTConfig(**SIZES, intermediate_size=48, image_size=32)), folder, settings)


def save_dinov2(folder, **settings):
    save_encoder(Dinov2Model(Dinov2Config(**SIZES, image_size=28, mlp_ratio=2)), folder, settings)


@pytest.mark.parametrize("save", [save_vit, save_dinov2])
@pytest.mark.parametrize("on_the_hub", [False, True])
def test_files_beside_the_weights_give_mean_and_deviation(save, on_the_hub, hub, tmp_path):
    save(tmp_path, **OWN)
    source = str(tmp_path)
    if on_the_hub:
        source = f"me/{save.__name__}"
        HfApi().create_repo(source)
        HfApi().upload_folder(repo_id=source, folder_path=tmp_path)
    found = describe_encoder(source)
    assert (found.image_mean, found.image_std, found.note) == (OWN["image_mean"], OWN["image_std"], "")


@pytest.mark.parametrize("save, mean", [(save_vit, 0.5), (save_dinov2, 0.485)])
def test_mean_and_deviation_that_no_file_gives_are_told(save, mean, tmp_path):
    save(tmp_path)
    found = describe_encoder(tmp_path)
    assert found.image_mean[0] == mean and "does not say how its images were normalised" in found.note


def test_a_file_of_weights_has_its_config_beside_it(tmp_path):
    save_vit(tmp_path, **OWN)
    found = describe_encoder(tmp_path / "model.safetensors")
    assert found.config["num_attention_heads"] == 4 and found.image_mean == OWN["image_mean"]
    load_vit_weights(network(found).backbone, found.source)
    save_dinov2(tmp_path)
    with pytest.raises(ValueError, match="lies beside the config.json of a dinov2; give their folder"):
        describe_encoder(tmp_path / "model.safetensors")
