"""The training loop under teaching and verifiers alike: transformers' Trainer, length-ordered batches, a meter."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
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

    A step is `batch` x `accumulate` rows in every process, and its loss the mean over all their items. `save`: leave a
    checkpoint after every check. `patience` > 0: stop after so many checks without a lower `watch` (a key of the
    check's numbers), and end with the best weights. `checkpointing`: recompute activations instead of keeping them.
    `paged`: on an NVIDIA GPU, AdamW whose moments may be moved out to main memory (bitsandbytes).
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
    accumulate: int = 1
    save: bool = False
    patience: int = 0
    watch: str = ""
    checkpointing: bool = False
    paged: bool = False


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
    kind = torch.optim.AdamW
    if config.paged and torch.cuda.is_available():
        from bitsandbytes.optim import PagedAdamW as kind
    adam = kind(adam, betas=(0.9, 0.95), weight_decay=config.weight_decay)
    return Both(Muon(groups["muon"], lr=config.muon_lr), adam) if groups["muon"] else adam


# --- what a run needs to go on ---


def save_state(path: Path, model, optimizer=None, **about) -> None:
    """The weights that learn, the optimiser's state and `about` (JSON) as one safetensors file: whole or not there."""
    names = {id(p): n for n, p in model.named_parameters()}
    state = {f"model.{n}": p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    numbers = []
    for part in getattr(optimizer, "parts", [optimizer] if optimizer else []):
        for p, values in part.state.items():
            for key, value in values.items():
                if not torch.is_tensor(value):
                    numbers.append(f"{key}.{names[id(p)]}")
                state[f"{key}.{names[id(p)]}"] = torch.as_tensor(value).contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"about": json.dumps(about), "numbers": json.dumps(numbers)}
    save_file(state, f"{path}.tmp", metadata=metadata)
    with open(f"{path}.tmp", "rb") as file:
        os.fsync(file.fileno())  # on the disk before it takes the old one's name
    os.replace(f"{path}.tmp", path)


def load_state(path: Path, model, optimizer=None) -> dict:
    """Back into `model` and `optimizer`; returns what was said `about` it."""
    try:
        with safe_open(path, "pt") as f:
            about, numbers = (json.loads(f.metadata()[key]) for key in ("about", "numbers"))
        state = load_file(path)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.requires_grad:
                    p.copy_(state.pop(f"model.{name}"))
    except (SafetensorError, TypeError, KeyError, RuntimeError, ValueError) as error:
        raise WorkbenchError(f"{path} is no checkpoint of this run ({error}): delete {path.parent}") from error
    parts = getattr(optimizer, "parts", [optimizer] if optimizer else [])
    part_of = {id(p): part for part in parts for group in part.param_groups for p in group["params"]}
    parameters = {n: p for n, p in model.named_parameters() if id(p) in part_of}
    for entry, value in state.items():
        key, _, name = entry.partition(".")
        if (p := parameters.get(name)) is not None:
            value = value.item() if entry in numbers else value.clone() if key == "step" else value.to(p.device)
            part_of[id(p)].state[p][key] = value
    return about


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
    """transformers' loop with our loss, rows in our order, and one file of safetensors to resume from."""

    def __init__(self, *args, loss: Callable, state: Path, seen: dict, **kwargs):
        super().__init__(*args, **kwargs)
        self.loss, self.file, self.seen = loss, state, seen
        self.model_accepts_loss_kwargs = False  # the mean over a step's items is taken here

    def _get_train_sampler(self, dataset=None):
        rows = self.train_dataset
        lengths = getattr(rows.data, "lengths", None) or [len(row.ids) for row in rows]
        return Ordered(lengths, self.args.train_batch_size, self.args.seed)

    def _get_num_items_in_batch(self, batch_samples, device):
        """Items of the whole step over all processes; None where one batch is the step, and its mean the loss."""
        if len(batch_samples) * self.args.world_size == 1 or "items" not in batch_samples[0]:
            return None
        items = sum(batch["items"].to(device) for batch in batch_samples)
        return self.accelerator.gather(items).sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None, **kwargs):
        inner = self.accelerator.unwrap_model(model)
        if inner is model:
            loss = self.loss(model, inputs)
        else:  # gradients are only shared between processes if the call goes through the wrapper's forward

            def once(batch):
                del inner.forward
                return self.loss(inner, batch)

            inner.forward = once
            loss = model(inputs)
        if num_items_in_batch is None:
            return loss
        share = inputs["items"] / num_items_in_batch  # the trainer goes on to average over batches and processes
        return loss * share * self.current_gradient_accumulation_steps * self.args.world_size

    def keep(self, about: dict) -> None:
        if self.is_world_process_zero():
            inner = self.accelerator.unwrap_model(self.model_wrapped)
            rates = [group["lr"] for group in self.optimizer.param_groups]
            about = {"trainer": asdict(self.state), "seen": self.seen, "rates": rates, **about}
            save_state(self.file, inner, self._inner(self.optimizer), **about)

    @staticmethod
    def _inner(optimizer):
        return getattr(optimizer, "optimizer", optimizer)

    def _load_from_checkpoint(self, *args, **kwargs):
        pass  # weights and moments lie in one file, which is read below

    def _load_rng_state(self, checkpoint):
        pass  # the order of rows comes from the seed, and no layer here draws numbers

    def _load_scaler(self, checkpoint):
        pass

    def _load_optimizer_and_scheduler(self, checkpoint):
        if checkpoint is None:
            return
        about = load_state(self.file, self.accelerator.unwrap_model(self.model_wrapped), self._inner(self.optimizer))
        for group, rate in zip(self.optimizer.param_groups, about["rates"], strict=True):
            group["lr"] = rate
        schedule = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        schedule.last_epoch, schedule._last_lr = about["trainer"]["global_step"], about["rates"]


