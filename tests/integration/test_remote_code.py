"""Saved folders carry their code: the same numbers where `qlseg_hf` is not installed, and unused where it is."""

import json
import os
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from networks import tiny_config
from packaging.requirements import Requirement
from packaging.version import Version
from safetensors.torch import load_file
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
from transformers.dynamic_module_utils import get_relative_imports

import qlseg_hf
from qlseg_hf import load_picture, segment

SCRIPT = Path(__file__).parents[1] / "helpers" / "without_package.py"
PACKAGE = Path(qlseg_hf.__file__).parent / "model"
HUB_ID, HUB_BACKBONE = "me/a-qlseg", "me/a-backbone"
PICTURES = ["large", "wide", "tall"]
NEEDED = ["torch", "transformers", "pillow"]
if Version(metadata.version("transformers")) < Version("5.18"):
    NEEDED.append("torchvision")  # AutoImageProcessor asks for it, whatever the processor

pytestmark = pytest.mark.parametrize("stored", ["a"], indirect=True)


def link_distributions(names: list[str], site: Path) -> None:
    """Links to the installed files of `names` and of all that they require, and of nothing else."""
    waiting, done = list(names), set()
    while waiting:
        name = waiting.pop()
        if name in done:
            continue
        done.add(name)
        found = metadata.distribution(name)
        for top in {path.parts[0] for path in found.files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(found.locate_file(top)).resolve())
        wanted = [Requirement(text) for text in found.requires or []]
        waiting += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]


