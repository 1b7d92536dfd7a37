"""PRM beam search over steps, as Snell et al. 2024 define it (section 5.2)."""

from ..select import aggregate_score, weighted
from ..types import WorkbenchError
from . import Grow


def beam(root, *, n: int = 16, width: int = 4, aggregate: str = "min", rounds: int = 40):
    """Sample `n` first steps; keep the best n/width; grow `width` children from each; repeat.

    Chains that close stay in the beam at their score, so an early finish wins nothing and is not copied; chains that
    ended without an answer leave it, and an unknown score ranks last. After at most `rounds` rounds a vote weighted by
    score is held over the closed chains of the last beam. Errors: a width that does not divide n.
    """
    if n < 1 or width < 1 or n % width:
        raise WorkbenchError(f"beam of n={n} and width={width}: width must divide n, as in n=16, width=4")

    def rank(node):
        score = aggregate_score(node.trace, aggregate)
        return (1, 0.0) if score is None else (0, -score)

    pool = yield Grow([root], n)
    for _ in range(rounds):
        kept = sorted((node for node in pool if node.stop in (None, "answer")), key=rank)[: max(1, n // width)]
        if all(node.finished for node in kept):
            break
        children = yield Grow([node for node in kept if not node.finished], width)
        pool = [node for node in kept if node.finished] + children
    return weighted([node.trace for node in pool if node.finished], aggregate)
