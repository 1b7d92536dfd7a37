"""Loss, advantages and gradients against TRL's GRPO on the same chains."""

import copy
from dataclasses import replace

import pytest
import torch

from workbench import rl
from workbench.policies import Sampling, Want
from workbench.policies.local import LocalPolicy
from workbench.types import Node

trl = pytest.importorskip("trl")

CONFIG = rl.RL(group=4, updates=1, step_tokens=12, chain_tokens=30)
TRL = {
    "grpo": {"loss_type": "grpo", "scale_rewards": "group"},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "dapo": {"loss_type": "dapo", "scale_rewards": "group", "epsilon_high": 0.28},
}


@pytest.fixture(scope="module")
def sampled(micro, tokenizer, sums):
    """Chains of three problems, in rewards of all kinds: mixed, all alike, and fractions."""
    policy = LocalPolicy(copy.deepcopy(micro), tokenizer)
    grown = policy.extend([Want(p, Node(), 4, to_end=True) for p in sums[:3]], 0, Sampling(1.0, 12, 30))
    items = [(p, chain[-1].trace) for p, cs in zip(sums, grown, strict=False) for chain in cs]
    return policy, items, [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.3, 0.5, -0.25, 0.9]


def theirs(policy, items, rewards, folder, old, **options):
    """(advantages, loss, gradients) of TRL, given the log-probs of sampling."""
    from datasets import Dataset

    prompts = [policy.encoder.prompt(p.prompt) for p, _ in items]
    answers = [[t for step in trace.steps for t in step.ids] for _, trace in items]
    rows = [{"prompt": p.prompt} for p, _ in items]
    args = trl.GRPOConfig(
        str(folder),
        use_cpu=True,
        report_to=[],
        num_generations=4,
        per_device_train_batch_size=len(items),
        max_completion_length=CONFIG.chain_tokens,
        epsilon=CONFIG.clip,
        gradient_checkpointing=False,
        bf16=False,
        **options,
    )
    model = copy.deepcopy(policy.model)
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **more: rewards,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=policy.encoder.tokenizer,
        rollout_func=lambda asked, trainer: {"prompt_ids": prompts, "completion_ids": answers, "logprobs": None},
    )
    trainer.current_gradient_accumulation_steps = 1
    model.train()
    batch = trainer._generate_and_score_completions(rows)
    if old is not None:
        table = torch.zeros(batch["completion_ids"].shape)
        table[batch["completion_mask"].bool()] = old
        batch["old_per_token_logps"] = table
    loss = trainer._compute_loss(model, batch)
    model.zero_grad()
    loss.backward()
    return batch["advantages"], loss.item(), {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("variant", TRL)
def test_agrees_with_trl(sampled, tmp_path, variant, stale):
    """Bugs: any. Fresh chains have ratios of 1; with `stale` ones clips bite on both sides."""
    policy, items, rewards = sampled
    config = replace(CONFIG, variant=variant)
    batch = rl.Batch.of(policy, items, 4)
    if stale:
        batch.old = batch.old + 0.6 * torch.randn(len(batch.old), generator=torch.Generator().manual_seed(1))
    else:
        batch.old, _ = rl.look(policy.model, batch, config, rl.Meter(policy.model))
    rl.advantages(batch, rl.Earned(rewards), config)
    advantage, loss, gradients = theirs(
        policy, items, rewards, tmp_path, batch.old if stale else None, beta=0.0, **TRL[variant]
    )
    assert torch.allclose(batch.advantage, batch.spread(advantage.tolist()), atol=1e-5)
    found, stats = kept(policy, batch, config)
    assert stats["loss"] == pytest.approx(loss, abs=1e-5)
    assert (stats["clipped"] > 0.05) == stale
    compare(found, gradients)


def test_a_kl_is_added_to_what_trl_gives(sampled, micro, tmp_path):
    """Bug: the estimate of the KL, its sign, or what it is a mean over. TRL's reference is the model as it was."""
    policy, items, rewards = sampled
    config = replace(CONFIG, kl=0.1)
    with torch.no_grad():
        moved = LocalPolicy(copy.deepcopy(micro), policy.encoder.tokenizer)
        for p in moved.model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
    batch = rl.Batch.of(policy, items, 4)
    meter = rl.Meter(policy.model)
    batch.reference, _ = rl.look(moved.model, batch, config, meter)
    rl.advantages(batch, rl.Earned(rewards), config)
    found, stats = kept(policy, batch, config)
    away = rl.k3(rl.look(policy.model, batch, config, meter)[0], batch.reference)
    assert stats["kl"] == pytest.approx(away.mean().item(), rel=1e-3)
    # the same loss by hand: what TRL gives without a KL, and the mean of k3 in each chain, then over chains
    _, loss, gradients = theirs(policy, items, rewards, tmp_path, None, beta=0.0, **TRL["grpo"])
    each = torch.stack([part.mean() for part in away.split(batch.lengths)])
    assert stats["loss"] == pytest.approx(loss + 0.1 * each.mean().item(), abs=1e-5)
    assert any(not torch.allclose(found[n], gradients[n], atol=1e-4) for n in found), "it pulls"


def kept(policy, batch, config):
    """(gradients before they are clipped, stats) of an update that moves nothing."""
    found = {}

    class Keep(torch.optim.SGD):
        def step(self, closure=None):
            found.update({n: p.grad.clone() for n, p in policy.model.named_parameters()})

    stats = rl.update(policy, Keep(policy.model.parameters(), lr=0.0), batch, config)
    scale = max(1.0, stats["norm"])  # the update clips the norm to 1; undo it
    return {n: g * scale for n, g in found.items()}, stats


def compare(found, gradients):
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(found[name], gradient, atol=1e-5), name
