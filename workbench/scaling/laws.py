"""Laws of sampling: coverage, its power law, submissions on a budget, and what training replaces of search."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

import numpy as np

from ..grading import canonical
from ..types import Record, WorkbenchError
from .curves import HALF, Columns, Table, of_methods
from .stats import Estimate, Ratio, between, column, means, numbers, ratio, resampled, some, whole

Rule = Literal["random", "votes", "score", "weighted"]
SOLVED = 2  # problems: a coverage of fewer, or of all but fewer, tells no law


def pass_at_k(n, c, k: int) -> float:
    """Unbiased pass@k, the mean over problems of 1 − C(n−c, k)/C(n, k), as a product (Chen et al. 2021).

    `n` samples and `c` right ones a problem: integers, or sequences with one entry a problem. Unlike
    1 − (1 − c/n)^k it is not biased by drawing with replacement. Errors: k > n (no estimate exists), c outside 0..n,
    what is no whole number, other numbers of n than of c.

    >>> pass_at_k(n=4, c=1, k=2), pass_at_k(n=[4, 4], c=[1, 4], k=2)
    (0.5, 0.75)
    """
    return float(_passes(n, c, [k]).mean())


def _passes(n, c, ks: Sequence[int]) -> np.ndarray:
    """pass@k of every problem: [problems, ks]."""
    n, c = (numbers(np.atleast_1d(value), f"the {name} of pass@k") for name, value in (("n", n), ("c", c)))
    if len(n) != len(c) and 1 not in (len(n), len(c)):
        raise WorkbenchError(f"pass@k of {len(n)} n and {len(c)} c: give one of each for every problem")
    n, c = np.broadcast_arrays(n, c)
    if not n.size or not np.all((c >= 0) & (c <= n) & (c % 1 == 0) & (n % 1 == 0)):
        raise WorkbenchError("pass@k needs whole numbers 0 <= c <= n for every problem, and one problem or more")
    if bad := [k for k in _asked(ks) if k > n.min()]:
        raise WorkbenchError(f"pass@{bad[0]} needs {bad[0]} samples of every problem; the fewest is n={n.min():.0f}")
    i = np.arange(max(ks))[:, None]
    missed = np.cumprod(np.maximum(n - c - i, 0) / (n - i), axis=0)  # chance that the first i + 1 are all wrong
    return 1 - missed[np.asarray(ks) - 1].T


def _asked(ks: Sequence[int]) -> list[int]:
    if not len(ks):
        raise WorkbenchError("no k: ask for one or more, such as ks=[1, 4]")
    return [whole("a k of pass@k", k, 1) for k in ks]


def coverage(records: Iterable[Record], ks: Sequence[int]) -> list[tuple[int, Estimate]]:
    """[(k, pass@k)] from records of one method, each one an independent sample, with intervals over problems.

    Errors: no k, a problem with fewer samples than max(ks), two records of one seed of a problem (of two runs), and
    whatever `by_problem` refuses.

    >>> rows = [Record("r", f"p/{i}", s, "5", s < i) for i in range(3) for s in range(4)]
    >>> [(k, round(estimate.value, 2)) for k, estimate in coverage(rows, ks=[1, 4])]
    [(1, 0.25), (4, 0.67)]
    """
    rows, seeds = _covered(Columns(records), ks)
    return _estimates(rows, ks, seeds)


def _covered(columns: Columns, ks: Sequence[int]) -> tuple[np.ndarray, int]:
    columns.one_run()
    columns.graded()
    right = columns.counts(columns.mark)[:, 0].round().astype(int)
    return _passes(columns.counts()[:, 0], right, ks), int(columns.seeds[0])


def _estimates(rows: np.ndarray, ks: Sequence[int], seeds: int) -> list[tuple[int, Estimate]]:
    return list(zip(ks, means(rows, seeds), strict=True))


@dataclass(frozen=True)
class PowerLaw:
    """c = exp(a·k^b) with a < 0 and b < 0; `max_error` is the largest miss on the points fitted."""

    a: float
    b: float
    max_error: float

    def __call__(self, k):
        return np.exp(self.a * np.asarray(k, float) ** self.b)


def power_law(ks: Sequence[int], coverage: Sequence[float]) -> PowerLaw:
    """Fit coverage c = exp(a·k^b) (Large Language Monkeys, Brown et al. 2024): least squares of log(−log c) on log k.

    Space the `ks` evenly in log k, or the large ones decide the fit. Errors: fewer than two points, a coverage of 0
    or 1 (outside the law: drop those ks), a k that is not above 0, or a coverage that does not rise with k.

    >>> law = power_law([1, 10, 100], [0.05, 0.25, 0.5])
    >>> round(law.a, 2), round(law.b, 2), round(float(law(30)), 2)
    (-2.96, -0.32, 0.37)
    """
    k, c = np.asarray(ks, float), np.asarray(coverage, float)
    if k.shape != c.shape or len(set(ks)) < 2 or not np.all((k > 0) & (k < np.inf) & (c > 0) & (c < 1)):
        raise WorkbenchError("a power law needs two or more different ks above 0, each with a coverage between 0 and 1")
    a, b = map(float, _line(k, c))
    if b > -1e-9:  # coverages that are all equal leave as much by rounding
        raise WorkbenchError("the coverage does not rise with k: no power law with b < 0 fits")
    return PowerLaw(a, b, float(np.abs(np.exp(a * k**b) - c).max()))


def _line(k: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a and b for every row of coverages [..., ks]."""
    x, y = np.log(k), np.log(-np.log(c))
    b = ((x - x.mean()) * y).sum(-1) / ((x - x.mean()) ** 2).sum()
    return -np.exp(y.mean(-1) - b * x.mean()), b


