"""A policy from a table, with known probabilities: for tests, for teaching, and to check a search exactly."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..format import parse_step, render_step
from ..tasks import digest
from ..types import Node, Problem, Step, WorkbenchError
from . import Sampling, Want

Table = Mapping[tuple[str, ...], Sequence[tuple[str, float]]]


class Scripted:
    """`table`: the texts of the steps so far -> [(next line, probability)]; a line that begins with "=" answers.

    A character or a tag is one token. A chain whose steps are not in the table is cut. FLOPs are 1 a token.
    Probabilities are those at temperature 1; another one sharpens or flattens them, line by line, and top-k and top-p
    filter lines. A chain that is told to close answers with the most likely answer of its table entry, or with "?".

    >>> coin = Scripted({(): [("heads", 0.5), ("tails", 0.5)], ("heads",): [("=1", 1.0)], ("tails",): [("=0", 1.0)]})
    >>> p = Problem("coin/0", "arithmetic", "toss", "1")
    >>> [chain[-1].trace.answer for chain in coin.extend([Want(p, Node(), 4, to_end=True)])[0]]
    ['1', '0', '0', '1']
    """

    def __init__(self, table: Table):
        for key, choices in table.items():
            if not math.isclose(sum(p for _, p in choices), 1.0, abs_tol=1e-9):
                raise WorkbenchError(f"the probabilities after {key} add up to {sum(p for _, p in choices)}, not 1")
        self.table = table

    def flops(self, prefix: float, new: float, head: bool = True) -> float:
        return float(new)

    def prompt_tokens(self, problem: Problem, node: Node) -> int:
        return len(problem.prompt) + 3 + sum(len(step.ids) for step in node.steps)

    def extend(self, wants: Sequence[Want], seed: int = 0, sampling: Sampling = Sampling()) -> list[list[list[Node]]]:
        return [
            [self._chain(want, k, seed, sampling) for k in range(want.first, want.first + want.n)] for want in wants
        ]

    def _chain(self, want: Want, k: int, seed: int, sampling: Sampling) -> list[Node]:
        node, path, chain = want.node, (*want.node.path, k), []
        while not node.finished and (want.to_end or not chain):
            node = self._child(node, path, want, seed, sampling)
            chain.append(node)
            path = (*path, 0)
        return chain

    def _child(self, node: Node, path: tuple[int, ...], want: Want, seed: int, sampling: Sampling) -> Node:
        problem, choices = want.problem, self.table.get(tuple(step.text for step in node.steps))
        if want.close and node == want.node:
            answers = [choice for choice in choices or () if choice[0].startswith("=")]
            choices = [(max(answers, key=lambda choice: choice[1])[0] if answers else "=?", 1.0)]
        if not choices:
            return Node(path, (*node.steps, Step("", ids=(0,), logprobs=(0.0,))), "cut")
        point = digest("scripted", seed, problem.id, *path) / 2**64
        if sampling.temperature == 0:
            chosen = max(choices, key=lambda choice: choice[1])
        else:
            choices = _filtered([(line, p ** (1 / sampling.temperature)) for line, p in choices], sampling)
            chosen = choices[-1]
            for choice in choices:
                if point < choice[1]:
                    chosen = choice
                    break
                point -= choice[1]
        text = render_step(Step(chosen[0].removeprefix("="), final=chosen[0].startswith("=")))
        step, stop = parse_step(text)
        tokens = re.findall(r"</?[a-z]+>|.", text, re.DOTALL)
        left = max(1, sampling.chain_tokens - sum(len(s.ids) for s in node.steps))
        ids = tuple(digest(token) % 2**31 for token in tokens)[: min(sampling.step_tokens, left)]
        if len(ids) < len(tokens) or (stop is None and len(ids) == left):
            stop = "length"
        logprobs = (math.log(chosen[1]), *[0.0] * (len(ids) - 1))
        return Node(path, (*node.steps, replace(step, ids=ids, logprobs=logprobs)), stop)


def _filtered(choices: Sequence[tuple[str, float]], sampling: Sampling) -> list[tuple[str, float]]:
    """Top-k, then top-p, then probabilities that add up to 1; the order stays."""
    kept = sorted(choices, key=lambda choice: -choice[1])[: sampling.top_k or None]
    total, room = sum(p for _, p in kept), sampling.top_p
    while room < 1 and len(kept) > 1 and sum(p for _, p in kept[:-1]) >= room * total:
        kept.pop()
    total = sum(p for _, p in kept)
    return [(line, p / total) for line, p in choices if (line, p) in kept]
