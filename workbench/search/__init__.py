"""Searches: one file = one search, a generator found by its file name; and the driver that runs them.

    def my_search(root, *, n=16):            # the file's function has the file's name
        children = yield Grow([root], n)     # ask for children, be sent them (scored, if asked for)
        return best(children, aggregate)     # the chosen answer, or None to abstain

A search sees nodes only: never the problem's gold answer, never the meter. The driver batches the requests of
all problems into one model call, meters every token, stops at the budget and keeps the tree.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace

from ..policies import Policy, Sampling, Want, bill, tokens_of
from ..types import Budget, Cost, Node, Problem, WorkbenchError
from ..verifiers import Verifier


@dataclass(frozen=True)
class Grow:
    """A request: `n` children of each node. `to_end`: whole chains; the chain's last node is what is sent back.

    Children are numbered from 0, so growing a node again with the same temperature gives (and bills) the same ones.
    `score` asks the verifier; `temperature` overrides the run's (0 is greedy).
    """

    nodes: Sequence[Node]
    n: int = 1
    to_end: bool = False
    score: bool = True
    temperature: float | None = None


Search = Generator[Grow, list[Node], str | None]


@dataclass
class Result:
    """One problem searched: the answer chosen, the whole tree (root left out), what it cost, why it ended.

    `stop`: `done`, or `budget` if the driver cut the search; a cut search still answers, with what it last held.
    """

    problem: Problem
    answer: str | None = None
    nodes: list[Node] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    stop: str = "done"

    @property
    def leaves(self) -> list[Node]:
        return [node for node in self.nodes if node.finished]


def names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def get(name: str) -> Callable[..., Search]:
    """The search function of the file called `name`; an unknown name is an error with the nearest one."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1) or names()
        raise WorkbenchError(f"unknown search {name!r}: did you mean {' or '.join(map(repr, near))}?")
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)


class Memo:
    """What was grown and scored before, by (seed, sampling, problem, prefix, path): no token is drawn twice.

    A child is a function of its prefix and its counters alone, so remembering it changes no result. Costs are charged
    in full, as if it had been drawn anew: a memo saves the laptop's time, never a method's bill. Seconds are those of
    the first draw. A memo serves one policy; its weights must not change while the memo is in use.
    """

    def __init__(self):
        self.policy: Policy | None = None
        self.verifiers: dict[int, Verifier] = {}  # held, so that no later verifier is given an id that scores lie under
        self.chains: dict[tuple, tuple[list[Node], float]] = {}
        self.scores: dict[tuple, tuple[tuple[float, ...], float]] = {}


def drive(
    problems: Iterable[Problem],
    search: Callable[..., Search] | str,
    policy: Policy,
    verifier: Verifier | None = None,
    budget: Budget = Budget(),
    seed: int = 0,
    sampling: Sampling = Sampling(),
    memo: Memo | None = None,
    progress: bool = False,
    **knobs,
) -> list[Result]:
    """Run one search on every problem; one batch a round over all of them.

    Every search gets the same proposals from the same seed (see `policies`), so two searches can be compared
    problem by problem. A budget holds for each problem: no request is started once it is spent, and a request
    is granted only as many children as the sampled-token limit leaves room for.
    """
    search = get(search) if isinstance(search, str) else search
    choices = [p for p in inspect.signature(search).parameters if p != "root"]
    if unknown := set(knobs) - set(choices):
        raise WorkbenchError(f"{search.__name__} has no knob {', '.join(sorted(unknown))}: it has {', '.join(choices)}")
    memo = memo or Memo()
    if memo.policy is not None and memo.policy is not policy:
        raise WorkbenchError("this memo holds the chains of another policy: give every policy a Memo of its own")
    memo.policy, memo.verifiers[id(verifier)] = policy, verifier
    results = [Result(p) for p in problems]
    ids = [r.problem.id for r in results]
    if len(set(ids)) < len(ids):
        raise WorkbenchError("two problems share an id: randomness is drawn by id, so ids must be unique")
    blind = [r.problem.blind() for r in results]
    live = {i: search(Node(), **knobs) for i in range(len(results))}
    inbox: dict[int, list[Node] | None] = dict.fromkeys(live)
    bar = _bar(len(results), search.__name__) if progress else None
    while live:
        asked: dict[int, Grow] = {}
        for i in list(live):
            try:
                request = live[i].send(inbox[i])
                if budget.spent(results[i].cost):
                    results[i].stop = "budget"
                    results[i].answer = _close(live[i])
                else:
                    asked[i] = request
                    continue
            except StopIteration as end:
                results[i].answer = end.value
            del live[i]
            if bar:
                bar.update()
        for i, grown in _serve(asked, blind, results, policy, verifier, budget, seed, sampling, memo).items():
            inbox[i] = grown
    if bar:
        bar.close()
    return results


