"""Where step labels come from: the task's oracle, Monte-Carlo rollouts of a policy, a search with them (OmegaPRM), or
what rollouts and a judge agree on. And how far they can be believed: `audit`.

A label is read in one way everywhere: a step is called wrong if its label is 0 or below `cut`. So `cut` 0 is the hard
reading (one right rollout is enough), .5 the soft one at one half. None is no label, never 0.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple, Protocol, TypeVar

from . import tasks
from .policies import Policy, Sampling, Want, bill, billed, tokens_of
from .types import Cost, Labelled, Node, Problem, ProblemError, Step, Trace, WorkbenchError
from .verifiers import flaw, scored

_T = TypeVar("_T")
CUTS = {"hard": 0.0, "soft": 0.5}
DIGITS = 5  # a judge's scores are rounded to these, as in a search: the last bits depend on the batch


class Judge(Protocol):
    """What `consensus` asks of a verifier (see `verifiers`, which stands on the same floor)."""

    def score(self, items: Sequence[tuple[Problem, Trace]]) -> list[tuple[float | None, ...]]: ...

    def flops(self, prefix: float, new: float, head: bool = True) -> float: ...


class Made(NamedTuple):
    """Chains with their labels, what the labels cost, and the problems that could not be served: id -> why."""

    chains: list[Labelled]
    cost: Cost
    refused: dict[str, str]


def oracle(items: Sequence[tuple[Problem, Trace]]) -> list[list[float]]:
    """1.0 for every step that keeps the chain right, by the task's own truth.

    >>> p = tasks.get("arithmetic").parse("2+3")
    >>> oracle([(p, tasks.get("arithmetic").demonstration(p))])
    [[1.0, 1.0]]
    """
    return [[float(x) for x in _from_task(p, "oracle")(p, trace.steps)] for p, trace in items]


def _from_task(problem: Problem, what: str) -> Callable:
    """The `oracle` or the `correct` of a problem's task, which tasks in prose do not have."""
    found = getattr(tasks.get(problem.task), what, None) if problem.task in tasks.names() else None
    if found is None:
        raise WorkbenchError(
            f"{problem.id}: the task {problem.task!r} has no {what!r} for its steps, only people know: "
            "take labels from rollouts (`rollouts`, `omega`) or from people's rows (`stepdata.Rows`)"
        )
    return found


def corrected(problem: Problem, trace: Trace, labels: Sequence[float]) -> Trace:
    """The chain up to its first wrong step, which is replaced by a right one (PRM800K's human completions).

    A chain without a wrong step stays as it is, but for a last step that was never finished. The task must know how
    to `correct`.

    >>> from workbench.types import Step
    >>> p = tasks.get("arithmetic").parse("2+3*4")
    >>> [s.text for s in corrected(p, Trace((Step("3*4=12"), Step("2+12=15"), Step("15", True))), [1, 0, 0]).steps]
    ['3*4=12', '2+12=14']
    """
    first = next((i for i, label in enumerate(labels) if label < 0.5), None)
    if first is None:
        return trace if trace.stop == "answer" else Trace(trace.steps[:-1], "cut")
    right = trace.steps[:first]
    return Trace((*right, _from_task(problem, "correct")(problem, right)), "cut")


def monte_carlo(
    policy: Policy,
    items: Sequence[tuple[Problem, Trace]],
    k: int = 8,
    seed: int = 0,
    hard: bool = False,
    sampling: Sampling = Sampling(),
) -> tuple[list[list[float]], Cost]:
    """Label of a step = share of `k` rollouts, started *after* it, that reach a right answer (Math-Shepherd).

    `hard`: 1.0 if any does. A rollout never contains the answer it judges; the closing answer itself is checked.
    So these labels are values under this policy, not truths: a right step that the policy can seldom finish gets a
    low one, and a wrong step that is repaired gets a high one (Qwen, arXiv 2501.07301). Returns (labels, cost).
    A problem whose answer nobody can check is a ProblemError, before anything is drawn.
    """
    if bad := _uncheckable(problem for problem, _ in items):
        raise ProblemError(bad)
    labels, cost, bad = _monte_carlo(policy, items, k, seed, hard, sampling)
    if bad:
        raise ProblemError(bad)
    return labels, cost


