"""Figures are read back as data: what is drawn, not how it looks. Each test names the mistake it pins."""

import itertools
import json
import math
import re
from dataclasses import replace
from functools import partial

import plotly.graph_objects as go
import pytest

from workbench import judging, plots
from workbench.claims import Claim
from workbench.findings import findings
from workbench.judging import Depth, Response
from workbench.scaling import Bin, Estimate, Point, PowerLaw, Ratio, reliability
from workbench.types import Node, Record, Step, Trace, WorkbenchError


def point(method, n, x, value, low=..., high=..., axis="flops"):
    low, high = (value - 0.1 if low is ... else low), (value + 0.1 if high is ... else high)
    return Point(method, n, x, Estimate(value, low, high, 50, 2), axis)


POINTS = [point("majority", n, 1e9 * n, 0.5 + n / 100) for n in (1, 4, 16)]
POINTS += [point("beam", n, 3e9 * n, 0.5 + n / 50) for n in (4, 16)]

TREE = [
    Node(),
    Node((0,), (Step("1<2", score=0.9),)),
    Node((1,), (Step("pruned", score=None),)),
    Node((0, 0), (Step("1<2"), Step("<i>7</i>", True, score=0.8)), "answer"),
    Node((0, 1), (Step("1<2"), Step("8", True, score=0.2)), "answer"),
]


def around(value, low=..., high=...):
    return Estimate(value, value - 0.1 if low is ... else low, value + 0.1 if high is ... else high, 7)


DEPTHS = [Depth(d, 40 - d, around(0.8), around(0.8 - d / 10), around(d / 10)) for d in (1, 2, 4)]
# one problem in three is lost for good by a wrong response that scores best, as soon as it is among those chosen from
CHOICE = judging.best_of_n(
    {f"p/{i}": [Response(5, True, 0.2 * j) for j in range(3)] + [Response(6, False, i % 3 * 2 - 3)] for i in range(30)}
)


def found(seed=0):
    gain = Claim("rl.gain", "o1", "a <b>gain</b>", "> 0", Estimate(0.1 + seed / 100, 0.05, 0.4, 50))
    factor = Claim("scaling.factor", "Snell", "it saves", ">= 4", Ratio(2.0 + seed, 1.0, None, 50))
    share = Claim("sft.share", "o1", "some", "in .3...7", Estimate(0.9, None, None, 50))
    return [gain, Claim("x.lost", "o1", "not measured", "< 0", None), factor, share]


ALL = {
    "findings": lambda: findings({seed: found(seed) for seed in range(3)}),
    "accuracy_vs_flops": lambda: plots.accuracy_vs_flops(POINTS, baseline=0.5),
    "coverage": lambda: plots.coverage(
        {"sample": [(k, Estimate(v, v - 0.1, v + 0.1, 50, 64)) for k, v in [(1, 0.3), (8, 0.6), (64, 0.9)]]},
        baseline=Estimate(0.01, 0.0, 0.02, 50),
        laws={"sample": PowerLaw(-1.2, -0.5, 0.01)},
    ),
    "reliability": lambda: plots.reliability_plot(reliability([0.1, 0.6, 0.65, 1.0], [0, 1, 0, 1])),
    "learning_curve": lambda: plots.learning_curve([{"step": s, "accuracy": s / 10} for s in range(5)], baseline=0.1),
    "proxy_vs_truth": lambda: plots.proxy_vs_truth(
        [{"run": run, "step": s, "proxy": s, "true": 1 - s / 9} for run in ("sum", "min") for s in range(5)]
    ),
    "levels": lambda: plots.levels(
        [Record("r", f"p/{i}", 0, "5", i % 3 > 0, level=1 + i % 4, knobs={"method": "beam"}) for i in range(40)]
    ),
    "by_bin": lambda: plots.by_bin({"beam": {1: around(0.9), 2: None, 3: around(0.2)}}, baseline=0.5),
    "surface": lambda: plots.surface(
        [point(name, n, 1e6 * n, level + n / 100) for name, level in (("early", 0.1), ("late", 0.6)) for n in (1, 9)],
        {"early": 1e12, "late": 1e13},
    ),
    "labelled_tree": lambda: plots.labelled_tree(TREE),
    "score_by_depth": lambda: plots.score_by_depth(DEPTHS),
    "best_of_n": lambda: plots.best_of_n(CHOICE),
    "over_optimisation": lambda: plots.over_optimisation(CHOICE),
}


def lines(fig):
    """The measured lines: name of the colour -> y values."""
    return {t.line.color: list(t.y) for t in fig.data if t.mode == "lines+markers"}


