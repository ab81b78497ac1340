"""Uploads and downloads over HTTP, against a Hub on the loopback."""

import socket

import pytest
import torch
from cards import WINDOW, assert_same_weights, assert_valid, convert, load, run_snippet, snippet, token
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.errors import HfHubHTTPError
from transformers import pipeline

from qlseg_hf import QLSegForSemanticSegmentation, QLSegImageProcessor
from qlseg_hf.hub.source import Source


@torch.no_grad()
def change(model: QLSegForSemanticSegmentation) -> None:
    model.class_head.bias += 1


def test_sharded_model_processor_and_pipeline(hub, tiny_model, tmp_path, monkeypatch, capsys):
    tiny_model.push_to_hub("net", max_shard_size="100KB", tags=["drawn"])
    WINDOW.push_to_hub("me/net")
    files = hub.files("me/net")
    shards = [name for name in files if name.endswith(".safetensors")]
    assert len(shards) > 1 and {"README.md", "config.json", "preprocessor_config.json"} <= files.keys()
    assert all(len(files[name]) < 120_000 for name in shards)
    assert_same_weights(load(), tiny_model)
    assert QLSegImageProcessor.from_pretrained("me/net").window_size == 32
    card = ModelCard(files["README.md"].decode())
    assert "drawn" in card.data.tags and card.data.library_name == "transformers" and "me/net" in snippet(card.text)
    printed = run_snippet(files["README.md"], tmp_path, monkeypatch, capsys)
    assert printed.startswith("LABEL_") and "(" in printed
    assert_valid(card)


def test_processor_first_leaves_the_card_to_the_model(hub, tiny_model):
    WINDOW.push_to_hub("me/net")
    assert "README.md" not in hub.files("me/net")
    with pytest.raises(ValueError, match="me/net has none; push the model first"):
        WINDOW.push_to_hub("me/net", tags="x")
    tiny_model.push_to_hub("me/net")
    assert b"# QLSeg" in hub.files("me/net")["README.md"]


def test_another_number_of_shards_replaces_the_old_weights(hub, tiny_model):
    """From an unsharded file beside shards, `from_pretrained` would load the unsharded one, of an earlier push."""
    tiny_model.push_to_hub("me/net")
    HfApi().upload_file(path_or_fileobj=b"1", path_in_repo="notes.txt", repo_id="me/net")
    change(tiny_model)
    for size in ("100KB", "200KB", "5GB"):
        tiny_model.push_to_hub("me/net", max_shard_size=size)
        assert_same_weights(load(), tiny_model)
    files = hub.files("me/net")
    assert [name for name in files if name.endswith(".safetensors")] == ["model.safetensors"]
    assert files["notes.txt"] == b"1"
    WINDOW.push_to_hub("me/net")
    assert "model.safetensors" in hub.files("me/net")


def test_revision(hub, tiny_model, tmp_path, monkeypatch, capsys):
    tiny_model.push_to_hub("me/net")
    first, main = tiny_model.class_head.bias.detach().clone(), hub.files("me/net")
    change(tiny_model)
    tiny_model.push_to_hub("me/net", revision="v2")
    WINDOW.push_to_hub("me/net", revision="v2")
    assert hub.files("me/net") == main
    assert torch.equal(load().class_head.bias, first)
    assert torch.equal(load(revision="v2").class_head.bias, first + 1)
    tiny_model.push_to_hub("me/fresh", revision="v2")
    WINDOW.push_to_hub("me/fresh", revision="v2")
    card = hub.files("me/fresh", "v2")["README.md"]
    assert 'model="me/fresh", revision="v2"' in snippet(card)
    assert run_snippet(card, tmp_path, monkeypatch, capsys).startswith("LABEL_")


def test_private_needs_a_token(hub, tiny_model, tmp_path, monkeypatch):
    tiny_model.push_to_hub("me/net", private=True)
    assert hub.repos["models/me/net"].private
    token(monkeypatch, "hf_read")
    assert_same_weights(load(), tiny_model)
    for value in ("", "hf_stranger"):
        token(monkeypatch, value)
        with pytest.raises(OSError, match="me/net is not a local folder"):
            load(cache_dir=tmp_path)  # without peft, transformers takes what the cache holds, whoever asks
    assert_same_weights(load(token="hf_read"), tiny_model)
    with pytest.raises(HfHubHTTPError, match="403"):
        tiny_model.push_to_hub("me/net")
    WINDOW.push_to_hub("me/net", token="hf_me")
    assert QLSegImageProcessor.from_pretrained("me/net", token="hf_read").window_size == 32


def test_private_is_not_ignored_for_a_public_repository(hub, tiny_model):
    tiny_model.push_to_hub("me/net")
    before = hub.files("me/net")
    change(tiny_model)
    with pytest.raises(ValueError, match="me/net exists and is public"):
        tiny_model.push_to_hub("me/net", private=True)
    assert hub.files("me/net") == before


