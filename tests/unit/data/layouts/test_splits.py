"""Lists of splits; a part held out, stable, with rare labels in both parts; and images that two splits share."""

import json
import pickle

import numpy as np
import pytest
from made_data import put, put_pairs, read_all, write
from PIL import Image

from qlseg_hf.data.datasets import open_dataset
from qlseg_hf.data.layouts import find_layout
from qlseg_hf.data.layouts.splits import place_of


def put_numbered(root, name, value=0, shade=0):
    for folder, array in (("images", np.full((2, 2, 3), shade)), ("masks", np.full((2, 2), value))):
        write(root / folder / f"{name}.png", array.astype(np.uint8))


def names_of(root, split, **settings):
    samples = open_dataset(root, split, **settings)
    return {samples[index].name for index in range(len(samples))}


def test_parts_stay_when_images_are_added(tmp_path):
    for i in range(60):
        put_numbered(tmp_path, f"sub{i % 3}/n{i}")
    before = names_of(tmp_path, "validation")
    assert 3 < len(before) < 25 and not before & names_of(tmp_path, "train")
    for i in range(60, 120):
        put_numbered(tmp_path, f"sub{i % 3}/n{i}")
    after = names_of(tmp_path, "validation")
    assert {name for name in after if int(name.split("/n")[1][:-4]) < 60} == before
    assert after == {name for name in after | names_of(tmp_path, "train") if place_of(name) < 0.2}


@pytest.mark.parametrize("rare", [("n0", "n1"), ("n3", "n17"), ("n5", "n6", "n7")])
def test_rare_labels_are_in_both_parts(tmp_path, rare):
    for i in range(40):
        put_numbered(tmp_path, f"n{i}", value=9 if f"n{i}" in rare else i % 2)
    for split in ("train", "validation"):
        samples = open_dataset(tmp_path, split)
        assert 9 in {int(samples[i].read()[1].max()) for i in range(len(samples))}


@pytest.mark.parametrize("number", [5, 6, 9])
@pytest.mark.parametrize("prefix", "abcdef")
def test_each_part_has_an_image(tmp_path, number, prefix):
    for i in range(number):
        put_numbered(tmp_path, f"{prefix}{i}", value=i)  # no label that two images have moves any
    assert names_of(tmp_path, "train") and names_of(tmp_path, "val")


def test_hashes_of_a_few_names_hold_out_no_more_than_half_as_many_again(tmp_path):
    low, high = (
        [f"n{i}" for i in range(100) if (place_of(f"images/n{i}") < 0.2) == is_low] for is_low in (True, False)
    )
    for name in (*low[:6], *high[:3]):
        put_numbered(tmp_path, name)
    lowest = sorted(low[:6], key=lambda name: place_of(f"images/{name}"))[:3]
    assert names_of(tmp_path, "val") == {f"images/{name}.png" for name in lowest}


@pytest.mark.parametrize(
    "copies", ["_jpg.rf.a1 _jpg.rf.b1 _jpg.rf.c1", "_jpg _jpg_flip _jpg_rot90", "_jpg _jpg-aug-1 _jpg_HFlip"]
)
def test_copies_of_one_image_stay_together(tmp_path, copies):
    """Also if they alone have a label, of which one copy came into the other part before."""
    for i in range(4):
        for copy in copies.split():
            put_numbered(tmp_path, f"n{i}{copy}", i)
    parts = [{name.split("_jpg")[0] for name in names_of(tmp_path, split)} for split in ("train", "val")]
    assert all(parts) and not parts[0] & parts[1]


def test_too_few_and_wrong_fractions(tmp_path):
    for i in range(4):
        put_numbered(tmp_path, f"n{i}")
    assert len(names_of(tmp_path, "train")) == 4
    with pytest.raises(
        ValueError, match="has no split 'val'; it has train; 4 images are too few for val_fraction 0.2"
    ):
        open_dataset(tmp_path, "val")
    assert len(names_of(tmp_path, "val", val_fraction=0.5)) in (1, 2, 3)
    for fraction in (1, -0.1, 20):
        with pytest.raises(ValueError, match="must be at least 0 and less than 1"):
            open_dataset(tmp_path, "train", val_fraction=fraction)


