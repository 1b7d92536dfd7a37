"""Numbers against compute, samples, steps, levels and depth."""

from __future__ import annotations

import html
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real

import plotly.graph_objects as go
from plotly.colors import hex_to_rgb
from plotly.subplots import make_subplots

from ..judging import Choice, Depth
from ..scaling import Bin, Estimate, Point, PowerLaw, by_level, calibration_error
from ..types import Record, WorkbenchError
from .frame import FAINT, INK, colour, frame, grouped

_UNITS = {"flops": "FLOPs per problem", "tokens": "tokens per problem", "sampled": "sampled tokens per problem"}
_UNITS |= {"seconds": "seconds per problem"}


def accuracy_vs_flops(
    points: Sequence[Point], title: str | None = None, baseline: float | Estimate | None = None
) -> go.Figure:
    """Accuracy against compute per problem on a log axis: one line a method with its 95 % band, n at every point.

    `points` come from `scaling.curve`; `baseline` is one sample's accuracy, drawn as a dashed line. The default title
    names the best point and the best that another method reaches within its budget. Errors: no points, mixed axes.

    >>> points = [Point("beam", n, 1e6 * n, Estimate(0.4 + n / 50, 0.3, 0.7, 90)) for n in (1, 4, 16)]
    >>> accuracy_vs_flops(points).layout.title.text
    'beam goes from 42% to 72% accuracy between 10<sup>6</sup> and 1.6·10<sup>7</sup> FLOPs per problem'
    """
    if not points or len({point.axis for point in points}) > 1:
        raise WorkbenchError("a compute curve needs points, all over the same axis")
    unit = _UNITS.get(points[0].axis, points[0].axis)
    fig = go.Figure()
    _log_ticks(fig, [point.x for point in points])
    _finish(fig, _methods(fig, points, unit), baseline, "{:.0%}")
    fig.update_yaxes(title="accuracy", tickformat=".0%")
    estimates = [point.accuracy for point in points]
    return frame(fig, title or _best_point(points, unit), f"{unit} (log scale)", _caption(estimates))


def two_axes(train: Sequence[Point], test: Sequence[Point], title: str | None = None) -> go.Figure:
    """o1's picture with numbers: accuracy against the FLOPs of all training (left) and of each question (right).

    Both sides are `scaling.curve` of records, those on the left with training FLOPs as their cost, best of the same
    problems and the same decoding. The default title has how far each side goes. Errors: no points on a side.

    >>> sides = ([Point(m, 1, x, Estimate(x / 20, 0.1, 0.9, 90)) for x in (2.0, 9.0)] for m in ("teaching", "majority"))
    >>> two_axes(*sides).layout.title.text
    'training takes accuracy from 10% to 45%, test time from 10% to 45%'
    """
    if not train or not test:
        raise WorkbenchError("two axes need points on both: curves of training, and of searches at test time")
    names = ("training, all questions", "test time, each question")
    fig = make_subplots(1, 2, subplot_titles=names, horizontal_spacing=0.25)
    for note, left in zip(fig.layout.annotations, (0, 0.625), strict=True):
        note.update(x=left, xanchor="left", font=dict(size=14))
    found = []
    for col, points in ((1, train), (2, test)):
        _log_ticks(fig, [point.x for point in points], row=1, col=col)
        _finish(fig, _methods(fig, points, "FLOPs", row=1, col=col), row=1, col=col)
        heights = [point.accuracy.value for point in points]
        found.append(f"from {min(heights):.0%} to {max(heights):.0%}")
    ends = [end for axis in (fig.layout.yaxis, fig.layout.yaxis2) for end in axis.range]
    fig.update_yaxes(range=[min(ends), max(ends)], tickformat=".0%")
    fig.update_yaxes(title="accuracy", row=1, col=1)
    title = title or f"training takes accuracy {found[0]}, test time {found[1]}"
    return frame(fig, title, "FLOPs (log scale)", _caption([p.accuracy for p in (*train, *test)]))


