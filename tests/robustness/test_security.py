"""Nothing that a stranger wrote is ever executed, and none of it takes memory or time without bounds.

Checkpoints, configurations, recipes, data sets and pictures of attackers; each parametrised case is one attack. An
attack that succeeded would leave the file named in `TRAP`, or a process with much memory.
"""

import ast
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import FIXTURES, ROOT
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from networks import tiny_config
from PIL import Image
from torch import nn
from transformers import AutoModelForSemanticSegmentation, pipeline

from qlseg_hf import QLSegForSemanticSegmentation, QLSegImageProcessor, load_label_map, load_picture
from qlseg_hf.app import page as app
from qlseg_hf.cli.errors import exit_status
from qlseg_hf.cli.main import run as run_command
from qlseg_hf.convert.config_text import parse_configuration
from qlseg_hf.convert.convert import convert
from qlseg_hf.convert.reader import ConversionError, read_checkpoint
from qlseg_hf.data.check import check_labels_of_dataset
from qlseg_hf.data.datasets import open_dataset
from qlseg_hf.evaluation.evaluator import describe_scores
from qlseg_hf.evaluation.examples import Examples, draw_example
from qlseg_hf.evaluation.metrics import StreamingScores
from qlseg_hf.evaluation.report import write_evaluation_report
from qlseg_hf.hub.card import plain_model_card
from qlseg_hf.hub.loading import load_network
from qlseg_hf.training.checkpoints import contents, load_checkpoint, save_checkpoint
from qlseg_hf.training.recipe import Recipe, load_recipe
from qlseg_hf.utils.visualization import draw_overlay, label_colors
from qlseg_hf.weights import load_vit_weights

one_network = pytest.mark.parametrize("stored", ["b"], indirect=True)
CHECKPOINT = FIXTURES / "b" / "checkpoint.pth"
MOST_MIB = 700  # that a refusal may add to a process
TRAP = "trapped"
SHIPPED = [ROOT / "convert_checkpoints.py", *sorted((ROOT / "qlseg_hf").rglob("*.py"))]
SHIPPED += sorted((ROOT / "examples").glob("*.py"))


