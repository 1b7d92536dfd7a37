"""The local policy: any transformers causal LM, one continuous batch over all wants, keys and values kept by node."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ..adapters import open_adapter, switched
from ..format import Encoder
from ..kv import Pool, Rows, core, reading
from ..models import Price, load_model
from ..tasks import digest
from ..types import Node, ProblemError, Step, WorkbenchError
from . import Sampling, Want

BLOCK = 256


def uniform(keys: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Numbers in (0, 1) from counters alone, by splitmix64 (Steele et al. 2014).

    keys: uint64 (rows,), one a node; places: (rows,), the token's place in its step. The same pair gives the same
    number in every batch, order and process.

    >>> uniform(np.array([7, 7, 8], dtype=np.uint64), np.array([0, 1, 0])).round(3).tolist()
    [0.39, 0.017, 0.619]
    """
    x = keys + (places.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return ((x >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53


def node_key(seed: int, problem: str, path: tuple[int, ...]) -> int:
    return digest("token", seed, problem, *path)


def log_probabilities(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """(rows, vocabulary) log-probs of the distribution that samples: temperature, then top-k, then top-p.

    At temperature 0 the model's own. What the filters drop has -inf, and the rest adds up to 1.
    """
    logits = logits.float()
    if sampling.temperature not in (0.0, 1.0):
        logits = logits / sampling.temperature
    if sampling.temperature and sampling.top_k and sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.temperature and sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        chance = ordered.softmax(-1)
        late = chance.cumsum(-1) - chance >= sampling.top_p  # the likeliest token always stays
        logits = logits.masked_fill(torch.zeros_like(late).scatter(-1, order, late), -torch.inf)
    return logits.log_softmax(-1)


def draw(logprobs: torch.Tensor, rows: np.ndarray, keys: np.ndarray, places: np.ndarray) -> torch.Tensor:
    """One token a walker by inversion: walker w stands on row rows[w] of (rows, vocabulary) `logprobs`.

    In a large vocabulary first the block of BLOCK tokens is found in which the number falls, then the token in it, so
    that most of it is summed and not accumulated.
    """
    chance = logprobs.exp()
    size, device = chance.shape[1], chance.device
    at = torch.as_tensor(rows, device=device)
    point = torch.as_tensor(uniform(keys, places), dtype=chance.dtype, device=device)[:, None]
    if size <= 4 * BLOCK:
        sums = chance.cumsum(-1)[at]
        return _find(sums, point * sums[:, -1:])[:, 0]
    whole = size // BLOCK * BLOCK
    sums = chance[:, :whole].view(len(chance), -1, BLOCK).sum(-1)
    if whole < size:
        sums = torch.cat([sums, chance[:, whole:].sum(-1, keepdim=True)], 1)
    total = sums.cumsum(-1)[at]
    block = _find(total, point * total[:, -1:])
    before = torch.where(block > 0, total.gather(1, (block - 1).clamp(min=0)), 0.0)
    token = block * BLOCK + torch.arange(BLOCK, device=device)
    inside = chance[at[:, None], token.clamp(max=size - 1)].masked_fill(token >= size, 0.0).cumsum(-1)
    return (block * BLOCK + _find(inside, point * total[:, -1:] - before))[:, 0]


def _find(sums: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
    """Where `point` falls among growing sums, never past the last one that grows."""
    top = torch.nextafter(sums[:, -1:], sums.new_zeros(()))
    return torch.searchsorted(sums, torch.minimum(point.clamp(min=0), top), right=True)


class LocalPolicy:
    """A causal LM in this process, fp32 or bf16, 4-bit or with adapters, on a CPU or one GPU.

    All wants share one batch of at most `batch` chains: a chain leaves it when it stops, and the next one joins. Chains
    whose tokens are the same so far are one row of the forward pass; where they part, the row is copied. What was read
    is kept by prefix in at most `cache` bytes; `read` tells how many tokens of each want's prefix the last call had to
    read. `adapter` names a LoRA adapter of the model (`model.load_adapter`), which is switched on for each call.
    Results do not depend on batch, order or cache, up to the rounding of the forward pass: in fp32 one token in about a
    million lies that close to its neighbour; bf16 makes no such promise. Left out: sliding-window attention, several
    GPUs.

    Errors: a prompt that with its chain is longer than the context is a ProblemError; others can be asked again.

    >>> policy = LocalPolicy(*load_model("runs/nano/teach/model"))          # doctest: +SKIP
    >>> policy.extend([Want(problem, Node(), n=4, to_end=True)], seed=0)    # doctest: +SKIP
    """

    def __init__(
        self,
        model,
        tokenizer,
        reasoning: bool = True,
        batch: int = 512,
        cache: int = 1 << 29,
        adapter: str | None = None,
    ):
        self.model, self.encoder, self.batch, self.adapter = model, Encoder(tokenizer, reasoning), batch, adapter
        if adapter is not None and adapter not in (has := getattr(core(model), "peft_config", {})):
            raise WorkbenchError(f"the model has no adapter {adapter!r}: it has {', '.join(has) or 'none'}")
        if batch < 1:
            raise WorkbenchError(f"batch={batch}: how many chains to grow at a time, at least 1")
        self.pad, self.config = tokenizer.pad_token_id, core(model).config
        self.rows, self.pool = Rows(model), Pool(model, cache)
        self.read: list[int] = []
        ends = self.encoder.ends_step()
        ends = ends + [False] * (self.config.vocab_size - len(ends))  # embeddings may be padded past the tokenizer
        self.ends = np.array(ends)

    @classmethod
    def load(cls, folder: str | Path, **more) -> LocalPolicy:
        """From a checkpoint of whole weights, or of a LoRA adapter, whose base is the one that it names."""
        adapter = (Path(folder) / "adapter_config.json").exists()
        return cls(*(open_adapter if adapter else load_model)(folder), **more)

    @cached_property
    def flops(self) -> Price:
        return Price(self.config)

    def prompt_tokens(self, problem, node) -> int:
        return len(self.encoder.encode(problem.prompt, node.steps).ids)

    def extend(self, wants: Sequence[Want], seed: int = 0, sampling: Sampling | None = None) -> list[list[list[Node]]]:
        on = nullcontext() if self.adapter is None else switched(self.model, self.adapter)
        with on, reading(self.rows.model, self.rows.packed):
            self.pool.refresh()
            batch = _Batch(self, wants, seed, sampling or Sampling())
            batch.run()
        self.read = batch.read
        return batch.chains


class _Batch:
    """The walkers of one call. A walker writes one chain; walkers that have written the same stand on one row.

    Arrays over walkers: `row`, `key` and `place` (its noise), `spent` (tokens of the chain before this step), `count`
    (tokens of this step). Arrays over rows: `feed` and `at` (the token to be read next, and its column).
    """

    def __init__(self, policy: LocalPolicy, wants: Sequence[Want], seed: int, sampling: Sampling):
        self.policy, self.wants, self.seed, self.sampling = policy, wants, seed, sampling
        self.rows, self.pool, self.encoder = policy.rows, policy.pool, policy.encoder
        self.chains: list[list[list[Node]]] = [[[] for _ in range(want.n)] for want in wants]
        self.read = [0] * len(wants)
        self.starts = [self._start(want) for want in wants]
        self._check()
        order = sorted(range(len(wants)), key=lambda i: len(self.starts[i][0]), reverse=True)
        self.waiting = [
            (i, k) for i in order for k in reversed(range(wants[i].n))
        ]  # short prefixes first, from the end
        most = max(sampling.step_tokens, 3) + 3
        self.who: list[tuple[int, int]] = []
        self.nodes: list[Node] = []
        self.paths: list[tuple[int, ...]] = []
        self.before: list[tuple[int, ...]] = []  # the tokens before this step
        self.row, self.spent, self.count = (np.zeros(0, dtype=np.int64) for _ in range(3))
        self.key = np.zeros(0, dtype=np.uint64)
        self.tokens, self.logprobs = np.zeros((0, most), dtype=np.int64), np.zeros((0, most), dtype=np.float32)
        self.feed, self.at = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)

    def _start(self, want: Want) -> tuple[tuple[int, ...], list[int], tuple[int, ...]]:
        """(tokens before the first one that is drawn, where its nodes end, those of the closing tags)."""
        code = self.encoder.encode(want.problem.prompt, want.node.steps)
        closing = tuple(self.encoder.closing()) if want.close else ()
        cuts = [code.prompt_length - 1, *code.step_ends]  # the last token of a node is read by its children
        return (*code.ids, *closing), cuts, closing

    def _check(self) -> None:
        limit, bad = self.policy.config.max_position_embeddings, {}
        for want, (ids, _, _) in zip(self.wants, self.starts, strict=True):
            left = self.sampling.chain_tokens - sum(len(step.ids) for step in want.node.steps)
            room = max(1, left if want.to_end else min(left, self.sampling.step_tokens))
            if len(ids) + room > limit:
                bad[want.problem.id] = f"{len(ids)} tokens leave no room for {room} more in a context of {limit}"
        if bad:
            raise ProblemError(bad)

    def run(self) -> None:
        while self.waiting or self.who:
            free = self.policy.batch - len(self.who)
            if self.waiting and free >= min(len(self.waiting), max(1, self.policy.batch // 4)):
                self._admit([self.waiting.pop() for _ in range(min(free, len(self.waiting)))])
            self._advance()

    # --- joining ---

    def _admit(self, who: list[tuple[int, int]]) -> None:
        """New walkers: one row for each different start, with what the pool holds of it, the rest read."""
        begin = len(self.feed)
        first: dict[tuple[int, ...], int] = {}
        for i, _ in who:
            first.setdefault(self.starts[i][0], i)
        held = {ids: self.pool.deepest(ids[:-1], self.starts[i][1]) for ids, i in first.items()}
        missing = {ids: len(ids) - 1 - (len(prefix.tokens) if prefix else 0) for ids, prefix in held.items()}
        fresh = sorted(first, key=missing.__getitem__)  # those with nothing to read stand in front
        for ids, i in first.items():
            self.read[i] += missing[ids]
        self.rows.reserve(begin + len(fresh), max(map(len, fresh)) + self.sampling.step_tokens)
        self.pool.load(self.rows, begin, [held[ids] for ids in fresh])
        known = sum(missing[ids] == 0 for ids in fresh)
        if todo := fresh[known:]:
            starts = [len(ids) - 1 - missing[ids] for ids in todo]
            texts = [ids[at:-1] for ids, at in zip(todo, starts, strict=True)]
            self.rows.prefill(begin + known, texts, starts)
            self.pool.keep(self.rows, [(ids[:-1], begin + known + r, held[ids]) for r, ids in enumerate(todo)])
        where = {ids: begin + r for r, ids in enumerate(fresh)}
        self.feed = np.append(self.feed, [ids[-1] for ids in fresh])
        self.at = np.append(self.at, [len(ids) - 1 for ids in fresh])
        tokens = np.zeros((len(who), self.tokens.shape[1]), dtype=np.int64)
        count = np.zeros(len(who), dtype=np.int64)
        for w, (i, k) in enumerate(who):
            want, (ids, _, closing) = self.wants[i], self.starts[i]
            self.paths.append((*want.node.path, want.first + k))
            self.before.append(ids[: len(ids) - len(closing)])
            self.nodes.append(want.node)
            tokens[w, : len(closing)], count[w] = closing, len(closing)
        self.who += who
        self.row = np.append(self.row, [where[self.starts[i][0]] for i, _ in who])
        self.spent = np.append(self.spent, [sum(len(s.ids) for s in self.wants[i].node.steps) for i, _ in who])
        self.count = np.append(self.count, count)
        names = zip(who, self.paths[-len(who) :], strict=True)
        keys = [node_key(self.seed, self.wants[i].problem.id, path) for (i, _), path in names]
        self.key = np.append(self.key, np.array(keys, dtype=np.uint64))
        self.tokens = np.concatenate([self.tokens, tokens])
        self.logprobs = np.concatenate([self.logprobs, np.zeros(tokens.shape, dtype=np.float32)])

    # --- writing ---

    def _advance(self) -> None:
        """One token for every walker; those whose chain stops leave."""
        sampling = self.sampling
        logprobs = log_probabilities(self.rows.forward(self.feed[:, None], self.at[:, None]), sampling)
        if logprobs[:, 0].isnan().any():  # one of a row is NaN if all are
            raise WorkbenchError(
                "the policy's logits are no numbers: its training diverged, or its weights are damaged"
            )
        if sampling.temperature:
            token = draw(logprobs, self.row, self.key, self.count)
        else:
            token = logprobs.argmax(1)[torch.as_tensor(self.row, device=logprobs.device)]
        chosen = logprobs[torch.as_tensor(self.row, device=logprobs.device), token].cpu().numpy()
        token = token.cpu().numpy()
        walkers = np.arange(len(token))
        self.tokens[walkers, self.count], self.logprobs[walkers, self.count] = token, chosen
        self.count += 1
        whole = self.spent + self.count
        full = whole >= sampling.chain_tokens
        ended = self.policy.ends[token]
        over = np.nonzero(ended | full | (self.count >= sampling.step_tokens))[0]
        alive = np.ones(len(token), dtype=bool)
        if len(over):
            alive[over] = self._close(over, token, ended, full)
        self._regroup(alive, token)

    def _close(self, over: np.ndarray, token: np.ndarray, ended: np.ndarray, full: np.ndarray) -> np.ndarray:
        """Make nodes of the steps that are over; which of their walkers go on with the next step."""
        steps: dict[tuple, tuple[Step, str | None, tuple[int, ...]]] = {}
        kept, on = [], np.zeros(len(over), dtype=bool)
        for place, w in enumerate(over.tolist()):
            twin = (self.row[w], token[w], self.count[w])  # has written the same
            if twin not in steps:
                ids, values = self.tokens[w, : self.count[w]].tolist(), self.logprobs[w, : self.count[w]].tolist()
                step, stop = self.encoder.decode_step(ids, values)
                if not ended[w] or (full[w] and stop is None):
                    stop = "length"
                steps[twin] = step, stop, (*self.before[w], *ids)
                if stop is None:
                    kept.append((steps[twin][2][:-1], self.row[w], self.pool.find(self.before[w][:-1])))
            step, stop, before = steps[twin]
            (i, k), path = self.who[w], self.paths[w]
            self.nodes[w] = Node(path, (*self.nodes[w].steps, step), stop)
            self.chains[i][k].append(self.nodes[w])
            if stop is None and self.wants[i].to_end:
                on[place] = True
                self.paths[w], self.before[w] = (*path, 0), before
                self.spent[w] += self.count[w]
                self.count[w] = 0
                self.key[w] = node_key(self.seed, self.wants[i].problem.id, self.paths[w])
        self.pool.keep(self.rows, kept)
        return on

    def _regroup(self, alive: np.ndarray, token: np.ndarray) -> None:
        """Walkers that took the same token stay together; the first group of a row keeps it, others get a copy."""
        if not alive.all():
            for name in ("row", "key", "spent", "count", "tokens", "logprobs"):
                setattr(self, name, getattr(self, name)[alive])
            token, stay = token[alive], np.nonzero(alive)[0].tolist()
            for name in ("who", "nodes", "paths", "before"):
                old = getattr(self, name)
                setattr(self, name, [old[w] for w in stay])
        groups, self.row = np.unique(self.row * len(self.policy.ends) + token, return_inverse=True)
        old, self.feed = np.divmod(groups, len(self.policy.ends))
        columns, self.at = self.at, self.at[old] + 1
        first = np.ones(len(old), dtype=bool)
        first[1:] = old[1:] != old[:-1]
        target = np.where(first & (old < len(old)), old, -1)
        free = np.setdiff1d(np.arange(len(old)), target)
        moves = target < 0
        target[moves] = free
        if moves.any():
            self.rows.reserve(len(old), 1)
            self.rows.copy(old[moves], target[moves], int(columns.max()) + 1)
        order = np.argsort(target)
        self.feed, self.at, self.row = self.feed[order], self.at[order], target[self.row]
        if len(self.at):
            self.rows.reserve(1, int(self.at.max()) + 1)
