"""Majority vote (self-consistency, Wang et al. 2022)."""

from ..select import majority as vote
from . import Grow


def majority(root, *, n: int = 16):
    """Sample `n` chains, return the most frequent answer; unfinished chains do not vote."""
    leaves = yield Grow([root], n, to_end=True, score=False)
    return vote([leaf.trace for leaf in leaves])
