"""The page that segments in the browser: what is written, its arithmetic in node, and the page itself in Chromium."""

import functools
import http.server
import io
import json
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from networks import rename_labels, tiny_config
from PIL import Image

from qlseg_hf import QLSegConfig, QLSegForSemanticSegmentation, QLSegImageProcessor, segment
from qlseg_hf.cli.main import run as run_command
from qlseg_hf.export import OnnxQLSeg, web, web_runtime
from qlseg_hf.export.onnx import OUTPUTS, make_program
from qlseg_hf.export.stored_weights import shrink_weights
from qlseg_hf.model.image_io import load_picture, resize_picture
from qlseg_hf.model.windows import place_windows
from qlseg_hf.utils.visualization import label_colors, label_map_picture

onnx_ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")
HOSTILE = ["<img src=x onerror='window.hacked = 1'>", "</script><script>window.hacked = 1</script>", 'a "b" & c']


@pytest.fixture
def runtime(tmp_path) -> Path:
    """Stands in for the folder of onnxruntime-web."""
    folder = tmp_path / "runtime_files"
    folder.mkdir()
    for name in web_runtime.FILES:
        (folder / name).write_text(f"// {name}")
    return folder


@pytest.fixture(scope="module")
def hostile_model(stored, tmp_path_factory) -> SimpleNamespace:
    """The stored network, whose graph other tests make too, with names that are HTML."""
    folder = tmp_path_factory.mktemp("hostile") / "---\n<b>net"
    shutil.copytree(stored.folder, folder)
    names = rename_labels(folder, dict(enumerate(HOSTILE)))
    processor = QLSegImageProcessor(
        size={"shortest_edge": 32}, window_size=32, window_stride=20, image_mean=[0.4, 0.5, 0.6], image_std=0.25
    )
    processor.save_pretrained(folder)
    return SimpleNamespace(folder=folder, config=QLSegConfig.from_pretrained(folder), processor=processor, names=names)


@pytest.fixture(scope="module")
def graph(hostile_model, traced_once) -> Path:
    """The file of its network, with weights in fp32."""
    model = QLSegForSemanticSegmentation.from_pretrained(hostile_model.folder)
    path = hostile_model.folder.with_name("net.onnx")
    onnx_ir.save(make_program(model, hostile_model.processor, OUTPUTS), path)
    return path


@pytest.mark.parametrize("stored", ["b"], indirect=True)
def test_what_is_written(hostile_model, traced_once, runtime, tmp_path, capsys):
    place = tmp_path / "new" / "page"
    arguments = ["--format", "web", "--output", place, "--weights", "fp16", "--runtime", runtime]
    assert run_command(["export", hostile_model.folder, *arguments]) == 0, capsys.readouterr().err
    found = {file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file()}
    own = {file.name for file in web.PAGE.iterdir()}
    assert own == {"index.html", "page.js", "png.js", "processing.js", "style.css", "sw.js", "worker.js"}
    examples = {f"examples/scene_{number}.png" for number in (1, 2, 3)}
    stored = {f"runtime/{name}" for name in (*web_runtime.FILES, "LICENSE.txt")}
    assert found == own | examples | stored | {"README.md", "model.onnx", "settings.json"}
    for name in own:
        assert (place / name).read_bytes() == (web.PAGE / name).read_bytes()  # so that no name gets into them
    for name in web_runtime.FILES:
        assert (place / "runtime" / name).read_text() == f"// {name}"

    about = json.loads((place / "settings.json").read_text())
    colors = label_colors(hostile_model.config).tolist()
    expected = [{"name": hostile_model.names[label], "color": color} for label, color in enumerate(colors)]
    assert about["labels"] == expected
    assert about["processor"] == {
        "do_resize": True,
        "size": {"shortest_edge": 32},
        "do_sliding_window": True,
        "window_size": 32,
        "window_stride": 20,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.25] * 3,
    }
    assert about["model"] == {"file": "model.onnx", "bytes": (place / "model.onnx").stat().st_size, "weights": "fp16"}
    assert set(about["examples"]) == examples and about["title"] == "--- <b>net"
    assert about["label_agreement"] >= 0.995 and len(about["check"]["scores"]) == 64
    head = (place / "README.md").read_text().split("---\n", 2)[1]  # YAML, of which a title in JSON is part
    assert "sdk: static\n" in head and 'title: "--- <b>net"\n' in head
    assert "https:" not in "".join((web.PAGE / name).read_text() for name in own)

    assert run_command(["export", hostile_model.folder, *arguments]) == 1
    assert "exists; name another folder" in capsys.readouterr().err


