"""Commands on a disk that is full, or cannot be written: `unshare --mount --map-root-user python full_disk.py`.

    full_disk.py COMMAND MODEL CHECKPOINT PICTURE PLACE RESULT.json [--points 30]

PLACE is an empty folder where small tmpfs of many sizes are mounted, in a mount namespace of this process alone. The
command runs once with room enough, then with less and less, then with too few inodes, then on a file system that was
remounted read-only, each time from the same old files. RESULT.json gets one line per run that could not end well.
"""

import argparse
import contextlib
import functools
import hashlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT), *filter(None, [os.environ.get("EXTRA_PATH")])]

from qlseg_hf import QLSegForSemanticSegmentation, QLSegImageProcessor, load_picture, segment  # noqa: E402
from qlseg_hf.cli.errors import exit_status  # noqa: E402
from qlseg_hf.cli.main import run  # noqa: E402
from qlseg_hf.export import compare  # noqa: E402
from qlseg_hf.export import onnx as onnx_model  # noqa: E402

PAGE = 4096


def mount(place: Path, *options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "none", place], check=True)


def unmount(place: Path) -> None:
    subprocess.run(["umount", "--lazy", place], check=True)


def tree(place: Path) -> dict[str, str]:
    """sha256 of every file, and every folder, by path."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


@dataclass
class Command:
    """One command: `prepare` puts old files into PLACE, `run` gives its exit status.

    `check` raises if what a run that ended well has left is not whole. `partly`: it writes several independent
    results, so that those before the disk was full may be there.
    """

    run: Callable[[argparse.Namespace], int]
    prepare: Callable[[argparse.Namespace], object] = lambda args: None
    check: Callable[[argparse.Namespace], object] = lambda args: None
    partly: bool = False


def load_pair(args, **settings) -> tuple[QLSegForSemanticSegmentation, QLSegImageProcessor]:
    processor = QLSegImageProcessor.from_pretrained(args.model, **settings)
    return QLSegForSemanticSegmentation.from_pretrained(args.model), processor


def save_old(args) -> None:
    for part in load_pair(args):
        part.save_pretrained(args.place / "net")
    (args.place / "net" / "notes.txt").write_text("mine")


def save_new(args) -> int:
    """`save_pretrained` of model and processor over an older model."""
    model, processor = load_pair(args, window_size=700)
    with torch.no_grad():
        model.class_head.bias += 1
    return exit_status("save", lambda: [part.save_pretrained(args.place / "net") for part in (model, processor)])


def prepare_pictures(args) -> None:
    (args.place / "out" / "labels").mkdir(parents=True)
    (args.place / "out" / "labels" / "one.png").write_bytes(b"old")
    for name in ("one", "two"):
        Image.fromarray(load_picture(args.picture)).save(args.work / f"{name}.png")


def predict(args) -> int:
    pictures = [args.work / "one.png", args.work / "two.png"]
    return run(["predict", args.model, *pictures, "--output", args.place / "out", "--workers", 0])


def check_predictions(args) -> None:
    """What was done before the disk was full is not done again, and nothing is missing."""
    assert {path.name for path in (args.place / "out" / "labels").iterdir()} == {"one.png", "two.png"}


def prepare_evaluation(args) -> None:
    model, processor = load_pair(args)
    for number in range(2):
        picture, path = (
            load_picture(args.picture)[:, 7 * number :],
            args.work / "data/images/validation" / f"{number}.png",
        )
        if not path.exists():
            labels = segment(model, processor, picture)[0].numpy() + processor.do_reduce_labels
            labels[:9] = labels[9:18]
            for array, place in ((picture, path), (labels, args.work / "data/annotations/validation" / path.name)):
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.astype("uint8")).save(place)
    (args.place / "net").mkdir()
    for path in args.model.iterdir():
        if path.name != "README.md":
            (args.place / "net" / path.name).symlink_to(path)
    (args.place / "net" / "README.md").write_text("# Old card\n")
    (args.place / "scores.json").write_text('{"miou": 0}\n')


def evaluate(args) -> int:
    """JSON, report, state and the card of the model."""
    command = ["evaluate", args.place / "net", "--data", args.work / "data", "--card"]
    return run([*command, "--output", args.place / "scores.json", "--report", args.place / "report"])


def check_scores(args) -> None:
    assert json.loads((args.place / "scores.json").read_text())["num_pictures"] == 2


def export(args) -> int:
    """The graph is made once, and the comparison, which writes nothing, left out. File, then report."""
    if not hasattr(onnx_model.onnx_program, "cache_info"):
        onnx_model.onnx_program = functools.cache(onnx_model.onnx_program)
        compare.load_network = functools.cache(compare.load_network)
        compare.report = lambda model, path, runtime: {"bytes": path.stat().st_size}
    return run(["export", args.model, args.place / "net.onnx"])


def draw_scenes(args) -> int:
    return run(["scenes", args.place / "sub" / "scenes", "--train", 3, "--validation", 2, "--size", 64])


COMMANDS = {
    "convert": Command(
        lambda args: run(["convert", args.checkpoint, args.place / "sub" / "out"]),
        check=lambda args: QLSegForSemanticSegmentation.from_pretrained(args.place / "sub" / "out"),
    ),
    "save": Command(save_new, save_old, partly=True),  # the model may be the new one, and the processor the old
    "predict": Command(predict, prepare_pictures, check_predictions, partly=True),
    "evaluate": Command(evaluate, prepare_evaluation, check_scores, partly=True),
    "export": Command(
        export,
        lambda args: (args.place / "net.onnx").write_text("old"),
        lambda args: onnx_model.OnnxQLSeg.from_pretrained(args.place / "net.onnx"),
        partly=True,
    ),
    "quantize": Command(lambda args: run(["quantize", args.model, args.place / "small"])),
    "scenes": Command(draw_scenes),
}


def prepare(args) -> None:
    (args.place / "others.txt").write_text("of somebody else")
    COMMANDS[args.command].prepare(args)


def attempt(args: argparse.Namespace, options: list[str], read_only: bool = False) -> dict:
    """One run on a fresh file system with `options` for its size, over the old files."""
    place, command = args.place, COMMANDS[args.command]
    mount(place, "size=64m")
    try:
        prepare(args)
        before = tree(place)
        subprocess.run(["mount", "-o", ",".join(["remount", *options, *["ro"] * read_only]), place], check=True)
        printed = io.StringIO()
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
            try:
                status = command.run(args)
            except BaseException as error:
                status = f"{type(error).__name__}: {error}"
        after = tree(place)
        if status == 0:
            command.check(args)
    finally:
        unmount(place)
    lines = [line for line in printed.getvalue().replace("\r", "\n").splitlines() if "%|" not in line and line.strip()]
    return {"options": options, "status": status, "stderr": lines, "before": before, "after": after}


def used(place: Path) -> tuple[int, int]:
    """Bytes and inodes that are taken."""
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize, found.f_files - found.f_ffree


def problems(run: dict, final: dict[str, str], partly: bool) -> list[str]:
    """What is wrong with a run that had no room."""
    found, before = [], run["before"]
    # folders that were made for the result stay, empty
    after = {n: v for n, v in run["after"].items() if v != "folder" or n in before or ".partial-" in n}
    if run["status"] != 1:
        found.append(f"status {run['status']}")
    if len(run["stderr"]) != 1 or "Traceback" in "".join(run["stderr"]):
        found.append("not one sentence")
    if not partly and after != before:
        found.append("files changed")
    for name, digest in after.items():
        whole = {before.get(name), final.get(name)}
        # seconds and state of an evaluation differ from run to run: the file is looked into instead
        if digest not in whole and not name.startswith("scores.json.state.") and name not in VARYING:
            found.append(f"{name} is neither old nor new")
        if ".partial-" in name:
            found.append(f"{name} is left")
    return found + [f"{name} is gone" for name in before if name not in after]


VARYING = ("out/manifest.jsonl", "scores.json", "net/README.md", "net_report.json")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=COMMANDS)
    for name in ("model", "checkpoint", "picture", "place", "result"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--points", type=int, default=30)
    args = parser.parse_args()
    args.work = args.place.with_name("work")  # outside the full disk
    args.work.mkdir()

    mount(args.place, "size=64m")
    prepare(args)
    low = used(args.place)
    unmount(args.place)
    good = attempt(args, [])
    assert good["status"] == 0, good
    # the least that suffices, by halving
    least = []
    for number, unit in ((0, PAGE), (1, 1)):
        short, enough = low[number] // unit, 64 * 2**20 // PAGE if number == 0 else low[1] + 200
        while enough - short > 1:
            middle = (short + enough) // 2
            done = attempt(args, [f"size={middle * PAGE}" if number == 0 else f"nr_inodes={middle}"])
            short, enough = (short, middle) if done["status"] == 0 else (middle, enough)
        least.append((low[number] // unit, enough))
    (pages, enough_pages), (inodes, enough_inodes) = least
    step = max(1, (enough_pages - pages) / args.points)
    sizes = sorted({int(pages + step * i) for i in range(args.points)} & set(range(pages, enough_pages)))
    counts = range(inodes, enough_inodes, max(1, (enough_inodes - inodes) // max(1, args.points // 3)))
    runs = [[f"size={size * PAGE}"] for size in sizes] + [[f"nr_inodes={count}"] for count in counts]
    start, tried, failed = time.perf_counter(), 0, []
    for number, options in enumerate([*runs, []]):
        run = attempt(args, options, read_only=number == len(runs))
        if run["status"] == 0:  # by chance a little less room was needed
            continue
        tried += 1
        if found := problems(run, good["after"], COMMANDS[args.command].partly):
            failed.append({"options": options, "found": found, "stderr": run["stderr"][-3:], "status": run["status"]})
    result = {"tried": tried, "survived": tried - len(failed), "failed": failed, "least": least}
    args.result.write_text(json.dumps(result | {"seconds": time.perf_counter() - start}, indent=1))


if __name__ == "__main__":
    main()
