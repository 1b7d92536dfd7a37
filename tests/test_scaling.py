"""Statistics: against scipy, scikit-learn, released data or a sum done by hand. Each test names the mistake it pins."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import scaling
from workbench.scaling import (
    accuracy,
    best_threshold,
    bootstrap,
    by_problem,
    coverage,
    curve,
    difference,
    ece,
    first_error_f1,
    first_error_rates,
    log_slope,
    paired_at_equal_flops,
    paired_bootstrap,
    pass_at_k,
    power_law,
    quantile_bins,
    reliability,
    step_auc,
)
from workbench.types import Cost, Record, WorkbenchError

quick = settings(max_examples=40, deadline=None)  # a busy machine is no failure


def rows(method, n, flops, right, total=20, seed=0):
    """`total` problems, the first `right` of them solved, each at `flops` (a number, or a function of the problem)."""
    cost = flops if callable(flops) else lambda i: flops
    return [
        Record("r", f"p/{i:03}", seed, "5", i < right, Cost(policy_flops=cost(i)), knobs={"method": method, "n": n})
        for i in range(total)
    ]


# pass@k and coverage


def test_pass_at_k_counts_subsets():
    """Bug: 1 − (1 − c/n)^k in place of the unbiased estimate. The slow specification draws every subset."""
    for n, c, k in [(5, 2, 3), (6, 1, 4), (4, 0, 2), (4, 4, 1), (7, 3, 7)]:
        subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
        if 0 < c < n and k > 1:
            assert pass_at_k(n, c, k) > 1 - (1 - c / n) ** k


def test_pass_at_k_is_the_mean_over_problems_and_refuses_too_few_samples():
    assert pass_at_k([4, 8], [1, 8], 2) == pytest.approx((0.5 + 1) / 2)
    assert 0 < pass_at_k(10_000, 1, 5_000) < 1, "a binomial coefficient would overflow a float here"
    for bad in [dict(n=4, c=1, k=5), dict(n=[9, 4], c=[1, 1], k=5), dict(n=4, c=1, k=0), dict(n=4, c=5, k=1)]:
        with pytest.raises(WorkbenchError, match="pass@"):
            pass_at_k(**bad)


def test_coverage_from_records():
    """Samples of a problem are its seeds; the interval is over problems."""
    samples = [Record("r", f"p/{i}", s, "5", s < i) for i in range(5) for s in range(4)]
    (_, first), (k, last) = coverage(samples, [1, 4])
    assert first.value == pytest.approx(np.mean([0, 0.25, 0.5, 0.75, 1])) and first.n == 5 and first.seeds == 4
    assert k == 4 and last.value == pytest.approx(0.8)
    with pytest.raises(WorkbenchError, match="the fewest is n=4"):
        coverage(samples, [5])


def test_power_law_recovers_its_own_law_and_refuses_what_lies_outside():
    law = power_law([1, 3, 30], [math.exp(-2 * k**-0.4) for k in (1, 3, 30)])
    assert (law.a, law.b) == pytest.approx((-2, -0.4)) and law.max_error < 1e-12
    assert law([1, 3]) == pytest.approx([math.exp(-2), math.exp(-2 * 3**-0.4)])
    for ks, c in [([1, 2], [0.5, 1.0]), ([1, 2], [0.0, 0.5]), ([1, 2], [0.5, 0.4]), ([1, 1], [0.5, 0.5])]:
        with pytest.raises(WorkbenchError):
            power_law(ks, c)


# Estimates over problems


def test_bootstrap_agrees_with_scipy():
    from scipy.stats import bootstrap as reference

    values = np.random.default_rng(1).beta(2, 3, 60)
    mine = bootstrap(values)
    theirs = reference((values,), np.mean, method="percentile", n_resamples=10_000, rng=7).confidence_interval
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=0.003)


def test_bootstrap_covers_the_truth_nearly_as_often_as_it_says(monkeypatch):
    """Bug: an interval of the wrong width. 300 experiments of 50 problems, true mean 0.4."""
    monkeypatch.setattr(scaling.stats, "DRAWS", 1000)
    rng = np.random.default_rng(0)
    inside = [e.low <= 0.4 <= e.high for e in (bootstrap(rng.binomial(4, 0.4, 50) / 4) for _ in range(300))]
    assert 0.90 <= np.mean(inside) <= 0.98


def test_the_same_data_gives_the_same_interval_in_any_order():
    """Bug: an interval that depends on the order of the rows, so a resumed run changes the claim."""
    values = {f"p/{i}": random.Random(i).random() for i in range(30)}
    shuffled = dict(sorted(values.items(), key=lambda item: item[1]))
    assert bootstrap(values) == bootstrap(shuffled) == bootstrap(values, seed=0) != bootstrap(values, seed=1)


def test_pairing_is_by_problem_not_by_position():
    """Bug: a difference of accuracies without pairing: here the paired interval is far narrower, and by name."""
    b = {f"p/{i}": (i % 10) / 10 for i in range(40)}
    a = {problem: min(1.0, value + 0.05 + 0.01 * (len(problem) % 2)) for problem, value in reversed(b.items())}
    paired, alone = paired_bootstrap(a, b, bounds=None), bootstrap(a, bounds=None)
    assert paired.low > 0 and (paired.high - paired.low) < 0.1 * (alone.high - alone.low)
    assert paired.value == pytest.approx(bootstrap(a).value - bootstrap(b).value)


@pytest.mark.parametrize(
    "a, b", [({"x": 1.0, "y": 0.0}, {"x": 1.0, "z": 0.0}), ([1.0, 0.0], [1.0]), ({"x": 1.0}, [1.0])]
)
def test_sides_that_do_not_pair_are_refused(a, b):
    with pytest.raises(WorkbenchError, match="y, z|cannot pair|pair a mapping"):
        paired_bootstrap(a, b)


def test_no_certainty_from_one_problem_or_from_equal_ones():
    """Bug: a zero-width interval, from which any claim would be decided."""
    assert (bootstrap([1.0]).low, bootstrap([1.0]).high) == (None, None)
    assert (bootstrap([7.0, 7.0], bounds=None).low, paired_bootstrap([1.0], [0.0]).high) == (None, None)
    perfect = bootstrap([1.0] * 100)
    assert perfect.high == 1 and (1 - (1 - perfect.low)) ** 100 == pytest.approx(0.025), "the Clopper-Pearson bound"
    same = paired_bootstrap([0.5] * 100, [0.5] * 100)
    assert same.low == pytest.approx(-same.high) and 0 < same.high < 0.05


@pytest.mark.parametrize("values", [[], [None, 1.0], [math.nan, 1.0], [1.5, 0.0], {"p": None}])
def test_values_that_are_not_there_are_refused(values):
    """Bug: a missing score becomes 0."""
    with pytest.raises(WorkbenchError):
        bootstrap(values)


def test_by_problem_averages_seeds_first():
    """Bug: a problem with more seeds weighs more; results grouped by anything but the id."""
    records = [Record("r", "p/1", s, "5", s < 3) for s in range(9)] + [Record("r", "p/2", 0, "5", True)]
    assert by_problem(records) == {"p/1": pytest.approx(1 / 3), "p/2": 1.0}
    assert accuracy(records).value == pytest.approx(2 / 3)


def test_the_seeds_told_are_those_that_every_problem_has():
    """Bug: seeds=2 under a figure where 19 of 20 problems have one."""
    records = [*rows("vote", 1, 1e6, 7), *rows("vote", 1, 1e6, 7, total=1, seed=1)]
    found = [accuracy(records), curve(records)[0].accuracy, coverage(records, [1])[0][1]]
    assert [e.seeds for e in found] == [1, 1, 1]
    twice = [*rows("vote", 1, 1e6, 7), *rows("vote", 1, 1e6, 7, seed=5)]
    assert accuracy(twice).seeds == curve([*twice, *rows("beam", 1, 1e6, 7)])[1].accuracy.seeds == 2


def test_ungraded_records_are_refused():
    """Bug: a grader that gave up counts as a wrong answer."""
    records = [Record("r", "p/1", 0, "5", True), Record("r", "p/1", 1, "5", None), Record("r", "p/2", 0, "5", None)]
    with pytest.raises(WorkbenchError, match="2 records are not graded"):
        by_problem(records)


def test_duplicates_and_accidental_pools_are_refused():
    """Bugs: a resumed run appends its rows twice; two methods averaged into one accuracy."""
    row = rows("vote", 1, 1e6, 1, total=1)[0]
    with pytest.raises(WorkbenchError, match="1 records occur twice"):
        by_problem([row, row])
    with pytest.raises(WorkbenchError, match="several settings"):
        by_problem([*rows("vote", 1, 1e6, 3), *rows("vote", 2, 1e6, 3)])
    with pytest.raises(WorkbenchError, match="no records"):
        by_problem([])


@quick
@given(st.dictionaries(st.text(max_size=4), st.sampled_from([0.0, 0.25, 1.0]), min_size=5, max_size=40))
def test_quantile_bins_are_balanced_and_ordered(pass1):
    """Bug: np.digitize on quantiles puts all ties in one bin and leaves others empty."""
    bins = quantile_bins(pass1, k=5)
    sizes = [list(bins.values()).count(j) for j in range(1, 6)]
    assert bins.keys() == pass1.keys() and max(sizes) - min(sizes) <= 1 and min(sizes) >= 1
    assert all(pass1[a] >= pass1[b] for a in bins for b in bins if bins[a] < bins[b])
    assert bins == quantile_bins(dict(reversed(pass1.items())), k=5)


# Compute


def test_curve_uses_all_flops_per_problem():
    """Bug: verifier compute uncounted; a mean over records that favours problems with more seeds."""
    cost = Cost(policy_flops=2 * 8e9 * 405e3, verifier_flops=1e15)
    many = [Record("r", "p/1", s, "5", True, cost, knobs={"method": "beam", "n": 4}) for s in range(3)]
    one = Record("r", "p/2", 0, "5", False, Cost(policy_flops=1e15), knobs={"method": "beam", "n": 4})
    (point,) = curve([*many, one])
    assert point.x == pytest.approx((7.48e15 + 1e15) / 2) and point.accuracy.value == 0.5
    assert (point.method, point.n, point.accuracy.n, point.accuracy.seeds) == ("beam", 4, 2, 1)


def test_curve_refuses_half_runs_unmetered_costs_and_nameless_methods():
    """Bugs: tokens reported as 0; one method measured on fewer problems than another."""
    full, half = rows("vote", 1, 1e6, 3), rows("vote", 4, 4e6, 3, total=15)
    with pytest.raises(WorkbenchError, match="vote at n=4 lacks 5 problems"):
        curve([*full, *half])
    with pytest.raises(WorkbenchError, match="not metered"):
        curve(rows("vote", 1, 0.0, 3))
    with pytest.raises(WorkbenchError, match="no knob 'method'"):
        curve([Record("r", "p", 0, "5", True)])
    with pytest.raises(WorkbenchError, match="no 'flop'"):
        curve(full, x="flop")


def test_equal_flops_interpolates_in_log_compute():
    """Bug: linear instead of log interpolation. sqrt(10) times the cheap budget is half-way, not a quarter."""
    vote = [*rows("vote", 1, 1e6, 4), *rows("vote", 10, 1e7, 12)]
    gap = paired_at_equal_flops([*rows("beam", 2, 10**6.5, 16), *vote], "beam", "vote", n=2)
    assert gap.value == pytest.approx(0.8 - (0.2 + 0.6) / 2) and gap.low < gap.value < gap.high and gap.n == 20
    at_lo = paired_at_equal_flops([*rows("beam", 2, 1e6, 16), *vote], "beam", "vote", n=2)
    at_hi = paired_at_equal_flops([*rows("beam", 2, 1e7, 16), *vote], "beam", "vote", n=2)
    assert (at_lo.value, at_hi.value) == pytest.approx((0.6, 0.2))
    wide = [*rows("vote", 0, 1e5, 0), *vote, *rows("vote", 100, 1e8, 13)]
    again = paired_at_equal_flops([*rows("beam", 2, 10**6.5, 16), *wide], "beam", "vote", n=2)
    assert again.value == pytest.approx(gap.value), "the two nearest budgets, not the whole range"


def test_equal_flops_is_not_equal_n():
    """Bug: methods compared at the same number of answers, where the dearer one always wins."""
    vote = [*rows("vote", 4, 4e6, 8), *rows("vote", 16, 16e6, 16)]
    beam = rows("beam", 4, 16e6, 14)
    assert (
        difference(beam, rows("vote", 4, 4e6, 8)).value
        > 0
        > paired_at_equal_flops([*beam, *vote], "beam", "vote", 4).value
    )


def test_equal_flops_weighs_costs_anew_in_every_draw():
    """Bug: budgets frozen at their sample mean. Here all of the uncertainty comes from the costs."""
    vote = [*rows("vote", 1, 1e6, 0, 400), *rows("vote", 10, 1e7, 400, 400)]
    spread = rows("beam", 2, lambda i: (1.1e6, 8.9e6)[i % 2], 400, 400)
    gap = paired_at_equal_flops([*spread, *vote], "beam", "vote", n=2)
    frozen = paired_at_equal_flops([*rows("beam", 2, 5e6, 400, 400), *vote], "beam", "vote", n=2)
    assert gap.high - gap.low > 0.05 > 0.02 > frozen.high - frozen.low


@pytest.mark.parametrize("n", [4, 5, 8, 20])
def test_few_problems_decide_no_more_by_cost_than_they_do_by_mark(n):
    """Bug: the intervals of equal FLOPs and of slopes were those of the draws alone: three of four problems that only
    one method solves decided a claim, which `difference` leaves open on the same marks."""
    for right in range(n + 1):
        beam, vote = rows("beam", 1, 1e6, right, n), rows("vote", 1, 1e6, 0, n)
        same = paired_at_equal_flops([*beam, *vote], "beam", "vote", n=1)
        gap = difference(beam, vote)
        assert (same.low, same.high) == pytest.approx((gap.low, gap.high), abs=1e-9)
        slope = log_slope([*vote, *rows("vote", 10, 1e7, right, n)], "vote")
        assert (slope.value, slope.low, slope.high) == pytest.approx((same.value, same.low, same.high))


def test_slopes_of_few_problems_cover_the_truth_nearly_as_often_as_they_say(monkeypatch):
    """Bug: of six problems the interval of a slope missed the true one 12 % of the time."""
    monkeypatch.setattr("workbench.scaling.stats.DRAWS", 1000)
    rng, missed = np.random.default_rng(0), 0
    for _ in range(200):
        able, luck = rng.normal(0, 1.5, 6), rng.random((6, 3))
        right = luck < 1 / (1 + np.exp(-able[:, None] - [-0.5, 0, 0.5]))
        records = [
            Record("r", f"p/{i}", 0, "5", bool(right[i, j]), Cost(policy_flops=10.0 ** (6 + j)), knobs=knobs)
            for j, knobs in enumerate({"method": "vote", "n": n} for n in (1, 10, 100))
            for i in range(6)
        ]
        slope = log_slope(records, "vote")
        missed += not slope.low <= 0.0876 <= slope.high
    assert missed <= 10


def test_equal_flops_never_extrapolates():
    vote = [*rows("vote", 1, 1e6, 4), *rows("vote", 10, 1e7, 12)]
    for flops in (0.9e6, 1.1e7):
        with pytest.raises(WorkbenchError, match="nothing is extrapolated"):
            paired_at_equal_flops([*rows("beam", 2, flops, 16), *vote], "beam", "vote", n=2)
    with pytest.raises(WorkbenchError, match="no records of beam at n=3"):
        paired_at_equal_flops([*rows("beam", 2, 2e6, 16), *vote], "beam", "vote", n=3)
    with pytest.raises(WorkbenchError, match="unknown method 'vote': Known: beam"):
        paired_at_equal_flops(rows("beam", 2, 2e6, 16), "beam", "vote", n=2)


def test_log_slope_is_per_decade_and_agrees_with_scipy():
    """Bug: natural logarithm instead of decades (a factor of 2.3)."""
    from scipy.stats import linregress

    right, flops = (3, 9, 11, 18), (1e6, 8e6, 2e7, 5e8)
    records = [row for n, (k, x) in enumerate(zip(right, flops, strict=True)) for row in rows("vote", n, x, k)]
    slope = log_slope([*records, *rows("beam", 1, 1e3, 20)], "vote")
    assert slope.value == pytest.approx(linregress(np.log10(flops), np.array(right) / 20).slope)
    assert 0 < slope.low < slope.value < slope.high and slope.n == 20


def test_no_slope_per_decade_over_a_sliver_of_one():
    """Bug: 1.01 a decade, read from 0.15 decades."""
    sliver = [*rows("vote", 1, 1e6, 3), *rows("vote", 2, 10**6.15, 6)]
    with pytest.raises(WorkbenchError, match=r"over 0\.15 decades of flops .* more budgets, or .*`difference`"):
        log_slope(sliver, "vote")
    with pytest.raises(WorkbenchError, match=r"over 0 decades"):
        log_slope(rows("vote", 1, 1e6, 3), "vote")
    assert log_slope([*sliver, *rows("vote", 4, 10**6.5, 6)], "vote").value > 0


# Verifiers


@quick
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2).filter(lambda p: len({x[1] for x in p}) == 2))
def test_auc_agrees_with_mann_whitney_under_ties(pairs):
    """Bug: ties counted as wins, so a constant verifier gets an AUC of 1."""
    from scipy.stats import mannwhitneyu
    from sklearn.metrics import roc_auc_score

    scores, labels = [s / 5 for s, _ in pairs], [y for _, y in pairs]
    auc = step_auc(scores, labels)
    assert auc == pytest.approx(roc_auc_score(labels, scores))
    right, wrong = ([s for s, y in zip(scores, labels, strict=True) if y == side] for side in (True, False))
    assert auc == pytest.approx(mannwhitneyu(right, wrong).statistic / (len(right) * len(wrong)))


@pytest.mark.parametrize(
    "scores, labels", [([0.5], [1]), ([0.5, 0.5], [1, -100]), ([0.5], [1, 0]), ([None, 0.5], [1, 0])]
)
def test_masked_mismatched_and_missing_labels_are_refused(scores, labels):
    """Bugs: −100 cast to True; mismatched counts silently truncated; None read as 0."""
    for measure in (step_auc, ece) if len(set(labels)) > 1 else (step_auc,):
        with pytest.raises(WorkbenchError):
            measure(scores, labels)


SCORES = [[0.9, 0.2, 0.1], [0.9, 0.9, 0.3], [0.3, 0.9], [0.8, 0.9], [0.7, 0.4]]
LABELS = [[1, 0, None], [1, 0, 0], [1, 0], [1, 1], [1, 1]]


def test_first_error_f1_by_hand():
    """Bugs: an alarm anywhere counts as found; steps after the first error read; arithmetic for harmonic mean."""
    # at .5: found exactly in trace 0 only (1 alarms late, 2 early); of the correct ones 3 passes, 4 does not
    assert first_error_rates(SCORES, LABELS, 0.5) == pytest.approx((1 / 3, 1 / 2, 2 * (1 / 3) * (1 / 2) / (5 / 6)))
    assert first_error_rates(SCORES, LABELS, 0.2)[0] == 0, "under the threshold, not at it"
    assert first_error_rates(SCORES, LABELS, 0.0) == (0.0, 1.0, 0.0), "a silent verifier earns nothing"
    assert first_error_rates([[0.1, None], [0.9]], [[0, None], [1]], 0.5)[2] == 1.0, "unscored after the first error"


def test_first_error_f1_interval_resamples_problems():
    """Bug: traces of one problem taken as independent, which makes the interval too narrow."""
    rng = np.random.default_rng(0)
    scores, labels, problems = [], [], []
    for i in range(40):
        noise = 0.45 * rng.random()  # a problem's traces succeed or fail together
        for good in (0, 1):
            scores += [[0.9, 0.3 + noise if good == 0 else 0.8 - noise]] * 8
            labels += [[1, good]] * 8
            problems += [f"p/{i}"] * 8
    alone, together = first_error_f1(scores, labels, 0.5), first_error_f1(scores, labels, 0.5, problems=problems)
    assert alone.value == pytest.approx(together.value) == pytest.approx(first_error_rates(scores, labels, 0.5)[2])
    assert together.n == 40 and alone.n == 640
    assert (together.high - together.low) > 2 * (alone.high - alone.low)


def test_scores_may_be_arrays():
    """Bug: a row of an array was added to the scores before it, number by number, or crashed."""
    as_arrays = [np.array(row) for row in SCORES]
    beside = [row if i % 2 else np.array(row) for i, row in enumerate(SCORES)]
    for scores in (as_arrays, beside):
        assert first_error_rates(scores, LABELS, 0.5) == first_error_rates(SCORES, LABELS, 0.5)
        assert best_threshold(scores, [np.array(row, object) for row in LABELS]) == best_threshold(SCORES, LABELS)


def test_best_threshold_is_the_best_of_all():
    grid = np.linspace(0, 1.01, 102)
    best = best_threshold(SCORES, LABELS)
    assert first_error_rates(SCORES, LABELS, best)[2] == max(first_error_rates(SCORES, LABELS, t)[2] for t in grid)


def test_best_threshold_needs_no_scores_after_the_first_error():
    assert best_threshold([[0.9, 0.2, None], [0.6, 0.9]], [[1, 0, None], [1, 1]]) == 0.6


def test_first_error_refuses_what_has_no_f1():
    for scores, labels in [
        ([[0.5]], [[1]]),
        ([[0.5]], [[0]]),
        ([[0.5], [0.5]], [[1, 0], [1]]),
        ([], []),
        ([[0.5]], []),
    ]:
        with pytest.raises(WorkbenchError):
            first_error_rates(scores, labels, 0.5)
    with pytest.raises(WorkbenchError, match="-100"):
        first_error_rates([[0.5, 0.5], [0.5]], [[-100, 0], [1]], 0.5)


def test_calibration_by_hand():
    """Bugs: an empty bin counted as 0 accuracy; a score of exactly 1 falls off the last bin."""
    scores, labels = [0.05, 0.1, 0.15, 1.0], [0, 0, 1, 1]
    bins = reliability(scores, labels, bins=10)
    assert [b.count for b in bins] == [1, 2, 0, 0, 0, 0, 0, 0, 0, 1]
    assert bins[2].score is bins[2].rate is None and (bins[1].score, bins[1].rate) == pytest.approx((0.125, 0.5))
    assert ece(scores, labels) == pytest.approx((1 * 0.05 + 2 * 0.375 + 0) / 4)
    with pytest.raises(WorkbenchError, match="0-1"):
        ece([1.2, 0.1], [1, 0])


def test_reliability_agrees_with_sklearn():
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(0)
    scores = rng.random(500)
    labels = (rng.random(500) < scores**2).astype(int)
    rates, means = calibration_curve(labels, scores, n_bins=10)
    bins = [b for b in reliability(scores, labels) if b.count]
    assert ([b.rate for b in bins], [b.score for b in bins]) == (pytest.approx(rates), pytest.approx(means))
