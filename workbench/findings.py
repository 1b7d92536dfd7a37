"""What was found, claim by claim, as a figure; not in `plots`, or notebooks would depend on all of the package."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from typing import get_args

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .claims import GOAL, Claim, Verdict, over, summed
from .plots.frame import INK, frame
from .scaling import Ratio
from .types import WorkbenchError

_VERDICTS = {"holds": "#1B7837", "fails": "#B2182B", "undecided": "#8A8A8A", "not measured": "#C8C8C8"}
_RINGS = {"": "circle-open", ">=": "arrow-bar-right-open", "<=": "arrow-bar-left-open", "?": "x-thin-open"}


def findings(found: Iterable[Claim] | Mapping[int, Iterable[Claim]]) -> go.Figure:
    """Every claim of one training or of several (`claims.trainings`): its value and interval in the colour of its
    verdict, a ring for each training where there are several, and at the goal a triangle that points where it lies.

    Ratios stand apart, on a log axis, which has no place for 0 or less: such an end is open, such a value a gap, both
    counted. An interval with an open end is drawn from the other one to the value, and the value hollow, as it is
    without an interval. A training that only bounds it is an arrow. A claim that was not measured keeps its line.
    Errors: no claims.

    >>> from workbench.scaling import Estimate
    >>> claim = Claim("a.b", "me", "it works", "> 0", Estimate(0.25, 0.125, 0.375, 50, 2))
    >>> findings([claim]).layout.title.text
    '1 claim: 1 holds'
    """
    told = summed(found)
    if not told:
        raise WorkbenchError("no claims to draw: run the notebooks with `make reproduce`")
    kinds = [[pair for pair in told if isinstance(pair[0].estimate, Ratio) == ratio] for ratio in (False, True)]
    kinds, most = [kind for kind in kinds if kind], max(claim.trainings for claim, _ in told)
    shares = [len(kind) + 2 for kind in kinds]
    fig = make_subplots(len(kinds), 1, row_heights=shares, vertical_spacing=70 / (22 * sum(shares) + 150))
    gaps = 0
    for row, kind in enumerate(kinds, 1):
        for place, (claim, each) in enumerate(kind):
            gaps += _line(fig, claim, each, place, row)
        spans = [over(*pair) if most > 1 and pair[0].estimate else "" for pair in kind]
        alone = [f" ({span})" if span == "problems" or " of " in span else "" for span in spans]
        ids = [html.escape(claim.id) + more for (claim, _), more in zip(kind, alone, strict=True)]
        axis = dict(tickvals=list(range(len(ids))), ticktext=ids, range=[len(ids) - 0.4, -0.6], tickfont=dict(size=12))
        fig.update_yaxes(**axis, row=row, col=1)
        if isinstance(kind[0][0].estimate, Ratio):
            drawn = [x for trace in fig.select_traces(row=row, col=1) for x in trace.x] or [1.0]
            narrow = max(drawn) < 10 * min(drawn)  # no power of ten need lie in it
            fig.update_xaxes(type="log", dtick="D2" if narrow else 1, row=row, col=1)
    count = {verdict: sum(claim.verdict == verdict for claim, _ in told) for verdict in get_args(Verdict)}
    title = f"{len(told)} claim{'s' * (len(told) > 1)}: " + ", ".join(f"{n} {v}" for v, n in count.items() if n)
    means = f"means of up to {most} trainings" if most > 1 else "the first training's numbers"
    rings = "; rings: each training" if any(each for _, each in told) else ""
    rings += "; arrows: it is only a bound" if any("arrow" in str(trace.marker.symbol) for trace in fig.data) else ""
    caption = f"{means}, 95 % intervals{rings}; triangles point to where a claim holds (green; red: fails)."
    caption += f" Ratios and ends of 0 or less, which a log axis has no place for: {gaps}." if gaps else ""
    fig.update_layout(width=860, height=22 * sum(shares) + 190)
    frame(fig, title, "value", caption).layout.annotations[-1].update(xshift=-226)  # under the names, too
    fig.for_each_xaxis(lambda axis: axis.title.update(text="ratio (log scale)") if axis.type == "log" else None)
    return fig.update_layout(margin=dict(l=240))


def _line(fig: go.Figure, claim: Claim, each: Mapping[int, Claim | None], place: int, row: int) -> int:
    """One claim's goal, trainings, interval and value; how many numbers of these its axis has no place for."""
    at, tint, e = {"row": row, "col": 1}, _VERDICTS[claim.verdict], claim.estimate
    if e is None:  # its goal, on whose scale nothing else may be, would only stretch the axis
        return 0
    log = isinstance(e, Ratio)
    values = [end for end in (e.low, e.high) if end is not None]
    ends = [end for end in values if not log or end > 0]
    rings = [(f"seed {seed}: {c.value}", c.estimate) for seed, c in each.items() if c and c.estimate]
    there = [(words, found) for words, found in rings if not log or found.value > 0]
    shown = [e.value] if not log or e.value > 0 else []
    gaps = len(values) - len(ends) + len(rings) - len(there) + 1 - len(shown)
    sign, *goals = GOAL.fullmatch(claim.goal.strip()).groups()
    way = {">": ["right"], "<": ["left"]}.get((sign or "")[:1], ["right", "left"])
    aims = [(float(goal), side) for goal, side in zip(filter(None, goals), way, strict=True)]
    aims = [(goal, side) for goal, side in aims if not log or goal > 0]
    told = f"<b>{html.escape(claim.id)}</b> {claim.verdict}<br>{claim.value} [{claim.interval}], goal {claim.goal}"
    if ends:
        line, x = dict(color=tint, width=3), ends if len(ends) > 1 else sorted([*ends, *shown])
        fig.add_scatter(x=x, y=[place] * len(x), mode="lines", line=line, hoverinfo="skip", **at)
    symbols = [_RINGS[getattr(found, "bound", "")] for _, found in there]
    ring = dict(symbol=symbols, size=8, color=INK, line=dict(width=1))
    words = [words for words, _ in there]
    x = [found.value for _, found in there]
    fig.add_scatter(x=x, y=[place] * len(x), mode="markers", marker=ring, text=words, hoverinfo="text", **at)
    dot = dict(size=10, color=tint, symbol="circle" if len(ends) > 1 else "diamond-open")
    fig.add_scatter(x=shown, y=[place] * len(shown), mode="markers", marker=dot, text=[told], hoverinfo="text", **at)
    mark = dict(symbol=[f"triangle-{side}-open" for _, side in aims], size=12, color="#5A5A5A", line=dict(width=1.5))
    fig.add_scatter(x=[x for x, _ in aims], y=[place] * len(aims), mode="markers", marker=mark, hoverinfo="skip", **at)
    return gaps
