"""The local policy against transformers' own `generate`, same model, prompts, lengths and cores, greedy."""

from __future__ import annotations

import time

import torch

from workbench import tasks
from workbench.models import character_tokenizer, new_model
from workbench.policies import Sampling, Want
from workbench.policies.local import LocalPolicy
from workbench.types import Node

ROWS, TOKENS = 128, 48


def main() -> list[dict]:
    tokenizer = character_tokenizer()
    model = new_model("nano", tokenizer).eval()
    policy = LocalPolicy(model, tokenizer)
    policy._ends = torch.zeros_like(policy._ends)  # nobody stops early: both sides write the same number of tokens
    problems = tasks.get("arithmetic").load("test", ROWS)
    wants = [Want(problem, Node()) for problem in problems]
    prompts = [policy.encoder.prompt(problem.prompt) for problem in problems]
    width = max(map(len, prompts))
    ids = torch.tensor([[policy.pad] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])

    def ours():
        chains = policy.extend(wants, 0, Sampling(0.0, TOKENS, TOKENS))
        return [list(chain[0][-1].steps[-1].ids) for chain in chains]

    @torch.inference_mode()
    def theirs():
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            eos_token_id=None,
        )
        return out[:, width:].tolist()

    mine, other = [], []
    for _ in range(3):  # in turns, so that a noisy neighbour hits both
        mine.append(clocked(ours))
        other.append(clocked(theirs))
    same = sum(a == b for a, b in zip(ours(), theirs(), strict=True)) / ROWS
    speed, peer = ROWS * TOKENS / min(mine), ROWS * TOKENS / min(other)
    return [
        {"name": "local policy", "value": round(speed), "unit": "tokens/s", "goal": None, "holds": None},
        {"name": "transformers generate", "value": round(peer), "unit": "tokens/s", "goal": None, "holds": None},
        {"name": "ratio", "value": round(speed / peer, 2), "unit": "x", "goal": ">= 1", "holds": speed >= peer},
        {"name": "rows with equal tokens", "value": same, "unit": "share", "goal": ">= 0.99", "holds": same >= 0.99},
    ]


def clocked(work) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