def test_a_training_split_alone_is_divided_and_a_test_split_alone_is_not(tmp_path):
    for i in range(30):
        put_numbered(tmp_path / "one", f"train/n{i}")
        put_numbered(tmp_path / "two", f"test/n{i}")
        put_numbered(tmp_path / "three", f"train/n{i}")
    put_numbered(tmp_path / "three", "test/x")
    layout = find_layout(tmp_path / "one")
    assert (
        list(layout.splits) == ["train", "validation"]
        and "there is no validation split beside train" in layout.description
    )
    with pytest.raises(ValueError, match="no split 'train'; it has test"):
        open_dataset(tmp_path / "two", "train")
    layout = find_layout(tmp_path / "three")
    assert len(layout.splits["train"]) == 30 and layout.notes == [
        "there is no validation split, so test stands in for it"
    ]


def test_copies_of_one_roboflow_image_stay_together():
    assert (
        place_of("train/a_jpg.rf.0011aabb.jpg")
        == place_of("train/a_jpg.rf.ffee0011.jpg")
        != place_of("train/b_jpg.rf.1.jpg")
    )
    assert place_of("images/a.jpg") == place_of("images/a.PNG") != place_of("images/b.jpg")


@pytest.mark.parametrize("mask", ["masks/{name}.png", "labels/{name}.png", "{name}_mask.png", "images/{name}_seg.png"])
def test_no_split_holds_a_part_out(tmp_path, mask):
    names = [f"n{i}" for i in range(20)]
    put_pairs(tmp_path, "images/{name}.jpg" if "/" in mask else "{name}.jpg", mask, names)
    train, validation = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "val")
    assert (train.split, validation.split) == ("train", "validation")
    assert sorted([*read_all(train), *read_all(validation)]) == sorted(
        f"{'images/' * ('/' in mask)}{n}.jpg" for n in names
    )
    assert "are held out for validation" in train.layout.description
    sent = pickle.loads(pickle.dumps(train))  # to a worker process
    assert len(sent) == len(train) and sent[0].name == train[0].name
    assert train.contents() != validation.contents() and json.dumps(train.origin())
    whole = open_dataset(tmp_path, "train", val_fraction=0)
    assert len(whole) == 20
    with pytest.raises(ValueError, match="has no split 'val'; it has train"):
        open_dataset(tmp_path, "val", val_fraction=None)


