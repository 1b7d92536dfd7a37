"""Process and outcome reward models: a transformers trunk with a linear head on step ends."""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from .. import tasks
from ..adapters import adapter_of, fast_dtype, four_bit, prepare, refuse_pickles, switched
from ..fit import Fit, Ordered, fit, reached, team
from ..format import WRITTEN, Encoder, tokenised
from ..kv import Reader, core
from ..models import Need, Price, load_model, load_tokenizer, memory, placed, read_json
from ..packing import UNKNOWN, Judged, Store, collate, judged, mask_after_error, pack, read_trees  # noqa: F401
from ..runs import hash_file, hash_tree
from ..smollm2 import on_disk
from ..types import Cost, Labelled, Problem, ProblemError, Trace, WorkbenchError, in_range

VERDICT = (" Yes", " No")  # the two tokens of a PRM that stays a language model


def trunk(model):
    """The part of a transformers model that gives hidden states, whatever wraps the model."""
    inner = core(model)
    return getattr(inner, inner.base_model_prefix)


def judge(model, hidden: torch.Tensor) -> torch.Tensor:
    """Logit that a step is right, from the hidden state at its end (..., width) -> (...).

    A token classifier's linear head; or, where the config names two `verdict` tokens, how much likelier a language
    model holds the first of them than the second, which needs no head of its own.
    """
    inner = core(model)
    if hasattr(inner, "score"):
        dtype = next(inner.score.parameters()).dtype  # a head that learns is fp32, whatever the trunk is
        return inner.score(hidden.to(dtype)).squeeze(-1).float()
    yes, no = inner.get_output_embeddings().weight[list(inner.config.verdict)]
    return F.linear(hidden, (yes - no)[None]).squeeze(-1).float()


def step_logits(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(rows, steps) logit at every step end. Training and scoring both come through here."""
    seen = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids") if k in batch}
    hidden = trunk(model)(**seen).last_hidden_state
    return judge(model, hidden.gather(1, batch["ends"].unsqueeze(-1).expand(-1, -1, hidden.shape[-1])))


def bce(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean binary cross-entropy over the labelled step ends, hard or soft."""
    known = batch["labels"] != UNKNOWN
    return F.binary_cross_entropy_with_logits(step_logits(model, batch)[known], batch["labels"][known])


def from_policy(policy, extra_layers: int = 0):
    """A token classifier on the policy's trunk, its head at zero; `extra_layers` more layers start as identities.

    A position attends only to what lower layers made of earlier ones. The policy knows which digit *should* come in
    its last layer, so a head of the same depth cannot compare that with the digit that *did* come; one may try more.
    """
    from transformers import LlamaForTokenClassification

    known = {k: v for k, v in policy.config.to_dict().items() if k not in ("id2label", "label2id", "architectures")}
    config = type(policy.config)(**known, num_labels=1)
    config.num_hidden_layers += extra_layers
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[0]] * config.num_hidden_layers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForTokenClassification(config)
    missing = model.model.load_state_dict(policy.model.state_dict(), strict=False).missing_keys
    if any(int(name.split(".")[1]) < policy.config.num_hidden_layers for name in missing if name.startswith("layers.")):
        raise WorkbenchError(f"the policy lacks {missing[0]}: only Llama-like policies can become a PRM")
    with torch.no_grad():
        for layer in model.model.layers[policy.config.num_hidden_layers :]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.score.weight.zero_()
        if model.score.bias is not None:
            model.score.bias.zero_()
    return model


