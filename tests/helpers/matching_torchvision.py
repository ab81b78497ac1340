"""torchvision, also beside a CPU build of torch where pip found a CUDA build of torchvision, without its operators."""

import sys

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:  # "operator torchvision::nms does not exist": declared, it can be imported; nobody here calls it
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    LIBRARY = torch.library.Library("torchvision", "DEF")
    LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401
