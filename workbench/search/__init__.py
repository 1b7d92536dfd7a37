"""Searches: one file = one search, a generator found by its file name; and the driver that runs them.

    def my_search(root, *, n=16):            # the file's function has the file's name
        children = yield Grow([root], n)     # ask for children, be sent them (scored, if asked for)
        return best(children, aggregate)     # the chosen answer, or None to abstain

A search sees nodes only: never the problem's gold answer, never the meter. The driver batches the requests of
all problems into one model call, meters every token, stops at the budget and keeps the tree. A search that draws
lots takes a knob `rng`, and is handed a `random.Random` that is a function of seed and problem.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import pkgutil
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby, islice

from tqdm.auto import tqdm

from ..policies import Policy, Sampling, Want
from ..tasks import rng
from ..types import Budget, Cost, Node, Problem, ProblemError, WorkbenchError, unknown
from ..verifiers import Verifier, flaw, scored

DIGITS = 5  # scores are rounded to these: the last bits depend on the batch, and must not decide between two nodes
PROTOCOL = "it asks with `children = yield Grow([nodes], n)`, and returns the text of its answer or None"
PATIENCE = 1000  # requests in a row that bring nothing new, after which a search is taken for endless


@dataclass(frozen=True)
class Grow:
    """A request: `n` children of each node (or a list, one count a node). `to_end`: whole chains; the chain's last
    node is what is sent back.

    Children are numbered from `first`. A number is a child: asking for it again gives the same one, and bills nothing.
    `score` asks the verifier; `temperature` overrides the run's (0 is greedy); `tokens` is a lower limit for the
    tokens of the whole chain; `close` makes the children closing answers (see `policies.Want`).
    """

    nodes: Sequence[Node]
    n: int | Sequence[int] = 1
    to_end: bool = False
    score: bool = True
    temperature: float | None = None
    first: int = 0
    tokens: int | None = None
    close: bool = False

    def sampling(self, run: Sampling) -> Sampling:
        use = run if self.temperature is None else replace(run, temperature=self.temperature)
        return use if self.tokens is None else replace(use, chain_tokens=max(1, min(self.tokens, run.chain_tokens)))


Search = Generator[Grow, list[Node], str | None]


@dataclass
class Twig:
    """A node and its story: the `round` it was grown in, how often it or a node below it was grown (`visits`), and
    what the whole search had cost by then."""

    node: Node
    round: int
    sampled: int
    flops: float
    visits: int = 0


@dataclass
class Result:
    """One problem searched: the answer chosen, the whole tree (root left out), what it cost, why it ended.

    `stop`: `done`, or `budget` if the driver cut the search, or `error` (told in `error`) if its problem could not be
    served; a search that was cut still answers, with what it last held. `trees.rows` tells the tree as plain rows.
    """

    problem: Problem
    answer: str | None = None
    tree: dict[tuple[int, ...], Twig] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    stop: str = "done"
    error: str | None = None
    rounds: list[Grow] = field(default_factory=list)

    @property
    def nodes(self) -> list[Node]:
        return [twig.node for twig in self.tree.values()]

    @property
    def leaves(self) -> list[Node]:
        return [node for node in self.nodes if node.finished]


def names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def get(name: str) -> Callable[..., Search]:
    """The search function of the file called `name`; an unknown name is an error with the nearest one."""
    if name not in names():
        raise unknown("search", name, names())
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)


def knobs(search: Callable[..., Search]) -> list[str]:
    """What a caller may set."""
    return [p for p in inspect.signature(search).parameters if p not in ("root", "rng")]


class Memo:
    """What was grown and scored before, by (seed, sampling, problem, prefix, path): no token is drawn twice.

    A child is a function of its prefix and its counters alone, so remembering it changes no result. Costs are charged
    in full, as if it had been drawn anew: a memo saves the laptop's time, never a method's bill. Seconds are those of
    the first draw. A memo serves one policy; its weights must not change while the memo is in use.
    """

    def __init__(self):
        self.policy: Policy | None = None
        self.verifiers: dict[int, Verifier] = {}  # held, so that no later verifier is given an id that scores lie under
        self.chains: dict[str, dict[tuple, dict[int, tuple[Node, float]]]] = {}  # problem -> family -> child
        self.scores: dict[str, dict[tuple, tuple[tuple[float | None, ...], tuple[Cost, ...]]]] = {}

    def family(self, seed: int, problem: Problem, node: Node, use: Sampling, close: bool) -> dict:
        """The children of a node that are known."""
        families = self.chains.setdefault(problem.id, {})
        return families.setdefault((seed, use, close, node.path, _text(node)), {})


def _name(search: Callable[..., Search]) -> str:
    return getattr(search, "__name__", None) or repr(search)  # a partial has none


def _text(node: Node) -> tuple:
    return tuple(step.ids or step.text for step in node.steps)


def _bare(node: Node) -> Node:
    """What was scored by one verifier must not be taken for another's: the memo holds bare nodes."""
    if all(step.score is None for step in node.steps):
        return node
    return replace(node, steps=tuple(replace(step, score=None) for step in node.steps))


