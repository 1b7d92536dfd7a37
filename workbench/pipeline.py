"""The series' stages: each finds what is on disk or builds it, so that every notebook runs by itself.

A stage is `runs/<profile>/<stage>/`; its parameters and the hashes of its inputs name it. Profiles are scalars only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from . import tasks
from .lanes import Job, abreast, clock, wall
from .runs import Run
from .types import Cost, Problem, Record, Step, Trace, WorkbenchError, unknown


@dataclass(frozen=True)
class Schedule:
    """Scalars of one training run; see `fit.Fit`, which this becomes."""

    steps: int
    batch: int = 64
    lr: float = 2e-3
    muon_lr: float = 0.02
    warmup: int = 20
    check_every: int = 50
    target: float | None = None
    seed: int = 0

    def fit(self):
        from .fit import Fit

        return Fit(**asdict(self))


@dataclass(frozen=True)
class Reinforce:
    """Scalars of one run of reinforcement learning; see `rl.RL`, which this becomes."""

    steps: int = 120
    levels: tuple[int, ...] = (1, 2, 3, 4)
    prompts: int = 96
    group: int = 8
    updates: int = 4
    lr: float = 2.5e-5
    muon_lr: float = 7e-5
    gain_lr: float = 3e-2
    temperature: float = 2.0
    check_every: int = 10
    seed: int = 0

    def config(self, sampling):
        from .rl import RL

        return RL(**asdict(self), step_tokens=sampling.step_tokens, chain_tokens=sampling.chain_tokens)


@dataclass(frozen=True)
class Course:
    """What a run on another reward than the outcome changes of `Reinforce`."""

    steps: int
    lr: float
    muon_lr: float


@dataclass(frozen=True)
class Wheel:
    """Scalars of the flywheel; see `flywheel.Flywheel`, which this becomes."""

    rounds: int = 2
    problems: int = 3000
    samples: int = 2
    temperature: float = 0.3
    cap: int = 2
    steps: int = 120
    batch: int = 64
    accumulate: int = 1
    checkpointing: bool = False
    lr: float = 2e-4
    muon_lr: float = 1e-3
    gain_lr: float = 3e-2
    checks: int = 4
    strict: bool = True
    seed: int = 0

    def config(self, sampling, **changes):
        from .fit import Fit
        from .flywheel import Flywheel

        scalars = asdict(self)
        rates = {
            k: scalars.pop(k) for k in ("steps", "batch", "accumulate", "checkpointing", "lr", "muon_lr", "gain_lr")
        }
        given = scalars | changes
        fit = Fit(**rates, warmup=max(1, self.steps // 10))
        return Flywheel(**given, fit=fit, step_tokens=sampling.step_tokens, chain_tokens=sampling.chain_tokens)


@dataclass(frozen=True)
class Profile:
    """One size of the series: numbers only, the code is the same for all.

    The first `easy` share of the teaching examples is of the two easiest levels, the rest of all. `judge_problems` x
    `judge_chains` sampled chains are labelled for the verifiers; `audit` of them also by `rollouts` a step. RL on
    process reward, and on length, is `reinforce` but for what `process` says: few steps, which is enough to see where
    it goes; outcome reward's policy leaves `coverage` chains of every test problem (no more than the start did), for
    pass@k. `wheel`: STaR with and without a restart; `turn`: one round of the plain flywheel and of each variant that
    is held against it. Who changes one of the two will mostly want to change both. `small`: the shape of a second
    policy, taught the same examples to the same target, in four passes at most, and searched with a judge of its own,
    to be held against the first one's single answer. `early`: steps of teaching at which the policy is kept too, each
    to leave `early_n` chains of every test problem.
    """

    name: str
    task: str = "arithmetic"
    shape: str = "nano"
    step_tokens: int = 16
    chain_tokens: int = 96
    easy: float = 0.33
    teach: Schedule = field(default_factory=lambda: Schedule(1500, batch=32, muon_lr=0.01, warmup=50, target=0.5))
    held_out: int = 240
    judge_problems: int = 6000
    judge_chains: int = 4
    judge: Schedule = field(default_factory=lambda: Schedule(800, batch=64, lr=5e-4, muon_lr=0.003))
    head: Schedule = field(default_factory=lambda: Schedule(120, batch=64, lr=1e-3, muon_lr=0.0))
    extra_layers: int = 0
    audit: int = 150
    rollouts: int = 8
    reinforce: Reinforce = field(default_factory=Reinforce)
    process: Course = field(default_factory=lambda: Course(12, lr=2e-4, muon_lr=6e-4))
    coverage: int = 64
    wheel: Wheel = field(default_factory=lambda: Wheel(problems=8000, samples=1, cap=1, steps=240))
    turn: Wheel = field(default_factory=Wheel)
    search_problems: int = 240
    search_n: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)  # a slope is read off two decades
    beam_n: tuple[int, ...] = (4, 16)
    caps: tuple[int, ...] = (16, 32, 48)
    early: tuple[int, ...] = (350, 600, 850, 1100)  # over half a decade with the end, or no rate is read off it
    early_n: int = 16
    small: str = "nano-14th"
    small_teach: Schedule = field(default_factory=lambda: Schedule(6000, batch=32, muon_lr=0.01, warmup=50, target=0.5))
    small_judge: Schedule = field(default_factory=lambda: Schedule(1500, batch=64, lr=5e-4, muon_lr=0.003))
    small_n: tuple[int, ...] = (1, 4, 16, 64)

    @property
    def sampling(self):
        from .policies import Sampling

        return Sampling(1.0, self.step_tokens, self.chain_tokens)


_QUICK = Schedule(8, batch=16, check_every=4)
_SPIN = Wheel(rounds=2, problems=12, samples=4, steps=4, batch=8, checks=2, strict=False)
PROFILES = {
    "nano": Profile("nano"),
    "countdown": Profile(  # another world for the searches
        "countdown",
        task="countdown",
        judge_problems=2000,
        judge=Schedule(280, batch=64, lr=5e-4, muon_lr=0.003),
        small_judge=Schedule(500, batch=64, lr=5e-4, muon_lr=0.003),
    ),
    "micro": Profile(  # seconds, for trying the plumbing out: its models learn nothing worth reporting
        "micro",
        shape="micro",
        teach=_QUICK,
        held_out=24,
        judge_problems=12,
        judge_chains=2,
        judge=_QUICK,
        head=_QUICK,
        audit=4,
        rollouts=2,
        reinforce=Reinforce(steps=2, prompts=6, group=4, updates=1, check_every=1),
        process=Course(2, lr=2e-4, muon_lr=6e-4),
        wheel=_SPIN,
        turn=_SPIN,
        search_problems=12,
        search_n=(1, 2, 4, 8),  # a slope needs half a decade
        beam_n=(4,),
        early=(4,),
        early_n=4,
        small="micro",
        small_teach=_QUICK,
        small_judge=_QUICK,
        small_n=(1, 4),
    ),
}


def profile(name: str) -> Profile:
    if name not in PROFILES:
        if name in ("small", "gpu"):
            raise WorkbenchError(f"profile {name!r} is for notebooks 03 to 07, `prm` and `stage`: this is for nano")
        raise unknown("profile", name, PROFILES)
    return PROFILES[name]


def runs_folder(runs: str | Path = "runs") -> Path:
    """A relative folder is the project's, so that a notebook opened by hand finds what the command line made."""
    project = Path(__file__).resolve().parents[1]
    return (project if (project / "pyproject.toml").exists() else Path.cwd()) / runs


