"""The ways in which two processes can share a training run, on CPUs; as a script, their losses as a Markdown table.

python tests/helpers/layouts.py        # 20 steps of each layout, a few minutes; DeepSpeed if it is installed
"""

import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from programs import ROOT, STILL, environment, launcher, make_data, read_lines, write_recipe

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
FSDP["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "true"  # as accelerate's launcher has it by default
APART = ROOT / ".venv" / "deepspeed"  # where `make test-all` installs it, which an environment may have by itself
HAS_DEEPSPEED = APART.is_dir() or find_spec("deepspeed") is not None
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu", "PYTHONPATH": f"{ROOT}:{APART}"}
LAYOUTS = {
    "one process": (1, {}),
    "DDP": (2, {}),
    "FSDP2": (2, FSDP),
    "ZeRO-2": (2, DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}),
    # by a configuration file, because by default DeepSpeed keeps weights of less than 100 000 numbers whole
    "ZeRO-3": (2, DEEPSPEED | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(ROOT / "tests" / "helpers" / "zero3.json")}),
}
# rates so high that the network has learnt something after 20 steps, and its mIoU tells weights apart
SETTINGS = {"config": STILL, "learning_rate": 5e-3, "ema_decay": 0.5, "num_workers": 0, "per_device_batch_size": 1}
SETTINGS |= {"max_steps": 20, "eval_steps": 10, "save_steps": 10, "keep_checkpoints": 9}


def recipe_for(folder: Path, data: Path, /, **changes) -> Path:
    return write_recipe(folder, data, **SETTINGS | changes)


def train_in(layout: str, *arguments, server=None, **variables: str) -> subprocess.CompletedProcess:
    """`qlseg train ...` in a layout, by torchrun's launcher or, without DeepSpeed, in processes of a fork server."""
    processes, own = LAYOUTS[layout]
    script = str(ROOT / "tests" / "helpers" / "sharded_cpu.py")
    if server is not None:
        return server.complete(script if own else "train", *arguments, processes=processes, **own | variables)
    program = [script] if own else ["-m", "qlseg_hf.cli.train"]
    env = environment(**own | variables)
    command = [*launcher(processes), *program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=1800)


def print_table() -> None:
    """Losses of some steps, mIoU of the moving average after the last, and the largest relative difference."""
    layouts = [name for name in LAYOUTS if "ZeRO" not in name or HAS_DEEPSPEED]
    print("| | step 1 | 5 | 10 | 15 | 20 | largest relative difference of 20 | mIoU at step 20 |")
    print("|---|---|---|---|---|---|---|---|")
    first = None
    with tempfile.TemporaryDirectory() as root:
        make_data(Path(root) / "data")
        for layout in layouts:
            recipe = recipe_for(Path(root) / "table", Path(root) / "data")
            done = train_in(layout, recipe)
            assert done.returncode == 0, done.stderr[-3000:]
            run = Path(root) / "table" / "run"
            losses = [line["loss"] for line in read_lines(run / "losses.jsonl")]
            miou = read_lines(run / "evaluations.jsonl")[-1]["miou"]
            first = first or losses
            gap = max(abs(loss / other - 1) for loss, other in zip(losses, first, strict=True))
            shown = " | ".join(f"{losses[step - 1]:.6f}" for step in (1, 5, 10, 15, 20))
            print(f"| {layout} | {shown} | {gap:.1e} | {100 * miou:.4f} % |", flush=True)
            shutil.rmtree(run)


if __name__ == "__main__":
    sys.exit(print_table())
