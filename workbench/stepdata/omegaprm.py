"""MATH-APS, made by OmegaPRM (2406.06592): the share of right rollouts after each prefix, as a tree or as prefixes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..types import Labelled, Step
from . import Reject, bounded, chains, one_line, problem, several

FIELDS = ("question", "final_answer", "reasoning_steps")


def read(rows: list[dict], note: Callable[..., None]) -> Iterator[Labelled]:
    """One row -> the chains of its tree, with soft labels."""
    for row in rows:
        known = problem(row["question"], row["final_answer"], "omegaprm")
        given = row["reasoning_steps"]
        tree = isinstance(given, dict)
        nodes = dict(bounded(_tree(given))) if tree else _prefixes(row["question"], several(given))
        if not nodes:
            raise Reject("no steps")
        yield from chains(known, nodes)


def _tree(root: dict) -> Iterator[tuple[tuple[Step, ...], float]]:
    todo = [((), child) for child in reversed(several(root["children"]))]
    while todo:  # not by recursion: a tree may be as deep as it likes
        before, node = todo.pop()
        path = (*before, Step(one_line(node["text"])))
        yield path, _value(node)
        todo += [(path, child) for child in reversed(several(node["children"]))]


def _prefixes(question: str, given: list[dict]) -> dict[tuple[Step, ...], float]:
    """Each prefix is the text so far; it goes on from the longest earlier prefix that it begins with."""
    known: dict[str, tuple[Step, ...]] = {question: ()}
    nodes: dict[tuple[Step, ...], float] = {}
    for entry in given:
        text = entry["solution_prefix"]
        if text in known:
            continue  # the question itself, or a prefix twice
        above = max((prefix for prefix in known if text.startswith(prefix)), key=len, default=None)
        if above is None:
            raise Reject("a prefix that does not begin with the question")
        known[text] = path = (*known[above], Step(one_line(text[len(above) :])))
        nodes[path] = _value(entry)
    return nodes


def _value(entry: dict) -> float:
    value = entry["mc_value"]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Reject("no rating")
    return float(value)
