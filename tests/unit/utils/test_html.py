"""Reports in one HTML file."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from qlseg_hf.utils.html import Gallery, Legend, Picture, Section, Table, render_report, write_report


def sections():
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    table = Table(["label", "pixels", "IoU"], [["<b>road</b>", 12, 0.5], ["sky", 3, None]], bar="IoU")
    return [
        Section("Labels", ["text & more", table]),
        Section("Images", [Gallery([Picture(image, 'a"b')])]),
        Section("-"),
    ]


def test_everything_is_escaped_and_inside():
    text = render_report("<script>", [("images", "<i>")], sections())
    assert "<script" not in text and "<i>" not in text.replace("<i style", "") and "<b>" not in text
    assert "&lt;b&gt;road&lt;/b&gt;" in text and "text &amp; more" in text
    assert not re.search(r"(src|href)=.(?!data:)", text) and "http" not in text and "@import" not in text
    assert "<h2>-</h2>" not in text  # it holds nothing


def test_bars_and_numbers():
    text = render_report("report", [], sections())
    assert "width: 50.0%" in text and "50.0 %" in text and '<td class="number">12</td>' in text
    assert "<td>-</td>" in text  # not defined


@pytest.mark.parametrize("is_photo", [False, True])
def test_images_come_back(is_photo):
    image = Image.new("RGB", (8, 6), (200, 30, 40))
    kind, _, data = Picture(image, is_photo=is_photo).address.partition(";base64,")
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)
    assert kind == ("data:image/jpeg" if is_photo else "data:image/png")
    assert np.abs(found - np.asarray(image)).max() <= (4 if is_photo else 0)


def test_legend():
    text = render_report("report", [], [Section("Labels", [Legend([("<sky>", "#0102ff")])])])
    assert '<i style="background: #0102ff"></i>&lt;sky&gt;</li>' in text


def test_written_file(tmp_path):
    write_report(tmp_path / "report.html", "é", [("a", 1)], [])
    assert "<title>é</title>" in (tmp_path / "report.html").read_text(encoding="utf-8")
