"""The flywheel: sample chains, keep those that check out, train on them, sample again with what came of it.

rounds/<r>/chains.jsonl   a row a chain that round r was trained on, see `read_chains`
rounds/<r>/model/         the weights it left, a checkpoint: of the adapter alone, if that is what learns
history.jsonl             a row a round, written after the rest: a round without its row is made again
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from tqdm.auto import tqdm

from . import search, sft, tasks
from .adapters import adapter_of, learning, read_adapter, save_adapter
from .fit import Fit, fit
from .labels import right_answer
from .models import load_model
from .policies import Sampling, billed
from .policies.local import LocalPolicy
from .runs import Run
from .select import AGGREGATES, aggregate_score
from .types import Cost, Node, Problem, ProblemError, Step, Trace, WorkbenchError, in_range
from .verifiers import flaw, scored

FILTERS = ("none", "answer", "prm")


@dataclass(frozen=True)
class Flywheel:
    """Scalars of a run. A round: chains for `problems` training problems, the same ones in every round; the filters;
    `fit` on what they leave, from the base (`restart`) or from the last round's weights.

    `search` (one with a knob n) gets `samples` as its n and `knobs` beside it; every chain it closed may teach, and
    "majority" is plain sampling. `filter`: "none" keeps what has closed, "answer" what is right too, "prm" what also
    has step scores whose `aggregate` (None: the verifier's own) is `threshold` or more. `dedupe`: equal chains count
    once, and the `cap` of a problem's that stay are the least alike (`varied`); without it they are the first drawn.
    `rationalise`: where no chain was right, `samples` more are drawn with the answer as a hint, and the right ones are
    trained on without it. `levels`: the problems to learn from, in equal parts (none named: all). `fit.steps` are taken
    however many chains were kept. `strict`: a round that keeps none is an error; if not, it trains nothing. `checks`:
    chains a held-out problem.

    STaR (Zelikman et al. 2022, arXiv 2203.14465) is samples=1, cap=1, rationalise=True; ReST-EM (Singh et al. 2023,
    arXiv 2312.06585) samples=32, cap=10; search distillation search="beam", samples=16, knobs={"width": 4}.
    Left out: STaR's few-shot prompt and its training that grows by a fifth each round; chains of earlier rounds.
    """

    rounds: int = 3
    problems: int = 2000
    levels: tuple[int, ...] = ()
    samples: int = 4
    temperature: float = 1.0
    step_tokens: int = 16
    chain_tokens: int = 96
    search: str = "majority"
    knobs: Mapping[str, Any] = field(default_factory=dict)
    filter: str = "answer"
    threshold: float = 0.5
    aggregate: str | None = None
    dedupe: bool = True
    cap: int = 4
    restart: bool = True
    rationalise: bool = False
    strict: bool = True
    fit: Fit = Fit(steps=200, lr=1e-3, muon_lr=5e-3, warmup=20)
    checks: int = 4
    seed: int = 0

    def __post_init__(self):
        in_range(self, "rounds problems samples step_tokens chain_tokens cap checks", 1)
        in_range(self, "temperature", 0)
        in_range(self, "threshold", 0, 1)
        if self.filter not in FILTERS:
            raise WorkbenchError(f"unknown filter {self.filter!r}: one of {', '.join(FILTERS)}")
        if self.aggregate not in (None, *AGGREGATES):
            raise WorkbenchError(f"unknown aggregate {self.aggregate!r}: one of {', '.join(AGGREGATES)}, or None")
        search.get(self.search)  # an unknown name is told now
        if "n" in self.knobs:
            raise WorkbenchError("the n of the search is `samples`: set that, not knobs['n']")
        if self.fit.target is not None or self.fit.patience or self.fit.save:
            raise WorkbenchError("a round is fit.steps long and made whole: leave target, patience and save out of fit")

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.step_tokens, self.chain_tokens)


class Chain(NamedTuple):
    """A chain that may teach. `source`: sampled, search, or hinted (its problem is then the one without the hint)."""

    problem: Problem
    trace: Trace
    source: str
    right: bool


# --- filters: a rule says why a chain is dropped, or None ---


def closed(chain: Chain) -> str | None:
    """A chain that ran out of tokens or is malformed teaches no end."""
    return "unfinished" if chain.trace.answer is None else None


def answer(chain: Chain) -> str | None:
    """Closed, with a right answer; its steps are not looked at."""
    return closed(chain) or (None if chain.right else "wrong")


def prm(threshold: float, aggregate: str) -> Callable[[Chain], str | None]:
    """Step scores that come to `threshold` or more; one that is needed and unknown is no 0, but drops the chain.

    >>> p = Problem("p/1", "arithmetic", "2+3", "5")
    >>> chains = [Chain(p, Trace((Step("5", True, score=s),)), "sampled", True) for s in (0.9, 0.1, None)]
    >>> [prm(0.5, "min")(chain) for chain in chains]
    [None, 'low', 'unknown']
    """

    def rule(chain: Chain) -> str | None:
        score = aggregate_score(chain.trace, aggregate)
        return "unknown" if score is None else "low" if score < threshold else None

    return rule


def distinct(chains: Sequence[Chain]) -> list[Chain]:
    """The first of all chains with the same steps."""
    first: dict[tuple, Chain] = {}
    for chain in chains:
        first.setdefault(tuple((step.text, step.final) for step in chain.trace.steps), chain)
    return list(first.values())


def varied(chains: Sequence[Chain], cap: int) -> list[Chain]:
    """`cap` of a problem's chains: the first drawn, then again and again the one whose likest chosen one is least like
    it. Likeness is the Jaccard index of their sets of steps; of equals, the first drawn.

    >>> p = Problem("p/1", "arithmetic", "2+3+4", "9")
    >>> lines = [["2+3=5", "5+4=9"], ["5+4=9", "2+3=5"], ["3+4=7", "2+7=9"]]
    >>> chains = [Chain(p, Trace((*map(Step, some), Step("9", True))), "sampled", True) for some in lines]
    >>> [chains.index(chain) for chain in varied(chains, 2)]
    [0, 2]
    """
    sets = [{step.text for step in chain.trace.steps} for chain in chains]
    chosen, rest = [], list(range(len(chains)))
    while rest and len(chosen) < cap:
        alike = {i: max((len(sets[i] & sets[j]) / len(sets[i] | sets[j]) for j in chosen), default=0) for i in rest}
        chosen.append(min(rest, key=alike.__getitem__))
        rest.remove(chosen[-1])
    return [chains[i] for i in sorted(chosen)]


def sift(chains: Sequence[Chain], config: Flywheel, verifier=None, policy=None) -> tuple[list[Chain], Counter, Cost]:
    """(chains that stay, problem by problem; how many were dropped, each for its first reason; what judging cost).

    The reasons in their order: unfinished, wrong; unknown, low (filter "prm", which judges what the others left);
    duplicate, cap. A hinted chain must be right whatever the filter. `policy` counts tokens.
    """
    dropped, cost, kept = Counter(), Cost(), []

    def passing(rule: Callable[[Chain], str | None], chains: Sequence[Chain]) -> list[Chain]:
        why = [rule(chain) for chain in chains]
        dropped.update(filter(None, why))
        return [chain for chain, reason in zip(chains, why, strict=True) if reason is None]

    loose = config.filter == "none"
    left = passing(lambda chain: (closed if loose and chain.source != "hinted" else answer)(chain), chains)
    if config.filter == "prm":
        left, cost = judged(left, verifier, policy)
        left = passing(prm(config.threshold, config.aggregate or verifier.aggregate), left)
    groups: dict[str, list[Chain]] = {}
    for chain in left:
        groups.setdefault(chain.problem.id, []).append(chain)
    for group in groups.values():
        different = distinct(group) if config.dedupe else group
        some = varied(different, config.cap) if config.dedupe else different[: config.cap]
        dropped.update(duplicate=len(group) - len(different), cap=len(different) - len(some))
        kept += some
    return kept, +dropped, cost


def judged(chains: Sequence[Chain], verifier, policy) -> tuple[list[Chain], Cost]:
    """The chains with the verifier's scores, where a search has not scored every step already; a chain that it cannot
    read stays without. Billed: what the verifier says it `spent`, or every chain read whole.

    Errors: not a row a chain, a score a step; scores that are neither None nor in 0-1.
    """
    todo, rows, found = [chain for chain in chains if None in chain.trace.scores], [], {}
    begin = time.perf_counter()
    while todo:
        try:
            rows = scored(verifier, [(chain.problem.blind(), chain.trace) for chain in todo])
            break
        except ProblemError as error:
            if not any(chain.problem.id in error.problems for chain in todo):
                raise  # about nothing that was asked: it would be for ever
            todo = [chain for chain in todo if chain.problem.id not in error.problems]
    cost = Cost(verifier_seconds=time.perf_counter() - begin)
    read = []
    for chain, scores in zip(todo, rows, strict=True):
        problem, steps = chain.problem.blind(), chain.trace.steps
        if wrong := flaw(verifier, scores, len(steps)):
            raise WorkbenchError(f"{problem.id}: {wrong}")
        scores = [s if s is None else round(s, search.DIGITS) for s in scores]
        steps = tuple(replace(step, score=s) for step, s in zip(steps, scores, strict=True))
        found[id(chain)] = chain._replace(trace=replace(chain.trace, steps=steps))
        read.append(tuple(policy.prompt_tokens(problem, Node((), some)) for some in ((), steps)))
    return [found.get(id(chain), chain) for chain in chains], cost + billed(verifier, read)


# --- one round ---


def problems(task: str, config: Flywheel) -> list[Problem]:
    """What is learnt from, in every round: training problems; of those with equal prompts the first.

    >>> [p.level for p in problems("arithmetic", Flywheel(problems=3, levels=(1, 4)))]
    [1, 1, 4]
    """
    seed, parts = tasks.digest("flywheel", config.seed) >> 1, config.levels or (None,)
    found: dict[str, Problem] = {}
    for i, level in enumerate(parts):
        for p in tasks.get(task).load("train", len(range(i, config.problems, len(parts))), seed, level):
            found.setdefault(p.prompt, p)
    return list(found.values())


def hinted(problem: Problem) -> Problem:
    """The same problem with its answer in the prompt.

    >>> hinted(Problem("p/1", "arithmetic", "2+3", "5")).prompt
    '2+3 (answer 5)'
    """
    return replace(problem, prompt=f"{problem.prompt} (answer {tasks.gold(problem)})")


def drawn(results: Sequence[search.Result], asked: Sequence[Problem], source: str) -> list[Chain]:
    """Every chain that ended in the trees of these results, as chains of the problems `asked`."""
    pairs = zip(asked, results, strict=True)
    traces = [(p, leaf.trace) for p, r in pairs for leaf in sorted(r.leaves, key=lambda leaf: leaf.path)]
    return [Chain(p, trace, source, right_answer(p, trace)) for p, trace in traces]


def turn(policy, base, asked, config: Flywheel, number: int, verifier, folder: Path, progress=False) -> dict:
    """One round; the policy comes with the weights to sample with, `base` has those to `restart` from."""
    seed = tasks.digest("flywheel", config.seed, number) >> 1
    how = {"sampling": config.sampling, "progress": progress, "n": config.samples}
    results = search.drive(asked, config.search, policy, verifier, seed=seed, **how, **config.knobs)
    plain = drawn(results, asked, "sampled" if config.search == "majority" else "search")
    solved = {chain.problem.id for chain in plain if chain.right}
    served = [p for p, r in zip(asked, results, strict=True) if r.stop != "error"]
    failed = [p for p in served if p.id not in solved] if config.rationalise else []
    fresh = tasks.digest("hint", seed) >> 1  # with the noise that failed, hints would look worse than they are
    again = search.drive([hinted(p) for p in failed], "majority", policy, seed=fresh, least=0, **how) if failed else []
    helped = drawn(again, failed, "hinted")
    kept, dropped, judging = sift([*plain, *helped], config, verifier, policy)
    if not kept and config.strict:
        raise WorkbenchError(
            f"round {number} kept none of its {len(plain) + len(helped)} chains {dict(dropped)}: nothing is learnt, "
            "what earlier rounds left stays; take easier levels, more samples, a milder filter or a better base"
        )
    if config.restart:
        put(policy.model, base)
    log: list[dict] = []
    training = Cost()
    order = sorted(range(len(kept)), key=lambda i: tasks.digest("order", seed, i))  # a problem's chains stand together
    if kept:
        training = fit(
            policy.model,
            sft.rows([(kept[i].problem, kept[i].trace) for i in order], policy.encoder),
            lambda batch: sft.collate(batch, policy.pad),
            sft.loss,
            replace(config.fit, seed=tasks.digest("fit", seed, config.fit.seed) % 2**31),
            folder / "model",
            log=log.append,
            progress=progress,
        )
    save(policy, folder / "model")
    (folder / "chains.jsonl").write_text("".join(json.dumps(_row(chain)) + "\n" for chain in kept))
    return {
        "problems": len(asked),
        "unserved": len(asked) - len(served),
        "hints_unserved": sum(result.stop == "error" for result in again),
        "solved": len(solved),
        "sampled": len(plain),
        "right": sum(chain.right for chain in plain),
        "yield": _share(plain),
        "hinted": len(helped),
        "hinted_right": sum(chain.right for chain in helped),
        "hinted_yield": _share(helped),
        "kept": len(kept),
        "kept_hinted": sum(chain.source == "hinted" for chain in kept),
        "dropped": dict(dropped),
        "loss": next((row["loss"] for row in reversed(log) if "loss" in row), None),
        "cost": sum((r.cost for r in (*results, *again)), judging + training).amounts(),
    }


def check(policy, held_out: Sequence[Problem], config: Flywheel) -> dict:
    """pass@1 at the plain prompt and temperature 1, how many of `checks` chains of each problem were right (None: it
    could not be served), and a bill that is no part of the flywheel's. The noise is the same in every round, so rounds
    compare problem by problem."""
    if not held_out:
        return {"held_out": None}
    how = {"sampling": replace(config.sampling, temperature=1.0), "n": config.checks}
    results = search.drive(held_out, "majority", policy, seed=tasks.digest("check", config.seed) >> 1, **how)
    right = Counter(chain.problem.id for chain in drawn(results, held_out, "sampled") if chain.right)
    counts = [None if r.stop == "error" else right[p.id] for p, r in zip(held_out, results, strict=True)]
    known = [count for count in counts if count is not None]
    share = sum(known) / len(known) / config.checks
    return {"held_out": share, "held_out_right": counts, "check_cost": sum((r.cost for r in results), Cost()).amounts()}


# --- the run ---


def train(
    base: LocalPolicy | str | Path,
    task: str,
    config: Flywheel,
    run: Run,
    verifier=None,
    held_out: Sequence[Problem] = (),
    progress: bool = True,
) -> list[dict]:
    """Turn the flywheel; returns the history, a row a round, the first (round 0) of the base as it is.

    `base`: a policy, or its checkpoint. A policy comes back with the weights that it had; those of round r are in
    `rounds/<r>/model` of `run` (a runs.Run). `verifier`: for a search that asks for scores, and for the filter "prm".
    A row counts the chains, plain and hinted, together `kept` and `dropped`, and has the share of each kind that was
    right (`yield`, `hinted_yield`), pass@1 on `held_out` (see `check`), and the `cost`, in which sampling, judging and
    training stand apart. Every round starts from what is on the disk with a seed of its own, so a run that was killed
    goes on with the round it was in, and is the same run but for its seconds.
    Errors: a round that keeps no chain (what the rounds before it left stays); held-out problems among those learnt
    from; a filter or search without the verifier that it needs; 4-bit weights without an adapter. With a LoRA adapter
    that alone learns, on a base of any precision, and a restart is from the adapter as it came.

    >>> train("runs/nano/teach/model", "arithmetic", Flywheel(samples=8), run, held_out=valid)  # doctest: +SKIP
    """
    if config.filter == "prm" and verifier is None:
        raise WorkbenchError('the filter "prm" reads step scores: pass a verifier, or take the filter "answer"')
    policy = base if isinstance(base, LocalPolicy) else LocalPolicy.load(base)
    asked = problems(task, config)
    tasks.refuse_overlap((p.prompt for p in asked), [p.prompt for p in held_out], "the flywheel")
    rounds, history = Run(run.path / "rounds", run.about), run.read("history")
    rounds.path.mkdir(exist_ok=True)
    with learning(policy.model, policy.adapter) as adapter:
        learns = policy.model.named_parameters()
        start = {name: p.detach().clone() for name, p in learns if adapter is None or p.requires_grad}
        bar = tqdm(total=config.rounds + 1, initial=len(history), desc="flywheel", unit="round", disable=not progress)
        try:
            for number in range(len(history), config.rounds + 1):
                row = {"round": number}
                put(policy.model, start)
                if number > 1:
                    restore(policy, rounds.path / str(number - 1) / "model")
                if number:
                    with rounds.folder(str(number)) as folder:
                        row |= turn(policy, start, asked, config, number, verifier, folder, progress)
                row |= check(policy, held_out, config)
                run.append("history", [row])
                history.append(row)
                bar.update()
        finally:
            put(policy.model, start)
            bar.close()
    return history


def begin_as(run: Run, other: Run) -> None:
    """The first round of `other`, a finished run that differs in `restart` and `rounds` alone, which tell from round 2
    on; `train` goes on from there. A run that has begun stays as it is."""
    if not run.read("history"):
        rounds = Run(run.path / "rounds", run.about)
        rounds.path.mkdir(exist_ok=True)
        with rounds.folder("1") as folder:
            shutil.copytree(other.path / "rounds" / "1", folder, dirs_exist_ok=True)
        run.append("history", other.read("history")[:2])


@torch.no_grad()
def put(model, parameters: Mapping[str, torch.Tensor]) -> None:
    """Copy these into the model's parameters of the same names."""
    mine = dict(model.named_parameters())
    for name, value in parameters.items():
        mine[name].copy_(value)


def save(policy, folder: Path) -> None:
    """A checkpoint of the policy's adapter, or of all its weights where it has none."""
    model, tokenizer = policy.model, policy.encoder.tokenizer
    if adapter := adapter_of(model, policy.adapter):
        save_adapter(model, adapter, tokenizer, folder)
        return
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def restore(policy, folder: Path) -> None:
    """The weights that `save` wrote, back into the policy."""
    if not folder.is_dir():
        raise WorkbenchError(f"{folder} is gone, and the next round starts from it: delete the run and begin it again")
    if adapter := adapter_of(policy.model, policy.adapter):
        read_adapter(policy.model, adapter, folder)
    else:
        put(policy.model, dict(load_model(folder)[0].named_parameters()))


def read_chains(run: Run, number: int) -> list[Chain]:
    """The chains that a round was trained on, with their scores where a verifier gave any."""
    folder, out = run.path / "rounds" / str(number), []
    if not folder.is_dir():
        raise WorkbenchError(f"{folder} is not there: {run.path} has {max(0, len(run.read('history')) - 1)} rounds")
    for row in Run(folder, run.about).read("chains"):
        steps = [Step(text, final, tuple(ids), tuple(lps), score) for text, final, ids, lps, score in row["steps"]]
        out.append(Chain(Problem(**row["problem"]), Trace(tuple(steps), row["stop"]), row["source"], row["right"]))
    return out


def _row(chain: Chain) -> dict:
    steps = [[s.text, s.final, s.ids, [round(v, 5) for v in s.logprobs], s.score] for s in chain.trace.steps]
    about = {"source": chain.source, "right": chain.right}
    return {"problem": asdict(chain.problem), "steps": steps, "stop": chain.trace.stop, **about}


def _share(chains: Sequence[Chain]) -> float | None:
    return sum(chain.right for chain in chains) / len(chains) if chains else None
