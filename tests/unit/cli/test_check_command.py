"""`qlseg check SOURCE`: what is found, said and written for whole data sets."""

import json
import re
import shutil

import numpy as np
import pytest
import yaml
from made_data import make_folders
from PIL import Image

from qlseg_hf.cli.main import run

PALETTE = np.array([[0, 0, 0], [128, 64, 128], [220, 20, 60], [0, 0, 142]], np.uint8)


@pytest.fixture
def qlseg(capsys):
    def call(*arguments, status=0):
        capsys.readouterr()
        assert run(["check", *arguments]) == status, capsys.readouterr()
        return capsys.readouterr()

    return call


def as_object(said) -> dict:
    lines = said.out.splitlines()
    assert len(lines) == 1
    return json.loads(lines[0])


def test_a_folder_without_names(qlseg, tmp_path):
    data = make_folders(tmp_path / "data", [0, 1, 2, 255])
    before = sorted(tmp_path.rglob("*"))
    said = qlseg(data)
    assert "checked 8 pictures: 3 of 3 labels occur" in said.out
    assert "note: labels 0..2 are as stored" in said.out and "error" not in said.out
    assert sorted(tmp_path.rglob("*")) == before


def test_json_holds_everything(qlseg, tmp_path):
    data = make_folders(tmp_path / "data", [0, 1, 2, 255])
    found = as_object(qlseg(data, "--json", "--label_names", "[sky, road, car]"))
    stored = [np.asarray(Image.open(path)) for path in sorted(data.glob("annotations/*/*.png"))]
    assert found["images"] == {"training": 8, "validation": 4} and found["channels"] == 3
    for label, row in enumerate(found["labels"]):
        assert row["name"] == ["sky", "road", "car"][label] and row["label"] == row["value"] == label
        assert row["pixels"] == sum((values == label).sum() for values in stored)
        assert row["images"] == 12 and row["values"] == [label]
    assert found["ignored"] == pytest.approx(np.mean([(values == 255).mean() for values in stored]))
    assert found["problems"] == found["warnings"] == found["notes"] == [] and found["can_train"] is True
    assert found["sizes"] == [{"height": 48, "width": 64, "images": 12}]
    assert found["unreadable"] == found["duplicates"] == found["overlap"] == found["colors"] == []
    assert found["crop_size"] == 48 and list(found["label_weights"]) == ["sky", "road", "car"]
    assert found["settings"] == {"do_reduce_labels": False, "ignore_index": 255}
    pixels = np.concatenate([np.asarray(Image.open(p)).reshape(-1, 3) for p in sorted(data.glob("images/training/*"))])
    assert found["bands"]["mean"] == pytest.approx(pixels.mean(0)) and found["bands"]["dtype"] == "uint8"


def test_json_where_nothing_can_be_opened(qlseg, tmp_path):
    said = qlseg(tmp_path / "nothing", "--json", status=1)
    found = as_object(said)
    assert found["can_train"] is False and "is no folder" in found["problems"][0] and found["labels"] == []
    assert said.err.startswith("qlseg check: ")


def test_void_first_or_last_is_asked(qlseg, tmp_path):
    """CamVid's way: 0..3 of three names."""
    data = make_folders(tmp_path / "data", [0, 1, 2, 3])
    names = ("--label_names", "[sky, road, car]")
    said = qlseg(data, *names, "--output", tmp_path / "out", status=1)
    (sentence,) = (line for line in said.err.splitlines() if line.startswith("qlseg check: "))
    assert "the data set cannot be trained on: values that are no labels 0..2: 3 in " in sentence
    assert (
        "set do_reduce_labels: true if 0 is void, 1 is 'sky' and 3 is 'car'; set do_reduce_labels: false and "
        in sentence
    )
    assert "ignore_index: 3 if 3 is void" in sentence
    text = (tmp_path / "out" / "data.yaml").read_text()
    assert "# if 3 is void and 0 is 'sky':\n#do_reduce_labels: false\n#ignore_index: 3\n" in text
    assert "ignore_index" not in yaml.safe_load(text)
    chosen = text.replace("#do_reduce_labels: false", "do_reduce_labels: false").replace(
        "#ignore_index: 3", "ignore_index: 3"
    )
    (tmp_path / "out" / "data.yaml").write_text(chosen)
    assert as_object(qlseg(tmp_path / "out" / "data.yaml", "--json"))["can_train"]
    found = as_object(qlseg(data, *names, "--json", status=1))
    assert len(found["problems"]) == 2 and found["can_train"] is False and len(found["proposals"]) == 2
    for settings in (["--ignore_index", "3"], ["--do_reduce_labels=true"], ["--do-reduce-labels", "true"]):
        found = as_object(qlseg(data, *names, *settings, "--json"))
        assert found["problems"] == [] and found["ignored"] > 0
    assert found["labels"][0]["values"] == [1] and found["labels"][2]["values"] == [3]


