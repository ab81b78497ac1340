"""Checkpoints as people store them: wrapped, averaged, nested, as safetensors."""

import re

import numpy as np
import pytest
import torch
from conftest import FIXTURES
from conversions import buffers, inside, negative, prefixed, run, same_weights
from safetensors.torch import save_file

from qlseg_hf.cli.main import run as run_command
from qlseg_hf.convert.convert import convert
from qlseg_hf.convert.reader import ConversionError, read_checkpoint


def test_a_bare_state_dict(checkpoint, tmp_path, capsys):
    torch.save(dict(checkpoint[0]), tmp_path / "bare.pth")
    status, message = run(capsys, tmp_path / "bare.pth", tmp_path / "out")
    assert status == 1 and "say --variant with one of vit-b-ade20k" in message


EMPTY = {"lr_schedulers": [], "optimizer_states": [{"state": {0: torch.zeros(2)}}], "epoch": 3, "callbacks": {}}
WRAPPINGS = {  # of weights w and meta m; and a sentence
    "optimiser": (lambda w, m: {"meta": m, "state_dict": w, "optimizer": {"state": {0: torch.zeros(1)}}}, ""),
    "module.": (lambda w, m: {"meta": m, "state_dict": prefixed("module.", w)}, "prefix module., which"),
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


def test_numpy_scalars_of_both_generations(tmp_path):
    """NumPy 1 and 2 name the constructor of a scalar differently; either is read, whatever version is installed."""
    torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": {"best": np.float64(0.5)}}, tmp_path / "new.pth")
    assert read_checkpoint(tmp_path / "new.pth").meta["best"] == 0.5
    meta = read_checkpoint(FIXTURES / "a" / "checkpoint.pth").meta  # written with NumPy 1's name
    assert meta["hook_msgs"]["best_score"] == pytest.approx(0.5291)
