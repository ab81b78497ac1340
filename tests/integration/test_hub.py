"""Uploads and downloads over HTTP, against a Hub on the loopback."""

import copy
import dataclasses
import json
import os
import pickle
import re
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from conftest import FIXTURES
from hub_server import card_errors
from huggingface_hub import HfApi, ModelCard, constants, metadata_load
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from markdown_it import MarkdownIt
from networks import tiny_config
from PIL import Image
from programs import NETWORK, ROOT, environment, make_data, write_recipe
from transformers import (
    AutoConfig,
    AutoModelForSemanticSegmentation,
    Dinov2Config,
    ViTConfig,
    ViTModel,
    pipeline,
)

from qlseg_hf import (
    QLSegConfig,
    QLSegForSemanticSegmentation,
    QLSegImageProcessor,
    QLSegViTBackbone,
    load_vit_weights,
    segment,
)
from qlseg_hf.cli.main import run
from qlseg_hf.data.datasets import open_dataset
from qlseg_hf.evaluation.evaluator import evaluate_samples
from qlseg_hf.hub.card import add_result_to_card, inference_protocol
from qlseg_hf.hub.loading import load_network
from qlseg_hf.training.build import plain_model
from qlseg_hf.training.recipe import Recipe, load_recipe
from qlseg_hf.utils.text import as_code, fenced

NASTY = "<script>alert(1)</script> a|b\n```\n*c* [d](e)"
FORBID_CONNECTIONS = """
import os, socket, sys
def forbid(event, arguments):
    if event == "socket.getaddrinfo" or event == "socket.connect" and arguments[0].family != socket.AF_UNIX:
        with open(os.environ["ASKED"], "a") as file:
            file.write(f"{event} {arguments}\\n")
        raise OSError("there is no network")
sys.addaudithook(forbid)
"""
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


# ------------------------------------------------------------------------------------------------ model and processor


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
    with torch.no_grad():
        tiny_model.class_head.bias += 1
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
    with torch.no_grad():
        tiny_model.class_head.bias += 1
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
    with torch.no_grad():
        tiny_model.class_head.bias += 1
    with pytest.raises(ValueError, match="me/net exists and is public"):
        tiny_model.push_to_hub("me/net", private=True)
    assert hub.files("me/net") == before


def test_an_existing_card_is_kept(hub, tiny_model):
    tiny_model.push_to_hub("me/net")
    mine = b"---\nlicense: mit\n---\n# Mine\n"
    HfApi().upload_file(path_or_fileobj=mine, path_in_repo="README.md", repo_id="me/net")
    tiny_model.push_to_hub("me/net")
    WINDOW.push_to_hub("me/net")
    assert hub.files("me/net")["README.md"] == mine
    tiny_model.add_model_tags(["drawn"])
    tiny_model.push_to_hub("me/net")
    card = ModelCard(hub.files("me/net")["README.md"].decode())
    assert card.text == "# Mine\n" and card.data.to_dict() == {"license": "mit", "tags": ["drawn"]}


def test_pull_request(hub, tiny_model):
    tiny_model.push_to_hub("me/net")
    before = hub.files("me/net")
    with torch.no_grad():
        tiny_model.class_head.bias += 1
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
    with torch.no_grad():
        tiny_model.class_head.bias += 1
    before = hub.files("me/net")
    with pytest.raises((HfHubHTTPError, RuntimeError)):
        tiny_model.push_to_hub("me/net", max_shard_size="100KB")
    assert hub.files("me/net") == before


# ---------------------------------------------------------------------------------------------------------- converter


def convert(*arguments) -> int:
    return run(["convert", FIXTURES / "b" / "checkpoint.pth", *arguments])


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


# --------------------------------------------------------------------------------------------------------------- cards


