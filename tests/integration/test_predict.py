"""`qlseg predict` as a user runs it: what `segment` gives, failures listed, and a rerun that does what is missing."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES
from media import read_maps, read_video, write_raster, write_video
from networks import tiny_model_and_processor
from PIL import Image
from programs import environment, read_lines, stats_of
from training_runs import children

from qlseg_hf import segment
from qlseg_hf.utils.hashing import file_sha256

NUM_IMAGES, NUM_BROKEN = 40, 2


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Images of mixed sizes and depths, two of them broken."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        height, width = rng.integers(20, 140, 2)
        coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        place = folder / ("sub" if number % 3 else "") / ("deep" if number % 2 else "")
        place.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(coarse).resize((int(width), int(height)), Image.BICUBIC)
        picture.save(place / f"{number:03d}.{'jpg' if number % 4 else 'png'}")
    (folder / "text.jpg").write_text("hello")
    (folder / "cut.jpg").write_bytes(next(folder.glob("*.jpg")).read_bytes()[:300])
    return folder


@pytest.fixture(scope="module")
def predict(server):
    """Run `qlseg predict`; its exit status must be `expect`."""

    return lambda *arguments, expect=0, **settings: server.complete("predict", *arguments, expect=expect, **settings)


def tree(output: Path) -> dict[str, str]:
    """sha256 of every file, by path."""
    return {str(path.relative_to(output)): file_sha256(path) for path in sorted(output.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(predict, network, images, tmp_path_factory) -> Path:
    """What one undisturbed run leaves."""
    output = tmp_path_factory.mktemp("whole") / "out"
    done = predict(network, images, "--output", output, "--format", FORMATS, expect=3)
    assert f"{NUM_IMAGES} images segmented, {NUM_BROKEN} failed: see {output / 'failures.jsonl'}" in done.stdout
    assert f"{NUM_IMAGES + NUM_BROKEN}/{NUM_IMAGES + NUM_BROKEN}" in done.stderr and "failed=2" in done.stderr
    return output


FORMATS = "labels,overlay,confidence,csv,coco"


def test_label_maps_equal_segments(whole, images):
    model, processor = tiny_model_and_processor()
    found = read_maps(whole)
    assert len(found) == NUM_IMAGES
    for path in images.rglob("*.*"):
        name = path.relative_to(images).with_suffix("").as_posix()
        if name in ("text", "cut"):
            continue
        (expected,), (share,) = segment(model, processor, path, return_confidence=True)
        assert np.array_equal(found[name], expected.numpy()), name
        shown = np.asarray(Image.open(whole / "confidence" / f"{name}.png"))
        assert np.abs(shown - 255 * share.numpy()).max() <= 0.51
        overlay = Image.open(whole / "overlay" / f"{name}.png")
        assert overlay.height >= expected.shape[0] and overlay.width > expected.shape[1]


def test_tables_hold_each_image_once(whole):
    found = read_maps(whole)
    areas = {}
    for row in csv.DictReader((whole / "areas.csv").open()):
        areas.setdefault(row["image"], {})[int(row["label"])] = int(row["pixels"])
    counted = {tuple(zip(*np.unique(labels, return_counts=True))) for labels in found.values()}
    assert len(areas) == NUM_IMAGES and {tuple(sorted(area.items())) for area in areas.values()} == counted
    coco = json.loads((whole / "coco.json").read_text())
    assert len(coco["images"]) == NUM_IMAGES and len(coco["categories"]) == 20
    assert len({(a["image_id"], a["category_id"]) for a in coco["annotations"]}) == len(coco["annotations"])
    failures = read_lines(whole / "failures.jsonl")
    assert [failure["name"] for failure in failures] == ["cut", "text"]
    assert "cut.jpg cannot be read" in failures[0]["reason"] and "cannot identify image file" in failures[1]["reason"]


def test_a_rerun_does_what_is_missing(predict, whole, network, images, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(whole, output, copy_function=shutil.copy2)
    (output / "labels" / "000.png").unlink()
    (output / "labels" / "sub" / "001.png").unlink(missing_ok=True)
    missing = len(read_maps(whole)) - len(read_maps(output))
    before = stats_of(output / "overlay")
    done = predict(network, images, "--output", output, "--format", FORMATS, expect=3)
    assert f"{missing} images segmented, {NUM_IMAGES - missing} were done before, 2 failed" in done.stdout
    changed = [path for path, stat in stats_of(output / "overlay").items() if before[path] != stat]
    assert len(changed) == missing
    assert tree(output) == tree(whole)
    done = predict(network, images, "--output", output, "--scales", "1,2", expect=1)
    assert "holds results of other settings (scales: [1.0] there, [1.0, 2.0] here)" in done.stderr
    assert tree(output) == tree(whole)


def test_strict_stops_at_the_first_failure(predict, network, images, tmp_path):
    done = predict(network, images, "--output", tmp_path / "out", "--strict", "--workers", 0, expect=1)
    assert "cannot be read as a picture" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_one_by_one_as_in_workers(predict, network, images, whole, tmp_path):
    output = tmp_path / "out"
    predict(network, images, "--output", output, "--format", FORMATS, "--workers", 0, expect=3)
    assert tree(output) == tree(whole)
    small = tmp_path / "small"
    predict(network, images, "--output", small, "--format", "labels", "--max_memory_mb", 70, expect=3)
    found, expected = read_maps(small), read_maps(whole)
    assert found.keys() == expected.keys()
    assert max((found[name] != expected[name]).mean() for name in found) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, options, settings",
    [
        (["--scales", "1,1.5", "--flip"], {"scales": (1, 1.5), "flip": True}, {}),
        (["--labels", "LABEL_3,7"], {}, {}),
        (["--do_resize", "false"], {}, {"do_resize": False}),
    ],
    ids=["runs", "labels", "do_resize"],
)
def test_options(predict, words, options, settings, network, images, tmp_path):
    path = images / "000.png"
    predict(network, path, "--output", tmp_path / "out", *words)
    expected = segment(*tiny_model_and_processor(**settings), path, **options)[0].numpy()
    if words[0] == "--labels":
        expected = np.where(np.isin(expected, [3, 7]), expected, 255)
    assert np.array_equal(read_maps(tmp_path / "out")["000"], expected)
    assert (expected != segment(*tiny_model_and_processor(), path)[0].numpy()).any()


def test_rasters(predict, network, tmp_path):
    """Block by block where nothing else is asked for, and the same map as beside other formats."""
    rasterio = pytest.importorskip("rasterio")
    (tmp_path / "in").mkdir()
    for number in range(2):
        values = np.random.default_rng(number).integers(0, 256, (3, 9, 13), dtype=np.uint8).repeat(10, 1).repeat(10, 2)
        write_raster(tmp_path / "in" / f"{number}.tif", values)
    arguments = (network, tmp_path / "in", "--do_resize", "false", "--output")
    predict(*arguments, tmp_path / "blocks", "--format", "geotiff,csv")
    predict(*arguments, tmp_path / "wholes", "--format", "geotiff,csv,labels,geojson")
    for number in range(2):
        with rasterio.open(tmp_path / "blocks" / "geotiff" / f"{number}.tif") as file:
            found, crs, transform = file.read(1), file.crs, file.transform
        with rasterio.open(tmp_path / "wholes" / "geotiff" / f"{number}.tif") as file:
            assert np.array_equal(found, file.read(1)) and (crs, transform) == (file.crs, file.transform)
        assert np.array_equal(found, read_maps(tmp_path / "wholes")[str(number)]) and crs.to_epsg() == 32632
    areas = [(tmp_path / folder / "areas.csv").read_text() for folder in ("blocks", "wholes")]
    assert areas[0] == areas[1]
    done = predict(*arguments, tmp_path / "blocks", "--format", "geotiff,csv")
    assert "0 images segmented, 2 were done before" in done.stdout


def test_videos(predict, network, tmp_path):
    """Beside pictures, each done once; one that fails leaves the others be."""
    write_video(tmp_path / "clip.mp4", 7, 48, 64, codec="libx264")
    (tmp_path / "text.mp4").write_text("hello")
    arguments = [network, *(tmp_path / name for name in ("clip.mp4", "text.mp4")), FIXTURES / "b" / "wide.png"]
    arguments += ["--output", tmp_path / "out"]
    done = predict(*arguments, expect=3)
    assert "2 images segmented, 1 failed" in done.stdout
    found = [labels for _, labels in read_video(tmp_path / "out" / "labels" / "clip.mkv", "gray")]
    pictures = [picture for _, picture in read_video(tmp_path / "clip.mp4", "rgb24")]
    expected = segment(*tiny_model_and_processor(), pictures)
    assert len(found) == 7 and all(map(np.array_equal, found, expected))
    assert (tmp_path / "out" / "overlay" / "clip.mp4").exists() and list(read_maps(tmp_path / "out")) == ["wide"]
    assert "0 images segmented, 2 were done before, 1 failed" in predict(*arguments, expect=3).stdout


def test_two_processes_give_what_one_gives(predict, whole, network, images, tmp_path):
    output = tmp_path / "out"
    arguments = [network, images, "--output", output, "--format", FORMATS, "--workers", 1]
    done = predict(*arguments, processes=2, expect=3)
    assert done.stdout.count(f"{NUM_IMAGES} images segmented, 2 failed") == 1, done.stderr  # one of them says it
    assert tree(output) == tree(whole)
    done = predict(*arguments, "--scales", 3, processes=2, expect=1)
    assert done.stderr.count("holds results of other settings") == 1


def kill_and_resume(network, images, output: Path, steps: list[int]) -> list[int]:
    """Kill a run when it has written so many more files, each time going on; the files that were there then."""
    command = [sys.executable, "-m", "qlseg_hf", "predict", network, images, "--output", output, "--format", FORMATS]
    counts, rng = [], np.random.default_rng(0)
    for step in steps:
        wanted = len(written(output)) + step
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started = subprocess.Popen([*map(str, command), "--workers", "1"], env=environment(), **quiet)
        while len(written(output)) < wanted and started.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.03))
        started.kill()
        started.wait()
        for path in written(output):
            if path.suffix == ".png":
                Image.open(path).load()  # whole
        counts.append(len(written(output)))
    return counts


def written(output: Path) -> list[Path]:
    """Files that have their names; those that are being written come and go meanwhile."""
    found = [Path(place) / name for place, _, names in os.walk(output) for name in names]
    return [path for path in found if ".partial-" not in str(path)]


@pytest.mark.slow
@pytest.mark.parametrize("steps", [[1, 30, 50], pytest.param([0, 1, 1, 2, 3] * 10, marks=pytest.mark.faults)], ids=len)
def test_killed_and_resumed(predict, steps, whole, network, images, tmp_path):
    """Nothing is half-written, and the rerun ends as an undisturbed run does."""
    output = tmp_path / "out"
    counts = kill_and_resume(network, images, output, steps)
    assert sum(0 < count < len(written(whole)) for count in counts) > len(steps) / 2
    predict(network, images, "--output", output, "--format", FORMATS, expect=3)
    assert tree(output) == tree(whole)
    print(f"killed {len(steps)} times; files after each, of {len(written(whole))}: {counts}")


@pytest.mark.slow
def test_a_worker_that_dies_is_told(predict, network, images, tmp_path):
    """And the same command goes on."""
    many, output = tmp_path / "many", tmp_path / "out"
    for number in range(2):  # so that it is at work for seconds after its first label map
        shutil.copytree(images, many / str(number))
    options = [many, "--output", output, "--workers", "2", "--scales", "1,1.5,2", "--flip"]
    command = [sys.executable, "-m", "qlseg_hf", "predict", network, *options]
    started = subprocess.Popen([*map(str, command)], env=environment(), stderr=subprocess.PIPE, text=True)
    workers = []
    while not (workers and (output / "labels").exists()):
        assert started.poll() is None, "it has ended before a worker was found at work"
        workers = [worker for server in children(started.pid) for worker in children(server)]
    os.kill(workers[0], signal.SIGKILL)
    stderr = started.communicate(timeout=600)[1]
    assert started.returncode == 1 and "a process that reads or writes images has died" in stderr
    assert "Traceback" not in stderr
    predict(network, *options, expect=3)
    assert len(read_maps(output)) == 2 * NUM_IMAGES


def test_what_is_refused_before_anything_is_written(predict, network, tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "in" / "a.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "in" / "a.jpg")
    wide = FIXTURES / "b" / "wide.png"
    for model, source, more, status, sentence in (
        (network, tmp_path / "none.jpg", (), 1, "No such file or directory"),
        (network, tmp_path / "in", (), 1, "would both give a.png"),
        (network, wide, ("--format", "labels,mask"), 1, "--format does not know mask"),
        (network, wide, ("--labels", "LABEL_1,cat"), 1, "the model has no labels ['cat']"),
        (tmp_path / "no_model", wide, (), 1, "no_model"),
        (wide, network, (), 1, "wide.png is a file; a model is a folder"),
        (network, wide, ("--device", "gpu"), 2, "this machine has no device 'gpu': "),
    ):
        done = predict(model, source, "--output", tmp_path / "out", *more, expect=status)
        assert sentence in done.stderr and "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()
