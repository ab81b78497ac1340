#!/usr/bin/env python3
"""A page that segments pictures: hover for label names, set the opacity, choose labels, download the label map.

    pip install ".[app]"
    python examples/app.py --model qlseg-vit-b-ade20k [--pictures DIR]

then open the printed address. MODEL is a folder or a Hub id, from --model or the environment variable QLSEG_MODEL; DIR
holds example pictures (--pictures or QLSEG_PICTURES), without it the page offers drawn scenes (make_scenes.py). Gradio
reads GRADIO_SERVER_NAME and GRADIO_SERVER_PORT. As a Hugging Face Space this file is app.py, with make_scenes.py
beside it.

The network runs once per press of the button. The browser then holds picture, label map and names, so that opacity
and choice of labels ask nothing of the server, which keeps nothing; uploaded files are deleted after an hour. Nothing
is loaded from other hosts. A ViT-B of 512 px takes seconds per picture on a CPU, twelve passes about 20 times as long.
"""

import argparse
import base64
import html
import io
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from qlseg_hf import load_picture, segment
from qlseg_hf.command_line import exit_status, first_line, load_network
from qlseg_hf.segmentation import window_layout
from qlseg_hf.visualization import label_colors, label_map_picture, share

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
VIEWER_HTML = """
<p class="message"></p>
<div class="view" hidden>
  <div class="controls">
    <label>Opacity <input class="opacity" type="range" min="0" max="100" value="55"></label>
    <a class="download" role="button">Download label map (PNG)</a>
  </div>
  <div class="place">
    <div class="stage"><img alt="the picture"><canvas></canvas><div class="tip" hidden></div></div>
  </div>
  <div class="side">
    <div class="choice">
      Show <button class="all" type="button">all</button><button class="none" type="button">none</button>
    </div>
    <div class="legend"></div>
  </div>
</div>
"""

VIEWER_CSS = """
.message { margin: 0 0 var(--spacing-lg); color: var(--body-text-color); min-height: 1.5em; }
.message.error { color: var(--error-text-color); background: var(--error-background-fill);
  border: 1px solid var(--error-border-color); border-radius: var(--radius-md); padding: var(--spacing-lg); }
.view { display: grid; grid-template-columns: minmax(0, 1fr) 230px; gap: 12px 18px; align-items: start;
  color: var(--body-text-color); font-size: 14px; }
.view[hidden] { display: none; }
.controls { grid-column: 1 / -1; display: flex; flex-wrap: wrap; align-items: center; justify-content: space-between;
  gap: 10px 20px; }
.controls label { display: flex; align-items: center; gap: 10px; }
.opacity { width: 200px; appearance: auto; accent-color: var(--color-accent); }
.stage { position: relative; width: fit-content; margin: 0 auto; line-height: 0; border-radius: var(--radius-lg);
  overflow: hidden; }
.stage img { display: block; margin: 0; max-width: none; }
.stage canvas { position: absolute; inset: 0; width: 100%; height: 100%; cursor: crosshair; }
.tip { position: absolute; pointer-events: none; padding: 6px 10px; border-radius: 6px; background: #111d; color: #fff;
  line-height: 1.3; max-width: 60%; width: max-content; overflow-wrap: anywhere; }
.choice { display: flex; align-items: center; gap: 6px; margin-bottom: 6px; padding-left: 8px; }
.choice button, .download { padding: 4px 12px; border: 1px solid var(--border-color-primary); cursor: pointer;
  border-radius: var(--radius-md); background: var(--button-secondary-background-fill);
  color: var(--button-secondary-text-color); text-decoration: none; }
.choice button:hover, .download:hover { background: var(--button-secondary-background-fill-hover); }
.legend { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 2px 14px;
  max-height: 62vh; overflow-y: auto; padding: 2px; }
.legend label { display: flex; align-items: center; gap: 8px; padding: 4px 8px; border-radius: 6px; cursor: pointer;
  min-width: 0; }
.legend label.near { background: var(--background-fill-secondary); box-shadow: 0 0 0 1px var(--color-accent); }
.legend input { flex: none; margin: 0; appearance: auto; accent-color: var(--color-accent); }
.legend .color { flex: none; width: 16px; height: 16px; border-radius: 4px; border: 1px solid #0005; }
.legend .name { flex: 1; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.legend .share { color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; white-space: nowrap; }
@media (max-width: 1000px) { .view { grid-template-columns: minmax(0, 1fr); } }
"""

