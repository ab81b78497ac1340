# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The page of `qlseg app`: hover for label names, set the opacity, choose labels, download the label map.

The network runs once per press of the button. The browser then holds picture, label map and names, so that opacity
and choice of labels ask nothing of the server, which keeps nothing; uploaded files are deleted after an hour. Nothing
is loaded from other hosts. A ViT-B of 512 px takes seconds per picture on a CPU, twelve passes about 20 times as long.
"""

import base64
import html
import os
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ..data.datasets import is_hidden
from ..data.scenes import draw_scene
from ..hub.loading import load_network
from ..model.image_io import load_picture
from ..model.segmentation import segment
from ..model.windows import window_layout
from ..utils.devices import fastest_dtype, place_for_inference
from ..utils.html import data_uri
from ..utils.text import first_line
from ..utils.visualization import label_colors, label_map_picture, label_shares

MAX_PIXELS = 4_000_000  # larger pictures are shrunk: the browser paints all of it whenever the mouse meets a new label
MAX_FILE_PIXELS = 64_000_000  # larger files are refused before they are decoded
MAX_ASPECT = 8  # the network sees the short side at a fixed length, so a long strip would give windows without end
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # what users have; other readers of Pillow stay closed
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
MAX_EXAMPLES = 12
NUM_SCENES, SCENE_SIZE = 4, 320  # drawn example pictures
MODES = {
    "Single scale": {"scales": (1.0,), "flip": False},
    "Multi-scale + flip": {"scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), "flip": True},
}

# The viewer is one gr.HTML component. Its template is fixed and the script writes names with textContent, so that
# nothing in a model's or a picture's name is ever read as HTML.
VIEWER = {
    kind: (Path(__file__).parent / f"viewer.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
}


def read_upload(path: str | None) -> tuple[np.ndarray, str]:
    """A stranger's picture file.

    Args:
        path: of the file; None if there is none.

    Returns:
        (H, W, 3) uint8 of at most MAX_PIXELS pixels, and a remark for the user if it was shrunk, else "".

    Raises:
        ValueError: no file, no picture of one of FORMATS, broken, more than MAX_FILE_PIXELS, or longer than MAX_ASPECT
            times its width. The sentence has the file's name but not its folder.
    """
    if path is None:
        raise ValueError("There is no picture yet: upload one, or pick an example.")
    name = Path(path).name
    try:
        with Image.open(path, formats=FORMATS) as header:
            width, height = header.size
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError) as error:
        raise ValueError(f"{name} cannot be read: {reason(error, path)}") from error
    if width * height > MAX_FILE_PIXELS:
        raise ValueError(f"{name} has {width} × {height} pixels; at most {MAX_FILE_PIXELS // 10**6} million are read.")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{name} has {width} × {height} pixels; at most {MAX_ASPECT} times as long as wide is read.")
    try:
        picture = load_picture(path)
    except (OSError, ValueError) as error:
        raise ValueError(reason(error, path)) from error
    factor = (MAX_PIXELS / (width * height)) ** 0.5
    if factor >= 1:
        return picture, ""
    size = tuple(max(1, int(side * factor)) for side in picture.shape[1::-1])
    small = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
    return small, f"shrunk from {picture.shape[1]} × {picture.shape[0]}"


def reason(error: Exception, path: str) -> str:
    """An error's first line with the file's name where it has the server's path."""
    return first_line(error).replace(str(path), Path(path).name)


def view_of(picture: np.ndarray, label_map: torch.Tensor, config) -> dict:
    """All that the viewer needs, as JSON.

    Args:
        picture: (H, W, 3) uint8.
        label_map: (H, W) labels.
        config: the model's, for names and colours.

    Returns:
        `picture` (JPEG) and `label_map` (PNG whose pixel values are the labels) as data: addresses; `labels`, the same
        values as 16-bit little-endian numbers, deflated, base64, because a browser reads a PNG's colours only;
        `legend`, (label, name, "#rrggbb", share) of each label in the picture, largest first; `width` and `height`.
    """
    labels, colors = np.asarray(label_map), label_colors(config)
    legend = [
        [label, str(config.id2label[label]), "#" + bytes(colors[label]).hex(), share]
        for label, share in label_shares(labels, colors)
    ]
    deflated = zlib.compress(labels.astype("<u2").tobytes())
    return {
        "picture": data_uri(Image.fromarray(picture), "JPEG", quality=92),
        "label_map": data_uri(label_map_picture(label_map, colors), "PNG"),
        "labels": base64.b64encode(deflated).decode("ascii"),
        "legend": legend,
        "width": labels.shape[1],
        "height": labels.shape[0],
    }


