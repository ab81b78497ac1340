"""The converter: every key accounted for, contradictions refused in a sentence, nothing executed or half-written."""

import ast
import copy
import json
import os
import pickle
import re
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FIXTURES
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from qlseg_hf import RELEASES, QLSegForSemanticSegmentation
from qlseg_hf.cli.main import run as run_command
from qlseg_hf.convert import convert as convert_module
from qlseg_hf.convert import key_table, reader
from qlseg_hf.convert.config_text import parse_configuration
from qlseg_hf.convert.convert import convert
from qlseg_hf.convert.reader import ConversionError, read_checkpoint
from qlseg_hf.releases import label_set
from qlseg_hf.utils.hashing import file_sha256

MANIFESTS = FIXTURES / "manifests"


@pytest.fixture(scope="module")
def checkpoint():
    """State dict and meta of the small network `b`."""
    return whole_and_meta(FIXTURES / "b" / "checkpoint.pth")


def whole_and_meta(path, **options) -> tuple[dict, dict]:
    source = read_checkpoint(path, **options)
    return source.state_dict, source.meta


def run(capsys, *arguments) -> tuple[int, str]:
    status = run_command(["convert", *arguments])
    captured = capsys.readouterr()
    return status, captured.err.strip().splitlines()[-1] if captured.err.strip() else captured.out


# ---------------------------------------------------------------------------------------------------- what comes out


def test_folder(stored):
    model = AutoModelForSemanticSegmentation.from_pretrained(stored.folder)
    processor = AutoImageProcessor.from_pretrained(stored.folder)
    numbers, config = stored.numbers["config"], model.config
    vit = config.backbone_config
    assert [stage - 1 for stage in vit.out_indices] == numbers["out_indices"]
    found = (vit.image_size, vit.hidden_size, vit.num_hidden_layers, vit.num_attention_heads)
    found += (config.num_labels, config.num_attention_heads, config.num_decoder_layers, config.num_decoder_blocks)
    found += (config.num_pixel_encoder_layers, config.num_query_fusion_groups, config.mask_threshold)
    names = (
        "img",
        "dim",
        "depth",
        "heads",
        "classes",
        "dec_heads",
        "num_layers",
        "num_atm",
        "ps",
        "compress_c",
        "thr",
    )
    assert found == tuple(numbers[name] for name in names)
    assert list(config.id2label.values()) == stored.numbers["labels"]
    assert len(config.palette) == config.num_labels and config.palette[0] == [204, 218, 110]
    assert (processor.window_size, processor.window_stride) == (numbers["crop"], numbers["stride"])
    assert processor.size == {"shortest_edge": numbers["crop"]}
    assert processor.do_reduce_labels is (stored.name == "a")
    for found, expected in ((processor.image_mean, "mean"), (processor.image_std, "std")):
        assert [255 * value for value in found] == pytest.approx(stored.numbers[expected])


def test_card(stored):
    from huggingface_hub import ModelCard

    card = ModelCard.load(stored.folder / "README.md")
    assert card.data.license == "other" and card.data.pipeline_tag == "image-segmentation"
    assert "academic, non-commercial use" in card.text
    assert file_sha256(stored.checkpoint) in card.text
    state_dict, _ = whole_and_meta(stored.checkpoint)
    missing = [key for key in state_dict if f"`{key}`" not in card.text]
    assert missing == []


def test_every_key_is_used_or_dropped(checkpoint):
    state_dict, meta = checkpoint
    conversion = convert(state_dict, meta)
    assert set(conversion.used) | set(conversion.dropped) == set(state_dict)
    assert set(conversion.dropped) == {"backbone.cls_token", "decode_head.loss_decode.criterion.empty_weight"}
    targets = [name for names in conversion.used.values() for name in names]
    assert len(targets) == len(set(targets))


@pytest.mark.parametrize("name", RELEASES)
def test_manifests(name):
    """Every released network, from the shapes of its keys: tensors without storage, values that no memory holds."""
    manifest = json.loads((MANIFESTS / f"{name}.json").read_text())
    state_dict = {key: torch.zeros(1).expand(shape) for key, (shape, dtype) in manifest.items()}
    assert all(dtype == "float32" for _, dtype in manifest.values())
    shapes = convert_module.numbers_from_shapes(state_dict)
    numbers = convert_module.agree_on_numbers(shapes, None, name)
    config = convert_module.make_config(numbers, [f"{i}" for i in range(numbers["num_labels"])], None)
    with torch.device("meta"):
        model = QLSegForSemanticSegmentation(config)
    targets = [target for key in state_dict for target in key_table.new_names(key)]
    assert sum(not key_table.new_names(key) for key in state_dict) == 2
    wanted = set(model.state_dict()) - {"decoder.queries"} | {f"decoder.queries[{i}]" for i in range(3)}
    assert set(targets) == wanted and len(targets) == len(wanted)
    expected = {"vit-b-ade20k": 171.1, "vit-l-ade20k": 450.3}.get(name)
    if expected:
        assert round(model.num_parameters() / 1e6, 1) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASES)
