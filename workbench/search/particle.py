"""Particle filtering over steps (Puri et al. 2025, arXiv 2502.01618)."""

import math
from bisect import bisect_right
from collections import Counter
from itertools import accumulate

from ..select import aggregate_score, weighted
from ..types import WorkbenchError
from . import Grow


def particle(root, *, n: int = 16, aggregate: str = "last", temperature: float = 1.0, rounds: int = 40, rng):
    """`n` particles: each grows one step, then `n` are drawn anew in proportion to odds(score)^(1/temperature).

    Drawing instead of cutting keeps some of what an imperfect verifier dislikes. Drawing is systematic: a particle of
    weight w gets n w copies, rounded up or down by one number of `rng`; copies grow different children. A closed
    particle stays as it is and is drawn like any other; dead ones have no weight, nor have unknown scores beside known
    ones. At the end a vote weighted by score over the closed particles, copies counted: they are the weights.
    """
    if n < 1 or temperature <= 0:
        raise WorkbenchError(f"n={n}, temperature={temperature}: at least one particle, and a temperature above 0")
    pool = yield Grow([root], n)
    for _ in range(rounds):
        living = [node for node in pool if node.stop in (None, "answer")]
        if all(node.finished for node in living):
            break
        counts = resample([aggregate_score(node.trace, aggregate) for node in living], n, temperature, rng.random())
        drawn = [(node, count) for node, count in zip(living, counts, strict=True) if count]
        going = {node.path: count for node, count in drawn if not node.finished}
        children = (yield Grow([node for node in living if node.path in going], list(going.values()))) if going else []
        if going and not children:
            break
        pool = [node for node, count in drawn if node.finished for _ in range(count)] + children
    return weighted([node.trace for node in pool], aggregate)


def resample(scores, n: int, temperature: float, start: float) -> list[int]:
    """How many of `n` copies each gets: systematic resampling from `start` in [0, 1).

    >>> resample([0.5, 0.5], 4, 1.0, 0.3), resample([0.9, 0.1, None], 4, 1.0, 0.0)
    ([2, 2], [4, 0, 0])
    """
    if all(score is None for score in scores):
        odds = [0.0] * len(scores)
    else:  # the log-odds of scores that are rounded to 0 or 1 are bounded
        near = [None if score is None else min(max(score, 1e-6), 1 - 1e-6) for score in scores]
        odds = [-math.inf if p is None else math.log(p / (1 - p)) / temperature for p in near]
    edges = list(accumulate(math.exp(value - max(odds)) for value in odds))
    end = math.nextafter(edges[-1], 0)  # no pointer is rounded past the last particle that has weight
    drawn = Counter(bisect_right(edges, min((start + i) / n * edges[-1], end)) for i in range(n))
    return [drawn[i] for i in range(len(scores))]
