"""What cards say: where weights came from, under which licence, what was measured, and no more."""

import copy
import os
import pickle
from pathlib import Path

import pytest
import torch
import yaml
from cards import WINDOW, assert_valid, convert, load, rendered, run_snippet, token
from hub_server import card_errors
from huggingface_hub import HfApi, ModelCard, metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from networks import tiny_config
from transformers import AutoModelForSemanticSegmentation, Dinov2Config, ViTConfig, ViTModel

from qlseg_hf import QLSegForSemanticSegmentation, QLSegImageProcessor, load_vit_weights
from qlseg_hf.hub.results import add_result_to_card, inference_protocol
from qlseg_hf.training.build import plain_model
from qlseg_hf.utils.text import as_code, fence_code


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
    again = QLSegForSemanticSegmentation.from_pretrained(tmp_path / "again")
    again.save_pretrained(tmp_path / "again")
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


def test_cards_and_recipes_of_another_model_are_not_kept(tmp_path, caplog):
    """They gave its licence, its mIoU and its share of held-out images to the weights that took its place."""
    convert(tmp_path / "net")
    before = (tmp_path / "net" / "README.md").read_text()
    for name in ("training.json", "recipe.yaml", "losses.jsonl", "labels.txt"):
        (tmp_path / "net" / name).write_text("val_fraction: 0.5")
    fresh = QLSegForSemanticSegmentation(tiny_config())
    fresh.save_pretrained(tmp_path / "net")
    assert metadata_load(tmp_path / "net" / "README.md")["license"] == "unknown"
    assert "README.md is of the model that was in this folder; it is kept as README.before.md" in caplog.text
    assert (tmp_path / "net" / "README.before.md").read_text() == before
    names = {path.name for path in (tmp_path / "net").iterdir()}
    assert "labels.txt" in names and not names & {"training.json", "recipe.yaml", "losses.jsonl"}
    (tmp_path / "net" / "recipe.yaml").write_text("mine")  # without training.json it is not of `qlseg train`
    QLSegForSemanticSegmentation(tiny_config()).save_pretrained(tmp_path / "net")
    assert (tmp_path / "net" / "recipe.yaml").read_text() == "mine"
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "README.md").write_text("mine")
    fresh.save_pretrained(tmp_path / "prepared")
    assert (tmp_path / "prepared" / "README.md").read_text() == "mine"


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


def test_code_is_escaped():
    """Names are in test_security_names.py."""
    assert rendered("\n".join(fence_code("a\n```\n<b>", "yaml"))).count("&lt;b&gt;\n</code></pre>") == 1
    assert rendered(as_code("`a` ``b\n``")) == "<p><code>`a` ``b ``</code></p>\n"


def test_a_result_in_any_card(tmp_path, monkeypatch):
    """In a converted card, which has measured nothing, and in one written by hand."""
    convert(tmp_path / "out")
    result = {"miou": 0.5, "macc": None, "aacc": 0.75, "miou_interval": [0.4, None], "num_pictures": 2}
    monkeypatch.chdir(tmp_path)
    Path("build/scenes").mkdir(parents=True)  # a folder, though it could be an id
    protocol = {"dataset": "build/scenes", "dataset_config": None, "split": "val|x", "label_mapping": {7: 1}}
    result["protocol"] = protocol | inference_protocol(WINDOW) | {"label_mapping": {7: 1}}
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
