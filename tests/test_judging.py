"""Judging a verifier: against scikit-learn, released data, slow specifications and sums done by hand."""

import ast
import itertools
import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score

from workbench import judging, scaling, select, stepdata
from workbench.grading import canonical
from workbench.judging import LENGTH, NO_ERROR, POLICY, Response, best_of_n, policy_scores, report
from workbench.types import Labelled, Problem, Step, Trace, WorkbenchError

RELEASED = Path(__file__).parents[2] / "shared" / "data" / "rm-scored" / "math_cot_100.jsonl"


def chain(problem, labels, texts=None):
    """A chain of steps that say `texts`, by default things that no other chain says."""
    texts = texts or [f"{problem} {next(COUNTER)}" for _ in labels]
    steps = tuple(Step(text, final=i == len(texts) - 1) for i, text in enumerate(texts))
    return Labelled(Problem(problem, "arithmetic", "?", "5"), Trace(steps), tuple(labels))


COUNTER = itertools.count()
TUNING = [chain("tuning/1", (1, 0)), chain("tuning/2", (1, 1))], [(0.9, 0.2), (0.8, 0.5)]  # threshold .5


def made(tag, problems, chains=3, seed=0, bias=0.0):
    """Chains with labels up to the first error, and scores that know something, as lists of (items, scores)."""
    rng = random.Random(f"{tag}{seed}")
    items, scores = [], []
    for p in range(problems):
        for _ in range(chains):
            length = rng.randint(2, 6)
            error = rng.randrange(2 * length)
            labels = [None if t > error else float(t < error) for t in range(length)]
            texts = [f"{next(COUNTER)} " + "x" * rng.randint(1, 30 + 30 * (t >= error)) for t in range(length)]
            items.append(chain(f"{tag}/{p}", labels, texts))
            logits = [rng.gauss(1.5 if t < error else -0.5, 1.2) + bias * t for t in range(length)]
            scores.append(tuple(1 / (1 + math.exp(-x)) for x in logits))
    return items, scores


def flat(items, scores):
    """(scores, labels, problems) of the labelled steps; right where no two chains share a step."""
    rows = [
        (s, label, item.problem.id)
        for item, row in zip(items, scores, strict=True)
        for s, label in zip(row, item.labels, strict=True)
        if None not in (s, label)
    ]
    return tuple(zip(*rows, strict=True))


@pytest.fixture(scope="module")
def found():
    """(items, scores, tuning items, tuning scores, their report)"""
    data = *made("test", 40), *made("tune", 40)
    return *data, report(*data)


# Steps


def test_auc_brier_and_bias_are_those_of_others(found):
    items, scores, *_, out = found
    score, label, _ = flat(items, scores)
    assert out.verifier.auc.value == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert out.verifier.brier.value == pytest.approx(brier_score_loss(label, score), abs=1e-12)
    assert out.verifier.bias.value == pytest.approx(np.mean(score) - np.mean(label), abs=1e-12)
    assert out.verifier.ece == pytest.approx(scaling.ece(score, label)) and out.verifier.steps == len(score)
    assert [b.count for b in out.bins] == [b.count for b in scaling.reliability(score, label)]


@pytest.mark.parametrize("groups", [1000, 50])
def test_the_interval_of_an_auc_resamples_problems(found, groups, monkeypatch):
    """Bugs: steps resampled as if each stood alone; scores rounded to ranks that tell too little."""
    monkeypatch.setattr(judging, "GROUPS", groups)
    items, scores, *tuning, _ = found
    score, label, problem = map(np.array, flat(items, scores))
    names = list(dict.fromkeys(item.problem.id for item in items))
    owner = np.array([names.index(p) for p in problem])
    wins = score[label == 1][:, None] > score[label == 0]  # pair by pair; these scores have no ties
    rng, draws = np.random.default_rng(5), []
    for _ in range(4000):
        weights = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))[owner]
        right, wrong = weights[label == 1], weights[label == 0]
        draws.append(right @ wins @ wrong / (right.sum() * wrong.sum()))
    low, high = np.quantile(draws, [0.025, 0.975])
    auc = report(items, scores, *tuning).verifier.auc
    assert (auc.low, auc.high) == pytest.approx((low, high), abs=0.12 * (high - low)) and auc.n == 40
    assert auc.low < auc.value < auc.high


