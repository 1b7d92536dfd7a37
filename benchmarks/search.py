"""Guided search against the straightforward way and against peers: same cores, models, prompts, noise and budgets.

Sections (`WORKBENCH_BENCH=nano,linear` runs some of them): nano, parts, decode, linear, small, peers.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from _sections import row, run

from workbench import evaluate, kv
from workbench.models import load_model
from workbench.pipeline import Series, runs_folder
from workbench.policies import Sampling, Want
from workbench.policies.local import LocalPolicy
from workbench.runs import Run
from workbench.search import drive
from workbench.types import Node, Problem, WorkbenchError
from workbench.verifiers.likelihood import Likelihood
from workbench.verifiers.prm import PRM

KNOBS = {"n": 16, "width": 4}
BATCH = 1024  # 64 problems with 16 chains each


def main() -> list[dict]:
    return run("search", nano, parts, decode, linear, small, peers)


class Nano:
    """The series' own policy and guiding verifier, on validation problems."""

    def __init__(self, problems: int = 64):
        series = Series("nano", progress=False)
        if not (series.root / "judge-likelihood" / "DONE").exists():
            raise WorkbenchError("the benchmark searches with the trained nano models: run `make reproduce` first")
        self.sampling = series.profile.sampling
        self.model, self.tokenizer = series.policy().model, series.policy().encoder.tokenizer
        self.judge = series.verifier().model
        self.problems = series.problems("valid", problems)
        self.other = series.problems("train", 32)
        self.policy = LocalPolicy(self.model, self.tokenizer)

    def search(self, cache=1 << 29, judge_cache=1 << 28, window=256):
        """Warmed up on other problems, so that threads run and memory is there; then timed."""
        policy = LocalPolicy(self.model, self.tokenizer, batch=BATCH, cache=cache)
        verifier = Likelihood(self.judge, self.tokenizer, cache=judge_cache)
        for problems in (self.other, self.problems):
            begin = time.perf_counter()
            results = drive(problems, "beam", policy, verifier, sampling=self.sampling, window=window, **KNOBS)
        return results, len(self.problems) / (time.perf_counter() - begin)

    def straight(self):
        from _straight import Straight

        verifier = Likelihood(self.judge, self.tokenizer, cache=0)
        way = Straight(self.model, self.policy.encoder, verifier, self.sampling)
        way.run(self.other[0], "beam", **KNOBS)
        begin = time.perf_counter()
        answers = [way.run(p, "beam", **KNOBS) for p in self.problems]
        return answers, len(self.problems) / (time.perf_counter() - begin)


def nano() -> list[dict]:
    """Beam search, n = 16, width 4, 64 problems."""
    world = Nano()
    pairs = [(world.search(), world.straight()) for _ in range(3)]  # in turns, so that a noisy neighbour hits both
    ours, theirs = max(s for (_, s), _ in pairs), max(s for _, (_, s) in pairs)
    (results, _), (answers, _) = pairs[0]
    same = sum(r.answer == a for r, a in zip(results, answers, strict=True)) / len(answers)
    cost = sum(r.cost for r in results)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (world.model, world.judge)]
    share, limit = cost.verifier_flops / cost.policy_flops, 1.2 * sizes[1] / sizes[0]
    return [
        row("beam, nano", ours, "problems/s"),
        row("beam, nano, straightforward", theirs, "problems/s"),
        row("beam, nano: times as fast", ours / theirs, "x", ">= 10", ours >= 10 * theirs),
        row("beam, nano: same answers", same, "share", "= 1", same == 1),
        row("verifier's FLOPs / policy's", share, "", f"<= {limit:.2f}", share <= limit),
        row("read again", cost.reread / cost.tokens, "share of tokens"),
    ]


def parts() -> list[dict]:
    """What each ingredient gives: all of them, less one."""
    world = Nano()
    ways = {
        "all": {},
        "one problem at a time": {"window": 1},
        "no cache of the policy's": {"cache": 0},
        "verifier reads whole traces": {"judge_cache": 0},
        "neither cache": {"cache": 0, "judge_cache": 0},
        "one at a time, neither cache": {"cache": 0, "judge_cache": 0, "window": 1},
    }
    speeds = {name: max(world.search(**more)[1] for _ in range(2)) for name, more in ways.items()}
    results, _ = world.search()
    chains = [tuple(t for s in node.steps for t in s.ids) for r in results for node in r.nodes]
    drawn = sum(len(node.steps[-1].ids) for r in results for node in r.nodes)
    owner = [r.problem.id for r in results for _ in r.nodes]
    apart = {(p, c[: i + 1]) for p, c in zip(owner, chains, strict=True) for i in range(len(c))}
    rows = [row(f"parts: {name}", speed, "problems/s") for name, speed in speeds.items()]
    return rows + [row("parts: tokens that differ / tokens drawn", len(apart) / drawn, "share")]