def coverage(
    curves: Mapping[str, Sequence[tuple[int, Estimate]]],
    baseline: float | Estimate | None = None,
    laws: Mapping[str, PowerLaw] | None = None,
    title: str | None = None,
    *,
    x: str = "samples k",
    y: str = "pass@k",
) -> go.Figure:
    """pass@k against k (log axis): one line a method with its band; `laws` are drawn dotted, `baseline` dashed.

    `curves` come from `scaling.coverage`, or with other `x` and `y` from `scaling.submissions` or votes. The baseline
    is random guessing, or one sample. Errors: no curve, or one without points.

    >>> coverage({"sample": [(1, Estimate(0.4, 0.3, 0.5, 9)), (8, Estimate(0.8, 0.7, 0.9, 9))]}).layout.title.text
    'sample: pass@k from 40% at k = 1 to 80% at 8'
    """
    empty = [method for method, line in curves.items() if not line or None in dict(line).values()]
    if empty or not curves:
        what = f"coverage of {', '.join(empty) or 'nothing'} has no points, or one without a number"
        raise WorkbenchError(f"{what}: measure it first")
    fig, ends, found = go.Figure(), [], []
    for method, line in curves.items():
        ks = [k for k, _ in line]
        _band(fig, ks, [e for _, e in line], colour(method), [f"{method}, k = {k}<br>{y} {e}" for k, e in line])
        ends.append((ks[-1], line[-1][1].value, method))
        (k0, first), (k1, last) = line[0], line[-1]
        found.append(f"{method}: {y} from {first.value:.0%} at k = {k0} to {last.value:.0%} at {k1}")
        if laws and method in laws:
            grid = [ks[0] * (ks[-1] / ks[0]) ** (i / 60) for i in range(61)]
            dots = dict(color=INK, dash="dot", width=1.5)
            fig.add_scatter(x=grid, y=laws[method](grid), mode="lines", line=dots, hoverinfo="skip")
    _log_ticks(fig, [k for line in curves.values() for k, _ in line], plain=True)
    _finish(fig, ends, baseline, "{:.0%}")
    fig.update_yaxes(title=y, tickformat=".0%")
    note = _caption([e for line in curves.values() for _, e in line])
    note += "".join(f" Dotted: {m}, exp({law.a:.2f}·k<sup>{law.b:.2f}</sup>)." for m, law in (laws or {}).items())
    return frame(fig, title or "; ".join(found), f"{x} (log scale)", note)


def learning_curve(
    history: Iterable[Mapping],
    baseline: float | Estimate | None = None,
    *,
    x: str = "step",
    y: str = "accuracy",
    title: str | None = None,
    band: str = "95 % intervals as recorded",
) -> go.Figure:
    """One number of a training history against another: one line per row["run"] (if rows have one), None as a gap.

    The band is row["<y>_low"] … row["<y>_high"] where given, and then what the caption calls it is `band`; else the
    range over rows of one run and x (its seeds). The caption tells row["n"], the problems that a row was measured on,
    where rows have one.
    NaN and infinity are gaps like None, and counted. Errors: no rows, rows without `x` or `y`, an `x` that is no finite
    number, a `y` of text.

    >>> learning_curve([{"step": s, "accuracy": a} for s, a in [(0, 0.02), (50, None), (100, 0.5)]]).layout.title.text
    'accuracy goes from 0.02 to 0.5 by step 100'
    """
    rows = list(history)
    fig = go.Figure()
    changes = _histories(fig, rows, x, y, baseline)
    fig.update_yaxes(title=y)
    found = [f"from {a:.2g} to {b:.2g} by {x} {at}{name and f' ({name})'}" for name, a, b, at in changes]
    return frame(fig, title or f"{y} goes {', '.join(found) or 'unmeasured'}", x, _band_note(rows, x, [y], band))


def proxy_vs_truth(
    history: Iterable[Mapping], title: str | None = None, *, band: str = "95 % intervals as recorded"
) -> go.Figure:
    """What reinforcement learning optimises (left) beside what is wanted (right), against its step, a line per run.

    Rows: run, step, proxy, true, and optionally proxy_low, proxy_high, true_low, true_high, which the caption calls
    `band`; several rows of one run and step are seeds, and the band is their range. Two panels, because a proxy has its
    own scale (a sum of step rewards grows with length). A missing value is a gap. Errors: as `learning_curve`.

    >>> rows = [{"run": "sum", "step": s, "proxy": p, "true": t} for s, p, t in [(0, 1.0, 0.5), (9, 3.0, 0.4)]]
    >>> proxy_vs_truth(rows).layout.title.text
    'sum: proxy reward +2, true reward -0.1'
    """
    rows = list(history)
    names = ("proxy reward (optimised)", "true reward (wanted)")
    fig = make_subplots(1, 2, subplot_titles=names, horizontal_spacing=0.2)
    for note, left in zip(fig.layout.annotations, (0, 0.6), strict=True):
        note.update(x=left, xanchor="left", font=dict(size=14))
    moved = [_histories(fig, rows, "step", key, row=1, col=col) for col, key in ((1, "proxy"), (2, "true"))]
    change = [{name: b - a for name, a, b, _ in side} for side in moved]
    found = [
        f"{name}: proxy reward {change[0][name]:+.2g}, true reward {change[1][name]:+.2g}"
        for name in change[0]
        if name in change[1]
    ]
    return frame(fig, title or "; ".join(found), "step", _band_note(rows, "step", ["proxy", "true"], band))


def levels(records: Iterable[Record], title: str | None = None) -> go.Figure:
    """Accuracy by problem level, a line per method with 95 % intervals; several n of a method become several lines.

    The numbers are those of `scaling.by_level`.

    >>> rows = [Record("r", f"p/{i}", 0, "5", i % 4 > i // 20, level=1 + i // 20, knobs={"method": "vote"})
    ...         for i in range(40)]
    >>> levels(rows).layout.title.text
    'From level 1 to 2: vote 75% to 50%'
    """
    found = by_level(records)
    methods = [method for method, _ in found]
    lines = {
        (method or "all") if methods.count(method) == 1 else f"{method or 'all'} n={n}": line
        for (method, n), line in found.items()
    }
    return by_bin(lines, x="problem level", y="accuracy", title=title)