def test_manifests_from_file_to_folder(name, tmp_path, capsys, monkeypatch):
    """The whole way, stripped file to folder; the file is small because its tensors share one number."""
    monkeypatch.setattr(reader, "check_claimed_size", lambda path, state_dict: None)
    manifest = json.loads((MANIFESTS / f"{name}.json").read_text())
    torch.save(
        {f"module.{key}": torch.ones(1).expand(shape) for key, (shape, _) in manifest.items()}, tmp_path / "x.pth"
    )
    status, _ = run(capsys, tmp_path / "x.pth", tmp_path / "out", "--variant", name, "--dtype", "bfloat16")
    assert status == 0
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out")
    names, palette = label_set(RELEASES[name]["labels"])
    assert list(model.config.id2label.values()) == names and model.config.palette == palette
    assert model.dtype == torch.bfloat16
    assert all((parameter == 1).all() for parameter in model.parameters())


# -------------------------------------------------------------------------------------------- what may come in


def test_forms_of_the_file(checkpoint, tmp_path, capsys):
    """Bare state dict, `module.` prefix, optimiser beside it: the same weights."""
    state_dict, meta = checkpoint
    expected = convert(state_dict, meta).state_dict
    forms = {
        "prefixed": {"meta": meta, "state_dict": {f"module.{k}": v for k, v in state_dict.items()}},
        "optimizer": {"meta": meta, "state_dict": state_dict, "optimizer": {"state": {0: torch.zeros(1)}}},
    }
    for name, content in forms.items():
        torch.save(content, tmp_path / f"{name}.pth")
        found = convert(*whole_and_meta(tmp_path / f"{name}.pth")).state_dict
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    torch.save(dict(state_dict), tmp_path / "bare.pth")
    status, message = run(capsys, tmp_path / "bare.pth", tmp_path / "out")
    assert status == 1 and "say --variant with one of vit-b-ade20k" in message


def prefixed(prefix: str, weights: dict) -> dict:
    return {prefix + key: value for key, value in weights.items()}


def inside(weights: dict, wrapper: str) -> dict:
    """A wrapper around a part of the network, as compiling or distributing it leaves it."""
    return {key.replace("backbone.", f"backbone.{wrapper}."): value for key, value in weights.items()}


