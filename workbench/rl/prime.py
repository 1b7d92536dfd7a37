"""PRIME: the process reward is an implicit PRM that learns from outcomes while the policy does."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from ..fit import Fit, load_state, optimiser, save_state
from ..labels import right_answer
from ..packing import collate, judged
from ..types import Cost, WorkbenchError
from ..verifiers.implicit import Implicit, implicit_loss
from .rewards import Earned, Items, judging


class Prime:
    """A step earns beta * (log pi_phi - log pi_ref) of its tokens; pi_phi then learns the chains' outcomes.

    `model`: pi_phi, at the start the policy's weights, a model of its own; `reference`: those weights, frozen. Chains
    earn nothing as a whole: mix with `outcome`, as the paper does. After each step one optimiser step fits
    sigmoid(beta * sum of log-ratios) to the outcomes by cross-entropy.
    Source: Cui et al. 2025 (arXiv 2502.01456), algorithm 1. Left out: filtering prompts by accuracy (the variant `dapo`
    does the like), updates before judging, several processes.

    >>> reward = mixture((1.0, outcome), (1.0, Prime(model, reference, tokenizer)))  # doctest: +SKIP
    """

    def __init__(self, model, reference, tokenizer, beta: float = 0.05, lr: float = 1e-4, batch: int = 64):
        if model is reference:
            raise WorkbenchError("the model that learns is its own reference: copy.deepcopy it first")
        self.model, self.reference, self.beta, self.batch = model, reference.eval(), beta, batch
        self.verifier = Implicit(model, tokenizer, reference, beta, cache=0)
        self.encoder, self.pad = self.verifier.encoder, tokenizer.pad_token_id
        self.optimizer = optimiser(model, Fit(lr=lr, weight_decay=0.0))

    def __call__(self, items: Items) -> Earned:
        begin = time.perf_counter()
        ratios = self.verifier.log_ratio(items) if items else []
        steps = [
            [self.beta * x if trace.stop == "answer" else 0.0 for x in row]
            for (_, trace), row in zip(items, ratios, strict=True)
        ]
        cost = judging(self.verifier, items) + Cost(verifier_seconds=time.perf_counter() - begin)
        return Earned([0.0] * len(items), steps, cost)

    def learn(self, items: Items) -> Cost:
        """One optimiser step on the outcomes of these chains; returns what it cost."""
        begin = time.perf_counter()
        rows = [
            judged(p, trace, [float(right_answer(p, trace))] * len(trace.steps), self.encoder, outcome=True)
            for p, trace in items
            if trace.steps
        ]
        self.model.eval()  # dropout's dice would be others where a killed run goes on
        self.optimizer.zero_grad(set_to_none=True)
        flops = 0.0
        for at in range(0, len(rows), self.batch):
            part = rows[at : at + self.batch]
            batch = {k: v.to(self.model.device) for k, v in collate(part, self.pad).items()}
            (implicit_loss(self.model, self.reference, batch, self.beta) * len(part) / len(rows)).backward()
            flops += sum(2 * self.verifier.flops(0, len(row.ids)) for row in part)  # three passes, and the reference's
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise WorkbenchError("the reward model's gradient is not finite: lower its lr; the last checkpoint is kept")
        self.optimizer.step()
        tokens = sum(len(row.ids) for row in rows)
        return Cost(trained=tokens, training_flops=flops, training_seconds=time.perf_counter() - begin)

    def save(self, path: Path) -> None:
        save_state(path, self.model, self.optimizer)

    def load(self, path: Path) -> None:
        load_state(path, self.model, self.optimizer)
