"""Tables of files and of bytes, and tar files."""

import io
import json
import tarfile

import numpy as np
import pytest
from huggingface_hub import HfApi, constants
from made_data import LABELS, put, put_pairs, write
from PIL import Image

from qlseg_hf.data.datasets import SampleError, open_dataset
from qlseg_hf.data.layouts import find_layout

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def put_files(root, names):
    for shade, name in enumerate(names):
        put(root / f"pics/{name}.png", shade)
        put(root / f"marks/{name}.png")


def put_table(path, names, columns=("image", "mask")):
    rows = [{columns[0]: f"pics/{name}.png", columns[1]: f"marks/{name}.png"} for name in names]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        sign = "\t" if path.suffix == ".tsv" else ","
        path.write_text("\n".join([sign.join(columns), *(sign.join(row.values()) for row in rows)]) + "\n")


def put_tar(path, names, ending="png"):
    with tarfile.open(path, "w") as archive:
        for name in names:
            for member, array in ((f"{name}.jpg", np.zeros((2, 4, 3), np.uint8)), (f"{name}.{ending}", LABELS)):
                buffer = io.BytesIO()
                Image.fromarray(array).save(buffer, format="jpeg" if member.endswith("jpg") else "png")
                info = tarfile.TarInfo(member)
                info.size = buffer.tell()
                archive.addfile(info, io.BytesIO(buffer.getvalue()))


def names_of(samples):
    for index in range(len(samples)):
        np.testing.assert_array_equal(samples[index].read()[1], LABELS)
    return [samples[index].name for index in range(len(samples))]


@pytest.mark.parametrize(
    "ending, columns",
    [(".csv", ("image", "mask")), (".tsv", ("image_path", "label_path")), (".jsonl", ("filename", "gt"))],
)
def test_paths_are_relative_to_the_table(tmp_path, ending, columns, monkeypatch):
    put_files(tmp_path / "set", "abc")
    put_table(tmp_path / f"set/train{ending}", "ab", columns)
    put_table(tmp_path / f"set/val{ending}", "c", columns)
    monkeypatch.chdir(tmp_path)
    layout = find_layout("set")
    assert layout.name == "table" and "train 2, val 1" in layout.description
    assert names_of(open_dataset("set", "train")) == ["a.png", "b.png"]
    assert names_of(open_dataset(tmp_path / "set", "validation")) == ["c.png"]
    stream = open_dataset("set", "train", streaming=True, image_column=columns[0], label_column=columns[1])
    assert [sample.name for sample in stream] == ["a.png", "b.png"]


@pytest.mark.parametrize("sign", [";", "\t"])
def test_semicolons_and_tabs_in_csv_files(tmp_path, sign):
    """As spreadsheets write them where a comma parts the digits of numbers."""
    put_files(tmp_path, "ab")
    rows = [["image", "mask", "size"], *([f"pics/{name}.png", f"marks/{name}.png", "1,5"] for name in "ab")]
    (tmp_path / "train.csv").write_text("\n".join(sign.join(row) for row in rows) + "\n")
    assert names_of(open_dataset(tmp_path, "train", val_fraction=0)) == ["a.png", "b.png"]
    (tmp_path / "val.csv").write_text("image,mask\npics/a.png,marks/a.png\n")
    with pytest.raises(ValueError, match="train.csv, val.csv in .* part their cells by different signs; use one"):
        find_layout(tmp_path)


