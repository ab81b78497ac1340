#!/usr/bin/env python3
"""The tests, but slow ones and faults, on the oldest and newest versions that setup.cfg allows, and without extras.

    make versions    # builds .venv/oldest and .venv/newest, or brings them up to date

- oldest: every requirement of setup.cfg, all extras, at exactly its floor; what these require in turn is pip's choice.
- newest: the same requirements at pip's choice, without constraints.txt.
- without all: none of `OPTIONAL` is there, nor what requires it.
- without one: the files of tests/ that name the package, without that one alone.

Absent means not installed, for the processes that tests start too: such an environment links to each package of
"newest" but those. Gradio, torchao and OpenVINO lie in folders apart, as in the Makefile's environment: gradio wants
an older Pillow and a newer huggingface_hub than the rest, torchao writes to stderr at every import of transformers,
and OpenVINO comes without what reports its use. The copies have none of them. pip needs an index (PIP_EXTRA_INDEX_URL
and the like are respected); with CUDA builds of torch the environments take 13 GB. Exit status 1 if a test failed, or
if "oldest" or "newest" skipped one for want of a package.
"""

import configparser
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / ".venv"
# what can be absent: its distributions, and by what a file of tests names it
OPTIONAL = {
    "torchvision": (["torchvision"], "torchvision|timm"),
    "OpenCV": (["opencv-python-headless"], "cv2"),
    "peft": (["peft"], "peft|lora"),
    "onnx": (["onnx", "onnxruntime"], "onnx"),
    "gradio": (["gradio"], "gradio"),
    "datasets": (["datasets", "evaluate"], "import datasets|import evaluate|importorskip.*datasets"),
}
REQUIREMENT = r"([\w-]+) (>=|==) ([\w.]+)(?:;.*)?"


def requirements() -> tuple[dict[str, str], list[str]]:
    """Name to floor of everything that setup.cfg asks for, all extras included; and the extras.

    ValueError if a name has two floors, of which pip could install one alone.
    """
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    extras = parser["options.extras_require"]
    lines = "\n".join([parser["options"]["install_requires"], *extras.values()]).split("\n")
    found = [re.fullmatch(REQUIREMENT, line).groups() for line in lines if line and not line.startswith("qlseg-hf[")]
    floors = {}
    for name, _, floor in found:
        if floors.setdefault(name, floor) != floor:
            raise ValueError(f"setup.cfg asks for {name} {floors[name]} and {floor}")
    return floors, list(extras)


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(*folders: Path) -> dict[str, metadata.Distribution]:
    """By name; of two the one in the earlier folder."""
    found = {}
    for one in metadata.distributions(path=[str(folder) for folder in folders]):
        found.setdefault(plain(one.metadata["Name"]), one)
    return found


def site(environment: Path) -> Path:
    return environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def build(name: str, at_floor: bool) -> Path:
    """The environment, made or brought up to date by pip."""
    environment = PLACE / name
    if not site(environment).is_dir():
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
    floors, extras = requirements()
    exact = {name: f"{name} == {floor}\n" for name, floor in floors.items()} if at_floor else {}
    constraints, constraints_apart = environment / "constraints.txt", environment / "constraints-apart.txt"
    constraints.write_text("".join(exact.values()))
    constraints_apart.write_text("".join(line for name, line in exact.items() if name != "huggingface_hub"))
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--upgrade"]
    together = ",".join(extra for extra in extras if extra not in ("app", "docs", "openvino", "quantize"))
    command = ["--upgrade-strategy", "eager", "--constraint", constraints, "--editable", f"{ROOT}[{together}]"]
    subprocess.run([*pip, *command], check=True)
    for folder, names, options in (
        ("app", ("gradio", "transformers", "huggingface_hub", "pillow", "numpy"), []),
        ("torchao", ("torchao",), ["--no-deps"]),
        ("openvino", ("openvino",), ["--no-deps"]),
    ):
        shutil.rmtree(environment / folder, ignore_errors=True)
        command = ["--constraint", constraints_apart, "--target", environment / folder, *options]
        subprocess.run([*pip, *command, *(f"{name} >= {floors[name]}" for name in names)], check=True)
    return environment


