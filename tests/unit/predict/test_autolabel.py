"""Pseudo labels: what is kept, what is counted, and what the folder holds after another run."""

import json
import os

import numpy as np
import pytest
from made_data import put_image, write
from PIL import Image

from qlseg_hf import QLSegImageProcessor
from qlseg_hf.model.image_io import NamedBytes
from qlseg_hf.predict import autolabel as module
from qlseg_hf.predict.autolabel import Teacher, autolabel, choose_steps, describe_report, keep_confident, place_image
from qlseg_hf.predict.items import Item, LocalFile
from qlseg_hf.predict.manifest import Manifest
from qlseg_hf.predict.request import Request, Summary
from qlseg_hf.predict.run import source_options
from qlseg_hf.predict.sources import find_items

SIZE = (4, 6)


def teacher(num_labels: int = 3) -> Teacher:
    names = [f"label {label}" for label in range(num_labels)]
    colors = np.full((num_labels, 3), 7, dtype=np.uint8)
    return Teacher("a model", names, colors, QLSegImageProcessor())


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    for name in ("a.jpg", "train/b.png", "train/.c.png", "d.bmp"):
        put_image(folder / name, SIZE[::-1])
    return folder


@pytest.fixture
def predicted(monkeypatch, source):
    """`run(confidence, steps)`: autolabel as if the network had said label 1 in the left half, else 2.

    `steps`: confidence of the left and of the right half of each image, by name.
    """

    def run(confidence, steps, num_labels=3, meanwhile=None, least_share=0.0):
        def predict(request):
            items = {item.name: item for item in find_items([str(source)], source_options(request))[0]}
            manifest = Manifest(request.output)
            manifest.open({"weights_sha256": "0"})
            for name, halves in steps.items():
                left = np.arange(SIZE[1]) < SIZE[1] // 2
                for kind, values in (("labels", (1, 2)), ("confidence", halves)):
                    array = np.broadcast_to(np.where(left, *values), SIZE).astype(np.uint8)
                    write(request.output / kind / f"{name}.png", array)
                manifest.add(items[name], ("labels", "confidence"), *SIZE)
            manifest.join()
            if meanwhile is not None:
                meanwhile()
            return Summary(len(steps), 0, 0)

        monkeypatch.setattr(module, "predict", predict)
        monkeypatch.setattr(module, "read_teacher", lambda _: teacher(num_labels))
        output = source.parent / "out"
        _, report = autolabel(Request("m", (str(source),), output, workers=1), confidence, least_share)
        return output, report

    return run


def masks(output) -> dict[str, np.ndarray]:
    return {path.stem: np.asarray(Image.open(path)) for path in (output / "masks").iterdir()}


def test_pixels_below_the_threshold_are_void():
    labels, steps = np.array([[0, 1, 2, 2]]), np.array([[229, 230, 100, 99]])
    assert keep_confident(labels, steps, np.array([230, 230, 100]), 255).tolist() == [[255, 1, 2, 255]]


def counts_of(*labels: dict[int, int]) -> np.ndarray:
    counts = np.zeros((len(labels), 256), dtype=np.int64)
    for row, pixels in zip(counts, labels):
        row[list(pixels)] = list(pixels.values())
    return counts


def test_rare_labels_keep_their_surest_pixels():
    """A sure label goes by the threshold, an unsure one by its share, rounded up to a whole step of pixels."""
    counts = counts_of({250: 8, 100: 2}, {200: 5, 60: 1, 50: 4, 40: 10}, {}, {0: 10}, {230: 1, 10: 9})
    assert choose_steps(counts, 0.9, 0).tolist() == [230] * 5
    assert choose_steps(counts, 0.9, 0.2)[:2].tolist() == [230, 200]
    assert choose_steps(counts, 0.9, 0.3)[:2].tolist() == [230, 60]  # 6 of 20
    assert choose_steps(counts, 0.9, 0.31).tolist() == [230, 50, 1, 1, 10]
    assert choose_steps(counts, 0.2, 0.3)[1] == 51  # the threshold is lower
    assert choose_steps(counts, 0.9, 1.0)[:2].tolist() == [100, 40]
    assert choose_steps(counts, 0.9, 1e-9)[:2].tolist() == [230, 200]


def test_a_share_keeps_labels_that_are_never_sure(predicted):
    output, report = predicted(0.9, {"a": (255, 99), "d": (10, 100)}, least_share=0.4)
    assert [row["kept"] for row in report["labels"]] == [0, 12, 12] and report["num_left_out"] == 0
    assert [row["least"] for row in report["labels"][1:]] == [230 / 255, 100 / 255]
    found = masks(output)
    assert found["a"][0].tolist() == [1] * 3 + [255] * 3 and found["d"][0].tolist() == [255] * 3 + [2] * 3
    assert "label 2" not in str(report["warnings"])


@pytest.mark.parametrize("num_labels, void", [(2, 255), (255, 255), (256, 65535), (300, 65535)])
def test_void_is_outside_the_labels(num_labels, void):
    assert teacher(num_labels).void == void


