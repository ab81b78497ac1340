"""What a run does at its evaluations."""

from types import SimpleNamespace

import numpy as np
from networks import tiny_model_and_processor
from PIL import Image

from qlseg_hf.training.validation import save_overlays


def test_overlays_of_strips(tmp_path):
    """They have more windows than `segment` takes unless it is told, and a run is not to end there."""
    model, processor = tiny_model_and_processor()
    pixels = np.random.default_rng(0).integers(0, 255, (2, 300, 3), dtype=np.uint8)
    run = SimpleNamespace(
        recipe=SimpleNamespace(log_pictures=1),
        validation_samples=[SimpleNamespace(read_picture=lambda **reading: pixels)],
        processor=processor,
        output_dir=tmp_path,
        step=7,
        accelerator=SimpleNamespace(trackers=[]),
    )
    save_overlays(run, model)
    assert Image.open(tmp_path / "overlays" / "step-00000007-0.png").width >= 300
