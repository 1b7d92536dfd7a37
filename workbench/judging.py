"""How good is a process verifier? Ranking of steps, first errors, calibration, bias by depth, choice among N.

Best-of-N alone does not tell: a judge that finds no error may choose well, and one that likes short steps may look as
if it could read. So every number stands beside what scorers reach that read nothing, and is compared pair by pair.

A label is read as in `labels`: a step is wrong if its label is 0 or below `cut`. None, label or score, is unknown: it
is left out and counted. A step that chains of one problem share, beginning and all, is one step; its label and its
score are the first that are known. Problems are the unit of evidence: intervals resample them whole. What a single
kind of step cannot define is None, with the reason in `notes`. No torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, compress
from typing import NamedTuple

import numpy as np

from . import scaling, tasks
from .scaling import Bin, Estimate, bootstrap, hit_rates, paired_bootstrap
from .types import Labelled, WorkbenchError, aligned

Scores = Sequence[Sequence[float | None]]

NO_ERROR, LENGTH, POLICY = 'always "no error"', "length only", "policy log-prob"
DRAWS = 2_000  # resamples of all steps at once; the ends of an interval then wobble by about 1.5 % of its width
GROUPS = 1_000  # in a resample scores count by these ranks, which moves an AUC by less than 1/1000 of itself
SUBSETS = 400  # draws of N among more responses than can be gone through one by one
RIDGE = 1e-4  # keeps the length baseline finite where length tells everything
ROWS = 12  # of the depth table in a text; `to_json` has all
SHARES = 5  # relative depth is told by fifths of the chain


@dataclass(frozen=True)
class Judged:
    """What one way to score steps reached. `auc`, `brier`, `ece`, `bias` count `steps`; the first-error ones `chains`.

    `auc`: chance that a right step scores above a wrong one. `located`: share of the chains with an error whose first
    error is the first step scored under `threshold`; `passed`: share of the others in which none is; `f1`: their
    harmonic mean. An unlabelled step before a wrong closing answer belongs to that error, for nobody said which of the
    two is wrong: a first step under `threshold` on either has found it. `brier`: mean squared miss; `bias`: mean score
    minus share right; `ece` has no interval, for resampling adds noise and so error. `auc_lead`, `f1_lead`: the
    verifier minus this one, on what both scored.
    """

    name: str
    steps: int = 0
    chains: int = 0
    auc: Estimate | None = None
    auc_lead: Estimate | None = None
    f1: Estimate | None = None
    f1_lead: Estimate | None = None
    located: Estimate | None = None
    passed: Estimate | None = None
    threshold: float | None = None
    brier: Estimate | None = None
    bias: Estimate | None = None
    ece: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Depth:
    """Steps at one depth: mean score, share right, and the difference.

    `depth`: 1 is the first step; or a share, up to this part of the longest chain that goes through the step.
    """

    depth: float
    count: int
    score: Estimate | None
    label: Estimate | None
    gap: Estimate | None


@dataclass(frozen=True)
class Selection:
    """Choosing one of `n` responses: accuracy by vote, by score, by both, and if any right one were found (`ceiling`).

    `gap`: ceiling minus best-of-N. `over_majority`: best-of-N minus the vote. `change`: best-of-N minus itself at the
    n before. `reward`: mean score of the response chosen. A falling accuracy with a rising reward is over-optimisation.
    """

    n: int
    majority: Estimate
    best_of_n: Estimate
    weighted_vote: Estimate
    ceiling: Estimate
    gap: Estimate
    over_majority: Estimate
    change: Estimate | None
    reward: Estimate | None


@dataclass(frozen=True)
class Choice:
    """`best_of_n` as data: a row per n, and what it was counted on. `unscored` responses have an answer, no score."""

    rows: tuple[Selection, ...]
    problems: int
    responses: int
    unscored: int
    unfinished: int


@dataclass(frozen=True)
class Report:
    """All of it. `bins` are the verifier's reliability, `depths` its steps by index, `relative` by share of the chain.

    `counts`, of the items: problems, chains; steps (distinct, labelled), of them right, wrong, and unscored by the
    verifier; unlabelled (distinct); repeated (shared, so not counted again); contradicted (repeated with the other
    label); erroneous and correct chains; unknown (chains that F1 cannot use, for an unlabelled step before any error).
    """

    verifier: Judged
    baselines: tuple[Judged, ...]
    bins: tuple[Bin, ...]
    depths: tuple[Depth, ...]
    relative: tuple[Depth, ...]
    choice: Choice | None
    counts: dict[str, int]
    tuning: dict[str, int]
    cut: float


def report(
    items: Sequence[Labelled],
    scores: Scores,
    tuning_items: Sequence[Labelled],
    tuning_scores: Scores,
    baselines: Mapping[str, tuple[Scores, Scores]] | None = None,
    responses: Mapping[str, Sequence[Response]] | None = None,
    *,
    name: str = "verifier",
    uncalibrated: str = "",
    cut: float = 0.5,
    seed: int = 0,
) -> Report:
    """Judge the `scores` of a verifier, one a step of every item, by their labels.

    The tuning set fixes thresholds (ProcessBench, 2412.06559) and the length baseline; it may share no question with
    the items, whatever a data set calls it (`tasks.mark`). Intervals take both as given. Three baselines stand beside
    the verifier: one that never finds an error, one that sees the index and the characters of a step (a logistic
    regression on the tuning set), and the policy's own probability, which is given in `baselines` (see `policy_scores`)
    or reported as absent. `baselines`: name -> (scores, tuning scores) of any other scorer, higher for a step more
    likely right. `responses`: as `best_of_n`. `uncalibrated`: why the verifier's scores are no probabilities of being
    right, where they are none though they lie in 0-1; there is no calibration then.

    Label steps up to the first error only if what follows means nothing. Calibration is to the reading of the labels,
    not to soft labels. A chain that occurs twice counts twice in F1, as a sample does. Errors: a problem in both sets,
    one score a step not given, a score that is no number. Left out: AUC within a chain.

    >>> from workbench.types import Problem, Step, Trace
    >>> def chain(name, labels):
    ...     return Labelled(Problem(name, "arithmetic", "?", "5"), Trace((Step("2+3=5"), Step("5", True))), labels)
    >>> items, tuning = [chain("a", (1, 0)), chain("b", (1, 1))], [chain("c", (1, 0)), chain("d", (1, 1))]
    >>> found = report(items, [(0.9, 0.2), (0.8, 0.7)], tuning, [(0.9, 0.3), (0.9, 0.6)])
    >>> found.verifier.auc.value, found.verifier.f1.value, found.verifier.threshold
    (1.0, 1.0, 0.6)
    >>> [(b.name, b.auc and b.auc.value) for b in found.baselines]
    [('always "no error"', 0.5), ('length only', 0.8333333333333334), ('policy log-prob', None)]
    """
    baselines = dict(baselines or {})
    if taken := ({name, NO_ERROR, LENGTH} & baselines.keys()) | ({name} & {NO_ERROR, LENGTH, POLICY}):
        raise WorkbenchError(f"{min(taken)!r} is the name of another scorer already: choose a name of its own")
    refuse_shared(items, tuning_items)
    test = _Steps(items, {name: scores} | {other: pair[0] for other, pair in baselines.items()}, cut)
    tuning = _Steps(tuning_items, {name: tuning_scores} | {other: pair[1] for other, pair in baselines.items()}, cut)
    for steps in (test, tuning):
        steps.scores[NO_ERROR] = np.ones(len(steps.label))
    fitted = _fit_length(tuning)
    if fitted is not None:
        test.scores[LENGTH], tuning.scores[LENGTH] = fitted(test), fitted(tuning)

    draws = _Draws(len(test.problems), seed)
    errors = {scorer: _first_errors(scorer, test, tuning) for scorer in test.scores}
    judged: dict[str, Judged] = {}
    for scorer in (name, NO_ERROR, LENGTH, POLICY, *(other for other in baselines if other != POLICY)):
        if scorer in test.scores:
            mine = scorer == name
            judged[scorer] = _judge(scorer, test, errors, draws, None if mine else name, uncalibrated if mine else "")
        else:
            why = "absent: not given" if scorer == POLICY else "absent: the tuning set lacks right or wrong steps"
            judged[scorer] = Judged(scorer, notes=(why,))
    verifier = judged.pop(name)
    seen = test.labelled(name)
    unscored = int((~np.isnan(test.label)).sum() - len(seen))
    return Report(
        verifier,
        tuple(judged.values()),
        tuple(scaling.reliability(test.scores[name][seen], test.label[seen])) if verifier.ece is not None else (),
        tuple(_by_depth(test, name, draws, test.depth, {d: float(d) for d in np.unique(test.depth[seen]).tolist()})),
        tuple(_by_depth(test, name, draws, test.share, {b: (b + 1) / SHARES for b in range(SHARES)})),
        None if responses is None else best_of_n(responses, seed=seed),
        test.counts | {"unscored": unscored},
        tuning.counts,
        cut,
    )


def refuse_shared(items: Sequence[Labelled], tuning_items: Sequence[Labelled]) -> None:
    """Errors: a question that is in both."""
    asked = {tasks.mark(item.problem) for item in tuning_items}
    if both := {item.problem.id for item in items if tasks.mark(item.problem) in asked}:
        raise WorkbenchError(
            f"{len(both)} problems are in the tuning set and in the test set ({min(both)}): a threshold is fixed on "
            "problems that are not judged, so take them out of one"
        )


def policy_scores(items: Sequence[Labelled]) -> list[tuple[float | None, ...]]:
    """The policy's own opinion of its steps: the geometric mean of its token probabilities, None without log-probs.

    >>> from workbench.types import Problem, Step, Trace
    >>> steps = Step("2+3=5", logprobs=(0.0, math.log(0.25))), Step("5", True)
    >>> policy_scores([Labelled(Problem("p/1", "arithmetic", "2+3", "5"), Trace(steps), (1, None))])
    [(0.5, None)]
    """
    return [
        tuple(math.exp(math.fsum(s.logprobs) / len(s.logprobs)) if s.logprobs else None for s in item.trace.steps)
        for item in items
    ]


# Choice among N


class Response(NamedTuple):
    """One sampled response: its answer by value (None: it gave none), whether that is right, a verifier's score.

    Of a scored trace, as `select` reads it: `canonical(trace.answer)`, and `aggregate_score(trace, "last")`.
    """

    answer: Hashable | None
    correct: bool
    score: float | None


def best_of_n(responses: Mapping[str, Sequence[Response]], ns: Sequence[int] | None = None, *, seed: int = 0) -> Choice:
    """Accuracy against N of the vote, the highest score, the weighted vote, and the ceiling pass@N; with intervals.

    `responses`: {problem: independent samples in the order they were drawn}. `ns`: default powers of two, and all of
    the problem with the fewest. Each value is the mean over choices of N of a problem's responses: exact for best-of-N
    and the ceiling, and for votes too where there are at most SUBSETS choices (else that many are drawn). As in
    `select`, a response without an answer or a score neither wins nor weighs, nobody chosen is wrong, and ties go to
    what was sampled first: the answer in a vote, the response in best-of-N (`select.best` takes the answer there, too).
    Errors: an n above the fewest responses, a right response without an answer, one not graded.

    >>> found = best_of_n({"a": [Response(5, True, 0.9), Response(6, False, 0.4)],
    ...                    "b": [Response(7, False, 0.8), Response(8, True, 0.1)]})
    >>> [(row.n, row.majority.value, row.best_of_n.value, row.ceiling.value) for row in found.rows]
    [(1, 0.5, 0.5, 0.5), (2, 0.5, 0.5, 1.0)]
    """
    if not responses or not all(responses.values()):
        raise WorkbenchError("best-of-N needs one problem or more, and a response to each: leave out those without any")
    for problem, rows in responses.items():
        for row in rows:
            if row.correct is None or (row.correct and row.answer is None):
                raise WorkbenchError(
                    f"{problem}: {row} is not graded, or right without an answer: grade it, or drop it"
                )
            if row.score is not None and not math.isfinite(row.score):
                raise WorkbenchError(f"{problem}: a score of {row.score}: mend the verifier, or write None for unknown")
    fewest = min(responses, key=lambda problem: len(responses[problem]))
    most = len(responses[fewest])
    ns = sorted({2**i for i in range(most.bit_length())} | {most}) if ns is None else sorted({*ns})
    if not ns or not 1 <= ns[0] <= ns[-1] <= most:
        raise WorkbenchError(f"n={ns} for problems with {most} responses or more ({fewest} has the fewest)")
    out: list[Selection] = []
    before = None
    each = [responses[problem] for problem in sorted(responses)]
    for n in ns:
        ceiling = [scaling.pass_at_k(len(rows), sum(row.correct for row in rows), n) for rows in each]
        best, rewards = zip(*(_highest(rows, n) for rows in each), strict=True)
        majority, weighted = zip(*(_votes(rows, n, (seed, i)) for i, rows in enumerate(each)), strict=True)
        known = [reward for reward in rewards if reward is not None]
        bounds = (-1, 1) if n > 1 else None  # of one response there is no choice: a difference of 0 is no finding
        out.append(
            Selection(
                n,
                *(bootstrap(values, seed=seed) for values in (majority, best, weighted, ceiling)),
                gap=paired_bootstrap(ceiling, best, bounds=bounds, seed=seed),
                over_majority=paired_bootstrap(best, majority, bounds=bounds, seed=seed),
                change=None if before is None else paired_bootstrap(best, before, seed=seed),
                reward=bootstrap(known, bounds=None, seed=seed) if known else None,
            )
        )
        before = best
    rows = [row for many in each for row in many]
    unscored = sum(row.answer is not None and row.score is None for row in rows)
    return Choice(tuple(out), len(responses), len(rows), unscored, sum(row.answer is None for row in rows))


def _highest(rows: Sequence[Response], n: int) -> tuple[float, float | None]:
    """(chance that the best of n is right, mean score of the best of n where there is one), over all choices of n."""
    # a stable sort: the first sampled of equal scores is above the others
    able = sorted((row for row in rows if row.answer is not None and row.score is not None), key=lambda r: -r.score)
    total = math.comb(len(rows), n)
    # the row at `rank` is chosen when the n - 1 others come from those below it, the unable among them
    chances = [math.comb(len(rows) - 1 - rank, n - 1) / total for rank in range(len(able))]
    right = math.fsum(chance for chance, row in zip(chances, able, strict=True) if row.correct)
    chosen = math.fsum(chances)
    reward = math.fsum(chance * row.score for chance, row in zip(chances, able, strict=True))
    return min(right, 1.0), reward / chosen if chosen else None


def _votes(rows: Sequence[Response], n: int, seed: tuple[int, int]) -> tuple[float, float]:
    """(accuracy of the majority, of the weighted vote) over choices of n."""
    size = len(rows)
    if math.comb(size, n) <= SUBSETS:
        picks = np.array(list(combinations(range(size), n)))
    else:
        picks = np.random.default_rng(seed).random((SUBSETS, size)).argsort(1)[:, :n]
    chosen = np.zeros((len(picks), size), bool)
    np.put_along_axis(chosen, picks, True, 1)
    right = np.array([*(row.correct for row in rows), False])  # nobody, after the last, is wrong
    score = np.array([row.score or 0.0 for row in rows])
    voters: dict[Hashable, list[int]] = {row.answer: [] for row in rows}
    for i, row in enumerate(rows):
        voters[row.answer].append(i)
    voters.pop(None, None)
    scored = [[i for i in group if rows[i].score is not None] for group in voters.values()]
    vote = _elected(chosen, list(voters.values()), np.ones(size))
    return float(right[vote].mean()), float(right[_elected(chosen, scored, score)].mean())


def _elected(chosen: np.ndarray, groups: Sequence[list[int]], weight: np.ndarray) -> np.ndarray:
    """For each choice [choices, responses] the first response of its heaviest group; one past the last if none."""
    total = np.full((len(chosen), len(groups) + 1), -np.inf)  # the last column: nobody
    first = np.full(total.shape, chosen.shape[1])
    for g, group in enumerate(map(np.array, filter(None, groups))):
        among = chosen[:, group]
        here = among.any(1)
        total[here, g] = among[here] @ weight[group]
        first[here, g] = group[among[here].argmax(1)]
    return np.where(total == total.max(1, keepdims=True), first, chosen.shape[1]).min(1)


# Reading it


def to_json(found: Report | Choice) -> str:
    """The whole report as one line of JSON; None stays null.

    >>> json.loads(to_json(best_of_n({"a": [Response(5, True, None)]})))["rows"][0]["reward"] is None
    True
    """
    return json.dumps(asdict(found), allow_nan=False)


def as_text(found: Report) -> str:
    """The report as aligned columns for a terminal; what is undefined says so, and why is listed below.

    >>> print(aligned([("", "AUC"), ("verifier", "0.9 [0.8, 1]")]))
              AUC
    verifier  0.9 [0.8, 1]
    """
    c, t = found.counts, found.tuning
    parts = [
        f"{c['problems']} problems, {c['chains']} chains ({c['erroneous']} with an error, {c['correct']} without, "
        f"{c['unknown']} unknown, which F1 cannot use); {c['steps']} steps ({c['right']} right, {c['wrong']} wrong), "
        f"{c['unscored']} of them not scored.\n"
        f"Not counted: {c['unlabelled']} steps without a label, {c['repeated']} repeats of shared steps"
        f" ({c['contradicted']} with the other label). "
        f"Tuning: {t['problems']} problems, {t['steps']} steps.\n"
        "Square brackets: 95 % bootstrap over problems. Lead: the verifier minus this one, paired."
    ]
    judged = (found.verifier, *found.baselines)
    rows = [("", "step AUC", "lead", "first-error F1", "lead", "located", "passed", "threshold")]
    for j in judged:
        own = j is found.verifier
        leads = ["" if own else _cell(lead, "+.3f") for lead in (j.auc_lead, j.f1_lead)]
        rows.append(
            (j.name, _cell(j.auc), leads[0], _cell(j.f1), leads[1])
            + (_cell(j.located), _cell(j.passed), _cell(j.threshold, ".3g"))
        )
    parts.append(aligned(rows))
    rows = [("", "Brier", "ECE", "bias", "steps", "chains")]
    rows += [(j.name, _cell(j.brier), _cell(j.ece), _cell(j.bias, "+.3f"), str(j.steps), str(j.chains)) for j in judged]
    parts.append(aligned(rows))
    for title, depths in (("step", found.depths), ("up to share", found.relative)):
        rows = [(title, "score", "label", "gap", "steps")]
        shown, rest = depths[:ROWS], depths[ROWS:]
        rows += [(f"{d.depth:g}", _cell(d.score), _cell(d.label), _cell(d.gap, "+.3f"), str(d.count)) for d in shown]
        parts.append(
            aligned(rows) + (f"\nand {sum(d.count for d in rest)} steps in {len(rest)} deeper rows" * bool(rest))
        )
    if found.choice:
        rows = [("N", "majority", "best_of_n", "weighted_vote", "ceiling", "gap", "over majority", "change", "reward")]
        for r in found.choice.rows:
            levels = [_cell(e) for e in (r.majority, r.best_of_n, r.weighted_vote, r.ceiling, r.gap)]
            moves = [_cell(r.over_majority, "+.3f"), "" if r.change is None else _cell(r.change, "+.3f")]
            rows.append((str(r.n), *levels, *moves, _cell(r.reward)))
        parts.append(
            aligned(rows) + f"\n{found.choice.problems} problems, {found.choice.responses} responses, "
            f"{found.choice.unscored} not scored, {found.choice.unfinished} without an answer."
        )
    if notes := [f"{j.name}: {note}" for j in judged for note in j.notes]:
        parts.append("\n".join(notes))
    return "\n\n".join(parts)


def _cell(value: Estimate | float | None, form: str = ".3f") -> str:
    if value is None:
        return "undefined"
    if not isinstance(value, Estimate):
        return format(value, form)
    return format(value.value, form) + ("" if value.low is None else f" [{value.low:{form}}, {value.high:{form}}]")


# Parts shared by the above


class _Steps:
    """Chains as arrays over distinct steps; NaN is unknown. `scores`: {scorer: one a step}."""

    def __init__(self, items: Sequence[Labelled], scores: Mapping[str, Scores], cut: float):
        if not items:
            raise WorkbenchError("no labelled chains: nothing to judge by")
        for scorer, rows in scores.items():
            if len(rows) != len(items):
                raise WorkbenchError(f"{scorer}: scores of {len(rows)} chains for {len(items)} labelled ones")
        self.problems = {name: i for i, name in enumerate(dict.fromkeys(item.problem.id for item in items))}
        places: dict[tuple, int] = {}  # (the step before, text, final) -> step; -1 - problem stands before the first
        marks: list[float | None] = []
        known: dict[str, list[float | None]] = {scorer: [] for scorer in scores}
        about, longest, paths, repeated, contradicted = [], [], [], 0, 0
        for i, (problem, trace, labels) in enumerate(items):
            mine = {scorer: rows[i] for scorer, rows in scores.items()}
            length, number = len(trace.steps), self.problems[problem.id]
            for what, row in (("labels", labels), *((f"scores of {scorer}", row) for scorer, row in mine.items())):
                if len(row) != length:
                    raise WorkbenchError(f"{problem.id}: {len(row)} {what} for a chain of {length} steps, not one each")
            at, path = -1 - number, []
            for t, step in enumerate(trace.steps):
                label = _read(labels[t], cut, problem.id, t)
                at = places.setdefault((at, step.text, step.final), len(marks))
                if at == len(marks):
                    marks.append(label)
                    about.append((number, t + 1, len(step.text)))
                    longest.append(length)
                    for scorer, row in mine.items():
                        known[scorer].append(row[t])
                else:
                    repeated += 1
                    longest[at] = max(longest[at], length)
                    marks[at] = label if marks[at] is None else marks[at]
                    contradicted += label is not None and label != marks[at]
                    for scorer, row in mine.items():
                        if known[scorer][at] is None:
                            known[scorer][at] = row[t]
                path.append(at)
            paths.append(path)
        self.problem, self.depth, self.chars = np.array(about, int).reshape(-1, 3).T
        self.share = (self.depth * SHARES - 1) // np.array(longest, int)  # the fifth of its longest chain, from 0
        self.label = np.array(marks, float)
        self.scores = {scorer: np.array(values, float) for scorer, values in known.items()}
        for scorer, values in known.items():
            if bad := [j for j, value in enumerate(values) if value is not None and not math.isfinite(value)]:
                where = list(self.problems)[self.problem[bad[0]]]
                raise WorkbenchError(
                    f"{where}: {scorer} scores step {self.depth[bad[0]]} with {values[bad[0]]}: "
                    "mend it, or write None for unknown"
                )
        self.of_chain = np.array([self.problems[item.problem.id] for item in items])
        # the steps that tell a chain's first error: up to it, all if there is none, and nothing where that is unknown
        wrong = [next((t for t, at in enumerate(path) if marks[at] == 0), None) for path in paths]
        self.paths = [path if t is None else path[: t + 1] for path, t in zip(paths, wrong, strict=True)]
        self.flat = np.array([at for path in self.paths for at in path], int)
        self.chain = np.repeat(np.arange(len(items)), [len(path) for path in self.paths])
        # of an unlabelled step and the wrong answer behind it either is the error (`stepdata.closed`): they are one
        self.pairs = [
            bool(t) and item.trace.steps[t].final and marks[path[t - 1]] is None
            for item, path, t in zip(items, paths, wrong, strict=True)
        ]
        sure = (path[:-2] if pair else path for path, pair in zip(self.paths, self.pairs, strict=True))
        self.known = np.array([all(marks[at] is not None for at in path) for path in sure]) & np.array(
            [bool(path) for path in paths]
        )
        self.erroneous = self.known & np.array([t is not None for t in wrong])
        steps, right = int((~np.isnan(self.label)).sum()), int(np.nansum(self.label))
        self.counts = {
            "problems": len(self.problems),
            "chains": len(items),
            "steps": steps,
            "right": right,
            "wrong": steps - right,
            "unlabelled": len(self.label) - steps,
            "repeated": repeated,
            "contradicted": contradicted,
            "erroneous": int(self.erroneous.sum()),
            "correct": int((self.known & ~self.erroneous).sum()),
            "unknown": int((~self.known).sum()),
        }

    def labelled(self, *scorers: str) -> np.ndarray:
        """The steps with a label that all of these have scored."""
        return np.flatnonzero(~np.isnan(self.label + sum(self.scores[scorer] for scorer in scorers)))

    def told(self, scorer: str) -> np.ndarray:
        """Which chains have a first error that is known, or none, and are scored as far as that."""
        return self.known & self._whole(self.scores[scorer])

    def _whole(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self.chain, np.isnan(values[self.flat]), len(self.paths)) == 0

    def rows(self, scorer: str, chains: np.ndarray) -> tuple[list, list]:
        """(scores, labels) of these chains, as far as their first error; two steps that share an error are one."""
        score, label, paths = self.scores[scorer].tolist(), self.label.tolist(), list(compress(self.paths, chains))
        rows = [[score[at] for at in path] for path in paths], [[label[at] for at in path] for path in paths]
        for path, marks, pair in zip(*rows, compress(self.pairs, chains), strict=True):
            if pair:
                path[-2:], marks[-2:] = [min(path[-2:])], [0.0]
        return rows

    def sums(self, problem: np.ndarray, *columns: np.ndarray) -> np.ndarray:
        """Columns summed by problem: [columns, problems]."""
        return np.array([np.bincount(problem, column, len(self.problems)) for column in columns])


def _read(label: float | None, cut: float, problem: str, t: int) -> float | None:
    if label is None:
        return None
    if not 0 <= label <= 1:
        raise WorkbenchError(
            f"{problem}: a label of {label} at step {t + 1}: give a number in 0-1, or None for unknown"
        )
    return 0.0 if label == 0 or label < cut else 1.0


class _Draws:
    """Resamples of the problems, the same for every statistic, so that differences are paired."""

    def __init__(self, problems: int, seed: int):
        rng = np.random.default_rng(seed)
        self.counts = np.empty((DRAWS, problems), np.uint8)  # how often each was drawn: a small number
        for row in self.counts:
            row[:] = np.bincount(rng.integers(0, problems, problems), minlength=problems)

    def __call__(self, statistic: Callable, n: int | Sequence[int], exact: float | None = None) -> list:
        """Estimates of a `statistic` that maps weights [problems, draws] to values [k, draws]; None if undefined.

        `exact`: the value, if the statistic reckons with rounded scores.
        """
        problems = self.counts.shape[1]
        step = max(1, 2_000_000 // max(problems, GROUPS))  # bounds memory at 16 MB an array
        with np.errstate(all="ignore"):
            values = statistic(np.ones((problems, 1)))[:, 0]
            parts = [statistic(self.counts[i : i + step].T.astype(float, order="C")) for i in range(0, DRAWS, step)]
        draws = np.concatenate(parts, axis=1)
        if exact is not None:
            draws, values = draws + (exact - values)[:, None], np.array([exact])
        told = zip(values, draws, np.broadcast_to(n, len(values)), strict=True)
        return [scaling.between(*row) if math.isfinite(row[0]) else None for row in told]


def _judge(
    scorer: str, test: _Steps, errors: Mapping[str, tuple], draws: _Draws, verifier: str | None, uncalibrated: str
) -> Judged:
    notes = []
    seen = test.labelled(scorer)
    auc = auc_lead = brier = bias = ece = None
    if lacking := _lacking(test.label[seen] == 0, "steps"):
        notes.append(f"step AUC is undefined: {lacking}")
    else:
        (auc,) = draws(*_auc(test, scorer, seen))
    if verifier:
        common = test.labelled(scorer, verifier)
        if not _lacking(test.label[common] == 0, "steps"):
            (a, n, value), (b, _, other) = (_auc(test, which, common) for which in (verifier, scorer))
            (auc_lead,) = draws(lambda w: a(w) - b(w), n, value - other)
    score, label = test.scores[scorer][seen], test.label[seen]
    if uncalibrated:
        notes.append(f"calibration is undefined: {uncalibrated}")
    elif len(seen) and 0 <= score.min() and score.max() <= 1:
        sums = test.sums(test.problem[seen], (score - label) ** 2, score - label, np.ones(len(seen)))
        brier, bias = draws(lambda w: (sums[:2] @ w) / (sums[2] @ w), _distinct(test.problem[seen]))
        ece = scaling.ece(score, label)
    elif len(seen):
        notes.append("calibration is undefined: scores outside 0-1 are no probabilities")

    threshold, hits, why = errors[scorer]
    notes += why
    located = passed = f1 = f1_lead = None
    if hits is not None:
        chains = np.flatnonzero(test.told(scorer))
        table, n = test.sums(test.of_chain[chains], *hits[chains].T), _distinct(test.of_chain[chains])
        located, passed, f1 = draws(lambda w: np.stack(hit_rates((table @ w).T)), n)
    if verifier and hits is not None and (best := errors[verifier][1]) is not None:
        common = np.flatnonzero(test.told(scorer) & test.told(verifier))
        if not _lacking(test.erroneous[common], "chains"):
            ours, theirs = (test.sums(test.of_chain[common], *rows[common].T) for rows in (best, hits))
            n = _distinct(test.of_chain[common])
            (f1_lead,) = draws(lambda w: (hit_rates((ours @ w).T)[2] - hit_rates((theirs @ w).T)[2])[None], n)
    rates = (auc, auc_lead, f1, f1_lead, located, passed, threshold, brier, bias, ece)
    return Judged(scorer, len(seen), int(test.told(scorer).sum()), *rates, notes=tuple(notes))


def _lacking(wrong: np.ndarray, what: str) -> str | None:
    """Why two kinds of these cannot be told apart, if they cannot."""
    if not len(wrong):
        return f"no {what} are both labelled and scored"
    return None if wrong.any() != wrong.all() else f"all {len(wrong)} {what} are {'wrong' if wrong.all() else 'right'}"


def _distinct(numbers: np.ndarray) -> int:
    return len(np.unique(numbers))


def _auc(steps: _Steps, scorer: str, at: np.ndarray) -> tuple[Callable, int, float]:
    """(step AUC as a function of the weights of problems, number of problems, its value)."""
    from scipy.sparse import csr_array

    score, label, problem = steps.scores[scorer][at], steps.label[at], steps.problem[at]
    _, group, counts = np.unique(score, return_inverse=True, return_counts=True)
    if len(counts) > GROUPS:
        group = ((np.cumsum(counts) - counts) * GROUPS // len(at))[group]  # equal scores stay together
    shape = int(group.max()) + 1, len(steps.problems)
    right, wrong = (csr_array((np.ones(k.sum()), (group[k], problem[k])), shape) for k in (label == 1, label == 0))

    def statistic(weights: np.ndarray) -> np.ndarray:
        good, bad = right @ weights, wrong @ weights  # [groups, draws]
        below = np.cumsum(bad, axis=0) - bad / 2
        return (np.einsum("gd,gd->d", good, below) / (good.sum(0) * bad.sum(0)))[None]

    return statistic, _distinct(problem), scaling.step_auc(score, label)


def _first_errors(scorer: str, test: _Steps, tuning: _Steps) -> tuple[float | None, np.ndarray | None, list[str]]:
    """(threshold, for each chain of `test`: error found, is erroneous, passed, is correct — NaN if untold, notes)."""
    chosen, judged = tuning.told(scorer), test.told(scorer)
    if lacking := _lacking(tuning.erroneous[chosen], "chains"):
        return None, None, [f"first-error F1 is undefined without a threshold: of the tuning set {lacking}"]
    threshold = scaling.best_threshold(*tuning.rows(scorer, chosen))
    if lacking := _lacking(test.erroneous[judged], "chains"):
        return threshold, None, [f"first-error F1 is undefined: {lacking}"]
    hits = np.full((len(judged), 4), np.nan)
    hits[judged] = scaling.first_error_hits(*test.rows(scorer, judged), [threshold])[:, 0]
    return threshold, hits, []


def _by_depth(steps: _Steps, scorer: str, draws: _Draws, where: np.ndarray, depths: Mapping[int, float]) -> list[Depth]:
    """A row for each of `depths` ({value of `where`: name})."""
    if not depths:
        return []
    seen = steps.labelled(scorer)
    row = np.searchsorted(list(depths), where[seen])
    cell = row * len(steps.problems) + steps.problem[seen]
    score, label, count = (
        np.bincount(cell, x, len(depths) * len(steps.problems)).reshape(len(depths), -1)
        for x in (steps.scores[scorer][seen], steps.label[seen], np.ones(len(seen)))
    )
    sums = np.stack([score, label, score - label])  # [3, depths, problems]
    found = draws(lambda w: ((sums @ w) / (count @ w)).reshape(3 * len(depths), -1), np.tile((count > 0).sum(1), 3))
    triples = zip(*(found[i * len(depths) : (i + 1) * len(depths)] for i in range(3)), strict=True)
    totals = count.sum(1).astype(int).tolist()
    return [Depth(depth, n, *three) for depth, n, three in zip(depths.values(), totals, triples, strict=True)]


def _fit_length(tuning: _Steps) -> Callable[[_Steps], np.ndarray] | None:
    """Chance that a step is right by its index and log characters alone: logistic regression on the tuning set."""
    from scipy.optimize import minimize
    from scipy.special import expit

    def features(steps: _Steps) -> np.ndarray:
        return np.stack([steps.depth, np.log1p(steps.chars)], axis=1)

    told = ~np.isnan(tuning.label)
    x, y = features(tuning)[told], tuning.label[told]
    if _lacking(y == 0, "steps"):
        return None
    mean, spread = x.mean(0), np.maximum(x.std(0), 1e-9)

    def design(rows: np.ndarray) -> np.ndarray:
        return np.column_stack([np.ones(len(rows)), (rows - mean) / spread])

    z = design(x)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        logit = z @ w
        slope = np.append(0, w[1:]) * RIDGE
        value = (np.logaddexp(0, logit) - y * logit).mean() + w[1:] @ w[1:] * RIDGE / 2
        return float(value), z.T @ (expit(logit) - y) / len(y) + slope

    best = minimize(loss, np.zeros(3), jac=True, method="L-BFGS-B").x
    return lambda steps: expit(design(features(steps)) @ best)