def test_cards_of_models_saved_by_hand(hub, tmp_path, monkeypatch, capsys):
    convert(tmp_path / "converted")
    model = QLSegForSemanticSegmentation.from_pretrained(tmp_path / "converted")
    model.save_pretrained(tmp_path / "again")
    QLSegImageProcessor.from_pretrained(tmp_path / "converted").save_pretrained(tmp_path / "again")
    text = (tmp_path / "again" / "README.md").read_text()
    data = metadata_load(tmp_path / "again" / "README.md")
    assert data["license"] == "other" and data["license_name"] == "academic-non-commercial"  # inherited
    assert "base_model" not in data and "No accuracy was measured" in text
    assert run_snippet(text, tmp_path, monkeypatch, capsys)
    model.push_to_hub("me/net")
    loaded = load()
    loaded.save_pretrained(tmp_path / "from_hub")
    assert metadata_load(tmp_path / "from_hub" / "README.md")["license_link"] == data["license_link"]
    (tmp_path / "again" / "README.md").write_text("mine")
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == "mine"
    fresh = QLSegForSemanticSegmentation(tiny_config())
    fresh.save_pretrained(tmp_path / "fresh")
    assert metadata_load(tmp_path / "fresh" / "README.md")["license"] == "unknown"
    other = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=56, out_indices=[1, 2])
    QLSegForSemanticSegmentation(tiny_config(backbone_config=other)).save_pretrained(tmp_path / "dinov2")
    assert "Backbone `dinov2` with" in (tmp_path / "dinov2" / "README.md").read_text()
    fresh.save_pretrained(tmp_path / "second", is_main_process=False)
    assert not (tmp_path / "second" / "README.md").exists()
    for folder in ("converted", "again", "from_hub", "fresh"):
        if folder != "again":
            assert_valid(ModelCard.load(tmp_path / folder / "README.md"))


def saved_card(model: torch.nn.Module, place: Path) -> tuple[dict, str]:
    """Metadata and text of the card that is saved with a model."""
    model.save_pretrained(place)
    card = ModelCard.load(place / "README.md")
    assert card_errors(str(card)) == []
    return card.data.to_dict(), card.text


def card_of(**fields) -> str:
    return f"---\n{yaml.safe_dump(fields)}---\n# Card\n"


@pytest.fixture
def several_models(hub, tiny_model, tmp_path) -> Path:
    """me/several, private: its own card, that of the model in `sub`, none in `bare`; another card on branch v2."""
    root = tmp_path / "net"
    for folder, card in (
        ("", card_of(license="mit")),
        ("sub", card_of(license="other", license_name="mine", license_link="LICENSE")),
        ("bare", None),
        ("broken", "---\nlicense: [\n---\n"),
    ):
        tiny_model.save_pretrained(root / folder)
        (root / folder / "README.md").unlink()
        if card:
            (root / folder / "README.md").write_text(card)
    HfApi().create_repo("me/several", private=True)
    HfApi().upload_folder(repo_id="me/several", folder_path=root, ignore_patterns="broken/*")  # which a Hub refuses
    HfApi().create_branch("me/several", branch="v2")
    card = card_of(license="apache-2.0").encode()
    HfApi().upload_file(repo_id="me/several", path_or_fileobj=card, path_in_repo="README.md", revision="v2")
    return root


@pytest.mark.parametrize("load", [AutoModelForSemanticSegmentation, QLSegForSemanticSegmentation])
@pytest.mark.parametrize("reuse", [{}, {"id2label": {0: "a", 1: "b"}, "reuse_labels": True}], ids=["", "new labels"])
def test_the_licence_is_that_of_what_was_loaded(several_models, tmp_path, monkeypatch, load, reuse):
    token(monkeypatch, "")  # what is private is to be had with the token that is given alone
    shared = {"token": "hf_read", "cache_dir": tmp_path / "cache"} | reuse
    for number, (where, expected) in enumerate(
        (
            ({}, "mit"),
            ({"revision": "v2"}, "apache-2.0"),
            ({"subfolder": "sub"}, "other"),
            ({"subfolder": "bare"}, "unknown"),
            ({"local_files_only": True}, "mit"),
            ({"force_download": True}, "mit"),
        )
    ):
        data, text = saved_card(load.from_pretrained("me/several", **where, **shared), tmp_path / f"hub-{number}")
        assert data["license"] == expected, where
        name = "/".join(filter(None, ("me/several", where.get("subfolder"))))
        assert f"started from `{name}`" in text and "could not be read" not in text
        if where.get("subfolder") == "sub":
            assert data["license_name"] == "mine" and data["license_link"].endswith("/sub/LICENSE")
        assert ("Nobody has stated one" in text) == (expected == "unknown")
    assert not (Path(os.environ["HF_HOME"]) / "hub" / "models--me--several").exists()


