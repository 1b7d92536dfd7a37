"""Rewards: (problem, chain) pairs -> what each chain, and each of its steps, earns. A reward is a plain function."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..labels import right_answer
from ..policies import billed
from ..select import aggregated
from ..types import Cost, Problem, Trace, WorkbenchError
from ..verifiers import flaw, scored

Items = Sequence[tuple[Problem, Trace]]


@dataclass(frozen=True)
class Earned:
    """`chains`: one number a chain. `steps`: one a step of every chain, or None where steps earn nothing of their own.
    `cost`: what judging took."""

    chains: list[float]
    steps: list[list[float]] | None = None
    cost: Cost = field(default_factory=Cost)

    def totals(self) -> list[float]:
        """What each chain earns in all: the number that is watched as the proxy."""
        steps = self.steps or [[]] * len(self.chains)
        return [chain + sum(row) for chain, row in zip(self.chains, steps, strict=True)]

    def part(self, chosen: Sequence[int]) -> Earned:
        """Of some chains; the cost stays with the whole."""
        return Earned([self.chains[i] for i in chosen], None if self.steps is None else [self.steps[i] for i in chosen])

    @classmethod
    def joined(cls, parts: Sequence[Earned]) -> Earned:
        steps = [row for part in parts for row in part.steps or ()]
        return cls(
            [x for part in parts for x in part.chains], steps if any(p.steps is not None for p in parts) else None
        )


Reward = Callable[[Items], Earned]


def outcome(items: Items) -> Earned:
    """1 for a chain that closed with a right answer, else 0. A chain that did not close earns nothing."""
    return Earned([float(right_answer(p, trace)) for p, trace in items])


def formatted(items: Items) -> Earned:
    """1 for a chain that closed its reasoning and its answer, with a step before it and none empty."""
    return Earned([float(well_formed(trace)) for _, trace in items])


def well_formed(trace: Trace) -> bool:
    """A chain that stopped at an answer and thought before it."""
    return (
        trace.stop == "answer"
        and len(trace.steps) > 1
        and all(step.text.strip() for step in trace.steps)
        and sum(step.final for step in trace.steps) == 1
    )


def length(limit: int) -> Reward:
    """Tokens over `limit`, at most 1: a reward with nothing behind it, to see what RL makes of one."""

    def reward(items: Items) -> Earned:
        return Earned([min(1.0, trace.tokens / limit) for _, trace in items])

    return reward


def overlong(limit: int, buffer: int) -> Reward:
    """0 up to `limit - buffer` tokens, then falling to -1 at `limit` (DAPO's soft punishment, Yu et al. 2025, eq. 13).

    >>> from ..types import Step
    >>> chain = Trace((Step("1", ids=(1,) * 75),))
    >>> overlong(limit=100, buffer=50)([(None, chain)]).chains
    [-0.5]
    """
    if not 0 < buffer <= limit:
        raise WorkbenchError(f"buffer={buffer}: the last tokens before the limit of {limit}, from 1 up to it")

    def reward(items: Items) -> Earned:
        return Earned([max(-1.0, min(0.0, (limit - buffer - trace.tokens) / buffer)) for _, trace in items])

    return reward


FORMS = ("outcome", "sum", "min", "difference")


def process(verifier, form: str = "min", temperature: float = 0.1) -> Reward:
    """Reward from a verifier's step scores s_t in 0-1.

    `outcome`: the chain earns its scores' aggregate (the verifier's own). The others pay steps, and a step's credit is
    what comes from it on: `sum` pays s_t, the usual credit, which more steps inflate; `min` pays s_t weighted by
    softmax(-s/temperature), so that the chain earns about its worst step and later steps cannot make up for it (PURE,
    Cheng et al. 2025, arXiv 2504.15275); `difference` pays s_t - s_(t-1), s_0 = 0, which adds up to the last score
    however many steps there are (potential-based shaping, Ng et al. 1999).
    Errors: a form that is none of these, a temperature of 0 or less; at the call, scores that are no row a chain, a
    step without its number in 0-1.

    >>> [[round(x, 2) for x in credit(form, [0.9, 0.2, 0.8])] for form in ("sum", "min", "difference")]
    [[0.9, 0.2, 0.8], [0.0, 0.2, 0.0], [0.9, -0.7, 0.6]]
    """
    if form not in FORMS:
        raise WorkbenchError(f"unknown process reward {form!r}: one of {', '.join(FORMS)}")
    if not temperature > 0:
        raise WorkbenchError(f"temperature={temperature}: above 0, the nearer the more the worst step alone counts")

    def reward(items: Items) -> Earned:
        begin = time.perf_counter()
        closed = [i for i, (_, trace) in enumerate(items) if trace.stop == "answer"]  # the others earn nothing
        read = [(items[i][0].blind(), items[i][1]) for i in closed]
        scores = scored(verifier, read) if read else []
        cost = (judging(verifier, read) if read else Cost()) + Cost(verifier_seconds=time.perf_counter() - begin)
        chains, steps = [0.0] * len(items), [[0.0] * len(trace.steps) for _, trace in items]
        for i, (problem, trace), row in zip(closed, read, scores, strict=True):
            if wrong := flaw(verifier, row, len(trace.steps)):
                raise WorkbenchError(f"{problem.id}: {wrong}")
            whole = aggregated(row, verifier.aggregate) if form == "outcome" else None
            if whole is None and (form == "outcome" or None in row):
                raise WorkbenchError(
                    f"{problem.id}: {type(verifier).__name__} left a step without a score: nothing pays it"
                )
            if form == "outcome":
                chains[i] = whole
            else:
                steps[i] = credit(form, row, temperature)
        return Earned(chains, None if form == "outcome" else steps, cost)

    return reward


def credit(form: str, scores: Sequence[float], temperature: float = 0.1) -> list[float]:
    """A finished chain's step scores -> its step rewards; see `process`."""
    if form == "sum" or not scores:
        return list(scores)
    if form == "difference":
        return [s - before for s, before in zip(scores, [0.0, *scores], strict=False)]
    low = min(scores)
    weights = [math.exp((low - s) / temperature) for s in scores]
    return [s * w / sum(weights) for s, w in zip(scores, weights, strict=True)]