def by_bin(
    lines: Mapping[str, Mapping[int, Estimate | None]],
    x: str = "difficulty bin (1 is easiest)",
    y: str = "accuracy",
    form: str = ".0%",
    title: str | None = None,
    baseline: float | None = None,
) -> go.Figure:
    """Any number by difficulty, level or bin: a line per name with 95 % intervals; a bin without a number is a gap.

    `form`: how numbers are written. The default title tells each line's first and last bin that has a number; a line
    with one such bin is not in it. Errors: no number at all.

    >>> by_bin({"beam": {1: Estimate(0.9, 0.8, 1.0, 48), 2: Estimate(0.2, 0.1, 0.3, 48)}}).layout.title.text
    'From difficulty bin 1 to 2: beam 90% to 20%'
    """
    shown = sorted({at for line in lines.values() for at in line})
    if not any(e for line in lines.values() for e in line.values()):
        raise WorkbenchError("no bin has a number: nothing to draw")
    fig, ends, found, estimates = go.Figure(), [], defaultdict(list), []
    for i, (name, line) in enumerate(lines.items()):
        shift = 0.06 * (i - (len(lines) - 1) / 2)  # side by side, so that intervals do not hide one another
        here = [line.get(at) for at in shown]
        known = [e for e in here if e is not None]
        if not known:
            continue
        fig.add_scatter(
            x=[at + shift for at in shown],
            y=[e and e.value for e in here],
            error_y=dict(
                array=[None if e is None or e.high is None else e.high - e.value for e in here],
                arrayminus=[None if e is None or e.low is None else e.value - e.low for e in here],
                width=0,
                thickness=1.5,
            ),
            mode="lines+markers",
            line=dict(color=colour(name.split(" n=")[0]), width=2, dash="dot" if " n=" in name else "solid"),
            marker=dict(size=8),
            hovertext=[e and f"{name}, {x.split(' (')[0]} {at}<br>{e}" for at, e in zip(shown, here, strict=True)],
            hoverinfo="text",
        )
        ends.append((known[-1].value, name))
        first, *_, last = [at for at, e in zip(shown, here, strict=True) if e is not None] * 2
        if len(known) > 1:
            found[first, last].append(f"{name} {format(known[0].value, form)} to {format(known[-1].value, form)}")
        estimates += known
    _finish(fig, [(shown[-1] + 0.2, value, name) for value, name in ends], baseline, f"{{:{form}}}")
    fig.update_xaxes(tickvals=shown)
    fig.update_yaxes(title=y, tickformat=form)
    unit = x.split(" (")[0].removeprefix("problem ")
    parts = [f"from {unit} {first} to {last}: {', '.join(said)}" for (first, last), said in found.items()]
    headline = "; ".join(parts) or f"No line has two {unit.split()[-1]}s to compare"
    headline = headline[0].upper() + headline[1:]
    gaps = len(shown) * len(lines) - len(estimates)
    note = _caption(estimates, f"a {unit.split()[-1]}", "Bars") + (f" Not measured: {gaps}." if gaps else "")
    return frame(fig, title or headline, x, note)


def surface(points: Iterable[Point], train: Mapping[str, float], title: str | None = None) -> go.Figure:
    """Accuracy over both axes of compute: a column per policy (its training FLOPs), a dot per n, shaded by accuracy.

    `points` come from `scaling.curve` with a policy's name as its method; `train`: {that name: FLOPs of training}.
    Dots that lie on one line from the upper left to the lower right and are equally dark are the exchange of one
    compute for the other. Errors: no points, a policy whose training is not told, or is 0.

    >>> line = [Point("taught", n, 1e6 * n, Estimate(0.3 + n / 50, 0.2, 0.6, 90)) for n in (1, 4)]
    >>> surface(line, {"taught": 1e13}).layout.title.text
    'From 32% (taught, n = 1) to 38% (taught, n = 4)'
    """
    points = list(points)
    if not points:
        raise WorkbenchError("a surface needs points of `scaling.curve`: there are none")
    if missing := sorted({p.method for p in points} - train.keys()):
        raise WorkbenchError(f"no training FLOPs for {', '.join(missing)}")
    _above_0(value for p in points for value in (p.x, train[p.method]))
    least, most = (f(points, key=lambda p: p.accuracy.value) for f in (min, max))
    values = [p.accuracy.value for p in points]
    fig = go.Figure()
    for method, line in grouped(points, lambda p: p.method).items():
        fig.add_scatter(
            x=[train[method]] * len(line),
            y=[p.x for p in line],
            mode="lines+markers+text",
            line=dict(color="#dddddd", width=1),
            marker=dict(
                size=34,
                color=[p.accuracy.value for p in line],
                colorscale="Blues",
                cmin=min(values) - 0.3 * (max(values) - min(values)),
                cmax=max(values),
                line=dict(color=FAINT, width=1),
            ),
            text=[f"{100 * p.accuracy.value:.0f}" for p in line],
            textfont=dict(
                size=12, color=["white" if p.accuracy.value > sum(values) / len(values) else INK for p in line]
            ),
            hovertext=[f"{method}, n={p.n}<br>{p.x:.3g} FLOPs a problem<br>accuracy {p.accuracy}" for p in line],
            hoverinfo="text",
        )
        top = max(line, key=lambda p: p.x)
        fig.add_annotation(
            x=math.log10(train[method]),
            y=math.log10(top.x),
            text=method,
            yshift=28,
            showarrow=False,
            font=dict(size=12),
        )
    _log_ticks(fig, [train[p.method] for p in points])
    fig.update_yaxes(type="log", title="FLOPs per problem (log scale)", dtick=1, exponentformat="power")
    low, high = (f(math.log10(p.x) for p in points) for f in (min, max))
    fig.update_yaxes(range=[low - 0.15 * (high - low) - 0.05, high + 0.25 * (high - low) + 0.05])
    said = [f"{p.accuracy.value:.0%} ({p.method}, n = {p.n})" for p in (least, most)]
    note = "Numbers: accuracy in per cent. " + _caption([p.accuracy for p in points], mark="Intervals (hover)")
    return frame(fig, title or f"From {said[0]} to {said[1]}", "training FLOPs (log scale)", note)


