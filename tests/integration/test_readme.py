"""The README's snippets run, in its order, in a folder that holds what they name."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import FIXTURES, ROOT
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from qlseg_hf.model.configuration_qlseg import RELEASES

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    assert found
    return found


@pytest.fixture
def place(tmp_path, monkeypatch):
    """What the snippets name: a checkpoint, its folder, pictures, a label map and an ImageNet ViT."""
    checkpoint = FIXTURES / "a" / "checkpoint.pth"
    shutil.copy(checkpoint, tmp_path / "qlseg_vit_b_ade20k.pth")
    subprocess.run(
        [sys.executable, ROOT / "convert_checkpoints.py", checkpoint, tmp_path / "qlseg-vit-b-ade20k"],
        check=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    Image.open(FIXTURES / "a" / "wide.png").convert("RGB").save(tmp_path / "picture.jpg")
    shutil.copy(FIXTURES / "a" / "tall.png", tmp_path / "other.png")
    height, width = np.asarray(Image.open(tmp_path / "picture.jpg")).shape[:2]
    Image.fromarray(np.arange(height * width, dtype=np.uint8).reshape(height, width) % 20).save(
        tmp_path / "labels.png"
    )
    # a small release and a small ViT under the names of the large ones
    small = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
    monkeypatch.setitem(RELEASES["vit-l-ade20k"], "backbone", small | {"image_size": 96, "out_indices": [2, 3, 4]})
    vit = tmp_path / "timm" / "vit_large_patch16_384.augreg_in21k_ft_in1k"
    vit.mkdir(parents=True)
    save_file(load_file(FIXTURES / "imagenet_vit" / "timm_vit.safetensors"), vit / "model.safetensors")
    small = {"hidden_size": 32, "num_hidden_layers": 24, "num_attention_heads": 2, "intermediate_size": 32}
    DINOv3ViTModel(DINOv3ViTConfig(**small)).save_pretrained(tmp_path / "facebook" / "dinov3-vitl16-pretrain-lvd1689m")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_snippets(place):
    for name in ("peft", "cv2", "datasets"):
        pytest.importorskip(name)
    namespace = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["label_maps"][0].shape == namespace["maps"][0].shape
    assert namespace["model"].config.num_labels == 20


def test_commands(place):
    pytest.importorskip("cv2")
    shutil.rmtree(place / "qlseg-vit-b-ade20k")
    ran = 0
    for block in blocks("bash"):
        for line in block.splitlines():
            if line.startswith("python "):
                script, *arguments = line.split()[1:]
                command = [sys.executable, ROOT / script, *arguments]
                done = subprocess.run(
                    command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
                )
                assert done.returncode == 0, done.stderr
                ran += 1
    assert ran == 3 and (place / "out" / "picture_overlay.png").is_file()


def test_make_targets():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"(?:`|^)make ([\w-]+)", README, flags=re.MULTILINE)
    assert {"demo", "test", "test-all"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_results_table_is_the_papers():
    for name, entry in RELEASES.items():
        row = next(line for line in README.splitlines() if line.startswith(f"| `{name}` "))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[-2:] == [f"{value:.1f}" for value in entry["miou"]]


def test_public_names_have_docstrings():
    import qlseg_hf

    for name in qlseg_hf.__all__:
        value = getattr(qlseg_hf, name)
        assert not callable(value) or (value.__doc__ or "").strip(), name
