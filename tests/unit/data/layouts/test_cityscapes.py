"""Cityscapes, with either kind of label maps, and as its archives are unpacked."""

import pytest
from made_data import put, put_pairs, read_all

from qlseg_hf.data.datasets import open_dataset
from qlseg_hf.data.layouts import find_layout


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
