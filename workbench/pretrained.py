"""The series' stages from a pre-trained base: profiles `small` and `gpu` of notebooks 03, 04 and 05.

The policy is taught the channel on GSM8K's worked solutions (LoRA, merged into the weights). The judge is a PRM on the
same base, from what people said of PRM800K's phase-1 chains; where `pipeline.Series` asks an oracle, people answered.
GSM8K's problems are searched. Left out: outcome and likelihood judges, the flywheel, reinforcement learning.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from . import labels, sft, stepdata, tasks
from .adapters import fast_dtype, prepare
from .fit import fit
from .format import TAGS, Encoder, add_tags
from .models import Need, load_model, memory, placed
from .packing import capped
from .pipeline import Schedule, Series, _fresh, _row, _save, read_traces, runs_folder
from .policies import Sampling
from .policies.local import LocalPolicy
from .runs import Run
from .types import Labelled, Problem, Trace, WorkbenchError
from .verifiers import prm

HUB = "tasksource/PRM800K"  # OpenAI's files as they are


@dataclass(frozen=True)
class Profile:
    """One size: numbers only. `minutes` for notebooks 03 to 05 together, on what `note` says.

    `teach`: of the policy's adapter, on solutions of at most `teach_tokens`. The PRM reads `cap` tokens of each of
    PRM800K's problems, once. `audit` chains get `rollouts` a step. `rows`: chains that are held in memory at a time.
    """

    name: str
    base: str
    teach: Schedule
    judge: prm.Training
    minutes: int
    note: str
    task: str = "gsm8k"
    temperature: float = 0.7
    step_tokens: int = 64
    chain_tokens: int = 256
    rows: int = 64
    teach_tokens: int = 320
    cap: int = 256
    audit: int = 40
    rollouts: int = 4
    held_out: int = 60
    search_problems: int = 100
    search_n: tuple[int, ...] = (1, 2, 4, 8, 16)
    beam_n: tuple[int, ...] = (4,)
    caps: tuple[int, ...] = (64, 128)

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.step_tokens, self.chain_tokens)

    def needs(self, width: int) -> dict[str, Need]:
        """Bytes of the three stages that take most, computed from the base's shape before anything is fetched.

        `width`: bytes a number of the base. Teaching runs the vocabulary, which `models.memory` leaves out: logits,
        their softmax and their gradient in fp32. A search holds both models, the keys and values of `rows` chains for
        each (prompts of at most 256 tokens), the caches of what was read, and the logits of one token a row.

        >>> {stage: round(need.total / 1e9, 1) for stage, need in PROFILES["small"].needs(4).items()}
        {'teach': 4.0, 'judge': 2.5, 'search': 5.2}
        """
        shape, t = SimpleNamespace(**prm.SIZES[self.name].shape), self.judge
        taught = memory(shape, "lora", self.teach.batch, self.teach_tokens, t.rank, width)
        logits = 12.0 * self.teach.batch * self.teach_tokens * shape.vocab_size
        judged = memory(shape, t.method, t.batch, t.capacity, t.rank, width, t.checkpointing)
        policy = memory(shape, "lora", 0, 0, 0, width).weights
        token = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * width
        held = 2 * self.rows * (256 + self.chain_tokens) * token + _CACHE[0] + _CACHE[1]
        held += 12.0 * self.rows * shape.vocab_size
        search = Need(policy + judged.weights, judged.adapters, 0.0, 0.0, held)
        return {
            "teach": replace(taught, activations=taught.activations + logits),
            "judge": judged,
            "search": search,
        }


_CACHE = 1 << 29, 1 << 28  # of the policy and of the judge, their own defaults
PROFILES = {
    "small": Profile(
        "small",
        prm.SIZES["small"].base,
        Schedule(300, batch=4, lr=5e-4, muon_lr=0.0, check_every=25),
        replace(prm.SIZES["small"].training, cap=0),
        150,
        "two CPU cores",
    ),
    "gpu": Profile(
        "gpu",
        prm.SIZES["gpu"].base,
        Schedule(400, batch=8, lr=2e-4, muon_lr=0.0, check_every=25),
        prm.SIZES["gpu"].training,
        90,
        "one GPU of 24 GB, estimated",
        rows=256,
        cap=0,
        audit=80,
        rollouts=8,
        held_out=120,
        search_problems=200,
        search_n=(1, 2, 4, 8, 16, 32, 64),
        beam_n=(4, 16),
    ),
}


def open_series(
    profile: str = "nano", runs: str | Path = "runs", seed: int = 0, changes: Mapping[str, Any] | None = None, **more
) -> Series:
    """The stages of any profile, some of its scalars changed: `pipeline.Series`, or `Pretrained` on a base.

    >>> open_series("small", changes={"audit": 5, "teach": {"steps": 9}}).profile.teach.steps
    9
    """
    series = (Pretrained if profile in PROFILES else Series)(profile, runs, seed, **more)
    series.profile = _changed(series.profile, changes or {})
    return series


def _changed(scalars, changes: Mapping[str, Any]):
    known = {field.name: getattr(scalars, field.name) for field in fields(scalars)}
    if unknown := changes.keys() - known.keys():
        raise WorkbenchError(f"changes: no scalar {min(unknown)!r}: one of {', '.join(known)}")
    nested = {name for name in changes if is_dataclass(known[name])}
    return replace(scalars, **{k: _changed(known[k], v) if k in nested else v for k, v in changes.items()})


def phase1(part: str) -> Path:
    """PRM800K's phase-1 file, `train` or `test`: from the data folders or the hub. Errors: `tasks.Missing`."""
    places = [folder / "prm800k" for folder in tasks.folders()]
    found = (path for place in places for path in sorted(place.glob(f"phase1_{part}.*")))
    if path := next((path for path in found if path.name.endswith(stepdata.ENDINGS)), None):
        return path
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(HUB, f"phase1_{part}.jsonl", repo_type="dataset"))
    except Exception as error:  # a hub fails in many ways; each means: not to be had
        raise tasks.Missing(
            f"PRM800K's phase-1 {part} rows could not be had ({type(error).__name__}: {str(error)[:200]}): put "
            f"phase1_{part}.jsonl into {' or '.join(map(str, places))} (WORKBENCH_DATA names another folder)"
        ) from error