EMPTY = {"lr_schedulers": [], "optimizer_states": [{"state": {0: torch.zeros(2)}}], "epoch": 3, "callbacks": {}}
WRAPPINGS = {  # of weights w and meta m; and a sentence
    "model.": (lambda w, m: {"meta": m, "state_dict": prefixed("model.", w)}, "prefix model., which"),
    "module.model.": (lambda w, m: {"meta": m, "state_dict": prefixed("module.model.", w)}, "prefix module.model., "),
    "compiled": (lambda w, m: {"meta": m, "state_dict": prefixed("_orig_mod.", w)}, "prefix _orig_mod., which"),
    "compiled, DDP": (lambda w, m: {"meta": m, "state_dict": prefixed("module._orig_mod.", w)}, "module._orig_mod., "),
    "some attribute": (
        lambda w, m: {"meta": m, "state_dict": prefixed("seg-net.backbone.", w)},
        "seg-net.backbone., ",
    ),
    "compiled encoder": (lambda w, m: {"meta": m, "state_dict": inside(w, "_orig_mod")}, "Names of wrappers inside"),
    "wrapped encoder": (
        lambda w, m: {"meta": m, "state_dict": prefixed("module.", inside(w, "module"))},
        "of wrappers",
    ),
    "Lightning": (
        lambda w, m: (
            {"state_dict": prefixed("model.", w), "meta": m, "pytorch-lightning_version": "2.4.0"}
            | {"hyper_parameters": {"lr": 0.1}}
            | EMPTY
        ),
        "prefix model., which",
    ),
    "DeepSpeed": (
        lambda w, m: {"module": w, "meta": m, "param_shapes": [{k: v.shape for k, v in w.items()}], "ds_version": "1"},
        "The weights are those of module.",
    ),
    "model": (lambda w, m: {"model": w, "meta": m, "optimizer": {"state": w}}, "The weights are those of model."),
    "nested": (lambda w, m: {"model": {"state_dict": w, "meta": m}, "epoch": 1}, "those of model.state_dict."),
    "twice": (lambda w, m: {"state_dict": {"state_dict": w}, "meta": m}, "those of state_dict.state_dict."),
    "beside an average": (
        lambda w, m: {"model": w, "model_ema": prefixed("module.", negative(w)), "meta": m},
        "The weights are those of model.",
    ),
    "an average in Lightning": (
        lambda w, m: {"state_dict": prefixed("net.", w) | prefixed("net_ema.module.", negative(w)), "meta": m},
        "prefix net., which",
    ),
    "an average alone": (lambda w, m: {"state_dict_ema": w, "meta": m}, "a moving average of the weights only"),
    "an averaged model": (
        lambda w, m: {"ema": prefixed("module.", w) | {"n_averaged": torch.tensor(7)}, "meta": m},
        "a moving average of the weights only",
    ),
    "mmcv's average alone": (lambda w, m: {"state_dict": buffers(w), "meta": m}, "moving average of the weights only"),
    "mmcv": (lambda w, m: {"state_dict": w | buffers(negative(w)), "meta": m}, ""),
    "mmcv, DDP": (
        lambda w, m: {"state_dict": prefixed("module.", w | buffers(negative(w))), "meta": m},
        "prefix module., which",
    ),
}


def negative(weights: dict) -> dict:
    return {key: -value for key, value in weights.items()}


def buffers(weights: dict) -> dict:
    """As mmcv's EMAHook registers them."""
    return {f"ema_{key.replace('.', '_')}": value for key, value in weights.items() if "empty_weight" not in key}


def same_weights(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", WRAPPINGS)
def test_wrappings(name, checkpoint, tmp_path):
    """What others have done to the file: the same weights, and a sentence on what was taken off."""
    wrap, sentence = WRAPPINGS[name]
    torch.save(wrap(*checkpoint), tmp_path / "x.pth")
    source = read_checkpoint(tmp_path / "x.pth")
    found = convert(source.state_dict, source.meta)
    assert same_weights(found.state_dict, convert(*checkpoint).state_dict)
    assert sentence in " ".join(source.notes) and bool(sentence) == bool(source.notes)
    assert found.config.id2label == convert(*checkpoint).config.id2label
    assert set(source.keys) == set(source.state_dict)


def test_every_key_of_a_wrapped_file_is_told(checkpoint, tmp_path, capsys):
    """In the file's own spelling; hundreds of keys with one reason are one line."""
    weights, meta = checkpoint
    content = {"state_dict": prefixed("model.", weights) | prefixed("ema_model.module.", negative(weights))}
    torch.save(content | {"meta": meta, "step": 3}, tmp_path / "x.ckpt")
    status = run_command(["convert", tmp_path / "x.ckpt", tmp_path / "out"])
    printed = capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert status == 0 and [key for key in content["state_dict"] if f"`{key}`" not in card] == []
    assert f"dropped {len(weights)} keys (ema_model.module.backbone.cls_token, ...): a moving average" in printed
    assert "dropped model.backbone.cls_token: the network" in printed and "Every key has the prefix model." in printed
    assert len(printed.splitlines()) < 8 and "Every key has the prefix model." in card


@pytest.mark.parametrize("name", ["beside an average", "an average in Lightning", "mmcv", "mmcv, DDP"])
def test_ema(name, checkpoint, tmp_path, capsys):
    """--ema takes the average; the weights themselves are dropped with a reason, key by key."""
    weights, meta = checkpoint
    content = WRAPPINGS[name][0](weights, meta)
    torch.save(content, tmp_path / "x.pth")
    source = read_checkpoint(tmp_path / "x.pth", ema=True)
    found, expected = convert(source.state_dict, source.meta), convert(negative(weights), meta)
    assert same_weights(found.state_dict, expected.state_dict)
    plain = [key for key, reason in source.dropped.items() if "which was taken instead" in reason]
    assert len(plain) == len(weights) and len(source.dropped) == len(weights)
    assert run(capsys, tmp_path / "x.pth", tmp_path / "out", "--ema")[0] == 0
    torch.save({"state_dict": weights, "meta": meta}, tmp_path / "y.pth")
    status, message = run(capsys, tmp_path / "y.pth", tmp_path / "no", "--ema")
    assert status == 1 and "no moving average of the weights; leave --ema out" in message


def test_mmcv_by_epochs(checkpoint, tmp_path):
    """There EMAHook has exchanged both before the file is written; nothing in it says whether."""
    weights, meta = checkpoint
    text = meta["config"].replace("IterBasedRunner", "EpochBasedRunner")
    torch.save({"state_dict": weights | buffers(weights), "meta": meta | {"config": text}}, tmp_path / "x.pth")
    assert "what was taken as the weights may be the other" in read_checkpoint(tmp_path / "x.pth").notes[0]


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda w: {("module." if i % 2 else "") + key: v for i, (key, v) in enumerate(w.items())},
            "keys are not those of one network: .* keys without a prefix in state_dict, .* with the prefix module.",
        ),
        (
            lambda w: prefixed("model.", w) | {"criterion.weight": torch.ones(1)},
            "criterion.weight lacks the prefix 'model.'",
        ),
        (
            lambda w: prefixed("student.", w) | prefixed("teacher.", w),
            "with the prefix student. .*, 258 keys with .* teacher.",
        ),
        (
            lambda w: inside(w, "_orig_mod") | {"backbone.pos_embed": torch.ones(1)},
            "are both backbone.pos_embed without",
        ),
        (lambda w: prefixed("a\n`|b.", w), "no key backbone.patch_embed"),
        (lambda w: w | {"ema_backbone_extra": torch.ones(1)}, "unexpected key ema_backbone_extra"),
        (lambda w: prefixed("model.", w | {"decode_head.extra": torch.ones(1)}), "unexpected key decode_head.extra"),
        (lambda w: prefixed("decode_head.", {"x": torch.ones(1)}), "no key backbone.patch_embed"),
        (lambda w: {key: torch.zeros(0) for key in w}, "no dense tensors of numbers; if DeepSpeed ZeRO-3"),
    ],
)
def test_keys_that_are_not_one_network(change, message, checkpoint, tmp_path, capsys):
    weights, meta = checkpoint
    torch.save({"state_dict": change(weights), "meta": meta}, tmp_path / "x.pth")
    status, found = run(capsys, tmp_path / "x.pth", tmp_path / "out")
    assert status == 1 and re.search(message, found) and "x.pth" in found, found
    assert not (tmp_path / "out").exists()


