"""The currency of the house: frozen records that every floor reads. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from math import inf
from numbers import Integral, Real
from operator import add, attrgetter
from typing import Any, Literal, NamedTuple

Stop = Literal["answer", "length", "cut"]


class WorkbenchError(Exception):
    """A mistake that the caller can mend: the message names the thing and the remedy."""


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Rows of cells as lines of text with aligned columns; those in `right` to the right.

    >>> print(aligned([["vote", "12"], ["beam", "3"]], right=[1]))
    vote  12
    beam   3
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pad = [str.rjust if i in right else str.ljust for i in range(len(widths))]
    lines = ([p(cell, w) for p, cell, w in zip(pad, row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def unknown(kind: str, word: str, known: Iterable[str]) -> WorkbenchError:
    """The sentence for a name that nobody knows.

    >>> print(unknown("profile", "nanu", ["nano", "gpu"]))
    unknown profile 'nanu': did you mean 'nano'? Known: gpu, nano
    """
    known = sorted(known)
    near = get_close_matches(word, known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return WorkbenchError(f"unknown {kind} {word!r}: {hint}Known: {', '.join(known) or 'none'}")


def in_range(settings: object, names: str, least: float, most: float = inf, above: bool = False) -> None:
    """Refuse settings of which one of the fields `names` is no number from `least` (or `above` it) to `most`, or not a
    whole one where the dataclass says `int`.

    >>> from types import SimpleNamespace as Settings
    >>> in_range(Settings(steps=0, warmup=0.1), "warmup", 0, 1)
    >>> in_range(Settings(steps=0, warmup=0.1), "warmup steps", 0, above=True)
    Traceback (most recent call last):
        ...
    workbench.types.WorkbenchError: steps=0: above 0
    """
    types = {field.name: field.type for field in fields(settings)} if is_dataclass(settings) else {}
    for name in names.split():
        value, whole = getattr(settings, name), types.get(name) in ("int", int)
        kind = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
        fits = kind and least <= value <= most and value < inf  # NaN fits nowhere
        if not fits or above and value == least:
            words = f"above {least}" if above else f"at least {least}" if most == inf else f"from {least} to {most}"
            words = words if kind else f"a whole number, {words}" if whole else f"a number, {words}"
            raise WorkbenchError(f"{name}={value!r}: {words}")


class ProblemError(WorkbenchError):
    """Some problems of a batch cannot be served, whatever is tried; the others can. `problems`: id -> what and why.

    >>> str(ProblemError({"p/1": "its prompt is longer than the context of 512"}))
    'p/1: its prompt is longer than the context of 512'
    """

    def __init__(self, problems: Mapping[str, str]):
        super().__init__("; ".join(f"{id}: {why}" for id, why in problems.items()))
        self.problems = dict(problems)


@dataclass(frozen=True)
class Problem:
    """One question with its gold answer. `id` is unique inside a task; `level` grows with difficulty.

    `answer` is for graders only: a search is handed `blind()`, which has none.

    >>> Problem("arithmetic/test/0", "arithmetic", "2+3", "5").blind().answer is None
    True
    """

    id: str
    task: str
    prompt: str
    answer: str | None
    level: int = 1
    split: str = "test"

    def blind(self) -> Problem:
        return replace(self, answer=None)


@dataclass(frozen=True)
class Step:
    """One line of reasoning, or (`final`) the closing answer, which is judged as a step too.

    `ids` are the tokens as sampled, the step break included; empty means "not tokenised yet".
    `logprobs` has one entry a token, under the distribution that sampled it.
    `score` is a verifier's, in 0-1; None is unknown and never 0.
    """

    text: str
    final: bool = False
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    score: float | None = None


@dataclass(frozen=True)
class Trace:
    """A chain of steps: a PRM row, a rollout, an RL episode and a search result are all this.

    `stop` tells why it ended: `answer` (the model closed it), `length` (token limit), `cut` (malformed or pruned).

    >>> Trace((Step("2+3=5"), Step("5", final=True))).answer
    '5'
    """

    steps: tuple[Step, ...]
    stop: Stop = "answer"

    @property
    def answer(self) -> str | None:
        return self.steps[-1].text if self.steps and self.steps[-1].final and self.stop == "answer" else None

    @property
    def scores(self) -> list[float | None]:
        return [step.score for step in self.steps]

    @property
    def tokens(self) -> int:
        return sum(len(step.ids) for step in self.steps)


class Labelled(NamedTuple):
    """A chain and what somebody thinks of its steps: a number in 0-1 for each, None where nobody said.

    Chains of one problem may begin alike; then the steps they share carry the same label in each, and count once.

    >>> Labelled(Problem("p/1", "arithmetic", "2+3", "5"), Trace((Step("2+3=6"), Step("6", True))), (0.0, None)).labels
    (0.0, None)
    """

    problem: Problem
    trace: Trace
    labels: tuple[float | None, ...]


@dataclass(frozen=True)
class Cost:
    """What was spent. Tokens are counts, FLOPs multiply-adds times two, seconds wall time. Costs add.

    `sampled`: tokens the policy drew; `prompt`: tokens it read; `judged`: tokens a verifier read; `reread`: tokens that
    either had read before and read again, because its cache had dropped them; `trained`: tokens that went through a
    forward and backward pass. `reread_flops` come on top of the policy's and the verifier's.

    >>> (Cost(sampled=3, policy_flops=1.0) + Cost(judged=2, verifier_flops=4.0)).flops
    5.0
    """

    sampled: int = 0
    prompt: int = 0
    judged: int = 0
    trained: int = 0
    reread: int = 0
    policy_calls: int = 0
    verifier_calls: int = 0
    policy_flops: float = 0.0
    verifier_flops: float = 0.0
    training_flops: float = 0.0
    reread_flops: float = 0.0
    policy_seconds: float = 0.0
    verifier_seconds: float = 0.0
    training_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*map(add, _AMOUNTS(self), _AMOUNTS(other)))

    __radd__ = lambda self, other: self if other == 0 else self + other  # so that sum() works  # noqa: E731

    @property
    def flops(self) -> float:
        return self.policy_flops + self.verifier_flops + self.training_flops + self.reread_flops

    @property
    def seconds(self) -> float:
        return self.policy_seconds + self.verifier_seconds + self.training_seconds

    def amounts(self) -> dict[str, float]:
        """What is not 0, as files keep it; Cost(**amounts) is the same cost again.

        >>> Cost(sampled=3).amounts()
        {'sampled': 3}
        """
        return {name: value for name, value in asdict(self).items() if value}

    @property
    def tokens(self) -> int:
        return self.sampled + self.prompt + self.judged + self.trained + self.reread


_AMOUNTS = attrgetter(*(f.name for f in fields(Cost)))  # asked for at every sum


@dataclass(frozen=True)
class Budget:
    """A limit on Cost; None means unlimited. The driver stops a search once any limit is reached.

    What is read again is billed but does not count here: a tree must not depend on the size of a cache.

    >>> Budget(sampled=10).spent(Cost(sampled=10))
    True
    """

    sampled: int | None = None
    flops: float | None = None
    seconds: float | None = None

    def spent(self, cost: Cost) -> bool:
        flops = cost.flops - cost.reread_flops
        limits = ((self.sampled, cost.sampled), (self.flops, flops), (self.seconds, cost.seconds))
        return any(limit is not None and value >= limit for limit, value in limits)


@dataclass(frozen=True)
class Node:
    """One step in a search tree. `path` is the list of child numbers from the root, so it names the node.

    `stop` is None while the chain is unfinished.
    """

    path: tuple[int, ...] = ()
    steps: tuple[Step, ...] = ()
    stop: Stop | None = None

    @property
    def trace(self) -> Trace:
        return Trace(self.steps, self.stop or "cut")

    @property
    def finished(self) -> bool:
        return self.stop is not None

    @property
    def score(self) -> float | None:
        return self.steps[-1].score if self.steps else None


@dataclass(frozen=True)
class Record:
    """One measured outcome, one JSON line. Curves read records and nothing else.

    >>> Record.of(json.loads(Record("r", "p/1", 0, "5", True, Cost(sampled=7)).to_json())).cost.sampled
    7
    """

    run: str
    problem: str
    seed: int
    answer: str | None
    correct: bool | None
    cost: Cost = field(default_factory=Cost)
    level: int = 1
    knobs: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"cost": self.cost.amounts()}, sort_keys=True)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Record:
        return cls(**{**row, "cost": Cost(**row["cost"])})
