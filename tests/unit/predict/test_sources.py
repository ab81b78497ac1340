"""What sources mean, what results are called, and that each item reads its own picture."""

import io
import tarfile

import fsspec
import numpy as np
import pytest
from PIL import Image

from qlseg_hf.model.image_io import load_picture
from qlseg_hf.predict.items import SourceOptions
from qlseg_hf.predict.sources import find_items


def encoded(value: int, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(file, form)
    return file.getvalue()


def write(path, value: int = 7):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(value))
    return path


def names(sources, **options) -> list[str]:
    return [item.name for item in find_items(list(map(str, sources)), SourceOptions(**options))[0]]


def values(sources, **options) -> dict[str, int]:
    """The value of every pixel of each item's picture, by name."""
    items = find_items(list(map(str, sources)), SourceOptions(**options))[0]
    return {item.name: int(load_picture(item.reader.read())[0, 0, 0]) for item in items}


def test_files_folders_and_patterns(tmp_path):
    write(tmp_path / "in" / "a.png", 1)
    write(tmp_path / "in" / "sub" / "deep" / "b.c.png", 2)
    write(tmp_path / "in" / "sub" / "._b.png")
    (tmp_path / "in" / "notes.doc").write_text("")
    items, notes = find_items([str(tmp_path / "in")])
    assert [item.name for item in items] == ["a", "sub/deep/b.c"] and "notes.doc" in notes[0]
    assert values([tmp_path / "in"]) == {"a": 1, "sub/deep/b.c": 2}
    assert names([tmp_path / "in" / "sub" / "deep" / "b.c.png"]) == ["b.c"]
    assert names([tmp_path / "in" / "*.png"]) == ["a"]
    assert names([tmp_path / "in" / "**" / "*.png"]) == ["a", "sub/deep/b.c"]
    assert names([tmp_path / "i*"]) == ["in/a", "in/sub/deep/b.c"]
    assert names([tmp_path / "in", tmp_path / "in" / "a.png"]) == ["a", "sub/deep/b.c"]  # the same file


def test_results_lie_in_the_source(tmp_path):
    write(tmp_path / "a.png")
    write(tmp_path / "out" / "labels" / "a.png")
    assert names([tmp_path], left_out=tmp_path / "out") == ["a"]
    assert names([tmp_path / "**" / "*.png"], left_out=tmp_path / "out") == ["a"]


@pytest.mark.parametrize(
    "images, label_maps",
    [
        (["images/a.jpg", "images/b.jpg", "more/c.png"], ["masks/a.png", "masks/b.png"]),
        (["images/val/a.jpg"], ["annotations/val/a.png", "annotations/val/a_color.png"]),
        (["JPEGImages/a.jpg"], ["SegmentationClass/a.png", "SegmentationObject/a.png"]),
        (["leftImg8bit/val/x/a_leftImg8bit.png"], [f"gtFine/val/x/a_gtFine_{i}.png" for i in ("color", "labelIds")]),
        (["train/a.png", "val/b.png"], ["trainannot/a.png", "valannot/b.png"]),
        (["images/a.jpg", "images/b.jpg"], ["masks/car/a.png", "masks/car/b.png", "masks/road/a.png"]),
        (["images/a.jpg"], ["masks/a.jpg"]),
        (["a.jpg", "b.png", "sub/c.jpg", "d_gt.png"], ["a_mask.png", "b_mask.png"]),
        (["1/image.png", "2/image.png"], ["1/label.png", "2/label.png"]),
        (["intro/1.jpg", "seg_1/1.jpg", "seg_2/1.jpg"], []),  # segments of a video
        (["photos/a.jpg", "labels/b.png"], []),  # photographs of labels
    ],
)
def test_label_maps_of_a_data_set_are_left_out(tmp_path, images, label_maps):
    for name in (*images, *label_maps):
        write(tmp_path / name)
    for source in (tmp_path, f"file://{tmp_path}"):
        items, notes = find_items([str(source)])
        assert [item.name for item in items] == sorted(name.rpartition(".")[0] for name in images)
        assert any(f"{len(label_maps)} files in {source} are left out, because" in n for n in notes) == bool(
            label_maps
        )
    if label_maps and "/" in label_maps[0] and not label_maps[0].startswith("1/"):  # who gives it means it
        alone = tmp_path / label_maps[0]
        assert len(names([alone.parent])) == len(names([f"{alone.parent}/*"])) > 0
        assert len(names([f"{tmp_path}/**"])) == len({*images, *label_maps})


