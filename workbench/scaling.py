"""Records in, numbers with intervals out: accuracy, compute curves, coverage and verifier quality. No torch.

One habit throughout: the problem is the unit of evidence. Seeds are averaged inside a problem, problems are resampled,
and two methods are compared on the same problems. A missing value is refused or counted aloud, never read as 0.
"""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .types import Cost, Record, WorkbenchError

DRAWS = 10_000  # bootstrap resamples: the ends of a 95 % interval then wobble by about 1 % of its width


@dataclass(frozen=True)
class Estimate:
    """A measured number with its 95 % interval; `low` and `high` are None where the data give none.

    `n` counts problems (the resampled unit), `seeds` the distinct seeds averaged inside each.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    seeds: int = 1

    def __str__(self) -> str:
        interval = "no interval" if self.low is None else f"{self.low:.3g} to {self.high:.3g}"
        return f"{self.value:.3g} [{interval}; n={self.n}, seeds={self.seeds}]"


def between(value: float, draws: np.ndarray, n: int, seeds: int = 1) -> Estimate:
    """`value` with the middle 95 % of those `draws` that are finite; none if they do not vary.

    >>> print(between(0.5, np.arange(101.0), n=7)), print(between(0.5, np.ones(9), n=1))
    0.5 [2.5 to 97.5; n=7, seeds=1]
    0.5 [no interval; n=1, seeds=1]
    (None, None)
    """
    low, high = np.quantile(draws[np.isfinite(draws)], [0.025, 0.975])
    some = high - low >= 1e-12  # one problem, or all alike: a zero width would claim certainty
    return Estimate(float(value), *((float(low), float(high)) if some else (None, None)), int(n), seeds)


# Estimates over problems


def bootstrap(values, *, bounds=(0.0, 1.0), seeds: int = 1, seed: int = 0) -> Estimate:
    """Mean over problems with a 95 % percentile-bootstrap interval (Efron).

    `values`: {problem: value} or one value a problem; the result does not depend on the order of a mapping.
    `bounds`: the range a value can take, None if it has none. When all values are equal resampling says nothing, and
    the interval is the exact one: with 97.5 % confidence a share of at most 1 − .025^(1/n) of problems differs, by as
    much as `bounds` allow. One problem alone, or equal values without bounds, has no interval (None).
    Errors: no values, a value that is not finite or outside `bounds`. Left out: BCa correction (below about 20
    problems the interval is somewhat narrow) and the variance between training seeds, which problems cannot show.

    >>> print(bootstrap({"p/1": 1.0, "p/2": 0.0, "p/3": 0.5, "p/4": 0.5}))
    0.5 [0.125 to 0.875; n=4, seeds=1]
    >>> print(bootstrap([1.0] * 40))
    1 [0.912 to 1; n=40, seeds=1]
    """
    values = _column(values)
    if bounds and not (bounds[0] <= values.min() and values.max() <= bounds[1]):
        raise WorkbenchError(f"values outside {bounds}: give their range as bounds=, or None for no range")
    if bounds and len(values) > 1 and np.ptp(values) == 0:
        value, unseen = float(values[0]), 1 - 0.025 ** (1 / len(values))
        low, high = value - unseen * (value - bounds[0]), value + unseen * (bounds[1] - value)
        return Estimate(value, low, high, len(values), seeds)
    return _estimate(values[:, None], lambda mean: mean[..., 0], seeds, seed)


def paired_bootstrap(a, b, *, bounds=(-1.0, 1.0), seeds: int = 1, seed: int = 0) -> Estimate:
    """Mean of a − b, paired over problems, with its 95 % bootstrap interval.

    `a`, `b`: {problem: mean over seeds} for the same problems, or two aligned sequences. Subtracting inside a problem
    removes the spread between easy and hard ones, which separate error bars keep. `bounds` as in `bootstrap`, for the
    difference. Errors: the two sides cover different problems (named).

    >>> print(paired_bootstrap({"x": 1.0, "y": 0.5, "z": 0.25}, {"z": 0.0, "y": 0.0, "x": 0.5}))
    0.417 [0.25 to 0.5; n=3, seeds=1]
    """
    if isinstance(a, Mapping) != isinstance(b, Mapping):
        raise WorkbenchError("pair a mapping with a mapping, or a sequence with a sequence of the same order")
    if isinstance(a, Mapping):
        if a.keys() != b.keys():
            raise WorkbenchError(f"the two sides cover different problems: {_some(a.keys() ^ b.keys())} on one only")
        a, b = ([side[problem] for problem in sorted(a)] for side in (a, b))
    if len(a) != len(b):
        raise WorkbenchError(f"cannot pair {len(a)} values with {len(b)}: one value a problem on each side")
    return bootstrap(_column(a) - _column(b), bounds=bounds, seeds=seeds, seed=seed)


def by_problem(records: Iterable[Record], *, skip_unknown: bool = False) -> dict[str, float]:
    """{problem id: mean of `correct` over its seeds}, for the records of one method at one n.

    Errors: a record twice (same run, problem, seed and knobs), two methods or two n pooled by accident, and a record
    whose `correct` is None — unless `skip_unknown`, which leaves such records out and warns with their number.

    >>> rows = [Record("r", p, s, "5", ok) for p, s, ok in [("p/1", 0, True), ("p/1", 1, False), ("p/2", 0, True)]]
    >>> by_problem(rows)
    {'p/1': 0.5, 'p/2': 1.0}
    """
    records = _checked(records)
    settings = {_setting(record) for record in records}
    if len(settings) > 1:
        raise WorkbenchError(f"records of several settings (method, n) would be pooled: {_some(settings)}; filter them")
    unknown = [record.problem for record in records if record.correct is None]
    if unknown and not skip_unknown:
        raise WorkbenchError(f"{len(unknown)} records are not graded ({_some(unknown)}): grade them, or skip_unknown")
    if unknown:
        warnings.warn(f"left out {len(unknown)} of {len(records)} records: not graded", stacklevel=2)
    groups = defaultdict(list)
    for record in records:
        if record.correct is not None:
            groups[record.problem].append(float(record.correct))
    return {problem: sum(values) / len(values) for problem, values in groups.items()}


def accuracy(records: Iterable[Record]) -> Estimate:
    """Mean accuracy over problems with its interval: `bootstrap(by_problem(records))`, seeds counted.

    >>> print(accuracy([Record("r", f"p/{i}", 0, "5", i % 4 > 0) for i in range(100)]))
    0.75 [0.66 to 0.83; n=100, seeds=1]
    """
    records = list(records)
    return bootstrap(by_problem(records), seeds=_seeds(records))


def difference(a: Iterable[Record], b: Iterable[Record]) -> Estimate:
    """Accuracy of records `a` minus that of `b`, paired over problems; the fewer seeds of the two are reported.

    >>> a, b = ([Record("r", f"p/{i}", 0, "5", i % 5 < k) for i in range(50)] for k in (3, 2))
    >>> print(difference(a, b))
    0.2 [0.1 to 0.32; n=50, seeds=1]
    """
    a, b = list(a), list(b)
    return paired_bootstrap(by_problem(a), by_problem(b), seeds=min(_seeds(a), _seeds(b)))


def named(records: Iterable[Record], method: str) -> list[Record]:
    """The same records under a method's name, one sample each, to be drawn beside others.

    >>> named([Record("r", "p/1", 0, "5", True, knobs={"n": 4})], "before")[0].knobs
    {'method': 'before', 'n': 1}
    """
    return [replace(record, knobs={"method": method, "n": 1}) for record in records]


def quantile_bins(pass1: Mapping[str, float], k: int = 5) -> dict[str, int]:
    """{problem: difficulty bin 1 (easiest) … k} by the policy's own pass@1 (Snell et al. 2024).

    Bins differ in size by one at most: equal pass@1 is ordered by problem id. Estimate pass@1 from other samples than
    those you then measure, or the bins follow their noise. Errors: fewer problems than bins.

    >>> quantile_bins({"a": 0.9, "b": 0.1, "c": 0.5, "d": 0.5}, k=2)
    {'a': 1, 'c': 1, 'd': 2, 'b': 2}
    """
    if not 1 <= k <= len(pass1):
        raise WorkbenchError(f"cannot cut {len(pass1)} problems into {k} bins")
    order = sorted(pass1, key=lambda problem: (-pass1[problem], problem))
    return {problem: 1 + rank * k // len(order) for rank, problem in enumerate(order)}


# Accuracy against compute


@dataclass(frozen=True)
class Point:
    """One point of a compute curve: a method at one n. `x` is the mean of cost.`axis` per problem."""

    method: str
    n: int
    x: float
    accuracy: Estimate
    axis: str = "flops"


def curve(records: Iterable[Record], x: str = "flops") -> list[Point]:
    """Accuracy against compute, one Point per (knobs["method"], knobs["n"]), cheapest first within a method.

    `x`: a number of Cost — flops (policy, verifier and training together), tokens, sampled, seconds …, averaged over
    seeds, then over problems. A record without the knob n counts as n=1. Errors: no method knob, settings that cover
    different problems (a half-finished run), a cost of 0 (not metered).

    >>> from workbench.types import Cost
    >>> rows = [Record("r", f"p/{i}", 0, "5", i < 3 * n, Cost(policy_flops=1e6 * n), knobs={"method": "vote", "n": n})
    ...         for n in (1, 2) for i in range(8)]
    >>> [(p.method, p.n, p.x, p.accuracy.value) for p in curve(rows)]
    [('vote', 1, 1000000.0, 0.375), ('vote', 2, 2000000.0, 0.75)]
    """
    points = []
    for (method, n), rows in _by_setting(records).items():
        cost = float(np.mean(list(_mean_cost(rows, x).values())))
        points.append(Point(method, n, cost, accuracy(rows), x))
    return sorted(points, key=lambda point: (point.method, point.x))


def paired_at_equal_flops(
    records: Iterable[Record], a: str, b: str, n: int, *, x: str = "flops", seed: int = 0
) -> Estimate:
    """Accuracy of method `a` at its budget `n` minus that of method `b` at the same mean compute, paired.

    With X_a the mean cost of `a` at n, take b's budgets lo and hi whose mean costs bracket it, and
    w = log(X_a / X_lo) / log(X_hi / X_lo). Problem by problem b's accuracy is (1 − w)·b_lo + w·b_hi, so its mean lies
    on the chord of b's curve over log compute. This is a little kinder to a rising `b` than tossing a coin between its
    two budgets (which needs more compute for the same w) and a little unkind where the curve bends: keep b's budgets
    within a factor of 2–4. Problems are resampled whole, with their costs: w is computed again in every draw, for X_a
    and X_b are estimates too. The bracket stays as it is in the full sample, so w may leave 0–1 a little in a draw.
    Choose `n` before you look; the best of several n flatters `a`.
    Errors: X_a outside b's budgets (no extrapolation), different problems, costs not metered.

    >>> from workbench.types import Cost
    >>> def rows(method, n, flops, right):
    ...     return [Record("r", f"p/{i}", 0, "5", i < right, Cost(policy_flops=flops), knobs={"method": method, "n": n})
    ...             for i in range(20)]
    >>> cheap, dear = rows("vote", 1, 1e6, 8), rows("vote", 4, 4e6, 12)
    >>> round(paired_at_equal_flops([*rows("beam", 2, 2e6, 15), *cheap, *dear], "beam", "vote", n=2).value, 3)
    0.25
    """
    records = [record for record in records if record.knobs.get("method") in (a, b)]
    table = _Table(records, x)
    if (a, n) not in table.settings:
        raise WorkbenchError(f"no records of {a} at n={n}: there are {_some(table.settings)}")
    mine = table.settings.index((a, n))
    theirs = sorted((j for j, (method, _) in enumerate(table.settings) if method == b), key=lambda j: table.x[j])
    below, above = ([j for j in theirs if keep(table.x[j])] for keep in (table.x[mine].__ge__, table.x[mine].__le__))
    if not below or not above:
        span = f"{table.x[theirs[0]]:.3g} to {table.x[theirs[-1]]:.3g}" if theirs else "nothing"
        raise WorkbenchError(
            f"{a} at n={n} costs {table.x[mine]:.3g} {x} and {b} was measured from {span}: "
            f"measure {b} at a budget beyond, nothing is extrapolated"
        )
    lo, hi = below[-1], above[0]

    def gap(mean):
        accuracies, cost = mean[..., : table.width], np.log(mean[..., table.width :])
        if table.x[lo] == table.x[hi]:  # b was measured at exactly this cost
            return accuracies[..., mine] - accuracies[..., lo]
        w = (cost[..., mine] - cost[..., lo]) / (cost[..., hi] - cost[..., lo])
        return accuracies[..., mine] - (1 - w) * accuracies[..., lo] - w * accuracies[..., hi]

    return _estimate(table.rows, gap, table.seeds, seed)


def log_slope(records: Iterable[Record], method: str, *, x: str = "flops", seed: int = 0) -> Estimate:
    """Accuracy gained per decade of compute: least squares over a method's budgets, problems resampled.

    Each budget weighs the same and costs are resampled with their problems. A straight line is a summary of the
    measured range, not a law: accuracy ends at 1. Errors: fewer than two budgets of different cost.

    >>> from workbench.types import Cost
    >>> def rows(n, flops, right):
    ...     knobs, cost = {"method": "vote", "n": n}, Cost(policy_flops=flops)
    ...     return [Record("r", f"p/{i}", 0, "5", i < right, cost, knobs=knobs) for i in range(12)]
    >>> rows = [*rows(1, 1e6, 4), *rows(10, 1e7, 7), *rows(100, 1e8, 10)]
    >>> round(log_slope(rows, "vote").value, 3)
    0.25
    """
    table = _Table([record for record in records if record.knobs.get("method") == method], x)
    if len(set(table.x)) < 2:
        raise WorkbenchError(f"a slope of {method} needs two budgets of different cost, found {_some(table.settings)}")

    def slope(mean):
        y, decades = mean[..., : table.width], np.log10(mean[..., table.width :])
        decades = decades - decades.mean(-1, keepdims=True)
        return (decades * y).sum(-1) / (decades**2).sum(-1)

    return _estimate(table.rows, slope, table.seeds, seed)


# Coverage


def pass_at_k(n, c, k: int) -> float:
    """Unbiased pass@k, the mean over problems of 1 − C(n−c, k)/C(n, k), as a product (Chen et al. 2021).

    `n` samples and `c` right ones a problem: integers, or sequences with one entry a problem. Unlike
    1 − (1 − c/n)^k it is not biased by drawing with replacement. Errors: k > n (no estimate exists), c outside 0..n.

    >>> pass_at_k(n=4, c=1, k=2), pass_at_k(n=[4, 4], c=[1, 4], k=2)
    (0.5, 0.75)
    """
    n, c = np.broadcast_arrays(np.atleast_1d(n), np.atleast_1d(c))
    if np.any(c < 0) or np.any(c > n) or not n.size:
        raise WorkbenchError("pass@k needs 0 <= c <= n for every problem, and one problem or more")
    if not 1 <= k <= n.min():
        raise WorkbenchError(f"pass@{k} needs {k} samples of every problem; the fewest is n={n.min()}")
    i = np.arange(k)
    return float(1 - np.mean(np.prod(np.maximum(n - c - i[:, None], 0) / (n - i[:, None]), axis=0)))


def coverage(records: Iterable[Record], ks: Sequence[int]) -> list[tuple[int, Estimate]]:
    """[(k, pass@k)] from records of one method, each one an independent sample, with intervals over problems.

    Errors: a problem with fewer samples than max(ks), and whatever `by_problem` refuses.

    >>> rows = [Record("r", f"p/{i}", s, "5", s < i) for i in range(3) for s in range(4)]
    >>> [(k, round(estimate.value, 2)) for k, estimate in coverage(rows, ks=[1, 4])]
    [(1, 0.25), (4, 0.67)]
    """
    records = list(records)
    share, n = by_problem(records), Counter(record.problem for record in records)
    counts = {problem: round(share[problem] * n[problem]) for problem in share}
    return [(k, bootstrap({p: pass_at_k(n[p], counts[p], k) for p in share}, seeds=_seeds(records))) for k in ks]


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
    or 1 (outside the law: drop those ks), or one that does not rise with k.

    >>> law = power_law([1, 10, 100], [0.05, 0.25, 0.5])
    >>> round(law.a, 2), round(law.b, 2), round(float(law(30)), 2)
    (-2.96, -0.32, 0.37)
    """
    k, c = np.asarray(ks, float), np.asarray(coverage, float)
    if k.shape != c.shape or len(set(ks)) < 2 or not np.all((c > 0) & (c < 1)):
        raise WorkbenchError("a power law needs two or more different ks, each with a coverage between 0 and 1")
    b, log_a = np.polyfit(np.log(k), np.log(-np.log(c)), 1)
    if b >= 0:
        raise WorkbenchError("the coverage does not rise with k: no power law with b < 0 fits")
    a = -math.exp(log_a)
    return PowerLaw(a, float(b), float(np.abs(np.exp(a * k**b) - c).max()))