def test_the_licence_is_that_of_what_was_loaded_from_a_folder(several_models, tmp_path, monkeypatch, connections):
    """A path that is relative, or a folder that is gone when the model is saved; and a net of the same name."""
    load = QLSegForSemanticSegmentation.from_pretrained
    monkeypatch.chdir(tmp_path)
    models = [(load("net"), "mit", "net"), (load("net", subfolder="sub"), "other", "sub")]
    models += [(load("net", subfolder="bare"), "unknown", "bare"), (load("./net/../net/sub"), "other", "sub")]
    models += [(load(several_models / "broken"), "unknown", "broken")]
    (tmp_path / "elsewhere" / "net").mkdir(parents=True)
    (tmp_path / "elsewhere" / "net" / "README.md").write_text(card_of(license="cc-by-4.0"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    several_models.rename(tmp_path / "gone")
    for number, (model, expected, name) in enumerate(models):
        model = pickle.loads(pickle.dumps(copy.deepcopy(model)))
        data, text = saved_card(model, tmp_path / f"folder-{number}")
        assert data["license"] == expected and f"`{name}`" in text and str(tmp_path) not in text
        assert "license_link" not in data  # LICENSE is not saved with the weights
        assert ("could not be read" in text) == (name == "broken")
        assert "LICENSE" not in (tmp_path / f"folder-{number}" / "config.json").read_text()
    assert connections == []


def test_no_licence_without_the_card(hub, tiny_model, tmp_path):
    """The Hub answers for the weights and not for the card; and weights of another origin."""
    tiny_model.push_to_hub("me/net")
    card = card_of(license="mit").encode()
    HfApi().upload_file(repo_id="me/net", path_or_fileobj=card, path_in_repo="README.md")
    for status in (403, 404):
        hub.failing = ("README.md", status)
        model = QLSegForSemanticSegmentation.from_pretrained("me/net", cache_dir=tmp_path / str(status))
        data, text = saved_card(model, tmp_path / f"net-{status}")
        assert data["license"] == "unknown" and "could not be read when they were loaded" in text
    hub.failing = None
    model = load()
    assert saved_card(model, tmp_path / "net")[0]["license"] == "mit"
    fresh = QLSegForSemanticSegmentation(model.config)  # no weight of it comes from there
    data, text = saved_card(fresh, tmp_path / "fresh")
    assert data["license"] == "unknown" and "started from random weights" in text
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16)).save_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / "README.md").write_text(card_of(license="apache-2.0"))
    load_vit_weights(fresh.backbone, tmp_path / "vit")
    data, text = saved_card(plain_model(fresh, fresh.state_dict()), tmp_path / "with_vit")
    assert data["license"] == "apache-2.0" and "started from `vit`" in text
    load_vit_weights(model.backbone, tmp_path / "vit")
    data, text = saved_card(model, tmp_path / "both")
    assert data["license"] == "unknown" and "`me/net and vit`, is unknown. They have several sources." in text


@pytest.fixture
def tiny_data(tmp_path) -> Path:
    make_data(tmp_path / "data")
    return tmp_path / "data"


