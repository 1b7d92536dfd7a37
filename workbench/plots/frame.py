"""What every figure shares: colours, template, title and caption, and how it is saved."""

from __future__ import annotations

import re
import warnings
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import plotly.graph_objects as go
import plotly.io as pio

from ..types import WorkbenchError

COLOURS = {
    "greedy": "#666666",
    "sampling": "#56B4E9",
    "verifier alone": "#882255",
    "majority": "#0072B2",
    "best_of_n": "#E69F00",
    "best_of_n (head)": "#997700",
    "best_of_n (ORM)": "#44AA99",
    "best_of_n (oracle)": "#332288",
    "weighted_vote": "#CC79A7",
    "beam": "#D55E00",
    "beam (oracle)": "#7A3A00",
    "lookahead": "#7A8B00",
    "dvts": "#1A85FF",
    "mcts": "#4B0092",
    "particle": "#D41159",
    "revisions": "#5D3A9B",
    "adaptive": "#40B0A6",
    "hybrid": "#5C3D1E",
    "outcome": "#009E73",
    "sum": "#B2182B",
    "min": "#5E3C99",
    "chain": "#117733",
    "direct": "#999933",
    "score": "#01665E",
    "label": "#222222",
    "ceiling": "#8C510A",
    "optimal, own pass@1": "#C51B7D",
    "optimal, predicted": "#4D9221",
    "predicted, charged": "#A6761D",
    "optimal, one purse": "#1B4F8A",
    "R = 0.16": "#1B9E77",
    "R = 0.79": "#7570B3",
    "R = 22": "#A50F15",
    "weighted_vote (sums only)": "#7B5D6E",
    "guessing": "#A9A9A9",
    "base": "#4D4D4D",
    "before": "#595959",
    "restart": "#3A7D0A",
    "continued": "#E0457B",
    "rationalise": "#2F6690",
    "mixed": "#E07B00",
    "length": "#7F5539",
    "teaching": "#8B6914",
    "likelihood": "#0B5FA5",
    "taught policy": "#C8553D",
    "head": "#B8860B",
    "head-rollouts": "#6A3D9A",
    "orm": "#2A9D8F",
    "number only": "#9E9E9E",
    "hard labels": "#D1495B",
    "soft labels": "#2E86AB",
    "soft label": "#1F78B4",
    "right steps": "#33A02C",
    "wrong steps": "#E31A1C",
    "right chains": "#238B45",
    "wrong chains": "#CB181D",
}
_SPARE = ("#AA4499", "#6699CC", "#225555", "#BB5566")
INK, FAINT, _SANS = "#222222", "#8a8a8a", "Liberation Sans, Arial, Helvetica, sans-serif"
_AXIS = dict(showgrid=True, gridcolor="#ececec", linecolor=FAINT, showline=True, ticks="outside", ticklen=4)
_AXIS |= dict(tickcolor=FAINT, zeroline=False, tickfont=dict(size=13), automargin=True)
_AXIS |= dict(title=dict(standoff=10, font=dict(size=14)))
pio.templates["workbench"] = go.layout.Template(
    layout=dict(
        font=dict(family=_SANS, size=14, color=INK),
        title=dict(x=0, xref="container", xanchor="left", pad=dict(l=14), yanchor="top", font=dict(size=17)),
        plot_bgcolor="white",
        paper_bgcolor="white",
        showlegend=False,
        hoverlabel=dict(font=dict(family=_SANS), align="left"),
        xaxis=_AXIS,
        yaxis=_AXIS,
        width=760,
        height=460,
    )
)


def colour(method: str) -> str:
    """The one colour of a method name, hex; a name outside COLOURS gets a spare one fixed by its spelling.

    A stage has the colour of what it varies: `reinforce-outcome` that of `outcome`. Left out: a promise that two
    unknown names differ. Give a method that stays its own entry in COLOURS.

    >>> colour("beam"), colour("reinforce-min") == colour("min"), colour("something new") == colour("something new")
    ('#D55E00', True, True)
    """
    known = COLOURS.get(method) or COLOURS.get(method.removeprefix("reinforce-").removeprefix("flywheel-"))
    return known or _SPARE[zlib.crc32(method.encode()) % len(_SPARE)]


def save(fig: go.Figure, path: str | Path, scale: float = 2.0) -> Path:
    """Write a figure as its suffix says: .png (also where there is none), .svg, .pdf, or .html, which needs no network.

    Returns the path written. Where no browser can render it, that is the .html, with a warning. `scale`: pixels per
    figure pixel of a PNG. Errors: another suffix.

    >>> import tempfile
    >>> save(go.Figure(), Path(tempfile.mkdtemp()) / "figures" / "empty.html").name
    'empty.html'
    """
    path = Path(path)
    path = path if path.suffix else path.with_suffix(".png")
    if path.suffix not in (".png", ".svg", ".pdf", ".html"):
        raise WorkbenchError(f"{path.name}: a figure is written as .png, .svg, .pdf or .html")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".html":
        fig.write_html(path, include_plotlyjs=True)
        return path
    try:
        import kaleido  # noqa: F401  plotly would report its absence as a ValueError, like a broken figure

        fig.write_image(path, scale=scale)
    except (ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        kind, path = path.suffix[1:].upper(), path.with_suffix(".html")
        fig.write_html(path, include_plotlyjs=True)
        warnings.warn(f"wrote {path.name}: a {kind} needs kaleido and chromium installed ({reason})", stacklevel=2)
    return path


def frame(fig: go.Figure, title: str, x: str, caption: str) -> go.Figure:
    """Title above, x title and caption below, margins to fit: the same on every figure.

    >>> frame(go.Figure(), "Up", "step", "n = 9").layout.title.text
    'Up'
    """
    width, height = fig.layout.width or 760, fig.layout.height or 460
    head, foot = wrap(title, width / 8.6), wrap(caption, (width - 90) / 5.8)
    more = head.count("<br>")
    top = 52 + 22 * more + 20 * ("xaxis2" in fig.layout)  # panels have titles of their own
    fig.update_layout(
        template="workbench",
        title=dict(text=head, y=1 - (16 + 12 * more) / height),  # plotly moves a title up by half its further lines
        margin=dict(l=72, r=fig.layout.margin.r or 30, t=top, b=66 + 16 * (foot.count("<br>") + 1)),
    )
    fig.update_xaxes(title=x)
    note = dict(xref="paper", yref="paper", x=0, y=0, xanchor="left", yanchor="top", yshift=-52, showarrow=False)
    fig.add_annotation(text=foot, align="left", font=dict(size=12, color="#666666"), **note)
    return fig


def wrap(text: str, width: float) -> str:
    """Break lines at `width` characters as seen: tags count nothing.

    >>> wrap("one <b>two</b> three", 8)
    'one <b>two</b><br>three'
    """
    lines, used = [[]], 0
    for word in text.split():
        seen = len(re.sub(r"<[^>]*>|&\w+;", "", word)) + 1
        if used + seen > width and lines[-1]:
            lines, used = [*lines, []], 0
        lines[-1].append(word)
        used += seen
    return "<br>".join(" ".join(line) for line in lines)


def grouped(things: Iterable, key: Callable) -> dict:
    """{key: the things that have it}, both in the order of their first appearance.

    >>> grouped("abAB", str.lower)
    {'a': ['a', 'A'], 'b': ['b', 'B']}
    """
    groups = defaultdict(list)
    for thing in things:
        groups[key(thing)].append(thing)
    return dict(groups)
