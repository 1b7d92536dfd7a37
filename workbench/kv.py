"""Keys and values of token prefixes: read once, kept by prefix, shared by all that go on from there.

`Rows` are the working tensors of one batch, `Pool` is the memory between calls. The policy decodes in rows, a verifier
reads in them; both find what they have read before in a pool of their own.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import numpy as np
import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .types import WorkbenchError

CHUNK = 8192  # tokens of one forward pass over prefixes, which bounds its memory
BATCH = 512  # rows that are held at a time to read prefixes
LARGE = 1 << 26  # bytes of weights in fp32 that are worth a second copy
FEW = 512  # tokens that are read at once whatever their padding: fewer would cost a pass as much


def _attend(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """Attention whose query heads share key heads without a copy of them: with one new token a row, the queries of a
    key head stand where several tokens' would."""
    rows, heads, new, width = query.shape
    groups = key.shape[1]
    shared = new == 1 and heads != groups
    if shared:
        query = query.view(rows, groups, heads // groups, width)
    repeat = not shared and heads != groups
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=repeat)
    return out.reshape(rows, heads, new, width).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register("workbench", _attend)


class Packed:
    """The linear layers of a model on a CPU, their weights laid out once for oneDNN instead of at every call.

    That costs a second copy of them in memory and makes small batches faster: twice in bf16, by two fifths in fp32,
    where it is done for weights that no cache holds. Elsewhere it does nothing. The same numbers as before but for the
    order of summation.
    """

    def __init__(self, model):
        self.model, self.version, self.forwards = model, None, {}
        large = sum(p.numel() for p in model.parameters()) * model.dtype.itemsize > LARGE
        self.useful = model.device.type == "cpu" and torch.backends.mkldnn.is_available() and (
            model.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
            or model.dtype == torch.float32 and large
        )  # fmt: skip

    def forget(self) -> None:
        """Give the memory back, when the weights are about to move."""
        self.version, self.forwards = None, {}

    @contextmanager
    def swapped(self) -> Iterator[None]:
        if not self.useful:
            yield
            return
        layers = [m for m in self.model.modules() if type(m) is torch.nn.Linear and m.weight.dtype == self.model.dtype]
        if self.version != (now := (version(self.model), len(layers))):  # another weight, or an adapter that wraps some
            self.forget()  # before the new copy is made
            self.version, self.forwards = now, {id(layer): self._forward(layer) for layer in layers}
        try:
            for layer in layers:
                layer.forward = self.forwards[id(layer)]
            yield
        finally:
            for layer in layers:
                del layer.forward  # the class's own again

    @staticmethod
    def _forward(layer):
        weight, linear = (
            torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach()),
            torch.ops.mkldnn._linear_pointwise,
        )
        return lambda x: linear(x, weight, layer.bias, "none", [], "")


@contextmanager
def reading(model, packed: Packed | None = None) -> Iterator[None]:
    """The model in eval mode, its attention as `Rows` need it; left as it was found."""
    mode, before = model.training, model.config._attn_implementation
    windows = getattr(model.config, "layer_types", None) or []
    if set(windows) - {"full_attention"} or (not windows and getattr(model.config, "sliding_window", None)):
        raise WorkbenchError(
            f"layers of type {', '.join(sorted(set(windows))) or 'sliding'} are not supported: full only"
        )
    model.eval()
    model.config._attn_implementation = "workbench"
    try:
        with torch.inference_mode(), packed.swapped() if packed else nullcontext():
            yield
    finally:
        model.config._attn_implementation = before
        model.train(mode)


def core(model):
    """The transformers model inside a PEFT wrapper; any other model as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def version(model) -> tuple:
    """What changes whenever a weight is changed in place, so that no stale key is ever used. Merging an adapter goes
    past the weights' own count."""
    merged = tuple(tuple(m.merged_adapters) for m in model.modules() if getattr(m, "merged_adapters", None))
    return sum(p._version for p in model.parameters() if not p.is_inference()), merged