def test_data_yaml_is_taken_in_place_of_the_folder(qlseg, tmp_path):
    data = make_folders(tmp_path / "data", [0, 50, 100])
    qlseg(data, "--output", tmp_path / "out", "--label_weights", "auto")
    written = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    assert written["label_names"] == ["label_0", "label_50", "label_100"]
    assert written["label_mapping"] == {0: 0, 50: 1, 100: 2} and written["ignore_index"] == 255
    assert written["data"] == str(data) and written["train_split"] == "training"
    assert written["do_reduce_labels"] is False and list(written["label_weights"]) == written["label_names"]
    assert {"processor", "crop_size", "num_channels", "label_colors"}.isdisjoint(written)
    first = as_object(qlseg(data, "--json"))
    again = as_object(qlseg(tmp_path / "out" / "data.yaml", "--json"))
    for key in ("labels", "images", "settings", "ignored", "problems", "label_weights"):
        assert first[key] == again[key], key
    recipe = ("demo", "--model", "null", "--data", tmp_path / "out" / "data.yaml")
    assert as_object(qlseg(*recipe, "--label_names", "[a, b, c]", "--json"))["labels"][2]["values"] == [100]
    named = as_object(qlseg(tmp_path / "out" / "data.yaml", "--json", "--label_names", "[a, b, c]"))
    assert [row["name"] for row in named["labels"]] == ["a", "b", "c"]


def test_data_beside_its_file(qlseg, tmp_path, monkeypatch):
    make_folders(tmp_path / "set" / "data", [0, 1])
    (tmp_path / "set" / "data.yaml").write_text("data: data\nlabel_names: [a, b]\n")
    monkeypatch.chdir(tmp_path)
    assert as_object(qlseg("set/data.yaml", "--json"))["labels"][1]["name"] == "b"


def test_report_is_one_page_without_requests(qlseg, tmp_path):
    data = make_folders(tmp_path / "data", [0, 1, 2])
    names = "['<script>alert(1)</script>', road, car]"
    said = qlseg(data, "--output", tmp_path / "out", "--label_names", names)
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["data.yaml", "report.html", "report.png"]
    assert f"wrote {tmp_path / 'out' / 'report.html'}" in said.out
    page = (tmp_path / "out" / "report.html").read_text()
    assert (
        "<script" not in page
        and not re.search(r"(src|href)=.(?!data:)", page)
        and "//" not in re.sub(r'"data:image/[^"]*"', "", page)
    )
    for title in ("Contact sheet", "Labels", "Readings of the stored values", "Sizes", "Suggestions"):
        assert f"<h2>{title}" in page
    assert page.count("<img") == 12 and "crop_size: 48" in page and "label_weights" in page
    assert Image.open(tmp_path / "out" / "report.png").size[0] == 1240


def test_output_inside_the_data_is_refused(qlseg, tmp_path):
    data = make_folders(tmp_path / "data", [0, 1])
    for place in (data, data / "out"):
        assert "lies inside the data" in qlseg(data, "--output", place, status=1).err
    assert not (data / "out").exists() and not (data / "report.html").exists()


def test_colors_are_proposed(qlseg, tmp_path):
    data = make_folders(
        tmp_path / "data", [0, 1, 2, 3], save=lambda labels, path: Image.fromarray(PALETTE[labels]).save(path)
    )
    said = qlseg(data, "--output", tmp_path / "out", status=1)
    assert "8 of 8 label maps are colour pictures; set label_colors" in said.err
    assert "label maps hold 4 colours: [0, 0, 0] " in said.out and "writes DIR/label_colors.yaml" in said.out
    place = tmp_path / "out" / "label_colors.yaml"
    proposed = yaml.safe_load(place.read_text())
    assert sorted(proposed) == [0, 1, 2, 3] and sorted(proposed.values()) == sorted(PALETTE.tolist())
    assert "[128, 64, 128]" in (tmp_path / "out" / "report.html").read_text()
    found = as_object(qlseg(data, "--json", status=1))
    assert [row["color"] for row in found["colors"]] == list(proposed.values()) and found["colors"][0]["images"] == 12
    # numbers as they are proposed, and names in their places
    found = as_object(qlseg(data, "--label_colors", place, "--json"))
    assert [row["images"] for row in found["labels"]] == [12] * 4
    place.write_text(re.sub(r"^(\d):", r"name \1:", place.read_text(), flags=re.MULTILINE))
    qlseg(data, "--label_colors", place, "--output", tmp_path / "out")
    written = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    assert written["label_names"] == ["name 0", "name 1", "name 2", "name 3"]
    assert written["label_colors"] == proposed
    assert as_object(qlseg(tmp_path / "out" / "data.yaml", "--json"))["problems"] == []
    # a colour that does not count; and names and numbers mixed
    void = place.read_text().replace("name 0:", "255:")
    place.write_text(void)
    found = as_object(qlseg(data, "--label_colors", place, "--json"))
    assert [row["name"] for row in found["labels"]] == ["name 1", "name 2", "name 3"] and found["ignored"] > 0.1
    place.write_text(void.replace("255:", "1:"))
    assert (
        "label_colors names 'name 1' and others, and numbers 1" in qlseg(data, "--label_colors", place, status=1).err
    )