# Verifiers


def step_auc(scores: Sequence[float], labels: Sequence[int]) -> float:
    """Chance that a right step scores above a wrong one, ties counting half (the Mann–Whitney statistic).

    `labels`: 1 right, 0 wrong, one a score; drop masked steps first. Errors: lengths that differ, a label other than
    0/1 (−100 is not True), a missing score, steps of one kind only.

    >>> step_auc([0.9, 0.8, 0.3, 0.8], [1, 1, 0, 0])
    0.875
    """
    scores, labels = _scored(scores, labels)
    right = int(labels.sum())
    wrong = len(labels) - right
    if not right or not wrong:
        raise WorkbenchError(f"an AUC needs right and wrong steps, found {right} right and {wrong} wrong")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # ties share their mean rank
    return float((ranks[labels == 1].sum() - right * (right + 1) / 2) / (right * wrong))


def first_error_f1(
    scores, labels, threshold: float, *, problems: Sequence[str] | None = None, seed: int = 0
) -> Estimate:
    """ProcessBench F1: harmonic mean of `first_error_rates`, with an interval over problems (2412.06559).

    `problems`: the problem of each trace, so that traces of one problem are resampled together; by default every trace
    is its own. Draws without an erroneous (or without a correct) trace have no F1 and are left out of the interval.

    >>> first_error_f1([[0.9, 0.2, 0.1], [0.8, 0.9], [0.4, 0.9]], [[1, 0, None], [1, 1], [1, 1]], threshold=0.5).value
    0.6666666666666666
    """
    traces = first_error_hits(scores, labels, [threshold])
    problems = range(len(scores)) if problems is None else problems
    if len(problems) != len(scores):
        raise WorkbenchError(f"{len(problems)} problem ids for {len(scores)} traces")
    names, place = np.unique(problems, return_inverse=True)
    rows = np.zeros((len(names), 4))
    np.add.at(rows, place, traces[:, 0])
    return _estimate(rows, lambda mean: hit_rates(mean)[2], 1, seed)


