"""The training loop under teaching and verifiers alike: transformers' Trainer, length-ordered batches, a meter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

from .models import flops
from .types import Cost, WorkbenchError


@dataclass(frozen=True)
class Fit:
    """Scalars of a training run: warm-up, then a cosine from the full rate to 5 % of it over `steps`.

    `lr` drives AdamW; `muon_lr` > 0 hands the hidden matrices to Muon instead; `gain_lr` > 0 is the rate of the norms'
    gains, which set how sharp the output is, hard to move by updates of a fixed size. `target`: stop once the check's
    `accuracy` reaches it, which leaves later stages (search, RL) something to gain; None never stops early.
    """

    steps: int = 800
    batch: int = 64
    lr: float = 2e-3
    muon_lr: float = 0.0
    gain_lr: float = 0.0
    warmup: int = 50
    weight_decay: float = 0.01
    check_every: int = 50
    target: float | None = None
    seed: int = 0


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised by five Newton-Schulz steps (Jordan et al. 2024), in fp32.

    `torch.optim.Muon` does the same in bfloat16 only, which a CPU without bf16 units emulates at a tenth of the
    speed; matrices of one shape are stacked here into one batched product. Weight decay is left out.
    """

    def __init__(self, params, lr: float = 0.02, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            shapes: dict[torch.Size, list] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for (rows, columns), same in shapes.items():
                for p in same:
                    momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    momentum.lerp_(p.grad, 1 - group["momentum"])
                stack = torch.stack([p.grad.lerp(self.state[p]["momentum"], group["momentum"]) for p in same])
                update = orthogonalise(stack)
                for p, u in zip(same, update, strict=True):
                    p.add_(u, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonalise(x: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """(…, m, n) matrices -> nearly the closest ones with all singular values 1 (between .7 and 1.2)."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


class Both(torch.optim.Optimizer):
    """Two optimisers stepped as one, which is what Trainer and its schedule want to hold."""

    def __init__(self, *parts: torch.optim.Optimizer):
        super().__init__([{"params": g["params"], "lr": g["lr"]} for part in parts for g in part.param_groups], {})
        self.parts = parts

    def step(self, closure=None):
        rates = iter(self.param_groups)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = next(rates)["lr"]
            part.step()


def optimiser(model, config: Fit) -> torch.optim.Optimizer:
    """AdamW for everything, or Muon for the hidden matrices and AdamW for the rest."""
    rates = {"muon": config.muon_lr, "gain": config.gain_lr or config.lr, "rest": config.lr}
    groups: dict[str, list] = {"muon": [], "gain": [], "rest": []}
    for name, p in model.named_parameters():
        if p.requires_grad:
            hidden = p.ndim == 2 and ".layers." in name and config.muon_lr
            groups["muon" if hidden else "gain" if p.ndim == 1 else "rest"].append(p)
    adam = [{"params": groups[kind], "lr": rates[kind]} for kind in ("gain", "rest") if groups[kind]]
    adam = torch.optim.AdamW(adam, betas=(0.9, 0.95), weight_decay=config.weight_decay)
    return Both(Muon(groups["muon"], lr=config.muon_lr), adam) if groups["muon"] else adam


class Ordered(torch.utils.data.Sampler):
    """Batches of like length, so that padding is small. The rows' own order is kept from window to window, so
    easy rows that come first are learnt first; batches are shuffled inside a window, the same in every process."""

    def __init__(self, lengths: Sequence[int], batch: int, seed: int, window: int = 16):
        self.lengths, self.batch, self.seed, self.window = lengths, batch, seed, window * batch

    def __len__(self):
        return len(self.lengths)

    def __iter__(self):
        g = torch.Generator().manual_seed(self.seed)
        for start in range(0, len(self.lengths), self.window):
            window = range(start, min(start + self.window, len(self.lengths)))
            part = sorted(window, key=self.lengths.__getitem__)
            batches = [part[i : i + self.batch] for i in range(0, len(part), self.batch)]
            for j in torch.randperm(len(batches), generator=g).tolist():
                yield from batches[j]


class _Trainer(Trainer):
    def __init__(self, *args, loss: Callable, **kwargs):
        super().__init__(*args, **kwargs)
        self.loss = loss

    def _get_train_sampler(self, dataset=None):
        return Ordered([len(r.ids) for r in self.train_dataset], self.args.train_batch_size, self.args.seed)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        return self.loss(model, inputs)


class _Watch(TrainerCallback):
    """Writes the history and stops at the target, or when the loss is no number."""

    def __init__(self, config: Fit, check: Callable[[], dict] | None, log: Callable[[dict], None]):
        self.config, self.check, self.log, self.loss = config, check, log, None

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= state.global_step >= state.max_steps  # the last step has a row whatever check_every is

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.loss = (logs or {}).get("loss", self.loss)
        if self.loss is not None and not math.isfinite(self.loss):
            raise WorkbenchError(f"the loss is {self.loss} at step {state.global_step}: lower lr ({self.config.lr})")
        if "loss" in (logs or {}):
            found = self.check() if self.check else {}
            self.log({"step": state.global_step, "loss": self.loss, **found})
            if self.config.target is not None and found["accuracy"] >= self.config.target:
                control.should_training_stop = True


class _Rows(torch.utils.data.Dataset):
    def __init__(self, data: Sequence):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        return self.data[i]

    def __iter__(self):
        return iter(self.data)


def fit(
    model,
    data: Sequence,
    collate: Callable[[Sequence], dict[str, torch.Tensor]],
    loss: Callable,
    config: Fit,
    folder: str | Path,
    check: Callable[[], dict] | None = None,
    log: Callable[[dict], None] = print,
    progress: bool = True,
) -> Cost:
    """Train `model` in place on rows that have `.ids`; returns what it cost.

    One pass over `data` is len(data) / batch steps. `check()` gives numbers for the history every
    `check_every` steps and after the last one. Checkpoints inside a run are left out: the whole stage is the unit.
    """
    if not data:
        raise WorkbenchError("no training rows: the stage before this one left none")
    if config.steps < 1:
        raise WorkbenchError(f"{config.steps} training steps: set steps to 1 or more")
    if config.target is not None and check is None:
        raise WorkbenchError(f"a target of {config.target} needs a check that gives the accuracy")
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch,
        max_grad_norm=1.0,
        logging_steps=config.check_every,
        logging_nan_inf_filter=False,  # which would log a loss of 0 in place of NaN
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=not progress,
        seed=config.seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
    )
    seen = {"tokens": 0, "context": 0.0}

    def counted(model, batch):  # here and not in collate: a loader reads a batch ahead
        tokens = batch["input_ids"].numel()
        seen["tokens"] += tokens
        seen["context"] += tokens * (batch["input_ids"].shape[1] + 1) / 2
        return loss(model, batch)

    optimizer = optimiser(model, config)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(optimizer, config.warmup, config.steps, min_lr_rate=0.05)
    trainer = _Trainer(
        model=model.train(),
        args=arguments,
        train_dataset=_Rows(data),
        data_collator=collate,
        optimizers=(optimizer, schedule),
        loss=counted,
        callbacks=[_Watch(config, check, log)],
    )
    trainer.remove_callback(PrinterCallback)
    done = trainer.train()
    model.eval()
    return Cost(
        trained=seen["tokens"],
        training_flops=3 * flops(model.config, seen["tokens"], seen["context"] / seen["tokens"]),
        training_seconds=done.metrics["train_runtime"],
    )
