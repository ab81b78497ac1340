"""Images and label maps in folders and in pairs: each arrangement, and the sentence of each that is not clear."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from qlseg_hf.data.datasets import SampleError, open_dataset
from qlseg_hf.data.layouts import LAYOUTS, find_layout

LABELS = np.array([[0, 1, 2, 255], [3, 1, 0, 2]], dtype=np.uint8)


def put(path, shade=None):
    """A picture of one shade, or a label map; with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = LABELS if shade is None else np.full((2, 4, 3), shade, dtype=np.uint8)
    np.save(path, array) if path.suffix == ".npy" else Image.fromarray(array).save(path)


def put_pairs(root, image, mask, names=("a", "b"), **words):
    for shade, name in enumerate(names):
        put(root / image.format(name=name, **words), 10 * shade)
        put(root / mask.format(name=name, **words))


def read_all(samples):
    assert len(samples) > 0
    for index in range(len(samples)):
        _, label_map = samples[index].read()
        np.testing.assert_array_equal(label_map, LABELS)
    return [samples[index].name for index in range(len(samples))]


@pytest.mark.parametrize(
    "name, image, mask",
    [
        ("ade20k", "images/{split}/{name}.jpg", "annotations/{split}/{name}.png"),
        ("coco-stuff", "images/{split}/{name}.jpg", "annotations/{split}/{name}_labelTrainIds.png"),
        ("folders", "images/{split}/{name}.jpg", "masks/{split}/{name}.png"),
        ("folders", "image/{split}/{name}.png", "mask/{split}/{name}_mask.png"),
        ("folders", "img/{split}/{name}.bmp", "labels/{split}/{name}.TIF"),
        ("folders", "img_dir/{split}/{name}.jpg", "ann_dir/{split}/{name}.png"),
        ("folders", "Images/{split}/deep/er/{name}.JPG", "Annotations/{split}/deep/er/{name}.PNG"),
        ("folders", "{split}/images/{name}.jpg", "{split}/masks/{name}.png"),
        ("folders", "{split}/img/one/{name}.jpg", "{split}/gt/one/{name}_gt.npy"),
        ("folders", "wrapped/{split}/Images/{name}.jpg", "wrapped/{split}/label/{name}.png"),
        ("folders", "{split}_images/{name}.jpg", "{split}_masks/{name}.png"),
        ("camvid", "{split}/{name}.png", "{split}annot/{name}.png"),
        ("camvid", "{split}/{name}.jpg", "{split}_labels/{name}.png"),
        ("folders", "{split}2017/img/{name}.jpg", "{split}2017/stuffthingmaps/{name}.png"),
        ("camvid", "{split}2017/{name}.jpg", "stuffthingmaps/{split}2017/{name}.png"),
        ("folders", "{split}/Rural/images_png/{name}.png", "{split}/Rural/masks_png/{name}.png"),
        ("folders", "images/10k/{split}/{name}.jpg", "labels/10k/{split}/{name}.png"),
        ("pairs", "{split}/{name}.jpg", "{split}/{name}_mask.png"),
        ("pairs", "{split}/x/{name}_sat.jpg", "{split}/x/{name}_mask.png"),
        ("pairs", "{split}/{name}_image.png", "{split}/{name}_label.png"),
        ("pairs", "{split}/image_{name}.png", "{split}/mask_{name}.png"),
        ("pairs", "{split}/{name}.jpg", "{split}/{name}.png"),
        ("pairs", "images/{split}/{name}.jpg", "images/{split}/{name}_gt.tiff"),
    ],
)
def test_split_folders(tmp_path, name, image, mask):
    put_pairs(tmp_path, image, mask, split="train")
    put_pairs(tmp_path, image, mask, names=["c"], split="val")
    found = find_layout(tmp_path)
    assert found.name == name and name in LAYOUTS
    train = open_dataset(tmp_path, "train")
    assert [n.rpartition("/")[2][-5:] for n in read_all(train)] == [
        n.rpartition("/")[2][-5:] for n in sorted(read_all(train))
    ]
    assert len(train) == 2 and len(read_all(open_dataset(tmp_path, "validation"))) == 1
    assert train.notes == found.notes == []
    assert train.layout.name == name and train.split in ("train", "train2017")
    assert found.description.startswith(f"{name}: ") and "\n" not in found.description
    assert f"{train.split} 2, val" in found.description


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
    "image, mask",
    [
        ("train/{name}.png", "train_labels/{name}_L.png"),
        ("images/ISIC_00{name}.jpg", "masks/ISIC_00{name}_lesion.png"),
        ("images/top_{name}_RGBIR.png", "labels/top_{name}_noBoundary.png"),
        ("images/{name}_training.png", "masks/{name}_manual1.png"),
        ("images/{name}.png", "masks/class-{name}.png"),
        ("images/img0{name}.png", "masks/mask0{name}.png"),
        ("images/{name}.jpg", "masks/{name}.jpg___fuse.png"),  # SuperAnnotate's
    ],
)
def test_what_all_names_of_label_maps_share(tmp_path, image, mask):
    """Affixes that no list of ours knows, as of CamVid (`_L`), DRIVE (`_manual1`) and Potsdam."""
    names = ["a_1", "b_2", "ab_2"]
    for label, name in enumerate(names):
        put(tmp_path / image.format(name=name), label)
        (tmp_path / mask).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((2, 4), label, dtype=np.uint8)).save(tmp_path / mask.format(name=name))
    samples = open_dataset(tmp_path, "train", val_fraction=0)
    found = {samples[i].name: samples[i].read() for i in range(3)}
    assert set(found) == {image.format(name=name) for name in names}
    assert all((label_map == picture[0, 0, 0]).all() for picture, label_map in found.values())
    assert any("with the NAME of their image" in note for note in samples.notes)
    put(tmp_path / image.format(name="c_3"), 0)  # has no label map, so nothing is guessed
    with pytest.raises(ValueError, match="4 of 4 label maps are missing"):
        open_dataset(tmp_path, "train", val_fraction=0)


