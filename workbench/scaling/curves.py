"""Records to accuracy, and accuracy against compute."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from numbers import Integral, Real
from operator import attrgetter

import numpy as np

from ..types import Cost, Record, WorkbenchError, unknown
from .stats import Estimate, Resample, bootstrap, estimate, means, numbers, ordered, paired_bootstrap, some

Setting = tuple[str, int]
HALF = 0.5  # decades: the least that a slope per decade is read from
UNITS = 1e5  # costs of one method further apart are not of one unit: of two tokens or 100,000 a chain may be
MODELS = 1e8  # the same for methods, which may use models of other sizes
AMOUNTS = {name for name in dir(Cost) if isinstance(getattr(Cost(), name), Real)}  # what an axis may count


class Columns:
    """Records gone through once: numbers for their problem and setting, and their marks (NaN: not graded) as arrays.

    A setting is (knobs["method"], knobs["n"]), n being 1 where there is none. Problems and settings are sorted, so
    nothing depends on the order of the records. `seeds` [settings]: the fewest distinct seeds that a problem has.
    Errors: no records, two of one setting, run, problem and seed, a seed in two runs of which one has a part of the
    problems, a mark that is none, an n that is no number.
    """

    def __init__(self, records: Iterable[Record]):
        self.records = records = list(records)
        if not records:
            raise WorkbenchError("no records: nothing to measure")
        self.problems, self.problem = _codes(map(attrgetter("problem"), records))
        knobs = map(attrgetter("knobs"), records)
        self.settings, self.setting = _codes((k.get("method"), k.get("n", 1)) for k in knobs)
        strange = [n for _, n in self.settings if isinstance(n, bool) or not isinstance(n, Integral) or n < 0]
        if strange:
            raise WorkbenchError(f"the knob n is a number of samples, not {some(map(repr, strange))}")
        names, self.seed = _codes(map(attrgetter("seed"), records), "seeds")
        marks, what = [record.correct for record in records], "the mark `correct` (True, False or None)"
        self.mark = numbers(marks, what, lambda i: records[i].problem)
        if len(odd := np.flatnonzero(~np.isnan(self.mark) & (self.mark != 0) & (self.mark != 1))):
            raise WorkbenchError(f"{what} of {records[odd[0]].problem} is {marks[odd[0]]!r}: grade it anew")
        key = (self.setting * len(self.problems) + self.problem) * len(names) + self.seed
        places = np.sort(key)
        found = places[np.diff(places, prepend=-1) > 0] // len(names)  # the cell of each of its distinct seeds
        starts = np.flatnonzero(np.diff(found, prepend=-1))
        self.seeds = np.full(len(self.settings), len(names))
        np.minimum.at(self.seeds, found[starts] // len(self.problems), np.diff(starts, append=len(found)))
        self.twins = len(found) < len(key)
        if self.twins:  # unless they are of two runs
            runs, run = _codes(map(attrgetter("run"), records))
            key = key * len(runs) + run
            order = np.argsort(key)
            again = order[1:][np.diff(key[order]) == 0]
            which = some({(self.settings[self.setting[i]], records[i].problem, records[i].seed) for i in again})
            if len(again):
                raise WorkbenchError(
                    f"{len(again)} records occur twice (method, n, problem and seed in one run: {which}): "
                    "drop what was appended again, or give another method name where other knobs differ"
                )
            place, twice = key // len(runs), np.unique(places[1:][np.diff(places) == 0])
            shared = np.isin(place, twice)
            for j in np.unique(self.setting[shared]):
                here = (self.setting == j) & np.isin(run, run[shared & (self.setting == j)])
                of = np.unique(np.stack([run[here], self.problem[here]]), axis=1)
                size, whole = np.bincount(of[0]), len(set(of[1].tolist()))
                if len(part := np.flatnonzero((size > 0) & (size < whole))):
                    raise WorkbenchError(
                        f"{self.settings[j]}: the run {runs[part[0]]!r} has {size[part[0]]} of {whole} problems, and "
                        "seeds that another run has, too: give the records of one run, or all problems of each"
                    )

    def one_setting(self) -> None:
        if len(self.settings) > 1:
            what = some(self.settings)
            raise WorkbenchError(f"records of several settings (method, n) would be pooled: {what}; filter them")

    def one_run(self) -> None:
        """Each record an independent sample: the same seed of a problem in two runs is no second one."""
        self.one_setting()
        if self.twins:
            order = np.lexsort((self.seed, self.problem))
            pairs = np.diff(np.stack([self.problem, self.seed])[:, order]).any(0)
            i, j = order[np.argmin(pairs)], order[np.argmin(pairs) + 1]
            a, b = self.records[i], self.records[j]
            raise WorkbenchError(
                f"{a.problem} has two records of seed {a.seed} (runs {a.run!r} and {b.run!r}), which are no two "
                "independent samples: give the records of one run, or other seeds to the second"
            )

    def graded(self) -> None:
        if (unknown := np.isnan(self.mark)).any():
            which = some({self.problems[i] for i in self.problem[unknown]})
            raise WorkbenchError(f"{unknown.sum()} records are not graded ({which}): grade them, or leave them out")

    def counts(self, weights=None) -> np.ndarray:
        """[problems, settings]: how many records each cell has, or the sum of their `weights`."""
        shape = len(self.problems), len(self.settings)
        cells = self.problem * shape[1] + self.setting
        return np.bincount(cells, weights, shape[0] * shape[1]).reshape(shape)

    def spent(self, x: str) -> np.ndarray:
        """cost.`x` of every record. Errors: no such cost, one that is missing or 0, two units mixed."""
        if x not in AMOUNTS:
            raise WorkbenchError(f"a Cost has no {x!r}: choose {', '.join(sorted(AMOUNTS))}")
        try:
            cost = np.fromiter(map(attrgetter(f"cost.{x}"), self.records), float, len(self.records))
        except (TypeError, ValueError):
            raise WorkbenchError(f"a record has a cost without a number for {x}: it was not metered") from None
        if len(free := np.flatnonzero(~((cost > 0) & (cost < np.inf)))):
            row = self.records[free[0]]
            why = "spends none of that: leave it out, or choose flops" if row.cost.flops > 0 else "was not metered"
            if failed := row.knobs.get("error"):
                why = f"could not be served ({failed}): leave its problem out of all methods"
            raise WorkbenchError(f"{len(free)} records have no cost in {x}, or 0 ({self.at(free[0])}): it {why}")
        if cost.max() <= UNITS * cost.min():
            return cost
        n = np.array([max(n, 1) for _, n in self.settings])[self.setting]
        method, same_n = (_codes(str(setting[k]) for setting in self.settings)[1][self.setting] for k in (0, 1))
        # A method's n may be anything, so both its costs and its costs per n must lie apart; models differ by more.
        kinds = ((self.setting, UNITS, [cost]), (method, UNITS, [cost, cost / n]), (same_n, MODELS, [cost]))
        for group, factor, values in kinds:
            ends = [_ends(group, value) for value in values]
            mixed = [value[most] > factor * value[least] for value, (least, most) in zip(values, ends, strict=True)]
            if (mixed := np.all(mixed, axis=0)).any():
                i, j = (end[np.argmax(mixed)] for end in ends[-1])
                raise WorkbenchError(
                    f"{self.at(i)} costs {cost[i]:.3g} {x} and {self.at(j)} {cost[j]:.3g}: two units are mixed, or "
                    "two settings have one name"
                )
        return cost

    def at(self, i: int) -> str:
        """Of what record i is, for a message."""
        return f"{self.settings[self.setting[i]]} on {self.problems[self.problem[i]]}"


class Table:
    """Means over seeds of records of many settings on the same problems: `marks`, `costs` [problems, settings].

    Errors: no method knob, settings that cover different problems (a half-finished run), whatever `Columns` refuses.
    """

    def __init__(self, records: Iterable[Record], x: str):
        columns = Columns(records)
        self.settings, self.problems, self.axis = columns.settings, columns.problems, x
        for j, (method, _) in enumerate(self.settings):
            if method is None:
                row = columns.records[int(np.argmax(columns.setting == j))]
                raise WorkbenchError(f"the record of {row.problem} in run {row.run!r} has no knob 'method'")
        count = columns.counts()
        for (method, n), here in zip(self.settings, count.T, strict=True):
            if missing := [self.problems[i] for i in np.flatnonzero(here == 0)]:
                what = f"{len(missing)} problems ({some(missing)})"
                raise WorkbenchError(f"{method} at n={n} lacks {what}: finish the run")
        columns.graded()
        self.marks = columns.counts(columns.mark) / count
        self.costs = columns.counts(columns.spent(x)) / count
        self.x, self.seeds = self.costs.mean(0), columns.seeds

    def rows(self) -> np.ndarray:
        """[problems, marks of each setting then costs of each setting]."""
        return np.hstack([self.marks, self.costs])

    def of(self, method: str) -> list[int]:
        """The columns of a method, cheapest first."""
        return sorted((j for j, (m, _) in enumerate(self.settings) if m == method), key=lambda j: self.x[j])

    def at(self, method: str, n: int) -> int:
        if (method, n) not in self.settings:
            raise WorkbenchError(f"no records of {method} at n={n}: there are {some(self.settings)}")
        return self.settings.index((method, n))


def of_methods(records: Iterable[Record], *methods: str) -> list[Record]:
    """The records of these methods. Errors: a method that none of the records is of."""
    records = list(records)
    known = {str(record.knobs["method"]) for record in records if record.knobs.get("method") is not None}
    for method in methods if records else ():
        if method not in known:
            raise unknown("method", method, known)
    return [record for record in records if record.knobs.get("method") in methods]


def _codes(names: Iterable, what: str = "problem ids") -> tuple[list, np.ndarray]:
    """(distinct names, sorted; the place of each name among them)."""
    index = defaultdict()
    index.default_factory = index.__len__
    codes = np.fromiter(map(index.__getitem__, names), np.int64)
    pairs = isinstance(next(iter(index)), tuple)  # settings, which may lack a method
    known = sorted(index, key=str) if pairs else ordered(index, what)
    rank = np.empty(len(known), np.int64)
    rank[[index[name] for name in known]] = np.arange(len(known))
    return known, rank[codes]


def _ends(group: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every group, the place of its least value and that of its largest."""
    order = np.lexsort((values, group))
    first = np.flatnonzero(np.diff(group[order], prepend=-1))
    return order[first], order[np.append(first[1:], len(order)) - 1]


