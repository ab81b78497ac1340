"""Pickles and archives of attackers, in checkpoints: never executed, without much memory."""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from attacks import CHECKPOINT, MOST_MIB, PICKLES, TRAP, Reduced, command, measure_peak, refused
from conftest import FIXTURES
from recipes import small_recipe
from torch import nn

from qlseg_hf.training.checkpoints import contents, load_checkpoint, save_checkpoint
from qlseg_hf.weights import load_vit_weights


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
    "getattr of a module": b"c__builtin__\ngetattr\n(cos\nsystem\nS'__call__'\ntR.",
    "dotted name": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0dtouch trapped\x85R.",
    "OBJ": b"(cos\nsystem\nS'touch trapped'\no.",
    "persistent id": b"(S'storage'\ncos\nsystem\nS'0'\nS'cpu'\nI1\ntQ.",
    "memo bomb": b"\x80\x02]q\x00" + b"(" + b"h\x00" * 20000 + b"e.",
    "deep lists": b"\x80\x02" + b"]" * 20000 + b"a" * 19999 + b".",
    "long integer": b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
    "marks": b"(" * 20000 + b".",
    "nothing": b"",
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
    "nothing": bytes,
    "half a checkpoint": lambda: CHECKPOINT.read_bytes()[: CHECKPOINT.stat().st_size // 2],
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
    prepare = f"""
from qlseg_hf.cli.main import run
run(["convert", {str(CHECKPOINT)!r}, {str(tmp_path / "good")!r}])
"""
    each = f"""print("status", run(["convert", path, {str(tmp_path / "out")!r}]))"""
    lines, peak, printed = measure_peak(prepare, each, paths)
    assert [line for line in lines if line.startswith("status")] == ["status 1"] * len(paths), lines
    sentences = [line for line in printed.replace("\r", "\n").splitlines() if line.startswith("qlseg convert")]
    assert len(sentences) == len(paths) and not (tmp_path / "out").exists()
    assert all(".pth" in line for line in sentences), sentences
    assert peak < MOST_MIB, peak


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
    recipe = small_recipe(max_steps=1, warmup_steps=0, learning_rate=1e-5)
    save_checkpoint(accelerator, tmp_path, 1, {}, None, recipe)
    place = tmp_path / "checkpoints" / "step-00000001"
    files = [path for path in place.iterdir() if path.suffix in (".bin", ".pkl", ".pt")]
    assert len(files) >= 3
    refused = []
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
            refused.append(path.name)
        if before is not None:
            path.write_bytes(before)
    assert {"optimizer.bin", "pytorch_model.bin", "random-0.pt"} <= set(refused)
    assert not Path(TRAP).exists()
