#!/usr/bin/env python3
"""Write a network as an ONNX file, and segment with onnxruntime in place of PyTorch's network.

    python examples/export.py MODEL FILE.onnx PICTURE

`qlseg export MODEL FILE.onnx` does the first half, and compares the two on pictures of several sizes.
"""

import sys

from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

import qlseg_hf
from qlseg_hf.export import OnnxQLSeg, write_onnx

folder, file, picture = sys.argv[1:]
model = AutoModelForSemanticSegmentation.from_pretrained(folder)
processor = AutoImageProcessor.from_pretrained(folder)
write_onnx(model, processor, file, with_logits=False)  # any batch, height and width; `segment` needs no logits

exported = OnnxQLSeg.from_pretrained(file)  # its configuration and its processor are in the file
(label_map,) = qlseg_hf.segment(exported, exported.processor, picture)
(expected,) = qlseg_hf.segment(model, processor, picture)
print(f"{100 * (label_map == expected).float().mean().item():.2f} % of {label_map.numel()} pixels agree")