VIEWER_JS = """
const find = (name) => element.querySelector(name);
let view = null;

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new Uint16Array(await new Response(stream).arrayBuffer());
}

function fit() {  // small pictures are enlarged, all stay within the column and 70 % of the window's height
  if (!view) return;
  const scale = Math.min(find('.place').clientWidth / view.width, 0.7 * innerHeight / view.height);
  find('img').style.width = scale * view.width + 'px';
  find('img').style.height = scale * view.height + 'px';
}

function paint() {
  const { width, height, labels, colors, shown, near, image } = view, table = new Uint32Array(65536);
  for (const label of shown) {
    const alpha = near === null || near === label ? 255 : 70;
    table[label] = (alpha << 24 | colors.get(label)) >>> 0;
  }
  const pixels = new Uint32Array(image.data.buffer), white = 0xffffffff;
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++, i++) {
      const label = labels[i], tint = table[label];
      const border = x && labels[i - 1] !== label || y && labels[i - width] !== label;
      pixels[i] = border && tint ? white : tint;
    }
  find('canvas').getContext('2d').putImageData(image, 0, 0);
}

function emphasise(label, scroll) {
  if (view.near === label) return;
  view.near = label;
  const legend = find('.legend');
  for (const row of legend.children) {
    const near = Number(row.dataset.label) === label;
    row.classList.toggle('near', near);
    if (near && scroll) legend.scrollTop = row.offsetTop - legend.offsetTop - legend.clientHeight / 2;
  }
  paint();
}

function hover(event) {
  const box = find('canvas').getBoundingClientRect(), tip = find('.tip');
  const x = event.clientX - box.left, y = event.clientY - box.top;
  const column = Math.floor(x / box.width * view.width), row = Math.floor(y / box.height * view.height);
  const label = view.labels[row * view.width + column];
  const inside = column >= 0 && row >= 0 && column < view.width && row < view.height;
  tip.hidden = !inside || !view.shown.has(label);
  emphasise(tip.hidden ? null : label, true);
  if (tip.hidden) return;
  tip.textContent = view.names.get(label);
  tip.style.left = x + 'px';
  tip.style.top = y + 'px';
  const right = x > box.width / 2, low = y > box.height / 2;
  tip.style.transform = `translate(${right ? 'calc(-100% - 10px)' : '14px'}, ${low ? 'calc(-100% - 10px)' : '14px'})`;
}

function choose(labels) {
  view.shown = new Set(labels);
  for (const row of find('.legend').children)
    row.querySelector('input').checked = view.shown.has(Number(row.dataset.label));
  paint();
}

function part(kind, className, text) {
  const node = document.createElement(kind);
  node.className = className;
  node.textContent = text;
  return node;
}

function legendRow([label, name, color, share]) {
  const row = part('label', '', ''), box = document.createElement('input'), patch = part('span', 'color', '');
  row.dataset.label = label;
  row.title = name;
  box.type = 'checkbox';
  box.checked = true;
  patch.style.background = color;
  row.append(box, patch, part('span', 'name', name), part('span', 'share', share));
  box.onchange = () => {
    if (box.checked) view.shown.add(label); else view.shown.delete(label);
    paint();
  };
  row.onpointerenter = () => emphasise(view.shown.has(label) ? label : null);
  row.onpointerleave = () => emphasise(null);
  return row;
}

async function show() {
  const value = props.value;
  view = null;
  find('.message').textContent = value ? value.error || value.summary : 'Choose a picture, then press Segment.';
  find('.message').classList.toggle('error', Boolean(value && value.error));
  find('.view').hidden = true;
  if (!value || value.error) return;
  const labels = await inflate(value.labels);
  if (props.value !== value) return;  // another result came meanwhile
  const { width, height, legend } = value, canvas = find('canvas');
  const abgr = (color) => parseInt(color.slice(5) + color.slice(3, 5) + color.slice(1, 3), 16);
  view = {
    width, height, labels, near: null, image: new ImageData(width, height),
    names: new Map(legend.map(([label, name]) => [label, name])),
    colors: new Map(legend.map(([label, , color]) => [label, abgr(color)])),
    shown: new Set(legend.map(([label]) => label)),
  };
  find('img').src = value.picture;
  Object.assign(canvas, { width, height });
  Object.assign(find('.download'), { href: value.label_map, download: value.file });
  find('.legend').replaceChildren(...legend.map(legendRow));
  canvas.onpointermove = canvas.onpointerdown = hover;
  canvas.onpointerleave = () => { find('.tip').hidden = true; emphasise(null); };
  find('.opacity').oninput = () => { canvas.style.opacity = find('.opacity').value / 100; };
  find('.opacity').oninput();
  find('.all').onclick = () => choose(view.names.keys());
  find('.none').onclick = () => choose([]);
  find('.view').hidden = false;
  fit();
  paint();
}

new ResizeObserver(fit).observe(element);
watch('value', show);
show();
"""


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