def test_nothing_in_a_folder_needs_a_network(tiny_data, tiny_model, tmp_path, connections):
    """Converting, saving, loading, segmenting, evaluating and fine-tuning, by every public name."""
    place, pictures = tmp_path / "net", sorted((tiny_data / "images" / "validation").iterdir())
    tiny_model.save_pretrained(place)
    WINDOW.save_pretrained(place)
    assert convert(tmp_path / "converted") == 0
    segment(*load_network(place), pictures)
    QLSegViTBackbone.from_pretrained(place)
    assert AutoConfig.from_pretrained(place).num_labels == 20
    assert QLSegImageProcessor.from_pretrained(place).window_size == 32
    pipeline("image-segmentation", model=str(place))(str(pictures[0]))
    model = AutoModelForSemanticSegmentation.from_pretrained(
        place, id2label={0: "red", 1: "green", 2: "blue"}, reuse_labels=True
    )
    samples = open_dataset(tiny_data, "validation")
    result = evaluate_samples(model, WINDOW, samples, progress=False).result
    model.train()(torch.zeros(1, 3, 32, 48), labels=torch.zeros(1, 32, 48, dtype=torch.long)).loss.backward()
    plain = plain_model(model, model.state_dict())
    assert plain.config.name_or_path == plain.name_or_path == "" and plain.source == model.source
    fresh = QLSegForSemanticSegmentation.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    for name, saved in {"resized": model, "plain": plain, "fresh": fresh, "again": plain}.items():
        saved.save_pretrained(tmp_path / name)
        card = (tmp_path / name / "README.md").read_text()
        assert "None" not in card and ("`net`" in card) == (name != "fresh")
    result["protocol"] = {"dataset": str(tiny_data), "dataset_config": None, "split": "validation"}
    result["protocol"] |= inference_protocol(WINDOW)
    add_result_to_card(tmp_path / "plain" / "README.md", result)
    assert connections == []


def test_no_script_needs_a_network(tiny_data, tiny_model, tmp_path):
    """Training and evaluating in processes that forbid connections and write them down."""
    (tmp_path / "sitecustomize.py").write_text(FORBID_CONNECTIONS)
    asked, net = tmp_path / "asked", tmp_path / "net"
    tiny_model.save_pretrained(net)
    WINDOW.save_pretrained(net)
    names = {0: "red", 1: "green", 2: "blue"}
    changes = {"model": str(net), "label_names": names, "config": {}, "max_steps": 2, "eval_steps": 1}
    recipe = write_recipe(tmp_path, tiny_data, **changes, num_workers=1, ema_decay=None)
    shared = {"path": tmp_path, "ASKED": str(asked)}
    script("train", recipe, **shared)
    best = tmp_path / "run" / "best"
    script("evaluate", best, "--data", tiny_data, "--split", "validation", "--card", **shared)
    assert not asked.exists(), asked.read_text()


def test_what_is_published_holds_no_local_path(tiny_data, tiny_model, tmp_path):
    """Neither the folder of a trained model nor what trackers get, though the recipe is full of paths."""
    home = tmp_path / "home" / "alice"
    home.mkdir(parents=True)
    tiny_data.rename(home / "scenes")
    tiny_model.save_pretrained(home / "net")
    WINDOW.save_pretrained(home / "net")
    (home / "names.txt").write_text("red\ngreen\nblue\n")
    changes = {"model": str(home / "net"), "label_names": str(home / "names.txt"), "config": {}, "max_steps": 2}
    changes |= {"output_dir": str(home / "run"), "report_to": "tensorboard", "ema_decay": None, "eval_steps": 1}
    script("train", write_recipe(home, home / "scenes", **changes, num_workers=0))
    files = [path for path in (home / "run" / "best").rglob("*") if path.is_file()]
    logs = [path for path in (home / "run" / "qlseg").rglob("*") if path.is_file()]
    assert {"README.md", "recipe.yaml", "config.json", "losses.jsonl"} <= {path.name for path in files} and logs
    for path in files + logs:
        assert b"alice" not in path.read_bytes() and b"/home" not in path.read_bytes(), path
    published = load_recipe(home / "run" / "best" / "recipe.yaml")
    found = (published.model, published.data, published.label_names, published.output_dir)
    assert found == ("net", "scenes", "names.txt", "run")
    card = ModelCard.load(home / "run" / "best" / "README.md")
    assert "data: scenes" in card.text and "trained on scenes" in card.text and not card.data.base_model