def test_several_networks(checkpoint, tmp_path):
    weights, meta = checkpoint
    torch.save({"model": weights, "state_dict": negative(weights), "meta": meta}, tmp_path / "x.pth")
    with pytest.raises(
        ConversionError, match="without a prefix in model, .* without a prefix in state_dict; keep one"
    ):
        read_checkpoint(tmp_path / "x.pth")


def test_dicts_that_share_dicts(checkpoint, tmp_path):
    """A file of kilobytes with 3000 ** 3 ways through it; and weights that are stored once under two names."""
    weights, meta = checkpoint
    content = {}
    for _ in range(3):
        content = {f"key{i}": content for i in range(3000)}
    torch.save(content | {"model": weights, "net": weights, "meta": meta}, tmp_path / "x.pth")
    source = read_checkpoint(tmp_path / "x.pth")
    assert source.state_dict.keys() == weights.keys() and source.notes == ["The weights are those of model."]


@pytest.mark.parametrize("scale", ["48", "(2048, 48)"])
def test_shortest_edge(scale, checkpoint):
    state_dict, meta = checkpoint
    text = mmengine_text(meta["config"])
    text = text.replace("'Resize', scale=(256, 64), keep_ratio=True", f"'ResizeShortestEdge', scale={scale}")
    assert convert(state_dict, {"cfg": text}).processor.size == {"shortest_edge": 48}


def test_safetensors(checkpoint, tmp_path, capsys):
    weights, meta = checkpoint
    weights = {key: value.contiguous() for key, value in weights.items()}
    save_file(prefixed("model.", weights), tmp_path / "x.safetensors", {"format": "pt", "config": meta["config"]})
    source = read_checkpoint(tmp_path / "x.safetensors")
    assert same_weights(convert(source.state_dict, source.meta).state_dict, convert(*checkpoint).state_dict)
    save_file(weights, tmp_path / "bare.safetensors")
    assert "say --variant with one of" in run(capsys, tmp_path / "bare.safetensors", tmp_path / "out")[1]
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "bare.safetensors").read_bytes()[:100000])
    assert "no safetensors file, or is truncated" in run(capsys, tmp_path / "cut.safetensors", tmp_path / "out")[1]
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ mmengine's files


