"""The search tree as data: one JSON line a node, written while a search runs and read back without torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from .grading import canonical
from .search import Result
from .types import Node, Step, Stop, WorkbenchError


@dataclass(frozen=True)
class Branch:
    """One node of one tree. Log-prob in nats, None where the policy gave none; `sampled` (tokens) and `flops` are what
    the whole search had cost when the node stood; `visits`: how often it, or a node below it, was grown; `fate`:
    whether it was kept, and why.

    >>> Branch("p/1", 0, (0,), "5", True, (1,), -0.5, 0.9, "answer", 1, 0, 1, 10.0, "answered: chosen").node.stop
    'answer'
    """

    problem: str
    seed: int
    path: tuple[int, ...]
    text: str
    final: bool
    ids: tuple[int, ...]
    logprob: float | None
    score: float | None
    stop: Stop | None
    round: int
    visits: int
    sampled: int
    flops: float
    fate: str

    @property
    def node(self) -> Node:
        """The node's last step alone; `nodes` puts whole trees together."""
        return Node(self.path, (Step(self.text, self.final, self.ids, (), self.score),), self.stop)


def branches(result: Result, seed: int = 0) -> Iterator[Branch]:
    """The tree of one search result, in the order in which it grew.

    >>> from workbench.policies.scripted import Scripted
    >>> from workbench.search import drive
    >>> from workbench.types import Problem
    >>> [result] = drive([Problem("p/1", "arithmetic", "2+3", "5")], "majority", Scripted({(): [("=5", 1.0)]}), n=2)
    >>> [branch.fate for branch in branches(result)]
    ['answered: chosen', 'answered: chosen']
    """
    won = None if result.answer is None else canonical(result.answer)
    for path, twig in result.tree.items():
        step = twig.node.steps[-1]
        yield Branch(
            result.problem.id,
            seed,
            path,
            step.text,
            step.final,
            step.ids,
            sum(step.logprobs) if step.logprobs else None,
            step.score,
            twig.node.stop,
            twig.round,
            twig.visits,
            twig.sampled,
            twig.flops,
            _fate(result, twig, won),
        )


def _fate(result: Result, twig, won) -> str:
    node = twig.node
    if node.stop == "answer":
        return "answered: chosen" if won is not None and canonical(node.trace.answer) == won else "answered: not chosen"
    if node.stop is not None:
        return "dead: out of tokens" if node.stop == "length" else "dead: malformed"
    if twig.visits or node.path + (0,) in result.tree:
        return "kept: grown"
    if twig.round >= len(result.rounds):
        return "pruned: the budget was spent" if result.stop == "budget" else "pruned: the search ended"
    grown = [other for other in result.rounds[twig.round].nodes if other.path]
    scores = [other.score for other in grown if other.score is not None]
    least = f", the least of them with {min(scores):.3f}" if scores else ""
    own = "unknown" if node.score is None else f"{node.score:.3f}"
    return f"pruned: scored {own}; round {twig.round + 1} grew {len(grown)} other{'s' * (len(grown) != 1)}{least}"


def lines(result: Result, seed: int = 0) -> Iterator[str]:
    """JSON, a line a node, for `Run.append` or a file."""
    return (json.dumps(asdict(branch)) for branch in branches(result, seed))


def load(path: str | Path) -> list[Branch]:
    """Every branch in a file of such lines; a damaged line is an error with its number."""
    out = []
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            out.append(Branch(**{**row, "path": tuple(row["path"]), "ids": tuple(row["ids"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise WorkbenchError(
                f"{path}, line {number}, is no node of a tree ({error}): write the file again"
            ) from error
    return out


def nodes(tree: Iterable[Branch]) -> list[Node]:
    """The nodes of one problem's tree, whole chains of steps again, as figures want them."""
    found: dict[tuple[int, ...], tuple[Step, ...]] = {(): ()}
    out = []
    for branch in sorted(tree, key=lambda branch: len(branch.path)):
        if branch.path[:-1] not in found:
            raise WorkbenchError(f"{branch.problem}: node {branch.path} has no parent: these are not whole trees")
        if branch.path in found:
            raise WorkbenchError(f"{branch.problem}: node {branch.path} is there twice: give one tree at a time")
        found[branch.path] = (*found[branch.path[:-1]], *branch.node.steps)
        out.append(Node(branch.path, found[branch.path], branch.stop))
    return out
