"""An interval for every number, tests for pairs of marks, and how many problems a claim needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from statistics import NormalDist
from typing import Literal

import numpy as np

from ..types import WorkbenchError

DRAWS = 10_000  # bootstrap resamples: the ends of a 95 % interval then wobble by about 1 % of its width
LARGE, FEW = 2_000, 256  # more problems than LARGE are not drawn one by one; see `resampled`
Resample = Literal["problems", "nested", "crossed"]


@dataclass(frozen=True)
class Estimate:
    """A measured number with its 95 % interval; `low` and `high` are None where the data give none.

    `n` counts problems (the resampled unit), `seeds` the distinct seeds averaged inside each (the fewest of any).
    """

    value: float
    low: float | None
    high: float | None
    n: int
    seeds: int = 1

    def __str__(self) -> str:
        interval = "no interval" if self.low is None else f"{self.low:.3g} to {self.high:.3g}"
        return f"{self.value:.3g} [{interval}; n={self.n}, seeds={self.seeds}]"


@dataclass(frozen=True)
class Ratio:
    """A positive ratio with its 95 % interval, parts of which may lie outside what was measured.

    `bound` is "" for a measured value, ">=" or "<=" where the data only bound it, and "?" for a mean of bounds of both
    kinds. An end that lies outside is None: open, unlike an Estimate's None. `n` counts problems.

    >>> print(Ratio(2.0, 1.5, None, 60), Ratio(4.0, None, 9.0, 60, "<="), sep="; ")
    2 [1.5 to open; n=60]; <= 4 [open to 9; n=60]
    """

    value: float
    low: float | None
    high: float | None
    n: int
    bound: str = ""

    def __str__(self) -> str:
        low, high = ("open" if end is None else f"{end:.3g}" for end in (self.low, self.high))
        return f"{self.bound}{' ' * bool(self.bound)}{self.value:.3g} [{low} to {high}; n={self.n}]"


def between(value: float, draws: np.ndarray, n: int, seeds: int = 1) -> Estimate:
    """`value` with the middle 95 % of those `draws` that are finite, and itself; no interval if they do not vary.

    Errors: no draw is finite.

    >>> print(between(0.5, np.arange(101.0), n=7)), print(between(0.5, np.ones(9), n=1))
    0.5 [0.5 to 97.5; n=7, seeds=1]
    0.5 [no interval; n=1, seeds=1]
    (None, None)
    """
    known = draws[np.isfinite(draws)]
    if not len(known):
        raise WorkbenchError(f"none of {len(draws)} resamples of {n} problems has a value: measure more problems")
    low, high = np.quantile(known, [0.025, 0.975])
    some = high - low >= 1e-12  # one problem, or all alike: a zero width would claim certainty
    ends = (min(float(low), float(value)), max(float(high), float(value))) if some else (None, None)
    return Estimate(float(value), *ends, int(n), seeds)


def ratio(value: float, lower: np.ndarray, upper: np.ndarray, n: int, bound: str = "") -> Ratio:
    """`value` with the middle 95 % of draws; a draw known only to lie in `lower`–`upper` widens it. NaN is left out."""
    low = np.quantile(lower[~np.isnan(lower)], 0.025, method="lower")
    high = np.quantile(upper[~np.isnan(upper)], 0.975, method="higher")
    ends = (float(end) if 0 < abs(end) < np.inf else None for end in (low, high))
    return Ratio(float(value), *ends, n, bound)


def over_trainings(found: Sequence[Estimate | Ratio]) -> Estimate | Ratio:
    """The mean of one number over trainings, with the 95 % interval of Student's t.

    Every training has its own seed, problems and test problems, so that the spread of their numbers holds the noise of
    problems and that of training. The interval is of the mean: one training more may lie outside it. Ratios are
    averaged as logarithms. `n` and `seeds` are the fewest of any. No interval: of fewer than three trainings (the t of
    two is 12.7), where one of them has none, where all are equal. An end of a ratio that is open in one is open here,
    and both are where one is only a bound. Errors: none, or ratios among others. Left out: weights by each one's own
    interval; ends are not kept inside the range of a share.

    >>> print(over_trainings([Estimate(v, 0, 1, 240) for v in (0.1, 0.2, 0.3)]))
    0.2 [-0.0484 to 0.448; n=240, seeds=1]
    >>> print(over_trainings([Ratio(v, v / 2, 9, 240) for v in (1, 2, 4)]))
    2 [0.357 to 11.2; n=240]
    """
    from scipy.special import stdtrit

    if len({type(e) for e in found}) != 1:
        raise WorkbenchError("a mean over trainings needs numbers of one kind: estimates, or ratios")
    n, ratios = min(e.n for e in found), isinstance(found[0], Ratio)
    if strange := [e.value for e in found if not math.isfinite(e.value) or ratios and e.value <= 0]:
        raise WorkbenchError(
            f"{strange[0]} is no {'ratio' if ratios else 'number'} to average: leave that training out"
        )
    values = np.log([e.value for e in found]) if ratios else np.array([e.value for e in found])
    mean, spread = float(values.mean()), float(values.std(ddof=1)) if len(found) > 2 else 0.0
    reach = float(stdtrit(max(1, len(found) - 1), 0.975)) * spread / len(found) ** 0.5
    ends = [mean - reach, mean + reach] if reach > 1e-12 * max(1.0, abs(mean)) else [None, None]
    if not ratios:
        ends = [None, None] if any(e.low is None for e in found) else ends
        return Estimate(mean, *ends, n, min(e.seeds for e in found))
    bounds = {e.bound for e in found} - {""}
    known = [not bounds and all(getattr(e, side) is not None for e in found) for side in ("low", "high")]
    ends = [math.exp(end) if end is not None and sure else None for end, sure in zip(ends, known, strict=True)]
    return Ratio(math.exp(mean), *ends, n, "?" if len(bounds) > 1 else "".join(bounds))


# Bootstrap


def bootstrap(values, *, bounds=(0.0, 1.0), seeds: int = 1, seed: int = 0, resample: Resample = "problems") -> Estimate:
    """Mean over problems with a 95 % percentile-bootstrap interval (Efron).

    `values`: {problem: value} or one value a problem; the result does not depend on the order of a mapping. A value may
    be a sequence, one entry a seed, equally many for every problem; they are averaged.
    `resample`: "problems" is right for seeds that are independent samples: a problem's mean carries their noise.
    "crossed" draws problems and seeds (Owen 2007), for seeds that all problems share, such as training seeds: with few
    of them still too narrow. "nested" draws problems and, inside each, seeds anew: it counts the noise of a seed twice.
    `bounds`: the range a value can take, None if it has none. Resampling never sees a problem that is unlike those at
    hand, so with bounds it is not trusted alone: with 97.5 % confidence a share of at most 1 − .025^(1/n) of all
    problems is unlike them, by as much as `bounds` allow, and the interval reaches at least that far (all of it where
    values are equal). Values that are all 0 or 1, and not equal, have `wilson`'s interval: nothing is drawn.
    One problem alone, or equal values without bounds, has no interval (None).
    Errors: no values, a value that is not finite or outside `bounds`. Left out: BCa correction (below about 20
    problems the interval is somewhat narrow).

    >>> print(bootstrap({"p/1": 1.0, "p/2": 0.0, "p/3": 0.5, "p/4": 0.5}))
    0.5 [0.125 to 0.875; n=4, seeds=1]
    >>> print(bootstrap([1.0] * 40))
    1 [0.912 to 1; n=40, seeds=1]
    >>> print(bootstrap([1.0] * 39 + [0.0]))
    0.975 [0.871 to 0.996; n=40, seeds=1]
    >>> print(bootstrap({f"p/{i}": [1, 1, 0, i % 2] for i in range(40)}, resample="crossed"))
    0.625 [0.237 to 1; n=40, seeds=4]
    """
    values = column(values)
    grid, seeds = (values, values.shape[1]) if values.ndim == 2 else (None, seeds)
    values = values if grid is None else values.mean(1)
    if bounds and not (bounds[0] <= values.min() and values.max() <= bounds[1]):
        raise WorkbenchError(f"values outside {bounds}: give their range as bounds=, or None for no range")
    if resample == "problems":
        return means(values[:, None], seeds, bounds, seed)[0]
    if grid is None or resample not in ("nested", "crossed"):
        raise WorkbenchError(f"resample={resample!r} needs one value a seed, and is problems, nested or crossed")
    return _interval(values, lambda: _with_seeds(grid, resample, seed), bounds, seeds)


def paired_bootstrap(
    a, b, *, bounds=(-1.0, 1.0), seeds: int = 1, seed: int = 0, resample: Resample = "problems"
) -> Estimate:
    """Mean of a − b, paired over problems, with its 95 % bootstrap interval.

    `a`, `b`: {problem: mean over seeds} for the same problems, or two aligned sequences. Subtracting inside a problem
    removes the spread between easy and hard ones, which separate error bars keep. Sequences of seeds are subtracted
    seed by seed. `bounds` and `resample` as in `bootstrap`, for the difference. Errors: the two sides cover different
    problems (named).

    >>> print(paired_bootstrap({"x": 1.0, "y": 0.5, "z": 0.25}, {"z": 0.0, "y": 0.0, "x": 0.5}))
    0.417 [-0.586 to 0.829; n=3, seeds=1]
    """
    a, b = paired(a, b)
    return bootstrap(a - b, bounds=bounds, seeds=seeds, seed=seed, resample=resample)


def draws(n: int, seed: int, width: float = 1, fewer: bool = False) -> Iterator[np.ndarray]:
    """How often each of `n` problems falls into each resample: counts [chunk, n], DRAWS rows in all.

    `fewer`: a 25th of them where n is above LARGE; the ends of an interval then wobble by about 3 % of its width.
    """
    total = DRAWS // 25 if fewer and n > LARGE else DRAWS
    rng, chunk = np.random.default_rng(seed), max(1, int(2_000_000 / (n * width)))  # bounds memory
    for start in range(0, total, chunk):
        size = min(chunk, total - start)
        picks = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(picks.ravel(), minlength=size * n).reshape(size, n).astype(float)


def resampled(rows: np.ndarray, statistic: Callable, seed: int = 0) -> np.ndarray:
    """`statistic` of the column means [draws, columns] of resampled `rows` [problems, columns].

    Of more than LARGE problems only the number of each *different* row is drawn (multinomial: the same bootstrap), and
    where more than FEW differ the means themselves, which are normal by then.
    """
    with np.errstate(all="ignore"):
        if len(rows) <= LARGE:
            wide = max(1, rows.shape[1] / len(rows))
            return np.concatenate([statistic(counts @ rows / len(rows)) for counts in draws(len(rows), seed, wide)])
        rng, (different, times) = np.random.default_rng(seed), np.unique(rows, axis=0, return_counts=True)
        if len(different) <= FEW:
            return statistic(rng.multinomial(len(rows), times / len(rows), DRAWS) @ different / len(rows))
        spread = np.atleast_2d(np.cov(rows, rowvar=False, bias=True)) / len(rows)
        return statistic(rng.multivariate_normal(rows.mean(0), spread, DRAWS, check_valid="ignore"))


def estimate(rows: np.ndarray, statistic: Callable, seeds: int = 1, seed: int = 0, *, marks: int = 0) -> Estimate:
    """`statistic` of the column means of `rows` [problems, columns], and of those of resampled problems.

    The first `marks` columns lie in 0–1. As in `bootstrap` the interval reaches at least as far as the problems that n
    of them may well have missed could move it, were their marks all against it.
    """
    mean, n = rows.mean(0), len(rows)
    value = float(statistic(mean))
    if not math.isfinite(value):
        raise WorkbenchError(f"the estimate over {n} problems is {value}: a part of it has no data")
    found = between(value, resampled(rows, statistic, seed), n, seeds)
    if n == 1 or not marks:
        return found
    rises = statistic(mean + np.eye(len(mean))[:marks]) > value  # with which marks
    unlike = np.tile(mean, (2, 1))
    unlike[:, :marks] = ~rises, rises
    low, high = statistic(mean + unseen(n) * (unlike - mean)).tolist()
    seen = [value if found.low is None else end for end in (found.low, found.high)]
    return replace(found, low=min(low, seen[0]), high=max(high, seen[1]))


def unseen(n: int) -> float:
    """The share of all problems that may be unlike each of these `n`: with 97.5 % confidence it is not larger.

    >>> round(unseen(4), 2), round(unseen(240), 3)
    (0.6, 0.015)
    """
    return 1 - 0.025 ** (1 / n)


def means(rows: np.ndarray, seeds: int | Sequence[int] = 1, bounds=(0.0, 1.0), seed: int = 0) -> list[Estimate]:
    """`bootstrap` of each column of `rows` [problems, columns], all from one resampling; `seeds`: one for all, or each.

    >>> print(*means(np.array([[0, 0.5], [1, 1], [1, 0], [1, 0.5]]), [1, 2]), sep="; ")
    0.75 [0.301 to 0.954; n=4, seeds=1]; 0.5 [0.125 to 0.875; n=4, seeds=2]
    """
    same, drawn = lambda mean: mean, None

    def column_of(j):
        nonlocal drawn
        if len(rows) > LARGE:  # one column has few different values, all together have many
            return resampled(rows[:, [j]], same, seed)[:, 0]
        drawn = resampled(rows, same, seed) if drawn is None else drawn
        return drawn[:, j]

    each = np.broadcast_to(seeds, rows.shape[1]).tolist()
    return [_interval(rows[:, j], lambda j=j: column_of(j), bounds, each[j]) for j in range(rows.shape[1])]


def _interval(values: np.ndarray, draw: Callable, bounds, seeds: int) -> Estimate:
    """The mean of `values` with its interval, see `bootstrap`; `draw()` gives the means of resampled problems."""
    n, alike = len(values), np.ptp(values) == 0
    mean = float(values[0] if alike else values.mean())
    if not bounds or n == 1:
        return between(mean, draw(), n, seeds)
    if not alike and tuple(bounds) == (0, 1) and np.isin(values, (0, 1)).all():
        return replace(wilson(int(values.sum()), n), seeds=seeds)
    low, high = mean - unseen(n) * (mean - bounds[0]), mean + unseen(n) * (bounds[1] - mean)
    seen = None if alike else between(mean, draw(), n, seeds)
    if seen and seen.low is not None:
        low, high = max(bounds[0], min(low, seen.low)), min(bounds[1], max(high, seen.high))
    return Estimate(mean, low, high, n, seeds)


def _with_seeds(grid: np.ndarray, resample: str, seed: int) -> np.ndarray:
    (n, m), rng = grid.shape, np.random.default_rng([seed, 1])
    if resample == "crossed":
        return resampled(grid, lambda mean: (mean * rng.multinomial(m, np.full(m, 1 / m), len(mean))).sum(1) / m, seed)
    times = (rng.multinomial((counts * m).astype(int), np.full(m, 1 / m)) for counts in draws(n, seed, width=m))
    return np.concatenate([(each * grid).sum((1, 2)) for each in times]) / (n * m)  # [draws, problems, seeds] summed


# Marks of 0 and 1


def wilson(right: int, n: int) -> Estimate:
    """The share right/n with its 95 % Wilson score interval (1927): good for small n and for shares near 0 or 1.

    For n independent marks of 0 and 1, and what `bootstrap` gives for them. Several seeds of one problem are not
    independent: use `bootstrap`. Errors: what is no whole number, or not 0 <= right <= n.

    >>> print(wilson(9, 10))
    0.9 [0.596 to 0.982; n=10, seeds=1]
    """
    right, n = whole("right", right, 0), whole("n", n, 1)
    if right > n:
        raise WorkbenchError(f"{right} right of {n}: a share needs right <= n")
    z, p = NormalDist().inv_cdf(0.975), right / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    low, high = ((middle + side * half) / (1 + z * z / n) for side in (-1, 1))
    return Estimate(p, max(0.0, low) if right else 0.0, min(1.0, high) if right < n else 1.0, n)


@dataclass(frozen=True)
class McNemar:
    """Problems that only one side solves, and the two-sided p-value that chance splits them so unevenly."""

    only_a: int
    only_b: int
    n: int
    p: float


def mcnemar(a, b) -> McNemar:
    """Exact McNemar test (1947) of two methods that met the same problems: a binomial test of the discordant pairs.

    `a`, `b`: one mark of 0 or 1 a problem, {problem: mark} or aligned sequences. Errors: different problems, another
    mark (means over seeds: use `paired_bootstrap`). p is 1 where no problem tells the two apart.

    >>> mcnemar([1, 1, 1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0, 0, 1])
    McNemar(only_a=6, only_b=0, n=8, p=0.03125)
    """
    from scipy.stats import binomtest

    a, b = paired(a, b)
    if not np.isin([a, b], (0, 1)).all():
        raise WorkbenchError("McNemar's test needs marks of 0 and 1: compare means over seeds by paired_bootstrap")
    only_a, only_b = int((a > b).sum()), int((a < b).sum())
    p = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return McNemar(only_a, only_b, len(a), float(p))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """{name: p-value adjusted by Holm (1979)}: rejecting those below .05 errs once in 20 *families* of tests at most.

    The smallest of m is multiplied by m, the next by m − 1, and none may be smaller than the one before it. Holds
    whatever the dependence between the tests. Errors: a p-value outside 0–1.

    >>> holm({"beam": 0.01, "vote": 0.04, "mcts": 0.03})
    {'beam': 0.03, 'vote': 0.06, 'mcts': 0.06}
    """
    if strange := [name for name, value in p.items() if not 0 <= value <= 1]:
        raise WorkbenchError(f"no p-value between 0 and 1: {some(strange)}")
    out, least = {}, 0.0
    for rank, name in enumerate(sorted(p, key=p.get)):
        out[name] = least = max(least, min(1.0, (len(p) - rank) * p[name]))
    return {name: out[name] for name in p}


# How many problems


def discordance(a, b) -> float:
    """Mean squared difference of paired marks: for marks of 0 and 1, the share of problems that one side alone solves.

    >>> discordance([1, 0, 1, 1], [1, 1, 0, 1])
    0.5
    """
    a, b = paired(a, b)
    return float(np.mean((a - b) ** 2))


def power(gap: float, discordance: float, n: int, *, alpha: float = 0.05) -> float:
    """Chance that `n` problems show a true paired difference `gap` at two-sided `alpha` (Connor 1987, normal theory).

    `discordance`: as the function of that name gives on pilot marks; it is what pairing leaves of the noise. The exact
    McNemar test has a few points less. Errors: a gap larger than the discordance (impossible), or of 0.

    >>> round(power(0.02, 0.10, n=2000), 2)
    0.81
    """
    from scipy.special import ndtr

    (za, _), _, n = _z(alpha, 0.5), _possible(gap, discordance), whole("n", n, 1)
    spread = math.sqrt(discordance - gap**2) or 1e-12  # every problem tells, the same way
    return float(ndtr((abs(gap) * math.sqrt(n) - za * math.sqrt(discordance)) / spread))


def problems_needed(gap: float, discordance: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """How many problems show a paired difference `gap` with this `power`; see `power` for the terms.

    >>> problems_needed(0.02, discordance=0.10), problems_needed(0.02, discordance=0.40)
    (1960, 7847)
    """
    (za, zb), _ = _z(alpha, power), _possible(gap, discordance)
    return math.ceil(((za * math.sqrt(discordance) + zb * math.sqrt(discordance - gap**2)) / gap) ** 2)


def detectable_gap(n: int, discordance: float, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest paired difference that `n` problems show with this `power`: `problems_needed` solved for the gap.

    Errors: too few problems for any gap that this discordance allows.

    >>> round(detectable_gap(500, discordance=0.10), 3)
    0.04
    """
    za, zb = _z(alpha, power)
    n = whole("n", n, 1)
    if not 0 < discordance <= 1:
        raise WorkbenchError(f"a discordance of {discordance}: it is above 0, and at most 1")
    # g·√n = za·√d + zb·√(d − g²), squared and solved for g. Squaring adds a root of the wrong sign where n < za² and
    # zb > 0: not even a gap of 1 is seen with a power over a half. There is no root at all where n < za² − zb².
    seen = n >= za**2 - min(zb, 0) ** 2
    gap = math.sqrt(discordance) * (za * math.sqrt(n) + zb * math.sqrt(n + zb**2 - za**2)) / (n + zb**2) if seen else 2
    if gap > discordance:
        raise WorkbenchError(f"{n} problems show no gap at a discordance of {discordance:.3g}: measure more of them")
    return gap