def test_two_results_of_one_name_are_refused(tmp_path):
    write(tmp_path / "a.png")
    Image.open(tmp_path / "a.png").save(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="a.jpg and .*a.png would both give a.png; rename one"):
        names([tmp_path])
    with pytest.raises(ValueError, match="would both give a.png"):
        names([tmp_path / "a.jpg", tmp_path / "a.png"])


def test_lists(tmp_path):
    write(tmp_path / "in" / "sub" / "a.png", 1)
    write(tmp_path / "b.png", 2)
    (tmp_path / "in" / "list.txt").write_text(f"sub/a.png\n\n{tmp_path / 'b.png'}\n", encoding="utf-8")
    found = values([tmp_path / "in" / "list.txt"])
    assert found == {"sub/a": 1, f"{tmp_path.as_posix().lstrip('/')}/b": 2}
    (tmp_path / "in" / "list.txt").write_text("sub/a.png\nsub/gone.png\n")
    with pytest.raises(FileNotFoundError, match="line 2 of .*list.txt: there is no file sub/gone.png"):
        names([tmp_path / "in" / "list.txt"])
    (tmp_path / "in" / "list.txt").write_text("../b.png\n")
    assert names([tmp_path / "in" / "list.txt"]) == ["b"]


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def test_tar_files(tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"s-{shard:03d}.tar", "w") as archive:
            for key in range(2):
                add(archive, f"k/{key}.jpg", encoded(10 * shard + key, "JPEG"))
                add(archive, f"k/{key}.png", encoded(99))
                add(archive, f"k/{key}.json", b"{}")
    with pytest.raises(ValueError, match="several pictures of one name: k/0.jpg.*--image_column jpg"):
        names([tmp_path / "s-000.tar"])
    expected = {f"s-00{shard}/k/{key}": 10 * shard + key for shard in range(2) for key in range(2)}
    assert values([tmp_path / "s-{000..001}.tar"], image_column="jpg") == expected
    assert values([tmp_path], image_column="jpg") == expected  # a folder without pictures
    with tarfile.open(tmp_path / "climbing.tar", "w") as archive:
        add(archive, "../../x.png", encoded(1))
        add(archive, "/etc/y.png", encoded(2))
    assert values([tmp_path / "climbing.tar"]) == {"climbing/x": 1, "climbing/etc/y": 2}
    (tmp_path / "no.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(ValueError, match="no.tar cannot be read as a tar file"):
        names([tmp_path / "no.tar"])


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"image": {"bytes": encoded(i), "path": None}, "label": i} for i in range(5)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=2)
    assert values([tmp_path / "t.parquet"]) == {f"t/0000000{i}": i for i in range(5)}
    with pytest.raises(ValueError, match="no column 'mask'; it has image, label"):
        names([tmp_path / "t.parquet"], image_column="mask")
    parquet.write_table(pyarrow.table({"x": [encoded(3)]}), tmp_path / "u.parquet")
    with pytest.raises(ValueError, match="give --image_column: no column looks like it"):
        names([tmp_path / "u.parquet"])
    assert values([tmp_path / "u.parquet"], image_column="x") == {"u/00000000": 3}


