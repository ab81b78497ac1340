"""Checkpoints of mmengine 1."""

import ast
import sys
import types

import numpy as np
import pytest
import torch
from conversions import negative, prefixed, run, same_weights

from qlseg_hf.convert.convert import convert
from qlseg_hf.convert.reader import ConversionError, read_checkpoint


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
        ("keep_ratio=True", "keep_ratio=False", "does not state short_side; say --variant"),
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


@pytest.mark.parametrize("scale", ["48", "(2048, 48)"])
def test_shortest_edge(scale, checkpoint):
    state_dict, meta = checkpoint
    text = mmengine_text(meta["config"])
    text = text.replace("'Resize', scale=(256, 64), keep_ratio=True", f"'ResizeShortestEdge', scale={scale}")
    assert convert(state_dict, {"cfg": text}).processor.size == {"shortest_edge": 48}
