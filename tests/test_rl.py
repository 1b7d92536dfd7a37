"""Reinforcement learning: each test names the mistake it pins."""

import copy
import json
import math
import random
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from workbench import rl
from workbench.fit import Fit, optimiser
from workbench.policies import Sampling, Want
from workbench.policies.local import LocalPolicy
from workbench.policies.scripted import Scripted
from workbench.rl import RL, Batch, Earned, centred, clipped_loss, leave_one_out, normalised, token_weights
from workbench.runs import Run
from workbench.search import drive
from workbench.tasks import get
from workbench.types import Node, Problem, Step, Trace, WorkbenchError
from workbench.verifiers.oracle import Oracle

CONFIG = RL(
    steps=4, prompts=3, group=4, updates=2, lr=1e-3, muon_lr=1e-2, step_tokens=12, chain_tokens=30, check_every=2
)
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
    """Bugs: a mean over the batch in place of the group; a uniform group that is not silent."""
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [2.0, 4.0, 2.0, 4.0], [0.7, 0.7, 0.7, 0.7]])
    middle = [[0.75, -0.25, -0.25, -0.25], [-1.0, 1.0, -1.0, 1.0], [0.0] * 4]
    spread = [0.5, math.sqrt(4 / 3), 1.0]
    for found, scale in (
        (centred(rewards), [1.0] * 3),
        (leave_one_out(rewards), [3 / 4] * 3),
        (normalised(rewards), [s + 1e-4 for s in spread]),
    ):
        for row, want, s in zip(found.tolist(), middle, scale, strict=True):
            assert row == pytest.approx([w / s for w in want], abs=1e-5)
        assert found[2].tolist() == [0.0] * 4, "exactly 0: rounding must not become an advantage"


@pytest.mark.parametrize("advantages", [centred, normalised, leave_one_out])
def test_a_group_of_one_is_refused(advantages):
    """Bug: one-sample groups give NaN."""
    with pytest.raises(WorkbenchError, match="group of one"):
        advantages(torch.ones(5, 1))
    with pytest.raises(WorkbenchError, match="group of one"):
        replace(CONFIG, group=1)


@pytest.mark.parametrize("advantages", [centred, normalised, leave_one_out])
def test_no_group_at_all_has_no_advantage_and_no_warning(advantages, recwarn):
    """Bug: where all groups were alike and dropped, torch warns of a deviation of nothing."""
    assert advantages(torch.empty(0, 8)).shape == (0, 8)
    assert advantages(torch.full((3, 8), 0.7)).eq(0).all() and not recwarn.list


@pytest.mark.parametrize(
    "setting, said",
    [
        ({"steps": 0}, "steps=0: at least 1"),
        ({"rows": 0}, "rows=0: at least 1"),
        ({"prompts": 2.5}, "prompts=2.5: a whole number, at least 1"),  # Bug: told by a TypeError after the first batch
        ({"updates": True}, "updates=True: a whole number, at least 1"),
        ({"lr": -1e-4}, "lr=-0.0001: above 0"),
        ({"clip": 0.0}, "clip=0.0: above 0"),
        ({"muon_lr": -1.0}, "muon_lr=-1.0: at least 0"),
        ({"kl": -0.1}, "kl=-0.1: at least 0"),
        ({"refills": -1}, "refills=-1: at least 0"),
        ({"gamma": 1.5}, "gamma=1.5: from 0 to 1"),
    ],
)
def test_settings_outside_their_range_are_refused(setting, said):
    """Bug: a negative rate or KL is taken, and drives the policy the wrong way."""
    with pytest.raises(WorkbenchError, match=said):
        replace(CONFIG, **setting)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_refused(bad):
    with pytest.raises(WorkbenchError, match="reward is not a finite number"):
        normalised(torch.tensor([[1.0, bad]]))


# --- rewards ------------------------------------------------------------------------------------------------------


class Flat:
    """A verifier that likes every step equally well."""

    aggregate = "min"

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
        (rl.process(Flat(encoder), "outcome"), 0.25),
        (rl.process(Flat(encoder), "difference"), 0.25),
    ):
        assert reward(items).totals() == [want, 0.0, 0.0, 0.0, 0.0]
    wrong = Trace((Step("1+1=2"), Step("2", final=True)))
    assert rl.outcome([(p, wrong)]).totals() == [0.0]
    assert rl.process(Flat(encoder), "sum")([(p, wrong)]).totals() == [0.75]


def test_what_a_process_reward_costs(policy, encoder, sums):
    """Bug: the verifier's compute in training goes uncounted."""
    items = chains(policy, sums[:2])
    closed = [(p, trace) for p, trace in items if trace.stop == "answer"]
    items += [(p, replace(trace, stop="length")) for p, trace in items]
    cost = rl.process(Flat(encoder))(items).cost
    assert closed, "those that did not close are not read"
    assert cost.judged == sum(policy.prompt_tokens(p, Node((0,), trace.steps)) for p, trace in closed)
    assert cost.verifier_flops == 2.0 * cost.judged and cost.sampled == 0


@pytest.mark.parametrize(
    "rows, said",
    [
        (None, "Judge gave None and no rows"),
        ([None], "Judge gave None for 2 steps"),
        ([(0.5, None)], "Judge left a step without a score"),
    ],
)
def test_a_verifier_that_pays_nothing_is_named(encoder, rows, said):
    """Bug: a traceback for what a user's own verifier did."""
    Judge = type("Judge", (Flat,), {"score": lambda self, items: rows})
    item = Problem("p", "arithmetic", "1+1", "2"), Trace((Step("1+1=2"), Step("2", final=True)))
    with pytest.raises(WorkbenchError, match=said):
        rl.process(Judge(encoder))([item])


def test_an_outcome_verifier_pays_a_chain(encoder, sums):
    """Bug: one that scores the last step alone was refused for the steps that it need not score."""

    class Last(Flat):
        aggregate = "last"

        def score(self, items):
            return [(*[None] * (len(t.steps) - 1), 0.25) for _, t in items]

    done = Trace((Step("1+1=2"), Step("2", final=True)), "answer")
    assert rl.process(Last(encoder), "outcome")([(sums[0], done)]).chains == [0.25]
    with pytest.raises(WorkbenchError, match="without a score"):
        rl.process(Last(encoder), "sum")([(sums[0], done)])


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan])
def test_a_temperature_of_the_worst_step_is_above_0(encoder, temperature):
    """Bugs: a division by zero at the first batch; below 0 the best step was paid."""
    with pytest.raises(WorkbenchError, match="temperature=.*above 0"):
        rl.process(Flat(encoder), "min", temperature)


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
    new = torch.log(torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1]))
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    weight = token_weights([1] * 5, "response")
    want = -(1.2 - 1.5 + 0.5 - 0.8 + 2.2) / 5
    assert clipped_loss(new, torch.zeros(5), advantage, weight).item() == pytest.approx(want)
    higher = -(1.28 - 1.5 + 0.5 - 0.8 + 2.2) / 5
    assert clipped_loss(new, torch.zeros(5), advantage, weight, high=0.28).item() == pytest.approx(higher)