class PRM:
    """Scores every step in 0-1 with a trained token classifier.

    `aggregate`: `min` suits labels of correctness; outcomes, and labels between 0 and 1, are values and want `last`;
    left out it is what the checkpoint learnt (Math-Shepherd's + and - are read as marks of correctness). `cache` bytes
    are kept of what was read, so that scoring a step reads the step; 0 reads chains whole, to the bit as training does.
    `adapter`: the one of the model's that is the PRM, switched on for each call; a language model needs no head.
    """

    def __init__(
        self,
        model,
        tokenizer,
        aggregate: str = "min",
        batch: int = 256,
        cache: int = 1 << 28,
        adapter: str | None = None,
    ):
        self.model, self.encoder, self.aggregate, self.batch = model.eval(), Encoder(tokenizer), aggregate, batch
        self.pad, self.read = tokenizer.pad_token_id, []
        self.reader = Reader(model, cache) if cache else None
        self.on = partial(switched, model, adapter_of(model, adapter)) if adapter else nullcontext
        if not hasattr(core(model), "score") and not getattr(core(model).config, "verdict", None):
            core(model).config.verdict = tuple(verdict(tokenizer))

    @classmethod
    def load(
        cls,
        folder: str | Path,
        base: str | Path | None = None,
        quantised: bool | None = None,
        dtype: str = "auto",
        aggregate: str | None = None,
        **more,
    ) -> PRM:
        """A checkpoint: whole weights, or an adapter (on the base that it names, or on `base`; `quantised` in NF4).

        `aggregate` is by default the one that suits what it learnt, as it says itself.
        """
        said = about(folder)
        aggregate = aggregate or said.get("aggregate") or ("last" if said.get("outcome") else "min")
        return cls(*open_checkpoint(folder, base, quantised, dtype), aggregate=aggregate, **more)

    @cached_property
    def flops(self) -> Price:
        return Price(self.model.config, head=False)  # one number a step: nothing

    @torch.inference_mode()
    def score(self, items: Sequence[tuple[Problem, Trace]]) -> list[tuple[float, ...]]:
        with self.on():
            if self.reader is None:
                return in_batches(self, items, lambda batch: step_logits(self.model, batch).sigmoid())
            return by_step(self, items, self._judge, ahead=0)

    def score_trees(
        self, items: Sequence[tuple[Problem, Trace]], progress: bool = False
    ) -> list[tuple[float | None, ...]]:
        """As `score`, for many chains at once that share what they begin with, such as a labelled data set's."""
        limit = getattr(self.model.config, "max_position_embeddings", None) or 8192
        with self.on():
            return read_trees(
                trunk(self.model),
                self.encoder,
                items,
                lambda h, ids, before, ends: judge(self.model, h[ends]).sigmoid().tolist(),
                limit=limit,
                progress=progress,
            )

    def _judge(self, hidden: list[torch.Tensor], after) -> list[float]:
        return judge(self.model, torch.stack([states[-1] for states in hidden])).sigmoid().tolist()


def fits(verifier, items: Sequence[tuple[Problem, Trace]]) -> list:
    """The items encoded; a chain that is longer than the context is a ProblemError."""
    codes = [verifier.encoder.encode(problem.prompt, trace.steps) for problem, trace in items]
    limit = getattr(verifier.model.config, "max_position_embeddings", None) or math.inf
    bad = [
        (problem.id, len(code.ids)) for (problem, _), code in zip(items, codes, strict=True) if len(code.ids) > limit
    ]
    if bad:
        raise ProblemError(
            {id: f"a chain of {n} tokens does not fit the verifier's context of {limit}" for id, n in bad}
        )
    return codes


def by_step(verifier, items: Sequence[tuple[Problem, Trace]], judge, ahead: int) -> list[tuple[float, ...]]:
    """Chains through the verifier's reader; a step is judged where it ends, or `ahead` tokens before that."""
    codes = fits(verifier, items)
    cuts = [[code.prompt_length - ahead, *(end + 1 - ahead for end in code.step_ends)] for code in codes]
    chains = [(tuple(code.ids), cut) for code, cut in zip(codes, cuts, strict=True)]
    scores, verifier.read = verifier.reader.notes(chains, judge)
    return scores