def judging(verifier, items: Items) -> Cost:
    """What a verifier's call is billed, see `billed`; one without an encoder must be free, as the oracle is."""
    encoder = getattr(verifier, "encoder", None)
    if encoder is None and getattr(verifier, "spent", None) is None and verifier.flops(0, 1):
        name = type(verifier).__name__
        raise WorkbenchError(f"{name} costs FLOPs and has no `encoder` to count tokens by: give it one, or `spent`")
    prompts = [len(encoder.prompt(p.prompt)) if encoder else 0 for p, _ in items]
    return billed(verifier, [(n, n + trace.tokens) for n, (_, trace) in zip(prompts, items, strict=True)])


def mixture(*parts: tuple[float, Reward]) -> Reward:
    """Weighted sum of rewards, chain by chain and step by step: mixture((1.0, process(prm)), (0.1, outcome)).

    One of them may learn (PRIME); then the mixture does.

    >>> mixture((1.0, formatted), (0.5, outcome))([]).chains
    []
    """
    learning = [part for _, part in parts if hasattr(part, "learn")]
    if not parts or len(learning) > 1:
        raise WorkbenchError(
            f"{len(parts)} rewards, {len(learning)} that learn: give (weight, reward) pairs, one learner"
        )

    def reward(items: Items) -> Earned:
        earned = [(weight, part(items)) for weight, part in parts]
        rows = zip(*(e.chains for _, e in earned), strict=True)
        chains = [sum(w * x for (w, _), x in zip(earned, row, strict=True)) for row in rows]
        paying = [(w, e.steps) for w, e in earned if e.steps is not None]
        steps = None
        if paying:
            steps = [
                [sum(w * x for (w, _), x in zip(paying, row, strict=True)) for row in zip(*rows, strict=True)]
                for rows in zip(*(s for _, s in paying), strict=True)
            ]
        return Earned(chains, steps, sum((e.cost for _, e in earned), Cost()))

    for part in learning:
        reward.learn, reward.save, reward.load = part.learn, part.save, part.load
    return reward