@pytest.mark.parametrize("seed", range(5))
def test_clipped_loss_against_a_slow_specification(seed):
    """Bugs: a mean over tokens of all rows; padding in the mean; the maximum in place of the minimum."""
    g = torch.Generator().manual_seed(seed)
    new, old = (-torch.rand(6, 9, generator=g) * 2 for _ in range(2))
    advantage = torch.randn(6, generator=g)
    lengths = torch.randint(1, 10, (6,), generator=g)
    mask = torch.arange(9) < lengths[:, None]
    flat = new[mask], old[mask], torch.repeat_interleave(advantage, lengths)
    got = clipped_loss(*flat, token_weights(lengths.tolist(), "response"), 0.3, 0.3)
    assert got.item() == pytest.approx(slow_loss(*(x.tolist() for x in (new, old, advantage, mask)), 0.3), abs=1e-6)


def test_the_gradient_of_a_clipped_gain_is_zero():
    """Bug: a ratio past the clip goes on being pushed."""
    new = torch.log(torch.tensor([1.5, 1.0, 0.5, 1.0])).requires_grad_()
    clipped_loss(new, torch.zeros(4), torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.ones(4)).backward()
    assert new.grad[[0, 2]].tolist() == [0.0, 0.0] and new.grad[[1, 3]].abs().min() > 0


def batch_of(policy, items, advantage, group=4):
    batch = Batch.of(policy, items, group)
    batch.advantage = batch.spread(torch.as_tensor(advantage).tolist())
    return batch


def gradients(policy, items, advantage, config=ONE, group=4):
    """What `update` hands the optimiser for these chains, before the norm is clipped away by a step."""
    grads = {}

    class Keep(torch.optim.SGD):
        def step(self, closure=None):
            grads.update({n: p.grad.clone() for n, p in policy.model.named_parameters()})

    stats = rl.update(
        policy, Keep(policy.model.parameters(), lr=0.0), batch_of(policy, items, advantage, group), config
    )
    return grads, stats


def test_an_update_that_was_stopped_leaves_nothing_behind(learner, sums, monkeypatch):
    """Bug: the gradient of half an update is added to the next one's, when a cell is run again."""
    items = chains(learner, sums[:3])
    advantage = torch.randn(len(items), generator=torch.Generator().manual_seed(0))
    want, _ = gradients(learner, items, advantage)
    seen, original = [], rl.see

    def dies(*a):
        seen.append(a)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return original(*a)

    learner.model.zero_grad()
    monkeypatch.setattr(rl, "see", dies)
    with pytest.raises(KeyboardInterrupt):
        gradients(learner, items, advantage, replace(ONE, rows=1))
    assert any(p.grad is not None for p in learner.model.parameters())
    monkeypatch.undo()
    got, _ = gradients(learner, items, advantage)
    assert all(torch.equal(want[n], got[n]) for n in want)


def test_a_model_that_scales_its_logits_is_refused(learner, tmp_path):
    """Bug: log-probs of training that are not those of sampling, from the first step on."""
    learner.model.config.logits_scaling = 8.0
    with pytest.raises(WorkbenchError, match="logits_scaling would be trained at other logits"):
        train(learner, tmp_path)


def test_attention_that_asks_for_the_mask_does_not_pass_for_ours(learner, sums, monkeypatch):
    """Bug: a model with an attention of its own lets every row see every other."""
    from transformers.models.llama import modeling_llama as llama

    items = chains(learner, sums[:2])
    eager = SimpleNamespace(get_interface=lambda *a: llama.eager_attention_forward)
    monkeypatch.setattr(llama, "ALL_ATTENTION_FUNCTIONS", eager)
    with pytest.raises(WorkbenchError, match="not finite"):
        gradients(learner, items, torch.ones(len(items)))


