"""Names of labels and files that attackers chose: shown as text, wherever they are shown."""

import json

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from networks import tiny_config
from PIL import Image

from qlseg_hf import QLSegForSemanticSegmentation, QLSegImageProcessor
from qlseg_hf.app import page as app
from qlseg_hf.cli.errors import exit_status
from qlseg_hf.data.check import check_labels_of_dataset
from qlseg_hf.evaluation.evaluator import describe_scores
from qlseg_hf.evaluation.examples import Examples, draw_example
from qlseg_hf.evaluation.metrics import StreamingScores
from qlseg_hf.evaluation.report import write_evaluation_report
from qlseg_hf.hub.card import plain_model_card
from qlseg_hf.utils.visualization import draw_overlay, label_colors

NAMES = {
    "tag": "<script>alert(1)</script>",
    "link": "[a](javascript:alert(1))",
    "table": "a|b||c",
    "code": "``` `` ` `a`",
    "newline": "a\n\n# Title\n",
    "front matter": "a\n---\nlicense: mit\n---\n",
    "escape codes": "\x1b[2J\x1b[31mred\x1b]0;title\x07",
    "direction": "abc\u202egnp.exe",
    "line separators": "a\u2028b\u2029c\x85d",
    "null": "a\0b",
    "formula": "=cmd|'/c calc'!A0",
    "template": "{{7*7}} ${x} {% x %}",
    "yaml": "!!python/object/apply:os.system [x]",
    "html comment": "<!-- x",
    "long": "x" * 100_000,
    "surrogate": "a\udc80b",
    "empty": "",
    "several": "<script>alert(1)</script> a|b\n```\n*c* [d](e)",
}


@pytest.mark.parametrize("name", NAMES)
def test_names(name, tmp_path, capsys):
    """In a card (Markdown and its YAML), in a terminal, in a legend, on the page."""
    text = NAMES[name]
    config = tiny_config(2, id2label={0: text, 1: "sky"})
    model = QLSegForSemanticSegmentation(config)
    text_of_card = plain_model_card(model, f"folder {text[:50]}")
    card = ModelCard(text_of_card)  # raises if the metadata are no YAML
    assert card.data.license == "unknown" and set(card.data.to_dict()) == set(
        ModelCard(plain_model_card(QLSegForSemanticSegmentation(tiny_config(2)), "net")).data.to_dict()
    )
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.text)
    assert page.count("<tr>") == 3 and page.count("<h1>") == 1 and page.count("<details>") == 1
    for forbidden in ("<script", "<img", "<a href", "<!--", "\x1b", "\u202e"):
        assert forbidden not in page
    assert page.count("</details>") == 1
    capsys.readouterr()
    exit_status("tool", lambda: (_ for _ in ()).throw(ValueError(f"label {text!s:.200}")))
    lines = capsys.readouterr().err
    assert lines.endswith("\n") and all(sign.isprintable() for sign in lines[:-1])
    picture = np.zeros((30, 40, 3), dtype=np.uint8)
    overlay = draw_overlay(picture, np.zeros((30, 40), dtype=int), config.id2label, label_colors(config))
    assert overlay.width < 2000
    view = app.view_of(picture, torch.zeros(30, 40, dtype=torch.long), config)
    assert json.loads(json.dumps(view))["legend"][0][1] == text and f"<{text}>" not in app.VIEWER["html"]
    model.save_pretrained(tmp_path / "net")
    assert QLSegForSemanticSegmentation.from_pretrained(tmp_path / "net").config.id2label == {0: text, 1: "sky"}
    assert (tmp_path / "net" / "README.md").read_bytes() == plain_model_card(model, "net").encode()


def test_names_of_files_in_reports(tmp_path):
    """A data set's names of pictures become text of a page, and lines of a terminal."""
    image, names = Image.new("RGB", (4, 4)), [*NAMES.values(), "a" * 300 + ".png"]
    labels = np.arange(16).reshape(4, 4) % len(names)
    config = tiny_config(len(names), id2label=dict(enumerate(names)))
    examples = [draw_example((0.5, 0, name), np.asarray(image), labels, labels, config, 800) for name in names]
    scores = StreamingScores(len(names))
    scores.update(np.zeros((2, 2), dtype=int), np.array([[0, 1], [0, 1]]), 0)
    result = describe_scores(scores, names, QLSegImageProcessor(do_reduce_labels=False)) | {"unreadable": names}
    write_evaluation_report(tmp_path / "r.html", result, examples=Examples(examples, []), title=NAMES["escape codes"])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count("<h1>") == 1 and page.count("<figure>") == 2 * len(names) + 1
    for forbidden in ("<script", "<a href", "<!--", "\x1b", "\u202e"):
        assert forbidden not in page

    class Sample:
        name = NAMES["escape codes"]

        def read(self, **reading):
            return np.zeros((2, 2, 3), dtype=np.uint8), np.full((2, 2), 99)

        def read_palette(self):
            return {}

        def is_turned(self):
            return False

        def read_bits(self):
            return 8

    names = ["a", NAMES["direction"]]
    report = str(check_labels_of_dataset([Sample()], QLSegImageProcessor(), names, show_progress=False))
    assert "values that are no labels" in report and all(line.isprintable() for line in report.splitlines())