class Series:
    """All stages of one profile under one runs folder. Every property or method builds what is missing.

    >>> series = Series("nano")            # doctest: +SKIP
    >>> policy = series.policy()           # trains it the first time, loads it ever after  # doctest: +SKIP
    """

    def __init__(self, profile_name: str = "nano", runs: str | Path = "runs", seed: int = 0, progress: bool = True):
        self.profile, self.seed, self.progress = profile(profile_name), seed, progress
        self.root = runs_folder(runs) / self.profile.name

    # --- data ---

    @property
    def task(self):
        return tasks.get(self.profile.task)

    @property
    def exact(self) -> bool:
        """Does the task know which steps are right? Where it does not, a chain's answer stands in: see `marks`."""
        return hasattr(self.task, "oracle")

    def marks(self, items: Sequence[tuple[Problem, Trace]]) -> list[list[float]]:
        """A label a step: the oracle's, or, without one, for each step whether the chain's answer is right."""
        from . import labels

        if self.exact:
            return labels.oracle(items)
        return [[float(labels.right_answer(q, trace))] * len(trace.steps) for q, trace in items]

    def truth(self, problems: Sequence[Problem]):
        """The verifier that knows, which shows the most that a choice can reach: scores as `marks` has them."""
        from .verifiers.oracle import Answers, Oracle

        return (Oracle if self.exact else Answers)(problems)

    def problems(self, split: str, n: int, level: int | None = None) -> list[Problem]:
        return self.task.load(split, n, self.seed, level)

    def held_out(self) -> list[Problem]:
        """The validation problems: what to stop at, tune on and calibrate with. What is reported of them is the course
        of a training run, and it says so."""
        return self.problems("valid", self.profile.held_out)

    def test(self) -> list[Problem]:
        """The test problems: what is reported. Never looked at by any choice."""
        return self.problems("test", self.profile.search_problems)

    # --- teach ---

    def _about(self, params: dict) -> dict:
        p = self.profile
        return {"seed": self.seed, "task": p.task, "tokens": [p.step_tokens, p.chain_tokens]} | params

    def _open(self, stage: str, inputs: dict | None = None, **params) -> Run:
        run = Run.open(self.root / stage, self._about(params), inputs)
        if not run.done:
            print(f"{self.profile.name}: building {stage}", flush=True)
        return run

    def teach(self, reasoning: bool = True, small: bool = False) -> Run:
        """The policy (`reasoning`), stopped at its target, or the `small` one; or its direct-answer twin, which sees
        all the examples."""
        p = self.profile
        schedule = p.small_teach if small else p.teach if reasoning else replace(p.teach, target=None)
        shape = p.small if small else p.shape
        params = {"shape": shape, "reasoning": reasoning, "easy": p.easy, "teach": asdict(schedule)}
        params["held_out"] = p.held_out
        if reasoning and not small:
            params["early"] = p.early
        run = self._open("teach-small" if small else "teach" if reasoning else "direct", **params)
        if not run.done:
            self._teach(run, reasoning, schedule)
        return run

    def _teach(self, run: Run, reasoning: bool, schedule: Schedule) -> None:
        from . import sft
        from .fit import fit
        from .format import Encoder
        from .models import character_tokenizer, new_model

        p, tokenizer = self.profile, character_tokenizer()
        model, encoder = new_model(run.params["shape"], tokenizer, self.seed), Encoder(tokenizer, reasoning)

        def rows(problems):
            chains = (self.task.demonstration(problem) for problem in problems)
            pairs = [(q, c if reasoning else sft.direct(c)) for q, c in zip(problems, chains, strict=True)]
            return sft.rows(pairs, encoder)

        def log(row):
            run.append("history", [row])
            if row.get("step") in run.params.get("early", ()):
                _save(run, f"model-{row['step']}", model, tokenizer)

        held, easiest = rows(self.held_out()), self.task.LEVELS[:2]
        total = p.teach.steps * p.teach.batch
        easy = [self.problems("train", int(total * p.easy) // 2, level) for level in easiest]
        order = [q for pair in zip(*easy, strict=True) for q in pair]
        _fresh(run, "history")
        cost = fit(
            model,
            rows([*order, *self.problems("train", total - len(order))]),
            lambda batch: sft.collate(batch, tokenizer.pad_token_id),
            sft.loss,
            schedule.fit(),
            run.path / "trainer",
            check=lambda: {"accuracy": sft.accuracy(model, held, tokenizer.pad_token_id)},
            log=log,
            progress=self.progress,
        )
        _save(run, "model", model, tokenizer)
        last = run.read("history")[-1]
        run.finish(steps=last["step"], cost=cost.amounts(), accuracy=last["accuracy"])

    def policy(self, reasoning: bool = True, stage: str | None = None, small: bool = False):
        """The taught policy, its direct twin or its `small` one, or what a later stage left of it: `reinforce-…` or
        `flywheel-…`."""
        if stage:
            head, _, rest = stage.partition("-")
            return (
                self._turned(self.flywheel(rest))
                if head == "flywheel"
                else self.load(self.reinforce(rest).path / "model")
            )
        return self.load(self.teach(reasoning, small).path / "model", reasoning=reasoning)

    def load(self, folder: Path, reasoning: bool = True):
        """A policy that a stage left in `folder`."""
        from .policies.local import LocalPolicy

        return LocalPolicy.load(folder, reasoning=reasoning)

    def early(self) -> Run:
        """Chains of the test problems from the policy as it was while it was taught; the knob `step` says when."""
        p, taught = self.profile, self.teach()
        run = self._open("early", {"policy": taught.path}, steps=p.early, n=p.early_n, problems=p.search_problems)
        if run.done:
            return run
        from . import evaluate
        from .policies.local import LocalPolicy

        _fresh(run, "records")
        spent = Cost()
        for step in [step for step in p.early if step <= taught.summary["steps"]]:  # it ends once it is good enough
            policy = LocalPolicy.load(taught.path / f"model-{step}")
            records, _ = evaluate.samples(f"early-{step}", self.test(), policy, p.early_n, self.seed, p.sampling)
            run.append("records", (replace(r, knobs={**r.knobs, "step": step}).to_json() for r in records))
            spent = sum((r.cost for r in records), spent)
        run.finish(cost=spent.amounts())
        return run

    # --- label and judge ---

    def chains(self, small: bool = False) -> Run:
        """Chains sampled from the policy on training problems, every step with its label (`marks`)."""
        p, taught, stage = self.profile, self.teach(small=small), "chains-small" if small else "chains"
        run = self._open(stage, {"policy": taught.path}, problems=p.judge_problems, chains=p.judge_chains)
        if not run.done:
            from . import evaluate

            _fresh(run, "traces")
            problems = self.task.load("train", p.judge_problems, tasks.digest("judge", self.seed) >> 1)
            records, sampled = evaluate.samples(
                stage, problems, self.policy(small=small), p.judge_chains, self.seed, p.sampling
            )
            items = [(q, trace) for q, traces in sampled for trace in traces]
            run.append("traces", (_row(q, t, marks) for (q, t), marks in zip(items, self.marks(items), strict=True)))
            run.finish(cost=sum((r.cost for r in records), Cost()).amounts(), traces=len(items))
        return run

    def audit(self) -> Run:
        """Monte-Carlo labels, hard and soft, beside those that they have, on the first chains of `chains`."""
        p, source = self.profile, self.chains()
        run = self._open("audit", {"chains": source.path}, traces=p.audit, rollouts=p.rollouts)
        if not run.done:
            from . import labels

            _fresh(run, "traces")
            rows = read_traces(source)[:: max(1, p.judge_chains)][: p.audit]
            items = [(q, trace) for q, trace, _ in rows]
            soft, cost = labels.monte_carlo(self.policy(), items, p.rollouts, self.seed, sampling=p.sampling)
            run.append(
                "traces",
                (
                    {**_row(q, t, oracle), "soft": s, "hard": [float(x > 0) for x in s]}
                    for (q, t, oracle), s in zip(rows, soft, strict=True)
                ),
            )
            run.finish(cost=cost.amounts(), rollouts=p.rollouts)
        return run

    FIXED = {"name", "task", "turn.rounds"}  # what names a profile, or is one whatever it says: it cannot be changed
    VERIFIERS = ("likelihood", "head", "head-rollouts", "orm", "small")
    MAIN = "likelihood"  # the one that searches are guided by
    JUDGES = ("likelihood", "head", "orm")  # those that searches compare

    def judge(self, kind: str = "likelihood") -> Run:
        """A trained verifier, always from the policy's weights.

        `likelihood`: a language model fine-tuned on right and corrected steps. `head`: the classic linear head on step
        ends, oracle labels. `head-rollouts`: the same on soft Monte-Carlo labels. `orm`: the same on outcomes. `small`:
        as `likelihood`, from the small policy and its own chains.
        """
        if kind not in self.VERIFIERS:
            raise unknown("verifier", kind, self.VERIFIERS)
        p, small = self.profile, kind == "small"
        source = self.audit() if kind == "head-rollouts" else self.chains(small)
        schedule = {"likelihood": p.judge, "small": p.small_judge}.get(kind, p.head)
        inputs = {"chains": source.path, "policy": self.teach(small=small).path}
        run = self._open(f"judge-{kind}", inputs, kind=kind, fit=asdict(schedule), extra_layers=p.extra_layers)
        if not run.done:
            self._judge(run, kind, source, schedule)
        return run

    def _judge(self, run: Run, kind: str, source: Run, schedule: Schedule) -> None:
        from . import labels, sft
        from .fit import fit
        from .verifiers import prm

        policy = self.policy(small=kind == "small")
        encoder, tokenizer = policy.encoder, policy.encoder.tokenizer
        rows = [(q, trace, marks) for q, trace, marks in read_traces(source) if trace.steps]
        # Chains of one problem stand together on disk; a fixed shuffle keeps a batch from being all alike.
        rows.sort(key=lambda row: tasks.digest("order", row[0].id, len(row[1].steps), row[1].steps[-1].text))
        if kind in ("likelihood", "small"):
            model, loss, collate = policy.model, sft.loss, sft.collate
            data = sft.rows([(q, labels.corrected(q, trace, marks)) for q, trace, marks in rows], encoder)
        else:
            model, loss, collate = prm.from_policy(policy.model, run.params["extra_layers"]), prm.bce, prm.collate
            data = [prm.judged(q, trace, marks, encoder, outcome=kind == "orm") for q, trace, marks in rows]
        _fresh(run, "history")
        cost = fit(
            model,
            data,
            lambda batch: collate(batch, tokenizer.pad_token_id),
            loss,
            schedule.fit(),
            run.path / "trainer",
            log=lambda row: run.append("history", [row]),
            progress=self.progress,
        )
        _save(run, "model", model, tokenizer)
        run.finish(cost=cost.amounts())

    def verifier(self, kind: str = "likelihood"):
        from .verifiers.likelihood import Likelihood
        from .verifiers.prm import PRM

        folder = self.judge(kind).path / "model"
        if kind in ("likelihood", "small"):
            return Likelihood.load(folder)
        # Outcome and value labels speak of the end; correctness labels are as strong as their weakest step.
        return PRM.load(folder, aggregate="min" if kind == "head" else "last")

    def marked(self, split: str, results: Mapping[str, Sequence], judges: Mapping[str, Any]):
        """({judge: [(problem, chain with its scores)]}, the chains' marks): what judges are held against.

        Here the chains of `results`, which each judge scored while they were drawn, and the oracle's marks.
        """
        seen = {name: [(r.problem, leaf.trace) for r in rows for leaf in r.leaves] for name, rows in results.items()}
        return seen, self.marks(next(iter(seen.values())))

    # --- search ---

    def search(self) -> Run:
        """Every method at every n on the test problems, from one set of proposals; a record a problem and setting."""
        p = self.profile
        inputs = {"policy": self.teach().path, **{k: self.judge(k).path for k in self.JUDGES}}
        run = self._open("search", inputs, problems=p.search_problems, n=p.search_n, beam_n=p.beam_n, caps=p.caps)
        if run.done:
            return run
        policy, prm, alone = self.policy(), self.verifier(), None
        judges = {"prm": prm, "oracle": self.truth(self.test()), "ORM": self.verifier("orm")}
        if self.MAIN == "likelihood":
            alone, judges["head"] = _alone(prm), self.verifier("head")
        return self._searched(run, self._methods(policy, alone), judges, policy)

    def _searched(self, run: Run, plan: list[tuple], judges: dict, policy) -> Run:
        """Records of a plan on the test problems; and the chains of its largest vote, with what the judge `prm` thinks
        of each (knob `score`) and its FLOPs (`judged_flops`), which the chain's own cost leaves out."""
        from . import evaluate
        from .search import Memo, drive

        problems, sampling, memos = self.test(), self.profile.sampling, {}
        for label, method, judge, knobs, who in tqdm(plan, run.path.name, disable=not self.progress):
            memo, tree = memos.setdefault(id(who), Memo()), method == "beam"
            evaluate.into(
                run, problems, method, who, judges.get(judge), self.seed, memo, sampling, label, tree=tree, **knobs
            )
        _fresh(run, "samples")
        n = max(knobs["n"] for _, method, _, knobs, _ in plan if method == "weighted_vote")
        records, _ = evaluate.samples(run.path.name, problems, policy, n, self.seed, sampling)
        how = {"seed": self.seed, "sampling": sampling, "memo": memos[id(policy)]}  # where all of it is
        voted = drive(problems, "weighted_vote", policy, judges["prm"], **how, n=n)
        run.append("samples", (r.to_json() for r in _scored(records, voted, judges["prm"])))
        run.finish(problems=len(problems))
        return run

    def _methods(self, policy, alone) -> list[tuple]:
        """What `search` runs: (label, search, judge, knobs, policy); a stage that was killed goes on where it was."""
        p, min_ = self.profile, {"aggregate": "min"}
        plan = [("greedy", "greedy", None, {}, policy)]
        if alone:
            plan.append(("verifier alone", "greedy", None, {}, alone))
        for n in p.search_n:
            plan.append(("majority", "majority", None, {"n": n}, policy))
            plan += [(name, name, "prm", {"n": n, **min_}, policy) for name in ("best_of_n", "weighted_vote")]
            plan.append(("best_of_n (oracle)", "best_of_n", "oracle", {"n": n, **min_}, policy))
        for n in [n for n in p.search_n if n <= 16]:
            if alone:
                plan.append(("best_of_n (head)", "best_of_n", "head", {"n": n, **min_}, policy))
            plan.append(("best_of_n (ORM)", "best_of_n", "ORM", {"n": n, "aggregate": "last"}, policy))
        for n in p.beam_n:
            for name in ("beam", "lookahead", "dvts", "mcts"):
                plan.append((name, name, "prm", {"n": n, "width": 4, **min_}, policy))
            plan += [(name, name, "prm", {"n": n, **min_}, policy) for name in ("particle", "revisions")]
            plan.append(("hybrid", "hybrid", "prm", {"n": n, "width": 4, "probe": min(4, n), **min_}, policy))
            if self.exact:  # an answer that is right says nothing of a step on the way
                plan.append(("beam (oracle)", "beam", "oracle", {"n": n, "width": 4, **min_}, policy))
        plan += [("adaptive", "adaptive", None, {"n": n}, policy) for n in p.search_n if n > 4]
        plan += [(f"budget_forcing (cap {cap})", "budget_forcing", None, {"cap": cap}, policy) for cap in p.caps]
        plan.append(("budget_forcing (extend 1)", "budget_forcing", None, {"extend": 1}, policy))
        return plan

    def small(self) -> Run:
        """The small policy and its own judge on the test problems, to be held against one answer of the large one."""
        p = self.profile
        inputs = {"policy": self.teach(small=True).path, "verifier": self.judge("small").path}
        run = self._open("small", inputs, problems=p.search_problems, n=p.small_n, alone=True)
        if run.done:
            return run
        policy, prm = self.policy(small=True), self.verifier("small")
        plan = [("greedy", "greedy", None, {}, policy), ("verifier alone", "greedy", None, {}, _alone(prm))]
        for n in p.small_n:
            plan.append(("majority", "majority", None, {"n": n}, policy))
            plan += [(name, name, "prm", {"n": n}, policy) for name in ("best_of_n", "weighted_vote")]
            if n >= 4:
                plan.append(("beam", "beam", "prm", {"n": n, "width": 4}, policy))
        return self._searched(run, plan, {"prm": prm}, policy)

    # --- turn the flywheel ---

    FLYWHEELS = {
        "restart": {},
        "continued": {"restart": False},
        "plain": {"rounds": 1},
        "no-filter": {"filter": "none", "rounds": 1},
        "no-dedupe": {"dedupe": False, "rounds": 1},
        "prm-filter": {"filter": "prm", "rounds": 1},
        "search": {"search": "beam", "knobs": {"width": 4}, "rounds": 1},
        "rationalise": {"rationalise": True, "rounds": 1},
    }

    def flywheel(self, kind: str = "restart") -> Run:
        """The taught policy, trained on chains of its own that came out right, round after round: see `FLYWHEELS`."""
        if kind not in self.FLYWHEELS:
            raise unknown("flywheel", kind, self.FLYWHEELS)
        p, inputs = self.profile, {"policy": self.teach().path}
        wheel = p.wheel if kind in ("restart", "continued") else p.turn
        judging = kind in ("search", "prm-filter")
        if judging:
            inputs["verifier"] = self.judge().path
        changes = dict(self.FLYWHEELS[kind])
        if kind == "search":  # as many chains as the others draw, in trees of four
            changes |= {"samples": 4, "problems": max(1, wheel.problems * wheel.samples // 4)}
        alike = kind in ("continued", "plain") and wheel == p.wheel  # up to the second round
        twin = self.flywheel() if alike else None
        if twin:
            inputs["first round"] = twin.path
        used = {"held_out": p.held_out, "tested": p.search_problems}
        run = self._open(f"flywheel-{kind}", inputs, kind=kind, wheel=asdict(wheel), **used, **changes)
        if run.done:
            return run
        from . import evaluate, flywheel

        if twin:
            flywheel.begin_as(run, twin)
        config = wheel.config(p.sampling, **changes)
        history = flywheel.train(
            self.policy(), p.task, config, run, self.verifier() if judging else None, self.held_out(), self.progress
        )
        _fresh(run, "records")
        policy = self._turned(run)
        records, _ = evaluate.samples(f"flywheel-{kind}", self.test(), policy, 4, self.seed, p.sampling)
        run.append("records", (r.to_json() for r in records))
        run.finish(cost=sum((Cost(**row["cost"]) for row in history[1:]), Cost()).amounts())
        return run

    def _turned(self, run: Run):
        return self.load(run.path / "rounds" / str(run.read("history")[-1]["round"]) / "model")

    # --- reinforce ---

    REWARDS = ("outcome", "prm-sum", "prm-min", "prm-mixed", "length")

    def reinforce(self, reward: str = "outcome") -> Run:
        """GRPO from the taught policy on one reward; then samples of the test problems from the policy it left.

        `prm-mixed` is the sum of `prm-min` and `outcome`; `length` pays tokens and nothing else, a hack on purpose.
        """
        if reward not in self.REWARDS:
            raise unknown("reward", reward, self.REWARDS)
        p = self.profile
        inputs, judging = {"policy": self.teach().path}, reward.startswith("prm-")
        if judging:
            inputs["verifier"] = self.judge().path
        scalars = p.reinforce if reward == "outcome" else replace(p.reinforce, **asdict(p.process))
        n = min(p.coverage, max(p.search_n)) if reward == "outcome" else 4
        used = {"held_out": p.held_out, "tested": p.search_problems, "n": n}
        run = self._open(f"reinforce-{reward}", inputs, reward=reward, rl=asdict(scalars), **used)
        if run.done:
            return run
        from . import evaluate, flywheel, rl

        policy = self.policy()
        credit = rl.outcome if reward == "outcome" else rl.length(p.chain_tokens)
        if judging:
            form = reward.removeprefix("prm-")
            credit = rl.process(self.verifier(), "min" if form == "mixed" else form)
            credit = rl.mixture((1.0, credit), (1.0, rl.outcome)) if form == "mixed" else credit
        config = scalars.config(p.sampling)
        rl.train(policy, p.task, credit, config, run, self.held_out(), self.progress)
        with run.folder("model") as folder:
            flywheel.save(policy, folder)
        _fresh(run, "records")
        records, _ = evaluate.samples(f"reinforce-{reward}", self.test(), policy, n, self.seed, p.sampling)
        run.append("records", (r.to_json() for r in records))
        history = run.read("history")
        run.finish(cost=sum((Cost(**row["cost"]) for row in history[1:]), Cost()).amounts())
        return run

    def training_curve(self, stage: str, whole: bool = True) -> list[Record]:
        """Every check of a `reinforce-…` or `flywheel-…` stage: a record a held-out problem and chain, n its step.

        The cost is all up to then: teaching, and what a judge's chains and training took where one is used; or with
        `whole=False` the stage's own alone, without the start, which is free.
        """
        head, _, rest = stage.partition("-")
        run, problems = getattr(self, head)(rest), self.held_out()
        before = [self.teach()]
        if "verifier" in run.about["inputs"]:
            judge = self.judge()
            before += [*([self.chains()] if "chains" in judge.about["inputs"] else ()), judge]
        spent, history = sum((Cost(**run.summary["cost"]) for run in before if whole), Cost()), run.read("history")
        checks = {row["step"]: [[] if x is None else [x] for x in row["true"]] for row in run.read("checks")}
        out: list[Record] = []
        for number, row in enumerate(history):
            spent += Cost(**row.get("cost", {}))
            found = checks.get(number) if spent.flops else None
            if head == "flywheel" and spent.flops:
                n = run.params["wheel"]["checks"]
                found = [[] if x is None else [i < x for i in range(n)] for x in row["held_out_right"]]
            for problem, rights in zip(problems, found or (), strict=False):
                cost = Cost(training_flops=spent.flops)
                knobs = {"method": stage, "n": number}
                out += [
                    Record(stage, problem.id, i, None, bool(right), cost, problem.level, knobs)
                    for i, right in enumerate(rights)
                ]
        return out


def ledger(spent: Mapping[str, Run | Cost]) -> str:
    """What stages cost, as a Markdown table: a finished run's own cost, or one that is given.

    >>> print(ledger({"search": Cost(sampled=1200, policy_flops=3e9, policy_seconds=2)}).splitlines()[-1])
    | search | 1,200 | 0 | 0 | 3e+09 | 2 |
    """
    rows = ["| stage | sampled | judged | trained tokens | FLOPs | seconds |", "|---|---|---|---|---|---|"]
    for name, c in spent.items():
        c = c if isinstance(c, Cost) else Cost(**c.summary["cost"])
        rows.append(f"| {name} | {c.sampled:,} | {c.judged:,} | {c.trained:,} | {c.flops:.3g} | {c.seconds:,.0f} |")
    return "\n".join(rows)


# --- rows on disk ---


def _row(problem: Problem, trace: Trace, labels: Sequence[float]) -> dict:
    return {
        "problem": asdict(problem),
        "steps": [[s.text, s.final, list(s.ids), [round(v, 5) for v in s.logprobs]] for s in trace.steps],
        "stop": trace.stop,
        "labels": list(labels),
    }


def read_traces(run: Run) -> list[tuple[Problem, Trace, list[float]]]:
    """(problem, trace, labels) of a `chains` run (the oracle's labels) or an `audit` run (soft rollouts')."""
    out = []
    for row in run.read("traces"):
        steps = tuple(Step(text, final, tuple(ids), tuple(logprobs)) for text, final, ids, logprobs in row["steps"])
        out.append((Problem(**row["problem"]), Trace(steps, row["stop"]), row.get("soft", row["labels"])))
    return out


def read_records(run: Run, name: str = "records") -> list[Record]:
    out = []
    for number, row in enumerate(run.read(name), 1):
        try:
            out.append(Record.of(row))
        except (TypeError, KeyError) as error:
            raise WorkbenchError(f"{run.path / name}.jsonl, row {number}, is no record: {error}") from None
    return out


def _fresh(run: Run, *names: str) -> None:
    """A stage that was cut short writes its rows again from the start."""
    for name in names:
        (run.path / f"{name}.jsonl").unlink(missing_ok=True)


def _save(run: Run, name: str, model, tokenizer) -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with run.folder(name) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _scored(records: Sequence[Record], voted: Sequence, judge) -> list[Record]:
    """The records of `evaluate.samples` with the judge's view of each chain; the first one's pays for the prompt too,
    so that the FLOPs add up to the vote's."""
    from .select import aggregate_score

    chains = [(r.cost.prompt, leaf.trace) for r in voted for leaf in sorted(r.leaves, key=lambda leaf: leaf.path)]
    out = []
    for record, (prompt, trace) in zip(records, chains, strict=True):
        flops = judge.flops(prompt, trace.tokens) + (0 if record.seed else judge.flops(0, prompt, head=False))
        knobs = {"score": aggregate_score(trace, judge.aggregate), "judged_flops": flops}
        out.append(replace(record, knobs={**record.knobs, **knobs}))
    return out


def _alone(judge):
    """The judge as a policy: it is a language model too, and what it answers without a search must be drawn."""
    from .policies.local import LocalPolicy

    return LocalPolicy(judge.model, judge.encoder.tokenizer)


def solve_cli(args) -> int:
    """`python -m workbench solve "47+38-29*2"`: a PRM-weighted vote on the user's own problem, told in full.

    The policy is the reinforced one if there is one; the verifier learnt on the taught one's chains.
    """
    from .search import drive
    from .select import aggregate_score

    if not 1 <= args.n <= 1024:
        raise WorkbenchError(f"--n {args.n}: how many chains to grow, from 1 to 1024")
    series = Series(args.profile, args.runs or "runs")
    problem = series.task.parse(args.problem)
    if problem.level > 2 * series.task.LEVELS[-1] or len(problem.prompt) > 48:
        raise WorkbenchError(f"{problem.prompt} is too long for a chain of {series.profile.chain_tokens} tokens")
    reinforced = (series.root / "reinforce-outcome" / "DONE").exists()
    policy, verifier = series.policy(stage="reinforce-outcome" if reinforced else None), series.verifier()
    knobs = {"n": args.n, "aggregate": verifier.aggregate}
    [result] = drive(
        [problem], "weighted_vote", policy, verifier, sampling=series.profile.sampling, seed=args.seed, **knobs
    )
    leaves = [leaf for leaf in result.leaves if leaf.trace.answer is not None]
    score = {leaf.path: aggregate_score(leaf.trace, verifier.aggregate) for leaf in leaves}
    chosen = [leaf for leaf in leaves if leaf.trace.answer == result.answer]
    if not chosen:
        micro = series.profile.name == "micro"  # more chains of a model that has learnt nothing are no answer
        advice = "micro's models learn nothing worth asking: try --profile nano" if micro else "try more with --n"
        print(f"{problem.prompt}: none of {args.n} chains reached an answer; {advice}")
        return 1
    best = max(chosen, key=lambda leaf: score[leaf.path])
    print(
        f"policy: {'taught, then reinforced on outcomes' if reinforced else 'taught'}; {args.n} chains, weighted vote\n"
    )
    print(f"{problem.prompt} = {result.answer}\n\nthe best chain, and what the verifier thinks of each step:")
    for step in best.trace.steps:
        text = f"answer {step.text}" if step.final else step.text
        print(f"  {step.score:.2f} {'█' * round(10 * step.score):<10} {text}")
    votes: dict[str, list[float]] = {}
    for leaf in leaves:
        votes.setdefault(leaf.trace.answer, []).append(score[leaf.path])
    print(f"\nthe vote of {len(leaves)} finished chains of {args.n} (chains, sum of scores):")
    for answer, scores in sorted(votes.items(), key=lambda item: -sum(item[1]))[:6]:
        print(f"  {answer:>6}  {len(scores):>3}  {sum(scores):.2f}{'  <- chosen' if answer == result.answer else ''}")
    c = result.cost
    print(
        f"\ncost: {c.sampled} sampled, {c.prompt} prompt and {c.judged} judged tokens; {c.flops:.3g} FLOPs "
        f"(policy {c.policy_flops:.3g}, verifier {c.verifier_flops:.3g}); {c.seconds:.2f} s"
    )
    print(f"truth: {problem.answer}, so this is {'right' if series.task.check(problem, result.answer) else 'wrong'}")
    return 0


# --- all stages at once ---

# stage -> (what it waits for, seconds of one core on a 2026 laptop, for the estimate only)
STAGES: dict[str, tuple[tuple[str, ...], int]] = {
    "teach": ((), 320),
    "direct": ((), 230),
    "chains": (("teach",), 120),
    "judge-likelihood": (("chains",), 270),
    "reinforce-outcome": (("teach",), 310),
    "judge-head": (("chains",), 50),
    "judge-orm": (("chains",), 50),
    "search": (("judge-likelihood", "judge-head", "judge-orm"), 200),
    "flywheel-restart": (("teach",), 310),
    "flywheel-continued": (("flywheel-restart",), 160),
    "flywheel-search": (("judge-likelihood",), 90),
    "flywheel-prm-filter": (("judge-likelihood",), 85),
    "flywheel-plain": (("flywheel-restart",), 75),  # it begins as that one where their scalars are the same
    "flywheel-no-filter": (("teach",), 75),
    "flywheel-no-dedupe": (("teach",), 75),
    "flywheel-rationalise": (("teach",), 90),
    "reinforce-prm-sum": (("judge-likelihood",), 65),
    "reinforce-prm-min": (("judge-likelihood",), 65),
    "reinforce-prm-mixed": (("judge-likelihood",), 65),
    "reinforce-length": (("teach",), 60),
    "early": (("teach",), 30),
    "teach-small": ((), 300),
    "chains-small": (("teach-small",), 45),
    "judge-small": (("chains-small",), 150),
    "small": (("judge-small",), 60),
    "audit": (("chains",), 8),
    "judge-head-rollouts": (("audit",), 40),
}


HEAVY = ("workbench.flywheel", "workbench.rl", "workbench.evaluate", "workbench.verifiers.prm")  # it takes seconds


class _Absent(Exception):
    """A stage is not there as it should be."""


class _Found(Series):
    """Stages that are on disk; one that would have to be built is `_Absent`."""

    def __init__(self, *args):
        super().__init__(*args)
        self.found: dict[str, Run] = {}

    def _open(self, stage: str, inputs: dict | None = None, **params) -> Run:
        if stage not in self.found:
            run = Run.finished(self.root / stage, self._about(params), inputs)
            if run is None:
                raise _Absent(stage)
            self.found[stage] = run
        return self.found[stage]


def missing(profile_name: str = "nano", runs: str | Path = "runs", seed: int = 0) -> list[str]:
    """The stages that `build` has to build: not there, unfinished, or of other parameters or inputs than today's."""
    found, out = _Found(profile_name, runs, seed), []
    for name in STAGES:
        try:
            build_stage(name, opened=lambda *_: found)
        except _Absent:
            out.append(name)
    return out


def build_stage(
    name: str, profile_name: str = "nano", runs: str | Path = "runs", seed: int = 0, opened: Callable = Series
) -> Run:
    """Build one stage by its folder's name (and what it needs, if that is absent)."""
    if name not in STAGES:
        raise unknown("stage", name, STAGES)
    series = opened(profile_name, runs, seed)
    head, _, rest = name.partition("-")
    if head == "judge":
        return series.judge(rest)
    if head in ("reinforce", "flywheel"):
        return getattr(series, head)(rest)
    if rest == "small":
        return getattr(series, head)(small=True)
    return series.teach(reasoning=False) if name == "direct" else getattr(series, name)()


def build(
    profile_name: str = "nano", runs: str | Path = "runs", seed: int = 0, lanes: int = 2, say: Callable = print
) -> tuple[int, int]:
    """Build all stages, `lanes` at a time, each in a process of its own.

    A finished stage costs nothing. A failing one stops the rest and names its log; the same call goes on from there.
    Returns (how many stages were built, peak memory of them all in MB).
    """
    profile(profile_name)
    jobs = [
        Job(name, build_stage, (name, profile_name, runs, seed), *STAGES[name])
        for name in missing(profile_name, runs, seed)
    ]
    if not jobs:
        return 0, 0
    say(f"{len(jobs)} stages to build, about {clock(wall(jobs, lanes))} (the longest first, {lanes} at a time)")
    peak = abreast(jobs, lanes, runs_folder(runs) / profile_name / "logs", (__name__, *HEAVY), show=say)
    return len(jobs), peak // 2**20
