"""What pseudo labels of `qlseg autolabel` add to few labelled images, beside as many steps on those alone.

    python benchmarks/autolabel.py --data CAMVID --backbone VIT --ignore_index 11 [--labelled 40] [--seeds 0,1,2]
        [--steps 400] [--crop_size 224] [--confidences 0.7] [--work DIR] [--output FILE.json]

DATA holds train/, trainannot/, val/ and valannot/. For each seed that many training images, drawn by the seed, keep
their label maps, and the others become a folder of images alone. Then: `teacher`, a fresh head trained on the labelled
ones; `student`, another fresh head trained for as many steps on both, the pseudo labels making a share of each batch
that the recipe decides; `all labels`, one that is trained for as many steps with all label maps, which is about the
most that pseudo labels could give; all by the defaults of `qlseg train`. mIoU is on val, after the last step.

How well the confidence tells right from wrong is counted on the images whose label maps were taken away, which
nothing else sees. What is done already in `--work` is not done again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

LEAST = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # confidences that are tried on the pixels whose labels are known


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        os.symlink(source.resolve(), target)


def divide(data: Path, place: Path, num_labelled: int, seed: int) -> list[str]:
    """`labelled`, in the layout of DATA, and `unlabelled`, a folder of images; returns the stems of these."""
    pictures = {path.stem: path for path in sorted((data / "train").iterdir())}
    labelled = set(np.random.default_rng(seed).permutation(list(pictures))[:num_labelled])
    for stem, path in pictures.items():
        if stem in labelled:
            link(path, place / "labelled" / "train" / path.name)
            link(data / "trainannot" / f"{stem}.png", place / "labelled" / "trainannot" / f"{stem}.png")
        else:
            link(path, place / "unlabelled" / path.name)
    for path in [*(data / "val").iterdir(), *(data / "valannot").iterdir()]:
        link(path, place / "labelled" / path.parent.name / path.name)
    for path in data.glob("*.txt"):
        link(path, place / "labelled" / path.name)
    return [stem for stem in pictures if stem not in labelled]


def qlseg(*words) -> float:
    """Run a command; seconds of processor time of it and its workers."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "qlseg_hf", *map(str, words)], check=True)
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


def train(args: argparse.Namespace, data: Path, place: Path, name: str, seed: int, *words) -> dict:
    """mIoU of a run after its last step, and its processor time."""
    output, result = place / name, place / f"{name}.json"
    if not result.is_file():
        options = {"backbone": args.backbone, "ignore_index": args.ignore_index, "crop_size": args.crop_size}
        options |= {"max_steps": args.steps, "eval_steps": args.steps, "save_steps": args.steps, "seed": seed}
        options |= {"data": data, "output_dir": output, "num_workers": 1, "log_pictures": 0}
        seconds = qlseg("train", *(part for key, value in options.items() for part in (f"--{key}", value)), *words)
        last = json.loads((output / "evaluations.jsonl").read_text().splitlines()[-1])
        iou = {row["label"]: row["iou"] for row in last["per_label"]}
        result.write_text(json.dumps({"miou": last["miou"], "labels": iou, "cpu_seconds": seconds}))
    return json.loads(result.read_text())


