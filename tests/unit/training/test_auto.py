"""What is decided for keys that a recipe leaves open."""

import dataclasses

import pytest

from qlseg_hf import QLSegConfig
from qlseg_hf.training import auto
from qlseg_hf.training.auto import DataFacts, DeviceFacts, complete_recipe, encoder_rate, head_config, take_decisions
from qlseg_hf.training.build import build_processor, scale_warning
from qlseg_hf.training.encoder_choice import Encoder
from qlseg_hf.training.facts import data_request
from qlseg_hf.training.recipe import Recipe

OPEN = ("crop_size", "total_batch_size", "per_device_batch_size", "max_steps", "learning_rate", "warmup_steps")
OPEN += ("eval_steps", "save_steps")


def encoder(width=192, depth=12, patch=16, is_own_kind=True) -> Encoder:
    config = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": width // 64}
    config |= {"intermediate_size": 4 * width, "patch_size": patch, "num_channels": 3}
    return Encoder("weights", config, width, depth, patch, [0.5] * 3, [0.5] * 3, is_own_kind)


def open_recipe(**given) -> Recipe:
    return dataclasses.replace(Recipe(data="data", output_dir="run", **dict.fromkeys(OPEN)), **given)


@pytest.fixture(autouse=True)
def known_encoder(monkeypatch):
    monkeypatch.setattr(auto, "find_encoder", lambda name: encoder())


DATA = DataFacts(num_images=367, short_side=360, label_names=["road", "sky"])


def test_nothing_stays_open_and_everything_is_told():
    recipe, told = complete_recipe(open_recipe(), DATA, DeviceFacts("cpu"))
    assert all(getattr(recipe, key) is not None for key in (*OPEN, "backbone", "label_names"))
    assert {key for key, _ in told} >= {*OPEN, "backbone", "label_names", "config", "processor"}
    assert recipe.crop_size == 320 and recipe.max_steps == 800
    QLSegConfig(**recipe.config, num_labels=2)


def test_what_is_given_stays():
    given = {
        "crop_size": 160,
        "total_batch_size": 6,
        "per_device_batch_size": 2,
        "max_steps": 7,
        "learning_rate": 1e-3,
    }
    given |= {"warmup_steps": 1, "eval_steps": 3, "save_steps": 2, "label_names": ["a", "b"]}
    recipe, told = complete_recipe(open_recipe(**given), DATA, DeviceFacts("cuda", 80 << 30))
    assert {key: getattr(recipe, key) for key in given} == given
    assert not {key for key, _ in told} & set(given)


@pytest.mark.parametrize("short_side, patch, crop", [(360, 16, 320), (100, 16, 96), (10, 16, 16), (360, 14, 308)])
def test_crop_is_whole_patches_of_the_images(monkeypatch, short_side, patch, crop):
    monkeypatch.setattr(auto, "find_encoder", lambda name: encoder(patch=patch))
    recipe, _ = complete_recipe(open_recipe(), DataFacts(10, short_side, ["a", "b"]), DeviceFacts("cpu"))
    assert recipe.crop_size == crop


@pytest.mark.parametrize(
    "given, patch, box",
    [
        ({}, 16, [2048, 480]),
        ({}, 14, [2048, 462]),  # 1.5 crops of 308, in whole patches
        ({"crop_size": 512}, 16, [2048, 768]),
        ({"resize_box": [700, 300]}, 16, [700, 300]),
        ({"processor": {"size": {"shortest_edge": 352}}}, 16, [2048, 352]),
        ({"processor": {"size": {"height": 400, "width": 360}}}, 16, [2048, 360]),
        ({"processor": {"size": 352}}, 16, [2048, 352]),
        ({"processor": {"do_resize": False}}, 16, None),
        ({"config": {"backbone_config": {"hidden_size": 96}}}, 16, None),  # as published, and as runs of before
        ({"model": "m"}, 16, None),
    ],
)
def test_a_fresh_head_sees_images_larger_than_its_crops(monkeypatch, given, patch, box):
    monkeypatch.setattr(auto, "find_encoder", lambda name: encoder(patch=patch))
    recipe, _ = complete_recipe(open_recipe(**given), DATA, DeviceFacts("cpu"))
    assert recipe.resize_box == box
    if box and "processor" not in given:  # evaluation sees what training does, through windows that are the crops
        processor = build_processor(recipe)
        assert processor.size.shortest_edge == box[1] and processor.window_size == recipe.crop_size
        assert scale_warning(recipe, processor) is None


@pytest.mark.parametrize(
    "given, num_images, decided",
    [
        ({}, 367, ([0.75, 1.5], False)),  # 8.7 epochs
        ({}, 20, ([0.5, 2.0], True)),
        ({"max_steps": 2293}, 367, ([0.75, 1.5], False)),  # 24.99
        ({"max_steps": 2294}, 367, ([0.5, 2.0], True)),  # 25.004
        ({}, None, ([0.5, 2.0], True)),
        ({"model": "m", "crop_size": 64}, 367, ([0.5, 2.0], True)),
        ({"scale_range": [0.5, 2.0]}, 367, ([0.5, 2.0], False)),
        ({"photometric": True}, 367, ([0.75, 1.5], True)),
    ],
)
def test_short_runs_of_a_fresh_head_change_their_images_less(given, num_images, decided):
    facts = dataclasses.replace(DATA, num_images=num_images)
    recipe, _ = complete_recipe(open_recipe(**given), facts, DeviceFacts("cpu"))
    assert (recipe.scale_range, recipe.photometric) == decided