def decode() -> list[dict]:
    """How much of `extend` is the bare forward pass: the same shapes fed to the same model with nothing around it."""
    world, out = Nano(), []
    for method, knobs in (("beam", KNOBS), ("majority", {"n": 16})):
        policy = LocalPolicy(world.model, world.tokenizer, batch=BATCH)
        verifier = Likelihood(world.judge, world.tokenizer)
        shapes, spent = [], []
        forward, extend = policy.rows.forward, policy.extend

        def watched(ids, at, first=None, forward=forward, shapes=shapes):
            shapes.append((ids, at, first))
            return forward(ids, at, first)

        def timed(*args, extend=extend, spent=spent):
            begin = time.perf_counter()
            result = extend(*args)
            spent.append(time.perf_counter() - begin)
            return result

        policy.rows.forward, policy.extend = watched, timed
        for problems in (world.other, world.problems):
            shapes.clear(), spent.clear()
            drive(problems, method, policy, verifier, sampling=world.sampling, **knobs)
        rows = kv.Rows(world.model)
        rows.reserve(policy.rows.work.size, policy.rows.work.columns)
        with kv.reading(world.model):
            for ids, at, which in shapes[-20:]:
                rows.forward(ids, at, which)
            begin = time.perf_counter()
            for ids, at, which in shapes:
                rows.forward(ids, at, which)
            bare = time.perf_counter() - begin
        ratio = bare / sum(spent)
        out.append(row(f"decode, {method}: bare forward / engine", ratio, "share of time", ">= 0.5", ratio >= 0.5))
    return out


def linear() -> list[dict]:
    """64 and 4,096 problems: time a problem, and peak memory, each in a process of its own, records to disk."""
    out = []
    for count in (64, 4096):
        code = f"import json, search; print(json.dumps(search.stream_to_disk({count}, {torch.get_num_threads()})))"
        told = subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=1200
        )
        if told.returncode:
            raise WorkbenchError(f"{count} problems failed: {told.stderr[-600:]}")
        out.append(json.loads(told.stdout.splitlines()[-1]))
    (few, low), (many, high) = out
    return [
        row("64 problems to disk", few, "problems/s"),
        row("4,096 problems to disk", many, "problems/s", f">= {0.7 * few:.0f}", many >= 0.7 * few),
        row("peak memory, 64 problems", low / 2**20, "MB"),
        row("peak memory, 4,096 problems", high / 2**20, "MB", "<= 2,048", high <= 2**31),
    ]


