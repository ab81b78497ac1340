"""The report of `qlseg check` in a browser: nothing is asked of any machine, and nothing hangs over the edge."""

import shutil

import pytest
from made_data import make_folders

from qlseg_hf.cli.main import run

pytestmark = pytest.mark.integration
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.parametrize("width", [390, 1280])
def test_no_request_leaves_the_machine(tmp_path, width):
    playwright = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("no browser is installed")
    data = make_folders(tmp_path / "data", [0, 1, 2, 255])
    assert run(["check", data, "--output", tmp_path / "out"]) == 0
    with playwright.sync_playwright() as program:
        browser = program.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800})
        asked, said = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.goto((tmp_path / "out" / "report.html").as_uri())
        page.wait_for_load_state("load")
        sizes = page.evaluate("[...document.images].map(image => image.naturalWidth)")
        overhang = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        browser.close()
    assert asked == [(tmp_path / "out" / "report.html").as_uri()] and said == []
    assert len(sizes) == 12 and min(sizes) > 0 and overhang == 0