def test_paths_of_a_recipe_become_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data/here").mkdir(parents=True)
    Path("link").symlink_to("data")
    known = {"crop_size": 32, "total_batch_size": 1, "per_device_batch_size": 1, "max_steps": 1, "resume": "none"}
    names = {0: "/sky", 1: "a/b"}
    values = {"label_names": names, "dataset_config": "data/here", "report_to": "tensorboard", "train_split": "a/b"}
    values |= {"config": {"weights": [r"C:\Users\alice\x.pth", "file:///home/alice/y", "~/z/", 3, "~alice/u"]}}
    recipe = Recipe(data="me/data", model="data/here", output_dir="runs/one", **known, **values).published()
    assert (recipe.data, recipe.model, recipe.output_dir, recipe.label_names) == ("me/data", "here", "one", names)
    assert (recipe.dataset_config, recipe.train_split, recipe.resume) == ("here", "a/b", "none")
    assert recipe.config == {"weights": ["x.pth", "y", "z", 3, "u"]}
    recipe = Recipe(data="link", backbone="../gone/v.pth", output_dir="./", label_names="me/names.txt", **known)
    recipe = dataclasses.replace(recipe, resume=str(tmp_path / "run" / "step-1")).published()
    assert (recipe.data, recipe.backbone, recipe.resume) == ("link", "v.pth", "step-1")
    assert (recipe.output_dir, recipe.label_names) == (tmp_path.name, "names.txt")
    Path("recipe.yaml").write_text(recipe.to_yaml())
    assert load_recipe("recipe.yaml") == recipe


def test_the_hubs_validator_bites(hub, tiny_model):
    tiny_model.push_to_hub("me/net")
    without_name = {"task": {"type": "image-segmentation"}, "dataset": {"type": "x", "name": 1}}
    without_name["metrics"] = [{"type": "mean_iou", "value": 0.5}]
    for data, sentence in (
        ({"license": "mine"}, '"license" must be one of'),
        ({"license": "mit", "license_name": "x"}, 'belong to "license: other"'),
        ({"base_model": "/a/b c"}, '"base_model" must be ids'),
        ({"pipeline_tag": "dance"}, "is no task"),
        ({"model-index": [{"name": "a", "results": [without_name]}]}, "wants type and name"),
    ):
        with pytest.raises(ValueError, match=sentence):
            card = f"---\n{yaml.safe_dump(data)}---\n".encode()
            HfApi().upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="me/net")


def test_names_are_escaped(tmp_path):
    config = tiny_config(2)
    config.id2label = {0: NASTY, 1: "sky"}
    model = QLSegForSemanticSegmentation(config)
    model.save_pretrained(tmp_path / "net")
    text = (tmp_path / "net" / "README.md").read_text()
    page = rendered(text.split("---\n", 2)[2])
    assert "<script" not in page and "<td>&lt;script&gt;alert(1)&lt;/script&gt; a|b ``` *c* [d](e)</td>" in page
    assert page.count("<tr>") == 3 and page.count("<details>") == page.count("</details>") == 1
    assert rendered("\n".join(fenced("a\n```\n<b>", "yaml"))).count("&lt;b&gt;\n</code></pre>") == 1
    assert rendered(as_code("`a` ``b\n``")) == "<p><code>`a` ``b ``</code></p>\n"


# ------------------------------------------------------------------------------------ data sets, training, results