def mmengine_text(text: str) -> str:
    """A configuration of mmcv as mmsegmentation 1 would write it."""
    old = ast.unparse(ast.parse(text))
    norm = "mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]"
    assert norm in old
    normalize = f"dict(type='Normalize', {norm}, to_rgb=True)"
    kept = [line for line in old.splitlines() if line.split(" = ")[0] in ("model", "crop_size", "log_level")]
    prep = f"data_preprocessor = dict(type='SegDataPreProcessor', {norm}, bgr_to_rgb=True, size=(64, 64))"
    loads = "dict(type='mmseg.LoadAnnotations', reduce_zero_label=True)"
    assert normalize in old and len(kept) == 3
    return "\n".join(
        [
            "default_scope = 'mmseg'",
            prep,
            *kept,
            f"train_pipeline = [dict(type='LoadImageFromFile'), {loads}]",
            "test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(256, 64), keep_ratio=True)]",
            "train_dataloader = dict(dataset=dict(type='ADE20KDataset', pipeline=train_pipeline))".replace(
                "train_pipeline", f"[{loads}]"
            ),
            "test_cfg = dict(type='TestLoop')",
        ]
    )


@pytest.fixture
def history_buffer(monkeypatch):
    """The class in mmengine's message hub, as far as pickle is concerned: NumPy arrays in an object."""
    module = types.ModuleType("mmengine.logging.history_buffer")
    kind = type("HistoryBuffer", (), {"__module__": module.__name__})
    module.HistoryBuffer = kind
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    buffer = kind()
    buffer._log_history, buffer._count_history, buffer.max_length = np.arange(5.0), np.ones(5, dtype=int), 1000
    return buffer


def test_mmengine(checkpoint, tmp_path, capsys, history_buffer, monkeypatch):
    """mmengine 1: `cfg`, `dataset_meta`, and beside them objects of its own, which are passed over unrun."""
    weights, meta = checkpoint
    labels = {"classes": tuple(f"thing {i}" for i in range(7)), "palette": [[i, 0, 9] for i in range(7)]}
    new = {"cfg": mmengine_text(meta["config"]), "dataset_meta": labels, "mmengine_version": "0.10.7", "seed": 1}
    content = {
        "meta": new,
        "state_dict": weights,
        "message_hub": {"log_scalars": {"train/loss": history_buffer}, "runtime_info": {"best": np.float64(0.5)}},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}},
        "param_schedulers": [{"last_step": 3}],
    }
    torch.save(content, tmp_path / "x.pth")
    for name in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
        monkeypatch.delitem(sys.modules, name)
    assert run(capsys, tmp_path / "x.pth", tmp_path / "out")[0] == 0
    assert "mmengine" not in sys.modules
    source = read_checkpoint(tmp_path / "x.pth")
    found, expected = convert(source.state_dict, source.meta), convert(*checkpoint)
    assert same_weights(found.state_dict, expected.state_dict)
    assert (
        list(found.config.id2label.values()) == list(labels["classes"]) and found.config.palette == labels["palette"]
    )
    assert found.processor.do_reduce_labels and not expected.processor.do_reduce_labels
    for name in ("size", "window_size", "window_stride", "image_mean", "image_std"):
        assert getattr(found.processor, name) == getattr(expected.processor, name)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("bgr_to_rgb=True, ", "", "takes BGR pictures"),
        ("keep_ratio=True", "keep_ratio=False", "does not state short side; say --variant"),
        ("embed_dims=96", "embed_dims=128", "width is 96 by the shapes but 128 by the text"),
    ],
)
def test_mmengine_text_that_contradicts(old, new, message, checkpoint):
    state_dict, meta = checkpoint
    text = mmengine_text(meta["config"])
    assert old in text
    with pytest.raises(ConversionError, match=message):
        convert(state_dict, {"cfg": text.replace(old, new)})