def _monte_carlo(
    policy: Policy, items: Sequence[tuple[Problem, Trace]], k: int, seed: int, hard: bool, sampling: Sampling
) -> tuple[list[list[float]], Cost, dict[str, str]]:
    """(labels, cost, problems one of whose answers could not be checked: id -> why; their labels mean nothing)"""
    wants, where, bad = [], [], {}
    for i, (problem, trace) in enumerate(items):
        for t, step in enumerate(trace.steps):
            if not step.final:
                # The path names the trace and the step, so that every step's rollouts have noise of their own.
                wants.append(Want(problem.blind(), Node((i, t), trace.steps[: t + 1]), k, to_end=True))
                where.append((i, t))
    labels = [[0.0] * len(trace.steps) for _, trace in items]
    begin = time.perf_counter()
    drawn = policy.extend(wants, tasks.digest("montecarlo", seed) >> 1, sampling)
    cost = Cost(policy_seconds=time.perf_counter() - begin)

    def right(problem: Problem, traces: Sequence[Trace]) -> int:
        try:
            return sum(right_answer(problem, trace) for trace in traces)
        except WorkbenchError as error:
            bad.setdefault(problem.id, str(error))
            return 0

    for want, (i, t), chains in zip(wants, where, drawn, strict=True):
        cost += bill(policy, policy.prompt_tokens(want.problem, want.node), [tokens_of(chain) for chain in chains])
        share = right(items[i][0], [chain[-1].trace for chain in chains]) / k
        labels[i][t] = float(share > 0) if hard else share
    for i, (problem, trace) in enumerate(items):
        if trace.steps and trace.steps[-1].final:
            labels[i][-1] = float(right(problem, [trace]))
    return labels, cost, bad


def right_answer(problem: Problem, trace: Trace) -> bool:
    """Did this chain close, with a right answer? An unfinished chain did not."""
    return trace.answer is not None and tasks.get(problem.task).check(problem, trace.answer)


# --- what they share ---


def _uncheckable(problems: Iterable[Problem]) -> dict[str, str]:
    """{id: why} of problems whose gold answer is missing or unreadable: told before a rollout of them is paid for."""
    bad = {}
    for problem in {problem.id: problem for problem in problems}.values():
        try:
            if problem.answer is not None and not problem.answer.strip():
                raise WorkbenchError(f"{problem.id} has an empty answer, so nothing can be graded: give it an `answer`")
            tasks.get(problem.task).check(problem, "0")
        except WorkbenchError as error:
            bad[problem.id] = str(error)
    return bad


def _labelled(chains: Sequence[Labelled]) -> list[Labelled]:
    """Those with a label."""
    for problem, trace, labels in chains:
        if len(labels) != len(trace.steps) or not all(x is None or 0 <= x <= 1 for x in labels):
            raise WorkbenchError(f"{problem.id}: labels {labels} for {len(trace.steps)} steps, not one in 0-1 for each")
    return [chain for chain in chains if any(label is not None for label in chain.labels)]


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise WorkbenchError(f"{name}={value}: at least one rollout a step")


def _served(call: Callable[[list[str]], _T], asked: Sequence[str], refused: dict[str, str]) -> tuple[list[str], _T]:
    """(ids, `call(ids)`) for those of the asked problems that can be served; why others cannot goes to `refused`."""
    while True:
        ids = [name for name in asked if name not in refused]
        try:
            return ids, call(ids)
        except ProblemError as error:
            if not error.problems or not error.problems.keys() <= {*ids}:
                raise  # about nothing that was asked: it would be for ever
            refused.update(error.problems)


def _told(made: Made, asked: int) -> Made:
    """An error if nothing could be served, else a warning of what could not."""
    if made.refused:
        if len(made.refused) == asked and not made.chains:
            raise ProblemError(made.refused)
        name, why = next(iter(made.refused.items()))
        count = f"{len(made.refused)} of {asked} problems could not be served"
        warnings.warn(f"{count}, the first: {name}: {why}", stacklevel=3)
    return made


# --- rollouts after every step ---


