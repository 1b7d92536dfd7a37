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

from ..types import Problem, Trace


@runtime_checkable
class Verifier(Protocol):
    aggregate: str

    def score(self, items: Sequence[tuple[Problem, Trace]]) -> list[tuple[float | None, ...]]: ...

    def flops(self, prefix: float, new: float, head: bool = True) -> float: ...
