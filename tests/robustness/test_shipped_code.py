"""Our own code uses nothing that executes data."""

import ast

import pytest
from conftest import ROOT

SHIPPED = [ROOT / "convert_checkpoints.py", *sorted((ROOT / "qlseg_hf").rglob("*.py"))]
SHIPPED += sorted((ROOT / "examples").glob("*.py"))


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
