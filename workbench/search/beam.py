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
    return (yield from guided(root, n, width, aggregate, rounds))


def guided(root, n, width, aggregate, rounds, value=None):
    """The beam, with its nodes valued by their own scores, or by `value(nodes)`, a generator of requests that returns
    path -> score, or None once the budget is spent (see `lookahead`)."""
    beams = shares(n, width)
    pool = yield Grow([root], n)
    for _ in range(rounds):
        living = [node for node in pool if node.stop in (None, "answer")]
        scores = (yield from value(living)) if value else {n.path: aggregate_score(n.trace, aggregate) for n in living}
        if scores is None:
            break
        kept = sorted(living, key=lambda node: rank(scores[node.path]))[:beams]
        if all(node.finished for node in kept):
            break
        children = yield Grow([node for node in kept if not node.finished], width)
        if not children:
            break
        pool = [node for node in kept if node.finished] + children
    return weighted([node.trace for node in pool if node.finished], aggregate)


def shares(n: int, width: int) -> int:
    """How many beams of `width` make `n`."""
    if n < 1 or width < 1 or n % width:
        raise WorkbenchError(f"n={n} and width={width}: width must divide n, as in n=16, width=4")
    return n // width


def rank(score: float | None) -> tuple[int, float]:
    """A key to sort by: best first, an unknown score last."""
    return (1, 0.0) if score is None else (0, -score)