def test_padding_does_not_change_the_loss(learner, sums):
    """Bugs: masked values leak in; positions that count the padding; accumulation that scales the loss."""
    items = chains(learner, [*sums[:3], get("arithmetic").parse("1+2")], group=3)
    assert len({len(learner.encoder.prompt(p.prompt)) for p, _ in items}) > 1
    assert len({trace.tokens for _, trace in items}) > 3
    advantage = torch.randn(len(items), generator=torch.Generator().manual_seed(0))
    whole, stats = gradients(learner, items, advantage, group=3)
    for rows, capacity in ((1, 512), (100, 512), (1, 1), (4096, 40)):
        parts, more = gradients(learner, items, advantage, replace(ONE, rows=rows, capacity=capacity), group=3)
        assert all(torch.allclose(whole[n], parts[n], atol=2e-6, rtol=1e-3) for n in whole)
        assert more["loss"] == pytest.approx(stats["loss"], abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_first_ratio_is_one(learner, sums, temperature):
    """Bug: sampled at one temperature, trained at another: ratios of 2 on the first step."""
    items = chains(learner, sums, temperature=temperature)
    config = replace(ONE, temperature=temperature)
    stats = rl.update(learner, adam(learner), batch_of(learner, items, torch.ones(len(items))), config)
    assert stats["ratio_max"] < 1e-3 and stats["clipped"] == 0
    again = rl.update(learner, adam(learner), batch_of(learner, items, torch.ones(len(items))), config)
    assert again["ratio_max"] > 1e-3, "the policy has moved, so the ratio must show it"


def test_the_loss_is_the_policy_gradient(learner, sums):
    """Against the plain estimator: at a ratio of 1 the gradient is -A x grad log p, a mean over tokens, then chains."""
    items = chains(learner, sums[:2], group=2)
    advantage = torch.tensor([1.0, -0.5, 2.0, 0.0])
    got, _ = gradients(learner, items, advantage, group=2)
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
    stats = rl.update(learner, optimizer, batch_of(learner, items, torch.zeros(len(items))), CONFIG)
    assert stats["loss"] is None and stats["trained"] == 0 and stats["training_flops"] == 0
    assert all(torch.equal(v, before[k]) for k, v in learner.model.state_dict().items())
    mixed = torch.tensor([0.0] * 4 + [1.0, -0.5, 2.0, -1.0])
    alone, one = gradients(learner, items[4:], mixed[4:])
    both, two = gradients(learner, items, mixed)
    assert two["loss"] == pytest.approx(one["loss"] / 2, rel=1e-3), "the mean is over all chains, silent ones too"
    norm = [math.sqrt(sum(g.square().sum() for g in grads.values())) for grads in (alone, both)]
    cosine = sum((alone[n] * both[n]).sum() for n in alone) / norm[0] / norm[1]
    assert cosine > 0.9999, "the direction is that of the group that has something to teach"


def test_several_updates_use_every_chain_once(learner, sums, monkeypatch):
    """Bug: with more than one update a step, chains are dropped or seen twice."""
    items = chains(learner, sums[:3])
    advantage = torch.tensor([1.0, -1.0, 0.0, 1.0, -1.0, 1.0, -1.0, 0.5, 0.0, 0.0, 0.0, 2.0])
    found, original = [], rl.see
    monkeypatch.setattr(
        rl, "see", lambda model, rows, t: (found.extend(i for r in rows for i in r.chains), original(model, rows, t))[1]
    )
    told = {}
    for n in (1, 2, 3, 9):
        found.clear()
        told[n] = rl.update(
            learner, adam(learner, 1e-12), batch_of(learner, items, advantage), replace(CONFIG, updates=n)
        )
        assert sorted(found) == [i for i in range(12) if advantage[i]]
    assert told[9]["norm"] == pytest.approx(told[3]["norm"]), "Bug: three groups, and weights as if for nine updates"


# --- the run ------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def length(items):
    """A reward that any policy can win: the more digits the better. It never agrees on a whole group for long."""
    digits = [float(sum(c.isdigit() for s in t.steps for c in s.text)) for _, t in items]
    return Earned(digits, cost=rl.Cost(judged=len(items)))


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
        calls[0] += len(items) == 12  # not a check's
        if calls[0] == killed_in:
            raise Killed
        return length(items)

    with pytest.raises(Killed):
        train(LocalPolicy(copy.deepcopy(micro), tokenizer), tmp_path / "run", dies, held_out=sums)
    policy = LocalPolicy(copy.deepcopy(micro), tokenizer)  # another process, which knows the start only
    resumed = []
    history = train(
        policy, tmp_path / "run", lambda items: (resumed.append(len(items) == 12), length(items))[1], held_out=sums
    )
    assert sum(resumed) == (2 if killed_in > 2 else 4), "it goes on from the last checkpoint, not from the start"
    assert timeless(history) == timeless(straight[0])
    assert timeless(Run.open(tmp_path / "run", {"config": CONFIG}).read("history")) == timeless(straight[0])
    assert all(torch.equal(v, straight[1][k]) for k, v in policy.model.state_dict().items())


def test_a_run_killed_between_history_and_checkpoint(straight, micro, tokenizer, sums, tmp_path, monkeypatch):
    """Bug: rows of the history twice, because the checkpoint they ran ahead of was lost."""
    save = rl.save_state
    monkeypatch.setattr(rl, "save_state", lambda *a, step, **more: save(*a, step=step, **more) if step < 4 else _die())
    with pytest.raises(Killed):
        train(LocalPolicy(copy.deepcopy(micro), tokenizer), tmp_path / "run", held_out=sums)
    monkeypatch.undo()
    policy = LocalPolicy(copy.deepcopy(micro), tokenizer)
    assert timeless(train(policy, tmp_path / "run", held_out=sums)) == timeless(straight[0])
    assert all(torch.equal(v, straight[1][k]) for k, v in policy.model.state_dict().items())


def _die():
    raise Killed


def test_killed_ten_times_at_random(micro, tokenizer, sums, tmp_path, monkeypatch):
    """In a rollout, a pass of the update, between two files or in the checkpoint: the same bits in the end."""
    config = replace(CONFIG, steps=8, prompts=2, check_every=1)
    whole = LocalPolicy(copy.deepcopy(micro), tokenizer)
    straight = train(whole, tmp_path / "whole", config=config, held_out=sums[:2])
    left, killed, rng = [math.inf], 0, random.Random(0)

    def tock():
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    def tick(call):
        def ticking(*args, **kwargs):
            tock()
            out = call(*args, **kwargs)
            tock()
            return out

        return ticking

    for place, name in ((rl, "drive"), (rl, "see"), (rl, "save_state"), (Run, "append"), (Run, "rewind")):
        monkeypatch.setattr(place, name, tick(getattr(place, name)))
    for _ in range(10):
        left[0] = rng.randrange(1, 30)
        try:
            train(LocalPolicy(copy.deepcopy(micro), tokenizer), tmp_path / "run", config=config, held_out=sums[:2])
        except Killed:
            killed += 1
    left[0] = math.inf
    policy = LocalPolicy(copy.deepcopy(micro), tokenizer)
    history = train(policy, tmp_path / "run", config=config, held_out=sums[:2])
    assert killed == 10 and timeless(history) == timeless(straight)
    assert all(torch.equal(v, whole.model.state_dict()[k]) for k, v in policy.model.state_dict().items())
    for name in ("history", "checks"):
        one, other = (Run.existing(tmp_path / folder).read(name) for folder in ("whole", "run"))
        assert timeless(one) == timeless(other)


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


# --- steps, mixtures, values --------------------------------------------------------------------------------------


def test_step_advantages_by_hand():
    """Bugs: the whole chain's sum for every step; a baseline with the chain's own return in it."""
    rewards = [[1.0, 0.0, 2.0], [0.5, 0.5], [4.0]]
    want = [[3 - 5 / 2, 2 - 0.5 / 2, 2.0], [1 - 7 / 2, 0.5 - 2 / 2], [4 - 4 / 2]]
    assert rl.step_advantages(rewards, 3) == want
    assert rl.step_advantages([[0.3, 0.7]] * 8, 8) == [[0.0, 0.0]] * 8, "rounding is no advantage"
    with pytest.raises(WorkbenchError, match="finite"):
        rl.step_advantages([[float("nan")], [1.0]], 2)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.99, 1.0), (0.5, 0.0)])
def test_gae_is_its_definition(gamma, lam):
    """Against the double sum of the paper, and at lam = 1 the return minus the value."""
    g = torch.Generator().manual_seed(3)
    rewards, values = torch.randn(7, generator=g), torch.randn(7, generator=g)
    after = torch.cat([values[1:], torch.zeros(1)])
    delta = rewards + gamma * after - values
    want = [sum((gamma * lam) ** k * delta[t + k] for k in range(7 - t)) for t in range(7)]
    advantage, returns = rl.gae(rewards, values, gamma, lam)
    assert torch.allclose(advantage, torch.stack(want), atol=1e-5)
    assert torch.allclose(returns, advantage + values)
    if lam == 1:
        exact = [sum(gamma**k * rewards[t + k] for k in range(7 - t)) for t in range(7)]
        assert torch.allclose(returns, torch.stack(exact), atol=1e-5)