@pytest.mark.parametrize("processes, per_device", [(1, None), (2, None), (3, None), (2, 3), (8, None), (3, 2)])
@pytest.mark.parametrize("kind, memory", [("cpu", None), ("cuda", 6 << 30), ("cuda", 140 << 30)])
def test_batches_can_be_cut_over_processes(processes, per_device, kind, memory):
    recipe = open_recipe(per_device_batch_size=per_device)
    recipe, _ = complete_recipe(recipe, DATA, DeviceFacts(kind, memory, processes))
    assert recipe.accumulation_steps(processes) >= 1
    assert per_device in (None, recipe.per_device_batch_size)


def test_a_small_gpu_accumulates():
    small, large = (complete_recipe(open_recipe(), DATA, DeviceFacts("cuda", n << 30))[0] for n in (8, 80))
    assert small.total_batch_size == large.total_batch_size == 16
    assert small.per_device_batch_size < large.per_device_batch_size


def test_many_images_have_more_steps_on_a_gpu():
    few, many = (
        complete_recipe(open_recipe(), dataclasses.replace(DATA, num_images=n), DeviceFacts("cuda", 80 << 30))[0]
        for n in (20, 20_000)
    )
    assert few.max_steps == 2000 and many.max_steps == 20_000


def test_names_are_needed():
    with pytest.raises(ValueError, match="label_names is needed"):
        complete_recipe(open_recipe(), DataFacts(5, 100), DeviceFacts("cpu"))


@pytest.mark.parametrize("width, depth", [(192, 12), (384, 12), (768, 12), (1024, 24), (1280, 32), (64, 3), (72, 1)])
@pytest.mark.parametrize("is_own_kind", [True, False])
def test_heads_fit_any_encoder(width, depth, is_own_kind):
    config = head_config(encoder(width, depth, is_own_kind=is_own_kind), 224)
    levels = config["backbone_config"]["out_indices"]
    assert levels == sorted(set(levels)) and levels[-1] == depth and 0 not in levels
    assert width % config["num_group_norm_groups"] == 0 == width % config["num_pixel_encoder_heads"]
    assert config["hidden_size"] % config["num_attention_heads"] == 0


def test_large_encoders_have_the_released_head():
    """But for what fresh heads add, and the scale of their weights."""
    config = QLSegConfig(**head_config(encoder(1024, 24), 640), num_labels=150)
    released = QLSegConfig.for_release("vit-l-ade20k").to_dict()
    own = {"initializer_range", "backbone_config", "id2label", "label2id", "palette"}
    own |= {"mask_activation", "mask_weight", "dice_weight", "use_label_classifier", "num_detail_channels"}
    assert {k: v for k, v in config.to_dict().items() if k not in own} == {
        k: v for k, v in released.items() if k not in own
    }


def test_rates_fall_with_the_width():
    assert encoder_rate(192) == 3e-4 and encoder_rate(None) == 1e-5
    rates = [encoder_rate(width) for width in (64, 192, 384, 768, 1024)]
    assert rates == sorted(rates, reverse=True)


def test_a_run_that_goes_on_keeps_its_decisions():
    first, _ = complete_recipe(open_recipe(), DATA, DeviceFacts("cpu"))
    again = take_decisions(open_recipe(max_steps=900), dataclasses.asdict(first))
    assert again == dataclasses.replace(first, max_steps=900)


def test_given_fields_of_the_network_win_over_the_decided_ones():
    recipe = open_recipe(config={"dropout": 0.2}, processor={"image_std": [1, 1, 1]})
    recipe, _ = complete_recipe(recipe, DATA, DeviceFacts("cpu"))
    assert recipe.config["dropout"] == 0.2 and recipe.config["hidden_size"] == 128
    assert recipe.processor == {"image_std": [1, 1, 1]}


def test_a_network_that_the_recipe_describes_is_left_alone():
    config = {"backbone_config": {"hidden_size": 96}}
    recipe, _ = complete_recipe(open_recipe(config=config), DATA, DeviceFacts("cpu"))
    assert recipe.config == config and recipe.backbone is None and recipe.processor == {}


@pytest.mark.parametrize(
    "described, rate", [({"hidden_size": 96}, 3e-4), ({"hidden_size": 384}, 1.5e-4), ({}, 5.6e-5)]
)
def test_a_described_encoder_is_no_trained_model(described, rate):
    """The paper's 1e-5 is for a model; a fresh head, on random weights even, would learn next to nothing by it."""
    recipe, told = complete_recipe(open_recipe(config={"backbone_config": described}), DATA, DeviceFacts("cpu"))
    assert recipe.learning_rate == rate and dict(told)["learning_rate"].endswith("by the encoder's width")


