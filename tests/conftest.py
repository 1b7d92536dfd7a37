"""Fakes and tiny models that the tests share; torch is loaded by the tests that need it only."""

import pytest

from workbench.types import Problem


@pytest.fixture(scope="session")
def tokenizer():
    from workbench.models import character_tokenizer

    return character_tokenizer()


@pytest.fixture(scope="session")
def encoder(tokenizer):
    from workbench.format import Encoder

    return Encoder(tokenizer)


@pytest.fixture(scope="session")
def sums():
    """Arithmetic problems of two operations."""
    from workbench.tasks import get

    return get("arithmetic").load("train", 8, seed=5, level=2)


@pytest.fixture(scope="session")
def micro(tokenizer, encoder):
    """A tiny model that has learnt the format and no arithmetic: chains of several steps, most of them wrong.

    Shared, so no test may train it: `copy.deepcopy` it first.
    """
    import torch

    from workbench import sft, tasks
    from workbench.models import new_model

    task = tasks.get("arithmetic")
    problems = [q for level in (1, 2) for q in task.load("train", 160, seed=1, level=level)]
    rows = sft.rows([(q, task.demonstration(q)) for q in problems], encoder)
    model = new_model("micro", tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(250):
        batch = sft.collate(
            [rows[i * 7919 % len(rows)] for i in range(step * 16, step * 16 + 16)], tokenizer.pad_token_id
        )
        optimizer.zero_grad()
        sft.loss(model, batch).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def policy(micro, tokenizer):
    from workbench.policies.local import LocalPolicy

    return LocalPolicy(micro, tokenizer)


@pytest.fixture(scope="session")
def asked():
    """`asked(n)`: n problems whose right answer is 1, for scripted policies."""
    return lambda n: [Problem(f"toss/{i}", "arithmetic", "3-2", "1") for i in range(n)]


@pytest.fixture(scope="session")
def double(micro, encoder):
    """A server on loopback, backed by `micro`."""
    from openai_double import Double

    server = Double(micro, encoder)
    yield server
    server.close()


@pytest.fixture(scope="session")
def served(double, tokenizer):
    from workbench.policies.server import Server

    return Server(double.url, "micro", tokenizer, double.model.config, "vllm", in_flight=8)