def first_error_rates(scores, labels, threshold: float) -> tuple[float, float, float]:
    """(share of erroneous traces whose first error is found exactly, share of correct traces passed, F1).

    `scores`, `labels`: one sequence a trace, one entry a step; labels are 1 right and 0 wrong, and whatever follows the
    first 0 is not read (None is fine). The prediction is the first step scored under `threshold`, none if no step is.
    Errors: lengths that differ, missing scores, no erroneous or no correct trace.

    >>> first_error_rates([[0.9, 0.2, 0.1], [0.8, 0.9], [0.4, 0.9]], [[1, 0, None], [1, 1], [1, 1]], threshold=0.5)
    (1.0, 0.5, 0.6666666666666666)
    """
    return tuple(map(float, hit_rates(first_error_hits(scores, labels, [threshold]).sum((0, 1)))))


def best_threshold(scores, labels) -> float:
    """The threshold with the highest first-error F1 on these traces; use it on others (ProcessBench does so).

    Candidates are the scores themselves, thinned to 500 quantiles, and the smallest of equals is returned.

    >>> best_threshold([[0.9, 0.2], [0.6, 0.9]], [[1, 0], [1, 1]])
    0.6
    """
    values = np.unique([score for trace in scores for score in trace if score is not None])
    if len(values) > 500:
        values = np.quantile(values, np.linspace(0, 1, 500))
    return float(values[np.argmax(hit_rates(first_error_hits(scores, labels, values).sum(0))[2])])


