"""Chains of one problem as one row of a forward pass: what they begin with is read, and learnt from, once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain as chained

import numpy as np
import torch
import torch.nn.functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..kv import core

CELLS = 1 << 20  # of a table of logits that are gone through at a time, so that they stay in the cache


@dataclass(frozen=True)
class Row:
    """A trie of tokens. `ids`, `place` (the position in its own chain): (width,). `sees`: (width, width), true where a
    token may look. `chains` stand in it: for all their response tokens, end to end, `before` is where the token before
    it stands and `tokens` what it is."""

    ids: np.ndarray
    place: np.ndarray
    sees: np.ndarray
    chains: list[int]
    before: np.ndarray
    tokens: np.ndarray


def lay(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    which: Sequence[int],
    capacity: int = 512,
) -> list[Row]:
    """Chains `which` -> rows of one prompt each, at most `capacity` tokens wide unless one chain alone is longer.

    A chain's last token is a target only, so nobody reads it.

    >>> row, = lay([[1, 2]] * 2, [[3, 4, 5], [3, 4, 6]], [0, 1])
    >>> row.ids.tolist(), row.before.tolist(), row.tokens.tolist(), row.chains
    ([1, 2, 3, 4], [1, 2, 3, 1, 2, 3], [3, 4, 5, 3, 4, 6], [0, 1])
    """
    texts = {i: (tuple(prompts[i]), tuple(responses[i])) for i in which if len(responses[i])}
    order = sorted(texts, key=texts.__getitem__)  # neighbours share most
    rows, open_ = [], None
    for i in order:
        prompt, response = texts[i]
        read = (prompt + response)[:-1]
        if open_ is None or open_.prompt != prompt or open_.width + len(read) - open_.shared(read) > capacity:
            open_ = _Open(prompt)
            rows.append(open_)
        open_.add(i, read, response)
    return [row.closed() for row in rows]


class _Open:
    def __init__(self, prompt: tuple[int, ...]):
        self.prompt, self.last, self.path = prompt, (), np.zeros(0, np.int64)
        self.ids: list[int] = []
        self.place: list[int] = []
        self.branches: list[tuple[np.ndarray, int]] = []  # a path, and from where on it is new
        self.chains: list[int] = []
        self.before: list[np.ndarray] = []
        self.tokens: list[tuple[int, ...]] = []

    @property
    def width(self) -> int:
        return len(self.ids)

    def shared(self, read: tuple[int, ...]) -> int:
        return next(
            (n for n, (a, b) in enumerate(zip(read, self.last, strict=False)) if a != b), min(len(read), len(self.last))
        )

    def add(self, i: int, read: tuple[int, ...], response: tuple[int, ...]) -> None:
        n, at = self.shared(read), self.width
        self.path = np.concatenate([self.path[:n], np.arange(at, at + len(read) - n)])
        self.ids += read[n:]
        self.place += range(n, len(read))
        if len(read) > n:
            self.branches.append((self.path, n))
        self.chains.append(i)
        self.before.append(self.path[len(self.prompt) - 1 :])
        self.tokens.append(response)
        self.last = read

    def closed(self) -> Row:
        sees = np.zeros((self.width, self.width), bool)
        for path, n in self.branches:
            new = slice(path[n], path[-1] + 1)
            sees[new, path[:n]] = True
            sees[new, new] = np.tri(len(path) - n, dtype=bool)
        return Row(
            np.array(self.ids), np.array(self.place), sees, self.chains, np.concatenate(self.before),
            np.array(list(chained(*self.tokens))),
        )  # fmt: skip


def batches(rows: Sequence[Row], tokens: int) -> Iterator[list[Row]]:
    """Rows as they come, at most `tokens` tokens at a time unless one row alone is wider."""
    part: list[Row] = []
    for row in rows:
        if part and sum(len(r.ids) for r in part) + len(row.ids) > tokens:
            yield part
            part = []
        part.append(row)
    if part:
        yield part


def _attend(module, query, key, value, attention_mask, scaling=None, dropout=0.0, *, rows, **kwargs):
    """Attention in each of the `rows` (where it begins, where it ends, who sees whom) that stand end to end."""
    repeat = query.shape[1] != key.shape[1]
    parts = [
        F.scaled_dot_product_attention(
            *(x[:, :, begin:end] for x in (query, key, value)), attn_mask=sees, scale=scaling, enable_gqa=repeat
        )
        for begin, end, sees in rows
    ]
    return torch.cat(parts, 2).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register("workbench_rows", _attend)


@contextmanager
def _attending(config) -> Iterator[None]:
    before, config._attn_implementation = config._attn_implementation, "workbench_rows"
    try:
        yield
    finally:
        config._attn_implementation = before


@dataclass(frozen=True)
class Seen:
    """What a model says of the response tokens of `chains`, end to end: `logprobs`, and `values` of the states before
    them where it has a value head. `fed` tokens were computed, `looked` pairs of them were wanted, `heads` states got
    logits."""

    chains: list[int]
    logprobs: torch.Tensor
    values: torch.Tensor | None
    fed: int
    looked: int
    heads: int


def see(model, rows: Sequence[Row], temperature: float = 1.0) -> Seen:
    """One forward pass over `rows`, laid end to end so that there is no padding. Log-probs are those of the
    distribution at `temperature`; logits are made only for the states that a response token follows, each once."""
    inner = core(model)
    device = next(inner.parameters()).device

    def tensor(parts) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(device)

    ends = np.cumsum([len(row.ids) for row in rows])
    begins = ends - [len(row.ids) for row in rows]
    spans = [(b, e, tensor([row.sees])) for b, e, row in zip(begins, ends, rows, strict=True)]
    with _attending(inner.config):
        out = inner.base_model(
            input_ids=tensor([row.ids for row in rows])[None],
            position_ids=tensor([row.place for row in rows])[None],
            # `rows` say who sees whom; a model that asks this mask instead gives NaN and not another model's numbers
            attention_mask=torch.full((1, 1, 1, 1), torch.nan, device=device),
            use_cache=False,
            rows=spans,
        )
    before = np.concatenate([row.before + b for row, b in zip(rows, begins, strict=True)])
    states, which = np.unique(before, return_inverse=True)
    states = out.last_hidden_state[0, tensor([states])]
    which, targets = tensor([which]), tensor([row.tokens for row in rows])
    logprobs = chosen(inner.get_output_embeddings(), states, which, targets, temperature)
    head = getattr(inner, "value_head", None)
    values = None if head is None else head(states.float())[which, 0]
    chains = [i for row in rows for i in row.chains]
    looked = int(sum(row.sees.sum() for row in rows))
    return Seen(chains, logprobs, values, int(ends[-1]), looked, len(states))


def chosen(head, states: torch.Tensor, which: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """log-probs (n,) of tokens `targets` behind states[which], the softmax being at `temperature`."""
    if type(head) is torch.nn.Linear and head.bias is None:
        return _Chosen.apply(states, head.weight, which, targets, temperature)
    logits = head(states).float() / temperature
    return logits[which, targets] - logits.logsumexp(-1)[which]


class _Chosen(torch.autograd.Function):
    """`chosen` with one table (states, vocabulary) in fp32 where autograd keeps five: chances are written over the
    logits, and their gradient over the chances."""

    @staticmethod
    def forward(ctx, states, weight, which, targets, temperature):
        table = F.linear(states, weight).float()
        if temperature != 1:
            table /= temperature
        logits, sums = table[which, targets], []
        for part in table.split(max(1, CELLS // table.shape[1])):
            top = part.amax(-1, keepdim=True)
            total = part.sub_(top).exp_().sum(-1, keepdim=True)
            part /= total
            sums.append(top + total.log())
        ctx.save_for_backward(states, weight, which, targets)
        ctx.table, ctx.temperature = table, temperature
        return logits - torch.cat(sums)[which, 0]

    @staticmethod
    def backward(ctx, grad):
        states, weight, which, targets = ctx.saved_tensors
        table, grad = ctx.table, grad / ctx.temperature
        del ctx.table  # written over: there is no second backward pass
        table *= -grad.new_zeros(len(states)).index_add_(0, which, grad)[:, None]
        table.index_put_((which, targets), grad, accumulate=True)
        table = table.to(weight.dtype)
        return (
            table @ weight if ctx.needs_input_grad[0] else None,
            table.T @ states if ctx.needs_input_grad[1] else None,
            None,
            None,
            None,
        )