def test_credit_lands_on_its_step(learner, sums):
    """Bug: a step's advantage is given to its neighbour's tokens."""
    items = chains(learner, sums[:1])
    batch = Batch.of(learner, items, 4)
    steps = [[float(10 * i + s) for s in range(len(t.steps))] for i, (_, t) in enumerate(items)]
    rl.advantages(batch, Earned([0.0] * 4, steps), replace(ONE, variant="dr_grpo"))
    at = 0
    for (_, trace), row in zip(items, rl.step_advantages(steps, 4), strict=True):
        for step, want in zip(trace.steps, row, strict=True):
            assert batch.advantage[at : at + len(step.ids)].tolist() == pytest.approx([want] * len(step.ids), rel=1e-5)
            at += len(step.ids)
    assert at == len(batch.advantage)


STEPS = [[0.1, 0.9], [0.3, 0.4, 0.2], [0.6, 0.6, 0.1, 0.1], [0.9, 0.8, 0.7]]


def advantage_of(earned, **more):
    """Of chains with as many steps as earned says, one token a step."""
    rows = earned.steps or [[0.0]] * len(earned.chains)
    steps = [tuple(Step("s", ids=(1,), logprobs=(-0.1 * (i + 1),)) for _ in row) for i, row in enumerate(rows)]
    problem = Problem("p/1", "arithmetic", "1+1", "2")
    policy = SimpleNamespace(encoder=SimpleNamespace(prompt=lambda text: [5, 6]))
    batch = Batch.of(policy, [(problem, Trace(row)) for row in steps], len(rows))
    batch.reference = torch.zeros(len(batch.old))
    rl.advantages(batch, earned, replace(ONE, **more))
    return batch.advantage


@pytest.mark.parametrize("variant", ["grpo", "dapo", "dr_grpo", "rloo"])
def test_weights_in_a_mixture_keep_their_meaning(variant):
    """Bug: chains and steps were divided by a deviation each, so that a weight on one of them cancelled."""

    def parts(weight):
        """How far the outcome, and how far the steps, move the mixture's advantages."""
        both, alone = (advantage_of(Earned([w * x for x in (1, 0, 0, 1)], STEPS), variant=variant) for w in (weight, 0))
        chains = advantage_of(Earned([1.0, 0, 0, 1], [[0.0] * len(row) for row in STEPS]), variant=variant)
        found = torch.linalg.lstsq(torch.stack([chains, alone], 1), both[:, None]).solution
        assert torch.allclose(torch.stack([chains, alone], 1) @ found, both[:, None], atol=1e-4)
        return found[:, 0]

    one, ten = parts(1.0), parts(10.0)
    assert ten[0] / ten[1] == pytest.approx(10 * (one[0] / one[1]).item(), rel=1e-3)


def test_scaled_steps_by_hand():
    """Returns 3 2 2 and 1: a deviation of sqrt(2) at depth 0, and at 1 and 2, where one chain has ended, too."""
    found = advantage_of(Earned([0.0, 0.0], [[1.0, 0.0, 2.0], [1.0]]), variant="grpo")
    over = math.sqrt((2 + 2 + 2) / 3) + 1e-4
    assert found.tolist() == pytest.approx([2 / over, 2 / over, 2 / over, -2 / over], rel=1e-5)


def test_steps_that_earn_nothing_leave_the_outcome_as_it_is():
    outcome, silent = Earned([1.0, 0.0, 0.0, 1.0]), [[0.0] * len(row) for row in STEPS]
    found, want = (advantage_of(earned, variant="grpo") for earned in (replace(outcome, steps=silent), outcome))
    per_chain = [part[0].item() for part in found.split([len(row) for row in STEPS])]
    assert per_chain == pytest.approx(want.tolist(), rel=1e-5)


def test_equal_returns_at_other_depths_are_not_blown_up():
    """Bug: all chains earned 1, at steps that differ; over a deviation of 0 their advantages were 10,000."""
    found = advantage_of(Earned([0.0] * 4, [[0, 1.0], [1.0], [0, 0, 1.0], [0, 1.0]]), variant="grpo")
    assert 0 < found.abs().max() < 4


def test_steps_that_cancel_the_outcome_are_not_blown_up():
    """Bug: over the deviation of their sum, which was 0, chains had 5,000 and steps -6,667."""
    found = advantage_of(Earned([0.0, 1.0, 0.0, 1.0], [[1.0], [0.0], [1.0], [0.0]]), variant="grpo")
    assert 0 < found.abs().max() < 1


@pytest.mark.parametrize("kl", [0.01, 1.0])
def test_a_kl_in_the_reward_has_the_strength_it_says(kl):
    """Bug: where all outcomes of a group are alike, the KL was all there was, and was scaled up to 1."""
    found = advantage_of(Earned([0.0] * 4, None), variant="grpo", kl=kl, kl_form="k1")
    assert found.tolist() == pytest.approx([-kl * (x - -0.25) for x in (-0.1, -0.2, -0.3, -0.4)], abs=1e-6)


def test_rewards_may_be_arrays(learner, tmp_path):
    """Bug: a row of numpy numbers for steps ended the run far from the reward, without its name."""
    import numpy as np

    def arrays(items):
        return Earned(np.zeros(len(items)), [np.linspace(0, 1, len(t.steps)) for _, t in items])

    def lists(items):
        return Earned([0.0] * len(items), [np.linspace(0, 1, len(t.steps)).tolist() for _, t in items])

    again = LocalPolicy(copy.deepcopy(learner.model), learner.encoder.tokenizer)
    one = train(learner, tmp_path / "arrays", arrays)
    assert timeless(one) == timeless(train(again, tmp_path / "lists", lists))


def test_problems_that_cannot_be_served_are_left_out_and_counted(learner, sums, tmp_path):
    """Bug: one prompt beyond the context ended the run, at the same step whenever it was called again."""
    original, long = rl.choose, Problem("x/long", "arithmetic", "+".join("1" * 600), "600")
    with pytest.MonkeyPatch.context() as patch, pytest.warns(UserWarning, match="could not be served"):
        patch.setattr(rl, "choose", lambda *args: [*original(*args)[1:], long])
        history = train(learner, tmp_path / "run", held_out=[long, *sums])
    assert [row["unserved"] for row in history[1:]] == [1] * CONFIG.steps
    checks = Run.existing(tmp_path / "run").read("checks")
    assert all(row["true"][0] is None and None not in row["true"][1:] for row in checks)
    assert history[-1]["true_held_out"] == sum(checks[-1]["true"][1:]) / len(sums)