@pytest.mark.parametrize(
    "dataset, reduces",
    [
        ("type='ADE20KDataset'", True),
        ("type='mmseg.datasets.ade.ADE20KDataset', reduce_zero_label=False", False),
        ("type='RepeatDataset', times=4, dataset=dict(type='ADE20KDataset')", True),
        ("type='COCOStuffDataset'", False),
        ("type='MyDataset', reduce_zero_label=True", True),
    ],
)
def test_label_rule_of_mmengine(dataset, reduces, checkpoint):
    """Where LoadAnnotations does not say it, the data set does."""
    state_dict, meta = checkpoint
    text = (
        mmengine_text(meta["config"]).replace(", reduce_zero_label=True", "").replace("type='ADE20KDataset'", dataset)
    )
    assert convert(state_dict, {"cfg": text}).processor.do_reduce_labels is reduces


def test_bgr(checkpoint):
    state_dict, meta = checkpoint
    with pytest.raises(ConversionError, match="takes BGR pictures"):
        convert(state_dict, {"config": meta["config"].replace("to_rgb=True", "to_rgb=False")})


@pytest.mark.parametrize("options", [{}, {"ema": True}])
def test_average_of_mmengine(options, checkpoint, tmp_path):
    """Its EMAHook has exchanged both when it saves: `state_dict` is the average, and the one it tests with."""
    weights, meta = checkpoint
    plain = prefixed("module.", negative(weights)) | {"steps": torch.tensor(9)}
    torch.save(
        {"meta": {"cfg": meta["config"]}, "state_dict": weights, "ema_state_dict": plain, "message_hub": {}},
        tmp_path / "x.pth",
    )
    source = read_checkpoint(tmp_path / "x.pth", **options)
    assert same_weights(convert(source.state_dict, source.meta).state_dict, convert(*checkpoint).state_dict)
    assert "state_dict is the moving average and was taken" in source.notes[0]
    assert source.dropped["steps"] == "a counter of the moving average" and len(source.dropped) == len(weights) + 1


class Beside:
    """Stands for a class of somebody's."""


def test_other_objects_are_refused_with_a_command(checkpoint, tmp_path, capsys):
    """The command does what it promises."""
    weights, meta = checkpoint
    torch.save({"state_dict": weights, "meta": meta | {"mine": Beside()}}, tmp_path / "x.pth")
    status, message = run(capsys, tmp_path / "x.pth", tmp_path / "out")
    assert status == 1 and "holds the Python object test_conversion.Beside, which is not run" in message
    command = message.partition("(this runs it): ")[2].replace("python", sys.executable, 1)
    tests = FIXTURES.parent
    paths = os.pathsep.join(map(str, (Path(__file__).parent, tests, tests / "helpers", tests.parent)))
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths})
    assert same_weights(
        convert(*whole_and_meta(tmp_path / "stripped.pth")).state_dict, convert(weights, meta).state_dict
    )


def test_dtype(checkpoint, tmp_path, capsys):
    status, _ = run(capsys, FIXTURES / "b" / "checkpoint.pth", tmp_path / "out", "--dtype", "bfloat16")
    assert status == 0
    assert AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


@pytest.mark.parametrize(
    "suffix, content",
    [
        ("json", json.dumps([f"n{i}" for i in range(7)])),
        ("json", json.dumps({str(i): f"n{i}" for i in range(7)})),
        ("json", json.dumps({"labels": [f"n{i}" for i in range(7)], "palette": [[i, i, i] for i in range(7)]})),
        ("txt", "\n".join(f"n{i}" for i in range(7)) + "\n"),
    ],
)
def test_label_files(checkpoint, tmp_path, suffix, content):
    path = tmp_path / f"labels.{suffix}"
    path.write_text(content)
    config = convert(*checkpoint, labels_file=path).config
    assert list(config.id2label.values()) == [f"n{i}" for i in range(7)]
    assert (config.palette is not None) == ("palette" in content)


@pytest.mark.parametrize(
    "content, message",
    [
        ('["a"]', "1 label names for a network of 7 labels"),
        ("[1, 2]", "must hold names"),
        ("{", "cannot be read"),
        ('{"a": "b"}', "keys must be label numbers"),
        ('{"1": "b"}', "keys must be 0..0"),
        ('{"labels": ["a","b","c","d","e","f","g"], "palette": [[0,0,300]]}', "7 RGB triples"),
    ],
)
def test_wrong_label_files(checkpoint, tmp_path, content, message):
    path = tmp_path / "labels.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        convert(*checkpoint, labels_file=path)


def test_text_without_class_names(checkpoint):
    state_dict, meta = checkpoint
    conversion = convert(state_dict, {"config": meta["config"]})
    assert conversion.config.id2label[6] == "LABEL_6" and "LABEL_0" in conversion.notes[0]


