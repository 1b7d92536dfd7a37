"""Where test-time compute pays: difficulty, the best setting for each, what it saves, and a larger model instead."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..types import Record, WorkbenchError
from .curves import Columns, Point, Setting, Table, by_problem, of_methods
from .stats import Estimate, Ratio, column, means, numbers, ordered, paired, ratio, resampled, some, whole

# Difficulty


def quantile_bins(pass1: Mapping[str, float], k: int = 5) -> dict[str, int]:
    """{problem: difficulty bin 1 (easiest) … k} by the policy's own pass@1 (Snell et al. 2024).

    Bins differ in size by one at most: equal pass@1 is ordered by problem id. Estimate pass@1 from other samples than
    those you then measure, or the bins follow their noise. Predicted difficulty, which needs no gold answers, is
    `quantile_bins(mean_scores(records))`, and costs `spent(records)`. Errors: fewer problems than bins, a pass@1 that
    is missing or NaN (named).

    >>> quantile_bins({"a": 0.9, "b": 0.1, "c": 0.5, "d": 0.5}, k=2)
    {'a': 1, 'c': 1, 'd': 2, 'b': 2}
    """
    if whole("the number of bins", k, 1) > len(pass1):
        raise WorkbenchError(f"cannot cut {len(pass1)} problems into {k} bins")
    column(pass1, "the pass@1")
    order = sorted(ordered(pass1), key=lambda problem: -pass1[problem])
    return {problem: 1 + rank * k // len(order) for rank, problem in enumerate(order)}


def mean_scores(records: Iterable[Record]) -> dict[str, float]:
    """{problem: mean verifier score of its records}, from knobs["score"]; no gold answer is read.

    A record without a score is left out and counted aloud. Errors: a problem without any score, a score that is no
    number, two settings.

    >>> mean_scores([Record("r", "p/1", s, "5", None, knobs={"score": s / 2}) for s in range(3)])
    {'p/1': 0.5}
    """
    columns = Columns(records)
    columns.one_setting()
    given = [record.knobs.get("score") for record in columns.records]
    scores = numbers(given, "the knob score", lambda i: columns.records[i].problem)
    known = np.isfinite(scores)
    count, total = columns.counts(known)[:, 0], columns.counts(np.where(known, scores, 0))[:, 0]
    if unknown := [columns.problems[i] for i in np.flatnonzero(count == 0)]:
        raise WorkbenchError(f"{some(unknown)} has no score at all: judge its samples, or leave the problem out")
    if not known.all():
        warnings.warn(f"left out {(~known).sum()} of {len(known)} records: no score", stacklevel=2)
    return dict(zip(columns.problems, (total / count).tolist(), strict=True))


def spent(records: Iterable[Record], x: str = "flops") -> dict[str, float]:
    """{problem: sum of cost.`x` of its records}: what an estimate made from these records cost, to be charged.

    >>> from workbench.types import Cost
    >>> spent([Record("r", "p/1", s, "5", True, Cost(policy_flops=1e6)) for s in range(4)])
    {'p/1': 4000000.0}
    """
    columns = Columns(records)
    return dict(zip(columns.problems, columns.counts(columns.spent(x)).sum(1).tolist(), strict=True))


# The compute-optimal strategy


@dataclass(frozen=True)
class Optimal:
    """What choosing a setting per bin gives: {problem: mark}, {problem: cost}, and the settings chosen.

    `choices`: {bin: {(method, n): share of its choices}}. `axis`: what the costs count. Marks and costs are means over
    many halvings, which takes the luck of a halving from them and not that of the problems: a bootstrap of the means
    themselves would be too narrow (87 % where it says 95), so every interval has the width that one halving has.
    `first`: {problem: (how far its mark in the first halving lies from the mean, how many times the mean its cost is)}.
    """

    marks: dict[str, float]
    costs: dict[str, float]
    choices: dict[int, dict[Setting, float]]
    seeds: int
    axis: str
    first: dict[str, tuple[float, float]]

    def single(self, problems: Iterable[str]) -> np.ndarray:
        """[problems, (mark, cost)] of the first halving, with the means of all halvings: marks by a shift, so that one
        may lie a little outside of 0-1, costs by a factor, so that all stay above 0."""
        mark, cost, away, times = np.array([(self.marks[p], self.costs[p], *self.first[p]) for p in problems]).T
        return np.stack([mark + away - away.mean(), cost * times * cost.mean() / (cost * times).mean()], axis=1)

    def lead(self, over: Mapping[str, float] | Optimal, *, seed: int = 0) -> Estimate:
        """Its marks less those of another, paired over the problems that `over` {problem: mark} has: all, or a part."""
        marks = over.marks if isinstance(over, Optimal) else over
        column(marks, "the mark")
        if odd := marks.keys() - self.marks.keys():
            raise WorkbenchError(f"the two sides cover different problems: {some(odd)} on one only")
        problems = ordered(marks)
        theirs = over.single(problems)[:, 0] if isinstance(over, Optimal) else [over[p] for p in problems]
        gaps = self.single(problems)[:, 0] - theirs
        return means(gaps[:, None], self.seeds, (-1.0, 1.0), seed)[0]

    def point(self, method: str = "compute-optimal", charge: Mapping[str, float] | None = None) -> Point:
        """A point of a curve; `n` is the mean n chosen. `charge` {problem: cost} is added to what was spent."""
        mean = [sum(n * share for (_, n), share in chosen.items()) for chosen in self.choices.values()]
        if charge is not None and not self.costs.keys() <= charge.keys():
            raise WorkbenchError(f"no charge for {some(self.costs.keys() - charge.keys())}")
        extra = column({p: charge[p] for p in self.costs}, "the charge").mean() if charge is not None else 0.0
        x = float(np.mean(list(self.costs.values())) + extra)
        [accuracy] = means(self.single(ordered(self.marks))[:, :1], self.seeds)
        return Point(method, round(np.mean(mean)), x, accuracy, self.axis)


def compute_optimal(
    records: Iterable[Record],
    bins: Mapping[str, int],
    budget: float,
    *,
    shared: bool = False,
    x: str = "flops",
    repeats: int = 20,
    seed: int = 0,
) -> Optimal:
    """The compute-optimal strategy (Snell et al. 2024, arXiv 2408.03314): the best setting in each bin.

    `records`: any number of settings (knobs method and n) on the problems of `bins` {problem: bin}. `budget`: mean
    cost.`x` a problem. Two-fold cross-validation inside a bin: on one half choose the setting with the best accuracy
    among those whose mean cost there is at most `budget` (the cheaper of equals), read its marks and costs on the other
    half, swap. That is done for `repeats` random halvings, and a problem's mark is the mean over them. The halvings
    depend on problem ids and `seed` only, so budgets and strategies can be compared. The mean cost reported may lie a
    little over `budget`, for it is measured on the other half. The budget is a cap on each bin, in units of cost: a
    hard bin, whose chains are dearer, is refused an n that the budget pays for on average over all bins, so a method at
    that n, which costs the budget, can be more accurate than this. Snell et al. give every question the same number of
    generations, whatever they cost. `shared`: the budget is one purse for all bins, what an easy one leaves a harder
    one may spend (as Damani et al. 2024, arXiv 2410.04707, allot samples); all bins are then chosen for together, and
    exactly.
    Errors: bins that cover other problems, a bin of one problem (cut fewer), a bin in which no setting is paid for.
    Left out: in the draws of an interval the choices stay as they are (see `Optimal` for its width); difficulty is
    given, see `Optimal.point(charge=)`.

    >>> from workbench.types import Cost
    >>> rows = [Record("r", f"p/{i}", 0, "5", (i < 10) == (m == "vote"), Cost(policy_flops=1e6), knobs={"method": m})
    ...         for m in ("vote", "beam") for i in range(20)]
    >>> best = compute_optimal(rows, {f"p/{i}": 1 + i // 10 for i in range(20)}, budget=1e6)
    >>> best.choices, sum(best.marks.values())
    ({1: {('vote', 1): 1.0}, 2: {('beam', 1): 1.0}}, 20.0)
    """
    table = Table(records, x)
    return _choose(table, bins, np.full(len(table.problems), float(budget)), repeats, seed, shared)


def optimal_curve(
    records: Iterable[Record],
    bins: Mapping[str, int],
    budgets: Sequence[float],
    *,
    charge: Mapping[str, float] | None = None,
    method: str = "compute-optimal",
    shared: bool = False,
    x: str = "flops",
    repeats: int = 20,
    seed: int = 0,
) -> list[Point]:
    """`compute_optimal` at each budget, as points for a figure; `charge` {problem: cost} moves them to the right, and
    `shared` is as there.

    A budget that pays for no setting in some bin has no point: it is left out and counted aloud. Errors: no budget, all
    are too small, and as `compute_optimal`.

    >>> from workbench.types import Cost
    >>> rows = [Record("r", f"p/{i}", 0, "5", i % 4 < n, Cost(policy_flops=n), knobs={"method": "vote", "n": n})
    ...         for n in (1, 3) for i in range(20)]
    >>> line = optimal_curve(rows, {f"p/{i}": 1 for i in range(20)}, [1, 8], charge={f"p/{i}": 0.5 for i in range(20)})
    >>> [(point.n, round(point.x, 9), point.accuracy.value) for point in line]
    [(1, 1.5, 0.25), (3, 3.5, 0.75)]
    """
    table, points = Table(records, x), []
    if not len(budgets):
        raise WorkbenchError("no budget: give one or more, such as the costs of `curve`")
    for budget in budgets:
        try:
            chosen = _choose(table, bins, np.full(len(table.problems), float(budget)), repeats, seed, shared)
        except _TooSmall as error:
            reason = error
        else:
            points.append(chosen.point(method, charge))
    if not points:
        raise WorkbenchError(f"none of {len(budgets)} budgets pays for anything: {reason}")
    if len(points) < len(budgets):
        warnings.warn(f"{len(budgets) - len(points)} of {len(budgets)} budgets have no point: {reason}", stacklevel=2)
    return points


class _TooSmall(WorkbenchError):
    """A budget that pays for nothing."""


def _choose(
    table: Table, bins: Mapping[str, int], budget: np.ndarray, repeats: int, seed: int, shared: bool = False
) -> Optimal:
    if bins.keys() != set(table.problems):
        raise WorkbenchError(f"bins and records cover different problems: {some(bins.keys() ^ set(table.problems))}")
    whole("repeats", repeats, 1)
    rng, each = np.random.default_rng(seed), np.array([bins[problem] for problem in table.problems])
    names = ordered(set(bins.values()), "bins")
    inside = [np.flatnonzero(each == b) for b in names]
    for b, rows in zip(names, inside, strict=True):
        if len(rows) < 2:
            raise WorkbenchError(
                f"bin {b} has one problem ({table.problems[rows[0]]}), and two folds need two: cut fewer"
            )
    orders = [[rng.permutation(rows) for _ in range(repeats)] for rows in inside]
    found, chosen = np.zeros((repeats, len(each), 2)), [Counter() for _ in names]  # marks and costs in each halving
    for fold in range(2 * repeats):
        halves = [(order[fold // 2][fold % 2 :: 2], order[fold // 2][1 - fold % 2 :: 2]) for order in orders]
        price = np.stack([table.costs[there].mean(0) for _, there in halves])
        score = np.stack([table.marks[there].mean(0) for _, there in halves]).round(9)
        if shared:
            best = _together(
                price, score, np.array([len(rows) for rows in inside]) / len(each), budget.mean(), table.axis
            )
        else:
            best = [
                _alone(price[i], score[i], budget[there].mean(), f"{table.axis} in bin {names[i]}")
                for i, (_, there) in enumerate(halves)
            ]
        for i, (here, _) in enumerate(halves):
            chosen[i][table.settings[best[i]]] += 0.5 / repeats
            found[fold // 2, here] = np.stack([table.marks[here, best[i]], table.costs[here, best[i]]], axis=1)
    choices = {
        b: {setting: round(share, 9) for setting, share in picks.most_common()}
        for b, picks in zip(names, chosen, strict=True)
    }
    mean = found.mean(0)
    marks, costs = (dict(zip(table.problems, values, strict=True)) for values in mean.T.tolist())
    first = np.stack([found[0, :, 0] - mean[:, 0], found[0, :, 1] / mean[:, 1]], axis=1)
    first = dict(zip(table.problems, map(tuple, first.tolist()), strict=True))
    return Optimal(marks, costs, choices, int(table.seeds.min()), table.axis, first)


def _alone(price: np.ndarray, score: np.ndarray, budget: float, unit: str) -> int:
    """The setting of the best score that costs at most `budget`; of equals the cheapest."""
    paid = price <= budget * (1 + 1e-9)
    if not paid.any():
        raise _TooSmall(f"a budget of {budget:.3g}, and the cheapest setting takes {price.min():.3g} {unit}")
    return int(np.lexsort((price, -np.where(paid, score, -1)))[0])


def _together(price: np.ndarray, score: np.ndarray, weight: np.ndarray, budget: float, unit: str) -> np.ndarray:
    """A setting for each bin, (bins,), of the best mean score that costs at most `budget` in the mean; exact.

    Bin by bin, what is dearer than another way that scores as well is dropped: few ways are left, for there are no more
    than there are scores.
    """
    cost, gain, ways = np.zeros(1), np.zeros(1), np.zeros((1, 0), int)
    for prices, scores, share in zip(price, score, weight, strict=True):
        cost, gain = (np.add.outer(a, share * b).ravel() for a, b in ((cost, prices), (gain, scores)))
        ways = np.hstack([ways.repeat(len(prices), 0), np.tile(np.arange(len(prices)), len(ways))[:, None]])
        order = np.lexsort((-gain.round(9), cost))
        top = np.maximum.accumulate(gain[order].round(9))
        order = order[(cost[order] <= budget * (1 + 1e-9)) & np.r_[True, top[1:] > top[:-1]]]
        cost, gain, ways = cost[order], gain[order], ways[order]
    if not len(ways):
        least = f"{(weight * price.min(1)).sum():.3g} {unit} a problem"
        raise _TooSmall(f"a budget of {budget:.3g}, and the cheapest settings take {least}")
    return ways[-1]


# What it saves


def efficiency(
    records: Iterable[Record], baseline: str, strategy: Optimal | Setting, *, x: str = "flops", seed: int = 0
) -> Ratio:
    """The efficiency factor of Snell et al.: how many times the compute the baseline needs to be as accurate.

    `records`: the baseline method's at several n, and those of `strategy` if that is a setting (method, n). The
    baseline's accuracy is interpolated over log cost, from its cheapest n on, until it reaches the strategy's.
    Problems are resampled with their marks and costs, and the crossing is sought again in every draw; those of an
    Optimal vary as one halving's do.
    Nothing is extrapolated: a strategy better than every n measured gives a bound ">=" (the largest n's cost over the
    strategy's), and one worse than the smallest n a bound "<=".
    Errors: an unknown method, one n only, costs in another unit than `x`, different problems.

    >>> from workbench.types import Cost
    >>> def rows(method, n, right):
    ...     knobs, cost = {"method": method, "n": n}, Cost(policy_flops=1e6 * n)
    ...     return [Record("r", f"p/{i}", 0, "5", i < right, cost, knobs=knobs) for i in range(40)]
    >>> vote = [row for n, right in [(1, 10), (4, 20), (16, 30)] for row in rows("vote", n, right)]
    >>> round(efficiency([*vote, *rows("beam", 2, 25)], "vote", ("beam", 2)).value, 9)
    4.0
    >>> print(efficiency([*vote, *rows("beam", 4, 38)], "vote", ("beam", 4)))
    >= 4 [4 to open; n=40]
    """
    mine = None if isinstance(strategy, Optimal) else strategy
    records = of_methods(records, baseline, *(mine or ())[:1])
    kept = [r for r in records if r.knobs["method"] == baseline or (r.knobs["method"], r.knobs.get("n", 1)) == mine]
    table = Table(kept, x)
    theirs = [j for j in table.of(baseline) if table.settings[j] != mine]
    if len(theirs) < 2:
        raise WorkbenchError(f"a curve of {baseline} needs two n or more, found {some(table.settings)}")
    if mine:
        j = table.at(*mine)
        own = np.stack([table.marks[:, j], table.costs[:, j]], axis=1)
    elif strategy.axis != x:
        raise WorkbenchError(f"the strategy's cost is in {strategy.axis} and the baseline's in {x}: measure both alike")
    elif odd := strategy.marks.keys() ^ set(table.problems):
        raise WorkbenchError(f"the strategy and the baseline cover different problems: {some(odd)} on one only")
    else:
        if free := [p for p in table.problems if not 0 < strategy.costs[p] < math.inf]:
            raise WorkbenchError(f"the strategy's cost of {some(free)} is 0 or no number: it was not metered")
        own = strategy.single(table.problems)

    def factor(mean):
        """The least and the most that the factor can be."""
        goal, cost, height = mean[..., :1], np.log(mean[..., 1]), mean[..., 2 : 2 + len(theirs)]
        price = np.log(mean[..., 2 + len(theirs) :])
        reached = height >= goal - 1e-12
        j = np.where(reached.any(-1), reached.argmax(-1), 0)[..., None]
        here, before = (np.take_along_axis(height, i, -1) for i in (j, np.maximum(j - 1, 0)))
        to, start = (np.take_along_axis(price, i, -1) for i in (j, np.maximum(j - 1, 0)))
        w = np.where(j > 0, (goal - before) / np.where(j > 0, here - before, 1), 1)
        found = np.exp((start + w * (to - start))[..., 0] - cost)
        above, below = ~reached.any(-1), height[..., 0] > goal[..., 0] + 1e-12
        least = np.where(above, np.exp(price[..., -1] - cost), np.where(below, 0, found))
        return np.stack([least, np.where(above, np.inf, found)], axis=-1)

    rows = np.hstack([own, table.marks[:, theirs], table.costs[:, theirs]])
    least, most = factor(rows.mean(0)).tolist()
    bound = ">=" if most == math.inf else "<=" if least == 0 else ""
    drawn = resampled(rows, factor, seed)
    return ratio(least if most == math.inf else most, drawn[:, 0], drawn[:, 1], len(rows), bound)


# A larger model instead


@dataclass(frozen=True)
class Matched:
    """A small model with search minus a large one without, for the same FLOPs: in all, and {bin: difference}.

    `times`: what the small model may spend on a question, in units of one of its own samples. `small`: what it chose.
    """

    times: float
    gap: Estimate
    by_bin: dict[int, Estimate]
    small: Optimal


def flops_matched(
    small: Iterable[Record],
    large: Iterable[Record],
    bins: Mapping[str, int],
    *,
    size: float,
    ratio: float,
    passes: float = 1.0,
    one: Setting = ("greedy", 1),
    x: str = "flops",
    repeats: int = 20,
    seed: int = 0,
) -> Matched:
    """Search with a small model against one answer of a model `size` times larger, for equal FLOPs (Snell 2024).

    Pre-training takes 6·N·D_pre FLOPs and inference 2·N·D_inf, so with R = `ratio` = D_inf/D_pre (the paper: 0.16,
    0.79, 22) the small model may spend M + 3·(M − P)/R times its own inference; M = `size`, and P = `passes` how many
    times the large one's training tokens it read (the paper: once). Its own inference is what its setting `one` costs
    on the same problems; a search's whole cost counts, the verifier's too (`Cost.flops`).
    `small`: records of its settings; `large`: of one setting. In each bin the small model's best setting within the
    budget is chosen by two folds as in `compute_optimal`; differences are paired over problems.
    A budget beyond the largest n measured is not spent: then the small model could do better than said here.
    Errors: as `compute_optimal`; `size` under 1, a ratio of 0 or less, passes that cost more than the large model's.

    >>> from workbench.types import Cost
    >>> def rows(method, n, right):
    ...     return [Record("r", f"p/{i}", 0, "5", i < right, Cost(policy_flops=n), knobs={"method": method, "n": n})
    ...             for i in range(20)]
    >>> search, bins = [*rows("greedy", 1, 5), *rows("vote", 16, 15)], {f"p/{i}": 1 for i in range(20)}
    >>> [(m.times, round(m.gap.value, 2)) for r in (0.5, 22)
    ...  for m in [flops_matched(search, rows("greedy", 4, 10), bins, size=4, ratio=r)]]
    [(22.0, 0.25), (4.409090909090909, -0.25)]
    """
    if size < 1 or ratio <= 0:
        raise WorkbenchError(f"size {size} and ratio {ratio}: a larger model has size >= 1, and a ratio is above 0")
    if not 0 < passes <= size:
        raise WorkbenchError(
            f"passes={passes}: above 0, and at most size={size}: beyond it the training alone costs more"
        )
    table, rival = Table(small, x), by_problem(large)
    times = size + 3 * (size - passes) / ratio
    own = _choose(table, bins, times * table.costs[:, table.at(*one)], repeats, seed)
    paired(own.marks, rival)  # refuses other problems
    by_bin = {b: own.lead({p: mark for p, mark in rival.items() if bins[p] == b}, seed=seed) for b in own.choices}
    return Matched(times, own.lead(rival, seed=seed), by_bin, own)