@pytest.mark.parametrize("digits", [9, 1])
def test_an_auc_of_weighted_problems_is_that_of_weighted_steps(digits):
    """Bug: ties, of which one digit makes many, counted for one side."""
    items, scores = made("test", 20)
    scores = [tuple(round(x, digits) for x in row) for row in scores]
    steps = judging._Steps(items, {"it": scores}, 0.5)
    statistic, n, value = judging._auc(steps, "it", steps.labelled("it"))
    score, label, problem = flat(items, scores)
    weights = np.random.default_rng(0).integers(0, 4, (20, 5))
    for j, found in enumerate(statistic(weights.astype(float))[0]):
        mine = [weights[list(steps.problems).index(p), j] for p in problem]
        assert found == pytest.approx(roc_auc_score(label, score, sample_weight=mine))
    assert (n, value) == (20, pytest.approx(roc_auc_score(label, score)))


def test_an_interval_stands_around_its_value_however_coarse_the_ranks(found, monkeypatch):
    """Bug: the resamples of rounded scores have a lower mean than the exact value, and the interval goes with them."""
    monkeypatch.setattr(judging, "GROUPS", 4)
    items, scores, *tuning, _ = found
    auc = report(items, scores, *tuning).verifier.auc
    assert (auc.low + auc.high) / 2 == pytest.approx(auc.value, abs=0.1 * (auc.high - auc.low))


def test_problems_are_the_unit_of_evidence():
    """Bug: chains of one problem that say the same in other words narrow the interval."""
    items, scores = made("a", 30, chains=1)
    again = [chain(item.problem.id, item.labels) for item in items]
    once, thrice = (report(items + again * k, scores + scores * k, *TUNING).verifier for k in (0, 1))
    assert thrice.steps == 2 * once.steps and thrice.auc.value == pytest.approx(once.auc.value)
    assert (thrice.auc.low, thrice.auc.high) == pytest.approx((once.auc.low, once.auc.high))
    assert (thrice.f1.low, thrice.f1.high) == pytest.approx((once.f1.low, once.f1.high))


def test_a_shared_step_counts_once():
    """By hand. Bugs: the common beginning of ten chains counted ten times; equal text after other steps merged."""
    items = [
        chain("p", (None, 1), ["a", "d"]),
        chain("p", (1, 0), ["a", "b"]),
        chain("p", (1, 1), ["a", "c"]),
        chain("p", (0, 0), ["z", "c"]),  # the c behind z is another step
        chain("q", (0, None), ["a", "b"]),  # and so is another problem's a
    ]
    scores = [(None, 0.8), (0.7, 0.5), (0.2, 0.9), (0.3, 0.95), (0.6, 0.1)]
    out = report(items, scores, *TUNING)
    #        right: a .7, c .9, d .8   wrong: b .5, z .3, c .95, a .6
    assert out.verifier.auc.value == pytest.approx((3 * 3 + 0) / 12)
    counted = ("steps", "right", "wrong", "unlabelled", "repeated", "contradicted", "unscored")
    assert [out.counts[key] for key in counted] == [7, 3, 4, 1, 2, 0, 0]
    items[2] = chain("p", (0, 1), ["a", "c"])
    assert report(items, scores, *TUNING).counts["contradicted"] == 1


def test_an_unknown_score_is_counted_and_never_0():
    """Bug: a step that the verifier refused is read as wrong."""
    items = [chain("p", (1, 1, 0)), chain("q", (1, 1)), chain("r", (0, None)), chain("s", (None, 1)), chain("t", (1,))]
    scores = [(0.9, 0.8, 0.1), (0.9, None), (0.3, None), (0.9, 0.9), (0.9,)]
    out = report(items, scores, *TUNING)
    assert out.verifier.auc.value == 1 and out.verifier.steps == 7 and out.counts["unscored"] == 1
    assert out.verifier.chains == 3, "q is refused before it ends, s has an unlabelled step; r is told by its first"
    assert (out.counts["unknown"], out.counts["erroneous"], out.counts["correct"]) == (1, 2, 2)
    assert out.verifier.brier.value == pytest.approx((0.1**2 * 3 + 0.2**2 + 0.1**2 + 0.3**2 + 0.1**2) / 7)
    assert "1 of them not scored" in judging.as_text(out)
    nothing = report(items, [[None] * len(row) for row in scores], *TUNING)
    assert nothing.verifier.auc is nothing.verifier.brier is nothing.verifier.ece is None and nothing.depths == ()
    assert [d.count for d in nothing.relative] == [0] * 5 and nothing.counts["unscored"] == 8


