"""Search trees, chains and source code, for a notebook."""

from __future__ import annotations

import html
import inspect
import textwrap
from collections.abc import Callable, Iterable

import plotly.graph_objects as go
from plotly.colors import find_intermediate_color, sample_colorscale

from ..types import Node, Trace, WorkbenchError
from .frame import FAINT, INK, frame, grouped

SCALE = [[0, "#b2182b"], [0.5, "#f4e3b2"], [1, "#1b7837"]]  # wrong, unsure, right


def labelled_tree(nodes: Iterable[Node], title: str | None = None) -> go.Figure:
    """A search tree from left (root) to right, nodes coloured by score and labelled with their step.

    A node through which no finished chain passes is faded: it was pruned, or never finished. A score of None is a
    hollow node; a finished chain ends in a square. The full step is in the hover text. Left out: labels on trees with
    more than 32 leaves.

    >>> from workbench.types import Step
    >>> tree = [Node(), Node((0,), (Step("5", True, score=0.9),), "answer"), Node((1,), (Step("2+", score=0.1),))]
    >>> labelled_tree(tree).layout.title.text
    '3 nodes, 1 finished chain; the best-scored ends in 5 (0.90)'
    """
    found = {node.path: node for node in nodes}
    if not found:
        raise WorkbenchError("no nodes: there is no tree to draw")
    paths = sorted({path[:depth] for path in found for depth in range(len(path) + 1)})
    children = grouped([path for path in paths if path], lambda path: path[:-1])
    alive = {path[:d] for path, node in found.items() if node.finished for d in range(len(path) + 1)}
    height, leaves = {}, 0
    for path in reversed(paths):  # children come before their parent, the last leaf first
        if path in children:
            height[path] = sum(height[child] for child in children[path]) / len(children[path])
        else:
            height[path], leaves = leaves, leaves + 1
    texts = {path: " ".join(node.steps[-1].text.split()) if node.steps else "" for path, node in found.items()}
    labelled, depth = leaves <= 32, max(map(len, paths))
    room = min(24, max(map(len, texts.values())) + 1)  # characters of 6.6 pixels on the way from parent to child
    unit = max(60, 6.6 * room + 36) if labelled else 90
    fig = go.Figure()
    for faded in (True, False):  # the living are drawn over the pruned
        shown = [path for path in paths if (path not in alive) == faded]
        edges = [(path, len(path) - 1, height[path[:-1]]) for path in shown if path]
        fig.add_scatter(
            x=[x for path, left, _ in edges for x in (left, left + 14 / unit, left + 14 / unit, len(path), None)],
            y=[y for path, _, start in edges for y in (start, start, height[path], height[path], None)],
            mode="lines",
            line=dict(color="#d4d4d4" if faded else INK, width=1 if faded else 1.4),
            hoverinfo="skip",
        )
        fig.add_scatter(
            x=[len(path) for path in shown],
            y=[height[path] for path in shown],
            mode="markers",
            marker=dict(
                size=13 if labelled else 9,
                symbol=["square" if path in found and found[path].finished else "circle" for path in shown],
                color=[_shade(found[path].score if path in found else None, faded) for path in shown],
                line=dict(color="#cfcfcf" if faded else FAINT, width=1.2),
                opacity=1,
            ),
            hovertext=[_hover(path, found.get(path)) for path in shown],
            hoverinfo="text",
            cliponaxis=False,
        )
        if labelled:
            fig.add_scatter(
                x=[len(path) - 10 / unit for path in shown],
                y=[height[path] for path in shown],
                mode="text",
                text=[_cut(texts.get(path, ""), room) for path in shown],
                textposition="top left",
                textfont=dict(size=11, color="#a8a8a8" if faded else INK, family="Liberation Mono, monospace"),
                hoverinfo="skip",
            )
    bar = dict(
        title=dict(text="score<br>", side="top", font=dict(size=12)),
        tickfont=dict(size=12),
        thickness=10,
        lenmode="pixels",
        len=130,
        tickvals=[0, 0.5, 1],
    )
    scale = dict(colorscale=SCALE, cmin=0, cmax=1, showscale=True, colorbar=bar | dict(outlinewidth=0), color=[0])
    fig.add_scatter(x=[None], y=[None], mode="markers", marker=scale, hoverinfo="skip")
    fig.update_xaxes(range=[-20 / unit, depth + 20 / unit], tickvals=list(range(depth + 1)), showgrid=False)
    fig.update_yaxes(visible=False, range=[-0.7, leaves - 0.1])
    tall = 150 + (34 if labelled else 14) * leaves
    fig.update_layout(width=max(600, 72 + 110 + unit * depth), height=max(300, tall), margin_r=110)
    ended = [node for node in found.values() if node.finished]
    headline = f"{len(found)} nodes, {len(ended)} finished chain{'s' * (len(ended) != 1)}"
    if scored := [node for node in ended if node.score is not None and node.trace.answer is not None]:
        top = max(scored, key=lambda node: node.score)
        headline += f"; the best-scored ends in {drawable(top.trace.answer)} ({top.score:.2f})"
    note = "Square: finished. Hollow: not scored. Faded: no finished chain passes through."
    return frame(fig, title or headline, "step", note)


