"""Problems x search -> records, the only thing that curves read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from tqdm.auto import tqdm

from . import trees
from .labels import right_answer
from .policies import Policy, Sampling, bill
from .runs import Run
from .search import Memo, Result, drive, stream
from .tasks import get
from .types import Cost, Problem, Record


def record(run: str, result: Result, seed: int, **knobs) -> Record:
    """One search on one problem. An abstention (answer None) is wrong: it was asked and did not answer."""
    problem = result.problem
    correct = result.answer is not None and get(problem.task).check(problem, result.answer)
    return Record(run, problem.id, seed, result.answer, correct, result.cost, problem.level, knobs)


def search(
    run: str,
    problems: Sequence[Problem],
    method: str,
    policy: Policy,
    verifier=None,
    seeds: Sequence[int] = (0,),
    memos: dict[int, Memo] | None = None,
    sampling: Sampling = Sampling(),
    progress: bool = False,
    label: str | None = None,
    **knobs,
) -> list[Record]:
    """Records of one method with one setting of its knobs, over all problems and seeds.

    `memos` (one a seed) let the next method or a larger n reuse the same proposals; costs are charged in full.
    `label` is the method's name in the records where the search's own would not tell two verifiers apart.
    """
    out = []
    for seed in seeds:
        memo = memos.setdefault(seed, Memo()) if memos is not None else None
        results = drive(
            problems, method, policy, verifier, seed=seed, sampling=sampling, memo=memo, progress=progress, **knobs
        )
        out += [record(run, r, seed, **_knobs(method, label, knobs)) for r in results]
    return out


def into(
    run: Run,
    problems: Iterable[Problem],
    method: str,
    policy: Policy,
    verifier=None,
    seed: int = 0,
    memo: Memo | None = None,
    sampling: Sampling = Sampling(),
    label: str | None = None,
    tree: bool = False,
    every: int = 64,
    window: int = 256,
    progress: bool = False,
    **knobs,
) -> int:
    """The records of `search`, written to `run` as they come, `every` at a time; returns how many were made.

    Problems whose record lies in the run are skipped, so a run that was killed goes on where it was, and memory does
    not grow with the number of problems. `tree`: whole trees too, a line a node, in trees.jsonl. A problem that could
    not be served has a record without an answer, and the reason in its knobs. Errors: as `search.drive`.

    >>> into(run, problems, "beam", policy, verifier, n=16, width=4)  # doctest: +SKIP
    4096
    """
    about = _knobs(method, label, knobs)
    key = json.dumps(about, sort_keys=True)
    there = {row["problem"] for row in run.read("records") if (row["seed"], _plain(row["knobs"])) == (seed, key)}
    todo = (problem for problem in problems if problem.id not in there)
    made, held = 0, []

    def write():
        if tree:  # first, so that a record never stands without its tree
            run.append("trees", (line for result in held for line in trees.lines(result, seed)))
        run.append("records", (record(run.path.name, r, seed, **about, **_error(r)).to_json() for r in held))
        held.clear()

    found = stream(todo, method, policy, verifier, seed=seed, sampling=sampling, memo=memo, window=window, **knobs)
    for result in tqdm(found, desc=about["method"], unit="problem", disable=not progress):
        held.append(result)
        made += 1
        if len(held) >= every:
            write()
    write()
    return made


def _knobs(method, label: str | None, knobs: dict) -> dict:
    return {"method": label or getattr(method, "__name__", method), "n": 1, **knobs}


def _error(result: Result) -> dict:
    return {"error": result.error} if result.error else {}


def _plain(knobs: dict) -> str:
    return json.dumps({name: value for name, value in knobs.items() if name != "error"}, sort_keys=True)


def samples(
    run: str, problems: Sequence[Problem], policy: Policy, n: int = 16, seed: int = 0, sampling: Sampling = Sampling()
) -> tuple[list[Record], list[tuple[Problem, list]]]:
    """`n` independent chains a problem: (a record a chain, the chains themselves). For pass@1 and pass@k.

    The chain's number is its record's seed. A record has its own chain's cost, the first one the prompt's as well, so
    they add up to what the problem cost. A problem that could not be served has `n` records without an answer, and the
    reason in their knobs.
    """
    results = drive(problems, "majority", policy, seed=seed, sampling=sampling, n=n)
    rows, chains = [], []
    for result in results:
        traces = [leaf.trace for leaf in sorted(result.leaves, key=lambda node: node.path[0])]
        for k, trace in enumerate(traces):
            cost = _share(policy, result, trace.tokens, first=k == 0)
            right = right_answer(result.problem, trace)
            knobs = {"method": "sampling", "n": 1, "stop": trace.stop}
            rows.append(Record(run, result.problem.id, k, trace.answer, right, cost, result.problem.level, knobs))
        if result.error:
            knobs = {"method": "sampling", "n": 1, **_error(result)}
            rows += [
                Record(run, result.problem.id, k, None, False, Cost(), result.problem.level, knobs) for k in range(n)
            ]
        chains.append((result.problem, traces))
    return rows, chains


def _share(policy: Policy, result: Result, tokens: int, first: bool) -> Cost:
    whole = result.cost
    seconds = whole.policy_seconds * tokens / max(1, whole.sampled)
    if first:
        return bill(policy, whole.prompt, [tokens], seconds)
    return Cost(sampled=tokens, policy_flops=policy.flops(whole.prompt, tokens), policy_seconds=seconds)
