"""Monte-Carlo tree search over steps, with PUCT (Silver et al. 2017; for reasoning steps Feng et al. 2023)."""

import math
from collections import Counter, defaultdict

from ..select import aggregate_score, weighted
from ..types import WorkbenchError
from . import Grow


def mcts(root, *, n: int = 16, width: int = 4, c: float = 1.0, value: str = "verifier", aggregate: str = "min"):
    """`n` simulations: go down by PUCT to a leaf, grow `width` children, value each, and tell all above it.

    PUCT = Q + c P sqrt(N of the parent) / (1 + N). The prior P is 1/width: children are samples of the policy, so what
    is likely is there more often already. `value`: a child's own score ("verifier"), or that of one chain sampled from
    it to the end ("rollout"; one that does not close is worth 0). A closed leaf that is chosen again tells its value
    again and grows nothing. How it finishes: with a weighted vote over all closed chains; if there are none, one chain
    is sampled to its end from the most visited node. Left out: virtual loss, a value mixed of both kinds.
    """
    if value not in ("verifier", "rollout"):
        raise WorkbenchError(f"value={value!r}: how to value a node, 'verifier' or 'rollout'")
    if n < 1 or width < 1:
        raise WorkbenchError(f"n={n}, width={width}: at least one simulation and one child")
    children, visits, total, worth = {}, Counter(), defaultdict(float), {}
    closed = {}

    def puct(node):
        if worth.get(node.path) is None:  # nobody knows what it is worth, or it died
            return -math.inf
        explore = c / width * math.sqrt(visits[node.path[:-1]]) / (1 + visits[node.path])
        return total[node.path] / visits[node.path] + explore

    def tell(path, amount):
        for depth in range(len(path) + 1):
            visits[path[:depth]] += 1
            total[path[:depth]] += amount

    for _ in range(n):
        node = root
        while node.path in children:
            node = max(children[node.path], key=puct)
        if worth.get(node.path, 0.0) is None:
            break  # nothing below is alive
        if node.finished:
            tell(node.path, worth[node.path])
            continue
        grown = yield Grow([node], width)
        if not grown:
            return _vote(closed, aggregate)
        children[node.path], ends = grown, {child.path: child for child in grown}
        if value == "rollout":
            for end in (yield Grow([child for child in grown if not child.finished], to_end=True)):
                ends[end.path[: len(node.path) + 1]] = end
        for child in grown:
            end = ends[child.path]
            score = aggregate_score(end.trace, aggregate)
            if end.stop == "answer":
                closed[end.path] = end
            elif end.stop is not None:
                score = 0.0 if value == "rollout" and not child.finished and score is not None else None
            worth[child.path] = score
            if score is not None:
                tell(child.path, score)
    if not closed:
        node = root
        while node.path in children:
            living = [child for child in children[node.path] if not child.finished]
            if not living:
                break
            node = max(living, key=lambda child: visits[child.path])
        first = width if node.path in children else 0
        closed |= {end.path: end for end in (yield Grow([node], first=first, to_end=True))}
    return _vote(closed, aggregate)


def _vote(closed, aggregate):
    return weighted([node.trace for node in closed.values()], aggregate)