def words(fig):
    return " ".join([fig.layout.title.text, *(note.text for note in fig.layout.annotations)])


@pytest.mark.parametrize("name", ALL)
def test_every_figure_is_a_figure_that_serialises(name):
    """House rules, for all: a title, an axis title, a caption inside the canvas, the one template, no legend."""
    fig = ALL[name]()
    assert type(fig) is go.Figure, "a FigureWidget would store 5 MB a notebook"
    assert json.loads(fig.to_json())["layout"]["template"]["layout"]["plot_bgcolor"] == "white"
    assert fig.layout.title.text and fig.layout.xaxis.title.text and not fig.layout.template.layout.showlegend
    caption = fig.layout.annotations[-1]
    assert caption.yshift == -52 and fig.layout.margin.b >= 52 + 14 * (caption.text.count("<br>") + 1)


def test_a_method_has_one_colour_everywhere():
    """Bug: colours by position in the figure, so a method changes colour when another joins."""
    alone = plots.accuracy_vs_flops([p for p in POINTS if p.method == "beam"])
    assert plots.colour("beam") in lines(alone) and plots.colour("beam") in lines(ALL["accuracy_vs_flops"]())
    assert plots.colour("beam") in lines(ALL["levels"]())
    assert len(set(plots.COLOURS.values())) == len(plots.COLOURS)
    assert re.fullmatch("#[0-9A-Fa-f]{6}", plots.colour("never heard of"))


TOGETHER = [  # what the notebooks draw in one figure
    ("majority", "weighted_vote (sums only)", "weighted_vote", "beam"),
    ("chain", "direct"),
    ("right steps", "wrong steps"),
    ("hard labels", "soft labels"),
    ("head", "head-rollouts", "orm"),
    ("likelihood", "taught policy", "head", "number only"),
    ("ceiling", "majority", "weighted_vote", "best_of_n"),
    ("score", "label"),
    ("greedy", "verifier alone", "majority", "best_of_n", "weighted_vote", "beam"),
    ("majority", "adaptive", "beam", "lookahead", "dvts", "mcts", "particle", "revisions", "hybrid"),
    ("best_of_n", "best_of_n (head)", "best_of_n (ORM)", "best_of_n (oracle)"),
    ("base", "restart", "continued"),
    ("outcome", "sum", "min", "mixed"),
    ("before", "outcome"),
    ("reinforce-outcome", "reinforce-sum", "reinforce-min", "reinforce-mixed"),
    ("flywheel-restart", "reinforce-outcome"),
    ("sampling", "guessing"),
    ("sampling", "majority", "weighted_vote", "best_of_n", "best_of_n (head)"),
    ("optimal, own pass@1", "optimal, predicted", "predicted, charged", "best_of_n", "majority", "best_of_n (oracle)"),
    ("R = 0.16", "R = 0.79", "R = 22"),
    ("teaching", "majority", "weighted_vote"),
    ("right chains", "wrong chains"),
]


def apart(a, b):
    """How unlike two colours look, roughly: 765 for black and white."""
    (r, *_), (s, *_) = mixed = [[int(ink[i : i + 2], 16) for i in (1, 3, 5)] for ink in (a, b)]
    weights = (2 + (r + s) / 512, 4, 2 + (510 - r - s) / 512)
    return math.sqrt(sum(w * (x - y) ** 2 for w, x, y in zip(weights, *mixed, strict=True)))


def test_no_two_lines_of_a_figure_look_alike():
    """Bugs: two names that hash to one spare colour, a spare that a method has, two oranges side by side."""
    for names in TOGETHER:
        for one, other in itertools.combinations(names, 2):
            assert apart(plots.colour(one), plots.colour(other)) > 100, (one, other)
    assert plots.colour("reinforce-outcome") == plots.colour("outcome") != plots.colour("flywheel-restart")
    spare = {plots.colour(f"unknown {i}") for i in range(50)}
    assert len(spare) > 1 and not spare & set(plots.COLOURS.values())


def test_curve_title_is_computed_at_equal_budget():
    """Bug: a title typed in; a rival credited with compute that the winner did not spend."""
    fig = plots.accuracy_vs_flops([*POINTS, point("weighted", 64, 9e11, 0.7)])
    assert fig.layout.title.text.replace("<br>", " ") == (
        "beam reaches 82% at 4.8·10<sup>10</sup> FLOPs per problem; next within that budget is majority with 66%"
    )
    assert (
        "less than any other method"
        in plots.accuracy_vs_flops([point("beam", 1, 1e6, 0.9), POINTS[0]]).layout.title.text
    )
    assert plots.accuracy_vs_flops(POINTS, title="mine").layout.title.text == "mine"
    assert "n = 50 problems, 2 seeds" in words(fig) and fig.layout.xaxis.type == "log"