def push_data(data: Path) -> None:
    """The folder of `make_data` as me/data by `push_to_hub`, and as me/parquet by uploading files."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    tables = datasets.DatasetDict()
    for split, name in (("training", "train"), ("validation", "validation")):
        columns = {
            column: [
                {"bytes": path.read_bytes(), "path": path.name} for path in sorted((data / kind / split).iterdir())
            ]
            for column, kind in (("image", "images"), ("label", "annotations"))
        }
        tables[name] = datasets.Dataset.from_dict(columns, features=features)
        tables[name].to_parquet(data / "tables" / "data" / f"{name}-00000-of-00001.parquet")
    tables.push_to_hub("me/data", private=True)
    HfApi().create_repo("me/parquet", repo_type="dataset")
    HfApi().upload_folder(repo_id="me/parquet", repo_type="dataset", folder_path=data / "tables")


@pytest.fixture
def data(hub, tmp_path) -> Path:
    make_data(tmp_path / "data")
    (tmp_path / "data" / "tables" / "data").mkdir(parents=True)
    push_data(tmp_path / "data")
    return tmp_path / "data"


def test_data_sets(hub, data, tiny_model, monkeypatch):
    expected = evaluate_samples(tiny_model, WINDOW, open_dataset(data, "val"), progress=False).result
    token(monkeypatch, "")
    with pytest.raises(OSError, match="me/data"):  # first, for `datasets` falls back to its cache
        open_dataset("me/data", "val")
    token(monkeypatch, "hf_read")
    for name in ("me/data", "me/parquet"):
        for streaming in (False, True):
            samples = open_dataset(name, "val", streaming=streaming)
            found = evaluate_samples(tiny_model, WINDOW, samples, progress=False).result
            assert found["per_label"] == expected["per_label"] and found["num_pictures"] == 3
    assert "GET /datasets/me/data/resolve/" in " ".join(hub.requests)


def script(name: str, *arguments, expect: int = 0, path: Path = ROOT, **more) -> subprocess.CompletedProcess:
    """`path`: where Python looks for modules besides the package."""
    more |= {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, path))), "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "qlseg_hf", name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**more), timeout=600)
    assert done.returncode == expect, done.stderr[-2000:]
    return done


def hub_recipe(folder: Path, data: Path, **changes) -> Path:
    """Data and base model from the Hub, the result to a branch of a private repository."""
    QLSegForSemanticSegmentation(QLSegConfig(**NETWORK, num_labels=3)).push_to_hub("me/base")
    WINDOW.push_to_hub("me/base")
    names = {0: NASTY, 1: "green", 2: "blue"}
    keys = {"push_to_hub": True, "hub_model_id": "net", "hub_private": True, "hub_revision": "v1"}
    keys |= {"data": "me/data", "model": "me/base", "config": {}, "label_names": names, "ema_decay": None}
    keys |= {"max_steps": 4, "eval_steps": 2, "save_steps": 4, "num_workers": 0, "log_pictures": 0}
    return write_recipe(folder, data, **(keys | changes))


def test_training(hub, data, tmp_path, monkeypatch, capsys):
    done = script("train", hub_recipe(tmp_path, data))
    assert "/me/net/commit/" in done.stdout and hub.repos["models/me/net"].private
    files, run = hub.files("me/net", "v1"), tmp_path / "run"
    for name in ("losses.jsonl", "evaluations.jsonl", "curves.png"):
        assert files[name] == (run / name).read_bytes() == (run / "last" / name).read_bytes()
    assert files["losses.jsonl"].count(b"\n") == 4
    assert yaml.safe_load(files["recipe.yaml"])["data"] == "me/data"
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == "me/base" and card.data.datasets == "me/data" and card.data.license == "unknown"
    entry = card.data.eval_results[0]
    assert (entry.dataset_type, entry.dataset_split, entry.metric_type) == ("me/data", "validation", "mean_iou")
    window = {"size": {"shortest_edge": 32}, "window_size": 32, "window_stride": 24}
    rules = {"do_reduce_labels": False, "ignore_index": 255, "num_pictures": 3}
    assert entry.metric_args == {"scales": [1.0], "flip": False} | window | rules
    best = max(json.loads(line)["miou"] for line in files["evaluations.jsonl"].splitlines())
    assert entry.metric_value == pytest.approx(best, abs=1e-6)
    page = rendered(card.text)
    assert "<script" not in page and page.count("<pre>") == 2 and "![loss" in card.text
    assert run_snippet(files["README.md"], tmp_path, monkeypatch, capsys)


@pytest.mark.slow
def test_upload_fails_after_training_and_before(hub, data, tmp_path):
    recipe = hub_recipe(tmp_path, data)
    hub.failing = ("/models/me/net/commit/", 403)  # the upload after the last step
    done = script("train", recipe, expect=1)
    assert "qlseg train: the Hub answered 403" in done.stderr and "Traceback" not in done.stderr
    assert "the same command tries again" in done.stdout and list(hub.files("me/net", "v1")) == [".gitattributes"]
    hub.failing = None
    assert "/me/net/commit/" in script("train", recipe).stdout
    assert "model.safetensors" in hub.files("me/net", "v1")
    other = ["--hub_model_id", "you/net", "--output_dir", tmp_path / "other"]
    done = script("train", recipe, *other, expect=1)
    assert "qlseg train: the Hub answered 403: You don't have the rights" in done.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_evaluation_of_the_hubs_data_in_a_card(hub, data, tmp_path):
    model = QLSegForSemanticSegmentation(QLSegConfig(**NETWORK, num_labels=3))
    model.save_pretrained(tmp_path / "net")
    WINDOW.save_pretrained(tmp_path / "net")
    arguments = [tmp_path / "net", "--data", "me/data", "--split", "validation", "--card"]
    script("evaluate", *arguments)
    for _ in range(2):  # the second replaces the first
        script("evaluate", *arguments, "--scales", "0.5,1", "--flip")
    card = ModelCard.load(tmp_path / "net" / "README.md")
    protocols = [(e.metric_type, e.metric_args["scales"], e.metric_args["flip"]) for e in card.data.eval_results]
    metrics = ("mean_iou", "mean_accuracy", "overall_accuracy")
    assert protocols == [(m, s, f) for s, f in (([1.0], False), ([0.5, 1.0], True)) for m in metrics]
    assert len(re.findall("^- `me/data`, .*scales 0.5, 1 with flip.*: mIoU", card.text, re.MULTILINE)) == 1
    assert len(re.findall("^- `me/data`, .*scales 1,.*: mIoU", card.text, re.MULTILINE)) == 1
    assert_valid(card)
    arguments[0] = "me/none"
    assert "README.md in the model's folder, and me/none holds none" in script("evaluate", *arguments, expect=1).stderr


def test_a_result_in_any_card(tmp_path, monkeypatch):
    """In a converted card, which has measured nothing, and in one written by hand."""
    convert(tmp_path / "out")
    result = {"miou": 0.5, "macc": None, "aacc": 0.75, "miou_interval": [0.4, None], "num_pictures": 2}
    monkeypatch.chdir(tmp_path)
    Path("build/scenes").mkdir(parents=True)  # a folder, though it could be an id
    protocol = {"dataset": "build/scenes", "dataset_config": None, "split": "val|x", "label_map": {7: 1}}
    result["protocol"] = protocol | inference_protocol(WINDOW) | {"label_map": {7: 1}}
    (tmp_path / "hand").mkdir()
    (tmp_path / "hand" / "README.md").write_text("# Mine\n\nText.\n")
    for name in ("out", "hand"):
        path = tmp_path / name / "README.md"
        before = path.read_text()
        add_result_to_card(path, result)
        once = path.read_text()
        add_result_to_card(path, result)
        assert path.read_text() == once
        card = ModelCard(once)
        assert_valid(card)
        data = metadata_load(path)
        assert data["model-index"] == eval_results_to_model_index(card.data.model_name, card.data.eval_results)
        assert model_index_to_eval_results(data["model-index"])[1] == card.data.eval_results
        assert [(e.metric_type, e.metric_value) for e in card.data.eval_results] == [
            ("mean_iou", 0.5),
            ("overall_accuracy", 0.75),
        ]
        assert {e.dataset_type for e in card.data.eval_results} == {"scenes"}
        assert "## Measured\n\n- " in card.text and "mIoU 50.00 %" in card.text and "mAcc - %" in card.text
        assert "No accuracy was measured" not in card.text
        kept = [
            line for line in ModelCard(before).text.splitlines() if line != "No accuracy was measured for this card."
        ]
        assert [line for line in kept if line not in card.text.splitlines()] == []
