"""The exporters of transformers on our network; slow, as our own export is what we offer."""

import os
import sys

import pytest
import torch
from networks import tiny_config, varied_model

exporters = pytest.importorskip("transformers.exporters", reason="this transformers has none")


# OpenVINO computes in bf16 where the processor has it
@pytest.mark.slow
@pytest.mark.parametrize("kind, package, tolerance", [("Onnx", "onnxruntime", 1e-5), ("OpenVINO", "openvino", 5e-2)])
def test_numbers(kind, package, tolerance, monkeypatch):
    monkeypatch.syspath_prepend(os.path.join(sys.prefix, "openvino"))  # where `make test` puts it
    pytest.importorskip("onnxscript")
    pytest.importorskip(package)
    model = varied_model(tiny_config()).eval()
    exporter, settings = getattr(exporters, f"{kind}Exporter")(), getattr(exporters, f"{kind}Config")(dynamic=True)
    exported = exporter.export(model, {"pixel_values": torch.randn(2, 3, 48, 64)}, settings)
    for size in ((2, 3, 48, 64), (1, 3, 33, 70), (3, 3, 96, 48), (1, 3, 16, 5)):
        pixels = torch.randn(size)
        with torch.inference_mode():
            wanted, found = model(pixel_values=pixels), exported(pixel_values=pixels)
        for name in ("logits", "class_queries_logits", "masks_queries_logits"):
            torch.testing.assert_close(found[name], wanted[name], atol=tolerance, rtol=0)