class _Watch(TrainerCallback):
    """Writes the history, keeps the best weights, and stops at the target or when the loss is no number."""

    def __init__(self, config: Fit, check: Callable[[], dict] | None, log: Callable[[dict], None], best: Path):
        self.config, self.check, self.log, self.loss, self.best = config, check, log, None, best
        self.lowest, self.stale, self.trainer = math.inf, 0, None

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= state.global_step >= state.max_steps  # the last step has a row whatever check_every is

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.loss = (logs or {}).get("loss", self.loss)
        if self.loss is not None and not math.isfinite(self.loss):
            raise WorkbenchError(f"the loss is {self.loss} at step {state.global_step}: lower lr ({self.config.lr})")
        if "loss" in (logs or {}):
            found = self.check() if self.check else {}
            if self.trainer.is_world_process_zero():
                self.log({"step": state.global_step, "loss": self.loss, **found})
            if self.config.target is not None and found["accuracy"] >= self.config.target:
                control.should_training_stop = True
            if self.config.patience:
                self._compare(found[self.config.watch], control)
            if self.config.save:
                self.trainer.keep({"lowest": self.lowest, "stale": self.stale})

    def _compare(self, value: float, control) -> None:
        self.stale += 1
        if value < self.lowest:
            self.lowest, self.stale = value, 0
            if self.trainer.is_world_process_zero():
                save_state(self.best, self.trainer.accelerator.unwrap_model(self.trainer.model_wrapped))
        if self.stale >= self.config.patience:
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
    """Train `model` in place on rows that have `.ids` (or on data that has `.lengths`); returns what it cost.

    One pass over `data` is len(data) / batch steps. `check()` gives numbers for the history every
    `check_every` steps and after the last one. A batch may say how many `items` its loss is the mean of. With
    `config.save` a killed run goes on from its last check, to the same weights; `reached(folder)` says which step that
    was, and rows of the history past it come again. Under `accelerate launch` every process calls this alike; where the
    last batches of a pass are fewer than the processes, the first ones come again to fill up.
    """
    if not data:
        raise WorkbenchError("no training rows: the stage before this one left none")
    if config.steps < 1:
        raise WorkbenchError(f"{config.steps} training steps: set steps to 1 or more")
    if config.target is not None and check is None:
        raise WorkbenchError(f"a target of {config.target} needs a check that gives the accuracy")
    if config.patience and not (check and config.watch):
        raise WorkbenchError("patience needs a check, and in `watch` the name of the number that shall fall")
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch,
        gradient_accumulation_steps=config.accumulate,
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
    if config.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    folder = Path(folder)
    watch = _Watch(config, check, log, folder / "best.safetensors")
    if config.checkpointing and hasattr(model, "enable_input_require_grads"):
        model.enable_input_require_grads()  # else nothing under frozen weights would be computed again
    trainer = _Trainer(
        model=model.train(),
        args=arguments,
        train_dataset=_Rows(data),
        data_collator=collate,
        optimizers=(optimizer, schedule),
        loss=counted,
        state=folder / STATE,
        seen=seen,
        callbacks=[watch],
    )
    watch.trainer = trainer
    trainer.remove_callback(PrinterCallback)
    resume = None
    if config.save and (about := _about(folder)):
        seen.update(about["seen"])
        watch.lowest, watch.stale = about["lowest"], about["stale"]
        (resume := folder / "resumed").mkdir(exist_ok=True)
        (resume / "trainer_state.json").write_text(json.dumps(about["trainer"]))
    if resume and about["trainer"]["global_step"] >= config.steps or resume and 0 < config.patience <= watch.stale:
        load_state(folder / STATE, model)
        runtime = 0.0
    else:
        runtime = trainer.train(resume_from_checkpoint=str(resume) if resume else None).metrics["train_runtime"]
    if config.patience:
        load_state(watch.best, model)
    model.eval()
    return Cost(
        trained=seen["tokens"],
        training_flops=3 * flops(model.config, seen["tokens"], seen["context"] / seen["tokens"]),
        training_seconds=runtime,
    )


STATE = "state.safetensors"


def reached(folder: str | Path) -> int:
    """The step that a run in `folder` would go on from; 0 if it would begin."""
    about = _about(Path(folder))
    return about["trainer"]["global_step"] if about else 0


def _about(folder: Path) -> dict | None:
    path = folder / STATE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as f:
            return json.loads(f.metadata()["about"])
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise WorkbenchError(f"{path} is no checkpoint of this run ({error}): delete {folder}") from error
