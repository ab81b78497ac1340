#!/usr/bin/env python3
"""The way from a checkpoint of the published implementation to masks, and to a fine-tuned model, within a minute.

    python examples/demo.py [--output build/demo] [--max_steps 100]

Converts a small checkpoint in the released format (it comes with the tests), loads the folder with `from_pretrained`,
segments a picture through `pipeline("image-segmentation")` and writes an overlay. Then it draws scenes with other
labels, fine-tunes the network on them and shows mIoU before and after.
"""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

# two cores: one trains and one draws crops; more threads gain nothing here and wait for each other on a busy machine
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from transformers import AutoModelForSemanticSegmentation, pipeline, set_seed
from transformers.utils.logging import disable_progress_bar

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from qlseg_hf import QLSegImageProcessor, load_picture  # noqa: E402
from qlseg_hf.cli.main import run  # noqa: E402
from qlseg_hf.data.datasets import open_dataset  # noqa: E402
from qlseg_hf.data.label_names import read_label_file  # noqa: E402
from qlseg_hf.evaluation.evaluator import evaluate_samples  # noqa: E402
from qlseg_hf.utils.visualization import draw_overlay, label_colors, save_picture  # noqa: E402

FIXTURE = ROOT / "tests" / "fixtures" / "a"


def run_command(*arguments) -> None:
    """Run `qlseg` in a process of its own, which shows its bars on a terminal and says nothing elsewhere.

    Raises:
        SystemExit: it failed; what it had to say was printed.
    """
    shown = None if sys.stderr.isatty() else subprocess.PIPE
    command = [sys.executable, "-m", "qlseg_hf", *map(str, arguments)]
    done = subprocess.run(command, stdout=shown, stderr=shown, text=True, cwd=ROOT)
    if done.returncode:
        print(done.stdout or "", done.stderr or "", sep="", end="", file=sys.stderr)
        sys.exit(done.returncode)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "demo")
    parser.add_argument("--max_steps", type=int, default=100)
    args = parser.parse_args()
    output, folder, picture = args.output, args.output / "model", FIXTURE / "large.png"
    logging.getLogger("qlseg_hf").setLevel(logging.ERROR)  # that labels are new is what the demo is about
    disable_progress_bar()
    for name in ("model", "scenes", "run"):
        shutil.rmtree(output / name, ignore_errors=True)

    print(f"1. convert {FIXTURE.relative_to(ROOT) / 'checkpoint.pth'}")
    if run(["convert", FIXTURE / "checkpoint.pth", folder]):
        return 1

    print("2. load it with from_pretrained")
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    print(
        f"   {type(model).__name__}, {model.num_parameters() / 1e6:.1f} M parameters, {model.config.num_labels} labels"
    )

    print(f'3. pipeline("image-segmentation") on {picture.relative_to(ROOT)}')
    segments = pipeline("image-segmentation", model=str(folder))(picture)
    label_map = np.full(segments[0]["mask"].size[::-1], -1)
    for segment in segments:
        mask = np.asarray(segment["mask"]) > 0
        label_map[mask] = model.config.label2id[segment["label"]]
        print(f"   {segment['label']}: {100 * mask.mean():.1f} %")

    overlay = draw_overlay(load_picture(picture), label_map, model.config.id2label, label_colors(model.config))
    save_picture(overlay, output / "overlay.png")
    print(f"4. overlay with legend: {output / 'overlay.png'}")

    print("5. draw scenes with other labels, and fine-tune on them")
    scenes, run_folder = output.absolute() / "scenes", output.absolute() / "run"
    run_command("scenes", scenes, "--train", "100", "--validation", "20")
    labels = dict(enumerate(read_label_file(scenes / "labels.json")[0]))
    set_seed(0)  # queries of new labels are fresh
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, id2label=labels, reuse_labels=True)
    processor = QLSegImageProcessor.from_pretrained(folder, do_reduce_labels=False)
    before = evaluate_samples(model, processor, open_dataset(scenes, "validation"), progress=False).result["miou"]
    overrides = {
        "model": folder.absolute(),
        "data": scenes,
        "label_names": scenes / "labels.json",
        "output_dir": run_folder,
        "max_steps": args.max_steps,
    }
    run_command("train", "demo", *(f"--{key}={value}" for key, value in overrides.items()))
    after = json.loads((run_folder / "evaluations.jsonl").read_text().splitlines()[-1])["miou"]
    print(f"6. mIoU on held-out scenes: {100 * before:.1f} % before, {100 * after:.1f} % after")
    print(f"   model: {run_folder / 'best'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
