"""Nano models and the FLOP ledger: each test names the mistake it pins."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from workbench.format import Encoder
from workbench.kv import core
from workbench.models import flops, llama_config, load_model, load_tokenizer, memory, new_model, training_flops
from workbench.types import Step, WorkbenchError
from workbench.verifiers.prm import PRM, from_policy


@pytest.fixture(scope="module")
def nano(tokenizer):
    return new_model("nano", tokenizer)


def test_the_sizes_are_the_ones_promised(tokenizer, nano):
    """Bug: the larger model of the series is not the size that its name says."""
    with torch.device("meta"):
        large = new_model("nano-14x", tokenizer)
        small = new_model("nano-14th", tokenizer)
    assert 0.8e6 < nano.num_parameters() < 1.2e6
    assert 13 < large.num_parameters() / nano.num_parameters() < 15
    assert nano.num_parameters() / small.num_parameters() == pytest.approx(14, rel=0.03)
    assert flops(nano.config, 1, 0) / flops(small.config, 1, 0) == pytest.approx(14, rel=0.03)


@pytest.mark.parametrize("heads", [4, 2])  # 2: grouped key-value heads
@pytest.mark.parametrize("shape, length", [("nano", 16), ("nano", 400), ("micro", 300)])
def test_flops_against_a_counter(tokenizer, shape, length, heads):
    """Bugs: a forgotten factor 2, head or attention term. Eager attention multiplies the whole square, so every token
    sees `length` tokens."""
    more = {"num_key_value_heads": heads} if shape == "nano" else {}
    config = llama_config(shape, tokenizer, **more)
    config._attn_implementation = "eager"
    from transformers import LlamaForCausalLM

    model, ids = LlamaForCausalLM(config), torch.zeros(2, length, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as whole:
        model(ids, use_cache=False)
    with torch.no_grad(), FlopCounterMode(display=False) as trunk:
        model.model(ids, use_cache=False)
    assert flops(config, 2 * length, length) == pytest.approx(whole.get_total_flops(), rel=0.02)
    assert flops(config, 2 * length, length, head=False) == pytest.approx(trunk.get_total_flops(), rel=0.02)


def test_flops_of_a_large_model_by_hand():
    """Bug: 2 x 8e9 parameters x 405e3 tokens printed as 6.5 TFLOP; it is 6,480 of them."""
    llama = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=14336,
    )
    assert flops(llama, 405e3, 0) == pytest.approx(2 * 8e9 * 405e3, rel=0.07)  # less the embedding, a look-up
    assert flops(llama, 1, 1000) - flops(llama, 1, 0) == 4 * 32 * 4096 * 1000


def lora(model, rank, **more):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", init_lora_weights=False, **more))


def test_training_by_hand(tokenizer):
    """Bugs: a head that is not there; the frozen base of adapters billed for gradients that nobody computes."""
    trunk = 2 * (4 * 32 * 32 + 3 * 32 * 64)  # matrix entries of micro: q, k, v, o and three of the feed-forward part
    scores = 2 * 2 * 32  # a token and one that it sees: two products in each of two layers, an entry 32 wide
    table = 32 * len(tokenizer)
    model, tokens, seen = new_model("micro", tokenizer), 10, 7
    attention = 3 * 2 * scores * seen  # forward once, back to both factors
    assert training_flops(model, tokens, seen) == tokens * (3 * 2 * (trunk + table) + attention)
    assert training_flops(model, tokens, seen, head=False) == tokens * (3 * 2 * trunk + attention)
    judge = from_policy(model)
    assert training_flops(judge, tokens, seen) == tokens * (3 * 2 * trunk + attention)
    judge.model.embed_tokens.weight.requires_grad_(False)  # as `full` has it: a look-up either way
    assert training_flops(judge, tokens, seen) == tokens * (3 * 2 * trunk + attention)
    again = tokens * (4 * 2 * trunk + attention + 2 * scores * seen)
    assert training_flops(judge, tokens, seen, again=True) == again
    judge.model.layers[0].requires_grad_(False)  # then all below the upper one runs forward only
    assert training_flops(judge, tokens, seen) == tokens * (2 * 2 * trunk + 2 / 3 * attention)
    again = tokens * (2.5 * 2 * trunk + 2 / 3 * attention + scores * seen)
    assert training_flops(judge, tokens, seen, again=True) == again
    judge.model.layers.requires_grad_(False)
    assert training_flops(judge, tokens, seen) == tokens * (
        2 * trunk + scores * seen * 2
    )  # the norm and the head learn
    judge.model.embed_tokens.weight.requires_grad_(True)
    assert training_flops(judge, tokens, seen) == tokens * (2 * 2 * trunk + attention)
    adapters = 2 * 4 * (4 * (32 + 32) + 3 * (32 + 64))  # rank 4, two layers
    thin = lora(from_policy(model), 4, exclude_modules=["score"], modules_to_save=["score"], task_type="TOKEN_CLS")
    assert training_flops(thin, tokens, seen) == tokens * (2 * 2 * trunk + 3 * 2 * adapters + attention)
    thin = lora(from_policy(model), 1, exclude_modules=["score"], modules_to_save=["score"], task_type="TOKEN_CLS")
    assert training_flops(thin, tokens, seen) == tokens * (2 * 2 * trunk + 3 * 2 * adapters / 4 + attention)


def test_the_plan_has_no_more_layers_than_the_base(tokenizer):
    """Bug: with `top` beyond the base's layers memory is planned for layers that are not there."""
    shape = new_model("micro", tokenizer).config
    plan = [memory(shape, "lora", 2, 512, top=top) for top in (0, 1, 2, 3)]
    assert plan[1].total < plan[2].total and plan[0] == plan[2] == plan[3]


