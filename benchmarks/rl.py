"""A training step of RL against TRL's GRPOTrainer: same model, prompts, group, lengths, optimiser, cores and precision.

Both sample in their own process and take one AdamW step a batch (GRPO, no KL). TRL generates with transformers and is
given micro-batches of the size that is fastest for it among those tried; ours have the one that `RL` has by default.
Steps after the first are timed.

And what learning brings: outcome reward and STaR as the series does them, three training seeds each, on its test
problems.

Sections (`WORKBENCH_BENCH=nano` runs one of them): nano, smollm2, smollm2_bf16 (weights in bfloat16, for a processor
that has units for it), gains.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

from _sections import row, run

from workbench.claims import decide

ROOT = Path(__file__).resolve().parents[1]
SIZES = {  # steps, prompts, group, tokens of a step of a chain, of a chain, TRL's micro-batches
    "nano": SimpleNamespace(steps=5, prompts=32, group=8, step=16, chain=96, micro=(256, 64)),
    "smollm2": SimpleNamespace(steps=3, prompts=4, group=4, step=48, chain=48, micro=(16, 4)),
    "smollm2-bf16": SimpleNamespace(steps=3, prompts=4, group=4, step=48, chain=48, micro=(16, 4)),
}


def main() -> list[dict]:
    return run("rl", nano, smollm2, smollm2_bf16, gains)


def nano() -> list[dict]:
    return speed("nano")


def smollm2() -> list[dict]:
    return speed("smollm2")


def smollm2_bf16() -> list[dict]:
    import torch

    from workbench.adapters import fast_dtype

    if fast_dtype() is torch.bfloat16:
        return speed("smollm2-bf16")
    print("rl: this processor has no units for bfloat16, so SmolLM2 is measured in fp32 alone", flush=True)
    return []


def speed(size: str) -> list[dict]:
    """Each way in a process of its own, so that its peak memory is its own."""
    ours = child("ours", size)
    theirs = min((child(f"trl:{micro}", size) for micro in SIZES[size].micro), key=lambda found: found["seconds"])
    faster = theirs["seconds"] / ours["seconds"] * ours["tokens"] / theirs["tokens"]
    memory = ours["peak"] / theirs["peak"]
    return [
        row(f"{size}: a step", ours["seconds"], "s"),
        row(f"{size}: of that, sampling", ours["sampling"], "s"),
        row(f"{size}: a step, TRL", theirs["seconds"], "s"),
        row(f"{size}: tokens of a chain", ours["tokens"], "tokens"),
        row(f"{size}: tokens of a chain, TRL", theirs["tokens"], "tokens"),
        row(f"{size}: sampled tokens a second, over TRL's", faster, "x", ">= 2", faster >= 2),
        row(f"{size}: peak memory, over TRL's", memory, "x", "<= 1", memory <= 1),
    ]


def gains(seeds=(0, 1, 2)) -> list[dict]:
    """pass@1 after minus before, four chains a problem, the same dice; problems and training seeds are resampled."""
    from workbench import evaluate, flywheel, rl, scaling
    from workbench.pipeline import Series, runs_folder
    from workbench.runs import Run

    series = Series("nano")
    p, test = series.profile, series.test()

    def share(policy) -> dict[str, float]:
        return scaling.by_problem(evaluate.samples("", test, policy, 4, 0, p.sampling)[0])

    def outcome(policy, seed, open_run):
        config = replace(p.reinforce, seed=seed).config(p.sampling)
        rl.train(policy, p.task, rl.outcome, config, open_run(asdict(config)), series.held_out())

    def star(policy, seed, open_run):
        config = replace(p.wheel, seed=seed).config(p.sampling)
        made = open_run(asdict(config))
        flywheel.train(policy, p.task, config, made, held_out=series.held_out())
        flywheel.restore(policy, made.path / "rounds" / str(config.rounds) / "model")

    before, rows = share(series.policy()), []
    for name, learn, goal in (("outcome reward", outcome, 0.2), ("STaR", star, 0.15)):
        after: dict[str, list[float]] = {}
        for seed in seeds:
            folder = runs_folder("runs") / "bench" / f"{learn.__name__}-{seed}"
            policy = series.policy()
            learn(policy, seed, lambda about, folder=folder: Run.open(folder, about))
            mine = share(policy)
            after = {problem: [*after.get(problem, ()), right] for problem, right in mine.items()}
            print(f"rl: {name}, seed {seed}: {scaling.paired_bootstrap(mine, before)}", flush=True)
        base = {problem: [right] * len(seeds) for problem, right in before.items()}
        gain = scaling.paired_bootstrap(after, base, resample="crossed")
        rows.append(
            row(f"{name}: pass@1 gained ({gain})", gain.value, "", f">= {goal}", decide(gain, f">= {goal}") == "holds")
        )
    return rows


def child(way: str, size: str) -> dict:
    out = subprocess.run([sys.executable, __file__, way, size], cwd=ROOT, capture_output=True, text=True)
    if out.returncode:
        raise RuntimeError(out.stderr[-2000:])
    found = json.loads(out.stdout.splitlines()[-1])
    print(f"rl: {size}, {way}: {found}", flush=True)
    return found


# --- what runs in a process of its own ---


def policy_of(size: str):
    from workbench.adapters import prepare
    from workbench.models import load_model
    from workbench.pipeline import Series
    from workbench.policies.local import LocalPolicy

    if size == "nano":
        return Series("nano").policy()
    model, tokenizer = load_model("smollm2")
    prepare(model, tokenizer)
    return LocalPolicy(model.bfloat16() if size.endswith("bf16") else model.float(), tokenizer)


def ours(size: str) -> dict:
    from workbench import rl
    from workbench.fit import Fit, optimiser

    s, policy = SIZES[size], policy_of(size)
    config = rl.RL(
        prompts=s.prompts, group=s.group, updates=1, lr=1e-6, muon_lr=0.0, step_tokens=s.step, chain_tokens=s.chain
    )
    optimizer = optimiser(policy.model, Fit(lr=1e-6, muon_lr=0.0, weight_decay=0.0))
    seconds, rows = [], []
    for step in range(s.steps):
        began = time.perf_counter()
        rows.append(rl.one(policy, "arithmetic", graded, config, optimizer, step))
        seconds.append(time.perf_counter() - began)
    sampling = [whole - row["cost"]["training_seconds"] for whole, row in zip(seconds, rows, strict=True)]
    return summary(seconds, [row["tokens_per_chain"] for row in rows]) | {"sampling": mean(sampling[1:])}


def graded(items):
    """Right, or else something that differs from chain to chain: an untaught model must have a gradient too."""
    from workbench.rl import Earned, outcome

    return Earned([x + 1e-3 * (t.tokens + sum(map(len, (s.text for s in t.steps)))) for x, (_, t) in
                   zip(outcome(items).chains, items, strict=True)])  # fmt: skip


def trl(size: str, micro: int) -> dict:
    from datasets import Dataset
    from transformers import TrainerCallback, set_seed
    from trl import GRPOConfig, GRPOTrainer

    from workbench import tasks

    s, policy = SIZES[size], policy_of(size)
    tokenizer, encoder = policy.encoder.tokenizer, policy.encoder
    problems = [
        q
        for level in range(1, 7)
        for q in tasks.get("arithmetic").load("train", s.prompts * s.steps // 6 + 1, 1, level)
    ]
    rows = [{"prompt": tokenizer.decode(encoder.prompt(q.prompt)), "gold": q.answer} for q in problems]
    seconds, lengths = [], []

    def reward(completion_ids, gold, **more):
        lengths.append(mean([len(ids) for ids in completion_ids]))
        texts = [tokenizer.decode(ids) for ids in completion_ids]
        said = [text.partition("<assistant>")[2].partition("</assistant>")[0].strip() for text in texts]
        return [float(a == g) + 1e-3 * len(t) for a, g, t in zip(said, gold, texts, strict=True)]

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.began = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            seconds.append(time.perf_counter() - self.last)
            self.last = time.perf_counter()

    clock = Clock()
    set_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            folder, use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, save_strategy="no",
            logging_strategy="no", num_generations=s.group, per_device_train_batch_size=micro,
            gradient_accumulation_steps=s.prompts * s.group // micro, max_completion_length=s.chain, temperature=1.0,
            beta=0.0, loss_type="grpo", learning_rate=1e-6, max_steps=s.steps, gradient_checkpointing=False,
        )  # fmt: skip
        trainer = GRPOTrainer(policy.model, reward, args, Dataset.from_list(rows), processing_class=tokenizer,
                              callbacks=[clock])  # fmt: skip
        clock.last = time.perf_counter()
        trainer.train()
    return summary(seconds, lengths)


def summary(seconds: list[float], tokens: list[float]) -> dict:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": mean(seconds[1:]), "tokens": mean(tokens[1:]), "peak": peak}


def mean(values) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    way, _, micro = sys.argv[1].partition(":")
    print(json.dumps(trl(sys.argv[2], int(micro)) if way == "trl" else ours(sys.argv[2])))
