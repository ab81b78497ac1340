# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a head learns from little data in little time: QLSeg beside a linear head and its rivals.

    python benchmarks/learning --data FOLDER --backbone FOLDER (--steps N | --seconds S) --output FILE.json
        [--only linear,qlseg] [--seeds 0,1,2] [--ignore_index 11] [--short_side 480] [--crop 320] [--batch 4]
        [--threads 1] [--bf16] [--augmentation plain]

Every contestant gets the same batches of the product's own loader, and is evaluated alike: the validation split at its
own size, by windows as large as the crops of images whose short side is `--short_side`, as `segment` lays them, one
count of pixels over all. Files whose settings have no `evaluation` were measured on whole images. `--seconds` is time
of the processor divided by `--threads`, which other work on the machine hardly changes (on a GPU time of the clock);
loading is part of it, evaluations, one at each quarter (before the last of every fourth image), are not. `plain`
augmentation: scale 0.75 to 1.5 of the short side, crop, flip; `product`: what `qlseg train` does.

Results of FILE.json are kept and not measured again; beside it a table (.md) and curves (.png) are written.

dpt needs segmentation_models_pytorch, timm and torchvision on PYTHONPATH, eomt needs scipy.
"""

import apart  # noqa: F401

# isort: split
import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from contestants import ABLATIONS, OWN, Contestant, Study
from peers import PEERS
from report import draw_figure, write_table
from tqdm import tqdm

from qlseg_hf.data.augmentation import LONG_SIDE
from qlseg_hf.evaluation import confusion_counts, scores
from qlseg_hf.training.build import build_processor
from qlseg_hf.training.data import look_at_data, open_split, training_batches
from qlseg_hf.training.distributed import start_accelerator
from qlseg_hf.training.facts import data_facts, device_facts
from qlseg_hf.training.recipe import load_recipe
from qlseg_hf.utils.distributed import iterate_batches
from qlseg_hf.utils.files import write_atomically

CONTESTANTS = OWN | PEERS | ABLATIONS
QUARTERS = 4
EARLY_STRIDE = 4  # the evaluations before the last one read every fourth image
PILOT_STEPS = 8  # that say how many steps there will be in so many seconds; the first two are not timed
MANY_STEPS = 10_000_000  # that a loader is made for whose batches are limited by time
PACKAGES = ("torch", "transformers", "numpy", "accelerate", "segmentation-models-pytorch", "timm", "scipy")


@dataclass(frozen=True)
class Settings:
    """What the results of one file have in common; lengths in pixels."""

    steps: int | None
    seconds: float | None
    short_side: int
    crop: int
    batch: int
    threads: int
    bf16: bool
    augmentation: str
    evaluation: str = field(default="windows", init=False)


def main() -> None:
    args = parse_arguments()
    settings = Settings(**{entry.name: getattr(args, entry.name) for entry in fields(Settings) if entry.init})
    torch.set_num_threads(settings.threads)
    result = read_result(args.output, settings)
    study = open_study(args, settings)
    for seed in args.seeds:
        for name in args.only:
            if any((run["contestant"], run["seed"]) == (name, seed) for run in result["runs"]):
                continue
            try:
                run = measure(name, seed, study, settings)
            except ImportError as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                continue
            result = read_result(args.output, settings)  # another process may have written meanwhile
            result["runs"].append(run)
            write_atomically(args.output, (json.dumps(result, indent=1) + "\n").encode())
    if result["runs"]:
        write_atomically(args.output.with_suffix(".md"), write_table(result).encode())
        draw_figure(result, args.output.with_suffix(".png"))
        print(write_table(result))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--output", type=Path, required=True)
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--steps", type=int)
    budget.add_argument("--seconds", type=float)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(OWN | PEERS))
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0])
    parser.add_argument("--ignore_index", type=int)
    parser.add_argument("--short_side", type=int, default=480)
    parser.add_argument("--crop", type=int, default=320)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--augmentation", choices=("plain", "product"), default="plain")
    args = parser.parse_args()
    if unknown := set(args.only) - set(CONTESTANTS):
        parser.error(f"--only names {', '.join(sorted(unknown))}; there are {', '.join(CONTESTANTS)}")
    return args


def read_result(place: Path, settings: Settings) -> dict:
    """What FILE.json holds, or a new one. ValueError if it was measured with other settings."""
    if not place.is_file():
        return {"settings": asdict(settings), "runs": []}
    result = json.loads(place.read_text())
    if result["settings"] != asdict(settings):
        raise ValueError(f"{place} was measured with {result['settings']}, not {asdict(settings)}; name another file")
    return result


def open_study(args: argparse.Namespace, settings: Settings) -> Study:
    """The data, read and checked once as `qlseg train` does it, and what every contestant is given."""
    given = {
        "data": args.data,
        "backbone": args.backbone,
        "crop_size": settings.crop,
        "resize_box": [LONG_SIDE, settings.short_side],
        "total_batch_size": settings.batch,
        "per_device_batch_size": settings.batch,
        "num_workers": 0,
        "precision": "bf16" if settings.bf16 else "fp32",
        "output_dir": "unused",
        "resume": "none",
    }
    if args.ignore_index is not None:
        given["ignore_index"] = args.ignore_index
    if settings.augmentation == "plain":
        given |= {"scale_range": [0.75, 1.5], "cat_max_ratio": 1.0, "photometric": "false"}
    recipe = load_recipe(None, [f"--{key}={value}" for key, value in given.items()])
    facts, accelerator = data_facts(look_at_data(recipe)), start_accelerator(recipe)
    return Study(recipe, facts, device_facts(accelerator.device, 1), accelerator)


def measure(name: str, seed: int, study: Study, settings: Settings) -> dict:
    """Train a contestant, evaluate it at each quarter, and say everything about it that JSON can hold."""
    steps = settings.steps or pilot_steps(name, seed, study, settings)
    began, load = time.time(), os.getloadavg()
    contestant = start(name, seed, study, steps)
    curve = train(contestant, study, settings, steps)
    return {
        "contestant": name,
        "seed": seed,
        "encoder": contestant.encoder,
        "rates": contestant.rates,
        "parameters": sum(parameter.numel() for parameter in contestant.network.parameters()),
        "curve": curve,
        "clock_seconds": round(time.time() - began, 1),
        "load": [round(load[0], 2), round(os.getloadavg()[0], 2)],
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime(began)),
        "machine": machine(study),
        "setup": contestant.setup,
    }


def start(name: str, seed: int, study: Study, steps: int) -> Contestant:
    """A contestant with fresh weights, the same for a seed."""
    study = replace(study, recipe=replace(study.recipe, seed=seed))
    set_seed(seed)
    contestant = CONTESTANTS[name](study.complete(steps))
    contestant.network.to(study.accelerator.device)
    torch.manual_seed(seed)
    return contestant


def pilot_steps(name: str, seed: int, study: Study, settings: Settings) -> int:
    """About how many steps a contestant makes in the time; the schedule's own clock is the time."""
    contestant = start(name, seed, study, 1000)
    batches, clock = open_batches(contestant.study), Clock(study, settings)
    contestant.network.train()
    for step in range(PILOT_STEPS):
        if step == 2:
            clock.restart()
        contestant.step(next(batches), 0.0)
    return max(QUARTERS, round(settings.seconds / (clock.seconds / (PILOT_STEPS - 2))))


