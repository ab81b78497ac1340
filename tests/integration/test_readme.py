"""README and docs/ are true: their Python runs, in their order, and their commands, options, recipes, links exist.

In README a block marked bash is run, one marked text is only looked at.
"""

import re
import shlex
import shutil
from importlib import import_module
from importlib.util import find_spec

import click
import numpy as np
import pytest
import versions
from conftest import FIXTURES, ROOT
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from qlseg_hf.data.scenes import LABELS, make_scenes
from qlseg_hf.releases import RELEASES

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
WITH_PYTHON = [
    README,
    *(PAGES[name] for name in ("inference.md", "training.md", "evaluation.md", "bands.md", "layouts.md")),
]  # in order
ALL = {"README.md": README, "CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")} | PAGES


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def command_lines() -> list[tuple[str, list[str]]]:
    """(page, words) of every line in a block that is a command of ours."""
    programs = ("qlseg ", "accelerate ", "torchrun ")
    found = [
        (page, shlex.split(line, comments=True))
        for page, text in ALL.items()
        for block in blocks("(?:bash|text)", text)
        for line in block.splitlines()
        if line.startswith(programs)
    ]
    assert len(found) > 30
    return found


def of_qlseg(words: list[str]) -> list[str]:
    """`accelerate launch -m qlseg_hf.cli.train RECIPE` as `train RECIPE`."""
    if words[0] == "qlseg":
        return words[1:]
    module = next(word for word in words if word.startswith("qlseg_hf.cli."))
    assert find_spec(module), module
    return [module.rsplit(".", 1)[1], *words[words.index(module) + 1 :]]


@pytest.fixture(scope="module")
def made(server, tmp_path_factory):
    """What the snippets name: a checkpoint, its folder, pictures, a label map and an ImageNet ViT."""
    place, checkpoint = tmp_path_factory.mktemp("made"), FIXTURES / "a" / "checkpoint.pth"
    shutil.copy(checkpoint, place / "qlseg_vit_b_ade20k.pth")
    server.complete(ROOT / "convert_checkpoints.py", checkpoint, place / "qlseg-vit-b-ade20k", expect=0)
    Image.open(FIXTURES / "a" / "wide.png").convert("RGB").save(place / "picture.jpg")
    shutil.copy(FIXTURES / "a" / "tall.png", place / "other.png")
    height, width = np.asarray(Image.open(place / "picture.jpg")).shape[:2]
    Image.fromarray(np.arange(height * width, dtype=np.uint8).reshape(height, width) % 20).save(place / "labels.png")
    if find_spec("tifffile"):
        tile = np.random.default_rng(0).integers(0, 10000, (24, 32, 5), dtype=np.uint16)
        for folder in ("images", "annotations"):
            (place / "tiles" / folder / "training").mkdir(parents=True)
        for file in (place / "five_bands.tif", place / "tiles" / "images" / "training" / "x.tif"):
            import_module("tifffile").imwrite(file, tile, photometric="minisblack", planarconfig="contig")
        shutil.copy(place / "labels.png", place / "tiles" / "annotations" / "training" / "x.png")
    make_own_data(place / "my_data")
    vit = place / "timm" / "vit_large_patch16_384.augreg_in21k_ft_in1k"
    vit.mkdir(parents=True)
    save_file(load_file(FIXTURES / "imagenet_vit" / "timm_vit.safetensors"), vit / "model.safetensors")
    small = {"hidden_size": 32, "num_hidden_layers": 24, "num_attention_heads": 2, "intermediate_size": 32}
    DINOv3ViTModel(DINOv3ViTConfig(**small)).save_pretrained(place / "facebook" / "dinov3-vitl16-pretrain-lvd1689m")
    return place


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of it to work in; and a small release under the name of a large one, as the small ViTs are."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    small = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}
    monkeypatch.setitem(RELEASES["vit-l-ade20k"], "backbone", small | {"image_size": 96, "out_indices": [2, 3, 4]})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_own_data(folder):
    """The README's tree, with 12 small drawn scenes and without splits."""
    make_scenes(folder.with_name("drawn"), {"training": 12, "validation": 1}, size=48, seed=0)
    for source, target in (("images", "images"), ("annotations", "masks")):
        shutil.copytree(folder.with_name("drawn") / source / "training", folder / target)
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in LABELS))