@pytest.mark.parametrize("stored", ["b"], indirect=True)
@pytest.mark.parametrize("kind, most", [("fp16", 0.56), ("int8", 0.36)])
def test_stored_weights(hostile_model, graph, tmp_path, kind, most):
    """Weights in fewer bytes give nearly the same scores; whole labels are compared by the export."""
    program, path = onnx_ir.load(graph), tmp_path / "net.onnx"

    def num_bytes() -> int:
        return sum(value.const_value.nbytes for value in program.graph.initializers.values())

    before = num_bytes()
    shrink_weights(program, kind)
    assert num_bytes() < most * before
    onnx_ir.save(program, path)
    pixels = torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    expected, found = (OnnxQLSeg.from_pretrained(file)(pixels).logits for file in (graph, path))
    assert (found - expected).abs().max() < (0.002 if kind == "fp16" else 0.05) * expected.max()
    assert not torch.equal(found, expected)


def test_refusals(tiny_model, runtime, tmp_path, capsys):
    def refused(sentence: str, *options, **settings) -> None:
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        tiny_model.save_pretrained(folder)
        QLSegImageProcessor(**settings).save_pretrained(folder)
        assert run_command(["export", folder, *options]) > 0
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "page").exists() and not list(tmp_path.glob(".*"))

    page = [tmp_path / "page", "--format", "web", "--runtime", runtime]
    refused("rescale_factor is 1.5e-05, for more than 8 bits", *page, rescale_factor=1.5e-05)
    refused("the model takes images of 2 bands; a browser has RGB", *page, image_mean=[0.1] * 2, image_std=0.5)
    refused("--weights is for --format web", tmp_path / "page", "--weights", "fp16")
    refused("give one place to write to")
    refused("give one place to write to", tmp_path / "page", "--output", tmp_path / "page")
    refused("a page needs scores", *page, "--outputs", "labels")
    refused("a graph of labels has no logits", tmp_path / "page", "--outputs", "labels", "--without_logits")
    (runtime / web_runtime.FILES[-1]).unlink()
    refused(f"has no {web_runtime.FILES[-1]}; give the folder `dist` of onnxruntime-web", *page)


# ------------------------------------------------------------------------------------------------- the runtime's files


def package_of(files: dict[str, str]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as package:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(text)
            package.addfile(entry, io.BytesIO(text.encode()))
    return content.getvalue()


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """An npm registry on the loopback; `requests` are the paths asked for, `content` is what it gives."""
    state = SimpleNamespace(requests=[], content=package_of({name: name for name in web_runtime.FILES}))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state.requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(state.content)))
            self.end_headers()
            self.wfile.write(state.content)

        def log_message(self, *_):
            pass

    with serve(Handler) as state.address:
        monkeypatch.setenv("npm_config_registry", state.address)
        monkeypatch.setattr(web_runtime.constants, "HF_HOME", str(tmp_path / "home"))
        yield state


