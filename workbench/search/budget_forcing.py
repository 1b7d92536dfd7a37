"""Budget forcing: think for as long as you are told to (Muennighoff et al. 2025, "s1", arXiv 2501.19393)."""

from ..types import Node, Step, WorkbenchError
from . import Grow


def budget_forcing(root, *, cap: int | None = None, extend: int = 0, marker: str = "Wait"):
    """One chain. At `cap` tokens it is made to answer; where it would have answered earlier, `extend` times it is not.

    Cap: the step that the limit cut is dropped and the tags that end the reasoning are written, so the policy answers
    with what it has; without a cap the run's own limit counts, and then leaves little room for it. Extend: `marker`
    stands where the answer stood, and the policy goes on. The last answer counts. No verifier.
    """
    if extend < 0 or (cap is not None and cap < 1):
        raise WorkbenchError(f"cap={cap}, extend={extend}: a cap is 1 token or more, extend 0 or more")
    [leaf], answer = (yield Grow([root], to_end=True, score=False, tokens=cap)) or [root], None
    for _ in range(extend):
        if leaf.stop != "answer":
            break
        answer = leaf.trace.answer
        going_on = Node((*leaf.path[:-1], leaf.path[-1] + 1), (*leaf.steps[:-1], Step(marker)))
        more = yield Grow([going_on], to_end=True, score=False, tokens=cap)
        if not more:
            return answer
        [leaf] = more
    if leaf.stop in ("length", "cut"):
        before = Node(leaf.path[:-1], leaf.steps[:-1])
        [leaf] = (yield Grow([before], close=True, score=False, first=leaf.path[-1] + 1)) or [leaf]
    return leaf.trace.answer or answer