def segment_upload(model, processor, path: str | None, mode: str, report: Callable[[int, int], None]) -> dict:
    """What the button does: the viewer's value, `{"error": sentence}` if the input is wrong.

    Args:
        path: of an uploaded file, or None.
        mode: key of MODES.
        report: called with (windows done, windows in all) before the first and after each forward pass.
    """
    try:
        if mode not in MODES:  # the page has no other, its API takes any text
            raise ValueError(f"{mode} is none of {', '.join(MODES)}.")
        picture, remark = read_upload(path)
        settings, done = MODES[mode], 0
        layout = window_layout(processor.settings(), picture.shape[:2], **settings, max_windows="auto")
    except ValueError as error:
        return {"error": str(error)}
    total = sum(len(places) for *_, places in layout)

    def count(module, arguments, outputs) -> None:
        nonlocal done
        done += len(outputs.class_queries_logits)
        report(done, total)

    report(0, total)
    start = time.perf_counter()
    hook = model.register_forward_hook(count)
    try:
        label_map = segment(model, processor, picture, **settings)[0]
    finally:
        hook.remove()
    view = view_of(picture, label_map, model.config)
    size = f"{view['width']} × {view['height']} pixels" + (f", {remark}" if remark else "")
    passes = f"{total} windows" if total > 1 else "1 window"
    view["summary"] = f"{len(view['legend'])} labels · {size} · {passes} in {time.perf_counter() - start:.1f} s"
    view["file"] = f"{Path(path).stem}_labels.png"
    return view


def example_pictures(folder: Path | None, drawn: Path) -> list[str]:
    """The first MAX_EXAMPLES pictures of `folder` by name; without a folder, scenes drawn into `drawn`."""
    if folder is not None:
        found = [path for path in sorted(folder.iterdir()) if not is_hidden(path.name)]
        paths = [path for path in found if path.suffix.lower() in SUFFIXES]
        if not paths:
            raise ValueError(f"{folder} holds no picture ({', '.join(sorted(SUFFIXES))})")
        return [str(path) for path in paths[:MAX_EXAMPLES]]
    paths = [drawn / f"scene_{index}.png" for index in range(NUM_SCENES)]
    for index, path in enumerate(paths):
        Image.fromarray(draw_scene(0, "validation", index, SCENE_SIZE)[0]).save(path)
    return [str(path) for path in paths]


def make_page(model, processor, examples: list[str], title: str):
    """The gr.Blocks."""
    import gradio as gr  # here, so that the rest can be used without it

    def run(file, mode, progress=gr.Progress()):  # noqa: B008 - Gradio recognises the default
        path = file["path"] if file else None
        return segment_upload(
            model, processor, path, mode, lambda done, total: progress((done, total), unit="windows")
        )

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(f"<h1>{html.escape(title)}</h1>")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                upload = gr.Image(label="Picture", sources=["upload", "clipboard"], height=300)
                mode = gr.Radio(list(MODES), value=next(iter(MODES)), label="Inference")
                button = gr.Button("Segment", variant="primary")
                gr.Examples([[path] for path in examples], [upload], label="Examples")
            with gr.Column(scale=2, min_width=320):
                viewer = gr.HTML(
                    html_template=VIEWER["html"],
                    css_template=VIEWER["css"],
                    js_on_load=VIEWER["js"],
                    min_height=300,
                    apply_default_css=False,
                )
        # One picture at a time, so that memory is that of one. Not preprocessed (the check that the file was uploaded
        # comes before that): gr.Image would open the file itself and answer a broken one with a traceback.
        button.click(run, [upload, mode], viewer, preprocess=False, concurrency_limit=1, api_name="segment")
    return page.queue(max_size=20)


def serve(source: str, pictures: Path | None = None, dtype: str = "auto") -> None:
    """Load a model (folder or Hub id) and serve the page until it is stopped; `pictures` is a folder of examples.

    `dtype`: of the network; "auto": see `fastest_dtype`.

    Raises:
        ValueError: `pictures` is no folder or holds no picture, or there is no such model.
    """
    if pictures is not None and not pictures.is_dir():
        raise ValueError(f"{pictures} is no folder of pictures")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = fastest_dtype(device) if dtype == "auto" else dtype
    model, processor = load_network(source, dtype=getattr(torch, dtype))
    model = place_for_inference(model, device)
    with tempfile.TemporaryDirectory() as folder:
        page = make_page(model, processor, example_pictures(pictures, Path(folder)), f"QLSeg · {Path(source).name}")
        # no server-side rendering, which needs node; no history, which would fill the browser's storage
        page.launch(ssr_mode=False, run_history=False, max_file_size="50mb", footer_links=["api", "gradio"])


__all__ = ["make_page", "serve"]