def test_two_mask_folders_are_ambiguous(tmp_path):
    put_pairs(tmp_path, "images/{name}.jpg", "masks/{name}.png")
    put_pairs(tmp_path, "images/{name}.jpg", "labels/{name}.png")
    with pytest.raises(ValueError, match="2 folders of label maps, labels and masks, .* layout: images:labels"):
        open_dataset(tmp_path, "train")
    assert read_all(open_dataset(tmp_path, "train", layout="images:labels"))
    (tmp_path / "masks/a.png").unlink()
    (tmp_path / "labels/b.png").unlink()  # each of the pictures has one, and the two folders may hold other labels
    with pytest.raises(ValueError, match="2 folders of label maps, labels and masks"):
        open_dataset(tmp_path, "train")


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


def test_splits_count_in_folders_that_are_named(tmp_path):
    """Mixing them, as if there were no split, would look fine."""
    put_pairs(tmp_path, "{split}/city/pics/{name}.png", "{split}/city/marks/{name}.png", "abcdefgh", split="Train")
    put_pairs(tmp_path, "{split}/city/pics/{name}.png", "{split}/city/marks/{name}.png", "ij", split="Val")
    assert len(open_dataset(tmp_path, "train", layout="pics:marks")) == 8
    assert len(open_dataset(tmp_path, "validation", layout="pics:marks")) == 2


@pytest.mark.parametrize(
    "image, mask",
    [
        ("{split}/images/{name}.jpg", "{split}/v2.0/labels/{name}.png"),
        ("images/10k/{split}/{name}.jpg", "labels/sem_seg/{split}/{name}.png"),
        ("images/{split}/{name}.jpg", "annotations/trimaps/{split}/{name}.png"),
        ("{split}/data/{name}.jpg", "{split}/sem_seg/{name}.png"),
    ],
)
def test_label_maps_of_another_place(tmp_path, image, mask):
    """If all images lie in one folder and all label maps in another, nothing is left to be guessed; it is told."""
    put_pairs(tmp_path, image, mask, split="train")
    put_pairs(tmp_path, image, mask, "c", split="val")
    samples = open_dataset(tmp_path, "train")
    assert len(read_all(samples)) == 2 and len(read_all(open_dataset(tmp_path, "val"))) == 1
    told = f"as {mask.format(name='a', split='train')} of {image.format(name='a', split='train')}"
    assert samples.notes == [f"label maps lie in other folders than images, {told}"]