@dataclass(frozen=True)
class CoverageLaw:
    """A power law of coverage, its two numbers with intervals over problems, and the coverage that it was fitted to."""

    law: PowerLaw
    a: Estimate
    b: Estimate
    points: list[tuple[int, Estimate]]


def coverage_law(records: Iterable[Record], ks: Sequence[int] | None = None, *, seed: int = 0) -> CoverageLaw:
    """`power_law` of the records' own pass@k, fitted again in every resample of problems: a and b get intervals.

    `ks`: 1 to the number of samples, about twenty of them evenly in log k, by default; those at which two problems or
    fewer are solved, or are not, are left out: a coverage of 0 or 1 has no place in the law, and the logarithm of one
    nearby is all noise. a and b are strongly correlated: do not read their intervals as a box. In a draw a coverage c
    of n problems counts as (n·c + 1/2)/(n + 1), which is never 0 or 1. Errors: as `power_law` and `coverage`.

    >>> rows = [Record("r", f"p/{i}", s, "5", s < i % 8) for i in range(40) for s in range(16)]
    >>> fit = coverage_law(rows)
    >>> print(fit.b)
    -0.904 [-1.24 to -0.654; n=40, seeds=16]
    """
    columns = Columns(records)
    columns.one_setting()  # two that cover different problems have no number of samples in common
    if ks is None:
        ks = np.unique(np.geomspace(1, int(columns.counts().min()), 20).astype(int)).tolist()
    rows, seeds = _covered(columns, ks)
    n, mean = len(rows), rows.mean(0)
    inside = n * np.minimum(mean, 1 - mean) > SOLVED
    kept = np.asarray(ks, float)[inside]
    if len(set(kept)) < 2:
        raise WorkbenchError(
            "a power law needs two or more different ks at which some problems are solved and some are not, more than "
            f"{SOLVED} of {n} each"
        )
    law = power_law(kept, mean[inside])
    drawn = resampled(rows[:, inside], lambda mean: np.stack(_line(kept, (n * mean + 0.5) / (n + 1)), axis=-1), seed)
    a, b = (between(value, drawn[:, j], n, seeds) for j, value in enumerate((law.a, law.b)))
    return CoverageLaw(law, a, b, _estimates(rows, ks, seeds))


