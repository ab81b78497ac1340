"""Folders of images beside folders of label maps: each arrangement, and the sentence of each that is not clear."""

import re

import numpy as np
import pytest
from made_data import check_two_splits, put, put_pairs, read_all, write

from qlseg_hf.data.datasets import open_dataset
from qlseg_hf.data.layouts import find_layout


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
    ],
)
def test_split_folders(tmp_path, name, image, mask):
    check_two_splits(tmp_path, name, image, mask)


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


def test_splits_count_in_folders_that_are_named(tmp_path):
    """Mixing them, as if there were no split, would look fine."""
    put_pairs(tmp_path, "{split}/city/pics/{name}.png", "{split}/city/marks/{name}.png", "abcdefgh", split="Train")
    put_pairs(tmp_path, "{split}/city/pics/{name}.png", "{split}/city/marks/{name}.png", "ij", split="Val")
    assert len(open_dataset(tmp_path, "train", layout="pics:marks")) == 8
    assert len(open_dataset(tmp_path, "validation", layout="pics:marks")) == 2


@pytest.mark.parametrize("is_each", [True, False])
def test_a_folder_of_label_maps_for_each_folder_of_images(tmp_path, is_each):
    put_pairs(tmp_path, "LQ-Image/{name}.jpg", "LQ-Mask/{name}.png", "ab")
    put_pairs(tmp_path, "HQ-Image/{name}.jpg", "HQ-Mask/{name}.png", "cd")
    if is_each:
        assert len(read_all(open_dataset(tmp_path, "train", val_fraction=0))) == 4
    else:
        put_pairs(tmp_path, "HQ-Image/{name}.jpg", "LQ-Mask/{name}.png", "c")
        with pytest.raises(ValueError, match="2 folders of label maps, HQ-Mask and LQ-Mask"):
            open_dataset(tmp_path, "train", val_fraction=0)


def test_a_folder_as_large_that_nothing_is_called_after(tmp_path):
    """As DRIVE's: the field of view lies in `mask` under the images' names, and the vessels elsewhere under others."""
    put_pairs(tmp_path, "images/{name}_training.tif", "mask/{name}_training_mask.gif", "abc")
    for label, name in enumerate("abc"):
        write(tmp_path / f"1st_manual/{name}_manual1.gif", np.full((2, 4), 10 * label, dtype=np.uint8))
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


def test_several_label_maps_of_an_image_are_named(tmp_path):
    for kind in ("semantic", "instance"):
        put_pairs(tmp_path, "images/{name}.jpg", f"masks/{kind}/{{name}}.png")
    message = "as in layout: images:semantic or layout: images:instance"
    with pytest.raises(ValueError, match=f"2 of 2 label maps are missing .*{message}"):
        open_dataset(tmp_path, "train", val_fraction=0)
    samples = open_dataset(tmp_path, "train", val_fraction=0, layout="images:masks/semantic")
    assert len(read_all(samples)) == 2 and samples.pairs[0][1] == "masks/semantic/a.png"


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


def test_images_of_a_test_beside_images_with_label_maps(tmp_path):
    put_pairs(tmp_path, "images/{name}.jpg", "masks/{name}.png", "abc")
    put(tmp_path / "test_images/t.jpg", 1)
    samples = open_dataset(tmp_path, "train", val_fraction=0)
    assert len(read_all(samples)) == 3
    assert samples.layout.notes == ["1 images of test have no label maps, and are left out"]


def test_patterns_choose_among_label_maps(tmp_path):
    """The sentence on several kinds in one folder, as ApolloScape's, proposes what is then read."""
    for name in "ab":
        put_pairs(tmp_path, "ColorImage/r/{name}.jpg", "Label/r/{name}_bin.png", [name])
        put(tmp_path / f"Label/r/{name}_instanceIds.png", 7)
    with pytest.raises(
        ValueError, match="as in layout: ColorImage:Label/[*]_bin.png or layout: ColorImage:Label/[*]_i"
    ):
        open_dataset(tmp_path, "train")
    samples = open_dataset(tmp_path, "train", val_fraction=0, layout="ColorImage:Label/*_BIN.png")
    assert read_all(samples) == ["ColorImage/r/a.jpg", "ColorImage/r/b.jpg"]
    assert samples.layout.notes[0].startswith("2 images fit neither pattern, and are left out: Label/r/a_inst")


def test_patterns_without_folders(tmp_path):
    for kind in ("rgb", "depth", "semantic"):
        for name in "ab":
            put(tmp_path / f"{name}_{kind}.png", 5 if kind == "rgb" else None if kind == "semantic" else 7)
    with pytest.raises(ValueError, match=r"or their files, as in layout: \*_rgb.png:\*_label.png, or one of"):
        open_dataset(tmp_path, "train")
    samples = open_dataset(tmp_path, "train", val_fraction=0, layout="*_rgb.png:*_semantic.png")
    assert read_all(samples) == ["a_rgb.png", "b_rgb.png"]


