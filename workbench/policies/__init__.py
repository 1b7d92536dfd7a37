"""Policies: one file = one backend behind one protocol. A policy turns tree nodes into longer ones.

    extend(wants, seed, sampling) -> for every want, `n` chains; a chain is the list of new nodes below
                                     want.node, one a step (one only, unless want.to_end)
    flops(prefix, new, head)      -> FLOPs of `new` tokens behind `prefix` tokens: drawn (`head`), or only read
    prompt_tokens(problem, node)  -> tokens of everything before the next step
    read                          -> optional: how many tokens of each want's prefix the last call had to read

A problem that a policy cannot serve (its prompt is longer than the context) is a ProblemError; nothing is drawn then.

Randomness is by counter: the noise of a token is a function of (seed, problem, node path, position), so the
chain below a node does not depend on the batch, on the order of problems or on how many siblings it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..types import Cost, Node, Problem, WorkbenchError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature 0 is greedy. A step over `step_tokens` or a chain over `chain_tokens`
    ends with stop `length`.

    `top_k` (0: off) keeps the k likeliest tokens, then `top_p` (1: off) the smallest set that holds this much of what
    is left (Holtzman et al. 2020). Log-probs are those of the distribution that sampled, filters and all.
    Errors: a temperature below 0, a top_p outside (0, 1], a top_k below 0, limits below 1. Left out: min-p, penalties.

    >>> Sampling(top_p=0)
    Traceback (most recent call last):
        ...
    workbench.types.WorkbenchError: top_p=0: the share of probability to keep, above 0 and up to 1
    """

    temperature: float = 1.0
    step_tokens: int = 32
    chain_tokens: int = 192
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise WorkbenchError(f"temperature={self.temperature}: 0 is greedy, 1 the model's own distribution")
        if not 0 < self.top_p <= 1:
            raise WorkbenchError(f"top_p={self.top_p}: the share of probability to keep, above 0 and up to 1")
        if self.top_k < 0 or self.step_tokens < 1 or self.chain_tokens < 1:
            raise WorkbenchError(f"{self}: top_k is 0 (off) or more, a step and a chain have at least one token")


@dataclass(frozen=True)
class Want:
    """Grow `n` children of `node`, numbered from `first`; `to_end` follows each until its chain stops.

    `close`: the child is the closing answer, whatever the policy would rather write: its first tokens are the tags
    that end the reasoning, at log-prob 0, and what is drawn is the answer.
    """

    problem: Problem
    node: Node
    n: int = 1
    to_end: bool = False
    first: int = 0
    close: bool = False


@runtime_checkable
class Policy(Protocol):
    def extend(self, wants: Sequence[Want], seed: int, sampling: Sampling) -> list[list[list[Node]]]: ...

    def flops(self, prefix: float, new: float, head: bool = True) -> float: ...

    def prompt_tokens(self, problem: Problem, node: Node) -> int: ...


def tokens_of(chain: Sequence[Node]) -> int:
    """Tokens that were sampled for a chain of new nodes."""
    return sum(len(node.steps[-1].ids) for node in chain)


def bill(policy: Policy, prefix: int, sampled: Sequence[int], seconds: float = 0.0) -> Cost:
    """What one want costs by itself: its prefix read once, then every child's tokens. A search is billed by its driver,
    which knows what was read before."""
    flops = policy.flops(0, prefix, head=False) + sum(policy.flops(prefix, n) for n in sampled)
    return Cost(sampled=sum(sampled), prompt=prefix, policy_calls=1, policy_flops=flops, policy_seconds=seconds)


def judged_whole(verifier, prompt: int, whole: int) -> Cost:
    """What a verifier is billed for one chain that it reads from its prompt on: `whole` tokens, the prompt's without a
    head. One that samples says itself what it `spent`; in a search the driver knows what was read before."""
    flops = verifier.flops(0, prompt, head=False) + verifier.flops(prompt, whole - prompt)
    return Cost(judged=whole, verifier_calls=1, verifier_flops=flops)


def billed(verifier, chains: Iterable[tuple[int, int]]) -> Cost:
    """What a verifier's last call is billed: what it says it `spent`, or every chain, (prompt, whole) in tokens."""
    chains, spent = list(chains), getattr(verifier, "spent", None)
    if chains and spent is not None:
        return sum((cost for chain in spent for cost in chain), Cost())
    return sum((judged_whole(verifier, *chain) for chain in chains), Cost())
