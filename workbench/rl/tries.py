"""Chains of one problem as one row of a forward pass: what they begin with is read, and learnt from, once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain as chained

import numpy as np
import torch

from ..kv import core


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
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], which: Sequence[int], capacity: int = 512
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
    """Rows of like width together, at most about `tokens` tokens at a time."""
    part: list[Row] = []
    for row in sorted(rows, key=lambda row: len(row.ids)):
        if part and (len(part) + 1) * len(row.ids) > tokens:
            yield part
            part = []
        part.append(row)
    if part:
        yield part


@dataclass(frozen=True)
class Seen:
    """What a model says of the response tokens of `chains`, end to end: `logprobs`, and `values` of the states before
    them where it has a value head. `fed` tokens were computed,
    padding included, `looked` pairs of them were wanted, `heads` states got logits."""

    chains: list[int]
    logprobs: torch.Tensor
    values: torch.Tensor | None
    fed: int
    looked: int
    heads: int


def see(model, rows: Sequence[Row], temperature: float = 1.0) -> Seen:
    """One forward pass over `rows`. Log-probs are those of the distribution at `temperature`; logits are made only
    for the states that a response token follows, each once."""
    width = max(len(row.ids) for row in rows)
    ids = np.zeros((len(rows), width), np.int64)  # what stands in the padding nobody sees
    place = np.zeros((len(rows), width), np.int64)
    sees = np.zeros((len(rows), 1, width, width), bool)
    for i, row in enumerate(rows):
        n = len(row.ids)
        ids[i, :n], place[i, :n], sees[i, 0, :n, :n] = row.ids, row.place, row.sees
        sees[i, 0, range(n, width), range(n, width)] = True  # padding sees itself: a softmax of nothing is NaN
    inner = core(model)
    device = next(inner.parameters()).device
    ids, place, sees = (torch.from_numpy(x).to(device) for x in (ids, place, sees))
    hidden = inner.base_model(input_ids=ids, position_ids=place, attention_mask=sees).last_hidden_state
    before = np.concatenate([row.before + i * width for i, row in enumerate(rows)])
    states, which = np.unique(before, return_inverse=True)
    states = hidden.flatten(0, 1)[torch.from_numpy(states).to(device)]
    which = torch.from_numpy(which).to(device)
    targets = torch.from_numpy(np.concatenate([row.tokens for row in rows])).to(device)
    logits = inner.get_output_embeddings()(states).float() / temperature
    logprobs = logits[which, targets] - logits.logsumexp(-1)[which]
    head = getattr(inner, "value_head", None)
    values = None if head is None else head(states.float())[which, 0]
    chains = [i for row in rows for i in row.chains]
    return Seen(chains, logprobs, values, ids.numel(), int(sum(row.sees.sum() for row in rows)), len(states))
