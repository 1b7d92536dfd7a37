"""PRM800K as OpenAI published it (Lightman et al. 2023): a line a labelled solution, several completions a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..types import Labelled, Step
from . import Reject, chains, closed, problem, rating, several

FIELDS = ("labeler", "question", "label")
ANSWER = "# Answer"


def read(rows: list[dict], note: Callable[..., None]) -> Iterator[Labelled]:
    """One row -> a chain for every completion that ends there. The next step follows the chosen one.

    A flagged completion, and quality-control and screening questions, are left out, as in the paper. A completion
    without a rating (a labeller's own, or nobody's) is context.
    """
    for row in rows:
        if row.get("is_quality_control_question") or row.get("is_initial_screening_question"):
            raise Reject("a quality-control question")
        if row["label"].get("finish_reason") == "bad_problem":
            raise Reject("a bad problem")
        asked = row["question"]
        known = problem(asked["problem"], asked.get("ground_truth_answer"), "prm800k")
        before: tuple[Step, ...] = ()
        nodes: dict[tuple[Step, ...], float | None] = {}
        for step in several(row["label"]["steps"]):
            human, chosen, after = step.get("human_completion"), step.get("chosen_completion"), None
            for i, completion in enumerate(several(step["completions"])):
                try:
                    path = _add(nodes, before, completion)
                except Reject as why:
                    note(str(why))
                    continue
                after = path if i == chosen else after
            if chosen is None and human is not None:
                text = human["text"] if isinstance(human, dict) else human
                try:
                    after = _add(nodes, before, {"text": text, "rating": None})
                except Reject as why:
                    note(str(why))
            if after is None:
                break
            before = after
        if not nodes:
            raise Reject("no rating")
        yield from chains(known, nodes)


def _add(nodes: dict, before: tuple[Step, ...], completion: dict) -> tuple[Step, ...]:
    text = completion["text"]
    if not isinstance(text, str) or not text.strip():
        raise Reject("empty step")
    if completion.get("flagged"):
        raise Reject("a flagged completion")
    body, mark, answer = text.partition(ANSWER)
    if mark and not answer.strip():
        raise Reject("an answer mark without an answer")
    for step, label in closed(body, answer if mark else None, rating(completion.get("rating"))):
        before = (*before, step)
        if label is not None or before not in nodes:  # unknown never hides what somebody said
            nodes[before] = label
    return before
