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


class Command:
    """One command: `prepare` puts old files into PLACE, `run` gives its exit status.

    `partly`: it writes several independent results, so that those before the disk was full may be there.
    """

    partly = False

    def __init__(self, args: argparse.Namespace, work: Path):
        self.model, self.checkpoint, self.picture, self.place = args.model, args.checkpoint, args.picture, args.place
        self.work = work  # outside the full disk

    def prepare(self) -> None:
        (self.place / "others.txt").write_text("of somebody else")

    def check(self) -> None:
        """Raises if what a run that ended well has left is not whole."""


class Convert(Command):
    def run(self) -> int:
        return run(["convert", self.checkpoint, self.place / "sub" / "out"])

    def check(self) -> None:
        QLSegForSemanticSegmentation.from_pretrained(self.place / "sub" / "out")


class Save(Command):
    """`save_pretrained` of model and processor over an older model."""

    @functools.cached_property
    def pairs(self):
        old = QLSegForSemanticSegmentation.from_pretrained(self.model), QLSegImageProcessor.from_pretrained(self.model)
        new = QLSegForSemanticSegmentation.from_pretrained(self.model), QLSegImageProcessor(window_size=700)
        with torch.no_grad():
            new[0].class_head.bias += 1
        return old, new

    def save(self, model, processor) -> None:
        model.save_pretrained(self.place / "net")
        processor.save_pretrained(self.place / "net")

    def prepare(self) -> None:
        super().prepare()
        self.save(*self.pairs[0])
        (self.place / "net" / "notes.txt").write_text("mine")

    def run(self) -> int:
        return exit_status("save", self.save, *self.pairs[1])

    partly = True  # the model may be the new one, and the processor the old


class Predict(Command):
    partly = True

    def prepare(self) -> None:
        super().prepare()
        (self.place / "out" / "labels").mkdir(parents=True)
        (self.place / "out" / "labels" / "one.png").write_bytes(b"old")
        for name in ("one", "two"):
            Image.fromarray(load_picture(self.picture)).save(self.work / f"{name}.png")

    def run(self) -> int:
        pictures = [self.work / "one.png", self.work / "two.png"]
        return run(["predict", self.model, *pictures, "--output", self.place / "out", "--workers", 0])

    def check(self) -> None:
        """What was done before the disk was full is not done again, and nothing is missing."""
        assert {path.name for path in (self.place / "out" / "labels").iterdir()} == {"one.png", "two.png"}


class Evaluate(Command):
    """JSON, report, state and the card of the model."""

    partly = True

    def prepare(self) -> None:
        super().prepare()
        processor = QLSegImageProcessor.from_pretrained(self.model)
        model = QLSegForSemanticSegmentation.from_pretrained(self.model)
        for number in range(2):
            for part in ("images", "annotations"):
                (self.work / "data" / part / "validation").mkdir(parents=True, exist_ok=True)
            picture = load_picture(self.picture)[:, 7 * number :]
            path = self.work / "data" / "images" / "validation" / f"{number}.png"
            if not path.exists():
                labels = segment(model, processor, picture)[0].numpy() + processor.do_reduce_labels
                labels[:9] = labels[9:18]
                Image.fromarray(picture).save(path)
                Image.fromarray(labels.astype("uint8")).save(self.work / "data/annotations/validation" / path.name)
        (self.place / "net").mkdir()
        for path in self.model.iterdir():
            if path.name != "README.md":
                (self.place / "net" / path.name).symlink_to(path)
        (self.place / "net" / "README.md").write_text("# Old card\n")
        (self.place / "scores.json").write_text('{"miou": 0}\n')

    def run(self) -> int:
        command = ["evaluate", self.place / "net", "--data", self.work / "data", "--card"]
        return run([*command, "--output", self.place / "scores.json", "--report", self.place / "report"])

    def check(self) -> None:
        assert json.loads((self.place / "scores.json").read_text())["num_pictures"] == 2


class ExportOnnx(Command):
    partly = True  # file, then report

    def prepare(self) -> None:
        super().prepare()
        (self.place / "net.onnx").write_text("old")

    def run(self) -> int:
        """The graph is made once, and the comparison, which writes nothing, left out."""
        if not hasattr(onnx_model.onnx_program, "cache_info"):
            onnx_model.onnx_program = functools.cache(onnx_model.onnx_program)
            compare.load_network = functools.cache(compare.load_network)
            compare.report = lambda model, path, runtime: {"bytes": path.stat().st_size}
        return run(["export", self.model, self.place / "net.onnx"])

    def check(self) -> None:
        onnx_model.OnnxQLSeg.from_pretrained(self.place / "net.onnx")


