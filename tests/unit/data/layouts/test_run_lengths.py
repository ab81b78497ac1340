"""Run lengths in CSV files, as of Kaggle's competitions: classes, the order of pixels, and what is refused."""

import numpy as np
import pytest
from made_data import put_image, read_first
from PIL import Image

from qlseg_hf.data.datasets import SampleError, open_dataset
from qlseg_hf.data.layouts import find_layout


def put(root, text, names=("train_images/a.jpg",), file="train.csv", size=(8, 6)):
    for name in names:
        put_image(root / name, size)
    (root / file).write_text(text)


def encode(mask, by_columns=True):
    """Pairs of start and length, counted from 1, by the slow way."""
    pixels, runs, start = [*np.asarray(mask, dtype=bool).ravel("F" if by_columns else "C").tolist(), False], [], None
    for number, is_set in enumerate(pixels, 1):
        if is_set and start is None:
            start = number
        if not is_set and start is not None:
            runs += [start, number - start]
            start = None
    return " ".join(map(str, runs))


def rectangle(rows, columns, size=(6, 8)):
    mask = np.zeros(size, dtype=bool)
    mask[rows, columns] = True
    return mask


A, B = rectangle(slice(1, 3), slice(0, 5)), rectangle(slice(2, 6), slice(4, 7))
DRAWN = np.where(B, 2, np.where(A, 1, 0))


@pytest.mark.parametrize(
    "head, line",
    [
        ("ImageId,ClassId,EncodedPixels", "a.jpg,{kind},{runs}"),
        ("ImageId_ClassId,EncodedPixels", "a.jpg_{kind},{runs}"),
        ("id;class;rle", "a;{kind};{runs}"),
        ("\ufeffImage_Label,EncodedPixels", "a.jpg_{kind},{runs}"),
    ],
)
def test_classes_by_number(tmp_path, head, line):
    """The later line on top; classes that no line has a mask of keep their places."""
    lines = [line.format(kind=kind, runs=runs) for kind, runs in [(1, encode(A)), (10, ""), (2, encode(B))]]
    put(tmp_path, "\n".join([head, *lines]) + "\n", ["train_images/a.jpg", "test_images/b.jpg"])
    layout = find_layout(tmp_path)
    assert layout.label_names == ["background", "class_1", "class_2", "class_10"] and layout.name == "rle-csv"
    assert layout.notes[0] == "1 images have no annotation and are left out: test_images/b.jpg"
    np.testing.assert_array_equal(read_first(tmp_path), DRAWN)


def test_one_class_and_images_without_mask(tmp_path):
    """As Airbus' ships: a line for each, and an empty cell for an image without."""
    rows = ["ImageId,EncodedPixels", f"a.jpg,{encode(A)}", f"a.jpg,{encode(B)}", "b.jpg,"]
    put(tmp_path, "\n".join(rows), ["train_v2/a.jpg", "train_v2/b.jpg"], "train_ship_segmentations_v2.csv")
    (tmp_path / "sample_submission_v2.csv").write_text("ImageId,EncodedPixels\nz.jpg,1 2\n")
    layout = find_layout(tmp_path, val_fraction=0)
    assert layout.label_names == ["background", "foreground"] and "train 2" in layout.description
    assert layout.notes[:2] == [
        "sample_submission_v2.csv is taken for a sample of results and is left out",
        "1 images have no shape, so all of each is background: train_v2/b.jpg",
    ]
    np.testing.assert_array_equal(read_first(tmp_path, val_fraction=0), A | B)


@pytest.mark.parametrize("by_columns", [True, False])
def test_the_order_of_pixels_is_told_by_the_masks(tmp_path, by_columns):
    mask = rectangle(slice(5, 25), slice(4, 30), (30, 40))
    put(tmp_path, f"img,rle_mask\na.jpg,{encode(mask, by_columns)}\n", size=(40, 30))
    assert f"counted from 1 {'down the columns' if by_columns else 'along the rows'} (in the other order" in (
        find_layout(tmp_path).description
    )
    np.testing.assert_array_equal(read_first(tmp_path), mask)


@pytest.mark.parametrize("head, by_columns", [("EncodedPixels", True), ("segmentation", False)])
def test_masks_of_square_images_do_not_tell_the_order(tmp_path, head, by_columns):
    """As UW-Madison's, whose images have no name of their own, and are counted along the rows."""
    mask = rectangle(slice(1, 3), slice(0, 5), (8, 8))
    name = "train/case1/case1_day0/scans/slice_0007_8_8_1.50_1.50.png"
    put(tmp_path, f"id,class,{head}\ncase1_day0_slice_0007,stomach,{encode(mask, by_columns)}\n", [name], size=(8, 8))
    assert f"(by the heading {head.lower()}; the masks do not tell)" in find_layout(tmp_path).description
    np.testing.assert_array_equal(read_first(tmp_path), mask)


