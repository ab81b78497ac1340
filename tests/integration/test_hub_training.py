"""Data, training and results with a Hub on the loopback, and without any network."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from cards import NASTY, WINDOW, assert_valid, convert, rendered, run_snippet, token
from huggingface_hub import HfApi, ModelCard
from programs import NETWORK, ROOT, RUN_ALL, environment, make_data, write_recipe, write_tables
from recipes import small_recipe
from transformers import AutoConfig, AutoModelForSemanticSegmentation, pipeline

from qlseg_hf import QLSegConfig, QLSegForSemanticSegmentation, QLSegImageProcessor, QLSegViTBackbone, segment
from qlseg_hf.data.datasets import open_dataset
from qlseg_hf.evaluation.evaluator import evaluate_samples
from qlseg_hf.hub.loading import load_network
from qlseg_hf.hub.results import add_result_to_card, inference_protocol
from qlseg_hf.training.build import plain_model
from qlseg_hf.training.recipe import load_recipe

FORBID_CONNECTIONS = """
import os, socket, sys
def forbid(event, arguments):
    if event == "socket.getaddrinfo" or event == "socket.connect" and arguments[0].family != socket.AF_UNIX:
        with open(os.environ["ASKED"], "a") as file:
            file.write(f"{event} {arguments}\\n")
        raise OSError("there is no network")
