"""Lookahead search: a beam whose steps are valued by where they lead (Snell et al. 2024, section 5.2)."""

from functools import partial

from ..select import aggregate_score
from ..types import WorkbenchError
from . import Grow
from .beam import guided


def lookahead(root, *, n: int = 16, width: int = 4, k: int = 1, aggregate: str = "min", rounds: int = 40):
    """Beam search; a candidate's value is the score at the *end* of `k` more steps, rolled out at temperature 0.

    Each round so costs about n(k + 1) steps instead of n; the rollouts are in the tree and on the bill like all else.
    A rollout that dies values its candidate as unknown. k = 0 is `beam`.
    """
    if k < 0:
        raise WorkbenchError(f"k={k}: how many steps to look ahead, 0 or more")
    return (yield from guided(root, n, width, aggregate, rounds, partial(ahead, k, width, aggregate) if k else None))


def ahead(k, width, aggregate, nodes):
    """Path of a candidate -> score at the end of its rollout; closed ones keep their own. None: the budget is spent."""
    ends = {node.path: node for node in nodes}
    for depth in range(k):
        going = {path: node for path, node in ends.items() if not node.finished}
        if not going:
            break
        # Numbered behind the candidate's sampled children, of which there will be `width`.
        grown = yield Grow(list(going.values()), first=0 if depth else width, temperature=0.0)
        if not grown:
            return None
        parents = {node.path: path for path, node in going.items()}
        ends |= {parents[node.path[:-1]]: node for node in grown}
    dead = ("length", "cut")
    return {path: None if node.stop in dead else aggregate_score(node.trace, aggregate) for path, node in ends.items()}
