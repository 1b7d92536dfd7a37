"""MATH-APS, made by OmegaPRM (2406.06592): the share of right rollouts after each prefix, as a tree or as prefixes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from ..types import Labelled, Step
from . import Reject, bounded, chains, one_line, problem, several

FIELDS = ("question", "final_answer", "reasoning_steps")


def read(rows: list[dict], note: Callable[..., None]) -> Iterator[Labelled]:
    """One row -> the chains of its tree, with soft labels."""
    for row in rows:
        answer = row["final_answer"]
        number = isinstance(answer, int | float) and not isinstance(answer, bool)
        known = problem(row["question"], str(answer) if number else answer, "omegaprm")
        given = row["reasoning_steps"]
        tree = isinstance(given, dict)
        nodes = dict(bounded(_tree(given))) if tree else _prefixes(row["question"], several(given))
        if not nodes:
            raise Reject("no steps")
        yield from chains(known, nodes)


def _tree(root: dict) -> Iterator[tuple[tuple[Step, ...], float | None]]:
    todo = [((), child) for child in reversed(several(root.get("children")))]
    while todo:  # not by recursion: a tree may be as deep as it likes
        before, node = todo.pop()
        path = (*before, Step(one_line(node["text"])))
        yield path, _value(node)
        todo += [(path, child) for child in reversed(several(node.get("children")))]


def _prefixes(question: str, given: list[dict]) -> dict[tuple[Step, ...], float | None]:
    """Each prefix is the text so far; it goes on from the longest earlier prefix that it begins with, and that ends
    where a step does: `x = 12` does not go on from `x = 1`. What follows the question tells how steps are parted."""
    lines = any(entry["solution_prefix"].startswith(question + "\n") for entry in given)
    border = re.compile(r"(?<=\n)| *\n" if lines else r"(?<=\s)|\s")
    known: dict[str, tuple[Step, ...]] = {question: ()}
    nodes: dict[tuple[Step, ...], float | None] = {}
    for entry in given:
        text = entry["solution_prefix"]
        if text in known:
            continue  # the question itself, or a prefix twice
        ended = (p for p in known if text.startswith(p) and (p == question or border.match(text, len(p))))
        above = max(ended, key=len, default=None)
        if above is None:
            raise Reject("a prefix that does not begin with the question")
        known[text] = path = (*known[above], Step(one_line(text[len(above) :])))
        nodes[path] = _value(entry)
    return nodes


def _value(entry: dict) -> float | None:
    value = entry.get("mc_value")
    if value is None or value != value:  # nobody rolled out from there
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Reject("no rating")
    return float(value)