sys.addaudithook(forbid)
"""


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
    """Training and evaluating in a process that forbids connections, and writes them down, from its start."""
    (tmp_path / "sitecustomize.py").write_text(FORBID_CONNECTIONS)
    asked, net = tmp_path / "asked", tmp_path / "net"
    tiny_model.save_pretrained(net)
    WINDOW.save_pretrained(net)
    names = {0: "red", 1: "green", 2: "blue"}
    changes = {"model": str(net), "label_names": names, "config": {}, "max_steps": 2, "eval_steps": 1}
    recipe = write_recipe(tmp_path, tiny_data, **changes, num_workers=1, ema_decay=None)
    best = tmp_path / "run" / "best"
    env = environment(ASKED=str(asked), PYTHONPATH=f"{ROOT}:{tmp_path}", ACCELERATE_USE_CPU="true")
    evaluate = ["evaluate", best, "--data", tiny_data, "--split", "validation", "--card"]
    words = json.dumps([["train", str(recipe)], [*map(str, evaluate)]])
    subprocess.run([sys.executable, "-c", RUN_ALL, words], env=env, check=True, timeout=600)
    assert not asked.exists(), asked.read_text()


def test_what_is_published_holds_no_local_path(server, tiny_data, tiny_model, tmp_path):
    """Neither the folder of a trained model nor what trackers get, though the recipe is full of paths."""
    home = tmp_path / "home" / "alice"
    home.mkdir(parents=True)
    tiny_data.rename(home / "scenes")
    tiny_model.save_pretrained(home / "net")
    WINDOW.save_pretrained(home / "net")
    (home / "names.txt").write_text("red\ngreen\nblue\n")
    changes = {"model": str(home / "net"), "label_names": str(home / "names.txt"), "config": {}, "max_steps": 2}
    changes |= {"output_dir": str(home / "run"), "report_to": "tensorboard", "ema_decay": None, "eval_steps": 1}
    server.complete("train", write_recipe(home, home / "scenes", **changes, num_workers=0), expect=0)
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
    names = {0: "/sky", 1: "a/b"}
    values = {"label_names": names, "dataset_config": "data/here", "report_to": "tensorboard", "train_split": "a/b"}
    values |= {"config": {"weights": [r"C:\Users\alice\x.pth", "file:///home/alice/y", "~/z/", 3, "~alice/u"]}}
    values |= {"data": "me/data", "model": "data/here", "output_dir": "runs/one", "resume": "none"}
    recipe = small_recipe(**values).to_public()
    assert (recipe.data, recipe.model, recipe.output_dir, recipe.label_names) == ("me/data", "here", "one", names)
    assert (recipe.dataset_config, recipe.train_split, recipe.resume) == ("here", "a/b", "none")
    assert recipe.config == {"weights": ["x.pth", "y", "z", 3, "u"]}
    values = {"data": "link", "backbone": "../gone/v.pth", "output_dir": "./", "label_names": "me/names.txt"}
    recipe = small_recipe(**values, resume=str(tmp_path / "run" / "step-1")).to_public()
    assert (recipe.data, recipe.backbone, recipe.resume) == ("link", "v.pth", "step-1")
    assert (recipe.output_dir, recipe.label_names) == (tmp_path.name, "names.txt")
    Path("recipe.yaml").write_text(recipe.to_yaml())
    assert load_recipe("recipe.yaml") == recipe


def push_data(data: Path) -> None:
    """The folder of `make_data` as me/data by `push_to_hub`, and as me/parquet by uploading files."""
    datasets = pytest.importorskip("datasets")
    saved, tables = data.with_name("saved"), data.with_name("tables")
    write_tables(data, saved, "save_to_disk")
    datasets.load_from_disk(saved).push_to_hub("me/data", private=True)
    write_tables(data, tables / "data", "parquet")
    HfApi().create_repo("me/parquet", repo_type="dataset")
    HfApi().upload_folder(repo_id="me/parquet", repo_type="dataset", folder_path=tables)


@pytest.fixture
def data(hub, tmp_path) -> Path:
    make_data(tmp_path / "data")
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


def hub_recipe(folder: Path, data: Path, **changes) -> Path:
    """Data and base model from the Hub, the result to a branch of a private repository."""
    QLSegForSemanticSegmentation(QLSegConfig(**NETWORK, num_labels=3)).push_to_hub("me/base")
    WINDOW.push_to_hub("me/base")
    names = {0: NASTY, 1: "green", 2: "blue"}
    keys = {"push_to_hub": True, "hub_model_id": "net", "hub_private": True, "hub_revision": "v1"}
    keys |= {"data": "me/data", "model": "me/base", "config": {}, "label_names": names, "ema_decay": None}
    keys |= {"max_steps": 4, "eval_steps": 2, "save_steps": 4, "num_workers": 0, "log_pictures": 0}
    return write_recipe(folder, data, **(keys | changes))


def test_training(server, hub, data, tmp_path, monkeypatch, capsys):
    done = server.complete("train", hub_recipe(tmp_path, data), expect=0)
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
def test_upload_fails_after_training_and_before(server, hub, data, tmp_path):
    recipe = hub_recipe(tmp_path, data)
    hub.failing = ("/models/me/net/commit/", 403)  # the upload after the last step
    done = server.complete("train", recipe, expect=1)
    assert "qlseg train: the Hub answered 403" in done.stderr and "Traceback" not in done.stderr
    assert "the same command tries again" in done.stdout and list(hub.files("me/net", "v1")) == [".gitattributes"]
    hub.failing = None
    assert "/me/net/commit/" in server.complete("train", recipe, expect=0).stdout
    assert "model.safetensors" in hub.files("me/net", "v1")
    other = ["--hub_model_id", "you/net", "--output_dir", tmp_path / "other"]
    done = server.complete("train", recipe, *other, expect=1)
    assert "qlseg train: the Hub answered 403: You don't have the rights" in done.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_evaluation_of_the_hubs_data_in_a_card(server, hub, data, tmp_path):
    model = QLSegForSemanticSegmentation(QLSegConfig(**NETWORK, num_labels=3))
    model.save_pretrained(tmp_path / "net")
    WINDOW.save_pretrained(tmp_path / "net")
    arguments = [tmp_path / "net", "--data", "me/data", "--split", "validation", "--card"]
    server.complete("evaluate", *arguments, expect=0)
    for _ in range(2):  # the second replaces the first
        server.complete("evaluate", *arguments, "--scales", "0.5,1", "--flip", expect=0)
    card = ModelCard.load(tmp_path / "net" / "README.md")
    protocols = [(e.metric_type, e.metric_args["scales"], e.metric_args["flip"]) for e in card.data.eval_results]
    metrics = ("mean_iou", "mean_accuracy", "overall_accuracy")
    assert protocols == [(m, s, f) for s, f in (([1.0], False), ([0.5, 1.0], True)) for m in metrics]
    assert len(re.findall("^- `me/data`, .*scales 0.5, 1 with flip.*: mIoU", card.text, re.MULTILINE)) == 1
    assert len(re.findall("^- `me/data`, .*scales 1,.*: mIoU", card.text, re.MULTILINE)) == 1
    assert_valid(card)
    arguments[0] = "me/none"
    done = server.complete("evaluate", *arguments, expect=1)
    assert "README.md in the model's folder, and me/none holds none" in done.stderr
