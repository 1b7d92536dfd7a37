"""PRM-weighted vote (best-of-n weighted, Li et al. 2022; Snell et al. 2024)."""

from ..select import weighted
from . import Grow


def weighted_vote(root, *, n: int = 16, aggregate: str = "min"):
    """Sample `n` chains, add up the scores of equal answers, return the answer with the largest sum."""
    leaves = yield Grow([root], n, to_end=True)
    return weighted([leaf.trace for leaf in leaves], aggregate)
