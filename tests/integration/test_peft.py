"""LoRA by peft itself and by transformers' integration: train, save, load, merge, segment."""

import copy

import numpy as np
import pytest
import torch
import transformers
from networks import BACKBONES, labels_for, network
from packaging import version
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, pipeline
from transformers.integrations.peft import MIN_PEFT_VERSION

from qlseg_hf import QLSegForSemanticSegmentation, QLSegImageProcessor, QLSegImageSegmentationPipeline, segment

peft = pytest.importorskip("peft")

# q_proj is ours, DINOv3's, BEiT's and DINOv2's (query in transformers 5.17); qkv in timm
SETTINGS = peft.LoraConfig(
    r=2,
    target_modules=r"backbone\..*\.(q_proj|v_proj|query|value)",
    modules_to_save=["pixel_encoder", "decoder", "class_head"],
)
# transformers 5.17 drops modules_to_save where it loads an adapter itself; peft does not
LOADS_HEADS = version.parse(transformers.__version__) >= version.parse("5.23")
HEAD = ("pixel_encoder.", "decoder.", "class_head.")


@pytest.fixture(params=["qlseg_vit", "dinov2", "dinov3-last"])
def base(request, tmp_path):
    """A folder with a network that uses its last layer, so that every adapter has a gradient."""
    config = copy.deepcopy(BACKBONES[request.param][0])
    config.out_indices = [1, 3]
    network(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def load(folder, **kwargs) -> QLSegForSemanticSegmentation:
    return AutoModelForSemanticSegmentation.from_pretrained(folder, **kwargs).eval()


def train(model) -> None:
    """Two steps; in DDP's sense every trainable parameter must have a gradient."""
    pixel_values = torch.randn(2, 3, 40, 75, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model.train()(pixel_values=pixel_values, labels=labels_for(pixel_values, num_labels=5)).loss.backward()
        assert all((p.grad is None) != p.requires_grad for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def check_same(model, trained, untrained):
    """`model` computes what `trained` does, and `untrained` something else."""
    pixel_values = torch.randn(1, 3, 40, 75)
    with torch.no_grad():
        expected, before = trained(pixel_values=pixel_values).logits, untrained(pixel_values=pixel_values).logits
        # merged weights round differently, and masks have edges
        torch.testing.assert_close(model(pixel_values=pixel_values).logits, expected, atol=1e-4, rtol=1e-4)
    assert (expected - before).abs().max() > 0.01


def check_inference(model):
    """`segment` and the pipeline take it, and leave it as it was."""
    processor = QLSegImageProcessor(size={"shortest_edge": 48}, window_size=48, window_stride=32)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 83, 3), dtype=np.uint8))
    label_map = segment(model, processor, picture)[0]
    segmenter = pipeline("image-segmentation", model=model, image_processor=processor)
    assert isinstance(segmenter, QLSegImageSegmentationPipeline)
    parts = {part["label"]: np.asarray(part["mask"]) == 255 for part in segmenter(picture)}
    assert parts and sum(mask.sum() for mask in parts.values()) == label_map.numel()
    for name, mask in parts.items():
        assert np.array_equal(mask, label_map.numpy() == model.config.label2id[name])


def test_get_peft_model(base, tmp_path):
    model = peft.get_peft_model(load(base), copy.deepcopy(SETTINGS))
    trainable = [name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad]
    assert trainable and all(".lora_" in name or name.startswith(HEAD) for name in trainable)
    assert {name.split(".")[0] + "." for name in trainable} == {"backbone.", *HEAD}
    train(model)
    check_inference(model)
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load(base), tmp_path / "adapter").eval()
    check_same(again, model, load(base))
    if LOADS_HEADS:
        check_same(load(tmp_path / "adapter"), model, load(base))  # finds its base by the path that peft has noted
    merged = again.merge_and_unload()
    assert type(merged) is QLSegForSemanticSegmentation
    check_inference(merged)
    merged.save_pretrained(tmp_path / "merged")
    check_same(load(tmp_path / "merged"), model, load(base))


@pytest.mark.skipif(
    version.parse(peft.__version__) < version.parse(MIN_PEFT_VERSION),
    reason=f"transformers {transformers.__version__} wants peft {MIN_PEFT_VERSION}, this is {peft.__version__}",
)
@pytest.mark.skipif(not LOADS_HEADS, reason="transformers below 5.23 drops modules_to_save of an adapter it loads")
def test_add_adapter(base, tmp_path):
    """The model stays a QLSeg; what is saved is the adapter and the trained copies of the head."""
    model = load(base)
    model.add_adapter(copy.deepcopy(SETTINGS), "mine")
    train(model)
    check_inference(model)
    model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    again = load(base)
    again.load_adapter(tmp_path / "adapter")
    head = again.class_head.modules_to_save["default"]
    assert not torch.equal(head.weight, load(base).class_head.weight)
    check_same(again, model, load(base))
    check_same(load(tmp_path / "adapter"), model, load(base))
    check_same(peft.PeftModel.from_pretrained(load(base), tmp_path / "adapter").eval(), model, load(base))
    model.disable_adapters()
    check_same(model, load(base), again)


def test_a_network_that_peft_has_wrapped_tells_that_it_will_not_load(tmp_path, caplog):
    model = network(BACKBONES["qlseg_vit"][0])
    adapted = peft.get_peft_model(model, SETTINGS)
    model.save_pretrained(tmp_path)
    assert "weights are saved under other names, as adapters of peft give them" in caplog.text
    caplog.clear()
    adapted.merge_and_unload().save_pretrained(tmp_path)
    assert "other names" not in caplog.text