def test_label_maps_of_several_other_places_are_not_guessed(tmp_path):
    put_pairs(tmp_path, "{name}/images/{name}.png", "{name}/masks/first.png")
    with pytest.raises(
        ValueError, match="2 of 2 label maps are missing .* or name both folders, as in layout: photos:"
    ):
        open_dataset(tmp_path, "train")
    for kind in ("v1.2", "v2.0"):
        put_pairs(tmp_path / "two", "train/pictures/{name}.jpg", f"train/{kind}/labels/{{name}}.png")
    with pytest.raises(ValueError, match="as in layout: pictures:v1.2/labels or layout: pictures:v2.0/labels"):
        open_dataset(tmp_path / "two", "train", val_fraction=0)
    assert len(read_all(open_dataset(tmp_path / "two", "train", layout="pictures:v2.0/labels", val_fraction=0))) == 2


@pytest.mark.parametrize(
    "image, mask",
    [
        ("{split}/image_2/{name}.png", "{split}/semantic/{name}.png"),  # KITTI
        ("{split}/image_2/{name}.png", "{split}/semantic_labels/{name}.png"),
        ("{split}/{split}-org-img/{name}.jpg", "{split}/{split}-label-img/{name}_lab.png"),  # FloodNet
        ("Task1-2_{split}_Input/{name}.jpg", "Task1_{split}_GroundTruth/{name}_segmentation.png"),  # ISIC
        ("leftImg8bit/{split}/0/{name}_leftImg8bit.png", "gtFine/{split}/0/{name}_gtFine_labellevel3Ids.png"),  # IDD
        ("rgb_anon/fog/{split}/{name}_rgb_anon.png", "gt/fog/{split}/{name}_gt_labelTrainIds.png"),  # ACDC
        ("{split}2017/{name}.jpg", "stuffthingmaps_trainval2017/{split}2017/{name}.png"),  # COCO-Stuff
        ("TrainVal_images/{split}_images/{name}.jpg", "TrainVal_parsing/{split}_segmentations/{name}.png"),  # LIP
        ("Images/img_dir/{split}/{name}.jpg", "Images/ann_dir/{split}/{name}.png"),  # FoodSeg103
        ("set_{split}/seq1/Images/{name}.png", "set_{split}/seq1/Labels/{name}.png"),  # UAVid
        ("images/images/{split}/{name}.png", "masks/masks/{split}/{name}.png"),  # unpacked on Kaggle
        ("segmentation/images/{split}/{name}.png", "segmentation/masks/{split}/{name}.png"),
        ("{split}/images/{name}.png", "{split}/images/masks/{name}.png"),
        ("{split}_img/{name}.jpg", "{split}_lab/{name}.png"),  # DeepCrack
        ("{split}_X-Image/{name}.jpg", "{split}_X-Mask/{name}.png"),
    ],
)
def test_words_in_names_of_folders(tmp_path, image, mask):
    """Where no folder is called by one word, words in the names count; of several on a path the last one."""
    names = {"train": "abc", "val": "de"}
    for split in names:
        put_pairs(tmp_path, image, mask, names[split], split=split)
        for label, name in enumerate(names[split]):
            Image.fromarray(np.full((2, 4), 10 * label, dtype=np.uint8)).save(
                tmp_path / mask.format(name=name, split=split)
            )
    for split in names:
        samples = open_dataset(tmp_path, split)
        assert samples.split in (split, f"{split}2017") and len(samples) == len(names[split])
        for index in range(len(samples)):
            picture, label_map = samples[index].read()
            assert (label_map == picture[0, 0, 0]).all()


def test_words_in_names_that_mean_no_split(tmp_path):
    for place in ("train_station", "test_tube"):
        put_pairs(tmp_path, f"images/{place}/{{name}}.jpg", f"masks/{place}/{{name}}.png")
    assert len(open_dataset(tmp_path, "train", val_fraction=0)) == 4


def test_whole_names_of_folders_count_more_than_words(tmp_path):
    put_pairs(tmp_path, "image_2/{name}.png", "semantic/{name}.png")
    put_pairs(tmp_path, "image_3/{name}.png", "semantic_rgb/{name}.png", "c")
    (tmp_path / "image_3/c.png").unlink()
    samples = open_dataset(tmp_path, "train", val_fraction=0)
    assert read_all(samples) == ["image_2/a.png", "image_2/b.png"]
    assert "1 images lie in no folder of images, and are left out: semantic_rgb/c.png" in samples.layout.notes
    for name in "ab":
        (tmp_path / f"sample_images/{name}.png").parent.mkdir(exist_ok=True)
        (tmp_path / f"semantic/{name}.png").rename(tmp_path / f"sample_images/{name}.png")
    put_pairs(tmp_path / "camvid", "train/{name}.png", "trainannot/{name}.png")
    put(tmp_path / "camvid/sample_images/a.png", 5)
    assert read_all(open_dataset(tmp_path / "camvid", "train", val_fraction=0)) == ["train/a.png", "train/b.png"]


