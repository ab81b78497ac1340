"""What someone without `qlseg_hf` does with a folder. Run by test_remote_code.py in an environment of its own:

    python without_package.py FOLDER HUB_ID HUB_BACKBONE_ID OUT PICTURE PICTURE ...

Tensors go to OUT/tensors.safetensors, the rest to OUT/facts.json.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def refusals(folder: str) -> dict[str, str]:
    """What each way of loading says to someone who does not trust the folder's code."""
    ways = {
        "AutoConfig": AutoConfig.from_pretrained,
        "AutoImageProcessor": AutoImageProcessor.from_pretrained,
        "AutoModelForSemanticSegmentation": AutoModelForSemanticSegmentation.from_pretrained,
        "pipeline": lambda folder, **kwargs: pipeline("image-segmentation", model=folder, **kwargs),
    }
    messages = {}
    for name, load in ways.items():
        for given in ({}, {"trust_remote_code": False}):
            try:
                load(folder, **given)
            except ValueError as error:
                messages[f"{name} {given}"] = str(error)
    return messages


def label_map(segments: list[dict], label2id: dict[str, int]) -> torch.Tensor:
    masks = [np.where(np.asarray(part["mask"]) > 0, label2id[part["label"]], 0) for part in segments]
    return torch.from_numpy(sum(masks)).long()


def masks_of_another_attention(model, features) -> list[bool]:
    """For each call of an attention that is neither eager nor sdpa: was there a mask, as only the decoder has them?"""
    calls = []

    def attention(module, query, key, value, mask, **kwargs):
        calls.append(mask is not None)
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("another", attention)
    model.set_attn_implementation("another")
    model(**features)
    return calls


@torch.no_grad()
def numbers(folder: str, hub_id: str, pictures: list[str], facts: dict) -> dict[str, torch.Tensor]:
    """Logits, loss, label maps, by every way in; classes are noted in `facts`."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    features = processor(pictures[0], return_tensors="pt")
    outputs = model(**features)
    labels = torch.arange(4).repeat(len(features["pixel_values"]), 4, 1)  # (windows, 4, 4)
    size = Image.open(pictures[0]).size[::-1]
    found = {
        "logits": outputs.logits,
        "masks": outputs.masks_queries_logits,
        "loss": model(features["pixel_values"], labels=labels).loss,
        "processor": processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0],
    }
    pipes = {
        "folder": pipeline("image-segmentation", model=folder, trust_remote_code=True),
        "no task": pipeline(model=folder, trust_remote_code=True),
        "hub": pipeline("image-segmentation", model=hub_id, trust_remote_code=True),
        "object": pipeline("image-segmentation", model=model, image_processor=processor),  # the stock class
    }
    for way, pipe in pipes.items():
        found[way] = label_map(pipe(pictures[0]), config.label2id)
    for number, segments in enumerate(pipes["folder"](pictures, batch_size=2)):
        found[f"batch {number}"] = label_map(segments, config.label2id)
    found["scales"] = label_map(pipes["folder"](pictures[0], scales=(1, 1.5), flip=True), config.label2id)
    facts["masked"] = masks_of_another_attention(model, features)
    names = {0: config.id2label[1], 1: "something new"}
    kept = AutoModelForSemanticSegmentation.from_pretrained(
        folder, trust_remote_code=True, id2label=names, reuse_labels=True
    )
    found["kept"] = kept.class_head.weight[0]
    facts["classes"] = {
        "config": str(type(config)),
        "model": str(type(model)),
        "backbone": str(type(model.backbone)),
        "processor": str(type(processor)),
        **{f"pipeline from {way}": str(type(pipe)) for way, pipe in pipes.items()},
    }
    return found


@torch.no_grad()
def save_again(folder: str, hub_id: str, hub_backbone: str, out: Path) -> dict[str, torch.Tensor]:
    """Save what was loaded from folder and Hub, and load the backbone alone."""
    for source, place in ((folder, out / "again"), (hub_id, out / "from hub")):
        pipe = pipeline("image-segmentation", model=source, trust_remote_code=True)
        pipe.save_pretrained(place)
    pipe.model.save_pretrained(out / "model alone")
    pipe.model.backbone.save_pretrained(out / "backbone")
    backbones = {"folder": get_class_from_dynamic_module("modeling_qlseg.QLSegViTBackbone", str(out / "backbone"))}
    backbones["folder"] = backbones["folder"].from_pretrained(out / "backbone")
    backbones["hub"] = AutoBackbone.from_pretrained(hub_backbone, trust_remote_code=True)
    backbones["model"] = pipe.model.backbone
    pixels = torch.linspace(-1, 1, 3 * 40 * 56).view(1, 3, 40, 56)
    return {f"backbone from {way}": backbone(pixels).feature_maps[-1] for way, backbone in backbones.items()}


def main(folder: str, hub_id: str, hub_backbone: str, out: str, threads: str, *pictures: str) -> None:
    torch.set_num_threads(int(threads))  # the parent's: sums are cut up by threads
    optional = ("accelerate", "cv2", "datasets", "evaluate", "peft", "torchvision")
    facts = {"package": importlib.util.find_spec("qlseg_hf") is not None}
    facts["optional"] = [name for name in optional if importlib.util.find_spec(name)]
    facts["refusals"] = refusals(folder)
    facts["executed"] = [name for name in sys.modules if name.startswith("transformers_modules.")]
    found = numbers(folder, hub_id, list(pictures), facts) | save_again(folder, hub_id, hub_backbone, Path(out))
    save_file({name: value.contiguous() for name, value in found.items()}, Path(out, "tensors.safetensors"))
    Path(out, "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
