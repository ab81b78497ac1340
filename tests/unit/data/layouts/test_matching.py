"""Which label map is an image's, by their paths and names; and which are too many."""

import numpy as np
import pytest
from made_data import put, put_pairs, read_all, write

from qlseg_hf.data.datasets import open_dataset


@pytest.mark.parametrize(
    "image, mask",
    [
        ("train/{name}.png", "train_labels/{name}_L.png"),
        ("images/ISIC_00{name}.jpg", "masks/ISIC_00{name}_lesion.png"),
        ("images/top_{name}_RGBIR.png", "labels/top_{name}_noBoundary.png"),
        ("images/{name}_training.png", "masks/{name}_manual1.png"),
        ("images/{name}.png", "masks/class-{name}.png"),
        ("images/tile0{name}.png", "masks/patch0{name}.png"),
        ("images/{name}.jpg", "masks/{name}.jpg___fuse.png"),  # SuperAnnotate's
        ("images/{name}.jpg", "masks/{name}m.png"),  # MaSTr1325's
    ],
)
def test_what_all_names_of_label_maps_share(tmp_path, image, mask):
    """Affixes that no list of ours knows, as of CamVid (`_L`), DRIVE (`_manual1`) and Potsdam."""
    names = ["a_1", "b_2", "ab_2"]
    for label, name in enumerate(names):
        put(tmp_path / image.format(name=name), label)
        write(tmp_path / mask.format(name=name), np.full((2, 4), label, dtype=np.uint8))
    samples = open_dataset(tmp_path, "train", val_fraction=0)
    found = {samples[i].name: samples[i].read() for i in range(3)}
    assert set(found) == {image.format(name=name) for name in names}
    assert all((label_map == picture[0, 0, 0]).all() for picture, label_map in found.values())
    assert samples.notes[0].startswith("label maps have other folders or names than images, as ")
    put(tmp_path / image.format(name="c_3"), 0)  # has no label map, so nothing is guessed
    with pytest.raises(ValueError, match="4 of 4 label maps are missing"):
        open_dataset(tmp_path, "train", val_fraction=0)


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
    assert samples.notes == [f"label maps have other folders or names than images, {told}"]


def test_label_maps_of_several_other_places_are_not_guessed(tmp_path):
    put_pairs(tmp_path, "{name}/images/x.png", "{name}/masks/first.png")
    put_pairs(tmp_path, "{name}/images/y.png", "{name}/masks/second.png")
    with pytest.raises(
        ValueError, match="4 of 4 label maps are missing .*; name both folders, as in layout: IMAGES:MASKS, or write"
    ):
        open_dataset(tmp_path, "train")
    for kind in ("v1.2", "v2.0"):
        put_pairs(tmp_path / "two", "train/pictures/{name}.jpg", f"train/{kind}/labels/{{name}}.png")
    with pytest.raises(ValueError, match="as in layout: pictures:v1.2/labels or layout: pictures:v2.0/labels"):
        open_dataset(tmp_path / "two", "train", val_fraction=0)
    assert len(read_all(open_dataset(tmp_path / "two", "train", layout="pictures:v2.0/labels", val_fraction=0))) == 2


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


def test_names_that_differ_in_capitals(tmp_path):
    for image, mask in (("Left.JPG", "left.png"), ("RIGHT.jpg", "right_Mask.png")):
        put(tmp_path / "images" / image, 1)
        put(tmp_path / "masks" / mask)
    assert len(read_all(open_dataset(tmp_path, "train", val_fraction=0))) == 2
    put(tmp_path / "masks/LEFT.png")
    with pytest.raises(ValueError, match="images/Left.JPG in .* has 2 label maps: masks/LEFT.png, masks/left.png"):
        open_dataset(tmp_path, "train", val_fraction=0)


def test_two_label_maps_of_one_picture(tmp_path):
    put_pairs(tmp_path, "images/{name}.jpg", "masks/{name}_mask.png", "abcde")
    put(tmp_path / "masks/a_gt.png")
    with pytest.raises(
        ValueError, match="a.jpg in .* has 2 label maps: masks/a_gt.png, masks/a_mask.png; keep the one"
    ):
        open_dataset(tmp_path, "train")


def put_mask(path, label=255):
    """A label map that is background but for a corner."""
    write(path, np.array([[0, 0, 0, 0], [0, 0, 0, label]], dtype=np.uint8))


