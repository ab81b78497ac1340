"""`--dtype auto`: what the device is fast in, decided once for a folder of results, and written down."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from qlseg_hf.predict import run
from qlseg_hf.predict.manifest import stored_dtype
from qlseg_hf.predict.request import Request
from qlseg_hf.utils.devices import fastest_dtype, has_bf16

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
