"""Sampling: one chain at the run's temperature; its accuracy is pass@1."""

from . import Grow


def sampling(root):
    """One sampled chain; the same chain as the first of every other search with this seed."""
    leaves = yield Grow([root], to_end=True, score=False)
    return leaves[0].trace.answer if leaves else None