@pytest.mark.parametrize("is_each", [True, False])
def test_a_folder_of_label_maps_for_each_folder_of_images(tmp_path, is_each):
    put_pairs(tmp_path, "TR-Image/{name}.jpg", "TR-Mask/{name}.png", "ab")
    put_pairs(tmp_path, "TE-Image/{name}.jpg", "TE-Mask/{name}.png", "cd")
    if is_each:
        assert len(read_all(open_dataset(tmp_path, "train", val_fraction=0))) == 4
    else:
        put_pairs(tmp_path, "TE-Image/{name}.jpg", "TR-Mask/{name}.png", "c")
        with pytest.raises(ValueError, match="2 folders of label maps, TE-Mask and TR-Mask"):
            open_dataset(tmp_path, "train", val_fraction=0)


def test_a_folder_as_large_that_nothing_is_called_after(tmp_path):
    """As DRIVE's: the field of view lies in `mask` under the images' names, and the vessels elsewhere under others."""
    put_pairs(tmp_path, "images/{name}_training.tif", "mask/{name}_training_mask.gif", "abc")
    for label, name in enumerate("abc"):
        (tmp_path / "1st_manual").mkdir(exist_ok=True)
        Image.fromarray(np.full((2, 4), 10 * label, dtype=np.uint8)).save(tmp_path / f"1st_manual/{name}_manual1.gif")
    with pytest.raises(ValueError, match="1st_manual and mask, .* layout: images:1st_manual or layout: images:mask"):
        open_dataset(tmp_path, "train", val_fraction=0)
    samples = open_dataset(tmp_path, "train", val_fraction=0, layout="images:1st_manual")
    for index in range(3):
        picture, label_map = samples[index].read()
        assert (label_map == picture[0, 0, 0]).all()


@pytest.mark.parametrize(
    "image, mask",
    [
        ("images/{name}.jpg", "masks/{split}/{name}.png"),
        ("images/{split}/{name}.jpg", "masks/{name}.png"),
        ("images/{split}ing/{name}.jpg", "masks/{split}/{name}.png"),
    ],
)
def test_splits_that_images_or_label_maps_alone_tell(tmp_path, image, mask):
    put_pairs(tmp_path, image, mask, "abc", split="train")
    put_pairs(tmp_path, image, mask, "de", split="test")
    for split, names in (("train", "abc"), ("test", "de")):
        samples = open_dataset(tmp_path, split)
        assert [name[-5] for name in read_all(samples)] == list(names) and samples.notes == []


def test_a_test_part_without_label_maps_beside_flat_ones(tmp_path):
    put_pairs(tmp_path, "images/train/{name}.jpg", "masks/{name}.png", "abc")
    put(tmp_path / "images/test/t.jpg", 1)
    layout = find_layout(tmp_path, val_fraction=0)
    assert list(layout.splits) == ["train"] and len(read_all(layout.splits["train"])) == 3
    assert layout.notes == ["1 images of test have no label maps at all, so this is no split here"]


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
    "file", ["train_list.txt", "trn.txt", "annotations/train.txt", "train_ids.lst", "list_train.txt"]
)
def test_lists_of_other_names(tmp_path, file):
    put_pairs(tmp_path, "images/{name}.jpg", "annotations/{name}.png", "abcd")
    other = file.replace("train", "val").replace("trn", "val")
    (tmp_path / file).write_text("c 1 1 1\na 2 1 1\n")
    (tmp_path / other).write_text("b 1 2 1\nd 1 1 1\n")
    assert read_all(open_dataset(tmp_path, "train")) == ["images/c.jpg", "images/a.jpg"]
    assert read_all(open_dataset(tmp_path, "val")) == ["images/b.jpg", "images/d.jpg"]