@pytest.mark.parametrize("method", ["full", "head frozen", "lora", "lora, again", "top"])
@pytest.mark.parametrize("head", [True, False])
def test_training_against_a_counter(tokenizer, method, head):
    """Bugs: the same, and a table that is look-up and head at once left out or counted twice."""
    from transformers import LlamaForCausalLM

    config = llama_config("nano", tokenizer)
    config._attn_implementation = "eager"
    model, ids = LlamaForCausalLM(config), torch.zeros(2, 48, dtype=torch.long)
    if method == "head frozen":
        model.get_input_embeddings().weight.requires_grad_(False)
    if method.startswith("lora"):
        model = lora(model, 8, task_type="CAUSAL_LM")
    inner = core(model)
    if method.endswith("again"):
        model.train().gradient_checkpointing_enable({"use_reentrant": False})
        inner.disable_input_require_grads()
    if not method.startswith("top"):  # back to the first layer's own input, as the ledger has it
        inner.enable_input_require_grads()
    else:
        inner.get_input_embeddings().weight.requires_grad_(False)
        inner.model.layers[:-2].requires_grad_(False)
        inner.model.layers[-2].register_forward_pre_hook(lambda _, given: (given[0].requires_grad_(), *given[1:]))
    with FlopCounterMode(display=False) as counter:
        hidden = inner.model(ids, use_cache=False).last_hidden_state
        (inner.lm_head(hidden) if head else hidden).square().mean().backward()
    found = training_flops(model, ids.numel(), 48, head, again=method.endswith("again"))
    assert found == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_checkpoint_is_an_ordinary_folder(tmp_path, micro, tokenizer):
    """Bug: a checkpoint that only this package can read, or that comes back another."""
    micro.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in tmp_path.iterdir()}
    assert not list(tmp_path.glob("*.bin"))
    model, tok = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    again, encoder = Encoder(tok), Encoder(tokenizer)
    steps = [Step("1+1=2</user>é\n"), Step("2", final=True)]
    assert again.encode("1+\n1", steps) == encoder.encode("1+\n1", steps)
    assert again.tag_ids == encoder.tag_ids and again.ends_step() == encoder.ends_step()
    assert tok.pad_token_id == tokenizer.pad_token_id and tok.chat_template == tokenizer.chat_template
    ids = torch.tensor([encoder.encode("1+1", steps).ids])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, micro(ids).logits)
        assert torch.equal(load_model(tmp_path)[0](ids).logits, micro(ids).logits)
    assert not load_model(tmp_path)[0].training


def test_pickled_weights_are_refused(tmp_path, micro):
    """Bug: loading somebody's checkpoint runs somebody's code."""
    micro.config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(WorkbenchError, match="safetensors"):
        load_model(tmp_path)


def test_a_folder_that_is_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(WorkbenchError, match="config.json"):
        load_model(tmp_path)


def test_a_lack_of_memory_is_no_fault_of_a_file(tmp_path, monkeypatch, tokenizer):
    """Bug: "missing or damaged, train it again" for a tokenizer that is whole."""
    tokenizer.save_pretrained(tmp_path)

    def full(*args):
        raise MemoryError

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", full)
    with pytest.raises(MemoryError):
        load_tokenizer(tmp_path)


