"""The command `qlseg` as a user runs it, and small data and recipes for it."""

import json
import os
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
# a program that runs the commands of a JSON list, until one fails, in one process, which imports torch once
RUN_ALL = """
import json, sys, qlseg_hf
from qlseg_hf.cli.main import run
print(qlseg_hf.__file__)
sys.exit(any(map(run, json.loads(sys.argv[1]))))
"""

NETWORK = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_pixel_encoder_layers": 1,
    "num_pixel_encoder_heads": 4,
    "pixel_encoder_intermediate_size": 32,
    "num_decoder_blocks": 2,
    "num_decoder_layers": 1,
    "backbone_config": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
        "out_indices": [1, 2],
    },
}
# dropout draws by process, so without it any number of them makes the same steps
STILL = NETWORK | {"dropout": 0.0, "backbone_config": NETWORK["backbone_config"] | {"drop_path_rate": 0.0}}


def make_data(root: Path, num_training: int = 9, num_validation: int = 3, num_bands: int = 3) -> None:
    """Images in ADE20K's layout: PNGs whose colour tells the label or, of five bands, TIFFs whose fifth band does.

    The bands are reflectance, 0..10000 in 16 bits.
    """
    rng = np.random.default_rng(0)
    for split, count in (("training", num_training), ("validation", num_validation)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            labels = np.kron(rng.integers(0, 3, (4, 5)), np.ones((9, 9), dtype=int)).astype(np.uint8)
            Image.fromarray(labels).save(root / "annotations" / split / f"{i}.png")
            if num_bands == 3:
                picture = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]])[labels]
                picture = (picture + rng.integers(-30, 30, picture.shape)).clip(0, 255).astype(np.uint8)
                Image.fromarray(picture).save(root / "images" / split / f"{i}.png")
            else:
                import tifffile

                picture = rng.integers(300, 3000, (*labels.shape, num_bands)).astype(np.uint16)
                picture[..., -1] = np.array([500, 3500, 9000])[labels] + rng.integers(-300, 300, labels.shape)
                tifffile.imwrite(root / "images" / split / f"{i}.tif", picture, photometric="minisblack")


def read_pairs(root: Path, split: str) -> dict[str, list[dict]]:
    """{"image": ..., "annotation": ...}: what lies in a folder of `make_data`, as `datasets` stores pictures."""
    return {
        column: [{"bytes": path.read_bytes(), "path": path.name} for path in sorted((root / kind / split).iterdir())]
        for column, kind in (("image", "images"), ("annotation", "annotations"))
    }


def write_tables(data: Path, place: Path, layout: str) -> dict:
    """The pictures of a folder of `make_data` as tables, broken bytes and all; what a recipe says of them.

    `layout`: parquet, streaming (of parquet), or save_to_disk.
    """
    import datasets

    features, tables = datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()}), {}
    for split, name in (("training", "train"), ("validation", "validation")):
        tables[name] = datasets.Dataset.from_dict(read_pairs(data, split), features)
        if layout != "save_to_disk":
            place.mkdir(parents=True, exist_ok=True)
            tables[name].to_parquet(place / f"{name}-00000-of-00001.parquet")
    if layout == "save_to_disk":
        datasets.DatasetDict(tables).save_to_disk(place)
    return {"data": str(place), "streaming": layout == "streaming"}


def write_recipe(folder: Path, data: Path, /, **changes) -> Path:
    recipe = {
        "data": str(data),
        "label_names": {0: "red", 1: "green", 2: "blue"},
        "config": NETWORK,
        "crop_size": 32,
        "scale_range": [0.8, 1.5],
        "total_batch_size": 4,
        "per_device_batch_size": 2,
        "precision": "fp32",  # so that every CPU gives the same numbers
        "max_steps": 24,
        "warmup_steps": 2,
        "learning_rate": 2e-3,
        "head_lr_multiplier": 1.0,
        "ema_decay": 0.9,
        "eval_steps": 8,
        "save_steps": 2,
        "num_workers": 2,
        "log_pictures": 1,
        "photometric": find_spec("cv2") is not None,
        "output_dir": str(folder / "run"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | changes))
    return path


def environment(**more: str) -> dict[str, str]:
    """For sub-processes: the package of this tree, one thread, no GPU, and the Hub of the tests."""
    own = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return os.environ | own | more


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ranks(processes: int) -> list[dict[str, str]]:
    """Of each of so many processes, what torchrun tells it."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    shared |= {"LOCAL_WORLD_SIZE": str(processes)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def launcher(processes: int) -> list[str]:
    """The start of a command for so many processes of this machine."""
    if processes == 1:
        return [sys.executable]
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    return [*torchrun, f"--nproc_per_node={processes}", f"--master_port={free_port()}"]


def read_lines(path: Path) -> list[dict]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def stats_of(run: Path) -> dict:
    """What tells whether a file was written again."""
    stats = {path: path.stat() for path in run.rglob("*") if path.is_file()}
    return {path: (stat.st_mtime_ns, stat.st_ino, stat.st_size) for path, stat in stats.items()}