def test_files_that_only_seem_lists(tmp_path):
    put_pairs(tmp_path, "images/{name}.jpg", "masks/{name}.png", "abcd")
    (tmp_path / "train_id.txt").write_text("17\n18\n")
    assert len(open_dataset(tmp_path, "train", val_fraction=0)) == 4
    (tmp_path / "train_list.txt").write_text("a\nb\n")
    (tmp_path / "val_list.txt").write_text("c\n")
    (tmp_path / "train.txt").write_text("b\n")  # counts more
    assert len(open_dataset(tmp_path, "train")) == len(open_dataset(tmp_path, "val")) == 1


def test_endings_of_images_in_names_of_label_maps(tmp_path):
    for shade, ending in enumerate(("jpg", "png")):
        put(tmp_path / f"images/{shade}.{ending}", 1)
        put(tmp_path / f"masks/{shade}.{ending}.png")
    assert read_all(open_dataset(tmp_path, "train", val_fraction=0)) == ["images/0.jpg", "images/1.png"]


def test_names_in_other_unicode_forms(tmp_path):
    """macOS writes an accent as a sign of its own."""
    put(tmp_path / "images/a\u0308.jpg", 1)
    put(tmp_path / "masks/\u00e4.png")
    (tmp_path / "train.txt").write_text("\u00e4\n", encoding="utf-8")
    assert read_all(open_dataset(tmp_path, "train", val_fraction=0)) == ["images/a\u0308.jpg"]


def test_a_folder_of_masks_for_each_label(tmp_path):
    labels = np.array([[0, 1, 1, 2], [2, 2, 0, 0]])
    for split, names in (("train", "ab"), ("val", "c")):
        for name in names:
            put(tmp_path / f"images/{split}/{name}.jpg", 9)
            for label, folder in ((1, "car"), (2, "road")):
                path = tmp_path / f"masks/{folder}/{split}/{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(((labels == label) * 255).astype(np.uint8)).save(path)
    put(tmp_path / "images/train/z.jpg", 9)
    (tmp_path / "images/train/a.txt").write_text("a photograph")
    (tmp_path / "masks/car/train/b.png").unlink()
    layout = find_layout(tmp_path)
    assert layout.label_names == ["background", "car", "road"] and layout.ignore_index == 255
    assert layout.description.startswith("folders: a folder of masks for each label (car, road)")
    assert layout.notes == ["1 images have no mask at all, and are left out: images/train/z.jpg"]
    train = open_dataset(tmp_path, "train")
    assert len(train) == 2
    np.testing.assert_array_equal(train[0].read()[1], labels)
    np.testing.assert_array_equal(train[1].read()[1], np.where(labels == 1, 0, labels))
    np.testing.assert_array_equal(open_dataset(tmp_path, "val")[0].read()[1], labels)
    Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "masks/car/val/c.png")  # more than a mask
    with pytest.raises(ValueError, match="label maps are missing"):
        open_dataset(tmp_path, "val")
    for name in ("a", "b"):  # masks of the same
        Image.fromarray((labels == 2).astype(np.uint8)).save(tmp_path / f"masks/car/train/{name}.png")
    (tmp_path / "masks/car/val/c.png").unlink()
    with pytest.raises(ValueError, match="car and road show the same, as masks of two people do"):
        find_layout(tmp_path)


def test_a_label_that_is_called_as_a_split(tmp_path):
    """Its masks alone were read as label maps."""
    labels = np.array([[0, 1, 1, 2], [2, 2, 0, 0]])
    for name in "ab":
        put(tmp_path / f"images/{name}.jpg", 9)
        for label, folder in ((1, "bus"), (2, "train")):
            path = tmp_path / f"masks/{folder}/{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(((labels == label) * 255).astype(np.uint8)).save(path)
    samples = open_dataset(tmp_path, "train", val_fraction=0)
    assert samples.layout.label_names == ["background", "bus", "train"]
    np.testing.assert_array_equal(samples[0].read()[1], labels)
    for path in (tmp_path / "masks/bus").iterdir():
        path.unlink()
    assert [name for name, _ in open_dataset(tmp_path, "train", val_fraction=0).pairs] == [
        "images/a.jpg",
        "images/b.jpg",
    ]


def test_several_label_maps_of_an_image_are_named(tmp_path):
    for kind in ("semantic", "instance"):
        put_pairs(tmp_path, "images/{name}.jpg", f"masks/{kind}/{{name}}.png")
    message = "as in layout: images:masks/instance or layout: images:masks/semantic"
    with pytest.raises(ValueError, match=f"2 of 2 label maps are missing .*{message}"):
        open_dataset(tmp_path, "train", val_fraction=0)
    samples = open_dataset(tmp_path, "train", val_fraction=0, layout="images:masks/semantic")
    assert len(read_all(samples)) == 2 and samples.pairs[0][1] == "masks/semantic/a.png"


