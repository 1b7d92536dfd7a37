"""Sequential revisions, with the answer chosen over the whole row of attempts (Snell et al. 2024, section 6)."""

from ..select import weighted
from ..types import Node, Step, WorkbenchError
from . import Grow


def revisions(root, *, n: int = 4, aggregate: str = "min", context: bool = False, marker: str = "wait"):
    """`n` attempts in a row, each a revision of the one before; a vote weighted by score over all of them.

    The vote is over all attempts since a revision often turns a right answer wrong (38 % in the paper). Without
    `context`, for any policy: the last attempt is cut before its worst step and written anew from there. With it, for
    a policy that has learnt to go on from its mistakes: the attempt stays in the chain, a `marker` line stands where
    its answer stood, and the policy goes on; then aggregate="last" is what fits. Left out: attempts in parallel.
    """
    if n < 1:
        raise WorkbenchError(f"n={n}: at least one attempt")
    attempts = yield Grow([root], to_end=True)
    for t in range(1, n):
        if not attempts:
            break
        last = attempts[-1]
        if context:
            # The marker is the next child of what the answer was a child of.
            start, first = Node((*last.path[:-1], last.path[-1] + 1), (*last.steps[:-1], Step(marker))), 0
        else:
            known = [(score, i) for i, score in enumerate(last.trace.scores) if score is not None]
            worst = min(known)[1] if known else 0
            start, first = Node(last.path[:worst], last.steps[:worst]), t
        revised = yield Grow([start], first=first, to_end=True)
        if not revised:
            break
        attempts = attempts + revised
    return weighted([attempt.trace for attempt in attempts], aggregate)
