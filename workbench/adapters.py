"""PEFT adapters: several on one base, each switched on for its own calls; and the base in 4 bits.

Policy, verifier and reference are then one set of weights in memory and some per cent more for each.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .format import TAGS, add_tags
from .kv import core
from .models import check_weights, load_model, load_tokenizer, placed, read_json
from .tasks import digest
from .types import WorkbenchError

WEIGHTS = "adapter_model.safetensors"


def one_base(base: str | Path, adapters: Mapping[str, str | Path], quantised: bool = True, dtype: str = "auto"):
    """(causal language model with all `adapters`, tokenizer): name -> checkpoint folder of a LoRA adapter on `base`.

    Give it to `LocalPolicy(…, adapter="policy")`, `PRM(…, adapter="prm")` (of head `verdict`: a head of its own would
    make it another model) and `Implicit(…, adapter="policy")`, whose reference is the base itself. `quantised`: NF4.
    The tokenizer is the first adapter's, or the base's where that folder has none.
    Errors: no adapter, one that is no safetensors or damaged. Left out: adapters that change the embedding.
    """
    from peft import PeftModel

    if not adapters:
        raise WorkbenchError("no adapter: name at least one, such as {'policy': folder}")
    for folder in map(Path, adapters.values()):
        refuse_pickles(folder)
    compute = fast_dtype() if dtype == "auto" else getattr(torch, dtype)
    model, tokenizer = load_model(base, dtype=compute, **(four_bit(compute) if quantised else {}))
    (name, folder), *rest = adapters.items()
    if (Path(folder) / "tokenizer_config.json").exists():
        tokenizer = load_tokenizer(folder)
    prepare(model, tokenizer)
    model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    for name, folder in rest:
        model.load_adapter(str(folder), adapter_name=name)
    return model.eval(), tokenizer


def save_adapter(model, name: str, tokenizer, folder: str | Path) -> None:
    """The adapter `name` alone, as PEFT's folder (safetensors), with the tokenizer; `base.json` says how the base was
    loaded, which PEFT leaves open."""
    from peft import get_peft_model_state_dict

    folder, inner = Path(folder), core(model)
    config = copy.copy(inner.peft_config[name])
    config.base_model_name_or_path = config.base_model_name_or_path or inner.name_or_path or None
    config.inference_mode = True
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)  # the same file whatever order a set has
    config.save_pretrained(folder)
    state = get_peft_model_state_dict(inner, adapter_name=name, save_embedding_layers=False)
    state = {f"base_model.model.{key}": value.detach().contiguous() for key, value in state.items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    how = {"quantised": quantised(model), "dtype": str(inner.dtype).removeprefix("torch.")}
    (folder / "base.json").write_text(json.dumps(how) + "\n")
    tokenizer.save_pretrained(folder)


def read_adapter(model, name: str, folder: str | Path) -> None:
    """The weights that `save_adapter` wrote, into the adapter `name` of a model that has one of the same shape."""
    from peft import set_peft_model_state_dict

    refuse_pickles(Path(folder))
    told = set_peft_model_state_dict(core(model), load_file(Path(folder) / WEIGHTS), adapter_name=name)
    missing = [key for key in told.missing_keys if name in key.split(".")]
    if missing or told.unexpected_keys:
        wrong = [*missing, *told.unexpected_keys][0]
        raise WorkbenchError(f"{folder} holds another adapter than {name!r} ({wrong}): delete it and its run")


def open_adapter(folder: str | Path):
    """(causal language model with the adapter in `folder`, its tokenizer), on the base that the folder names.

    The base is loaded as it was when `save_adapter` wrote this; under an adapter from elsewhere in fp32.
    """
    path = Path(folder) / "base.json"
    how = read_json(path) if path.exists() else {"quantised": False, "dtype": "float32"}
    base = read_json(Path(folder) / "adapter_config.json").get("base_model_name_or_path")
    if not base:
        raise WorkbenchError(f"{folder} names no base: open it with adapters.one_base(base, {{'default': {folder}}})")
    return one_base(base, {"default": folder}, **how)


def open_language_model(folder: str | Path):
    """(causal language model, tokenizer with the tags) of whole weights or a LoRA adapter, on a GPU if there is one."""
    if (Path(folder) / "adapter_config.json").exists():
        if read_json(Path(folder) / "adapter_config.json").get("task_type") == "TOKEN_CLS":
            raise WorkbenchError(f"{folder} is an adapter with a head for steps, a PRM, and no language model")
        model, tokenizer = open_adapter(folder)
    else:
        model, tokenizer = load_model(folder)
        prepare(model, tokenizer)
    return model if quantised(model) else placed(model), tokenizer


def quantised(model) -> bool:
    return bool(getattr(core(model), "is_quantized", False))


def refuse_pickles(folder: Path) -> None:
    """Errors: an adapter's folder without safetensors, or with a file that is damaged."""
    if not (folder / WEIGHTS).exists():
        raise WorkbenchError(f"{folder} has no {WEIGHTS}: other formats are pickles, and refused")
    check_weights(folder / WEIGHTS)
    read_json(folder / "adapter_config.json")


