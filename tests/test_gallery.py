from __future__ import annotations

import copy
import json
import re

import pytest

from workbench import doctor, gallery, plots, series
from workbench.claims import Claim, record
from workbench.scaling import Estimate

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
FIGURE = {"data": [{"type": "scatter", "x": [1, 2], "y": [3, 4]}], "layout": {"title": {"text": "</script><b>"}}}


@pytest.fixture
def root(tmp_path):
    """An executed notebook as papermill leaves it, written by hand."""
    data = {gallery.PLOTLY: FIGURE, "image/png": PIXEL}
    outputs = [
        {"output_type": "display_data", "data": data, "metadata": {}},
        {"output_type": "stream", "name": "stdout", "text": ["a < b \x1b[31mred\x1b[0m\n"]},
        {"output_type": "execute_result", "data": {"text/html": ["<table></table>"], "text/plain": ["x"]}},
        {"output_type": "error", "traceback": ["Traceback", "ValueError: <x>"]},
    ]
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# Is $a<b$ so?\n", "\n", "It is $\\frac{1}{2}$."]},
        {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": ["seed = 111"], "outputs": []},
        {"cell_type": "code", "metadata": {"tags": ["injected-parameters"]}, "source": ["seed = 222"], "outputs": []},
        {"cell_type": "code", "metadata": {}, "source": ["if 1 < 2:\n", "    fig.show()"], "outputs": outputs},
    ]
    folder = tmp_path / "runs" / "nano" / "notebooks"
    folder.mkdir(parents=True)
    (tmp_path / "notebooks" / "src").mkdir(parents=True)
    (tmp_path / "notebooks" / "src" / "00_one.py").write_text("")
    (folder / "00_one.ipynb").write_text(json.dumps({"cells": cells}))
    (folder / "00_one.json").write_text(json.dumps({"ok": True, "seconds": 75.0, "peak_mb": 512}))
    record(
        tmp_path / "runs", "nano", "00_one", [Claim("a.b", "o1 <report>", "it works", "> 0", Estimate(1, 0.5, 2, 9))]
    )
    return tmp_path


@pytest.fixture(autouse=True)
def browser(request, monkeypatch):
    """A browser starts in tests that say so, and in no other."""
    if request.node.get_closest_marker("browser") is None:
        monkeypatch.setattr(doctor, "browser", lambda: None)


def test_pages_hold_everything(root):
    index = gallery.write("nano", root=root)
    page = (index.parent / "00_one.html").read_text()
    assert "seed = 222" not in page and ">222<" in page and ">111<" not in page, "what was run, not the default"
    assert "<math" in page and "<mfrac>" in page
    assert "a &lt; b" in page and "ValueError: &lt;x&gt;" in page and "<table></table>" in page
    assert "</script><b>" not in page, "a title must not end the script"
    assert '<span class="ansi-red-fg">red</span>' in page
    text = index.read_text()
    assert "1:15 · 0.5 GB" in text and "data:image/png" in text
    assert "it works" in text and 'class="holds"' in text and "o1 &lt;report&gt;" in text


def test_nothing_is_fetched_from_a_network(root):
    index = gallery.write("nano", root=root)
    for path in index.parent.glob("*.html"):
        links = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"')\s>]+)", path.read_text())
        assert links
        for link in links:
            assert link.startswith("data:") or link.startswith("#") or (index.parent / link).exists(), link


def test_current_pages_stay(root):
    page = gallery.write("nano", root=root).parent / "00_one.html"
    page.write_text("mine")
    gallery.write("nano", root=root, anew=False)
    assert page.read_text() == "mine"
    source = root / "runs" / "nano" / "notebooks" / "00_one.ipynb"
    source.write_text(source.read_text().replace("fig.show", "fig.draw"))
    gallery.write("nano", root=root, anew=False)
    assert "draw" in page.read_text()


def test_a_stopped_notebook_says_so(root):
    status = root / "runs" / "nano" / "notebooks" / "00_one.json"
    status.write_text(json.dumps({"ok": False, "error": "cell 3: ValueError: <x>"}))
    assert "stopped: cell 3: ValueError: &lt;x&gt;" in gallery.write("nano", root=root).read_text()
    status.unlink()
    assert "stopped: not finished" in gallery.write("nano", root=root).read_text()


@pytest.fixture
def bare(root):
    """The same notebook before anybody drew its figure."""
    path = root / "runs" / "nano" / "notebooks" / "00_one.ipynb"
    path.write_text(path.read_text().replace(f', "image/png": "{PIXEL}"', ""))
    assert "image/png" not in path.read_text()
    return path


@pytest.mark.browser
def test_figures_get_images_once(bare):
    if doctor.browser() is None:
        pytest.skip("no Chromium here: see `python -m workbench doctor`")
    assert gallery.illustrate([bare]) == 1
    image = json.loads(bare.read_text())["cells"][3]["outputs"][0]["data"]["image/png"]
    assert gallery._is_png(image) and len(image) > 5000
    assert gallery.illustrate([bare]) == 0


