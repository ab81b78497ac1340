# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What `qlseg predict MODEL PICTURE` does until its first result, and how much of that time is the product's own.

    python benchmarks/start.py [--model FOLDER] [--picture FILE] [--dtype bfloat16] [--repeats 5] [--output FILE.json]

Each repeat is a process of its own: it imports what the command imports but the product's own modules, then these, and
then runs the command with a stopwatch on loading, on the check that weights are finite, and on their hash. Modules are
compiled beforehand, as pip does when it installs them. The product's own are its modules, check and hash; the rest is
spent in other libraries, in the network, and on the disk. Medians of wall-clock seconds. Without a model, a network of
the size of `vit-b-ade20k` with random weights is saved first; without a picture, a scene of 512 x 512 is drawn.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

OWN = "qlseg_hf"
MODULES = (f"{OWN}.cli.main", f"{OWN}.cli.predict", f"{OWN}.predict.run")
PARTS = {
    "imports of other libraries": False,
    "imports of qlseg_hf": True,
    "loading, by transformers": False,
    "check that weights are finite": True,
    "hash of the weights": True,
    "the rest: segmenting, writing": False,
}


def foreign_modules() -> list[str]:
    """What the command's modules import beside themselves, in this order. In a process that has imported nothing."""
    before = set(sys.modules)
    for name in MODULES:
        importlib.import_module(name)
    return [name for name, one in sys.modules.items() if name not in before and is_foreign(name, one)]


def is_foreign(name: str, module: Any) -> bool:
    spec = getattr(module, "__spec__", None)
    return name.partition(".")[0] != OWN and spec is not None and spec.name == name


def measure(foreign: list[str], arguments: list[str]) -> dict[str, float]:
    """Seconds by part; in a process that has imported nothing."""
    clock = time.perf_counter
    times = dict.fromkeys(PARTS, 0.0)
    start = clock()
    for name in foreign:
        importlib.import_module(name)
    times["imports of other libraries"] = clock() - start
    start = clock()
    for name in MODULES:
        importlib.import_module(name)
    times["imports of qlseg_hf"] = clock() - start

    def timed(module: str, name: str, part: str):
        wrapped = getattr(importlib.import_module(module), name)

        def call(*args, **kwargs):
            begun = clock()
            try:
                return wrapped(*args, **kwargs)
            finally:
                times[part] += clock() - begun

        return mock.patch(f"{module}.{name}", call)

    loading, check, hashing = "loading, by transformers", "check that weights are finite", "hash of the weights"
    with (
        timed(f"{OWN}.export.loading", "load_network", loading),
        timed(f"{OWN}.hub.loading", "is_finite", check),
        timed(f"{OWN}.predict.run", "weights_sha256", hashing),
    ):
        from qlseg_hf.cli.main import run

        begun = clock()
        status = run(["predict", *arguments])
        whole = clock() - begun
    if status:
        sys.exit(status)
    times["the rest: segmenting, writing"] = whole - times[loading] - times[hashing]
    times[loading] -= times[check]  # which it does
    return times


def make_inputs(args: argparse.Namespace, place: Path) -> None:
    """A network and a picture where none is given; in a process of its own, as it imports everything."""
    import torch
    from PIL import Image

    from qlseg_hf import QLSegForSemanticSegmentation, QLSegImageProcessor
    from qlseg_hf.data.scenes import draw_scene
    from qlseg_hf.releases import config_for_release, processor_for_release

    torch.manual_seed(0)
    config = config_for_release(QLSegForSemanticSegmentation.config_class, "vit-b-ade20k")
    QLSegForSemanticSegmentation(config).to(getattr(torch, args.dtype)).save_pretrained(place / "model")
    processor_for_release(QLSegImageProcessor, "vit-b-ade20k").save_pretrained(place / "model")
    Image.fromarray(draw_scene(0, "validation", 0, 512)[0]).save(place / "picture.png")


def run_child(place: Path, *words: object) -> str:
    """The last line of a process, whose modules are compiled, as pip leaves them: by the runs before it."""
    command = [sys.executable, __file__, "--place", str(place), *map(str, words)]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(place / "compiled")}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return done.stdout.splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", choices=["inputs", "modules", "measure"], help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child == "inputs":
        make_inputs(args, args.place)
        print("done")
    elif args.child == "modules":
        print(json.dumps(foreign_modules()))
    elif args.child == "measure":
        foreign = json.loads((args.place / "modules.json").read_text())
        with tempfile.TemporaryDirectory(dir=args.place) as folder:
            words = [str(args.model), str(args.picture), "--output", folder, "--dtype", args.dtype]
            print(json.dumps(measure(foreign, words)))
    else:
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            shared = (place, "--dtype", args.dtype)
            if args.model is None or args.picture is None:
                run_child(*shared, "--child", "inputs")
            (place / "modules.json").write_text(run_child(*shared, "--child", "modules"))
            words = ("--model", args.model or place / "model", "--picture", args.picture or place / "picture.png")
            runs = [json.loads(run_child(*shared, "--child", "measure", *words)) for _ in range(args.repeats + 1)][1:]
        seconds = {part: statistics.median(run[part] for run in runs) for part in PARTS}
        own = statistics.median(sum(run[part] for part, is_own in PARTS.items() if is_own) for run in runs)
        result = {"dtype": args.dtype, "repeats": args.repeats, "seconds": seconds, "own": own, "runs": runs}
        print(json.dumps({"seconds": seconds, "own": own}, indent=1))
        if args.output:
            args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
