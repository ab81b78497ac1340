"""Runs transformers' own common tests against QLSeg's classes: `make conformance`.

The mixins are in the source distribution of transformers on PyPI. It is fetched for the version that is installed,
checked and unpacked into build/conformance, where a second run finds it. Nothing of it enters this repository; what
the mixins are run with, and which of their tests do not apply, is in cases.py.
"""

import contextlib
import hashlib
import importlib.util
import io
import os
import re
import subprocess
import sys
import tarfile
import unittest
import warnings
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))
import hub_server  # noqa: E402

SOURCES = {  # sha256 of transformers-VERSION.tar.gz on PyPI
    "5.17.0": "a153be279169b55b92d8000bf4af294aed684503d091cca7804da2dd8a9de000",
    "5.23.0": "19d647a4d5d903a7c644ca5cde2d86efc3dde7d8c687ae7988806ff2205efa71",
}
# what this machine lacks; transformers 5.17 has no AutoImageProcessor without torchvision
WANTING = re.compile("^(test|This test) requires .*|AutoImageProcessor requires the Torchvision library")
ASKS_NOTHING = "it passed without making a model or a processor, so it asked nothing"
SCRATCH = Path(__file__).resolve().parents[2] / "build" / "conformance"


def fetch_mixins(installed: str) -> Path:
    """The folder that the package `tests` of a version's source distribution lies in."""
    if installed not in SOURCES:
        sys.exit(f"transformers {installed} is installed; its tests are known for {', '.join(SOURCES)}: install one")
    archive = SCRATCH / f"transformers-{installed}.tar.gz"
    if not archive.exists():
        SCRATCH.mkdir(parents=True, exist_ok=True)
        wanted = SCRATCH / "requirements.txt"  # with its hash, pip refuses any other file before running its setup.py
        wanted.write_text(f"transformers=={installed} --hash=sha256:{SOURCES[installed]}\n")
        command = "pip download --quiet --no-deps --no-binary transformers --requirement".split()
        if subprocess.run([sys.executable, "-m", *command, wanted, "--dest", SCRATCH]).returncode:
            sys.exit(f"the source distribution of transformers {installed} could not be fetched; see above")
    if (found := hashlib.sha256(archive.read_bytes()).hexdigest()) != SOURCES[installed]:
        sys.exit(f"{archive} has sha256 {found}, {SOURCES[installed]} is wanted; remove the file and run again")
    folder = SCRATCH / f"transformers-{installed}"
    with tarfile.open(archive) as file:
        file.extractall(SCRATCH, [m for m in file if m.name.startswith(f"{folder.name}/tests/")], filter="data")
    for package in ("tests", "src/transformers"):  # they import transformers by such a file, and get the installed one
        (folder / package).mkdir(parents=True, exist_ok=True)
        (folder / package / "__init__.py").touch()
    return folder


def let_torchvision_in() -> bool:
    """Whether torchvision is installed, which is imported then."""
    if not importlib.util.find_spec("torchvision"):
        return False
    import matching_torchvision  # noqa: F401

    return True


class Outcome(unittest.TestResult):
    """Keeps for each test, by "Class.test", why it did not pass; "" if it did."""

    def __init__(self, made: list):
        """`made`: gets an entry for each model and processor made; a test that passes without any asked nothing."""
        super().__init__()
        self.buffer = True
        self.found = {}
        self.made = made

    def startTest(self, test):
        super().startTest(test)
        self.made.clear()

    def note(self, test, found):
        name = ".".join(getattr(test, "test_case", test).id().split(".")[-2:])
        self.found[name] = self.found.get(name) or found

    def addSuccess(self, test):
        super().addSuccess(test)
        self.note(test, "" if self.made else ASKS_NOTHING)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.note(test, reason)

    def addError(self, test, error):
        super().addError(test, error)
        self.note(test, self.errors[-1][1])

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.note(test, self.failures[-1][1])

    def addSubTest(self, test, subtest, error):
        super().addSubTest(test, subtest, error)
        if error is not None:
            self.note(test, self._exc_info_to_string(error, test))


def first_match(name: str, patterns: Iterable[str]) -> str | None:
    """The first pattern that fits "Class.test", or "test" alone; None if none does."""
    return next((p for p in patterns if fnmatchcase(name, p) or fnmatchcase(name.split(".")[1], p)), None)


def sort(found: dict[str, str], not_applicable: dict[str, str], of_classes: Iterable[str]) -> dict[str, dict]:
    """What came of each test by "Class.test", sorted by what that means.

    Args:
        found: why each test did not pass, or "".
        not_applicable: names of tests, with * for any characters, and why they do not apply; "Class.test" or "test".
        of_classes: names of tests that may pass without making a model or a processor.

    Returns:
        "passed", "failed", "not applicable", "not run here": {"Class.test": why}. An exception that passes has failed.
    """
    sorted_tests = {"passed": {}, "failed": {}, "not applicable": {}, "not run here": {}}
    for name, why in found.items():
        if why == ASKS_NOTHING and first_match(name, of_classes):
            why = ""
        exception = first_match(name, not_applicable)
        if exception and why:
            sorted_tests["not applicable"][name] = not_applicable[exception]
        elif exception:
            sorted_tests["failed"][name] = f"it passes, so NOT_APPLICABLE[{exception!r}] must go"
        elif wanting := WANTING.search(why):
            sorted_tests["not run here"][name] = wanting[0]
        else:
            sorted_tests["failed" if why else "passed"][name] = why
    return sorted_tests


def main() -> int:
    # some mixins ask the Hub; the one of our tests has nothing
    os.environ |= {"HF_ENDPOINT": hub_server.Hub().url, "RUN_SLOW": "1"}
    warnings.simplefilter("ignore")
    installed = version("transformers")
    sys.path.insert(0, str(fetch_mixins(installed)))
    how = f"transformers {installed} {'with' if let_torchvision_in() else 'without'} torchvision"
    print(f"{how}: some minutes ...", flush=True)
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars, and warnings that the tests provoke
        import cases  # needs the mixins

        outcome = Outcome(cases.made)
        unittest.TestSuite(map(unittest.defaultTestLoader.loadTestsFromTestCase, cases.CASES)).run(outcome)

    assert len(outcome.found) == outcome.testsRun
    sorted_tests = sort(outcome.found, cases.NOT_APPLICABLE, cases.OF_CLASSES)
    for title in ("not applicable", "not run here"):
        for why, number in Counter(sorted_tests[title].values()).most_common():
            print(f"{number:4} {title}: {why}")
    for name, why in sorted_tests["failed"].items():
        print(f"FAILED {name}: {why}")
    counts = ", ".join(f"{len(tests)} {title}" for title, tests in sorted_tests.items())
    print(f"{how}: {len(outcome.found)} tests, {counts}")
    return 1 if sorted_tests["failed"] or not sorted_tests["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
