"""What is done is known after a kill at any byte, and nothing else is taken for done."""

import json
from dataclasses import replace

import pytest

from qlseg_hf.predict.items import Item, LocalFile
from qlseg_hf.predict.manifest import Manifest

SETTINGS = {"weights_sha256": "ab", "scales": (1.0,)}
ITEMS = [Item(f"d/{n}", f"/in/{n}.png", (n, "time"), LocalFile("")) for n in range(3)]


def opened(folder, settings=SETTINGS, rank=0) -> Manifest:
    manifest = Manifest(folder, rank)
    manifest.open(settings)
    return manifest


def done(manifest: Manifest, formats=("labels",)) -> list[bool]:
    return [manifest.is_done(item, formats, []) for item in ITEMS]


def test_what_was_added_is_done(tmp_path):
    manifest = opened(tmp_path)
    manifest.add(ITEMS[0], ["labels"], 4, 5)
    manifest.add_failure(ITEMS[1], "broken")
    manifest.close()
    manifest = opened(tmp_path)
    assert done(manifest) == [True, False, False]
    assert not manifest.is_done(ITEMS[0], ["labels"], [tmp_path / "gone.png"])
    assert not manifest.is_done(ITEMS[0], ["labels", "coco"], [])
    assert not manifest.is_done(replace(ITEMS[0], stamp=(9, "later")), ["labels"], [])
    with pytest.raises(ValueError, match="holds results of /in/0.png called d/0, which /in/x.png would overwrite"):
        manifest.is_done(replace(ITEMS[0], source="/in/x.png"), ["labels"], [])
    assert manifest.write_failures() == 1
    (line,) = (tmp_path / "failures.jsonl").read_text().splitlines()
    assert json.loads(line) == {"image": "/in/1.png", "name": "d/1", "reason": "broken"}
    manifest.add(ITEMS[1], ["labels"], 4, 5)
    assert manifest.write_failures() == 0 and (tmp_path / "failures.jsonl").read_text() == ""


def test_formats_add_up_while_the_image_is_the_same(tmp_path):
    manifest = opened(tmp_path)
    manifest.add(ITEMS[0], ["labels"], 4, 5)
    manifest.add(ITEMS[0], ["coco"], 4, 5)
    manifest.close()
    assert opened(tmp_path).entries["d/0"]["formats"] == ["coco", "labels"]
    manifest = opened(tmp_path)
    manifest.add(replace(ITEMS[0], stamp=(9,)), ["coco"], 4, 5)
    manifest.close()
    assert opened(tmp_path).entries["d/0"]["formats"] == ["coco"]


def test_other_settings_are_refused(tmp_path):
    opened(tmp_path).close()
    with pytest.raises(ValueError, match=r"other settings \(scales: \[1.0\] there, \[1.5\] here\); give another"):
        opened(tmp_path, SETTINGS | {"scales": (1.5,)})
    with pytest.raises(ValueError, match="flip: null there, true here"):
        opened(tmp_path, SETTINGS | {"flip": True})


def test_cut_at_any_byte(tmp_path):
    manifest = opened(tmp_path)
    for item in ITEMS:
        manifest.add(item, ["labels"], 4, 5)
    manifest.close()
    whole = manifest.path.read_bytes()
    head = whole.index(b"\n") + 1  # which is written in one step
    seen = set()
    for length in range(head, len(whole) + 1):
        manifest.path.write_bytes(whole[:length])
        again = opened(tmp_path)
        count = whole[head:length].count(b"\n")
        assert done(again) == [n < count for n in range(3)]
        again.add(ITEMS[2], ["labels"], 4, 5)  # goes on a line of its own
        again.close()
        assert done(opened(tmp_path))[2]
        seen.add(count)
    assert seen == {0, 1, 2, 3}


def test_other_processes_lines_are_joined(tmp_path):
    main = opened(tmp_path)
    other = Manifest(tmp_path, rank=1)
    main.add(ITEMS[0], ["labels"], 4, 5)
    other.add(ITEMS[1], ["labels"], 4, 5)
    other.close()
    main.join()
    assert done(main) == [True, True, False]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.jsonl"]
    third = Manifest(tmp_path, rank=2)  # killed before they were joined
    third.add(ITEMS[2], ["labels"], 4, 5)
    third.close()
    assert done(opened(tmp_path)) == [True, True, True]


def test_a_damaged_line_is_named(tmp_path):
    opened(tmp_path).close()
    with (tmp_path / "manifest.jsonl").open("a") as file:
        file.write("no json\n")
    with pytest.raises(ValueError, match="manifest.jsonl is damaged"):
        opened(tmp_path)


def test_names_that_are_no_text(tmp_path):
    odd = Item("a\udcff\n", "/in/a\udcff\n.png", (1,), LocalFile(""))
    manifest = opened(tmp_path)
    manifest.add(odd, ["labels"], 4, 5)
    manifest.close()
    assert opened(tmp_path).is_done(odd, ["labels"], [])
