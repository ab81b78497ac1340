"""The models that recipes build, and what a run leaves."""

import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from PIL import Image
from programs import NETWORK, write_recipe
from recipes import small_recipe
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, pipeline

from qlseg_hf import QLSegConfig, QLSegForSemanticSegmentation, QLSegImageProcessor
from qlseg_hf.training.average import average_warning
from qlseg_hf.training.build import build_model, build_processor, scale_warning
from qlseg_hf.training.recipe import Recipe, load_recipe


def test_trained_folder(whole_run, data):
    picture = data / "images" / "validation" / "0.png"
    assert (whole_run / "best" / "segmentation.py").is_file()  # its code, for use without the package
    pipe = pipeline("image-segmentation", model=str(whole_run / "best"))
    assert pipe.image_processor.window_size == 32  # the crops'
    assert {part["label"] for part in pipe(str(picture))} <= {"red", "green", "blue"}
    card = (whole_run / "best" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    value = front["model-index"][0]["results"][0]["metrics"][0]
    assert value["type"] == "mean_iou" and 0 <= value["value"] <= 1
    assert "| green |" in card and "max_steps: 24" in card and "mIoU" in card
    published = load_recipe(whole_run / "recipe.yaml").to_public()
    assert load_recipe(whole_run / "best" / "recipe.yaml") == published
    assert len(list((whole_run / "overlays").glob("*.png"))) == 3


def test_models_that_recipes_build(stored):
    names = {0: "class 3", 1: "something new"}
    recipe = small_recipe(model=str(stored.folder), label_names=names, do_reduce_labels=False, freeze_backbone=True)
    recipe.label_weights, recipe.config = {"something new": 3.0}, {"dropout": 0.0}
    processor = build_processor(recipe)
    assert processor.window_size == stored.processor.window_size
    model = build_model(recipe, processor.ignore_index)
    assert model.config.id2label == names and model.config.label_weights == [1.0, 3.0] and model.config.dropout == 0.0
    assert torch.equal(model.decoder.queries[:, 0], stored.model().decoder.queries[:, 3])
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    with pytest.raises(ValueError, match="label_weights names .'nothing'."):
        build_model(small_recipe(model=str(stored.folder), label_weights={"nothing": 1}), 255)
    for config, sentence in (
        ({"mask_wieght": 3.0}, "config sets mask_wieght, which QLSegConfig does not have; did you mean mask_weight"),
        ({"xyz": 3.0}, "config sets xyz, which QLSegConfig does not have; it has .*, mask_weight"),
        ({"backbone_config": {"hidden_sise": 32}}, "hidden_sise, which QLSegViTConfig does not .* mean hidden_size"),
    ):
        with pytest.raises(ValueError, match=sentence):
            build_model(small_recipe(label_names=["a", "b"], config=config), 255)
    with pytest.raises(ValueError, match="label_names is needed"):
        build_model(small_recipe(), 255)
    for start in ({}, {"model": str(stored.folder)}):  # the names became LABEL_0, LABEL_1, ...
        with pytest.raises(ValueError, match="config sets num_labels 7, and label_names are 2; leave it out"):
            build_model(small_recipe(label_names=["a", "b"], config={"num_labels": 7}, **start), 255)


@pytest.mark.parametrize("stored", ["b"], indirect=True)
def test_a_model_that_lacks_weights_is_not_trained(stored, tmp_path):
    """They were drawn at random, and the run went on at the rate of a trained model."""
    folder = tmp_path / "model"
    shutil.copytree(stored.folder, folder)
    weights = load_file(folder / "model.safetensors")
    stored_bias = weights.pop("class_head.bias")
    save_file(weights | {"class_heads.bias": stored_bias}, folder / "model.safetensors", {"format": "pt"})
    for labels in ({}, {"label_names": ["class 3", "new"], "do_reduce_labels": False}):
        with pytest.raises(ValueError, match="1 missing .class_head.bias.; 1 unexpected .class_heads.bias.; copy the"):
            build_model(small_recipe(model=str(folder), **labels), 255)
    recipe = small_recipe(model=str(stored.folder), config={"use_label_classifier": True})
    assert build_model(recipe, 255).label_classifier is not None


def shifted(stored, **settings) -> Recipe:
    """A recipe of three labels of its own on a model that reduces labels."""
    names = {0: "red", 1: "green", 2: "blue"}
    return small_recipe(**({"model": str(stored.folder), "label_names": names} | settings))


@pytest.mark.parametrize("stored", ["a"], indirect=True)
def test_own_labels_on_a_model_that_reduces_labels(stored):
    assert stored.processor.do_reduce_labels
    both = (
        "which may be wrong for them: set do_reduce_labels: false if 'red' is stored as 0, 'blue' as 2, or "
        "do_reduce_labels: true if 0 is void and 'red' is stored as 1, 'blue' as 3"
    )
    with pytest.raises(ValueError, match=f"brings label_names, and {stored.folder} reduces labels, {both}$"):
        build_processor(shifted(stored))
    with pytest.raises(ValueError, match="brings label_names, .* 'sky' is stored as 0, 'sea' as 1, or"):
        build_processor(shifted(stored, label_names=["sky", "sea"]))
    for key, value in (("label_mapping", {10: 0, 20: 1}), ("label_colors", {0: [0, 0, 0]})):
        with pytest.raises(ValueError, match=f"brings {key}, .*set do_reduce_labels: false if label 0 is 0, or"):
            build_processor(shifted(stored, label_names=None, **{key: value}))
    for said in ({"do_reduce_labels": False}, {"do_reduce_labels": True}, {"processor": {"do_reduce_labels": False}}):
        wanted = said.get("processor", said)["do_reduce_labels"]
        assert build_processor(shifted(stored, **said)).do_reduce_labels is wanted
    assert build_processor(shifted(stored, label_names=None)).do_reduce_labels
    with pytest.raises(ValueError, match="do_reduce_labels is True, but False in processor; give it once"):
        build_processor(shifted(stored, do_reduce_labels=True, processor={"do_reduce_labels": False}))


@pytest.mark.parametrize("stored", ["a"], indirect=True)
def test_own_labels_on_a_model_with_a_label_map(stored, tmp_path):
    model = shutil.copytree(stored.folder, tmp_path / "model")
    QLSegImageProcessor.from_pretrained(model, label_mapping={255: 1}, do_reduce_labels=False).save_pretrained(model)
    recipe = shifted(stored, model=str(model))
    with pytest.raises(
        ValueError, match=r"translates stored values by label_mapping {255: 1}, .* set label_mapping: {} if"
    ):
        build_processor(recipe)
    recipe.label_mapping = {}
    assert not build_processor(recipe).label_mapping
    recipe.label_mapping, recipe.label_names = None, None
    assert build_processor(recipe).label_mapping == {255: 1}


def test_bands_of_a_model_need_mean_and_deviation(network):
    with pytest.raises(ValueError, match="num_channels is 5, but mean and deviation are those of 3 bands"):
        build_processor(small_recipe(model=str(network), num_channels=5))


@pytest.mark.parametrize("stored", ["a"], indirect=True)
def test_ignored_value_that_is_a_label(stored):
    remedy = "set do_reduce_labels: true and ignore_index: 255 if 0 is void and 'red' is stored as 1"
    for changes in ({}, {"model": None}):
        recipe = shifted(stored, do_reduce_labels=False, ignore_index=0, **changes)
        with pytest.raises(ValueError, match=f"ignore_index: 0 is also label 0, 'red', of 3; {remedy}"):
            build_model(recipe, build_processor(recipe).ignore_index)
    with pytest.raises(
        ValueError, match="ignore_index: 4 is also label 4, 'class 4', of 20; set label_mapping: {4: 255}"
    ):
        build_model(shifted(stored, label_names=None), 4)
    with pytest.raises(ValueError, match="config sets semantic_loss_ignore_index, which follows ignore_index"):
        build_model(shifted(stored, config={"semantic_loss_ignore_index": 7}), 255)


@pytest.mark.parametrize("stored", ["a"], indirect=True)
def test_doubtful_reduction_stops_a_recipe_that_says_nothing(stored, server, tmp_path):
    """Labels of the model's own names, stored from 0: 1..20 would be reduced rightly."""
    for lowest in (0, 1):
        for split in ("training", "validation"):
            for part in ("images", "annotations"):
                folder = tmp_path / f"{lowest}" / part / split
                folder.mkdir(parents=True)
                values = np.arange(20, dtype=np.uint8).repeat(40).reshape(20, 40) + lowest
                Image.fromarray(values if split == "training" else values[::-1]).save(folder / "a.png")
    reads = {"model": str(stored.folder), "label_names": None, "config": {}}
    done = server.complete("check", write_recipe(tmp_path, tmp_path / "0", **reads))
    sentence = "0 is ignored, and 20 is 'class 19', but never occurs; set do_reduce_labels: false if 0 is 'wall"
    assert done.returncode == 1 and "the data set cannot be trained on: with do_reduce_labels: true" in done.stderr
    assert sentence in done.stderr
    assert "reduced: do_reduce_labels: true (as set)" in done.stdout
    said = server.complete("check", tmp_path / "recipe.yaml", "--do_reduce_labels", "true", expect=0)
    assert f"warning: with do_reduce_labels: true the stored value {sentence}" in said.stdout
    done = server.complete("check", write_recipe(tmp_path, tmp_path / "1", **reads), expect=0)
    assert "warning" not in done.stdout and "20 of 20 labels occur" in done.stdout


def test_dinov3_recipe(server, data, tmp_path):
    """recipes/dinov3-vit-l-ade20k.yaml, its sizes cut down, for two steps from stored weights, with LoRA."""
    pytest.importorskip("peft")
    pytest.importorskip("cv2")
    path = ROOT / "qlseg_hf" / "recipes" / "dinov3-vit-l-ade20k.yaml"
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    vit_l = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    backbone = recipe["config"]["backbone_config"]
    assert vit_l.items() <= backbone.items() and backbone["out_indices"] == [8, 16, 24]
    head = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert "HAS NOT BEEN RUN" in head and "Expected mIoU: unknown" in head
    with torch.device("meta"):
        whole = QLSegForSemanticSegmentation(QLSegConfig(**recipe["config"]))
    assert whole.unused_weights == ["embeddings.mask_token"]

    backbone |= {key: value for key, value in NETWORK["backbone_config"].items() if key in vit_l}
    backbone |= {"out_indices": [1, 2]}
    AutoModel.from_config(AutoConfig.for_model(**backbone)).save_pretrained(tmp_path / "weights")
    small = {key: value for key, value in NETWORK.items() if key != "backbone_config"}
    recipe["config"] |= small | {"backbone_config": backbone}
    changes = recipe | {
        "data": str(data),
        "label_names": {0: "red", 1: "green", 2: "blue"},
        "do_reduce_labels": False,
        "backbone": str(tmp_path / "weights"),
        "crop_size": 32,
        "resize_box": None,
        "processor": recipe["processor"] | {"size": {"shortest_edge": 32}, "window_size": 32, "window_stride": 20},
        "max_steps": 2,
        "num_workers": 0,
        "lora": 2,
        "output_dir": str(tmp_path / "run"),
    }
    server.complete("train", write_recipe(tmp_path, data, **changes), expect=0)
    trained = QLSegForSemanticSegmentation.from_pretrained(tmp_path / "run" / "last").backbone
    weights = load_file(tmp_path / "weights" / "model.safetensors")  # named as DINOv3's repositories have it
    stored = {re.sub(r"^layer\.", "model.layer.", name): value for name, value in weights.items()}
    moved = [name for name, value in trained.state_dict().items() if not torch.equal(value, stored[name])]
    assert sorted(moved) == sorted(
        f"model.layer.{i}.attention.{part}_proj.weight" for i in range(2) for part in ("q", "k", "v", "o")
    )


@pytest.mark.parametrize("stored", ["a"], indirect=True)
def test_weights_of_labels_are_those_of_the_recipe(stored, tmp_path):
    """Not those of the run before, of which the recipe that is written beside the model would say nothing."""
    stored.model(label_weights=[2.0] * 20).save_pretrained(tmp_path)
    stored.processor.save_pretrained(tmp_path)
    assert QLSegConfig.from_pretrained(tmp_path).label_weights == [2.0] * 20
    for changes, weights in (
        ({}, None),
        ({"label_weights": [3.0] * 20}, [3.0] * 20),
        ({"config": {"label_weights": [4.0] * 20}}, [4.0] * 20),
    ):
        model = build_model(small_recipe(model=str(tmp_path), **changes), 255)
        assert model.config.label_weights == weights


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"crop_size": 32}, None),
        ({"crop_size": 64}, "of 64 pixels times scale_range, and evaluated with one of 32, .*: \\[2048, 32\\]"),
        ({"crop_size": 64, "resize_box": [2048, 32]}, None),
        ({"crop_size": 32, "resize_box": [90, 40]}, "short side of 40 pixels .* evaluated with one of 32"),
        ({"crop_size": 32, "processor": {"do_resize": False}}, "evaluated as large as they are .*resize_box: \\[long"),
        ({"crop_size": 32, "processor": {"do_resize": False}, "resize_box": [90, 40]}, None),
        ({"crop_size": 32, "processor": {"size": {"height": 48, "width": 40}}}, "evaluated with one of 40"),
    ],
)
def test_a_size_that_is_not_trained_on_is_told(network, changes, sentence):
    recipe = small_recipe(model=str(network), **changes)
    found = scale_warning(recipe, build_processor(recipe))
    assert found is None if sentence is None else re.search(sentence, found)


def test_an_average_of_the_first_weights_is_told():
    """0.9999 over 1000 steps evaluates and saves nine tenths of the model that training starts from."""
    assert average_warning(0.9999, 1000).endswith("saved after 1000 steps; 0.9977 leaves 10%")
    assert average_warning(0.9999, 1000).startswith("ema_decay 0.9999 leaves 90% of the weights")
    assert average_warning(0.9977, 1000) is average_warning(0.9999, 160_000) is average_warning(None, 1) is None


def test_recipes_train_on_the_size_that_they_measure():
    paths = [path for path in (ROOT / "qlseg_hf" / "recipes").glob("*.yaml") if "\nmodel:" not in path.read_text()]
    assert len(paths) > 5
    for recipe in map(load_recipe, paths):
        assert scale_warning(recipe, build_processor(recipe)) is None
