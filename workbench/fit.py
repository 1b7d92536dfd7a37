"""The training loop under teaching and verifiers alike: transformers' Trainer, length-ordered batches, a meter."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

from . import tasks
from .kv import core
from .models import training_flops
from .types import Cost, WorkbenchError, in_range


@dataclass(frozen=True)
class Fit:
    """Scalars of a training run: warm-up, then a cosine from the full rate to 5 % of it over `steps`.

    `lr` drives AdamW; `muon_lr` > 0 hands the hidden matrices to Muon instead; `gain_lr` > 0 is the rate of the norms'
    gains, which set how sharp the output is, hard to move by updates of a fixed size; `head_lr` > 0 that of a
    classifier's head, which such updates move too far where all its inputs are alike. `target`: stop once the check's
    `accuracy` reaches it, which leaves later stages (search, RL) something to gain; None never stops early.

    A step is `batch` x `accumulate` rows in every process, and its loss the mean over all their items. `save`: leave a
    checkpoint after every check. `patience` > 0: stop after so many checks in a row without a lower `watch` (a key of
    the check's numbers; a higher one if `-` stands before the key), and end with the best weights. `checkpointing`:
    recompute activations instead of keeping them. `paged`: on an NVIDIA GPU, AdamW whose moments may be moved out to
    main memory (bitsandbytes); elsewhere the plain one, and the log says so.
    """

    steps: int = 800
    batch: int = 64
    lr: float = 2e-3
    muon_lr: float = 0.0
    gain_lr: float = 0.0
    head_lr: float = 0.0
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

    def __post_init__(self):
        in_range(self, "steps batch check_every accumulate", 1)
        in_range(self, "lr", 0, above=True)
        in_range(self, "muon_lr gain_lr head_lr warmup weight_decay patience", 0)


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
    rates = {"gain": config.gain_lr or config.lr, "head": config.head_lr or config.lr, "rest": config.lr}
    groups: dict[str, list] = {"muon": [], **{kind: [] for kind in rates}}
    for name, p in model.named_parameters():
        if p.requires_grad:
            # a factor of an adapter is no matrix of its own: orthogonalised, one that is still zero moves at full rate
            hidden = p.ndim == 2 and ".layers." in name and "lora_" not in name and config.muon_lr
            head, gain = config.head_lr and ".score." in f".{name}", p.ndim == 1 and "norm" in name
            groups["muon" if hidden else "head" if head else "gain" if gain else "rest"].append(p)
    adam = [{"params": groups[kind], "lr": rates[kind]} for kind in rates if groups[kind]]
    kind = torch.optim.AdamW
    if config.paged and torch.cuda.is_available():
        from bitsandbytes.optim import PagedAdamW as kind
    parts = [Muon(groups["muon"], lr=config.muon_lr)] if groups["muon"] else []
    parts += [kind(adam, betas=(0.9, 0.95), weight_decay=config.weight_decay)] if adam else []
    return parts[0] if len(parts) == 1 else Both(*parts)


# --- what a run needs to go on ---


def save_state(path: Path, model, optimizer=None, **about) -> None:
    """The weights that learn, the optimiser's state and `about` (JSON) as one safetensors file: whole or not there."""
    names = {id(p): n for n, p in model.named_parameters()}
    state = {f"model.{n}": p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    numbers = []
    for part in _parts(optimizer):
        for p, values in part.state.items():
            for key, value in values.items():
                if not torch.is_tensor(value):
                    numbers.append(f"{key}.{names[id(p)]}")
                # 8-bit moments of all parameters share one table, which a file may not
                value = value.clone() if key.startswith("qmap") else torch.as_tensor(value).contiguous()
                state[f"{key}.{names[id(p)]}"] = value
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
                    value = state.pop(f"model.{name}")
                    if value.shape != p.shape:
                        raise ValueError(f"{name} is {tuple(value.shape)}, not {tuple(p.shape)}")
                    p.copy_(value)
        if beside := next((key for key in state if key.startswith("model.")), None):
            raise ValueError(f"{beside} does not learn here")
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise WorkbenchError(f"{path} is no checkpoint of this run ({error}): delete {path.parent}") from error
    part_of = {id(p): part for part in _parts(optimizer) for group in part.param_groups for p in group["params"]}
    parameters = {n: p for n, p in model.named_parameters() if id(p) in part_of}
    for entry, value in state.items():
        key, _, name = entry.partition(".")
        if (p := parameters.get(name)) is not None:
            part_of[id(p)].state[p][key] = value.item() if entry in numbers else _placed(value, key, p, part_of[id(p)])
    return about


def _parts(optimizer) -> list[torch.optim.Optimizer]:
    return getattr(optimizer, "parts", [optimizer] if optimizer else [])


def _placed(value: torch.Tensor, key: str, p: torch.Tensor, part: torch.optim.Optimizer) -> torch.Tensor:
    """A copy where the optimiser wants it: AdamW counts steps in main memory, moments that may move have a place."""
    if hasattr(part, "get_state_buffer") and value.shape == p.shape:
        return part.get_state_buffer(p, value.dtype).copy_(value)
    return value.clone() if key == "step" else value.to(p.device, copy=True)


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

    def __init__(self, *args, loss: Callable, state: Path, **kwargs):
        super().__init__(*args, **kwargs)
        self.loss, self.file = loss, state
        self.seen = {"tokens": 0, "context": 0.0, "seconds": 0.0}  # by this process, and before it went on
        self.began = time.perf_counter()
        self.model_accepts_loss_kwargs = False  # the mean over a step's items is taken here

    def _get_train_sampler(self, dataset=None):
        rows = self.train_dataset
        lengths = getattr(rows, "lengths", None)
        lengths = [len(row.ids) for row in rows] if lengths is None else lengths
        return Ordered(lengths, self.args.train_batch_size, self.args.seed)

    def _clip_grad_norm(self, model):
        norm = super()._clip_grad_norm(model)
        if not math.isfinite(norm):  # before the step, so that weights and the last checkpoint stay good
            step = self.state.global_step + 1
            raise WorkbenchError(f"the gradient is {float(norm)} at step {step}: lower lr; what was saved before stays")
        return norm

    def _get_num_items_in_batch(self, batch_samples, device):
        """Items of the whole step over all processes; None where one batch is the step, and its mean the loss."""
        if len(batch_samples) * self.args.world_size == 1 or "items" not in batch_samples[0]:
            return None
        items = sum(batch["items"].sum().to(device) for batch in batch_samples)
        return self.accelerator.gather(items).sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None, **kwargs):
        tokens = inputs["input_ids"].numel()  # counted here and not in collate: a loader reads a batch ahead
        self.seen["tokens"] += tokens
        self.seen["context"] += tokens * (inputs["input_ids"].shape[1] + 1) / 2
        loss = self._loss(model, inputs)
        if num_items_in_batch is None:
            return loss
        share = inputs["items"].sum() / num_items_in_batch  # the trainer goes on to average over batches and processes
        return loss * share * self.current_gradient_accumulation_steps * self.args.world_size

    def _loss(self, model, inputs):
        inner = self.accelerator.unwrap_model(model)
        if inner is model:
            return self.loss(model, inputs)
        # processes share gradients only if the call goes through the wrapper's forward, which calls the model's
        own = vars(inner).get("forward")  # a forward of its own, such as mixed precision's, comes back

        def once(batch):
            vars(inner).pop("forward")
            if own:
                inner.forward = own
            return self.loss(inner, batch)

        inner.forward = once
        return model(inputs)

    def spent(self) -> dict:
        """Tokens (and their contexts) that all processes have seen, and seconds, of all parts of the run."""
        counts = torch.tensor([self.seen["tokens"], self.seen["context"]], dtype=torch.float64)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts.to(self.args.device))
        seconds = self.seen["seconds"] + time.perf_counter() - self.began
        return {"tokens": int(counts[0]), "context": float(counts[1]), "seconds": seconds}

    def keep(self, **about) -> None:
        about |= {
            "trainer": asdict(self.state),
            "seen": self.spent(),
            "rates": [group["lr"] for group in self.optimizer.param_groups],
        }
        if self.is_world_process_zero():
            save_state(self.file, self.accelerator.unwrap_model(self.model_wrapped), self._inner(), **about)

    def _inner(self):
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _load_from_checkpoint(self, *args, **kwargs):
        pass  # weights and moments lie in one file, which is read below

    def _load_rng_state(self, checkpoint):
        pass  # every step has a seed of its own

    def _load_scaler(self, checkpoint):
        pass  # only half precision has one, and what learns here is fp32

    def _load_optimizer_and_scheduler(self, checkpoint):
        if checkpoint is None:
            return
        about = load_state(self.file, self.accelerator.unwrap_model(self.model_wrapped), self._inner())
        for group, rate in zip(self.optimizer.param_groups, about["rates"], strict=True):
            group["lr"] = rate
        schedule = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        schedule.last_epoch, schedule._last_lr = about["trainer"]["global_step"], about["rates"]


