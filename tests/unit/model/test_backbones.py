"""Other backbones under the decoder: any size, gradients, saving, pretrained weights, optimiser groups, adapters."""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from backbone_checks import check_backbone, frozen, without_gradient
from conftest import ROOT
from networks import BACKBONES, MLP, SIZES, labels_for, network, tiny_config
from safetensors.torch import save_file
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    BeitConfig,
    CLIPVisionConfig,
    DeiTConfig,
    Dinov2Config,
    ResNetConfig,
    SiglipVisionConfig,
    SwinConfig,
    ViTConfig,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from qlseg_hf import QLSegForSemanticSegmentation, QLSegViTConfig, load_vit_weights


@pytest.mark.parametrize("kind", BACKBONES)
def test_backbone(kind, tmp_path, one_process):
    config, unused = BACKBONES[kind]
    model = network(config).train().eval()
    assert {name.removeprefix("backbone.") for name in frozen(model)} == {
        name for name, _ in model.backbone.named_parameters() if re.match(unused, name)
    }
    assert model.patch_size == ((14, 14) if "dinov2" in kind else (16, 16))
    check_backbone(model, tmp_path, num_projections=4 * (2 if kind in ("dinov3", "qlseg_vit") else 3))


@pytest.mark.slow
def test_compilation():
    """DINOv3's forward compiles as one graph, for a second size too."""
    model = network(BACKBONES["dinov3-last"][0])
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for size in ((40, 75), (64, 33)):
            other = torch.randn(1, 3, *size)
            torch.testing.assert_close(compiled(other).logits, model(other).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["qlseg_vit", "dinov3-last"])
def test_gradient_checkpointing(kind):
    """DINOv3's layers are checkpointed like ours."""
    model = network(BACKBONES[kind][0])
    pixel_values = torch.randn(1, 3, 40, 75)

    def gradients():
        torch.manual_seed(3)  # same dropout, same shift of positions
        model.zero_grad()
        model(pixel_values, labels=labels_for(pixel_values, num_labels=5)).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.train()
    plain = gradients()
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing]
    assert len(layers) == 3 + 1 + 2 * 2 * 2  # encoder, pixel encoder, blocks x branches x layers
    found = gradients()
    assert found.keys() == plain.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, plain[name], atol=1e-6, rtol=1e-5)


WRONG = {
    "widths": (SwinConfig(embed_dim=24, depths=[1, 1], num_heads=[2, 2], out_indices=[1, 2]), "maps of one width"),
    "grids": (
        ResNetConfig(hidden_sizes=[32, 32], depths=[1, 1], embedding_size=32, out_indices=[1, 2]),
        "ResNetBackbone has no patch size; a plain ViT",
    ),
    "pyramid": (
        BeitConfig(**SIZES | {"num_hidden_layers": 4}, **MLP, image_size=64, add_fpn=True, out_indices=[1, 2, 3, 4]),
        "a beit gives maps on several grids with add_fpn.* choose a plain ViT.*add_fpn",
    ),
    "tokens": (
        Dinov2Config(**SIZES, image_size=56, patch_size=14, reshape_hidden_states=False, out_indices=[1, 3]),
        "a dinov2 gives .* none without reshape_hidden_states; .* with reshape_hidden_states",
    ),
}


@pytest.mark.parametrize("kind", [ViTConfig, CLIPVisionConfig, SiglipVisionConfig, DeiTConfig])
def test_what_transformers_has_no_backbone_for(kind):
    with pytest.raises(
        ValueError, match=f"^{kind.model_type} is no backbone of transformers; dinov2, .* into a qlseg_"
    ):
        network(kind(**SIZES))


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_plain_vit(kind):
    config, message = WRONG[kind]
    with pytest.raises(ValueError, match=message):
        network(config)


def test_maps_on_another_grid_than_the_patches():
    """A single stage of a pyramid has one width; inference and training both refuse it."""
    model = network(SwinConfig(embed_dim=32, depths=[1, 1], num_heads=[2, 2], window_size=2, out_indices=[2]))
    for use in (lambda: model(torch.randn(1, 3, 8, 12)), model.train):
        with pytest.raises(ValueError, match=r"SwinBackbone gives maps .* are wanted; choose a plain ViT"):
            use()


