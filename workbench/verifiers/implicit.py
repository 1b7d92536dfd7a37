"""The implicit PRM: a language model taught outcomes alone, whose log-ratio to a reference rewards every step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from ..adapters import adapter_of, open_language_model, switched
from ..format import Encoder
from ..kv import Reader, core
from ..models import Price
from ..types import Problem, Trace, WorkbenchError
from .prm import by_step, in_batches, steps_of_tokens

FORMS = {"step": "min", "cumulative": "last"}  # what a score is of -> the aggregate that suits it
LOGITS = 1 << 27  # logits that are made at a time


def token_logprobs(model, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """(tokens,) log-probs in fp32, each from the hidden state one place before its token."""
    head, most = model.get_output_embeddings(), max(1, LOGITS // model.config.vocab_size)
    out = []
    for states, names in zip(hidden.split(most), tokens.split(most), strict=True):
        logits = head(states).float()
        out.append(logits.gather(-1, names[:, None])[:, 0] - logits.logsumexp(-1))
    return torch.cat(out)


def step_logsums(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(rows, steps) log-prob of all tokens of every step; 0 in the columns past a row's last step."""
    model, ids, ends = core(model), batch["input_ids"], batch["ends"]
    hidden = model.base_model(input_ids=ids, attention_mask=batch["attention_mask"]).last_hidden_state
    step, inside = steps_of_tokens(batch)
    values = token_logprobs(model, hidden[:, :-1][inside], ids[:, 1:][inside])
    every = values.new_zeros(inside.shape).masked_scatter(inside, values)
    return values.new_zeros(ends.shape).scatter_add(1, step, every)