def weigh_confidence(args: argparse.Namespace, data: Path, labels: Path, stems: list[str]) -> dict:
    """How right pseudo labels are, by confidence, from the label maps that were taken away.

    `error`: expected calibration error, the mean distance of confidence and share of right pixels in 15 bins of equal
    width. `least`: of the pixels of each confidence or more, their share of all, the share that is right, and their
    mIoU over the labels that occur.
    """
    names = (data / "names.txt").read_text().split()
    counts = np.zeros((256, len(names), len(names)), dtype=np.int64)  # by confidence: true, predicted
    for stem in stems:
        true = np.asarray(Image.open(data / "trainannot" / f"{stem}.png")).astype(int)
        predicted, sure = (np.asarray(Image.open(labels / kind / f"{stem}.png")) for kind in ("labels", "confidence"))
        known = true != args.ignore_index
        np.add.at(counts, (sure[known], true[known], predicted[known]), 1)
    total, right = counts.sum(axis=(1, 2)), counts[:, range(len(names)), range(len(names))].sum(axis=1)
    bins = np.minimum(np.arange(256) * 15 // 256, 14)
    error = 0.0
    for number in range(15):
        own = bins == number
        error += abs((total[own] * np.arange(256)[own] / 255).sum() - right[own].sum()) / total.sum()
    least = {}
    for confidence in LEAST:
        kept = counts[int(np.ceil(255 * confidence)) :].sum(axis=0)
        hits, union = np.diag(kept), kept.sum(axis=0) + kept.sum(axis=1) - np.diag(kept)
        least[confidence] = {
            "share": kept.sum() / total.sum(),
            "right": hits.sum() / max(kept.sum(), 1),
            "miou": float((hits[union > 0] / union[union > 0]).mean()) if union.any() else None,
            "labels": int((kept.sum(axis=1) > 0).sum()),
        }
    return {"error": float(error), "least": least}


def measure(args: argparse.Namespace, seed: int) -> dict:
    """All runs of one seed."""
    place = args.work / f"seed-{seed}"
    stems = divide(args.data, place, args.labelled, seed)
    found = {"seed": seed, "teacher": train(args, place / "labelled", place, "teacher", seed)}
    for confidence in args.confidences:
        pseudo = place / "pseudo"
        words = ("--data", place / "unlabelled", "--output", pseudo, "--workers", 0, "--confidence", confidence)
        qlseg("autolabel", "--model", place / "teacher" / "last", *words, *(["--flip"] if args.flip else []))
        report = json.loads((pseudo / "autolabel.json").read_text())
        found.setdefault("confidence", weigh_confidence(args, args.data, pseudo / ".predictions", stems))
        student = train(args, place / "labelled", place, f"student-{confidence}", seed, "--extra_data", pseudo)
        student |= {"share_kept": report["share_kept"], "images": report["num_images"]}
        student |= {"kept": {row["name"]: row["share_kept"] for row in report["labels"]}}
        found[f"student {confidence}"] = student
        print(f"seed {seed}: teacher {found['teacher']['miou']:.4f}, student {student['miou']:.4f} at {confidence}")
    found["all labels"] = train(args, args.data, place, "all", seed)
    return found


def summarise(runs: list[dict]) -> dict:
    """Mean and deviation of each row over the seeds, and of its distance to the teacher of the same seed."""
    rows = {}
    for name in [key for key in runs[0] if isinstance(runs[0][key], dict) and "miou" in runs[0][key]]:
        values = [run[name]["miou"] for run in runs if name in run]
        gains = [run[name]["miou"] - run["teacher"]["miou"] for run in runs if name in run]
        rows[name] = {"seeds": len(values), "miou": statistics.mean(values), "gain": statistics.mean(gains)}
        if len(values) > 1:
            rows[name] |= {"miou_deviation": statistics.stdev(values), "gain_deviation": statistics.stdev(gains)}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--ignore_index", type=int, default=255)
    parser.add_argument("--labelled", type=int, default=40)
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--crop_size", type=int, default=224)
    parser.add_argument("--confidences", type=lambda text: [float(part) for part in text.split(",")], default=[0.7])
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("runs/autolabel"))
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    runs, start = [], time.monotonic()
    for seed in args.seeds:
        runs.append(measure(args, seed))
        settings = {key: getattr(args, key) for key in ("labelled", "steps", "crop_size", "confidences", "flip")}
        result = {"settings": settings, "summary": summarise(runs), "runs": runs}
        result["minutes"] = (time.monotonic() - start) / 60
        if args.output is not None:  # after each seed, so that nothing measured is lost
            args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["summary"], indent=1))


if __name__ == "__main__":
    main()
