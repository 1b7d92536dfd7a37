"""Law tests of every policy backend, and the local one against independent computations."""

import copy
import pkgutil

import numpy as np
import pytest
import torch

from workbench import kv, policies
from workbench.policies import Policy, Sampling, Want, bill, tokens_of
from workbench.policies.local import LocalPolicy, draw, log_probabilities, uniform
from workbench.policies.scripted import Scripted
from workbench.types import Node, Step, WorkbenchError

SAMPLING = Sampling(1.0, step_tokens=12, chain_tokens=40)
WORDS = ["1+1=2", "2+2=4", "=4", "=2"]


class Endless(dict):
    """A table that always has a next line."""

    def get(self, key, default=None):
        return [(word, 0.25) for word in WORDS]


# One maker a backend file; the test below fails when a new file has none.
BACKENDS = {
    "local": lambda request: LocalPolicy(request.getfixturevalue("micro"), request.getfixturevalue("tokenizer")),
    "scripted": lambda request: Scripted(Endless()),
    "server": lambda request: request.getfixturevalue("served"),
}


def test_every_backend_is_held_to_the_laws():
    """Bug: a new backend file that no test ever runs."""
    assert {m.name for m in pkgutil.iter_modules(policies.__path__)} == set(BACKENDS)


@pytest.fixture(scope="module", params=sorted(BACKENDS))
def backend(request):
    return BACKENDS[request.param](request)


def drawn(chains):
    return [[(node.path, node.steps[-1].ids, node.stop) for node in chain] for chain in chains]


@pytest.fixture(scope="module")
def reference(backend, sums):
    """Four whole chains of every problem."""
    return [drawn(chains) for chains in backend.extend([Want(p, Node(), 4, to_end=True) for p in sums], 3, SAMPLING)]


def test_the_protocol(backend):
    assert isinstance(backend, Policy)


def test_the_laws_below_see_varied_chains(reference):
    """A guard: chains of one token or of one kind would let everything pass."""
    chains = [chain for chains in reference for chain in chains]
    assert len({c[0][1] for c in chains}) > 3
    assert {c[-1][2] for c in chains} >= {"answer"} and max(map(len, chains)) >= 3


def test_a_seed_is_the_chains(backend, sums, reference):
    """Bug: a run that cannot be repeated, or one that ignores its seed."""
    wants = [Want(p, Node(), 4, to_end=True) for p in sums]
    assert [drawn(chains) for chains in backend.extend(wants, 3, SAMPLING)] == reference
    assert [drawn(chains) for chains in backend.extend(wants, 4, SAMPLING)] != reference


def test_the_batch_does_not_matter(backend, sums, reference):
    """Bug: noise from one stream, so a chain depends on its neighbours, their order and how many there are."""
    for i in (5, 0):
        [alone] = backend.extend([Want(sums[i], Node(), 1, to_end=True)], 3, SAMPLING)
        assert drawn(alone) == reference[i][:1]
    turned = backend.extend([Want(p, Node(), 2, to_end=True) for p in reversed(sums)], 3, SAMPLING)
    assert [drawn(chains) for chains in reversed(turned)] == [chains[:2] for chains in reference]
    later = backend.extend([Want(p, Node(), 2, to_end=True, first=2) for p in sums], 3, SAMPLING)
    assert [drawn(chains) for chains in later] == [chains[2:] for chains in reference]


def test_step_by_step_is_the_same_as_to_the_end(backend, sums, reference):
    """Bug: a tree search and a whole chain see different proposals from one seed."""
    wants = [Want(p, Node(), 1) for p in sums]
    chains = [[] for _ in sums]
    while wants:
        grown = backend.extend(wants, 3, SAMPLING)
        for want, [chain] in zip(wants, grown, strict=True):
            assert len(chain) == 1
            chains[sums.index(want.problem)] += chain
        ends = [(want.problem, chain[0]) for want, [chain] in zip(wants, grown, strict=True)]
        wants = [Want(problem, node, 1) for problem, node in ends if not node.finished]
    assert [drawn([chain])[0] for chain in chains] == [r[0] for r in reference]


