"""Executed notebooks as web pages that need no network: figures, scripts and formulas all lie in the folder."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import doctor, series
from .lanes import clock

PLOTLY, WIDGET = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"

STYLE = """
:root { --ink: #1c2430; --soft: #5d6877; --line: #dfe4ea; --paper: #fff; --back: #f6f7f9; --mark: #2458c5;
  --good: #1a7f37; --bad: #b42318; }
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.6 system-ui, "DejaVu Sans", sans-serif }
a { color: var(--mark); text-decoration: none } a:hover { text-decoration: underline }
header, main { max-width: 940px; margin: 0 auto; padding: 0 24px } main { padding-bottom: 64px }
.index header, .index main { max-width: 1180px }
header { padding-top: 28px; padding-bottom: 12px } nav { display: flex; gap: 20px; font-size: 14px; flex-wrap: wrap }
nav span { color: var(--soft) }
h1 { font-size: 30px; line-height: 1.25; margin: 12px 0 } h2 { margin: 40px 0 8px; font-size: 22px }
h3 { margin: 28px 0 4px; font-size: 18px } p { margin: 10px 0 } .soft { color: var(--soft); font-size: 14px }
.grid { display: grid; gap: 20px; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); margin: 20px 0 }
.card { display: flex; flex-direction: column; background: var(--paper); border: 1px solid var(--line);
  border-radius: 10px; overflow: hidden; color: inherit }