def data_address(picture: Image.Image, **settings) -> str:
    """A picture as data: address; `settings` are those of PIL's save."""
    encoded = io.BytesIO()
    picture.save(encoded, **settings)
    kind = settings["format"].lower()
    return f"data:image/{kind};base64,{base64.b64encode(encoded.getvalue()).decode('ascii')}"


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
    values, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    legend = []
    for label, count in zip(values[order].tolist(), counts[order].tolist()):
        legend.append(
            [label, str(config.id2label[label]), "#" + bytes(colors[label]).hex(), share(count / labels.size)]
        )
    deflated = zlib.compress(labels.astype("<u2").tobytes())
    return {
        "picture": data_address(Image.fromarray(picture), format="JPEG", quality=92),
        "label_map": data_address(label_map_picture(label_map, colors), format="PNG"),
        "labels": base64.b64encode(deflated).decode("ascii"),
        "legend": legend,
        "width": labels.shape[1],
        "height": labels.shape[0],
    }


def segmented(model, processor, path: str | None, mode: str, report: Callable[[int, int], None]) -> dict:
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
        paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
        if not paths:
            raise ValueError(f"{folder} holds no picture ({', '.join(sorted(SUFFIXES))})")
        return [str(path) for path in paths[:MAX_EXAMPLES]]
    from make_scenes import draw_scene  # the sibling script; not needed with pictures of one's own

    paths = [drawn / f"scene_{index}.png" for index in range(NUM_SCENES)]
    for index, path in enumerate(paths):
        Image.fromarray(draw_scene(0, "validation", index, SCENE_SIZE)[0]).save(path)
    return [str(path) for path in paths]


def make_page(model, processor, examples: list[str], title: str):
    """The gr.Blocks."""
    import gradio as gr  # here, so that the rest can be used without it

    def run(file, mode, progress=gr.Progress()):  # noqa: B008 - Gradio recognises the default
        path = file["path"] if file else None
        return segmented(model, processor, path, mode, lambda done, total: progress((done, total), unit="windows"))

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
                    html_template=VIEWER_HTML,
                    css_template=VIEWER_CSS,
                    js_on_load=VIEWER_JS,
                    min_height=300,
                    apply_default_css=False,
                )
        # One picture at a time, so that memory is that of one. Not preprocessed (the check that the file was uploaded
        # comes before that): gr.Image would open the file itself and answer a broken one with a traceback.
        button.click(run, [upload, mode], viewer, preprocess=False, concurrency_limit=1, api_name="segment")
    return page.queue(max_size=20)


def serve(args: argparse.Namespace) -> None:
    if not args.model:
        raise ValueError("no model is given; name a folder or a Hub id with --model, or set QLSEG_MODEL")
    if args.pictures is not None and not args.pictures.is_dir():
        raise ValueError(f"{args.pictures} is no folder of pictures")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor = load_network(args.model)
    model = model.to(device)
    with tempfile.TemporaryDirectory() as folder:
        page = make_page(
            model, processor, example_pictures(args.pictures, Path(folder)), f"QLSeg · {Path(args.model).name}"
        )
        # no server-side rendering, which needs node; no history, which would fill the browser's storage
        page.launch(ssr_mode=False, run_history=False, max_file_size="50mb", footer_links=["api", "gradio"])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=os.environ.get("QLSEG_MODEL"), help="folder or Hub id of a QLSeg model")
    pictures = os.environ.get("QLSEG_PICTURES")
    parser.add_argument(
        "--pictures", type=Path, default=pictures and Path(pictures), metavar="DIR", help="examples (default: drawn)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(exit_status("app.py", serve, arguments))
