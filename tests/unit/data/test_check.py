"""Each way a data set can be broken gets its sentence, with counts, names and the setting that helps."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from qlseg_hf import QLSegImageProcessor
from qlseg_hf.data.check import check_labels_of_dataset, score_warnings
from qlseg_hf.data.datasets import Sample, StreamedSamples

NAMES = ["wall", "floor", "tree"]


def striped(shape: tuple[int, int, int]) -> np.ndarray:
    rows, columns = np.indices(shape[:2])
    return np.broadcast_to(((rows + columns) % 2 * 200 + 20)[..., None], shape).astype(np.uint8)


def samples_of(*label_maps, picture=None) -> list[Sample]:
    """Samples s0, s1, ... of striped pictures; a label map is a list of values, 2 x n pixels of them."""
    found = []
    for i, values in enumerate(label_maps):
        label_map = values if not isinstance(values, list) else np.array([values, values])
        shape = (2, 4, 3) if label_map is None else (*label_map.shape[:2], 3)
        found.append(Sample(striped(shape) if picture is None else picture, label_map, f"s{i}"))
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
    report = check(samples_of([10, 20, 30, -1]), label_mapping={10: 0, 20: 1, 30: 2}, ignore_index=-1)
    assert report.errors == report.warnings == [] and report.num_ignored == 2
    assert check(samples_of([0, 1, 2]), names={2: "c", 0: "a", 1: "b"}).errors == []


def only_error(samples, **settings) -> str:
    report = check(samples, **settings)
    assert len(report.errors) == 1
    assert str(report).startswith(f"error: {report.errors[0]}\n")
    return report.errors[0]


@pytest.mark.parametrize("lowest", [0, 1])
def test_void_first_or_last(lowest):
    """CamVid's 0..11 of 11 names, void last, looks like ADE20K's 0..11, void first: both settings, in recipe keys."""
    samples = samples_of([lowest, 1, 2, 3], [3, 3, 1, lowest], [1, 2, 1, 2])
    text = only_error(samples)
    assert "no labels 0..2: 3 in 6 pixels of 2 label maps; in s0, s1. " in text
    assert text.endswith(
        "cannot tell whether 0 or 3 is void: set do_reduce_labels: true if 0 is void, 1 is 'wall' and 3 is 'tree'; "
        "set do_reduce_labels: false and ignore_index: 3 if 3 is void, 0 is 'wall' and 2 is 'tree'; or give 4 label "
        "names if none is void"
    )
    for settings in ({"do_reduce_labels": True}, {"ignore_index": 3}):
        assert check(samples, **settings).errors == []


def test_table_of_readings():
    samples = samples_of([0, 0, 0, 0, 1, 2, 3, 3])
    table = """\