@pytest.mark.parametrize("kind", BACKBONES)
def test_construction_runs_nothing(kind, monkeypatch, tmp_path):
    """Neither a forward nor autograd, in whatever way the network comes to be; training asks another backbone once."""
    config, unused = BACKBONES[kind]
    network(config).save_pretrained(tmp_path)
    calls = []
    record = torch.nn.Module.__call__
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *args, old=torch.autograd.grad, **kw: (calls.append(1), old(*args, **kw))[1]
    )
    monkeypatch.setattr(
        torch.nn.Module, "__call__", lambda self, *args, **kw: (calls.append(2), record(self, *args, **kw))[1]
    )
    with torch.device("meta"):
        network(config)
    QLSegForSemanticSegmentation.from_pretrained(tmp_path)
    model = network(config)
    assert calls == []
    state = torch.get_rng_state()
    assert model.train() is model and model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert calls.count(1) == (kind != "qlseg_vit") and (calls == []) == (kind == "qlseg_vit")
    assert len(frozen(model)) == sum(bool(re.match(unused, name)) for name, _ in model.backbone.named_parameters())
    found = list(calls)
    model.eval().train()
    copy.deepcopy(model).train()
    assert calls == found


@pytest.mark.parametrize("kind", ["qlseg_vit", "dinov3"])
def test_weights_that_are_cut_up(kind, monkeypatch):
    """DeepSpeed ZeRO-3 leaves parameters of shape (0,) as soon as a module is made."""
    config, unused = BACKBONES[kind]
    backbone = type(network(config).backbone)
    construct = backbone.__init__

    def cut_up(self, *args, **kwargs):
        construct(self, *args, **kwargs)
        if not next(self.parameters()).is_meta:
            for parameter in self.parameters():
                parameter.data = parameter.data.new_empty(0)

    monkeypatch.setattr(backbone, "__init__", cut_up)
    model = QLSegForSemanticSegmentation(tiny_config(num_labels=5, backbone_config=copy.deepcopy(config))).train()
    assert {parameter.numel() for parameter in model.backbone.parameters()} == {0}
    names = {name for name, _ in model.backbone.named_parameters() if re.match(unused, name)}
    assert set(model.unused_weights) == names == {name.removeprefix("backbone.") for name in frozen(model)}


def test_stages_of_the_own_vit():
    """Whatever stages are returned, arithmetic says what autograd finds."""
    for stages in ([0], [0, 1], [1], [1, 3], [3], [-2], [2, -1]):
        config = QLSegViTConfig(**SIZES, **MLP, image_size=32, out_indices=stages)
        model = network(config)
        maps = model.backbone(torch.randn(1, 3, 32, 48)).feature_maps
        sum(x.square().sum() for x in maps).backward()
        missing = [name for name, parameter in model.backbone.named_parameters() if parameter.grad is None]
        assert model.unused_weights == missing, stages


@pytest.mark.parametrize("kind", ["dinov2", "dinov3", "qlseg_vit"])
def test_ddp_without_train(kind, tmp_path, one_process):
    """A model as it comes from the constructor or a folder, wrapped before anyone calls `train`."""
    config, unused = BACKBONES[kind]
    network(config).save_pretrained(tmp_path)
    pixel_values = torch.randn(2, 3, 40, 75)
    for model in (network(config), QLSegForSemanticSegmentation.from_pretrained(tmp_path)):
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        for _ in range(2):
            parallel(pixel_values, labels=labels_for(pixel_values, num_labels=5)).loss.backward()
        assert without_gradient(model) == frozen(model) != []


@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
def test_wrong_pictures(kind):
    for shape in ((1, 4, 32, 32), (3, 32, 32)):
        with pytest.raises(ValueError, match=r"\(B, 3, H, W\) is wanted"):
            network(BACKBONES[kind][0])(torch.randn(shape))


# -------------------------------------------------------------------------------------------------- pretrained weights


