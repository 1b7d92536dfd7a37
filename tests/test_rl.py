"""Reinforcement learning: each test names the mistake it pins."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch

from workbench import rl
from workbench.fit import Fit, optimiser
from workbench.policies import Sampling, Want
from workbench.policies.local import LocalPolicy
from workbench.rl import GRPO, advantages, clipped_loss
from workbench.runs import Run
from workbench.tasks import get
from workbench.types import Node, Problem, Step, Trace, WorkbenchError

CONFIG = GRPO(4, (), 3, 4, updates=2, lr=1e-3, muon_lr=1e-2, step_tokens=12, chain_tokens=30, check_every=2)
ONE = replace(CONFIG, updates=1)


@pytest.fixture
def learner(micro, tokenizer):
    """A policy of one's own, which a test may train."""
    return LocalPolicy(copy.deepcopy(micro), tokenizer)


def chains(policy, problems, group=4, temperature=1.0):
    grown = policy.extend([Want(p, Node(), group, to_end=True) for p in problems], 0, Sampling(temperature, 12, 30))
    return [(p, chain[-1].trace) for p, cs in zip(problems, grown, strict=True) for chain in cs]


def adam(policy, lr=1e-3):
    return optimiser(policy.model, Fit(lr=lr, muon_lr=0.0, weight_decay=0.0))


# --- advantages ---------------------------------------------------------------------------------------------------


def test_advantages_by_hand():
    """Bugs: a mean over the batch in place of the group; the n - 1 deviation; a uniform group that is not silent."""
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [2.0, 4.0, 2.0, 4.0], [0.7, 0.7, 0.7, 0.7]])
    third = math.sqrt(3)
    want = [[third, -1 / third, -1 / third, -1 / third], [-1.0, 1.0, -1.0, 1.0], [0.0] * 4]
    assert advantages(rewards).tolist() == [pytest.approx(row, abs=1e-5) for row in want]
    assert advantages(rewards)[2].tolist() == [0.0] * 4, "exactly 0: rounding must not become an advantage of 1"