def test_what_is_sure_is_kept_and_the_rest_left_out(predicted, source):
    """0.9 of 255 steps is 229.5, so 230 counts and 229 does not; folders and leading dots become part of names."""
    output, report = predicted(0.9, {"a": (230, 229), "train/b": (10, 229), "d": (255, 255)})
    found = masks(output)
    assert sorted(found) == ["a", "d"] and sorted(os.listdir(output / "images")) == ["a.jpg", "d.bmp"]
    assert found["a"][:, :3].tolist() == [[1] * 3] * 4 and found["a"][:, 3:].tolist() == [[255] * 3] * 4
    assert os.path.samefile(output / "images" / "a.jpg", source / "a.jpg")
    rows = report["labels"]
    assert [row["predicted"] for row in rows] == [0, 36, 36] and [row["kept"] for row in rows] == [0, 24, 12]
    assert [row["images"] for row in rows] == [0, 2, 1] and rows[0]["share_kept"] is None
    assert (report["num_images"], report["num_left_out"], report["left_out"]) == (2, 1, ["train/b"])
    assert report["share_kept"] == 0.5
    assert report["warnings"] == ["1 of 3 labels are never predicted: label 0"]
    assert json.loads((output / "autolabel.json").read_text()) == report
    text = describe_report(report, output)
    assert "2 images with labels in 50.0% of their pixels; 1 images without such a pixel are left out" in text


def test_a_label_that_is_never_sure_is_named(predicted):
    _, report = predicted(0.5, {"a": (200, 100)})
    assert "1 of 3 labels have no pixel, because their predictions are all less sure: label 2" in report["warnings"][1]


def test_another_threshold_makes_all_of_it_anew(predicted, source):
    predicted(0.5, {"a": (200, 200), "train/b": (150, 0), "d": (255, 0)})
    inode = (source.parent / "out" / "images" / "a.jpg").stat().st_ino
    output, report = predicted(0.9, {"a": (200, 230), "train/b": (150, 0), "d": (0, 0)})
    assert sorted(masks(output)) == ["a"] and os.listdir(output / "images") == ["a.jpg"]
    assert (output / "images" / "a.jpg").stat().st_ino == inode and report["num_left_out"] == 2
    assert (masks(output)["a"] == [255] * 3 + [2] * 3).all()
    with pytest.raises(ValueError, match="no pixel of 3 images has a confidence of 1 or more, the highest is 0.90"):
        predicted(1, {"a": (200, 230), "train/b": (0, 0), "d": (0, 0)})


def test_labels_beyond_8_bits(predicted):
    output, _ = predicted(0.5, {"a": (255, 0)}, num_labels=300)
    assert Image.open(output / "masks" / "a.png").mode == "I;16"
    assert masks(output)["a"][0].tolist() == [1] * 3 + [65535] * 3
    assert "ignore_index: 65535" in (output / "data.yaml").read_text()


def test_folders_of_others_are_left_alone(predicted, source):
    mine = source.parent / "out" / "images"
    mine.mkdir(parents=True)
    (mine / "precious.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="holds images, which qlseg autolabel has not written"):
        predicted(0.5, {"a": (255, 255)})
    assert (mine / "precious.png").exists()


def test_an_image_that_changes_meanwhile_stops(predicted, source):
    """Its label map is of what it was."""
    with pytest.raises(ValueError, match="1 images have changed while others were segmented: .*a.jpg; give the same"):
        predicted(0.5, {"a": (255, 255), "d": (255, 0)}, meanwhile=lambda: (source / "a.jpg").write_bytes(b"x"))
    assert not (source.parent / "out" / "masks").exists()


def test_one_name_for_two_images_is_refused(predicted, source):
    Image.new("RGB", SIZE[::-1]).save(source / "train__b.png")
    with pytest.raises(ValueError, match="train/b and train__b would both be called train__b"):
        predicted(0.5, {"train__b": (255, 255), "train/b": (255, 255)})


@pytest.mark.parametrize("confidence", [0, -0.1, 1.01, float("nan")])
def test_confidence_out_of_range(confidence, tmp_path):
    with pytest.raises(ValueError, match="it must be above 0 and at most 1"):
        autolabel(Request("m", ("x",), tmp_path), confidence, 0.2)
    with pytest.raises(ValueError, match="least_share is"):
        autolabel(Request("m", ("x",), tmp_path), 0.5, confidence - 1 if confidence < 1 else confidence)


class _Reader:
    def __init__(self, value):
        self.value = value

    def read(self):
        return self.value


def test_images_of_any_source(tmp_path, source, monkeypatch):
    """Bytes stay as they are, arrays are kept without loss, and where no link can be made there is a copy."""
    data = (source / "a.jpg").read_bytes()
    array = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    bands = np.arange(120, dtype=np.uint16).reshape(4, 6, 5)
    rgb = {"num_channels": 3, "keep_values": False}

    def place(value, reading=rgb):
        return tmp_path / "to" / place_image(Item("n", "n", (), _Reader(value)), tmp_path / "to", "n", reading)

    assert place(NamedBytes(data, "x.JPG")).read_bytes() == data
    assert np.array_equal(np.asarray(Image.open(place(array))), array)
    stored = place(bands, {"num_channels": 5, "keep_values": True})
    assert stored.name == "n.npy" and np.array_equal(np.load(stored), bands)
    (tmp_path / "link.jpg").symlink_to("source/a.jpg")  # relative: as a link elsewhere it would lead nowhere
    item = Item("n", "n", (), LocalFile(str(tmp_path / "link.jpg")))
    placed = tmp_path / "to" / place_image(item, tmp_path / "to", "n", rgb)
    assert not placed.is_symlink() and os.path.samefile(placed, source / "a.jpg")
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("another disk")))
    place_image(item, tmp_path / "to", "n", rgb)
    assert placed.read_bytes() == data and not placed.is_symlink() and not os.path.samefile(placed, source / "a.jpg")