def reliability_plot(bins: Sequence[Bin], name: str = "verifier", title: str | None = None) -> go.Figure:
    """Share of right steps against their mean score, a dot per bin with its number of steps; the diagonal is ideal.

    `bins` come from `scaling.reliability`; an empty bin has no dot. The default title gives the calibration error.
    Errors: no bin has a step.

    >>> reliability_plot([Bin(0, 0.5, 0.3, 0.5, 2), Bin(0.5, 1, None, None, 0)]).layout.title.text
    'verifier scores are 20 points off on average, on the whole too<br>low by 20 points'
    """
    full = [b for b in bins if b.count]
    error, total = calibration_error(bins), sum(b.count for b in bins)
    bias = sum(b.count * (b.score - b.rate) for b in full) / total
    fig = go.Figure()
    fig.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=dict(color=FAINT, dash="dash", width=1), hoverinfo="skip")
    fig.add_scatter(
        x=[b.score for b in full],
        y=[b.rate for b in full],
        mode="lines+markers+text",
        line=dict(color=colour(name), width=2),
        marker=dict(size=[6 + 24 * math.sqrt(b.count / total) for b in full], opacity=1),
        text=[f"{b.count:,}" for b in full],
        textposition=["bottom right" if b.rate < b.score else "top left" for b in full],  # away from the diagonal
        textfont=dict(size=11, color=FAINT),
        hovertext=[f"{b.count} steps scored {b.low:.2g}–{b.high:.2g}<br>{b.rate:.1%} are right" for b in full],
        hoverinfo="text",
        cliponaxis=False,
    )
    fig.update_xaxes(range=[-0.03, 1.03])
    fig.update_yaxes(range=[-0.05, 1.03], title="share of steps that are right", tickformat=".0%")
    points = f"{abs(100 * bias):.0f}"
    side = "" if points == "0" else f", on the whole too {'low' if bias < 0 else 'high'} by {points} points"
    found = f"{name} scores are {100 * error:.0f} points off on average{side}"
    note = f"{total:,} steps in {len(bins)} bins, {len(bins) - len(full)} of them empty; dot area grows with the count."
    fig.update_layout(width=560, height=560)
    return frame(fig, title or found, "mean score of the bin", note + " Dashed: perfect calibration.")


def score_by_depth(
    depths: Sequence[Depth], name: str = "verifier", x: str = "step", least: int = 5, title: str | None = None
) -> go.Figure:
    """Mean score and share of right steps against depth, with bands: where they part, the score knows the depth.

    `depths`: `judging.report(...).depths`, or its `.relative` with x="share of the chain". A depth that fewer than
    `least` problems reach is counted, not drawn. No band where the steps of a depth are all alike.

    >>> at = lambda value: Estimate(value, value - 0.1, value + 0.1, 9)
    >>> rows = [Depth(1, 20, at(0.9), at(0.8), at(0.1)), Depth(2, 9, at(0.4), at(0.6), at(-0.2))]
    >>> score_by_depth(rows).layout.title.text
    'verifier scores are 10 points too high at step 1 and 20 too low at step 2'
    """
    full = [d for d in depths if d.count and d.score.n >= least]
    if not full:
        raise WorkbenchError(
            f"no depth has scored and labelled steps of {least} problems: nothing to draw, or lower least"
        )
    fig, ends = go.Figure(), []
    for word, line in (("score", [d.score for d in full]), ("label", [d.label for d in full])):
        hover = [f"{word} {e}<br>{d.count:,} steps at {d.depth:g}" for d, e in zip(full, line, strict=True)]
        _band(fig, [d.depth for d in full], line, colour(word), hover)
        ends.append((full[-1].depth, line[-1].value, word))
    _finish(fig, ends)
    fig.update_yaxes(title="mean score, share right", tickformat=".2f")
    if len(full) <= 12:
        fig.update_xaxes(tickvals=[d.depth for d in full])
    first, last = full[0], full[-1]
    side = lambda e, unit="": f"{abs(100 * e.value):.0f}{unit} too {'high' if e.value > 0 else 'low'}"  # noqa: E731
    found = f"{name} scores are {side(first.gap, ' points')} at {x} {first.depth:g}"
    if last is not first:
        found += f" and {side(last.gap)} at {x} {last.depth:g}"
    note = f"{sum(d.count for d in full):,} steps, {first.count:,} at the first depth and {last.count:,} at the last. "
    if thin := [d for d in depths if d.count and d not in full]:
        note += f"Not drawn: {sum(d.count for d in thin):,} steps at {len(thin)} depths of under {least} problems. "
    return frame(fig, title or found, x, note + _caption([e for d in full for e in (d.score, d.label)], "a depth"))


