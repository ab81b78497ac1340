#!/usr/bin/env python3
"""The way from a checkpoint of the published implementation to a picture with masks, in one minute on a CPU.

    python examples/demo.py [--output build/demo]

Converts a small checkpoint in the released format (trained on drawn scenes; it comes with the tests), loads the folder
with `from_pretrained`, segments a picture through `pipeline("image-segmentation")` and writes an overlay.
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
from transformers import AutoModelForSemanticSegmentation, pipeline

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import convert_checkpoints  # noqa: E402
from qlseg_hf import load_picture  # noqa: E402
from qlseg_hf.visualization import draw_overlay, label_colors, save_picture  # noqa: E402

FIXTURE = ROOT / "tests" / "fixtures" / "a"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "demo")
    output = parser.parse_args().output
    folder, picture = output / "model", FIXTURE / "large.png"
    shutil.rmtree(folder, ignore_errors=True)

    print(f"1. convert {FIXTURE.relative_to(ROOT) / 'checkpoint.pth'}")
    if convert_checkpoints.main([str(FIXTURE / "checkpoint.pth"), str(folder)]):
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