def steps_of_tokens(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, width - 1), for every token from the second on: the step it belongs to, and whether it belongs to one.

    A token's step is how many steps ended before it; tokens of the prompt, and behind the last step, belong to none.
    """
    ids, ends = batch["input_ids"], batch["ends"]
    place = torch.arange(1, ids.shape[1], device=ids.device)
    real = torch.arange(ends.shape[1], device=ids.device) < batch["steps"][:, None]
    past = (place[None, :, None] > ends.masked_fill(~real, ids.shape[1])[:, None, :]).sum(-1)
    inside = (place >= batch["start"][:, None]) & (past < batch["steps"][:, None])
    return past.clamp(max=ends.shape[1] - 1), inside


def in_batches(verifier, items: Sequence[tuple[Problem, Trace]], judge) -> list[tuple[float, ...]]:
    """Chains of like length together through `judge(batch) -> (rows, steps)`, back in the order they came."""
    rows = []
    for code in fits(verifier, items):
        unknown = [UNKNOWN] * len(code.step_ends)
        rows.append(Judged(code.ids, code.prompt_length, code.step_ends, unknown))
    verifier.read = [len(row.ids) for row in rows]
    out: list[tuple[float, ...]] = [()] * len(rows)
    order = sorted((i for i in range(len(rows)) if rows[i].ends), key=lambda i: len(rows[i].ids))
    for first in range(0, len(order), verifier.batch):
        part = order[first : first + verifier.batch]
        batch = collate([rows[i] for i in part], verifier.pad)
        scores = judge({k: v.to(verifier.model.device) for k, v in batch.items()})
        for i, row in zip(part, scores.tolist(), strict=True):
            out[i] = tuple(row[: len(rows[i].ends)])
    return out


# --- training on a pre-trained base ---


@dataclass(frozen=True)
class Training:
    """A process reward model on a pre-trained base: which weights learn, what a row is, and the schedule.

    `method`: `full` (fp32 weights), `lora` (adapters on a base that stays as it is) or `qlora` (the same on a base in
    4-bit NF4 with double quantisation). `head`: `linear` (a new one, never quantised) or `verdict` (the log-odds of
    two tokens, so that the model stays a language model). `outcome`: an ORM, from chains with an answer (see
    `packing.earned`). `dtype` of the base and of the computing, `auto` is bfloat16 where the hardware multiplies it;
    what learns is fp32.
    `capacity`: tokens of a row, `batch` rows are computed at a time, `batch` x `accumulate` (x processes) make a step.
    `top`: of the trunk's layers so many from the top learn, and nothing flows back below them; 0 for all.
    `head_lr`: a linear head's rate (0: `lr`). What a pre-trained trunk gives at all steps is mostly one and the same
    vector, along which AdamW at a rate for adapters would move all scores to and fro.
    `held_out`: share of problems that are kept for the check; with `patience` > 0 the run stops after so many checks
    without a better loss, and the best weights are kept. A short run takes fewer rows (`epochs`), with all labels in
    them alike: of chains that are drawn, most steps are the right ones that they share.
    """

    method: str = "lora"
    head: str = "linear"
    outcome: bool = False
    dtype: str = "auto"
    rank: int = 16
    capacity: int = 512
    top: int = 0
    batch: int = 2
    accumulate: int = 2
    epochs: float = 1.0
    steps: int = 0  # > 0 goes before epochs
    lr: float = 3e-4
    head_lr: float = 1e-4
    warmup: float = 0.1  # share of the steps
    held_out: float = 0.03
    check_every: int = 50
    patience: int = 0
    checkpointing: bool = False
    seed: int = 0

    def __post_init__(self):
        for name, known in (("method", ("full", "lora", "qlora")), ("head", ("linear", "verdict"))):
            if getattr(self, name) not in known:
                raise WorkbenchError(f"{name}={getattr(self, name)!r}: one of {', '.join(known)}")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise WorkbenchError(f"dtype={self.dtype!r}: auto, float32, bfloat16 or float16")
        in_range(self, "rank capacity batch accumulate check_every", 1)
        in_range(self, "lr epochs", 0, above=True)
        in_range(self, "head_lr steps patience top", 0)
        in_range(self, "warmup", 0, 1)
        if not 0 <= self.held_out < 1:
            raise WorkbenchError(f"held_out={self.held_out}: a share of the problems, from 0 to below 1")
        if self.patience and not self.held_out:
            raise WorkbenchError(
                f"patience={self.patience} waits for a better loss on held-out problems, and held_out=0 holds none "
                "out: raise held_out, or leave patience at 0"
            )

    def memory(self, shape: Mapping[str, int], width: int) -> Need:
        """Reckoned for a base of this shape, `width` bytes a number of it."""
        shape = SimpleNamespace(**shape)
        return memory(shape, self.method, self.batch, self.capacity, self.rank, width, self.checkpointing, self.top)


@dataclass(frozen=True)
class Size:
    """A base and how a PRM is trained on it: profiles differ in these scalars only. `minutes` for PRM800K's phase 1."""

    base: str
    training: Training
    minutes: int
    note: str
    shape: Mapping[str, int]  # of the base, so that memory is known before it is fetched

    def memory(self, width: int) -> Need:
        return self.training.memory(self.shape, width)