def test_weights_that_give_no_numbers_are_not_kept(learner, tmp_path):
    """Bug: finite weights whose logits are NaN were saved over the last good ones; then an IndexError, for ever."""
    config = replace(CONFIG, check_every=1, updates=1, muon_lr=1e20)
    with pytest.raises(WorkbenchError, match="no numbers any more: lower lr and run anew.*the weights of step 0"):
        train(learner, tmp_path / "run", config=config)
    with safe_open(tmp_path / "run" / "state.safetensors", "pt") as file:
        assert json.loads(file.metadata()["about"])["step"] == 0
    with pytest.raises(WorkbenchError, match="the policy's logits are no numbers"):
        drive(get("arithmetic").load("valid", 2, 0, 1), "sampling", learner)


def test_default_rates_on_an_adapter(micro, tokenizer, tmp_path):
    """Bug: Muon took all factors of an adapter, and AdamW none: "optimizer got an empty parameter list"."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(copy.deepcopy(micro), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert type(optimiser(model, Fit(muon_lr=1e-3))) is torch.optim.AdamW
    history = train(LocalPolicy(model, tokenizer), tmp_path / "run", config=replace(CONFIG, steps=1, muon_lr=6e-4))
    assert history[-1]["step"] == 1


def test_dropout_is_off_from_the_first_step_on(micro, tokenizer, tmp_path):
    """Bug: until the first update log-probs were read with dropout, where a model came in training mode."""
    policy = LocalPolicy(copy.deepcopy(micro), tokenizer)
    policy.model.config.attention_dropout = 0.5
    for layer in policy.model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    policy.model.train()
    sampler = LocalPolicy(copy.deepcopy(micro), tokenizer)
    run = Run.open(tmp_path / "run", {})
    config = replace(CONFIG, steps=1, updates=1)
    history = rl.train(policy, "arithmetic", length, config, run, progress=False, sampler=sampler)
    assert history[1]["ratio_max"] < 1e-3


def test_a_mixture_adds_chains_and_steps(encoder):
    p = Problem("p", "arithmetic", "1+1", "2")
    right = Trace((Step("1+1=2"), Step("2", final=True)))
    items = [(p, right), (p, replace(right, stop="cut"))]
    both = rl.mixture((2.0, rl.process(Flat(encoder), "sum")), (0.5, rl.outcome), (1.0, rl.formatted))(items)
    assert both.chains == [1.5, 0.0] and both.steps == [[1.0, 0.5], [0.0, 0.0]] and both.totals() == [3.0, 0.0]
    assert both.cost.judged > 0
    assert rl.mixture((2.0, rl.outcome))(items).steps is None


def test_the_oracle_may_pay_for_steps():
    """Bug: a reward that asks its verifier for an encoder, which the protocol does not have."""
    p = Problem("p", "arithmetic", "1+1", "2")
    items = [(p, Trace((Step("1+1=2"), Step("2", final=True)))), (p, Trace((Step("1+1=3"), Step("3", final=True))))]
    earned = rl.process(Oracle([p]), "sum")(items)
    assert earned.steps == [[1.0, 1.0], [0.0, 0.0]] and earned.cost.verifier_calls == 2 and earned.cost.flops == 0


def test_the_forms_of_process_reward():
    """Bug: a chain makes up for a bad step with good ones, in the forms that forbid it."""
    good, padded = [0.9, 0.8], [0.9, 0.8, 0.9, 0.9]
    total = {form: [sum(rl.rewards.credit(form, s)) for s in (good, padded)] for form in ("sum", "min", "difference")}
    assert total["sum"][1] > total["sum"][0] + 1
    assert total["min"][1] == pytest.approx(total["min"][0], abs=0.05) and total["min"][0] == pytest.approx(
        0.83, abs=0.02
    )
    assert total["difference"] == pytest.approx([0.8, 0.9])


@pytest.mark.parametrize(
    ("reward", "why"),
    [
        (lambda items: Earned([0.0]), "1 numbers for 12 chains"),
        (lambda items: Earned([math.nan] * len(items)), "is nan"),
        (lambda items: Earned([0.0] * len(items), [[1.0]] * len(items)), "every step"),
        (lambda items: 1 / 0, "ZeroDivisionError"),
        (lambda items: [0.0] * len(items), "gave list: return Earned"),
        (lambda items: Earned([None] * len(items)), "what is no number"),
        (lambda items: Earned(["1"] * len(items)), "what is no number"),
        (lambda items: Earned(None), "what is no number"),
        (lambda items: Earned([0.0] * len(items), [None] * len(items)), "what is no number"),
    ],
)
def test_a_bad_reward_stops_the_run_and_names_itself(learner, tmp_path, reward, why):
    """Bugs: an exception becomes a reward of 0; NaN reaches the weights."""
    before = copy.deepcopy(learner.model.state_dict())
    with pytest.raises(WorkbenchError, match=why) as told:
        train(learner, tmp_path / "run", reward)
    assert "step 1:" in str(told.value) and "goes on from step 0" in str(told.value)
    assert all(torch.equal(v, before[k]) for k, v in learner.model.state_dict().items())


def test_a_loss_that_diverges_keeps_the_last_checkpoint(straight, micro, tokenizer, tmp_path, monkeypatch):
    original = rl.clipped_loss
    calls = [0]

    def bursts(*args, **more):
        calls[0] += 1
        return original(*args, **more) * (math.inf if calls[0] > 5 else 1.0)

    monkeypatch.setattr(rl, "clipped_loss", bursts)
    with pytest.raises(WorkbenchError, match="not finite.*goes on from step 2"):
        train(LocalPolicy(copy.deepcopy(micro), tokenizer), tmp_path / "run")
    monkeypatch.undo()
    policy = LocalPolicy(copy.deepcopy(micro), tokenizer)
    train(policy, tmp_path / "run")
    assert all(torch.equal(v, straight[1][k]) for k, v in policy.model.state_dict().items())


@pytest.mark.parametrize("variant", ["rloo", "dr_grpo", "dapo", "ppo"])
def test_every_variant_learns(micro, tokenizer, tmp_path, monkeypatch, variant):
    """Bug: a sign or a mask in one of them. After some steps the policy writes more digits than before."""
    monkeypatch.setattr(rl, "right_answer", lambda problem, trace: trace.tokens % 2)  # or DAPO would learn from nothing
    config = replace(
        CONFIG, variant=variant, steps=8, prompts=8, group=8, lr=3e-3, muon_lr=0.02, check_every=50, refills=1
    )
    policy = LocalPolicy(copy.deepcopy(micro), tokenizer)
    history = train(policy, tmp_path / "run", config=config)
    proxy = [row["proxy"] for row in history[1:]]
    assert sum(proxy[-2:]) / 2 > sum(proxy[:2]) / 2 + 1
    assert not hasattr(policy.model, "value_head")


def test_groups_that_are_all_wrong_are_refilled():
    """Bug: DAPO asks for right and wrong chains, but wrong ones that differ in length, and so in reward, were kept."""
    wrong = ("1+1=3", "1+1=3333333333333333")
    toy = Scripted({(): [(text, 0.5) for text in wrong], **{(text,): [("=0", 1.0)] for text in wrong}})
    reward = rl.mixture((1.0, rl.outcome), (1.0, rl.overlong(40, 30)))
    config = RL(variant="dapo", prompts=8, group=8, refills=1, levels=(2,), step_tokens=40, chain_tokens=40)
    rolled = rl.roll_out(toy, "arithmetic", reward, config, 0)
    assert not rolled.items and len(rolled.chains) == 2 * 8 * 8
    assert rolled.uniform == 1, "the history says why"
    plain = rl.roll_out(toy, "arithmetic", reward, replace(config, variant="grpo"), 0)
    assert len(plain.items) == 8 * 8 and plain.uniform < 0.5, "they do not earn alike"


def test_uniform_groups_are_refilled(micro, tokenizer, monkeypatch):
    """DAPO: groups that are all alike are replaced; what they cost is billed."""
    monkeypatch.setattr(rl, "right_answer", lambda problem, trace: trace.tokens % 2)

    def lucky(items):
        groups = [items[i : i + 4] for i in range(0, len(items), 4)]
        return Earned([float(i == 0 and sum(map(ord, g[0][0].prompt)) % 2) for g in groups for i in range(4)])

    config = replace(CONFIG, variant="dapo", steps=1, prompts=6, refills=4)
    policy = LocalPolicy(copy.deepcopy(micro), tokenizer)
    rolled = rl.roll_out(policy, "arithmetic", lucky, config, 0)
    assert 0 < len(rolled.names) <= 6 and len(rolled.chains) > 24 and 0 < rolled.uniform < 1
    kept = [rolled.earned.chains[i : i + 4] for i in range(0, len(rolled.items), 4)]
    assert all(sum(group) == 1 for group in kept)
    assert rolled.cost.sampled == sum(chain["tokens_per_chain"] for chain in rolled.chains)


def test_ppo_learns_values(learner, sums):
    """The value head moves towards the returns; advantages have no mean."""
    config = replace(ONE, variant="ppo", group=2)
    rl.value_head(learner.model, config)
    items = chains(learner, sums[:4], group=2)
    reward = Earned([1.0] * len(items))
    optimizer = optimiser(learner.model, Fit(lr=1e-2, weight_decay=0.0))
    misses = []
    for _ in range(5):
        batch = Batch.of(learner, items, 2)
        _, values = rl.look(learner.model, batch, config, rl.Meter(learner.model))
        rl.advantages(batch, reward, config, values)
        assert abs(batch.advantage.mean().item()) < 1e-5
        misses.append((values - 1.0).square().mean().item())
        rl.update(learner, optimizer, batch, config)
    assert misses[0] == pytest.approx(1.0) and misses[-1] < 0.7 * misses[0]


def test_a_lagging_sampler_is_corrected(learner, micro, tokenizer, sums, tmp_path):
    """Bug: chains of other weights are learnt from as if they were the policy's own."""
    with torch.no_grad():
        for p in learner.model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    behind, seen = LocalPolicy(micro, tokenizer), []
    original = rl.update
    run = Run.open(tmp_path / "run", {})
    try:
        rl.update = lambda policy, optimizer, batch, *more: (
            seen.append(batch),
            original(policy, optimizer, batch, *more),
        )[1]
        history = rl.train(learner, "arithmetic", length, replace(ONE, steps=1), run, progress=False, sampler=behind)
    finally:
        rl.update = original
    [batch] = seen
    assert batch.trust.max() <= 2.0 and batch.trust.std() > 0.05 and history[1]["ratio_max"] < 1e-3
    exact = torch.tensor([v for _, t in batch.items for s in t.steps for v in s.logprobs])
    assert torch.allclose(batch.trust, (batch.old - exact).exp().clamp(max=2.0), atol=1e-4)


