"""What `qlseg predict` does before the first image: cheap, and with the same answers as what it replaces."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import BACKBONES, tiny_config
from networks import network as network_on
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from qlseg_hf import QLSegForSemanticSegmentation
from qlseg_hf.model.runtime import is_finite
from qlseg_hf.predict.request import Request, num_workers
from qlseg_hf.predict.run import predict
from qlseg_hf.utils.devices import check_device
from qlseg_hf.utils.hashing import config_sha256, weights_sha256


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [1.0, math.nan, math.inf, -math.inf])
def test_is_finite(dtype, value):
    for place in (0, 7, 99):
        x = torch.randn(4, 25, generator=torch.Generator().manual_seed(0)).to(dtype)
        x.view(-1)[place] = value
        assert is_finite(x) is math.isfinite(value)
    assert is_finite(torch.tensor(3)) and is_finite(torch.empty(0)) and is_finite(torch.tensor([True]))


def test_hash_of_weights():
    """Anything that is other gives another hash: a value, a dtype, a shape, a name."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    same = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    same.load_state_dict(model.state_dict())
    assert weights_sha256(model) == weights_sha256(same)
    found = {weights_sha256(model), weights_sha256(nn.ModuleDict({"a": model[0], "b": model[1]}))}
    same[1].bias.data[1] += 1e-6
    found.add(weights_sha256(same))
    same.load_state_dict(model.state_dict())
    same[0].weight.data = same[0].weight.data.reshape(3, 4)
    found |= {weights_sha256(same), weights_sha256(model.half())}
    assert len(found) == 5


def test_hash_of_a_configuration(network, tmp_path):
    """It is that of the network and its labels, and not of how it was loaded."""
    expected = config_sha256(tiny_config())
    folder = shutil.copytree(network, tmp_path / "copy")
    for settings in ({}, {"dtype": torch.bfloat16}, {"attn_implementation": "eager"}):
        assert config_sha256(QLSegForSemanticSegmentation.from_pretrained(folder, **settings).config) == expected
    changes = {"mask_threshold": 0.5, "palette": [[1, 2, 3]] * 20, "id2label": {i: f"x{i}" for i in range(20)}}
    found = {config_sha256(tiny_config(**{name: value})) for name, value in changes.items()}
    found.add(config_sha256(tiny_config(levels=(0, 2))))
    found.add(config_sha256(network_on(BACKBONES["dinov2"][0]).config))
    assert len(found | {expected}) == len(changes) + 3


def test_a_changed_network_is_not_taken_for_that_of_before(network, tmp_path):
    """Other masks of the same weights, and other weights."""
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    folder = shutil.copytree(network, tmp_path / "network")
    request = Request(str(folder), (str(tmp_path / "a.png"),), tmp_path / "out", ("csv",), device="cpu")
    assert predict(request).num_done == 1 and predict(request).num_before == 1
    whole = (folder / "config.json").read_text()
    (folder / "config.json").write_text(json.dumps(json.loads(whole) | {"mask_threshold": 0.5}))
    with pytest.raises(ValueError, match=r"holds results of other settings \(config_sha256"):
        predict(request)
    (folder / "config.json").write_text(whole)
    weights = load_file(folder / "model.safetensors")
    weights["class_head.bias"][0] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"holds results of other settings \(weights_sha256"):
        predict(request)


def test_a_few_files_are_read_without_workers(tmp_path):
    """A worker imports PyTorch before it reads."""
    files = [tmp_path / f"{number}.jpg" for number in range(5)]
    for path in files:
        path.touch()

    def count(*sources: Path, workers: int | None = None) -> int:
        return num_workers(Request("model", tuple(map(str, sources)), tmp_path / "out", workers=workers))

    assert count(files[0]) == count(*files[:4]) == 0 and count(files[0], workers=3) == 3
    assert count(*files) > 0 and count(tmp_path) > 0 and count(tmp_path / "*.jpg") > 0
    (tmp_path / "list.txt").write_text("0.jpg")
    assert count(tmp_path / "list.txt") > 0


@pytest.mark.parametrize("name", ["nothing", "cpu:x", "meta", "cuda:99"])
def test_devices_that_are_not_there(name):
    with pytest.raises(ValueError, match="this machine has no device|meta device"):
        check_device(name)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*none, and it is no id on the Hub"):
        predict(Request(str(tmp_path / "none"), (str(tmp_path),), tmp_path / "out", workers=0))
    assert not (tmp_path / "out").exists()
