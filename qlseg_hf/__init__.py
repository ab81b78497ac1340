# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""QLSeg for transformers. Importing this package registers the model, its backbone, its processor and its pipeline."""

from transformers import AutoBackbone, AutoConfig, AutoModelForSemanticSegmentation
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY

from .hub.saving import QLSegForSemanticSegmentation, QLSegImageProcessor, QLSegViTBackbone
from .model import image_files
from .model.configuration_qlseg import QLSegConfig, QLSegViTConfig, __version__
from .model.image_io import load_label_map, load_picture
from .model.modeling_qlseg import QLSegOutput
from .model.segmentation import QLSegImageSegmentationPipeline, segment
from .releases import RELEASES
from .utils.devices import place_for_inference
from .utils.tiff import read_tiff
from .weights import load_vit_weights

AutoConfig.register("qlseg", QLSegConfig, exist_ok=True)
AutoConfig.register("qlseg_vit", QLSegViTConfig, exist_ok=True)
AutoBackbone.register(QLSegViTConfig, QLSegViTBackbone, exist_ok=True)
AutoModelForSemanticSegmentation.register(QLSegConfig, QLSegForSemanticSegmentation, exist_ok=True)
# Not through AutoImageProcessor.register: in transformers 5.17 that class asks for torchvision.
IMAGE_PROCESSOR_MAPPING.register(
    QLSegConfig, {"pil": QLSegImageProcessor, "torchvision": QLSegImageProcessor}, exist_ok=True
)
# TIFFs of any number of bands, which `model/` alone, as it lies beside weights, does not read
image_files.tiff_reader = read_tiff
# Takes the place of the stock class, and hands every model but ours back to it.
PIPELINE_REGISTRY.supported_tasks["image-segmentation"]["impl"] = QLSegImageSegmentationPipeline

__all__ = [
    "RELEASES",
    "QLSegConfig",
    "QLSegForSemanticSegmentation",
    "QLSegImageProcessor",
    "QLSegImageSegmentationPipeline",
    "QLSegOutput",
    "QLSegViTBackbone",
    "QLSegViTConfig",
    "__version__",
    "load_label_map",
    "load_picture",
    "load_vit_weights",
    "place_for_inference",
    "segment",
]