@pytest.mark.parametrize(
    "files, message",
    [
        (["a.zip", "b.tar.gz"], r"\.zip, \.gz: unpack archives"),
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


def test_two_folders_are_proposed_by_the_names_of_their_files(tmp_path):
    put_pairs(tmp_path, "{split}/clicks/x/{name}.jpg", "{split}/ids/x/{name}.png", "abc", split="train")
    put(tmp_path / "train/stray/q.png", 1)
    with pytest.raises(ValueError, match="lie in clicks and in ids: if these are it, layout: clicks:ids"):
        find_layout(tmp_path)
    assert len(read_all(open_dataset(tmp_path, "train", layout="clicks:ids", val_fraction=0))) == 3


def test_other_masks_of_an_image_in_one_folder(tmp_path):
    """As CholecSeg8k's: those whose name says more than that they are masks are no images."""
    put_pairs(tmp_path, "{name}_endo.png", "{name}_endo_mask.png", "ab")
    put_pairs(tmp_path, "{name}_endo_color_mask.png", "{name}_endo_watershed_mask.png", "ab")
    samples = open_dataset(tmp_path, "train", val_fraction=0)
    assert read_all(samples) == ["a_endo.png", "b_endo.png"]
    assert samples.layout.notes[0].startswith("4 other pictures are left out: a_endo_color_mask.png, a_endo_watershed")


def test_what_belongs_to_no_sample_is_told(tmp_path):
    put_pairs(tmp_path, "{split}/{name}.png", "{split}annot/{name}.png", split="train")
    put_pairs(tmp_path, "{split}/{name}.png", "{split}annot/{name}.png", split="val")
    put(tmp_path / "test/t.png", 1)
    put(tmp_path / "preview.png", 1)
    put(tmp_path / "trainannot/z.png")
    layout = find_layout(tmp_path)
    assert list(layout.splits) == ["train", "val"]
    assert layout.notes == [
        f"1 pictures in {tmp_path} belong to no split: preview.png",
        "1 images of test have no label maps at all, so this is no split here",
    ]
    assert "left out, because there is no picture of the same path: z.png" in layout.splits["train"].notes[0]
    (tmp_path / "trainannot/a.png").unlink()
    with pytest.raises(ValueError, match="1 of 2 label maps are missing .* trainannot/a.png of picture train/a.png"):
        open_dataset(tmp_path, "train")


def test_two_label_maps_of_one_picture(tmp_path):
    put_pairs(tmp_path, "images/{name}.jpg", "masks/{name}_mask.png", "abcde")
    put(tmp_path / "masks/a_gt.png")
    with pytest.raises(
        ValueError, match="a.jpg in .* has 2 label maps: masks/a_gt.png, masks/a_mask.png; keep the one"
    ):
        open_dataset(tmp_path, "train")


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


def test_voc(tmp_path):
    put_pairs(tmp_path, "JPEGImages/{name}.jpg", "SegmentationClass/{name}.png", ["2007_000001", "2007_000002"])
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000002\n")
    (lists / "val.txt").write_text("2007_000001\n")
    layout = find_layout(tmp_path)
    assert layout.name == "voc" and len(layout.label_names) == 21 and layout.ignore_index == 255
    assert read_all(open_dataset(tmp_path, "train")) == ["JPEGImages/2007_000002.jpg"]
    put_pairs(tmp_path, "JPEGImages/{name}.jpg", "SegmentationClass/{name}.png", ["mine"])
    assert find_layout(tmp_path).label_names is None  # somebody's own pictures in VOC's layout
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:9,9,9::\n")
    assert find_layout(tmp_path).label_names == ["background", "cat"]


def test_what_cvat_exports_as_masks(tmp_path):
    """One list, "default", of what nobody has divided; colours of labelmap.txt, in whose order the labels stand."""
    put_pairs(tmp_path, "JPEGImages/{name}.jpg", "SegmentationClass/{name}.png", "abcdef")
    colors = [(0, 0, 0), (5, 5, 5), (0, 7, 0), (9, 0, 0)]
    rows = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in zip(("background", "car", "road", "tree"), colors)]
    (tmp_path / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *rows]))
    labels = np.where(LABELS == 255, 3, LABELS)
    for path in (tmp_path / "SegmentationClass").iterdir():
        Image.fromarray(np.array(colors, dtype=np.uint8)[labels]).save(path)
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/default.txt").write_text("\n".join("abcdef"))
    train, validation = (open_dataset(tmp_path, split) for split in ("train", "validation"))
    assert len(train) + len(validation) == 6 and train.layout.label_names == ["background", "car", "road", "tree"]
    np.testing.assert_array_equal(train[0].read()[1], labels)