def _zeros(like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Zeros. On a CPU from calloc, which costs nothing for the pages that are never written."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    raw = np.zeros(int(np.prod(shape)) * like.dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(raw).view(like.dtype).view(shape)


@dataclass(eq=False)
class Work:
    """The tensors of `Rows`. Between calls they hold nothing of worth, so models that are alike, such as a policy and
    its judges, which work in turn, share one set."""

    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    size: int = 1  # rows there are
    columns: int = 1  # columns there are
    sick: int = 0  # whose numbers were not finite: NaN passes through a mask, so nobody else may find them here

    @staticmethod
    def of(model) -> Work:
        about = (model.dtype, getattr(model, "is_quantized", False), model.device, geometry(model))
        return _works.setdefault(about, Work())

    def clear(self) -> None:
        self.keys.clear(), self.values.clear()
        self.size, self.columns, self.sick = 1, 1, 0


_works: WeakValueDictionary[tuple, Work] = WeakValueDictionary()


def geometry(model) -> tuple[int, int, int]:
    """Layers, key heads, and their width."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, heads, width


class Rows(Cache):
    """One batch on its way: row r holds the keys and values of its tokens at columns 0, 1, 2, …, so that a column is a
    position and rows of any length stand side by side.

    A transformers `Cache`, given to the model as it is. Tensors are (rows, key heads, columns, width), a pair a layer,
    made at the first forward pass from the shapes that the model brings.
    """

    def __init__(self, model):
        super().__init__(layers=[])  # transformers is told of none: all are alike, and live here
        self.model = core(model)
        self.trunk, self.packed = self.model.base_model, Packed(self.model)
        self.work, self.width = Work.of(self.model), 0  # columns in use
        self.device = self.model.device

    def reserve(self, size: int, columns: int) -> None:
        """Room for so many rows and columns; what is held stays."""
        work = self.work
        if work.sick not in (0, id(self)):
            work.clear()
        if size <= work.size and columns <= work.columns:
            return
        rows = max(size, 2 * work.size, 64) if size > work.size else work.size
        columns = max(columns, 2 * work.columns, 64) if columns > work.columns else work.columns

        def larger(old: torch.Tensor) -> torch.Tensor:
            new = _zeros(old, (rows, old.shape[1], columns, old.shape[3]))
            new[: work.size, :, : self.width] = old[:, :, : self.width]
            return new

        try:  # one layer after another, so that no more than one is there twice
            for tensors in (work.keys, work.values):
                for layer, old in enumerate(tensors):
                    tensors[layer] = larger(old)
        except BaseException:  # out of memory, or Ctrl-C: whoever comes next finds nothing rather than half of it
            work.clear()
            raise
        work.size, work.columns = rows, columns

    # --- what transformers calls ---

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        work = self.work
        if layer_idx == len(work.keys):
            shape = (work.size, key_states.shape[1], work.columns, key_states.shape[3])
            keys, values = _zeros(key_states, shape), _zeros(value_states, shape)
            work.keys.append(keys), work.values.append(values)
        keys, values = work.keys[layer_idx], work.values[layer_idx]
        keys[self.where, :, self.at] = key_states.transpose(1, 2)
        values[self.where, :, self.at] = value_states.transpose(1, 2)
        return keys[self.span, :, : self.seen], values[self.span, :, : self.seen]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0  # positions are always given

    # --- what we call ---

    def forward(self, ids: np.ndarray, at: np.ndarray, first: int | None = None) -> torch.Tensor:
        """Feed ids (rows, new) at columns `at`, to rows 0, 1, …: logits of the last token (rows, vocabulary).

        With `first`, to rows first, first + 1, …: hidden states of all tokens (rows, new, width) instead.
        """
        begin = first or 0
        self.at = torch.as_tensor(at, device=self.device)
        self.where = torch.arange(begin, begin + len(at), device=self.device)[:, None]
        self.span, self.seen = slice(begin, begin + len(at)), int(at.max()) + 1
        self.width = max(self.width, self.seen)
        late = torch.arange(self.seen, device=self.device) > self.at[:, None, :, None]
        mask = torch.zeros(late.shape, dtype=self.model.dtype, device=self.device)
        mask.masked_fill_(late, torch.finfo(mask.dtype).min)
        inputs = {"input_ids": torch.as_tensor(ids, device=self.device), "attention_mask": mask}
        inputs |= {"position_ids": self.at, "past_key_values": self, "use_cache": True}
        if first is None:
            out = self.model(**inputs, logits_to_keep=1).logits[:, -1]
        else:
            out = self.trunk(**inputs).last_hidden_state
        if not out[..., 0].isfinite().all():  # what is not finite in a hidden state is so in all that it is mapped to
            self.work.sick = id(self)
        return out

    def prefill(self, first: int, texts: Sequence[Sequence[int]], starts: Sequence[int]) -> list[torch.Tensor]:
        """Read texts into rows first, first + 1, …, from their start columns on; the hidden states of their tokens.

        They are read in the order given: many at once while they are of like length, so that little is padding.
        """
        out: list[torch.Tensor] = []
        while len(out) < len(texts):
            done, width, count, real = len(out), 0, 0, 0
            for text in texts[done:]:
                padded = max(width, len(text)) * (count + 1)
                if padded > CHUNK and count or real > FEW and padded > 1.25 * (real + len(text)):
                    break
                width, count, real = max(width, len(text)), count + 1, real + len(text)
            some = texts[done : done + count]
            # What stands behind a row's end is written over before anything may look at it.
            at = np.array(starts[done : done + count])[:, None] + np.arange(width)
            self.reserve(first + len(texts), int(at.max()) + 1)
            ids = np.array([[*text, *[0] * (width - len(text))] for text in some])
            hidden = self.forward(ids, at, first + done)
            out += [states[: len(text)] for states, text in zip(hidden, some, strict=True)]
        return out

    def copy(self, sources: np.ndarray, targets: np.ndarray, columns: int) -> None:
        sources, targets = (torch.as_tensor(x, device=self.device) for x in (sources, targets))
        for tensor in (*self.work.keys, *self.work.values):
            tensor[targets, :, :columns] = tensor[sources, :, :columns]


@dataclass(eq=False)
class Prefix:
    """A prefix that was read: `slots` of the pool for each of its tokens, the last `own` of them its own.

    `note` is for the reader's use: a verifier keeps the step's score there.
    """

    tokens: tuple[int, ...]
    slots: np.ndarray
    own: int
    parent: Prefix | None
    note: float | None = None


class Pool:
    """Keys and values of prefixes, at most `limit` bytes of them; the least recently used go first.

    A prefix holds the slots of its own tokens only, and its parent's for the rest. Using one uses all above it, so a
    parent is never older than its children, and what is dropped is always a leaf.
    """

    def __init__(self, model, limit: int):
        self.model, self.limit = core(model), limit
        self.held: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.free: list[int] = []
        self.size, self.version = 0, None
        self.token_bytes = 2 * math.prod(geometry(self.model)) * self.model.dtype.itemsize
        self.capacity = limit // self.token_bytes  # in tokens

    def refresh(self) -> None:
        """Forget everything if a weight has changed since."""
        if (now := version(self.model)) != self.version:
            self.held.clear()
            self.free, self.version = list(range(self.size)), now

    def find(self, tokens: tuple[int, ...]) -> Prefix | None:
        found = self.held.get(tokens)
        above = found
        while above is not None:  # ends with the root, the most recent of all
            self.held.move_to_end(above.tokens)
            above = above.parent
        return found

    def deepest(self, tokens: tuple[int, ...], cuts: Sequence[int]) -> Prefix | None:
        """The longest prefix that is held, of those that end at one of the `cuts` (ascending)."""
        return next((p for cut in reversed(cuts) if cut > 0 and (p := self.find(tokens[:cut])) is not None), None)

    def keep(self, rows: Rows, read: Sequence[tuple[tuple[int, ...], int, Prefix | None]]) -> list[Prefix | None]:
        """Copy prefixes out of rows: (tokens, row, parent); None for one that there is no room for."""
        made: list[tuple[Prefix | None, int]] = []
        for tokens, row, parent in read:
            parent = parent if parent is None or parent.tokens in self.held else None
            if (known := self.find(tokens)) is not None:
                made.append((known, -1))
                continue
            own = len(tokens) - (len(parent.tokens) if parent else 0)
            slots = self._take(rows, own, parent)
            if slots is None:
                made.append((None, -1))
                continue
            every = np.concatenate([parent.slots, slots]) if parent else slots
            self.held[tokens] = Prefix(tokens, every, own, parent)
            made.append((self.find(tokens), row))
        new = [(p, row) for p, row in made if row >= 0 and p.tokens in self.held]  # one may have made way for another
        if new:
            slot = torch.as_tensor(np.concatenate([p.slots[-p.own :] for p, _ in new]), device=rows.device)
            row, column = self._places(rows, [(row, len(p.tokens) - p.own, len(p.tokens)) for p, row in new])
            for mine, theirs in ((self.keys, rows.work.keys), (self.values, rows.work.values)):
                for pool, work in zip(mine, theirs, strict=True):
                    pool[slot] = work[row, :, column]
        return [p for p, _ in made]

    def load(self, rows: Rows, first: int, wanted: Sequence[Prefix | None]) -> None:
        """Copy prefixes into rows first, first + 1, …; a row without one stays as it is, or worse."""
        width = max((len(prefix.tokens) for prefix in wanted if prefix is not None), default=0)
        if not width:
            return
        rows.width = max(rows.width, width)
        # What stands behind a row's prefix is written over before anything may look at it.
        slots = np.full((len(wanted), width), next(p.slots[0] for p in wanted if p is not None))
        for row, prefix in enumerate(wanted):
            if prefix is not None:
                slots[row, : len(prefix.tokens)] = prefix.slots
        slot = torch.as_tensor(slots.ravel(), device=rows.device)
        if not rows.work.keys:
            shape = (rows.work.size, self.keys[0].shape[1], rows.work.columns, self.keys[0].shape[2])
            rows.work.keys = [_zeros(pool, shape) for pool in self.keys]
            rows.work.values = [_zeros(pool, shape) for pool in self.values]
        for mine, theirs in ((self.keys, rows.work.keys), (self.values, rows.work.values)):
            for pool, work in zip(mine, theirs, strict=True):
                held = pool.index_select(0, slot).view(*slots.shape, *pool.shape[1:])
                work[first : first + len(wanted), :, :width] = held.transpose(1, 2)

    def _places(self, rows: Rows, spans: Sequence[tuple[int, int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        row = np.repeat([row for row, _, _ in spans], [stop - start for _, start, stop in spans])
        column = np.concatenate([np.arange(start, stop) for _, start, stop in spans])
        return torch.as_tensor(row, device=rows.device), torch.as_tensor(column, device=rows.device)

    def _take(self, rows: Rows, count: int, parent: Prefix | None) -> np.ndarray | None:
        while len(self.free) < count:
            if self.size < self.capacity and rows.work.keys:
                self._grow(rows, min(self.capacity, max(4 * self.size, self.size + count, 16384)))
                continue
            oldest = next(iter(self.held.values()), None)
            if oldest is None or oldest is parent:
                return None
            self.free += self.held.pop(oldest.tokens).slots[-oldest.own :].tolist()
        slots = np.array(self.free[len(self.free) - count :], dtype=np.int64)
        del self.free[len(self.free) - count :]
        return slots

    def _grow(self, rows: Rows, size: int) -> None:
        for mine, theirs in ((self.keys, rows.work.keys), (self.values, rows.work.values)):
            for layer, work in enumerate(theirs):
                new = work.new_empty((size, work.shape[1], work.shape[3]))
                if self.size:
                    new[: self.size] = mine[layer]
                    mine[layer] = new
                else:
                    mine.append(new)
        self.free += range(self.size, size)
        self.size = size


class Reader:
    """Reads chains through a pool, each step once, and asks `judge` about the new ones.

    A chain is (tokens, cuts): its prompt is tokens[:cuts[0]], its steps end at the other cuts. Chains with the same
    beginning share it, and chains are read a step at a time, so that what is read at once is of like length.
    """

    def __init__(self, model, limit: int):
        self.rows, self.pool = Rows(model), Pool(model, limit)

    def notes(self, chains: Sequence[tuple[tuple[int, ...], Sequence[int]]], judge) -> tuple[list[tuple], list[int]]:
        """(a note a step for every chain, how many of its tokens had to be read).

        judge(hidden, after) -> notes: for every step the hidden states of its tokens (tokens, width), and the tokens
        that stand one place after each of them. What two chains share is read for the first.
        """
        with reading(self.rows.model, self.rows.packed):
            self.pool.refresh()
            known: dict[tuple[int, ...], float | None] = {}
            read = [0] * len(chains)
            for depth in range(max((len(cuts) for _, cuts in chains), default=0)):
                fresh: dict[tuple[int, ...], int] = {}
                for i, (tokens, cuts) in enumerate(chains):
                    if depth < len(cuts) and (prefix := tokens[: cuts[depth]]) not in known:
                        if (held := self.pool.find(prefix)) is not None:
                            known[prefix] = held.note
                        else:
                            fresh.setdefault(prefix, i)
                begin = {prefix: chains[i][1][depth - 1] if depth else 0 for prefix, i in fresh.items()}
                todo = sorted(fresh, key=lambda prefix: len(prefix) - begin[prefix])
                for first in range(0, len(todo), BATCH):
                    self._read(todo[first : first + BATCH], fresh, chains, depth, judge, known, read)
        return [tuple(known[tokens[:cut]] for cut in cuts[1:]) for tokens, cuts in chains], read

    def _read(self, prefixes, fresh, chains, depth, judge, known, read) -> None:
        starts = [chains[fresh[p]][1][depth - 1] if depth else 0 for p in prefixes]
        above = [self.pool.find(p[:start]) if start else None for p, start in zip(prefixes, starts, strict=True)]
        begin = [len(parent.tokens) if parent else 0 for parent in above]
        self.rows.reserve(len(prefixes), max(map(len, prefixes)))
        self.pool.load(self.rows, 0, above)
        texts = [p[at:] for p, at in zip(prefixes, begin, strict=True)]
        hidden = self.rows.prefill(0, texts, begin)
        for p, text in zip(prefixes, texts, strict=True):
            read[fresh[p]] += len(text)
        scores = [None] * len(prefixes)
        if depth:
            new = [h[start - at :] for h, start, at in zip(hidden, starts, begin, strict=True)]
            after = [chains[fresh[p]][0][start + 1 : len(p) + 1] for p, start in zip(prefixes, starts, strict=True)]
            scores = judge(new, after)
        kept = self.pool.keep(self.rows, [(p, r, above[r]) for r, p in enumerate(prefixes)])
        for p, prefix, score in zip(prefixes, kept, scores, strict=True):
            known[p] = score
            if prefix is not None:
                prefix.note = score
