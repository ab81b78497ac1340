"""What a folder is taken for, names and colours that lie beside the data, and what is told if nothing fits."""

import numpy as np
import pytest
from made_data import LABELS, put, put_pairs, read_all, write
from PIL import Image

from qlseg_hf.data.datasets import SampleError, open_dataset
from qlseg_hf.data.layouts import LAYOUTS, find_layout


def test_folders_of_any_name(tmp_path):
    put_pairs(tmp_path, "photos of us/{split}/{name}.jpg", "made/by hand/{split}/{name}.png", split="train")
    with pytest.raises(ValueError) as caught:
        open_dataset(tmp_path, "train")
    text = str(caught.value)
    assert "is no layout that is known" in text and "photos of us/train/: 2 .jpg (a.jpg, b.jpg)" in text
    assert all(name in text for name in LAYOUTS) and "layout: photos:ground_truth" in text
    samples = open_dataset(tmp_path, "train", layout="photos of us:made/by hand")
    assert read_all(samples) == ["photos of us/train/a.jpg", "photos of us/train/b.jpg"]
    with pytest.raises(ValueError, match="layout: photos:hand fits no pair of folders"):
        open_dataset(tmp_path, "train", layout="photos:hand")
    with pytest.raises(ValueError, match="layout 'coco' is unknown; give one of ade20k"):
        open_dataset(tmp_path, "train", layout="coco")
    with pytest.raises(ValueError, match="layout: voc does not fit"):
        open_dataset(tmp_path, "train", layout="voc")


def test_the_only_folder_is_the_data_set(tmp_path):
    """As archives are unpacked; lists and names then lie at its top."""
    inner = tmp_path / "VOCdevkit/VOC2012"
    put_pairs(inner, "JPEGImages/{name}.jpg", "SegmentationClass/{name}.png", ["2007_000001", "2007_000002"])
    put(inner / "JPEGImages/2007_000003.jpg", 1)
    (inner / "ImageSets/Segmentation").mkdir(parents=True)
    (inner / "ImageSets/Segmentation/train.txt").write_text("2007_000002\n")
    (inner / "ImageSets/Segmentation/val.txt").write_text("2007_000001\n")
    (tmp_path / "README.md").write_text("x")
    assert find_layout(tmp_path).name == "voc"
    assert read_all(open_dataset(tmp_path, "train")) == ["JPEGImages/2007_000002.jpg"]
    put_pairs(tmp_path / "one/images", "{name}.jpg", "{name}_mask.png")  # a name that tells something stays
    assert read_all(open_dataset(tmp_path / "one", "train", val_fraction=0)) == ["images/a.jpg", "images/b.jpg"]
    (tmp_path / "loop/x").mkdir(parents=True)
    (tmp_path / "loop/x/y").symlink_to(tmp_path / "loop")
    with pytest.raises(ValueError, match="is a link to a folder above it"):
        find_layout(tmp_path / "loop")


@pytest.mark.parametrize(
    "files, message",
    [
        (["a.zip", "b.tar.gz"], r"\.zip, \.gz: unpack archives"),
        (["a/a_flair.nii.gz", "a/a_seg.nii.gz"], r"\.nii: not read; write label maps as PNG"),
        (["images/a.mat"], r"\.mat: not read; write label maps as PNG"),
        (["annotations/a.json"], r"\.json: if these are annotations, export them as COCO"),
    ],
)
def test_files_of_other_kinds_are_told_with_what_to_do(tmp_path, files, message):
    put(tmp_path / "photos/a.jpg", 1)
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(ValueError, match=f"is no layout that is known. {message}"):
        find_layout(tmp_path)


def test_arrays_of_many_images(tmp_path):
    """As of PanNuke, of which it was said that files are missing."""
    for role in ("images", "masks"):
        write(tmp_path / f"fold1/{role}/fold1/{role}.npy", np.zeros((4, 8, 8, 3)))
    with pytest.raises(ValueError, match="images.npy holds 4 images in one array; save each as a file of its own"):
        find_layout(tmp_path).splits["train"]


def test_two_folders_are_proposed_by_the_names_of_their_files(tmp_path):
    put_pairs(tmp_path, "{split}/clicks/x/{name}.jpg", "{split}/ids/x/{name}.png", "abc", split="train")
    put(tmp_path / "train/stray/q.png", 1)
    with pytest.raises(ValueError, match="lie in clicks and in ids: if these are it, layout: clicks:ids"):
        find_layout(tmp_path)
    assert len(read_all(open_dataset(tmp_path, "train", layout="clicks:ids", val_fraction=0))) == 3


def test_names_files(tmp_path):
    put_pairs(tmp_path, "images/{name}.jpg", "masks/{name}.png", "abcdefg")
    assert find_layout(tmp_path).label_names is None
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    assert find_layout(tmp_path).label_names == ["sky", "road"]
    (tmp_path / "labels.json").write_text('{"classes": ["sky", "road"], "palette": [[1, 2, 3], [4, 5, 6]]}')
    assert find_layout(tmp_path).label_names == ["sky", "road"]
    (tmp_path / "obj.names").write_text("road\nsky\n")
    layout = find_layout(tmp_path)
    assert layout.label_names is None and "give different label names" in layout.notes[0]
    (tmp_path / "obj.names").unlink()
    (tmp_path / "labels.json").unlink()
    (tmp_path / "classes.txt").write_text("__ignore__\nsky\nroad\n")  # LabelMe numbers them from -1
    layout = find_layout(tmp_path)
    assert layout.label_names is None and "take it out if label 0 is 'sky'" in layout.notes[0]