def test_paths_in_parquet_are_relative_to_it(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    other = write(tmp_path / "other" / "a.png", 1)
    write(tmp_path / "in" / "a.png", 2)
    monkeypatch.chdir(tmp_path / "other")  # whose a.png would be another picture
    paths = ["a.png", str(other)]
    for column in (paths, [{"bytes": None, "path": path} for path in paths]):
        parquet.write_table(pyarrow.table({"image": column}), tmp_path / "in" / "t.parquet")
        assert values([tmp_path / "in" / "t.parquet"]) == {"t/00000000": 2, "t/00000001": 1}


def test_saved_data_sets(tmp_path):
    datasets = pytest.importorskip("datasets")
    pictures = [{"bytes": encoded(i), "path": None} for i in range(3)]
    table = datasets.Dataset.from_dict({"image": pictures}).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": table, "test": table.select([2])}).save_to_disk(tmp_path / "saved")
    both = {"test/00000000": 2, "train/00000000": 0, "train/00000001": 1, "train/00000002": 2}
    assert values([tmp_path / "saved"]) == both
    assert values([tmp_path / "saved"], split="test") == {"test/00000000": 2}
    with pytest.raises(ValueError, match="no split 'val'; it has train, test"):
        names([tmp_path / "saved"], split="val")


def test_addresses(tmp_path):
    memory = fsspec.filesystem("memory")
    for name, value in (("p/x/1.png", 1), ("p/2.png", 2), ("p/.hidden.png", 3), ("p/read.me", 4)):
        memory.pipe(f"/{tmp_path.name}/{name}", encoded(value))
    root = f"memory://{tmp_path.name}/p"
    assert values([root]) == {"2": 2, "x/1": 1}
    assert values([f"{root}/*/*.png"]) == {"x/1": 1}
    assert values([f"{root}/2.png"]) == {"2": 2}
    write(tmp_path / "a.png", 9)
    assert values([f"file://{tmp_path}/a.png"]) == {"a": 9}
    for address in (f"{root}/3.png", f"{root}/none/*.png"):
        with pytest.raises(FileNotFoundError):
            names([address])


def test_what_is_no_source(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no pictures"):
        names([tmp_path / "empty"])
    with pytest.raises(FileNotFoundError):
        names([tmp_path / "none.jpg"])
    with pytest.raises(FileNotFoundError):
        names(["pictures/none.jpg"])  # no id on the Hub
    with pytest.raises(FileNotFoundError, match="matches no files"):
        names([tmp_path / "*.png"])
    for name in ("list.csv", "pictures.zip", "x.tar.gz"):
        (tmp_path / name).write_text("a.png")
        with pytest.raises(ValueError, match=f"{name} is of no kind that is read here .*list paths in a .txt file"):
            names([tmp_path / name])
    assert names([write(tmp_path / "photo.jpg_large"), write(tmp_path / "scan")]) == ["photo", "scan"]


@pytest.mark.parametrize(
    "option, value", [("split", "val"), ("image_column", "image"), ("dataset_config", "x"), ("max_frames", 3)]
)
def test_what_is_said_of_another_kind_of_source_is_refused(tmp_path, option, value):
    write(tmp_path / "images" / "train" / "a.png")
    write(tmp_path / "images" / "val" / "b.png")
    with pytest.raises(ValueError, match=f"--{option} is of .* and says nothing about {tmp_path}"):
        names([tmp_path], **{option: value})


def test_a_changed_picture_has_another_stamp(tmp_path):
    path = write(tmp_path / "a.png")
    before = find_items([str(path)])[0][0].stamp
    Image.new("RGB", (99, 9)).save(path)
    assert find_items([str(path)])[0][0].stamp != before


def test_addresses_whose_changes_are_not_noticed_are_told(tmp_path):
    write(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.png\nhttps://example.com/x/b.png\n")
    items, notes = find_items([str(tmp_path / "list.txt"), "http://example.com/c.png"])
    assert [bool(item.stamp) for item in items] == [True, False, False]
    assert notes == [
        "2 images are named by addresses of which size and time are not asked, so they are not redone if they change; "
        "give another --output for that: https://example.com/x/b.png, http://example.com/c.png"
    ]
    assert find_items([str(tmp_path / "a.png")])[1] == []
