"""Nano models: ordinary Llama checkpoints small enough to train from scratch, and their FLOPs.

`nano` has about 1M parameters and `nano-14x` about 14 times as many. A checkpoint is a folder that
`AutoModelForCausalLM` and `AutoTokenizer` load.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from .format import CHAT_TEMPLATE, END_ASSISTANT, TAGS
from .types import WorkbenchError

SHAPES = {  # width, layers, heads, feed-forward width
    "micro": (32, 2, 2, 64),
    "nano": (128, 4, 4, 384),
    "nano-14th": (32, 4, 2, 100),
    "nano-14x": (384, 8, 6, 832),
}


def character_tokenizer():
    """One token a byte, so one a character for ASCII, and no text is unknown; the six tags are tokens."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(BPE({letter: i for i, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token=END_ASSISTANT,
        additional_special_tokens=[tag for tag in TAGS if tag != END_ASSISTANT],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def llama_config(shape: str, tokenizer, **more):
    from transformers import LlamaConfig

    if shape not in SHAPES:
        raise WorkbenchError(f"unknown model shape {shape!r}: one of {', '.join(SHAPES)}")
    width, layers, heads, feed_forward = SHAPES[shape]
    return LlamaConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": feed_forward,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **more,
        }
    )


def new_model(shape: str, tokenizer, seed: int = 0):
    """A freshly initialised causal LM of `shape`; the same seed gives the same weights."""
    import torch
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(llama_config(shape, tokenizer))


def load_model(folder: str | Path, kind: str = "AutoModelForCausalLM", **more):
    """(model in eval mode, tokenizer) from a checkpoint folder, a hub id, or `smollm2`; safetensors only.

    Errors: a checkpoint that is nowhere, or a file of its folder that is missing or damaged, by its name.
    """
    import torch
    import transformers

    folder = looked_at(folder)
    path = Path(folder)
    logging = transformers.utils.logging
    logging.disable_progress_bar()  # a bar for every small file tells nobody anything
    loud = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of weights that do not fit is an error below, and of a new head noise
    try:
        model, said = getattr(transformers, kind).from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **more
        )
    except Exception as error:  # a hub's many ways to fail, a path that is no folder, a config that fits no model
        why = " ".join(str(error).split())[:200]
        short = isinstance(error, ImportError | MemoryError | torch.OutOfMemoryError)  # of the machine's
        if path.exists() and not short:
            raise damaged(path, why) from error
        if short or not isinstance(error, OSError):
            raise
        raise _nowhere(folder, why) from error
    finally:
        logging.set_verbosity(loud)
    # transformers would go on with random weights in their place, or without those layers
    headless = not any(made.endswith("ForTokenClassification") for made in model.config.architectures or ())
    lost = [name for name in said["missing_keys"] if not (headless and name.startswith("score."))]
    lost += [name for name, *_ in said["mismatched_keys"]]
    if headless and all(name.startswith("classifier.") for name in lost) and lost:
        raise WorkbenchError(f"{type(model).__name__} has no head `score`, which a linear PRM has: take head=verdict")
    if lost := sorted(lost) or sorted(name for name in said["unexpected_keys"] if ".layers." in name):
        raise damaged(path, f"{len(lost)} weights do not fit its config.json, the first {lost[0]}")
    for part in model.modules() if getattr(model, "is_quantized", False) else ():
        # On a CPU with bf16 units bitsandbytes would lay 4-bit weights out anew when they are first scored with, round
        # their scales and give no gradient from then on: scores would not be training's, and nothing below would learn.
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False
    return model.eval(), load_tokenizer(folder)


def looked_at(folder: str | Path) -> str | Path:
    """What `load_model` is to load, after all that can be told before weights are read: a hub id has a config, a folder
    whole files. Errors: as its."""
    from transformers.utils import cached_file

    if folder == "smollm2":
        from .smollm2 import checkpoint

        folder = checkpoint()
    path = Path(folder)
    if not path.exists():
        try:
            cached_file(folder, "config.json")  # no AutoConfig, which may ask to run a hub's code
        except OSError as error:
            raise _nowhere(folder, " ".join(str(error).split())[:200]) from error
        return folder
    if not (path / "config.json").exists():
        if (path / "adapter_config.json").exists():
            raise WorkbenchError(f"{path} is an adapter: open it with adapters.open_adapter, or name what it stands on")
        if is_checkpoint(path / "model"):
            raise WorkbenchError(f"{path} is a run and no checkpoint: did you mean {path / 'model'}?")
        of_run = "It is a run: go on with it, or name the checkpoint in it"
        remedy = of_run if (path / "run.json").exists() else "Delete it and run its stage again"
        raise WorkbenchError(f"{path} is no checkpoint: it has no config.json. {remedy}")
    if "model_type" not in read_json(path / "config.json"):
        raise damaged(path / "config.json", "it names no model_type")
    if not (weights := list(path.glob("*.safetensors"))):
        raise WorkbenchError(
            f"{path} has no *.safetensors: other weight formats are refused, convert the checkpoint first"
        )
    for file in weights:
        check_weights(file)
    return folder


