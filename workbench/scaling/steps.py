"""Step scores against step labels: ranking, the first error, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..types import WorkbenchError
from .stats import Estimate, column, estimate, some


def step_auc(scores: Sequence[float], labels: Sequence[int]) -> float:
    """Chance that a right step scores above a wrong one, ties counting half (the Mann–Whitney statistic).

    `labels`: 1 right, 0 wrong, one a score; drop masked steps first. Errors: lengths that differ, a label other than
    0/1 (−100 is not True), a missing score, steps of one kind only.

    >>> step_auc([0.9, 0.8, 0.3, 0.8], [1, 1, 0, 0])
    0.875
    """
    scores, labels = _scored(scores, labels)
    right = int(labels.sum())
    wrong = len(labels) - right
    if not right or not wrong:
        raise WorkbenchError(f"an AUC needs right and wrong steps, found {right} right and {wrong} wrong")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # ties share their mean rank
    return float((ranks[labels == 1].sum() - right * (right + 1) / 2) / (right * wrong))


def first_error_f1(
    scores, labels, threshold: float, *, problems: Sequence[str] | None = None, seed: int = 0
) -> Estimate:
    """ProcessBench F1: harmonic mean of `first_error_rates`, with an interval over problems (2412.06559).

    `problems`: the problem of each trace, so that traces of one problem are resampled together; by default every trace
    is its own. Draws without an erroneous (or without a correct) trace have no F1 and are left out of the interval.

    >>> first_error_f1([[0.9, 0.2, 0.1], [0.8, 0.9], [0.4, 0.9]], [[1, 0, None], [1, 1], [1, 1]], threshold=0.5).value
    0.6666666666666666
    """
    traces = first_error_hits(scores, labels, [threshold])
    problems = range(len(scores)) if problems is None else problems
    if len(problems) != len(scores):
        raise WorkbenchError(f"{len(problems)} problem ids for {len(scores)} traces")
    names, place = np.unique(problems, return_inverse=True)
    rows = np.zeros((len(names), 4))
    np.add.at(rows, place, traces[:, 0])
    return estimate(rows, lambda mean: hit_rates(mean)[2], 1, seed)


def first_error_rates(scores, labels, threshold: float) -> tuple[float, float, float]:
    """(share of erroneous traces whose first error is found exactly, share of correct traces passed, F1).

    `scores`, `labels`: one sequence a trace, one entry a step; labels are 1 right and 0 wrong, and whatever follows the
    first 0 is not read (None is fine). The prediction is the first step scored under `threshold`, none if no step is.
    Errors: lengths that differ, missing scores, no erroneous or no correct trace.

    >>> first_error_rates([[0.9, 0.2, 0.1], [0.8, 0.9], [0.4, 0.9]], [[1, 0, None], [1, 1], [1, 1]], threshold=0.5)
    (1.0, 0.5, 0.6666666666666666)
    """
    return tuple(map(float, hit_rates(first_error_hits(scores, labels, [threshold]).sum((0, 1)))))


def best_threshold(scores, labels) -> float:
    """The threshold with the highest first-error F1 on these traces; use it on others (ProcessBench does so).

    Candidates are the scores themselves, thinned to 500 quantiles, and the smallest of equals is returned.

    >>> best_threshold([[0.9, 0.2], [0.6, 0.9]], [[1, 0], [1, 1]])
    0.6
    """
    values = np.unique([score for trace in scores for score in trace if score is not None])
    if len(values) > 500:
        values = np.quantile(values, np.linspace(0, 1, 500))
    return float(values[np.argmax(hit_rates(first_error_hits(scores, labels, values).sum(0))[2])])


def first_error_hits(scores, labels, thresholds: Sequence[float]) -> np.ndarray:
    """[traces, thresholds, 4] of 0/1: first error found, is erroneous, passed, is correct; summed, for `hit_rates`.

    `scores`, `labels`, errors: as `first_error_rates`, for many thresholds at once.

    >>> first_error_hits([[0.9, 0.2], [0.8, 0.9]], [[1, 0], [1, 1]], [0.5, 0.85])[:, :, 0].tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """
    if len(scores) != len(labels) or not len(scores):
        raise WorkbenchError(f"{len(scores)} scored traces and {len(labels)} labelled ones: one each, and at least one")
    wrong, ends, given, told = [], [0], [], []
    for i, (trace, marks) in enumerate(zip(scores, labels, strict=True)):
        if len(trace) != len(marks) or not len(trace):
            raise WorkbenchError(f"trace {i}: {len(trace)} scores and {len(marks)} labels: one each, and at least one")
        marks = list(marks)
        wrong.append(0 in marks)
        end = marks.index(0) + 1 if wrong[-1] else len(marks)  # a later alarm is wrong whatever the scores there
        given.extend(trace[:end])
        told.extend(marks[:end])
        ends.append(len(given))
    wrong, ends = np.array(wrong), np.array(ends)
    if not wrong.any() or wrong.all():
        raise WorkbenchError("first-error F1 needs erroneous and correct traces, found one kind only")
    score = _scored(given, told)[0]
    # the first step under t is the first error if low < t <= high; a correct trace has none under t if t <= high
    last = ends[1:][wrong] - 1
    low = np.full(len(wrong), -np.inf)
    low[wrong] = score[last]
    score[last] = np.inf
    high = np.minimum.reduceat(score, ends[:-1])
    hit, wrong = (low[:, None] < thresholds) & (thresholds <= high[:, None]), wrong[:, None]
    return np.stack(np.broadcast_arrays(hit & wrong, wrong, hit & ~wrong, ~wrong), axis=-1).astype(float)


def hit_rates(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(found, passed, F1) of `first_error_hits` [..., 4] summed or averaged over traces; NaN where a kind is absent.

    >>> [float(x) for x in hit_rates(np.array([1.0, 2.0, 1.0, 1.0]))]
    [0.5, 1.0, 0.6666666666666666]
    """
    with np.errstate(all="ignore"):
        found, passed = sums[..., 0] / sums[..., 1], sums[..., 2] / sums[..., 3]
        both = found + passed
        return found, passed, np.where(both == 0, 0.0, 2 * found * passed / both)


