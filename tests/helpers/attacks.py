"""What the tests of security share: the trap that an attack would spring, and pickles that try to."""

import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from conftest import FIXTURES, ROOT
from torch import nn
from writers import sentences_of

from qlseg_hf import QLSegForSemanticSegmentation
from qlseg_hf.cli.main import run as run_command

CHECKPOINT = FIXTURES / "b" / "checkpoint.pth"
MOST_MIB = 700  # that a refusal may add to a process
TRAP = "trapped"
CODE = f"open({TRAP!r}, 'w').close()"
EVIL = CODE + "\nclass Evil:\n    pass\n"


class Reduced:
    """Pickles into a call."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def refused(capsys, path: Path, folder: Path) -> str:
    """The one sentence of the converter; it must have written nothing."""
    status = run_command(["convert", path, folder])
    lines = sentences_of(capsys.readouterr().err)
    assert status == 1 and len(lines) == 1 and path.name in lines[0] and len(lines[0]) < 2000, lines
    assert not folder.exists() and not Path(TRAP).exists()
    return lines[0]


def measure_peak(prepare: str, each: str, paths: list[Path]) -> tuple[list[str], int, str]:
    """Run `each` for every `path`, in a process of its own; what it prints, MiB that it added, and stderr.

    prepare: code that runs before the memory is measured.
    """
    code = f"""
import resource, sys
sys.path.insert(0, {str(ROOT)!r})
{prepare}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    {each}
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    *lines, peak = done.stdout.splitlines()
    return lines, int(peak), done.stderr


def command() -> str:
    return f"touch {TRAP}"


# of globals that are not on PyTorch's list a few, of those on it or on ours all that takes code
PICKLES = {
    "os.system": lambda: Reduced(os.system, command()),
    "builtins.eval": lambda: Reduced(eval, CODE),
    "builtins.exec": lambda: Reduced(exec, CODE),
    "torch.load": lambda: Reduced(torch.load, TRAP),
    "torch storage": lambda: Reduced(torch.storage._load_from_bytes, pickle.dumps(Reduced(os.system, command()))),
    "torch.nn.Module": lambda: nn.Sequential(nn.Linear(1, 1)),
    "numpy.load": lambda: Reduced(np.load, TRAP),
    "numpy array of objects": lambda: np.array([Reduced(os.system, command())], dtype=object),
    "numpy huge dtype": lambda: Reduced(np._core.multiarray.scalar, np.dtype("V2000000000"), b""),
    "numpy object scalar": lambda: Reduced(np._core.multiarray.scalar, np.dtype("O"), Reduced(os.system, command())),
    "functools.partial": lambda: Reduced(__import__("functools").partial, os.system),
    "a class of our own": lambda: Reduced(QLSegForSemanticSegmentation.from_pretrained, "evil/net"),
    "rebuilt by os.system": lambda: Reduced(torch._utils._rebuild_parameter, Reduced(os.system, command()), True, {}),
    "rebuilt type": lambda: Reduced(torch._tensor._rebuild_from_type_v2, os.system, str, (command(),), {}),
    "storage as function": lambda: Reduced(torch._utils._rebuild_tensor_v2, os.system, 0, (1,), (1,), False, {}),
    "hooks": lambda: Reduced(
        torch._utils._rebuild_tensor_v2, torch.zeros(1).storage(), 0, (1,), (1,), False, Reduced(os.system, command())
    ),
    "state of an OrderedDict": lambda: Reduced(OrderedDict, state={"x": Reduced(os.system, command())}),
}


def laughs(depth: int = 40) -> list:
    """A list that is small in memory and 10^depth long when it is written out."""
    rows = ["ha"]
    for _ in range(depth):
        rows = [rows] * 10
    return rows