def best_of_n(choice: Choice, title: str | None = None) -> go.Figure:
    """Accuracy of the vote, the highest score and the weighted vote against N, under the ceiling of a perfect choice.

    >>> from workbench.judging import Response, best_of_n as measure
    >>> asked = {p: [Response(5, True, s), Response(6, False, 0.5)] for p, s in [("a", 0.9), ("b", 0.8), ("c", 0.1)]}
    >>> best_of_n(measure(asked)).layout.title.text
    'Of 2, the highest score is right in 67%, the vote in 100%, any response in 100%'
    """
    rows, fig, ends = choice.rows, go.Figure(), []
    ns, last = [row.n for row in rows], rows[-1]
    for method in ("ceiling", "majority", "weighted_vote", "best_of_n"):
        line = [getattr(row, method) for row in rows]
        _band(fig, ns, line, colour(method), [f"{method}, N={row.n}<br>{e}" for row, e in zip(rows, line, strict=True)])
        ends.append((ns[-1], line[-1].value, method))
    _log_ticks(fig, ns, plain=True)
    _finish(fig, ends, rows[0].ceiling if ns[0] == 1 else None, "{:.0%}")
    fig.update_xaxes(tickvals=ns, ticktext=[str(n) for n in ns])
    fig.update_yaxes(title="accuracy", tickformat=".0%")
    best, vote, some = (f"{e.value:.0%}" for e in (last.best_of_n, last.majority, last.ceiling))
    found = f"Of {last.n}, the highest score is right in {best}, the vote in {vote}, any response in {some}"
    return frame(fig, title or found, "responses N (log scale)", _choice_note(choice, "ceiling: pass@N"))


def over_optimisation(choice: Choice, title: str | None = None) -> go.Figure:
    """The mean score of the response chosen from N (left) beside its accuracy and the ceiling (right), against N.

    A score that rises while accuracy falls, or stays behind a rising ceiling, is optimised beyond what it knows (Gao
    et al. 2022). A fall is clear if the whole paired interval of a change from one N to the next is below 0.
    Errors: no response has a score.

    >>> from workbench.judging import Response, best_of_n as measure
    >>> asked = {p: [Response(5, True, s), Response(6, False, 0.5)] for p, s in [("a", 0.9), ("b", 0.2), ("c", 0.1)]}
    >>> over_optimisation(measure(asked)).layout.title.text
    'N=1 to 2: chosen score +0.18, accuracy -17 points (67 under the ceiling), no clear fall'
    """
    rows = choice.rows
    if any(row.reward is None for row in rows):
        raise WorkbenchError("no response has a score: nothing was optimised")
    names = ("score of the chosen (optimised)", "accuracy (wanted)")
    fig = make_subplots(1, 2, subplot_titles=names, horizontal_spacing=0.2)
    for note, left in zip(fig.layout.annotations, (0, 0.6), strict=True):
        note.update(x=left, xanchor="left", font=dict(size=14))
    ns, first, last = [row.n for row in rows], rows[0], rows[-1]
    hover = [f"N={row.n}<br>score {row.reward}" for row in rows]
    _band(fig, ns, [row.reward for row in rows], colour("best_of_n"), hover, row=1, col=1)
    _log_ticks(fig, ns, plain=True)
    _finish(fig, [], row=1, col=1)
    ends = []
    for method in ("ceiling", "best_of_n"):
        line = [getattr(row, method) for row in rows]
        hover = [f"{method}, N={row.n}<br>{e}" for row, e in zip(rows, line, strict=True)]
        _band(fig, ns, line, colour(method), hover, row=1, col=2)
        ends.append((ns[-1], line[-1].value, method))
    _finish(fig, ends, row=1, col=2)
    fig.update_xaxes(tickvals=ns, ticktext=[str(n) for n in ns])
    fig.update_yaxes(tickformat=".0%", row=1, col=2)
    reward, right = last.reward.value - first.reward.value, 100 * (last.best_of_n.value - first.best_of_n.value)
    falls = [row.n for row in rows if row.change and row.change.high is not None and row.change.high < 0]
    found = (
        f"N={first.n} to {last.n}: chosen score {reward:+.2g}, accuracy {right:+.0f} points "
        f"({100 * last.gap.value:.0f} under the ceiling), "
        + (f"clear fall on the way to N={', '.join(map(str, falls))}" if falls else "no clear fall")
    )
    return frame(fig, title or found, "responses N (log scale)", _choice_note(choice, "ceiling: pass@N"))