def test_an_existing_card_is_kept(hub, tiny_model, caplog):
    tiny_model.push_to_hub("me/net")
    mine = b"---\nlicense: mit\n---\n# Mine\n"
    HfApi().upload_file(path_or_fileobj=mine, path_in_repo="README.md", repo_id="me/net")
    tiny_model.push_to_hub("me/net")
    WINDOW.push_to_hub("me/net")
    assert hub.files("me/net")["README.md"] == mine and "licence" not in caplog.text
    tiny_model.source = Source("checkpoint.pth", license={"license": "other"})
    tiny_model.push_to_hub("me/net")
    assert "the card of me/net is kept and says licence mit; that of these weights is other" in caplog.text
    tiny_model.add_model_tags(["drawn"])
    tiny_model.push_to_hub("me/net")
    card = ModelCard(hub.files("me/net")["README.md"].decode())
    assert card.text == "# Mine\n" and card.data.to_dict() == {"license": "mit", "tags": ["drawn"]}


def test_pull_request(hub, tiny_model):
    tiny_model.push_to_hub("me/net")
    before = hub.files("me/net")
    change(tiny_model)
    commit = tiny_model.push_to_hub("me/net", create_pr=True)
    assert commit.pr_revision == "refs/pr/1" and hub.files("me/net") == before
    assert_same_weights(load(revision="refs/pr/1"), tiny_model)


def test_save_and_push_in_one_call(hub, tiny_model, tmp_path):
    tiny_model.save_pretrained(
        tmp_path / "net", push_to_hub=True, private=True, revision="v1", commit_message="One", max_shard_size="100KB"
    )
    files = hub.files("me/net", "v1")
    assert hub.repos["models/me/net"].private and (tmp_path / "net" / "README.md").is_file()
    assert files["model.safetensors.index.json"] == (tmp_path / "net" / "model.safetensors.index.json").read_bytes()


def test_a_failed_upload_changes_nothing_and_is_resumed(hub, tiny_model):
    tiny_model.push_to_hub("me/net", max_shard_size="100KB")
    before = hub.files("me/net")
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter += 1
    hub.failing = ("POST /api/models/me/net/commit", 403)  # every shard is there by then
    with pytest.raises(HfHubHTTPError):
        tiny_model.push_to_hub("me/net", max_shard_size="100KB")
    assert hub.files("me/net") == before
    hub.failing = ("PUT /lfs/", 403)  # nothing is sent again
    tiny_model.push_to_hub("me/net", max_shard_size="100KB")
    assert_same_weights(load(), tiny_model)
    change(tiny_model)
    before = hub.files("me/net")
    with pytest.raises((HfHubHTTPError, RuntimeError)):
        tiny_model.push_to_hub("me/net", max_shard_size="100KB")
    assert hub.files("me/net") == before


def test_converter(hub, tmp_path, monkeypatch, capsys):
    assert convert(tmp_path / "out", "--push-to-hub", "net", "--private", "--revision", "v1") == 0
    assert f"{hub.url}/me/net/commit/" in capsys.readouterr().out and hub.repos["models/me/net"].private
    files = hub.files("me/net", "v1")
    local = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert files.keys() == local.keys() | {".gitattributes"}
    assert all(files[name] == local[name] for name in local.keys() - {"README.md"})
    printed = run_snippet(files["README.md"], tmp_path, monkeypatch, capsys)
    assert printed == run_snippet(local["README.md"], tmp_path, monkeypatch, capsys) != ""
    assert 'model="out"' in snippet(local["README.md"]) and 'revision="v1"' in snippet(files["README.md"])
    model = pipeline("image-segmentation", model="me/net", revision="v1").model
    assert_same_weights(model, QLSegForSemanticSegmentation.from_pretrained(tmp_path / "out"))


def test_converter_refusals(hub, tmp_path, monkeypatch, capsys):
    def sentence(*arguments) -> str:
        assert convert(tmp_path / "out", *arguments) == 1
        printed = capsys.readouterr().err
        assert printed.count("qlseg convert: ") == 1 and "Traceback" not in printed
        return printed.splitlines()[-1]

    assert "--private and --revision belong to --push_to_hub" in sentence("--private")
    assert "answered 403" in sentence("--push-to-hub", "you/net")
    token(monkeypatch, "")
    assert "answered 401: Invalid username or password.; log in" in sentence("--push-to-hub", "me/net")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert "the Hub cannot be reached at http://127.0.0.1" in sentence("--push-to-hub", "me/net")
    assert not (tmp_path / "out").exists() and not hub.repos


def test_upload_refused_at_the_commit_is_one_sentence(hub, tmp_path, capsys):
    hub.failing = ("/commit/main", 403)
    assert convert(tmp_path / "out", "--push-to-hub", "me/net") == 1
    printed = capsys.readouterr()
    assert printed.err.count("qlseg convert: the Hub answered 403") == 1 and "Traceback" not in printed.err
    assert f"hf upload me/net {tmp_path / 'out'}" in printed.out and list(hub.files("me/net")) == [".gitattributes"]
