"""What words in the names of folders and files say: a role, a split, or nothing."""

import numpy as np
import pytest
from made_data import put, put_pairs, read_all, write

from qlseg_hf.data.datasets import open_dataset


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
        ("{split}set/images/{name}.jpg", "{split}set/masks/{name}.png"),
        ("train/images/{split}/t1/{name}.jpg", "train/annotations/{split}/t1/{name}.png"),  # StreetHazards
        ("{split}crop/{name}.jpg", "{split}crop/{name}.png"),  # CRACK500
        ("{split}_data/{name}.jpg", "{split}_data/{name}_mask.png"),
    ],
)
def test_words_in_names_of_folders(tmp_path, image, mask):
    """Where no folder is called by one word, words in the names count; of several on a path the last one."""
    names = {"train": "abc", "val": "de"}
    for split in names:
        put_pairs(tmp_path, image, mask, names[split], split=split)
        for label, name in enumerate(names[split]):
            write(tmp_path / mask.format(name=name, split=split), np.full((2, 4), 10 * label, dtype=np.uint8))
    for split in names:
        samples = open_dataset(tmp_path, split)
        assert samples.split in (split, f"{split}2017") and len(samples) == len(names[split])
        for index in range(len(samples)):
            picture, label_map = samples[index].read()
            assert (label_map == picture[0, 0, 0]).all()


@pytest.mark.parametrize("places", [("train_station", "test_tube"), ("valid", "empty")])  # DeepFish
def test_words_in_names_that_mean_no_split(tmp_path, places):
    for place in places:
        put_pairs(tmp_path, f"images/{place}/{{name}}.jpg", f"masks/{place}/{{name}}.png")
    assert len(open_dataset(tmp_path, "train", val_fraction=0)) == 4


def test_folders_of_splits_that_share_a_word(tmp_path):
    for place, name in (("SBU-Test", "a"), ("SBUTrain4KRecovered", "b")):
        put_pairs(tmp_path, f"{place}/ShadowImages/{{name}}.jpg", f"{place}/ShadowMasks/{{name}}.png", name)
    assert read_all(open_dataset(tmp_path, "train")) == ["SBUTrain4KRecovered/ShadowImages/b.jpg"]
    assert read_all(open_dataset(tmp_path, "test")) == ["SBU-Test/ShadowImages/a.jpg"]


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