def _band(fig: go.Figure, xs: Sequence, estimates: Sequence[Estimate | None], ink: str, hover=None, **where) -> None:
    """A line through the values with its band; None, and a missing interval, is a gap."""
    pieces, piece = [], []
    for x, e in [*zip(xs, estimates, strict=True), (None, None)]:
        if e is not None and e.low is not None:
            piece.append((x, e.low, e.high))
        elif piece:
            pieces, piece = [*pieces, piece], []
    for piece in pieces:
        outline = [(x, low) for x, low, _ in piece] + [(x, high) for x, _, high in reversed(piece)]
        fig.add_scatter(
            x=[x for x, _ in outline],
            y=[y for _, y in outline],
            mode="lines",
            # one point alone has no area: its band is a bar
            line=dict(width=0 if len(piece) > 1 else 6, color=_tint(ink, 0 if len(piece) > 1 else 0.25)),
            fill="toself",
            fillcolor=_tint(ink, 0.15),
            hoverinfo="skip",
            **where,
        )
    fig.add_scatter(
        x=list(xs),
        y=[None if e is None else e.value for e in estimates],
        mode="lines+markers",
        line=dict(color=ink, width=2.4),
        marker=dict(size=7 if len(xs) <= 30 else 3),
        connectgaps=False,
        hovertext=hover,
        hoverinfo="text" if hover else "x+y",
        **where,
    )


def _histories(fig: go.Figure, rows: Sequence[Mapping], x: str, y: str, baseline=None, **where) -> list[tuple]:
    """Draw `y` against `x` for each run; return (run, first value, last value, last x) of what was measured."""
    ends, changes = [], []
    if not rows:
        raise WorkbenchError(f"no rows of history, so no {y!r} to draw: wait for the first, or name another run")
    if absent := [row for row in rows if y not in row or x not in row]:
        raise WorkbenchError(
            f"{len(absent)} history rows have no {x!r} or no {y!r}, but {', '.join(sorted(absent[0]))}"
        )
    for name, value in ((name, row[name]) for row in rows for name in (x, y)):
        if not isinstance(value, Real | None) or name == x and not _known(value):
            raise WorkbenchError(f"the {name!r} of a history row is {value!r}: give a number")
    for run, mine in grouped(rows, lambda row: str(row.get("run", ""))).items():
        line = []
        for at, same in sorted(grouped(mine, lambda row: row[x]).items()):
            values = [row[y] for row in same if _known(row[y])]
            low, high = same[0].get(f"{y}_low"), same[0].get(f"{y}_high")
            if len(values) > 1:
                low, high = min(values), max(values)
            mean = sum(values) / len(values) if values else None
            line.append((at, Estimate(mean, low, high, len(values)) if values else None))
        _band(fig, [at for at, _ in line], [e for _, e in line], colour(run) if run else INK, **where)
        if measured := [(at, e.value) for at, e in line if e is not None]:
            ends.append((*measured[-1], run))
            changes.append((run, measured[0][1], measured[-1][1], measured[-1][0]))
    _finish(fig, ends, baseline, "{:.2g}", **where)
    return changes


def _methods(fig: go.Figure, points: Sequence[Point], unit: str, **where) -> list[tuple[float, float, str]]:
    """A line with its band for every method of a curve; where each ends."""
    ends = []
    for method, line in grouped(sorted(points, key=lambda p: p.x), lambda p: p.method).items():
        xs = [point.x for point in line]
        hover = [f"{method}, n={p.n}<br>{p.x:.3g} {unit}<br>accuracy {p.accuracy}" for p in line]
        _band(fig, xs, [p.accuracy for p in line], colour(method), hover, **where)
        ends.append((xs[-1], line[-1].accuracy.value, method))
    return ends


LETTER, LINE = 7.6, 0.065  # pixels that a letter of a name is wide, and the share of the height that a name takes