@pytest.mark.parametrize("kind", ["dinov2", "dinov2-registers", "dinov3", "beit", "beit-pretraining"])
def test_pretrained_weights(kind, tmp_path):
    """From what AutoModel saves, with a head where there is one, into an encoder with other stages and rates."""
    config = copy.deepcopy(BACKBONES[kind][0])
    source_class = AutoModel if kind in ("dinov3", "beit-pretraining") else AutoModelForImageClassification
    torch.manual_seed(1)
    source = source_class.from_config(config).eval()
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    source.save_pretrained(tmp_path)
    config.out_indices, config.drop_path_rate = [0, 2, 3], 0.1
    model = network(config)
    assert load_vit_weights(model.backbone, tmp_path) is model.backbone
    assert not model.training and model.backbone.config.out_indices == [0, 2, 3]
    pixel_values = torch.randn(1, 3, 56, 112)  # whole patches of 14; of 16 it is cut off below
    pixel_values = pixel_values[:, :, : 56 // model.patch_size[0] * model.patch_size[0]]
    base = getattr(source, source.base_model_prefix) if source_class is not AutoModel else source
    with torch.no_grad():
        states = base(pixel_values, output_hidden_states=True).hidden_states
        maps = model.backbone(pixel_values).feature_maps
        norm = getattr(model.backbone, "layernorm", getattr(model.backbone, "norm", torch.nn.Identity()))
    for stage, found in zip((0, 2, 3), maps):
        expected = norm(states[stage])[:, -found[0, 0].numel() :]  # class and register tokens come first
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected, atol=1e-5, rtol=1e-5)


def test_hub_naming(tmp_path):
    """DINOv3's repositories hold `layer.0...`; the encoder's own names begin with `model.`."""
    config = copy.deepcopy(BACKBONES["dinov3"][0])
    source = network(config).backbone
    source.save_pretrained(tmp_path)
    weights = {key.removeprefix("model."): value for key, value in source.state_dict().items()}
    assert sum(key.startswith("layer.0.") for key in weights) > 10
    save_file(weights, tmp_path / "model.safetensors")
    torch.manual_seed(5)
    model = QLSegForSemanticSegmentation(tiny_config(num_labels=5, backbone_config=config))
    load_vit_weights(model.backbone, tmp_path)
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_hidden_layers": 4, "out_indices": [1, 4]}, r"missing \(model.layer.3"),
        ({"num_hidden_layers": 2}, r"unexpected \(model.layer.2"),
        ({"intermediate_size": 48}, r"15 misshapen \(model.layer.0.mlp.* \(32, 64\) instead of \(32, 48\)"),
        (
            {"num_attention_heads": 2},
            "has num_attention_heads 4, the encoder 2; set backbone_config.num_attention_heads",
        ),
        ({"rope_theta": 50.0}, "has rope_theta 100.0, the encoder 50.0"),
    ],
)
def test_weights_that_do_not_fit_are_named(changes, message, tmp_path):
    config = BACKBONES["dinov3"][0]
    AutoModel.from_config(config).save_pretrained(tmp_path)
    values = {key: value for key, value in config.to_dict().items() if key not in ("out_features", "stage_names")}
    backbone = network(type(config)(**values | changes)).backbone
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_vit_weights(backbone, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    with pytest.raises(ValueError, match="is a dinov3_vit, the encoder a beit; make them one kind"):
        load_vit_weights(network(BACKBONES["beit"][0]).backbone, tmp_path)


# ------------------------------------------------------------------------------------------ packages that lie apart


@pytest.mark.integration
@pytest.mark.parametrize(
    "package, folder, script", [("timm", "apart", "timm_vit.py"), ("torchao",) * 2 + ("torchao_int8.py",)]
)
def test_optional_package(package, folder, script):
    """`make` installs them apart from the rest, so the tests run in a process of their own."""
    place = Path(sys.prefix) / folder
    if not (place / package).is_dir():
        pytest.importorskip(package)
    paths = (place, ROOT, ROOT / "tests", ROOT / "tests" / "helpers")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, ROOT / "tests" / "helpers" / script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
