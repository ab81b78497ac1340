"""What the tests share: the two stored networks, converted once, and a tiny network with fresh weights."""

import json
import os
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import hub_server
import pytest

# before anything reads them: the tests have a Hub of their own, an empty cache and no token
HUB = hub_server.Hub()
CACHE = tempfile.TemporaryDirectory(prefix="qlseg-cache-")
os.environ |= {"HF_ENDPOINT": HUB.url, "HF_HOME": CACHE.name, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.pop("HF_TOKEN", None)

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = Path(__file__).resolve().parent / "fixtures"
sys.path.insert(0, str(ROOT))

import convert_checkpoints  # noqa: E402
from qlseg_hf import QLSegConfig, QLSegForSemanticSegmentation, QLSegImageProcessor, QLSegViTConfig  # noqa: E402


@dataclass
class Stored:
    """A stored network: its folder for `from_pretrained`, its checkpoint and the numbers it must give."""

    name: str
    folder: Path
    checkpoint: Path
    tensors: dict[str, torch.Tensor]
    numbers: dict
    processor: QLSegImageProcessor

    def model(self, **kwargs) -> QLSegForSemanticSegmentation:
        return QLSegForSemanticSegmentation.from_pretrained(self.folder, **kwargs)

    def picture(self, name: str) -> Path:
        return FIXTURES / self.name / f"{name}.png"


@pytest.fixture(scope="session", params=["a", "b"])
def stored(request, tmp_path_factory) -> Stored:
    name = request.param
    checkpoint = FIXTURES / name / "checkpoint.pth"
    folder = tmp_path_factory.mktemp("converted") / name
    assert convert_checkpoints.main([str(checkpoint), str(folder)]) == 0
    return Stored(
        name=name,
        folder=folder,
        checkpoint=checkpoint,
        tensors=load_file(FIXTURES / name / "expected.safetensors"),
        numbers=json.loads((FIXTURES / name / "expected.json").read_text()),
        processor=QLSegImageProcessor.from_pretrained(folder),
    )


@pytest.fixture
def connections(monkeypatch) -> list[str]:
    """What this process asks of any network, the loopback included, while none answers."""
    asked = []

    def fail(*arguments, **_):
        asked.append(repr(arguments))
        raise OSError("there is no network")

    for place, names in ((socket, ("getaddrinfo", "create_connection")), (socket.socket, ("connect", "connect_ex"))):
        for name in names:
            monkeypatch.setattr(place, name, fail)
    return asked


@pytest.fixture
def hub(monkeypatch) -> hub_server.Hub:
    """The Hub on the loopback, empty, with a token that may write."""
    HUB.repos.clear()
    HUB.requests.clear()
    HUB.failing = None
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    return HUB


def tiny_config(num_labels: int = 20, levels: tuple[int, ...] = (1, 2), **overrides) -> QLSegConfig:
    """32 wide, 2 layers, for pictures around 32 x 48."""
    backbone = QLSegViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=[32, 48],
        out_indices=list(levels),
    )
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 32, "num_pixel_encoder_layers": 1}
    sizes |= {"pixel_encoder_intermediate_size": 32, "num_decoder_blocks": 2, "num_decoder_layers": 2}
    return QLSegConfig(num_labels=num_labels, **({"backbone_config": backbone} | sizes | overrides))


def varied_model(config: QLSegConfig, seed: int = 0) -> QLSegForSemanticSegmentation:
    """Fresh weights, drawn with wider deviations than the paper's, so that masks and labels are not degenerate."""
    torch.manual_seed(seed)
    model = QLSegForSemanticSegmentation(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


@pytest.fixture
def tiny_model() -> QLSegForSemanticSegmentation:
    return varied_model(tiny_config())
