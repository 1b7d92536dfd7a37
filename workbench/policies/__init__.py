"""Policies: one file = one backend behind one protocol. A policy turns tree nodes into longer ones.

    extend(wants, seed, sampling) -> for every want, `n` chains; a chain is the list of new nodes below
                                     want.node, one a step (one only, unless want.to_end)
    flops(prefix, new)            -> FLOPs of reading/writing `new` tokens behind `prefix` tokens
    prompt_tokens(problem, node)  -> tokens of everything before the next step

Randomness is by counter: the noise of a token is a function of (seed, problem, node path, position), so the
chain below a node does not depend on the batch, on the order of problems or on how many siblings it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..types import Cost, Node, Problem


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature 0 is greedy. A step over `step_tokens` or a chain over `chain_tokens`
    ends with stop `length`. top-p and top-k are left out."""

    temperature: float = 1.0
    step_tokens: int = 32
    chain_tokens: int = 192


@dataclass(frozen=True)
class Want:
    """Grow `n` children of `node`, numbered from `first`; `to_end` follows each until its chain stops."""

    problem: Problem
    node: Node
    n: int = 1
    to_end: bool = False
    first: int = 0


@runtime_checkable
class Policy(Protocol):
    def extend(self, wants: Sequence[Want], seed: int, sampling: Sampling) -> list[list[list[Node]]]: ...

    def flops(self, prefix: float, new: float) -> float: ...

    def prompt_tokens(self, problem: Problem, node: Node) -> int: ...


def tokens_of(chain: Sequence[Node]) -> int:
    """Tokens that were sampled for a chain of new nodes."""
    return sum(len(node.steps[-1].ids) for node in chain)


def bill(policy: Policy, prefix: int, sampled: Sequence[int], seconds: float = 0.0) -> Cost:
    """What one want costs: its prefix read once, then every child's tokens. The only place where a policy is priced."""
    flops = policy.flops(0, prefix) + sum(policy.flops(prefix, n) for n in sampled)
    return Cost(sampled=sum(sampled), prompt=prefix, policy_calls=1, policy_flops=flops, policy_seconds=seconds)