class Reduced:
    """Pickles into a call."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def refused(capsys, path: Path, folder: Path) -> str:
    """The one sentence of the converter; it must have written nothing."""
    status = run_command(["convert", path, folder])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "%|" not in line]
    assert status == 1 and len(lines) == 1 and path.name in lines[0] and len(lines[0]) < 2000, lines
    assert not folder.exists() and not Path(TRAP).exists()
    return lines[0]


# ---------------------------------------------------------------------------------------------- pickles in checkpoints


def command() -> str:
    return f"touch {TRAP}"


CODE = f"open({TRAP!r}, 'w').close()"
PICKLES = {
    "os.system": lambda: Reduced(os.system, command()),
    "os.popen": lambda: Reduced(os.popen, command()),
    "subprocess.Popen": lambda: Reduced(subprocess.Popen, ["touch", TRAP]),
    "subprocess.check_output": lambda: Reduced(subprocess.check_output, ["touch", TRAP]),
    "builtins.eval": lambda: Reduced(eval, CODE),
    "builtins.exec": lambda: Reduced(exec, CODE),
    "builtins.compile": lambda: Reduced(compile, CODE, "x", "exec"),
    "builtins.open": lambda: Reduced(open, TRAP, "w"),
    "builtins.__import__": lambda: Reduced(__import__, "os"),
    "importlib": lambda: Reduced(__import__("importlib").import_module, "antigravity"),
    "runpy": lambda: Reduced(__import__("runpy").run_path, TRAP),
    "shutil.rmtree": lambda: Reduced(shutil.rmtree, "."),
    "shutil.copy": lambda: Reduced(shutil.copy, __file__, TRAP),
    "pickle.loads": lambda: Reduced(pickle.loads, pickle.dumps(Reduced(os.system, command()))),
    "torch.load": lambda: Reduced(torch.load, TRAP),
    "torch.hub.load": lambda: Reduced(torch.hub.load, "evil/repo", "net"),
    "torch.save": lambda: Reduced(torch.save, [1], TRAP),
    "torch.jit.load": lambda: Reduced(torch.jit.load, TRAP),
    "torch.compile": lambda: Reduced(torch.compile, os.system),
    "torch.serialization.add_safe_globals": lambda: Reduced(torch.serialization.add_safe_globals, [os.system]),
    "torch storage": lambda: Reduced(torch.storage._load_from_bytes, pickle.dumps(Reduced(os.system, command()))),
    "torch.package": lambda: Reduced(torch.package.PackageImporter, TRAP),
    "torch.nn.Module": lambda: nn.Sequential(nn.Linear(1, 1)),
    "numpy.load": lambda: Reduced(np.load, TRAP),
    "numpy.save": lambda: Reduced(np.save, TRAP, 1),
    "numpy.fromfile": lambda: Reduced(np.fromfile, "/etc/passwd"),
    "numpy.memmap": lambda: Reduced(np.memmap, TRAP, "u1", "w+", 0, (9,)),
    "numpy array of objects": lambda: np.array([Reduced(os.system, command())], dtype=object),
    "numpy huge dtype": lambda: Reduced(np._core.multiarray.scalar, np.dtype("V2000000000"), b""),
    "numpy object scalar": lambda: Reduced(np._core.multiarray.scalar, np.dtype("O"), Reduced(os.system, command())),
    "functools.partial": lambda: Reduced(__import__("functools").partial, os.system),
    "webbrowser": lambda: Reduced(__import__("webbrowser").open, "http://127.0.0.1/"),
    "urllib": lambda: Reduced(__import__("urllib.request").request.urlopen, "http://127.0.0.1/"),
    "a class of our own": lambda: Reduced(QLSegForSemanticSegmentation.from_pretrained, "evil/net"),
    "rebuilt by os.system": lambda: Reduced(torch._utils._rebuild_parameter, Reduced(os.system, command()), True, {}),
    "rebuilt type": lambda: Reduced(torch._tensor._rebuild_from_type_v2, os.system, str, (command(),), {}),
    "storage as function": lambda: Reduced(torch._utils._rebuild_tensor_v2, os.system, 0, (1,), (1,), False, {}),
    "hooks": lambda: Reduced(
        torch._utils._rebuild_tensor_v2, torch.zeros(1).storage(), 0, (1,), (1,), False, Reduced(os.system, command())
    ),
    "state of an OrderedDict": lambda: Reduced(OrderedDict, state={"x": Reduced(os.system, command())}),
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles(name, tmp_path, monkeypatch, capsys):
    """As meta, as a weight, as the whole, in the archive and in the formats before it."""
    monkeypatch.chdir(tmp_path)
    # weights_only=False: a fixture of this repository, of mmcv's objects
    whole, thing = torch.load(CHECKPOINT, weights_only=False), PICKLES[name]()
    for number, content in enumerate(
        ({**whole, "meta": thing}, {"state_dict": {"backbone.pos_embed": thing}}, {"state_dict": thing}, thing)
    ):
        for zipped in (True, False):
            path = tmp_path / f"{number}-{zipped}.pth"
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            refused(capsys, path, tmp_path / "out")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(thing))
    refused(capsys, tmp_path / "plain.pth", tmp_path / "out")
    assert not Path(TRAP).exists()


# opcodes that no pickler writes: (global, arguments) called, then attributes set on what comes out
OPCODES = {
    "eval by its name": b"c__builtin__\neval\n(S'1'\ntR.",
    "posix.system": b"cposix\nsystem\n(S'touch trapped'\ntR.",
    "types.CodeType": b"ctypes\nCodeType\n(I0\nI0\nI0\ntR.",
    "types.FunctionType": b"ctypes\nFunctionType\n(I0\n}tR.",
    "getattr of a module": b"c__builtin__\ngetattr\n(cos\nsystem\nS'__call__'\ntR.",
    "torch.ops": b"ctorch\nops.load_library\n(S'trapped'\ntR.",
    "dotted name": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0dtouch trapped\x85R.",
    "dotted attribute": b"\x80\x04\x8c\x05torch\x8c\x0cos.system.now\x93\x8c\x01x\x85R.",
    "INST": b"(S'touch trapped'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch trapped'\no.",
    "persistent id": b"(S'storage'\ncos\nsystem\nS'0'\nS'cpu'\nI1\ntQ.",
    "extension registry": b"\x82\x01.",
    "class of a tensor": b"ctorch\nTensor\n)\x81}S'__class__'\ncos\nsystem\nsb.",
    "builtins of a dict": b"ccollections\nOrderedDict\n)R}S'__class__'\nI1\nsb.",
    "memo bomb": b"\x80\x02]q\x00" + b"(" + b"h\x00" * 20000 + b"e.",
    "deep lists": b"\x80\x02" + b"]" * 20000 + b"a" * 19999 + b".",
    "deep tuples": b"\x80\x02)" + b"\x85" * 20000 + b".",
    "long integer": b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
    "long string": b"\x80\x02X\xff\xff\xff\xff.",
    "stack": b"0" * 1000 + b".",
    "marks": b"(" * 20000 + b".",
    "nothing": b"",
    "stop": b".",
}


@pytest.mark.parametrize("name", OPCODES)
def test_opcodes(name, tmp_path, monkeypatch, capsys):
    """Written by hand, bare and as `data.pkl` of an archive."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare.pth").write_bytes(OPCODES[name])
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.writestr("archive/data.pkl", OPCODES[name])
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    for path in (tmp_path / "bare.pth", tmp_path / "zip.pth"):
        refused(capsys, path, tmp_path / "out")


def archive_with(names: dict[str, bytes], compression=zipfile.ZIP_STORED) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", compression) as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return held.getvalue()