def test_a_kl_holds_the_policy(micro, tokenizer, tmp_path):
    """Bug: the wrong sign of the KL, or none. k1 is paid in the reward, k3 in the loss."""
    away = {}
    for name, kl, form in (("free", 0.0, "k3"), ("k3", 1.0, "k3"), ("k1", 1.0, "k1")):
        policy = LocalPolicy(copy.deepcopy(micro), tokenizer)
        config = replace(CONFIG, kl=kl, kl_form=form, steps=6, prompts=6, updates=2, lr=3e-3, check_every=50)
        run = Run.open(tmp_path / name, {})
        history = rl.train(policy, "arithmetic", length, config, run, progress=False, reference=copy.deepcopy(micro))
        items = chains(policy, get("arithmetic").load("valid", 6, 0, 2))
        batch, meter = Batch.of(policy, items, 4), rl.Meter(policy.model)
        away[name] = (batch.old - rl.look(micro, batch, config, meter)[0]).mean().item()
        assert kl == 0 or history[-1]["kl"] > 0  # Bug: k1 was paid and never told
    assert history[-1]["step"] == 6
    assert away["k3"] < 0.7 * away["free"] and away["k1"] < away["free"]
    with pytest.raises(WorkbenchError, match="no adapter to switch off"):
        train(LocalPolicy(copy.deepcopy(micro), tokenizer), tmp_path / "none", config=replace(CONFIG, kl=1.0))


def test_a_level_that_got_no_problem_is_still_known():
    """Bug: after five rows without a problem of it a level that is always solved was as good as never seen."""
    rows = [{"levels": {"1": [8, 8], "2": [4, 8]}}, *[{"levels": {"2": [4, 8]}}] * 9]
    assert rl.shares([1, 2], [{"step": 0}, *rows]) == rl.shares([1, 2], rows[:1])


def test_a_curriculum_goes_where_groups_disagree():
    rows = [{"levels": {"1": [50, 50], "2": [25, 50], "3": [0, 50]}}]
    config = replace(CONFIG, levels=(1, 2, 3), curriculum=True, prompts=20)
    count = {level: sum(p.level == level for p in rl.choose("arithmetic", config, 1, rows)) for level in (1, 2, 3)}
    assert count == {1: 2, 2: 15, 3: 3} or count == {1: 3, 2: 15, 3: 2}
    even = {level: sum(p.level == level for p in rl.choose("arithmetic", config, 1)) for level in (1, 2, 3)}
    assert sorted(even.values()) == [6, 7, 7], "nothing is known yet"