@pytest.mark.parametrize(
    "where", ["train.txt", "splits/train.txt", "ImageSets/train.txt", "split.yaml", "data.yaml", "split.json"]
)
@pytest.mark.parametrize(
    "written", ["{name}", "{name}.jpg", "images/{name}.jpg", "/somewhere/images/{name}.jpg masks/{name}.png"]
)
def test_split_lists(tmp_path, where, written):
    put_pairs(tmp_path, "images/{name}.jpg", "masks/{name}.png", "abcd")
    lists = {"train": [written.format(name="c"), written.format(name="a")], "val": [written.format(name="b")]}
    path = tmp_path / where
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".txt":
        for split, lines in lists.items():
            path.with_stem(split).write_text("\n".join(lines) + "\n")
    else:
        path.write_text(json.dumps(lists))
    train = open_dataset(tmp_path, "train")
    assert read_all(train) == ["images/c.jpg", "images/a.jpg"]
    assert read_all(open_dataset(tmp_path, "val")) == ["images/b.jpg"]
    assert train.layout.notes == ["1 images are in no list of a split: images/d.jpg"]
    (path.with_stem("train") if path.suffix == ".txt" else path).write_text(
        "nothing\n" if path.suffix == ".txt" else json.dumps(lists | {"train": ["../../etc/nothing"]})
    )
    with pytest.raises(ValueError, match="lists '.*nothing', and there is no image of this name"):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize(
    "where, written",
    [
        ("data/train.txt", "{name}"),
        ("data/meta/train_list.txt", "{name}.jpg"),
        ("imageLists/train.txt", "{name}"),  # COCO-Stuff 10k
        ("train.json", "{name}.jpg"),
        ("data_split.json", "{name}.jpg"),
        ("lists/train.txt", "{name}.png"),  # which is that of the label map
        ("train.txt", "images/{name}.png masks/{name}.png"),
        ("train.csv", "{name}.jpg"),  # without headings
        ("train.csv", "{name}.tif,1"),
        ("df_train.csv", "{name}.jpg,1"),
        ("train_metadata.csv", "{name}"),
        ("train_data.json", "{name}.jpg"),
        ("train.list", "{name}"),
    ],
)
def test_split_lists_in_other_places_and_with_other_endings(tmp_path, where, written):
    """Before, images came into any part: the list was not seen, or refused, or lost its first line."""
    put_pairs(tmp_path, "data/images/{name}.jpg", "data/masks/{name}.png", "abcde")
    lists = {"train": [written.format(name=name) for name in "cab"], "val": [written.format(name=n) for n in "de"]}
    path = tmp_path / where
    path.parent.mkdir(exist_ok=True)
    for split, lines in lists.items():
        own = path.with_stem(path.stem.replace("train", split))
        text = json.dumps(lists if "split" in path.stem else lines) if path.suffix == ".json" else "\n".join(lines)
        own.write_text(text)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/train.txt").write_text("how to train\n")
    assert read_all(open_dataset(tmp_path, "train")) == [f"data/images/{name}.jpg" for name in "cab"]
    assert read_all(open_dataset(tmp_path, "val")) == [f"data/images/{name}.jpg" for name in "de"]


def test_lists_of_folds_are_asked_about(tmp_path):
    put_pairs(tmp_path, "images/{name}.jpg", "masks/{name}.png", "abcd")
    for fold, names in (("fold1", "abc"), ("fold2", "bcd")):
        (tmp_path / fold).mkdir()
        (tmp_path / fold / "train.txt").write_text("\n".join(names))
    with pytest.raises(ValueError, match="^fold1/train.txt, fold2/train.txt in .* list images of train; keep one"):
        open_dataset(tmp_path, "train")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/train.txt").write_text("d\n")  # which counts more
    assert read_all(open_dataset(tmp_path, "train", val_fraction=0)) == ["images/d.jpg"]


def test_lists_of_parts_count_each_in_its_folder(tmp_path):
    """Of several sites, whose images have the same names."""
    for site in ("a", "b"):
        put_pairs(tmp_path, f"{site}/images/{{name}}.jpg", f"{site}/masks/{{name}}.png", "1234")
        (tmp_path / site / "train.txt").write_text("1\n3\n" if site == "a" else "1\n2\n")
        (tmp_path / site / "val.txt").write_text("2\n" if site == "a" else "4\n")
    found = [f"{site}/images/{name}.jpg" for site, name in ("a1", "a3", "b1", "b2")]
    assert read_all(open_dataset(tmp_path, "train")) == found
    assert read_all(open_dataset(tmp_path, "val")) == ["a/images/2.jpg", "b/images/4.jpg"]


def test_a_list_of_validation_alone_leaves_the_others_to_train_on(tmp_path):
    put_pairs(tmp_path, "images/{name}.png", "labels/{name}_P.png", "abcde")
    (tmp_path / "valid.txt").write_text("b.png\nd.png\n")  # fastai's CamVid
    assert read_all(open_dataset(tmp_path, "val")) == ["images/b.png", "images/d.png"]
    assert read_all(open_dataset(tmp_path, "train")) == ["images/a.png", "images/c.png", "images/e.png"]


