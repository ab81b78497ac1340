"""What the tests of exports share: the formats, and graphs that are made once for all of them."""

import hashlib
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from filelock import FileLock
from networks import first_network, tiny_config, varied_model
from torch.nn import functional as F
from transformers import Dinov2Config

from qlseg_hf import QLSegForSemanticSegmentation
from qlseg_hf.export import OnnxQLSeg, OpenVINOQLSeg, write_onnx, write_openvino
from qlseg_hf.export import onnx as onnx_model
from qlseg_hf.export.runtime import ExportedQLSeg

if (Path(sys.prefix) / "openvino").is_dir():  # where `make test` puts it, without the package that reports its use
    sys.path.append(str(Path(sys.prefix) / "openvino"))
SIZES = [(1, 96, 48), (3, 49, 70), (2, 64, 127), (1, 16, 5), (1, 200, 33)]
# the time of an export is that of its nodes; a network of several layers, levels and blocks is the stored one
SMALL = {"levels": (1,), "num_decoder_blocks": 1, "num_decoder_layers": 1}
NAMES = ("id2label", "label2id", "_name_or_path")  # of a configuration, on which no graph depends


class Format(NamedTuple):
    """A format of `qlseg export`: what its files end in, what runs them, and how far outputs may be apart."""

    name: str
    runtime: str
    suffixes: list[str]
    runner: type[ExportedQLSeg]
    write: Callable[..., None]
    tolerance: float


FORMATS = {
    "onnx": Format("onnx", "onnxruntime", [".onnx"], OnnxQLSeg, write_onnx, 5e-5),
    "openvino": Format("openvino", "OpenVINO", [".xml", ".bin"], OpenVINOQLSeg, write_openvino, 1e-4),
}


def smooth(batch: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    noise = torch.randn(batch, channels, 5, 6, generator=torch.Generator().manual_seed(1))
    return F.interpolate(noise, size=(height, width), mode="bicubic")


@torch.no_grad()
def small_network() -> QLSegForSemanticSegmentation:
    """Of few nodes, and drawn so that it sees more than one label in what is large of `smooth`."""

    def is_varied(model) -> bool:
        return all(len(model(smooth(*size)).logits.argmax(dim=1).unique()) > 1 for size in SIZES[:3])

    return first_network(tiny_config(**SMALL), is_varied)


def dinov2_network() -> QLSegForSemanticSegmentation:
    """With patches of 14, DINOv2's own resizing of position embeddings and a class token."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "mlp_ratio": 2, "image_size": 56}
    backbone = Dinov2Config(**sizes, patch_size=14, out_indices=[1], apply_layernorm=False)
    return varied_model(tiny_config(backbone_config=backbone, num_group_norm_groups=8, **SMALL))


def has_bf16() -> bool:
    return "BF16" in import_module("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def trace_once(patch, folder: Path) -> None:
    """Have `onnx_program` keep its graphs, of which each takes half a minute, in `folder`.

    The processes of one test run share it.
    """
    trace = onnx_model.onnx_program

    def program(model, outputs):
        settings = {name: value for name, value in model.config.to_dict().items() if name not in NAMES}
        key = hashlib.sha256(f"{settings} {outputs}".encode())
        for name, tensor in sorted(model.state_dict().items()):
            key.update(name.encode() + tensor.numpy().tobytes())
        path, onnx_ir = folder / f"{key.hexdigest()}.onnx", import_module("onnx_ir")
        with FileLock(f"{path}.lock"):
            if not path.exists():
                onnx_ir.save(trace(model, outputs).model, path)
        return SimpleNamespace(model=onnx_ir.load(path))

    patch.setattr(onnx_model, "onnx_program", program)
