"""Best-of-n for easy problems, beam search for hard ones: compute-optimal search (Snell et al. 2024, section 5.3)."""

from functools import partial

from ..select import aggregate_score, weighted
from ..types import WorkbenchError
from . import Grow
from .beam import beam, shares
from .weighted_vote import weighted_vote


def hybrid(
    root, *, n: int = 16, width: int = 4, probe: int = 4, threshold: float = 0.5, aggregate: str = "min", choose=None
):
    """Sample `probe` chains, measure how hard the problem is, and go on with the search that suits it.

    Difficulty is 1 - the mean score of the probe chains, an unclosed one counting 0: Snell's predicted difficulty,
    which sees no gold answer. Below `threshold` a weighted vote of `n` goes on (the probe chains are its first), else
    a beam. `choose(difficulty) -> search(root)` puts any other rule in its place, such as one fitted to records.
    """
    if not 1 <= probe <= n:
        raise WorkbenchError(f"probe={probe} of n={n}: the probe is a part of the n chains, at least 1")
    if choose is None:
        shares(n, width)  # said now, not at the first problem that turns out hard
    leaves = yield Grow([root], probe, to_end=True)
    if not leaves:
        return None
    scores = [aggregate_score(leaf.trace, aggregate) if leaf.stop == "answer" else 0.0 for leaf in leaves]
    known = [score for score in scores if score is not None]
    difficulty = 1 - sum(known) / len(known) if known else 1.0
    easy = partial(weighted_vote, n=n, aggregate=aggregate)
    hard = partial(beam, n=n, width=width, aggregate=aggregate)
    search = choose(difficulty) if choose else easy if difficulty < threshold else hard
    answer = yield from search(root)
    return answer if answer is not None else weighted([leaf.trace for leaf in leaves], aggregate)