def by_problem(records: Iterable[Record]) -> dict[str, float]:
    """{problem id: mean of `correct` over its seeds}, for the records of one method at one n.

    Errors: a record twice (same run, problem and seed), two methods or two n pooled by accident, and a record whose
    `correct` is None.

    >>> rows = [Record("r", p, s, "5", ok) for p, s, ok in [("p/1", 0, True), ("p/1", 1, False), ("p/2", 0, True)]]
    >>> by_problem(rows)
    {'p/1': 0.5, 'p/2': 1.0}
    """
    return _by_problem(Columns(records))


def _by_problem(columns: Columns) -> dict[str, float]:
    columns.one_setting()
    columns.graded()
    count, total = columns.counts()[:, 0], columns.counts(columns.mark)[:, 0]
    return {columns.problems[i]: float(total[i] / count[i]) for i in np.flatnonzero(count)}


def _by_seed(records: Iterable[Record], resample: Resample) -> tuple[dict[str, list[float]], int]:
    """{problem: its mean, or with seeds resampled its marks seed by seed}, and the number of seeds."""
    columns = Columns(records)
    values, seeds = _by_problem(columns), int(columns.seeds[0])
    if resample == "problems":
        return values, seeds
    marks = columns.mark[np.lexsort((columns.seed, columns.problem))]
    ends = np.cumsum(columns.counts()[:, 0])[:-1]
    groups = {problem: part.tolist() for problem, part in zip(columns.problems, np.split(marks, ends), strict=True)}
    every = columns.seed.max() + 1
    if uneven := [problem for problem, part in groups.items() if len(part) != every]:
        raise WorkbenchError(
            f"{some(uneven)} lack a seed or have one twice: resample={resample!r} needs the same of each"
        )
    return groups, seeds