@pytest.mark.parametrize("good", ["ok", "Good", "no_defect"])
@pytest.mark.parametrize("place, ending", [("", ""), ("bottle/", "_mask")])
def test_images_without_defects_are_background(tmp_path, good, place, ending):
    """They are numbered as those with defects are (BTAD, MVTec AD); a part of them alone teaches nothing."""
    for number in range(3):
        put(tmp_path / f"{place}train/{good}/000{number}.png", 0)
        put(tmp_path / f"{place}test/{good}/000{number}.png", 0)
        put(tmp_path / f"{place}test/ko/000{number}.png", 1)
        put_mask(tmp_path / f"{place}ground_truth/ko/000{number}{ending}.png")
    samples = open_dataset(tmp_path, "test", val_fraction=0)
    sums = {sample.name.split("/")[-2]: sample.read()[1].sum() for sample in (samples[i] for i in range(6))}
    assert len(samples) == 6 and sums == {good: 0, "ko": 255}
    assert any(
        note.startswith("3 images without label maps lie in folders of images without") for note in samples.notes
    )
    with pytest.raises(
        ValueError, match="train show no defect, and .* alone; layout: test:ground_truth divides those"
    ):
        open_dataset(tmp_path, "train")
    divided = [open_dataset(tmp_path, split, layout="test:ground_truth") for split in ("train", "validation")]
    assert sum(map(len, divided)) == 6
    write(next(tmp_path.glob(f"{place}ground_truth/ko/*")), np.ones((2, 4), dtype=np.uint8))  # no mask of a defect
    with pytest.raises(ValueError, match="3 of 6 label maps are missing"):
        open_dataset(tmp_path, "test", val_fraction=0)


@pytest.mark.parametrize(
    "images, label_maps",
    [
        ("Data/Images/{}.jpg", "Data/Masks/{}.png"),  # VisA
        ("{}.jpg", "masks/{}.png"),
    ],
)
def test_a_table_of_images_without_defects(tmp_path, images, label_maps):
    rows = []
    for number in range(6):
        name = f"{'Normal' if number % 2 else 'Anomaly'}/00{number}"
        put(tmp_path / images.format(name), number)
        if number % 2 == 0:
            put_mask(tmp_path / label_maps.format(name))
        rows.append(f"{images.format(name)},{'' if number % 2 else label_maps.format(name)}")
    (tmp_path / "pairs.csv").write_text("\n".join(["image,mask", *rows]))
    samples = open_dataset(tmp_path, "train", val_fraction=0)
    assert [int(samples[i].read()[1].sum()) for i in range(6)] == [255, 255, 255, 0, 0, 0]
    assert samples.layout.name in ("folders", "camvid")


@pytest.mark.parametrize(
    "image, mask, other",
    [
        ("image_2/um_{}.png", "gt_image_2/um_road_{}.png", "gt_image_2/um_lane_0.png"),  # KITTI's road
        ("{}/camera/f/x{}_camera_f.png", "{}/label/f/x{}_label_f.png", None),  # A2D2
        ("Slide_0{}/{}.png", "GT_0{}/{}.png", None),  # TNBC
        ("b{}/b{}/1.png", "b{}/b{} GT/1.png", None),  # fish
        ("images/left{}/1.png", "masks/left{}_01.png", None),
        ("{}/rgb/f{}.png", "{}/groundtruth/{}_f{}_gt.png", None),  # WeedMap
        ("leftImg8bit/{}/frame8_leftImg8bit.jpg", "gtFine/{}/frame8_gtFine_labellevel3Ids.png", None),  # IDD
    ],
)
def test_paths_that_differ_in_words(tmp_path, image, mask, other):
    for number in range(3):
        put(tmp_path / image.format(number, number), number)
        write(tmp_path / mask.format(number, number, number), np.full((2, 4), number, dtype=np.uint8))
        if other is not None and number == 0:
            put(tmp_path / other.format(number, number, number))
    samples = open_dataset(tmp_path, "train", val_fraction=0)
    found = [samples[i].read() for i in range(3)]
    assert [int(label_map.max()) for _, label_map in found] == [int(picture[0, 0, 0]) for picture, _ in found]