def test_palettes_in_different_orders(qlseg, tmp_path):
    """A colour mask that a program has saved with a palette: the same colour has another value in each file."""

    def save(label_map, path):
        order = np.random.default_rng(int(path.stem)).permutation(4)
        palette = np.zeros((4, 3), dtype=np.uint8)
        palette[order] = PALETTE
        picture = Image.fromarray(order[label_map].astype(np.uint8), mode="P")
        picture.putpalette(palette.flatten().tolist())
        picture.save(path)

    data = make_folders(tmp_path / "data", [0, 1, 2, 3], save=save)
    said = qlseg(data, "--output", tmp_path / "out", status=1)
    assert re.search(
        r"palettes of .* are in different orders: the colour \[.*\] is value \d in .*, and \d in", said.err
    )
    place = tmp_path / "out" / "label_colors.yaml"
    assert sorted(yaml.safe_load(place.read_text()).values()) == sorted(PALETTE.tolist())
    names = "".join(f"{name}: {color}\n" for name, color in zip("abcd", PALETTE.tolist()))
    place.write_text(names)
    found = as_object(qlseg(data, "--label_colors", place, "--json"))
    assert [row["name"] for row in found["labels"]] == list("abcd") and found["problems"] == []
    said = qlseg(data, "--label_mapping", "{0: 0, 1: 1, 2: 2, 3: 3}")  # who says what values mean wants no colours
    assert "palettes" not in said.out


@pytest.mark.parametrize("is_turned", [True, False])
def test_a_palette_of_greys(qlseg, tmp_path, is_turned):
    """White as 0 and black as 1 is what a program makes of a black and white picture; a mask means the opposite."""

    def save(label_map, path):
        picture = Image.fromarray((label_map != is_turned).astype(np.uint8), mode="P")
        picture.putpalette([255, 255, 255, 0, 0, 0] if is_turned else [0, 0, 0, 255, 255, 255])
        picture.save(path)

    said = qlseg(make_folders(tmp_path / "data", [0, 1], save=save), status=int(is_turned))
    text = "hold greys in another order than that of the values: value 0 is grey 255, value 1 is grey 0 in"
    assert (text in said.err) is is_turned


def test_palettes_that_agree(qlseg, tmp_path):
    """Two labels of one colour, grey label maps among them, and a palette that begins alike are no contradiction."""

    def save(label_map, path):
        picture = Image.fromarray(label_map.astype(np.uint8), mode="P" if int(path.stem) % 2 else "L")
        if picture.mode == "P":
            picture.putpalette([*PALETTE.flatten().tolist()[:9], 0, 0, 0])
        picture.save(path)

    assert "palette" not in qlseg(make_folders(tmp_path / "data", [0, 1, 2, 3], save=save)).out


@pytest.mark.parametrize("turn, is_square, is_told", [(3, False, True), (6, True, True), (6, False, False)])
def test_turned_images(qlseg, tmp_path, turn, is_square, is_told):
    data = make_folders(tmp_path / "data", [0, 1], size=(48, 48) if is_square else (48, 64))
    for path in (data / "images").rglob("2.png"):
        exif = Image.Exif()
        exif[0x112] = turn
        Image.open(path).rotate(0 if is_told else 90, expand=True).save(path, exif=exif)
    said = qlseg(data)
    text = "warning: 2 of 12 images are turned by their EXIF orientation, and their sizes do not tell"
    assert (text in said.out) is is_told


