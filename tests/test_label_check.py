"""Each way a data set can be broken gets its sentence, with counts, names and the setting that helps."""

import io

import numpy as np
import pytest
from PIL import Image

from qlseg_hf import QLSegImageProcessor
from qlseg_hf.data import Sample, StreamedSamples
from qlseg_hf.label_check import check_labels_of_dataset

NAMES = ["wall", "floor", "tree"]


def samples_of(*label_maps, picture=None) -> list[Sample]:
    """Samples s0, s1, ... of black pictures; a label map is a list of values, 2 x n pixels of them."""
    found = []
    for i, values in enumerate(label_maps):
        label_map = values if not isinstance(values, list) else np.array([values, values])
        shape = (2, 4, 3) if label_map is None else (*label_map.shape[:2], 3)
        found.append(Sample(np.zeros(shape, np.uint8) if picture is None else picture, label_map, f"s{i}"))
    return Sequence(found)


class Sequence:
    """What `open_dataset` gives: a length and items, no iterator."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def check(samples, names=NAMES, max_samples=None, **settings):
    processor = QLSegImageProcessor(**settings)
    return check_labels_of_dataset(samples, processor, names, max_samples=max_samples, show_progress=False)


def test_good_data():
    report = check(samples_of([0, 1, 255, 0], [2, 2, 1, 0]))
    assert report.errors == report.warnings == []
    assert report.label_counts.tolist() == [6, 4, 4] and report.num_ignored == 2
    assert str(report) == "checked 2 pictures: 3 of 3 labels occur, 12.5% of the pixels ignored"


def test_good_data_by_rules():
    report = check(samples_of([0, 1, 2, 3]), do_reduce_labels=True)
    assert report.errors == report.warnings == [] and report.label_counts.tolist() == [2, 2, 2]
    report = check(samples_of([10, 20, 30, -1]), label_map={10: 0, 20: 1, 30: 2}, ignore_index=-1)
    assert report.errors == report.warnings == [] and report.num_ignored == 2
    assert check(samples_of([0, 1, 2]), names={2: "c", 0: "a", 1: "b"}).errors == []


def only_error(samples, **settings) -> str:
    report = check(samples, **settings)
    assert len(report.errors) == 1
    assert str(report).startswith(f"error: {report.errors[0]}\n")
    return report.errors[0]


def test_off_by_one():
    text = only_error(samples_of([0, 1, 2, 3], [3, 3, 1, 0], [1, 2, 1, 2]))
    assert "no labels 0..2: 3 in 6 pixels of 2 label maps; in s0, s1. " in text
    assert "0 probably means unlabelled: set do_reduce_labels: true (or give 4 label names)" in text
    text = only_error(samples_of([1, 2, 3, 255]))
    assert "so labels start at 1: set do_reduce_labels: true" in text


def test_values_out_of_range():
    text = only_error(samples_of([0, 1, 2, 255]), ignore_index=100)
    assert text.endswith("255 in 2 pixels of 1 label maps; in s0. If 255 means unlabelled, set ignore_index: 255")
    text = only_error(samples_of([0, 1, 2, 70000], [0, -5, 0, 7]))
    assert "-5 in 2 pixels of 1 label maps, 7 in 2 pixels of 1 label maps, 70000 in 2 pixels" in text
    assert text.endswith(
        "in s1, s0. Translate them, as in label_map: {-5: 255} to ignore -5, or give more label names"
    )
    text = only_error(samples_of(list(range(20))))
    assert "and 12 more values; in s0." in text


def test_reduced_by_mistake():
    report = check(samples_of([0, 1, 2, 255]), do_reduce_labels=True)
    assert report.errors == []
    assert report.warnings[0] == "1 of 3 labels never occur: tree"
    assert "3 never occurs and 0 does; if 0 is label 'wall', set do_reduce_labels: false" in report.warnings[1]


@pytest.mark.parametrize("ignore_index", [255, 100])
def test_black_and_white_masks(ignore_index):
    text = only_error(samples_of([0, 255, 0, 255]), names=["background", "cat"], ignore_index=ignore_index)
    assert "set label_map: {255: 1}" in text
    assert check(samples_of([0, 255]), names=["background", "cat"], ignore_index=100, label_map={255: 1}).errors == []


def test_color_masks():
    text = only_error(samples_of([0, 1, 2], colored("RGB"), colored("RGBA")))
    assert text.startswith("2 of 3 label maps are colour pictures; set label_colors: {label: [red, green, blue]}, or")
    assert "s1: the label map is a colour picture (mode RGB)" in text and "; s2: " in text
    broken = Sample(np.zeros((2, 4, 3), np.uint8), np.full((2, 4, 3), 9, np.uint8), "s1", {(0, 0, 0): 0})
    text = only_error(Sequence([samples_of([0, 1, 2])[0], broken]))
    assert text.startswith("1 of 2 label maps hold colours that label_colors lacks; add these colours")
    assert "s1: 1 colours are not in label_colors: (9, 9, 9) in 8 pixels" in text


def colored(mode):
    picture = Image.new(mode, (4, 2))
    picture.shape = (2, 4)  # for samples_of
    return picture


def test_jpeg_label_maps():
    jpeg = io.BytesIO()
    Image.fromarray(np.full((2, 4), 255, np.uint8)).save(jpeg, "jpeg")
    for source in (jpeg.getvalue(), Image.open(jpeg)):
        broken = Sample(np.zeros((2, 4, 3), np.uint8), source, "s1")
        text = only_error(Sequence([samples_of([0, 1, 2])[0], broken]), ignore_index=255)
        assert text.startswith(
            "1 of 2 label maps are JPEG files, which change labels at every edge; store them as PNG"
        )


def test_files_that_are_left_out():
    samples = samples_of([0, 1, 2])
    samples.notes = ["2 files are left out: a, b"]
    assert check(samples).warnings == samples.notes


def test_sizes():
    text = only_error(samples_of([0, 1, 2], *[[0]] * 6, picture=np.zeros((2, 3, 3), np.uint8)))
    assert text.startswith("6 of 7 label maps differ in size from their pictures; store each label map at its")
    assert "s1: picture 2 x 3, label map 2 x 1" in text and text.endswith("and 1 more") and "s6" not in text


def test_unreadable(tmp_path):
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8 no picture")
    good = samples_of([0, 1, 2])[0]
    text = only_error(Sequence([good, Sample(tmp_path / "torn.jpg", good.label_map, "s1")]))
    assert text.startswith("1 of 2 pictures cannot be read; copy them again or take them out. s1: picture: ")
    text = only_error(Sequence([good, Sample(good.picture, None, "s1")]))
    assert text.startswith("1 of 2 label maps cannot be read; ") and text.endswith("s1: label map: missing")
    report = check(Sequence([Sample(tmp_path / "torn.jpg", None, "s0")]))
    assert len(report.errors) == 1 and str(report).endswith("0 of 3 labels occur, none of the pixels ignored")


def test_unreadable_pictures_are_left_out_or_refused(tmp_path):
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8 no picture")
    good = samples_of([0, 1, 2])[0]
    torn = [Sample(tmp_path / "torn.jpg", good.label_map, f"torn{i}") for i in range(3)]
    processor, settings = QLSegImageProcessor(), {"strict": False, "show_progress": False}
    for num_torn, num_good in ((1, 1), (2, 18)):
        samples = Sequence([*torn[:num_torn], *[good] * num_good])
        report = check_labels_of_dataset(samples, processor, NAMES, **settings)
        assert report.errors == [] and [index for index, _ in report.unreadable] == list(range(num_torn))
        start = f"{num_torn} of {num_torn + num_good} pictures cannot be read; they are left out. torn0: picture: "
        assert report.warnings[0].startswith(start) and report.unreadable[0][1].startswith("torn0: picture: ")
    report = check_labels_of_dataset(Sequence([*torn, *[good] * 17]), processor, NAMES, **settings)
    assert report.errors[0].startswith("3 of 20 pictures cannot be read; copy them again")
    report = check_labels_of_dataset(
        Sequence([Sample(good.picture, None, "s"), *[good] * 99]), processor, NAMES, **settings
    )
    assert report.errors[0].startswith("1 of 100 label maps cannot be read")


def test_ignored_throughout():
    report = check(samples_of([255, 255], [0, 1, 2], [255]))
    assert report.errors == []
    assert report.warnings == ["2 of 3 label maps are ignored throughout: s0, s2; they teach nothing"]
    text = only_error(samples_of([255, 255], [0]), do_reduce_labels=True)
    assert text == (
        "2 of 2 label maps are ignored throughout: s0, s1; check do_reduce_labels, label_map and ignore_index"
    )


def test_absent_labels():
    report = check(samples_of([3]), names=[f"n{i}" for i in range(9)])
    assert report.errors == []
    assert report.warnings == ["8 of 9 labels never occur: n0, n1, n2, n4, n5 and 3 more"]


def test_first_samples_only():
    samples = samples_of(*[[0, 1, 2]] * 70, [9])
    assert check(samples, max_samples=70).errors == []
    assert check(samples, max_samples=70).num_samples == 70
    assert check(samples, max_samples=1000).num_samples == 71  # more than one chunk of 64
    assert "9 in 2 pixels of 1 label maps; in s70" in check(samples).errors[0]
    with pytest.raises(ValueError, match="the data set is empty"):
        check(samples, max_samples=0)


def test_stream():
    class Stream(StreamedSamples):
        def __init__(self):
            pass

        def __iter__(self):
            yield from (samples_of([0, 1, 2], [9])[i] for i in range(2))

    assert check(Stream(), max_samples=1).errors == []
    assert "9 in 2 pixels" in check(Stream()).errors[0]