def test_the_alarm_names_a_hack():
    """Bugs: it rings at noise; it misses a fall from a height that was reached on the way."""
    from workbench import watch

    n = 40
    quiet = [{"step": s, "proxy": [0.1 * s] * n, "true": [float(i % 2) for i in range(n)]} for s in range(3)]
    assert watch.alarm(quiet) is None
    hacked = [*quiet, {"step": 3, "proxy": [1.0] * n, "true": [0.0] * n}]
    found = watch.alarm(hacked)
    assert (found.since, found.step) == (0, 3) and "reward hacking: from step 0 to 3" in str(found)
    few = [{**row, "proxy": row["proxy"][:9], "true": row["true"][:9]} for row in hacked]
    assert watch.alarm(few) is None, "too few problems"
    rng = random.Random(0)

    def noisy(k):
        return {"step": k, "proxy": [float(k)] * 60, "true": [float(rng.random() < 0.4) for _ in range(60)]}

    rung = [watch.alarm([noisy(k) for k in range(6)]) is not None for _ in range(100)]
    assert sum(rung) <= 6, "the truth stands still, so hardly ever"

    def few_noisy(k):
        return {"step": k, "proxy": [float(k)] * 20, "true": [float(rng.random() < 0.5) for _ in range(20)]}

    rung = [watch.alarm([few_noisy(k) for k in range(13)]) is not None for _ in range(400)]
    assert sum(rung) <= 20, "Bug: normal intervals, which on 20 problems rang in one run of twelve"


def test_the_alarm_leaves_out_what_could_not_be_served():
    from workbench import watch

    good = {"step": 0, "proxy": [0.1] * 20 + [None], "true": [1.0] * 20 + [None]}
    bad = {"step": 9, "proxy": [0.9] * 21, "true": [0.0] * 21}
    assert watch.alarm([good, bad]).true == (-1.0, -1.0, -1.0)
    assert (
        watch.alarm([{name: row[name][1:] if name != "step" else row[name] for name in row} for row in (good, bad)])
        is None
    )


def test_the_alarm_is_told_once(learner, micro, tokenizer, tmp_path, sums, monkeypatch):
    """Bug: every check after it warns again, also in a run that goes on."""
    monkeypatch.setattr(rl, "alarm", lambda checks: "hacked" if len(checks) > 1 else None)

    def dies(items, calls=[0]):  # noqa: B006
        calls[0] += len(items) == 12
        if calls[0] == 4:
            raise Killed
        return length(items)

    with pytest.warns(UserWarning, match="hacked"), pytest.raises(Killed):
        train(learner, tmp_path / "run", dies, held_out=sums)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        history = train(LocalPolicy(copy.deepcopy(micro), tokenizer), tmp_path / "run", held_out=sums)
    assert [row["step"] for row in history if "alarm" in row] == [2]


def test_the_same_policy_goes_on_exactly(straight, learner, sums, tmp_path):
    """Bug: stopped before the first check and called again in the same kernel, it begins with weights that moved."""

    def dies(items, calls=[0]):  # noqa: B006
        calls[0] += len(items) == 12
        if calls[0] == 2:
            raise Killed
        return length(items)

    with pytest.raises(Killed):
        train(learner, tmp_path / "run", dies, held_out=sums)
    assert timeless(train(learner, tmp_path / "run", held_out=sums)) == timeless(straight[0])
    assert all(torch.equal(v, straight[1][k]) for k, v in learner.model.state_dict().items())
    run = Run.open(tmp_path / "run", {"config": CONFIG})
    with pytest.raises(WorkbenchError, match="lr was 0.001, is 0.5"):
        rl.train(learner, "arithmetic", length, replace(CONFIG, lr=0.5), run, progress=False)


@pytest.mark.parametrize("more", [{}, {"kl": 0.1, "kl_form": "k1"}])
def test_nothing_to_say_trains_nothing(learner, micro, tmp_path, more):
    """Bug: a reward that all chains share leaves DAPO without a group, and an error that names nothing."""
    before = copy.deepcopy(learner.model.state_dict())
    config, run = replace(CONFIG, variant="dapo", steps=1, **more), Run.open(tmp_path / "run", {})
    same = lambda items: Earned([1.0] * len(items))  # noqa: E731
    history = rl.train(learner, "arithmetic", same, config, run, progress=False, reference=micro if more else None)
    assert history[1]["uniform_groups"] == 1 and history[1]["loss"] is None
    assert all(torch.equal(v, before[k]) for k, v in learner.model.state_dict().items())


def test_one_clip_is_both(learner, sums):
    """Bug: a clip below the usual one holds on one side only."""
    items = chains(learner, sums[:2])
    batch = batch_of(learner, items, torch.ones(len(items)))
    batch.old = batch.old - 0.15
    stats = {clip: rl.update(learner, adam(learner, 1e-12), batch, replace(ONE, clip=clip)) for clip in (0.1, 0.2)}
    assert stats[0.1]["clipped"] > 0.9 and stats[0.2]["clipped"] < 0.1


def test_empty_and_endless_chains(learner, sums):
    """Bug: a division by no tokens, or a chain that never closes earns."""
    endless = chains(learner, sums[:1], group=3)
    items = [(p, replace(t, stop="length")) for p, t in endless] + [(sums[0], Trace((), "cut"))]
    batch = Batch.of(learner, items, 4)
    earned = rl.outcome(items)
    assert earned.chains == [0.0] * 4
    rl.advantages(batch, Earned([1.0, 0.0, 0.0, 0.5]), ONE)
    stats = rl.update(learner, adam(learner), batch, ONE)
    assert math.isfinite(stats["loss"]) and stats["trained"] > 0


