"""int8 weights by torchao: run by tests/unit/model/test_backbones.py.

A process of its own, because transformers imports torchao wherever it is, and torchao writes to stderr.
"""

import sys

import pytest
import torch
from conftest import FIXTURES
from networks import BACKBONES, network
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
from transformers import AutoModelForSemanticSegmentation, TorchAoConfig, pipeline

from qlseg_hf import QLSegImageSegmentationPipeline, segment
from qlseg_hf.export import quantize

if __name__ == "__main__":
    sys.exit(pytest.main(["-q", __file__]))


def int8_weights(model) -> list[str]:
    return [name for name, p in model.named_parameters() if type(p).__name__.startswith("Int8")]


def agreement(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    same = sum((a == b).sum().item() for a, b in zip(one, other, strict=True))
    return same / sum(a.numel() for a in one)


@pytest.mark.parametrize("stored", ["b"], indirect=True)
def test_example(stored, tmp_path, capsys):
    """The folder loads by its name alone, is small, and labels nearly every pixel as fp32 does."""
    names = [str(stored.picture(name)) for name in ("wide", "tall", "large")]
    quantize.quantize(str(stored.folder), tmp_path / "int8", names)
    printed = capsys.readouterr().out
    assert "of it" in printed and "pixels agree" in printed
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "int8")
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    kept = [name for name in linear if name.endswith(("class_head", "cross_attn.q_proj", "cross_attn.k_proj"))]
    assert len(kept) > 10 and set(int8_weights(model)) == {f"{name}.weight" for name in set(linear) - set(kept)}
    assert quantize.megabytes(tmp_path / "int8") < 0.6 * quantize.megabytes(stored.folder)
    card = (tmp_path / "int8" / "README.md").read_text()
    assert "quantised by torchao" in card and 'model="int8"' in card
    assert "license_name: academic-non-commercial" in card and "mIoU" not in card  # of what it came from
    maps = segment(model, stored.processor, names)
    found = agreement(maps, segment(stored.model(), stored.processor, names))
    assert 0.998 <= found < 1  # 0.9985 and 0.9997; equal would mean that nothing was quantised
    assert f"{100 * found:.2f} %" in printed
    segmenter = pipeline("image-segmentation", model=str(tmp_path / "int8"))
    assert isinstance(segmenter, QLSegImageSegmentationPipeline)
    assert {part["label"] for part in segmenter(names[0])} == {
        model.config.id2label[int(label)] for label in maps[0].unique()
    }
    with pytest.raises(ValueError, match="int8 exists; name another folder"):
        quantize.quantize(str(stored.folder), tmp_path / "int8", names)


@pytest.mark.parametrize("stored", ["b"], indirect=True)
def test_weights_only(stored):
    """Plain `quantization_config`, which takes every linear layer."""
    settings = TorchAoConfig(Int8WeightOnlyConfig())
    model = stored.model(dtype=torch.float32, quantization_config=settings)
    assert len(int8_weights(model)) == sum(isinstance(module, torch.nn.Linear) for module in model.modules()) > 100
    pictures = [FIXTURES / stored.name / f"{name}.png" for name in ("wide", "large")]
    full = segment(stored.model(), stored.processor, pictures)
    assert agreement(segment(model, stored.processor, pictures), full) >= 0.998


@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
def test_other_backbones(kind, tmp_path):
    network(BACKBONES[kind][0]).save_pretrained(tmp_path / "fp32")
    settings = TorchAoConfig(Int8DynamicActivationInt8WeightConfig(), modules_to_not_convert=quantize.NOT_QUANTISED)
    load = AutoModelForSemanticSegmentation.from_pretrained
    plain = load(tmp_path / "fp32")
    model = load(tmp_path / "fp32", dtype=torch.float32, quantization_config=settings)
    assert any(name.startswith("backbone.") for name in int8_weights(model))
    model.save_pretrained(tmp_path / "int8")
    pixel_values = torch.randn(1, 3, 40, 75)
    with torch.no_grad():
        logits = model(pixel_values).logits
        assert torch.equal(load(tmp_path / "int8")(pixel_values).logits, logits)
        expected = plain(pixel_values).logits
    # random weights: scores move by some percent of their spread
    assert 0 < (logits - expected).norm() / (expected - expected.mean()).norm() < 0.3