@pytest.mark.parametrize("image, mask", [("images/{name}.jpg", "masks/{name}.png"), ("{name}.jpg", "{name}_mask.png")])
def test_lists_that_name_label_maps(tmp_path, image, mask):
    """The list says which label map is an image's, whatever their names."""
    put_pairs(tmp_path, image, mask, "abcd")
    for value, name in enumerate("abcd"):
        Image.fromarray(np.full((2, 4), value, dtype=np.uint8)).save(tmp_path / mask.format(name=name))
    own = [("a", "b"), ("b", "c"), ("c", "a")]
    lines = [f"{image.format(name=one)} {mask.format(name=other)}" for one, other in own]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    (tmp_path / "val.txt").write_text(image.format(name="d"))
    train, val = (open_dataset(tmp_path, split) for split in ("train", "val"))
    assert [int(train[i].read_label_map()[0, 0]) for i in range(3)] == [1, 2, 0]
    assert val[0].read_label_map()[0, 0] == 3
    (tmp_path / "train.txt").write_text(f"{lines[0]}\n{lines[1].split()[0]} masks/else.png")
    with pytest.raises(ValueError, match="gives .*b.jpg the label map 'masks/else.png', which lies in no folder of"):
        open_dataset(tmp_path, "train")
    (tmp_path / "train.txt").write_text(f"{lines[0]}\n{lines[0].split()[0]} {lines[1].split()[1]}")
    with pytest.raises(ValueError, match="train.txt gives .*a.jpg two label maps"):
        open_dataset(tmp_path, "train")


def test_what_yaml_may_say(tmp_path):
    put_pairs(tmp_path, "images/one/{name}.jpg", "masks/one/{name}.png", "ab")
    put_pairs(tmp_path, "images/two/{name}.jpg", "masks/two/{name}.png", "a")
    (tmp_path / "dataset.yaml").write_text("train: images/one\nval: held.txt\nnames: [x, y]\n")
    (tmp_path / "held.txt").write_text("two/a.jpg\n")
    assert read_all(open_dataset(tmp_path, "train")) == ["images/one/a.jpg", "images/one/b.jpg"]
    assert read_all(open_dataset(tmp_path, "val")) == ["images/two/a.jpg"]
    (tmp_path / "held.txt").write_text("a.jpg\n")
    with pytest.raises(ValueError, match="'a.jpg' could mean images/one/a.jpg, images/two/a.jpg; write more"):
        open_dataset(tmp_path, "val")
    (tmp_path / "dataset.yaml").write_text("train: 5\n")
    with pytest.raises(ValueError, match="split train must be a list of names, a text file or a folder"):
        open_dataset(tmp_path, "val")


@pytest.mark.parametrize(
    "file", ["train_list.txt", "trn.txt", "annotations/train.txt", "train_ids.lst", "list_train.txt"]
)
@pytest.mark.parametrize("held", ["val", "validation", "validate"])
def test_lists_of_other_names(tmp_path, file, held):
    """Before, `validation.txt` was not seen, because "id" in it was taken for a word of its own."""
    put_pairs(tmp_path, "images/{name}.jpg", "annotations/{name}.png", "abcd")
    other = file.replace("train", held).replace("trn", held)
    (tmp_path / file).write_text("c 1 1 1\na 2 1 1\n")
    (tmp_path / other).write_text("b 1 2 1\nd 1 1 1\n")
    assert read_all(open_dataset(tmp_path, "train")) == ["images/c.jpg", "images/a.jpg"]
    assert read_all(open_dataset(tmp_path, "val")) == ["images/b.jpg", "images/d.jpg"]


