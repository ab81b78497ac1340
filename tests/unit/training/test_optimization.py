"""Parameter groups and schedule against the published implementation: rates, decays, and 8 training steps."""

import copy

import pytest
import torch
from accelerate import Accelerator
from networks import tiny_config
from recipes import small_recipe
from torch import nn
from transformers import AutoBackbone, Dinov2Config

from qlseg_hf import QLSegForSemanticSegmentation
from qlseg_hf.convert.key_table import new_names
from qlseg_hf.training.optimization import learning_rate_factor, parameter_groups, warmup_warning
from qlseg_hf.training.step import training_step


def settings_by_name(model: nn.Module, groups: list[dict]) -> dict[str, tuple[float, float]]:
    """(lr, weight decay) of every parameter in `groups`; no parameter may be in two."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    listed = [
        (names[id(parameter)], (group["lr"], group["weight_decay"]))
        for group in groups
        for parameter in group["params"]
    ]
    assert len(listed) == len(dict(listed))
    return dict(listed)


def dinov2_model() -> nn.Module:
    """A tiny DINOv2 in the place of the encoder; its norms, layers and scales have other names than ours."""
    model = QLSegForSemanticSegmentation(tiny_config())
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=14)
    model.backbone = AutoBackbone.from_config(config)
    return model


# ----------------------------------------------------------------------------------------------------------- groups


@pytest.mark.parity
def test_stored_groups(stored):
    model = stored.model()
    groups = parameter_groups(model, learning_rate=1e-4, weight_decay=0.01)
    found = settings_by_name(model, groups)
    assert set(found) == set(dict(model.named_parameters()))
    expected = stored.numbers["param_groups"]
    assert len(expected) > 200
    checked = set()
    for key, settings in expected.items():
        names = [name.split("[")[0] for name in new_names(key)]
        assert names or key == "backbone.cls_token"
        for name in names:
            assert found[name] == pytest.approx((settings["lr"], settings["weight_decay"]), rel=1e-12), key
        checked |= set(names)
    assert checked == set(found)
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups] == [
        ("backbone", 1e-4, 0.01),
        ("backbone norms", 1e-4, 0.0),
        ("head", pytest.approx(1e-3), 0.01),
    ]


@pytest.mark.parity
def test_stored_trajectory(stored):
    """Losses and gradient norms of 8 steps of the trainer, dropout off. The stored labels are already reduced.

    Both were seen to agree to 3e-7 relative. More is allowed for machines that sum in another order, because AdamW
    turns the rounding of a tiny gradient into whole steps.
    """
    training, numbers = stored.numbers["training"], stored.numbers
    recipe = small_recipe(
        total_batch_size=2,
        max_steps=training["total_steps"],
        warmup_steps=training["warmup_steps"],
        poly_power=training["power"],
    )
    model, accelerator = stored.model().eval(), Accelerator(cpu=True)
    groups = parameter_groups(model, training["base_lr"], recipe.weight_decay, recipe.head_lr_multiplier)
    optimizer = torch.optim.AdamW([group | {"initial_lr": group["lr"]} for group in groups], betas=(0.9, 0.999))
    model, optimizer = accelerator.prepare(model, optimizer)
    mean, std = (torch.tensor(numbers[name]).view(3, 1, 1) for name in ("mean", "std"))
    for step in range(8):
        pixels, labels = (stored.tensors[f"train_{kind}_uint8"][step] for kind in ("images", "labels"))
        batch = {"pixel_values": (pixels - mean) / std, "labels": labels}
        loss, norm, terms = training_step(accelerator, model, optimizer, [batch], recipe, step)
        assert terms.sum().item() == pytest.approx(loss.item(), rel=1e-5) and (terms > 0).all()
        assert loss.item() == pytest.approx(training["loss"][step], rel=1e-5)
        assert float(norm) == pytest.approx(training["grad_norm"][step], rel=1e-4)


def test_frozen_parameters_are_left_out(tiny_model):
    tiny_model.backbone.requires_grad_(False)
    groups = parameter_groups(tiny_model, 1e-4, 0.01)
    assert [group["name"] for group in groups] == ["head"]
    found = settings_by_name(tiny_model, groups)
    assert set(found) == {name for name, _ in tiny_model.named_parameters() if not name.startswith("backbone.")}


def test_equal_settings_share_a_group(tiny_model):
    groups = parameter_groups(tiny_model, 1e-4, weight_decay=0.0, head_lr_multiplier=1.0)
    assert [group["name"] for group in groups] == ["backbone, backbone norms, head"]
    assert len(groups[0]["params"]) == len(list(tiny_model.parameters()))


def test_order_of_groups_and_parameters(tiny_model):
    """Optimiser states are stored by position, so a resumed run needs the same order."""
    twin = QLSegForSemanticSegmentation(tiny_config())

    def order(model):
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = parameter_groups(model, 1e-4, 0.01, layer_decay=0.5)
        return [(group["name"], [names[id(p)] for p in group["params"]]) for group in groups]

    assert len(order(tiny_model)) > 3
    assert order(tiny_model) == order(twin)


def test_layer_decay(tiny_model):
    groups = parameter_groups(tiny_model, 1.0, 0.01, head_lr_multiplier=10.0, layer_decay=0.5)
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups] == [
        ("backbone embeddings", 0.125, 0.01),
        ("backbone layer 0 norms", 0.25, 0.0),
        ("backbone layer 0", 0.25, 0.01),
        ("backbone layer 1 norms", 0.5, 0.0),
        ("backbone layer 1", 0.5, 0.01),
        ("head", 10.0, 0.01),
    ]
    found = settings_by_name(tiny_model, groups)
    assert found["backbone.embeddings.position_embeddings"] == (0.125, 0.01)
    assert found["backbone.layers.1.layernorm_after.bias"] == (0.5, 0.0)
    assert found["decoder.blocks.0.branches.0.0.norm1.weight"] == (10.0, 0.01)


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_another_backbone(layer_decay):
    model = dinov2_model()
    groups = parameter_groups(model, 1.0, 0.01, layer_decay=layer_decay)
    found = settings_by_name(model, groups)
    assert set(found) == set(dict(model.named_parameters()))
    expected = {
        "embeddings.cls_token": (layer_decay**3, 0.01),
        "embeddings.patch_embeddings.projection.bias": (layer_decay**3, 0.01),
        "encoder.layer.0.norm1.weight": (layer_decay**2, 0.0),
        "encoder.layer.0.layer_scale1.lambda1": (layer_decay**2, 0.01),
        "encoder.layer.1.norm2.bias": (layer_decay, 0.0),
        "encoder.layer.1.mlp.fc1.bias": (layer_decay, 0.01),
        "layernorm.weight": (1.0, 0.0),
    }
    for name, settings in expected.items():
        assert found[f"backbone.{name}"] == settings, name
    assert found["class_head.bias"] == (10.0, 0.01)


def test_norm_by_type():
    """RMS and batch norms of any library count as norms; a linear layer called `norm` does not."""

    class TinyRMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

    class Plain(TinyRMSNorm):
        """A norm by its base class."""

    backbone = nn.ModuleDict({"rms": TinyRMSNorm(), "sub": Plain(), "bn": nn.BatchNorm2d(4), "norm": nn.Linear(4, 4)})
    model = nn.ModuleDict({"backbone": backbone})
    found = settings_by_name(model, parameter_groups(model, 1.0, 0.01))
    decays = {name.removeprefix("backbone."): decay for name, (_, decay) in found.items()}
    norms = {"rms.weight": 0.0, "sub.weight": 0.0, "bn.weight": 0.0, "bn.bias": 0.0}
    assert decays == norms | {"norm.weight": 0.01, "norm.bias": 0.01}


def test_wrapped_models(tiny_model):
    """The prefixes of peft, DDP and torch.compile change nothing."""
    plain = settings_by_name(tiny_model, parameter_groups(tiny_model, 1.0, 0.01, layer_decay=0.5))
    base = nn.ModuleDict({"model": tiny_model})
    for prefix, wrapped in [
        ("base_model.model.", nn.ModuleDict({"base_model": base})),
        ("_orig_mod.", torch.compile(tiny_model)),
    ]:
        found = settings_by_name(wrapped, parameter_groups(wrapped, 1.0, 0.01, layer_decay=0.5))
        assert {name.removeprefix(prefix): value for name, value in found.items()} == plain


def test_lora(tiny_model):
    """Adapters in the encoder have its rate, whole modules that train beside them the head's."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=2, target_modules=r"backbone\..*\.(q_proj|v_proj)", modules_to_save=["class_head", "layernorm_after"]
    )
    model = peft.get_peft_model(copy.deepcopy(tiny_model), config)
    found = settings_by_name(model, parameter_groups(model, 1.0, 0.01, layer_decay=0.5))
    prefix = "base_model.model."
    assert found[prefix + "backbone.layers.0.attention.q_proj.lora_A.default.weight"] == (0.25, 0.01)
    assert found[prefix + "backbone.layers.1.attention.v_proj.lora_B.default.weight"] == (0.5, 0.01)
    assert found[prefix + "backbone.layers.1.layernorm_after.modules_to_save.default.weight"] == (0.5, 0.0)
    assert found[prefix + "class_head.modules_to_save.default.weight"] == (10.0, 0.01)
    assert set(found) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(found) == 2 * 2 * 2 + 2 * 2 + 2


