"""Law tests of every policy backend, and the local one against independent computations."""

import copy
import pkgutil

import numpy as np
import pytest
import torch

from workbench import policies
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


def test_a_prefix_counts_against_the_chain_limit(backend, sums):
    """Bug: every extension starts the count anew, so a tree search may write longer chains than sampling."""
    node = Node((0,), (Step("1+1=2", ids=tuple(range(10))),))
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