def test_a_described_encoder_keeps_the_normalisation_of_its_weights(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "dinov3_vit"}')
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}')
    given = open_recipe(config={"backbone_config": {"hidden_size": 96}}, backbone=str(tmp_path))
    recipe, told = complete_recipe(given, DATA, DeviceFacts("cpu"))
    assert recipe.processor == {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    assert "that the encoder was trained with" in dict(told)["processor"]
    again, told = complete_recipe(dataclasses.replace(recipe, backbone="gone"), DATA, DeviceFacts("cpu"))
    assert again.processor == recipe.processor and not told


@pytest.mark.parametrize("epochs, max_steps, steps", [(2, None, 184), (0.001, None, 1), (2, 5, 5)])
def test_epochs_become_steps(epochs, max_steps, steps):
    recipe = open_recipe(epochs=epochs, max_steps=max_steps)
    assert complete_recipe(recipe, DATA, DeviceFacts("cpu"))[0].max_steps == steps


def test_epochs_of_an_unknown_number_of_images():
    with pytest.raises(ValueError, match="the number of images is unknown; set max_steps"):
        complete_recipe(open_recipe(epochs=2), dataclasses.replace(DATA, num_images=None), DeviceFacts("cpu"))


STORED = {"backbone": "weights", "config": {"hidden_size": 128}, "max_steps": 9, "epochs": 2.0, "crop_size": 96}


def test_another_encoder_is_refused():
    assert take_decisions(open_recipe(backbone="small"), STORED).backbone == "weights"
    assert take_decisions(open_recipe(backbone="weights"), STORED).config == {"hidden_size": 128}
    with pytest.raises(ValueError, match="backbone is other, but the run that goes on was started from weights; give"):
        take_decisions(open_recipe(backbone="other"), STORED)


def test_other_epochs_are_counted_anew():
    assert take_decisions(open_recipe(epochs=2.0), STORED).max_steps == 9
    assert take_decisions(open_recipe(epochs=3.0), STORED).max_steps is None
    assert take_decisions(open_recipe(epochs=3.0, max_steps=7), STORED).max_steps == 7


def test_weights_of_labels_are_kept_or_refused():
    recipe = open_recipe(label_weights="auto")
    kept = take_decisions(recipe, STORED | {"label_weights": {"road": 0.5}})
    assert kept.label_weights == {"road": 0.5}
    with pytest.raises(ValueError, match="label_weights: auto looks at the data when a run starts, and this one goes"):
        complete_recipe(take_decisions(recipe, STORED), DataFacts(5, 100, ["a", "b"]), DeviceFacts("cpu"))
    found = complete_recipe(recipe, dataclasses.replace(DATA, label_weights={"road": 2.0}), DeviceFacts("cpu"))[0]
    assert found.label_weights == {"road": 2.0}


def test_a_model_keeps_its_names_rules_and_windows():
    facts = dataclasses.replace(DATA, rules={"ignore_index": 9}, num_channels=5, window_size=64, processor_side=96)
    recipe, _ = complete_recipe(open_recipe(model="m"), facts, DeviceFacts("cpu"))
    assert (recipe.label_names, recipe.ignore_index, recipe.num_channels, recipe.crop_size) == (None, None, None, 64)
    assert (recipe.backbone, recipe.config, recipe.processor, recipe.learning_rate) == (None, {}, {}, 1e-5)
    assert recipe.resize_box == [2048, 96]  # what its processor shows it


def test_a_checkpoint_is_no_model(tmp_path):
    (tmp_path / "net.pth").write_bytes(b"weights")
    with pytest.raises(ValueError, match="net.pth is a file; .* `qlseg convert` makes a folder of a checkpoint"):
        data_request(open_recipe(model=str(tmp_path / "net.pth")))


def test_bands_decide_the_normalisation():
    settings = {"image_mean": [0.1] * 5, "image_std": [0.2] * 5, "rescale_factor": 1 / 65535}
    facts = dataclasses.replace(DATA, num_channels=5, band_settings=settings)
    recipe, _ = complete_recipe(open_recipe(), facts, DeviceFacts("cpu"))
    assert recipe.processor == settings and recipe.config["backbone_config"]["num_channels"] == 5
    recipe, _ = complete_recipe(open_recipe(config={"backbone_config": {"patch_size": 8}}), facts, DeviceFacts("cpu"))
    assert recipe.config == {"backbone_config": {"patch_size": 8, "num_channels": 5}}


@pytest.mark.parametrize(
    ("steps", "eval_steps", "save_steps"), [(60, 51, 51), (800, 200, 200), (1200, 204, 204), (8000, 1000, 1000)]
)
def test_evaluations_take_a_fifth_of_the_time_or_come_four_times(steps, eval_steps, save_steps):
    facts = dataclasses.replace(DATA, num_eval_images=101)
    recipe, _ = complete_recipe(open_recipe(max_steps=steps), facts, DeviceFacts("cpu"))
    assert (recipe.eval_steps, recipe.save_steps) == (eval_steps, save_steps)
