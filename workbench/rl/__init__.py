"""Reinforcement learning on chains of thought: GRPO over whole chains, with outcome or process reward."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from . import tasks
from .fit import Fit, load_state, optimiser, save_state
from .labels import right_answer
from .models import flops
from .policies import Sampling
from .policies.local import LocalPolicy
from .search import drive
from .types import Cost, Problem, Trace, WorkbenchError

Reward = Callable[[Sequence[tuple[Problem, Trace]]], tuple[list[float], Cost]]


@dataclass(frozen=True)
class GRPO:
    """Scalars of a run. One step: `prompts` problems x `group` chains, `updates` optimiser steps on them. All
    learning rates (see `fit.Fit`) fall linearly to nothing over `steps`. `levels`: the problems to learn from, in
    equal parts (none named: all); in a short chain the outcome says more about each step.

    Left out: a KL penalty to the starting policy (DAPO drops it too), and a value head.
    """

    steps: int = 60
    levels: tuple[int, ...] = ()
    prompts: int = 32
    group: int = 8
    updates: int = 4
    lr: float = 2e-4
    muon_lr: float = 6e-4
    gain_lr: float = 1e-2
    clip: float = 0.2
    temperature: float = 1.0
    step_tokens: int = 16
    chain_tokens: int = 96
    check_every: int = 10
    seed: int = 0


# --- rewards: (problem, chain) pairs -> one number each, and what judging them cost ---


def outcome(items: Sequence[tuple[Problem, Trace]]) -> tuple[list[float], Cost]:
    """1 for a chain that closed with a right answer, else 0. A chain that did not close earns nothing."""
    return [float(right_answer(p, trace)) for p, trace in items], Cost()


def process(verifier, form: str = "min") -> Reward:
    """Reward from a verifier's step scores: their `sum` (the usual credit, which more steps can inflate) or their
    `min` (PURE, Cheng et al. 2025). A chain that did not close earns 0 whatever its steps are worth."""
    if form not in ("sum", "min"):
        raise WorkbenchError(f"unknown process reward {form!r}: sum or min")
    combine = sum if form == "sum" else min

    def reward(items: Sequence[tuple[Problem, Trace]]) -> tuple[list[float], Cost]:
        begin = time.perf_counter()
        scores = verifier.score([(p.blind(), trace) for p, trace in items])
        tokens = [trace.tokens + len(verifier.encoder.prompt(p.prompt)) for p, trace in items]
        cost = Cost(
            judged=sum(tokens),
            verifier_calls=1,
            verifier_flops=sum(verifier.flops(0, n) for n in tokens),
            verifier_seconds=time.perf_counter() - begin,
        )
        closed = zip(scores, items, strict=True)
        return [combine(s) if trace.stop == "answer" else 0.0 for s, (_, trace) in closed], cost

    return reward


# --- the algorithm ---


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """(prompts, group) rewards -> the same shape: (r - mean) / std inside each group; a uniform group gives zeros.

    Source: GRPO, Shao et al. 2024 (arXiv 2402.03300), equation 3's outcome form; std over the group, not n - 1.

    >>> advantages(torch.tensor([[1.0, 0.0], [1.0, 1.0]])).tolist()
    [[1.0, -1.0], [0.0, 0.0]]
    """
    if rewards.shape[1] < 2:
        raise WorkbenchError("a group of one has no advantage: set group to 2 or more")
    if not torch.isfinite(rewards).all():
        raise WorkbenchError("a reward is not a finite number: mend the reward function")
    centred = rewards - rewards.mean(1, keepdim=True)
    std = rewards.std(1, keepdim=True, unbiased=False)
    return torch.where(std > 1e-6, centred / std.clamp(min=1e-6), torch.zeros_like(centred))


def clipped_loss(new, old, advantage, mask, clip: float = 0.2, divisor: float | None = None) -> torch.Tensor:
    """PPO's clipped surrogate with GRPO's mean inside each response first, then over responses.

    new, old, mask: (rows, tokens) log-probs of the sampled tokens; advantage: (rows,). `divisor`: how many responses
    the mean is over, if this is a part of a larger batch.
    """
    ratio = (new - old).exp()
    gain = torch.minimum(ratio * advantage[:, None], ratio.clamp(1 - clip, 1 + clip) * advantage[:, None])
    per_response = (gain * mask).sum(1) / mask.sum(1).clamp(min=1)
    return -per_response.sum() / (divisor or len(per_response))


def token_logprobs(model, ids, mask, start: int, temperature: float) -> torch.Tensor:
    """Log-probs of ids[:, start:] under the distribution that sampled them (temperature included)."""
    place = (mask.cumsum(1) - 1).clamp(min=0)  # as sampling counts them, whatever padding stands before
    hidden = model.model(input_ids=ids, attention_mask=mask, position_ids=place).last_hidden_state[:, start - 1 : -1]
    logits = model.lm_head(hidden).float() / temperature
    return logits.gather(-1, ids[:, start:, None])[..., 0] - logits.logsumexp(-1)


def _batch(policy: LocalPolicy, items: Sequence[tuple[Problem, Trace]]):
    """Left-padded prompts and right-padded responses, so that all responses start in one column."""
    prompts = [policy.encoder.prompt(p.prompt) for p, _ in items]
    responses = [[t for s in trace.steps for t in s.ids] for _, trace in items]
    old = [[v for s in trace.steps for v in s.logprobs] for _, trace in items]
    start, width = max(map(len, prompts)), max(map(len, responses))
    ids = torch.full((len(items), start + width), policy.pad)
    mask = torch.zeros_like(ids)
    logprobs = torch.zeros((len(items), width))
    for i, (p, r, o) in enumerate(zip(prompts, responses, old, strict=True)):
        ids[i, start - len(p) : start + len(r)] = torch.tensor(p + r)
        mask[i, start - len(p) : start + len(r)] = 1
        logprobs[i, : len(o)] = torch.tensor(o)
    device = policy.model.device
    return ids.to(device), mask.to(device), logprobs.to(device), start


def update(policy: LocalPolicy, optimizer, items, advantage: torch.Tensor, config: GRPO, rows: int = 128) -> dict:
    """`config.updates` optimiser steps on one batch of chains. Chains of uniform groups carry no gradient: skipped."""
    model = policy.model.train()
    live = [i for i in range(len(items)) if advantage[i] != 0]
    stats = {"ratio": [], "clipped": [], "loss": []}
    tokens, context = 0, 0.0
    for first in range(min(config.updates, len(live))):
        # every part has chains of all groups and lengths; inside it like lengths stand together
        part = sorted(live[first :: config.updates], key=lambda i: items[i][1].tokens)
        optimizer.zero_grad(set_to_none=True)
        divisor = len(items) / config.updates
        stats["loss"].append(0.0)
        for at in range(0, len(part), rows):
            some = part[at : at + rows]
            ids, mask, old, start = _batch(policy, [items[i] for i in some])
            new = token_logprobs(model, ids, mask, start, config.temperature)
            seen = mask[:, start:].float()
            loss = clipped_loss(new, old, advantage[some].to(new.device), seen, config.clip, divisor)
            loss.backward()
            with torch.no_grad():
                ratio = (new - old).exp()[seen > 0]
                stats["ratio"].append((ratio - 1).abs().max().item())
                stats["clipped"].append(((ratio - 1).abs() > config.clip).float().mean().item())
            stats["loss"][-1] += loss.item()
            tokens += ids.numel()
            context += ids.numel() * (ids.shape[1] + 1) / 2
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise WorkbenchError("the gradient is not finite: the last checkpoint is kept, lower lr")
        optimizer.step()
    model.eval()
    mean = lambda xs: sum(xs) / len(xs) if xs else None  # noqa: E731
    return {
        "loss": mean(stats["loss"]),
        "norm": norm.item() if live else None,
        "ratio_max": max(stats["ratio"], default=None),
        "clipped": mean(stats["clipped"]),
        "trained": tokens,
        "training_flops": 3 * flops(model.config, tokens, context / max(1, tokens)),
    }


def train(
    policy: LocalPolicy,
    task: str,
    reward: Reward,
    config: GRPO,
    run,
    held_out: Sequence[Problem] = (),
    progress: bool = True,
) -> list[dict]:
    """Train `policy` in place; returns the history, a row a step. Killed at any moment, it resumes exactly.

    `run` is a runs.Run: state.safetensors every `check_every` steps, history.jsonl a row a step. Each row has the
    proxy (the reward that is optimised) and the true reward of the same chains; each check adds the true reward on
    `held_out` problems. All randomness is a function of (seed, step), so a resumed run is the same run.
    """
    optimizer = optimiser(
        policy.model, Fit(lr=config.lr, muon_lr=config.muon_lr, gain_lr=config.gain_lr, weight_decay=0.0)
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    state, history = run.path / "state.safetensors", run.read("history")
    step = load_state(state, policy.model, optimizer)["step"] if state.exists() else 0
    if len(history) > step + 1:  # rows past the checkpoint will be made again, the same
        _rewrite(run.path / "history.jsonl", history[: step + 1])
    history = history[: step + 1]
    sampling = Sampling(config.temperature, config.step_tokens, config.chain_tokens)
    if not history:
        history.append({"step": 0, "true_held_out": _held_out(policy, held_out, sampling)})
        run.append("history", history)
    bar = _bar(config.steps, step, progress)
    while step < config.steps:
        began = time.perf_counter()
        seed = tasks.digest("rl", config.seed, step) >> 1
        levels = config.levels or tasks.get(task).LEVELS
        share = [len(range(i, config.prompts, len(levels))) for i in range(len(levels))]
        problems = [
            q for n, level in zip(share, levels, strict=True) for q in tasks.get(task).load("train", n, seed, level)
        ]
        results = drive(problems, "majority", policy, seed=seed, sampling=sampling, n=config.group)
        items = [(r.problem, leaf.trace) for r in results for leaf in sorted(r.leaves, key=lambda node: node.path[0])]
        if len(items) != config.prompts * config.group:
            raise WorkbenchError(f"step {step}: {len(items)} chains for {config.prompts} x {config.group}")
        proxy, judging = reward(items)
        true, _ = outcome(items)
        grid = torch.tensor(proxy).view(config.prompts, config.group)
        advantage = advantages(grid)
        sampled = time.perf_counter() - began
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - step / config.steps)
        stats = update(policy, optimizer, items, advantage.flatten(), config)
        step += 1
        cost = sum((r.cost for r in results), judging)
        cost += Cost(
            trained=stats.pop("trained"),
            training_flops=stats.pop("training_flops"),
            training_seconds=time.perf_counter() - began - sampled,
        )
        row = {
            "step": step,
            "proxy": sum(proxy) / len(proxy),
            "true": sum(true) / len(true),
            "steps_per_chain": sum(len(t.steps) for _, t in items) / len(items),
            "tokens_per_chain": sum(t.tokens for _, t in items) / len(items),
            "unfinished": sum(t.stop != "answer" for _, t in items) / len(items),
            "uniform_groups": (grid.std(1) <= 1e-6).float().mean().item(),
            "entropy": -sum(v for _, t in items for s in t.steps for v in s.logprobs)
            / max(1, sum(t.tokens for _, t in items)),
            **stats,
            "cost": {k: v for k, v in asdict(cost).items() if v},
        }
        if step % config.check_every == 0 or step == config.steps:
            row["true_held_out"] = _held_out(policy, held_out, sampling)
        history.append(row)
        run.append("history", [row])
        if step % config.check_every == 0 or step == config.steps:
            save_state(state, policy.model, optimizer, step=step)
        bar.set_postfix(proxy=f"{row['proxy']:.3f}", true=f"{row['true']:.3f}")
        bar.update()
    bar.close()
    return history


def _held_out(policy: LocalPolicy, problems: Sequence[Problem], sampling: Sampling) -> float | None:
    if not problems:
        return None
    leaves = [(r.problem, r.leaves[0].trace) for r in drive(problems, "sampling", policy, sampling=sampling)]
    return sum(right_answer(p, trace) for p, trace in leaves) / len(leaves)


def _rewrite(path: Path, rows: list[dict]) -> None:
    scratch = path.with_suffix(".tmp")
    scratch.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(scratch, path)


def _bar(total: int, done: int, progress: bool):
    from tqdm.auto import tqdm

    return tqdm(total=total, initial=done, desc="reinforce", unit="step", disable=not progress)
