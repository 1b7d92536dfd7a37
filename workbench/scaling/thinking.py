"""Does the length of thinking follow the problem, and does it obey?"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..types import Record, WorkbenchError
from .curves import Columns, Table
from .stats import Estimate, between, bootstrap, column, draws, estimate, some

NEAR = 0.05  # budgets whose mean tokens differ by less, as a share, sampled the same: a cap that hardly any chain meets


@dataclass(frozen=True)
class Trend:
    """Tokens against difficulty over problems: rank correlation, and tokens that difficulty 1 has more than 0."""

    spearman: Estimate
    slope: Estimate
    chains: int


def adaptive_thinking(
    records: Iterable[Record],
    difficulty: Mapping[str, float] | None = None,
    *,
    within: Mapping[str, Hashable] | None = None,
    seed: int = 0,
) -> dict[str, Trend | None]:
    """{"all", "right", "wrong": does a chain get longer where the problem is harder}, over sampled tokens a problem.

    `difficulty`: {problem: 0 easy … 1 hard}, by default 1 − pass@1 of these same records. A wrong chain may simply be
    longer, and a hard problem has more of them: that alone gives "all" a trend. Right and wrong chains apart do not
    have it. `within`: {problem: group}; difficulty and tokens are then taken from their group's mean, since a problem
    of more operations is harder *and* has a longer right chain, for whoever adapts nothing. Each is a mean over a
    problem's chains of that kind, over the problems that have any; problems are resampled. None where fewer than three
    problems, or no two different values, are left.
    Errors: no difficulty (or NaN) or no group for a problem, tokens not metered, whatever `by_problem` refuses.

    >>> from workbench.types import Cost
    >>> rows = [Record("r", f"p/{i}", s, "5", s >= i, Cost(sampled=10 + 5 * i)) for i in range(5) for s in range(4)]
    >>> trend = adaptive_thinking(rows)["all"]
    >>> trend.spearman.value, trend.slope.value, trend.chains
    (1.0, 20.0, 20)
    """
    columns = Columns(records)
    columns.one_setting()
    columns.graded()
    tokens, count = columns.spent("sampled"), columns.counts()[:, 0]
    if difficulty is None:
        hard = 1 - columns.counts(columns.mark)[:, 0] / count
    elif missing := set(columns.problems) - difficulty.keys():
        raise WorkbenchError(f"no difficulty for {some(missing)}")
    else:
        hard = column({problem: difficulty[problem] for problem in columns.problems}, "the difficulty")
    if within is not None and (missing := set(columns.problems) - within.keys()):
        raise WorkbenchError(f"no group for {some(missing)}")
    code = {name: i for i, name in enumerate(dict.fromkeys((within or {}).values()))}
    group = np.array([code[within[problem]] for problem in columns.problems]) if within is not None else None
    kinds = {"all": np.ones(len(tokens), bool), "right": columns.mark == 1, "wrong": columns.mark == 0}
    wide, out = columns.seed.max() + 1, {}
    for kind, kept in kinds.items():
        each = np.bincount(np.unique(columns.problem[kept] * wide + columns.seed[kept]) // wide)
        seeds = int(each[each > 0].min(initial=wide))  # of this kind: a problem may have one right chain of many
        here = columns.counts(kept)[:, 0]
        any_ = here > 0
        length = columns.counts(np.where(kept, tokens, 0))[any_, 0] / here[any_]
        sides = (hard[any_], length)
        if group is not None:
            sides = (_centred(values, group[any_]) for values in sides)
        out[kind] = _trend(*sides, int(kept.sum()), seeds, seed)
    return out


def _centred(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Each value less the mean of its group."""
    return values - (np.bincount(group, values) / np.maximum(1, np.bincount(group)))[group]


def _trend(hard: np.ndarray, tokens: np.ndarray, chains: int, seeds: int, seed: int) -> Trend | None:
    if len(hard) < 3 or np.ptp(hard) == 0 or np.ptp(tokens) == 0:
        return None

    def slope(mean):
        spread = mean[..., 3] - mean[..., 0] ** 2
        return (mean[..., 2] - mean[..., 0] * mean[..., 1]) / np.where(spread > 1e-12, spread, np.nan)

    rows = np.stack([hard, tokens, hard * tokens, hard**2], axis=1)
    with np.errstate(all="ignore"):  # a draw of equal problems has no correlation, and is left out
        drawn = np.concatenate([_spearman(hard, tokens, counts) for counts in draws(len(hard), seed, fewer=True)])
        ranks = _spearman(hard, tokens, np.ones((1, len(hard))))[0]
    return Trend(between(ranks, drawn, len(hard), seeds), estimate(rows, slope, seeds, seed), chains)