@pytest.mark.parametrize(
    "files",
    [
        {"train_test_split.txt": "1 1\n2 0\n4 0\n3 1\n", "images.txt": "1 a.jpg\n2 b.jpg\n3 c.jpg\n4 d.jpg\n"},  # CUB
        {"train_test_split.txt": "a.jpg train\nb.jpg test\nc.jpg train\nd.jpg test\n"},
        {"partition.txt": "a,train\nb,test\nc,train\nd,test\n"},
    ],
)
def test_lists_of_all_images(tmp_path, files):
    """Before, images came into any part, or all were taken for those to train on."""
    put_pairs(tmp_path, "images/{name}.jpg", "annotations/{name}.png", "abcd")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert read_all(open_dataset(tmp_path, "train")) == ["images/a.jpg", "images/c.jpg"]
    assert read_all(open_dataset(tmp_path, "test")) == ["images/b.jpg", "images/d.jpg"]


def test_files_that_only_seem_lists(tmp_path):
    put_pairs(tmp_path, "images/{name}.jpg", "masks/{name}.png", "abcd")
    (tmp_path / "train_id.txt").write_text("17\n18\n")
    assert len(open_dataset(tmp_path, "train", val_fraction=0)) == 4
    (tmp_path / "train_list.txt").write_text("a\nb\n")
    (tmp_path / "val_list.txt").write_text("c\n")
    (tmp_path / "train.txt").write_text("b\n")  # counts more
    assert len(open_dataset(tmp_path, "train")) == len(open_dataset(tmp_path, "val")) == 1


@pytest.mark.parametrize(
    "line",
    [
        "./images/a b {}/0.jpg",
        ".\\images\\a b {}\\0.jpg",
        "images/a b {}/0.jpg masks/a b {}/0.png",
        "images/a b {}/0.jpg\tmasks/a b {}/0.png",
        "a b {}",  # all frames of a video, as in DAVIS
        "images/a b {}/",
    ],
)
@pytest.mark.parametrize("where", ["{}.txt", "ImageSets/2017/{}.txt"])
def test_lists_as_systems_and_videos_have_them(tmp_path, line, where):
    for number in range(3):
        put_pairs(tmp_path, f"images/a b {number}/{{name}}.jpg", f"masks/a b {number}/{{name}}.png", "0")
    for split, numbers in (("train", (0, 2)), ("val", (1,))):
        path = tmp_path / where.format(split)
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("\n".join([line.replace("{}", str(number)) for number in numbers]))
    assert read_all(open_dataset(tmp_path, "train")) == ["images/a b 0/0.jpg", "images/a b 2/0.jpg"]
    assert read_all(open_dataset(tmp_path, "val")) == ["images/a b 1/0.jpg"]


@pytest.mark.parametrize(
    "image, mask",
    [
        ("{split}_{name}.jpg", "{split}_{name}_anno.png"),  # GlaS: train_1.bmp, testA_1.bmp
        ("images/{name}_{split}.jpg", "masks/{name}_manual1.png"),  # DRIVE, in one folder
        ("images/{split}-{name}.jpg", "masks/{split}-{name}.png"),
    ],
)
def test_names_of_images_that_tell_splits(tmp_path, image, mask):
    held_out = ("testA", "testB") if "{split}" in mask else ("test", "test")
    for split, names in zip(("train", *held_out), ("123", "45", "6")):
        put_pairs(tmp_path, image, mask, names, split=split)
    train, held = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "validation")
    assert (len(read_all(train)), len(read_all(held)), held.split) == (3, 3, "test")
    assert "splits by the names of images" in train.layout.description and not train.layout.notes[1:]
    if "{split}" in mask:
        put_pairs(tmp_path, image, mask, "7", split="other")
        assert open_dataset(tmp_path, "validation").split == "validation"  # not all names tell it