def test_what_a_chain_is(backend, sums):
    """Bugs: nodes that do not extend their parents; tokens without log-probs; a finished node inside a chain."""
    root = Node((7,), (Step("1+1=2", ids=tuple(backend.extend([Want(sums[0], Node())], 0)[0][0][0].steps[0].ids)),))
    [chains] = backend.extend([Want(sums[0], root, 3, to_end=True, first=5)], 3, SAMPLING)
    for k, chain in enumerate(chains):
        before = root
        for depth, node in enumerate(chain):
            assert node.path == (*root.path, 5 + k, *[0] * depth)
            assert node.steps[:-1] == before.steps and not before.finished
            assert len(node.steps[-1].ids) == len(node.steps[-1].logprobs) > 0
            assert all(value <= 0 for value in node.steps[-1].logprobs)
            before = node
        assert chain[-1].finished
        assert (chain[-1].stop == "answer") == (chain[-1].trace.answer is not None)


@pytest.mark.parametrize("step_tokens, chain_tokens", [(3, 40), (12, 7), (12, 6), (12, 1), (20, 20)])
def test_limits_stop_a_chain_and_are_called_length(backend, sums, step_tokens, chain_tokens):
    """Bugs: a limit that is silently ignored; a chain cut by it that counts as finished."""
    limited = Sampling(1.0, step_tokens, chain_tokens)
    chains = [c for cs in backend.extend([Want(p, Node(), 8, to_end=True) for p in sums], 3, limited) for c in cs]
    for chain in chains:
        assert tokens_of(chain) <= chain_tokens
        assert all(len(node.steps[-1].ids) <= step_tokens for node in chain)
    cut = [chain for chain in chains if chain[-1].stop == "length"]
    assert cut and all(chain[-1].trace.answer is None for chain in cut)
    for chain in cut:
        assert tokens_of(chain) == chain_tokens or len(chain[-1].steps[-1].ids) == step_tokens


def test_a_prefix_counts_against_the_chain_limit(backend, sums, encoder):
    """Bug: every extension starts the count anew, so a tree search may write longer chains than sampling."""
    ids = tuple(encoder.text("1+1+1+1=4\n"))
    node = Node((0,), (Step("1+1+1+1=4", ids=ids),))
    assert len(ids) == 10
    for chain in backend.extend([Want(sums[0], node, 6, to_end=True)], 3, Sampling(1.0, 12, 14))[0]:
        assert tokens_of(chain) <= 4


def test_greedy_ignores_the_seed(backend, sums):
    greedy = Sampling(0.0, 12, 40)
    one, two = (backend.extend([Want(p, Node(), 2, to_end=True) for p in sums], seed, greedy) for seed in (1, 2))
    assert [[[n.steps[-1].ids for n in c] for c in cs] for cs in one] == [
        [[n.steps[-1].ids for n in c] for c in cs] for cs in two
    ]
    assert all(a[-1].steps[-1].ids == b[-1].steps[-1].ids for a, b in one)


def test_a_bill_reads_the_prefix_once(backend, sums):
    """Bugs: prompt tokens counted once a sample, or the prefix left out of a sampled token's price."""
    prefix = backend.prompt_tokens(sums[0], Node())
    cost = bill(backend, prefix, [3, 5])
    assert (cost.prompt, cost.sampled, cost.policy_calls) == (prefix, 8, 1)
    whole = backend.flops(0, prefix, head=False) + backend.flops(prefix, 3) + backend.flops(prefix, 5)
    assert cost.policy_flops == whole
    assert backend.flops(0, prefix) + backend.flops(prefix, 5) == pytest.approx(backend.flops(0, prefix + 5))
    step = backend.extend([Want(sums[0], Node())], 0, SAMPLING)[0][0][0]
    assert backend.prompt_tokens(sums[0], step) == prefix + len(step.steps[0].ids)


