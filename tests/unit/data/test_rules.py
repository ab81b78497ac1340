"""What stored values say where nobody has said how they are read: decided and told, or asked."""

import numpy as np
import pytest
from made_data import draw_label_map

from qlseg_hf.data.check.counting import Finding, count_values
from qlseg_hf.data.check.rules import decide_rules


def findings(values, num_maps=6, size=(48, 64)):
    rng = np.random.default_rng(0)
    maps = [draw_label_map(rng, values(i) if callable(values) else values, size) for i in range(num_maps)]
    return [Finding(f"s{i}", i, count_values(label_map)) for i, label_map in enumerate(maps)]


def decide(values, names=None, **given):
    return decide_rules(findings(values), names, given)


@pytest.mark.parametrize(
    "values, names, settings, note",
    [
        ([0, 1], ["label_0", "label_1"], {}, None),
        ([0, 1, 2], ["label_0", "label_1", "label_2"], {}, "labels 0..2 are as stored; set do_reduce_labels: true if"),
        ([0, 255], ["label_0", "label_255"], {"label_mapping": {0: 0, 255: 1}}, "the values 0, 255 are numbered"),
        ([0, 1, 2, 255], ["label_0", "label_1", "label_2"], {}, "labels 0..2 are as stored"),
        ([1, 2, 3], ["label_1", "label_2", "label_3"], {"do_reduce_labels": True}, "0 never occurs"),
        ([1, 2, 3, 255], ["label_1", "label_2", "label_3"], {"do_reduce_labels": True}, "0 never occurs"),
        ([0, 50, 100], ["label_0", "label_50", "label_100"], {"label_mapping": {0: 0, 50: 1, 100: 2}}, "are numbered"),
        (
            [0, 127, 255],
            ["label_0", "label_127", "label_255"],
            {"label_mapping": {0: 0, 127: 1, 255: 2}},
            "are numbered",
        ),
        ([0, 1, 4], ["label_0", "label_1", "label_4"], {"label_mapping": {0: 0, 1: 1, 4: 2}}, "0, 1, 4 are numbered"),
        ([0, 1, -1], ["label_0", "label_1"], {"ignore_index": -1}, "-1 can be no label, and is ignored"),
        ([0, 1, 65535], ["label_0", "label_1"], {"ignore_index": 65535}, "65535 can be no label"),
        (
            [0, 1, 255, 65535],
            ["label_0", "label_1"],
            {"ignore_index": 255, "label_mapping": {65535: 255}},
            "65535 can be no label, and is ignored: label_mapping: {65535: 255} and ignore_index: 255",
        ),
        ([3], ["label_3"], {"label_mapping": {3: 0}}, "the values 3 are numbered"),
    ],
)
def test_decided_and_told(values, names, settings, note):
    rules = decide(values)
    assert (rules.names, rules.settings, rules.problems, rules.is_open) == (names, settings, [], False)
    assert note in rules.notes[-1 if "labels" in note else 0] if note else rules.notes == []


@pytest.mark.parametrize(
    "values, problem",
    [
        (
            [0, 50, 100, 255],
            "may be void or a label: set ignore_index: 255 and label_mapping: {0: 0, 50: 1, 100: 2} if it is void, or "
            "label_mapping: {0: 0, 50: 1, 100: 2, 255: 3} if it is a label",
        ),
        (
            [255, 0, 1],
            "may be void or a label: set ignore_index: 255 if it is void, or label_mapping: {0: 0, 1: 1, 255: 2}",
        ),
        ([0, 24001, 24002, 26000], "24001, 24002, 26000 seem to be 1000 x label + number of an object (instance ids)"),
        (lambda i: list(range(2 + 2 * i)), "nearly gapless, to 1 in one and to 11 in another, so they seem to count"),
    ],
)
def test_asked(values, problem):
    rules = decide(values)
    assert len(rules.problems) == 1 and problem in rules.problems[0] and rules.is_open