def test_colours_beside_the_data(tmp_path):
    put_pairs(tmp_path, "{split}/{name}.jpg", "{split}_labels/{name}.png", split="train")
    put_pairs(tmp_path, "{split}/{name}.jpg", "{split}_labels/{name}.png", split="val")
    table = {"sky": (0, 0, 1), "road": (9, 0, 0), "tree": (0, 7, 0), "car": (5, 5, 5)}
    (tmp_path / "class_dict.csv").write_text(
        "name, r, g, b\n" + "".join(f"{n},{r},{g},{b}\n" for n, (r, g, b) in table.items())
    )
    layout = find_layout(tmp_path)  # the masks hold labels, so the colours do not count
    assert layout.label_names == list(table) and layout.label_colors is None
    palette = np.array(list(table.values()), dtype=np.uint8)
    labels = np.where(LABELS == 255, 3, LABELS)
    for path in tmp_path.glob("*_labels/*.png"):
        Image.fromarray(palette[labels]).save(path)
    samples = open_dataset(tmp_path, "train")
    np.testing.assert_array_equal(samples[0].read()[1], labels)
    assert samples.layout.label_colors == {0: [0, 0, 1], 1: [9, 0, 0], 2: [0, 7, 0], 3: [5, 5, 5]}
    with pytest.raises(SampleError, match="colours are not in label_colors"):
        open_dataset(tmp_path, "train", label_colors={0: [1, 1, 1]})[0].read()


def save_palette(labels, order, colors, path):
    """A label map whose label l is stored as order[l], in the label's color."""
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[order] = colors
    picture = Image.fromarray(np.array(order, dtype=np.uint8)[labels], mode="P")
    picture.putpalette(palette.flatten().tolist())
    picture.save(path)


def test_colours_of_a_palette_beside_the_data(tmp_path):
    """A colour mask that a program has saved with a palette; its order is that of the program."""
    put_pairs(tmp_path, "images/{name}.jpg", "masks/{name}.png", "abcdefgh")
    colors = [(0, 0, 1), (9, 0, 0), (0, 7, 0), (5, 5, 5)]
    rows = [f"{name},{r},{g},{b}" for name, (r, g, b) in zip(("sky", "road", "tree", "car"), colors)]
    (tmp_path / "class_dict.csv").write_text("\n".join(["name,r,g,b", *rows]))
    labels = np.where(LABELS == 255, 3, LABELS)
    for order in ([2, 0, 3, 1], [3, 2, 1, 0]):
        for path in (tmp_path / "masks").iterdir():
            save_palette(labels, order, colors, path)
        samples = open_dataset(tmp_path, "train", val_fraction=0)
        assert samples.layout.label_colors == {label: list(color) for label, color in enumerate(colors)}
        np.testing.assert_array_equal(samples[0].read()[1], labels)
    for path in (tmp_path / "masks").iterdir():  # indices that are the labels count, also with 255
        save_palette(labels, [0, 1, 2, 255], [*colors[:3], (255, 255, 255)], path)
    samples = open_dataset(tmp_path, "train", val_fraction=0)
    assert samples.layout.label_colors is None
    np.testing.assert_array_equal(samples[0].read()[1], np.where(labels == 3, 255, labels))
    for path in (tmp_path / "masks").iterdir():  # a grey palette says nothing
        save_palette(labels, [0, 1, 2, 3], [(v, v, v) for v in (0, 5, 2, 3)], path)
    assert find_layout(tmp_path).label_colors is None


def test_grey_masks_of_two_names_with_colours(tmp_path):
    """Massachusetts Roads: black and white in the table of colours, and in the masks."""
    put_pairs(tmp_path, "images/{name}.jpg", "masks/{name}.png", "ab")
    for name in "ab":
        write(tmp_path / f"masks/{name}.png", np.array([[0, 255, 0, 0], [255, 0, 0, 0]], dtype=np.uint8))
    (tmp_path / "label_class_dict.csv").write_text("name,r,g,b\nbackground,0,0,0\nroad,255,255,255\n")
    samples = open_dataset(tmp_path, "train", val_fraction=0)
    assert samples[0].read()[1].tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]


def test_a_table_of_other_things_beside_folders(tmp_path):
    """PlantSeg's names of label maps have a heading that is none of ours."""
    put_pairs(tmp_path, "images/{split}/{name}.jpg", "annotations/{split}/{name}.png", split="train")
    (tmp_path / "Metadata.csv").write_text("Name,Label file,Plant\na.jpg,a.png,apple\n")
    layout = find_layout(tmp_path)
    assert layout.name == "ade20k" and layout.notes[0].startswith("a table is not read: set image_column: no column")


def test_run_lengths_of_the_masks_that_are_there(tmp_path):
    """Carvana and TGS have both."""
    put_pairs(tmp_path, "train/{name}.jpg", "train_masks/{name}_mask.gif", "abc")
    (tmp_path / "train_masks.csv").write_text("img,rle_mask\na.jpg,1 2\nb.jpg,3 1\nc.jpg,1 1\n")
    layout = find_layout(tmp_path)
    assert layout.name == "camvid" and any(
        "are not read, because there are masks too" in note for note in layout.notes
    )
