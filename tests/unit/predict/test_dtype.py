"""`--dtype auto`: what the device is fast in, decided once for a folder of results, and written down."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from qlseg_hf import QLSegForSemanticSegmentation
from qlseg_hf.predict import run
from qlseg_hf.predict.manifest import stored_dtype
from qlseg_hf.predict.request import Request
from qlseg_hf.utils.devices import PackedLinear, fastest_dtype, has_bf16, place_for_inference
from qlseg_hf.utils.hashing import weights_sha256

CPU = torch.device("cpu")


@pytest.mark.parametrize("supported, name", [(True, "bfloat16"), (False, "float32")])
def test_what_a_device_is_fast_in(monkeypatch, supported, name):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    for device in (CPU, torch.device("cuda")):
        assert has_bf16(device) is supported and fastest_dtype(device) == name
    assert fastest_dtype(torch.device("mps")) == "float32"


def test_all_processes_have_to_be_fast_in_it(monkeypatch):
    """Else the images of one process would be segmented in another dtype than those of another."""
    monkeypatch.setattr("qlseg_hf.utils.devices.has_bf16", lambda device: True)
    monkeypatch.setattr("qlseg_hf.utils.devices.gather_objects", lambda mine, world_size: [mine, False])
    assert fastest_dtype(CPU, 2) == "float32"


@pytest.mark.skipif(not has_bf16(CPU), reason="this CPU has no instructions for bf16, so no layer is packed")
def test_packed_layers_change_no_number(network):
    """Those of the network as it was loaded, and its hash: a run may go on where layers are not packed."""
    model = QLSegForSemanticSegmentation.from_pretrained(network, dtype=torch.bfloat16).eval()
    pixels = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, hash_before, count = model(pixels).logits, weights_sha256(model), len(model.state_dict())
        packed = place_for_inference(model, "cpu")
        found = packed(pixels).logits
    assert packed is model and not any(type(module) is nn.Linear for module in model.modules())
    assert any(isinstance(module, PackedLinear) for module in model.modules())
    torch.testing.assert_close(found, expected, rtol=0, atol=float(expected.abs().max()) / 256)
    assert weights_sha256(model) == hash_before and len(model.state_dict()) == count
    assert model.dtype == torch.bfloat16 and model.device == CPU
    assert place_for_inference(model, CPU) is model  # packed ones are left alone


@pytest.mark.parametrize("dtype, supported", [(torch.float32, True), (torch.bfloat16, False)])
def test_layers_that_gain_nothing_are_not_packed(network, monkeypatch, dtype, supported):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    model = place_for_inference(QLSegForSemanticSegmentation.from_pretrained(network, dtype=dtype), CPU)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())


def test_a_run_goes_on_in_the_dtype_it_was_begun_in(network, tmp_path, monkeypatch):
    for name in ("a", "b"):
        noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{name}.png")
    used = []

    def load_network(*arguments, dtype):
        used.append(dtype)
        return load(*arguments, dtype=dtype)

    load = run.load_network_or_file
    monkeypatch.setattr(run, "load_network_or_file", load_network)

    def predict(fastest: str, dtype: str = "auto", sources=("a.png", "b.png")) -> int:
        monkeypatch.setattr(run, "fastest_dtype", lambda *_: fastest)
        paths = tuple(str(tmp_path / name) for name in sources)
        given = {"formats": ("labels",), "workers": 0, "device": "cpu", "dtype": dtype}
        return run.predict(Request(str(network), paths, tmp_path / "out", **given)).num_done

    assert stored_dtype(tmp_path / "out") is None
    assert predict("bfloat16", sources=("a.png",)) == 1
    settings = json.loads((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()[0])["settings"]
    assert settings["dtype"] == stored_dtype(tmp_path / "out") == "bfloat16"
    assert predict("float32") == 1  # on a machine without such instructions: the image that is missing
    with pytest.raises(ValueError, match='dtype: "bfloat16" there, "float32" here'):
        predict("bfloat16", dtype="float32")
    assert used == [torch.bfloat16, torch.bfloat16, torch.float32]
    (tmp_path / "out" / "manifest.jsonl").write_text("{\n")
    with pytest.raises(ValueError, match="manifest.jsonl is damaged"):
        predict("float32")
