"""Reinforcement learning on chains of thought: groups -> rewards -> advantages -> clipped loss -> weights.

`variants` has what GRPO, Dr.GRPO, DAPO, RLOO and PPO differ in, `rewards` what chains and steps can earn, `tries` the
forward pass in which a group's chains share what they begin with. This file is the loop.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace

import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from .. import tasks
from ..adapters import adapter_of, learning, switched
from ..fit import Fit, load_state, optimiser, save_state, team
from ..kv import core
from ..labels import right_answer
from ..models import flops, rates, training_flops
from ..policies import Sampling
from ..search import drive
from ..types import Cost, Problem, Trace, WorkbenchError, in_range
from ..watch import alarm
from .prime import Prime  # noqa: F401
from .rewards import Earned, Reward, credit, formatted, length, mixture, outcome, overlong, process, well_formed  # noqa: F401
from .tries import batches, lay, see
from .variants import (  # noqa: F401
    VARIANTS,
    centred,
    clipped_loss,
    deviation,
    gae,
    k1,
    k3,
    leave_one_out,
    normalised,
    step_advantages,
    token_weights,
)

SCALED = ("logits_scaling", "logit_scale", "final_logit_softcapping")  # what some models do to logits behind their head


@dataclass(frozen=True)
class RL:
    """Scalars of a run. One step: `prompts` problems x `group` chains, `updates` optimiser steps on them, each on
    whole groups. All learning rates (see `fit.Fit`) fall linearly to nothing over `steps`.

    `variant`: see `variants.VARIANTS`. `levels`: the problems to learn from, in equal parts (none named: all);
    `curriculum`: in parts as p (1 - p) of their measured pass rate p, so that most groups have something to say.
    `clip` below and, if > 0, `clip_high` above. `kl` > 0 holds the policy to a reference: `kl_form` `k3` as a loss,
    `k1` as a part of the reward, which no variant scales. `truncate`: where another policy samples, the most that its
    tokens are re-weighted by. `value_weight` is of PPO's value loss, `gamma` and `lam` of its advantages. `refills`:
    how often more prompts are drawn for groups that say nothing, if the variant does that. `temperature`: of the
    chains that are learnt from, and of the log-probs in the loss; a sure policy says more in the heat. Checks are at 1.
    """

    steps: int = 60
    variant: str = "grpo"
    levels: tuple[int, ...] = ()
    curriculum: bool = False
    prompts: int = 32
    group: int = 8
    updates: int = 4
    lr: float = 2e-4
    muon_lr: float = 6e-4
    gain_lr: float = 1e-2
    clip: float = 0.2
    clip_high: float = 0.0
    kl: float = 0.0
    kl_form: str = "k3"
    truncate: float = 2.0
    gamma: float = 1.0
    lam: float = 0.95
    value_weight: float = 0.5
    refills: int = 2
    temperature: float = 1.0
    step_tokens: int = 16
    chain_tokens: int = 96
    rows: int = 1024  # tokens of a forward pass
    capacity: int = 512  # tokens of a row
    check_every: int = 10
    seed: int = 0

    def __post_init__(self):
        if self.variant not in VARIANTS:
            raise WorkbenchError(f"unknown variant {self.variant!r}: one of {', '.join(VARIANTS)}")
        if self.kl_form not in ("k1", "k3"):
            raise WorkbenchError(f"unknown kl_form {self.kl_form!r}: k1 (in the reward) or k3 (in the loss)")
        if self.group < 2 and self.variant != "ppo":
            raise WorkbenchError("a group of one has no advantage: set group to 2 or more, or variant to 'ppo'")
        in_range(self, "steps prompts group updates step_tokens chain_tokens rows capacity check_every", 1)
        in_range(self, "lr clip truncate temperature", 0, above=True)  # greedy chains of a group are all alike
        in_range(self, "muon_lr gain_lr clip_high kl value_weight refills", 0)
        in_range(self, "gamma lam", 0, 1)

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.step_tokens, self.chain_tokens)


@dataclass
class Batch:
    """Chains of one step and what is known of them. Lists over chains; tensors over their tokens, end to end.

    `old`: log-probs when sampled (or when the step began, if another policy sampled). `returns`: PPO's. `reference`:
    log-probs, with a KL. `trust`: importance weights of another policy's samples.
    """

    items: list[tuple[Problem, Trace]]
    group: int
    prompts: list[list[int]]
    responses: list[list[int]]
    old: torch.Tensor
    advantage: torch.Tensor | None = None
    returns: torch.Tensor | None = None
    reference: torch.Tensor | None = None
    trust: torch.Tensor | None = None
    begins: list[int] = field(default_factory=list)
    names: list[int] = field(default_factory=list)  # of the groups, among those of all processes

    @classmethod
    def of(cls, policy, items: Sequence[tuple[Problem, Trace]], group: int) -> Batch:
        prompts = [policy.encoder.prompt(p.prompt) for p, _ in items]
        responses = [[t for step in trace.steps for t in step.ids] for _, trace in items]
        old = torch.tensor([v for _, trace in items for step in trace.steps for v in step.logprobs])
        if len(old) != sum(map(len, responses)):
            raise WorkbenchError("a chain has tokens without a log-prob: RL learns only from what a policy sampled")
        begins = [0]
        for response in responses:
            begins.append(begins[-1] + len(response))
        return cls(list(items), group, prompts, responses, old, begins=begins, names=list(range(len(items) // group)))

    @property
    def lengths(self) -> list[int]:
        return [len(response) for response in self.responses]

    def tokens(self, chains: Sequence[int]) -> torch.Tensor:
        """Where the tokens of `chains` lie, in that order."""
        return torch.cat([torch.arange(self.begins[i], self.begins[i + 1]) for i in chains])

    def spread(self, values: Sequence[float]) -> torch.Tensor:
        """One number a chain -> the same for each of its tokens."""
        return torch.repeat_interleave(
            torch.tensor(values, dtype=torch.float32), torch.tensor(self.lengths, dtype=torch.long)
        )

    def spread_steps(self, values: Sequence[Sequence[float]]) -> torch.Tensor:
        """One number a step -> the same for each of its tokens."""
        flat = [v for row in values for v in row]
        sizes = [len(step.ids) for _, trace in self.items for step in trace.steps]
        return torch.repeat_interleave(torch.tensor(flat, dtype=torch.float32), torch.tensor(sizes, dtype=torch.long))


# --- from rewards to advantages ---


def advantages(batch: Batch, earned: Earned, config: RL, values: torch.Tensor | None = None) -> None:
    """Fill `batch.advantage` (and PPO's `returns`): each token has its chain's advantage plus its step's.

    A variant that scales divides both by one spread of their group, so that weights in a mixture keep their meaning; a
    KL in the reward comes after that, at the strength that `kl` says.
    """
    variant, away = VARIANTS[config.variant], None
    chains = torch.tensor(earned.chains, dtype=torch.float32)
    if config.kl and config.kl_form == "k1":
        parts = k1(batch.old, batch.reference).split(batch.lengths)
        away = -config.kl * torch.tensor([part.sum().item() for part in parts])
    if variant.advantage is None:
        chains = chains if away is None else chains + away
        batch.advantage, batch.returns = _ppo(batch, chains, earned.steps, values, config)
        return
    in_groups = chains.view(-1, batch.group)
    gain = variant.advantage(in_groups)
    over = deviation(in_groups, earned.steps, config.gamma) if variant.scale else torch.ones(len(gain), 1)
    batch.advantage = batch.spread((gain / over).flatten().tolist())
    if earned.steps is not None:
        steps = batch.spread_steps(step_advantages(earned.steps, batch.group, config.gamma))
        batch.advantage += steps / batch.spread(over.expand_as(gain).flatten().tolist())
    if away is not None:
        batch.advantage += batch.spread(variant.advantage(away.view(-1, batch.group)).flatten().tolist())


def _ppo(batch: Batch, chains: torch.Tensor, steps, values: torch.Tensor, config: RL):
    """A chain's reward comes with its last token, a step's with the step's last."""
    rewards = torch.zeros(len(batch.old))
    for i, (_, trace) in enumerate(batch.items):
        at = batch.begins[i]
        for s, step in enumerate(trace.steps):
            at += len(step.ids)
            if steps is not None:
                rewards[at - 1] += steps[i][s]
        if batch.lengths[i]:
            rewards[at - 1] += chains[i]
    if not torch.isfinite(rewards).all():
        raise WorkbenchError("a reward is not a finite number: mend the reward function")
    pairs = zip(rewards.split(batch.lengths), values.split(batch.lengths), strict=True)
    both = [gae(r, v, config.gamma, config.lam) for r, v in pairs] or [(rewards, values)]
    advantage, returns = (torch.cat(parts) for parts in zip(*both, strict=True))
    mine = advantage.double()
    sums = gathered([(mine.sum().item(), mine.square().sum().item(), len(mine))])  # over the tokens of all processes
    total, squares, n = (sum(column) for column in zip(*sums, strict=True))
    mean = total / max(1, n)
    std = math.sqrt(max(0.0, squares - n * mean * mean) / max(1, n - 1))
    return (advantage - mean) / (std + 1e-8), returns


# --- forward passes and the update ---


class Meter:
    """Tokens computed, and their FLOPs, with the logits that were made and no others."""

    def __init__(self, model):
        self.model, self.fed, self.flops = core(model), 0, 0.0

    def __call__(self, seen, learning: bool) -> None:
        config, context = self.model.config, seen.looked / seen.fed
        one = rates(config, True)[0] - rates(config, False)[0]  # the logits of a state
        if learning:
            learns = self.model.get_output_embeddings().weight.requires_grad
            trunk, passes = training_flops(self.model, seen.fed, context, head=False), 2 + learns
        else:
            trunk, passes = flops(config, seen.fed, context, head=False), 1
        self.fed += seen.fed
        self.flops += trunk + passes * seen.heads * one


@torch.no_grad()
def look(model, batch: Batch, config: RL, meter: Meter) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(log-probs, values or None) of all tokens of a batch, end to end, as `model` has them now."""
    logprobs, values = torch.zeros(len(batch.old)), torch.zeros(len(batch.old))
    for part in batches(lay(batch.prompts, batch.responses, range(len(batch.items)), config.capacity), config.rows):
        seen = see(model, part, config.temperature)
        meter(seen, learning=False)
        at = batch.tokens(seen.chains)
        logprobs[at] = seen.logprobs.cpu()
        if seen.values is not None:
            values[at] = seen.values.cpu()
    return logprobs, values


def update(policy, optimizer, batch: Batch, config: RL, meter: Meter | None = None) -> dict:
    """At most `config.updates` optimiser steps on one batch, each on every so-many-th group. Chains whose advantages
    are all 0 carry no gradient and are not read, unless a KL pulls at them.

    Strictly on-policy (one update, own samples) the ratio is 1 and the log-probs of sampling are the old ones, so no
    second pass is ever made. The model stays in eval mode: with dropout the ratio would be chance.
    Errors: a gradient that is not finite; the weights are then as before it.
    """
    variant, model = VARIANTS[config.variant], policy.model.eval()
    meter = meter or Meter(model)
    high = config.clip_high or variant.high or config.clip
    weight = token_weights(batch.lengths, variant.mean, config.chain_tokens, *_counts(batch))
    pulled = config.kl > 0 and config.kl_form == "k3"
    parts = batch.advantage.split(batch.lengths)
    live = [bool(pulled or batch.returns is not None or (part != 0).any()) for part in parts]
    groups = {
        name: [i for i in range(at * batch.group, (at + 1) * batch.group) if live[i]]
        for at, name in enumerate(batch.names)
    }
    every = sorted(gathered([name for name, chains in groups.items() if chains]))
    stats = {"ratio": [], "clipped": [], "loss": [], "norm": [], "kl": []}
    updates = min(config.updates, len(every))
    for first in range(updates):
        part = [i for name in every[first::updates] for i in groups.get(name, ())]
        model.zero_grad(set_to_none=True)  # an update that was stopped may have left some
        total = 0.0
        for rows in batches(lay(batch.prompts, batch.responses, part, config.capacity), config.rows):
            seen = see(model, rows, config.temperature)
            meter(seen, learning=True)
            at = batch.tokens(seen.chains)
            new, w = seen.logprobs, weight[at].to(seen.logprobs.device) * updates
            old, advantage = batch.old[at].to(new.device), batch.advantage[at].to(new.device)
            trust = w if batch.trust is None else w * batch.trust[at].to(new.device)
            loss = clipped_loss(new, old, advantage, trust, config.clip, high)
            if batch.reference is not None:
                away = k3(new, batch.reference[at].to(new.device))
                loss = loss + config.kl * (away * w).sum() if pulled else loss
                stats["kl"].append(away.detach().mean().item())
            if batch.returns is not None:
                miss = seen.values - batch.returns[at].to(new.device)
                loss = loss + config.value_weight * (miss.square() * w).sum()
            loss.backward()
            total += loss.item()
            ratio = (new.detach() - old).exp()
            stats["ratio"].append((ratio - 1).abs().max().item())
            past = ((ratio > 1 + high) & (advantage > 0)) | ((ratio < 1 - config.clip) & (advantage < 0))
            stats["clipped"].append(past.float().mean().item())
        sum_gradients(model)
        norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
        if not torch.isfinite(norm):
            raise WorkbenchError("the gradient is not finite: the last checkpoint is kept; lower lr and run again")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # now, so that sampling has the memory
        stats["loss"].append(sum(gathered([total])))
        stats["norm"].append(norm.item())
    stats |= {name: gathered(stats[name]) for name in ("ratio", "clipped", "kl")}
    return {
        "loss": _mean(stats["loss"]),
        "norm": _mean(stats["norm"]),
        "ratio_max": max(stats["ratio"], default=None),
        "clipped": _mean(stats["clipped"]),
        "kl": _mean(stats["kl"]),
        "trained": meter.fed,
        "training_flops": meter.flops,
    }


# --- several processes: each samples and reads its share of the groups, the gradient is that of all ---


def gathered(rows: list) -> list:
    """The rows of all processes, in their order."""
    return gather_object(rows) if team().num_processes > 1 else rows


def _counts(batch: Batch) -> tuple[int, int]:
    """Chains and tokens of the whole step."""
    chains, tokens = zip(*gathered([(len(batch.items), len(batch.old))]), strict=True)
    return sum(chains), sum(tokens)


def sum_gradients(model) -> None:
    """Losses are weighted by the whole step, so gradients add up. A process without a chain gives zeros."""
    if team().num_processes > 1:
        for p in model.parameters():
            if p.requires_grad:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                torch.distributed.all_reduce(p.grad)


# --- the run ---


def train(
    policy,
    task: str,
    reward: Reward,
    config: RL,
    run,
    held_out: Sequence[Problem] = (),
    progress: bool = True,
    reference=None,
    sampler=None,
) -> list[dict]:
    """Train `policy` in place; returns the history, a row a step. Killed at any moment, it resumes exactly.

    `run` is a runs.Run: state.safetensors every `check_every` steps, history.jsonl a row a step, checks.jsonl what
    every held-out problem's chain earned, proxy and truth. `reward` sees (problem, chain) pairs; one that learns
    (`learn`, `save`, `load`: see `prime`) does so after each step. Where the policy has a LoRA adapter, on a base of
    any precision, that alone learns and is kept. `reference`: the model that a KL holds to; None is the policy's base
    without its adapters. `sampler`: another policy that writes the chains, such as a server whose weights lag; the loss
    then counts each token by how much likelier the policy finds it, at most `truncate` times.
    All randomness is a function of (seed, step), so a resumed run is the same run; under `accelerate launch` processes
    share the groups of a step (the others than the first pass `Run.existing`). The alarm of `watch` is told once.
    Checks are not billed. Errors: a reward that raises, that gives NaN or too few numbers; 4-bit weights without an
    adapter; a gradient that is not finite: the run stops, and the last checkpoint stays.

    >>> train(policy, "arithmetic", outcome, RL(variant="dapo"), run, held_out)  # doctest: +SKIP
    """
    with learning(policy.model, policy.adapter):
        return _run(policy, task, reward, config, run, held_out, progress, reference, sampler)


def _run(policy, task, reward, config, run, held_out, progress, reference, sampler) -> list[dict]:
    state, main = run.path / "state.safetensors", team().is_main_process
    policy.model.eval()  # with dropout no ratio would be 1, and a run that goes on would be another
    if hasattr(reward, "learn") and team().num_processes > 1:
        raise WorkbenchError("a reward that learns would learn another thing in every process: use one process")
    scaled = [k for k in SCALED if getattr(policy.model.config, k, None) not in (None, 1, 1.0)]
    if scaled:
        raise WorkbenchError(f"a model with {', '.join(scaled)} would be trained at other logits than it samples from")
    value_head(policy.model, config)
    optimizer = optimiser(
        policy.model, Fit(lr=config.lr, muon_lr=config.muon_lr, gain_lr=config.gain_lr, weight_decay=0.0)
    )
    rates_ = [group["lr"] for group in optimizer.param_groups]
    step, begun, scalars = 0, state.exists(), json.loads(json.dumps(asdict(config)))
    if begun:
        about = load_state(state, policy.model, optimizer)
        step, was = about["step"], about["rl"]
        if changed := [f"{k} was {was.get(k)}, is {v}" for k, v in scalars.items() if was.get(k) != v]:
            raise WorkbenchError(f"{run.path} is of another run ({', '.join(changed)}): open a run of its own for this")
    kept = run.rewind if main else lambda name, step: [row for row in run.read(name) if row["step"] <= step]
    history = kept("history", step)
    checks = kept("checks", step if history else -1)
    warned = any("alarm" in row for row in history)

    def check(step: int) -> dict:
        if not held_out or not main:
            return {"true_held_out": None} if not held_out else {}
        row = {"step": step, **_held_out(policy, held_out, reward, config)}
        checks.append(row)
        run.append("checks", [row])
        means = {f"{name}_held_out": _mean(row[name]) for name in ("true", "proxy")}
        if not warned and (found := alarm(checks)):
            warnings.warn(str(found), stacklevel=4)
            means["alarm"] = str(found)
        return means

    def write(row: dict) -> None:
        history.append(row)
        if main:
            run.append("history", [row])

    def keep(step: int) -> None:
        learnt = hasattr(reward, "learn")
        if learnt:  # under the step's name, so that it counts only once the policy's state is there
            reward.save(run.path / f"reward-{step}.safetensors")
        save_state(state, policy.model, optimizer, step=step, rl=scalars)
        for old in run.path.glob("reward-*.safetensors") if learnt else ():
            if old.name != f"reward-{step}.safetensors":
                old.unlink()

    if begun and hasattr(reward, "learn"):
        reward.load(run.path / f"reward-{step}.safetensors")
    elif main and not begun:
        keep(0)  # who is stopped before the first check, and called again with the same policy, begins where it began
    if not history:
        write({"step": 0, **check(0)})
    probe = choose(task, config, 0)[0]
    bar = tqdm(total=config.steps, initial=step, desc="reinforce", unit="step", disable=not (progress and main))
    try:
        while step < config.steps:
            for group, rate in zip(optimizer.param_groups, rates_, strict=True):
                group["lr"] = rate * (1 - step / config.steps)
            try:
                row = one(policy, task, reward, config, optimizer, step, history, reference, sampler)
            except WorkbenchError as error:
                last = step - step % config.check_every
                raise WorkbenchError(f"step {step + 1}: {error}. {run.path} goes on from step {last}") from error
            step += 1
            last = step % config.check_every == 0 or step == config.steps
            if last and not _sound(policy, probe):
                kept_at = step - 1 - (step - 1) % config.check_every
                raise WorkbenchError(
                    f"step {step}: the policy's logits are no numbers any more: lower lr and run anew. {run.path} has "
                    f"the weights of step {kept_at}"
                )
            if last:
                row |= check(step)
                warned |= "alarm" in row
            write(row)
            if last and main:
                keep(step)
            team().wait_for_everyone()
            bar.set_postfix(proxy=f"{row['proxy']:.3f}", true=f"{row['true']:.3f}")
            bar.update()
    finally:
        bar.close()
        if hasattr(core(policy.model), "value_head"):
            del core(policy.model).value_head
    return history


def one(policy, task, reward, config, optimizer, step, history=(), reference=None, sampler=None) -> dict:
    """One step of `train`, on a policy and an optimiser that it changes; returns its row of the history."""
    began = time.perf_counter()
    rolled = roll_out(sampler or policy, task, reward, config, step, history)
    policy.rows.packed.forget()  # the weights will move, and what comes needs the memory
    sampled = time.perf_counter() - began
    batch, meter = Batch.of(policy, rolled.items, config.group), Meter(policy.model)
    batch.names, values = rolled.names, None
    if sampler is not None or config.variant == "ppo":
        now, values = look(policy.model, batch, config, meter)
        if sampler is not None:
            batch.trust, batch.old = (now - batch.old).exp().clamp(max=config.truncate), now
    if config.kl:
        shared = reference is None and adapter_of(policy.model, None, needed=True)
        with switched(policy.model, None) if shared else nullcontext():
            batch.reference, _ = look(policy.model if shared else reference, batch, config, meter)
    advantages(batch, rolled.earned, config, values)
    stats = update(policy, optimizer, batch, config, meter)
    cost = rolled.cost + Cost(
        trained=stats.pop("trained"),
        training_flops=stats.pop("training_flops"),
        training_seconds=time.perf_counter() - began - sampled,
    )
    if learn := getattr(reward, "learn", None):
        cost += learn(rolled.items)
    return {"step": step + 1, **rolled.row(), **stats, "cost": sum(gathered([cost]), Cost()).amounts()}


@dataclass
class Rollout:
    """The chains of one step that this process learns from, and what is known of all that were sampled."""

    items: list[tuple[Problem, Trace]]
    names: list[int]
    earned: Earned
    cost: Cost
    chains: list[dict]  # of every chain that was sampled, by any process
    uniform: float  # share of groups that say nothing
    unserved: int  # problems

    def row(self) -> dict:
        mean = {
            key: _mean([chain[key] for chain in self.chains]) for key in self.chains[0] if key not in ("level", "nats")
        }
        levels: dict[str, list[int]] = {}
        for chain in sorted(self.chains, key=lambda chain: chain["level"]):
            count = levels.setdefault(str(chain["level"]), [0, 0])
            count[0] += int(chain["true"])
            count[1] += 1
        tokens = sum(chain["tokens_per_chain"] for chain in self.chains)
        entropy = sum(chain["nats"] for chain in self.chains) / max(1, tokens)  # of the sampled tokens: its estimate
        groups = {"uniform_groups": self.uniform, "unserved": self.unserved}
        return {**mean, "entropy": entropy, **groups, "levels": levels}


def roll_out(policy, task: str, reward: Reward, config: RL, step: int, history: Sequence[dict] = ()) -> Rollout:
    """Sample the groups of one step and judge them; a variant with `refill` replaces those that say nothing."""
    place = team()
    refill = VARIANTS[config.variant].refill
    cost, chains, found, uniform, unserved = Cost(), [], [], [], 0
    for again in range(1 + config.refills if refill else 1):
        seed = tasks.digest("rl", config.seed, step, *([again] if again else [])) >> 1
        problems = choose(task, config, seed, history)
        mine = problems[place.process_index :: place.num_processes]
        results = drive(mine, "majority", policy, seed=seed, sampling=config.sampling, n=config.group)
        unserved += sum(r.stop == "error" for r in results)  # drive names the first of them
        mine = [r.problem for r in results if r.stop != "error"]
        items = [(r.problem, leaf.trace) for r in results for leaf in sorted(r.leaves, key=lambda node: node.path[0])]
        if len(items) != len(mine) * config.group:
            raise WorkbenchError(f"{len(items)} chains for {len(mine)} problems x {config.group}")
        earned = judge(reward, items)
        totals = earned.totals()
        cost += sum((r.cost for r in results), earned.cost)
        about = [_about(*item, total) for item, total in zip(items, totals, strict=True)]
        chains += about
        for at in range(len(mine)):
            chosen = range(at * config.group, (at + 1) * config.group)
            name = again * config.prompts + place.process_index + place.num_processes * at
            alike = max(totals[i] for i in chosen) - min(totals[i] for i in chosen) <= 1e-6
            if earned.steps is not None:  # the same in all, but not at the same steps
                alike &= all(earned.steps[i] == earned.steps[chosen[0]] for i in chosen)
            silent = alike or len({about[i]["true"] for i in chosen}) == 1
            uniform.append(float(silent if refill else alike))
            found.append((name, silent, [items[i] for i in chosen], earned.part(chosen)))
        if refill and sum(not silent for silent in gathered([f[1] for f in found])) >= config.prompts:
            break
    if refill:  # the first groups that have something to say, of all processes
        wanted = sorted(gathered([f[0] for f in found if not f[1]]))[: config.prompts]
        found = [f for f in found if f[0] in wanted]
    return Rollout(
        [item for f in found for item in f[2]],
        [f[0] for f in found],
        Earned.joined([f[3] for f in found]),
        cost,
        gathered(chains),
        _mean(gathered(uniform)),
        sum(gathered([unserved])),
    )


def _about(problem: Problem, trace: Trace, total: float) -> dict:
    return {
        "level": problem.level,
        "proxy": total,
        "true": float(right_answer(problem, trace)),
        "steps_per_chain": len(trace.steps),
        "tokens_per_chain": trace.tokens,
        "unfinished": float(trace.stop != "answer"),
        "ill_formed": float(not well_formed(trace)),
        "nats": -sum(v for step in trace.steps for v in step.logprobs),
    }


def judge(reward: Reward, items: Sequence[tuple[Problem, Trace]]) -> Earned:
    """What the chains earn, with nothing let through that would poison the update."""
    name = getattr(reward, "__name__", type(reward).__name__)
    try:
        earned = reward(items)
    except WorkbenchError:
        raise
    except Exception as error:
        raise WorkbenchError(f"the reward {name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(earned, Earned):
        raise WorkbenchError(f"the reward {name} gave {type(earned).__name__}: return Earned, a number a chain")
    try:
        chains, steps = list(earned.chains), None if earned.steps is None else list(map(list, earned.steps))
        if len(chains) != len(items):
            raise WorkbenchError(f"the reward gave {len(chains)} numbers for {len(items)} chains")
        if steps is not None and list(map(len, steps)) != [len(t.steps) for _, t in items]:
            raise WorkbenchError("the reward must give a number to every step of every chain, or no steps at all")
        totals = list(map(float, earned.totals()))
        earned = Earned(list(map(float, chains)), steps and [list(map(float, row)) for row in steps], earned.cost)
    except (TypeError, ValueError) as error:
        raise WorkbenchError(f"the reward {name} gave what is no number ({error}): mend it") from error
    for (problem, _), total in zip(items, totals, strict=True):
        if not math.isfinite(total):
            raise WorkbenchError(f"the reward of a chain of {problem.id} is {total}: mend the reward function")
    return earned


def choose(task: str, config: RL, seed: int, history: Sequence[dict] = ()) -> list[Problem]:
    """The step's problems: equal parts of the levels, or by `shares` of what was measured in the last steps."""
    levels = config.levels or tasks.get(task).LEVELS
    counts = [len(range(i, config.prompts, len(levels))) for i in range(len(levels))]
    if config.curriculum:
        counts = apportion(shares(levels, history), config.prompts)
    parts = zip(levels, counts, strict=True)
    return [q for level, n in parts if n for q in tasks.get(task).load("train", n, seed, level)]


def shares(levels: Sequence[int], history: Sequence[dict], last: int = 5, least: float = 0.05) -> list[float]:
    """How much of a step each level gets: p (1 - p) + `least`, p its pass rate in the `last` rows that have it (.5 if
    none has): a level that got no problem for a while is as well known as before.

    >>> [round(share, 3) for share in shares([1, 2], [{"levels": {"1": [10, 10], "2": [5, 10]}}])]
    [0.143, 0.857]
    """
    worth = []
    for level in levels:
        seen = [row["levels"][str(level)] for row in history if str(level) in row.get("levels", ())][-last:]
        right, of = (sum(pair[i] for pair in seen) for i in (0, 1))
        p = right / of if of else 0.5
        worth.append(p * (1 - p) + least)
    return [w / sum(worth) for w in worth]


def apportion(parts: Sequence[float], n: int) -> list[int]:
    """n in whole numbers as `parts` (which add up to 1) say: largest remainders.

    >>> apportion([0.15, 0.85], 5)
    [1, 4]
    """
    counts = [math.floor(part * n) for part in parts]
    for i in sorted(range(len(parts)), key=lambda i: counts[i] - parts[i] * n)[: n - sum(counts)]:
        counts[i] += 1
    return counts


def value_head(model, config: RL) -> None:
    """PPO's head on the policy's last states, at zero; it lives with the model while it is trained."""
    inner = core(model)
    if config.variant == "ppo" and not hasattr(inner, "value_head"):
        inner.value_head = torch.nn.Linear(inner.config.hidden_size, 1, device=next(inner.parameters()).device)
        torch.nn.init.zeros_(inner.value_head.weight)
        torch.nn.init.zeros_(inner.value_head.bias)


def _held_out(policy, problems: Sequence[Problem], reward: Reward, config: RL) -> dict[str, list[float | None]]:
    """Truth and proxy of one chain a problem, at the prompt of training and temperature 1, whatever is trained at; None
    for a problem that cannot be served."""
    plain = replace(config.sampling, temperature=1.0)
    results = drive(problems, "sampling", policy, sampling=plain)
    items = [(r.problem, r.leaves[0].trace) for r in results if r.leaves]
    true, proxy = iter([float(right_answer(p, t)) for p, t in items]), iter(judge(reward, items).totals())
    return {
        "true": [next(true) if r.leaves else None for r in results],
        "proxy": [next(proxy) if r.leaves else None for r in results],
    }


def _sound(policy, problem: Problem) -> bool:
    """Whether the policy still gives numbers: finite weights may be so large that what they give is not."""
    ids = torch.tensor([policy.encoder.prompt(problem.prompt)], device=policy.model.device)
    with torch.no_grad():
        return bool(policy.model(input_ids=ids).logits.isfinite().all())


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
