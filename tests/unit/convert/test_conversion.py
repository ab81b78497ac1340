"""The converter: every key accounted for, contradictions refused in a sentence, nothing executed or half-written."""

import copy
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from conftest import FIXTURES
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

import convert_checkpoints
from convert_checkpoints import ConversionError, convert, parse_configuration, read_checkpoint
from qlseg_hf import RELEASES, QLSegForSemanticSegmentation
from qlseg_hf.releases import label_set
from qlseg_hf.utils.files import file_sha256

MANIFESTS = FIXTURES / "manifests"


@pytest.fixture(scope="module")
def checkpoint():
    """State dict and meta of the small network `b`."""
    return read_checkpoint(FIXTURES / "b" / "checkpoint.pth")


def run(capsys, *arguments) -> tuple[int, str]:
    status = convert_checkpoints.main([str(argument) for argument in arguments])
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
    state_dict, _ = read_checkpoint(stored.checkpoint)
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
    shapes = convert_checkpoints.numbers_from_shapes(state_dict)
    numbers = convert_checkpoints.agreed_numbers(shapes, None, name)
    config = convert_checkpoints.make_config(numbers, [f"{i}" for i in range(numbers["num_labels"])], None)
    with torch.device("meta"):
        model = QLSegForSemanticSegmentation(config)
    targets = [target for key in state_dict for target in convert_checkpoints.new_names(key)]
    assert sum(not convert_checkpoints.new_names(key) for key in state_dict) == 2
    wanted = set(model.state_dict()) - {"decoder.queries"} | {f"decoder.queries[{i}]" for i in range(3)}
    assert set(targets) == wanted and len(targets) == len(wanted)
    expected = {"vit-b-ade20k": 171.1, "vit-l-ade20k": 450.3}.get(name)
    if expected:
        assert round(model.num_parameters() / 1e6, 1) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASES)
def test_manifests_from_file_to_folder(name, tmp_path, capsys, monkeypatch):
    """The whole way, stripped file to folder; the file is small because its tensors share one number."""
    monkeypatch.setattr(convert_checkpoints, "refuse_claims", lambda path, state_dict: None)
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
        found = convert(*read_checkpoint(tmp_path / f"{name}.pth")).state_dict
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    torch.save(dict(state_dict), tmp_path / "bare.pth")
    status, message = run(capsys, tmp_path / "bare.pth", tmp_path / "out")
    assert status == 1 and "say --variant with one of vit-b-ade20k" in message


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
        assert status == 1 and message.startswith("convert_checkpoints.py: ") and name in message, name
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
        assert all(convert_checkpoints.old_name(name) == key for name in convert_checkpoints.new_names(key))


def test_numpy_scalars_of_both_generations(tmp_path):
    """NumPy 1 and 2 name the constructor of a scalar differently; either is read, whatever version is installed."""
    torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": {"best": np.float64(0.5)}}, tmp_path / "new.pth")
    assert read_checkpoint(tmp_path / "new.pth")[1]["best"] == 0.5
    meta = read_checkpoint(FIXTURES / "a" / "checkpoint.pth")[1]  # written with NumPy 1's name
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

    monkeypatch.setattr(convert_checkpoints.QLSegImageProcessor, "save_pretrained", no_space)
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
