"""The folder that a conversion writes: every key accounted for, nothing half-written."""

import copy
import json

import pytest
import torch
from conftest import FIXTURES
from conversions import run, whole_and_meta
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from qlseg_hf import RELEASES, QLSegForSemanticSegmentation
from qlseg_hf.convert import convert as convert_module
from qlseg_hf.convert import key_table, reader
from qlseg_hf.convert.convert import convert
from qlseg_hf.releases import label_set
from qlseg_hf.utils.hashing import file_sha256

MANIFESTS = FIXTURES / "manifests"


def test_folder(stored):
    model = AutoModelForSemanticSegmentation.from_pretrained(stored.folder)
    processor = AutoImageProcessor.from_pretrained(stored.folder)
    numbers, config = stored.numbers["config"], model.config
    vit = config.backbone_config
    assert [stage - 1 for stage in vit.out_indices] == numbers["out_indices"]
    found = (vit.image_size, vit.hidden_size, vit.num_hidden_layers, vit.num_attention_heads)
    found += (config.num_labels, config.num_attention_heads, config.num_decoder_layers, config.num_decoder_blocks)
    found += (config.num_pixel_encoder_layers, config.num_query_fusion_groups, config.mask_threshold)
    names = "img dim depth heads classes dec_heads num_layers num_atm ps compress_c thr".split()
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


def test_dtype(checkpoint, tmp_path, capsys):
    status, _ = run(capsys, FIXTURES / "b" / "checkpoint.pth", tmp_path / "out", "--dtype", "bfloat16")
    assert status == 0
    assert AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_whole_picture_inference(checkpoint):
    state_dict, meta = checkpoint
    text = meta["config"].replace("mode='slide', crop_size=(64, 64), stride=(40, 40)", "mode='whole'")
    assert text != meta["config"]
    assert convert(state_dict, meta | {"config": text}).processor.do_sliding_window is False


def test_old_name_is_new_names_backwards(checkpoint):
    pairs = [(name, key) for key in checkpoint[0] for name in key_table.new_names(key)]
    assert len(pairs) > 200
    for name, key in pairs:
        assert key_table.old_name(name) == key


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