@pytest.mark.parametrize("names", [None, ["ground", "road"]])
def test_masks_of_0_and_1_among_masks_of_0_and_255(names):
    """255 would be void, and the road of half of the images with it."""
    mixed = findings(lambda i: [0, 1] if i % 2 else [0, 255])
    rules = decide_rules(mixed, names, {})
    assert rules.problems[0].startswith(
        "1 is in 3 label maps and 255 in 3 others, never in the same, so masks of 0 and 1"
    )
    assert rules.is_open == (names is None)
    for _, settings in rules.proposals:
        assert decide_rules(mixed, names, settings).problems == []
    for others in ([0, 255, 1], [0, 255, 2]):  # void along edges; more than two labels
        assert decide_rules(findings(lambda i, others=others: [0, 1] if i % 2 else others), names, {}).problems == []


def test_photographs_in_place_of_label_maps():
    rng = np.random.default_rng(0)
    shades = np.linspace(20, 200, 96)[None] + np.linspace(0, 40, 64)[:, None]
    maps = [(shades + rng.normal(0, 4, shades.shape)).clip(0, 255).astype(np.int64) for _ in range(4)]
    found = [Finding(f"s{i}", i, count_values(label_map)) for i, label_map in enumerate(maps)]
    rules = decide_rules(found, None, {})
    assert "have a neighbour of another value, as in photographs and depths" in rules.problems[0] and rules.is_open
    blocks = np.kron(np.arange(60).reshape(6, 10), np.ones((8, 8), dtype=np.int64))  # as many labels
    assert decide_rules([Finding("s", 0, count_values(blocks))], None, {}).problems == []


def test_objects_whose_numbers_differ_little():
    """Images of about as many cells each, none of which is cut off."""
    counted = findings(lambda i: list(range(14 + i)), 8, (96, 128))
    assert "nearly gapless, to 13 in one and to 20 in another" in decide_rules(counted, None, {}).problems[0]
    known = findings(lambda i: list(range(14 + i % 3)), 8, (96, 128))  # of labels most images have the last one
    assert decide_rules(known, None, {}).problems == []