def test_pictures_that_are_called_after_images(tmp_path):
    """ISIC's superpixels, the centres of CVPPP's leaves; a name of its own is one of an image without label map."""
    put_pairs(tmp_path, "ISIC_Data/{name}.jpg", "ISIC_GroundTruth/{name}_segmentation.png")
    for name in "ab":
        put(tmp_path / f"ISIC_Data/{name}_superpixels.png", 7)
    samples = open_dataset(tmp_path, "train", val_fraction=0)
    assert read_all(samples) == ["ISIC_Data/a.jpg", "ISIC_Data/b.jpg"]
    assert any(
        note.startswith("2 pictures are left out, because they are called after others") for note in samples.notes
    )
    put(tmp_path / "ISIC_Data/c.jpg", 7)
    with pytest.raises(ValueError, match="of 5 label maps are missing .* the others into train.txt"):
        open_dataset(tmp_path, "train", val_fraction=0)
    (tmp_path / "train.txt").write_text("a.jpg\nb.jpg\n")
    assert read_all(open_dataset(tmp_path, "train", val_fraction=0)) == ["ISIC_Data/a.jpg", "ISIC_Data/b.jpg"]


def test_files_that_lie_beside_images_of_their_name(tmp_path):
    """World files of GIS programs, Oxford's `.mat`; a photograph of a kind that is not read is none."""
    put_pairs(tmp_path, "images/{name}.tif", "masks/{name}.tif")
    (tmp_path / "images/a.tfw").write_text("0.5")
    assert read_all(open_dataset(tmp_path, "train", val_fraction=0)) == ["images/a.tif", "images/b.tif"]
    (tmp_path / "train.txt").write_text("a\n")
    (tmp_path / "val.txt").write_text("b\n")
    assert read_all(open_dataset(tmp_path, "train")) == ["images/a.tif"]
    (tmp_path / "train.txt").unlink()
    (tmp_path / "val.txt").unlink()
    (tmp_path / "images/b.tif").rename(tmp_path / "images/b.heic")
    with pytest.raises(ValueError, match="1 of 2 pictures .* not of a kind that is read .* b.heic"):
        open_dataset(tmp_path, "train", val_fraction=0)


@pytest.mark.parametrize("number", ["{name}_{k}", "{name}.{k}", "0{name}-{k}"])
def test_masks_of_objects_that_are_called_after_their_image_and_a_number(tmp_path, number):
    """Before, layout: images:masks/*_0.png was proposed, which reads the first object alone."""
    for name in (7, 8, 9):
        put(tmp_path / f"images/{name}.jpg", name)
        for k in range(name - 6):
            mask = np.zeros((2, 4), dtype=np.uint8)
            mask[0, k] = 255
            write(tmp_path / "masks" / f"{number.format(name=name, k=k)}.png", mask)
    samples = open_dataset(tmp_path, "train", val_fraction=0)
    assert [int((samples[i].read()[1] > 0).sum()) for i in range(3)] == [1, 2, 3]
    assert any("have several masks, one for each object" in note for note in samples.notes)
    (tmp_path / "masks" / f"{number.format(name=9, k=1)}.png").unlink()  # 0 and 2, as labels have them
    with pytest.raises(ValueError, match="label maps are missing"):
        open_dataset(tmp_path, "train", val_fraction=0)
    put(tmp_path / "images/10.jpg", 1)  # nothing is guessed, nor is one of the numbers proposed
    with pytest.raises(ValueError, match="label maps are missing") as refused:
        open_dataset(tmp_path, "train", val_fraction=0)
    assert "layout: images:masks/*" not in str(refused.value)


def test_two_images_for_each_label_map(tmp_path):
    put_pairs(tmp_path, "{split}/left_frames/{name}.png", "{split}/labels/{name}.png", split="seq1")
    put_pairs(tmp_path, "{split}/left_frames/{name}.png", "{split}/labels/{name}.png", split="seq2")
    for name in ("seq1/right_frames/a.png", "seq1/right_frames/b.png"):
        put(tmp_path / name, 1)
    way = "share 2 label maps: .*, as in layout: left_frames:labels$"
    with pytest.raises(ValueError, match=way):
        open_dataset(tmp_path, "train", val_fraction=0)
    assert len(open_dataset(tmp_path, "train", layout="left_frames:labels", val_fraction=0)) == 4


def test_label_maps_in_folders_of_splits_that_have_no_image(tmp_path):
    """AI4Mars, of which it was said that there is no split 'train'."""
    put_pairs(tmp_path, "images/edr/{name}.jpg", "labels/train/{name}.png", "abc")
    put(tmp_path / "images/range/a_range.png", 1)
    put(tmp_path / "labels/test/gold/z_merged.png")
    with pytest.raises(ValueError, match="4 of 4 label maps are missing .*, as in layout: edr:labels"):
        open_dataset(tmp_path, "train", val_fraction=0)
