"""Selection: each test names the mistake it pins."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.select import AGGREGATES, aggregate_score, best, majority, weighted
from workbench.types import Step, Trace, WorkbenchError


def chain(answer, *scores, stop="answer"):
    """A trace whose steps carry `scores`, the last one on the closing answer."""
    scores = scores or (0.5,)
    work = tuple(Step(f"step {i}", score=score) for i, score in enumerate(scores[:-1]))
    return Trace((*work, Step(answer, final=True, score=scores[-1])), stop=stop)


def test_the_three_selectors_differ_where_they_should():
    """One strong trace, a crowd, and a scored crowd: mixing up the selectors changes the answer."""
    traces = [chain("1", 0.9), *[chain("2", 0.1)] * 4, *[chain("3", 0.6)] * 2]
    assert (best(traces), majority(traces), weighted(traces)) == ("1", "2", "3")


def test_the_aggregate_asked_for_is_used():
    """Bug: the aggregation asked for is ignored in the vote. Each name elects its own winner here."""
    traces = [chain("last", 0.1, 0.1, 0.9), chain("min", 0.5, 0.5, 0.5), chain("mean", 0.95, 0.48, 0.7)]
    assert [best(traces, name) for name in ("last", "min", "mean")] == ["last", "min", "mean"]
    short, long = chain("short", 0.8), chain("long", 0.9, 0.9, 0.9)
    assert (best([long, short], "prod"), best([long, short], "min")) == ("short", "long")
    assert (weighted([long, short], "prod"), weighted([long, short], "min")) == ("short", "long")


def test_an_unfinished_trace_neither_votes_nor_wins():
    """Bugs: 'length' read as finished; the product favours chains that stop early."""
    unfinished = [
        chain("9", 1.0, stop="length"),
        chain("9", 1.0, stop="cut"),
        Trace((Step("9", score=1.0),)),
        Trace(()),
    ]
    for select in (best, majority, weighted):
        assert select([*unfinished, chain("4", 0.01)]) == "4"
        assert select(unfinished) is None
        assert select([]) is None


def test_an_unknown_score_is_not_zero():
    """Bug: a missing score becomes 0.0, which then beats a negative or an absent one."""
    assert best([chain("1", None), chain("2", 0.0)]) == "2"
    assert weighted([chain("1", None), chain("1", None), chain("2", 0.0)]) == "2"
    assert best([chain("1", None)]) is weighted([chain("1", None)]) is None
    assert majority([chain("1", None)]) == "1"
    assert aggregate_score(chain("1", None, 0.5), "min") is None
    assert aggregate_score(chain("1", None, 0.5), "last") == 0.5, "an outcome verifier scores the last step alone"


def test_answers_are_equal_by_value():
    """Bug: answers compared as text where they are equal in value."""
    traces = [chain("3", 0.8), chain("2", 0.5), chain("2.0", 0.5), chain(" 4/2 ", 0.5)]
    assert majority(traces) == weighted(traces) == "2"
    assert majority([chain("X"), chain("y"), chain("x")], key=str.lower) == "X"


@pytest.mark.parametrize("select", [best, majority, weighted])
def test_a_tie_goes_to_the_first_sampled(select):
    """Bug: ties broken by hash order or by the text, so the same run gives another answer."""
    assert select([chain("9", 0.5), chain("1", 0.5)]) == "9"
    assert select([chain("1", 0.5), chain("9", 0.5)]) == "1"
    assert select([chain("1", 0.9, stop="cut"), chain("9", 0.5), chain("1", 0.5)]) == "9", "the cut one came first"


def test_an_unknown_aggregate_and_a_nan_are_refused():
    with pytest.raises(WorkbenchError, match="'max'.*last, min, prod, mean"):
        best([chain("1")], "max")
    with pytest.raises(WorkbenchError, match="NaN"):
        weighted([chain("1", float("nan")), chain("2", 0.1)])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("123"), st.integers(1, 9)), min_size=1), st.randoms())
def test_order_matters_for_ties_only(pairs, rng: random.Random):
    """Against a slow specification: the elected value has the greatest total, whatever the order."""
    traces = [chain(answer, score / 8) for answer, score in pairs]  # eighths add without rounding
    total = {a: sum(s for b, s in pairs if b == a) for a, _ in pairs}
    count = {a: sum(b == a for b, _ in pairs) for a, _ in pairs}
    rng.shuffle(traces)
    assert total[weighted(traces)] == max(total.values())
    assert count[majority(traces)] == max(count.values())
    assert dict(pairs).keys() >= {best(traces)} and max(s for a, s in pairs if a == best(traces)) == max(
        s for _, s in pairs
    )
    assert set(AGGREGATES) == {"last", "min", "prod", "mean"}
