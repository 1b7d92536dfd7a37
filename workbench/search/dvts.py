"""Diverse verifier tree search (Beeching et al. 2024, "Scaling test-time compute with open models")."""

from ..select import aggregate_score, weighted
from . import Grow
from .beam import rank, shares


def dvts(root, *, n: int = 16, width: int = 4, aggregate: str = "min", rounds: int = 40):
    """n/width subtrees that never compete, each greedy over its own `width` candidates; a weighted vote at the end.

    The vote is over the closed chains among the last candidates of every subtree: up to `n` chains, but only n/width
    independent ones, since a subtree's candidates differ in their last step alone. A subtree whose candidates all die
    falls back on what it had closed the round before.
    """
    shares(n, width)
    children = yield Grow([root], n)
    trees = [children[at : at + width] for at in range(0, len(children), width)]
    for _ in range(rounds):
        best = {}
        for i, tree in enumerate(trees):
            living = [node for node in tree if node.stop in (None, "answer")]
            first = min(living, key=lambda node: rank(aggregate_score(node.trace, aggregate)), default=None)
            if first is not None and not first.finished:
                best[first.path] = i
        if not best:
            break
        nodes = [node for tree in trees for node in tree if node.path in best]
        children = yield Grow(nodes, width)
        if not children:
            break
        for i in {best[node.path[:-1]] for node in children}:
            grown = [node for node in children if best[node.path[:-1]] == i]
            dead = all(node.stop in ("length", "cut") for node in grown)
            trees[i] = [node for node in trees[i] if node.finished] if dead else grown
    return weighted([node.trace for tree in trees for node in tree if node.finished], aggregate)