def rollouts(
    policy: Policy,
    items: Sequence[tuple[Problem, Trace]],
    k: int = 8,
    seed: int = 0,
    sampling: Sampling = Sampling(),
) -> Made:
    """The soft labels of `monte_carlo`, to the bit, as labelled chains: label x k is how many rollouts were right.

    A problem that the policy cannot serve (ProblemError) loses its chains, is listed in `refused` and warned of, and
    changes nothing for the others; so does one whose gold answer is missing or unreadable. When none can be served,
    that is the error. (`monte_carlo` itself raises it: its rows have no place for what is missing.) A chain's noise is
    named by its problem and its place in `items`.
    """
    _at_least_one("k", k)

    def label(ids: Sequence[str]) -> tuple[list[list[float]], Cost, dict[str, str]]:
        known = set(ids)
        kept = [(p, trace if p.id in known else Trace(())) for p, trace in items]  # places must not move
        return _monte_carlo(policy, kept, k, seed, False, sampling)

    refused = _uncheckable(p for p, _ in items)
    asked = list(dict.fromkeys(p.id for p, _ in items))
    _, (found, cost, bad) = _served(label, asked, refused)
    refused |= bad
    pairs = zip(items, found, strict=True)
    chains = [Labelled(p, trace, tuple(row)) for (p, trace), row in pairs if p.id not in refused]
    return _told(Made(chains, cost, refused), len(asked))


# --- OmegaPRM ---


@dataclass(frozen=True)
class Omega:
    """How OmegaPRM searches; the defaults are the paper's (arXiv 2406.06592, section 4).

    `k` rollouts estimate a state; `searches` is the limit of binary searches a problem. A rollout r from a state s is
    worth Q + U = alpha^(1 - MC(s)) beta^(tokens of r / length) + c_puct sqrt(sum of all N) / (1 + N(s)).

    >>> round(Omega().worth(mc=0.75, tokens=250, visits=1, total=4), 4)  # .5^.25 x .9^.5 + .125 x 2 / 2
    0.9227
    """

    k: int = 8
    searches: int = 100
    alpha: float = 0.5
    beta: float = 0.9
    length: int = 500
    c_puct: float = 0.125

    def __post_init__(self):
        _at_least_one("k", self.k)
        if self.searches < 0 or self.c_puct < 0 or self.length < 1:
            raise WorkbenchError(f"{self}: searches and c_puct are 0 or more, length is at least one token")
        if not (0 < self.alpha <= 1 and 0 < self.beta <= 1):
            raise WorkbenchError(f"{self}: alpha and beta are above 0 and at most 1")

    def worth(self, mc: float, tokens: int, visits: int, total: int) -> float:
        value = self.alpha ** (1 - mc) * self.beta ** (tokens / self.length)
        return value + self.c_puct * math.sqrt(total) / (1 + visits)


PAPER = Omega()


def omega(
    policy: Policy,
    problems: Sequence[Problem],
    use: Omega = PAPER,
    seed: int = 0,
    sampling: Sampling = Sampling(),
) -> Made:
    """Chains up to their first error, found by binary search, with soft Monte-Carlo labels (OmegaPRM, 2406.06592).

    For each problem: `k` rollouts from the question. Rollouts that closed with a wrong answer join the pool if the
    state they come from has 0 < MC < 1. Then, until the pool is empty or the limit is reached: pop the rollout of the
    greatest Q + U; halve it: `k` rollouts from its middle, on in the second half if one is right, else in the first;
    and so to the first step after which none is, in log2 of its steps rather than one by one. All new rollouts may
    join the pool; N of the state that was searched from grows by one.

    A chain ends with its first error (stop `cut`, unless that is the closing answer). Its last label is 0, and steps
    at which no search looked have None. All problems share one call to the policy a round; a problem's chains are a
    function of the problem and the seed alone, in the order they were found. A problem whose first `k` rollouts are
    all right or none has no chains. A problem that cannot be served is treated as in `rollouts`, and keeps the chains
    that it had by then.

    Where the paper is silent: a state is what its steps say, so one that is met again is not estimated again, and a
    chain that two states lead to is searched once, from the first. The sum in U goes over all states, so it is the
    number of searches so far. A rollout that did not close counts as not right but is no wrong answer, so is not
    searched. Of rollouts worth the same the one drawn first goes first. Labels are never corrected for one another: a
    step may have 0 because another chain's search found no way home from it, and a later one more.
    Left out: steps of a sixteenth of a solution (here a step is a line), the filter of problems by 32 rollouts.
    """
    trees = {problem.id: _Tree(problem, use) for problem in problems}
    if len(trees) < len(problems):
        raise WorkbenchError("two problems share an id: randomness is drawn by id, so ids must be unique")
    growing = {name: tree.grow() for name, tree in trees.items()}
    cost, refused, noise = Cost(), _uncheckable(problems), tasks.digest("omega", seed) >> 1
    wants = {name: next(steps) for name, steps in growing.items() if name not in refused}

    def draw(ids: Sequence[str]) -> list[list[list[Node]]]:
        return policy.extend([wants[name] for name in ids], noise, sampling)

    while wants:
        begin = time.perf_counter()
        served, drawn = _served(draw, list(wants), refused)
        cost += Cost(policy_seconds=time.perf_counter() - begin)
        for name, chains in zip(served, drawn, strict=True):
            prompt = policy.prompt_tokens(wants[name].problem, wants[name].node)
            cost += bill(policy, prompt, [tokens_of(chain) for chain in chains])
            try:
                wants[name] = growing[name].send(chains)
            except StopIteration:
                del wants[name]
            except WorkbenchError as error:  # an answer that could not be checked
                refused[name] = str(error)
        for name in refused:
            wants.pop(name, None)
    chains = [chain for tree in trees.values() for chain in tree.labelled()]
    return _told(Made(chains, cost, refused), len(trees))


