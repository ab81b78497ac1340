"""The installed package, far from the checkout: built as people get it, and each command run once."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import FIXTURES, ROOT
from exports import SMALL
from networks import tiny_config, varied_model
from programs import RUN_ALL

from qlseg_hf import QLSegImageProcessor, __version__

BUILD = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


def call(*command, cwd: Path, **variables: str) -> str:
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, cwd=cwd, env=os.environ | variables, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from the source distribution, which is built from the files that git knows, without an index."""
    place = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if name.startswith("qlseg_hf/") or "/" not in name:
            (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "source" / name).write_bytes((ROOT / name).read_bytes())
    call(sys.executable, "-c", BUILD, place, cwd=place / "source")
    (archive,) = place.glob("*.tar.gz")
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check")
    call(sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", place, archive, cwd=place)
    (wheel,) = place.glob("*.whl")
    return wheel


def test_the_wheel_holds_all_of_the_package_and_nothing_else(wheel):
    listed = subprocess.run(["git", "ls-files", "qlseg_hf"], capture_output=True, text=True, cwd=ROOT, check=True)
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == set(listed.stdout.split()) and {"qlseg_hf/py.typed", "qlseg_hf/recipes/tiny.yaml"} < names


@pytest.fixture(scope="module")
def qlseg(wheel, tmp_path_factory):
    """Runs `qlseg ARGUMENTS` of the installed wheel in an empty folder, and returns what it prints."""
    target, place = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("elsewhere")
    options = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check", "--target", target)
    call(sys.executable, "-m", "pip", "install", *options, wheel, cwd=place)
    own = {"PYTHONPATH": str(target), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

    def run(*arguments, program=(target / "bin" / "qlseg",)) -> str:
        return call(*program, *arguments, cwd=place, **own)

    def run_all(*commands) -> str:
        """The same of several in one process, which imports torch once, until one fails."""
        words = json.dumps([[*map(str, command)] for command in commands])
        printed = run("-c", RUN_ALL, words, program=(sys.executable,))
        assert Path(printed.splitlines()[0]).is_relative_to(target)
        return printed

    run.place, run.all = place, run_all
    return run


def test_console_script(qlseg):
    shown = qlseg("--help")
    for name in ("convert", "check", "train", "evaluate", "predict", "export", "quantize", "app", "scenes"):
        assert f"\n  {name} " in shown


def test_from_a_checkpoint_to_scores_and_a_graph(qlseg):
    """convert, scenes, check, train, evaluate, predict, in the order of the README; then export."""
    for name in ("cv2", "onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    network = varied_model(tiny_config(**SMALL))
    for part in (network, QLSegImageProcessor(size=64, window_size=64, window_stride=48)):
        part.save_pretrained(qlseg.place / "plain")
    recipe = ("--data", "data", "--model", "model", "--label_names", "data/labels.json", "--output_dir", "run")
    sizes = ("--crop_size", 64, "--total_batch_size", 2, "--per_device_batch_size", 2, "--num_workers", 0)
    steps = ("--max_steps", 2, "--warmup_steps", 1, "--eval_steps", 2, "--save_steps", 2)
    shown = qlseg.all(
        ["--version"],
        ["train", "tiny", "--help"],
        ["app", "--help"],
        ["convert", FIXTURES / "b" / "checkpoint.pth", "model"],
        ["scenes", "data", "--train", 6, "--validation", 2, "--size", 48],
        ["check", "demo", *recipe],
        ["train", "demo", *recipe, *sizes, *steps],
        ["evaluate", "run/best", "--data", "data", "--split", "validation", "--output", "miou.json"],
        ["predict", "run/best", FIXTURES / "b" / "wide.png", "--output", "out"],
        ["export", "plain", "plain.onnx", "--without_logits"],
    )
    assert "--max_steps" in shown and "MODEL" in shown and f"version {__version__}" in shown
    for name in ("run/best/model.safetensors", "run/curves.png", "miou.json", "out/overlay/wide.png", "plain.onnx"):
        assert (qlseg.place / name).is_file(), name
    assert (qlseg.place / "plain_report.json").is_file()