def first_error_hits(scores, labels, thresholds: Sequence[float]) -> np.ndarray:
    """[traces, thresholds, 4] of 0/1: first error found, is erroneous, passed, is correct; summed, for `hit_rates`.

    `scores`, `labels`, errors: as `first_error_rates`, for many thresholds at once.

    >>> first_error_hits([[0.9, 0.2], [0.8, 0.9]], [[1, 0], [1, 1]], [0.5, 0.85])[:, :, 0].tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """
    if len(scores) != len(labels) or not len(scores):
        raise WorkbenchError(f"{len(scores)} scored traces and {len(labels)} labelled ones: one each, and at least one")
    wrong, ends, given, told = [], [0], [], []
    for i, (trace, marks) in enumerate(zip(scores, labels, strict=True)):
        if len(trace) != len(marks) or not len(trace):
            raise WorkbenchError(f"trace {i}: {len(trace)} scores and {len(marks)} labels: one each, and at least one")
        marks = list(marks)
        wrong.append(0 in marks)
        end = marks.index(0) + 1 if wrong[-1] else len(marks)  # a later alarm is wrong whatever the scores there
        given += trace[:end]
        told += marks[:end]
        ends.append(len(given))
    wrong, ends = np.array(wrong), np.array(ends)
    if not wrong.any() or wrong.all():
        raise WorkbenchError("first-error F1 needs erroneous and correct traces, found one kind only")
    score = _scored(given, told)[0]
    # the first step under t is the first error if low < t <= high; a correct trace has none under t if t <= high
    last = ends[1:][wrong] - 1
    low = np.full(len(wrong), -np.inf)
    low[wrong] = score[last]
    score[last] = np.inf
    high = np.minimum.reduceat(score, ends[:-1])
    hit, wrong = (low[:, None] < thresholds) & (thresholds <= high[:, None]), wrong[:, None]
    return np.stack(np.broadcast_arrays(hit & wrong, wrong, hit & ~wrong, ~wrong), axis=-1).astype(float)