def _key(steps: Sequence[Step]) -> tuple:
    return tuple((step.text, step.final) for step in steps)


class _Tree:
    """One problem: MC and N of its states by what they say, the pool, and the first errors found so far."""

    def __init__(self, problem: Problem, use: Omega):
        self.problem, self.blind, self.use = problem, problem.blind(), use
        self.value: dict[tuple, float] = {}
        self.visits: Counter[tuple] = Counter()
        self.pool: list[tuple[tuple, int, list[Node]]] = []  # (state, tokens, the rollout)
        self.errors: dict[tuple, Node] = {}

    def grow(self) -> Generator[Want, list[list[Node]], None]:
        yield from self._estimate(Node())
        for searched in range(self.use.searches):
            if not self.pool:
                return
            worth = [self.use.worth(self.value[s], tokens, self.visits[s], searched) for s, tokens, _ in self.pool]
            state, _, chain = self.pool.pop(worth.index(max(worth)))
            error = yield from self._first_error(chain)
            self.errors.setdefault(_key(error.steps), error)
            self.visits[state] += 1

    def labelled(self) -> Iterator[Labelled]:
        for node in self.errors.values():
            prefixes = (node.steps[: t + 1] for t in range(len(node.steps)))
            yield Labelled(self.problem, node.trace, tuple(self.value.get(_key(steps)) for steps in prefixes))

    def _first_error(self, chain: list[Node]) -> Generator[Want, list[list[Node]], Node]:
        good, bad = 0, len(chain)  # some rollout is right after step `good` of the chain, none after step `bad`
        while bad - good > 1:
            middle = (good + bad) // 2
            if (yield from self._estimate(chain[middle - 1])) > 0:
                good = middle
            else:
                bad = middle
        return chain[bad - 1]

    def _estimate(self, node: Node) -> Generator[Want, list[list[Node]], float]:
        state = _key(node.steps)
        if state not in self.value:
            # Child 0 of a state inside a rollout is that rollout's own next step: it must not judge itself.
            chains = yield Want(self.blind, node, self.use.k, to_end=True, first=1 if node.path else 0)
            right = [right_answer(self.problem, chain[-1].trace) for chain in chains]
            self.value[state] = mc = sum(right) / self.use.k
            for chain, good in zip(chains, right, strict=True):
                whole = _key(chain[-1].steps)
                if 0 < mc < 1 and not good and chain[-1].stop == "answer" and whole not in self.value:
                    self.value[whole] = 0.0
                    self.pool.append((state, tokens_of(chain), chain))
        return self.value[state]


# --- consensus ---


def first_error(labels: Sequence[float | None], cut: float = 0.0) -> int | None:
    """The first step that is called wrong, if any; a step without a label is passed over.

    >>> first_error([1.0, 0.25, None, 0.0]), first_error([1.0, 0.25, None, 0.0], cut=0.5), first_error([None, 1.0])
    (3, 1, None)
    """
    return next((i for i, label in enumerate(labels) if label is not None and _wrong(label, cut)), None)


def _wrong(label: float, cut: float) -> bool:
    return label == 0 or label < cut