def accuracy(records: Iterable[Record], *, resample: Resample = "problems") -> Estimate:
    """Mean accuracy over problems with its interval: `bootstrap(by_problem(records))`, seeds counted.

    `resample`: as in `bootstrap`; "crossed" for seeds that every problem shares.

    >>> print(accuracy([Record("r", f"p/{i}", 0, "5", i % 4 > 0) for i in range(100)]))
    0.75 [0.657 to 0.825; n=100, seeds=1]
    """
    values, seeds = _by_seed(records, resample)
    return bootstrap(values, seeds=seeds, resample=resample)


def by_level(records: Iterable[Record]) -> dict[Setting, dict[int, Estimate]]:
    """{(method, n): {level: `accuracy` on the problems of that level}}, all settings of a level in one resampling.

    Errors: a problem of two levels, whatever `by_problem` refuses.

    >>> rows = [Record("r", f"p/{i}", 0, "5", i % 4 > i // 20, level=1 + i // 20, knobs={"method": "vote"})
    ...         for i in range(40)]
    >>> {level: found.value for level, found in by_level(rows)["vote", 1].items()}
    {1: 0.75, 2: 0.5}
    """
    columns = Columns(records)
    columns.graded()
    levels, level = _codes(map(attrgetter("level"), columns.records), "levels")
    of = np.zeros(len(columns.problems), np.int64)
    of[columns.problem] = level
    if len(odd := np.flatnonzero(of[columns.problem] != level)):
        raise WorkbenchError(f"{columns.records[odd[0]].problem} has records of two levels: give it one")
    count, found = columns.counts(), {setting: {} for setting in columns.settings}
    marks = columns.counts(columns.mark) / np.maximum(count, 1)
    for i, name in enumerate(levels):
        alike = defaultdict(list)  # settings that cover the same problems of this level
        for j, there in enumerate(((count > 0) & (of == i)[:, None]).T):
            alike[there.tobytes()].append(j)
        for there, which in alike.items():
            inside = np.frombuffer(there, bool)
            estimates = means(marks[inside][:, which], columns.seeds[which]) if inside.any() else []
            for j, e in zip(which, estimates, strict=False):
                found[columns.settings[j]][name] = e
    return found