# Few submissions of many samples


def submissions(
    records: Iterable[Record], ks: Sequence[int], rule: Rule = "votes", *, over: Rule | None = None
) -> list[tuple[int, Estimate]]:
    """[(k, share of problems solved by k submissions)] where a rule picks k of a problem's N samples (o1 at the IOI).

    `records`: one setting, each record a sample. Every rule submits k *different* answers (equal by value): those with
    most `votes`, with the best knobs["score"], or with the largest sum of scores (`weighted`). `random` draws samples
    blindly and passes over an answer that it submitted before; what it gives is the exact mean over all such draws, and
    for k > 1 more than pass@k, which submits some answers twice (see `coverage`). Ties go to the answer sampled first;
    an answer is as right as its first sample. Samples without an answer are never submitted, and fewer different
    answers than k are all submitted. `over`: less the share that this other rule solves, paired over problems.
    Errors: fewer than k samples of a problem, two of one seed, a sample that has an answer and no score where the rule
    needs one.

    >>> said = [("7", 0.2, 0), ("7", 0.3, 0), ("8", 0.9, 1), ("9", 0.1, 0)]
    >>> rows = [Record("r", "p/1", s, a, bool(ok), knobs={"score": v}) for s, (a, v, ok) in enumerate(said)]
    >>> [[round(e.value, 2) for _, e in submissions(rows, [1, 2], rule)] for rule in ("random", "votes", "score")]
    [[0.25, 0.58], [0.0, 1.0], [1.0, 1.0]]
    """
    for name in (rule, over or rule):
        if name not in get_args(Rule):
            raise WorkbenchError(f"unknown rule {name!r}: choose random, votes, score or weighted")
    columns = Columns(records)
    columns.one_run()
    columns.graded()
    samples, ks = columns.counts()[:, 0], _asked(ks)
    if max(ks) > samples.min():
        few = columns.problems[int(samples.argmin())]
        raise WorkbenchError(f"{min(ks)} to {max(ks)} submissions of {samples.min():.0f} samples ({few}): sample more")
    known = {text: None if text is None else canonical(text) for text in {r.answer for r in columns.records}}
    names = {name: i for i, name in enumerate(dict.fromkeys(known.values()))}
    code = {text: -1 if text is None else names[name] for text, name in known.items()}
    order = np.lexsort((columns.seed, columns.problem))
    said = np.array([code[record.answer] for record in columns.records])[order]
    order, said = order[said >= 0], said[said >= 0]
    _, first, group, size = np.unique(
        columns.problem[order] * len(names) + said, return_index=True, return_inverse=True, return_counts=True
    )  # a group is an answer of a problem; `first` is its first sample
    problem, right = columns.problem[order][first], columns.mark[order][first] == 1

    def solved(rule):
        """[problems, ks]"""
        if rule == "random":
            return _blindly(problem, size, right, len(columns.problems), ks)
        worth = size if rule == "votes" else _worth([columns.records[i] for i in order], group, rule)
        ranked = np.lexsort((first, -worth, problem))
        place = np.arange(len(ranked)) - np.searchsorted(problem, problem[ranked])  # among the answers of its problem
        least = np.full(len(columns.problems), math.inf)
        np.minimum.at(least, problem[ranked][right[ranked]], place[right[ranked]])
        return (least[:, None] < np.asarray(ks)).astype(float)

    seeds = int(columns.seeds[0])
    if over is None:
        return _estimates(solved(rule), ks, seeds)
    return list(zip(ks, means(solved(rule) - solved(over), seeds, (-1.0, 1.0)), strict=True))


