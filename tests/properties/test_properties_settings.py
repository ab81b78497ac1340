"""Properties of settings: configurations and processors that are valid come back, others are refused."""

import json
import math

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st
from properties import holds, windows

from qlseg_hf import QLSegConfig, QLSegImageProcessor, QLSegViTConfig

# ---------------------------------------------------------------------------------------------------- configurations

COUNT = st.integers(1, 40)
VALID_VIT = {
    "num_hidden_layers": st.integers(1, 6),
    "intermediate_size": COUNT,
    "num_channels": COUNT,
    "layer_norm_eps": st.floats(0, 1),
    "drop_path_rate": st.floats(0, 0.99),
    "initializer_range": st.one_of(st.floats(0, 1), st.just(0)),
}
VALID = {
    "intermediate_size": COUNT,
    "num_pixel_encoder_layers": st.integers(1, 6),
    "num_pixel_encoder_heads": COUNT,
    "num_pixel_encoder_points": COUNT,
    "pixel_encoder_intermediate_size": COUNT,
    "num_group_norm_groups": COUNT,
    "num_decoder_blocks": COUNT,
    "num_decoder_layers": COUNT,
    "num_query_fusion_groups": COUNT,
    "mask_threshold": st.one_of(st.just(0), st.floats(0, 0.99)),
    "position_temperature": st.floats(1e-3, 1e6),
    "dropout": st.floats(0, 0.99),
    "class_weight": st.floats(0, 1e6),
    "mask_weight": st.integers(0, 9),
    "no_object_weight": st.floats(0, 1),
    "focal_alpha": st.floats(0, 1),
    "focal_gamma": st.floats(0, 9),
    "semantic_loss_ignore_index": st.sampled_from([255, -100, -1, 1000]),
}
NO_NUMBER = st.sampled_from(["1", None, [1], {}, True, math.nan, math.inf, -math.inf])
NO_COUNT = st.one_of(NO_NUMBER, st.integers(max_value=0), st.floats())
NO_FACTOR = st.one_of(NO_NUMBER, st.floats(max_value=-1e-300), st.integers(max_value=-1))
NO_SHARE = st.one_of(NO_FACTOR, st.floats(min_value=1.0001), st.integers(min_value=2))
COUNT_FIELDS = ["hidden_size", "num_attention_heads", "intermediate_size"]
INVALID_VIT = [(name, NO_COUNT) for name in (*COUNT_FIELDS, "num_hidden_layers", "patch_size", "num_channels")]
INVALID_VIT += [(name, NO_FACTOR) for name in ("layer_norm_eps", "initializer_range")]
INVALID_VIT += [("drop_path_rate", NO_SHARE), ("drop_path_rate", st.just(1))]
NO_SIZE = [0, -16, 17, [], [16], [16] * 3, [16, 0], [16.0, 16], "16", None]
INVALID_VIT += [("image_size", st.sampled_from(NO_SIZE))]
INVALID_VIT += [("out_indices", st.sampled_from([[], [1, 1], [2, 1], [99], [-99], ["1"], 1, "stage1", [1.0]]))]
INVALID = [(name, NO_COUNT) for name in COUNT_FIELDS]
INVALID += [(name, NO_COUNT) for name in VALID if name.startswith(("num_pixel_encoder_", "num_d", "num_q", "num_g"))]
INVALID += [(name, NO_COUNT) for name in ("pixel_encoder_intermediate_size", "num_labels")]
FACTOR_FIELDS = "class_weight mask_weight dice_weight no_object_weight focal_gamma initializer_range".split()
INVALID += [(name, NO_FACTOR) for name in (*FACTOR_FIELDS, "position_temperature")]
INVALID += [(name, NO_SHARE) for name in ("mask_threshold", "dropout", "focal_alpha")]
INVALID += [("semantic_loss_ignore_index", st.one_of(NO_NUMBER, st.integers(0, 2), st.floats()))]
INVALID += [("label_weights", st.sampled_from([[1, 1, -1], [1, 1, math.nan], [1, 1, math.inf], ["1"] * 3, 1, "111"]))]
INVALID += [
    ("palette", st.sampled_from([[[0, 0, 256]] * 3, [[0, 0]] * 3, [[0, 0, -1]] * 3, [[0.5] * 3] * 3, [0] * 3, 1]))
]
INVALID += [("id2label", st.sampled_from([{}, {1: "a"}, {0: "a", 2: "b"}, {0: 1}, {"x": "a"}, ["a"], "a", {0: None}]))]
INVALID += [("backbone_config", st.sampled_from([1, "vit", {"model_type": "nothing"}, {"patch_size": 0}]))]


