"""Storage that fails: full and read-only disks.

`make faults` runs all of it and prints what was tried and what survived. Survived: one sentence that names the place
or the file, exit status 1, what was there before whole bit for bit, nothing half-written, nothing left; or success.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from full_disk import tree
from programs import environment
from writers import tell

from qlseg_hf import QLSegForSemanticSegmentation, QLSegImageProcessor
from qlseg_hf.utils.files import write_atomically

pytestmark = pytest.mark.faults
one_network = pytest.mark.parametrize("stored", ["b"], indirect=True)


NAMESPACE = ["unshare", "--mount", "--map-root-user"]


def may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0


@one_network
@pytest.mark.parametrize(
    "command, points",
    [
        ("scenes", 8),
        *(
            pytest.param(command, 40, marks=pytest.mark.slow, id=f"{command}-many")
            for command in ("convert", "save", "predict", "evaluate", "export", "quantize", "scenes")
        ),
    ],
)
def test_full_disk(stored, tmp_path, command, points):
    """A tmpfs of many sizes, one with too few inodes, and one that is read-only."""
    if not may_mount():
        pytest.skip("a tmpfs needs mount namespaces (unshare --mount --map-root-user), which are not allowed here")
    extra = ROOT / ".venv" / "torchao"
    if command == "quantize" and not extra.is_dir():
        pytest.skip("quantize.py needs torchao, which is not installed")
    (tmp_path / "place").mkdir()
    arguments = [command, stored.folder, stored.checkpoint, stored.picture("wide"), tmp_path / "place"]
    done = subprocess.run(
        [*NAMESPACE, sys.executable, ROOT / "tests" / "helpers" / "full_disk.py", *arguments]
        + [tmp_path / "result.json", "--points", str(points)],
        env=environment(**({"EXTRA_PATH": str(extra)} if command == "quantize" else {})),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert not result["failed"], json.dumps(result["failed"][:3], indent=1)
    assert result["tried"] >= points // 2
    tell(f"full or read-only disk, {command}", result["tried"], result["survived"])


def test_failed_save_leaves_the_folder(tiny_model, tmp_path, monkeypatch):
    """Without any mount: the last thing that is written cannot be."""
    tiny_model.save_pretrained(tmp_path / "net")

    def files() -> dict[str, str]:
        return {name: digest for name, digest in tree(tmp_path).items() if digest != "folder"}

    before = files()
    for folder in ("net", "new/deep"):
        for name in ("qlseg_hf.hub.saving.plain_model_card", "transformers.modeling_utils.safe_save_file"):

            def no_space(*args, **kwargs):
                raise OSError(28, "No space left on device")

            with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
                patch.setattr(name, no_space)
                (tmp_path / "net" / "README.md").unlink(missing_ok=True)
                before.pop("net/README.md", None)
                tiny_model.save_pretrained(tmp_path / folder)
            assert files() == before


def test_saved_again_in_another_number_of_shards(tiny_model, tmp_path):
    """Of two generations side by side the old one would be loaded."""
    tiny_model.save_pretrained(tmp_path)
    (tmp_path / "mine.txt").write_text("keep")
    with torch.no_grad():
        tiny_model.class_head.bias += 1
    tiny_model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert not (tmp_path / "model.safetensors").exists() and (tmp_path / "mine.txt").exists()
    again = QLSegForSemanticSegmentation.from_pretrained(tmp_path)
    assert torch.equal(again.class_head.bias, tiny_model.class_head.bias)
    tiny_model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]


def test_saved_files_have_the_usual_permissions(tiny_model, tmp_path):
    """safetensors 0.8 writes files that only their owner may read; a folder is shared."""
    before = os.umask(0o022)
    try:
        tiny_model.save_pretrained(tmp_path / "net")
        QLSegImageProcessor().save_pretrained(tmp_path / "net")
        write_atomically(tmp_path / "net" / "scores.json", b"{}")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "net").iterdir()} == {0o644}