@contextmanager
def serve(handler) -> Iterator[str]:
    """A server on the loopback while the block runs; its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_runtime_is_fetched_once_and_checked(registry, tmp_path, monkeypatch):
    path = f"/onnxruntime-web/-/onnxruntime-web-{web_runtime.VERSION}.tgz"
    with pytest.raises(ValueError, match="gave another onnxruntime-web .* nothing is written"):
        web_runtime.copy_runtime(tmp_path / "first")
    assert registry.requests == [path] and not (tmp_path / "home").exists()

    monkeypatch.setattr(web_runtime, "INTEGRITY", web_runtime._integrity(registry.content))
    web_runtime.copy_runtime(tmp_path / "second")
    web_runtime.copy_runtime(tmp_path / "third")
    assert registry.requests == [path, path]
    for name in web_runtime.FILES:
        assert (tmp_path / "third" / name).read_text() == name
    assert "Microsoft" in (tmp_path / "third" / "LICENSE.txt").read_text()

    (kept,) = (tmp_path / "home" / "qlseg").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])  # a damaged one is fetched again
    web_runtime.copy_runtime(tmp_path / "fourth")
    assert registry.requests == [path] * 3


def test_runtime_cannot_be_fetched(registry, tmp_path, monkeypatch):
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"127.0.0.1:9/.* cannot be fetched: .*; give --runtime FOLDER"):
        web_runtime.copy_runtime(tmp_path / "first")
    monkeypatch.setattr(web_runtime.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set .*; give --runtime FOLDER"):
        web_runtime.copy_runtime(tmp_path / "second")


# ------------------------------------------------------------------------------------------- the page's own arithmetic


def in_node(tmp_path: Path, script: str, **inputs) -> dict:
    """What a script of ES modules prints as JSON; `inputs` are its constants."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine (Debian: apt-get install nodejs)")  # pip has none
    for name in ("processing.js", "png.js"):
        (tmp_path / name).with_suffix(".mjs").write_bytes((web.PAGE / name).read_bytes())
    constants = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in inputs.items())
    (tmp_path / "script.mjs").write_text(constants + script)
    done = subprocess.run([node, tmp_path / "script.mjs"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "size, short, window, stride", [((47, 90), 32, 32, 20), ((33, 21), 40, 64, 33), ((9, 8), 8, 8, 8)]
)
def test_processing_is_that_of_the_processor(tmp_path, size, short, window, stride):
    processor = QLSegImageProcessor(
        size={"shortest_edge": short}, window_size=window, window_stride=stride, image_std=[0.2, 0.3, 0.4]
    )
    settings, rng = processor.settings(), np.random.default_rng(0)
    picture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    rgba = np.concatenate([picture, np.full((*size, 1), 255, np.uint8)], axis=2)
    scores = rng.random((5, *settings.resized_size(*size)), dtype=np.float32)
    scores[3] = scores[1]  # equal ones: the first is taken
    script = """
import { labelMap, placeWindows, resizedSize, resizeImage, Scores, windowPixels } from './processing.mjs';
const resized = resizedSize(...size, processor), places = placeWindows(resized, processor);
const planes = resizeImage(rgba, size, resized), sum = new Scores(5, resized);
const pixels = places.map((place) => windowPixels(planes, resized, place, processor));
for (const { top, left, height, width } of places) { // windows of one map average to that map
  const part = new Float32Array(5 * height * width);
  for (let k = 0, i = 0; k < 5; k++) for (let y = 0; y < height; y++) for (let x = 0; x < width; x++)
    part[i++] = scores[(k * resized[0] + top + y) * resized[1] + left + x];
  sum.add(part, { top, left, height, width });
}
const { labels, confidence } = labelMap(sum.average(), 5, resized, size, () => {});
const lists = { planes, labels, confidence };
for (const name in lists) lists[name] = [...lists[name]];
console.log(JSON.stringify({ resized, places, pixels: pixels.map((p) => [...p]), ...lists }));
"""
    found = in_node(
        tmp_path,
        script,
        size=list(size),
        rgba=rgba.flatten().tolist(),
        scores=scores.flatten().tolist(),
        processor=web._describe_processor(settings),
    )
    resized = settings.resized_size(*size)
    places = place_windows(resized, *settings.window_sides(resized))
    planes = resize_picture(picture, resized)
    assert found["resized"] == list(resized)
    assert [(p["top"], p["left"]) for p in found["places"]] == [(rows[0], columns[0]) for rows, columns in places]
    assert np.array_equal(np.reshape(found["planes"], planes.shape), planes)
    for pixels, (rows, columns) in zip(found["pixels"], places, strict=True):
        expected = settings.normalized(planes[:, slice(*rows), slice(*columns)])
        torch.testing.assert_close(torch.tensor(pixels).view(expected.shape), expected, atol=1e-6, rtol=0)
    scaled = torch.nn.functional.interpolate(torch.tensor(scores)[None], size=size, mode="bilinear")[0]
    best = scaled.max(dim=0).values
    labels = torch.tensor(found["labels"]).view(size)
    chosen = scaled.gather(0, labels[None])[0]
    assert (best - chosen).max() < 1e-5 and (labels == scaled.argmax(dim=0)).float().mean() > 0.99
    share = torch.tensor(found["confidence"]).view(size) - 100 * chosen / scaled.sum(dim=0)
    assert share.abs().max() < 0.51


@pytest.mark.parametrize("num_labels", [7, 300])
def test_label_maps_as_png(tmp_path, num_labels):
    labels = np.random.default_rng(0).integers(0, num_labels, (5, 9))
    colors = label_colors(tiny_config(num_labels, semantic_loss_ignore_index=-100))
    script = """
import { encodePng } from './png.mjs';
const blob = await encodePng(Uint16Array.from(labels), 9, 5, colors);
console.log(JSON.stringify([...new Uint8Array(await blob.arrayBuffer())]));
"""
    found = in_node(tmp_path, script, labels=labels.flatten().tolist(), colors=colors.tolist())
    picture, expected = Image.open(io.BytesIO(bytes(found))), label_map_picture(labels, colors)
    picture.load()  # Pillow checks every sum
    assert np.array_equal(np.asarray(picture), labels) and picture.mode == expected.mode
    assert np.array_equal(np.asarray(picture.convert("RGB")), np.asarray(expected.convert("RGB"))) or num_labels > 256


# ----------------------------------------------------------------------------------------------- the page in a browser


def wait_for_result(page) -> str:
    """The line below the image when it has been segmented; AssertionError with the page's sentence if it fails."""
    page.locator("#result:not([hidden]), #status.error").first.wait_for(timeout=240_000)
    assert not page.locator("#status.error").count(), page.locator("#status").text_content()
    return page.locator("#status").text_content()


def downloaded(page, path: Path) -> Image.Image:
    with page.expect_download() as download:
        page.get_by_role("button", name="Download label map").click()
    download.value.save_as(path / download.value.suggested_filename)
    return Image.open(path / download.value.suggested_filename)


@pytest.mark.slow
@pytest.mark.parametrize("stored", ["a", "b"], indirect=True)
def test_the_page_in_a_browser(stored, page, tmp_path):
    kept = Path(web_runtime.constants.HF_HOME) / "qlseg"
    model_folder, place = tmp_path / "model", tmp_path / "page"
    shutil.copytree(stored.folder, model_folder)
    model, processor = stored.model(), stored.processor
    used = segment(model, processor, stored.picture("large"))[0].unique().tolist()
    names = rename_labels(model_folder, dict(zip(used, HOSTILE)))
    try:
        web.export_page(str(model_folder), place)
    except ValueError as error:
        if "cannot be fetched" not in str(error):
            raise
        pytest.skip(f"no npm registry: {error}")  # the runtime is not part of the repository
    assert kept.is_dir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with serve(functools.partial(Handler, directory=place)) as address:
        page.goto(address)
        page.get_by_text("Give an image to begin").wait_for()
        assert page.evaluate("self.crossOriginIsolated") and page.title() == "model"
        assert page.get_by_text("never leave").is_visible()

        (tmp_path / "<b>broken.png").write_text("hello")
        page.set_input_files("#file", tmp_path / "<b>broken.png")
        page.locator("#status.error").wait_for()
        assert "<b>broken.png is no image" in page.locator("#status").text_content()

        for name in ("wide", "tall", "large"):
            picture = stored.picture(name)
            labels, confidence = (found[0] for found in segment(model, processor, picture, return_confidence=True))
            page.set_input_files("#file", picture)
            page.get_by_text(f"{labels.shape[1]} × {labels.shape[0]} pixels").wait_for(timeout=240_000)
            wait_for_result(page)
            saved = downloaded(page, tmp_path)
            assert Path(saved.filename).name == f"{name}_labels.png" and saved.mode == "P"
            assert (np.asarray(saved) == labels.numpy()).mean() >= 0.99

        values, counts = np.unique(np.asarray(saved), return_counts=True)
        order = values[np.argsort(-counts, kind="stable")].tolist()
        assert page.locator("#legend .name").all_text_contents() == [names[label] for label in order]
        assert set(HOSTILE[: len(used)]) <= set(page.locator("#legend .name").all_text_contents())
        assert page.evaluate("window.hacked") is None

        row, column = labels.shape[0] // 3, labels.shape[1] // 2
        box = page.locator("#tint").bounding_box()
        x, y = ((spot + 0.5) / side for spot, side in ((column, labels.shape[1]), (row, labels.shape[0])))
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        name, _, percent = page.locator("#tip").text_content().rpartition(" · ")
        assert name == names[int(np.asarray(saved)[row, column])]
        assert abs(float(percent.split()[0]) - 100 * float(confidence[row, column])) <= 2

        page.mouse.move(2, 2)
        page.locator("#stage").focus()
        page.keyboard.press("ArrowLeft")
        assert page.locator("#tip").is_visible() and page.locator("#cross").is_visible()
        page.get_by_label("Opacity").fill("20")
        assert page.evaluate("getComputedStyle(document.querySelector('#tint')).opacity") == "0.2"
        page.locator("#legend input").first.uncheck()
        shown = page.evaluate(
            "() => { const c = document.querySelector('#tint'), d = c.getContext('2d');"
            "const { data } = d.getImageData(0, 0, c.width, c.height); let n = 0;"
            "for (let i = 3; i < data.length; i += 4) n += data[i] > 0; return n; }"
        )
        assert shown == (np.asarray(saved) != order[0]).sum()

        page.get_by_role("button", name="Example 1").click()
        scene = load_picture(place / "examples" / "scene_1.png")
        page.get_by_text(f"{scene.shape[1]} × {scene.shape[0]} pixels").wait_for(timeout=240_000)
        expected = segment(model, processor, scene)[0].numpy()
        assert (np.asarray(downloaded(page, tmp_path)) == expected).mean() >= 0.99

        page.get_by_role("button", name="Use the camera").click()
        page.get_by_role("button", name="Take the image").click()
        wait_for_result(page)
        assert Path(downloaded(page, tmp_path).filename).name == "camera_labels.png"
        assert not page.locator("#viewfinder").is_visible()

        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 860})
            # the image is fitted in the frame after; what stays too wide is a failure
            page.wait_for_function(f"document.documentElement.scrollWidth <= {width}", timeout=30_000)
            page.screenshot(path=tmp_path / f"page_{width}.png", full_page=True)
        outside = [url for url in page.requests if not url.startswith((address, "data:", "blob:"))]
        assert outside == [] and page.faults == []
        assert any("runtime/ort" in url for url in page.requests)  # so requests of the worker are seen too