.card:hover { border-color: var(--mark); text-decoration: none; box-shadow: 0 4px 16px #1c243014 }
.thumb { height: 210px; display: flex; align-items: center; justify-content: center; background: #fff;
  border-bottom: 1px solid var(--line); overflow: hidden; color: var(--soft) }
.thumb img { max-width: 100%; max-height: 100% } .thumb .figure { width: 100%; height: 210px }
.card .words { padding: 14px 16px } .card strong { display: block; line-height: 1.35; margin: 2px 0 6px }
pre { margin: 0; font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap;
  overflow-wrap: anywhere }
code { font: .9em ui-monospace, "DejaVu Sans Mono", monospace; background: #eceff3; padding: 1px 4px;
  border-radius: 4px }
pre code { background: none; padding: 0 }
.code, .prose pre { background: var(--paper); border: 1px solid var(--line); border-left: 3px solid #b9c4d6;
  border-radius: 6px; padding: 10px 14px; margin: 14px 0 6px; overflow-x: auto }
.out { margin: 6px 0 14px; padding-left: 17px; overflow-x: auto } .out img { max-width: 100% }
.picture { background: #fff; border: 1px solid var(--line); border-radius: 6px; padding: 8px }
.ansi-bold { font-weight: 600 } .ansi-red-fg, .ansi-red-intense-fg { color: var(--bad) }
.ansi-green-fg, .ansi-green-intense-fg { color: var(--good) } .ansi-blue-fg, .ansi-cyan-fg { color: var(--mark) }
.error { color: var(--bad) } .stderr { color: var(--soft) }
.anchor-link { display: none } .scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: 14px; margin: 12px 0; background: var(--paper) }
th, td { border-bottom: 1px solid var(--line); padding: 6px 12px; text-align: left; vertical-align: top }
th { color: var(--soft); font-weight: 600 } td.number { white-space: nowrap; font-variant-numeric: tabular-nums }
.holds { color: var(--good); font-weight: 600 } .fails { color: var(--bad); font-weight: 600 }
.undecided { color: var(--soft) } math[display=block] { margin: 14px 0 } blockquote { margin: 12px 0;
  padding: 2px 16px; border-left: 3px solid var(--line); color: var(--soft) }
.files { margin: 0; text-align: right; font-size: 12px }
"""


def write(profile: str = "nano", runs: str | Path | None = None, root: Path = series.ROOT, anew: bool = True) -> Path:
    """One page for each executed notebook and an index; returns the index. Without `anew`, current pages stay."""
    series.check_profile(profile)
    folder = series.runs_folder(runs, root) / profile
    place = folder / "gallery"
    place.mkdir(parents=True, exist_ok=True)
    names = [name for name in series.names(root) if (folder / "notebooks" / f"{name}.ipynb").exists()]
    illustrate([folder / "notebooks" / f"{name}.ipynb" for name in names])
    statuses = {name: series.read_status(folder / "notebooks" / f"{name}.json") for name in names}
    books, stale, cards, browser = {}, [], [], doctor.browser()
    for name in names:
        source, page = folder / "notebooks" / f"{name}.ipynb", place / f"{name}.html"
        books[name] = json.loads(source.read_text(encoding="utf-8"))["cells"]
        undrawn = browser and PLOTLY in source.read_text("utf-8") and not [*place.glob(f"figures/{name[:2]}-*.svg")]
        if anew or undrawn or not page.exists() or page.stat().st_mtime < source.stat().st_mtime:
            stale.append(name)
    files = export(place / "figures", {name: books[name] for name in stale})
    for number, (name, cells) in enumerate(books.items()):
        if name in stale:
            near = {"before": names[number - 1] if number else None, "after": (names[number + 1 :] or [None])[0]}
            series.write(place / f"{name}.html", _page(name, profile, cells, statuses[name], files, **near))
        cards.append(_card(name, cells, statuses[name]))
    script = place / "plotly.min.js"
    if not script.exists():
        shutil.copyfile(_plotly_script(), script)
    series.write(place / "index.html", _index(profile, cards, folder.parent, statuses, root))
    return place / "index.html"


def illustrate(paths: Iterable[Path]) -> int:
    """Put an image beside every figure that executed notebooks hold as data, for viewers that run no script.

    One browser draws them all; without one they stay as they are. Returns how many were drawn.
    """
    books = {path: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    outputs = [(path, o) for path, book in books.items() for cell in book["cells"] for o in cell.get("outputs", ())]
    bare = [(path, o["data"]) for path, o in outputs if PLOTLY in o.get("data", {}) and "image/png" not in o["data"]]
    browser = doctor.browser()
    if not bare or browser is None:
        return 0
    images = _draw([data[PLOTLY] for _, data in bare], browser)
    if isinstance(images, str):
        print(f"{len(bare)} figures stay without an image: {browser} did not draw them ({images})")
        return 0
    for (_, data), image in zip(bare, images, strict=True):
        if image:
            data["image/png"] = image
    for path in {path for path, _ in bare}:
        series.write(path, json.dumps(books[path], indent=1, ensure_ascii=False) + "\n")
    return len(bare) - images.count(None)


def export(place: Path, books: Mapping[str, list]) -> dict[int, str]:
    """Every figure of executed notebooks (name: cells) as `place/NN-number.png` and `.svg`, to be printed elsewhere.

    Those that stood there of these notebooks go first. Without a browser there is no SVG, and a PNG only where the
    notebook holds one. Returns {id of the output: its file's name without the end, as a page links it}.
    """
    drawn: dict[Path, Mapping[str, Any]] = {}
    for name, cells in books.items():
        for old in place.glob(f"{name[:2]}-*"):
            old.unlink()
        outputs = [o for cell in cells for o in cell.get("outputs", ()) if PLOTLY in o.get("data", {})]
        drawn |= {place / f"{name[:2]}-{n}": o for n, o in enumerate(outputs, 1) if "image/png" in o["data"]}
    browser = doctor.browser()
    if not drawn:
        return {}
    place.mkdir(parents=True, exist_ok=True)
    for path, output in drawn.items():
        path.with_suffix(".png").write_bytes(base64.b64decode("".join(output["data"]["image/png"])))
    images = _draw([o["data"][PLOTLY] for o in drawn.values()], browser, "svg") if browser else "there is none"
    if isinstance(images, str):
        print(f"{len(drawn)} figures are not written as SVG: no browser drew them ({images})")
        return {}
    linked = [(path, output, image) for (path, output), image in zip(drawn.items(), images, strict=True) if image]
    for path, _, image in linked:
        path.with_suffix(".svg").write_bytes(base64.b64decode(image))
    return {id(output): f"{place.name}/{path.name}" for path, output, _ in linked}


_DRAW = """
import asyncio, base64, json, sys
from kaleido import Kaleido

async def draw(figures, browser, script, form):
    async with Kaleido(path=browser, plotlyjs=script, mathjax=False, timeout=None) as kaleido:
        images = []
        for figure in figures:
            try:
                image = await kaleido.calc_fig(figure, opts={"format": form, "scale": 2})
                images.append(base64.b64encode(image).decode())
            except Exception as error:  # whatever one figure does to a browser costs that figure alone
                images.append(None)
                print(f"a figure is not drawn ({type(error).__name__}: {error})", file=sys.stderr)
    return images

print(json.dumps(asyncio.run(draw(json.load(sys.stdin), *sys.argv[1:]))))
"""  # with our own script and no formulas, so that drawing works without a network


def _draw(figures: list[Mapping[str, Any]], browser: str, form: str = "png") -> list[str | None] | str:
    """Images in base64, None for one that cannot be drawn; or why there is none at all. In a process of its own, since
    a browser that fails may hang its caller."""
    command = [sys.executable, "-c", _DRAW, browser, str(_plotly_script()), form]
    plain = json.dumps([{"data": figure["data"], "layout": figure["layout"]} for figure in figures])
    try:
        limit = 120 + 10 * len(figures)
        done = subprocess.run(command, input=plain, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"not within {limit} s"
    if done.returncode:
        return (done.stderr.strip() or "no message").split("\n")[-1][:200]
    images = json.loads(done.stdout.strip().split("\n")[-1])
    if failed := images.count(None):
        why = next((line for line in done.stderr.split("\n") if "is not drawn" in line), "no message")
        print(f"{failed} of {len(images)} figures have no {form.upper()}: {why[:200]}")
    return images


def _plotly_script() -> Path:
    from importlib.util import find_spec

    return Path(find_spec("plotly").origin).parent / "package_data" / "plotly.min.js"


# --- one notebook ------------------------------------------------------------------------------------------------


def _page(
    name: str,
    profile: str,
    cells: list,
    status: Mapping[str, Any],
    files: Mapping[int, str],
    before: str | None,
    after: str | None,
) -> str:
    from pygments.formatters import HtmlFormatter

    links = ['<a href="index.html">All notebooks</a>', f"<span>{html.escape(f'{profile} · {_spent(status)}')}</span>"]
    links += [f'<a href="{before}.html">← {before[:2]}</a>'] if before else []
    links += [f'<a href="{after}.html">{after[:2]} →</a>'] if after else []
    settled = any("injected-parameters" in series.tags(cell) for cell in cells)  # then the defaults say nothing
    body = "\n".join(_cell(cell, files) for cell in cells if not (settled and "parameters" in series.tags(cell)))
    head = f"<style>{HtmlFormatter().get_style_defs('.code')}</style>" + _script(body)
    return _document(series.title(cells), f"<header><nav>{''.join(links)}</nav></header><main>{body}</main>", head)


def _script(body: str) -> str:
    return '<script src="plotly.min.js" charset="utf-8"></script>' if "Plotly.newPlot" in body else ""


def _cell(cell: Mapping[str, Any], files: Mapping[int, str]) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return f'<div class="prose">{prose(source)}</div>'
    if cell["cell_type"] != "code" or not source.strip():
        return ""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    code = highlight(source, PythonLexer(), HtmlFormatter(nowrap=True))
    shown = "".join(_output(output, files.get(id(output))) for output in cell["outputs"])
    return f'<div class="code"><pre>{code}</pre></div>' + (f'<div class="out">{shown}</div>' if shown else "")


def prose(text: str) -> str:
    """Markdown to HTML; formulas become MathML, which browsers draw without a script.

    >>> "<math" in prose("an average $\\\\frac{a}{b}$"), "<math" in prose("`$a$` costs $5 or $6")
    (True, False)
    """
    from nbconvert.filters.markdown_mistune import markdown2html_mistune

    parts = re.split(r"(<pre.*?</pre>|<code.*?</code>)", markdown2html_mistune(text), flags=re.DOTALL)
    for n in range(0, len(parts), 2):  # the odd ones are code
        parts[n] = re.sub(r"\$\$(.+?)\$\$", lambda m: _math(m[1], "block"), parts[n], flags=re.DOTALL)
        parts[n] = re.sub(r"\$(?=\S)([^$\n]+?)(?<=\S)\$(?!\d)", lambda m: _math(m[1], "inline"), parts[n])
    return "".join(parts)


def _math(latex: str, display: str) -> str:
    from latex2mathml import exceptions
    from latex2mathml.converter import convert

    unreadable = tuple(kind for kind in vars(exceptions).values() if isinstance(kind, type))
    try:
        return convert(html.unescape(latex), display=display)
    except (*unreadable, KeyError, IndexError, ValueError):
        return f"<code>{latex}</code>"


def _output(output: Mapping[str, Any], file: str | None) -> str:
    from nbconvert.filters import ansi2html

    if output["output_type"] == "stream":
        return f'<pre class="{output["name"]}">{ansi2html("".join(output["text"]))}</pre>'
    if output["output_type"] == "error":
        return f'<pre class="error">{ansi2html(chr(10).join(output["traceback"]))}</pre>'
    data = output["data"]
    if PLOTLY in data:
        shown = _figure(data[PLOTLY], data.get("image/png"))
        return f'<div class="picture">{shown}{_files(file)}</div>'
    if "text/html" in data:
        return "".join(data["text/html"])
    if "image/svg+xml" in data:
        return f'<div class="picture">{"".join(data["image/svg+xml"])}</div>'
    if "image/png" in data:
        return f'<div class="picture">{_image(data["image/png"])}</div>'
    if "text/markdown" in data:
        return f'<div class="prose">{prose("".join(data["text/markdown"]))}</div>'
    if WIDGET in data:
        return '<p class="soft">A widget stands here: open the notebook to use it.</p>'
    return f"<pre>{ansi2html(''.join(data.get('text/plain', '')))}</pre>"


def _files(stem: str | None) -> str:
    links = " · ".join(f'<a href="{stem}.{form}" download>{form.upper()}</a>' for form in ("svg", "png"))
    return f'<p class="files">{links}</p>' if stem else ""


def _image(png: str) -> str:
    return f'<img alt="figure" src="data:image/png;base64,{"".join(png).strip()}">'


def _figure(figure: Mapping[str, Any], png: str | None, still: bool = False) -> str:
    """A live figure from the data in the notebook, with its image for browsers that run no script."""
    layout = dict(figure["layout"])
    config = {"responsive": True, "displaylogo": False, "staticPlot": still}
    if still:
        layout |= {"title": None, "showlegend": False, "margin": {"l": 36, "r": 12, "t": 12, "b": 28}}
        layout |= {"height": 210, "width": None, "autosize": True, "annotations": []}
    height = int(layout.get("height") or 450)
    # "</" would end the script element in the middle of a string
    arguments = ", ".join(json.dumps(part).replace("</", "<\\/") for part in (figure["data"], layout, config))
    fallback = f"<noscript>{_image(png)}</noscript>" if png else ""
    return (
        f'<div class="figure" style="height: {height}px"></div>'
        f"<script>Plotly.newPlot(document.currentScript.previousElementSibling, {arguments})</script>{fallback}"
    )


# --- the index ---------------------------------------------------------------------------------------------------


def _index(profile: str, cards: list[str], runs: Path, statuses: Mapping[str, Mapping[str, Any]], root: Path) -> str:
    seconds = sum(status.get("seconds", 0) for status in statuses.values())
    peak = max([status.get("peak_mb", 0) for status in statuses.values()], default=0) / 1024
    about = f"{len(cards)} notebooks at profile {profile}: {clock(seconds)} in all, {peak:.1f} GB at peak."
    none = "<p>No notebook has run yet: <code>make reproduce</code></p>"
    body = (
        f'<header><h1>workbench</h1><p class="soft">{html.escape(about)}</p></header>'
        f'<main><div class="grid">{"".join(cards) or none}</div>{_claims(runs, profile, root)}</main>'
    )
    return _document(f"workbench · {profile}", body, _script(body), "index")


def _card(name: str, cells: list, status: Mapping[str, Any]) -> str:
    return (
        f'<a class="card" href="{name}.html"><div class="thumb">{_thumbnail(cells)}</div><div class="words">'
        f'<span class="soft">{name[:2]}</span><strong>{html.escape(series.title(cells))}</strong>'
        f'<span class="soft">{html.escape(_spent(status))}</span></div></a>'
    )


def _thumbnail(cells: Iterable[Mapping[str, Any]]) -> str:
    for cell in cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data and _is_png(data["image/png"]):
                return _image(data["image/png"])
            if PLOTLY in data:
                return _figure(data[PLOTLY], None, still=True)
    return "<span>no figure</span>"


def _is_png(text: str | list[str]) -> bool:
    return base64.b64decode("".join(text))[:4] == b"\x89PNG"


def _spent(status: Mapping[str, Any]) -> str:
    if status.get("ok"):
        return f"{clock(status['seconds'])} · {status['peak_mb'] / 1024:.1f} GB"
    return "stopped: " + (status["error"] if status.get("error") else "not finished")


def _claims(runs: Path, profile: str, root: Path) -> str:
    from .claims import HEADS, rows
    from .findings import findings

    found = series.trainings(profile, runs, root=root)[0]
    lines, heads = [], (HEADS[-2], *HEADS[1:-2], HEADS[-1])
    for name, verdict, *numbers, text, source in rows(found):
        row = [f'<td>{html.escape(text)}<br><span class="soft">{html.escape(name)}</span></td>']
        row.append(f'<td class="{verdict}">{verdict}</td>')
        row += [f'<td class="number">{html.escape(cell)}</td>' for cell in numbers]
        lines.append(f"<tr>{''.join(row)}<td>{html.escape(source)}</td></tr>")
    if not lines:
        return ""
    head = "".join(f"<th>{name}</th>" for name in heads)
    picture = f'<div class="picture">{_figure(json.loads(findings(found).to_json()), None)}</div>'
    return f'<h2>What was found</h2>{picture}<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _document(title: str, body: str, head: str = "", kind: str = "") -> str:
    return (
        f'<!doctype html><html lang="en" class="{kind}"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style>{head}</head>'
        f"<body>{body}</body></html>\n"
    )