def test_photographs_in_place_of_masks(qlseg, tmp_path):
    def save(labels, path):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (*labels.shape, 3)).astype(np.uint8)).save(path)

    said = qlseg(make_folders(tmp_path / "data", [0, 1], save=save), status=1)
    assert "256 colours" in said.out and "so many come of photographs, smoothing, or numbers of objects" in said.out


def test_duplicates_and_leaks(qlseg, tmp_path):
    data = make_folders(tmp_path / "data", [0, 1, 2])
    images, maps = data / "images", data / "annotations"
    shutil.copy(images / "training" / "0.png", images / "training" / "1.png")  # with another label map
    shutil.copy(images / "training" / "2.png", images / "validation" / "0.png")
    Image.open(images / "training" / "2.png").save(images / "validation" / "0.png", compress_level=1)  # other bytes
    shutil.copy(maps / "training" / "2.png", maps / "validation" / "0.png")
    found = as_object(qlseg(data, "--json"))
    leak = [
        {"split": "training", "name": "images/training/2.png"},
        {"split": "validation", "name": "images/validation/0.png"},
    ]
    assert found["overlap"] == [leak] and len(found["duplicates"]) == 2 and found["can_train"]
    assert found["warnings"] == [
        "1 of 12 images are in more than one split, so scores will be too good: training: images/training/2.png = "
        "validation: images/validation/0.png; keep each in one split",
        "1 of 12 images repeat others of their split: images/training/0.png = images/training/1.png",
        "1 of 12 images are there several times with different label maps: training: images/training/0.png = "
        "training: images/training/1.png; keep the right one",
    ]
    qlseg(data, "--output", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "label maps differ" in page and "in several splits" in page


def test_extra_data_are_looked_at(qlseg, tmp_path):
    """The same images again: they are validated on. A label of a set that the run lacks stops."""
    data = make_folders(tmp_path / "data", [0, 1, 2])
    said = qlseg(data, "--extra_data", data)
    assert f"extra data {data}, " in said.err and "images are in the training split of the data too" in said.err
    names = f"{{data: {data}, label_names: [sky, road, tram]}}"
    said = qlseg(data, "--label_names", "[sky, road, car]", "--extra_data", names, status=1)
    assert "labels that the run lacks: tram; labels of the run that the set lacks are car" in said.err


def test_unreadable_images_are_named(qlseg, tmp_path):
    data = make_folders(tmp_path / "data", [0, 1, 2], counts=(10, 4))
    (data / "images" / "training" / "3.png").write_bytes(b"<html>")
    found = as_object(qlseg(data, "--json"))
    assert found["warnings"][0].startswith("training: 1 of 10 pictures cannot be read; they are left out.")
    (row,) = found["unreadable"]
    assert row["split"] == "training" and row["name"] == "images/training/3.png" and "picture" in row["reason"]
    said = qlseg(data, "--strict", "true", "--output", tmp_path / "out", status=1)
    assert "cannot be trained on: 1 of 10 pictures cannot be read; copy them again" in said.err
    assert "images/training/3.png" in (tmp_path / "out" / "report.html").read_text()
    (data / "images" / "validation" / "0.png").write_bytes(b"<html>")
    assert "the data set cannot be validated on: 1 of 4 pictures" in qlseg(data, status=1).err


def test_rare_labels_are_named(qlseg, tmp_path):
    data = make_folders(tmp_path / "data", lambda i: [0, 1, 2] if i == 5 else [0, 1], counts=(12, 4))
    warnings = as_object(qlseg(data, "--json"))["warnings"]
    assert "validation: 1 of 3 labels never occur: label_2" in warnings
    assert any(text.startswith("too rare to learn: 'label_2' (in 1 of 12 training images)") for text in warnings)


def test_every_label_is_on_the_contact_sheet(tmp_path):
    from qlseg_hf.data.check.run import survey_data
    from qlseg_hf.data.check.sheet import choose_samples
    from qlseg_hf.data.check.survey import DataRequest

    data = make_folders(tmp_path / "data", lambda i: [0, 1, {37: 2, 13: 3}.get(i, 1)], counts=(60, 4))
    survey = survey_data(DataRequest(str(data)), show_progress=False)
    chosen = choose_samples(survey)
    shown = {label for _, found in chosen for label in found.stored.values.tolist()}
    assert len(chosen) == 12 and shown == {0, 1, 2, 3} and len({id(found) for _, found in chosen}) == 12


def test_images_of_different_bands(qlseg, tmp_path):
    data = make_folders(tmp_path / "data", [0, 1])
    for path in (data / "images").rglob("[02].png"):
        array = np.asarray(Image.open(path))
        np.save(path.with_suffix(".npy"), np.concatenate([array, array], axis=2).astype(np.uint16))
        path.unlink()
    said = qlseg(data, status=1)
    assert re.search(
        r"images differ in their bands: \d+ of 6 bands, uint16 \(.*npy\); \d+ of 3 bands, uint8", said.err
    )


def test_bands_are_measured_and_kept(qlseg, tmp_path):
    data = make_folders(tmp_path / "data", [0, 1])
    arrays = []
    for path in sorted((data / "images").rglob("*.png")):
        array = np.asarray(Image.open(path)).astype(np.uint16) * 100
        array = np.concatenate([array, array[..., :2]], axis=2)
        arrays += [array] if "training" in path.parts else []
        np.save(path.with_suffix(".npy"), array)
        path.unlink()
    qlseg(data, "--output", tmp_path / "out")
    written = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    mean = np.concatenate([array.reshape(-1, 5) for array in arrays]).mean(0) / 65535
    assert written["num_channels"] == 5 and written["processor"]["image_mean"] == pytest.approx(mean)
    assert written["processor"]["rescale_factor"] == pytest.approx(1 / 65535)
    found = as_object(qlseg(tmp_path / "out" / "data.yaml", "--json"))
    assert found["channels"] == 5 and found["problems"] == []


def test_recipes_are_sources_too(qlseg, tmp_path):
    data = make_folders(tmp_path / "data", [0, 1, 2])
    names = ("--label_names", "[a, b, c]", "--model", "null")
    assert as_object(qlseg("demo", "--data", data, *names, "--json"))["can_train"]
    (tmp_path / "mine.yaml").write_text(f"data: {data}\nlabel_names: [a, b, c]\noutput_dir: run\nmax_steps: 7\n")
    assert as_object(qlseg(tmp_path / "mine.yaml", "--json"))["can_train"]
    assert as_object(qlseg("--data", data, "--json"))["can_train"]


@pytest.mark.parametrize(
    "words, sentence",
    [
        ([], "there is no data; give a folder"),
        (["none.yaml"], "there is no recipe none.yaml"),
        (["DATA", "--ignore_indx", "11"], "unknown key ignore_indx; did you mean ignore_index"),
        (["DATA", "--void", "11"], "unknown key void; did you mean ignore_index"),
        (["DATA", "--ignore_index"], "--ignore_index has no value"),
        (["DATA", "--ignore_index", "eleven"], "ignore_index wants int or null, got 'eleven'"),
        (["DATA", "11"], ", 11 is wanted; keys are written --key value"),
        (["DATA", "--label_mapping", "{0: [}"], "is not YAML"),
        (["DATA", "--label_names", "[a, a]"], "label_names: labels [0, 1] are all called 'a'"),
    ],
)
def test_wrong_words(qlseg, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    data = make_folders(tmp_path / "data", [0, 1], counts=(1, 1))
    said = qlseg(*[str(data) if word == "DATA" else word for word in words], status=1)
    assert sentence in said.err and "Traceback" not in said.err


def test_help_names_the_keys(qlseg):
    text = qlseg("--help").out
    assert "SOURCE" in text and "--ignore_index" in text and "--label_colors" in text and "--learning_rate" not in text


def test_names_cannot_do_harm(qlseg, tmp_path):
    data = make_folders(tmp_path / "data", [0, 1, 3])
    said = qlseg(data, "--label_names", '["a\\e[31m", "b\\nc"]', "--output", tmp_path / "out", status=1)
    text = said.out + "\n".join(line for line in said.err.splitlines() if "pictures/s" not in line)
    text += (tmp_path / "out" / "report.html").read_text() + (tmp_path / "out" / "data.yaml").read_text()
    assert all(sign.isprintable() or sign == "\n" for sign in text)


def test_names_in_another_order_than_beside_the_data(qlseg, tmp_path):
    """Each label would be learnt under another's name."""
    data = make_folders(tmp_path / "data", [0, 1, 2])
    (data / "labels.txt").write_text("Sky\nroad\ncar\n")
    said = qlseg(data, "--label_names", "[road, sky, car]")
    assert "warning: label 0 is called 'road', and by the data 'Sky': the names stand in another order" in said.out
    for names in ("[sky, road, car]", "[heaven, street, car]"):
        assert "another order" not in qlseg(data, "--label_names", names).out
    mapped = qlseg(data, "--label_names", "[road, sky, car]", "--label_mapping", "{0: 1, 1: 0}")
    assert "another order" not in mapped.out