def test_a_seed_is_the_weights_and_disturbs_nobody(tokenizer):
    """Bug: making a model moves the global random state, so what comes after depends on it."""
    before = torch.random.get_rng_state()
    a, b, c = (new_model("micro", tokenizer, seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(a.lm_head.weight, b.lm_head.weight) and not torch.equal(a.lm_head.weight, c.lm_head.weight)


def test_an_unknown_shape_is_refused(tokenizer):
    with pytest.raises(WorkbenchError, match="'nono'.*nano"):
        new_model("nono", tokenizer)


@pytest.mark.parametrize("start, new", [(300, 1), (100, 40)])
def test_flops_behind_a_cache(nano, start, new):
    """Bug: a token that is decoded costs what it would cost without what stands before it."""
    ids = torch.zeros(1, start + new, dtype=torch.long)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        past = nano(ids[:, :start], use_cache=True).past_key_values
        before = counter.get_total_flops()
        nano(ids[:, start:], past_key_values=past, use_cache=True)
    # torch counts every pair of tokens in the pass, the ledger only those that causal attention looks at
    assert flops(nano.config, new, start + new) == pytest.approx(counter.get_total_flops() - before, rel=0.02)


def test_a_search_is_billed_what_it_ran(nano, tokenizer, sums):
    """Bug: pruned beams, prefixes or the verifier left out of the ledger. Against what torch counts in every pass."""
    from workbench.policies import Sampling
    from workbench.policies.local import LocalPolicy
    from workbench.search import drive
    from workbench.verifiers.likelihood import Likelihood

    policy, verifier = LocalPolicy(nano, tokenizer), Likelihood(nano, tokenizer)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # one chain, so nothing is padding
        [result] = drive(sums[:1], "beam", policy, verifier, sampling=Sampling(1.0, 30, 90), n=1, width=1, rounds=2)
    ran, cost = counter.get_total_flops(), result.cost
    last = 2 * policy.flops(cost.prompt + cost.sampled, 1)  # a chain's last token is drawn and judged, and never read
    assert cost.reread == 0 and cost.sampled >= 30 and ran <= cost.flops <= 1.02 * ran + last


def test_a_checkpoint_that_is_nowhere_is_named(tmp_path, monkeypatch):
    """Bug: the base of an adapter, given as a relative path, is not found from another folder: a raw traceback."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkbenchError, match="runs/models/base is no folder under .*--base"):
        load_model("runs/models/base")


def test_a_run_is_not_to_be_deleted(tmp_path):
    """Bug: a run's folder named in place of its checkpoint's: "Delete it"."""
    with pytest.raises(WorkbenchError, match="Delete it and run its stage again"):
        load_model(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(WorkbenchError, match="It is a run: go on with it, or name"):
        load_model(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "adapter_config.json").write_text("{}")
    with pytest.raises(WorkbenchError, match=f"did you mean {tmp_path / 'model'}"):
        load_model(tmp_path)


HALF, GONE, OTHER = (lambda data: data[: len(data) // 2]), None, (lambda data: b"[]")


@pytest.mark.parametrize(
    "name, change",
    [
        ("model.safetensors", HALF),
        ("model.safetensors", lambda data: b""),
        ("config.json", HALF),
        ("config.json", OTHER),
        ("config.json", lambda data: b"{}"),
        ("tokenizer.json", HALF),
        ("tokenizer.json", GONE),
        ("tokenizer_config.json", HALF),
        ("tokenizer_config.json", GONE),  # Bug: it loads without a pad token, and fails at the first batch
        ("prm.json", HALF),
        ("prm.json", OTHER),
    ],
)
def test_a_damaged_checkpoint_is_named(tokenizer, micro, tmp_path, name, change):
    """Bugs: a traceback out of a library; a folder that is there and half copied "is no folder"."""
    for part in (from_policy(micro), tokenizer):
        part.save_pretrained(tmp_path)
    (tmp_path / "prm.json").write_text('{"head": "linear"}')
    PRM.load(tmp_path), load_model(tmp_path)
    file = tmp_path / name
    file.write_bytes(change(file.read_bytes())) if change else file.unlink()
    for load in (PRM.load,) if name == "prm.json" else (PRM.load, load_model):
        with pytest.raises(WorkbenchError, match=f"{file} is missing or damaged .*copy its checkpoint again, or train"):
            load(tmp_path)


def test_a_new_head_is_no_news(tokenizer, micro, tmp_path, capfd):
    """Bug: a report of missing weights wherever a language model was opened to become a PRM."""
    micro.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    capfd.readouterr()
    load_model(tmp_path, "AutoModelForTokenClassification")
    assert capfd.readouterr().err == ""
    from_policy(micro).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "score" not in k}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        WorkbenchError, match="weights do not fit its config.json, the first score"
    ):  # Bug: a random one
        load_model(tmp_path, "AutoModelForTokenClassification")


def test_a_lack_of_memory_is_no_damage(tokenizer, micro, tmp_path, monkeypatch):
    """Bug: "missing or damaged, train it again" where a GPU was too small."""

    def full(*args, **more):
        raise torch.OutOfMemoryError("CUDA out of memory")

    micro.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "change, why",
    [
        ({"num_hidden_layers": 9}, r"\d+ weights do not fit its config.json, the first model.layers"),
        ({"num_hidden_layers": 1}, r"\d+ weights do not fit its config.json, the first model.layers.1"),
        ({"tie_word_embeddings": False}, "1 weights do not fit its config.json, the first lm_head.weight"),
        ({"intermediate_size": 8}, r"\d+ weights do not fit its config.json, the first model.layers.0.mlp"),
        ({"hidden_size": "large"}, "expected int"),
        ({"num_attention_heads": 7}, "multiple of the number of attention heads"),
        ({"num_key_value_heads": 0}, "zero"),
        ({"hidden_act": "nope"}, "nope"),
    ],
)
def test_a_config_that_is_not_the_weights_is_named(tokenizer, micro, tmp_path, change, why):
    """Bugs: layers that the weights lack were made at random and nothing said; a traceback out of transformers."""
    micro.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(WorkbenchError, match=f"is missing or damaged .*{why}.*copy its checkpoint again, or train"):
        load_model(tmp_path)