# --- the local backend --------------------------------------------------------------------------------------------


def test_greedy_equals_transformers_generate(policy, micro, sums):
    """Bug: padding, positions or a cache of our own that quietly change what the model says."""
    chains = policy.extend([Want(p, Node(), 1, to_end=True) for p in sums], 0, Sampling(0.0, 200, 30))
    compared = 0
    for problem, [chain] in zip(sums, chains, strict=True):
        prompt = torch.tensor([policy.encoder.prompt(problem.prompt)])
        ours = [t for node in chain for t in node.steps[-1].ids]
        with torch.inference_mode():
            theirs = micro.generate(prompt, do_sample=False, max_new_tokens=30, attention_mask=torch.ones_like(prompt))
        assert ours == theirs[0, prompt.shape[1] :].tolist()[: len(ours)]
        compared += len(ours)
    assert compared > 60


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_a_full_forward_pass(policy, micro, sums, temperature):
    """Bug: log-probs of another distribution than the one that sampled (T = 1 in the loss, .7 in the sampler)."""
    chains = policy.extend([Want(p, Node(), 4, to_end=True) for p in sums], 1, Sampling(temperature, 12, 40))
    for problem, chain in ((p, c) for p, cs in zip(sums, chains, strict=True) for c in cs):
        ids = policy.encoder.encode(problem.prompt, chain[-1].steps).ids
        start = len(policy.encoder.prompt(problem.prompt))
        with torch.no_grad():
            logits = micro(torch.tensor([ids])).logits[0, start - 1 : -1] / temperature
        want = logits.log_softmax(-1)[torch.arange(len(ids) - start), torch.tensor(ids[start:])]
        got = torch.tensor([v for step in chain[-1].steps for v in step.logprobs])
        assert torch.allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 3, 512])
def test_the_size_of_a_forward_pass_does_not_matter(micro, tokenizer, policy, sums, batch):
    """Bug: rows that leave the batch, or wants that fall into another group, disturb the others."""
    nodes = [Node((i,), (Step("1+1=2"),) * (i % 3)) for i in range(len(sums))]
    wants = [Want(p, node, 1 + i % 3, to_end=i % 2 == 0) for i, (p, node) in enumerate(zip(sums, nodes, strict=True))]
    small = LocalPolicy(micro, tokenizer, batch=batch)
    alone = [policy.extend([want], 9, SAMPLING)[0] for want in wants]
    assert [drawn(chains) for chains in small.extend(wants, 9, SAMPLING)] == [drawn(chains) for chains in alone]