def test_objects_of_videos():
    """DAVIS 2017: few objects, as many in each frame of a video; labels differ within one."""
    for spread, is_asked in ((0, True), (1, False)):
        found = findings(lambda i, spread=spread: list(range(1 + i // 3 + spread * (i % 2))), num_maps=15)
        found = [Finding(f"video_{i // 3}/{i}.png", i, finding.stored) for i, finding in enumerate(found)]
        problems = decide_rules(found, None, {}).problems
        assert any("seem to count objects" in text for text in problems) == is_asked


def test_masks_of_16_bits():
    """TGS's salt is 65535, which is void where there are other labels."""
    assert decide([0, 65535]).settings == {"label_mapping": {0: 0, 65535: 1}}
    assert decide([0, 1, 65535]).settings == {"ignore_index": 65535}


def test_a_large_255_is_settled_by_whoever_says_so():
    for settings in ({"ignore_index": 255}, {"label_mapping": {0: 0, 1: 1, 255: 2}}):
        assert decide([255, 0, 1], **settings).problems == []
    proposals = decide([255, 0, 1]).proposals
    assert len(proposals) > 1
    for _, settings in proposals:
        assert decide([255, 0, 1], **settings).problems == []


def test_many_values():
    label_map = np.arange(300).repeat(64).reshape(300, 8, 8).swapaxes(0, 1).reshape(8, 2400)
    rules = decide_rules([Finding("s", 0, count_values(label_map))], None, {})
    assert rules.problems[0].startswith("there are 300 stored values, 0..299, and no label_names; store for each")


def test_smoothed_values():
    smooth = np.array([0] * 200 + [40, 90, 160, 220] + [255] * 200)
    rules = decide_rules([Finding("s", 0, count_values(np.tile(smooth, (100, 1))))], None, {})
    # rows are equal, so that values in between are thin columns
    assert rules.problems[0].startswith("4 of 6 stored values lie along edges")
    assert "and 0, 255 fill regions: store label maps as PNG" in rules.problems[0]
    assert rules.names == ["label_0", "label_255"] and rules.is_open


def test_given_settings_hold():
    rules = decide([0, 1, 2, 11], ignore_index=11)
    assert rules.names == ["label_0", "label_1", "label_2"] and rules.settings == {"ignore_index": 11}
    rules = decide([0, 1, 2], do_reduce_labels=True)
    assert rules.names == ["label_1", "label_2"]
    rules = decide([0, 7, 9], label_mapping={7: 1, 9: 255})
    assert rules.names == ["label_0", "label_7"] and rules.settings == {"label_mapping": {7: 1, 9: 255}}
    rules = decide([0, 255], ignore_index=255)
    assert rules.names == ["label_0"] and rules.settings == {"ignore_index": 255}


def test_names_are_left_to_the_report_where_they_fit_or_not():
    for values in ([0, 1, 2], [0, 1, 2, 255], [0, 1], [0, 1, 2, 9]):
        rules = decide(values, ["a", "b", "c"])
        assert (rules.settings, rules.problems, rules.proposals) == ({}, [], [])


def test_proposals_for_names():
    rules = decide([0, 1, 2, 3], ["a", "b", "c"])  # CamVid's way and ADE20K's
    assert [settings for _, settings in rules.proposals] == [
        {"do_reduce_labels": True, "ignore_index": 255},
        {"do_reduce_labels": False, "ignore_index": 3},
    ]
    rules = decide([0, 255], ["ground", "cat"])
    assert [settings for _, settings in rules.proposals] == [
        {"label_mapping": {0: 0, 255: 1}},
        {"label_mapping": {0: 1, 255: 0}},
    ]
    rules = decide([0, 50, 100], ["a", "b", "c"])
    assert rules.proposals[0][1] == {"label_mapping": {0: 0, 50: 1, 100: 2}}
    assert "if they are in the order of the names (0 is 'a', 50 is 'b', 100 is 'c')" in rules.problems[0]
    assert decide([0, 1, 2, -1], ["a", "b", "c"]).settings == {"ignore_index": -1}


def test_a_label_that_is_called_void():
    rules = decide([0, 1, 2], ["a", "Don't care", "void"])
    assert [note.split(" and is learnt")[0] for note in rules.notes] == [
        'label 1 is called "Don\'t care"',
        "label 2 is called 'void'",
    ]
    assert "set label_mapping: {2: 255}" in rules.notes[1]
    assert decide([0, 1, 2], ["a", "b", "void"], ignore_index=2).notes == []


def test_names_that_begin_with_void_although_void_is_stored():
    """COCO-Stuff's list of names has "0: unlabeled", and its label maps have "person" as 0 and 255 as void."""
    names = ["unlabeled", "person", "bicycle", "car"]
    rules = decide([0, 1, 2, 255], names)
    assert len(rules.problems) == 1 and rules.proposals == [("0 is 'unlabeled'", {"label_mapping": {0: 255}})]
    assert "take 'unlabeled' out of label_names if 0 is 'person', or set label_mapping: {0: 255}" in rules.problems[0]
    assert decide([0, 1, 2, 255], names, label_mapping={0: 255}).problems == []
    assert decide([0, 1, 2, 255], names[1:]).problems == decide([0, 1, 2, 3, 255], names).problems == []
    assert decide([0, 1, 2], names).problems == []


def test_no_values():
    assert decide_rules([Finding("s", 0)], None, {}).names == []


@pytest.mark.parametrize("names", [None, ["a", "b", "c"]])
def test_grey_of_different_numbers_of_bits(names):
    """1 of 2 bits is as bright as 85 of 8, so programs that save few bits give one label several numbers."""
    found = findings([0, 1, 2])
    assert decide_rules(found, names, {}).problems == []
    for finding in found[::2]:
        finding.bits = 2
    problem = decide_rules(found, names, {}).problems[0]
    assert problem.startswith("label maps are grey of different numbers of bits: 2 (")
    assert decide_rules(found, names, {"label_mapping": {0: 0}}).problems == []
    for finding in found[1::2]:
        finding.bits = 2
    assert decide_rules(found, names, {}).problems == []