_SHAPE = "hidden_size num_hidden_layers intermediate_size num_attention_heads num_key_value_heads head_dim vocab_size"
_SMOLLM2 = dict(zip(_SHAPE.split(), (576, 30, 1536, 9, 3, 64, 49158), strict=True))
_QWEN = dict(zip(_SHAPE.split(), (1536, 28, 8960, 12, 2, 128, 151936), strict=True))
SIZES = {
    "small": Size(
        "smollm2",
        Training("qlora", top=10, capacity=768, batch=2, accumulate=1, epochs=0.5, lr=5e-4),
        120,
        "two CPU cores, reckoned from some steps (an hour where they have bf16 units)",
        _SMOLLM2,
    ),
    "gpu": Size(
        "Qwen/Qwen2.5-1.5B-Instruct",
        Training("qlora", capacity=1024, batch=8, accumulate=4, lr=1e-4, checkpointing=True),
        60,
        "one GPU of 24 GB, estimated",
        _QWEN,
    ),
}


def train(
    chains: Iterable[Labelled],
    base: str | Path,
    folder: str | Path,
    config: Training = Training(),
    reported: Iterable[str] = (),
    log: Callable[[dict], None] = print,
    progress: bool = True,
) -> tuple[Path, Cost]:
    """Train a PRM on labelled chains; returns (the checkpoint's folder, what it cost).

    `chains` can be read more than once (`stepdata.Rows`, a list). `base`: a checkpoint folder or hub id of a causal
    language model. `reported`: prompts of the problems that the PRM will be measured on; a run that would learn from
    one of them is refused. `folder` gets `rows/` (the packed rows), the trainer's checkpoint, from which a killed run
    goes on, and `model/`: an adapter or whole weights, the tokenizer, and `prm.json`.
    Errors: overlap, no label that fits, an unknown method, a base that is no safetensors checkpoint.
    Left out: a language-model loss beside the verdict's.
    """
    folder = Path(folder)
    model, tokenizer = open_base(base, config)
    encoder = Encoder(tokenizer)
    tasks.refuse_overlap((chain.problem.prompt for chain in chains), reported, str(folder))

    def part(held: bool):
        limit = round(config.held_out * 2**20)
        for chain in chains:  # by the words of the question, so that no printing of it is on both sides
            if (tasks.digest("held out", config.seed, tasks.plain(chain.problem.prompt)) % 2**20 < limit) == held:
                yield chain

    counts: dict[str, int] = {}
    shared = dict(capacity=config.capacity, outcome=config.outcome)
    with team().main_process_first():  # the others read what the first wrote
        if team().is_main_process:
            Store.write(folder / "rows" / "train", pack(part(False), encoder, counts=counts, **shared))
            if config.held_out:
                try:
                    Store.write(folder / "rows" / "held-out", pack(part(True), encoder, **shared))
                except WorkbenchError as error:
                    why = f"{error}. Of all problems {config.held_out:g} are held out: raise held_out, or set it to 0"
                    raise WorkbenchError(why) from error
    rows = Store(folder / "rows" / "train", seed=config.seed)
    held = Store(folder / "rows" / "held-out") if config.held_out else None
    parts = ("train", "held-out") if config.held_out else ("train",)
    hashes = {f"{part} rows": hash_file(folder / "rows" / part / "rows.bin")[:16] for part in parts}
    size = config.batch * config.accumulate * int(os.environ.get("WORLD_SIZE", 1))
    steps = config.steps or max(1, round(config.epochs * len(rows) / size))
    if counts and not reached(folder / "trainer"):
        log(
            {
                "rows": len(rows),
                "labels": rows.labels,
                "tokens": counts["tokens"],
                "padding": padding(rows.lengths, config.batch, config.seed),
                "tokens, each chain alone": counts["straight"],
                "labels that do not fit": counts["too long"],
                **({"chains without an outcome": counts["no outcome"]} if config.outcome else {}),
                "held-out labels": held.labels if held else 0,
                "steps": steps,
            }
        )

    def check() -> dict:
        if held is None:
            return {}
        model.eval()
        marks, scores = [], []
        with torch.inference_mode():
            for i in range(len(held)):
                batch = {k: v.to(trunk(model).device) for k, v in collate([held[i]], tokenizer.pad_token_id).items()}
                known = batch["labels"] != UNKNOWN
                marks.append(batch["labels"][known])
                scores.append(step_logits(model, batch)[known])
        model.train()
        marks, scores = torch.cat(marks), torch.cat(scores)
        loss = F.binary_cross_entropy_with_logits(scores, marks).item()
        return {"loss held out": loss, "AUC held out": auc(scores, marks)}

    cost = fit(
        model,
        rows,
        lambda batch: collate(batch, tokenizer.pad_token_id),
        bce,
        Fit(
            steps=steps,
            batch=config.batch,
            accumulate=config.accumulate,
            lr=config.lr,
            head_lr=config.head_lr,
            warmup=round(config.warmup * steps),
            check_every=config.check_every,
            save=True,
            patience=config.patience,
            watch="loss held out" if config.patience else "",
            checkpointing=config.checkpointing,
            paged=config.method == "qlora",
            seed=config.seed,
        ),
        folder / "trainer",
        check=check,
        log=log,
        progress=progress,
        head=False,
        of={**asdict(config), "base": str(base), **hashes, **{k: hash_tree(path) for k, path in on_disk(base).items()}},
    )
    learnt, kinds = set(), Counter()
    for chain in part(False):
        learnt.add(tasks.mark(chain.problem))
        kinds.update("value" if 0 < x < 1 else "mark" for x in chain.labels if x is not None)
    values = config.outcome or kinds["value"] > kinds.total() / 10  # a few are means of marks that differ
    save(model, tokenizer, base, config, folder / "model", sorted(learnt), "last" if values else "min")
    team().wait_for_everyone()
    return folder / "model", cost