def _finish(fig: go.Figure, ends: Sequence[tuple[float, float, str]], baseline=None, form="", **where) -> None:
    """Range of the y axis, baseline, and each line's name at its end.

    Names are pushed apart where they would overlap, and off other lines; from one that had to go further than its
    height a thin line leads back. A log x axis must have its range by now: it tells where names are.
    """
    panel = str(where["col"]) if where.get("col", 1) > 1 else ""
    drawn = [trace for trace in fig.data if (trace.yaxis or "y") == f"y{panel}"]
    values = [v for trace in drawn for v in trace.y if v is not None]
    values += [v + side for t in drawn for v, side in zip(t.y, t.error_y.array or (), strict=False) if side is not None]
    values += [
        v - side for t in drawn for v, side in zip(t.y, t.error_y.arrayminus or (), strict=False) if side is not None
    ]
    if baseline is not None:
        values.append(baseline.value if isinstance(baseline, Estimate) else baseline)
    if not values:
        return
    span = (max(values) - min(values)) or 1
    fig.update_yaxes(range=[min(values) - 0.06 * span, max(values) + 0.06 * span], **where)
    longest = max((len(name) for *_, name in ends), default=0)
    fig.update_layout(margin_r=max(fig.layout.margin.r or 30, 24 + 8.5 * longest))
    axis = fig.layout[f"xaxis{panel}"]
    on_axis = math.log10 if axis.type == "log" else float
    shown = [t for t in drawn if t.mode != "lines"]  # not the bands, nor a dotted law
    lines = [[(on_axis(x), y) for x, y in zip(t.x, t.y, strict=True) if y is not None] for t in shown]
    xs = [x for line in lines for x, _ in line] + [on_axis(x) for x, *_ in ends]
    low, high = axis.range or (min(xs) - 0.06 * (max(xs) - min(xs)), max(xs) + 0.06 * (max(xs) - min(xs)) + 1e-9)
    left, right = axis.domain or (0, 1)
    wide = max(100, (fig.layout.width or 760) - 72 - fig.layout.margin.r)  # of the panels; a name may be a sentence
    letter = LETTER * (high - low) / wide / (right - left)
    order, gap = sorted(ends, key=lambda end: end[1]), LINE * span
    reach = [(on_axis(x), on_axis(x) + (len(name) + 2) * letter) for x, _, name in order]
    level = [[(low, values[-1]), (high, values[-1])]] if baseline is not None else []
    walls = [_crossed([*lines, *level], *ends_of) for ends_of in reach]
    limits = min(values) - 0.05 * span, max(values) + 0.05 * span
    places = _apart([end[1] for end in order], reach, walls, gap, *limits)
    for (x, end, name), (start, _), y in zip(order, reach, places, strict=True):
        font = dict(color=colour(name.split(" n=")[0]), size=14)
        text = dict(mode="text", text=[f"  {html.escape(name)}"], textposition="middle right", textfont=font)
        fig.add_scatter(x=[x], y=[y], cliponaxis=False, hoverinfo="skip", **text, **where)
        if abs(y - end) > gap:
            refs = dict(xref=f"x{panel}", yref=f"y{panel}", axref=f"x{panel}", ayref=f"y{panel}")
            thin = dict(text="", arrowhead=0, arrowwidth=1, arrowcolor=font["color"], opacity=0.7)
            fig.add_annotation(x=start, y=end, ax=start + 0.9 * letter, ay=y, **thin, **refs)
    if baseline is not None:
        names = [((a + b) / 2, y, (b - a) / 2, gap / 2) for (a, b), y in zip(reach, places, strict=True)]
        taken = [*((x, y, 0, 0) for line in lines for x, y in line), *names]
        _baseline(fig, values[-1], form.format(values[-1]), taken, (low, high), letter, gap, **where)


def _crossed(lines, start: float, end: float) -> list[float]:
    """The heights of those lines of (x, y) that pass between `start` and `end`, at a few places."""
    found = []
    for line in lines:
        for (a, y), (b, to) in zip(line, line[1:], strict=False):
            at = [start + share * (end - start) for share in (0.2, 0.6, 1)]
            found += [y + (to - y) * (x - a) / (b - a) for x in at if a <= x < b]
    return found


def _apart(heights, reach, walls, gap, bottom, top) -> list[float]:
    """Rising `heights` of names, moved until those whose `reach` along x overlaps are a `gap` apart, if there is room,
    and each is off its `walls`, the heights at which lines cross its reach.

    >>> places = _apart([0.5, 0.5, 0.5, 0.9], [(0, 2), (1, 3), (5, 6), (8, 9)], [[], [], [], [0.91]], 0.1, 0, 1)
    >>> [round(y, 2) for y in places]
    [0.45, 0.55, 0.5, 0.85]
    """
    places = list(heights)
    pairs = [(i, j) for j in range(len(places)) for i in range(j)]
    pairs = [(i, j) for i, j in pairs if reach[i][0] < reach[j][1] and reach[j][0] < reach[i][1]]
    for _ in range(200):  # a handful of names settles at once
        for i, crossing in enumerate(walls):
            for wall in crossing:
                if (overlap := 0.6 * gap - abs(places[i] - wall)) > 0:
                    places[i] += math.copysign(overlap / 2, places[i] - wall)
        for i, j in pairs:
            if (overlap := gap - (places[j] - places[i])) > 0:
                places[i], places[j] = places[i] - overlap / 2, places[j] + overlap / 2
        places = [min(max(y, bottom), top) for y in places]  # plotly draws no name outside the range
    return places