def _worth(records: Sequence[Record], group: np.ndarray, rule: str) -> np.ndarray:
    """The best score of each group of records, or the exact sum of them, so that ties are ties."""
    scores = [record.knobs.get("score") for record in records]
    strange = {kind for kind in set(map(type, scores)) if not issubclass(kind, Real)}
    for record, score in zip(records, scores, strict=True):
        if type(score) in strange or score != score:
            raise WorkbenchError(f"a sample of {record.problem} has no score: {rule} needs knobs['score'] of each")
    values, order = np.array(scores, float), np.argsort(group, kind="stable")
    if not len(values):
        return values
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    if rule == "score":
        return np.maximum.reduceat(values[order], starts)
    flat, ends = values[order].tolist(), [*starts[1:].tolist(), len(order)]
    return np.array([math.fsum(flat[a:b]) for a, b in zip(starts.tolist(), ends, strict=True)])


def _blindly(problem: np.ndarray, size: np.ndarray, right: np.ndarray, problems: int, ks: Sequence[int]) -> np.ndarray:
    """Chance that a right answer is among the first k different ones, samples drawn in random order: [problems, ks].

    Of each answer of a `problem` there are `size` samples. Give every sample a random moment u in 0–1, and draw from 1
    down: the first right one comes at u with density r·u^(r−1) where r samples are right, and before it came a wrong
    answer of size w with chance 1 − u^w, each on its own. The integral over u is that of a polynomial: Gauss's rule is
    exact.
    """
    found, good = np.zeros((problems, len(ks))), np.bincount(problem, size * right, problems)
    wrong, of = size[~right], problem[~right]
    count = np.bincount(of, minlength=problems)
    sizes = np.zeros((problems, int(count.max(initial=0))), int)  # of wrong answers, filled up with 0, which is none
    order = np.argsort(of, kind="stable")
    sizes[of[order], np.arange(len(of)) - (np.cumsum(count) - count)[of[order]]] = wrong[order]
    u, weight = np.polynomial.legendre.leggauss(int(np.bincount(problem, size, problems).max()) // 2 + 1)
    u, weight = (u + 1) / 2, weight / 2
    order = np.argsort(count, kind="stable")
    order = order[good[order] > 0]
    for part in np.array_split(order, max(1, len(order) // 32)):  # alike many wrong answers, in the cache
        before = np.zeros((len(part), int(count[part].max(initial=0)) + 1, len(u)))  # chance that so many came before
        before[:, 0] = 1
        for j in range(before.shape[1] - 1):
            stays = (u ** sizes[part, j, None])[:, None]
            before[:, 1 : j + 2] = before[:, 1 : j + 2] * stays + before[:, : j + 1] * (1 - stays)
            before[:, :1] *= stays
        r = good[part, None]
        come = np.cumsum(before, 1)[:, np.minimum(ks, before.shape[1]) - 1]
        found[part] = np.einsum("pku,pu->pk", come, weight * r * u ** (r - 1))
    return found.round(12)  # certainty is 1, not nearly 1


# Training against search


@dataclass(frozen=True)
class Exchange:
    """accuracy = c + train·log10(training FLOPs) + test·log10(test FLOPs), and what a decade of training is worth.

    `rate` = train/test: the decades of search that one decade of training replaces. `max_error`: the largest miss, in
    accuracy (in logits if those were fitted).
    """

    rate: Ratio
    train: Estimate
    test: Estimate
    constant: float
    max_error: float


def exchange_rate(
    records: Iterable[Record], train: Mapping[str, float], *, logit: bool = False, x: str = "flops", seed: int = 0
) -> Exchange:
    """How many decades of test-time search one decade of training replaces (Jones 2021, arXiv 2104.03113).

    `records`: methods of `train` {method: its training FLOPs}, each at several n, on the same problems; their cost is
    what the *test* took. Least squares over (method, n) points, fitted again in every resample of problems, with the
    costs. `logit` fits log-odds instead of accuracy: log((c + 1/2)/(n − c + 1/2)) of c right among n problems (Haldane,
    Anscombe 1956), which exists for a draw with all right or all wrong, too. Errors: fewer than two training or two
    test budgets for a method, a method of `train` without records, points on one line, either axis measured over less
    than half a decade, with `logit` a point at 0 or 1 (named), training FLOPs inside a record's cost, or missing, or 0,
    accuracy that does not rise with search (no rate).
    Left out: saturation. Both axes flatten near 0 and 1, where a plane does not hold: read `max_error`, and drop points
    there. Jones fits strength in games, which has no ceiling, and finds about 1.2 decades for one.

    >>> from workbench.types import Cost
    >>> points = [(m, t, n) for m, t in [("small", 1), ("large", 2)] for n in (1, 2, 3)]
    >>> rows = [Record("r", f"p/{i}", 0, "5", i < 10 * t + 5 * n, Cost(policy_flops=10.0**n),
    ...                knobs={"method": m, "n": n}) for m, t, n in points for i in range(50)]
    >>> print(exchange_rate(rows, {"small": 1e9, "large": 1e10}).rate)
    2 [1.7 to 2.31; n=50]
    """
    records = of_methods(records, *train)
    if charged := {record.knobs["method"] for record in records if record.cost.training_flops}:
        raise WorkbenchError(f"{some(charged)} has training FLOPs in its records' cost: give them in `train` alone")
    table = Table(records, x)
    width, n = len(table.settings), len(table.problems)
    column({method: train[method] for method, _ in table.settings}, "a method's training FLOPs")
    if free := sorted({method for method, _ in table.settings if not train[method] > 0}):
        raise WorkbenchError(f"{some(free)} has training FLOPs of 0 or less: not metered, so leave it out")
    where = np.log10([train[method] for method, _ in table.settings])
    t = where - where.mean()
    if logit and (flat := [table.settings[j] for j, y in enumerate(table.marks.mean(0)) if y in (0, 1)]):
        raise WorkbenchError(f"the accuracy of {some(flat)} is 0 or 1, where log-odds end: drop these records")

    def plane(mean):
        y, u = mean[..., :width], np.log10(mean[..., width:])
        y, middle = np.log((n * y + 0.5) / (n * (1 - y) + 0.5)) if logit else y, u.mean(-1, keepdims=True)
        tt, uu, tu = (t * t).sum(), ((u - middle) ** 2).sum(-1), (t * (u - middle)).sum(-1)
        ty, uy = (t * y).sum(-1), ((u - middle) * y).sum(-1)
        flat = tt * uu - tu**2
        a, b = (ty * uu - uy * tu) / flat, (uy * tt - ty * tu) / flat
        fit = y.mean(-1, keepdims=True) + a[..., None] * t + b[..., None] * (u - middle)
        return np.stack([a, b, y.mean(-1) - b * middle[..., 0], np.abs(fit - y).max(-1)], axis=-1)

    with np.errstate(all="ignore"):
        a, b, constant, error = plane(table.rows().mean(0)).tolist()
    enough = len(set(t.tolist())) > 1 and len(set(table.x.tolist())) > 1
    if not enough or not math.isfinite(a + b):
        raise WorkbenchError("an exchange rate needs two training and two test budgets or more, not all on one line")
    for axis, span in (("training", np.ptp(where)), (x, np.ptp(np.log10(table.x)))):
        if span < HALF:
            raise WorkbenchError(f"{axis} was measured over {span:.2g} decades, and a rate of decades needs {HALF}")
    if b <= 0:
        raise WorkbenchError(f"accuracy does not rise with search ({b:.3g} a decade): training replaces nothing here")
    drawn, seeds = resampled(table.rows(), plane, seed), int(table.seeds.min())
    with np.errstate(all="ignore"):
        rates = np.where(drawn[:, 1] > 0, drawn[:, 0] / drawn[:, 1], np.inf)
    constant -= a * float(where.mean())
    two = (between(value, drawn[:, j], n, seeds) for j, value in enumerate((a, b)))
    return Exchange(ratio(a / b, rates, rates, n), *two, constant, error)