def test_positions_are_counted_from_the_first_real_token(tokenizer, sums):
    """Bug: padding counted as positions. Rotary models forgive it, models with learnt positions do not."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=200, initializer_range=0.4
    )
    policy = LocalPolicy(GPT2LMHeadModel(config).eval(), tokenizer)
    wants = [Want(p, Node((0,), (Step("1+1=2"),) * (3 * i)), 2) for i, p in enumerate(sums[:3])]
    alone = [drawn(policy.extend([want], 0, SAMPLING)[0]) for want in wants]
    assert [drawn(chains) for chains in policy.extend(wants, 0, SAMPLING)] == alone


def test_draws_follow_the_softmax():
    """Bug: noise correlated over the vocabulary, with the place, or the same at every place."""
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -3.0, 0.5]])
    p, n = logits[0].softmax(0), 40_000
    keys, rows = (np.arange(n) * 977 + 12345).astype(np.uint64), np.zeros(n, dtype=np.int64)
    tokens = [draw(logits.log_softmax(-1), rows, keys, np.full(n, place)) for place in (0, 1)]
    for drawn in tokens:
        counts = torch.bincount(drawn, minlength=6).double()
        assert ((counts - n * p).square() / (n * p)).sum() < 22.0  # chi-square, 5 degrees of freedom, p = .0005
    both = torch.zeros(6, 6).index_put(tuple(tokens), torch.ones(n), accumulate=True)
    assert ((both - n * p[:, None] * p).square() / (n * p[:, None] * p)).sum() < 70.0  # 35 degrees of freedom


def test_a_large_vocabulary_is_drawn_by_blocks_as_it_would_be_whole():
    """Bug: a block's edge drawn twice or never, a token without probability, the vocabulary's ragged end."""
    size, n = 5 * 256 + 77, 4000
    torch.manual_seed(0)
    logits = torch.randn(3, size, dtype=torch.float64) * 2
    logits[:, ::3] = -torch.inf
    logits[1, 300:] = -torch.inf
    logprobs, rows = logits.log_softmax(-1), np.arange(n) % 3
    keys, places = (np.arange(n) * 31).astype(np.uint64), np.zeros(n, dtype=np.int64)
    sums = logprobs.exp().cumsum(-1)[torch.as_tensor(rows)]
    want = torch.searchsorted(sums, torch.as_tensor(uniform(keys, places))[:, None] * sums[:, -1:], right=True)[:, 0]
    assert torch.equal(draw(logprobs, rows, keys, places), want)


def test_a_uniform_number_is_never_0_or_1():
    """Bug: a number rounded up to 1 draws past the last token, one rounded to 0 draws a token without probability."""
    u = uniform(np.arange(200_000).astype(np.uint64), np.arange(200_000) % 7)
    assert 0 < u.min() < 1e-4 and 1 - 1e-4 < u.max() < 1 and abs(u.mean() - 0.5) < 0.002
    edge = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    assert set(draw(edge, np.zeros(999, dtype=np.int64), np.arange(999).astype(np.uint64), np.zeros(999)).tolist()) == {
        1
    }


def test_filters_by_hand():
    """Bugs: top-p that drops the token that crosses the line, or the likeliest; log-probs of the unfiltered softmax."""
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()

    def kept(**filters):
        return log_probabilities(logits, Sampling(**filters))[0].exp().tolist()

    assert kept() == pytest.approx([0.5, 0.3, 0.15, 0.05])
    assert kept(top_k=2) == pytest.approx([0.625, 0.375, 0, 0])
    assert kept(top_p=0.81) == pytest.approx([0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0])
    assert kept(top_p=0.79) == pytest.approx([0.625, 0.375, 0, 0]) and kept(top_p=1e-9) == [1, 0, 0, 0]
    assert kept(top_k=3, top_p=0.6) == pytest.approx([0.625, 0.375, 0, 0]), "top-p of what top-k left"
    assert kept(temperature=0.5, top_k=2) == pytest.approx([25 / 34, 9 / 34, 0, 0])


def test_a_full_context_is_an_error(policy, tokenizer, sums):
    """Bug: positions past what the model was trained on, silently; the whole chain must fit, not its first step."""
    limit, long = policy.model.config.max_position_embeddings, 400
    node = Node((0,), (Step("x" * long),))
    with pytest.raises(WorkbenchError, match=f"{sums[0].id}.*{limit}"):
        policy.extend([Want(sums[0], node)], 0, Sampling(1.0, limit, 9999))
    with pytest.raises(WorkbenchError, match=f"{sums[0].id}.*{limit}"):
        policy.extend([Want(sums[0], node, to_end=True)], 0, Sampling(1.0, 8, 9999))
    assert policy.extend([Want(sums[0], node)], 0, Sampling(1.0, 8, 9999))[0][0]


def test_embeddings_larger_than_the_tokenizer(micro, tokenizer, sums):
    """Bug: many checkpoints pad their embeddings; a sampled id past the tokenizer ends the run with an IndexError."""
    large = copy.deepcopy(micro)
    large.resize_token_embeddings(len(tokenizer) + 50)
    with torch.no_grad():
        large.lm_head.weight[len(tokenizer) :] = 3 * micro.lm_head.weight[20]
    chains = LocalPolicy(large, tokenizer).extend(
        [Want(p, Node(), 4, to_end=True) for p in sums], 0, Sampling(5.0, 12, 40)
    )
    assert max(t for cs in chains for c in cs for node in c for t in node.steps[-1].ids) >= len(tokenizer)


def test_sampling_leaves_the_mode_of_the_model(micro, tokenizer, sums):
    model = copy.deepcopy(micro).train()
    LocalPolicy(model, tokenizer).extend([Want(sums[0], Node())], 0, SAMPLING)
    assert model.training


def test_nothing_wanted_is_nothing_drawn(policy, sums):
    assert policy.extend([], 0, SAMPLING) == []
    assert policy.extend([Want(sums[0], Node(), 0)], 0, SAMPLING) == [[]]


# --- the scripted backend -----------------------------------------------------------------------------------------


def share(policy, asked, temperature=1.0, n=4000):
    drawn = policy.extend([Want(p, Node(), 1, to_end=True) for p in asked(n)], 0, Sampling(temperature))
    return sum(chain[-1].trace.answer == "1" for [chain] in drawn) / n


def test_scripted_probabilities(asked):
    """Bug: a fake that does not have the probabilities it says, so every exact test above it is off."""
    table = Scripted({(): [("a", 0.25), ("b", 0.75)], ("a",): [("=1", 1.0)], ("b",): [("=1", 0.2), ("=0", 0.8)]})
    assert share(table, asked) == pytest.approx(0.25 + 0.75 * 0.2, abs=0.03)
    assert share(table, asked, temperature=0.0, n=5) == 0.0
    sharp = 0.25**2 / (0.25**2 + 0.75**2) + 0.75**2 / (0.25**2 + 0.75**2) * 0.2**2 / (0.2**2 + 0.8**2)
    assert share(table, asked, temperature=0.5) == pytest.approx(sharp, abs=0.03)


def test_scripted_tables_add_up_and_end(asked):
    with pytest.raises(WorkbenchError, match="add up to 0.9"):
        Scripted({(): [("a", 0.9)]})
    [[chain]] = Scripted({(): [("a", 1.0)]}).extend([Want(asked(1)[0], Node(), to_end=True)])
    assert chain[-1].stop == "cut"


# --- keys and values that are kept ----------------------------------------------------------------------------------


def varied(sums):
    nodes = [Node((i,), (Step("1+1=2"),) * (i % 3)) for i in range(len(sums))]
    return [Want(p, node, 3, to_end=i % 2 == 0) for i, (p, node) in enumerate(zip(sums, nodes, strict=True))]


@pytest.mark.parametrize("cache", [0, 1, 20_000, 1 << 24])
def test_the_cache_does_not_matter(micro, tokenizer, policy, sums, cache):
    """Bugs: an evicted prefix that is used; a slot that two prefixes share; a tree that depends on memory."""
    want = [drawn(chains) for chains in LocalPolicy(micro, tokenizer, cache=0).extend(varied(sums), 9, SAMPLING)]
    small = LocalPolicy(micro, tokenizer, cache=cache, batch=5)
    for _ in range(2):
        assert [drawn(chains) for chains in small.extend(varied(sums), 9, SAMPLING)] == want
    held = sum(prefix.own for prefix in small.pool.held.values())
    assert held <= small.pool.capacity and held + len(small.pool.free) == small.pool.size <= max(1, small.pool.capacity)
    assert all(p.parent is None or p.parent.tokens in small.pool.held for p in small.pool.held.values())


def test_a_cached_prefix_is_not_read_again(micro, tokenizer, sums):
    """Bugs: a cache that is never hit; a hit that is reported as read, and billed."""
    fresh = LocalPolicy(micro, tokenizer)
    prompts = [len(fresh.encoder.prompt(p.prompt)) for p in sums]
    firsts = [chain[0] for [chain] in fresh.extend([Want(p, Node(), 1) for p in sums], 3, SAMPLING)]
    assert fresh.read == [n - 1 for n in prompts], "the last token is read with the first one drawn"
    going = [(p, node) for p, node in zip(sums, firsts, strict=True) if not node.finished]
    fresh.extend([Want(p, node, 4) for p, node in going], 3, SAMPLING)
    assert len(going) > 3 and fresh.read == [0] * len(going)
    none = LocalPolicy(micro, tokenizer, cache=0)
    none.extend([Want(p, node, 4) for p, node in going], 3, SAMPLING)
    assert none.read == [len(none.encoder.encode(p.prompt, node.steps).ids) - 1 for p, node in going]


def test_what_is_read_again_is_on_the_bill(micro, tokenizer, sums):
    """Bug: with a small cache a search costs more time, and the ledger does not know it."""
    from workbench.search import drive

    results = []
    for cache in (1 << 26, 0):
        policy = LocalPolicy(micro, tokenizer, cache=cache)
        results.append(drive(sums, "adaptive", policy, sampling=SAMPLING, n=6, batch=2, confidence=1.0))
    for kept, dropped, p in zip(*results, sums, strict=True):
        assert kept.cost.reread == 0 and kept.answer == dropped.answer
        assert dropped.cost.reread == 2 * (policy.prompt_tokens(p, Node()) - 1), (
            "the prompt, at the 2nd and 3rd request"
        )
        assert dropped.cost.flops - dropped.cost.reread_flops == kept.cost.flops < dropped.cost.flops


def test_a_weight_that_changes_empties_the_cache(micro, tokenizer, sums):
    """Bug: after an update the policy goes on from what its old weights made."""
    model = copy.deepcopy(micro)
    policy, wants = LocalPolicy(model, tokenizer), [Want(p, Node(), 2, to_end=True) for p in sums]
    before = policy.extend(wants, 3, SAMPLING)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(-1)
    after = policy.extend(wants, 3, SAMPLING)
    assert after != before
    fresh = LocalPolicy(model, tokenizer).extend(wants, 3, SAMPLING)
    assert [drawn(chains) for chains in after] == [drawn(chains) for chains in fresh]


def test_equal_chains_are_one_row(micro, tokenizer, sums, monkeypatch):
    """Bug: 64 samples of one prompt are 64 rows from the first token on."""
    policy, rows = LocalPolicy(micro, tokenizer), []
    forward = policy.rows.forward
    monkeypatch.setattr(
        policy.rows, "forward", lambda ids, at, first=None: rows.append(len(at)) or forward(ids, at, first)
    )
    [chains] = policy.extend([Want(sums[0], Node(), 64)], 3, SAMPLING)
    tokens = [chain[0].steps[-1].ids for chain in chains]
    read = [len({t[:k] for t in tokens if len(t) > k}) for k in range(1, max(map(len, tokens)))]
    assert rows[1:] == [1, *read] and read[0] < 64


# --- other weights --------------------------------------------------------------------------------------------------


def test_adapters_by_name(micro, tokenizer, sums):
    """Bugs: an adapter that is named and not used; one policy's adapter left on for the next."""
    peft = pytest.importorskip("peft")
    model = copy.deepcopy(micro)
    plain = LocalPolicy(micro, tokenizer).extend([Want(p, Node(), 2, to_end=True) for p in sums], 3, SAMPLING)
    torch.manual_seed(0)
    for name in ("one", "two"):
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model.add_adapter(config, adapter_name=name)
    model.eval()
    policies = {name: LocalPolicy(model, tokenizer, adapter=name) for name in ("one", "two")}
    wants = [Want(p, Node(), 2, to_end=True) for p in sums]
    found = {name: policy.extend(wants, 3, SAMPLING) for name, policy in policies.items()}
    assert found["one"] != found["two"] != plain != found["one"]
    assert {name: policy.extend(wants, 3, SAMPLING) for name, policy in policies.items()} == found
    with pytest.raises(WorkbenchError, match="no adapter 'three': it has one, two"):
        LocalPolicy(model, tokenizer, adapter="three")


