#!/usr/bin/env python3
"""Segment a picture, and draw the label map over it.

python examples/predict.py MODEL PICTURE OVERLAY.png    # MODEL: a folder of `qlseg convert`, or a Hub id
"""

import sys

import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

import qlseg_hf  # registers the model, the processor and the pipeline
from qlseg_hf.utils.visualization import draw_overlay, label_colors

folder, file, output = sys.argv[1:]
model = AutoModelForSemanticSegmentation.from_pretrained(folder)
processor = AutoImageProcessor.from_pretrained(folder)
if torch.cuda.is_available():
    model.to("cuda", torch.bfloat16)

# (H, W, 3) uint8 for most networks; `segment` also takes paths, PIL images, and lists of pictures of any sizes
picture = processor.load_picture(file)
# windows at the picture's own size; the paper's best protocol is scales=(0.5, 0.75, 1, 1.25, 1.5, 1.75), flip=True
(label_map,) = qlseg_hf.segment(model, processor, picture, max_memory_mb=2000)

labels, pixels = label_map.unique(return_counts=True)
for label, count in zip(labels.tolist(), pixels.tolist()):
    print(f"{model.config.id2label[label]}: {100 * count / label_map.numel():.1f} %")
draw_overlay(picture, label_map, model.config.id2label, label_colors(model.config)).save(output)
