# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A page that segments images in the browser: a folder for any static host, which asks nothing of another one.

The page's own files lie in `web_page`. They are the same for every network; what differs is data, in `settings.json`,
so that no name of a label or model ever becomes part of HTML or a script.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..data.scenes import draw_scene
from ..hub.loading import keep_val_fraction, load_network
from ..hub.saving import QLSegForSemanticSegmentation, QLSegImageProcessor
from ..model.configuration_qlseg import as_pair
from ..model.processor_settings import LEAST_8_BIT, Settings
from ..model.segmentation import segment
from ..utils.files import write_beside
from ..utils.text import printable
from ..utils.visualization import label_colors
from .onnx import MOST_BYTES, OnnxQLSeg, make_program, optional
from .runtime import OUTPUTS
from .stored_weights import shrink_weights
from .web_runtime import VERSION, copy_runtime

PAGE, TEMPLATES = (Path(__file__).parent / name for name in ("web_page", "templates"))
# larger images are shrunk, larger files and longer strips refused, as `qlseg app` does
LIMITS = {"max_pixels": 4_000_000, "max_file_pixels": 64_000_000, "max_aspect": 8}
LEAST_AGREEMENT = {"fp32": 0.999, "fp16": 0.995, "int8": 0.99}  # share of the pixels of each example
NUM_EXAMPLES, EXAMPLE_SIZE = 3, 320
NUM_CHECKED = 64  # scores that the page compares before it shows any


def export_page(source: str, output: Path, *, weights: str = "fp16", runtime: Path | None = None) -> None:
    """Write a page that segments images in the browser into the new folder `output`.

    Args:
        source: folder or Hub id of the model, which must take RGB of 8 bits.
        output: the folder; 41 MB beside the weights.
        weights: how they are stored, see `shrink_weights`; computed is in fp32.
        runtime: folder with the files of onnxruntime-web; without it the npm registry's, see `copy_runtime`.

    Raises:
        ImportError: an optional package is missing.
        ValueError: `output` exists, the model takes no RGB of 8 bits or is too large, its labels differ from
            PyTorch's, or the runtime cannot be had. Nothing is written then.
    """
    if output.exists():
        raise ValueError(f"{output} exists; name another folder, or remove it first")
    model, processor = load_network(source, dtype=torch.float32)
    keep_val_fraction(source, model.config)
    settings = processor.settings()
    _check_rgb(settings)
    with write_beside(output) as folder:
        copy_runtime(folder / "runtime", runtime)
        examples = _draw_examples(folder / "examples")
        _write_model(model, processor, folder / "model.onnx", weights)
        exported = OnnxQLSeg.from_pretrained(folder / "model.onnx")
        agreement = _compare(model, exported, folder, examples)
        if not agreement >= LEAST_AGREEMENT[weights]:  # so that NaN is refused too
            raise ValueError(
                f"with weights as {weights} {agreement:.2%} of the labels are PyTorch's; "
                f"{LEAST_AGREEMENT[weights]:.1%} are wanted: give other --weights"
            )
        title = printable(Path(source).resolve().name if Path(source).is_dir() else source.rpartition("/")[2])
        about = {
            "title": title,
            "labels": _describe_labels(model.config),
            "processor": _describe_processor(settings),
            "model": {"file": "model.onnx", "bytes": (folder / "model.onnx").stat().st_size, "weights": weights},
            "label_agreement": agreement,
            "runtime": f"onnxruntime-web {VERSION}" if runtime is None else "onnxruntime-web",
            "examples": examples,
            "limits": LIMITS,
            "check": _known_scores(exported),
        }
        (folder / "settings.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        for file in PAGE.iterdir():
            shutil.copyfile(file, folder / file.name)
        readme = (TEMPLATES / "web_readme.md").read_text(encoding="utf-8")
        readme = readme.format(title=json.dumps(title, ensure_ascii=not title.isprintable()), weights=weights)
        (folder / "README.md").write_text(readme, encoding="utf-8")
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file()) / 1e6
    print(f"labels: {agreement:.2%} of the pixels of the worst example as PyTorch's, weights as {weights}")
    print(f"wrote {output}, {size:.0f} MB; try it with `python -m http.server --directory {output}`")


def _check_rgb(settings: Settings) -> None:
    """ValueError if a processor takes other images than RGB of 8 bits, which is what a browser has."""
    if settings.num_channels != 3:
        raise ValueError(f"the model takes images of {settings.num_channels} bands; a browser has RGB")
    if settings.do_rescale and settings.rescale_factor < LEAST_8_BIT:
        raise ValueError(f"rescale_factor is {settings.rescale_factor}, for more than 8 bits; a browser has 8 bits")


def _write_model(
    model: QLSegForSemanticSegmentation, processor: QLSegImageProcessor, path: Path, weights: str
) -> None:
    """The graph with its weights in one file."""
    num_bytes = model.num_parameters() * {"fp32": 4, "fp16": 2, "int8": 1}[weights]
    if num_bytes > MOST_BYTES:
        raise ValueError(f"the weights take {num_bytes / 1e9:.1f} GB as {weights}, a page at most 2.1; use less bytes")
    program = make_program(model, processor, OUTPUTS)
    shrink_weights(program, weights)
    optional("onnx_ir").save(program, path)


def _draw_examples(folder: Path) -> list[str]:
    """Drawn scenes, as PNG; their paths in the page's folder."""
    folder.mkdir()
    names = [f"{folder.name}/scene_{number + 1}.png" for number in range(NUM_EXAMPLES)]
    for number, name in enumerate(names):
        Image.fromarray(draw_scene(0, "validation", number, EXAMPLE_SIZE)[0]).save(folder.parent / name)
    return names


@torch.inference_mode()
def _compare(model: QLSegForSemanticSegmentation, exported: OnnxQLSeg, folder: Path, examples: list[str]) -> float:
    """The share of equal labels of the example that has the lowest."""
    images = [folder / name for name in examples]
    maps = [segment(network, exported.processor, images) for network in (model, exported)]
    shares = [float((one == other).float().mean()) for one, other in zip(*maps)]
    return min(shares)


def _describe_labels(config) -> list[dict]:
    """Name and [r, g, b] of each label, in their order."""
    colors = label_colors(config).tolist()
    return [{"name": printable(config.id2label[number]), "color": color} for number, color in enumerate(colors)]


def _describe_processor(settings: Settings) -> dict:
    """What the page computes with: the checked settings, with one mean and deviation per band."""
    names = ("do_resize", "do_sliding_window", "window_size", "window_stride", "do_rescale", "rescale_factor")
    found = {name: getattr(settings, name) for name in (*names, "do_normalize")}
    found["size"] = None if settings.size is None else {k: v for k, v in dict(settings.size).items() if v is not None}
    for name in ("image_mean", "image_std"):
        value = getattr(settings, name)
        found[name] = [value] * 3 if isinstance(value, float | int) else value and list(value)
    return found


def _known_scores(exported: OnnxQLSeg) -> dict:
    """Some scores of a made input, so that a browser that computes wrongly says so instead of showing labels."""
    height, width = (side * count for side, count in zip(as_pair(exported.config.backbone_config.patch_size), (4, 5)))
    c, y, x = np.ogrid[:3, :height, :width]
    pixels = ((7 * c + 3 * y + 5 * x) % 17 / 8 - 1).astype(np.float32)
    scores = exported(torch.from_numpy(pixels)[None]).logits.flatten()
    return {"height": height, "width": width, "scores": scores[:: len(scores) // NUM_CHECKED][:NUM_CHECKED].tolist()}


__all__ = ["export_page"]
