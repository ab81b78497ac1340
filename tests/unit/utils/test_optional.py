"""Optional packages that are missing, broken, or hidden by a file of the same name."""

import importlib
import re
import sys
from importlib import metadata

import numpy as np
import pytest
from conftest import ROOT

from qlseg_hf import evaluation
from qlseg_hf.evaluation import metrics
from qlseg_hf.utils.optional import import_package


def test_without_evaluate(monkeypatch):
    """The module imports and counts; only MeanIoU cannot be had."""
    monkeypatch.setitem(sys.modules, "evaluate", None)
    monkeypatch.delitem(sys.modules, "qlseg_hf.evaluation.mean_iou", raising=False)
    assert metrics.confusion_counts(np.array([[1]]), np.array([[1]]), 2).tolist() == [[0, 0], [0, 1]]
    with pytest.raises(ModuleNotFoundError, match=r"MeanIoU needs the package \w+: pip install 'qlseg-hf\[train\]'"):
        _ = evaluation.MeanIoU


def test_a_script_that_hides_the_package(tmp_path, monkeypatch):
    """`python folder/x.py` puts the folder first, where an evaluate.py may lie."""
    pytest.importorskip("datasets")
    (tmp_path / "evaluate.py").write_text("raise RuntimeError('it was run')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "evaluate"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "qlseg_hf.evaluation.mean_iou", raising=False)
    hidden = f"the package evaluate, which {tmp_path / 'evaluate.py'} hides; rename that"
    with pytest.raises(ImportError, match=re.escape(hidden)):
        _ = evaluation.MeanIoU
    assert "evaluate" not in sys.modules


def test_examples_hide_no_package():
    names = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert names and not names & set(metadata.packages_distributions())


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "a test needs the package ql_thing: pip install thing"),
        ({"ql_thing/readme.txt": ""}, "a test needs the package ql_thing: pip install thing"),
        ({"ql_thing.py": "raise SystemExit"}, r"the package ql_thing, which \S*/ql_thing.py hides; rename that"),
        ({"ql_thing/__init__.py": "other = 1"}, r"ql_thing, which \S*/ql_thing/__init__.py hides; rename that"),
        (
            {"ql_thing/__init__.py": "import ql_absent"},
            r"import from \S*__init__.py fails: No module named 'ql_absent'",
        ),
        ({"ql_thing/__init__.py": "raise ImportError('libGL.so.1')"}, r"import from \S* fails: libGL.so.1"),
    ],
)
def test_import_package(files, message, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    importlib.invalidate_caches()
    with pytest.raises(ImportError, match=message) as refusal:
        import_package("ql_thing", "wanted", "a test", "thing")
    assert isinstance(refusal.value, ModuleNotFoundError) == ("pip install" in message)
    sys.modules.pop("ql_thing", None)


def test_import_package_finds_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ql_thing").mkdir()
    (tmp_path / "ql_thing" / "__init__.py").write_text("")
    (tmp_path / "ql_thing" / "part.py").write_text("wanted = 3")
    assert import_package("ql_thing.part", "wanted", "a test", "thing").wanted == 3
    sys.modules.pop("ql_thing"), sys.modules.pop("ql_thing.part")