def legacy_tar() -> bytes:
    """The format of PyTorch 0.1: a tar that used to be unpacked, with a name that leaves the folder."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors", f"../{TRAP}"):
            content = pickle.dumps(Reduced(os.system, command()))
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return held.getvalue()


def torchscript() -> bytes:
    held = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), held)
    return held.getvalue()


def overlapping() -> bytes:
    """A thousand entries of the directory that stand for the same bytes."""
    one = archive_with({"archive/data.pkl": bytes(100000)})
    place = one.index(b"PK\x01\x02")
    entry, end = one[place : one.index(b"PK\x05\x06")], one.index(b"PK\x05\x06")
    count = struct.pack("<4H2LH", 0, 0, 1000, 1000, 1000 * len(entry), place, 0)
    return one[:place] + 1000 * entry + one[end : end + 4] + count


ARCHIVES = {
    "names that leave the folder": lambda: archive_with({f"../{TRAP}": b"x", "archive/data.pkl": b"."}),
    "absolute names": lambda: archive_with({f"/tmp/{TRAP}": b"x", "/archive/data.pkl": b"."}),
    "zip bomb": lambda: archive_with({"archive/data.pkl": bytes(300 << 20)}, zipfile.ZIP_DEFLATED),
    "bzip2 bomb": lambda: archive_with({"archive/data.pkl": bytes(100 << 20)}, zipfile.ZIP_BZIP2),
    "overlapping entries": overlapping,
    "archive in an archive": lambda: archive_with({"archive/data.pkl": CHECKPOINT.read_bytes()}),
    "legacy tar": legacy_tar,
    "TorchScript": torchscript,
    "two pickles": lambda: archive_with({"a/data.pkl": b".", "archive/data.pkl": OPCODES["posix.system"]}),
    "safetensors by another name": lambda: (FIXTURES / "b" / "expected.safetensors").read_bytes(),
    "HDF5": lambda: b"\x89HDF\r\n\x1a\n" + bytes(100),
    "script": lambda: b"#!/bin/sh\ntouch trapped\n",
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pth").write_bytes(ARCHIVES[name]())
    refused(capsys, tmp_path / "x.pth", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pth"]
    assert not (tmp_path.parent / TRAP).exists() and not Path("/tmp", TRAP).exists()


CLAIMS = {
    "expanded": lambda: torch.zeros(1).expand(10**6, 10**6),
    "expanded beyond 64 bit": lambda: Reduced(
        torch._utils._rebuild_tensor_v2, torch.zeros(1).storage(), 0, (2**40, 2**40), (0, 0), False, OrderedDict()
    ),
    "no columns": lambda: torch.zeros(10**9, 0),
    "sparse": lambda: torch.sparse_coo_tensor(torch.tensor([[0], [0]]), torch.ones(1), (10**9, 10**9)),
    "meta": lambda: torch.zeros(10**6, 10**6, device="meta"),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(7, 96), 0.1, 0, torch.qint8),
    "storage call": lambda: Reduced(torch.FloatStorage, 4 * 10**9),
    "bytearray": lambda: Reduced(bytearray, 10**13),
    "tensor call": lambda: Reduced(torch.Tensor, 10**6, 10**6),
    "a number": lambda: torch.tensor(1.0),
    "complex": lambda: torch.zeros(7, 96, dtype=torch.complex64),
    "boolean": lambda: torch.zeros(7, 96, dtype=torch.bool),
}
MEASURE = f"""
import resource, sys
sys.path.insert(0, {str(ROOT)!r})
from qlseg_hf.cli.main import run
run(["convert", sys.argv[1], sys.argv[3]])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[4:]:
    print("status", run(["convert", path, sys.argv[2]]), path)
print("MiB", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_small_files_that_claim_much(tmp_path):
    """In a process of its own, whose peak is measured; `decode_head.query_1.weight` says how many labels there are."""
    # weights_only=False: a fixture of this repository, of mmcv's objects
    whole, paths = torch.load(CHECKPOINT, weights_only=False), []
    for number, make in enumerate(CLAIMS.values()):
        for key in ("decode_head.query_1.weight", "backbone.pos_embed", "decode_head.extra"):
            path = tmp_path / f"{number}-{key}.pth"
            torch.save({"meta": {}, "state_dict": {**whole["state_dict"], key: make()}}, path)
            paths.append(path)
    legacy = tmp_path / "legacy.pth"
    torch.save(whole, legacy, _use_new_zipfile_serialization=False)
    content = legacy.read_bytes()
    numel = whole["state_dict"]["backbone.pos_embed"].numel()
    size = b"M" + struct.pack("<H", numel)  # of a storage, as pickle writes a short number; and a longer one
    assert size in content
    legacy.write_bytes(content.replace(size, b"J" + struct.pack("<i", 2**31 - 1)))
    paths.append(legacy)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, CHECKPOINT, tmp_path / "out", tmp_path / "good", *paths],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("status")] == ["1"] * len(paths), lines
    sentences = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith("qlseg convert")]
    assert len(sentences) == len(paths) and not (tmp_path / "out").exists()
    assert all(".pth" in line for line in sentences), sentences
    assert int(lines[-1].split()[1]) < MOST_MIB, lines[-1]


# ------------------------------------------------------------------------------------ configuration text, other meta

