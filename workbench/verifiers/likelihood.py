"""A verifier that is a language model: a step is as right as its least likely token is likely."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch

from ..format import Encoder
from ..kv import Reader, core
from ..models import Price, load_model
from ..packing import read_trees
from ..types import Problem, Trace
from .prm import by_step, in_batches, steps_of_tokens


def step_logprobs(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(rows, steps) log-prob of the least likely token of every step. Training and scoring both come through here.

    Columns past a row's last step hold 0 and mean nothing.
    """
    ids, ends = batch["input_ids"], batch["ends"]
    hidden = model.model(input_ids=ids, attention_mask=batch["attention_mask"]).last_hidden_state
    logits = model.lm_head(hidden[:, :-1]).float()
    token = logits.gather(-1, ids[:, 1:, None])[..., 0] - logits.logsumexp(-1)  # token t stands at t - 1
    step, inside = steps_of_tokens(batch)
    return token.new_zeros(ends.shape).scatter_reduce(1, step, token.masked_fill(~inside, 0.0), "amin")


def mean_logprobs(
    model, encoder: Encoder, items: Sequence[tuple[Problem, Trace]], progress: bool = False
) -> list[tuple[float | None, ...]]:
    """Mean log-prob of every step's tokens under a language model: the baseline that a trained judge has to beat."""
    lm = core(model)

    def judge(hidden, ids, before, ends):
        logprob = torch.zeros(len(before), device=hidden.device)
        begins = [0, *(end + 1 for end in ends[:-1])]
        tokens = torch.tensor(ids, device=hidden.device)
        for at in range(0, len(before), 256):  # a vocabulary of logits at every token is the largest thing here
            part = slice(at, at + 256)
            logits = lm.get_output_embeddings()(hidden[before[part]]).float()
            logprob[part] = logits.gather(-1, tokens[part, None])[:, 0] - logits.logsumexp(-1)
        return [logprob[begin : end + 1].mean().item() for begin, end in zip(begins, ends, strict=True)]

    limit = getattr(lm.config, "max_position_embeddings", None) or 8192
    return read_trees(getattr(lm, lm.base_model_prefix), encoder, items, judge, limit=limit, progress=progress)


class Likelihood:
    """Scores a step by the smallest probability that a language model gives to one of its tokens.

    A linear head must redo a step's work below its own layer to compare; a language model's next-token prediction
    *is* that work. So the verifier is a policy of its own, fine-tuned on steps that a labeller accepted or wrote
    (`labels.corrected`), and every token of them teaches it. Suits tasks with about one good wording of a step.
    `cache`: as a PRM's.
    Left out: the log-ratio to a reference model (implicit PRM, Yuan et al. 2024), which would lift that limit.
    """

    def __init__(self, model, tokenizer, aggregate: str = "min", batch: int = 256, cache: int = 1 << 28):
        self.model, self.encoder, self.aggregate, self.batch = model.eval(), Encoder(tokenizer), aggregate, batch
        self.pad, self.read = tokenizer.pad_token_id, []
        self.reader = Reader(model, cache) if cache else None

    @classmethod
    def load(cls, folder: str | Path, **more) -> Likelihood:
        return cls(*load_model(folder), **more)

    @cached_property
    def flops(self) -> Price:
        return Price(self.model.config)

    @torch.inference_mode()
    def score(self, items: Sequence[tuple[Problem, Trace]]) -> list[tuple[float, ...]]:
        if self.reader is None:
            return in_batches(self, items, lambda batch: step_logprobs(self.model, batch).exp())
        return by_step(self, items, self._judge, ahead=1)

    def _judge(self, hidden: list[torch.Tensor], after: list[tuple[int, ...]]) -> list[float]:
        logits = self.model.get_output_embeddings()(torch.cat(hidden)).float()
        tokens = torch.tensor([t for step in after for t in step], device=logits.device)
        values = logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
        return [step.min().exp().item() for step in values.split([len(step) for step in after])]
