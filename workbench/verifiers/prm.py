"""Process and outcome reward models: a transformers trunk with a linear head on step ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F

from ..format import Encoder
from ..kv import Reader
from ..models import Price, load_model
from ..types import Problem, ProblemError, Trace, WorkbenchError

UNKNOWN = -1.0  # a step without a label: after the first error, or never judged


@dataclass(frozen=True)
class Judged:
    """One row to learn from: ids, step ends, one label in 0-1 a step (hard or soft) or UNKNOWN.

    `start` is where the first step begins.
    """

    ids: list[int]
    start: int
    ends: list[int]
    labels: list[float]


def mask_after_error(labels: Sequence[float]) -> list[float]:
    """Supervise up to and including the first wrong step, nothing after (Lightman et al. 2023).

    A step is wrong if its label is 0: a soft label of .3 is the value of a hard problem, not a mistake.

    >>> mask_after_error([1, 1, 0, 1, 0])
    [1.0, 1.0, 0.0, -1.0, -1.0]
    """
    first = next((i for i, x in enumerate(labels) if x == 0), len(labels))
    return [float(x) if i <= first else UNKNOWN for i, x in enumerate(labels)]


def judged(problem: Problem, trace: Trace, labels: Sequence[float], encoder: Encoder, outcome: bool = False) -> Judged:
    """A labelled trace as a row. `outcome` keeps the last label alone, for every step (an ORM, Cobbe et al. 2021)."""
    if len(labels) != len(trace.steps):
        raise WorkbenchError(f"{problem.id}: {len(labels)} labels for {len(trace.steps)} steps")
    if bad := [x for x in labels if not 0 <= x <= 1]:
        raise WorkbenchError(f"{problem.id}: label {bad[0]} is outside 0-1")
    if not trace.steps:
        raise WorkbenchError(f"{problem.id}: a chain without steps has nothing to learn from, leave it out")
    code = encoder.encode(problem.prompt, trace.steps)
    used = [float(labels[-1])] * len(labels) if outcome else mask_after_error(labels)
    return Judged(code.ids, code.prompt_length, code.step_ends, used)


def collate(rows: Sequence[Judged], pad: int) -> dict[str, torch.Tensor]:
    width, most = max(len(r.ids) for r in rows), max(len(r.ends) for r in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    ends = torch.zeros((len(rows), most), dtype=torch.long)
    labels = torch.full((len(rows), most), UNKNOWN)
    for i, r in enumerate(rows):
        ids[i, : len(r.ids)], mask[i, : len(r.ids)] = torch.tensor(r.ids), 1
        ends[i, : len(r.ends)], labels[i, : len(r.ends)] = torch.tensor(r.ends), torch.tensor(r.labels)
    start, steps = torch.tensor([r.start for r in rows]), torch.tensor([len(r.ends) for r in rows])
    batch = {"input_ids": ids, "attention_mask": mask, "ends": ends, "labels": labels}
    return batch | {"start": start, "steps": steps}


def step_logits(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(rows, steps) logit at every step end. Training and scoring both come through here."""
    hidden = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    at = batch["ends"].unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
    return model.score(hidden.gather(1, at)).squeeze(-1).float()


