"""PRM800K as a table: one row a candidate step, with the accepted steps before it; a problem's rows stand together."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..types import Labelled, Step
from . import Reject, chains, closed, one_line, problem, rating, several

FIELDS = ("instruction", "responses", "next_response", "rating")


def key(row: dict):
    return row["instruction"]


def read(rows: list[dict], note: Callable[..., None]) -> Iterator[Labelled]:
    """Rows of one problem -> the chains of their tree. A step that was rated more than once has the mean rating."""
    known = problem(rows[0]["instruction"], None, "prm800k")
    rated: dict[tuple[Step, ...], list[float]] = {}
    for number, row in enumerate(rows):
        try:
            path, labels = _path(row)
        except Reject as why:
            note(str(why), number)
            continue
        for i in range(1, len(path) + 1):
            rated.setdefault(path[:i], [])
        for i, label in enumerate(labels):
            if label is not None:
                rated[path[: len(path) - len(labels) + 1 + i]].append(label)
        if labels[-1] is None:
            note("no rating", number)
    nodes = {path: sum(marks) / len(marks) if marks else None for path, marks in rated.items()}
    for chain in chains(known, nodes):
        if any(label is not None for label in chain.labels):  # else a labeller's own last step: said above
            yield chain


def _path(row: dict) -> tuple[tuple[Step, ...], list[float | None]]:
    before = [one_line(text) for text in several(row["responses"])]
    if not all(before) or not (row["next_response"] or "").strip():
        raise Reject("empty step")
    answer = row.get("answer")
    new = closed(row["next_response"], answer if isinstance(answer, str) else None, rating(row["rating"]))
    return (*map(Step, before), *(step for step, _ in new)), [label for _, label in new]