def test_soft_labels_are_read_through_the_cut():
    items, scores = [chain("p", (0.75, 0.25)), chain("q", (0.5, 0.0))], [(0.9, 0.6), (0.5, 0.1)]
    assert report(items, scores, *TUNING).verifier.auc.value == 0.75
    assert report(items, scores, *TUNING, cut=0.0).counts["right"] == 3
    assert report(items, scores, *TUNING, cut=0.6).counts["right"] == 1


# First errors


def test_first_error_f1_is_processbench(found):
    """Both of its numbers, at a threshold from the tuning set, with the interval of `scaling`."""
    items, scores, tuning, tuned, out = found
    cut = [[[row[t] for t in range(len(row)) if i.labels[t] is not None] for i, row in zip(*pair, strict=True)]
           for pair in ((items, scores), (tuning, tuned))]  # fmt: skip
    marks = [[[x for x in i.labels if x is not None] for i in side] for side in (items, tuning)]
    threshold = scaling.best_threshold(cut[1], marks[1])
    located, passed, f1 = scaling.first_error_rates(cut[0], marks[0], threshold)
    v = out.verifier
    assert (v.threshold, v.located.value, v.passed.value, v.f1.value) == pytest.approx((threshold, located, passed, f1))
    assert f1 == pytest.approx(2 * located * passed / (located + passed)) and 0 < f1 < 1
    other = scaling.first_error_f1(cut[0], marks[0], threshold, problems=[i.problem.id for i in items])
    assert (v.f1.low, v.f1.high) == pytest.approx((other.low, other.high), abs=0.1 * (other.high - other.low))
    assert v.chains == len(items) and v.f1.n == other.n == 40


def test_first_error_by_hand():
    """Bug: an alarm at the wrong step counted as found. Threshold .5 (the smallest of equals on TUNING)."""
    items = [chain("p", (1, 0)), chain("q", (1, 1, 0)), chain("r", (1, 1)), chain("s", (1,))]
    out = report(items, [(0.9, 0.4), (0.4, 0.9, 0.1), (0.5, 0.6), (0.2,)], *TUNING).verifier
    assert (out.threshold, out.located.value, out.passed.value, out.f1.value) == (0.5, 0.5, 0.5, 0.5)