def test_python_snippets(place):
    for name in ("peft", "cv2", "datasets", "tifffile"):
        pytest.importorskip(name)
    namespace, ran = {}, 0
    for text in WITH_PYTHON:
        for block in blocks("python", text):
            exec(compile(block, "README.md and docs", "exec"), namespace)
            ran += 1
    assert ran == sum(len(blocks("python", text)) for text in ALL.values())
    assert namespace["label_maps"][0].shape == namespace["maps"][0].shape
    assert namespace["model"].config.num_labels == 20


def test_commands_of_the_readme(server, place):
    shutil.rmtree(place / "qlseg-vit-b-ade20k")
    lines = [line for block in blocks("bash", README) for line in block.splitlines() if line.startswith("qlseg ")]
    assert len(lines) == 2
    for line in lines:
        server.complete(*line.split()[1:], folder=place, expect=0)
    assert (place / "out" / "overlay" / "picture.png").is_file()


def test_five_commands_for_own_data(server, place):
    """As written, but for an encoder that needs no network, two steps, and the upload."""
    for name in ("accelerate", "datasets", "evaluate", "matplotlib", "yaml"):
        pytest.importorskip(name)
    section = README.partition("## Your own data in five commands\n")[2].partition("\n## ")[0]
    lines = blocks("text", section)[1].splitlines()
    assert len(lines) == 5 and lines.pop().startswith("hf upload ")
    shutil.copy(place / "my_data" / "images" / "scene_training_000000.jpg", place / "new.jpg")
    small = f"--backbone {FIXTURES / 'imagenet_vit' / 'timm_vit.safetensors'} --max_steps 2"
    assert sum("--backbone small" in line for line in lines) == 1
    for line in lines:
        server.complete(*shlex.split(line.replace("--backbone small", small))[1:], folder=place, expect=0)
    for file in ("look/report.html", "runs/my/report.html", "report/report.html", "miou.json", "out/overlay/new.png"):
        assert (place / file).is_file(), file
    assert "label_names: [sky, grass, road, water, building, tree, ball]" in (place / "look/data.yaml").read_text()


def test_commands_and_options_exist():
    from qlseg_hf.cli.main import COMMANDS, group

    commands = {name: group.get_command(None, name) for name in COMMANDS}
    texts = {name: command.get_help(click.Context(command, info_name=name)) for name, command in commands.items()}
    for page, words in command_lines():
        name, *arguments = of_qlseg(words)
        assert name in texts, (page, words)
        for option in re.findall(r"--([\w-]+)", " ".join(arguments)):
            assert re.search(rf"--{option.replace('-', '_')}\b", texts[name]), (page, words, option)


def test_recipes_exist():
    named = {of_qlseg(words)[1] for _, words in command_lines() if of_qlseg(words)[0] == "train"}
    table = PAGES["training.md"].partition("\n## Recipes\n")[2].partition("\n#")[0]
    named |= set(re.findall(r"^\| `([\w-]+)` \| .* \| .*\b(?:measured|paper's|run)", table, flags=re.M))
    named -= {"RECIPE", "--data"}  # without a recipe it begins with an option
    assert len(named) > 8
    for name in named:
        assert (ROOT / "qlseg_hf" / "recipes" / f"{name}.yaml").is_file() or (ROOT / name).is_file(), name


def test_links_of_the_readme():
    """MkDocs checks those of docs/."""
    links = [link for text in (README, ALL["CONTRIBUTING.md"]) for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    links = [link.partition("#") for link in links if "://" not in link]
    assert len(links) > 20
    for path, _, anchor in links:
        text = (ROOT / path).read_bytes()
        if anchor:
            headings = re.findall(r"^#+ (.+)$", text.decode(), flags=re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]


def test_size_of_the_readme():
    assert len(README.encode()) <= 10_000


def test_extras_of_the_readme():
    told = set(re.findall(r"\.\[(\w+)\]", README))
    assert told == set(versions.requirements()[1]) - {"docs", "test"}


def test_make_targets():
    makefile = (ROOT / "Makefile").read_text()
    targets = {target for text in ALL.values() for target in re.findall(r"(?:`|^)make ([\w-]+)", text, re.MULTILINE)}
    assert {"demo", "test", "test-all", "docs"} <= targets
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