def test_a_bin_without_a_number_is_a_gap_and_counted():
    """Bug: an unmeasured bin drawn as 0, or left out so that the line runs through."""
    fig = ALL["by_bin"]()
    assert lines(fig) == {plots.colour("beam"): [0.9, None, 0.2]} and "Not measured: 1." in words(fig)
    with pytest.raises(WorkbenchError, match="no bin has a number"):
        plots.by_bin({"beam": {1: None}})


def test_a_title_names_the_bins_that_each_line_has():
    """Bug: "from bin 1 to 3" of a line that ends at 2, and of one that has a single bin."""
    lines_ = {
        "beam": {1: around(0.9), 2: around(0.5), 3: around(0.2)},
        "vote": {1: around(0.8), 2: around(0.4), 3: None},
    }
    lines_ |= {
        "mcts": {2: around(0.6), 3: around(0.1)},
        "greedy": {2: around(0.3)},
        "dvts": {1: around(0.7), 2: around(0.6)},
    }
    title = plots.by_bin(lines_, x="problem level").layout.title.text.replace("<br>", " ")
    assert title == (
        "From level 1 to 3: beam 90% to 20%; from level 1 to 2: vote 80% to 40%, dvts 70% to 60%; "
        "from level 2 to 3: mcts 60% to 10%"
    )
    assert plots.by_bin({"beam": {2: around(0.3)}}).layout.title.text == "No line has two bins to compare"


def test_the_surface_puts_each_policy_at_its_training():
    """Bugs: columns in order of appearance, not of compute; accuracy of another point written on a dot."""
    fig = ALL["surface"]()
    drawn = {(x, y): text for t in fig.data for x, y, text in zip(t.x, t.y, t.text, strict=True)}
    assert drawn == {(1e12, 1e6): "11", (1e12, 9e6): "19", (1e13, 1e6): "61", (1e13, 9e6): "69"}
    assert fig.layout.xaxis.type == fig.layout.yaxis.type == "log"
    with pytest.raises(WorkbenchError, match="no training FLOPs for late"):
        plots.surface([point("late", 1, 1e6, 0.5)], {"early": 1e12})


def test_coverage_names_what_it_counts():
    """Bug: submissions, and votes, were drawn over "samples k" and called "pass@k"."""
    fig = plots.coverage({"majority": [(1, around(0.3)), (8, around(0.6))]}, x="submissions k of 9", y="solved")
    assert (fig.layout.xaxis.title.text, fig.layout.yaxis.title.text) == ("submissions k of 9 (log scale)", "solved")
    assert fig.layout.title.text == "majority: solved from 30% at k = 1 to 60% at 8"
    assert "pass@" not in fig.to_json() and "samples" not in fig.to_json()


def test_the_baseline_is_inside_the_picture():
    """Bug: a dashed line that the automatic range does not see."""
    fig = plots.accuracy_vs_flops(POINTS, baseline=0.05)
    low, high = fig.layout.yaxis.range
    assert low < 0.05 < high and "baseline 5%" in words(fig)


