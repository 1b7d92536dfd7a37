"""Teach a chain of thought: input -> reasoning -> output, loss on the response only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from .format import Encoder
from .types import Problem, Trace

IGNORE = -100


@dataclass(frozen=True)
class Row:
    """One training row: token ids, the labels (IGNORE where no loss is taken)."""

    ids: list[int]
    labels: list[int]


def rows(pairs: Sequence[tuple[Problem, Trace]], encoder: Encoder) -> list[Row]:
    """Problems with their chains -> rows with the prompt masked."""
    out = []
    for problem, trace in pairs:
        code = encoder.encode(problem.prompt, trace.steps)
        out.append(Row(code.ids, [IGNORE] * code.prompt_length + code.ids[code.prompt_length :]))
    return out


def direct(trace: Trace) -> Trace:
    """The answer without its chain: what the direct-answer twin is taught."""
    return replace(trace, steps=trace.steps[-1:])


def collate(batch: Sequence[Row], pad: int) -> dict[str, torch.Tensor]:
    width = max(len(row.ids) for row in batch)
    ids = torch.full((len(batch), width), pad)
    labels = torch.full((len(batch), width), IGNORE)
    mask = torch.zeros((len(batch), width), dtype=torch.long)
    for i, row in enumerate(batch):
        n = len(row.ids)
        ids[i, :n], labels[i, :n], mask[i, :n] = torch.tensor(row.ids), torch.tensor(row.labels), 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


@torch.inference_mode()
def accuracy(model, data: Sequence[Row], pad: int, batch: int = 256) -> float:
    """Share of rows whose every response token is the model's first choice, which is greedy decoding's exact match."""
    right = 0
    for start in range(0, len(data), batch):
        x = {k: v.to(model.device) for k, v in collate(data[start : start + batch], pad).items()}
        guess = model(input_ids=x["input_ids"], attention_mask=x["attention_mask"]).logits[:, :-1].argmax(-1)
        gold = x["labels"][:, 1:]
        right += ((guess == gold) | (gold == IGNORE)).all(1).sum().item()
    return right / len(data)


def loss(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy over response tokens."""
    return model(**batch).loss


@torch.inference_mode()
def mean_loss(model, data: Sequence[Row], pad: int, batch: int = 4) -> float:
    """Mean cross-entropy over all response tokens of `data`; the model is left in training mode, where a check is."""
    model.eval()
    total = count = 0
    for start in range(0, len(data), batch):
        x = {k: v.to(model.device) for k, v in collate(data[start : start + batch], pad).items()}
        some = (x["labels"][:, 1:] != IGNORE).sum().item()
        total, count = total + loss(model, x).item() * some, count + some
    model.train()
    return total / count