def test_whole_picture_inference(checkpoint):
    state_dict, meta = checkpoint
    text = meta["config"].replace("mode='slide', crop_size=(64, 64), stride=(40, 40)", "mode='whole'")
    assert text != meta["config"]
    assert convert(state_dict, meta | {"config": text}).processor.do_sliding_window is False


# ---------------------------------------------------------------------------------------------- configuration text


def test_parse_configuration():
    text = "a = dict(b=[1, (2, -3)], c={'d': None}, e='f')\ng = 1e-05\n"
    assert parse_configuration(text) == {"a": {"b": [1, [2, -3]], "c": {"d": None}, "e": "f"}, "g": 1e-05}


@pytest.mark.parametrize(
    "text",
    [
        "a = __import__('os').system('touch {marker}')",
        "import os",
        "a = open('{marker}', 'w')",
        "a = [x for x in (1,)]",
        "a = dict(**b)",
        "a.b = 1",
        "a = lambda: 0",
        "a = f'{{1}}'",
        "def f(): pass",
        "a = (",
    ],
)
def test_text_is_never_run(text, tmp_path):
    marker = tmp_path / "ran"
    with pytest.raises(ConversionError, match="configuration text"):
        parse_configuration(text.format(marker=marker))
    assert not marker.exists()


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("embed_dims=96", "embed_dims=128", "width is 96 by the shapes but 128 by the text"),
        ("num_classes=7", "num_classes=8", "num labels is 7 by the shapes but 8 by the text"),
        ("use_stages=2", "use_stages=3", "num levels is 2 by the shapes but 3"),
        ("num_ps_layers=1", "num_ps_layers=6", "num pixel layers is 1 by the shapes but 6"),
        ("img_size=(64, 64)", "img_size=(96, 96)", "image size is 64 by the shapes but 96"),
        ("img_size=(64, 64)", "img_size=(64, 96)", "img_size .* is not square"),
        ("compress_c=4", "compress_c=3", "query fusion has 4 runs"),
        ("out_indices=[0, 2],\n        final", "out_indices=[2],\n        final", "layers .2. are returned"),
        ("final_norm=False", "final_norm=True", "asks for a final norm"),
        ("attn_mask_thre=0.3,", "", "does not state threshold; say --variant"),
        ("model = dict(", "network = dict(", "no model with backbone and decode_head"),
    ],
)
def test_contradictions(checkpoint, old, new, message):
    state_dict, meta = checkpoint
    assert old in meta["config"]
    with pytest.raises(ConversionError, match=message):
        convert(state_dict, meta | {"config": meta["config"].replace(old, new)})


def test_variant_against_shapes(checkpoint, tmp_path, capsys):
    status, message = run(capsys, FIXTURES / "b" / "checkpoint.pth", tmp_path / "out", "--variant", "vit-b-ade20k")
    assert status == 1 and "width is 96 by the shapes but 768 by the variant vit-b-ade20k" in message
    status, message = run(capsys, FIXTURES / "b" / "checkpoint.pth", tmp_path / "out", "--variant", "vit-x")
    assert status == 1 and "unknown variant 'vit-x'; choose one of" in message
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------- bad files


def broken(state_dict, change):
    state_dict = dict(state_dict)
    change(state_dict)
    return state_dict


def set_nan(state_dict):
    state_dict["decode_head.class_embed.bias"] = torch.full((8,), float("nan"))


def transpose(state_dict):
    key = "backbone.layers.1.ffn.layers.0.0.weight"
    state_dict[key] = state_dict[key].t()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("decode_head.class_embed.bias"), "missing key decode_head.class_embed.bias$"),
        (lambda s: s.pop("decode_head.query_2.weight"), "missing key decode_head.query_2.weight$"),
        (lambda s: s.pop("backbone.pos_embed"), "no key backbone.pos_embed, so it is no QLSeg network"),
        (
            lambda s: s.pop("decode_head.atm_1_decoder_2.layers.0.self_attn.in_proj_bias"),
            "missing key decode_head.atm_1_decoder_2.layers.0.self_attn.in_proj_bias; ",
        ),
        (lambda s: s.update({"decode_head.extra.weight": torch.zeros(1)}), "unexpected key decode_head.extra.weight"),
        (lambda s: s.update({"backbone.layers.9.ln1.bias": torch.zeros(96)}), "key backbone.layers.9.ln1.bias: this"),
        (transpose, r"0.0.weight has shape \(96, 384\) instead of \(384, 96\)"),
        (set_nan, "class_embed.bias holds values that are not finite"),
    ],
)
def test_bad_weights(checkpoint, change, message, tmp_path, capsys):
    state_dict, meta = checkpoint
    torch.save({"meta": meta, "state_dict": broken(state_dict, change)}, tmp_path / "x.pth")
    status, found = run(capsys, tmp_path / "x.pth", tmp_path / "out")
    assert status == 1
    with pytest.raises(ConversionError, match=message):
        raise ConversionError(found)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


