"""Damaged files: refused in one sentence, or read as what they were."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES, ROOT
from writers import sentences_of, tell

from qlseg_hf.cli.errors import exit_status
from qlseg_hf.cli.main import run
from qlseg_hf.data.label_names import read_label_file
from qlseg_hf.evaluation.evaluator import Progress
from qlseg_hf.evaluation.metrics import StreamingScores
from qlseg_hf.hub.loading import load_network
from qlseg_hf.training.recipe import load_recipe

pytestmark = pytest.mark.faults
one_network = pytest.mark.parametrize("stored", ["b"], indirect=True)
CHECKPOINT = FIXTURES / "b" / "checkpoint.pth"


class Damage:
    """Copies of a file, cut or with a flipped bit, each at a random place of its first `length` bytes."""

    def __init__(self, path: Path, length: int | None = None):
        self.path, self.content = path, path.read_bytes()
        self.length = length or len(self.content)

    def __call__(self, number: int):
        generator = random.Random(0)
        for i in range(number):
            place = generator.randrange(self.length)
            data = bytearray(self.content)
            data[place] ^= 1 << generator.randrange(8)
            self.path.write_bytes(self.content[:place] if i % 4 == 0 else bytes(data))
            yield f"{'cut' if i % 4 == 0 else 'flipped'} at {place}"
        self.path.write_bytes(self.content)


def header_length(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def sentences(capsys, name: str, function) -> str | None:
    """The sentence of a function that failed as our commands fail; None if it did not."""
    status = exit_status("tool", function)
    lines = sentences_of(capsys.readouterr().err)
    if status == 0:
        return None
    assert len(lines) == 1 and lines[0].startswith("tool: ") and name in lines[0], lines
    return lines[0]


@pytest.mark.parametrize("number", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_damaged_checkpoint(tmp_path, capsys, number):
    """Refused, or converted to exactly the same weights (what was hit has no meaning)."""
    path, folder = tmp_path / "x.pth", tmp_path / "out"
    shutil.copy(CHECKPOINT, path)
    assert run(["convert", path, folder]) == 0
    weights = (folder / "model.safetensors").read_bytes()
    tried = refused = 0
    damage = Damage(path)
    tail = len(damage.content) - 30000  # half of the places in the archive's directory, which has no checksum
    for i, what in enumerate(damage(number)):
        if i % 2:
            data = bytearray(damage.content)
            data[tail + random.Random(i).randrange(30000)] ^= 1 << i % 8
            path.write_bytes(data)
        shutil.rmtree(folder, ignore_errors=True)
        capsys.readouterr()
        status = run(["convert", path, folder])
        lines = sentences_of(capsys.readouterr().err)
        tried += 1
        if status == 0:
            assert (folder / "model.safetensors").read_bytes() == weights, what
            continue
        assert status == 1 and len(lines) == 1 and "x.pth" in lines[0] and not folder.exists(), (what, lines)
        refused += 1
    assert refused > number * 0.6
    tell(f"damaged checkpoint ({refused} refused, the others gave the same weights)", tried, tried)


@one_network
@pytest.mark.parametrize("number", [6, pytest.param(120, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_damaged_model_folder(stored, tmp_path, capsys, name, number):
    """Cuts and flips in the head of the weights, and anywhere in the JSON files."""
    folder = shutil.copytree(stored.folder, tmp_path / "net")
    path = folder / name
    is_json = name.endswith("json")
    tried = refused = 0
    expected = {key: tuple(x.shape) for key, x in stored.model().state_dict().items()}
    for what in Damage(path, None if is_json else header_length(path))(number):
        tried += 1
        try:
            found = load_network(folder)[0]
        except (OSError, ValueError) as error:
            assert str(folder) in str(error) and (path.suffix[1:] in str(error) or "weights of" in str(error)), error
            refused += 1
            continue
        # what loads is valid: a value of the right kind, every weight from the file
        shapes = {key: tuple(x.shape) for key, x in found.state_dict().items()}
        assert shapes == expected and (is_json or what.startswith("flipped")), what
        if not is_json:
            assert all(torch.equal(x, y) for x, y in zip(found.parameters(), stored.model().parameters())), what
    assert refused >= number * 0.4
    tell(f"damaged {name} ({refused} refused, the others are valid)", tried, tried)


@one_network
def test_weights_that_are_missing_or_not_finite(stored, tmp_path):
    """`from_pretrained` draws what is missing at random, and warns; our commands refuse."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(stored.folder, tmp_path / "net")
    weights = load_file(folder / "model.safetensors")
    bias = weights["class_head.bias"]
    for change, sentence in (
        ({"class_head.bias": None}, r"1 missing \(class_head.bias\)"),
        ({"extra": bias.clone()}, r"1 unexpected \(extra\)"),
        ({"class_head.bias": bias[1:]}, "1 mismatched"),
        ({"class_head.bias": bias * float("nan")}, r"1 not finite \(class_head.bias\)"),
    ):
        changed = {key: x for key, x in (weights | change).items() if x is not None}
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"weights of .*net do not fit its config.json: {sentence}"):
            load_network(folder)


def write_state(path: Path) -> dict[str, str]:
    counted, protocol = Progress(StreamingScores(7, 255), 3), {"model": "x", "flip": "False"}
    counted.add(torch.arange(400).view(20, 20) % 7, torch.arange(400).view(20, 20) % 5, 0, "a.png")
    counted.write(path, protocol)
    return protocol


@pytest.mark.parametrize("kind", ["state", "recipe", "labels"])
def test_damaged_small_files(tmp_path, capsys, kind):
    path = tmp_path / {"state": "x.state", "recipe": "x.yaml", "labels": "x.json"}[kind]
    if kind == "state":
        protocol = write_state(path)
        whole = Progress(StreamingScores(7, 255), 3)
        whole.read(path, protocol)
    elif kind == "recipe":
        shutil.copy(next((ROOT / "qlseg_hf" / "recipes").glob("*.yaml")), path)
    else:
        path.write_text(json.dumps([f"n{i}" for i in range(7)]))

    def read():
        if kind == "state":
            found = Progress(StreamingScores(7, 255), 3)
            found.read(path, protocol)
            # equal to what was written, or it should have been refused: a wrong bit here is a wrong score
            assert found.next_index == whole.next_index and found.worst == whole.worst
            assert all(torch.equal(x, whole.scores.totals[key]) for key, x in found.scores.totals.items())
        else:
            load_recipe(path) if kind == "recipe" else read_label_file(path)

    outcomes = [sentences(capsys, path.name, read) for _ in Damage(path)(400)]
    refused = sum(outcome is not None for outcome in outcomes)
    assert refused > {"state": 390, "recipe": 100, "labels": 200}[kind]
    tell(f"damaged {kind} ({refused} refused, the others are valid)", len(outcomes), len(outcomes))