def without(names: list[str], environment: Path) -> Path:
    """An environment that links to each package of `environment` but those, and what requires them."""
    place, absent = PLACE / "without", {plain(name) for name in names}
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", place], check=True)
    found = installed(site(environment))
    requires = {
        name: {plain(re.match(r"[\w.-]+", text)[0]) for text in one.requires or [] if "extra ==" not in text}
        for name, one in found.items()
        if name != "qlseg-hf"
    }
    while more := {name for name, wanted in requires.items() if wanted & absent} - absent:
        absent |= more
    hidden = {file.parts[0] for name in absent & set(found) for file in found[name].files}
    for entry in site(environment).iterdir():
        if entry.name not in hidden:
            (site(place) / entry.name).symlink_to(entry)
    return place


def run(environment: Path, label: str, files: list[Path]) -> dict:
    """pytest's counts of the fast tests of `files`, all if there are none."""
    report = PLACE / "versions.xml"
    report.unlink(missing_ok=True)
    print(f"\n{label}: {', '.join(file.name for file in files) or 'all'}", flush=True)
    options = ["-q", "-m", "not slow and not gpu and not faults", "-p", "no:cacheprovider", "--junitxml", report]
    subprocess.run([environment / "bin" / "python", "-m", "pytest", *options, *files], cwd=ROOT)
    if not report.is_file():
        sys.exit(f"{label}: pytest ended without a report; see above")
    suite = ElementTree.parse(report).getroot().find("testsuite")
    counts = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    reasons = [skipped.get("message") for skipped in suite.iter("skipped")]
    counts["missing"] = [text for text in reasons if re.search("could not import|not installed", text)]
    counts["minutes"] = float(suite.get("time")) / 60
    return counts


def main() -> int:
    oldest, newest = build("oldest", at_floor=True), build("newest", at_floor=False)
    rows = [("oldest", run(oldest, "oldest", [])), ("newest", run(newest, "newest", []))]
    absent = without([name for names, _ in OPTIONAL.values() for name in names], newest)
    rows.append(("without all", run(absent, "without all of them", [])))
    for label, (names, pattern) in OPTIONAL.items():
        files = [file for file in sorted(ROOT.glob("tests/**/test_*.py")) if re.search(pattern, file.read_text())]
        rows.append((f"without {label}", run(without(names, newest), f"without {label}", files)))

    versions = [
        installed(site(place), place / "app", place / "torchao", place / "openvino") for place in (oldest, newest)
    ]
    print(f"\n{'package':26}{'floor':>12}{'oldest':>16}{'newest':>16}")
    for name, floor in {**requirements()[0], "torchvision": "-"}.items():
        print(f"{name:26}{floor:>12}" + "".join(f"{found[plain(name)].version:>16}" for found in versions))
    print(f"\nPython {sys.version.split()[0]}")
    print(f"{'environment':22}" + "".join(f"{name:>10}" for name in ("passed", "failed", "skipped", "minutes")))
    for label, counts in rows:
        failed = counts["failures"] + counts["errors"]
        passed = counts["tests"] - failed - counts["skipped"]
        print(f"{label:22}{passed:>10}{failed:>10}{counts['skipped']:>10}{counts['minutes']:>10.1f}")
    missing = [text for label, counts in rows if label in ("oldest", "newest") for text in counts["missing"]]
    for text in missing:
        print(f"skipped for want of a package that should be there: {text}")
    failed = any(counts["failures"] + counts["errors"] or not counts["tests"] for _, counts in rows)
    return int(failed or bool(missing))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"versions.py: this failed with status {error.returncode}: {' '.join(map(str, error.cmd))}")
