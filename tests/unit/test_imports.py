"""The arrows between the parts of the package run one way, and `model/` is complete in itself."""

import ast
from functools import cache
from pathlib import Path

import pytest

import qlseg_hf

PACKAGE = Path(qlseg_hf.__file__).parent
# A part may import those of lower rank, and itself.
RANKS = {
    "model": 0,
    "utils": 0,
    "releases": 1,
    "weights": 4,
    "data": 2,
    "hub": 3,
    "convert": 4,
    "export": 4,
    "evaluation": 5,
    "predict": 5,
    "training": 6,
    "app": 6,
    "ray": 6,
    "benchmark": 7,
    "cli": 8,
}
MODEL_MAY_IMPORT = {"torch", "transformers", "huggingface_hub", "numpy", "PIL", "safetensors", "triton"}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem in RANKS)


@cache
def imports(path: Path) -> list[tuple[int, str]]:
    """(line, absolute dotted name) of everything that a module imports, inside functions and guards too."""
    found = []
    package = ("qlseg_hf", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, name.name) for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.lineno, node.module))
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1])
            if node.module:
                found.append((node.lineno, f"{base}.{node.module}"))
            else:
                found += [(node.lineno, f"{base}.{name.name}") for name in node.names]
    return found


def part_of(name: str) -> str | None:
    """The part of the package that a dotted name lies in; None outside of it."""
    pieces = name.split(".")
    return None if pieces[0] != "qlseg_hf" else pieces[1] if len(pieces) > 1 else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_run_one_way(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for line, name in imports(path):
        part = part_of(name)
        assert part is None or part == own or RANKS[part] < RANKS[own], f"{path}:{line} imports {name}"


def test_every_part_has_a_rank():
    parts = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert parts | modules == set(RANKS)


@pytest.mark.parametrize("path", sorted((PACKAGE / "model").glob("*.py")), ids=lambda path: path.name)
def test_model_imports_nothing_of_the_package(path):
    import sys

    for line, name in imports(path):
        top = name.split(".")[0]
        allowed = top in MODEL_MAY_IMPORT or top in sys.stdlib_module_names
        assert allowed or part_of(name) == "model", f"{path}:{line} imports {name}"


def test_no_circle():
    """Within each part too: a depth-first walk meets no module that is still being walked."""
    known = {".".join(("qlseg_hf", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in MODULES}
    known = {name.removesuffix(".__init__"): path for name, path in known.items()}
    done, walking = set(), []

    def walk(name: str) -> None:
        assert name not in walking, f"circle: {' -> '.join([*walking[walking.index(name) :], name])}"
        if name in done:
            return
        walking.append(name)
        for _, imported in imports(known[name]):
            if imported in known and imported != name:
                walk(imported)
        walking.pop()
        done.add(name)

    assert len(known) > 30
    for name in known:
        walk(name)