def _baseline(fig: go.Figure, level: float, number: str, taken, ends, letter, gap, **where) -> None:
    """A dashed line whose label stands where it covers the fewest points and names: right and above it, if all do."""
    (low, high), text = ends, f"baseline {number}"
    wide = 0.85 * letter * len(text)  # it is smaller than names are

    def covered(spot):
        at, side = spot
        x, y = low + at * (high - low) + (0.5 - at) * wide, level + side * gap / 2
        return sum(abs(x - a) < wide / 2 + w and abs(y - b) < gap / 2 + h for a, b, w, h in taken)

    at, side = min(((at, side) for at in (0.99, 0.6, 0.3, 0.01) for side in (1, -1)), key=covered)
    note = dict(text=text, font=dict(size=12, color="#666666"), x=at, yanchor="bottom" if side > 0 else "top")
    note |= dict(xanchor="right" if at > 0.9 else "left" if at < 0.1 else "center")
    fig.add_hline(y=level, line=dict(color="#666666", dash="dash", width=1.3), annotation=note)


def _best_point(points: Sequence[Point], unit: str) -> str:
    top = max(points, key=lambda p: (p.accuracy.value, -p.x))
    others = [p for p in points if p.method != top.method]
    if not others:
        first, last = (f(points, key=lambda p: p.x) for f in (min, max))
        return (
            f"{top.method} goes from {first.accuracy.value:.0%} to {last.accuracy.value:.0%} accuracy "
            f"between {_power(first.x)} and {_power(last.x)} {unit}"
        )
    text = f"{top.method} reaches {top.accuracy.value:.0%} at {_power(top.x)} {unit}"
    within = [p for p in others if p.x <= top.x]
    if not within:
        return f"{text}, less than any other method spends"
    second = max(within, key=lambda p: p.accuracy.value)
    return f"{text}; next within that budget is {second.method} with {second.accuracy.value:.0%}"


def _caption(estimates: Iterable[Estimate], unit: str = "", mark: str = "Bands") -> str:
    estimates = list(estimates)

    def span(numbers):
        low, high = min(numbers), max(numbers)
        return f"{low}" if low == high else f"{low}–{high}"

    n, seeds = span([e.n for e in estimates]), span([e.seeds for e in estimates])
    lone = sum(e.low is None for e in estimates)
    note = f"n = {n} problems{unit and ' ' + unit}, {seeds} seed{'s' * (seeds != '1')} each. "
    return note + f"{mark}: 95 % intervals over problems." + (f" Points without an interval: {lone}." if lone else "")


def _choice_note(choice: Choice, more: str) -> str:
    note = f"n = {choice.problems} problems, {choice.responses:,} responses ({choice.unscored:,} not scored, "
    note += f"{choice.unfinished:,} without an answer); means over choices of N; {more}. "
    return note + "Bands: 95 % intervals over problems."


def _band_note(rows: Sequence[Mapping], x: str, keys: Sequence[str], band: str) -> str:
    missing = sum(not _known(row[key]) for row in rows for key in keys)
    seeds = max((len(group) for group in grouped(rows, lambda row: (row.get("run"), row[x])).values()), default=1)
    problems = sorted({row["n"] for row in rows if row.get("n")})
    note = f"{len(rows)} measurements"
    if problems:
        note += f" on n = {'–'.join(map(str, dict.fromkeys((problems[0], problems[-1]))))} problems"
        note += ", 1 seed each" * (seeds == 1)
    note += ". "
    if seeds > 1:
        note += f"Bands: range over {seeds} seeds. "
    elif any(row.get(f"{key}_low") is not None for row in rows for key in keys):
        note += f"Bands: {band}. "
    return note + (f"Missing values, drawn as gaps: {missing}." if missing else "")


def _known(value: float | None) -> bool:
    """False for None, NaN and infinity, which no figure can show but as a gap."""
    return value is not None and math.isfinite(value)


def _above_0(values: Iterable[float]) -> None:
    if bad := [value for value in values if not _known(value) or value <= 0]:
        raise WorkbenchError(f"a log axis starts above 0, and {bad[0]!r} is to be drawn on it: leave that point out")


def _log_ticks(fig: go.Figure, values: Sequence[float], plain: bool = False, **where) -> None:
    """A log x axis with ticks at 1, 2, 5 (or at decades when there are many), written as a power of ten."""
    _above_0(values)
    low, high = math.log10(min(values)), math.log10(max(values))
    pad = 0.04 * (high - low) or 0.2
    digits = (1, 2, 5) if high - low < (1.2 if where else 2.5) else (1,)  # a panel has half the room
    powers = range(math.floor(low) - 1, math.ceil(high) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in digits]
    ticks = [tick for tick in ticks if low - pad <= math.log10(tick) <= high + pad]
    if len(ticks) < 2:  # a narrow range between two round numbers
        ticks = sorted({min(values), max(values)})
    texts = [f"{tick:g}" if plain else _power(tick) for tick in ticks]
    fig.update_xaxes(type="log", range=[low - pad, high + pad], tickvals=ticks, ticktext=texts, **where)


def _power(x: float) -> str:
    if 0.01 <= x < 10_000:
        return f"{x:.3g}" if x < 999.5 else f"{x:,.0f}"
    digits, power = f"{x:.1e}".split("e")
    return f"{float(digits):g}·10<sup>{int(power)}</sup>".removeprefix("1·")


def _tint(ink: str, alpha: float) -> str:
    return f"rgba({','.join(map(str, hex_to_rgb(ink)))},{alpha})"
