"""The counting of `make conformance`; the tests of transformers that it runs are fetched, so they run there alone."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import run  # noqa: E402

EXCEPTIONS = {"test_text*": "text", "B.test_loss": "no loss"}


@pytest.mark.parametrize(
    "name, why, title, reason",
    [
        ("A.test_x", "", "passed", ""),
        ("A.test_x", "Traceback ...", "failed", "Traceback ..."),
        ("A.test_x", "no reason that is known", "failed", "no reason that is known"),
        ("A.test_x", "test requires Timm", "not run here", "test requires Timm"),
        ("A.test_x", run.ASKS_NOTHING, "failed", run.ASKS_NOTHING),
        ("A.test_config", run.ASKS_NOTHING, "passed", ""),
        ("A.test_text_1", "Traceback ...", "not applicable", "text"),
        ("A.test_text_1", "test requires deepspeed", "not applicable", "text"),
        ("A.test_text_1", run.ASKS_NOTHING, "not applicable", "text"),
        ("A.test_text_1", "", "failed", "it passes, so NOT_APPLICABLE['test_text*'] must go"),
        ("A.test_loss", "Traceback ...", "failed", "Traceback ..."),
        ("B.test_loss", "Traceback ...", "not applicable", "no loss"),
    ],
)
def test_sort(name, why, title, reason):
    sorted_tests = run.sort({name: why}, EXCEPTIONS, ["test_config"])
    assert {title: tests for title, tests in sorted_tests.items() if tests} == {title: {name: reason}}


def test_only_the_known_distribution_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "SCRATCH", tmp_path)
    with pytest.raises(SystemExit, match="transformers 4.0.0 is installed; its tests are known for 5.17.0, 5.23.0"):
        run.fetch_mixins("4.0.0")
    (tmp_path / "transformers-5.23.0.tar.gz").write_bytes(b"something else")
    with pytest.raises(SystemExit, match="has sha256 .* is wanted; remove the file and run again"):
        run.fetch_mixins("5.23.0")
    assert len(list(tmp_path.iterdir())) == 1
