"""Images and label maps in one folder, told apart by their names; and Roboflow's export."""

import numpy as np
import pytest
from made_data import check_two_splits, put, put_pairs, read_all, write

from qlseg_hf.data.datasets import open_dataset
from qlseg_hf.data.layouts import find_layout


@pytest.mark.parametrize(
    "image, mask",
    [
        ("{split}/{name}.jpg", "{split}/{name}_mask.png"),
        ("{split}/x/{name}_sat.jpg", "{split}/x/{name}_mask.png"),
        ("{split}/{name}_image.png", "{split}/{name}_label.png"),
        ("{split}/image_{name}.png", "{split}/mask_{name}.png"),
        ("{split}/{name}.jpg", "{split}/{name}.png"),
        ("images/{split}/{name}.jpg", "images/{split}/{name}_gt.tiff"),
    ],
)
def test_split_folders(tmp_path, image, mask):
    check_two_splits(tmp_path, "pairs", image, mask)


def test_other_masks_of_an_image_in_one_folder(tmp_path):
    """As CholecSeg8k's: those whose name says more than that they are masks are no images."""
    put_pairs(tmp_path, "{name}_endo.png", "{name}_endo_mask.png", "ab")
    put_pairs(tmp_path, "{name}_endo_color_mask.png", "{name}_endo_watershed_mask.png", "ab")
    samples = open_dataset(tmp_path, "train", val_fraction=0)
    assert read_all(samples) == ["a_endo.png", "b_endo.png"]
    told = (
        "4 pictures are left out, because they are called after others and have no label maps: a_endo_color_mask.png"
    )
    assert samples.notes[0].startswith(told)


def test_a_folder_for_each_image(tmp_path):
    """As of many renderers, and of labelme_json_to_dataset, which numbers labels anew in each."""
    for split, names in (("train", "abc"), ("val", "d")):
        for name in names:
            put(tmp_path / f"{split}/{name}_json/img.png", 9)
            put(tmp_path / f"{split}/{name}_json/label.png")
            put(tmp_path / f"{split}/{name}_json/label_viz.png", 9)
            (tmp_path / f"{split}/{name}_json/label_names.txt").write_text("_background_\na\nb\nc\n")
    layout = find_layout(tmp_path)
    assert layout.name == "pairs" and layout.label_names == ["_background_", "a", "b", "c"]
    assert layout.notes[0].startswith("4 other pictures are left out: train/a_json/label_viz.png")
    assert read_all(open_dataset(tmp_path, "train")) == [f"train/{name}_json/img.png" for name in "abc"]
    assert read_all(open_dataset(tmp_path, "val")) == ["val/d_json/img.png"]
    (tmp_path / "train/b_json/label_names.txt").write_text("_background_\nb\na\nc\n")
    with pytest.raises(
        ValueError, match="a_json/label_names.txt and .*b_json/label_names.txt .* number labels in two"
    ):
        find_layout(tmp_path)
    (tmp_path / "train/b_json/label_names.txt").unlink()
    assert find_layout(tmp_path).label_names is None
    (tmp_path / "train/b_json/label.png").unlink()
    with pytest.raises(ValueError, match="is no layout that is known"):
        find_layout(tmp_path)


def test_roboflow(tmp_path):
    for split, names in (("train", "ab"), ("valid", "c")):
        put_pairs(
            tmp_path, "{split}/{name}_png.rf.1a2b.jpg", "{split}/{name}_png.rf.1a2b_mask.png", names, split=split
        )
        (tmp_path / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, cat\n2, dog\n3, cow\n")
    layout = find_layout(tmp_path)
    assert layout.name == "roboflow" and layout.label_names == ["background", "cat", "dog", "cow"]
    assert layout.label_mapping is None and len(read_all(open_dataset(tmp_path, "train"))) == 2
    for split in ("train", "valid"):
        (tmp_path / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n7, cat\n")
    assert find_layout(tmp_path).label_mapping == {0: 0, 7: 1}
    (tmp_path / "valid/_classes.csv").write_text("Pixel Value, Class\n0, background\n1, dog\n")
    with pytest.raises(ValueError, match="name different classes"):
        find_layout(tmp_path)
    (tmp_path / "valid/_classes.csv").write_text("filename, cat, dog\na.jpg, 1, 0\n")
    with pytest.raises(ValueError, match="must begin with the line 'Pixel Value, Class'"):
        find_layout(tmp_path)


@pytest.mark.parametrize(
    "image, endings",
    [("Image_{:02}L.jpg", ("_1stHO.png", "_2ndHO.png")), ("P{}.png", ("_id_RGB.png", "_color_RGB.png"))],
)
def test_label_maps_of_an_ending_of_their_own(tmp_path, image, endings):
    """As of CHASE_DB1 and iSAID; of several kinds the person chooses, by a pattern that the sentence proposes."""
    for number in range(3):
        name = image.format(number)
        put(tmp_path / "all" / name, number)
        write(tmp_path / "all" / f"{name.rpartition('.')[0]}{endings[0]}", np.full((2, 4), number, np.uint8))

    def read(**settings):
        samples = open_dataset(tmp_path, "train", val_fraction=0, **settings)
        assert len(samples) == 3
        pairs = [samples[index].read() for index in range(3)]
        return [(int(picture[0, 0, 0]), int(label_map[0, 0])) for picture, label_map in pairs]

    assert read() == [(0, 0), (1, 1), (2, 2)]
    for number in range(3):
        write(
            tmp_path / "all" / f"{image.format(number).rpartition('.')[0]}{endings[1]}",
            np.full((2, 4), number + 5, np.uint8),
        )
    with pytest.raises(
        ValueError, match="has 2 files beside each image .*name images and label maps, as in layout: "
    ) as caught:
        read()
    options = str(caught.value).split("as in layout: ")[1].split(" or layout: ")
    found = [read(layout=option) for option in options]
    assert sorted(found) == [[(n, n + more) for n in range(3)] for more in (0, 5)]


def test_words_and_numbers_without_a_sign_between(tmp_path):
    put_pairs(tmp_path, "image0{name}.jpg", "mask0{name}.png", "123")
    assert read_all(open_dataset(tmp_path, "train", val_fraction=0)) == [f"image0{n}.jpg" for n in "123"]