def test_a_missing_value_is_a_gap():
    """Bug: a missing score drawn as 0, or bridged as if it had been measured."""
    rows = [{"step": s, "accuracy": a, "run": "sum"} for s, a in [(0, 0.5), (1, None), (2, 0.7)]]
    fig = plots.learning_curve(rows)
    (line,) = (t for t in fig.data if t.mode == "lines+markers")
    assert list(line.y) == [0.5, None, 0.7] and line.connectgaps is False
    assert "gaps: 1" in words(fig)
    nothing = plots.learning_curve([{"step": 0, "accuracy": None}])
    assert "unmeasured" in nothing.layout.title.text


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_number_is_a_gap_and_counted(value):
    """Bug: "loss goes from nan to 0.5"."""
    fig = plots.learning_curve(
        [{"step": s, "loss": v} for s, v in [(0, value), (1, 0.9), (2, value), (3, 0.5)]], y="loss"
    )
    (line,) = (t for t in fig.data if t.mode == "lines+markers")
    assert list(line.y) == [None, 0.9, None, 0.5] and "gaps: 2" in words(fig)
    assert fig.layout.title.text == "loss goes from 0.9 to 0.5 by step 3"
    rows = [{"run": "sum", "step": s, "proxy": v, "true": 0.5} for s, v in [(0, 1.0), (1, value), (2, 3.0)]]
    assert plots.proxy_vs_truth(rows).layout.title.text == "sum: proxy reward +2, true reward +0"


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: plots.coverage({}), "coverage of nothing has no points"),
        (lambda: plots.coverage({"a": [(1, around(0.3))], "b": []}), "coverage of b has no points"),
        (lambda: plots.coverage({"a": [(1, around(0.3)), (8, None)]}), "coverage of a has no points, or one without"),
        (lambda: plots.coverage({"a": [(0, around(0.3))]}), "a log axis starts above 0, and 0 is"),
        (lambda: plots.surface([], {}), "a surface needs points"),
        (lambda: plots.surface([point("early", 1, 1e6, 0.5)], {"early": 0.0}), "a log axis starts above 0, and 0.0 is"),
        (lambda: plots.accuracy_vs_flops([point("beam", 1, 0.0, 0.5)]), "a log axis starts above 0, and 0.0 is"),
        (lambda: plots.accuracy_vs_flops([point("beam", 1, math.nan, 0.5)]), "a log axis starts above 0, and nan is"),
        (lambda: plots.reliability_plot([]), "no bin has a step"),
        (lambda: plots.reliability_plot([Bin(0, 1, None, None, 0)]), "no bin has a step"),
        (lambda: plots.learning_curve([]), "no rows of history, so no 'accuracy'"),
        (lambda: plots.proxy_vs_truth([]), "no rows of history, so no 'proxy'"),
        (lambda: plots.learning_curve([{"step": None, "accuracy": 0.1}]), "the 'step' of a history row is None"),
        (lambda: plots.learning_curve([{"step": math.nan, "accuracy": 0.1}]), "the 'step' of a history row is nan"),
        (lambda: plots.learning_curve([{"step": 1, "accuracy": "x"}]), "the 'accuracy' of a history row is 'x'"),
        (lambda: findings([]), "no claims to draw: run the notebooks"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(draw, message):
    """Bugs: ZeroDivisionError, IndexError, math domain error, and an empty figure without a word."""
    with pytest.raises(WorkbenchError, match=message):
        draw()


def test_a_missing_interval_is_a_gap_in_the_band_and_counted():
    points = [point("beam", 1, 1e6, 0.5), point("beam", 2, 2e6, 0.6, None, None), point("beam", 4, 4e6, 0.7)]
    fig = plots.accuracy_vs_flops(points)
    bands = [t for t in fig.data if t.fill == "toself"]
    assert [list(t.x) for t in bands] == [[1e6, 1e6], [4e6, 4e6]]
    assert "without an interval: 1" in words(fig)
    assert 0 not in [y for t in fig.data for y in t.y]


def test_a_curve_over_mixed_axes_is_refused():
    with pytest.raises(WorkbenchError, match="same axis"):
        plots.accuracy_vs_flops([POINTS[0], point("beam", 1, 5, 0.5, axis="tokens")])
    with pytest.raises(WorkbenchError):
        plots.accuracy_vs_flops([])


def test_proxy_and_truth_are_drawn_both_with_seeds_as_bands():
    """Bug: proxy reward up, true reward down, and nobody looks."""
    rows = [
        {"run": "sum", "step": s, "proxy": 3 * s + seed, "true": 0.5 - s / 100 + seed / 10}
        for s in (0, 10)
        for seed in (0, 1)
    ]
    fig = plots.proxy_vs_truth(rows)
    assert fig.layout.title.text == "sum: proxy reward +30, true reward -0.1"
    proxy, true = (t for t in fig.data if t.mode == "lines+markers")
    assert (list(proxy.y), proxy.yaxis) == ([0.5, 30.5], "y") and true.yaxis == "y2"
    assert list(true.y) == pytest.approx([0.55, 0.45])
    assert list(next(t for t in fig.data if t.fill == "toself").y) == [0, 30, 31, 1] and "2 seeds" in words(fig)
    assert fig.layout.yaxis2.range[1] < 1, "each panel has its own scale"
    with pytest.raises(WorkbenchError, match="'true'"):
        plots.proxy_vs_truth([{"run": "sum", "step": 0, "proxy": 1}])


def test_recorded_intervals_are_the_band():
    rows = [{"step": s, "accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.7} for s in (0, 1)]
    band = next(t for t in plots.learning_curve(rows).data if t.fill == "toself")
    assert list(band.y) == [0.4, 0.4, 0.7, 0.7]


def test_the_caption_of_a_history_says_what_it_was_measured_on():
    """Bug: accuracy while training, without a word of how many problems and seeds it was taken on."""
    rows = [{"step": s, "accuracy": 0.5, "n": 240} for s in range(3)]
    assert "3 measurements on n = 240 problems, 1 seed each." in words(plots.learning_curve(rows))
    twice = [*rows, {"step": 2, "accuracy": 0.6, "n": 96}]
    assert "on n = 96–240 problems. Bands: range over 2 seeds" in words(plots.learning_curve(twice))
    assert "n =" not in words(plots.learning_curve([{"step": 0, "loss": 2.0}], y="loss"))


def test_a_band_that_is_no_interval_is_not_called_one():
    """Bug: the range over some steps of one run was captioned as a 95 % interval."""
    rows = [{"step": s, "proxy": 0.5, "proxy_low": 0.4, "proxy_high": 0.6, "true": 0.1} for s in range(3)]
    for draw in (plots.proxy_vs_truth, partial(plots.learning_curve, y="proxy")):
        assert "Bands: the range of three steps." in words(draw(rows, band="the range of three steps"))
        assert "Bands: 95 % intervals as recorded." in words(draw(rows))


def test_names_at_the_ends_do_not_overlap():
    """Bug: direct labels printed over one another where lines end together."""
    points = [point(name, n, 1e6 * n, 0.5 + n / 10) for name in ("beam", "best", "weighted") for n in (1, 2)]
    fig = plots.accuracy_vs_flops(points)
    heights = sorted(t.y[0] for t in fig.data if t.mode == "text")
    span = fig.layout.yaxis.range[1] - fig.layout.yaxis.range[0]
    assert min(b - a for a, b in zip(heights, heights[1:], strict=False)) > 0.05 * span
    assert fig.layout.margin.r > 8 * len("weighted")


def test_names_stay_where_their_lines_end():
    """Bugs: names at other ends of the figure pushed one another away; a name on another method's line; a name far
    from its line, and nothing leads there."""
    ends = {"mcts": [1e6, 2e6], "dvts": [1e7, 2e7], "beam": [1e8, 2e8]}
    fig = plots.accuracy_vs_flops([point(m, n, x, 0.5) for m, xs in ends.items() for n, x in enumerate(xs, 1)])
    assert [t.y[0] for t in fig.data if t.mode == "text"] == [0.5] * 3
    below = [point("majority", n, x, 0.4 + n / 50) for n, x in enumerate((1e6, 1e7, 1e8), 1)]
    fig = plots.accuracy_vs_flops([*below, *(point("mcts", n, x, 0.44) for n, x in enumerate((2e6, 1e7), 1))])
    place = {t.text[0].strip(): t.y[0] for t in fig.data if t.mode == "text"}
    span = fig.layout.yaxis.range[1] - fig.layout.yaxis.range[0]
    assert place["majority"] == 0.46 and abs(place["mcts"] - 0.45) > 0.025 * span
    fig = plots.accuracy_vs_flops(
        [point(m, n, 1e6 * n, 0.5) for m in ("beam", "mcts", "dvts", "hybrid") for n in (1, 2)]
    )
    far = [t.y[0] for t in fig.data if t.mode == "text" and abs(t.y[0] - 0.5) > 0.065 * 0.2]
    leaders = [note for note in fig.layout.annotations if note.arrowwidth]
    assert sorted(note.ay for note in leaders) == sorted(far) and {note.y for note in leaders} == {0.5}
    assert {note.x for note in leaders} == {math.log10(2e6)} and len(far) == 2


def test_the_label_of_the_baseline_covers_no_name():
    """Bug: it stood at the right end of its line, on the names of lines that end there."""
    side = lambda fig: next(note.x for note in fig.layout.annotations if "baseline" in note.text)  # noqa: E731
    beam, mcts = {1: around(0.9), 2: around(0.8), 3: around(0.12)}, {1: around(0.9), 2: around(0.8), 3: around(0.08)}
    assert side(plots.by_bin({"beam": {1: around(0.9), 2: around(0.5)}}, baseline=0.1)) == 0.99
    assert side(plots.by_bin({"beam": beam, "mcts": mcts}, baseline=0.1)) == 0.6


def test_levels_keep_methods_apart():
    """Bug: records of two methods, or two n, averaged into one line."""
    records = [
        Record("r", f"p/{i}", 0, "5", i % 4 < right, level=1 + i // 20, knobs={"method": m, "n": n})
        for m, n, right in [("beam", 4, 3), ("majority", 4, 2), ("majority", 16, 1)]
        for i in range(40)
    ]
    fig = plots.levels(records)
    found = [list(t.y) for t in fig.data if t.mode == "lines+markers"]
    assert sorted(found) == [[0.25, 0.25], [0.5, 0.5], [0.75, 0.75]]
    assert fig.layout.title.text.startswith("From level 1 to 2: beam 75% to 75%, majority n=16 25% to 25%")
    assert "n = 20 problems a level" in words(fig)


def test_reliability_leaves_empty_bins_out():
    fig = plots.reliability_plot([Bin(0, 0.5, None, None, 0), Bin(0.5, 1, 0.75, 0.5, 4)], "PRM")
    assert list(fig.data[1].x) == [0.75] and list(fig.data[1].y) == [0.5]
    assert fig.layout.title.text == "PRM scores are 25 points off on average, on the whole too high<br>by 25 points"
    bins = [Bin(0, 0.5, 0.3, 0.5, 50), Bin(0.5, 1, 0.9, 0.7, 50)]  # Bug: "mostly too low" by the sign of a rounding
    assert plots.reliability_plot(bins).layout.title.text == "verifier scores are 20 points off on average"
    assert "1 of them empty" in words(fig)


def test_score_and_label_by_depth():
    """Bugs: an empty depth drawn as 0, or bridged; a title that does not follow the numbers."""
    fig = plots.score_by_depth([*DEPTHS, Depth(5, 0, None, None, None)], "PRM")
    found = lines(fig)
    assert found[plots.colour("score")] == [0.8, 0.8, 0.8]
    assert found[plots.colour("label")] == pytest.approx([0.7, 0.6, 0.4]) and list(fig.layout.xaxis.tickvals) == [
        1,
        2,
        4,
    ]
    assert fig.layout.title.text == "PRM scores are 10 points too high at step 1 and 40 too high at step 4"
    assert "113 steps, 39 at the first depth and 36 at the last" in words(fig) and "n = 7 problems a depth" in words(
        fig
    )
    low = plots.score_by_depth([Depth(0.2, 3, around(0.2), around(0.5), around(-0.3))], x="share of the chain")
    assert low.layout.title.text == "verifier scores are 30 points too low at share of the chain 0.2"
    assert low.layout.xaxis.title.text == "share of the chain"
    with pytest.raises(WorkbenchError, match="nothing to draw"):
        plots.score_by_depth([Depth(5, 0, None, None, None)])


def test_depths_that_few_problems_reach_are_counted_not_drawn():
    """Bug: the last word of the title goes to one chain of 54 steps."""
    lone = Estimate(1.0, None, None, 1)
    fig = plots.score_by_depth([*DEPTHS, Depth(54, 2, lone, lone, around(0.0))])
    assert "at step 4" in fig.layout.title.text and "Not drawn: 2 steps at 1 depths of under 5 problems" in words(fig)
    assert "at step 54" in plots.score_by_depth([*DEPTHS, Depth(54, 2, lone, lone, lone)], least=1).layout.title.text


def test_best_of_n_is_drawn_with_the_vote_under_the_ceiling():
    fig = plots.best_of_n(CHOICE)
    found = lines(fig)
    for method in ("majority", "best_of_n", "weighted_vote", "ceiling"):
        assert found[plots.colour(method)] == [getattr(row, method).value for row in CHOICE.rows]
    assert fig.layout.title.text == "Of 4, the highest score is right in 67%, the vote in 100%, any response in 100%"
    assert "baseline 75%" in words(fig) and "n = 30 problems, 120 responses (0 not scored" in words(fig)
    assert list(fig.layout.xaxis.tickvals) == [1, 2, 4] and fig.layout.xaxis.type == "log"


def test_over_optimisation_shows_the_score_beside_the_accuracy():
    """Bug: reward up, accuracy down, and one of the two is not drawn."""
    fig = plots.over_optimisation(CHOICE)
    reward, ceiling, best = (t for t in fig.data if t.mode == "lines+markers")
    assert list(reward.y) == [row.reward.value for row in CHOICE.rows] and reward.yaxis == "y"
    assert list(best.y) == [row.best_of_n.value for row in CHOICE.rows] and best.yaxis == ceiling.yaxis == "y2"
    assert fig.layout.title.text.replace("<br>", " ") == (
        "N=1 to 4: chosen score +0.7, accuracy -8 points (33 under the ceiling), clear fall on the way to N=4"
    )
    with pytest.raises(WorkbenchError, match="no response has a score"):
        plots.over_optimisation(judging.best_of_n({"p": [Response(5, True, None)]}))


def test_findings_show_every_training_and_where_a_claim_holds():
    """Bugs: the mean hides how far trainings lie apart; an open end drawn as a number; a claim that was not measured
    dropped; a ratio on a linear axis; the goal without its side."""
    fig = findings({seed: found(seed) for seed in range(3)})
    assert fig.layout.title.text == "4 claims: 1 holds, 2 undecided, 1 not measured" and "3 trainings" in words(fig)
    assert list(fig.layout.yaxis.ticktext) == ["rl.gain", "x.lost", "sft.share"] and fig.layout.xaxis2.type == "log"
    rings = [list(t.x) for t in fig.data if set(t.marker.symbol or ()) == {"circle-open"}]
    assert rings == [pytest.approx([0.1, 0.11, 0.12]), [0.9] * 3, pytest.approx([2, 3, 4])]
    gain, factor = (list(t.x) for t in fig.data if t.mode == "lines")
    assert 0.08 < gain[0] < gain[1] < 0.14, "the interval is theirs, not the first one's"
    assert 1 < factor[0] < factor[1] == pytest.approx(24 ** (1 / 3)), "from the known end to the value"
    hollow = [list(t.x) for t in fig.data if t.marker.symbol == "diamond-open"]
    assert hollow == [[0.9], pytest.approx([24 ** (1 / 3)])], "no interval, and half of one"
    goals = [(list(t.x), t.marker.symbol) for t in fig.data if t.hoverinfo == "skip" and t.mode == "markers"]
    assert goals[:2] == [([0], ("triangle-right-open",)), ([0.3, 0.7], ("triangle-right-open", "triangle-left-open"))]
    assert goals[2:] == [([4], ("triangle-right-open",))], "what was not measured has a line and stretches no axis"
    first = [t for t in fig.data if list(t.y) == [0] * len(t.y) and t.yaxis == "y"]
    assert first[-1].marker.symbol == ("triangle-right-open",), "a goal that lies on the values is hidden by them"
    alone = findings(found())
    assert "ring" not in words(alone) and "4 claims: 1 holds, 2 undecided" in alone.layout.title.text
    assert [list(t.x) for t in alone.data if t.mode == "lines"] == [[0.05, 0.4], [1, 2]], "the upper end is open"
    assert fig.layout.xaxis2.dtick == "D2", "ratios inside one decade have ticks, too"
    few = {s: found(s)[:1] + (found(s)[2:] if not s else []) for s in range(3)}
    assert list(findings(few).layout.yaxis.ticktext) == ["rl.gain", "sft.share (problems)"]
    lost = {s: [found(s)[0], replace(found(s)[3], estimate=None if s else found()[3].estimate)] for s in range(3)}
    assert list(findings(lost).layout.yaxis.ticktext) == ["rl.gain", "sft.share (1 of 3 trainings)"]


def test_findings_count_what_a_log_axis_has_no_place_for_and_mark_bounds():
    """Bugs: an interval that begins below 0 vanished from the log axis of ratios without a word; a training that only
    bounds a ratio was drawn as one that measured it."""

    def rate(*ratios):
        return {s: [Claim("x.rate", "Jones", "it pays", ">= 1", r)] for s, r in enumerate(ratios)}

    fig = findings(rate(Ratio(1.5, -2.0, 3.0, 9)))
    assert [list(t.x) for t in fig.data if t.mode == "lines"] == [[1.5, 3.0]] and "no place for: 1." in words(fig)
    fig = findings(rate(Ratio(-0.5, -2.0, None, 9)))
    assert all(x > 0 for t in fig.data for x in t.x) and "no place for: 2." in words(fig)
    fig = findings(rate(Ratio(4, 4, None, 9, ">="), Ratio(2, 1, 3, 9), Ratio(0.5, None, 1, 9, "<=")))
    rings = next(t for t in fig.data if set(t.marker.symbol or ()) & {"circle-open"})
    assert rings.marker.symbol == (
        "arrow-bar-right-open",
        "circle-open",
        "arrow-bar-left-open",
    ) and "only a bound" in words(fig)
    assert "no place" not in words(fig)


def test_tree_fades_what_was_pruned_and_hides_no_text():
    """Bugs: step text run as markup; an unscored node coloured like a bad one."""
    fig = plots.labelled_tree(TREE)
    faded, kept = (t for t in fig.data if t.mode == "markers" and t.x[0] is not None)
    assert [t.split("<br>")[0] for t in faded.hovertext] == ["pruned"] and list(faded.marker.color) == ["#ffffff"]
    assert [t.split("<br>")[0] for t in kept.hovertext] == ["root", "1&lt;2", "&lt;i&gt;7&lt;/i&gt;", "8"]
    assert list(kept.marker.symbol) == ["circle", "circle", "square", "square"] and list(kept.x) == [0, 1, 2, 2]
    assert "ends in &lt;i&gt;7&lt;/i&gt; (0.80)" in fig.layout.title.text
    with pytest.raises(WorkbenchError, match="no nodes"):
        plots.labelled_tree([])


def test_tree_without_its_inner_nodes_is_still_a_tree():
    """Leaves alone, as a driver that keeps only results would give them."""
    fig = plots.labelled_tree([Node((0, 0), (Step("a"), Step("7", True)), "answer"), Node((1, 2), (Step("b"),))])
    assert (
        len([t for t in fig.data if t.mode == "markers"]) == 3 and "2 nodes, 1 finished chain" in fig.layout.title.text
    )


def test_no_two_nodes_of_a_tree_share_a_place():
    nodes = [Node(path, (Step("s", score=0.5),)) for path in [(i, j) for i in range(3) for j in range(3)] + [(3,)]]
    fig = plots.labelled_tree(nodes)
    places = [place for t in fig.data if t.mode == "markers" for place in zip(t.x, t.y, strict=True)]
    assert len(set(places)) == len(places)


def test_show_steps_escapes_and_tells_unknown_from_zero():
    """Bugs: a step that runs as a script; a missing score shown as 0; an unfinished chain shown as answered."""
    page = plots.show_steps(
        Trace((Step("<script>x</script>", score=0.0), Step("2", score=None), Step("5", final=True, score=1.0))),
        Trace((Step("1+1"),), stop="length"),
    ).data
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert page.count("–") == 2 and page.count("0.00") == 1 and page.count("width:100px") == 1
    assert page.count("no answer: out of tokens") == 1 and page.count("<table") == 2


def test_show_source_shows_the_code_that_runs():
    text = re.sub("<[^>]*>", "", plots.show_source(plots.colour).data)
    assert text.startswith("def colour(method: str)") and "style=" in plots.show_source(plots.colour).data
    with pytest.raises(WorkbenchError, match="no source"):
        plots.show_source(len)


def test_save_falls_back_to_html_aloud(tmp_path, monkeypatch):
    """Bug: no browser, no figure, no word."""

    def no_browser(self, path, scale):
        raise RuntimeError("Kaleido requires Google Chrome\nmore")

    monkeypatch.setattr(go.Figure, "write_image", no_browser)
    with pytest.warns(UserWarning, match=r"wrote tree\.html: .*chromium installed \(Kaleido requires Google Chrome\)"):
        path = plots.save(ALL["labelled_tree"](), tmp_path / "figures" / "tree.png")
    assert path == tmp_path / "figures" / "tree.html" and "plotly" in path.read_text()[:9000]
    monkeypatch.setattr(go.Figure, "write_image", lambda self, path, scale: path.write_bytes(b"image"))
    for asked, made in (("a", "a.png"), ("a.svg", "a.svg"), ("a.html", "a.html")):
        assert plots.save(go.Figure(), tmp_path / asked) == tmp_path / made and (tmp_path / made).exists()
    with pytest.raises(WorkbenchError, match=r"a\.b: .* \.png, \.svg"):
        plots.save(go.Figure(), tmp_path / "a.b")


@pytest.mark.parametrize("low, high", [(1, 64), (3e6, 4e6), (2e9, 3e12)])
def test_a_log_axis_always_has_ticks(low, high):
    fig = go.Figure()
    plots.curves._log_ticks(fig, [low, high])
    assert len(fig.layout.xaxis.tickvals) >= 1
    assert fig.layout.xaxis.range[0] < math.log10(low) and math.log10(high) < fig.layout.xaxis.range[1]


def test_every_line_keeps_its_name_inside_the_picture():
    """Bug: lines that end together at the top push a name out of the range, where plotly draws nothing."""
    together = [
        point(name, n, 1e6 * n, n / 10) for name in ("beam", "dvts", "mcts", "majority", "hybrid") for n in (1, 9)
    ]
    fig = plots.accuracy_vs_flops(together)
    low, high = fig.layout.yaxis.range
    names = [y for t in fig.data if t.mode == "text" for y in t.y]
    assert len(names) == 5 and low <= min(names) and max(names) <= high
    assert min(b - a for a, b in zip(sorted(names), sorted(names)[1:], strict=False)) > 0.05 * (high - low) / 1.12
