"""Where step labels come from: the task's oracle, or Monte-Carlo rollouts of a policy."""

from __future__ import annotations

import time
from collections.abc import Sequence

from . import tasks
from .policies import Policy, Sampling, Want, bill, tokens_of
from .types import Cost, Node, Problem, Trace


def oracle(items: Sequence[tuple[Problem, Trace]]) -> list[list[float]]:
    """1.0 for every step that keeps the chain right, by the task's own truth.

    >>> p = tasks.get("arithmetic").parse("2+3")
    >>> oracle([(p, tasks.get("arithmetic").demonstration(p))])
    [[1.0, 1.0]]
    """
    return [[float(x) for x in tasks.get(p.task).oracle(p, trace.steps)] for p, trace in items]


def corrected(problem: Problem, trace: Trace, labels: Sequence[float]) -> Trace:
    """The chain up to its first wrong step, which is replaced by a right one (PRM800K's human completions).

    A chain without a wrong step stays as it is, but for a last step that was never finished. The task must know how
    to `correct`.

    >>> from workbench.types import Step
    >>> p = tasks.get("arithmetic").parse("2+3*4")
    >>> [s.text for s in corrected(p, Trace((Step("3*4=12"), Step("2+12=15"), Step("15", True))), [1, 0, 0]).steps]
    ['3*4=12', '2+12=14']
    """
    first = next((i for i, label in enumerate(labels) if label < 0.5), None)
    if first is None:
        return trace if trace.stop == "answer" else Trace(trace.steps[:-1], "cut")
    right = trace.steps[:first]
    return Trace((*right, tasks.get(problem.task).correct(problem, right)), "cut")


def monte_carlo(
    policy: Policy,
    items: Sequence[tuple[Problem, Trace]],
    k: int = 8,
    seed: int = 0,
    hard: bool = False,
    sampling: Sampling = Sampling(),
) -> tuple[list[list[float]], Cost]:
    """Label of a step = share of `k` rollouts, started *after* it, that reach a right answer (Math-Shepherd).

    `hard`: 1.0 if any does. A rollout never contains the answer it judges; the closing answer itself is checked.
    So these labels are values under this policy, not truths: a right step that the policy can seldom finish gets a
    low one, and a wrong step that is repaired gets a high one (Qwen, arXiv 2501.07301). Returns (labels, cost).
    """
    wants, where = [], []
    for i, (problem, trace) in enumerate(items):
        for t, step in enumerate(trace.steps):
            if not step.final:
                # The path names the trace and the step, so that every step's rollouts have noise of their own.
                wants.append(Want(problem.blind(), Node((i, t), trace.steps[: t + 1]), k, to_end=True))
                where.append((i, t))
    labels = [[0.0] * len(trace.steps) for _, trace in items]
    begin = time.perf_counter()
    drawn = policy.extend(wants, tasks.digest("montecarlo", seed) >> 1, sampling)
    cost = Cost(policy_seconds=time.perf_counter() - begin)
    for want, (i, t), chains in zip(wants, where, drawn, strict=True):
        cost += bill(policy, policy.prompt_tokens(want.problem, want.node), [tokens_of(chain) for chain in chains])
        right = sum(right_answer(items[i][0], chain[-1].trace) for chain in chains)
        labels[i][t] = float(right > 0) if hard else right / k
    for i, (problem, trace) in enumerate(items):
        if trace.steps and trace.steps[-1].final:
            labels[i][-1] = float(right_answer(problem, trace))
    return labels, cost


def right_answer(problem: Problem, trace: Trace) -> bool:
    """Did this chain close, with a right answer? An unfinished chain did not."""
    return trace.answer is not None and tasks.get(problem.task).check(problem, trace.answer)