def _z(alpha: float, power: float) -> tuple[float, float]:
    from scipy.special import ndtri

    if not (0 < alpha < 1 and 0 < power < 1):
        raise WorkbenchError(f"alpha {alpha} and power {power} are chances between 0 and 1")
    return float(ndtri(1 - alpha / 2)), float(ndtri(power))


def _possible(gap: float, discordance: float) -> None:
    if not 0 < abs(gap) <= discordance <= 1:
        raise WorkbenchError(f"a gap of {gap} at a discordance of {discordance}: 0 < |gap| <= discordance <= 1 holds")


# Parts that the package shares


def column(values, what: str = "a value") -> np.ndarray:
    """Values [problems] or [problems, seeds] as floats, a mapping in the order of its keys; none may be missing.

    `what` a value is, for messages. Errors: no values, one that is no number, is missing or not finite (named).
    """
    names = ordered(values) if isinstance(values, Mapping) else None
    values = [values[name] for name in names] if names is not None else values
    if len(values) == 0:
        raise WorkbenchError("no values: nothing to measure")
    found = numbers(values, what, names and names.__getitem__)
    if len(unknown := np.flatnonzero(~np.isfinite(found.reshape(len(found), -1)).all(1))):
        who = f" of {some(names[i] for i in unknown)}" if names is not None else ""
        raise WorkbenchError(f"{what} is missing or not finite{who}: leave its problem out on purpose, it is not 0")
    return found


