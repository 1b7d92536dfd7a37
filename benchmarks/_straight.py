"""Guided search the straightforward way, as public beam searches do it: one problem at a time, transformers'
`generate` for every step with the prefix read again, the PRM reading every whole trace. Same searches, noise, answers.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from workbench.policies import Sampling
from workbench.policies.local import draw, log_probabilities, node_key
from workbench.search import DIGITS, get
from workbench.types import Node, Problem, Step


class Counted(LogitsProcessor):
    """Makes `generate` draw with the workbench's counters: all but the drawn token get -inf."""

    def __init__(self, keys: list[int], start: int, sampling: Sampling):
        self.keys, self.start, self.sampling = np.array(keys, dtype=np.uint64), start, sampling

    def __call__(self, ids, scores):
        rows = np.arange(len(ids))
        places = np.full(len(ids), ids.shape[1] - self.start)
        token = draw(log_probabilities(scores, self.sampling), rows, self.keys, places)
        return torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0.0)


class Straight:
    """`run` searches one problem; `tokens` counts what was drawn."""

    def __init__(self, model, encoder, verifier, sampling: Sampling, seed: int = 0):
        self.model, self.encoder, self.verifier, self.sampling, self.seed = model, encoder, verifier, sampling, seed
        self.ends = [i for i, end in enumerate(encoder.ends_step()) if end]
        self.tokens, self.tree = 0, {}

    def run(self, problem: Problem, search: str, **knobs) -> str | None:
        walk, sent = get(search)(Node(), **knobs), None
        while True:
            try:
                request = walk.send(sent)
            except StopIteration as end:
                return end.value
            sent = self.grow(problem.blind(), [node for node in request.nodes if not node.finished], request.n)

    @torch.inference_mode()
    def grow(self, problem: Problem, nodes: list[Node], n: int) -> list[Node]:
        prefixes = [self.encoder.encode(problem.prompt, node.steps).ids for node in nodes for _ in range(n)]
        paths = [(*node.path, k) for node in nodes for k in range(n)]
        width, pad = max(map(len, prefixes)), self.encoder.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prefixes])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prefixes])
        keys = [node_key(self.seed, problem.id, path) for path in paths]
        out = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=self.sampling.step_tokens,
            eos_token_id=self.ends,
            pad_token_id=pad,
            logits_processor=LogitsProcessorList([Counted(keys, width, self.sampling)]),
        )[:, width:].tolist()
        children = []
        for path, parent, row in zip(paths, [node for node in nodes for _ in range(n)], out, strict=True):
            spent = sum(len(step.ids) for step in parent.steps)
            children.append(self.child(parent, path, row, self.sampling.chain_tokens - spent))
        self.tokens += sum(len(node.steps[-1].ids) for node in children)
        self.tree |= {node.path: node.steps[-1].ids for node in children}
        scored = self.verifier.score([(problem, node.trace) for node in children])
        return [
            Node(node.path, tuple(with_score(s, v) for s, v in zip(node.steps, scores, strict=True)), node.stop)
            for node, scores in zip(children, scored, strict=True)
        ]

    def child(self, parent: Node, path: tuple[int, ...], row: list[int], left: int) -> Node:
        end = next((i + 1 for i, t in enumerate(row) if t in self.ends), None)
        ids = row[: min(end or len(row), left)]
        step, stop = self.encoder.decode_step(ids)
        if end is None or end > left or (stop is None and len(ids) >= left):
            stop = "length"
        return Node(path, (*parent.steps, step), stop)


def with_score(step: Step, score: float) -> Step:
    return Step(step.text, step.final, step.ids, step.logprobs, round(score, DIGITS))