def test_images_of_a_test_beside_images_with_label_maps(tmp_path):
    put_pairs(tmp_path, "images/{name}.jpg", "masks/{name}.png", "abc")
    put(tmp_path / "test_images/t.jpg", 1)
    samples = open_dataset(tmp_path, "train", val_fraction=0)
    assert len(read_all(samples)) == 3
    assert samples.layout.notes == ["1 images of test have no label maps, and are left out"]


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


def test_names_that_differ_in_capitals(tmp_path):
    for image, mask in (("Left.JPG", "left.png"), ("RIGHT.jpg", "right_Mask.png")):
        put(tmp_path / "images" / image, 1)
        put(tmp_path / "masks" / mask)
    assert len(read_all(open_dataset(tmp_path, "train", val_fraction=0))) == 2
    put(tmp_path / "masks/LEFT.png")
    with pytest.raises(ValueError, match="images/Left.JPG in .* has 2 label maps: masks/LEFT.png, masks/left.png"):
        open_dataset(tmp_path, "train", val_fraction=0)


@pytest.mark.parametrize(
    "images, maps",
    [("leftImg8bit", "gtCoarse"), ("leftImg8bit_trainvaltest/leftImg8bit", "gtFine_trainvaltest/gtFine")],
)
def test_cityscapes_as_its_archives_are_unpacked(tmp_path, images, maps):
    kind = maps.rpartition("/")[2]
    for split, name in (("train", "a"), ("val", "b")):
        put(tmp_path / f"{images}/{split}/bonn/{name}_leftImg8bit.png", 1)
        for what in ("labelIds", "instanceIds"):
            put(tmp_path / f"{maps}/{split}/bonn/{name}_{kind}_{what}.png")
    layout = find_layout(tmp_path)
    assert layout.name == "cityscapes" and layout.label_mapping and list(layout.splits) == ["train", "val"]
    assert read_all(open_dataset(tmp_path, "val")) == [f"{images}/val/bonn/b_leftImg8bit.png"]
    (tmp_path / f"{maps}/val/bonn/b_{kind}_labelIds.png").rename(tmp_path / f"{maps}/val/bonn/c_{kind}_labelIds.png")
    put(tmp_path / f"{images}/val/bonn/c_leftImg8bit.png", 1)
    with pytest.raises(
        ValueError, match=f"1 of 2 label maps are missing .* is {kind}/val/bonn/b_{kind}_labelIds.png of"
    ):
        open_dataset(tmp_path, "val")


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes(tmp_path, kind):
    for split in ("train", "val"):
        put_pairs(
            tmp_path,
            "leftImg8bit/{split}/bonn/{name}_leftImg8bit.png",
            f"gtFine/{{split}}/bonn/{{name}}_gtFine_{kind}.png",
            split=split,
        )
    put(tmp_path / "gtFine/train/bonn/a_gtFine_instanceIds.png")
    put(tmp_path / "leftImg8bit/test/bonn/a_leftImg8bit.png", 3)
    layout = find_layout(tmp_path)
    assert layout.name == "cityscapes" and len(layout.label_names) == 19 and layout.ignore_index == 255
    assert (layout.label_mapping is None) == (kind == "labelTrainIds")
    if layout.label_mapping:
        assert layout.label_mapping[0] == 255
        known = {7: "road", 11: "building", 23: "sky", 24: "person", 26: "car", 33: "bicycle"}
        assert {value: layout.label_names[layout.label_mapping[value]] for value in known} == known
        assert sorted(set(layout.label_mapping.values())) == [*range(19), 255]
    assert len(read_all(open_dataset(tmp_path, "train"))) == 2 and list(layout.splits) == ["train", "val"]
    (tmp_path / f"gtFine/val/bonn/a_gtFine_{kind}.png").unlink()
    with pytest.raises(ValueError, match="1 of 2 label maps are missing"):
        open_dataset(tmp_path, "val")