def is_checkpoint(folder: str | Path) -> bool:
    """Whether a folder holds whole weights or an adapter."""
    return any((Path(folder) / name).exists() for name in ("config.json", "adapter_config.json"))


def _nowhere(folder: str | Path, why: str) -> WorkbenchError:
    return WorkbenchError(
        f"{folder} is no folder under {Path.cwd()}, and the hub did not give it ({why}): name a checkpoint that is "
        "there (an adapter's base with base=, or --base)"
    )


def load_tokenizer(folder: str | Path):
    """The tokenizer of a checkpoint folder or hub id. Errors: a file of it that is missing or damaged."""
    from transformers import AutoTokenizer

    path = Path(folder)
    if path.exists():
        read_json(path / "tokenizer_config.json")  # without it there would be no pad token, and nothing said
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # whatever half a file makes it stumble over
        if isinstance(error, ImportError | MemoryError) or not path.exists():  # the machine's fault, or the hub's
            raise
        raise damaged(path / "tokenizer.json", " ".join(str(error).split())[:200]) from error


def damaged(path: Path, why: object) -> WorkbenchError:
    """The sentence for what is not whole of a checkpoint."""
    return WorkbenchError(f"{path} is missing or damaged ({why}): copy its checkpoint again, or train it again")


def read_json(path: Path) -> dict:
    """What a JSON file of a checkpoint says. Errors: it is not there, cut off, or no object."""
    try:
        said = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise damaged(path, getattr(error, "strerror", None) or error) from error
    if not isinstance(said, dict):
        raise damaged(path, "no JSON object")
    return said


