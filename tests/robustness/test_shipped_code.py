"""Our own code uses nothing that executes data: what ruff's rules of security (see pyproject.toml) do not look for."""

import ast

import pytest
from conftest import ROOT

SHIPPED = [ROOT / "convert_checkpoints.py", *sorted((ROOT / "qlseg_hf").rglob("*.py"))]
SHIPPED += sorted((ROOT / "examples").glob("*.py"))
CALLS = {
    "compile",
    "__import__",
    "input",
    "yaml.unsafe_load",
    "yaml.full_load",
    "torch.jit.load",
    "torch.hub.load",
    "torch.package.PackageImporter",
}


def offences(source: str) -> list[str]:
    """Uses in Python code of what executes data."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in CALLS or (name == "torch.load" and given.get("weights_only") != "True"):
            found.append(name)
        found += [word for word in ("trust_remote_code", "allow_pickle") if given.get(word, "False") != "False"]
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_code(path):
    assert offences(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "__import__('os')",
        "yaml.unsafe_load(x)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "np.load(x, allow_pickle=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=trust)",
        "torch.hub.load(x)",
    ],
)
def test_the_search_finds(source):
    assert len(offences(source)) == 1