def test_prime_learns_outcomes_online(learner, micro, tokenizer, tmp_path, sums, monkeypatch):
    """Bugs: the reference learns too; a run that is killed goes on with a fresh reward model."""

    def parts():
        policy = LocalPolicy(copy.deepcopy(micro), tokenizer)
        prime = rl.Prime(copy.deepcopy(micro), copy.deepcopy(micro), tokenizer, beta=1.0, lr=1e-2)
        return policy, prime, rl.mixture((1.0, rl.outcome), (1.0, prime))

    def run(folder, die_at=None):
        policy, prime, reward = parts()
        calls, judged = [0], reward

        def counted(items):
            calls[0] += 1
            if calls[0] == die_at:
                raise Killed
            return judged(items)

        counted.learn, counted.save, counted.load = reward.learn, reward.save, reward.load
        history = train(policy, folder, counted)
        return policy, prime, history

    policy, prime, history = run(tmp_path / "straight")
    assert all(torch.equal(v, micro.state_dict()[k]) for k, v in prime.reference.state_dict().items())
    assert not any(torch.equal(v, micro.state_dict()[k]) for k, v in prime.model.state_dict().items() if "proj" in k)
    assert history[1]["proxy"] == pytest.approx(history[1]["true"]), (
        "at the start the ratio is 1 and steps earn nothing"
    )
    assert all(row["cost"]["judged"] > 0 for row in history[1:])
    with pytest.raises(Killed):
        run(tmp_path / "killed", die_at=4)
    again, resumed, rows = run(tmp_path / "killed")
    assert timeless(rows) == timeless(history)
    for one, other in ((policy.model, again.model), (prime.model, resumed.model)):
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())
    assert [path.name for path in (tmp_path / "killed").glob("reward-*")] == ["reward-4.safetensors"]

    task = get("arithmetic")
    right = [(p, task.demonstration(p)) for p in sums]
    wrong = [(p, replace(t, steps=(*t.steps[:-1], replace(t.steps[-1], text="1")))) for p, t in right]
    _, prime, _ = parts()
    for _ in range(20):
        prime.learn([*right, *wrong])
    good, bad = (sum(prime(items).totals()) for items in (right, wrong))
    assert good > bad + 1

    dice = []
    for seed in (1, 2):  # Bug: the reward model learnt with dropout, whose dice a run that goes on throws anew
        _, prime, _ = parts()
        prime.model.config.attention_dropout = 0.5
        for layer in prime.model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        torch.manual_seed(seed)
        prime.learn(right)
        dice.append(prime.model.state_dict())
    assert all(torch.equal(v, dice[1][k]) for k, v in dice[0].items())

    monkeypatch.setattr(rl.prime, "implicit_loss", lambda model, *a: next(model.parameters()).sum() * math.nan)
    with pytest.raises(WorkbenchError, match="gradient is not finite"):  # Bug: a reward model of NaN is saved
        prime.learn(right)
    assert all(torch.isfinite(p).all() for p in prime.model.parameters())


def test_a_reward_cannot_have_two_learners(micro, tokenizer):
    prime = rl.Prime(copy.deepcopy(micro), micro, tokenizer)
    with pytest.raises(WorkbenchError, match="one learner"):
        rl.mixture((1.0, prime), (1.0, prime))
    with pytest.raises(WorkbenchError, match="own reference"):
        rl.Prime(micro, micro, tokenizer)


def test_an_adapter_learns_and_its_base_is_the_reference(micro, tokenizer, tmp_path):
    """Bugs: the base moves; the reference is the policy itself, so that the KL is always 0."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(copy.deepcopy(micro), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    policy = LocalPolicy(model, tokenizer)
    before = {n: p.clone() for n, p in model.named_parameters()}
    history = train(policy, tmp_path / "run", config=replace(ONE, kl=0.01, lr=1e-2, muon_lr=0.0))
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all("lora_" in n for n in moved)
    assert history[1]["kl"] < 1e-6 and history[-1]["kl"] > 1e-4, "it begins as its base, and moves away"


@pytest.mark.parametrize("quantised", [False, True])
def test_an_adapter_resumes_exactly(micro, tokenizer, tmp_path, quantised):
    """Bugs: dropout's chance is not the resumed run's; the base fills the checkpoints; the adapter that happens to be
    on learns, and not the policy's."""
    from peft import LoraConfig, get_peft_model
    from safetensors import safe_open

    from workbench.adapters import four_bit
    from workbench.models import load_model

    micro.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    config = replace(ONE, kl=0.05, lr=1e-2, muon_lr=0.0)

    def fresh():
        more = four_bit(torch.float32) if quantised else {}
        model = load_model(tmp_path / "base", dtype=torch.float32, **more)[0]
        lora = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.2, task_type="CAUSAL_LM")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = get_peft_model(model, lora, adapter_name="policy")
            model.add_adapter("other", lora)
        model.set_adapter("other")
        return LocalPolicy(model, tokenizer, adapter="policy")

    def dies(items, calls=[0]):  # noqa: B006
        calls[0] += 1
        if calls[0] == 4:
            torch.rand(7)
            raise Killed
        return length(items)

    with pytest.raises(Killed):
        train(fresh(), tmp_path / "killed", dies, config)
    with safe_open(tmp_path / "killed" / "state.safetensors", "pt") as file:
        assert all("lora_" in name and ".policy." in name for name in file.keys())  # noqa: SIM118
    resumed = fresh()
    begin = {name: p.clone() for name, p in resumed.model.named_parameters()}
    history = train(resumed, tmp_path / "killed", config=config)
    whole = fresh()
    assert timeless(history) == timeless(train(whole, tmp_path / "straight", config=config))
    ends = [dict(policy.model.named_parameters()) for policy in (resumed, whole)]
    assert all(torch.equal(p, ends[1][name]) for name, p in ends[0].items())
    moved = {name for name, p in begin.items() if not torch.equal(p, ends[0][name])}
    assert moved and all("lora_" in name and ".policy." in name for name in moved)
    assert history[1]["kl"] < 1e-6 and history[-1]["kl"] > 1e-5, "it begins as its base, and moves away"
    assert history[1]["ratio_max"] < 1e-3, "the first ratio is 1, whatever the dropout"


def test_an_update_is_billed_for_what_it_computes(learner, sums):
    """Bug: tokens that chains share, padding or logits of the prompt are billed, or those that were made are not."""
    from workbench.models import Price

    items, price = chains(learner, sums[:1], group=2), Price(learner.config)
    batch = batch_of(learner, items, torch.tensor([1.0, -1.0]), group=2)
    meter = rl.Meter(learner.model)
    rl.update(learner, adam(learner), batch, ONE, meter)
    [row] = rl.lay(batch.prompts, batch.responses, [0, 1])
    assert meter.fed == len(row.ids) < sum(map(len, batch.prompts + batch.responses))
    states = len(set(row.before.tolist()))
    head = price.rates[True][0] - price.rates[False][0]
    by_hand = meter.fed * price.rates[False][0] + int(row.sees.sum()) * price.rates[False][1] + states * head
    assert meter.flops == pytest.approx(3 * by_hand)
    look = rl.Meter(learner.model)
    rl.look(learner.model, batch, ONE, look)
    assert look.flops == pytest.approx(by_hand)
