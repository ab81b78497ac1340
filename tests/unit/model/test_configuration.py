"""Numbers of the released networks, validation and JSON."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from networks import tiny_config
from transformers import AutoConfig, AutoModelForSemanticSegmentation, Dinov2Config

from qlseg_hf import RELEASES, QLSegConfig, QLSegForSemanticSegmentation, QLSegImageProcessor, QLSegViTConfig
from qlseg_hf.releases import label_set


# D / layers / heads, C / decoder heads, image, K, 0-based layers, drop path; millions of parameters where published
@pytest.mark.parametrize(
    "name, numbers, whole, encoder",
    [
        ("vit-b-ade20k", (768, 12, 12, 384, 12, 512, 150, [5, 7, 11], 0.1), 171.1, 86.4),
        ("vit-l-ade20k", (1024, 24, 16, 512, 16, 640, 150, [7, 15, 23], 0.3), 450.3, 304.7),
        ("vit-l-cocostuff10k", (1024, 24, 16, 512, 16, 512, 171, [7, 15, 23], 0.3), None, None),
        ("vit-l-pascal-context-59", (1024, 24, 16, 512, 16, 480, 59, [7, 15, 23], 0.3), None, None),
        ("vit-l-pascal-context-60", (1024, 24, 16, 512, 16, 480, 60, [7, 15, 23], 0.3), None, None),
    ],
)
def test_releases(name, numbers, whole, encoder):
    config = QLSegConfig.for_release(name)
    vit = config.backbone_config
    layers = [stage - 1 for stage in vit.out_indices]
    found = (vit.hidden_size, vit.num_hidden_layers, vit.num_attention_heads, config.hidden_size)
    found += (config.num_attention_heads, vit.image_size, config.num_labels, layers, vit.drop_path_rate)
    assert found == numbers
    assert len(config.palette) == config.num_labels
    if whole:
        with torch.device("meta"):
            model = QLSegForSemanticSegmentation(config)
        assert round(model.num_parameters() / 1e6, 1) == whole
        assert round(model.backbone.num_parameters() / 1e6, 1) == encoder


def test_defaults_are_vit_l_ade20k():
    default, released = QLSegConfig().to_dict(), QLSegConfig.for_release("vit-l-ade20k").to_dict()
    differing = {key for key in released if released[key] != default.get(key)}
    assert differing <= {"id2label", "label2id", "palette"}
    assert QLSegImageProcessor().to_dict() | {"do_reduce_labels": True} == (
        QLSegImageProcessor.for_release("vit-l-ade20k").to_dict()
    )


def test_every_release_has_its_way_of_measuring():
    found = {}
    for name in RELEASES:
        processor = QLSegImageProcessor.for_release(name)
        mean = round(255 * processor.image_mean[0], 3)
        found[name] = (processor.size.shortest_edge, processor.window_size, processor.window_stride, mean)
        found[name] += (processor.do_reduce_labels,)
    assert found == {
        "vit-b-ade20k": (512, 512, 341, 123.675, True),
        "vit-l-ade20k": (640, 640, 608, 127.5, True),
        "vit-l-cocostuff10k": (512, 512, 341, 127.5, True),
        "vit-l-pascal-context-59": (520, 480, 320, 127.5, True),
        "vit-l-pascal-context-60": (520, 480, 320, 127.5, False),
    }


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: QLSegConfig.for_release("vit-h"), "unknown release 'vit-h'; choose one of vit-b-ade20k"),
        (lambda: label_set("cityscapes"), "unknown label set 'cityscapes'"),
        (lambda: tiny_config(num_labels=0), "at least one label"),
        (lambda: tiny_config(num_attention_heads=3), "hidden_size 16 is not a multiple of num_attention_heads 3"),
        (lambda: tiny_config(num_decoder_blocks=0), "num_decoder_blocks is 0"),
        (lambda: tiny_config(num_attention_heads=0), "num_attention_heads is 0; it must be at least 1"),
        (
            lambda: tiny_config(num_pixel_encoder_layers=0),
            "num_pixel_encoder_layers is 0",
        ),  # leaves level codes unused
        (lambda: tiny_config(num_labels="3"), "num_labels is '3'"),
        (lambda: QLSegConfig(num_labels=3, id2label={0: "a"}), "num_labels is 3, and id2label has 1 names; leave"),
        (lambda: tiny_config(mask_wieght=3.0), "unknown key mask_wieght; did you mean mask_weight"),
        (lambda: QLSegConfig(num_lables=3), "unknown key num_lables; did you mean num_labels"),
        (lambda: QLSegViTConfig(drop_path_rte=0.0), "unknown key drop_path_rte; did you mean drop_path_rate"),
        (
            lambda: QLSegConfig(backbone_config={"model_type": "dinov2", "hiden_size": 32}),
            "unknown key hiden_size; did you mean hidden_size",
        ),
        (
            lambda: QLSegConfig(backbone_config=Dinov2Config(hiden_size=32)),
            "unknown key hiden_size; did you mean hidden_size",
        ),
        (
            lambda: QLSegConfig(backbone_config={"model_type": "dinov4"}),
            "model_type 'dinov4' of backbone_config is none; dinov2, .* are, and load_vit_weights puts the weights",
        ),
        (lambda: tiny_config(class_weight=float("nan")), "class_weight is nan; a finite number"),
        (lambda: tiny_config(position_temperature=0), "position_temperature is 0"),
        (lambda: tiny_config(focal_alpha=2), "focal_alpha 2 is outside"),
        (lambda: tiny_config(label_weights=[-1.0] * 20), "label_weights must be finite numbers, 0 or more"),
        (lambda: tiny_config(palette=[[0, 0, 256]] * 20), "palette must hold one RGB triple of 0..255 per label"),
        (lambda: tiny_config(hidden_size="16"), "Field 'hidden_size' expected int, got str"),
        (lambda: tiny_config(hidden_size=True), "Field 'hidden_size' expected int, got bool"),
        (lambda: tiny_config(dropout=True), "Field 'dropout' with value True doesn't match any type"),
        (lambda: QLSegConfig(id2label=["a"]), r"id2label.*\['a'\]"),
        (lambda: QLSegConfig(label2id={"a": 0, "b": 1}), "label2id alone names no labels; give id2label="),
        (lambda: QLSegConfig.from_dict({}, label2id={"a": 0}), "label2id alone names no labels"),
        (lambda: QLSegConfig(id2label={0: 7}), r"id2label.*7"),
        (lambda: tiny_config(dropout=1.0), "dropout 1.0 is outside"),
        (lambda: tiny_config(semantic_loss_ignore_index=3), "ignore_index 3 is one of the 20 labels"),
        (lambda: QLSegConfig(id2label={1: "a", 2: "b"}), "id2label must have the keys 0..1"),
        (lambda: QLSegViTConfig(hidden_size=30, num_attention_heads=4), "hidden_size 30 is not a multiple"),
        (lambda: QLSegViTConfig(image_size=100), "image_size 100 is not a multiple of patch_size 16"),
        (lambda: QLSegViTConfig(drop_path_rate=1.0), "drop_path_rate 1.0 is outside"),
        (lambda: QLSegViTConfig(out_indices=[25]), "out_indices must be valid indices"),
        (lambda: QLSegViTConfig(out_indices=[-26]), r"out_indices \[-26\] must be stages 0..24"),
        (lambda: QLSegViTConfig(out_indices=[]), "out_indices is empty"),
        (lambda: QLSegViTConfig(patch_size=0), "patch_size is 0"),
        (lambda: QLSegViTConfig(num_hidden_layers=-1), "num_hidden_layers is -1"),
        (lambda: QLSegViTConfig(image_size=[64]), r"image_size \[64\] must be one side or"),
        (lambda: QLSegViTConfig(layer_norm_eps=-1.0), "layer_norm_eps is -1.0"),
        (lambda: QLSegForSemanticSegmentation(tiny_config(num_group_norm_groups=5)), "must be a multiple of 4"),
    ],
)
def test_validation(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(("name", "value"), [("mask_activation", "softmx"), ("label_weights", [float("nan")] * 20)])
def test_what_counts_at_once_is_checked_when_it_is_set(tiny_model, name, value):
    """`softmx` was trained as sigmoid, until the model was saved."""
    was = getattr(tiny_model.config, name)
    with pytest.raises(ValueError, match=f"{name} (is 'softmx'; sigmoid or softmax|must be finite numbers)"):
        setattr(tiny_model.config, name, value)
    assert getattr(tiny_model.config, name) == was


def test_what_was_changed_is_checked_when_saved(tmp_path):
    config = tiny_config()
    config.mask_threshold = 2.0
    with pytest.raises(StrictDataclassError, match="mask_threshold 2.0 is outside"):
        config.save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match="Field 'num_decoder_blocks' expected int, got str"):
        config.num_decoder_blocks = "3"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_labels": 300}, "semantic_loss_ignore_index 255 is one of the 300 labels"),
        (
            {"id2label": {i: f"name {i}" for i in range(300)}},
            "semantic_loss_ignore_index 255 is one of the 300 labels",
        ),
        ({"semantic_loss_ignore_index": 3}, "semantic_loss_ignore_index 3 is one of the 20 labels"),
        ({"num_labels": 3, "id2label": {0: "a", 1: "b"}}, "num_labels is 3, and id2label has 2 names; leave"),
        ({"mask_threshold": 7.0}, "mask_threshold 7.0 is outside"),
    ],
)
def test_what_from_pretrained_changes_is_checked(network, changes, message):
    """It sets fields of a configuration that was read, past its checks; label 255 was trained as if ignored."""
    for load in (QLSegForSemanticSegmentation, AutoModelForSemanticSegmentation):
        with pytest.raises(ValueError, match=message):
            load.from_pretrained(network, ignore_mismatched_sizes=True, **changes)


def test_configurations_of_another_kind(network, tmp_path):
    """A folder of an encoder was loaded as a network of random weights; a misspelt keyword changed nothing."""
    AutoConfig.from_pretrained(network).backbone_config.save_pretrained(tmp_path)
    for load in (QLSegConfig, QLSegForSemanticSegmentation):
        with pytest.raises(ValueError, match="the configuration is of a 'qlseg_vit', not of a qlseg"):
            load.from_pretrained(tmp_path)
    assert QLSegViTConfig.from_pretrained(network).hidden_size == 32  # that of the encoder inside
    for load in (QLSegConfig, AutoConfig):
        with pytest.raises(ValueError, match="unknown key mask_wieght; did you mean mask_weight"):
            load.from_pretrained(network, mask_wieght=3.0)


def test_labels_stand_in_the_order_of_their_numbers(tmp_path):
    """JSON that a tool has sorted as text has "10" before "2"; scores of one label then got the name of another."""
    names = [f"name of {number}" for number in range(20)]
    tiny_config(id2label=dict(enumerate(names))).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    text = json.dumps(stored, sort_keys=True)
    assert text.index('"10": "name of 10"') < text.index('"2": "name of 2"')
    (tmp_path / "config.json").write_text(text)
    reversed_names = dict(reversed(list(enumerate(names))))
    for config in (
        QLSegConfig.from_pretrained(tmp_path),
        QLSegConfig.from_pretrained(tmp_path, id2label=reversed_names),
        tiny_config(id2label=reversed_names),
    ):
        assert list(config.id2label.values()) == list(config.label2id) == names


def test_weights_of_other_labels_are_not_taken_over(tmp_path):
    """As many labels of other names were trained with the factors that others had at their places."""
    stored = tiny_config(num_labels=2, id2label={0: "sky", 1: "road"}, label_weights=[1.0, 9.0])
    stored.save_pretrained(tmp_path)
    kept = QLSegConfig.from_pretrained(tmp_path, id2label={"1": "road", "0": "sky"})
    assert kept.label_weights == [1.0, 9.0] and QLSegConfig.from_pretrained(tmp_path).label_weights == [1.0, 9.0]
    other = QLSegConfig.from_pretrained(tmp_path, id2label={0: "cat", 1: "dog"})
    assert other.label_weights is None and list(other.label2id) == ["cat", "dog"]
    given = QLSegConfig.from_pretrained(tmp_path, id2label={0: "cat", 1: "dog"}, label_weights=[2.0, 3.0])
    assert given.label_weights == [2.0, 3.0]


@pytest.mark.parametrize("names", [{2: "c", 0: "a", 1: "b"}, {"2": "c", "0": "a", "1": "b"}])
def test_scores_stand_beside_their_labels(names):
    """`from_pretrained(id2label=...)` sets the field of a configuration that was made before; so may anybody."""
    config = tiny_config(num_labels=3)
    config.id2label = names
    assert list(config.id2label.items()) == [(0, "a"), (1, "b"), (2, "c")]
    assert config.label2id == {"a": 0, "b": 1, "c": 2}
    model = QLSegForSemanticSegmentation(config)
    model.config.id2label = {1: "e", 0: "d", 2: "f"}
    assert list(model.config.id2label.values()) == list(model.config.label2id) == ["d", "e", "f"]
    with pytest.raises((ValueError, StrictDataclassError), match="id2label"):  # transformers 5.17 checks it first
        model.config.id2label = {1: "e", "1": "d"}


def test_names_beside_those_that_they_resemble(tmp_path):
    """Somebody's own field is kept where the one that it might be a slip for is there too, as for transformers."""
    config = QLSegViTConfig(layer_norm_eps=0.5, layer_norm_epsilon=0.5)
    config.save_pretrained(tmp_path)
    assert QLSegViTConfig.from_pretrained(tmp_path).layer_norm_epsilon == 0.5