class _Live:
    """A problem on its way: its generator, its result, and which prefixes the policy and the verifier have read."""

    def __init__(self, problem: Problem, generator: Search, name: str):
        self.search, self.name, self.result, self.blind = generator, name, Result(problem), problem.blind()
        self.inbox: list[Node] | None = None
        self.request: Grow | None = None
        self.idle, self.known = 0, 0
        self.prompt: int | None = None
        self.read: set[tuple] = set()
        self.judged: set[tuple] = set()

    def advance(self, budget: Budget) -> bool:
        """Let the search speak; False when it has ended."""
        try:
            self.request = self.search.send(self.inbox)
        except StopIteration as end:
            self.request = None
            self.answer(end.value)
            return False
        ask = self.request
        nodes = ask.nodes if isinstance(ask, Grow) else None
        if not isinstance(nodes, Sequence) or not all(isinstance(node, Node) for node in nodes):
            what = f"{ask!r:.60}" if nodes is None else f"Grow with nodes={nodes!r:.60}, which is no list of nodes"
            raise WorkbenchError(f"the search {self.name} yielded {what}: {PROTOCOL}")
        if not isinstance(ask.n, int) and not hasattr(ask.n, "__len__"):
            raise WorkbenchError(f"the search {self.name} yielded Grow with n={ask.n!r}: a whole number, or one a node")
        if budget.spent(self.result.cost):
            self.end("budget", None if self.result.tree else f"{budget} allows nothing: not one child was grown")
        elif self.idle >= PATIENCE:
            self.end("error", f"the search asked {PATIENCE} times in a row for nothing that was new")
        return self.request is not None

    def answer(self, value: str | None) -> None:
        if value is not None and not isinstance(value, str):
            raise WorkbenchError(f"the search {self.name} returned {value!r:.60} as its answer: {PROTOCOL}")
        self.result.answer = value

    def end(self, stop: str, error: str | None = None) -> None:
        """Tell a search that there is no more: an empty answer to its request; it may then only return."""
        self.result.stop, self.result.error, self.request = stop, error, None
        try:
            self.search.send([])
        except StopIteration as end:
            self.answer(end.value)
        self.search.close()

    def unread(self, node: Node, seen: set[tuple], policy: Policy) -> tuple[int, int]:
        """(tokens in front of, tokens of) what comes after the deepest prefix that was seen; all of it is, then."""
        depth = len(node.path)
        while depth and node.path[:depth] not in seen:
            depth -= 1
        before = self.tokens(node, depth, policy) if node.path[:depth] in seen else 0
        seen.update(node.path[:d] for d in range(depth, len(node.path) + 1))
        return before, self.tokens(node, len(node.path), policy) - before

    def tokens(self, node: Node, depth: int, policy: Policy) -> int:
        """Tokens of the prompt and the first `depth` steps."""
        steps = node.steps[:depth]
        if not all(step.ids for step in steps):  # a search's own step, not tokenised yet
            return policy.prompt_tokens(self.blind, Node((), steps))
        if self.prompt is None:
            self.prompt = policy.prompt_tokens(self.blind, Node())
        return self.prompt + sum(len(step.ids) for step in steps)


