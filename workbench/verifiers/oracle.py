"""The oracle verifier: the task's own step truth. The yardstick that a learnt verifier is held against."""

from __future__ import annotations

from collections.abc import Sequence

from .. import tasks
from ..types import Problem, Trace, WorkbenchError


class Oracle:
    """Scores 1.0 for a step that keeps the chain right, else 0.0; costs nothing and learns nothing.

    `problems` carry the gold answers that a search is never shown. Errors: a task whose steps only people can judge.

    >>> p = tasks.get("arithmetic").parse("2+3")
    >>> Oracle([p]).score([(p.blind(), tasks.get("arithmetic").demonstration(p))])
    [(1.0, 1.0)]
    """

    aggregate = "min"

    def __init__(self, problems: Sequence[Problem]):
        self.problems = {p.id: p for p in problems}
        for task, one in {p.task: p.id for p in problems}.items():
            if task not in tasks.names() or not hasattr(tasks.get(task), "oracle"):
                raise WorkbenchError(
                    f"{one}: the task {task!r} has no step oracle, only people know: judge with a trained verifier, or "
                    "take labels from rollouts or from people's rows"
                )

    def flops(self, prefix: float, new: float, head: bool = True) -> float:
        return 0.0

    def score(self, items: Sequence[tuple[Problem, Trace]]) -> list[tuple[float, ...]]:
        out = []
        for problem, trace in items:
            if problem.id not in self.problems:
                raise WorkbenchError(f"the oracle was not given {problem.id}: pass it to Oracle(problems)")
            known = self.problems[problem.id]
            labels = tasks.get(known.task).oracle(known, trace.steps)
            # A chain that never closed is not a right one, whatever its last step says.
            out.append(tuple(float(x) for x in labels) if trace.stop != "length" else (0.0,) * len(labels))
        return out


class Answers:
    """Scores all steps of a chain alike: 1.0 if its answer is right, else 0.0. For tasks whose steps nobody knows.

    It shows the most that a choice among finished chains can reach, and costs nothing. `problems`: as `Oracle`'s.

    >>> from workbench.types import Step
    >>> p = Problem("p", "gsm8k", "3 boxes of 4 pens?", "12")
    >>> Answers([p]).score([(p.blind(), Trace((Step("3*4=12"), Step("12", True))))])
    [(1.0, 1.0)]
    """

    aggregate = "last"

    def __init__(self, problems: Sequence[Problem]):
        self.problems = {p.id: p for p in problems}

    def flops(self, prefix: float, new: float, head: bool = True) -> float:
        return 0.0

    def score(self, items: Sequence[tuple[Problem, Trace]]) -> list[tuple[float, ...]]:
        out = []
        for problem, trace in items:
            if problem.id not in self.problems:
                raise WorkbenchError(f"the answer of {problem.id} is not known: pass it to Answers(problems)")
            known = self.problems[problem.id]
            right = trace.answer is not None and tasks.get(known.task).check(known, trace.answer)
            out.append((float(right),) * len(trace.steps))
        return out
