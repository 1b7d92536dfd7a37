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

from ..types import Problem, ProblemError, Trace


@runtime_checkable
class Verifier(Protocol):
    aggregate: str

    def score(self, items: Sequence[tuple[Problem, Trace]]) -> list[tuple[float | None, ...]]: ...

    def flops(self, prefix: float, new: float, head: bool = True) -> float: ...


def score_all(
    verifier: Verifier, items: Sequence[tuple[Problem, Trace]], progress: bool = False, batch: int = 64
) -> list[tuple[float | None, ...]]:
    """`score` of any number of chains, `batch` at a time, one score a step.

    A problem that the verifier cannot serve (ProblemError) costs the other problems nothing: its chains of that batch
    have None at every step.
    """
    from tqdm.auto import tqdm

    out: list[tuple[float | None, ...]] = []
    for begin in tqdm(range(0, len(items), batch), "judging", disable=not progress):
        part, refused = items[begin : begin + batch], set()
        while True:
            live = [(problem, trace) for problem, trace in part if problem.id not in refused]
            try:
                scores = iter(verifier.score(live) if live else ())
                break
            except ProblemError as error:
                if not error.problems.keys() <= {problem.id for problem, _ in live}:
                    raise  # about nothing that was asked: it would be for ever
                refused |= error.problems.keys()
        out += [(None,) * len(trace.steps) if problem.id in refused else next(scores) for problem, trace in part]
    return out