@dataclass(frozen=True)
class Bin:
    """Steps with scores in [low, high): their mean score, the share that is right, how many. None if there are none."""

    low: float
    high: float
    score: float | None
    rate: float | None
    count: int


def reliability(scores: Sequence[float], labels: Sequence[int], bins: int = 10) -> list[Bin]:
    """The reliability diagram as data: equal-width bins over 0–1; an empty bin has None, not 0.

    Errors: as `step_auc`, and a score outside 0–1.

    >>> [(b.score, b.rate, b.count) for b in reliability([0.2, 0.4, 0.9], [0, 1, 1], bins=2)]
    [(0.30000000000000004, 0.5, 2), (0.9, 1.0, 1)]
    """
    scores, labels = _scored(scores, labels)
    if scores.min() < 0 or scores.max() > 1:
        raise WorkbenchError("calibration needs scores in 0-1")
    which = np.minimum((scores * bins).astype(int), bins - 1)  # a score of 1 belongs to the last bin
    out = []
    for j in range(bins):
        inside = which == j
        means = (float(scores[inside].mean()), float(labels[inside].mean())) if inside.any() else (None, None)
        out.append(Bin(j / bins, (j + 1) / bins, *means, int(inside.sum())))
    return out


def ece(scores: Sequence[float], labels: Sequence[int], bins: int = 10) -> float:
    """Expected calibration error: mean over steps of |share right − mean score| of their bin (Guo et al. 2017).

    >>> round(ece([0.2, 0.4, 0.9], [0, 1, 1], bins=2), 3)
    0.167
    """
    return calibration_error(reliability(scores, labels, bins))


def calibration_error(bins: Sequence[Bin]) -> float:
    """`ece` of bins already made. Errors: no bin has a step.

    >>> calibration_error([Bin(0, 0.5, None, None, 0), Bin(0.5, 1, 0.75, 0.5, 4)])
    0.25
    """
    if not (total := sum(b.count for b in bins)):
        raise WorkbenchError("no bin has a step: nothing to calibrate, score some steps first")
    return sum(b.count * abs(b.rate - b.score) for b in bins if b.count) / total


def _scored(scores, labels) -> tuple[np.ndarray, np.ndarray]:
    if len(scores) != len(labels):
        raise WorkbenchError(f"{len(scores)} scores and {len(labels)} labels: one label a score")
    if strange := {label for label in labels if label not in (0, 1)}:
        raise WorkbenchError(f"labels must be 0 or 1, found {some(strange)}: drop masked steps first")
    return column(scores), np.asarray(labels, int)