def consensus(
    policy: Policy,
    chains: Sequence[Labelled],
    judge: Judge,
    threshold: float = 0.5,
    cut: float = 0.0,
    hard: bool = False,
) -> tuple[Made, float | None]:
    """The chains on whose first error their labels and a judge agree, "none" being an answer (Qwen, arXiv 2501.07301);
    and the share of the judged chains that they are, None if nothing was judged.

    Any verifier can judge (a step is wrong below `threshold`), `verifiers.oracle.Oracle` too. A kept chain keeps its
    labels up to the first error; behind it there was no agreement on anything, so None. `hard`: 1.0 and 0.0 by `cut`,
    which is what the paper trains on. Chains without a label are left out unjudged. `policy` counts tokens alone:
    every chain is read once, from its prompt on. A problem whose chain the judge cannot read is treated as in
    `rollouts`, and so is one that it gives no numbers in 0-1.
    """
    rows = _labelled(chains)
    refused: dict[str, str] = {}

    def score(ids: Sequence[str]) -> list[tuple[Labelled, tuple]]:
        known = set(ids)
        live = [row for row in rows if row.problem.id in known]
        pairs = [
            *zip(live, scored(judge, [(row.problem.blind(), row.trace) for row in live]) if live else (), strict=True)
        ]
        for row, scores in pairs:
            if why := flaw(judge, scores, len(row.trace.steps)):
                refused.setdefault(row.problem.id, why)
        return [pair for pair in pairs if pair[0].problem.id not in refused]

    asked = list(dict.fromkeys(row.problem.id for row in rows))
    begin = time.perf_counter()
    _, judged = _served(score, asked, refused)
    cost, kept = Cost(verifier_seconds=time.perf_counter() - begin), []
    read = [
        tuple(policy.prompt_tokens(row.problem.blind(), Node((), steps)) for steps in ((), row.trace.steps))
        for row, _ in judged
    ]
    cost += billed(judge, read)
    for (problem, trace, labels), scores in judged:
        first = first_error(labels, cut)
        if first == first_error([s if s is None else round(s, DIGITS) for s in scores], threshold):
            upto = labels if first is None else labels[: first + 1]
            if hard:
                upto = tuple(x if x is None else float(not _wrong(x, cut)) for x in upto)
            kept.append(Labelled(problem, trace, (*upto, *[None] * (len(labels) - len(upto)))))
    return _told(Made(kept, cost, refused), len(asked)), len(kept) / len(judged) if judged else None


# --- audit ---


class Audit(NamedTuple):
    """Labels held against the oracle, as plain rows of counts. A false positive is a wrong step that is called right, a
    false negative a right one that is called wrong.

    `rows`, one a reading and k: label, k, steps, right, wrong (the oracle's), agree, false_positive, false_negative;
    chains, chains_wrong (with an error), located (of those: first error found exactly), cleared (of the others: called
    free of error), first_error = located + cleared; error = {problem: share of its steps mislabelled}, for a bootstrap.
    `depths`, one a reading and depth (1 is the first step), at the full k: label, depth, right, wrong, false_positive,
    false_negative. `steps`, one a step: problem, chain (which of the labelled ones), depth, truth, label.
    Below the full k counts are expectations.
    """

    rows: list[dict]
    depths: list[dict]
    steps: list[dict]


def audit(
    chains: Sequence[Labelled],
    k: int | None = None,
    ks: Sequence[int] | None = None,
    cuts: Mapping[str, float] = CUTS,
) -> Audit:
    """How far labels and the task's oracle agree, and, for shares of `k` rollouts, what fewer would have said.

    Steps count up to the oracle's first error, labelled ones only; the closing answer does not, since both sides check
    it alike. A step that chains of one problem share counts once, by its first label. First errors are compared over
    whole chains, closing answer and all. `cuts`: the readings by name. `ks` (default: powers of two, and `k`): the row
    of a smaller k is the exact expectation over all choices of that many of the `k` rollouts of every step
    (`called_wrong`), so nothing is drawn again; steps are drawn apart, so chances multiply along a chain. This holds
    for `rollouts`. Where a search looks depends on its own k, so for the chains of `omega` leave `k` out.
    Errors: labels that are no shares of `k`, a size that is not in 1..k, a task without an oracle.

    >>> p, chain = tasks.get("arithmetic").parse("2+3*4"), Trace((Step("2+3=5"), Step("5*4=20"), Step("20", True)))
    >>> for row in audit([Labelled(p, chain, (0.25, 0.0, 0.0))], k=4, cuts={"hard": 0}).rows:
    ...     print(row["k"], row["wrong"], row["false_positive"], row["first_error"])
    1 1 0.25 0.75
    2 1 0.5 0.5
    4 1 1.0 0.0
    """
    sizes: list = [None]
    if k is not None:
        _at_least_one("k", k)
        sizes = sorted({2**i for i in range(k.bit_length())} | {k} if ks is None else {*ks})
    elif ks is not None:
        raise WorkbenchError(f"ks={list(ks)} without k: how many rollouts is a label a share of?")
    chains = _labelled(chains)
    truths = oracle([(problem, trace) for problem, trace, _ in chains])
    pairs = list(zip(chains, truths, strict=True))
    steps, rows, depths = list(_steps(pairs)), [], []
    by_depth = defaultdict(list)
    for step in steps:
        by_depth[step["depth"]].append(step)
    for name, cut in cuts.items():
        for size in sizes:
            called = partial(_called, k=k, draws=size, cut=cut)
            counts, error = _mistakes(steps, called)
            counts["agree"] = len(steps) - counts["false_positive"] - counts["false_negative"]
            whose = {"label": name, "k": size, "steps": len(steps)}
            rows.append({**whose, **counts, **_located(pairs, called), "error": error})
        whole = partial(_called, k=k, draws=k, cut=cut)
        depths += [{"label": name, "depth": d, **_mistakes(by_depth[d], whole)[0]} for d in sorted(by_depth)]
    return Audit(rows, depths, steps)