TEXTS = {
    "import": f"__import__('os').system('touch {TRAP}')",
    "call": "print(1)",
    "call in a value": f"a = __import__('os').system('touch {TRAP}')",
    "dict with an expansion": "a = dict(**b)",
    "dict with arguments": "a = dict([1])",
    "f-string": "a = f'{exec(1)}'",
    "comprehension": "a = [x for x in ().__class__.__mro__]",
    "lambda": "a = lambda: 0",
    "walrus": "a = (b := 1)",
    "decorator": "@x\ndef f(): pass",
    "class": "class A: pass",
    "attribute": "a = os.environ",
    "subscript": "a = b[0]",
    "star": "a = [*b]",
    "set": "a = {1, 2}",
    "power": "a = 9**9**9",
    "repetition": "a = 'x' * 10**12",
    "two targets": "a = b = 1",
    "unary minus a hundred thousand times": "a = " + "-" * 100000 + "1",
    "not": "a = " + "not " * 50000 + "1",
    "parentheses": "a = " + "(" * 5000 + ")" * 5000,
    "brackets": "a = " + "[" * 3000 + "]" * 3000,
    "sum": "a = " + "1+" * 200000 + "1",
    "attributes": "a = x" + ".a" * 100000,
    "conditions": "a = " + "1 if 1 else " * 30000 + "1",
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


@pytest.fixture(scope="module")
def checkpoint():
    source = read_checkpoint(CHECKPOINT)
    return source.state_dict, source.meta


WRONG_VALUES = ["None", "'x'", "-1", "0", "1e999", "[]", "{}", "[[1]]", "dict(type='x')", "True", "0x" + "f" * 400]


@pytest.mark.slow
@pytest.mark.parametrize("value", WRONG_VALUES)
def test_wrong_values_in_the_text(checkpoint, value):
    """Each value of the text in turn becomes another: a sentence, or a conversion; never another exception."""
    state_dict, meta = checkpoint
    tree = ast.parse(meta["config"])
    places = [node for node in ast.walk(tree) if isinstance(node, (ast.Constant, ast.List, ast.Tuple))]
    keep, tried = ast.parse(value).body[0].value, 0
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
                pass
            setattr(parent, name, field)
            tried += 1
    assert tried > 20


def laughs(depth: int = 40) -> list:
    """A list that is small in memory and 10^depth long when it is written out."""
    rows = ["ha"]
    for _ in range(depth):
        rows = [rows] * 10
    return rows


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


def test_encoder_weights_are_no_code(tiny_model, tmp_path, monkeypatch):
    """The other place where pickles are read: `load_vit_weights`, a recipe's `backbone`."""
    monkeypatch.chdir(tmp_path)
    for name in ("os.system", "builtins.eval", "numpy.load", "torch.nn.Module"):
        torch.save({"a": PICKLES[name]()}, "x.pth")
        with pytest.raises(ValueError, match="x.pth holds no weights that can be read without running code"):
            load_vit_weights(tiny_model.backbone, tmp_path / "x.pth")
    assert not Path(TRAP).exists()


@pytest.mark.parametrize("name", ["os.system", "builtins.exec", "numpy array of objects", "torch storage"])
def test_training_checkpoints_are_no_code(name, tmp_path, monkeypatch):
    """Every pickle of a folder that training is resumed from, one after the other."""
    monkeypatch.chdir(tmp_path)
    accelerator, model = Accelerator(cpu=True), nn.Linear(2, 2)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    recipe = Recipe("d", 8, 1, 1, 1, "o")
    save_checkpoint(accelerator, tmp_path, 1, {}, None, recipe)
    place = tmp_path / "checkpoints" / "step-00000001"
    files = [path for path in place.iterdir() if path.suffix in (".bin", ".pkl", ".pt")]
    assert len(files) >= 3
    for path in [*files, place / "pytorch_model.bin"]:
        before = path.read_bytes() if path.exists() else None
        if before is None:
            (place / "model.safetensors").unlink()
        torch.save(PICKLES[name](), path)
        (place / "contents.json").write_text(json.dumps(contents(place)))  # checksums keep out damage, not people
        try:
            load_checkpoint(accelerator, place, None, recipe)
        except ValueError as error:  # accelerate is content without random states
            assert "holds more than tensors and plain data, which is not run" in str(error)
        if before is not None:
            path.write_bytes(before)
    assert not Path(TRAP).exists()


# ---------------------------------------------------------------------------------------------------------- recipes

RECIPE = "dataset: d\ncrop_size: 8\ntotal_batch_size: 1\nper_device_batch_size: 1\nmax_steps: 1\noutput_dir: o\n"
BOMB = "a0: &a0 [ha]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
YAMLS = {
    "os.system": f"model: !!python/object/apply:os.system ['touch {TRAP}']",
    "subprocess": f"model: !!python/object/apply:subprocess.check_output [[touch, {TRAP}]]",
    "new": "model: !!python/object/new:os.system [x]",
    "name": "model: !!python/name:os.system",
    "module": "model: !!python/module:os",
    "tuple": "resize_box: !!python/tuple [1, 2]",
    "own tag": "model: !evil x",
    "billion laughs": BOMB,
    "laughs in a known key": "scale_range: &a [1, 2]\nresize_box: *a",
    "an alias of itself": "config: &a {x: *a}",
    "merge key": "config: &a {x: 1}\nprocessor: {<<: *a}",
    "a key twice": "seed: 1\nseed: 2",
    "an inner key twice": "config: {dropout: 0.1, dropout: 0.2}",
    "unknown key": "trust_remote_code: true",
    "key that is a list": "? [a]\n: 1",
    "two documents": "seed: 1\n---\nseed: 2",
    "deep": "config: " + "[" * 5000 + "]" * 5000,
    "deep mapping": "config: " + "{a: " * 5000 + "}" * 5000,
    "long integer": "seed: " + "9" * 5000,
    "huge": "label_names: " + "x" * (1 << 20),
    "binary": "model: !!binary aGVsbG8=",
    "date": "model: 2024-01-01",
    "set": "config: !!set {a}",
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
    if name not in ("huge", "deep", "deep mapping", "two documents", "billion laughs", "unknown key"):
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
    recipe = Recipe("d", 8, 1, 1, 1, "o", scale_range=shared, config={"a": shared, "b": shared})
    (tmp_path / "x.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "x.yaml") == recipe


# --------------------------------------------------------------------------------------------------- model folders

EVIL = f"open({TRAP!r}, 'w').close()\nclass Evil:\n    pass\n"
KERNEL = "evil/kernel"
CONFIGS = {
    "auto_map": {"auto_map": {key: "evil.Evil" for key in ("AutoConfig", "AutoModelForSemanticSegmentation")}},
    "auto_map elsewhere": {"auto_map": {"AutoModelForSemanticSegmentation": "evil/repo--evil.Evil"}},
    "auto_map of the backbone": {"backbone_config": {"auto_map": {"AutoBackbone": "evil.Evil"}}},
    "unknown model": {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}},
    "unknown backbone": {"backbone_config": {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}},
    "custom_pipelines": {"custom_pipelines": {"image-segmentation": {"impl": "evil.Evil", "pt": ["AutoModel"]}}},
    "attn_implementation": {"attn_implementation": KERNEL},
    "_attn_implementation": {"_attn_implementation": KERNEL},
    "_attn_implementation_internal": {"_attn_implementation_internal": KERNEL},
    "attn_implementation of parts": {"attn_implementation": {"": KERNEL, "backbone_config": KERNEL}},
    "attention of the backbone": {"backbone_config": {"attn_implementation": KERNEL}},
    "_attention of the backbone": {"backbone_config": {"_attn_implementation": KERNEL}},
    "flash kernel": {"attn_implementation": "flash_attention_2|evil/kernel:function"},
    "timm of the Hub": {"backbone_config": {"model_type": "timm_backbone", "backbone": "hf-hub:evil/x"}},
    "timm of a folder": {"backbone_config": {"model_type": "timm_backbone", "backbone": "local-dir:evil"}},
    "language model": {"backbone_config": {"model_type": "bert"}},
    "itself": {"backbone_config": {"model_type": "qlseg"}},
    "backbone that is a list": {"backbone_config": [1]},
    "model type that is a list": {"backbone_config": {"model_type": ["dinov2"]}},
    "size that is text": {"hidden_size": "x"},
    "palette": {"palette": [[["a"]]]},
    "id2label": {"id2label": {"0": ["a"]}},
    "dtype": {"dtype": "__import__"},
    "quantised by what is not installed": {"quantization_config": {"quant_method": "awq"}},
    "quantised by code": {"quantization_config": {"quant_method": "evil.Evil"}},
    "misspelt key": {"mask_treshold": 0.9},
}
HARMLESS = {"auto_map", "auto_map elsewhere", "auto_map of the backbone", "custom_pipelines"}
HARMLESS |= {"_attn_implementation_internal", "quantised by code"}  # both are names that transformers does not know


@pytest.fixture
def kernels(monkeypatch):
    """transformers' way to a kernel of the Hub, open as if the package were installed; it must not be gone."""
    from transformers import modeling_utils

    def fetch(self, attention, *args, **kwargs):
        assert "/" not in str(attention), f"the kernel {attention} would be fetched and run"
        return original(self, attention, *args, **kwargs)

    original = modeling_utils.PreTrainedModel._check_and_adjust_attn_implementation
    monkeypatch.setattr(modeling_utils.PreTrainedModel, "_check_and_adjust_attn_implementation", fetch)


@one_network
@pytest.mark.parametrize("name", CONFIGS)
def test_model_folders(stored, name, tmp_path, monkeypatch, hub, kernels):
    """Our commands and the plain Auto classes: the folder's code is not run, nobody is asked, nothing is fetched."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail(question))
    monkeypatch.setattr("signal.alarm", lambda seconds: pytest.fail("transformers asks for trust"))
    folder = shutil.copytree(stored.folder, tmp_path / "net")
    for file in (folder / "evil.py", *folder.glob("*.py")):
        file.write_text(EVIL)
    values = json.loads((folder / "config.json").read_text())
    change = CONFIGS[name]
    if "backbone_config" in change and isinstance(change["backbone_config"], dict):
        own = {} if "model_type" in change["backbone_config"] else values["backbone_config"]
        change = change | {"backbone_config": own | change["backbone_config"]}
    values.update(change)
    if name == "misspelt key":
        values.pop("mask_threshold", None)
    (folder / "config.json").write_text(json.dumps(values))
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["auto_map"] = {"AutoImageProcessor": "evil.Evil"}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    if name in HARMLESS:
        model, processor = load_network(folder)
        assert type(model) is QLSegForSemanticSegmentation and type(processor) is QLSegImageProcessor
        assert type(AutoModelForSemanticSegmentation.from_pretrained(folder)) is QLSegForSemanticSegmentation
        pipeline("image-segmentation", model=str(folder))
        assert model.config._attn_implementation == model.backbone.config._attn_implementation == "sdpa"
    else:
        with pytest.raises((ImportError, OSError, ValueError)) as refusal:
            load_network(folder)
        assert str(folder) in str(refusal.value)
    assert not Path(TRAP).exists() and not hub.requests


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_kernel_that_the_caller_names_is_the_callers(key):
    """Only files are refused: who calls `from_pretrained` may name whatever transformers takes."""
    from qlseg_hf import QLSegConfig

    assert QLSegConfig.from_dict(tiny_config().to_dict(), attn_implementation="kernels-community/x").hidden_size == 16
    with pytest.raises(ValueError, match="evil/kernel"):
        QLSegConfig.from_dict(tiny_config().to_dict() | {key: KERNEL})


# -------------------------------------------------------------------------------------------------------- data sets


@pytest.fixture
def folder(tmp_path):
    """PASCAL-Context's layout with one picture."""
    for name, kind in (("JPEGImages/a.jpg", "RGB"), ("SegmentationClassContext/a.png", "L")):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        Image.new(kind, (8, 6)).save(tmp_path / "data" / name)
    (tmp_path / "data" / "ImageSets" / "SegmentationContext").mkdir(parents=True)
    return tmp_path / "data"


@pytest.mark.parametrize(
    "name",
    ["../a", "..", ".", "/etc/passwd", "a/b", "..\\a", "C:\\a", "a\0b", "a/../../a", "//server/a", "~/../a"],
)
def test_split_files(folder, name):
    (folder / "ImageSets" / "SegmentationContext" / "val.txt").write_text(f"a\n{name}\n")
    with pytest.raises(ValueError, match="plain picture name|pictures are missing|holds zero bytes"):
        open_dataset(folder, "val")


@pytest.mark.parametrize("split", ["../val", "/etc/passwd", "..", "val/../val", "val\0"])
def test_names_of_splits(folder, split):
    (folder / "ImageSets" / "SegmentationContext" / "val.txt").write_text("a\n")
    with pytest.raises(ValueError, match="has no split"):
        open_dataset(folder, split)


def test_loading_scripts_are_not_run(tmp_path, monkeypatch):
    """`datasets` 3 ran a script called like its folder."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "evil"
    place.mkdir()
    for name in ("evil.py", "__init__.py", "dataset.py", "conftest.py"):
        (place / name).write_text(EVIL)
    (place / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: evil.py\n---\n")
    with pytest.raises(Exception) as refusal:  # datasets has its own
        open_dataset(place, "train")
    assert not Path(TRAP).exists() and not isinstance(refusal.value, NameError)


def test_tables_are_no_code(tmp_path, monkeypatch):
    """Parquet whose metadata, types and column names are an attacker's."""
    import pyarrow
    import pyarrow.parquet

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    encoded = io.BytesIO()
    Image.new("L", (8, 6)).save(encoded, format="PNG")
    row = {"bytes": encoded.getvalue(), "path": f"../../{TRAP}"}
    for number, features in enumerate(
        (
            {"image": {"_type": "Image"}, "label": {"_type": f"__import__('os').system('touch {TRAP}')"}},
            {"image": {"_type": "os.system"}, "label": {"_type": "Image"}},
            {"image": {"dtype": "!!python/object/apply:os.system [x]", "_type": "Value"}},
            {"image": laughs(5)},
            "x",
        )
    ):
        table = pyarrow.table({"image": [row], "label": [row]})
        metadata = {"huggingface": json.dumps({"info": {"features": features}}), "pandas": "eval(1)"}
        (tmp_path / str(number)).mkdir()
        pyarrow.parquet.write_table(
            table.replace_schema_metadata(metadata), tmp_path / str(number) / "train-00000.parquet"
        )
        try:
            sample = open_dataset(tmp_path / str(number), "train")[0]
            assert "/" not in sample.name
        except Exception as error:  # of datasets: any but those of code that ran
            assert not isinstance(error, (NameError, AssertionError)), error
    assert not Path(TRAP).exists()


# ----------------------------------------------------------------------------------------- names of labels and files

NAMES = {
    "tag": "<script>alert(1)</script>",
    "picture": "<img src=x onerror=alert(1)>",
    "link": "[a](javascript:alert(1))",
    "table": "a|b||c",
    "code": "``` `` ` `a`",
    "newline": "a\n\n# Title\n",
    "front matter": "a\n---\nlicense: mit\n---\n",
    "carriage return": "a\rb",
    "escape codes": "\x1b[2J\x1b[31mred\x1b]0;title\x07",
    "backspace": "good\b\b\b\bevil",
    "direction": "abc\u202egnp.exe",
    "zero width": "a\u200bb",
    "line separators": "a\u2028b\u2029c\x85d",
    "null": "a\0b",
    "formula": "=cmd|'/c calc'!A0",
    "template": "{{7*7}} ${x} {% x %}",
    "path": "../../../../etc/passwd",
    "entity": "&lt;script&gt; &#60;b&#62;",
    "yaml": "!!python/object/apply:os.system [x]",
    "details": "</details></summary>",
    "html comment": "<!-- x",
    "math": "$\\input{/etc/passwd}$",
    "long": "x" * 100_000,
    "surrogate": "a\udc80b",
    "empty": "",
}


@pytest.mark.parametrize("name", NAMES)
def test_names(name, tmp_path, capsys):
    """In a card (Markdown and its YAML), in a terminal, in a legend, on the page."""
    text = NAMES[name]
    config = tiny_config(2, id2label={0: text, 1: "sky"})
    model = QLSegForSemanticSegmentation(config)
    text_of_card = plain_model_card(model, f"folder {text[:50]}")
    card = ModelCard(text_of_card)  # raises if the metadata are no YAML
    assert card.data.license == "unknown" and set(card.data.to_dict()) == set(
        ModelCard(plain_model_card(QLSegForSemanticSegmentation(tiny_config(2)), "net")).data.to_dict()
    )
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.text)
    assert page.count("<tr>") == 3 and page.count("<h1>") == 1 and page.count("<details>") == 1
    for forbidden in ("<script", "<img", "<a href", "<!--", "\x1b", "\u202e"):
        assert forbidden not in page
    assert page.count("</details>") == 1
    capsys.readouterr()
    exit_status("tool", lambda: (_ for _ in ()).throw(ValueError(f"label {text!s:.200}")))
    lines = capsys.readouterr().err
    assert lines.endswith("\n") and all(sign.isprintable() for sign in lines[:-1])
    picture = np.zeros((30, 40, 3), dtype=np.uint8)
    overlay = draw_overlay(picture, np.zeros((30, 40), dtype=int), config.id2label, label_colors(config))
    assert overlay.width < 2000
    view = app.view_of(picture, torch.zeros(30, 40, dtype=torch.long), config)
    assert json.loads(json.dumps(view))["legend"][0][1] == text and f"<{text}>" not in app.VIEWER["html"]
    tiny_model_folder = tmp_path / "net"
    model.save_pretrained(tiny_model_folder)


def test_names_of_files_in_reports(tmp_path):
    """A data set's names of pictures become text of a page, and lines of a terminal."""
    image, names = Image.new("RGB", (4, 4)), [*NAMES.values(), "a" * 300 + ".png"]
    labels = np.arange(16).reshape(4, 4) % len(names)
    config = tiny_config(len(names), id2label=dict(enumerate(names)))
    examples = [draw_example((0.5, 0, name), np.asarray(image), labels, labels, config, 800) for name in names]
    scores = StreamingScores(len(names))
    scores.update(np.zeros((2, 2), dtype=int), np.array([[0, 1], [0, 1]]), 0)
    result = describe_scores(scores, names, QLSegImageProcessor(do_reduce_labels=False)) | {"unreadable": names}
    write_evaluation_report(tmp_path / "r.html", result, examples=Examples(examples, []), title=NAMES["escape codes"])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count("<h1>") == 1 and page.count("<figure>") == 2 * len(names) + 1
    for forbidden in ("<script", "<a href", "<!--", "\x1b", "\u202e"):
        assert forbidden not in page

    class Sample:
        name = NAMES["escape codes"]

        def read(self):
            return np.zeros((2, 2, 3), dtype=np.uint8), np.full((2, 2), 99)

    names = ["a", NAMES["direction"]]
    report = str(check_labels_of_dataset([Sample()], QLSegImageProcessor(), names, show_progress=False))
    assert "values that are no labels" in report and all(line.isprintable() for line in report.splitlines())


# --------------------------------------------------------------------------------------------- decompression bombs


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, kind: int = 2) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def with_head(kind: str, width: int, height: int) -> bytes:
    """A small picture whose head says another size."""
    encoded = io.BytesIO()
    Image.new("RGB", (16, 16)).save(encoded, format=kind)
    data = bytearray(encoded.getvalue())
    if kind == "JPEG":
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", height, width)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
        place = data.index(b"\x2c", 13)
        data[place + 5 : place + 9] = struct.pack("<HH", width, height)
    elif kind == "TIFF":
        place, little = struct.unpack("<I", data[4:8])[0], "<"
        for entry in range(place + 2, place + 2 + 12 * struct.unpack("<H", data[place : place + 2])[0], 12):
            tag = struct.unpack(f"{little}H", data[entry : entry + 2])[0]
            if tag in (256, 257):
                data[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, width if tag == 256 else height)
    return bytes(data)


