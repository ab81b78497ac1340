"""Segmenting picture files: an overlay with a legend, and the label map, for each."""

from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from ..hub.loading import load_network
from ..model.segmentation import segment
from ..utils.files import remove_partial
from ..utils.visualization import draw_overlay, label_colors, label_map_picture, save_picture


def predict(
    model: str,
    pictures: list[Path],
    output: Path,
    *,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    confidence: bool = False,
    max_windows: int | None = None,
    dtype: str = "float32",
    device: str | None = None,
) -> None:
    """Write `output/PICTURE_overlay.png` and `output/PICTURE_labels.png` of each picture.

    With `confidence` also `output/PICTURE_confidence.png`: 8 bits, 255 for a confidence of 1; see `segment`.

    Args:
        model: folder or Hub id.
        pictures: files of different stems.
        scales, flip, max_windows: see `segment`; without `max_windows`, its default.
        dtype: of the network.
        device: a GPU if there is one, else the CPU, if not given.

    Raises:
        ValueError: two pictures have one stem, or something is no model or no picture.
    """
    stems = [picture.stem for picture in pictures]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise ValueError(f"several pictures are called {', '.join(twice)}; their results would overwrite each other")
    network, processor = load_network(model, dtype=getattr(torch, dtype))
    network = network.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    remove_partial(output)
    colors = label_colors(network.config)
    limit = {} if max_windows is None else {"max_windows": max_windows}
    for path in tqdm(pictures, unit="picture"):
        picture = processor.load_picture(path)
        found = segment(network, processor, picture, scales=scales, flip=flip, return_confidence=confidence, **limit)
        label_map = found[0][0] if confidence else found[0]
        overlay = draw_overlay(picture, label_map, network.config.id2label, colors)
        save_picture(overlay, output / f"{path.stem}_overlay.png")
        save_picture(label_map_picture(label_map, colors), output / f"{path.stem}_labels.png")
        if confidence:
            shown = (255 * found[1][0]).round().to(torch.uint8).numpy()
            save_picture(Image.fromarray(shown), output / f"{path.stem}_confidence.png")


__all__ = ["predict"]