@cache
def called_wrong(right: int, k: int, draws: int, cut: float = 0.0) -> float:
    """Chance that `draws` of `k` rollouts, `right` of the k right, call their step wrong. Exact: hypergeometric.

    >>> called_wrong(1, 8, 2), called_wrong(1, 8, 8), called_wrong(1, 8, 8, cut=0.5)  # 7/8 x 6/7 the first
    (0.75, 0.0, 1.0)
    """
    if not (0 <= right <= k and 1 <= draws <= k):
        raise WorkbenchError(f"{draws} of {k} rollouts, {right} of them right: draw 1 to k, and none to all are right")
    ways = (math.comb(right, j) * math.comb(k - right, draws - j) for j in range(draws + 1) if _wrong(j / draws, cut))
    return sum(ways) / math.comb(k, draws)


def _called(label: float, k: int | None, draws: int | None, cut: float) -> float:
    """Chance that a step with this label is called wrong."""
    if k is None or draws is None:
        return float(_wrong(label, cut))
    right = round(label * k)
    if not math.isclose(right, label * k, abs_tol=1e-6):
        raise WorkbenchError(f"a label of {label} is no share of k={k} rollouts")
    return called_wrong(right, k, draws, cut)


def _steps(pairs: Sequence[tuple[Labelled, Sequence[float]]]) -> Iterator[dict]:
    seen = set()
    for n, ((problem, trace, labels), truth) in enumerate(pairs):
        error = first_error(truth)
        for t, label in enumerate(labels if error is None else labels[: error + 1]):
            name = problem.id, _key(trace.steps[: t + 1])
            if label is not None and not trace.steps[t].final and name not in seen:
                seen.add(name)
                yield {"problem": problem.id, "chain": n, "depth": t + 1, "truth": truth[t], "label": label}


def _mistakes(steps: Sequence[dict], called: Callable[[float], float]) -> tuple[dict, dict[str, float]]:
    """(the counts, {problem: share of its steps mislabelled})"""
    right, wrong, problems = [], [], defaultdict(list)
    for step in steps:
        chance = called(step["label"])
        (right if step["truth"] else wrong).append(chance if step["truth"] else 1 - chance)
        problems[step["problem"]].append(chance if step["truth"] else 1 - chance)
    counts = {"right": len(right), "wrong": len(wrong)}
    counts |= {"false_positive": math.fsum(wrong), "false_negative": math.fsum(right)}
    return counts, {problem: math.fsum(values) / len(values) for problem, values in problems.items()}


def _located(pairs: Sequence[tuple[Labelled, Sequence[float]]], called: Callable[[float], float]) -> dict:
    located, cleared = [], []
    for chain, truth in pairs:
        error = first_error(truth)
        passed = math.prod(1 - called(x) for x in chain.labels[:error] if x is not None)
        if error is None:
            cleared.append(passed)
        else:
            label = chain.labels[error]
            located.append(0.0 if label is None else passed * called(label))
    found, free = math.fsum(located), math.fsum(cleared)
    counts = {"chains": len(pairs), "chains_wrong": len(located)}
    return {**counts, "located": found, "cleared": free, "first_error": found + free}
