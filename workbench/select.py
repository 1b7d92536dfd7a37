"""Traces in, one answer out: best, majority and weighted vote, all called as `select(traces)`.

Three rules hold for all of them. A trace without an answer (cut, or out of tokens) neither votes nor wins. Answers
are grouped by value through `key`, so "2.0" and "2" are one candidate. Ties go to the answer sampled first, and the
text returned is the first one sampled for that value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

from .grading import canonical
from .types import Trace, WorkbenchError

Key = Callable[[str], Hashable]

AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda scores: scores[-1],
    "min": min,
    "prod": math.prod,
    "mean": lambda scores: math.fsum(scores) / len(scores),
}


def aggregate_score(trace: Trace, aggregate: str = "last") -> float | None:
    """The one score of a chain, from its step scores; None when a score it needs is unknown.

    `last` suits value-like verifiers (Snell et al. 2024) and reads the last step alone, so an outcome verifier that
    scores nothing else works too; `prod` (Lightman et al. 2023) and `min` (Math-Shepherd) suit step correctness and
    favour short chains. Errors: an aggregate that is not in AGGREGATES, a score of NaN. Left out: learnt aggregates.

    >>> from workbench.types import Step
    >>> chain = Trace((Step("2+3=5", score=0.9), Step("5", final=True, score=0.5)))
    >>> [aggregate_score(chain, name) for name in AGGREGATES]
    [0.5, 0.5, 0.45, 0.7]
    """
    return aggregated(trace.scores, aggregate)


def aggregated(scores: Sequence[float | None], aggregate: str) -> float | None:
    """The same, from the scores alone."""
    if aggregate not in AGGREGATES:
        raise WorkbenchError(f"unknown aggregate {aggregate!r}: choose one of {', '.join(AGGREGATES)}")
    needed = scores[-1:] if aggregate == "last" else scores
    if not needed or None in needed:
        return None
    if any(math.isnan(score) for score in needed):
        raise WorkbenchError("a step score is NaN: mend the verifier, or write None for an unknown score")
    return AGGREGATES[aggregate](needed)


def best(traces: Sequence[Trace], aggregate: str = "last", *, key: Key = canonical) -> str | None:
    """Best-of-N: the answer of the highest-scoring finished trace.

    Traces whose aggregate is unknown are left out, never read as 0; when all are, the result is None (abstain).

    >>> from workbench.types import Step
    >>> chains = [Trace((Step(text, final=True, score=s),)) for text, s in [("7", 0.6), ("8", 0.9), ("7", 0.7)]]
    >>> best(chains), majority(chains), weighted(chains)
    ('8', '7', '7')
    """
    return _elect(traces, lambda trace: aggregate_score(trace, aggregate), max, key)


def majority(traces: Sequence[Trace], *, key: Key = canonical) -> str | None:
    """Self-consistency (Wang et al. 2022): the answer that most finished traces give; scores are not read.

    None when no trace finished. See `best` for an example.
    """
    return _elect(traces, lambda trace: 1.0, math.fsum, key)


def weighted(traces: Sequence[Trace], aggregate: str = "last", *, key: Key = canonical) -> str | None:
    """Best-of-N weighted (Snell et al. 2024, after Li et al. 2023): sum the scores of equal answers, take the largest.

    Traces whose aggregate is unknown are left out, never read as 0; when all are, the result is None (abstain).
    See `best` for an example.
    """
    return _elect(traces, lambda trace: aggregate_score(trace, aggregate), math.fsum, key)


def _elect(traces: Sequence[Trace], weigh: Callable, combine: Callable, key: Key) -> str | None:
    groups: dict[Hashable, tuple[str, list[float]]] = {}
    for trace in traces:
        if trace.answer is not None and (weight := weigh(trace)) is not None:
            groups.setdefault(key(trace.answer), (trace.answer, []))[1].append(weight)
    # dicts keep the order of insertion and max keeps the first of equals: ties go to the answer sampled first
    return max(groups.values(), key=lambda group: combine(group[1]))[0] if groups else None
