"""The page of `qlseg app`: its functions without Gradio, and the page itself in a browser."""

import base64
import importlib.util
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import FIXTURES, ROOT
from networks import rename_labels, tiny_config
from PIL import Image
from programs import free_port

from qlseg_hf import QLSegImageProcessor, load_picture, place_for_inference, segment
from qlseg_hf.app import page as app
from qlseg_hf.cli.main import run
from qlseg_hf.data.scenes import draw_scene
from qlseg_hf.hub.loading import load_network
from qlseg_hf.utils.devices import fastest_dtype
from qlseg_hf.utils.visualization import label_colors

HOSTILE = ["<script>window.hacked = 1</script>", "<img src=x onerror='window.hacked = 1'>", 'a & "b" ${1} {{c}}']


def decoded(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.split(",", 1)[1])))


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is large and has no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1000) + b"IDAT"


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("words.png", b"hello", "words.png cannot be read: cannot identify image file 'words.png'"),
        ("cut.png", (FIXTURES / "a" / "wide.png").read_bytes()[:2000], "cut.png cannot be read as a picture"),
        ("large.png", png_header(9000, 8000), "large.png has 9000 × 8000 pixels; at most 64 million are read"),
        ("strip.png", png_header(801, 100), "strip.png has 801 × 100 pixels; at most 8 times as long as wide"),
    ],
)
def test_refused_files(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as refusal:
        app.read_upload(str(tmp_path / name))
    assert str(tmp_path) not in str(refusal.value)  # a stranger learns nothing of the server's folders


def test_large_pictures_are_shrunk(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    picture = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(picture).save(path)
    monkeypatch.setattr(app, "MAX_PIXELS", 60 * 90)
    same, remark = app.read_upload(str(path))
    assert np.array_equal(same, picture) and remark == ""
    monkeypatch.setattr(app, "MAX_PIXELS", 30 * 45)
    small, remark = app.read_upload(str(path))
    assert small.shape == (30, 45, 3) and small.dtype == np.uint8 and remark == "shrunk from 90 × 60"


@pytest.mark.parametrize("num_labels", [3, 300])
def test_view_holds_the_label_map(num_labels):
    names = dict(enumerate(HOSTILE + [f"class {i}" for i in range(3, num_labels)]))
    config = tiny_config(num_labels, id2label=names, semantic_loss_ignore_index=-100)
    rng = np.random.default_rng(1)
    picture = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    labels = np.where(rng.random((20, 30)) < 0.7, 1, rng.integers(0, num_labels, (20, 30)))
    view = app.view_of(picture, torch.tensor(labels), config)
    assert np.array_equal(np.asarray(decoded(view["label_map"])), labels)
    numbers = np.frombuffer(zlib.decompress(base64.b64decode(view["labels"])), dtype="<u2")
    assert np.array_equal(numbers.reshape(view["height"], view["width"]), labels)
    assert decoded(view["picture"]).size == (30, 20)
    assert {label for label, *_ in view["legend"]} == set(labels.flatten().tolist())
    colors = label_colors(config)
    for label, name, color, _ in view["legend"]:
        assert name == names[label] and color == "#{:02x}{:02x}{:02x}".format(*colors[label])
    assert view["legend"][0][:2] == [1, HOSTILE[1]]
    assert json.loads(json.dumps(view)) == view


@pytest.mark.parametrize("mode", app.MODES)
def test_segmented_is_segment_and_reports_every_window(tiny_model, tmp_path, mode):
    processor = QLSegImageProcessor(size={"shortest_edge": 32}, window_size=32, window_stride=20)
    path = tmp_path / "my picture.png"
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (40, 70, 3), dtype=np.uint8)).save(path)
    reports = []
    view = app.segment_upload(
        tiny_model, processor, str(path), mode, lambda done, total: reports.append((done, total))
    )
    expected = segment(tiny_model, processor, path, **app.MODES[mode])[0]
    assert np.array_equal(np.asarray(decoded(view["label_map"])), expected.numpy())
    assert view["file"] == "my picture_labels.png" and "70 × 40 pixels" in view["summary"]
    total = reports[0][1]
    assert reports[0] == (0, total) and reports[-1] == (total, total) and total > 1
    assert [done for done, _ in reports] == sorted({done for done, _ in reports}) and len(reports) > 1
    assert not tiny_model._forward_hooks


@pytest.mark.parametrize(
    "mode, sentence",
    [
        ("Single scale", "There is no picture yet: upload one, or pick an example."),
        ("Triple", "Triple is none of Single scale, Multi-scale + flip."),
    ],
)
def test_wrong_input_is_a_sentence(tiny_model, mode, sentence):
    view = app.segment_upload(tiny_model, QLSegImageProcessor(), None, mode, lambda done, total: None)
    assert view == {"error": sentence}


