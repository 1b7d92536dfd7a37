"""Adaptive consistency: stop sampling when the vote is settled (Aggarwal et al. 2023, arXiv 2305.11860)."""

import math
from collections import Counter

from ..grading import canonical
from ..select import majority
from ..types import WorkbenchError
from . import Grow


def adaptive(root, *, n: int = 16, batch: int = 4, confidence: float = 0.95):
    """Majority vote, `batch` chains at a time and `n` at most, until the leader leads with this confidence.

    Confidence is the posterior probability that the leading answer is likelier than the second, their votes alone
    considered and a flat prior: the paper's Beta criterion. No verifier.
    """
    if n < 1 or batch < 1 or not 0.5 <= confidence <= 1:
        raise WorkbenchError(f"n={n}, batch={batch}, confidence={confidence}: at least 1, at least 1, and 0.5 to 1")
    leaves = []
    while len(leaves) < n:
        more = yield Grow([root], min(batch, n - len(leaves)), first=len(leaves), to_end=True, score=False)
        leaves = leaves + more
        votes = Counter(canonical(leaf.trace.answer) for leaf in leaves if leaf.trace.answer is not None)
        if not more or settled(*[count for _, count in votes.most_common(2)]) >= confidence:
            break
    return majority([leaf.trace for leaf in leaves])


def settled(first: int = 0, second: int = 0) -> float:
    """P(p > 1/2) under Beta(first + 1, second + 1), as a sum of binomials.

    >>> settled(0, 0), settled(4, 0), round(settled(3, 1), 4)
    (0.5, 0.96875, 0.8125)
    """
    tosses = first + second + 1
    return sum(math.comb(tosses, k) for k in range(first + 1)) / 2**tosses