@pytest.mark.parametrize(
    "image, mask",
    [
        ("DUTS-{split}/DUTS-{split}-Image/{name}.jpg", "DUTS-{split}/DUTS-{split}-Mask/{name}.png"),
        ("images{split}/{name}_0000.jpg", "labels{split}/{name}.png"),  # nnU-Net
        ("images/{order}. {split} set/{name}.jpg", "masks/{order}. {split} set/{name}.png"),
    ],
)
@pytest.mark.parametrize("short, kind", [("Te", "test"), ("Va", "validation")])
def test_short_and_numbered_names_of_splits(tmp_path, image, mask, short, kind):
    for order, split, names in (("a", "Tr", "pqr"), ("b", short, "st")):
        put_pairs(tmp_path, image.replace("{order}", order), mask.replace("{order}", order), names, split=split)
    train, held = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "validation")
    assert (len(read_all(train)), len(read_all(held)), held.split) == (3, 2, kind)


def test_lists_of_vocs_other_tasks(tmp_path):
    """With label maps in SegmentationClassAug, VOC's lists lie as ever, for other tasks too."""
    put_pairs(tmp_path, "JPEGImages/{name}.jpg", "SegmentationClassAug/{name}.png", "abc")
    for task, names in (("Layout", "b"), ("Main", "bc"), ("Segmentation", "ac")):
        (tmp_path / "ImageSets" / task).mkdir(parents=True)
        (tmp_path / "ImageSets" / task / "train.txt").write_text("\n".join(names))
    assert read_all(open_dataset(tmp_path, "train", val_fraction=0)) == ["JPEGImages/a.jpg", "JPEGImages/c.jpg"]


@pytest.mark.parametrize(
    "files",
    [
        {"splits.csv": "id;fold_of;split\n0;x;train\n1;x;train\n2;x;train\n3;x;val\n4;x;val\n"},
        {"data.csv": "name,subset\n0,train set\n1,train set\n2,train set\n3,val-a\n4,val-b\n5,\n"},
        {"train.csv": "image\n0.jpg\n1.jpg\n2.jpg\n", "val.csv": "image\n3.jpg\n4.jpg\n"},
        {"list/train_aug.txt": "0\n1\n2\n", "list/val.txt": "3\n4\n", "list/test.txt": "5\n"},
    ],
)
def test_lists_of_other_kinds(tmp_path, files):
    """Image 5 has no label map."""
    for name in range(6):
        put(tmp_path / f"images/{name}.jpg", name)
        if name < 5:
            put(tmp_path / f"masks/{name}.png")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    layout = find_layout(tmp_path)
    found = {split: [image for image, _ in layout.splits[split].pairs] for split in ("train", "val")}
    assert found == {"train": [f"images/{i}.jpg" for i in range(3)], "val": ["images/3.jpg", "images/4.jpg"]}
    assert len(layout.splits) == 2 and "1 images" in layout.notes[0]


def test_a_list_of_images_in_a_folder_of_label_maps(tmp_path):
    """OpenEarthMap: what the test part has no label maps for was united from those of the other images."""
    for town in ("aachen", "ulm"):
        for name in range(3):
            put(tmp_path / f"{town}/images/{town}_{name}.tif", name)
            if name < 2:
                put(tmp_path / f"{town}/labels/{town}_{name}.tif")
    for split, number in (("train", 0), ("val", 1), ("test", 2)):
        (tmp_path / f"{split}.txt").write_text(f"aachen_{number}.tif\nulm_{number}.tif\n")
    layout = find_layout(tmp_path)
    assert list(layout.splits) == ["train", "val"] and len(layout.splits["val"]) == 2
    assert layout.notes == ["2 images of test have no label maps at all, so this is no split here"]


def test_two_lists_of_one_split_are_asked_about(tmp_path):
    for name in range(4):
        put(tmp_path / f"images/{name}.jpg", name)
        put(tmp_path / f"masks/{name}.png")
    (tmp_path / "train_1.txt").write_text("0\n")
    (tmp_path / "train_half.txt").write_text("0\n1\n")
    with pytest.raises(ValueError, match="train_1.txt, train_half.txt in .* rename the right one train.txt"):
        find_layout(tmp_path)