def test_example_pictures(tmp_path):
    drawn = app.example_pictures(None, tmp_path)
    assert len(drawn) == app.NUM_SCENES
    assert np.array_equal(load_picture(drawn[1]), draw_scene(0, "validation", 1, app.SCENE_SIZE)[0])
    (tmp_path / "words.txt").write_text("hello")
    assert app.example_pictures(tmp_path, tmp_path) == drawn
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no picture"):
        app.example_pictures(tmp_path / "empty", tmp_path)


def test_wrong_arguments_are_a_sentence(capsys, monkeypatch):
    assert run(["app", "model", "--pictures", "nowhere"]) == 1
    assert capsys.readouterr().err == "qlseg app: nowhere is no folder of pictures\n"
    monkeypatch.delenv("QLSEG_MODEL", raising=False)
    assert run(["app"]) == 2 and "Missing argument 'MODEL'" in capsys.readouterr().err


@pytest.mark.parametrize("given, dtype", [(("--dtype", "float32"), "float32"), ((), "bfloat16")])
def test_dtype(capsys, monkeypatch, given, dtype):
    def load_network(source, dtype):
        raise ValueError(f"{source} in {dtype}")

    monkeypatch.setattr(app, "load_network", load_network)
    monkeypatch.setattr(app, "fastest_dtype", lambda device: "bfloat16")
    assert run(["app", "model", *given]) == 1
    assert capsys.readouterr().err == f"qlseg app: model in torch.{dtype}\n"


def post(address: str, body: bytes, kind: str) -> dict | list:
    request = urllib.request.Request(address, body, {"Content-Type": kind})
    return json.loads(urllib.request.urlopen(request, timeout=60).read())


def network_of_the_page(stored):
    """As the page loads it: in bf16 where this processor is fastest in that."""
    device = torch.device("cpu")
    network, _ = load_network(stored.folder, dtype=getattr(torch, fastest_dtype(device)))
    return place_for_inference(network, device)


@pytest.fixture
def server(stored, tmp_path):
    """The page as a Space runs it: app.py and the package in one folder, the model in a variable."""
    apart = Path(sys.prefix) / "app"  # where `make test-all` puts gradio, which wants an older Pillow
    if not (apart / "gradio").is_dir() and importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed; `make test-all` installs it")
    space, model = tmp_path / "space", tmp_path / "model"
    shutil.copytree(ROOT / "qlseg_hf", space / "qlseg_hf")
    shutil.copy(ROOT / "examples" / "space_app.py", space / "app.py")
    shutil.copytree(stored.folder, model)
    used = segment(network_of_the_page(stored), stored.processor, stored.picture("large"))[0].unique().tolist()
    assert len(used) >= len(HOSTILE)
    names = rename_labels(model, dict(zip(used, HOSTILE)))
    port, log = free_port(), tmp_path / "server.log"
    environment = os.environ | {"PYTHONPATH": str(apart), "QLSEG_MODEL": str(model)}
    environment |= {"GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(tmp_path / "uploads")}
    with open(log, "w") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=space, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(address, timeout=10)
                break
            except urllib.error.URLError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.5)
        yield SimpleNamespace(address=address, log=log, names=names)
    finally:
        process.terminate()
        process.wait(timeout=300)


def press(page) -> None:
    page.get_by_role("button", name="Segment").click()


def message(page, beginning: str) -> str:
    found = page.locator(".message", has_text=beginning)
    found.wait_for(timeout=120_000)
    return found.text_content()


def upload(page, path: Path) -> None:
    if page.get_by_label("Remove Image").count():
        page.get_by_label("Remove Image").click()
    page.set_input_files("input[type=file]", path)
    page.get_by_label("Remove Image").wait_for()


def legend_names(page) -> list[str]:
    return page.locator(".legend .name").all_text_contents()


def expected_names(label_map: np.ndarray, names: dict[int, str]) -> list[str]:
    values, counts = np.unique(label_map, return_counts=True)
    return [names[label] for label in values[np.argsort(-counts, kind="stable")].tolist()]


def tint(page, shape: tuple[int, int]) -> np.ndarray:
    """(H, W, 4) what the browser painted over the picture."""
    page.evaluate("new Promise(requestAnimationFrame)")
    values = page.evaluate(
        "() => { const c = document.querySelector('.stage canvas');"
        "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; }"
    )
    return np.array(values, dtype=np.uint8).reshape(*shape, 4)


def inner(label_map: np.ndarray) -> np.ndarray:
    """True where the pixel's left and upper neighbour have its label: not on a border."""
    same = np.ones(label_map.shape, dtype=bool)
    same[:, 1:] &= label_map[:, 1:] == label_map[:, :-1]
    same[1:] &= label_map[1:] == label_map[:-1]
    return same


def downloaded(page, path: Path) -> Image.Image:
    with page.expect_download() as download:
        page.locator(".download").click()
    download.value.save_as(path / download.value.suggested_filename)
    return Image.open(path / download.value.suggested_filename)


