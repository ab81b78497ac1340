"""The template of cards: every name in it is given, for every kind of card."""

import functools

import jinja2
import pytest
from jinja2 import StrictUndefined, meta
from networks import tiny_config
from recipes import small_recipe

from qlseg_hf import QLSegForSemanticSegmentation, QLSegImageProcessor
from qlseg_hf.hub import card
from qlseg_hf.hub.results import inference_protocol


@pytest.fixture
def strict(monkeypatch):
    """Jinja leaves out what is not given; here it is an error."""
    monkeypatch.setattr(jinja2, "Template", functools.partial(jinja2.Template, undefined=StrictUndefined))


def make_card(kind: str, name: str = "net") -> str:
    model, processor = QLSegForSemanticSegmentation(tiny_config(2)), QLSegImageProcessor()
    if kind == "plain":
        return card.plain_model_card(model, name)
    if kind == "converted":
        parts = {
            "key_families": [(2, "a.*", "b.*")],
            "used": {"a.1": ["b.1"], "a.2": ["b.2"]},
            "dropped": {"c": "why"},
        }
        source = {"source_name": "x.pth", "source_sha256": "0" * 64, "notes": ["A note."]}
        return card.converted_model_card(model, processor, name=name, **source, **parts)
    labels = [{"label": "sky", "iou": 0.5}, {"label": "sea", "iou": None}]
    result = dict.fromkeys(("miou", "macc", "aacc"), 0.5)
    result |= {"miou_interval": [0.4, 0.6], "num_pictures": 2, "per_label": labels}
    result["protocol"] = {"dataset": "d", "dataset_config": None, "split": "val"} | inference_protocol(processor)
    launch = {"num_processes": 1, "precision": "no", "distribution": "none"}
    recipe = small_recipe(max_steps=9)
    return card.trained_model_card(model, processor, name=name, recipe=recipe, step=7, launch=launch, result=result)


SAYS = {
    "plain": ["what was done since is not known here", "| 0 | LABEL\\_0 |", "No accuracy was measured"],
    "converted": ["- file: `x.pth`", "keys: 3, of which 2 used and 1 dropped", "A note.", "| 2 | `a.*` | `b.*` |"],
    "trained": ["Trained for 7 of 9 steps", "| 0 | sky | 50.00 |", "| 1 | sea | - |"],
}
SAYS["trained"] += ["max_steps: 9", "- hardware: 1 x "]
SAYS["converted"] += ["| 1 | `c` | dropped: why |", "| `a.2` | `b.2` |", "| `c` | dropped |"]


@pytest.mark.parametrize("kind", SAYS)
def test_everything_is_given(kind, strict):
    text = make_card(kind)
    for sentence in [*SAYS[kind], "## Licence", "## Measured", 'model="net"', "Pattern Recognition, 2024."]:
        assert sentence in text, sentence
    assert "\n\n\n" not in text and "{{" not in text and "{%" not in text


def test_what_is_given_is_no_template():
    """Names of strangers go into the template's text, and are not read as one."""
    assert 'model="{{ 7 * 7 }}{% x"' in make_card("plain", "{{ 7 * 7 }}{% x")
    assert 'model="net ü 😀"' in make_card("plain", "net ü 😀")  # which JSON's escapes are not in Python
    assert r'model="a\udcff\n"' in make_card("plain", "a\udcff\n")


def test_every_name_of_the_template_is_given(monkeypatch):
    """Also those that stand where no card of the tests comes."""
    given = set()

    def keep(data, template_path, **names):
        given.update(names)
        return ""

    monkeypatch.setattr(card.ModelCard, "from_template", keep)
    for kind in SAYS:
        make_card(kind)
    tree = jinja2.Environment().parse(card.TEMPLATE.read_text(encoding="utf-8"))
    assert meta.find_undeclared_variables(tree) - {"card_data"} == given
