"""Labelled chains as rows for a verifier: what chains share is stored once, and rows are filled to the brim.

A row is a forest. Each of its segments (a prompt, or a step) stands behind one parent segment; a token sees the
segments above its own and nothing else, at the position that it has in its own chain. So a step is read as in a chain
that stands alone, and a prefix of twenty candidate steps is read once. A chain that stands alone is a plain causal row.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from .format import Encoder
from .types import Labelled, Problem, Trace, WorkbenchError

UNKNOWN = -1.0  # a step without a label: after the first error, or never judged


@dataclass(frozen=True)
class Judged:
    """One chain to learn from: ids, step ends, one label in 0-1 a step (hard or soft) or UNKNOWN.

    `start` is where the first step begins.
    """

    ids: list[int]
    start: int
    ends: list[int]
    labels: list[float]


@dataclass(frozen=True)
class Forest:
    """Several trees of steps in one row: token ids, and for every segment its length, its parent (−1: a prompt has
    none) and its label, UNKNOWN for prompts and for steps that are there as context only."""

    ids: list[int]
    lengths: list[int]
    parents: list[int]
    labels: list[float]

    @property
    def alone(self) -> bool:
        """One chain without a branch: causal attention says it all."""
        return all(parent == i - 1 for i, parent in enumerate(self.parents))

    def judged(self) -> Judged:
        ends = [end - 1 for end in itertools.accumulate(self.lengths)]
        return Judged(self.ids, self.lengths[0], ends[1:], self.labels[1:])


def mask_after_error(labels: Sequence[float | None]) -> list[float]:
    """Supervise up to and including the first wrong step, nothing after (Lightman et al. 2023).

    A step is wrong if its label is 0: a soft label of .3 is the value of a hard problem, not a mistake.

    >>> mask_after_error([1, None, 0, 1, 0])
    [1.0, -1.0, 0.0, -1.0, -1.0]
    """
    first = next((i for i, x in enumerate(labels) if x == 0), len(labels))
    return [UNKNOWN if x is None or i > first else float(x) for i, x in enumerate(labels)]


def earned(trace: Trace, label: float | None) -> float | None:
    """A chain's outcome: the label of its answer. A chain that a policy wrote and never closed has earned 0.

    Of a row that breaks off (PRM800K's where people stopped) the last label is a step's mark, and there is no outcome.

    >>> from workbench.types import Step
    >>> step = Step("2+3=5", ids=(7, 8))
    >>> [earned(Trace(steps, "cut"), 1.0) for steps in ((step,), (Step("2+3=5"),))]
    [0.0, None]
    """
    if trace.answer is not None:
        return label
    return 0.0 if trace.stop == "length" or trace.steps[-1].ids else None


def judged(
    problem: Problem, trace: Trace, labels: Sequence[float | None], encoder: Encoder, outcome: bool = False
) -> Judged:
    """A labelled chain as a row. `outcome`: its `earned` at every step (an ORM, Cobbe et al. 2021), or nowhere."""
    if len(labels) != len(trace.steps):
        raise WorkbenchError(f"{problem.id}: {len(labels)} labels for {len(trace.steps)} steps")
    if bad := [x for x in labels if x is not None and not 0 <= x <= 1]:
        raise WorkbenchError(f"{problem.id}: label {bad[0]} is outside 0-1")
    if not trace.steps:
        raise WorkbenchError(f"{problem.id}: a chain without steps has nothing to learn from, leave it out")
    if outcome:
        labels = [earned(trace, labels[-1])] * len(labels)
    code = encoder.encode(problem.prompt, trace.steps)
    used = [UNKNOWN if x is None else float(x) for x in labels] if outcome else mask_after_error(labels)
    return Judged(code.ids, code.prompt_length, code.step_ends, used)


# --- from chains to forests ---


@dataclass
class _Piece:
    """A part of one tree, growing: which segments it holds, and what they cost."""

    ids: list[int]
    lengths: list[int]
    parents: list[int]
    labels: list[float]
    place: dict[int, int]

    def add(self, number: int, node: _Node, label: float) -> None:
        self.place[number] = len(self.lengths)
        self.ids += node.segment
        self.lengths.append(len(node.segment))
        self.parents.append(self.place.get(node.parent, -1))
        self.labels.append(label)


def pack(
    chains: Iterable[Labelled],
    encoder: Encoder,
    capacity: int = 512,
    outcome: bool = False,
    counts: dict[str, int] | None = None,
) -> Iterator[Forest]:
    """Chains -> rows of at most `capacity` tokens, a few per cent of it empty; a stream in bounded memory.

    Chains of one problem that follow one another share what they begin with. Every label stands in one row, behind its
    whole prefix, which is read again where a tree is cut into several rows. A step whose prefix alone does not fit is
    left out, and of `outcome` a chain without one. `counts` is told `tokens`, `labels`, `too long` (labels left out),
    `no outcome` (chains left out), `chains` and `straight` (tokens, had every chain been a row of its own).
    Errors: outcomes are asked for, and no chain has one.
    """
    counts = {} if counts is None else counts
    for name in ("chains", "labels", "tokens", "straight", "too long", "no outcome"):
        counts.setdefault(name, 0)
    waiting: list[_Piece] = []
    alone = itertools.count()  # an outcome is a chain's own, also in the steps that it shares
    for _, group in itertools.groupby(chains, lambda chain: next(alone) if outcome else chain.problem.id):
        rows = []
        for chain in group:
            counts["chains"] += 1
            rows.append(judged(*chain, encoder, outcome))
            counts["straight"] += len(rows[-1].ids)
            counts["no outcome"] += outcome and rows[-1].labels[-1] == UNKNOWN
        waiting += _pieces(_tree(rows), capacity, counts)
        if len(waiting) >= WINDOW:
            full, waiting = _bins(waiting, capacity, last=False)
            yield from _out(full, counts)
    if counts["no outcome"] == counts["chains"] > 0:
        raise WorkbenchError(
            f"none of {counts['chains']} chains has an outcome, which is the label of its closing answer: an outcome "
            "model needs chains that end in one; for labels of steps, outcome=false"
        )
    full, _ = _bins(waiting, capacity, last=True)
    yield from _out(full, counts)


WINDOW = 512  # pieces that wait to be put together: more fill rows better, and cost memory


class _Node(NamedTuple):
    """A segment of a tree: its parent's number (-1: none), its tokens, its label, tokens from the root to its end."""

    parent: int
    segment: tuple[int, ...]
    label: float
    end: int


def _tree(rows: Sequence[Judged]) -> list[_Node]:
    """The segments that the rows are made of, parents first; nothing below a row's last label."""
    nodes: list[_Node] = []
    number: dict[tuple[int, tuple[int, ...]], int] = {}  # (parent, tokens)
    for row in rows:
        labelled, at = [i for i, label in enumerate(row.labels) if label != UNKNOWN], -1
        cuts = [0, row.start, *(end + 1 for end in row.ends[: labelled[-1] + 1])] if labelled else []
        for (begin, end), label in zip(itertools.pairwise(cuts), [UNKNOWN, *row.labels], strict=False):
            node = _Node(at, tuple(row.ids[begin:end]), label, end)
            at = number.setdefault(node[:2], len(nodes))
            if at == len(nodes):
                nodes.append(node)
            elif nodes[at].label == UNKNOWN:
                nodes[at] = node
    return nodes


def _pieces(nodes: Sequence[_Node], capacity: int, counts: dict) -> list[_Piece]:
    """A tree, depth first, cut where a row is full; the next row begins with the prefix that it goes on from."""
    children: dict[int, list[int]] = {}
    for i, node in enumerate(nodes):
        children.setdefault(node.parent, []).append(i)
    done: list[_Piece] = []
    piece = None
    todo = children.get(-1, [])[::-1]
    while todo:
        i = todo.pop()
        todo += children.get(i, [])[::-1]
        if nodes[i].label == UNKNOWN:
            continue  # comes along as the prefix of what has a label
        if nodes[i].end > capacity:
            counts["too long"] += 1
            continue
        path = [i]
        while (parent := nodes[path[-1]].parent) >= 0 and not (piece and parent in piece.place):
            path.append(parent)
        if piece is None or len(piece.ids) + sum(len(nodes[j].segment) for j in path) > capacity:
            piece = _Piece([], [], [], [], {})
            done.append(piece)
            path = [i]
            while (parent := nodes[path[-1]].parent) >= 0:
                path.append(parent)
        for j in reversed(path):
            piece.add(j, nodes[j], nodes[j].label if j == i else UNKNOWN)
    return done


def _bins(pieces: list[_Piece], capacity: int, last: bool) -> tuple[list[list[_Piece]], list[_Piece]]:
    """First fit, the longest first. Rows that are not nearly full wait for more pieces, but for the `last` lot."""
    bins: list[list[_Piece]] = []
    room: list[int] = []
    for piece in sorted(pieces, key=lambda piece: -len(piece.ids)):
        n = len(piece.ids)
        at = next((i for i, left in enumerate(room) if left >= n), None)
        if at is None:
            bins.append([])
            room.append(capacity)
            at = len(bins) - 1
        bins[at].append(piece)
        room[at] -= n
    if last:
        return bins, []
    full = [b for b, left in zip(bins, room, strict=True) if left <= capacity // 32]
    rest = [b for b, left in zip(bins, room, strict=True) if left > capacity // 32]
    if len(full) * 4 < len(bins):  # nothing better will come: let the fuller half go
        rest.sort(key=lambda b: -sum(len(p.ids) for p in b))
        full, rest = full + rest[: len(rest) // 2], rest[len(rest) // 2 :]
    return full, [piece for b in rest for piece in b]


def _out(bins: Iterable[list[_Piece]], counts: dict) -> Iterator[Forest]:
    for bin in bins:
        row = Forest([], [], [], [])
        for piece in bin:
            shift = len(row.lengths)
            row.ids.extend(piece.ids)
            row.lengths.extend(piece.lengths)
            row.parents.extend(p if p < 0 else p + shift for p in piece.parents)
            row.labels.extend(piece.labels)
        counts["tokens"] += len(row.ids)
        counts["labels"] += sum(label != UNKNOWN for label in row.labels)
        yield row


class Store(Sequence):
    """Rows on disk as they come, read back one by one: what is trained on need not fit into memory.

    Two files in `folder`: `rows.bin`, 32-bit numbers, and `index.bin`, where each row begins, its tokens and labels.
    `seed` puts the rows into a random order, which is the same each time.

    >>> import tempfile
    >>> store = Store.write(tempfile.mkdtemp(), [Forest([5, 6, 7], [1, 2], [-1, 0], [UNKNOWN, 0.5])])
    >>> store[0], store.lengths
    (Forest(ids=[5, 6, 7], lengths=[1, 2], parents=[-1, 0], labels=[-1.0, 0.5]), [3])
    """

    def __init__(self, folder: str | Path, seed: int | None = None):
        folder = Path(folder)
        index = np.fromfile(folder / "index.bin", np.int64).reshape(-1, 3)
        if not len(index):
            raise WorkbenchError(f"{folder} holds no rows: no chain had a label that fits into a row")
        self.data = np.memmap(folder / "rows.bin", np.int32, "r")
        if seed is not None:
            index = np.random.default_rng(seed).permutation(index)
        self.begins, self.lengths = index[:, 0], index[:, 1].tolist()
        self.labels = int(index[:, 2].sum())

    @classmethod
    def write(cls, folder: str | Path, rows: Iterable[Forest]) -> Store:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        at = 0
        with open(folder / "rows.bin", "wb") as data, open(folder / "index.bin", "wb") as index:
            for row in rows:
                labels = np.array(row.labels, np.float32)
                flat = [[len(row.ids), len(row.lengths)], row.ids, row.lengths, row.parents]
                flat = np.concatenate([*(np.array(part, np.int32) for part in flat), labels.view(np.int32)])
                flat.tofile(data)
                np.array([at, len(row.ids), (labels != UNKNOWN).sum()], np.int64).tofile(index)
                at += len(flat)
        return cls(folder)

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i: int) -> Forest:
        begin = self.begins[i]
        tokens, segments = self.data[begin : begin + 2]
        cuts = np.cumsum([begin + 2, tokens, segments, segments, segments])
        ids, lengths, parents, labels = (self.data[a:b] for a, b in itertools.pairwise(cuts))
        return Forest(ids.tolist(), lengths.tolist(), parents.tolist(), labels.view(np.float32).tolist())


# --- from rows to a batch ---


def collate(rows: Sequence[Judged | Forest], pad: int) -> dict[str, torch.Tensor]:
    """Rows -> input_ids, attention_mask, ends, labels, start, steps, items; padded on the right.

    Where a row branches, the mask is (rows, 1, width, width), true where a token may look, and position_ids are given.
    """
    if all(not isinstance(row, Forest) or row.alone for row in rows):
        return _straight([row.judged() if isinstance(row, Forest) else row for row in rows], pad)
    width, most = max(len(r.ids) for r in rows), max(len(r.lengths) for r in rows)
    ids = torch.full((len(rows), width), pad)
    place = torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.eye(width, dtype=torch.bool).repeat(
        len(rows), 1, 1, 1
    )  # padding sees itself: a softmax of nothing is NaN
    ends = torch.zeros((len(rows), most), dtype=torch.long)
    labels = torch.full((len(rows), most), UNKNOWN)
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    for i, row in enumerate(rows):
        n, lengths = len(row.ids), torch.tensor(row.lengths)
        above = torch.eye(len(lengths), dtype=torch.bool)
        begins = [0] * len(lengths)  # where a segment begins in its own chain
        for s, parent in enumerate(row.parents):
            if parent >= 0:
                above[s] |= above[parent]
                begins[s] = begins[parent] + row.lengths[parent]
        segment = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        first = torch.cumsum(lengths, 0) - lengths
        ids[i, :n] = torch.tensor(row.ids)
        place[i, :n] = torch.arange(n) - first[segment] + torch.tensor(begins)[segment]
        mask[i, 0, :n, :n] = above[segment][:, segment] & causal[:n, :n]
        ends[i, : len(lengths)], labels[i, : len(lengths)] = first + lengths - 1, torch.tensor(row.labels)
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": place, "ends": ends, "labels": labels}
    return batch | {"items": (labels != UNKNOWN).sum()}


def _straight(rows: Sequence[Judged], pad: int) -> dict[str, torch.Tensor]:
    width, most = max(len(r.ids) for r in rows), max(len(r.ends) for r in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    ends = torch.zeros((len(rows), most), dtype=torch.long)
    labels = torch.full((len(rows), most), UNKNOWN)
    for i, r in enumerate(rows):
        ids[i, : len(r.ids)], mask[i, : len(r.ids)] = torch.tensor(r.ids), 1
        ends[i, : len(r.ends)], labels[i, : len(r.ends)] = torch.tensor(r.ends), torch.tensor(r.labels)
    start, steps = torch.tensor([r.start for r in rows]), torch.tensor([len(r.ends) for r in rows])
    batch = {"input_ids": ids, "attention_mask": mask, "ends": ends, "labels": labels, "start": start, "steps": steps}
    return batch | {"items": (labels != UNKNOWN).sum()}


# --- from a model back to chains ---


@torch.inference_mode()
def read_trees(
    trunk,
    encoder: Encoder,
    items: Sequence[tuple[Problem, Trace]],
    judge,
    capacity: int = 1024,
    limit: int = 8192,
    progress: bool = False,
) -> list[tuple[float | None, ...]]:
    """What `judge` says of every step of many chains, each shared step read once: (one note a step) for every chain.

    judge(hidden (tokens, width), ids, before, ends) -> a note for every segment. `ends` are the segments' last tokens,
    `before` is for every token the place of the one before it in its own chain, −1 for the first. Steps that end
    within `capacity` tokens are read in rows of that size, the others in rows of `limit`; beyond that a note is None.
    """
    from tqdm.auto import tqdm

    codes = [encoder.encode(problem.prompt, trace.steps) for problem, trace in items]
    known: dict[tuple[int, ...], float] = {}
    for size in (capacity, limit):
        left = [i for i, code in enumerate(codes) if code.step_ends and tuple(code.ids) not in known]
        size = min(size, limit, max((len(codes[i].ids) for i in left), default=1) if size > capacity else size)
        every = (Labelled(*items[i], (0.5,) * len(items[i][1].steps)) for i in left)
        rows = list(pack(every, encoder, size))
        for row in tqdm(rows, "reading steps", disable=not progress or not rows):
            batch = {k: v.to(trunk.device) for k, v in collate([row], 0).items()}
            seen = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids") if k in batch}
            ends = [end - 1 for end in itertools.accumulate(row.lengths)]
            paths: list[tuple[int, ...]] = []
            before = torch.arange(-1, len(row.ids) - 1)
            for end, length, parent in zip(ends, row.lengths, row.parents, strict=True):
                before[end + 1 - length] = ends[parent] if parent >= 0 else -1
                paths.append((paths[parent] if parent >= 0 else ()) + tuple(row.ids[end + 1 - length : end + 1]))
            notes = judge(trunk(**seen).last_hidden_state[0], row.ids, before, ends)
            known.update(zip(paths, notes, strict=True))
    return [tuple(known.get(tuple(code.ids[: end + 1])) for end in code.step_ends) for code in codes]
