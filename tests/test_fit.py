"""The training loop and teaching: each test names the mistake it pins."""

import copy
import math

import pytest
import torch

from workbench import fit, sft, tasks
from workbench.fit import Fit, Muon, Ordered, orthogonalise
from workbench.format import Encoder
from workbench.models import flops, new_model
from workbench.policies import Sampling, Want
from workbench.policies.local import LocalPolicy
from workbench.types import Node, Step, Trace, WorkbenchError


@pytest.fixture(scope="module")
def pairs():
    task = tasks.get("arithmetic")
    return [(p, task.demonstration(p)) for p in task.load("train", 24, seed=2)]


@pytest.fixture(scope="module")
def rows(pairs, encoder):
    return sft.rows(pairs, encoder)


def teach(model, rows, config, folder, **more):
    more = {"collate": lambda batch: sft.collate(batch, model.config.pad_token_id), "loss": sft.loss, **more}
    history = []
    cost = fit.fit(model, rows, config=config, folder=folder, log=history.append, progress=False, **more)
    return cost, history


# --- teaching -----------------------------------------------------------------------------------------------------


def test_loss_on_the_response_only(micro, pairs, rows, encoder):
    """Bugs: the prompt is learnt too; a padding token is; the shift is done twice."""
    few = rows[:3]
    assert len({len(row.ids) for row in few}) > 1, "the batch must need padding"
    total, count = 0.0, 0
    for (p, trace), row in zip(pairs, few, strict=False):
        start = len(encoder.prompt(p.prompt))
        response = [i for step in trace.steps for i in encoder.step(step)]
        assert row.ids[start:] == row.labels[start:] == response and set(row.labels[:start]) == {-100}
        with torch.no_grad():
            logits = micro(torch.tensor([row.ids])).logits[0].log_softmax(-1)
        total -= sum(logits[start - 1 + k, token].item() for k, token in enumerate(response))
        count += len(response)
    with torch.no_grad():
        assert sft.loss(micro, sft.collate(few, 257)).item() == pytest.approx(total / count, rel=1e-4)


def test_a_direct_row_has_no_chain(tokenizer, pairs):
    """Bug: the direct twin is shown the chain that it should do without."""
    encoder = Encoder(tokenizer, reasoning=False)
    [row] = sft.rows([(pairs[5][0], sft.direct(pairs[5][1]))], encoder)
    answer = pairs[5][0].answer
    assert tokenizer.decode(row.ids) == f"<user>{pairs[5][0].prompt}</user><assistant>{answer}</assistant>"
    assert tokenizer.decode([i for i in row.labels if i >= 0]) == f"{answer}</assistant>"


def test_accuracy_is_greedy_decoding(micro, tokenizer, encoder):
    """Bug: teacher-forced accuracy that counts tokens, or an off-by-one that no decoding would forgive."""
    task = tasks.get("arithmetic")
    problems = task.load("train", 60, seed=3, level=1)
    chains = LocalPolicy(micro, tokenizer).extend([Want(p, Node(), 1, to_end=True) for p in problems], 0, Sampling(0.0))
    own = [(p, chain[-1].trace) for p, [chain] in zip(problems, chains, strict=True)]
    own = [(p, trace) for p, trace in own if trace.stop == "answer"]
    assert len(own) > 5
    rows = sft.rows(own, encoder)
    assert sft.accuracy(micro, rows, 257, batch=7) == 1.0
    # Change one digit in a third of them: exactly these are wrong, whatever they are batched with.
    changed = [
        (p, Trace((*t.steps[:-1], Step(t.steps[-1].text + "7", True))) if i % 3 == 0 else t)
        for i, (p, t) in enumerate(own)
    ]
    want = sum(i % 3 > 0 for i in range(len(own))) / len(own)
    assert sft.accuracy(micro, sft.rows(changed, encoder), 257, batch=7) == pytest.approx(want)


def test_a_tiny_model_memorises_four_rows(tokenizer, rows, tmp_path):
    """Bug: gradients that do not reach the weights, or a schedule that never lets them move. Both optimisers."""
    for muon_lr in (0.0, 0.02):
        model, four = new_model("micro", tokenizer), rows[1:5]
        config = Fit(steps=240, batch=4, lr=1e-2, muon_lr=muon_lr, warmup=5, check_every=20)
        _, history = teach(model, four, config, tmp_path)
        assert history[-1]["loss"] < 0.1 and sft.accuracy(model, four, 257) == 1.0


# --- the loop -----------------------------------------------------------------------------------------------------


def test_the_target_stops_and_only_it(tokenizer, rows, tmp_path):
    """Bug: an early stop on another number, or none: later stages need something left to gain."""
    found = iter([0.1, 0.5, 0.9])
    config = Fit(steps=40, batch=8, warmup=2, check_every=3, target=0.5)
    cost, history = teach(
        new_model("micro", tokenizer), rows, config, tmp_path, check=lambda: {"accuracy": next(found)}
    )
    assert [(row["step"], row["accuracy"]) for row in history] == [(3, 0.1), (6, 0.5)]
    cost, history = teach(new_model("micro", tokenizer), rows, Fit(7, 8, warmup=2, check_every=3), tmp_path)
    assert [row["step"] for row in history] == [3, 6, 7], "the last step has a row whatever check_every is"


