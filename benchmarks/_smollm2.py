"""SmolLM2 and a PRM on it whose head is random: for measuring speed, never for measuring quality."""

from __future__ import annotations

from pathlib import Path

import torch

from workbench.models import load_model
from workbench.smollm2 import built, checkpoint
from workbench.verifiers.prm import from_policy

FOLDER = Path("runs/bench/smollm2")


def prm_checkpoint(folder: str | Path = FOLDER) -> Path:
    """`folder`/prm: a token classifier on the policy's trunk in bf16; its head is random (seed 0), so scores vary."""
    return built(Path(folder) / "prm", lambda part: _prm(checkpoint(folder), part))


def _prm(policy: Path, out: Path) -> None:
    model, tokenizer = load_model(policy)
    prm = from_policy(model).to(torch.bfloat16)
    noise = torch.randn(prm.score.weight.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        prm.score.weight.copy_(0.02 * noise)
    prm.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    print(checkpoint(FOLDER), prm_checkpoint(), sep="\n")
