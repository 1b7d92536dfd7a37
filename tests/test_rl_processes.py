"""Two processes sample and learn a step's groups together; run as a script, this file is one of them."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file

from workbench import rl
from workbench.models import character_tokenizer, new_model
from workbench.policies.local import LocalPolicy
from workbench.runs import Run
from workbench.tasks import get

CONFIG = rl.RL(
    steps=2, variant="dapo", prompts=5, group=4, updates=2, refills=1, lr=1e-3, muon_lr=1e-2,
    step_tokens=8, chain_tokens=16, check_every=1,
)  # fmt: skip
VARIANTS = "dapo", "ppo"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def digits(items):
    return rl.Earned([float(sum(c.isdigit() for s in t.steps for c in s.text)) for _, t in items])


@patch.object(rl, "right_answer", lambda problem, trace: trace.tokens % 2)  # all wrong, DAPO would learn from nothing
def train(folder, variant):
    tokenizer = character_tokenizer()
    policy = LocalPolicy(new_model("micro", tokenizer, seed=1), tokenizer)
    first = int(os.environ.get("RANK", 0)) == 0
    run = Run.open(folder, {}) if first else None
    torch.distributed.barrier() if torch.distributed.is_initialized() else None
    run = run or Run.existing(folder)
    held_out = get("arithmetic").load("valid", 4, 0)
    history = rl.train(policy, "arithmetic", digits, replace(CONFIG, variant=variant), run, held_out, progress=False)
    return history, policy.model.state_dict()


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """Bugs: gradients that are averaged over processes with unlike counts; a mean over a process's own tokens; groups
    dealt to updates by each process alone; both write the files; PPO's advantages whitened by each process alone."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    launch = [sys.executable, *"-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1".split()]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port())]
    command = [*launch, __file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for variant in VARIANTS:
        history, weights = train(tmp_path / f"one-{variant}", variant)
        told = Run.existing(tmp_path / f"two-{variant}").read("history")
        assert [row["step"] for row in told] == [0, 1, 2]
        for one, two in zip(history, told, strict=True):
            for key in ("proxy", "true", "uniform_groups", "tokens_per_chain", "proxy_held_out", "norm"):
                assert two.get(key) == pytest.approx(one.get(key), abs=1e-5), (variant, key)
        for key in ("sampled", "policy_flops"):
            assert told[1]["cost"][key] == pytest.approx(history[1]["cost"][key])
        for rank in (0, 1):
            theirs = load_file(tmp_path / f"{variant}-{rank}.safetensors")
            alike = [torch.allclose(theirs[k], v, atol=1e-5) for k, v in weights.items() if k in theirs]
            assert len(alike) > 9 and all(alike), variant


if __name__ == "__main__":
    place = rl.team()
    assert place.num_processes == 2
    for variant in VARIANTS:
        history, weights = train(Path(sys.argv[1]) / f"two-{variant}", variant)
        kept = {k: v.clone() for k, v in weights.items() if k != "lm_head.weight"}
        save_file(kept, Path(sys.argv[1]) / f"{variant}-{place.process_index}.safetensors")