def test_a_group_of_one_is_refused():
    """Bug: one-sample groups give NaN."""
    with pytest.raises(WorkbenchError, match="group of one"):
        advantages(torch.ones(5, 1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_refused(bad):
    with pytest.raises(WorkbenchError, match="reward is not a finite number"):
        advantages(torch.tensor([[1.0, bad]]))


# --- rewards ------------------------------------------------------------------------------------------------------


class Flat:
    """A verifier that likes every step equally well."""

    def __init__(self, encoder):
        self.encoder = encoder

    def flops(self, prefix, new, head=True):
        return 2.0 * new

    def score(self, items):
        assert all(p.answer is None for p, _ in items), "a verifier saw the gold answer"
        return [(0.5,) * (len(t.steps) - 1) + (0.25,) for _, t in items]


def test_unfinished_chains_earn_nothing(encoder):
    """Bug: reward for unfinished reasoning: a chain that rambles on collects the most good steps."""
    p = Problem("p", "arithmetic", "1+1+1", "3")
    done = Trace((Step("1+1=2"), Step("2+1=3"), Step("3", final=True)))
    items = [(p, done)] + [(p, Trace(done.steps, stop)) for stop in ("length", "cut")]
    items += [(p, Trace((Step("1+1=2"),) * 9, "length")), (p, Trace((), "cut"))]
    for reward, want in (
        (rl.outcome, 1.0),
        (rl.process(Flat(encoder), "sum"), 1.25),
        (rl.process(Flat(encoder)), 0.25),
    ):
        assert reward(items)[0] == [want, 0.0, 0.0, 0.0, 0.0]
    wrong = Trace((Step("1+1=2"), Step("2", final=True)))
    assert rl.outcome([(p, wrong)])[0] == [0.0] and rl.process(Flat(encoder), "sum")([(p, wrong)])[0] == [0.75]


def test_what_a_process_reward_costs(policy, encoder, sums):
    """Bug: the verifier's compute in training goes uncounted."""
    items = chains(policy, sums[:2])
    cost = rl.process(Flat(encoder))(items)[1]
    assert cost.judged == sum(policy.prompt_tokens(p, Node((0,), trace.steps)) for p, trace in items)
    assert cost.verifier_flops == 2.0 * cost.judged and cost.sampled == 0


def test_an_unknown_form_of_reward_is_refused(encoder):
    with pytest.raises(WorkbenchError, match="'mean'"):
        rl.process(Flat(encoder), "mean")


# --- the loss -----------------------------------------------------------------------------------------------------


def slow_loss(new, old, advantage, mask, clip):
    """The definition, token by token."""
    responses = []
    for row in range(len(new)):
        gains = []
        for token in range(len(new[row])):
            if mask[row][token]:
                ratio = math.exp(new[row][token] - old[row][token])
                clipped = min(max(ratio, 1 - clip), 1 + clip)
                gains.append(min(ratio * advantage[row], clipped * advantage[row]))
        responses.append(sum(gains) / len(gains))
    return -sum(responses) / len(responses)


def test_clipped_loss_by_hand():
    """One token each: a gain that is clipped, a loss that must not be, and one inside the range."""
    new = torch.log(torch.tensor([[1.5], [1.5], [0.5], [0.5], [1.1]]))
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    want = -(1.2 - 1.5 + 0.5 - 0.8 + 2.2) / 5
    assert clipped_loss(new, torch.zeros(5, 1), advantage, torch.ones(5, 1), 0.2).item() == pytest.approx(want)


@pytest.mark.parametrize("seed", range(5))
def test_clipped_loss_against_a_slow_specification(seed):
    """Bugs: a mean over tokens of all rows; padding in the mean; the maximum in place of the minimum."""
    g = torch.Generator().manual_seed(seed)
    new, old = (-torch.rand(6, 9, generator=g) * 2 for _ in range(2))
    advantage = torch.randn(6, generator=g)
    lengths = torch.randint(1, 10, (6,), generator=g)
    mask = (torch.arange(9) < lengths[:, None]).float()
    got = clipped_loss(new, old, advantage, mask, 0.3)
    assert got.item() == pytest.approx(slow_loss(*(x.tolist() for x in (new, old, advantage, mask)), 0.3), abs=1e-6)
    halves = [clipped_loss(new[i], old[i], advantage[i], mask[i], 0.3, divisor=6) for i in (slice(4), slice(4, 6))]
    assert sum(halves).item() == pytest.approx(got.item(), abs=1e-6), "parts of a batch add up to the batch"


def test_the_gradient_of_a_clipped_gain_is_zero():
    """Bug: a ratio past the clip goes on being pushed."""
    new = torch.log(torch.tensor([[1.5, 1.0], [0.5, 1.0]])).requires_grad_()
    clipped_loss(new, torch.zeros(2, 2), torch.tensor([1.0, -1.0]), torch.ones(2, 2)).backward()
    assert new.grad[:, 0].tolist() == [0.0, 0.0] and new.grad[:, 1].abs().min() > 0


def gradients(policy, items, advantage, rows=128):
    """What `update` hands the optimiser for these chains, before the norm is clipped away by a step."""
    grads = {}

    class Keep(torch.optim.SGD):
        def step(self, closure=None):
            grads.update({n: p.grad.clone() for n, p in policy.model.named_parameters()})

    stats = rl.update(policy, Keep(policy.model.parameters(), lr=0.0), items, advantage, ONE, rows)
    return grads, stats


def test_padding_does_not_change_the_loss(learner, sums):
    """Bugs: masked values leak in; positions that count the padding; accumulation that scales the loss."""
    items = chains(learner, [*sums[:3], get("arithmetic").parse("1+2")], group=3)
    assert len({len(learner.encoder.prompt(p.prompt)) for p, _ in items}) > 1
    assert len({trace.tokens for _, trace in items}) > 3
    advantage = torch.randn(len(items), generator=torch.Generator().manual_seed(0))
    whole, stats = gradients(learner, items, advantage)
    for rows in (1, 5):
        parts, more = gradients(learner, items, advantage, rows)
        assert all(torch.allclose(whole[n], parts[n], atol=2e-6, rtol=1e-3) for n in whole)
        assert more["loss"] == pytest.approx(stats["loss"], abs=1e-5)
        assert more["trained"] < stats["trained"]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_first_ratio_is_one(learner, sums, temperature):
    """Bug: sampled at one temperature, trained at another: ratios of 2 on the first step."""
    items = chains(learner, sums, temperature=temperature)
    config = replace(ONE, temperature=temperature)
    stats = rl.update(learner, adam(learner), items, torch.ones(len(items)), config)
    assert stats["ratio_max"] < 1e-3 and stats["clipped"] == 0
    again = rl.update(learner, adam(learner), items, torch.ones(len(items)), config)
    assert again["ratio_max"] > 1e-3, "the policy has moved, so the ratio must show it"


def test_the_loss_is_the_policy_gradient(learner, sums):
    """Against the plain estimator: at a ratio of 1 the gradient is -A x grad log p, a mean over tokens, then chains."""
    items = chains(learner, sums[:2], group=2)
    advantage = torch.tensor([1.0, -0.5, 2.0, 0.0])
    got, _ = gradients(learner, items, advantage)
    learner.model.zero_grad()
    total = 0.0
    for (p, trace), a in zip(items, advantage.tolist(), strict=True):
        ids, start = learner.encoder.encode(p.prompt, trace.steps).ids, len(learner.encoder.prompt(p.prompt))
        logp = learner.model(torch.tensor([ids])).logits[0, start - 1 : -1].log_softmax(-1)
        total = total - a * logp[range(len(ids) - start), ids[start:]].mean() / len(items)
    total.backward()
    norm = torch.nn.utils.clip_grad_norm_(learner.model.parameters(), 1.0)
    assert norm > 0
    for name, p in learner.model.named_parameters():
        assert torch.allclose(p.grad, got[name], atol=1e-5, rtol=1e-3), name


def test_uniform_groups_change_nothing(learner, sums):
    """Bug: an all-equal group dilutes the batch, or momentum moves the weights where nothing was learnt."""
    items, before = chains(learner, sums[:2]), copy.deepcopy(learner.model.state_dict())
    optimizer = adam(learner)
    stats = rl.update(learner, optimizer, items, torch.zeros(len(items)), CONFIG)
    assert stats["loss"] is None and stats["trained"] == 0 and stats["training_flops"] == 0
    assert all(torch.equal(v, before[k]) for k, v in learner.model.state_dict().items())
    mixed = torch.tensor([0.0] * 4 + [1.0, -0.5, 2.0, -1.0])
    alone, one = gradients(learner, items[4:], mixed[4:])
    both, two = gradients(learner, items, mixed)
    assert two["loss"] == pytest.approx(one["loss"] / 2, rel=1e-3), "the mean is over all chains, silent ones too"
    norm = [math.sqrt(sum(g.square().sum() for g in grads.values())) for grads in (alone, both)]
    cosine = sum((alone[n] * both[n]).sum() for n in alone) / norm[0] / norm[1]
    assert cosine > 0.9999, "the direction is that of the group that has something to teach"


def test_several_updates_use_every_chain_once(learner, sums):
    """Bug: with more than one update a step, chains are dropped or seen twice."""
    items = chains(learner, sums[:2])
    once, twice = (GRPO(updates=n, lr=0.0) for n in (1, 2))
    advantage = torch.tensor([1.0, -1.0, 0.0, 1.0, -1.0, 1.0, -1.0, 0.5])
    seen = []
    original = rl._batch
    for config in (once, twice):
        found = []
        rl._batch = lambda policy, part, found=found: (found.extend(map(id, part)), original(policy, part))[1]
        try:
            rl.update(learner, adam(learner, 0.0), items, advantage, config)
        finally:
            rl._batch = original
        seen.append(sorted(found))
    assert seen[0] == seen[1] == sorted(id(item) for i, item in enumerate(items) if advantage[i])


# --- the run ------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def length(items):
    """A reward that any policy can win: the more digits the better. It never agrees on a whole group for long."""
    return [float(sum(c.isdigit() for s in t.steps for c in s.text)) for _, t in items], rl.Cost(judged=len(items))


def train(policy, folder, reward=length, config=CONFIG, held_out=()):
    run = Run.open(folder, {"config": config})
    return rl.train(policy, "arithmetic", reward, config, run, held_out, progress=False)


def timeless(history):
    rows = json.loads(json.dumps(history))
    for row in rows:
        row["cost"] = {k: v for k, v in row.get("cost", {}).items() if "seconds" not in k}
    return rows


@pytest.fixture(scope="module")
def straight(micro, tokenizer, sums, tmp_path_factory):
    policy = LocalPolicy(copy.deepcopy(micro), tokenizer)
    folder = tmp_path_factory.mktemp("rl") / "straight"
    return train(policy, folder, held_out=sums), policy.model.state_dict(), folder


@pytest.mark.parametrize("killed_in", [1, 3, 4])
def test_exact_resume(straight, micro, tokenizer, sums, tmp_path, killed_in):
    """Bug: a checkpoint without optimiser, random state or data position: the resumed run is another run."""
    calls = [0]

    def dies(items):
        calls[0] += 1
        if calls[0] == killed_in:
            raise Killed
        return length(items)

    with pytest.raises(Killed):
        train(LocalPolicy(copy.deepcopy(micro), tokenizer), tmp_path / "run", dies, held_out=sums)
    policy = LocalPolicy(copy.deepcopy(micro), tokenizer)  # another process, which knows the start only
    resumed, calls = [], [0]
    history = train(policy, tmp_path / "run", lambda items: (resumed.append(1), length(items))[1], held_out=sums)
    assert len(resumed) == (2 if killed_in > 2 else 4), "it goes on from the last checkpoint, not from the start"
    assert timeless(history) == timeless(straight[0])
    assert timeless(Run.open(tmp_path / "run", {"config": CONFIG}).read("history")) == timeless(straight[0])
    assert all(torch.equal(v, straight[1][k]) for k, v in policy.model.state_dict().items())


def test_a_run_killed_between_history_and_checkpoint(straight, micro, tokenizer, sums, tmp_path, monkeypatch):
    """Bug: rows of the history twice, because the checkpoint they ran ahead of was lost."""
    save = rl.save_state
    monkeypatch.setattr(rl, "save_state", lambda path, m, o, step: save(path, m, o, step=step) if step < 4 else _die())
    with pytest.raises(Killed):
        train(LocalPolicy(copy.deepcopy(micro), tokenizer), tmp_path / "run", held_out=sums)
    monkeypatch.undo()
    policy = LocalPolicy(copy.deepcopy(micro), tokenizer)
    assert timeless(train(policy, tmp_path / "run", held_out=sums)) == timeless(straight[0])
    assert all(torch.equal(v, straight[1][k]) for k, v in policy.model.state_dict().items())


def _die():
    raise Killed


def test_the_history_tells_proxy_and_truth(straight, sums):
    """Bug: the proxy goes up, the true reward goes down, and nobody looks."""
    history = straight[0]
    assert [row["step"] for row in history] == [0, 1, 2, 3, 4]
    assert all(row["proxy"] > 1 and 0 <= row["true"] <= 1 for row in history[1:])
    assert [row["step"] for row in history if "true_held_out" in row] == [0, 2, 4]
    for row in history[1:]:
        assert {"unfinished", "uniform_groups", "tokens_per_chain", "entropy", "ratio_max"} <= set(row)
        cost = row["cost"]
        assert cost["sampled"] == pytest.approx(row["tokens_per_chain"] * 12) and cost["judged"] == 12
        assert cost["trained"] > 0 and cost["training_flops"] > 0 and cost["policy_flops"] > 0


def test_the_weights_move_and_learn(straight, micro, tokenizer, sums, tmp_path):
    """Bug: a sign. After some steps the policy writes more digits than before."""
    before = micro.state_dict()
    assert not any(torch.equal(v, before[k]) for k, v in straight[1].items() if "proj" in k)
    config = replace(CONFIG, steps=10, prompts=8, group=8, lr=3e-3, muon_lr=0.02, check_every=50)
    history = train(LocalPolicy(copy.deepcopy(micro), tokenizer), tmp_path / "run", config=config)
    proxy = [row["proxy"] for row in history[1:]]
    assert sum(proxy[-3:]) / 3 > sum(proxy[:3]) / 3 + 2
    assert history[0]["true_held_out"] is None, "nothing was held out, so nothing is known"


def test_the_seed_is_the_data(micro, tokenizer, straight, sums, tmp_path):
    """Bug: seed + step, so seed 1 is seed 0 shifted by one."""
    other = replace(CONFIG, seed=1)
    history = train(LocalPolicy(copy.deepcopy(micro), tokenizer), tmp_path / "run", config=other)
    assert history[1]["proxy"] != straight[0][1]["proxy"] and history[1]["proxy"] != straight[0][2]["proxy"]