@pytest.mark.parametrize(
    "runs, message",
    [
        ("1 2 3", "are no pairs of start and length"),
        ("1 2 x 3", "are no pairs of start and length"),
        ("0 2", "a run starts at 0; pixels are counted from 1"),
        ("9 3 2 2", "overlap or are not in order"),
        ("1 3 3 2", "overlap or are not in order"),
        ("47 3", "a run ends at pixel 49, and the image has 6 x 8"),
    ],
)
def test_damaged_runs(tmp_path, runs, message):
    """Told of the image that has them, not of the whole data set."""
    put(tmp_path, f"ImageId,EncodedPixels\na.jpg,{encode(A)}\nb.jpg,{runs}\n", ["x/a.jpg", "x/b.jpg"])
    samples = open_dataset(tmp_path, "train", val_fraction=0)
    assert samples[0].read()[1].any()
    with pytest.raises(SampleError, match=f"x/b.jpg: label map: .*{message}"):
        samples[1].read()


def test_the_last_pixel_is_one(tmp_path):
    put(tmp_path, "ImageId,EncodedPixels\na.jpg,48 1\n")
    np.testing.assert_array_equal(read_first(tmp_path), rectangle(5, 7))


def test_what_is_refused(tmp_path):
    put(tmp_path, f"ImageId,EncodedPixels\nb.jpg,{encode(A)}\n")
    with pytest.raises(ValueError, match="1 images of train.csv are missing in .*: b.jpg; add them, or take their"):
        find_layout(tmp_path)
    put(tmp_path, f"ImageId,EncodedPixels,ClassId\na.jpg,{encode(A)},\n")
    with pytest.raises(ValueError, match="line 2 of .*train.csv names no class"):
        find_layout(tmp_path)
    put(tmp_path, f"ImageId,EncodedPixels,ClassId\na.jpg,{encode(A)},1\na.jpg,1 2\n")
    with pytest.raises(ValueError, match="line 3 of .*train.csv has another number of cells than the 3 headings"):
        find_layout(tmp_path)
    exif = Image.Exif()
    exif[0x112] = 3
    put(tmp_path, f"ImageId,EncodedPixels\na.jpg,{encode(A)}\n")
    Image.new("RGB", (8, 6)).save(tmp_path / "train_images/a.jpg", exif=exif)
    with pytest.raises(SampleError, match="its EXIF orientation turns it, and run lengths do not tell"):
        read_first(tmp_path)


def test_a_table_for_each_split_and_long_cells(tmp_path):
    wide = " ".join(f"{2 * i + 1} 1" for i in range(20000))  # more letters than Python's reader takes by itself
    put(tmp_path, f"image,rle\na.jpg,{wide}\n", size=(400, 100))
    put(tmp_path, "image,rle\nb.jpg,1 3\n", ["train_images/b.jpg"], "val.csv")
    assert list(find_layout(tmp_path).splits) == ["train", "val"]
    assert read_first(tmp_path).sum() == 20000 and read_first(tmp_path, "val").sum() == 3
    put(tmp_path, "image,rle\na.jpg,1 3\n", file="train_two.csv")
    with pytest.raises(ValueError, match="hold run lengths of the same split"):
        find_layout(tmp_path)
    assert read_first(tmp_path / "train_two.csv", val_fraction=0).sum() == 3


def test_tables_of_files_are_no_run_lengths(tmp_path):
    put(tmp_path, "image,mask\na.jpg,m/a.png\n", ["a.jpg", "m/a.png"])
    assert find_layout(tmp_path, layout="table").name == "table"
    with pytest.raises(ValueError, match="layout: rle-csv does not fit"):
        find_layout(tmp_path, layout="rle-csv")


def test_masks_beside_run_lengths_of_other_names(tmp_path):
    """SenNet's: train_rles.csv calls k1/images/0000.tif "k1_0000"; before, the data set was refused."""
    put(tmp_path, f"id,rle\nk1_0000,{encode(A)}\n", ["train/k1/images/0000.tif"], "train_rles.csv")
    (tmp_path / "train/k1/labels").mkdir()
    Image.fromarray(B).save(tmp_path / "train/k1/labels/0000.tif")
    np.testing.assert_array_equal(read_first(tmp_path) > 0, B)
    notes = find_layout(tmp_path).notes
    assert any(note.startswith("a table is not read: 1 images of train_rles.csv are missing") for note in notes)