class _Watch(TrainerCallback):
    """Seeds each step, writes the history, keeps the best weights, and stops where `Fit` says or the loss is none."""

    def __init__(self, config: Fit, check: Callable[[], dict] | None, log: Callable[[dict], None], best: Path):
        self.config, self.check, self.log, self.best = config, check, log, best
        self.lowest, self.best_step, self.stale = None, None, 0
        self.run: dict = {}  # what a checkpoint must agree with to be gone on from
        self.trainer: _Trainer = None

    def on_step_begin(self, args, state, control, **kwargs):
        # by counter, so that dropout is the same whatever was drawn before: by a check, or by a run that was killed
        set_seed(tasks.digest("training step", args.seed, state.global_step, args.process_index) % 2**32)

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= state.global_step >= state.max_steps  # the last step has a row whatever check_every is

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in (logs or {}):
            return
        loss, config = logs["loss"], self.config
        if not math.isfinite(loss):
            raise WorkbenchError(f"the loss is {loss} at step {state.global_step}: lower lr ({config.lr})")
        row = {"step": state.global_step, "loss": loss, **(self.check() if self.check else {})}
        stop = config.target is not None and row["accuracy"] >= config.target
        if config.patience:
            self._compare(row)
            stop |= self.stale >= config.patience
        if self.trainer.is_world_process_zero():
            self.log(row)
        if config.save:  # after the row: what the checkpoint has seen, the history has
            done = stop or state.global_step >= state.max_steps
            self.trainer.keep(run=self.run, done=done, best=[self.lowest, self.best_step, self.stale])
        control.should_training_stop |= stop

    def _compare(self, row: dict) -> None:
        key = self.config.watch.removeprefix("-")
        if key not in row:
            raise WorkbenchError(f"the check gives no {key!r} to watch, only {', '.join(row)}")
        value, self.stale = row[key], self.stale + 1
        if value is not None and math.isfinite(value):  # unknown is never better
            value = -value if self.config.watch.startswith("-") else value
            if self.lowest is None or value < self.lowest:
                self.lowest, self.best_step, self.stale = value, row["step"], 0
                if self.trainer.is_world_process_zero():
                    save_state(self.best, self.trainer.accelerator.unwrap_model(self.trainer.model_wrapped))
        row["best"] = self.best_step


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
    head: bool | None = None,
    of: Mapping[str, Any] = MappingProxyType({}),
) -> Cost:
    """Train `model` in place on rows that have `.ids` (or on data that has `.lengths`); returns what it cost.

    One pass over `data` is len(data) / (batch x accumulate x processes) steps. `check()` gives numbers for the history
    every `check_every` steps and after the last one; with `patience`, a row also says which step was the `best` so far.
    A batch may say how many `items` its loss is the mean of; without, batches count alike. `head`: whether the loss
    runs the language model's head, for the bill (None: if there is one). `of`: names and JSON values that tell this run
    from another, such as a hash of its rows; a checkpoint that says otherwise of one of them is of another run.
    With `config.save` a killed run goes on from its last check, to the same weights, and a finished one is only read;
    `reached(folder)` says which step that was, and rows of the history past it come again. `folder` is the run's own.
    Under `accelerate launch` every process calls this alike; process 0 writes, into a folder that all can read.

    Errors: a loss that is no number; a checkpoint that is damaged, or of another run.
    Left out: several processes fill the last step of a pass up with rows of its beginning, where one does a short step.
    """
    if not data:
        raise WorkbenchError("no training rows: the stage before this one left none")
    if config.target is not None and check is None:
        raise WorkbenchError(f"a target of {config.target} needs a check that gives the accuracy")
    if config.patience and not (check and config.watch):
        raise WorkbenchError("patience needs a check, and in `watch` the name of the number that shall fall")
    folder = Path(folder)
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
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process, one GPU: several of them through `accelerate launch`
    optimizer = optimiser(model, config)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(optimizer, config.warmup, config.steps, min_lr_rate=0.05)
    if config.checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        # that inputs ask for gradients only the other kind wants; here layers that stay as they are would run again
        core(model).disable_input_require_grads()
    watch = _Watch(config, check, log, folder / "best.safetensors")
    watch.run = {**of, **asdict(config), "rows": len(data), "processes": arguments.world_size}
    watch.trainer = trainer = _Trainer(
        model=model.train(),
        args=arguments,
        train_dataset=data,
        data_collator=collate,
        optimizers=(optimizer, schedule),
        loss=loss,
        state=folder / STATE,
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    about = _about(folder) if config.save else None
    if about is None:
        if config.paged and not torch.cuda.is_available() and trainer.is_world_process_zero():
            log({"note": "no NVIDIA GPU, so AdamW keeps its moments where the weights are"})
        trainer.train()
    else:
        was = {"head_lr": 0.0, **about["run"]}  # of an older release it says less, which is no disagreement
        if changed := [k for k, v in watch.run.items() if was.get(k, v) != v]:
            changed = ", ".join(f"{k} was {was[k]}, is {watch.run[k]}" for k in changed)
            raise WorkbenchError(f"{folder / STATE} is of another run ({changed}): delete {folder} to begin this one")
        watch.lowest, watch.best_step, watch.stale = about["best"]
        if trainer.is_world_process_zero():
            trainer.seen |= about["seen"]
        if about["done"]:
            load_state(folder / STATE, model)
            trainer.began = time.perf_counter()
        else:
            with tempfile.TemporaryDirectory() as scratch:
                (Path(scratch) / "trainer_state.json").write_text(json.dumps(about["trainer"]))
                trainer.train(resume_from_checkpoint=scratch)
    spent = trainer.spent()
    if watch.best_step is not None:
        trainer.accelerator.wait_for_everyone()
        load_state(watch.best, model)
    model.eval()
    return Cost(
        trained=spent["tokens"],
        training_flops=training_flops(
            model, spent["tokens"], spent["context"] / spent["tokens"], head, config.checkpointing
        ),
        training_seconds=spent["seconds"],
    )


def team() -> PartialState:
    """The processes of `accelerate launch`, or this one alone.

    Without a GPU it must be told of the CPU, or each process takes itself for the only one and waits for none.
    """
    return PartialState(cpu=not torch.cuda.is_available())


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