def test_deepglobe(tmp_path):
    """Pairs, a table that says the same of train and that the other parts have no masks, and a table of colours."""
    colors = np.array([[0, 255, 255], [255, 255, 0], [0, 0, 0]], dtype=np.uint8)
    labels = np.array([[0, 1, 2, 2]] * 2)
    rows = ["image_id,split,sat_image_path,mask_path"]
    for name, split in (("1", "train"), ("2", "train"), ("3", "valid"), ("4", "test")):
        put(tmp_path / f"{split}/{name}_sat.jpg", 9)
        if split == "train":
            Image.fromarray(colors[labels]).save(tmp_path / f"{split}/{name}_mask.png")
        rows.append(f"{name},{split},{split}/{name}_sat.jpg,{f'{split}/{name}_mask.png' if split == 'train' else ''}")
    (tmp_path / "class_dict.csv").write_text(
        "name,r,g,b\nurban_land,0,255,255\nagriculture_land,255,255,0\nunknown,0,0,0\n"
    )
    for has_table in (False, True):
        if has_table:
            (tmp_path / "metadata.csv").write_text("\n".join(rows) + "\n")
        layout = find_layout(tmp_path, val_fraction=0)
        assert (layout.name, list(layout.splits)) == ("table" if has_table else "pairs", ["train"])
        assert layout.label_names == ["urban_land", "agriculture_land", "unknown"]
        assert sum("have no label maps at all" in note for note in layout.notes) == 2
        np.testing.assert_array_equal(open_dataset(tmp_path, "train", val_fraction=0)[1].read()[1], labels)


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_one_table_is_divided(tmp_path, ending):
    names = [f"n{i}" for i in range(20)]
    put_files(tmp_path, names)
    put_table(tmp_path / f"all_of_it{ending}", names)
    train = open_dataset(tmp_path / f"all_of_it{ending}", "train")
    validation = open_dataset(tmp_path / f"all_of_it{ending}", "validation")
    assert sorted(names_of(train) + names_of(validation)) == sorted(f"{name}.png" for name in names)
    assert 0 < len(validation) < 10


def put_rows(path, head, rows):
    """A table of rows of cells; without an ending of text as parquet."""
    if path.suffix == ".parquet":
        datasets.Dataset.from_list([dict(zip(head, row)) for row in rows]).to_parquet(path)
    else:
        path.write_text("\n".join(",".join(cell or "" for cell in row) for row in [head, *rows]) + "\n")


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_column_tells_the_splits(tmp_path, ending):
    """As in DeepGlobe's metadata.csv, whose other parts have no label maps."""
    put_files(tmp_path, "abcdef")
    head = ["image_id", "split", "sat_image_path", "mask_path"]
    parts = {"c": "val", "f": "test"}
    rows = [[name, parts.get(name, "train"), f"pics/{name}.png", f"marks/{name}.png"] for name in "abcdef"]
    path = tmp_path / f"metadata{ending}"
    put_rows(path, head, rows)
    layout = find_layout(path, image_column="sat_image_path")
    assert "splits by its column split; images: train 4, val 1, test 1" in layout.description
    columns = {"image_column": "sat_image_path"}
    assert names_of(open_dataset(path, "train", **columns)) == ["a.png", "b.png", "d.png", "e.png"]
    assert names_of(open_dataset(path, "validation", **columns)) == ["c.png"]
    with pytest.raises(ValueError, match="column split of .* a stream is not divided; leave streaming out"):
        open_dataset(path, "train", streaming=True, **columns)
    put_rows(path, head, [[*row[:3], row[3] if row[1] == "train" else None] for row in rows[::-1]])
    layout = find_layout(path, val_fraction=0, **columns)
    assert "1 images of val have no label maps at all" in layout.notes[1] and list(layout.splits) == ["train"]
    put_rows(path, head, [[row[0], f"{row[1]} set", *row[2:]] for row in rows])  # before, such a column was passed by
    assert list(find_layout(path, **columns).splits) == ["train", "val", "test"]
    put_rows(path, head, [[row[0], "somewhere" if row[0] == "a" else row[1], *row[2:]] for row in rows])
    with pytest.raises(
        ValueError, match="column split of .* is train, val, test in some rows, and somewhere in others"
    ):
        find_layout(path, **columns)
    put_rows(path, head, [[row[0], row[0], *row[2:]] for row in rows])  # what names no split at all is no such column
    assert list(find_layout(path, **columns).splits) == ["train", "validation"]


def test_a_column_counts_more_than_the_name_of_the_only_table(tmp_path):
    put_files(tmp_path, "abcd")
    rows = [[f"pics/{name}.png", f"marks/{name}.png", "valid" if name == "b" else "train"] for name in "abcd"]
    put_rows(tmp_path / "train.csv", ["image", "mask", "Split"], rows)
    assert names_of(open_dataset(tmp_path, "validation")) == ["b.png"]
    put_rows(tmp_path / "test.csv", ["image", "mask", "Split"], [[*row[:2], "test"] for row in rows])
    assert list(find_layout(tmp_path).splits) == ["test", "train", "valid"]
    put_rows(tmp_path / "val.csv", ["image", "mask", "Split"], rows)
    with pytest.raises(ValueError, match="has two parts called train, valid"):
        find_layout(tmp_path)


