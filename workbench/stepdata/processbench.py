"""ProcessBench (2412.06559): whole solutions with the index of the first wrong step, −1 if there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..types import Labelled, Step, Trace
from . import Reject, one_line, problem, several

FIELDS = ("problem", "steps", "label", "final_answer_correct")


def read(rows: list[dict], note: Callable[..., None]) -> Iterator[Labelled]:
    """One row -> one chain: right up to the first error, unknown after it."""
    for row in rows:
        first, n = row["label"], len(several(row["steps"]))
        if isinstance(first, bool) or not isinstance(first, int) or not -1 <= first < n:
            raise Reject("a first error outside the steps")
        labels = [1.0] * n if first == -1 else [1.0] * first + [0.0] + [None] * (n - first - 1)
        steps = tuple(Step(one_line(text)) for text in row["steps"])
        yield Labelled(problem(row["problem"], None, "processbench"), Trace(steps, "cut"), tuple(labels))