def prepare(model, tokenizer) -> None:
    """The tags and a pad token, where the base lacks them; a tag that nobody has trained gets a row of its own.

    An adapter leaves the embedding as it is, so a row that is the mean of all can never be the likeliest token: its
    logit is the mean of theirs, and a policy with it would not learn to end its reasoning. So each tag's row is the
    mean plus a direction of its own, drawn from its name, as long as rows are. A PRM only reads tags, and wants them
    told apart too. The same base always gets the same rows; rows that differ already stay.
    """
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    add_tags(tokenizer)
    old = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > old:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                if layer is not None and layer.weight.shape[0] > old:
                    layer.weight[old:] = layer.weight[:old].float().mean(0).to(layer.weight.dtype)
    _told_apart(model, tokenizer)
    model.config.pad_token_id = tokenizer.pad_token_id


@torch.no_grad()
def _told_apart(model, tokenizer) -> None:
    ids = tokenizer.convert_tokens_to_ids(list(TAGS))
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    for table in {id(layer.weight): layer.weight for layer in tables if layer is not None}.values():
        rows, mine = table[:: max(1, len(table) // 4096)].float(), table[ids].float()
        mean, length = rows.mean(0), (rows - rows.mean(0)).norm(dim=1).median()
        if (mine - mine.mean(0)).norm(dim=1).max() > 0.1 * length:
            continue
        for tag, i in zip(TAGS, ids, strict=True):
            way = torch.randn(table.shape[1], generator=torch.Generator().manual_seed(digest(tag) >> 1))
            table[i] = (mean + length * (way / way.norm()).to(mean)).to(table.dtype)


def fast_dtype() -> torch.dtype:
    """bfloat16 where the hardware multiplies it, else float32: emulated it is ten times slower."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def four_bit(dtype: torch.dtype) -> dict:
    """What makes `load_model` load NF4 with double quantisation (Dettmers et al. 2023, QLoRA); a head stays as it is.

    Such weights stay where they were loaded, so each process of a launch loads them onto the GPU that is its own.
    """
    from accelerate import PartialState
    from transformers import BitsAndBytesConfig

    more: dict = {}
    if torch.cuda.is_available():
        PartialState()  # sets this process's current device, where there are several
        more["device_map"] = {"": torch.cuda.current_device()}
    more["quantization_config"] = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["score", "lm_head"],
    )
    return more


def _layers(model) -> list:
    """The layers of a model that an adapter changes; none without PEFT adapters."""
    if not getattr(core(model), "peft_config", None):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    return [layer for layer in core(model).modules() if isinstance(layer, BaseTunerLayer | ModulesToSaveWrapper)]


def adapter_of(model, name: str | None, needed: bool = False) -> str | None:
    """The adapter of this name, or the one that is on; None where a model has none and needs none."""
    has = getattr(core(model), "peft_config", None) or {}
    if name is not None:
        if name not in has:
            raise WorkbenchError(f"the model has no adapter {name!r}: it has {', '.join(has) or 'none'}")
        return name
    layers = _layers(model)
    if not layers:
        if needed:
            raise WorkbenchError("the model has no adapter to switch off: pass a reference model")
        return None
    on = {name for layer in layers for name in layer.active_adapters}
    if len(on) != 1:
        raise WorkbenchError(f"the adapters {', '.join(sorted(on)) or 'none'} are on: say which one, adapter=…")
    return on.pop()


@contextmanager
def switched(model, adapter: str | None) -> Iterator[None]:
    """A model with this PEFT adapter alone, or with none; left as it was found. What is trainable stays trainable.

    Errors: an adapter that is merged into the weights.
    """
    layers = _layers(model)
    if any(getattr(layer, "merged", False) for layer in layers):
        raise WorkbenchError("an adapter is merged into the weights and cannot be switched: unmerge it first")
    before = [(layer, list(layer.active_adapters), not layer.disable_adapters) for layer in layers]
    trainable = [(weight, weight.requires_grad) for weight in core(model).parameters()]

    def put(layer, names: list[str], on: bool) -> None:  # PEFT lets a switch change what is trainable
        layer.set_adapter(names)
        layer.enable_adapters(on)

    try:
        for layer, names, _ in before:
            put(layer, names if adapter is None else [adapter], adapter is not None)
        yield
    finally:
        for layer, names, on in before:
            put(layer, names, on)
        for weight, flag in trainable:
            weight.requires_grad_(flag)


@contextmanager
def learning(model, adapter: str | None) -> Iterator[str | None]:
    """A model that is trained: its adapter of this name (None: the one that is on) is on, alone, and asks for
    gradients. Gives the adapter's name, None for a model without any, which is left as it is.

    Errors: 4-bit weights without an adapter; weights that would learn beside the adapter, which no adapter's
    checkpoint holds.
    """
    name = adapter_of(model, adapter)
    if name is None:
        if quantised(model):
            raise WorkbenchError("4-bit weights do not learn: put a LoRA adapter on them, or load the base unquantised")
        yield None
        return
    with switched(model, name):
        learns = [n for n, p in core(model).named_parameters() if p.requires_grad]
        if beside := [n for n in learns if name not in n.split(".")]:
            raise WorkbenchError(
                f"{beside[0]} would learn beside the adapter {name!r}: freeze it, or train whole weights"
            )
        yield name