@pytest.mark.parametrize("folder, other", [("set [v1]", "set v"), ("set*", "set2"), ("set?", "setx")])
@pytest.mark.parametrize("reader", [".csv", ".tar"])
def test_the_table_of_a_folder_and_of_no_other(tmp_path, folder, other, reader):
    """`datasets` takes the signs of patterns in a path for these, and would read the table of another folder."""
    for name, images in ((folder, "abc"), (other, "de")):
        put_files(tmp_path / name, images)
        if reader == ".csv":
            put_table(tmp_path / name / "train.csv", images)
        else:
            put_tar(tmp_path / name / "train-0.tar", images)
    assert len(names_of(open_dataset(tmp_path / folder, "train", val_fraction=0))) == 3


def test_a_folder_that_datasets_reads_is_no_pattern(tmp_path):
    put_files(tmp_path / "set [v1]", "ab")
    put_table(tmp_path / "set [v1]/train.parquet", "ab")
    with pytest.raises(
        ValueError, match=r"takes \[, \? and \* in .*set \[v1\] for a pattern of other names; rename the"
    ):
        open_dataset(tmp_path / "set [v1]", "train")
    assert len(names_of(open_dataset(tmp_path / "set [v1]/train.parquet", "train", val_fraction=0))) == 2


@pytest.mark.parametrize("written", ["pics\\{0}.png,marks\\{0}.png", "pics/{0}.png, marks/{0}.png"])
def test_paths_as_windows_writes_them_and_blanks(tmp_path, written):
    put_files(tmp_path, "ab")
    (tmp_path / "train.csv").write_text("\n".join(["image, mask", *(written.format(name) for name in "ab")]))
    assert len(names_of(open_dataset(tmp_path, "train", val_fraction=0))) == 2