def bce(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean binary cross-entropy over the labelled step ends, hard or soft."""
    known = batch["labels"] != UNKNOWN
    return F.binary_cross_entropy_with_logits(step_logits(model, batch)[known], batch["labels"][known])


def from_policy(policy, extra_layers: int = 0):
    """A token classifier on the policy's trunk, its head at zero; `extra_layers` more layers start as identities.

    A position attends only to what lower layers made of earlier ones. The policy knows which digit *should* come in
    its last layer, so a head of the same depth cannot compare that with the digit that *did* come; one may try more.
    """
    from transformers import LlamaForTokenClassification

    known = {k: v for k, v in policy.config.to_dict().items() if k not in ("id2label", "label2id", "architectures")}
    config = type(policy.config)(**known, num_labels=1)
    config.num_hidden_layers += extra_layers
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[0]] * config.num_hidden_layers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForTokenClassification(config)
    missing = model.model.load_state_dict(policy.model.state_dict(), strict=False).missing_keys
    if any(int(name.split(".")[1]) < policy.config.num_hidden_layers for name in missing if name.startswith("layers.")):
        raise WorkbenchError(f"the policy lacks {missing[0]}: only Llama-like policies can become a PRM")
    with torch.no_grad():
        for layer in model.model.layers[policy.config.num_hidden_layers :]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.score.weight.zero_()
        if model.score.bias is not None:
            model.score.bias.zero_()
    return model


class PRM:
    """Scores every step in 0-1 with a trained token classifier.

    `aggregate`: `min` suits labels of correctness; Monte-Carlo labels are values and want `last`. `cache` bytes are
    kept of what was read, so that scoring a step reads the step; 0 reads chains whole, to the bit as training does.
    """

    def __init__(self, model, tokenizer, aggregate: str = "min", batch: int = 256, cache: int = 1 << 28):
        self.model, self.encoder, self.aggregate, self.batch = model.eval(), Encoder(tokenizer), aggregate, batch
        self.pad, self.read = tokenizer.pad_token_id, []
        self.reader = Reader(model, cache) if cache else None

    @classmethod
    def load(cls, folder: str | Path, **more) -> PRM:
        return cls(*load_model(folder, "AutoModelForTokenClassification"), **more)

    @cached_property
    def flops(self) -> Price:
        return Price(self.model.config, head=False)  # one number a step: nothing

    @torch.inference_mode()
    def score(self, items: Sequence[tuple[Problem, Trace]]) -> list[tuple[float, ...]]:
        if self.reader is None:
            return in_batches(self, items, lambda batch: step_logits(self.model, batch).sigmoid())
        return by_step(self, items, self._judge, ahead=0)

    def _judge(self, hidden: list[torch.Tensor], after) -> list[float]:
        ends = torch.stack([states[-1] for states in hidden])
        return self.model.score(ends)[:, 0].float().sigmoid().tolist()


def fits(verifier, items: Sequence[tuple[Problem, Trace]]) -> list:
    """The items encoded; a chain that is longer than the context is a ProblemError."""
    codes = [verifier.encoder.encode(problem.prompt, trace.steps) for problem, trace in items]
    limit = getattr(verifier.model.config, "max_position_embeddings", None) or math.inf
    bad = [
        (problem.id, len(code.ids)) for (problem, _), code in zip(items, codes, strict=True) if len(code.ids) > limit
    ]
    if bad:
        raise ProblemError(
            {id: f"a chain of {n} tokens does not fit the verifier's context of {limit}" for id, n in bad}
        )
    return codes


def by_step(verifier, items: Sequence[tuple[Problem, Trace]], judge, ahead: int) -> list[tuple[float, ...]]:
    """Chains through the verifier's reader; a step is judged where it ends, or `ahead` tokens before that."""
    codes = fits(verifier, items)
    cuts = [[code.prompt_length - ahead, *(end + 1 - ahead for end in code.step_ends)] for code in codes]
    chains = [(tuple(code.ids), cut) for code, cut in zip(codes, cuts, strict=True)]
    scores, verifier.read = verifier.reader.notes(chains, judge)
    return scores


def in_batches(verifier, items: Sequence[tuple[Problem, Trace]], judge) -> list[tuple[float, ...]]:
    """Chains of like length together through `judge(batch) -> (rows, steps)`, back in the order they came."""
    rows = []
    for code in fits(verifier, items):
        unknown = [UNKNOWN] * len(code.step_ends)
        rows.append(Judged(code.ids, code.prompt_length, code.step_ends, unknown))
    verifier.read = [len(row.ids) for row in rows]
    out: list[tuple[float, ...]] = [()] * len(rows)
    order = sorted((i for i in range(len(rows)) if rows[i].ends), key=lambda i: len(rows[i].ids))
    for first in range(0, len(order), verifier.batch):
        part = order[first : first + verifier.batch]
        batch = collate([rows[i] for i in part], verifier.pad)
        scores = judge({k: v.to(verifier.model.device) for k, v in batch.items()})
        for i, row in zip(part, scores.tolist(), strict=True):
            out[i] = tuple(row[: len(rows[i].ends)])
    return out