def test_large_fp32_weights_are_laid_out_once_and_again_when_they_change(micro, tokenizer, sums, monkeypatch):
    """Bugs: what was laid out outlives the weights; an adapter merged into them goes unseen; nothing was laid out."""
    peft = pytest.importorskip("peft")
    monkeypatch.setattr(kv, "LARGE", 0)
    laid, forward = [], kv.Packed._forward
    monkeypatch.setattr(kv.Packed, "_forward", staticmethod(lambda layer: laid.append(layer) or forward(layer)))
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(copy.deepcopy(micro), config).eval()
    policy, wants = LocalPolicy(model, tokenizer), [Want(p, Node(), 2, to_end=True) for p in sums]

    def agree():
        for p, chains in zip(sums, policy.extend(wants, 3, SAMPLING), strict=True):
            for chain in chains:
                ids = policy.encoder.encode(p.prompt, chain[-1].steps).ids
                start = len(policy.encoder.prompt(p.prompt))
                with torch.no_grad():
                    logits = model(torch.tensor([ids])).logits[0, start - 1 : -1].float()
                want = logits.log_softmax(-1)[torch.arange(len(ids) - start), torch.tensor(ids[start:])]
                got = torch.tensor([x for step in chain[-1].steps for x in step.logprobs])
                assert torch.allclose(got, want[: len(got)], atol=1e-4)

    agree()
    once = len(laid)
    assert once > 0
    agree()
    assert len(laid) == once, "laid out again for nothing"
    with torch.no_grad():
        model.base_model.model.model.layers[0].mlp.down_proj.base_layer.weight.mul_(-1)
    agree()
    model.merge_adapter()
    agree()
    model.unmerge_adapter()
    agree()
    assert len(laid) == 4 * once and not any("forward" in vars(module) for module in model.modules())