def _spearman(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Rank correlation in every resample, ties sharing their mean rank, without ranking each anew."""
    n, ranks = counts.sum(1), []
    for values in (x, y):
        _, first, level = np.unique(np.sort(values), return_index=True, return_inverse=True)
        weight = np.add.reduceat(counts[:, np.argsort(values, kind="stable")], first, axis=1)
        middle = np.cumsum(weight, axis=1) - weight / 2
        place = np.empty(len(values), int)
        place[np.argsort(values, kind="stable")] = level
        ranks.append(middle[:, place] - n[:, None] / 2)  # the mean of mid-ranks is n/2
    a, b = ranks
    return (counts * a * b).sum(1) / np.sqrt((counts * a * a).sum(1) * (counts * b * b).sum(1))


@dataclass(frozen=True)
class Forcing:
    """The three metrics of s1, and `within`: the share of single chains inside the budget they were asked for."""

    control: float
    scaling: Estimate
    performance: Estimate
    within: Estimate


def budget_forcing(asked: Mapping[int, Iterable[Record]], *, seed: int = 0) -> Forcing:
    """How well thinking obeys a budget and what that buys (s1, Muennighoff et al. 2025, arXiv 2501.19393).

    `asked`: {tokens allowed: the records of that setting}, two budgets or more on the same problems. Their cost.sampled
    is what is held against the budget: s1 counts the thinking alone, so take off the answer that is forced on top.
    `control`: the share of budgets that the mean chain keeps. `scaling`: the mean over pairs of budgets of (difference
    in accuracy) / (difference in mean tokens sampled), per token; pairs that sampled nearly as many, less than 5 %
    apart, tell no slope, and are left out and counted aloud. `performance`: the best accuracy; as the best of several
    it flatters. Errors: one budget, none that differ in the tokens sampled, whatever `curve` refuses.

    >>> from workbench.types import Cost
    >>> asked = {n: [Record("r", f"p/{i}", 0, "5", i < n, Cost(sampled=n)) for i in range(20)] for n in (5, 10, 15)}
    >>> s1 = budget_forcing(asked)
    >>> s1.control, round(s1.scaling.value, 3), s1.performance.value
    (1.0, 0.05, 0.75)
    """
    rows = [replace(r, knobs={"method": "forced", "n": n}) for n, records in asked.items() for r in records]
    table = Table(rows, "sampled")
    budgets = [n for _, n in table.settings]
    every = [(i, j) for j in range(len(budgets)) for i in range(j)]
    pairs = [(i, j) for i, j in every if abs(table.x[j] - table.x[i]) >= NEAR * max(table.x[i], table.x[j])]
    if not pairs:
        raise WorkbenchError(f"a slope needs budgets that differ in the tokens sampled, asked for {some(budgets)}")
    if near := len(every) - len(pairs):
        warnings.warn(f"left out {near} of {len(every)} pairs of budgets: nearly equal tokens sampled", stacklevel=2)

    def slope(mean):
        right, tokens = mean[..., : len(budgets)], mean[..., len(budgets) :]
        return sum((right[..., j] - right[..., i]) / (tokens[..., j] - tokens[..., i]) for i, j in pairs) / len(pairs)

    seeds, columns = int(table.seeds.min()), Columns(rows)
    kept = np.fromiter((row.cost.sampled <= row.knobs["n"] for row in columns.records), float, len(rows))
    return Forcing(
        float(np.mean(table.x <= budgets)),
        estimate(table.rows(), slope, seeds, seed, marks=len(budgets)),
        estimate(table.marks, lambda mean: mean.max(-1), seeds, seed, marks=len(budgets)),
        bootstrap((columns.counts(kept) / columns.counts()).mean(1), seeds=seeds, seed=seed),
    )