class RunsCode:
    """A pickle that would run a command when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.system, (f"touch {self.marker}",))


def test_pickle_that_would_run_code(tmp_path, capsys):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": RunsCode(tmp_path / "ran")}, tmp_path / "x.pth")
    status, message = run(capsys, tmp_path / "x.pth", tmp_path / "out")
    assert status == 1 and "holds the Python object" in message and "system" in message
    (tmp_path / "y.pth").write_bytes(pickle.dumps(RunsCode(tmp_path / "ran")))
    assert run(capsys, tmp_path / "y.pth", tmp_path / "out")[0] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pth", "y.pth"]


def test_not_a_checkpoint(tmp_path, capsys):
    whole = (FIXTURES / "b" / "checkpoint.pth").read_bytes()
    files = {"text": b"hello", "empty": b"", "half": whole[: len(whole) // 2], "end": whole[-5000:]}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        status, message = run(capsys, tmp_path / name, tmp_path / "out")
        assert status == 1 and message.startswith("qlseg convert: ") and name in message, name
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("hello.txt", "hello")
    assert run(capsys, tmp_path / "zip", tmp_path / "out")[0] == 1
    torch.save([1, 2], tmp_path / "list")
    assert "holds no state dict" in run(capsys, tmp_path / "list", tmp_path / "out")[1]
    torch.save({"state_dict": {"a": 1}}, tmp_path / "numbers")
    assert "are not tensors" in run(capsys, tmp_path / "numbers", tmp_path / "out")[1]
    assert "does not exist" in run(capsys, tmp_path / "none", tmp_path / "out")[1]
    assert not (tmp_path / "out").exists()


def test_old_name_is_new_names_backwards(checkpoint):
    for key in checkpoint[0]:
        assert all(key_table.old_name(name) == key for name in key_table.new_names(key))


def test_numpy_scalars_of_both_generations(tmp_path):
    """NumPy 1 and 2 name the constructor of a scalar differently; either is read, whatever version is installed."""
    torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": {"best": np.float64(0.5)}}, tmp_path / "new.pth")
    assert read_checkpoint(tmp_path / "new.pth").meta["best"] == 0.5
    meta = read_checkpoint(FIXTURES / "a" / "checkpoint.pth").meta  # written with NumPy 1's name
    assert meta["hook_msgs"]["best_score"] == pytest.approx(0.5291)


# --------------------------------------------------------------------------------------------------- output folder


def test_output_folder_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    status, message = run(capsys, FIXTURES / "b" / "checkpoint.pth", tmp_path / "out")
    assert status == 1 and "is not an empty folder" in message
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_output_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    status, message = run(capsys, FIXTURES / "b" / "checkpoint.pth", tmp_path / "file" / "out")
    assert status == 1 and "cannot be written" in message
    status, message = run(capsys, FIXTURES / "b" / "checkpoint.pth", "/proc/out")
    assert status == 1 and "cannot be written" in message


def test_nothing_half_written_when_saving_fails(tmp_path, capsys, monkeypatch):
    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert_module.QLSegImageProcessor, "save_pretrained", no_space)
    status, message = run(capsys, FIXTURES / "b" / "checkpoint.pth", tmp_path / "out")
    assert status == 1 and "No space left" in message
    assert list(tmp_path.iterdir()) == []


def test_empty_output_folder_is_fine(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert run(capsys, FIXTURES / "b" / "checkpoint.pth", tmp_path / "out")[0] == 0
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert sorted(name for name in files if not name.endswith(".py")) == [  # the code: test_remote_code.py
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]


def test_conversion_leaves_its_input_alone(checkpoint):
    state_dict, meta = checkpoint
    before = {key: value.clone() for key, value in state_dict.items()}, copy.deepcopy(meta)
    conversion = convert(state_dict, meta)
    for value in conversion.state_dict.values():
        value.zero_()
    assert all(torch.equal(before[0][key], state_dict[key]) for key in state_dict) and before[1] == meta
