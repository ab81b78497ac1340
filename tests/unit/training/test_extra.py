"""`extra_data`: which position takes which sample, whose labels become which, and what is refused."""

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from qlseg_hf import QLSegImageProcessor
from qlseg_hf.data.augmentation import BatchPositions, TrainingSampler, TrainingTransform
from qlseg_hf.data.datasets import exclude, open_dataset
from qlseg_hf.data.mixture import MixedDataset, exclude_extra, match_names
from qlseg_hf.training.auto import DataFacts, DeviceFacts, complete_recipe
from qlseg_hf.training.checkpoints import identity
from qlseg_hf.training.extra import look_at_extra, open_extra, read_entries
from qlseg_hf.training.recipe import Recipe, check_values

NAMES = ["red", "green", "blue"]


def keys_of(share, rank=0, world_size=1, start=0, accumulation=1, batch=4, steps=30):
    positions = BatchPositions(batch, steps, start, accumulation, rank, world_size)
    return [key for keys in TrainingSampler(positions, 7, 5, 11, share) for key in keys]


@pytest.mark.parametrize("share, per_batch", [(0.5, {2}), (0.25, {1}), (0.1, {0, 1}), (1 / 3, {1, 2}), (0.9, {3, 4})])
def test_each_batch_holds_its_share(share, per_batch):
    keys = keys_of(share)
    counts = [sum(index >= 7 for _, index in keys[i : i + 4]) for i in range(0, 120, 4)]
    assert set(counts) == per_batch and abs(sum(counts) - 120 * share) < 1
    for kind, size in ((False, 7), (True, 11)):  # both go through whole epochs
        own = [key for key in keys if (key[1] >= 7) is kind]
        whole = len(own) // size * size
        assert set(Counter(index for _, index in own[:whole]).values()) == {whole // size}
        assert [epoch for epoch, _ in own] == [place // size for place in range(len(own))]
        first, second = ([index for _, index in own[start : start + size]] for start in (0, size))
        assert len(second) < size or first != second


def test_resuming_processes_and_accumulation_change_nothing():
    whole = keys_of(0.4, batch=8)
    assert keys_of(0.4, batch=8, start=13) == whole[13 * 8 :]
    shares = [keys_of(0.4, rank, 2, accumulation=2, batch=2) for rank in (0, 1)]
    assert [shares[0][i : i + 4] + shares[1][i : i + 4] for i in range(0, 120, 4)] == [
        whole[i : i + 8] for i in range(0, 240, 8)
    ]


def test_without_extra_samples_the_order_is_the_one_of_before():
    positions = BatchPositions(4, 30)
    alone = [key for keys in TrainingSampler(positions, 7, 5) for key in keys]
    beside = [key for key in keys_of(0.5, steps=60) if key[1] < 7]
    assert alone == beside  # and the run's own samples come in the same order with extra ones between them


@pytest.mark.parametrize("num_extra, share", [(0, 0.5), (3, 0.0), (3, 1.0)])
def test_share_and_number_go_together(num_extra, share):
    with pytest.raises(ValueError, match="extra samples"):
        TrainingSampler(BatchPositions(4, 3), 7, 0, num_extra, share)


def make_set(root, count=3, names=None, values=(0, 1, 2, 255), described=None):
    """Images of 8 x 8, whose rows hold `values` in turn."""
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    labels = np.resize(np.array(values, dtype=np.uint8), (8, 1)).repeat(8, axis=1)
    for i in range(count):
        Image.fromarray(np.full((8, 8, 3), 20 * i + 50 + 10 * labels[..., None] // 9, dtype=np.uint8)).save(
            root / "images" / f"{i}.png"
        )
        Image.fromarray(labels).save(root / "masks" / f"{i}.png")
    if names:
        (root / "labels.json").write_text(json.dumps(names))
    if described is not None:
        (root / "data.yaml").write_text(yaml.safe_dump({"data": "."} | described))
    return root


def recipe(**keys) -> Recipe:
    return check_values({"data": "somewhere", **keys})


def open_one(entry, names=NAMES, **rules):
    (one,) = open_extra(recipe(extra_data=entry), QLSegImageProcessor(**rules), names)
    return one


def test_labels_are_matched_by_name(tmp_path):
    """Stored 0 is blue there and 2 here; void is 9 there and 255 here."""
    described = {"label_names": ["blue", "red"], "ignore_index": 9, "eval_split": "validation", "num_channels": 3}
    own = make_set(tmp_path / "own")
    one = open_one(str(make_set(tmp_path / "extra", values=(0, 1, 9, 1), described=described)))
    assert one.labels == (2, 0) and len(one.samples) == 3 and one.processor.ignore_index == 9
    samples = open_dataset(own, "train", val_fraction=0)
    transform = TrainingTransform(
        QLSegImageProcessor(), 3, 8, resize_box=(8, 8), scale_range=(1, 1), photometric=False, cat_max_ratio=1
    )
    mixed = MixedDataset(samples, transform, [one])
    assert len(mixed) == 6
    assert mixed[0, 1]["labels"][:, 0].tolist() == [0, 1, 2, 255] * 2
    found = mixed[0, 4]
    assert found["labels"][:, 0].tolist() == [2, 0, 255, 0] * 2 and found["name"] == "images/1.png"
    plain = replace(transform, processor=one.processor)(one.samples[1], 0, 4)  # draws by the number among all
    assert torch.equal(found["pixel_values"], plain["pixel_values"])
    assert len({identity(samples), identity(samples, one.samples), identity(samples, exclude(one.samples, [0]))}) == 3


def test_padding_is_void_of_the_run(tmp_path):
    """A crop that is larger than the image is padded with the set's void, which is a label of the run."""
    described = {"label_names": ["red", "green"], "ignore_index": 2}
    one = open_one(str(make_set(tmp_path / "extra", values=(0, 1, 2, 1), described=described)))
    transform = TrainingTransform(QLSegImageProcessor(), 3, 12, (8, 8), (1, 1), 1, False)
    labels = MixedDataset([], transform, [one])[0, 0]["labels"]
    assert (labels[8:] == 255).all() and labels[:8, 0].tolist() == [0, 1, 255, 1] * 2


def test_rules_are_the_sets_or_the_runs(tmp_path):
    folder = str(make_set(tmp_path / "extra", names=NAMES))
    run = {"do_reduce_labels": True, "ignore_index": 11}
    bare, own = open_one(folder, **run).processor, open_one({"data": folder, "ignore_index": 255}, **run).processor
    assert (bare.do_reduce_labels, bare.ignore_index) == (True, 11)
    assert (own.do_reduce_labels, own.ignore_index) == (False, 255)
    mapped = open_one({"data": folder, "label_mapping": {2: 255}}, names=["a", "b"])
    assert mapped.names == ["a", "b"] and mapped.labels == (0, 1)


def test_a_data_yaml_of_others_describes_nothing(tmp_path):
    """As exports for YOLO hold one, beside the images."""
    folder = make_set(tmp_path / "extra", names=["blue", "red", "green"])
    (folder / "data.yaml").write_text("nc: 3\nnames: [blue, red, green]\n")
    assert open_one(str(folder)).labels == (2, 0, 1)


def test_names_that_differ_are_named(tmp_path):
    folder = str(make_set(tmp_path / "extra", names=["red", "verdigris", "blue"]))
    with pytest.raises(ValueError, match="labels that the run lacks: verdigris; labels of the run that the set lacks"):
        open_one(folder)
    assert open_one({"data": folder, "label_names": NAMES}).labels == (0, 1, 2)
    assert match_names(["b"], ["a", "b"], "x") == (1,)
    assert match_names(["car", "b", "car", "car"], ["car", "car", "b"], "x") == (0, 2, 1, 1)


@pytest.mark.parametrize(
    "keys, sentence",
    [
        ({"extra_data": "x", "streaming": True}, "does not go with streaming"),
        ({"extra_data_share": 0.5}, "wants extra_data"),
        ({"extra_data": "x", "extra_data_share": 1.0}, "above 0 and below 1"),
        ({"extra_data": "x", "extra_data_share": 0.0}, "above 0 and below 1"),
        ({"extra_data": 3}, "extra_data wants str or dict"),
        ({"extra_data": [["x"]]}, "extra_data wants str or dict"),
        ({"pseudo_labels": "x"}, "did you mean extra_data"),
    ],
)
def test_recipes_that_are_refused(keys, sentence):
    with pytest.raises(ValueError, match=sentence):
        recipe(**keys)


def test_folders_of_this_machine_are_not_published(tmp_path):
    entries = [str(tmp_path), {"data": str(tmp_path / "a"), "ignore_index": 3}]
    assert recipe(extra_data=entries).to_public().extra_data == [tmp_path.name, {"data": "a", "ignore_index": 3}]


@pytest.mark.parametrize(
    "entry, sentence",
    [
        ({"layout": "pairs"}, "lacks data"),
        ({"data": "x", "dta": 3}, "unknown key dta in extra_data"),
        ({"data": "x", "crop_size": 3}, "unknown key crop_size in extra_data"),
        ({"data": "x", "ignore_index": "no"}, "extra_data: ignore_index wants int"),
    ],
)
def test_entries_that_are_refused(entry, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_entries(recipe(extra_data=[entry]))


def test_the_share_is_decided_and_epochs_follow():
    device = DeviceFacts("cpu")
    facts = DataFacts(40, 64, label_names=NAMES, num_extra_images=327)
    keys = {"extra_data": "x", "backbone": None, "config": {"backbone_config": {"patch_size": 8}}}
    done, told = complete_recipe(recipe(**keys, epochs=10), facts, device)
    assert done.extra_data_share == 0.5 and done.max_steps == 200
    assert "0.5: of each batch, of 327 extra images beside 40" in dict(told)["extra_data_share"]
    few = complete_recipe(recipe(**keys), DataFacts(40, 64, label_names=NAMES, num_extra_images=10), device)[0]
    assert few.extra_data_share == 0.2
    assert complete_recipe(recipe(config=keys["config"]), facts, device)[0].extra_data_share is None


def survey_of(digests: dict):
    findings = {split: [SimpleNamespace(picture_digest=d) for d in found] for split, found in digests.items()}
    uses = {"training": "train", "validation": "val"}
    return SimpleNamespace(findings=findings, uses=uses, request=SimpleNamespace(num_threads=1))


def test_a_look_at_extra_images(tmp_path, capsys):
    """One that cannot be read is left out by its number; those that are validated on are named; wrong values stop."""
    from qlseg_hf.data.check.counting import finding_of

    one = open_one(str(make_set(tmp_path / "extra")))
    (tmp_path / "extra" / "images" / "2.png").write_bytes(b"")
    known = finding_of(0, one.samples[1], one.processor.settings().reading).picture_digest
    unreadable = look_at_extra([one], survey_of({"train": [None], "val": [known]}), num_samples=5)
    assert [number for number, _ in unreadable] == [7]
    assert "1 of 3 images are in the validation split of the data too, so scores" in capsys.readouterr().err
    kept = exclude_extra([one, one], 5, [1, 7, 8])
    assert [[sample.name for sample in map(part.samples.__getitem__, range(2))] for part in kept] == [
        ["images/0.png", "images/1.png"],
        ["images/1.png", "images/2.png"],
    ]
    with pytest.raises(ValueError, match="cannot be read"):
        look_at_extra([one], survey_of({"train": [], "val": []}), 5, strict=True)
    wrong = open_one(str(make_set(tmp_path / "wrong", values=(0, 1, 2, 7))))
    with pytest.raises(ValueError, match="extra_data .*7"):
        look_at_extra([wrong], survey_of({"train": [], "val": []}), 5)