def test_a_wrong_answer_shares_its_error_with_an_unlabelled_step_before_it(tmp_path):
    """Bug: every chain whose first error is its closing step was left out of F1, for the step before it has no label,
    and so were the judges' misses there. Not taken for right: an unlabelled step in any other place."""
    given = [{"text": "So 1+1=2.", "rating": 1}], [{"text": "So it is 5.\n# Answer 5", "rating": -1}]
    steps = [{"completions": some, "chosen_completion": 0} for some in given]
    row = {"labeler": "x", "question": {"problem": "?"}, "label": {"finish_reason": "found_error", "steps": steps}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (closing,) = stepdata.Rows(tmp_path / "rows.jsonl")
    assert closing.labels == (1.0, None, 0.0) and closing.trace.steps[-1].final
    items = [closing, chain("q", (1, 1)), chain("r", (1, None, 1, 0)), chain("s", (1, None, 1))]
    for row, located in [((0.9, 0.1, 0.9), 1), ((0.9, 0.9, 0.1), 1), ((0.9, 0.9, 0.9), 0), ((0.1, 0.1, 0.1), 0)]:
        out = report(items, [row, (0.9, 0.9), (0.9,) * 4, (0.9,) * 3], *TUNING)
        assert [out.counts[k] for k in ("erroneous", "correct", "unknown", "unlabelled")] == [1, 1, 2, 3]
        assert (out.verifier.chains, out.verifier.located.value, out.verifier.passed.value) == (2, located, 1)
    assert "1 with an error, 1 without, 2 unknown, which F1 cannot use" in judging.as_text(out)
    tuning = [chain("tuning/1", (1, None, 0)), chain("tuning/2", (1, 1))]  # thresholds, too, come from such chains
    out = report(items, [(0.9,) * len(item.labels) for item in items], tuning, [(0.9, 0.2, 0.8), (0.9, 0.7)])
    assert out.verifier.threshold == 0.7


def test_tuning_and_test_share_no_problem():
    """Bug: the threshold is fixed on what it then judges."""
    with pytest.raises(WorkbenchError, match=r"1 problems .*\(tuning/2\)"):
        report([chain("p", (1,)), chain("tuning/2", (1,))], [(0.5,), (0.5,)], *TUNING)


def test_a_question_has_one_name_in_all_formats():
    """Bug: ids were compared, and these begin with the format's name, so the same question could be on both sides."""
    given = [chain("processbench/1", (1, 0)), chain("processbench/2", (1, 1))]
    items, tuning = (
        [c._replace(problem=Problem(f"{form}/{i}", form, words.format(i + 2), None)) for i, c in enumerate(given)]
        for form, words in (("prm800k", "What is ${}+1$?"), ("processbench", "what is {} + 1"))
    )
    with pytest.raises(WorkbenchError, match="2 problems are in the tuning set and in the test set .prm800k/0."):
        report(items, [(0.9, 0.2)] * 2, tuning, [(0.9, 0.2)] * 2)
    other = [c._replace(problem=replace(c.problem, prompt=c.problem.prompt + "+1")) for c in tuning]
    assert report(items, [(0.9, 0.2)] * 2, other, [(0.9, 0.2)] * 2).verifier.f1 is not None


# Depth


def test_depth_by_hand():
    items = [chain("p", (1, 0)), chain("q", (1, 1, 1, 1, 0, None)), chain("r", (0,))]
    scores = [(0.8, 0.6), (0.6, 0.6, 0.6, None, 0.5, 0.1), (0.1,)]
    out = report(items, scores, *TUNING)
    rows = [(d.depth, d.count, d.score.value, d.label.value, d.gap.value) for d in out.depths]
    assert np.array(rows) == pytest.approx(
        np.array([(1, 3, 0.5, 2 / 3, -1 / 6), (2, 2, 0.6, 0.5, 0.1), (3, 1, 0.6, 1, -0.4), (5, 1, 0.5, 0, 0.5)])
    )
    assert [d.score.n for d in out.depths] == [3, 2, 1, 1]
    assert [(d.depth, d.count) for d in out.relative] == [(0.2, 1), (0.4, 1), (0.6, 2), (0.8, 0), (1.0, 3)]
    assert out.relative[3].score is None and out.relative[3].gap is None


def test_a_shared_step_lies_in_its_longest_chain():
    """Bug: a rejected candidate makes the common beginning of a solution look like its end."""
    items = [chain("p", (1, 0), ["a", "b"]), chain("p", (1, 1, 1, 1, 1), ["a", "c", "d", "e", "f"])]
    out = report(items, [(0.9, 0.1), (0.9,) * 5], *TUNING)
    assert [d.count for d in out.relative] == [1, 1, 1, 1, 2]


def test_a_text_ends_where_the_depths_go_on():
    items = [chain("p", (1,) * 20 + (0,)), chain("q", (1,))]
    text = judging.as_text(report(items, [(0.5,) * 21, (0.5,)], *TUNING))
    assert "\n12 " in text and "\n13 " not in text and "and 9 steps in 9 deeper rows" in text


def test_depth_bias_is_seen():
    """A verifier that grows sure with depth, on steps that do not: the gap must rise, clearly."""
    items, scores = made("test", 60, bias=0.8)
    depths = report(items, scores, *TUNING).depths
    assert depths[0].gap.high < depths[3].gap.low
    flat_one = report(items, made("test", 60)[1], *TUNING).depths
    assert flat_one[3].gap.value < depths[3].gap.low


# Baselines


def test_three_baselines_always_stand_beside_it(found):
    *_, out = found
    assert [b.name for b in out.baselines] == [NO_ERROR, LENGTH, POLICY]
    blind, length, policy = out.baselines
    assert (blind.auc.value, blind.auc.low, blind.f1.value, blind.passed.value) == (0.5, None, 0, 1)
    assert blind.auc_lead.value == pytest.approx(out.verifier.auc.value - 0.5)
    assert blind.auc_lead.low == pytest.approx(out.verifier.auc.low - 0.5)
    assert blind.f1_lead.value == out.verifier.f1.value and blind.f1_lead.low == pytest.approx(out.verifier.f1.low)
    assert policy.auc is policy.auc_lead is policy.f1 is None and policy.notes == ("absent: not given",)
    assert "policy log-prob: absent: not given" in judging.as_text(out)
    assert out.verifier.auc_lead is None and length.auc_lead.low > 0


def test_length_is_a_logistic_regression_fixed_on_the_tuning_set(found):
    """Against scikit-learn. Wrong steps are longer here: a baseline that takes long for right would fail."""
    items, scores, tuning, _, out = found

    def features(side):
        steps = [
            (t + 1, math.log1p(len(step.text)), label)
            for item in side
            for t, (step, label) in enumerate(zip(item.trace.steps, item.labels, strict=True))
            if label is not None
        ]
        return np.array(steps)[:, :2], np.array(steps)[:, 2]

    x, y = features(tuning)
    model = LogisticRegression(C=1e6, tol=1e-9).fit((x - x.mean(0)) / x.std(0), y)
    test, label = features(items)
    guess = model.predict_proba((test - x.mean(0)) / x.std(0))[:, 1]
    assert out.baselines[1].auc.value == pytest.approx(roc_auc_score(label, guess), abs=2e-3)
    assert out.baselines[1].auc.value > 0.6
    assert out.baselines[1].brier.value == pytest.approx(brier_score_loss(label, guess), abs=1e-4)


def test_a_lead_is_paired_on_what_both_scored():
    """Bugs: two separate error bars; a difference of means over different steps."""
    items, scores = made("test", 30)
    tuning, tuned = made("tune", 10)
    mine = [tuple(max(x - 0.01, 0) if i % 2 else None for x in row) for i, row in enumerate(scores)]
    out = report(items, scores, tuning, tuned, {"twin": (mine, tuned), POLICY: (scores, tuned)})
    policy, twin = out.baselines[2:]
    assert (policy.name, twin.name) == (POLICY, "twin")
    assert (policy.auc_lead.value, policy.auc_lead.low, policy.f1_lead.value) == (0, None, 0)
    half = [(item, row) for item, row, own in zip(items, scores, mine, strict=True) if own[0] is not None]
    score, label, _ = flat(*zip(*half, strict=True))
    assert twin.auc_lead.value == pytest.approx(0, abs=1e-12) and twin.steps == len(score)
    assert twin.auc.value == pytest.approx(roc_auc_score(label, score)) != out.verifier.auc.value
    assert twin.chains == len(half)
    back = report(items, mine, tuning, tuned, {"all": (scores, tuned)})  # now it is the verifier that refuses some
    assert (
        back.baselines[3].f1_lead.value == pytest.approx(-twin.f1_lead.value) and back.baselines[3].steps > twin.steps
    )
    separate = out.verifier.f1.high - out.verifier.f1.low
    assert twin.f1_lead.low is None or twin.f1_lead.high - twin.f1_lead.low < 0.5 * separate


def test_scores_that_are_no_probabilities_have_no_calibration():
    items, scores = made("test", 10)
    logs = [tuple(math.log(x) - 1 for x in row) for row in scores]
    out = report(items, scores, *TUNING, {POLICY: (logs, [(-0.1, -2.0), (-0.1, -0.3)])})
    policy = out.baselines[2]
    assert policy.brier is policy.ece is None and "no probabilities" in policy.notes[0]
    assert policy.auc.value == pytest.approx(out.verifier.auc.value) and policy.threshold == -0.3


def test_policy_scores_are_means_over_tokens():
    """Bug: a sum, which is length once more."""
    steps = (Step("a", logprobs=(math.log(0.5),) * 4), Step("b", logprobs=(math.log(0.5),)), Step("c"))
    (row,) = policy_scores([Labelled(Problem("p", "t", "?", "5"), Trace(steps), (1, 1, 1))])
    assert row == (pytest.approx(0.5), pytest.approx(0.5), None)


# What cannot be defined


def test_one_kind_of_step_leaves_an_auc_undefined():
    """Bug: 0, .5 or NaN where there is nothing to tell apart."""
    items, scores = [chain("p", (1, 1)), chain("q", (1, None))], [(0.9, 0.4), (0.7, 0.1)]
    out = report(items, scores, *TUNING)
    assert out.verifier.auc is None and out.verifier.f1 is None and out.verifier.brier is not None
    assert out.verifier.notes == (
        "step AUC is undefined: all 3 steps are right",
        "first-error F1 is undefined: all 1 chains are right",
    )
    assert all(b.auc is None and b.auc_lead is None and b.f1_lead is None for b in out.baselines)
    text = judging.as_text(out)
    assert "undefined" in text and "nan" not in text.lower()
    assert json.loads(judging.to_json(out))["verifier"]["auc"] is None


def test_a_tuning_set_of_one_kind_fixes_nothing():
    items, scores = [chain("p", (1, 0)), chain("q", (1, 1))], [(0.9, 0.4), (0.7, 0.8)]
    out = report(items, scores, [chain("t", (1, 1))], [(0.9, 0.9)])
    assert out.verifier.auc.value == 1 and out.verifier.f1 is out.verifier.threshold is None
    assert out.verifier.notes == (
        "first-error F1 is undefined without a threshold: of the tuning set all 1 chains are right",
    )
    assert out.baselines[1].name == LENGTH and out.baselines[1].auc is None and "absent" in out.baselines[1].notes[0]


def test_one_problem_has_values_and_no_interval():
    items, scores = [chain("p", (1, 0)), chain("p", (1, 1))], [(0.9, 0.4), (0.3, 0.8)]
    v = report(items, scores, *TUNING).verifier
    assert (v.auc.value, v.auc.low, v.auc.high, v.auc.n) == (pytest.approx(2 / 3), None, None, 1)
    assert v.f1.low is v.brier.low is None and v.f1.value == 0


def test_chains_without_steps_are_unknown():
    out = report([chain("p", ()), chain("q", (1, 0))], [(), (0.9, 0.4)], *TUNING)
    assert out.counts["unknown"] == 1 and out.counts["chains"] == 2 and out.verifier.chains == 1
    assert report([chain("p", ())], [()], *TUNING).verifier.auc is None


@pytest.mark.parametrize(
    "items, scores, message",
    [
        ([chain("p", (1, 0))], [(0.5,)], "p: 1 scores of verifier for a chain of 2 steps"),
        ([chain("p", (1, 0), ["a", "b"])._replace(labels=(1,))], [(0.5, 0.5)], "p: 1 labels for a chain of 2"),
        ([chain("p", (1, -100))], [(0.5, 0.5)], "p: a label of -100 at step 2"),
        ([chain("p", (1, 0))], [(0.5, math.nan)], "p: verifier scores step 2 with nan"),
        ([chain("p", (1, 0))], [], "verifier: scores of 0 chains for 1"),
        ([], [], "no labelled chains"),
    ],
)
def test_bad_input_is_named(items, scores, message):
    """Bugs: counts that differ are cut to the shorter; −100 is read as a label; a NaN travels into a mean."""
    with pytest.raises(WorkbenchError, match=message):
        report(items, scores, *TUNING)


@pytest.mark.parametrize("name", [NO_ERROR, LENGTH, "verifier"])
def test_a_name_has_one_scorer(name):
    with pytest.raises(WorkbenchError, match="another scorer"):
        report([chain("p", (1, 0))], [(0.5, 0.5)], *TUNING, {name: ([(0.5, 0.5)], TUNING[1])})


# Choice among N


def released():
    with open(RELEASED) as file:
        for row in map(json.loads, file):
            texts = zip(row["pred"], row["score"], row["pred_score"], strict=True)
            yield str(row["idx"]), [Response(canonical(text), right, score) for text, right, (score,) in texts]


@pytest.mark.skipif(not RELEASED.exists(), reason="no shared data")
def test_released_numbers_are_reproduced():
    """100 MATH problems, 8 Qwen responses each, one reward model."""
    choice = best_of_n(dict(released()))
    row = choice.rows[-1]
    assert (choice.problems, choice.responses, row.n) == (100, 800, 8)
    assert choice.rows[0].ceiling.value == pytest.approx(0.910)  # pass@1
    assert row.majority.value == pytest.approx(0.930)
    assert row.best_of_n.value == pytest.approx(0.940)
    assert row.ceiling.value == pytest.approx(0.960)  # pass@8
    assert row.gap.value == pytest.approx(0.02) and row.gap.high > 0 and row.ceiling.low < 0.96 < row.ceiling.high


def some_responses(seed, size=6):
    """Answers among three, scores with ties and gaps, an unfinished one now and then; answer 0 is right."""
    rng = random.Random(seed)
    rows = []
    for _ in range(size):
        answer = rng.choice([0, 1, 2, None])
        rows.append(Response(answer, answer == 0, rng.choice([None, 0.25, 0.5, 0.5, 1.0, -0.5])))
    return rows


@pytest.mark.parametrize("seed", range(8))
def test_choices_of_n_are_those_of_select_on_every_subset(seed):
    """The slow specification: `select` on each subset. Bugs: ties, abstentions and unknown scores decided otherwise."""
    rows = some_responses(seed)

    def trace(row):
        final = row.answer is not None
        return Trace((Step(str(row.answer), final=final, score=row.score),), "answer" if final else "length")

    for n in (1, 2, 4, 6):
        subsets = [[rows[i] for i in picks] for picks in itertools.combinations(range(6), n)]
        found = best_of_n({"p": rows}, [n]).rows[0]
        for method, mine in (("majority", found.majority), ("weighted", found.weighted_vote)):
            right = [getattr(select, method)([trace(r) for r in some], key=str) == "0" for some in subsets]
            assert mine.value == pytest.approx(sum(right) / len(subsets)), (method, n)
        right = 0
        for some in subsets:
            able = [r for r in some if r.answer is not None and r.score is not None]
            top = max(able, key=lambda r: r.score, default=None)
            right += top is not None and top.correct
            if len({r.answer for r in able if r.score == top.score}) == 1:  # no tie, so `select.best` says the same
                assert select.best([trace(r) for r in some], key=str) == str(top.answer)
        assert found.best_of_n.value == pytest.approx(right / len(subsets)), n
        assert found.ceiling.value == pytest.approx(
            sum(any(r.correct for r in some) for some in subsets) / len(subsets)
        )
        able = [[r.score for r in some if r.answer is not None and r.score is not None] for some in subsets]
        tops = [max(scores) for scores in able if scores]
        assert (found.reward and found.reward.value) == (pytest.approx(sum(tops) / len(tops)) if tops else None)


def test_votes_on_drawn_subsets_are_close_to_exact(monkeypatch):
    rows = {f"p/{i}": some_responses(i, size=10) for i in range(30)}
    monkeypatch.setattr(judging, "SUBSETS", 1000)
    exact = best_of_n(rows, [5]).rows[0]
    monkeypatch.setattr(judging, "SUBSETS", 200)  # fewer than the 252 there are
    drawn, again = best_of_n(rows, [5]).rows[0], best_of_n(rows, [5]).rows[0]
    assert drawn == again and drawn.majority.value != exact.majority.value
    assert drawn.majority.value == pytest.approx(exact.majority.value, abs=0.02)
    assert drawn.weighted_vote.value == pytest.approx(exact.weighted_vote.value, abs=0.02)
    assert drawn.best_of_n == exact.best_of_n


def test_over_optimisation_is_seen():
    """A reward that likes a rare wrong answer best: its mean rises with N while accuracy falls, clearly."""
    rng, rows = random.Random(0), {}
    for p in range(80):
        flags = [rng.random() < 0.6 for _ in range(32)]
        rows[f"p/{p}"] = [
            Response(int(not right), right, 0.5 + right * rng.random() if right or rng.random() < 0.9 else 3.0)
            for right in flags
        ]
    found = best_of_n(rows).rows
    assert [row.n for row in found] == [1, 2, 4, 8, 16, 32]
    assert all(a.reward.value < b.reward.value for a, b in itertools.pairwise(found))
    steps = [b.best_of_n.value - a.best_of_n.value for a, b in itertools.pairwise(found)]
    assert [row.change.value for row in found[1:]] == pytest.approx(steps)
    assert found[1].change.low > 0 and found[-1].change.high < 0 and found[0].change is None
    assert found[-1].gap.value == pytest.approx(found[-1].ceiling.value - found[-1].best_of_n.value)
    assert found[-1].over_majority.high < 0


def test_responses_without_scores_abstain_and_are_counted():
    """Bug: an unknown score read as 0, which beats a negative one."""
    rows = {"p": [Response(5, True, None), Response(6, False, -1.0)], "q": [Response(None, False, 0.5)] * 2}
    found = best_of_n(rows)
    assert found.rows[1].best_of_n.value == 0 and found.rows[1].majority.value == 0.5  # a tie: 5 was sampled first
    assert (found.unscored, found.unfinished, found.responses) == (1, 2, 4)
    blind = best_of_n({"p": [Response(5, True, None)]})
    assert blind.rows[0].reward is None and blind.rows[0].best_of_n.value == 0 and blind.rows[0].ceiling.value == 1


@pytest.mark.parametrize(
    "responses, ns, message",
    [
        ({"p": [Response(5, True, 1.0)] * 3, "q": [Response(5, True, 1.0)]}, [2], r"n=\[2\] .* 1 .*\(q"),
        ({"p": [Response(None, True, 1.0)]}, None, "p: .* right without an answer"),
        ({"p": [Response(5, None, 1.0)]}, None, "p: .* not graded"),
        ({"p": [Response(5, True, math.inf)]}, None, "p: a score of inf"),
        ({"p": []}, None, "a response to each"),
        ({}, None, "one problem or more"),
    ],
)
def test_bad_responses_are_named(responses, ns, message):
    with pytest.raises(WorkbenchError, match=message):
        best_of_n(responses, ns)


# The whole report


def test_text_and_json_say_what_was_found(found):
    items, scores, tuning, tuned, _ = found
    responses = {f"p/{i}": some_responses(i) for i in range(9)}
    out = report(items, scores, tuning, tuned, {POLICY: (scores, tuned)}, responses)
    text = judging.as_text(out)
    table = text.split("\n\n")[1].split("\n")
    starts = [table[0].index(word) for word in ("step AUC", "lead", "first-error F1", "located", "passed", "threshold")]
    assert all(row[start - 1] == " " for row in table[1:] for start in starts if len(row) > start), "aligned columns"
    v = out.verifier
    assert f"{v.auc.value:.3f} [{v.auc.low:.3f}, {v.auc.high:.3f}]" in table[1]
    assert all(name in text for name in (NO_ERROR, LENGTH, POLICY)) and "9 problems, 54 responses" in text
    back = json.loads(judging.to_json(out))
    assert back["verifier"]["auc"]["low"] == v.auc.low and back["choice"]["rows"][0]["change"] is None
    assert back["counts"]["steps"] == v.steps and len(back["bins"]) == 10 and back["cut"] == 0.5


def test_order_and_seed_decide_nothing_they_should_not(found):
    items, scores, tuning, tuned, out = found
    assert report(items, scores, tuning, tuned) == out
    other = report(items, scores, tuning, tuned, seed=1)
    assert other.verifier.auc.value == out.verifier.auc.value and other.verifier.auc.low != out.verifier.auc.low


# The house


def borrowed(text: str) -> list[str]:
    """What a module takes of another one though its name says that it is that one's own."""
    tree, found = ast.parse(text), []
    taken = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    names = {alias.asname or alias.name for node in taken for alias in node.names}
    for node in taken:
        found += [alias.name for alias in node.names if alias.name.startswith("_")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            if isinstance(node.value, ast.Name) and node.value.id in names and node.value.id.islower():
                found.append(f"{node.value.id}.{node.attr}")
    return found


def test_no_module_takes_what_is_another_ones_own():
    """Bug: a function that its file may change at any time is used elsewhere."""
    for path in sorted(Path(judging.__file__).parent.rglob("*.py")):
        assert borrowed(path.read_text()) == [], path
    assert borrowed("from .scaling import Bin, _f1\nfrom . import plots\nplots._draw()") == ["_f1", "plots._draw"]