def stream_to_disk(count: int, threads: int) -> tuple[float, int]:
    torch.set_num_threads(threads)
    world = Nano(count)
    policy, verifier = LocalPolicy(world.model, world.tokenizer), Likelihood(world.judge, world.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        run, begin = Run.open(Path(folder) / "run", {}, {}), time.perf_counter()
        made = evaluate.into(run, world.problems, "beam", policy, verifier, sampling=world.sampling, tree=True, **KNOBS)
        seconds = time.perf_counter() - begin
    assert made == count
    return count / seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


QUESTIONS = (
    "Tom has 12 apples and buys 7 more. He gives 5 to Ann. How many apples does he have?",
    "A train goes 60 km in one hour. How far does it go in three and a half hours?",
    "A book costs 8 dollars, a pen 3. What do 4 books and 6 pens cost?",
    "Eve is twice as old as Ben, who is 9. How old will Eve be in 5 years?",
    "There are 24 pupils, a third of them play chess. How many do not?",
    "A box holds 6 eggs. How many boxes do 50 eggs need?",
    "Max runs 3 km a day, 5 days a week. How far does he run in 4 weeks?",
    "A shop sells 15 cakes in the morning and 3 times as many later. How many in all?",
)
SMALL = {"step_tokens": 48, "rounds": 4}


class Small:
    """SmolLM2-135M in bf16 with tags it has not learnt, and a PRM on the same base: for speed, never for quality."""

    def __init__(self, dtype=torch.bfloat16):
        from _smollm2 import checkpoint, prm_checkpoint

        folder = series_folder() / "bench" / "smollm2"
        self.model, self.prm = checkpoint(folder), prm_checkpoint(folder)
        self.policy = LocalPolicy(*load_model(self.model, dtype=dtype))
        self.verifier = PRM(*load_model(self.prm, "AutoModelForTokenClassification", dtype=dtype))
        self.sampling = Sampling(1.0, SMALL["step_tokens"], 400)
        self.problems = [Problem(f"question/{i}", "arithmetic", text, None) for i, text in enumerate(QUESTIONS)]
        self.knobs = {**KNOBS, "rounds": SMALL["rounds"]}

    def search(self, problems):
        begin = time.perf_counter()
        results = drive(problems, "beam", self.policy, self.verifier, sampling=self.sampling, **self.knobs)
        return results, time.perf_counter() - begin

    def straight(self, problems):
        from _straight import Straight

        verifier = PRM(self.verifier.model, self.verifier.encoder.tokenizer, cache=0)
        way = Straight(self.policy.model, self.policy.encoder, verifier, self.sampling)
        begin = time.perf_counter()
        for problem in problems:
            way.run(problem, "beam", **self.knobs)
        return way, time.perf_counter() - begin


def small() -> list[dict]:
    """The same with SmolLM2-135M; sampled tokens a second, since in bf16 two engines need not draw the same steps."""
    world = Small()
    world.search([replace(p, id="warm") for p in world.problems[:1]])
    results, seconds = world.search(world.problems)
    way, theirs = world.straight(world.problems[:2])
    cost = sum(r.cost for r in results)
    ours, other = cost.sampled / seconds, way.tokens / theirs
    exact = Small(torch.float32)
    [fine], _ = exact.search(exact.problems[:1])
    walk, _ = exact.straight(exact.problems[:1])
    same = {n.path: n.steps[-1].ids for n in fine.nodes} == walk.tree
    share = cost.verifier_flops / cost.policy_flops
    return [
        row("beam, SmolLM2", ours, "tokens/s"),
        row("beam, SmolLM2, straightforward", other, "tokens/s"),
        row("beam, SmolLM2: times as fast", ours / other, "x", ">= 5", ours >= 5 * other),
        row("beam, SmolLM2, fp32: same tree", float(same), "", "= 1", same),
        row("beam, SmolLM2", len(results) / seconds, "problems/s"),
        row("SmolLM2: verifier's FLOPs / policy's", share, "", "<= 1.2", share <= 1.2),
    ]


def peers() -> list[dict]:
    """its_hub's beam search on `transformers serve`, and vLLM's CPU build sampling 64 sequences."""
    world, rows = Small(), []
    threads = torch.get_num_threads()
    world.search([replace(p, id="warm") for p in world.problems[:1]])
    results, seconds = world.search(world.problems)
    ask = {"problems": list(QUESTIONS), **KNOBS, **SMALL, "break": True, "threads": threads}
    ask |= {"model": str(world.model), "prm": str(world.prm), "url": "http://127.0.0.1:8123/v1"}
    if told := _peer("its-hub", "_its_hub.py", ask):
        ours, other = sum(r.cost.sampled for r in results) / seconds, told["tokens"] / told["seconds"]
        rows += [
            row("its_hub on transformers serve", other, "tokens/s"),
            row("beam, SmolLM2: times its_hub, tokens", ours / other, "x", ">= 2", ours >= 2 * other),
            row("beam, SmolLM2: times its_hub, problems", len(results) / seconds / told["problems_per_second"], "x"),
        ]
    prompts = [world.policy.encoder.prompt(f"{QUESTIONS[i % 8]} ({i})") for i in range(64)]
    if told := _peer(
        "vllm", "_vllm.py", {"model": str(world.model), "prompts": prompts, "threads": threads, "repeats": 2}
    ):
        world.policy.ends[:] = False  # nobody stops early: both sides write the same number of tokens
        wants = [Want(Problem(f"q/{i}", "arithmetic", f"{QUESTIONS[i % 8]} ({i})", None), Node()) for i in range(64)]
        times = []
        for seed in range(2):
            begin = time.perf_counter()
            world.policy.extend(wants, seed, Sampling(1.0, 64, 400))
            times.append(time.perf_counter() - begin)
        ours, other = 64 * 64 / min(times), told["tokens_per_second"]
        rows += [
            row("sampling, batch 64", ours, "tokens/s"),
            row("sampling, batch 64, vLLM (CPU, eager)", other, "tokens/s"),
            row("sampling: times vLLM", ours / other, "x", ">= 1", ours >= other),
        ]
    return rows


def _peer(name: str, script: str, ask: dict) -> dict | None:
    """What a peer says of itself; None, and a word, where it is not installed."""
    python = series_folder() / "bench" / f"venv-{name}" / "bin" / "python"
    if not python.exists():
        print(f"search: {name} is not installed, so it is left out: bash benchmarks/peers.sh {name}")
        return None
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(ask, file)
        file.flush()
        words = [str(python), str(Path(__file__).parent / script), file.name]
        told = subprocess.run(words, capture_output=True, text=True, timeout=1200)
    if told.returncode:
        raise WorkbenchError(f"{name} failed: {told.stderr[-600:]}")
    return json.loads(told.stdout.strip().splitlines()[-1])


def series_folder() -> Path:
    return runs_folder("runs")
