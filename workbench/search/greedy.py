"""Greedy: the most likely token every time; one chain, no verifier."""

from . import Grow


def greedy(root):
    """One chain at temperature 0."""
    [leaf] = (yield Grow([root], to_end=True, score=False, temperature=0.0)) or [root]
    return leaf.trace.answer