def stream(
    problems: Iterable[Problem],
    search: Callable[..., Search] | str,
    policy: Policy,
    verifier: Verifier | None = None,
    budget: Budget = Budget(),
    seed: int = 0,
    sampling: Sampling = Sampling(),
    memo: Memo | None = None,
    window: int = 256,
    **given,
) -> Iterator[Result]:
    """Run one search on every problem, `window` of them at a time; results come as they are ready.

    One batch a round over all problems in the window, and a new problem joins where one has ended, so memory does not
    grow with their number. See `drive` for the rest.
    """
    search = get(search) if isinstance(search, str) else search
    name = _name(search)
    if lacking := [part for part in ("score", "flops") if verifier is not None and not hasattr(verifier, part)]:
        what = f"the verifier {type(verifier).__name__} has no {' and no '.join(lacking)}"
        raise WorkbenchError(f"{what}: `workbench.verifiers` says what a verifier is")
    if unknown := set(given) - set(knobs(search)):
        known = ", ".join(knobs(search)) or "none at all"
        raise WorkbenchError(f"{name} has no knob {', '.join(sorted(unknown))}: it has {known}")
    if window < 1:
        raise WorkbenchError(f"window={window}: how many problems to hold at a time, at least 1")
    if memo is not None and memo.policy not in (None, policy):
        raise WorkbenchError("this memo holds the chains of another policy: give every policy a Memo of its own")
    kept, memo = memo is not None, memo or Memo()
    memo.policy, memo.verifiers[id(verifier)] = policy, verifier
    lots = "rng" in inspect.signature(search).parameters
    waiting, lives, seen = iter(problems), [], set()
    while True:
        for problem in islice(waiting, window - len(lives)):
            if problem.id in seen:
                raise WorkbenchError("two problems share an id: randomness is drawn by id, so ids must be unique")
            seen.add(problem.id)
            more = {"rng": rng("search", seed, problem.id)} if lots else {}
            begun = search(Node(), **given, **more)
            if not isinstance(begun, Generator):
                raise WorkbenchError(f"the search {name} gave {begun!r:.60} and no generator: {PROTOCOL}")
            lives.append(_Live(problem, begun, name))
        if not lives:
            return
        asked = [live for live in lives if live.advance(budget)]
        with _no_collection():
            _Round(asked, policy, verifier, budget, seed, sampling, memo, billed=not kept).serve()
        for live in lives:
            if live.request is None:
                if not kept:
                    memo.chains.pop(live.blind.id, None), memo.scores.pop(live.blind.id, None)
                yield live.result
        lives = [live for live in asked if live.request is not None]


