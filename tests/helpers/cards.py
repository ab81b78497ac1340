"""What the tests of the Hub share: cards and their snippets."""

import re
from importlib.metadata import version
from pathlib import Path

import torch
from conftest import FIXTURES
from hub_server import card_errors
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image
from transformers import AutoModelForSemanticSegmentation

from qlseg_hf import QLSegImageProcessor
from qlseg_hf.cli.main import run

NASTY = "<script>alert(1)</script> a|b\n```\n*c* [d](e)"
WINDOW = QLSegImageProcessor(size={"shortest_edge": 32}, window_size=32, window_stride=24)


def load(repo_id: str = "me/net", **kwargs):
    return AutoModelForSemanticSegmentation.from_pretrained(repo_id, **kwargs)


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def token(monkeypatch, value: str) -> None:
    monkeypatch.setenv("HF_TOKEN", value)


def assert_valid(card: ModelCard) -> None:
    assert card_errors(str(card)) == []
    if version("huggingface_hub") >= "2":  # before, it asks huggingface.co whatever the endpoint
        card.validate()


def rendered(text: str) -> str:
    """A card as HTML."""
    return MarkdownIt("commonmark").enable("table").render(text)


def snippet(card: bytes | str) -> str:
    text = card.decode() if isinstance(card, bytes) else card
    return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]


def run_snippet(card: bytes | str, folder: Path, monkeypatch, capsys) -> str:
    """Run the snippet of a card where there is a picture.jpg; what it prints."""
    Image.open(FIXTURES / "a" / "wide.png").convert("RGB").save(folder / "picture.jpg")
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(compile(snippet(card), "README.md", "exec"), {})
    return capsys.readouterr().out


def convert(*arguments) -> int:
    return run(["convert", FIXTURES / "b" / "checkpoint.pth", *arguments])
