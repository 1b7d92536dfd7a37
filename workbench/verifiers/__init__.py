"""Verifiers: one file = one verifier behind one protocol.

    score(items)   -> for every (problem, trace), one score in 0-1 a step (the closing answer is a step too)
    flops(prefix, new, head)  -> FLOPs of `new` tokens behind `prefix` tokens: judged (`head`), or only read
    aggregate      -> the aggregation over steps that suits its scores (see `select.AGGREGATES`)
    read           -> optional: how many tokens of each item the last call had to read

The problem comes without its gold answer; only `oracle` is given the problems it may know beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from ..types import Problem, ProblemError, Trace, WorkbenchError


@runtime_checkable
class Verifier(Protocol):
    aggregate: str

    def score(self, items: Sequence[tuple[Problem, Trace]]) -> list[tuple[float | None, ...]]: ...

    def flops(self, prefix: float, new: float, head: bool = True) -> float: ...


def scored(verifier: Verifier, items: Sequence[tuple[Problem, Trace]]) -> Sequence[tuple[float | None, ...]]:
    """`verifier.score(items)`. Errors: not a row for each item; what is wrong inside a row tells `flaw`."""
    rows = verifier.score(items)
    if not hasattr(rows, "__len__") or len(rows) != len(items):
        n = len(rows) if hasattr(rows, "__len__") else f"{rows!r:.60} and no"
        name = type(verifier).__name__
        raise WorkbenchError(
            f"{name} gave {n} rows of scores for {len(items)} chains: mend its score(), a row for each"
        )
    return rows


def flaw(verifier: Verifier, scores: Sequence[float | None], steps: int) -> str | None:
    """What is wrong with a chain's scores; None where each step has a number in 0-1, or None for unknown."""
    try:
        if len(scores) == steps and all(s is None or 0 <= s <= 1 for s in scores):
            return None
    except (TypeError, ValueError):  # no row, or no numbers in it
        pass
    return f"{type(verifier).__name__} gave {scores} for {steps} steps, not a number in 0-1 (or None) for each: mend it"


def score_all(
    verifier: Verifier, items: Sequence[tuple[Problem, Trace]], progress: bool = False, batch: int = 64
) -> list[tuple[float | None, ...]]:
    """`score` of any number of chains, `batch` at a time, one score a step.

    A problem that the verifier cannot serve (ProblemError) costs the other problems nothing: its chains of that batch
    have None at every step. Errors: not a row for each chain, with a number in 0-1 or None for each step.
    """
    from tqdm.auto import tqdm

    out: list[tuple[float | None, ...]] = []
    for begin in tqdm(range(0, len(items), batch), "judging", disable=not progress):
        part, refused = items[begin : begin + batch], set()
        while True:
            live = [(problem, trace) for problem, trace in part if problem.id not in refused]
            try:
                rows = scored(verifier, live) if live else ()
                break
            except ProblemError as error:
                if not error.problems.keys() <= {problem.id for problem, _ in live}:
                    raise  # about nothing that was asked: it would be for ever
                refused |= error.problems.keys()
        for (problem, trace), row in zip(live, rows, strict=True):
            if wrong := flaw(verifier, row, len(trace.steps)):
                raise WorkbenchError(f"{problem.id}: {wrong}")
        scores = iter(rows)
        out += [(None,) * len(trace.steps) if problem.id in refused else next(scores) for problem, trace in part]
    return out