def answered(chains: Iterable[Labelled]) -> Iterator[Labelled]:
    """Chains as problems of task `math`: the answer that the rows name, else the one that people marked right.

    Nobody knows the rest's (None). The level is the length of the shortest chain that people marked right, 1 to 8.

    >>> from workbench.types import Step
    >>> asked, steps = Problem("p", "prm800k", "1+1?", None), (Step("1+1=2"), Step("2", True))
    >>> [c.problem.answer for c in answered([Labelled(asked, Trace(steps), (None, x)) for x in (1.0, 0.0)])]
    ['2', '2']
    """
    for _, group in itertools.groupby(chains, lambda chain: chain.problem.id):
        group = list(group)
        right = [c.trace for c in group if c.trace.answer is not None and c.labels[-1] == 1]
        level = min(max(1, min((len(trace.steps) - 1 for trace in right), default=8)), 8)
        answer = group[0].problem.answer or next((trace.answer for trace in right), None)
        for chain in group:
            yield chain._replace(problem=replace(chain.problem, task="math", answer=answer, level=level))


class AnswerKey:
    """The oracle of a task whose steps only people can judge: 1.0 for every step of a chain whose answer is right.

    It knows the answer and nothing of steps, so what best-of-n reaches with it is the most that choosing among the
    chains can reach, lucky ones and all.
    """

    aggregate = "min"

    def __init__(self, problems: Sequence[Problem]):
        self.problems = {problem.id: problem for problem in problems}

    def flops(self, prefix: float, new: float, head: bool = True) -> float:
        return 0.0

    def score(self, items: Sequence[tuple[Problem, Trace]]) -> list[tuple[float, ...]]:
        return [(float(labels.right_answer(self.problems[p.id], t)),) * len(t.steps) for p, t in items]