def hover(page, row: int, column: int, shape: tuple[int, int]) -> str | None:
    """Text of the tip at a pixel of the picture; None if there is none."""
    box = page.locator(".stage canvas").bounding_box()
    x, y = ((place + 0.5) / length for place, length in ((column, shape[1]), (row, shape[0])))
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    tip = page.locator(".tip")
    return tip.text_content() if tip.is_visible() else None


@pytest.mark.slow
@pytest.mark.parametrize("stored", ["a"], indirect=True)
def test_the_page_in_a_browser(stored, server, page, tmp_path):
    model, picture = network_of_the_page(stored), stored.picture("large")
    page.goto(server.address)
    assert message(page, "Choose a picture") == "Choose a picture, then press Segment."

    press(page)
    assert "no picture yet" in message(page, "There is")
    (tmp_path / "<b>broken.png").write_text("hello")
    upload(page, tmp_path / "<b>broken.png")
    press(page)
    assert "cannot identify image file" in message(page, "broken.png")
    assert not page.locator(".view").is_visible()

    upload(page, picture)
    press(page)
    message(page, "windows in")
    labels = segment(model, stored.processor, picture)[0].numpy()
    assert legend_names(page) == expected_names(labels, server.names)
    assert set(HOSTILE) <= set(legend_names(page)) and page.evaluate("window.hacked") is None
    painted = tint(page, labels.shape)
    assert np.array_equal(painted[inner(labels), :3], label_colors(model.config)[labels[inner(labels)]])
    assert (painted[~inner(labels)] == 255).all() and (painted[..., 3] == 255).all()

    places = [(row, column) for row in range(3, labels.shape[0], 45) for column in range(3, labels.shape[1], 45)]
    seen = {place: hover(page, *place, labels.shape) for place in places}
    assert seen == {place: server.names[int(labels[place])] for place in places} and len(set(seen.values())) > 2
    near = page.locator(".legend .near .name").all_text_contents()
    assert near == [seen[places[-1]]]
    page.mouse.move(5, 5)
    assert not page.locator(".tip").is_visible()

    before = len(page.requests)  # from here on the browser needs nobody
    page.locator(".opacity").fill("20")
    assert page.evaluate("getComputedStyle(document.querySelector('.stage canvas')).opacity") == "0.2"
    page.locator(".none").click()
    assert not tint(page, labels.shape).any()
    chosen = int(np.bincount(labels.flatten()).argmax())
    page.locator(".legend label").first.click()
    page.mouse.move(5, 5)
    assert np.array_equal(tint(page, labels.shape)[..., 3] > 0, labels == chosen)
    hidden, shown = (rows[len(rows) // 2].tolist() for rows in map(np.argwhere, (labels != chosen, labels == chosen)))
    assert hover(page, *hidden, labels.shape) is None
    assert hover(page, *shown, labels.shape) == server.names[chosen]
    page.locator(".all").click()
    page.mouse.move(5, 5)
    assert (tint(page, labels.shape)[..., 3] == 255).all()
    saved = downloaded(page, tmp_path)
    assert Path(saved.filename).name == "large_labels.png" and saved.mode == "P"
    assert np.array_equal(np.asarray(saved), labels)
    assert page.requests[before:] == []

    scene = draw_scene(0, "validation", 0, app.SCENE_SIZE)[0]  # the first example, averaged over twelve passes
    page.evaluate(
        "new MutationObserver(() => { if (document.querySelector('.progress-bar')) window.progress = 1; })"
        ".observe(document.body, { subtree: true, childList: true })"
    )
    page.get_by_label("Multi-scale + flip").check()
    page.locator(".gallery-item").first.click()
    page.wait_for_timeout(1000)
    press(page)
    message(page, f"{scene.shape[1]} × {scene.shape[0]} pixels")
    assert page.evaluate("window.progress") == 1
    labels = segment(model, stored.processor, scene, **app.MODES["Multi-scale + flip"])[0].numpy()
    assert legend_names(page) == expected_names(labels, server.names)
    assert np.array_equal(np.asarray(downloaded(page, tmp_path)), labels)
    page.screenshot(path=tmp_path / "page.png")

    outside = [url for url in page.requests if not url.startswith((server.address, "data:", "blob:"))]
    assert outside == [] and page.faults == [] and "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("stored", ["a"], indirect=True)
def test_files_of_the_server_are_not_served(stored, server):
    """The page does without Gradio's preprocessing; Gradio must still refuse paths that were not uploaded."""
    picture = stored.picture("wide")
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="wide.png"\r\n\r\n'
    body += picture.read_bytes() + b"\r\n--x--\r\n"
    [uploaded] = post(f"{server.address}/gradio_api/upload", body, "multipart/form-data; boundary=x")
    address = f"{server.address}/gradio_api/call/segment"
    for path, event, has_result in ((uploaded, "complete", True), (str(picture), "error", False)):
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, "Single scale"]
        call = post(address, json.dumps({"data": data}).encode(), "application/json")["event_id"]
        answer = urllib.request.urlopen(f"{address}/{call}", timeout=60).read().decode()
        assert f"event: {event}" in answer and ("data:image" in answer) == has_result