def webp(width: int, height: int) -> bytes:
    """An extended WebP whose canvas is huge."""
    canvas = struct.pack("<I", 0) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


PICTURES = {
    "png 60000": lambda: png(60000, 60000),
    "png widest": lambda: png(2**31 - 1, 2**31 - 1),
    "png strip": lambda: png(2**31 - 1, 1),
    "png grey": lambda: png(20000, 20000, 0),
    "png palette": lambda: png(20000, 20000, 3),
    "png without pixels": lambda: png(10000, 10000)[:60],
    "jpeg": lambda: with_head("JPEG", 65500, 65500),
    "bmp": lambda: with_head("BMP", 60000, 60000),
    "bmp negative": lambda: with_head("BMP", 60000, -60000),
    "gif": lambda: with_head("GIF", 65000, 65000),
    "tiff": lambda: with_head("TIFF", 10**6, 10**6),
    "tiff beyond 32 bit": lambda: with_head("TIFF", 2**32 - 1, 2**32 - 1),
    "webp": lambda: webp(16000, 16000),
    "ppm": lambda: b"P6 100000 100000 255\n" + bytes(100),
    "ppm digits": lambda: b"P6 " + b"9" * 5000 + b" 1 255\n",
    "tga": lambda: struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 65535, 65535, 24, 0),
    "eps that Ghostscript would run": lambda: (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(trapped) (w) file\n"
    ),
    "svg": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/passwd'/></svg>",
    "pdf": lambda: b"%PDF-1.4\n",
    "png text bomb": lambda: (
        png(4, 4)[:33]
        + b"".join(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50 << 20))) for _ in range(3))
        + png(4, 4)[33:]
    ),
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name, tmp_path, monkeypatch, tiny_model):
    """By every way in: reader, label maps, tables, addresses, the page, the pipeline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("subprocess.check_call", lambda *args, **kwargs: pytest.fail(f"{args} was started"))
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: True)
    path = tmp_path / "x.png"
    path.write_bytes(PICTURES[name]())
    for read in (load_picture, load_label_map, app.read_upload):
        with pytest.raises(ValueError, match="x.png"):
            read(str(path))
    from base64 import b64encode

    from qlseg_hf.data.datasets import Sample

    with pytest.raises(ValueError, match="data:image/png"):
        load_picture(f"data:image/png;base64,{b64encode(path.read_bytes()[:100000]).decode()}")
    for sample in (
        Sample(path, path, "sample 3"),
        Sample({"bytes": path.read_bytes(), "path": None}, path, "sample 3"),
    ):
        with pytest.raises(ValueError, match="sample 3"):
            sample.read()
    with pytest.raises(ValueError, match="x.png"):
        pipeline("image-segmentation", model=tiny_model, image_processor=QLSegImageProcessor())(str(path))
    assert not Path(TRAP).exists()


@pytest.mark.slow
def test_bombs_take_no_memory(tmp_path):
    """All of them in one process of its own, whose peak is measured."""
    for number, make in enumerate(PICTURES.values()):
        (tmp_path / f"{number}.png").write_bytes(make())
    code = f"""