class Quantize(Command):
    def run(self) -> int:
        return run(["quantize", self.model, self.place / "small"])


class MakeScenes(Command):
    def run(self) -> int:
        command = ["scenes", self.place / "sub" / "scenes"]
        return run([*command, "--train", 3, "--validation", 2, "--size", 64])


COMMANDS = {
    "convert": Convert,
    "save": Save,
    "predict": Predict,
    "evaluate": Evaluate,
    "export": ExportOnnx,
    "quantize": Quantize,
    "scenes": MakeScenes,
}


def attempt(command: Command, options: list[str], read_only: bool = False) -> dict:
    """One run on a fresh file system with `options` for its size, over the old files."""
    place = command.place
    mount(place, "size=64m")
    try:
        command.prepare()
        before = tree(place)
        subprocess.run(["mount", "-o", ",".join(["remount", *options, *["ro"] * read_only]), place], check=True)
        printed = io.StringIO()
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
            try:
                status = command.run()
            except BaseException as error:
                status = f"{type(error).__name__}: {error}"
        after = tree(place)
        if status == 0:
            command.check()
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
    found = []
    # folders that were made for the result stay, empty
    run = run | {
        "after": {
            name: v
            for name, v in run["after"].items()
            if v != "folder" or name in run["before"] or ".partial-" in name
        }
    }
    if run["status"] != 1:
        found.append(f"status {run['status']}")
    if len(run["stderr"]) != 1 or "Traceback" in "".join(run["stderr"]):
        found.append("not one sentence")
    if not partly and run["after"] != run["before"]:
        found.append("files changed")
    for name, digest in run["after"].items():
        whole = {run["before"].get(name), final.get(name)}
        # seconds and state of an evaluation differ from run to run: the file is looked into instead
        if digest not in whole and not name.startswith("scores.json.state.") and name not in VARYING:
            found.append(f"{name} is neither old nor new")
        if ".partial-" in name:
            found.append(f"{name} is left")
    found += [f"{name} is gone" for name in run["before"] if name not in run["after"]]
    return found


VARYING = ("out/manifest.jsonl", "scores.json", "net/README.md", "net_report.json")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=COMMANDS)
    for name in ("model", "checkpoint", "picture", "place", "result"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--points", type=int, default=30)
    args = parser.parse_args()
    work = args.place.with_name("work")
    work.mkdir()
    command = COMMANDS[args.command](args, work)

    mount(args.place, "size=64m")
    command.prepare()
    low = used(args.place)
    unmount(args.place)
    good = attempt(command, [])
    assert good["status"] == 0, good
    # the least that suffices, by halving
    least = []
    for number, unit in ((0, PAGE), (1, 1)):
        short, enough = low[number] // unit, 64 * 2**20 // PAGE if number == 0 else low[1] + 200
        while enough - short > 1:
            middle = (short + enough) // 2
            done = attempt(command, [f"size={middle * PAGE}" if number == 0 else f"nr_inodes={middle}"])
            short, enough = (short, middle) if done["status"] == 0 else (middle, enough)
        least.append((low[number] // unit, enough))
    (pages, enough_pages), (inodes, enough_inodes) = least
    step = max(1, (enough_pages - pages) / args.points)
    sizes = sorted({int(pages + step * i) for i in range(args.points)} & set(range(pages, enough_pages)))
    counts = range(inodes, enough_inodes, max(1, (enough_inodes - inodes) // max(1, args.points // 3)))
    runs = [[f"size={size * PAGE}"] for size in sizes] + [[f"nr_inodes={count}"] for count in counts]
    start, tried, failed = time.perf_counter(), 0, []
    for number, options in enumerate([*runs, []]):
        run = attempt(command, options, read_only=number == len(runs))
        if run["status"] == 0:  # by chance a little less room was needed
            continue
        tried += 1
        if found := problems(run, good["after"], command.partly):
            failed.append({"options": options, "found": found, "stderr": run["stderr"][-3:], "status": run["status"]})
    result = {"tried": tried, "survived": tried - len(failed), "failed": failed, "least": least}
    args.result.write_text(json.dumps(result | {"seconds": time.perf_counter() - start}, indent=1))


if __name__ == "__main__":
    main()
