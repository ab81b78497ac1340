"""Every way a data set may be stored, and the sentence that each broken one gets."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from made_data import LABELS, colors, encoded, put_ade20k, write
from PIL import Image

from qlseg_hf.data.datasets import find_split, open_dataset


def make_context(root, names=("2008_1", "2008_2")):
    for name in names:
        write(root / f"JPEGImages/{name}.jpg", colors(10))
        write(root / f"SegmentationClassContext/{name}.png", LABELS, "P")
    lists = root / "ImageSets/SegmentationContext"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text(f"{names[1]}\n\n{names[0]}\n")
    (lists / "val.txt").write_text(f"{names[0]}\n")


def make_table(num_rows=3, features=True, **columns):
    """A `datasets.Dataset` of pictures (row i has shade 10 i) with palette masks, as bytes."""
    datasets = pytest.importorskip("datasets")
    rows = {
        "image": [{"bytes": encoded(colors(10 * i)), "path": f"{i}.png"} for i in range(num_rows)],
        "annotation": [{"bytes": encoded(LABELS, "P"), "path": None}] * num_rows,
        "number": list(range(num_rows)),
    } | columns
    table = datasets.Dataset.from_dict(rows)
    for name in ("image", "annotation"):
        if name in rows:
            table = table.cast_column(name, datasets.Image())
    return table


@pytest.fixture
def table_cache(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def check_samples(samples, shades):
    found = list(samples) if hasattr(samples, "__iter__") else [samples[i] for i in range(len(samples))]
    assert len(found) == len(shades)
    for sample, shade in zip(found, shades):
        picture, label_map = sample.read()
        assert picture.dtype == np.uint8 and abs(picture.astype(int) - shade).max() <= 1  # JPEG
        assert label_map.dtype == np.int64
        np.testing.assert_array_equal(label_map, LABELS)
    return [sample.name for sample in found]


@pytest.mark.parametrize("asked, found", [("training", "training"), ("train", "training"), ("val", "validation")])
def test_ade20k(tmp_path, asked, found):
    put_ade20k(tmp_path)
    samples = open_dataset(tmp_path, asked)
    assert samples.split == found
    assert check_samples(samples, [10, 0]) == [f"images/{found}/a.jpg", f"images/{found}/b.jpg"]
    with pytest.raises(IndexError):
        samples[2]


@pytest.mark.parametrize("asked, found", [("train", "train2014"), ("validation", "test2014"), ("test", "test2014")])
def test_coco_stuff(tmp_path, asked, found):
    put_ade20k(tmp_path, splits=("train2014", "test2014"), ending="_labelTrainIds.png")
    write(tmp_path / "annotations/train2014/a.png", LABELS[:1])  # the maps that are not the training ones
    samples = open_dataset(str(tmp_path), asked)
    assert samples.split == found
    check_samples(samples, [10, 0])


@pytest.mark.parametrize("asked, names", [("train", ["2008_2", "2008_1"]), ("validation", ["2008_1"])])
def test_pascal_context(tmp_path, asked, names):
    make_context(tmp_path)
    samples = open_dataset(tmp_path, asked)
    assert check_samples(samples, [10] * len(names)) == [f"JPEGImages/{name}.jpg" for name in names]


@pytest.mark.parametrize("name", ["../secret", "/etc/secret", "a\\b", ".."])
def test_split_list_stays_in_its_folder(tmp_path, name):
    make_context(tmp_path)
    with (tmp_path / "ImageSets/SegmentationContext/train.txt").open("a") as file:
        file.write(name + "\n")
    with pytest.raises(ValueError, match="line 4 of .*train.txt is .*; a plain picture name"):
        open_dataset(tmp_path, "train")


def test_broken_folders(tmp_path):
    put_ade20k(tmp_path / "ade")
    (tmp_path / "ade/annotations/training/a.png").unlink()
    with pytest.raises(ValueError, match="1 of 2 label maps are missing in .* annotations/training/a.png of picture"):
        open_dataset(tmp_path / "ade", "train")
    make_context(tmp_path / "context")
    (tmp_path / "context/JPEGImages/2008_2.jpg").unlink()
    with pytest.raises(ValueError, match="1 of 2 pictures are missing in .*, the first is JPEGImages/2008_2.jpg"):
        open_dataset(tmp_path / "context", "train")
    (tmp_path / "ade/images/empty").mkdir()
    with pytest.raises(ValueError, match="split empty of .* holds no pictures"):
        open_dataset(tmp_path / "ade", "empty")
    with pytest.raises(ValueError, match="no split 'extra'; it has empty, training, validation"):
        open_dataset(tmp_path / "ade", "extra")
    with pytest.raises(ValueError, match="streaming, config and columns do not apply"):
        open_dataset(tmp_path / "ade", "val", streaming=True)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        open_dataset(tmp_path / "nowhere", "train")


@pytest.mark.parametrize("name", ["nowhere", "me/nowhere", "my/deep/nowhere"])
def test_what_is_neither_here_nor_on_the_hub(name):
    pytest.importorskip("datasets")
    with pytest.raises(OSError, match=f"there is no file or folder {name}, and as a data set on the Hub: "):
        open_dataset(name, "train")


def test_sub_folders(tmp_path):
    """At any depth; the other split has none, and folders of links are followed."""
    put_ade20k(tmp_path, names=("b", "one/a", "one/two/c.d", "one/b"))
    write(tmp_path / "elsewhere/e.JPG", colors(50))
    write(tmp_path / "annotations/training/linked/e.png", LABELS)
    (tmp_path / "images/training/linked").symlink_to(tmp_path / "elsewhere")
    samples = open_dataset(tmp_path, "train")
    names = ["b.jpg", "linked/e.JPG", "one/a.jpg", "one/b.jpg", "one/two/c.d.jpg"]
    assert check_samples(samples, [0, 50, 10, 30, 20]) == [f"images/training/{name}" for name in names]
    assert samples.notes == []
    (tmp_path / "images/training/one/loop").symlink_to(tmp_path / "images")
    with pytest.raises(ValueError, match="one/loop is a link to a folder above it; remove it"):
        open_dataset(tmp_path, "train")


def test_hidden_files_count_nowhere(tmp_path):
    put_ade20k(tmp_path, names=("a", "one/b"))
    make_context(tmp_path / "context")
    plain = (tmp_path / "images/training", tmp_path / "annotations/training", tmp_path / "images/training/one")
    for name in (
        "._a.jpg",
        "._a.png",
        ".DS_Store",
        "Thumbs.db",
        ".ipynb_checkpoints/a-checkpoint.jpg",
        "__MACOSX/a.jpg",
    ):
        for folder in plain:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"\0\5\x16\7")
    (tmp_path / "annotations/training/._a_labelTrainIds.png").write_bytes(b"")
    (tmp_path / "images/.ipynb_checkpoints").mkdir()
    samples = open_dataset(tmp_path, "train")
    assert check_samples(samples, [0, 10]) == ["images/training/a.jpg", "images/training/one/b.jpg"]
    assert samples.notes == []
    with pytest.raises(ValueError, match="no split 'extra'; it has training, validation$"):
        open_dataset(tmp_path, "extra")
    lists = tmp_path / "context/ImageSets/SegmentationContext"
    (lists / "._val.txt").write_bytes(b"\xff\xfe")
    (lists / "train.txt").write_bytes("\ufeff2008_1\r\n._2008_1\r\n".encode())
    assert check_samples(open_dataset(tmp_path / "context", "train"), [10]) == ["JPEGImages/2008_1.jpg"]
    with pytest.raises(ValueError, match="no split 'extra'; it has train, val$"):
        open_dataset(tmp_path / "context", "extra")
    (lists / "train.txt").write_bytes("2008_1".encode("utf-16"))
    with pytest.raises(ValueError, match="train.txt cannot be read: it is not UTF-8 text"):
        open_dataset(tmp_path / "context", "train")


@pytest.mark.parametrize("ending, kind", [("ppm", "ppm"), ("pgm", "ppm"), ("jfif", "jpeg"), ("PPM", "ppm")])
def test_images_of_rarer_endings(tmp_path, ending, kind):
    (tmp_path / "images").mkdir()
    write(tmp_path / "masks/a.png", LABELS)
    picture = Image.fromarray(colors(1)).convert("L" if ending == "pgm" else "RGB")
    picture.save(tmp_path / f"images/a.{ending}", format=kind)
    image, label_map = open_dataset(tmp_path, "train", val_fraction=0)[0].read()
    np.testing.assert_array_equal(label_map, LABELS)
    assert image.shape[:2] == LABELS.shape and (kind == "jpeg" or (image == np.asarray(picture.convert("RGB"))).all())


def test_what_is_left_out_is_told(tmp_path):
    put_ade20k(tmp_path, names=[f"n{i}" for i in range(8)])
    training = tmp_path / "images/training"
    for i in range(7):
        (training / f"n{i}.jpg").unlink()
    (training / "about.txt").write_text("")
    (training / "film.gif").write_bytes(b"")
    write(tmp_path / "images/loose.png", colors(1))
    samples = open_dataset(tmp_path, "train")
    assert len(samples) == 1
    kinds = r".jpg, .jpeg, .jfif, .png, .bmp, .tif, .tiff, .webp, .ppm, .pgm, .npy"
    assert samples.notes == [
        f"2 files in {training} are left out, because they are not of a kind that is read ({kinds}): "
        "about.txt, film.gif",
        f"7 files in {tmp_path / 'annotations/training'} are left out, because there is no picture of the same path: "
        "n0.png, n1.png, n2.png, n3.png, n4.png and 2 more",
        f"1 pictures in {tmp_path / 'images'} belong to no split: loose.png",
    ]
    assert open_dataset(tmp_path, "val").notes == samples.notes[2:]
    (training / "n0.gif").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"1 of 2 pictures in .*training are not of a kind that is read .*: n0.gif; conv"
    ):
        open_dataset(tmp_path, "train")
    (training / "n0.gif").unlink()
    write(training / "n7.png", LABELS)  # a label map in the wrong folder
    with pytest.raises(ValueError, match="2 pictures in .* share 1 label maps: n7.jpg, n7.png; keep one picture"):
        open_dataset(tmp_path, "train")


def test_label_maps_elsewhere_are_named(tmp_path):
    put_ade20k(tmp_path, "a")
    write(tmp_path / "annotations/training/sub/a.png", LABELS)
    (tmp_path / "annotations/training/a.png").unlink()
    write(tmp_path / "annotations/training/other/b.png", LABELS)
    with pytest.raises(ValueError, match="1 of 1 label maps are missing in .*same path: other/b.png, sub/a.png$"):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize(
    "name",
    [
        "a.PNG",
        "a.tif",
        "a.TIFF",
        "a.bmp",
        "a.npy",
        "a.pgm",
        "a.ppm",
        "a_mask.png",
        "a_gt.PNG",
        "mask-a.png",
        "a_mask_1.png",
    ],
)
def test_label_maps_of_any_lossless_kind(tmp_path, name):
    put_ade20k(tmp_path, "a")
    path = tmp_path / "annotations/training" / name
    (tmp_path / "annotations/training/a.png").unlink()
    write(path, LABELS)
    check_samples(open_dataset(tmp_path, "train"), [0])


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.webp", "a_mask.jpg"])
def test_lossy_label_maps_are_refused_by_their_ending(tmp_path, name):
    put_ade20k(tmp_path, "a")
    (tmp_path / "annotations/training/a.png").unlink()
    write(tmp_path / "annotations/training" / name, LABELS)
    for table in (None, {0: [0, 0, 0], 1: [255, 0, 0], 2: [0, 0, 255]}):
        with pytest.raises(
            ValueError, match="1 label maps in .* are JPEG or WebP, which change .* label_colors: {0: "
        ):
            open_dataset(tmp_path, "train", label_colors=table)


def test_find_split():
    assert find_split("test", ["train", "validation", "test"], "x") == "test"
    assert find_split("test", ["train", "val"], "x") == "val"
    assert find_split("val", ["test", "validation"], "x") == "validation"
    assert find_split("trainval", ["train", "trainval"], "x") == "trainval"
    assert find_split("train", ["TEST", "train_val"], "x") == "train_val"
    with pytest.raises(ValueError, match="x has no split 'train'"):
        find_split("train", ["trainval", "val"], "x")  # it holds the validation part too
    with pytest.raises(ValueError, match="x has no split 'validation'; it has train"):
        find_split("validation", ["train"], "x")
    with pytest.raises(ValueError, match="has no split 'train'; it has none"):
        find_split("train", [], "x")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["saved", "saved_splits", "parquet", "parquet_splits"])
def test_tables(tmp_path, table_cache, kind, streaming):
    import datasets

    folder, table = tmp_path / "set", make_table()
    if kind == "saved":
        table.save_to_disk(folder)
    elif kind == "saved_splits":
        datasets.DatasetDict(train=table, validation=table.select([2])).save_to_disk(folder)
    elif kind == "parquet":
        folder.mkdir()
        table.to_parquet(folder / "some.parquet")
    else:
        folder.mkdir()
        table.to_parquet(folder / "train-00000-of-00001.parquet")
        table.select([2]).to_parquet(folder / "validation-00000-of-00001.parquet")
    samples = open_dataset(folder, "train", streaming=streaming)
    assert hasattr(samples, "__iter__") == streaming
    for _ in range(2):  # a stream too can be read again
        assert check_samples(samples, [0, 10, 20]) == ["0.png", "1.png", "2.png"]
    if "splits" in kind:
        validation = open_dataset(folder, "val", streaming=streaming)
        assert validation.split == "validation"
        check_samples(validation, [20])
    else:
        with pytest.raises(ValueError, match="no split 'validation'; it has train"):
            open_dataset(folder, "validation", streaming=streaming)


def test_a_stream_is_read_by_one_worker(tmp_path, table_cache):
    """`datasets` would hand each worker other shards without a word."""
    make_table(num_rows=4).to_parquet(tmp_path / "set" / "train.parquet")
    samples = open_dataset(tmp_path / "set", "train", streaming=True)

    class Names(torch.utils.data.IterableDataset):
        def __iter__(self):
            return (sample.name for sample in samples)

    names = [sample.name for sample in samples]
    assert len(names) == 4
    for num_workers in (0, 1):
        assert list(torch.utils.data.DataLoader(Names(), batch_size=None, num_workers=num_workers)) == names
    with pytest.raises(ValueError, match="a stream is read by one worker, not 2"):
        list(torch.utils.data.DataLoader(Names(), batch_size=None, num_workers=2))


def test_slice_of_a_split(tmp_path, table_cache):
    (tmp_path / "set").mkdir()
    make_table().to_parquet(tmp_path / "set/all.parquet")
    check_samples(open_dataset(tmp_path / "set", "training[1:]"), [10, 20])


def test_untyped_stream_of_paths(tmp_path, table_cache):
    """JSON lines do not tell their types when streamed, and hold paths."""
    picture, mask = write(tmp_path / "p/a.png", colors(10)), write(tmp_path / "p/m.png", LABELS, "P")
    (tmp_path / "set").mkdir()
    row = {"image": str(picture), "other": 1, "mask": str(mask)}
    (tmp_path / "set/train.jsonl").write_text(json.dumps(row) + "\n")
    samples = open_dataset(tmp_path / "set", "train", streaming=True, image_column="image", label_column="mask")
    assert check_samples(samples, [10]) == ["a.png"]


def test_arrays_in_columns(tmp_path, table_cache):
    table = make_table(1).remove_columns("annotation").add_column("mask", [LABELS.tolist()])
    table.save_to_disk(tmp_path / "set")
    check_samples(open_dataset(tmp_path / "set", "train"), [0])


def test_columns(tmp_path, table_cache):
    masks = make_table()["annotation"]
    rows = {"image": None, "annotation": None, "mask": masks, "label": [0, 1, 2]}
    table = make_table(**{key: value for key, value in rows.items() if value is not None})
    table.save_to_disk(tmp_path / "two")
    columns = "the columns are image, annotation, number, mask, label"
    with pytest.raises(ValueError, match=f"set label_column: annotation, mask could all be it; {columns}"):
        open_dataset(tmp_path / "two", "train")
    check_samples(open_dataset(tmp_path / "two", "train", label_column="mask"), [0, 10, 20])
    with pytest.raises(ValueError, match=f"image_column 'photo' does not exist; {columns}"):
        open_dataset(tmp_path / "two", "train", image_column="photo")
    # a class number is no label map
    table.remove_columns(["annotation", "mask"]).save_to_disk(tmp_path / "none")
    with pytest.raises(ValueError, match="set label_column: no column looks like it; the columns are image, number"):
        open_dataset(tmp_path / "none", "train")


@pytest.mark.integration
def test_import_is_light():
    """yaml, the other extra, comes with transformers anyhow."""
    modules = "qlseg_hf.data.check, qlseg_hf.evaluation, qlseg_hf.data.augmentation"
    code = f"import sys, {modules} as a; print(a.__name__, *sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert found[0] == "qlseg_hf.data.augmentation"
    assert not {"datasets", "evaluate", "cv2"} & set(found)


def test_datasets_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "table").mkdir()
    (tmp_path / "table/train.parquet").write_bytes(b"")
    with pytest.raises(ImportError, match=r"needs the package datasets: pip install 'qlseg-hf\[train\]'"):
        open_dataset(tmp_path / "table", "train")
    (tmp_path / "table/train.parquet").unlink()
    with pytest.raises(ValueError, match="table is an empty folder"):
        open_dataset(tmp_path / "table", "train")
    put_ade20k(tmp_path)  # folders do without
    assert len(open_dataset(tmp_path, "train")) == 2


def test_label_maps_of_one_bit_in_pbm(tmp_path):
    """As Figaro1k's: white, which PBM stores as 0, is label 1."""
    put_ade20k(tmp_path, "a")
    (tmp_path / "annotations/training/a.png").unlink()
    (tmp_path / "annotations/training/a.pbm").write_bytes(b"P1\n4 2\n1 1 0 1\n0 1 1 1\n")
    found = open_dataset(tmp_path, "train")[0].read_label_map()
    np.testing.assert_array_equal(found, [[0, 0, 1, 0], [1, 0, 0, 0]])