@pytest.mark.browser
def test_a_figure_that_cannot_be_drawn_costs_no_other(bare, capsys):
    """Bug: a control character that an untrained policy wrote into one figure left all of a series without images."""
    if doctor.browser() is None:
        pytest.skip("no Chromium here: see `python -m workbench doctor`")
    book = json.loads(bare.read_text())
    good = book["cells"][3]["outputs"][0]
    bad = copy.deepcopy(good)
    bad["data"][gallery.PLOTLY]["layout"]["title"] = {"text": "a\x02b"}
    book["cells"][3]["outputs"] = [bad, good]
    bare.write_text(json.dumps(book))
    assert gallery.illustrate([bare]) == 1 and "1 of 2 figures have no PNG" in capsys.readouterr().out
    outputs = json.loads(bare.read_text())["cells"][3]["outputs"]
    assert ["image/png" in o["data"] for o in outputs] == [False, True]
    good["data"][gallery.PLOTLY]["layout"]["title"] = {"text": plots.trees.drawable("a\x02b")}
    book["cells"][3]["outputs"] = [good]
    bare.write_text(json.dumps(book))
    assert gallery.illustrate([bare]) == 1


@pytest.mark.browser
def test_figures_are_files_too(bare):
    """Bugs: a figure of another page; one that is no longer there; a link to nothing."""
    if doctor.browser() is None:
        pytest.skip("no Chromium here: see `python -m workbench doctor`")
    place = bare.parents[1] / "gallery" / "figures"
    place.mkdir(parents=True)
    (place / "00-7.svg").write_text("old")
    page = (gallery.write("nano", root=bare.parents[3]).parent / "00_one.html").read_text()
    assert sorted(path.name for path in place.iterdir()) == ["00-1.png", "00-1.svg"]
    assert 'href="figures/00-1.svg"' in page and 'href="figures/00-1.png"' in page
    svg = (place / "00-1.svg").read_text()
    assert svg.startswith("<svg") and "<path" in svg and (place / "00-1.png").read_bytes()[:4] == b"\x89PNG"
    (place / "00-1.svg").unlink()
    gallery.write("nano", root=bare.parents[3], anew=False)
    assert (place / "00-1.svg").exists(), "the page was current, its figure was never drawn"


def test_a_browser_that_does_not_start_spoils_nothing(bare, monkeypatch, capsys):
    before = bare.read_text()
    monkeypatch.setattr(doctor, "browser", lambda: "/nowhere/chromium")
    assert gallery.illustrate([bare]) == 0
    said = capsys.readouterr().out
    assert "1 figures stay without an image" in said and said.count("\n") == 1
    monkeypatch.setattr(doctor, "browser", lambda: None)
    assert gallery.illustrate([bare]) == 0
    assert bare.read_text() == before


def test_without_an_image_the_card_draws_the_figure_itself(bare, monkeypatch):
    monkeypatch.setattr(doctor, "browser", lambda: None)
    text = gallery.write("nano", root=bare.parents[3]).read_text()
    assert "Plotly.newPlot" in text and '<script src="plotly.min.js"' in text and '"staticPlot": true' in text


def test_nothing_has_run(tmp_path):
    assert "make reproduce" in gallery.write("nano", root=tmp_path).read_text()


@pytest.mark.parametrize("text", ["$\\frac{$", "$\\left( x$", "$x^$", "$\\begin{matrix} a $", "$$\\genfrac{a}{b}$$"])
def test_a_formula_that_cannot_be_read_stays_as_text(text):
    assert "<" in gallery.prose(text)


@pytest.mark.browser
def test_in_a_browser_without_network(root):
    browser = doctor.browser()
    if browser is None:
        pytest.skip("no Chromium here: see `python -m workbench doctor`")
    sync_api = pytest.importorskip("playwright.sync_api")
    index = gallery.write("nano", root=root)
    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"]
    with sync_api.sync_playwright() as play:
        window = play.chromium.launch(executable_path=browser, args=flags, timeout=120_000)
        page, trouble = window.new_page(), []
        page.set_default_timeout(120_000)  # the machine may be busy
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: trouble.append(request.url) if request.url.startswith("http") else None)
        page.goto(index.as_uri())
        assert page.locator(".card img").evaluate("image => image.naturalWidth") == 1
        page.wait_for_selector(".picture .main-svg")  # the claims
        page.click(".card")
        page.wait_for_selector(".figure .main-svg")
        assert page.locator("math").count() >= 1
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing sticks out"
        window.close()
    assert not trouble


def test_unknown_profile(tmp_path):
    with pytest.raises(series.WorkbenchError, match="unknown profile"):
        gallery.write("nanu", root=tmp_path)
