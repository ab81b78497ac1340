"""Checkpoints that are refused in a sentence, with nothing executed and nothing written."""

import subprocess
import sys
from importlib import import_module

import pytest
import torch
from conversions import run, same_weights, whole_and_meta

from qlseg_hf.convert.convert import convert
from qlseg_hf.convert.reader import ConversionError


@pytest.mark.integration
def test_other_objects_are_refused_with_a_command(checkpoint, tmp_path, capsys, monkeypatch):
    """The command does what it promises."""
    (tmp_path / "beside.py").write_text("class Beside:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    weights, meta = checkpoint
    torch.save({"state_dict": weights, "meta": meta | {"mine": import_module("beside").Beside()}}, tmp_path / "x.pth")
    status, message = run(capsys, tmp_path / "x.pth", tmp_path / "out")
    assert status == 1 and "holds the Python object beside.Beside, which is not run" in message
    command = message.partition("(this runs it): ")[2].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert same_weights(
        convert(*whole_and_meta(tmp_path / "stripped.pth")).state_dict, convert(weights, meta).state_dict
    )


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


def test_not_a_checkpoint(tmp_path, capsys):
    """Others, of bytes: robustness/test_security_checkpoints.py."""
    torch.save([1, 2], tmp_path / "list")
    assert "holds no state dict" in run(capsys, tmp_path / "list", tmp_path / "out")[1]
    torch.save({"state_dict": {"a": 1}}, tmp_path / "numbers")
    assert "are not tensors" in run(capsys, tmp_path / "numbers", tmp_path / "out")[1]
    assert "does not exist" in run(capsys, tmp_path / "none", tmp_path / "out")[1]
    assert not (tmp_path / "out").exists()