def _close(generator) -> str | None:
    """Tell a search that its budget is spent: an empty answer to its request; it may then only return."""
    try:
        generator.send([])
    except StopIteration as end:
        return end.value
    generator.close()
    return None


def _serve(asked, blind, results, policy, verifier, budget, seed, sampling, memo) -> dict[int, list[Node]]:
    """One round: grow what every problem asked for, meter it, score it."""
    plan: list[tuple[int, Node, int, bool, Sampling]] = []
    for i, grow in asked.items():
        use = sampling if grow.temperature is None else replace(sampling, temperature=grow.temperature)
        plan += [(i, node, grow.n, grow.to_end, use) for node in grow.nodes if not node.finished]

    def key(i, use, node, k, to_end):
        return seed, use, ids[i], node.path, k, tuple(step.ids or step.text for step in node.steps), to_end

    def score_key(i, end):
        return id(verifier), seed, ids[i], end.path, tuple(step.ids or step.text for step in end.steps)

    ids = {i: blind[i].id for i in asked}
    pending, limited = dict.fromkeys(asked, Cost()), budget != Budget()
    # 1. draw what the memo does not hold, one call a sampling setting
    missing: dict[Sampling, list[tuple[int, Node, int, bool]]] = {}
    for i, node, n, to_end, use in plan:
        absent = [k for k in range(n) if key(i, use, node, k, to_end) not in memo.chains]
        if absent:  # children are numbered, so the absent ones are a tail
            missing.setdefault(use, []).append((i, node, absent[0], n, to_end))
    for use, rows in missing.items():
        wants = [Want(blind[i], _unscored(node), n - first, to_end, first) for i, node, first, n, to_end in rows]
        begin = time.perf_counter()
        drawn = policy.extend(wants, seed, use)
        spent = time.perf_counter() - begin
        total = sum(tokens_of(chain) for chains in drawn for chain in chains) or 1
        for (i, node, first, _, to_end), chains in zip(rows, drawn, strict=True):
            for k, chain in enumerate(chains):
                memo.chains[key(i, use, node, first + k, to_end)] = chain, spent * tokens_of(chain) / total
    # 2. meter, and hand out; what judging a child will cost counts before it is granted
    served: dict[int, list[list[Node]]] = {i: [] for i in asked}
    for i, node, n, to_end, use in plan:
        prefix, sampled, seconds, judging = policy.prompt_tokens(blind[i], node), [], 0.0, pending[i]
        for k in range(n):
            if limited and budget.spent(results[i].cost + bill(policy, prefix, sampled, seconds) + judging):
                results[i].stop = "budget"
                break
            chain, took = memo.chains[key(i, use, node, k, to_end)]
            sampled.append(tokens_of(chain))
            seconds += took
            served[i].append(chain)
            if asked[i].score and verifier is not None:
                judging += Cost(verifier_flops=verifier.flops(prefix + sampled[-1]))
        pending[i] = judging
        if sampled:
            results[i].cost += bill(policy, prefix, sampled, seconds)
    # 3. score the ends of the chains (a chain is read once, all its steps are scored)
    wanted = [i for i, grow in asked.items() if grow.score and verifier is not None]
    if any(grow.score for grow in asked.values()) and verifier is None:
        raise WorkbenchError("this search asks for scores: pass a verifier")
    ends = [(i, chain[-1]) for i in wanted for chain in served[i]]
    absent = list({score_key(i, end): (i, end) for i, end in ends if score_key(i, end) not in memo.scores}.values())
    if absent:
        begin = time.perf_counter()
        scored = verifier.score([(blind[i], end.trace) for i, end in absent])
        share = (time.perf_counter() - begin) / len(absent)
        for (i, end), scores in zip(absent, scored, strict=True):
            if len(scores) != len(end.steps) or any(s is not None and not 0 <= s <= 1 for s in scores):
                raise WorkbenchError(f"{type(verifier).__name__} gave {scores} for {len(end.steps)} steps of {ids[i]}")
            memo.scores[score_key(i, end)] = tuple(scores), share
    out: dict[int, list[Node]] = {}
    for i, chains in served.items():
        out[i] = []
        for chain in chains:
            end = chain[-1]
            if i in wanted:
                scores, seconds = memo.scores[score_key(i, end)]
                read = policy.prompt_tokens(blind[i], end)
                results[i].cost += Cost(
                    judged=read, verifier_calls=1, verifier_flops=verifier.flops(read), verifier_seconds=seconds
                )
                steps = tuple(replace(s, score=v) for s, v in zip(end.steps, scores, strict=True))
                chain = [replace(x, steps=steps[: len(x.steps)]) for x in chain]
            results[i].nodes += chain
            out[i].append(chain[-1])
    return out


def _unscored(node: Node) -> Node:
    """What was scored by one verifier must not be taken for another's: the memo holds bare nodes."""
    return replace(node, steps=tuple(replace(step, score=None) for step in node.steps))


def _bar(total: int, name: str):
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=name, unit="problem")