stored values, their share of the pixels, and what they become:
  as is: do_reduce_labels: false (as set)
  reduced: do_reduce_labels: true
  last is void: do_reduce_labels: false, ignore_index: 3
    value    share  as is     reduced  last is void
        0   50.00%  'wall'    ignored  'wall'
        1   12.50%  'floor'   'wall'   'floor'
        2   12.50%  'tree'    'floor'  'tree'
        3   25.00%  no label  'tree'   ignored"""
    assert table in str(check(samples))
    reduced = str(check(samples, do_reduce_labels=True))
    assert "reduced: do_reduce_labels: true (as set)\n" in reduced and "as is: do_reduce_labels: false\n" in reduced
    as_void = check(samples_of([0, 2, 1, 3]), ignore_index=3)
    assert as_void.errors == as_void.warnings == []
    assert "last is void: do_reduce_labels: false, ignore_index: 3 (as set)" in str(as_void)
    assert "reduced: do_reduce_labels: true, ignore_index: 255\n" in str(as_void)
    # two ignored values
    both = "do_reduce_labels: false, label_mapping: {3: 255}"
    assert f"last is void: {both}\n" in str(check(samples_of([0, 1, 2, 3, 255])))
    assert both.replace(",", " and") in only_error(samples_of([0, 1, 2, 3, 255]))
    assert check(samples_of([0, 1, 2, 3, 255]), label_mapping={3: 255}).errors == []
    # translated values
    text = only_error(samples_of([10, 1, 2, 9, 255]), label_mapping={10: 0, 9: 3})
    assert "do_reduce_labels: false and label_mapping: {10: 0, 9: 255}" in text
    # many values, and names that would move a cursor
    text = str(check(samples_of(list(range(101))), names=[f"n{i}\n" for i in range(100)]))
    rows = text[text.index("  value") :].splitlines()
    assert len(rows) == 1 + 24 + 1 and rows[21].split() == ["..."] and rows[24].split()[0] == "100"
    assert "'n0\\n'" in rows[1]


def test_values_out_of_range():
    text = only_error(samples_of([0, 1, 2, 255]), ignore_index=100)
    assert text.endswith("255 in 2 pixels of 1 label maps; in s0. If 255 means unlabelled, set ignore_index: 255")
    text = only_error(samples_of([0, 1, 2, 70000], [0, -5, 0, 7]))
    assert "-5 in 2 pixels of 1 label maps, 7 in 2 pixels of 1 label maps, 70000 in 2 pixels" in text
    assert text.endswith(
        "in s1, s0. Translate them, as in label_mapping: {-5: 255} to ignore -5, or give more label names"
    )
    text = only_error(samples_of(list(range(20))))
    assert "and 12 more values; in s0." in text


def test_reduced_by_mistake():
    report = check(samples_of([0, 1, 2, 255]), do_reduce_labels=True)
    assert report.errors == []
    assert report.warnings[0] == "1 of 3 labels never occur: tree"
    sentence = (
        "with do_reduce_labels: true the stored value 0 is ignored, and 3 is 'tree', but never occurs; set "
        "do_reduce_labels: false if 0 is 'wall' and 2 is 'tree', or do_reduce_labels: true if 0 is void and 1 is "
        "'wall'"
    )
    assert report.warnings[1] == sentence and "as is: do_reduce_labels: false\n" in str(report)
    # the last label absent as well: nothing in the values speaks against either
    report = check(samples_of([0, 1, 2, 1]), names=[*NAMES, "car"], do_reduce_labels=True)
    assert report.doubts == [report.warnings[-1]] and "set do_reduce_labels: false if 0 is 'wall'" in report.doubts[0]
    processor = QLSegImageProcessor(do_reduce_labels=True)
    settings = {"doubts_are_errors": True, "show_progress": False}
    assert check_labels_of_dataset(samples_of([0, 1, 2]), processor, NAMES, **settings).errors == [sentence]
    assert check_labels_of_dataset(samples_of([0, 1, 2, 3]), processor, NAMES, **settings).errors == []
    assert check_labels_of_dataset(samples_of([1, 2]), processor, NAMES, **settings).errors == []


def test_black_and_white_masks():
    samples, names = samples_of([0, 255, 0, 255]), ["background", "cat"]
    text = only_error(samples, names=names, ignore_index=255)
    assert text.startswith("only one label occurs, 'background', so every answer is right and a score of 100 % means")
    assert text.endswith(
        "if 0 and 255 are 'background' and 'cat', set label_mapping: {0: 0, 255: 1} and do_reduce_labels: false"
    )
    text = only_error(samples, names=names, ignore_index=100)
    assert text.endswith(
        "If 0 is 'background' and 255 is 'cat', set label_mapping: {255: 1}; if it is the other way round, "
        "label_mapping: {0: 1, 255: 0}"
    )
    for label_mapping in ({255: 1}, {0: 0, 255: 1}):
        assert check(samples, names=names, label_mapping=label_mapping).errors == []


@pytest.mark.parametrize(
    "settings",
    [
        {},  # 255 is ignored
        {"label_mapping": {255: 0, 0: 255}},
        {"do_reduce_labels": True, "label_mapping": {255: 1}},
        {"label_mapping": {255: 0}},
    ],
)
def test_one_label_measures_nothing(settings):
    text = only_error(samples_of([0, 255, 0, 255]), names=["cat"], **settings)
    assert text.startswith("there is one label, 'cat', so every answer is right and a score of 100 % means nothing; ")
    assert text.endswith(
        "if 0 and 255 are background and object, set label_mapping: {0: 0, 255: 1} and do_reduce_labels: false, and "
        "give these two label_names"
    )


def test_one_label_comes_before_values_that_are_none():
    errors = check(samples_of([0, 255, 0, 255]), names=["cat"], ignore_index=100).errors
    assert errors[0].startswith("there is one label, 'cat'") and errors[1].startswith("values that are no labels 0..0")


def test_constant_label_maps():
    text = only_error(samples_of([2, 2], [2, 255]))
    assert text.startswith("only one label occurs, 'tree', so ") and "give what is around it a label" in text
    # of the first pictures only that is no error yet
    report = check(samples_of([2, 2], [2, 255], [0, 1]), max_samples=2)
    assert report.errors == [] and report.warnings[0].startswith("only one label occurs, 'tree'")
    assert only_error(samples_of([2, 2], [2, 255]), max_samples=2).startswith("only one label occurs")


def test_ignored_value_that_is_a_label():
    samples = samples_of([0, 1, 2, 3])
    text = check(samples, ignore_index=0).errors[-1]
    assert text == (
        "ignore_index: 0 is also label 0, 'wall', of 3; set do_reduce_labels: true and ignore_index: 255 if 0 is void "
        "and 'wall' is stored as 1, or set label_mapping: {0: 255} and ignore_index: 255 if it shall not count"
    )
    text = only_error(samples, ignore_index=3, names=[*NAMES, "void"])
    assert (
        "'void', of 4; take 'void', the last of label_names, out if it is no label, or set label_mapping: {3: 255}"
        in text
    )
    text = only_error(samples_of([0, 1, 2, 256]), ignore_index=1, names=[f"n{i}" for i in range(300)])
    assert text.endswith("'n1', of 300; set label_mapping: {1: -100} and ignore_index: -100 if it shall not count")


def edges(values, how, size=(120, 160)):
    """Discs of `values` on a ground of the first, with what the way they were stored leaves along the edges."""
    picture = Image.new("L", size, values[0])
    draw = ImageDraw.Draw(picture)
    for i, value in enumerate(values[1:]):
        draw.ellipse([10 + 25 * i, 10 + 20 * i, 60 + 25 * i, 50 + 25 * i], fill=value)
    if how == "jpeg":
        file = io.BytesIO()
        picture.save(file, "jpeg", quality=85)
        picture = Image.open(file)
    elif how == "smaller":
        picture = picture.resize((size[0] // 2, size[1] // 2), Image.Resampling.BILINEAR)
    elif how == "larger":
        picture = picture.resize((size[0] * 3, size[1] * 3), Image.Resampling.BICUBIC)
    return np.array(picture)


@pytest.mark.parametrize("how", ["jpeg", "smaller", "larger"])
@pytest.mark.parametrize(
    "values, settings",
    [
        ([0, 255], {"label_mapping": {255: 1}}),
        ([0, 255], {"ignore_index": 100}),
        ([0, 127, 255], {"label_mapping": {127: 1, 255: 2}}),
        ([10, 60, 200], {"label_mapping": {10: 0, 60: 1, 200: 2}}),
    ],
)
def test_smoothed_label_maps(values, settings, how):
    text = only_error(samples_of(edges(values, how), edges(values, how)), names=NAMES[: len(values)], **settings)
    assert (
        "They lie along edges, as JPEG compression or smoothing (antialiasing) leaves them: store the label maps"
        in text
    )
    assert "label_mapping" not in text or text.endswith("its nearest label and set label_mapping: {255: 1}")


def test_label_maps_of_too_many_labels_are_not_smoothed():
    """Thin as some may be."""
    regions = np.kron(np.arange(64).reshape(8, 8) % 40, np.ones((12, 9), int))
    assert "edges" not in only_error(samples_of(regions))
    thin = np.zeros((60, 60), int)
    for i in range(12):
        thin[5 * i : 5 * i + 3] = i + 2
    assert "edges" not in only_error(samples_of(thin))


def test_keys_of_label_map_that_never_occur():
    report = check(samples_of([0, 1, 2, 9]), label_mapping={9: 255, 8: 1, 7: 1})
    assert report.errors == [] and report.warnings == ["label_mapping translates 7, 8, which never occur"]
    text = only_error(samples_of([0, 1, 2, 9]), label_mapping={9: 8})
    assert text.endswith("label_mapping makes 9 to 8; correct it")


def test_scores_that_mean_nothing():
    counts = torch.zeros(3, 3, dtype=torch.int64)
    reduced, plain = QLSegImageProcessor(do_reduce_labels=True), QLSegImageProcessor()
    assert "no pixel counts" in score_warnings(counts, NAMES, plain)[0]
    counts[1, 1] = 5
    assert score_warnings(counts, NAMES, plain)[0].startswith(
        "only one label occurs, 'floor', so every answer is right"
    )
    assert score_warnings(counts[:1, :1] + 4, ["cat"], plain)[0].startswith("there is one label, 'cat'")
    after = torch.tensor([[0, 8, 0], [0, 1, 9], [0, 0, 3]])
    text = score_warnings(after, NAMES, reduced)[0]
    assert text.startswith("81% of the pixels are predicted as the label after that of the reference, so")
    assert text.endswith("shifted by one; do_reduce_labels: false probably reads them rightly")
    assert score_warnings(after.T, NAMES, plain)[0].endswith("do_reduce_labels: true probably reads them rightly")
    for counts, processor in ((after, plain), (after.T, reduced)):
        assert score_warnings(counts, NAMES, processor)[0].endswith(
            "compare the order of the label names with the stored values"
        )
    assert score_warnings(torch.tensor([[9, 2, 0], [1, 1, 9], [0, 0, 3]]), NAMES, plain) == []


def test_color_masks():
    text = only_error(samples_of([0, 1, 2], colored("RGB"), colored("RGBA")))
    assert text.startswith("2 of 3 label maps are colour pictures; set label_colors: {label: [red, green, blue]}, or")
    assert text.endswith(", or store one label per pixel. s1, s2")
    broken = Sample(np.zeros((2, 4, 3), np.uint8), np.full((2, 4, 3), 9, np.uint8), "s1", {(0, 0, 0): 0})
    text = only_error(Sequence([samples_of([0, 1, 2])[0], broken]))
    assert text.startswith("1 of 2 label maps hold colours that label_colors lacks; add these colours")
    assert "s1: 1 colours are not in label_colors: (9, 9, 9) in 8 pixels" in text


def colored(mode):
    picture = Image.new(mode, (4, 2), (9, 8, 7))
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
        "2 of 2 label maps are ignored throughout: s0, s1; check do_reduce_labels, label_mapping and ignore_index"
    )


def test_absent_labels():
    report = check(samples_of([3, 8]), names=[f"n{i}" for i in range(9)])
    assert report.errors == []
    assert report.warnings == ["7 of 9 labels never occur: n0, n1, n2, n4, n5 and 2 more"]


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


@pytest.mark.parametrize(
    "picture, fault",
    [
        (np.zeros((2, 3, 3), np.uint8), "of one colour"),
        (np.full((2, 3, 3), 255, np.uint8), "of one colour"),
        (np.broadcast_to(np.array([9, 8, 7], np.uint8), (2, 3, 3)), "of one colour"),
        (np.arange(18, dtype=np.uint8).reshape(2, 3, 3) % 16, "nearly black"),
        (np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14, None),
    ],
)
def test_pictures_that_show_nothing(picture, fault):
    report = check(samples_of([0, 1, 2], [2, 1, 0], picture=picture))
    assert report.errors == []
    if fault is None:
        assert report.warnings == []
    else:
        (warning,) = report.warnings
        assert warning.startswith(f"2 of 2 pictures are {fault}: s0, s1")