class Clock:
    """Seconds of training: of the processor, per thread, or on another device of the clock."""

    def __init__(self, study: Study, settings: Settings):
        self.is_cpu, self.threads = study.device.is_cpu, settings.threads
        self.restart()

    def restart(self) -> None:
        self.spent, self.began = 0.0, self.now()

    def now(self) -> float:
        if self.is_cpu:
            return time.process_time() / self.threads
        torch.cuda.synchronize()
        return time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.spent + self.now() - self.began

    def pause(self) -> None:
        self.spent = self.seconds

    def go_on(self) -> None:
        self.began = self.now()


def train(contestant: Contestant, study: Study, settings: Settings, steps: int) -> list[dict]:
    """Rows of the curve: after each quarter the steps, the seconds, the mean loss of the quarter, and the scores."""
    batches, curve, losses, step = open_batches(contestant.study), [], [], 0
    contestant.network.train()
    bar = tqdm(total=100, desc=f"{contestant.name} {contestant.study.recipe.seed}", unit="%", disable=None)
    clock = Clock(study, settings)
    while len(curve) < QUARTERS:
        done = step / steps if settings.steps else clock.seconds / settings.seconds
        if done * QUARTERS >= len(curve) + 1:
            clock.pause()
            row = {"step": step, "seconds": round(clock.spent, 2), "loss": round(float(np.mean(losses)), 4)}
            curve.append(row | evaluate(contestant, 1 if len(curve) + 1 == QUARTERS else EARLY_STRIDE))
            tqdm.write(f"{contestant.name} {curve[-1]['step']} steps: mIoU {100 * curve[-1]['miou']:.2f}")
            losses.clear()
            contestant.network.train()
            clock.go_on()
            continue
        losses.append(contestant.step(next(batches), done))
        step += 1
        bar.update(int(100 * done) - bar.n)
    bar.close()
    return curve


def open_batches(study: Study):
    """The product's batches of a study, without end."""
    recipe = replace(study.recipe, max_steps=MANY_STEPS)
    samples, processor = open_split(recipe, recipe.train_split), build_processor(recipe)
    return iterate_batches(training_batches(recipe, study.accelerator, samples, processor, study.num_labels, 0))


@torch.no_grad()
def evaluate(contestant: Contestant, stride: int) -> dict:
    """mIoU and IoU by label, fractions, of every `stride`-th image of the validation split."""
    study, processor = contestant.study, contestant.study.processor
    contestant.network.eval()
    counts = torch.zeros(study.num_labels, study.num_labels, dtype=torch.int64)
    with contestant.evaluating():
        samples = open_split(study.recipe, study.recipe.eval_split)
        for index in tqdm(range(0, len(samples), stride), leave=False, disable=None):
            sample = samples[index]
            picture, label_map = sample.read(**processor.settings().reading)
            labels = processor.reduce_labels(torch.from_numpy(label_map))
            found = contestant.label_map(picture, labels.shape)
            counts += confusion_counts(found, labels, study.num_labels, processor.ignore_index)
    found = scores(counts)
    return {"miou": round(found["miou"], 5), "iou": [round(value, 4) for value in found["iou"]]}


def machine(study: Study) -> dict:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    device = study.accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": f"{device.type} {name}", "cores": study.device.num_cores, "versions": versions}


if __name__ == "__main__":
    main()