def test_what_training_costs(tokenizer, rows, tmp_path):
    """Bug: batches that were collated ahead and never trained on are billed."""
    sizes = []

    def loss(model, batch):
        sizes.append(tuple(batch["input_ids"].shape))
        return sft.loss(model, batch)

    model = new_model("micro", tokenizer)
    cost, _ = teach(
        model, rows, Fit(9, 8, warmup=1, check_every=2, target=0.0), tmp_path, loss=loss, check=lambda: {"accuracy": 1}
    )
    assert len(sizes) == 2 and cost.trained == sum(r * c for r, c in sizes)
    passes = sum(flops(model.config, r * c, (c + 1) / 2) for r, c in sizes)
    assert cost.training_flops == pytest.approx(3 * passes) and cost.training_seconds > 0
    assert cost.policy_flops == cost.sampled == 0


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_an_error(tokenizer, rows, tmp_path, wrong):
    """Bug: the loop logs a loss of 0 in place of NaN and goes on to ruin the weights."""
    config = Fit(6, 8, warmup=1, check_every=2)
    with pytest.raises(WorkbenchError, match="the loss is (nan|inf) at step 2"):
        teach(new_model("micro", tokenizer), rows, config, tmp_path, loss=lambda m, b: sft.loss(m, b) * wrong)


def test_what_cannot_be_trained_is_refused(tokenizer, rows, tmp_path):
    """Bugs: no steps read as three epochs; a target that nothing is compared with."""
    model = new_model("micro", tokenizer)
    for config, data, message in (
        (Fit(4), [], "no training rows"),
        (Fit(0), rows, "0 training steps"),
        (Fit(4, target=0.5), rows, "needs a check"),
    ):
        with pytest.raises(WorkbenchError, match=message):
            teach(model, data, config, tmp_path)


def test_the_same_seed_trains_the_same_weights(tokenizer, rows, tmp_path):
    """Bug: a stage that cannot be repeated."""
    models = [new_model("micro", tokenizer) for _ in range(2)]
    for model in models:
        torch.rand(3)  # whatever happened before
        teach(model, rows, Fit(4, 8, warmup=1, muon_lr=0.01, check_every=4), tmp_path)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rows, batch", [(1000, 8), (130, 64), (7, 16), (128, 4)])
def test_ordered_batches_hold_every_row_once(rows, batch):
    """Bugs: rows lost at a window's end; another order in another process; batches of unlike length."""
    lengths = [(i * 7919) % 97 + 3 for i in range(rows)]
    order = list(Ordered(lengths, batch, seed=3))
    assert sorted(order) == list(range(rows)) and len(Ordered(lengths, batch, 3)) == rows
    assert order == list(Ordered(lengths, batch, seed=3))
    window = 16 * batch
    assert all(index // window == place // window for place, index in enumerate(order)), "easy rows first stay first"

    def padding(order):
        parts = [[lengths[i] for i in order[s : s + batch]] for s in range(0, rows, batch)]
        return sum(len(part) * max(part) - sum(part) for part in parts)

    if rows > 4 * batch:
        assert order != list(Ordered(lengths, batch, seed=4))
        assert padding(order) < 0.5 * padding(range(rows))


# --- Muon ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(24, 24), (12, 40), (40, 12), (3, 12, 40)])
def test_orthogonalise(shape):
    """Bugs: a transposed case that is not turned back; an iteration that runs away."""
    torch.manual_seed(0)
    x = torch.randn(shape)
    values = torch.linalg.svdvals(orthogonalise(x))
    assert 0.6 < values.min() and values.max() < 1.3
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    nearest = u @ vh
    cosine = (orthogonalise(x) * nearest).sum() / orthogonalise(x).norm() / nearest.norm()
    assert cosine > 0.97
    assert torch.allclose(orthogonalise(x * 1000), orthogonalise(x), atol=1e-4)


def test_muon_against_torch():
    """Against torch.optim.Muon, which works in bfloat16: the same way, nearly as far, over several steps."""
    torch.manual_seed(0)
    start = [torch.randn(16, 48), torch.randn(48, 16)]
    grads = [[torch.randn_like(x) for x in start] for _ in range(4)]
    ends = []
    for kind in (Muon, lambda p, lr: torch.optim.Muon(p, lr, weight_decay=0.0, momentum=0.95)):
        params = [torch.nn.Parameter(x.clone()) for x in start]
        optimizer = kind(params, lr=0.02)
        for step in grads:
            for p, g in zip(params, step, strict=True):
                p.grad = g.clone()
            optimizer.step()
        ends.append([p.detach() - x for p, x in zip(params, start, strict=True)])
    for ours, theirs in zip(*ends, strict=True):
        assert (ours * theirs).sum() / ours.norm() / theirs.norm() > 0.995
        assert ours.norm() / theirs.norm() == pytest.approx(1.0, abs=0.05)


def test_both_optimisers_follow_the_schedule_and_share_nothing(micro, rows):
    """Bugs: a matrix stepped twice or never; the rate of one that stays where it began."""
    model = copy.deepcopy(micro).train()
    both = fit.optimiser(model, Fit(lr=1e-3, muon_lr=0.02))
    held = [id(p) for group in both.param_groups for p in group["params"]]
    assert sorted(held) == sorted({id(p) for p in model.parameters()})
    muon = {id(p) for group in both.parts[0].param_groups for p in group["params"]}
    assert muon == {id(p) for n, p in model.named_parameters() if "proj" in n}
    before = copy.deepcopy(model.state_dict())
    sft.loss(model, sft.collate(rows[:4], 257)).backward()
    for group in both.param_groups:
        group["lr"] = 0.0
    both.step()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert math.isclose(fit.optimiser(model, Fit(lr=1e-3)).param_groups[0]["lr"], 1e-3)