def numbers(values, what: str, name: Callable | None = None) -> np.ndarray:
    """`values` as floats, None as NaN. Errors: text or anything else, told with the `name` of its place.

    >>> numbers([True, None, 0.5], "a mark").tolist()
    [1.0, nan, 0.5]
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        return values.astype(float)
    found = np.asarray(values, object)
    strange = {kind for kind in set(map(type, found.flat)) if not issubclass(kind, Real | np.bool_ | type(None))}
    if strange:
        i, value = next((i, value) for i, value in enumerate(found.flat) if type(value) in strange)
        who = f" of {name(i * len(found) // found.size)}" if name else ""
        raise WorkbenchError(f"{what}{who} is {value!r}: give a number, or equally many of each problem, one a seed")
    return found.astype(float)


def whole(what: str, value, least: int) -> int:
    """A whole number of `least` or more. Errors: anything else, True among it.

    >>> whole("repeats", np.int64(3), 1)
    3
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise WorkbenchError(f"{what} is {value!r}: give a whole number, {least} or more")
    return int(value)


def ordered(names: Iterable, what: str = "problem ids") -> list:
    """Sorted `names`. Errors: numbers and texts mixed, which have no order."""
    names = list(names)
    try:
        return sorted(names)
    except TypeError:
        kinds = some(
            f"{kind.__name__} ({next(n for n in names if type(n) is kind)!r})" for kind in set(map(type, names))
        )
        raise WorkbenchError(f"{what} are of several kinds, {kinds}: write all of them alike") from None


def paired(a, b) -> tuple[np.ndarray, np.ndarray]:
    """The two sides as arrays over the same problems."""
    if isinstance(a, Mapping) != isinstance(b, Mapping):
        raise WorkbenchError("pair a mapping with a mapping, or a sequence with a sequence of the same order")
    if isinstance(a, Mapping) and a.keys() != b.keys():
        raise WorkbenchError(f"the two sides cover different problems: {some(a.keys() ^ b.keys())} on one only")
    if len(a) != len(b):
        raise WorkbenchError(f"cannot pair {len(a)} values with {len(b)}: one value a problem on each side")
    a, b = column(a), column(b)
    if a.shape != b.shape:
        raise WorkbenchError(f"cannot pair {a.shape[1:]} seeds with {b.shape[1:]}: as many on each side")
    return a, b


def some(things: Iterable, limit: int = 3) -> str:
    """The first few of `things`, for a message.

    >>> some("dcba")
    'a, b, c and 1 more'
    """
    things = sorted(map(str, things))
    return ", ".join(things[:limit]) + (f" and {len(things) - limit} more" if len(things) > limit else "")