def difference(a: Iterable[Record], b: Iterable[Record], *, resample: Resample = "problems") -> Estimate:
    """Accuracy of records `a` minus that of `b`, paired over problems; the fewer seeds of the two are reported.

    With another `resample` than "problems" seeds are paired too, in their order.

    >>> a, b = ([Record("r", f"p/{i}", 0, "5", i % 5 < k) for i in range(50)] for k in (3, 2))
    >>> print(difference(a, b))
    0.2 [0.1 to 0.32; n=50, seeds=1]
    """
    (a, ours), (b, theirs) = _by_seed(a, resample), _by_seed(b, resample)
    return paired_bootstrap(a, b, seeds=min(ours, theirs), resample=resample)


def named(records: Iterable[Record], method: str) -> list[Record]:
    """The same records under a method's name, one sample each, to be drawn beside others.

    >>> named([Record("r", "p/1", 0, "5", True, knobs={"n": 4})], "before")[0].knobs
    {'method': 'before', 'n': 1}
    """
    return [replace(record, knobs={"method": method, "n": 1}) for record in records]


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
    table = Table(records, x)
    points = [
        Point(method, n, float(cost), found, x)
        for (method, n), cost, found in zip(table.settings, table.x, means(table.marks, table.seeds), strict=True)
    ]
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
    Errors: an unknown method, X_a outside b's budgets (no extrapolation), different problems, costs not metered.

    >>> from workbench.types import Cost
    >>> def rows(method, n, flops, right):
    ...     return [Record("r", f"p/{i}", 0, "5", i < right, Cost(policy_flops=flops), knobs={"method": method, "n": n})
    ...             for i in range(20)]
    >>> cheap, dear = rows("vote", 1, 1e6, 8), rows("vote", 4, 4e6, 12)
    >>> round(paired_at_equal_flops([*rows("beam", 2, 2e6, 15), *cheap, *dear], "beam", "vote", n=2).value, 3)
    0.25
    """
    table = Table(of_methods(records, a, b), x)
    mine, theirs = table.at(a, n), table.of(b)
    below, above = ([j for j in theirs if keep(table.x[j])] for keep in (table.x[mine].__ge__, table.x[mine].__le__))
    if not below or not above:
        span = f"{table.x[theirs[0]]:.3g} to {table.x[theirs[-1]]:.3g}"
        raise WorkbenchError(
            f"{a} at n={n} costs {table.x[mine]:.3g} {x} and {b} was measured from {span}: "
            f"measure {b} at a budget beyond, nothing is extrapolated"
        )
    lo, hi, width = below[-1], above[0], len(table.settings)

    def gap(mean):
        accuracies, cost = mean[..., :width], np.log(mean[..., width:])
        if table.x[lo] == table.x[hi]:  # b was measured at exactly this cost
            return accuracies[..., mine] - accuracies[..., lo]
        w = (cost[..., mine] - cost[..., lo]) / (cost[..., hi] - cost[..., lo])
        return accuracies[..., mine] - (1 - w) * accuracies[..., lo] - w * accuracies[..., hi]

    return estimate(table.rows(), gap, int(table.seeds.min()), seed, marks=width)


def log_slope(records: Iterable[Record], method: str, *, x: str = "flops", seed: int = 0) -> Estimate:
    """Accuracy gained per decade of compute: least squares over a method's budgets, problems resampled.

    Each budget weighs the same and costs are resampled with their problems. A straight line is a summary of the
    measured range, not a law: accuracy ends at 1. Errors: an unknown method, budgets that span less than half a decade,
    over which a slope per decade would be extrapolated.

    >>> from workbench.types import Cost
    >>> def rows(n, flops, right):
    ...     knobs, cost = {"method": "vote", "n": n}, Cost(policy_flops=flops)
    ...     return [Record("r", f"p/{i}", 0, "5", i < right, cost, knobs=knobs) for i in range(12)]
    >>> rows = [*rows(1, 1e6, 4), *rows(10, 1e7, 7), *rows(100, 1e8, 10)]
    >>> round(log_slope(rows, "vote").value, 3)
    0.25
    """
    table = Table(of_methods(records, method), x)
    if (span := math.log10(table.x.max() / table.x.min())) < HALF:
        raise WorkbenchError(
            f"{method} was measured over {span:.2g} decades of {x} ({some(table.settings)}), and a slope per decade "
            f"needs {HALF}: measure more budgets, or compare two by `difference`"
        )
    width = len(table.settings)

    def slope(mean):
        y, decades = mean[..., :width], np.log10(mean[..., width:])
        decades = decades - decades.mean(-1, keepdims=True)
        return (decades * y).sum(-1) / (decades**2).sum(-1)

    return estimate(table.rows(), slope, int(table.seeds.min()), seed, marks=width)
