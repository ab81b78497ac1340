"""Label files and configuration texts: read or refused in a sentence, never run."""

import json

import pytest
from conftest import FIXTURES
from conversions import run

from qlseg_hf.convert.config_text import parse_configuration
from qlseg_hf.convert.convert import convert
from qlseg_hf.convert.reader import ConversionError


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


def test_parse_configuration():
    text = "a = dict(b=[1, (2, -3)], c={'d': None}, e='f')\ng = 1e-05\n"
    assert parse_configuration(text) == {"a": {"b": [1, [2, -3]], "c": {"d": None}, "e": "f"}, "g": 1e-05}


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("embed_dims=96", "embed_dims=128", "backbone.hidden_size is 96 by the shapes but 128 by the text"),
        ("num_classes=7", "num_classes=8", "num_labels is 7 by the shapes but 8 by the text"),
        ("use_stages=2", "use_stages=3", "num_levels is 2 by the shapes but 3"),
        ("num_ps_layers=1", "num_ps_layers=6", "num_pixel_encoder_layers is 1 by the shapes but 6"),
        ("img_size=(64, 64)", "img_size=(96, 96)", "backbone.image_size is 64 by the shapes but 96"),
        ("img_size=(64, 64)", "img_size=(64, 96)", "img_size .* is not square"),
        ("compress_c=4", "compress_c=3", "query fusion has 4 runs"),
        ("out_indices=[0, 2],\n        final", "out_indices=[2],\n        final", "layers .3. are returned"),
        ("final_norm=False", "final_norm=True", "asks for a final norm"),
        ("to_rgb=True", "to_rgb=False", "takes BGR pictures"),
        ("attn_mask_thre=0.3,", "", "does not state mask_threshold; say --variant"),
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
    assert status == 1 and "backbone.hidden_size is 96 by the shapes but 768 by the variant vit-b-ade20k" in message
    status, message = run(capsys, FIXTURES / "b" / "checkpoint.pth", tmp_path / "out", "--variant", "vit-x")
    assert status == 1 and "unknown variant 'vit-x'; choose one of" in message
    assert list(tmp_path.iterdir()) == []