def check_weights(path: Path) -> None:
    """Reads the header alone, which knows how long the file must be. Errors: a file that is cut off, or no weights."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from error


def placed(model):
    """The model on a GPU, if there is one."""
    import torch

    return model.cuda() if torch.cuda.is_available() else model


def rates(config, head: bool = True) -> tuple[float, float]:
    """(FLOPs a token, FLOPs a token and token of context) of a forward pass; see `flops`."""
    d, layers, ff = config.hidden_size, config.num_hidden_layers, config.intermediate_size
    heads, dim = config.num_attention_heads, getattr(config, "head_dim", None) or d // config.num_attention_heads
    kv = getattr(config, "num_key_value_heads", None) or heads
    matrices = layers * (2 * d * heads * dim + 2 * d * kv * dim + 3 * d * ff) + (d * config.vocab_size if head else 0)
    return 2.0 * matrices, 4.0 * layers * heads * dim


class Price:
    """FLOPs of a model's tokens, its shape looked up once: price(prefix, new, head) as policies and verifiers give it.

    >>> from types import SimpleNamespace as C
    >>> config = C(hidden_size=2, num_hidden_layers=1, intermediate_size=3, num_attention_heads=1,
    ...            num_key_value_heads=1, head_dim=2, vocab_size=5)
    >>> price = Price(config)
    >>> price(0, 2) == flops(config, tokens=2, context=1.5), price(0, 2) == price(0, 1) + price(1, 1)
    (True, True)
    """

    def __init__(self, config, head: bool = True):
        self.rates = rates(config, False), rates(config, head)

    def __call__(self, prefix: float, new: float, head: bool = True) -> float:
        token, seen = self.rates[head]
        return new * (token + seen * (prefix + (new + 1) / 2))


def flops(config, tokens: float, context: float, head: bool = True) -> float:
    """FLOPs of a forward pass over `tokens` tokens that see `context` tokens each on average.

    Two a multiply-add: 2 x matrix parameters x tokens, plus 4 x layers x width x context x tokens for
    attention scores and sums. Norms, rotary embedding and softmax are left out (under 2 % together).
    Source: Kaplan et al. 2020, table 1. What training takes: `training_flops`.

    >>> from types import SimpleNamespace as C
    >>> flops(C(hidden_size=2, num_hidden_layers=1, intermediate_size=3, num_attention_heads=1,
    ...         num_key_value_heads=1, head_dim=2, vocab_size=5), tokens=1, context=1)
    96.0
    """
    token, seen = rates(config, head)
    return tokens * (token + seen * context)


def training_flops(model, tokens: float, context: float, head: bool | None = None, again: bool = False) -> float:
    """FLOPs of a forward and a backward pass over `tokens`, as `flops` counts them: three forward passes if all learns.

    `head`: the vocabulary's matrix is run, by default where the model has one. `again`: the layers are computed again
    on the way back (checkpointing). Weights that are frozen have no gradient, and none is billed; adapters (LoRA) come
    on top, and nothing flows back below the lowest layer that learns. Left out: heads of one number a token; that
    recomputing stops before a layer's last product where no adapter wants it.

    >>> model = new_model("micro", character_tokenizer())
    >>> training_flops(model, 10, 3) == 3 * flops(model.config, 10, 3)
    True
    >>> training_flops(model.requires_grad_(False), 10, 3) == flops(model.config, 10, 3)
    True
    """
    inputs, output = model.get_input_embeddings(), model.get_output_embeddings()
    head = output is not None if head is None else head
    token, seen = rates(model.config, head)
    trunk, layers = rates(model.config, False)[0], model.config.num_hidden_layers
    tables = {id(layer.weight) for layer in (inputs, output) if layer is not None}  # one is looked up, one is the head
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    learns = {
        name: p.numel()
        for name, p in learning.items()
        if p.ndim == 2 and ("lora_" in name or 1 not in p.shape) and id(p) not in tables
    }
    adapters = 2.0 * sum(n for name, n in learns.items() if "lora_" in name)  # matrices that no config tells of
    matrices = sum(learns.values()) + (output.weight.numel() if head and output.weight.requires_grad else 0)
    # For y = Wx the way back multiplies twice: W'dy, which every layer hands on, and dy x', which only a W that learns
    # asks for. Attention multiplies activations with activations, so both factors ask, whatever learns.
    low = min((_layer(name, layers) for name in learning), default=layers)
    share = (layers - low) / layers  # of the layers: the others are run forward only
    forward = token + adapters + seen * context
    through = share * (trunk + 2 * seen * context) + adapters + (token - trunk if learning else 0.0)
    more = share * (trunk + seen * context) + adapters if again else 0.0
    return tokens * (forward + through + 2.0 * matrices + more)


def _layer(name: str, layers: int) -> int:
    """How many layers lie below a weight; all of them below a head and the norm before it."""
    if at := re.search(r"(?:^|\.)layers\.(\d+)\.", name):
        return int(at[1])
    return layers if re.search(r"(?:^|\.)(?:norm|score|lm_head)\.", name) else 0


@dataclass(frozen=True)
class Need:
    """Bytes that a training run holds at once, by what holds them."""

    weights: float
    adapters: float  # what learns beside the weights
    gradients: float
    optimiser: float
    activations: float
    program: float = 0.6e9  # Python, torch and its workspaces

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def memory(
    config,
    method: str,
    rows: int,
    tokens: int,
    rank: int = 16,
    width: int = 4,
    checkpointing: bool = False,
    top: int = 0,
) -> Need:
    """What training a verifier takes: `rows` x `tokens` are computed at a time, `width` bytes a number of the base.

    Weights: 4 bytes each where they learn (`full`), `width` under adapters, 4.127 bits in NF4 with double quantisation
    (Dettmers et al. 2023) for all but the embedding. AdamW keeps two fp32 numbers for each that learns. Activations:
    what a Llama layer keeps for its backward pass, 11 times its width and 4.5 times its feed-forward width a token,
    and an attention mask; with `checkpointing` one layer's and every layer's input. `top`: only so many layers learn
    and keep something, 0 for all. Left out: the optimiser's temporaries, fragments, and a language model's logits,
    which a verifier has none of.

    >>> from types import SimpleNamespace as C
    >>> small = C(hidden_size=576, num_hidden_layers=30, intermediate_size=1536, num_attention_heads=9,
    ...           num_key_value_heads=3, head_dim=64, vocab_size=49158)
    >>> [round(memory(small, method, 2, 512).total / 1e9, 1) for method in ("full", "lora", "qlora")]
    [4.0, 2.8, 2.5]
    """
    d, layers, ff = config.hidden_size, config.num_hidden_layers, config.intermediate_size
    linear = rates(config, head=False)[0] / 2
    table = d * config.vocab_size
    heads, dim = config.num_attention_heads, getattr(config, "head_dim", None) or d // config.num_attention_heads
    kv = (getattr(config, "num_key_value_heads", None) or heads) * dim
    q = heads * dim
    upper = min(top or layers, layers)
    learns = linear * upper / layers if method == "full" else rank * upper * (3 * (d + ff) + 2 * (d + kv) + 2 * (d + q))
    base = {"full": 4 * linear, "lora": width * linear, "qlora": 4.127 / 8 * linear}[method]
    one = (11 * d + 4.5 * ff) * width
    kept = one + upper * d * width if checkpointing else upper * one
    return Need(
        weights=base + table * (4 if method == "full" else width),
        adapters=0.0 if method == "full" else 4.0 * learns,
        gradients=4.0 * learns,
        optimiser=8.0 * learns,
        activations=rows * tokens * kept + rows * tokens * tokens,
    )
