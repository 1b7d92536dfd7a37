"""The generative verifier: a policy is asked whether a solution is right so far, and may think before it says so."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..policies import Policy, Sampling, Want, bill, tokens_of
from ..tasks import digest
from ..types import Cost, Node, Problem, ProblemError, Step, Trace, WorkbenchError

QUESTION = "Is the solution right so far?"
STEP, ANSWER = "Step {number}: {text}", "Answer: {text}"
TEMPLATE = "Problem: {problem}\n{steps}\nCheck it step by step. " + QUESTION + " Yes or No?"
VERDICT = re.compile(rf"\s*(?:{re.escape(QUESTION)}\s*)?(Yes|No)")
STEPS = ("each", "last")


def question(problem: Problem, steps: Sequence[Step]) -> Problem:
    r"""What the critic is asked about the first steps of a solution, as a problem whose answer is Yes or No.

    The problem and every step are one line each, so that what they say cannot pass for another step; tags in them are
    escaped as in any prompt, by the policy's encoder. To teach a critic, `sft.rows([(question(p, steps), trace)])`
    with a trace that ends in the answer "Yes" or "No". Its id names problem and text, so that every question has noise
    of its own, the same in every search.

    >>> print(question(Problem("p/1", "arithmetic", "2+3", "5"), [Step("2+3=6\nStep 2: 5"), Step("6", True)]).prompt)
    Problem: 2+3
    Step 1: 2+3=6 Step 2: 5
    Answer: 6
    Check it step by step. Is the solution right so far? Yes or No?
    """
    lines = [
        ANSWER.format(text=_line(step.text)) if step.final else STEP.format(number=number, text=_line(step.text))
        for number, step in enumerate(steps, 1)
    ]
    text = TEMPLATE.format(problem=_line(problem.prompt), steps="\n".join(lines))
    return Problem(f"{problem.id}?{digest('question', text):016x}", problem.task, text, None, problem.level)


def _line(text: str) -> str:
    return " ".join(text.splitlines())


@dataclass(frozen=True)
class Opinion:
    """What the critiques of one question came to.

    `critiques` are their texts, a step a line; `chances` P(Yes) of each, None for one without a verdict.
    """

    critiques: tuple[str, ...]
    chances: tuple[float | None, ...]
    cost: Cost

    @property
    def score(self) -> float | None:
        """Mean P(Yes) of the critiques that gave a verdict; None when none did."""
        known = [chance for chance in self.chances if chance is not None]
        return math.fsum(known) / len(known) if known else None


class Generative:
    """Asks a policy `k` times whether the solution is right so far; the score is the mean P(Yes) (GenRM-CoT).

    Source: Zhang et al. 2024 (arXiv 2408.15240). A critique is a chain of the policy on `question`: steps that think,
    then a closing answer that must be "Yes" or "No" (the question may stand before it). Anything else, a chain that did
    not close included, is no verdict: unknown, never 0, and counted (`unknown` of `critiques` drawn so far); a question
    whose critiques all are unknown has score None. `critique=False` asks for the verdict at once (plain GenRM).

    P(Yes) of a critique is the probability of its verdict's tokens under the distribution that sampled, or for "No" one
    minus it: exact where the policy has no third word (the paper has Yes over {Yes, No}; a policy tells only what it
    drew). At temperature 1, unfiltered, it is the model's own. Without log-probs it is 1 or 0, and the mean the share
    of Yes.

    `steps`: `each` asks about every prefix, `last` about all that is there, and leaves the steps before unknown (an
    outcome model; in a search, the newest step). A question speaks of all steps so far, so `last` is the aggregate.
    Any backend is a critic, the searching policy too. The same seed gives the same critiques, in every order and batch.
    `cache` questions are remembered, so the policy's weights must not change meanwhile (0 asks anew each time). A chain
    whose question leaves no room in the critic's context is a ProblemError.

    `spent`, for every item of the last call, is what each of its steps took to judge, a Cost a step, whether asked now
    or remembered: what the critic read and drew is `judged`. `flops` cannot know that beforehand; see there.

    >>> from workbench.policies.scripted import Scripted
    >>> critic = Scripted({(): [("fine", 0.5), ("hm", 0.5)], ("fine",): [("=Yes", 0.9), ("=No", 0.1)],
    ...                    ("hm",): [("=Yes", 0.2), ("=No", 0.8)]})
    >>> judge = Generative(critic, k=100)
    >>> [(score,)] = judge.score([(Problem("p/1", "arithmetic", "2+3", None), Trace((Step("2+3=5"),), "cut"))])
    >>> round(score, 2), judge.critiques, judge.unknown  # .55 in the long run
    (0.59, 100, 0)
    """

    def __init__(
        self,
        policy: Policy,
        k: int = 4,
        steps: str = "each",
        seed: int = 0,
        sampling: Sampling = Sampling(),
        critique: bool = True,
        aggregate: str = "last",
        cache: int = 20_000,
    ):
        if steps not in STEPS:
            raise WorkbenchError(f"steps={steps!r}: which steps to ask about, one of {', '.join(STEPS)}")
        if k < 1:
            raise WorkbenchError(f"k={k}: how many critiques of a question, at least 1")
        if k > 1 and not sampling.temperature:
            raise WorkbenchError(f"k={k} critiques at temperature 0 are one critique: use k=1 or a temperature")
        self.policy, self.k, self.steps, self.seed, self.sampling = policy, k, steps, seed, sampling
        self.critique, self.aggregate, self.cache = critique, aggregate, cache
        self.known: dict[Problem, Opinion] = {}
        self.critiques, self.unknown = 0, 0
        self.spent: list[tuple[Cost, ...]] = []

    @classmethod
    def load(cls, folder: str | Path, **more) -> Generative:
        """A language model's checkpoint, of whole weights or of an adapter, as the critic."""
        from ..adapters import open_language_model
        from ..policies.local import LocalPolicy

        return cls(LocalPolicy(*open_language_model(folder)), **more)

    def flops(self, prefix: float, new: float, head: bool = True) -> float:
        """What one question about a chain of prefix + new tokens costs if all critiques are as long as they may get: an
        estimate for who must reckon before asking. What was spent is in `spent`."""
        if not head:
            return 0.0
        before = self._frame + prefix + new
        return self.policy.flops(0, before, head=False) + self.k * self.policy.flops(before, self.sampling.chain_tokens)

    @cached_property
    def _frame(self) -> int:
        """Tokens of a question about nothing."""
        return self.policy.prompt_tokens(question(Problem("", "", "", None), ()), Node())

    def score(self, items: Sequence[tuple[Problem, Trace]]) -> list[tuple[float | None, ...]]:
        found = self.opinions(items)
        self.spent = [tuple(opinion.cost if opinion else Cost() for opinion in row) for row in found]
        return [tuple(opinion.score if opinion else None for opinion in row) for row in found]

    def opinions(self, items: Sequence[tuple[Problem, Trace]]) -> list[tuple[Opinion | None, ...]]:
        """For every item an Opinion a step, None where nothing was asked. Equal questions are asked once."""
        rows = [self._questions(problem, trace.steps) for problem, trace in items]
        owner = {q: problem.id for row, (problem, _) in zip(rows, items, strict=True) for q in row if q is not None}
        found = {q: self.known[q] for q in owner if q in self.known}
        found |= self._ask({q: id for q, id in owner.items() if q not in found})
        self.known |= found
        while len(self.known) > self.cache:  # the oldest go
            del self.known[next(iter(self.known))]
        return [tuple(None if q is None else found[q] for q in row) for row in rows]

    def _questions(self, problem: Problem, steps: Sequence[Step]) -> list[Problem | None]:
        first = 1 if self.steps == "each" else len(steps)
        return [question(problem, steps[:n]) if n >= first else None for n in range(1, len(steps) + 1)]

    def _ask(self, owner: dict[Problem, str]) -> dict[Problem, Opinion]:
        wants = [Want(q, Node(), self.k, to_end=True, close=not self.critique) for q in owner]
        if not wants:
            return {}
        try:
            drawn = self.policy.extend(wants, self.seed, self.sampling)
        except ProblemError as error:
            of = {q.id: id for q, id in owner.items()}
            raise ProblemError(
                {of[id]: f"a question to the critic: {why}" for id, why in error.problems.items()}
            ) from error
        out = {}
        for q, chains in zip(owner, drawn, strict=True):
            took = bill(self.policy, self.policy.prompt_tokens(q, Node()), [tokens_of(chain) for chain in chains])
            cost = Cost(judged=took.prompt + took.sampled, verifier_calls=1, verifier_flops=took.policy_flops)
            traces = [chain[-1].trace for chain in chains]
            texts = tuple("\n".join(step.text for step in trace.steps) for trace in traces)
            out[q] = Opinion(texts, tuple(self._chance(trace) for trace in traces), cost)
            self.critiques += len(traces)
            self.unknown += sum(chance is None for chance in out[q].chances)
        return out

    def _chance(self, trace: Trace) -> float | None:
        """P(Yes) as one critique tells it; None if it gives no verdict."""
        verdict = VERDICT.fullmatch(trace.answer or "")
        if verdict is None:
            return None
        chance = min(1.0, math.exp(math.fsum(self._told(trace.steps[-1], verdict[1]))))
        return chance if verdict[1] == "Yes" else 1.0 - chance

    def _told(self, step: Step, word: str) -> Sequence[float]:
        """Log-probs of the tokens that spell the verdict; none where they cannot be told."""
        encoder = getattr(self.policy, "encoder", None)
        if encoder is None or not step.logprobs:  # a table's log-prob is that of the line
            return step.logprobs
        end = len(step.ids) - (step.ids[-1] == encoder.end_id)
        first = next((n for n in reversed(range(end)) if word in encoder.tokenizer.decode(step.ids[n:end])), end)
        return step.logprobs[first:end]