@holds(
    60,
    vit=st.fixed_dictionaries({}, optional=VALID_VIT),
    values=st.fixed_dictionaries({}, optional=VALID),
    heads=st.integers(1, 5),
    side=st.one_of(st.integers(1, 5), st.tuples(st.integers(1, 5), st.integers(1, 5))),
    names=st.one_of(
        st.lists(st.text(max_size=5), min_size=1, max_size=5),
        st.integers(1, 5).map(lambda n: [f"LABEL_{i}" for i in range(n)]),
    ),
    colours=st.booleans(),
    data=st.data(),
)
def test_configuration_round_trip(vit, values, heads, side, names, colours, data):
    """Every valid configuration is accepted and is the same after JSON."""
    depth = vit.get("num_hidden_layers", 24)
    vit |= {"out_indices": sorted(data.draw(st.sets(st.integers(0, depth), min_size=1)))}
    image_size = [16 * s for s in side] if isinstance(side, tuple) else 16 * side
    backbone = QLSegViTConfig(hidden_size=8 * heads, num_attention_heads=heads, image_size=image_size, **vit)
    values |= {"hidden_size": 4 * heads, "num_attention_heads": heads, "id2label": dict(enumerate(names))}
    if colours:
        values |= {
            "palette": [[i, 0, 255] for i in range(len(names))],
            "label_weights": [1, 0.5, 2, 0, 1.0][: len(names)],
        }
    config = QLSegConfig(backbone_config=backbone, **values)
    text = config.to_json_string(use_diff=False)
    for written in (text, config.to_json_string()):
        again = QLSegConfig.from_dict(json.loads(written))
        assert again.to_json_string(use_diff=False) == text
        assert again.to_dict() == QLSegConfig.from_dict(again.to_dict()).to_dict()
    assert again.backbone_config.out_indices == vit["out_indices"] and again.num_labels == len(names)
    assert all(getattr(again, name) == value for name, value in values.items())


@holds(
    250,
    wrong=st.sampled_from([(QLSegViTConfig, *x) for x in INVALID_VIT] + [(QLSegConfig, *x) for x in INVALID]),
    data=st.data(),
)
def test_invalid_configurations_are_refused(wrong, data):
    """A value of a wrong type or range is a ValueError of a sentence, by keyword and from JSON."""
    cls, name, strategy = wrong
    value = data.draw(strategy)
    assume(not (value is None and name in ("num_labels", "backbone_config")))  # not given
    others = (
        {"id2label": {0: "a", 1: "b", 2: "c"}} if cls is QLSegConfig and name not in ("id2label", "num_labels") else {}
    )
    for build in (lambda: cls(**others, **{name: value}), lambda: cls.from_dict(others | {name: value})):
        with pytest.raises(ValueError) as refused:
            build()
        # without names there are no labels; what is wrong with an encoder is said by its own class
        named = "num_labels" if name == "id2label" and not value else name if name != "backbone_config" else ""
        assert len(str(refused.value)) > 20 and named in str(refused.value)


NO_SETTING = {
    "size": [
        0,
        -5,
        {"shortest_edge": -5},
        {"height": 0, "width": 3},
        {"shortest_edge": 4, "longest_edge": 8},
        "x",
        3.5,
    ]
    + [{"shortest_edge": 3.5}, {"height": 3}, {}, {"height": -1, "width": 2}, [1, 2, 3]],
    "window_size": [0, -1, "a", 3.5, True, [8]],
    "window_stride": [0, -1, "a", 3.5, 641, False],
    "rescale_factor": [math.nan, math.inf, "a", [1.0], True],
    "image_mean": [[0.5] * 2, [0.5] * 4, [], "a", [math.nan] * 3, math.inf, [None] * 3],
    "image_std": [0, 0.0, [0.5, 0.5, 0], -1, [0.5] * 2, math.nan, "a"],
    "ignore_index": [2.5, "a", True, [255]],
    "label_mapping": [{0: "a"}, {0: 1.5}, {"x": 1}, {0.5: 1}, {0: None}, {None: 0}, [1, 2], "a"],
    "do_resize": ["yes", 1, 0.5],
    "do_rescale": ["yes", 1],
    "do_normalize": ["yes", 1],
    "do_sliding_window": ["yes", 1],
    "do_reduce_labels": ["yes", 1],
}


@holds(80, wrong=st.sampled_from([(name, value) for name, values in NO_SETTING.items() for value in values]))
def test_invalid_processor_settings_are_refused(wrong):
    name, value = wrong
    picture = np.zeros((4, 4, 3), np.uint8)
    processor = QLSegImageProcessor()
    for build in (lambda: QLSegImageProcessor(**{name: value}), lambda: processor(picture, **{name: value})):
        with pytest.raises(ValueError, match=name.removeprefix("do_") if name != "size" else "size|height"):
            build()


@holds(
    60,
    size=st.one_of(st.integers(1, 999), st.tuples(st.integers(1, 999), st.integers(1, 999))),
    window=windows(999),
    numbers=st.lists(st.one_of(st.floats(0.01, 9), st.integers(1, 9)), min_size=3, max_size=3),
    switches=st.lists(st.booleans(), min_size=5, max_size=5),
    ignore=st.integers(-300, 300),
    label_mapping=st.one_of(st.none(), st.dictionaries(st.integers(-300, 300), st.integers(-300, 300), max_size=4)),
)
def test_processor_round_trip(size, window, numbers, switches, ignore, label_mapping):
    names = ("do_resize", "do_sliding_window", "do_rescale", "do_normalize", "do_reduce_labels")
    assume(not (switches[4] and ignore == 0))
    processor = QLSegImageProcessor(
        size={"height": size[0], "width": size[1]} if isinstance(size, tuple) else {"shortest_edge": size},
        window_size=window[0],
        window_stride=window[1],
        image_mean=numbers,
        image_std=numbers[0],
        rescale_factor=numbers[1],
        ignore_index=ignore,
        label_mapping=label_mapping,
        **dict(zip(names, switches)),
    )
    again = QLSegImageProcessor.from_dict(json.loads(processor.to_json_string()))
    assert again.to_json_string() == processor.to_json_string()
    for name in processor._valid_kwargs_names:
        assert getattr(again, name) == getattr(processor, name), name