class Few:
    """A verifier that is handed `rows` chains at a time: the keys and values of a large base are what fills memory."""

    def __init__(self, judge, rows: int):
        self.judge, self.rows = judge, rows

    def __getattr__(self, name: str):
        return getattr(self.judge, name)

    def score(self, items: Sequence[tuple[Problem, Trace]]) -> list[tuple[float | None, ...]]:
        scores, read = [], []
        for first in range(0, len(items), self.rows):
            scores += self.judge.score(items[first : first + self.rows])
            read += self.judge.read
        self.read = read
        return scores


class Pretrained(Series):
    """All stages of a profile that has a pre-trained base. Every method builds what is missing."""

    VERIFIERS = ("head",)

    def __init__(self, profile_name: str = "small", runs: str | Path = "runs", seed: int = 0, progress: bool = True):
        self.profile, self.seed, self.progress = PROFILES[profile_name], seed, progress
        self.root, self.task = runs_folder(runs) / profile_name, tasks.get(self.profile.task)

    def teach(self) -> Run:
        """The base, taught the channel on worked solutions of GSM8K's training problems."""
        p = self.profile
        run = self._open("teach", base=p.base, teach=asdict(p.teach), tokens=p.teach_tokens, rank=p.judge.rank)
        if not run.done:
            model, tokenizer = load_model(p.base, dtype=fast_dtype())
            prepare(model, tokenizer)
            tell_apart(model, tokenizer)
            model = prm.adapted(model, replace(p.judge, method="lora", head="verdict"))
            problems = self.problems("train", p.teach.steps * p.teach.batch)
            rows = sft.rows([(q, self.task.demonstration(q)) for q in problems], Encoder(tokenizer))
            _fresh(run, "history")
            cost = fit(
                model,
                [row for row in rows if len(row.ids) <= p.teach_tokens],
                lambda batch: sft.collate(batch, tokenizer.pad_token_id),
                sft.loss,
                p.teach.fit(),
                run.path / "trainer",
                log=lambda row: run.append("history", [row]),
                progress=self.progress,
            )
            _save(run, "model", model.merge_and_unload(), tokenizer)
            run.finish(steps=p.teach.steps, cost=cost.amounts())
        return run

    def policy(self) -> LocalPolicy:
        model, tokenizer = load_model(self.teach().path / "model", dtype=fast_dtype())
        return LocalPolicy(placed(model), tokenizer, batch=self.profile.rows)

    def people(self, part: str) -> list[Labelled]:
        """PRM800K's phase-1 chains with people's labels: `train`; or, of its test problems, a quarter as `valid`, to
        choose thresholds by, and the rest as `test`."""
        found = answered(stepdata.Rows(phase1("train" if part == "train" else "test")))
        if part != "train":
            found = (c for c in found if (tasks.digest("tuning", c.problem.id) % 4 == 0) == (part == "valid"))
        _, tokenizer = load_model(self.profile.base)
        add_tags(tokenizer)
        return list(capped(found, Encoder(tokenizer), self.profile.cap, self.seed))

    def chains(self) -> Run:
        """PRM800K's phase-1 training chains, at most `cap` tokens of a problem, every step with people's label."""
        run = self._open("chains", {"rows": phase1("train")}, base=self.profile.base, cap=self.profile.cap)
        if not run.done:
            _fresh(run, "traces")
            chains = self.people("train")
            run.append("traces", (_row(*chain) for chain in chains))
            run.finish(cost={}, traces=len(chains))
        return run

    def audit(self) -> Run:
        """Monte-Carlo labels beside people's, on one chain of each of some problems whose answer is known."""
        p, source = self.profile, self.chains()
        inputs = {"chains": source.path, "policy": self.teach().path}
        run = self._open("audit", inputs, traces=p.audit, rollouts=p.rollouts, sampling=asdict(p.sampling))
        if not run.done:
            _fresh(run, "traces")
            known = [row for row in read_traces(source) if row[0].answer is not None]
            known.sort(key=lambda row: tasks.digest("audit", self.seed, row[0].id, row[1].steps[-1].text))
            rows = list({problem.id: (problem, *rest) for problem, *rest in known}.values())[: p.audit]
            items = [(problem, trace) for problem, trace, _ in rows]
            soft, cost = labels.monte_carlo(self.policy(), items, p.rollouts, self.seed, sampling=p.sampling)
            run.append(
                "traces",
                (
                    {**_row(*row), "soft": mine, "hard": [float(x > 0) for x in mine]}
                    for row, mine in zip(rows, soft, strict=True)
                ),
            )
            run.finish(cost=cost.amounts(), rollouts=p.rollouts)
        return run

    def judge(self, kind: str = "head") -> Run:
        """`head`: a linear head on step ends of the base, trained on `chains`. Nothing reported on is among them."""
        if kind not in self.VERIFIERS:
            why = "people's labels make one judge, 'head'; the others are of profile nano"
            raise WorkbenchError(f"profile {self.profile.name} has no verifier {kind!r}: {why}")
        p, source = self.profile, self.chains()
        run = self._open(f"judge-{kind}", {"chains": source.path}, kind=kind, base=p.base, training=asdict(p.judge))
        if not run.done:
            run.rewind("history", prm.reached(run.path / "trainer"))
            reported = [chain.problem.prompt for part in ("valid", "test") for chain in self.people(part)]
            reported += [problem.prompt for problem in self.held_out() + self.test()]
            learnt = [Labelled(problem, trace, tuple(marks)) for problem, trace, marks in read_traces(source)]

            def log(row: dict) -> None:
                run.append("history" if "step" in row else "rows", [row])

            _, cost = prm.train(learnt, p.base, run.path, p.judge, reported, log, self.progress)
            run.finish(cost=cost.amounts())
        return run

    def verifier(self, kind: str = "head") -> Few:
        return Few(prm.PRM.load(self.judge(kind).path / "model"), self.profile.rows)

    def search(self) -> Run:
        """As `Series.search`, with the one judge there is; the oracle knows the answers only."""
        p = self.profile
        inputs = {"policy": self.teach().path, "head": self.judge().path}
        scalars = {"problems": p.search_problems, "n": p.search_n, "beam_n": p.beam_n, "caps": p.caps}
        run = self._open("search", inputs, **scalars, sampling=asdict(p.sampling))
        if run.done:
            return run
        policy, judges = self.policy(), {"prm": self.verifier(), "oracle": AnswerKey(self.test())}
        return self._searched(run, self._methods(policy, None), judges, policy)

    def _methods(self, policy, alone) -> list[tuple]:
        plan = super()._methods(policy, alone)
        return [row for row in plan if row[0] == "best_of_n (oracle)" or (row[4] is policy and row[2] in (None, "prm"))]

    def _lacks(self, *_, **__):
        raise WorkbenchError(f"profile {self.profile.name} runs notebooks 03, 04 and 05: the rest needs profile nano")

    flywheel = reinforce = small = training_curve = _lacks


def tell_apart(model, tokenizer) -> None:
    """Tags that a base has never seen all begin as its mean token. Under LoRA the table does not learn, so the model
    could never say one and not another: each begins as the mean of its name's tokens instead."""
    ids = tokenizer.convert_tokens_to_ids(list(TAGS))
    for table in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
        if len(table[ids].unique(dim=0)) < len(ids):
            for tag, i in zip(TAGS, ids, strict=True):
                pieces = tokenizer(tag, add_special_tokens=False, split_special_tokens=True)["input_ids"]
                with torch.no_grad():
                    table[i] = table[pieces].float().mean(0).to(table.dtype)
