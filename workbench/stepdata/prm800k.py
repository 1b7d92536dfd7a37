"""PRM800K as OpenAI published it (Lightman et al. 2023): a line a labelled solution, several completions a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..types import Labelled, Step
from . import Reject, closed, merged, problem, rating, several

FIELDS = ("labeler", "question", "label")
ANSWER = "# Answer"


def key(row: dict):
    return row["question"]["problem"], row["question"].get("ground_truth_answer")


def read(rows: list[dict], note: Callable[..., None]) -> Iterator[Labelled]:
    """Rows of one problem -> a chain for every completion that ends there, as `merged` has it.

    The next step follows the chosen completion. A flagged completion, and quality-control and screening questions, are
    left out, as in the paper. A completion without a rating (a labeller's own, or nobody's) is context.
    """
    asked = rows[0]["question"]
    return merged(problem(asked["problem"], asked.get("ground_truth_answer"), "prm800k"), rows, _rated, note)


def _rated(row: dict, say: Callable[[str], None]) -> Iterator[tuple[tuple[Step, ...], float | None]]:
    if row.get("is_quality_control_question") or row.get("is_initial_screening_question"):
        raise Reject("a quality-control question")
    if row["label"].get("finish_reason") == "bad_problem":
        raise Reject("a bad problem")
    before: tuple[Step, ...] = ()
    for step in several(row["label"]["steps"]):
        human, chosen, after = step.get("human_completion"), step.get("chosen_completion"), None
        given = list(enumerate(several(step["completions"])))
        if chosen is None and human is not None:
            given.append((None, {"text": human["text"] if isinstance(human, dict) else human, "rating": None}))
        for i, completion in given:
            try:
                new = _steps(completion)
            except Reject as why:
                say(str(why))
                continue
            path = before
            for one, label in new:
                path = (*path, one)
                yield path, label
            after = path if i == chosen else after
        if after is None:
            break
        before = after


def _steps(completion: dict) -> list[tuple[Step, float | None]]:
    text = completion["text"]
    if not isinstance(text, str) or not text.strip():
        raise Reject("empty step")
    if completion.get("flagged"):
        raise Reject("a flagged completion")
    body, mark, answer = text.partition(ANSWER)
    if mark and not answer.strip():
        raise Reject("an answer mark without an answer")
    return closed(body, answer if mark else None, rating(completion.get("rating")))
