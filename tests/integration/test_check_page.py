"""The report of `qlseg check` in a browser: nothing is asked of any machine, and nothing hangs over the edge."""

import pytest
from made_data import make_folders

from qlseg_hf.cli.main import run


@pytest.mark.parametrize("width", [390, 1280])
def test_no_request_leaves_the_machine(page, tmp_path, width):
    data = make_folders(tmp_path / "data", [0, 1, 2, 255])
    assert run(["check", data, "--output", tmp_path / "out"]) == 0
    report = (tmp_path / "out" / "report.html").as_uri()
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(report)
    page.wait_for_load_state("load")
    sizes = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    overhang = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert page.requests == [report] and page.faults == page.said == []
    assert len(sizes) == 12 and min(sizes) > 0 and overhang == 0