import resource, sys
sys.path.insert(0, {str(ROOT)!r})
from qlseg_hf import load_picture
load_picture({str(FIXTURES / "b" / "wide.png")!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        load_picture(path)
    except ValueError:
        print("refused")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *sorted(tmp_path.iterdir())], capture_output=True, text=True, timeout=120
    )
    *lines, peak = done.stdout.splitlines()
    assert done.returncode == 0 and lines == ["refused"] * len(PICTURES), done.stderr[-1000:]
    assert int(peak) < MOST_MIB


@pytest.mark.slow
def test_large_pictures_still_work(tmp_path):
    """12000 x 6000 as the README says."""
    Image.new("L", (12000, 6000), 7).save(tmp_path / "large.png", compress_level=1)
    assert load_label_map(tmp_path / "large.png").shape == (6000, 12000)
    assert load_picture(tmp_path / "large.png").shape == (6000, 12000, 3)


def test_the_limit_on_pixels_can_be_raised(tmp_path, monkeypatch):
    Image.new("L", (400, 300), 7).save(tmp_path / "small.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50000)
    with pytest.raises(ValueError, match="raise PIL.Image.MAX_IMAGE_PIXELS"):
        load_picture(tmp_path / "small.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 120000)
    assert load_picture(tmp_path / "small.png").shape == (300, 400, 3)


# ---------------------------------------------------------------------------------------------------- the code itself

CALLS = {"eval", "exec", "compile", "__import__", "execfile", "input", "breakpoint"}
MODULES = {"marshal", "shelve", "dill", "cloudpickle", "joblib", "telnetlib", "xmlrpc"}


def offences(source: str) -> list[str]:
    """Uses in Python code of what executes data."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names]
            modules = names if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"import {name}" for name in modules if name.split(".")[0] in MODULES | {"pickle"}]
            if modules == ["pickle"] and isinstance(node, ast.ImportFrom) and names == ["UnpicklingError"]:
                found.remove("import pickle")  # an exception
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in CALLS:
            found.append(name)
        if name == "torch.load" and given.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if name in ("torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"):
            found.append(name)
        if name.startswith("yaml.") and name.split(".")[1] in ("load", "load_all", "unsafe_load", "full_load"):
            found.append(name)
        if name in ("os.system", "os.popen") or name.startswith(("os.exec", "os.spawn")):
            found.append(name)
        if given.get("shell", "False") != "False":
            found.append("shell=True")
        if given.get("trust_remote_code", "False") != "False":
            found.append("trust_remote_code")
        if given.get("allow_pickle", "False") != "False":
            found.append("allow_pickle")
        if name.endswith(("tempfile.mktemp", "extractall", "unpack_archive")):
            found.append(name)
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_code(path):
    assert offences(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec(x)",
        "import pickle",
        "from pickle import loads",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "yaml.load(x, Loader=y)",
        "yaml.unsafe_load(x)",
        "subprocess.run(x, shell=True)",
        "np.load(x, allow_pickle=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=trust)",
        "os.system(x)",
        "archive.extractall()",
        "torch.hub.load(x)",
        "import marshal",
    ],
)
def test_the_search_finds(source):
    assert len(offences(source)) == 1
