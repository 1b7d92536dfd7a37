"""What the tests of searches share: a policy, a judge, and a run."""

import functools
import inspect
from dataclasses import replace

from workbench import search
from workbench.policies.scripted import Scripted
from workbench.search import drive

WORDS = {"a": 0.5, "b": 0.3, "=0": 0.2}
TABLE = {(): list(WORDS.items())}
TABLE |= {(x,): [("a", 0.4), ("b", 0.2), ("=1", 0.3), ("=0", 0.1)] for x in "ab"}
TABLE |= {(x, y): [("=1", 0.5), ("=0", 0.3), ("?", 0.2)] for x in "ab" for y in "ab"}  # after "?" a chain is cut
POLICY = Scripted(TABLE)


class Judge:
    """Scores a step by its text alone; unseen texts get .5."""

    aggregate = "min"

    def __init__(self, **scores):
        self.scores = scores

    def flops(self, prefix, new, head=True):
        return 3.0 * new

    def score(self, items):
        assert all(problem.answer is None for problem, _ in items), "a verifier saw the gold answer"
        return [tuple(self.scores.get(step.text, 0.5) for step in trace.steps) for _, trace in items]


JUDGE = Judge(a=0.9, b=0.4, **{"1": 0.6, "0": 0.7})


def knobs(name, **wanted):
    """Those of the wanted knobs that the search has."""
    return {k: v for k, v in wanted.items() if k in inspect.signature(search.get(name)).parameters}


def go(name, problems, policy=POLICY, verifier=JUDGE, **more):
    return drive(problems, name, policy, verifier, **{"seed": 1, **knobs(name, n=6, width=2), **more})


def seen(results):
    """All that a result holds but seconds."""
    costs = [replace(r.cost, policy_seconds=0.0, verifier_seconds=0.0) for r in results]
    return {r.problem.id: (r.answer, r.nodes, cost, r.stop) for r, cost in zip(results, costs, strict=True)}


def starve(name, fed, log):
    """The search, which is told that there is no more at its request number `fed`; (what it was sent last, its answer)
    is noted down. What was grown at temperature 0 is not what a search holds, but what it looks at."""
    inner = search.get(name)

    @functools.wraps(inner)
    def starved(root, **knobs):
        generator, sent, held = inner(root, **knobs), None, []
        try:
            for _ in range(fed):
                request = generator.send(sent)
                sent = yield request
                held = held if request.temperature == 0 else sent
            generator.send(sent)
            generator.send([])
        except StopIteration as end:
            log.append((held, end.value))
            return end.value
        raise AssertionError(f"{name} asks on, though it was told that there is no more")

    return starved


def spy(name, log):
    """The search, with every request noted down."""
    inner = search.get(name)

    @functools.wraps(inner)
    def spied(root, **knobs):
        generator, sent, requests = inner(root, **knobs), None, []
        log.append(requests)
        while True:
            try:
                requests.append(generator.send(sent))
            except StopIteration as end:
                return end.value
            sent = yield requests[-1]

    return spied