def test_wrong_use_of_groups(tiny_model):
    for layer_decay in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"layer_decay is {layer_decay}; a factor above 0 and at most 1"):
            parameter_groups(tiny_model, 1e-4, 0.01, layer_decay=layer_decay)
    with pytest.raises(ValueError, match="Linear has no parameter below `backbone`; give a QLSeg model"):
        parameter_groups(nn.Linear(2, 2), 1e-4, 0.01)
    unnumbered = nn.ModuleDict({"backbone": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="layer_decay below 1 needs an encoder with numbered layers"):
        parameter_groups(unnumbered, 1e-4, 0.01, layer_decay=0.5)
    with pytest.raises(ValueError, match="every parameter is frozen"):
        parameter_groups(tiny_model.requires_grad_(False), 1e-4, 0.01)


# --------------------------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize(
    "step, max_steps, warmup_steps, power, factor",
    [
        (0, 100, 0, 1.0, 1.0),
        (25, 100, 0, 1.0, 0.75),
        (50, 100, 0, 2.0, 0.25),
        (99, 100, 0, 1.0, 0.01),
        (100, 100, 0, 1.0, 0.0),
        (101, 100, 0, 2.0, 0.0),
        (0, 100, 10, 1.0, 1e-6),
        (5, 100, 10, 1.0, 0.95 * 0.5000005),
        (9, 100, 10, 1.0, 0.91 * 0.9000001),
        (10, 100, 10, 1.0, 0.9),
        (1, 2, 4, 1.0, 0.5 * 0.25000075),
        (2, 2, 4, 1.0, 0.0),
        (750, 160_000, 1500, 1.0, 0.9953125 * 0.5000005),
    ],
)
def test_learning_rate_factor(step, max_steps, warmup_steps, power, factor):
    assert learning_rate_factor(step, max_steps, warmup_steps, power) == pytest.approx(factor, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("step, max_steps, warmup_steps", [(0, 0, 0), (-1, 10, 0), (0, 10, -1)])
def test_wrong_steps(step, max_steps, warmup_steps):
    message = f"step {step} of {max_steps} with {warmup_steps} warm-up steps; counts from 0"
    with pytest.raises(ValueError, match=message):
        learning_rate_factor(step, max_steps, warmup_steps)


def test_runs_that_end_in_their_warm_up():
    """They trained at a small part of the learning rate, without a word."""
    for released in (160_000, 80_000, 40_000):
        assert warmup_warning(released, 1500, 1.0) is None
    assert warmup_warning(2, 1, 1.0) is warmup_warning(1, 0, 0.9) is None
    found = warmup_warning(100, 1500, 1.0)
    assert found.startswith("with warmup_steps 1500 and max_steps 100 the learning rate never exceeds 0.017 of")