def padding(lengths: Sequence[int], batch: int, seed: int) -> float:
    """Share of the computed tokens that are none, in the batches that the trainer will make."""
    order = list(Ordered(lengths, batch, seed))
    parts = [[lengths[i] for i in order[at : at + batch]] for at in range(0, len(order), batch)]
    return 1 - sum(lengths) / sum(max(part) * len(part) for part in parts)


def auc(scores: torch.Tensor, marks: torch.Tensor) -> float | None:
    """Chance that a right step (label above .5) scores above a wrong one; ties count half. None with one class."""
    good, bad = scores[marks > 0.5], scores[marks < 0.5]
    if not len(good) or not len(bad):
        return None
    bad = bad.sort().values
    below, upto = (torch.searchsorted(bad, good, side=side).double() for side in ("left", "right"))
    return ((below + upto).mean() / (2 * len(bad))).item()


def about(folder: str | Path) -> dict:
    """What a checkpoint says of itself: its head, its verdict's tokens, whether it is an ORM, and its base; the
    `aggregate` that suits it, and how `text` was written for it (`format.WRITTEN`).

    Errors: a prm.json that is damaged.
    """
    path = Path(folder) / "prm.json"
    return read_json(path) if path.exists() else {}


def open_checkpoint(
    folder: str | Path, base: str | Path | None = None, quantised: bool | None = None, dtype: str = "auto"
):
    """(model, tokenizer) of a PRM's checkpoint, on a GPU if there is one. Pickles are refused by name.

    `quantised` and `dtype` are by default as in training: scores are only then what they were.
    Errors: a file that is missing or damaged, by its name; a language model without a head for steps.
    """
    folder = Path(folder)
    said = about(folder)
    kind = "AutoModelForCausalLM" if said.get("head") == "verdict" else "AutoModelForTokenClassification"
    if not (folder / "adapter_config.json").exists():
        config = folder / "config.json"
        made = (read_json(config).get("architectures") or []) if config.exists() else []
        if not said and made and not any(name.endswith("ForTokenClassification") for name in made):
            raise WorkbenchError(
                f"{folder} is a {made[0]}, which has no head for steps (a random one would be put on it): train a PRM "
                "from it, or judge it as it is, `--as generative` or `--as implicit`"
            )
        model, tokenizer = load_model(folder, kind)
        _as_written(folder, said, tokenizer)
        return placed(model), tokenizer
    from peft import PeftModel

    refuse_pickles(folder)
    base = base or said.get("base") or read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not base:
        raise WorkbenchError(f"{folder} names no base for its adapter: say where that lies (base=, or --base)")
    compute = getattr(torch, said.get("dtype", "float32") if dtype == "auto" else dtype)
    quantised = said.get("method") == "qlora" if quantised is None else quantised
    more: dict = {"dtype": compute} | ({} if said.get("head") == "verdict" else {"num_labels": 1})
    if quantised:
        more |= four_bit(compute)
    model, _ = load_model(base, kind, **more)
    tokenizer = load_tokenizer(folder)
    _as_written(folder, said, tokenizer)
    prepare(model, tokenizer)
    if said.get("verdict"):
        model.config.verdict = tuple(said["verdict"])
    if hasattr(model, "score"):
        model.score.float()
    model = PeftModel.from_pretrained(model, folder).eval()
    return (model if quantised else placed(model)), tokenizer