def test_label_maps_that_a_person_names_hold_a_folder_of_images(tmp_path):
    put_pairs(tmp_path, "{split}/images/{name}.png", "{split}/Semantic_masks/images/{name}.png", split="train")
    for layout in (None, "images:Semantic_masks"):
        samples = open_dataset(tmp_path, "train", val_fraction=0, layout=layout)
        assert read_all(samples) == ["train/images/a.png", "train/images/b.png"]
    put_pairs(tmp_path, "{split}/images/{name}.png", "{split}/Instance_masks/images/{name}_id.png", split="train")
    with pytest.raises(ValueError, match="layout: images:Instance_masks or layout: images:Semantic_masks"):
        open_dataset(tmp_path, "train")  # as iSAID's


@pytest.mark.parametrize(
    "files, options",
    [
        (("{}/color/{}.png", "{}/depth/{}.png", "{}/label/{}.png"), ["color:label", "depth:label"]),
        (("A/{}{}.png", "B/{}{}.png", "label/{}{}.png"), ["A:label", "B:label"]),  # two times of one place
        (("photos/{}{}.jpg", "ids/{}{}.png", "people/{}{}.png"), ["photos:ids", "photos:people"]),
        (("images/{}{}.png", "av/{}{}.png", "vessel/{}{}.png"), ["images:av", "images:vessel"]),  # RITE
    ],
)
def test_all_folders_that_may_be_meant_are_proposed(tmp_path, files, options):
    for place, name in ((place, name) for place in "xy" for name in "ab"):
        for file in files:
            put(tmp_path / file.format(place, name), 5 if file.endswith("jpg") else None)
    with pytest.raises(ValueError, match=" or layout: ".join(options)):
        open_dataset(tmp_path, "train")
    assert len(read_all(open_dataset(tmp_path, "train", val_fraction=0, layout=options[0]))) == 4


@pytest.mark.parametrize("image", ["pool/{name}_0.png", "{name}_0.png", "frames/rgb/rgb_{name}.png"])
@pytest.mark.parametrize("mask", ["{side}Mask/{name}_0.png", "{side}Mask/{side}gt_{name}.png"])
def test_what_is_proposed_is_read(tmp_path, image, mask):
    """As of Montgomery's lungs and Virtual KITTI: images in no folder of images, or label maps of other names."""
    for name in "abc":
        for side in ("left", "right"):
            put_pairs(tmp_path, image, mask, [name], side=side)
    with pytest.raises(ValueError, match="as in layout: .*leftMask or layout: .*rightMask") as caught:
        open_dataset(tmp_path, "train")
    options = re.findall(r"layout: (\S+?Mask)", str(caught.value))
    assert len(options) == 2
    for option in options:
        samples = open_dataset(tmp_path, "train", val_fraction=0, layout=option)
        assert len(read_all(samples)) == 3 and all(option.split(":")[1] in path for _, path in samples.pairs)


@pytest.mark.parametrize(
    "image, masks, options",
    [
        (  # BDD100K
            "images/10k/{split}/{name}.jpg",
            ["labels/sem_seg/masks/{split}/{name}.png", "labels/sem_seg/colors/{split}/{name}.png"],
            ["images:masks", "images:colors"],
        ),
        (  # TAS500
            "{split}/{name}.png",
            ["{split}_labels/{name}.png", "{split}_labels_ids/{name}.png"],
            ["{split}:{split}_labels", "{split}:{split}_labels_ids"],
        ),
        (  # FloodNet
            "{split}-org-img/{name}.jpg",
            ["Color/Masks-{split}Set/{name}_lab.png", "{split}-label-img/{name}_lab.png"],
            ["{split}-org-img:Masks-{split}Set", "{split}-org-img:{split}-label-img"],
        ),
    ],
)
def test_what_is_proposed_opens_all_splits(tmp_path, image, masks, options):
    for split, names in (("train", "abc"), ("val", "de")):
        for name in names:
            put(tmp_path / image.format(split=split, name=name), 1)
            for mask in masks:
                put(tmp_path / mask.format(split=split, name=name))
    with pytest.raises(ValueError, match="name images and label maps, as in layout: ") as caught:
        open_dataset(tmp_path, "train")
    assert re.findall(r"layout: ([^\s.]+)", str(caught.value)) == options
    for option, mask in zip(options, masks, strict=True):
        layout = find_layout(tmp_path, layout=option)
        assert {split: len(layout.splits[split]) for split in layout.splits} == {"train": 3, "val": 2}
        assert layout.splits["val"].pairs[0][1] == mask.format(split="val", name="d")


def test_images_of_one_scene_in_several_weathers(tmp_path):
    """Foggy Cityscapes has three images for each label map, of which one kind is to be named."""
    for name in "ab":
        for fog in ("0.01", "0.02"):
            put(tmp_path / f"fog_images/{name}_foggy_beta_{fog}.png", 1)
        for kind in ("color", "labelIds"):
            put(tmp_path / f"gtFine/{name}_gtFine_{kind}.png")
    with pytest.raises(ValueError, match="layout: fog_images/.*_0.01.png:gtFine/.*_labelIds.png or layout: "):
        open_dataset(tmp_path, "train")
    samples = open_dataset(tmp_path, "train", layout="fog_images/*_0.02.png:gtFine/*_labelIds.png", val_fraction=0)
    assert [mask for _, mask in samples.pairs] == ["gtFine/a_gtFine_labelIds.png", "gtFine/b_gtFine_labelIds.png"]


