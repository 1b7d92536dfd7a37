"""What the variants of policy-gradient RL on chains differ in: advantages, token weights, clip range. Tensors only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..types import WorkbenchError

EPSILON = 1e-4  # under a standard deviation; TRL's


# --- advantages of chains: (prompts, group) rewards -> the same shape ---


def centred(rewards: torch.Tensor) -> torch.Tensor:
    """r - mean of its group (Dr.GRPO, Liu et al. 2025, arXiv 2503.20783).

    >>> centred(torch.tensor([[1.0, 0.0], [1.0, 1.0]])).tolist()
    [[0.5, -0.5], [0.0, 0.0]]
    """
    if rewards.shape[1] < 2:
        raise WorkbenchError("a group of one has no advantage: set group to 2 or more")
    if not torch.isfinite(rewards).all():
        raise WorkbenchError("a reward is not a finite number: mend the reward function")
    same = (rewards == rewards[:, :1]).all(1, keepdim=True)  # rounding of a mean must not become an advantage
    return torch.where(same, torch.zeros_like(rewards), rewards - rewards.mean(1, keepdim=True))


def normalised(rewards: torch.Tensor) -> torch.Tensor:
    """(r - mean) / (std + 1e-4) inside each group (GRPO, Shao et al. 2024, arXiv 2402.03300, section 4.1.2).

    A uniform group gives zeros, and no group at all (all were dropped, or are another process's) gives none.

    >>> normalised(torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0]])).round(decimals=3).tolist()
    [[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    return centred(rewards) / deviation(rewards)


def leave_one_out(rewards: torch.Tensor) -> torch.Tensor:
    """r - mean of the *others* in its group (RLOO, Ahmadian et al. 2024, arXiv 2402.14740): n / (n - 1) of `centred`.

    >>> leave_one_out(torch.tensor([[1.0, 0.0]])).tolist()
    [[1.0, -1.0]]
    """
    n = rewards.shape[1]
    return centred(rewards) * (n / max(1, n - 1))


# --- advantages of steps ---


def to_go(rewards: Sequence[float], gamma: float = 1.0) -> list[float]:
    """Step rewards -> what is still to come from each step on, itself included.

    >>> to_go([1.0, 2.0, 4.0], gamma=0.5)
    [3.0, 4.0, 4.0]
    """
    out, total = [], 0.0
    for reward in reversed(rewards):
        total = reward + gamma * total
        out.append(total)
    return out[::-1]


def returns(rewards: Sequence[Sequence[float]], gamma: float = 1.0) -> torch.Tensor:
    """Rewards of the steps of some chains -> (chains, depth) what each earns from there on; 0 behind its end."""
    rows = [to_go(row, gamma) for row in rewards]
    depth = max(map(len, rows), default=0)
    table = torch.tensor([row + [0.0] * (depth - len(row)) for row in rows], dtype=torch.float64)
    if not torch.isfinite(table).all():
        raise WorkbenchError("a step's reward is not a finite number: mend the reward function")
    return table


def step_advantages(rewards: Sequence[Sequence[float]], group: int, gamma: float = 1.0) -> list[list[float]]:
    """Rewards of every chain's steps -> advantages of the steps; `group` chains in a row answer one problem.

    A step's return is what its chain earns from there on; its baseline the mean return of the group's other chains at
    the same depth, 0 for one that has ended. That depends on nothing the step chose, so the gradient is unbiased.

    >>> step_advantages([[1.0, 0.5], [0.5]], group=2)
    [[1.0, 0.5], [-1.0]]
    """
    if group < 2:
        raise WorkbenchError("a group of one has no advantage: set group to 2 or more")
    out = []
    for first in range(0, len(rewards), group):
        some = rewards[first : first + group]
        table = returns(some, gamma)
        same = (table == table[:1]).all(0)  # rounding must not become an advantage
        gain = torch.where(same, 0.0, table - (table.sum(0) - table) / (group - 1))
        out += [row[: len(r)] for row, r in zip(gain.tolist(), some, strict=True)]
    return out


def deviation(chains: torch.Tensor, steps: Sequence[Sequence[float]] | None = None, gamma: float = 1.0) -> torch.Tensor:
    """What GRPO divides a group's advantages by: (prompts, group) rewards of chains -> (prompts, 1), std + 1e-4.

    The standard deviation divides by n - 1, as TRL's does; the paper does not say. Where `steps` earn too, the variance
    of what is earned from a step on is added, chains compared at the same depth and averaged over depths: one number
    for both, below neither's own, so that neither is blown up where they cancel.

    >>> round(deviation(torch.zeros(1, 2), [[1.0, 0.0], [3.0, 2.0]]).item(), 2)  # 1 5 and 0 2
    2.24
    """
    if not len(chains):  # torch warns of a deviation of nothing
        return chains[:, :1]
    if steps is None:
        return chains.std(1, keepdim=True) + EPSILON
    group, out = chains.shape[1], chains.double().var(1)
    for i in range(len(chains)):
        table = returns(steps[i * group : (i + 1) * group], gamma)
        out[i] += table.var(0).mean() if table.shape[1] else 0.0
    return out.sqrt()[:, None].float() + EPSILON


def gae(
    rewards: torch.Tensor, values: torch.Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards and values of one chain's tokens -> (advantages, returns), each (tokens,).

    A_t = sum over l of (gamma lam)^l delta_(t+l), delta_t = r_t + gamma V_(t+1) - V_t, and V = 0 behind the last token
    (Schulman et al. 2016, arXiv 1506.02438, equation 16). The value head learns the returns A + V.

    >>> advantages, returns = gae(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]), gamma=1.0, lam=0.5)
    >>> advantages.tolist(), returns.tolist()
    ([0.25, 0.5], [0.75, 1.0])
    """
    out, after, ahead = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards.tolist()), reversed(values.tolist()), strict=True):
        ahead = reward + gamma * after - value + gamma * lam * ahead
        out.append(ahead)
        after = value
    advantages = torch.tensor(out[::-1], dtype=values.dtype)
    return advantages, advantages + values


# --- the loss, on the tokens of all chains laid end to end ---


def token_weights(
    lengths: Sequence[int], mean: str, constant: int = 1, chains: int | None = None, tokens: int | None = None
) -> torch.Tensor:
    """How much each token of chains of these `lengths` counts, end to end: (sum of lengths,). `chains` and `tokens`
    are those of the whole batch, if these are a part of it.

    `response`: a mean over each chain's tokens, then over chains (GRPO). `token`: a mean over all tokens (DAPO).
    `constant`: a sum over tokens over a constant, such as the longest chain allowed, then a mean over chains
    (Dr.GRPO: no chain is dear or cheap for its length; with 1 it is plain REINFORCE's sum).

    >>> [token_weights([1, 2], mean, 4).tolist() for mean in ("response", "token", "constant")]
    [[0.5, 0.25, 0.25], [0.3333333432674408, 0.3333333432674408, 0.3333333432674408], [0.125, 0.125, 0.125]]
    """
    n = torch.tensor(list(lengths), dtype=torch.long)
    chains, tokens = chains or max(1, len(n)), tokens or max(1, int(n.sum()))
    each = {"response": n.clamp(min=1) * chains, "token": tokens, "constant": constant * chains}
    if mean not in each:
        raise WorkbenchError(f"unknown mean {mean!r}: one of {', '.join(each)}")
    return torch.repeat_interleave(torch.ones(len(n)) / each[mean], n)


def clipped_loss(new, old, advantage, weight, low: float = 0.2, high: float = 0.2) -> torch.Tensor:
    """PPO's clipped surrogate (Schulman et al. 2017, equation 7), negated and summed with `weight`; all are (tokens,).

    `new`, `old`: log-probs now and when sampled. A gain is not paid past the clip; a loss is always charged in full.
    `high` above `low` is DAPO's clip-higher.

    >>> new, old, weight = torch.tensor([1.5, 1.5]).log(), torch.zeros(2), torch.ones(2)
    >>> round(clipped_loss(new, old, torch.tensor([1.0, -1.0]), weight).item(), 4)
    0.3
    """
    ratio = (new - old).exp()
    return -(torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage) * weight).sum()


def k1(new, reference):
    """log pi - log pi_ref of sampled tokens: the unbiased estimate of the KL. For a reward: its gradient as a loss is 0
    in expectation."""
    return new - reference


def k3(new, reference):
    """pi_ref/pi - log(pi_ref/pi) - 1: never below 0, and less noisy (Schulman 2020; GRPO's). For a loss."""
    gap = reference - new
    return gap.exp() - gap - 1


@dataclass(frozen=True)
class Variant:
    """An advantage of chains, whether a group's `deviation` divides it, a mean over tokens, and what goes with them.

    `advantage` None: PPO, whose value head gives each token its own. `refill`: groups that earn all alike, or whose
    answers are all right or all wrong, are replaced before the update (DAPO's dynamic sampling: its condition is
    correctness, whatever else earns). `high`: the upper clip, if it is not the lower one.
    """

    advantage: Callable[[torch.Tensor], torch.Tensor] | None
    mean: str
    scale: bool = False
    high: float = 0.0
    refill: bool = False


VARIANTS = {
    "rloo": Variant(leave_one_out, "constant"),
    "grpo": Variant(centred, "response", scale=True),
    "dr_grpo": Variant(centred, "constant"),
    "dapo": Variant(centred, "token", scale=True, high=0.28, refill=True),
    "ppo": Variant(None, "token"),
}