def hit_rates(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(found, passed, F1) of `first_error_hits` [..., 4] summed or averaged over traces; NaN where a kind is absent.

    >>> [float(x) for x in hit_rates(np.array([1.0, 2.0, 1.0, 1.0]))]
    [0.5, 1.0, 0.6666666666666666]
    """
    with np.errstate(all="ignore"):
        found, passed = sums[..., 0] / sums[..., 1], sums[..., 2] / sums[..., 3]
        both = found + passed
        return found, passed, np.where(both == 0, 0.0, 2 * found * passed / both)


@dataclass(frozen=True)
class Bin:
    """Steps with scores in [low, high): their mean score, the share that is right, how many. None if there are none."""

    low: float
    high: float
    score: float | None
    rate: float | None
    count: int


def reliability(scores: Sequence[float], labels: Sequence[int], bins: int = 10) -> list[Bin]:
    """The reliability diagram as data: equal-width bins over 0–1; an empty bin has None, not 0.

    Errors: as `step_auc`, and a score outside 0–1.

    >>> [(b.score, b.rate, b.count) for b in reliability([0.2, 0.4, 0.9], [0, 1, 1], bins=2)]
    [(0.30000000000000004, 0.5, 2), (0.9, 1.0, 1)]
    """
    scores, labels = _scored(scores, labels)
    if scores.min() < 0 or scores.max() > 1:
        raise WorkbenchError("calibration needs scores in 0-1")
    which = np.minimum((scores * bins).astype(int), bins - 1)  # a score of 1 belongs to the last bin
    out = []
    for j in range(bins):
        inside = which == j
        means = (float(scores[inside].mean()), float(labels[inside].mean())) if inside.any() else (None, None)
        out.append(Bin(j / bins, (j + 1) / bins, *means, int(inside.sum())))
    return out


def ece(scores: Sequence[float], labels: Sequence[int], bins: int = 10) -> float:
    """Expected calibration error: mean over steps of |share right − mean score| of their bin (Guo et al. 2017).

    >>> round(ece([0.2, 0.4, 0.9], [0, 1, 1], bins=2), 3)
    0.167
    """
    return calibration_error(reliability(scores, labels, bins))


def calibration_error(bins: Sequence[Bin]) -> float:
    """`ece` of bins already made.

    >>> calibration_error([Bin(0, 0.5, None, None, 0), Bin(0.5, 1, 0.75, 0.5, 4)])
    0.25
    """
    return sum(b.count * abs(b.rate - b.score) for b in bins if b.count) / sum(b.count for b in bins)


# Parts shared by the above


def _estimate(rows: np.ndarray, statistic: Callable, seeds: int, seed: int) -> Estimate:
    """`statistic` of the column means of `rows` [problems, columns], and of those of resampled problems."""
    value, n = float(statistic(rows.mean(0))), len(rows)
    if not math.isfinite(value):
        raise WorkbenchError(f"the estimate over {n} problems is {value}: a part of it has no data")
    rng, drawn = np.random.default_rng(seed), []
    chunk = max(1, 2_000_000 // rows.size)  # bounds memory at 16 MB
    with np.errstate(all="ignore"):
        for start in range(0, DRAWS, chunk):
            picks = rng.integers(0, n, (min(chunk, DRAWS - start), n))
            drawn.append(statistic(rows[picks].mean(1)))
    return between(value, np.concatenate(drawn), n, seeds)


class _Table:
    """Records as rows [problems, accuracies of each setting then costs of each setting]."""

    def __init__(self, records: Iterable[Record], x: str):
        groups = _by_setting(records)
        self.settings = list(groups)
        self.width = len(self.settings)
        self.seeds = min(_seeds(rows) for rows in groups.values())
        columns = [by_problem(groups[s]) for s in self.settings] + [_mean_cost(groups[s], x) for s in self.settings]
        self.rows = np.array([[column[problem] for column in columns] for problem in sorted(columns[0])])
        self.x = self.rows[:, self.width :].mean(0).tolist()


def _by_setting(records: Iterable[Record]) -> dict[tuple[str, int], list[Record]]:
    records, groups = _checked(records), defaultdict(list)
    for record in records:
        if "method" not in record.knobs:
            raise WorkbenchError(f"the record of {record.problem} in run {record.run!r} has no knob 'method'")
        groups[_setting(record)].append(record)
    problems = {record.problem for record in records}
    for (method, n), rows in groups.items():
        if missing := problems - {row.problem for row in rows}:
            raise WorkbenchError(f"{method} at n={n} lacks {len(missing)} problems ({_some(missing)}): finish the run")
    return groups


def _mean_cost(records: Sequence[Record], x: str) -> dict[str, float]:
    if not hasattr(Cost, x):
        raise WorkbenchError(f"a Cost has no {x!r}: choose flops, tokens, sampled, seconds or another of its numbers")
    groups = defaultdict(list)
    for record in records:
        groups[record.problem].append(getattr(record.cost, x))
    costs = {problem: sum(values) / len(values) for problem, values in groups.items()}
    if free := [problem for problem, cost in costs.items() if not cost > 0]:
        raise WorkbenchError(f"{_setting(records[0])} has a cost of 0 {x} on {_some(free)}: it was not metered")
    return costs


def _setting(record: Record) -> tuple[str | None, int]:
    return record.knobs.get("method"), record.knobs.get("n", 1)


def _checked(records: Iterable[Record]) -> list[Record]:
    records = list(records)
    if not records:
        raise WorkbenchError("no records: nothing to measure")
    keys = Counter((r.run, r.problem, r.seed, json.dumps(dict(r.knobs), sort_keys=True, default=str)) for r in records)
    if twice := [key for key, count in keys.items() if count > 1]:
        raise WorkbenchError(f"{len(twice)} records occur twice (run, problem, seed, knobs): {_some(twice)}")
    return records


def _seeds(records: Iterable[Record]) -> int:
    return len({record.seed for record in records})


def _column(values) -> np.ndarray:
    if isinstance(values, Mapping):
        values = [values[problem] for problem in sorted(values)]
    if len(values) == 0:
        raise WorkbenchError("no values: nothing to measure")
    if any(value is None for value in values) or not np.isfinite(column := np.asarray(values, float)).all():
        raise WorkbenchError("a value is missing or not finite: leave its problem out on purpose, it is not 0")
    return column


def _scored(scores, labels) -> tuple[np.ndarray, np.ndarray]:
    if len(scores) != len(labels):
        raise WorkbenchError(f"{len(scores)} scores and {len(labels)} labels: one label a score")
    if strange := {label for label in labels if label not in (0, 1)}:
        raise WorkbenchError(f"labels must be 0 or 1, found {_some(strange)}: drop masked steps first")
    return _column(scores), np.asarray(labels, int)


def _some(things: Iterable, limit: int = 3) -> str:
    things = sorted(map(str, things))
    return ", ".join(things[:limit]) + (f" and {len(things) - limit} more" if len(things) > limit else "")