def test_bf16(micro, tokenizer, sums):
    """Weights laid out for the processor give the chains' log-probs, and the model is left as it was."""
    model = copy.deepcopy(micro).bfloat16()
    policy = LocalPolicy(model, tokenizer)
    for p, [chain] in zip(sums, policy.extend([Want(p, Node(), 1) for p in sums], 1, SAMPLING), strict=True):
        ids = policy.encoder.encode(p.prompt, chain[-1].steps).ids
        start = len(policy.encoder.prompt(p.prompt))
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, start - 1 : -1].float()
        want = logits.log_softmax(-1)[torch.arange(len(ids) - start), torch.tensor(ids[start:])]
        assert torch.allclose(torch.tensor(chain[0].steps[-1].logprobs), want, atol=0.15)
    assert not any("forward" in vars(module) for module in model.modules())


def test_4_bit_weights(tokenizer, sums, tmp_path):
    """NF4 through bitsandbytes, on whatever device there is: chains as from the model's own forward pass."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    from workbench.models import load_model, new_model

    new_model("nano", tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model, _ = load_model(tmp_path, quantization_config=nf4, dtype=torch.float32)
    assert any("4bit" in type(module).__name__ for module in model.modules())
    policy = LocalPolicy(model, tokenizer)
    for p, [chain] in zip(sums, policy.extend([Want(p, Node(), 1) for p in sums], 1, SAMPLING), strict=True):
        ids = policy.encoder.encode(p.prompt, chain[-1].steps).ids
        start = len(policy.encoder.prompt(p.prompt))
        with torch.no_grad():
            logits = model(torch.tensor([ids], device=model.device)).logits[0, start - 1 : -1].float().cpu()
        want = logits.log_softmax(-1)[torch.arange(len(ids) - start), torch.tensor(ids[start:])]
        assert torch.allclose(torch.tensor(chain[0].steps[-1].logprobs), want, atol=2e-3)


def test_layers_with_a_window_are_refused(tokenizer, sums):
    """Bug: sliding-window layers that see too much, silently."""
    from transformers import MistralConfig, MistralForCausalLM

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=len(tokenizer), num_key_value_heads=1, sliding_window=8, **small)
    with pytest.raises(WorkbenchError, match="sliding"):
        LocalPolicy(MistralForCausalLM(config), tokenizer).extend([Want(sums[0], Node())])
