"""The local policy: any transformers causal LM, one batch over all wants, KV cache grown in place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.cache_utils import Cache, DynamicLayer

from ..format import Encoder
from ..models import flops, load_model
from ..tasks import digest
from ..types import Node, WorkbenchError
from . import Sampling, Want

_LOW = {shift: (1 << (64 - shift)) - 1 for shift in (30, 27, 31)}


def _mix(x: torch.Tensor) -> torch.Tensor:
    """splitmix64's finaliser on int64 tensors (Steele et al. 2014); torch shifts are arithmetic, hence the masks."""
    x = (x ^ ((x >> 30) & _LOW[30])) * -4658895280553007687
    x = (x ^ ((x >> 27) & _LOW[27])) * -7723592293110705685
    return x ^ ((x >> 31) & _LOW[31])


def gumbel(keys: torch.Tensor, positions: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Gumbel noise (rows, vocabulary) from counters alone: argmax(logits / T + noise) is a sample.

    keys: int64 (rows,), one a node; positions: int64 (rows,), the token's place in its step.
    """
    row = _mix(keys + positions * -7046029254386353131)
    bits = _mix(row[:, None] + torch.arange(vocabulary, device=keys.device) * -7046029254386353131)
    uniform = (((bits >> 41) & 0x7FFFFF).float() + 0.5) / (1 << 23)  # 24 bits exactly: never rounded up to 1
    return -torch.log(-torch.log(uniform))


def node_key(seed: int, problem: str, path: tuple[int, ...]) -> int:
    return digest("token", seed, problem, *path) - (1 << 63)


class GrowingLayer(DynamicLayer):
    """transformers' dynamic cache layer with room to grow, since concatenating at every token costs half the time."""

    length = 0

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        if self.length == 0 or end > self.room_keys.shape[-2]:
            shape = (*key_states.shape[:-2], end + max(32, end // 2), key_states.shape[-1])
            room_keys, room_values = key_states.new_empty(shape), value_states.new_empty(shape)
            if self.length:
                room_keys[..., : self.length, :] = self.keys
                room_values[..., : self.length, :] = self.values
            self.room_keys, self.room_values = room_keys, room_values
        self.room_keys[..., self.length : end, :] = key_states
        self.room_values[..., self.length : end, :] = value_states
        self.length = end
        self.keys, self.values = self.room_keys[..., :end, :], self.room_values[..., :end, :]
        return self.keys, self.values

    def select(self, rows: torch.Tensor) -> None:
        """Keep (or repeat) these rows of the batch."""
        room = self.room_keys.shape[-2]
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty((len(rows), old.shape[1], room, old.shape[3]))
            new[..., : self.length, :] = old[rows]
            setattr(self, "room_" + name, new)
            setattr(self, name, new[..., : self.length, :])


class LocalPolicy:
    """A causal LM in this process.

    `batch` bounds the rows of one forward pass. The prefix of a node is read once for all its children;
    rows leave the batch when they stop. Keeping the cache between calls is left out: a call reads its prefixes.

    >>> policy = LocalPolicy(*load_model("runs/nano/teach/model"))          # doctest: +SKIP
    >>> policy.extend([Want(problem, Node(), n=4, to_end=True)], seed=0)    # doctest: +SKIP
    """

    def __init__(self, model, tokenizer, reasoning: bool = True, batch: int = 512):
        self.model, self.encoder, self.batch = model, Encoder(tokenizer, reasoning), batch
        self.pad = tokenizer.pad_token_id
        ends = self.encoder.ends_step()
        ends = ends + [False] * (model.config.vocab_size - len(ends))  # embeddings may be padded past the tokenizer
        self._ends = torch.tensor(ends, device=model.device)

    @classmethod
    def load(cls, folder: str | Path, **more) -> LocalPolicy:
        return cls(*load_model(folder), **more)

    def flops(self, prefix: float, new: float, head: bool = True) -> float:
        return flops(self.model.config, new, prefix + (new + 1) / 2, head)

    def prompt_tokens(self, problem, node) -> int:
        return len(self.encoder.encode(problem.prompt, node.steps).ids)

    @torch.inference_mode()
    def extend(self, wants: Sequence[Want], seed: int = 0, sampling: Sampling | None = None) -> list[list[list[Node]]]:
        sampling = sampling or Sampling()
        was_training = self.model.training
        self.model.eval()
        chains: list[list[list[Node]]] = [[[] for _ in range(want.n)] for want in wants]
        prefixes = [self.encoder.encode(want.problem.prompt, want.node.steps).ids for want in wants]
        limit = self.model.config.max_position_embeddings
        for want, ids in zip(wants, prefixes, strict=True):
            left = sampling.chain_tokens - sum(len(step.ids) for step in want.node.steps)
            room = max(1, left if want.to_end else min(left, sampling.step_tokens))
            if len(ids) + room > limit:
                raise WorkbenchError(
                    f"{want.problem.id}: {len(ids)} tokens leave no room for {room} more in a context of {limit}"
                )
        # Long and short prefixes apart, so that padding is small; whole wants only, so that a prefix is read once.
        order, group, rows = sorted((i for i, w in enumerate(wants) if w.n), key=lambda i: len(prefixes[i])), [], 0
        for i in order:
            if group and rows + wants[i].n > self.batch:
                self._extend(wants, prefixes, group, seed, sampling, chains)
                group, rows = [], 0
            group.append(i)
            rows += wants[i].n
        if group:
            self._extend(wants, prefixes, group, seed, sampling, chains)
        self.model.train(was_training)
        return chains

    def _extend(self, wants, prefixes, group, seed, sampling, chains) -> None:
        device, pad = self.model.device, self.pad
        width = max(len(prefixes[i]) for i in group)
        ids = torch.tensor([[pad] * (width - len(prefixes[i])) + prefixes[i] for i in group], device=device)
        real = torch.tensor([[0] * (width - len(prefixes[i])) + [1] * len(prefixes[i]) for i in group], device=device)
        cache = Cache(layer_class_to_replicate=GrowingLayer)
        logits = self._forward(ids, real, cache, (real.cumsum(1) - 1).clamp(min=0))

        rows = [(i, k) for i in group for k in range(wants[i].n)]  # which chain a row of the batch writes
        source = torch.tensor([r for r, i in enumerate(group) for _ in range(wants[i].n)], device=device)
        logits, real = logits[source], real[source]
        for layer in cache.layers:
            layer.select(source)
        nodes = [wants[i].node for i, _ in rows]
        paths = [(*wants[i].node.path, wants[i].first + k) for i, k in rows]
        keys = torch.tensor(
            [node_key(seed, wants[i].problem.id, p) for (i, _), p in zip(rows, paths, strict=True)], device=device
        )
        spent = [sum(len(s.ids) for s in node.steps) for node in nodes]
        tokens: list[list[int]] = [[] for _ in rows]
        logprobs: list[list[float]] = [[] for _ in rows]
        place, position = torch.zeros_like(keys), real.sum(1)
        while rows:
            scaled = logits.float() / (sampling.temperature or 1.0)
            noisy = scaled + gumbel(keys, place, scaled.shape[1]) if sampling.temperature else scaled
            token = noisy.argmax(1)
            chosen = (scaled.gather(1, token[:, None])[:, 0] - scaled.logsumexp(1)).tolist()
            ends = self._ends[token].tolist()
            place += 1
            alive, new_keys = [], {}
            for r, (t, lp, end) in enumerate(zip(token.tolist(), chosen, ends, strict=True)):
                tokens[r].append(t)
                logprobs[r].append(lp)
                i, k = rows[r]
                full = len(tokens[r]) >= sampling.step_tokens or spent[r] + len(tokens[r]) >= sampling.chain_tokens
                if not (end or full):
                    alive.append(r)
                    continue
                step, stop = self.encoder.decode_step(tokens[r], logprobs[r])
                if not end or (full and stop is None and spent[r] + len(tokens[r]) >= sampling.chain_tokens):
                    stop = "length"
                nodes[r] = Node(paths[r], (*nodes[r].steps, step), stop)
                chains[i][k].append(nodes[r])
                spent[r] += len(tokens[r])
                tokens[r], logprobs[r] = [], []
                if stop is None and wants[i].to_end:
                    paths[r] = (*paths[r], 0)
                    new_keys[r] = node_key(seed, wants[i].problem.id, paths[r])
                    alive.append(r)
            if new_keys:
                where = torch.tensor(list(new_keys), device=device)
                keys[where] = torch.tensor(list(new_keys.values()), device=device)
                place[where] = 0
            if len(alive) < len(rows):
                keep = torch.tensor(alive, device=device, dtype=torch.long)
                rows, nodes, paths = [rows[r] for r in alive], [nodes[r] for r in alive], [paths[r] for r in alive]
                tokens, logprobs = [tokens[r] for r in alive], [logprobs[r] for r in alive]
                spent = [spent[r] for r in alive]
                token, keys, place, real, position = (x[keep] for x in (token, keys, place, real, position))
                for layer in cache.layers if rows else ():
                    layer.select(keep)
            if rows:
                real = torch.cat([real, real.new_ones(len(rows), 1)], 1)
                logits = self._forward(token[:, None], real, cache, position[:, None])
                position = position + 1

    def _forward(self, ids, real, cache, position) -> torch.Tensor:
        out = self.model(
            input_ids=ids,
            attention_mask=real,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1]
