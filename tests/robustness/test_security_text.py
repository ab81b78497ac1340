"""Configuration texts, other meta and recipes of attackers: parsed, never run, without many bytes."""

import ast
from pathlib import Path

import pytest
import torch
from attacks import TRAP, laughs, refused
from recipes import small_recipe

from qlseg_hf.cli.errors import exit_status
from qlseg_hf.convert.config_text import parse_configuration
from qlseg_hf.convert.convert import convert
from qlseg_hf.convert.reader import ConversionError
from qlseg_hf.training.recipe import Recipe, load_recipe

TEXTS = {
    "import": f"__import__('os').system('touch {TRAP}')",
    "call in a value": f"a = __import__('os').system('touch {TRAP}')",
    "dict with an expansion": "a = dict(**b)",
    "f-string": "a = f'{exec(1)}'",
    "comprehension": "a = [x for x in ().__class__.__mro__]",
    "import statement": "import os",
    "no name": "a.b = 1",
    "class": "class A: pass",
    "attribute": "a = os.environ",
    "set": "a = {1, 2}",
    "power": "a = 9**9**9",
    "repetition": "a = 'x' * 10**12",
    "unary minus a hundred thousand times": "a = " + "-" * 100000 + "1",
    "parentheses": "a = " + "(" * 5000 + ")" * 5000,
    "sum": "a = " + "1+" * 200000 + "1",
    "calls": "a = " + "dict(a=" * 500 + "1" + ")" * 500,
    "long integer": "a = " + "9" * 5000,
    "long text": "a = '" + "x" * (2 << 20) + "'",
    "null byte": "a = 1\0",
    "surrogate": "a = '\ud800'",
    "key twice unhashable": "a = {[]: 1}",
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConversionError, match="configuration text") as refusal:
        parse_configuration(TEXTS[name])
    assert len(str(refusal.value)) < 400 and not Path(TRAP).exists()


WRONG_VALUES = ["None", "'x'", "-1", "0", "1e999", "[]", "{}", "[[1]]", "dict(type='x')", "True", "0x" + "f" * 400]


@pytest.mark.slow
@pytest.mark.parametrize("value", WRONG_VALUES)
def test_wrong_values_in_the_text(checkpoint, value):
    """Each value of the text in turn becomes another: a sentence, or a conversion; never another exception."""
    state_dict, meta = checkpoint
    tree = ast.parse(meta["config"])
    places = [node for node in ast.walk(tree) if isinstance(node, (ast.Constant, ast.List, ast.Tuple))]
    keep, tried, refused = ast.parse(value).body[0].value, 0, 0
    parents = {id(child): parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    for node in places[:: max(1, len(places) // 30)]:
        parent = parents[id(node)]
        for name, field in list(ast.iter_fields(parent)):
            if field is node:
                setattr(parent, name, keep)
            elif isinstance(field, list) and node in field:
                setattr(parent, name, [keep if x is node else x for x in field])
            else:
                continue
            try:
                convert(state_dict, meta | {"config": ast.unparse(tree)})
            except ValueError:
                refused += 1
            setattr(parent, name, field)
            tried += 1
    assert tried > 20 and 0 < refused


@pytest.mark.parametrize(
    "meta",
    [
        {"CLASSES": laughs()},
        {"CLASSES": [laughs()] * 7},
        {"CLASSES": "sevenxx"},
        {"CLASSES": 7},
        {"CLASSES": {"a": 1}},
        {"CLASSES": [f"{i}" for i in range(7)], "PALETTE": laughs(6)},
        {"CLASSES": [f"{i}" for i in range(7)], "PALETTE": [["a"] * 3] * 7},
        {"CLASSES": [f"{i}" for i in range(7)], "PALETTE": [[10**30] * 3] * 7},
        {"CLASSES": [f"{i}" for i in range(7)], "PALETTE": 5},
        {"config": ["a"]},
        {"config": ""},
        [],
    ],
)
def test_other_meta(checkpoint, meta, tmp_path, capsys):
    state_dict, known = checkpoint
    meta = {"config": known["config"]} | meta if isinstance(meta, dict) else meta
    torch.save({"state_dict": state_dict, "meta": meta}, tmp_path / "x.pth")
    refused(capsys, tmp_path / "x.pth", tmp_path / "out")


RECIPE = "dataset: d\ncrop_size: 8\ntotal_batch_size: 1\nper_device_batch_size: 1\nmax_steps: 1\noutput_dir: o\n"
BOMB = "a0: &a0 [ha]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
YAMLS = {
    "os.system": f"model: !!python/object/apply:os.system ['touch {TRAP}']",
    "name": "model: !!python/name:os.system",
    "tuple": "resize_box: !!python/tuple [1, 2]",
    "own tag": "model: !evil x",
    "billion laughs": BOMB,
    "laughs in a known key": "scale_range: &a [1, 2]\nresize_box: *a",
    "an alias of itself": "config: &a {x: *a}",
    "a key twice": "seed: 1\nseed: 2",
    "an inner key twice": "config: {dropout: 0.1, dropout: 0.2}",
    "unknown key": "trust_remote_code: true",
    "key that is a list": "? [a]\n: 1",
    "two documents": "seed: 1\n---\nseed: 2",
    "deep": "config: " + "[" * 5000 + "]" * 5000,
    "long integer": "seed: " + "9" * 5000,
    "huge": "label_names: " + "x" * (1 << 20),
    "binary": "model: !!binary aGVsbG8=",
    "date": "model: 2024-01-01",
    "list for a number": "seed: [1]",
    "control characters": "model: \x07",
}


@pytest.mark.parametrize("name", YAMLS)
def test_recipes(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(RECIPE + YAMLS[name] + "\n")
    assert exit_status("train.py", load_recipe, "x.yaml") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "x.yaml" in lines[0] and len(lines[0]) < 2000, lines
    if name not in ("huge", "deep", "two documents", "billion laughs", "unknown key"):
        with pytest.raises(ValueError):
            load_recipe_override(tmp_path, YAMLS[name])
    assert not Path(TRAP).exists()


def load_recipe_override(folder: Path, text: str) -> Recipe:
    """The same on the command line, where values are YAML too."""
    (folder / "plain.yaml").write_text(RECIPE)
    key, _, value = text.partition(": ")
    return load_recipe(folder / "plain.yaml", [f"--{key}", value])


def test_recipes_are_written_as_they_are_read(tmp_path):
    """A list that two keys share would be written as an alias, and then refused."""
    shared = [0.5, 2.0]
    recipe = small_recipe(scale_range=shared, config={"a": shared, "b": shared})
    (tmp_path / "x.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "x.yaml") == recipe
