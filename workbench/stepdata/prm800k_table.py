"""PRM800K as a table: one row a candidate step, with the accepted steps before it; a problem's rows stand together."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..types import Labelled, Step
from . import Reject, closed, merged, one_line, problem, rating, several

FIELDS = ("instruction", "responses", "next_response", "rating")


def key(row: dict):
    return row["instruction"]


def read(rows: list[dict], note: Callable[..., None]) -> Iterator[Labelled]:
    """Rows of one problem -> the chains of their tree, as `merged` has it."""
    return merged(problem(rows[0]["instruction"], None, "prm800k"), rows, _rated, note)


def _rated(row: dict, say: Callable[[str], None]) -> list[tuple[tuple[Step, ...], float | None]]:
    before = [one_line(text) for text in several(row["responses"])]
    if not all(before) or not (row["next_response"] or "").strip():
        raise Reject("empty step")
    answer = row.get("answer")
    new = closed(row["next_response"], answer if isinstance(answer, str) else None, rating(row["rating"]))
    steps = (*map(Step, before), *(step for step, _ in new))
    labels = [*[None] * len(before), *(label for _, label in new)]
    return [(steps[: i + 1], label) for i, label in enumerate(labels)]
