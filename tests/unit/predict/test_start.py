"""What `qlseg predict` does before the first image: cheap, and with the same answers as what it replaces."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from qlseg_hf.hub.loading import is_finite
from qlseg_hf.predict.request import Request, num_workers
from qlseg_hf.utils.hashing import weights_sha256


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