def run_without_package(python: Path, stored, place: Path) -> Path:
    """The script in that environment, with the tests' Hub; returns the folder with its findings."""
    stored.model().backbone.save_pretrained(place / "backbone")
    api = HfApi(token="hf_me")
    for repo_id, folder in ((HUB_ID, stored.folder), (HUB_BACKBONE, place / "backbone")):
        api.create_repo(repo_id, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder)
    (place / "out").mkdir()
    pictures = [str(stored.picture(name)) for name in PICTURES]
    threads = str(torch.get_num_threads())
    done = subprocess.run(
        [python, "-I", SCRIPT, stored.folder, HUB_ID, HUB_BACKBONE, place / "out", threads, *pictures],
        env=os.environ | {"HF_HOME": str(place / "home")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return place / "out"


@pytest.fixture(scope="module")
def out(stored, tmp_path_factory) -> Path:
    """Findings in an environment that shares the installed torch and transformers, and has little else."""
    place = tmp_path_factory.mktemp("without")
    venv.create(place / "venv", symlinks=True)
    link_distributions(NEEDED, next((place / "venv").glob("lib/*/site-packages")))
    return run_without_package(place / "venv" / "bin" / "python", stored, place)


@torch.no_grad()
def check_numbers(stored, out: Path) -> None:
    """What was found equals the package's, bit for bit."""
    found = load_file(out / "tensors.safetensors")
    model, processor = stored.model(), stored.processor
    pictures = [stored.picture(name) for name in PICTURES]
    features = processor(pictures[0], return_tensors="pt")
    outputs = model(**features)
    labels = torch.arange(4).repeat(len(features["pixel_values"]), 4, 1)
    maps = segment(model, processor, pictures)
    expected = {
        "logits": outputs.logits,
        "masks": outputs.masks_queries_logits,
        "loss": model(features["pixel_values"], labels=labels).loss,
        "scales": segment(model, processor, pictures[0], scales=(1, 1.5), flip=True)[0],
        "processor": processor.post_process_semantic_segmentation(outputs, [load_picture(pictures[0]).shape[:2]])[0],
        "kept": model.class_head.weight[1],
    }
    expected |= {way: maps[0] for way in ("folder", "no task", "hub", "object")}
    expected |= {f"batch {number}": label_map for number, label_map in enumerate(maps)}
    features = model.backbone(torch.linspace(-1, 1, 3 * 40 * 56).view(1, 3, 40, 56)).feature_maps[-1]
    expected |= {f"backbone from {way}": features for way in ("folder", "hub", "model")}
    assert set(found) == set(expected) and len(maps[0].unique()) > 3
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_numbers_without_the_package(stored, out):
    facts = json.loads((out / "facts.json").read_text())
    assert not facts["package"] and facts["optional"] == NEEDED[3:]
    check_numbers(stored, out)
    assert facts["masked"] == [False] * stored.model().config.backbone_config.num_hidden_layers
    stock = facts["classes"].pop("pipeline from object")
    assert stock == "<class 'transformers.pipelines.image_segmentation.ImageSegmentationPipeline'>"
    for what, name in facts["classes"].items():
        assert name.startswith("<class 'transformers_modules.") and "QLSeg" in name, what


def test_untrusted_code_is_not_run(stored, out):
    facts = json.loads((out / "facts.json").read_text())
    assert len(facts["refusals"]) == 8 and not facts["executed"]
    for way, message in facts["refusals"].items():
        assert "trust_remote_code=True" in message and "custom code" in message, way


def check_code(folder: Path) -> None:
    """Exactly the modules of `model/`, as in the package, and nothing that lies outside is imported."""
    modules = {path.stem: path for path in folder.glob("*.py")}
    assert set(modules) == {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    for name, path in modules.items():
        assert path.read_bytes() == (PACKAGE / path.name).read_bytes()
        assert set(get_relative_imports(path)) <= set(modules), name


def check_json(folder: Path) -> None:
    """The files name code beside them, and no place on this machine or on the Hub."""
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_qlseg.QLSegConfig",
        "AutoModelForSemanticSegmentation": "modeling_qlseg.QLSegForSemanticSegmentation",
    }
    assert config["custom_pipelines"]["image-segmentation"]["impl"] == "segmentation.QLSegImageSegmentationPipeline"
    assert config["qlseg_hf_version"] == metadata.version("qlseg-hf") == qlseg_hf.__version__
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["auto_map"] == {"AutoImageProcessor": "image_processing_qlseg.QLSegImageProcessor"}
    for text in (json.dumps(config), json.dumps(processor)):
        assert "--" not in text and str(folder.parent) not in text and HUB_ID not in text


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_folder_is_complete(stored):
    check_code(stored.folder)
    check_json(stored.folder)
    assert "trust_remote_code=True" in (stored.folder / "README.md").read_text()


def test_saved_again_without_the_package(stored, out, tmp_path):
    """Loaded from a folder or from the Hub, and saved: what the package itself would have saved, but for the card."""
    for name in ("again", "from hub"):
        expected = tmp_path / name
        stored.model().save_pretrained(expected)
        stored.processor.save_pretrained(expected)
        (expected / "README.md").unlink()  # cards are the package's
        assert contents(out / name) == contents(expected)
        check_json(out / name)
    check_code(out / "model alone")  # also what `pipeline` and the processor need
    check_code(out / "backbone")
    assert json.loads((out / "backbone" / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_qlseg.QLSegViTConfig",
        "AutoBackbone": "modeling_qlseg.QLSegViTBackbone",
    }


@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": True}, {"trust_remote_code": False}])
def test_the_package_wins_over_the_folder(stored, tmp_path, monkeypatch, trust):
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail(question))  # transformers asks on a terminal
    folder = tmp_path / "copy"
    shutil.copytree(stored.folder, folder)
    for path in folder.glob("*.py"):
        path.write_text("raise RuntimeError('the code of the folder was run')")
    config = AutoConfig.from_pretrained(folder, **trust)
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, **trust)
    processor = AutoImageProcessor.from_pretrained(folder, **trust)
    pipe = pipeline("image-segmentation", model=str(folder), **trust)
    for thing in (config, model, model.config, model.backbone, processor, pipe, pipe.model, pipe.image_processor):
        assert type(thing).__module__.startswith("qlseg_hf."), type(thing)
    again = AutoModelForSemanticSegmentation.from_config(config, **trust)
    assert type(again) is type(model)
    pipe.save_pretrained(tmp_path / "saved")  # brings the package's code, not the folder's
    check_code(tmp_path / "saved")
    check_json(tmp_path / "saved")


def test_backbone_of_a_saved_folder_in_a_new_network(stored, tmp_path):
    """Its configuration says where its code is; the network that contains it does not look there."""
    stored.model().backbone.save_pretrained(tmp_path)
    config = tiny_config(backbone_config=AutoConfig.from_pretrained(tmp_path))
    assert "AutoBackbone" in config.backbone_config.auto_map
    assert type(qlseg_hf.QLSegForSemanticSegmentation(config).backbone) is qlseg_hf.QLSegViTBackbone


@pytest.mark.slow
def test_in_a_fresh_environment(stored, tmp_path):
    """What a user installs: torch, transformers and pillow from an index (`NEEDED`), and nothing of ours."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    wanted = [f"{name}=={Version(metadata.version(name)).public}" for name in NEEDED]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
    check_numbers(stored, run_without_package(python, stored, tmp_path))