def step_logratios(model, reference, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(rows, steps) log pi(step) - log pi_ref(step). The gradient reaches `model` alone.

    `reference`: a model of its own, the name of an adapter of `model`, or None for `model` without its adapters. It
    may stand on another device.
    """
    if "steps" not in batch:
        raise WorkbenchError("these rows are packed: a log-ratio is a chain's, so give one chain a row (`judged`)")
    batch = {k: batch[k] for k in ("input_ids", "attention_mask", "start", "ends", "steps")}
    with torch.no_grad(), _reference(model, reference) as frozen:
        base = step_logsums(frozen, {k: v.to(core(frozen).device) for k, v in batch.items()})
    return step_logsums(model, batch) - base.to(batch["input_ids"].device)


def rewards(ratios: torch.Tensor, beta: float, form: str) -> torch.Tensor:
    """Log-ratios of steps (…, steps) -> the log-odds that are scored: a step's own reward, or the sum so far.

    >>> rewards(torch.tensor([2.0, -6.0]), beta=0.5, form="cumulative").tolist()
    [1.0, -2.0]
    """
    return beta * (ratios.cumsum(-1) if form == "cumulative" else ratios)


def implicit_loss(model, reference, batch: dict[str, torch.Tensor], beta: float = 0.05) -> torch.Tensor:
    """Mean binary cross-entropy of sigmoid(beta * a chain's log-ratio) on its outcome (Yuan et al. 2024, CE form).

    The outcome is the label of a row's last step, hard or soft: rows as an outcome model's, `judged(outcome=True)`.
    `reference` as for `step_logratios`; its forward pass is not in `fit`'s bill, which is of `model` alone.
    Errors: an outcome outside 0-1, unknown ones too. Left out: DPO, KTO and NCA forms.

        fit(model, rows, collate, lambda model, batch: implicit_loss(model, reference, batch), config, folder)
    """
    logits = rewards(step_logratios(model, reference, batch), beta, "cumulative")[:, -1]
    outcome = batch["labels"].gather(1, batch["steps"][:, None] - 1)[:, 0]
    if not ((outcome >= 0) & (outcome <= 1)).all():
        raise WorkbenchError(f"outcomes {outcome.tolist()[:8]}: every chain needs one in 0-1, as judged(outcome=True)")
    return F.binary_cross_entropy_with_logits(logits, outcome)


class Implicit:
    """Scores steps by how much likelier a trained language model finds them than its reference does.

    Trained on outcomes alone (`implicit_loss`), beta * sum of log pi/pi_ref over the tokens so far is the value Q of
    what was written (Yuan et al. 2024, arXiv 2412.01981), and a step's reward is the difference that
    the step makes, beta * (log pi(step) - log pi_ref(step)). `score` maps it into 0-1 by the sigmoid, which keeps the
    order, as `form` says:
    - `step`: of the step's own reward; .5 is a step that changes nothing. Wants `min` (the worst step).
    - `cumulative`: of the sum up to the step, which is what training fits to the outcome at a chain's end: a value.
      Wants `last`; after the last step it is the model's probability that the outcome is right.
    `log_ratio` gives the bare log-ratios, without beta and map.

    `reference`: a model of its own, frozen; or None, which is `model` with its adapters off; or the name of another of
    its adapters. `adapter` names the trained one (by default the one that is on). The model is left as it was found,
    so policy, verifier and reference can share one base. `cache`: as a PRM's, for each of the two models.
    Left out: heads that bend their logits afterwards (soft caps, logit scales); FLOPs of the adapters' own matrices.
    """

    def __init__(
        self,
        model,
        tokenizer,
        reference=None,
        beta: float = 0.05,
        form: str = "step",
        adapter: str | None = None,
        aggregate: str | None = None,
        batch: int = 256,
        cache: int = 1 << 28,
    ):
        if form not in FORMS:
            raise WorkbenchError(f"unknown form {form!r}: one of {', '.join(FORMS)}")
        if not 0 < beta < math.inf:
            raise WorkbenchError(f"beta={beta}: the scale of the reward, above 0, as in training")
        self.beta, self.form, self.aggregate = beta, form, aggregate or FORMS[form]
        self.encoder = Encoder(tokenizer)
        shared = reference is None or isinstance(reference, str)
        more = self.encoder, tokenizer.pad_token_id, batch, cache
        adapter = adapter_of(model, adapter, needed=shared)
        on = nullcontext if adapter is None else partial(switched, model, adapter)
        off = partial(switched, model, adapter_of(model, reference) if reference else None) if shared else nullcontext
        self.sides = _Side(model, on, *more), _Side(model if shared else reference, off, *more)
        self.prices = [Price(side.model.config) for side in self.sides]

    @classmethod
    def load(cls, folder: str | Path, reference: str | Path, **more) -> Implicit:
        """Two checkpoints, of whole weights or of adapters: what was trained, and what it was before."""
        model, tokenizer = open_language_model(folder)
        return cls(model, tokenizer, open_language_model(reference)[0], **more)

    def flops(self, prefix: float, new: float, head: bool = True) -> float:
        """Of both models."""
        return sum(price(prefix, new, head) for price in self.prices)

    @property
    def read(self) -> list[int]:
        """Tokens of each item that had to be read, by the model that had to read more."""
        return [max(both) for both in zip(*(side.read for side in self.sides), strict=True)]

    def score(self, items: Sequence[tuple[Problem, Trace]]) -> list[tuple[float, ...]]:
        ratios = [torch.tensor(row) for row in self.log_ratio(items)]
        return [tuple(rewards(row, self.beta, self.form).sigmoid().tolist()) for row in ratios]

    @torch.inference_mode()
    def log_ratio(self, items: Sequence[tuple[Problem, Trace]]) -> list[tuple[float, ...]]:
        """log pi(step) - log pi_ref(step) for every step, in nats."""
        pairs = zip(*(side.sums(items) for side in self.sides), strict=True)
        # fp32, as in training, so that a score read from whole chains is training's to the bit
        return [tuple((torch.tensor(mine) - torch.tensor(theirs)).tolist()) for mine, theirs in pairs]


class _Side:
    """One of the two models, with what `by_step` and `in_batches` want of a verifier. `on` puts its adapters right."""

    def __init__(self, model, on, encoder: Encoder, pad: int, batch: int, cache: int):
        self.model, self.on, self.encoder, self.pad, self.batch = core(model).eval(), on, encoder, pad, batch
        self.read: list[int] = []
        self.reader = Reader(model, cache) if cache else None

    def sums(self, items: Sequence[tuple[Problem, Trace]]) -> list[tuple[float, ...]]:
        with self.on():
            if self.reader is None:
                return in_batches(self, items, lambda batch: step_logsums(self.model, batch))
            return by_step(self, items, self._judge, ahead=1)

    def _judge(self, hidden: list[torch.Tensor], after: list[tuple[int, ...]]) -> list[float]:
        tokens = torch.tensor([t for step in after for t in step], device=hidden[0].device)
        values = token_logprobs(self.model, torch.cat(hidden), tokens)
        return [step.sum().item() for step in values.split([len(step) for step in after])]


@contextmanager
def _reference(model, reference) -> Iterator:
    """The reference, without dropout; see `step_logratios`."""
    shared = reference is None or isinstance(reference, str)
    frozen = model if shared else reference
    if shared:
        adapter_of(model, reference, needed=True)
    mode = frozen.training
    frozen.eval()
    try:
        with switched(model, reference) if shared else nullcontext():
            yield frozen
    finally:
        frozen.train(mode)