@contextmanager
def _no_collection() -> Iterator[None]:
    """A round makes thousands of nodes and no cycles, and the collector would walk all trees for every few hundred of
    them: a fifth of the time. It may do so between rounds."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def drive(
    problems: Iterable[Problem],
    search: Callable[..., Search] | str,
    *args,
    progress: bool = False,
    least: int = 1,
    **more,
) -> list[Result]:
    """Run one search on every problem; results in the order of the problems.

        drive(problems, search, policy, verifier=None, budget=Budget(), seed=0, sampling=Sampling(), memo=None,
              window=256, progress=False, **knobs of the search)

    Every search gets the same proposals from the same seed (see `policies`), so two searches can be compared
    problem by problem. A budget holds for each problem: no request is started once it is spent, and a request
    is granted only as many children as the limits leave room for. A problem that cannot be served (a prompt longer
    than the context, a score of NaN) ends with stop `error` and the others go on; when fewer than `least` could be
    served, that is a WorkbenchError, as is a search or a verifier that breaks its protocol.

    The bill is that of an engine which reads every prefix once: a prompt, then each sampled token, then each judged
    token. What the engine had to read again, since its cache is small, is added as `reread`.
    """
    problems = list(problems)
    name = search if isinstance(search, str) else _name(search)
    found = {}
    results = stream(problems, search, *args, **more)
    for result in tqdm(results, total=len(problems), desc=name, unit="problem", disable=not progress):
        found[result.problem.id] = result
    results = [found[problem.id] for problem in problems]
    if failed := [result for result in results if result.stop == "error"]:
        first = f"{failed[0].problem.id}: {failed[0].error}"
        if len(results) - len(failed) < least:
            raise WorkbenchError(first)
        warnings.warn(f"{len(failed)} of {len(results)} problems could not be served, the first: {first}", stacklevel=2)
    return results


@dataclass
class _Round:
    """One round: grow what every problem asked for, meter it, score it."""

    asked: list[_Live]
    policy: Policy
    verifier: Verifier | None
    budget: Budget
    seed: int
    sampling: Sampling
    memo: Memo
    billed: bool  # whether re-reading is: with a memo of the caller's, what was read when is an accident
    called: set = field(default_factory=set)
    judging: dict = field(default_factory=dict)
    owed: dict = field(default_factory=dict)  # steps whose judging is billed once it is known what it took

    def serve(self) -> None:
        if any(live.request.score for live in self.asked) and self.verifier is None:
            raise WorkbenchError("this search asks for scores: pass a verifier")
        jobs = [job for live in self.asked for job in self._jobs(live)]
        self._draw(jobs)
        granted: list[tuple[_Live, Node, list[Node]]] = []
        for live, node, k, use, family in jobs:
            if live.request is not None:
                chain, _ = self._known(live, family, k, use)
                if self._grant(live, node, chain):
                    granted.append((live, node, [child for child, _ in chain]))
        self._score([(live, chain[-1]) for live, _, chain in granted if live.request.score])
        for live in self.asked:
            live.inbox = []
        for live, node, chain in granted:
            if live.request is not None:
                live.inbox.append(self._plant(live, node, chain, live.request.score))
        for live in self.asked:
            known = len(live.result.tree) + len(live.judged)
            live.idle, live.known = 0 if known > live.known else live.idle + 1, known

    def _jobs(self, live: _Live) -> Iterator[tuple[_Live, Node, int, Sampling, dict]]:
        """One a child, with its family in the memo. Every growth is a visit to the node and to all above it."""
        grow, use = live.request, live.request.sampling(self.sampling)
        counts = [grow.n] * len(grow.nodes) if isinstance(grow.n, int) else grow.n
        if len(counts) != len(grow.nodes):
            raise WorkbenchError(f"Grow has {len(grow.nodes)} nodes and {len(counts)} counts: one count a node")
        if min(counts, default=1) < 1:
            raise WorkbenchError(f"Grow has n={grow.n}: ask for at least one child of each node")
        live.result.rounds.append(grow)
        for node, n in zip(grow.nodes, counts, strict=True):
            if node.finished:
                continue
            if node.path and node.path not in live.result.tree:  # the search wrote a step of its own
                self._plant(live, Node(node.path[:-1], node.steps[:-1]), [node], scored=False)
            for depth in range(1, len(node.path) + 1):
                if twig := live.result.tree.get(node.path[:depth]):
                    twig.visits += 1
            family = self.memo.family(self.seed, live.blind, node, use, grow.close)
            yield from ((live, node, k, use, family) for k in range(grow.first, grow.first + n))

    def _known(self, live: _Live, family: dict, k: int, use: Sampling) -> tuple[list[tuple[Node, float]], bool]:
        """The part of a chain that is known already, as (node, seconds), and whether that is all of it."""
        chain = []
        while k in family:
            chain.append(family[k])
            node, _ = family[k]
            if node.finished or not live.request.to_end:
                return chain, True
            k, family = 0, self.memo.family(self.seed, live.blind, node, use, False)
        return chain, False

    def _draw(self, jobs) -> None:
        """Draw what is not known: one call to the policy for each sampling."""
        missing: dict[Sampling, list[tuple[_Live, Want]]] = {}
        for live, node, k, use, family in jobs:
            known, whole = self._known(live, family, k, use)
            if not whole:
                at, first = (known[-1][0], 0) if known else (node, k)
                want = Want(live.blind, at, 1, live.request.to_end, first, live.request.close and not known)
                missing.setdefault(use, []).append((live, want))
        for use, rows in missing.items():
            wants = []  # children in a row of one node are one want: its prefix is looked up once
            for (live, _), group in groupby(rows, lambda row: (row[0], id(row[1].node))):
                run = [want for _, want in group]
                if [want.first for want in run] == list(range(run[0].first, run[0].first + len(run))):
                    run = [replace(run[0], n=len(run))]
                wants += [(live, replace(want, node=_bare(want.node))) for want in run]
            for live, want, chains, seconds, read in self._extend(wants, use):
                if read:  # `unread` marks what it is asked about, and this only looks
                    self._reread(live, self.policy, *live.unread(want.node, set(live.read), self.policy), read)
                total = sum(len(child.steps[-1].ids) for chain in chains for child in chain) or 1
                family_of_want = self.memo.family(self.seed, live.blind, want.node, use, want.close)
                for k, chain in enumerate(chains, want.first):
                    family = family_of_want
                    for child in chain:
                        if not child.steps[-1].ids:
                            self._fail({live.blind.id: "the policy wrote a step without a token, and would for ever"})
                            break
                        family[k] = child, seconds * len(child.steps[-1].ids) / total
                        if want.to_end and not child.finished:
                            k, family = 0, self.memo.family(self.seed, live.blind, child, use, False)

    def _extend(self, wants: list[tuple[_Live, Want]], use: Sampling):
        """(live, want, chains, seconds, tokens read) for every want whose problem can be served."""
        while wants := [(live, want) for live, want in wants if live.request is not None]:
            begin = time.perf_counter()
            try:
                drawn = self.policy.extend([want for _, want in wants], self.seed, use)
            except ProblemError as error:
                self._fail(error.problems)
                continue
            share = (time.perf_counter() - begin) / len(wants)
            read = getattr(self.policy, "read", None) or [0] * len(wants)
            return [(*row, chains, share, n) for row, chains, n in zip(wants, drawn, read, strict=True)]
        return []

    def _fail(self, problems: dict[str, str]) -> None:
        strange = dict(problems)
        for live in self.asked:
            why = strange.pop(live.blind.id, None)
            if why is not None and live.request is not None:  # its first fault of the round is told
                live.end("error", why)
        if strange:
            raise WorkbenchError(str(ProblemError(strange)))

    def _reread(self, live: _Live, reader: Policy | Verifier, before: int, new: int, read: int) -> None:
        """Bill what was read beyond the `new` tokens that had not been read before."""
        if self.billed and read > new:
            flops = reader.flops(0, before, head=False) - reader.flops(0, before + new - read, head=False)
            live.result.cost += Cost(reread=read - new, reread_flops=flops)

    def _grant(self, live: _Live, node: Node, chain: list[tuple[Node, float]]) -> bool:
        """Bill a chain's new nodes, and judging its end; False when the budget was spent before."""
        result, policy, end = live.result, self.policy, chain[-1][0]
        new = [(child, seconds) for child, seconds in chain if child.path not in live.read]
        judge = live.request.score and end.path not in live.judged
        if (new or judge) and self.budget.spent(result.cost):
            result.stop = "budget"
            return False
        bill = Cost()
        for child, seconds in new:
            parent = Node(child.path[:-1], child.steps[:-1])
            before, prefix = live.unread(parent, live.read, policy)
            sampled = len(child.steps[-1].ids)
            flops = policy.flops(0, before + prefix, head=False) - policy.flops(0, before, head=False)
            flops += policy.flops(before + prefix, sampled)
            call = (id(live), node.path) not in self.called
            self.called.add((id(live), node.path))
            live.read.add(child.path)
            bill += Cost(
                sampled=sampled, prompt=prefix, policy_calls=int(call), policy_flops=flops, policy_seconds=seconds
            )
        if judge and hasattr(self.verifier, "spent"):
            path = end.path
            self.owed[live.blind.id, path] = [d for d in range(len(path)) if path[: d + 1] not in live.judged]
            live.judged.update(path[:d] for d in range(len(path) + 1))
        elif judge:
            self.judging[live.blind.id, end.path] = before, tokens = live.unread(end, live.judged, policy)
            prompt = 0 if before else live.tokens(end, 0, policy)
            flops = self.verifier.flops(0, prompt, head=False) if prompt else 0.0
            flops += self.verifier.flops(before + prompt, tokens - prompt)
            bill += Cost(judged=tokens, verifier_calls=1, verifier_flops=flops)
        result.cost += bill
        return True

    def _score(self, ends: list[tuple[_Live, Node]]) -> None:
        """Judge what no one has judged; equal chains are read once."""
        absent = {}
        for live, end in ends:
            key = (id(self.verifier), _text(end))
            if key not in self.memo.scores.setdefault(live.blind.id, {}):
                absent[live.blind.id, key] = live, end
        while rows := [(*at, *row) for at, row in absent.items() if row[0].request is not None]:
            begin = time.perf_counter()
            try:
                judged = scored(self.verifier, [(live.blind, end.trace) for _, _, live, end in rows])
            except ProblemError as error:
                self._fail(error.problems)
                continue
            share = (time.perf_counter() - begin) / len(rows)
            read = getattr(self.verifier, "read", None) or [0] * len(rows)
            spent = getattr(self.verifier, "spent", None) or [()] * len(rows)
            for (id_, key, live, end), scores, tokens, took in zip(rows, judged, read, spent, strict=True):
                self._reread(live, self.verifier, *self.judging.get((id_, end.path), (0, 0)), tokens)
                if wrong := flaw(self.verifier, scores, len(end.steps)):
                    self._fail({id_: wrong})
                    continue
                self.memo.scores[id_][key] = tuple(s if s is None else round(s, DIGITS) for s in scores), tuple(took)
                live.result.cost += Cost(verifier_seconds=share)
            break
        for live, end in ends:
            for depth in self.owed.pop((live.blind.id, end.path), ()) if live.request is not None else ():
                live.result.cost += self.memo.scores[live.blind.id][id(self.verifier), _text(end)][1][depth]

    def _plant(self, live: _Live, node: Node, chain: list[Node], scored: bool) -> Node:
        """Put a chain into the tree, with the scores that its steps have by now; returns its end."""
        result, steps = live.result, [*node.steps, *(child.steps[-1] for child in chain)]
        if scored:
            scores, _ = self.memo.scores[live.blind.id][id(self.verifier), _text(chain[-1])]
            pairs = zip(steps, scores, strict=True)
            steps = [step if step.score == score else replace(step, score=score) for step, score in pairs]
        for child in chain:
            child = replace(child, steps=tuple(steps[: len(child.steps)]))
            twig = result.tree.get(child.path)
            if twig is None:
                cost = result.cost
                result.tree[child.path] = Twig(child, len(result.rounds), cost.sampled, cost.flops)
            elif _text(twig.node) != _text(child):
                raise WorkbenchError(f"two children have the name {child.path}: number them apart with Grow's `first`")
            elif scored:
                twig.node = child
        return child
