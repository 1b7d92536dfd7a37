"""The series on a pre-trained language model: profiles `small` and `gpu`, which differ in scalars only.

Stages, folders and names are `pipeline.Series`'s. What differs: the policy is a LoRA adapter (QLoRA on `gpu`) on a base
that was taught GSM8K's worked solutions in the reasoning format, one line a step; the process reward model learns from
people's marks, PRM800K's phase 1, as `prm train` does it; and no oracle follows a chain of GSM8K, so where Series asks
one, the chain's answer stands in (`Series.marks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from . import pipeline, tasks
from .pipeline import Course, Reinforce, Schedule, Series, Wheel
from .runs import Run
from .types import Labelled, WorkbenchError, unknown

NAMES = ("small", "gpu")


@dataclass(frozen=True)
class Lora(Schedule):
    """Scalars of one training run of adapters; see `fit.Fit`. A run that was killed goes on from its last check."""

    batch: int = 2
    lr: float = 5e-4
    muon_lr: float = 0.0
    warmup: int = 10
    check_every: int = 25
    accumulate: int = 4
    save: bool = True
    checkpointing: bool = False
    paged: bool = False


@dataclass(frozen=True)
class Profile(pipeline.Profile):
    """Scalars of a pre-trained series. `base` and `judge` are `verifiers.prm.SIZES`'s, so both know one base.

    `method`: lora or qlora, of `rank`. `taught`: GSM8K problems with the worked solution that the policy learns from.
    `marks`, `reported`: PRM800K rows to learn from and to be judged on, a file name below a data folder (with `*`), a
    path, or a hub id. `judged`: chains of the latter that judges are held against, half as many for their thresholds.
    `rows`: chains that are written at a time. `judge_problems`, `audit` and the rest: as in the profiles of `pipeline`.
    """

    base: str = "smollm2"
    method: str = "lora"
    rank: int = 16
    taught: int = 1200
    marks: str = "prm800k/phase1_train*"
    reported: str = "prm800k/phase1_test*"
    judged: int = 200
    rows: int = 64


_HEAT = {"muon_lr": 0.0, "temperature": 1.0}
_SMALL_WHEEL = Wheel(
    2, problems=48, samples=4, temperature=0.5, steps=12, batch=4, lr=2e-4, muon_lr=0.0, checks=2, strict=False
)
_GPU_WHEEL = Wheel(
    2,
    problems=500,
    samples=4,
    temperature=0.5,
    steps=60,
    batch=1,
    accumulate=8,
    checkpointing=True,
    lr=1e-4,
    muon_lr=0.0,
    checks=2,
)
SCALARS: dict[str, dict[str, Any]] = {
    "small": dict(
        step_tokens=96,
        chain_tokens=288,
        teach=Lora(150),
        held_out=24,
        judge_problems=80,
        judge_chains=4,
        audit=20,
        rollouts=4,
        search_problems=32,
        search_n=(1, 2, 4, 8),
        beam_n=(4,),
        caps=(48, 96),
        reinforce=Reinforce(4, (2, 3), prompts=8, group=4, updates=1, lr=1e-4, check_every=2, **_HEAT),
        process=Course(2, lr=1e-4, muon_lr=0.0),
        wheel=_SMALL_WHEEL,
        turn=_SMALL_WHEEL,
    ),
    "gpu": dict(
        step_tokens=128,
        chain_tokens=400,
        method="qlora",
        teach=Lora(400, batch=4, accumulate=4, lr=2e-4, checkpointing=True, paged=True),
        taught=6400,
        held_out=128,
        judge_problems=500,
        judge_chains=4,
        audit=100,
        rollouts=8,
        search_problems=200,
        search_n=(1, 2, 4, 8, 16, 32),
        beam_n=(4, 16),
        caps=(64, 128),
        judged=1000,
        rows=256,
        reinforce=Reinforce(60, (2, 3, 4, 5), prompts=16, group=8, updates=1, lr=2e-5, check_every=10, **_HEAT),
        process=Course(12, lr=2e-5, muon_lr=0.0),
        wheel=_GPU_WHEEL,
        turn=_GPU_WHEEL,
    ),
}


def profile(name: str) -> Profile:
    """The pre-trained profile of this name; base and PRM training are those of `prm train --profile name`."""
    from .verifiers.prm import SIZES

    size = SIZES[name]
    return Profile(name, task="gsm8k", base=size.base, judge=size.training, **SCALARS[name])


def open_series(
    name: str = "nano",
    runs: str | Path = "runs",
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Series:
    """The series of any profile, with some of its scalars changed: the notebooks' way in.

    >>> open_series("micro", changes={"audit": 3, "teach.steps": 4}).profile.teach.steps
    4
    """
    kind = Pretrained if name in NAMES else Series
    series = kind(name, runs, seed, progress)
    if idle := sorted({key for key in changes or {} if key.partition(".")[0] in kind.FIXED or key in kind.FIXED}):
        raise WorkbenchError(f"profile {name} has no use for {', '.join(idle)}, or is named by it: leave it out")
    series.profile = changed(series.profile, changes or {})
    if kind is Pretrained and series.exact:
        raise WorkbenchError(f"profile {name} asks gsm8k, gsm_symbolic or math: for {series.profile.task} take nano")
    return series


def changed(config, changes: Mapping[str, Any]):
    """A frozen config with `{"field": value}` or `{"field.of.it": value}` put in; an unknown name or type is refused.

    >>> changed(Lora(10), {"lr": 1e-3}).lr, changed(Wheel(), {"rounds": "two"})
    Traceback (most recent call last):
        ...
    workbench.types.WorkbenchError: rounds='two': it is of type int, such as 2
    """
    for name, value in changes.items():
        head, _, rest = name.partition(".")
        known = {field.name: getattr(config, field.name) for field in fields(config)}
        if head not in known or (rest and not is_dataclass(known[head])):
            raise unknown(f"scalar of {type(config).__name__}", name, known)
        old = known[head]
        if rest:
            value = changed(old, {rest: value})
        elif isinstance(old, tuple) and isinstance(value, list):
            value = tuple(value)
        elif isinstance(old, float) and type(value) is int:
            value = float(value)
        kinds = {type(each) for each in old} if isinstance(old, tuple) else set()
        if isinstance(value, tuple) and kinds and (not value or {type(each) for each in value} != kinds):
            raise WorkbenchError(f"{name}={value!r}: one or more of type {kinds.pop().__name__}, such as {list(old)}")
        if type(value) is not type(old) and old is not None:
            raise WorkbenchError(f"{name}={value!r}: it is of type {type(old).__name__}, such as {old!r}")
        config = replace(config, **{head: value})
    return config


class Pretrained(Series):
    """All stages of `small` or `gpu` under one runs folder, built when they are asked for.

    Left out: the twins and the early policies of nano, the language-model judge, for whose lessons an oracle must write
    the right step. What judges, flywheel and reinforcement learn from is drawn from all of GSM8K's training part, the
    problems of which a worked solution was taught among them.
    Errors: rows that are not here (`tasks.Missing`); a PRM that would learn from a problem it is reported on.

    >>> policy = Pretrained("small").policy()  # teaches it the first time  # doctest: +SKIP
    """

    VERIFIERS = ("head", "head-rollouts", "orm")
    FIXED = {*Series.FIXED - {"task"}, "shape", "easy", "head", "extra_layers", "early", "early_n", "teach.target"}
    FIXED |= {"small", "small_teach", "small_judge", "small_n"}
    MAIN = "head"
    JUDGES = ("head", "orm")

    def __init__(self, name: str = "small", runs: str | Path = "runs", seed: int = 0, progress: bool = True):
        self.profile, self.seed, self.progress = profile(name), seed, progress
        self.root = pipeline.runs_folder(runs) / name

    # --- teach ---

    def teach(self, reasoning: bool = True, small: bool = False) -> Run:
        """The policy: an adapter on the base, taught worked solutions; its test problems are not among them."""
        p = self.profile
        if small or not reasoning:
            raise WorkbenchError(f"profile {p.name} has one policy, and it reasons: take nano for its twins")
        about = {"method": p.method, "rank": p.rank, "teach": asdict(p.teach), "taught": p.taught}
        run = self._open("teach", self._base(), base=p.base, **about)
        if run.done:
            return run
        import torch

        from . import sft
        from .adapters import fast_dtype, four_bit, prepare, save_adapter
        from .fit import fit, reached
        from .format import Encoder
        from .models import load_model, placed
        from .verifiers.prm import Training, adapted

        problems, held = self.problems("train", p.taught), self.held_out()
        tasks.refuse_overlap((q.prompt for q in problems), [q.prompt for q in held + self.test()], "teach")
        compute = fast_dtype()
        model, tokenizer = load_model(p.base, dtype=compute, **(four_bit(compute) if p.method == "qlora" else {}))
        prepare(model, tokenizer)
        with torch.random.fork_rng(devices=[]):  # adapters begin at random
            torch.manual_seed(self.seed)
            model = adapted(model, Training(p.method, head="verdict", rank=p.rank))
        model, encoder = model if p.method == "qlora" else placed(model), Encoder(tokenizer)

        def rows(problems):
            return sft.rows([(q, self.task.demonstration(q)) for q in problems], encoder)

        checked = rows(held)
        run.rewind("history", reached(run.path / "trainer") or -1)  # -1: without a checkpoint all of it comes again
        cost = fit(
            model,
            rows(problems),
            lambda batch: sft.collate(batch, tokenizer.pad_token_id),
            sft.loss,
            p.teach.fit(),
            run.path / "trainer",
            check=lambda: {"loss held out": sft.mean_loss(model, checked, tokenizer.pad_token_id)},
            log=lambda row: run.append("history", [row]),
            progress=self.progress,
        )
        with run.folder("model") as folder:
            save_adapter(model, "default", tokenizer, folder)
        run.finish(steps=p.teach.steps, cost=cost.amounts())
        return run

    def _base(self) -> dict[str, Path]:
        """The base as an input that is hashed, if it lies on this machine; a hub id is a parameter only."""
        from .smollm2 import on_disk

        return on_disk(self.profile.base)

    def load(self, folder: Path, reasoning: bool = True):
        """The base with the adapter in `folder`; the flywheel and RL train on it."""
        from .adapters import one_base
        from .models import placed
        from .policies.local import LocalPolicy

        p = self.profile
        model, tokenizer = one_base(p.base, {"default": folder}, quantised=p.method == "qlora")
        return LocalPolicy(model if p.method == "qlora" else placed(model), tokenizer, reasoning, batch=p.rows)

    # --- judge ---

    def rows(self, name: str):
        """PRM800K rows by the name that a profile gives them."""
        from .stepdata import ENDINGS, Rows

        if "*" not in name:
            return Rows(name)
        found = [f for folder in tasks.folders() for f in sorted(folder.glob(name)) if f.name.endswith(ENDINGS)]
        if not found:
            folders = " or ".join(map(str, tasks.folders()))
            raise tasks.Missing(
                f"no step labels {name} in {folders}: put PRM800K's file there (github.com/openai/prm800k; "
                "WORKBENCH_DATA names another folder), or name a file or a hub id of such rows, "
                "changes={'marks': …, 'reported': …}"
            )
        return Rows(found[0])

    def judge(self, kind: str = "head") -> Run:
        """A trained verifier, on the base and not on the policy: `verifiers.prm.train` with the profile's `judge`.

        `head`: people's marks. `head-rollouts`: the soft labels of `audit`. `orm`: the answers of `chains`.
        """
        if kind not in self.VERIFIERS:
            known = ", ".join(self.VERIFIERS)
            raise WorkbenchError(f"profile {self.profile.name} has no verifier {kind!r}: one of {known}")
        p, config, inputs = self.profile, self.profile.judge, self._base()
        if kind == "head":
            chains, reported = self.rows(p.marks), self.rows(p.reported)
            data = {"marks": chains.hash, "reported": reported.hash}
        else:
            source, data = self.audit() if kind == "head-rollouts" else self.chains(), {}
            inputs["chains"] = source.path
            config = replace(config, held_out=0.0, outcome=kind == "orm", epochs=max(1.0, config.epochs))
            rows = pipeline.read_traces(source)
            chains = [Labelled(q, trace, tuple(marks)) for q, trace, marks in rows if trace.steps]
            reported = ()
        run = self._open(f"judge-{kind}", inputs, kind=kind, base=p.base, prm=asdict(config), **data)
        if run.done:
            return run
        from .verifiers import prm

        run.rewind("history", prm.reached(run.path / "trainer") or -1)
        prompts = [q.prompt for q in self.held_out() + self.test()] + [c.problem.prompt for c in reported]
        _, cost = prm.train(
            chains,
            p.base,
            run.path,
            config,
            prompts,
            log=lambda row: run.append("history", [row]),
            progress=self.progress,
        )
        run.finish(cost=cost.amounts(), chains=sum(1 for _ in chains))
        return run

    def verifier(self, kind: str = "head"):
        from .verifiers.prm import PRM

        return PRM.load(self.judge(kind).path / "model", aggregate="min" if kind == "head" else "last")

    def marked(self, split: str, results: Mapping, judges: Mapping[str, Any]):
        """As in Series, on chains that people marked (PRM800K phase 1, test), scored now; `results` are not looked at.

        `split`: valid is a quarter of the problems, test the others, as evenly as there are chains. A chain ends at its
        last mark; those with a step before it that nobody marked are left out. Most steps of so few chains a problem
        are the right ones that chains share, so this compares judges, and no other data with these.
        """
        from .verifiers import score_all

        most = self.profile.judged // (2 if split == "valid" else 1)
        found: dict[str, list] = {}
        for problem, trace, labels in self.rows(self.profile.reported):
            known = [x for x in labels if x is not None]
            held = tasks.digest("tuning", problem.id) % 4 == 0
            if held == (split == "valid") and tuple(known) == labels[: len(known)]:
                item = (problem.blind(), replace(trace, steps=trace.steps[: len(known)]))
                found.setdefault(problem.id, []).append((item, [float(x > 0) for x in known]))
        for pairs in found.values():  # in no order that means anything
            pairs.sort(key=lambda pair: tasks.digest("chain", *(step.text for step in pair[0][1].steps)))
        turns = zip_longest(*found.values())  # a chain of every problem, then another: rows of one stand together
        chosen = [pair for turn in turns for pair in turn if pair is not None][:most]
        items, marks = [item for item, _ in chosen], [known for _, known in chosen]
        problems = len({problem.id for problem, _ in items})
        print(f"{split}: {len(items)} marked chains of {problems} problems (asked for {most})")
        seen = {}
        for name, judge in judges.items():
            trees = getattr(judge, "score_trees", None)
            scores = trees(items) if trees else score_all(judge, items)
            seen[name] = [
                (problem, replace(t, steps=tuple(replace(s, score=x) for s, x in zip(t.steps, row, strict=True))))
                for (problem, t), row in zip(items, scores, strict=True)
            ]
        return seen, marks

    # --- the rest ---

    def early(self) -> Run:
        raise WorkbenchError(f"profile {self.profile.name} keeps no policy of before the end: take nano for `early`")


def needs(p: Profile, width: int) -> dict[str, float]:
    """Bytes that each kind of stage holds at most, `width` bytes a number of the base: teach, judge, search, flywheel,
    reinforce.

    Reckoned from the base's shape, before anything is fetched (`models.memory`). Search holds policy and judges, each
    on a base of its own, the policy's weights once more as a CPU wants them, keys and values of all chains that are
    written at a time, and two pools of half a GB and a quarter. Reinforcement learns from 1,024 tokens at a time with a
    judge beside it, and keeps all activations.
    """
    from types import SimpleNamespace

    from .models import memory
    from .verifiers.prm import SIZES

    size = SIZES[p.name]
    shape = SimpleNamespace(**size.shape)
    longest = 2 * p.chain_tokens  # the question beside the chain
    logits = 4 * 4.0 * shape.vocab_size  # bytes a token: fp32 numbers, a copy, their softmax and its gradient

    def train(rows: int, tokens: int, checkpointing: bool) -> float:
        need = memory(shape, p.method, rows, tokens, p.rank, width, checkpointing)
        return need.total + rows * tokens * logits

    held = memory(shape, p.method, 1, 1, p.rank, width)
    judge = memory(shape, p.judge.method, 1, 1, p.judge.rank, width)
    judges = len(Pretrained.JUDGES) * (judge.weights + judge.adapters)
    heads = shape.num_key_value_heads * shape.head_dim
    keys = 2 * shape.num_hidden_layers * heads * width * p.rows * longest
    packed = held.weights if p.method != "qlora" else 0.0
    search = held.weights + packed + held.adapters + judges + held.program + keys + 0.75 * 2**30
    return {
        "teach": train(p.teach.batch, longest, p.teach.checkpointing),
        "judge": p.judge.memory(size.shape, width).total,
        "search": search + p.rows * logits,
        "flywheel": max(train(p.wheel.batch, longest, p.wheel.checkpointing), search + p.rows * logits),
        "reinforce": train(1, 1024, False) + keys + judges / len(Pretrained.JUDGES),
    }