@pytest.mark.parametrize(
    "name, content",
    [
        ("train.zip", b"PK\3\4 damaged"),
        ("train.tar", b"damaged" * 50),
        ("train.csv", b"image,mask\na.png,b.png\na.png,b.png,c.png,d.png\n"),
        ("train.jsonl", b'{"image": "a.png", "mask": "b.png"}\n{"image": '),
        ("train.parquet", b"PAR1 damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{tmp_path}.* cannot be read: "):
        open_dataset(tmp_path, "train")


def test_several_files_in_a_row(tmp_path):
    file = io.BytesIO()
    Image.fromarray(LABELS).save(file, "PNG")
    rows = {"image": [file.getvalue()], "masks": [[file.getvalue()] * 2]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(
        SampleError, match="label map: a list of 2 files; one that says of each pixel what it is is wanted"
    ):
        open_dataset(tmp_path, "train", val_fraction=0)[0].read()


def test_tables_that_are_not_clear(tmp_path):
    put_files(tmp_path, "abcdef")
    put_table(tmp_path / "train.csv", "abcdef", ("first", "second"))
    with pytest.raises(ValueError, match="set image_column: no column looks like it; the columns are first, second"):
        open_dataset(tmp_path, "train")
    assert len(open_dataset(tmp_path, "train", image_column="first", label_column="second", val_fraction=0)) == 6
    (tmp_path / "train.csv").write_text("pics/a.png,marks/a.png\npics/b.png,marks/b.png\n")
    with pytest.raises(ValueError, match="put 'image,mask' above it"):
        open_dataset(tmp_path, "train")
    put_table(tmp_path / "train.csv", "ab")
    put_table(tmp_path / "train.jsonl", "ab")
    with pytest.raises(ValueError, match="tables of several kinds: train.csv, train.jsonl"):
        open_dataset(tmp_path, "train")
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "pics").rename(tmp_path / "images")
    (tmp_path / "marks").rename(tmp_path / "masks")
    put_table(tmp_path / "pairs.csv", "ab")
    (tmp_path / "train.csv").unlink()
    with pytest.raises(
        ValueError, match="can be read in 2 ways: table .*; folders .*layout: table or layout: folders"
    ):
        open_dataset(tmp_path, "train")
    assert len(open_dataset(tmp_path, "train", layout="folders", val_fraction=0)) == 6
    (tmp_path / "pairs.csv").unlink()
    (tmp_path / "train.csv").write_text("id,score\n1,2\n")  # another table is in nobody's way
    assert find_layout(tmp_path).name == "folders"
    with pytest.raises(FileNotFoundError, match="is no folder; give a folder, a table"):
        open_dataset("nowhere.csv", "train")


def test_what_datasets_reads_by_itself(tmp_path):
    """An image folder with metadata."""
    put_files(tmp_path / "train", "abc")
    lines = ["file_name,mask_file_name", *(f"pics/{name}.png,marks/{name}.png" for name in "abc")]
    (tmp_path / "train/metadata.csv").write_text("\n".join(lines))
    samples = open_dataset(tmp_path, "train")
    assert samples.layout.name == "table" and names_of(samples) == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize("ending", ["png", "mask.png", "seg.png"])
@pytest.mark.parametrize("streaming", [False, True])
def test_webdataset(tmp_path, ending, streaming):
    for split, names in (("train", "abc"), ("val", "d")):
        put_tar(tmp_path / f"{split}-000.tar", names, ending)
    samples = open_dataset(tmp_path, "train", streaming=streaming)
    assert samples.layout.name == "webdataset"
    found = list(samples) if streaming else [samples[i] for i in range(len(samples))]
    assert len(found) == 3
    for sample in found:
        np.testing.assert_array_equal(sample.read()[1], LABELS)


def test_a_stream_is_not_divided(tmp_path):
    names = [f"n{i}" for i in range(20)]
    put_files(tmp_path, names)
    put_table(tmp_path / "train.csv", names)
    assert len(list(open_dataset(tmp_path, "train", streaming=True))) == 20
    with pytest.raises(ValueError, match="it has train; a stream cannot be divided"):
        open_dataset(tmp_path, "val", streaming=True)


def test_names_of_a_data_set_on_the_hub(hub, monkeypatch, tmp_path):
    """Of its `id2label.json`, whose keys are the labels; without one, or with a damaged one, there are none."""
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_: ["train", "validation"])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    api = HfApi()
    for name, content in (("named", b'{"1": "road", "0": "sky"}'), ("broken", b'{"1": "road"}'), ("bare", None)):
        api.create_repo(f"me/{name}", repo_type="dataset")
        file = "README.md" if content is None else "id2label.json"
        api.upload_file(path_or_fileobj=content or b"x", path_in_repo=file, repo_id=f"me/{name}", repo_type="dataset")
    layout = find_layout("me/named")
    assert (layout.name, layout.label_names, layout.notes) == ("hub", ["sky", "road"], [])
    layout = find_layout("me/broken")
    assert layout.label_names is None and "the keys must be 0..0, each once" in layout.notes[0]
    layout = find_layout("me/bare")
    assert (layout.label_names, layout.notes) == (None, [])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    told = ["the Hub could not be asked for id2label.json of me/other, which may name the labels"]
    assert find_layout("me/other").notes == told
    assert find_layout("me/named").label_names == ["sky", "road"]  # that was fetched before


def test_metadata_in_folders_of_splits_tells_the_pairs(tmp_path):
    """As of an image folder of `datasets`; names that do not pair were refused, and others paired by them."""
    for split, shift in (("train", 10), ("test", 0)):
        rows = ["file_name,mask_file_name"]
        for number in range(4):
            other = (number + 1) % 4
            write(tmp_path / split / f"images/{number}.png", np.full((2, 4, 3), number, dtype=np.uint8))
            write(tmp_path / split / f"masks/{other + shift}.png", np.full((2, 4), number, dtype=np.uint8))
            rows.append(f"images/{number}.png,masks/{other + shift}.png")
        (tmp_path / split / "metadata.csv").write_text("\n".join(rows))
    for split in ("train", "test"):
        samples = open_dataset(tmp_path, split)
        assert [int(samples[i].read()[1].max()) for i in range(4)] == [0, 1, 2, 3]
        assert [int(samples[i].read()[0].max()) for i in range(4)] == [0, 1, 2, 3]
    (tmp_path / "train/metadata.csv").unlink()
    with pytest.raises(ValueError, match="can be read in 2 ways: table .* Say which counts"):
        open_dataset(tmp_path / "test", "train")


@pytest.mark.parametrize("file", ["metadata.jsonl", "train.csv", "pairs.csv"])
def test_a_table_of_what_folders_pair_too(tmp_path, file):
    """It is no second way to read them, unless it names others."""
    names = "abcdef"
    put_pairs(tmp_path, "images/{name}.png", "masks/{name}.png", names)

    def write(path, pairs):
        rows = [{"file_name": f"images/{one}.png", "mask": f"./masks/{other}.png"} for one, other in pairs]
        lines = (
            map(json.dumps, rows)
            if path.suffix == ".jsonl"
            else ["file_name,mask", *(",".join(r.values()) for r in rows)]
        )
        path.write_text("\n".join(lines))

    write(tmp_path / file, zip(names, names))
    layout = find_layout(tmp_path, val_fraction=0)
    assert layout.name == "folders" and len(layout.splits["train"]) == 6
    write(tmp_path / file, zip(names, names[::-1]))
    with pytest.raises(ValueError, match="can be read in 2 ways: table .*layout: table or layout: folders"):
        find_layout(tmp_path)
    write(tmp_path / file, zip("abc", "abc"))
    if file != "train.csv":
        with pytest.raises(ValueError, match="can be read in 2 ways"):
            find_layout(tmp_path)
    else:
        assert len(find_layout(tmp_path, val_fraction=0).splits["train"]) == 3  # a list of the images to train on
        write(tmp_path / "val.csv", zip("def", "def"))
        layout = find_layout(tmp_path)
        assert layout.name == "table" and {split: len(layout.splits[split]) for split in layout.splits} == {
            "train": 3,
            "val": 3,
        }


@pytest.mark.parametrize(
    "image, mask",
    [
        ("/content/drive/My Drive/set/pics/{}.png", "/content/drive/My Drive/set/marks/{}.png"),
        ("C:\\set\\pics\\{}.png", "C:\\set\\marks\\{}.png"),
        ("{}.png", "{}_m.png"),  # bare names
    ],
)
def test_paths_of_another_machine(tmp_path, image, mask):
    put_files(tmp_path, "ab")
    if "_m" in mask:
        for name in "ab":
            (tmp_path / f"marks/{name}.png").rename(tmp_path / f"marks/{name}_m.png")
    rows = "".join(f"{image.format(name)},{mask.format(name)}\n" for name in "ab")
    (tmp_path / "train.csv").write_text("image,mask\n" + rows)
    samples = open_dataset(tmp_path, "train", val_fraction=0)
    for index, name in enumerate("ab"):
        picture, label_map = samples[index].read()
        assert samples[index].name == f"{name}.png" and (picture == index).all() and (label_map == LABELS).all()


def test_bare_names_that_mean_two_files(tmp_path):
    """An image was its own label map else."""
    put_pairs(tmp_path, "images/{name}.png", "masks/{name}.png")
    (tmp_path / "train.csv").write_text("image,mask\na.png,a.png\nb.png,b.png\n")
    with pytest.raises(ValueError, match="can be read in 2 ways"):
        find_layout(tmp_path)
    with pytest.raises(SampleError, match="a.png: label map: .*a.png"):
        open_dataset(tmp_path, "train", layout="table", val_fraction=0)[0].read()


@pytest.mark.parametrize("column", ["fold", "kfold", "is_train", "split"])
@pytest.mark.parametrize("folder", ["images", "pics"])
def test_columns_that_divide_in_other_ways_are_told(tmp_path, column, folder):
    put_pairs(tmp_path, folder + "/{name}.png", "masks/{name}.png", "abcdef")
    rows = [f"{folder}/{name}.png,masks/{name}.png,{number % 2}\n" for number, name in enumerate("abcdef")]
    (tmp_path / "data.csv").write_text(f"image,mask,{column}\n" + "".join(rows))
    layout = find_layout(tmp_path)
    assert any(note.startswith(f"column {column} of {tmp_path} is not used; write train or") for note in layout.notes)


def test_dots_in_names_of_tar_files(tmp_path):
    put_tar(tmp_path / "train.tar", ["a_0.1", "a_0.2"])
    with pytest.raises(ValueError, match="no column looks like it .*rename files whose names .*1.jpg, 1.png"):
        open_dataset(tmp_path, "train", val_fraction=0)
