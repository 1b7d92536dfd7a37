"""Best of n: the chain that the verifier likes best."""

from ..select import best
from . import Grow


def best_of_n(root, *, n: int = 16, aggregate: str = "min"):
    """Sample `n` chains, return the answer of the one with the highest aggregated step score."""
    leaves = yield Grow([root], n, to_end=True)
    return best([leaf.trace for leaf in leaves], aggregate)
