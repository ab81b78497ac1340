"""What the tests of security share: the trap that an attack would spring, and pickles that try to."""

import os
import pickle
import shutil
import subprocess
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from conftest import FIXTURES
from torch import nn

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
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "%|" not in line]
    assert status == 1 and len(lines) == 1 and path.name in lines[0] and len(lines[0]) < 2000, lines
    assert not folder.exists() and not Path(TRAP).exists()
    return lines[0]


def command() -> str:
    return f"touch {TRAP}"


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


def laughs(depth: int = 40) -> list:
    """A list that is small in memory and 10^depth long when it is written out."""
    rows = ["ha"]
    for _ in range(depth):
        rows = [rows] * 10
    return rows
