"""What must hold of a network on any encoder."""

import copy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import labels_for
from transformers import AutoModelForSemanticSegmentation

from qlseg_hf import QLSegConfig, QLSegImageProcessor, segment
from qlseg_hf.training.build import add_lora, plain_model
from qlseg_hf.training.optimization import parameter_groups


def frozen(model) -> list[str]:
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


def without_gradient(model) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.grad is None]


def check_backbone(model, folder: Path, num_projections: int):
    """All that follows, of an encoder of three layers."""
    check_sizes(model)
    check_gradients(model)
    check_round_trip(model, folder)
    check_segment(model)
    check_groups(model, depth=3)
    check_lora(model, num_projections)


@torch.no_grad()
def check_sizes(model):
    """Every size: padded with zeros at the bottom and right to whole patches; a patch stands where it lies."""
    patch = model.patch_size[0]
    for size in ((4 * patch, 4 * patch), (2 * patch, 5 * patch), (3 * patch - 1, 2 * patch + 1), (1, 70)):
        pixel_values = torch.randn(2, 3, *size)
        output = model(pixel_values)
        grid = tuple(-(-side // patch) for side in size)
        assert output.logits.shape == (2, 5, *size) and output.logits.isfinite().all()
        assert output.masks_queries_logits.shape == (2, 5, *grid)
        padded = pixel_values.new_zeros(2, 3, *(n * patch for n in grid))
        padded[:, :, : size[0], : size[1]] = pixel_values
        assert torch.equal(model(padded).masks_queries_logits, output.masks_queries_logits)
    pixel_values = torch.randn(1, 3, 2 * patch, 5 * patch)
    changed = pixel_values.clone()
    changed[:, :, patch:, 3 * patch : 4 * patch] += 1
    for before, after in zip(model.backbone(pixel_values).feature_maps, model.backbone(changed).feature_maps):
        assert (after - before).norm(dim=1).argmax() == 5 + 3  # class and register tokens would shift it


def check_gradients(model):
    """Two steps of DDP, which fails if a trainable parameter has no gradient."""
    pixel_values = torch.randn(2, 3, 40, 75)
    labels = labels_for(pixel_values, num_labels=5)
    model.train()(pixel_values, labels=labels).loss.backward()
    assert without_gradient(model) == frozen(model)
    model.zero_grad()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    for _ in range(2):
        parallel(pixel_values, labels=labels).loss.backward()
    assert without_gradient(model) == frozen(model)
    model.zero_grad()


def check_groups(model, depth: int):
    """Rates fall with depth, norms are not decayed, and every trainable parameter is in one group."""
    groups = parameter_groups(model, 1.0, 0.01, layer_decay=0.5)
    found = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups)
    rates = set()
    for name, parameter in model.named_parameters():
        assert (id(parameter) in found) == parameter.requires_grad
        if name.startswith("backbone.") and parameter.requires_grad:
            group = found[id(parameter)]
            rates.add(group["lr"])
            assert (group["weight_decay"] == 0) == ("norm" in name), name
    assert rates >= {0.5 ** (depth + 1), 0.5**depth, 0.5 ** (depth - 1)}  # embeddings, layers 0 and 1


def check_lora(model, num_projections: int):
    """Adapters where a gradient can reach them, which change nothing at first and something after training.

    The merged network computes what the trained one does.
    """
    model = copy.deepcopy(model)
    if find_spec("peft") is None:
        with pytest.raises(ImportError, match="lora needs the package peft"):
            add_lora(model, rank=2)
        return
    pixel_values = torch.randn(2, 3, 40, 75)
    with torch.no_grad():
        before = model.eval()(pixel_values).logits
        add_lora(model, rank=2)
        torch.testing.assert_close(model.eval()(pixel_values).logits, before)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model.train()(pixel_values, labels=labels_for(pixel_values, num_labels=5)).loss.backward()
        assert without_gradient(model) == frozen(model)
        optimizer.step()
        optimizer.zero_grad()
    adapters = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
    assert len(adapters) == 2 * num_projections and all(p.abs().sum() > 0 for p in adapters.values())
    plain = plain_model(model, model.state_dict())
    assert not any("lora" in name for name in plain.state_dict())
    with torch.no_grad():
        adapted = model.eval()(pixel_values).logits
        torch.testing.assert_close(plain(pixel_values).logits, adapted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(adapted, before)


def check_round_trip(model, folder: Path):
    """Folder and JSON; what is frozen stays so."""
    config = QLSegConfig(**QLSegConfig.from_dict(model.config.to_dict()).to_dict())
    assert config.to_json_string() == model.config.to_json_string()
    model.eval().save_pretrained(folder)
    again = AutoModelForSemanticSegmentation.from_pretrained(folder)
    pixel_values = torch.randn(1, 3, 40, 75)
    assert torch.equal(again(pixel_values).logits, model(pixel_values).logits)
    assert frozen(again.train()) == frozen(model)
    half = AutoModelForSemanticSegmentation.from_pretrained(folder, dtype=torch.bfloat16)
    assert half(pixel_values).logits.dtype == torch.bfloat16  # fp32 pictures are cast where they enter


def check_segment(model):
    patch = model.patch_size[0]
    processor = QLSegImageProcessor(size={"shortest_edge": 3 * patch}, window_size=3 * patch, window_stride=2 * patch)
    picture = np.random.default_rng(0).integers(0, 256, (50, 83, 3), dtype=np.uint8)
    with torch.no_grad():
        outputs = model(**processor(picture, return_tensors="pt"))
    (expected,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(50, 83)])
    assert torch.equal(segment(model, processor, picture)[0], expected) and expected.shape == (50, 83)