def show_steps(*traces: Trace):
    """Traces as an HTML table each, for a notebook: number, step, score and a bar; all text is escaped.

    An unknown score is a dash without a bar. Returns an IPython HTML object.

    >>> from workbench.types import Step
    >>> "2 &lt; 3" in show_steps(Trace((Step("2 < 3", score=0.5), Step("yes", final=True)))).data
    True
    """
    from IPython.display import HTML

    return HTML("".join(_steps_table(trace) for trace in traces))


def show_source(obj: Callable):
    """The source of a package function or class, highlighted, so that a notebook shows it without a pasted copy.

    Returns an IPython HTML object. Errors: an object that has no Python source.

    >>> "height" in show_source(labelled_tree).data
    True
    """
    from IPython.display import HTML
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    try:
        source = textwrap.dedent(inspect.getsource(obj))
    except (TypeError, OSError) as error:
        raise WorkbenchError(f"{obj!r} has no source to show: give a function, class or module") from error
    # styles inline: IPython's own Code object relies on a class name that JupyterLab and marimo do not have
    return HTML(highlight(source, PythonLexer(), HtmlFormatter(noclasses=True)))


def _steps_table(trace: Trace) -> str:
    rows = []
    for i, step in enumerate(trace.steps, 1):
        if step.score is None:
            score, bar = "–", ""
        else:
            width = 100 * min(max(step.score, 0), 1)
            score = f"{step.score:.2f}"
            bar = f'<div style="width:{width:.0f}px;height:10px;background:{_shade(step.score)}"></div>'
        text = html.escape(step.text)
        text = f"<b>{text}</b>" if step.final else text
        cell = "text-align:left;padding:2px 10px;"
        rows.append(
            f'<tr><td style="{cell}color:#888">{"answer" if step.final else i}</td>'
            f'<td style="{cell}font-family:monospace;white-space:pre-wrap">{text}</td>'
            f'<td style="{cell}">{score}</td><td style="{cell}width:110px">{bar}</td></tr>'
        )
    why = {"answer": "", "length": "out of tokens", "cut": "cut off"}[trace.stop]
    if trace.answer is None:
        rows.append(f'<tr><td></td><td colspan="3" style="color:#888">no answer{why and f": {why}"}</td></tr>')
    return f'<table style="border-collapse:collapse;margin:4px 0 12px">{"".join(rows)}</table>'


def _hover(path: tuple[int, ...], node: Node | None) -> str:
    text = drawable(node.steps[-1].text) if node and node.steps else "root" if not path else "not recorded"
    score = "not scored" if node is None or node.score is None else f"score {node.score:.3f}"
    return f"{text}<br>{score}" + (f"<br>{node.stop}" if node and node.stop else "")


def _shade(score: float | None, faded: bool = False) -> str:
    """The colour of a score on SCALE, as plotly itself would mix it; white for an unknown one."""
    if score is None:
        return "#ffffff"
    [colour] = sample_colorscale(SCALE, [min(max(score, 0.0), 1.0)], colortype="tuple")
    mixed = find_intermediate_color(colour, (1.0, 1.0, 1.0), 0.6 * faded)
    return f"rgb({','.join(str(round(255 * part)) for part in mixed)})"


def _cut(text: str, room: int) -> str:
    text = " ".join(text.split())
    return drawable(text if len(text) <= room else text[: room - 1] + "…")


CONTROLS = {code: 0x2400 + code for code in range(32)} | {127: 0x2421}  # to the pictures that Unicode has of them


def drawable(text: str) -> str:
    """Text that a figure may hold: escaped, and control characters as pictures, since no SVG may contain them.

    >>> drawable("a<b\x02")
    'a&lt;b␂'
    """
    return html.escape(text.translate(CONTROLS))