def test_label_maps_of_another_kind_in_the_test_part(tmp_path):
    """As of DRIVE's: there is only the field of view."""
    put_pairs(tmp_path, "training/images/{name}_training.tif", "training/1st_manual/{name}_manual1.gif", "abcde")
    put_pairs(tmp_path, "test/images/{name}_test.tif", "test/mask/{name}_test_mask.gif", "fgh")
    layout = find_layout(tmp_path)
    assert {split: len(layout.splits[split]) for split in layout.splits} == {"training": 4, "validation": 1}
    assert "label maps of test lie in mask, and those of training in 1st_manual" in layout.notes[0]


def test_guessed_folders_of_splits(tmp_path):
    """DeepCrack's `train_lab` is no whole word for label maps."""
    for split, names in (("train", "abc"), ("test", "abd")):
        put_pairs(tmp_path, "{split}_img/{name}.jpg", "{split}_lab/{name}.png", names, split=split)
    layout = find_layout(tmp_path)
    assert layout.splits["test"].pairs[2] == ("test_img/d.jpg", "test_lab/d.png") and len(layout.splits["train"]) == 3


def test_photographs_beside_other_pictures(tmp_path):
    """ScanNet: none of the folders is called as one of images."""
    for name in "abc":
        put(tmp_path / f"scene_{name}/color/{name}.jpg", 1)
        for kind in ("label", "instance", "depth"):
            put(tmp_path / f"scene_{name}/{kind}/{name}.png")
    samples = open_dataset(tmp_path, "train", val_fraction=0)
    assert samples.pairs[0] == ("scene_a/color/a.jpg", "scene_a/label/a.png") and len(samples) == 3
    assert samples.layout.notes[0].startswith("6 images lie in no folder of images, and are left out")


def test_images_of_one_folder_without_label_maps(tmp_path):
    """What is proposed has no label maps of the other folder, which are numbered alike (HyperKvasir)."""
    put_pairs(tmp_path, "labelled/images/{name}.jpg", "labelled/masks/{name}.png", "abc")
    for name in "abc":
        put(tmp_path / f"unlabelled/images/{name}.jpg", 1)
    with pytest.raises(ValueError, match="3 of 6 label maps are missing .*, as in layout: labelled/images:masks$"):
        open_dataset(tmp_path, "train")
    assert len(open_dataset(tmp_path, "train", layout="labelled/images:masks", val_fraction=0)) == 3


def test_copies_in_two_formats_are_refused(tmp_path):
    for kind in ("png", "tif"):
        put_pairs(tmp_path, f"{kind}/images/{{name}}.{kind}", f"{kind}/labels/{{name}}.{kind}")
    with pytest.raises(ValueError, match=f"copies; give one of them, as {tmp_path}/png"):
        open_dataset(tmp_path, "train")
    assert len(open_dataset(tmp_path / "png", "train", val_fraction=0)) == 2


def test_copies_in_two_sizes_are_refused(tmp_path):
    """Each would come into both parts; lists say which size counts, as those of DAVIS."""
    for size in ("480p", "1080p"):
        put_pairs(tmp_path, f"images/{size}/v/{{name}}.jpg", f"masks/{size}/v/{{name}}.png", "abcdefg")
    with pytest.raises(ValueError, match="7 images of one name in both images/1080p and images/480p"):
        open_dataset(tmp_path, "train")
    (tmp_path / "train.txt").write_text("images/480p/v/a.jpg masks/480p/v/a.png\n")
    assert read_all(open_dataset(tmp_path, "train", val_fraction=0)) == ["images/480p/v/a.jpg"]


def test_camvid_as_cvat_writes_it(tmp_path):
    """Without subsets all lies in `default` and `defaultannot`."""
    put_pairs(tmp_path, "default/{name}.png", "defaultannot/{name}.png", "ab")
    (tmp_path / "default.txt").write_text("default/a.png defaultannot/a.png\ndefault/b.png defaultannot/b.png\n")
    assert read_all(open_dataset(tmp_path, "train", val_fraction=0)) == ["default/a.png", "default/b.png"]


@pytest.mark.parametrize("mask", ["classes", "sem"])
@pytest.mark.parametrize("other", ["instance_masks", "labels_vis", "gt_color"])
def test_label_maps_of_another_kind_beside_a_folder_of_no_role(tmp_path, mask, other):
    """Before, those of the other kind were taken without a word."""
    for folder in (mask, other):
        put_pairs(tmp_path, "images/{name}.png", f"{folder}/{{name}}.png", "abc")
    options = f"layout: images:{mask} or layout: images:{other}"
    with pytest.raises(ValueError, match=f"{other} seems to hold another kind .*, as in {options}$"):
        open_dataset(tmp_path, "train")
    assert len(open_dataset(tmp_path, "train", layout=f"images:{mask}", val_fraction=0)) == 3
    for path in (tmp_path / mask).iterdir():
        path.unlink()
    assert len(open_dataset(tmp_path, "train", val_fraction=0)) == 3
