"""Published scores are those of `RELEASES`, wherever a document or a recipe repeats them."""

import re

import pytest
from programs import ROOT

from qlseg_hf import RELEASES


@pytest.mark.parametrize("name", RELEASES)
def test_published_scores(name):
    single, multi = (f"{value:.1f}" for value in RELEASES[name]["miou"])
    training = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    row = next(line for line in training.splitlines() if line.startswith(f"| `{name}` | the paper's"))
    assert re.findall(r"\d+\.\d", row) == [single, multi]
    recipe = (ROOT / "qlseg_hf" / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"Expected mIoU: {single} single scale, {multi} with six scales and flip. Both are the paper's" in recipe


def test_published_scores_in_the_protocol():
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    found = [(float(one), float(many)) for one, many in re.findall(r"(\d\d\.\d) \((\d\d\.\d)[^)]*\)", text)]
    assert found and set(found) <= {entry["miou"] for entry in RELEASES.values()}, found