def _as_written(folder: Path, said: Mapping, tokenizer) -> None:
    """Warn of a PRM that learnt from text written in another way; what a model of single characters reads has no
    backslash."""
    if said and said.get("text") != WRITTEN and len(tokenizer) > 512:
        warnings.warn(
            f"{folder} was trained when every backslash was written twice, and its scores of LaTeX are learnt on that: "
            "train it anew",
            stacklevel=4,
        )


def save(
    model, tokenizer, base: str | Path, config: Training, out: Path, learnt: Sequence[int] = (), aggregate: str = "min"
) -> None:
    """An adapter with its base's name, or whole weights; safetensors, and whole or not at all.

    `learnt`: digests of the prompts that it was trained on, so that nothing is reported on them later. `aggregate`:
    the one that suits its labels.
    """
    if int(os.environ.get("RANK", 0)):
        return
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    verdict = list(core(model).config.verdict) if config.head == "verdict" else None
    said = {"head": config.head, "verdict": verdict, "outcome": config.outcome, "base": str(base)}
    said |= {"method": config.method, "dtype": str(core(model).dtype).removeprefix("torch."), "learnt": list(learnt)}
    said |= {"aggregate": aggregate, "text": WRITTEN}
    (part / "prm.json").write_text(json.dumps(said, indent=1) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)


def open_base(base: str | Path, config: Training):
    """(model whose learning weights ask for gradients, tokenizer with the tags) of a pre-trained language model."""
    dtype = fast_dtype() if config.dtype == "auto" else getattr(torch, config.dtype)
    more: dict = {"dtype": torch.float32 if config.method == "full" else dtype}
    if config.head == "linear":
        more["num_labels"] = 1
    if config.method == "qlora":
        more |= four_bit(dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        kind = "AutoModelForTokenClassification" if config.head == "linear" else "AutoModelForCausalLM"
        model, tokenizer = load_model(base, kind, **more)
        prepare(model, tokenizer)
        if config.head == "linear":
            model.score.float()  # what learns is fp32, whatever the base is
            torch.nn.init.zeros_(model.score.weight)
            if model.score.bias is not None:
                torch.nn.init.zeros_(model.score.bias)
        else:
            model.config.verdict = tuple(verdict(tokenizer))
        model.config.use_cache = False
        if config.method == "full":
            model.get_input_embeddings().weight.requires_grad_(False)  # a quarter of the weights, and little to learn
            if below := _below(model, config):
                trunk(model).layers[:below].requires_grad_(False)
            return model, tokenizer
        return adapted(model, config), tokenizer


def adapted(model, config: Training):
    """LoRA adapters on the linear layers of the trunk (its `top` ones), in fp32; the base is frozen, a linear head
    learns whole."""
    from peft import LoraConfig, get_peft_model

    linear, names = config.head == "linear", "all-linear"
    if below := _below(model, config):  # PEFT takes a range of layers only where modules are named
        upper = {part for layer in trunk(model).layers[below:] for part in layer.modules()}
        names = [name for name, part in model.named_modules() if part in upper and isinstance(part, torch.nn.Linear)]
    wanted = LoraConfig(
        r=config.rank,
        lora_alpha=2 * config.rank,
        target_modules=names,
        exclude_modules=["score"] if linear else None,
        modules_to_save=["score"] if linear else None,
        task_type="TOKEN_CLS" if linear else "CAUSAL_LM",
    )
    return get_peft_model(model, wanted)


def _below(model, config: Training) -> int:
    """How many layers at the bottom stay as they are; none where there are no more than `top`."""
    layers = model.config.num_hidden_layers
    return max(0, layers - (config.top or layers))


def verdict(tokenizer, words: Sequence[str] = ()) -> list[int]:
    """The ids of two words (`VERDICT`); each must be one token, and not the same one."""
    words = words or VERDICT
    ids = [tokenised(tokenizer, word) for word in words]
    if any(len(i) != 1 for i in ids) or ids[0] == ids[1]:
        raise WorkbenchError(
            f"this tokenizer has no single tokens for {words[0]!r} and {words[1]!r}: use head='linear'"
        )
    return [i for (i,) in ids]
